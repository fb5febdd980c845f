package netlinkutil

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"underlay/internal/mode"
)

// Timeout is how long the kernel may take for one message. It answers in
// milliseconds unless someone holds its RTNL lock.
const Timeout = 10 * time.Second

// Host is the links of the netns where it was opened. It is safe for
// concurrent use.
type Host struct {
	nl  *netlink.Handle
	del *netlink.Handle // deletion waits for RCU; a socket of its own keeps that from holding up the rest
}

// Open opens the netns of the calling thread.
func Open() (*Host, error) {
	nl, err := handle()
	if err != nil {
		return nil, err
	}
	del, err := handle()
	if err != nil {
		nl.Close()
		return nil, err
	}
	return &Host{nl: nl, del: del}, nil
}

func handle() (*netlink.Handle, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := nl.SetSocketTimeout(Timeout); err != nil {
		nl.Close()
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return nl, nil
}

// Close frees the sockets. No other method may be called after it.
func (h *Host) Close() {
	h.nl.Close()
	h.del.Close()
}

// Link looks one link up by its name: one message, and one more each for the
// name of its master and of the link below it.
func (h *Host) Link(name string) (Link, error) {
	if err := CheckName(name); err != nil {
		return Link{}, err
	}
	k, err := h.get(name)
	if err != nil {
		return Link{}, err
	}
	l := link(k)
	a := k.Attrs()
	if a.MasterIndex != 0 {
		if m, err := h.nl.LinkByIndex(a.MasterIndex); err == nil {
			l.Master, l.MasterKind = m.Attrs().Name, m.Type()
		}
	}
	if i := lower(k); i != 0 {
		if m, err := h.nl.LinkByIndex(i); err == nil {
			l.Lower = m.Attrs().Name
		}
	}
	return l, nil
}

// get is the kernel's link of that name; ErrNotFound where there is none.
func (h *Host) get(name string) (netlink.Link, error) {
	k, err := retry(func() (netlink.Link, error) { return h.nl.LinkByName(name) })
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, NotFound("link", name)
	}
	return k, Explain(err, "", "looking up link "+name)
}

