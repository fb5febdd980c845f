package ipam

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// world is dockerd, the driver and users around one IPAM. It makes the calls
// that dockerd makes, in dockerd's order, and dies between any two of them.
// What it knows to be needed must be held, once; at rest nothing else may be.
type world struct {
	*bench
	rt       *rapid.T
	networks map[string]*dockerNetwork // those that dockerd has stored
	pending  []*dockerNetwork          // those being created
	made     int
}

type dockerNetwork struct {
	id        string
	subnet    netip.Prefix
	within    netip.Prefix
	pool      string
	reserved  []netip.Addr // gateway and aux
	gateway   netip.Addr
	endpoints map[netip.Addr]bool
}

func (n *dockerNetwork) pools() NetworkPools {
	return NetworkPools{Subnets: []netip.Prefix{n.subnet}, Reserved: n.reserved}
}

var worldSubnets = []struct {
	subnet netip.Prefix
	ranges []netip.Prefix
}{
	{netip.MustParsePrefix("10.0.0.0/28"), []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.8/30"), netip.MustParsePrefix("10.0.0.0/29")}},
	{netip.MustParsePrefix("10.0.0.0/29"), []netip.Prefix{{}}},
	{netip.MustParsePrefix("10.0.1.0/30"), []netip.Prefix{{}, netip.MustParsePrefix("10.0.1.0/31")}},
	{netip.MustParsePrefix("10.0.2.0/31"), []netip.Prefix{{}}},
	{netip.MustParsePrefix("10.0.3.0/32"), []netip.Prefix{{}}},
	{netip.MustParsePrefix("fd00::/124"), []netip.Prefix{{}, netip.MustParsePrefix("fd00::4/126")}},
}

// begin is docker network create up to the point where the network exists.
func (w *world) begin(rt *rapid.T) {
	s := rapid.SampledFrom(worldSubnets).Draw(rt, "subnet")
	w.rt.Logf("subnet %v", s.subnet)
	w.made++
	n := &dockerNetwork{id: fmt.Sprintf("network%05d", w.made), subnet: s.subnet, endpoints: map[netip.Addr]bool{}}
	n.within = rapid.SampledFrom(s.ranges).Draw(rt, "range")
	p, err := w.RequestPool(w.t.Context(), PoolRequest{Subnet: n.subnet, Range: n.within, V6: n.subnet.Addr().Is6()})
	if errors.Is(err, ErrOverlap) {
		return
	}
	w.must(err)
	n.pool = p.ID
	var wanted []AddressRequest
	switch rapid.IntRange(0, 2).Draw(rt, "gateway") {
	case 1:
		wanted = append(wanted, AddressRequest{Gateway: true})
	case 2:
		wanted = append(wanted, AddressRequest{Gateway: true, Addr: w.any(rt, n.subnet)})
	}
	for range rapid.IntRange(0, 2).Draw(rt, "aux") {
		wanted = append(wanted, AddressRequest{Addr: w.any(rt, n.subnet)})
	}
	for _, r := range wanted {
		if rapid.IntRange(0, 19).Draw(rt, "killed") == 0 {
			w.replay(rt)
			return
		}
		r.PoolID = n.pool
		addr, err := w.request(r)
		if err != nil {
			w.must(w.ReleasePool(w.t.Context(), n.pool))
			return
		}
		w.mayReserve(n, addr, r.Gateway)
		n.reserved = append(n.reserved, addr)
		if r.Gateway {
			n.gateway = addr
		}
	}
	w.pending = append(w.pending, n)
}

// end is the rest of a creation: CreateNetwork, and a rollback if it fails.
func (w *world) end(rt *rapid.T) {
	if len(w.pending) == 0 {
		rt.Skip("none is being created")
	}
	n := w.pending[0]
	w.pending = w.pending[1:]
	if rapid.IntRange(0, 2).Draw(rt, "fails") > 0 {
		w.NetworkCreated(n.id, n.pools())
		w.networks[n.id] = n
		return
	}
	if rapid.Bool().Draw(rt, "alone") {
		for _, a := range n.reserved {
			w.must(w.ReleaseAddress(w.t.Context(), n.pool, a))
		}
	}
	w.must(w.ReleasePool(w.t.Context(), n.pool))
}

// remove is docker network rm, which may be cut off.
func (w *world) remove(rt *rapid.T) {
	n := w.network(rt)
	if len(n.endpoints) > 0 {
		return
	}
	for _, a := range n.reserved {
		if w.killed(rt) {
			return
		}
		w.must(w.ReleaseAddress(w.t.Context(), n.pool, a))
	}
	if w.killed(rt) {
		return
	}
	w.must(w.ReleasePool(w.t.Context(), n.pool))
	delete(w.networks, n.id)
	w.must(w.NetworkDeleted(w.t.Context(), n.id))
}

func (w *world) start(rt *rapid.T) {
	n := w.network(rt)
	r := AddressRequest{PoolID: n.pool}
	if rapid.IntRange(0, 2).Draw(rt, "static") == 0 {
		r.Addr = w.any(rt, n.subnet)
	}
	if rapid.Bool().Draw(rt, "docker 29") {
		r.Name = "web"
	}
	addr, err := w.request(r)
	if err != nil {
		if errors.Is(err, ErrExhausted) {
			w.full(n)
		}
		return
	}
	if len(w.pending) > 0 && r.Name == "" && w.reserved(addr) {
		// Taken for an aux address of the network being created. The driver
		// refuses such an endpoint.
		w.must(w.ReleaseAddress(w.t.Context(), n.pool, addr))
		return
	}
	if w.needed()[addr] > 0 {
		rt.Fatalf("%v is given to a container of %s, but needed already", addr, n.id)
	}
	if !r.Addr.IsValid() && n.within.IsValid() && !n.within.Contains(addr) {
		rt.Fatalf("%v is not in range %v", addr, n.within)
	}
	if got, ok := w.Name(addr); r.Name != "" && (got != r.Name || !ok) {
		rt.Fatalf("%v is named %q, %t", addr, got, ok)
	}
	switch rapid.IntRange(0, 9).Draw(rt, "fails") {
	case 0: // CreateEndpoint fails
		w.must(w.ReleaseAddress(w.t.Context(), n.pool, addr))
	case 1:
		w.replay(rt)
	case 2: // dockerd dies before it has stored the endpoint
		w.ends[addr] = "an orphan"
		w.replay(rt)
		delete(w.ends, addr)
	default:
		w.ends[addr] = "endpoint on " + n.id
		n.endpoints[addr] = true
	}
}

func (w *world) stop(rt *rapid.T) {
	n := w.network(rt)
	if len(n.endpoints) == 0 {
		return
	}
	addrs := slices.SortedFunc(maps.Keys(n.endpoints), netip.Addr.Compare)
	addr := rapid.SampledFrom(addrs).Draw(rt, "endpoint")
	delete(n.endpoints, addr)
	lingers := rapid.IntRange(0, 9).Draw(rt, "lingers") == 0
	if !lingers {
		delete(w.ends, addr)
	}
	if rapid.IntRange(0, 9).Draw(rt, "lost") > 0 {
		w.must(w.ReleaseAddress(w.t.Context(), n.pool, addr))
		if !lingers {
			w.must(w.ReleaseAddress(w.t.Context(), n.pool, addr))
		}
	}
	delete(w.ends, addr)
}

// replay is the restart of dockerd. Creations under way are lost.
func (w *world) replay(rt *rapid.T) {
	w.pending = nil
	w.Daemon()
	ids := slices.Sorted(maps.Keys(w.networks))
	for _, id := range rapid.Permutation(ids).Draw(rt, "order") {
		n := w.networks[id]
		p, err := w.RequestPool(w.t.Context(), PoolRequest{Subnet: n.subnet, Range: n.within, V6: n.subnet.Addr().Is6()})
		w.must(err)
		if p.ID != n.pool {
			rt.Fatalf("pool %s was %s", p.ID, n.pool)
		}
		for _, a := range n.reserved {
			w.again(AddressRequest{PoolID: n.pool, Addr: a, Gateway: a == n.gateway})
		}
		for _, a := range slices.SortedFunc(maps.Keys(n.endpoints), netip.Addr.Compare) {
			w.again(AddressRequest{PoolID: n.pool, Addr: a})
		}
	}
}

func (w *world) again(r AddressRequest) {
	if addr, err := w.request(r); err != nil || addr != r.Addr {
		w.rt.Fatalf("in a replay, %+v gets %v, %v", r, addr, err)
	}
}

// reconnect is docker plugin enable, or swarm init: dockerd has not restarted.
func (w *world) reconnect(rt *rapid.T) {
	if len(w.pending) > 0 {
		rt.Skip("a creation does not take minutes")
	}
	w.Daemon()
	w.pass(replayWithin)
}

func (w *world) restartPlugin(*rapid.T) {
	before := w.Snapshot()
	w.restart()
	if after := w.Snapshot(); !same(before, after) {
		w.rt.Fatalf("after the restart\n%+v\nbefore\n%+v", after, before)
	}
}

// wait lets the grace period pass, which no creation lasts for.
func (w *world) wait(rt *rapid.T) {
	for len(w.pending) > 0 {
		w.end(rt)
	}
	w.later()
}

// same compares two states, one of which has no time zone and monotonic clock.
func same(a, b State) bool {
	for _, s := range []State{a, b} {
		for k := range s.Pools {
			for l := range s.Pools[k].Addresses {
				at := &s.Pools[k].Addresses[l].Since
				*at = at.UTC().Round(0)
			}
		}
	}
	return reflect.DeepEqual(a, b)
}

// check holds what must always hold.
func (w *world) check(*rapid.T) {
	held := w.heldNow()
	for addr, n := range w.needed() {
		if n > 1 {
			w.rt.Fatalf("%v is needed %d times over", addr, n)
		}
		if _, ok := held[addr]; !ok {
			w.rt.Fatalf("%v is needed and not held", addr)
		}
	}
	w.pools.Scan(func(p *pool) bool {
		if p.settled != nil {
			w.rt.Fatalf("%v is unsettled", p.subnet)
		}
		if err := p.sound(); err != nil {
			w.rt.Fatalf("%v: %v", p.subnet, err)
		}
		return true
	})
}

// rest restarts dockerd and lets time pass; then nothing unneeded may be held.
func (w *world) rest(rt *rapid.T) {
	w.replay(rt)
	if len(w.networks) == 0 {
		return // dockerd shows no sign of a replay
	}
	w.later()
	w.later()
	w.check(rt)
	needed := w.needed()
	for addr, kind := range w.heldNow() {
		if needed[addr] == 0 {
			rt.Fatalf("%v is held as %s, and nobody needs it: %+v", addr, kind, w.Snapshot())
		}
	}
	for _, p := range w.Snapshot().Pools {
		n := 0
		for _, d := range w.networks {
			if d.subnet == p.Subnet {
				n++
			}
		}
		if n == 0 || p.Refs != n || len(p.Networks) != n {
			rt.Fatalf("%d networks name the pool %+v", n, p)
		}
	}
}

// needed counts the containers that need an address, plus one if it is reserved.
func (w *world) needed() map[netip.Addr]int {
	needed := map[netip.Addr]int{}
	for _, n := range w.all() {
		for _, a := range n.reserved {
			needed[a] = 1
		}
	}
	for _, n := range w.networks {
		for a := range n.endpoints {
			needed[a]++
		}
	}
	return needed
}

func (w *world) all() []*dockerNetwork {
	return append(slices.Collect(maps.Values(w.networks)), w.pending...)
}

// mayReserve wants an address not to be a container's, nor, unless it is a
// gateway, reserved by another network being created.
func (w *world) mayReserve(n *dockerNetwork, addr netip.Addr, gateway bool) {
	for _, o := range w.networks {
		if o.endpoints[addr] {
			w.rt.Fatalf("%v is reserved for %s, but an endpoint has it", addr, n.id)
		}
	}
	for _, o := range w.pending {
		if slices.Contains(o.reserved, addr) && !gateway && !w.reserved(addr) {
			w.rt.Fatalf("%v is reserved for %s, but also for %s", addr, n.id, o.id)
		}
	}
}

// reserved says that a network reserves an address.
func (w *world) reserved(addr netip.Addr) bool {
	for _, n := range w.networks {
		if slices.Contains(n.reserved, addr) {
			return true
		}
	}
	return false
}

// full wants a pool that refuses to be full.
func (w *world) full(n *dockerNetwork) {
	first, last := usable(n.subnet)
	held := w.heldNow()
	for a := first; a.IsValid() && !last.Less(a); a = a.Next() {
		if _, ok := held[a]; !ok && (!n.within.IsValid() || n.within.Contains(a)) {
			w.rt.Fatalf("%s is said to be exhausted, but %v is free", n.pool, a)
		}
	}
}

func (w *world) heldNow() map[netip.Addr]Kind {
	held := map[netip.Addr]Kind{}
	for _, p := range w.Snapshot().Pools {
		first, last := usable(p.Subnet)
		for _, a := range p.Addresses {
			if a.Address.Less(first) || last.Less(a.Address) {
				w.rt.Fatalf("%v of %v is held", a.Address, p.Subnet)
			}
			held[a.Address] = a.Kind
		}
	}
	return held
}

func (w *world) request(r AddressRequest) (netip.Addr, error) {
	a, err := w.RequestAddress(w.t.Context(), r)
	if err == nil {
		if subnet, _, _ := ParsePoolID(r.PoolID); a.Masked() != subnet {
			w.rt.Fatalf("%v has not the mask of %v", a, subnet)
		}
	}
	return a.Addr(), err
}

func (w *world) network(rt *rapid.T) *dockerNetwork {
	if len(w.networks) == 0 {
		rt.Skip("no network")
	}
	return w.networks[rapid.SampledFrom(slices.Sorted(maps.Keys(w.networks))).Draw(rt, "network")]
}

// any draws an address in or next to a subnet.
func (w *world) any(rt *rapid.T, subnet netip.Prefix) netip.Addr {
	a := subnet.Addr()
	for range rapid.IntRange(0, 15).Draw(rt, "host") {
		a = a.Next()
	}
	return a
}

func (w *world) killed(rt *rapid.T) bool {
	if rapid.IntRange(0, 19).Draw(rt, "killed") > 0 {
		return false
	}
	w.replay(rt)
	return true
}

func (w *world) must(err error) {
	if err != nil {
		w.rt.Fatalf("%v", err)
	}
}

// sound checks that the allocator and the maps say the same.
func (p *pool) sound() error {
	used := 0
	var before run
	var err error
	p.alloc.used.tree.Scan(func(r run) bool {
		if r.last.Less(r.first) || before.last.IsValid() && !before.last.Next().Less(r.first) {
			err = fmt.Errorf("runs %v and %v", before, r)
		}
		before = r
		for a := r.first; a.IsValid() && !r.last.Less(a); a = a.Next() {
			used++
			_, rests := p.alloc.resting[a]
			if _, held := p.held[a]; held && rests || !rests && !p.marked(a) {
				err = fmt.Errorf("%v is held: %t, resting: %t, and marked: %t", a, held, rests, p.marked(a))
			}
		}
		return true
	})
	all := map[netip.Addr]bool{}
	for _, addrs := range []iter.Seq[netip.Addr]{
		maps.Keys(p.held), maps.Keys(p.alloc.resting), maps.Keys(p.seen), maps.Keys(p.reserved), maps.Keys(p.taken), maps.Keys(p.stocked),
	} {
		for a := range addrs {
			if !a.Less(p.alloc.first) && !p.alloc.last.Less(a) {
				all[a] = true
			}
		}
	}
	if used != len(all) {
		err = fmt.Errorf("%d used, but %d marked", used, len(all))
	}
	for name, addrs := range p.names {
		for _, a := range addrs {
			if r := p.alloc.resting[a]; r == nil || r.name != name {
				err = fmt.Errorf("%v is not resting from %s", a, name)
			}
		}
	}
	for a, t := range p.stocked {
		_, asking := t.asking[a]
		if stocked := slices.ContainsFunc(t.stock, func(s proven) bool { return s.addr == a }); stocked == asking || p.held[a] != nil || p.seen[a] != nil {
			err = fmt.Errorf("%v is in stock: %t, asked about: %t, held: %t, in use: %t", a, stocked, asking, p.held[a] != nil, p.seen[a] != nil)
		}
	}
	for a, h := range p.held {
		if h.kind != KindEndpoint && p.special[a] != h {
			err = fmt.Errorf("%v is %s and not special", a, h.kind)
		}
	}
	for a, h := range p.special {
		if p.held[a] != h {
			err = fmt.Errorf("%v is special and not held", a)
		}
	}
	for within, s := range p.alloc.spans {
		n := 0
		for a, r := range p.alloc.resting {
			if s.contains(a) {
				n++
				if got, ok := s.order.Get(r.order()); !ok || got != a {
					err = fmt.Errorf("%v rests, but not in range %v", a, within)
				}
			}
		}
		if n != s.order.Len() {
			err = fmt.Errorf("range %v has %d resting, want %d", within, s.order.Len(), n)
		}
	}
	return err
}

func TestWorld(t *testing.T) {
	if shm := "/dev/shm"; os.Getenv("TMPDIR") == "" {
		if _, err := os.Stat(shm); err == nil {
			t.Setenv("TMPDIR", shm) // thousands of commits; what a disk does is tested elsewhere
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{bench: newBench(t), rt: rt, networks: map[string]*dockerNetwork{}}
		defer func() { w.store.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"":               w.check,
			"begin":          w.begin,
			"end":            w.end,
			"remove":         w.remove,
			"start":          w.start,
			"start more":     w.start,
			"stop":           w.stop,
			"dockerd":        w.replay,
			"reconnect":      w.reconnect,
			"plugin restart": w.restartPlugin,
			"wait":           w.wait,
			"rest":           w.rest,
		})
		w.rest(rt)
	})
}
