package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"underlay/internal/options"
	"underlay/netlinkutil"
)

// Leaser takes addresses from the LAN's own server.
type Leaser interface {
	// Lease takes one, and keeps it until Free.
	Lease(context.Context, LeaseRequest) (Lease, error)
	// Free gives it up. It is called with locks held: it waits for nothing and does
	// not call back.
	Free(key string)
}

// LeaseRequest asks for a lease.
type LeaseRequest struct {
	Network string
	LAN     LAN
	MAC     MAC // nil: whichever
	Own     options.Endpoint
	DHCP    options.DHCP
}

// Lease is what the LAN's server has given an endpoint.
type Lease struct {
	Key    string       `json:"key"` // that of the book of leases
	Addr   netip.Prefix `json:"addr"`
	MAC    MAC          `json:"mac,omitempty"` // nil: the parent's
	Router netip.Addr   `json:"router,omitzero"`
	Routes []Route      `json:"routes,omitempty"` // besides the default route
	MTU    int          `json:"mtu,omitempty"`    // as the network has it from the server; 0: the parent's
}

// TakeLease takes a lease for an endpoint of a network that has its addresses so.
// What it returns is what CreateEndpoint is to be called with, which then frees the
// lease if there is to be no such endpoint. own is what the container says of it.
func (d *Driver) TakeLease(ctx context.Context, req Endpoint, own options.Endpoint) (Endpoint, error) {
	n, err := d.network(req.NetworkID)
	if err != nil {
		return req, err
	}
	if said := own.Given(); said != "" && !n.Options.DHCP.V4 {
		return req, fmt.Errorf("driver-opt %s is for networks with --ipam-driver null -o dhcp=true; with --ipam-opt dhcp=true, Docker asks for the address before it tells this", said)
	}
	if !n.Options.DHCP.V4 || req.IPv4.IsValid() {
		return req, nil
	}
	d.mu.Lock()
	known := d.endpoints[req.ID] != nil
	d.mu.Unlock()
	if known {
		return req, nil
	}
	if err := n.takes(req); err != nil {
		return req, err
	}
	parent, err := d.readyParent(n)
	if err != nil {
		return req, fmt.Errorf("network %s: %w", Short(n.ID), err)
	}
	if d.leaser == nil {
		return req, errors.New("this underlay has no DHCP client")
	}
	lan := LAN{Link: parent.Name, MAC: parent.MAC, Shared: n.mode().SharesMAC() || n.mode().Alone() && req.MAC == nil}
	l, err := d.leaser.Lease(ctx, LeaseRequest{Network: n.ID, LAN: lan, MAC: req.MAC, Own: own, DHCP: n.Options.DHCP})
	if err != nil {
		return req, fmt.Errorf("network %s: %w", Short(n.ID), err)
	}
	req.Lease, req.IPv4 = &l, l.Addr
	if req.MAC == nil && !lan.Shared {
		req.MAC = l.MAC
	}
	return req, nil
}

// Leased returns the address that an endpoint has been leased, if it has.
func (d *Driver) Leased(endpointID string) (addr netip.Prefix, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.endpoints[endpointID]
	if e == nil || e.Lease == nil {
		return addr, false
	}
	return e.IPv4, true
}

// HasLease tells whether an endpoint has the lease of a key.
func (d *Driver) HasLease(key string) bool { return d.withLease(key) != nil }

func (d *Driver) withLease(key string) *Endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.endpoints {
		if e.Lease != nil && e.Lease.Key == key {
			return e
		}
	}
	return nil
}

// ReaddressLease is Readdress for the endpoint that has a lease of the driver's.
func (d *Driver) ReaddressLease(key string, is netip.Prefix, router netip.Addr) error {
	e := d.withLease(key)
	if e == nil {
		return nil
	}
	return d.readdress(e, is, router)
}

// Readdress sees to it that a container which runs has an address, and routes by a
// router, that the LAN's own server has given it in the place of what Docker was told;
// that is given.
func (d *Driver) Readdress(given netip.Addr, is netip.Prefix, router netip.Addr) error {
	d.mu.Lock()
	e := d.addresses[given]
	d.mu.Unlock()
	if e == nil || e.IPv4.Addr() != given {
		return nil // it has ended
	}
	return d.readdress(e, is, router)
}

func (d *Driver) readdress(e *Endpoint, is netip.Prefix, router netip.Addr) error {
	n, err := d.network(e.NetworkID)
	if err != nil {
		return nil
	}
	if n.Subnets != nil && e.IPv4.Contains(is.Addr()) {
		is = netip.PrefixFrom(is.Addr(), e.IPv4.Bits())
	}
	was := e.prefixes()[0]
	if was.Addr() == is.Addr() {
		return nil
	}
	c := netlinkutil.Readdressing{Was: was, Is: is, RouterWas: e.router(n), RouterIs: router}
	err = d.kernel.Readdress(e.Sandbox, d.endpointAlias(n.ID, e.ID), c)
	switch {
	case errors.Is(err, netlinkutil.ErrNoSandbox) || e.Sandbox == "":
		return nil // it ends, or is not there yet: the next renewal sees to it
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("endpoint %s: %w", Short(e.ID), err)
	}
	d.mu.Lock()
	if d.addresses[was.Addr()] == e && was.Addr() != e.IPv4.Addr() {
		delete(d.addresses, was.Addr())
	}
	d.mu.Unlock()
	after, ok := d.update(e.ID, func(e *Endpoint) {
		e.Leased, e.LeasedRouter = is, router
		if e.Interface != nil { // which may have gone with its parent, and be made again as this
			i := c.Of(*e.Interface)
			e.Interface = &i
		}
	})
	if !ok {
		return nil
	}
	d.logOfEndpoint(n.ID, e.ID).Infof("gave its container %v in the place of %v", is, was)
	if parent, inside, err := d.inside(n, e.ID, e.Sandbox); err == nil {
		d.picture(e.ID, inside, parent)
	}
	d.announceAgain(n, after)
	d.keepAllAccess(&Report{})
	return nil
}

// router is that of an endpoint's default route of IPv4, as far as it is known.
func (e *Endpoint) router(n *Network) netip.Addr {
	switch {
	case e.LeasedRouter.IsValid():
		return e.LeasedRouter
	case e.Lease != nil:
		return e.Lease.Router
	}
	return n.gateway(e.IPv4.Addr())
}
