package ipam

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// A leftover is what stays held although nobody needs it: reserved addresses
// of a network whose creation failed half-way, addresses and pools of a
// dockerd that was killed between two calls, the IPv4 address of a container
// whose IPv6 one was refused (dockerd never releases that one), the addresses
// of containers that ended while the plugin was away. A wrong guess would give an
// address twice, so a leftover must have been unwanted for the grace period,
// by dockerd, by every known network and by every endpoint.

// little is how much later they are looked for, so that what has just begun is old
// enough by then.
const little = time.Second

// clearLater has leftovers looked for when the grace period is over. Called
// with the lock held.
func (i *IPAM) clearLater() { i.clearIn(i.grace) }

func (i *IPAM) clearIn(d time.Duration) {
	if i.timed || !i.knows {
		return
	}
	i.timed = true
	i.clearer = time.AfterFunc(d+little, i.clear)
}

// clear frees all leftovers.
func (i *IPAM) clear() {
	i.mu.Lock()
	i.timed = false
	b := &batch{}
	i.endReplays(b)
	again := waits{none: true}
	i.pools.Scan(func(p *pool) bool {
		i.recount(b, p)
		switch {
		case p.settled != nil:
			again.add(0)
		case !i.wanted(p) || i.unreplayed(p) || i.stillborn(p):
			i.log.WithField("pool", p.subnet).Info("freeing a pool that nobody asks for any more")
			i.drop(b, p)
		case i.pending(p) <= 0:
			i.clearPool(b, p, &again)
		case i.now().Sub(p.requested) < i.grace:
			again.add(i.grace - i.now().Sub(p.requested))
		}
		if p.window {
			again.add(i.grace - i.now().Sub(p.replayed))
		}
		return true
	})
	if !again.none {
		i.clearIn(again.least)
	}
	if err := i.commit(context.Background(), b, nil); err != nil {
		i.log.WithError(err).Warn("leftover addresses stay held")
	}
}

// waits is the least of some times to wait.
type waits struct {
	none  bool
	least time.Duration
}

func (w *waits) add(d time.Duration) {
	if d = max(d, 0); w.none || d < w.least {
		w.none, w.least = false, d
	}
}

// clearPool frees the leftovers of a pool no network of which is pending, and adds
// when others may have become leftovers by mere waiting.
func (i *IPAM) clearPool(b *batch, p *pool, again *waits) {
	for _, addr := range slices.SortedFunc(maps.Keys(p.special), netip.Addr.Compare) {
		h := p.special[addr]
		_, used := i.holder(addr)
		switch {
		case i.namers(p, addr) > 0:
		case h.settled != nil:
			again.add(0)
		case i.now().Sub(h.since) < i.grace:
			again.add(i.grace - i.now().Sub(h.since))
		case used && h.kind == KindEndpoint && !h.released:
			h.attached = true
			delete(p.special, addr)
		case used:
			if h.released { // whoever uses it may do so for long: with the minute's other looks
				again.add(min(i.grace, i.nap()-little))
			}
		case h.kind == KindEndpoint && i.users == nil:
		default:
			if h.kind == KindEndpoint { // else free says so
				i.audit(p, addr, h, "freed").Info("freeing an address that nobody needs any more")
			}
			i.free(b, p, addr, h)
		}
	}
}

// recount corrects how many networks a pool is thought to have, once no creation
// is under way: what dockerd has asked for twice, because the plugin was ended in
// the middle of its replay, and what the removal that it was ended at left open.
func (i *IPAM) recount(b *batch, p *pool) {
	if p.settled != nil || p.window || i.now().Sub(p.requested) < i.grace {
		return
	}
	refs, named := p.refs, len(i.naming[p.subnet])
	switch {
	case named == 0 && p.removal >= 0:
		refs = min(refs, p.removal)
	case named > 0:
		refs = min(refs, i.known(p))
	}
	if refs == p.refs && !p.unsure {
		return
	}
	p.refs, p.unsure = refs, false
	if len(p.terms) == 1 {
		for _, t := range p.terms {
			t.refs = max(refs, 1)
		}
	}
	b.add(p.putSelf())
}

// endReplays closes the window of pools for which nothing has been asked again
// for the grace period, and marks what was not asked for again. That is only
// done where all networks of the pool are ours: of others' endpoints nothing is
// known.
func (i *IPAM) endReplays(b *batch) {
	i.pools.Scan(func(p *pool) bool {
		if !p.window || p.settled != nil || i.now().Sub(p.replayed) < i.grace {
			return true
		}
		if known := len(i.naming[p.subnet]); known > 0 && p.refs >= known && !p.grown() {
			p.endReplay(again)
		} else {
			p.endReplay(either)
		}
		b.add(p.putSelf())
		if i.pending(p) > 0 {
			return true
		}
		i.replayed = max(i.replayed, p.daemon)
		for addr, h := range p.held {
			if h.daemon < p.daemon {
				p.special[addr] = h
			}
		}
		return true
	})
}

// unreplayed says that dockerd, restarted, has asked again for other pools, but
// not for this one, and that the driver knows no network on it.
func (i *IPAM) unreplayed(p *pool) bool {
	return p.daemon < i.replayed && len(i.naming[p.subnet]) == 0
}

// stillborn says that the network which a pool was asked for has not come to be:
// dockerd was killed at its creation.
func (i *IPAM) stillborn(p *pool) bool {
	if len(i.naming[p.subnet]) > 0 || i.now().Sub(p.requested) < i.grace {
		return false
	}
	for _, h := range p.held {
		if h.kind != KindGateway {
			return false // another driver's network, with containers
		}
	}
	return true
}

// leftBehind says that a held address may be held anew before its grace is
// over: dockerd has released it, or a network's creation or a container's start has
// failed, and this is another try.
func (i *IPAM) leftBehind(p *pool, addr netip.Addr, h *holding, r AddressRequest) bool {
	retried := h.kind != KindEndpoint && r.Name == "" && i.pending(p) == 1 &&
		len(p.begun) > 0 && h.since.Before(p.begun[0]) && i.namers(p, addr) == 0
	// Held by a plugin that has ended since, which no endpoint has and which is asked
	// for by value: its answer was cut off, so that dockerd knows nothing of it. If
	// it does know, its endpoint and this one's cannot both be created.
	cutOff := h.kind == KindEndpoint && h.loaded && !h.attached && r.Addr == addr && !r.Gateway &&
		i.pending(p) <= 0 && !i.replaying(p) && i.namers(p, addr) == 0
	if !h.released && !retried && !cutOff {
		return false
	}
	_, used := i.holder(addr)
	return !used
}

// Ended says that the endpoint which had an address has ended without dockerd's
// having said so: the address is free after the grace period, unless dockerd
// comes back to it.
func (i *IPAM) Ended(addr netip.Addr) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.around(addr)
	if p == nil {
		return
	}
	h := p.held[addr]
	if h == nil || h.kind != KindEndpoint {
		return
	}
	h.attached, h.since = false, i.now()
	p.special[addr] = h
	i.clearLater()
}
