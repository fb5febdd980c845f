package netlinkutil_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// A clause is a promise that the real kernel and the fake one keep alike.
type clause struct {
	name  string
	needs []string // link types besides macvlan
	test  func(*testing.T, world)
}

func TestContract(t *testing.T) {
	for _, c := range contract() {
		t.Run(c.name, func(t *testing.T) {
			t.Run("fake", func(t *testing.T) { c.test(t, newFake()) })
			t.Run("kernel", func(t *testing.T) {
				w := newKernel(t)
				w.needs(t, "macvlan")
				w.needs(t, c.needs...)
				c.test(t, w)
			})
		})
	}
}

func contract() []clause {
	cs := []clause{
		{"link", nil, testLink},
		{"links", nil, testLinks},
		{"names", nil, testNames},
		{"refusals", nil, testRefusals},
		{"port", nil, testPort},
		{"passthru", nil, testPassthru},
		{"leftover", nil, testLeftover},
		{"stacked", nil, testStacked},
		{"moves", nil, testMoves},
		{"mac in use", nil, testMACInUse},
		{"delete", nil, testDelete},
		{"parallel", nil, testParallel},
		{"kinds exclude", []string{"ipvlan"}, testKindsExclude},
		{"ipvlan mode is the parent's", []string{"ipvlan"}, testIPvlanMode},
		{"ipvlan takes no mac", []string{"ipvlan"}, testIPvlanMAC},
		{"vlan", []string{"vlan"}, testVLAN},
		{"vlan refusals", []string{"vlan"}, testVLANRefusals},
		{"vlan protocols", []string{"vlan"}, testVLANProtocols},
		{"vlan as parent", []string{"vlan"}, testVLANParent},
		{"dummy", []string{"dummy"}, testDummy},
		{"dummy as parent", []string{"dummy"}, testDummyParent},
	}
	cs = append(cs, addressClauses()...)
	cs = append(cs, changeClauses()...)
	cs = append(cs, shimClauses()...)
	cs = append(cs, sandboxClauses()...)
	for _, m := range mode.All() {
		var needs []string
		if m.Kind == mode.IPvlan {
			needs = []string{"ipvlan"}
		}
		cs = append(cs, clause{"add " + m.String(), needs, func(t *testing.T, w world) { testAdd(t, w, m) }})
	}
	return cs
}

var (
	private  = mode.Mode{Kind: mode.Macvlan, Name: "private"}
	passthru = mode.Mode{Kind: mode.Macvlan, Name: "passthru"}
	l2       = mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}
	l3vepa   = mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "vepa"}
)

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0x42, 10, 0, 0, last} }

func sub(name string, m mode.Mode) netlinkutil.SubInterface {
	s := netlinkutil.SubInterface{Name: name, Parent: "eth0", Mode: m, Alias: "underlay " + name}
	if !m.SharesMAC() {
		s.MAC = mac(name[len(name)-1])
	}
	return s
}

func add(t *testing.T, w world, s netlinkutil.SubInterface) netlinkutil.Link {
	t.Helper()
	l, err := w.AddSubInterface(s)
	if err != nil {
		t.Fatalf("adding %s: %v", s.Name, err)
	}
	return l
}

func get(t *testing.T, w world, name string) netlinkutil.Link {
	t.Helper()
	l, err := w.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused wants an error of that kind with these words, in one line.
func refused(t *testing.T, err, is error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want %q", words)
	}
	if !errors.Is(err, is) {
		t.Errorf("error %q is not %q", err, is)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q lacks %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has more than one line", err)
	}
}

func names(t *testing.T, w world) []string {
	t.Helper()
	ls, err := w.Links()
	ok(t, err)
	var ns []string
	for _, l := range ls {
		if !l.Loopback && !strings.HasSuffix(l.Name, "p") { // far ends of veth pairs
			ns = append(ns, l.Name)
		}
	}
	return ns
}

func wantNames(t *testing.T, w world, want ...string) {
	t.Helper()
	if got := names(t, w); !slices.Equal(got, want) {
		t.Errorf("links %q, want %q", got, want)
	}
}

func testLink(t *testing.T, w world) {
	w.AddNIC("eth0")
	l := get(t, w, "eth0")
	if l.Name != "eth0" || l.Index == 0 || l.MTU != 1500 || !l.Up || l.Loopback || len(l.MAC) != 6 || l.Lower != "" || l.Master != "" {
		t.Errorf("eth0 is %+v", l)
	}
	if lo := get(t, w, "lo"); !lo.Loopback || lo.Kind != "device" {
		t.Errorf("lo is %+v", lo)
	}
	_, err := w.Link("eth9")
	refused(t, err, netlinkutil.ErrNotFound, "eth9 does not exist")
	refused(t, err, os.ErrNotExist)
}

