package driver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"underlay/internal/options"
	"underlay/internal/pause"
	"underlay/netlinkutil"
)

// Endpoint is an endpoint as Docker asks for it, and as it is kept.
type Endpoint struct {
	ID        string       `json:"id"`
	NetworkID string       `json:"network"`
	IPv4      netip.Prefix `json:"ipv4,omitzero"`
	IPv6      netip.Prefix `json:"ipv6,omitzero"`
	MAC       MAC          `json:"mac,omitempty"` // nil: Docker named none, or (kept) it is the parent's

	// Sandbox is the container's netns as dockerd names it, and Routes are the
	// destinations that the container has from this endpoint, once it has joined
	// with such.
	Sandbox string         `json:"sandbox,omitempty"`
	Routes  []netip.Prefix `json:"routes,omitempty"`
	// Arrived: the sub-interface has come to the container. Interface is how it was
	// last seen there, and ParentIndex that of the parent which it was on: what it
	// takes to make it again.
	Arrived     bool                   `json:"arrived,omitempty"`
	Interface   *netlinkutil.Interface `json:"interface,omitempty"`
	ParentIndex int                    `json:"parentIndex,omitempty"`
	// DeviceID is the sub-interface's, where it shares the parent's MAC and the
	// host must know which addresses it makes for itself; see netlinkutil.Link.
	DeviceID uint16 `json:"deviceID,omitempty"`
	// MTU is the LAN's server's, where the network has it so; 0: the network's own.
	MTU int `json:"mtu,omitempty"`
	// Lease and Lease6 are what the driver has leased, of a network with an IPAM that
	// gives nothing.
	Lease  *Lease `json:"lease,omitempty"`
	Lease6 *Lease `json:"lease6,omitempty"`
	// Leased and Leased6 are what the LAN's own server has given the container since in
	// the place of IPv4 and IPv6, which Docker goes on showing.
	Leased       netip.Prefix `json:"leased,omitzero"`
	LeasedRouter netip.Addr   `json:"leasedRouter,omitzero"`
	Leased6      netip.Prefix `json:"leased6,omitzero"`
}

// prefixes are the addresses that an endpoint has, with the lengths of their
// subnets.
func (e *Endpoint) prefixes() (ps []netip.Prefix) {
	for _, v6 := range []bool{false, true} {
		if _, p := e.prefix(v6); p.IsValid() {
			ps = append(ps, p)
		}
	}
	return ps
}

// prefix is the address of a family that Docker shows, and the one that the endpoint
// has.
func (e *Endpoint) prefix(v6 bool) (shown, has netip.Prefix) {
	shown, leased := e.IPv4, e.Leased
	if v6 {
		shown, leased = e.IPv6, e.Leased6
	}
	if leased.IsValid() {
		return shown, leased
	}
	return shown, shown
}

// everyAddress is prefixes, and what Docker shows in the place of one.
func (e *Endpoint) everyAddress() []netip.Prefix {
	ps := e.prefixes()
	for _, v6 := range []bool{false, true} {
		if shown, has := e.prefix(v6); shown != has {
			ps = append(ps, shown)
		}
	}
	return ps
}

// leases are those of the driver.
func (e *Endpoint) leases() (ls []*Lease) {
	for _, l := range []*Lease{e.Lease, e.Lease6} {
		if l != nil {
			ls = append(ls, l)
		}
	}
	return ls
}

// addresses are an endpoint's, for a person.
func (e *Endpoint) addresses() string {
	var texts []string
	for _, p := range e.prefixes() {
		texts = append(texts, p.Addr().String())
	}
	return strings.Join(texts, ", ")
}

// MAC is a hardware address that stands in a record as text.
type MAC net.HardwareAddr

func (m MAC) String() string { return net.HardwareAddr(m).String() }

// MarshalText writes a MAC as 02:00:5e:10:00:01, and none as nothing.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (m *MAC) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*m = nil
		return nil
	}
	mac, err := net.ParseMAC(string(b))
	*m = MAC(mac)
	return err
}

// CreateEndpoint makes the sub-interface of an endpoint and returns its MAC,
// nil where it has none of its own. A repeat with the same ID answers the
// same.
func (d *Driver) CreateEndpoint(ctx context.Context, req Endpoint) (MAC, error) {
	mac, made, err := d.createEndpoint(ctx, req)
	if !made {
		d.free(&req)
	}
	return mac, err
}

