package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"underlay/internal/mode"
	"underlay/internal/options"
	"underlay/internal/store"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

// bench is a driver on a fake kernel with the NICs eth0 and eth1, and a store
// that outlives it.
type bench struct {
	*Driver
	t      *testing.T
	kernel *fake.Kernel
	path   string
	store  *store.Store
	names  containerNames

	announcer Announcer
	boot      string
}

type containerNames map[netip.Addr]string

func (c containerNames) Name(a netip.Addr) (string, bool) { n, ok := c[a]; return n, ok }

func (c containerNames) MAC(netip.Addr) (net.HardwareAddr, bool) { return nil, false }
func (c containerNames) MTU(netip.Addr) int                      { return 0 }
func (c containerNames) Routes(netip.Addr) []Route               { return nil }

func (c containerNames) Ended(netip.Addr) {}

var ctx = context.Background()

// scratch is a folder, in memory if it can be: what a test loses with the power is
// no loss, and disks take their time.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "underlay-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, kernel: fake.New(), path: filepath.Join(scratch(t), "state.db"), names: containerNames{}}
	b.kernel.AddNIC("eth0")
	b.kernel.AddNIC("eth1")
	b.restart()
	t.Cleanup(func() { b.store.Close() })
	return b
}

// restart ends the driver and starts another on what is on disk and in the
// kernel.
func (b *bench) restart() {
	b.t.Helper()
	if b.store != nil {
		b.store.Close()
	}
	var err error
	if b.store, err = store.Open(b.path); err != nil {
		b.t.Fatal(err)
	}
	if err := b.store.Apply(store.Change{Bucket: driverBucket, Key: []byte("instance"), Value: []byte("cafe0001")}); err != nil {
		b.t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	if b.Driver, err = New(b.kernel, b.store, Config{Holdings: b.names, Announcer: b.announcer, Log: log, Boot: b.boot}); err != nil {
		b.t.Fatal(err)
	}
	b.Recover()
}

func id(name string) string {
	return (strings.ReplaceAll(name, "-", "0") + strings.Repeat("0", 64))[:64]
}

// lan is a network of the /24 and /64 that the tests' LAN has.
func lan(name, parent string, m mode.Mode) Network {
	return Network{
		ID: id(name), Options: options.Network{Parent: parent, Mode: m},
		Subnets: []Subnet{
			{Prefix: netip.MustParsePrefix("192.168.50.0/24"), Gateway: netip.MustParseAddr("192.168.50.1")},
			{Prefix: netip.MustParsePrefix("fd00:50::/64"), Gateway: netip.MustParseAddr("fd00:50::1")},
		},
	}
}

// on is an endpoint of a network, host n of its subnets.
func on(network, name string, n int) Endpoint {
	return Endpoint{
		ID: id(name), NetworkID: id(network),
		IPv4: netip.MustParsePrefix(fmt.Sprintf("192.168.50.%d/24", n)),
		IPv6: netip.MustParsePrefix(fmt.Sprintf("fd00:50::%x/64", n)),
	}
}

func (b *bench) create(networks ...Network) {
	b.t.Helper()
	for _, n := range networks {
		if err := b.CreateNetwork(ctx, n); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) start(e Endpoint) MAC {
	b.t.Helper()
	mac, err := b.CreateEndpoint(ctx, e)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12])
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.kernel.Move(p.LinkName); err != nil {
		b.t.Fatal(err)
	}
	b.arrived(e)
	return mac
}

// arrived waits until it is on record that a link is in its container.
func (b *bench) arrived(e Endpoint) {
	b.t.Helper()
	for range 1000 {
		if _, now, err := b.endpoint(e.NetworkID, e.ID); err != nil {
			b.t.Fatal(err)
		} else if now.Arrived {
			return
		}
		time.Sleep(time.Millisecond)
	}
	b.t.Fatal("the link has not arrived")
}

