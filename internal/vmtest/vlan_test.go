//go:build vm

package vmtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// tagged is a machine of the LAN whose eth0 is in one VLAN alone: link eth0.20,
// or eth0.30.31 for VLAN 31 in the service VLAN 30. It has .1 and another
// address of 192.168.20.0/24 and fd00:20::/64.
func (b *test) tagged(name, nic, end string) place {
	b.Helper()
	p := b.neighbour(name)
	ids := strings.Split(nic, ".")[1:]
	lower := "eth0"
	do(b.T, p, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
	for k, id := range ids {
		protocol := "802.1q"
		if k < len(ids)-1 {
			protocol = "802.1ad"
		}
		link := lower + "." + id
		do(b.T, p, "ip link add link "+lower+" name "+link+" type vlan protocol "+protocol+" id "+id+"; ip link set "+link+" up")
		lower = link
	}
	p.has(b.T, lower, "192.168.20.1/24", "192.168.20."+end+"/24", "fd00:20::1/64", "fd00:20::"+end+"/64")
	return p
}

// vlans are the VLAN links of the Docker host, such as "eth0.30 802.1ad 30 on eth0".
func vlans(t *testing.T) []string {
	t.Helper()
	var found []string
	for name, l := range links(t, "") {
		if l.Info.Kind == "vlan" {
			found = append(found, fmt.Sprintf("%s %v %v on %s", name, l.Info.Data["protocol"], l.Info.Data["id"], l.Lower))
		}
	}
	slices.Sort(found)
	return found
}

// wantVLANs compares.
func wantVLANs(t *testing.T, what string, want ...string) {
	t.Helper()
	want = slices.Compact(slices.Sorted(slices.Values(want)))
	if got := vlans(t); !slices.Equal(got, want) {
		t.Errorf("%s: the VLAN links are %q, want %q", what, got, want)
	}
}

// Two VLANs and a VLAN in a service VLAN, all on one NIC and all with the same
// subnet: nothing but the tags keeps them apart.
func TestVLANs(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	lan := []place{b.tagged("twenty", "eth0.20", "11"), b.tagged("twentyone", "eth0.21", "12"), b.tagged("inner", "eth0.30.31", "13")}
	args := func(more ...string) []string {
		return append([]string{"--subnet", "192.168.20.0/24", "--gateway", "192.168.20.1", "--ipv6", "--subnet", "fd00:20::/64", "--gateway", "fd00:20::1"}, more...)
	}
	names := []string{"v20", "v21", "q31"}
	b.network(args("-o", "parent=eth0.20", "v20")...)
	b.network(args("-o", "parent=eth0", "-o", "vlan=21", "v21")...)
	b.network(args("-o", "parent=eth0.30.31", "-o", "ipvlan_mode=l2", "q31")...)
	all := []string{"eth0.20 802.1Q 20 on eth0", "eth0.21 802.1Q 21 on eth0", "eth0.30 802.1ad 30 on eth0", "eth0.30.31 802.1Q 31 on eth0.30"}
	wantVLANs(t, "two VLANs and one in another", all...)
	c := make([]container, 3)
	together(
		func() { c[0] = b.connect("v20", "base1") },
		func() { c[1] = b.connect("v21", "base2") },
		func() { c[2] = b.run("tagged", "--network", "q31") },
	)
	if t.Failed() {
		return
	}
	var apart []func()
	for k := range c {
		near, far := fmt.Sprintf("192.168.20.%d", 11+k), fmt.Sprintf("fd00:20::%d", 11+k)
		reaches(t, names[k]+": the container to its VLAN", c[k].at(), "192.168.20.1", "fd00:20::1", near, far)
		reaches(t, names[k]+": its VLAN to the container", lan[k], c[k].addrs(names[k])...)
		for o := range c {
			if o != k {
				apart = append(apart,
					func() {
						isolated(t, names[k]+": the container to another VLAN", c[k].at(), fmt.Sprintf("192.168.20.%d", 11+o))
					},
					func() {
						isolated(t, names[k]+": the container to that of another VLAN", c[k].at(), c[o].addrs(names[o])...)
					},
					func() { isolated(t, names[k]+": another VLAN to the container", lan[o], c[k].addrs(names[k])...) })
			}
		}
	}
	together(apart...)

	t.Run("after a reboot", func(t *testing.T) {
		b.disconnect("v20", "base1")
		b.disconnect("v21", "base2")
		docker(t, "rm", "-f", "tagged")
		docker(t, "plugin", "disable", "-f", plugin)
		do(t, "", "ip link del eth0.20; ip link del eth0.21; ip link del eth0.30")
		docker(t, "plugin", "enable", plugin)
		wantVLANs(t, "the plugin is back", all...)
		c := b.connect("q31", "base1")
		reaches(t, "the container to its VLAN", c.at(), "192.168.20.13", "fd00:20::13")
		b.disconnect("q31", "base1")
		do(t, "", "ip link del eth0.30") // and under a running plugin
		c = b.connect("q31", "base1")
		reaches(t, "the container to its VLAN", c.at(), "192.168.20.13", "fd00:20::13")
		b.disconnect("q31", "base1")
	})
	for _, n := range names {
		docker(t, "network", "rm", n)
	}
	wantVLANs(t, "without networks")
}

// Three networks that share links, made and removed in every order: what one
// of them needs is there, and no more.
func TestVLANOrder(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	nets := []struct {
		name    string
		options map[string]string
		needs   []string
	}{
		{"one", map[string]string{"parent": "eth0.30.31"}, []string{"eth0.30 802.1ad 30 on eth0", "eth0.30.31 802.1Q 31 on eth0.30"}},
		{"two", map[string]string{"parent": "eth0.30", "vlan": "32"}, []string{"eth0.30 802.1ad 30 on eth0", "eth0.30.32 802.1Q 32 on eth0.30"}},
		{"three", map[string]string{"parent": "eth0", "vlan": "21"}, []string{"eth0.21 802.1Q 21 on eth0"}},
	}
	// What is there before stays: each half of the rounds has another foreign link.
	foreign := map[string]string{
		"eth0.30 802.1ad 30 on eth0":      "ip link add link eth0 name eth0.30 type vlan protocol 802.1ad id 30; ip link set eth0.30 up",
		"eth0.21 802.1Q 21 on eth0":       "ip link add link eth0 name eth0.21 type vlan id 21; ip link set eth0.21 up",
		"eth0.30.31 802.1Q 31 on eth0.30": "",
	}
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	for round, made := range orders {
		removed := orders[(round*5+2)%6]
		var there []string
		if round%2 == 1 {
			there = slices.Sorted(maps.Keys(foreign))[round%4/2 : round%4/2+1]
			do(t, "", foreign[there[0]])
		}
		needed := slices.Clone(there)
		for k, i := range made {
			n := nets[i]
			subnet := fmt.Sprintf("192.168.%d.0/24", 30+k)
			err := api("POST", "/networks/create", map[string]any{
				"Name": n.name, "Driver": plugin, "Options": n.options,
				"IPAM": map[string]any{"Driver": plugin, "Config": []any{map[string]string{"Subnet": subnet}}},
			}, nil)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			b.networks = append(b.networks, n.name)
			needed = append(needed, n.needs...)
			wantVLANs(t, fmt.Sprintf("round %d, with network %s", round, n.name), needed...)
		}
		for k, i := range removed {
			if err := api("DELETE", "/networks/"+nets[i].name, nil, nil); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			needed = slices.Clone(there)
			for _, left := range removed[k+1:] {
				needed = append(needed, nets[left].needs...)
			}
			wantVLANs(t, fmt.Sprintf("round %d, without network %s", round, nets[i].name), needed...)
		}
		for _, f := range there {
			do(t, "", "ip link del "+strings.Fields(f)[0])
		}
	}
}

// VLAN links with names of all kinds, and MTUs.
func TestVLANNames(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	const long = "storagenetwork1" // as long as a name may be
	do(t, "", `
ip link add link eth0 name storage type vlan id 10
ip link set storage up
ip link add `+long+` mtu 9000 type dummy
ip link set `+long+` up`)
	t.Cleanup(func() { do(t, "", "ip link del storage; ip link del "+long) })
	before := vlans(t)
	ten := []string{"--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "--ipv6", "--subnet", "fd00:10::/64", "--gateway", "fd00:10::1"}
	b.network(append(ten, "-o", "parent=storage", "byname")...)
	b.network(append(ten, "-o", "parent=eth0", "-o", "vlan=10", "bynumber")...)
	wantVLANs(t, "a link of a free name", before...)
	for _, n := range []string{"byname", "bynumber"} {
		c := b.connect(n, "base1")
		reaches(t, n+": the container to its VLAN's router", c.at(), "192.168.10.1", "fd00:10::1")
		reaches(t, n+": the VLAN's router to the container", "router", c.addrs(n)...)
		b.disconnect(n, "base1")
		docker(t, "network", "rm", n)
	}
	wantVLANs(t, "the networks are gone", before...)

	// The longest names get one that is derived. MTUs come from below.
	b.network("--subnet", "192.168.81.0/24", "-o", "parent="+long, "-o", "vlan=4094", "long")
	b.network("--subnet", "192.168.82.0/24", "-o", "parent="+long, "-o", "vlan=1", "-o", "com.docker.network.driver.mtu=8000", "short")
	b.network("--subnet", "192.168.83.0/24", "-o", "parent=eth0.100.4000", "--ipam-opt", "conflict=off", "deep")
	mtus := map[string]int{}
	for name, l := range links(t, "") {
		if l.Info.Kind == "vlan" && l.Lower == long {
			mtus[fmt.Sprint(l.Info.Data["id"])] = l.MTU
			if len(name) > 15 || !strings.HasPrefix(name, "ul") {
				t.Errorf("a VLAN on %s has the name %s", long, name)
			}
		}
	}
	if !maps.Equal(mtus, map[string]int{"4094": 9000, "1": 9000}) {
		t.Errorf("the VLANs on %s have the MTUs %v", long, mtus)
	}
	for _, n := range []struct {
		name string
		mtu  int
	}{{"long", 9000}, {"short", 8000}, {"deep", 1500}} {
		c := b.connect(n.name, "base1")
		e := c.NetworkSettings.Networks[n.name]
		for _, l := range links(t, c.at()) {
			if l.MAC == e.MacAddress && l.MTU != n.mtu {
				t.Errorf("%s: the container's link has MTU %d, want %d", n.name, l.MTU, n.mtu)
			}
		}
		b.disconnect(n.name, "base1")
		docker(t, "network", "rm", n.name)
	}
	wantVLANs(t, "the networks are gone", before...)
}