// Links lists all links, by one dump.
func (h *Host) Links() ([]Link, error) {
	ks, err := retry(h.nl.LinkList)
	if err != nil {
		return nil, Explain(err, "", "listing the links")
	}
	byIndex := make(map[int]netlink.Link, len(ks))
	for _, k := range ks {
		byIndex[k.Attrs().Index] = k
	}
	ls := make([]Link, 0, len(ks))
	for _, k := range ks {
		l := link(k)
		if m, ok := byIndex[k.Attrs().MasterIndex]; ok {
			l.Master, l.MasterKind = m.Attrs().Name, m.Type()
		}
		if m, ok := byIndex[lower(k)]; ok {
			l.Lower = m.Attrs().Name
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// retry asks again while the kernel says that links came or went in the
// middle of its answer (NLM_F_DUMP_INTR), and for a second at most.
func retry[T any](ask func() (T, error)) (T, error) {
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		v, err := ask()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return v, err
		}
	}
}

// link is what the kernel's link says of itself; Master and Lower, which need
// other links, stay empty.
func link(k netlink.Link) Link {
	a := k.Attrs()
	l := Link{
		Index:    a.Index,
		Name:     a.Name,
		Kind:     k.Type(),
		MTU:      a.MTU,
		Up:       a.Flags&net.FlagUp != 0,
		Loopback: a.Flags&net.FlagLoopback != 0,
		Alias:    a.Alias,
		PermMAC:  bytes.Clone(a.PermHWAddr),
	}
	if len(a.HardwareAddr) > 0 {
		l.MAC = bytes.Clone(a.HardwareAddr)
	}
	if v, ok := k.(*netlink.Vlan); ok {
		l.VLAN = v.VlanId
	}
	return l
}

// lower is the index of the link that k sits on, 0 where there is none in this
// netns. IFLA_LINK alone does not tell: a veth has its peer there.
func lower(k netlink.Link) int {
	if a := k.Attrs(); stacked(k.Type()) && a.NetNsID < 0 {
		return a.ParentIndex
	}
	return 0
}

// EnsureVLAN makes sure that name is an 802.1q link with the ID on lower, and
// up. One that it makes inherits MAC and MTU and gets the alias; one that is
// there already keeps its own. A link of that name that is something else is
// ErrExists, naming both; so is the ID on lower under another name.
func (h *Host) EnsureVLAN(name, lower string, id int, alias string) (made bool, err error) {
	if err := CheckVLAN(name, lower, id); err != nil {
		return false, err
	}
	low, err := h.get(lower)
	if err != nil {
		return false, fmt.Errorf("vlan %s: %w", name, err)
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex = name, low.Attrs().Index
	a.Flags = net.FlagUp
	want := Link{Name: name, Kind: "vlan", Lower: lower, VLAN: id}
	return h.ensure(want, &netlink.Vlan{LinkAttrs: a, VlanId: id}, alias)
}

// EnsureDummy makes sure that name is a dummy link, and up. One that it makes
// gets the alias and the MAC address (nil: a random one).
func (h *Host) EnsureDummy(name, alias string, mac net.HardwareAddr) (made bool, err error) {
	if err := CheckName(name); err != nil {
		return false, err
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr = name, mac
	a.Flags = net.FlagUp
	return h.ensure(Link{Name: name, Kind: "dummy"}, &netlink.Dummy{LinkAttrs: a}, alias)
}

// ensure makes k unless want is there already. k comes up in the message that
// creates it: if it cannot, the kernel takes it away again.
func (h *Host) ensure(want Link, k netlink.Link, alias string) (made bool, err error) {
	err = h.nl.LinkAdd(k)
	if errors.Is(err, unix.EEXIST) {
		seen, err := h.Links()
		if err != nil {
			return false, err
		}
		have, err := want.Among(seen)
		if err != nil || have.Up {
			return false, err
		}
		return false, h.SetUp(want.Name)
	}
	if err != nil {
		return false, want.Refusal(err)
	}
	if err := h.setAlias(k, alias); err != nil {
		h.DeleteLink(want.Name)
		return false, err
	}
	return true, nil
}

// setAlias is a message of its own: the kernel ignores IFLA_IFALIAS in the
// message that creates a link (net/core/rtnetlink.c, rtnl_create_link).
func (h *Host) setAlias(k netlink.Link, alias string) error {
	if alias == "" {
		return nil
	}
	return Explain(h.nl.LinkSetAlias(k, alias), "", "setting the alias of link "+k.Attrs().Name)
}

// SetUp sets a link up.
func (h *Host) SetUp(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	k, err := h.get(name)
	if err != nil {
		return err
	}
	return Explain(h.nl.LinkSetUp(k), "", "setting link "+name+" up")
}

// AddSubInterface makes a macvlan or ipvlan link, down, on a parent. The MAC
// address goes into the message that creates it, so that the link never shows
// another on the LAN. A leftover of the same name is replaced if it has the
// same alias, or is down and of the same kind on the same parent; any other
// link of that name is ErrExists.
func (h *Host) AddSubInterface(s SubInterface) (Link, error) {
	if err := CheckName(s.Parent); err != nil {
		return Link{}, err
	}
	pk, err := h.get(s.Parent)
	if err != nil {
		if errors.Is(err, ErrNotFound) {
			err = NotFound("parent", s.Parent)
		}
		return Link{}, err
	}
	parent := link(pk)
	if err := s.Check(parent); err != nil {
		return Link{}, err
	}
	k := s.link(parent.Index)
	err = h.nl.LinkAdd(k)
	if errors.Is(err, unix.EEXIST) {
		old, lerr := h.Link(s.Name)
		if lerr == nil && !s.Replaces(old) {
			return Link{}, s.Refusal(unix.EEXIST, []Link{old})
		}
		if lerr == nil {
			lerr = h.DeleteLink(s.Name)
		}
		if lerr != nil && !errors.Is(lerr, ErrNotFound) {
			return Link{}, lerr
		}
		err = h.nl.LinkAdd(k)
	}
	if err != nil {
		var errno unix.Errno
		if !errors.As(err, &errno) {
			return Link{}, err
		}
		seen, _ := h.Links() // for the words only
		return Link{}, s.Refusal(errno, seen)
	}
	l, err := h.finish(s, k)
	if err != nil {
		h.DeleteLink(s.Name)
		return Link{}, err
	}
	return l, nil
}

// finish does to a new sub-interface what its creation could not.
func (h *Host) finish(s SubInterface, k netlink.Link) (Link, error) {
	if err := h.setAlias(k, s.Alias); err != nil {
		return Link{}, err
	}
	// A passthru link takes its parent's MAC address whatever the creating
	// message says (drivers/net/macvlan.c, macvlan_common_newlink).
	if s.Mode.Alone() && s.MAC != nil {
		err := h.nl.LinkSetHardwareAddr(k, s.MAC)
		if err != nil {
			return Link{}, Explain(err, "", fmt.Sprintf("setting the MAC address of link %s and its parent %s to %s", s.Name, s.Parent, s.MAC))
		}
	}
	return h.Link(s.Name)
}

// link is the creating message: the one place where a mode meets the kernel.
func (s SubInterface) link(parent int) netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex, a.MTU, a.HardwareAddr = s.Name, parent, s.MTU, s.MAC
	macvlan := func(m netlink.MacvlanMode) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: a, Mode: m, BCQueueLen: s.BCQueueLen}
	}
	ipvlan := func(m netlink.IPVlanMode) netlink.Link {
		flags := map[string]netlink.IPVlanFlag{"private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}
		return &netlink.IPVlan{LinkAttrs: a, Mode: m, Flag: flags[s.Mode.Flag]}
	}
	switch (mode.Mode{Kind: s.Mode.Kind, Name: s.Mode.Name}) {
	case mode.Mode{Kind: mode.Macvlan, Name: "private"}:
		return macvlan(netlink.MACVLAN_MODE_PRIVATE)
	case mode.Mode{Kind: mode.Macvlan, Name: "vepa"}:
		return macvlan(netlink.MACVLAN_MODE_VEPA)
	case mode.Mode{Kind: mode.Macvlan, Name: "passthru"}:
		return macvlan(netlink.MACVLAN_MODE_PASSTHRU)
	case mode.Mode{Kind: mode.IPvlan, Name: "l2"}:
		return ipvlan(netlink.IPVLAN_MODE_L2)
	case mode.Mode{Kind: mode.IPvlan, Name: "l3"}:
		return ipvlan(netlink.IPVLAN_MODE_L3)
	case mode.Mode{Kind: mode.IPvlan, Name: "l3s"}:
		return ipvlan(netlink.IPVLAN_MODE_L3S)
	}
	return macvlan(netlink.MACVLAN_MODE_BRIDGE) // Check let only modes through
}

// DeleteLink deletes a link; an absent one is success.
func (h *Host) DeleteLink(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	k, err := h.get(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err = h.del.LinkDel(k); errors.Is(err, unix.ENODEV) {
		return nil
	}
	return Explain(err, "", "deleting link "+name)
}
