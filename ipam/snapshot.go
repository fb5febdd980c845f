package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"underlay/internal/options"
)

// State is all that IPAM holds, for people and tests to look at. Everything in
// it is sorted.
type State struct {
	Pools []PoolState `json:"pools"`
}

// PoolState is one pool.
type PoolState struct {
	Subnet   netip.Prefix   `json:"subnet"`
	Ranges   []netip.Prefix `json:"ranges,omitempty"`
	Size     string         `json:"size"` // how many addresses may be given out, in decimal
	Held     int            `json:"held"`
	Refs     int            `json:"refs"`               // how many networks dockerd has asked for
	Networks []string       `json:"networks,omitempty"` // those that the driver knows

	Parents  []string              `json:"parents,omitempty"`  // the links that lead to its LAN
	Router   netip.Addr            `json:"router,omitzero"`    // the LAN's, as the host knows it
	Conflict options.Conflict      `json:"conflict"`           // how it looks out for addresses that others have
	Excluded []options.Range       `json:"excluded,omitempty"` // by --ipam-opt exclude
	Reserved map[netip.Addr]string `json:"reserved,omitempty"` // to the container's name

	Addresses []AddressState `json:"addresses,omitempty"`
	LAN       LANState       `json:"lan"`
}

// AddressState is one address held.
type AddressState struct {
	Address netip.Addr `json:"address"`
	Kind    Kind       `json:"kind"`
	Name    string     `json:"name,omitempty"`
	Since   time.Time  `json:"since"`
}

// LANState is what is known of the other machines on a pool's LAN, and what has
// been made of it. It changes without anybody's doing here.
type LANState struct {
	Blind     string       `json:"blind,omitempty"`     // why the LAN could not be asked the last time
	InUse     []SeenState  `json:"in_use,omitempty"`    // addresses of others
	Conflicts []SeenState  `json:"conflicts,omitempty"` // addresses of ours that others have, too
	Ready     []netip.Addr `json:"ready,omitempty"`     // probed ahead, next to be given out
	Resting   int          `json:"resting"`             // freed, and given to others last
}

// SeenState is an address that another machine has.
type SeenState struct {
	Address netip.Addr `json:"address"`
	MAC     string     `json:"mac"`
	Since   time.Time  `json:"since"`
	Last    time.Time  `json:"last,omitzero"` // heard last; never if it was only claimed
}

// Snapshot returns what is held now.
func (i *IPAM) Snapshot() State {
	i.mu.Lock()
	s := State{Pools: make([]PoolState, 0, i.pools.Len())}
	i.pools.Scan(func(p *pool) bool { s.Pools = append(s.Pools, i.snapshot(p)); return true })
	i.mu.Unlock()
	for _, p := range s.Pools {
		slices.SortFunc(p.Addresses, func(a, b AddressState) int { return a.Address.Compare(b.Address) })
		for _, list := range [][]SeenState{p.LAN.InUse, p.LAN.Conflicts} {
			slices.SortFunc(list, func(a, b SeenState) int { return a.Address.Compare(b.Address) })
		}
	}
	return s
}

func (i *IPAM) snapshot(p *pool) PoolState {
	s := PoolState{
		Subnet:    p.subnet,
		Size:      p.alloc.span(netip.Prefix{}).size().String(),
		Held:      len(p.held),
		Refs:      p.refs,
		Networks:  slices.Sorted(maps.Keys(i.naming[p.subnet])),
		Parents:   i.parents(p),
		Router:    p.router,
		Conflict:  p.guarded(),
		Reserved:  maps.Clone(p.reserved),
		Addresses: make([]AddressState, 0, len(p.held)),
		LAN:       LANState{InUse: states(p.seen), Conflicts: states(p.conflicts), Resting: len(p.alloc.resting)},
	}
	p.alloc.excluded.tree.Scan(func(r run) bool {
		s.Excluded = append(s.Excluded, options.Range{First: r.first, Last: r.last})
		return true
	})
	for _, id := range slices.Sorted(maps.Keys(p.terms)) {
		t := p.terms[id]
		if t.within.IsValid() && t.refs+t.before > 0 && !slices.Contains(s.Ranges, t.within) {
			s.Ranges = append(s.Ranges, t.within)
		}
		if t.blind != nil {
			s.LAN.Blind = t.blind.Error()
		}
		for _, ready := range t.stock {
			s.LAN.Ready = append(s.LAN.Ready, ready.addr)
		}
	}
	slices.SortFunc(s.Ranges, netip.Prefix.Compare)
	for addr, h := range p.held {
		s.Addresses = append(s.Addresses, AddressState{addr, h.kind, h.name, h.since})
	}
	return s
}

func states(from map[netip.Addr]*seen) []SeenState {
	var list []SeenState
	for addr, s := range from {
		list = append(list, SeenState{addr, s.mac.String(), s.since, s.last})
	}
	return list
}
