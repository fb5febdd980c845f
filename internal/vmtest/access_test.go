//go:build vm

package vmtest

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// ofFamily are those of some addresses that are of the family of one.
func ofFamily(of string, addrs []string) (same []string) {
	for _, a := range addrs {
		if netip.MustParseAddr(a).Is4() == netip.MustParseAddr(of).Is4() {
			same = append(same, a)
		}
	}
	return same
}

// access wants the host and a container to reach each other: ping and TCP, by
// the container's addresses of a network and by all of the host's own, each
// seeing the other by an address of its own. In the container and in the host a
// server runs.
func access(t *testing.T, what string, c container, network string, inside, host *echo, own ...string) {
	t.Helper()
	addrs := c.addrs(network)
	for _, a := range addrs {
		reaches(t, what+": the host to "+c.Name, "", a)
		calls(t, what+": the host to "+c.Name, "", a, inside, ofFamily(a, own)...)
	}
	// A container may have made itself one by an advertisement (RFC 4862).
	for _, l := range links(t, c.at()) {
		for _, a := range l.Addrs {
			addrs = append(addrs, a.Local)
		}
	}
	for _, h := range own {
		reaches(t, what+": "+c.Name+" to the host", c.at(), h)
		calls(t, what+": "+c.Name+" to the host", c.at(), h, host, ofFamily(h, addrs)...)
	}
}

