package mode

import "testing"

func TestTextRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range All() {
		s := m.String()
		if seen[s] {
			t.Errorf("%q names two modes", s)
		}
		seen[s] = true
		if got, err := Parse(s); err != nil || got != m {
			t.Errorf("Parse(%q) = %v, %v; want %v", s, got, err, m)
		}
	}
	if len(seen) != 4+3*3 {
		t.Errorf("%d modes, want 13", len(seen))
	}
	for _, bad := range []string{"", "macvlan", "macvlan l2", "ipvlan l2 passthru", "bridge"} {
		if m, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", bad, m)
		}
	}
}

func TestPredicates(t *testing.T) {
	for _, m := range All() {
		ipvlan := m.Kind == IPvlan
		passthru := m.Name == "passthru"
		if m.SharesMAC() != (ipvlan || passthru) || m.TakesMAC() == ipvlan || m.Alone() != passthru {
			t.Errorf("%v: SharesMAC %v TakesMAC %v Alone %v", m, m.SharesMAC(), m.TakesMAC(), m.Alone())
		}
		if want := m.Name == "l3" || m.Name == "l3s"; m.RoutesByLink() != want {
			t.Errorf("%v: RoutesByLink %v", m, m.RoutesByLink())
		}
		for _, o := range All() {
			want := m.Kind == o.Kind && (ipvlan && m == o || !ipvlan && !passthru && o.Name != "passthru")
			if m.CanShare(o) != want || m.CanShare(o) != o.CanShare(m) {
				t.Errorf("%v with %v: CanShare %v, want %v both ways", m, o, m.CanShare(o), want)
			}
		}
	}
}
