package privilege

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Capability is a number of linux/capability.h.
type Capability int

// The capabilities that underlay may need.
const (
	NetAdmin Capability = unix.CAP_NET_ADMIN // links, addresses, routes
	NetRaw   Capability = unix.CAP_NET_RAW   // ARP and neighbour discovery
	SysAdmin Capability = unix.CAP_SYS_ADMIN // to enter a network namespace
)

func (c Capability) String() string {
	switch c {
	case NetAdmin:
		return "CAP_NET_ADMIN"
	case NetRaw:
		return "CAP_NET_RAW"
	case SysAdmin:
		return "CAP_SYS_ADMIN"
	}
	return fmt.Sprintf("capability %d", int(c))
}

// ErrNotDropped says that a process goes on with privileges it does not need.
var ErrNotDropped = errors.New("privileges that underlay does not need stay with it")

// Drop leaves the process, all threads of it, no capabilities but keep, in no
// set (capabilities(7)), and none to be gained by an exec. It returns those of
// keep that the process lacks. Programs built with cgo cannot drop anything,
// since the C library's threads are not Go's to change (syscall.AllThreadsSyscall):
// ErrNotDropped.
func Drop(keep ...Capability) (lacking []Capability, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return nil, fmt.Errorf("%w: capget: %w", ErrNotDropped, err)
	}
	var left [2]unix.CapUserData
	for _, c := range keep {
		word, bit := c/32, uint32(1)<<(c%32)
		if has[word].Permitted&bit == 0 {
			lacking = append(lacking, c)
			continue
		}
		left[word].Permitted |= bit
		left[word].Effective |= bit
	}
	prctl := func(option, arg2, arg3 uintptr) error {
		// The C library's threads would be left out, hence ENOTSUP with cgo.
		if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, option, arg2, arg3, 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return lacking, fmt.Errorf("%w: no_new_privs: %w", ErrNotDropped, err)
	}
	// The bounding set first: it takes CAP_SETPCAP, which goes next.
	var errs []error
	for c := Capability(0); ; c++ {
		in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			break // past the kernel's last
		}
		if in == 0 || left[c/32].Permitted&(1<<(c%32)) != 0 {
			continue
		}
		if err := prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil {
			errs = append(errs, fmt.Errorf("bounding set: %w", err))
			break
		}
	}
	// A kernel without ambient capabilities (before 4.3) has none to clear.
	if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("ambient set: %w", err))
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&left[0])), 0)
	if errno != 0 {
		errs = append(errs, fmt.Errorf("capset: %w", errno))
	}
	if len(errs) > 0 {
		err = fmt.Errorf("%w: %w", ErrNotDropped, errors.Join(errs...))
	}
	return lacking, err
}

// Names lists capabilities for a person.
func Names(list []Capability) string {
	names := make([]string, len(list))
	for i, c := range list {
		names[i] = c.String()
	}
	return strings.Join(names, ", ")
}
