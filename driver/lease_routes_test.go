package driver

import (
	"net/netip"
	"slices"
	"testing"

	"underlay/internal/mode"
	"underlay/internal/options"
)

// told is an IPAM whose addresses come with routes of the LAN's server.
type told struct {
	containerNames
	routes []Route
}

func (h told) Routes(netip.Addr) []Route { return h.routes }

// The server's routes are the container's, also where the IPAM has taken the lease.
func TestLeasedRoutes(t *testing.T) {
	to := func(to, via string) Route {
		r := Route{Destination: netip.MustParsePrefix(to)}
		if via != "" {
			r.NextHop = netip.MustParseAddr(via)
		}
		return r
	}
	plain, own := to("10.0.0.0/8", "192.168.50.2"), to("10.0.0.0/8", "192.168.50.9")
	for _, tt := range []struct {
		what             string
		noRoute, foreign bool
		own              []options.Route
		told, want       []Route
	}{
		{"plain", false, false, nil, []Route{plain}, []Route{plain}},
		{"no default route", true, false, nil, []Route{plain}, nil},
		{"another IPAM's address", false, true, nil, []Route{plain}, nil},
		{"the network has another", false, false, []options.Route{{To: own.Destination, Via: own.NextHop}}, []Route{plain}, []Route{own}},
		{"on the link, and by that", false, false, nil,
			[]Route{to("10.1.0.0/16", "172.16.0.1"), to("172.16.0.0/24", "")}, []Route{to("172.16.0.0/24", ""), to("10.1.0.0/16", "172.16.0.1")}},
		{"by a router that is nowhere", false, false, nil, []Route{to("10.1.0.0/16", "172.16.0.1"), plain}, []Route{plain}},
	} {
		b := newBench(t)
		b.holdings = told{b.names, tt.told}
		n := lan("net", "eth0", mode.Default)
		n.Options.NoDefaultRoute, n.Options.Routes, n.ForeignIPAM = tt.noRoute, tt.own, tt.foreign
		b.create(n)
		e := on("net", "one", 11)
		if _, err := b.CreateEndpoint(ctx, e); err != nil {
			t.Fatal(err)
		}
		p, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12])
		if err != nil || !slices.Equal(p.Routes, tt.want) {
			t.Errorf("%s: %+v, %v", tt.what, p, err)
		}
	}
}