func testLinks(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	w.AddBridge("br0")
	w.Enslave("eth1", "br0")
	add(t, w, sub("ul-1", mode.Default))
	wantNames(t, w, "eth0", "eth1", "br0", "ul-1")
	ls, err := w.Links()
	ok(t, err)
	for _, l := range ls {
		if one := get(t, w, l.Name); fmt.Sprintf("%+v", one) != fmt.Sprintf("%+v", l) {
			t.Errorf("alone %s is\n%+v, listed\n%+v", l.Name, one, l)
		}
	}
	if l := get(t, w, "eth1"); l.Master != "br0" || l.MasterKind != "bridge" {
		t.Errorf("eth1 is a port of %q, a %q", l.Master, l.MasterKind)
	}
	if l := get(t, w, "ul-1"); l.Lower != "eth0" || l.Kind != "macvlan" {
		t.Errorf("ul-1 is %s on %q", l.Kind, l.Lower)
	}
}

func testNames(t *testing.T, w world) {
	w.AddNIC("eth0")
	for _, name := range []string{"", "sixteen-bytes-xx", "a/b", "a b", "..", "a:b", "a%d"} {
		_, err := w.Link(name)
		refused(t, err, netlinkutil.ErrInvalid)
		_, err = w.AddSubInterface(netlinkutil.SubInterface{Name: name, Parent: "eth0", Mode: mode.Default})
		refused(t, err, netlinkutil.ErrInvalid)
		_, err = w.AddSubInterface(netlinkutil.SubInterface{Name: "ul-1", Parent: name, Mode: mode.Default})
		refused(t, err, netlinkutil.ErrInvalid)
		_, err = w.EnsureVLAN(name, "eth0", 7, netlinkutil.Dot1Q, "")
		refused(t, err, netlinkutil.ErrInvalid)
		_, err = w.EnsureDummy(name, "", nil)
		refused(t, err, netlinkutil.ErrInvalid)
		refused(t, w.SetUp(name), netlinkutil.ErrInvalid)
		refused(t, w.DeleteLink(name), netlinkutil.ErrInvalid)
	}
	_, err := w.Link("sixteen-bytes-xx")
	refused(t, err, netlinkutil.ErrInvalid, "16 bytes", "15")
	add(t, w, sub("fifteen-bytes-x", mode.Default))
	wantNames(t, w, "eth0", "fifteen-bytes-x")
}

func testAdd(t *testing.T, w world, m mode.Mode) {
	w.AddNIC("eth0")
	parent := get(t, w, "eth0")
	s := sub("ul-1", m)
	s.MTU = 1400
	s.BCQueueLen = 2000
	l := add(t, w, s)
	want := s.MAC
	if m.SharesMAC() {
		want = parent.MAC
	}
	if !bytes.Equal(l.MAC, want) || l.MTU != 1400 || l.Up || l.Alias != s.Alias || l.Lower != "eth0" || l.Kind != string(m.Kind) || l.Index == 0 {
		t.Errorf("made %+v", l)
	}
	if again := get(t, w, "ul-1"); fmt.Sprint(again) != fmt.Sprint(l) {
		t.Errorf("answered\n%+v, made\n%+v", l, again)
	}
	if got := w.Mode(t, "ul-1"); got != m.String() {
		t.Errorf("mode %s, want %s", got, m)
	}
	if m.Alone() {
		return
	}
	s = sub("ul-2", m) // beside the first, all by default
	s.MAC, s.Alias = nil, ""
	l = add(t, w, s)
	if l.MTU != 1500 || len(l.MAC) != 6 || l.Alias != "" {
		t.Errorf("made by default %+v", l)
	}
}

