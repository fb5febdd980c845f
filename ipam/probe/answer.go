package probe

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"
)

// Answer has the prober answer, with the link's own MAC, ARP requests and
// neighbour solicitations for these addresses, until it is called again: proxy
// ARP (RFC 1027) and proxy neighbour advertisements (RFC 4861 7.2.8). It is by
// name of the link, and replaces what was said before. Addresses that no
// machine may have are passed over.
//
// Who asks whether it may have such an address is answered, too, and thus kept
// from it. The host's own questions are not.
//
// A link named here need not be watched, nor be there yet; it is told of by
// Health, but heard is called for watched links only.
func (p *Prober) Answer(addrs map[string][]netip.Addr) {
	wanted := map[string]*answers{}
	for name, all := range addrs {
		if a := newAnswers(all); len(a.addrs) > 0 {
			wanted[name] = a
		}
	}
	var changed []*link
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	for name, a := range wanted {
		l := p.get(name)
		if now := l.answers.Load(); now != nil && maps.Equal(now.addrs, a.addrs) {
			continue
		}
		if !l.kept() {
			l.blind, l.since = nil, time.Now()
		}
		l.answers.Store(a)
		changed = append(changed, l)
	}
	for name, l := range p.links {
		if l.answers.Load() != nil && wanted[name] == nil {
			l.answers.Store(nil)
			p.drop(l)
			changed = append(changed, l)
		}
	}
	p.mu.Unlock()
	for _, l := range changed {
		if t, err := p.tap(l, true); err == nil { // else noted, and p.open will do it
			p.serve(l, t)
		}
	}
}

// answers is for whom a link answers. It never changes, so that those who
// answer need no lock.
type answers struct {
	addrs  map[netip.Addr]bool
	groups map[netip.Addr]bool // where solicitations for the IPv6 ones are sent to
}

func newAnswers(addrs []netip.Addr) *answers {
	a := &answers{addrs: map[netip.Addr]bool{}, groups: map[netip.Addr]bool{}}
	for _, addr := range addrs {
		addr = addr.Unmap().WithZone("")
		if !unicast(addr) {
			continue
		}
		a.addrs[addr] = true
		if g, err := ndp.SolicitedNodeMulticast(addr); err == nil {
			a.groups[g] = true
		}
	}
	return a
}

// door is where a tap answers. Its socket is one for all protocols, since an
// ipvlan link in l3 mode takes each question for its address, which it does not
// answer, out of what other sockets are handed (drivers/net/ipvlan/
// ipvlan_core.c, ipvlan_handle_mode_l3). Only those for all come before that.
// Its filter drops other traffic for next to nothing.
type door struct {
	mu     sync.Mutex
	socket *line // nil: nothing is answered
	rolls  rolls
	warned bool
}

// close is with mu held.
func (d *door) close() {
	d.rolls.close()
	if d.socket != nil {
		d.socket.Close()
		d.socket = nil
	}
}

// serve has t answer for whom l answers now. Joining a group may wait for the
// lock that every change of a link holds, hence no lock of ours that a probe
// needs is held here.
func (p *Prober) serve(l *link, t *tap) {
	d := &t.door
	d.mu.Lock()
	err := p.fit(l, t)
	d.mu.Unlock()
	if err != nil && t.end(fmt.Errorf("packet socket on %s: %w", l.name, err)) {
		p.settle(l, time.Since(t.opened) > hasty)
	}
}

// fit is with t.door.mu held.
func (p *Prober) fit(l *link, t *tap) error {
	d := &t.door
	wanted := l.answers.Load()
	if wanted == nil || t.isOver() {
		d.close()
		return nil
	}
	if d.socket == nil {
		socket, err := p.kernel.line(&net.Interface{Name: l.name, Index: t.index, HardwareAddr: t.mac.addr()}, unix.ETH_P_ALL, questionFilter(t.index))
		if err != nil {
			return err
		}
		// What the host sends need not even be looked at (Linux 4.20).
		_ = socket.raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		})
		mine := &socket
		d.socket = mine
		p.wg.Go(func() {
			err := t.listen(socket, func(frame []byte) { t.answer(socket, l.answers.Load(), frame) })
			d.mu.Lock()
			left := d.socket != mine
			d.mu.Unlock()
			if !left && t.end(fmt.Errorf("packet socket on %s: %w", l.name, err)) {
				p.settle(l, time.Since(t.opened) > hasty)
			}
		})
	}
	if err := d.rolls.join(p.kernel.roll, t.index, wanted.groups); err != nil && !d.warned {
		d.warned = true
		p.log.WithField("link", l.name).Warnf(
			"no multicast group of an address that is answered for can be joined on %s: %v; a switch that snoops MLD may keep its neighbour solicitations away", l.name, err)
	}
	return nil
}

