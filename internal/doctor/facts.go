package doctor

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// Facts are what the checks look at. What could not be found out is said by the
// field of that name which ends in Unknown, why, and else empty.
type Facts struct {
	Version string // of this program

	Kinds        map[string]bool // which types of links the kernel has
	KindsUnknown string
	Release      string // the kernel's
	Machine      string // as its firmware names it: maker and product

	Links        []netlinkutil.Detail
	LinksUnknown string
	Parents      []Parent
	Sysctls      map[string]string // "ipv4/conf/all/arp_ignore" of all and of the parents

	Docker   Docker
	Daemon   Daemon
	Managers []Manager
}

// Parent is a link that networks are to stand on.
type Parent struct {
	Name     string
	Wireless bool
	Subnets  []netlinkutil.Subnet
	Gateways []Gateway
	LAN      LAN
}

// Gateway is one that machines behind a parent are to use.
type Gateway struct {
	Addr netip.Addr
	Of   string // "" for the host's own, else the Docker network that names it
}

// LAN is what has been heard on a parent.
type LAN struct {
	Unknown string // why it could not be asked

	// Heard is who has answered for which address, of the host's own and the
	// gateways.
	Heard map[netip.Addr][]string

	Asked   netip.Addr // what was asked for with another MAC, too; zero if there is nobody to ask
	Reached bool       // and that question was answered

	Routers     []netip.Addr // of IPv6, that advertise themselves
	DHCP        []Server
	DHCPUnknown string // why no server could be asked
	NoDHCPv6    string // why a network there has no DHCPv6 server; "" where none needs one
}

// Server is a DHCP server's offer.
type Server struct {
	Addr netip.Addr
	MTU  int // bytes, 0: not told
}

// Docker is what dockerd says.
type Docker struct {
	Unknown  string
	Version  string
	Networks []Network
	Plugins  []Plugin // underlay's
}

// Network is one of Docker's.
type Network struct {
	Name     string
	Ours     bool      // underlay's
	Driver   string    // "macvlan", "ipvlan", "underlay:latest"
	Parent   string    // the link it stands on
	Mode     mode.Mode // zero if it is not known
	Internal bool
	DHCPv4   bool           // its addresses are leased
	DHCPv6   bool           //
	Servers  bool           // it names those that it leases from
	Pools    []netip.Prefix // where its addresses come from: the range, else the subnet
	Gateways []netip.Addr
}

// Plugin is a managed plugin.
type Plugin struct {
	Name    string
	Enabled bool
}

// Daemon is what the plugin says, and its process shows.
type Daemon struct {
	Socket       string // "": none is there
	Unknown      string // why it does not answer, or which one to ask
	Version      string
	Waiting      []Waiting
	Conflicts    []Conflict
	Parents      []string // of its networks
	Capabilities []string // that it has; nil if they are not known
	Rebuild      bool     // it is to enter containers
	ProcessWhy   string   // why its process could not be looked at
	State        Folder
}

// Waiting is a parent that networks wait for.
type Waiting struct{ Parent, Reason string }

// Conflict is a container's address that another machine has too.
type Conflict struct {
	Addr netip.Addr
	MAC  string
	Last time.Time
}

// Folder is where a daemon keeps its state.
type Folder struct {
	Path     string // "" if it is not known
	InMemory bool
	Free     int64 // bytes
}

// Manager is a program that takes links for its own to configure.
type Manager struct {
	Name string // "systemd-networkd"
	Link string // that it has, or would have
	Why  string // the file that says so
}

// link is a link of the host, by its name.
func (f *Facts) link(name string) (netlinkutil.Detail, bool) {
	at := slices.IndexFunc(f.Links, func(l netlinkutil.Detail) bool { return !l.Elsewhere && l.Name == name })
	if at < 0 {
		return netlinkutil.Detail{}, false
	}
	return f.Links[at], true
}

// down are the names of a link and of those below it: of a VLAN, its parent, and so on
// to the lowest.
func (f *Facts) down(name string) (names []string) {
	for !slices.Contains(names, name) {
		names = append(names, name)
		if l, ok := f.isVLAN(name); ok && l.Lower != "" {
			name = l.Lower
		}
	}
	return names
}

// on lists the macvlan and ipvlan links of a parent, those of containers included.
func (f *Facts) on(parent string) (ls []netlinkutil.Detail) {
	for _, l := range f.Links {
		if l.Lower == parent && l.Kind != "vlan" {
			ls = append(ls, l)
		}
	}
	return ls
}

// ours tells of a link whether an underlay has made it.
func ours(l netlinkutil.Detail) bool { return strings.HasPrefix(l.Alias, "underlay ") }

// networks lists those that stand on a parent.
func (f *Facts) networks(parent string, ours bool) (ns []Network) {
	for _, n := range f.Docker.Networks {
		if n.Parent == parent && n.Ours == ours {
			ns = append(ns, n)
		}
	}
	return ns
}

// sharesMAC tells whether there are networks of underlay's on a parent, and none
// of them has MACs of its own.
func (f *Facts) sharesMAC(parent string) bool {
	ns := f.networks(parent, true)
	return len(ns) > 0 && !slices.ContainsFunc(ns, func(n Network) bool { return n.Mode.Kind != mode.IPvlan })
}

// sysctl is the number that holds on a link where the greater of its own and that
// of all links does (Documentation/networking/ip-sysctl.rst).
func (f *Facts) sysctl(link, setting string) int {
	family, name, _ := strings.Cut(setting, "/")
	number := func(link string) int {
		n, _ := strconv.Atoi(f.Sysctls[family+"/conf/"+link+"/"+name])
		return n
	}
	return max(number("all"), number(link))
}

// own names the link of the host that has a MAC, "" if none does.
func (f *Facts) own(mac string) string {
	for _, l := range f.Links {
		if l.MAC.String() == mac {
			return l.Name
		}
	}
	return ""
}
