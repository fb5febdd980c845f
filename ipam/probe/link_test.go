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
	"testing/synctest"
	"time"

	"github.com/mdlayher/packet"
	"github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"underlay/internal/nic"
	"underlay/internal/nstest"
)

// wire is another packet socket, which hears everything and sends anything.
type wire struct {
	*packet.Conn
	mu     sync.Mutex
	frames [][]byte
	react  func(frame []byte) // called for each frame heard
}

func (s *space) wire(link string, react func([]byte)) *wire {
	s.T.Helper()
	w := &wire{react: react}
	ifi, err := s.kernel().find(link)
	if err == nil {
		w.Conn, err = s.kernel().open(ifi, unix.ETH_P_ALL, nil)
	}
	if err != nil {
		s.T.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, _, err := w.ReadFrom(b)
			if err != nil {
				return
			}
			frame := bytes.Clone(b[:n])
			w.mu.Lock()
			w.frames = append(w.frames, frame)
			w.mu.Unlock()
			if w.react != nil {
				w.react(frame)
			}
		}
	}()
	s.T.Cleanup(func() { w.Close(); <-done })
	return w
}

// from are the frames that the sender put on the wire.
func (w *wire) from(sender net.HardwareAddr) (all [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.frames {
		if bytes.Equal(f[6:12], sender) {
			all = append(all, f)
		}
	}
	return all
}

func (w *wire) send(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := w.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]}); err != nil {
		t.Error(err)
	}
}

// pair is two hosts with a cable between them.
func pair(t testing.TB) (me, other *space) {
	t.Helper()
	me, other = newSpace(t), newSpace(t)
	me.cable(other)
	return me, other
}

func (s *space) cable(other *space) {
	s.T.Helper()
	s.IP(fmt.Sprintf("link add eth0 type veth peer name eth0 netns %d", other.TID), "link set eth0 up")
	other.IP("link set eth0 up")
	s.running("eth0")
	other.running("eth0")
}

// TestLate: one who takes four fifths of the time to answer.
func TestLate(t *testing.T) {
	me, other := pair(t)
	const long = 3 * time.Second // the machine may be busy
	hwaddr := mac(other.mac("eth0"))
	var w *wire
	first := sync.OnceFunc(func() {
		time.AfterFunc(long*4/5, func() {
			reply := arpRequest(hwaddr, netip.MustParseAddr("10.9.0.5"), netip.IPv4Unspecified())
			copy(reply, me.mac("eth0"))
			reply[21] = 2
			w.send(t, reply)
		})
	})
	ready := make(chan struct{})
	w = other.wire("eth0", func(f []byte) {
		<-ready
		if bytes.Equal(f[12:14], []byte{8, 6}) {
			first()
		}
	})
	close(ready)
	used, err := me.prober().Probe(context.Background(), "eth0", addrs("10.9.0.5", "10.9.0.6"), long)
	if err != nil || len(used) != 1 || used[addrs("10.9.0.5")[0]].String() != hwaddr.addr().String() {
		t.Error(used, err)
	}
}

// TestWire: what is sent, as others see it.
func TestWire(t *testing.T) {
	me, other := pair(t)
	me.Set("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")
	w := other.wire("eth0", nil)
	own := mac(me.mac("eth0"))
	asked := addrs("10.9.0.5", "10.9.0.6", "fd00:9::5")
	p := me.prober()
	start := time.Now()
	used := p.probe(t, asked...)
	if len(used) != 0 || time.Since(start) < wait {
		t.Errorf("%v in use after %s", used, time.Since(start))
	}
	ns, err := solicitation(own, asked[2])
	if err != nil {
		t.Fatal(err)
	}
	sent := w.from(own.addr())
	for _, want := range [][]byte{
		arpRequest(own, netip.IPv4Unspecified(), asked[0]),
		arpRequest(own, netip.IPv4Unspecified(), asked[1]),
		ns,
	} {
		n := 0
		for _, f := range sent {
			if bytes.Equal(f, want) {
				n++
			}
		}
		if n == 0 || n > rounds {
			t.Errorf("sent %d times: %x", n, want)
		}
		sent = slices.DeleteFunc(sent, func(f []byte) bool { return bytes.Equal(f, want) })
	}
	for _, f := range sent { // and nothing else: no candidate as sender
		t.Errorf("sent too: %x", f)
	}

	child := mac{2, 0, 0, 0, 0, 7}
	for _, from := range []mac{own, child} {
		var given net.HardwareAddr
		if from != own {
			given = from.addr()
		}
		for _, a := range asked[1:] {
			if err := p.Announce("eth0", a, given); err != nil {
				t.Fatal(err)
			}
		}
		na, err := advertisement(from, asked[2])
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range [][]byte{arpRequest(from, asked[1], asked[1]), na} {
			eventually(t, fmt.Sprintf("announcement %x", want), func() bool {
				n := 0
				for _, f := range w.from(from.addr()) {
					if bytes.Equal(f, want) {
						n++
					}
				}
				return n == 1
			})
		}
	}
	if n := len(w.from(child.addr())); n != 2 {
		t.Errorf("%d frames were sent in the name of %x", n, child)
	}
}

