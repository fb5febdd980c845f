package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"underlay/internal/nstest"
)

const (
	goldARPAsk = `ffffffffffff 020000000002 0806 0001 0800 06 04 0001
		020000000002 0a090007 000000000000 0a090005`
	goldNSAsk = `3333ff345678 020000000002 86dd 60000000 0020 3a ff
		fd000009000000000000000000000007 ff0200000000000000000001ff345678
		87 00 0000 00000000 fd000009000000000000000012345678 01 01 020000000002`
)

func TestReply(t *testing.T) {
	with := func(gold string, at int, to ...byte) []byte {
		b := golden(t, gold)
		copy(b[at:], to)
		return b
	}
	for _, tc := range []struct {
		name string
		ask  []byte
		want string // "" is none; neighbour advertisements with a checksum of zero
	}{
		{"ARP request", golden(t, goldARPAsk), `020000000002 020000000001 0806 0001 0800 06 04 0002
			020000000001 0a090005 020000000002 0a090007`},
		{"ARP probe", with(goldARPAsk, 28, 0, 0, 0, 0), `020000000002 020000000001 0806 0001 0800 06 04 0002
			020000000001 0a090005 020000000002 00000000`},
		{"ARP request to one machine", with(goldARPAsk, 0, 2, 0, 0, 0, 0, 1), `020000000002 020000000001 0806 0001 0800 06 04 0002
			020000000001 0a090005 020000000002 0a090007`},
		{"solicitation", mended(golden(t, goldNSAsk)), `020000000002 020000000001 86dd 60000000 0020 3a ff
			fd000009000000000000000012345678 fd000009000000000000000000000007
			88 00 0000 40000000 fd000009000000000000000012345678 02 01 020000000001`},
		{"solicitation to one machine, without an option", mended(golden(t, `020000000001 020000000002 86dd 60000000 0018 3a ff
			fe800000000000000000000000000007 fd000009000000000000000012345678
			87 00 0000 00000000 fd000009000000000000000012345678`)), `020000000002 020000000001 86dd 60000000 0020 3a ff
			fd000009000000000000000012345678 fe800000000000000000000000000007
			88 00 0000 40000000 fd000009000000000000000012345678 02 01 020000000001`},
		{"solicitation as in DAD", golden(t, goldSolicitation), `333300000001 020000000001 86dd 60000000 0020 3a ff
			fd000009000000000000000012345678 ff020000000000000000000000000001
			88 00 0000 00000000 fd000009000000000000000012345678 02 01 020000000001`},

		{"ARP announcement", golden(t, goldARPAnnouncement), ""},
		{"ARP reply", with(goldARPAsk, 21, 2), ""},
		{"advertisement", golden(t, goldAdvertisement), ""},
		{"ARP from a group", with(goldARPAsk, 22, 3), ""},
		{"ARP of a broadcast sender", with(goldARPAsk, 28, 255, 255, 255, 255), ""},
		{"routed", mended(with(goldNSAsk, 21, 254)), ""},
		{"bad checksum", golden(t, goldNSAsk), ""},
		{"solicitation of a group", mended(with(goldNSAsk, 22, 0xff)), ""},
		{"DAD to all nodes", mended(with(goldSolicitation, 38, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)), ""},
		{"solicitation for the sender", mended(with(goldNSAsk, 22, 0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78)), ""},
	} {
		s, ok := parse(tc.ask)
		if asks := ok && s.asks.IsValid(); asks != (tc.want != "") {
			t.Errorf("%s: asks is %t, for %s", tc.name, asks, s.asks)
			continue
		} else if !asks {
			continue
		}
		got, err := s.reply(mine)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		want := golden(t, tc.want)
		if s.asks.Is6() {
			mended(want)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", tc.name, got, want)
		}
	}
}

