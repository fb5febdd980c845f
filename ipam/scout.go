package ipam

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"underlay/internal/options"
)

// The stock is what makes a probed allocation fast: a few addresses of each
// pool's terms that nobody answered for a short while ago. A scout fills it, in
// the background, and probes it anew every minute; while it is in stock, the
// detector's ears are open, too. Requests that find it empty wait for the
// scout, who then asks about as many addresses as there are requests.

const (
	// scoutEvery is how often the stock is probed anew.
	scoutEvery = time.Minute
	// freshFor is how long a probe is believed.
	freshFor = 90 * time.Second
	// keptFor is how long after the last request a stock is kept fresh: a host
	// with hundreds of quiet networks leaves their LANs in peace.
	keptFor = time.Hour
	// blindFor is how long a probe that could not be sent stands for the next.
	blindFor = time.Second
	// maxAsk is how many addresses are asked about at once: 3 probes each make
	// fewer frames than a LAN's own broadcasts in a busy second.
	maxAsk = 128
	// maxMiss is how many addresses in a row may be in use before none are asked
	// about ahead any more, and maxMissed before requests are refused for a
	// minute: a router may be answering for all of them.
	maxMiss   = 1024
	maxMissed = 4096
)

// proven is an address that nobody answered for.
type proven struct {
	addr netip.Addr
	at   time.Time
}

func (t *terms) tell() {
	close(t.news)
	t.news = make(chan struct{})
}

// mark makes the allocator know whether an address is fresh.
func (p *pool) mark(addr netip.Addr) {
	if addr.Less(p.alloc.first) || p.alloc.last.Less(addr) {
		return
	}
	if p.alloc.resting[addr] != nil || p.marked(addr) {
		p.alloc.used.add(addr)
	} else {
		p.alloc.used.remove(addr)
	}
}

// marked says that an address is not free for whoever comes.
func (p *pool) marked(addr netip.Addr) bool {
	return p.held[addr] != nil || p.seen[addr] != nil || p.reserved[addr] != "" || p.taken[addr] != "" || p.stocked[addr] != nil
}

// barred says that an address, free or not, is given to nobody who has not asked
// for it.
func (p *pool) barred(addr netip.Addr) bool {
	return p.reserved[addr] != "" || p.taken[addr] != "" || p.alloc.excluded.has(addr)
}

// next returns the address of a pool that is next to be given out. If it is not
// urgent, those are left alone that should be given out only in need. If it will
// be asked about, it may be one that another machine had a short while ago.
func (i *IPAM) next(p *pool, t *terms, urgent, asked bool) (found netip.Addr, ok bool) {
	now := i.now()
	found, ok = p.alloc.pick(t.within, func(addr netip.Addr, r *rest) (fits, last bool) {
		if !urgent && (r.static || now.Sub(r.since) < t.options.Rest) {
			return false, true // those after it have rested even less, or are static
		}
		return !p.marked(addr) && !p.alloc.excluded.has(addr), false
	})
	if ok || !urgent {
		return found, ok
	}
	// Whoever had one of these may have gone.
	var oldest time.Time
	s := p.alloc.span(t.within)
	for addr, seen := range p.seen {
		from := seen.until
		if asked {
			from = seen.retry()
		}
		if s.contains(addr) && p.held[addr] == nil && p.stocked[addr] == nil && !p.barred(addr) &&
			from.Before(now) && (!ok || from.Before(oldest)) {
			found, ok, oldest = addr, true, from
		}
	}
	return found, ok
}

// retry is when an address in use may be asked about again.
func (s *seen) retry() time.Time {
	at := s.last
	if s.asked.After(at) {
		at = s.asked
	}
	if at = at.Add(retryAfter); s.last.IsZero() || s.until.Before(at) {
		return s.until
	}
	return at
}

// fromStock returns an address that may be given out unasked. It stays in stock
// until it is held.
func (i *IPAM) fromStock(p *pool, t *terms) (netip.Addr, bool) {
	for _, s := range slices.Clone(t.stock) {
		if i.now().Sub(s.at) < freshFor {
			return s.addr, true
		}
		p.destock(s.addr)
	}
	return netip.Addr{}, false
}

