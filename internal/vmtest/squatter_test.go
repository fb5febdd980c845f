//go:build vm

package vmtest

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// given checks addresses that were given out: inside, none twice, none of
// those that others have.
func given(t *testing.T, subnet string, addrs []string, others ...string) {
	t.Helper()
	inside := netip.MustParsePrefix(subnet)
	seen := map[string]bool{}
	for _, a := range addrs {
		switch addr, err := netip.ParseAddr(a); {
		case err != nil || !inside.Contains(addr):
			t.Errorf("%q was given out of %s", a, subnet)
		case seen[a]:
			t.Errorf("%s was given out twice", a)
		}
		seen[a] = true
	}
	var taken []string
	for _, o := range others {
		if p, err := netip.ParsePrefix(o); err == nil {
			o = p.Addr().String()
		}
		if seen[o] {
			taken = append(taken, o)
		}
	}
	if len(taken) > 0 {
		t.Errorf("%d of %d addresses were given out that another machine has: %s", len(taken), len(addrs), strings.Join(taken, " "))
	}
}

// Nobody told the plugin of a hundred machines on the LAN.
func TestSquatters(t *testing.T) {
	b := begin(t)
	crowd := b.neighbour("crowd")
	squatters := run("192.168.50.100", 100, 24)
	squatters6 := run("fd00:50::1:1", 60, 64)
	crowd.has(t, "eth0", append(squatters, squatters6...)...)
	mac := links(t, crowd)["eth0"].MAC

	t.Run("a small range", func(t *testing.T) {
		b := begin(t)
		b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ip-range", "192.168.50.96/29",
			"--ipam-opt", "exclude=192.168.50.96-192.168.50.97", "-o", "parent=eth0", "small")
		c1, c2 := b.pair("small")
		given(t, "192.168.50.98/31", append(c1.addrs("small"), c2.addrs("small")...))
		b.disconnect("small", "base2")
		b.pool("192.168.50.0/24", "192.168.50.96/29", map[string]string{"exclude": "192.168.50.96-192.168.50.97"}).must("", "")
		_, err := tryDocker("network", "connect", "small", "base2")
		refused(t, err, `192\.168\.50\.96/29`, `8 addresses`, `2 are held`, `2 excluded`, `4 in use`)
		b.disconnect("small", "base1")
	})

	t.Run("unasked", func(t *testing.T) {
		b := begin(t)
		b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ipam-opt", "conflict=listen", "-o", "parent=eth0", "lan")
		do(t, crowd, "arping -q -c 1 -w 1 -I eth0 -s 192.168.50.110 192.168.50.1 || :")
		p := b.pool("192.168.50.0/24", "", map[string]string{"conflict": "listen"})
		eventually(t, "what was heard", func(s lanState) bool {
			return slices.ContainsFunc(s.Pools, func(p poolState) bool {
				return slices.Contains(p.LAN.InUse, sighting{"192.168.50.110", mac})
			})
		})
		_, err := p.request("192.168.50.110", "")
		refused(t, err, `192\.168\.50\.110`, mac, `in use`)
		p.must("192.168.50.111", "") // nobody has asked who has it
		docker(t, "network", "rm", "lan")

		b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ipam-opt", "conflict=off", "-o", "parent=eth0", "lan")
		b.pool("192.168.50.0/24", "", map[string]string{"conflict": "off"}).must("192.168.50.110", "")
	})

	b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ipv6", "--subnet", "fd00:50::/64", "--gateway", router6,
		"--ip-range", "fd00:50::1:0/120", "-o", "parent=eth0", "lan")
	before := picture(t)
	_, err := tryDocker("network", "connect", "--ip", "192.168.50.150", "lan", "base1")
	refused(t, err, `192\.168\.50\.150`, mac, `in use`)
	unchanged(t, "an address in use", before)
	_, err = tryDocker("network", "connect", "--ip6", "fd00:50::1:7", "lan", "base1")
	refused(t, err, `fd00:50::1:7`, mac, `in use`)

	// 150 containers' worth: six of them are real.
	names := []string{"one", "two", "three", "four"}
	var starts []func()
	for _, name := range names {
		starts = append(starts, func() { b.run(name, "--network", "lan") })
	}
	v4, v6 := b.pool("192.168.50.0/24", "", nil), b.pool("fd00:50::/64", "fd00:50::1:0/120", nil)
	var addrs, addrs6 []string
	many := func(p *pool, to *[]string, n int) func() {
		return func() {
			got, err := p.burst(n)
			if err != nil {
				t.Error(err)
			}
			*to = append(*to, got...)
		}
	}
	together(append(starts, func() { b.pair("lan") }, many(v4, &addrs, 44), many(v6, &addrs6, 44))...)
	together(many(v4, &addrs, 100))
	together(many(v6, &addrs6, 100))
	if t.Failed() {
		return
	}
	all, all6 := slices.Clone(addrs), slices.Clone(addrs6)
	for _, name := range append(names, "base1", "base2") {
		e := inspect(t, name).NetworkSettings.Networks["lan"]
		all, all6 = append(all, e.IPAddress), append(all6, e.GlobalIPv6Address)
	}
	given(t, "192.168.50.0/24", all, append(squatters, router4, docker4, host4)...)
	given(t, "fd00:50::1:0/120", all6, squatters6...)
	if len(all) != 150 || len(all6) != 150 {
		t.Errorf("%d and %d addresses were given out, want 150", len(all), len(all6))
	}

	// 254 less the crowd, router, Docker host and host1 make 151, less what
	// dockerd has forgotten for a minute: the IPv4 address of the refusal above.
	for range 3 {
		var got string
		if got, err = v4.request("", ""); err != nil {
			break
		}
		addrs = append(addrs, got)
		given(t, "192.168.50.0/24", []string{got}, append(squatters, router4, docker4, host4)...)
	}
	refused(t, err, `192\.168\.50\.0/24`, `254 addresses`, `15\d are held`, `0 excluded`, `10\d in use`)
	if err != nil {
		n := regexp.MustCompile(`(\d+) are held, (\d+) excluded, (\d+) reserved or the host's own, (\d+) in use`).FindStringSubmatch(err.Error())
		sum := 0
		for _, text := range n[min(1, len(n)):] {
			k, _ := strconv.Atoi(text)
			sum += k
		}
		if sum != 254 {
			t.Errorf("the counts do not make 254: %v", err)
		}
	}
	v4.release(addrs...)
	v6.release(addrs6...)
	b.disconnect("lan", "base1")
	b.disconnect("lan", "base2")
}

