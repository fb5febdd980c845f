package fake_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

// TestStringOfSandboxes is a container whose network card is taken out and put
// in again.
func TestStringOfSandboxes(t *testing.T) {
	const box = fake.SandboxDir + "/0123456789ab"
	k := fake.New()
	picture := func(want string) {
		t.Helper()
		if d := cmp.Diff(want, k.String()); d != "" {
			t.Fatalf("(- want, + is)\n%s", d)
		}
	}
	k.AddNIC("eth0")
	add(t, k, "ul-1", "eth0", "macvlan bridge", 1)
	ok(t, k.MoveTo("ul-1", box, netlinkutil.Interface{
		Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.50.50/24")},
		Routes:   []netlinkutil.InterfaceRoute{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.168.50.1")}},
		Settings: map[string]string{"ipv6/conf/disable_ipv6": "1"},
	}))
	const inside = ` mtu 1500 up in 0123456789ab as eth1 192.168.50.50/24 to 0.0.0.0/0 via 192.168.50.1 ipv6/conf/disable_ipv6=1 "underlay ul-1"` + "\n"
	picture("2 eth0 device 00:16:3e:00:00:02 mtu 1500 up\nmoved:\n3 ul-1 macvlan bridge on eth0 02:42:0a:00:00:01" + inside)
	was, err := k.Inside(box, "underlay ul-1")
	ok(t, err)
	k.Yank("eth0")
	picture("")
	k.AddNIC("eth0")
	s := netlinkutil.SubInterface{Name: "ul-1", Parent: "eth0", Alias: "underlay ul-1", MAC: []byte{2, 0x42, 10, 0, 0, 1}}
	ok(t, s.Mode.UnmarshalText([]byte("macvlan bridge")))
	ok(t, k.Restore(box, s, was))
	picture("4 eth0 device 00:16:3e:00:00:04 mtu 1500 up\nmoved:\n5 ul-1 macvlan bridge on eth0 02:42:0a:00:00:01" + inside)
	k.EndSandbox(box)
	picture("4 eth0 device 00:16:3e:00:00:04 mtu 1500 up\n")
	k.ForbidEntry(true)
	if _, err := k.Inside(box, "underlay ul-1"); err == nil {
		t.Error("entered though that is forbidden")
	}
}
