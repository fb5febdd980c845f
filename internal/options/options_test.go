package options

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"underlay/internal/mode"
)

type opts = map[string]string

func TestParseNetwork(t *testing.T) {
	tests := []struct {
		name  string
		given opts
		want  Network
	}{
		{"nothing", nil, Network{Mode: mode.Default}},
		{"empty values", opts{"parent": "", "macvlan_mode": ""}, Network{Mode: mode.Default}},
		{"parent", opts{"parent": "eth0.10"}, Network{Parent: "eth0.10", Mode: mode.Default}},
		{"macvlan", opts{"macvlan_mode": "vepa", MTUKey: "1400", "bcqueuelen": "5"},
			Network{Mode: mode.Mode{Kind: mode.Macvlan, Name: "vepa"}, MTU: 1400, BCQueueLen: 5}},
		{"ipvlan", opts{"ipvlan_mode": "l3s", "ipvlan_flag": "private"},
			Network{Mode: mode.Mode{Kind: mode.IPvlan, Name: "l3s", Flag: "private"}}},
		{"ipvlan mode alone", opts{"ipvlan_mode": "l3"}, Network{Mode: mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "bridge"}}},
		{"vlan", opts{"parent": "bond0", "vlan": "10"}, Network{Parent: "bond0", VLAN: 10, Mode: mode.Default}},
		{"reach", opts{"parent": "eth0", "host_access": "true", "no_default_route": "true",
			"routes": "10.20.0.0/16 via 192.168.50.254, 10.30.0.0/16,fd00:1::/64  via  fe80::1"},
			Network{Parent: "eth0", Mode: mode.Default, HostAccess: true, NoDefaultRoute: true, Routes: []Route{
				{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParseAddr("192.168.50.254")},
				{To: netip.MustParsePrefix("10.30.0.0/16")},
				{netip.MustParsePrefix("fd00:1::/64"), netip.MustParseAddr("fe80::1")},
			}}},
		{"reach, not wanted", opts{"host_access": "false", "no_default_route": "false", "routes": "", "announce": ""}, Network{Mode: mode.Default}},
		{"proxy", opts{"parent": "eth0", "ipvlan_mode": "l3", "announce": "proxy", "host_access": "true", "routes": "10.30.0.0/16"},
			Network{Parent: "eth0", Mode: mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "bridge"}, HostAccess: true, Proxy: true,
				Routes: []Route{{To: netip.MustParsePrefix("10.30.0.0/16")}}}},
		{"ipvlan flag alone", opts{"ipvlan_flag": "vepa"}, Network{Mode: mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "vepa"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseNetwork(tt.given)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseNetworkRefuses(t *testing.T) {
	tests := []struct {
		given opts
		want  []string // words of the refusal
	}{
		{opts{"parnet": "eth0"}, []string{"-o parnet", "knows parent, vlan, macvlan_mode"}},
		{opts{"parent": "eth0:1"}, []string{"-o parent=eth0:1", "no link name", "name of a link"}},
		{opts{"parent": "eth0\x00x"}, []string{`-o parent="eth0\x00x"`, "no link name"}},
		{opts{"parent": "a-name-of-16-byt"}, []string{"at most 15 bytes"}},
		{opts{"macvlan_mode": "l2"}, []string{"-o macvlan_mode=l2", "bridge, private, vepa or passthru"}},
		{opts{"ipvlan_mode": "bridge"}, []string{"l2, l3 or l3s"}},
		{opts{"ipvlan_flag": "l2"}, []string{"bridge, private or vepa"}},
		{opts{MTUKey: "big"}, []string{MTUKey + "=big", "no number", "at least 68"}},
		{opts{MTUKey: "67"}, []string{"out of range"}},
		{opts{"bcqueuelen": "-1"}, []string{"out of range", "1 to 65535"}},
		{opts{"macvlan_mode": "bridge", "ipvlan_mode": "l2"}, []string{"macvlan_mode and -o ipvlan_mode exclude"}},
		{opts{"macvlan_mode": "bridge", "ipvlan_flag": "vepa"}, []string{"macvlan_mode and -o ipvlan_flag exclude"}},
		{opts{"bcqueuelen": "9", "ipvlan_mode": "l2"}, []string{"for macvlan alone"}},
		{opts{"vlan": "0", "parent": "eth0"}, []string{"-o vlan=0", "out of range", "1 to 4094"}},
		{opts{"vlan": "4095", "parent": "eth0"}, []string{"-o vlan=4095", "out of range", "1 to 4094"}},
		{opts{"vlan": "abc", "parent": "eth0"}, []string{"-o vlan=abc", "no number"}},
		{opts{"vlan": "10"}, []string{"-o vlan=10", "-o parent"}},
		{opts{"host_access": "maybe", "parent": "eth0"}, []string{"-o host_access=maybe", "true or false"}},
		{opts{"host_access": "true"}, []string{"host_access", "isolated"}},
		{opts{"host_access": "true", "parent": "eth0", "macvlan_mode": "private"}, []string{"macvlan private", "from each other"}},
		{opts{"host_access": "true", "parent": "eth0", "macvlan_mode": "vepa"}, []string{"macvlan vepa", "from each other"}},
		{opts{"host_access": "true", "parent": "eth0", "macvlan_mode": "passthru"}, []string{"macvlan passthru", "alone"}},
		{opts{"host_access": "true", "parent": "eth0", "ipvlan_flag": "private"}, []string{"ipvlan l2 private", "from each other"}},
		{opts{"host_access": "true", "parent": "eth0", "ipvlan_mode": "l3", "ipvlan_flag": "vepa"}, []string{"ipvlan l3 vepa", "from each other"}},
		{opts{"announce": "bgp", "parent": "eth0", "ipvlan_mode": "l3"}, []string{"-o announce=bgp", "takes proxy"}},
		{opts{"announce": "proxy", "parent": "eth0"}, []string{"announce=proxy is for ipvlan_mode=l3", "macvlan bridge"}},
		{opts{"announce": "proxy", "ipvlan_mode": "l3"}, []string{"announce=proxy needs -o parent"}},
		{opts{"no_default_route": "1"}, []string{"-o no_default_route=1", "true or false"}},
		{opts{"routes": "10.0.0.0/8"}, []string{"needs -o parent"}},
		{opts{"routes": "10.0.0.0/8,", "parent": "eth0"}, []string{"one is empty", "such as"}},
		{opts{"routes": "10.0.0.0", "parent": "eth0"}, []string{`"10.0.0.0" is no destination`}},
		{opts{"routes": "10.0.0.1/8", "parent": "eth0"}, []string{"host bits", "give 10.0.0.0/8"}},
		{opts{"routes": "0.0.0.0/0 via 10.0.0.1", "parent": "eth0"}, []string{"default route", "--gateway"}},
		{opts{"routes": "10.0.0.0/8 by 10.0.0.1", "parent": "eth0"}, []string{`"10.0.0.0/8 by 10.0.0.1" is no route`}},
		{opts{"routes": "10.0.0.0/8 via", "parent": "eth0"}, []string{`"10.0.0.0/8 via" is no route`}},
		{opts{"routes": "10.0.0.0/8 via router", "parent": "eth0"}, []string{`"router" is no address`}},
		{opts{"routes": "10.0.0.0/8 via fe80::1%eth0", "parent": "eth0"}, []string{"no address of a router"}},
		{opts{"routes": "10.0.0.0/8 via fd00::1", "parent": "eth0"}, []string{"other family"}},
		{opts{"routes": "10.0.0.0/8 via 0.0.0.0", "parent": "eth0"}, []string{"no address of a router"}},
		{opts{"routes": "224.0.0.0/4", "parent": "eth0"}, []string{"no destination behind a LAN"}},
		{opts{"routes": "10.0.0.0/8,10.0.0.0/8 via 192.168.50.1", "parent": "eth0"}, []string{"10.0.0.0/8 is there twice"}},
		{opts{"routes": manyRoutes(257), "parent": "eth0"}, []string{"more than 256"}},
		{opts{"routes": "10.0.0.0/8 via 192.168.50.1", "parent": "eth0", "ipvlan_mode": "l3"}, []string{"ipvlan l3 has no next hops", "leave via out"}},
	}
	for _, tt := range tests {
		_, err := ParseNetwork(tt.given)
		if err == nil {
			t.Errorf("%v was accepted", tt.given)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v: %q lacks %q", tt.given, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %q is more than a line", tt.given, err)
		}
	}
}

func manyRoutes(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("172.16.%d.%d/32", i/256, i%256))
	}
	return strings.Join(all, ",")
}

