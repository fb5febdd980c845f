package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"underlay/internal/options"
)

// Kind says what an address is held for.
type Kind string

const (
	// KindGateway addresses were asked for as a network's gateway.
	KindGateway Kind = "gateway"
	// KindReserved addresses were asked for by value while a network was being
	// created: an --aux-address of it, or, as dockerd does not tell the two
	// apart before Docker 29, the --ip of a container started meanwhile.
	KindReserved Kind = "reserved"
	// KindEndpoint addresses are those of containers.
	KindEndpoint Kind = "endpoint"

	kindResting Kind = "resting" // on disk only: free, but given out last
)

// AddressRequest asks for one address of a pool.
type AddressRequest struct {
	PoolID  string
	Addr    netip.Addr // zero: any
	Gateway bool       // as a network's gateway
	Name    string     // the container's name, where dockerd tells it

	leased bool      // the LAN's server has given Addr
	asked  time.Time // since when it was asked for that
}

// holding is one address held.
type holding struct {
	kind   Kind
	name   string
	since  time.Time
	static bool // asked for by value

	settled  chan struct{} // not nil: on its way to disk, or off it
	released bool          // by dockerd, but an endpoint had it still
	attached bool          // an endpoint has been seen to have it
	loaded   bool          // from the disk, and dockerd has not asked for it since

	// How often the daemon of this generation has asked for it.
	daemon uint64
	claims int
}

// RequestAddress holds an address and returns it with the mask of the subnet.
// Asking again for a gateway is no error, and neither is what dockerd asks
// again when it replays its networks after a restart.
func (i *IPAM) RequestAddress(ctx context.Context, r AddressRequest) (_ netip.Prefix, err error) {
	subnet, within, err := ParsePoolID(r.PoolID)
	if err != nil {
		return netip.Prefix{}, err
	}
	var proven netip.Addr // the LAN has been asked about it
	if r.leased {
		proven = r.Addr
		defer func() {
			if err != nil {
				i.unlease(r.Addr, err)
			}
		}()
	}
	if err := ctx.Err(); err != nil {
		return netip.Prefix{}, err
	}
	if r.Gateway && outside(subnet, r.Addr) {
		return netip.PrefixFrom(r.Addr, subnet.Bits()), nil // in no pool
	}
	i.refresh()
	for {
		p, err := i.lockPool(ctx, subnet)
		if err != nil {
			return netip.Prefix{}, err
		}
		if p == nil {
			i.mu.Unlock()
			if a := i.store.Aside(); a != nil {
				return netip.Prefix{}, fmt.Errorf("%w %q: %v", ErrUnknownPool, r.PoolID, a)
			}
			return netip.Prefix{}, fmt.Errorf("%w %q; remove the network and create it again", ErrUnknownPool, r.PoolID)
		}
		t := p.termsOf(r.PoolID, within)
		addr, do, err := i.choose(p, t, r, proven)
		if err != nil {
			i.mu.Unlock()
			return netip.Prefix{}, err
		}
		switch do {
		case wait:
			if err := i.awaitStock(ctx, t); err != nil {
				return netip.Prefix{}, err
			}
			continue
		case probe:
			asked, err := i.askFor(ctx, p, t, addr)
			if err != nil {
				return netip.Prefix{}, err
			}
			if asked {
				proven = addr
			}
			continue
		}
		if r.Gateway && outside(subnet, addr) {
			i.mu.Unlock()
			return netip.PrefixFrom(addr, subnet.Bits()), nil
		}
		h := p.held[addr]
		if h != nil && h.settled != nil {
			settled := h.settled
			i.mu.Unlock()
			if err := await(ctx, settled); err != nil {
				return netip.Prefix{}, err
			}
			continue
		}
		if h != nil && !i.leftBehind(p, addr, h, r) {
			err := i.claim(p, addr, h, r)
			i.mu.Unlock()
			if err != nil {
				return netip.Prefix{}, err
			}
			return netip.PrefixFrom(addr, subnet.Bits()), nil
		}
		b := &batch{}
		if who, used := i.holder(addr); used && h == nil && !i.replaying(p) {
			// An endpoint has it from elsewhere, such as another IPAM driver.
			if r.Addr.IsValid() {
				i.mu.Unlock()
				return netip.Prefix{}, fmt.Errorf("%w: %s is held by %s; choose another one", ErrTaken, addr, who)
			}
			h = i.newHolding(p, AddressRequest{})
			h.kind, h.released = KindReserved, true // a leftover once it is gone
			i.hold(b, p, addr, h)
			i.clearLater()
			if err := i.commit(ctx, b, nil); err != nil {
				return netip.Prefix{}, err
			}
			continue
		}
		h = i.newHolding(p, r)
		i.hold(b, p, addr, h)
		i.scout(p, t)  // for the next one
		i.clearLater() // dockerd may forget it before an endpoint has it
		err = i.commit(ctx, b, func() error { return i.release(context.Background(), subnet, addr, h) })
		if err != nil {
			return netip.Prefix{}, err
		}
		if h.kind != KindEndpoint {
			i.audit(p, addr, h, "given").Info("address given")
		}
		return netip.PrefixFrom(addr, subnet.Bits()), nil
	}
}

