package plugin

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	wire "github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"
)

// lan makes a network as dockerd does and returns its ID and pool.
func (b *bench) lan(n int, subnet, gateway string, generic object) (id, pool string) {
	b.t.Helper()
	p := must[wire.RequestPoolResponse](b, "IpamDriver.RequestPool", object{"AddressSpace": "underlay", "Pool": subnet})
	must[object](b, "IpamDriver.RequestAddress", object{"PoolID": p.PoolID, "Address": gateway, "Options": object{typeKey: gatewayValue}})
	id = dockerID(n)
	must[object](b, "NetworkDriver.CreateNetwork", createNetwork(id, p.Pool, gateway, generic))
	return id, p.PoolID
}

func createNetwork(id, subnet, gateway string, generic object) object {
	bits := subnet[strings.IndexByte(subnet, '/'):]
	return object{
		"NetworkID": id, "Options": object{genericKey: generic},
		"IPv4Data": []object{{"AddressSpace": "underlay", "Pool": subnet, "Gateway": gateway + bits}}, "IPv6Data": []object{},
	}
}

// run makes the calls of a container's start and returns its address.
func (b *bench) run(networkID, pool string, n int) string {
	b.t.Helper()
	a := must[wire.RequestAddressResponse](b, "IpamDriver.RequestAddress", object{"PoolID": pool, "Options": nil})
	ids := object{"NetworkID": networkID, "EndpointID": dockerID(n), "SandboxKey": "/var/run/docker/netns/0123456789ab"}
	must[object](b, "NetworkDriver.CreateEndpoint", object{
		"NetworkID": networkID, "EndpointID": dockerID(n), "Interface": object{"Address": a.Address}, "Options": object{},
	})
	must[network.JoinResponse](b, "NetworkDriver.Join", ids)
	return a.Address
}

func (b *bench) end(networkID, pool string, n int, address string) {
	b.t.Helper()
	ids := object{"NetworkID": networkID, "EndpointID": dockerID(n)}
	must[object](b, "NetworkDriver.Leave", ids)
	must[object](b, "NetworkDriver.DeleteEndpoint", ids)
	bare, _, _ := strings.Cut(address, "/")
	must[object](b, "IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": bare})
}

func TestContainerFromStartToEnd(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	a := b.run(id, pool, 2)
	if a != "192.168.50.2/24" {
		t.Errorf("address %s", a)
	}
	if err := b.kernel.Move("ul" + dockerID(2)[:13]); err != nil { // as dockerd does after Join
		t.Fatal(err)
	}
	b.restart()
	info := must[network.InfoResponse](b, "NetworkDriver.EndpointOperInfo", object{"NetworkID": id, "EndpointID": dockerID(2)})
	if info.Value["parent"] != "eth0" || info.Value["mode"] != "macvlan bridge" {
		t.Errorf("after a restart: %v", info.Value)
	}
	b.end(id, pool, 2, a)
	must[object](b, "IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": "192.168.50.1"})
	must[object](b, "IpamDriver.ReleasePool", object{"PoolID": pool})
	must[object](b, "NetworkDriver.DeleteNetwork", object{"NetworkID": id})
	s := must[State](b, "Underlay.State", nil)
	if len(s.Networks)+len(s.Endpoints)+len(s.Pools) != 0 {
		t.Errorf("left: %+v", s)
	}
}

// docker network rm "succeeds" while the plugin is away, and is not repeated.
func TestForget(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0.10"})
	b.lan(2, "192.168.60.0/24", "192.168.60.1", object{"parent": "eth0"})
	b.run(id, pool, 3)
	for request, want := range map[string]string{"": "0 networks", "beef": "0 networks", "0000": "2 networks", id[:12]: "stop its container first"} {
		if err := Forget(b.config.Socket, request); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("forget %q: %v", request, err)
		}
	}
	b.end(id, pool, 3, "192.168.50.2/24")
	b.restart()
	if err := Forget(b.config.Socket, id[:12]); err != nil {
		t.Fatal(err)
	}
	s := must[State](b, "Underlay.State", nil)
	if len(s.Networks) != 1 || len(s.Pools) != 1 || s.Pools[0].Subnet.String() != "192.168.60.0/24" {
		t.Errorf("left: %+v", s)
	}
	if _, err := b.kernel.Link("eth0.10"); err == nil {
		t.Error("the VLAN link is left")
	}
}

// The network of another driver creates, and its containers are refused.
func TestOtherDriversAreNotServed(t *testing.T) {
	b := newBench(t)
	p := must[wire.RequestPoolResponse](b, "IpamDriver.RequestPool", object{"Pool": "192.168.50.0/24"})
	_, err := b.call("IpamDriver.RequestAddress", object{"PoolID": p.PoolID})
	if err == nil || !strings.Contains(err.Error(), "underlay knows no network on") {
		t.Errorf("error %v", err)
	}
}

