package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"underlay/internal/mode"
	"underlay/internal/options"
	"underlay/netlinkutil"
)

func ipvlan(name string) mode.Mode {
	return mode.Mode{Kind: mode.IPvlan, Name: name, Flag: "bridge"}
}

// accessible is a LAN with host access, where the host is .2.
func accessible(name, parent string, m mode.Mode) Network {
	n := lan(name, parent, m)
	n.Options.HostAccess = true
	return n
}

func (b *bench) hostIsOnLAN() {
	b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.2/24"))
	b.kernel.AddAddress("eth0", netip.MustParsePrefix("fd00:50::2/64"))
}

func (b *bench) join(e Endpoint, sandbox string) Plumbing {
	b.t.Helper()
	if _, err := b.CreateEndpoint(ctx, e); err != nil {
		b.t.Fatal(err)
	}
	p, err := b.Join(ctx, e.NetworkID, e.ID, sandbox)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// routes prints routes, one a line.
func routes(rs []Route) string {
	var lines strings.Builder
	for _, r := range rs {
		lines.WriteString(r.Destination.String())
		if r.NextHop.IsValid() {
			lines.WriteString(" via " + r.NextHop.String())
		}
		lines.WriteByte('\n')
	}
	return lines.String()
}

func wantRoutes(t *testing.T, got []Route, want string) {
	t.Helper()
	want = strings.ReplaceAll(strings.TrimPrefix(want, "\n"), "\t", "")
	if d := cmp.Diff(want, routes(got)); d != "" {
		t.Errorf("the container's routes (-want +got):\n%s", d)
	}
}

func TestHostAccess(t *testing.T) {
	for _, tt := range []struct {
		mode           mode.Mode
		kernel, routes string
	}{
		{mode.Default, `
			2 eth0 device 00:16:3e:00:00:02 mtu 1500 up 192.168.50.2/24 fd00:50::2/64
			3 eth1 device 00:16:3e:00:00:03 mtu 1500 up
			6 ulone0000000000 macvlan bridge on eth0 da:12:80:a0:52:75 mtu 1500 down "underlay cafe0001 endpoint one000000000 of network net000000000"
			7 ulh9c32a8c7e59e macvlan bridge on eth0 06:ae:51:ec:92:3f mtu 1500 up 169.254.50.2/32 fe80::eecc:74b2:197b:aee3/64 "underlay cafe0001 host access to eth0"
			routes:
			192.168.50.10/32 on ulh9c32a8c7e59e src 192.168.50.2 of underlay
			fd00:50::a/128 on ulh9c32a8c7e59e src fd00:50::2 of underlay
			fd00:50::d812:80ff:fea0:5275/128 on ulh9c32a8c7e59e src fd00:50::2 of underlay
			neighbours:
			192.168.50.10 on ulh9c32a8c7e59e is da:12:80:a0:52:75
			fd00:50::a on ulh9c32a8c7e59e is da:12:80:a0:52:75
			fd00:50::d812:80ff:fea0:5275 on ulh9c32a8c7e59e is da:12:80:a0:52:75
		`, `
			169.254.50.2/32
			192.168.50.2/32 via 169.254.50.2
			fe80::eecc:74b2:197b:aee3/128
			fd00:50::2/128 via fe80::eecc:74b2:197b:aee3
		`},
		{ipvlan("l2"), ``, `
			169.254.50.2/32
			192.168.50.2/32 via 169.254.50.2
			fe80::eecc:74b2:197b:aee3/128
			fd00:50::2/128 via fe80::eecc:74b2:197b:aee3
		`},
		{ipvlan("l3"), ``, `
			0.0.0.0/0
			::/0
		`},
		{ipvlan("l3s"), ``, `
			0.0.0.0/0
			::/0
		`},
	} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			b := newBench(t)
			b.hostIsOnLAN()
			before := b.kernel.String()
			b.create(accessible("net", "eth0", tt.mode))
			b.golden(before) // nothing before there is a container
			e := on("net", "one", 10)
			p := b.join(e, "box1")
			if tt.kernel != "" {
				b.golden(tt.kernel)
			}
			wantRoutes(t, p.Routes, tt.routes)
			reached, err := b.kernel.Reached(netlinkutil.Shim{Name: shimName("eth0"), Parent: "eth0", Mode: tt.mode, Alias: b.shimAlias("eth0")})
			want := 2
			if tt.mode == mode.Default {
				want = 3 // and by the address that the container makes for itself
			}
			if err != nil || len(reached) != want {
				t.Errorf("the host reaches %v, %v", reached, err)
			}
			for _, r := range reached {
				if (r.MAC == nil) != tt.mode.RoutesByLink() || tt.mode.Name == "l2" && r.MAC.String() != "00:16:3e:00:00:02" {
					t.Errorf("neighbour %v", r)
				}
			}
			if err := b.kernel.Move(p.LinkName); err != nil {
				t.Fatal(err)
			}
			during := b.kernel.String()
			b.restart()
			b.golden(during)
			two := on("net", "two", 11)
			b.start(two)
			b.stop(two)
			b.golden(during)
			b.stop(e)
			b.golden(before)
			if err := b.DeleteNetwork(ctx, id("net")); err != nil {
				t.Fatal(err)
			}
			b.golden(before)
		})
	}
}

