package netlinkutil

import (
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Interface is a link in a container: what must be known to make it again. Two
// of the same link are deeply equal, also after a way through JSON.
type Interface struct {
	Name string `json:"name"`
	MTU  int    `json:"mtu"` // bytes
	Up   bool   `json:"up,omitempty"`
	// Addrs are those that somebody has set, with the length of their subnet, in
	// the order in which they were: none that the kernel made for itself or from
	// router advertisements, and none that runs out.
	Addrs []netip.Prefix `json:"addrs,omitempty"`
	// Routes are those by the link alone that somebody has set, of all tables but
	// local, in the kernel's order.
	Routes []InterfaceRoute `json:"routes,omitempty"`
	// Settings are the sysctls of the link that differ from those of a new one in
	// its netns: "ipv6/conf/disable_ipv6": "1". The first part is ipv4 or ipv6,
	// the second conf or neigh.
	Settings map[string]string `json:"settings,omitempty"`
}

// Found is an interface and the sandbox where it is.
type Found struct {
	Sandbox   string
	Interface Interface
}

// InterfaceRoute is a unicast route by a link in a container. The numbers are
// those of linux/rtnetlink.h.
type InterfaceRoute struct {
	To       netip.Prefix `json:"to"`
	Via      netip.Addr   `json:"via,omitzero"` // zero: everybody is on the link
	Source   netip.Addr   `json:"src,omitzero"` // zero: the kernel's choice
	OnLink   bool         `json:"onlink,omitempty"`
	Metric   int          `json:"metric,omitempty"`
	Table    int          `json:"table,omitempty"` // 0 stands for main
	Scope    int          `json:"scope,omitempty"` // RT_SCOPE_…, IPv4 only
	Protocol int          `json:"proto,omitempty"` // RTPROT_…
	TOS      int          `json:"tos,omitempty"`
	MTU      int          `json:"mtu,omitempty"` // bytes, 0: the link's
}

// Readdressing is a change of a container's address, and with it, where they are
// told, of its router; or, where the address stays, of the router of its default route
// alone.
type Readdressing struct {
	Was, Is             netip.Prefix
	RouterWas, RouterIs netip.Addr
}

// Of is an interface after the change.
func (c Readdressing) Of(i Interface) Interface {
	i.Addrs, i.Routes = slices.Clone(i.Addrs), slices.Clone(i.Routes)
	if at := slices.Index(i.Addrs, c.Was); at >= 0 {
		i.Addrs[at] = c.Is
	} else if !slices.Contains(i.Addrs, c.Is) {
		i.Addrs = slices.Insert(i.Addrs, 0, c.Is)
	}
	for at := range i.Routes {
		n := &i.Routes[at]
		if n.Source == c.Was.Addr() {
			n.Source = c.Is.Addr()
		}
		if c.RouterIs.IsValid() && n.Via == c.RouterWas && n.Via.IsValid() && (c.Was != c.Is || n.To.Bits() == 0) {
			n.Via = c.RouterIs
		}
	}
	return i
}

// RouteTo is a route as dockerd makes one, via a next hop or, without, to what is on
// the link.
func RouteTo(to netip.Prefix, via netip.Addr) InterfaceRoute {
	n := InterfaceRoute{To: to, Via: via, Protocol: unix.RTPROT_BOOT}
	if !via.IsValid() && to.Addr().Is4() {
		n.Scope = unix.RT_SCOPE_LINK
	}
	return n
}

// sandboxKey is the name of a container's netns: the first 12 digits of the
// sandbox's ID (moby, daemon/libnetwork/osl, GenerateKey). The others that dockerd
// has there are the host's (default) and those of swarm (ingress_sbox, lb_…,
// 1-…), which no network of a plugin's has to do with.
var sandboxKey = regexp.MustCompile(`^[0-9a-f]{12,64}$`)

// CheckSandbox tells why key, a path that dockerd has given, is no netns of a
// container in dir, dockerd's folder of those. /run and /var/run are the same.
func CheckSandbox(dir, key string) error {
	of := func(p string) string {
		if strings.HasPrefix(p, "/run/") {
			return "/var" + p
		}
		return p
	}
	in, name := path.Split(key)
	if in != path.Clean(in)+"/" || of(path.Clean(in)) != of(path.Clean(dir)) || !sandboxKey.MatchString(name) {
		return refuse(ErrBadSandbox, "%q is no network namespace of a container; dockerd has those in %s (if its exec-root is another, set SANDBOX_DIR to that folder)", key, dir)
	}
	return nil
}
