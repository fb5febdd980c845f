package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"underlay/internal/options"
)

// leases is a LAN's DHCP server: it gives .100, .101 and so on, or what it is told.
type leases struct {
	mu     sync.Mutex
	did    []string
	gives  []string
	next   byte
	fails  error
	subnet string
	router string
	during func() // called in Take
	spent  string // comes with the error
}

func (l *leases) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.did = append(l.did, fmt.Sprintf(format, args...))
}

func (l *leases) Learn(_ context.Context, link string, _ options.DHCP) (netip.Prefix, netip.Addr, error) {
	l.note("learn %s", link)
	if l.fails != nil {
		return netip.Prefix{}, netip.Addr{}, l.fails
	}
	router, _ := netip.ParseAddr(l.router)
	return netip.MustParsePrefix(l.subnet), router, nil
}

func (l *leases) Take(_ context.Context, r LeaseRequest) (netip.Addr, error) {
	what := "any"
	if r.Addr.IsValid() {
		what = r.Addr.String()
	}
	l.note("take %s for %q in %v", what, r.Name, r.Subnet)
	if l.during != nil {
		l.during()
	}
	switch {
	case l.fails != nil:
		spent, _ := netip.ParseAddr(l.spent)
		return spent, l.fails
	case len(l.gives) > 0:
		a := netip.MustParseAddr(l.gives[0])
		l.gives = l.gives[1:]
		return a, nil
	case r.Addr.IsValid():
		return r.Addr, nil
	}
	l.next++
	if r.Subnet.Addr().Is6() {
		return netip.MustParseAddr(fmt.Sprintf("fd00:50::%d", 99+l.next)), nil
	}
	return netip.AddrFrom4([4]byte{192, 168, 50, 99 + l.next}), nil
}

func (l *leases) Refuse(a netip.Addr, _ error) { l.note("refuse %v", a) }
func (l *leases) Free(a netip.Addr)            { l.note("free %v", a) }

// Has goes by what was done.
func (l *leases) Has(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	has := false
	for _, d := range l.did {
		has = has && !strings.HasSuffix(d, " "+a.String()) || strings.HasPrefix(d, "take "+a.String()+" ")
	}
	return has
}

// leaseBench is a LAN with a server, and one network on it.
type leaseBench struct {
	*lanBench
	server *leases
	pool   string
}

// withServer is onLAN with a server.
func withServer(t *testing.T, f func(t *testing.T, b *leaseBench)) {
	t.Helper()
	onLAN(t, func(t *testing.T, b *lanBench) {
		s := &leases{subnet: "192.168.50.0/24", router: "192.168.50.1"}
		b.config.Leases, b.IPAM.leases = s, s
		l := &leaseBench{lanBench: b, server: s}
		l.pool = b.create("net eth0 192.168.50.0/24 192.168.50.1", "dhcp=true")
		l.did() // nothing for the gateway
		f(t, l)
	})
}

// ask is what plugin does of dockerd's request.
func (b *leaseBench) ask(r AddressRequest) (netip.Addr, error) {
	r, err := b.Lease(b.t.Context(), r)
	if err != nil {
		return netip.Addr{}, err
	}
	p, err := b.RequestAddress(b.t.Context(), r)
	return p.Addr(), err
}

// did checks what the server was asked since the last time.
func (b *leaseBench) did(want ...string) {
	b.t.Helper()
	b.server.mu.Lock()
	defer b.server.mu.Unlock()
	if d := cmp.Diff(want, b.server.did); d != "" {
		b.t.Errorf("the server was asked (-want +got):\n%s", d)
	}
	b.server.did = nil
}