// stop is what dockerd does when a container ends.
func (b *bench) stop(e Endpoint) {
	b.t.Helper()
	if err := b.Leave(ctx, e.NetworkID, e.ID); err != nil {
		b.t.Fatal(err)
	}
	if err := b.kernel.Return(linkName(e.ID)); err != nil {
		b.t.Fatal(err)
	}
	if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) golden(want string) {
	b.t.Helper()
	want = strings.ReplaceAll(strings.TrimPrefix(want, "\n"), "\t", "")
	if d := cmp.Diff(want, b.kernel.String()); d != "" {
		b.t.Errorf("kernel state (-want +got):\n%s", d)
	}
}

// nothing checks that kernel and records are as before the test.
func (b *bench) nothing() {
	b.t.Helper()
	b.golden(`
		2 eth0 device 00:16:3e:00:00:02 mtu 1500 up
		3 eth1 device 00:16:3e:00:00:03 mtu 1500 up
	`)
	if d := cmp.Diff(State{Networks: []Network{}, Endpoints: []Endpoint{}}, b.Snapshot()); d != "" {
		b.t.Errorf("records are left:\n%s", d)
	}
	for _, bucket := range []string{networkBucket, endpointBucket} {
		if err := b.store.Apply(); err != nil { // what was submitted before is on disk
			b.t.Fatal(err)
		}
		if err := b.store.Each(bucket, func(k, _ []byte) error { return fmt.Errorf("%s is on disk", k) }); err != nil {
			b.t.Error(err)
		}
	}
}

func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q lacks %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is more than a line", err)
	}
}

func TestEveryModeFromStartToEnd(t *testing.T) {
	for _, m := range mode.All() {
		t.Run(m.String(), func(t *testing.T) {
			b := newBench(t)
			e := on("net", "one", 10)
			b.create(lan("net", "eth0", m))
			mac, err := b.CreateEndpoint(ctx, e)
			if err != nil {
				t.Fatal(err)
			}
			if (mac == nil) != (m.Kind == mode.IPvlan) {
				t.Errorf("MAC %v", mac)
			}
			if m.Alone() != (mac.String() == "00:16:3e:00:00:02") {
				t.Errorf("MAC %v: passthru, and passthru alone, has the parent's", mac)
			}
			p, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12])
			if err != nil {
				t.Fatal(err)
			}
			want := Plumbing{LinkName: linkName(e.ID), Gateways: []netip.Addr{netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("fd00:50::1")}}
			if m.RoutesByLink() {
				want = Plumbing{LinkName: linkName(e.ID), Routes: []Route{{Destination: netip.MustParsePrefix("0.0.0.0/0")}, {Destination: netip.MustParsePrefix("::/0")}}}
			}
			if d := cmp.Diff(want, p, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Errorf("join (-want +got):\n%s", d)
			}
			info, err := b.EndpointInfo(e.NetworkID, e.ID)
			if err != nil || info["parent"] != "eth0" || info["mode"] != m.String() || info["link"] != linkName(e.ID) || len(info["mac"]) != 17 {
				t.Errorf("info %v, %v", info, err)
			}
			if err := b.kernel.Move(p.LinkName); err != nil {
				t.Fatal(err)
			}
			b.stop(e)
			if err := b.DeleteNetwork(ctx, e.NetworkID); err != nil {
				t.Fatal(err)
			}
			b.nothing()
		})
	}
}

func TestKernelPicture(t *testing.T) {
	b := newBench(t)
	n := lan("net", "eth0.10", mode.Default)
	n.Options.MTU, n.Options.BCQueueLen = 1400, 7
	b.create(n, lan("iso", "", mode.Default))
	b.names[netip.MustParseAddr("192.168.50.11")] = "web"
	b.start(on("net", "one", 10))
	if _, err := b.CreateEndpoint(ctx, on("net", "two", 11)); err != nil {
		t.Fatal(err)
	}
	b.golden(`
		2 eth0 device 00:16:3e:00:00:02 mtu 1500 up
		3 eth1 device 00:16:3e:00:00:03 mtu 1500 up
		4 eth0.10 vlan 10 on eth0 00:16:3e:00:00:02 mtu 1500 up "underlay cafe0001 parent"
		6 uldiso000000000 dummy ca:90:11:3e:ed:a3 mtu 1500 up "underlay cafe0001 parent"
		9 ultwo0000000000 macvlan bridge on eth0.10 5a:6f:c3:ae:fe:99 mtu 1400 bcqueuelen 7 down "underlay cafe0001 endpoint two000000000 of network net000000000"
		moved:
		8 ulone0000000000 macvlan bridge on eth0.10 da:12:80:a0:52:75 mtu 1400 bcqueuelen 7 up "underlay cafe0001 endpoint one000000000 of network net000000000"
	`)
}

