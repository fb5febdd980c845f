package plugin

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/docker/go-plugins-helpers/ipam"
)

// benchParent is a link of the netns that a benchmark runs in, behind which
// there is a LAN. Without one, what asks a LAN is left out.
func benchParent(bm *testing.B) string {
	bm.Helper()
	nic := os.Getenv("UNDERLAY_BENCH_PARENT")
	if nic == "" {
		bm.Skip("no LAN: scripts/bench go makes one, as root")
	}
	return nic
}

// newRealBench is a bench with the kernel and the LAN of its netns.
func newRealBench(bm *testing.B) (b *bench, parent string) {
	bm.Helper()
	parent = benchParent(bm)
	b = newBench(bm)
	b.stop()
	b.config.Kernel = nil
	b.start()
	return b, parent
}

// lanWith makes a network with options of its pool and returns its ID and pool.
func (b *bench) lanWith(n int, subnet, parent string, options object) (id, pool string) {
	b.t.Helper()
	gateway := netip.MustParsePrefix(subnet).Addr().Next().String()
	p := must[wire.RequestPoolResponse](b, "IpamDriver.RequestPool", object{"AddressSpace": "underlay", "Pool": subnet, "Options": options})
	must[object](b, "IpamDriver.RequestAddress", object{"PoolID": p.PoolID, "Address": gateway, "Options": object{typeKey: gatewayValue}})
	id = dockerID(n)
	must[object](b, "NetworkDriver.CreateNetwork", createNetwork(id, p.Pool, gateway, object{"parent": parent}))
	return id, p.PoolID
}

// times are how long calls took.
type times []time.Duration

func (t times) report(bm *testing.B, name string) {
	slices.Sort(t)
	ms := func(part float64) float64 {
		return float64(t[int(part*float64(len(t)-1))].Microseconds()) / 1000
	}
	bm.ReportMetric(ms(0.5), name+"-median-ms")
	bm.ReportMetric(ms(0.99), name+"-p99-ms")
	bm.ReportMetric(ms(1), name+"-max-ms")
}

// allocate requests any address of a pool, and returns how long that took.
func (c *caller) allocate(pool string) (address string, took time.Duration) {
	request := `{"PoolID":"` + pool + `","Address":"","Options":null}`
	start := time.Now()
	answer := c.call("IpamDriver.RequestAddress", request)
	took = time.Since(start)
	address, _, _ = strings.Cut(field(string(answer), "Address"), "/")
	return address, took
}

func (c *caller) release(pool, address string) {
	c.call("IpamDriver.ReleaseAddress", `{"PoolID":"`+pool+`","Address":"`+address+`"}`)
}

// One address over the socket, on disk before the answer, with a LAN that has
// other hosts on it: where it is not asked, where addresses are probed ahead,
// and where they are not. The first two take turns, so that what else the
// machine does hits both; a pair differs by what the probing adds. They are
// paced so that the stock keeps up, and the times are of the calls alone.
func BenchmarkRequestAddress(bm *testing.B) {
	off := object{"conflict": "off"}
	const pace = 100 * time.Millisecond
	for _, held := range []int{0, 60_000} {
		bm.Run(fmt.Sprintf("warm/held=%d", held), func(bm *testing.B) {
			b, parent := newRealBench(bm)
			var nets [2]string
			var pools [2]string
			nets[0], pools[0] = b.lanWith(1, "10.61.0.0/16", parent, off)
			nets[1], pools[1] = b.lanWith(2, "10.62.0.0/16", parent, nil)
			if held > 0 {
				b.fill(held, 0, nets[:]...)
			}
			c := b.caller()
			defer c.conn.Close()
			for _, pool := range pools { // the first waits for the stock
				address, _ := c.allocate(pool)
				c.release(pool, address)
			}
			time.Sleep(500 * time.Millisecond)
			var took [2]times
			var added times
			for n := 0; bm.Loop(); n++ {
				var pair [2]time.Duration
				for _, k := range [2]int{n % 2, 1 - n%2} {
					tick := time.After(pace)
					var address string
					address, pair[k] = c.allocate(pools[k])
					took[k] = append(took[k], pair[k])
					c.release(pools[k], address)
					<-tick
				}
				added = append(added, pair[1]-pair[0])
			}
			bm.ReportMetric(0, "ns/op")
			took[0].report(bm, "off")
			took[1].report(bm, "warm")
			slices.Sort(added)
			bm.ReportMetric(float64(added[len(added)/2].Microseconds())/1000, "warm-adds-ms")
			b.met(bm, "10.62.0.0/16")
		})
	}
	bm.Run("cold", func(bm *testing.B) {
		b, parent := newRealBench(bm)
		_, pool := b.lanWith(1, "10.63.0.0/16", parent, object{"probe_ahead": "0"})
		c := b.caller()
		defer c.conn.Close()
		var took times
		for bm.Loop() {
			address, d := c.allocate(pool)
			took = append(took, d)
			c.release(pool, address)
		}
		bm.ReportMetric(0, "ns/op")
		took.report(bm, "cold")
		b.met(bm, "10.63.0.0/16")
	})
	for _, bb := range []struct {
		name    string
		options object
	}{{"off", off}, {"probe", nil}} {
		bm.Run("burst/"+bb.name, func(bm *testing.B) {
			b, parent := newRealBench(bm)
			_, pool := b.lanWith(1, "10.64.0.0/16", parent, bb.options)
			const n = 500
			var callers [n]*caller
			for k := range callers {
				callers[k] = b.caller()
				defer callers[k].conn.Close()
			}
			time.Sleep(500 * time.Millisecond) // as long as the stock needs
			var took, whole times
			for bm.Loop() {
				var addresses [n]string
				var each [n]time.Duration
				var wg sync.WaitGroup
				start := time.Now()
				for k, c := range callers {
					wg.Go(func() { addresses[k], each[k] = c.allocate(pool) })
				}
				wg.Wait()
				whole = append(whole, time.Since(start))
				took = append(took, each[:]...)
				for k, c := range callers {
					wg.Go(func() { c.release(pool, addresses[k]) })
				}
				wg.Wait()
				slices.Sort(addresses[:])
				if len(slices.Compact(addresses[:])) != n {
					bm.Error("an address was given twice")
				}
				time.Sleep(500 * time.Millisecond)
			}
			bm.ReportMetric(0, "ns/op")
			took.report(bm, "call")
			slices.Sort(whole)
			bm.ReportMetric(float64(whole[len(whole)/2].Milliseconds()), "all-500-ms")
			b.met(bm, "10.64.0.0/16")
		})
	}
}

// met reports how many hosts of the LAN were found in a pool.
func (b *bench) met(bm *testing.B, subnet string) {
	for _, p := range must[State](b, "Underlay.State", nil).Pools {
		if p.Subnet.String() == subnet {
			bm.ReportMetric(float64(len(p.LAN.InUse)), "in-use")
		}
	}
}
