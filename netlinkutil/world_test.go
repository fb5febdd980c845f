package netlinkutil_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"underlay/internal/nstest"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// verbs is what the driver asks of a host.
type verbs interface {
	Link(name string) (netlinkutil.Link, error)
	Links() ([]netlinkutil.Link, error)
	EnsureVLAN(name, lower string, id int, protocol netlinkutil.VLANProtocol, alias string) (bool, error)
	EnsureDummy(name, alias string, mac net.HardwareAddr) (bool, error)
	SetUp(name string) error
	AddSubInterface(netlinkutil.SubInterface) (netlinkutil.Link, error)
	DeleteLink(name string) error
	Subnets(link string) ([]netlinkutil.Subnet, error)
	DefaultLink(v6 bool) (string, error)
	Own() (map[netip.Addr]string, error)
	Changes(ctx context.Context, each func(netlinkutil.Change)) error
	Follow(name string) (arrived func(context.Context) error, err error)
	EnsureShim(netlinkutil.Shim) error
	DeleteShim(netlinkutil.Shim) error
	Reach(netlinkutil.Shim, netlinkutil.HostRoute) error
	Unreach(s netlinkutil.Shim, addr netip.Addr) error
	Reached(netlinkutil.Shim) ([]netlinkutil.HostRoute, error)
	HostAddresses(link string) ([]netip.Addr, error)
	AddressChanges(ctx context.Context, each func(index int)) error
	Inside(sandbox, alias string) (netlinkutil.Interface, error)
	Restore(sandbox string, s netlinkutil.SubInterface, want netlinkutil.Interface) error
	RaiseMTU(sandbox, alias string, mtu int) error
	Readdress(sandbox, alias string, c netlinkutil.Readdressing) error
	AddRoutes(sandbox, alias string, routes []netlinkutil.InterfaceRoute) error
	RemoveInside(sandbox, alias string) error
	RemoveElsewhere(alias string) (found bool, err error)
	Sandboxes() ([]string, error)
	InsideAll(prefix string) (map[string]netlinkutil.Found, error)
}

// world is a host under test and what others than underlay do to it.
type world interface {
	verbs
	AddNIC(name string)                    // up, MTU 1500
	AddBridge(name string)                 // a link of somebody else's
	SetDown(name string)                   //
	SetMTU(name string, mtu int)           //
	Enslave(port, br string)               // br "": set it free
	Rename(name, to string)                //
	Unplug(name string)                    // a NIC's wire
	Plug(name string)                      //
	Move(name string) error                // into a container, and up
	Take(name string)                      // into a container, down
	Arrive(name string)                    // up there
	Return(name string) error              // out of it, down
	Vanish(name string)                    // with the container
	Mode(t *testing.T, name string) string // what the kernel has, "ipvlan l3 vepa"
	AddSandbox(key string)                 // a container's netns
	MoveTo(name, sandbox string, as netlinkutil.Interface) error
	EndSandbox(key string)
	Yank(nic string) // with all links on it

	// AddAddress takes IFA_F_DEPRECATED and IFA_F_DADFAILED, one at a time.
	AddAddress(link string, p netip.Prefix, flags ...uint32)
	// AddTemporary makes an address as router advertisements do, and a temporary
	// one beside it.
	AddTemporary(t *testing.T, link string, p netip.Prefix)
	DropAddress(link string, a netip.Addr)
	AddRoute(to netip.Prefix, metric int, hops ...fake.Hop)
	Sysctl(t *testing.T, name, value string)
	Out(to netip.Addr) (link string) // by which the host sends to an address
	Marks() []string                 // routes, nexthops and neighbours that Reach made
}

// needs skips a test where the kernel lacks a link type. UNDERLAY_NO_SKIP
// makes that a failure: the VM's kernel has them all.
func (w *kernelWorld) needs(t testing.TB, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		if !w.has(kind) {
			lack(t, kind+" links")
		}
	}
}

func lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("UNDERLAY_NO_SKIP") != "" {
		t.Fatalf("kernel lacks %s, and UNDERLAY_NO_SKIP is set", what)
	}
	t.Skipf("kernel lacks %s", what)
}