func TestRefusedNetworks(t *testing.T) {
	macvlan := func(name string) mode.Mode { return mode.Mode{Kind: mode.Macvlan, Name: name} }
	ipvlan := func(name, flag string) mode.Mode { return mode.Mode{Kind: mode.IPvlan, Name: name, Flag: flag} }
	tests := []struct {
		name   string
		before func(*bench)
		n      Network
		want   []string
	}{
		{"loopback", nil, lan("net", "lo", mode.Default), []string{"parent lo is the loopback link", "name a NIC"}},
		{"unknown", nil, lan("net", "eth9", mode.Default), []string{"parent eth9 is not there", "ip link", "eth0.10"}},
		{"VLAN of an unknown", nil, lan("net", "eth9.10", mode.Default), []string{"eth9.10 is not there, nor is eth9"}},
		{"VLAN of lo", nil, lan("net", "lo.10", mode.Default), []string{"loopback"}},
		{"bad VLAN ID", nil, lan("net", "eth0.4095", mode.Default), []string{"4095 is no VLAN ID"}},
		{"bridge port", func(b *bench) {
			b.kernel.Add(netlinkutil.Link{Name: "br0", Kind: "bridge", MAC: []byte{2, 0, 0, 0, 0, 9}, MTU: 1500, Up: true})
			if err := b.kernel.Enslave("eth0", "br0"); err != nil {
				b.t.Fatal(err)
			}
		}, lan("net", "eth0", mode.Default), []string{"eth0 is a port of bridge br0", "-o parent=br0"}},
		{"ipvlan beside macvlan", func(b *bench) { b.create(lan("old", "eth0", mode.Default)) },
			lan("net", "eth0", ipvlan("l2", "bridge")), []string{"eth0 already carries macvlan bridge (network old000000000)", "ipvlan l2 cannot share", "eth0.10"}},
		{"macvlan beside ipvlan", func(b *bench) { b.create(lan("old", "eth0", ipvlan("l2", "bridge"))) },
			lan("net", "eth0", mode.Default), []string{"already carries ipvlan l2", "one kind"}},
		{"ipvlan of another mode", func(b *bench) { b.create(lan("old", "eth0.7", ipvlan("l2", "bridge"))) },
			lan("net", "eth0.7", ipvlan("l3", "bridge")), []string{"one mode and flag", "eth0.8"}},
		{"ipvlan of another flag", func(b *bench) { b.create(lan("old", "eth0", ipvlan("l2", "bridge"))) },
			lan("net", "eth0", ipvlan("l2", "private")), []string{"one mode and flag"}},
		{"passthru beside another", func(b *bench) { b.create(lan("old", "eth0", mode.Default)) },
			lan("net", "eth0", macvlan("passthru")), []string{"passthru needs its parent alone"}},
		{"another beside passthru", func(b *bench) { b.create(lan("old", "eth0", macvlan("passthru"))) },
			lan("net", "eth0", mode.Default), []string{"passthru needs its parent alone"}},
		{"passthru beside a link of somebody else's in a container", func(b *bench) {
			if _, err := b.kernel.AddSubInterface(netlinkutil.SubInterface{Name: "theirs", Parent: "eth0", Mode: mode.Default}); err != nil {
				b.t.Fatal(err)
			}
			if err := b.kernel.Move("theirs"); err != nil {
				b.t.Fatal(err)
			}
		}, lan("net", "eth0", macvlan("passthru")), []string{"already carries macvlan links", "alone"}},
		{"MTU", nil, Network{ID: id("net"), Options: options.Network{Parent: "eth0", Mode: mode.Default, MTU: 9000}},
			[]string{"=9000 is above the MTU of parent eth0, which is 1500"}},
		{"MTU of a VLAN that is made", nil, Network{ID: id("net"), Options: options.Network{Parent: "eth0.10", Mode: mode.Default, MTU: 9000}},
			[]string{"=9000 is above the MTU of parent eth0.10"}},
		{"MTU too small for IPv6", nil, Network{ID: id("net"), Options: options.Network{Parent: "eth0", Mode: mode.Default, MTU: 1000}, Subnets: lan("", "", mode.Default).Subnets},
			[]string{"=1000 is too small for IPv6, which needs 1280"}},
		{"no ipvlan in the kernel", func(b *bench) { b.kernel.Lack("ipvlan") }, lan("net", "eth0.10", ipvlan("l2", "bridge")), []string{"ipvlan"}},
		{"the same ID again", func(b *bench) { b.create(lan("net", "eth1", mode.Default)) }, lan("net", "eth0", mode.Default), []string{"there already, with other options"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			if tt.before != nil {
				tt.before(b)
			}
			kernel, records := b.kernel.String(), b.Snapshot()
			refused(t, b.CreateNetwork(ctx, tt.n), tt.want...)
			if d := cmp.Diff(kernel, b.kernel.String()); d != "" {
				t.Errorf("the refusal changed the kernel:\n%s", d)
			}
			if a, z := fmt.Sprint(records), fmt.Sprint(b.Snapshot()); a != z {
				t.Errorf("the refusal changed the records:\n%s\n%s", a, z)
			}
		})
	}
}