// createEndpoint is CreateEndpoint. The endpoint is made, and will free its leases,
// unless it fails early or is there already.
func (d *Driver) createEndpoint(ctx context.Context, req Endpoint) (mac MAC, made bool, err error) {
	n, err := d.network(req.NetworkID)
	if err != nil {
		return nil, false, err
	}
	if err := n.takes(req); err != nil {
		return nil, false, err
	}
	parent, err := d.readyParent(n)
	if err != nil {
		return nil, false, fmt.Errorf("network %s: %w", Short(n.ID), err)
	}
	e, submitted, err := d.register(n, parent, req)
	if err != nil {
		return nil, false, err
	}
	if submitted == nil {
		d.trust(e)
		return e.MAC, false, nil
	}
	// Disk and kernel work side by side. A crash between the two leaves
	// either a link without a record, which Recover deletes, or a record
	// without a link, which Join mends.
	link, err := d.addLink(n, e)
	if err == nil {
		if n.Options.HostAccess && link.DeviceID != 0 {
			if after, again := d.submit(e.ID, func(e *Endpoint) { e.DeviceID = link.DeviceID }); again != nil {
				e, submitted = after, again
			}
		}
		err = d.grant(n, e)
		if err == nil {
			err = written(ctx, submitted)
		}
		if err == nil { // unless dockerd has given it up meanwhile
			_, _, err = d.endpoint(n.ID, e.ID)
		}
		if err != nil {
			d.deleteLink(e)
		}
	}
	if err != nil {
		d.mu.Lock()
		d.drop(e)
		d.store.Submit(remove(endpointBucket, e.ID))
		d.mu.Unlock()
		d.revoke(n, e)
		return nil, true, err
	}
	d.answer(n)
	d.audit(e, "given").WithField("mac", link.MAC.String()).Infof("endpoint made: %s", link.Name)
	return e.MAC, true, nil
}

// takes refuses a MAC that no container of the network can have.
func (n *Network) takes(req Endpoint) error {
	if req.MAC != nil && !n.mode().TakesMAC() {
		return fmt.Errorf("an %v container shares the MAC of its parent %s; leave out --mac-address, or use a macvlan network", n.mode(), n.parent())
	}
	if req.MAC != nil && req.MAC[0]&1 == 1 {
		return fmt.Errorf("--mac-address %v is a multicast address; a container needs a unicast one, whose first byte is even", req.MAC)
	}
	return nil
}

// register takes the endpoint's place among the others, with a MAC that no
// other endpoint of the parent has. submitted is nil for one that is known.
func (d *Driver) register(n *Network, parent netlinkutil.Link, req Endpoint) (e *Endpoint, submitted <-chan error, err error) {
	who := d.identity(req) // asks the IPAM: not under the lock
	leased, byIPAM := d.leasedTo(req, false)
	byMAC := byIPAM && leased != nil
	leased6, _ := d.leasedTo(req, true)
	mtu := d.leasedMTU(n, parent, req)
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.endpoints[req.ID]; e != nil {
		return e, nil, nil
	}
	if d.networks[n.ID] != n {
		return nil, nil, d.unknownNetwork(n.ID)
	}
	if err := d.untaken(n, req); err != nil {
		return nil, nil, err
	}
	if err := d.unreserved(n, req); err != nil {
		return nil, nil, err
	}
	if o := d.anyOn(n.parent()); o != nil && n.mode().Alone() {
		return nil, nil, fmt.Errorf("parent %s is passed through to one container at a time, and endpoint %s has it; stop that container first", n.parent(), Short(o.ID))
	}
	e = &req
	e.ParentIndex, e.MTU = parent.Index, mtu
	switch {
	case byMAC && e.MAC != nil && !bytes.Equal(e.MAC, leased):
		return nil, nil, fmt.Errorf("--mac-address %v does not go with --ipam-opt dhcp: the lease of %v is that of %v, taken before Docker tells a MAC; use --ipam-driver null -o dhcp=true for MACs of your own", e.MAC, e.IPv4.Addr(), leased)
	case byIPAM && n.mode().Alone() && e.MAC != nil && !bytes.Equal(e.MAC, parent.MAC): // the parent would have it, too
		return nil, nil, fmt.Errorf("--mac-address %v does not go with --ipam-opt dhcp: the lease of %v is that of parent %s's MAC %v, taken before Docker tells a MAC; use --ipam-driver null -o dhcp=true for MACs of your own", e.MAC, e.IPv4.Addr(), n.parent(), parent.MAC)
	case byMAC && e.MAC == nil && !n.mode().SharesMAC() && !n.mode().Alone():
		if o := d.withMAC(n, leased); o != nil {
			return nil, nil, fmt.Errorf("the lease of %v is that of MAC %v, which endpoint %s has; stop that container", e.IPv4.Addr(), leased, Short(o.ID))
		}
		e.MAC = leased
	case e.MAC != nil:
		if o := d.withMAC(n, e.MAC); o != nil {
			return nil, nil, fmt.Errorf("--mac-address %v is taken on parent %s by endpoint %s; give another or stop that container", e.MAC, n.parent(), Short(o.ID))
		}
	case n.mode().Alone():
		e.MAC = MAC(parent.MAC)
	case leased6 != nil && !n.mode().SharesMAC() && d.withMAC(n, leased6) == nil:
		e.MAC = leased6 // by which a server of IPv6 may know it; but it does not see it
	case !n.mode().SharesMAC():
		base := baseMAC(parent)
		for attempt := byte(0); e.MAC == nil || d.withMAC(n, e.MAC) != nil; attempt++ {
			e.MAC = deriveMAC(base, n.lan(), who, attempt)
		}
	}
	d.add(e)
	d.presence(e.ID).born = true
	return e, d.store.Submit(put(endpointBucket, e.ID, e)), nil
}

