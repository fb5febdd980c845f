package ipam

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// naive is the allocator as one would say it.
type naive struct {
	usable  []netip.Addr
	held    map[netip.Addr]bool
	resting []netip.Addr // oldest first
	cursor  map[netip.Prefix]netip.Addr
}

func (n *naive) pick(within netip.Prefix) (netip.Addr, bool) {
	for _, from := range []netip.Addr{n.cursor[within], {}} {
		for _, a := range n.usable {
			if inside(within, a) && !a.Less(from) && !n.held[a] && !slices.Contains(n.resting, a) {
				n.cursor[within] = a
				return a, true
			}
		}
	}
	for _, a := range n.resting {
		if inside(within, a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func inside(within netip.Prefix, a netip.Addr) bool { return !within.IsValid() || within.Contains(a) }

func TestAllocatorGivesAsTheNaiveOneDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		subnet := netip.MustParsePrefix(rapid.SampledFrom([]string{
			"10.0.0.0/28", "10.0.0.8/29", "255.255.255.240/28", "10.0.0.0/30", "10.0.0.0/31", "10.0.0.1/32",
			"fd00::/124", "fd00::/127", "fd00::1/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124",
		}).Draw(rt, "subnet"))
		ranges := []netip.Prefix{{}, subnet}
		if subnet.Addr().BitLen()-subnet.Bits() >= 3 {
			half := netip.PrefixFrom(subnet.Addr(), subnet.Bits()+1)
			ranges = append(ranges, half, netip.PrefixFrom(lastOf(half).Next(), half.Bits()))
		}
		a := newAllocator(subnet)
		n := &naive{held: map[netip.Addr]bool{}, cursor: map[netip.Prefix]netip.Addr{}}
		first, last := usable(subnet)
		for addr := first; addr.IsValid() && !last.Less(addr); addr = addr.Next() {
			n.usable = append(n.usable, addr)
		}
		take := func(addr netip.Addr) {
			before := slices.Clone(n.resting)
			rested := a.unrest(addr)
			a.used.add(addr)
			if i := slices.Index(n.resting, addr); (i >= 0) != (rested != nil) {
				rt.Fatalf("%v had %v, resting %v", addr, rested, n.resting)
			} else if i >= 0 {
				n.resting = slices.Delete(n.resting, i, i+1)
			}
			if rapid.IntRange(0, 4).Draw(rt, "undo") == 0 {
				if rested != nil {
					a.rest(addr, rested)
				} else {
					a.used.remove(addr)
				}
				n.resting = before
				return
			}
			n.held[addr] = true
		}
		rt.Repeat(map[string]func(*rapid.T){
			"pick": func(rt *rapid.T) {
				within := rapid.SampledFrom(ranges).Draw(rt, "range")
				got, ok := a.pick(within, anyRest)
				want, wantOK := n.pick(within)
				if ok != wantOK || ok && got != want {
					rt.Fatalf("%v, %t; want %v, %t", got, ok, want, wantOK)
				}
				if ok {
					take(got)
				}
			},
			"take": func(rt *rapid.T) {
				if addr := rapid.SampledFrom(n.usable).Draw(rt, "address"); !n.held[addr] {
					take(addr)
				}
			},
			"free": func(rt *rapid.T) {
				addr := rapid.SampledFrom(n.usable).Draw(rt, "address")
				if !n.held[addr] {
					return
				}
				a.rest(addr, &rest{turn: a.deal()})
				delete(n.held, addr)
				n.resting = append(n.resting, addr)
			},
			"forget": func(rt *rapid.T) {
				within := rapid.SampledFrom(ranges).Draw(rt, "range")
				a.forget(within)
				if within.IsValid() {
					delete(n.cursor, within)
				}
			},
		})
	})
}

func anyRest(netip.Addr, *rest) (fits, last bool) { return true, false }

func TestRestingIsBounded(t *testing.T) {
	p := newPool(netip.MustParsePrefix("10.0.0.0/16"))
	i, a := &IPAM{now: time.Now}, p.alloc
	var freed []netip.Addr
	for range 3 * maxResting {
		addr, ok := a.pick(netip.Prefix{}, anyRest)
		if !ok || slices.Contains(freed[max(0, len(freed)-maxResting):], addr) {
			t.Fatalf("%v, %t after %d", addr, ok, len(freed))
		}
		h := &holding{kind: KindEndpoint}
		p.unrest(addr)
		p.keep(addr, h)
		b := &batch{}
		i.free(b, p, addr, h)
		b.finish(nil)
		freed = append(freed, addr)
	}
	if len(a.resting) != maxResting || a.used.tree.Len() != 1 {
		t.Errorf("%d rest in %d runs, want %d in 1", len(a.resting), a.used.tree.Len(), maxResting)
	}
}

func TestUsable(t *testing.T) {
	for _, tt := range []struct{ subnet, first, last string }{
		{"192.168.50.0/24", "192.168.50.1", "192.168.50.254"},
		{"192.168.50.0/30", "192.168.50.1", "192.168.50.2"},
		{"192.168.50.0/31", "192.168.50.0", "192.168.50.1"},
		{"192.168.50.7/32", "192.168.50.7", "192.168.50.7"},
		{"128.0.0.0/1", "128.0.0.1", "255.255.255.254"},
		{"fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"},
		{"fd00::/126", "fd00::1", "fd00::3"},
		{"fd00::/127", "fd00::", "fd00::1"},
		{"fd00::7/128", "fd00::7", "fd00::7"},
	} {
		first, last := usable(netip.MustParsePrefix(tt.subnet))
		if first.String() != tt.first || last.String() != tt.last {
			t.Errorf("%s: %v to %v, want %s to %s", tt.subnet, first, last, tt.first, tt.last)
		}
	}
}

// BenchmarkAllocate is the choice alone: pick, take and put back one address.
func BenchmarkAllocate(b *testing.B) {
	for _, bb := range []struct {
		name, subnet string
		hole         string // the one free address; "" for an empty subnet
	}{
		{"empty_24", "192.168.50.0/24", ""},
		{"full_12", "10.16.0.0/12", "10.23.45.67"},
		{"empty_8", "10.0.0.0/8", ""},
		{"empty_v6_64", "fd00::/64", ""},
	} {
		b.Run(bb.name, func(b *testing.B) {
			a := newAllocator(netip.MustParsePrefix(bb.subnet))
			if bb.hole != "" {
				hole := netip.MustParseAddr(bb.hole)
				a.used.addRun(run{a.first, hole.Prev()})
				a.used.addRun(run{hole.Next(), a.last})
			}
			b.ReportAllocs()
			for b.Loop() {
				addr, ok := a.pick(netip.Prefix{}, anyRest)
				if !ok {
					b.Fatal("none left")
				}
				a.used.add(addr)
				a.used.remove(addr)
			}
		})
	}
}
