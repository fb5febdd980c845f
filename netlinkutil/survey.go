package netlinkutil

import (
	"encoding/binary"
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"underlay/internal/mode"
)

// Detail is a link, and what is only of interest to who looks at a host as a
// whole.
type Detail struct {
	Link
	Mode      mode.Mode // of a macvlan or ipvlan link; zero if it is none that underlay knows
	BondMode  string    // of a bond: "active-backup", "balance-rr"…
	Elsewhere bool      // it is in another netns, as a container's is; Master stays empty then
}

// Details lists the links of this netns, and those macvlan and ipvlan links that
// stand on one of them and have been moved to another netns, as far as that may
// be looked into.
func (h *Host) Details() ([]Detail, error) {
	ks, err := read(h.nl.LinkList)
	if err != nil {
		return nil, Explain(err, "", "listing the links")
	}
	of := linksOf(ks)
	ds := make([]Detail, 0, len(ks))
	for _, k := range ks {
		d := detail(k)
		of.complete(&d.Link, k)
		ds = append(ds, d)
	}
	away, err := h.elsewhere()
	for _, k := range away {
		if m, ok := of[k.Attrs().ParentIndex]; ok {
			d := detail(k)
			d.Lower, d.Elsewhere = m.Attrs().Name, true
			ds = append(ds, d)
		}
	}
	return ds, err
}

// elsewhere lists the links in other netns that stand on links of this one. See
// RemoveElsewhere for how they are found.
func (h *Host) elsewhere() (ks []netlink.Link, err error) {
	answers, err := h.ask(unix.RTM_GETNSID, unix.NLM_F_DUMP, unix.RTM_NEWNSID, &nl.RtGenMsg{})
	if err != nil {
		return nil, Explain(err, "", "listing the network namespaces that links have been moved to")
	}
	seen := map[uint32][][]byte{}
	for _, b := range answers {
		id := nsidOf(b)
		if id == nil {
			continue
		}
		links, err := h.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(iflaTargetNetnsID, id), nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		if err == nil { // else it has just ended, or is not to be looked into
			seen[binary.NativeEndian.Uint32(id)] = links
		}
	}
	own, err := h.ownNSID() // only now: the kernel has numbered this netns for its answers, if not before
	if err != nil || own == nil {
		return nil, err
	}
	here := binary.NativeEndian.Uint32(own)
	for id, links := range seen {
		if id == here {
			continue
		}
		for _, b := range links {
			k, err := netlink.LinkDeserialize(nil, b)
			if err != nil {
				continue
			}
			if a := k.Attrs(); stacked(k.Type()) && k.Type() != "vlan" && a.NetNsID >= 0 && uint32(a.NetNsID) == here {
				ks = append(ks, k)
			}
		}
	}
	return ks, nil
}

func detail(k netlink.Link) Detail {
	d := Detail{Link: link(k)}
	switch k := k.(type) {
	case *netlink.Macvlan:
		d.Mode = macvlanMode(k.Mode)
	case *netlink.Macvtap:
		d.Mode = macvlanMode(k.Mode)
	case *netlink.IPVlan:
		d.Mode = ipvlanMode(k)
	case *netlink.IPVtap:
		d.Mode = ipvlanMode(&k.IPVlan)
	case *netlink.Bond:
		d.BondMode = k.Mode.String()
	}
	return d
}

func macvlanMode(m netlink.MacvlanMode) mode.Mode {
	names := map[netlink.MacvlanMode]string{
		netlink.MACVLAN_MODE_PRIVATE: "private", netlink.MACVLAN_MODE_VEPA: "vepa",
		netlink.MACVLAN_MODE_BRIDGE: "bridge", netlink.MACVLAN_MODE_PASSTHRU: "passthru",
	}
	if names[m] == "" {
		return mode.Mode{}
	}
	return mode.Mode{Kind: mode.Macvlan, Name: names[m]}
}

func ipvlanMode(k *netlink.IPVlan) mode.Mode {
	names := map[netlink.IPVlanMode]string{netlink.IPVLAN_MODE_L2: "l2", netlink.IPVLAN_MODE_L3: "l3", netlink.IPVLAN_MODE_L3S: "l3s"}
	flags := map[netlink.IPVlanFlag]string{netlink.IPVLAN_FLAG_BRIDGE: "bridge", netlink.IPVLAN_FLAG_PRIVATE: "private", netlink.IPVLAN_FLAG_VEPA: "vepa"}
	if names[k.Mode] == "" || flags[k.Flag] == "" {
		return mode.Mode{}
	}
	return mode.Mode{Kind: mode.IPvlan, Name: names[k.Mode], Flag: flags[k.Flag]}
}

// Supports tells whether the kernel has a type of link, "macvlan", "ipvlan",
// "vlan" or "dummy". It asks for a link that no kernel makes, and looks at the
// refusal: only a kernel without the type, and without a module of it, says that
// it does not support it. The module is loaded by that, as by the first link.
func (h *Host) Supports(kind string) (bool, error) {
	lo, err := h.get("lo")
	if err != nil {
		return false, err
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr = "ulprobe", net.HardwareAddr{1, 0, 0, 0, 0, 0} // a group's address is no link's
	if kind != "vlan" {
		a.ParentIndex = lo.Attrs().Index // whose refusal of a VLAN would be the same as that of the type
	}
	var k netlink.Link
	switch kind {
	case "macvlan":
		k = &netlink.Macvlan{LinkAttrs: a}
	case "ipvlan":
		k = &netlink.IPVlan{LinkAttrs: a}
	case "vlan":
		k = &netlink.Vlan{LinkAttrs: a, VlanId: 1}
	default:
		k = &netlink.Dummy{LinkAttrs: a}
		kind = "dummy"
	}
	err = tell(func() error { return h.nl.LinkAdd(k) })
	switch {
	case err == nil:
		return true, h.DeleteLink(a.Name)
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EAGAIN):
		return false, Explain(err, "", "asking the kernel for "+kind+" links")
	}
	return true, nil
}
