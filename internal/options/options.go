package options

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"underlay/internal/mode"
)

// Option is a row of a table: a key, the values it takes, and its use.
type Option struct {
	Key     string
	Wants   string // what a value must be, for the refusal and the manual
	Default string
	Use     string
}

// Network is what the -o options of a network say.
type Network struct {
	Parent     string    `json:"parent,omitempty"` // link name; "" for an isolated dummy parent
	Mode       mode.Mode `json:"mode"`
	MTU        int       `json:"mtu,omitempty"`        // bytes; 0 for the parent's
	BCQueueLen uint32    `json:"bcqueuelen,omitempty"` // packets; 0 for the kernel's default

	// VLAN is that of Parent which the containers join; 0 for Parent as it is.
	VLAN           int     `json:"vlan,omitempty"`
	HostAccess     bool    `json:"hostAccess,omitempty"`     // host and containers reach each other
	Routes         []Route `json:"routes,omitempty"`         // for each container
	NoDefaultRoute bool    `json:"noDefaultRoute,omitempty"` // never by this network
	Proxy          bool    `json:"proxy,omitempty"`          // the host answers ARP and NDP for its l3 containers
	DHCP           DHCP    `json:"dhcp,omitzero"`
}

// MTUKey is the label that Docker's own drivers take an MTU from.
const MTUKey = "com.docker.network.driver.mtu"

// The least MTUs: RFC 791 section 3.2 for IPv4, RFC 8200 section 5 for IPv6.
const (
	MinMTU4 = 68
	MinMTU6 = 1280
)

// The VLAN IDs that IEEE 802.1Q table 9-2 does not reserve.
const (
	minVLAN = 1
	maxVLAN = 4094
)

// nameSize is the longest link name: IFNAMSIZ less its final NUL.
const nameSize = 15

// option is a row and how its value is read into what is parsed.
type option[T any] struct {
	Option
	set func(*T, string) error
}

// raw is what was given, before one option is weighed against another.
type raw struct {
	parent                              string
	macvlanMode, ipvlanMode, ipvlanFlag string
	mtu, vlan                           int
	bcQueueLen                          uint32
	routes                              []Route
	hostAccess, noDefaultRoute          bool
	announce                            string
	dhcp                                DHCP
}

var networkTable = append([]option[raw]{
	{Option{"parent", "the name of a link of the host, such as eth0, or eth0.10 for VLAN 10 on eth0", "an isolated dummy link",
		"the NIC whose LAN the containers join"},
		func(r *raw, v string) error { r.parent = v; return linkName(v) }},
	{Option{"vlan", "a VLAN ID, 1 to 4094", "none",
		"which VLAN of the parent, as in `-o parent=bond0 -o vlan=10`"},
		func(r *raw, v string) (err error) { r.vlan, err = number(v, minVLAN, maxVLAN); return err }},
	{Option{"macvlan_mode", oneOf(mode.MacvlanNames), "bridge",
		"a macvlan sub-interface with a MAC of its own, in this mode"},
		func(r *raw, v string) error { r.macvlanMode = v; return among(mode.MacvlanNames, v) }},
	{Option{"ipvlan_mode", oneOf(mode.IPvlanNames), "l2, where ipvlan_flag is given",
		"an ipvlan sub-interface, which shares the parent's MAC, in this mode"},
		func(r *raw, v string) error { r.ipvlanMode = v; return among(mode.IPvlanNames, v) }},
	{Option{"ipvlan_flag", oneOf(mode.IPvlanFlags), "bridge",
		"who of one ipvlan parent reaches whom"},
		func(r *raw, v string) error { r.ipvlanFlag = v; return among(mode.IPvlanFlags, v) }},
	{Option{MTUKey, "a number of bytes, at least 68 (1280 with IPv6) and at most the parent's MTU", "the parent's",
		"the MTU of the containers' interfaces"},
		func(r *raw, v string) (err error) { r.mtu, err = number[int](v, MinMTU4, 65535); return err }},
	{Option{"bcqueuelen", "a number of packets, 1 to 65535", "the kernel's 1000",
		"macvlan: how many broadcasts may wait at the parent"},
		func(r *raw, v string) (err error) { r.bcQueueLen, err = number[uint32](v, 1, 65535); return err }},
	{Option{"host_access", "true or false", "false",
		"host and containers reach each other: macvlan bridge and ipvlan"},
		func(r *raw, v string) (err error) { r.hostAccess, err = boolean(v); return err }},
	{Option{"routes", "destinations with a comma between, each `via` a router of the subnet or on the link, such as 10.20.0.0/16 via 192.168.50.254, 10.30.0.0/16", "none",
		"routes in each container, beside the default route"},
		func(r *raw, v string) (err error) { r.routes, err = parseRoutes(v); return err }},
	{Option{"no_default_route", "true or false", "false",
		"the network never gives a container its default route"},
		func(r *raw, v string) (err error) { r.noDefaultRoute, err = boolean(v); return err }},
	{Option{"announce", "proxy", "nothing",
		"ipvlan l3 and l3s: the host answers ARP and NDP for its containers, so that the LAN finds them without a route"},
		func(r *raw, v string) error { r.announce = v; return among([]string{"proxy"}, v) }},
}, dhcpTable(func(r *raw) *DHCP { return &r.dhcp })...)

