package netlinkutil_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
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
)

var l3, l3s = mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "bridge"}, mode.Mode{Kind: mode.IPvlan, Name: "l3s", Flag: "bridge"}

func shimClauses() []clause {
	cs := []clause{
		{"shim refusals", nil, testShimRefusals},
		{"shim of another", nil, testShimOfAnother},
		{"shim unfinished", nil, testShimUnfinished},
		{"shim without IPv6", nil, testShimWithoutIPv6},
		{"shim and ARP settings", nil, testShimARP},
		{"shim and ARP settings in l3", []string{"ipvlan"}, testShimARPl3},
		{"reach somebody else's", nil, testReachForeign},
		{"host addresses", nil, testHostAddresses},
		{"address changes", nil, testAddressChanges},
	}
	for _, m := range []mode.Mode{mode.Default, l2, l3, l3s} {
		var needs []string
		if m.Kind == mode.IPvlan {
			needs = []string{"ipvlan"}
		}
		each := func(name string, test func(*testing.T, world, netlinkutil.Shim)) {
			cs = append(cs, clause{name + " " + m.String(), needs, func(t *testing.T, w world) {
				w.AddNIC("eth0")
				address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
				w.AddRoute(default4, 100, via("192.168.50.1 eth0"))
				test(t, w, shim(m))
			}})
		}
		each("shim", testShim)
		each("reach", testReach)
		each("reach after troubles of the parent", testReachParent)
		each("reach after troubles of the shim", testReachShim)
		each("reach after troubles of the host's addresses", testReachAddresses)
	}
	return cs
}

func shim(m mode.Mode) netlinkutil.Shim {
	s := netlinkutil.Shim{Name: "ulh-1", Parent: "eth0", Mode: m, Alias: "underlay host access"}
	if m.Kind == mode.Macvlan {
		s.MAC = mac(0x51)
	}
	s.LinkLocal4, s.LinkLocal6 = netip.MustParseAddr("169.254.50.2"), netip.MustParseAddr("fe80::51")
	return s
}

// host is "192.168.50.50 192.168.50.2", a container and the source, with a
// neighbour where the shim's mode has those.
func host(s netlinkutil.Shim, words string) netlinkutil.HostRoute {
	c, src, _ := strings.Cut(words, " ")
	r := netlinkutil.HostRoute{Addr: netip.MustParseAddr(c)}
	if src != "" {
		r.Source = netip.MustParseAddr(src)
	}
	if s.Neighbours() {
		b := r.Addr.AsSlice()
		r.MAC = mac(b[len(b)-1])
	}
	return r
}

func hosts(s netlinkutil.Shim, words ...string) (rs []netlinkutil.HostRoute) {
	for _, w := range words {
		rs = append(rs, host(s, w))
	}
	return rs
}

func reach(t *testing.T, w world, s netlinkutil.Shim, rs []netlinkutil.HostRoute) {
	t.Helper()
	for _, r := range rs {
		ok(t, w.Reach(s, r))
	}
}

func wantReached(t *testing.T, w world, s netlinkutil.Shim, want []netlinkutil.HostRoute) {
	t.Helper()
	got, err := w.Reached(s)
	ok(t, err)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("reached (-want +got)\n%s", diff)
	}
}

func wantOut(t *testing.T, w world, addr, link string) {
	t.Helper()
	if got := w.Out(netip.MustParseAddr(addr)); got != link {
		t.Errorf("%s goes out by %q, want %q", addr, got, link)
	}
}

