package netlinkutil

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestOverrun is about news that the kernel had to drop.
func TestOverrun(t *testing.T) {
	h := inNetns(t)
	veth := netlink.NewLinkAttrs()
	veth.Name, veth.Flags = "ul-d", net.FlagUp // of a link that is down an alias is no news
	if err := h.nl.LinkAdd(&netlink.Veth{LinkAttrs: veth, PeerName: "ul-e"}); err != nil {
		t.Fatal(err)
	}
	// The link stays, and its news is lost with that of others.
	stays, err := h.Follow("lo")
	if err != nil {
		t.Fatal(err)
	}
	goes, err := h.Follow("ul-d")
	if err != nil {
		t.Fatal(err)
	}
	cs := make(chan Change, 1000)
	go h.Changes(t.Context(), func(c Change) { cs <- c })
	if c := <-cs; !c.Lost {
		t.Fatalf("begins with %+v", c)
	}
	moved := make(chan int, 1000)
	go h.AddressChanges(t.Context(), func(index int) { moved <- index })
	if index := <-moved; index != 0 {
		t.Fatalf("begins with an address of link %d", index)
	}
	// The reader finds its buffer too small while it is held up.
	if err := unix.SetsockoptInt(h.watch.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	h.watch.feed.mu.Lock()
	for range 100 {
		for _, name := range []string{"a", "b"} {
			k, err := h.get("ul-d")
			if err != nil {
				t.Fatal(err)
			}
			if err := h.nl.LinkSetAlias(k, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := h.DeleteLink("ul-d"); err != nil {
		t.Fatal(err)
	}
	h.watch.feed.mu.Unlock()
	for late := time.After(5 * time.Second); ; {
		select {
		case c := <-cs:
			if !c.Lost {
				continue
			}
		case <-late:
			t.Fatal("nobody says that changes were lost")
		}
		break
	}
	for late := time.After(5 * time.Second); ; {
		select {
		case index := <-moved:
			if index != 0 {
				continue
			}
		case <-late:
			t.Fatal("nobody says that changes of addresses were lost")
		}
		break
	}
	// Whether it was deleted or moved is not known any more.
	if err := goes(t.Context()); err != nil {
		t.Errorf("the link that is gone: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := stays(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the link that is here: %v", err)
	}
	if n := len(h.watch.follows); n != 0 {
		t.Errorf("%d links are still followed", n)
	}
}

// waiting tells whether a listener has not taken all there is.
func (f *Feed[T]) waiting() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.listeners {
		if len(l.pending) > 0 {
			return true
		}
	}
	return false
}

// TestSlowListener is about one that takes its time, and holds nobody up.
func TestSlowListener(t *testing.T) {
	f := Feed[Change]{Lost: Change{Lost: true}}
	ctx, cancel := context.WithCancel(t.Context())
	taken := make(chan Change)
	done := make(chan error)
	quick := make(chan Change, 2*backlog)
	go f.Listen(ctx, func(c Change) { quick <- c })
	if c := <-quick; !c.Lost {
		t.Errorf("the other begins with %+v", c)
	}
	go func() { done <- f.Listen(ctx, func(c Change) { taken <- c }) }()
	if c := <-taken; !c.Lost {
		t.Errorf("begins with %+v", c)
	}
	for i := range backlog + 10 {
		f.Tell(Change{Link: Link{Index: i + 1}})
		for i == 0 && f.waiting() { // it takes the first alone
			time.Sleep(time.Millisecond)
		}
		if c := <-quick; c.Link.Index != i+1 {
			t.Fatalf("the other, of change %d, got %+v", i+1, c)
		}
	}
	n, lost := 0, 0
	for c := range taken {
		if n++; c.Lost {
			lost++
		}
		if c.Link.Index == backlog+10 {
			break
		}
	}
	if lost != 1 || n > backlog {
		t.Errorf("took %d changes, and %d times lost some", n, lost)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	for f.Listening() { // the other
		time.Sleep(time.Millisecond)
	}
}

// TestBlind is about a kernel that does not let us look into another netns.
func TestBlind(t *testing.T) {
	h := inNetns(t)
	start := time.Now()
	k := &netlink.Dummy{}
	if err := h.up(t.Context(), k, news{moved: true, netns: -1}); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d < blind || d > 2*blind {
		t.Errorf("up after %s", d)
	}
	if err := h.up(t.Context(), k, news{moved: true, netns: 77, index: 1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("in no netns: %v", err)
	}
}

// TestClose is about who still waits then.
func TestClose(t *testing.T) {
	h := inNetns(t)
	arrived, err := h.Follow("lo")
	if err != nil {
		t.Fatal(err)
	}
	h.watch.file.Close()
	if err := arrived(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("arrived: %v", err)
	}
}

// inNetns opens a netns of the test's own.
func inNetns(t *testing.T) *Host {
	t.Helper()
	var h *Host
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.New()
		if err == nil {
			defer ns.Close()
			h, err = Open()
		}
		failed <- err
	}()
	err := <-failed
	if errors.Is(err, unix.EPERM) && os.Getenv("UNDERLAY_NO_SKIP") == "" {
		t.Skip("no leave to make a netns")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}
