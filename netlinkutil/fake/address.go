package fake

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"underlay/netlinkutil"
)

// route is a route as the kernel knows it.
type route struct {
	to     netip.Prefix
	metric int
	hops   []hop
	ours   bool       // of the protocol that Reach uses
	group  *group     // that has the hops; nil: they are the route's own
	source netip.Addr // RTA_PREFSRC, or zero
}

type hop struct {
	Hop
	link *link
}

// Hop is a next hop: netlinkutil's, by the name of its link.
type Hop struct {
	Link    string
	Gateway netip.Addr // zero: everybody is on the link
	OnLink  bool       // the gateway is, whatever the subnets say
}

// AddAddress gives a link an address with the length of its subnet, as
// somebody else would. The flags are IFA_F_…, linux/if_addr.h; there is
// IFA_F_PERMANENT if none is given. It panics where there is no such link.
func (k *Kernel) AddAddress(link string, p netip.Prefix, flags ...uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.must(link)
	a := netlinkutil.Address{Link: l.Index, Addr: p.Addr(), Prefix: p.Masked(), Flags: unix.IFA_F_PERMANENT}
	switch {
	case p.Addr().IsLoopback():
		a.Scope = unix.RT_SCOPE_HOST
	case p.Addr().IsLinkLocalUnicast():
		a.Scope = unix.RT_SCOPE_LINK
	}
	if len(flags) > 0 {
		a.Flags = 0
	}
	for _, f := range flags {
		a.Flags |= f
	}
	same := func(b netlinkutil.Address) bool { return b.Prefix == a.Prefix }
	if a.Addr.Is4() && slices.ContainsFunc(l.addresses, same) {
		a.Flags |= unix.IFA_F_SECONDARY
	}
	l.addresses = append(l.addresses, a)
	k.wheres.Tell(l.Index)
}

// DropAddress takes an address from a link.
func (k *Kernel) DropAddress(link string, a netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.must(link)
	l.addresses = slices.DeleteFunc(l.addresses, func(b netlinkutil.Address) bool { return b.Addr == a })
	k.unsource(a)
	k.wheres.Tell(l.Index)
}

// AddRoute puts a route into the main table, as somebody else would; more than
// one hop make it multipath. The metric 0 is the kernel's default, 1024 for
// IPv6. It panics where a hop's link is missing or down.
func (k *Kernel) AddRoute(to netip.Prefix, metric int, hops ...Hop) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := route{to: to.Masked(), metric: metric}
	if metric == 0 && to.Addr().Is6() {
		r.metric = 1024
	}
	for _, h := range hops {
		l := k.must(h.Link)
		if !l.Up {
			panic("fake: link " + h.Link + " is down")
		}
		r.hops = append(r.hops, hop{h, l})
	}
	k.routes = append(k.routes, r)
}

func (k *Kernel) must(name string) *link {
	l := k.find(name)
	if l == nil {
		panic("fake: no link " + name)
	}
	return l
}

// unroute is what becomes of the routes and neighbours over a link that is
// going down, and of its IPv6 addresses.
func (k *Kernel) unroute(l *link) {
	k.ungroup(l)
	l.neighbours = nil
	for i, r := range k.routes {
		k.routes[i].hops = slices.DeleteFunc(slices.Clone(r.hops), func(h hop) bool { return h.link == l })
	}
	k.routes = slices.DeleteFunc(k.routes, func(r route) bool { return len(r.hops) == 0 })
	before := len(l.addresses)
	l.addresses = slices.DeleteFunc(l.addresses, func(a netlinkutil.Address) bool { return a.Addr.Is6() })
	if len(l.addresses) != before {
		k.wheres.Tell(l.Index)
	}
}

func (k *Kernel) addressing() (a netlinkutil.Addressing) {
	for _, l := range k.links {
		if l.moved {
			continue
		}
		as := slices.Clone(l.addresses)
		slices.SortStableFunc(as, func(a, b netlinkutil.Address) int { return cmp.Compare(a.Scope, b.Scope) })
		a.Addresses = append(a.Addresses, slices.DeleteFunc(slices.Clone(as), func(a netlinkutil.Address) bool { return a.Addr.Is6() })...)
		for _, ad := range slices.Backward(as) { // IPv6's latest comes first
			if ad.Addr.Is6() {
				a.Addresses = append(a.Addresses, ad)
			}
		}
	}
	for _, r := range k.routes {
		n := netlinkutil.Route{To: r.to, Metric: r.metric}
		for _, h := range r.hops {
			n.Hops = append(n.Hops, netlinkutil.Hop{Link: h.link.Index, Gateway: h.Gateway, OnLink: h.OnLink})
		}
		a.Routes = append(a.Routes, n)
	}
	return a
}