// untaken refuses an address that another endpoint has. The IPAM does so too,
// but for what it takes for dockerd's replay, which brings no endpoint here.
// Networks without underlay's IPAM may have the same addresses on other LANs. The
// caller holds d.mu.
func (d *Driver) untaken(n *Network, e Endpoint) error {
	if n.ForeignIPAM {
		return nil
	}
	for _, p := range e.prefixes() {
		o := d.holderOn(n.parent(), p.Addr())
		if o == nil && len(n.Subnets) > 0 {
			o = d.addresses[p.Addr()]
		}
		if o != nil {
			return fmt.Errorf("%v is held by endpoint %s of network %s; give another --ip or stop that container", p.Addr(), Short(o.ID), Short(o.NetworkID))
		}
	}
	return nil
}

// unreserved refuses a container the address of a gateway, or one that a
// network keeps for something else: --ip and --aux-address are not told apart
// by what Docker asks of the IPAM. The caller holds d.mu.
func (d *Driver) unreserved(n *Network, e Endpoint) error {
	for _, o := range d.networks {
		if o.ForeignIPAM != n.ForeignIPAM || len(n.Subnets) == 0 && o.parent() != n.parent() {
			continue
		}
		for _, s := range o.Subnets {
			for _, p := range e.prefixes() {
				if p.Masked() == s.Prefix.Masked() && (p.Addr() == s.Gateway || slices.Contains(s.Aux, p.Addr())) {
					return fmt.Errorf("%v is a gateway or --aux-address of network %s; give the container another --ip", p.Addr(), Short(o.ID))
				}
			}
		}
	}
	return nil
}

// anyOn is an endpoint of a parent, or nil. The caller holds d.mu.
func (d *Driver) anyOn(parent string) *Endpoint {
	for _, e := range d.lodgers[parent] {
		return e
	}
	return nil
}

func (d *Driver) withMAC(n *Network, mac MAC) *Endpoint {
	return d.macs[macOn{n.parent(), string(mac)}]
}

// foreign tells whether a network's addresses are another IPAM driver's.
func (d *Driver) foreign(networkID string) bool {
	n, err := d.network(networkID)
	return err == nil && (n.ForeignIPAM || len(n.Subnets) == 0)
}

// leasedTo says whether the IPAM has leased an endpoint's address of a family, and by
// which MAC the LAN's server knows it; nil where it goes by a client identifier.
func (d *Driver) leasedTo(req Endpoint, v6 bool) (MAC, bool) {
	shown, _ := req.prefix(v6)
	if !shown.IsValid() || len(req.leases()) > 0 || d.foreign(req.NetworkID) {
		return nil, false
	}
	mac, ok := d.holdings.MAC(shown.Addr())
	return MAC(mac), ok
}

