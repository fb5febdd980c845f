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
)

// bucket holds the entries, by their key. The values are JSON.
const bucket = "leases"

// maxResting is how many identities without a container are remembered, over all
// networks: those of containers that are gone for good are of no use.
const maxResting = 1024

// Client speaks with the servers. See package dhcp.
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
	Parent   net.HardwareAddr // the link's own MAC
	Link     string           // the parent
	Shared   bool             // its MAC is the container's, too: ipvlan
	On       string           // what tells networks on the link apart: a pool's ID, a network's
	MAC      net.HardwareAddr // given by the user; nil: derived
	Name     string           // of the container, where dockerd or the user tells it
	ClientID []byte           // given by the user; nil: derived
	Addr     netip.Addr       // that and no other; zero: any
	Subnet   netip.Prefix     // it must be in; zero: whichever
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
	Lease  dhcp.Lease   `json:"lease"`
	Shared bool         `json:"shared,omitempty"` // the MAC is the parent's: the server goes by the client identifier
	Keep   bool         `json:"keep,omitempty"`
	MTU    int          `json:"mtu,omitempty"`  // that the interface is to have; 0: none is told, or wanted
	Rests  time.Time    `json:"rests,omitzero"` // since when no container has it; zero: one does
	Lost   string       `json:"lost,omitempty"` // why the server's word is not to be had at present
}

// Drift is what the server has given that Docker does not know of, or zero.
func (e *Entry) Drift() netip.Prefix {
	if e.Lease.Addr.Addr() == e.Given.Addr() {
		return netip.Prefix{}
	}
	return e.Lease.Addr
}

// Config is what a Book works with.
type Config struct {
	Client Client
	Store  *store.Store
	Log    *logrus.Entry
	// Changed is told what a running container is to have from now on, also when it
	// may have it already: at the start, and at each renewal.
	Changed func(Entry)
	// Own tells what an address is of this host's own, "" if it is not: such a lease
	// is given back.
	Own func(link string, addr netip.Addr) string
}

// Book holds all leases. Its methods may be called in parallel.
type Book struct {
	client  Client
	store   *store.Store
	log     *logrus.Entry
	changed func(Entry)
	own     func(link string, addr netip.Addr) string

	mu      sync.Mutex
	entries map[string]*Entry     // by key
	given   map[netip.Addr]*Entry // of those of IPAM
	asking  map[string]bool       // keys
}

// Open reads the book. Nothing is asked of any server before Resume.
func Open(c Config) (*Book, error) {
	b := &Book{
		client: c.Client, store: c.Store, log: c.Log, changed: c.Changed, own: c.Own,
		entries: map[string]*Entry{}, given: map[netip.Addr]*Entry{}, asking: map[string]bool{},
	}
	err := c.Store.Each(bucket, func(key, value []byte) error {
		var e Entry
		if err := json.Unmarshal(value, &e); err != nil {
			return fmt.Errorf("state record %s/%s: %w", bucket, key, err)
		}
		b.put(&e)
		return nil
	})
	return b, err
}

// Resume goes on with the leases of containers, and frees those that none has any
// more: held tells which are.
func (b *Book) Resume(held func(*Entry) bool) {
	b.mu.Lock()
	all := slices.Collect(maps.Values(b.entries))
	b.mu.Unlock()
	var known []dhcp.Lease
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
	if err := b.client.Restore(known); err != nil { // the gone ones, too: their server is to hear of it
		b.log.Errorf("leases that are not renewed: %v", err)
	}
	for _, e := range gone {
		b.Free(e.Key)
	}
	for _, e := range going {
		b.changed(*e)
	}
}

