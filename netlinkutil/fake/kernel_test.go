package fake_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"underlay/internal/mode"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, k *fake.Kernel, name, parent, m string, mac byte) {
	t.Helper()
	s := netlinkutil.SubInterface{Name: name, Parent: parent, Alias: "underlay " + name}
	ok(t, s.Mode.UnmarshalText([]byte(m)))
	if mac != 0 {
		s.MAC = net.HardwareAddr{2, 0x42, 10, 0, 0, mac}
	}
	_, err := k.AddSubInterface(s)
	ok(t, err)
}

// TestString is what everybody else's golden pictures rest on.
func TestString(t *testing.T) {
	k := fake.New()
	k.AddNIC("eth0")
	k.AddNIC("eth1")
	k.AddNIC("eth2")
	k.AddNIC("eth3")
	k.Add(netlinkutil.Link{Name: "br0", Kind: "bridge", MTU: 9000, MAC: net.HardwareAddr{2, 0xb, 0, 0, 0, 1}})
	ok(t, k.Enslave("eth3", "br0"))
	_, err := k.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, "underlay parent")
	ok(t, err)
	_, err = k.EnsureDummy("ul-dummy", "", nil)
	ok(t, err)
	add(t, k, "ul-1", "eth0", "macvlan bridge", 1)
	add(t, k, "ul-2", "eth0.10", "macvlan private", 0)
	add(t, k, "ul-3", "eth1", "ipvlan l2", 0)
	add(t, k, "ul-4", "eth2", "macvlan passthru", 4)
	_, err = k.AddSubInterface(netlinkutil.SubInterface{Name: "ul-5", Parent: "ul-dummy", Mode: mode.Default, MTU: 1280, BCQueueLen: 2000})
	ok(t, err)
	ok(t, k.SetUp("ul-2"))
	ok(t, k.Move("ul-1"))
	ok(t, k.Move("ul-3"))
	add(t, k, "ul-6", "eth1", "ipvlan l3 vepa", 0) // and ul-3 with it
	const want = `2 eth0 device 00:16:3e:00:00:02 mtu 1500 up
3 eth1 device 00:16:3e:00:00:03 mtu 1500 up
4 eth2 device 02:42:0a:00:00:04 mtu 1500 up
5 eth3 device in br0 00:16:3e:00:00:05 mtu 1500 up
6 br0 bridge 02:0b:00:00:00:01 mtu 9000 down
7 eth0.10 vlan 10 on eth0 00:16:3e:00:00:02 mtu 1500 up "underlay parent"
8 ul-dummy dummy 02:00:00:00:00:08 mtu 1500 up
10 ul-2 macvlan private on eth0.10 02:00:00:00:00:0a mtu 1500 up "underlay ul-2"
12 ul-4 macvlan passthru on eth2 02:42:0a:00:00:04 mtu 1500 down "underlay ul-4"
13 ul-5 macvlan bridge on ul-dummy 02:00:00:00:00:0d mtu 1280 bcqueuelen 2000 down
14 ul-6 ipvlan l3 vepa on eth1 00:16:3e:00:00:03 mtu 1500 down "underlay ul-6"
moved:
9 ul-1 macvlan bridge on eth0 02:42:0a:00:00:01 mtu 1500 up "underlay ul-1"
11 ul-3 ipvlan l3 vepa on eth1 00:16:3e:00:00:03 mtu 1500 up "underlay ul-3"
`
	if diff := cmp.Diff(want, k.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, name := range []string{"ul-2", "ul-4", "ul-5", "ul-6", "ul-dummy", "eth0.10", "br0"} {
		ok(t, k.DeleteLink(name))
	}
	ok(t, k.Return("ul-1"))
	ok(t, k.Vanish("ul-3"))
	const rest = `2 eth0 device 00:16:3e:00:00:02 mtu 1500 up
3 eth1 device 00:16:3e:00:00:03 mtu 1500 up
4 eth2 device 00:16:3e:00:00:04 mtu 1500 up
5 eth3 device 00:16:3e:00:00:05 mtu 1500 up
9 ul-1 macvlan bridge on eth0 02:42:0a:00:00:01 mtu 1500 down "underlay ul-1"
`
	if diff := cmp.Diff(rest, k.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestStringOfAddresses is the same, of what an IPAM reads.
func TestStringOfAddresses(t *testing.T) {
	k := fake.New()
	k.AddNIC("eth0")
	k.AddNIC("eth1")
	add(t, k, "ul-1", "eth0", "macvlan bridge", 1)
	for _, a := range []string{"192.168.50.2/24", "192.168.50.3/24", "2001:db8:50::2/64"} {
		k.AddAddress("eth0", netip.MustParsePrefix(a))
	}
	k.AddAddress("eth0", netip.MustParsePrefix("2001:db8:50::7/64"), unix.IFA_F_TEMPORARY, unix.IFA_F_DEPRECATED)
	k.AddAddress("eth1", netip.MustParsePrefix("10.0.0.2/8"))
	k.AddAddress("ul-1", netip.MustParsePrefix("10.9.0.2/32"))
	router := fake.Hop{Link: "eth0", Gateway: netip.MustParseAddr("192.168.50.1")}
	k.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), 100, router, fake.Hop{Link: "eth1", Gateway: netip.MustParseAddr("10.0.0.1"), OnLink: true})
	k.AddRoute(netip.MustParsePrefix("::/0"), 0, fake.Hop{Link: "eth0", Gateway: netip.MustParseAddr("fe80::1")})
	k.AddRoute(netip.MustParsePrefix("172.16.0.0/12"), 0, fake.Hop{Link: "eth1"})
	k.Unplug("eth1")
	const want = `2 eth0 device 00:16:3e:00:00:02 mtu 1500 up 192.168.50.2/24 192.168.50.3/24 secondary 2001:db8:50::2/64 2001:db8:50::7/64 temporary deprecated
3 eth1 device 00:16:3e:00:00:03 mtu 1500 up unplugged 10.0.0.2/8
4 ul-1 macvlan bridge on eth0 02:42:0a:00:00:01 mtu 1500 down 10.9.0.2/32 "underlay ul-1"
routes:
0.0.0.0/0 via 192.168.50.1 on eth0 via 10.0.0.1 on eth1 onlink metric 100
::/0 via fe80::1 on eth0 metric 1024
172.16.0.0/12 on eth1
`
	if diff := cmp.Diff(want, k.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	k.Set("eth0", func(l *netlinkutil.Link) { l.Up = false })
	k.Plug("eth1")
	k.DropAddress("eth0", netip.MustParseAddr("192.168.50.3"))
	ok(t, k.Take("ul-1"))
	ok(t, k.Rename("eth1", "lan"))
	const rest = `2 eth0 device 00:16:3e:00:00:02 mtu 1500 down 192.168.50.2/24
3 lan device 00:16:3e:00:00:03 mtu 1500 up 10.0.0.2/8
moved:
4 ul-1 macvlan bridge on eth0 02:42:0a:00:00:01 mtu 1500 down "underlay ul-1"
routes:
0.0.0.0/0 via 10.0.0.1 on lan onlink metric 100
172.16.0.0/12 on lan
`
	if diff := cmp.Diff(rest, k.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestStringOfShims is the same, of what the driver does for host access.
func TestStringOfShims(t *testing.T) {
	k := fake.New()
	k.AddNIC("eth0")
	k.AddNIC("eth1")
	k.AddAddress("eth0", netip.MustParsePrefix("192.168.50.2/24"))
	_, err := k.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1AD, "underlay parent")
	ok(t, err)
	_, err = k.EnsureVLAN("eth0.10.20", "eth0.10", 20, netlinkutil.Dot1Q, "underlay parent")
	ok(t, err)
	bridge := netlinkutil.Shim{
		Name: "ulh-0", Parent: "eth0", Mode: mode.Default, MAC: net.HardwareAddr{2, 0x42, 10, 0, 0, 0x51}, Alias: "underlay host access to eth0",
		LinkLocal4: netip.MustParseAddr("169.254.50.2"), LinkLocal6: netip.MustParseAddr("fe80::51"),
	}
	l2 := netlinkutil.Shim{Name: "ulh-1", Parent: "eth1", Mode: mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}, Alias: "underlay host access to eth1"}
	for _, s := range []netlinkutil.Shim{bridge, l2} {
		ok(t, k.EnsureShim(s))
		for _, a := range []string{"192.168.50.50", "2001:db8:50::50"} {
			r := netlinkutil.HostRoute{Addr: netip.MustParseAddr(a), MAC: net.HardwareAddr{2, 0x42, 10, 0, 0, 0x50}}
			if s.Name == "ulh-1" {
				r.Addr = r.Addr.Next()
			} else if r.Addr.Is4() {
				r.Source = netip.MustParseAddr("192.168.50.2")
			}
			ok(t, k.Reach(s, r))
		}
	}
	const want = `2 eth0 device 00:16:3e:00:00:02 mtu 1500 up 192.168.50.2/24
3 eth1 device 00:16:3e:00:00:03 mtu 1500 up
4 eth0.10 vlan 10 802.1ad on eth0 00:16:3e:00:00:02 mtu 1500 up "underlay parent"
5 eth0.10.20 vlan 20 on eth0.10 00:16:3e:00:00:02 mtu 1500 up "underlay parent"
6 ulh-0 macvlan bridge on eth0 02:42:0a:00:00:51 mtu 1500 up 169.254.50.2/32 fe80::51/64 "underlay host access to eth0"
7 ulh-1 ipvlan l2 on eth1 00:16:3e:00:00:03 mtu 1500 up "underlay host access to eth1"
routes:
192.168.50.50/32 on ulh-0 src 192.168.50.2 of underlay
2001:db8:50::50/128 on ulh-0 of underlay
192.168.50.51/32 on ulh-1 or eth1 of underlay
2001:db8:50::51/128 on ulh-1 of underlay
neighbours:
192.168.50.50 on ulh-0 is 02:42:0a:00:00:50
2001:db8:50::50 on ulh-0 is 02:42:0a:00:00:50
192.168.50.51 on ulh-1 is 02:42:0a:00:00:50
2001:db8:50::51 on ulh-1 is 02:42:0a:00:00:50
`
	if diff := cmp.Diff(want, k.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	ok(t, k.DeleteShim(bridge))
	k.Set("eth1", func(l *netlinkutil.Link) { l.Up = false })
	ok(t, k.DeleteLink("eth0.10"))
	const rest = `2 eth0 device 00:16:3e:00:00:02 mtu 1500 up 192.168.50.2/24
3 eth1 device 00:16:3e:00:00:03 mtu 1500 down
7 ulh-1 ipvlan l2 on eth1 00:16:3e:00:00:03 mtu 1500 up "underlay host access to eth1"
routes:
2001:db8:50::51/128 on ulh-1 of underlay
neighbours:
192.168.50.51 on ulh-1 is 02:42:0a:00:00:50
2001:db8:50::51 on ulh-1 is 02:42:0a:00:00:50
`
	if diff := cmp.Diff(rest, k.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestLackOfNexthops is about Linux before 5.12.
func TestLackOfNexthops(t *testing.T) {
	k := fake.New()
	k.AddNIC("eth0")
	k.Lack("nexthop")
	s := netlinkutil.Shim{Name: "ulh-0", Parent: "eth0", Mode: mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}, Alias: "underlay"}
	ok(t, k.EnsureShim(s))
	r := netlinkutil.HostRoute{Addr: netip.MustParseAddr("192.168.50.50")}
	for _, c := range []struct {
		all, eth0 string
		refused   bool
	}{{"0", "1", true}, {"1", "0", true}, {"2", "1", false}, {"1", "2", false}, {"0", "0", false}, {"", "", false}} {
		k.Sysctl("net.ipv4.conf.all.rp_filter", c.all)
		k.Sysctl("net.ipv4.conf.eth0.rp_filter", c.eth0)
		err := k.Reach(s, r)
		if errors.Is(err, netlinkutil.ErrUnsupported) != c.refused || (err != nil) != c.refused {
			t.Errorf("rp_filter %q of all, %q of eth0: %v", c.all, c.eth0, err)
		}
	}
	if got, err := k.Reached(s); err != nil || len(got) != 1 {
		t.Errorf("reached %v, %v", got, err)
	}
}

func TestFail(t *testing.T) {
	k := fake.New()
	k.AddNIC("eth0")
	k.Fail("DeleteLink", 2, fake.ErrInjected)
	k.Fail("DeleteLink", 3, unix.EPERM)
	for i, want := range []error{nil, fake.ErrInjected, unix.EPERM, nil} {
		if err := k.DeleteLink("ul-1"); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("call %d: %v, want %v", i+1, err, want)
		}
	}
}

// TestLack is about what a kernel without some link types says.
func TestLack(t *testing.T) {
	k := fake.New()
	k.AddNIC("eth0")
	for _, kind := range []string{"vlan", "dummy", "ipvlan"} {
		k.Lack(kind)
	}
	_, vlan := k.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, "")
	_, dummy := k.EnsureDummy("ul-d", "", nil)
	_, ipvlan := k.AddSubInterface(netlinkutil.SubInterface{Name: "ul-1", Parent: "eth0", Mode: mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}})
	for _, c := range []struct {
		err  error
		want string
	}{
		{vlan, "adding vlan link eth0.10 on eth0: eth0 takes no VLANs, or this kernel has none (modprobe 8021q)"},
		{dummy, "adding dummy link ul-d: this kernel has no dummy links; load or install its module (modprobe dummy)"},
		{ipvlan, "adding ipvlan l2 link ul-1 on parent eth0: this kernel has no ipvlan links; load or install its module (modprobe ipvlan)"},
	} {
		if !errors.Is(c.err, netlinkutil.ErrUnsupported) || c.err.Error() != c.want {
			t.Errorf("%v\nwant %s", c.err, c.want)
		}
	}
}