// leasedRoutes are those that the LAN's server tells an endpoint with an address. What
// the kernel would refuse is left out: it would keep the container from starting.
func (d *Driver) leasedRoutes(e *Endpoint, on netip.Prefix) (usable []Route) {
	var all []Route
	switch {
	case e.Lease != nil:
		all = e.Lease.Routes
	case !d.foreign(e.NetworkID):
		all = d.holdings.Routes(e.IPv4.Addr())
	}
	near := []netip.Prefix{on.Masked()}
	for _, r := range all {
		if !r.NextHop.IsValid() {
			near, usable = append(near, r.Destination), append(usable, r)
		}
	}
	for _, r := range all {
		switch {
		case !r.NextHop.IsValid():
		case slices.ContainsFunc(near, func(p netip.Prefix) bool { return p.Contains(r.NextHop) }):
			usable = append(usable, r)
		default:
			d.logOfEndpoint(e.NetworkID, e.ID).Warnf("no route to %v: the DHCP server tells one by %v, which is not on the link of %v", r.Destination, r.NextHop, on)
		}
	}
	return usable
}

// leasedMTU is the MTU that the LAN's server tells an endpoint, as far as it can
// have it; 0: none.
func (d *Driver) leasedMTU(n *Network, parent netlinkutil.Link, req Endpoint) (mtu int) {
	switch {
	case n.Options.MTU != 0:
		return 0
	case req.Lease != nil:
		mtu = req.Lease.MTU
	case req.IPv4.IsValid() && !d.foreign(n.ID):
		mtu = d.holdings.MTU(req.IPv4.Addr())
	}
	switch log := d.logOfEndpoint(n.ID, req.ID); {
	case mtu > parent.MTU:
		log.Warnf("the DHCP server tells an MTU of %d, and parent %s has %d, which the container has, too", mtu, parent.Name, parent.MTU)
		return 0
	case mtu != 0 && mtu < options.MinMTU6 && req.IPv6.IsValid():
		log.Warnf("the DHCP server tells an MTU of %d, which is too small for the container's IPv6 (RFC 8200): it has %d, the parent's", mtu, parent.MTU)
		return 0
	}
	return mtu
}

// identity is what stays the same of a container when it is made anew: its
// name, or failing that its address, or failing that nothing.
func (d *Driver) identity(req Endpoint) string {
	for _, p := range req.prefixes() {
		if name, ok := d.holdings.Name(p.Addr()); ok {
			return "name " + name
		}
	}
	for _, p := range req.prefixes() {
		return "address " + p.Addr().String()
	}
	return "endpoint " + req.ID
}

// lan tells the network's LAN from others of the same parent, and outlives the
// network: a compose project that is taken down and up again keeps it.
func (n *Network) lan() string {
	if len(n.Subnets) == 0 {
		return n.ID
	}
	return n.Subnets[0].Prefix.String()
}

func (d *Driver) addLink(n *Network, e *Endpoint) (netlinkutil.Link, error) {
	return d.kernel.AddSubInterface(d.subInterface(n, e))
}

// subInterface is an endpoint's link.
func (d *Driver) subInterface(n *Network, e *Endpoint) netlinkutil.SubInterface {
	return netlinkutil.SubInterface{
		Name: linkName(e.ID), Parent: n.parent(), Mode: n.mode(), MAC: net.HardwareAddr(e.MAC),
		MTU: cmp.Or(n.Options.MTU, e.MTU), BCQueueLen: n.Options.BCQueueLen, Alias: d.endpointAlias(n.ID, e.ID),
	}
}

// deleteLink deletes an endpoint's sub-interface if it is in the host. One
// that cannot be deleted is left for Recover.
func (d *Driver) deleteLink(e *Endpoint) {
	if err := d.kernel.DeleteLink(linkName(e.ID)); err != nil {
		d.logOfEndpoint(e.NetworkID, e.ID).Errorf("link %s is left until the next start: %v", linkName(e.ID), err)
	}
}

// deleteElsewhere deletes an endpoint's link that dockerd has not moved back: in a
// container that it was killed in the middle of starting, which it does not find
// again (Docker 28 and later), the link would go on having its addresses.
func (d *Driver) deleteElsewhere(e *Endpoint) {
	log := d.logOfEndpoint(e.NetworkID, e.ID)
	found, err := d.kernel.RemoveElsewhere(d.endpointAlias(e.NetworkID, e.ID))
	switch {
	case err != nil:
		log.Warnf("whether its interface is left in a container (%s) is not known: %v", e.addresses(), err)
	case found:
		log.Infof("deleted its interface (%s), which dockerd had left in a container", e.addresses())
	}
}

// Route is a route for the container: by NextHop, or on the link where that is
// zero.
type Route struct {
	Destination netip.Prefix
	NextHop     netip.Addr
}

// Plumbing is what dockerd does with a sub-interface: it moves the link into
// the container's netns and sets the routes there.
type Plumbing struct {
	LinkName string
	Gateways []netip.Addr // at most one a family
	Routes   []Route
}

