package driver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"underlay/netlinkutil"
)

// tally counts what reconciles have come to since the start.
type tally struct {
	mu sync.Mutex
	Reconciled
}

// Reconciled is what reconciles have come to since the start.
type Reconciled struct {
	At       time.Time `json:"at,omitzero"` // the last one of everything
	Left     []string  `json:"left"`        // what that one could not mend, a line each, of the first ones
	Unmended int       `json:"unmended"`    // how many those are in all
	Runs     int       `json:"runs"`        // also those of what had changed alone
	Mended   int       `json:"mended"`      // things, by all of them
}

// mostLeft is how many lines are kept: a thousand containers may have one trouble.
const mostLeft = 20

func (t *tally) note(s scope, r *Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Runs++
	t.Mended += len(r.Done)
	if s != changed {
		t.At, t.Unmended, t.Left = time.Now(), len(r.Left), r.Left
		if more := t.Unmended - mostLeft; more > 0 {
			t.Left = append(slices.Clone(r.Left[:mostLeft]), fmt.Sprintf("… and %d more: underlay reconcile --dry-run lists them", more))
		}
	}
}

// Reconciled tells how the records and the kernel went together.
func (d *Driver) Reconciled() Reconciled {
	d.tally.mu.Lock()
	defer d.tally.mu.Unlock()
	r := d.tally.Reconciled
	r.Left = append([]string{}, r.Left...)
	return r
}

// The states of a parent.
const (
	ParentUp      = "up"
	ParentDown    = "down" // or without carrier
	ParentWaiting = "waiting"
)

// ParentState is how it stands with a link that networks are on.
type ParentState struct {
	Name      string    `json:"name"`
	State     string    `json:"state"`
	Since     time.Time `json:"since,omitzero"`   // waited for
	Reason    string    `json:"reason,omitempty"` // why it is not up
	MAC       MAC       `json:"mac,omitempty"`
	MTU       int       `json:"mtu,omitempty"`
	Dummy     bool      `json:"dummy,omitempty"` // of a network without a parent
	Networks  int       `json:"networks"`
	Endpoints int       `json:"endpoints"`
}

