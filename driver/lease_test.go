package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"underlay/internal/mode"
	"underlay/internal/options"
)

// server gives leases, .100 and so on, and notes what it is told.
type server struct {
	did    []string
	n      byte
	router netip.Addr
	routes []Route
	mtu    int
	fails  error
	fails6 error
	slow   time.Duration // it takes so long
	asked  LeaseRequest
}

func (s *server) Lease(ctx context.Context, r LeaseRequest) (Lease, error) {
	s.asked = r
	if s.slow > 0 {
		select {
		case <-time.After(s.slow):
		case <-ctx.Done():
			return Lease{}, ctx.Err()
		}
	}
	if s.fails != nil {
		return Lease{}, s.fails
	}
	s.n++
	l := Lease{Key: fmt.Sprintf("key%d", s.n), Addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 50, 99 + s.n}), 24), Router: s.router, Routes: s.routes, MTU: s.mtu}
	if r.V6 {
		if s.fails6 != nil {
			return Lease{}, s.fails6
		}
		l.Addr, l.Router, l.Routes = netip.MustParsePrefix(fmt.Sprintf("fd00:50::%d/64", 99+s.n)), netip.MustParseAddr("fe80::1"), nil
	}
	if !r.LAN.Shared {
		if l.MAC = r.MAC; l.MAC == nil {
			l.MAC = MAC{2, 0, 0, 0, 0, s.n}
		}
	}
	s.did = append(s.did, "lease "+l.Key)
	return l, nil
}

func (s *server) Free(key string) { s.did = append(s.did, "free "+key) }

func (s *server) told(t *testing.T, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, s.did); d != "" {
		t.Errorf("the server was told (-want +got):\n%s", d)
	}
	s.did = nil
}

// leasing is a bench with a server.
func leasing(b *bench) *server {
	s := &server{router: netip.MustParseAddr("192.168.50.1"), routes: []Route{{Destination: netip.MustParsePrefix("10.0.0.0/8"), NextHop: netip.MustParseAddr("192.168.50.2")}}}
	b.Driver.leaser = s
	return s
}

// leased is a network whose addresses are a server's, not an IPAM's: the null one's
// 0.0.0.0/0 is no subnet.
func leased(name, parent string, m mode.Mode) Network {
	return Network{ID: id(name), Options: options.Network{Parent: parent, Mode: m, DHCP: options.DHCP{V4: true, Timeout: time.Second}}}
}

func bare(network, name string) Endpoint { return Endpoint{ID: id(name), NetworkID: id(network)} }

// A lease from docker run to docker stop.
func TestLease(t *testing.T) {
	for _, tt := range []struct {
		mode   mode.Mode
		shared bool
	}{
		{mode.Default, false},
		{mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}, true},
	} {
		for _, noRoute := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, no default route %t", tt.mode, noRoute), func(t *testing.T) {
				b := newBench(t)
				s := leasing(b)
				n := leased("net", "eth0", tt.mode)
				n.Options.NoDefaultRoute = noRoute
				b.create(n)
				req := bare("net", "one")
				e, err := b.TakeLease(ctx, req, options.Endpoint{})
				if err != nil {
					t.Fatal(err)
				}
				want := LAN{Link: "eth0", MAC: net.HardwareAddr{0, 0x16, 0x3e, 0, 0, 2}, Shared: tt.shared}
				if d := cmp.Diff(want, s.asked.LAN); d != "" || s.asked.Network != n.ID || !s.asked.DHCP.V4 {
					t.Errorf("asked %+v", s.asked)
				}
				mac, err := b.CreateEndpoint(ctx, e)
				if err != nil || (mac == nil) != tt.shared || !tt.shared && mac.String() != "02:00:00:00:00:01" {
					t.Fatalf("%v, %v", mac, err)
				}
				if a, a6 := b.Leased(e.ID); a.String() != "192.168.50.100/24" || a6.IsValid() {
					t.Errorf("%v, %v", a, a6)
				}
				if !b.HasLease("key1") || b.HasLease("key2") {
					t.Error("it does not know its leases")
				}
				p, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12])
				if err != nil {
					t.Fatal(err)
				}
				if noRoute {
					if p.Gateways != nil || p.Routes != nil {
						t.Errorf("%+v", p)
					}
				} else if !slices.Equal(p.Gateways, []netip.Addr{s.router}) || len(p.Routes) != 1 || p.Routes[0] != s.routes[0] {
					t.Errorf("%+v", p)
				}
				s.told(t, "lease key1")
				if err := b.kernel.Move(p.LinkName); err != nil {
					t.Fatal(err)
				}
				b.arrived(e)
				// dockerd's repeat of the call, when it is known already.
				if again, err := b.TakeLease(ctx, req, options.Endpoint{}); err != nil || again.Lease != nil {
					t.Errorf("%+v, %v", again, err)
				}
				s.told(t)
				b.stop(e)
				s.told(t, "free key1")
				if a, _ := b.Leased(e.ID); a.IsValid() || b.HasLease("key1") {
					t.Error("it is leased still")
				}
				if err := b.DeleteNetwork(ctx, e.NetworkID); err != nil {
					t.Fatal(err)
				}
				b.nothing()
			})
		}
	}
}

