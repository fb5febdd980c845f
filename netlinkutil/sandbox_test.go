package netlinkutil_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"underlay/internal/mode"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

const box, otherBox = fake.SandboxDir + "/0123456789ab", fake.SandboxDir + "/ba9876543210"

// enter lets the host into sandboxes, in a folder of the test's own.
func (w *kernelWorld) enterSandboxes() {
	if w.at != "" {
		return
	}
	w.at, w.sandboxes = w.t.TempDir(), map[string]*netlink.Handle{}
	must(w.EnterSandboxes(fake.SandboxDir, w.at))
}

func (w *kernelWorld) path(key string) string { return filepath.Join(w.at, filepath.Base(key)) }

func (w *kernelWorld) AddSandbox(key string) {
	w.enterSandboxes()
	must(os.WriteFile(w.path(key), nil, 0o444))
	w.mount(key, func() (*netlink.Handle, error) {
		if _, err := netns.New(); err != nil {
			return nil, err
		}
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	})
}

// mount mounts the netns in which the thread is after enter, as dockerd does.
func (w *kernelWorld) mount(key string, enter func() (*netlink.Handle, error)) {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		h, err := enter()
		if err == nil {
			w.sandboxes[key] = h
			err = unix.Mount("/proc/thread-self/ns/net", w.path(key), "", unix.MS_BIND, "")
		}
		failed <- err
	}()
	if err := <-failed; errors.Is(err, unix.EPERM) {
		lack(w.t, "leave to mount a netns")
	} else {
		must(err)
	}
	w.t.Cleanup(func() { w.unmount(key) })
}

// unmount is the end of a container: dockerd removes the file a minute later.
func (w *kernelWorld) unmount(key string) {
	_ = unix.Unmount(w.path(key), unix.MNT_DETACH)
	if h := w.sandboxes[key]; h != nil {
		h.Close() // which else keeps the netns
		delete(w.sandboxes, key)
	}
}

func (w *kernelWorld) EndSandbox(key string) {
	w.unmount(key)
	must(os.Remove(w.path(key)))
}

func (w *kernelWorld) Yank(nic string) { must(w.nl.LinkDel(w.find(nic))) }

func (w *kernelWorld) MoveTo(name, key string, as netlinkutil.Interface) error {
	if w.sandboxes[key] == nil {
		w.AddSandbox(key)
	}
	ns, err := netns.GetFromPath(w.path(key))
	must(err)
	defer ns.Close()
	k := w.find(name)
	if err := w.nl.LinkSetNsFd(k, int(ns)); err != nil {
		return err
	}
	h := w.sandboxes[key]
	l, err := h.LinkByName(name)
	must(err)
	must(h.LinkSetName(l, as.Name))
	for setting, value := range as.Settings {
		w.setInside(key, as.Name, setting, value)
	}
	for _, p := range as.Addrs {
		a := netlink.Addr{IPNet: ipnet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		must(h.AddrAdd(l, &a))
	}
	if err := h.LinkSetUp(l); err != nil {
		return err
	}
	for _, direct := range []bool{true, false} { // by which the others' gateways are reached
		for _, n := range as.Routes {
			if n.Via.IsValid() != direct {
				w.routeInside(key, as.Name, n)
			}
		}
	}
	return nil
}

func (w *kernelWorld) routeInside(key, link string, n netlinkutil.InterfaceRoute) {
	l, err := w.sandboxes[key].LinkByName(link)
	must(err)
	r := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(n.To), Priority: n.Metric, Table: n.Table, Scope: netlink.Scope(n.Scope), Protocol: netlink.RouteProtocol(n.Protocol), MTU: n.MTU, Tos: n.TOS}
	switch {
	case n.Via.Is6() && n.To.Addr().Is4():
		r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: n.Via.AsSlice()}
	case n.Via.IsValid():
		r.Gw = n.Via.AsSlice()
	}
	if n.Source.IsValid() {
		r.Src = n.Source.AsSlice()
	}
	if n.OnLink {
		r.Flags = unix.RTNH_F_ONLINK
	}
	if err := w.sandboxes[key].RouteAdd(&r); err != nil {
		panic(fmt.Sprint(n, ": ", err))
	}
}

// file is that of "ipv4/conf/arp_ignore" of a link.
func settingFile(link, setting string) string {
	i := strings.LastIndexByte(setting, '/')
	return "/proc/sys/net/" + setting[:i+1] + link + setting[i:]
}

func (w *kernelWorld) setInside(key, link, setting, value string) {
	ns, err := netns.GetFromPath(w.path(key))
	must(err)
	defer ns.Close()
	must(within(ns, func() error { return os.WriteFile(settingFile(link, setting), []byte(value), 0) }))
}

