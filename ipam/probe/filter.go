package probe

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// arpFilter keeps requests and replies between Ethernet and IPv4.
func arpFilter(index int) []bpf.Instruction {
	return filter(index,
		check{etherLen, 4, 0x00010800, 0x00010800},
		check{etherLen + 4, 2, 0x0604, 0x0604},
		check{etherLen + 6, 2, 1, 2},
	)
}

// ndpFilter keeps neighbour solicitations and advertisements that no router
// has passed on (RFC 4861 7.1).
func ndpFilter(index int) []bpf.Instruction {
	return filter(index,
		check{etherLen + 6, 2, icmp6<<8 | 255, icmp6<<8 | 255},
		check{etherLen + ip6Len, 1, 135, 136},
	)
}

// questionFilter keeps both, of all that the link receives.
func questionFilter(index int) []bpf.Instruction {
	n, a := ndpFilter(index), arpFilter(index)
	f := []bpf.Instruction{
		bpf.LoadAbsolute{Off: etherLen - 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipFalse: uint8(len(n))},
	}
	f = append(f, n...)
	f = append(f,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherARP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	)
	return append(f, a...)
}

// check is what a number of size bytes at an offset of the frame must be: one
// value or the other.
type check struct {
	at, size int
	is, or   uint32
}

// filter keeps frames of the LAN of the link with that index which pass all
// checks. The link's own sockets are handed those of its VLANs too, without
// their tags (net/core/dev.c, __netif_receive_skb_core): a frame whose VLAN has
// a link is at that link by now, one whose VLAN has none is marked as another
// host's.
func filter(index int, checks ...check) []bpf.Instruction {
	f := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: unix.PACKET_MULTICAST, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	for _, c := range checks {
		f = append(f,
			bpf.LoadAbsolute{Off: uint32(c.at), Size: c.size},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: c.is, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: c.or, SkipTrue: 1},
			bpf.RetConstant{Val: 0},
		)
	}
	return append(f, bpf.RetConstant{Val: maxFrame})
}