// A driver that starts again knows the leases of what runs.
func TestLeaseAfterRestart(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		leasing(b)
		b.create(leased("net", "eth0", mode.Default))
		e, err := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
		if err != nil {
			t.Fatal(err)
		}
		b.run(e)
		b.Close()
		b.restart()
		s := leasing(b)
		if a, _ := b.Leased(e.ID); a != e.IPv4 || !b.HasLease("key1") {
			t.Errorf("%v", a)
		}
		b.stop(e)
		s.told(t, "free key1")
	})
}

// The server's MTU is the interface's, where it can be.
func TestLeaseMTU(t *testing.T) {
	for _, tt := range []struct{ told, own, want int }{{0, 0, 0}, {1400, 0, 1400}, {9000, 0, 0}, {1400, 1300, 1300}} {
		b := newBench(t)
		leasing(b).mtu = tt.told
		n := leased("net", "eth0", mode.Default)
		n.Options.MTU = tt.own
		b.create(n)
		e, err := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
		if err == nil {
			_, err = b.CreateEndpoint(ctx, e)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := b.subInterface(&n, b.endpoints[e.ID]).MTU; got != tt.want {
			t.Errorf("told %d, by the network's option %d: %d, want %d", tt.told, tt.own, got, tt.want)
		}
	}
}

// What a container says for itself goes to the server, of a network that is leased so.
func TestLeaseOfItsOwn(t *testing.T) {
	b := newBench(t)
	s := leasing(b)
	b.create(leased("net", "eth0", mode.Default))
	b.create(lan("other", "eth0", mode.Default))
	own := options.Endpoint{Hostname: "web", ClientID: []byte{0, 1}}
	if _, err := b.TakeLease(ctx, bare("net", "one"), own); err != nil || !cmp.Equal(s.asked.Own, own) {
		t.Errorf("%v, asked %+v", err, s.asked)
	}
	_, err := b.TakeLease(ctx, on("other", "two", 11), own)
	refused(t, err, "driver-opt dhcp_hostname", "--ipam-driver null")
}

// What does not become an endpoint leaves no lease behind.
func TestLeaseOfNoEndpoint(t *testing.T) {
	ipvlan := mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}
	for _, tt := range []struct {
		what  string
		mode  mode.Mode
		mac   MAC
		prep  func(b *bench, s *server)
		early bool // before the lease
		words []string
	}{
		{"the kernel fails", mode.Default, nil, func(b *bench, _ *server) { b.kernel.Fail("AddSubInterface", 1, errors.New("no buffer space")) }, false, []string{"no buffer space"}},
		{"the disk fails", mode.Default, nil, func(b *bench, _ *server) { b.store.Close() }, false, []string{"closed"}},
		{"the MAC is taken", mode.Default, MAC{2, 0, 0, 0, 0, 0xaa}, func(b *bench, _ *server) {
			o := on("other", "two", 11)
			o.MAC = MAC{2, 0, 0, 0, 0, 0xaa}
			b.start(o)
		}, false, []string{"02:00:00:00:00:aa", "is taken"}},
		{"the network goes meanwhile", mode.Default, nil, func(b *bench, _ *server) { _ = b.DeleteNetwork(ctx, id("net")) }, false, []string{"unknown"}},
		{"a MAC on ipvlan", ipvlan, MAC{2, 0, 0, 0, 0, 0xaa}, nil, true, []string{"shares the MAC"}},
		{"a multicast MAC", mode.Default, MAC{3, 0, 0, 0, 0, 0xaa}, nil, true, []string{"multicast"}},
		{"the server fails", mode.Default, nil, func(_ *bench, s *server) { s.fails = errors.New("no dhcp server answers") }, true, []string{"no dhcp server answers", "network net"}},
		{"no client", mode.Default, nil, func(b *bench, _ *server) { b.Driver.leaser = nil }, true, []string{"no DHCP client"}},
		{"no parent", mode.Default, nil, func(b *bench, _ *server) { b.kernel.Yank("eth0") }, true, []string{"eth0"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			s := leasing(b)
			b.create(leased("net", "eth0", tt.mode))
			if !tt.early {
				b.create(lan("other", "eth0", tt.mode))
			}
			req := bare("net", "one")
			req.MAC = tt.mac
			if tt.early && tt.prep != nil {
				tt.prep(b, s)
			}
			e, err := b.TakeLease(ctx, req, options.Endpoint{})
			if tt.early {
				refused(t, err, tt.words...)
				s.told(t)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.prep != nil {
				tt.prep(b, s)
			}
			_, err = b.CreateEndpoint(ctx, e)
			refused(t, err, tt.words...)
			s.told(t, "lease key1", "free key1")
			if b.HasLease("key1") {
				t.Error("the lease is an endpoint's")
			}
		})
	}
}

// Two calls for one endpoint at the same time take two leases; one is kept.
func TestLeaseOfARepeat(t *testing.T) {
	b := newBench(t)
	s := leasing(b)
	b.create(leased("net", "eth0", mode.Default))
	one, err1 := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
	two, err2 := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	mac, err1 := b.CreateEndpoint(ctx, one)
	again, err2 := b.CreateEndpoint(ctx, two)
	if err := errors.Join(err1, err2); err != nil || mac.String() != again.String() {
		t.Fatalf("%v, %v, %v", mac, again, err)
	}
	s.told(t, "lease key1", "lease key2", "free key2")
	if !b.HasLease("key1") {
		t.Error("the endpoint's own lease is gone")
	}
}

// Two LANs may have the same private subnet: who has an address there is known by the
// parent, too.
func TestLeasesOfTwoLANs(t *testing.T) {
	both := func(name, parent string) Network {
		n := leased(name, parent, mode.Default)
		n.Options.DHCP.V6 = true
		return n
	}
	v4, v6 := netip.MustParseAddr("192.168.50.100"), netip.MustParseAddr("fd00:50::101")
	b := newBench(t)
	start := func(network, name string) (Endpoint, error) {
		t.Helper()
		s := leasing(b)
		s.n = 0 // each LAN's server gives the same ones
		e, err := b.TakeLease(ctx, bare(network, name), options.Endpoint{})
		if err != nil {
			t.Fatal(err)
		}
		e.Lease.MAC[5], e.MAC = e.ID[0], e.Lease.MAC // and each asks with a MAC of its own
		_, err = b.CreateEndpoint(ctx, e)
		return e, err
	}
	end := func(e Endpoint) {
		t.Helper()
		if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
			t.Fatal(err)
		}
	}
	has := func(link string, want *Endpoint) {
		t.Helper()
		for _, a := range []netip.Addr{v4, v6} {
			m, ok := b.MACOn(link, a)
			if ok != (want != nil) || ok && m.String() != want.MAC.String() {
				t.Errorf("%v on %s: %v, %t, want that of %+v", a, link, m, ok, want)
			}
		}
	}
	b.create(both("neta", "eth0"), both("netb", "eth1"), both("netc", "eth1"))
	one, err := start("neta", "one")
	if err != nil {
		t.Fatal(err)
	}
	has("eth0", &one)
	has("eth1", nil)
	two, err := start("netb", "two")
	if err != nil {
		t.Fatal(err)
	}
	has("eth0", &one)
	has("eth1", &two)
	_, err = start("netc", "three")
	refused(t, err, v4.String(), "endpoint two")
	has("eth1", &two)

	// A network of underlay's IPAM minds those of its own LAN.
	b.create(lan("netd", "eth1", mode.Default))
	if who, ok := b.Holder(v4); !ok || !strings.Contains(who, "endpoint two") {
		t.Errorf("%s has it", who)
	}
	end(two)
	has("eth0", &one)
	has("eth1", nil)
	if who, ok := b.Holder(v4); ok {
		t.Errorf("%s has it, on another LAN", who)
	}
	if m, ok := b.MAC(v4); ok {
		t.Errorf("%v has it, on another LAN", m)
	}
	four := on("netd", "four", 100)
	if _, err := b.CreateEndpoint(ctx, four); err != nil {
		t.Fatal(err)
	}
	if who, ok := b.Holder(v4); !ok || !strings.Contains(who, "endpoint four") {
		t.Errorf("%s has it", who)
	}
	// And the other way round: what it keeps is nothing to other LANs.
	n := lan("nete", "eth0", mode.Default)
	n.Subnets[0].Prefix, n.Subnets[0].Gateway = netip.MustParsePrefix("192.168.50.0/24"), v4
	end(four)
	if err := b.DeleteNetwork(ctx, id("netd")); err != nil {
		t.Fatal(err)
	}
	b.create(n)
	if two, err = start("netb", "two"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	has("eth0", &one)
	has("eth1", &two)
	if err := b.Released(ctx, v4); err != nil || !b.HasLease("key1") {
		t.Errorf("what the IPAM is told of its address is taken for a lease's: %v", err)
	}
}

// Other networks have nothing to do with it.
func TestNoLease(t *testing.T) {
	b := newBench(t)
	s := leasing(b)
	b.create(lan("net", "eth0", mode.Default))
	e := on("net", "one", 10)
	if got, err := b.TakeLease(ctx, e, options.Endpoint{}); err != nil || got.Lease != nil {
		t.Errorf("%+v, %v", got, err)
	}
	b.start(e)
	if a, _ := b.Leased(e.ID); a.IsValid() {
		t.Error("it is leased")
	}
	if _, err := b.TakeLease(ctx, bare("nowhere", "two"), options.Endpoint{}); err == nil {
		t.Error("an unknown network")
	}
	b.stop(e)
	s.told(t)
}

// audited returns what gives the actions that have been logged from now on, each with
// its addresses.
func (b *bench) audited() func() []string {
	hook := test.NewLocal(b.log.(*logrus.Logger))
	return func() (said []string) {
		for _, e := range hook.AllEntries() {
			if action, ok := e.Data["action"].(string); ok {
				for _, field := range []string{"address", "address6"} {
					if a, ok := e.Data[field].(string); ok {
						action += " " + a
					}
				}
				said = append(said, action)
			}
		}
		return said
	}
}

// The server has given a running container another address.
func TestReaddress(t *testing.T) {
	was, is, far := netip.MustParsePrefix("192.168.50.10/24"), netip.MustParsePrefix("192.168.50.99/24"), netip.MustParsePrefix("10.9.0.5/16")
	router, farRouter := netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("10.9.0.1")
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		check := func(want netip.Prefix, via netip.Addr) {
			t.Helper()
			_, before, _ := b.endpoint(e.NetworkID, e.ID)
			_, had := before.prefix(false)
			audited := b.audited()
			if err := b.Readdress(was.Addr(), want, via, router); err != nil {
				t.Fatal(err)
			}
			if said := audited(); !slices.Equal(said, []string{"freed " + had.Addr().String(), "given " + want.Addr().String()}) {
				t.Errorf("from %v to %v, the log says %q", had, want, said)
			}
			b.Reconcile() // leaves it so
			i, err := b.inside(e)
			if err != nil || !slices.Equal(i.Addrs, []netip.Prefix{want, e.IPv6}) || i.Routes[0].Via != via {
				t.Errorf("inside %+v, %v", i, err)
			}
			_, now, err := b.endpoint(e.NetworkID, e.ID)
			if err != nil || now.Leased != want || now.IPv4 != was {
				t.Errorf("on record %v, leased %v, %v", now.IPv4, now.Leased, err)
			}
			for _, a := range []netip.Prefix{was, want} {
				if _, ok := b.Holder(a.Addr()); !ok {
					t.Errorf("nobody is known to have %v", a)
				}
			}
		}
		check(is, router)
		check(far, farRouter)
		if _, ok := b.Holder(is.Addr()); ok {
			t.Errorf("%v is nobody's any more", is)
		}
		// An interface that is lost is made again with what the container had.
		b.kernel.Yank("eth0")
		b.plug()
		b.Reconcile()
		if i, err := b.inside(e); err != nil || !slices.Contains(i.Addrs, far) || slices.Contains(i.Addrs, was) {
			t.Errorf("made again: %+v, %v", i, err)
		}
		b.Close()
		b.restart()
		check(was, router)
		// What is no container's is none's to change.
		for _, a := range []string{"192.168.50.200", "10.9.0.5"} {
			if err := b.Readdress(netip.MustParseAddr(a), is, router, router); err != nil {
				t.Error(err)
			}
		}
		b.kernel.Fail("Readdress", 1, errors.New("no buffer space"))
		refused(t, b.Readdress(was.Addr(), is, router, router), "no buffer space", "endpoint one")
		b.kernel.EndSandbox(sandbox(e.ID))
		if err := b.Readdress(was.Addr(), is, router, router); err != nil {
			t.Errorf("its container has ended: %v", err)
		}
	})
}

