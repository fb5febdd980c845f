package netlinkutil

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"underlay/internal/mode"
)

// Shim is the host's own sub-interface on a parent, by which host and
// containers reach each other: macvlan and ipvlan keep a parent and its
// sub-interfaces apart. Containers route the host's addresses by its link-local
// ones, and it answers ARP for nothing else: the LAN keeps to the parent's MAC
// address.
type Shim struct {
	Name       string
	Parent     string
	Mode       mode.Mode        // macvlan bridge, or any of ipvlan with the flag bridge
	MAC        net.HardwareAddr // of macvlan; nil: the kernel's choice, or ipvlan
	LinkLocal4 netip.Addr       // in 169.254.0.0/16; zero: none
	LinkLocal6 netip.Addr       // in fe80::/64; zero: none
	Alias      string           // whose it is: only a link with an equal one is changed or deleted
}

// HostRoute is how the host reaches one container.
type HostRoute struct {
	Addr   netip.Addr
	Source netip.Addr       // the host's own, that the container sees; zero: the kernel's choice
	MAC    net.HardwareAddr // of a permanent neighbour, so that the host need not ask; nil: none
}

// String is "192.168.50.50 src 192.168.50.2 mac 02:42:c0:a8:32:32".
func (r HostRoute) String() string {
	s := r.Addr.String()
	if r.Source.IsValid() {
		s += " src " + r.Source.String()
	}
	if r.MAC != nil {
		s += " mac " + r.MAC.String()
	}
	return s
}

// The subnets of link-local addresses: RFC 3927, RFC 4291 section 2.5.6.
var (
	linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")
	linkLocal6 = netip.MustParsePrefix("fe80::/64")
)

// Addresses lists those of the shim, with the length of what they have on the
// link: IPv4 alone, as it is to be no second way to the LAN.
func (s Shim) Addresses() (ps []netip.Prefix) {
	if s.LinkLocal4.IsValid() {
		ps = append(ps, netip.PrefixFrom(s.LinkLocal4, 32))
	}
	if s.LinkLocal6.IsValid() {
		ps = append(ps, netip.PrefixFrom(s.LinkLocal6, 64))
	}
	return ps
}

// Check tells why there can be no such shim, as far as can be told from it
// alone.
func (s Shim) Check() error {
	if err := CheckName(s.Name); err != nil {
		return err
	}
	switch {
	case s.Mode != mode.Default && (s.Mode.Kind != mode.IPvlan || s.Mode.Flag != "bridge" || !slices.Contains(mode.All(), s.Mode)):
		return refuse(ErrInvalid, "the host cannot reach containers of mode %q; it can in macvlan bridge and ipvlan with the flag bridge", s.Mode)
	case s.LinkLocal4.IsValid() && !linkLocal4.Contains(s.LinkLocal4):
		return refuse(ErrInvalid, "%s is no link-local address; it is one of %s", s.LinkLocal4, linkLocal4)
	case s.LinkLocal6.IsValid() && !linkLocal6.Contains(s.LinkLocal6):
		return refuse(ErrInvalid, "%s is no link-local address; it is one of %s", s.LinkLocal6, linkLocal6)
	case s.Alias == "":
		return refuse(ErrInvalid, "link %s needs an alias that says whose it is", s.Name)
	}
	return CheckName(s.Parent)
}

// sub is the shim as a sub-interface.
func (s Shim) sub() SubInterface {
	return SubInterface{Name: s.Name, Parent: s.Parent, Mode: s.Mode, MAC: s.MAC, Alias: s.Alias}
}

// Unfinished tells whether l, which has the shim's name, is one that nobody has
// signed yet, as after a kill.
func (s Shim) Unfinished(l Link) bool {
	return l.Alias == "" && !l.Up && l.Kind == string(s.Mode.Kind) && l.Lower == s.Parent
}

// Own is ErrExists where l, which has the shim's name, is something else.
func (s Shim) Own(l Link) error {
	if s.Unfinished(l) || l.Alias == s.Alias && l.Kind == string(s.Mode.Kind) && l.Lower == s.Parent {
		return nil
	}
	return refuse(ErrExists, "link %s exists already (%s) and is not underlay's way to the containers on %s; rename or remove it", s.Name, describe(l), s.Parent)
}