// outside tells whether a router is a neighbour without being in the subnet: a
// link-local one, or one that is told to be on the link.
func outside(subnet netip.Prefix, router netip.Addr) bool {
	return router.Is4() == subnet.Addr().Is4() && !subnet.Contains(router) &&
		(router.IsGlobalUnicast() || router.IsLinkLocalUnicast())
}

// step is what is to be done about an address chosen.
type step int

const (
	take  step = iota // it is held already, or may be
	probe             // the LAN is to be asked about it first
	wait              // none can be chosen before the stock has news
)

// choose finds the address that a request is about, held or not.
func (i *IPAM) choose(p *pool, t *terms, r AddressRequest, proven netip.Addr) (netip.Addr, step, error) {
	if r.Gateway && !r.Addr.IsValid() {
		addr, err := i.chooseGateway(p, t)
		return addr, take, err
	}
	if r.Addr.IsValid() {
		if err := p.check(r.Addr); err != nil {
			return r.Addr, take, err
		}
		if r.Gateway || r.Name == "" && i.creating(p) || p.held[r.Addr] != nil {
			return r.Addr, take, nil // not for a container, or the holder decides
		}
		if err := i.permit(p, r.Addr); err != nil {
			return r.Addr, take, err
		}
		// Before the server gave it, the LAN was asked who has it.
		if s := p.seen[r.Addr]; s != nil && r.leased && s.heard().Before(r.asked) {
			p.unsee(r.Addr)
		}
		do, err := i.mustAsk(p, t, r.Addr, proven)
		return r.Addr, do, err
	}
	t.used = i.now()
	if addr, ok := i.own(p, t, r.Name); ok {
		if err := i.permit(p, addr); err != nil {
			return addr, take, err
		}
		do, err := i.mustAsk(p, t, addr, proven)
		if err == nil || p.reserved[addr] != "" {
			return addr, do, err
		}
	}
	if addr, ok := i.fromStock(p, t); ok {
		return addr, take, nil
	}
	asks := i.guard(p, t) == options.Probe && (t.blind == nil || i.now().Sub(t.blindAt) >= blindFor)
	if !asks {
		if addr, ok := i.next(p, t, true, false); ok {
			return addr, take, nil
		}
		return i.borrow(p, t, false)
	}
	if t.missed >= maxMissed && i.now().Sub(t.missedAt) < retryAfter {
		return netip.Addr{}, take, fmt.Errorf("%s has no address that is known to be free: the last %d asked about are in use; if a router answers for all (proxy ARP), use --ipam-opt conflict=off with a range of your own", p.subnet, t.missed)
	}
	t.waiting++
	if i.scout(p, t) {
		return netip.Addr{}, wait, nil
	}
	t.waiting--
	return i.borrow(p, t, true)
}