func testRefusals(t *testing.T, w world) {
	w.AddNIC("eth0")
	eth0 := get(t, w, "eth0")
	for _, c := range []struct {
		name  string
		is    error
		words string
		spoil func(*netlinkutil.SubInterface)
	}{
		{"no parent", netlinkutil.ErrNotFound, "parent eth9 does not exist", func(s *netlinkutil.SubInterface) { s.Parent = "eth9" }},
		{"loopback", netlinkutil.ErrInvalid, "loopback", func(s *netlinkutil.SubInterface) { s.Parent = "lo" }},
		{"mtu above parent", netlinkutil.ErrInvalid, "MTU 9000 is more than the 1500 of parent eth0", func(s *netlinkutil.SubInterface) { s.MTU = 9000 }},
		{"mtu too small", netlinkutil.ErrInvalid, "MTU 60", func(s *netlinkutil.SubInterface) { s.MTU = 60 }},
		{"group mac", netlinkutil.ErrInvalid, "01:00:5e:00:00:01", func(s *netlinkutil.SubInterface) { s.MAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1} }},
		{"zero mac", netlinkutil.ErrInvalid, "no MAC address", func(s *netlinkutil.SubInterface) { s.MAC = make(net.HardwareAddr, 6) }},
		{"long mac", netlinkutil.ErrInvalid, "no MAC address", func(s *netlinkutil.SubInterface) { s.MAC = make(net.HardwareAddr, 8) }},
		{"parent's mac", netlinkutil.ErrAddrInUse, "parent eth0 itself", func(s *netlinkutil.SubInterface) { s.MAC = eth0.MAC }},
		{"no mode", netlinkutil.ErrInvalid, "no mode", func(s *netlinkutil.SubInterface) { s.Mode = mode.Mode{} }},
		{"bad mode", netlinkutil.ErrInvalid, "no mode", func(s *netlinkutil.SubInterface) { s.Mode.Name = "l3" }},
		{"mac on ipvlan", netlinkutil.ErrInvalid, "share the MAC", func(s *netlinkutil.SubInterface) { s.Mode = l2 }},
	} {
		s := sub("ul-1", mode.Default)
		c.spoil(&s)
		_, err := w.AddSubInterface(s)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		refused(t, err, c.is, c.words)
	}
	refused(t, w.SetUp("ul-1"), netlinkutil.ErrNotFound, "ul-1")
	wantNames(t, w, "eth0")
}

func testPort(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddBridge("br0")
	w.Enslave("eth0", "br0")
	_, err := w.AddSubInterface(sub("ul-1", mode.Default))
	refused(t, err, netlinkutil.ErrBusy, "parent eth0 is a port of bridge br0", "name br0 as parent")
	s := sub("ul-1", mode.Default)
	s.Parent = "br0"
	if l := add(t, w, s); l.Lower != "br0" {
		t.Errorf("made %+v", l)
	}
}

func testPassthru(t *testing.T, w world) {
	w.AddNIC("eth0")
	before := get(t, w, "eth0").MAC
	add(t, w, sub("ul-1", mode.Default))
	_, err := w.AddSubInterface(sub("ul-2", passthru))
	refused(t, err, netlinkutil.ErrBusy, "parent eth0 already carries macvlan links; passthru needs it alone")
	ok(t, w.DeleteLink("ul-1"))

	s := sub("ul-2", passthru)
	s.MAC = mac(9)
	if l := add(t, w, s); !bytes.Equal(l.MAC, s.MAC) {
		t.Errorf("passthru has MAC %s, want %s", l.MAC, s.MAC)
	}
	if l := get(t, w, "eth0"); !bytes.Equal(l.MAC, s.MAC) {
		t.Errorf("its parent has MAC %s, want %s", l.MAC, s.MAC)
	}
	for _, m := range []mode.Mode{mode.Default, private, passthru} {
		_, err = w.AddSubInterface(sub("ul-3", m))
		refused(t, err, netlinkutil.ErrBusy, "parent eth0", "passthru")
	}
	ok(t, w.DeleteLink("ul-2"))
	if l := get(t, w, "eth0"); !bytes.Equal(l.MAC, before) {
		t.Errorf("the parent has MAC %s again, want %s", l.MAC, before)
	}
	add(t, w, sub("ul-3", mode.Default))
}

