package driver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"underlay/internal/pause"
	"underlay/netlinkutil"
)

// presence is what is known of an endpoint and not kept over a restart.
type presence struct {
	born    bool               // made by this process, which would know of a Join
	deleted bool               // its record is on its way from the disk
	adrift  bool               // dockerd has been restarted since Join, and does not go on with the start
	leaving bool               // dockerd takes its link out of the container, where it is not to be missed
	doubted time.Time          // since when it seems to have ended; zero if it does not
	lost    bool               // it has been said that its interface is gone
	cancel  context.CancelFunc // ends what follows its link
}

const (
	// arriveWithin is how long dockerd may take from Join to a link that is up.
	arriveWithin = 5 * time.Minute
	// dockerd sets routes once the link is up, and the gateway last of all. A
	// reconcile pictures what comes later.
	pictureAfter, pictureAgain = 500 * time.Millisecond, 5 * time.Second
)

// presence is that of an endpoint. The caller holds d.mu.
func (d *Driver) presence(id string) *presence {
	p := d.presences[id]
	if p == nil {
		p = &presence{}
		if d.endpoints[id] != nil { // else it is but being read
			d.presences[id] = p
		}
	}
	return p
}

// DaemonConnected says that dockerd has connected, and so has been restarted or
// has the plugin enabled anew: a start that was under way before is not gone on
// with.
func (d *Driver) DaemonConnected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, e := range d.endpoints {
		if e.starting() {
			d.presence(id).adrift = true
		}
	}
}

// starting tells whether an endpoint has joined a container and its link has not
// been seen there.
func (e *Endpoint) starting() bool { return e.Sandbox != "" && !e.Arrived }

// isStarting tells whether it may still arrive.
func (d *Driver) isStarting(e *Endpoint) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return e.starting() && !d.presence(e.ID).adrift
}

// trust takes back a doubt: dockerd has called, or the link has been seen.
func (d *Driver) trust(e *Endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.presences[e.ID]; p != nil {
		p.doubted, p.lost = time.Time{}, false
	}
}

// doubtful returns for how long an endpoint has seemed to have ended, which
// begins now if it did not.
func (d *Driver) doubtful(e *Endpoint) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.presence(e.ID)
	if p.doubted.IsZero() {
		p.doubted = time.Now()
	}
	return time.Since(p.doubted)
}

// firstLoss tells whether the loss of an interface has not been said yet, and
// notes that it has.
func (d *Driver) firstLoss(e *Endpoint) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.presence(e.ID)
	first := !p.lost
	p.lost = true
	return first
}

func (d *Driver) isLeaving(e *Endpoint) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.presences[e.ID]
	return p != nil && p.leaving
}

func (d *Driver) wasBorn(e *Endpoint) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.presence(e.ID).born
}

// comes notes that an endpoint is on its way to a container.
func (d *Driver) comes(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.presence(id)
	p.leaving, p.adrift = false, false
}

// leaves ends what follows the link of an endpoint that leaves its container.
func (d *Driver) leaves(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.endpoints[id] == nil {
		return
	}
	p := d.presence(id)
	p.leaving, p.doubted = true, time.Time{}
	if p.cancel != nil {
		p.cancel()
		p.cancel = nil
	}
}

// accompany is the context of what follows the link of an endpoint, in place of
// what did before.
func (d *Driver) accompany(id string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(d.ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.presence(id)
	if p.cancel != nil {
		p.cancel()
	}
	p.cancel = cancel
	if d.endpoints[id] == nil {
		cancel()
	}
	return ctx, cancel
}

// follow waits until the link of an endpoint that joins a container is up there,
// tells the LAN, and pictures it. Called before dockerd moves the link.
func (d *Driver) follow(n *Network, e *Endpoint) {
	log := d.logOfEndpoint(n.ID, e.ID)
	arrived, err := d.kernel.Follow(linkName(e.ID))
	if err != nil {
		log.Warnf("not announced to the LAN: %v", err)
		return
	}
	ctx, cancel := d.accompany(e.ID)
	d.companions.Go(func() {
		defer cancel()
		wait, stop := context.WithTimeout(ctx, arriveWithin)
		err := arrived(wait)
		stop()
		switch {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, netlinkutil.ErrTimeout):
			log.Warnf("not announced to the LAN, as its link did not come up in time: %v", err)
			return
		default: // it has gone
			log.Debugf("not announced to the LAN: %v", err)
			return
		}
		d.arrives(n, e)
		d.companions.Go(func() { d.pictureSoon(ctx, n, e) })
		if d.announced(n) {
			d.announce(ctx, n, e)
		}
		_ = pause.For(ctx, pictureAgain) // not to end pictureSoon
	})
}

// announceAgain tells the LAN of an endpoint whose interface has been made again:
// its switches may have forgotten it.
func (d *Driver) announceAgain(n *Network, e *Endpoint) {
	if !d.announced(n) {
		return
	}
	ctx, cancel := d.accompany(e.ID)
	d.companions.Go(func() {
		defer cancel()
		d.announce(ctx, n, e)
	})
}

// arrives notes that a link has come to its container.
func (d *Driver) arrives(n *Network, e *Endpoint) {
	parent, inside, err := d.inside(n, e.ID, e.Sandbox)
	if err == nil {
		d.trust(e) // a reconcile may have looked before
	}
	d.update(e.ID, func(e *Endpoint) {
		e.Arrived = true
		if parent.Index != 0 {
			e.ParentIndex = parent.Index
		}
		if err == nil {
			e.Interface = &inside
		}
	})
}

// pictureSoon pictures an interface once dockerd has finished it, and the others of
// the container: the default route may have gone from one to the other.
func (d *Driver) pictureSoon(ctx context.Context, n *Network, e *Endpoint) {
	for _, after := range []time.Duration{pictureAfter, pictureAgain - pictureAfter} {
		if pause.For(ctx, after) != nil {
			return
		}
		d.showHostTo(n, e)
		d.pictureNow(n, e)
		d.pictureRoommates(e)
	}
}

// pictureRoommates pictures the other interfaces of an endpoint's container.
func (d *Driver) pictureRoommates(e *Endpoint) {
	for _, o := range d.roommatesOf(e) {
		if n, err := d.network(o.NetworkID); err == nil && o.Arrived {
			d.pictureNow(n, o)
		}
	}
}

// roommatesOf are the other endpoints of an endpoint's container.
func (d *Driver) roommatesOf(e *Endpoint) []*Endpoint {
	if e.Sandbox == "" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	others := slices.Collect(maps.Values(d.roommates[e.Sandbox]))
	return slices.DeleteFunc(others, func(o *Endpoint) bool { return o.ID == e.ID })
}

// pictureNow pictures an interface, if it is there to be seen.
func (d *Driver) pictureNow(n *Network, e *Endpoint) {
	if parent, inside, err := d.inside(n, e.ID, e.Sandbox); err == nil {
		d.picture(e.ID, inside, parent)
	}
}

// inside looks at an endpoint's interface and its parent.
func (d *Driver) inside(n *Network, id, sandbox string) (parent netlinkutil.Link, inside netlinkutil.Interface, err error) {
	if parent, err = d.kernel.Link(n.parent()); err == nil {
		inside, err = d.kernel.Inside(sandbox, d.endpointAlias(n.ID, id))
	}
	return parent, inside, err
}
