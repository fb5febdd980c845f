package plugin

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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
		known[n.ID] = n.Network
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

// The start of the program with 100,000 records in its state file, and with
// 100,000 containers, on a real LAN: until it answers at all, until it answers
// what needs the state, and until it has given out an address that nobody else
// has.
func BenchmarkStart(bm *testing.B) {
	for _, c := range []struct {
		name              string
		networks          int
		held, resting     int // of each; a gateway is held beside
		records, endpoint int // at least
	}{
		{"records=100k", 500, 79, 39, 100_000, 39_500},
		{"containers=100k", 400, 250, 0, 200_000, 100_000},
	} {
		bm.Run(c.name, func(bm *testing.B) {
			if records := c.networks*(2+1+2*c.held+c.resting) + 1; records < c.records || c.networks*c.held < c.endpoint {
				bm.Fatalf("only %d records, %d containers", records, c.networks*c.held)
			}
			benchStart(bm, c.networks, c.held, c.resting)
		})
	}
}

func benchStart(bm *testing.B, networks, held, resting int) {
	b, parent := newRealBench(bm)
	program := buildProgram(bm)
	var ids []string
	var pool string
	for n := range networks {
		var id string
		id, pool = b.lanWith(n+1, fmt.Sprintf("10.%d.%d.0/23", 100+n/125, n%125*2), parent, nil)
		ids = append(ids, id)
	}
	e := b.fill(held, resting, ids...)
	info := fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, e.NetworkID, e.ID)
	b.stop()
	defer b.start() // for its end
	var listening, ready, address, used times
	var resident []int
	for bm.Loop() {
		start := time.Now()
		serve := b.program(program)
		b.listens()
		c := b.caller()
		c.call("Plugin.Activate", "{}")
		listening = append(listening, time.Since(start))
		c.call("NetworkDriver.EndpointOperInfo", info)
		ready = append(ready, time.Since(start))
		got, _ := c.allocate(pool)
		address = append(address, time.Since(start))
		resident = append(resident, peak(bm, serve.Process.Pid))
		c.release(pool, got)
		c.conn.Close()
		if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
			bm.Fatal(err)
		}
		if err := serve.Wait(); err != nil {
			bm.Fatal(err)
		}
		used = append(used, serve.ProcessState.UserTime()+serve.ProcessState.SystemTime())
	}
	file, err := os.Stat(filepath.Join(b.config.State, StateFile))
	if err != nil {
		bm.Fatal(err)
	}
	bm.ReportMetric(float64(file.Size())/1e6, "file-MB")
	bm.ReportMetric(0, "ns/op")
	for name, t := range map[string]times{"listening": listening, "ready": ready, "address": address, "cpu": used} {
		slices.Sort(t)
		bm.ReportMetric(float64(t[len(t)/2].Milliseconds()), name+"-ms")
		bm.ReportMetric(float64(t[len(t)-1].Milliseconds()), name+"-max-ms")
	}
	bm.ReportMetric(float64(slices.Max(resident))/1000, "peak-MB")
}

// listens waits until a program that has been started does.
func (b *bench) listens() {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", b.config.Socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Since(start) > time.Minute {
			b.t.Fatal(err)
		}
	}
}

// All calls of one container's start among 100,000 others, with a fake kernel.
func BenchmarkContainerStartAmongMany(bm *testing.B) {
	b := newBench(bm)
	var ids []string
	var pool string
	for n := range 400 {
		var id string
		id, pool = b.lan(n+1, fmt.Sprintf("10.%d.%d.0/23", 100+n/125, n%125*2), fmt.Sprintf("10.%d.%d.1", 100+n/125, n%125*2), object{"parent": "eth0"})
		ids = append(ids, id)
	}
	b.fill(250, 0, ids...)
	must[State](b, "Underlay.State", nil) // it has loaded
	var took times
	for bm.Loop() {
		start := time.Now()
		a := b.run(ids[399], pool, 10)
		took = append(took, time.Since(start))
		bm.StopTimer()
		b.end(ids[399], pool, 10, a)
		bm.StartTimer()
	}
	took.report(bm, "start")
}

// peak returns the most memory that a process has had until now, in kB, its
// part of the state file included.
func peak(bm *testing.B, pid int) (kB int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		bm.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		bm.Fatal(err)
	}
	return kB
}
