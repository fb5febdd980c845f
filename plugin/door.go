package plugin

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxVisits is the most connections at a time. dockerd keeps two for each
// protocol, and one more for each call beyond them.
const maxVisits = 1024

// How long a connection is left alone: a new one until its call is there, and one
// that had an answer, since it is most likely to carry its client's next call.
const (
	arrival = 100 * time.Millisecond
	reuse   = time.Second
)

// door lets in a number of connections. For one more it shuts another: the one
// that has been without a call for longest, of those that never had one if there
// are any. While all carry calls, which end at their deadline, the next one
// waits.
type door struct {
	net.Listener
	most int

	mu     sync.Mutex
	open   map[*visit]struct{}
	shut   bool
	change *sync.Cond // of open, of a visit's busy, of shut
}

func newDoor(l net.Listener, most int) *door {
	d := &door{Listener: l, most: most, open: map[*visit]struct{}{}}
	d.change = sync.NewCond(&d.mu)
	return d
}

// visit is a connection.
type visit struct {
	net.Conn
	door *door

	// Guarded by door.mu.
	busy   bool      // carries a call
	proven bool      // has carried one
	since  time.Time // of its beginning, or its last call's end
}

// Accept takes the next connection.
func (d *door) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.open) >= d.most && !d.shut {
		if v := d.worst(); v != nil {
			rest := v.rest()
			if rest <= 0 {
				delete(d.open, v)
				_ = v.Conn.Close()
				break
			}
			time.AfterFunc(rest, d.change.Broadcast)
		}
		d.change.Wait()
	}
	v := &visit{Conn: c, door: d, since: time.Now()}
	d.open[v] = struct{}{}
	return v, nil
}

// worst is the connection to shut first; nil if all carry calls. With mu held.
func (d *door) worst() (worst *visit) {
	for v := range d.open {
		switch {
		case v.busy:
		case worst == nil, worst.proven && !v.proven, worst.proven == v.proven && v.since.Before(worst.since):
			worst = v
		}
	}
	return worst
}

// rest is how much longer it is left alone. With door.mu held.
func (v *visit) rest() time.Duration {
	if v.proven {
		return reuse - time.Since(v.since)
	}
	return arrival - time.Since(v.since)
}

// Close lets nobody in any more.
func (d *door) Close() error {
	d.mu.Lock()
	d.shut = true
	d.change.Broadcast()
	d.mu.Unlock()
	return d.Listener.Close()
}

// lastCalls shuts, in a moment, the connections that carry no call: a server
// that ends waits for those that have begun to.
func (d *door) lastCalls() {
	time.AfterFunc(reuse, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for v := range d.open {
			if !v.busy {
				_ = v.Conn.Close()
			}
		}
	})
}

// Close ends the connection.
func (v *visit) Close() error {
	v.door.mu.Lock()
	delete(v.door.open, v)
	v.door.change.Broadcast()
	v.door.mu.Unlock()
	return v.Conn.Close()
}

// CloseWrite is how http.Server lets a client read why its call is refused while
// it still sends.
func (v *visit) CloseWrite() error {
	if c, ok := v.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

func (v *visit) set(busy bool) {
	v.door.mu.Lock()
	defer v.door.mu.Unlock()
	v.busy, v.proven, v.since = busy, true, time.Now()
	v.door.change.Broadcast()
}

type visitKey struct{}

// withVisit is http.Server's ConnContext.
func withVisit(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, visitKey{}, c)
}

// busy marks the connection of a call whose body has been read.
func busy(ctx context.Context) {
	if v, ok := ctx.Value(visitKey{}).(*visit); ok { // else a test's
		v.set(true)
	}
}

// answered is http.Server's ConnState: a connection is idle once its answer has
// been sent.
func answered(c net.Conn, state http.ConnState) {
	if v, ok := c.(*visit); ok && state == http.StateIdle {
		v.set(false)
	}
}
