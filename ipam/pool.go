package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"underlay/internal/options"
)

// PoolRequest asks for a pool. Without a subnet, it is for one of the default
// pools.
type PoolRequest struct {
	Subnet  netip.Prefix      // zero: any
	Range   netip.Prefix      // what dynamic addresses are confined to; zero: nothing
	V6      bool              // the family wanted
	Options map[string]string // --ipam-opt

	learned *offer // from the LAN's server
}

// Pool is what a PoolRequest gets.
type Pool struct {
	ID     string // see ParsePoolID
	Subnet netip.Prefix
}

// pool is one subnet and all that is held of it.
type pool struct {
	subnet netip.Prefix
	alloc  *allocator
	held   map[netip.Addr]*holding
	// special are those held addresses that may turn out to be leftovers:
	// reserved ones, those that no endpoint has been seen to have, and those
	// released while an endpoint still has them.
	special map[netip.Addr]*holding

	refs      int               // RequestPool less ReleasePool
	terms     map[string]*terms // of these networks, by their pool's ID
	requested time.Time         // the latest RequestPool of a creation that may go on
	begun     []time.Time       // those of all such creations, by this dockerd
	offer     *offer            // what it was answered, until the network exists
	router    netip.Addr        // the LAN's, where the host knows it
	settled   chan struct{}

	// What no dynamic request gets, beside what is held.
	reserved map[netip.Addr]string // to the container's name
	taken    map[netip.Addr]string // by the host; see Host
	seen     map[netip.Addr]*seen  // in use by others on the LAN
	stocked  map[netip.Addr]*terms // in a stock, or on the way into it
	links    []string              // on which the stock was asked about last

	conflicts map[netip.Addr]*seen    // held, and in use by others, too
	names     map[string][]netip.Addr // resting addresses of a container, the oldest first

	// released are the networks that dockerd has released the pool of: it deletes
	// them next, or their creation has failed.
	released map[string]bool
	// unsure: the plugin was ended in the middle of what may be a replay, so that
	// refs may be wrong, and a release may be dockerd's way back from a call that
	// got no answer, and no network's end.
	unsure   bool
	removal  int       // refs, should the network of the latest ReleasePool be deleted next; -1: it is as it is
	daemon   uint64    // dockerd's generation at the latest RequestPool
	window   bool      // this generation of dockerd may be asking again
	replayed time.Time // when it last did
}

func newPool(subnet netip.Prefix) *pool {
	return &pool{
		subnet:    subnet,
		alloc:     newAllocator(subnet),
		held:      map[netip.Addr]*holding{},
		special:   map[netip.Addr]*holding{},
		terms:     map[string]*terms{},
		reserved:  map[netip.Addr]string{},
		seen:      map[netip.Addr]*seen{},
		stocked:   map[netip.Addr]*terms{},
		conflicts: map[netip.Addr]*seen{},
		names:     map[string][]netip.Addr{},
		released:  map[string]bool{},
		removal:   -1,
	}
}

// check refuses what no pool can be made from.
func (r PoolRequest) check() error {
	if !r.Subnet.IsValid() {
		if r.Range.IsValid() {
			return fmt.Errorf("--ip-range %s needs a --subnet that holds it", r.Range)
		}
		return nil
	}
	if r.V6 != r.Subnet.Addr().Is6() {
		return fmt.Errorf("subnet %s is not of the family asked for (IPv6: %t)", r.Subnet, r.V6)
	}
	return checkSubnet(r.Subnet, r.Range)
}

func checkSubnet(subnet, within netip.Prefix) error {
	a := subnet.Addr()
	switch {
	case subnet != subnet.Masked():
		return fmt.Errorf("subnet %s has host bits set; give %s", subnet, subnet.Masked())
	case a.Is4In6():
		return fmt.Errorf("subnet %s is IPv4 in IPv6 clothes; give the IPv4 subnet", subnet)
	case subnet.Bits() == 0 || a.IsMulticast() || a.IsLoopback():
		return fmt.Errorf("subnet %s is no subnet of hosts on a LAN", subnet)
	case !within.IsValid():
		return nil
	case within != within.Masked():
		return fmt.Errorf("range %s has host bits set; give %s", within, within.Masked())
	case within.Bits() < subnet.Bits() || !subnet.Contains(within.Addr()):
		return fmt.Errorf("range %s is outside subnet %s", within, subnet)
	}
	if first, last := usable(subnet); lastOf(within).Less(first) || last.Less(within.Addr()) {
		return fmt.Errorf("range %s of subnet %s has no address that may be given out", within, subnet)
	}
	return nil
}

