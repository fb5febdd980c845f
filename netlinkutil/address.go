package netlinkutil

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoRoute is the error of a host without a default route.
var ErrNoRoute = errors.New("no default route")

// Subnet is a subnet that a link of the host is on.
type Subnet struct {
	Prefix  netip.Prefix // masked
	Addr    netip.Addr   // the host's own there
	Gateway netip.Addr   // of the default route that leads there, zero if none; for IPv6 often link-local
}

// Address is an address of a link in the host's netns.
type Address struct {
	Link   int          // index
	Addr   netip.Addr   // without zone
	Prefix netip.Prefix // masked: who the kernel holds to be on the link
	Scope  uint8        // RT_SCOPE_…, linux/rtnetlink.h
	Flags  uint32       // IFA_F_…, linux/if_addr.h
}

// Route is a unicast route of the host's main table.
type Route struct {
	To     netip.Prefix // masked
	Metric int
	Hops   []Hop // one, but for multipath routes
}

// Hop is a next hop of a route.
type Hop struct {
	Link    int        // index
	Gateway netip.Addr // zero: all of To is on the link; may be IPv6 in an IPv4 route (RTA_VIA)
	OnLink  bool       // Gateway is on the link though no subnet says so (RTNH_F_ONLINK)
}

// Addressing is what the host's netns has of addresses and routes. Its methods
// are the rules; exported for the fake kernel, which must answer alike.
type Addressing struct {
	Addresses []Address
	Routes    []Route
}

// Subnets lists the subnets of the link of that index: IPv4 first, by address.
func (a Addressing) Subnets(link int) []Subnet {
	best := map[netip.Prefix]Address{}
	for _, ad := range a.Addresses {
		if ad.Link != link || !ad.lasting() {
			continue
		}
		p := ad.Prefix
		if p.IsSingleIP() {
			p = a.around(ad)
		}
		if p.Bits() <= 0 || !p.Contains(ad.Addr) {
			continue
		}
		if old, ok := best[p]; !ok || ad.before(old) {
			best[p] = ad
		}
	}
	var subnets []Subnet
	for p, ad := range best {
		subnets = append(subnets, Subnet{Prefix: p, Addr: ad.Addr})
	}
	slices.SortFunc(subnets, func(s, t Subnet) int { return s.Prefix.Compare(t.Prefix) })
	for i, s := range subnets {
		subnets[i].Gateway = a.gateway(link, s.Prefix, subnets)
	}
	return subnets
}

// lasting tells whether an address counts for its subnet: it is global or
// unique local, and here to stay.
func (a Address) lasting() bool {
	switch {
	case a.Scope >= unix.RT_SCOPE_HOST, !a.Addr.IsGlobalUnicast():
		return false
	case a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_DADFAILED) != 0:
		return false
	case a.Addr.Is6():
		// IFA_F_TEMPORARY is the bit that is IFA_F_SECONDARY for IPv4. Site
		// scope is fec0::/10, which RFC 3879 took back.
		return a.Flags&unix.IFA_F_TEMPORARY == 0 && a.Scope == unix.RT_SCOPE_UNIVERSE
	}
	return true
}

// Hosts lists the host's own addresses that last, IPv4 first: those of the link
// of that index, or, for a family of which it has none, those of the link of
// that family's default route; the primary, and of IPv6 those set for good,
// first. One of IPv4 that is alone in its subnet, as a shared address is that
// moves between hosts (VRRP), counts only where the link has no other.
func (a Addressing) Hosts(link int) (hosts []netip.Addr) {
	for _, v6 := range []bool{false, true} {
		of := a.of(link, v6)
		if len(of) == 0 {
			if by, err := a.Default(v6); err == nil {
				of = a.of(by, v6)
			}
		}
		hosts = append(hosts, of...)
	}
	return hosts
}

func (a Addressing) of(link int, v6 bool) (primary []netip.Addr) {
	var secondary []netip.Addr // of IPv6, those that are there for a time only
	var floating []netip.Addr  // of IPv4, alone in their subnet, as a shared address is that another host may take over
	for _, ad := range a.Addresses {
		switch {
		case ad.Link != link || ad.Addr.Is6() != v6 || !ad.lasting() || ad.Flags&unix.IFA_F_TENTATIVE != 0:
		case !v6 && ad.Prefix.IsSingleIP():
			floating = append(floating, ad.Addr)
		case !v6 && ad.Flags&unix.IFA_F_SECONDARY != 0, v6 && ad.Flags&unix.IFA_F_PERMANENT == 0:
			secondary = append(secondary, ad.Addr)
		default:
			primary = append(primary, ad.Addr)
		}
	}
	if primary = append(primary, secondary...); primary == nil {
		return floating
	}
	return primary
}