func TestLeaseThenRelease(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		for _, r := range []struct {
			AddressRequest
			want, take string
		}{
			{AddressRequest{Name: "web"}, "192.168.50.100", `take any for "web" in 192.168.50.0/24`},
			{AddressRequest{}, "192.168.50.101", `take any for "" in 192.168.50.0/24`},
			{AddressRequest{Name: "db", Addr: netip.MustParseAddr("192.168.50.7")}, "192.168.50.7", `take 192.168.50.7 for "db" in 192.168.50.0/24`},
			{AddressRequest{Addr: netip.MustParseAddr("192.168.50.8")}, "192.168.50.8", `take 192.168.50.8 for "" in 192.168.50.0/24`},
		} {
			r.PoolID = b.pool
			addr, err := b.ask(r.AddressRequest)
			if err != nil || addr.String() != r.want || !b.Held(addr) {
				t.Fatalf("%+v: %v, %v", r, addr, err)
			}
			b.did(r.take)
			b.ends[addr] = "endpoint"
		}
		for _, a := range []string{"192.168.50.100", "192.168.50.7"} {
			addr := netip.MustParseAddr(a)
			b.free(b.pool, a) // the endpoint is there still
			b.did()
			delete(b.ends, addr)
			b.free(b.pool, a)
			b.did("free " + a)
			if b.Held(addr) {
				t.Errorf("%s is held", a)
			}
		}
		// What rests is the server's to give again, not IPAM's.
		if addr, err := b.ask(AddressRequest{PoolID: b.pool, Name: "web"}); err != nil || addr.String() != "192.168.50.102" {
			t.Errorf("%v, %v", addr, err)
		}
		if n := b.lan.questions(); n != 0 {
			t.Errorf("%d questions to the LAN about what its server has given: %v", n, b.lan.asked)
		}
	})
}

// What is not to be had leaves nothing behind at the server.
func TestLeaseRefused(t *testing.T) {
	anyOne := AddressRequest{}
	for _, tt := range []struct {
		what  string
		r     AddressRequest
		gives string
		prep  func(b *leaseBench)
		words []string
		did   []string
	}{
		{"the server does not answer", anyOne, "", func(b *leaseBench) { b.server.fails = errors.New("no dhcp server answers") },
			[]string{"no dhcp server answers"}, []string{"take any"}},
		{"an address of the host's own", anyOne, "192.168.50.2", func(b *leaseBench) {
			b.lan.taken[netip.MustParseAddr("192.168.50.2")] = "the host's own, on eth0"
			b.IPAM.takenAt = b.IPAM.takenAt.Add(-takenFor * 100)
			b.refresh()
		}, []string{"the DHCP server has given 192.168.50.2", "the host's own"}, []string{"take any", "refuse 192.168.50.2"}},
		{"one that has come to the host meanwhile", anyOne, "192.168.50.2", func(b *leaseBench) {
			b.lan.taken[netip.MustParseAddr("192.168.50.2")] = "the host's own, on eth0"
			b.IPAM.takenAt = b.IPAM.takenAt.Add(-takenFor * 100)
		}, []string{"192.168.50.2", "the host's own"}, []string{"take any", "refuse 192.168.50.2"}},
		{"a broadcast address", anyOne, "192.168.50.255", nil, []string{"broadcast"}, []string{"take any", "refuse 192.168.50.255"}},
		{"the gateway's", anyOne, "192.168.50.1", nil, []string{"192.168.50.1"}, []string{"take any", "refuse 192.168.50.1"}},
		{"one of another container", anyOne, "192.168.50.100", func(b *leaseBench) {
			if _, err := b.ask(AddressRequest{PoolID: b.pool, Name: "web"}); err != nil {
				b.t.Fatal(err)
			}
			b.ends[netip.MustParseAddr("192.168.50.100")] = "endpoint 1"
			b.server.did = nil
		}, []string{"192.168.50.100", "endpoint 1"}, []string{"take any", "refuse 192.168.50.100"}},
		{"one outside", AddressRequest{Addr: netip.MustParseAddr("10.0.0.5")}, "", nil, []string{"10.0.0.5", "outside"}, nil},
		{"one that another endpoint has", AddressRequest{Addr: netip.MustParseAddr("192.168.50.100"), Name: "db"}, "", func(b *leaseBench) {
			if _, err := b.ask(AddressRequest{PoolID: b.pool, Name: "web"}); err != nil {
				b.t.Fatal(err)
			}
			b.ends[netip.MustParseAddr("192.168.50.100")] = "endpoint 1"
			b.server.did = nil
		}, []string{"endpoint 1"}, nil},
		{"a full disk", anyOne, "", func(b *leaseBench) { b.store.Close() }, []string{"closed"}, []string{"take any", "free 192.168.50.100"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			withServer(t, func(t *testing.T, b *leaseBench) {
				if tt.prep != nil {
					tt.prep(b)
				}
				if tt.gives != "" {
					b.server.gives = []string{tt.gives}
				}
				tt.r.PoolID = b.pool
				_, err := b.ask(tt.r)
				wantError(t, err, tt.words...)
				for i := range b.server.did {
					b.server.did[i], _, _ = strings.Cut(b.server.did[i], " for ")
				}
				b.did(tt.did...)
			})
		})
	}
}

