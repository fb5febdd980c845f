package ipam

import (
	"math/big"
	"net/netip"
	"time"

	"github.com/tidwall/btree"
)

// maxResting bounds how many freed addresses of a pool are remembered. The
// oldest drop out and count as never used again.
const maxResting = 4096

// allocator picks addresses of one subnet: those never used first, then those
// that have been free for the longest time, and last those that were ever asked
// for by value. Its size follows the addresses marked, not the subnet: they are
// kept as runs.
//
// An address is fresh, resting (used and free again), or marked for a reason
// that the pool knows.
type allocator struct {
	first, last netip.Addr // the usable ones
	used        runs       // the marked and the resting ones
	excluded    runs
	resting     map[netip.Addr]*rest
	turn        uint64 // the last one dealt
	spans       map[netip.Prefix]*span
}

// rest is what is remembered of an address that is free again.
type rest struct {
	turn   uint64    // order of being freed
	since  time.Time // when it was
	name   string    // of the container that had it
	static bool      // it was asked for by value
	here   bool      // since is of this process: no clock was set meanwhile
}

// lastTurns are those of static addresses: they come after all others.
const lastTurns = 1 << 63

func (r *rest) order() uint64 {
	if r.static {
		return r.turn | lastTurns
	}
	return r.turn
}

// span is a part of the subnet that picks are confined to: an --ip-range, or,
// under the zero Prefix, the whole.
type span struct {
	first, last netip.Addr
	cursor      netip.Addr                    // where to look for fresh addresses
	order       btree.Map[uint64, netip.Addr] // the resting ones
}

func newAllocator(subnet netip.Prefix) *allocator {
	a := &allocator{used: newRuns(), excluded: newRuns(), resting: map[netip.Addr]*rest{}, spans: map[netip.Prefix]*span{}}
	a.first, a.last = usable(subnet)
	a.spans[netip.Prefix{}] = &span{first: a.first, last: a.last, cursor: a.first}
	return a
}

// pick returns the address of a range that is next to be given out, without
// taking it. The zero range is the whole subnet. Of the resting ones, it is the
// first that fits; they are looked at in their order, up to the last.
func (a *allocator) pick(within netip.Prefix, look func(netip.Addr, *rest) (fits, last bool)) (found netip.Addr, ok bool) {
	s := a.span(within)
	found, ok = a.fresh(s.cursor, s.last)
	if !ok {
		found, ok = a.fresh(s.first, s.last)
	}
	if ok {
		s.cursor = found
		return found, true
	}
	s.order.Scan(func(_ uint64, addr netip.Addr) bool {
		fits, last := look(addr, a.resting[addr])
		if fits {
			found, ok = addr, true
		}
		return !fits && !last
	})
	return found, ok
}

// deal gives the next turn, for an address about to be freed.
func (a *allocator) deal() uint64 {
	a.turn++
	return a.turn
}

// full says that one more resting address is one too many; oldest is then to be
// forgotten.
func (a *allocator) full() bool { return len(a.resting) >= maxResting }

func (a *allocator) oldest() netip.Addr {
	_, addr, _ := a.spans[netip.Prefix{}].order.Min()
	return addr
}

// rest makes an address resting, in the order of the turns dealt.
func (a *allocator) rest(addr netip.Addr, r *rest) {
	a.turn = max(a.turn, r.turn)
	a.resting[addr] = r
	for _, s := range a.spans {
		if s.contains(addr) {
			s.order.Set(r.order(), addr)
		}
	}
}

// unrest ends an address's rest and returns what was remembered of it, nil for
// one that did not rest.
func (a *allocator) unrest(addr netip.Addr) *rest {
	r := a.resting[addr]
	if r == nil {
		return nil
	}
	delete(a.resting, addr)
	for _, s := range a.spans {
		s.order.Delete(r.order())
	}
	return r
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
	for addr, r := range a.resting {
		if s.contains(addr) {
			s.order.Set(r.order(), addr)
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
func (s *span) size() *big.Int { return run{s.first, s.last}.size() }

// fresh returns the lowest fresh address from one address to another.
func (a *allocator) fresh(from, to netip.Addr) (netip.Addr, bool) {
	for {
		at, ok := a.used.at(from)
		if !ok {
			at, ok = a.excluded.at(from)
		}
		if !ok {
			return from, from.IsValid() && !to.Less(from)
		}
		from = at.last.Next()
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
