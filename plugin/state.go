package plugin

import (
	"context"

	"underlay/driver"
	"underlay/ipam"
)

// StatePath is underlay's own call for its whole state as JSON.
const StatePath = "/Underlay.State"

// State is StatePath's answer.
type State struct {
	Version string `json:"version"`
	driver.State
	Pools []ipam.PoolState `json:"pools"`
}

func (p *Plugin) routeState() {
	at(p.server, StatePath, func(context.Context, none) (State, error) {
		return State{
			Version: p.config.Version,
			State:   p.parts.driver.Snapshot(),
			Pools:   p.parts.ipam.Snapshot().Pools,
		}, nil
	})
}
