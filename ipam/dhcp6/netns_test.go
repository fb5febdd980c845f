package dhcp6

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"underlay/internal/nstest"
)

// makes are the servers, and what they say of messages.
var makes = []struct {
	name  string
	start func(s *space) *process
	renew func(p *process, l Lease) int // renewals that it has answered
	gone  func(p *process, l Lease) int // releases that it has taken
}{
	{"dnsmasq", func(s *space) *process { return s.dnsmasq() },
		func(p *process, l Lease) int { return p.count("DHCPREPLY(eth0) " + l.Addr.String() + " ") },
		func(p *process, l Lease) int { return p.count("DHCPRELEASE(eth0) " + l.DUID.String()) }},
	{"kea", func(s *space) *process { return s.kea("") },
		func(p *process, l Lease) int { return p.count("DHCP6_LEASE_RENEW") },
		func(p *process, l Lease) int {
			return p.count(l.Addr.String() + " and iaid=7 was released properly")
		}},
}

// TestServers: a lease by real servers, from parents of every kind, while a
// container with that MAC runs.
func TestServers(t *testing.T) {
	t.Parallel()
	hosts := []struct {
		name string
		make func(h *space)
	}{
		{"with IPv6", func(h *space) {}},
		{"without IPv6", func(h *space) { h.Set("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1") }},
		{"without a link-local address", func(h *space) { h.IP("addr flush dev eth0 scope link") }},
		{"that forwards", func(h *space) { h.Set("/proc/sys/net/ipv6/conf/all/forwarding", "1") }},
	}
	for _, m := range makes {
		for _, host := range hosts {
			t.Run(m.name+" "+host.name, func(t *testing.T) {
				t.Parallel()
				l := newLAN(t)
				server := l.host(serverAddr + "/64")
				p := m.start(server)
				h := l.host()
				host.make(h)
				c := h.client()
				a := Ask{Key: "web", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01"), IAID: 7, Hostname: "web"}
				begin := time.Now()
				lease := c.must(t, a)
				t.Logf("%s after %v: T1 %v, T2 %v, valid %v", lease.Addr, time.Since(begin).Round(time.Millisecond),
					lease.Renew.Sub(lease.Granted), lease.Rebind.Sub(lease.Granted), lease.Expires.Sub(lease.Granted))
				if p := netip.MustParsePrefix("2001:db8:77::100/120"); !p.Contains(lease.Addr) {
					t.Errorf("address %s", lease.Addr)
				}
				if !slices.Equal(lease.DNS, []netip.Addr{netip.MustParseAddr("2001:db8:77::53")}) || !slices.Equal(lease.Search, []string{"lan.example"}) {
					t.Errorf("DNS %v, search %v", lease.DNS, lease.Search)
				}
				running := h.container(a, lease.Addr)
				if out, err := running.command("ping", "-6", "-c1", "-W5", serverAddr); err != nil {
					t.Errorf("the container cannot reach the server: %v: %s", err, out)
				}

				// A restart of the plugin: the lease is renewed for the running container.
				kept := c.Leases()
				b, _ := json.Marshal(kept[0].Lease)
				c.Close()
				var old Lease
				if err := json.Unmarshal(b, &old); err != nil {
					t.Fatal(err)
				}
				old.Renew = time.Now()
				before := m.renew(p, lease)
				again := h.client()
				if err := again.Restore([]Lease{old}); err != nil {
					t.Fatal(err)
				}
				h.eventually("a renewal", 5*time.Second, func() bool { return again.told(Renewed) > 0 })
				h.eventually("the server's word of it", 5*time.Second, func() bool { return m.renew(p, lease) > before })

				again.Release("web")
				h.eventually("the release", 3*time.Second, func() bool { return m.gone(p, lease) > 0 })
				if next := again.must(t, a); next.Addr != lease.Addr {
					t.Logf("after the release: %s", next.Addr)
				}
			})
		}
	}
}

// TestKeaLife: several renewals by T1, rebinding while the server is away, and a
// lease again once it is back without memory of it.
func TestKeaLife(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	server := l.host(serverAddr + "/64")
	p := server.kea("")
	h := l.host()
	c := h.client()
	lease := c.must(t, Ask{Key: "web", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01")})
	h.eventually("three renewals", 15*time.Second, func() bool { return c.told(Renewed) >= 3 })
	p.stop()
	h.eventually("T2", 10*time.Second, func() bool { return c.told(Late) > 0 })
	server.kea("")
	h.eventually("a lease again", 25*time.Second, func() bool { return c.told(Renewed) >= 4 || c.told(Changed) > 0 })
	if c.told(Lost) > 0 {
		t.Error("lost, though the server came back in time")
	}
	if s := c.Leases(); len(s) != 1 || s[0].State != "bound" || s[0].Addr != lease.Addr {
		t.Errorf("%+v", s)
	}
}

// TestWord: the servers' words reach the user, at once.
func TestWord(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		start func(s *space) *process
		ask   Ask
		want  string
	}{
		{"kea exhausted", func(s *space) *process {
			return s.kea(`, "reservations": [{"duid": "00:03:00:01:02:42:0a:00:00:63", "ip-addresses": ["2001:db8:77::5"]}], "client-class": "nobody"`)
		}, Ask{}, "NoAddrsAvail"},
		{"dnsmasq exhausted", func(s *space) *process { return s.dnsmasq("--dhcp-ignore=tag:dhcpv6,tag:!known") }, Ask{}, "no DHCPv6 server answers"},
		{"dnsmasq, another is wanted", func(s *space) *process { return s.dnsmasq() },
			Ask{Want: netip.MustParseAddr("2001:db8:78::5")}, "instead of 2001:db8:78::5"},
		{"kea, another is wanted", func(s *space) *process { return s.kea("") },
			Ask{Want: netip.MustParseAddr("2001:db8:78::5")}, "instead of 2001:db8:78::5"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			test.start(l.host(serverAddr + "/64"))
			c := l.host().client()
			a := test.ask
			a.Key, a.Link, a.MAC = "web", "eth0", mustMAC("02:42:0a:00:00:01")
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			got, err := c.Acquire(ctx, a)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s, %v", got.Addr, err)
			}
			t.Log(err)
		})
	}
}

