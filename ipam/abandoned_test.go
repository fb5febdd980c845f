package ipam

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"underlay/internal/store"
)

// What the plugin knows of networks that dockerd has let go of, when it was killed
// between the calls: see internal/killtest.
func TestAbandoned(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")
	both := NetworkPools{Subnets: []netip.Prefix{v4, v6}}
	request := func(b *bench) []string { return []string{b.pool(v4.String(), ""), b.pool(v6.String(), "")} }
	create := func(b *bench, id string) []string {
		ids := request(b)
		b.NetworkCreated(id, both)
		return ids
	}
	for _, test := range []struct {
		name string
		do   func(b *bench)
		want []string // abandoned
		refs int      // of the first pool, after a while
	}{
		{"a creation whose answer was lost", func(b *bench) {
			for _, id := range create(b, "n1") {
				b.release(id)
			}
		}, []string{"n1"}, 0},
		{"and the plugin killed", func(b *bench) {
			for _, id := range create(b, "n1") {
				b.release(id)
			}
			b.restart()
		}, []string{"n1"}, 0},
		{"and the network created again at once", func(b *bench) {
			for _, id := range create(b, "n1") {
				b.release(id)
			}
			create(b, "n2")
			b.restart()
		}, []string{"n1"}, 1},
		{"one of two pools", func(b *bench) { b.release(create(b, "n1")[0]) }, nil, 0},
		{"one of two networks on the pools", func(b *bench) {
			create(b, "n1")
			b.release(create(b, "n2")[0])
			b.restart()
		}, nil, 2},
		{"a replay, cut off, that dockerd goes back on", func(b *bench) {
			create(b, "n1")
			b.Daemon()
			ids := request(b)
			b.restart()
			for _, id := range ids {
				b.release(id)
			}
		}, nil, 0},
		{"and then the network's removal", func(b *bench) {
			ids := create(b, "n1")
			b.Daemon()
			request(b)
			b.restart()
			for range 2 {
				for _, id := range ids {
					b.release(id)
				}
				b.later()
			}
		}, []string{"n1"}, 0},
		{"a replay, cut off, that dockerd goes on with", func(b *bench) {
			create(b, "n1")
			b.Daemon()
			b.pool(v4.String(), "")
			b.restart()
			request(b)
		}, nil, 1},
		{"a creation that dockerd was killed at", func(b *bench) {
			b.NetworkCreated("n0", NetworkPools{Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}})
			b.pool("10.9.0.0/24", "")
			create(b, "n1")
			b.Daemon()
			b.pool("10.9.0.0/24", "")
			b.later()
		}, []string{"n1"}, 1},
		{"and a replay with an error", func(b *bench) {
			b.pool("10.9.0.0/24", "")
			b.NetworkCreated("n0", NetworkPools{Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}})
			create(b, "n1")
			b.Daemon()
			b.pool("10.9.0.0/24", "")
			if _, err := b.RequestPool(b.t.Context(), poolRequest("10.0.0.1/24", "")); err == nil {
				b.t.Error("no error")
			}
			b.later()
		}, nil, 1},
		{"dockerd connects anew, and a network is made", func(b *bench) {
			create(b, "n1")
			b.Daemon()
			b.pool("10.9.0.0/24", "")
			b.NetworkCreated("n0", NetworkPools{Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}})
			b.later()
		}, nil, 1},
		{"a replay of what had been let go of", func(b *bench) {
			for _, id := range create(b, "n1") {
				b.release(id)
			}
			b.Daemon()
			request(b)
		}, nil, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.Daemon()
			b.pass(2 * replayWithin)
			test.do(b)
			if got := b.Abandoned(); !slices.Equal(got, test.want) {
				t.Errorf("abandoned are %v, want %v", got, test.want)
			}
			b.later()
			if got := b.Snapshot().Pools[0].Refs; got != test.refs {
				t.Errorf("the pool has %d networks, want %d", got, test.refs)
			}
			if test.name == "a creation that dockerd was killed at" {
				return // what dockerd has asked for is known until the plugin ends
			}
			b.restart()
			b.later()
			if got := b.Abandoned(); !slices.Equal(got, test.want) {
				t.Errorf("after a restart, abandoned are %v, want %v", got, test.want)
			}
			for _, id := range test.want {
				b.delete(id)
			}
			if got := b.Abandoned(); len(got) > 0 {
				t.Errorf("deleted, abandoned are %v", got)
			}
		})
	}
}

// A network's removal while dockerd may be asking again, with the plugin killed
// before the last step of it.
func TestRemovalCutOff(t *testing.T) {
	for name, told := range map[string]bool{"before the driver's": true, "after the driver's": false} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			subnet := netip.MustParsePrefix("10.0.0.0/24")
			n := NetworkPools{Subnets: []netip.Prefix{subnet}}
			b.pool(subnet.String(), "")
			b.NetworkCreated("n1", n)
			b.Daemon()
			id := b.pool(subnet.String(), "") // the replay
			b.gets(id, "", "10.0.0.1/24")     // of an endpoint that nobody has any more
			b.release(id)
			if !told {
				delete(b.networks, "n1") // what the driver says after the restart
			}
			b.restart()
			if told {
				b.delete("n1")
			}
			b.later()
			b.held()
		})
	}
}

// The driver may take longer to look after the kernel than what is left behind is
// kept.
func TestNothingIsClearedBeforeTheNetworksAreKnown(t *testing.T) {
	b := newBench(t)
	subnet := netip.MustParsePrefix("10.0.0.0/24")
	id := b.pool(subnet.String(), "")
	b.gets(id, "gw", "10.0.0.1/24")
	n := NetworkPools{Subnets: []netip.Prefix{subnet}, Reserved: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	b.NetworkCreated("n1", n)
	b.Close()
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	i, err := New(reopened(t, b.path), b, Config{Grace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	b.IPAM = i
	b.Ended(netip.MustParseAddr("10.0.0.1"))
	if i.timed {
		t.Error("a clearing is due already")
	}
	b.Know(map[string]NetworkPools{"n1": n})
	if !i.timed {
		t.Error("no clearing is due")
	}
	b.held("10.0.0.0/24", "gateway 10.0.0.1")
}

func reopened(t *testing.T, path string) *store.Store {
	t.Helper()
	st, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}
