package dhcp6

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"underlay/internal/wall"
)

// follow has all that is kept be as far away as it was before the clock was set
// back. One that is set forward is taken for one that has slept. With mu held.
func (c *Client) follow() {
	d := c.clock.Back()
	if d == 0 {
		return
	}
	for _, b := range c.owners {
		for _, l := range []*Lease{b.lease, b.pending} {
			if l != nil {
				l.shift(-d)
			}
		}
		b.due = b.due.Add(-d)
	}
}

// schedule is who is due when: one timer for all, instead of a goroutine for
// each.
type schedule struct {
	due   queue
	timer *time.Timer
	ring  func() // called in a goroutine of its own when one is due
}

// set makes b due at t, by the host's clock alone; the zero time is never.
func (s *schedule) set(b *binding, t time.Time) {
	t = t.Round(0)
	switch {
	case b.index < 0 && t.IsZero():
		return
	case t.IsZero():
		heap.Remove(&s.due, b.index)
	case b.index < 0:
		b.due = t
		heap.Push(&s.due, b)
	default:
		b.due = t
		heap.Fix(&s.due, b.index)
	}
	s.wind()
}

// wind sets the timer for the first.
func (s *schedule) wind() {
	if len(s.due) == 0 {
		if s.timer != nil {
			s.timer.Stop()
		}
		return
	}
	rest := min(time.Until(s.due[0].due), wall.Nap())
	if s.timer == nil {
		s.timer = time.AfterFunc(rest, s.ring)
	} else {
		s.timer.Reset(rest)
	}
}

// next takes out one that is due, or is nil.
func (s *schedule) next(now time.Time) *binding {
	if len(s.due) == 0 || s.due[0].due.After(now) {
		return nil
	}
	return heap.Pop(&s.due).(*binding)
}

// queue is a heap.Interface: the first that is due comes first.
type queue []*binding

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	b := x.(*binding)
	b.index = len(*q)
	*q = append(*q, b)
}

func (q *queue) Pop() any {
	old := *q
	b := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	b.index = -1
	return b
}

// pace is how a message is repeated (RFC 8415 15 and 7.6). How long it is
// repeated, MRD, is the state's matter.
type pace struct {
	first, most time.Duration // IRT, MRT; 0: without limit
	times       int           // MRC; 0: without limit
}

// next is the time to the next transmission, after one of that time.
func (p pace) next(last time.Duration) time.Duration {
	if last == 0 {
		return tenth(p.first)
	}
	// 2*RTprev + RAND*RTprev, as the RFC has it.
	next := 2*last + tenth(last) - last
	if p.most > 0 && next > p.most {
		return tenth(p.most)
	}
	return next
}

// tenth is d, up to a tenth longer or shorter.
func tenth(d time.Duration) time.Duration { return d + upTo(d/5) - d/10 }

// upTo is a random time from 0 to d.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d + 1)
}