// TestReservation: by DUID at both, by MAC at kea; a wanted address is given.
func TestReservation(t *testing.T) {
	t.Parallel()
	fixed := netip.MustParseAddr("2001:db8:77::5")
	tests := []struct {
		name  string
		start func(s *space) *process
	}{
		{"dnsmasq by DUID", func(s *space) *process {
			return s.dnsmasq("--dhcp-host=id:00:03:00:01:02:42:0a:00:00:01,[2001:db8:77::5]")
		}},
		{"kea by DUID", func(s *space) *process {
			return s.kea(`, "reservations": [{"duid": "00:03:00:01:02:42:0a:00:00:01", "ip-addresses": ["2001:db8:77::5"]}]`)
		}},
		{"kea by MAC", func(s *space) *process {
			return s.kea(`, "reservations": [{"hw-address": "02:42:0a:00:00:01", "ip-addresses": ["2001:db8:77::5"]}]`)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			test.start(l.host(serverAddr + "/64"))
			c := l.host().client()
			if lease := c.must(t, Ask{Key: "web", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01")}); lease.Addr != fixed {
				t.Errorf("%s", lease.Addr)
			}
			want := netip.MustParseAddr("2001:db8:77::123")
			if lease := c.must(t, Ask{Key: "db", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:02"), Want: want}); lease.Addr != want {
				t.Errorf("wanted %s, got %s", want, lease.Addr)
			}
		})
	}
}

// TestHostReservation: dnsmasq takes the MAC from its neighbour table, where it is
// the parent's: a reservation of the host's own by MAC would be the containers'
// too, were it not for the check whether an address is in use.
func TestHostReservation(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	h := l.host()
	l.host(serverAddr + "/64").dnsmasq("--dhcp-host=" + h.mac().String() + ",[2001:db8:77::9]")
	c := h.client()
	reserved := netip.MustParseAddr("2001:db8:77::9")
	c.cfg.Check = func(_ context.Context, _ string, a netip.Addr, _ net.HardwareAddr) (net.HardwareAddr, error) {
		if a == reserved {
			return mustMAC("02:00:00:00:00:99"), nil
		}
		return nil, nil
	}
	terms, err := c.Discover(t.Context(), Ask{Key: "look", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01")})
	if err != nil || terms.Addr != reserved {
		t.Errorf("offered %v, %v", terms.Addr, err)
	}
	if lease := c.must(t, Ask{Key: "web", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:02")}); lease.Addr == reserved {
		t.Error("took the host's")
	}
}

// TestDeclineServers: an address that another machine has is declined, and the
// server gives another.
func TestDeclineServers(t *testing.T) {
	t.Parallel()
	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			p := m.start(l.host(serverAddr + "/64"))
			c := l.host().client()
			var first netip.Addr
			var mu sync.Mutex
			c.cfg.Check = func(_ context.Context, _ string, a netip.Addr, mac net.HardwareAddr) (net.HardwareAddr, error) {
				mu.Lock()
				defer mu.Unlock()
				if !first.IsValid() {
					first = a
				}
				if a == first {
					return mustMAC("02:00:00:00:00:99"), nil
				}
				return nil, nil
			}
			lease := c.must(t, Ask{Key: "web", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01")})
			if lease.Addr == first {
				t.Errorf("took %s all the same", first)
			}
			if p.count("DECLINE") == 0 {
				t.Error("the server has not seen a decline")
			}
		})
	}
}

// TestShared: ten containers on one MAC, as with ipvlan, have ten addresses.
func TestShared(t *testing.T) {
	t.Parallel()
	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			m.start(l.host(serverAddr + "/64"))
			c := l.host().client()
			seen := map[netip.Addr]bool{}
			for i := range 10 {
				name := fmt.Sprint("c", i)
				seen[c.must(t, Ask{Key: name, Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01"), DUID: NameDUID(name)}).Addr] = true
			}
			if len(seen) != 10 {
				t.Errorf("%d addresses", len(seen))
			}
		})
	}
}

// TestPassthru: the container has the parent's MAC and takes all that the parent
// receives; the answers are heard all the same.
func TestPassthru(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.host(serverAddr + "/64").kea("")
	h := l.host()
	c := h.client()
	a := Ask{Key: "web", Link: "eth0", MAC: h.mac(), Passthru: true}
	lease := c.must(t, a)
	inner := newSpace(t)
	h.IP("link add link eth0 name child type macvlan mode passthru", fmt.Sprintf("link set child netns %d name eth0", inner.TID))
	inner.IP("link set eth0 up", fmt.Sprintf("addr add %s/64 dev eth0 nodad", lease.Addr))
	h.eventually("two renewals", 15*time.Second, func() bool { return c.told(Renewed) >= 2 })
}

// TestIPvlan: the container has the parent's MAC, and takes what is for its
// addresses.
func TestIPvlan(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	h := l.host()
	inner := newSpace(t)
	if out, err := h.command("ip", "link", "add", "link", "eth0", "name", "child", "type", "ipvlan", "mode", "l2"); err != nil {
		nstest.Lack(t, "ipvlan: "+out)
	}
	l.host(serverAddr + "/64").dnsmasq()
	c := h.client()
	lease := c.must(t, Ask{Key: "web", Link: "eth0", MAC: h.mac(), DUID: NameDUID("web")})
	h.IP(fmt.Sprintf("link set child netns %d name eth0", inner.TID))
	inner.IP("link set eth0 up", fmt.Sprintf("addr add %s/64 dev eth0 nodad", lease.Addr))
	c.Close()
	lease.Renew = time.Now()
	c = h.client()
	if err := c.Restore([]Lease{lease}); err != nil {
		t.Fatal(err)
	}
	h.eventually("a renewal", 5*time.Second, func() bool { return c.told(Renewed) > 0 })
	if other := c.must(t, Ask{Key: "db", Link: "eth0", MAC: h.mac(), DUID: NameDUID("db")}); other.Addr == lease.Addr {
		t.Errorf("both have %s", lease.Addr)
	}
}

// TestVLAN: neither an answer for another VLAN, nor one that is lost there.
func TestVLAN(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	server := l.host()
	if out, err := server.command("ip", "link", "add", "link", "eth0", "name", "v5", "type", "vlan", "id", "5"); err != nil {
		nstest.Lack(t, "VLANs: "+out)
	}
	server.IP("link set v5 up", "addr add "+serverAddr+"/64 dev v5 nodad")
	server.dnsmasq("--interface=v5", "--except-interface=eth0")
	h := l.host()
	h.IP("link add link eth0 name eth0.5 type vlan id 5", "link set eth0.5 up")
	c := h.client()
	c.must(t, Ask{Key: "web", Link: "eth0.5", MAC: mustMAC("02:42:0a:00:00:01")})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if lease, err := c.Acquire(ctx, Ask{Key: "db", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:02")}); err == nil {
		t.Errorf("%s by another VLAN's server", lease.Addr)
	}
}

// TestLink: a parent that is down, goes down, goes away, and comes back.
func TestLink(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.host(serverAddr + "/64").kea("")
	h := l.host()
	c := h.client()
	a := Ask{Key: "web", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01")}
	h.IP("link set eth0 down")
	if _, err := c.Acquire(t.Context(), a); err == nil || err.Error() != "parent eth0 is down: ip link set eth0 up" {
		t.Error(err)
	}
	if _, err := c.Acquire(t.Context(), Ask{Key: "x", Link: "eth9", MAC: a.MAC}); err == nil || !strings.HasPrefix(err.Error(), "parent eth9 is not there") {
		t.Error(err)
	}
	h.IP("link set eth0 up")
	h.running()
	c.must(t, a)
	h.IP("link set eth0 down")
	h.eventually("trouble", 3*time.Second, func() bool { return c.Leases()[0].Trouble != nil })
	n := c.told(Renewed)
	h.IP("link set eth0 up")
	time.Sleep(100 * time.Millisecond)
	c.Rouse()
	h.eventually("renewals", 15*time.Second, func() bool { return c.told(Renewed) > n })
	if c.told(Lost) > 0 {
		t.Error("lost")
	}
}

// TestRealStorm: 200 leases at once.
func TestRealStorm(t *testing.T) {
	servers := []struct {
		name  string
		start func(s *space) *process
	}{
		{"dnsmasq", func(s *space) *process { return s.dnsmasq() }},
		{"kea", func(s *space) *process {
			return s.keaSaying("INFO", `, "preferred-lifetime": 1200, "valid-lifetime": 1200, "renew-timer": 600, "rebind-timer": 900`)
		}},
	}
	for _, m := range servers {
		t.Run(m.name, func(t *testing.T) {
			l := newLAN(t)
			m.start(l.host(serverAddr + "/64"))
			c := l.host().client()
			begin := time.Now()
			var wg sync.WaitGroup
			var mu sync.Mutex
			seen := map[netip.Addr]bool{}
			for i := range 200 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
					defer cancel()
					lease, err := c.Acquire(ctx, Ask{Key: fmt.Sprint("c", i), Link: "eth0", MAC: mustMAC(fmt.Sprintf("02:42:0a:00:01:%02x", i))})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					seen[lease.Addr] = true
				})
			}
			wg.Wait()
			if len(seen) != 200 {
				t.Errorf("%d addresses", len(seen))
			}
			t.Logf("200 leases in %v", time.Since(begin).Round(time.Millisecond))
		})
	}
}
