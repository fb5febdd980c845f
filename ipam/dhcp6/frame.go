package dhcp6

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/ndp"
)

const (
	etherLen = 14
	etherIP6 = 0x86dd
	ip6Len   = 40
	udpLen   = 8
	udp      = 17
	icmp6    = 58

	clientPort = 546 // RFC 8415 7.2
	serverPort = 547

	// maxFrame is as much of a frame as is read. An answer of a server has a few
	// hundred bytes, and fragments are not taken.
	maxFrame = 2048
)

// mac is an Ethernet address that can be compared.
type mac [6]byte

var (
	servers  = netip.MustParseAddr("ff02::1:2") // All_DHCP_Relay_Agents_and_Servers, RFC 8415 7.1
	allNodes = netip.MustParseAddr("ff02::1")
)

// ownAddress is the link-local address that the client has on a link with that
// MAC where the kernel has none. Its last 24 bits are the
// MAC's, so that its multicast group for neighbour solicitations is that of the
// kernel's usual one, which a switch that snoops is likely to know of.
func ownAddress(m mac) netip.Addr {
	h := sha256.Sum256([]byte("underlay DHCPv6 " + string(m[:])))
	a := [16]byte{0: 0xfe, 1: 0x80}
	copy(a[8:13], h[:])
	copy(a[13:], m[3:])
	if a[8] == 0xfd { // RFC 5453 has reserved some
		a[8] = 0xfc
	}
	return netip.AddrFrom16(a)
}

// group is the Ethernet address of a multicast address (RFC 2464 7).
func group(a netip.Addr) mac {
	b := a.As16()
	return mac{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// datagram is the frame that carries a message to all servers.
func datagram(m mac, src netip.Addr, payload []byte) []byte {
	b := header(group(servers), m, src, servers, udp, 1, udpLen+len(payload))
	b = binary.BigEndian.AppendUint16(b, clientPort)
	b = binary.BigEndian.AppendUint16(b, serverPort)
	b = binary.BigEndian.AppendUint16(b, uint16(udpLen+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	sum := ^checksum(b[etherLen+8:etherLen+ip6Len], udp, b[etherLen+ip6Len:])
	if sum == 0 {
		sum = 0xffff // RFC 8200 8.1
	}
	binary.BigEndian.PutUint16(b[etherLen+ip6Len+6:], sum)
	return b
}

func header(to, from mac, src, dst netip.Addr, next, hops byte, room int) []byte {
	b := make([]byte, 0, etherLen+ip6Len+room)
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIP6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(room))
	b = append(b, next, hops)
	b = append(b, src.AsSlice()...)
	return append(b, dst.AsSlice()...)
}

// packet6 is an IPv6 packet in a frame.
type packet6 struct {
	ether    mac // who sent the frame
	src, dst netip.Addr
	next     byte
	hops     byte
	body     []byte
}

// unpack reads a frame. Extension headers are not looked behind.
func unpack(b []byte) (p packet6, ok bool) {
	if len(b) < etherLen+ip6Len || binary.BigEndian.Uint16(b[12:]) != etherIP6 || b[etherLen]>>4 != 6 {
		return p, false
	}
	ip := b[etherLen:]
	n := int(binary.BigEndian.Uint16(ip[4:]))
	if n > len(ip)-ip6Len {
		return p, false
	}
	p = packet6{
		ether: mac(b[6:12]), next: ip[6], hops: ip[7],
		src: netip.AddrFrom16([16]byte(ip[8:24])), dst: netip.AddrFrom16([16]byte(ip[24:40])),
		body: ip[ip6Len : ip6Len+n],
	}
	return p, p.ether[0]&1 == 0 && p.whole(ip[8:ip6Len])
}

// whole verifies the checksum. A frame from this same host, through a veth, has
// only the pseudo-header's sum in it yet, for the hardware to complete: that is
// taken, too.
func (p *packet6) whole(addrs []byte) bool {
	at := 6
	switch {
	case p.next == icmp6 && len(p.body) >= 4:
		at = 2
	case p.next == udp && len(p.body) >= udpLen:
	default:
		return false
	}
	return checksum(addrs, p.next, p.body) == 0xffff ||
		partial(addrs, p.next, len(p.body)) == binary.BigEndian.Uint16(p.body[at:])
}

// answerTo is the message for a client at addr, if that is what the packet is.
func (p *packet6) answerTo(addr netip.Addr) (payload []byte, ok bool) {
	if p.next != udp || p.dst != addr || !p.src.IsLinkLocalUnicast() ||
		binary.BigEndian.Uint16(p.body[2:]) != clientPort {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(p.body[4:]))
	if n < udpLen || n > len(p.body) {
		return nil, false
	}
	return p.body[udpLen:n], true
}

// reply is the frame that answers a neighbour solicitation for addr, which is at
// m; nil if the packet is none (RFC 4861 7.1.1, 7.2.4).
func (p *packet6) reply(addr netip.Addr, m mac) []byte {
	if p.next != icmp6 || p.hops != ndp.HopLimit || p.body[0] != 135 || p.body[1] != 0 {
		return nil
	}
	msg, err := ndp.ParseMessage(p.body)
	if err != nil {
		return nil
	}
	s, ok := msg.(*ndp.NeighborSolicitation)
	if !ok || s.TargetAddress != addr || p.src == addr {
		return nil
	}
	to, ether, asked := p.src, p.ether, true
	for _, o := range s.Options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Source && len(l.Addr) == len(ether) {
			ether = mac(l.Addr)
		}
	}
	if p.src.IsUnspecified() { // somebody would have this very address
		to, ether, asked = allNodes, group(allNodes), false
	} else if !p.src.IsGlobalUnicast() && !p.src.IsLinkLocalUnicast() {
		return nil
	}
	body, err := ndp.MarshalMessageChecksum(&ndp.NeighborAdvertisement{
		Solicited: asked, Override: true, TargetAddress: addr,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: m[:]}},
	}, addr, to)
	if err != nil {
		return nil
	}
	return append(header(ether, m, addr, to, icmp6, ndp.HopLimit, len(body)), body...)
}

// checksum is the Internet checksum (RFC 1071), not complemented, of a body with its
// pseudo-header (RFC 8200 8.1); addrs is both addresses. It is 0xffff over one
// that is whole.
func checksum(addrs []byte, next byte, body []byte) uint16 {
	return fold(uint32(partial(addrs, next, len(body))) + words(body))
}

// partial is that of the pseudo-header alone.
func partial(addrs []byte, next byte, length int) uint16 {
	return fold(words(addrs) + uint32(next) + uint32(length))
}

func words(b []byte) (n uint32) {
	for ; len(b) > 1; b = b[2:] {
		n += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		n += uint32(b[0]) << 8
	}
	return n
}

func fold(n uint32) uint16 {
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}
