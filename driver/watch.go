package driver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"underlay/internal/pause"
	"underlay/internal/wall"
	"underlay/netlinkutil"
)

// Events tells what changes in the host.
type Events interface {
	Changes(ctx context.Context, each func(netlinkutil.Change)) error
	AddressChanges(ctx context.Context, each func(link int)) error
}

// reconcileAfter gathers changes that come together.
const reconcileAfter = 100 * time.Millisecond

// Watch reconciles whenever links and addresses of the host have changed, and
// every minute, should a change have gone by unheard, until Close. After each reconcile
// of everything it calls looked.
func (d *Driver) Watch(events Events, looked func()) {
	poked := make(chan struct{}, 1)
	var everything atomic.Bool
	everything.Store(true) // at a start only the host has been looked at
	poke := func(all bool) {
		if all {
			everything.Store(true)
		}
		select {
		case poked <- struct{}{}:
		default:
		}
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	listen := func(what string, err error) {
		if d.ctx.Err() == nil {
			d.log.Errorf("changes of %s are no longer heard of, and are followed late: %v", what, err)
		}
	}
	workers.Go(func() {
		listen("links", d.kernelChanges(events, poke))
	})
	workers.Go(func() {
		listen("addresses", events.AddressChanges(d.ctx, func(int) { poke(false) }))
	})
	minute := time.NewTimer(wall.Nap())
	defer minute.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-poked:
			if pause.For(d.ctx, reconcileAfter) != nil {
				return
			}
		case <-minute.C:
			minute.Reset(wall.Nap())
			everything.Store(true)
		}
		s := changed
		if everything.Swap(false) {
			s = all
		}
		d.reconcile(s)
		if s == all {
			looked()
		}
	}
}

// kernelChanges pokes at the changes of links that matter: those that networks
// stand on, and shims.
func (d *Driver) kernelChanges(events Events, poke func(all bool)) error {
	return events.Changes(d.ctx, func(c netlinkutil.Change) {
		if c.Lost {
			d.mu.Lock()
			for _, n := range d.networks {
				d.shaken[n.parent()] = true
			}
			d.mu.Unlock()
			poke(true)
			return
		}
		d.mu.Lock()
		matters := false
		for parent := range d.accesses {
			matters = matters || shimName(parent) == c.Link.Name
		}
		for _, n := range d.networks {
			if n.standsOn(c.Link.Name) {
				matters = true
			}
			if c.Link.Name == n.parent() && (c.Gone || c.Link.MTU != d.footings[n.parent()].mtu) {
				d.shaken[n.parent()] = true
			}
		}
		d.mu.Unlock()
		if matters {
			poke(false)
		}
	})
}