// isProven says that an address is in stock and fresh.
func (i *IPAM) isProven(p *pool, addr netip.Addr) bool {
	t := p.stocked[addr]
	if t == nil {
		return false
	}
	k := t.find(addr)
	return k >= 0 && i.now().Sub(t.stock[k].at) < freshFor
}

// find returns the place of an address in the stock, or -1.
func (t *terms) find(addr netip.Addr) int {
	return slices.IndexFunc(t.stock, func(s proven) bool { return s.addr == addr })
}

// destock takes an address out of the stock, if it is in.
func (p *pool) destock(addr netip.Addr) {
	t := p.stocked[addr]
	if t == nil {
		return
	}
	delete(p.stocked, addr)
	delete(t.asking, addr)
	t.stock = slices.DeleteFunc(t.stock, func(s proven) bool { return s.addr == addr })
	p.mark(addr)
}

// unstock gives up a stock.
func (p *pool) unstock(t *terms) {
	for addr, of := range p.stocked {
		if of == t {
			p.destock(addr)
		}
	}
}

// scout has the stock of a pool's terms filled, in the background. It returns
// whether something is on its way. Called with the lock held.
func (i *IPAM) scout(p *pool, t *terms) bool {
	if i.guard(p, t) != options.Probe || i.pool(p.subnet) != p || p.terms[t.id] != t || i.ctx.Err() != nil {
		return len(t.asking) > 0
	}
	now, ahead := i.now(), i.ahead(p, t)
	fresh := 0
	for _, s := range slices.Clone(t.stock) {
		if now.Sub(s.at) < freshFor {
			fresh++
		} else {
			p.destock(s.addr)
		}
	}
	// One question at a time, and half a stock is enough: the LAN is not
	// disturbed for each address.
	if len(t.asking) > 0 || t.waiting == 0 && fresh > ahead/2 {
		return len(t.asking) > 0
	}
	var addrs []netip.Addr
	for want := min(maxAsk, t.waiting+ahead-fresh); want > 0; want-- {
		addr, ok := i.next(p, t, t.waiting > fresh+len(addrs), true)
		if !ok {
			break
		}
		t.asking[addr] = p.seen[addr]
		delete(p.seen, addr)
		p.stocked[addr] = t
		p.mark(addr)
		addrs = append(addrs, addr)
	}
	if len(addrs) > 0 {
		i.send(p, t, addrs)
	}
	return len(t.asking) > 0
}

// ahead is how many addresses the stock should have. A container that has the
// parent to itself takes the answers from it, too, so there is no use in asking
// while it runs; nor where the LAN's own server chooses.
func (i *IPAM) ahead(p *pool, t *terms) int {
	if i.now().Sub(t.used) >= keptFor || t.options.DHCP.Leased(p.subnet.Addr().Is6()) {
		return 0
	}
	for id := range i.naming[p.subnet] {
		if i.networks[id].Alone {
			return 0
		}
	}
	return t.options.ProbeAhead
}

// send has addresses probed that are marked as asked about.
func (i *IPAM) send(p *pool, t *terms, addrs []netip.Addr) {
	links, wait := i.parents(p), t.options.ProbeWait
	p.links = links
	i.scouts.Add(1)
	go func() {
		defer i.scouts.Done()
		ctx, cancel := context.WithTimeout(i.ctx, wait+deadline)
		defer cancel()
		sent := i.now()
		used, all, err := i.ask(ctx, links, addrs, wait)
		i.mu.Lock()
		defer i.mu.Unlock()
		i.learn(p, t, links, addrs, used, all, err, sent)
	}()
}

// deadline is how much longer than it should a probe may take on a host that is
// too busy: what was found by then is kept, all else is asked again. Requests
// wait for 10 s.
const deadline = 5 * time.Second

