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
	V6      bool
	Mate    string // IPv6: the key of the endpoint's lease of IPv4, if it has one
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

// TakeLease takes the leases of an endpoint of a network that has its addresses so.
// What it returns is what CreateEndpoint is to be called with, which then frees them
// if there is to be no such endpoint. own is what the container says of it.
func (d *Driver) TakeLease(ctx context.Context, req Endpoint, own options.Endpoint) (Endpoint, error) {
	n, err := d.network(req.NetworkID)
	if err != nil {
		return req, err
	}
	o := n.Options.DHCP
	if said := own.Given(); said != "" && !o.On() {
		return req, fmt.Errorf("driver-opt %s is for networks with --ipam-driver null -o dhcp=true; with --ipam-opt dhcp=true, Docker asks for the address before it tells this", said)
	}
	if !o.On() || req.IPv4.IsValid() || req.IPv6.IsValid() {
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
	ask := LeaseRequest{
		Network: n.ID, MAC: req.MAC, Own: own, DHCP: o,
		LAN: LAN{Link: parent.Name, MAC: parent.MAC, Shared: n.mode().SharesMAC() || n.mode().Alone() && req.MAC == nil, Alone: n.mode().Alone()},
	}
	leased := req
	for _, v6 := range []bool{false, true} {
		if !o.Leased(v6) {
			continue
		}
		ask.V6 = v6
		l, err := d.leaser.Lease(ctx, ask)
		if err != nil {
			d.free(&leased)
			return req, fmt.Errorf("network %s: %w", Short(n.ID), err)
		}
		if v6 {
			leased.Lease6, leased.IPv6 = &l, l.Addr
		} else {
			leased.Lease, leased.IPv4, ask.Mate = &l, l.Addr, l.Key
		}
		if leased.MAC == nil && !ask.LAN.Shared {
			leased.MAC = l.MAC
		}
	}
	return leased, nil
}

// free gives up the leases of an endpoint that is not to be.
func (d *Driver) free(e *Endpoint) {
	for _, l := range e.leases() {
		if d.leaser != nil {
			d.leaser.Free(l.Key)
		}
	}
}

// Leased returns the addresses that an endpoint has been leased, zero of a family of
// which it has not.
func (d *Driver) Leased(endpointID string) (v4, v6 netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.endpoints[endpointID]
	if e == nil {
		return v4, v6
	}
	if e.Lease != nil {
		v4 = e.IPv4
	}
	if e.Lease6 != nil {
		v6 = e.IPv6
	}
	return v4, v6
}

// HasLease tells whether an endpoint has the lease of a key.
func (d *Driver) HasLease(key string) bool { return d.withLease(key) != nil }

func (d *Driver) withLease(key string) *Endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.endpoints {
		for _, l := range e.leases() {
			if l.Key == key {
				return e
			}
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
	told := netip.Addr{}
	for _, l := range e.leases() {
		if l.Key == key {
			told = l.Router
		}
	}
	return d.readdress(e, is, router, told)
}

// Readdress sees to it that a container which runs has an address, and routes by a
// router, that the LAN's own server has given it in the place of what Docker was told;
// that is given. No router leaves the container its own, and so does one that the
// server has told at its start: told. It may be by another of the network's choice.
func (d *Driver) Readdress(given netip.Addr, is netip.Prefix, router, told netip.Addr) error {
	d.mu.Lock()
	e := d.addresses[given]
	d.mu.Unlock()
	if e == nil {
		return nil
	}
	if shown, _ := e.prefix(given.Is6()); shown.Addr() != given {
		return nil // it has ended
	}
	return d.readdress(e, is, router, told)
}

func (d *Driver) readdress(e *Endpoint, is netip.Prefix, router, told netip.Addr) error {
	n, err := d.network(e.NetworkID)
	if err != nil {
		return nil
	}
	v6 := is.Addr().Is6()
	shown, was := e.prefix(v6)
	if n.Subnets != nil && shown.Contains(is.Addr()) {
		is = netip.PrefixFrom(is.Addr(), shown.Bits())
	}
	routerWas := e.router(n, v6)
	if was.Addr() == is.Addr() {
		switch {
		case !router.IsValid() || router == routerWas || !routerWas.IsValid():
			return nil
		case !e.LeasedRouter.IsValid() && told != routerWas:
			return nil // the network's own gateway, which the server has no say in
		case !was.Contains(router):
			return fmt.Errorf("endpoint %s: the router %v is not on the link of %v", Short(e.ID), router, was)
		}
		is = was
	}
	c := netlinkutil.Readdressing{Was: was, Is: is, RouterWas: routerWas, RouterIs: router}
	err = d.kernel.Readdress(e.Sandbox, d.endpointAlias(n.ID, e.ID), c)
	switch {
	case errors.Is(err, netlinkutil.ErrNoSandbox) || e.Sandbox == "":
		return nil // it ends, or is not there yet: the next renewal sees to it
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("endpoint %s: %w", Short(e.ID), err)
	}
	d.mu.Lock()
	if was.Addr() != shown.Addr() && was != is {
		d.dropAddress(e, was.Addr())
	}
	d.mu.Unlock()
	after, ok := d.update(e.ID, func(e *Endpoint) {
		switch {
		case v6:
			e.Leased6 = is
		case was == is:
			e.LeasedRouter = router
		default:
			e.Leased, e.LeasedRouter = is, router
		}
		if e.Interface != nil { // which may have gone with its parent, and be made again as this
			i := c.Of(*e.Interface)
			e.Interface = &i
		}
	})
	if !ok {
		return nil
	}
	if was == is {
		d.logOfEndpoint(n.ID, e.ID).Infof("gave its container the router %v in the place of %v", router, routerWas)
	} else {
		d.audit(after, "freed", was).Infof("took it from its container: the server has given %v in its place", is)
		d.audit(after, "given", is).Infof("gave its container %v in the place of %v", is, was)
	}
	if parent, inside, err := d.inside(n, e.ID, e.Sandbox); err == nil {
		d.picture(e.ID, inside, parent)
	}
	d.announceAgain(n, after)
	d.keepAllAccess(&Report{})
	return nil
}

// router is that of an endpoint's default route of a family, as far as it is known.
func (e *Endpoint) router(n *Network, v6 bool) netip.Addr {
	shown, _ := e.prefix(v6)
	l := e.Lease
	if v6 {
		l = e.Lease6
	}
	switch {
	case e.LeasedRouter.IsValid() && !v6:
		return e.LeasedRouter
	case l != nil:
		return l.Router
	}
	return n.gateway(shown.Addr())
}
