package probe

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"underlay/internal/nic"
)

// kernel is what is asked of the host; a test puts another host behind it.
type kernel struct {
	find func(name string) (*net.Interface, error)
	open func(ifi *net.Interface, protocol int, filter []bpf.RawInstruction) (*packet.Conn, error)
	roll func() (fd int, err error) // a socket to join IPv6 groups with
}

func host() kernel {
	return kernel{
		find: nic.Find,
		open: func(ifi *net.Interface, protocol int, filter []bpf.RawInstruction) (*packet.Conn, error) {
			return packet.Listen(ifi, packet.Raw, protocol, &packet.Config{Filter: filter})
		},
		roll: func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			return fd, os.NewSyscallError("socket", err)
		},
	}
}

// buffer is how many bytes of frames the kernel keeps for a socket: an ARP
// frame takes some 800.
const buffer = 1 << 20

// tap is the open sockets of a link as it is now: once the link is another, or
// down, or has another MAC, its tap is over and a new one is opened.
type tap struct {
	index  int
	mac    mac
	opened time.Time
	arp    line
	ndp    line
	ours   func(mac) bool // a link of this prober has it
	told   func(sight)    // what was heard and is not a repetition
	door   door

	over chan struct{} // closed at the end

	mu      sync.Mutex
	err     error // why it is over
	asked   map[netip.Addr][]*question
	repeats throttle
}

// line is one packet socket.
type line struct {
	*packet.Conn
	raw   syscall.RawConn
	drops *atomic.Int64
	busy  *atomic.Bool // false: the listener has found no frame since it dealt with the last
}

// caughtUp says whether all that has reached the socket has been dealt with.
func (l line) caughtUp() bool {
	waiting := 0
	err := l.raw.Control(func(fd uintptr) {
		waiting, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	})
	return err == nil && waiting == 0 && !l.busy.Load() // in this order
}

func (k kernel) line(ifi *net.Interface, protocol int, filter []bpf.Instruction) (l line, err error) {
	l.busy, l.drops = new(atomic.Bool), new(atomic.Int64)
	program, err := bpf.Assemble(filter)
	if err != nil {
		return l, err
	}
	if l.Conn, err = k.open(ifi, protocol, program); err != nil {
		return l, err
	}
	if l.raw, err = l.SyscallConn(); err != nil {
		l.Close()
		return l, err
	}
	// More than anyone may have needs CAP_NET_ADMIN; without it, a storm
	// displaces answers a little sooner.
	_ = l.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
	})
	return l, nil
}

// openTap opens both sockets. They hear into the kernel's buffers until listen.
func (k kernel) openTap(ifi *net.Interface, ours func(mac) bool, told func(sight)) (*tap, error) {
	t := &tap{
		index: ifi.Index, mac: mac(ifi.HardwareAddr), opened: time.Now(), ours: ours, told: told,
		over: make(chan struct{}), asked: map[netip.Addr][]*question{},
	}
	var err error
	if t.arp, err = k.line(ifi, etherARP, arpFilter(ifi.Index)); err != nil {
		return nil, err
	}
	if t.ndp, err = k.line(ifi, etherIPv6, ndpFilter(ifi.Index)); err != nil {
		t.arp.Close()
		return nil, err
	}
	// Neighbour solicitations go to a group for each address, and answers to
	// those who have none go to all nodes. A NIC lets in only the groups that
	// its host has joined, so that without this nobody's would be heard.
	if cerr := t.ndp.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_ALLMULTI})
	}); cerr != nil || err != nil {
		t.close()
		return nil, errors.Join(cerr, err)
	}
	return t, nil
}

// lost is how many frames there was no room for, since the tap was opened.
func (t *tap) lost() int64 { return t.arp.lost() + t.ndp.lost() }

func (l line) lost() int64 {
	_ = l.raw.Control(func(fd uintptr) {
		// The kernel counts from the last look on.
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			l.drops.Add(int64(s.Drops))
		}
	})
	return l.drops.Load()
}

func (t *tap) close() {
	t.arp.Close()
	t.ndp.Close()
	t.door.mu.Lock()
	defer t.door.mu.Unlock()
	t.door.close()
}

// end says that the tap is over, and whether it was not yet.
func (t *tap) end(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isOver() {
		return false
	}
	t.err = err
	close(t.over)
	return true
}

func (t *tap) caughtUp() bool { return t.arp.caughtUp() && t.ndp.caughtUp() }

func (t *tap) isOver() bool {
	select {
	case <-t.over:
		return true
	default:
		return false
	}
}