// Parents tells of all links that networks are on, by name.
func (d *Driver) Parents() []ParentState {
	links, err := d.kernel.Links()
	named := make(map[string]netlinkutil.Link, len(links))
	for _, l := range links {
		named[l.Name] = l
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	states := map[string]*ParentState{}
	for _, n := range d.networks {
		s := states[n.parent()]
		if s == nil {
			s = d.stateOf(n, named, err)
			states[n.parent()] = s
		}
		s.Networks++
	}
	all := []ParentState{}
	for _, name := range slices.Sorted(maps.Keys(states)) {
		all = append(all, *states[name])
	}
	return all
}

// stateOf is that of a network's parent. The caller holds d.mu.
func (d *Driver) stateOf(n *Network, links map[string]netlinkutil.Link, err error) *ParentState {
	name := n.parent()
	s := &ParentState{Name: name, State: ParentUp, Dummy: n.dummy(), Endpoints: len(d.lodgers[name])}
	w, waited := d.waiting[name]
	l, there := links[name]
	switch {
	case err != nil:
		s.State, s.Reason = ParentDown, err.Error()
	case !there && waited:
		s.State, s.Since, s.Reason = ParentWaiting, w.Since, w.Reason
	case !there:
		s.State, s.Reason = ParentWaiting, "it is not there"
	case !l.Up:
		s.State, s.Reason = ParentDown, "it is down"
	case !l.Carrier:
		s.State, s.Reason = ParentDown, "it has no carrier"
	}
	if there {
		s.MAC, s.MTU = MAC(l.MAC), l.MTU
	}
	return s
}

// NetworkState is a network, for a person.
type NetworkState struct {
	ID          string   `json:"id"`
	Mode        string   `json:"mode"`
	Parent      string   `json:"parent"`
	State       string   `json:"state"` // of the parent
	Subnets     []Subnet `json:"subnets,omitempty"`
	Endpoints   int      `json:"endpoints"`
	Internal    bool     `json:"internal,omitempty"`
	HostAccess  bool     `json:"hostAccess,omitempty"`
	DHCP        bool     `json:"dhcp,omitempty"`        // -o dhcp
	ForeignIPAM bool     `json:"foreignIPAM,omitempty"` // another IPAM driver's addresses
	MTU         int      `json:"mtu,omitempty"`
	Routes      []Route  `json:"routes,omitempty"`
	// RouterRoutes are commands for the LAN's router; see Driver.RouterRoutes.
	RouterRoutes []string `json:"routerRoutes,omitempty"`
}

// NetworkStates tells of all networks, by parent and ID.
func (d *Driver) NetworkStates() []NetworkState {
	parents := map[string]string{}
	for _, p := range d.Parents() {
		parents[p.Name] = p.State
	}
	d.mu.Lock()
	endpoints := map[string]int{}
	for _, e := range d.endpoints {
		endpoints[e.NetworkID]++
	}
	networks := slices.Collect(maps.Values(d.networks))
	d.mu.Unlock()
	slices.SortFunc(networks, func(a, b *Network) int {
		if c := strings.Compare(a.parent(), b.parent()); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	all := []NetworkState{}
	for _, n := range networks {
		s := NetworkState{
			ID: n.ID, Mode: n.mode().String(), Parent: n.parent(), State: parents[n.parent()], Subnets: n.Subnets, Endpoints: endpoints[n.ID],
			Internal: n.Internal, HostAccess: n.Options.HostAccess, DHCP: n.Options.DHCP.On(), ForeignIPAM: n.ForeignIPAM, MTU: n.Options.MTU,
			RouterRoutes: d.RouterRoutes(n),
		}
		for _, r := range n.Options.Routes {
			s.Routes = append(s.Routes, Route{Destination: r.To, NextHop: r.Via})
		}
		all = append(all, s)
	}
	return all
}

// The states of an endpoint.
const (
	EndpointMade     = "made"     // in the host, and no container has joined yet
	EndpointStarting = "starting" // on its way to its container
	EndpointRunning  = "running"  // seen in its container
	EndpointDoubted  = "doubted"  // it seems to have ended
	EndpointLost     = "lost"     // its container has lost the interface: restart that
)

// EndpointState is an endpoint, for a person.
type EndpointState struct {
	ID      string     `json:"id"`
	Network string     `json:"network"`
	Name    string     `json:"container,omitempty"` // where it is known
	Parent  string     `json:"parent"`
	State   string     `json:"state"`
	Since   time.Time  `json:"since,omitzero"` // doubted
	IPv4    netip.Addr `json:"ipv4,omitzero"`
	IPv6    netip.Addr `json:"ipv6,omitzero"`
	// What Docker shows in the place of IPv4 and IPv6, which the LAN's server has given
	// since.
	Shown     netip.Addr `json:"shown,omitzero"`
	Shown6    netip.Addr `json:"shown6,omitzero"`
	MAC       MAC        `json:"mac,omitempty"`
	SharedMAC bool       `json:"sharedMAC,omitempty"` // it is the parent's
	Interface string     `json:"interface,omitempty"` // in the container
	Sandbox   string     `json:"sandbox,omitempty"`
	Leases    []string   `json:"-"` // the keys of those that the driver has taken
	Foreign   bool       `json:"-"` // another IPAM driver has given the addresses
}

// EndpointQuery asks for a page of endpoints.
type EndpointQuery struct {
	Network string // the beginning of the network's ID; "": all
	After   string // an endpoint's ID; "": from the first one
	Most    int
}

// EndpointStates returns a page of endpoints, by ID, and After of the page that follows,
// if more do.
func (d *Driver) EndpointStates(q EndpointQuery) (page []EndpointState, next string, err error) {
	d.mu.Lock()
	var ids []string
	for id, e := range d.endpoints {
		if id > q.After && strings.HasPrefix(e.NetworkID, q.Network) {
			ids = append(ids, id)
		}
	}
	known := q.Network == ""
	for id := range d.networks {
		known = known || strings.HasPrefix(id, q.Network)
	}
	d.mu.Unlock()
	if !known {
		return nil, "", fmt.Errorf("no network has an ID that begins with %q; underlay networks lists them", q.Network)
	}
	slices.Sort(ids)
	if len(ids) > q.Most {
		ids, next = ids[:q.Most], ids[q.Most-1]
	}
	macs := d.parentMACs()
	page = []EndpointState{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range ids {
		if e := d.endpoints[id]; e != nil {
			page = append(page, d.endpointState(e, macs))
		}
	}
	return page, next, nil
}

// Holders are the endpoints that have addresses which underlay's IPAM gave.
func (d *Driver) Holders(addrs []netip.Addr) map[netip.Addr]EndpointState {
	macs := d.parentMACs()
	holders := map[netip.Addr]EndpointState{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, addr := range addrs {
		if e := d.holder(addr); e != nil {
			holders[addr] = d.endpointState(e, macs)
		}
	}
	return holders
}

// parentMACs are those of the links, by name; what cannot be had is not told.
func (d *Driver) parentMACs() map[string]MAC {
	macs := map[string]MAC{}
	links, err := d.kernel.Links()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return macs
	}
	for _, l := range links {
		macs[l.Name] = MAC(l.MAC)
	}
	return macs
}

// endpointState is an endpoint's. The caller holds d.mu.
func (d *Driver) endpointState(e *Endpoint, macs map[string]MAC) EndpointState {
	s := EndpointState{
		ID: e.ID, Network: e.NetworkID, Parent: d.parentOf(e), State: EndpointMade, MAC: e.MAC, Sandbox: e.Sandbox,
	}
	family := func(v6 bool, is, instead *netip.Addr) {
		shown, has := e.prefix(v6)
		if *is = has.Addr(); shown.Addr() != has.Addr() {
			*instead = shown.Addr()
		}
	}
	family(false, &s.IPv4, &s.Shown)
	family(true, &s.IPv6, &s.Shown6)
	if s.MAC == nil {
		s.MAC, s.SharedMAC = macs[s.Parent], true
	}
	if e.Interface != nil {
		s.Interface = e.Interface.Name
	}
	if n := d.networks[e.NetworkID]; n != nil {
		s.Foreign = n.ForeignIPAM
	}
	for _, l := range e.leases() {
		s.Leases = append(s.Leases, l.Key)
	}
	p := d.presences[e.ID]
	switch {
	case p != nil && p.lost:
		s.State, s.Since = EndpointLost, p.doubted
	case p != nil && !p.doubted.IsZero() && (p.adrift || !e.starting()):
		s.State, s.Since = EndpointDoubted, p.doubted
	case e.Arrived:
		s.State = EndpointRunning
	case e.Sandbox != "":
		s.State = EndpointStarting
	}
	return s
}

// Counts is how many networks and endpoints there are.
func (d *Driver) Counts() (networks, endpoints int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.networks), len(d.endpoints)
}