// FuzzReply: whatever is asked, a reply is one frame, hardly longer, to who
// asked or for all nodes, that says where the address is and asks nothing.
func FuzzReply(f *testing.F) {
	for _, gold := range []string{goldARPAsk, goldARPProbe, goldNSAsk, goldSolicitation} {
		f.Add(golden(f, gold))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 58 {
			if n := len(b) - etherLen - ip6Len; n < 1<<16 {
				b[18], b[19] = byte(n>>8), byte(n)
			}
			mended(b)
		}
		s, ok := parse(b)
		if !ok || !unicast(s.asks) {
			return
		}
		r, err := s.reply(mine)
		if err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		to := mac(r[:6])
		said, ok := parse(r)
		if !ok || said.addr != s.asks || said.mac != mine || said.ether != mine || said.claim || said.asks.IsValid() ||
			to != s.mac && !(s.claim && to == group(allNodes)) || len(r) > len(b)+8 {
			t.Errorf("%x is answered by %x", b, r)
		}
	})
}

// reaches says whether TCP gets to a on the host that has it, and is refused
// there.
func (s *space) reaches(a string, within time.Duration) bool {
	var err error
	s.Run(func() {
		var c net.Conn
		if c, err = (&net.Dialer{Timeout: within}).Dial("tcp", net.JoinHostPort(a, "9")); err == nil {
			c.Close()
		}
	})
	return errors.Is(err, unix.ECONNREFUSED)
}

// neigh is what s knows of a.
func (s *space) neigh(a string) string {
	return s.output("neigh", "show", a, "dev", "eth0")
}

// confirms has s ask whether a is still at m, that machine alone, until it is
// told so: the kernel gives up early while its own address is tentative.
func (s *space) confirms(a string, m net.HardwareAddr) {
	s.T.Helper()
	s.IP("neigh replace " + a + " lladdr " + m.String() + " dev eth0 nud probe")
	eventually(s.T, a+" confirmed", func() bool {
		now := s.neigh(a)
		if !strings.Contains(now, "PROBE") && !strings.Contains(now, "REACHABLE") {
			s.IP("neigh replace " + a + " lladdr " + m.String() + " dev eth0 nud probe")
		}
		return strings.Contains(now, "REACHABLE")
	})
}