// Networks lists the -o options.
func Networks() []Option { return rows(networkTable) }

// ParseNetwork reads the -o options of a network.
func ParseNetwork(given map[string]string) (Network, error) {
	var r raw
	if err := parse("-o", networkTable, given, &r); err != nil {
		return Network{}, err
	}
	n := Network{
		Parent: r.parent, Mode: mode.Default, MTU: r.mtu, BCQueueLen: r.bcQueueLen, VLAN: r.vlan,
		HostAccess: r.hostAccess, Routes: r.routes, NoDefaultRoute: r.noDefaultRoute, Proxy: r.announce != "", DHCP: r.dhcp,
	}
	switch ipvlan := r.ipvlanMode != "" || r.ipvlanFlag != ""; {
	case ipvlan && r.macvlanMode != "":
		return Network{}, fmt.Errorf("-o macvlan_mode and -o %s exclude each other; give one of them", firstOf(r.ipvlanMode, "ipvlan_mode", "ipvlan_flag"))
	case ipvlan && r.bcQueueLen != 0:
		return Network{}, fmt.Errorf("-o bcqueuelen is for macvlan alone; leave it out with ipvlan")
	case ipvlan:
		n.Mode = mode.Mode{Kind: mode.IPvlan, Name: firstOf(r.ipvlanMode, r.ipvlanMode, "l2"), Flag: firstOf(r.ipvlanFlag, r.ipvlanFlag, "bridge")}
	case r.macvlanMode != "":
		n.Mode.Name = r.macvlanMode
	}
	return n, n.check()
}

// check refuses options that do not go with the mode or without a parent.
func (n *Network) check() error {
	if err := n.DHCP.check("-o"); err != nil {
		return err
	}
	viaRouter := slices.ContainsFunc(n.Routes, func(r Route) bool { return r.Via.IsValid() })
	switch {
	case n.DHCP.On() && n.Parent == "":
		return fmt.Errorf("-o dhcp needs -o parent: a network without one is on no LAN")
	case n.DHCP.On() && n.Mode.RoutesByLink():
		return fmt.Errorf("-o dhcp does not go with %v, whose containers are behind the host, where no server hears them; use ipvlan_mode=l2 or macvlan", n.Mode)
	case n.DHCP.MTU && n.MTU != 0:
		return fmt.Errorf("-o dhcp_mtu=true and -o %s=%d exclude each other; give one of them", MTUKey, n.MTU)
	case n.VLAN != 0 && n.Parent == "":
		return fmt.Errorf("-o vlan=%d needs the link that carries the VLAN; add -o parent, such as -o parent=eth0", n.VLAN)
	case n.HostAccess && n.Parent == "":
		return fmt.Errorf("-o host_access needs -o parent: a network without one is isolated, from the host, too")
	case n.HostAccess && n.Mode.Alone():
		return fmt.Errorf("-o host_access does not go with %v, which gives the parent to the container alone; use macvlan_mode=bridge or ipvlan", n.Mode)
	case n.HostAccess && n.Mode.Isolates():
		return fmt.Errorf("-o host_access does not go with %v, which keeps the links of a parent from each other, and the host would be one of them; use macvlan_mode=bridge or ipvlan", n.Mode)
	case len(n.Routes) > 0 && n.Parent == "":
		return fmt.Errorf("-o routes needs -o parent: a network without one is isolated, and leads nowhere")
	case viaRouter && n.Mode.RoutesByLink():
		return fmt.Errorf("-o routes: %v has no next hops, its containers route by the link; leave via out", n.Mode)
	case n.Proxy && n.Parent == "":
		return fmt.Errorf("-o announce=proxy needs -o parent: a network without one is on no LAN")
	case n.Proxy && !n.Mode.RoutesByLink():
		return fmt.Errorf("-o announce=proxy is for ipvlan_mode=l3 and l3s; %v containers answer for themselves; leave it out", n.Mode)
	}
	return nil
}

