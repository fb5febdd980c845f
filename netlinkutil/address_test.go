package netlinkutil_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

func addressClauses() []clause {
	return []clause{
		{"subnets", nil, testSubnets},
		{"subnets of nothing", nil, testNoSubnets},
		{"subnets of two nics", nil, testTwoNICs},
		{"subnet of a dhcpv6 address", nil, testDHCPv6},
		{"temporary address", nil, testTemporary},
		{"duplicate address", nil, testDuplicate},
		{"gateways", nil, testGateways},
		{"gateway of the other family", nil, testVia},
		{"multipath", nil, testMultipath},
		{"default link", nil, testDefaultLink},
		{"own", nil, testOwn},
		{"addresses of a link that goes down", nil, testAddressesDown},
	}
}

var (
	default4 = netip.MustParsePrefix("0.0.0.0/0")
	default6 = netip.MustParsePrefix("::/0")
)

// via is "192.168.50.1 eth0" or, for on-link routes, "eth0".
func via(s string) fake.Hop {
	gateway, link, ok := strings.Cut(s, " ")
	if !ok {
		return fake.Hop{Link: s}
	}
	return fake.Hop{Link: link, Gateway: netip.MustParseAddr(gateway)}
}

func address(w world, link string, prefixes ...string) {
	for _, p := range prefixes {
		w.AddAddress(link, netip.MustParsePrefix(p))
	}
}

// wantSubnets takes "192.168.50.0/24 192.168.50.2 192.168.50.1", the last left
// out where there is no gateway.
func wantSubnets(t *testing.T, w world, link string, want ...string) {
	t.Helper()
	ss, err := w.Subnets(link)
	ok(t, err)
	if diff := cmp.Diff(want, subnetWords(ss), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("subnets of %s (-want +got)\n%s", link, diff)
	}
}

func subnetWords(ss []netlinkutil.Subnet) (got []string) {
	for _, s := range ss {
		words := s.Prefix.String() + " " + s.Addr.String()
		if s.Gateway.IsValid() {
			words += " " + s.Gateway.String()
		}
		got = append(got, words)
	}
	return got
}

func testSubnets(t *testing.T, w world) {
	w.AddNIC("eth0")
	address(w, "eth0", "fd00:50::2/64", "2001:db8:50::2/64", "2001:db8:50::3/64", "fe80::5/64",
		"192.168.50.2/24", "192.168.50.3/24", "192.168.50.1/24", "10.1.2.3/8", "169.254.7.7/16", "203.0.113.9/32", "10.1.3.4/24")
	w.AddAddress("eth0", netip.MustParsePrefix("192.168.60.2/24"), unix.IFA_F_DEPRECATED)
	w.AddAddress("eth0", netip.MustParsePrefix("2001:db8:60::2/64"), unix.IFA_F_DEPRECATED)
	wantSubnets(t, w, "eth0",
		"10.0.0.0/8 10.1.2.3", "10.1.3.0/24 10.1.3.4", "192.168.50.0/24 192.168.50.2",
		"2001:db8:50::/64 2001:db8:50::2", "fd00:50::/64 fd00:50::2")
	w.DropAddress("eth0", netip.MustParseAddr("10.1.3.4"))
	w.DropAddress("eth0", netip.MustParseAddr("2001:db8:50::2"))
	wantSubnets(t, w, "eth0",
		"10.0.0.0/8 10.1.2.3", "192.168.50.0/24 192.168.50.2",
		"2001:db8:50::/64 2001:db8:50::3", "fd00:50::/64 fd00:50::2")
}

func testNoSubnets(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddBridge("br0")
	ok(t, w.SetUp("lo"))
	wantSubnets(t, w, "eth0")
	wantSubnets(t, w, "br0")
	wantSubnets(t, w, "lo")
	if w, ok := w.(*fakeWorld); ok { // the kernel gives lo its own
		address(w, "lo", "127.0.0.1/8", "::1/128")
		wantSubnets(t, w, "lo")
	}
	_, err := w.Subnets("eth9")
	refused(t, err, netlinkutil.ErrNotFound, "eth9 does not exist")
	_, err = w.Subnets("sixteen-bytes-xx")
	refused(t, err, netlinkutil.ErrInvalid)
}

func testTwoNICs(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
	address(w, "eth1", "172.16.0.2/12", "192.168.50.9/24") // of one LAN with eth0's
	w.AddRoute(default4, 100, via("192.168.50.1 eth0"))
	w.AddRoute(default4, 50, via("172.16.0.1 eth1"))
	wantSubnets(t, w, "eth0", "192.168.50.0/24 192.168.50.2 192.168.50.1", "2001:db8:50::/64 2001:db8:50::2")
	wantSubnets(t, w, "eth1", "172.16.0.0/12 172.16.0.2 172.16.0.1", "192.168.50.0/24 192.168.50.9")
}