func TestRefusedEndpoints(t *testing.T) {
	withMAC := func(e Endpoint, mac MAC) Endpoint { e.MAC = mac; return e }
	passthru := mode.Mode{Kind: mode.Macvlan, Name: "passthru"}
	tests := []struct {
		name string
		mode mode.Mode
		e    Endpoint
		want []string
	}{
		{"MAC on ipvlan", mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}, withMAC(on("net", "two", 11), MAC{2, 0, 0, 0, 0, 1}),
			[]string{"shares the MAC of its parent eth0", "leave out --mac-address"}},
		{"multicast MAC", mode.Default, withMAC(on("net", "two", 11), MAC{1, 0, 0, 0, 0, 1}), []string{"multicast", "unicast"}},
		{"taken MAC", mode.Default, withMAC(on("net", "two", 11), MAC{2, 0, 0, 0, 0, 7}), []string{"02:00:00:00:00:07 is taken on parent eth0 by endpoint one000000000"}},
		{"second on passthru", passthru, on("net", "two", 11), []string{"one container at a time", "endpoint one000000000"}},
		{"taken address", mode.Default, on("net", "two", 10), []string{"192.168.50.10 is held by endpoint one000000000", "another --ip"}},
		{"address of the gateway", mode.Default, on("net", "two", 1), []string{"192.168.50.1 is a gateway", "network net000000000", "another --ip"}},
		{"unknown network", mode.Default, on("other", "two", 11), []string{"network other0000000 is unknown", "create it again"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.create(lan("net", "eth0", tt.mode))
			one := on("net", "one", 10)
			if tt.mode == mode.Default {
				one.MAC = MAC{2, 0, 0, 0, 0, 7}
			}
			b.start(one)
			kernel, records := b.kernel.String(), fmt.Sprint(b.Snapshot())
			_, err := b.CreateEndpoint(ctx, tt.e)
			refused(t, err, tt.want...)
			if kernel != b.kernel.String() || records != fmt.Sprint(b.Snapshot()) {
				t.Errorf("the refusal changed something:\n%s\n%v", b.kernel, b.Snapshot())
			}
		})
	}
}

