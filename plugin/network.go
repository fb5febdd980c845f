package plugin

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/docker/go-plugins-helpers/network"

	"underlay/driver"
	"underlay/internal/options"
	"underlay/ipam"
)

// Keys of the options of CreateNetwork and GwAllocCheck (moby,
// daemon/libnetwork/netlabel).
const (
	genericKey  = "com.docker.network.generic"
	internalKey = "com.docker.network.internal"
	dockerKeys  = "com.docker."
)

// networkCapabilities is network.CapabilitiesResponse and what Docker 28 adds.
type networkCapabilities struct {
	Scope, ConnectivityScope string
	GwAllocChecker           bool
}

// GwAllocCheck came with Docker 28 and is not in go-plugins-helpers.
type (
	gwAllocCheckRequest  struct{ Options map[string]any }
	gwAllocCheckResponse struct{ SkipIPv4, SkipIPv6 bool }
)

func (p *Plugin) routeNetwork() {
	s := p.server
	fixed(s, "/NetworkDriver.GetCapabilities", networkCapabilities{
		Scope: network.LocalScope, ConnectivityScope: network.GlobalScope, GwAllocChecker: true,
	})
	at(s, "/NetworkDriver.GwAllocCheck", p.gwAllocCheck)
	at(s, "/NetworkDriver.CreateNetwork", p.createNetwork)
	at(s, "/NetworkDriver.DeleteNetwork", p.deleteNetwork)
	at(s, "/NetworkDriver.CreateEndpoint", p.createEndpoint)
	at(s, "/NetworkDriver.DeleteEndpoint", p.deleteEndpoint)
	at(s, "/NetworkDriver.EndpointOperInfo", p.endpointInfo)
	at(s, "/NetworkDriver.Join", p.join)
	at(s, "/NetworkDriver.Leave", p.leave)
	// What a plugin of local scope is told and has nothing to do about.
	fixed(s, "/NetworkDriver.DiscoverNew", none{})
	fixed(s, "/NetworkDriver.DiscoverDelete", none{})
	fixed(s, "/NetworkDriver.ProgramExternalConnectivity", none{})
	fixed(s, "/NetworkDriver.RevokeExternalConnectivity", none{})
	fixed(s, "/NetworkDriver.AllocateNetwork", network.AllocateNetworkResponse{})
	fixed(s, "/NetworkDriver.FreeNetwork", none{})
}

func (p *Plugin) gwAllocCheck(_ context.Context, req gwAllocCheckRequest) (res gwAllocCheckResponse, err error) {
	o, internal, err := networkOptions(req.Options)
	if err != nil {
		return res, err
	}
	p.parts.ipam.AcceptsOverlap()
	skip := driver.SkipGateway(o, internal)
	return gwAllocCheckResponse{SkipIPv4: skip, SkipIPv6: skip}, nil
}

func (p *Plugin) createNetwork(ctx context.Context, req network.CreateNetworkRequest) (none, error) {
	defer p.stir()
	n := driver.Network{ID: req.NetworkID}
	var err error
	if n.Options, n.Internal, err = networkOptions(req.Options); err != nil {
		return none{}, err
	}
	if err := checkID("network", n.ID); err != nil {
		return none{}, err
	}
	for _, d := range slices.Concat(req.IPv4Data, req.IPv6Data) {
		s, err := subnet(d)
		if err != nil {
			return none{}, err
		}
		if s.Prefix.IsValid() {
			n.Subnets = append(n.Subnets, s)
			n.ForeignIPAM = n.ForeignIPAM || d.AddressSpace != addressSpace
		}
	}
	if err := p.parts.driver.Canonical(&n); err != nil {
		return none{}, err
	}
	if err := p.parts.ipam.Agree(pools(&n), n.Internal || n.LANLink() == ""); err != nil {
		return none{}, err
	}
	if err := p.parts.driver.CreateNetwork(ctx, n); err != nil {
		return none{}, err
	}
	p.parts.ipam.NetworkCreated(n.ID, pools(&n))
	return none{}, nil
}

