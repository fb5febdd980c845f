package dhcp

import (
	"bytes"
	"slices"
	"time"
)

const (
	// window is how many leases of a link may ask for an address at once. Of two
	// hundred questions at once, a server's socket drops some, and each costs the
	// two seconds until it is asked again.
	window = 16

	// turn is how long one who waits for its turn leaves it to those before it.
	turn = 500 * time.Millisecond
)

// gate has the leases of a link take turns, of which each lasts until there is an
// answer, or has been none when it was time to ask again.
//
// Those with one MAC, as on ipvlan, take turns one by one: dnsmasq picks an address
// by the MAC and does not hold back what it has only offered, so that all would be
// offered the same one, and all but the first refused.
type gate struct {
	asking  map[*lease]bool
	waiting []*lease
}

// All of the following is with mu held.

func (g *gate) full(l *lease) bool {
	for o := range g.asking {
		if bytes.Equal(o.MAC, l.MAC) {
			return true
		}
	}
	return len(g.asking) >= window
}

// leave takes l out, and says whether it was asking.
func (g *gate) leave(l *lease) bool {
	if i := slices.Index(g.waiting, l); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	was := g.asking[l]
	delete(g.asking, l)
	return was
}

// start begins an exchange for an address, selecting or rebooting, when it is l's
// turn.
func (c *Client) start(l *lease, s state, now time.Time) {
	g := c.gates[l.Link]
	if g == nil {
		g = &gate{asking: map[*lease]bool{}}
		c.gates[l.Link] = g
	}
	l.goal = s
	if !g.full(l) {
		c.enter(g, l, now)
		return
	}
	c.quiet(l)
	l.state = resting
	before := len(g.waiting) / window
	alike := 0
	for _, o := range g.waiting {
		if bytes.Equal(o.MAC, l.MAC) {
			alike++
		}
	}
	g.waiting = append(g.waiting, l)
	c.due(l, now.Add(time.Duration(1+max(before, alike))*turn))
}

// enter is l's turn.
func (c *Client) enter(g *gate, l *lease, now time.Time) {
	g.leave(l)
	g.asking[l] = true
	if l.asked.IsZero() {
		l.asked = now
	}
	c.begin(l, l.goal, now)
	c.ask(l, now)
}

// done ends l's turn, if it has or waits for one; others may have theirs.
func (c *Client) done(l *lease, now time.Time) {
	g := c.gates[l.Link]
	if g == nil || !g.leave(l) {
		return
	}
	for i := 0; i < len(g.waiting) && len(g.asking) < window; {
		if o := g.waiting[i]; g.full(o) {
			i++
		} else {
			c.enter(g, o, now) // which takes it out
		}
	}
	if len(g.asking)+len(g.waiting) == 0 {
		delete(c.gates, l.Link)
	}
}
