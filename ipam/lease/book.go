package lease

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/internal/options"
	"underlay/internal/store"
	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
)

// The buckets hold the entries, by their key. The values are JSON. Those of IPv6 have
// one of their own: a version that does not know them leaves it alone.
const bucket, bucket6 = "leases", "leases6"

// maxResting is how many identities without a container are remembered, over all
// networks: those of containers that are gone for good are of no use.
const maxResting = 1024

// mateWithin is how soon after a container's lease of IPv4 the one of IPv6 is asked for.
const mateWithin = 10 * time.Second

// Client speaks with the servers of IPv4. See package dhcp.
type Client interface {
	Acquire(context.Context, dhcp.Ask) (dhcp.Lease, error)
	Discover(context.Context, dhcp.Ask) (dhcp.Terms, error)
	Restore([]dhcp.Lease) error
	Release(key string)
	Forget(key string)
	Decline(key, why string)
}

// Request is what a container needs a lease for.
type Request struct {
	V6       bool
	Parent   net.HardwareAddr // the link's own MAC
	Link     string           // the parent
	Shared   bool             // its MAC is the container's, too: ipvlan
	Alone    bool             // the container takes all that comes to the parent: passthru
	On       string           // what tells networks on the link apart: a pool's ID, a network's
	MAC      net.HardwareAddr // given by the user; nil: derived
	Name     string           // of the container, where dockerd or the user tells it
	ClientID []byte           // given by the user; nil: derived
	Addr     netip.Addr       // that and no other; zero: any
	Subnet   netip.Prefix     // it must be in; zero: whichever
	OnLink   []netip.Prefix   // IPv6: of the LAN, as far as they are known
	Mate     string           // IPv6: the key of the container's lease of IPv4; "": see Book.mate
	DHCP     options.DHCP
}

// Entry is one lease, or what is left of one for the next start.
type Entry struct {
	Key    string       `json:"key"`
	Drawn  bool         `json:"drawn,omitempty"` // of a container of which nothing is known
	On     string       `json:"on"`
	Name   string       `json:"name,omitempty"`
	Given  netip.Prefix `json:"given"`          // what Docker was told
	IPAM   bool         `json:"ipam,omitempty"` // by IPAM, which knows it by its address
	Lease  Lease        `json:"lease"`
	Router netip.Addr   `json:"router,omitzero"`  // that the server told at the container's start
	Shared bool         `json:"shared,omitempty"` // the MAC is the parent's: the server goes by the client identifier
	Keep   bool         `json:"keep,omitempty"`
	MTU    int          `json:"mtu,omitempty"`  // that the interface is to have; 0: none is told, or wanted
	Rests  time.Time    `json:"rests,omitzero"` // since when no container has it; zero: one does
	Lost   string       `json:"lost,omitempty"` // why the server's word is not to be had at present

	taken time.Time // by this process
	spent bool      // the container has got no lease of IPv6, and so does not start
}

// V6 says which family the lease is of.
func (e *Entry) V6() bool { return e.Given.Addr().Is6() }

// Drift is what the server has given that Docker does not know of, or zero.
func (e *Entry) Drift() netip.Prefix {
	if e.Lease.Addr.Addr() == e.Given.Addr() {
		return netip.Prefix{}
	}
	return e.Lease.Addr
}

// Config is what a Book works with.
type Config struct {
	Client  Client
	Client6 Client6
	Store   *store.Store
	Log     *logrus.Entry
	// Changed is told what a running container is to have from now on, also when it
	// may have it already: at the start, and at each renewal.
	Changed func(Entry)
	// Own tells what an address is of this host's own, "" if it is not: no container
	// is to have that.
	Own func(link string, addr netip.Addr) string
}

// Book holds all leases. Its methods may be called in parallel.
type Book struct {
	client  Client
	client6 Client6
	store   *store.Store
	log     *logrus.Entry
	changed func(Entry)
	own     func(link string, addr netip.Addr) string

	mu      sync.Mutex
	entries map[string]*Entry     // by key
	given   map[netip.Addr]*Entry // of those of IPAM
	asking  map[string]string     // by key: the container's name, or ""
}