func testShim(t *testing.T, w world, s netlinkutil.Shim) {
	before, parent := names(t, w), get(t, w, "eth0")
	got, err := w.Reached(s)
	if err != nil || got != nil {
		t.Errorf("without a shim there is %v, %v", got, err)
	}
	ok(t, w.Unreach(s, netip.MustParseAddr("192.168.50.50")))
	ok(t, w.DeleteShim(s))
	refused(t, w.Reach(s, host(s, "192.168.50.50 192.168.50.2")), netlinkutil.ErrNotFound, "ulh-1")

	ok(t, w.EnsureShim(s))
	l := get(t, w, s.Name)
	want := s.MAC
	if want == nil {
		want = parent.MAC
	}
	if l.Kind != string(s.Mode.Kind) || l.Lower != "eth0" || !l.Up || l.Alias != s.Alias || l.MTU != 1500 || !bytes.Equal(l.MAC, want) {
		t.Errorf("made %+v", l)
	}
	if got := w.Mode(t, s.Name); got != s.Mode.String() {
		t.Errorf("its mode is %s", got)
	}
	for _, a := range []string{"169.254.50.2", "fe80::51"} {
		wantOwn(t, w, a, "an address of this host (ulh-1)")
	}
	wantSubnets(t, w, "eth0", "192.168.50.0/24 192.168.50.2 192.168.50.1", "2001:db8:50::/64 2001:db8:50::2")
	wantSubnets(t, w, s.Name)
	wantDefault(t, w, false, "eth0")
	_, err = w.DefaultLink(true)
	refused(t, err, netlinkutil.ErrNoRoute)
	if w, ok := w.(*kernelWorld); ok {
		for name, want := range map[string]string{
			"ipv4/conf/ulh-1/arp_ignore": "1", "ipv4/conf/ulh-1/proxy_arp": "0",
			"ipv6/conf/ulh-1/accept_ra": "0", "ipv6/conf/ulh-1/autoconf": "0", "ipv6/conf/ulh-1/router_solicitations": "0", "ipv6/conf/ulh-1/addr_gen_mode": "1",
		} {
			if got := w.sysctl(t, name); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	}

	cs := listen(t, w)
	ok(t, w.EnsureShim(s)) // says nothing to those who listen
	w.AddNIC("eth1")
	await(t, cs, "of eth1", func(c netlinkutil.Change) bool {
		if c.Link.Name == s.Name {
			t.Errorf("the second time it has changed to %+v", c.Link)
		}
		return c.Link.Name == "eth1"
	})
	w.SetDown(s.Name)
	w.SetMTU("eth0", 9000)
	s.LinkLocal4 = netip.MustParseAddr("169.254.50.3")
	if s.MAC != nil {
		s.MAC = mac(0x52)
	}
	ok(t, w.EnsureShim(s))
	if again := get(t, w, s.Name); !again.Up || again.Index != l.Index || again.MTU != 9000 || s.MAC != nil && !bytes.Equal(again.MAC, s.MAC) {
		t.Errorf("put right, it is %+v", again)
	}
	for _, a := range []string{"169.254.50.2", "169.254.50.3", "fe80::51"} {
		wantOwn(t, w, a, "an address of this host (ulh-1)")
	}
	ok(t, w.DeleteShim(s))
	ok(t, w.DeleteShim(s))
	wantNames(t, w, append(before, "eth1")...)
}

func testShimRefusals(t *testing.T, w world) {
	w.AddNIC("eth0")
	for _, c := range []struct {
		is    error
		words string
		spoil func(*netlinkutil.Shim)
	}{
		{netlinkutil.ErrNotFound, "parent eth9 does not exist", func(s *netlinkutil.Shim) { s.Parent = "eth9" }},
		{netlinkutil.ErrInvalid, `"macvlan private"`, func(s *netlinkutil.Shim) { s.Mode = private }},
		{netlinkutil.ErrInvalid, `"ipvlan l3 vepa"`, func(s *netlinkutil.Shim) { s.Mode = l3vepa }},
		{netlinkutil.ErrInvalid, `mode " "`, func(s *netlinkutil.Shim) { s.Mode = mode.Mode{} }},
		{netlinkutil.ErrInvalid, "mode", func(s *netlinkutil.Shim) { s.Mode = mode.Mode{Kind: mode.IPvlan, Name: "l4", Flag: "bridge"} }},
		{netlinkutil.ErrInvalid, "bytes", func(s *netlinkutil.Shim) { s.Name = "sixteen-bytes-xx" }},
		{netlinkutil.ErrInvalid, "blank", func(s *netlinkutil.Shim) { s.Parent = "a b" }},
		{netlinkutil.ErrInvalid, "2001:db8::1 is no link-local address", func(s *netlinkutil.Shim) { s.LinkLocal6 = netip.MustParseAddr("2001:db8::1") }},
		{netlinkutil.ErrInvalid, "10.0.0.1 is no link-local address", func(s *netlinkutil.Shim) { s.LinkLocal4 = netip.MustParseAddr("10.0.0.1") }},
		{netlinkutil.ErrInvalid, "needs an alias", func(s *netlinkutil.Shim) { s.Alias = "" }},
		{netlinkutil.ErrInvalid, "no MAC address", func(s *netlinkutil.Shim) { s.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} }},
	} {
		s := shim(mode.Default)
		c.spoil(&s)
		err := w.EnsureShim(s)
		if err == nil {
			t.Errorf("no error; want %s", c.words)
			continue
		}
		refused(t, err, c.is, c.words)
	}
	wantNames(t, w, "eth0")

	s := shim(mode.Default)
	ok(t, w.EnsureShim(s))
	for _, c := range []struct {
		is    error
		words string
		r     netlinkutil.HostRoute
	}{
		{netlinkutil.ErrInvalid, "no address of a container", netlinkutil.HostRoute{}},
		{netlinkutil.ErrInvalid, "not of one family", netlinkutil.HostRoute{Addr: netip.MustParseAddr("192.168.50.50"), Source: netip.MustParseAddr("2001:db8:50::2")}},
		{netlinkutil.ErrInvalid, "no MAC address", netlinkutil.HostRoute{Addr: netip.MustParseAddr("192.168.50.50"), MAC: make(net.HardwareAddr, 6)}},
		{netlinkutil.ErrNoSource, "192.168.50.9 is no address of this host", host(s, "192.168.50.50 192.168.50.9")},
		{netlinkutil.ErrNoSource, "2001:db8:50::9 is no address of this host", host(s, "2001:db8:50::50 2001:db8:50::9")},
	} {
		refused(t, w.Reach(s, c.r), c.is, c.words)
	}
	w.SetDown(s.Name)
	for _, a := range []string{"192.168.50.50", "2001:db8:50::50"} {
		refused(t, w.Reach(s, host(s, a)), netlinkutil.ErrDown, "ulh-1 or eth0 is down")
	}
	wantReached(t, w, s, nil)
}

