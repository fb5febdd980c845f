package driver

import (
	"net/netip"
	"testing"

	"underlay/internal/mode"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

func hopVia(link, gateway string) fake.Hop {
	return fake.Hop{Link: link, Gateway: netip.MustParseAddr(gateway)}
}

func vlanOn(name, parent string, vlan int) Network {
	n := lan(name, parent, mode.Default)
	n.Options.VLAN = vlan
	return n
}

// addVLAN makes a VLAN link as somebody else would.
func (b *bench) addVLAN(name, lower string, id int, p netlinkutil.VLANProtocol) {
	b.t.Helper()
	if _, err := b.kernel.EnsureVLAN(name, lower, id, p, ""); err != nil {
		b.t.Fatal(err)
	}
}

func TestVLANs(t *testing.T) {
	for _, tt := range []struct {
		name     string
		before   func(*bench)
		networks []Network
		want     string // the links beside the NICs
	}{
		{"by name", nil, []Network{lan("a", "eth0.10", mode.Default)}, `
			4 eth0.10 vlan 10 on eth0 00:16:3e:00:00:02 mtu 1500 up "underlay cafe0001 parent"
		`},
		{"by option", nil, []Network{vlanOn("a", "eth0", 10), lan("b", "eth0.10", mode.Default)}, `
			4 eth0.10 vlan 10 on eth0 00:16:3e:00:00:02 mtu 1500 up "underlay cafe0001 parent"
		`},
		{"QinQ", nil, []Network{lan("a", "eth0.10.20", mode.Default), vlanOn("b", "eth0.10", 30)}, `
			4 eth0.10 vlan 10 802.1ad on eth0 00:16:3e:00:00:02 mtu 1500 up "underlay cafe0001 parent"
			5 eth0.10.20 vlan 20 on eth0.10 00:16:3e:00:00:02 mtu 1500 up "underlay cafe0001 parent"
			7 eth0.10.30 vlan 30 on eth0.10 00:16:3e:00:00:02 mtu 1500 up "underlay cafe0001 parent"
		`},
		{"QinQ in somebody's 802.1q", func(b *bench) { b.addVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q) },
			[]Network{lan("a", "eth0.10.20", mode.Default)}, `
			4 eth0.10 vlan 10 on eth0 00:16:3e:00:00:02 mtu 1500 up
			5 eth0.10.20 vlan 20 on eth0.10 00:16:3e:00:00:02 mtu 1500 up "underlay cafe0001 parent"
		`},
		{"a name of its own", func(b *bench) { b.addVLAN("storage", "eth0", 30, netlinkutil.Dot1Q) },
			[]Network{lan("a", "storage", mode.Default), vlanOn("b", "eth0", 30)}, `
			4 storage vlan 30 on eth0 00:16:3e:00:00:02 mtu 1500 up
		`},
		{"a long name", func(b *bench) { b.kernel.AddNIC("enx001122334455") },
			[]Network{vlanOn("a", "enx001122334455", 4094)}, `
			4 enx001122334455 device 00:16:3e:00:00:04 mtu 1500 up
			5 uld3caa240.4094 vlan 4094 on enx001122334455 00:16:3e:00:00:04 mtu 1500 up "underlay cafe0001 parent"
		`},
		{"a name that looks like another VLAN's", func(b *bench) { b.addVLAN("lan.100", "eth0", 100, netlinkutil.Dot1Q) },
			[]Network{lan("a", "lan.100", mode.Default), vlanOn("b", "eth0", 100)}, `
			4 lan.100 vlan 100 on eth0 00:16:3e:00:00:02 mtu 1500 up
		`},
		{"a bridge with such a name", func(b *bench) {
			b.kernel.Add(netlinkutil.Link{Name: "br.10", Kind: "bridge", MAC: []byte{2, 0, 0, 0, 0, 9}, MTU: 1500, Up: true})
		}, []Network{lan("a", "br.10", mode.Default)}, `
			4 br.10 bridge 02:00:00:00:00:09 mtu 1500 up
		`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const nics = `
			2 eth0 device 00:16:3e:00:00:02 mtu 1500 up
			3 eth1 device 00:16:3e:00:00:03 mtu 1500 up
		`
			b := newBench(t)
			if tt.before != nil {
				tt.before(b)
			}
			before := b.kernel.String()
			for _, forward := range []bool{true, false} {
				b.create(tt.networks...)
				if forward {
					b.golden(nics[:len(nics)-2] + tt.want[1:])
				}
				b.restart()
				for k := range tt.networks {
					if !forward {
						k = len(tt.networks) - 1 - k
					}
					e := on("", "one", 10)
					e.NetworkID = tt.networks[k].ID
					b.start(e)
					b.stop(e)
					if err := b.DeleteNetwork(ctx, tt.networks[k].ID); err != nil {
						t.Fatal(err)
					}
				}
				b.golden(before)
			}
		})
	}
}

