package options

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Conflict is how a pool guards against addresses that others on the LAN have.
type Conflict string

// The ways of a pool.
const (
	Probe  Conflict = "probe"  // ask the LAN before an address is given out
	Listen Conflict = "listen" // only heed what is heard on the LAN
	Off    Conflict = "off"
)

// What a pool has where its options say nothing. The 4 to 7 s that RFC 5227
// section 1.1 would have a host wait are too long for the start of a container;
// a host that is on answers within milliseconds.
const (
	defaultRest       = 5 * time.Minute
	defaultProbeWait  = 200 * time.Millisecond
	defaultProbeAhead = 8
)

// maxEntries is the most that exclude, and that reserve, may list.
const maxEntries = 4096

// Pool is what the --ipam-opt options of a pool say. Docker sends them with the
// request for a network's IPv4 pool and again with that for its IPv6 pool, so
// the lists hold addresses of both families.
type Pool struct {
	Parent     string                  `json:"parent,omitempty"`  // the link that the subnet is read from; "" where not said
	Subnets    []netip.Prefix          `json:"subnets,omitempty"` // which of the link's subnets, at most one a family; see Subnet
	Private    bool                    `json:"private,omitempty"` // from the default pools, and from no link
	Exclude    []Range                 `json:"exclude,omitempty"` // ascending, with gaps between them, IPv4 first; see Excluded
	Conflict   Conflict                `json:"conflict"`
	Reserve    map[string][]netip.Addr `json:"reserve,omitempty"` // by container name, at most one a family; see Reserved
	Rest       time.Duration           `json:"rest"`              // from an address's release to its next holder; 0 for none
	ProbeWait  time.Duration           `json:"probe_wait"`        // from a probe to the conclusion that nobody answers
	ProbeAhead int                     `json:"probe_ahead"`       // free addresses that are kept probed
	DHCP       DHCP                    `json:"dhcp,omitzero"`
}

// Range is a run of addresses of one family, both ends included.
type Range struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Contains says whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.BitLen() == a.BitLen() && !a.Less(r.First) && !r.Last.Less(a)
}

func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Subnet returns the subnet that was named for a family, or the zero Prefix.
func (p *Pool) Subnet(v6 bool) netip.Prefix {
	for _, s := range p.Subnets {
		if s.Addr().Is6() == v6 {
			return s
		}
	}
	return netip.Prefix{}
}

// Excluded says whether no container may have an address.
func (p *Pool) Excluded(a netip.Addr) bool {
	_, ok := p.excluding(a)
	return ok
}

func (p *Pool) excluding(a netip.Addr) (Range, bool) {
	i, ok := slices.BinarySearchFunc(p.Exclude, a, func(r Range, a netip.Addr) int {
		switch {
		case r.Last.Less(a):
			return -1
		case a.Less(r.First):
			return 1
		}
		return 0
	})
	if !ok {
		return Range{}, false
	}
	return p.Exclude[i], true
}

