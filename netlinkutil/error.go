package netlinkutil

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"underlay/internal/mode"
)

// The named errors that the kernel's errnos become. Errors returned by this
// package say more, and answer to errors.Is with these and, where the standard
// library has a word for it, with that one too.
var (
	ErrNotFound    error = named{"link not found", os.ErrNotExist}
	ErrExists      error = named{"link exists", os.ErrExist}
	ErrPermission  error = named{"no permission", os.ErrPermission}
	ErrTimeout     error = named{"timed out", os.ErrDeadlineExceeded}
	ErrUnsupported error = named{"not supported", errors.ErrUnsupported}
	ErrBusy              = errors.New("parent is busy")
	ErrAddrInUse         = errors.New("MAC address is in use")
	ErrDown              = errors.New("link is down")
	ErrNoSource          = errors.New("no address of this host")
	ErrInvalid           = errors.New("invalid")
	// Of containers' netns: there is none of that path any more; none can be
	// entered, or it is not known whether there is one; the path is not one.
	ErrNoSandbox  = errors.New("no such sandbox")
	ErrNoEntry    = errors.New("no entry into sandboxes")
	ErrBadSandbox = errors.New("no sandbox of a container")
)

// named is a named error that is also one of the standard library's.
type named struct {
	text string
	is   error
}

func (n named) Error() string { return n.text }
func (n named) Unwrap() error { return n.is }

// refusal is a text for a person, and a named error for errors.Is. The two are
// apart, so that the text need not end in ": link exists".
type refusal struct {
	text string
	is   error
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.is }

func refuse(is error, format string, a ...any) error {
	return refusal{fmt.Sprintf(format, a...), is}
}

// maxName is IFNAMSIZ less its NUL (linux/if.h), in bytes.
const maxName = 15

// CheckName tells why the kernel would take no link of this name
// (net/core/dev.c, dev_valid_name).
func CheckName(name string) error {
	switch {
	case name == "":
		return refuse(ErrInvalid, "a link needs a name")
	case len(name) > maxName:
		return refuse(ErrInvalid, "link name %q has %d bytes; Linux allows %d", name, len(name), maxName)
	case name == "." || name == "..", strings.ContainsAny(name, "/:% \t\n\v\f\r\x00"):
		return refuse(ErrInvalid, "%q is no link name; Linux allows no blank, slash, colon or percent sign in it", name)
	}
	return nil
}

// Check tells why s cannot stand on parent, as far as can be told from the two
// alone. The kernel says only EINVAL to most of these, and nothing to some.
func (s SubInterface) Check(parent Link) error {
	if err := CheckName(s.Name); err != nil {
		return err
	}
	switch {
	case !slices.Contains(mode.All(), s.Mode):
		return refuse(ErrInvalid, "%q is no mode of a sub-interface", s.Mode)
	case parent.Loopback:
		return refuse(ErrInvalid, "parent %s is the loopback link, which has no LAN; name a network card as parent", parent.Name)
	case len(parent.MAC) != 6:
		return refuse(ErrInvalid, "parent %s is no ethernet link; %s needs one", parent.Name, s.Mode.Kind)
	case s.MTU != 0 && s.MTU < 68: // ETH_MIN_MTU, RFC 791
		return refuse(ErrInvalid, "MTU %d is too small; the least is 68", s.MTU)
	case s.MTU > parent.MTU:
		return refuse(ErrInvalid, "MTU %d is more than the %d of parent %s; lower it or raise the parent's", s.MTU, parent.MTU, parent.Name)
	case s.MAC == nil:
		return nil
	case !s.Mode.TakesMAC():
		return refuse(ErrInvalid, "%s links share the MAC address of their parent %s; leave %s out", s.Mode.Kind, parent.Name, s.MAC)
	case len(s.MAC) != 6 || s.MAC[0]&1 != 0 || bytes.Equal(s.MAC, make([]byte, 6)):
		return refuse(ErrInvalid, "%s is no MAC address of a single host", s.MAC)
	case bytes.Equal(s.MAC, parent.MAC) && !s.Mode.Alone():
		return refuse(ErrAddrInUse, "MAC address %s is that of parent %s itself; choose another", s.MAC, parent.Name)
	}
	return nil
}