// has asks for a link that no kernel makes (on lo, or on nothing), and looks
// at the refusal: only a kernel without the type says EOPNOTSUPP.
func (w *kernelWorld) has(kind string) bool {
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex = "probe", w.find("lo").Attrs().Index
	var l netlink.Link
	switch kind {
	case "macvlan":
		l = &netlink.Macvlan{LinkAttrs: a}
	case "ipvlan":
		l = &netlink.IPVlan{LinkAttrs: a}
	case "vlan":
		a.ParentIndex = 0 // lo's refusal of a VLAN is EOPNOTSUPP too
		l = &netlink.Vlan{LinkAttrs: a, VlanId: 1}
	case "dummy":
		a.HardwareAddr = net.HardwareAddr{1, 0, 0, 0, 0, 0}
		l = &netlink.Dummy{LinkAttrs: a}
	}
	return !errors.Is(w.nl.LinkAdd(l), unix.EOPNOTSUPP)
}

// fakeWorld is the fake kernel.
type fakeWorld struct{ *fake.Kernel }

func newFake() *fakeWorld { return &fakeWorld{fake.New()} }

func (w *fakeWorld) AddBridge(name string) {
	mac := net.HardwareAddr{2, 0xb, 0, 0, 0, 1}
	w.Add(netlinkutil.Link{Name: name, Kind: "bridge", MTU: 1500, Up: true, MAC: mac})
}

func (w *fakeWorld) SetDown(name string) {
	w.Set(name, func(l *netlinkutil.Link) { l.Up = false })
}

func (w *fakeWorld) SetMTU(name string, mtu int) {
	w.Set(name, func(l *netlinkutil.Link) { l.MTU = mtu })
}

func (w *fakeWorld) Enslave(port, br string) { must(w.Kernel.Enslave(port, br)) }
func (w *fakeWorld) Rename(name, to string)  { must(w.Kernel.Rename(name, to)) }
func (w *fakeWorld) Take(name string)        { must(w.Kernel.Take(name)) }
func (w *fakeWorld) Arrive(name string)      { must(w.Kernel.Arrive(name)) }
func (w *fakeWorld) Vanish(name string)      { must(w.Kernel.Vanish(name)) }

func (w *fakeWorld) Sysctl(t *testing.T, name, value string) { w.Kernel.Sysctl(name, value) }

func (w *fakeWorld) Marks() (marks []string) {
	for line := range strings.Lines(w.String()) {
		if strings.Contains(line, " of underlay") || strings.Contains(line, " is ") {
			marks = append(marks, line)
		}
	}
	return marks
}

func (w *fakeWorld) AddTemporary(t *testing.T, link string, p netip.Prefix) {
	w.AddAddress(link, p, 0)
	w.AddAddress(link, netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits()), unix.IFA_F_TEMPORARY)
}

func (w *fakeWorld) Mode(t *testing.T, name string) string {
	m, ok := w.Kernel.Mode(name)
	if !ok {
		t.Fatalf("no sub-interface %s", name)
	}
	return m.String()
}

// kernelWorld is the real kernel in a netns of this test's own.
type kernelWorld struct {
	*netlinkutil.Host
	nl, there   *netlink.Handle // here, and in the container
	here, other netns.NsHandle

	t         testing.TB
	at        string // the folder of sandboxes
	sandboxes map[string]*netlink.Handle
}

// newKernel makes two netns, one for the host and one for a container. The
// thread that enters them ends with its goroutine.
func newKernel(t testing.TB) *kernelWorld {
	t.Helper()
	w := &kernelWorld{t: t}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		failed <- w.open()
	}()
	err := <-failed
	if errors.Is(err, unix.EPERM) {
		lack(t, "leave to make a netns")
	}
	must(err)
	t.Cleanup(func() {
		w.Close()
		w.nl.Close()
		w.there.Close()
		w.here.Close()
		w.other.Close()
	})
	return w
}

func (w *kernelWorld) open() (err error) {
	if w.other, err = netns.New(); err != nil {
		return err
	}
	if w.there, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if w.here, err = netns.New(); err != nil {
		return err
	}
	if w.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	w.Host, err = netlinkutil.Open()
	return err
}

// must is for what only a broken test can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (w *kernelWorld) find(name string) netlink.Link {
	l, err := w.nl.LinkByName(name)
	must(err)
	return l
}

// findAway is find in the container.
func (w *kernelWorld) findAway(name string) netlink.Link {
	l, err := w.there.LinkByName(name)
	must(err)
	return l
}

// AddNIC makes a veth pair; its far end is the name with a p.
func (w *kernelWorld) AddNIC(name string) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, 1500
	must(w.nl.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: name + "p"}))
	must(w.nl.LinkSetUp(w.find(name)))
	must(w.nl.LinkSetUp(w.find(name + "p")))
}

