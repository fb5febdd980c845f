package netlinkutil

import (
	"encoding/binary"
	"errors"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linux/rtnetlink.h, linux/neighbour.h
const (
	rtaNHID    = 30
	ndaIfindex = 8
)

// linux/nexthop.h
const (
	nhaID        = 1
	nhaGroup     = 2
	nhaGroupType = 3
	nhaOIF       = 5
	nhaResGroup  = 12

	nexthopGrpTypeRes = 1

	nhaResGroupBuckets   = 1
	nhaResGroupIdleTimer = 2
)

// nhmsg is struct nhmsg.
type nhmsg struct{ family, protocol uint8 }

func (m nhmsg) Len() int          { return 8 }
func (m nhmsg) Serialize() []byte { return []byte{m.family, 0, m.protocol, 0, 0, 0, 0, 0} }

// nexthops is the IDs of a shim's nexthop, its parent's, and the group of both.
// Those of the parent are derived from its index, so that they are found again
// whatever has become of the shim.
type nexthops struct{ shim, parent, group uint32 }

func nexthopsOn(parent int) nexthops {
	id := 0x75000000 | uint32(parent)<<2
	return nexthops{id | 1, id | 2, id | 3}
}

// nexthopsOf is the nexthops of a shim, zero where there is no parent.
func (h *Host) nexthopsOf(s Shim) (nexthops, error) {
	k, err := h.get(s.Parent)
	if errors.Is(err, ErrNotFound) {
		return nexthops{}, nil
	}
	if err != nil {
		return nexthops{}, err
	}
	return nexthopsOn(k.Attrs().Index), nil
}

// members is an NHA_GROUP: struct nexthop_grp, with the weight less one.
func (g nexthops) members() []byte {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint32(b, g.shim)
	b[4] = 255 - 1
	binary.NativeEndian.PutUint32(b[8:], g.parent)
	return b
}

// whole tells whether the group has both nexthops. The kernel takes a nexthop
// away, here too, when its link goes down or loses the carrier
// (net/ipv4/nexthop.c, nh_netdev_event).
func (h *Host) whole(g nexthops) (bool, error) {
	answers, err := h.ask(unix.RTM_GETNEXTHOP, 0, unix.RTM_NEWNEXTHOP, nhmsg{}, nl.NewRtAttr(nhaID, nl.Uint32Attr(g.group)))
	if err != nil || len(answers) != 1 || len(answers[0]) < 8 {
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return false, err
	}
	as, err := nl.ParseRouteAttr(answers[0][8:])
	if err != nil {
		return false, err
	}
	for _, a := range as {
		if a.Attr.Type == nhaGroup && string(a.Value) == string(g.members()) {
			return true, nil
		}
	}
	return false, nil
}

// group makes the nexthops of a shim, as far as they are missing.
func (h *Host) group(s Shim, k netlink.Link) (nexthops, error) {
	g := nexthopsOn(k.Attrs().ParentIndex)
	if whole, err := h.whole(g); err != nil || whole {
		return g, err
	}
	const flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	for id, link := range map[uint32]int{g.shim: k.Attrs().Index, g.parent: k.Attrs().ParentIndex} {
		err := h.change(unix.RTM_NEWNEXTHOP, flags, nhmsg{unix.AF_INET, protocol},
			nl.NewRtAttr(nhaID, nl.Uint32Attr(id)), nl.NewRtAttr(nhaOIF, nl.Uint32Attr(uint32(link))))
		if err != nil {
			return g, err
		}
	}
	// Of a group that had but the parent left, the bucket is the parent's. It is
	// the shim's again at once, and not after two quiet minutes, if it counts as
	// idle at once.
	table := nl.NewRtAttr(nhaResGroup|unix.NLA_F_NESTED, nil)
	table.AddRtAttr(nhaResGroupBuckets, nl.Uint16Attr(1))
	table.AddRtAttr(nhaResGroupIdleTimer, nl.Uint32Attr(0))
	return g, h.change(unix.RTM_NEWNEXTHOP, flags, nhmsg{unix.AF_UNSPEC, protocol},
		nl.NewRtAttr(nhaID, nl.Uint32Attr(g.group)), nl.NewRtAttr(nhaGroup, g.members()),
		nl.NewRtAttr(nhaGroupType, nl.Uint16Attr(nexthopGrpTypeRes)), table)
}

// ungroup deletes the nexthops of a shim, with the routes by them.
func (h *Host) ungroup(s Shim) error {
	g, err := h.nexthopsOf(s)
	if err != nil || g.group == 0 {
		return err
	}
	for _, id := range []uint32{g.group, g.parent, g.shim} {
		err := h.change(unix.RTM_DELNEXTHOP, 0, nhmsg{}, nl.NewRtAttr(nhaID, nl.Uint32Attr(id)))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return Explain(err, "", "deleting the nexthops of link "+s.Name)
		}
	}
	return nil
}
