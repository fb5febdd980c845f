package netlinkutil

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Change is what has become of a link, or the word that this is not known.
type Change struct {
	Link Link // as it is now, or last was; Master and Lower stay empty, for the kernel tells only their indices
	Gone bool // deleted, or moved to another netns
	Lost bool // changes went by unseen, Link is zero: look at all links that matter
}

// backlog is how many changes may wait for a slow listener.
const backlog = 4096

// Feed hands news to whoever listens. It is ready with Lost alone; exported for
// the fake kernel.
type Feed[T any] struct {
	Lost T // says that some went by unseen

	mu        sync.Mutex
	listeners map[*listener[T]]struct{}
}

type listener[T any] struct {
	news    chan struct{} // of capacity 1
	pending []T
}

// Listening tells whether anybody does.
func (f *Feed[T]) Listening() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.listeners) > 0
}

// Tell gives news to all listeners and waits for none: whoever is too slow
// gets Lost instead of what it has not taken yet.
func (f *Feed[T]) Tell(c T) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.listeners {
		if len(l.pending) < backlog {
			l.pending = append(l.pending, c)
		} else {
			l.pending = []T{f.Lost}
		}
		select {
		case l.news <- struct{}{}:
		default:
		}
	}
}

// Listen calls each with all news, one after the other, until ctx ends, and
// returns why it did. The first is Lost: whoever looks for itself then misses
// nothing.
func (f *Feed[T]) Listen(ctx context.Context, each func(T)) error {
	l := &listener[T]{news: make(chan struct{}, 1), pending: []T{f.Lost}}
	l.news <- struct{}{}
	f.mu.Lock()
	if f.listeners == nil {
		f.listeners = map[*listener[T]]struct{}{}
	}
	f.listeners[l] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.listeners, l)
		f.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.news:
		}
		f.mu.Lock()
		cs := l.pending
		l.pending = nil
		f.mu.Unlock()
		for _, c := range cs {
			if ctx.Err() != nil {
				break
			}
			each(c)
		}
	}
}

// Changes calls each with every change of a link of this netns, one after the
// other, until ctx ends, and returns why it did. It begins with one that is
// Lost: whoever looks at the links then misses nothing. Of a link that is down
// the kernel does not tell a change of its alias (netdev_state_change).
func (h *Host) Changes(ctx context.Context, each func(Change)) error {
	if err := h.watch.start(unix.RTNLGRP_LINK); err != nil {
		return err
	}
	return h.watch.feed.Listen(ctx, each)
}

// AddressChanges calls each with the index of a link of this netns whenever an
// address of it comes or goes, one after the other, until ctx ends, and returns
// why it did. The index 0 says that anything may have changed; it is the first.
// The kernel also tells of each router advertisement that makes an address last
// longer.
func (h *Host) AddressChanges(ctx context.Context, each func(index int)) error {
	if err := h.watch.start(unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR); err != nil {
		return err
	}
	return h.watch.addresses.Listen(ctx, each)
}

// watch listens to the kernel's news of links and addresses: one socket and
// one goroutine for everyone.
type watch struct {
	fd        int
	file      *os.File // of fd, for Go's poller
	feed      Feed[Change]
	addresses Feed[int]

	mu      sync.Mutex
	started bool
	follows map[int]map[*follow]struct{} // by the index of the link
}

// newWatch opens the socket. It hears nothing before start.
func newWatch() (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	// A message takes some 4 KiB of the buffer, of which there is but 208 KiB by
	// default. FORCE wants CAP_NET_ADMIN in the first user namespace.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
	}
	return &watch{
		fd: fd, file: os.NewFile(uintptr(fd), "netlink"),
		feed: Feed[Change]{Lost: Change{Lost: true}}, follows: map[int]map[*follow]struct{}{},
	}, nil
}

// start begins to listen to the groups (RTNLGRP_…), the first time that somebody
// wants them. It listens when it returns.
func (w *watch) start(groups ...int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range groups { // again is no error
		err := unix.SetsockoptInt(w.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		if err != nil {
			return Explain(err, "", "listening for changes of links and addresses")
		}
	}
	if !w.started {
		w.started = true
		go w.run()
	}
	return nil
}

// run ends when the socket is closed.
func (w *watch) run() {
	defer w.miss(errClosed)
	conn, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10) // the kernel makes no longer messages
	lost := false
	for {
		var n int
		var from unix.Sockaddr
		var err error
		closed := conn.Read(func(fd uintptr) bool {
			n, from, err = unix.Recvfrom(int(fd), buf, 0)
			// After an overrun the kernel drops messages until its queue has been
			// read to the end (af_netlink.c, NETLINK_S_CONGESTED), and says so
			// once, at the beginning. Only at the end is it time to look.
			return !errors.Is(err, unix.EAGAIN) || lost
		})
		switch {
		case closed != nil:
			return
		case err == nil:
			if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid == nl.PidKernel {
				// What cannot be read may be anything: all is looked at.
				lost = safely(func() error { w.hear(buf[:n]); return nil }) != nil || lost
			}
		case errors.Is(err, unix.EAGAIN):
			lost = false
			w.feed.Tell(w.feed.Lost)
			w.addresses.Tell(w.addresses.Lost)
			w.miss(nil)
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS):
			lost = true
		default: // ENOMEM
			lost = true
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// hear takes what the kernel sent in one go. A message is not kept: its bytes
// are the next one's.
func (w *watch) hear(b []byte) {
	ms, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return
	}
	for _, m := range ms {
		if (m.Header.Type == unix.RTM_NEWADDR || m.Header.Type == unix.RTM_DELADDR) && len(m.Data) >= unix.SizeofIfAddrmsg {
			w.addresses.Tell(int(nl.DeserializeIfAddrmsg(m.Data).Index))
			continue
		}
		gone := m.Header.Type == unix.RTM_DELLINK
		if !gone && m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		// Bridges talk here too, of their ports: RTM_DELLINK is then the end of
		// a membership.
		info := nl.DeserializeIfInfomsg(m.Data)
		if info.Family != unix.AF_UNSPEC {
			continue
		}
		if gone {
			w.left(int(info.Index), m.Data[unix.SizeofIfInfomsg:])
		}
		if !w.feed.Listening() {
			continue
		}
		k, err := netlink.LinkDeserialize((*unix.NlMsghdr)(&m.Header), m.Data)
		if err != nil || k.Attrs().MTU == 0 && len(k.Attrs().HardwareAddr) == 0 {
			continue // a wireless event, which has but a name
		}
		w.feed.Tell(Change{Link: link(k), Gone: gone})
	}
}
