package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Lack skips a test for which the machine lacks something, or fails it where
// UNDERLAY_NO_SKIP says that nothing may be lacking.
func Lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("UNDERLAY_NO_SKIP") != "" {
		t.Fatalf("%s is lacking, and UNDERLAY_NO_SKIP is set", what)
	}
	t.Skipf("%s is lacking", what)
}

// Space is a network namespace: a thread that never leaves it.
type Space struct {
	T   testing.TB
	TID int
	do  chan func()
}

// NewSpace makes one, which ends with the test. Its lo is up.
func NewSpace(t testing.TB) *Space {
	t.Helper()
	s := &Space{T: t, do: make(chan func())}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		s.TID = unix.Gettid()
		failed <- nil
		for f := range s.do {
			f()
		}
	}()
	if err := <-failed; errors.Is(err, unix.EPERM) {
		Lack(t, "leave to make a netns")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(s.do) })
	s.IP("link set lo up")
	return s
}

// Run runs f in the namespace.
func (s *Space) Run(f func()) {
	done := make(chan struct{})
	s.do <- func() { defer close(done); f() }
	<-done
}

// Try runs lines of "ip", all or up to the first that fails.
func (s *Space) Try(lines ...string) error {
	var err error
	s.Run(func() {
		c := exec.Command("ip", "-batch", "-")
		c.Stdin = strings.NewReader(strings.Join(lines, "\n"))
		var out []byte
		if out, err = c.CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	})
	return err
}

// IP is Try for what must not fail.
func (s *Space) IP(lines ...string) {
	s.T.Helper()
	if err := s.Try(lines...); err != nil {
		s.T.Fatal(err)
	}
}

// Set writes a file of /proc/sys/net, which shows the netns of the thread that
// opens it.
func (s *Space) Set(path, value string) {
	s.T.Helper()
	var err error
	s.Run(func() { err = os.WriteFile(path, []byte(value), 0) })
	if err != nil {
		s.T.Fatal(err)
	}
}