// Refusal puts the kernel's errno at the creation of s into words, with the
// help of the links of the host that can be seen; links that have been moved
// into a container cannot. Exported for the fake kernel, which must refuse in
// the same words.
func (s SubInterface) Refusal(errno unix.Errno, seen []Link) error {
	parent, kind := s.Parent, s.Mode.Kind
	switch errno {
	case unix.EBUSY:
		// rx_handler taken: drivers/net/macvlan.c macvlan_port_create,
		// drivers/net/ipvlan/ipvlan_main.c ipvlan_link_new.
		for _, l := range seen {
			switch {
			case l.Name == parent && l.Master != "":
				return refuse(ErrBusy, "parent %s is a port of %s %s; name %[3]s as parent, or take %[1]s out of it", parent, l.MasterKind, l.Master)
			case l.Lower == parent && mode.Kind(l.Kind) == other(kind):
				return refuse(ErrBusy, "parent %s already carries %s links (%s); one parent cannot carry %s too: use %[2]s there, or another parent", parent, l.Kind, l.Name, kind)
			}
		}
		return refuse(ErrBusy, "parent %s is busy: it already carries %s links or is a port of a bridge or bond; %s needs it free of both", parent, other(kind), kind)
	case unix.EINVAL:
		if s.Mode.Alone() {
			return refuse(ErrBusy, "parent %s already carries macvlan links; passthru needs it alone", parent)
		}
		if kind == mode.Macvlan {
			return refuse(ErrBusy, "parent %s is given to a macvlan passthru link, which needs it alone; use another parent or remove that link", parent)
		}
		return refuse(ErrInvalid, "the kernel does not take %s on parent %s", s.Mode, parent)
	case unix.EADDRINUSE:
		return refuse(ErrAddrInUse, "MAC address %s is in use on parent %s; choose another", s.MAC, parent)
	case unix.EADDRNOTAVAIL:
		return refuse(ErrInvalid, "%s is no MAC address of a single host", s.MAC)
	case unix.ENODEV:
		return NotFound("parent", parent)
	case unix.EEXIST:
		for _, l := range seen {
			if l.Name == s.Name {
				return refuse(ErrExists, "link %s exists already (%s) and is not underlay's to replace; rename or remove it", s.Name, describe(l))
			}
		}
		return refuse(ErrExists, "link %s exists already; rename or remove it", s.Name)
	}
	return Explain(errno, string(kind), fmt.Sprintf("adding %s link %s on parent %s", s.Mode, s.Name, parent))
}

// other is the kind that cannot share a parent with kind.
func other(kind mode.Kind) mode.Kind {
	if kind == mode.Macvlan {
		return mode.IPvlan
	}
	return mode.Macvlan
}

// describe is a link's kind and place: "vlan 10 on eth1", "bridge"; and
// "802.1ad vlan 10 on eth1", for it is not what a person thinks of.
func describe(l Link) string {
	if l.VLAN != 0 && l.VLANProtocol != Dot1Q {
		return describeTag(l)
	}
	s := l.Kind
	if l.VLAN != 0 {
		s = fmt.Sprintf("%s %d", s, l.VLAN)
	}
	if l.Lower != "" {
		s += " on " + l.Lower
	}
	return s
}

// describeTag is describe for a VLAN link whose protocol matters.
func describeTag(l Link) string {
	return fmt.Sprintf("%s vlan %d on %s", l.VLANProtocol, l.VLAN, l.Lower)
}

// NotFound is ErrNotFound about the named thing ("parent", "link").
func NotFound(what, name string) error {
	return refuse(ErrNotFound, "%s %s does not exist; `ip link` lists the links of this host", what, name)
}