// Host and containers reach each other in each mode that allows it, whatever
// the host filters, and nobody on the LAN learns of it.
func TestHostAccess(t *testing.T) {
	b := begin(t)
	// What a new link would take over must not count for the host's way in.
	b.sysctl("net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.default.arp_ignore=2",
		"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
	has := []string{"192.168.50.5", "fd00:50::5"}
	do(t, "", "ip addr add 192.168.50.5/24 dev eth0; ip addr add fd00:50::5/64 dev eth0 nodad")
	t.Cleanup(func() { do(t, "", "ip addr del 192.168.50.5/24 dev eth0; ip addr del fd00:50::5/64 dev eth0") })
	own := append([]string{docker4, docker6}, has...)
	b.witness()
	host := serve(t, "")

	routed := []string{"--subnet", "192.168.60.0/24", "--ipv6", "--subnet", "fd00:60::/64", "-o", "parent=eth0"}
	for _, row := range []struct {
		name string
		args []string
		lan  bool // host1 knows these addresses
	}{
		{"macvlan", lanArgs(), true},
		{"ipvlan-l2", lanArgs("-o", "ipvlan_mode=l2"), true},
		{"ipvlan-l3", append(routed, "-o", "ipvlan_mode=l3"), true},
		{"ipvlan-l3s", append(routed, "-o", "ipvlan_mode=l3s"), true},
		// A VLAN on which the host has no address: its own of the LAN it is.
		{"VLAN", []string{"--subnet", "192.168.20.0/24", "--gateway", "192.168.20.1", "--ipv6", "--subnet", "fd00:20::/64", "--gateway", "fd00:20::1",
			"-o", "parent=eth0", "-o", "vlan=20"}, false},
		{"VLAN-ipvlan-l2", []string{"--subnet", "192.168.20.0/24", "--gateway", "192.168.20.1", "--ipv6", "--subnet", "fd00:20::/64", "--gateway", "fd00:20::1",
			"-o", "parent=eth0.20", "-o", "ipvlan_mode=l2"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.name != "macvlan" {
				needs(t, "VLAN and ipvlan")
			}
			b := begin(t)
			b.network(append(row.args, "-o", "host_access=true", "net")...)
			if n := shimCount(t); n != 0 {
				t.Errorf("%d links for host access are there before there is a container", n)
			}
			var started container
			var c []container
			together(
				func() { c1, c2 := b.pair("net"); c = []container{c1, c2} },
				func() {
					if row.name == "macvlan" {
						started = b.run("started", "--network", "net")
					}
				},
			)
			if t.Failed() {
				return
			}
			if started.Name != "" {
				access(t, "docker run", started, "net", serve(t, started.at()), host, own...)
				docker(t, "rm", "-f", "started")
			}
			inside := serve(t, c[0].at())
			for _, filter := range []string{"1", "2"} {
				set(t, "net.ipv4.conf.all.rp_filter="+filter, "net.ipv4.conf.eth0.rp_filter="+filter)
				access(t, "rp_filter="+filter, c[0], "net", inside, host, own...)
			}
			set(t, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
			later(t, c[0].at())
			reaches(t, "container to container", c[0].at(), c[1].addrs("net")...)
			if row.lan {
				reaches(t, "a LAN host to the container", "host1", c[0].addrs("net")...)
				reaches(t, "the container to a LAN host", c[0].at(), host4, host6)
			}
			if n := shimCount(t); n != 1 {
				t.Errorf("%d links give host access, want one", n)
			}
			b.disconnect("net", "base1")
			isolated(t, "the host to a container that has left", "", c[0].addrs("net")...)
			reaches(t, "the host to the one that stays", "", c[1].addrs("net")...)
			b.disconnect("net", "base2")
			if n := shimCount(t); n != 0 {
				t.Errorf("%d links for host access are left after the last container", n)
			}
		})
	}
}

// later gives the host addresses that a container which runs is to know.
func later(t *testing.T, from place) {
	do(t, "", "ip addr add 192.168.50.7/24 dev eth0; ip addr add fd00:50::7/64 dev eth0 nodad")
	defer do(t, "", "ip addr del 192.168.50.7/24 dev eth0; ip addr del fd00:50::7/64 dev eth0")
	reaches(t, "a container that runs to an address that the host has got since", from, "192.168.50.7", "fd00:50::7")
}

// A container on two networks with host access has its routes from the first, and
// keeps the host when it leaves that.
func TestHostAccessTwice(t *testing.T) {
	b := begin(t)
	own := []string{docker4, docker6}
	b.network(lanArgs("-o", "host_access=true", "first")...)
	b.network("--subnet", "192.168.60.0/24", "--ipv6", "--subnet", "fd00:60::/64", "-o", "no_default_route=true",
		"-o", "parent=eth0", "-o", "host_access=true", "second")
	c := b.run("both", "--network", "first")
	docker(t, "network", "connect", "second", "both")
	reaches(t, "on both networks", c.at(), own...)
	docker(t, "network", "disconnect", "first", "both")
	reaches(t, "on the second alone", c.at(), own...)
	reaches(t, "the host to the container", "", inspect(t, "both").addrs("second")...)
	docker(t, "rm", "-f", "both")
}

// Connections between host and containers live on while other containers,
// networks, the plugin and router advertisements come and go; and what a NIC or
// an address takes with it when it goes comes back with it.
func TestHostAccessBusy(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	lasts := time.Minute
	if testing.Short() {
		lasts = 20 * time.Second
	}
	b.sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
	do(t, "", `
ip link add link eth0 name eth0.10 type vlan id 10
ip addr add 192.168.10.2/24 dev eth0.10
ip addr add fd00:10::2/64 dev eth0.10 nodad
ip link set eth0.10 up`)
	t.Cleanup(func() { do(t, "", "ip link del eth0.10") })
	b.advertise()
	w := b.witness()
	own := map[string][]string{"mac": {docker4, docker6}, "flat": {"192.168.10.2", "fd00:10::2"}}
	for _, a := range links(t, "")["eth0"].Addrs { // the one by advertisement
		if netip.MustParsePrefix(slaac).Contains(netip.MustParseAddr(a.Local)) {
			own["mac"] = append(own["mac"], a.Local)
		}
	}
	if len(own["mac"]) != 3 {
		t.Fatalf("eth0 has %+v, want an address of %s", links(t, "")["eth0"].Addrs, slaac)
	}
	own["mac2"] = own["mac"]
	// No default routes: up to Docker 27 dockerd cannot set its own in a container
	// that an advertisement has given one, be it a moment before.
	b.network(lanArgs("-o", "no_default_route=true", "-o", "host_access=true", "mac")...)
	b.network("--subnet", "192.168.10.0/24", "--ipv6", "--subnet", "fd00:10::/64",
		"-o", "parent=eth0.10", "-o", "ipvlan_mode=l2", "-o", "no_default_route=true", "-o", "host_access=true", "flat")
	var mac, flat container
	together(
		func() { mac = b.connect("mac", "base1") },
		func() { flat = b.connect("flat", "base2") },
	)
	host, in1, in2 := serve(t, ""), serve(t, mac.at()), serve(t, flat.at())
	access(t, "before", mac, "mac", in1, host, own["mac"]...)
	access(t, "before", flat, "flat", in2, host, own["flat"]...)

	start, stop := time.Now(), make(chan struct{})
	var talks sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); talks.Wait() })
	t.Cleanup(finish) // a test that has ended may not be told of a lost connection
	keep := func(what string, from place, to string) {
		conn, err := from.dial(to)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		talks.Go(func() {
			blocks, err := talk(conn, 20*time.Second, 5*time.Millisecond, stop)
			if err != nil {
				t.Errorf("%s: the connection to %s was lost after %v and %d blocks: %v", what, to, time.Since(start), blocks, err)
			} else if blocks < int(time.Since(start).Seconds()) {
				t.Errorf("%s: %d blocks went to %s in %v", what, blocks, to, time.Since(start))
			}
		})
	}
	for _, c := range []struct {
		container
		network string
	}{{mac, "mac"}, {flat, "flat"}} {
		for _, a := range c.addrs(c.network) {
			keep("the host to "+c.Name, "", a)
		}
		for _, h := range own[c.network] {
			keep(c.Name+" to the host", c.at(), h)
		}
	}

	// Each of the two is a newcomer to the other's network.
	reached := func(t *testing.T, c container, network string) {
		t.Helper()
		reaches(t, "the host to a newcomer", "", c.addrs(network)...)
		reaches(t, "a newcomer to the host", c.at(), own[network]...)
		b.disconnect(network, c.ID)
	}
	newcomer := func(t *testing.T, name, network string) {
		t.Helper()
		reached(t, b.connect(network, name), network)
	}
	t.Run("a second network", func(t *testing.T) {
		// The advertised prefix: its containers have two addresses there.
		b.network("--subnet", "192.168.51.0/24", "--ipv6", "--subnet", slaac, "--ip-range", "fd00:50:a::1:0/112",
			"-o", "parent=eth0", "-o", "no_default_route=true", "-o", "host_access=true", "prefix")
		c := b.connect("prefix", "base2")
		access(t, "two addresses of one prefix", c, "prefix", in2, host, own["mac"]...)
		b.disconnect("prefix", "base2")
		docker(t, "network", "rm", "prefix")

		b.network("--subnet", "192.168.51.0/24", "--ipv6", "--subnet", "fd00:51::/64",
			"-o", "parent=eth0", "-o", "no_default_route=true", "-o", "host_access=true", "mac2")
		c = b.connect("mac2", "base1") // it has the routes from the first
		b.connect("mac", "base2")
		d := b.connect("mac2", "base2")
		if n := shimCount(t); n != 2 {
			t.Errorf("%d links give host access to two parents, want two", n)
		}
		for _, c := range []container{c, d} {
			reaches(t, "two networks of one parent: the host to "+c.Name, "", append(c.addrs("mac"), c.addrs("mac2")...)...)
			reaches(t, "two networks of one parent: "+c.Name+" to the host", c.at(), own["mac"]...)
		}
		b.disconnect("mac2", "base1") // the later one first: see below
		b.disconnect("mac2", "base2")
		b.disconnect("mac", "base2")
	})
	t.Run("plugin killed", func(t *testing.T) {
		was := strings.Join(shims(), "\n")
		do(t, "", "kill -KILL "+strings.TrimSpace(do(t, "", "pidof underlay")))
		reaches(t, "the host to the container", "", mac.addrs("mac")...)
		answersAgain(t)
		reached(t, b.connectAnew("mac", "base2"), "mac")
		if is := strings.Join(shims(), "\n"); is != was {
			t.Errorf("the links for host access were\n%s\nand are\n%s", was, is)
		}
	})
	t.Run("plugin disabled", func(t *testing.T) {
		docker(t, "plugin", "disable", "-f", plugin)
		reaches(t, "the host to the container", "", mac.addrs("mac")...)
		reaches(t, "the container to the host", flat.at(), own["flat"]...)
		docker(t, "plugin", "enable", plugin)
		newcomer(t, "base1", "flat")
		reaches(t, "the host to the container", "", append(mac.addrs("mac"), flat.addrs("flat")...)...)
	})
	for n := 0; time.Since(start) < lasts; n++ {
		newcomer(t, []string{"base2", "base1"}[n%2], []string{"mac", "flat"}[n%2])
	}
	finish()
	if t.Failed() {
		return
	}

	again := func(t *testing.T) {
		t.Helper()
		// Within a few seconds it is as it was, the host's own source included.
		err := wait(5*time.Second, "the host's routes to its containers", func() error {
			for network, c := range map[string]container{"mac": mac, "flat": flat} {
				for k, a := range c.addrs(network) {
					if route, err := sh("", "ip route get "+a); err != nil || !strings.Contains(route, "src "+own[network][k]+" ") {
						return errorf("%s %v", route, err)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		access(t, "after", mac, "mac", in1, host, own["mac"]...)
		access(t, "after", flat, "flat", in2, host, own["flat"]...)
	}
	const restore = eth0Addresses + `
ip addr replace fd00:10::2/64 dev eth0.10 nodad`
	t.Run("parent down and up", func(t *testing.T) {
		w.aside(func() {
			do(t, "", "ip link set eth0 down; sleep 1; ip link set eth0 up"+restore)
		})
		again(t)
	})
	t.Run("carrier lost", func(t *testing.T) {
		w.aside(func() {
			do(t, "", "ip -n switch link set nic0 down; sleep 1; ip -n switch link set nic0 up; sleep 1"+restore)
		})
		again(t)
	})
	t.Run("addresses gone and back", func(t *testing.T) {
		w.aside(func() {
			do(t, "", "ip addr del 192.168.50.2/24 dev eth0; ip addr del fd00:50::2/64 dev eth0; sleep 1"+restore)
		})
		again(t)
	})
	t.Run("shim down", func(t *testing.T) {
		for name := range links(t, "") {
			if strings.HasPrefix(name, "ulh") {
				do(t, "", "ip link set "+name+" down")
			}
		}
		again(t)
	})
	t.Run("shims deleted, plugin away", func(t *testing.T) {
		docker(t, "plugin", "disable", "-f", plugin)
		for name := range links(t, "") {
			if strings.HasPrefix(name, "ulh") {
				do(t, "", "ip link del "+name)
			}
		}
		docker(t, "plugin", "enable", plugin)
		again(t)
	})
	// A container that leaves the network which gave it the routes to the host
	// has them again when it is started again.
	t.Run("the first of two networks left", func(t *testing.T) {
		b.run("two", "--network", "mac")
		b.connect("mac2", "two")
		b.disconnect("mac", "two")
		docker(t, "restart", "two")
		c := inspect(t, "two")
		access(t, "started again", c, "mac2", serve(t, c.at()), host, own["mac"]...)
	})
	b.disconnect("mac", "base1")
	b.disconnect("flat", "base2")
}

// answersAgain waits until a killed plugin answers again.
func answersAgain(t *testing.T) {
	t.Helper()
	err := wait(20*time.Second, "the plugin", func() error {
		if is := state(t); len(is) < 3 {
			return errorf("%v", is)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What this options refuse, in one line that says why, with nothing
// changed.
func TestReachRefusals(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	do(t, "", `
ip link add eth0.40 link eth0 type vlan id 41
ip link add eth0.42 link eth1 type vlan id 42
ip link add jumbo0 mtu 9000 type dummy
ip link set jumbo0 up`)
	t.Cleanup(func() { do(t, "", "ip link del eth0.40; ip link del eth0.42; ip link del jumbo0") })
	b.network("--subnet", "192.168.85.0/24", "-o", "parent=eth0.50", "plain")
	b.network("--subnet", "192.168.86.0/24", "-o", "parent=eth0.51.52", "double")
	sub := func(args ...string) []string {
		return append([]string{"--subnet", "192.168.80.0/24", "--gateway", "192.168.80.1", "-o", "parent=eth0"}, args...)
	}
	o := func(opts ...string) []string {
		var args []string
		for _, v := range opts {
			args = append(args, "-o", v)
		}
		return args
	}
	before := picture(t)
	mtu := "com.docker.network.driver.mtu="
	for _, row := range []struct {
		name string
		args []string
		says []string
	}{
		{"host access, private", sub(o("host_access=true", "macvlan_mode=private")...), []string{`host_access`, `macvlan private`, `macvlan_mode=bridge`}},
		{"host access, vepa", sub(o("host_access=true", "macvlan_mode=vepa")...), []string{`host_access`, `macvlan vepa`, `macvlan_mode=bridge`}},
		{"host access, passthru", sub(o("host_access=true", "macvlan_mode=passthru")...), []string{`host_access`, `macvlan passthru`, `alone`}},
		{"host access, ipvlan private", sub(o("host_access=true", "ipvlan_mode=l2", "ipvlan_flag=private")...), []string{`host_access`, `ipvlan l2 private`}},
		{"host access, ipvlan vepa", sub(o("host_access=true", "ipvlan_mode=l3", "ipvlan_flag=vepa")...), []string{`host_access`, `ipvlan l3 vepa`}},
		{"host access, internal", sub("--internal", "-o", "host_access=true"), []string{`host_access`, `--internal`}},
		{"host access, no parent", []string{"--subnet", "192.168.80.0/24", "-o", "host_access=true"}, []string{`host_access`, `-o parent`}},
		{"host access, maybe", sub("-o", "host_access=maybe"), []string{`host_access=maybe`, `true or false`}},
		{"vlan 0", sub("-o", "vlan=0"), []string{`vlan=0`, `1 to 4094`}},
		{"vlan 4095", sub("-o", "vlan=4095"), []string{`vlan=4095`, `1 to 4094`}},
		{"vlan abc", sub("-o", "vlan=abc"), []string{`vlan=abc`, `1 to 4094`}},
		{"vlan, no parent", []string{"--subnet", "192.168.80.0/24", "-o", "vlan=10"}, []string{`vlan=10`, `-o parent`}},
		{"eth0.0", sub("-o", "parent=eth0.0"), []string{`eth0\.0`, `1 to 4094`}},
		{"eth0.10.4095", sub("-o", "parent=eth0.10.4095"), []string{`4095`, `1 to 4094`}},
		{"another ID", sub("-o", "parent=eth0.40"), []string{`eth0\.40`, `VLAN 41 on eth0`, `VLAN 40`}},
		{"another ID, by vlan", sub("-o", "vlan=40"), []string{`eth0\.40`, `VLAN 41 on eth0`, `VLAN 40`}},
		{"another lower link", sub("-o", "parent=eth0.42"), []string{`eth0\.42`, `VLAN 42 on eth1`, `on eth0`}},
		{"another lower link, by vlan", sub("-o", "vlan=42"), []string{`eth0\.42`, `VLAN 42 on eth1`, `on eth0`}},
		{"a VLAN in a plain one", sub("-o", "parent=eth0.50.60"), []string{`eth0\.50`, `802\.1q|VLAN 50 on eth0`}},
		{"a plain VLAN that has others in it", sub("-o", "parent=eth0.51"), []string{`eth0\.51`, `802\.1ad|VLAN 51 on eth0`}},
		{"three VLANs", sub("-o", "parent=eth0.61.62.63"), []string{`eth0\.61`, `two VLANs`}},
		{"MTU 67", sub("-o", mtu+"67"), []string{`67`, `68`}},
		{"MTU 100000", sub("-o", mtu+"100000"), []string{`100000`, `parent's MTU`}},
		{"MTU abc", sub("-o", mtu+"abc"), []string{`abc`, `a number`}},
		{"MTU above the parent's", sub(o("parent=jumbo0", mtu+"9001")...), []string{`9001`, `9000`}},
		{"MTU above the VLAN's", sub(o("parent=jumbo0.10", mtu+"9001")...), []string{`9001`, `9000`}},
		{"MTU above the QinQ's", sub(o("parent=jumbo0.10.20", mtu+"9001")...), []string{`9001`, `9000`}},
		{"announce, macvlan", sub("-o", "announce=proxy"), []string{`announce=proxy`, `ipvlan_mode=l3`}},
		{"announce, l2", sub(o("announce=proxy", "ipvlan_mode=l2")...), []string{`announce=proxy`, `ipvlan_mode=l3`}},
		{"announce, internal", sub("--internal", "-o", "announce=proxy", "-o", "ipvlan_mode=l3"), []string{`announce=proxy`, `--internal`}},
		{"announce, bgp", sub(o("announce=bgp", "ipvlan_mode=l3")...), []string{`announce=bgp`, `proxy`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			networkRefusedFrom(t, before, row.args, row.says...)
		})
	}
	for _, setting := range []string{"arp_ignore=2", "proxy_arp=1"} {
		t.Run("host access, "+setting, func(t *testing.T) {
			b := begin(t)
			b.sysctl("net.ipv4.conf.all." + setting)
			networkRefused(t, sub("-o", "host_access=true"), `host access`, `net\.ipv4\.conf\.all\.`+setting)
		})
	}
}
