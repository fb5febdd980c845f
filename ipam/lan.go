package ipam

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"underlay/internal/options"
)

// Host tells what the host knows of its LANs.
type Host interface {
	// DefaultLink is the name of the link with the default route.
	DefaultLink(v6 bool) (string, error)
	// Subnets lists the subnets that a link is on, and returns its name, which
	// may have been asked for by an altname.
	Subnets(link string) (name string, subnets []HostSubnet, err error)
	// Taken lists the addresses that no container may have, with words: the
	// host's own, its gateways, its DNS servers.
	Taken() (map[netip.Addr]string, error)
}

// HostSubnet is a subnet that a link is on.
type HostSubnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr // zero if none is known; it may be link-local, or outside the subnet
}

// Detector asks the LAN who has which address.
type Detector interface {
	// Watch listens on exactly these links from now on, and reports what it
	// hears to IPAM.Heard.
	Watch(links []string)
	// Probe asks on a link who has addresses and returns, after wait at the
	// latest, those in use. After an error nothing is known.
	Probe(ctx context.Context, link string, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]net.HardwareAddr, error)
}

// Sighting is what a frame on the LAN told.
type Sighting struct {
	Link  string
	Addr  netip.Addr
	MAC   net.HardwareAddr
	Claim bool // the sender only asks whether it may have the address
}

const (
	// takenFor is for how long the host's own addresses are not looked up again.
	takenFor = 2 * time.Second
	// slowLook is how long that look-up may take without being put off.
	slowLook = 20 * time.Millisecond
	// claimFor is how long an address is left to another machine that has
	// claimed it: RFC 5227 section 1.1 has it announce within 9 s.
	claimFor = 10 * time.Second
	// retryAfter is how long nothing has been heard of an address in use when
	// it is asked about again, if nothing better is free.
	retryAfter = time.Minute
	// seenFor is how long an address counts as in use after it was heard last.
	seenFor = 15 * time.Minute
	// conflictEvery is how often a conflict over one address is logged at most,
	// however many machines take turns at it.
	conflictEvery = time.Minute
	// maxSeen bounds how many such addresses of a pool are remembered because
	// they were heard: hosts change their IPv6 addresses every day (RFC 8981).
	maxSeen = 1 << 16
)

// seen is an address in use by a machine that is not ours.
type seen struct {
	mac   net.HardwareAddr
	since time.Time
	last  time.Time
	until time.Time // it is given to nobody before, unless it is probed
	asked time.Time // without an answer, but not on all links

	// Of a conflict: who was logged, and when.
	logged   net.HardwareAddr
	loggedAt time.Time
}