// Machines are found on a NIC where the host has no address and no IPv6, and on
// a VLAN; slow ones, and one that comes later.
func TestSquattersElsewhere(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	crowd := b.neighbour("crowd")
	do(t, crowd, "ip link add link eth0 name eth0.10 type vlan id 10 && ip link set eth0.10 up")
	crowd.has(t, "eth0", append(run("192.168.51.76", 3, 24), run("fd00:51::4c", 3, 64)...)...)
	crowd.has(t, "eth0.10", append(run("192.168.10.76", 3, 24), run("fd00:10::4c", 3, 64)...)...)
	late := b.neighbour("late")
	late.has(t, "eth0", "192.168.51.90/24", "fd00:51::90/64")
	do(t, late, "tc qdisc add dev eth0 root netem delay 400ms")
	do(t, "", "sysctl -qw net.ipv6.conf.eth1.disable_ipv6=1")
	defer do(t, "", "sysctl -qw net.ipv6.conf.eth1.disable_ipv6=0")

	// One address of each range is free.
	b.network("--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "--ip-range", "192.168.51.76/30",
		"--ipv6", "--subnet", "fd00:51::/64", "--gateway", "fd00:51::1", "--ip-range", "fd00:51::4c/126",
		"--ipam-opt", "probe_wait=1s", "-o", "parent=eth1", "bare")
	b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "--ip-range", "192.168.10.76/30",
		"--ipv6", "--subnet", "fd00:10::/64", "--gateway", "fd00:10::1", "--ip-range", "fd00:10::4c/126", "-o", "parent=eth0.10", "tagged")
	bare := b.connect("bare", "base1")
	tagged := b.connect("tagged", "base2")
	for want, got := range map[string][]string{
		"[192.168.51.79 fd00:51::4f]": bare.addrs("bare"),
		"[192.168.10.79 fd00:10::4f]": tagged.addrs("tagged"),
	} {
		if is := "[" + got[0] + " " + got[len(got)-1] + "]"; is != want {
			t.Errorf("got %s, want %s: what is free", is, want)
		}
	}
	reaches(t, "the container to its router", bare.at(), "192.168.51.1", "fd00:51::1")
	reaches(t, "the container to its VLAN's router", tagged.at(), "192.168.10.1", "fd00:10::1")

	lateMAC := links(t, late)["eth0"].MAC
	_, err := tryDocker("network", "connect", "--ip", "192.168.51.90", "bare", "base2")
	refused(t, err, `192\.168\.51\.90`, lateMAC, `in use`)
	_, err = b.pool("fd00:51::/64", "fd00:51::4c/126", map[string]string{"probe_wait": "1s"}).request("fd00:51::90", "")
	refused(t, err, `fd00:51::90`, lateMAC, `in use`)

	// Two that come later and take what a container has.
	late.has(t, "eth0", "192.168.51.79/24", "fd00:51::4f/64")
	do(t, late, "arping -q -U -c 1 -I eth0 192.168.51.79 || :; ping -q -c 1 -W 1 -I fd00:51::4f fd00:51::1 || :")
	conflict := func(addr string) func(lanState) bool {
		return func(s lanState) bool {
			return slices.ContainsFunc(s.Pools, func(p poolState) bool {
				return slices.Contains(p.LAN.Conflicts, sighting{addr, lateMAC})
			})
		}
	}
	eventually(t, "the conflict", conflict("192.168.51.79"))
	eventually(t, "the conflict", conflict("fd00:51::4f"))
	logged(t, "address conflict", "192.168.51.79", lateMAC)
	logged(t, "address conflict", "fd00:51::4f", lateMAC)
	b.disconnect("bare", "base1")
	eventually(t, "no conflict, once the container has gone", func(s lanState) bool {
		return !conflict("192.168.51.79")(s) && !conflict("fd00:51::4f")(s)
	})
	// And it is the late one's now.
	_, err = tryDocker("network", "connect", "bare", "base1")
	refused(t, err, `192\.168\.51\.76/30`, `in use`)
	b.disconnect("tagged", "base2")
}