// The server tells another router, and the address stays.
func TestAnotherRouter(t *testing.T) {
	router, another, third := netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("192.168.50.2"), netip.MustParseAddr("192.168.50.3")
	check := func(t *testing.T, b *bench, e Endpoint, want netip.Addr) {
		t.Helper()
		b.Reconcile() // leaves it so
		i, err := b.inside(e)
		if err != nil || !slices.Contains(i.Addrs, e.IPv4) || i.Routes[0].Via != want {
			t.Errorf("inside %+v, %v; want a default route by %v", i, err, want)
		}
		if _, now, err := b.endpoint(e.NetworkID, e.ID); err != nil || now.router(b.networks[e.NetworkID], false) != want || now.Leased.IsValid() {
			t.Errorf("on record %+v, %v; want the router %v", now, err, want)
		}
	}
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0") // by IPAM
		for _, step := range []struct{ is, told, want netip.Addr }{
			{router, router, router},
			{netip.Addr{}, router, router},
			{another, netip.Addr{}, router}, // of an earlier version: not known what was told
			{another, another, router},      // the network has a gateway of its own
			{another, third, router},        // and has it still when the server has another
			{another, router, another},
			{netip.Addr{}, router, another},
			{third, router, third},
			{router, router, router},
			{another, router, another},
		} {
			audited := b.audited()
			if err := b.Readdress(e.IPv4.Addr(), e.IPv4, step.is, step.told); err != nil {
				t.Fatal(err)
			}
			if said := audited(); said != nil {
				t.Errorf("the address has stayed, and the log says %q", said)
			}
			check(t, b, e, step.want)
		}
		if err := b.Readdress(e.IPv6.Addr(), e.IPv6, netip.Addr{}, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		refused(t, b.Readdress(e.IPv4.Addr(), e.IPv4, netip.MustParseAddr("10.9.0.1"), router), "endpoint one", "10.9.0.1 is not on the link")
		b.Close()
		b.restart()
		check(t, b, e, another)
		// An interface that is lost is made again with what the container had.
		b.kernel.Yank("eth0")
		b.plug()
		check(t, b, e, another)
	})
	bubble(t, func(t *testing.T, b *bench) {
		leasing(b)
		b.create(leased("net", "eth0", mode.Default))
		e, err := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
		if err != nil {
			t.Fatal(err)
		}
		b.run(e)
		if i, err := b.inside(e); err != nil || len(i.Routes) == 0 {
			t.Fatalf("%+v, %v", i, err)
		}
		for _, want := range []netip.Addr{another, router, third} {
			if err := b.ReaddressLease("key1", e.IPv4, want); err != nil {
				t.Fatal(err)
			}
			check(t, b, e, want)
		}
	})
}

