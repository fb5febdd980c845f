package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Question is one that Survey asks: who has Addr.
type Question struct {
	Addr netip.Addr

	// From is the MAC that asks, nil for the link's own. Another asks of IPv4 alone,
	// whose answers come to who has asked.
	From net.HardwareAddr
}

// Answers is what a LAN says to a Survey.
type Answers struct {
	MACs    [][]net.HardwareAddr // for each question who has answered, the first one first
	Routers []netip.Addr         // of IPv6, that advertise themselves
}

// Survey asks a LAN and hears it for all of wait, so that a second machine which
// answers is heard as well, and the IPv6 routers are asked to advertise
// themselves. Nothing on the LAN remembers a question but switches, where it came
// from. It is for who looks at a LAN once: see Prober for all else.
//
// Its socket is one for all protocols, and thus hears before a macvlan link in
// passthru mode. An error wraps ErrBlind where the LAN cannot be asked.
func Survey(ctx context.Context, link string, questions []Question, wait time.Duration) (Answers, error) {
	return host().survey(ctx, link, questions, wait)
}

func (k kernel) survey(ctx context.Context, link string, questions []Question, wait time.Duration) (Answers, error) {
	found := Answers{MACs: make([][]net.HardwareAddr, len(questions))}
	ifi, err := k.find(link)
	switch {
	case errors.Is(err, unix.ENODEV):
		return found, fmt.Errorf("%s is not there: %w", link, ErrBlind)
	case err != nil:
		return found, fmt.Errorf("%s: %w: %w", link, err, ErrBlind)
	case ifi.Flags&net.FlagUp == 0:
		return found, fmt.Errorf("%s is down: %w", link, ErrBlind)
	case ifi.Flags&net.FlagRunning == 0:
		return found, fmt.Errorf("%s has no carrier: %w", link, ErrBlind)
	case len(ifi.HardwareAddr) != 6:
		return found, fmt.Errorf("%s has no MAC address: %w", link, ErrBlind)
	}
	own := mac(ifi.HardwareAddr)
	froms := make([]mac, len(questions))
	var frames [][]byte
	for i, q := range questions {
		froms[i] = own
		if q.From != nil {
			if len(q.From) != 6 || !mac(q.From).one() || !q.Addr.Is4() {
				return found, fmt.Errorf("%s cannot ask for %s", q.From, q.Addr)
			}
			froms[i] = mac(q.From)
		}
		frame := arpRequest(froms[i], netip.IPv4Unspecified(), q.Addr)
		if !q.Addr.Is4() {
			if frame, err = solicitation(own, q.Addr.WithZone("")); err != nil {
				return found, fmt.Errorf("asking for %s: %w", q.Addr, err)
			}
		}
		frames = append(frames, frame)
	}
	routers := netip.MustParseAddr("ff02::2")
	solicit, err := neighbour(own, group(routers), netip.IPv6Unspecified(), routers, &ndp.RouterSolicitation{})
	if err != nil {
		return found, err
	}
	l, err := k.line(ifi, unix.ETH_P_ALL, surveyFilter(ifi.Index))
	if err != nil {
		return found, fmt.Errorf("packet socket on %s: %w: %w", link, err, ErrBlind)
	}
	defer l.Close()
	err = l.admit(ifi.Index, froms)
	start := time.Now()
	for round := range rounds {
		now := frames
		if round == 0 {
			now = append([][]byte{solicit}, frames...)
		}
		for _, f := range now {
			if err == nil {
				if err = l.send(f); full(err) {
					err = nil
				}
			}
		}
		if err == nil {
			err = l.hear(ctx, start.Add(wait*time.Duration(round+1)/rounds), func(b []byte) { found.take(questions, froms, b) })
		}
		if err != nil {
			return found, fmt.Errorf("asking on %s: %w: %w", link, err, ErrBlind)
		}
		if err := ctx.Err(); err != nil {
			return found, fmt.Errorf("asking on %s: %w", link, err)
		}
	}
	return found, nil
}

// admit has the NIC let in what is for these MACs, and for all groups.
func (l line) admit(index int, macs []mac) (err error) {
	cerr := l.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_ALLMULTI})
		for _, m := range macs {
			r := &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_UNICAST, Alen: 6}
			copy(r.Address[:], m[:])
			if err == nil {
				err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, r)
			}
		}
	})
	return errors.Join(cerr, err)
}

// hear reads until end.
func (l line) hear(ctx context.Context, end time.Time, each func(b []byte)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.SetReadDeadline(time.Now()) })
	defer stop()
	if err := l.SetReadDeadline(end); err != nil {
		return err
	}
	b := make([]byte, maxFrame)
	for ctx.Err() == nil {
		n, _, err := l.ReadFrom(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		each(b[:n])
	}
	return nil
}

// take notes what a frame answers.
func (a *Answers) take(questions []Question, froms []mac, b []byte) {
	if from, ok := routerAdvertisement(b); ok {
		if !slices.Contains(a.Routers, from) {
			a.Routers = append(a.Routers, from)
		}
		return
	}
	s, ok := parse(b)
	if !ok || s.claim {
		return
	}
	for i, q := range questions {
		// An ARP request tells where its sender is as well, and so does an answer to
		// somebody else. But only an answer to who has asked shows that those reach it.
		if q.Addr.Is4() && (b[etherLen+7] != 2 || mac(b[etherLen+18:]) != froms[i]) || s.addr != q.Addr.WithZone("") || s.ether == froms[i] {
			continue
		}
		if !slices.ContainsFunc(a.MACs[i], func(m net.HardwareAddr) bool { return bytes.Equal(m, s.mac[:]) }) {
			a.MACs[i] = append(a.MACs[i], s.mac.addr())
		}
	}
}

// routerAdvertisement is who sends one, of those that make a default route (RFC
// 4861 4.2: not those of a lifetime of 0).
func routerAdvertisement(b []byte) (from netip.Addr, ok bool) {
	if len(b) < etherLen+ip6Len || binary.BigEndian.Uint16(b[12:]) != etherIPv6 {
		return from, false
	}
	ip := b[etherLen:]
	if ip[6] != icmp6 || ip[7] != ndp.HopLimit || len(ip) < ip6Len+16 || ip[ip6Len] != 134 || binary.BigEndian.Uint16(ip[ip6Len+6:]) == 0 {
		return from, false
	}
	return netip.AddrFrom16([16]byte(ip[8:24])), true
}

// surveyFilter keeps ARP and ICMPv6 of the link's own LAN, whoever it is for.
func surveyFilter(index int) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(index), SkipTrue: 9},
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_OTHERHOST, SkipTrue: 7}, // this host's own
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 5},
		bpf.LoadAbsolute{Off: etherLen - 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherARP, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv6, SkipTrue: 2},
		bpf.LoadAbsolute{Off: etherLen + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmp6, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: maxFrame},
	}
}
