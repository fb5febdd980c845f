package driver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// The kernel keeps a parent and its sub-interfaces apart. With host access, a
// sub-interface in the host, the shim, brings them together: the host routes
// each container by it, and the containers route the host's addresses by its
// link-local ones. The LAN does not see it: it answers for nothing but these,
// and the neighbours that it needs are set, not asked for.
//
// A shim is there as long as an endpoint of the parent has host access.

// Access is what host access asks of the kernel.
type Access interface {
	EnsureShim(netlinkutil.Shim) error
	DeleteShim(netlinkutil.Shim) error
	Reach(netlinkutil.Shim, netlinkutil.HostRoute) error
	Unreach(s netlinkutil.Shim, addr netip.Addr) error
	Reached(netlinkutil.Shim) ([]netlinkutil.HostRoute, error)
	HostAddresses(link string) ([]netip.Addr, error)
	Subnets(link string) ([]netlinkutil.Subnet, error)
}

// access guards what is in the kernel for the host access of one parent.
type access struct {
	mu    sync.Mutex
	ready bool   // the shim has been made or looked at
	wrong string // what was wrong last
}

func (d *Driver) accessTo(parent string) *access {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.accesses[parent]
	if a == nil {
		a = &access{}
		d.accesses[parent] = a
	}
	return a
}

// shimName is derived. No endpoint's link has such a name: h is no hex digit.
func shimName(parent string) string {
	sum := sha256.Sum256([]byte(parent))
	return "ulh" + hex.EncodeToString(sum[:6])
}

// way is how the host and the containers of a network reach each other.
type way struct {
	shim      netlinkutil.Shim
	hosts     []netip.Addr // the host's addresses that containers route to
	neighbour MAC          // of all containers, where they share one
	parent    int          // the parent's index
}

func (d *Driver) way(n *Network) (way, error) {
	parent, err := d.kernel.Link(n.parent())
	if err != nil {
		return way{}, err
	}
	hosts, err := d.kernel.HostAddresses(n.parent())
	if err != nil {
		return way{}, err
	}
	w := way{hosts: hosts, shim: d.shim(n, parent), parent: parent.Index}
	if n.mode().RoutesByLink() {
		return w, nil // no neighbours, and no router but the kernel itself
	}
	w.shim.LinkLocal4, w.shim.LinkLocal6 = d.linkLocal4(parent.Name, hosts), d.linkLocal6(parent.Name)
	if n.mode().SharesMAC() {
		w.neighbour = MAC(parent.MAC)
	}
	return w, nil
}

// shim is that of a parent, without its addresses.
func (d *Driver) shim(n *Network, parent netlinkutil.Link) netlinkutil.Shim {
	s := netlinkutil.Shim{Name: shimName(n.parent()), Parent: n.parent(), Mode: n.mode(), Alias: d.shimAlias(n.parent())}
	if n.mode().Kind == mode.Macvlan {
		s.Mode = mode.Default
		s.MAC = net.HardwareAddr(deriveMAC(baseMAC(parent), n.parent(), "host access", 0))
	}
	return s
}

func (d *Driver) shimAlias(parent string) string { return d.alias("host access to " + parent) }

// shimOf is the parent that a shim was made for, which may have another name by
// now.
func (d *Driver) shimOf(l netlinkutil.Link) (parent string, ok bool) {
	return strings.CutPrefix(l.Alias, d.shimAlias(""))
}

// linkLocal4 ends like the host's own address: no other host of the LAN that
// has a shim comes to the same. Without one it is that of the one it had (a NIC that
// is put in again has none for a moment, in which containers are not to be given
// another way), or drawn, in the range of RFC 3927 section 2.1.
func (d *Driver) linkLocal4(parent string, hosts []netip.Addr) netip.Addr {
	sum := sha256.Sum256([]byte(d.instance + " " + parent))
	end := [2]byte{1 + sum[0]%254, sum[1]}
	d.mu.Lock()
	if k := slices.IndexFunc(hosts, netip.Addr.Is4); k >= 0 {
		d.hosts4[parent] = hosts[k]
	}
	if h, ok := d.hosts4[parent]; ok {
		b := h.As4()
		end = [2]byte(b[2:])
	}
	d.mu.Unlock()
	switch end[0] { // reserved by that section, or where clouds have their metadata
	case 0:
		end[0] = 254
	case 255:
		end[0] = 253
	case 169:
		end[0] = 168
	}
	return netip.AddrFrom4([4]byte{169, 254, end[0], end[1]})
}

