package driver

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/internal/store"
	"underlay/netlinkutil"
)

// Kernel is what the driver asks of the host's network stack.
// *netlinkutil.Host is the real one.
type Kernel interface {
	Link(name string) (netlinkutil.Link, error)
	Links() ([]netlinkutil.Link, error)
	EnsureVLAN(name, lower string, id int, protocol netlinkutil.VLANProtocol, alias string) (made bool, err error)
	EnsureDummy(name, alias string, mac net.HardwareAddr) (made bool, err error)
	AddSubInterface(netlinkutil.SubInterface) (netlinkutil.Link, error)
	SetMTU(name string, mtu int) error
	DeleteLink(name string) error
	// Follow returns a function that waits until a link, which is in the host
	// now, has been moved to another netns and is up there.
	Follow(name string) (arrived func(context.Context) error, err error)
	Access
	Sandboxes
}

// Sandboxes are the netns of containers, as dockerd names them. A verb gets
// netlinkutil.ErrNoSandbox where the netns is no more, and ErrNoEntry where the
// plugin is not let in, and cannot know.
type Sandboxes interface {
	// Inside pictures the link that has an alias.
	Inside(sandbox, alias string) (netlinkutil.Interface, error)
	// InsideAll pictures the links of all sandboxes whose alias begins with prefix,
	// by the alias. With an error it may have missed some.
	InsideAll(prefix string) (map[string]netlinkutil.Found, error)
	// Restore makes a sub-interface there as it was, or completes one that is there.
	Restore(sandbox string, s netlinkutil.SubInterface, as netlinkutil.Interface) error
	RaiseMTU(sandbox, alias string, mtu int) error
	Readdress(sandbox, alias string, c netlinkutil.Readdressing) error
	// AddRoutes leaves the routes that there are.
	AddRoutes(sandbox, alias string, routes []netlinkutil.InterfaceRoute) error
	RemoveInside(sandbox, alias string) error
	// RemoveElsewhere deletes the link of an alias in whichever netns it is, but for
	// the host's own.
	RemoveElsewhere(alias string) (found bool, err error)
}

// Holdings is what the driver has to do with the addresses of underlay's IPAM.
type Holdings interface {
	// Name tells the name of the container behind an address, where Docker has
	// told it (Docker 29 and later, to the IPAM driver).
	Name(netip.Addr) (name string, ok bool)
	// MAC is that under which the LAN's own server has given an address, nil where
	// it goes by another identifier; not ok if no server has.
	MAC(netip.Addr) (mac net.HardwareAddr, ok bool)
	// MTU is that which the server tells with an address, where it is to be the
	// interface's; else 0.
	MTU(netip.Addr) int
	// Routes are those that the server tells with an address, besides the default
	// route.
	Routes(netip.Addr) []Route
	// Ended says that the endpoint that had an address has ended without dockerd
	// having said so.
	Ended(netip.Addr)
}

// Store is where the records are. *store.Store is the real one.
type Store interface {
	Each(bucket string, f func(key, value []byte) error) error
	Apply(...store.Change) error
	Submit(...store.Change) <-chan error
	Aside() *store.Aside
}

// Config is what a driver works with besides kernel and store.
type Config struct {
	Holdings  Holdings
	Leaser    Leaser    // nil: no server is asked for addresses
	Announcer Announcer // nil: the LAN is told nothing
	Log       logrus.FieldLogger
	// Boot names this boot of the host, which no endpoint outlives; "": unknown.
	Boot string
	// Grace is after how long without a word an endpoint without a link in a
	// container has ended; 0 stands for a minute.
	Grace time.Duration
}

// Driver holds every network and endpoint. Its methods may be called in
// parallel.
type Driver struct {
	kernel    Kernel
	store     Store
	holdings  Holdings
	leaser    Leaser
	announcer Announcer
	log       logrus.FieldLogger
	grace     time.Duration

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	companions sync.WaitGroup // of links on their way

	instance string // of this state file; drawn once, 8 hex digits

	// parents is held while a network comes or goes, so that a parent is not
	// deleted under a network that is being made on it.
	parents sync.Mutex

	answering sync.Mutex // held while the announcer is told what to answer for

	reconciling sync.Mutex // held while records and kernel are compared
	entered     bool       // an endpoint of ours has been seen in a sandbox: they are where we look
	tally       tally

	mu        sync.Mutex
	networks  map[string]*Network
	endpoints map[string]*Endpoint
	addresses map[netip.Addr]*Endpoint        // whose they are, of those that underlay's IPAM gave
	leasedOn  map[addrOn]*Endpoint            // and of those that no IPAM did
	lodgers   map[string]map[string]*Endpoint // by the parent
	roommates map[string]map[string]*Endpoint // by the sandbox
	macs      map[macOn]*Endpoint
	accesses  map[string]*access    // by the parent
	hosts4    map[string]netip.Addr // the host's own, or the last it had, by the parent
	presences map[string]*presence  // by the endpoint
	footings  map[string]footing    // of the parents whose endpoints have been looked at
	shaken    map[string]bool       // parents that have changed since their endpoints were looked at
	waiting   map[string]Absence    // by the parent
}

