// Package nic finds one network interface of the host. It exists for those who
// speak to LANs by packet sockets, and ask often.
package nic

import (
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Find is net.InterfaceByName without a list of all links, which takes
// milliseconds on a host with hundreds of them and waits for the lock that every
// change of a link holds. Of the flags it tells FlagUp and FlagRunning. The error of
// a name that no link has is unix.ENODEV; a link that is not Ethernet has no
// address.
func Find(name string) (*net.Interface, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return nil, unix.ENODEV // too long, or empty
	}
	ifi := &net.Interface{Name: name}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, r); err != nil {
		return nil, err
	}
	ifi.Index = int(r.Uint32())
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r); err != nil {
		return nil, err
	}
	flags := r.Uint16()
	if flags&unix.IFF_UP != 0 {
		ifi.Flags |= net.FlagUp
	}
	if flags&unix.IFF_RUNNING != 0 {
		ifi.Flags |= net.FlagRunning
	}
	// struct ifreq (linux/if.h) with a struct sockaddr, which unix.Ifreq lacks.
	var hw struct {
		name [unix.IFNAMSIZ]byte
		kind uint16
		addr [14]byte
		_    [8]byte
	}
	copy(hw.name[:], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&hw))); e != 0 {
		return nil, e
	}
	if hw.kind == unix.ARPHRD_ETHER {
		ifi.HardwareAddr = append(net.HardwareAddr{}, hw.addr[:6]...)
	}
	return ifi, nil
}
