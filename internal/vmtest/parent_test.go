//go:build vm

package vmtest

import (
	"strings"
	"testing"
)

// A VLAN parent is made when it is absent, shared, and deleted with the last
// network that names it.
func TestVLAN(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "--ipv6", "--subnet", "fd00:10::/64", "--gateway", "fd00:10::1",
		"-o", "parent=eth0.10", "first")
	l := links(t, "")["eth0.10"]
	if id, _ := l.Info.Data["id"].(float64); l.Info.Kind != "vlan" || l.Lower != "eth0" || id != 10 {
		t.Fatalf("eth0.10 is %+v, want VLAN 10 on eth0", l)
	}
	b.network("--subnet", "192.168.11.0/24", "-o", "parent=eth0.10", "second")
	c := b.connect("first", "base1")
	reaches(t, "the container to its VLAN's router", c.at(), "192.168.10.1", "fd00:10::1")
	reaches(t, "the VLAN's router to the container", "router", c.addrs("first")...)
	isolated(t, "a host of the untagged LAN to the container", "router", "192.168.10.99")
	b.disconnect("first", "base1")
	docker(t, "network", "rm", "first")
	if _, ok := links(t, "")["eth0.10"]; !ok {
		t.Error("eth0.10 is gone, and network second still names it")
	}
	docker(t, "network", "rm", "second")
	if _, ok := links(t, "")["eth0.10"]; ok {
		t.Error("eth0.10 is left, and no network names it")
	}
}

// A VLAN link that was there before is used and left alone.
func TestForeignVLAN(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	do(t, "", "ip link add link eth0 name eth0.10 type vlan id 10 && ip link set eth0.10 up")
	defer do(t, "", "ip link del eth0.10")
	b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "tagged")
	c := b.connect("tagged", "base1")
	reaches(t, "the container to its VLAN's router", c.at(), "192.168.10.1")
	b.disconnect("tagged", "base1")
	docker(t, "network", "rm", "tagged")
	if _, ok := links(t, "")["eth0.10"]; !ok {
		t.Fatal("the user's eth0.10 was deleted")
	}
}

// No parent: an isolated dummy, and no way out.
func TestDummyParent(t *testing.T) {
	needs(t, "dummy")
	b := begin(t)
	before := links(t, "")
	b.network("--subnet", "10.77.0.0/24", "--ipv6", "--subnet", "fd00:77::/64", "island")
	var dummies int
	for name, l := range links(t, "") {
		if _, old := before[name]; !old && l.Info.Kind == "dummy" {
			dummies++
		}
	}
	if dummies != 1 {
		t.Errorf("%d dummy links were made, want 1", dummies)
	}
	c1, c2 := b.pair("island")
	reaches(t, "container to container", c1.at(), c2.addrs("island")...)
	if answer, err := c1.resolve("base2"); err != nil || !strings.Contains(answer, c2.addrs("island")[0]) {
		// The base network knows the name too; either answer is right.
		if !strings.Contains(answer, "10.99.0.") {
			t.Errorf("base2 resolves to %q, %v", answer, err)
		}
	}
	b.disconnect("island", "base1")
	b.disconnect("island", "base2")
}

// An internal network has no gateway, and docker_gwbridge does not appear.
func TestInternal(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	b.network("--internal", "--subnet", "192.168.50.0/24", "--ip-range", "192.168.50.64/26", "-o", "parent=eth0", "inner")
	var c container
	together(func() { c = b.run("inner", "--network", "inner") })
	if t.Failed() {
		return
	}
	if n := links(t, c.at()); len(n) != 1 {
		t.Errorf("the container has the links %v, want one", n)
	}
	if routes := do(t, c.at(), "ip route; ip -6 route"); strings.Contains(routes, "default") {
		t.Errorf("the container has a default route:\n%s", routes)
	}
	if _, ok := links(t, "")["docker_gwbridge"]; ok {
		t.Error("docker_gwbridge appeared")
	}
	if e := c.NetworkSettings.Networks["inner"]; e.Gateway != "" {
		t.Errorf("the container has the gateway %s", e.Gateway)
	}
	reaches(t, "the container to its own LAN", c.at(), host4)
	if release >= 28 { // dockerd asks whether a gateway is wanted
		b.network("--subnet", "192.168.60.0/24", "-o", "parent=eth1", "-o", "ipvlan_mode=l3", "routed")
		for _, line := range state(t) {
			if strings.Contains(line, "kind gateway") && !strings.Contains(line, "10.99.") {
				t.Errorf("a gateway address is held: %s", line)
			}
		}
	}
}

// What -o says about the link is on the link, and what the plugin tells of an
// endpoint is so.
func TestLinkOptions(t *testing.T) {
	b := begin(t)
	b.network("--subnet", "192.168.50.0/24", "--ip-range", "192.168.50.64/26", "-o", "parent=eth0",
		"-o", "com.docker.network.driver.mtu=1400", "-o", "bcqueuelen=2000", "narrow")
	c := b.connect("narrow", "base1")
	e := c.NetworkSettings.Networks["narrow"]
	var found bool
	for _, l := range links(t, c.at()) {
		if l.MAC != e.MacAddress {
			continue
		}
		found = true
		if n, _ := l.Info.Data["bcqueuelen"].(float64); l.MTU != 1400 || n != 2000 || l.Info.Data["mode"] != "bridge" {
			t.Errorf("the link is %+v, want MTU 1400, bcqueuelen 2000, mode bridge", l)
		}
	}
	if !found {
		t.Errorf("no link of the container has the MAC %s", e.MacAddress)
	}
	var info struct{ Value map[string]string }
	ask(t, "/NetworkDriver.EndpointOperInfo", map[string]string{"NetworkID": e.NetworkID, "EndpointID": e.EndpointID}, &info)
	for key, want := range map[string]string{"parent": "eth0", "mode": "macvlan bridge", "mac": e.MacAddress} {
		if info.Value[key] != want {
			t.Errorf("EndpointOperInfo says %s=%q, want %q", key, info.Value[key], want)
		}
	}
	if info.Value["link"] == "" {
		t.Error("EndpointOperInfo names no link")
	}
	out := do(t, "", binary+" state")
	for _, want := range []string{e.IPAddress, e.EndpointID, "192.168.50.0/24"} {
		if !strings.Contains(out, want) {
			t.Errorf("underlay state does not show %s:\n%s", want, out)
		}
	}
	b.disconnect("narrow", "base1")
}