// Join readies the sub-interface for the container's netns, which dockerd calls
// sandbox, and says how it routes.
func (d *Driver) Join(ctx context.Context, networkID, endpointID, sandbox string) (Plumbing, error) {
	n, e, err := d.endpoint(networkID, endpointID)
	if err != nil {
		return Plumbing{}, err
	}
	d.trust(e)
	name := linkName(e.ID)
	if _, err := d.kernel.Link(name); errors.Is(err, os.ErrNotExist) {
		if _, err = d.readyParent(n); err == nil {
			_, err = d.addLink(n, e)
		}
		if err != nil {
			return Plumbing{}, fmt.Errorf("network %s: %w", Short(n.ID), err)
		}
	} else if err != nil {
		return Plumbing{}, err
	}
	p := Plumbing{LinkName: name}
	if n.isolated() {
		return p, d.joins(n, e, sandbox)
	}
	for _, addr := range e.prefixes() {
		gw := e.router(n, addr.Addr().Is6())
		switch {
		case n.Options.NoDefaultRoute:
		case n.mode().RoutesByLink():
			p.Routes = append(p.Routes, Route{Destination: defaultRoute(addr.Addr())})
		case gw.IsValid():
			p.Gateways = append(p.Gateways, gw)
			if !addr.Contains(gw) && !(gw.Is6() && gw.IsLinkLocalUnicast()) {
				p.Routes = append(p.Routes, Route{Destination: alone(gw)})
			}
		}
		p.Routes = append(p.Routes, n.routes(addr)...)
		if addr.Addr().Is4() && !n.Options.NoDefaultRoute { // the network's own come first, and so before these
			p.Routes = append(p.Routes, d.leasedRoutes(e, addr)...)
		}
	}
	if n.Options.HostAccess {
		w, err := d.way(n)
		if err != nil {
			return Plumbing{}, fmt.Errorf("network %s: %w", Short(n.ID), err)
		}
		p.Routes = append(p.Routes, w.containerRoutes(e)...)
		w.byShim(&p)
	}
	if p.Routes, err = d.sharedRoutes(ctx, e, sandbox, p.Routes); err != nil {
		return Plumbing{}, err
	}
	return p, d.joins(n, e, sandbox)
}

// routes are the network's own, of the family of a container's address.
func (n *Network) routes(of netip.Prefix) (routes []Route) {
	for _, r := range n.Options.Routes {
		if r.To.Addr().Is4() != of.Addr().Is4() {
			continue
		}
		if r.Via.IsValid() && !of.Contains(r.Via) {
			// On the link all the same: a link-local one, where the link must be
			// said, or one of another subnet of the network.
			routes = append(routes, Route{Destination: alone(r.Via)})
		}
		routes = append(routes, Route{Destination: r.To, NextHop: r.Via})
	}
	return routes
}

