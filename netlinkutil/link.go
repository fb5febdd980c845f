package netlinkutil

import (
	"fmt"
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
	VLAN       int    // ID of a vlan link, 0 otherwise

	VLANProtocol VLANProtocol // of a vlan link, 0 otherwise

	// DeviceID is what tells an ipvlan link from the others of its parent's MAC
	// (dev_id), and is in the IPv6 addresses that it makes for itself. Only
	// AddSubInterface tells it; 0 otherwise.
	DeviceID uint16
}

// VLANProtocol is the EtherType of a VLAN's tags.
type VLANProtocol uint16

// The protocols of VLANs. The outer one of two (QinQ) is 802.1ad by the book.
const (
	Dot1Q  VLANProtocol = 0x8100
	Dot1AD VLANProtocol = 0x88a8
)

// String is "802.1q" or "802.1ad", as ip link has it.
func (p VLANProtocol) String() string {
	switch p {
	case Dot1Q:
		return "802.1q"
	case Dot1AD:
		return "802.1ad"
	}
	return fmt.Sprintf("protocol %#04x", uint16(p))
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