// Explain puts into words the errnos that mean the same whatever was asked.
// kind is the link type asked for, "" where none was; doing is what was being
// done. Exported for the fake kernel, as Refusal is.
func Explain(err error, kind, doing string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return refuse(ErrPermission, "%s: the kernel denies it; underlay needs CAP_NET_ADMIN", doing)
	case errors.Is(err, unix.EOPNOTSUPP) && kind != "":
		return refuse(ErrUnsupported, "%s: this kernel has no %s links; load or install its module (modprobe %[2]s)", doing, kind)
	case errors.Is(err, unix.ENETDOWN):
		return refuse(ErrInvalid, "%s: the link below it is down; set that up first (ip link set … up)", doing)
	case errors.Is(err, unix.EADDRINUSE):
		return refuse(ErrAddrInUse, "%s: its MAC address is in use on its parent; choose another", doing)
	case errors.Is(err, unix.EAGAIN):
		return refuse(ErrTimeout, "%s: no answer from the kernel within %s", doing, Timeout)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Replaces tells whether old, a link with the name that s wants, is a leftover
// of ours: it has our alias, or it is down and of the same kind on the same
// parent, as dockerd leaves one that comes back out of a container.
func (s SubInterface) Replaces(old Link) bool {
	return s.Alias != "" && old.Alias == s.Alias ||
		!old.Up && old.Kind == string(s.Mode.Kind) && old.Lower == s.Parent
}

// CheckVLAN tells why there can be no such VLAN link.
func CheckVLAN(name, lower string, id int, protocol VLANProtocol) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if protocol != Dot1Q && protocol != Dot1AD {
		return refuse(ErrInvalid, "%s is no VLAN protocol; it is 802.1q or 802.1ad", protocol)
	}
	if id < 1 || id > 4094 { // IEEE 802.1Q: 0 and 4095 are reserved
		return refuse(ErrInvalid, "%d is no VLAN ID; it is a number from 1 to 4094", id)
	}
	return CheckName(lower)
}

// Among finds the wanted vlan or dummy link among those seen, after the kernel
// has said EEXIST; ErrExists where what is there is something else.
func (want Link) Among(seen []Link) (Link, error) {
	for _, l := range seen {
		if l.Name != want.Name {
			continue
		}
		if want.same(l) {
			return l, nil
		}
		words := describe
		if l.VLAN != 0 && want.VLAN != 0 && l.VLANProtocol != want.VLANProtocol {
			words = describeTag
		}
		return Link{}, refuse(ErrExists, "link %s exists already and is %s, not %s; rename or remove it, or use another parent", want.Name, words(l), words(want))
	}
	for _, l := range seen {
		if want.same(l) && l.VLAN != 0 {
			return Link{}, refuse(ErrExists, "%s exists already under the name %s; name %[2]s as parent instead of %s", describe(want), l.Name, want.Name)
		}
	}
	return Link{}, refuse(ErrExists, "link %s exists already; rename or remove it", want.Name)
}

// same tells whether l is the wanted link but for its name.
func (want Link) same(l Link) bool {
	return l.Kind == want.Kind && l.Lower == want.Lower && l.VLAN == want.VLAN && l.VLANProtocol == want.VLANProtocol
}

// Refusal puts the kernel's errno at the creation of the wanted vlan or dummy
// link into words.
func (want Link) Refusal(err error) error {
	doing := "adding " + want.Kind + " link " + want.Name
	if want.Lower != "" {
		doing += " on " + want.Lower
	}
	switch {
	case errors.Is(err, unix.ENETDOWN):
		return refuse(ErrInvalid, "%s: %s is down; set it up first (ip link set %[2]s up)", doing, want.Lower)
	case errors.Is(err, unix.ENODEV):
		return NotFound("link", want.Lower)
	case errors.Is(err, unix.EOPNOTSUPP) && want.Lower != "":
		return refuse(ErrUnsupported, "%s: %s takes no VLANs, or this kernel has none (modprobe 8021q)", doing, want.Lower)
	}
	return Explain(err, want.Kind, doing)
}