func sandboxClauses() []clause {
	cs := []clause{
		{"sandbox", nil, testSandbox},
		{"sandbox refusals", nil, testSandboxRefusals},
		{"restore refusals", nil, testRestoreRefusals},
		{"restore what is in the host", nil, testRestoreMoves},
		{"restore beside another link", nil, testRestoreBeside},
		{"restore without IPv6", nil, testRestoreWithoutIPv6},
		{"mtu of a container", nil, testRaiseMTU},
		{"another address", nil, testReaddress},
		{"routes of a container", nil, testAddRoutes},
		{"remove inside", nil, testRemoveInside},
		{"remove elsewhere", nil, testRemoveElsewhere},
		{"inside all", nil, testInsideAll},
	}
	for _, m := range mode.All() {
		var needs []string
		if m.Kind == mode.IPvlan {
			needs = []string{"ipvlan"}
		}
		cs = append(cs, clause{"restore " + m.String(), needs, func(t *testing.T, w world) { testRestore(t, w, m) }})
	}
	return cs
}

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, text := range texts {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	return ps
}

// to is a route as dockerd makes it: "0.0.0.0/0 192.168.50.1".
func to(words string) netlinkutil.InterfaceRoute {
	dst, via, _ := strings.Cut(words, " ")
	n := netlinkutil.InterfaceRoute{To: netip.MustParsePrefix(dst), Protocol: unix.RTPROT_BOOT}
	if n.To.Addr().Is6() {
		n.Metric = 1024
	}
	if via != "" {
		n.Via = netip.MustParseAddr(via)
	} else if n.To.Addr().Is4() {
		n.Scope = unix.RT_SCOPE_LINK
	}
	return n
}

// full is an interface with everything, its addresses in the kernel's order. Not
// all gateways can be reached at first.
func full() netlinkutil.Interface {
	far, tos := to("10.9.0.0/16 203.0.113.1"), to("172.16.0.0/12 192.168.50.9")
	far.OnLink, far.Metric, far.MTU = true, 7, 1300
	tos.Source = netip.MustParseAddr("192.168.50.51")
	host := to("10.1.1.1/32")
	table := to("0.0.0.0/0 192.168.50.3")
	table.Table, table.Protocol = 4242, unix.RTPROT_STATIC
	return netlinkutil.Interface{
		Name: "eth0", MTU: 1500, Up: true,
		Addrs: prefixes("192.168.50.50/24", "10.5.0.1/32", "192.168.50.51/24", "fe80::50/64", "2001:db8:50::50/64", "fd00::1/128"),
		Routes: []netlinkutil.InterfaceRoute{
			table, to("0.0.0.0/0 10.1.1.1"), host, far, tos,
			to("2001:db8:99::/64"), to("fd00:7::/32 fe80::1"), to("::/0 2001:db8:50::1"),
		},
		Settings: map[string]string{"ipv4/conf/log_martians": "1", "ipv6/conf/accept_ra": "0", "ipv4/neigh/ucast_solicit": "5"},
	}
}

// plain is an interface as dockerd makes it.
func plain() netlinkutil.Interface {
	return netlinkutil.Interface{
		Name: "eth0", MTU: 1500, Up: true, Addrs: prefixes("192.168.50.50/24"),
		Routes: []netlinkutil.InterfaceRoute{to("0.0.0.0/0 192.168.50.1")},
	}
}

// pictured wants the link of that sub-interface in the sandbox to be as said;
// the order of routes of different destinations is the kernel's.
func pictured(t *testing.T, w world, s netlinkutil.SubInterface, want netlinkutil.Interface) netlinkutil.Interface {
	t.Helper()
	got, err := w.Inside(box, s.Alias)
	ok(t, err)
	order := cmpopts.SortSlices(func(a, b netlinkutil.InterfaceRoute) bool { return a.String() < b.String() })
	if d := cmp.Diff(want, got, order, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("in the container (- want, + is):\n%s", d)
	}
	return got
}

func testSandbox(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	w.AddSandbox(box)
	_, err := w.Inside(box, s.Alias)
	refused(t, err, netlinkutil.ErrNotFound, s.Alias)
	refused(t, err, os.ErrNotExist)
	ok(t, w.MoveTo("ul-1", box, full()))
	got := pictured(t, w, s, full())
	var back netlinkutil.Interface
	text, err := json.Marshal(got)
	ok(t, err)
	ok(t, json.Unmarshal(text, &back))
	if again, err := w.Inside(box, s.Alias); err != nil || !reflect.DeepEqual(again, back) {
		t.Errorf("looked at twice, and kept as %s, it is %+v, %v", text, again, err)
	}
	_, err = w.Inside("/run/docker/netns/0123456789ab", s.Alias) // the same folder
	ok(t, err)
	_, err = w.Inside(box, "")
	refused(t, err, netlinkutil.ErrNotFound)
	w.AddSandbox(otherBox)
	keys, err := w.Sandboxes()
	if err != nil || !slices.Equal(keys, []string{box, otherBox}) {
		t.Errorf("sandboxes %q, %v", keys, err)
	}
	w.EndSandbox(box)
	_, err = w.Inside(box, s.Alias)
	refused(t, err, netlinkutil.ErrNoSandbox, "0123456789ab is gone")
	if errors.Is(err, os.ErrNotExist) {
		t.Error("an absent sandbox looks as an absent link does")
	}
	refused(t, w.Restore(box, s, full()), netlinkutil.ErrNoSandbox)
	refused(t, w.RaiseMTU(box, s.Alias, 1500), netlinkutil.ErrNoSandbox)
	ok(t, w.RemoveInside(box, s.Alias))
	wantNames(t, w, "eth0")
}

