package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"underlay/internal/store"
)

func TestManyAtOnce(t *testing.T) {
	b := newBench(t)
	b.IPAM.now = time.Now
	id := b.pool("10.0.0.0/20", "10.0.8.0/21")
	const n = 500
	var mu sync.Mutex
	got := map[netip.Prefix]int{}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r := AddressRequest{PoolID: id}
			switch i % 5 {
			case 1:
				r.PoolID = "10.0.0.0/20"
			case 2: // two want the same
				r.Addr = netip.AddrFrom4([4]byte{10, 0, 8, byte(i / 10)})
			case 3: // and free it again
				a, err := b.RequestAddress(t.Context(), r)
				if err == nil {
					err = b.ReleaseAddress(t.Context(), id, a.Addr())
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
			a, err := b.RequestAddress(t.Context(), r)
			if err != nil {
				if !errors.Is(err, ErrTaken) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got[a]++
		})
	}
	wg.Wait()
	for a, n := range got {
		if n > 1 {
			t.Errorf("%v was given %d times", a, n)
		}
	}
	if held := b.Snapshot().Pools[0].Held; held != len(got) {
		t.Errorf("%d are held, %d were given", held, len(got))
	}
	before := b.Snapshot()
	b.restart()
	if after := b.Snapshot(); !same(before, after) {
		t.Errorf("after a restart %d are held, before %d", after.Pools[0].Held, before.Pools[0].Held)
	}
}

func TestPoolsAtOnce(t *testing.T) {
	b := newBench(t)
	b.IPAM.now = time.Now
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[netip.Prefix]int{}
	for range 32 {
		wg.Go(func() { // any
			p, err := b.RequestPool(t.Context(), PoolRequest{Options: private})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			got[p.Subnet]++
			mu.Unlock()
		})
		wg.Go(func() { // one comes and goes
			p, err := b.RequestPool(t.Context(), poolRequest("10.1.0.0/24", ""))
			if err == nil {
				_, err = b.RequestAddress(t.Context(), AddressRequest{PoolID: p.ID, Gateway: true})
			}
			if err == nil {
				err = b.ReleasePool(t.Context(), p.ID)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(got) != 32 || len(b.Snapshot().Pools) != 32 {
		t.Errorf("%d subnets were given, %d are held, want 32", len(got), len(b.Snapshot().Pools))
	}
}

// A disk that fails leaves memory and disk as they were.
func TestFailingDisk(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "gw", "192.168.50.1/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.1"))
	other := b.pool("192.168.60.0/24", "")
	b.NetworkCreated("n2", network("192.168.60.0/24"))
	b.gets(other, "", "192.168.60.1/24")
	b.gets(id, "", "192.168.50.2/24", "192.168.50.3/24")
	b.free(id, "192.168.50.2")
	before := b.Snapshot()
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"request a pool":      func() error { _, err := b.RequestPool(ctx, poolRequest("10.0.0.0/24", "")); return err },
		"request any pool":    func() error { _, err := b.RequestPool(ctx, PoolRequest{Options: private}); return err },
		"request a held pool": func() error { _, err := b.RequestPool(ctx, poolRequest("192.168.50.0/24", "")); return err },
		"replay a pool":       func() error { b.Daemon(); _, err := b.RequestPool(ctx, poolRequest("192.168.50.0/24", "")); return err },
		"release a pool":      func() error { return b.ReleasePool(ctx, other) },
		"delete a network": func() error {
			b.pools.Scan(func(p *pool) bool { p.refs = 0; return true })
			return b.NetworkDeleted(ctx, "n2")
		},
		"request any address":   func() error { _, err := b.get(id, ""); return err },
		"request one address":   func() error { _, err := b.get(id, "192.168.50.9"); return err },
		"request a resting one": func() error { _, err := b.get(id, "192.168.50.2"); return err },
		"release an address":    func() error { return b.ReleaseAddress(ctx, id, netip.MustParseAddr("192.168.50.3")) },
	} {
		refs := map[netip.Prefix]int{}
		b.pools.Scan(func(p *pool) bool { refs[p.subnet] = p.refs; return true })
		if err := call(); !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
		b.pools.Scan(func(p *pool) bool {
			p.refs = refs[p.subnet]
			if p.settled != nil || p.sound() != nil {
				t.Errorf("%s leaves %v unsettled: %t, sound: %v", name, p.subnet, p.settled != nil, p.sound())
			}
			return true
		})
		if after := b.Snapshot(); !same(before, after) {
			t.Errorf("%s leaves\n%+v, before\n%+v", name, after, before)
		}
	}
	b.restart()
	if after := b.Snapshot(); !same(before, after) {
		t.Errorf("on disk is\n%+v, in memory was\n%+v", after, before)
	}
	// The order is on disk, too.
	b.gets(id, "", "192.168.50.4/24")
}

// A caller that goes away before the disk is done leaves nothing.
func TestSlowDisk(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n1", network("192.168.50.0/24"))
	b.gets(id, "", "192.168.50.1/24", "192.168.50.2/24")
	b.IPAM.now = time.Now
	slow := make([]store.Change, 50_000)
	for i := range slow {
		slow[i] = store.Change{Bucket: "junk", Key: fmt.Append(nil, i), Value: make([]byte, 64)}
	}
	done := b.store.Submit(slow...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for _, call := range []func() error{
		func() error { _, err := b.RequestAddress(ctx, AddressRequest{PoolID: id}); return err },
		func() error { _, err := b.RequestPool(ctx, poolRequest("10.0.0.0/24", "")); return err },
		func() error { return b.ReleaseAddress(ctx, id, netip.MustParseAddr("192.168.50.2")) },
	} {
		wg.Go(func() {
			if err := call(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want the deadline exceeded", err)
			}
		})
	}
	wg.Wait()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s := b.Snapshot()
		if len(s.Pools) == 1 && s.Pools[0].Held == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left: %+v", s)
		}
	}
	b.restart()
	b.held("192.168.50.0/24", "endpoint 192.168.50.1")
}