func (p *Plugin) deleteNetwork(ctx context.Context, req network.DeleteNetworkRequest) (none, error) {
	// Past its deadline the call is answered, and still done to its end:
	// Docker does not repeat it.
	ctx = context.WithoutCancel(ctx)
	if err := p.parts.driver.DeleteNetwork(ctx, req.NetworkID); err != nil {
		return none{}, err
	}
	return none{}, p.parts.ipam.NetworkDeleted(ctx, req.NetworkID)
}

func (p *Plugin) createEndpoint(ctx context.Context, req network.CreateEndpointRequest) (res network.CreateEndpointResponse, err error) {
	own, err := endpointOptions(req.Options)
	if err != nil {
		return res, err
	}
	e := driver.Endpoint{ID: req.EndpointID, NetworkID: req.NetworkID}
	if err := checkID("endpoint", e.ID); err != nil {
		return res, err
	}
	if i := req.Interface; i != nil {
		if e.IPv4, err = prefix(i.Address); err != nil {
			return res, err
		}
		if e.IPv6, err = prefix(i.AddressIPv6); err != nil {
			return res, err
		}
		if i.MacAddress != "" {
			mac, err := net.ParseMAC(i.MacAddress)
			if err != nil || len(mac) != 6 {
				return res, fmt.Errorf("--mac-address %s is no MAC of six bytes, such as 02:00:5e:10:00:01", i.MacAddress)
			}
			e.MAC = driver.MAC(mac)
		}
	}
	for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
		if a.IsValid() && p.parts.ipam.Unleased(a.Addr()) {
			return res, fmt.Errorf("%v has no lease: Docker asked for it while it created a network on the subnet; start the container again", a.Addr())
		}
	}
	asked := e
	if e, err = p.parts.driver.TakeLease(ctx, e, own); err != nil {
		return res, err
	}
	mac, err := p.parts.driver.CreateEndpoint(ctx, e)
	if err != nil {
		return res, err
	}
	e = asked
	// Docker fails a call whose answer repeats a field that it had given.
	res.Interface = &network.EndpointInterface{}
	if e.MAC == nil && mac != nil {
		res.Interface.MacAddress = mac.String()
	}
	v4, v6 := p.parts.driver.Leased(e.ID)
	if v4.IsValid() && !e.IPv4.IsValid() {
		res.Interface.Address = v4.String()
	}
	if v6.IsValid() && !e.IPv6.IsValid() {
		res.Interface.AddressIPv6 = v6.String()
	}
	return res, nil
}

// endpointOptions are the driver-opts of a container, beside which Docker's own keys
// ride along.
func endpointOptions(all map[string]any) (options.Endpoint, error) {
	given := map[string]string{}
	for key, v := range all {
		if !strings.HasPrefix(key, dockerKeys) {
			given[key] = fmt.Sprint(v)
		}
	}
	return options.ParseEndpoint(given)
}

func (p *Plugin) deleteEndpoint(ctx context.Context, req network.DeleteEndpointRequest) (none, error) {
	return none{}, p.parts.driver.DeleteEndpoint(ctx, req.NetworkID, req.EndpointID)
}

func (p *Plugin) endpointInfo(_ context.Context, req network.InfoRequest) (network.InfoResponse, error) {
	info, err := p.parts.driver.EndpointInfo(req.NetworkID, req.EndpointID)
	return network.InfoResponse{Value: info}, err
}

// Route types of a static route (moby, daemon/libnetwork/types).
const (
	routeNextHop   = 0
	routeConnected = 1
)