// patient is probe for those who are sure to answer, on a machine that may be
// busy.
func (p *prober) patient(t testing.TB, as ...netip.Addr) map[netip.Addr]net.HardwareAddr {
	t.Helper()
	used, err := p.Probe(context.Background(), "eth0", as, 8*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// proxy is a host that has addresses, and whose kernel says nothing of them on
// eth0: as it is for those of ipvlan links in l3 mode.
func (l *lan) proxy(inner ...string) *space {
	l.T.Helper()
	h := l.host("10.9.0.2/24", "fd00:9::2/64")
	h.Set("/proc/sys/net/ipv4/conf/eth0/arp_ignore", "1")
	for _, a := range inner {
		h.IP("addr add " + a + " dev lo")
	}
	return h
}

// TestAnswer: real machines find who is answered for.
func TestAnswer(t *testing.T) {
	l := newLAN(t)
	inner := []string{"10.9.0.5", "10.9.0.6", "fd00:9::5", "fd00:9::6"}
	me := l.proxy(inner...)
	other := l.host("10.9.0.7/24", "fd00:9::7/64")
	p := me.prober()
	if other.reaches(inner[0], 300*time.Millisecond) {
		t.Fatal("the kernel itself answers")
	}
	p.Answer(map[string][]netip.Addr{"eth0": addrs("10.9.0.5", "fd00:9::5", "fd00:9::5", "224.0.0.1", "::")})
	known := me.mac("eth0").String()
	for _, a := range []string{inner[0], inner[2]} {
		if !other.reaches(a, 5*time.Second) || !strings.Contains(other.neigh(a), known) {
			t.Errorf("%s is not reached: %s", a, other.neigh(a))
		}
	}
	for _, a := range []string{inner[1], inner[3]} {
		if other.reaches(a, 300*time.Millisecond) {
			t.Errorf("%s was answered for", a)
		}
	}

	p.Answer(map[string][]netip.Addr{"eth0": addrs("10.9.0.6", "fd00:9::6")})
	other.IP("neigh flush dev eth0")
	for i, a := range inner {
		if got := other.reaches(a, time.Second); got != (i%2 == 1) {
			t.Errorf("now that the others are answered for: %s reached is %t", a, got)
		}
	}

	p.Answer(nil)
	other.IP("neigh flush dev eth0")
	for _, a := range inner {
		if other.reaches(a, 300*time.Millisecond) {
			t.Errorf("%s is still answered for", a)
		}
	}
	p.Prober.mu.Lock()
	defer p.Prober.mu.Unlock()
	if len(p.links) > 0 {
		t.Error("the link is still open")
	}
}

// TestAnswerUnicast: a neighbour that asks again whether the machine is still
// there asks it alone (RFC 4861 7.3.3).
func TestAnswerUnicast(t *testing.T) {
	l := newLAN(t)
	me := l.proxy("10.9.0.5", "fd00:9::5")
	other := l.host("10.9.0.7/24", "fd00:9::7/64")
	me.prober().Answer(map[string][]netip.Addr{"eth0": addrs("10.9.0.5", "fd00:9::5")})
	for _, a := range []string{"10.9.0.5", "fd00:9::5"} {
		other.confirms(a, me.mac("eth0"))
	}
}

// TestAnswerDefends: another machine may not have the address.
func TestAnswerDefends(t *testing.T) {
	l := newLAN(t)
	me := l.proxy()
	other := l.host()
	other.IP("link set eth0 address 02:00:00:00:00:02")
	p := me.prober()
	p.Watch([]string{"eth0"})
	mine := addrs("10.9.0.5", "fd00:9::5")
	p.Answer(map[string][]netip.Addr{"eth0": mine})
	used := other.prober().patient(t, mine...)
	for _, a := range mine {
		if used[a].String() != me.mac("eth0").String() {
			t.Errorf("%s is at %q for who probes", a, used[a])
		}
		if p.saw(Sighting{"eth0", a, other.mac("eth0"), true}) == 0 {
			t.Errorf("the claim for %s was not told", a)
		}
	}
	other.IP("addr add fd00:9::5/64 dev eth0")
	eventually(t, "DAD failed", func() bool { return strings.Contains(other.output("addr", "show", "eth0"), "dadfailed") })
}

// TestAnswerOwn: the host does not answer itself, on whichever of its NICs it
// asks, nor take its answers for another's.
func TestAnswerOwn(t *testing.T) {
	l := newLAN(t)
	me := l.proxy()
	l.plug(me, "eth1")
	other := l.host("10.9.0.7/24", "fd00:9::7/64")
	p := me.prober()
	p.Watch([]string{"eth0", "eth1"})
	mine := addrs("10.9.0.5", "fd00:9::5")
	p.Answer(map[string][]netip.Addr{"eth0": mine})
	for _, link := range []string{"eth0", "eth1"} {
		if used, err := p.Probe(context.Background(), link, mine, wait); err != nil || len(used) > 0 {
			t.Errorf("%s: %v, %v", link, used, err)
		}
	}
	if n := len(other.prober().patient(t, mine...)); n != 2 {
		t.Errorf("another machine got %d answers", n)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.heard {
		if slices.Contains(mine, s.Addr) && s.MAC.String() != other.mac("eth0").String() {
			t.Errorf("told of itself: %+v", s)
		}
	}
}

// TestAnswerWire: one frame for each question, and none for what is none.
func TestAnswerWire(t *testing.T) {
	me, other := pair(t)
	me.IP("link set eth0 address " + mine.addr().String())
	me.Set("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")
	p := me.prober()
	four, six, last := addrs("10.9.0.5")[0], addrs("fd00:9::1234:5678")[0], addrs("10.9.0.6")[0]
	p.Answer(map[string][]netip.Addr{"eth0": {four, six, last}})
	w := other.wire("eth0", nil)
	ns := mended(golden(t, goldNSAsk))
	routed := golden(t, goldNSAsk)
	routed[21] = 254
	tagged := func(b []byte) []byte { return append(append(append([]byte{}, b[:12]...), 0x81, 0, 0, 20), b[12:]...) }
	dad := golden(t, goldSolicitation)
	copy(dad[6:], theirs[:])
	foreign := golden(t, goldARPAsk)
	foreign[41] = 9
	spoofed := golden(t, goldARPAsk)
	copy(spoofed[6:], mine[:])
	elsewhere := golden(t, goldARPAsk)
	copy(elsewhere, []byte{2, 0, 0, 0, 0, 9})
	const each = 20
	for range each {
		for _, f := range [][]byte{
			golden(t, goldARPAsk), ns, dad,
			golden(t, goldNSAsk), mended(routed), tagged(golden(t, goldARPAsk)), tagged(ns), foreign, spoofed, elsewhere,
			golden(t, goldARPAnnouncement), golden(t, goldAdvertisement),
		} {
			w.send(t, f)
		}
	}
	end := golden(t, goldARPAsk)
	end[41] = 6
	eventually(t, "last answer", func() bool {
		w.send(t, end)
		for _, f := range w.from(mine.addr()) {
			if bytes.Equal(f[28:32], last.AsSlice()) {
				return true
			}
		}
		return false
	})
	got := map[string]int{}
	for _, f := range w.from(mine.addr()) {
		if !bytes.Equal(f[28:32], last.AsSlice()) && !bytes.Equal(f, spoofed) {
			got[string(f)]++
		}
	}
	for _, ask := range [][]byte{golden(t, goldARPAsk), ns, dad} {
		s, _ := parse(ask)
		want, err := s.reply(mine)
		if err != nil {
			t.Fatal(err)
		}
		if n := got[string(want)]; n != each {
			t.Errorf("%d answers, not %d: %x", n, each, want)
		}
		delete(got, string(want))
	}
	for f, n := range got {
		t.Errorf("sent %d times: %x", n, f)
	}
}

// TestAnswerTroubles: links that go, come back, and are others.
func TestAnswerTroubles(t *testing.T) {
	me, other := pair(t)
	five, six := addrs("10.9.0.5")[0], addrs("fd00:9::5")[0]
	me.IP("link set eth0 down")
	before := runtime.NumGoroutine()
	p := me.prober()
	p.Answer(map[string][]netip.Addr{"eth0": {five, six}})
	asker := other.prober()
	blind := func(why string) {
		t.Helper()
		if h := p.Health(); len(h) != 1 || h[0].Link != "eth0" || !strings.Contains(h[0].Blind, why) {
			t.Errorf("health %+v, want %q", h, why)
		}
	}
	well := func(what string) {
		t.Helper()
		eventually(t, "answers: "+what, func() bool {
			used, err := asker.Probe(context.Background(), "eth0", []netip.Addr{five, six}, wait)
			return err == nil && len(used) == 2 && used[five].String() == me.mac("eth0").String() &&
				used[six].String() == me.mac("eth0").String()
		})
	}
	blind("eth0 is down")
	me.IP("link set eth0 up")
	well("up, by the timer")
	me.IP("link set eth0 down")
	eventually(t, "noticed", func() bool { h := p.Health(); return h[0].Blind != "" })
	me.IP("link set eth0 up")
	me.running("eth0")
	p.Rouse()
	well("up again, roused")
	me.IP("link set eth0 address 02:00:00:00:00:01")
	p.Rouse()
	well("another MAC")
	me.IP("link del eth0")
	blind("eth0 is not there")
	me.cable(other)
	p.Rouse()
	well("made anew")

	// A link that is watched as well stays open for that, and the other way round.
	p.Watch([]string{"eth0"})
	p.Answer(nil)
	if used := asker.probe(t, five, six); len(used) > 0 {
		t.Errorf("still answered: %v", used)
	}
	w := other.wire("eth0", nil)
	nine := addrs("10.9.0.9")[0]
	w.send(t, arpRequest(theirs, nine, nine))
	eventually(t, "word", func() bool { return p.saw(Sighting{"eth0", nine, theirs.addr(), false}) == 1 })
	p.Answer(map[string][]netip.Addr{"eth0": {five, six}})
	p.Watch(nil)
	well("not watched any more")

	lines := 0
	for _, e := range p.log.AllEntries() {
		if strings.Contains(e.Message, "nobody is answered there until it is back") || strings.Contains(e.Message, "is heard again") {
			lines++
		} else {
			t.Error(e.Message)
		}
	}
	if lines != 6 {
		t.Errorf("%d lines, not one for each begin and end of three blindnesses", lines)
	}
	p.Close()
	asker.Close()
	w.Close()
	p.Answer(map[string][]netip.Addr{"eth0": {five}})
	if used := other.prober().probe(t, five, six); len(used) > 0 {
		t.Errorf("answered after the end: %v", used)
	}
	eventually(t, "goroutines gone", func() bool { return runtime.NumGoroutine() <= before })
}

// TestAnswerStorm: probes and answers do not wait for each other.
func TestAnswerStorm(t *testing.T) {
	me, other := pair(t)
	other.IP("addr add 10.9.0.7/24 dev eth0")
	p := me.prober()
	five := addrs("10.9.0.5")[0]
	p.Answer(map[string][]netip.Addr{"eth0": {five}})
	w := other.wire("eth0", nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ask := golden(t, goldARPAsk)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				w.send(t, ask)
				if n%100 == 0 {
					time.Sleep(2 * time.Millisecond)
				}
			}
		}
	})
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				p.Answer(map[string][]netip.Addr{"eth0": append(addrs("fd00:9::5"), five, netip.AddrFrom4([4]byte{10, 9, 1, byte(n)}))})
			}
		}
	})
	for range 5 {
		if used := p.probe(t, addrs("10.9.0.7", "10.9.0.8")...); len(used) != 1 {
			t.Errorf("in use: %v", used)
		}
	}
	close(stop)
	wg.Wait()
	if len(w.from(me.mac("eth0"))) == 0 {
		t.Error("nothing was answered")
	}
}