// TestAnnounceTaken: a real neighbour's cache is right at once.
func TestAnnounceTaken(t *testing.T) {
	l := newLAN(t)
	other := l.host("10.9.0.2/24", "fd00:9::2/64")
	p := l.host().prober()
	for _, a := range []string{"10.9.0.5", "fd00:9::5"} {
		other.IP("neigh add " + a + " lladdr 02:00:00:00:00:06 dev eth0 nud stale")
		if err := p.Announce("eth0", netip.MustParseAddr(a), theirs.addr()); err != nil {
			t.Fatal(err)
		}
		eventually(t, a+" moved", func() bool {
			return strings.Contains(other.output("neigh", "show", a, "dev", "eth0"), theirs.addr().String())
		})
	}
}

// TestTwoAsk: who asks at the same time for the same address wants it too.
func TestTwoAsk(t *testing.T) {
	l := newLAN(t)
	hosts := []*space{l.host(), l.host()}
	probers := []*prober{hosts[0].prober(), hosts[1].prober()}
	wanted := addrs("10.9.0.5", "fd00:9::5")
	for _, p := range probers {
		p.Watch([]string{"eth0"})
	}
	var wg sync.WaitGroup
	for i, p := range probers {
		wg.Go(func() {
			used, err := p.Probe(context.Background(), "eth0", wanted, time.Second)
			me, rival := hosts[i].mac("eth0"), hosts[1-i].mac("eth0")
			yields := bytes.Compare(rival, me) < 0
			for _, a := range wanted {
				if err != nil || yields != (used[a].String() == rival.String()) || !yields && used[a] != nil {
					t.Errorf("host %d at %v: %s is at %q, beside %q: %v", i, me, a, used[a], rival, err)
				}
				if p.saw(Sighting{"eth0", a, rival, true}) == 0 {
					t.Errorf("host %d heard nothing of the claim for %s", i, a)
				}
			}
		})
	}
	wg.Wait()
}

// TestTwoNICs: a host's own questions are no claims, whichever of its NICs hears
// them.
func TestTwoNICs(t *testing.T) {
	l := newLAN(t)
	me := l.host()
	l.plug(me, "eth1")
	p := me.prober()
	p.Watch([]string{"eth0", "eth1"})
	free := addrs("10.9.0.5", "10.9.0.6", "fd00:9::5")
	var wg sync.WaitGroup
	for _, link := range []string{"eth0", "eth1"} {
		wg.Go(func() {
			if used, err := p.Probe(context.Background(), link, free, time.Second); err != nil || len(used) > 0 {
				t.Errorf("%s: %v, %v", link, used, err)
			}
		})
	}
	wg.Wait()
	for _, link := range []string{"eth0", "eth1"} {
		for _, other := range []string{"eth0", "eth1"} {
			if n := p.saw(Sighting{link, free[0], me.mac(other), true}); n > 0 {
				t.Errorf("%s was told of %s", link, other)
			}
		}
	}
}