// Reserved returns the address of a family that is kept for a container name.
func (p *Pool) Reserved(name string, v6 bool) (netip.Addr, bool) {
	for _, a := range p.Reserve[name] {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

var poolTable = append([]option[Pool]{
	{Option{"parent", "the name of a link of the host, such as eth0, or eth0.10 for VLAN 10 on eth0", "the link of the default route",
		"the NIC whose subnet and gateway the pool takes"},
		func(p *Pool, v string) error { p.Parent = v; return linkName(v) }},
	{Option{"subnet", "a subnet such as 192.168.50.0/24, or one of each family with a comma between", "the NIC's only one",
		"which of the NIC's subnets"},
		func(p *Pool, v string) (err error) { p.Subnets, err = subnets(v); return err }},
	{Option{"pool", "the word private", "a subnet of the NIC",
		"a subnet of underlay's default pools, for a network without a NIC"},
		func(p *Pool, v string) error { p.Private = true; return among([]string{"private"}, v) }},
	{Option{"exclude", "addresses, ranges and subnets, such as 192.168.50.5,192.168.50.10-192.168.50.19,192.168.50.64/26", "nothing",
		"what no container is given"},
		func(p *Pool, v string) (err error) { p.Exclude, err = ranges(v); return err }},
	{Option{"conflict", oneOf([]string{string(Probe), string(Listen), string(Off)}), string(Probe),
		"whether the LAN is asked who has an address before it is given out, only listened to, or neither"},
		func(p *Pool, v string) error {
			p.Conflict = Conflict(v)
			return among([]string{string(Probe), string(Listen), string(Off)}, v)
		}},
	{Option{"reserve", "names of containers with addresses, such as db=192.168.50.20,web=192.168.50.21", "nothing",
		"addresses for these names alone, and for whom is started with --ip"},
		func(p *Pool, v string) (err error) { p.Reserve, err = reservations(v); return err }},
	{Option{"rest", "a time such as 90s, 5m or 1h, at most 24h, or 0", "5m",
		"how long an address that was freed waits before another container may have it"},
		func(p *Pool, v string) (err error) { p.Rest, err = span(v, 0, 24*time.Hour); return err }},
	{Option{"probe_wait", "a time from 20ms to 2s", "200ms",
		"how long an answer to a probe is waited for"},
		func(p *Pool, v string) (err error) {
			p.ProbeWait, err = span(v, 20*time.Millisecond, 2*time.Second)
			return err
		}},
	{Option{"probe_ahead", "a number of addresses, 0 to 64", "8",
		"how many free addresses are probed before anybody asks"},
		func(p *Pool, v string) (err error) { p.ProbeAhead, err = number(v, 0, 64); return err }},
}, dhcpTable(func(p *Pool) *DHCP { return &p.DHCP })...)

// Pools lists the --ipam-opt options.
func Pools() []Option { return rows(poolTable) }

// ParsePool reads the --ipam-opt options of a pool.
func ParsePool(given map[string]string) (Pool, error) {
	p := Pool{Conflict: Probe, Rest: defaultRest, ProbeWait: defaultProbeWait, ProbeAhead: defaultProbeAhead}
	if err := parse("--ipam-opt", poolTable, given, &p); err != nil {
		return Pool{}, err
	}
	if err := p.DHCP.check("--ipam-opt"); err != nil {
		return Pool{}, err
	}
	if p.DHCP.On() && p.Private {
		return Pool{}, errors.New("--ipam-opt pool=private and --ipam-opt dhcp exclude each other: a network without a NIC has no server")
	}
	if key := p.decided(); key != "" {
		return Pool{}, fmt.Errorf("--ipam-opt %s does not go with dhcp: the server decides who gets what; tell it there", key)
	}
	if p.Private && (p.Parent != "" || p.Subnets != nil) {
		return Pool{}, fmt.Errorf("--ipam-opt pool=private and --ipam-opt %s exclude each other; give one of them", firstOf(p.Parent, "parent", "subnet"))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Reserve)) {
		for _, a := range p.Reserve[name] {
			if r, ok := p.excluding(a); ok {
				return Pool{}, fmt.Errorf("--ipam-opt exclude=%s covers %s, which reserve keeps for %s; leave it out of one of them", r, a, clip(name))
			}
		}
	}
	return p, nil
}

// decided is an option that says of leased addresses what their server decides.
func (p *Pool) decided() string {
	leased := func(a netip.Addr) bool { return p.DHCP.Leased(a.Is6()) }
	if slices.ContainsFunc(p.Exclude, func(r Range) bool { return leased(r.First) }) {
		return "exclude"
	}
	for _, addrs := range p.Reserve {
		if slices.ContainsFunc(addrs, leased) {
			return "reserve"
		}
	}
	return ""
}

// Key tells pools of different options apart: "" where none has a value, else
// eight hex digits. It is part of pool IDs that later versions must make again
// from the same options, so it may never change.
func Key(given map[string]string) string {
	h, some := sha256.New(), false
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if given[key] != "" {
			some = true
			fmt.Fprintf(h, "%s=%s\x00", key, given[key])
		}
	}
	if !some {
		return ""
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:4])
}

// entries splits a list at its commas, with blanks around them or not.
func entries(v string) ([]string, error) {
	if n := strings.Count(v, ",") + 1; n > maxEntries {
		return nil, fmt.Errorf("%d entries are more than %d; write neighbours as one range or subnet", n, maxEntries)
	}
	list := strings.Split(v, ",")
	for i, e := range list {
		if list[i] = strings.TrimSpace(e); list[i] == "" {
			return nil, errors.New("an entry is empty")
		}
	}
	return list, nil
}