// A network that is refused is followed by ReleasePool, never DeleteNetwork.
func TestRefusedNetworkLeavesNothing(t *testing.T) {
	b := newBench(t)
	p := must[wire.RequestPoolResponse](b, "IpamDriver.RequestPool", object{"Pool": "192.168.50.0/24"})
	must[object](b, "IpamDriver.RequestAddress", object{"PoolID": p.PoolID, "Address": "192.168.50.1", "Options": object{typeKey: gatewayValue}})
	_, err := b.call("NetworkDriver.CreateNetwork", createNetwork(dockerID(1), p.Pool, "192.168.50.1", object{"parent": "eth9"}))
	if err == nil || !strings.Contains(err.Error(), "parent eth9 is not there") {
		t.Errorf("error %v", err)
	}
	must[object](b, "IpamDriver.ReleasePool", object{"PoolID": p.PoolID})
	if s := must[State](b, "Underlay.State", nil); len(s.Pools)+len(s.Networks) != 0 {
		t.Errorf("left: %+v", s)
	}
}

func TestGatewayIsSkipped(t *testing.T) {
	b := newBench(t)
	tests := []struct {
		options object
		skip    bool
	}{
		{object{genericKey: object{"parent": "eth0"}}, false},
		{object{genericKey: object{"parent": "eth0", "ipvlan_mode": "l2"}}, false},
		{object{genericKey: object{"ipvlan_mode": "l2"}}, true},
		{object{genericKey: object{"ipvlan_mode": "l3"}}, true},
		{object{genericKey: object{"ipvlan_mode": "l3s"}}, true},
		{object{internalKey: true}, true},
	}
	for _, tt := range tests {
		got := must[gwAllocCheckResponse](b, "NetworkDriver.GwAllocCheck", object{"Options": tt.options})
		if got.SkipIPv4 != tt.skip || got.SkipIPv6 != tt.skip {
			t.Errorf("%v: %+v", tt.options, got)
		}
	}
}

func TestConnectedRoutesOfL3(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0", "ipvlan_mode": "l3"})
	b.run(id, pool, 2)
	j := must[network.JoinResponse](b, "NetworkDriver.Join", object{"NetworkID": id, "EndpointID": dockerID(2)})
	if j.Gateway != "" || len(j.StaticRoutes) != 1 || *j.StaticRoutes[0] != (network.StaticRoute{Destination: "0.0.0.0/0", RouteType: routeConnected}) {
		t.Errorf("%+v", j)
	}
}

func TestBadCalls(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	long := strings.Repeat("x", maxBody+1)
	endpoint := func(i string) string {
		return fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"Interface":%s}`, id, dockerID(9), i)
	}
	tests := []struct {
		name, call, body string
		status           int
		want             string
	}{
		{"an empty repeat", "IpamDriver.RequestAddress", "", 400, "without a body"},
		{"no JSON", "IpamDriver.RequestAddress", "{", 400, "not understood"},
		{"a wrong type", "IpamDriver.RequestAddress", `{"PoolID": 7}`, 400, "not understood"},
		{"a long body", "IpamDriver.RequestAddress", `{"PoolID": "` + long + `"}`, 413, "over 1048576 bytes"},
		{"a bad pool", "IpamDriver.RequestPool", `{"Pool": "192.168.50.0"}`, 400, "is no subnet"},
		{"host bits", "IpamDriver.RequestPool", `{"Pool": "192.168.60.7/24"}`, 500, "192.168.60.0/24"},
		{"an unknown option", "IpamDriver.RequestPool", `{"Pool": "192.168.60.0/24", "Options": {"foo": "bar"}}`, 500, "--ipam-opt foo"},
		{"an unknown pool", "IpamDriver.RequestAddress", `{"PoolID": "10.1.0.0/24"}`, 500, "10.1.0.0/24"},
		{"a bad address", "IpamDriver.RequestAddress", `{"PoolID": "` + pool + `", "Address": "192.168.50"}`, 400, "is no IP address"},
		{"an address outside", "IpamDriver.RequestAddress", `{"PoolID": "` + pool + `", "Address": "192.168.51.1"}`, 500, "192.168.50.0/24"},
		{"an unknown driver option", "NetworkDriver.CreateNetwork", `{"NetworkID": "` + dockerID(3) + `", "Options": {"com.docker.network.generic": {"parnet": "eth0"}}}`, 500, "-o parnet"},
		{"a number as option", "NetworkDriver.CreateNetwork", `{"NetworkID": "` + dockerID(3) + `", "Options": {"com.docker.network.generic": {"parent": 1}}}`, 400, "not a string"},
		{"options of a wrong type", "NetworkDriver.CreateNetwork", `{"NetworkID": "` + dockerID(3) + `", "Options": {"com.docker.network.generic": "x"}}`, 400, "not an object"},
		{"a short ID", "NetworkDriver.CreateNetwork", `{"NetworkID": "../x"}`, 400, "no network ID"},
		{"a bad MAC", "NetworkDriver.CreateEndpoint", endpoint(`{"MacAddress": "02:00"}`), 500, "six bytes"},
		{"an address without mask", "NetworkDriver.CreateEndpoint", endpoint(`{"Address": "192.168.50.9"}`), 400, "with a mask"},
		{"an unknown driver-opt", "NetworkDriver.CreateEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"Options":{"foo":"bar"}}`, id, dockerID(9)), 500, "driver-opt foo"},
		{"an unknown network", "NetworkDriver.Join", `{"NetworkID": "x", "EndpointID": "y"}`, 500, "network x is unknown"},
	}
	before, _ := b.call("Underlay.State", nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body := b.post(tt.call, tt.body)
			if status != tt.status || !strings.HasPrefix(body, `{"Err":"`) || !strings.Contains(body, tt.want) || strings.Contains(body, `\n`) {
				t.Errorf("%d %s; want %d with %q", status, body, tt.status, tt.want)
			}
		})
	}
	if after, _ := b.call("Underlay.State", nil); string(after) != string(before) {
		t.Errorf("bad calls changed the state from\n%s\nto\n%s", before, after)
	}
	if status, _ := b.post("NetworkDriver.Nonsense", "{}"); status != http.StatusNotFound {
		t.Errorf("an unknown method: %d", status)
	}
}