func testSandboxRefusals(t *testing.T, w world) {
	w.AddSandbox(box)
	for _, key := range []string{"", "0123456789ab", "/var/run/docker/netns/../netns/0123456789ab", "/var/run/docker/netns//0123456789ab", "/tmp/0123456789ab", "/var/run/docker/netns/default", "/var/run/docker/netns/01234567890", box + "/x", box + "\n"} {
		_, err := w.Inside(key, "underlay ul-1")
		refused(t, err, netlinkutil.ErrBadSandbox, "no network namespace of a container")
		w.AddNIC("eth0")
		refused(t, w.Restore(key, sub("ul-1", mode.Default), plain()), netlinkutil.ErrBadSandbox)
		w.Yank("eth0")
		refused(t, w.RaiseMTU(key, "underlay ul-1", 1500), netlinkutil.ErrBadSandbox)
		refused(t, w.RemoveInside(key, "underlay ul-1"), netlinkutil.ErrBadSandbox)
	}
}

func testRestore(t *testing.T, w world, m mode.Mode) {
	w.AddNIC("eth0")
	s := sub("ul-1", m)
	s.BCQueueLen = 2000
	add(t, w, s)
	want := full()
	ok(t, w.MoveTo("ul-1", box, want))
	want = pictured(t, w, s, want)
	w.Yank("eth0")
	_, err := w.Inside(box, s.Alias)
	refused(t, err, netlinkutil.ErrNotFound)
	refused(t, w.Restore(box, s, want), netlinkutil.ErrNotFound, "parent eth0 does not exist")
	w.AddNIC("eth0")
	for range 2 {
		ok(t, w.Restore(box, s, want))
		if got := pictured(t, w, s, want); !cmp.Equal(got.Addrs, want.Addrs, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })) {
			t.Errorf("addresses %s, want %s", got.Addrs, want.Addrs)
		}
		wantNames(t, w, "eth0")
	}
	if w, is := w.(*kernelWorld); is {
		l, err := w.sandboxes[box].LinkByName("eth0")
		ok(t, err)
		mac := s.MAC
		if mac == nil {
			mac = get(t, w, "eth0").MAC
		}
		if a := l.Attrs(); a.HardwareAddr.String() != mac.String() || a.Alias != s.Alias || kernelMode(t, l) != m.String() {
			t.Errorf("made again: %s %q %s, want %s %q %s", a.HardwareAddr, a.Alias, kernelMode(t, l), mac, s.Alias, m)
		}
	}
	if !m.Alone() {
		add(t, w, sub("ul-2", m)) // the parent works
	}
}

func testRestoreRefusals(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	w.AddSandbox(box)
	s := sub("ul-1", mode.Default)
	for _, c := range []struct {
		name  string
		is    error
		words string
		spoil func(*netlinkutil.SubInterface, *netlinkutil.Interface)
	}{
		{"no parent", netlinkutil.ErrNotFound, "parent eth9 does not exist", func(s *netlinkutil.SubInterface, _ *netlinkutil.Interface) { s.Parent = "eth9" }},
		{"no name", netlinkutil.ErrInvalid, "needs a name", func(_ *netlinkutil.SubInterface, i *netlinkutil.Interface) { i.Name = "" }},
		{"no alias", netlinkutil.ErrInvalid, "alias", func(s *netlinkutil.SubInterface, _ *netlinkutil.Interface) { s.Alias = "" }},
		{"a way out", netlinkutil.ErrInvalid, "no setting", func(_ *netlinkutil.SubInterface, i *netlinkutil.Interface) {
			i.Settings = map[string]string{"ipv4/conf/../../../kernel/core_pattern": "|/bin/sh"}
		}},
	} {
		s, want := s, plain()
		c.spoil(&s, &want)
		err := w.Restore(box, s, want)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		refused(t, err, c.is, c.words)
	}
	other := sub("ul-2", mode.Default)
	add(t, w, other)
	ok(t, w.MoveTo("ul-2", box, netlinkutil.Interface{Name: "eth0"}))
	refused(t, w.Restore(box, s, plain()), netlinkutil.ErrExists, "another link eth0")
	third := s
	third.MAC = other.MAC
	want := plain()
	want.Name = "eth1"
	refused(t, w.Restore(box, third, want), netlinkutil.ErrAddrInUse)
	wantNames(t, w, "eth0", "eth1")
}