func subnets(v string) ([]netip.Prefix, error) {
	list, err := entries(v)
	if err != nil {
		return nil, err
	}
	var found []netip.Prefix
	for _, e := range list {
		s, err := prefix(e)
		if err != nil {
			return nil, err
		}
		for _, other := range found {
			if other.Addr().BitLen() == s.Addr().BitLen() {
				return nil, fmt.Errorf("%s and %s are of one family", other, s)
			}
		}
		found = append(found, s)
	}
	slices.SortFunc(found, netip.Prefix.Compare)
	return found, nil
}

func ranges(v string) ([]Range, error) {
	list, err := entries(v)
	if err != nil {
		return nil, err
	}
	found := make([]Range, len(list))
	for i, e := range list {
		if found[i], err = parseRange(e); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(found, func(a, b Range) int { return cmp.Or(a.First.Compare(b.First), a.Last.Compare(b.Last)) })
	merged := found[:1]
	for _, r := range found[1:] {
		last := &merged[len(merged)-1]
		switch {
		case !last.Contains(r.First) && last.Last.Next() != r.First:
			merged = append(merged, r)
		case last.Last.Less(r.Last):
			last.Last = r.Last
		}
	}
	return merged, nil
}

func parseRange(e string) (r Range, err error) {
	if strings.Contains(e, "/") {
		p, err := prefix(e)
		return Range{p.Addr(), lastOf(p)}, err
	}
	first, last, ranged := strings.Cut(e, "-")
	if r.First, err = address(strings.TrimSpace(first)); err != nil {
		return r, err
	}
	if r.Last = r.First; ranged {
		if r.Last, err = address(strings.TrimSpace(last)); err != nil {
			return r, err
		}
	}
	if r.First.BitLen() != r.Last.BitLen() {
		return r, fmt.Errorf("the ends of %s are of two families", r)
	}
	if r.Last.Less(r.First) {
		return r, fmt.Errorf("range %s ends before it begins", r)
	}
	return r, nil
}

// containerName is what Docker accepts as one (moby, daemon/names), and a
// single letter besides.
var containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func reservations(v string) (map[string][]netip.Addr, error) {
	list, err := entries(v)
	if err != nil {
		return nil, err
	}
	found, holder := map[string][]netip.Addr{}, map[netip.Addr]string{}
	for _, e := range list {
		name, text, ok := strings.Cut(e, "=")
		if !ok {
			return nil, fmt.Errorf("%q is no name=address", clip(e))
		}
		if !containerName.MatchString(name) {
			return nil, fmt.Errorf("%q is no name of a container", clip(name))
		}
		a, err := address(text)
		if err != nil {
			return nil, err
		}
		if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return nil, fmt.Errorf("%s is no address of a host on a LAN", a)
		}
		if other, taken := holder[a]; taken {
			return nil, fmt.Errorf("%s is reserved twice, for %s and for %s", a, clip(other), clip(name))
		}
		for _, other := range found[name] {
			if other.BitLen() == a.BitLen() {
				return nil, fmt.Errorf("%s has two addresses of one family, %s and %s", clip(name), other, a)
			}
		}
		holder[a] = name
		found[name] = append(found[name], a)
		slices.SortFunc(found[name], netip.Addr.Compare)
	}
	return found, nil
}

// address reads an address as it may stand in an ARP or NDP packet: without a
// zone, and IPv4 not in IPv6 clothes.
func address(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil || a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q is no IP address", clip(text))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s is IPv4 in IPv6 clothes; give %s", a, a.Unmap())
	}
	return a, nil
}

func prefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is no subnet", clip(text))
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is IPv4 in IPv6 clothes; give the IPv4 subnet", p)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has host bits set; give %s", p, p.Masked())
	}
	return p, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	if !p.IsValid() {
		return netip.Addr{}
	}
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// span reads a time, or a number of seconds without a unit.
func span(v string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil {
		if _, notInt := strconv.Atoi(v); notInt == nil {
			d, err = time.ParseDuration(v + "s")
		}
	}
	if err != nil {
		return 0, fmt.Errorf("%q is no time", clip(v))
	}
	if d < least || d > most {
		return 0, fmt.Errorf("%v is out of range", d)
	}
	return d, nil
}