// borrow chooses an address from the stocks of the pool's other networks: as
// long as nobody has it, it is as free as any.
func (i *IPAM) borrow(p *pool, t *terms, asks bool) (netip.Addr, step, error) {
	s := p.alloc.span(t.within)
	awaited := false
	for addr, of := range p.stocked {
		_, asking := of.asking[addr]
		switch {
		case !s.contains(addr):
		case !asks || i.isProven(p, addr):
			return addr, take, nil
		default:
			awaited = awaited || asking
			if !asking { // nobody has kept it fresh
				p.destock(addr)
			}
		}
	}
	if asks {
		t.waiting++
		if i.scout(p, t) || awaited {
			return netip.Addr{}, wait, nil
		}
		t.waiting--
	}
	return netip.Addr{}, take, i.exhausted(p, t)
}

// own returns the address that a container should have by its name: the one
// reserved for it, or the one that it had.
func (i *IPAM) own(p *pool, t *terms, name string) (netip.Addr, bool) {
	if name == "" {
		return netip.Addr{}, false
	}
	if addr, ok := t.options.Reserved(name, p.subnet.Addr().Is6()); ok && p.check(addr) == nil && p.held[addr] == nil {
		return addr, true
	}
	// Of two, on two networks of the pool, the one freed first: Docker starts a
	// container's networks in the order in which it stops them.
	var had netip.Addr
	s := p.alloc.span(t.within)
	for _, addr := range p.names[name] {
		if s.contains(addr) && !p.barred(addr) &&
			(!had.IsValid() || p.alloc.resting[addr].turn < p.alloc.resting[had].turn) {
			had = addr
		}
	}
	return had, had.IsValid()
}

// permit refuses a container what none may have.
func (i *IPAM) permit(p *pool, addr netip.Addr) error {
	if what := p.taken[addr]; what != "" {
		return fmt.Errorf("%w: %s is %s; choose another one", ErrUnusable, addr, what)
	}
	if p.alloc.excluded.has(addr) {
		return fmt.Errorf("%w: %s is excluded by --ipam-opt exclude; choose another one", ErrUnusable, addr)
	}
	return nil
}

// mustAsk says whether the LAN is to be asked about an address before it is
// given out, and refuses one that is known to be in use.
func (i *IPAM) mustAsk(p *pool, t *terms, addr, proven netip.Addr) (step, error) {
	guard := i.guard(p, t)
	if guard == options.Off {
		return take, nil
	}
	s := p.seen[addr]
	if guard == options.Probe && addr != proven {
		r := p.alloc.resting[addr]
		fresh := i.isProven(p, addr) || r != nil && r.here && i.now().Sub(r.since) < freshFor // it was ours until then
		if fresh && s == nil {
			return take, nil
		}
		return probe, nil
	}
	if s == nil || s.until.Before(i.now()) {
		return take, nil
	}
	if s.last.IsZero() {
		return take, fmt.Errorf("%w: %v is just asking the LAN for %s, too; choose another one", ErrTaken, s.mac, addr)
	}
	return take, fmt.Errorf("%w: %s is in use on the LAN by %v; choose another one, or take that machine off it", ErrTaken, addr, s.mac)
}

// askFor asks the LAN about one address, and returns whether it has been asked or
// cannot be: a busy host has to ask again. It is called with the lock and returns
// without. Where nothing can be asked, nothing is known, and it is no
// error: a container starts although its parent is down.
func (i *IPAM) askFor(ctx context.Context, p *pool, t *terms, addr netip.Addr) (asked bool, err error) {
	links, wait := i.parents(p), t.options.ProbeWait
	i.mu.Unlock()
	used, all, err := i.ask(ctx, links, []netip.Addr{addr}, wait)
	if ctx.Err() != nil {
		return false, fmt.Errorf("the LAN could not be asked about %s in time; try again: %w", addr, ctx.Err())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		t.blind = nil
	}
	switch {
	case used[addr] != nil:
		i.see(p, addr, used[addr], false)
	case errors.Is(err, context.DeadlineExceeded):
		return false, nil
	case err != nil:
		t.blind, t.blindAt = err, i.now()
		i.log.WithError(err).WithField("address", addr).Warn("given out without asking the LAN")
	case p.seen[addr] != nil && all:
		p.unsee(addr)
	}
	return true, nil
}

