package dhcp6

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"underlay/internal/nic"
)

// tap is the wire of a real link: one packet socket.
type tap struct {
	link  net.Interface
	mac   mac
	addr  netip.Addr // link-local: the host's, or one of the client's own
	own   bool
	conn  *packet.Conn
	raw   syscall.RawConn
	group int // a socket that is a member of the address's multicast group; -1: none

	closing sync.Once
	closed  chan struct{}
}

// openTap opens one. hear is called with what servers send to it, over when it
// has failed.
func openTap(name string, all bool, hear func(payload []byte, from netip.Addr), over func(wire, error)) (wire, error) {
	ifi, err := running(name)
	if err != nil {
		return nil, err
	}
	t := &tap{link: *ifi, mac: mac(ifi.HardwareAddr), closed: make(chan struct{})}
	t.addr, t.own = address(ifi)
	program, err := bpf.Assemble(filter(ifi.Index))
	if err != nil {
		return nil, err
	}
	protocol := etherIP6
	if all {
		protocol = unix.ETH_P_ALL
	}
	if t.conn, err = packet.Listen(ifi, packet.Raw, protocol, &packet.Config{Filter: program}); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w; underlay needs CAP_NET_RAW", err)
		}
		return nil, fmt.Errorf("hearing DHCPv6 on %s: %w", name, err)
	}
	if t.raw, err = t.conn.SyscallConn(); err != nil {
		t.conn.Close()
		return nil, err
	}
	t.prepare()
	go func() {
		err := t.listen(hear)
		select {
		case <-t.closed:
		default:
			over(t, err)
		}
	}()
	return t, nil
}

// running is a link that can carry frames.
func running(name string) (*net.Interface, error) {
	ifi, err := nic.Find(name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("parent %s is not there", name)
	case err != nil:
		return nil, fmt.Errorf("looking at parent %s: %w", name, err)
	case len(ifi.HardwareAddr) != len(mac{}):
		return nil, fmt.Errorf("parent %s is no Ethernet link, and DHCPv6 needs one", name)
	case ifi.Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("parent %s is down: ip link set %s up", name, name)
	case ifi.Flags&net.FlagRunning == 0:
		return nil, fmt.Errorf("parent %s has no carrier: is its cable in?", name)
	}
	return ifi, nil
}

// address is what a client on a link speaks from: the host's link-local address
// there, so that the kernel does all that belongs to it; own if it has none, as
// where IPv6 is off. One of the client's own on a host that has one would make a
// host that forwards send redirects, and pass its answers on.
func address(ifi *net.Interface) (addr netip.Addr, own bool) {
	table, _ := os.ReadFile("/proc/thread-self/net/if_inet6")
	if addr, ok := linkLocal(string(table), ifi.Name); ok {
		return addr, false
	}
	return ownAddress(mac(ifi.HardwareAddr)), true
}

// linkLocal finds a link-local address that may be used in the kernel's table:
// address, index, prefix length, scope, flags, name (net/ipv6/addrconf.c,
// if6_seq_show).
func linkLocal(table, link string) (netip.Addr, bool) {
	const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) != 6 || f[5] != link {
			continue
		}
		b, err := hex.DecodeString(f[0])
		flags, ferr := strconv.ParseUint(f[4], 16, 32)
		if a, ok := netip.AddrFromSlice(b); err == nil && ferr == nil && ok && a.IsLinkLocalUnicast() && flags&unusable == 0 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// prepare makes the NIC, and a switch that snoops, let neighbour solicitations
// for the address through. Where the host's IPv6 is off, only the NIC can be told.
func (t *tap) prepare() {
	t.group = -1
	_ = t.raw.Control(func(fd uintptr) {
		// Else a socket for all protocols would be handed a copy of each frame that
		// leaves, only to have it filtered.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	})
	if !t.own {
		return
	}
	to, err := ndp.SolicitedNodeMulticast(t.addr)
	if err != nil {
		return
	}
	m := unix.PacketMreq{Ifindex: int32(t.link.Index), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(mac{}))}
	ether := group(to)
	copy(m.Address[:], ether[:])
	_ = t.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m)
	})
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{
		Multiaddr: to.As16(), Interface: uint32(t.link.Index),
	}); err != nil {
		unix.Close(fd)
		return
	}
	t.group = fd
}

func (t *tap) listen(hear func(payload []byte, from netip.Addr)) error {
	b := make([]byte, maxFrame)
	var n int
	var err error
	read := func(fd uintptr) bool {
		for n, err = unix.Read(int(fd), b); err == unix.EINTR; {
			n, err = unix.Read(int(fd), b)
		}
		return err != unix.EAGAIN
	}
	for {
		if e := t.raw.Read(read); e != nil {
			return e
		}
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		p, ok := unpack(b[:n])
		if !ok {
			continue
		}
		if payload, ok := p.answerTo(t.addr); ok {
			hear(payload, p.src)
		} else if t.own {
			if frame := p.reply(t.addr, t.mac); frame != nil {
				_ = t.put(frame) // it will be asked again
			}
		}
	}
}

func (t *tap) send(payload []byte) error { return t.put(datagram(t.mac, t.addr, payload)) }

// put sends a frame, or drops it where the kernel's queue is full.
func (t *tap) put(frame []byte) error {
	var err error
	if e := t.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), frame)
		return true
	}); e != nil {
		return e
	}
	return err
}

func (t *tap) sound() error {
	ifi, err := running(t.link.Name)
	if err != nil {
		return err
	}
	if ifi.Index != t.link.Index || mac(ifi.HardwareAddr) != t.mac {
		return errors.New("the link is another")
	}
	if addr, own := address(ifi); own != t.own || addr != t.addr {
		return errors.New("the link has another link-local address")
	}
	return nil
}

func (t *tap) close() {
	t.closing.Do(func() {
		close(t.closed)
		t.conn.Close()
		if t.group >= 0 {
			unix.Close(t.group)
		}
	})
}

// filter keeps neighbour solicitations, and datagrams to clients, that are of the
// LAN of the link with that index: its sockets are handed frames of VLANs, too,
// with the tag or, if the VLAN has no link, without it, but as another host's. Tag 0
// is no VLAN's.
func filter(index int) []bpf.Instruction {
	drop := bpf.RetConstant{Val: 0}
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: 1},
		drop,
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: unix.PACKET_MULTICAST, SkipTrue: 1},
		drop,
		bpf.LoadExtension{Num: bpf.ExtVLANTag},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xfff},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: etherLen - 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIP6, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: etherLen + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: udp, SkipFalse: 3},
		bpf.LoadAbsolute{Off: etherLen + ip6Len + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: clientPort, SkipTrue: 4},
		drop,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmp6, SkipFalse: 3},
		bpf.LoadAbsolute{Off: etherLen + ip6Len, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipFalse: 1},
		bpf.RetConstant{Val: maxFrame},
		drop,
	}
}
