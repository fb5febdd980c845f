package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"underlay/internal/options"
)

// terms are what the networks of a pool may have different: the range and the
// options. Networks with the same ones share them.
type terms struct {
	id      string            // the pool's ID for them
	within  netip.Prefix      // zero: the whole subnet
	given   map[string]string // --ipam-opt, as Docker gave them
	options options.Pool
	refs    int // networks
	before  int // networks, before what may be a replay began

	// The stock: addresses probed ahead. See scout.go.
	used     time.Time // when a network was last asked for, or an address that is nobody's yet
	stock    []proven
	asking   map[netip.Addr]*seen // on the way into the stock, with who had them before
	waiting  int                  // requests that wait for one
	news     chan struct{}        // closed when a stock of the pool, or blindness, has changed
	missed   int                  // addresses in a row that were in use
	missedAt time.Time
	blind    error // why the last probe knew nothing
	blindAt  time.Time
}

func newTerms(subnet, within netip.Prefix, given map[string]string) (*terms, error) {
	o, err := options.ParsePool(given)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(o.Reserve)) {
		addr, ok := o.Reserved(name, subnet.Addr().Is6())
		if !ok {
			continue
		}
		if err := checkAddress(subnet, addr); err != nil {
			return nil, fmt.Errorf("--ipam-opt reserve=%s=%s: %w", name, addr, err)
		}
	}
	return &terms{
		id: poolID(subnet, within, options.Key(given)), within: within, given: given, options: o,
		asking: map[netip.Addr]*seen{}, news: make(chan struct{}),
	}, nil
}

// ParsePoolID splits a pool's ID into subnet and range: "192.168.50.0/24" or
// "192.168.50.0/24,192.168.50.64/26", either with "#" and a digest of the
// options behind it. dockerd does not store IDs, so they say no more than its
// next request will say again.
func ParsePoolID(id string) (subnet, within netip.Prefix, err error) {
	text, _, _ := strings.Cut(id, "#")
	first, second, ranged := strings.Cut(text, ",")
	subnet, err = netip.ParsePrefix(first)
	if err == nil && ranged {
		within, err = netip.ParsePrefix(second)
	}
	if err == nil {
		err = checkSubnet(subnet, within)
	}
	if err != nil {
		return netip.Prefix{}, netip.Prefix{}, fmt.Errorf("%w %q; an ID is a subnet, or subnet,range: %w", ErrUnknownPool, id, err)
	}
	return subnet, within, nil
}

func poolID(subnet, within netip.Prefix, key string) string {
	id := subnet.String()
	if within.IsValid() {
		id += "," + within.String()
	}
	if key != "" {
		id += "#" + key
	}
	return id
}

// termsOf returns the terms that an ID stands for. An ID that the pool does not
// know, of a network that an earlier version made, has its range and no options.
func (p *pool) termsOf(id string, within netip.Prefix) *terms {
	if t := p.terms[id]; t != nil {
		return t
	}
	t, _ := newTerms(p.subnet, within, nil) // no options cannot be wrong
	if known := p.terms[t.id]; known != nil {
		return known
	}
	p.terms[t.id] = t
	return t
}

// agree makes the terms of one more network the pool's, or those of a network
// gone no longer.
func (p *pool) agree(t *terms) *terms {
	if known := p.terms[t.id]; known != nil {
		t = known
	} else {
		p.terms[t.id] = t
	}
	t.refs++
	p.refs++
	p.restrict()
	return t
}

func (p *pool) disagree(id string) {
	p.refs = max(0, p.refs-1)
	if t := p.terms[id]; t != nil {
		t.refs = max(0, t.refs-1)
		p.purge()
	}
}

// beginReplay counts the networks anew, which dockerd may be asking for again.
// Their terms stay until it is known whether it was.
func (p *pool) beginReplay() {
	p.window = true
	p.refs = 0
	for _, t := range p.terms {
		t.before, t.refs = max(t.before, t.refs), 0
	}
}

// endReplay says what a terms' networks are, of how many there were before and
// how many were asked for since.
func (p *pool) endReplay(networks func(before, since int) int) {
	if !p.window {
		return
	}
	p.window = false
	for _, t := range p.terms {
		t.refs, t.before = networks(t.before, t.refs), 0
	}
	p.purge()
}

// again, both and either are what endReplay may be given: it was a replay, it was
// none, and nobody knows.
func again(_, since int) int       { return since }
func both(before, since int) int   { return before + since }
func either(before, since int) int { return max(before, since) }

// grown says that since dockerd has connected it has asked for a network that it
// cannot have asked for before.
func (p *pool) grown() bool {
	for _, t := range p.terms {
		if t.refs > t.before {
			return true
		}
	}
	return false
}

// purge drops the terms that no network has.
func (p *pool) purge() {
	ranges := map[netip.Prefix]bool{}
	for id, t := range p.terms {
		if t.refs+t.before == 0 {
			p.unstock(t)
			delete(p.terms, id)
			t.tell()
		} else {
			ranges[t.within] = true
		}
	}
	for within := range p.alloc.spans {
		if !ranges[within] {
			p.alloc.forget(within)
		}
	}
	p.restrict()
}

// remember returns what takes back a change of the terms that has not reached
// the disk.
func (p *pool) remember() (restore func()) {
	type counts struct{ refs, before int }
	refs, terms, each := p.refs, maps.Clone(p.terms), map[string]counts{}
	for id, t := range p.terms {
		each[id] = counts{t.refs, t.before}
	}
	return func() {
		p.refs, p.terms = refs, terms
		for id, t := range terms {
			t.refs, t.before = each[id].refs, each[id].before
		}
		p.restrict()
	}
}

// restrict makes the pool heed what all its networks exclude and reserve.
func (p *pool) restrict() {
	all := run{p.alloc.first, p.alloc.last}
	p.alloc.excluded = newRuns()
	reserved := map[netip.Addr]string{}
	for _, t := range p.terms {
		for _, r := range t.options.Exclude {
			if r.First.BitLen() != all.first.BitLen() || r.Last.Less(all.first) || all.last.Less(r.First) {
				continue
			}
			p.alloc.excluded.addRun(run{later(r.First, all.first), earlier(r.Last, all.last)})
		}
		for name, addrs := range t.options.Reserve {
			for _, a := range addrs {
				if p.subnet.Contains(a) {
					reserved[a] = name
				}
			}
		}
	}
	was := p.reserved
	p.reserved = reserved
	for a := range was {
		p.mark(a)
	}
	for a := range reserved {
		p.mark(a)
	}
	for a := range p.stocked {
		if reserved[a] != "" || p.alloc.excluded.has(a) {
			p.destock(a)
		}
	}
}

func later(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func earlier(a, b netip.Addr) netip.Addr {
	if b.Less(a) {
		return b
	}
	return a
}

// guarded says how the pool looks out for addresses that others have: as the
// most careful of its networks wants it.
func (p *pool) guarded() options.Conflict {
	guard := options.Off
	for _, t := range p.terms {
		switch t.options.Conflict {
		case options.Probe:
			return options.Probe
		case options.Listen:
			guard = options.Listen
		}
	}
	return guard
}