// before tells which of two addresses stands for their subnet: IPv4's primary,
// one that was set by hand before one that came by router advertisements, then
// the lower, as IPv6 has no primary and the kernel lists the latest first.
func (a Address) before(b Address) bool {
	rank := func(a Address) (r int) {
		if a.Addr.Is4() && a.Flags&unix.IFA_F_SECONDARY != 0 {
			r += 2
		}
		if a.Flags&unix.IFA_F_PERMANENT == 0 {
			r++
		}
		return r
	}
	if ra, rb := rank(a), rank(b); ra != rb {
		return ra < rb
	}
	return a.Addr.Less(b.Addr)
}

// around is the subnet of an IPv6 address that came without one, by DHCPv6:
// that of the closest route which has it on the link (RFC 5942, section 4).
// The zero prefix if there is none, and for IPv4.
func (a Addressing) around(ad Address) (p netip.Prefix) {
	if ad.Addr.Is4() {
		return p
	}
	for _, r := range a.Routes {
		if r.To.Bits() <= 0 || r.To.IsSingleIP() || r.To.Bits() <= p.Bits() || !r.To.Contains(ad.Addr) {
			continue
		}
		for _, h := range r.Hops {
			if h.Link == ad.Link && !h.Gateway.IsValid() {
				p = r.To
			}
		}
	}
	return p
}

// gateway is the router of the first default route over a link that is a
// neighbour in that subnet: one inside it, a link-local one, or one that is
// said to be on the link, by the route or by one to the router itself, and lies
// in no other of the link's subnets.
func (a Addressing) gateway(link int, p netip.Prefix, subnets []Subnet) netip.Addr {
	for _, r := range a.defaults(p.Addr().Is6()) {
		for _, h := range r.Hops {
			g := h.Gateway
			if h.Link != link || !g.IsValid() || g.Is4() != p.Addr().Is4() {
				continue
			}
			elsewhere := slices.ContainsFunc(subnets, func(s Subnet) bool { return s.Prefix.Contains(g) })
			if p.Contains(g) || !elsewhere && (h.OnLink || g.IsLinkLocalUnicast() || a.direct(link, g)) {
				return g
			}
		}
	}
	return netip.Addr{}
}

// direct tells whether there is a route that has an address on a link.
func (a Addressing) direct(link int, to netip.Addr) bool {
	return slices.ContainsFunc(a.Routes, func(r Route) bool {
		return r.To.Bits() > 0 && r.To.Contains(to) && slices.ContainsFunc(r.Hops, func(h Hop) bool { return h.Link == link && !h.Gateway.IsValid() })
	})
}

// defaults is the default routes of a family, the lowest metric first.
func (a Addressing) defaults(v6 bool) []Route {
	var ds []Route
	for _, r := range a.Routes {
		if r.To.IsValid() && r.To.Bits() == 0 && r.To.Addr().Is6() == v6 && len(r.Hops) > 0 {
			ds = append(ds, r)
		}
	}
	slices.SortStableFunc(ds, func(a, b Route) int { return cmp.Compare(a.Metric, b.Metric) })
	return ds
}

// Default is the index of the link that the default route leaves by.
// ErrNoRoute if there is none.
func (a Addressing) Default(v6 bool) (link int, err error) {
	if ds := a.defaults(v6); len(ds) > 0 {
		return ds[0].Hops[0].Link, nil
	}
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	return 0, refuse(ErrNoRoute, "this host has no %s default route", family)
}

// Own is who on the LAN is this host or a gateway of it, and in which words.
func (a Addressing) Own(name func(link int) string) map[netip.Addr]string {
	own := map[netip.Addr]string{}
	for _, r := range a.Routes {
		for _, h := range r.Hops {
			if h.Gateway.IsValid() {
				own[h.Gateway] = "a gateway of this host"
			}
		}
	}
	for _, ad := range a.Addresses {
		own[ad.Addr] = "an address of this host (" + name(ad.Link) + ")"
	}
	return own
}

