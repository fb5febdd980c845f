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
	Version string
	Driver  driver.State
	IPAM    ipam.State
}

func (p *Plugin) routeState() {
	at(p.server, StatePath, func(context.Context, none) (State, error) {
		return State{
			Version: p.config.Version,
			Driver:  p.parts.driver.Snapshot(),
			IPAM:    p.parts.ipam.Snapshot(),
		}, nil
	})
}