func (t *tap) reason() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// listen reads a socket until that fails.
func (t *tap) listen(l line, each func(frame []byte)) error {
	var n int
	var err error
	b := make([]byte, maxFrame)
	read := func(fd uintptr) bool {
		l.busy.Store(true)
		for n, err = unix.Read(int(fd), b); err == unix.EINTR; {
			n, err = unix.Read(int(fd), b)
		}
		if err == unix.EAGAIN {
			l.busy.Store(false)
			return false
		}
		return true
	}
	for {
		if e := l.raw.Read(read); e != nil {
			return e
		}
		if err != nil {
			return err
		}
		each(b[:n])
	}
}

func (t *tap) hear(frame []byte) {
	if s, ok := parse(frame); ok {
		t.take(&s)
	}
}

func (t *tap) take(s *sight) {
	if t.ours(s.ether) || t.ours(s.mac) { // the host's own, come back
		return
	}
	t.mu.Lock()
	for _, q := range t.asked[s.addr] {
		q.answer(s)
	}
	fresh := t.repeats.fresh(s, time.Since(t.opened))
	t.mu.Unlock()
	if fresh {
		t.told(*s)
	}
}

// send puts a frame out, or drops it where the kernel's queue is full: it
// never waits.
func (t *tap) send(addr netip.Addr, frame []byte) error {
	l := t.ndp
	if addr.Is4() {
		l = t.arp
	}
	return l.send(frame)
}

func (l line) send(frame []byte) error {
	var err error
	if e := l.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), frame)
		return true
	}); e != nil {
		return e
	}
	return err
}

// full says whether a send failed only because the queue was full.
func full(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR)
}

// question is a probe under way. What is found is guarded by the tap's mu.
type question struct {
	asker  mac
	addrs  []*candidate
	found  map[netip.Addr]net.HardwareAddr // who has the address
	claims map[netip.Addr]net.HardwareAddr // who asks for it too
	done   chan struct{}                   // closed when every one is found
}

// candidate is an address that is asked for, and the frame that does.
type candidate struct {
	addr  netip.Addr
	frame []byte
	sent  int
}

// answer takes what was heard. A claim ends nothing: the rival must hear this
// host's further probes as well, and a third may have the address. Of two who
// claim, the one with the lower MAC goes on; the other yields, as RFC 5227 2.1.1
// and RFC 4862 5.4.3 would have both do. Else two hosts of one pool that start
// together would drive each other from address to address.
func (q *question) answer(s *sight) {
	switch {
	case s.claim && bytes.Compare(q.asker[:], s.mac[:]) < 0:
	case s.claim:
		q.claims[s.addr] = s.mac.addr()
	case q.found[s.addr] == nil:
		q.found[s.addr] = s.mac.addr()
		if len(q.found) == len(q.addrs) {
			close(q.done)
		}
	}
}

// used is what is found, and what is only claimed; for when nothing more is
// answered.
func (q *question) used() map[netip.Addr]net.HardwareAddr {
	for a, m := range q.claims {
		if q.found[a] == nil {
			q.found[a] = m
		}
	}
	return q.found
}

// ask begins a question: answers are taken from now on.
func (t *tap) ask(addrs []netip.Addr) (*question, error) {
	q := &question{
		asker:  t.mac,
		found:  map[netip.Addr]net.HardwareAddr{},
		claims: map[netip.Addr]net.HardwareAddr{},
		done:   make(chan struct{}),
	}
	seen := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		if seen[a] {
			continue
		}
		seen[a] = true
		if !unicast(a) {
			return nil, fmt.Errorf("%s is no address that a machine may have", a)
		}
		c := &candidate{addr: a}
		if a.Is4() {
			c.frame = arpRequest(t.mac, netip.IPv4Unspecified(), a)
		} else {
			frame, err := solicitation(t.mac, a)
			if err != nil {
				return nil, fmt.Errorf("asking for %s: %w", a, err)
			}
			c.frame = frame
		}
		q.addrs = append(q.addrs, c)
	}
	t.mu.Lock()
	for _, c := range q.addrs {
		t.asked[c.addr] = append(t.asked[c.addr], q)
	}
	t.mu.Unlock()
	return q, nil
}

// forget ends a question; its findings are the caller's then.
func (t *tap) forget(q *question) {
	t.mu.Lock()
	for _, c := range q.addrs {
		all := t.asked[c.addr]
		for i, other := range all {
			if other == q {
				all[i] = all[len(all)-1]
				all[len(all)-1] = nil
				all = all[:len(all)-1]
				break
			}
		}
		if len(all) == 0 {
			delete(t.asked, c.addr)
		} else {
			t.asked[c.addr] = all
		}
	}
	t.mu.Unlock()
}

// unanswered are those to ask again.
func (t *tap) unanswered(q *question) []*candidate {
	t.mu.Lock()
	defer t.mu.Unlock()
	var left []*candidate
	for _, c := range q.addrs {
		if q.found[c.addr] == nil {
			left = append(left, c)
		}
	}
	return left
}
