package driver

import (
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
	DeleteLink(name string) error
	// Follow returns a function that waits until a link, which is in the host
	// now, has been moved to another netns and is up there.
	Follow(name string) (arrived func(context.Context) error, err error)
	Access
}

// Names tells the container name behind an address, where Docker has told it
// (Docker 29 and later, to the IPAM driver).
type Names interface {
	Name(netip.Addr) (name string, ok bool)
}

// Driver holds every network and endpoint. Its methods may be called in
// parallel.
type Driver struct {
	kernel    Kernel
	store     *store.Store
	names     Names
	announcer Announcer
	log       logrus.FieldLogger

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	announcers sync.WaitGroup

	instance string // of this state file; drawn once, 8 hex digits

	// parents is held while a network comes or goes, so that a parent is not
	// deleted under a network that is being made on it.
	parents sync.Mutex

	answering sync.Mutex // held while the announcer is told what to answer for

	mu        sync.Mutex
	networks  map[string]*Network
	endpoints map[string]*Endpoint
	addresses map[netip.Addr]*Endpoint // whose they are, of those that underlay's IPAM gave
	accesses  map[string]*access       // by the parent
	// announcing is what ends an endpoint's announcements.
	announcing map[string]context.CancelFunc
}

// The buckets of the store.
const (
	driverBucket   = "driver"
	networkBucket  = "networks"
	endpointBucket = "endpoints"
)

// New loads the networks and endpoints from the store. It does not touch the
// kernel: Recover does. Without an announcer, the LAN is told nothing.
func New(kernel Kernel, st *store.Store, names Names, announcer Announcer, log logrus.FieldLogger) (*Driver, error) {
	d := &Driver{
		kernel: kernel, store: st, names: names, announcer: announcer, log: log,
		networks: map[string]*Network{}, endpoints: map[string]*Endpoint{}, addresses: map[netip.Addr]*Endpoint{},
		accesses: map[string]*access{}, announcing: map[string]context.CancelFunc{},
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	if err := d.loadInstance(); err != nil {
		return nil, err
	}
	err := st.Each(networkBucket, func(key, value []byte) error {
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
	return d, nil
}

// State is what the driver knows, in the order of the IDs.
type State struct {
	Networks  []Network  `json:"networks"`
	Endpoints []Endpoint `json:"endpoints"`
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
	return s
}

func (d *Driver) loadInstance() error {
	err := d.store.Each(driverBucket, func(key, value []byte) error {
		if string(key) == "instance" {
			d.instance = string(value)
		}
		return nil
	})
	if err != nil || d.instance != "" {
		return err
	}
	drawn := make([]byte, 4)
	_, _ = rand.Read(drawn) // crypto/rand never fails
	d.instance = hex.EncodeToString(drawn)
	return d.store.Apply(store.Change{Bucket: driverBucket, Key: []byte("instance"), Value: []byte(d.instance)})
}

// add and drop keep the endpoints and the index of their addresses in step. The
// caller holds d.mu, or is New.
func (d *Driver) add(e *Endpoint) {
	d.endpoints[e.ID] = e
	if n := d.networks[e.NetworkID]; n == nil || n.ForeignIPAM {
		return
	}
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			d.addresses[p.Addr()] = e
		}
	}
}

// replace puts a new record in the place of an endpoint's, unless that has been
// deleted. The caller holds d.mu.
func (d *Driver) replace(before, after *Endpoint) bool {
	if d.endpoints[before.ID] != before {
		return false
	}
	d.drop(before)
	d.add(after)
	return true
}

func (d *Driver) drop(e *Endpoint) {
	delete(d.endpoints, e.ID)
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if o := d.addresses[p.Addr()]; o != nil && o.ID == e.ID {
			delete(d.addresses, p.Addr())
		}
	}
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

// Holder tells which endpoint holds an address.
func (d *Driver) Holder(addr netip.Addr) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.addresses[addr]
	if e == nil {
		return "", false
	}
	return fmt.Sprintf("endpoint %s of network %s", Short(e.ID), Short(e.NetworkID)), true
}

// MAC returns the MAC of the endpoint that holds an address: its own, or where
// it shares the parent's, none.
func (d *Driver) MAC(addr netip.Addr) (net.HardwareAddr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.addresses[addr]
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