// TestClaimYields: who has the address is told, not who asks for it too.
func TestClaimYields(t *testing.T) {
	me, other := pair(t)
	five := addrs("10.9.0.5")[0]
	var w *wire
	ready := make(chan struct{})
	words := sync.OnceFunc(func() {
		w.send(t, arpRequest(mac{2, 9}, netip.IPv4Unspecified(), five))
		w.send(t, arpRequest(theirs, five, five))
	})
	w = other.wire("eth0", func(f []byte) {
		<-ready
		if bytes.Equal(f[12:14], []byte{8, 6}) {
			words()
		}
	})
	close(ready)
	if used := me.prober().probe(t, five); used[five].String() != theirs.addr().String() {
		t.Error(used)
	}
}

// TestRealDAD: a host that brings an address up while it is probed here.
func TestRealDAD(t *testing.T) {
	l := newLAN(t)
	me, other := l.host(), l.host()
	other.IP("link set eth0 address 02:00:00:00:00:01") // so that this one yields
	p := me.prober()
	done := make(chan map[netip.Addr]net.HardwareAddr)
	go func() {
		used, err := p.Probe(context.Background(), "eth0", addrs("fd00:9::5"), 5*time.Second)
		if err != nil {
			t.Error(err)
		}
		done <- used
	}()
	time.Sleep(500 * time.Millisecond) // it has begun
	other.IP("addr add fd00:9::5/64 dev eth0")
	if used := <-done; len(used) != 1 {
		t.Error("heard nothing of another's DAD")
	}
}

func (p *prober) blind(t testing.TB, why string) {
	t.Helper()
	_, err := p.Probe(context.Background(), "eth0", addrs("10.9.0.5"), wait)
	if !errors.Is(err, ErrBlind) || !strings.Contains(err.Error(), why) {
		t.Errorf("got %v, want %q", err, why)
	}
	h := p.Health()
	if len(h) != 1 || h[0].Link != "eth0" || !strings.Contains(h[0].Blind, why) || time.Since(h[0].Since) > time.Minute {
		t.Errorf("health %+v, want %q", h, why)
	}
	if err := p.Announce("eth0", addrs("10.9.0.5")[0], nil); !errors.Is(err, ErrBlind) {
		t.Errorf("announced: %v", err)
	}
}

func (p *prober) sees(t testing.TB, what string, a netip.Addr) {
	t.Helper()
	eventually(t, what, func() bool {
		h := p.Health()
		return len(h) == 1 && h[0].Blind == ""
	})
	if used := p.probe(t, a); len(used) != 1 {
		t.Errorf("%s: %s is not found", what, a)
	}
}

