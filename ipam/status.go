package ipam

import (
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"underlay/internal/options"
)

// PoolUse is what the addresses of a pool are used for. Each counts once, in the
// first of these counts that applies to it; with Free they make Size.
type PoolUse struct {
	Subnet   netip.Prefix     `json:"subnet"`
	Parents  []string         `json:"parents,omitempty"` // the links that lead to its LAN
	Router   netip.Addr       `json:"router,omitzero"`   // the LAN's, as the host knows it
	Networks int              `json:"networks"`          // that name it
	Conflict options.Conflict `json:"conflict"`          // how it looks out for addresses that others have
	Blind    string           `json:"blind,omitempty"`   // why the LAN could not be asked the last time

	Size       *big.Int `json:"size"`       // addresses that could be given out
	Containers int      `json:"containers"` // held by containers
	Gateways   int      `json:"gateways"`   // held by networks: gateways, and those of --aux-address
	Excluded   *big.Int `json:"excluded"`   // by --ipam-opt exclude
	Others     int      `json:"others"`     // in use by other machines
	Reserved   int      `json:"reserved"`   // for a container's name, or the host's own
	Resting    int      `json:"resting"`    // freed, and given to others last
	Free       *big.Int `json:"free"`

	Conflicts int `json:"conflicts"` // of those of containers, also in use by others
	Leased    int `json:"leased"`    // of those of containers, from the LAN's own server

	// Ranges are where containers' addresses are drawn from, if a network has an
	// --ip-range; with one that has none, the subnet is among them.
	Ranges []RangeUse `json:"ranges,omitempty"`
}

// RangeUse is how much of a range is left.
type RangeUse struct {
	Range   netip.Prefix `json:"range"`
	Size    *big.Int     `json:"size"`
	Resting int          `json:"resting"`
	Free    *big.Int     `json:"free"`
}

// Pools tells of all pools, by subnet. The lock is held for one at a time.
func (i *IPAM) Pools() []PoolUse {
	i.refresh()
	uses := []PoolUse{}
	for _, subnet := range i.subnets() {
		i.mu.Lock()
		if p := i.pool(subnet); p != nil {
			uses = append(uses, i.use(p))
		}
		i.mu.Unlock()
	}
	return uses
}

func (i *IPAM) subnets() (all []netip.Prefix) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pools.Scan(func(p *pool) bool { all = append(all, p.subnet); return true })
	return all
}

func (i *IPAM) use(p *pool) PoolUse {
	u := i.count(p, netip.Prefix{})
	u.Subnet, u.Parents, u.Router, u.Networks = p.subnet, i.parents(p), p.router, len(i.naming[p.subnet])
	u.Conflict, u.Conflicts = p.guarded(), len(p.conflicts)
	ranges := map[netip.Prefix]bool{}
	for _, t := range p.terms {
		if t.blind != nil {
			u.Blind = t.blind.Error()
		}
		ranges[t.within] = true
	}
	for _, within := range slices.SortedFunc(maps.Keys(ranges), netip.Prefix.Compare) {
		if len(ranges) == 1 && !within.IsValid() {
			break
		}
		c := i.count(p, within)
		if !within.IsValid() {
			within = p.subnet
		}
		u.Ranges = append(u.Ranges, RangeUse{within, c.Size, c.Resting, c.Free})
	}
	return u
}

// count counts the addresses of a range, under the zero Prefix those of the pool.
func (i *IPAM) count(p *pool, within netip.Prefix) PoolUse {
	s, one := p.alloc.span(within), big.NewInt(1)
	u := PoolUse{Size: s.size(), Excluded: p.alloc.excluded.count(run{s.first, s.last})}
	for addr, h := range p.held {
		if !s.contains(addr) {
			continue
		}
		if p.alloc.excluded.has(addr) {
			u.Excluded.Sub(u.Excluded, one)
		}
		switch {
		case h.kind != KindEndpoint:
			u.Gateways++
		case i.leases != nil && i.leases.Has(addr):
			u.Leased++
			u.Containers++
		default:
			u.Containers++
		}
	}
	// loose: it has not been counted yet.
	loose := func(addr netip.Addr) bool {
		return s.contains(addr) && p.held[addr] == nil && !p.alloc.excluded.has(addr)
	}
	for addr := range p.seen {
		if loose(addr) {
			u.Others++
		}
	}
	for addr := range p.reserved {
		if loose(addr) && p.seen[addr] == nil {
			u.Reserved++
		}
	}
	for addr := range p.taken {
		if loose(addr) && p.seen[addr] == nil && p.reserved[addr] == "" {
			u.Reserved++
		}
	}
	for addr := range p.alloc.resting {
		if loose(addr) && p.seen[addr] == nil && p.reserved[addr] == "" && p.taken[addr] == "" {
			u.Resting++
		}
	}
	u.Free = new(big.Int).Sub(u.Size, u.Excluded)
	u.Free.Sub(u.Free, big.NewInt(int64(u.Containers+u.Gateways+u.Others+u.Reserved+u.Resting)))
	return u
}

