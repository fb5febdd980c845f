package fake

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// ErrInjected is for Fail where a test does not mind which error it is.
var ErrInjected = errors.New("injected failure")

// Kernel is a host's links. Make one with New; it is safe for concurrent use.
type Kernel struct {
	mu    sync.Mutex
	links []*link // by index, ascending
	next  int
	lacks map[string]bool
	fails []*failure

	sysctls map[string]string // all that Sysctl has set

	routes  []route
	groups  []*group
	feed    netlinkutil.Feed[netlinkutil.Change]
	wheres  netlinkutil.Feed[int]    // of the changes of addresses
	told    map[int]netlinkutil.Link // what the feed was last told, nil until somebody listens
	changed chan struct{}            // closed at the next change

	sandboxes map[string]bool // the containers' netns by their names
	noEntry   bool
}

// link is a link as the kernel knows it.
type link struct {
	netlinkutil.Link       // Lower, Master, MasterKind and Carrier are filled in when read
	lower, master    *link // nil where there is none
	mode             mode.Mode
	bcQueueLen       uint32
	noIPv6           bool // of a shim
	addresses        []netlinkutil.Address
	neighbours       map[netip.Addr]net.HardwareAddr // permanent ones
	unplugged        bool
	moved            bool                  // in a container's netns
	sandbox          string                // its name, "" for one that nobody enters
	inside           netlinkutil.Interface // what the link is there, but for MTU and Up
	moves            int                   // how often it has been moved there
	takenMAC         net.HardwareAddr      // of a passthru's parent: the MAC to give back
}

type failure struct {
	op  string
	nth int
	err error
}

// New is a host with nothing but lo.
func New() *Kernel {
	k := &Kernel{next: 1, lacks: map[string]bool{}, changed: make(chan struct{}), sysctls: map[string]string{}, sandboxes: map[string]bool{}}
	k.feed.Lost = netlinkutil.Change{Lost: true}
	k.add(&link{Link: netlinkutil.Link{Name: "lo", Kind: "device", MTU: 65536, Up: true, Loopback: true, MAC: make(net.HardwareAddr, 6)}})
	return k
}

// AddNIC plugs in a network card, up, MTU 1500, with the MAC address
// 00:16:3e:00:00:INDEX.
func (k *Kernel) AddNIC(name string) {
	k.mu.Lock()
	defer k.unlock()
	mac := net.HardwareAddr{0x00, 0x16, 0x3e, 0, 0, byte(k.next)}
	k.place(netlinkutil.Link{Name: name, Kind: "device", MTU: 1500, Up: true, MAC: mac, PermMAC: mac})
}

// Add puts a link there as somebody else would: a bridge, a foreign dummy, a
// NIC out of the ordinary. Lower must name a link if set; use Enslave for
// Master. No rule but that of the unique name is checked; breaking that one
// panics.
func (k *Kernel) Add(l netlinkutil.Link) {
	k.mu.Lock()
	defer k.unlock()
	k.place(l)
}

func (k *Kernel) place(l netlinkutil.Link) {
	if k.find(l.Name) != nil {
		panic("fake: link " + l.Name + " exists already")
	}
	if l.VLAN != 0 && l.VLANProtocol == 0 {
		l.VLANProtocol = netlinkutil.Dot1Q
	}
	k.add(&link{Link: l, lower: k.find(l.Lower)})
}

func (k *Kernel) add(l *link) {
	l.Index = k.next
	k.next++
	k.links = append(k.links, l)
}

// Enslave makes port a port of master, or frees it (master ""). The kernel
// refuses where the port's rx_handler is taken.
func (k *Kernel) Enslave(port, master string) error {
	k.mu.Lock()
	defer k.unlock()
	p, m := k.find(port), k.find(master)
	if p == nil || m == nil && master != "" {
		return unix.ENODEV
	}
	if m != nil && (p.master != nil || k.carries(p) != "") {
		return unix.EBUSY
	}
	p.master = m
	return nil
}

// Set changes a link as somebody else would: set its MTU, take it down.
func (k *Kernel) Set(name string, change func(*netlinkutil.Link)) {
	k.mu.Lock()
	defer k.unlock()
	if l := k.find(name); l != nil {
		up, mtu := l.Up, l.MTU
		if change(&l.Link); up && !l.Up {
			k.unroute(l)
		}
		if l.MTU != mtu {
			k.lowered(l)
		}
	}
}