// Whatever the kernel refuses, and whenever, nothing is left of the call.
func TestFaultAtEveryStep(t *testing.T) {
	broken := errors.New("broken")
	for _, parent := range []string{"eth0", "eth0.10", ""} {
		for _, op := range []string{"Link", "EnsureVLAN", "EnsureDummy", "AddSubInterface", "DeleteLink"} {
			for nth := 1; nth <= 4; nth++ {
				t.Run(fmt.Sprintf("%s of %q, call %d", op, parent, nth), func(t *testing.T) {
					b := newBench(t)
					b.kernel.Fail(op, nth, broken)
					e := on("net", "one", 10)
					err := b.CreateNetwork(ctx, lan("net", parent, mode.Default))
					if err == nil {
						if _, err = b.CreateEndpoint(ctx, e); err == nil {
							_, err = b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12])
						}
					}
					if err != nil && !errors.Is(err, broken) {
						t.Error(err)
					}
					// The clean-up may fail once too; Docker repeats
					// nothing, the next start mends it.
					_ = b.DeleteEndpoint(ctx, e.NetworkID, e.ID)
					if b.DeleteNetwork(ctx, e.NetworkID) != nil {
						_ = b.DeleteNetwork(ctx, e.NetworkID)
					}
					b.kernel.Fail(op, 1, nil)
					b.restart()
					b.nothing()
				})
			}
		}
	}
}

func TestFullDiskChangesNothing(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0", mode.Default))
	b.start(on("net", "one", 10))
	before := b.kernel.String()
	b.store.Close() // every write fails from here
	refused(t, b.CreateNetwork(ctx, lan("other", "eth1.10", mode.Default)), "state file")
	_, err := b.CreateEndpoint(ctx, on("net", "two", 11))
	refused(t, err, "state file")
	refused(t, b.DeleteEndpoint(ctx, id("net"), id("one")), "state file")
	if len(b.Snapshot().Networks) != 1 || len(b.Snapshot().Endpoints) != 1 || b.kernel.String() != before {
		t.Errorf("left:\n%s\n%v", b.kernel, b.Snapshot())
	}
}

func TestRepeatsSucceed(t *testing.T) {
	b := newBench(t)
	n, e := lan("net", "eth0.10", mode.Default), on("net", "one", 10)
	b.create(n, n)
	first, err := b.CreateEndpoint(ctx, e)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.CreateEndpoint(ctx, e)
	if err != nil || first.String() != again.String() {
		t.Errorf("second CreateEndpoint: %v, %v; want %v", again, err, first)
	}
	b.start(e)
	b.stop(e)
	for range 2 {
		if err := errors.Join(b.Leave(ctx, e.NetworkID, e.ID), b.DeleteEndpoint(ctx, e.NetworkID, e.ID), b.DeleteNetwork(ctx, n.ID)); err != nil {
			t.Error(err)
		}
	}
	b.nothing()
}

func TestVLANParentIsSharedAndGoesWithTheLast(t *testing.T) {
	b := newBench(t)
	b.create(lan("one", "eth0.10", mode.Default), lan("two", "eth0.10", mode.Default))
	if err := b.DeleteNetwork(ctx, id("one")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.kernel.Link("eth0.10"); err != nil {
		t.Errorf("the VLAN link went with the first network: %v", err)
	}
	b.restart()
	if err := b.DeleteNetwork(ctx, id("two")); err != nil {
		t.Fatal(err)
	}
	b.nothing()
}

func TestVLANOfSomebodyElseStays(t *testing.T) {
	b := newBench(t)
	if _, err := b.kernel.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, ""); err != nil {
		t.Fatal(err)
	}
	before := b.kernel.String()
	b.create(lan("net", "eth0.10", mode.Default))
	if err := b.DeleteNetwork(ctx, id("net")); err != nil {
		t.Fatal(err)
	}
	b.golden(before)
}

func TestRecoverAfterReboot(t *testing.T) {
	b := newBench(t)
	b.create(lan("vlan", "eth0.10", mode.Default), lan("iso", "", mode.Default), lan("usb", "eth2", mode.Default).on(b, "eth2"))
	e := on("vlan", "one", 10)
	mac := b.start(e)
	for _, l := range []string{"eth0.10", "uldiso000000000"} {
		if err := b.kernel.DeleteLink(l); err != nil { // takes the container's link along
			t.Fatal(err)
		}
	}
	b.restart()
	for _, l := range []string{"eth0.10", "uldiso000000000"} {
		if got, err := b.kernel.Link(l); err != nil || got.Alias != b.parentAlias() {
			t.Errorf("parent %s: %v, alias %q", l, err, got.Alias)
		}
	}
	// dockerd cleans the stale endpoint up, and the container starts anew.
	if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
		t.Fatal(err)
	}
	e.ID = id("new")
	if again := b.start(e); again.String() != mac.String() {
		t.Errorf("MAC %v after the reboot, %v before", again, mac)
	}
}