func TestReaddressLease(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		leasing(b)
		b.create(leased("net", "eth0", mode.Default))
		e, err := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
		if err != nil {
			t.Fatal(err)
		}
		b.run(e)
		is := netip.MustParsePrefix("192.168.50.7/25")
		if err := b.ReaddressLease("key1", is, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		if i, err := b.inside(e); err != nil || i.Addrs[0] != is {
			t.Errorf("%+v, %v", i, err)
		}
		if a, _ := b.Leased(e.ID); a != e.IPv4 {
			t.Errorf("Docker is told %v, and was told %v", a, e.IPv4)
		}
		p, err := b.Join(ctx, e.NetworkID, e.ID, sandbox(e.ID)) // dockerd's repeat
		if err != nil || !slices.Equal(p.Gateways, []netip.Addr{e.Lease.Router}) {
			t.Errorf("it joins again with %+v, %v", p, err)
		}
		if err := b.ReaddressLease("key2", is, netip.Addr{}); err != nil {
			t.Error(err)
		}
	})
}

func TestLANOf(t *testing.T) {
	subnet := netip.MustParsePrefix("192.168.50.0/24")
	ipvlan := mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}
	foreign := lan("c", "eth1", mode.Default)
	foreign.ForeignIPAM = true
	for _, tt := range []struct {
		what     string
		networks []Network
		yank     bool
		want     LAN
		words    []string
	}{
		{"none", nil, false, LAN{}, []string{"no network on 192.168.50.0/24"}},
		{"another IPAM's", []Network{foreign}, false, LAN{}, []string{"no network on 192.168.50.0/24"}},
		{"macvlan", []Network{lan("a", "eth0", mode.Default), foreign}, false, LAN{Link: "eth0", MAC: net.HardwareAddr{0, 0x16, 0x3e, 0, 0, 2}}, nil},
		{"ipvlan", []Network{lan("a", "eth1", ipvlan)}, false, LAN{Link: "eth1", MAC: net.HardwareAddr{0, 0x16, 0x3e, 0, 0, 3}, Shared: true}, nil},
		{"two of a kind", []Network{lan("a", "eth0", mode.Default), lan("b", "eth0", mode.Default)}, false, LAN{Link: "eth0", MAC: net.HardwareAddr{0, 0x16, 0x3e, 0, 0, 2}}, nil},
		{"two parents", []Network{lan("a", "eth0", mode.Default), lan("b", "eth1", mode.Default)}, false, LAN{}, []string{"not on one parent", "give each a subnet"}},
		{"no parent", []Network{lan("a", "eth0", mode.Default)}, true, LAN{}, []string{"network a", "eth0"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			b.create(tt.networks...)
			if tt.yank {
				b.kernel.Yank("eth0")
			}
			got, err := b.LANOf(subnet)
			if tt.words != nil {
				refused(t, err, tt.words...)
				return
			}
			if d := cmp.Diff(tt.want, got); d != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
		})
	}
}

