package plugin

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"underlay/driver"
	"underlay/internal/store"
)

// fill gives each network as many endpoints, each with its address, and as many
// addresses that rest, as an hour of work would have left them in the state
// file, and returns an endpoint. The plugin is restarted for that.
func (b *bench) fill(held, resting int, networks ...string) driver.Endpoint {
	b.t.Helper()
	known := map[string]driver.Network{}
	for _, n := range must[State](b, "Underlay.State", nil).Networks {
		known[n.ID] = n
	}
	b.stop()
	s, err := store.Open(filepath.Join(b.config.State, StateFile))
	if err != nil {
		b.t.Fatal(err)
	}
	var changes []store.Change
	put := func(bucket, key string, record any) {
		value, err := json.Marshal(record)
		if err != nil {
			b.t.Fatal(err)
		}
		changes = append(changes, store.Change{Bucket: bucket, Key: []byte(key), Value: value})
	}
	since := time.Now().Add(-time.Hour).Format(time.RFC3339Nano)
	var e driver.Endpoint
	for k, id := range networks {
		subnet := known[id].Subnets[0].Prefix.Masked()
		addr := subnet.Addr().Next() // the gateway's
		for n := range held + resting {
			addr = addr.Next()
			name := fmt.Sprintf("project%d-web-%d", k, n)
			if n >= held {
				put("addresses", subnet.String()+" "+addr.String(), object{"kind": "resting", "name": name, "since": since, "turn": n})
				continue
			}
			hash := sha256.Sum256([]byte(name)) // Docker's IDs are in no order
			e = driver.Endpoint{
				ID: fmt.Sprintf("%x", hash), NetworkID: id, IPv4: netip.PrefixFrom(addr, subnet.Bits()),
				MAC: driver.MAC{0x02, hash[0], hash[1], hash[2], hash[3], hash[4]},
			}
			put("endpoints", e.ID, e)
			put("addresses", subnet.String()+" "+addr.String(), object{"kind": "endpoint", "name": name, "since": since})
		}
	}
	for some := range slices.Chunk(changes, 5000) {
		if err := s.Apply(some...); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.start()
	return e
}

// The start of a plugin with 100,000 records in its state file: until it
// answers at all, until it answers what needs the state, and until it has given
// out an address. The kernel and the LAN are real with UNDERLAY_BENCH_PARENT.
func BenchmarkStart(bm *testing.B) {
	const (
		networks = 500
		held     = 79 // and a gateway
		resting  = 39
	)
	if records := networks*(2+1+2*held+resting) + 1; records < 100_000 {
		bm.Fatalf("only %d records", records)
	}
	var b *bench
	parent := os.Getenv("UNDERLAY_BENCH_PARENT")
	if parent == "" {
		b, parent = newBench(bm), "eth0"
	} else {
		b, _ = newRealBench(bm)
	}
	var ids []string
	var pool string
	for n := range networks {
		var id string
		id, pool = b.lanWith(n+1, fmt.Sprintf("10.%d.%d.0/24", 100+n/250, n%250), parent, nil)
		ids = append(ids, id)
	}
	e := b.fill(held, resting, ids...)
	info := fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, e.NetworkID, e.ID)
	var listening, ready, address times
	var heap, resident uint64
	var used time.Duration
	for bm.Loop() {
		b.stop()
		b.plugin, b.client = nil, nil
		debug.FreeOSMemory()
		heapBefore, residentBefore := memory(bm)
		usedBefore := processors(bm)
		start := time.Now()
		b.start()
		c := b.caller()
		c.call("Plugin.Activate", "{}")
		listening = append(listening, time.Since(start))
		c.call("NetworkDriver.EndpointOperInfo", info)
		ready = append(ready, time.Since(start))
		used += processors(bm) - usedBefore
		got, _ := c.allocate(pool)
		address = append(address, time.Since(start))
		_, residentAfter := memory(bm)
		runtime.GC()
		heapAfter, _ := memory(bm)
		heap, resident = heapAfter-heapBefore, residentAfter-residentBefore
		c.release(pool, got)
		c.conn.Close()
	}
	bm.ReportMetric(0, "ns/op")
	for name, t := range map[string]times{"listening": listening, "ready": ready, "address": address} {
		slices.Sort(t)
		bm.ReportMetric(float64(t[len(t)/2].Milliseconds()), name+"-ms")
		bm.ReportMetric(float64(t[len(t)-1].Milliseconds()), name+"-max-ms")
	}
	bm.ReportMetric(float64(used.Milliseconds())/float64(len(ready)), "ready-cpu-ms")
	bm.ReportMetric(float64(heap)/1e6, "heap-MB")
	bm.ReportMetric(float64(resident)/1e6, "resident-MB")
}

// processors returns the time that the process has had of them, which other
// processes do not lengthen much.
func processors(bm *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		bm.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory returns the bytes on the heap, and those of the process that are in
// memory.
func memory(bm *testing.B) (heap, resident uint64) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	status, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		bm.Fatal(err)
	}
	pages, err := strconv.ParseUint(strings.Fields(string(status))[1], 10, 64)
	if err != nil {
		bm.Fatal(err)
	}
	return m.HeapAlloc, pages * uint64(os.Getpagesize())
}