func TestBlind(t *testing.T) {
	me, other := pair(t)
	other.IP("addr add 10.9.0.5/24 dev eth0")
	five := addrs("10.9.0.5")[0]
	p := me.prober()
	p.Watch([]string{"eth0"})
	p.sees(t, "at first", five)
	if n := len(p.log.AllEntries()); n != 0 {
		t.Errorf("%d lines logged of a link that is well", n)
	}

	me.IP("link set eth0 down")
	p.blind(t, "eth0 is down")
	me.IP("link set eth0 up")
	me.running("eth0")
	p.sees(t, "up again", five)

	other.IP("link set eth0 down")
	eventually(t, "carrier lost", func() bool {
		ifi, err := me.kernel().find("eth0")
		return err == nil && ifi.Flags&net.FlagRunning == 0
	})
	p.blind(t, "eth0 has no carrier")
	other.IP("link set eth0 up")
	me.running("eth0")
	p.sees(t, "carrier again", five)

	me.IP("link set eth0 address 02:00:00:00:00:01")
	p.Rouse()
	p.sees(t, "another MAC", five)

	me.IP("link del eth0")
	p.blind(t, "eth0 is not there")
	me.cable(other)
	other.IP("addr add 10.9.0.5/24 dev eth0")
	p.sees(t, "made anew", five)

	var lines []string
	for _, e := range p.log.AllEntries() {
		lines = append(lines, e.Level.String()+" "+e.Message)
	}
	if len(lines) != 6 {
		t.Errorf("%d lines, not one for each begin and end of three blindnesses:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}

// TestBlindDuring: a link that goes while it is asked knows nothing.
func TestBlindDuring(t *testing.T) {
	for _, far := range []bool{false, true} {
		me, other := pair(t)
		p := me.prober()
		gone := make(chan struct{})
		time.AfterFunc(200*time.Millisecond, func() {
			defer close(gone)
			if far {
				other.IP("link set eth0 down")
			} else {
				me.IP("link set eth0 down")
			}
		})
		if used, err := p.Probe(context.Background(), "eth0", addrs("10.9.0.5"), 2*time.Second); !errors.Is(err, ErrBlind) {
			t.Errorf("peer %t: %v %v", far, used, err)
		}
		<-gone
	}
}

// TestHeals: without an event, too.
func TestHeals(t *testing.T) {
	me, other := pair(t)
	me.IP("link set eth0 down")
	p := me.prober()
	p.Watch([]string{"eth0"})
	me.IP("link set eth0 up")
	me.running("eth0")
	w := other.wire("eth0", nil)
	word := arpRequest(theirs, addrs("10.9.0.5")[0], addrs("10.9.0.5")[0])
	eventually(t, "healed", func() bool {
		w.send(t, word)
		return p.saw(Sighting{"eth0", addrs("10.9.0.5")[0], theirs.addr(), false}) == 1
	})
	p.Prober.mu.Lock()
	defer p.Prober.mu.Unlock()
	if p.timer != nil {
		t.Error("a timer runs though nothing is blind")
	}
}

// TestAtRest: a link that stays away is looked for every minute, at the minute.
func TestAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := test.NewNullLogger()
		p := New(log, func(Sighting) {})
		defer p.Close()
		var mu sync.Mutex
		var seen []time.Time
		p.kernel.find = func(name string) (*net.Interface, error) {
			mu.Lock()
			defer mu.Unlock()
			if name == "eth0" {
				seen = append(seen, time.Now())
			}
			return nil, unix.ENODEV
		}
		within := func(d time.Duration) []time.Time {
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			looks := seen
			seen = nil
			return looks
		}
		begin := time.Now()
		p.Watch([]string{"eth0"})
		looks := within(time.Minute + time.Second)
		if n := len(looks); n < 5 || n > 8 || looks[1].Sub(begin) > retry {
			t.Errorf("it has just gone, and is looked for at %v", looks)
		}
		looks = within(time.Hour)
		if len(looks) != 60 {
			t.Errorf("%d looks in an hour", len(looks))
		}
		for _, at := range looks {
			if at.Second() != 0 {
				t.Errorf("a look at %v, of its own", at)
			}
		}
		p.Watch([]string{"eth0", "eth1"}) // which has just gone
		if len(within(retry)) == 0 {
			t.Error("no link is looked for soon")
		}
	})
}

func TestForbidden(t *testing.T) {
	me, _ := pair(t)
	p := me.prober()
	p.kernel.open = func(*net.Interface, int, []bpf.RawInstruction) (*packet.Conn, error) {
		return nil, os.NewSyscallError("socket", unix.EPERM)
	}
	p.Watch([]string{"eth0"})
	p.blind(t, "underlay needs CAP_NET_RAW")
	me.IP("link add br9 type bridge")
	if _, err := p.Probe(context.Background(), "lo", addrs("10.9.0.5"), wait); !errors.Is(err, ErrBlind) || !strings.Contains(err.Error(), "lo has no Ethernet address") {
		t.Error(err)
	}
}

// TestTagged: VLAN 20 is not the link's own LAN, though the host has no link
// for it.
func TestTagged(t *testing.T) {
	me, other := pair(t)
	p := me.prober()
	p.Watch([]string{"eth0"})
	w := other.wire("eth0", nil)
	tag := func(frame []byte) []byte {
		return slices.Insert(frame, 12, 0x81, 0, 0, 20)
	}
	five, six, last := addrs("10.9.0.5")[0], addrs("fd00:9::5")[0], addrs("10.9.0.6")[0]
	na, err := advertisement(theirs, six)
	if err != nil {
		t.Fatal(err)
	}
	w.send(t, tag(arpRequest(theirs, five, five)))
	w.send(t, tag(na))
	w.send(t, arpRequest(theirs, last, last))
	eventually(t, "word without a tag", func() bool { return p.saw(Sighting{"eth0", last, theirs.addr(), false}) == 1 })
	na, _ = advertisement(theirs, addrs("fd00:9::6")[0])
	w.send(t, na)
	eventually(t, "advertisement without a tag", func() bool {
		return p.saw(Sighting{"eth0", addrs("fd00:9::6")[0], theirs.addr(), false}) == 1
	})
	for _, a := range []netip.Addr{five, six} {
		if p.saw(Sighting{"eth0", a, theirs.addr(), false}) != 0 {
			t.Errorf("%s of VLAN 20 was taken for the link's own", a)
		}
	}
}