func TestLeaseOptions(t *testing.T) {
	b := newBench(t)
	n := leased("net", "eth0", mode.Default)
	n.Internal = true
	refused(t, b.CreateNetwork(ctx, n), "-o dhcp", "--internal")
	n = lan("net", "eth0", mode.Default)
	n.Options.DHCP.V4 = true
	refused(t, b.CreateNetwork(ctx, n), "--ipam-driver null", "--ipam-opt dhcp=true")
	b.nothing()
}

// The leases of both families, from docker run to docker stop.
func TestLeases(t *testing.T) {
	for _, tt := range []struct {
		what   string
		dhcp   options.DHCP
		v4, v6 string
		told   []string
	}{
		{"IPv6", options.DHCP{V6: true}, "invalid Prefix", "fd00:50::100/64", []string{"lease key1"}},
		{"both", options.DHCP{V4: true, V6: true}, "192.168.50.100/24", "fd00:50::101/64", []string{"lease key1", "lease key2"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bench) {
				s := leasing(b)
				n := leased("net", "eth0", mode.Default)
				tt.dhcp.Timeout = time.Second
				n.Options.DHCP = tt.dhcp
				b.create(n)
				e, err := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
				if err != nil {
					t.Fatal(err)
				}
				if !s.asked.V6 || tt.dhcp.V4 && s.asked.Mate != "key1" || !tt.dhcp.V4 && s.asked.Mate != "" {
					t.Errorf("asked %+v", s.asked)
				}
				mac, err := b.CreateEndpoint(ctx, e)
				if err != nil || mac.String() != "02:00:00:00:00:01" { // of the first
					t.Fatalf("%v, %v", mac, err)
				}
				if v4, v6 := b.Leased(e.ID); v4.String() != tt.v4 || v6.String() != tt.v6 {
					t.Errorf("%v, %v", v4, v6)
				}
				p, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12])
				if err != nil {
					t.Fatal(err)
				}
				if gw := p.Gateways; len(gw) != len(tt.told) || gw[len(gw)-1].String() != "fe80::1" {
					t.Errorf("%+v", p)
				}
				s.told(t, tt.told...)
				if err := b.kernel.Move(p.LinkName); err != nil {
					t.Fatal(err)
				}
				b.arrived(e)
				b.Close()
				b.restart()
				s = leasing(b)
				if !b.HasLease("key" + fmt.Sprint(len(tt.told))) {
					t.Error("it does not know its leases")
				}
				b.stop(e)
				for k := range tt.told {
					tt.told[k] = fmt.Sprintf("free key%d", k+1)
				}
				s.told(t, tt.told...)
			})
		})
	}
}

