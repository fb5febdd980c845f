//go:build vm

package vmtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// kea6 serves IPv6 addresses on the LAN from a place: those of the pool, for 40 s,
// renewed after 3 s, rebound after 30 s. It remembers nothing.
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
		"preferred-lifetime": 40, "valid-lifetime": 40, "renew-timer": 3, "rebind-timer": 30,
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

// dhcp6Args are those of a network whose addresses of both families are the LAN's
// servers'.
func dhcp6Args(args ...string) []string {
	base := []string{"-o", "parent=eth0", "--ipam-opt", "parent=eth0", "--ipam-opt", "dhcp=both", "--ipv6"}
	if release < 27 && !slices.Contains(args, "--subnet") {
		base = append(base, "--subnet", "192.168.50.0/24", "--gateway", router4, "--subnet", "fd00:50::/64", "--gateway", router6)
	}
	return append(base, args...)
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
	b.network(dhcp6Args("net")...)
	var addr string
	check := func(what string) {
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
	b.run("web", "--network", "net")
	check("run")

	renewed := func(what string) {
		t.Helper()
		before := s.count("DHCP6_LEASE_RENEW")
		err := wait(40*time.Second, what, func() error {
			if s.count("DHCP6_LEASE_RENEW") < before+2 {
				return errorf("%s", s.log())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		check(what)
	}
	t.Run("renewed", func(*testing.T) { renewed("renewed") })
	t.Run("restarted", func(t *testing.T) {
		docker(t, "restart", "-t", "0", "web")
		if s.count(addr, "was released properly") != 1 {
			t.Errorf("it was not released once\n%s", s.log())
		}
		check("restarted")
	})
	t.Run("plugin killed", func(t *testing.T) {
		do(t, "", "kill -KILL $(pidof underlay)")
		renewed("renewed by the next plugin")
	})
	t.Run("wanted", func(t *testing.T) {
		b.network(dhcp6Args("--subnet", "192.168.50.0/24", "--gateway", router4, "--subnet", "fd00:50::/64", "--gateway", router6, "named")...)
		c := b.run("fixed", "--network", "named", "--ip6", "fd00:50::155")
		if a := c.addrs("named"); len(a) != 2 || a[1] != "fd00:50::155" {
			t.Errorf("it has %v\n%s", a, s.log())
		}
		out, err := b.tryRun("thief", "--network", "named", "--ip6", "fd00:50::155")
		if err == nil || !strings.Contains(out, "fd00:50::155") {
			t.Errorf("a second one: %v, %s", err, out)
		}
		out, err = b.tryRun("odd", "--network", "named", "--ip6", "fd00:50::7")
		if err == nil || !strings.Contains(out, "instead of fd00:50::7") {
			t.Errorf("outside the server's range: %v, %s", err, out)
		}
		docker(t, "rm", "-f", "fixed")
	})
	t.Run("another address", func(t *testing.T) {
		s.stop()
		s = kea6(t, "router", "fd00:50::200-fd00:50::2ff")
		c, is := inspect(t, "web"), ""
		err := wait(60*time.Second, "another address", func() error {
			for _, l := range links(t, c.at()) {
				for _, a := range l.Addrs {
					if strings.HasPrefix(a.Local, "fd00:50::2") {
						is = a.Local
						return nil
					}
				}
			}
			return errorf("none\n%s", s.log())
		})
		if err != nil {
			t.Fatal(err)
		}
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
		err := wait(10*time.Second, "release", func() error {
			if s.count(addr, "was released properly") == before {
				return errorf("%s", s.log())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("no addresses", func(t *testing.T) {
		s.stop()
		s = kea6(t, "router", "")
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
	for _, kind := range []string{"macvlan_mode=bridge", "ipvlan_mode=l2"} {
		name, _, _ := strings.Cut(kind, "_")
		b.network("--ipam-driver", "null", "-o", "parent=eth2", "-o", kind, "-o", "dhcp=v6", name)
		c := b.run(name+"1", "--network", name)
		b.run(name+"2", "--network", name)
		a, a2 := c.addrs(name), inspect(t, name+"2").addrs(name)
		if len(a) != 1 || len(a2) != 1 || a[0] == a2[0] || s.leased(a[0]) == "" || s.leased(a2[0]) == "" {
			t.Fatalf("%s: they have %v and %v\n%s", kind, a, a2, s.log())
		}
		reaches(t, kind+": a LAN host to the containers", "host1", a[0], a2[0])
		docker(t, "restart", "-t", "0", name+"1")
		if again := inspect(t, name+"1").addrs(name); !slices.Equal(again, a) {
			t.Errorf("%s: restarted, it has %v, not %v", kind, again, a)
		}
		b.tidy()
	}
	quiet(t)
}

// What Docker 28's endpoint settings make of router advertisements: an address that
// the container makes for itself, and its default route.
func TestSLAAC(t *testing.T) {
	b := begin(t)
	dnsmasq(t, "router", "--dhcp-range=fd00:50:b::,ra-only,64,120", "--dhcp-range=fd00:50::,ra-only,64,120", "--enable-ra", "--ra-param=eth0,3")
	for _, kind := range []string{"macvlan_mode=bridge", "ipvlan_mode=l2"} {
		name, _, _ := strings.Cut(kind, "_")
		b.network("-o", "parent=eth0", "-o", kind, "--ipam-opt", "parent=eth0", name)
		c := b.run(name+"1", "--network", "name="+name+",driver-opt=com.docker.network.endpoint.sysctls=net.ipv6.conf.IFNAME.disable_ipv6=0,net.ipv6.conf.IFNAME.accept_ra=2")
		out := do(t, c.at(), "ip -j -6 addr show dev eth0; ip -6 route; sysctl net.ipv6.conf.eth0")
		t.Logf("%s: %s", kind, out)
		_ = json.Valid
	}
}