// on plugs the NIC in first, for the tables' sake.
func (n Network) on(b *bench, nic string) Network { b.kernel.AddNIC(nic); return n }

func TestRecoverSweepsOnlyItsOwn(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0", mode.Default))
	running := on("net", "one", 10)
	b.start(running)
	before := b.kernel.String()
	for _, s := range []netlinkutil.SubInterface{
		{Name: "ulgone00000000", Parent: "eth0", Mode: mode.Default, Alias: b.endpointAlias(id("net"), id("gone"))},
		{Name: "ult123456789012", Parent: "eth0", Mode: mode.Default, Alias: b.alias("trial of network 123456789012")},
		{Name: "ult123456789013", Parent: "eth0", Mode: mode.Default}, // killed before it was signed
		{Name: "ul1234567890123", Parent: "eth0", Mode: mode.Default},
	} {
		if _, err := b.kernel.AddSubInterface(s); err != nil {
			t.Fatal(err)
		}
	}
	b.restart()
	b.golden(before)
	if _, err := b.EndpointInfo(running.NetworkID, running.ID); err != nil {
		t.Errorf("a running container's endpoint: %v", err)
	}
	for name, alias := range map[string]string{"ultheirs": "", "ulanother": "underlay cafe0002 endpoint x of network y"} {
		if _, err := b.kernel.AddSubInterface(netlinkutil.SubInterface{Name: name, Parent: "eth0", Mode: mode.Default, Alias: alias}); err != nil {
			t.Fatal(err)
		}
		b.restart()
		if _, err := b.kernel.Link(name); err != nil {
			t.Errorf("a link with the alias %q: %v", alias, err)
		}
	}
}

// dockerd moves the link of a container that ends back to the host, and does
// not repeat the calls that the plugin was not there for.
func TestContainerEndsWhileThePluginIsAway(t *testing.T) {
	for _, m := range []mode.Mode{mode.Default, {Kind: mode.Macvlan, Name: "passthru"}} {
		b := newBench(t)
		b.create(lan("net", "eth0", m))
		e := on("net", "one", 10)
		mac := b.start(e)
		if err := b.kernel.Return(linkName(e.ID)); err != nil {
			t.Fatal(err)
		}
		b.restart()
		if who, ok := b.Holder(e.IPv4.Addr()); ok {
			t.Errorf("%v: %s still has the address", m, who)
		}
		next := on("net", "two", 10)
		if got := b.start(next); got.String() != mac.String() {
			t.Errorf("%v: MAC %v, had %v", m, got, mac)
		}
		b.stop(next)
		if err := b.DeleteNetwork(ctx, id("net")); err != nil {
			t.Fatal(err)
		}
		b.nothing()
	}
}

// The ipvlan links of others keep their mode, whatever is asked for here.
func TestTrialLeavesTheIPvlanOfOthersAlone(t *testing.T) {
	b := newBench(t)
	theirs := netlinkutil.SubInterface{Name: "theirs", Parent: "eth0", Mode: mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "private"}}
	if _, err := b.kernel.AddSubInterface(theirs); err != nil {
		t.Fatal(err)
	}
	if err := b.kernel.Move("theirs"); err != nil {
		t.Fatal(err)
	}
	before := b.kernel.String()
	err := b.CreateNetwork(ctx, lan("net", "eth0", mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}))
	refused(t, err, "parent eth0 carries links of another program", "change their mode", "eth0.10")
	b.golden(before)
}

func TestTwoIPvlanNetworksOfOneMode(t *testing.T) {
	b := newBench(t)
	m := mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "private"}
	b.create(lan("one", "eth0", m))
	b.start(on("one", "a", 10))
	b.create(lan("two", "eth0", m))
	b.start(on("two", "b", 11))
}