func testLeftover(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	first := add(t, w, sub("ul-1", mode.Default))

	s := sub("ul-1", private) // same alias; up, other MAC and mode
	ok(t, w.SetUp("ul-1"))
	s.MAC = mac(7)
	second := add(t, w, s)
	if second.Index == first.Index || !bytes.Equal(second.MAC, s.MAC) || w.Mode(t, "ul-1") != "macvlan private" {
		t.Errorf("replaced by %+v", second)
	}
	s.Alias = "another" // other alias, but down
	add(t, w, s)

	ok(t, w.SetUp("ul-1"))
	s.Alias = "third"
	_, err := w.AddSubInterface(s)
	refused(t, err, netlinkutil.ErrExists, "link ul-1 exists already (macvlan on eth0)")
	refused(t, err, os.ErrExist)
	w.SetDown("ul-1")
	s.Parent = "eth1" // down, but elsewhere
	_, err = w.AddSubInterface(s)
	refused(t, err, netlinkutil.ErrExists)
	s.Parent, s.Alias = "eth0", "" // no alias is nobody's alias, but it is down
	if l := add(t, w, s); l.Alias != "" {
		t.Errorf("alias %q of the one before", l.Alias)
	}
	ok(t, w.SetUp("ul-1"))
	_, err = w.AddSubInterface(s)
	refused(t, err, netlinkutil.ErrExists)

	w.AddBridge("br0")
	w.SetDown("br0")
	s = sub("br0", mode.Default)
	_, err = w.AddSubInterface(s)
	refused(t, err, netlinkutil.ErrExists, "link br0 exists already (bridge)")
	wantNames(t, w, "eth0", "eth1", "ul-1", "br0")
}

func testStacked(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	s := sub("ul-2", mode.Default)
	s.Parent = "ul-1"
	if l := add(t, w, s); l.Lower != "eth0" {
		t.Errorf("macvlan on macvlan lies on %q", l.Lower)
	}
}

func testMoves(t *testing.T, w world) {
	w.AddNIC("eth0")
	made := add(t, w, sub("ul-1", mode.Default))
	ok(t, w.Move("ul-1"))
	wantNames(t, w, "eth0")
	_, err := w.Link("ul-1")
	refused(t, err, netlinkutil.ErrNotFound)
	ok(t, w.DeleteLink("ul-1")) // absent here, untouched there
	ok(t, w.Return("ul-1"))
	back := get(t, w, "ul-1")
	if back.Up || back.Alias != made.Alias || !bytes.Equal(back.MAC, made.MAC) || back.Lower != "eth0" {
		t.Errorf("came back as %+v", back)
	}
	add(t, w, sub("ul-1", mode.Default))

	ok(t, w.Move("ul-1"))
	_, err = w.AddSubInterface(sub("ul-2", passthru)) // the one out of sight counts
	refused(t, err, netlinkutil.ErrBusy, "already carries macvlan links")
	w.Vanish("ul-1")
	add(t, w, sub("ul-2", passthru))
}

func testMACInUse(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := sub("ul-1", mode.Default)
	add(t, w, s)
	s.Name = "ul-2"
	add(t, w, s) // the kernel minds when it comes up
	ok(t, w.Move("ul-1"))
	refused(t, w.SetUp("ul-2"), netlinkutil.ErrAddrInUse, "ul-2", "MAC address")
	if err := w.Move("ul-2"); err == nil {
		t.Error("two links with one MAC address are up")
	}
	ok(t, w.Return("ul-1"))
	ok(t, w.SetUp("ul-2"))
	ok(t, w.SetUp("ul-2")) // again
}

func testDelete(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddBridge("br0")
	add(t, w, sub("ul-1", mode.Default))
	ok(t, w.DeleteLink("ul-1"))
	ok(t, w.DeleteLink("ul-1"))
	ok(t, w.DeleteLink("ul-9"))
	refused(t, w.DeleteLink("lo"), errors.ErrUnsupported)
	for _, n := range []string{"ul-2", "ul-3"} {
		s := sub(n, mode.Default)
		s.Parent = "br0"
		add(t, w, s)
	}
	ok(t, w.Move("ul-3"))
	ok(t, w.DeleteLink("br0")) // and what stands on it, there too
	wantNames(t, w, "eth0")
}