func TestHostAccessOfAVLAN(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	b.kernel.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), 0, hopVia("eth0", "192.168.50.1"))
	n := accessible("net", "eth0.10", mode.Default)
	n.Subnets = []Subnet{{Prefix: netip.MustParsePrefix("10.10.0.0/24"), Gateway: netip.MustParseAddr("10.10.0.1")}}
	b.create(n)
	p := b.join(Endpoint{ID: id("one"), NetworkID: id("net"), IPv4: netip.MustParsePrefix("10.10.0.5/24")}, "box")
	wantRoutes(t, p.Routes, `
		169.254.50.2/32
		192.168.50.2/32 via 169.254.50.2
	`)
}

// The host's own address in the container's subnet is the one it shows.
func TestHostRouteSource(t *testing.T) {
	at := netip.MustParseAddr
	w := way{hosts: []netip.Addr{at("10.0.0.2"), at("192.168.50.2"), at("fd00::2"), at("fd00:50::2")}}
	e := on("net", "one", 10)
	got := fmt.Sprint(w.hostRoutes(&e))
	if want := "[192.168.50.10 src 192.168.50.2 fd00:50::a src fd00:50::2]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	w.hosts = []netip.Addr{at("10.0.0.2")}
	if got, want := fmt.Sprint(w.hostRoutes(&e)), "[192.168.50.10 src 10.0.0.2 fd00:50::a]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A container that was there before the host had this address knows it by the
// shim's only.
func TestHostRouteSourceLater(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	b.create(accessible("net", "eth0", mode.Default))
	b.start(on("net", "one", 10))
	b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.3/24"))
	b.kernel.DropAddress("eth0", netip.MustParseAddr("192.168.50.2"))
	b.Reconcile()
	b.start(on("net", "two", 11))
	s := b.kernel.String()
	for _, want := range []string{"192.168.50.10/32 on ulh9c32a8c7e59e src 169.254.50.2 of", "192.168.50.11/32 on ulh9c32a8c7e59e src 192.168.50.3 of"} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
}

func TestLinkLocalOfTheShim(t *testing.T) {
	b := newBench(t)
	for _, row := range []struct{ host, want string }{
		{"fd00::2", "169.254.239.204"}, {"192.168.50.2", "169.254.50.2"}, {"192.168.0.2", "169.254.254.2"},
		{"10.0.255.2", "169.254.253.2"}, {"10.0.169.254", "169.254.168.254"}, {"fd00::2", "169.254.168.254"},
	} {
		if got := b.linkLocal4("eth0", []netip.Addr{netip.MustParseAddr(row.host)}); got.String() != row.want {
			t.Errorf("%s: %s, want %s", row.host, got, row.want)
		}
	}
}

func TestAddressesContainersMake(t *testing.T) {
	at := netip.MustParseAddr
	e := Endpoint{IPv6: netip.MustParsePrefix("fd00:50::a/64"), MAC: MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}}
	w := way{hosts: []netip.Addr{at("192.168.50.2"), at("fd00:50::2"), at("fd00:50::3"), at("fd00:51::2")}, neighbour: MAC{0, 0x16, 0x3e, 0, 0, 2}}
	w.shim.LinkLocal6 = at("fe80::1")
	want := "[fd00:50::5054:ff:fe12:3456 src fd00:50::2 mac 52:54:00:12:34:56 fd00:51::5054:ff:fe12:3456 src fd00:51::2 mac 52:54:00:12:34:56]"
	if got := fmt.Sprint(w.selfMade(&e, nil)); got != want {
		t.Errorf("macvlan: %s, want %s", got, want)
	}
	// The first ipvlan link of a parent (addrconf_ifid_eui48).
	e.MAC, e.DeviceID = nil, 1
	want = "[fd00:50::16:3e00:100:2 src fd00:50::2 mac 00:16:3e:00:00:02 fd00:51::16:3e00:100:2 src fd00:51::2 mac 00:16:3e:00:00:02]"
	if got := fmt.Sprint(w.selfMade(&e, nil)); got != want {
		t.Errorf("ipvlan: %s, want %s", got, want)
	}
	e.DeviceID = 0
	if got := w.selfMade(&e, nil); got != nil {
		t.Errorf("ipvlan of an unknown device ID: %v", got)
	}
}

