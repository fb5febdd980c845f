package netlinkutil

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// protocol marks the routes and nexthops of ours (rtm_protocol); iproute2's
// rt_protos knows no other owner of it.
const protocol = 117

// settings is the folders of the netns's sysctls of links, by family: more
// than one each, as the first may be mounted read-only. A folder belongs to
// the netns of the thread that opened it, whoever uses it.
type settings struct{ v4, v6 []*os.Root }

// openSettings opens the folders that are there. A managed plugin has its
// /proc/sys read-only, and another mount of the host's at /sysctl/net.
func openSettings() (s settings) {
	for _, net := range []string{"/proc/sys/net", "/sysctl/net"} {
		if r, err := os.OpenRoot(net + "/ipv4/conf"); err == nil {
			s.v4 = append(s.v4, r)
		}
		if r, err := os.OpenRoot(net + "/ipv6/conf"); err == nil {
			s.v6 = append(s.v6, r)
		}
	}
	return s
}

func (s settings) close() {
	for _, r := range slices.Concat(s.v4, s.v6) {
		r.Close()
	}
}

// setting reads one, "" where it is not to be had.
func setting(in []*os.Root, name string) string {
	for _, r := range in {
		if b, err := r.ReadFile(name); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	return ""
}

// set writes one unless it is so already.
func set(in []*os.Root, name, value string) error {
	if setting(in, name) == value {
		return nil
	}
	err := fs.ErrNotExist
	for _, r := range in {
		f, oerr := r.OpenFile(name, os.O_WRONLY, 0)
		if err = oerr; err != nil {
			continue
		}
		_, err = f.WriteString(value)
		if f.Close(); err == nil {
			return nil
		}
	}
	return err
}

// EnsureShim makes the shim or puts it right: up, with its MAC and its
// link-local addresses (others stay), and deaf to router advertisements, which would give the
// host a second default route. It inherits the parent's MTU. Where the host has
// no IPv6, the shim has none. A link of its name that is something else is
// ErrExists; a host whose settings would have the LAN hear of the shim is
// ErrUnsupported. Of one shim there may be one call at a time.
func (h *Host) EnsureShim(s Shim) error {
	if err := s.Check(); err != nil {
		return err
	}
	pk, err := h.parent(s.Parent)
	if err != nil {
		return err
	}
	s.Parent = pk.Attrs().Name
	if s.Neighbours() {
		for name := range ARPSettings {
			if err := ARPRefusal(name, setting(h.settings.v4, "all/"+name)); err != nil {
				return err
			}
		}
	}
	k, l, err := h.shim(s)
	if errors.Is(err, ErrNotFound) || err == nil && s.Unfinished(l) {
		if _, err := h.AddSubInterface(s.sub()); err != nil {
			return err
		}
		if k, err = h.get(s.Name); err == nil {
			err = h.equip(s, k, pk)
		}
		if err != nil {
			return h.undo(s.Name, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return h.equip(s, k, pk)
}

// shim is the shim's link: ErrNotFound where it is not there, ErrExists where
// something else is.
func (h *Host) shim(s Shim) (netlink.Link, Link, error) {
	k, err := h.get(s.Name)
	if err != nil {
		return nil, Link{}, err
	}
	l := link(k)
	if m := h.at(lower(k)); m != nil {
		l.Lower = m.Attrs().Name
	}
	return k, l, s.Own(l)
}

// IPV4_DEVCONF_…, linux/ip.h, and IFLA_INET_CONF.
const (
	iflaInetConf = 1
	proxyARP     = 3
	arpIgnore    = 19
)

// equip does to a shim all but make it. It changes nothing that is right, as
// the kernel would tell of it as a change of the link.
func (h *Host) equip(s Shim, k, parent netlink.Link) error {
	if mtu := parent.Attrs().MTU; k.Attrs().MTU != mtu { // the parent's has risen; it follows it down by itself
		if err := tell(func() error { return h.nl.LinkSetMTU(k, mtu) }); err != nil {
			return Explain(err, "", fmt.Sprintf("setting the MTU of link %s to %d", s.Name, mtu))
		}
	}
	if s.MAC != nil && !bytes.Equal(k.Attrs().HardwareAddr, s.MAC) {
		if err := tell(func() error { return h.nl.LinkSetHardwareAddr(k, s.MAC) }); err != nil {
			return Explain(err, "", fmt.Sprintf("setting the MAC address of link %s to %s", s.Name, s.MAC))
		}
	}
	in4, in6 := h.settings.v4, h.settings.v6
	v6 := setting(in6, s.Name+"/accept_ra") != ""
	var families []*nl.RtAttr
	if setting(in4, s.Name+"/arp_ignore") != "1" || setting(in4, s.Name+"/proxy_arp") != "0" {
		conf := nl.NewRtAttr(unix.AF_INET, nil)
		values := conf.AddRtAttr(iflaInetConf, nil)
		values.AddRtAttr(arpIgnore, nl.Uint32Attr(1)) // answer for the link's own addresses only
		values.AddRtAttr(proxyARP, nl.Uint32Attr(0))
		families = append(families, conf)
	}
	const none = "1" // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	if v6 && setting(in6, s.Name+"/addr_gen_mode") != none {
		conf := nl.NewRtAttr(unix.AF_INET6, nil)
		conf.AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{1})
		families = append(families, conf)
	}
	if len(families) > 0 {
		spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		for _, f := range families {
			spec.AddChild(f)
		}
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(k.Attrs().Index)
		if err := h.change(unix.RTM_SETLINK, 0, msg, spec); err != nil {
			return Explain(err, "", "setting up ARP on link "+s.Name)
		}
	}
	if v6 {
		if err := h.deafen(s); err != nil {
			return err
		}
	}
	// What announces names by multicast (avahi, systemd-resolved) leaves a link
	// without this flag out, and does not tell the LAN its addresses. The kernel
	// itself does not mind it for NDP.
	if k.Attrs().RawFlags&unix.IFF_MULTICAST != 0 {
		if err := tell(func() error { return h.nl.LinkSetMulticastOff(k) }); err != nil {
			return Explain(err, "", "turning multicast off on link "+s.Name)
		}
	}
	if k.Attrs().Flags&net.FlagUp == 0 {
		if err := tell(func() error { return h.nl.LinkSetUp(k) }); err != nil {
			return Explain(err, "", "setting link "+s.Name+" up")
		}
	}
	for _, p := range s.Addresses() {
		if p.Addr().Is6() && !v6 {
			continue
		}
		a := &netlink.Addr{IPNet: ipnet(p), Flags: unix.IFA_F_NODAD, Scope: unix.RT_SCOPE_LINK}
		err := tell(func() error { return h.nl.AddrAdd(k, a) })
		off := p.Addr().Is6() && errors.Is(err, unix.EACCES) // disable_ipv6=1
		if err != nil && !off && !errors.Is(err, unix.EEXIST) {
			return Explain(err, "", fmt.Sprintf("giving link %s the address %s", s.Name, p.Addr()))
		}
	}
	return nil
}

// deafen has a shim ignore routers, before it is up. These settings are to be
// had by files alone.
func (h *Host) deafen(s Shim) error {
	in := h.settings.v6
	err := set(in, s.Name+"/accept_ra", "0")
	if ra := setting(in, s.Name+"/accept_ra"); err != nil && (ra == "2" || setting(in, s.Name+"/forwarding") == "0") { // addrconf.c, ipv6_accept_ra
		return refuse(ErrPermission, "host access: cannot write net.ipv6.conf.%s.accept_ra, and router advertisements would give this host a second default route; let underlay write /proc/sys/net (as a managed plugin: mount it at /sysctl/net), or set net.ipv6.conf.default.accept_ra=0", s.Name)
	}
	_, _ = set(in, s.Name+"/autoconf", "0"), set(in, s.Name+"/router_solicitations", "0") // they follow accept_ra
	return nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// change is a message that changes something.
func (h *Host) change(kind, flags int, data ...nl.NetlinkRequestData) error {
	_, err := bounded(func() ([][]byte, error) { return request(h.told, kind, flags|unix.NLM_F_ACK, 0, data...) })
	return err
}

// ask is a message that asks.
func (h *Host) ask(kind, flags int, answer uint16, data ...nl.NetlinkRequestData) ([][]byte, error) {
	return read(func() ([][]byte, error) { return request(h.strict, kind, flags, answer, data...) })
}

func request(by map[int]*nl.SocketHandle, kind, flags int, answer uint16, data ...nl.NetlinkRequestData) ([][]byte, error) {
	r := nl.NewNetlinkRequest(kind, flags)
	r.Sockets = by
	r.Data = data
	return r.Execute(unix.NETLINK_ROUTE, answer)
}

// Reach makes the host's route to a container, and the permanent neighbour, or
// puts them right. A route that is somebody else's is ErrExists; a Source that
// is not the host's is ErrNoSource; a shim that is down, or has no carrier where
// its routes need one, is ErrDown; IPv6 without IPv6 is ErrUnsupported.
// ErrNotFound if the shim is not there.
func (h *Host) Reach(s Shim, r HostRoute) error {
	if err := cmpErr(s.Check(), r.Check()); err != nil {
		return err
	}
	k, _, err := h.shim(s)
	if err != nil {
		return err
	}
	index := k.Attrs().Index
	var g nexthops
	if s.Grouped(r.Addr) {
		g, err = h.group(s, k)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) { // before Linux 5.3, and 5.12
			g, err = nexthops{}, Ungrouped(s, func(link string) string { return setting(h.settings.v4, link+"/rp_filter") })
			if err != nil {
				return err
			}
		}
		if err != nil {
			return h.refusal(s, HostRoute{Addr: r.Addr}, fmt.Errorf("nexthops: %w", err))
		}
	}
	if r.MAC != nil && s.Neighbours() {
		n := &netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, IP: r.Addr.AsSlice(), HardwareAddr: r.MAC}
		if err := tell(func() error { return h.nl.NeighSet(n) }); err != nil {
			return h.refusal(s, r, err)
		}
	}
	err = h.route(unix.NLM_F_CREATE|unix.NLM_F_EXCL, r, index, g)
	if errors.Is(err, unix.EEXIST) {
		ours, lerr := h.ours(r.Addr.Is6())
		if lerr != nil {
			return lerr
		}
		have, ok := ours[r.Addr]
		switch {
		case !ok:
			return Foreign(r.Addr)
		case have.source == r.Source && have.by(index, g):
			return nil
		}
		err = h.route(unix.NLM_F_CREATE|unix.NLM_F_REPLACE, r, index, g)
	}
	return h.refusal(s, r, err)
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// refusal puts an errno of Reach into words.
func (h *Host) refusal(s Shim, r HostRoute, err error) error {
	is := func(es ...unix.Errno) bool {
		return slices.ContainsFunc(es, func(e unix.Errno) bool { return errors.Is(err, e) })
	}
	switch {
	case err == nil:
		return nil
	case is(unix.ENETDOWN, unix.ENETUNREACH):
		return Down(s, r.Addr)
	case r.Addr.Is6() && setting(h.settings.v6, s.Name+"/disable_ipv6") != "0":
		return NoIPv6(s, r.Addr)
	case r.Source.IsValid() && is(unix.EINVAL):
		return NoSource(r)
	}
	return Explain(err, "", s.doing(r))
}

// route tells the kernel of a route: by the group if there is one.
func (h *Host) route(flags int, r HostRoute, index int, g nexthops) error {
	msg := nl.NewRtMsg()
	msg.Protocol = protocol
	data := routeTo(msg, r.Addr)
	if g.group != 0 {
		data = append(data, nl.NewRtAttr(rtaNHID, nl.Uint32Attr(g.group)))
	} else {
		if r.Addr.Is4() {
			msg.Scope = unix.RT_SCOPE_LINK
		}
		data = append(data, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	if r.Source.IsValid() {
		data = append(data, nl.NewRtAttr(unix.RTA_PREFSRC, r.Source.AsSlice()))
	}
	return h.change(unix.RTM_NEWROUTE, flags, data...)
}

func routeTo(msg *nl.RtMsg, addr netip.Addr) []nl.NetlinkRequestData {
	msg.Family, msg.Dst_len = family(addr.Is6()), uint8(addr.BitLen())
	return []nl.NetlinkRequestData{msg, nl.NewRtAttr(unix.RTA_DST, addr.AsSlice())}
}

func family(v6 bool) uint8 {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// Unreach takes the route and the neighbour of a container away; absent ones
// are success, and so is an absent shim.
func (h *Host) Unreach(s Shim, addr netip.Addr) error {
	if err := s.Check(); err != nil {
		return err
	}
	r := HostRoute{Addr: addr}
	if err := r.Check(); err != nil {
		return err
	}
	if s.Grouped(addr) { // it may outlive the shim
		g, err := h.nexthopsOf(s)
		if err == nil && g.group != 0 {
			err = h.unroute(addr, rtaNHID, g.group)
		}
		if err != nil {
			return err
		}
	}
	k, err := h.get(s.Name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.unroute(addr, unix.RTA_OIF, uint32(k.Attrs().Index)); err != nil {
		return err
	}
	n := &netlink.Neigh{LinkIndex: k.Attrs().Index, IP: addr.AsSlice()}
	err = tell(func() error { return h.nl.NeighDel(n) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	return Explain(err, "", "deleting the neighbour "+addr.String())
}

// unroute deletes the route of ours to an address by a link or a nexthop.
func (h *Host) unroute(addr netip.Addr, attr int, by uint32) error {
	msg := nl.NewRtDelMsg()
	msg.Protocol, msg.Type = protocol, unix.RTN_UNICAST
	err := h.change(unix.RTM_DELROUTE, 0, append(routeTo(msg, addr), nl.NewRtAttr(attr, nl.Uint32Attr(by)))...)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case attr == rtaNHID && errors.Is(err, unix.EINVAL): // no such nexthop
		return nil
	}
	return Explain(err, "", "deleting the route to "+addr.String())
}

// ownRoute is a route of ours as the kernel tells it.
type ownRoute struct {
	source  netip.Addr
	link    int    // index, 0 for one by a nexthop
	nexthop uint32 // ID, or 0
}

func (r ownRoute) by(link int, g nexthops) bool {
	if r.nexthop != 0 {
		return r.nexthop == g.group
	}
	return g.group == 0 && r.link == link
}

// ours lists the host routes of ours in the main table, by the address.
func (h *Host) ours(v6 bool) (map[netip.Addr]ownRoute, error) {
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family(v6), Table: unix.RT_TABLE_MAIN, Protocol: protocol}}
	answers, err := h.ask(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.RTM_NEWROUTE, msg)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) { // there is no table as long as there is no route
		return nil, Explain(err, "", "listing the routes to containers")
	}
	routes := map[netip.Addr]ownRoute{}
	for _, b := range answers {
		if len(b) < unix.SizeofRtMsg {
			continue
		}
		// A kernel without strict dumps (before Linux 5.0) sends all routes.
		m := nl.DeserializeRtMsg(b)
		as, err := nl.ParseRouteAttr(b[m.Len():])
		if err != nil || m.Protocol != protocol || m.Family != family(v6) || m.Table != unix.RT_TABLE_MAIN || m.Flags&unix.RTM_F_CLONED != 0 {
			continue
		}
		var to netip.Addr
		var r ownRoute
		for _, a := range as {
			switch {
			case a.Attr.Type == unix.RTA_DST:
				to = addr(a.Value)
			case a.Attr.Type == unix.RTA_PREFSRC:
				r.source = addr(a.Value)
			case a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4:
				r.link = int(nl.NativeEndian().Uint32(a.Value))
			case a.Attr.Type == rtaNHID && len(a.Value) == 4:
				r.nexthop = nl.NativeEndian().Uint32(a.Value)
			}
		}
		if to.IsValid() && int(m.Dst_len) == to.BitLen() {
			routes[to] = r
		}
	}
	return routes, nil
}

// Reached lists the routes by the shim that work, with the neighbours' MACs, by
// address. It is nil where there is no shim.
func (h *Host) Reached(s Shim) ([]HostRoute, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	k, err := h.get(s.Name)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	index := k.Attrs().Index
	macs, err := h.neighbours(index)
	if err != nil {
		return nil, err
	}
	var rs []HostRoute
	for _, v6 := range []bool{false, true} {
		ours, err := h.ours(v6)
		if err != nil {
			return nil, err
		}
		var g nexthops
		if !v6 && s.Grouped(netip.IPv4Unspecified()) {
			if g, err = h.nexthopsOf(s); err != nil {
				return nil, err
			}
			if whole, err := h.whole(g); err != nil || !whole {
				g = nexthops{}
			}
		}
		for to, r := range ours {
			if r.nexthop != 0 && r.nexthop == g.group || r.nexthop == 0 && r.link == index {
				rs = append(rs, HostRoute{Addr: to, Source: r.source, MAC: macs[to]})
			}
		}
	}
	slices.SortFunc(rs, func(a, b HostRoute) int { return a.Addr.Compare(b.Addr) })
	return rs, nil
}

// neighbours lists the permanent neighbours on a link.
func (h *Host) neighbours(index int) (map[netip.Addr]net.HardwareAddr, error) {
	answers, err := h.ask(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, unix.RTM_NEWNEIGH, &netlink.Ndmsg{}, nl.NewRtAttr(ndaIfindex, nl.Uint32Attr(uint32(index))))
	if err != nil {
		return nil, Explain(err, "", "listing the neighbours")
	}
	macs := map[netip.Addr]net.HardwareAddr{}
	for _, b := range answers {
		n, err := netlink.NeighDeserialize(b)
		if err == nil && n.LinkIndex == index && n.State&unix.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 && (n.Family == unix.AF_INET || n.Family == unix.AF_INET6) {
			macs[addr(n.IP)] = bytes.Clone(n.HardwareAddr)
		}
	}
	return macs, nil
}

// DeleteShim deletes the shim and its routes; an absent one is success. A link
// of its name that is somebody else's is ErrExists.
func (h *Host) DeleteShim(s Shim) error {
	if err := s.Check(); err != nil {
		return err
	}
	k, err := h.get(s.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err == nil {
		l := link(k)
		if m := h.at(lower(k)); m != nil {
			l.Lower = m.Attrs().Name
		}
		if err := s.Mine(l); err != nil {
			return err
		}
	}
	if s.Grouped(netip.IPv4Unspecified()) {
		if err := h.ungroup(s); err != nil {
			return err
		}
	}
	return h.DeleteLink(s.Name)
}
