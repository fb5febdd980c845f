package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"underlay/driver"
	"underlay/internal/options"
	"underlay/ipam"
	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
	"underlay/ipam/lease"
	"underlay/netlinkutil"
)

// leases hands the IPAM what it needs of the book, the driver and the kernel.
type leases struct {
	book   *lease.Book
	driver *driver.Driver
	kernel Kernel
}

func (l leases) Learn(ctx context.Context, link string, o options.DHCP) (subnet netip.Prefix, router netip.Addr, err error) {
	parent, err := l.kernel.Link(link)
	if err != nil {
		return subnet, router, err
	}
	defer extend(ctx, o.Timeout)()
	return l.book.Learn(ctx, parent.Name, parent.MAC, o)
}

func (l leases) Take(ctx context.Context, q ipam.LeaseRequest) (netip.Addr, error) {
	lan, err := l.driver.LANOf(q.Subnet)
	if err != nil {
		return netip.Addr{}, err
	}
	defer extend(ctx, q.DHCP.Timeout)()
	e, err := l.book.Take(ctx, lease.Request{
		V6: q.Subnet.Addr().Is6(), Parent: lan.MAC, Link: lan.Link, Shared: lan.Shared, Alone: lan.Alone,
		On: q.Pool, Name: q.Name, Addr: q.Addr, Subnet: q.Subnet, DHCP: q.DHCP,
	})
	if spent := (lease.Spent{}); errors.As(err, &spent) {
		return spent.Addr, err
	}
	return e.Given.Addr(), err
}

func (l leases) Refuse(addr netip.Addr, why error) { l.book.Refuse(addr, why) }
func (l leases) Has(addr netip.Addr) bool          { _, ok := l.book.Given(addr); return ok }
func (l leases) Free(addr netip.Addr)              { l.book.FreeAddress(addr) }

// checkWait is how long a machine that has an address may take to say so: it has
// been given that address by the LAN's own server, so that nobody ought to.
const checkWait = 200 * time.Millisecond

// inUse asks who has an address that a server has given: a container of this host on
// the same LAN, which its parent does not hear, or another machine of the LAN.
func (o *parts) inUse(ctx context.Context, link string, addr netip.Addr, mac net.HardwareAddr) (net.HardwareAddr, error) {
	if has, ok := o.driver.MACOn(link, addr); ok && len(has) > 0 && !bytes.Equal(has, mac) {
		return has, nil
	}
	if o.prober == nil {
		return nil, nil
	}
	used, err := o.prober.Probe(ctx, link, []netip.Addr{addr}, checkWait)
	return used[addr], err
}

// openLeases makes the DHCP clients and reads the book of leases. Nothing is sent.
func (p *Plugin) openLeases(o *parts) (err error) {
	log := p.config.Log.WithField("part", "dhcp")
	found := *o
	o.dhcp = dhcp.New(dhcp.Config{Log: log, Check: found.inUse, Told: func(e dhcp.Event) {
		if <-p.loaded; p.failed.Load() == nil {
			p.parts.book.Told(e)
		}
	}})
	o.dhcp6 = dhcp6.New(dhcp6.Config{Log: log, Check: found.inUse, Told: func(e dhcp6.Event) {
		if <-p.loaded; p.failed.Load() == nil {
			p.parts.book.Told6(e)
		}
	}})
	own := func(_ string, addr netip.Addr) string {
		all, err := o.kernel.Own()
		if err != nil {
			log.Warnf("the host's own addresses: %v", err)
		}
		return all[addr]
	}
	o.book, err = lease.Open(lease.Config{Client: o.dhcp, Client6: o.dhcp6, Store: o.store, Log: log, Changed: p.readdress, Own: own})
	if err != nil {
		o.dhcp.Close()
		o.dhcp6.Close()
		err = fmt.Errorf("leases: %w", err)
	}
	return err
}

// readdress sees to it that a running container has what the server gives it now.
func (p *Plugin) readdress(e lease.Entry) {
	var err error
	is, router := e.Lease.Addr, lease.Router(e.Lease.Terms) // none of IPv6: its routers tell of themselves
	if e.IPAM {
		err = p.parts.driver.Readdress(e.Given.Addr(), is, router, e.Router)
	} else {
		err = p.parts.driver.ReaddressLease(e.Key, is, router)
	}
	if err != nil {
		p.config.Log.WithField("part", "dhcp").Errorf("the container with %v lacks what the DHCP server gives it now (%v, router %v), until it is restarted: %v", e.Given.Addr(), is.Addr(), router, err)
	}
}

// leaser hands the driver the book.
type leaser struct {
	*lease.Book
	kernel Kernel
}

func (l *leaser) Lease(ctx context.Context, q driver.LeaseRequest) (driver.Lease, error) {
	defer extend(ctx, q.DHCP.Timeout)()
	var known []netlinkutil.Subnet
	var onLink []netip.Prefix
	if q.V6 {
		// An error: nothing is known, and the LAN's routers tell the container itself.
		known, _ = l.kernel.Subnets(q.LAN.Link)
		for _, s := range known {
			onLink = append(onLink, s.Prefix)
		}
	}
	e, err := l.Take(ctx, lease.Request{
		V6: q.V6, Parent: q.LAN.MAC, Link: q.LAN.Link, Shared: q.LAN.Shared, Alone: q.LAN.Alone, On: q.Network, MAC: net.HardwareAddr(q.MAC),
		Name: q.Own.Hostname, ClientID: q.Own.ClientID, OnLink: onLink, Mate: q.Mate, DHCP: q.DHCP,
	})
	if err != nil {
		return driver.Lease{}, err
	}
	given := driver.Lease{Key: e.Key, Addr: e.Given, Router: lease.Router(e.Lease.Terms), MTU: e.MTU}
	for _, s := range known {
		if s.Prefix == e.Given.Masked() {
			given.Router = s.Gateway
		}
	}
	if !q.LAN.Shared {
		given.MAC = driver.MAC(e.Lease.MAC)
	}
	given.Routes = leasedRoutes(e)
	return given, nil
}

// leasedRoutes are those of a lease besides the default route.
func leasedRoutes(e lease.Entry) (all []driver.Route) {
	for _, r := range e.Lease.Routes {
		if r.To.Bits() > 0 && r.To != e.Given.Masked() { // which the kernel routes by itself
			all = append(all, driver.Route{Destination: r.To, NextHop: r.Via})
		}
	}
	return all
}

// held tells whether a container may have a lease.
func (p *Plugin) held(e *lease.Entry) bool {
	if e.IPAM {
		return p.parts.ipam.Held(e.Given.Addr())
	}
	return p.parts.driver.HasLease(e.Key)
}