// Each family has the whole of lease_timeout: a slow server of IPv4 takes nothing from
// IPv6.
func TestLeaseTimeoutOfEach(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		s := leasing(b)
		n := leased("net", "eth0", mode.Default)
		n.Options.DHCP.V6 = true
		b.create(n)
		s.slow = n.Options.DHCP.Timeout - time.Millisecond
		start := time.Now()
		if e, err := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{}); err != nil || e.Lease6 == nil {
			t.Errorf("after %v: %+v, %v", time.Since(start), e, err)
		}
	})
}

// Half a container is none.
func TestLeaseOfOneFamilyOnly(t *testing.T) {
	b := newBench(t)
	s := leasing(b)
	s.fails6 = errors.New("no DHCPv6 server answers")
	n := leased("net", "eth0", mode.Default)
	n.Options.DHCP.V6 = true
	b.create(n)
	e, err := b.TakeLease(ctx, bare("net", "one"), options.Endpoint{})
	refused(t, err, "no DHCPv6 server answers", "network net")
	if e.Lease != nil || e.IPv4.IsValid() {
		t.Errorf("%+v", e)
	}
	s.told(t, "lease key1", "free key1")
}

// The server has given a running container another IPv6 address.
func TestReaddress6(t *testing.T) {
	router := netip.MustParseAddr("192.168.50.1")
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		before, err := b.inside(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []netip.Prefix{netip.MustParsePrefix("fd00:50::99/64"), netip.MustParsePrefix("fd00:51::5/128")} {
			is := want
			if e.IPv6.Contains(is.Addr()) {
				is = netip.PrefixFrom(is.Addr(), 128) // what is known of the subnet is better
			}
			if err := b.Readdress(e.IPv6.Addr(), is, netip.Addr{}, netip.Addr{}); err != nil {
				t.Fatal(err)
			}
			b.Reconcile()
			i, err := b.inside(e)
			if err != nil || !slices.Equal(i.Addrs, []netip.Prefix{e.IPv4, want}) || !slices.Equal(i.Routes, before.Routes) {
				t.Errorf("inside %+v, %v; before %+v", i, err, before)
			}
			_, now, err := b.endpoint(e.NetworkID, e.ID)
			if err != nil || now.Leased6 != want || now.IPv6 != e.IPv6 || now.Leased.IsValid() {
				t.Errorf("on record %+v, %v", now, err)
			}
			for _, a := range []netip.Prefix{e.IPv4, e.IPv6, want} {
				if _, ok := b.Holder(a.Addr()); !ok {
					t.Errorf("nobody is known to have %v", a)
				}
			}
		}
		if err := b.Readdress(e.IPv4.Addr(), netip.MustParsePrefix("192.168.50.99/24"), router, router); err != nil {
			t.Fatal(err)
		}
		if i, err := b.inside(e); err != nil || i.Addrs[0].String() != "192.168.50.99/24" || i.Addrs[1].String() != "fd00:51::5/128" {
			t.Errorf("inside %+v, %v", i, err)
		}
	})
}

