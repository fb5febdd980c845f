package plugin

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"underlay/driver"
	"underlay/ipam"
	"underlay/ipam/lease"
	"underlay/ipam/probe"
)

// The calls by which the underlay command looks into the plugin. Each answers from
// memory, and copies a pool's records at a time: no lock is held for longer than
// that.
const (
	StatusPath    = "/Underlay.Status"    // a Status: counts, and what is the matter
	NetworksPath  = "/Underlay.Networks"  // a Networks
	EndpointsPath = "/Underlay.Endpoints" // of an EndpointsRequest: a page, Endpoints
	AddressesPath = "/Underlay.Addresses" // of an AddressesRequest: a page, Addresses
	ConflictsPath = "/Underlay.Conflicts" // a Conflicts
	LeasesPath    = "/Underlay.Leases"    // a Leases
	ReleasePath   = "/Underlay.Release"   // of a ReleaseRequest: frees an address that no container has
)

// Pages are this long unless a call says otherwise, and never longer.
const maxPage = 10_000

// Status is StatusPath's answer.
type Status struct {
	Version   string               `json:"version"`
	Started   time.Time            `json:"started"`
	State     StateFileStatus      `json:"state"`
	Networks  int                  `json:"networks"`
	Endpoints int                  `json:"endpoints"`
	Parents   []driver.ParentState `json:"parents"`
	Pools     []ipam.PoolUse       `json:"pools"`
	LANs      []probe.Health       `json:"lans"`  // the detector's links
	DHCP      []DHCPStatus         `json:"dhcp"`  // by link
	Drift     []string             `json:"drift"` // where Docker shows what is no longer so, a line each
	Reconcile driver.Reconciled    `json:"reconcile"`
}

// StateFileStatus is where the records are.
type StateFileStatus struct {
	Path     string `json:"path"` // as the plugin sees it
	Bytes    int64  `json:"bytes"`
	SetAside string `json:"setAside,omitempty"` // a damaged one of before, which is still there
}

// DHCPStatus is how it stands with the leases on a link.
type DHCPStatus struct {
	Link    string `json:"link"`
	Leases  int    `json:"leases"`
	Bound   int    `json:"bound"`
	Lost    int    `json:"lost"`    // of which the server's word is not to be had at present
	Drifted int    `json:"drifted"` // of which the server has given another address than Docker shows
	Why     string `json:"why,omitempty"`
}

// Networks is NetworksPath's answer.
type Networks struct {
	Networks []driver.NetworkState `json:"networks"`
}

// EndpointsRequest asks for a page of endpoints. All of it may be left out.
type EndpointsRequest struct {
	Network string `json:"network,omitempty"` // its ID, or the beginning of that
	After   string `json:"after,omitempty"`   // Next of the page before
	Most    int    `json:"most,omitempty"`
}

// Endpoints is a page of endpoints, by ID.
type Endpoints struct {
	Endpoints []driver.EndpointState `json:"endpoints"`
	Next      string                 `json:"next,omitempty"` // After of the next page; "": this is the last one
}

// AddressesRequest asks for a page of addresses. All of it may be left out.
type AddressesRequest struct {
	Subnet netip.Prefix `json:"subnet,omitzero"` // of a pool, or a part of one
	After  netip.Addr   `json:"after,omitzero"`  // Next of the page before
	Most   int          `json:"most,omitempty"`
}

// Addresses is a page of the addresses that are not simply free, in their order.
type Addresses struct {
	Addresses []Address  `json:"addresses"`
	Next      netip.Addr `json:"next,omitzero"` // After of the next page; none: this is the last one
}

// Address is one that is not simply free, and who has it.
type Address struct {
	ipam.AddressUse
	Endpoint string `json:"endpoint,omitempty"`
	Network  string `json:"network,omitempty"`
	State    string `json:"state,omitempty"` // of the endpoint
}

// Conflicts is ConflictsPath's answer.
type Conflicts struct {
	Conflicts []Conflict `json:"conflicts"`
}

