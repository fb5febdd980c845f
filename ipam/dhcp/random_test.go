package dhcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// TestRandom: whatever happens to servers, link and frames, no two containers
// have one address, what was told agrees with what is kept, and once all is well
// again every lease is held, all at a bounded price in frames.
func TestRandom(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		seed := rapid.Uint64().Draw(r, "seed")
		steps := rapid.SliceOfN(rapid.IntRange(0, 17), 1, 40).Draw(r, "steps")
		var failure error
		synctest.Test(t, func(t *testing.T) { failure = chaos(t, seed, steps) })
		if failure != nil {
			r.Fatal(failure)
		}
	})
}

// world is containers with leases, as those see it that are told of them.
type world struct {
	*client
	lan  *lan
	rand *rand.Rand

	mu    sync.Mutex
	luck  *rand.Rand          // of checks
	blind map[netip.Addr]bool // a check could not be made
	inUse map[string]Lease    // by key
	lost  map[string]bool
	saved map[string]Lease // what a store would have
}

func chaos(t *testing.T, seed uint64, steps []int) error {
	one, two := newFake("10.0.0.1", 10*time.Minute), newFake("10.0.0.2", 10*time.Minute)
	one.to, two.next, two.from = 179, netip.MustParseAddr("10.0.0.180"), 180
	n := newLAN(one, two)
	n.rand = rand.New(rand.NewPCG(seed, 1))
	w := &world{lan: n, rand: rand.New(rand.NewPCG(seed, 2)), luck: rand.New(rand.NewPCG(seed, 3)), inUse: map[string]Lease{}, blind: map[netip.Addr]bool{}, lost: map[string]bool{}, saved: map[string]Lease{}}
	w.begin(t)
	defer func() { w.Close() }()
	var trace []string
	for _, s := range steps {
		key := w.rand.IntN(8)
		trace = append(trace, fmt.Sprintf("%d/%d", s, key))
		w.step(t, s, key, one, two)
		synctest.Wait()
		if err := w.agree(); err != nil {
			return fmt.Errorf("after %s: %w", strings.Join(trace, " "), err)
		}
	}
	n.mend()
	n.set(0, 0)
	for _, s := range []*fake{one, two} {
		s.set(func() { s.away, s.refuse = false, false })
	}
	n.clear()
	time.Sleep(20 * time.Minute)
	synctest.Wait()
	if err := w.agree(); err != nil {
		return fmt.Errorf("after %s and a rest: %w", strings.Join(trace, " "), err)
	}
	for _, s := range w.Status() {
		if !s.Holds {
			return fmt.Errorf("after %s and a rest: %s is %s: %w", strings.Join(trace, " "), s.Key, s.State, s.Trouble)
		}
	}
	if q, most := len(n.questions()), len(w.Status())*20; q > most {
		return fmt.Errorf("after %s: %d questions in 20 minutes", strings.Join(trace, " "), q)
	}
	return nil
}

func (w *world) begin(t *testing.T) {
	w.client = w.lan.client(t, Config{Check: w.check})
	w.client.then = w.take
}

// check is the LAN's answer. It does not know of the host's own containers, as
// a probe from the parent does not of macvlan links; some others have addresses.
func (w *world) check(_ context.Context, _ string, a netip.Addr, mac net.HardwareAddr) (net.HardwareAddr, error) {
	time.Sleep(200 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.luck.IntN(20)
	switch {
	case n == 0:
		w.blind[a] = true
		return nil, errors.New("eth0 is busy")
	case a.As4()[3]%10 == 3:
		return hw(99), nil
	case n == 1:
		return mac, nil // its own, heard
	}
	return nil, nil
}

func (w *world) take(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.saved[e.Lease.Key]; !ok {
		return // not wanted any more
	}
	switch e.What {
	case Renewed, Changed:
		w.inUse[e.Lease.Key], w.saved[e.Lease.Key] = e.Lease, e.Lease
	case Lost:
		delete(w.inUse, e.Lease.Key)
	}
}

func (w *world) step(t *testing.T, s, n int, one, two *fake) {
	key := fmt.Sprint(n)
	flip := func(b *bool) { *b = !*b }
	switch s {
	case 0, 1, 2, 3:
		ask := asker(n)
		w.mu.Lock()
		if old, ok := w.saved[key]; ok {
			ask.Previous = &old
		}
		w.mu.Unlock()
		if s == 3 {
			w.Forget(key)
		}
		began := time.Now()
		l, err := w.try(5*time.Second, ask)
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("Acquire took %s", d)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil {
			w.inUse[key], w.saved[key] = l, l
		} else if w.status(key).Key == "" {
			delete(w.inUse, key)
			delete(w.saved, key)
		}
	case 4:
		w.mu.Lock()
		delete(w.inUse, key)
		delete(w.saved, key)
		w.mu.Unlock()
		w.Release(key)
	case 5:
		one.set(func() { flip(&one.away) })
	case 6:
		two.set(func() { flip(&two.away) })
	case 7:
		two.set(func() { flip(&two.refuse) })
	case 8:
		one.set(func() { clear(one.given); one.next = netip.MustParseAddr("10.0.0.100") }) // as from the factory
	case 9:
		w.lan.cut(errDown)
	case 10:
		w.lan.mend()
		w.Rouse()
	case 11:
		w.lan.set(w.rand.Float64()/2, 0)
	case 12:
		w.restart(t)
	case 13:
		time.Sleep(time.Duration(w.rand.IntN(int(time.Minute))))
	case 14:
		time.Sleep(time.Duration(w.rand.IntN(int(20 * time.Minute))))
	case 16, 17:
		w.lan.set(0, w.rand.Float64())
	case 15:
		w.lan.mend()
		w.lan.set(0, 0)
	}
}

// restart is that of the plugin: what was saved is restored.
func (w *world) restart(t *testing.T) {
	w.Close()
	if w.rand.IntN(2) == 0 {
		time.Sleep(time.Duration(w.rand.IntN(int(15 * time.Minute))))
	}
	w.mu.Lock()
	var all []Lease
	now := time.Now()
	for k, l := range w.saved {
		all = append(all, l)
		if l.Expired(now) {
			delete(w.inUse, k)
		} else {
			w.inUse[k] = l
		}
	}
	w.mu.Unlock()
	w.begin(t)
	if err := w.Restore(all); err != nil {
		t.Error(err)
	}
}

// agree compares what was told with what is kept.
func (w *world) agree() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	has := map[netip.Addr]string{}
	for k, l := range w.inUse {
		if o, ok := has[l.Addr.Addr()]; ok {
			return fmt.Errorf("%s and %s both have %s", o, k, l.Addr)
		}
		has[l.Addr.Addr()] = k
		if s := w.status(k); !s.Holds || s.Addr != l.Addr || !s.Expires.Equal(l.Expires) {
			return fmt.Errorf("%s was told to have %s, but it is %s with %s", k, l.Addr, s.State, s.Addr)
		}
		if l.Addr.Addr().As4()[3]%10 == 3 && !w.blind[l.Addr.Addr()] {
			return fmt.Errorf("%s has %s, which another has", k, l.Addr)
		}
		if l.Expired(time.Now()) {
			return fmt.Errorf("%s has %s, which has expired", k, l.Addr)
		}
	}
	for _, l := range w.Leases() {
		if _, ok := w.inUse[l.Key]; !ok {
			return fmt.Errorf("%s has %s and was not told", l.Key, l.Addr)
		}
	}
	return nil
}