// The host as a router is reached by the shim, as it is as a host.
func TestHostIsTheRouter(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	n := accessible("net", "eth0", mode.Default)
	n.Subnets[0].Gateway = netip.MustParseAddr("192.168.50.2")
	n.Options.Routes = []options.Route{{To: netip.MustParsePrefix("10.8.0.0/24"), Via: netip.MustParseAddr("192.168.50.2")}}
	b.create(n)
	p := b.join(on("net", "one", 10), "box")
	if got := fmt.Sprint(p.Gateways); got != "[169.254.50.2 fd00:50::1]" {
		t.Errorf("gateways %s", got)
	}
	wantRoutes(t, p.Routes, `
		10.8.0.0/24 via 169.254.50.2
		169.254.50.2/32
		192.168.50.2/32 via 169.254.50.2
		fe80::eecc:74b2:197b:aee3/128
		fd00:50::2/128 via fe80::eecc:74b2:197b:aee3
	`)
}

// The last containers may stop at the same moment, and while host access is
// looked after.
func TestLastContainersStopTogether(t *testing.T) {
	for range 20 {
		b := newBench(t)
		b.hostIsOnLAN()
		before := b.kernel.String()
		b.create(accessible("net", "eth0", mode.Default))
		var stops sync.WaitGroup
		for k := range 4 {
			e := on("net", fmt.Sprintf("e%d", k), 10+k)
			b.start(e)
			if err := b.kernel.Return(linkName(e.ID)); err != nil {
				t.Fatal(err)
			}
			stops.Go(func() {
				b.Reconcile()
				if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
					t.Error(err)
				}
				b.Reconcile()
			})
		}
		stops.Wait()
		b.golden(before)
	}
}

// A disk that is slower than the deadline keeps nothing from being undone.
func TestSlowDiskLeavesNoAccess(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	say := &loudspeaker{}
	b.announcer = say
	b.restart()
	before := b.kernel.String()
	proxied := accessible("net", "eth0", ipvlan("l3"))
	proxied.Options.Proxy = true
	b.create(proxied)
	e := on("net", "one", 10)
	b.start(e)
	if err := b.kernel.Return(linkName(e.ID)); err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithCancel(ctx)
	cancel()
	err := b.DeleteEndpoint(late, e.NetworkID, e.ID)
	for deadline := time.Now().Add(10 * time.Second); b.kernel.String() != before || len(say.heardAnswers()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v:\n%s%v", err, b.kernel, say.answers)
		}
	}
}

// The order in which links are listed does not matter to a start.
func TestShimBeforeItsLastEndpoint(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	before := b.kernel.String()
	b.create(accessible("net", "eth0", mode.Default))
	one, two := on("net", "one", 10), on("net", "two", 11)
	b.start(one) // makes the shim
	b.start(two)
	b.stop(one)
	if err := b.kernel.Return(linkName(two.ID)); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.golden(before)
}

// A next hop that is on the link of another network already leads elsewhere.
func TestRouterOnTwoNetworks(t *testing.T) {
	b := newBench(t)
	one, two := lan("a", "eth0", mode.Default), lan("b", "eth1", mode.Default)
	one.Options.Routes = []options.Route{{To: netip.MustParsePrefix("fd00:1::/64"), Via: netip.MustParseAddr("fe80::1")}}
	two.Options.Routes = []options.Route{{To: netip.MustParsePrefix("fd00:2::/64"), Via: netip.MustParseAddr("fe80::1")}}
	b.create(one, two)
	wantRoutes(t, b.join(on("a", "one", 10), "box").Routes, `
		fe80::1/128
		fd00:1::/64 via fe80::1
	`)
	wantRoutes(t, b.join(on("b", "two", 11), "box").Routes, "")
}