// Conflict is a container's address that another machine has, too.
type Conflict struct {
	ipam.ConflictState
	Own      string `json:"own,omitempty"` // the container's MAC
	Endpoint string `json:"endpoint,omitempty"`
	Network  string `json:"network,omitempty"`
	Parent   string `json:"parent,omitempty"`
}

// Leases is LeasesPath's answer.
type Leases struct {
	Leases []LeaseStatus `json:"leases"`
}

// LeaseStatus is a container's lease.
type LeaseStatus struct {
	Address netip.Addr `json:"address"`        // that the container has
	Shown   netip.Addr `json:"shown,omitzero"` // by Docker in its place, until the container is restarted
	Link    string     `json:"link"`           // the parent
	Name    string     `json:"container,omitempty"`
	MAC     string     `json:"mac"`
	Server  string     `json:"server"` // of IPv6: also its DUID
	State   string     `json:"state"`  // bound, drifted or lost
	Granted time.Time  `json:"granted"`
	Renew   time.Time  `json:"renew,omitzero"`
	Expires time.Time  `json:"expires,omitzero"` // zero: never
	Why     string     `json:"why,omitempty"`    // lost
}

// The states of a lease.
const (
	LeaseBound   = "bound"
	LeaseDrifted = "drifted" // the server has given another address
	LeaseLost    = "lost"    // the server does not answer, or has taken it back
)

// ReleaseRequest names an address to be freed.
type ReleaseRequest struct {
	Address netip.Addr `json:"address"`
}

func (p *Plugin) routeStatus() {
	at(p.server, StatusPath, func(context.Context, none) (Status, error) { return p.status(), nil })
	at(p.server, NetworksPath, func(context.Context, none) (Networks, error) {
		return Networks{p.parts.driver.NetworkStates()}, nil
	})
	at(p.server, EndpointsPath, p.endpoints)
	at(p.server, AddressesPath, p.addresses)
	at(p.server, ConflictsPath, func(context.Context, none) (Conflicts, error) { return p.conflicts(), nil })
	at(p.server, LeasesPath, func(context.Context, none) (Leases, error) { return p.leases(), nil })
	at(p.server, ReleasePath, p.release)
}

func (p *Plugin) status() Status {
	s := Status{
		Version: p.config.Version, Started: p.started, State: p.stateFile(),
		Parents: p.parts.driver.Parents(), Pools: p.parts.ipam.Pools(), LANs: []probe.Health{}, Drift: []string{},
		Reconcile: p.parts.driver.Reconciled(),
	}
	s.Networks, s.Endpoints = p.parts.driver.Counts()
	if p.parts.prober != nil {
		s.LANs = append(s.LANs, p.parts.prober.Health()...)
	}
	entries := p.parts.book.Entries()
	s.DHCP = dhcpStatus(entries)
	for _, e := range entries {
		if now := e.Drift(); now.IsValid() {
			s.Drift = append(s.Drift, fmt.Sprintf("Docker shows %v for a container%s that has %v of the DHCP server on %s; a restart of the container mends it", e.Given.Addr(), named(e.Name), now.Addr(), e.Lease.Link))
		}
	}
	return s
}

func named(container string) string {
	if container == "" {
		return ""
	}
	return " (" + container + ")"
}

func (p *Plugin) stateFile() StateFileStatus {
	s := StateFileStatus{Path: filepath.Join(p.config.State, StateFile)}
	if info, err := os.Stat(s.Path); err == nil {
		s.Bytes = info.Size()
	}
	if aside := p.parts.store.Aside(); aside != nil {
		s.SetAside = aside.Path
	}
	return s
}

// dhcpStatus counts leases by link.
func dhcpStatus(entries []lease.Entry) []DHCPStatus {
	links := []DHCPStatus{}
	for _, e := range entries {
		i, found := slices.BinarySearchFunc(links, e.Lease.Link, func(s DHCPStatus, link string) int { return strings.Compare(s.Link, link) })
		if !found {
			links = slices.Insert(links, i, DHCPStatus{Link: e.Lease.Link})
		}
		links[i].Leases++
		switch leaseState(e) {
		case LeaseBound:
			links[i].Bound++
		case LeaseDrifted:
			links[i].Drifted++
		default:
			links[i].Lost++
			links[i].Why = cmp.Or(links[i].Why, e.Lost)
		}
	}
	return links
}

