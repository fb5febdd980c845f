package ipam

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// NetworkPools is what a network of the driver needs of IPAM.
type NetworkPools struct {
	Subnets  []netip.Prefix
	Reserved []netip.Addr // its gateways and aux addresses
	Parent   string       // the link that leads to its LAN; "" if none does
	Routed   bool         // its containers are behind the host: ipvlan l3
	Alone    bool         // one container at a time has the parent to itself
}

// Know says, at the start of the plugin, which networks the driver has. Nothing is
// taken for left behind before.
func (i *IPAM) Know(networks map[string]NetworkPools) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for id, n := range networks {
		i.know(id, n)
	}
	for subnet := range i.naming {
		if p := i.pool(subnet); p != nil {
			p.refs = max(p.refs, i.known(p))
		}
	}
	for _, n := range networks {
		i.guardLAN(n.Subnets)
	}
	i.knows = true
	i.clearLater() // what a crash has left behind, even if no call ever comes
}

// NetworkCreated says that the driver has made a network.
func (i *IPAM) NetworkCreated(id string, n NetworkPools) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.know(id, n)
	for _, subnet := range n.Subnets {
		p := i.pool(subnet)
		if p == nil {
			continue
		}
		if p.window {
			i.warnOfOverlap(p, id, n)
		}
		// dockerd creates networks when its replay is over, so that the window
		// closes; if one reference is missing now, there was no replay, and
		// join has taken this very network's request for one.
		replayed := p.window && p.settled == nil
		if p.refs <= 1 || p.refs < len(i.naming[subnet]) {
			p.endReplay(both)
		} else {
			p.endReplay(again)
		}
		p.offer = nil
		delete(p.released, id)
		p.refs = max(p.refs, i.known(p))
		if len(p.begun) > 0 {
			p.begun = p.begun[:len(p.begun)-1] // which one is not known; the first began before all that go on
		}
		if i.pending(p) <= 0 {
			p.requested, p.begun = time.Time{}, nil
		}
		if replayed {
			// Not waited for: until it is on disk, more is remembered there.
			i.store.Submit(p.putSelf())
		}
	}
	i.guardLAN(n.Subnets)
	i.clearLater()
}

// warnOfOverlap tells of reserved addresses that containers have: what was taken
// for a replay, when they were asked for, was the creation of this network.
func (i *IPAM) warnOfOverlap(p *pool, id string, n NetworkPools) {
	for _, addr := range n.Reserved {
		if who, used := i.holder(addr); used && p.subnet.Contains(addr) {
			i.log.WithField("network", shortID(id)).Warnf("%s is reserved by this network, but held by %s; stop that container", addr, who)
		}
	}
}

// NetworkDeleted says that the driver has a network no more. It comes after
// dockerd has released the pools.
func (i *IPAM) NetworkDeleted(ctx context.Context, id string) error {
	i.mu.Lock()
	n, ok := i.networks[id]
	if !ok {
		i.mu.Unlock()
		return nil
	}
	i.forget(id, n)
	i.rewatchSoon()
	b := &batch{}
	b.onSettle(func(err error) {
		if err != nil {
			i.know(id, n)
		}
	})
	for _, subnet := range n.Subnets {
		p := i.pool(subnet)
		if p != nil && p.removal >= 0 {
			p.refs, p.removal = p.removal, -1
		}
		if p != nil && p.released[id] {
			delete(p.released, id)
			b.onSettle(func(err error) {
				if err != nil {
					p.released[id] = true
				}
			})
		}
		switch {
		case p == nil || p.settled != nil: // an unsettled one is left to clear
		case !i.wanted(p):
			i.drop(b, p)
		case i.pending(p) <= 0:
			for _, addr := range n.Reserved {
				if h := p.held[addr]; h != nil && h.settled == nil && !i.keepsOn(p, addr, h) {
					i.free(b, p, addr, h)
				}
			}
		}
	}
	i.clearLater()
	return i.commit(ctx, b, nil)
}

func (i *IPAM) know(id string, n NetworkPools) {
	if old, ok := i.networks[id]; ok {
		i.forget(id, old)
	}
	i.networks[id] = n
	for _, subnet := range n.Subnets {
		if i.naming[subnet] == nil {
			i.naming[subnet] = map[string]struct{}{}
		}
		i.naming[subnet][id] = struct{}{}
	}
}

func (i *IPAM) forget(id string, n NetworkPools) {
	delete(i.networks, id)
	for _, subnet := range n.Subnets {
		delete(i.naming[subnet], id)
		if len(i.naming[subnet]) == 0 {
			delete(i.naming, subnet)
		}
	}
}

// namedBy returns the known networks that reserve an address of a pool.
func (i *IPAM) namedBy(p *pool, addr netip.Addr) []string {
	var ids []string
	for _, id := range slices.Sorted(maps.Keys(i.naming[p.subnet])) {
		if slices.Contains(i.networks[id].Reserved, addr) {
			ids = append(ids, id)
		}
	}
	return ids
}

// shortID is how people know a network's or container's ID.
func shortID(id string) string { return id[:min(12, len(id))] }

// Abandoned returns the networks whose pools dockerd has released, all of them: it
// deletes them next, or their creation has failed. So has that of networks for
// which dockerd, restarted, has not asked again as it has for others.
func (i *IPAM) Abandoned() (ids []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(i.networks)) {
		subnets := i.networks[id].Subnets
		released := func(subnet netip.Prefix) bool {
			p := i.pool(subnet)
			return p != nil && p.settled == nil && (p.released[id] || p.daemon < i.replayed && i.flawed < i.replayed)
		}
		if len(subnets) > 0 && !slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return !released(s) }) {
			ids = append(ids, id)
		}
	}
	return ids
}