func testShimOfAnother(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	s := shim(mode.Default)
	ok(t, w.EnsureShim(s))
	for _, spoil := range []func(*netlinkutil.Shim){
		func(s *netlinkutil.Shim) { s.Alias = "another" },
		func(s *netlinkutil.Shim) { s.Parent = "eth1" },
		func(s *netlinkutil.Shim) { s.Mode, s.MAC = l2, nil },
		func(s *netlinkutil.Shim) { s.Name = "eth1" },
	} {
		o := s
		spoil(&o)
		words := []string{"link " + o.Name + " exists already", "rename or remove it"}
		refused(t, w.EnsureShim(o), netlinkutil.ErrExists, words...)
		refused(t, w.Reach(o, host(o, "192.168.50.50")), netlinkutil.ErrExists, words...)
		if o.Alias != s.Alias || o.Name != s.Name {
			refused(t, w.DeleteShim(o), netlinkutil.ErrExists, words...)
		}
	}
	wantNames(t, w, "eth0", "eth1", s.Name)
}

// testShimUnfinished is about what a kill leaves: a link without an alias.
func testShimUnfinished(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := shim(mode.Default)
	for _, then := range []func(netlinkutil.Shim) error{w.EnsureShim, w.DeleteShim} {
		left := sub(s.Name, mode.Default)
		left.Alias = ""
		add(t, w, left)
		ok(t, then(s))
		if l, err := w.Link(s.Name); err == nil && (l.Alias != s.Alias || !l.Up || !bytes.Equal(l.MAC, s.MAC)) {
			t.Errorf("made of it %+v", l)
		}
		ok(t, w.DeleteShim(s))
	}
	wantNames(t, w, "eth0")
}

