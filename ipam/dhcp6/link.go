package dhcp6

import (
	"fmt"
	"net/netip"
	"time"
)

// wire is a socket on a link.
type wire interface {
	send(payload []byte) error // to all servers, without waiting
	sound() error              // nil while the link is as it was when this was opened
	close()
}

// link is a parent with leases. One that is taken off Client.links never comes
// back.
type link struct {
	name string
	all  bool // Ask.Passthru

	// guarded by Client.mu
	users    int
	err      error // why there is no wire
	settling bool
	failed   bool // there was no wire when it was last looked at, or needed

	// servers are those that have offered or refused a lease here, and how many
	// full collections of offers they have missed since.
	servers  map[DUID]int
	surveyed time.Time // when offers were last collected for as long as RFC 8415 18.2.1 has it

	solMaxRT time.Duration // told by a server; 0: by none

	turn chan struct{} // a mutex that is taken before Client.mu
	wire wire          // written with turn and Client.mu held
}

// Rouse says that links have come, gone or changed.
func (c *Client) Rouse() {
	c.mu.Lock()
	var all []*link
	for _, l := range c.links {
		all = append(all, l)
	}
	c.mu.Unlock()
	for _, l := range all {
		_ = c.settle(l, true) // noted
	}
}

// settle gives l the wire that its state allows. An open one is looked at only
// on demand, and when it fails.
func (c *Client) settle(l *link, look bool) error {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	c.mu.Lock()
	wanted := l.users > 0 && !c.closed
	c.mu.Unlock()
	var err error
	if l.wire != nil {
		if wanted {
			if !look {
				return nil
			}
			if err = l.wire.sound(); err == nil {
				return nil
			}
		}
		l.wire.close()
	}
	another := l.wire != nil
	var w wire
	if wanted {
		w, err = c.open(l.name, l.all,
			func(payload []byte, from netip.Addr) { c.hear(l, payload, from) },
			func(w wire, err error) { c.lose(l, w, err) })
	} else {
		err = errClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l.wire, l.err = w, err
	if w == nil {
		l.failed = true
		if wanted && c.cfg.Log != nil {
			c.cfg.Log.WithField("link", l.name).Debugf("no DHCPv6 there: %v", err)
		}
		return err
	}
	if l.failed || another {
		l.failed = false
		c.back(l)
	}
	return nil
}

// lose is told by a wire that failed by itself.
func (c *Client) lose(l *link, w wire, err error) {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.wire == w {
		l.wire, l.err, l.failed = nil, fmt.Errorf("%s has failed: %w", l.name, err), true
		w.close()
	}
}

// mend tries to get a wire without waiting for it. With mu held.
func (c *Client) mend(l *link) {
	if l.settling || c.closed {
		return
	}
	l.settling = true
	c.wg.Go(func() {
		_ = c.settle(l, true) // noted
		c.mu.Lock()
		l.settling = false
		c.mu.Unlock()
	})
}

// back is for a link that is there again: it may be another LAN now (RFC 8415
// 18.2.12), and who has waited for an answer need not wait longer. With mu held.
func (c *Client) back(l *link) {
	var all []*binding
	for _, b := range c.owners {
		if b.link == l {
			all = append(all, b)
		}
	}
	now := time.Now()
	for _, b := range all {
		b.rouse(now, spread(len(all)))
	}
}

// forsake is for a binding that leaves its link. With mu held.
func (c *Client) forsake(l *link) {
	l.users--
	if l.users == 0 {
		delete(c.links, l.name)
		c.wg.Go(func() { _ = c.settle(l, false) })
	}
}
