package netlinkutil_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

func changeClauses() []clause {
	return []clause{
		{"changes", nil, testChanges},
		{"changes of ports", nil, testChangesOfPorts},
		{"changes end", nil, testChangesEnd},
		{"carrier", nil, testCarrier},
		{"follow", nil, testFollow},
		{"follow to a link that is up", nil, testFollowLate},
		{"follow a link that is deleted", nil, testFollowDeleted},
		{"follow a link that vanishes", nil, testFollowVanished},
		{"follow a link that returns", nil, testFollowReturned},
		{"follow no longer", nil, testFollowNoLonger},
		{"follow many", nil, testFollowMany},
		{"follow a port", nil, testFollowPort},
	}
}

// patience is for what should happen in milliseconds, or within the second for
// which the kernel may put a carrier's news off.
const patience = 10 * time.Second

// listen hands over the changes from now on.
func listen(t *testing.T, w world) <-chan netlinkutil.Change {
	t.Helper()
	cs := make(chan netlinkutil.Change, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Changes(ctx, func(c netlinkutil.Change) { cs <- c }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Changes ended with %v", err)
		}
	})
	await(t, cs, "that it begins", func(c netlinkutil.Change) bool { return c.Lost && c.Link.Name == "" && !c.Gone })
	return cs
}

// await takes changes until the wanted one.
func await(t *testing.T, cs <-chan netlinkutil.Change, what string, is func(netlinkutil.Change) bool) netlinkutil.Change {
	t.Helper()
	var seen []string
	for late := time.After(patience); ; {
		select {
		case c := <-cs:
			if is(c) {
				return c
			}
			seen = append(seen, fmt.Sprintf("\n%+v", c))
		case <-late:
			t.Fatalf("no word %s; only%s", what, seen)
		}
	}
}

func testChanges(t *testing.T, w world) {
	cs := listen(t, w)
	is := func(name string, is func(netlinkutil.Link) bool) func(netlinkutil.Change) bool {
		return func(c netlinkutil.Change) bool { return c.Link.Name == name && !c.Gone && !c.Lost && is(c.Link) }
	}
	w.AddNIC("eth0")
	c := await(t, cs, "of a NIC", is("eth0", func(l netlinkutil.Link) bool { return l.Up && l.Carrier }))
	if l := get(t, w, "eth0"); fmt.Sprintf("%+v", c.Link) != fmt.Sprintf("%+v", l) {
		t.Errorf("told\n%+v, seen\n%+v", c.Link, l)
	}
	w.SetDown("eth0")
	await(t, cs, "that it is down", is("eth0", func(l netlinkutil.Link) bool { return !l.Up && !l.Carrier }))
	ok(t, w.SetUp("eth0"))
	await(t, cs, "that it is up", is("eth0", func(l netlinkutil.Link) bool { return l.Up && l.Carrier }))

	made := add(t, w, sub("ul-1", mode.Default))
	c = await(t, cs, "of a sub-interface", is("ul-1", func(netlinkutil.Link) bool { return true }))
	if l := c.Link; l.Index != made.Index || l.Kind != "macvlan" || l.MTU != 1500 || l.Up || l.MAC.String() != made.MAC.String() {
		t.Errorf("told %+v", l)
	}
	w.Rename("ul-1", "ul-2")
	await(t, cs, "of its new name", is("ul-2", func(l netlinkutil.Link) bool { return l.Index == made.Index }))
	ok(t, w.DeleteLink("ul-2"))
	await(t, cs, "that it is gone", func(c netlinkutil.Change) bool {
		return c.Gone && c.Link.Name == "ul-2" && c.Link.Index == made.Index
	})
	made = add(t, w, sub("ul-1", mode.Default))
	await(t, cs, "that it is there again", is("ul-1", func(l netlinkutil.Link) bool { return l.Index == made.Index }))
	ok(t, w.Move("ul-1"))
	await(t, cs, "that it has moved", func(c netlinkutil.Change) bool { return c.Gone && c.Link.Index == made.Index })
	ok(t, w.Return("ul-1"))
	await(t, cs, "that it is back", is("ul-1", func(l netlinkutil.Link) bool { return !l.Up }))
}

func testChangesOfPorts(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddBridge("br0")
	cs := listen(t, w)
	w.Enslave("eth0", "br0")
	w.Enslave("eth0", "")
	ok(t, w.DeleteLink("br0"))
	await(t, cs, "that the bridge is gone", func(c netlinkutil.Change) bool {
		if c.Gone && c.Link.Name == "eth0" {
			t.Error("the port is gone with its bridge")
		}
		return c.Gone && c.Link.Name == "br0"
	})
}