// Take takes a lease, and returns what Docker is to be told. The container has it
// until Free.
func (b *Book) Take(ctx context.Context, r Request) (Entry, error) {
	key, ask, err := b.identify(r)
	if err != nil {
		return Entry{}, err
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.asking, key)
	}()
	wait, cancel := context.WithTimeout(ctx, r.DHCP.Timeout)
	defer cancel()
	l, err := b.client.Acquire(wait, ask)
	if err != nil {
		return Entry{}, err
	}
	e := &Entry{Key: key, Drawn: r.MAC == nil && r.ClientID == nil && r.Name == "" && !r.Addr.IsValid(), On: r.On, Name: r.Name, Given: l.Addr, IPAM: r.Subnet.IsValid(), Shared: r.Shared, Lease: l, Keep: r.DHCP.Keep}
	if r.Subnet.IsValid() && !r.Subnet.Contains(l.Addr.Addr()) {
		err := fmt.Errorf("the DHCP server %v has given %v, which is outside the network's subnet %v; create the network with --subnet %v", l.Server, l.Addr.Addr(), r.Subnet, l.Addr.Masked())
		b.client.Release(key)
		return Entry{}, err
	}
	if what := b.own(r.Link, l.Addr.Addr()); what != "" {
		b.client.Release(key) // a decline would have the server keep it from the host, too
		return Entry{}, fmt.Errorf("the DHCP server %v has given %v, which is %s; it may go by the MAC, which this container shares with the host: tell it to go by the client identifier, or use macvlan", l.Server, l.Addr.Addr(), what)
	}
	if r.DHCP.MTU {
		e.MTU = l.MTU
	}
	b.mu.Lock()
	if o := b.given[l.Addr.Addr()]; o != nil && o.Key != key && e.IPAM {
		drifted := o.Drift().IsValid()
		b.mu.Unlock()
		if drifted {
			b.client.Release(key)
			return Entry{}, fmt.Errorf("the DHCP server %v has given %v, which Docker shows for a container that has %v since; restart that one first", l.Server, l.Addr.Addr(), o.Drift().Addr())
		}
		err := fmt.Errorf("the DHCP server %v has given %v twice; tell it to go by the client identifier, or use macvlan", l.Server, l.Addr.Addr())
		b.client.Decline(key, err.Error())
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
// at a time.
func (b *Book) identify(r Request) (key string, ask dhcp.Ask, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ask = dhcp.Ask{Link: r.Link, MAC: r.MAC, Hostname: hostname(r.Name), VendorClass: r.DHCP.Class, Want: r.Addr, Servers: r.DHCP.Servers}
	var who string
	switch {
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
		if e := b.last(r); e != nil {
			key = e.Key
		} else {
			who = "drawn " + rand.Text()
		}
	}
	for attempt := 0; key == "" || b.busy(key); attempt++ {
		if attempt > 0 && r.MAC != nil {
			return "", ask, fmt.Errorf("--mac-address %v has a lease on this network already; give another, or stop the container that has it", r.MAC)
		}
		if attempt > 0 && r.ClientID != nil {
			return "", ask, fmt.Errorf("the client id %x is in use on this network already; give another, or stop the container that has it", r.ClientID)
		}
		key = keyOf(r, who, attempt)
	}
	b.asking[key] = true
	id := sha256.Sum256([]byte(key))
	switch {
	case r.Shared:
		ask.MAC = r.Parent
		ask.ClientID = clientID(id)
	case ask.MAC == nil:
		ask.MAC = net.HardwareAddr(slices.Clone(id[:6]))
		ask.MAC[0] = ask.MAC[0]&^1 | 2 // locally administered, of one machine (IEEE 802, 8.4)
	}
	if r.ClientID != nil {
		ask.ClientID = r.ClientID
	}
	ask.Key = key
	if e := b.entries[key]; e != nil && !e.Rests.IsZero() && (!r.Addr.IsValid() || e.Lease.Addr.Addr() == r.Addr) {
		was := e.Lease
		if !e.Keep {
			was.Expires = e.Rests // it has been given back
		}
		ask.Previous = &was
	}
	return key, ask, nil
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
	c := []byte{255}
	c = append(c, id[:4]...)
	c = binary.BigEndian.AppendUint16(c, 4)
	uuid := [16]byte(id[4:20])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x80, uuid[8]&0x3f|0x80 // version 8, RFC 9562
	return append(c, uuid[:]...)
}

// busy says whether an identity is in use. The caller holds b.mu.
func (b *Book) busy(key string) bool {
	e := b.entries[key]
	return b.asking[key] || e != nil && e.Rests.IsZero()
}

// last is the drawn identity on a network that was freed last. The caller holds b.mu.
func (b *Book) last(r Request) (last *Entry) {
	for _, e := range b.entries {
		if e.On == r.On && e.Shared == r.Shared && e.Lease.Link == r.Link && e.Drawn && !e.Rests.IsZero() && !b.asking[e.Key] &&
			(last == nil || last.Rests.Before(e.Rests)) {
			last = e
		}
	}
	return last
}

// Learn asks for the subnet and the router of a LAN, and takes nothing.
func (b *Book) Learn(ctx context.Context, link string, parent net.HardwareAddr, o options.DHCP) (subnet netip.Prefix, router netip.Addr, err error) {
	_, ask, err := b.identify(Request{Parent: parent, Link: link, On: "learn", DHCP: o})
	if err != nil {
		return subnet, router, err
	}
	b.mu.Lock()
	delete(b.asking, ask.Key)
	b.mu.Unlock()
	t, err := b.client.Discover(ctx, ask)
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

// MAC is that of the container which was given an address.
func (b *Book) MAC(addr netip.Addr) (mac net.HardwareAddr, shared, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.given[addr]
	if e == nil {
		return nil, false, false
	}
	return e.Lease.MAC, e.Shared, true
}

// MTU is that which the container with an address is to have from the server, or 0.
func (b *Book) MTU(addr netip.Addr) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.given[addr]; e != nil {
		return e.MTU
	}
	return 0
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
	rests.Rests = time.Now()
	if e.Keep {
		b.client.Forget(e.Key)
	} else {
		b.client.Release(e.Key)
	}
	b.put(&rests)
	changes := []store.Change{record(&rests)}
	if o := b.surplus(); o != nil {
		delete(b.entries, o.Key)
		changes = append(changes, store.Change{Bucket: bucket, Key: []byte(o.Key)})
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
	b.store.Submit(store.Change{Bucket: bucket, Key: []byte(e.Key)})
	b.client.Decline(e.Key, why.Error())
}

// Told hears from the client.
func (b *Book) Told(ev dhcp.Event) {
	b.mu.Lock()
	e := b.entries[ev.Lease.Key]
	if e == nil || !e.Rests.IsZero() || ev.Lease.Granted.Before(e.Lease.Granted) { // or of an earlier life
		b.mu.Unlock()
		return
	}
	now := *e
	now.Lost = ""
	if ev.Err != nil {
		now.Lost = ev.Err.Error()
	} else {
		now.Lease = ev.Lease
	}
	b.put(&now)
	b.store.Submit(record(&now))
	b.mu.Unlock()
	log := b.log.WithField("address", now.Given.Addr())
	if now.Name != "" {
		log = log.WithField("container", now.Name)
	}
	switch {
	case ev.Err != nil && e.Lost == "":
		log.Warnf("lease: %v", ev.Err)
	case ev.Err == nil && e.Lost != "":
		log.Info("lease: the server answers again")
	}
	if ev.Err == nil && e.Lease.Addr != now.Lease.Addr {
		log.Warnf("the DHCP server has given %v in the place of %v; docker inspect goes on showing %v until the container is restarted", now.Lease.Addr, e.Lease.Addr, now.Given.Addr())
	}
	if ev.Err == nil {
		b.changed(now)
	}
}

// put enters an entry in the place of an older one. The caller holds b.mu.
func (b *Book) put(e *Entry) {
	b.entries[e.Key] = e
	if !e.Rests.IsZero() || !e.IPAM {
		return
	}
	if o := b.given[e.Given.Addr()]; o == nil || !e.Lease.Granted.Before(o.Lease.Granted) {
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
	return store.Change{Bucket: bucket, Key: []byte(e.Key), Value: value}
}