// TestSnooping: a switch that passes multicast only on to those who asked for
// it passes solicitations on.
func TestSnooping(t *testing.T) {
	l := newLAN(t)
	if l.Try("link set br0 type bridge mcast_snooping 1 mcast_query_response_interval 100 mcast_startup_query_interval 100 mcast_last_member_interval 50",
		"addr add fe80::1/64 dev br0 nodad", // queries need a sender
		"link set br0 type bridge mcast_querier 1 mcast_query_interval 100") != nil {
		nstest.Lack(t, "bridges that snoop")
	}
	me := l.proxy()
	other := l.host("fd00:9::7/64")
	p := me.prober()
	// More than one socket may join, and two of one group.
	six := []netip.Addr{addrs("fd00:9::5")[0], addrs("fd00:a::5")[0]}
	for i := range rollLen + 10 {
		six = append(six, netip.AddrFrom16([16]byte{0: 0xfd, 3: 9, 14: byte(1 + i>>8), 15: byte(i)}))
	}
	groups := func() (n int) {
		var b []byte
		me.Run(func() { b, _ = os.ReadFile("/proc/thread-self/net/igmp6") })
		return strings.Count(string(b), "ff0200000000000000000001ff")
	}
	mdb := func() string { return l.bridge("mdb", "show") }
	base := groups()
	p.Answer(map[string][]netip.Addr{"eth0": six})
	if n := groups() - base; n != len(six)-1 {
		t.Errorf("%d groups joined for %d addresses", n, len(six))
	}
	eventually(t, "switch told of it", func() bool { return strings.Contains(mdb(), "port1 grp ff02::1:ff00:5 ") })
	eventually(t, "switch snoops", func() bool {
		w := me.wire("eth0", nil)
		ns, err := solicitation(theirs, addrs("fd00:9::abcd")[0]) // in no group
		if err != nil {
			t.Fatal(err)
		}
		asker := other.wire("eth0", nil)
		asker.send(t, ns)
		asker.send(t, arpRequest(theirs, addrs("10.9.0.9")[0], addrs("10.9.0.9")[0]))
		eventually(t, "frame", func() bool { return len(w.from(theirs.addr())) > 0 })
		return bytes.Equal(w.from(theirs.addr())[0][12:14], []byte{8, 6})
	})
	asker := other.prober()
	answered := func(a netip.Addr) {
		t.Helper()
		// A bridge is slow for a while after hundreds of groups were left.
		if used := asker.patient(t, a); len(used) != 1 {
			t.Errorf("%s is not answered for", a)
		}
	}
	for _, a := range []netip.Addr{six[0], six[1], six[len(six)-1]} {
		answered(a)
	}
	p.Answer(map[string][]netip.Addr{"eth0": six[1:3]}) // the group of the first is still wanted
	if n := groups() - base; n != 2 {
		t.Errorf("in %d groups for two addresses", n)
	}
	answered(six[1])
	p.Answer(nil)
	eventually(t, "no groups left", func() bool { return groups() == base }) // a tap is closed in the background
	eventually(t, "switch told of the end", func() bool { return !strings.Contains(mdb(), "port1 grp ff02::1:ff00:5 ") })
	if e := p.log.LastEntry(); e != nil {
		t.Error(e.Message)
	}
}