func testShimWithoutIPv6(t *testing.T, w world) {
	w.AddNIC("eth0")
	address(w, "eth0", "192.168.50.2/24")
	w.Sysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	s := shim(mode.Default)
	ok(t, w.EnsureShim(s))
	ok(t, w.EnsureShim(s))
	wantOwn(t, w, "169.254.50.2", "an address of this host (ulh-1)")
	wantOwn(t, w, "fe80::51", "")
	rs := hosts(s, "192.168.50.50 192.168.50.2")
	reach(t, w, s, rs)
	refused(t, w.Reach(s, host(s, "2001:db8:50::50")), netlinkutil.ErrUnsupported, "IPv6 is off on link ulh-1")
	ok(t, w.Unreach(s, netip.MustParseAddr("2001:db8:50::50")))
	wantReached(t, w, s, rs)

	s.LinkLocal4, s.LinkLocal6 = netip.Addr{}, netip.Addr{}
	ok(t, w.DeleteShim(s))
	ok(t, w.EnsureShim(s)) // none are wanted
	wantOwn(t, w, "169.254.50.2", "")
}

func testShimARP(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := shim(mode.Default)
	for _, c := range []struct {
		setting, value string
		refused        bool
	}{
		{"arp_ignore", "1", false}, {"arp_ignore", "2", true}, {"arp_ignore", "8", true}, {"arp_ignore", "0", false},
		{"proxy_arp", "1", true}, {"proxy_arp", "0", false},
	} {
		w.Sysctl(t, "net.ipv4.conf.all."+c.setting, c.value)
		err := w.EnsureShim(s)
		if c.refused {
			refused(t, err, netlinkutil.ErrUnsupported, "net.ipv4.conf.all."+c.setting+"="+c.value, "set that to 0")
			wantNames(t, w, "eth0")
			continue
		}
		ok(t, err)
		ok(t, w.DeleteShim(s))
	}
}

func testShimARPl3(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.Sysctl(t, "net.ipv4.conf.all.arp_ignore", "2")
	ok(t, w.EnsureShim(shim(l3))) // which hears no ARP
	refused(t, w.EnsureShim(shim(l2)), netlinkutil.ErrUnsupported, "arp_ignore")
}

func testReach(t *testing.T, w world, s netlinkutil.Shim) {
	ok(t, w.EnsureShim(s))
	rs := hosts(s, "192.168.50.50 192.168.50.2", "192.168.50.51 192.168.50.2", "2001:db8:50::50 2001:db8:50::2", "2001:db8:50::51 2001:db8:50::2")
	reach(t, w, s, rs)
	reach(t, w, s, rs) // again
	wantReached(t, w, s, rs)
	for _, a := range []string{"192.168.50.50", "2001:db8:50::50"} {
		wantOut(t, w, a, s.Name)
	}
	for _, a := range []string{"192.168.50.99", "192.168.50.1"} {
		wantOut(t, w, a, "eth0")
	}
	wantSubnets(t, w, "eth0", "192.168.50.0/24 192.168.50.2 192.168.50.1", "2001:db8:50::/64 2001:db8:50::2")
	wantSubnets(t, w, s.Name)

	rs[0].Source, rs[2].Source = netip.Addr{}, netip.Addr{} // others now
	if s.Neighbours() {
		rs[1].MAC, rs[3].MAC = mac(0x77), mac(0x78)
	}
	reach(t, w, s, rs)
	wantReached(t, w, s, rs)

	for i, a := range []string{"192.168.50.50", "2001:db8:50::51"} {
		for range 2 {
			ok(t, w.Unreach(s, netip.MustParseAddr(a)))
		}
		rs = append(rs[:2*i:2*i], rs[2*i+1:]...)
	}
	wantReached(t, w, s, rs)
	wantOut(t, w, "192.168.50.50", "eth0")
	wantOut(t, w, "192.168.50.51", s.Name)

	ok(t, w.DeleteShim(s))
	wantReached(t, w, s, nil)
	wantOut(t, w, "192.168.50.51", "eth0")
	wantNoMarks(t, w)
	ok(t, w.EnsureShim(s))
	wantReached(t, w, s, nil)
}

