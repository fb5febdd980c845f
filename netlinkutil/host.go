package netlinkutil

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"underlay/internal/mode"
)

// Timeout is how long the kernel may take for one message. It answers in
// milliseconds unless someone holds its RTNL lock.
const Timeout = 10 * time.Second

// deleters is how many deletions may be under way at a time.
const deleters = 16

// Host is the links of the netns where it was opened. It is safe for
// concurrent use.
type Host struct {
	nl *netlink.Handle
	// A deletion keeps its socket for about 20 ms, so each has one of its own:
	// on one socket, 16 took 300 ms, on 16 sockets 20 to 30.
	del chan *netlink.Handle
	// away is for looks into other netns, so that these do not wait for a slow
	// answer from this one.
	away  map[int]*nl.SocketHandle
	watch *watch
	// strict is for dumps that the kernel filters (NETLINK_GET_STRICT_CHK), told for
	// changes, whose refusals have the kernel's words: both are for messages that
	// netlink has no functions for.
	strict   map[int]*nl.SocketHandle
	told     map[int]*nl.SocketHandle
	settings settings

	netns     nsID       // its own, which is no container's
	sandboxes *sandboxes // nil: there is no entry into containers
}

// Open opens the netns of the calling thread.
func Open() (*Host, error) {
	main, err := handle()
	if err != nil {
		return nil, err
	}
	h := &Host{nl: main, del: make(chan *netlink.Handle, deleters), settings: openSettings()}
	var own unix.Stat_t
	if unix.Stat(ownNetns, &own) == nil {
		h.netns = netnsID(own)
	}
	if err := h.listen(); err != nil {
		h.Close()
		return nil, err
	}
	for range deleters {
		d, err := handle()
		if err != nil {
			h.Close()
			return nil, err
		}
		h.del <- d
	}
	return h, nil
}

// listen opens the sockets of Changes and Follow, and strict: here, as they must
// be of this netns.
func (h *Host) listen() (err error) {
	if h.away, err = raw(); err != nil {
		return err
	}
	if h.strict, err = strict(); err != nil {
		return err
	}
	if h.told, err = told(); err != nil {
		return err
	}
	h.watch, err = newWatch()
	return err
}

func raw() (map[int]*nl.SocketHandle, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	late := unix.NsecToTimeval(Timeout.Nanoseconds())
	_, _ = s.SetSendTimeout(&late), s.SetReceiveTimeout(&late) // these only note it
	return map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}, nil
}

// told is a socket for messages whose refusal has the kernel's words beside the errno.
// It is for no dumps: words about one do not come behind a message that is given back,
// as others do (NLMSG_DONE; Linux, netlink_dump_done), and ExecuteIter panics at them.
func told() (map[int]*nl.SocketHandle, error) {
	s, err := raw()
	if err == nil {
		_ = s[unix.NETLINK_ROUTE].Socket.SetExtAck(true) // words, which no kernel must have
	}
	return s, err
}

// strict is a socket for dumps that the kernel filters. One before Linux 4.20 sends
// more, which is left out here.
func strict() (map[int]*nl.SocketHandle, error) {
	s, err := raw()
	if err == nil {
		_ = unix.SetsockoptInt(s[unix.NETLINK_ROUTE].Socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	}
	return s, err
}

func handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err == nil {
		err = h.SetSocketTimeout(Timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return h, nil
}

// Close frees the sockets; those of deletions under way, with the process. No
// other method may be called after it.
func (h *Host) Close() {
	h.nl.Close()
	if h.watch != nil {
		h.watch.file.Close()
	}
	for _, s := range []map[int]*nl.SocketHandle{h.away, h.strict, h.told} {
		if s != nil {
			s[unix.NETLINK_ROUTE].Close()
		}
	}
	h.settings.close()
	for {
		select {
		case d := <-h.del:
			d.Close()
		default:
			return
		}
	}
}

// bounded gives ask up after Timeout, with the errno that a socket's timeout
// has. That timeout alone does not do: the kernel works on a message inside
// sendto, and waits there for its RTNL lock, however long.
func bounded[T any](ask func() (T, error)) (T, error) {
	return boundedOr(ask, func() {})
}

// boundedOr is bounded, and undoes what ask has done after it was given up.
func boundedOr[T any](ask func() (T, error), undo func()) (T, error) {
	type answer struct {
		v   T
		err error
	}
	c, late := make(chan answer), make(chan struct{})
	go func() {
		var a answer
		a.err = safely(func() (err error) {
			a.v, err = ask()
			return err
		})
		select {
		case c <- a:
		case <-late:
			if a.err == nil {
				_ = safely(func() error { undo(); return nil })
			}
		}
	}()
	end := time.NewTimer(Timeout)
	defer end.Stop()
	select {
	case a := <-c:
		return a.v, a.err
	case <-end.C:
		close(late)
		var none T
		return none, unix.EAGAIN
	}
}

// safely has a panic end what was asked, and not the process: the netlink package does
// not expect each message that a kernel, or the root of a container, can give it to read.
func safely(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a message of the kernel's is not understood, which is a bug to report: %v, at %s", p, panicked())
		}
	}()
	return do()
}