func TestSocket(t *testing.T) {
	b := newBench(t)
	if fi, err := os.Stat(b.config.Socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: the socket is root's alone", fi.Mode(), err)
	}
	if _, err := Listen(b.config); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("a second plugin: %v", err)
	}
	b.stop()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: b.config.Socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // leaves the file, as a killed plugin does
	b.start()
	must[object](b, "NetworkDriver.GetCapabilities", nil)

	// Where the plugin starts first, it makes dockerd's folder, and as dockerd does.
	run := filepath.Join(t.TempDir(), "docker")
	early, err := listen(filepath.Join(run, "plugins", "u.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if fi, err := os.Stat(run); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v: dockerd's folder is root's alone", fi.Mode(), err)
	}
}

func TestFiveHundredParallelRequests(t *testing.T) {
	b := newBench(t)
	_, pool := b.lan(1, "10.0.0.0/16", "10.0.0.1", object{"parent": "eth0"})
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 500 {
		wg.Go(func() {
			a := must[wire.RequestAddressResponse](b, "IpamDriver.RequestAddress", object{"PoolID": pool})
			mu.Lock()
			defer mu.Unlock()
			if seen[a.Address] {
				t.Errorf("%s was given twice", a.Address)
			}
			seen[a.Address] = true
		})
	}
	wg.Wait()
}

// caller is a client as lean as can be, so that a benchmark measures the
// plugin and not net/http's client.
type caller struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func (b *bench) caller() *caller {
	b.t.Helper()
	conn, err := net.Dial("unix", b.config.Socket)
	if err != nil {
		b.t.Fatal(err)
	}
	return &caller{b.t, conn, bufio.NewReader(conn)}
}

func (c *caller) call(name, body string) []byte {
	fmt.Fprintf(c.conn, "POST /%s HTTP/1.1\r\nHost: plugin\r\nContent-Length: %d\r\n\r\n%s", name, len(body), body)
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("%s %s: %s %s %v", name, body, res.Status, text, err)
	}
	return text
}

// Allocation and release over the socket, each on disk before its answer, by
// 64 callers.
func BenchmarkAllocateAndRelease(bm *testing.B) {
	b := newBench(bm)
	_, pool := b.lan(1, "10.0.0.0/8", "10.0.0.1", object{"parent": "eth0"})
	work := make(chan struct{}, 64)
	var wg sync.WaitGroup
	for range 64 {
		c := b.caller()
		defer c.conn.Close()
		wg.Go(func() {
			for range work {
				address, _ := c.allocate(pool)
				c.release(pool, address)
			}
		})
	}
	bm.ResetTimer()
	for range bm.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	bm.ReportMetric(float64(bm.N)/bm.Elapsed().Seconds(), "pairs/s")
}
