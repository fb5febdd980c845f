package ipam

import (
	"math/big"
	"net/netip"

	"github.com/tidwall/btree"
)

// maxResting bounds how many freed addresses of a pool are remembered. The
// oldest drop out and count as never used again.
const maxResting = 4096

// allocator picks addresses of one subnet: those never used first, then those
// that have been free for the longest time. Its size follows the addresses
// held and resting, not the subnet: used addresses are kept as runs.
//
// An address is fresh (never used), resting (used and free again) or held.
type allocator struct {
	first, last netip.Addr // the usable ones
	used        *btree.BTreeG[run]
	resting     map[netip.Addr]uint64 // to the turn at which it was freed
	turn        uint64                // the last one dealt
	spans       map[netip.Prefix]*span
}

// run is an unbroken run of used addresses. Neighbouring runs are merged.
type run struct{ first, last netip.Addr }

// span is a part of the subnet that picks are confined to: an --ip-range, or,
// under the zero Prefix, the whole.
type span struct {
	first, last netip.Addr
	cursor      netip.Addr                    // where to look for fresh addresses
	order       btree.Map[uint64, netip.Addr] // the resting ones by turn
}

func newAllocator(subnet netip.Prefix) *allocator {
	a := &allocator{
		used:    btree.NewBTreeGOptions(func(a, b run) bool { return a.first.Less(b.first) }, btree.Options{NoLocks: true, Degree: 16}),
		resting: map[netip.Addr]uint64{},
		spans:   map[netip.Prefix]*span{},
	}
	a.first, a.last = usable(subnet)
	a.spans[netip.Prefix{}] = &span{first: a.first, last: a.last, cursor: a.first}
	return a
}

// pick returns the address of a range that is next to be given out, without
// taking it. The zero range is the whole subnet.
func (a *allocator) pick(within netip.Prefix) (netip.Addr, bool) {
	s := a.span(within)
	addr, ok := a.fresh(s.cursor, s.last)
	if !ok {
		addr, ok = a.fresh(s.first, s.last)
	}
	if !ok {
		_, addr, ok = s.order.Min()
		return addr, ok
	}
	s.cursor = addr
	return addr, true
}

// lowest returns the lowest fresh address of the subnet, or the one that has
// rested longest if there is none.
func (a *allocator) lowest() (netip.Addr, bool) {
	if addr, ok := a.fresh(a.first, a.last); ok {
		return addr, true
	}
	_, addr, ok := a.span(netip.Prefix{}).order.Min()
	return addr, ok
}

// take makes a free address held, and returns the turn at which it had been
// freed, or 0 if it was fresh.
func (a *allocator) take(addr netip.Addr) (turn uint64) {
	turn, ok := a.resting[addr]
	if !ok {
		a.use(addr)
		return 0
	}
	a.unrest(addr, turn)
	return turn
}

// untake undoes take.
func (a *allocator) untake(addr netip.Addr, turn uint64) {
	if turn == 0 {
		a.unuse(addr)
		return
	}
	a.rest(addr, turn)
}

// deal gives the next turn, for an address about to be freed. Where too many
// rest already, the oldest is made fresh and returned.
func (a *allocator) deal() (turn uint64, dropped netip.Addr) {
	a.turn++
	if len(a.resting) >= maxResting {
		oldest, addr, _ := a.spans[netip.Prefix{}].order.Min()
		a.unrest(addr, oldest)
		a.unuse(addr)
		dropped = addr
	}
	return a.turn, dropped
}

// rest makes a held address free, in the order of the turns dealt.
func (a *allocator) rest(addr netip.Addr, turn uint64) {
	a.turn = max(a.turn, turn)
	a.resting[addr] = turn
	for _, s := range a.spans {
		if s.contains(addr) {
			s.order.Set(turn, addr)
		}
	}
}

func (a *allocator) unrest(addr netip.Addr, turn uint64) {
	delete(a.resting, addr)
	for _, s := range a.spans {
		s.order.Delete(turn)
	}
}

// span returns the span of a range, making it where it is asked for first.
func (a *allocator) span(within netip.Prefix) *span {
	s := a.spans[within]
	if s != nil {
		return s
	}
	s = &span{first: within.Addr(), last: lastOf(within)}
	if s.first.Less(a.first) {
		s.first = a.first
	}
	if a.last.Less(s.last) {
		s.last = a.last
	}
	s.cursor = s.first
	for addr, turn := range a.resting {
		if s.contains(addr) {
			s.order.Set(turn, addr)
		}
	}
	a.spans[within] = s
	return s
}

// forget drops what is kept about a range that is no longer used.
func (a *allocator) forget(within netip.Prefix) {
	if within.IsValid() {
		delete(a.spans, within)
	}
}

func (s *span) contains(addr netip.Addr) bool { return !addr.Less(s.first) && !s.last.Less(addr) }

// size is the number of addresses of the span.
func (s *span) size() *big.Int {
	first, last := s.first.As16(), s.last.As16()
	n := new(big.Int).SetBytes(last[:])
	n.Sub(n, new(big.Int).SetBytes(first[:]))
	return n.Add(n, big.NewInt(1))
}

// fresh returns the lowest fresh address from one address to another.
func (a *allocator) fresh(from, to netip.Addr) (netip.Addr, bool) {
	if r, ok := a.runAt(from); ok {
		from = r.last.Next()
	}
	return from, from.IsValid() && !to.Less(from)
}

// runAt returns the run that an address is in.
func (a *allocator) runAt(addr netip.Addr) (run, bool) {
	var at run
	a.used.Descend(run{first: addr}, func(r run) bool { at = r; return false })
	return at, at.first.IsValid() && !at.last.Less(addr)
}

func (a *allocator) use(addr netip.Addr) {
	grown := run{addr, addr}
	if below, ok := a.runAt(addr.Prev()); ok {
		grown.first = below.first
	}
	if above, ok := a.used.Get(run{first: addr.Next()}); ok {
		grown.last = above.last
		a.used.Delete(above)
	}
	a.used.Set(grown)
}

func (a *allocator) unuse(addr netip.Addr) {
	r, ok := a.runAt(addr)
	if !ok {
		return
	}
	if r.first.Less(addr) {
		a.used.Set(run{r.first, addr.Prev()})
	} else {
		a.used.Delete(r)
	}
	if addr.Less(r.last) {
		a.used.Set(run{addr.Next(), r.last})
	}
}

// usable returns the first and last address of a subnet that may be given
// out. An IPv4 network and broadcast address may not, nor an IPv6
// subnet-router anycast address (RFC 4291 section 2.6.1); a /31 and /32
// (RFC 3021) and a /127 and /128 (RFC 6164) have none to spare.
func usable(subnet netip.Prefix) (first, last netip.Addr) {
	first, last = subnet.Addr(), lastOf(subnet)
	if subnet.Addr().BitLen()-subnet.Bits() < 2 {
		return first, last
	}
	if subnet.Addr().Is4() {
		last = last.Prev()
	}
	return first.Next(), last
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
