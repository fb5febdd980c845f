//go:build vm

package vmtest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// echo is a TCP server in a place: what comes goes back.
type echo struct {
	listener net.Listener

	mu      sync.Mutex
	callers map[netip.Addr]bool
}

const echoPort = "7007"

// serve runs a server on all addresses of a place until the test's end.
func serve(t *testing.T, p place) *echo {
	t.Helper()
	s := &echo{callers: map[netip.Addr]bool{}}
	err := within(p, func() (err error) {
		s.listener, err = net.Listen("tcp", ":"+echoPort)
		return err
	})
	if err != nil {
		t.Fatalf("a server in %q: %v", p, err)
	}
	t.Cleanup(func() { s.listener.Close() })
	go func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			caller := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
			s.mu.Lock()
			s.callers[caller] = true
			s.mu.Unlock()
			go func() {
				defer conn.Close()
				io.Copy(struct{ io.Writer }{conn}, conn)
			}()
		}
	}()
	return s
}

// called are the addresses of those who called since it was asked last.
func (s *echo) called() (callers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.callers {
		callers = append(callers, a.String())
	}
	clear(s.callers)
	return callers
}

// dial calls a server from a place.
func (p place) dial(to string) (conn net.Conn, err error) {
	err = within(p, func() (err error) {
		conn, err = net.DialTimeout("tcp", net.JoinHostPort(to, echoPort), 8*time.Second)
		return err
	})
	return conn, err
}

// talk keeps a connection busy until stop is closed: a block there and back,
// and again. Whatever is lost, or takes longer than patience, ends it.
func talk(conn net.Conn, patience, rest time.Duration, stop <-chan struct{}) (blocks int, err error) {
	defer conn.Close()
	out, in := bytes.Repeat([]byte("underlay"), 4096), make([]byte, 32768)
	for {
		out[0] = byte(blocks)
		conn.SetDeadline(time.Now().Add(patience))
		sent := make(chan error, 1)
		go func() { _, err := conn.Write(out); sent <- err }()
		if _, err = io.ReadFull(conn, in); err == nil {
			err = <-sent
		}
		if err == nil && !bytes.Equal(in, out) {
			err = fmt.Errorf("block %d came back as another", blocks)
		}
		if err != nil {
			return blocks, err
		}
		blocks++
		select {
		case <-stop:
			return blocks, nil
		case <-time.After(rest):
		}
	}
}

// calls wants a connection from one place to an address of another, where
// server runs, to be made at once, to carry data, and to come from one of the
// given addresses.
func calls(t *testing.T, what string, from place, to string, server *echo, seenAs ...string) {
	t.Helper()
	server.called()
	conn, err := from.dial(to)
	if err == nil {
		once := make(chan struct{})
		close(once)
		_, err = talk(conn, 8*time.Second, 0, once)
	}
	if err != nil {
		routes, _ := sh(from, "ip -br addr; ip route get "+to+"; ip route; ip -6 route; ip neigh")
		t.Errorf("%s: TCP to %s: %v\n%s\n%s", what, to, err, routes, holder(to))
		return
	}
	if callers := server.called(); len(callers) != 1 || !slices.Contains(seenAs, callers[0]) {
		t.Errorf("%s: %s saw the callers %v, want one of %v", what, to, callers, seenAs)
	}
}
