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
	// Take takes a lease and keeps it until Free. An error about IPv6 comes with the
	// address that the same container has been leased for IPv4, if that is certain:
	// it does not start, and nobody else gives that back.
	Take(context.Context, LeaseRequest) (netip.Addr, error)
	// Refuse tells the server that an address that it has given cannot be used.
	Refuse(addr netip.Addr, why error)
	// Has says whether an address is leased for a container. It must not call back.
	Has(addr netip.Addr) bool
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

// Learn completes a request for the pool of a LAN with a DHCP server: its IPv4 subnet
// and router are the server's to tell, if nobody has named them. It waits for that for
// as long as the pool's options say.
func (i *IPAM) Learn(ctx context.Context, r PoolRequest) (PoolRequest, error) {
	o, err := options.ParsePool(r.Options)
	if err != nil {
		return r, err
	}
	if o.DHCP.On() && i.leases == nil {
		return r, errors.New("this underlay has no DHCP client")
	}
	if o.DHCP.Leased(r.V6) && r.Range.IsValid() {
		return r, fmt.Errorf("--ip-range %s does not go with --ipam-opt dhcp: the server decides which addresses it gives; tell it there", r.Range)
	}
	if !o.DHCP.V4 || r.V6 || r.Subnet.IsValid() || o.Subnet(false).IsValid() {
		return r, nil
	}
	start := i.now()
	link := o.Parent
	if link == "" {
		if link, err = i.host.DefaultLink(false); err != nil {
			return r, fmt.Errorf("the LAN's DHCP server is asked on the NIC with the default route, and %w; name the NIC with --ipam-opt parent=", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.DHCP.Timeout)
	defer cancel()
	subnet, router, err := i.leases.Learn(ctx, link, o.DHCP)
	if err == nil {
		err = checkSubnet(subnet, netip.Prefix{})
	}
	if err != nil {
		return r, fmt.Errorf("the DHCP server of %s has not told the subnet: %w; or name it with --subnet and --gateway", link, err)
	}
	r.learned = &offer{subnet: subnet, link: link, router: router, read: true, took: i.now().Sub(start)}
	return r, nil
}

// Unleased says that an address was to be the server's to give and is not: dockerd,
// before version 29, asks for a container's --ip as it does for an --aux-address of
// a network that is being created at the time.
func (i *IPAM) Unleased(addr netip.Addr) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.around(addr)
	if p == nil || i.leases == nil || p.held[addr] == nil || i.leases.Has(addr) {
		return false
	}
	for _, t := range p.terms {
		if !t.options.DHCP.Leased(addr.Is6()) {
			return false // it may be by these
		}
	}
	return len(p.terms) > 0
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
	known := r.Name == "" && (i.creating(p) || i.replaying(p) && h != nil)
	return !known && (h == nil || h.settled == nil && i.leftBehind(p, r.Addr, h, r))
}

// Lease completes a request for an address that is the LAN's server's to give: it
// takes the lease, for as long as the pool's options let it wait. RequestAddress
// must follow.
func (i *IPAM) Lease(ctx context.Context, r AddressRequest) (AddressRequest, error) {
	subnet, within, err := ParsePoolID(r.PoolID)
	if err != nil {
		return r, err
	}
	p, err := i.lockPool(ctx, subnet)
	if err != nil {
		return r, err
	}
	if p == nil {
		i.mu.Unlock()
		return r, nil // RequestAddress will say so
	}
	t := p.termsOf(r.PoolID, within)
	needs := i.leased(p, t, r)
	behind := r.Addr.IsValid() && p.held[r.Addr] != nil
	taken := p.taken
	i.mu.Unlock()
	if !needs {
		return r, nil
	}
	if behind { // or the server would take the container for another than it was
		i.leases.Free(r.Addr)
	}
	if r.Addr.IsValid() {
		if err := p.check(r.Addr); err != nil {
			return r, err
		}
	}
	r.asked = i.now()
	addr, err := i.leases.Take(ctx, LeaseRequest{Subnet: subnet, Pool: t.id, Name: r.Name, Addr: r.Addr, DHCP: t.options.DHCP})
	if err != nil {
		if addr.IsValid() {
			i.giveUp(ctx, addr)
		}
		return r, err
	}
	err = p.check(addr)
	if what := taken[addr]; err == nil && what != "" {
		err = fmt.Errorf("%w: %s is %s", ErrTaken, addr, what)
	}
	if err != nil {
		err = fmt.Errorf("the DHCP server has given %s, which cannot be: %w", addr, err)
		i.leases.Refuse(addr, err)
		return r, err
	}
	r.Addr, r.leased = addr, true
	return r, nil
}

// giveUp frees the address of a container that does not start, unless an endpoint has it.
func (i *IPAM) giveUp(ctx context.Context, addr netip.Addr) {
	ctx = context.WithoutCancel(ctx) // the call has ended by an error, or is about to
	p, err := i.lockOverlapping(ctx, netip.PrefixFrom(addr, addr.BitLen()))
	if err != nil {
		return
	}
	var h *holding
	if p != nil {
		h = p.held[addr]
	}
	i.mu.Unlock()
	if h == nil || h.kind != KindEndpoint {
		return
	}
	if err := i.release(ctx, p.subnet, addr, h); err != nil {
		i.log.WithField("address", addr).Warnf("it is held for a container that has not started: %v", err)
	}
}

// unlease undoes Lease. The server hears of an address that cannot be used: one that
// only came too late, or to a full disk, is as good as before.
func (i *IPAM) unlease(addr netip.Addr, why error) {
	if errors.Is(why, ErrTaken) || errors.Is(why, ErrUnusable) {
		i.leases.Refuse(addr, why)
		return
	}
	i.leases.Free(addr)
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