// parents are the links that lead to a pool's LAN.
func (i *IPAM) parents(p *pool) []string {
	found := map[string]struct{}{}
	for id := range i.naming[p.subnet] {
		if parent := i.networks[id].Parent; parent != "" {
			found[parent] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// guard returns how a request's terms have its pool guarded.
func (i *IPAM) guard(p *pool, t *terms) options.Conflict {
	if i.detector == nil || !i.leads(p) {
		return options.Off
	}
	return t.options.Conflict
}

// Doubt says that a link, or with "" any, was without carrier: what was asked
// there is not known any more. Machines may come while nobody listens.
func (i *IPAM) Doubt(link string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pools.Scan(func(p *pool) bool {
		if len(p.stocked) > 0 && (link == "" || slices.Contains(i.parents(p), link)) {
			for _, t := range p.terms {
				p.unstock(t)
			}
		}
		return true
	})
}

// leads says whether a link leads to a pool's LAN.
func (i *IPAM) leads(p *pool) bool {
	for id := range i.naming[p.subnet] {
		if i.networks[id].Parent != "" {
			return true
		}
	}
	return false
}

// rewatchSoon has rewatch done in the background, once for all who want it.
func (i *IPAM) rewatchSoon() {
	if i.detector != nil && !i.rewatching.Swap(true) {
		go i.rewatch()
	}
}

// rewatch has the detector listen where a pool wants it. Called without the
// lock, or in the background.
func (i *IPAM) rewatch() {
	i.watching.Lock() // so that the last one to look is the last one to tell
	defer i.watching.Unlock()
	i.rewatching.Store(false)
	i.mu.Lock()
	links := map[string]struct{}{}
	i.pools.Scan(func(p *pool) bool {
		if p.guarded() != options.Off {
			for _, link := range i.parents(p) {
				links[link] = struct{}{}
			}
		}
		return true
	})
	i.mu.Unlock()
	i.detector.Watch(slices.Sorted(maps.Keys(links)))
}

// ask probes addresses on all links of a pool, and returns those in use and
// whether all links could be asked. Called without the lock.
func (i *IPAM) ask(ctx context.Context, links []string, addrs []netip.Addr, wait time.Duration) (used map[netip.Addr]net.HardwareAddr, all bool, err error) {
	if len(links) == 1 {
		used, err = i.detector.Probe(ctx, links[0], addrs, wait)
		return used, err == nil, err
	}
	type answer struct {
		used map[netip.Addr]net.HardwareAddr
		err  error
	}
	answers := make(chan answer)
	for _, link := range links {
		go func() {
			used, err := i.detector.Probe(ctx, link, addrs, wait)
			answers <- answer{used, err}
		}()
	}
	used = map[netip.Addr]net.HardwareAddr{}
	var failed error
	blind := 0
	for range links {
		a := <-answers
		maps.Copy(used, a.used)
		if a.err != nil && !errors.Is(failed, context.DeadlineExceeded) {
			failed = a.err
		}
		if a.err != nil {
			blind++
		}
	}
	// One cable that is out does not make the other LAN's answers worthless; the
	// detector itself says that it is out. But who was seen is not forgotten.
	if blind < len(links) && !errors.Is(failed, context.DeadlineExceeded) {
		failed = nil
	}
	return used, blind == 0, failed
}

// Heard takes note of what the detector has heard.
func (i *IPAM) Heard(s Sighting) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.around(s.Addr)
	if p == nil || p.guarded() == options.Off || !slices.Contains(i.parents(p), s.Link) || p.check(s.Addr) != nil {
		return
	}
	if len(p.seen) >= maxSeen && p.seen[s.Addr] == nil && p.held[s.Addr] == nil && p.stocked[s.Addr] == nil {
		return
	}
	i.see(p, s.Addr, s.MAC, s.Claim)
}

// see notes that another machine has an address, or claims it.
func (i *IPAM) see(p *pool, addr netip.Addr, mac net.HardwareAddr, claim bool) {
	if i.taken[addr] != "" {
		return // the host itself, by another NIC, or a router it knows
	}
	if t := p.stocked[addr]; claim && t != nil {
		if _, asking := t.asking[addr]; asking {
			return // who of the two yields, the detector decides
		}
	}
	now := i.now()
	h := p.held[addr]
	if h != nil {
		if !claim && h.kind == KindEndpoint {
			i.conflict(p, addr, mac, now)
		}
		return
	}
	s := p.seen[addr]
	if s == nil {
		s = &seen{since: now}
		p.seen[addr] = s
		p.mark(addr)
		p.destock(addr)
	}
	if claim && s.last.IsZero() {
		s.until = now.Add(claimFor)
		s.mac = mac
		return
	}
	if claim {
		return
	}
	s.mac, s.last, s.until = mac, now, now.Add(seenFor)
}

// conflict notes that another machine has the address of one of our containers,
// unless it is the container itself that was heard.
func (i *IPAM) conflict(p *pool, addr netip.Addr, mac net.HardwareAddr, now time.Time) {
	if i.users == nil {
		return
	}
	if own, ok := i.users.MAC(addr); !ok || slices.Equal(own, mac) {
		return // of a container not started yet, it will be heard again
	}
	c := p.conflicts[addr]
	if c == nil {
		c = &seen{}
		p.conflicts[addr] = c
	}
	if !slices.Equal(c.mac, mac) {
		c.mac, c.since = mac, now
	}
	if !slices.Equal(c.logged, mac) && now.Sub(c.loggedAt) >= conflictEvery {
		what, _ := i.holder(addr)
		i.log.WithField("address", addr).Errorf("address conflict: %v on the LAN has %v, the address of %s; give one of them another address", mac, addr, what)
		c.logged, c.loggedAt = mac, now
	}
	c.last, c.until = now, now.Add(seenFor)
}

// expire forgets the machines that have not been heard for long.
func (i *IPAM) expire(p *pool) {
	now := i.now()
	for addr, s := range p.seen {
		if s.until.Before(now) {
			p.unsee(addr)
		}
	}
	for addr, c := range p.conflicts {
		if c.until.Before(now) {
			i.log.WithField("address", addr).Infof("address conflict over: %v was not heard for %v", c.mac, seenFor)
			delete(p.conflicts, addr)
		}
	}
}

// heard is when it was last heard, or claimed.
func (s *seen) heard() time.Time {
	if s.last.IsZero() {
		return s.until.Add(-claimFor)
	}
	return s.last
}

func (p *pool) unsee(addr netip.Addr) {
	delete(p.seen, addr)
	p.mark(addr)
}

// refresh looks up the addresses that no container may have. Called without the
// lock. Where that takes long, as on a router with many routes, it is done
// seldom and in the background: calls go on with what was so a short while ago.
func (i *IPAM) refresh() {
	if i.host == nil {
		return
	}
	i.hosting.Lock() // nobody goes on before the first one knows
	i.mu.Lock()
	due, slow := i.now().Sub(i.takenAt) >= max(takenFor, 20*i.takenTook), i.takenTook > slowLook
	if due {
		i.takenAt = i.now()
	}
	i.mu.Unlock()
	switch {
	case !due:
		i.hosting.Unlock()
	case slow:
		i.hosting.Unlock()
		go i.look()
	default:
		i.look()
		i.hosting.Unlock()
	}
}

// look is a refresh that is due. What cannot be looked up stays as it was.
func (i *IPAM) look() {
	begun := i.now()
	taken, err := i.host.Taken()
	if err != nil {
		i.log.WithError(err).Warn("the host's own addresses could not be looked up")
		return
	}
	took := i.now().Sub(begun) // without what follows: the lock may be busy
	i.mu.Lock()
	defer i.mu.Unlock()
	i.takenTook = took
	if maps.Equal(taken, i.taken) {
		return
	}
	was := i.taken
	i.taken = taken
	i.pools.Scan(func(p *pool) bool { p.taken = taken; return true })
	for _, addrs := range []map[netip.Addr]string{was, taken} {
		for addr := range addrs {
			if p := i.around(addr); p != nil {
				p.mark(addr)
				p.destock(addr)
			}
		}
	}
}