// A link that dockerd never moved, or moved back, and one that is half made.
func testRestoreMoves(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddSandbox(box)
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	ok(t, w.Restore(box, s, full()))
	pictured(t, w, s, full())
	ok(t, w.RemoveInside(box, s.Alias))

	unsigned := s
	unsigned.Alias = ""
	add(t, w, unsigned)
	ok(t, w.Restore(box, s, full()))
	pictured(t, w, s, full())
	wantNames(t, w, "eth0")
}

func testRestoreBeside(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	s, other := sub("ul-1", mode.Default), sub("ul-2", mode.Default)
	other.Parent = "eth1"
	add(t, w, s)
	add(t, w, other)
	first, second := plain(), plain()
	second.Name = "eth1"
	second.Addrs, second.Routes = prefixes("192.168.60.50/24"), nil
	ok(t, w.MoveTo("ul-1", box, first))
	ok(t, w.MoveTo("ul-2", box, second))
	w.Yank("eth0")
	if k, is := w.(*kernelWorld); is { // the container helps itself
		k.routeInside(box, "eth1", to("0.0.0.0/0 192.168.60.1"))
	} else {
		w.(*fakeWorld).Alter(box, other.Alias, func(i *netlinkutil.Interface) {
			i.Routes = append(i.Routes, to("0.0.0.0/0 192.168.60.1"))
		})
	}
	w.AddNIC("eth0")
	ok(t, w.Restore(box, s, first))
	first.Routes = nil
	pictured(t, w, s, first)
	second.Routes = []netlinkutil.InterfaceRoute{to("0.0.0.0/0 192.168.60.1")}
	pictured(t, w, other, second)
}

func testRestoreWithoutIPv6(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddSandbox(box)
	s, want := sub("ul-1", mode.Default), full()
	want.Settings = map[string]string{"ipv6/conf/disable_ipv6": "1"}
	ok(t, w.Restore(box, s, want))
	want.Addrs, want.Routes = want.Addrs[:3], want.Routes[:5]
	pictured(t, w, s, want)
}

func testAddRoutes(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	want := plain()
	ok(t, w.MoveTo("ul-1", box, want))
	at := netip.MustParseAddr("169.254.50.2")
	more := []netlinkutil.InterfaceRoute{ // the first needs the second
		{To: netip.MustParsePrefix("192.168.50.2/32"), Via: at, Protocol: 3},
		{To: netip.PrefixFrom(at, 32), Scope: 253, Protocol: 3},
	}
	ok(t, w.AddRoutes(box, s.Alias, more))
	want.Routes = append(want.Routes, more...)
	pictured(t, w, s, want)
	ok(t, w.AddRoutes(box, s.Alias, []netlinkutil.InterfaceRoute{{To: more[0].To, Scope: 253, Protocol: 3}})) // there is one
	ok(t, w.AddRoutes(box, s.Alias, more))
	pictured(t, w, s, want)
	refused(t, w.AddRoutes(box, "another", more), netlinkutil.ErrNotFound)
	refused(t, w.AddRoutes(otherBox, s.Alias, more), netlinkutil.ErrNoSandbox)
}

