package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"underlay/netlinkutil"
)

// Readdress gives a container that runs another address than Docker was told: the
// LAN's own server has taken back the one that it had. given is what Docker shows.
func (d *Driver) Readdress(given netip.Addr, c netlinkutil.Readdressing) error {
	d.mu.Lock()
	e := d.addresses[given]
	d.mu.Unlock()
	if e == nil || e.IPv4.Addr() != given {
		return nil // it has ended
	}
	n, err := d.network(e.NetworkID)
	if err != nil {
		return nil
	}
	c.Was = netip.PrefixFrom(c.Was.Addr(), e.IPv4.Bits())
	if n.Subnets != nil && e.IPv4.Contains(c.Is.Addr()) {
		c.Is = netip.PrefixFrom(c.Is.Addr(), e.IPv4.Bits())
	}
	if err := d.kernel.Readdress(e.Sandbox, d.endpointAlias(n.ID, e.ID), c); err != nil {
		if errors.Is(err, netlinkutil.ErrNoSandbox) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("endpoint %s: %w", Short(e.ID), err)
	}
	d.mu.Lock()
	delete(d.addresses, c.Was.Addr())
	d.mu.Unlock()
	after, ok := d.update(e.ID, func(e *Endpoint) { e.Leased = c.Is })
	if !ok {
		return nil
	}
	d.logOfEndpoint(n.ID, e.ID).Infof("gave its container %v in the place of %v", c.Is, c.Was)
	if parent, inside, err := d.inside(n, e.ID, e.Sandbox); err == nil {
		d.picture(e.ID, inside, parent)
	}
	d.announceAgain(n, after)
	d.keepAllAccess(&Report{})
	return nil
}
