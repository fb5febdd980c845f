//go:build faults

package killtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// dockerd does to the plugin what Docker does (moby, daemon/libnetwork), faults
// of it and all. What it knows is what must be.
type dockerd struct {
	*machine
	networks   map[string]*network
	containers map[string]*container
	drawn      int // IDs
}

type network struct {
	id, parent string
	options    map[string]string
	pools      []*pool
}

type pool struct {
	subnet, gateway, id string
	v6                  bool
}

type container struct {
	netns     string
	sandbox   string // its path as dockerd names it
	endpoints []*endpoint
}

// endpoint is one that has joined.
type endpoint struct {
	network *network
	id      string
	addrs   []netip.Prefix // one a pool of the network
	mac     string
	link    string // in the host
	name    string // in the container
}

// Docker's IDs are random. These are not, so that a run can be repeated.
func (d *dockerd) newID() string {
	d.drawn++
	sum := sha256.Sum256(fmt.Append(nil, d.drawn))
	return hex.EncodeToString(sum[:])
}

// unique is the name of a sandbox, which other machines must not have.
func (d *dockerd) unique() string {
	d.drawn++
	sum := sha256.Sum256(fmt.Append(nil, d.host, d.drawn))
	return hex.EncodeToString(sum[:6])
}

// refused is an answer of the plugin's that is an error.
type refused struct{ error }

// backoff is how dockerd waits before it repeats a call that did not get
// through, on a twentieth of its time scale (moby, pkg/plugins/client.go).
var backoff = []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond}

func (d *dockerd) call(path string, req, res any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		r, err := http.NewRequest(http.MethodPost, "http://plugin/"+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.GetBody = nil // dockerd's body cannot be read twice
		answer, err := d.client.Do(r)
		if err == nil {
			return d.answer(path, answer, res)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
			body = nil // it has been read to its end
		}
		if try == len(backoff) || d.isAway() {
			return fmt.Errorf("%s: %w", path, err)
		}
		time.Sleep(backoff[try])
	}
}