// awaitStock waits until the stock has news. It is called with the lock and
// returns without; the request has been counted as waiting.
func (i *IPAM) awaitStock(ctx context.Context, t *terms) error {
	news := t.news
	i.mu.Unlock()
	var err error
	select {
	case <-news:
	case <-ctx.Done():
		err = fmt.Errorf("no address was found free on the LAN in time; try again: %w", ctx.Err())
	}
	i.mu.Lock()
	t.waiting--
	i.mu.Unlock()
	return err
}

// chooseGateway finds a gateway for a network that names none: that of a network
// of the subnet, the LAN's router, or by custom the lowest address.
func (i *IPAM) chooseGateway(p *pool, t *terms) (netip.Addr, error) {
	if addr, ok := p.gateway(); ok {
		return addr, nil
	}
	if p.router.IsValid() {
		return p.router, nil
	}
	for addr := p.alloc.first; addr.IsValid() && !p.alloc.last.Less(addr); addr = addr.Next() {
		if p.held[addr] == nil && p.taken[addr] == "" && p.reserved[addr] == "" {
			return addr, nil
		}
	}
	return netip.Addr{}, i.exhausted(p, t)
}

// exhausted says what has become of all addresses.
func (i *IPAM) exhausted(p *pool, t *terms) error {
	s := p.alloc.span(t.within)
	var held, inUse, kept int // each address counts once
	excluded := p.alloc.excluded.count(run{s.first, s.last})
	for addr := range p.held {
		if !s.contains(addr) {
			continue
		}
		held++
		if p.alloc.excluded.has(addr) {
			excluded.Sub(excluded, big.NewInt(1))
		}
	}
	for addr := range p.seen {
		if s.contains(addr) && p.held[addr] == nil && !p.alloc.excluded.has(addr) {
			inUse++
		}
	}
	marked := map[netip.Addr]string{}
	maps.Copy(marked, p.reserved)
	maps.Copy(marked, p.taken)
	for addr := range marked {
		if s.contains(addr) && p.held[addr] == nil && p.seen[addr] == nil && !p.alloc.excluded.has(addr) {
			kept++
		}
	}
	where, remedy := p.subnet.String(), "use a larger --subnet"
	if t.within.IsValid() {
		where, remedy = fmt.Sprintf("%s range %s", p.subnet, t.within), "widen --ip-range"
	}
	return fmt.Errorf("%s is %w: of %d addresses, %d are held, %d excluded, %d reserved or the host's own, %d in use by other machines; free some, or %s",
		where, ErrExhausted, s.size(), held, excluded, kept, inUse, remedy)
}

// check refuses an address that may never be given out.
func (p *pool) check(addr netip.Addr) error { return checkAddress(p.subnet, addr) }

func checkAddress(subnet netip.Prefix, addr netip.Addr) error {
	first, last := usable(subnet)
	switch {
	case !subnet.Contains(addr):
		return fmt.Errorf("%w: %s is outside subnet %s; choose one inside", ErrUnusable, addr, subnet)
	case addr.Less(first) && addr.Is4():
		return fmt.Errorf("%w: %s is the network address of %s; choose a host address", ErrUnusable, addr, subnet)
	case addr.Less(first):
		return fmt.Errorf("%w: %s is the subnet-router anycast address of %s; choose a host address", ErrUnusable, addr, subnet)
	case last.Less(addr):
		return fmt.Errorf("%w: %s is the broadcast address of %s; choose a host address", ErrUnusable, addr, subnet)
	}
	return nil
}

