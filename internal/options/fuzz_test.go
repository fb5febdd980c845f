package options

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"underlay/internal/mode"
)

// fuzzed reads "key=value;key=value"; no value has a semicolon in it.
func fuzzed(text string) opts {
	given := opts{}
	for e := range strings.SplitSeq(text, ";") {
		key, value, _ := strings.Cut(e, "=")
		given[key] = value
	}
	return given
}

// checkRefusal holds a refusal against what a terminal and a log can take.
func checkRefusal(t *testing.T, err error) {
	t.Helper()
	if s := err.Error(); len(s) > 1000 || strings.ContainsAny(s, "\n\r\x00\x1b") || !utf8.ValidString(s) {
		t.Errorf("refused with %d bytes: %.1100q", len(s), s)
	}
}

func checkJSON[T any](t *testing.T, v T, o ...cmp.Option) {
	t.Helper()
	text, err := json.Marshal(v)
	var back T
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v, back, o...); d != "" {
		t.Errorf("by way of %s\n%s", text, d)
	}
}

func FuzzParsePool(f *testing.F) {
	for _, seed := range []string{
		"", "parent=eth0.10;subnet=192.168.50.0/24,fd00:50::/64;rest=0;conflict=off",
		"exclude=192.168.50.5,192.168.50.10-192.168.50.19, 192.168.50.64/26,fd00::/120,255.255.255.255,ffff::-ffff::1",
		"reserve=db=192.168.50.20,db=fd00::20,web-1.x_y=192.168.50.21;exclude=192.168.50.20",
		"pool=private;rest=90;probe_wait=20ms;probe_ahead=64", "conflict=listen;rest=1h3m0.5s", "colour=red", "pool=private;parent=eth0",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		given := fuzzed(text)
		if left := !slices.ContainsFunc(slices.Collect(maps.Values(given)), func(v string) bool { return v != "" }); left != (Key(given) == "") {
			t.Errorf("key %q", Key(given))
		}
		p, err := ParsePool(given)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		if utf8.ValidString(p.Parent) {
			checkJSON(t, p, compare...)
		}
		for i, r := range p.Exclude {
			if r.First.BitLen() != r.Last.BitLen() || r.Last.Less(r.First) ||
				i > 0 && (!p.Exclude[i-1].Last.Less(r.First) || p.Exclude[i-1].Last.Next() == r.First) {
				t.Errorf("exclude %v", p.Exclude)
			}
			if !p.Excluded(r.First) || !p.Excluded(r.Last) || i == 0 && r.First.Prev().IsValid() && p.Excluded(r.First.Prev()) {
				t.Errorf("%v of %v is not, or its neighbour is, excluded", r, p.Exclude)
			}
		}
		holder := map[string]string{}
		for name, addrs := range p.Reserve {
			for i, a := range addrs {
				if got, ok := p.Reserved(name, a.Is6()); !ok || got != a || p.Excluded(a) || holder[a.String()] != "" || i > 1 {
					t.Errorf("%s of %s: %v", a, name, p.Reserve)
				}
				holder[a.String()] = name
			}
		}
		for _, s := range p.Subnets {
			if s != s.Masked() || p.Subnet(s.Addr().Is6()) != s {
				t.Errorf("subnets %v", p.Subnets)
			}
		}
		if p.Rest < 0 || p.Rest > 24*time.Hour || p.ProbeWait < 20*time.Millisecond || p.ProbeWait > 2*time.Second || p.ProbeAhead < 0 || p.ProbeAhead > 64 {
			t.Errorf("out of range: %+v", p)
		}
	})
}

