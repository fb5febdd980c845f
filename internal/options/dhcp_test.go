package options

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDHCP(t *testing.T) {
	addrs := func(texts ...string) (all []netip.Addr) {
		for _, a := range texts {
			all = append(all, netip.MustParseAddr(a))
		}
		return all
	}
	for _, tt := range []struct {
		given opts
		want  DHCP
		words []string
	}{
		{opts{"dhcp": "true"}, DHCP{V4: true}, nil},
		{opts{"dhcp": "v4"}, DHCP{V4: true}, nil},
		{opts{"dhcp": "v6"}, DHCP{V6: true}, nil},
		{opts{"dhcp": "both"}, DHCP{V4: true, V6: true}, nil},
		{opts{"dhcp": "false"}, DHCP{}, nil},
		{opts{"dhcp": "v5"}, DHCP{}, []string{"dhcp=v5", "v4, v6, both, or true"}},
		{opts{"dhcp": "both", "dhcp_server": "192.168.50.1, fe80::1,00:03:00:01:02:42:ac:11:00:02, 0004ab"},
			DHCP{V4: true, V6: true, Servers: addrs("192.168.50.1", "fe80::1"), DUIDs: []string{"000300010242ac110002", "0004ab"}}, nil},
		{opts{"dhcp": "v6", "dhcp_server": "fe80::1"}, DHCP{V6: true, Servers: addrs("fe80::1")}, nil},
		{opts{"dhcp": "v6", "dhcp_server": "192.168.50.1"}, DHCP{}, []string{"dhcp_server", "IPv4", "dhcp=both"}},
		{opts{"dhcp": "true", "dhcp_server": "fe80::1"}, DHCP{}, []string{"dhcp_server", "DHCPv6", "dhcp=both"}},
		{opts{"dhcp": "true", "dhcp_server": "0004ab"}, DHCP{}, []string{"dhcp_server", "DHCPv6", "dhcp=both"}},
		{opts{"dhcp": "both", "dhcp_server": "fd00::1"}, DHCP{}, []string{"fd00::1", "no link-local address"}},
		{opts{"dhcp": "both", "dhcp_server": "router"}, DHCP{}, []string{`"router"`, "neither an address nor a DUID"}},
		{opts{"dhcp": "both", "dhcp_server": "0004"}, DHCP{}, []string{"0004", "neither an address nor a DUID"}},
		{opts{"dhcp_server": "0004ab"}, DHCP{}, []string{"dhcp_server is for leases"}},
		{opts{"dhcp": "both", "dhcp_class": "x", "dhcp_mtu": "true"}, DHCP{V4: true, V6: true, Class: "x", MTU: true}, nil},
		{opts{"dhcp": "v6", "dhcp_class": "x"}, DHCP{}, []string{"dhcp_class", "DHCPv4"}},
		{opts{"dhcp": "v6", "dhcp_mtu": "true"}, DHCP{}, []string{"dhcp_mtu", "router advertisements"}},
		{opts{"dhcp": "both", "lease_timeout": "5s", "dhcp_release": "false"}, DHCP{V4: true, V6: true, Timeout: 5 * time.Second, Keep: true}, nil},
	} {
		if tt.want.On() && tt.want.Timeout == 0 {
			tt.want.Timeout = 10 * time.Second
		}
		check := func(flag string, got DHCP, err error) {
			t.Helper()
			if tt.words == nil {
				if d := cmp.Diff(tt.want, got, compare); d != "" || err != nil {
					t.Errorf("%s %v: %v\n%s", flag, tt.given, err, d)
				}
				return
			}
			for _, w := range append(tt.words, flag) {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("%s %v: %v lacks %q", flag, tt.given, err, w)
				}
			}
		}
		p, err := ParsePool(tt.given)
		check("--ipam-opt", p.DHCP, err)
		given := opts{"parent": "eth0"}
		for k, v := range tt.given {
			given[k] = v
		}
		n, err := ParseNetwork(given)
		check("-o", n.DHCP, err)
	}
}

// What the server decides, of the families that it gives.
func TestDHCPDecides(t *testing.T) {
	for _, tt := range []struct {
		dhcp, key, value string
		ok               bool
	}{
		{"true", "exclude", "192.168.50.1", false},
		{"true", "exclude", "fd00::1", true},
		{"v6", "exclude", "192.168.50.1", true},
		{"v6", "exclude", "fd00::1", false},
		{"both", "exclude", "192.168.50.1", false},
		{"true", "reserve", "db=192.168.50.2", false},
		{"v6", "reserve", "db=192.168.50.2", true},
		{"v6", "reserve", "db=192.168.50.2,db=fd00::2", false},
		{"false", "reserve", "db=192.168.50.2,db=fd00::2", true},
	} {
		_, err := ParsePool(opts{"dhcp": tt.dhcp, tt.key: tt.value})
		if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), "--ipam-opt "+tt.key+" does not go with dhcp") {
			t.Errorf("dhcp=%s %s=%s: %v", tt.dhcp, tt.key, tt.value, err)
		}
	}
}