func TestLoading(t *testing.T) {
	b := newBench(t)
	const n = 100_000
	p := newPool(netip.MustParsePrefix("10.0.0.0/8"))
	p.refs = 1
	changes := []store.Change{p.putSelf()}
	for addr := p.alloc.first; len(changes) <= n; addr = addr.Next() {
		changes = append(changes, p.putHeld(addr, &holding{kind: KindEndpoint, name: "web", since: time.Now()}))
	}
	for some := range slices.Chunk(changes, 2000) {
		if err := b.store.Apply(some...); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	b.restart()
	t.Logf("%d addresses in %v", n, time.Since(start))
	if held := b.Snapshot().Pools[0].Held; held != n {
		t.Errorf("%d are held", held)
	}
	b.gets("10.0.0.0/8", "", "10.1.134.161/8")
}

// Memory follows the addresses held, not the size of pools.
func TestMemory(t *testing.T) {
	used := func(f func() any) uint64 {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		kept := f()
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(kept)
		return after.HeapAlloc - min(before.HeapAlloc, after.HeapAlloc)
	}
	for _, subnet := range []string{"192.168.50.0/30", "192.168.50.0/24", "10.0.0.0/8", "fd00::/64", "fd00::/8"} {
		const n = 100
		each := used(func() any {
			pools := make([]*pool, n)
			for i := range pools {
				p := newPool(netip.MustParsePrefix(subnet))
				addr, _ := p.alloc.pick(netip.Prefix{}, anyRest)
				p.keep(addr, &holding{})
				pools[i] = p
			}
			return pools
		}) / n
		t.Logf("pool %s with one address: %d bytes", subnet, each)
		if each > 4096 {
			t.Errorf("pool %s takes %d bytes", subnet, each)
		}
	}
	const n = 100_000
	each := used(func() any {
		p := newPool(netip.MustParsePrefix("10.0.0.0/8"))
		for range n {
			addr, _ := p.alloc.pick(netip.Prefix{}, anyRest)
			p.keep(addr, &holding{})
		}
		return p
	}) / n
	t.Logf("an address: %d bytes", each)
	if each > 512 {
		t.Errorf("an address takes %d bytes", each)
	}
}

// BenchmarkAddress is all of a request and a release but the disk.
func BenchmarkAddress(b *testing.B) {
	for _, bb := range []struct{ name, subnet, hole string }{
		{"empty_24", "192.168.50.0/24", ""},
		{"full_12", "10.16.0.0/12", "10.23.45.67"},
		{"empty_v6_64", "fd00::/64", ""},
	} {
		b.Run(bb.name, func(b *testing.B) {
			p := newPool(netip.MustParsePrefix(bb.subnet))
			p.refs = 1
			if bb.hole != "" {
				hole := netip.MustParseAddr(bb.hole)
				for addr := p.alloc.first; addr != p.alloc.last.Next(); addr = addr.Next() {
					if addr != hole {
						p.keep(addr, &holding{kind: KindEndpoint})
					}
				}
			}
			i := newBench(b).IPAM
			i.pools.Set(p)
			b.ReportAllocs()
			for b.Loop() {
				r := AddressRequest{PoolID: bb.subnet}
				addr, _, err := i.choose(p, p.termsOf(r.PoolID, netip.Prefix{}), r, netip.Addr{})
				if err != nil {
					b.Fatal(err)
				}
				request := &batch{}
				i.hold(request, p, addr, i.newHolding(p, r))
				request.finish(nil)
				h := p.held[addr]
				if !i.keepsOn(p, addr, h) {
					release := &batch{}
					i.free(release, p, addr, h)
					release.finish(nil)
				}
			}
		})
	}
}

// BenchmarkDurable is request and release with the disk, by 64 callers.
func BenchmarkDurable(b *testing.B) {
	w := newBench(b)
	w.IPAM.now = time.Now
	id := w.pool("10.0.0.0/12", "")
	b.SetParallelism(max(1, 64/runtime.GOMAXPROCS(0)))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a, err := w.RequestAddress(b.Context(), AddressRequest{PoolID: id, Name: "web"})
			if err == nil {
				err = w.ReleaseAddress(b.Context(), id, a.Addr())
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
}