func (d *Driver) linkLocal6(parent string) netip.Addr {
	sum := sha256.Sum256([]byte(d.instance + " " + parent))
	a := [16]byte{0: 0xfe, 1: 0x80}
	copy(a[8:], sum[:8])
	return netip.AddrFrom16(a)
}

// hostRoutes are the host's to an endpoint.
func (w way) hostRoutes(e *Endpoint) (routes []netlinkutil.HostRoute) {
	defer func() { routes = append(routes, w.selfMade(e, routes)...) }()
	for _, p := range e.prefixes() {
		r := netlinkutil.HostRoute{Addr: p.Addr(), MAC: net.HardwareAddr(e.MAC)}
		if r.MAC == nil {
			r.MAC = net.HardwareAddr(w.neighbour)
		}
		r.Source = w.source(e, p)
		routes = append(routes, r)
	}
	return routes
}

// source is the address by which a container is to know the host: one to which
// it has a route, if possible in its subnet. A container that has joined when
// the host had others knows it by the shim's alone.
func (w way) source(e *Endpoint, of netip.Prefix) (source netip.Addr) {
	var shim netip.Addr
	for _, p := range e.Routes {
		if a := p.Addr(); p.IsSingleIP() && a.IsLinkLocalUnicast() && a.Is4() && of.Addr().Is4() {
			shim = a
		}
	}
	for _, h := range w.hosts {
		if h.Is4() != of.Addr().Is4() || shim.IsValid() && !slices.Contains(e.Routes, alone(h)) {
			continue
		}
		if !source.IsValid() || of.Contains(h) && !of.Contains(source) {
			source = h
		}
	}
	if !source.IsValid() {
		return shim
	}
	return source
}

// nextHop is the shim's address by which containers route the host's of a
// family, zero where they need none.
func (w way) nextHop(family netip.Addr) netip.Addr {
	if family.Is4() {
		return w.shim.LinkLocal4
	}
	return w.shim.LinkLocal6
}

// byShim has a container use the host as a router, be it its gateway or the next
// hop of a route, by the shim's addresses: those of the host are behind these.
func (w way) byShim(p *Plumbing) {
	by := func(router netip.Addr) netip.Addr {
		if to := w.nextHop(router); to.IsValid() && slices.Contains(w.hosts, router) {
			return to
		}
		return router
	}
	for i, gw := range p.Gateways {
		p.Gateways[i] = by(gw)
	}
	for i, r := range p.Routes {
		p.Routes[i].NextHop = by(r.NextHop)
	}
}

// selfMade are the host's routes to the addresses that a container has made for
// itself in the subnets of the host's own, if routers advertise these: the
// container may speak by them to the host, which then must know the way back
// (RFC 4862 section 5.5.3; net/ipv6/addrconf.c, addrconf_ifid_eui48).
func (w way) selfMade(e *Endpoint, known []netlinkutil.HostRoute) (routes []netlinkutil.HostRoute) {
	if !e.IPv6.IsValid() || !w.shim.LinkLocal6.IsValid() {
		return nil
	}
	mac := e.MAC
	if mac == nil && e.DeviceID != 0 { // else it would be the host's own address
		mac = w.neighbour
	}
	if len(mac) != 6 {
		return nil
	}
	end := [8]byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
	if e.DeviceID != 0 {
		end[0], end[3], end[4] = mac[0], byte(e.DeviceID>>8), byte(e.DeviceID)
	}
	for _, h := range w.hosts {
		if h.Is4() {
			continue
		}
		a := h.As16()
		copy(a[8:], end[:])
		r := netlinkutil.HostRoute{Addr: netip.AddrFrom16(a), Source: h, MAC: net.HardwareAddr(mac)}
		same := func(o netlinkutil.HostRoute) bool { return o.Addr == r.Addr }
		if !slices.ContainsFunc(known, same) && !slices.ContainsFunc(routes, same) {
			routes = append(routes, r)
		}
	}
	return routes
}

