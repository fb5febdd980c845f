package netlinkutil

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linux/if_addr.h, IFA_PROTO (Linux 5.18).
const (
	ifaProto        = 11
	ifaprotKernelRA = 2
	ifaprotKernelLL = 3
)

// linux/rtnetlink.h
const (
	rtaCacheinfo = 12
	rtaVia       = 18
	rtaxMTU      = 2
)

// picture is the link as it is; ErrNotFound if it went meanwhile, so that half of
// it is not taken for all.
func (r *room) picture(k netlink.Link) (i Interface, err error) {
	a := k.Attrs()
	i = Interface{Name: a.Name, MTU: a.MTU, Up: a.Flags&net.FlagUp != 0}
	if i.Addrs, err = r.addresses(a); err != nil {
		return Interface{}, err
	}
	if i.Routes, err = r.routesBy(a.Index); err != nil {
		return Interface{}, err
	}
	i.Settings = r.settingsOf(a.Name)
	switch is, err := r.get(a.Name); {
	case err != nil:
		return Interface{}, err
	case is.Attrs().Index != a.Index:
		return Interface{}, NotFound("link", a.Name)
	}
	return i, nil
}

// addresses lists those of a link that somebody has set.
func (r *room) addresses(link *netlink.LinkAttrs) (ps []netip.Prefix, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msg := nl.NewIfAddrmsg(int(family))
		msg.Index = uint32(link.Index)
		of, err := dump(r, unix.RTM_GETADDR, unix.RTM_NEWADDR, func(b []byte, n int) (p netip.Prefix, ok bool) {
			as := raws(b, unix.SizeofIfAddrmsg)
			if as == nil {
				return p, false
			}
			m := nl.DeserializeIfAddrmsg(b)
			local, ok := as[unix.IFA_LOCAL]
			if !ok {
				local = as[unix.IFA_ADDRESS]
			}
			p = netip.PrefixFrom(exactly(local), int(m.Prefixlen))
			return p, n < most && m.Family == family && int(m.Index) == link.Index && p.IsValid() && !p.Addr().Is4In6() && !made(p.Addr(), as, uint32(m.Flags), link.HardwareAddr)
		}, msg)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, Explain(err, "", "listing the addresses of the container's link "+link.Name)
		}
		if family == unix.AF_INET6 { // of which the latest comes first
			slices.Reverse(of)
		}
		ps = append(ps, of...)
	}
	return ps, nil
}

// made tells whether the kernel, or whoever leases addresses for a time, will
// make the address again by himself.
func made(a netip.Addr, attributes map[uint16][]byte, flags uint32, mac net.HardwareAddr) bool {
	if b := attributes[unix.IFA_FLAGS]; len(b) == 4 {
		flags = binary.NativeEndian.Uint32(b)
	}
	if flags&unix.IFA_F_PERMANENT == 0 || a.Is6() && flags&unix.IFA_F_TEMPORARY != 0 {
		return true
	}
	if b := attributes[ifaProto]; len(b) == 1 && (b[0] == ifaprotKernelLL || b[0] == ifaprotKernelRA) {
		return true
	}
	if !a.Is6() || !a.IsLinkLocalUnicast() || len(mac) != 6 {
		return false
	}
	// Before Linux 5.18 it does not say so: RFC 4291 appendix A, RFC 7217. What
	// stands for ff:fe may be a device ID.
	id := a.As16()
	return flags&unix.IFA_F_STABLE_PRIVACY != 0 || (id[8]^2 == mac[0] || id[8] == mac[0]) && bytes.Equal(id[9:11], mac[1:3]) && bytes.Equal(id[13:], mac[3:])
}

// routesBy lists the routes by the link of that index that somebody has set.
func (r *room) routesBy(index int) (routes []InterfaceRoute, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}}
		of, err := dump(r, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, func(b []byte, before int) (n InterfaceRoute, ok bool) {
			as := raws(b, unix.SizeofRtMsg)
			if as == nil {
				return n, false
			}
			n, ok = interfaceRoute(nl.DeserializeRtMsg(b), as, index, family)
			// The kernel tells the default route first or last.
			return n, ok && (before < most || before < 2*most && n.To.Bits() == 0)
		}, msg, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, Explain(err, "", "listing the routes of the container")
		}
		routes = append(routes, of...)
	}
	return routes, nil
}