func testReaddress(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	was, router := netip.MustParsePrefix("192.168.50.10/24"), netip.MustParseAddr("192.168.50.1")
	have := netlinkutil.Interface{
		Name: "eth0", MTU: 1500, Up: true,
		Addrs: []netip.Prefix{was, netip.MustParsePrefix("192.168.50.200/24"), netip.MustParsePrefix("fd00:50::a/64")},
		Routes: []netlinkutil.InterfaceRoute{
			netlinkutil.RouteTo(netip.MustParsePrefix("0.0.0.0/0"), router),
			{To: netip.MustParsePrefix("10.20.0.0/16"), Via: router, Source: was.Addr(), Protocol: 3},
			netlinkutil.RouteTo(netip.MustParsePrefix("169.254.50.2/32"), netip.Addr{}),
			{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::1"), Protocol: 3, Metric: 1024},
		},
	}
	ok(t, w.MoveTo("ul-1", box, have))
	have = pictured(t, w, s, have)
	for _, c := range []netlinkutil.Readdressing{
		{Was: was, Is: netip.MustParsePrefix("192.168.50.11/24")},
		{Was: netip.MustParsePrefix("192.168.50.11/24"), Is: netip.MustParsePrefix("192.168.51.7/24"), RouterWas: router, RouterIs: netip.MustParseAddr("192.168.51.1")},
		{Was: netip.MustParsePrefix("192.168.51.7/24"), Is: netip.MustParsePrefix("192.168.51.7/24"), RouterWas: netip.MustParseAddr("192.168.51.1"), RouterIs: netip.MustParseAddr("192.168.51.2")},
		{Was: netip.MustParsePrefix("fd00:50::a/64"), Is: netip.MustParsePrefix("fd00:50::b/64")},
		{Was: netip.MustParsePrefix("fd00:50::b/64"), Is: netip.MustParsePrefix("fd00:51::7/128")},
	} {
		ok(t, w.Readdress(box, s.Alias, c))
		have = c.Of(have)
		slices.SortFunc(have.Addrs, netip.Prefix.Compare)
		got, err := w.Inside(box, s.Alias)
		ok(t, err)
		slices.SortFunc(got.Addrs, netip.Prefix.Compare)
		byText := func(a, b netlinkutil.InterfaceRoute) int { return strings.Compare(a.String(), b.String()) }
		slices.SortFunc(got.Routes, byText)
		slices.SortFunc(have.Routes, byText)
		if !reflect.DeepEqual(got, have) {
			t.Errorf("it has %+v\nwant %+v", got, have)
		}
		ok(t, w.Readdress(box, s.Alias, c))
	}
	var vias []string
	for _, n := range have.Routes {
		if n.To.Addr().Is4() && n.Via.IsValid() {
			vias = append(vias, n.Via.String())
		}
	}
	if slices.Sort(vias); !slices.Equal(vias, []string{"192.168.51.1", "192.168.51.2"}) {
		t.Errorf("%v: where the address stays, the default route alone has another router", vias)
	}
	refused(t, w.Readdress(box, "another", netlinkutil.Readdressing{Was: was, Is: was}), netlinkutil.ErrNotFound)
}

func testRaiseMTU(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	want := plain()
	ok(t, w.MoveTo("ul-1", box, want))
	w.SetMTU("eth0", 1400)
	want.MTU = 1400
	pictured(t, w, s, want)
	w.SetMTU("eth0", 1500)
	pictured(t, w, s, want)
	ok(t, w.RaiseMTU(box, s.Alias, 1450))
	want.MTU = 1450
	pictured(t, w, s, want)
	ok(t, w.RaiseMTU(box, s.Alias, 1300)) // which is no raise
	pictured(t, w, s, want)
	if w.RaiseMTU(box, s.Alias, 9000) == nil {
		t.Error("raised above the parent's")
	}
	refused(t, w.RaiseMTU(box, "another", 1500), netlinkutil.ErrNotFound)

	w.Yank("eth0")
	w.AddNIC("eth0")
	w.SetMTU("eth0", 1280)
	ok(t, w.Restore(box, s, want))
	want.MTU = 1280
	pictured(t, w, s, want)
	w.SetMTU("eth0", 1500)
	want.MTU = 1350
	ok(t, w.Restore(box, s, want))
	pictured(t, w, s, want)
}

func testRemoveInside(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	ok(t, w.MoveTo("ul-1", box, plain()))
	ok(t, w.RemoveInside(box, "another"))
	pictured(t, w, s, plain())
	for range 2 {
		ok(t, w.RemoveInside(box, s.Alias))
		_, err := w.Inside(box, s.Alias)
		refused(t, err, netlinkutil.ErrNotFound)
	}
}

func testRemoveElsewhere(t *testing.T, w world) {
	w.AddNIC("eth0")
	for i, key := range []string{box, otherBox} {
		s := sub(fmt.Sprintf("ul-%d", i), mode.Default)
		add(t, w, s)
		ok(t, w.MoveTo(s.Name, key, plain()))
	}
	here := sub("ul-2", mode.Default)
	add(t, w, here)
	gone := func(alias string, want bool) {
		t.Helper()
		if found, err := w.RemoveElsewhere(alias); found != want || err != nil {
			t.Errorf("%q: %t, %v", alias, found, err)
		}
	}
	gone("another", false)
	gone(here.Alias, false) // not here
	one, other := sub("ul-0", mode.Default), sub("ul-1", mode.Default)
	gone(one.Alias, true)
	_, err := w.Inside(box, one.Alias)
	refused(t, err, netlinkutil.ErrNotFound)
	_, err = w.Inside(otherBox, other.Alias)
	ok(t, err)
	gone(one.Alias, false)
	wantNames(t, w, "eth0", "ul-2")
	_, err = w.RemoveElsewhere("")
	refused(t, err, netlinkutil.ErrInvalid)
}

func testInsideAll(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddSandbox(box)
	for i, key := range []string{box, box, otherBox} {
		s := sub(fmt.Sprintf("ul-%d", i), mode.Default)
		add(t, w, s)
		as := plain()
		as.Name = fmt.Sprintf("eth%d", i)
		as.Addrs, as.Routes = prefixes(fmt.Sprintf("192.168.5%d.50/24", i)), nil
		ok(t, w.MoveTo(s.Name, key, as))
	}
	s := sub("ul-3", mode.Default)
	s.Alias = "another's"
	add(t, w, s)
	ok(t, w.MoveTo(s.Name, otherBox, netlinkutil.Interface{Name: "eth3"}))
	add(t, w, sub("ul-4", mode.Default))
	found, err := w.InsideAll("underlay ul-")
	ok(t, err)
	got := map[string]string{}
	for alias, f := range found {
		got[alias] = fmt.Sprint(f.Sandbox, " ", f.Interface.Name, " ", f.Interface.Addrs)
	}
	want := map[string]string{
		"underlay ul-0": box + " eth0 [192.168.50.50/24]",
		"underlay ul-1": box + " eth1 [192.168.51.50/24]",
		"underlay ul-2": otherBox + " eth2 [192.168.52.50/24]",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("found (- want, + is):\n%s", d)
	}
	w.EndSandbox(box)
	if found, err = w.InsideAll(""); err != nil || len(found) != 2 {
		t.Errorf("found %v, %v; want the two in the other sandbox", found, err)
	}
}

// moved is a macvlan link in a container, with that one's handle and the link there.
func moved(t *testing.T) (w *kernelWorld, s netlinkutil.SubInterface, h *netlink.Handle, l netlink.Link) {
	w = newKernel(t)
	w.needs(t, "macvlan")
	w.AddNIC("eth0")
	s = sub("ul-1", mode.Default)
	add(t, w, s)
	ok(t, w.MoveTo("ul-1", box, plain()))
	h = w.sandboxes[box]
	l, err := h.LinkByName("eth0")
	ok(t, err)
	return w, s, h, l
}

// What the kernel makes for itself, or runs out, is no part of a picture.
func TestInsideLeavesOut(t *testing.T) {
	w, s, h, l := moved(t)
	ok(t, h.AddrAdd(l, &netlink.Addr{IPNet: ipnet(prefixes("2001:db8:51::7/64")[0]), ValidLft: 3600, PreferedLft: 1800, Flags: unix.IFA_F_NODAD}))
	ok(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(prefixes("2001:db8:52::/64")[0]), Protocol: unix.RTPROT_RA}))
	ok(t, h.RouteAdd(&netlink.Route{Dst: ipnet(prefixes("10.77.0.0/16")[0]), Type: unix.RTN_BLACKHOLE}))
	as, err := h.AddrList(l, netlink.FAMILY_V6)
	ok(t, err)
	if len(as) != 2 {
		t.Fatalf("addresses %v; want a link-local one of the kernel's own too", as)
	}
	pictured(t, w, s, plain())
}