func TestVLANsAfterReboot(t *testing.T) {
	b := newBench(t)
	b.create(lan("a", "eth0.10.20", mode.Default), vlanOn("b", "eth1", 7))
	for _, l := range []string{"eth0.10", "eth1.7"} {
		if err := b.kernel.DeleteLink(l); err != nil {
			t.Fatal(err)
		}
	}
	b.restart()
	for _, l := range []string{"eth0.10", "eth0.10.20", "eth1.7"} {
		if got, err := b.kernel.Link(l); err != nil || got.Alias != b.parentAlias() {
			t.Errorf("%s: %+v, %v", l, got, err)
		}
	}
	// Before an endpoint, too.
	if err := b.kernel.DeleteLink("eth0.10"); err != nil {
		t.Fatal(err)
	}
	b.start(on("a", "one", 10))
}

// A VLAN link of somebody else's on one of ours keeps that.
func TestStrangerOnOurVLAN(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0.10", mode.Default))
	b.addVLAN("theirs", "eth0.10", 7, netlinkutil.Dot1Q)
	before := b.kernel.String()
	if err := b.DeleteNetwork(ctx, id("net")); err != nil {
		t.Fatal(err)
	}
	b.golden(before)
	b.restart()
	b.golden(before)
	if err := b.kernel.DeleteLink("theirs"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.nothing()
}

// An endpoint is not put on a link that is not its network's VLAN any more.
func TestVLANThatIsAnotherNow(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0.10", mode.Default))
	if err := b.kernel.DeleteLink("eth0.10"); err != nil {
		t.Fatal(err)
	}
	b.addVLAN("eth0.10", "eth0", 11, netlinkutil.Dot1Q)
	_, err := b.CreateEndpoint(ctx, on("net", "one", 10))
	refused(t, err, "eth0.10 is there as VLAN 11 on eth0")
}

func TestRefusedVLANs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(*bench)
		n      Network
		want   []string
	}{
		{"another ID", func(b *bench) { b.addVLAN("eth0.40", "eth0", 41, netlinkutil.Dot1Q) }, lan("net", "eth0.40", mode.Default),
			[]string{"eth0.40 is there as VLAN 41 on eth0, and not VLAN 40 on eth0", "rename"}},
		{"another lower link", func(b *bench) { b.addVLAN("eth0.40", "eth1", 40, netlinkutil.Dot1Q) }, vlanOn("net", "eth0", 40),
			[]string{"eth0.40 is there as VLAN 40 on eth1, and not VLAN 40 on eth0"}},
		{"no VLAN at all", func(b *bench) {
			b.kernel.Add(netlinkutil.Link{Name: "eth0.10", Kind: "bridge", MAC: []byte{2, 0, 0, 0, 0, 9}, MTU: 1500, Up: true})
		}, vlanOn("net", "eth0", 10), []string{"eth0.10 is there and is no VLAN (bridge)", "-o vlan=10"}},
		{"802.1ad of ours", func(b *bench) { b.create(lan("old", "eth0.10.20", mode.Default)) }, lan("net", "eth0.10", mode.Default),
			[]string{"eth0.10 is there as 802.1ad", "needs it as 802.1q"}},
		{"802.1q of ours", func(b *bench) { b.create(lan("old", "eth0.10", mode.Default)) }, lan("net", "eth0.10.20", mode.Default),
			[]string{"eth0.10 is there as 802.1q", "needs it as 802.1ad"}},
		{"three", nil, lan("net", "eth0.1.2.3", mode.Default), []string{"underlay makes two VLANs on a NIC at most"}},
		{"none to be on", nil, vlanOn("net", "eth9", 10), []string{"eth9.10 is not there, nor is eth9"}},
		{"QinQ with none to be on", nil, lan("net", "eth9.10.20", mode.Default), []string{"eth9.10 is not there, nor is eth9"}},
		{"outer ID", nil, lan("net", "eth0.0.20", mode.Default), []string{"0 is no VLAN ID"}},
		{"MTU", nil, func() Network { n := lan("net", "eth0.10.20", mode.Default); n.Options.MTU = 9000; return n }(),
			[]string{"=9000 is above the MTU of parent eth0.10.20, which is 1500"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			if tt.before != nil {
				tt.before(b)
			}
			before := b.kernel.String()
			refused(t, b.CreateNetwork(ctx, tt.n), tt.want...)
			b.golden(before)
		})
	}
}
