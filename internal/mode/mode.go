package mode

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is the kernel's link type of a sub-interface.
type Kind string

// The two link types. They exclude each other on one parent: each takes the
// parent's only rx_handler (net/core/dev.c).
const (
	Macvlan Kind = "macvlan"
	IPvlan  Kind = "ipvlan"
)

// Mode is one way to put a sub-interface on a parent. The zero value is no
// mode; Default is what Docker's macvlan driver takes when none is named.
type Mode struct {
	Kind Kind
	Name string // macvlan: bridge, private, vepa, passthru; ipvlan: l2, l3, l3s
	Flag string // ipvlan only: bridge, private, vepa
}

// Default is macvlan bridge, as with Docker's own driver.
var Default = Mode{Kind: Macvlan, Name: "bridge"}

// The names that Docker's macvlan and ipvlan drivers use for their options.
var (
	MacvlanNames = []string{"bridge", "private", "vepa", "passthru"}
	IPvlanNames  = []string{"l2", "l3", "l3s"}
	IPvlanFlags  = []string{"bridge", "private", "vepa"}
)

// All lists every mode once, macvlan first.
func All() []Mode {
	var all []Mode
	for _, n := range MacvlanNames {
		all = append(all, Mode{Kind: Macvlan, Name: n})
	}
	for _, n := range IPvlanNames {
		for _, f := range IPvlanFlags {
			all = append(all, Mode{Kind: IPvlan, Name: n, Flag: f})
		}
	}
	return all
}

// String is the kind and the name, and the flag where it is not the default:
// "macvlan bridge", "ipvlan l3", "ipvlan l2 vepa".
func (m Mode) String() string {
	s := string(m.Kind) + " " + m.Name
	if m.Flag != "" && m.Flag != "bridge" {
		s += " " + m.Flag
	}
	return s
}

// Parse reads what String printed.
func Parse(s string) (Mode, error) {
	f := strings.Fields(s)
	if len(f) == 2 && f[0] == string(IPvlan) {
		f = append(f, "bridge")
	}
	for _, m := range All() {
		if slices.Equal(f, strings.Fields(string(m.Kind)+" "+m.Name+" "+m.Flag)) {
			return m, nil
		}
	}
	return Mode{}, fmt.Errorf("%q is no mode", s)
}

// MarshalText and UnmarshalText let a mode stand in a record as its name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (m *Mode) UnmarshalText(b []byte) (err error) {
	*m, err = Parse(string(b))
	return err
}

// SharesMAC tells whether sub-interfaces use the parent's MAC: all of ipvlan,
// and macvlan passthru, whose one link takes the parent's MAC over.
func (m Mode) SharesMAC() bool { return m.Kind == IPvlan || m.Alone() }

// TakesMAC tells whether a user's --mac-address can be honoured. ipvlan has no
// MAC of its own; passthru hands a new one down to the parent.
func (m Mode) TakesMAC() bool { return m.Kind == Macvlan }

// Alone tells whether the sub-interface needs the parent for itself.
func (m Mode) Alone() bool { return m.Kind == Macvlan && m.Name == "passthru" }

// Isolates tells whether the mode is there to keep the links of one parent from
// each other.
func (m Mode) Isolates() bool {
	return m.Name == "private" || m.Name == "vepa" || m.Flag == "private" || m.Flag == "vepa"
}

// RoutesByLink tells whether containers route by the link and know no gateway:
// in l3 and l3s the parent's stack routes for them and there is no neighbour
// discovery (Documentation/networking/ipvlan.rst).
func (m Mode) RoutesByLink() bool { return m.Kind == IPvlan && m.Name != "l2" }

// CanShare tells whether sub-interfaces of m and o can stand on one parent.
// macvlan keeps a mode per link; ipvlan keeps mode and flag per parent, and
// the latest link's silently change all others (drivers/net/ipvlan/
// ipvlan_main.c, ipvlan_link_new).
func (m Mode) CanShare(o Mode) bool {
	if m.Kind == IPvlan {
		return m == o
	}
	return o.Kind == Macvlan && !m.Alone() && !o.Alone()
}