// testParallel is about the race detector and about lost answers.
func testParallel(t *testing.T, w world) {
	w.AddNIC("eth0")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			s := sub(fmt.Sprintf("ul-%x", i), mode.Default)
			for range 3 {
				if l, err := w.AddSubInterface(s); err != nil || l.Name != s.Name || !bytes.Equal(l.MAC, s.MAC) {
					t.Errorf("%+v, %v", l, err)
				}
				if _, err := w.Links(); err != nil {
					t.Error(err)
				}
				if err := w.DeleteLink(s.Name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantNames(t, w, "eth0")
}

func testKindsExclude(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	_, err := w.AddSubInterface(sub("ul-2", l2))
	refused(t, err, netlinkutil.ErrBusy, "parent eth0 already carries macvlan links (ul-1)", "ipvlan")
	ok(t, w.Move("ul-1"))
	_, err = w.AddSubInterface(sub("ul-2", l2))
	refused(t, err, netlinkutil.ErrBusy, "parent eth0 is busy", "macvlan", "ipvlan")
	w.Vanish("ul-1")
	add(t, w, sub("ul-2", l2))
	for _, m := range []mode.Mode{mode.Default, passthru} {
		_, err = w.AddSubInterface(sub("ul-3", m))
		refused(t, err, netlinkutil.ErrBusy, "parent eth0 already carries ipvlan links (ul-2)", "macvlan")
	}
	w.AddNIC("eth1")
	w.AddBridge("br0")
	w.Enslave("eth1", "br0")
	s := sub("ul-4", l2)
	s.Parent = "eth1"
	_, err = w.AddSubInterface(s)
	refused(t, err, netlinkutil.ErrBusy, "parent eth1 is a port of bridge br0")
}

func testIPvlanMode(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", l2))
	ok(t, w.Move("ul-1"))
	add(t, w, sub("ul-2", l3vepa))
	for _, n := range []string{"ul-1", "ul-2"} {
		if got := w.Mode(t, n); got != "ipvlan l3 vepa" {
			t.Errorf("%s is %s", n, got)
		}
	}
}

func testIPvlanMAC(t *testing.T, w world) {
	w.AddNIC("eth0")
	s := sub("ul-1", l2)
	s.MAC = mac(1)
	_, err := w.AddSubInterface(s)
	refused(t, err, netlinkutil.ErrInvalid, "ipvlan links share the MAC address of their parent eth0")
	wantNames(t, w, "eth0")
}

func testVLAN(t *testing.T, w world) {
	w.AddNIC("eth0")
	made, err := w.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, "underlay")
	if err != nil || !made {
		t.Fatal(made, err)
	}
	l, low := get(t, w, "eth0.10"), get(t, w, "eth0")
	if l.Kind != "vlan" || l.VLAN != 10 || l.Lower != "eth0" || !l.Up || l.MTU != low.MTU || !bytes.Equal(l.MAC, low.MAC) || l.Alias != "underlay" {
		t.Errorf("made %+v", l)
	}
	w.SetDown("eth0.10")
	made, err = w.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, "another")
	if err != nil || made {
		t.Fatal(made, err)
	}
	if l := get(t, w, "eth0.10"); !l.Up || l.Alias != "underlay" {
		t.Errorf("the second time it is %+v", l)
	}
}

func testVLANRefusals(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	w.AddBridge("br0")
	_, err := w.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, "")
	ok(t, err)
	for _, c := range []struct {
		name, lower string
		id          int
		is          error
		words       []string
	}{
		{"eth0.10", "eth0", 11, netlinkutil.ErrExists, []string{"link eth0.10 exists already and is vlan 10 on eth0, not vlan 11 on eth0"}},
		{"eth0.10", "eth1", 10, netlinkutil.ErrExists, []string{"vlan 10 on eth0, not vlan 10 on eth1"}},
		{"br0", "eth1", 10, netlinkutil.ErrExists, []string{"link br0 exists already and is bridge, not vlan 10 on eth1"}},
		{"lan10", "eth0", 10, netlinkutil.ErrExists, []string{"vlan 10 on eth0 exists already under the name eth0.10", "instead of lan10"}},
		{"eth9.10", "eth9", 10, netlinkutil.ErrNotFound, []string{"link eth9 does not exist"}},
		{"lo.10", "lo", 10, netlinkutil.ErrUnsupported, []string{"lo takes no VLANs"}},
		{"eth0.0", "eth0", 0, netlinkutil.ErrInvalid, []string{"from 1 to 4094"}},
		{"eth0.4095", "eth0", 4095, netlinkutil.ErrInvalid, []string{"from 1 to 4094"}},
	} {
		made, err := w.EnsureVLAN(c.name, c.lower, c.id, netlinkutil.Dot1Q, "underlay")
		refused(t, err, c.is, c.words...)
		if made {
			t.Errorf("%s: refused, and made", c.name)
		}
	}
	w.SetDown("eth1")
	_, err = w.EnsureVLAN("eth1.5", "eth1", 5, netlinkutil.Dot1Q, "")
	refused(t, err, netlinkutil.ErrInvalid, "eth1 is down", "ip link set eth1 up")
	wantNames(t, w, "eth0", "eth1", "br0", "eth0.10")
}