func TestVLANName(t *testing.T) {
	for _, tt := range []struct {
		lower string
		id    int
		want  string
	}{
		{"eth0", 10, "eth0.10"},
		{"eth0.10", 20, "eth0.10.20"},
		{"a-long-nam", 4094, "a-long-nam.4094"},
		{"a-long-name", 4094, "ul78f428ed.4094"},
	} {
		if got := VLANName(tt.lower, tt.id); got != tt.want {
			t.Errorf("VLANName(%q, %d) = %q, want %q", tt.lower, tt.id, got, tt.want)
		}
	}
}

func TestSplitVLAN(t *testing.T) {
	tests := []struct {
		name, lower string
		id          int
		ok, bad     bool
	}{
		{"eth0.10", "eth0", 10, true, false},
		{"eth0.10.20", "eth0.10", 20, true, false},
		{"eth0", "", 0, false, false},
		{"eth0.lan", "", 0, false, false},
		{".5", "", 0, false, false},
		{"eth0.010", "", 0, false, false},
		{"eth0.+10", "", 0, false, false},
		{"eth0.0", "", 0, false, true},
		{"eth0.4095", "", 0, false, true},
	}
	for _, tt := range tests {
		lower, id, ok, err := SplitVLAN(tt.name)
		if lower != tt.lower || id != tt.id && !tt.bad || ok != tt.ok || (err != nil) != tt.bad {
			t.Errorf("SplitVLAN(%q) = %q, %d, %v, %v", tt.name, lower, id, ok, err)
		}
	}
}

// The README's table has a row per option, word for word, and no other.
func TestREADMEListsTheOptions(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `-o ") || strings.HasPrefix(line, "| `--ipam-opt ") || strings.HasPrefix(line, "| `driver-opt ") {
			rows++
		}
	}
	if want := len(Networks()) + len(Pools()) + len(Endpoints()); rows != want {
		t.Errorf("%d option rows in README.md, want %d", rows, want)
	}
	for flag, table := range map[string][]Option{"-o": Networks(), "--ipam-opt": Pools(), "driver-opt": Endpoints()} {
		at := 0 // the README's order is the table's
		for _, o := range table {
			row := "| `" + flag + " " + o.Key + "` | " + o.Wants + " | " + o.Default + " | " + o.Use + " |\n"
			i := strings.Index(string(text)[at:], row)
			if i < 0 {
				t.Errorf("README.md lacks, here or at all, the row\n%s", row)
				continue
			}
			at += i
		}
	}
}