// One container on several networks of a host has each route once: a second one
// fails its start.
func TestRoutesOfOneContainer(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	one, two := accessible("a", "eth0", mode.Default), accessible("b", "eth0", mode.Default)
	one.Options.Routes = []options.Route{{To: netip.MustParsePrefix("10.20.0.0/16"), Via: netip.MustParseAddr("192.168.50.254")}}
	two.Options.Routes = []options.Route{{To: netip.MustParsePrefix("10.20.0.0/16")}, {To: netip.MustParsePrefix("10.30.0.0/16")}}
	b.create(one, two)
	first := on("a", "one", 10)
	wantRoutes(t, b.join(first, "box1").Routes, `
		10.20.0.0/16 via 192.168.50.254
		169.254.50.2/32
		192.168.50.2/32 via 169.254.50.2
		fe80::eecc:74b2:197b:aee3/128
		fd00:50::2/128 via fe80::eecc:74b2:197b:aee3
	`)
	if err := b.kernel.Move(linkName(first.ID)); err != nil {
		t.Fatal(err)
	}
	b.restart()
	second := on("b", "two", 11)
	wantRoutes(t, b.join(second, "box1").Routes, `
		10.30.0.0/16
	`)
	again, err := b.Join(ctx, id("b"), second.ID, "box1")
	if err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, again.Routes, `
		10.30.0.0/16
	`)
	if other := b.join(on("b", "three", 12), "box2"); len(other.Routes) != 6 {
		t.Errorf("another container has the routes\n%s", routes(other.Routes))
	}
}

func TestHostAccessIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.hostIsOnLAN()
		b.create(accessible("net", "eth0", ipvlan("l2")))
		b.start(on("net", "one", 10))
		b.start(on("net", "two", 11))
		done := make(chan struct{})
		go func() { b.Watch(b.kernel, func() {}); close(done) }()
		settle := func() { time.Sleep(time.Second); synctest.Wait() }
		settle()
		whole := b.kernel.String()
		shim := shimName("eth0")
		for name, harm := range map[string]func(){
			"the shim is deleted": func() {
				if err := b.kernel.DeleteLink(shim); err != nil {
					t.Error(err)
				}
			},
			"the host loses its address and gets it back": func() {
				b.kernel.DropAddress("eth0", netip.MustParseAddr("192.168.50.2"))
				settle()
				b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.2/24"))
			},
		} {
			harm()
			if b.kernel.String() == whole {
				t.Errorf("%s: no harm is done", name)
			}
			settle()
			// Its links have other indices, and addresses another order.
			if got := b.kernel.String(); pieces(got) != pieces(whole) {
				t.Errorf("%s:\n%s\nbefore\n%s", name, got, whole)
			}
		}
		b.Close()
		<-done
	})
}

// pieces is how often each word is in a picture, without the links' indices.
func pieces(picture string) string {
	count := map[string]int{}
	for line := range strings.Lines(picture) {
		words := strings.Fields(line)
		if len(words) > 1 && strings.Trim(words[0], "0123456789") == "" {
			words = words[1:]
		}
		for _, w := range words {
			count[w]++
		}
	}
	return fmt.Sprint(count)
}

// An endpoint that ended, and a network that went, while the plugin was away
// leave nothing.
func TestAccessLeftBehind(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	before := b.kernel.String()
	b.create(accessible("net", "eth0", mode.Default))
	one, two := on("net", "one", 10), on("net", "two", 11)
	b.start(one)
	b.start(two)
	if err := b.kernel.Return(linkName(two.ID)); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if s := b.kernel.String(); strings.Contains(s, "192.168.50.11") || !strings.Contains(s, "192.168.50.10") {
		t.Errorf("after one of two is gone:\n%s", s)
	}
	if err := b.kernel.Return(linkName(one.ID)); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.golden(before)
}