// The client asks the LAN about what the server gives: a machine that was heard before
// that has gone. One that is heard since has come in between.
func TestLeaseOfASeenAddress(t *testing.T) {
	const addr = "192.168.50.100"
	for _, tt := range []struct {
		what           string
		before, during bool // when it is heard
		claim          bool
		taken          bool
	}{
		{"before", true, false, false, false},
		{"a claim before", true, false, true, false},
		{"since", false, true, false, true},
		{"a claim since", false, true, true, true},
		{"before and since", true, true, false, true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			withServer(t, func(t *testing.T, b *leaseBench) {
				if tt.before {
					b.hear("eth0", addr, other, tt.claim)
				}
				b.pass(time.Second)
				b.server.during = func() {
					if tt.during {
						b.hear("eth0", addr, other, tt.claim)
					}
				}
				got, err := b.ask(AddressRequest{PoolID: b.pool, Name: "web"})
				take := `take any for "web" in 192.168.50.0/24`
				if tt.taken {
					wantError(t, err, addr, other)
					b.did(take, "refuse "+addr)
				} else {
					if err != nil || got.String() != addr {
						t.Errorf("%v, %v", got, err)
					}
					b.did(take)
				}
				if n := b.lan.questions(); n != 0 {
					t.Errorf("%d questions to the LAN", n)
				}
				b.sound()
			})
		})
	}
}

// A lease that comes when nobody waits any more is given back.
func TestLeaseTooLate(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		r, err := b.Lease(t.Context(), AddressRequest{PoolID: b.pool, Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.RequestAddress(gone, r); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		b.did(`take any for "web" in 192.168.50.0/24`, "free 192.168.50.100")
	})
}

// The pool may have gone while the server was asked.
func TestLeaseWithoutPool(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		r, err := b.Lease(t.Context(), AddressRequest{PoolID: b.pool, Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		b.free(b.pool, "192.168.50.1")
		b.release(b.pool)
		b.delete("net")
		b.server.did = nil
		if _, err = b.RequestAddress(t.Context(), r); !errors.Is(err, ErrUnknownPool) {
			t.Errorf("%v", err)
		}
		b.did("free 192.168.50.100")
		if r, err := b.Lease(t.Context(), AddressRequest{PoolID: b.pool}); err != nil || r.leased {
			t.Errorf("%+v, %v", r, err)
		}
		if _, err := b.Lease(t.Context(), AddressRequest{PoolID: "nonsense"}); err == nil {
			t.Error("a pool of nonsense")
		}
		b.did()
	})
}

// dockerd asks again after its restart for what is held: no server is to be asked.
func TestLeaseReplay(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		addr, err := b.ask(AddressRequest{PoolID: b.pool, Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		b.ends[addr] = "endpoint"
		b.did(`take any for "web" in 192.168.50.0/24`)
		b.Daemon()
		r := poolRequest("192.168.50.0/24", "")
		r.Options = opt("dhcp=true parent=eth0")
		if r, err = b.Learn(t.Context(), r); err != nil || r.learned != nil {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err := b.RequestPool(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		for _, r := range []AddressRequest{{Addr: netip.MustParseAddr("192.168.50.1"), Gateway: true}, {Addr: addr}} {
			r.PoolID = b.pool
			if got, err := b.ask(r); err != nil || got != r.Addr {
				t.Errorf("%+v: %v, %v", r, got, err)
			}
		}
		b.did()
	})
}

// What a network keeps for itself is no lease: --gateway and --aux-address.
func TestLeaseReserved(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		b.lan.links["eth1"] = nil
		r := poolRequest("192.168.60.0/24", "")
		r.Options = opt("dhcp=true")
		p, err := b.RequestPool(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []AddressRequest{{Gateway: true}, {Addr: netip.MustParseAddr("192.168.60.9")}} {
			r.PoolID = p.ID
			if _, err := b.ask(r); err != nil {
				t.Errorf("%+v: %v", r, err)
			}
		}
		b.did()
	})
}

// A pool that goes takes its leases with it.
func TestLeaseOfADroppedPool(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		if _, err := b.ask(AddressRequest{PoolID: b.pool, Name: "web"}); err != nil {
			t.Fatal(err)
		}
		b.server.did = nil
		b.release(b.pool)
		b.delete("net")
		b.pass(2 * b.grace)
		b.idle()
		b.clear()
		b.idle()
		if s := b.Snapshot(); len(s.Pools) != 0 {
			t.Fatalf("%+v", s.Pools)
		}
		freed := 0
		for _, d := range b.server.did {
			if d == "free 192.168.50.100" {
				freed++
			}
		}
		if freed != 1 {
			t.Errorf("%q", b.server.did)
		}
	})
}

