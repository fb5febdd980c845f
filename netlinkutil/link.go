package netlinkutil

import (
	"net"

	"underlay/internal/mode"
)

// Link is one link of the host's netns.
type Link struct {
	Index      int
	Name       string
	Kind       string           // IFLA_INFO_KIND: "macvlan", "ipvlan", "vlan", "dummy", "bridge"…; "device" for hardware and lo
	MAC        net.HardwareAddr // current; nil where the link has none (wireguard, tun)
	PermMAC    net.HardwareAddr // burnt-in, nil where the kernel knows none
	MTU        int
	Up         bool
	Carrier    bool // and its wire, or the link below it, is too (IFF_LOWER_UP); false while down
	Loopback   bool
	Alias      string // ifalias
	Master     string // name of the bridge, bond, team, ovs… it is a port of, "" if none
	MasterKind string // "bridge", "bond"…
	Lower      string // name of the link it sits on in this netns (vlan, macvlan, ipvlan), "" if none
	VLAN       int    // 802.1q ID of a vlan link, 0 otherwise
}

// SubInterface is what AddSubInterface makes.
type SubInterface struct {
	Name       string
	Parent     string
	Mode       mode.Mode
	MAC        net.HardwareAddr // nil: the kernel's choice (ipvlan, passthru)
	MTU        int              // bytes, 0: the parent's
	BCQueueLen uint32           // macvlan: frames, 0: the kernel's default
	Alias      string           // whose it is: a leftover with an equal alias is replaced
}

// stacked tells of a link type whether IFLA_LINK is the link that it sits on.
func stacked(kind string) bool {
	switch kind {
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
		return true
	}
	return false
}