// A lease of IPv6 alone names the MAC; it is no reason to refuse another.
func TestMACOfLease6(t *testing.T) {
	own := MAC{2, 0, 0, 0, 0, 0xaa}
	for _, tt := range []struct {
		what  string
		req   func(*Endpoint)
		taken bool
		want  func(MAC) bool
	}{
		{"none", func(*Endpoint) {}, false, func(m MAC) bool { return bytes.Equal(m, byLease6) }},
		{"the user's", func(e *Endpoint) { e.MAC = own }, false, func(m MAC) bool { return bytes.Equal(m, own) }},
		{"another endpoint's", func(*Endpoint) {}, true, func(m MAC) bool { return m != nil && !bytes.Equal(m, byLease6) }},
	} {
		b := newBench(t)
		b.create(lan("net", "eth0", mode.Default))
		if tt.taken {
			o := on("net", "two", 12)
			o.MAC = byLease6
			b.start(o)
		}
		b.holdings = leased6{b.names}
		e := on("net", "one", 11)
		e.IPv6 = netip.MustParsePrefix("fd00:50::11/64")
		tt.req(&e)
		_, err := b.CreateEndpoint(ctx, e)
		if now := b.endpoints[e.ID]; err != nil || !tt.want(now.MAC) {
			t.Errorf("%s: %+v, %v", tt.what, now, err)
		}
	}
}

