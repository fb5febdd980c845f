package plugin

import (
	"cmp"
	"context"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"underlay/driver"
	"underlay/internal/wall"
)

// abandonedAfter must outlast what dockerd may do between the release of a
// network's pools and its deletion.
const abandonedAfter = time.Minute

// abandonedLooks is how many times abandoned networks are looked for, four in that
// time, once dockerd has asked for or released a pool or made a network. By then
// whatever it was replaying is over, too, and a plugin at rest is not woken.
const abandonedLooks = 24

// stir has abandoned networks looked for.
func (p *Plugin) stir() {
	select {
	case p.stirred <- struct{}{}:
	default:
	}
}

// forgetAbandoned deletes, until Close, the networks that dockerd has given up
// without deleting them: a network's creation that it was told had failed, because
// the answer did not reach it, gets its pools released and no more.
func (p *Plugin) forgetAbandoned() {
	after := cmp.Or(p.config.Grace, abandonedAfter)
	since := map[string]time.Time{}
	p.lookWhileStirred(after, func() (left bool) {
		still := map[string]time.Time{}
		for _, id := range p.parts.ipam.Abandoned() {
			at, known := since[id]
			if !known {
				at = time.Now()
			}
			if time.Since(at) < after {
				still[id] = at
				continue
			}
			log := p.config.Log.WithField("network", driver.Short(id))
			if e, has := p.parts.driver.Inhabited(id); has {
				log.Warnf("dockerd has released the network's subnets, but endpoint %s is in it; restart dockerd", driver.Short(e))
				still[id] = time.Now()
				continue
			}
			log.Info("network forgotten: dockerd has released its subnets")
			if _, err := p.deleteNetwork(context.Background(), network.DeleteNetworkRequest{NetworkID: id}); err != nil {
				log.Errorf("network is not forgotten: %v", err)
				still[id] = time.Now()
			}
		}
		since = still
		return len(still) > 0
	})
}

// lookWhileStirred calls look, until Close: for a while after each stir, and then as
// long as something is left, but with whatever else looks every minute.
func (p *Plugin) lookWhileStirred(after time.Duration, look func() (left bool)) {
	timer := time.NewTimer(after / 4)
	defer timer.Stop()
	for looks := 0; ; {
		select {
		case <-p.ctx.Done():
			return
		case <-p.stirred:
			if looks >= abandonedLooks {
				timer.Reset(after / 4)
			}
			looks = 0
			continue
		case <-timer.C:
			looks++
		}
		left := look()
		switch {
		case looks < abandonedLooks:
			timer.Reset(after / 4)
		case left:
			timer.Reset(min(after, wall.Nap()))
		}
	}
}