// An endpoint that Docker has forgotten goes with its network, and a network
// that goes lets nobody in.
func TestDeleteNetworkTakesItsEndpoints(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0.10", mode.Default))
	e := on("net", "one", 10)
	if _, err := b.CreateEndpoint(ctx, e); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteNetwork(ctx, id("net")); err != nil {
		t.Fatal(err)
	}
	_, err := b.CreateEndpoint(ctx, on("net", "two", 11))
	refused(t, err, "unknown")
	b.nothing()
}

func TestParentThatIsASubInterface(t *testing.T) {
	b := newBench(t)
	if _, err := b.kernel.AddSubInterface(netlinkutil.SubInterface{Name: "shim", Parent: "eth0", Mode: mode.Default}); err != nil {
		t.Fatal(err)
	}
	refused(t, b.CreateNetwork(ctx, lan("net", "shim", mode.Default)), "shim is itself a macvlan link on eth0", "-o parent=eth0")
}

func TestJoinMendsALostLink(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0.10", mode.Default))
	e := on("net", "one", 10)
	if _, err := b.CreateEndpoint(ctx, e); err != nil {
		t.Fatal(err)
	}
	want := b.kernel.String()
	if err := b.kernel.DeleteLink("eth0.10"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12]); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(indexless(want), indexless(b.kernel.String())); d != "" {
		t.Error(d)
	}
}

func indexless(s string) (lines []string) {
	for line := range strings.Lines(s) {
		_, rest, _ := strings.Cut(line, " ")
		lines = append(lines, rest)
	}
	return lines
}

func TestInternalNetworkHasNoWayOut(t *testing.T) {
	for _, m := range []mode.Mode{mode.Default, {Kind: mode.IPvlan, Name: "l3", Flag: "bridge"}} {
		b := newBench(t)
		n := lan("net", "", m)
		n.Internal = true
		b.create(n)
		e := on("net", "one", 10)
		if _, err := b.CreateEndpoint(ctx, e); err != nil {
			t.Fatal(err)
		}
		p, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12])
		if err != nil || p.Gateways != nil || p.Routes != nil {
			t.Errorf("%v: %+v, %v", m, p, err)
		}
		if !SkipGateway(n.Options, true) {
			t.Errorf("%v: internal takes a gateway address", m)
		}
	}
	l3s := mode.Mode{Kind: mode.IPvlan, Name: "l3s"}
	for want, o := range map[bool]options.Network{false: {Parent: "eth0", Mode: mode.Default}, true: {Parent: "eth0", Mode: l3s}} {
		if SkipGateway(o, false) != want {
			t.Errorf("%v: SkipGateway is not %v", o, want)
		}
	}
	if !SkipGateway(options.Network{Mode: mode.Default}, false) {
		t.Error("a network without a parent takes a gateway address")
	}
}

