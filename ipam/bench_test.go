package ipam

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"underlay/internal/store"
)

// empty is a LAN on which nobody has any address. It says so at once.
type empty struct{}

func (empty) Watch([]string) {}

func (empty) Probe(context.Context, string, []netip.Addr, time.Duration) (map[netip.Addr]net.HardwareAddr, error) {
	return nil, nil
}

// lanPool makes an IPAM with one pool on a LAN, and in it so many addresses
// held, resting, and in use by others.
func lanPool(b *testing.B, subnet, conflict string, held, resting, inUse int) (*IPAM, *pool, *terms) {
	b.Helper()
	st, err := store.Open(filepath.Join(b.TempDir(), "state.db"))
	if err != nil {
		b.Fatal(err)
	}
	i, err := New(st, nil, Config{Detector: empty{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		i.Close()
		st.Close()
	})
	got, err := i.RequestPool(b.Context(), PoolRequest{Subnet: netip.MustParsePrefix(subnet), Options: map[string]string{"conflict": conflict}})
	if err != nil {
		b.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pool(got.Subnet)
	addr := p.alloc.first
	for n := range held + resting + inUse {
		switch addr = addr.Next(); {
		case n < held:
			p.keep(addr, &holding{kind: KindEndpoint, name: fmt.Sprint("web", n), since: i.now(), attached: true})
		case n < held+resting:
			p.rest(addr, &rest{turn: p.alloc.deal(), name: fmt.Sprint("web", n), since: i.now()})
		default:
			i.see(p, addr, net.HardwareAddr{2, 0, 0, 0, byte(n >> 8), byte(n)}, false)
		}
	}
	i.know("lan", NetworkPools{Subnets: []netip.Prefix{got.Subnet}, Parent: "eth0"})
	return i, p, p.terms[got.ID]
}

// BenchmarkLAN is all of a request and a release but the disk and the LAN:
// what the bookkeeping of probes costs. The one that asks ahead is in it, as
// it works for each. Of a pool without fresh addresses, the resting ones must
// do.
func BenchmarkLAN(b *testing.B) {
	for _, bb := range []struct {
		name, subnet         string
		held, resting, inUse int
	}{
		{"empty_16", "10.20.0.0/16", 0, 0, 0},
		{"held_60000_of_16", "10.20.0.0/16", 60_000, 0, 0},
		{"in_use_60000_of_16", "10.20.0.0/16", 0, 0, 60_000},
		{"all_rest_in_20", "10.20.0.0/20", 0, 4090, 0},
	} {
		for _, conflict := range []string{"off", "listen", "probe"} {
			b.Run(bb.name+"/"+conflict, func(b *testing.B) {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				i, p, t := lanPool(b, bb.subnet, conflict, bb.held, bb.resting, bb.inUse)
				runtime.GC()
				runtime.ReadMemStats(&after)
				r := AddressRequest{PoolID: t.id}
				b.ReportAllocs()
				for b.Loop() {
					i.mu.Lock()
					addr, do, err := i.choose(p, t, r, netip.Addr{})
					for err == nil && do == wait {
						if err := i.awaitStock(b.Context(), t); err != nil {
							b.Fatal(err)
						}
						i.mu.Lock()
						addr, do, err = i.choose(p, t, r, netip.Addr{})
					}
					if err != nil {
						b.Fatal(err)
					}
					request, release := &batch{}, &batch{}
					h := i.newHolding(p, r)
					i.hold(request, p, addr, h)
					i.scout(p, t)
					request.finish(nil)
					i.free(release, p, addr, h)
					release.finish(nil)
					i.mu.Unlock()
				}
				b.ReportMetric(float64(after.HeapAlloc-min(before.HeapAlloc, after.HeapAlloc))/1e6, "pool-MB")
			})
		}
	}
}
