package netlinkutil_test

import (
	"fmt"
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
