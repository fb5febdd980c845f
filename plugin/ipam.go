package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	wire "github.com/docker/go-plugins-helpers/ipam"

	"underlay/ipam"
)

const (
	// addressSpace is one name for the local and the global space: Docker 27
	// and later then accept a pool that overlaps the host's own routes.
	addressSpace = "underlay"

	// Keys of RequestAddress's options (moby, daemon/libnetwork/ipamapi and
	// netlabel).
	typeKey      = "RequestAddressType"
	gatewayValue = "com.docker.network.gateway"
	nameKey      = "com.docker.network.endpoint.name" // Docker 29 and later
)

// ipamCapabilities is wire.CapabilitiesResponse and what it lacks.
// RequiresMACAddress stays false: it puts a MAC on ipvlan links, which the
// kernel refuses.
type ipamCapabilities struct{ RequiresMACAddress, RequiresRequestReplay bool }

func (p *Plugin) routeIPAM() {
	s := p.server
	route(s, "/IpamDriver.GetCapabilities", p.ipamCapabilities)
	fixed(s, "/IpamDriver.GetDefaultAddressSpaces", wire.AddressSpacesResponse{
		LocalDefaultAddressSpace: addressSpace, GlobalDefaultAddressSpace: addressSpace,
	})
	at(s, "/IpamDriver.RequestPool", p.requestPool)
	at(s, "/IpamDriver.ReleasePool", p.releasePool)
	at(s, "/IpamDriver.RequestAddress", p.requestAddress)
	at(s, "/IpamDriver.ReleaseAddress", p.releaseAddress)
}

// ipamCapabilities is the first call of a dockerd that has started, and the
// sign that its replay of pools and addresses may follow.
func (p *Plugin) ipamCapabilities(ctx context.Context, _ none) (ipamCapabilities, error) {
	connected := func() {
		if <-p.loaded; p.failed.Load() == nil {
			p.parts.ipam.Daemon()
			p.parts.driver.DaemonConnected()
		}
	}
	if p.ready(ctx) == nil {
		connected()
	} else {
		go connected() // dockerd's boot waits for this answer
	}
	return ipamCapabilities{RequiresRequestReplay: true}, nil
}

func (p *Plugin) requestPool(ctx context.Context, req wire.RequestPoolRequest) (res wire.RequestPoolResponse, err error) {
	defer p.stir()
	r := ipam.PoolRequest{V6: req.V6, Options: req.Options}
	if r.Subnet, err = poolPrefix("--subnet", req.Pool); err != nil {
		return res, err
	}
	if r.Range, err = poolPrefix("--ip-range", req.SubPool); err != nil {
		return res, err
	}
	if r, err = p.parts.ipam.Learn(ctx, r); err != nil {
		return res, err
	}
	pool, err := p.parts.ipam.RequestPool(ctx, r)
	if err != nil {
		return res, err
	}
	return wire.RequestPoolResponse{PoolID: pool.ID, Pool: pool.Subnet.String(), Data: map[string]string{}}, nil
}

func (p *Plugin) releasePool(ctx context.Context, req wire.ReleasePoolRequest) (none, error) {
	defer p.stir()
	return none{}, p.parts.ipam.ReleasePool(ctx, req.PoolID)
}

func (p *Plugin) requestAddress(ctx context.Context, req wire.RequestAddressRequest) (res wire.RequestAddressResponse, err error) {
	r := ipam.AddressRequest{PoolID: req.PoolID, Gateway: req.Options[typeKey] == gatewayValue, Name: req.Options[nameKey]}
	if req.Address != "" {
		if r.Addr, err = address(req.Address); err != nil {
			return res, err
		}
	}
	if subnet, _, err := ipam.ParsePoolID(req.PoolID); err == nil && !r.Gateway && !r.Addr.IsValid() && !p.parts.driver.Uses(subnet) {
		if aside := p.parts.store.Aside(); aside != nil {
			return res, fmt.Errorf("no network on %v is known to underlay: %v", subnet, aside)
		}
		// Whether another driver's container lives cannot be known here, and so
		// not when its address is free again.
		return res, fmt.Errorf("underlay knows no network on %v: it was made with another driver, or before the plugin was last installed; docker network rm and create it again, with underlay for both -d and --ipam-driver", subnet)
	}
	if r, err = p.parts.ipam.Lease(ctx, r); err != nil {
		return res, err
	}
	addr, err := p.parts.ipam.RequestAddress(ctx, r)
	if err != nil {
		return res, err
	}
	return wire.RequestAddressResponse{Address: addr.String(), Data: map[string]string{}}, nil
}

func (p *Plugin) releaseAddress(ctx context.Context, req wire.ReleaseAddressRequest) (none, error) {
	addr, err := address(req.Address)
	if err != nil {
		return none{}, err
	}
	// dockerd does not repeat a release: the one is tried whatever becomes of the
	// other. The IPAM keeps an address that an endpoint has.
	return none{}, errors.Join(p.parts.driver.Released(ctx, addr), p.parts.ipam.ReleaseAddress(ctx, req.PoolID, addr))
}

func poolPrefix(flag, text string) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, badRequest{fmt.Errorf("%s %s is no subnet; write it as 192.168.50.0/24 or fd00:50::/64", flag, text)}
	}
	return p, nil
}

func address(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return addr, badRequest{fmt.Errorf("%q is no IP address; write it as 192.168.50.10 or fd00:50::10", text)}
	}
	return addr.Unmap(), nil
}
