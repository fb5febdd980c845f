//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// kea6 serves IPv6 addresses on the LAN from a place: those of the pool, for 40 s,
// renewed after 5 s, rebound after 8 s. It remembers nothing.
func kea6(t *testing.T, at place, pool string) *server {
	t.Helper()
	s := &server{t: t, at: at, dir: t.TempDir(), ready: "DHCP6_STARTED"}
	pools := ""
	if pool != "" {
		pools = `{"pool": "` + pool + `"}`
	}
	config := filepath.Join(s.dir, "kea.conf")
	err := os.WriteFile(config, []byte(`{"Dhcp6": {
		"interfaces-config": {"interfaces": ["eth0"]}, "data-directory": "`+s.dir+`",
		"lease-database": {"type": "memfile", "persist": false},
		"preferred-lifetime": 40, "valid-lifetime": 40, "renew-timer": 5, "rebind-timer": 8,
		"subnet6": [{"id": 1, "subnet": "fd00:50::/64", "interface": "eth0", "pools": [`+pools+`],
			"reservations": [{"hw-address": "02:00:5e:00:50:66", "ip-addresses": ["fd00:50::66"]}]}],
		"loggers": [{"name": "kea-dhcp6", "severity": "DEBUG", "debuglevel": 55, "output_options": [{"output": "stdout"}]}]
	}}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s.args = []string{"env", "KEA_DHCP_DATA_DIR=" + s.dir, "KEA_PIDFILE_DIR=" + s.dir, "KEA_LOCKFILE_DIR=none", "KEA_LOGGER_DESTINATION=stdout",
		"/usr/sbin/kea-dhcp6", "-c", config}
	s.start()
	return s
}

// leases6 is what underlay state shows of leases of IPv6: what Docker was told, and
// what the server gives.
func leases6(t *testing.T) map[string]string {
	t.Helper()
	var state struct {
		Leases []struct {
			Given string
			Lease struct{ Addr string }
		}
	}
	ask(t, "/Underlay.State", struct{}{}, &state)
	found := map[string]string{}
	for _, l := range state.Leases {
		if strings.Contains(l.Given, ":") {
			found[bare(l.Given)] = bare(l.Lease.Addr)
		}
	}
	return found
}

// Containers have their addresses of both families from the LAN's own servers.
func TestDHCP6(t *testing.T) {
	b := begin(t)
	s4 := dnsmasq(t, "router", "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120", "--dhcp-option=option:router,"+router4)
	s := kea6(t, "router", "fd00:50::100-fd00:50::1ff")
	b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ipv6", "--subnet", "fd00:50::/64", "--gateway", router6,
		"-o", "parent=eth0", "--ipam-opt", "parent=eth0", "--ipam-opt", "dhcp=both", "--ipam-opt", "lease_timeout=6s", "net")
	var addr string
	check := func(t *testing.T, what string) {
		t.Helper()
		c := inspect(t, "web")
		e := c.NetworkSettings.Networks["net"]
		if addr == "" {
			addr = e.GlobalIPv6Address
		}
		if e.GlobalIPv6Address != addr || !strings.HasPrefix(addr, "fd00:50::1") || e.GlobalIPv6PrefixLen != 64 || e.IPv6Gateway != router6 {
			t.Errorf("%s: Docker shows %+v, and the container had %s", what, e, addr)
		}
		if !strings.Contains(s4.leased(e.IPAddress), e.MacAddress) {
			t.Errorf("%s: the server of IPv4 does not know %s by %s\n%s", what, e.IPAddress, e.MacAddress, s4.log())
		}
		// The DUID of RFC 8415 section 11.4 is of the container's MAC.
		if s.count("00:03:00:01:"+e.MacAddress, addr, "has been allocated") == 0 {
			t.Errorf("%s: the server does not know %s by %s\n%s", what, addr, e.MacAddress, s.log())
		}
		reaches(t, what+": a LAN host to the container", "host1", addr)
		reaches(t, what+": the container beyond the router", c.at(), internet6)
	}
	until := func(t *testing.T, what string, shows func() bool) {
		t.Helper()
		err := wait(60*time.Second, what, func() error {
			if !shows() {
				return errorf("%s", s.log())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.run("web", "--network", "net")
	check(t, "run")

	t.Run("plugin killed", func(t *testing.T) {
		before := s.count("DHCP6_LEASE_RENEW", addr)
		until(t, "a renewal", func() bool { return s.count("DHCP6_LEASE_RENEW", addr) > before })
		do(t, "", "kill -KILL $(pidof underlay)")
		before = s.count("DHCP6_LEASE_RENEW", addr)
		until(t, "a renewal by the next one", func() bool { return s.count("DHCP6_LEASE_RENEW", addr) > before })
		check(t, "plugin killed")
	})
	t.Run("restarted", func(t *testing.T) {
		docker(t, "restart", "-t", "0", "web")
		if s.count(addr, "was released properly") != 1 {
			t.Errorf("it was not released once\n%s", s.log())
		}
		check(t, "restarted")
	})
	t.Run("wanted", func(t *testing.T) {
		c := b.run("fixed", "--network", "net", "--ip6", "fd00:50::155")
		if a := c.addrs("net"); len(a) != 2 || a[1] != "fd00:50::155" {
			t.Errorf("it has %v\n%s", a, s.log())
		}
		docker(t, "rm", "-f", "fixed")
		out, err := b.tryRun("odd", "--network", "net", "--ip6", "fd00:50::7")
		if err == nil || !strings.Contains(out, "instead of fd00:50::7") {
			t.Errorf("outside the server's range: %v, %s", err, out)
		}
	})
	t.Run("another address", func(t *testing.T) {
		s.stop()
		s = kea6(b.T, "router", "fd00:50::200-fd00:50::2ff")
		c, is := inspect(t, "web"), ""
		until(t, "another address", func() bool {
			for _, l := range links(t, c.at()) {
				for _, a := range l.Addrs {
					if strings.HasPrefix(a.Local, "fd00:50::2") {
						is = a.Local
					}
				}
			}
			return is != ""
		})
		reaches(t, "a LAN host to the container", "host1", is)
		reaches(t, "the container beyond the router", c.at(), internet6)
		isolated(t, "a LAN host to the address taken back", "host1", addr)
		if l := leases6(t); l[addr] != is {
			t.Errorf("underlay state shows %v; Docker shows %s, and it has %s", l, addr, is)
		}
		docker(t, "restart", "-t", "0", "web")
		if a := inspect(t, "web").addrs("net"); len(a) != 2 || a[1] != is {
			t.Errorf("restarted, it has %v, not %s", a, is)
		}
		addr = is
	})
	t.Run("removed", func(t *testing.T) {
		before := s.count(addr, "was released properly")
		docker(t, "rm", "-f", "web")
		until(t, "release", func() bool { return s.count(addr, "was released properly") > before })
	})
	t.Run("no addresses", func(t *testing.T) {
		s.stop()
		s = kea6(b.T, "router", "")
		if out, err := b.tryRun("late", "--network", "net"); err == nil || !strings.Contains(out, "gives no lease") {
			t.Errorf("%v, %s", err, out)
		}
		if l := leases6(t); len(l) > 0 {
			t.Errorf("left: %v", l)
		}
	})
	t.Run("no server", func(t *testing.T) {
		s.stop()
		start := time.Now()
		out, err := b.tryRun("lonely", "--network", "net")
		if took := time.Since(start); err == nil || took > 25*time.Second || !strings.Contains(out, "no DHCPv6 server answers") {
			t.Errorf("after %v: %v, %s", took, err, out)
		}
	})
	b.tidy()
	quiet(t)
}

// The leases are the driver's, with a MAC that the servers know; on a NIC without
// addresses, router advertisements tell the rest.
func TestDHCP6ByMAC(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	const mac = "02:00:5e:00:50:44"
	s := dnsmasq(t, "router", "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120", "--dhcp-option=option:router,"+router4,
		"--dhcp-range=fd00:50::100,fd00:50::1ff,64,120", "--enable-ra", "--ra-param=eth0,5",
		"--dhcp-host=id:00:03:00:01:"+mac+",[fd00:50::44]", "--dhcp-host="+mac+",192.168.50.44")
	for _, parent := range []string{"eth0", "eth1"} {
		b.network("--ipam-driver", "null", "-o", "parent="+parent, "-o", "dhcp=both", parent+"net")
		c := b.run("web", "--network", parent+"net", "--mac-address", mac)
		e := c.NetworkSettings.Networks[parent+"net"]
		if e.GlobalIPv6Address != "fd00:50::44" || e.IPAddress != "192.168.50.44" || e.GlobalIPv6PrefixLen != map[string]int{"eth0": 64, "eth1": 128}[parent] {
			t.Errorf("%s: Docker shows %+v\n%s", parent, e, s.log())
		}
		reaches(t, parent+": a LAN host to the container", "host1", "fd00:50::44", "192.168.50.44")
		reaches(t, parent+": the container beyond the router", c.at(), internet6, internet4)
		docker(t, "rm", "-f", "web")
		err := wait(10*time.Second, "release", func() error {
			if l := s.leased("fd00:50::44"); l != "" {
				return errorf("the server has %q", l)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	b.network("--ipam-driver", "null", "-o", "parent=eth2", "-o", "ipvlan_mode=l2", "-o", "dhcp=v6", "shared")
	c := b.run("one", "--network", "shared")
	b.run("two", "--network", "shared")
	one, two := c.addrs("shared"), inspect(t, "two").addrs("shared")
	if len(one) != 1 || len(two) != 1 || one[0] == two[0] || s.leased(one[0]) == "" || s.leased(two[0]) == "" {
		t.Fatalf("ipvlan: they have %v and %v\n%s", one, two, s.log())
	}
	reaches(t, "ipvlan: a LAN host to the containers", "host1", one[0], two[0])
	docker(t, "restart", "-t", "0", "one")
	if again := inspect(t, "one").addrs("shared"); !slices.Equal(again, one) {
		t.Errorf("restarted, it has %v, not %v", again, one)
	}
	b.tidy()
	quiet(t)
}

// A container hears router advertisements, and makes itself an address and a default
// route of them; one that forwards, or has no IPv6 by Docker, by Docker 28's endpoint
// settings.
func TestSLAAC(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	do(t, "router", "ip addr add fd00:50:b::1/64 dev eth0 nodad")
	t.Cleanup(func() { do(t, "router", "ip addr del fd00:50:b::1/64 dev eth0") })
	dnsmasq(t, "router", "--dhcp-range=fd00:50:b::,ra-only,64,120", "--enable-ra", "--ra-param=eth0,4")
	const label = `driver-opt=com.docker.network.endpoint.sysctls=`
	for _, kind := range []string{"macvlan_mode=bridge", "ipvlan_mode=l2"} {
		name, _, _ := strings.Cut(kind, "_")
		v4, v6 := name+"4", name+"6"
		b.network("--subnet", "192.168.50.0/24", "--ip-range", "192.168.50.64/26", "--gateway", router4, "-o", "parent=eth0", "-o", kind, v4)
		b.network(lanArgs("-o", kind, "-o", "no_default_route=true", v6)...)
		cases := []struct {
			name string
			args []string
			hear bool
		}{
			{"plain", []string{"--network", v6}, true},
			{"forwards", []string{"--network", v6, "--sysctl", "net.ipv6.conf.all.forwarding=1"}, false},
			{"labelled", []string{"--network", `name=` + v6 + `,"` + label + `net.ipv6.conf.IFNAME.accept_ra=2"`, "--sysctl", "net.ipv6.conf.all.forwarding=1"}, true},
			{"of IPv4", []string{"--network", v4}, false},
			{"of IPv4, labelled", []string{"--network", `name=` + v4 + `,"` + label + `net.ipv6.conf.IFNAME.disable_ipv6=0,net.ipv6.conf.IFNAME.accept_ra=2"`}, true},
		}
		var runs []func()
		for k, c := range cases {
			runs = append(runs, func() { b.tryRun(fmt.Sprint("hears", k), c.args...) })
		}
		together(runs...)
		look := func(at place) (addr, state string) {
			for _, l := range links(t, at) {
				for _, a := range l.Addrs {
					if strings.HasPrefix(a.Local, "fd00:50:b:") {
						addr = a.Local
					}
				}
			}
			return addr, do(t, at, "ip -6 addr; ip -6 route")
		}
		for k, c := range cases {
			if !c.hear {
				continue
			}
			what, at := kind+", "+c.name, inspect(t, fmt.Sprint("hears", k)).at()
			err := wait(20*time.Second, what, func() error {
				if addr, state := look(at); addr == "" || !strings.Contains(state, "proto ra") {
					return errorf("%s", state)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			addr, _ := look(at)
			reaches(t, what+": the router to it", "router", addr)
			reaches(t, what+": it beyond the router", at, internet6)
		}
		time.Sleep(5 * time.Second) // what the router sends meanwhile would be heard
		for k, c := range cases {
			if c.hear {
				continue
			}
			if addr, state := look(inspect(t, fmt.Sprint("hears", k)).at()); addr != "" {
				t.Errorf("%s, %s: it has made itself an address\n%s", kind, c.name, state)
			}
		}
		b.tidy()
	}
}