// panicked says in a line where the function panics that has called it deferred.
func panicked() string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	var at []string
	for more, below := true, false; more && len(at) < 4; {
		var f runtime.Frame
		f, more = frames.Next()
		switch {
		case f.Function == "runtime.gopanic":
			below = true
		case below && !strings.HasPrefix(f.Function, "runtime."):
			at = append(at, fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line))
		}
	}
	return strings.Join(at, " < ")
}

// tellOrUndo is tell for a message that makes something: should it be done after it has been
// given up, undo is called.
func tellOrUndo(do func() error, undo func()) error {
	_, err := boundedOr(func() (struct{}, error) { return struct{}{}, do() }, undo)
	return err
}

// tell is bounded for a message that asks nothing back.
func tell(do func() error) error {
	_, err := bounded(func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// read is bounded for a look-up, and patient.
func read[T any](ask func() (T, error)) (T, error) {
	return patient(func() (T, error) { return bounded(ask) })
}

// patient asks again while the kernel says that links came or went in the middle
// of its answer (NLM_F_DUMP_INTR), for a second at most.
func patient[T any](ask func() (T, error)) (T, error) {
	for end := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		v, err := ask()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return v, err
		}
	}
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
	if m := h.at(k.Attrs().MasterIndex); m != nil {
		l.Master, l.MasterKind = m.Attrs().Name, m.Type()
	}
	if m := h.at(lower(k)); m != nil {
		l.Lower = m.Attrs().Name
	}
	return l, nil
}

// get is the kernel's link of that name; ErrNotFound where there is none.
func (h *Host) get(name string) (netlink.Link, error) {
	k, err := read(func() (netlink.Link, error) { return h.nl.LinkByName(name) })
	if absent(err) {
		return nil, NotFound("link", name)
	}
	return k, Explain(err, "", "looking up link "+name)
}

// parent is get for a link that others are to stand on, and that is so called
// where it is missing.
func (h *Host) parent(name string) (netlink.Link, error) {
	k, err := h.get(name)
	if errors.Is(err, ErrNotFound) {
		err = NotFound("parent", name)
	}
	return k, err
}

// at is the kernel's link of that index, nil where there is none.
func (h *Host) at(index int) netlink.Link {
	if index == 0 {
		return nil
	}
	k, err := read(func() (netlink.Link, error) { return h.nl.LinkByIndex(index) })
	if err != nil {
		return nil
	}
	return k
}

func absent(err error) bool {
	return errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV)
}

// Links lists all links, by one dump.
func (h *Host) Links() ([]Link, error) {
	ks, err := read(h.nl.LinkList)
	if err != nil {
		return nil, Explain(err, "", "listing the links")
	}
	of := linksOf(ks)
	ls := make([]Link, 0, len(ks))
	for _, k := range ks {
		l := link(k)
		of.complete(&l, k)
		ls = append(ls, l)
	}
	return ls, nil
}

// links are a host's, by their index.
type links map[int]netlink.Link

func linksOf(ks []netlink.Link) links {
	of := make(links, len(ks))
	for _, k := range ks {
		of[k.Attrs().Index] = k
	}
	return of
}