// exactly is an address as the kernel has it: one of IPv6 that stands for one of IPv4
// stays one of IPv6.
func exactly(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// interfaceRoute is false where a route is not by that link alone, or one that
// the kernel makes, or a router, or that goes by itself.
func interfaceRoute(m *nl.RtMsg, as map[uint16][]byte, index int, family uint8) (n InterfaceRoute, ok bool) {
	number := func(b []byte) int {
		if len(b) < 4 {
			return 0
		}
		return int(binary.NativeEndian.Uint32(b))
	}
	switch {
	case m.Family != family, m.Type != unix.RTN_UNICAST, m.Flags&unix.RTM_F_CLONED != 0, m.Src_len != 0:
		return n, false
	case m.Protocol == unix.RTPROT_KERNEL, m.Protocol == unix.RTPROT_REDIRECT, m.Protocol == unix.RTPROT_RA:
		return n, false
	case number(as[unix.RTA_OIF]) != index:
		return n, false
	case len(as[rtaCacheinfo]) >= 12 && number(as[rtaCacheinfo][8:]) != 0: // rta_expires
		return n, false
	}
	to := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	if a := exactly(as[unix.RTA_DST]); a.IsValid() {
		to = a
	}
	if n.To = netip.PrefixFrom(to, int(m.Dst_len)); !n.To.IsValid() {
		return n, false
	}
	n.Via, n.Source = exactly(as[unix.RTA_GATEWAY]), exactly(as[unix.RTA_PREFSRC])
	if via := as[rtaVia]; len(via) > 2 { // struct rtvia
		n.Via = exactly(via[2:])
	}
	n.OnLink = m.Flags&unix.RTNH_F_ONLINK != 0
	n.Metric, n.Table = number(as[unix.RTA_PRIORITY]), int(m.Table)
	if t := number(as[unix.RTA_TABLE]); t != 0 {
		n.Table = t
	}
	if n.Table == unix.RT_TABLE_LOCAL {
		return n, false
	}
	if n.Table == unix.RT_TABLE_MAIN {
		n.Table = 0
	}
	if family == unix.AF_INET {
		n.Scope = int(m.Scope)
	}
	n.Protocol, n.TOS = int(m.Protocol), int(m.Tos)
	n.MTU = number(raws(as[unix.RTA_METRICS], 0)[rtaxMTU])
	return n, true
}

// add makes a route, unless there is one to there already.
func (r *room) add(n InterfaceRoute, index int) error {
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len, msg.Tos = family(n.To.Addr().Is6()), uint8(n.To.Bits()), uint8(n.TOS)
	msg.Protocol, msg.Scope = uint8(n.Protocol), uint8(n.Scope)
	table := cmp.Or(n.Table, unix.RT_TABLE_MAIN)
	msg.Table = unix.RT_TABLE_UNSPEC // RTA_TABLE has more room
	if n.OnLink {
		msg.Flags |= unix.RTNH_F_ONLINK
	}
	data := []nl.NetlinkRequestData{msg,
		nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(table))),
		nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index)))}
	if n.To.Bits() > 0 {
		data = append(data, nl.NewRtAttr(unix.RTA_DST, n.To.Masked().Addr().AsSlice()))
	}
	switch {
	case n.Via.Is6() && n.To.Addr().Is4():
		via := binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
		data = append(data, nl.NewRtAttr(rtaVia, append(via, n.Via.AsSlice()...)))
	case n.Via.IsValid():
		data = append(data, nl.NewRtAttr(unix.RTA_GATEWAY, n.Via.AsSlice()))
	}
	if n.Source.IsValid() {
		data = append(data, nl.NewRtAttr(unix.RTA_PREFSRC, n.Source.AsSlice()))
	}
	if n.Metric != 0 {
		data = append(data, nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(n.Metric))))
	}
	if n.MTU != 0 {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		metrics.AddRtAttr(rtaxMTU, nl.Uint32Attr(uint32(n.MTU)))
		data = append(data, metrics)
	}
	if r.told == nil {
		s, err := told()
		if err != nil {
			return err
		}
		r.told = s
	}
	_, err := request(r.told, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, data...)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Check tells why nobody can have had such an interface.