func TestVLAN(t *testing.T) {
	me, other := pair(t)
	for _, s := range []*space{me, other} {
		if s.Try("link add link eth0 name eth0.10 type vlan id 10", "link set eth0.10 up") != nil {
			nstest.Lack(t, "VLANs")
		}
		s.running("eth0.10")
	}
	other.Set("/proc/sys/net/ipv4/conf/all/arp_ignore", "1") // else it answers on eth0 too
	other.IP("addr add 10.9.0.5/24 dev eth0.10", "addr add fd00:9::5/64 dev eth0.10 nodad")
	p := me.prober()
	p.Watch([]string{"eth0", "eth0.10"})
	for link, want := range map[string]int{"eth0": 0, "eth0.10": 2} {
		used, err := p.Probe(context.Background(), link, addrs("10.9.0.5", "fd00:9::5"), wait)
		if err != nil || len(used) != want {
			t.Errorf("%s: %v %v", link, used, err)
		}
	}
	for _, a := range addrs("10.9.0.5", "fd00:9::5") {
		if n := p.saw(Sighting{"eth0", a, other.mac("eth0.10"), false}); n != 0 {
			t.Errorf("%s heard on the wrong LAN", a)
		}
		if n := p.saw(Sighting{"eth0.10", a, other.mac("eth0.10"), false}); n == 0 {
			t.Errorf("%s not heard on the VLAN", a)
		}
	}
}

// TestMacvlan: containers on the parent do not come between it and the LAN,
// but for one in passthru mode, and the kernel hides them from it.
func TestMacvlan(t *testing.T) {
	l := newLAN(t)
	l.host("10.9.0.5/24", "fd00:9::5/64")
	me, inside := l.host(), newSpace(t)
	for mode, want := range map[string]int{"bridge": 2, "private": 2, "vepa": 2, "passthru": 1} {
		if me.Try(fmt.Sprintf("link add link eth0 name c0 netns %d type macvlan mode %s", inside.TID, mode)) != nil {
			nstest.Lack(t, "macvlan links")
		}
		inside.IP("addr add 10.9.0.7/24 dev c0", "addr add fd00:9::7/64 dev c0 nodad", "link set c0 up")
		used := me.prober().probe(t, addrs("10.9.0.5", "10.9.0.7", "fd00:9::5", "fd00:9::7")...)
		if len(used) != want || used[addrs("10.9.0.7")[0]] != nil || used[addrs("fd00:9::7")[0]] != nil {
			t.Errorf("%s: %v", mode, used)
		}
		inside.IP("link del c0")
	}
}

func TestStorm(t *testing.T) {
	me, other := pair(t)
	p := me.prober()
	p.Watch([]string{"eth0"})
	w := other.wire("eth0", nil)
	other.IP("addr add 10.9.0.5/24 dev eth0")
	storm := arpRequest(theirs, addrs("10.9.0.6")[0], addrs("10.9.0.6")[0])
	stop, stopped := make(chan struct{}), make(chan struct{})
	sent := 0
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				w.WriteTo(storm, &packet.Addr{HardwareAddr: storm[:6]})
				if sent++; sent%100 == 0 {
					time.Sleep(2 * time.Millisecond)
				}
			}
		}
	}()
	start := time.Now()
	for range 5 {
		if used := p.probe(t, addrs("10.9.0.5", "10.9.0.7")...); len(used) != 1 {
			t.Errorf("in use: %v", used)
		}
	}
	close(stop)
	<-stopped
	if n := p.saw(Sighting{"eth0", addrs("10.9.0.6")[0], theirs.addr(), false}); n == 0 || n > 1+int(time.Since(start)/quiet) {
		t.Errorf("told %d times of %d frames in %s", n, sent, time.Since(start))
	}
	t.Logf("%d frames in %s", sent, time.Since(start).Round(time.Millisecond))
}

