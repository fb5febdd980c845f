package dhcp

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	pack "github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"underlay/internal/nic"
)

// wire is a link's frames, as long as the link is the same one.
type wire interface {
	Send(frame []byte) error       // never waits: a frame there is no room for is lost
	Receive(b []byte) (int, error) // waits; fails once closed
	Join(mac net.HardwareAddr)     // frames to mac are let in from now on
	Alive() bool                   // the link of that name is still this one
	Close() error
}

// linger is how long a link is listened to after the last question: a server may
// ping an address for some seconds before it offers it.
const linger = 15 * time.Second

// tap is a link's wire, open while there is something to hear.
type tap struct {
	name string
	open func(link string) (wire, error)
	hear func(link string, frame []byte)
	wg   *sync.WaitGroup

	mu     sync.Mutex
	wire   wire // nil: not open
	used   time.Time
	looked time.Time
	timer  *time.Timer
	closed bool
}

// send puts a frame on the link, whose answer may be for join only.
func (t *tap) send(frame []byte, join net.HardwareAddr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	now := time.Now()
	if t.wire != nil && now.Sub(t.looked) > time.Second {
		if t.looked = now; !t.wire.Alive() {
			t.shut()
		}
	}
	for {
		old := t.wire != nil
		if !old {
			w, err := t.open(t.name)
			if err != nil {
				return err
			}
			t.wire, t.looked = w, now
			t.wg.Go(func() { t.listen(w) })
		}
		t.used = now
		if t.timer == nil {
			t.timer = time.AfterFunc(linger, t.idle)
		}
		if join != nil {
			t.wire.Join(join)
		}
		err := t.wire.Send(frame)
		if err == nil {
			return nil
		}
		t.shut()
		if !old { // else the link may be back, or another
			return fmt.Errorf("sending on %s: %w", t.name, err)
		}
	}
}

func (t *tap) listen(w wire) {
	b := make([]byte, maxFrame)
	for {
		n, err := w.Receive(b)
		if err != nil {
			break
		}
		t.hear(t.name, b[:n])
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wire == w {
		t.shut()
	}
}

// idle closes the wire if nothing has been asked for a while.
func (t *tap) idle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if rest := linger - time.Since(t.used); t.wire != nil && rest > 0 {
		t.timer.Reset(rest)
		return
	}
	t.timer = nil
	t.shut()
}

// shut is with mu held.
func (t *tap) shut() {
	if w := t.wire; w != nil {
		t.wire = nil
		t.wg.Go(func() { w.Close() }) // the kernel may take milliseconds to let go
	}
}

func (t *tap) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.timer != nil {
		t.timer.Stop()
	}
	t.shut()
}

var errNoLink = errors.New("is not there")

// socket is a packet socket for all protocols. It is handed frames before VLAN,
// macvlan and ipvlan links are, and those of other links never.
type socket struct {
	*pack.Conn
	raw   syscall.RawConn
	link  string
	index int

	joined map[[6]byte]bool // guarded by the tap's mu
}

// buffer is how many bytes of frames the kernel keeps for a socket.
const buffer = 1 << 20

func openSocket(link string) (wire, error) {
	ifi, err := nic.Find(link)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%s %w", link, errNoLink)
	case err != nil:
		return nil, fmt.Errorf("looking at %s: %w", link, err)
	case ifi.Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%s is down", link)
	}
	filter, err := bpf.Assemble(replyFilter)
	if err != nil {
		return nil, err
	}
	c, err := pack.Listen(ifi, pack.Raw, unix.ETH_P_ALL, &pack.Config{Filter: filter})
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w; underlay needs CAP_NET_RAW", err)
		}
		return nil, fmt.Errorf("packet socket on %s: %w", link, err)
	}
	s := &socket{Conn: c, link: link, index: ifi.Index, joined: map[[6]byte]bool{}}
	if s.raw, err = c.SyscallConn(); err != nil {
		c.Close()
		return nil, err
	}
	_ = s.raw.Control(func(fd uintptr) {
		// Else the kernel copies each frame that leaves, only to have it filtered.
		// Before Linux 4.20 it does.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		// More than anyone may have needs CAP_NET_ADMIN.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
	})
	return s, nil
}

func (s *socket) Send(frame []byte) error {
	var err error
	if e := s.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), frame)
		return true
	}); e != nil {
		return e
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
		return nil // lost, as it might be on the way
	}
	return err
}

func (s *socket) Receive(b []byte) (int, error) {
	n, _, err := s.ReadFrom(b)
	return n, err
}

// Join has the NIC let in what is for mac, where no macvlan link has done so yet.
func (s *socket) Join(mac net.HardwareAddr) {
	if s.joined[[6]byte(mac)] {
		return
	}
	s.joined[[6]byte(mac)] = true
	m := &unix.PacketMreq{Ifindex: int32(s.index), Type: unix.PACKET_MR_UNICAST, Alen: 6}
	copy(m.Address[:], mac)
	_ = s.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, m)
	})
}

func (s *socket) Alive() bool {
	ifi, err := nic.Find(s.link)
	return err == nil && ifi.Index == s.index && ifi.Flags&net.FlagUp != 0
}

// sight is a link's index, or 0 while it is not there, down or without a carrier.
func sight(link string) int {
	ifi, err := nic.Find(link)
	if err != nil || ifi.Flags&net.FlagUp == 0 || ifi.Flags&net.FlagRunning == 0 {
		return 0
	}
	return ifi.Index
}

// replyFilter keeps UDP from port 67 to port 68 over IPv4, of this LAN: a frame
// with a tag other than that of a mere priority is another's, though its VLAN's
// link has not taken it yet. Traffic of others ends at its third instruction, or
// at its seventh.
var replyFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv4, SkipTrue: 15},
	bpf.LoadAbsolute{Off: etherLen + 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: udp, SkipTrue: 13},
	bpf.LoadAbsolute{Off: etherLen + 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 11}, // a fragment
	bpf.LoadMemShift{Off: etherLen},
	bpf.LoadIndirect{Off: etherLen, Size: 4}, // both ports
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverPort<<16 | clientPort, SkipTrue: 8},
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_OTHERHOST, SkipTrue: 6}, // this host's own
	bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 3},
	bpf.LoadExtension{Num: bpf.ExtVLANTag},
	bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xfff},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
	bpf.RetConstant{Val: maxFrame},
	bpf.RetConstant{Val: 0},
}
