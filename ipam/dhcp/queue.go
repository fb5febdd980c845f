package dhcp

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// queue is the leases for which something is due, the next one first.
type queue []*lease

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is heap.Interface's.
func (q *queue) Push(x any) {
	l := x.(*lease)
	l.place = len(*q)
	*q = append(*q, l)
}

// Pop is heap.Interface's.
func (q *queue) Pop() any {
	old := *q
	n := len(old) - 1
	l := old[n]
	old[n] = nil
	*q = old[:n]
	l.place = -1
	return l
}

// follow has all that is kept be as far away as it was before the clock was set
// back. One that is set forward is taken for one that has slept. With mu held.
func (c *Client) follow() {
	d := c.clock.Back()
	if d == 0 {
		return
	}
	for _, l := range c.leases {
		l.shift(-d)
		l.at = l.at.Add(-d)
	}
}

// due sets when tick is called for l, with mu held.
func (c *Client) due(l *lease, at time.Time) {
	c.follow()
	l.at = at.Round(0)
	if l.place < 0 {
		heap.Push(&c.queue, l)
	} else {
		heap.Fix(&c.queue, l.place)
	}
	if l.place == 0 {
		poke(c.wake)
	}
}

// idle: nothing is due for l, with mu held.
func (c *Client) idle(l *lease) {
	if l.place >= 0 {
		heap.Remove(&c.queue, l.place)
	}
}

// upTo is a random time below d.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

// about is d, give or take an eighth: clients that started together are not to
// stay so.
func about(d time.Duration) time.Duration {
	return d - d/8 + upTo(d/4)
}