func TestLearn(t *testing.T) {
	for _, tt := range []struct {
		what    string
		request PoolRequest
		prep    func(*leaseBench)
		did     []string
		subnet  string // learned
		words   []string
	}{
		{"of the parent", PoolRequest{Options: opt("dhcp=true parent=eth1")}, nil, []string{"learn eth1"}, "192.168.70.0/24", nil},
		{"of the default route's", PoolRequest{Options: opt("dhcp=true")}, nil, []string{"learn eth0"}, "192.168.70.0/24", nil},
		{"without a default route", PoolRequest{Options: opt("dhcp=true")}, func(b *leaseBench) { b.lan.byFamily[false] = "" }, nil, "", []string{"no default route", "--ipam-opt parent="}},
		{"named", PoolRequest{Subnet: netip.MustParsePrefix("192.168.70.0/24"), Options: opt("dhcp=true")}, nil, nil, "", nil},
		{"named by option", PoolRequest{Options: opt("dhcp=true subnet=192.168.70.0/24")}, nil, nil, "", nil},
		{"IPv6", PoolRequest{V6: true, Options: opt("dhcp=true")}, nil, nil, "", nil},
		{"no DHCP", PoolRequest{Options: opt("parent=eth1")}, nil, nil, "", nil},
		{"nonsense", PoolRequest{Options: opt("dhcp=perhaps")}, nil, nil, "", []string{"perhaps"}},
		{"silence", PoolRequest{Options: opt("dhcp=true parent=eth1")}, func(b *leaseBench) { b.server.fails = errors.New("no dhcp server answers on eth1") },
			[]string{"learn eth1"}, "", []string{"no dhcp server answers on eth1", "--subnet and --gateway"}},
		{"no subnet", PoolRequest{Options: opt("dhcp=true parent=eth1")}, func(b *leaseBench) { b.server.subnet = "127.0.0.0/8" }, []string{"learn eth1"}, "", []string{"127.0.0.0/8"}},
		{"no client", PoolRequest{Options: opt("dhcp=true parent=eth1")}, func(b *leaseBench) { b.IPAM.leases = nil }, nil, "", []string{"no DHCP client"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			withServer(t, func(t *testing.T, b *leaseBench) {
				b.server.subnet, b.server.router = "192.168.70.0/24", "192.168.70.254"
				b.lan.byFamily[false] = "eth0"
				if tt.prep != nil {
					tt.prep(b)
				}
				r, err := b.Learn(t.Context(), tt.request)
				b.did(tt.did...)
				if tt.words != nil {
					wantError(t, err, tt.words...)
					return
				}
				if err != nil || (r.learned != nil) != (tt.subnet != "") {
					t.Fatalf("%+v, %v", r, err)
				}
				if tt.subnet == "" {
					return
				}
				p, err := b.RequestPool(t.Context(), r)
				if err != nil || p.Subnet.String() != tt.subnet {
					t.Fatalf("%+v, %v", p, err)
				}
				if gw, err := b.ask(AddressRequest{PoolID: p.ID, Gateway: true}); err != nil || gw.String() != "192.168.70.254" {
					t.Errorf("gateway %v, %v", gw, err)
				}
				b.did()
			})
		})
	}
}