// TestAnswerNoIPv6: what cannot be joined is said once, and keeps nobody from
// answering.
func TestAnswerNoIPv6(t *testing.T) {
	me, other := pair(t)
	p := me.prober()
	p.kernel.roll = func() (int, error) { return 0, os.NewSyscallError("socket", unix.EAFNOSUPPORT) }
	for _, all := range [][]netip.Addr{addrs("10.9.0.5"), addrs("10.9.0.5", "fd00:9::5"), addrs("10.9.0.5", "fd00:9::5", "fd00:9::6")} {
		p.Answer(map[string][]netip.Addr{"eth0": all})
		if used := other.prober().patient(t, all...); len(used) != len(all) {
			t.Errorf("%v of %v", used, all)
		}
	}
	if all := p.log.AllEntries(); len(all) != 1 || !strings.Contains(all[0].Message, "address family not supported") {
		t.Errorf("%d lines", len(all))
	}
}

// TestIPVLAN: the real thing.
func TestIPVLAN(t *testing.T) {
	for _, mode := range []string{"l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			l := newLAN(t)
			me, c := l.host("10.9.0.2/24", "fd00:9::2/64"), newSpace(t)
			other := l.host("10.9.0.7/24", "fd00:9::7/64")
			if err := me.Try(fmt.Sprintf("link add link eth0 name c0 netns %d type ipvlan mode %s", c.TID, mode)); err != nil {
				nstest.Lack(t, "ipvlan links")
			}
			c.IP("addr add 10.9.0.5/32 dev c0", "addr add fd00:9::5/128 dev c0 nodad", "link set c0 up",
				"route add default dev c0", "route add ::/0 dev c0")
			p := me.prober()
			p.Watch([]string{"eth0"})
			inner := []string{"10.9.0.5", "fd00:9::5"}
			for _, a := range inner {
				if other.reaches(a, 300*time.Millisecond) {
					t.Errorf("%s is reached without an answer", a)
				}
			}
			p.Answer(map[string][]netip.Addr{"eth0": addrs(inner...)})
			other.IP("neigh flush dev eth0")
			for _, a := range inner {
				if !other.reaches(a, 5*time.Second) || !strings.Contains(other.neigh(a), me.mac("eth0").String()) {
					t.Errorf("%s is not reached: %s", a, other.neigh(a))
				}
				other.confirms(a, me.mac("eth0"))
			}
			// A squatter's announcement is for the container, as far as the link
			// is concerned.
			w := other.wire("eth0", nil)
			w.send(t, arpRequest(theirs, addrs(inner[0])[0], addrs(inner[0])[0]))
			eventually(t, "squatter", func() bool { return p.saw(Sighting{"eth0", addrs(inner[0])[0], theirs.addr(), false}) == 1 })
			p.Answer(nil)
			other.IP("neigh flush dev eth0")
			for _, a := range inner {
				if other.reaches(a, 300*time.Millisecond) {
					t.Errorf("%s is reached after all", a)
				}
			}
		})
	}
}

// BenchmarkAnswer is what it costs to say anew for whom to answer, one more
// each time.
func BenchmarkAnswer(b *testing.B) {
	l := newLAN(b)
	p := l.host().prober()
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var all []netip.Addr
			for i := range n {
				all = append(all, netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}),
					netip.AddrFrom16([16]byte{0: 0xfd, 3: 9, 14: byte(i >> 8), 15: byte(i)}))
			}
			for i := 0; b.Loop(); i++ {
				p.Answer(map[string][]netip.Addr{"eth0": all[i%2*2:]})
			}
		})
	}
}
