package dhcp6

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/mdlayher/ndp"
)

var (
	ours   = mac{0x02, 0x42, 0x0a, 1, 2, 3}
	theirs = mac{0x02, 0, 0, 9, 9, 9}
)

// fromServer is a server's answer to addr.
func fromServer(src, addr netip.Addr, payload string) []byte {
	b := header(ours, theirs, src, addr, udp, 64, udpLen+len(payload))
	b = binary.BigEndian.AppendUint16(b, serverPort)
	b = binary.BigEndian.AppendUint16(b, clientPort)
	b = binary.BigEndian.AppendUint16(b, uint16(udpLen+len(payload)))
	b = append(append(b, 0, 0), payload...)
	binary.BigEndian.PutUint16(b[etherLen+ip6Len+6:], ^checksum(b[etherLen+8:etherLen+ip6Len], udp, b[etherLen+ip6Len:]))
	return b
}

func TestDatagram(t *testing.T) {
	addr := ownAddress(ours)
	if !addr.IsLinkLocalUnicast() || addr != ownAddress(ours) || addr == ownAddress(theirs) {
		t.Errorf("own address %s", addr)
	}
	p, ok := unpack(datagram(ours, addr, []byte("hello")))
	if !ok || p.src != addr || p.dst != servers || p.ether != ours || string(p.body[udpLen:]) != "hello" ||
		binary.BigEndian.Uint16(p.body) != clientPort || binary.BigEndian.Uint16(p.body[2:]) != serverPort {
		t.Errorf("%+v, %v", p, ok)
	}
}

func TestAnswerTo(t *testing.T) {
	addr := ownAddress(ours)
	good := fromServer(here, addr, "hello")
	tests := []struct {
		name   string
		change func(b []byte) []byte
		ok     bool
	}{
		{"as it should be", func(b []byte) []byte { return b }, true},
		{"with padding", func(b []byte) []byte { return append(b, 1, 2, 3) }, true},
		{"checksum left to the hardware", func(b []byte) []byte {
			binary.BigEndian.PutUint16(b[etherLen+ip6Len+6:], partial(b[etherLen+8:etherLen+ip6Len], udp, len(b)-etherLen-ip6Len))
			return b
		}, true},
		{"one bit wrong", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, false},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, false},
		{"to another", func(b []byte) []byte { return fromServer(here, ownAddress(theirs), "hello") }, false},
		{"from afar", func(b []byte) []byte {
			return fromServer(netip.MustParseAddr("2001:db8::1"), addr, "hello")
		}, false},
		{"empty", func(b []byte) []byte { return nil }, false},
		{"IPv4", func(b []byte) []byte { b[etherLen] = 0x45; return b }, false},
		{"a fragment", func(b []byte) []byte { b[etherLen+6] = 44; return b }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, ok := unpack(test.change(bytes.Clone(good)))
			var payload []byte
			if ok {
				payload, ok = p.answerTo(addr)
			}
			if ok != test.ok || ok && string(payload) != "hello" {
				t.Errorf("%q, %v", payload, ok)
			}
		})
	}
}

// TestSolicitation: RFC 4861 7.2.3 and 7.2.4.
func TestSolicitation(t *testing.T) {
	addr := ownAddress(ours)
	solicit := func(src, target netip.Addr, hops byte, options ...ndp.Option) []byte {
		to, _ := ndp.SolicitedNodeMulticast(target)
		body, err := ndp.MarshalMessageChecksum(&ndp.NeighborSolicitation{TargetAddress: target, Options: options}, src, to)
		if err != nil {
			t.Fatal(err)
		}
		return append(header(group(to), theirs, src, to, icmp6, hops, len(body)), body...)
	}
	source := &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: theirs[:]}
	tests := []struct {
		name  string
		frame []byte
		to    netip.Addr // of the answer; none without
	}{
		{"asked", solicit(here, addr, 255, source), here},
		{"asked without an option", solicit(here, addr, 255), here},
		{"by a global address", solicit(netip.MustParseAddr("2001:db8::1"), addr, 255, source), netip.MustParseAddr("2001:db8::1")},
		{"somebody would have it", solicit(netip.IPv6Unspecified(), addr, 255), allNodes},
		{"for another", solicit(here, ownAddress(theirs), 255, source), netip.Addr{}},
		{"from afar", solicit(here, addr, 64, source), netip.Addr{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, ok := unpack(test.frame)
			if !ok {
				t.Fatal("not understood")
			}
			b := p.reply(addr, ours)
			if b == nil {
				if test.to.IsValid() {
					t.Error("not answered")
				}
				return
			}
			r, ok := unpack(b)
			if !ok || r.src != addr || r.dst != test.to || r.hops != 255 || r.ether != ours {
				t.Fatalf("%+v, %v", r, ok)
			}
			m, err := ndp.ParseMessage(r.body)
			if err != nil {
				t.Fatal(err)
			}
			n := m.(*ndp.NeighborAdvertisement)
			if n.TargetAddress != addr || !n.Override || n.Solicited != (test.to != allNodes) || len(n.Options) != 1 ||
				!bytes.Equal(n.Options[0].(*ndp.LinkLayerAddress).Addr, ours[:]) {
				t.Errorf("%+v", n)
			}
		})
	}
}

func TestLinkLocal(t *testing.T) {
	const table = `00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000001 02 40 00 80     eth0
fe80000000000000000000000000000a 02 40 20 c0     eth0
fe80000000000000000000000000000b 02 40 20 80     eth0
fe80000000000000000000000000000c 03 40 20 08     eth1
`
	for link, want := range map[string]string{"eth0": "fe80::b", "eth1": "", "eth2": "", "lo": ""} {
		got, ok := linkLocal(table, link)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v", link, got)
		}
	}
}

// FuzzFrame: no frame does harm.
func FuzzFrame(f *testing.F) {
	addr := ownAddress(ours)
	f.Add(fromServer(here, addr, "hello"))
	f.Add(datagram(ours, addr, []byte("hello")))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := unpack(b)
		if !ok {
			return
		}
		if payload, ok := p.answerTo(addr); ok && len(payload) > len(b) {
			t.Error("more than there is")
		}
		p.reply(addr, ours)
	})
}
