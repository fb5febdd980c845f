package plugin

import (
	"context"
	"fmt"
	"strings"

	"github.com/docker/go-plugins-helpers/network"

	"underlay/driver"
	"underlay/ipam"
	"underlay/ipam/lease"
	"underlay/ipam/probe"
)

// Underlay's own calls.
const (
	StatePath     = "/Underlay.State"     // its whole state as JSON
	ForgetPath    = "/Underlay.Forget"    // a network that Docker no longer has
	ReconcilePath = "/Underlay.Reconcile" // compares records and kernel now, and answers a driver.Report
	DryRunPath    = "/Underlay.DryRun"    // answers what that would do
)

// State is StatePath's answer.
type State struct {
	Version   string            `json:"version"`
	Networks  []NetworkState    `json:"networks"`
	Endpoints []driver.Endpoint `json:"endpoints"`
	Waiting   []driver.Absence  `json:"waiting,omitempty"` // parents that are not there
	Pools     []ipam.PoolState  `json:"pools"`
	Leases    []lease.Entry     `json:"leases,omitempty"`
	LANs      []probe.Health    `json:"lans,omitempty"` // the links that are listened on
}

// NetworkState is a network, and what it lacks of others.
type NetworkState struct {
	driver.Network
	RouterRoutes []string `json:"routerRoutes,omitempty"` // commands for the LAN's router; see driver.RouterRoutes
}

func (p *Plugin) routeState() {
	at(p.server, StatePath, func(context.Context, none) (State, error) {
		known := p.parts.driver.Snapshot()
		s := State{
			Version:   p.config.Version,
			Networks:  []NetworkState{},
			Endpoints: known.Endpoints,
			Waiting:   known.Waiting,
			Pools:     p.parts.ipam.Snapshot().Pools,
			Leases:    p.parts.book.Entries(),
		}
		for _, n := range known.Networks {
			s.Networks = append(s.Networks, NetworkState{n, p.parts.driver.RouterRoutes(&n)})
		}
		if p.parts.prober != nil {
			s.LANs = p.parts.prober.Health()
		}
		return s, nil
	})
	route(p.server, ProcessPath, process)
	at(p.server, ForgetPath, p.forget)
	at(p.server, ReconcilePath, func(context.Context, none) (driver.Report, error) { return p.parts.driver.Reconcile(), nil })
	at(p.server, DryRunPath, func(context.Context, none) (driver.Report, error) { return p.parts.driver.DryRun(), nil })
}

// ForgetRequest names a network by its ID or the beginning of it.
type ForgetRequest struct{ Network string }

// forget drops a network whose removal the plugin was not there for. Docker
// does not tell it again.
func (p *Plugin) forget(ctx context.Context, req ForgetRequest) (none, error) {
	s := p.parts.driver.Snapshot()
	var found []driver.Network
	for _, n := range s.Networks {
		if req.Network != "" && strings.HasPrefix(n.ID, req.Network) {
			found = append(found, n)
		}
	}
	if len(found) != 1 {
		return none{}, fmt.Errorf("%d networks have an ID that begins with %q; underlay state lists them", len(found), req.Network)
	}
	n := found[0]
	for _, e := range s.Endpoints {
		if e.NetworkID == n.ID {
			return none{}, fmt.Errorf("network %s has endpoint %s; stop its container first", driver.Short(n.ID), driver.Short(e.ID))
		}
	}
	for _, subnet := range pools(&n).Subnets { // as Docker would have
		if err := p.parts.ipam.ReleasePool(ctx, subnet.String()); err != nil {
			return none{}, err
		}
	}
	return p.deleteNetwork(ctx, network.DeleteNetworkRequest{NetworkID: n.ID})
}
