package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
)

const (
	etherLen  = 14
	etherIPv4 = 0x0800
	ipLen     = 20 // without options
	udpLen    = 8
	udp       = 17

	serverPort = 67
	clientPort = 68

	// maxFrame is as much of a frame as is read. Servers are told not to send
	// more than fits into 1500 bytes.
	maxFrame   = 2048
	maxMessage = 1500 - ipLen - udpLen
)

var (
	everyMAC  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	everyAddr = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// frame puts a message into UDP, IPv4 and Ethernet, from client to server.
func frame(to, from net.HardwareAddr, dst, src netip.Addr, message []byte) []byte {
	b := make([]byte, 0, etherLen+ipLen+udpLen+len(message))
	b = append(b, to...)
	b = append(b, from...)
	b = binary.BigEndian.AppendUint16(b, etherIPv4)

	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ipLen+udpLen+len(message)))
	b = append(b, 0, 0, 0, 0, 64, udp, 0, 0) // no id, not fragmented, TTL, sum to come
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	ip := b[etherLen:]
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))

	b = binary.BigEndian.AppendUint16(b, clientPort)
	b = binary.BigEndian.AppendUint16(b, serverPort)
	b = binary.BigEndian.AppendUint16(b, uint16(udpLen+len(message)))
	b = append(b, 0, 0)
	b = append(b, message...)
	body := b[etherLen+ipLen:]
	s := ^sum(uint32(sum(uint32(udp+len(body)), ip[12:ipLen])), body)
	if s == 0 { // which would mean none (RFC 768)
		s = 0xffff
	}
	binary.BigEndian.PutUint16(body[6:], s)
	return b
}

// sum is the Internet checksum (RFC 1071), not complemented, of b, and of n before it.
func sum(n uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		n += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		n += uint32(b[0]) << 8
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}

// packet is what a frame from server to client carries.
type packet struct {
	ether   net.HardwareAddr // who sent the frame
	xid     [4]byte
	chaddr  [6]byte
	message []byte
}

// parse reads such a frame. The slices point into it. The UDP checksum is not
// looked at: a server on this same host leaves it to hardware that is not there.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < etherLen+ipLen+udpLen+headLen || binary.BigEndian.Uint16(b[12:]) != etherIPv4 || b[6]&1 != 0 {
		return p, false
	}
	p.ether = b[6:12]
	ip := b[etherLen:]
	head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	fragment := binary.BigEndian.Uint16(ip[6:]) &^ 0x4000
	if ip[0]>>4 != 4 || head < ipLen || total < head+udpLen+headLen || total > len(ip) || fragment != 0 ||
		ip[9] != udp || sum(0, ip[:head]) != 0xffff {
		return p, false
	}
	u := ip[head:total]
	n := int(binary.BigEndian.Uint16(u[4:]))
	if binary.BigEndian.Uint16(u) != serverPort || binary.BigEndian.Uint16(u[2:]) != clientPort ||
		n < udpLen+headLen || n > len(u) {
		return p, false
	}
	m := u[udpLen:n]
	if m[0] != 2 || m[1] != 1 || m[2] != 6 { // a reply, to an Ethernet address
		return p, false
	}
	p.xid, p.chaddr, p.message = [4]byte(m[4:]), [6]byte(m[28:]), m
	return p, true
}