// gateway returns the lowest address held as a gateway.
func (p *pool) gateway() (lowest netip.Addr, ok bool) {
	for addr, h := range p.special {
		if h.kind == KindGateway && (!ok || addr.Less(lowest)) {
			lowest, ok = addr, true
		}
	}
	return lowest, ok
}

// newHolding is what a request makes of an address.
func (i *IPAM) newHolding(p *pool, r AddressRequest) *holding {
	h := &holding{kind: KindEndpoint, name: r.Name, since: i.now(), static: r.Addr.IsValid() && !r.leased, daemon: i.daemon, claims: 1}
	switch {
	case r.Gateway:
		h.kind = KindGateway
	case r.Addr.IsValid() && r.Name == "" && !r.leased && (i.replaying(p) || i.pending(p) > 0):
		h.kind = KindReserved
	}
	return h
}

// hold makes an address held that is free, or left behind.
func (i *IPAM) hold(b *batch, p *pool, addr netip.Addr, h *holding) {
	h.settled = make(chan struct{})
	before := p.held[addr]
	p.destock(addr)
	rested := p.unrest(addr)
	if rested != nil && rested.static {
		h.static = true // once asked for by value, it is for good
	}
	p.keep(addr, h)
	b.add(p.putHeld(addr, h))
	b.onSettle(func(err error) {
		h.settle()
		switch {
		case err == nil:
		case before != nil:
			p.keep(addr, before)
		default:
			p.unkeep(addr)
			if rested != nil {
				p.rest(addr, rested)
			}
			p.mark(addr)
		}
	})
}

// rest and unrest maintain what is remembered of free addresses.
func (p *pool) rest(addr netip.Addr, r *rest) {
	p.alloc.rest(addr, r)
	if r.name != "" {
		p.names[r.name] = append(p.names[r.name], addr)
	}
	p.mark(addr)
}

func (p *pool) unrest(addr netip.Addr) *rest {
	r := p.alloc.unrest(addr)
	if r != nil {
		p.unname(r.name, addr)
		p.mark(addr)
	}
	return r
}

func (p *pool) unname(name string, addr netip.Addr) {
	if p.names[name] = slices.DeleteFunc(p.names[name], func(a netip.Addr) bool { return a == addr }); len(p.names[name]) == 0 {
		delete(p.names, name)
	}
}

// claim decides about a request for an address that is held already.
func (i *IPAM) claim(p *pool, addr netip.Addr, h *holding, r AddressRequest) error {
	namers := i.namers(p, addr)
	who, used := i.holder(addr)
	switch {
	case r.Gateway && h.kind == KindGateway && (namers > 0 || !used):
		h.count(i.daemon)
		return nil // another machine: networks share it
	case r.Name != "" || r.leased:
		// Certainly a container of now: a replay names none.
	case h.kind == KindGateway && namers == 0:
	case !r.Gateway && i.replaying(p) && h.claimedIn(i.daemon) < max(1, namers):
		h.count(i.daemon)
		h.released = false
		p.keep(addr, h)
		i.hear(p)
		return nil
	case used || h.kind == KindEndpoint:
	case namers > 0 && (r.Gateway || i.creating(p)):
		// Reserved by one more network. A container's --ip is not to be taken for
		// its replay later; a stranger's is one more than we know of.
		if !i.strangers(p) {
			h.count(i.daemon)
		}
		return nil
	}
	remedy := "choose another one"
	if p.special[addr] == h && !used && namers == 0 {
		remedy += fmt.Sprintf(", or if it is nobody's, try again in %v", i.grace)
	}
	return fmt.Errorf("%w: %s is %s; %s", ErrTaken, addr, i.purpose(p, addr, h, who), remedy)
}

func (h *holding) claimedIn(daemon uint64) int {
	if h.daemon != daemon {
		return 0
	}
	return h.claims
}

func (h *holding) count(daemon uint64) {
	h.claims = h.claimedIn(daemon) + 1
	h.daemon = daemon
	h.loaded = false
}