func testDHCPv6(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	address(w, "eth0", "2001:db8:50::2/128")
	wantSubnets(t, w, "eth0")
	w.AddRoute(netip.MustParsePrefix("2001:db8::/32"), 0, via("fe80::1 eth0"))
	w.AddRoute(netip.MustParsePrefix("2001:db8:50::/56"), 0, via("eth1"))
	w.AddRoute(netip.MustParsePrefix("2001:db8:51::/64"), 0, via("eth0"))
	wantSubnets(t, w, "eth0")
	w.AddRoute(netip.MustParsePrefix("2001:db8:50::/48"), 0, via("eth0"))
	wantSubnets(t, w, "eth0", "2001:db8:50::/48 2001:db8:50::2")
	w.AddRoute(netip.MustParsePrefix("2001:db8:50::/64"), 0, via("eth0"))
	w.AddRoute(default6, 0, via("fe80::1 eth0"))
	wantSubnets(t, w, "eth0", "2001:db8:50::/64 2001:db8:50::2 fe80::1")
}

func testTemporary(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddTemporary(t, "eth0", netip.MustParsePrefix("2001:db8:50:0:ffff:ffff:ffff:fffe/64")) // above any temporary one
	wantSubnets(t, w, "eth0", "2001:db8:50::/64 2001:db8:50:0:ffff:ffff:ffff:fffe")
	own, err := w.Own()
	ok(t, err)
	n := 0
	for a := range own {
		if netip.MustParsePrefix("2001:db8:50::/64").Contains(a) {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d addresses in %v, want two", n, own)
	}
}

func testDuplicate(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddAddress("eth0", netip.MustParsePrefix("2001:db8:50::2/64"), unix.IFA_F_DADFAILED)
	wantSubnets(t, w, "eth0")
	address(w, "eth0", "2001:db8:50::3/64")
	wantSubnets(t, w, "eth0", "2001:db8:50::/64 2001:db8:50::3")
}

func testGateways(t *testing.T, w world) {
	w.AddNIC("eth0")
	address(w, "eth0", "192.168.50.2/24", "192.168.60.2/24", "2001:db8:50::2/64", "fd00:50::2/64")
	w.AddRoute(default6, 1024, via("fe80::1 eth0")) // as router advertisements make it
	w.AddRoute(default4, 200, via("192.168.60.1 eth0"))
	wantSubnets(t, w, "eth0",
		"192.168.50.0/24 192.168.50.2", "192.168.60.0/24 192.168.60.2 192.168.60.1",
		"2001:db8:50::/64 2001:db8:50::2 fe80::1", "fd00:50::/64 fd00:50::2 fe80::1")

	onlink := via("10.9.9.9 eth0")
	onlink.OnLink = true
	w.AddRoute(default4, 300, onlink)
	w.AddRoute(default4, 100, via("192.168.50.1 eth0"))
	w.AddRoute(default6, 512, via("2001:db8:50::1 eth0"))
	wantSubnets(t, w, "eth0",
		"192.168.50.0/24 192.168.50.2 192.168.50.1", "192.168.60.0/24 192.168.60.2 192.168.60.1",
		"2001:db8:50::/64 2001:db8:50::2 2001:db8:50::1", "fd00:50::/64 fd00:50::2 fe80::1")
	address(w, "eth0", "192.168.70.2/24")
	wantSubnets(t, w, "eth0",
		"192.168.50.0/24 192.168.50.2 192.168.50.1", "192.168.60.0/24 192.168.60.2 192.168.60.1", "192.168.70.0/24 192.168.70.2 10.9.9.9",
		"2001:db8:50::/64 2001:db8:50::2 2001:db8:50::1", "fd00:50::/64 fd00:50::2 fe80::1")

	// As hosters have it: a route to the router, which no subnet holds.
	w.AddNIC("eth1")
	address(w, "eth1", "10.1.0.2/24")
	w.AddRoute(netip.MustParsePrefix("10.9.9.1/32"), 0, via("eth1"))
	w.AddRoute(default4, 50, via("10.9.9.1 eth1"))
	wantSubnets(t, w, "eth1", "10.1.0.0/24 10.1.0.2 10.9.9.1")
}

func testVia(t *testing.T, w world) {
	w.AddNIC("eth0")
	address(w, "eth0", "192.168.50.2/24")
	w.AddRoute(default4, 100, via("fe80::1 eth0"))
	wantSubnets(t, w, "eth0", "192.168.50.0/24 192.168.50.2")
	wantDefault(t, w, false, "eth0")
	wantOwn(t, w, "fe80::1", "a gateway of this host")
}

func testMultipath(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
	address(w, "eth1", "192.168.60.2/24", "2001:db8:60::2/64")
	w.AddRoute(default4, 100, via("192.168.60.1 eth1"), via("192.168.50.1 eth0"))
	w.AddRoute(default6, 100, via("2001:db8:50::1 eth0"), via("2001:db8:60::1 eth1"))
	wantSubnets(t, w, "eth0", "192.168.50.0/24 192.168.50.2 192.168.50.1", "2001:db8:50::/64 2001:db8:50::2 2001:db8:50::1")
	wantSubnets(t, w, "eth1", "192.168.60.0/24 192.168.60.2 192.168.60.1", "2001:db8:60::/64 2001:db8:60::2 2001:db8:60::1")
	wantDefault(t, w, false, "eth1")
	wantDefault(t, w, true, "eth0")
	for _, g := range []string{"192.168.50.1", "192.168.60.1", "2001:db8:50::1", "2001:db8:60::1"} {
		wantOwn(t, w, g, "a gateway of this host")
	}
}

func wantDefault(t *testing.T, w world, v6 bool, want string) {
	t.Helper()
	if got, err := w.DefaultLink(v6); err != nil || got != want {
		t.Errorf("default link %q, %v; want %q", got, err, want)
	}
}

func wantOwn(t *testing.T, w world, addr, want string) {
	t.Helper()
	own, err := w.Own()
	ok(t, err)
	if got := own[netip.MustParseAddr(addr)]; got != want {
		t.Errorf("%s is %q, want %q", addr, got, want)
	}
}

func testDefaultLink(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	_, err := w.DefaultLink(false)
	refused(t, err, netlinkutil.ErrNoRoute, "this host has no IPv4 default route")
	_, err = w.DefaultLink(true)
	refused(t, err, netlinkutil.ErrNoRoute, "IPv6 default route")
	address(w, "eth0", "192.168.50.2/24")
	w.AddRoute(netip.MustParsePrefix("10.0.0.0/8"), 1, via("192.168.50.1 eth0"))
	w.AddRoute(default6, 0, via("fe80::1 eth1"))
	_, err = w.DefaultLink(false)
	refused(t, err, netlinkutil.ErrNoRoute)
	wantDefault(t, w, true, "eth1")
	w.AddRoute(default6, 100, via("fe80::1 eth0"))
	wantDefault(t, w, true, "eth0")
	w.AddRoute(default4, 700, via("eth1"))
	wantDefault(t, w, false, "eth1")
	w.AddRoute(default4, 0, via("192.168.50.1 eth0"))
	wantDefault(t, w, false, "eth0")
}

func testOwn(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	address(w, "eth0", "192.168.50.2/24", "192.168.50.3/24", "2001:db8:50::2/64", "fe80::5/64")
	address(w, "eth1", "203.0.113.9/32", "10.0.0.1/8")
	w.AddAddress("eth1", netip.MustParsePrefix("192.168.60.2/24"), unix.IFA_F_DEPRECATED)
	w.AddRoute(default4, 100, via("192.168.50.1 eth0"))
	w.AddRoute(netip.MustParsePrefix("172.16.0.0/12"), 0, via("10.0.0.7 eth1"))
	w.AddRoute(netip.MustParsePrefix("172.16.5.0/24"), 0, via("192.168.50.3 eth0")) // ourselves, or the kernel would mind
	w.AddRoute(netip.MustParsePrefix("2001:db8::/32"), 0, via("2001:db8:50::1 eth0"))
	own, err := w.Own()
	ok(t, err)
	for a := range own { // what the kernel gives links of itself
		if a.IsLinkLocalUnicast() && a != netip.MustParseAddr("fe80::5") {
			delete(own, a)
		}
	}
	got := map[string]string{}
	for a, words := range own {
		got[a.String()] = words
	}
	want := map[string]string{
		"192.168.50.2":   "an address of this host (eth0)",
		"192.168.50.3":   "an address of this host (eth0)",
		"2001:db8:50::2": "an address of this host (eth0)",
		"fe80::5":        "an address of this host (eth0)",
		"203.0.113.9":    "an address of this host (eth1)",
		"10.0.0.1":       "an address of this host (eth1)",
		"192.168.60.2":   "an address of this host (eth1)",
		"192.168.50.1":   "a gateway of this host",
		"10.0.0.7":       "a gateway of this host",
		"2001:db8:50::1": "a gateway of this host",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func testAddressesDown(t *testing.T, w world) {
	w.AddNIC("eth0")
	address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
	w.AddRoute(default4, 100, via("192.168.50.1 eth0"))
	w.AddRoute(default6, 0, via("fe80::1 eth0"))
	w.SetDown("eth0")
	wantSubnets(t, w, "eth0", "192.168.50.0/24 192.168.50.2")
	_, err := w.DefaultLink(false)
	refused(t, err, netlinkutil.ErrNoRoute)
	_, err = w.DefaultLink(true)
	refused(t, err, netlinkutil.ErrNoRoute)
}

// TestOddRoutes is about what no LAN's router is behind.
func TestOddRoutes(t *testing.T) {
	w := newKernel(t)
	w.AddNIC("eth0")
	address(w, "eth0", "192.168.50.2/24")
	index := w.find("eth0").Attrs().Index
	gateway := netip.MustParseAddr("192.168.50.1").AsSlice()
	for _, r := range []netlink.Route{
		{Dst: ipnet(default4), Type: unix.RTN_UNREACHABLE, Priority: 1},
		{Dst: ipnet(default6), Type: unix.RTN_BLACKHOLE, Priority: 1},
		{Dst: ipnet(default4), LinkIndex: index, Gw: gateway, Table: 100},
		{Dst: ipnet(default4), LinkIndex: index, Gw: gateway, Table: 1000},
	} {
		must(w.nl.RouteAdd(&r))
	}
	wantSubnets(t, w, "eth0", "192.168.50.0/24 192.168.50.2")
	for _, v6 := range []bool{false, true} {
		_, err := w.DefaultLink(v6)
		refused(t, err, netlinkutil.ErrNoRoute)
	}
	wantOwn(t, w, "192.168.50.1", "")
}

// TestAddressing is about addresses that are hard to come by.
func TestAddressing(t *testing.T) {
	at := func(addr, prefix string, scope uint8, flags uint32) netlinkutil.Address {
		return netlinkutil.Address{Link: 2, Addr: netip.MustParseAddr(addr), Prefix: netip.MustParsePrefix(prefix), Scope: scope, Flags: flags}
	}
	const permanent = unix.IFA_F_PERMANENT
	for _, c := range []struct {
		name string
		has  []netlinkutil.Address
		want []string
	}{
		{"peer", []netlinkutil.Address{at("192.168.50.2", "192.168.50.0/24", 0, permanent), at("10.0.0.1", "10.0.0.2/32", 0, permanent), at("10.0.0.1", "172.16.0.0/24", 0, permanent)},
			[]string{"192.168.50.0/24 192.168.50.2"}},
		{"scope host", []netlinkutil.Address{at("10.0.0.1", "10.0.0.0/24", unix.RT_SCOPE_HOST, permanent)}, nil},
		{"scope link", []netlinkutil.Address{at("10.0.0.1", "10.0.0.0/24", unix.RT_SCOPE_LINK, permanent)}, []string{"10.0.0.0/24 10.0.0.1"}},
		{"site-local", []netlinkutil.Address{at("fec0::1", "fec0::/64", unix.RT_SCOPE_SITE, permanent)}, nil},
		{"multicast", []netlinkutil.Address{at("239.0.0.1", "239.0.0.0/24", 0, permanent), at("ff0e::1", "ff0e::/64", 0, permanent)}, nil},
		{"all of the internet", []netlinkutil.Address{at("203.0.113.9", "0.0.0.0/0", 0, permanent)}, nil},
		{"two hosts", []netlinkutil.Address{at("10.0.0.1", "10.0.0.0/31", 0, permanent), at("2001:db8::1", "2001:db8::/127", 0, permanent)},
			[]string{"10.0.0.0/31 10.0.0.1", "2001:db8::/127 2001:db8::1"}},
		{"set by hand", []netlinkutil.Address{at("2001:db8::1", "2001:db8::/64", 0, 0), at("2001:db8::5", "2001:db8::/64", 0, permanent), at("2001:db8::3", "2001:db8::/64", 0, permanent)},
			[]string{"2001:db8::/64 2001:db8::3"}},
		{"tentative", []netlinkutil.Address{at("2001:db8::1", "2001:db8::/64", 0, unix.IFA_F_TENTATIVE)}, []string{"2001:db8::/64 2001:db8::1"}},
		{"deprecated primary", []netlinkutil.Address{at("10.0.0.1", "10.0.0.0/24", 0, unix.IFA_F_DEPRECATED), at("10.0.0.2", "10.0.0.0/24", 0, unix.IFA_F_SECONDARY)},
			[]string{"10.0.0.0/24 10.0.0.2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := subnetWords(netlinkutil.Addressing{Addresses: c.has}.Subnets(2))
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