func leaseState(e lease.Entry) string {
	switch {
	case e.Lost != "":
		return LeaseLost
	case e.Drift().IsValid():
		return LeaseDrifted
	}
	return LeaseBound
}

func (p *Plugin) leases() Leases {
	all := Leases{[]LeaseStatus{}}
	for _, e := range p.parts.book.Entries() {
		server := e.Lease.Server.String()
		if e.Lease.V6 != nil {
			server = e.Lease.V6.Server.String()
		}
		s := LeaseStatus{
			Address: e.Lease.Addr.Addr(), Link: e.Lease.Link, Name: cmp.Or(e.Name, e.Lease.Hostname), MAC: e.Lease.MAC.String(), Server: server,
			State: leaseState(e), Granted: e.Lease.Granted, Renew: e.Lease.Renew, Expires: e.Lease.Expires, Why: e.Lost,
		}
		if e.Drift().IsValid() {
			s.Shown = e.Given.Addr()
		}
		all.Leases = append(all.Leases, s)
	}
	return all
}

// page is how long one is that was asked for.
func page(most int) int {
	if most <= 0 || most > maxPage {
		return maxPage
	}
	return most
}

func (p *Plugin) endpoints(_ context.Context, req EndpointsRequest) (Endpoints, error) {
	page, next, err := p.parts.driver.EndpointStates(driver.EndpointQuery{Network: req.Network, After: req.After, Most: page(req.Most)})
	if err != nil {
		return Endpoints{}, err
	}
	var addrs []netip.Addr
	leased := false
	for _, e := range page {
		addrs = append(addrs, e.IPv4, e.IPv6, e.Shown, e.Shown6)
		leased = leased || len(e.Leases) > 0
	}
	names := p.parts.ipam.Names(addrs)
	leases := map[string]string{} // the names that servers are told
	if leased {
		for _, e := range p.parts.book.Entries() {
			leases[e.Key] = cmp.Or(e.Name, e.Lease.Hostname)
		}
	}
	for i, e := range page {
		if !e.Foreign {
			page[i].Name = cmp.Or(names[e.IPv4], names[e.IPv6], names[e.Shown], names[e.Shown6])
		}
		for _, key := range e.Leases {
			page[i].Name = cmp.Or(leases[key], page[i].Name)
		}
	}
	return Endpoints{page, next}, nil
}

func (p *Plugin) addresses(_ context.Context, req AddressesRequest) (Addresses, error) {
	uses, next, err := p.parts.ipam.Addresses(ipam.AddressQuery{Within: req.Subnet.Masked(), After: req.After, Most: page(req.Most)})
	if err != nil {
		return Addresses{}, err
	}
	var held []netip.Addr
	for _, u := range uses {
		held = append(held, u.Address)
	}
	holders := p.parts.driver.Holders(held)
	res := Addresses{[]Address{}, next}
	for _, u := range uses {
		a := Address{AddressUse: u}
		if e, ok := holders[u.Address]; ok && u.Kind != ipam.Excluded {
			a.Endpoint, a.Network, a.State = e.ID, e.Network, e.State
			if a.MAC == "" {
				a.MAC = e.MAC.String()
			}
		}
		res.Addresses = append(res.Addresses, a)
	}
	return res, nil
}

func (p *Plugin) conflicts() Conflicts {
	res := Conflicts{[]Conflict{}}
	all := p.parts.ipam.Conflicts()
	var addrs []netip.Addr
	for _, c := range all {
		addrs = append(addrs, c.Address)
	}
	holders := p.parts.driver.Holders(addrs)
	for _, c := range all {
		e := holders[c.Address]
		res.Conflicts = append(res.Conflicts, Conflict{c, e.MAC.String(), e.ID, e.Network, e.Parent})
	}
	return res
}

func (p *Plugin) release(ctx context.Context, req ReleaseRequest) (none, error) {
	if !req.Address.IsValid() {
		return none{}, badRequest{fmt.Errorf("no address is named")}
	}
	return none{}, p.parts.ipam.Release(ctx, req.Address.Unmap())
}
