package plugin

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A network whose pools dockerd releases, and that it then says no more of, is
// forgotten, long after the last look for such, too.
func TestForgetAbandoned(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.config.Grace = 100 * time.Millisecond
	b.start()
	_, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.lan(2, "192.168.60.0/24", "192.168.60.1", object{"parent": "eth0"})
	time.Sleep(b.config.Grace * abandonedLooks / 2) // no more looks
	must[object](b, "IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": "192.168.50.1"})
	must[object](b, "IpamDriver.ReleasePool", object{"PoolID": pool})
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		networks := must[State](b, "Underlay.State", nil).Networks
		if len(networks) == 1 && networks[0].ID == dockerID(2) {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("still there: %+v", networks)
		}
	}
}

// At rest nobody looks for abandoned networks, but for one that has containers.
func TestLookWhileStirred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Plugin{stirred: make(chan struct{}, 1)}
		p.ctx, p.cancel = context.WithCancel(t.Context())
		defer p.cancel()
		var mu sync.Mutex
		var left bool
		var looks []time.Time
		go p.lookWhileStirred(abandonedAfter, func() bool {
			mu.Lock()
			defer mu.Unlock()
			looks = append(looks, time.Now())
			return left
		})
		const while = abandonedLooks * abandonedAfter / 4
		for _, step := range []struct {
			what string
			stir bool
			left bool
			over time.Duration
			want int
		}{
			{"after a start", false, false, while + time.Second, abandonedLooks},
			{"at rest", false, false, time.Hour, 0},
			{"stirred", true, false, time.Hour, abandonedLooks},
			{"stirred, and one is left", true, true, while + time.Second, abandonedLooks},
			{"at rest with it", false, true, time.Hour, 60},
			{"stirred beside it", true, true, while + time.Second, abandonedLooks},
			{"it goes", false, false, time.Hour, 1},
		} {
			mu.Lock()
			looks, left = nil, step.left
			mu.Unlock()
			if step.stir {
				p.stir()
			}
			time.Sleep(step.over)
			synctest.Wait()
			mu.Lock()
			if len(looks) != step.want {
				t.Errorf("%s: %d looks in %v, want %d", step.what, len(looks), step.over, step.want)
			}
			for _, at := range looks {
				if step.want == 60 && at.Second() != 0 {
					t.Errorf("%s: a look at %v, of its own", step.what, at)
				}
			}
			mu.Unlock()
		}
	})
}
