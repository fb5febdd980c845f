package netlinkutil_test

import (
	"fmt"
	"slices"
	"testing"

	"underlay/internal/nstest"
	"underlay/netlinkutil"
)

// Details tells modes, and of the links that are containers' by now.
func TestDetails(t *testing.T) {
	s, container := nstest.NewSpace(t), nstest.NewSpace(t)
	var h *netlinkutil.Host
	var err error
	s.Run(func() { h, err = netlinkutil.Open() })
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if has, err := h.Supports("macvlan"); err != nil || !has {
		nstest.Lack(t, "macvlan links")
	}
	s.IP("link add eth0 type veth peer name eth1", "link set eth0 up", "link set eth1 up",
		"link add link eth0 name here type macvlan mode vepa",
		"link add link eth0 name moved type macvlan mode private", fmt.Sprintf("link set moved netns %d", container.TID))
	container.IP("link add v0 type veth peer name v1", "link add link v0 name other type macvlan mode bridge")
	ds, err := h.Details()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range ds {
		if d.Kind == "macvlan" {
			got = append(got, fmt.Sprintf("%s on %s: %s, elsewhere %v", d.Name, d.Lower, d.Mode, d.Elsewhere))
		}
	}
	slices.Sort(got)
	want := []string{"here on eth0: macvlan vepa, elsewhere false", "moved on eth0: macvlan private, elsewhere true"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	// The rest, where the kernel has it.
	for kind, c := range map[string]struct{ lines, name, want string }{
		"ipvlan": {"link add link eth1 name i type ipvlan mode l3 vepa", "i", "ipvlan l3 vepa"},
		"bond":   {"link add b type bond mode balance-rr", "b", "balance-rr"},
	} {
		if s.Try(c.lines) != nil {
			continue
		}
		ds, err := h.Details()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if d.Name == c.name && d.Mode.String() != c.want && d.BondMode != c.want {
				t.Errorf("%s: %+v, want %s", kind, d, c.want)
			}
		}
	}
}

// A question whether the kernel has a type of link makes none, and is right.
func TestSupports(t *testing.T) {
	s := nstest.NewSpace(t)
	var h *netlinkutil.Host
	var err error
	s.Run(func() { h, err = netlinkutil.Open() })
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	s.IP("link add eth0 type veth peer name eth1", "link set eth0 up")
	for kind, line := range map[string]string{
		"macvlan": "link add link eth0 name x type macvlan", "ipvlan": "link add link eth1 name x type ipvlan",
		"vlan": "link add link eth0 name x type vlan id 7", "dummy": "link add x type dummy",
	} {
		before, err := h.Links()
		if err != nil {
			t.Fatal(err)
		}
		has, err := h.Supports(kind)
		if err != nil {
			t.Fatal(err)
		}
		after, err := h.Links()
		if err != nil || len(after) != len(before) {
			t.Errorf("%s: %d links before, %d after, %v", kind, len(before), len(after), err)
		}
		if made := s.Try(line) == nil; made != has {
			t.Errorf("%s: it says %v, and one made is %v", kind, has, made)
		} else if made {
			s.IP("link del x")
		}
	}
}