// containerRoutes are an endpoint's to the host.
func (w way) containerRoutes(e *Endpoint) (routes []Route) {
	for _, p := range e.prefixes() {
		by := w.nextHop(p.Addr())
		if by.IsValid() {
			routes = append(routes, Route{Destination: alone(by)})
		}
		for _, h := range w.hosts {
			switch {
			case h.Is4() != p.Addr().Is4():
			case by.IsValid():
				routes = append(routes, Route{Destination: alone(h), NextHop: by})
			case !p.Contains(h):
				routes = append(routes, Route{Destination: alone(h)})
			}
		}
	}
	return routes
}

// alone is the prefix that holds nothing but an address.
func alone(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// grant lets the host and an endpoint reach each other, if the network wants it.
func (d *Driver) grant(n *Network, e *Endpoint) error {
	if !n.Options.HostAccess {
		return nil
	}
	w, err := d.way(n)
	if err != nil {
		return err
	}
	a := d.accessTo(n.parent())
	a.mu.Lock()
	defer a.mu.Unlock()
	log := d.logOfEndpoint(n.ID, e.ID)
	if err = a.reach(d.kernel, w, e, log); errors.Is(err, os.ErrNotExist) {
		a.ready = false // somebody has deleted the shim
		err = a.reach(d.kernel, w, e, log)
	}
	return err
}

// reach makes the routes of an endpoint, and the shim if need be. The caller
// holds a.mu.
func (a *access) reach(kernel Kernel, w way, e *Endpoint, log *logrus.Entry) error {
	if !a.ready {
		if err := kernel.EnsureShim(w.shim); err != nil {
			return err
		}
		a.ready = true
	}
	for _, r := range w.hostRoutes(e) {
		err := kernel.Reach(w.shim, r)
		if err != nil && !later(err) {
			return err
		}
		if err != nil {
			log.Warnf("no host access for now: %v", err)
		}
	}
	return nil
}

// later tells whether a container does without a route for now: one that the
// host could not use, until keepAccess comes to it.
func later(err error) bool {
	return errors.Is(err, netlinkutil.ErrDown) || errors.Is(err, netlinkutil.ErrNoSource) || errors.Is(err, netlinkutil.ErrUnsupported)
}

// revoke ends the host access of an endpoint that has been dropped, and with the
// last of its parent the shim. What fails is mended by keepAccess.
func (d *Driver) revoke(n *Network, e *Endpoint) {
	if !n.Options.HostAccess {
		return
	}
	log := d.logOfEndpoint(n.ID, e.ID)
	a := d.accessTo(n.parent())
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(d.accessible(n.parent())) == 0 {
		if err := d.dropShim(a, n.parent()); err != nil {
			log.Errorf("host access stays for now: %v", err)
		}
		return
	}
	shim := d.shim(n, netlinkutil.Link{})
	w, err := d.way(n)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warnf("host access: %v", err)
	}
	for _, r := range w.hostRoutes(e) {
		if err := d.kernel.Unreach(shim, r.Addr); err != nil {
			log.Errorf("the host's route to %v stays for now: %v", r.Addr, err)
		}
	}
}

// dropShim deletes the shim of a parent that needs none any more. The caller
// holds a.mu.
func (d *Driver) dropShim(a *access, parent string) error {
	// Of all modes, this is the one that leaves most to be deleted.
	s := netlinkutil.Shim{Name: shimName(parent), Parent: parent, Alias: d.shimAlias(parent), Mode: mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}}
	l, err := d.kernel.Link(s.Name)
	if err == nil && l.Kind == string(mode.Macvlan) {
		s.Mode = mode.Default
	}
	if err = d.kernel.DeleteShim(s); err == nil {
		a.ready = false
	}
	return err
}

// accessible are the endpoints of a parent that have host access.
func (d *Driver) accessible(parent string) []*Endpoint {
	return d.on(parent, func(n *Network) bool { return n.Options.HostAccess })
}