// The buckets of the store.
const (
	driverBucket   = "driver" // keys "instance" and "boot"
	networkBucket  = "networks"
	endpointBucket = "endpoints"
)

// New loads the networks and endpoints from the store. It does not touch the
// kernel: Recover does.
func New(kernel Kernel, st Store, c Config) (*Driver, error) {
	d := &Driver{
		kernel: kernel, store: st, holdings: c.Holdings, leaser: c.Leaser, announcer: c.Announcer, log: c.Log, grace: cmp.Or(c.Grace, grace),
		networks: map[string]*Network{}, endpoints: map[string]*Endpoint{}, addresses: map[netip.Addr]*Endpoint{}, leasedOn: map[addrOn]*Endpoint{}, lodgers: map[string]map[string]*Endpoint{}, roommates: map[string]map[string]*Endpoint{}, macs: map[macOn]*Endpoint{},
		accesses: map[string]*access{}, hosts4: map[string]netip.Addr{}, presences: map[string]*presence{}, waiting: map[string]Absence{}, shaken: map[string]bool{}, footings: map[string]footing{},
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	boot, changes, err := d.loadInstance()
	if err != nil {
		return nil, err
	}
	if boot != c.Boot {
		changes = append(changes, store.Change{Bucket: driverBucket, Key: []byte("boot"), Value: []byte(c.Boot)})
	}
	rebooted, ended := boot != c.Boot && boot != "" && c.Boot != "", 0
	err = st.Each(networkBucket, func(key, value []byte) error {
		n := &Network{}
		if err := json.Unmarshal(value, n); err != nil {
			return fmt.Errorf("record of network %s: %w", key, err)
		}
		d.networks[n.ID] = n
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = st.Each(endpointBucket, func(key, value []byte) error {
		if rebooted {
			changes = append(changes, remove(endpointBucket, string(key)))
			ended++
			return nil
		}
		e := &Endpoint{}
		if err := json.Unmarshal(value, e); err != nil {
			return fmt.Errorf("record of endpoint %s: %w", key, err)
		}
		d.add(e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if ended > 0 {
		d.log.Infof("the host was booted: %d endpoints of its time before are forgotten", ended)
	}
	if len(changes) == 0 {
		return d, nil
	}
	return d, st.Apply(changes...)
}

// State is what the driver knows, in the order of the IDs.
type State struct {
	Networks  []Network  `json:"networks"`
	Endpoints []Endpoint `json:"endpoints"`
	Waiting   []Absence  `json:"waiting,omitempty"`
}

// Absence is a parent that is not there, and that networks wait for.
type Absence struct {
	Parent string    `json:"parent"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
}

// Networks copies the networks, and says how many endpoints there are.
func (d *Driver) Networks() (networks []Network, endpoints int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.networks {
		networks = append(networks, *n)
	}
	return networks, len(d.endpoints)
}

// Inhabited names an endpoint of a network, if it has any.
func (d *Driver) Inhabited(network string) (endpoint string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.endpoints {
		if e.NetworkID == network {
			return e.ID, true
		}
	}
	return "", false
}

// Snapshot copies the driver's state.
func (d *Driver) Snapshot() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := State{Networks: []Network{}, Endpoints: []Endpoint{}}
	for _, id := range slices.Sorted(maps.Keys(d.networks)) {
		s.Networks = append(s.Networks, *d.networks[id])
	}
	for _, id := range slices.Sorted(maps.Keys(d.endpoints)) {
		s.Endpoints = append(s.Endpoints, *d.endpoints[id])
	}
	for _, parent := range slices.Sorted(maps.Keys(d.waiting)) {
		s.Waiting = append(s.Waiting, d.waiting[parent])
	}
	return s
}

// loadInstance reads the name of this state file, or draws it, which is a change
// to be put on disk; and the boot of the host that it was last used in, if any.
func (d *Driver) loadInstance() (boot string, changes []store.Change, err error) {
	err = d.store.Each(driverBucket, func(key, value []byte) error {
		switch string(key) {
		case "instance":
			d.instance = string(value)
		case "boot":
			boot = string(value)
		}
		return nil
	})
	if err != nil || d.instance != "" {
		return boot, nil, err
	}
	drawn := make([]byte, 4)
	_, _ = rand.Read(drawn) // crypto/rand never fails
	d.instance = hex.EncodeToString(drawn)
	return boot, []store.Change{{Bucket: driverBucket, Key: []byte("instance"), Value: []byte(d.instance)}}, nil
}

// add and drop keep the endpoints and their indices in step. The caller holds
// d.mu, or is New.
func (d *Driver) add(e *Endpoint) {
	d.endpoints[e.ID] = e
	n := d.networks[e.NetworkID]
	if n == nil {
		return
	}
	put := func(index map[string]map[string]*Endpoint, key string) {
		if index[key] == nil {
			index[key] = map[string]*Endpoint{}
		}
		index[key][e.ID] = e
	}
	put(d.lodgers, n.parent())
	if e.Sandbox != "" {
		put(d.roommates, e.Sandbox)
	}
	if e.MAC != nil {
		d.macs[macOn{n.parent(), string(e.MAC)}] = e
	}
	if n.ForeignIPAM {
		return
	}
	for _, p := range e.everyAddress() {
		if len(n.Subnets) == 0 {
			d.leasedOn[addrOn{n.parent(), p.Addr()}] = e
		} else {
			d.addresses[p.Addr()] = e
		}
	}
}

func (d *Driver) drop(e *Endpoint) {
	now, there := d.endpoints[e.ID]
	if there {
		e = now // with its sandbox
	}
	if p := d.presences[e.ID]; p != nil && p.cancel != nil {
		p.cancel()
	}
	delete(d.presences, e.ID)
	delete(d.endpoints, e.ID)
	if there {
		d.free(e)
	}
	for _, p := range e.everyAddress() {
		d.dropAddress(e, p.Addr())
	}
	parent := d.parentOf(e)
	if on := (macOn{parent, string(e.MAC)}); d.macs[on] != nil && d.macs[on].ID == e.ID {
		delete(d.macs, on)
	}
	take := func(index map[string]map[string]*Endpoint, key string) {
		delete(index[key], e.ID)
		if len(index[key]) == 0 {
			delete(index, key)
		}
	}
	take(d.lodgers, parent)
	take(d.roommates, e.Sandbox)
}

// dropAddress notes that an endpoint has an address no more. The caller holds d.mu.
func (d *Driver) dropAddress(e *Endpoint, addr netip.Addr) {
	if o := d.addresses[addr]; o != nil && o.ID == e.ID {
		delete(d.addresses, addr)
	}
	on := addrOn{d.parentOf(e), addr}
	if o := d.leasedOn[on]; o != nil && o.ID == e.ID {
		delete(d.leasedOn, on)
	}
}

// holderOn is the endpoint of a parent that has an address, or nil. The caller holds
// d.mu.
func (d *Driver) holderOn(parent string, addr netip.Addr) *Endpoint {
	if e := d.addresses[addr]; e != nil && d.parentOf(e) == parent {
		return e
	}
	return d.leasedOn[addrOn{parent, addr}]
}

// holder is the endpoint that has an address of underlay's IPAM, or nil. The LAN's
// server may have given it to one of another network there. The caller holds d.mu.
func (d *Driver) holder(addr netip.Addr) *Endpoint {
	if e := d.addresses[addr]; e != nil || len(d.leasedOn) == 0 {
		return e
	}
	for _, n := range d.networks {
		if n.ForeignIPAM || !slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.Prefix.Contains(addr) }) {
			continue
		}
		if e := d.leasedOn[addrOn{n.parent(), addr}]; e != nil {
			return e
		}
	}
	return nil
}

// on are the endpoints of a parent that are in networks for which match holds.
func (d *Driver) on(parent string, match func(*Network) bool) (all []*Endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.lodgers[parent] {
		if n := d.networks[e.NetworkID]; n != nil && match(n) {
			all = append(all, e)
		}
	}
	return all
}

// macOn is a MAC on a parent, where it is but once.
type macOn struct{ parent, mac string }

// addrOn is an address on a parent, where it is but once.
type addrOn struct {
	parent string
	addr   netip.Addr
}

// parentOf is an endpoint's parent, also when its network has gone before it.
func (d *Driver) parentOf(e *Endpoint) string {
	if n := d.networks[e.NetworkID]; n != nil {
		return n.parent()
	}
	for parent, lodgers := range d.lodgers {
		if lodgers[e.ID] != nil {
			return parent
		}
	}
	return ""
}

// update changes the record of an endpoint, in memory now and on disk soon, and
// returns it, unless it has been deleted. A record that others hold stays as it is.
func (d *Driver) update(id string, change func(*Endpoint)) (after *Endpoint, ok bool) {
	after, submitted := d.submit(id, change)
	return after, submitted != nil
}

// submit is update for who waits until it is on disk; nil if there is nothing to
// wait for.
func (d *Driver) submit(id string, change func(*Endpoint)) (after *Endpoint, submitted <-chan error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.endpoints[id]
	if before == nil || d.networks[before.NetworkID] == nil {
		return nil, nil
	}
	if p := d.presences[id]; p != nil && p.deleted {
		return nil, nil // or the record would come back on disk
	}
	after = new(*before)
	change(after)
	if after.Sandbox != before.Sandbox {
		delete(d.roommates[before.Sandbox], id)
	}
	d.add(after) // in the place of the other
	return after, d.store.Submit(put(endpointBucket, id, after))
}

// Uses tells whether a network has its addresses of a subnet from underlay's
// IPAM.
func (d *Driver) Uses(subnet netip.Prefix) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.networks {
		for _, s := range n.Subnets {
			if !n.ForeignIPAM && s.Prefix.Masked() == subnet {
				return true
			}
		}
	}
	return false
}

// LAN is where the containers of a subnet are.
type LAN struct {
	Link   string
	MAC    net.HardwareAddr // of the link
	Shared bool             // the containers have that one, too
	Alone  bool             // one container has the link to itself
}

// LANOf returns where the containers of a subnet are, by the networks on it whose
// addresses are underlay's. The error says why that is not to be told.
func (d *Driver) LANOf(subnet netip.Prefix) (LAN, error) {
	var found *Network
	d.mu.Lock()
	for _, n := range d.networks {
		if n.ForeignIPAM || !slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.Prefix.Masked() == subnet }) {
			continue
		}
		if found != nil && (found.parent() != n.parent() || found.mode().SharesMAC() != n.mode().SharesMAC()) {
			d.mu.Unlock()
			return LAN{}, fmt.Errorf("networks %s and %s are on %v, but not on one parent and of one kind: which of them the lease is for is not known; give each a subnet of its own", Short(found.ID), Short(n.ID), subnet)
		}
		found = n
	}
	d.mu.Unlock()
	if found == nil {
		return LAN{}, fmt.Errorf("underlay knows no network on %v", subnet)
	}
	parent, err := d.readyParent(found)
	if err != nil {
		return LAN{}, fmt.Errorf("network %s: %w", Short(found.ID), err)
	}
	return LAN{Link: parent.Name, MAC: parent.MAC, Shared: found.mode().SharesMAC() || found.mode().Alone(), Alone: found.mode().Alone()}, nil
}

// Holder tells which endpoint holds an address of underlay's IPAM.
func (d *Driver) Holder(addr netip.Addr) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.holder(addr)
	if e == nil {
		return "", false
	}
	return fmt.Sprintf("endpoint %s of network %s", Short(e.ID), Short(e.NetworkID)), true
}

// MAC returns the MAC of the endpoint that Holder tells: its own, or where it shares
// the parent's, none.
func (d *Driver) MAC(addr netip.Addr) (net.HardwareAddr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return macOf(d.holder(addr))
}

// MACOn is MAC of an endpoint on a link: other LANs may have the same addresses.
func (d *Driver) MACOn(link string, addr netip.Addr) (net.HardwareAddr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return macOf(d.holderOn(link, addr))
}

func macOf(e *Endpoint) (net.HardwareAddr, bool) {
	if e == nil {
		return nil, false
	}
	return net.HardwareAddr(e.MAC), true
}

// Short is an ID as Docker's commands print it.
func Short(id string) string { return id[:min(len(id), 12)] }

// written waits until a submission is on disk, or ctx ends. A caller that gets
// an error takes its change back.
func written(ctx context.Context, submitted <-chan error) error {
	if ctx.Err() == nil {
		select {
		case err := <-submitted:
			return err
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("the state was not on disk in time: %w", ctx.Err())
}

// settle waits until a deletion is on disk and calls f with the outcome, under
// the lock, and after a success then, without it. Should ctx end first, they are
// called when the outcome is known: unlike a creation, a deletion is not taken
// back.
func (d *Driver) settle(ctx context.Context, submitted <-chan error, f func(error), then func()) error {
	finish := func(err error) error {
		d.mu.Lock()
		f(err)
		d.mu.Unlock()
		if err == nil {
			then()
		}
		return err
	}
	select {
	case err := <-submitted:
		return finish(err)
	case <-ctx.Done():
		go func() { _ = finish(<-submitted) }()
		return fmt.Errorf("the state was not on disk in time: %w", ctx.Err())
	}
}

func put(bucket, id string, record any) store.Change {
	value, err := json.Marshal(record)
	if err != nil {
		panic(err) // records are plain structs of this package
	}
	return store.Change{Bucket: bucket, Key: []byte(id), Value: value}
}

func remove(bucket, id string) store.Change {
	return store.Change{Bucket: bucket, Key: []byte(id)}
}