// answer sends at most one frame, and none where the kernel's queue is full: who
// asked will ask again.
func (t *tap) answer(socket line, wanted *answers, frame []byte) {
	s, ok := parse(frame)
	if !ok || wanted == nil || !wanted.addrs[s.asks] && !wanted.addrs[s.addr] {
		return
	}
	if wanted.addrs[s.asks] && !t.ours(s.ether) && !t.ours(s.mac) {
		if reply, err := s.reply(t.mac); err == nil {
			_ = socket.send(reply)
		}
	}
	t.take(&s) // the other sockets may not have been handed it
}

// reply answers s, that asks: who is at that address is at from.
func (s *sight) reply(from mac) ([]byte, error) {
	if s.asks.Is4() {
		to := s.addr
		if s.claim {
			to = netip.IPv4Unspecified()
		}
		return arpReply(from, s.asks, s.mac, to), nil
	}
	// Without override: should another machine have the address after all, its
	// word is the one that counts. And without delay, as the only proxy there
	// is (RFC 4861 7.2.8).
	m := &ndp.NeighborAdvertisement{
		Solicited:     !s.claim,
		TargetAddress: s.asks,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: from.addr()}},
	}
	if s.claim { // RFC 4861 7.2.4
		return neighbour(from, group(allNodes), s.asks, allNodes, m)
	}
	return neighbour(from, s.mac, s.asks, s.addr, m)
}

// rolls are the groups that the host is in on a link. A switch that snoops MLD
// passes solicitations for an address on to a port only if the address's
// solicited-node group was joined there by the host's IPv6, which reports it
// and answers the querier (RFC 3810, RFC 4541 3); of what a packet socket is
// let in, it says nothing. Where the host has no IPv6 on the link nothing is
// reported, but there it passes no IPv6 on to ipvlan l3 links either.
type rolls struct {
	all []*roll
	of  map[netip.Addr]*roll
}

// roll is a socket that is in groups; a socket's memory for them is limited
// (net.core.optmem_max, once 20 KiB: 320 groups).
type roll struct {
	fd, n int
}

const rollLen = 256

// join has the host be in exactly these groups, or in as many as it can.
func (r *rolls) join(open func() (int, error), index int, groups map[netip.Addr]bool) error {
	for g, s := range r.of {
		if !groups[g] {
			_ = unix.SetsockoptIPv6Mreq(s.fd, unix.IPPROTO_IPV6, unix.IPV6_LEAVE_GROUP, mreq(index, g)) // the link may be gone
			delete(r.of, g)
			s.n--
		}
	}
	for g := range groups {
		if r.of[g] != nil {
			continue
		}
		s, err := r.room(open)
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptIPv6Mreq(s.fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, mreq(index, g)))
		}
		if err != nil {
			return err
		}
		if r.of == nil {
			r.of = map[netip.Addr]*roll{}
		}
		r.of[g] = s
		s.n++
	}
	return nil
}

// room is a socket that can be in one more group.
func (r *rolls) room(open func() (int, error)) (*roll, error) {
	for _, s := range r.all {
		if s.n < rollLen {
			return s, nil
		}
	}
	fd, err := open()
	if err != nil {
		return nil, err
	}
	s := &roll{fd: fd}
	r.all = append(r.all, s)
	return s, nil
}

// close leaves all groups.
func (r *rolls) close() {
	for _, s := range r.all {
		unix.Close(s.fd)
	}
	*r = rolls{}
}

func mreq(index int, group netip.Addr) *unix.IPv6Mreq {
	return &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(index)}
}