// SplitVLAN takes the name of a VLAN link apart: eth0.10 is VLAN 10 on eth0.
// ok is false for a name of another form, eth0.010 included, so that a VLAN has
// one name; a VLAN ID outside 1 to 4094 is an error.
func SplitVLAN(name string) (lower string, id int, ok bool, err error) {
	i := strings.LastIndexByte(name, '.')
	if i <= 0 {
		return "", 0, false, nil
	}
	id, err = strconv.Atoi(name[i+1:])
	if err != nil || strconv.Itoa(id) != name[i+1:] {
		return "", 0, false, nil
	}
	if id < minVLAN || id > maxVLAN {
		return "", 0, false, fmt.Errorf("parent %s: %d is no VLAN ID; it takes %d to %d", shown(name), id, minVLAN, maxVLAN)
	}
	return name[:i], id, true, nil
}

// VLANName is the name of the link that is made for a VLAN on a link: eth0.10,
// or one derived where that is too long for a name.
func VLANName(lower string, id int) string {
	name := lower + "." + strconv.Itoa(id)
	if len(name) > nameSize {
		sum := sha256.Sum256([]byte(lower))
		name = fmt.Sprintf("ul%x.%d", sum[:4], id)
	}
	return name
}

func rows[T any](table []option[T]) []Option {
	var rows []Option
	for _, o := range table {
		rows = append(rows, o.Option)
	}
	return rows
}

// parse reads what was given behind a flag, key by key. An empty value counts
// as left out, as in Docker's own drivers.
func parse[T any](flag string, table []option[T], given map[string]string, into *T) error {
	for _, key := range slices.Sorted(maps.Keys(given)) {
		i := slices.IndexFunc(table, func(o option[T]) bool { return o.Key == key })
		if i < 0 {
			return unknown(flag, key, rows(table))
		}
		if given[key] == "" {
			continue
		}
		if err := table[i].set(into, given[key]); err != nil {
			return fmt.Errorf("%s %s=%s: %w; it takes %s", flag, key, shown(given[key]), err, table[i].Wants)
		}
	}
	return nil
}

func unknown(flag, key string, known []Option) error {
	keys := make([]string, len(known))
	for i, o := range known {
		keys[i] = o.Key
	}
	return fmt.Errorf("unknown option %s %s; underlay knows %s", flag, shown(key), strings.Join(keys, ", "))
}

// shown is what a user gave, as it fits into a line.
func shown(v string) string {
	if v = clip(v); !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(v)
	}
	return v
}

func clip(v string) string {
	const most = 60
	if len(v) <= most {
		return v
	}
	end := most
	for end > 0 && !utf8.RuneStart(v[end]) {
		end--
	}
	return v[:end] + "…"
}

func oneOf(values []string) string {
	last := len(values) - 1
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

func among(values []string, v string) error {
	if !slices.Contains(values, v) {
		return fmt.Errorf("%q is not known", clip(v))
	}
	return nil
}

func boolean(v string) (bool, error) {
	return v == "true", among([]string{"true", "false"}, v)
}

func number[T int | uint32](v string, least, most T) (T, error) {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", clip(v))
	}
	if n < int64(least) || n > int64(most) {
		return 0, fmt.Errorf("%d is out of range", n)
	}
	return T(n), nil
}

// linkName checks a name as the kernel does (net/core/dev.c, dev_valid_name),
// which ends it at a NUL.
func linkName(v string) error {
	if len(v) > nameSize {
		return fmt.Errorf("a link name has at most %d bytes", nameSize)
	}
	if v == "." || v == ".." || strings.ContainsAny(v, "/:%\x00") || strings.ContainsFunc(v, unicode.IsSpace) {
		return fmt.Errorf("%q is no link name", clip(v))
	}
	return nil
}

// firstOf is then where given is not empty, and otherwise.
func firstOf(given, then, otherwise string) string {
	if given != "" {
		return then
	}
	return otherwise
}