// wantNoMarks looks for what a shim leaves behind.
func wantNoMarks(t *testing.T, w world) {
	t.Helper()
	if marks := w.Marks(); len(marks) > 0 {
		t.Errorf("left behind: %s", marks)
	}
}

// reached is a shim with a container of each family.
func reached(t *testing.T, w world, s netlinkutil.Shim) []netlinkutil.HostRoute {
	t.Helper()
	ok(t, w.EnsureShim(s))
	rs := hosts(s, "192.168.50.50 192.168.50.2", "2001:db8:50::50 2001:db8:50::2")
	reach(t, w, s, rs)
	wantReached(t, w, s, rs)
	return rs
}

func testReachParent(t *testing.T, w world, s netlinkutil.Shim) {
	rs := reached(t, w, s)
	left := rs
	if s.Grouped(rs[0].Addr) {
		left = rs[1:]
	}
	mend := func() {
		t.Helper()
		for end := time.Now().Add(patience); !get(t, w, s.Name).Carrier && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		wantReached(t, w, s, left)
		ok(t, w.EnsureShim(s))
		reach(t, w, s, rs)
		wantReached(t, w, s, rs)
		wantOut(t, w, "192.168.50.50", s.Name)
		for _, a := range []string{"169.254.50.2", "fe80::51"} {
			wantOwn(t, w, a, "an address of this host (ulh-1)")
		}
	}
	w.SetDown("eth0")
	wantReached(t, w, s, left)
	if s.Grouped(rs[0].Addr) {
		refused(t, w.Reach(s, rs[0]), netlinkutil.ErrDown, "ulh-1 or eth0 is down or has no carrier")
	}
	ok(t, w.EnsureShim(s))
	ok(t, w.SetUp("eth0"))
	address(w, "eth0", "2001:db8:50::2/64")
	mend()

	w.Unplug("eth0")
	for end := time.Now().Add(patience); get(t, w, s.Name).Carrier && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	wantReached(t, w, s, left)
	w.Plug("eth0")
	mend()
	ok(t, w.DeleteShim(s))
	wantNoMarks(t, w)
}

func testReachShim(t *testing.T, w world, s netlinkutil.Shim) {
	rs := reached(t, w, s)
	w.SetDown(s.Name)
	wantReached(t, w, s, nil)
	ok(t, w.SetUp(s.Name))
	wantReached(t, w, s, nil)
	wantOut(t, w, "192.168.50.50", "eth0") // by what is left of the nexthops, and busy
	ok(t, w.EnsureShim(s))
	reach(t, w, s, rs)
	wantReached(t, w, s, rs)
	wantOut(t, w, "192.168.50.50", s.Name)

	ok(t, w.DeleteLink(s.Name)) // by somebody else, who knows of nothing
	wantReached(t, w, s, nil)
	ok(t, w.Unreach(s, rs[0].Addr))
	wantOut(t, w, "192.168.50.50", "eth0")
	ok(t, w.EnsureShim(s))
	wantReached(t, w, s, nil)
	reach(t, w, s, rs)
	wantReached(t, w, s, rs)
	ok(t, w.DeleteLink(s.Name))
	ok(t, w.DeleteShim(s))
	wantNoMarks(t, w)
}