func FuzzParseNetwork(f *testing.F) {
	for _, seed := range []string{
		"", "parent=eth0.10;macvlan_mode=vepa;bcqueuelen=5;" + MTUKey + "=1400", "ipvlan_mode=l3s;ipvlan_flag=private", "ipvlan_flag=vepa",
		"macvlan_mode=bridge;ipvlan_mode=l2", "parnet=eth0", "parent=eth0:1", MTUKey + "=67",
		"parent=bond0;vlan=10;host_access=true;no_default_route=true;routes=10.20.0.0/16 via 192.168.50.254, 10.30.0.0/16,fd00:1::/64 via fe80::1",
		"parent=eth0;ipvlan_mode=l3;announce=proxy;routes=10.0.0.0/8", "vlan=4095;parent=eth0", "parent=eth0;routes=0.0.0.0/0 via 10.0.0.1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseNetwork(fuzzed(text))
		if err != nil {
			checkRefusal(t, err)
			return
		}
		if utf8.ValidString(n.Parent) {
			checkJSON(t, n, compare...)
		}
		if n.VLAN < 0 || n.VLAN > maxVLAN || len(VLANName(n.Parent, n.VLAN)) > nameSize || len(n.Routes) > maxRoutes {
			t.Errorf("out of range: %+v", n)
		}
		for _, r := range n.Routes {
			if r.To != r.To.Masked() || r.To.Bits() == 0 || r.Via.IsValid() && r.Via.Is4() != r.To.Addr().Is4() {
				t.Errorf("route %v", r)
			}
		}
		if len(n.Parent) > nameSize || strings.ContainsAny(n.Parent, "/:% \t\n\x00") {
			t.Errorf("parent %q", n.Parent)
		}
		if n.MTU != 0 && (n.MTU < MinMTU4 || n.MTU > 65535) || n.BCQueueLen > 65535 {
			t.Errorf("out of range: %+v", n)
		}
		m := n.Mode
		if ok := m.Kind == mode.Macvlan && slices.Contains(mode.MacvlanNames, m.Name) && m.Flag == "" ||
			m.Kind == mode.IPvlan && slices.Contains(mode.IPvlanNames, m.Name) && slices.Contains(mode.IPvlanFlags, m.Flag); !ok {
			t.Errorf("mode %+v", m)
		}
	})
}

func FuzzSplitVLAN(f *testing.F) {
	for _, seed := range []string{"eth0", "eth0.10", "eth0.10.20", "eth0.lan", ".5", "eth0.0", "eth0.4095", "eth0.010", "eth0.+10", "eth0.99999999999999999999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		lower, id, ok, err := SplitVLAN(name)
		switch {
		case err != nil:
			if ok || lower != "" || id != 0 {
				t.Errorf("%q, %d, %t beside %v", lower, id, ok, err)
			}
			checkRefusal(t, err)
		case ok:
			if id < 1 || id > 4094 || lower == "" || fmt.Sprintf("%s.%d", lower, id) != name {
				t.Errorf("%q is %d on %q", name, id, lower)
			}
		case lower != "" || id != 0:
			t.Errorf("%q is no VLAN but %d on %q", name, id, lower)
		}
	})
}

// A route is what its own text says.
func FuzzParseRoutes(f *testing.F) {
	for _, seed := range []string{
		"", ",", "10.20.0.0/16 via 192.168.50.254, 10.30.0.0/16", "fd00:1::/64 via fe80::1", "10.0.0.1/8", "0.0.0.0/0", "::/0 via ::1",
		"10.0.0.0/8 via fe80::1%eth0", "10.0.0.0/8 dev eth0", "10.0.0.0/8,10.0.0.0/8", "::ffff:10.0.0.0/104", "10.0.0.0/8 via 10.0.0.1 onlink",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		routes, err := parseRoutes(text)
		if err != nil {
			if routes != nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v beside %q", routes, err)
			}
			return
		}
		again := make([]string, len(routes))
		for i, r := range routes {
			again[i] = r.String()
		}
		if back, err := parseRoutes(strings.Join(again, ",")); err != nil || !slices.Equal(back, routes) {
			t.Errorf("%q is %v, and again %v, %v", text, routes, back, err)
		}
	})
}