// Unplug pulls a network card's wire, Plug puts it back.
func (k *Kernel) Unplug(name string) { k.plug(name, false) }

// Plug is the end of Unplug.
func (k *Kernel) Plug(name string) { k.plug(name, true) }

func (k *Kernel) plug(name string, in bool) {
	k.mu.Lock()
	defer k.unlock()
	l := k.must(name)
	l.unplugged = !in
	if !in {
		k.ungroup(l)
	}
}

// Rename gives a link another name, as somebody else would.
func (k *Kernel) Rename(name, to string) error {
	k.mu.Lock()
	defer k.unlock()
	l := k.find(name)
	switch {
	case l == nil:
		return unix.ENODEV
	case k.find(to) != nil:
		return unix.EEXIST
	}
	l.Name = to
	return nil
}

// Lack takes a link type ("ipvlan", "vlan", "dummy") out of the kernel, or its
// groups of nexthops ("nexthop").
func (k *Kernel) Lack(kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lacks[kind] = true
}

// Fail makes the nth call from now on of the method named op fail with err
// before it does anything; 1 is the next call.
func (k *Kernel) Fail(op string, nth int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails = append(k.fails, &failure{op, nth, err})
}

// injected counts down the failures of op and returns the one that is due.
func (k *Kernel) injected(op string) (err error) {
	for _, f := range k.fails {
		if f.op != op {
			continue
		}
		if f.nth--; f.nth == 0 {
			err = f.err
		}
	}
	k.fails = slices.DeleteFunc(k.fails, func(f *failure) bool { return f.nth <= 0 })
	return err
}

// Move takes a link into a container's netns and sets it up there, as dockerd
// does at Join: out of sight, and its name free. Take and Arrive are the same
// in two steps.
func (k *Kernel) Move(name string) error {
	k.mu.Lock()
	defer k.unlock()
	_, err := k.move(name)
	return err
}

func (k *Kernel) move(name string) (*link, error) {
	l, err := k.take(name)
	if err != nil {
		return nil, err
	}
	if k.macTaken(l) {
		l.moved = false
		return nil, unix.EADDRINUSE
	}
	l.Up = true
	return l, nil
}

// Take takes a link into a container's netns, down.
func (k *Kernel) Take(name string) error {
	k.mu.Lock()
	defer k.unlock()
	_, err := k.take(name)
	return err
}

func (k *Kernel) take(name string) (*link, error) {
	l := k.find(name)
	if l == nil {
		return nil, unix.ENODEV
	}
	k.unroute(l)
	l.moved, l.Up, l.addresses, l.sandbox = true, false, nil, ""
	l.moves++
	return l, nil
}

// Arrive sets a link up that Take has taken into a container's netns.
func (k *Kernel) Arrive(name string) error {
	k.mu.Lock()
	defer k.unlock()
	l := k.away(name)
	switch {
	case l == nil:
		return unix.ENODEV
	case k.macTaken(l):
		return unix.EADDRINUSE
	}
	l.Up = true
	return nil
}

// Return brings a moved link back under its name, down, as dockerd does at
// Leave.
func (k *Kernel) Return(name string) error {
	k.mu.Lock()
	defer k.unlock()
	l := k.away(name)
	if l == nil {
		return unix.ENODEV
	}
	if k.find(name) != nil {
		return unix.EEXIST
	}
	l.moved, l.Up, l.sandbox = false, false, ""
	return nil
}

// Vanish deletes a moved link with its container's netns, as happens when
// nobody brings it back.
func (k *Kernel) Vanish(name string) error {
	k.mu.Lock()
	defer k.unlock()
	l := k.away(name)
	if l == nil {
		return unix.ENODEV
	}
	k.remove(l)
	return nil
}

// find is the link of that name in the host's netns, nil where there is none.
func (k *Kernel) find(name string) *link {
	i := slices.IndexFunc(k.links, func(l *link) bool { return l.Name == name && !l.moved })
	if i < 0 {
		return nil
	}
	return k.links[i]
}

func (k *Kernel) away(name string) *link {
	i := slices.IndexFunc(k.links, func(l *link) bool { return l.Name == name && l.moved })
	if i < 0 {
		return nil
	}
	return k.links[i]
}

