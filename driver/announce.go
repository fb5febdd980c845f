package driver

import (
	"context"
	"net"
	"net/netip"
	"time"

	"underlay/internal/pause"
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
)

// announced tells whether the LAN is to know where the containers of a network
// are: whoever had an address before had another MAC, and the LAN's machines
// remember that. Docker announces them itself from 28 on, but links without a MAC
// of their own only from 29.3 on.
func (d *Driver) announced(n *Network) bool {
	return d.announcer != nil && !n.dummy() && (!n.mode().RoutesByLink() || n.Options.Proxy)
}

// announce tells the LAN of an endpoint whose link is up in its container, until
// it has been heard or ctx ends.
func (d *Driver) announce(ctx context.Context, n *Network, e *Endpoint) {
	log := d.logOfEndpoint(n.ID, e.ID)
	for k := range announcements {
		if k > 0 && pause.For(ctx, announceEvery) != nil {
			return
		}
		for _, p := range e.prefixes() {
			if err := d.announcer.Announce(n.parent(), p.Addr(), net.HardwareAddr(e.MAC)); err != nil {
				log.Warnf("%v not announced to the LAN: %v", p.Addr(), err)
			}
		}
	}
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
		for _, p := range e.prefixes() {
			addrs[n.parent()] = append(addrs[n.parent()], p.Addr())
		}
	}
	d.mu.Unlock()
	d.announcer.Answer(addrs)
}

// Close ends what works in the background.
func (d *Driver) Close() {
	d.cancel()
	d.reconciling.Lock() // nor does it begin anything from here
	defer d.reconciling.Unlock()
	d.companions.Wait()
}