func TestAgreeOnLeases(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		r := poolRequest("192.168.60.0/24", "")
		r.Options = opt("dhcp=true")
		if _, err := b.RequestPool(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		n := network("192.168.60.0/24")
		n.Parent = "eth0"
		routed := n
		routed.Routed = true
		for _, tt := range []struct {
			n        NetworkPools
			isolated bool
			words    []string
		}{
			{n, false, nil},
			{n, true, []string{"192.168.60.0/24", "internal", "dhcp"}},
			{routed, false, []string{"192.168.60.0/24", "l3", "ipvlan_mode=l2"}},
		} {
			err := b.Agree(tt.n, tt.isolated)
			if tt.words != nil {
				wantError(t, err, tt.words...)
			} else if err != nil {
				t.Error(err)
			}
		}
	})
}

// A call that was cut off by the plugin's end is made again: the container is who it
// was to the server, not one more.
func TestLeaseCutOff(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		r := AddressRequest{PoolID: b.pool, Name: "web", Addr: netip.MustParseAddr("192.168.50.7")}
		take := `take 192.168.50.7 for "web" in 192.168.50.0/24`
		if _, err := b.ask(r); err != nil {
			t.Fatal(err)
		}
		b.did(take)
		b.restart()
		if addr, err := b.ask(r); err != nil || addr != r.Addr {
			t.Fatalf("%v, %v", addr, err)
		}
		b.did("free 192.168.50.7", take)
	})
}