// carries is the kind of the sub-interfaces on l, "" where there are none. A
// vlan on l takes no rx_handler.
func (k *Kernel) carries(l *link) mode.Kind {
	for _, c := range k.links {
		if c.lower == l && (c.Kind == string(mode.Macvlan) || c.Kind == string(mode.IPvlan)) {
			return mode.Kind(c.Kind)
		}
	}
	return ""
}

// macTaken tells whether a macvlan link cannot come up since its MAC address
// is its parent's or that of another one that is up (macvlan_addr_busy).
func (k *Kernel) macTaken(l *link) bool {
	if l.Kind != string(mode.Macvlan) || l.mode.Alone() {
		return false
	}
	if bytes.Equal(l.MAC, l.lower.MAC) {
		return true
	}
	for _, c := range k.links {
		if c != l && c.lower == l.lower && c.Up && c.Kind == l.Kind && bytes.Equal(c.MAC, l.MAC) {
			return true
		}
	}
	return false
}

// read is what a link says of itself in the host's netns.
func (l *link) read() netlinkutil.Link {
	r := l.Link
	r.MAC, r.PermMAC = bytes.Clone(l.MAC), bytes.Clone(l.PermMAC)
	r.Carrier = l.carrier()
	if l.lower != nil {
		r.Lower = l.lower.Name
	}
	if l.master != nil {
		r.Master, r.MasterKind = l.master.Name, l.master.Kind
	}
	return r
}

func (l *link) carrier() bool {
	return l.Up && !l.unplugged && (l.lower == nil || l.lower.carrier())
}

func (k *Kernel) read() []netlinkutil.Link {
	var ls []netlinkutil.Link
	for _, l := range k.links {
		if !l.moved {
			ls = append(ls, l.read())
		}
	}
	return ls
}

// Link looks one link up by its name.
func (k *Kernel) Link(name string) (netlinkutil.Link, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.injected("Link"); err != nil {
		return netlinkutil.Link{}, err
	}
	if err := netlinkutil.CheckName(name); err != nil {
		return netlinkutil.Link{}, err
	}
	l := k.find(name)
	if l == nil {
		return netlinkutil.Link{}, netlinkutil.NotFound("link", name)
	}
	return l.read(), nil
}

// Links lists all links in the host's netns, by index.
func (k *Kernel) Links() ([]netlinkutil.Link, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.injected("Links"); err != nil {
		return nil, err
	}
	return k.read(), nil
}

// EnsureVLAN makes sure that name is a VLAN link, as Host's does.
func (k *Kernel) EnsureVLAN(name, lower string, id int, protocol netlinkutil.VLANProtocol, alias string) (made bool, err error) {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("EnsureVLAN"); err != nil {
		return false, err
	}
	if err := netlinkutil.CheckVLAN(name, lower, id, protocol); err != nil {
		return false, err
	}
	low := k.find(lower)
	if low == nil {
		return false, fmt.Errorf("vlan %s: %w", name, netlinkutil.NotFound("link", lower))
	}
	want := netlinkutil.Link{Name: name, Kind: "vlan", Lower: lower, VLAN: id, VLANProtocol: protocol}
	same := func(l *link) bool { return l.lower == low && l.VLAN == id && l.VLANProtocol == protocol }
	if k.find(name) != nil || slices.ContainsFunc(k.links, same) {
		return false, k.settle(want)
	}
	switch {
	case k.lacks["vlan"], low.Loopback:
		return false, want.Refusal(unix.EOPNOTSUPP)
	case !low.Up:
		return false, want.Refusal(unix.ENETDOWN)
	}
	want.Lower, want.Alias, want.MTU, want.Up = "", alias, low.MTU, true
	want.MAC = bytes.Clone(low.MAC)
	k.add(&link{Link: want, lower: low})
	return true, nil
}

// EnsureDummy makes sure that name is a dummy link, as Host's does.
func (k *Kernel) EnsureDummy(name, alias string, mac net.HardwareAddr) (made bool, err error) {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("EnsureDummy"); err != nil {
		return false, err
	}
	if err := netlinkutil.CheckName(name); err != nil {
		return false, err
	}
	want := netlinkutil.Link{Name: name, Kind: "dummy"}
	if k.find(name) != nil {
		return false, k.settle(want)
	}
	if k.lacks["dummy"] {
		return false, want.Refusal(unix.EOPNOTSUPP)
	}
	want.Alias, want.MTU, want.Up = alias, 1500, true
	if want.MAC = bytes.Clone(mac); mac == nil {
		want.MAC = k.randomMAC()
	}
	k.add(&link{Link: want})
	return true, nil
}