// complete says which links a link is under and on.
func (of links) complete(l *Link, k netlink.Link) {
	if m, ok := of[k.Attrs().MasterIndex]; ok {
		l.Master, l.MasterKind = m.Attrs().Name, m.Type()
	}
	if m, ok := of[lower(k)]; ok {
		l.Lower = m.Attrs().Name
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
		Carrier:  a.RawFlags&unix.IFF_LOWER_UP != 0,
		Loopback: a.Flags&net.FlagLoopback != 0,
		Alias:    a.Alias,
		PermMAC:  bytes.Clone(a.PermHWAddr),
	}
	if len(a.HardwareAddr) > 0 {
		l.MAC = bytes.Clone(a.HardwareAddr)
	}
	if v, ok := k.(*netlink.Vlan); ok {
		l.VLAN, l.VLANProtocol = v.VlanId, VLANProtocol(v.VlanProtocol)
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

// EnsureVLAN makes sure that name is a VLAN link with the ID and protocol on
// lower, and up. One that it makes inherits MAC and MTU and gets the alias; one
// that is there already keeps its own. A link of that name that is something
// else is ErrExists, naming both; so is the ID on lower under another name.
func (h *Host) EnsureVLAN(name, lower string, id int, protocol VLANProtocol, alias string) (made bool, err error) {
	if err := CheckVLAN(name, lower, id, protocol); err != nil {
		return false, err
	}
	low, err := h.get(lower)
	if err != nil {
		return false, fmt.Errorf("vlan %s: %w", name, err)
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex = name, low.Attrs().Index
	a.Flags = net.FlagUp
	want := Link{Name: name, Kind: "vlan", Lower: low.Attrs().Name, VLAN: id, VLANProtocol: protocol}
	return h.ensure(want, &netlink.Vlan{LinkAttrs: a, VlanId: id, VlanProtocol: netlink.VlanProtocol(protocol)}, alias)
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
	err = h.add(k)
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
		return false, h.undo(want.Name, err)
	}
	return true, nil
}

// undo deletes a link that could not be finished because of err.
func (h *Host) undo(name string, err error) error {
	if left := h.DeleteLink(name); left != nil {
		return fmt.Errorf("%w; and link %s is left behind: %w", err, name, left)
	}
	return err
}

// setAlias is a message of its own: the kernel ignores IFLA_IFALIAS in the
// message that creates a link (net/core/rtnetlink.c, rtnl_create_link).
func (h *Host) setAlias(k netlink.Link, alias string) error {
	if alias == "" {
		return nil
	}
	return Explain(tell(func() error { return h.nl.LinkSetAlias(k, alias) }), "", "setting the alias of link "+k.Attrs().Name)
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
	return Explain(tell(func() error { return h.nl.LinkSetUp(k) }), "", "setting link "+name+" up")
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
	pk, err := h.parent(s.Parent)
	if err != nil {
		return Link{}, err
	}
	parent := link(pk)
	s.Parent = parent.Name // it may have been asked for by an altname
	if err := s.Check(parent); err != nil {
		return Link{}, err
	}
	k := s.link(parent.Index)
	err = h.add(k)
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
		err = h.add(k)
	}
	if err != nil {
		var errno unix.Errno
		if !errors.As(err, &errno) {
			return Link{}, err
		}
		seen, _ := h.Links() // for the words only
		return Link{}, s.Refusal(errno, seen)
	}
	l, err := h.finish(s, k, parent)
	if err != nil {
		return Link{}, h.undo(s.Name, err)
	}
	if s.Mode.Kind == mode.IPvlan {
		l.DeviceID = deviceID(s.Name)
	}
	return l, nil
}

// add makes a link, which nobody waits for if the kernel makes it too late.
func (h *Host) add(k netlink.Link) error {
	return tellOrUndo(func() error { return h.nl.LinkAdd(k) }, func() { _ = h.nl.LinkDel(k) })
}

// deviceID is a link's dev_id, 0 if it is not told: netlink does not have it.
func deviceID(name string) uint16 {
	text, err := os.ReadFile("/sys/class/net/" + name + "/dev_id")
	if err != nil {
		return 0
	}
	id, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 16)
	return uint16(id)
}

// finish does to a new sub-interface what its creation could not.
func (h *Host) finish(s SubInterface, k netlink.Link, parent Link) (Link, error) {
	if err := h.setAlias(k, s.Alias); err != nil {
		return Link{}, err
	}
	// A passthru link takes its parent's MAC address whatever the creating
	// message says (drivers/net/macvlan.c, macvlan_common_newlink).
	if s.Mode.Alone() && s.MAC != nil {
		err := tell(func() error { return h.nl.LinkSetHardwareAddr(k, s.MAC) })
		if err != nil {
			return Link{}, Explain(err, "", fmt.Sprintf("setting the MAC address of link %s and its parent %s to %s", s.Name, s.Parent, s.MAC))
		}
	}
	k, err := h.get(s.Name)
	if err != nil {
		return Link{}, err
	}
	l := link(k)
	l.Lower = s.Parent
	if i := lower(k); i != parent.Index { // asked for on one of its own kind
		if m := h.at(i); m != nil {
			l.Lower = m.Attrs().Name
		}
	}
	return l, nil
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

// DeleteLink deletes a link; an absent one is success. It returns as soon as
// the link is gone from the netns, its name and its parent free. The kernel's
// own answer comes some 20 ms later, after an RCU barrier that only frees
// memory (net/core/dev.c, netdev_run_todo), and nobody need wait for that.
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
	late := time.NewTimer(Timeout)
	defer late.Stop()
	answer := make(chan error, 1)
	select {
	case d := <-h.del:
		go func() {
			answer <- safely(func() error { return d.LinkDel(k) })
			h.del <- d
		}()
	case <-late.C:
		answer <- unix.EAGAIN
	}
	for {
		select {
		case err = <-answer:
			if absent(err) {
				return nil
			}
			return Explain(err, "", "deleting link "+name)
		case <-late.C:
			return Explain(unix.EAGAIN, "", "deleting link "+name)
		case <-time.After(100 * time.Microsecond):
			_, err := read(func() (netlink.Link, error) { return h.nl.LinkByIndex(k.Attrs().Index) })
			if absent(err) {
				h.settle() // the parent may not be free yet
				return nil
			}
		}
	}
}