func testReachAddresses(t *testing.T, w world, s netlinkutil.Shim) {
	rs := reached(t, w, s)
	w.DropAddress("eth0", rs[0].Source)
	w.DropAddress("eth0", rs[1].Source)
	bare := rs[1]
	bare.Source = netip.Addr{}
	// Linux 6.1 leaves the route its source, for it is by another link.
	if got, err := w.Reached(s); err != nil || len(got) != 1 || got[0].Source != rs[1].Source {
		wantReached(t, w, s, []netlinkutil.HostRoute{bare})
	}
	ok(t, w.Reach(s, bare))
	wantReached(t, w, s, []netlinkutil.HostRoute{bare})
	address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
	reach(t, w, s, rs)
	wantReached(t, w, s, rs)
}

func testReachForeign(t *testing.T, w world) {
	w.AddNIC("eth0")
	address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
	s := shim(mode.Default)
	ok(t, w.EnsureShim(s))
	for _, a := range []string{"192.168.50.50", "2001:db8:50::50"} {
		to := netip.MustParseAddr(a)
		w.AddRoute(netip.PrefixFrom(to, to.BitLen()), 0, via("eth0"))
		refused(t, w.Reach(s, host(s, a)), netlinkutil.ErrExists, "a route to "+a+" exists already and is not underlay's", "ip route del "+a)
		ok(t, w.Unreach(s, to))
		wantOut(t, w, a, "eth0")
	}
	wantReached(t, w, s, nil)
}

func testHostAddresses(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	want := func(link string, want ...string) {
		t.Helper()
		as, err := w.HostAddresses(link)
		ok(t, err)
		if got := strings.Fields(strings.Trim(fmt.Sprint(as), "[]")); !cmp.Equal(got, want, cmpopts.EquateEmpty()) {
			t.Errorf("addresses of %s are %q, want %q", link, got, want)
		}
	}
	want("eth0")
	address(w, "eth0", "192.168.50.2/24", "192.168.50.3/24", "10.0.0.2/8", "169.254.7.7/16", "203.0.113.9/32",
		"2001:db8:50::2/64", "2001:db8:50::3/64", "fe80::5/64", "fd00:50::2/128")
	w.AddAddress("eth0", netip.MustParsePrefix("192.168.60.2/24"), unix.IFA_F_DEPRECATED)
	w.AddAddress("eth0", netip.MustParsePrefix("2001:db8:60::2/64"), unix.IFA_F_DEPRECATED)
	all := []string{"192.168.50.2", "10.0.0.2", "192.168.50.3", "fd00:50::2", "2001:db8:50::3", "2001:db8:50::2"}
	want("eth0", all...)
	want("eth1")
	address(w, "eth1", "2001:db8:70::2/64")
	want("eth1", "2001:db8:70::2")
	w.AddRoute(default6, 0, via("fe80::1 eth0"))
	w.AddRoute(default4, 0, via("192.168.50.1 eth0"))
	want("eth1", "192.168.50.2", "10.0.0.2", "192.168.50.3", "2001:db8:70::2")
	w.DropAddress("eth1", netip.MustParseAddr("2001:db8:70::2"))
	want("eth1", all...)
	s := shim(mode.Default)
	ok(t, w.EnsureShim(s))
	want("eth0", all...)
	_, err := w.HostAddresses("eth9")
	refused(t, err, netlinkutil.ErrNotFound, "eth9")
	_, err = w.HostAddresses("a b")
	refused(t, err, netlinkutil.ErrInvalid)
}

