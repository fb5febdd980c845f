//go:build faults

package killtest

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ICMP's and ICMPv6's echo requests and replies (RFC 792, RFC 4443 section 4).
const (
	echo4, reply4 = 8, 0
	echo6, reply6 = 128, 129
)

// ping tells whether an address answers within a second.
func ping(ns string, to netip.Addr) bool {
	answered := false
	err := within(ns, func() (err error) {
		answered, err = echo(to)
		return err
	})
	return err == nil && answered
}

// echo is ping in the thread's netns: /usr/bin/ping takes ten times as long to
// start.
func echo(to netip.Addr) (bool, error) {
	family, protocol, request, reply := unix.AF_INET, unix.IPPROTO_ICMP, byte(echo4), byte(reply4)
	var at unix.Sockaddr
	if to.Is6() {
		family, protocol, request, reply = unix.AF_INET6, unix.IPPROTO_ICMPV6, echo6, reply6
		at = &unix.SockaddrInet6{Addr: to.As16()}
	} else {
		at = &unix.SockaddrInet4{Addr: to.As4()}
	}
	s, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return false, err
	}
	defer unix.Close(s)
	packet := []byte{request, 0, 0, 0, 'k', 'i', 'l', 'l'}
	binary.BigEndian.PutUint16(packet[2:], checksum(packet)) // the kernel makes ICMPv6's
	if err := unix.Sendto(s, packet, 0, at); err != nil {
		return false, err
	}
	for end := time.Now().Add(time.Second); ; {
		left := unix.NsecToTimeval(max(1000, int64(time.Until(end))))
		if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &left); err != nil {
			return false, err
		}
		b := make([]byte, 256)
		n, from, err := unix.Recvfrom(s, b, 0)
		if err != nil && err != unix.EINTR {
			return false, err
		}
		b = b[:max(n, 0)]
		switch f := from.(type) {
		case *unix.SockaddrInet4:
			if len(b) > 20 && b[20] == reply && netip.AddrFrom4(f.Addr) == to {
				return true, nil
			}
		case *unix.SockaddrInet6:
			if len(b) > 0 && b[0] == reply && netip.AddrFrom16(f.Addr) == to {
				return true, nil
			}
		}
		if time.Now().After(end) {
			return false, nil
		}
	}
}

// checksum is the Internet's (RFC 1071).
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