func (w *kernelWorld) AddBridge(name string) {
	a := netlink.NewLinkAttrs()
	a.Name = name
	must(w.nl.LinkAdd(&netlink.Bridge{LinkAttrs: a}))
	must(w.nl.LinkSetUp(w.find(name)))
}

func (w *kernelWorld) SetDown(name string)         { must(w.nl.LinkSetDown(w.find(name))) }
func (w *kernelWorld) SetMTU(name string, mtu int) { must(w.nl.LinkSetMTU(w.find(name), mtu)) }
func (w *kernelWorld) Rename(name, to string)      { must(w.nl.LinkSetName(w.find(name), to)) }
func (w *kernelWorld) Unplug(name string)          { must(w.nl.LinkSetDown(w.find(name + "p"))) }
func (w *kernelWorld) Plug(name string)            { must(w.nl.LinkSetUp(w.find(name + "p"))) }

func (w *kernelWorld) Enslave(port, br string) {
	if br == "" {
		must(w.nl.LinkSetNoMaster(w.find(port)))
		return
	}
	must(w.nl.LinkSetMaster(w.find(port), w.find(br)))
}

func (w *kernelWorld) Take(name string) { must(w.nl.LinkSetNsFd(w.find(name), int(w.other))) }

func (w *kernelWorld) Arrive(name string) {
	l, err := w.there.LinkByName(name)
	must(err)
	must(w.there.LinkSetUp(l))
}

func (w *kernelWorld) Move(name string) error {
	w.Take(name)
	l, err := w.there.LinkByName(name)
	must(err)
	if err := w.there.LinkSetUp(l); err != nil {
		must(w.there.LinkSetNsFd(l, int(w.here)))
		return err
	}
	return nil
}

func (w *kernelWorld) Return(name string) error {
	l, err := w.there.LinkByName(name)
	must(err)
	return w.there.LinkSetNsFd(l, int(w.here))
}

func (w *kernelWorld) Vanish(name string) {
	l, err := w.there.LinkByName(name)
	must(err)
	must(w.there.LinkDel(l))
}

func (w *kernelWorld) Mode(t *testing.T, name string) string {
	l, err := w.nl.LinkByName(name)
	if err != nil {
		if l, err = w.there.LinkByName(name); err != nil {
			t.Fatal(err)
		}
	}
	return kernelMode(t, l)
}

func kernelMode(t *testing.T, l netlink.Link) string {
	switch l := l.(type) {
	case *netlink.Macvlan:
		return "macvlan " + map[netlink.MacvlanMode]string{
			netlink.MACVLAN_MODE_BRIDGE: "bridge", netlink.MACVLAN_MODE_PRIVATE: "private",
			netlink.MACVLAN_MODE_VEPA: "vepa", netlink.MACVLAN_MODE_PASSTHRU: "passthru"}[l.Mode]
	case *netlink.IPVlan:
		return "ipvlan " + []string{"l2", "l3", "l3s"}[l.Mode] + []string{"", " private", " vepa"}[l.Flag]
	}
	t.Fatalf("link %s is %s", l.Attrs().Name, l.Type())
	return ""
}

func (w *kernelWorld) AddAddress(link string, p netip.Prefix, flags ...uint32) {
	flag := append(flags, 0)[0]
	a := netlink.Addr{IPNet: ipnet(p)}
	switch flag {
	case unix.IFA_F_DEPRECATED:
		a.ValidLft = 3600
	case unix.IFA_F_DADFAILED: // the far end has it first
		w.AddAddress(link+"p", p)
	}
	if p.Addr().Is6() && flag != unix.IFA_F_DADFAILED {
		a.Flags = unix.IFA_F_NODAD
	}
	must(w.nl.AddrAdd(w.find(link), &a))
	for flag == unix.IFA_F_DADFAILED && !w.hasAddress(link, p.Addr(), flag) {
		time.Sleep(10 * time.Millisecond)
	}
}

// Sysctl takes "net.ipv4.conf.all.arp_ignore".
func (w *kernelWorld) Sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := w.inside(func() error { return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0) }); err != nil {
		lack(t, "leave to set "+name)
	}
}

// sysctl takes "ipv4/conf/eth0.10/arp_ignore".
func (w *kernelWorld) sysctl(t *testing.T, name string) (value string) {
	t.Helper()
	ok(t, w.inside(func() error {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		value = strings.TrimSpace(string(b))
		return err
	}))
	return value
}