var byLease6 = MAC{2, 0, 0, 0, 0, 0xbb}

// leased6 is an IPAM whose addresses of IPv6 are leased.
type leased6 struct{ containerNames }

func (leased6) MAC(a netip.Addr) (net.HardwareAddr, bool) {
	return net.HardwareAddr(byLease6), a.Is6()
}

// An address that the IPAM has leased is that of a MAC: another of the user's comes too
// late.
func TestMACOfLease(t *testing.T) {
	leased, own, parent := MAC{2, 0, 0, 0, 0, 0xbb}, MAC{2, 0, 0, 0, 0, 0xaa}, MAC{0, 0x16, 0x3e, 0, 0, 2}
	passthru := mode.Mode{Kind: mode.Macvlan, Name: "passthru"}
	for _, tt := range []struct {
		what            string
		mode            mode.Mode
		to, given, want MAC // no want: refused
	}{
		{"none", mode.Default, leased, nil, leased},
		{"the lease's", mode.Default, leased, leased, leased},
		{"another", mode.Default, leased, own, nil},
		{"passthru, none", passthru, nil, nil, parent},
		{"passthru, the parent's", passthru, nil, parent, parent},
		{"passthru, another", passthru, nil, own, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			b.create(lan("net", "eth0", tt.mode))
			b.holdings = leased4{b.names, tt.to}
			e := on("net", "one", 11)
			e.MAC = tt.given
			_, err := b.CreateEndpoint(ctx, e)
			if tt.want == nil {
				refused(t, err, own.String(), "--ipam-opt dhcp", "--ipam-driver null", e.IPv4.Addr().String())
				return
			}
			if err != nil || !bytes.Equal(b.endpoints[e.ID].MAC, tt.want) {
				t.Errorf("%+v, %v", b.endpoints[e.ID], err)
			}
		})
	}
}

// leased4 is an IPAM whose addresses of IPv4 are leased, to a MAC or a client identifier.
type leased4 struct {
	containerNames
	to MAC
}

func (l leased4) MAC(a netip.Addr) (net.HardwareAddr, bool) {
	return net.HardwareAddr(l.to), a.Is4()
}