// AddressKind says what is the matter with an address.
type AddressKind string

// The kinds of addresses.
const (
	Dynamic  AddressKind = "dynamic"  // a container's, drawn
	Static   AddressKind = "static"   // a container's, asked for by value
	Leased   AddressKind = "leased"   // a container's, from the LAN's own server
	Gateway  AddressKind = "gateway"  // of a network
	Reserved AddressKind = "reserved" // by a network's --aux-address, or for a container's name
	OwnHost  AddressKind = "host"     // the host's own, its router's or its DNS server's
	Excluded AddressKind = "excluded" // by --ipam-opt exclude
	Squatter AddressKind = "squatter" // another machine's
	Resting  AddressKind = "resting"  // free, and given to others last
)

// AddressUse is an address that is not simply free.
type AddressUse struct {
	Address  netip.Addr   `json:"address"`
	Last     netip.Addr   `json:"last,omitzero"` // of a range that is excluded, its end
	Subnet   netip.Prefix `json:"subnet"`
	Kind     AddressKind  `json:"kind"`
	Name     string       `json:"container,omitempty"` // the container's name, where it is known
	MAC      string       `json:"mac,omitempty"`       // that has it
	Since    time.Time    `json:"since,omitzero"`
	Heard    time.Time    `json:"heard,omitzero"`     // another machine, last
	Conflict string       `json:"conflict,omitempty"` // the MAC of another machine that has it, too
	Note     string       `json:"note,omitempty"`
}

// AddressQuery asks for a page of addresses.
type AddressQuery struct {
	Within netip.Prefix // masked; zero: all pools
	After  netip.Addr   // zero: from the first one
	Most   int
}

// Addresses returns the addresses that are not simply free, in their order, and After
// of the page that follows, if more do. It copies a pool's records at a time: the lock
// is held for no longer than one pool takes.
func (i *IPAM) Addresses(q AddressQuery) (page []AddressUse, next netip.Addr, err error) {
	i.refresh()
	found, more := false, false
	for _, subnet := range i.subnets() {
		if q.Within.IsValid() && !q.Within.Overlaps(subnet) {
			continue
		}
		found = true
		if q.After.IsValid() && !q.After.Less(lastOf(subnet)) {
			continue
		}
		addrs := i.marks(subnet, q)
		slices.SortFunc(addrs, netip.Addr.Compare)
		addrs = slices.Compact(addrs)
		if room := q.Most - len(page); len(addrs) > room {
			addrs, more = addrs[:max(room, 0)], true
		}
		if len(addrs) > 0 {
			next = addrs[len(addrs)-1] // even if it is freed before it is described
		}
		i.mu.Lock()
		if p := i.pool(subnet); p != nil {
			for _, addr := range addrs {
				page = i.describe(page, p, q, addr)
			}
		}
		i.mu.Unlock()
		if more {
			break
		}
	}
	if !found && q.Within.IsValid() {
		return nil, next, fmt.Errorf("underlay has no pool on %v; underlay status lists them", q.Within)
	}
	if !more {
		next = netip.Addr{}
	}
	return page, next, nil
}