// Subnets lists the subnets of a link, as Host's does.
func (k *Kernel) Subnets(link string) ([]netlinkutil.Subnet, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, index, err := k.addressingOf("Subnets", link)
	if err != nil {
		return nil, err
	}
	return a.Subnets(index), nil
}

// addressingOf is the host's addresses and routes, and the index of a link, for
// a verb that may be made to fail.
func (k *Kernel) addressingOf(op, link string) (a netlinkutil.Addressing, index int, err error) {
	if err := k.injected(op); err != nil {
		return a, 0, err
	}
	if err := netlinkutil.CheckName(link); err != nil {
		return a, 0, err
	}
	l := k.find(link)
	if l == nil {
		return a, 0, netlinkutil.NotFound("link", link)
	}
	return k.addressing(), l.Index, nil
}

// HostAddresses lists the host's own addresses, as Host's does.
func (k *Kernel) HostAddresses(link string) ([]netip.Addr, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, index, err := k.addressingOf("HostAddresses", link)
	if err != nil {
		return nil, err
	}
	return a.Hosts(index), nil
}

// DefaultLink is the link of a family's default route, as Host's is.
func (k *Kernel) DefaultLink(v6 bool) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.injected("DefaultLink"); err != nil {
		return "", err
	}
	index, err := k.addressing().Default(v6)
	if err != nil {
		return "", err
	}
	return k.name(index), nil
}

// Own tells what must not be given to a container, as Host's does.
func (k *Kernel) Own() (map[netip.Addr]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.injected("Own"); err != nil {
		return nil, err
	}
	return k.addressing().Own(k.name), nil
}

// Out is the name of the link by which the host sends to an address, "" for
// none: that of the longest prefix, of routes or of a link's subnet.
func (k *Kernel) Out(to netip.Addr) (link string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	bits := -1
	for _, l := range k.links {
		for _, a := range l.addresses {
			if l.Up && !l.moved && a.Prefix.Contains(to) && a.Prefix.Bits() > bits {
				link, bits = l.Name, a.Prefix.Bits()
			}
		}
	}
	for _, r := range k.routes {
		if r.to.Contains(to) && r.to.Bits() > bits {
			link, bits = r.hops[0].link.Name, r.to.Bits()
		}
	}
	return link
}

func (k *Kernel) name(index int) string {
	for _, l := range k.links {
		if l.Index == index {
			return l.Name
		}
	}
	return ""
}

func printAddress(b *strings.Builder, a netlinkutil.Address) {
	fmt.Fprintf(b, " %s/%d", a.Addr, a.Prefix.Bits())
	names := []struct {
		flag uint32
		name string
	}{
		{unix.IFA_F_SECONDARY, "secondary"}, // IFA_F_TEMPORARY for IPv6
		{unix.IFA_F_DEPRECATED, "deprecated"},
		{unix.IFA_F_DADFAILED, "dadfailed"},
		{unix.IFA_F_TENTATIVE, "tentative"},
	}
	for _, n := range names {
		if a.Flags&n.flag == 0 {
			continue
		}
		if n.flag == unix.IFA_F_TEMPORARY && a.Addr.Is6() {
			n.name = "temporary"
		}
		b.WriteString(" " + n.name)
	}
}

func (r route) print(b *strings.Builder) {
	b.WriteString(r.to.String())
	for i, h := range r.hops {
		if r.group != nil && i > 0 { // which has no traffic
			fmt.Fprintf(b, " or %s", h.link.Name)
			continue
		}
		if h.Gateway.IsValid() {
			fmt.Fprintf(b, " via %s", h.Gateway)
		}
		fmt.Fprintf(b, " on %s", h.link.Name)
		if h.OnLink {
			b.WriteString(" onlink")
		}
	}
	if r.source.IsValid() {
		fmt.Fprintf(b, " src %s", r.source)
	}
	if r.ours {
		b.WriteString(" of underlay")
	} else if r.metric != 0 {
		fmt.Fprintf(b, " metric %d", r.metric)
	}
	b.WriteByte('\n')
}
