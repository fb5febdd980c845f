package store

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
)

// Records put and deleted, each on disk before the next: by one caller, and by
// many that share a sync.
func BenchmarkApply(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := opened(b, filepath.Join(b.TempDir(), "state.db"))
			var n atomic.Int64
			b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				key := fmt.Append(nil, "record ", n.Add(1))
				for pb.Next() {
					if err := s.Apply(Change{"a", key, key}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
