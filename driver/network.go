package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"underlay/internal/mode"
	"underlay/internal/options"
	"underlay/internal/store"
	"underlay/netlinkutil"
)

// Subnet is one pool of a network as Docker gives it.
type Subnet struct {
	Prefix  netip.Prefix `json:"prefix"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	Aux     []netip.Addr `json:"aux,omitempty"`
}

// Network is a network as Docker asks for it, and as it is kept.
type Network struct {
	ID       string          `json:"id"`
	Options  options.Network `json:"options"`
	Internal bool            `json:"internal,omitempty"`
	// ForeignIPAM: the addresses are not underlay's but another IPAM driver's.
	ForeignIPAM bool     `json:"foreignIPAM,omitempty"`
	Subnets     []Subnet `json:"subnets,omitempty"` // of both families
}

// parent is the network's parent: the one asked for, or a dummy of its own
// whose name is derived.
func (n *Network) parent() string {
	switch {
	case n.dummy():
		return "uld" + Short(n.ID)
	case n.Options.VLAN != 0:
		return options.VLANName(n.Options.Parent, n.Options.VLAN)
	}
	return n.Options.Parent
}

// LANLink is the link that leads to the network's LAN, "" if none does.
func (n *Network) LANLink() string {
	if n.dummy() {
		return ""
	}
	return n.parent()
}

func (n *Network) dummy() bool     { return n.Options.Parent == "" }
func (n *Network) mode() mode.Mode { return n.Options.Mode }

// isolated tells whether nothing leads out of the network. One without a
// parent is internal whether --internal says so or not, as with Docker's own
// drivers.
func (n *Network) isolated() bool { return n.Internal || n.dummy() }

// SkipGateway tells whether a network takes no gateway address: an isolated
// one has no way out, one without a default route does not use its own, and in
// l3 the container routes by the link.
func SkipGateway(o options.Network, internal bool) bool {
	n := Network{Options: o, Internal: internal}
	return n.isolated() || n.mode().RoutesByLink() || o.NoDefaultRoute
}

// CreateNetwork makes a network. It is refused, with nothing changed, where
// its parent is not there or cannot carry it. A repeat with the same ID and
// content succeeds: swarm sends it.
func (d *Driver) CreateNetwork(ctx context.Context, req Network) error {
	n := &req
	d.parents.Lock()
	defer d.parents.Unlock()
	if err := d.Canonical(n); err != nil {
		return err
	}
	d.mu.Lock()
	known := d.networks[n.ID]
	d.mu.Unlock()
	if known != nil {
		if !reflect.DeepEqual(known, n) {
			return fmt.Errorf("network %s is there already, with other options", Short(n.ID))
		}
		return nil
	}
	if err := n.check(); err != nil {
		return err
	}
	if err := d.shareable(n); err != nil {
		return err
	}
	if err := d.prepare(n); err != nil {
		d.dropParent(n)
		return err
	}
	d.mu.Lock()
	d.networks[n.ID] = n
	submitted := d.store.Submit(put(networkBucket, n.ID, n))
	d.mu.Unlock()
	if err := written(ctx, submitted); err != nil {
		d.mu.Lock()
		delete(d.networks, n.ID)
		d.store.Submit(remove(networkBucket, n.ID))
		d.mu.Unlock()
		d.dropParent(n)
		return err
	}
	d.logOf(n.ID).Infof("network made: %v on %s", n.mode(), n.parent())
	for _, command := range d.RouterRoutes(n) {
		d.logOf(n.ID).Infof("the LAN reaches its containers once the router knows them: %s", command)
	}
	return nil
}

// RouterRoutes are the commands that make a LAN's router know the containers of
// an l3 network, which the LAN cannot ask for: "ip route add 10.1.0.0/24 via
// 192.168.50.2". Other networks need none, and neither does one that is proxied
// or in the LAN's own subnet, to which the router has a route.
func (d *Driver) RouterRoutes(n *Network) (commands []string) {
	if !n.mode().RoutesByLink() || n.isolated() || n.Options.Proxy {
		return nil
	}
	lans, err := d.kernel.Subnets(n.parent())
	if err != nil {
		return nil // the parent is away
	}
	for _, s := range n.Subnets {
		i := slices.IndexFunc(lans, func(l netlinkutil.Subnet) bool { return l.Addr.Is4() == s.Prefix.Addr().Is4() })
		if i < 0 || slices.ContainsFunc(lans, func(l netlinkutil.Subnet) bool { return l.Prefix.Overlaps(s.Prefix) }) {
			continue
		}
		ip := "ip"
		if lans[i].Addr.Is6() {
			ip = "ip -6"
		}
		commands = append(commands, fmt.Sprintf("%s route add %v via %v", ip, s.Prefix.Masked(), lans[i].Addr))
	}
	return commands
}

// check refuses options that do not go with what else Docker says of a network.
func (n *Network) check() error {
	switch o := &n.Options; {
	case o.DHCP.On() && n.Internal:
		return errors.New("-o dhcp does not go with --internal, which keeps containers from everybody else, a server included; leave out the one or the other")
	case o.DHCP.On() && len(n.Subnets) > 0:
		return errors.New("-o dhcp needs --ipam-driver null: another IPAM driver gives addresses of its own; or use --ipam-driver underlay with --ipam-opt dhcp=true in the place of -o dhcp")
	case n.Internal && o.HostAccess:
		return errors.New("-o host_access does not go with --internal, which keeps containers from everybody else, and the host would be one; leave out the one or the other")
	case n.Internal && o.Proxy:
		return errors.New("-o announce=proxy does not go with --internal, which keeps containers from everybody else; leave out the one or the other")
	case n.Internal && len(o.Routes) > 0:
		return errors.New("-o routes does not go with --internal, out of which nothing leads; leave out the one or the other")
	}
	for _, r := range n.Options.Routes {
		if err := n.leadsTo(r); err != nil {
			return fmt.Errorf("-o routes: %w", err)
		}
	}
	return nil
}

// leadsTo refuses a route that no container of the network could have.
func (n *Network) leadsTo(r options.Route) error {
	var family []string
	direct := false
	for _, s := range n.Subnets {
		if s.Prefix.Addr().Is4() != r.To.Addr().Is4() {
			continue
		}
		if s.Prefix.Masked() == r.To {
			return fmt.Errorf("%v is the network's own subnet, to which each container has a route; leave it out", r.To)
		}
		family = append(family, s.Prefix.Masked().String())
		direct = direct || s.Prefix.Contains(r.Via)
	}
	switch {
	case len(family) == 0:
		return fmt.Errorf("%v: the network has no subnet of that family; add one with --subnet, or leave the route out", r.To)
	case !r.Via.IsValid(), direct, r.Via.Is6() && r.Via.IsLinkLocalUnicast():
		return nil
	}
	return fmt.Errorf("%v: router %v is not in subnet %s, so that no container reaches it; name a router of the subnet", r.To, r.Via, strings.Join(family, " or "))
}

// prepare makes the parent of a network ready and has the kernel's word that
// it carries the network's mode.
func (d *Driver) prepare(n *Network) error {
	parent, err := d.ensureParent(n)
	if err != nil {
		return err
	}
	if n.Options.MTU > parent.MTU {
		return fmt.Errorf("-o %s=%d is above the MTU of parent %s, which is %d; lower the one or raise the other", options.MTUKey, n.Options.MTU, n.parent(), parent.MTU)
	}
	if n.Options.MTU != 0 && n.Options.MTU < options.MinMTU6 {
		for _, s := range n.Subnets {
			if s.Prefix.Addr().Is6() {
				return fmt.Errorf("-o %s=%d is too small for IPv6, which needs %d (RFC 8200)", options.MTUKey, n.Options.MTU, options.MinMTU6)
			}
		}
	}
	if !parent.Up {
		d.logOf(n.ID).Warnf("parent %s is down: containers reach nobody until it is up (ip link set %s up)", n.parent(), n.parent())
	}
	if err := d.try(n); err != nil {
		return err
	}
	return d.tryAccess(n)
}

// DeleteNetwork forgets a network and what is left of its endpoints, and
// deletes its parent where the plugin made it and no other network uses it.
// An unknown network is success: Docker repeats itself.
func (d *Driver) DeleteNetwork(ctx context.Context, id string) error {
	d.parents.Lock()
	defer d.parents.Unlock()
	d.mu.Lock()
	n := d.networks[id]
	if n == nil {
		d.mu.Unlock()
		return nil
	}
	delete(d.networks, id) // no endpoint can join it from here
	changes := []store.Change{remove(networkBucket, id)}
	var left []*Endpoint
	for _, e := range d.endpoints {
		if e.NetworkID == id {
			left = append(left, e)
			changes = append(changes, remove(endpointBucket, e.ID))
		}
	}
	submitted := d.store.Submit(changes...)
	d.mu.Unlock()
	err := d.settle(ctx, submitted, func(err error) {
		if err != nil {
			d.networks[id] = n
			return
		}
		for _, e := range left {
			d.drop(e)
		}
		for _, o := range d.networks {
			if o.parent() == n.parent() {
				return
			}
		}
		delete(d.waiting, n.parent())
	}, func() {})
	if err != nil {
		return err
	}
	for _, e := range left {
		d.audit(e, "freed").Warn("endpoint was left in the network and goes with it")
		d.deleteLink(e)
		d.revoke(n, e)
	}
	d.answer(n)
	d.dropParent(n)
	d.logOf(id).Info("network deleted")
	return nil
}