// RequestPool holds a pool for a network about to be created, or, in a replay,
// for one that dockerd knows already. A subnet has one pool however many
// networks name it.
func (i *IPAM) RequestPool(ctx context.Context, r PoolRequest) (_ Pool, err error) {
	defer func() {
		if err != nil {
			i.mu.Lock()
			i.flawed = i.daemon
			i.mu.Unlock()
		}
	}()
	if err := r.check(); err != nil {
		return Pool{}, err
	}
	o, err := options.ParsePool(r.Options)
	if err != nil {
		return Pool{}, err
	}
	if err := ctx.Err(); err != nil {
		return Pool{}, err
	}
	found, err := i.locate(r, o)
	if err != nil {
		return Pool{}, err
	}
	i.refresh()
	subnet, within := found.subnet, r.Range
	if within == subnet {
		within = netip.Prefix{}
	}
	p, err := i.lockOverlapping(ctx, subnet) // none if subnet is zero
	if err != nil {
		return Pool{}, err
	}
	if !subnet.IsValid() {
		if subnet, err = i.freeDefault(r.V6); err != nil {
			i.mu.Unlock()
			return Pool{}, err
		}
	}
	t, err := newTerms(subnet, within, r.Options)
	b := &batch{}
	switch {
	case err != nil:
	case p == nil:
		i.create(b, subnet, t, found)
	case p.subnet != subnet:
		err = fmt.Errorf("%w: %s overlaps %s, which is held; use --subnet %s, with --ip-range to narrow it, or another subnet",
			ErrOverlap, subnet, p.subnet, p.subnet)
	case i.askedTwice(p, found):
		err = found.overlap()
	default:
		i.join(b, p, t, found)
	}
	if err != nil {
		i.mu.Unlock()
		return Pool{}, err
	}
	pool := Pool{ID: t.id, Subnet: subnet}
	err = i.commit(ctx, b, func() error { return i.ReleasePool(context.Background(), pool.ID) })
	if err != nil {
		return Pool{}, err
	}
	return pool, nil
}

// create adds a pool.
func (i *IPAM) create(b *batch, subnet netip.Prefix, t *terms, o *offer) {
	p := newPool(subnet)
	p.taken = i.taken
	for addr := range p.taken {
		if subnet.Contains(addr) {
			p.mark(addr)
		}
	}
	p.agree(t).used = i.now()
	p.daemon = i.daemon
	p.request(i, o)
	p.settled = make(chan struct{})
	i.clearLater() // dockerd may die before it creates the network
	i.pools.Set(p)
	b.add(p.putSelf())
	b.onSettle(func(err error) {
		if err != nil {
			i.pools.Delete(p)
		}
		p.settle()
	})
}

// join counts one more network on a pool. The first one soon after dockerd has
// connected is taken for the replay of a network; should it be the creation of
// another one after all, NetworkCreated will tell.
func (i *IPAM) join(b *batch, p *pool, t *terms, o *offer) {
	restore, daemon, window := p.remember(), p.daemon, p.window
	p.removal = -1
	if p.daemon < i.daemon {
		p.daemon = i.daemon
		p.begun = nil // cut off
		if i.now().Sub(i.heard) < replayWithin {
			p.beginReplay()
			if len(p.released) == len(i.naming[p.subnet]) {
				clear(p.released) // one of them is not gone, then
			}
			i.hear(p)
		} else {
			p.endReplay(either)
		}
	}
	if t = p.agree(t); !p.window {
		t.used = i.now()
	}
	p.request(i, o)
	p.settled = make(chan struct{})
	b.add(p.putSelf())
	b.onSettle(func(err error) {
		if err != nil {
			p.daemon, p.window = daemon, window
			restore()
		}
		p.settle()
	})
}

// request notes what a pool is asked for and what is answered.
func (p *pool) request(i *IPAM, o *offer) {
	p.requested = i.now()
	p.begun = append(slices.DeleteFunc(p.begun, func(at time.Time) bool { return p.requested.Sub(at) >= i.grace }), p.requested)
	o.at = p.requested
	p.offer = o
	if o.router.IsValid() {
		p.router = o.router
	}
}

// ReleasePool takes one network off a pool. The pool goes, and all that is
// held of it, with the last one that dockerd or the driver knows. An unknown
// pool is no error: dockerd repeats releases.
func (i *IPAM) ReleasePool(ctx context.Context, id string) error {
	subnet, _, err := ParsePoolID(id)
	if err != nil {
		return nil
	}
	p, err := i.lockPool(ctx, subnet)
	if err != nil {
		return err
	}
	if p == nil {
		i.mu.Unlock()
		return nil
	}
	// What a network whose creation failed has left is cleared later: it
	// cannot be told now from what another one has just asked for.
	i.clearLater()
	p.requested, p.begun = time.Time{}, nil
	sure := !p.window && !p.unsure
	if p.refs == 0 && i.wanted(p) && (!sure || len(p.released) == len(i.naming[p.subnet])) {
		p.endReplay(either)
		i.mu.Unlock()
		return nil
	}
	p.offer = nil
	released := maps.Clone(p.released)
	restore := p.remember()
	p.removal = -1
	if known := len(i.naming[p.subnet]); p.window && (p.refs <= 1 || p.refs < known || p.grown()) {
		// If the only one asked for since dockerd has connected goes again, its
		// creation has failed, or it was replayed and is removed now.
		if p.refs <= 1 {
			if !p.grown() {
				p.removal = 0
			}
			p.refs = known + 1
		}
		p.endReplay(both)
	} else {
		p.endReplay(again)
	}
	p.disagree(id)
	if p.refs == 0 && sure { // dockerd has no network on it
		for id := range i.naming[p.subnet] {
			p.released[id] = true
		}
	}
	b := &batch{}
	b.onSettle(func(err error) {
		if err != nil {
			restore()
			p.removal, p.released = -1, released
		}
	})
	if i.wanted(p) {
		p.settled = make(chan struct{})
		b.add(p.putSelf())
		b.onSettle(func(error) { p.settle() })
	} else {
		i.drop(b, p)
	}
	return i.commit(ctx, b, nil)
}

