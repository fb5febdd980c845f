package plugin

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Each call of Docker's in the life of a network with one container, with none and
// with 1,000 endpoints held beside it. The kernel is the fake one, or with
// UNDERLAY_BENCH_PARENT the real one: the name of a link in the netns that the
// benchmark runs in.
func BenchmarkCalls(bm *testing.B) {
	nic, kernel := os.Getenv("UNDERLAY_BENCH_PARENT"), "real"
	if nic == "" {
		nic, kernel = "eth0", "fake"
	}
	for _, endpoints := range []int{0, 1000} {
		bm.Run(fmt.Sprintf("kernel=%s/endpoints=%d", kernel, endpoints), func(bm *testing.B) {
			b := newBench(bm)
			if kernel == "real" {
				b.stop()
				b.config.Kernel = nil
				b.start()
			}
			defer b.crowd(endpoints, nic)()
			benchCalls(bm, b, nic)
		})
	}
}

// crowd makes a network with as many endpoints, and returns what ends them: the real
// kernel outlives a benchmark.
func (b *bench) crowd(endpoints int, parent string) (release func()) {
	id, pool := b.lan(1, "10.0.0.0/9", "10.0.0.1", object{"parent": parent})
	held := map[int]string{}
	for n := range endpoints {
		held[100+n] = b.run(id, pool, 100+n)
	}
	return func() {
		for n, a := range held {
			b.end(id, pool, n, a)
		}
	}
}

func benchCalls(bm *testing.B, b *bench, parent string) {
	c := b.caller()
	defer c.conn.Close()
	var names []string
	took := map[string]times{}
	call := func(name, body string) (answer string, d time.Duration) {
		start := time.Now()
		answer = string(c.call(name, body))
		d = time.Since(start)
		_, name, _ = strings.Cut(name, ".")
		if took[name] == nil {
			names = append(names, name)
		}
		took[name] = append(took[name], d)
		return answer, d
	}
	var whole times
	network, endpoint := dockerID(2), dockerID(3)
	ids := fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"SandboxKey":"/var/run/docker/netns/0123456789ab"}`, network, endpoint)
	for bm.Loop() {
		const pool = "10.200.0.0/24"
		call("IpamDriver.RequestPool", `{"AddressSpace":"underlay","Pool":"`+pool+`"}`)
		c.call("IpamDriver.RequestAddress", `{"PoolID":"`+pool+`","Address":"10.200.0.1","Options":{"`+typeKey+`":"`+gatewayValue+`"}}`)
		call("NetworkDriver.CreateNetwork", fmt.Sprintf(
			`{"NetworkID":%q,"Options":{%q:{"parent":%q}},"IPv4Data":[{"AddressSpace":"underlay","Pool":%q,"Gateway":"10.200.0.1/24"}],"IPv6Data":[]}`,
			network, genericKey, parent, pool))

		answer, first := call("IpamDriver.RequestAddress", `{"PoolID":"`+pool+`","Options":null}`)
		_, rest, _ := strings.Cut(answer, `"Address":"`)
		address, _, _ := strings.Cut(rest, `"`)
		_, second := call("NetworkDriver.CreateEndpoint", fmt.Sprintf(
			`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":%q},"Options":{}}`, network, endpoint, address))
		_, third := call("NetworkDriver.Join", ids)
		whole = append(whole, first+second+third)

		call("NetworkDriver.EndpointOperInfo", ids)
		call("NetworkDriver.Leave", ids)
		call("NetworkDriver.DeleteEndpoint", ids)
		bare, _, _ := strings.Cut(address, "/")
		call("IpamDriver.ReleaseAddress", `{"PoolID":"`+pool+`","Address":"`+bare+`"}`)
		c.call("IpamDriver.ReleaseAddress", `{"PoolID":"`+pool+`","Address":"10.200.0.1"}`)
		call("IpamDriver.ReleasePool", `{"PoolID":"`+pool+`"}`)
		call("NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, network))
	}
	bm.ReportMetric(0, "ns/op")
	for _, name := range names {
		took[name].report(bm, name)
	}
	whole.report(bm, "start")
}