func testVLANProtocols(t *testing.T, w world) {
	w.AddNIC("eth0")
	made, err := w.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1AD, "underlay")
	if err != nil || !made {
		t.Fatal(made, err)
	}
	made, err = w.EnsureVLAN("eth0.10.20", "eth0.10", 20, netlinkutil.Dot1Q, "underlay")
	if err != nil || !made {
		t.Fatal(made, err)
	}
	for name, want := range map[string]netlinkutil.VLANProtocol{"eth0": 0, "eth0.10": netlinkutil.Dot1AD, "eth0.10.20": netlinkutil.Dot1Q} {
		if l := get(t, w, name); l.VLANProtocol != want || !l.Up || l.MTU != 1500 {
			t.Errorf("%s is %+v", name, l)
		}
	}
	_, err = w.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, "")
	refused(t, err, netlinkutil.ErrExists, "is 802.1ad vlan 10 on eth0, not 802.1q vlan 10 on eth0")
	_, err = w.EnsureVLAN("eth0.10.20", "eth0.10", 20, netlinkutil.Dot1AD, "")
	refused(t, err, netlinkutil.ErrExists, "is 802.1q vlan 20 on eth0.10, not 802.1ad vlan 20 on eth0.10")
	_, err = w.EnsureVLAN("lan10", "eth0", 10, netlinkutil.Dot1AD, "")
	refused(t, err, netlinkutil.ErrExists, "802.1ad vlan 10 on eth0 exists already under the name eth0.10")
	_, err = w.EnsureVLAN("lan10", "eth0", 10, 0x9100, "")
	refused(t, err, netlinkutil.ErrInvalid, "protocol 0x9100 is no VLAN protocol")
	made, err = w.EnsureVLAN("lan10", "eth0", 10, netlinkutil.Dot1Q, "") // the other 10
	if err != nil || !made {
		t.Fatal(made, err)
	}
	ok(t, w.DeleteLink("eth0.10"))
	wantNames(t, w, "eth0", "lan10")
}

func testVLANParent(t *testing.T, w world) {
	w.AddNIC("eth0")
	_, err := w.EnsureVLAN("eth0.10", "eth0", 10, netlinkutil.Dot1Q, "")
	ok(t, err)
	s := sub("ul-1", mode.Default)
	s.Parent = "eth0.10"
	if l := add(t, w, s); l.Lower != "eth0.10" || l.VLAN != 0 {
		t.Errorf("made %+v", l)
	}
	add(t, w, sub("ul-2", passthru)) // a vlan on eth0 does not take it
	ok(t, w.Move("ul-1"))
	ok(t, w.DeleteLink("eth0.10"))
	wantNames(t, w, "eth0", "ul-2")
}

func testDummy(t *testing.T, w world) {
	made, err := w.EnsureDummy("ul-d", "underlay", mac(5))
	if err != nil || !made {
		t.Fatal(made, err)
	}
	l := get(t, w, "ul-d")
	if l.Kind != "dummy" || !l.Up || l.Alias != "underlay" || !bytes.Equal(l.MAC, mac(5)) || l.Lower != "" {
		t.Errorf("made %+v", l)
	}
	w.SetDown("ul-d")
	made, err = w.EnsureDummy("ul-d", "another", mac(6))
	if err != nil || made {
		t.Fatal(made, err)
	}
	if l := get(t, w, "ul-d"); !l.Up || l.Alias != "underlay" || !bytes.Equal(l.MAC, mac(5)) {
		t.Errorf("the second time it is %+v", l)
	}
	made, err = w.EnsureDummy("ul-e", "", nil)
	if l := get(t, w, "ul-e"); err != nil || !made || len(l.MAC) != 6 || l.Alias != "" {
		t.Errorf("made by default %+v, %v", l, err)
	}
	w.AddBridge("br0")
	_, err = w.EnsureDummy("br0", "underlay", nil)
	refused(t, err, netlinkutil.ErrExists, "link br0 exists already and is bridge, not dummy")
	ok(t, w.DeleteLink("ul-d"))
	wantNames(t, w, "ul-e", "br0")
}

func testDummyParent(t *testing.T, w world) {
	_, err := w.EnsureDummy("ul-d", "", nil)
	ok(t, err)
	s := sub("ul-1", mode.Default)
	s.Parent = "ul-d"
	add(t, w, s)
	ok(t, w.DeleteLink("ul-d"))
	wantNames(t, w)
}