func (i Interface) Check() error {
	if err := CheckName(i.Name); err != nil {
		return err
	}
	for name := range i.Settings {
		if !settingName.MatchString(name) {
			return refuse(ErrInvalid, "%q is no setting of a link", name)
		}
	}
	for _, p := range i.Addrs {
		if !p.IsValid() {
			return refuse(ErrInvalid, "link %s has an invalid address", i.Name)
		}
	}
	for _, n := range i.Routes {
		if !n.To.IsValid() {
			return refuse(ErrInvalid, "link %s has an invalid route", i.Name)
		}
	}
	return nil
}

// As is s with the name and the MTU, as far as the parent allows it, that it had
// in a container; an error where it cannot stand on parent.
func (s SubInterface) As(want Interface, parent Link) (SubInterface, error) {
	if err := want.Check(); err != nil {
		return s, err
	}
	if s.Alias == "" {
		return s, refuse(ErrInvalid, "link %s needs an alias that says whose it is", s.Name)
	}
	s.Parent = parent.Name
	s.MTU = min(cmp.Or(want.MTU, s.MTU, parent.MTU), parent.MTU)
	return s, s.Check(parent)
}

// Restore makes the sub-interface s in a sandbox, as want says: with that name,
// MTU (or the parent's, if that is less), settings, addresses, and routes, and
// up. If there is a link of the same alias in the sandbox, it adds what that
// lacks, and takes nothing away; so what was begun and not finished is finished
// by another call. A link of the alias in the host is moved into the sandbox.
// Where the container has a route to the same destination by another link, that
// one stays. ErrExists: the name is another link's in the sandbox. IPv6 is left
// out where the container's settings have it off.
func (h *Host) Restore(sandbox string, s SubInterface, want Interface) error {
	if err := CheckName(s.Parent); err != nil {
		return err
	}
	pk, err := h.parent(s.Parent)
	if err != nil {
		return err
	}
	parent := link(pk)
	if s, err = s.As(want, parent); err != nil {
		return err
	}
	_, err = enter(h, sandbox, func(r *room) (struct{}, error) {
		k, err := h.bring(r, s, want.Name, parent.Index)
		if err == nil {
			err = r.equip(k, s, want)
		}
		return struct{}{}, err
	})
	return err
}

// bring makes sure that there is a link with the alias of s in a container, and
// that it has that name there.
func (h *Host) bring(r *room, s SubInterface, name string, parent int) (netlink.Link, error) {
	k, err := r.link(s.Alias)
	if errors.Is(err, ErrNotFound) {
		for _, n := range []string{name, s.Name} {
			if err := r.clear(n, s); err != nil {
				return nil, err
			}
		}
		if err := h.send(r, s, parent); err != nil {
			return nil, err
		}
		if k, err = r.get(s.Name); err != nil {
			return nil, err
		}
		if err := r.nl.LinkSetAlias(k, s.Alias); err != nil {
			return nil, Explain(err, "", "setting the alias of the container's link "+s.Name)
		}
	}
	if err != nil {
		return nil, err
	}
	if k.Attrs().Name == name {
		return k, nil
	}
	err = r.nl.LinkSetName(k, name)
	if errors.Is(err, unix.EEXIST) {
		return nil, Taken(name)
	}
	if err != nil {
		return nil, Explain(err, "", "naming the container's link "+name)
	}
	return r.get(name)
}

// Taken is the error of a name that another link has in a container.
func Taken(name string) error {
	return refuse(ErrExists, "the container has another link %s meanwhile; rename or remove that", name)
}

