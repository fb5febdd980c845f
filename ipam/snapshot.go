package ipam

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// State is all that IPAM holds, for people and tests to look at. Everything in
// it is sorted.
type State struct {
	Pools []PoolState `json:"pools"`
}

// PoolState is one pool.
type PoolState struct {
	Subnet    netip.Prefix   `json:"subnet"`
	Ranges    []netip.Prefix `json:"ranges,omitempty"`
	Size      string         `json:"size"` // how many addresses may be given out, in decimal
	Held      int            `json:"held"`
	Refs      int            `json:"refs"`               // how many networks dockerd has asked for
	Networks  []string       `json:"networks,omitempty"` // those that the driver knows
	Addresses []AddressState `json:"addresses,omitempty"`
}

// AddressState is one address held.
type AddressState struct {
	Address netip.Addr `json:"address"`
	Kind    Kind       `json:"kind"`
	Name    string     `json:"name,omitempty"`
	Since   time.Time  `json:"since"`
}

// Snapshot returns what is held now.
func (i *IPAM) Snapshot() State {
	i.mu.Lock()
	s := State{Pools: make([]PoolState, 0, i.pools.Len())}
	i.pools.Scan(func(p *pool) bool {
		ps := PoolState{
			Subnet:    p.subnet,
			Ranges:    slices.Collect(maps.Keys(p.ranges)),
			Size:      p.alloc.span(netip.Prefix{}).size().String(),
			Held:      len(p.held),
			Refs:      p.refs,
			Networks:  slices.Sorted(maps.Keys(i.naming[p.subnet])),
			Addresses: make([]AddressState, 0, len(p.held)),
		}
		for addr, h := range p.held {
			ps.Addresses = append(ps.Addresses, AddressState{addr, h.kind, h.name, h.since})
		}
		s.Pools = append(s.Pools, ps)
		return true
	})
	i.mu.Unlock()
	for _, p := range s.Pools {
		slices.SortFunc(p.Ranges, func(a, b netip.Prefix) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
		})
		slices.SortFunc(p.Addresses, func(a, b AddressState) int { return a.Address.Compare(b.Address) })
	}
	return s
}