// keepAccess brings the host access of a parent in line with the records.
func (d *Driver) keepAccess(r *Report, parent string) error {
	a := d.accessTo(parent)
	a.mu.Lock()
	defer a.mu.Unlock()
	endpoints := d.accessible(parent)
	if len(endpoints) == 0 {
		if a.ready { // it could not be deleted
			return d.dropShim(a, parent)
		}
		return nil
	}
	n, err := d.network(endpoints[0].NetworkID)
	if err != nil {
		return nil // it is being deleted
	}
	w, err := d.way(n)
	if err != nil {
		return err
	}
	a.ready = false
	if err := d.kernel.EnsureShim(w.shim); err != nil {
		return err
	}
	a.ready = true
	there, err := d.kernel.Reached(w.shim)
	if err != nil {
		return err
	}
	var wrong []string
	note := func(err error) {
		if err != nil && !later(err) {
			wrong = append(wrong, err.Error())
		}
	}
	for _, e := range endpoints {
		d.showHost(r, w, e)
	}
	var wanted []netlinkutil.HostRoute
	for _, e := range d.accessible(parent) {
		wanted = append(wanted, w.hostRoutes(e)...)
	}
	needed := map[netip.Addr]bool{}
	for _, r := range wanted {
		needed[r.Addr] = true
	}
	known := map[netip.Addr]netlinkutil.HostRoute{}
	for _, r := range there {
		known[r.Addr] = r
		if !needed[r.Addr] {
			note(d.kernel.Unreach(w.shim, r.Addr))
		}
	}
	for _, r := range wanted {
		if k, ok := known[r.Addr]; !ok || k.Source != r.Source || !slices.Equal(k.MAC, r.MAC) {
			note(d.kernel.Reach(w.shim, r))
		}
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

// tryAccess makes a shim and deletes it again, so that what stands against host
// access is said when the network is made, unless there is one already.
func (d *Driver) tryAccess(n *Network) error {
	if !n.Options.HostAccess {
		return nil
	}
	w, err := d.way(n)
	if err != nil {
		return err
	}
	a := d.accessTo(n.parent())
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(d.accessible(n.parent())) > 0 {
		return nil
	}
	if err := d.kernel.EnsureShim(w.shim); err != nil {
		return err
	}
	return d.kernel.DeleteShim(w.shim)
}

// recoverShim deletes the shim of a parent, unless an endpoint needs it. One whose
// parent has been renamed goes on working, until another link has the name.
func (d *Driver) recoverShim(r *Report, l netlinkutil.Link, parent string, there bool) {
	a := d.accessTo(parent)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(d.accessible(parent)) > 0 && (l.Lower == parent || !there) {
		return
	}
	d.log.Infof("delete leftover link %s (%s)", l.Name, l.Alias)
	if err := d.dropShim(a, parent); err != nil {
		r.failed(d.log, "leftover link %s: %v", l.Name, err)
		return
	}
	r.did("deleted leftover link %s", l.Name)
}

// keepAllAccess is keepAccess for all parents. A parent that is away is waited
// for.
func (d *Driver) keepAllAccess(r *Report) {
	parents := map[string]bool{}
	d.mu.Lock()
	for parent := range d.accesses {
		parents[parent] = true
	}
	for _, n := range d.networks {
		if n.Options.HostAccess {
			parents[n.parent()] = true
		}
	}
	d.mu.Unlock()
	for parent := range parents {
		wrong := ""
		if err := d.keepAccess(r, parent); err != nil && !errors.Is(err, os.ErrNotExist) {
			wrong = err.Error()
			r.left("host access to the containers on %s is not whole: %s", parent, wrong)
		}
		a := d.accessTo(parent)
		a.mu.Lock()
		if wrong != "" && wrong != a.wrong { // else it has been said
			d.log.Errorf("host access to the containers on %s is not whole: %s", parent, wrong)
		}
		a.wrong = wrong
		a.mu.Unlock()
	}
}

// sharedRoutes leaves out the routes that a container has from another of its
// networks already: dockerd fails the start over a second one. It remembers
// what it gives. Default routes are dockerd's to choose between.
func (d *Driver) sharedRoutes(ctx context.Context, e *Endpoint, sandbox string, routes []Route) ([]Route, error) {
	d.mu.Lock()
	given := d.unshared(e, sandbox, routes)
	var to []netip.Prefix
	for _, r := range given {
		if r.Destination.Bits() > 0 {
			to = append(to, r.Destination)
		}
	}
	if len(to) == 0 && len(e.Routes) == 0 {
		d.mu.Unlock()
		return given, nil
	}
	d.mu.Unlock()
	_, submitted := d.submit(e.ID, func(e *Endpoint) {
		e.moveTo(sandbox)
		e.Routes = to
	})
	if submitted == nil {
		return nil, unknownEndpoint(e.NetworkID, e.ID)
	}
	if err := written(ctx, submitted); err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", Short(e.ID), err)
	}
	return given, nil
}

// unshared leaves out the routes that a container has from another of its networks.
// The caller holds d.mu.
func (d *Driver) unshared(e *Endpoint, sandbox string, routes []Route) (given []Route) {
	has := map[netip.Prefix]bool{}
	for id, o := range d.roommates[sandbox] {
		if id != e.ID {
			for _, p := range o.Routes {
				has[p] = true
			}
		}
	}
	elsewhere := map[netip.Addr]bool{} // next hops that are on the link of another network
	for _, r := range routes {
		if r.Destination.Bits() > 0 {
			if has[r.Destination] {
				if !r.NextHop.IsValid() && r.Destination.IsSingleIP() {
					elsewhere[r.Destination.Addr()] = true
				}
				continue
			}
			if elsewhere[r.NextHop] {
				d.logOf(e.NetworkID).Warnf("no route to %v: the container has router %v on another network already", r.Destination, r.NextHop)
				continue
			}
			has[r.Destination] = true
		}
		given = append(given, r)
	}
	return given
}

// lacking are the routes to the host that a container has from none of its
// networks: the host's address has come after Join, or the network that it had them
// from has been left.
func (d *Driver) lacking(w way, e *Endpoint) []Route {
	d.mu.Lock()
	defer d.mu.Unlock()
	e = d.endpoints[e.ID]
	if e == nil || !e.Arrived || e.ParentIndex != w.parent {
		return nil
	}
	return slices.DeleteFunc(d.unshared(e, e.Sandbox, w.containerRoutes(e)), func(r Route) bool {
		return slices.Contains(e.Routes, r.Destination)
	})
}

// showHostTo is showHost for one endpoint that may lack some now.
func (d *Driver) showHostTo(n *Network, e *Endpoint) {
	if !n.Options.HostAccess {
		return
	}
	w, err := d.way(n)
	if err != nil {
		return // it is done with the next change of the parent
	}
	a := d.accessTo(n.parent())
	a.mu.Lock()
	defer a.mu.Unlock()
	d.showHost(&Report{}, w, e)
}

// showHostToRoommates is showHostTo for those that may have had their routes from
// an endpoint that has been deleted.
func (d *Driver) showHostToRoommates(e *Endpoint) {
	for _, o := range d.roommatesOf(e) {
		if n, err := d.network(o.NetworkID); err == nil && len(e.Routes) > 0 {
			d.companions.Go(func() { d.showHostTo(n, o) })
		}
	}
}

// showHost gives a container that runs the routes to the host that it lacks. The
// caller holds the mutex of the parent's access.
func (d *Driver) showHost(r *Report, w way, e *Endpoint) {
	lacking := d.lacking(w, e)
	if len(lacking) == 0 || d.isLeaving(e) {
		return
	}
	var routes []netlinkutil.InterfaceRoute
	var to []netip.Prefix
	var said []string
	for _, l := range lacking {
		routes = append(routes, netlinkutil.RouteTo(l.Destination, l.NextHop))
		to = append(to, l.Destination)
		if a := l.Destination.Addr(); a != w.nextHop(a) { // which is the shim's, and nobody's to know
			said = append(said, a.String())
		}
	}
	err := d.kernel.AddRoutes(e.Sandbox, d.endpointAlias(e.NetworkID, e.ID), routes)
	switch {
	case err == nil:
		if _, ok := d.update(e.ID, func(e *Endpoint) { e.Routes = append(slices.Clone(e.Routes), to...) }); !ok {
			return
		}
		r.did("gave endpoint %s (%s) its routes to the host's %s", Short(e.ID), e.addresses(), strings.Join(said, ", "))
		d.logOfEndpoint(e.NetworkID, e.ID).Infof("gave its container the routes to the host's %s", strings.Join(said, ", "))
		if n, err := d.network(e.NetworkID); err == nil {
			d.pictureNow(n, e)
		}
	case errors.Is(err, netlinkutil.ErrNoSandbox), errors.Is(err, os.ErrNotExist): // it ends, or its interface has gone with its parent
	default:
		r.left("endpoint %s (%s) has no route to the host's %s until its container is restarted: %v", Short(e.ID), e.addresses(), strings.Join(said, ", "), err)
	}
}