// marks are the addresses of a pool of which there is something to tell, in no
// order.
func (i *IPAM) marks(subnet netip.Prefix, q AddressQuery) (addrs []netip.Addr) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pool(subnet)
	if p == nil {
		return nil
	}
	add := func(addr netip.Addr) {
		if subnet.Contains(addr) && (!q.Within.IsValid() || q.Within.Contains(addr)) && (!q.After.IsValid() || q.After.Less(addr)) {
			addrs = append(addrs, addr)
		}
	}
	for addr := range p.held {
		add(addr)
	}
	for addr := range p.seen {
		add(addr)
	}
	for addr := range p.alloc.resting {
		add(addr)
	}
	for addr := range p.reserved {
		add(addr)
	}
	for addr := range p.taken {
		add(addr)
	}
	p.alloc.excluded.tree.Scan(func(r run) bool { add(q.part(r).first); return true })
	return addrs
}

// part is what of a run is asked about: of one that only overlaps that, no more.
func (q AddressQuery) part(r run) run {
	if !q.Within.IsValid() || r.last.Less(q.Within.Addr()) || lastOf(q.Within).Less(r.first) {
		return r
	}
	return run{later(r.first, q.Within.Addr()), earlier(r.last, lastOf(q.Within))}
}

// describe appends what is to be told of an address: nothing, if that is over, and
// two lines for one with which a range that is excluded begins, as far as that is
// asked about.
func (i *IPAM) describe(page []AddressUse, p *pool, q AddressQuery, addr netip.Addr) []AddressUse {
	u := AddressUse{Address: addr, Subnet: p.subnet, Note: p.taken[addr]}
	s, rested := p.seen[addr], p.alloc.resting[addr]
	switch h := p.held[addr]; {
	case h != nil:
		u.Kind, u.Name, u.Since = i.kindOf(addr, h), h.name, h.since
		if c := p.conflicts[addr]; c != nil {
			u.Conflict, u.Heard = c.mac.String(), c.last
		}
	case s != nil:
		u.Kind, u.MAC, u.Since, u.Heard = Squatter, s.mac.String(), s.since, s.last
		if s.last.IsZero() {
			u.Note = "asked whether it may have it"
		}
	case p.reserved[addr] != "":
		u.Kind, u.Name = Reserved, p.reserved[addr]
	case p.taken[addr] != "":
		u.Kind = OwnHost
	case rested != nil:
		u.Kind, u.Name, u.Since = Resting, rested.name, rested.since
	}
	if u.Kind != "" {
		page = append(page, u)
	}
	if r, ok := p.alloc.excluded.at(addr); ok {
		if r = q.part(r); r.first != addr {
			return page
		}
		e := AddressUse{Address: addr, Subnet: p.subnet, Kind: Excluded}
		if r.last != r.first {
			e.Last = r.last
		}
		page = append(page, e)
	}
	return page
}

func (i *IPAM) kindOf(addr netip.Addr, h *holding) AddressKind {
	switch {
	case h.kind == KindGateway:
		return Gateway
	case h.kind == KindReserved:
		return Reserved
	case i.leases != nil && i.leases.Has(addr):
		return Leased
	case h.static:
		return Static
	}
	return Dynamic
}

// Names are those of the containers behind addresses, as far as dockerd has told
// them.
func (i *IPAM) Names(addrs []netip.Addr) map[netip.Addr]string {
	names := map[netip.Addr]string{}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, addr := range addrs {
		if p := i.around(addr); p != nil && p.held[addr] != nil && p.held[addr].name != "" {
			names[addr] = p.held[addr].name
		}
	}
	return names
}

// ConflictState is a container's address that another machine has, too.
type ConflictState struct {
	Address netip.Addr   `json:"address"`
	Subnet  netip.Prefix `json:"subnet"`
	Name    string       `json:"container,omitempty"`
	MAC     string       `json:"mac"` // the other machine's
	Since   time.Time    `json:"since"`
	Last    time.Time    `json:"last"` // heard
}

// Conflicts lists all of them, by address.
func (i *IPAM) Conflicts() []ConflictState {
	all := []ConflictState{}
	i.mu.Lock()
	i.pools.Scan(func(p *pool) bool {
		for addr, c := range p.conflicts {
			s := ConflictState{Address: addr, Subnet: p.subnet, MAC: c.mac.String(), Since: c.since, Last: c.last}
			if h := p.held[addr]; h != nil {
				s.Name = h.name
			}
			all = append(all, s)
		}
		return true
	})
	i.mu.Unlock()
	slices.SortFunc(all, func(a, b ConflictState) int { return a.Address.Compare(b.Address) })
	return all
}