func TestAccessWithoutEndpointIsSwept(t *testing.T) {
	for _, m := range []mode.Mode{mode.Default, ipvlan("l2"), ipvlan("l3")} {
		b := newBench(t)
		b.hostIsOnLAN()
		before := b.kernel.String()
		s := netlinkutil.Shim{Name: shimName("eth0"), Parent: "eth0", Mode: m, Alias: b.shimAlias("eth0")}
		if err := errors.Join(b.kernel.EnsureShim(s), b.kernel.Reach(s, netlinkutil.HostRoute{Addr: netip.MustParseAddr("192.168.50.9")})); err != nil {
			t.Fatal(err)
		}
		b.restart()
		b.golden(before)
	}
}

func TestAccessRefusals(t *testing.T) {
	internal := accessible("net", "eth0", mode.Default)
	internal.Internal = true
	b := newBench(t)
	b.hostIsOnLAN()
	before := b.kernel.String()
	refused(t, b.CreateNetwork(ctx, internal), "host_access does not go with --internal", "leave out")
	b.kernel.Sysctl("net.ipv4.conf.all.arp_ignore", "2")
	refused(t, b.CreateNetwork(ctx, accessible("net", "eth0", mode.Default)), "arp_ignore=2", "set that to 0")
	b.golden(before)
}

// A container starts although the host cannot reach it yet.
func TestAccessIsNoReasonNotToStart(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	b.create(accessible("net", "eth0", ipvlan("l2")))
	b.kernel.Unplug("eth0")
	b.start(on("net", "one", 10))
	b.kernel.Plug("eth0")
	b.Reconcile()
	if s := b.kernel.String(); !strings.Contains(s, "192.168.50.10/32 on ulh") {
		t.Errorf("no route after the parent is plugged in:\n%s", s)
	}
}

func TestAccessFaults(t *testing.T) {
	broken := errors.New("broken")
	for _, op := range []string{"EnsureShim", "Reach", "Unreach", "Reached", "DeleteShim", "HostAddresses"} {
		for nth := 1; nth <= 4; nth++ {
			t.Run(fmt.Sprintf("%s, call %d", op, nth), func(t *testing.T) {
				b := newBench(t)
				b.hostIsOnLAN()
				before := b.kernel.String()
				b.kernel.Fail(op, nth, broken)
				one, two := on("net", "one", 10), on("net", "two", 11)
				err := b.CreateNetwork(ctx, accessible("net", "eth0", mode.Default))
				for _, e := range []Endpoint{one, two} {
					if err == nil {
						if _, err = b.CreateEndpoint(ctx, e); err == nil {
							_, err = b.Join(ctx, e.NetworkID, e.ID, "box")
						}
					}
				}
				if err != nil && !errors.Is(err, broken) {
					t.Error(err)
				}
				b.restart()
				for _, e := range []Endpoint{one, two} {
					_ = b.DeleteEndpoint(ctx, e.NetworkID, e.ID)
				}
				_ = b.DeleteNetwork(ctx, id("net"))
				b.kernel.Fail(op, 1, nil)
				b.restart()
				b.golden(before)
			})
		}
	}
}

func TestNetworkRoutes(t *testing.T) {
	to, at := netip.MustParsePrefix, netip.MustParseAddr
	b := newBench(t)
	n := lan("net", "eth0", mode.Default)
	n.Options.Routes = []options.Route{
		{To: to("10.20.0.0/16"), Via: at("192.168.50.254")}, {To: to("10.30.0.0/16")}, {To: to("fd00:1::/64"), Via: at("fe80::1")},
	}
	n.Options.NoDefaultRoute = true
	b.create(n)
	p := b.join(on("net", "one", 10), "box")
	if p.Gateways != nil {
		t.Errorf("gateways %v", p.Gateways)
	}
	wantRoutes(t, p.Routes, `
		10.20.0.0/16 via 192.168.50.254
		10.30.0.0/16
		fe80::1/128
		fd00:1::/64 via fe80::1
	`)
	only4 := on("net", "two", 11)
	only4.IPv6 = netip.Prefix{}
	wantRoutes(t, b.join(only4, "box2").Routes, `
		10.20.0.0/16 via 192.168.50.254
		10.30.0.0/16
	`)
}

