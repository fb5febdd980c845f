package ipam

import (
	"math/big"
	"net/netip"

	"github.com/tidwall/btree"
)

// run is an unbroken run of addresses of one family.
type run struct{ first, last netip.Addr }

// size is the number of addresses of the run.
func (r run) size() *big.Int {
	first, last := r.first.As16(), r.last.As16()
	n := new(big.Int).SetBytes(last[:])
	n.Sub(n, new(big.Int).SetBytes(first[:]))
	return n.Add(n, big.NewInt(1))
}

// runs is a set of addresses, kept as runs. Neighbouring runs are merged.
type runs struct{ tree *btree.BTreeG[run] }

func newRuns() runs {
	return runs{btree.NewBTreeGOptions(func(a, b run) bool { return a.first.Less(b.first) }, btree.Options{NoLocks: true, Degree: 16})}
}

// at returns the run that an address is in.
func (s runs) at(addr netip.Addr) (run, bool) {
	var at run
	s.tree.Descend(run{first: addr}, func(r run) bool { at = r; return false })
	return at, at.first.IsValid() && !at.last.Less(addr)
}

func (s runs) has(addr netip.Addr) bool {
	_, ok := s.at(addr)
	return ok
}

// add puts an address into the set; one that is in it stays.
func (s runs) add(addr netip.Addr) {
	if s.has(addr) {
		return
	}
	grown := run{addr, addr}
	if below, ok := s.at(addr.Prev()); ok {
		grown.first = below.first
	}
	if above, ok := s.tree.Get(run{first: addr.Next()}); ok {
		grown.last = above.last
		s.tree.Delete(above)
	}
	s.tree.Set(grown)
}

// addRun puts a run into the set.
func (s runs) addRun(r run) {
	for _, addr := range []netip.Addr{r.first.Prev(), r.first} {
		if below, ok := s.at(addr); ok {
			r.first = below.first
			break
		}
	}
	beyond := r.last.Next() // not valid after the highest address
	var inside []run
	s.tree.Ascend(run{first: r.first}, func(o run) bool {
		if r.last.Less(o.first) && o.first != beyond {
			return false
		}
		inside = append(inside, o)
		return true
	})
	for _, o := range inside {
		if r.last.Less(o.last) {
			r.last = o.last
		}
		s.tree.Delete(o)
	}
	s.tree.Set(r)
}

// remove takes an address out of the set.
func (s runs) remove(addr netip.Addr) {
	r, ok := s.at(addr)
	if !ok {
		return
	}
	if r.first.Less(addr) {
		s.tree.Set(run{r.first, addr.Prev()})
	} else {
		s.tree.Delete(r)
	}
	if addr.Less(r.last) {
		s.tree.Set(run{addr.Next(), r.last})
	}
}

// count is how many addresses of a run are in the set.
func (s runs) count(within run) *big.Int {
	n := new(big.Int)
	s.tree.Scan(func(r run) bool {
		if r.first.Less(within.first) {
			r.first = within.first
		}
		if within.last.Less(r.last) {
			r.last = within.last
		}
		if !r.last.Less(r.first) {
			n.Add(n, r.size())
		}
		return true
	})
	return n
}
