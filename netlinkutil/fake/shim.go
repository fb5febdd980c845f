package fake

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// group is the nexthops of the routes of one shim: its own, and the parent's.
// The kernel takes each away when its link goes down or loses the carrier.
type group struct {
	shim, parent *link // nil where it is gone
}

// Sysctl sets one of the settings that host access minds:
// net.ipv4.conf.all.arp_ignore, net.ipv4.conf.all.proxy_arp,
// net.ipv6.conf.all.disable_ipv6, which counts for the shims made after it, and,
// once Lack has taken "nexthop" groups away, net.ipv4.conf.….rp_filter.
func (k *Kernel) Sysctl(name, value string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sysctls[name] = value
}

// EnsureShim makes the shim or puts it right, as Host's does.
func (k *Kernel) EnsureShim(s netlinkutil.Shim) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("EnsureShim"); err != nil {
		return err
	}
	if err := s.Check(); err != nil {
		return err
	}
	parent := k.find(s.Parent)
	if parent == nil {
		return netlinkutil.NotFound("parent", s.Parent)
	}
	for setting := range netlinkutil.ARPSettings {
		if err := netlinkutil.ARPRefusal(setting, k.sysctls["net.ipv4.conf.all."+setting]); err != nil && s.Neighbours() {
			return err
		}
	}
	l := k.find(s.Name)
	if l != nil {
		if err := s.Own(l.read()); err != nil {
			return err
		}
	}
	if l == nil || s.Unfinished(l.read()) {
		sub := netlinkutil.SubInterface{Name: s.Name, Parent: s.Parent, Mode: s.Mode, MAC: s.MAC, Alias: s.Alias}
		if _, err := k.addSubInterface(sub); err != nil {
			return err
		}
		l = k.find(s.Name)
		l.noIPv6 = k.sysctls["net.ipv6.conf.all.disable_ipv6"] == "1"
	}
	l.MTU = parent.MTU
	if s.MAC != nil {
		l.MAC = bytes.Clone(s.MAC)
	}
	if !l.Up {
		if err := k.setUp(s.Name); err != nil {
			if s.Alias == l.Alias {
				k.remove(l)
			}
			return err
		}
	}
	for _, p := range s.Addresses() {
		has := slices.ContainsFunc(l.addresses, func(a netlinkutil.Address) bool { return a.Addr == p.Addr() })
		if !has && !(l.noIPv6 && p.Addr().Is6()) {
			l.addresses = append(l.addresses, netlinkutil.Address{
				Link: l.Index, Addr: p.Addr(), Prefix: p.Masked(), Scope: unix.RT_SCOPE_LINK, Flags: unix.IFA_F_PERMANENT | unix.IFA_F_NODAD,
			})
			k.wheres.Tell(l.Index)
		}
	}
	return nil
}

// shim is the shim's link: nil, and ErrNotFound, where it is not there.
func (k *Kernel) shim(s netlinkutil.Shim) (*link, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	l := k.find(s.Name)
	if l == nil {
		return nil, netlinkutil.NotFound("link", s.Name)
	}
	return l, s.Own(l.read())
}

// Reach makes the host's route to a container, as Host's does.
func (k *Kernel) Reach(s netlinkutil.Shim, r netlinkutil.HostRoute) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("Reach"); err != nil {
		return err
	}
	if err := r.Check(); err != nil {
		return err
	}
	l, err := k.shim(s)
	if err != nil {
		return err
	}
	grouped := s.Grouped(r.Addr)
	if grouped && k.lacks["nexthop"] {
		rpFilter := func(link string) string { return k.sysctls["net.ipv4.conf."+link+".rp_filter"] }
		if err := netlinkutil.Ungrouped(s, rpFilter); err != nil {
			return err
		}
		grouped = false
	}
	metric := 0
	if r.Addr.Is6() {
		metric = 1024
	}
	to := netip.PrefixFrom(r.Addr, r.Addr.BitLen())
	same := func(o route) bool { return o.to == to && o.metric == metric }
	i := slices.IndexFunc(k.routes, same)
	switch {
	case r.Addr.Is6() && l.noIPv6:
		return netlinkutil.NoIPv6(s, r.Addr)
	case !l.Up, grouped && !l.carrier():
		return netlinkutil.Down(s, r.Addr)
	case i >= 0 && !k.routes[i].ours:
		return netlinkutil.Foreign(r.Addr)
	case r.Source.IsValid() && !k.has(r.Source):
		return netlinkutil.NoSource(r)
	}
	if r.MAC != nil && s.Neighbours() {
		if l.neighbours == nil {
			l.neighbours = map[netip.Addr]net.HardwareAddr{}
		}
		l.neighbours[r.Addr] = bytes.Clone(r.MAC)
	}
	n := route{to: to, metric: metric, ours: true, source: r.Source, hops: []hop{{Hop{Link: l.Name}, l}}}
	if grouped {
		n.group = k.grouped(l)
		n.hops = nil
	}
	if i >= 0 {
		k.routes[i] = n
	} else {
		k.routes = append(k.routes, n)
	}
	k.regroup()
	return nil
}

// has tells whether the host has an address.
func (k *Kernel) has(a netip.Addr) bool {
	return slices.ContainsFunc(k.links, func(l *link) bool {
		return !l.moved && slices.ContainsFunc(l.addresses, func(b netlinkutil.Address) bool { return a == b.Addr })
	})
}

