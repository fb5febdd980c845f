package netlinkutil_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// BenchmarkLife times what one container does to its link on the real kernel,
// as dockerd and underlay do it: add, move into the container and set up, move
// back, delete. The figures of the parts are metrics of their own, in
// microseconds; they wait for one another's RCU grace periods, so that a loop
// over one part alone would tell less.
func BenchmarkLife(b *testing.B) {
	for _, held := range []int{0, 100} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			w := newKernel(b)
			w.needs(b, "macvlan")
			w.AddNIC("eth0")
			for i := range held {
				_, err := w.AddSubInterface(netlinkutil.SubInterface{Name: fmt.Sprintf("held%d", i), Parent: "eth0", Mode: mode.Default, Alias: "held"})
				must(err)
			}
			s := sub("ul-1", mode.Default)
			var parts [5]time.Duration
			for b.Loop() {
				for i, part := range []func() error{
					func() error { _, err := w.AddSubInterface(s); return err },
					func() error { return w.Move(s.Name) },
					func() error { return w.Return(s.Name) },
					func() error { return w.DeleteLink(s.Name) },
					func() error { _, err := w.Link("eth0"); return err },
				} {
					start := time.Now()
					must(part())
					parts[i] += time.Since(start)
				}
			}
			for i, name := range []string{"add", "move", "return", "delete", "look-up"} {
				b.ReportMetric(float64(parts[i].Microseconds())/float64(b.N), name+"-µs")
			}
		})
	}
}

// BenchmarkAddressing times what an IPAM asks of a host with as many links and
// routes, each with addresses.
func BenchmarkAddressing(b *testing.B) {
	for _, n := range []int{1, 1000} {
		w := newKernel(b)
		w.needs(b, "macvlan")
		w.AddNIC("eth0")
		address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
		w.AddRoute(default4, 0, via("192.168.50.1 eth0"))
		for i := range n {
			s := netlinkutil.SubInterface{Name: fmt.Sprintf("held%d", i), Parent: "eth0", Mode: mode.Default}
			_, err := w.AddSubInterface(s)
			must(err)
			must(w.SetUp(s.Name))
			a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
			w.AddAddress(s.Name, netip.PrefixFrom(a, 24))
			w.AddRoute(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i >> 8), byte(i), 0}), 24), 0, via(a.Next().String()+" "+s.Name))
		}
		for _, ask := range []struct {
			name string
			do   func() error
		}{
			{"Subnets", func() error { _, err := w.Subnets("eth0"); return err }},
			{"DefaultLink", func() error { _, err := w.DefaultLink(false); return err }},
			{"Own", func() error { _, err := w.Own(); return err }},
		} {
			b.Run(fmt.Sprintf("%s/links=%d", ask.name, n), func(b *testing.B) {
				for b.Loop() {
					must(ask.do())
				}
			})
		}
	}
}

// BenchmarkFollow times how long after a link is up in its container that is
// known. It sleeps as long as dockerd takes to give the link its addresses.
func BenchmarkFollow(b *testing.B) {
	w := newKernel(b)
	w.needs(b, "macvlan")
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	var late time.Duration
	for b.Loop() {
		_, err := w.AddSubInterface(s)
		must(err)
		arrived, err := w.Follow(s.Name)
		must(err)
		up := make(chan time.Time)
		go func() {
			must(arrived(b.Context()))
			up <- time.Now()
		}()
		w.Take(s.Name)
		time.Sleep(10 * time.Millisecond)
		w.Arrive(s.Name)
		start := time.Now()
		late += (<-up).Sub(start)
		w.Vanish(s.Name)
	}
	b.ReportMetric(float64(late.Microseconds())/float64(b.N), "late-µs")
}

// BenchmarkReach times what a container with both families costs the host's
// access to it, and what the first and last of a parent cost.
func BenchmarkReach(b *testing.B) {
	for _, m := range []mode.Mode{mode.Default, l2, l3} {
		for _, held := range []int{0, 1000} {
			b.Run(fmt.Sprintf("%s/held=%d", m, held), func(b *testing.B) {
				w := newKernel(b)
				w.needs(b, string(m.Kind))
				w.AddNIC("eth0")
				address(w, "eth0", "192.168.50.2/24", "2001:db8:50::2/64")
				w.enter(b)
				s := shim(m)
				must(w.EnsureShim(s))
				for i := range held {
					r := netlinkutil.HostRoute{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
					if s.Neighbours() {
						r.MAC = mac(1)
					}
					must(w.Reach(s, r))
				}
				rs := hosts(s, "192.168.50.50 192.168.50.2", "2001:db8:50::50 2001:db8:50::2")
				var parts [5]time.Duration
				for b.Loop() {
					for i, part := range []func() error{
						func() error { return cmp.Or(w.Reach(s, rs[0]), w.Reach(s, rs[1])) },
						func() error { return cmp.Or(w.Reach(s, rs[0]), w.Reach(s, rs[1])) },
						func() error { return w.EnsureShim(s) },
						func() error { _, err := w.Reached(s); return err },
						func() error { return cmp.Or(w.Unreach(s, rs[0].Addr), w.Unreach(s, rs[1].Addr)) },
					} {
						start := time.Now()
						must(part())
						parts[i] += time.Since(start)
					}
				}
				for i, name := range []string{"reach", "again", "ensure", "reached", "unreach"} {
					b.ReportMetric(float64(parts[i].Microseconds())/float64(b.N), name+"-µs")
				}
			})
		}
		b.Run(m.String()+"/shim", func(b *testing.B) {
			w := newKernel(b)
			w.needs(b, string(m.Kind))
			w.AddNIC("eth0")
			w.enter(b)
			s := shim(m)
			var parts [2]time.Duration
			for b.Loop() {
				for i, part := range []func() error{func() error { return w.EnsureShim(s) }, func() error { return w.DeleteShim(s) }} {
					start := time.Now()
					must(part())
					parts[i] += time.Since(start)
				}
			}
			b.ReportMetric(float64(parts[0].Microseconds())/float64(b.N), "make-µs")
			b.ReportMetric(float64(parts[1].Microseconds())/float64(b.N), "delete-µs")
		})
	}
}