// Five hundred containers at a time.
func TestBurst(t *testing.T) {
	b := begin(t)
	crowd := b.neighbour("crowd")
	squatters := run("172.20.0.11", 300, 22)
	crowd.has(t, "eth0", squatters...)
	b.network("--subnet", "172.20.0.0/22", "--gateway", "172.20.0.1", "-o", "parent=eth0", "large")
	p := b.pool("172.20.0.0/22", "", nil)
	start := time.Now()
	addrs, err := p.burst(500)
	t.Logf("500 addresses in %.1f s", time.Since(start).Seconds())
	if err != nil {
		t.Error(err)
	}
	if len(addrs) != 500 {
		t.Errorf("%d addresses were given out, want 500", len(addrs))
	}
	for _, p := range lans(t).Pools {
		if p.LAN.Blind != "" {
			t.Errorf("%s was not probed to the end: %s", p.Subnet, p.LAN.Blind)
		}
	}
	given(t, "172.20.0.0/22", addrs, append(squatters, "172.20.0.0", "172.20.0.1", "172.20.3.255")...)
	p.release(addrs[:min(100, len(addrs))]...) // the others go with the network
}

// A parent that is down has nothing to ask: containers start all the same, and
// both log and state say so until it is up.
func TestBlind(t *testing.T) {
	b := begin(t)
	b.network("--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "--ip-range", "192.168.51.64/28", "-o", "parent=eth2", "dark")
	blind := func(s lanState) bool {
		return slices.ContainsFunc(s.LANs, func(l struct{ Link, Blind string }) bool { return l.Link == "eth2" && l.Blind != "" })
	}
	eventually(t, "eth2 is heard", func(s lanState) bool { return !blind(s) })
	do(t, "", "ip link set eth2 down")
	defer do(t, "", "ip link set eth2 up")
	c := b.connect("dark", "base1")
	given(t, "192.168.51.64/28", c.addrs("dark"))
	eventually(t, "eth2 is blind", blind)
	logged(t, "eth2 is down", "level=warning")
	do(t, "", "ip link set eth2 up")
	eventually(t, "eth2 is heard again", func(s lanState) bool { return !blind(s) })
	logged(t, "eth2 is heard again")
	reaches(t, "the container, its parent up", c.at(), "192.168.51.1")
	b.disconnect("dark", "base1")
}

// A switch that sends frames back, as vepa wants it, sends back the host's own
// probes and announcements.
func TestHairpinProbes(t *testing.T) {
	b := begin(t)
	hairpin(t, true)
	defer hairpin(t, false)
	b.network(lanArgs("-o", "macvlan_mode=vepa", "lan")...)
	c1, c2 := b.pair("lan")
	reaches(t, "container to container", c1.at(), c2.addrs("lan")...)
	for _, p := range lans(t).Pools {
		for _, a := range append(c1.addrs("lan"), c2.addrs("lan")...) {
			if slices.ContainsFunc(slices.Concat(p.LAN.InUse, p.LAN.Conflicts), func(s sighting) bool { return s.Address == a }) {
				t.Errorf("%s counts as another machine's: %+v", a, p.LAN)
			}
		}
		if len(p.LAN.InUse) > 1 && p.Subnet == "192.168.50.0/24" { // host1 may have been heard
			t.Errorf("in use: %+v", p.LAN.InUse)
		}
	}
	b.disconnect("lan", "base1")
	b.disconnect("lan", "base2")
}