// Of a container that has made itself thousands of routes, some are pictured, the default
// ones with them; and what is pictured can be written down and read again.
func TestInsideManyRoutes(t *testing.T) {
	w, s, h, l := moved(t)
	// The netlink package takes that for a route of IPv4.
	if out, err := exec.Command("nsenter", "--net="+w.path(box), "ip", "-6", "route", "add", "::ffff:10.0.0.0/104", "dev", "eth0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for k := range 1500 {
		to := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(k >> 8), byte(k)}), 32)
		ok(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(to), Scope: netlink.SCOPE_LINK}))
		to6 := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0x77, 14: byte(k >> 8), 15: byte(k)}), 128)
		ok(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(to6)}))
	}
	ok(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(prefixes("::/0")[0]), Gw: net.ParseIP("2001:db8:77::1")}))
	i, err := w.Inside(box, s.Alias)
	ok(t, err)
	ok(t, i.Check())
	has := func(route string) bool {
		return slices.ContainsFunc(i.Routes, func(n netlinkutil.InterfaceRoute) bool { return n.To.String() == route })
	}
	if n := len(i.Routes); n < 2048 || n > 2050 || !has("0.0.0.0/0") || !has("::/0") || !has("::ffff:10.0.0.0/104") {
		t.Errorf("%d routes, want 1,024 of each family and the default ones: %.300v", n, i.Routes)
	}
	text, err := json.Marshal(i)
	ok(t, err)
	var again netlinkutil.Interface
	ok(t, json.Unmarshal(text, &again))
	if d := cmp.Diff(i, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("written and read (- written, + read):\n%s", d)
	}
}