func TestGatewayIsThatOfTheAddress(t *testing.T) {
	b := newBench(t)
	n := lan("net", "eth0", mode.Default)
	n.Subnets = append(n.Subnets, Subnet{Prefix: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParseAddr("10.9.0.1")})
	b.create(n)
	e := Endpoint{ID: id("one"), NetworkID: n.ID, IPv4: netip.MustParsePrefix("10.9.3.4/16")}
	if _, err := b.CreateEndpoint(ctx, e); err != nil {
		t.Fatal(err)
	}
	p, err := b.Join(ctx, n.ID, e.ID, "")
	if err != nil || len(p.Gateways) != 1 || p.Gateways[0] != netip.MustParseAddr("10.9.0.1") {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestEndpointWithoutAnAddress(t *testing.T) {
	b := newBench(t)
	b.create(Network{ID: id("net"), Options: options.Network{Parent: "eth0", Mode: mode.Default}})
	e := Endpoint{ID: id("one"), NetworkID: id("net")}
	if mac, err := b.CreateEndpoint(ctx, e); err != nil || mac == nil {
		t.Errorf("%v, %v", mac, err)
	}
	if p, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12]); err != nil || p.Gateways != nil {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestMACFollowsNameThenAddress(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0", mode.Default))
	mac := func(endpoint string, host int, name string) string {
		t.Helper()
		e := on("net", endpoint, host)
		if delete(b.names, e.IPv4.Addr()); name != "" {
			b.names[e.IPv4.Addr()] = name
		}
		m := b.start(e)
		defer b.stop(e)
		if m[0]&3 != 2 {
			t.Errorf("%v is not locally administered unicast", m)
		}
		return m.String()
	}
	web := mac("a", 10, "web")
	if got := mac("b", 20, "web"); got != web {
		t.Errorf("web has %s, had %s", got, web)
	}
	if got := mac("c", 10, "db"); got == web {
		t.Errorf("db has web's MAC %s", got)
	}
	byAddress := mac("d", 10, "")
	if got := mac("e", 10, ""); got != byAddress {
		t.Errorf("address 10 has %s, had %s", got, byAddress)
	}
	if got := mac("f", 11, ""); got == byAddress {
		t.Errorf("address 11 has the MAC of 10")
	}
}

// One container on two networks of one parent and subnet has one name, and
// still needs two MACs.
func TestMACsOfOneParentDiffer(t *testing.T) {
	b := newBench(t)
	b.create(lan("one", "eth0", mode.Default), lan("two", "eth0", mode.Default))
	b.names[netip.MustParseAddr("192.168.50.10")] = "web"
	b.names[netip.MustParseAddr("192.168.50.11")] = "web"
	if a, z := b.start(on("one", "a", 10)), b.start(on("two", "b", 11)); a.String() == z.String() {
		t.Errorf("both have %v", a)
	}
}

func TestMACsOfTwoHostsDiffer(t *testing.T) {
	seen := map[string]string{}
	for host := range 50 {
		for c := range 50 {
			who := fmt.Sprintf("name web-%d", c)
			m := deriveMAC([]byte{0, 0x16, 0x3e, 0, 0, byte(host)}, "192.168.50.0/24", who, 0).String()
			at := fmt.Sprintf("%s on host %d", who, host)
			if seen[m] != "" {
				t.Fatalf("%s has the MAC of %s", at, seen[m])
			}
			seen[m] = at
		}
	}
}

func TestHolder(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0", mode.Default))
	b.start(on("net", "one", 10))
	b.restart()
	for _, a := range []string{"192.168.50.10", "fd00:50::a"} {
		if who, ok := b.Holder(netip.MustParseAddr(a)); !ok || who != "endpoint one000000000 of network net000000000" {
			t.Errorf("%s: %q, %v", a, who, ok)
		}
	}
	if who, ok := b.Holder(netip.MustParseAddr("192.168.50.11")); ok {
		t.Errorf("nobody's address is held by %s", who)
	}
}

func TestParallelStartsAndStops(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0", mode.Default))
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			e := Endpoint{ID: id(fmt.Sprintf("e%03dx", i)), NetworkID: id("net"), IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 50, byte(i + 10)}), 24)}
			if _, err := b.CreateEndpoint(ctx, e); err != nil {
				t.Error(err)
			}
			if _, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12]); err != nil {
				t.Error(err)
			}
			if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := b.DeleteNetwork(ctx, id("net")); err != nil {
		t.Fatal(err)
	}
	b.nothing()
}

func TestDeadlineUndoes(t *testing.T) {
	b := newBench(t)
	b.create(lan("net", "eth0", mode.Default))
	late, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
	defer cancel()
	// The disk may still be faster than the deadline: then there is nothing
	// to undo, and the deletions below find an endpoint and a network.
	if _, err := b.CreateEndpoint(late, on("net", "one", 10)); err != nil {
		refused(t, err, "not on disk in time")
	}
	if err := b.CreateNetwork(late, lan("other", "eth0.10", mode.Default)); err != nil {
		refused(t, err, "not on disk in time")
	} else if err := b.DeleteNetwork(ctx, id("other")); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteNetwork(ctx, id("net")); err != nil {
		t.Fatal(err)
	}
	b.nothing()
}
