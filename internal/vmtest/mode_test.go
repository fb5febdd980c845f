//go:build vm

package vmtest

import (
	"strings"
	"testing"

	"underlay/internal/mode"
)

// The main job: containers on the LAN, made by docker run. Three at the same
// time, each on a NIC of its own.
func TestRun(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	b.network(lanArgs("lan")...)
	b.network("--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "--ipv6", "--subnet", "fd00:51::/64", "--gateway", "fd00:51::1",
		"-o", "parent=eth2", "-o", "ipvlan_mode=l2", "flat")
	var mac, flat, dual container
	together(
		func() { mac = b.run("mac", "--network", "lan") },
		func() { dual = b.run("dual", "--network", "lan", "--cap-drop", "all") },
		func() { flat = b.run("flat", "--network", "flat", "--ip", "192.168.51.200") },
	)
	if t.Failed() {
		return
	}
	for _, c := range []container{mac, dual} {
		if n := links(t, c.at()); len(n) != 1 {
			t.Errorf("%s has the links %v, want eth0 alone", c.Name, n)
		}
		reaches(t, c.Name+" to a LAN host", c.at(), host4, host6)
		reaches(t, c.Name+" to the router", c.at(), router4, router6)
		reaches(t, c.Name+" through the router", c.at(), internet4, internet6)
		reaches(t, "a LAN host to "+c.Name, "host1", c.addrs("lan")...)
	}
	reaches(t, "container to container", mac.at(), dual.addrs("lan")...)
	// The Docker host and its macvlan containers are kept apart by the kernel.
	isolated(t, "the Docker host to its container", "", mac.addrs("lan")...)
	eth0 := links(t, flat.at())["eth0"]
	if want := links(t, "")["eth2"].MAC; eth0.MAC != want || !eth0.holds("192.168.51.200/24") {
		t.Errorf("the ipvlan container's eth0 is %+v, want MAC %s", eth0, want)
	}
	reaches(t, "the ipvlan container through the router", flat.at(), "192.168.51.1", "fd00:51::1", internet4, internet6)
}

// Who reaches whom in each of the 4 macvlan and 3 × 3 ipvlan modes.
func TestModes(t *testing.T) {
	for _, m := range mode.All() {
		t.Run(strings.ReplaceAll(string(m.Kind)+" "+m.Name+" "+m.Flag, " ", "-"), func(t *testing.T) {
			if m.Kind == mode.IPvlan {
				needs(t, "ipvlan")
			}
			b := begin(t)
			opts := []string{"-o", "macvlan_mode=" + m.Name, "net"}
			if m.Kind == mode.IPvlan {
				opts = []string{"-o", "ipvlan_mode=" + m.Name, "-o", "ipvlan_flag=" + m.Flag, "net"}
			}
			args := lanArgs(opts...)
			if m.RoutesByLink() {
				args = append([]string{"--subnet", "192.168.60.0/24", "--ipv6", "--subnet", "fd00:60::/64", "-o", "parent=eth0"}, opts...)
			}
			b.network(args...)
			if m.Alone() {
				passthru(b)
				return
			}
			c1, c2 := b.pair("net")
			for _, c := range []container{c1, c2} {
				reaches(t, c.Name+" to a LAN host", c.at(), host4, host6)
				reaches(t, "a LAN host to "+c.Name, "host1", c.addrs("net")...)
			}
			reaches(t, "through the router", c1.at(), internet4, internet6)
			peer := c2.addrs("net")
			switch flag := m.Flag + map[bool]string{true: m.Name}[m.Flag == ""]; {
			case flag == "bridge":
				reaches(t, "container to container", c1.at(), peer...)
			case flag == "private":
				isolated(t, "container to container", c1.at(), peer...)
				hairpin(t, true)
				isolated(t, "container to container by the switch", c1.at(), peer...)
				hairpin(t, false)
			case m.RoutesByLink(): // vepa: through the router
				reaches(t, "container to container by the router", c1.at(), peer...)
				do(t, "router", "ip route del 192.168.60.0/24; ip -6 route del fd00:60::/64")
				isolated(t, "container to container, no router", c1.at(), peer...)
				do(t, "router", "ip route add 192.168.60.0/24 via "+docker4+"; ip route add fd00:60::/64 via "+docker6)
			default: // vepa: through the switch
				isolated(t, "container to container, no hairpin", c1.at(), peer...)
				hairpin(t, true)
				reaches(t, "container to container by the switch", c1.at(), peer...)
				hairpin(t, false)
			}
			b.disconnect("net", "base1")
			b.disconnect("net", "base2")
		})
	}
}

// passthru gives the parent to one container.
func passthru(b *test) {
	c := b.connect("net", "base1")
	e := c.NetworkSettings.Networks["net"]
	if want := links(b.T, "")["eth0"].MAC; e.MacAddress != want {
		b.Errorf("the container's MAC is %s, want the parent's %s", e.MacAddress, want)
	}
	reaches(b.T, "the container to a LAN host", c.at(), host4, host6)
	reaches(b.T, "through the router", c.at(), internet4, internet6)
	reaches(b.T, "a LAN host to the container", "host1", c.addrs("net")...)
	_, err := tryDocker("network", "connect", "net", "base2")
	refused(b.T, err, `parent eth0`, `pass`)
	b.disconnect("net", "base1")
	// Free for the next one at once.
	c = b.connect("net", "base2")
	reaches(b.T, "the next container to a LAN host", c.at(), host4, host6)
	b.disconnect("net", "base2")
}

// The three families of modes by docker run, where up to Docker 27 the
// container's namespace is not there yet when dockerd asks for its link.
func TestRunEveryKind(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	b.network("--subnet", "192.168.60.0/24", "--ipv6", "--subnet", "fd00:60::/64", "-o", "parent=eth0", "-o", "ipvlan_mode=l3s", "routed")
	b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "-o", "parent=eth1", "-o", "macvlan_mode=passthru", "alone")
	var routed, alone container
	together(
		func() { routed = b.run("routed", "--network", "routed") },
		func() { alone = b.run("alone", "--network", "alone", "--ip", "192.168.50.90") },
	)
	if t.Failed() {
		return
	}
	reaches(t, "the l3s container to a LAN host", routed.at(), host4, host6)
	reaches(t, "the l3s container through the router", routed.at(), internet4, internet6)
	reaches(t, "a LAN host to the l3s container", "host1", routed.addrs("routed")...)
	if routes := do(t, routed.at(), "ip route; ip -6 route"); !strings.Contains(routes, "default dev eth0") || strings.Contains(routes, "via") {
		t.Errorf("the l3s container has the routes\n%swant a default by the link", routes)
	}
	reaches(t, "the passthru container to a LAN host", alone.at(), host4, router4)
	if _, err := alone.resolve("routed"); err == nil {
		t.Error("a container's name resolves across networks")
	}
}