// grouped makes the group of a shim whole.
func (k *Kernel) grouped(shim *link) *group {
	i := slices.IndexFunc(k.groups, func(g *group) bool { return g.shim == shim || g.parent == shim.lower })
	if i < 0 {
		k.groups = append(k.groups, &group{})
		i = len(k.groups) - 1
	}
	g := k.groups[i]
	g.shim, g.parent = shim, shim.lower
	return g
}

// regroup brings the hops of routes in line with their groups; a group without
// nexthops is gone, and its routes with it.
func (k *Kernel) regroup() {
	gone := func(g *group) bool { return g.shim == nil && g.parent == nil }
	for i, r := range k.routes {
		if r.group == nil {
			continue
		}
		k.routes[i].hops = nil
		for _, l := range []*link{r.group.shim, r.group.parent} {
			if l != nil {
				k.routes[i].hops = append(k.routes[i].hops, hop{Hop{Link: l.Name}, l})
			}
		}
	}
	k.routes = slices.DeleteFunc(k.routes, func(r route) bool { return r.group != nil && gone(r.group) })
	k.groups = slices.DeleteFunc(k.groups, gone)
}

// ungroup is what becomes of the groups when a link goes down: its nexthops go,
// and, as they lose the carrier, those of the links on it.
func (k *Kernel) ungroup(l *link) {
	off := func(m *link) bool { return m != nil && (m == l || m.lower == l) }
	for _, g := range k.groups {
		if off(g.shim) {
			g.shim = nil
		}
		if off(g.parent) {
			g.parent = nil
		}
	}
	k.regroup()
}

// unsource is what becomes of the routes with a source that the host has no
// more: of IPv4 they go, of IPv6 they keep no source.
func (k *Kernel) unsource(a netip.Addr) {
	if k.has(a) {
		return
	}
	k.routes = slices.DeleteFunc(k.routes, func(r route) bool { return r.source == a && a.Is4() })
	for i, r := range k.routes {
		if r.source == a {
			k.routes[i].source = netip.Addr{}
		}
	}
}

// Unreach takes the route to a container away, as Host's does.
func (k *Kernel) Unreach(s netlinkutil.Shim, addr netip.Addr) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("Unreach"); err != nil {
		return err
	}
	if err := s.Check(); err != nil {
		return err
	}
	l, parent := k.find(s.Name), k.find(s.Parent)
	k.routes = slices.DeleteFunc(k.routes, func(r route) bool {
		return r.ours && r.to.Addr() == addr && k.by(r, l, parent)
	})
	if l != nil {
		delete(l.neighbours, addr)
	}
	return nil
}

// by tells whether a route goes by a shim or its group. One of a group needs no
// shim.
func (k *Kernel) by(r route, shim, parent *link) bool {
	if r.group != nil {
		return parent != nil && (r.group.parent == parent || r.group.shim != nil && r.group.shim.lower == parent)
	}
	return shim != nil && r.hops[0].link == shim
}

// Reached lists the routes to containers, as Host's does.
func (k *Kernel) Reached(s netlinkutil.Shim) ([]netlinkutil.HostRoute, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.injected("Reached"); err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	l := k.find(s.Name)
	if l == nil {
		return nil, nil
	}
	var rs []netlinkutil.HostRoute
	for _, r := range k.routes {
		if r.ours && k.by(r, l, l.lower) && (r.group == nil || len(r.hops) == 2) {
			rs = append(rs, netlinkutil.HostRoute{Addr: r.to.Addr(), Source: r.source, MAC: bytes.Clone(l.neighbours[r.to.Addr()])})
		}
	}
	slices.SortFunc(rs, func(a, b netlinkutil.HostRoute) int { return a.Addr.Compare(b.Addr) })
	return rs, nil
}

// DeleteShim deletes the shim and its routes, as Host's does.
func (k *Kernel) DeleteShim(s netlinkutil.Shim) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("DeleteShim"); err != nil {
		return err
	}
	if err := s.Check(); err != nil {
		return err
	}
	l, parent := k.find(s.Name), k.find(s.Parent)
	if l != nil {
		if err := s.Mine(l.read()); err != nil {
			return err
		}
	}
	if parent != nil && s.Mode.Kind == mode.IPvlan {
		for _, g := range k.groups {
			if g.parent == parent || g.shim != nil && g.shim.lower == parent {
				g.shim, g.parent = nil, nil
			}
		}
		k.regroup()
	}
	if l != nil {
		k.remove(l)
	}
	return nil
}

// AddressChanges calls each with the links whose addresses change, as Host's
// does.
func (k *Kernel) AddressChanges(ctx context.Context, each func(index int)) error {
	k.mu.Lock()
	err := k.injected("AddressChanges")
	k.mu.Unlock()
	if err != nil {
		return err
	}
	return k.wheres.Listen(ctx, each)
}

func (k *Kernel) printNeighbours(b *strings.Builder) {
	head := "neighbours:\n"
	for _, l := range k.links {
		for _, a := range slices.SortedFunc(maps.Keys(l.neighbours), netip.Addr.Compare) {
			fmt.Fprintf(b, "%s%s on %s is %s\n", head, a, l.Name, l.neighbours[a])
			head = ""
		}
	}
}
