package driver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"underlay/netlinkutil"
)

// Announcer tells a LAN who has an address.
type Announcer interface {
	// Announce says on a link that addr is at mac, or if that is nil at the
	// link's own MAC.
	Announce(link string, addr netip.Addr, mac net.HardwareAddr) error
	// Answer has requests for these addresses answered on their links with the
	// links' own MACs, until it is called again.
	Answer(addrs map[string][]netip.Addr)
}

const (
	// An announcement may be lost, so it is made as often as RFC 4861 section
	// 10 has it for neighbour advertisements (MAX_NEIGHBOR_ADVERTISEMENT,
	// RETRANS_TIMER); RFC 5227 section 1.1 has two ARP announcements.
	announcements = 3
	announceEvery = time.Second
	// arriveWithin is how long dockerd may take from Join to a link that is up.
	arriveWithin = 30 * time.Second
)

// announce corrects the caches of the LAN's machines once the link of an
// endpoint is up in its container: whoever had the address before had another
// MAC. Docker does so itself from 28 on, but for links without a MAC of their
// own only from 29.3 on. Called before dockerd moves the link.
func (d *Driver) announce(n *Network, e *Endpoint) {
	if d.announcer == nil || n.dummy() || n.mode().RoutesByLink() && !n.Options.Proxy {
		return
	}
	log := d.logOf(n.ID).WithField("endpoint", Short(e.ID))
	arrived, err := d.kernel.Follow(linkName(e.ID))
	if err != nil {
		log.Warnf("not announced to the LAN: %v", err)
		return
	}
	ctx, cancel := context.WithCancel(d.ctx)
	d.mu.Lock()
	if before := d.announcing[e.ID]; before != nil {
		before()
	}
	d.announcing[e.ID] = cancel
	d.mu.Unlock()
	d.announcers.Add(1)
	go func() {
		defer d.announcers.Done()
		defer cancel()
		wait, stop := context.WithTimeout(ctx, arriveWithin)
		err := arrived(wait)
		stop()
		switch {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, netlinkutil.ErrTimeout):
			log.Warnf("not announced to the LAN, as its link did not come up in time: %v", err)
			return
		default: // it has gone
			log.Debugf("not announced to the LAN: %v", err)
			return
		}
		for k := range announcements {
			if k > 0 {
				select {
				case <-time.After(announceEvery):
				case <-ctx.Done():
					return
				}
			}
			for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
				if !p.IsValid() {
					continue
				}
				if err := d.announcer.Announce(n.parent(), p.Addr(), net.HardwareAddr(e.MAC)); err != nil {
					log.Warnf("%v not announced to the LAN: %v", p.Addr(), err)
				}
			}
		}
	}()
}

// answer brings what the announcer answers for in line with the records, after
// an endpoint of a network has come or gone.
func (d *Driver) answer(n *Network) {
	if d.announcer == nil || !n.Options.Proxy {
		return
	}
	d.answering.Lock()
	defer d.answering.Unlock()
	d.mu.Lock()
	addrs := map[string][]netip.Addr{}
	for _, e := range d.endpoints {
		n := d.networks[e.NetworkID]
		if n == nil || !n.Options.Proxy {
			continue
		}
		for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if p.IsValid() {
				addrs[n.parent()] = append(addrs[n.parent()], p.Addr())
			}
		}
	}
	d.mu.Unlock()
	d.announcer.Answer(addrs)
}

// unannounce ends the announcements of an endpoint that leaves.
func (d *Driver) unannounce(endpointID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cancel := d.announcing[endpointID]; cancel != nil {
		cancel()
		delete(d.announcing, endpointID)
	}
}

// Close ends what works in the background.
func (d *Driver) Close() {
	d.cancel()
	d.announcers.Wait()
}
