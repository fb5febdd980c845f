//go:build vm

package vmtest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// lasting is a connection that is to last, whatever happens on the way.
type lasting struct {
	t    *testing.T
	what string
	conn net.Conn
	stop chan struct{}
	done chan struct{}
	once sync.Once

	blocks  int
	longest time.Duration // between two answers
	err     error
}

// last makes a connection to a server and keeps it busy until end, or the
// test's.
func last(t *testing.T, what string, from place, to string) *lasting {
	t.Helper()
	conn, err := from.dial(to)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	l := &lasting{t: t, what: what, conn: conn, stop: make(chan struct{}), done: make(chan struct{})}
	go l.run()
	t.Cleanup(l.end)
	return l
}

func (l *lasting) run() {
	defer close(l.done)
	defer l.conn.Close()
	block := make([]byte, 1024)
	answered := time.Now()
	for {
		l.conn.SetDeadline(time.Now().Add(30 * time.Second))
		block[0] = byte(l.blocks)
		if _, l.err = l.conn.Write(block); l.err != nil {
			return
		}
		for n := 0; n < len(block); {
			var k int
			if k, l.err = l.conn.Read(block[n:]); l.err != nil {
				return
			}
			n += k
		}
		l.blocks++
		l.longest = max(l.longest, time.Since(answered))
		answered = time.Now()
		select {
		case <-l.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end ends it, and tells how long the longest pause was.
func (l *lasting) end() {
	l.t.Helper()
	l.once.Do(func() {
		close(l.stop)
		<-l.done
		if l.err != nil {
			l.t.Errorf("%s: the connection was lost after %d blocks: %v", l.what, l.blocks, l.err)
			return
		}
		l.t.Logf("%s: one connection, %d blocks, the longest pause %.2f s", l.what, l.blocks, l.longest.Seconds())
	})
}
