package plugin

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Each call of Docker's in the life of a network with one container, with none and
// with 1,000 endpoints held beside it. The LAN is not asked: BenchmarkRequestAddress has
// what that costs. The kernel is the fake one, or with
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
			defer b.crowd(endpoints, nic, object{"conflict": "off"})()
			benchCalls(bm, b, nic)
		})
	}
}

// crowd makes a network with as many endpoints, and returns what ends them: the real
// kernel outlives a benchmark.
func (b *bench) crowd(endpoints int, parent string, options object) (release func()) {
	id, pool := b.lanWith(1, "10.0.0.0/9", parent, options)
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
		answer, _ := call("IpamDriver.RequestPool", `{"AddressSpace":"underlay","Pool":"10.200.0.0/24","Options":{"conflict":"off"}}`)
		pool := field(answer, "PoolID")
		c.call("IpamDriver.RequestAddress", `{"PoolID":"`+pool+`","Address":"10.200.0.1","Options":{"`+typeKey+`":"`+gatewayValue+`"}}`)
		call("NetworkDriver.CreateNetwork", fmt.Sprintf(
			`{"NetworkID":%q,"Options":{%q:{"parent":%q}},"IPv4Data":[{"AddressSpace":"underlay","Pool":"10.200.0.0/24","Gateway":"10.200.0.1/24"}],"IPv6Data":[]}`,
			network, genericKey, parent))

		answer, first := call("IpamDriver.RequestAddress", `{"PoolID":"`+pool+`","Options":null}`)
		address := field(answer, "Address")
		_, second := call("NetworkDriver.CreateEndpoint", fmt.Sprintf(
			`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":%q},"Options":{}}`, network, endpoint, address))
		_, third := call("NetworkDriver.Join", ids)
		whole = append(whole, first+second+third)

		call("NetworkDriver.EndpointOperInfo", ids)
		call("NetworkDriver.Leave", ids)
		call("NetworkDriver.DeleteEndpoint", ids)
		bare, _, _ := strings.Cut(address, "/")
		call("IpamDriver.ReleaseAddress", `{"PoolID":"`+pool+`","Address":"`+bare+`"}`)
		c.release(pool, "10.200.0.1")
		call("IpamDriver.ReleasePool", `{"PoolID":"`+pool+`"}`)
		call("NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, network))
	}
	bm.ReportMetric(0, "ns/op")
	for _, name := range names {
		took[name].report(bm, name)
	}
	whole.report(bm, "start")
}

// field is the text of a field of a JSON object.
func field(answer, name string) string {
	_, rest, _ := strings.Cut(answer, `"`+name+`":"`)
	text, _, _ := strings.Cut(rest, `"`)
	return text
}