// TestWatch: exactly the links named, and nothing left behind.
func TestWatch(t *testing.T) {
	l := newLAN(t)
	other := l.host("10.9.0.5/24")
	me := l.host()
	l.plug(me, "eth1")
	w := other.wire("eth0", nil)
	before := runtime.NumGoroutine()
	p := me.prober()
	five := addrs("10.9.0.5")[0]
	words := 0
	for _, links := range [][]string{{"eth0"}, {"eth0", "eth1", "eth1"}, {"eth1"}, {}, {"eth1", "none"}} {
		p.Watch(links)
		p.Watch(links)
		words++
		a := netip.AddrFrom4([4]byte{10, 9, 1, byte(words)})
		w.send(t, arpRequest(theirs, a, a))
		for _, link := range []string{"eth0", "eth1"} {
			heard := func() bool { return p.saw(Sighting{link, a, theirs.addr(), false}) == 1 }
			if slices.Contains(links, link) {
				eventually(t, "word on "+link, heard)
			} else if heard() {
				t.Errorf("%v are watched, and %s is heard", links, link)
			}
		}
		// Any link may be asked.
		if used, err := p.Probe(context.Background(), "eth0", []netip.Addr{five}, time.Second); err != nil || len(used) != 1 {
			t.Error(used, err)
		}
	}
	asking := make(chan error)
	go func() {
		_, err := p.Probe(context.Background(), "eth0", addrs("10.9.0.9"), time.Minute)
		asking <- err
	}()
	eventually(t, "question", func() bool {
		p.Prober.mu.Lock()
		defer p.Prober.mu.Unlock()
		return p.links["eth0"] != nil
	})
	p.Close()
	if err := <-asking; !errors.Is(err, ErrBlind) {
		t.Error(err)
	}
	p.Close()
	p.Watch([]string{"eth0"})
	p.Rouse()
	if _, err := p.Probe(context.Background(), "eth0", []netip.Addr{five}, time.Second); !errors.Is(err, ErrBlind) {
		t.Error(err)
	}
	eventually(t, "goroutines gone", func() bool { return runtime.NumGoroutine() <= before })
	p.Prober.mu.Lock()
	defer p.Prober.mu.Unlock()
	if len(p.links) > 2 {
		t.Errorf("%d links left", len(p.links))
	}
}

// TestParallel: many questions at once, for the same and for other addresses.
func TestParallel(t *testing.T) {
	l := newLAN(t)
	l.host("10.9.0.5/24", "fd00:9::5/64")
	me := l.host()
	p := me.prober()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			mine := netip.AddrFrom4([4]byte{10, 9, 1, byte(i)})
			used, err := p.Probe(context.Background(), "eth0", append(addrs("10.9.0.5", "fd00:9::5"), mine), wait)
			if err != nil || len(used) != 2 || used[mine] != nil {
				t.Error(used, err)
			}
		})
	}
	wg.Wait()
}

// TestFind: the same as the library, faster.
func TestFind(t *testing.T) {
	me, other := pair(t)
	other.IP("link set eth0 down")
	for _, s := range []*space{me, other} {
		for _, name := range []string{"eth0", "lo", "none", "", "much-longer-than-a-name"} {
			s.Run(func() {
				got, err := nic.Find(name)
				want, failed := net.InterfaceByName(name)
				switch {
				case (err != nil) != (failed != nil):
					t.Errorf("%s: %v, not %v", name, err, failed)
				case err != nil:
					if !errors.Is(err, unix.ENODEV) {
						t.Errorf("%s: %v", name, err)
					}
				case got.Index != want.Index || got.HardwareAddr.String() != want.HardwareAddr.String() ||
					got.Flags != want.Flags&(net.FlagUp|net.FlagRunning):
					t.Errorf("%s is %+v, not %+v", name, got, want)
				}
			})
		}
	}
}

func BenchmarkProbe(b *testing.B) {
	l := newLAN(b)
	p := l.host().prober()
	p.Watch([]string{"eth0"})
	for _, n := range []int{1, 128, 254} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Probe(context.Background(), "eth0", all()[:n], wait); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