func testChangesEnd(t *testing.T, w world) {
	w.AddNIC("eth0")
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	first, second := make(chan error), listen(t, w)
	go func() {
		first <- w.Changes(ctx, func(c netlinkutil.Change) {
			if c.Link.Name == "eth0" && !c.Link.Up {
				cancel(why)
			}
		})
	}()
	time.Sleep(20 * time.Millisecond) // or that Lost is the only one
	w.SetDown("eth0")
	if err := <-first; !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
	ok(t, w.SetUp("eth0"))
	await(t, second, "of the other's", func(c netlinkutil.Change) bool { return c.Link.Name == "eth0" && !c.Link.Up })
	await(t, second, "of eth0", func(c netlinkutil.Change) bool { return c.Link.Name == "eth0" && c.Link.Up })
}

func testCarrier(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	ok(t, w.SetUp("ul-1"))
	cs := listen(t, w)
	w.Unplug("eth0")
	await(t, cs, "of a pulled wire", func(c netlinkutil.Change) bool { return c.Link.Name == "ul-1" && c.Link.Up && !c.Link.Carrier })
	for _, name := range []string{"eth0", "ul-1"} {
		if l := get(t, w, name); !l.Up || l.Carrier {
			t.Errorf("unplugged %+v", l)
		}
	}
	w.Plug("eth0")
	await(t, cs, "of a wire", func(c netlinkutil.Change) bool { return c.Link.Name == "ul-1" && c.Link.Up && c.Link.Carrier })
	if l := get(t, w, "eth0"); !l.Up || !l.Carrier {
		t.Errorf("plugged %+v", l)
	}
}

// follows calls Follow and, in its own time, arrived.
func follows(t *testing.T, w world, name string) <-chan error {
	t.Helper()
	arrived, err := w.Follow(name)
	ok(t, err)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	go func() { done <- arrived(ctx) }()
	return done
}

func notYet(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("arrived: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
}

func testFollow(t *testing.T, w world) {
	_, err := w.Follow("ul-1")
	refused(t, err, netlinkutil.ErrNotFound, "link ul-1 does not exist")
	_, err = w.Follow("")
	refused(t, err, netlinkutil.ErrInvalid)
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	one, two := follows(t, w, "ul-1"), follows(t, w, "ul-1")
	notYet(t, one)
	ok(t, w.SetUp("ul-1")) // here, that is
	notYet(t, one)
	w.Take("ul-1")
	notYet(t, one)
	w.Arrive("ul-1")
	ok(t, <-one)
	ok(t, <-two)
}

func testFollowLate(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	arrived, err := w.Follow("ul-1")
	ok(t, err)
	ok(t, w.Move("ul-1"))
	add(t, w, sub("ul-1", mode.Default)) // another, of that name
	ok(t, arrived(t.Context()))
}

func testFollowDeleted(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	done := follows(t, w, "ul-1")
	ok(t, w.DeleteLink("ul-1"))
	refused(t, <-done, netlinkutil.ErrNotFound, "link ul-1 was deleted")
}

func testFollowVanished(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	done := follows(t, w, "ul-1")
	w.Take("ul-1")
	notYet(t, done)
	w.Vanish("ul-1")
	refused(t, <-done, netlinkutil.ErrNotFound, "link ul-1 was deleted")
}

func testFollowReturned(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	done := follows(t, w, "ul-1")
	w.Take("ul-1")
	notYet(t, done)
	ok(t, w.Return("ul-1"))
	refused(t, <-done, netlinkutil.ErrExists, "link ul-1 came back")
}

func testFollowNoLonger(t *testing.T, w world) {
	w.AddNIC("eth0")
	add(t, w, sub("ul-1", mode.Default))
	before, err := w.Follow("ul-1")
	ok(t, err)
	after, err := w.Follow("ul-1")
	ok(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := before(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("arrived: %v", err)
	}
	w.Take("ul-1")
	if err := after(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("arrived: %v", err)
	}
}

func testFollowMany(t *testing.T, w world) {
	w.AddNIC("eth0")
	var wg sync.WaitGroup
	var moving sync.Mutex // the test's sockets into the container are one
	for i := range 16 {
		wg.Go(func() {
			s := sub(fmt.Sprintf("ul-%x", i), mode.Default)
			if _, err := w.AddSubInterface(s); err != nil {
				t.Error(err)
				return
			}
			arrived, err := w.Follow(s.Name)
			if err != nil {
				t.Error(err)
				return
			}
			wg.Go(func() {
				if err := arrived(t.Context()); err != nil {
					t.Errorf("%s arrived: %v", s.Name, err)
				}
			})
			moving.Lock()
			defer moving.Unlock()
			w.Take(s.Name)
			w.Arrive(s.Name)
		})
	}
	wg.Wait()
}

// testFollowPort is about the kernel's other RTM_DELLINK: the end of a port.
func testFollowPort(t *testing.T, w world) {
	w.AddNIC("eth0")
	w.AddNIC("eth1")
	w.AddBridge("br0")
	done := follows(t, w, "eth1")
	w.Enslave("eth1", "br0")
	w.Enslave("eth1", "")
	notYet(t, done)
	w.SetDown("eth1")
	w.Take("eth1")
	notYet(t, done)
	w.Arrive("eth1")
	ok(t, <-done)
}