// What Restore began and did not finish is finished by another call.
func TestRestoreUnfinished(t *testing.T) {
	w := newKernel(t)
	w.needs(t, "macvlan")
	w.AddNIC("eth0")
	w.AddSandbox(box)
	s := sub("ul-1", mode.Default)
	h := w.sandboxes[box]
	inBox := func(name string) netlink.Link {
		l, err := h.LinkByName(name)
		ok(t, err)
		return l
	}
	create := func() netlink.Link {
		ns, err := netns.GetFromPath(w.path(box))
		ok(t, err)
		defer ns.Close()
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex, a.HardwareAddr, a.Namespace = s.Name, get(t, w, "eth0").Index, s.MAC, netlink.NsFd(ns)
		ok(t, w.nl.LinkAdd(&netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}))
		return inBox(s.Name)
	}
	steps := []struct {
		name string
		do   func(netlink.Link) error
	}{
		{"made", func(netlink.Link) error { return nil }},
		{"signed", func(l netlink.Link) error { return h.LinkSetAlias(l, s.Alias) }},
		{"named", func(l netlink.Link) error { return h.LinkSetName(l, "eth0") }},
		{"set", func(netlink.Link) error {
			w.setInside(box, "eth0", "ipv6/conf/accept_ra", "0")
			return nil
		}},
		{"addressed", func(l netlink.Link) error {
			return h.AddrAdd(l, &netlink.Addr{IPNet: ipnet(full().Addrs[0])})
		}},
		{"up", func(netlink.Link) error { return h.LinkSetUp(inBox("eth0")) }},
		{"routed", func(netlink.Link) error {
			w.routeInside(box, "eth0", to("10.1.1.1/32"))
			return nil
		}},
	}
	for i, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			l := create()
			for _, s := range steps[:i+1] {
				ok(t, s.do(l))
			}
			ok(t, w.Restore(box, s, full()))
			pictured(t, w, s, full())
			ok(t, w.RemoveInside(box, s.Alias))
		})
	}
	// It adds, and takes nothing away.
	ok(t, w.Restore(box, s, full()))
	l := inBox("eth0")
	ok(t, h.AddrAdd(l, &netlink.Addr{IPNet: ipnet(prefixes("192.168.50.99/24")[0])}))
	ok(t, h.AddrDel(l, &netlink.Addr{IPNet: ipnet(prefixes("10.5.0.1/32")[0])}))
	w.setInside(box, "eth0", "ipv4/conf/arp_ignore", "1")
	ok(t, w.Restore(box, s, full()))
	want := full()
	want.Addrs = prefixes("192.168.50.50/24", "10.5.0.1/32", "192.168.50.51/24", "192.168.50.99/24", "fe80::50/64", "2001:db8:50::50/64", "fd00::1/128")
	want.Settings["ipv4/conf/arp_ignore"] = "1"
	pictured(t, w, s, want)
}

// Whatever lies where a netns is to be, none but a container's is entered.
func TestSandboxPaths(t *testing.T) {
	w := newKernel(t)
	_, err := w.Inside(box, "alias")
	refused(t, err, netlinkutil.ErrNoEntry)
	_, err = w.Sandboxes()
	refused(t, err, netlinkutil.ErrNoEntry)
	_, err = w.InsideAll("")
	refused(t, err, netlinkutil.ErrNoEntry)
	w.AddSandbox(box)
	key := otherBox
	path := w.path(key)
	inside := func() error {
		_, err := w.Inside(key, "alias")
		return err
	}
	refused(t, inside(), netlinkutil.ErrNoSandbox)

	ok(t, os.Symlink(w.path(box), path))
	refused(t, inside(), netlinkutil.ErrBadSandbox, "symbolic link")
	ok(t, os.Remove(path))

	ok(t, unix.Mkfifo(path, 0o600))
	refused(t, inside(), netlinkutil.ErrNoEntry)
	ok(t, os.Remove(path))

	ok(t, os.Mkdir(path, 0o700))
	refused(t, inside(), netlinkutil.ErrNoEntry)
	ok(t, os.Remove(path))

	ok(t, os.WriteFile(path, nil, 0o600))
	refused(t, inside(), netlinkutil.ErrNoEntry, "does not come through", "rslave")
	_, err = w.InsideAll("")
	refused(t, err, netlinkutil.ErrNoEntry, "does not come through")
	w.mount(key, func() (*netlink.Handle, error) {
		ok(t, netns.Set(w.here))
		return nil, nil
	})
	refused(t, inside(), netlinkutil.ErrBadSandbox, "host's own")
	ok(t, unix.Unmount(path, 0))

	ok(t, unix.Mount("/proc/self/ns/uts", path, "", unix.MS_BIND, ""))
	refused(t, inside(), netlinkutil.ErrBadSandbox, "no network namespace")
	ok(t, unix.Unmount(path, 0))
	keys, err := w.Sandboxes()
	if err != nil || !slices.Equal(keys, []string{box}) {
		t.Errorf("sandboxes %q, %v", keys, err)
	}

	// One that has been seen, and whose file dockerd has not removed yet.
	key = box
	refused(t, inside(), netlinkutil.ErrNotFound)
	w.unmount(box)
	refused(t, inside(), netlinkutil.ErrNoSandbox)

	ok(t, os.Remove(w.path(box)))
	ok(t, os.Remove(w.path(otherBox)))
	refused(t, inside(), netlinkutil.ErrNoSandbox)
	ok(t, os.Remove(w.at))
	refused(t, inside(), netlinkutil.ErrNoEntry)
}

