package options

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestParsePool(t *testing.T) {
	pool := func(change func(*Pool)) Pool {
		p := Pool{Conflict: Probe, Rest: 5 * time.Minute, ProbeWait: 200 * time.Millisecond, ProbeAhead: 8}
		change(&p)
		return p
	}
	ranges := func(ends ...string) (rs []Range) {
		for i := 0; i < len(ends); i += 2 {
			rs = append(rs, Range{netip.MustParseAddr(ends[i]), netip.MustParseAddr(ends[i+1])})
		}
		return rs
	}
	tests := []struct {
		name  string
		given opts
		want  Pool
	}{
		{"nothing", nil, pool(func(*Pool) {})},
		{"empty values", opts{"parent": "", "pool": "", "exclude": "", "reserve": "", "rest": ""}, pool(func(*Pool) {})},
		{"parent", opts{"parent": "eth0.10"}, pool(func(p *Pool) { p.Parent = "eth0.10" })},
		{"subnets", opts{"subnet": "fd00:50::/64, 192.168.50.0/24"}, pool(func(p *Pool) {
			p.Subnets = []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24"), netip.MustParsePrefix("fd00:50::/64")}
		})},
		{"private", opts{"pool": "private"}, pool(func(p *Pool) { p.Private = true })},
		{"exclude sorts and merges", opts{"exclude": "fd00::-fd00::f,192.168.50.64/26,192.168.50.9,192.168.50.10 - 192.168.50.12,192.168.50.127,192.168.50.128,192.168.50.11,fd00::20/124"},
			pool(func(p *Pool) {
				p.Exclude = ranges("192.168.50.9", "192.168.50.12", "192.168.50.64", "192.168.50.128", "fd00::", "fd00::f", "fd00::20", "fd00::2f")
			})},
		{"exclude up to the ends", opts{"exclude": "255.255.255.255,::,::/127,ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff,0.0.0.0/1,128.0.0.0-255.255.255.254"},
			pool(func(p *Pool) {
				p.Exclude = ranges("0.0.0.0", "255.255.255.255", "::", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
			})},
		{"listen", opts{"conflict": "listen"}, pool(func(p *Pool) { p.Conflict = Listen })},
		{"off", opts{"conflict": "off"}, pool(func(p *Pool) { p.Conflict = Off })},
		{"reserve", opts{"reserve": "db=fd00::20,db=192.168.50.20,web-1.x_y=192.168.50.21"}, pool(func(p *Pool) {
			p.Reserve = map[string][]netip.Addr{
				"db":        {netip.MustParseAddr("192.168.50.20"), netip.MustParseAddr("fd00::20")},
				"web-1.x_y": {netip.MustParseAddr("192.168.50.21")},
			}
		})},
		{"exclude around a reserved address", opts{"exclude": "192.168.50.1-192.168.50.19,192.168.50.21", "reserve": "db=192.168.50.20"}, pool(func(p *Pool) {
			p.Exclude = ranges("192.168.50.1", "192.168.50.19", "192.168.50.21", "192.168.50.21")
			p.Reserve = map[string][]netip.Addr{"db": {netip.MustParseAddr("192.168.50.20")}}
		})},
		{"no rest", opts{"rest": "0"}, pool(func(p *Pool) { p.Rest = 0 })},
		{"a rest in seconds", opts{"rest": "90"}, pool(func(p *Pool) { p.Rest = 90 * time.Second })},
		{"the longest rest", opts{"rest": "24h"}, pool(func(p *Pool) { p.Rest = 24 * time.Hour })},
		{"probes", opts{"probe_wait": "20ms", "probe_ahead": "0"}, pool(func(p *Pool) { p.ProbeWait, p.ProbeAhead = 20*time.Millisecond, 0 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParsePool(tt.given)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, compare); d != "" {
				t.Error(d)
			}
			text, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			var back Pool
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(got, back, compare); d != "" {
				t.Errorf("by way of %s\n%s", text, d)
			}
		})
	}
}

func TestParsePoolRefuses(t *testing.T) {
	long := strings.Repeat("192.168.50.9,", maxEntries) + "192.168.50.9"
	tests := []struct {
		given opts
		want  string
	}{
		{opts{"colour": "red"}, "unknown option --ipam-opt colour; underlay knows parent, subnet, pool, exclude, conflict, reserve, rest, probe_wait, probe_ahead, dhcp, dhcp_server, lease_timeout, dhcp_release, dhcp_class, dhcp_mtu"},
		{opts{"a\nb": ""}, `unknown option --ipam-opt "a\nb"; underlay knows parent, subnet, pool, exclude, conflict, reserve, rest, probe_wait, probe_ahead, dhcp, dhcp_server, lease_timeout, dhcp_release, dhcp_class, dhcp_mtu`},
		{opts{"parent": "eth0:1"}, `--ipam-opt parent=eth0:1: "eth0:1" is no link name; it takes the name of a link of the host, such as eth0, or eth0.10 for VLAN 10 on eth0`},
		{opts{"subnet": "192.168.50.0"}, `--ipam-opt subnet=192.168.50.0: "192.168.50.0" is no subnet` + wantsSubnet},
		{opts{"subnet": "192.168.50.7/24"}, `--ipam-opt subnet=192.168.50.7/24: 192.168.50.7/24 has host bits set; give 192.168.50.0/24` + wantsSubnet},
		{opts{"subnet": "::ffff:192.168.50.0/120"}, `--ipam-opt subnet=::ffff:192.168.50.0/120: ::ffff:192.168.50.0/120 is IPv4 in IPv6 clothes; give the IPv4 subnet` + wantsSubnet},
		{opts{"subnet": "10.0.0.0/24,10.0.1.0/24"}, `--ipam-opt subnet=10.0.0.0/24,10.0.1.0/24: 10.0.0.0/24 and 10.0.1.0/24 are of one family` + wantsSubnet},
		{opts{"subnet": "fd00::/64,10.0.0.0/24,10.0.1.0/24"}, `--ipam-opt subnet=fd00::/64,10.0.0.0/24,10.0.1.0/24: 10.0.0.0/24 and 10.0.1.0/24 are of one family` + wantsSubnet},
		{opts{"pool": "public"}, `--ipam-opt pool=public: "public" is not known; it takes the word private`},
		{opts{"pool": "private", "parent": "eth0"}, "--ipam-opt pool=private and --ipam-opt parent exclude each other; give one of them"},
		{opts{"pool": "private", "subnet": "10.0.0.0/24"}, "--ipam-opt pool=private and --ipam-opt subnet exclude each other; give one of them"},
		{opts{"exclude": "192.168.50.300"}, `--ipam-opt exclude=192.168.50.300: "192.168.50.300" is no IP address` + wantsExclude},
		{opts{"exclude": "fe80::1%eth0"}, `--ipam-opt exclude=fe80::1%eth0: "fe80::1%eth0" is no IP address` + wantsExclude},
		{opts{"exclude": "::ffff:192.168.50.1"}, `--ipam-opt exclude=::ffff:192.168.50.1: ::ffff:192.168.50.1 is IPv4 in IPv6 clothes; give 192.168.50.1` + wantsExclude},
		{opts{"exclude": "192.168.50.9,"}, `--ipam-opt exclude=192.168.50.9,: an entry is empty` + wantsExclude},
		{opts{"exclude": "192.168.50.9-"}, `--ipam-opt exclude=192.168.50.9-: "" is no IP address` + wantsExclude},
		{opts{"exclude": "192.168.50.9-192.168.50.8"}, `--ipam-opt exclude=192.168.50.9-192.168.50.8: range 192.168.50.9-192.168.50.8 ends before it begins` + wantsExclude},
		{opts{"exclude": "192.168.50.9-fd00::1"}, `--ipam-opt exclude=192.168.50.9-fd00::1: the ends of 192.168.50.9-fd00::1 are of two families` + wantsExclude},
		{opts{"exclude": "192.168.50.65/26"}, `--ipam-opt exclude=192.168.50.65/26: 192.168.50.65/26 has host bits set; give 192.168.50.64/26` + wantsExclude},
		{opts{"exclude": long}, `--ipam-opt exclude=192.168.50.9,192.168.50.9,192.168.50.9,192.168.50.9,192.168.…: 4097 entries are more than 4096; write neighbours as one range or subnet` + wantsExclude},
		{opts{"conflict": "ask"}, `--ipam-opt conflict=ask: "ask" is not known; it takes probe, listen or off`},
		{opts{"reserve": "db"}, `--ipam-opt reserve=db: "db" is no name=address` + wantsReserve},
		{opts{"reserve": "-db=192.168.50.20"}, `--ipam-opt reserve=-db=192.168.50.20: "-db" is no name of a container` + wantsReserve},
		{opts{"reserve": "db=192.168.50"}, `--ipam-opt reserve=db=192.168.50: "192.168.50" is no IP address` + wantsReserve},
		{opts{"reserve": "db=0.0.0.0"}, `--ipam-opt reserve=db=0.0.0.0: 0.0.0.0 is no address of a host on a LAN` + wantsReserve},
		{opts{"reserve": "db=ff02::1"}, `--ipam-opt reserve=db=ff02::1: ff02::1 is no address of a host on a LAN` + wantsReserve},
		{opts{"reserve": "db=fd00::20,web=fd00::0:20"}, `--ipam-opt reserve=db=fd00::20,web=fd00::0:20: fd00::20 is reserved twice, for db and for web` + wantsReserve},
		{opts{"reserve": "db=10.0.0.2,db=10.0.0.3"}, `--ipam-opt reserve=db=10.0.0.2,db=10.0.0.3: db has two addresses of one family, 10.0.0.2 and 10.0.0.3` + wantsReserve},
		{opts{"exclude": "192.168.50.19-192.168.50.21", "reserve": "db=192.168.50.20"},
			"--ipam-opt exclude=192.168.50.19-192.168.50.21 covers 192.168.50.20, which reserve keeps for db; leave it out of one of them"},
		{opts{"rest": "soon"}, `--ipam-opt rest=soon: "soon" is no time` + wantsRest},
		{opts{"rest": "-5m"}, `--ipam-opt rest=-5m: -5m0s is out of range` + wantsRest},
		{opts{"rest": "25h"}, `--ipam-opt rest=25h: 25h0m0s is out of range` + wantsRest},
		{opts{"rest": "99999999999999999999"}, `--ipam-opt rest=99999999999999999999: "99999999999999999999" is no time` + wantsRest},
		{opts{"probe_wait": "200"}, `--ipam-opt probe_wait=200: 3m20s is out of range; it takes a time from 20ms to 2s`},
		{opts{"probe_ahead": "65"}, `--ipam-opt probe_ahead=65: 65 is out of range; it takes a number of addresses, 0 to 64`},
		{opts{"probe_ahead": "1\n2"}, `--ipam-opt probe_ahead="1\n2": "1\n2" is no number; it takes a number of addresses, 0 to 64`},
	}
	for _, tt := range tests {
		if _, err := ParsePool(tt.given); fmt.Sprint(err) != tt.want {
			t.Errorf("%.100q:\n%v\nwant\n%s", fmt.Sprint(tt.given), err, tt.want)
		}
	}
}

// What the refusals end with.
const (
	wantsSubnet  = "; it takes a subnet such as 192.168.50.0/24, or one of each family with a comma between"
	wantsExclude = "; it takes addresses, ranges and subnets, such as 192.168.50.5,192.168.50.10-192.168.50.19,192.168.50.64/26"
	wantsReserve = "; it takes names of containers with addresses, such as db=192.168.50.20,web=192.168.50.21"
	wantsRest    = "; it takes a time such as 90s, 5m or 1h, at most 24h, or 0"
)

// The table tells of the defaults; here they are held against the parser's.
func TestPoolDefaults(t *testing.T) {
	given := opts{}
	for _, o := range Pools() {
		switch o.Key {
		case "conflict", "rest", "probe_wait", "probe_ahead":
			given[o.Key] = o.Default
		}
	}
	left, err := ParsePool(nil)
	if err != nil {
		t.Fatal(err)
	}
	said, err := ParsePool(given)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(left, said); d != "" {
		t.Error(d)
	}
}

func TestPoolAnswers(t *testing.T) {
	p, err := ParsePool(opts{
		"subnet": "192.168.50.0/24", "reserve": "db=192.168.50.20,db=fd00::1:20,web=192.168.50.21",
		"exclude": "192.168.50.5,192.168.50.10-192.168.50.19,fd00::/120,fd00:1::9",
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Subnet(false), p.Subnet(true)); got != "192.168.50.0/24 invalid Prefix" {
		t.Error(got)
	}
	for addr, want := range map[string]bool{
		"192.168.50.4": false, "192.168.50.5": true, "192.168.50.6": false, "192.168.50.9": false, "192.168.50.10": true,
		"192.168.50.15": true, "192.168.50.19": true, "192.168.50.20": false, "fd00::": true, "fd00::ff": true, "fd00::100": false,
		"fd00:1::9": true, "fd00:1::a": false, "::": false, "0.0.0.5": false,
	} {
		if got := p.Excluded(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s excluded: %t", addr, got)
		}
	}
	for _, tt := range []struct {
		name string
		v6   bool
		want string
	}{{"db", false, "192.168.50.20 true"}, {"db", true, "fd00::1:20 true"}, {"web", false, "192.168.50.21 true"},
		{"web", true, "invalid IP false"}, {"", false, "invalid IP false"}, {"d", false, "invalid IP false"}} {
		a, ok := p.Reserved(tt.name, tt.v6)
		if got := fmt.Sprint(a, ok); got != tt.want {
			t.Errorf("%s (IPv6: %t): %s", tt.name, tt.v6, got)
		}
	}
}

// Keys are in the IDs of pools that users have: a change here breaks them.
func TestKeyIsForEver(t *testing.T) {
	tests := []struct {
		given opts
		want  string
	}{
		{nil, ""},
		{opts{}, ""},
		{opts{"parent": "", "rest": ""}, ""},
		{opts{"parent": "eth0"}, "6590306d"},
		{opts{"parent": "eth0", "subnet": "192.168.50.0/24", "reserve": "db=192.168.50.20,web=192.168.50.21", "rest": ""}, "8e3f5ec0"},
		{opts{"pool": "private"}, "d827e3db"},
	}
	for _, tt := range tests {
		if got := Key(tt.given); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.given, got, tt.want)
		}
	}
}