// settle is what Host does after EEXIST: be content with the wanted link if it
// is there, and set it up.
func (k *Kernel) settle(want netlinkutil.Link) error {
	have, err := want.Among(k.read())
	if err != nil || have.Up {
		return err
	}
	return k.setUp(want.Name)
}

// randomMAC is no more random than a golden picture can bear.
func (k *Kernel) randomMAC() net.HardwareAddr {
	return net.HardwareAddr{0x02, 0, 0, 0, 0, byte(k.next)}
}

// SetUp sets a link up.
func (k *Kernel) SetUp(name string) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("SetUp"); err != nil {
		return err
	}
	if err := netlinkutil.CheckName(name); err != nil {
		return err
	}
	return k.setUp(name)
}

func (k *Kernel) setUp(name string) error {
	l := k.find(name)
	if l == nil {
		return netlinkutil.NotFound("link", name)
	}
	var err error
	switch {
	case l.Up:
	case l.Kind == "vlan" && !l.lower.Up:
		err = unix.ENETDOWN
	case k.macTaken(l):
		err = unix.EADDRINUSE
	default:
		l.Up = true
	}
	return netlinkutil.Explain(err, "", "setting link "+name+" up")
}

// AddSubInterface makes a macvlan or ipvlan link, as Host's does.
func (k *Kernel) AddSubInterface(s netlinkutil.SubInterface) (netlinkutil.Link, error) {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("AddSubInterface"); err != nil {
		return netlinkutil.Link{}, err
	}
	return k.addSubInterface(s)
}

func (k *Kernel) addSubInterface(s netlinkutil.SubInterface) (netlinkutil.Link, error) {
	if err := netlinkutil.CheckName(s.Parent); err != nil {
		return netlinkutil.Link{}, err
	}
	parent := k.find(s.Parent)
	if parent == nil {
		return netlinkutil.Link{}, netlinkutil.NotFound("parent", s.Parent)
	}
	if err := s.Check(parent.read()); err != nil {
		return netlinkutil.Link{}, err
	}
	if old := k.find(s.Name); old != nil {
		if !s.Replaces(old.read()) {
			return netlinkutil.Link{}, s.Refusal(unix.EEXIST, []netlinkutil.Link{old.read()})
		}
		k.remove(old)
	}
	// A link on one of its own kind goes to the one below (macvlan_common_newlink).
	for parent.Kind == string(s.Mode.Kind) {
		parent = parent.lower
	}
	if errno := k.refuses(s, parent); errno != 0 {
		return netlinkutil.Link{}, s.Refusal(errno, k.read())
	}
	l := &link{lower: parent, mode: s.Mode, bcQueueLen: s.BCQueueLen, Link: netlinkutil.Link{
		Name: s.Name, Kind: string(s.Mode.Kind), Alias: s.Alias, MTU: s.MTU, MAC: bytes.Clone(s.MAC)}}
	if l.MTU == 0 {
		l.MTU = parent.MTU
	}
	switch {
	case s.Mode.Kind == mode.IPvlan:
		l.MAC = bytes.Clone(parent.MAC)
		for _, c := range k.links { // one mode and flag for all on the parent
			if c.lower == parent && c.Kind == l.Kind {
				c.mode = s.Mode
			}
		}
	case s.Mode.Alone():
		parent.takenMAC = parent.MAC
		if s.MAC != nil {
			parent.MAC = bytes.Clone(s.MAC)
		}
		l.MAC = bytes.Clone(parent.MAC)
	case s.MAC == nil:
		l.MAC = k.randomMAC()
	}
	k.add(l)
	return l.read(), nil
}

// refuses is the errno, 0 for none, with which the kernel would refuse s on
// parent: net/core/rtnetlink.c, drivers/net/macvlan.c, drivers/net/ipvlan.
func (k *Kernel) refuses(s netlinkutil.SubInterface, parent *link) unix.Errno {
	carries := k.carries(parent)
	switch {
	case k.lacks[string(s.Mode.Kind)]:
		return unix.EOPNOTSUPP
	case parent.master != nil, carries != "" && carries != s.Mode.Kind:
		return unix.EBUSY
	case carries != mode.Macvlan:
		return 0
	case s.Mode.Alone():
		return unix.EINVAL
	}
	for _, c := range k.links {
		if c.lower == parent && c.mode.Alone() {
			return unix.EINVAL
		}
	}
	return 0
}