func testAddressChanges(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	told := make(chan int, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.AddressChanges(ctx, func(index int) { told <- index }) }()
	wait := func(want int) {
		t.Helper()
		for late := time.After(patience); ; {
			select {
			case got := <-told:
				if got == want {
					return
				}
			case <-late:
				t.Fatalf("no word of link %d", want)
			}
		}
	}
	wait(0)
	eth0, eth1 := get(t, w, "eth0").Index, get(t, w, "eth1").Index
	address(w, "eth0", "192.168.50.2/24")
	wait(eth0)
	address(w, "eth1", "192.168.60.2/24")
	wait(eth1)
	address(w, "eth0", "2001:db8:50::2/64")
	wait(eth0)
	address(w, "eth1", "192.168.60.3/24")
	wait(eth1)
	w.DropAddress("eth0", netip.MustParseAddr("192.168.50.2"))
	wait(eth0)
	address(w, "eth1", "192.168.60.4/24")
	wait(eth1)
	w.SetDown("eth0") // its IPv6 address goes
	wait(eth0)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// TestReadOnly is about a host whose settings cannot be written, as those of a
// managed plugin without its mount.
func TestReadOnly(t *testing.T) {
	w := newKernel(t)
	w.needs(t, "macvlan")
	w.AddNIC("eth0")
	failed := make(chan error)
	go func() { // whose thread ends with it
		runtime.LockOSThread()
		failed <- func() error {
			if err := netns.Set(w.here); err != nil {
				return err
			}
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			for _, m := range []struct {
				from, to string
				flags    uintptr
			}{
				{"", "/", unix.MS_REC | unix.MS_PRIVATE},
				{"/proc/sys", "/proc/sys", unix.MS_BIND},
				{"", "/proc/sys", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
			} {
				if err := unix.Mount(m.from, m.to, "", m.flags, ""); err != nil {
					return fmt.Errorf("mounting %s: %w", m.to, err)
				}
			}
			w.Host.Close()
			var err error
			w.Host, err = netlinkutil.Open()
			return err
		}()
	}()
	if err := <-failed; err != nil {
		lack(t, "leave to mount: "+err.Error())
	}
	s := shim(mode.Default)
	refused(t, w.EnsureShim(s), netlinkutil.ErrPermission, "net.ipv6.conf.ulh-1.accept_ra", "default route", "/sysctl/net")
	wantNames(t, w, "eth0")
	w.Sysctl(t, "net.ipv6.conf.default.accept_ra", "0")
	address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
	reached(t, w, s)
}

// TestHostAccess is about what it is all for: host and container talk to each
// other, by the host's own addresses, though rp_filter is strict.
func TestHostAccess(t *testing.T) {
	for _, m := range []mode.Mode{mode.Default, l2, l3, l3s} {
		t.Run(m.String(), func(t *testing.T) {
			w := newKernel(t)
			w.needs(t, string(m.Kind))
			for _, name := range []string{"all", "default"} {
				w.Sysctl(t, "net.ipv4.conf."+name+".rp_filter", "1")
			}
			w.AddNIC("eth0")
			address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
			s := shim(m)
			if m.RoutesByLink() {
				s.LinkLocal4, s.LinkLocal6 = netip.Addr{}, netip.Addr{}
			}
			ok(t, w.SetUp("lo")) // l3 comes in by it
			ok(t, w.EnsureShim(s))
			c := add(t, w, sub("ul-1", m))
			must(w.Move("ul-1"))
			must(w.there.LinkSetUp(w.findAway("lo")))
			l := w.findAway("ul-1")
			for _, p := range []string{"192.168.50.50/24", "2001:db8:50::50/64"} {
				must(w.there.AddrAdd(l, &netlink.Addr{IPNet: ipnet(netip.MustParsePrefix(p)), Flags: unix.IFA_F_NODAD}))
			}
			for _, pair := range []string{"192.168.50.50 192.168.50.2", "2001:db8:50::50 2001:db8:50::2"} {
				r := host(s, pair)
				if s.Neighbours() {
					r.MAC = c.MAC
					by := s.LinkLocal4
					if r.Addr.Is6() {
						by = s.LinkLocal6
					}
					for _, r := range []netlink.Route{
						{LinkIndex: l.Attrs().Index, Dst: ipnet(netip.PrefixFrom(by, by.BitLen())), Scope: unix.RT_SCOPE_LINK},
						{LinkIndex: l.Attrs().Index, Dst: ipnet(netip.PrefixFrom(r.Source, by.BitLen())), Gw: by.AsSlice()},
					} {
						must(w.there.RouteAdd(&r))
					}
				}
				ok(t, w.Reach(s, r))
				for _, way := range []struct {
					from, to netns.NsHandle
					name     string
					src, dst netip.Addr
				}{
					{w.here, w.other, "host to container", r.Source, r.Addr},
					{w.other, w.here, "container to host", r.Addr, r.Source},
				} {
					if got, err := talk(way.from, way.to, way.dst); err != nil || got != way.src {
						t.Errorf("%s, to %s: heard from %v, %v; want %s", way.name, way.dst, got, err, way.src)
					}
				}
			}
		})
	}
}

// talk sends a word to a server on that address, waits for the answer, and
// tells from where the server heard it.
func talk(from, to netns.NsHandle, addr netip.Addr) (heard netip.Addr, err error) {
	var server net.PacketConn
	err = within(to, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return heard, err
	}
	defer server.Close()
	go func() {
		b := make([]byte, 9)
		for {
			_, peer, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			server.WriteTo([]byte(peer.(*net.UDPAddr).AddrPort().Addr().Unmap().String()), peer)
		}
	}()
	var c net.Conn
	err = within(from, func() (err error) {
		c, err = net.Dial("udp", server.LocalAddr().String())
		return err
	})
	if err != nil {
		return heard, err
	}
	defer c.Close()
	b := make([]byte, 64)
	for range 30 { // the first may fall into IPv6's own start
		c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err = c.Write([]byte("word")); err != nil {
			continue
		}
		var n int
		if n, err = c.Read(b); err == nil {
			return netip.ParseAddr(string(b[:n]))
		}
	}
	return heard, err
}

// TestHosts is about addresses that are hard to come by.
func TestHosts(t *testing.T) {
	const floats = 1 << 31
	at := func(link int, addr string, flags uint32) netlinkutil.Address {
		a := netip.MustParseAddr(addr)
		p := netip.PrefixFrom(a, a.BitLen()-8).Masked()
		if flags == floats {
			p, flags = netip.PrefixFrom(a, 32), unix.IFA_F_PERMANENT
		}
		return netlinkutil.Address{Link: link, Addr: a, Prefix: p, Flags: flags}
	}
	a := netlinkutil.Addressing{
		Addresses: []netlinkutil.Address{
			at(2, "10.0.0.3", unix.IFA_F_SECONDARY), at(2, "10.0.0.1", unix.IFA_F_PERMANENT), at(2, "10.0.0.9", unix.IFA_F_DEPRECATED),
			at(2, "169.254.1.1", unix.IFA_F_PERMANENT), at(2, "10.0.0.77", floats), at(4, "10.0.0.78", floats), at(3, "2001:db8::3", 0), at(3, "2001:db8::9", unix.IFA_F_PERMANENT),
			at(2, "2001:db8::1", unix.IFA_F_TENTATIVE), at(2, "2001:db8::2", unix.IFA_F_TEMPORARY), at(2, "2001:db8::4", unix.IFA_F_DADFAILED), at(2, "fe80::1", 0),
		},
		Routes: []netlinkutil.Route{{To: default6, Hops: []netlinkutil.Hop{{Link: 3}}}},
	}
	if got := fmt.Sprint(a.Hosts(2)); got != "[10.0.0.1 10.0.0.3 2001:db8::9 2001:db8::3]" {
		t.Errorf("got %s", got)
	}
	if got := fmt.Sprint(a.Hosts(4)); got != "[10.0.0.78 2001:db8::9 2001:db8::3]" {
		t.Errorf("got %s", got)
	}
}