// A folder that has been deleted and made anew, where a bind mount shows the old
// one, is empty, and containers run all the same.
func TestSandboxFolderDeleted(t *testing.T) {
	newKernel(t)
	dir, at := filepath.Join(t.TempDir(), "netns"), t.TempDir()
	ok(t, os.Mkdir(dir, 0o700))
	ok(t, unix.Mount(dir, at, "", unix.MS_BIND, ""))
	defer func() { ok(t, unix.Unmount(at, unix.MNT_DETACH)) }()
	h, err := netlinkutil.Open()
	ok(t, err)
	defer h.Close()
	ok(t, h.EnterSandboxes(dir, at))
	key := filepath.Join(dir, "0123456789ab")
	_, err = h.Inside(key, "alias")
	refused(t, err, netlinkutil.ErrNoSandbox)
	ok(t, os.Remove(dir))
	_, err = h.Inside(key, "alias")
	refused(t, err, netlinkutil.ErrNoEntry, "deleted")
	_, err = h.InsideAll("")
	refused(t, err, netlinkutil.ErrNoEntry, "deleted")
}

// No descriptor is left open, and no thread in a container.
func TestSandboxLeavesNothing(t *testing.T) {
	w := newKernel(t)
	w.needs(t, "macvlan")
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	ok(t, w.MoveTo("ul-1", box, plain()))
	open := func() int {
		es, err := os.ReadDir("/proc/self/fd")
		ok(t, err)
		return len(es)
	}
	_, err := w.Inside(box, s.Alias)
	ok(t, err)
	before := open()
	for i := range 1000 {
		switch i % 4 {
		case 0:
			_, err = w.Inside(box, s.Alias)
		case 1:
			err = w.Restore(box, s, plain())
		case 2:
			err = w.RaiseMTU(box, s.Alias, 1500)
		case 3:
			if _, err = w.Inside(otherBox, s.Alias); errors.Is(err, netlinkutil.ErrNoSandbox) {
				err = nil
			}
		}
		ok(t, err)
	}
	for end := time.Now().Add(time.Second); open() > before && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // those of other tests' ends may still close
	}
	if after := open(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	var container unix.Stat_t
	ok(t, unix.Stat(w.path(box), &container))
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	ok(t, err)
	for _, thread := range threads {
		var st unix.Stat_t
		if unix.Stat(thread, &st) == nil && st.Ino == container.Ino {
			t.Errorf("%s is the container's", thread)
		}
	}
}

func TestCheckSandbox(t *testing.T) {
	for _, c := range []struct {
		dir, key string
		good     bool
	}{
		{"/var/run/docker/netns", "/var/run/docker/netns/0123456789ab", true},
		{"/var/run/docker/netns", "/run/docker/netns/0123456789ab", true},
		{"/run/docker/netns", "/var/run/docker/netns/0123456789ab", true},
		{"/run/docker/netns/", "/var/run/docker/netns/0123456789ab", true},
		{"/srv/docker/netns", "/srv/docker/netns/" + strings.Repeat("a", 64), true},
		{"/srv/docker/netns", "/srv/docker/netns/" + strings.Repeat("a", 65), false},
		{"/srv/docker/netns", "/var/run/docker/netns/0123456789ab", false},
		{"/var/run/docker/netns", "/var/run/docker/netns/0123456789AB", false},
		{"/var/run/docker/netns", "/var/run/docker/netns/ingress_sbox", false},
		{"/var/run/docker/netns", "/var/run/docker/netns/1-0123456789", false},
		{"/var/run/docker/netns", "/var/run/docker/netns/./0123456789ab", false},
		{"/var/run/docker/netns", "/var/run/docker/netns/0123456789ab/", false},
		{"/var/run/docker/netns", "/var/run/docker/netns/0123456789ab/..", false},
		{"/var/run/docker/netns", "/proc/1/ns/net", false},
		{"/var/run/docker/netns", "0123456789ab", false},
		{"", "/0123456789ab", false},
	} {
		err := netlinkutil.CheckSandbox(c.dir, c.key)
		if (err == nil) != c.good || err != nil && !errors.Is(err, netlinkutil.ErrBadSandbox) {
			t.Errorf("CheckSandbox(%q, %q) is %v", c.dir, c.key, err)
		}
	}
}

// BenchmarkSandbox times a look into a container, and what makes an interface
// again there, in a netns with as many links.
func BenchmarkSandbox(b *testing.B) {
	w := newKernel(b)
	w.needs(b, "macvlan")
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	_, err := w.AddSubInterface(s)
	must(err)
	want := full()
	must(w.MoveTo("ul-1", box, want))
	b.Run("Inside", func(b *testing.B) {
		for b.Loop() {
			_, err := w.Inside(box, s.Alias)
			must(err)
		}
	})
	b.Run("Restore/there", func(b *testing.B) {
		for b.Loop() {
			must(w.Restore(box, s, want))
		}
	})
	b.Run("Restore/gone", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			must(w.RemoveInside(box, s.Alias))
			b.StartTimer()
			must(w.Restore(box, s, want))
		}
	})
}
