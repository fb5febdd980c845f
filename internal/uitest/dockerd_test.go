//go:build browser

package uitest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"underlay/netlinkutil/fake"
	"underlay/plugin"
)

// dockerd makes the calls of one before a plugin on the fake kernel.
type dockerd struct {
	t      *testing.T
	config plugin.Config
	plugin *plugin.Plugin
	served chan error
	client *http.Client

	pools map[int]string // by network
	has   map[int]string // addresses, by container
}

func newDockerd(t *testing.T) *dockerd {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	kernel := fake.New()
	kernel.AddNIC("eth0")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	dir := t.TempDir()
	d := &dockerd{t: t, pools: map[int]string{}, has: map[int]string{}}
	d.config = plugin.Config{
		Socket: filepath.Join(dir, "underlay.sock"), State: filepath.Join(dir, "state"), Version: "test", Log: log, Kernel: kernel,
		Metrics: netip.MustParseAddrPort(free.Addr().String()),
	}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *dockerd) start() {
	d.t.Helper()
	var err error
	if d.plugin, err = plugin.Listen(d.config); err != nil {
		d.t.Fatal(err)
	}
	d.served = make(chan error, 1)
	go func() { d.served <- d.plugin.Serve() }()
	d.client = plugin.Client(d.config.Socket)
}

func (d *dockerd) stop() {
	d.t.Helper()
	if err := d.plugin.Close(); err != nil {
		d.t.Error(err)
	}
	if err := <-d.served; err != nil {
		d.t.Error(err)
	}
	d.client.CloseIdleConnections()
}

func (d *dockerd) call(path string, req object, res any) {
	d.t.Helper()
	if err := plugin.Call(context.Background(), d.client, "/"+path, req, res); err != nil {
		d.t.Fatalf("%s %v: %v", path, req, err)
	}
}

// network makes a network with the options of --ipam-opt.
func (d *dockerd) network(n int, subnet, gateway string, options object) {
	d.t.Helper()
	var pool struct{ PoolID string }
	d.call("IpamDriver.RequestPool", object{"AddressSpace": "underlay", "Pool": subnet, "V6": strings.Contains(subnet, ":"), "Options": options}, &pool)
	d.call("IpamDriver.RequestAddress", object{"PoolID": pool.PoolID, "Address": gateway, "Options": object{"RequestAddressType": "com.docker.network.gateway"}}, nil)
	bits := subnet[strings.IndexByte(subnet, '/'):]
	data := []object{{"AddressSpace": "underlay", "Pool": subnet, "Gateway": gateway + bits}}
	req := object{"NetworkID": id(n), "Options": object{"com.docker.network.generic": object{"parent": "eth0"}}, "IPv4Data": data, "IPv6Data": []object{}}
	if strings.Contains(subnet, ":") {
		req["IPv4Data"], req["IPv6Data"] = []object{}, data
	}
	d.call("NetworkDriver.CreateNetwork", req, nil)
	d.pools[n] = pool.PoolID
}

// run starts a container with an address, or any, and returns that.
func (d *dockerd) run(network, n int, address string) string {
	d.t.Helper()
	var given struct{ Address string }
	d.call("IpamDriver.RequestAddress", object{"PoolID": d.pools[network], "Address": address, "Options": nil}, &given)
	field := "Address"
	if strings.Contains(given.Address, ":") {
		field = "AddressIPv6"
	}
	ids := object{"NetworkID": id(network), "EndpointID": id(n), "SandboxKey": fmt.Sprintf("/var/run/docker/netns/%012x", n)}
	d.call("NetworkDriver.CreateEndpoint", object{"NetworkID": id(network), "EndpointID": id(n), "Interface": object{field: given.Address}, "Options": object{}}, nil)
	d.call("NetworkDriver.Join", ids, nil)
	d.has[n], _, _ = strings.Cut(given.Address, "/")
	return d.has[n]
}

func (d *dockerd) end(network, n int) {
	d.t.Helper()
	ids := object{"NetworkID": id(network), "EndpointID": id(n)}
	d.call("NetworkDriver.Leave", ids, nil)
	d.call("NetworkDriver.DeleteEndpoint", ids, nil)
	d.call("IpamDriver.ReleaseAddress", object{"PoolID": d.pools[network], "Address": d.has[n]}, nil)
}

// addresses are what `underlay addresses -o json` prints.
func (d *dockerd) addresses() []plugin.Address {
	d.t.Helper()
	var all plugin.Addresses
	d.call("Underlay.Addresses", object{}, &all)
	return all.Addresses
}
