package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"underlay/internal/options"
)

// offer is where the pool of a network about to be created has come from.
type offer struct {
	subnet netip.Prefix // zero: of the default pools
	link   string       // whose subnet it is, or that was named for it; "" if none
	router netip.Addr
	read   bool         // from the link: nobody has named the subnet
	dhcp   bool         // its addresses are the server's there
	leases options.DHCP // of the network
	others []HostSubnet
	at     time.Time
	took   time.Duration // to be told by a server
}

// sameCreation is how soon dockerd asks again for a pool that it has not liked.
const sameCreation = 10 * time.Second

// locate finds out which subnet is asked for: the one named, or the one of a
// NIC. The host is asked, so the lock must not be held.
func (i *IPAM) locate(r PoolRequest, o options.Pool) (found *offer, err error) {
	defer func() {
		if err == nil {
			found.dhcp, found.leases = o.DHCP.Leased(r.V6), o.DHCP
		}
	}()
	named := o.Subnet(r.V6)
	if r.Subnet.IsValid() {
		if named.IsValid() && named != r.Subnet {
			return nil, fmt.Errorf("--subnet %s and --ipam-opt subnet=%s are not the same; give one of them", r.Subnet, named)
		}
		if o.Private {
			return &offer{subnet: r.Subnet}, nil
		}
		// dockerd names the subnet when it replays what it was once given.
		link, router := i.router(o.Parent, r.Subnet)
		return &offer{subnet: r.Subnet, link: link, router: router}, nil
	}
	if o.Private {
		return &offer{}, nil
	}
	if r.learned != nil {
		return r.learned, nil
	}
	return i.read(o.Parent, named, r.V6)
}

// read reads a pool from a NIC.
func (i *IPAM) read(parent string, named netip.Prefix, v6 bool) (*offer, error) {
	family, flags := "IPv4", "--subnet and --gateway"
	if v6 {
		family = "IPv6"
	}
	if i.host == nil {
		return nil, fmt.Errorf("no NIC can be read here; name the LAN's subnet with %s", flags)
	}
	if parent == "" {
		var err error
		if parent, err = i.host.DefaultLink(v6); err != nil {
			return nil, fmt.Errorf("the LAN's %s subnet is that of the NIC with the default route, and %w; name the NIC with --ipam-opt parent=, or the subnet with %s, or ask for --ipam-opt pool=private if the network needs no LAN", family, err, flags)
		}
	}
	name, all, err := i.host.Subnets(parent)
	if err != nil {
		return nil, fmt.Errorf("the LAN's subnet cannot be read from %s: %w; or name it with %s", parent, err, flags)
	}
	var found []HostSubnet
	var texts []string
	for _, s := range all {
		if s.Prefix.Addr().Is6() == v6 {
			found = append(found, s)
			texts = append(texts, s.Prefix.String())
		}
	}
	list := strings.Join(texts, ", ")
	for _, s := range found {
		if s.Prefix == named || len(found) == 1 && !named.IsValid() {
			return &offer{subnet: s.Prefix, link: name, router: s.Gateway, read: true, others: all}, checkSubnet(s.Prefix, netip.Prefix{})
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%s has no %s subnet to take; give it an address, or name the LAN's with %s", name, family, flags)
	case named.IsValid():
		return nil, fmt.Errorf("--ipam-opt subnet=%s is no subnet of %s, which has %s; choose one of these", named, name, list)
	}
	return nil, fmt.Errorf("%s has several %s subnets, %s; choose one with --subnet or --ipam-opt subnet=", name, family, list)
}

// router returns the router of a subnet, as far as the host knows it by a link,
// or by default the one with the default route, and the name of a link given.
func (i *IPAM) router(link string, subnet netip.Prefix) (name string, router netip.Addr) {
	if i.host == nil {
		return link, netip.Addr{}
	}
	at := link
	if at == "" {
		var err error
		if at, err = i.host.DefaultLink(subnet.Addr().Is6()); err != nil {
			return "", netip.Addr{}
		}
	}
	name, all, err := i.host.Subnets(at)
	if err != nil || link == "" {
		name = link
	}
	for _, s := range all {
		if s.Prefix == subnet {
			router = s.Gateway
		}
	}
	return name, router
}

// askedTwice says that a pool read from a NIC is asked for again by the same
// creation. Docker 26 and older do so for ever where it overlaps the host's
// routes, as a LAN's own subnet does.
func (i *IPAM) askedTwice(p *pool, o *offer) bool {
	return o.read && !i.lifted && p.offer != nil && p.offer.read && i.now().Sub(p.offer.at) < sameCreation+o.took
}

// overlap tells the user of such a Docker what to add.
func (o *offer) overlap() error {
	flags := func(s netip.Prefix, router netip.Addr) string {
		text := "--subnet " + s.String()
		if s.Contains(router) { // Docker takes no other one
			text += " --gateway " + router.String()
		}
		return text
	}
	text := flags(o.subnet, o.router)
	for _, s := range o.others {
		if !o.subnet.Addr().Is6() && s.Prefix.Addr().Is6() {
			text += ", and with --ipv6 " + flags(s.Prefix, s.Gateway)
			break
		}
	}
	return fmt.Errorf("this Docker refuses a pool that overlaps the host's routes unless it is named, as all before Docker 27 do; add %s", text)
}

// Agree refuses a network whose parent is not the one that its pools were read
// from. It is to be called before the network is created.
func (i *IPAM) Agree(n NetworkPools, isolated bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, subnet := range n.Subnets {
		p := i.pool(subnet)
		if p == nil || p.offer == nil {
			continue
		}
		o := p.offer
		of := func(v6 bool) bool {
			return slices.ContainsFunc(n.Subnets, func(s netip.Prefix) bool { return s.Addr().Is6() == v6 })
		}
		switch {
		case o.leases.V6 && !of(true):
			return errors.New("--ipam-opt dhcp=v6 and dhcp=both need a network with IPv6; add --ipv6, or use --ipam-opt dhcp=v4")
		case o.leases.V4 && !of(false):
			return errors.New("--ipam-opt dhcp=v4 and dhcp=both need a network with IPv4; leave out --ipv4=false, or use --ipam-opt dhcp=v6")
		case o.dhcp && isolated:
			return fmt.Errorf("pool %s is a DHCP server's, and an internal network or one without -o parent reaches none; leave --ipam-opt dhcp out, or give -o parent", subnet)
		case o.dhcp && n.Routed:
			return fmt.Errorf("pool %s is a DHCP server's, and ipvlan_mode=l3 and l3s put containers behind the host, where no server hears them; use ipvlan_mode=l2 or macvlan", subnet)
		case o.read && isolated:
			return fmt.Errorf("pool %s is the LAN of %s, and an internal network or one without -o parent does not reach it; add --ipam-opt pool=private, or name a subnet with --subnet", subnet, o.link)
		case o.link != "" && n.Parent != "" && o.link != n.Parent:
			return fmt.Errorf("pool %s is the LAN of %s, but the network's parent is %s; give -o parent and --ipam-opt parent the same NIC", subnet, o.link, n.Parent)
		}
	}
	return nil
}