// drop removes a pool and all that is in it.
func (i *IPAM) drop(b *batch, p *pool) {
	p.settled = make(chan struct{})
	for addr := range p.held {
		b.add(p.deleteAddress(addr))
	}
	for addr := range p.alloc.resting {
		b.add(p.deleteAddress(addr))
	}
	b.add(p.deleteSelf())
	b.onSettle(func(err error) {
		if err == nil {
			i.pools.Delete(p)
			i.freed(slices.Collect(maps.Keys(p.held))...)
			for _, addr := range slices.SortedFunc(maps.Keys(p.held), netip.Addr.Compare) {
				i.audit(p, addr, p.held[addr], "freed").Info("address freed with its pool")
			}
		}
		p.settle()
	})
	i.log.WithField("pool", p.subnet).Debug("pool is no longer needed")
}

// hear notes a request that belongs to a replay.
func (i *IPAM) hear(p *pool) {
	i.heard = i.now()
	p.replayed = i.heard
	i.clearLater()
}

// replaying says that dockerd may be asking for what it holds of a pool already.
// A window does not outlast the connection that it was opened for.
func (i *IPAM) replaying(p *pool) bool { return p.window && p.daemon == i.daemon }

// settle lets those go on who wait for the pool.
func (p *pool) settle() {
	close(p.settled)
	p.settled = nil
}

// wanted says whether a network needs the pool, as far as is known.
func (i *IPAM) wanted(p *pool) bool { return p.refs > 0 || len(i.naming[p.subnet]) > 0 }

// pending returns how many networks on a pool dockerd has asked for that the
// driver does not know: those being created, and those of other drivers.
func (i *IPAM) pending(p *pool) int { return p.refs - i.known(p) }

// known returns how many networks on a pool the driver knows, without those that
// dockerd has let go of.
func (i *IPAM) known(p *pool) int { return len(i.naming[p.subnet]) - len(p.released) }

// strangers says that dockerd, when it replays a pool, may ask for networks that
// the driver does not know: those of other drivers, and creations cut off.
func (i *IPAM) strangers(p *pool) bool {
	n := 0
	for _, t := range p.terms {
		n += t.before
	}
	return n > len(i.naming[p.subnet])
}

// creating says that a network is being created on a pool just now.
func (i *IPAM) creating(p *pool) bool {
	n := len(p.begun)
	return i.pending(p) > 0 && n > 0 && i.now().Sub(p.begun[n-1]) < i.grace
}

// lockPool takes the lock and finds the pool of a subnet, or nil, waiting for
// one that is unsettled. After an error the lock is not held.
func (i *IPAM) lockPool(ctx context.Context, subnet netip.Prefix) (*pool, error) {
	p, err := i.lockOverlapping(ctx, subnet)
	if p != nil && p.subnet != subnet {
		p = nil
	}
	return p, err
}

// lockOverlapping is lockPool for a pool that shares addresses with a subnet.
func (i *IPAM) lockOverlapping(ctx context.Context, subnet netip.Prefix) (*pool, error) {
	for {
		i.mu.Lock()
		p := i.overlapping(subnet)
		if p == nil || p.settled == nil {
			return p, nil
		}
		settled := p.settled
		i.mu.Unlock()
		if err := await(ctx, settled); err != nil {
			return nil, err
		}
	}
}

func (i *IPAM) pool(subnet netip.Prefix) *pool {
	p, ok := i.pools.Get(&pool{subnet: subnet})
	if !ok || p.subnet != subnet {
		return nil
	}
	return p
}

// around returns the pool that an address is in.
func (i *IPAM) around(addr netip.Addr) *pool {
	return i.overlapping(netip.PrefixFrom(addr, addr.BitLen()))
}

// overlapping returns a pool that shares addresses with a subnet: as pools do
// not overlap, the nearest below it or the nearest above.
func (i *IPAM) overlapping(subnet netip.Prefix) *pool {
	var found *pool
	near := func(p *pool) bool {
		if p.subnet.Overlaps(subnet) {
			found = p
		}
		return false
	}
	pivot := &pool{subnet: subnet}
	i.pools.Descend(pivot, near)
	if found == nil {
		i.pools.Ascend(pivot, near)
	}
	return found
}
