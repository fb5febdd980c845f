package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"underlay/internal/options"
)

// Leases are addresses that the LAN's own DHCP server gives. Its methods are called
// without IPAM's lock, but for Free, which must not call back or wait.
type Leases interface {
	// Learn asks for the IPv4 subnet and router of a link's LAN, and takes nothing.
	Learn(ctx context.Context, link string, o options.DHCP) (subnet netip.Prefix, router netip.Addr, err error)
	// Take takes a lease and keeps it until Free.
	Take(context.Context, LeaseRequest) (netip.Addr, error)
	// Refuse tells the server that an address that it has given cannot be used.
	Refuse(addr netip.Addr, why error)
	// Free says that no container has an address any more. It may be no lease.
	Free(addr netip.Addr)
}

// LeaseRequest asks for a lease in a pool.
type LeaseRequest struct {
	Subnet netip.Prefix
	Pool   string     // its ID
	Name   string     // the container's, where dockerd tells it
	Addr   netip.Addr // that and no other; zero: any
	DHCP   options.DHCP
}

// askServer finds out the pool of a LAN with a server.
func (i *IPAM) askServer(ctx context.Context, o options.Pool) (*offer, error) {
	link := o.Parent
	if link == "" {
		var err error
		if link, err = i.host.DefaultLink(false); err != nil {
			return nil, fmt.Errorf("the LAN's DHCP server is asked on the NIC with the default route, and %w; name the NIC with --ipam-opt parent=", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.DHCP.Timeout)
	defer cancel()
	subnet, router, err := i.leases.Learn(ctx, link, o.DHCP)
	if err != nil {
		return nil, fmt.Errorf("the DHCP server on %s has not told the subnet: %w; or name it with --subnet and --gateway", link, err)
	}
	return &offer{subnet: subnet, link: link, router: router, read: true}, checkSubnet(subnet, netip.Prefix{})
}

// leased says whether a request is to be answered by the LAN's server: one for a
// container, and not for what is held already or reserved by a network.
func (i *IPAM) leased(p *pool, t *terms, r AddressRequest) bool {
	if i.leases == nil || r.Gateway || !t.options.DHCP.Leased(p.subnet.Addr().Is6()) {
		return false
	}
	if !r.Addr.IsValid() {
		return true
	}
	h := p.held[r.Addr]
	known := r.Name == "" && (i.creating(p) || i.replaying(p))
	return !known && (h == nil || h.settled == nil && i.leftBehind(p, r.Addr, h, r))
}

// lease takes a lease. It is called with the lock and returns without.
func (i *IPAM) lease(ctx context.Context, p *pool, t *terms, r AddressRequest) (netip.Addr, error) {
	taken := p.taken
	i.mu.Unlock()
	if r.Addr.IsValid() {
		if err := p.check(r.Addr); err != nil {
			return netip.Addr{}, err
		}
	}
	addr, err := i.leases.Take(ctx, LeaseRequest{Subnet: p.subnet, Pool: t.id, Name: r.Name, Addr: r.Addr, DHCP: t.options.DHCP})
	if err != nil {
		return netip.Addr{}, err
	}
	err = p.check(addr)
	if what := taken[addr]; err == nil && what != "" {
		err = fmt.Errorf("%w: %s is %s", ErrTaken, addr, what)
	}
	if err != nil {
		err = fmt.Errorf("the DHCP server has given %s, which cannot be: %w", addr, err)
		i.leases.Refuse(addr, err)
	}
	return addr, err
}

// freed tells of addresses that no container has any more.
func (i *IPAM) freed(addrs ...netip.Addr) {
	if i.leases == nil {
		return
	}
	for _, a := range addrs {
		i.leases.Free(a)
	}
}

var errNoLeases = errors.New("this underlay has no DHCP client")