// clear makes sure that no link has that name. One that s left unfinished is
// deleted.
func (r *room) clear(name string, s SubInterface) error {
	k, err := r.get(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	a := k.Attrs()
	if name != s.Name || a.Alias != "" || k.Type() != string(s.Mode.Kind) || a.Flags&net.FlagUp != 0 {
		return Taken(name)
	}
	return Explain(r.nl.LinkDel(k), "", "deleting the container's unfinished link "+name)
}

// send gets a link into a container, under the name that it has in the host, as
// kernels before Linux 6.14 mind the host's names when they make one elsewhere:
// one that is in the host, or a new one, which then is never seen there.
func (h *Host) send(r *room, s SubInterface, parent int) error {
	// A message names the container by a descriptor, which the kernel looks up when it
	// gets to it, be that after the message was given up: so it has one of its own.
	into := func(do func(fd int) error) error {
		return tell(func() error {
			fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return do(fd)
		})
	}
	old, err := h.get(s.Name)
	switch {
	case err == nil && old.Attrs().Alias == s.Alias:
		return Explain(into(func(fd int) error { return h.nl.LinkSetNsFd(old, fd) }), "", "moving link "+s.Name+" into its container")
	case err == nil:
		l, err := h.Link(s.Name)
		if err == nil && !s.Replaces(l) {
			return s.Refusal(unix.EEXIST, []Link{l})
		}
		if err == nil {
			err = h.DeleteLink(s.Name)
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	case !errors.Is(err, ErrNotFound):
		return err
	}
	k := s.link(parent)
	err = into(func(fd int) error {
		k.Attrs().Namespace = netlink.NsFd(fd)
		return h.nl.LinkAdd(k)
	})
	if err != nil {
		var errno unix.Errno
		if !errors.As(err, &errno) {
			return err
		}
		seen, _ := h.Links() // for the words only
		return s.Refusal(errno, seen)
	}
	return nil
}

// equip does to a link all but bring it.
func (r *room) equip(k netlink.Link, s SubInterface, want Interface) error {
	a := k.Attrs()
	if s.MAC != nil && !bytes.Equal(a.HardwareAddr, s.MAC) {
		if err := r.nl.LinkSetHardwareAddr(k, s.MAC); err != nil {
			return Explain(err, "", fmt.Sprintf("setting the MAC address of the container's link %s to %s", a.Name, s.MAC))
		}
	}
	if err := r.raiseMTU(k, s.MTU); err != nil {
		return err
	}
	unset := r.settle(a.Name, want.Settings)
	v6 := r.setting(r.of(a.Name, "ipv6/conf/disable_ipv6")) == "0"
	for _, p := range want.Addrs {
		if p.Addr().Is6() && !v6 {
			continue
		}
		ka := &netlink.Addr{IPNet: ipnet(p)}
		if p.Addr().Is6() {
			ka.Flags = unix.IFA_F_NODAD
		}
		err := r.nl.AddrAdd(k, ka)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return Explain(err, "", fmt.Sprintf("giving the container's link %s the address %s", a.Name, p))
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := r.nl.LinkSetUp(k); err != nil {
			return Explain(err, "", "setting the container's link "+a.Name+" up")
		}
	}
	return cmpErr(r.complete(want.Routes, a.Index, v6), unset)
}

// settle makes the settings, of which one may need another (addr_gen_mode=2, a
// stable_secret). An error does not keep the link from coming up.
func (r *room) settle(link string, want map[string]string) (err error) {
	for range 2 {
		err = nil
		for _, name := range slices.Sorted(maps.Keys(want)) {
			file := r.of(link, name)
			serr := r.set(file, want[name])
			if serr != nil && !errors.Is(serr, unix.ENOENT) { // the kernel is another, or has no IPv6
				err = fmt.Errorf("the container's link %s is there, but not its setting net/%s=%s: %w", link, file, want[name], serr)
			}
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// complete adds what is missing of the routes, in an order in which their gateways
// can be reached.
func (r *room) complete(want []InterfaceRoute, index int, v6 bool) error {
	have, err := r.routesBy(index)
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(want), func(n InterfaceRoute) bool {
		return slices.Contains(have, n) || n.To.Addr().Is6() && !v6
	})
	for len(missing) > 0 {
		before := len(missing)
		var last error
		missing = slices.DeleteFunc(missing, func(n InterfaceRoute) bool {
			err := r.add(n, index)
			if err != nil {
				last = Explain(err, "", "adding the container's route "+n.String())
			}
			return err == nil
		})
		if len(missing) == before {
			return last
		}
	}
	return nil
}

// String is "0.0.0.0/0 via 192.168.50.1 src 192.168.50.50 metric 100 table 7".
func (n InterfaceRoute) String() string {
	s := n.To.String()
	if n.Via.IsValid() {
		s += " via " + n.Via.String()
	}
	if n.OnLink {
		s += " onlink"
	}
	if n.Source.IsValid() {
		s += " src " + n.Source.String()
	}
	if n.Metric != 0 {
		s += fmt.Sprintf(" metric %d", n.Metric)
	}
	if n.Table != 0 {
		s += fmt.Sprintf(" table %d", n.Table)
	}
	return s
}