// Mine is ErrExists where l, which has the shim's name, may not be deleted.
func (s Shim) Mine(l Link) error {
	if l.Alias == s.Alias || s.Unfinished(l) {
		return nil
	}
	return s.Own(l)
}

// Neighbours tells whether the host speaks ARP and NDP on the shim.
func (s Shim) Neighbours() bool { return !s.Mode.RoutesByLink() }

// Grouped tells whether routes of IPv4 go by a group of nexthops, that of the
// shim and that of the parent. What an ipvlan l2 container sends to the host
// comes in by the parent (drivers/net/ipvlan/ipvlan_core.c,
// ipvlan_xmit_mode_l2), where a strict rp_filter drops it unless the route back
// may use the parent too (fib_info_nh_uses_dev). The group has one bucket, and
// that is the shim's: nothing ever goes out by the parent.
func (s Shim) Grouped(addr netip.Addr) bool {
	return s.Mode.Kind == mode.IPvlan && s.Mode.Name == "l2" && addr.Is4()
}

// Ungrouped is the error of a kernel without such groups, where the parent's
// rp_filter is strict: the greater of its own and that of all links is 1
// (Documentation/networking/ip-sysctl.rst). The route goes by the shim alone
// where it is not.
func Ungrouped(s Shim, rpFilter func(link string) string) error {
	if max(rpFilter("all"), rpFilter(s.Parent)) == "1" { // a digit
		return refuse(ErrUnsupported, "host access: with %s and net.ipv4.conf.%s.rp_filter=1, Linux 5.12 or later is needed; set net.ipv4.conf.all.rp_filter=2, or use macvlan", s.Mode, s.Parent)
	}
	return nil
}

// Check tells why there can be no such route.
func (r HostRoute) Check() error {
	switch {
	case !r.Addr.IsValid(), r.Addr.Zone() != "", r.Addr.Is4In6():
		return refuse(ErrInvalid, "%s is no address of a container", r.Addr)
	case r.Source.IsValid() && r.Source.Is4() != r.Addr.Is4():
		return refuse(ErrInvalid, "%s and %s are not of one family", r.Addr, r.Source)
	case r.MAC != nil && (len(r.MAC) != 6 || r.MAC[0]&1 != 0 || bytes.Equal(r.MAC, make([]byte, 6))):
		return refuse(ErrInvalid, "%s is no MAC address of a single host", r.MAC)
	}
	return nil
}

// ARPSettings is the settings of all links, each with the least value, with
// which a shim does not do where it hears ARP (net/ipv4/arp.c, arp_process).
var ARPSettings = map[string]int{"arp_ignore": 2, "proxy_arp": 1}

// ARPRefusal is the error of a host that has one of the ARPSettings, nil if the
// value is below that.
func ARPRefusal(setting, value string) error {
	v, err := strconv.Atoi(value)
	if err != nil || v < ARPSettings[setting] {
		return nil
	}
	why := "it would not answer its containers"
	if setting == "proxy_arp" {
		why = "it would answer the LAN for others by a second MAC address"
	}
	return refuse(ErrUnsupported, "host access: this host has net.ipv4.conf.all.%s=%s, with which %s; set that to 0, and %[1]s on the NICs that need it (net.ipv4.conf.eth0.%[1]s=%[2]s)", setting, value, why)
}

// Foreign is the error of a route that somebody else has made.
func Foreign(addr netip.Addr) error {
	return refuse(ErrExists, "a route to %s exists already and is not underlay's; remove it (ip route del %[1]s), or give the container another address", addr)
}

// NoSource is the error of a route whose source is not the host's.
func NoSource(r HostRoute) error {
	return refuse(ErrNoSource, "reaching %s: %s is no address of this host", r.Addr, r.Source)
}

// NoIPv6 is the error of an IPv6 route where the host or the shim has none.
func NoIPv6(s Shim, addr netip.Addr) error {
	return refuse(ErrUnsupported, "reaching %s: IPv6 is off on link %s; turn it on (net.ipv6.conf.all.disable_ipv6=0, MTU at least 1280), or make the network without IPv6", addr, s.Name)
}

// Down is the error of a route by a link that is down.
func Down(s Shim, addr netip.Addr) error {
	return refuse(ErrDown, "reaching %s: %s or %s is down or has no carrier; set it up or plug it in", addr, s.Name, s.Parent)
}

func (s Shim) doing(r HostRoute) string { return fmt.Sprintf("reaching %s by link %s", r.Addr, s.Name) }