// Subnets lists the global and unique local subnets of a link, IPv4 first, by
// address. Addresses that are link-local, of host scope, deprecated, temporary
// (RFC 8981), or a duplicate of another host's do not count, nor do those with
// no subnet of their own, /32 and /128; but a /128 (of DHCPv6) counts for the
// subnet of the route that has it on the link. Of several addresses in a
// subnet the primary is told.
func (h *Host) Subnets(link string) ([]Subnet, error) {
	a, index, err := h.addressingOf(link)
	if err != nil {
		return nil, err
	}
	return a.Subnets(index), nil
}

// addressingOf is the host's addresses and routes, and the index of a link.
func (h *Host) addressingOf(link string) (a Addressing, index int, err error) {
	if err := CheckName(link); err != nil {
		return a, 0, err
	}
	k, err := h.get(link)
	if err != nil {
		return a, 0, err
	}
	a, err = h.addressing()
	return a, k.Attrs().Index, err
}

// HostAddresses lists the host's own addresses of a link, by which its
// containers may reach the host: global or unique local ones that are here to
// stay, IPv4 first, in the kernel's order (of IPv6, the latest comes first). If
// the link has none of a family, they are those of the link of that family's
// default route.
func (h *Host) HostAddresses(link string) ([]netip.Addr, error) {
	a, index, err := h.addressingOf(link)
	if err != nil {
		return nil, err
	}
	return a.Hosts(index), nil
}

// DefaultLink is the link of a family's default route: of the lowest metric in
// the main table, and of the first hop if that has several. ErrNoRoute if
// there is none.
func (h *Host) DefaultLink(v6 bool) (string, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	rs, err := h.routes(family)
	if err != nil {
		return "", err
	}
	index, err := Addressing{Routes: rs}.Default(v6)
	if err != nil {
		return "", err
	}
	k := h.at(index)
	if k == nil {
		return "", refuse(ErrNotFound, "the link of the default route (index %d) has just gone; try again", index)
	}
	return k.Attrs().Name, nil
}

// Own tells what must not be given to a container: the host's own addresses, on
// whichever link, and the gateways of its routes in the main table. The words
// are "an address of this host (eth0)" and "a gateway of this host".
func (h *Host) Own() (map[netip.Addr]string, error) {
	a, err := h.addressing()
	if err != nil {
		return nil, err
	}
	ls, err := h.Links()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(ls))
	for _, l := range ls {
		names[l.Index] = l.Name
	}
	return a.Own(func(link int) string { return names[link] }), nil
}

// addressing reads addresses and routes, a dump each and family: a dump of all
// families would have those of strangers (MPLS, MCTP) in it.
func (h *Host) addressing() (a Addressing, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		as, err := read(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, family) })
		if err != nil {
			return a, Explain(err, "", "listing the addresses")
		}
		for _, k := range as {
			a.Addresses = append(a.Addresses, address(k))
		}
		rs, err := h.routes(family)
		if err != nil {
			return a, err
		}
		a.Routes = append(a.Routes, rs...)
	}
	return a, nil
}

func address(k netlink.Addr) Address {
	a := Address{Link: k.LinkIndex, Addr: addr(k.IP), Prefix: prefix(k.IPNet), Scope: uint8(k.Scope), Flags: uint32(k.Flags)}
	if k.Peer != nil {
		a.Prefix = prefix(k.Peer)
	}
	return a
}

func (h *Host) routes(family int) ([]Route, error) {
	ks, err := read(func() ([]netlink.Route, error) { return h.nl.RouteList(nil, family) })
	if err != nil {
		return nil, Explain(err, "", "listing the routes")
	}
	var rs []Route
	for _, k := range ks {
		if k.Type == unix.RTN_UNICAST {
			rs = append(rs, route(k))
		}
	}
	return rs, nil
}

func route(k netlink.Route) Route {
	r := Route{To: prefix(k.Dst), Metric: k.Priority}
	hops := k.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{LinkIndex: k.LinkIndex, Gw: k.Gw, Via: k.Via, Flags: k.Flags}}
	}
	for _, n := range hops {
		h := Hop{Link: n.LinkIndex, Gateway: addr(n.Gw), OnLink: n.Flags&unix.RTNH_F_ONLINK != 0}
		if via, ok := n.Via.(*netlink.Via); ok {
			h.Gateway = addr(via.Addr)
		}
		r.Hops = append(r.Hops, h)
	}
	return r
}

// addr is the zero address where the kernel has none.
func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	a := exactly(n.IP)
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones).Masked()
}