// dockerd before version 29 asks for a container's address as for that of a network
// which is being created: it has no lease then. After its own restart it asks for
// what is held, and for what containers are started with meanwhile.
func TestWhatIsUnleased(t *testing.T) {
	withServer(t, func(t *testing.T, b *leaseBench) {
		addr := netip.MustParseAddr("192.168.50.70")
		b.pass(2 * replayWithin)
		other, err := b.RequestPool(t.Context(), PoolRequest{Subnet: netip.MustParsePrefix("192.168.50.0/24"), Options: map[string]string{"dhcp": "true"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.ask(AddressRequest{PoolID: b.pool, Addr: addr}); err != nil {
			t.Fatal(err)
		}
		if !b.Unleased(addr) {
			t.Error("it counts as leased")
		}
		if err := errors.Join(b.ReleaseAddress(t.Context(), b.pool, addr), b.ReleasePool(t.Context(), other.ID)); err != nil {
			t.Fatal(err)
		}
		b.later()
		b.Daemon()
		if _, err := b.RequestPool(t.Context(), PoolRequest{Subnet: netip.MustParsePrefix("192.168.50.0/24"), Options: map[string]string{"dhcp": "true"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ask(AddressRequest{PoolID: b.pool, Addr: addr}); err != nil {
			t.Fatal(err)
		}
		if b.Unleased(addr) || !b.server.Has(addr) {
			t.Errorf("started in the replay, it has no lease: %q", b.server.did)
		}
	})
}

// The pool of IPv6 is leased as that of IPv4 is; its subnet and router are the NIC's.
func TestLease6(t *testing.T) {
	for _, dhcp := range []string{"v6", "both"} {
		withServer(t, func(t *testing.T, b *leaseBench) {
			b.lan.links["eth0"] = append(b.lan.links["eth0"], HostSubnet{Prefix: netip.MustParsePrefix("fd00:50::/64"), Gateway: netip.MustParseAddr("fe80::1")})
			r := PoolRequest{V6: true, Options: opt("dhcp=" + dhcp + " parent=eth0")}
			r, err := b.Learn(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			p, err := b.RequestPool(t.Context(), r)
			if err != nil || p.Subnet.String() != "fd00:50::/64" {
				t.Fatalf("%+v, %v", p, err)
			}
			n := network("fd00:50::/64")
			n.Parent = "eth0"
			wantV4 := dhcp == "both"
			if err := b.Agree(n, false); (err != nil) != wantV4 {
				t.Errorf("%s: %v", dhcp, err)
			}
			gw, err := b.ask(AddressRequest{PoolID: p.ID, Gateway: true})
			if err != nil || gw.String() != "fe80::1" {
				t.Errorf("gateway %v, %v", gw, err)
			}
			b.NetworkCreated("net6", n)
			b.did()
			got, err := b.ask(AddressRequest{PoolID: p.ID, Name: "web"})
			if err != nil || got.String() != "fd00:50::100" {
				t.Errorf("%v, %v", got, err)
			}
			if got, err := b.ask(AddressRequest{PoolID: p.ID, Addr: netip.MustParseAddr("fd00:50::7")}); err != nil || got.String() != "fd00:50::7" {
				t.Errorf("%v, %v", got, err)
			}
			b.did(`take any for "web" in fd00:50::/64`, `take fd00:50::7 for "" in fd00:50::/64`)
			if err := b.ReleaseAddress(t.Context(), p.ID, got); err != nil {
				t.Fatal(err)
			}
			b.did("free fd00:50::100")
			r = poolRequest("fd00:50::/64", "fd00:50::1:0/112")
			r.Options = opt("dhcp=" + dhcp)
			_, err = b.Learn(t.Context(), r)
			wantError(t, err, "--ip-range", "dhcp")
		})
	}
}

// A container that gets no lease of IPv6 does not start, and dockerd does not free its
// address of IPv4: this is done for it, unless an endpoint has the address.
func TestLease6Fails(t *testing.T) {
	const four = "192.168.50.100"
	for _, tt := range []struct {
		what, spent string
		prep        func(b *leaseBench)
		freed       bool
	}{
		{"a name", four, nil, true},
		{"not known", "", nil, false},
		{"an endpoint has it", four, func(b *leaseBench) { b.ends[netip.MustParseAddr(four)] = "endpoint 1" }, false},
		{"the gateway", "192.168.50.1", nil, false},
		{"of no pool", "10.0.0.5", nil, false},
		{"free", "192.168.50.70", nil, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			withServer(t, func(t *testing.T, b *leaseBench) {
				b.lan.links["eth0"] = append(b.lan.links["eth0"], HostSubnet{Prefix: netip.MustParsePrefix("fd00:50::/64"), Gateway: netip.MustParseAddr("fe80::1")})
				p6, err := b.RequestPool(t.Context(), PoolRequest{V6: true, Options: opt("dhcp=both parent=eth0")})
				if err != nil {
					t.Fatal(err)
				}
				n := network("fd00:50::/64")
				n.Parent = "eth0"
				b.NetworkCreated("net6", n)
				addr, err := b.ask(AddressRequest{PoolID: b.pool, Name: "web"})
				if err != nil || addr.String() != four {
					t.Fatalf("%v, %v", addr, err)
				}
				if tt.prep != nil {
					tt.prep(b)
				}
				b.server.did = nil
				b.server.fails, b.server.spent = errors.New("no DHCPv6 server answers"), tt.spent
				_, err = b.ask(AddressRequest{PoolID: p6.ID, Name: "web"})
				wantError(t, err, "no DHCPv6 server answers")
				want := []string{`take any for "web" in fd00:50::/64`}
				if tt.freed {
					want = append(want, "free "+four)
				}
				b.did(want...)
				if b.Held(addr) == tt.freed || !b.Held(netip.MustParseAddr("192.168.50.1")) {
					t.Errorf("held: %t", b.Held(addr))
				}
				// dockerd may free it all the same.
				b.free(b.pool, four)
				b.sound()
				b.restart()
				if b.Held(addr) != (tt.what == "an endpoint has it") {
					t.Errorf("on disk, held: %t", b.Held(addr))
				}
			})
		})
	}
}

// A network has the families that are to be leased.
func TestAgreeOnFamilies(t *testing.T) {
	for _, tt := range []struct {
		dhcp, subnet string
		words        []string
	}{
		{"v4", "192.168.60.0/24", nil},
		{"v6", "192.168.60.0/24", []string{"--ipv6", "dhcp=v4"}},
		{"both", "192.168.60.0/24", []string{"--ipv6", "dhcp=v4"}},
		{"v6", "fd00:60::/64", nil},
		{"v4", "fd00:60::/64", []string{"--ipv4=false", "dhcp=v6"}},
		{"both", "fd00:60::/64", []string{"--ipv4=false", "dhcp=v6"}},
	} {
		withServer(t, func(t *testing.T, b *leaseBench) {
			r := poolRequest(tt.subnet, "")
			r.Options = opt("dhcp=" + tt.dhcp)
			if _, err := b.RequestPool(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			n := network(tt.subnet)
			n.Parent = "eth0"
			if err := b.Agree(n, false); tt.words != nil {
				wantError(t, err, tt.words...)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}