func (d *dockerd) answer(path string, answer *http.Response, res any) error {
	text, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	d.mu.Lock()
	d.calls++
	d.mu.Unlock()
	if died, now := d.at(); now {
		select {
		case <-died:
		case <-time.After(5 * time.Second):
			return fmt.Errorf("%s: not killed after the answer", path)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if answer.StatusCode != http.StatusOK {
		return refused{fmt.Errorf("%s: %s", path, bytes.TrimSpace(text))}
	}
	if res == nil {
		return nil
	}
	return json.Unmarshal(text, res)
}

type object = map[string]any

// boot is dockerd's first use of the plugin, which has had the time to start.
func (d *dockerd) boot() error {
	d.listening()
	for _, path := range []string{"Plugin.Activate", "NetworkDriver.GetCapabilities", "IpamDriver.GetCapabilities"} {
		if err := d.call(path, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// createNetwork is docker network create. What it has got is given back after an
// error, as dockerd does it.
func (d *dockerd) createNetwork(name, parent string, subnets ...string) error {
	n := &network{id: d.newID(), parent: parent, options: map[string]string{"parent": parent, "host_access": "true"}}
	if err := d.call("NetworkDriver.GwAllocCheck", object{"Options": object{"com.docker.network.generic": n.options}}, nil); err != nil {
		return err
	}
	if err := d.call("IpamDriver.GetDefaultAddressSpaces", nil, nil); err != nil {
		return err
	}
	for _, text := range subnets {
		subnet := netip.MustParsePrefix(text)
		p := &pool{subnet: text, gateway: subnet.Addr().Next().String(), v6: subnet.Addr().Is6()}
		if err := d.allocate(p); err != nil {
			d.releasePools(n.pools)
			return err
		}
		n.pools = append(n.pools, p)
	}
	if err := d.call("NetworkDriver.CreateNetwork", n.creation(), nil); err != nil {
		d.releasePools(n.pools)
		return err
	}
	d.networks[name] = n
	return nil
}

// allocate asks for a pool and its gateway.
func (d *dockerd) allocate(p *pool) error {
	var got struct{ PoolID string }
	err := d.call("IpamDriver.RequestPool", object{
		"AddressSpace": "underlay", "Pool": p.subnet, "SubPool": "", "V6": p.v6, "Options": object{"probe_wait": "20ms"},
	}, &got)
	if err != nil {
		return err
	}
	p.id = got.PoolID
	if err := d.request(p, p.gateway, object{"RequestAddressType": "com.docker.network.gateway"}, nil); err != nil {
		d.call("IpamDriver.ReleasePool", object{"PoolID": p.id}, nil)
		return err
	}
	return nil
}

func (d *dockerd) request(p *pool, addr string, options object, got *netip.Prefix) error {
	var res struct{ Address string }
	if err := d.call("IpamDriver.RequestAddress", object{"PoolID": p.id, "Address": addr, "Options": options}, &res); err != nil {
		return err
	}
	given, err := netip.ParsePrefix(res.Address)
	if got != nil {
		*got = given
	}
	return err
}

func (d *dockerd) release(p *pool, addr string) {
	d.call("IpamDriver.ReleaseAddress", object{"PoolID": p.id, "Address": addr}, nil)
}

func (d *dockerd) releasePools(pools []*pool) {
	for _, p := range pools {
		d.release(p, p.gateway)
		d.call("IpamDriver.ReleasePool", object{"PoolID": p.id}, nil)
	}
}

func (n *network) creation() object {
	data := map[bool][]object{false: {}, true: {}}
	for _, p := range n.pools {
		bits := strings.SplitN(p.subnet, "/", 2)[1]
		data[p.v6] = append(data[p.v6], object{"AddressSpace": "underlay", "Pool": p.subnet, "Gateway": p.gateway + "/" + bits})
	}
	return object{"NetworkID": n.id, "IPv4Data": data[false], "IPv6Data": data[true], "Options": object{
		"com.docker.network.generic": n.options, "com.docker.network.enable_ipv6": len(data[true]) > 0,
	}}
}

// removeNetwork is docker network rm. It heeds no error.
func (d *dockerd) removeNetwork(name string) {
	n := d.networks[name]
	if n == nil {
		return
	}
	delete(d.networks, name)
	d.releasePools(n.pools)
	d.call("NetworkDriver.DeleteNetwork", object{"NetworkID": n.id}, nil)
}

// start is docker run or docker start, of a container on one network; --ip is
// addr, "" for any.
func (d *dockerd) start(name, network, addr string) error {
	c := &container{netns: d.host + name, sandbox: sandboxes + "/" + d.unique()}
	if err := newNetns(c.netns, c.sandbox); err != nil {
		return err
	}
	if err := d.join(c, d.networks[network], addr); err != nil {
		c.drop()
		return err
	}
	d.containers[name] = c
	return nil
}

// connect is docker network connect.
func (d *dockerd) connect(name, network string) error {
	return d.join(d.containers[name], d.networks[network], "")
}

func (d *dockerd) join(c *container, n *network, addr string) error {
	e := &endpoint{network: n, id: d.newID(), addrs: make([]netip.Prefix, len(n.pools)), name: fmt.Sprintf("eth%d", len(c.endpoints))}
	face := object{"Address": "", "AddressIPv6": "", "MacAddress": ""}
	for i, p := range n.pools {
		if i > 0 {
			addr = ""
		}
		if err := d.request(p, addr, object{}, &e.addrs[i]); err != nil {
			return err // what has been got of another family is not given back (libnetwork, createEndpoint)
		}
		face[map[bool]string{false: "Address", true: "AddressIPv6"}[p.v6]] = e.addrs[i].String()
	}
	var made struct{ Interface struct{ MacAddress string } }
	about := object{"NetworkID": n.id, "EndpointID": e.id}
	err := d.call("NetworkDriver.CreateEndpoint", object{"NetworkID": n.id, "EndpointID": e.id, "Interface": face, "Options": object{}}, &made)
	if err != nil {
		d.releaseAddresses(e)
		return err
	}
	e.mac = made.Interface.MacAddress
	var joined struct {
		InterfaceName        struct{ SrcName, DstPrefix string }
		Gateway, GatewayIPv6 string
		StaticRoutes         []struct {
			Destination, NextHop string
			RouteType            int
		}
	}
	err = d.call("NetworkDriver.Join", object{
		"NetworkID": n.id, "EndpointID": e.id, "SandboxKey": c.sandbox, "Options": object{},
	}, &joined)
	if err == nil {
		e.link = joined.InterfaceName.SrcName
		lines := fmt.Sprintf("link set %s netns %s name %s", e.link, c.netns, e.name)
		if err = ip(d.host, lines); err == nil {
			lines = "link set lo up"
			if e.mac != "" {
				lines += fmt.Sprintf("\nlink set %s address %s", e.name, e.mac)
			}
			for _, a := range e.addrs {
				nodad := map[bool]string{true: " nodad"}[a.Addr().Is6()]
				lines += fmt.Sprintf("\naddr add %v dev %s%s", a, e.name, nodad)
			}
			lines += fmt.Sprintf("\nlink set %s up", e.name)
			for _, r := range joined.StaticRoutes {
				via := ""
				if r.NextHop != "" {
					via = " via " + r.NextHop
				}
				lines += fmt.Sprintf("\nroute add %s%s dev %s", r.Destination, via, e.name)
			}
			if len(c.endpoints) == 0 {
				for _, gw := range []string{joined.Gateway, joined.GatewayIPv6} {
					if gw != "" {
						lines += fmt.Sprintf("\nroute add default via %s dev %s", gw, e.name)
					}
				}
			}
			err = ip(c.netns, lines)
		}
		if err != nil { // dockerd says it twice
			d.call("NetworkDriver.Leave", about, nil)
			d.call("NetworkDriver.Leave", about, nil)
		}
	}
	if err != nil {
		d.call("NetworkDriver.DeleteEndpoint", about, nil)
		d.releaseAddresses(e)
		return err
	}
	c.endpoints = append(c.endpoints, e)
	d.call("NetworkDriver.ProgramExternalConnectivity", object{"NetworkID": n.id, "EndpointID": e.id, "Options": object{}}, nil)
	d.call("NetworkDriver.EndpointOperInfo", about, nil)
	return nil
}

func (d *dockerd) releaseAddresses(e *endpoint) {
	for i, p := range e.network.pools {
		d.release(p, e.addrs[i].Addr().String())
	}
}

// leave is docker network disconnect, and a part of docker stop. It heeds no
// error.
func (d *dockerd) leave(c *container, e *endpoint) {
	about := object{"NetworkID": e.network.id, "EndpointID": e.id}
	c.endpoints = slices.DeleteFunc(c.endpoints, func(o *endpoint) bool { return o == e })
	d.call("NetworkDriver.Leave", about, nil)
	d.moveBack(c, e)
	d.call("NetworkDriver.DeleteEndpoint", about, nil)
	d.releaseAddresses(e)
}

func (d *dockerd) moveBack(c *container, e *endpoint) {
	ip(c.netns, fmt.Sprintf("link set %s down\nlink set %s netns %s name %s", e.name, e.name, d.host, e.link))
}

func (d *dockerd) stopContainer(name string) {
	c := d.containers[name]
	if c == nil {
		return
	}
	delete(d.containers, name)
	for _, e := range slices.Clone(c.endpoints) {
		d.leave(c, e)
	}
	c.drop()
}

// restart is that of dockerd itself, after it was killed. Without live-restore
// its containers have died with it, and restart policies bring them back.
func (d *dockerd) restart(live bool) error {
	if !live {
		for _, c := range d.containers {
			c.drop()
		}
	}
	if err := d.boot(); err != nil {
		return err
	}
	for _, name := range sorted(d.networks) {
		d.replay(d.networks[name])
	}
	if live {
		return nil
	}
	was := d.containers
	d.containers = map[string]*container{}
	for _, name := range sorted(was) {
		for _, e := range was[name].endpoints {
			about := object{"NetworkID": e.network.id, "EndpointID": e.id}
			d.call("NetworkDriver.Leave", about, nil)
			d.call("NetworkDriver.DeleteEndpoint", about, nil)
			d.releaseAddresses(e)
		}
	}
	return nil
}

// replay asks again for what a network has (libnetwork, reservePools). Errors are
// logged; one about the second family has the first one released.
func (d *dockerd) replay(n *network) {
	for i, p := range n.pools {
		if d.allocate(p) != nil {
			d.releasePools(n.pools[:i])
			break
		}
	}
	for _, name := range sorted(d.containers) {
		for _, e := range d.containers[name].endpoints {
			for i, p := range n.pools {
				if e.network == n {
					d.request(p, e.addrs[i].Addr().String(), nil, nil)
				}
			}
		}
	}
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (c *container) drop() { dropNetns(c.netns, c.sandbox) }