func TestGatewayBesideTheSubnet(t *testing.T) {
	b := newBench(t)
	n := lan("net", "eth0", mode.Default)
	for _, gateway := range []string{"10.9.9.1", "169.254.1.1"} {
		n.Subnets[0].Gateway = netip.MustParseAddr(gateway)
		n.Subnets[1].Gateway = netip.MustParseAddr("fe80::1")
		b.create(n)
		e := on("net", "one", 10)
		p := b.join(e, "box")
		wantRoutes(t, p.Routes, gateway+"/32\n")
		if fmt.Sprint(p.Gateways) != "["+gateway+" fe80::1]" {
			t.Errorf("gateways %v", p.Gateways)
		}
		if err := errors.Join(b.DeleteEndpoint(ctx, n.ID, e.ID), b.DeleteNetwork(ctx, n.ID)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusedRoutes(t *testing.T) {
	to, at := netip.MustParsePrefix, netip.MustParseAddr
	for _, tt := range []struct {
		route options.Route
		n     Network
		want  []string
	}{
		{options.Route{To: to("10.0.0.0/8"), Via: at("192.168.51.1")}, lan("net", "eth0", mode.Default),
			[]string{"-o routes", "router 192.168.51.1 is not in subnet 192.168.50.0/24", "name a router of the subnet"}},
		{options.Route{To: to("192.168.50.0/24")}, lan("net", "eth0", mode.Default), []string{"the network's own subnet", "leave it out"}},
		{options.Route{To: to("fd00::/8")}, Network{ID: id("net"), Options: options.Network{Parent: "eth0", Mode: mode.Default},
			Subnets: lan("", "", mode.Default).Subnets[:1]}, []string{"no subnet of that family"}},
		{options.Route{To: to("10.0.0.0/8")}, Network{ID: id("net"), Internal: true, Options: options.Network{Parent: "eth0", Mode: mode.Default},
			Subnets: lan("", "", mode.Default).Subnets}, []string{"-o routes does not go with --internal"}},
	} {
		b := newBench(t)
		tt.n.Options.Routes = []options.Route{tt.route}
		refused(t, b.CreateNetwork(ctx, tt.n), tt.want...)
		b.nothing()
	}
}

func TestProxy(t *testing.T) {
	b := newBench(t)
	say := &loudspeaker{}
	b.announcer = say
	b.restart()
	proxied, other := lan("a", "eth0", ipvlan("l3")), lan("b", "eth1", ipvlan("l3"))
	proxied.Options.Proxy = true
	b.create(proxied, other)
	want := func(text string) {
		t.Helper()
		if got := fmt.Sprint(say.answers); got != text {
			t.Errorf("answers for %s, want %s", got, text)
		}
	}
	one := on("a", "one", 10)
	b.start(one)
	b.start(on("b", "two", 11))
	want("map[eth0:[192.168.50.10 fd00:50::a]]")
	say.answers = nil
	b.restart()
	want("map[eth0:[192.168.50.10 fd00:50::a]]")
	b.stop(one)
	want("map[]")
	internal := proxied
	internal.ID, internal.Internal = id("c"), true
	refused(t, b.CreateNetwork(ctx, internal), "announce=proxy does not go with --internal")
}

func TestRouterRoutes(t *testing.T) {
	b := newBench(t)
	b.hostIsOnLAN()
	b.kernel.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), 0, hopVia("eth0", "192.168.50.1"))
	n := lan("net", "eth0", ipvlan("l3"))
	n.Subnets = []Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24")}, {Prefix: netip.MustParsePrefix("fd00:1::/64")}}
	want := "[ip route add 10.1.0.0/24 via 192.168.50.2 ip -6 route add fd00:1::/64 via fd00:50::2]"
	if got := fmt.Sprint(b.RouterRoutes(&n)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	proxied, internal, l2 := n, n, n
	proxied.Options.Proxy = true
	internal.Internal = true
	l2.Options.Mode = ipvlan("l2")
	inside := lan("net", "eth0", ipvlan("l3"))
	away := n
	away.Options.Parent = "eth9"
	addressless := n
	addressless.Options.Parent = "eth1"
	for _, o := range []Network{proxied, internal, l2, inside, away, addressless} {
		if got := b.RouterRoutes(&o); got != nil {
			t.Errorf("%+v: %v", o, got)
		}
	}
}

func TestWatchEnds(t *testing.T) {
	b := newBench(t)
	done := make(chan struct{})
	go func() { b.Watch(b.kernel, func() {}); close(done) }()
	b.Close()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on after Close")
	}
}