// DeleteLink deletes a link and all that stand on it; an absent one is success.
func (k *Kernel) DeleteLink(name string) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("DeleteLink"); err != nil {
		return err
	}
	if err := netlinkutil.CheckName(name); err != nil {
		return err
	}
	l := k.find(name)
	switch {
	case l == nil:
		return nil
	case l.Kind == "device":
		return netlinkutil.Explain(unix.EOPNOTSUPP, "", "deleting link "+name)
	}
	k.remove(l)
	return nil
}

// remove takes a link and all that stand on it away, wherever they are.
func (k *Kernel) remove(l *link) {
	for _, c := range slices.Clone(k.links) {
		if c.lower == l {
			k.remove(c)
		}
		if c.master == l {
			c.master = nil
		}
	}
	if l.mode.Alone() {
		l.lower.MAC, l.lower.takenMAC = l.lower.takenMAC, nil
	}
	k.unroute(l)
	k.links = slices.DeleteFunc(k.links, func(c *link) bool { return c == l })
}

// String is the whole state, a line a link but for lo, by index: first those
// in the host's netns, then those moved into containers; then the routes.
//
//	2 eth0 device 00:16:3e:00:00:02 mtu 1500 up 192.168.50.2/24
//	3 eth0.10 vlan 10 on eth0 00:16:3e:00:00:02 mtu 1500 up "underlay lan"
//	4 ul-1 macvlan bridge on eth0 02:42:0a:00:00:01 mtu 1500 down
//	moved:
//	5 ul-2 macvlan bridge on eth0 02:42:0a:00:00:02 mtu 1500 up in 0123456789ab as eth0 192.168.50.50/24 to 0.0.0.0/0 via 192.168.50.1
//	routes:
//	0.0.0.0/0 via 192.168.50.1 on eth0 metric 100
//	192.168.50.50/32 on ulh-1 src 192.168.50.2 of underlay
//	neighbours:
//	192.168.50.50 on ulh-1 is 02:42:0a:00:00:01
func (k *Kernel) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var here, moved strings.Builder
	for _, l := range k.links {
		switch {
		case l.moved:
			l.print(&moved)
		case !l.Loopback:
			l.print(&here)
		}
	}
	if moved.Len() > 0 {
		here.WriteString("moved:\n" + moved.String())
	}
	if len(k.routes) > 0 {
		here.WriteString("routes:\n")
	}
	for _, r := range k.routes {
		r.print(&here)
	}
	k.printNeighbours(&here)
	return here.String()
}

func (l *link) print(b *strings.Builder) {
	fmt.Fprintf(b, "%d %s %s", l.Index, l.Name, l.Kind)
	if l.mode.Name != "" {
		b.WriteString(strings.TrimPrefix(l.mode.String(), l.Kind))
	}
	if l.VLAN != 0 {
		fmt.Fprintf(b, " %d", l.VLAN)
	}
	if l.VLAN != 0 && l.VLANProtocol != netlinkutil.Dot1Q {
		fmt.Fprintf(b, " %s", l.VLANProtocol)
	}
	if l.lower != nil {
		b.WriteString(" on " + l.lower.Name)
	}
	if l.master != nil {
		b.WriteString(" in " + l.master.Name)
	}
	fmt.Fprintf(b, " %s mtu %d", l.MAC, l.MTU)
	if l.bcQueueLen != 0 {
		fmt.Fprintf(b, " bcqueuelen %d", l.bcQueueLen)
	}
	if l.Up {
		b.WriteString(" up")
	} else {
		b.WriteString(" down")
	}
	if l.unplugged {
		b.WriteString(" unplugged")
	}
	for _, a := range l.addresses {
		printAddress(b, a)
	}
	l.printInside(b)
	if l.Alias != "" {
		fmt.Fprintf(b, " %q", l.Alias)
	}
	b.WriteByte('\n')
}

// Mode is the mode that a sub-interface has by now, wherever it is: ipvlan
// links change with the latest on their parent.
func (k *Kernel) Mode(name string) (m mode.Mode, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.find(name)
	if l == nil {
		l = k.away(name)
	}
	if l == nil || l.mode == (mode.Mode{}) {
		return m, false
	}
	return l.mode, true
}