func (p *Plugin) join(ctx context.Context, req network.JoinRequest) (res network.JoinResponse, err error) {
	if err := p.config.Sandboxes.check(req.SandboxKey); err != nil {
		return res, err
	}
	plumbing, err := p.parts.driver.Join(ctx, req.NetworkID, req.EndpointID, req.SandboxKey)
	if err != nil {
		return res, err
	}
	res.InterfaceName = network.InterfaceName{SrcName: plumbing.LinkName, DstPrefix: "eth"}
	// Without this, dockerd gives a container that has no gateway a second
	// interface on docker_gwbridge.
	res.DisableGatewayService = true
	for _, gw := range plumbing.Gateways {
		if gw.Is4() {
			res.Gateway = gw.String()
		} else {
			res.GatewayIPv6 = gw.String()
		}
	}
	for _, r := range plumbing.Routes {
		route := &network.StaticRoute{Destination: r.Destination.String(), RouteType: routeConnected}
		if r.NextHop.IsValid() {
			route.RouteType, route.NextHop = routeNextHop, r.NextHop.String()
		}
		res.StaticRoutes = append(res.StaticRoutes, route)
	}
	return res, nil
}

func (p *Plugin) leave(ctx context.Context, req network.LeaveRequest) (none, error) {
	return none{}, p.parts.driver.Leave(ctx, req.NetworkID, req.EndpointID)
}

// networkOptions reads the options of CreateNetwork and GwAllocCheck.
func networkOptions(given map[string]any) (o options.Network, internal bool, err error) {
	internal, _ = given[internalKey].(bool)
	generic, ok := given[genericKey].(map[string]any)
	if !ok && given[genericKey] != nil {
		return o, internal, badRequest{fmt.Errorf("%s is a %T, not an object", genericKey, given[genericKey])}
	}
	texts := make(map[string]string, len(generic))
	for key, value := range generic {
		text, ok := value.(string)
		if !ok {
			return o, internal, badRequest{fmt.Errorf("option %s is a %T, not a string", key, value)}
		}
		texts[key] = text
	}
	o, err = options.ParseNetwork(texts)
	return o, internal, err
}

// subnet reads a network's pool. The null IPAM driver's 0.0.0.0/0 is none.
func subnet(d *network.IPAMData) (s driver.Subnet, err error) {
	if s.Prefix, err = prefix(d.Pool); err != nil || s.Prefix.Bits() == 0 {
		return driver.Subnet{}, err
	}
	gw, err := prefix(d.Gateway)
	if err != nil {
		return s, err
	}
	s.Gateway = gw.Addr()
	for _, name := range slices.Sorted(maps.Keys(d.AuxAddresses)) {
		text, _ := d.AuxAddresses[name].(string)
		aux, err := prefix(text)
		if err != nil || !aux.IsValid() {
			return s, fmt.Errorf("--aux-address %s=%v is no address", name, d.AuxAddresses[name])
		}
		s.Aux = append(s.Aux, aux.Addr())
	}
	return s, nil
}

// pools is what the IPAM needs to know of a network.
func pools(n *driver.Network) ipam.NetworkPools {
	if n.ForeignIPAM {
		return ipam.NetworkPools{}
	}
	np := ipam.NetworkPools{Parent: n.LANLink(), Alone: n.Options.Mode.Alone(), Routed: n.Options.Mode.RoutesByLink()}
	for _, s := range n.Subnets {
		np.Subnets = append(np.Subnets, s.Prefix.Masked())
		if s.Gateway.IsValid() {
			np.Reserved = append(np.Reserved, s.Gateway)
		}
		np.Reserved = append(np.Reserved, s.Aux...)
	}
	return np
}

// prefix reads an address with its mask; "" is none.
func prefix(text string) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, badRequest{fmt.Errorf("%q is no address with a mask, such as 192.168.50.10/24", text)}
	}
	return p, nil
}

// checkID accepts Docker's IDs: hex digits, long enough for a derived name.
func checkID(what, id string) error {
	if len(id) < 13 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return badRequest{fmt.Errorf("%q is no %s ID of Docker's", id, what)}
	}
	return nil
}