// Open reads the book. Nothing is asked of any server before Resume.
func Open(c Config) (*Book, error) {
	b := &Book{
		client: c.Client, client6: c.Client6, store: c.Store, log: c.Log, changed: c.Changed, own: c.Own,
		entries: map[string]*Entry{}, given: map[netip.Addr]*Entry{}, asking: map[string]string{},
	}
	for _, bucket := range []string{bucket, bucket6} {
		err := c.Store.Each(bucket, func(key, value []byte) error {
			var e Entry
			if err := json.Unmarshal(value, &e); err != nil {
				return fmt.Errorf("state record %s/%s: %w", bucket, key, err)
			}
			b.put(&e)
			return nil
		})
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

// Resume goes on with the leases of containers, and frees those that none has any
// more: held tells which are.
func (b *Book) Resume(held func(*Entry) bool) {
	b.mu.Lock()
	all := slices.Collect(maps.Values(b.entries))
	b.mu.Unlock()
	var known []Lease
	var going, gone []*Entry
	latest := map[netip.Addr]time.Time{} // of IPAM's, should two have an address: a record that was not written
	for _, e := range all {
		if e.Rests.IsZero() && e.IPAM && e.Lease.Granted.After(latest[e.Given.Addr()]) {
			latest[e.Given.Addr()] = e.Lease.Granted
		}
	}
	for _, e := range all {
		switch {
		case !e.Rests.IsZero():
			continue
		case held(e) && (!e.IPAM || !e.Lease.Granted.Before(latest[e.Given.Addr()])): // held takes locks under which Free is called
			going = append(going, e)
		default:
			gone = append(gone, e)
		}
		known = append(known, e.Lease)
	}
	err, err6 := b.restore(known) // the gone ones, too: their server is to hear of it
	for _, err := range []error{err, err6} {
		if err != nil {
			b.log.Errorf("leases that are not renewed: %v", err)
		}
	}
	for _, e := range gone {
		b.Free(e.Key)
	}
	for _, e := range going {
		b.changed(*e)
	}
}

// Spent is the error of a lease of IPv6 that a container of a known name does not get.
// It does not start, then, and Addr, which it has been leased for IPv4, is of no use.
type Spent struct {
	Addr netip.Addr
	error
}

// Unwrap is why.
func (s Spent) Unwrap() error { return s.error }

// Take takes a lease, and returns what Docker is to be told. The container has it
// until Free. The error may be a Spent.
func (b *Book) Take(ctx context.Context, r Request) (_ Entry, err error) {
	start := time.Now()
	key, drawn, ask, err := b.identify(r)
	if err != nil {
		return Entry{}, err
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.asking, key)
		if err != nil {
			err = b.spend(key, r, start, err)
		}
	}()
	wait, cancel := context.WithTimeout(ctx, r.DHCP.Timeout)
	defer cancel()
	l, err := b.acquire(wait, r, ask)
	if err != nil {
		return Entry{}, err
	}
	e := &Entry{Key: key, Drawn: drawn, On: r.On, Name: r.Name, Given: l.Addr, IPAM: r.Subnet.IsValid(), Router: Router(l.Terms), Shared: r.Shared, Lease: l, Keep: r.DHCP.Keep, taken: time.Now()}
	addr, server, goesBy := l.Addr.Addr(), l.server(), "client identifier"
	if r.V6 {
		goesBy = "DUID"
	}
	if r.Subnet.IsValid() && !r.Subnet.Contains(addr) {
		subnet := l.Addr.Masked()
		if r.V6 {
			subnet = netip.PrefixFrom(addr, 64).Masked() // as is the custom
		}
		err := fmt.Errorf("the DHCP server %s has given %v, which is outside the network's subnet %v; create the network with --subnet %v", server, addr, r.Subnet, subnet)
		b.speaker(r.V6).Release(key)
		return Entry{}, err
	}
	if what := b.own(r.Link, addr); what != "" {
		if r.Shared { // the server may take the two for one: the lease may be the host's
			b.speaker(r.V6).Forget(key)
			return Entry{}, fmt.Errorf("the DHCP server %s has given %v, which is %s; it may go by the MAC, which this container shares with the host: tell it to go by the %s, or use macvlan", server, addr, what, goesBy)
		}
		err := fmt.Errorf("the DHCP server %s has given %v, which is %s: take it out of the server's range", server, addr, what)
		b.decline(key, r.V6, err)
		return Entry{}, err
	}
	if r.DHCP.MTU {
		e.MTU = l.MTU
	}
	b.mu.Lock()
	if o := b.given[addr]; o != nil && o.Key != key && e.IPAM {
		drifted := o.Drift().IsValid()
		b.mu.Unlock()
		if drifted {
			b.speaker(r.V6).Release(key)
			return Entry{}, fmt.Errorf("the DHCP server %s has given %v, which Docker shows for a container that has %v since; restart that one first", server, addr, o.Drift().Addr())
		}
		err := fmt.Errorf("the DHCP server %s has given %v twice; tell it to go by the %s, or use macvlan", server, addr, goesBy)
		b.decline(key, r.V6, err)
		return Entry{}, err
	}
	b.put(e)
	written := b.store.Submit(record(e))
	b.mu.Unlock()
	select {
	case err = <-written:
	case <-ctx.Done():
		err = fmt.Errorf("state is not on disk yet; try again: %w", ctx.Err())
	}
	if err != nil {
		b.Free(key)
		return Entry{}, err
	}
	return *e, nil
}

// identify finds out who a container is to the server: the one that it was when it
// ran last, as far as that can be known. A MAC of the user's is but one container's
// at a time. With a lease of IPv4, it is the same one for IPv6. drawn says that
// nothing is known of it.
func (b *Book) identify(r Request) (key string, drawn bool, to ask, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := dhcp.Ask{Link: r.Link, MAC: r.MAC, Hostname: hostname(r.Name), VendorClass: r.DHCP.Class, Want: r.Addr, Servers: servers4(r.DHCP)}
	var who string
	switch mate := b.mate(r); {
	case mate != nil:
		key, drawn, a.MAC = mate.Key+suffix6, mate.Drawn, mate.Lease.MAC
	case r.MAC != nil:
		who = "mac " + r.MAC.String()
	case r.ClientID != nil:
		who = "client " + string(r.ClientID)
	case r.Name != "":
		who = "name " + r.Name
	case r.Addr.IsValid():
		who = "address " + r.Addr.String()
	default:
		// The one that was freed last: Docker stops a container right before it
		// starts it again.
		drawn = true
		if e := b.last(r); e != nil {
			key = e.Key
		} else {
			who = "drawn " + rand.Text()
		}
	}
	for attempt := 0; key == "" || b.busy(key); attempt++ {
		if attempt > 0 && r.MAC != nil {
			return "", drawn, to, fmt.Errorf("--mac-address %v has a lease on this network already; give another, or stop the container that has it", r.MAC)
		}
		if attempt > 0 && r.ClientID != nil {
			return "", drawn, to, fmt.Errorf("the client id %x is in use on this network already; give another, or stop the container that has it", r.ClientID)
		}
		if key = keyOf(r, who, attempt); r.V6 {
			key += suffix6
		}
	}
	b.asking[key] = r.Name
	id := sha256.Sum256([]byte(strings.TrimSuffix(key, suffix6)))
	switch {
	case r.Shared:
		a.MAC = r.Parent
		a.ClientID = clientID(id)
	case a.MAC == nil:
		a.MAC = net.HardwareAddr(slices.Clone(id[:6]))
		a.MAC[0] = a.MAC[0]&^1 | 2 // locally administered, of one machine (IEEE 802, 8.4)
	}
	if r.ClientID != nil {
		a.ClientID = r.ClientID
	}
	a.Key = key
	to = ask{v4: a}
	if r.V6 {
		to.v6 = sixth(a, r, id)
	}
	if e := b.entries[key]; e != nil && !e.Rests.IsZero() && (!r.Addr.IsValid() || e.Lease.Addr.Addr() == r.Addr) {
		was := e.Lease.Lease
		if !e.Keep {
			was.Expires = e.Rests // it has been given back
		}
		to.v4.Previous, to.v6.Previous = &was, e.Lease.V6
	}
	return key, drawn, to, nil
}

// suffix6 makes the key of a container's lease of IPv6 from that of its lease of IPv4,
// or from what that would be.
const suffix6 = "-6"

// mate is the lease of IPv4 of the container that one of IPv6 is asked for, or nil if
// it is not known to have any. Docker before 29 does not tell the two calls' container,
// but makes them one right after the other: so it is the first that was taken lately
// and has none of IPv6, or else the last. Should the calls of several starts have
// overtaken each other, two containers have each other's identity for IPv6, which is
// of no harm: it is one container's at a time, and stays it over a restart. The caller
// holds b.mu.
func (b *Book) mate(r Request) (found *Entry) {
	if !r.V6 || !r.DHCP.V4 {
		return nil
	}
	if r.Mate != "" {
		return b.entries[r.Mate]
	}
	now := time.Now()
	lately := func(e *Entry) bool { return now.Sub(e.taken) < mateWithin }
	for _, e := range b.entries {
		if e.V6() || e.spent || !e.IPAM || !e.Rests.IsZero() || e.Lease.Link != r.Link || e.Shared != r.Shared || e.Name != r.Name || !oneNetwork(e.On, r.On) || b.busy(e.Key+suffix6) {
			continue
		}
		switch {
		case found == nil || lately(e) && !lately(found):
			found = e
		case lately(e) && e.taken.Before(found.taken):
			found = e
		case !lately(found) && found.Lease.Granted.Before(e.Lease.Granted):
			found = e
		}
	}
	return found
}

// spend notes that a container has got no lease of IPv6, which was asked for at start:
// dockerd gives its start up, and does not give the address of IPv4 back at once, or
// (Docker 29) at all. Where the name tells that the two are of one container, the error
// returned is a Spent. The caller holds b.mu.
func (b *Book) spend(key string, r Request, start time.Time, why error) error {
	four, six := strings.CutSuffix(key, suffix6)
	e := b.entries[four]
	if !six || e == nil || !e.Rests.IsZero() {
		return why
	}
	now := *e
	now.spent = true
	b.put(&now)
	if r.Name == "" || e.Name != r.Name || !e.IPAM || e.taken.After(start) || start.Sub(e.taken) >= mateWithin {
		return why
	}
	for key, name := range b.asking {
		if name == r.Name && strings.HasSuffix(key, suffix6) {
			return why // dockerd has repeated itself, and the container may start yet
		}
	}
	for _, o := range b.entries {
		if o.V6() && o.Rests.IsZero() && o.Name == r.Name && o.On == r.On {
			return why // and this is how
		}
	}
	return Spent{e.Given.Addr(), why}
}

// oneNetwork says whether two pools, one of each family, may be of one network: they
// have the same options then, which stand at the end of a pool's ID.
func oneNetwork(pool, pool6 string) bool {
	_, options, _ := strings.Cut(pool, "#")
	_, options6, _ := strings.Cut(pool6, "#")
	return options == options6
}

// hostname makes a host's name of a container's, which may have what a host's may
// not (RFC 1123 section 2.1).
func hostname(container string) string {
	name := strings.Map(func(c rune) rune {
		if c == '_' || c == '.' {
			return '-'
		}
		return c
	}, container)
	return strings.Trim(name[:min(len(name), 63)], "-")
}

// keyOf names an identity. The parent's MAC is in it: two hosts with containers of
// the same names are no one machine.
func keyOf(r Request, who string, attempt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%t\x00%s\x00%s\x00%d", r.Parent, r.Link, r.Shared, r.On, who, attempt))
	return hex.EncodeToString(sum[:16])
}

// clientID is one of RFC 4361 section 6.1: an IAID and a DUID made of a UUID (RFC
// 6355).
func clientID(id [32]byte) []byte {
	return append(append([]byte{255}, id[:4]...), uuid(id)...)
}

// uuid is that DUID.
func uuid(id [32]byte) []byte {
	uuid := [16]byte(id[4:20])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x80, uuid[8]&0x3f|0x80 // version 8, RFC 9562
	return append(binary.BigEndian.AppendUint16(nil, 4), uuid[:]...)
}

// busy says whether an identity is in use. The caller holds b.mu.
func (b *Book) busy(key string) bool {
	e := b.entries[key]
	_, asking := b.asking[key]
	return asking || e != nil && e.Rests.IsZero()
}

// last is the drawn identity on a network that was freed last. The caller holds b.mu.
func (b *Book) last(r Request) (last *Entry) {
	for _, e := range b.entries {
		if e.V6() == r.V6 && e.On == r.On && e.Shared == r.Shared && e.Lease.Link == r.Link && e.Drawn && !e.Rests.IsZero() && !b.busy(e.Key) &&
			(last == nil || last.Rests.Before(e.Rests)) {
			last = e
		}
	}
	return last
}

// Learn asks for the subnet and the router of a LAN, and takes nothing.
func (b *Book) Learn(ctx context.Context, link string, parent net.HardwareAddr, o options.DHCP) (subnet netip.Prefix, router netip.Addr, err error) {
	key, _, ask, err := b.identify(Request{Parent: parent, Link: link, On: "learn", DHCP: o})
	if err != nil {
		return subnet, router, err
	}
	b.mu.Lock()
	delete(b.asking, key)
	b.mu.Unlock()
	t, err := b.client.Discover(ctx, ask.v4)
	if err != nil {
		return subnet, router, err
	}
	return t.Addr.Masked(), Router(t), nil
}

// Router is that of a server's default route, zero if it gives none.
func Router(t dhcp.Terms) netip.Addr {
	for _, r := range t.Routes {
		if r.To.Bits() == 0 {
			return r.Via
		}
	}
	if len(t.Routers) > 0 {
		return t.Routers[0]
	}
	return netip.Addr{}
}

// Given is the entry of the container which was given an address.
func (b *Book) Given(addr netip.Addr) (Entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.given[addr]; e != nil {
		return *e, true
	}
	return Entry{}, false
}

// FreeAddress is Free for what IPAM has given.
func (b *Book) FreeAddress(addr netip.Addr) {
	b.mu.Lock()
	e := b.given[addr]
	b.mu.Unlock()
	if e != nil {
		b.Free(e.Key)
	}
}

// Free says that no container has a lease any more. The server is told, unless
// the network keeps its leases. It waits for nothing.
func (b *Book) Free(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[key]
	if e == nil || !e.Rests.IsZero() {
		return
	}
	if b.given[e.Given.Addr()] == e {
		delete(b.given, e.Given.Addr())
	}
	rests := *e
	rests.Rests, rests.spent = time.Now(), false
	if e.Keep {
		b.speaker(e.V6()).Forget(e.Key)
	} else {
		b.speaker(e.V6()).Release(e.Key)
	}
	b.put(&rests)
	changes := []store.Change{record(&rests)}
	if o := b.surplus(); o != nil {
		delete(b.entries, o.Key)
		changes = append(changes, erasure(o))
	}
	b.store.Submit(changes...)
}

// surplus is the identity that has rested longest, if there are too many.
func (b *Book) surplus() (oldest *Entry) {
	resting := 0
	for _, e := range b.entries {
		if e.Rests.IsZero() {
			continue
		}
		resting++
		if oldest == nil || e.Rests.Before(oldest.Rests) {
			oldest = e
		}
	}
	if resting <= maxResting {
		return nil
	}
	return oldest
}

// Refuse tells the server that an address which it has given cannot be used.
func (b *Book) Refuse(addr netip.Addr, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.given[addr]
	if e == nil {
		return
	}
	delete(b.given, addr)
	delete(b.entries, e.Key)
	b.store.Submit(erasure(e))
	b.decline(e.Key, e.V6(), why)
}

// Told hears from the client of IPv4.
func (b *Book) Told(ev dhcp.Event) { b.told(Lease{Lease: ev.Lease}, ev.Err) }

// Told6 hears from the client of IPv6.
func (b *Book) Told6(ev dhcp6.Event) {
	b.mu.Lock()
	var known []netip.Prefix
	if e := b.entries[ev.Lease.Key]; e != nil {
		known = append(known, e.Given)
	}
	b.mu.Unlock()
	b.told(lease6(ev.Lease, known...), ev.Err)
}

// told notes a lease as it is now, or with an error as it was.
func (b *Book) told(l Lease, trouble error) {
	b.mu.Lock()
	e := b.entries[l.Key]
	if e == nil || !e.Rests.IsZero() ||
		// Or of an earlier life, unless the clock was set back since.
		l.Granted.Before(e.Lease.Granted) && !e.Lease.Granted.After(time.Now()) {
		b.mu.Unlock()
		return
	}
	now := *e
	now.Lost = ""
	if trouble != nil {
		now.Lost = trouble.Error()
	} else {
		now.Lease = l
	}
	b.put(&now)
	b.store.Submit(record(&now))
	b.mu.Unlock()
	log := b.log.WithField("address", now.Given.Addr())
	if now.Name != "" {
		log = log.WithField("container", now.Name)
	}
	switch {
	case trouble != nil && e.Lost == "":
		log.Warnf("lease: %v", trouble)
	case trouble == nil && e.Lost != "":
		log.Info("lease: the server answers again")
	}
	if trouble == nil && e.Lease.Addr != now.Lease.Addr {
		log.Warnf("the DHCP server has given %v in the place of %v; docker inspect goes on showing %v until the container is restarted", now.Lease.Addr, e.Lease.Addr, now.Given.Addr())
	}
	if trouble == nil {
		switch was, is := Router(e.Lease.Terms), Router(now.Lease.Terms); {
		case was == is:
		case !is.IsValid():
			log.Warnf("the DHCP server tells no router any more; the container has %v until it is restarted", was)
		case !was.IsValid():
			log.Warnf("the DHCP server tells a router now, %v; restart the container to have it there", is)
		default:
			log.Warnf("the DHCP server tells the router %v in the place of %v", is, was)
		}
		if !slices.Equal(routes(e.Lease.Terms), routes(now.Lease.Terms)) {
			log.Warn("the DHCP server tells other routes than before; restart the container to have them there")
		}
		b.changed(now)
	}
}

// routes are those of a server besides its default route, in an order of their own.
func routes(t dhcp.Terms) (all []string) {
	for _, r := range t.Routes {
		if r.To.Bits() > 0 {
			all = append(all, fmt.Sprint(r.To, r.Via))
		}
	}
	slices.Sort(all)
	return all
}

// put enters an entry in the place of an older one. The caller holds b.mu.
func (b *Book) put(e *Entry) {
	b.entries[e.Key] = e
	if !e.Rests.IsZero() || !e.IPAM {
		return
	}
	if o := b.given[e.Given.Addr()]; o == nil || o.Key == e.Key || !e.Lease.Granted.Before(o.Lease.Granted) {
		b.given[e.Given.Addr()] = e
	}
}

// Entries lists the leases of containers, by address.
func (b *Book) Entries() (es []Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		if e.Rests.IsZero() {
			es = append(es, *e)
		}
	}
	slices.SortFunc(es, func(a, c Entry) int {
		if d := a.Given.Addr().Compare(c.Given.Addr()); d != 0 {
			return d
		}
		return strings.Compare(a.Key, c.Key)
	})
	return es
}

func record(e *Entry) store.Change {
	value, _ := json.Marshal(e) // it holds nothing that JSON lacks
	c := erasure(e)
	c.Value = value
	return c
}

func erasure(e *Entry) store.Change {
	in := bucket
	if e.V6() {
		in = bucket6
	}
	return store.Change{Bucket: in, Key: []byte(e.Key)}
}
