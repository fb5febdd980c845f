package dhcp6

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// act is a step of a history.
type act struct {
	What string
	Key  int
	For  time.Duration
}

// TestModel: histories of containers, servers, links and restarts of the plugin;
// whatever happens, no two containers have one address, only what is wanted is
// kept, and all is well soon after the last fault is over.
func TestModel(t *testing.T) {
	acts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) act {
		return act{
			What: rapid.SampledFrom([]string{
				"acquire", "acquire", "acquire", "release", "forget", "silent", "talk", "unplug", "plug", "restart", "decline", "rapid", "loss",
			}).Draw(t, "what"),
			Key: rapid.IntRange(0, 5).Draw(t, "key"),
			For: rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second, 20 * time.Second, 3 * time.Minute, 10 * time.Minute}).Draw(t, "for"),
		}
	}), 1, 40)
	rapid.Check(t, func(r *rapid.T) {
		history := acts.Draw(r, "history")
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = live(t, history) })
		if wrong != "" {
			r.Fatal(wrong)
		}
	})
}

// live lives a history, and says what is wrong with it.
func live(t *testing.T, history []act) string {
	w := newWorld(t)
	s := w.server(1)
	s.t1, s.t2, s.preferred, s.valid = 150*time.Second, 240*time.Second, 300*time.Second, 300*time.Second
	wanted := map[string]bool{}
	lost := map[string]bool{}
	check := func() string {
		for _, e := range w.told() {
			switch k := e.Lease.Key; e.What {
			case Lost:
				if lost[k] {
					return k + " was lost twice"
				}
				lost[k] = true
			case Changed:
				delete(lost, k)
			default:
				if lost[k] {
					return fmt.Sprintf("%s is %s after it was lost", k, e.What)
				}
			}
		}
		seen := map[netip.Addr]string{}
		keys := 0
		for _, l := range w.Leases() {
			if !wanted[l.Key] {
				return l.Key + " is not wanted"
			}
			keys++
			if over(l.Expires, time.Now()) || !l.Addr.IsValid() || lost[l.Key] {
				continue
			}
			if other, taken := seen[l.Addr]; taken {
				return fmt.Sprintf("%s and %s have %s", l.Key, other, l.Addr)
			}
			seen[l.Addr] = l.Key
		}
		if keys != len(wanted) {
			return fmt.Sprintf("%d of %d are kept", keys, len(wanted))
		}
		return ""
	}
	for _, a := range history {
		key := ask(a.Key).Key
		switch a.What {
		case "acquire":
			if _, err := w.acquire(ask(a.Key)); err == nil {
				wanted[key] = true
			}
		case "release", "forget":
			if a.What == "release" {
				w.Release(key)
			} else {
				w.Forget(key)
			}
			delete(wanted, key)
			delete(lost, key)
		case "silent", "talk":
			w.set(func() { s.silent = a.What == "silent" })
		case "unplug":
			w.unplug()
		case "plug":
			w.plug()
		case "rapid":
			w.set(func() { s.rapid = !s.rapid })
		case "loss":
			w.set(func() { w.loss = float64(a.Key) / 10 })
		case "decline":
			w.Decline(key, fmt.Errorf("because"))
		case "restart":
			synctest.Wait()
			var kept []Lease
			for _, l := range w.Leases() {
				kept = append(kept, l.Lease)
			}
			w.told()
			b, _ := json.Marshal(kept)
			w.Close()
			kept = nil
			if err := json.Unmarshal(b, &kept); err != nil {
				return err.Error()
			}
			old := w
			w = newWorld(t)
			w.servers, s.w, w.down, w.loss = old.servers, w, old.down, old.loss
			clear(lost)
			if err := w.Restore(kept); err != nil {
				return err.Error()
			}
		}
		time.Sleep(a.For)
		synctest.Wait()
		if wrong := check(); wrong != "" {
			return fmt.Sprintf("after %v: %s", a, wrong)
		}
	}
	w.set(func() { s.silent, w.loss = false, 0 })
	w.plug()
	time.Sleep(20 * time.Minute)
	synctest.Wait()
	if wrong := check(); wrong != "" {
		return "in the end: " + wrong
	}
	w.mu.Lock()
	w.Client.mu.Lock()
	defer w.mu.Unlock()
	defer w.Client.mu.Unlock()
	for key := range wanted {
		b := w.keys[key]
		if b.state != bound && b.state != renewing || b.lost || over(b.lease.Expires, time.Now()) {
			return fmt.Sprintf("in the end, %s is %s", key, b.state)
		}
		held := s.leases[fmt.Sprintf("%s/%d", b.ask.DUID, b.ask.IAID)]
		if held.addr != b.lease.Addr {
			return fmt.Sprintf("in the end, %s has %s, and by the server %s", key, b.lease.Addr, held.addr)
		}
	}
	if len(w.owners) != len(wanted) || len(w.asked) > len(wanted) || len(w.schedule.due) != len(wanted) ||
		len(w.links) > 1 || len(wanted) == 0 && len(w.links) > 0 {
		return fmt.Sprintf("in the end, of %d are left: %d identities, %d questions, %d times, %d links",
			len(wanted), len(w.owners), len(w.asked), len(w.schedule.due), len(w.links))
	}
	return ""
}