// purpose says what an address is held for.
func (i *IPAM) purpose(p *pool, addr netip.Addr, h *holding, who string) string {
	network := "a network being created"
	if ids := i.namedBy(p, addr); len(ids) > 0 {
		network = "network " + shortID(ids[0])
	}
	switch {
	case who != "":
		return "held by " + who
	case h.kind == KindGateway:
		return "the gateway of " + network
	case h.kind == KindReserved:
		return "reserved by " + network
	case h.name != "":
		return "held for container " + h.name
	}
	return "held for a container since " + h.since.Format(time.DateTime)
}

// ReleaseAddress frees an address. It stays held while a known network
// reserves it, or an endpoint has it. Unknown pools and addresses are no
// error: dockerd repeats releases, and sends them after those of the pool.
func (i *IPAM) ReleaseAddress(ctx context.Context, poolID string, addr netip.Addr) error {
	subnet, _, err := ParsePoolID(poolID)
	if err != nil {
		return nil
	}
	return i.release(ctx, subnet, addr, nil)
}

// release frees an address. Given a holding, it takes back only that one, and
// not if others have been given it, too.
func (i *IPAM) release(ctx context.Context, subnet netip.Prefix, addr netip.Addr, only *holding) error {
	for {
		p, err := i.lockPool(ctx, subnet)
		if err != nil {
			return err
		}
		var h *holding
		if p != nil {
			h = p.held[addr]
		}
		if h == nil || only != nil && (h != only || h.claims > 1) {
			i.mu.Unlock()
			return nil
		}
		if settled := h.settled; settled != nil {
			i.mu.Unlock()
			if err := await(ctx, settled); err != nil {
				return err
			}
			continue
		}
		if i.keepsOn(p, addr, h) {
			i.mu.Unlock()
			return nil
		}
		b := &batch{}
		i.free(b, p, addr, h)
		return i.commit(ctx, b, nil)
	}
}

// keepsOn says whether an address stays held that dockerd releases. If so, it is
// looked at again later.
func (i *IPAM) keepsOn(p *pool, addr netip.Addr, h *holding) bool {
	if i.namers(p, addr) > 0 {
		return true
	}
	if _, used := i.holder(addr); used {
		h.released = true
		p.special[addr] = h
		i.clearLater()
		return true
	}
	if h.kind == KindGateway && i.pending(p) > 1 {
		// The other network being created may have been given it, too.
		i.clearLater()
		return true
	}
	return false
}

// free makes a held address resting, once that is on disk. An older one may have
// to make room in the order; that one is fresh even if the disk fails, which
// costs it no more than its place.
func (i *IPAM) free(b *batch, p *pool, addr netip.Addr, h *holding) {
	h.settled = make(chan struct{})
	if p.alloc.full() {
		oldest := p.alloc.oldest()
		p.unrest(oldest)
		b.add(p.deleteAddress(oldest))
	}
	r := &rest{here: true, turn: p.alloc.deal(), since: i.now(), name: h.name, static: h.static && h.kind == KindEndpoint}
	b.add(p.putResting(addr, r))
	b.onSettle(func(err error) {
		h.settle()
		if err == nil {
			p.unkeep(addr)
			p.rest(addr, r)
			i.freed(addr)
			if h.kind != KindEndpoint {
				i.audit(p, addr, h, "freed").Info("address freed")
			}
		}
	})
}

func (h *holding) settle() {
	close(h.settled)
	h.settled = nil
}

// keep and unkeep maintain the two maps of held addresses.
func (p *pool) keep(addr netip.Addr, h *holding) {
	p.held[addr] = h
	if h.kind != KindEndpoint || h.released || !h.attached {
		p.special[addr] = h
	} else {
		delete(p.special, addr)
	}
	p.mark(addr)
}

func (p *pool) unkeep(addr netip.Addr) {
	delete(p.held, addr)
	delete(p.special, addr)
	if c := p.conflicts[addr]; c != nil {
		delete(p.conflicts, addr)
		p.seen[addr] = c // the other machine has it still
	}
	p.mark(addr)
}