func defaultRoute(family netip.Addr) netip.Prefix {
	if family.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// gateway is that of the subnet which the address is in.
func (n *Network) gateway(addr netip.Addr) netip.Addr {
	for _, s := range n.Subnets {
		if s.Prefix.Contains(addr) {
			return s.Gateway
		}
	}
	return netip.Addr{}
}

// joins notes the container that an endpoint goes to.
func (d *Driver) joins(n *Network, e *Endpoint, sandbox string) error {
	if _, now, err := d.endpoint(n.ID, e.ID); err == nil {
		e = now // with the routes that it was given
	}
	if e.Sandbox != sandbox {
		// On disk soon enough: what is lost with the plugin is no more than the way to
		// the container, and dockerd gives no answer's delay back.
		after, ok := d.update(e.ID, func(e *Endpoint) { e.moveTo(sandbox) })
		if !ok {
			return unknownEndpoint(e.NetworkID, e.ID)
		}
		e = after
	}
	d.comes(e.ID)
	d.follow(n, e)
	return nil
}

// moveTo notes a container that the endpoint is to go to, and nothing is known of
// its link there.
func (e *Endpoint) moveTo(sandbox string) {
	if e.Sandbox != sandbox {
		e.Sandbox, e.Arrived, e.Interface = sandbox, false, nil
	}
}

// Leave only ends what follows the link: dockerd moves it back to the host after
// this, and DeleteEndpoint deletes it there.
func (d *Driver) Leave(_ context.Context, _, endpointID string) error {
	d.leaves(endpointID)
	return nil
}

// DeleteEndpoint deletes an endpoint's sub-interface and forgets it. An unknown
// endpoint is success: Docker repeats itself.
func (d *Driver) DeleteEndpoint(ctx context.Context, networkID, endpointID string) error {
	d.mu.Lock()
	n, e := d.networks[networkID], d.endpoints[endpointID]
	if e == nil || e.NetworkID != networkID {
		d.mu.Unlock()
		d.deleteStrayLink(networkID, endpointID)
		return nil
	}
	d.presence(e.ID).deleted = true
	submitted := d.store.Submit(remove(endpointBucket, e.ID))
	d.mu.Unlock()
	d.leaves(endpointID)
	_, absent := d.kernel.Link(linkName(e.ID))
	d.deleteLink(e)
	return d.settle(ctx, submitted, func(err error) {
		if err == nil {
			d.drop(e)
		} else if p := d.presences[endpointID]; p != nil {
			p.deleted = false
		}
	}, func() {
		if errors.Is(absent, os.ErrNotExist) && e.Sandbox != "" {
			d.deleteElsewhere(e)
		}
		if n != nil {
			d.revoke(n, e)
			d.answer(n)
		}
		d.showHostToRoommates(e)
		if len(d.roommatesOf(e)) > 0 {
			d.companions.Go(func() {
				if pause.For(d.ctx, pictureAfter) == nil {
					d.pictureRoommates(e)
				}
			})
		}
		d.audit(e, "freed").Info("endpoint deleted")
	})
}

// deleteStrayLink deletes the link of an endpoint of which there is no record,
// whichever state file had one: that is gone or set aside, and dockerd's word is
// enough that the link is of no use.
func (d *Driver) deleteStrayLink(networkID, endpointID string) {
	l, err := d.kernel.Link(linkName(endpointID))
	if err != nil {
		return
	}
	instance, _, _ := strings.Cut(strings.TrimPrefix(l.Alias, "underlay "), " ")
	if l.Alias != "underlay "+instance+" "+endpointWords(networkID, endpointID) {
		return
	}
	log := d.logOfEndpoint(networkID, endpointID)
	if err := d.kernel.DeleteLink(l.Name); err != nil {
		log.Errorf("leftover link %s (%s) of an endpoint without a record: %v", l.Name, l.Alias, err)
		return
	}
	log.Infof("deleted leftover link %s (%s) of an endpoint without a record", l.Name, l.Alias)
}

// EndpointInfo tells a person about an endpoint.
func (d *Driver) EndpointInfo(networkID, endpointID string) (map[string]string, error) {
	n, e, err := d.endpoint(networkID, endpointID)
	if err != nil {
		return nil, err
	}
	mac := e.MAC
	if mac == nil {
		if parent, err := d.kernel.Link(n.parent()); err == nil {
			mac = MAC(parent.MAC)
		}
	}
	return map[string]string{
		"parent": n.parent(), "mode": n.mode().String(), "link": linkName(e.ID), "mac": mac.String(),
	}, nil
}

func unknownEndpoint(networkID, id string) error {
	return fmt.Errorf("endpoint %s of network %s is unknown to underlay; restart the container", Short(id), Short(networkID))
}

// unknownNetwork is what calls get about a network without a record.
func (d *Driver) unknownNetwork(id string) error {
	if a := d.store.Aside(); a != nil {
		return fmt.Errorf("network %s is unknown to underlay, whose state file was damaged and is now %s: docker network rm and create it again, or disable the plugin and put a good copy back", Short(id), a.Path)
	}
	return fmt.Errorf("network %s is unknown to underlay, which may have lost its state: docker network rm and create it again", Short(id))
}

func (d *Driver) network(id string) (*Network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.networks[id]; n != nil {
		return n, nil
	}
	return nil, d.unknownNetwork(id)
}

func (d *Driver) endpoint(networkID, id string) (*Network, *Endpoint, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, e := d.networks[networkID], d.endpoints[id]
	if n == nil {
		return nil, nil, d.unknownNetwork(networkID)
	}
	if e == nil || e.NetworkID != networkID {
		return nil, nil, unknownEndpoint(networkID, id)
	}
	return n, e, nil
}

func (d *Driver) logOf(networkID string) *logrus.Entry {
	return d.log.WithField("network", Short(networkID))
}

func (d *Driver) logOfEndpoint(networkID, endpointID string) *logrus.Entry {
	return d.logOf(networkID).WithField("endpoint", Short(endpointID))
}
