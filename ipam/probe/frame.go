package probe

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
)

const (
	etherLen  = 14
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	arpLen    = 28
	ip6Len    = 40
	icmp6     = 58

	// maxFrame is as much of a frame as is read: no ARP packet and no sane
	// neighbour message is longer.
	maxFrame = 512
)

// mac is an Ethernet address that can be compared.
type mac [6]byte

func (m mac) addr() net.HardwareAddr { return m[:] }

// one says whether m can be a single machine's.
func (m mac) one() bool { return m[0]&1 == 0 && m != mac{} }

var (
	broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = netip.MustParseAddr("ff02::1")
	solicited = [13]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff} // solicited-node multicast addresses begin so
)

// arpHead is hardware type Ethernet, protocol IPv4, their lengths, request.
var arpHead = [...]byte{0, 1, 8, 0, 6, 4, 0, 1}

// arpRequest builds a broadcast ARP request, RFC 826. Sender 0.0.0.0 makes it a
// probe (RFC 5227 2.1.1), sender equal to target an announcement (2.3).
func arpRequest(from mac, sender, target netip.Addr) []byte {
	return arp(broadcast, from, sender, mac{}, target)
}

// arpReply builds the answer to a request: sender is at from.
func arpReply(from mac, sender netip.Addr, to mac, target netip.Addr) []byte {
	b := arp(to, from, sender, to, target)
	b[etherLen+7] = 2
	return b
}

func arp(ether mac, from mac, sender netip.Addr, to mac, target netip.Addr) []byte {
	b := header(ether, from, etherARP, arpLen)
	b = append(b, arpHead[:]...)
	b = append(b, from[:]...)
	b = append(b, sender.AsSlice()...)
	b = append(b, to[:]...)
	return append(b, target.AsSlice()...)
}

func header(to, from mac, kind uint16, room int) []byte {
	b := make([]byte, 0, etherLen+room)
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	return binary.BigEndian.AppendUint16(b, kind)
}

// solicitation builds the question whether anyone has target, as in duplicate
// address detection: from ::, and thus without a link-layer option (RFC 4861
// 4.3, RFC 4862 5.4.2).
func solicitation(from mac, target netip.Addr) ([]byte, error) {
	to, err := ndp.SolicitedNodeMulticast(target)
	if err != nil {
		return nil, err
	}
	m := &ndp.NeighborSolicitation{TargetAddress: target}
	return neighbour(from, group(to), netip.IPv6Unspecified(), to, m)
}

// advertisement builds the unsolicited word to all nodes that addr is at from,
// whatever they remember (RFC 4861 7.2.6).
func advertisement(from mac, addr netip.Addr) ([]byte, error) {
	return neighbour(from, group(allNodes), addr, allNodes, &ndp.NeighborAdvertisement{
		Override:      true,
		TargetAddress: addr,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: from.addr()}},
	})
}

func neighbour(from, to mac, src, dst netip.Addr, m ndp.Message) ([]byte, error) {
	body, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		return nil, err
	}
	b := header(to, from, etherIPv6, ip6Len+len(body))
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmp6, ndp.HopLimit)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	return append(b, body...), nil
}

// group is the Ethernet address of an IPv6 multicast address (RFC 2464 7).
func group(a netip.Addr) mac {
	b := a.As16()
	return mac{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// sight is what one frame told.
type sight struct {
	addr  netip.Addr
	mac   mac
	claim bool
	ether mac // who sent the frame; a bridge may differ from mac

	// asks is the address that the sender wants to know of, or to have; zero if
	// none, or its own.
	asks netip.Addr
}

// parse reads an Ethernet frame without a VLAN tag. It is not ok if the frame
// says nothing about one machine's address, or is malformed.
func parse(b []byte) (s sight, ok bool) {
	if len(b) < etherLen {
		return s, false
	}
	s.ether = mac(b[6:12])
	if !s.ether.one() {
		return s, false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		ok = s.arp(b[etherLen:])
	case etherIPv6:
		ok = s.ndp(b[etherLen:])
	}
	return s, ok && s.mac.one()
}

// arp reads requests and replies alike: both say where their sender is.
func (s *sight) arp(b []byte) bool {
	if len(b) < arpLen || [7]byte(b) != [7]byte(arpHead[:]) || b[7] != 1 && b[7] != 2 {
		return false
	}
	s.mac = mac(b[8:14])
	s.addr = netip.AddrFrom4([4]byte(b[14:18]))
	target := netip.AddrFrom4([4]byte(b[24:28]))
	if b[7] == 1 && target != s.addr {
		s.asks = target
	}
	if s.addr.IsUnspecified() {
		s.claim = true
		s.addr = target
	}
	return unicast(s.addr)
}

func (s *sight) ndp(b []byte) bool {
	if len(b) < ip6Len || b[0]>>4 != 6 || b[6] != icmp6 || b[7] != ndp.HopLimit {
		return false
	}
	body := b[ip6Len:]
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n > len(body) || sum(b[8:ip6Len], body[:n]) != 0xffff {
		return false
	}
	msg, err := ndp.ParseMessage(body[:n])
	if err != nil {
		return false
	}
	switch m := msg.(type) {
	case *ndp.NeighborAdvertisement:
		s.addr = m.TargetAddress
		s.mac, _ = s.linkLayer(m.Options, ndp.Target)
	case *ndp.NeighborSolicitation:
		var told bool
		s.mac, told = s.linkLayer(m.Options, ndp.Source)
		s.addr = netip.AddrFrom16([16]byte(b[8:24]))
		if m.TargetAddress != s.addr {
			s.asks = m.TargetAddress
		}
		if s.addr.IsUnspecified() {
			if told || [13]byte(b[24:]) != solicited { // RFC 4861 7.1.1: not a valid one
				return false
			}
			s.claim = true
			s.addr = m.TargetAddress
		}
	default:
		return false
	}
	return unicast(s.addr)
}

// linkLayer is the option's address, else the frame's sender.
func (s *sight) linkLayer(options []ndp.Option, d ndp.Direction) (m mac, told bool) {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == d && len(l.Addr) == len(m) {
			return mac(l.Addr), true
		}
	}
	return s.ether, false
}

// unicast says whether a machine may have a on a LAN.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// sum is the Internet checksum (RFC 1071), not yet complemented, of an ICMPv6
// message with its pseudo-header (RFC 8200 8.1); addrs is both addresses.
// It is 0xffff for a message with a right checksum.
func sum(addrs, body []byte) uint16 {
	n := uint32(len(body)) + icmp6
	for ; len(addrs) > 1; addrs = addrs[2:] {
		n += uint32(binary.BigEndian.Uint16(addrs))
	}
	for ; len(body) > 1; body = body[2:] {
		n += uint32(binary.BigEndian.Uint16(body))
	}
	if len(body) == 1 {
		n += uint32(body[0]) << 8
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}