func (w *kernelWorld) Out(to netip.Addr) string {
	rs, err := w.nl.RouteGet(to.AsSlice())
	if err != nil || len(rs) != 1 {
		return fmt.Sprint(rs, err)
	}
	l, err := w.nl.LinkByIndex(rs[0].LinkIndex)
	must(err)
	return l.Attrs().Name
}

func (w *kernelWorld) Marks() (marks []string) {
	rs, err := w.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: 117}, netlink.RT_FILTER_PROTOCOL)
	must(err)
	for _, r := range rs {
		marks = append(marks, "route "+r.String())
	}
	return append(marks, w.nexthops()...)
}

func (w *kernelWorld) nexthops() (ids []string) {
	s, err := nl.GetNetlinkSocketAt(w.here, netns.None(), unix.NETLINK_ROUTE)
	must(err)
	defer s.Close()
	r := nl.NewNetlinkRequest(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	r.AddRawData(make([]byte, 8))
	ms, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEXTHOP)
	must(err)
	for _, m := range ms {
		ids = append(ids, fmt.Sprintf("nexthop %x", m))
	}
	return ids
}

func (w *kernelWorld) hasAddress(link string, addr netip.Addr, flag uint32) bool {
	as, err := w.nl.AddrList(w.find(link), netlink.FAMILY_ALL)
	must(err)
	return slices.ContainsFunc(as, func(a netlink.Addr) bool {
		return uint32(a.Flags)&flag != 0 && (a.IP.Equal(addr.AsSlice()) || !addr.IsValid())
	})
}

func (w *kernelWorld) AddTemporary(t *testing.T, link string, p netip.Prefix) {
	err := w.inside(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/use_tempaddr", []byte("2"), 0)
	})
	if err != nil {
		lack(t, "leave to turn temporary addresses on")
	}
	must(w.nl.AddrAdd(w.find(link), &netlink.Addr{IPNet: ipnet(p), ValidLft: 7200, PreferedLft: 3600, Flags: unix.IFA_F_NODAD | unix.IFA_F_MANAGETEMPADDR}))
	for !w.hasAddress(link, netip.Addr{}, unix.IFA_F_TEMPORARY) {
		time.Sleep(10 * time.Millisecond)
	}
}

// inside runs do in the host's netns, on a thread that ends with it.
func (w *kernelWorld) inside(do func() error) error { return within(w.here, do) }

func within(ns netns.NsHandle, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(ns)
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// enter takes a benchmark into the host's netns, where underlay itself is: the
// kernel keeps no dentries of the settings of another one.
func (w *kernelWorld) enter(b *testing.B) {
	runtime.LockOSThread()
	before, err := netns.Get()
	must(err)
	must(netns.Set(w.here))
	b.Cleanup(func() {
		must(netns.Set(before))
		before.Close()
		runtime.UnlockOSThread()
	})
}

func (w *kernelWorld) DropAddress(link string, a netip.Addr) {
	l := w.find(link)
	as, err := w.nl.AddrList(l, netlink.FAMILY_ALL)
	must(err)
	for _, k := range as {
		if k.IP.Equal(a.AsSlice()) {
			must(w.nl.AddrDel(l, &k))
		}
	}
}

func (w *kernelWorld) AddRoute(to netip.Prefix, metric int, hops ...fake.Hop) {
	r := netlink.Route{Dst: ipnet(to), Priority: metric}
	var ns []*netlink.NexthopInfo
	for _, h := range hops {
		n := &netlink.NexthopInfo{LinkIndex: w.find(h.Link).Attrs().Index}
		if h.OnLink {
			n.Flags = unix.RTNH_F_ONLINK
		}
		switch {
		case h.Gateway.Is6() && to.Addr().Is4():
			n.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: h.Gateway.AsSlice()}
		case h.Gateway.IsValid():
			n.Gw = h.Gateway.AsSlice()
		}
		ns = append(ns, n)
	}
	if len(ns) > 1 {
		r.MultiPath = ns
	} else {
		r.LinkIndex, r.Gw, r.Via, r.Flags = ns[0].LinkIndex, ns[0].Gw, ns[0].Via, ns[0].Flags
	}
	if !hops[0].Gateway.IsValid() {
		r.Scope = netlink.SCOPE_LINK
	}
	must(w.nl.RouteAdd(&r))
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