// learn puts what a probe has told into the stock.
func (i *IPAM) learn(p *pool, t *terms, links []string, addrs []netip.Addr, used map[netip.Addr]net.HardwareAddr, all bool, err error, at time.Time) {
	unknown := err != nil || slices.ContainsFunc(i.parents(p), func(link string) bool { return !slices.Contains(links, link) })
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		// This host is too busy, which tells nothing about the LAN.
		i.log.WithField("pool", p.subnet).Warnf("the LAN could not be asked in time, so it is asked again: %v", err)
	case err != nil:
		if t.blind == nil && i.ctx.Err() == nil {
			i.log.WithField("pool", p.subnet).Warnf("addresses are given out without asking the LAN: %v", err)
		}
		t.blind, t.blindAt = err, i.now()
	default:
		t.blind = nil
	}
	for _, addr := range addrs {
		if p.stocked[addr] != t {
			continue // given out by value meanwhile, or heard to be in use
		}
		before := t.asking[addr]
		delete(t.asking, addr)
		if before != nil && (unknown || used[addr] != nil || !all && i.now().Before(before.until)) {
			p.seen[addr] = before
			p.destock(addr)
			if !unknown {
				before.asked = at // so that it is not asked about at once again
			}
			if used[addr] == nil {
				continue
			}
		}
		if unknown && used[addr] == nil {
			p.destock(addr)
			continue
		}
		if mac := used[addr]; mac != nil {
			i.see(p, addr, mac, false)
			continue
		}
		k := t.find(addr)
		if k < 0 {
			t.stock = append(t.stock, proven{addr, at})
		} else {
			t.stock[k].at = at
		}
	}
	for addr, mac := range used {
		if p.stocked[addr] == nil && p.held[addr] == nil {
			i.see(p, addr, mac, false)
		}
	}
	t.tell()
	for _, o := range p.terms { // who may borrow it
		if o != t && o.waiting > 0 {
			o.tell()
		}
	}
	if len(used) < len(addrs) {
		t.missed = 0
	} else {
		t.missed += len(used)
		t.missedAt = i.now()
	}
	if err == nil && (t.waiting > 0 || t.missed < maxMiss) {
		i.scout(p, t)
	}
}

// lookAround keeps the stocks fresh and forgets machines that have gone. Called
// every minute while the LAN is watched.
func (i *IPAM) lookAround() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ctx.Err() != nil {
		return
	}
	busy := false
	i.pools.Scan(func(p *pool) bool {
		i.expire(p)
		if p.guarded() == options.Off || !i.leads(p) {
			return true
		}
		busy = true
		for _, t := range slices.Collect(maps.Values(p.terms)) {
			i.rescout(p, t)
		}
		return true
	})
	if busy {
		i.lookAroundLater()
	} else {
		i.looking = false
	}
}

// rescout probes the stock anew. It stays in stock meanwhile.
func (i *IPAM) rescout(p *pool, t *terms) {
	i.scout(p, t)
	if i.guard(p, t) != options.Probe || i.ahead(p, t) == 0 {
		return
	}
	var addrs []netip.Addr
	for _, s := range t.stock {
		if i.now().Sub(s.at) >= scoutEvery/2 {
			addrs = append(addrs, s.addr)
		}
	}
	if len(addrs) > 0 {
		i.send(p, t, addrs)
	}
}

func (i *IPAM) lookAroundLater() {
	i.looking = true
	i.looker = time.AfterFunc(i.nap(), i.lookAround)
}

// guardLAN begins to guard the pools of a network that has come to be known.
// Called with the lock held.
func (i *IPAM) guardLAN(subnets []netip.Prefix) {
	if i.detector == nil {
		return
	}
	i.rewatchSoon()
	if !i.looking {
		i.lookAroundLater()
	}
	for _, subnet := range subnets {
		p := i.pool(subnet)
		if p == nil {
			continue
		}
		joins := slices.ContainsFunc(i.parents(p), func(link string) bool { return !slices.Contains(p.links, link) })
		for _, t := range p.terms {
			if joins { // what is in stock has not been asked about on all links
				p.unstock(t)
			}
			i.scout(p, t)
		}
	}
}
