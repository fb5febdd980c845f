package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"time"
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

	resting Kind = "resting" // on disk only: free, but given out last
)

// AddressRequest asks for one address of a pool.
type AddressRequest struct {
	PoolID  string
	Addr    netip.Addr // zero: any
	Gateway bool       // as a network's gateway
	Name    string     // the container's name, where dockerd tells it
}

// holding is one address held.
type holding struct {
	kind  Kind
	name  string
	since time.Time

	settled  chan struct{} // not nil: on its way to disk, or off it
	released bool          // by dockerd, but an endpoint had it still
	attached bool          // an endpoint has been seen to have it

	// How often the daemon of this generation has asked for it.
	daemon uint64
	claims int
}

// RequestAddress holds an address and returns it with the mask of the subnet.
// Asking again for a gateway is no error, and neither is what dockerd asks
// again when it replays its networks after a restart.
func (i *IPAM) RequestAddress(ctx context.Context, r AddressRequest) (netip.Prefix, error) {
	subnet, within, err := ParsePoolID(r.PoolID)
	if err != nil {
		return netip.Prefix{}, err
	}
	if err := ctx.Err(); err != nil {
		return netip.Prefix{}, err
	}
	for {
		p, err := i.lockPool(ctx, subnet)
		if err != nil {
			return netip.Prefix{}, err
		}
		if p == nil {
			i.mu.Unlock()
			return netip.Prefix{}, fmt.Errorf("%w %q; remove the network and create it again", ErrUnknownPool, r.PoolID)
		}
		addr, err := p.choose(within, r)
		if err != nil {
			i.mu.Unlock()
			return netip.Prefix{}, err
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
		i.clearLater() // dockerd may forget it before an endpoint has it
		err = i.commit(ctx, b, func() error { return i.release(context.Background(), subnet, addr, h) })
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(addr, subnet.Bits()), nil
	}
}

// choose finds the address that a request is about, held or not.
func (p *pool) choose(within netip.Prefix, r AddressRequest) (netip.Addr, error) {
	if r.Addr.IsValid() {
		return r.Addr, p.check(r.Addr)
	}
	if r.Gateway {
		if addr, ok := p.gateway(); ok {
			return addr, nil
		}
		if addr, ok := p.alloc.lowest(); ok {
			return addr, nil
		}
		within = netip.Prefix{}
	} else if addr, ok := p.alloc.pick(within); ok {
		return addr, nil
	}
	n := p.alloc.span(within).size()
	if within.IsValid() {
		return netip.Addr{}, fmt.Errorf("%s range %s is %w: all %d addresses are held; free some, or widen --ip-range",
			p.subnet, within, ErrExhausted, n)
	}
	return netip.Addr{}, fmt.Errorf("%s is %w: all %d addresses are held; free some, or use a larger --subnet",
		p.subnet, ErrExhausted, n)
}

// check refuses an address that may never be given out.
func (p *pool) check(addr netip.Addr) error {
	if !p.subnet.Contains(addr) {
		return fmt.Errorf("%w: %s is outside subnet %s; choose one inside", ErrUnusable, addr, p.subnet)
	}
	switch {
	case addr.Less(p.alloc.first) && addr.Is4():
		return fmt.Errorf("%w: %s is the network address of %s; choose a host address", ErrUnusable, addr, p.subnet)
	case addr.Less(p.alloc.first):
		return fmt.Errorf("%w: %s is the subnet-router anycast address of %s; choose a host address", ErrUnusable, addr, p.subnet)
	case p.alloc.last.Less(addr):
		return fmt.Errorf("%w: %s is the broadcast address of %s; choose a host address", ErrUnusable, addr, p.subnet)
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
	h := &holding{kind: KindEndpoint, name: r.Name, since: i.now(), daemon: i.daemon, claims: 1}
	switch {
	case r.Gateway:
		h.kind = KindGateway
	case r.Addr.IsValid() && r.Name == "" && (i.replaying(p) || i.pending(p) > 0):
		h.kind = KindReserved
	}
	return h
}

// hold makes an address held that is free, or left behind.
func (i *IPAM) hold(b *batch, p *pool, addr netip.Addr, h *holding) {
	h.settled = make(chan struct{})
	before := p.held[addr]
	var turn uint64
	if before == nil {
		turn = p.alloc.take(addr)
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
			p.alloc.untake(addr, turn)
		}
	})
}

// claim decides about a request for an address that is held already.
func (i *IPAM) claim(p *pool, addr netip.Addr, h *holding, r AddressRequest) error {
	namers := i.namers(p, addr)
	who, used := i.holder(addr)
	switch {
	case r.Gateway && h.kind == KindGateway && (namers > 0 || !used):
		h.count(i.daemon)
		return nil // another machine: networks share it
	case r.Name != "":
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
		return nil // reserved by one more network
	}
	return fmt.Errorf("%w: %s is %s; choose another one", ErrTaken, addr, i.purpose(p, addr, h, who))
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
	turn, dropped := p.alloc.deal()
	b.add(p.putResting(addr, turn))
	if dropped.IsValid() {
		b.add(p.deleteAddress(dropped))
	}
	b.onSettle(func(err error) {
		h.settle()
		if err == nil {
			p.unkeep(addr)
			p.alloc.rest(addr, turn)
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
}

func (p *pool) unkeep(addr netip.Addr) {
	delete(p.held, addr)
	delete(p.special, addr)
}
