package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"underlay/internal/options"
)

// world is dockerd, the driver and users around one IPAM. It makes the calls
// that dockerd makes, in dockerd's order, and dies between any two of them.
// What it knows to be needed must be held, once; at rest nothing else may be.
//
// On the LAN, other machines come and go, some heard and some silent, links
// fail, and the host changes its own addresses.
type world struct {
	*bench
	rt       *rapid.T
	lan      *lan
	came     map[place]time.Time       // other machines, since when
	failed   map[string]time.Time      // links, when they did last
	took     map[netip.Addr]time.Time  // the host's own addresses, since when
	troubled map[netip.Addr]time.Time  // when a machine or the host had an address last
	networks map[string]*dockerNetwork // those that dockerd has stored
	pending  []*dockerNetwork          // those being created
	made     int
}

type place struct {
	link string
	addr netip.Addr
}

type dockerNetwork struct {
	parent    string
	given     map[string]string
	options   options.Pool
	id        string
	subnet    netip.Prefix
	within    netip.Prefix
	pool      string
	reserved  []netip.Addr // gateway and aux
	gateway   netip.Addr
	endpoints map[netip.Addr]bool
}

func (n *dockerNetwork) pools() NetworkPools {
	return NetworkPools{Subnets: []netip.Prefix{n.subnet}, Reserved: n.reserved, Parent: n.parent}
}

func (n *dockerNetwork) request() PoolRequest {
	return PoolRequest{Subnet: n.subnet, Range: n.within, V6: n.subnet.Addr().Is6(), Options: n.given}
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

func newWorld(t *testing.T, rt *rapid.T) *world {
	l := newLAN()
	l.instant = true
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "state.db"), clock: time.Now(), ends: map[netip.Addr]string{},
		macs: map[netip.Addr]net.HardwareAddr{}, config: Config{Detector: l, Host: l}}
	b.open()
	return &world{bench: b, rt: rt, lan: l, came: map[place]time.Time{}, failed: map[string]time.Time{},
		took: map[netip.Addr]time.Time{}, troubled: map[netip.Addr]time.Time{}, networks: map[string]*dockerNetwork{}}
}

// begin is docker network create up to the point where the network exists.
func (w *world) begin(rt *rapid.T) { w.beginWith(rt, 2) }

// beginWith begins a creation with no more reserved addresses of a kind.
func (w *world) beginWith(rt *rapid.T, reserved int) {
	s := rapid.SampledFrom(worldSubnets).Draw(rt, "subnet")
	w.rt.Logf("subnet %v", s.subnet)
	w.made++
	n := &dockerNetwork{id: fmt.Sprintf("network%05d", w.made), subnet: s.subnet, endpoints: map[netip.Addr]bool{}}
	n.within = rapid.SampledFrom(s.ranges).Draw(rt, "range")
	n.parent = rapid.SampledFrom([]string{"eth0", "eth0", "eth1", ""}).Draw(rt, "parent")
	n.given = w.options(rt, n.subnet)
	n.options, _ = options.ParsePool(n.given)
	p, err := w.RequestPool(w.t.Context(), n.request())
	if errors.Is(err, ErrOverlap) {
		return
	}
	w.must(err)
	n.pool = p.ID
	var wanted []AddressRequest
	switch rapid.IntRange(0, reserved).Draw(rt, "gateway") {
	case 1:
		wanted = append(wanted, AddressRequest{Gateway: true})
	case 2:
		wanted = append(wanted, AddressRequest{Gateway: true, Addr: w.any(rt, n.subnet)})
	}
	for range rapid.IntRange(0, reserved).Draw(rt, "aux") {
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
		if !n.subnet.Contains(addr) {
			continue // a router beside the subnet, which is nobody's to hold
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
	k := rapid.IntRange(0, len(w.pending)-1).Draw(rt, "which")
	if rapid.IntRange(0, 2).Draw(rt, "fails") > 0 {
		w.exists(k)
		return
	}
	n := w.pending[k]
	w.pending = slices.Delete(w.pending, k, k+1)
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
	if rapid.Bool().Draw(rt, "has a reservation") && r.Name != "" {
		r.Name = "db"
	}
	before := w.observe(n)
	addr, err := w.request(r)
	switch {
	case errors.Is(err, ErrExhausted):
		w.full(n)
		return
	case errors.Is(err, ErrTaken):
		if strings.Contains(err.Error(), "LAN") && w.quiet(r.Addr) && w.quiet(n.reservedFor(r.Name)) {
			rt.Fatalf("%+v: %v, but no machine was there", r, err)
		}
		return
	case errors.Is(err, ErrUnusable):
		return
	default:
		w.must(err)
	}
	w.allowed(n, r, addr, before)
	if (len(w.pending) > 0 || before.strangers) && r.Name == "" && w.reserved(addr) {
		// Taken for an aux address of the network being created, or for one
		// replayed. The driver refuses such an endpoint.
		w.must(w.ReleaseAddress(w.t.Context(), n.pool, addr))
		return
	}
	if w.needed()[addr] > 0 {
		rt.Fatalf("%v is given to a container of %s, but needed already", addr, n.id)
	}
	if !r.Addr.IsValid() && n.within.IsValid() && !n.within.Contains(addr) && addr != n.reservedFor(r.Name) {
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
		w.macs[addr] = net.HardwareAddr{2, 0, 0, 0, 0, 1}
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
		p, err := w.RequestPool(w.t.Context(), n.request())
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

// enable is docker plugin enable, and at once a creation that looks like the
// replay of a network. One with addresses of its own would be confused with it.
func (w *world) enable(rt *rapid.T) {
	if len(w.pending) > 0 {
		rt.Skip("a creation does not take minutes")
	}
	w.Daemon()
	if w.beginWith(rt, 0); len(w.pending) > 0 {
		w.end(rt)
	}
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

// same compares two states, one of which has no time zone and monotonic clock,
// and knows nothing of the LAN yet.
func same(a, b State) bool {
	for _, s := range []State{a, b} {
		for k := range s.Pools {
			s.Pools[k].LAN = LANState{Resting: s.Pools[k].LAN.Resting}
			for l := range s.Pools[k].Addresses {
				at := &s.Pools[k].Addresses[l].Since
				*at = at.UTC().Round(0)
			}
		}
	}
	return reflect.DeepEqual(a, b)
}

// options draws what a network wants of its pool.
func (w *world) options(rt *rapid.T, subnet netip.Prefix) map[string]string {
	o := map[string]string{}
	first, last := usable(subnet)
	if rapid.IntRange(0, 3).Draw(rt, "excludes") == 0 {
		from := w.any(rt, subnet)
		o["exclude"] = options.Range{First: from, Last: from.Next()}.String()
	}
	if a := w.any(rt, subnet); rapid.IntRange(0, 3).Draw(rt, "reserves") == 0 && !a.Less(first) && !last.Less(a) {
		o["reserve"] = "db=" + a.String()
	}
	for _, values := range [][]string{
		{"conflict", "", "", "listen", "off"}, {"probe_ahead", "", "0", "1"}, {"rest", "", "0"},
	} {
		if v := rapid.SampledFrom(values[1:]).Draw(rt, values[0]); v != "" {
			o[values[0]] = v
		}
	}
	if _, err := options.ParsePool(o); err != nil {
		delete(o, "exclude") // of what is reserved
	}
	return o
}

// squat is machines that come, and perhaps are heard.
func (w *world) squat(rt *rapid.T) {
	link := rapid.SampledFrom([]string{"eth0", "eth0", "eth1"}).Draw(rt, "link")
	for range rapid.IntRange(1, 5).Draw(rt, "machines") {
		at := place{link, w.any(rt, w.subnet(rt))}
		claims := rapid.IntRange(0, 3).Draw(rt, "claims") == 0
		if claims {
			w.Heard(Sighting{Link: at.link, Addr: at.addr, MAC: macOf(at.addr), Claim: true})
			w.troubled[at.addr] = w.tick()
		}
		if _, there := w.came[at]; !there && (!claims || rapid.Bool().Draw(rt, "stays")) {
			w.lan.comes(at.link, at.addr.String())
			w.came[at] = w.tick()
		}
	}
}

// subnet draws that of a network, if there is one.
func (w *world) subnet(rt *rapid.T) netip.Prefix {
	if len(w.networks) > 0 {
		return w.network(rt).subnet
	}
	return rapid.SampledFrom(worldSubnets).Draw(rt, "subnet").subnet
}

// happen is what happens without dockerd.
func (w *world) happen(rt *rapid.T) {
	rapid.SampledFrom([]func(*rapid.T){w.squat, w.squat, w.squat, w.speak, w.leave, w.cable, w.readdress}).Draw(rt, "event")(rt)
}

// create is a creation that succeeds at once.
func (w *world) create(rt *rapid.T) {
	n := len(w.pending)
	w.begin(rt)
	if len(w.pending) > n {
		w.exists(len(w.pending) - 1)
	}
}

func (w *world) exists(k int) {
	n := w.pending[k]
	w.pending = slices.Delete(w.pending, k, k+1)
	w.NetworkCreated(n.id, n.pools())
	w.networks[n.id] = n
}

// startSome is some containers started.
func (w *world) startSome(rt *rapid.T) {
	for range rapid.IntRange(1, 4).Draw(rt, "containers") {
		w.start(rt)
	}
}

func (w *world) squatter(rt *rapid.T) place {
	if len(w.came) == 0 {
		rt.Skip("no machine")
	}
	all := slices.SortedFunc(maps.Keys(w.came), func(a, b place) int {
		return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.link, b.link))
	})
	return rapid.SampledFrom(all).Draw(rt, "machine")
}

func (w *world) speak(rt *rapid.T) {
	at := w.squatter(rt)
	w.Heard(Sighting{Link: at.link, Addr: at.addr, MAC: macOf(at.addr)})
}

func (w *world) leave(rt *rapid.T) {
	at := w.squatter(rt)
	w.lan.goes(at.link, at.addr.String())
	delete(w.came, at)
	w.troubled[at.addr] = w.tick()
}

// cable is pulled out of a link, or put in again.
func (w *world) cable(rt *rapid.T) {
	link := rapid.SampledFrom([]string{"eth0", "eth1"}).Draw(rt, "link")
	if w.lan.failing[link] == nil {
		w.lan.fails(link, errDown)
	} else {
		w.lan.fails(link, nil)
	}
	w.failed[link] = w.tick()
}

// readdress gives the host one more address, or takes it one.
func (w *world) readdress(rt *rapid.T) {
	addr := w.any(rt, w.subnet(rt))
	if _, has := w.took[addr]; has {
		delete(w.took, addr)
		delete(w.lan.taken, addr)
		w.troubled[addr] = w.tick()
		return
	}
	w.lan.taken[addr] = "an address of this host"
	w.took[addr] = w.tick()
}

// minutes pass, with all that happens every minute.
func (w *world) minutes(rt *rapid.T) {
	for range rapid.SampledFrom([]int{1, 1, 2, 6, 20}).Draw(rt, "minutes") {
		w.pass(scoutEvery)
		w.lookAround()
		w.scouts.Wait()
	}
}

// seconds pass, and perhaps nothing happens although it should.
func (w *world) seconds(rt *rapid.T) {
	w.pass(time.Duration(rapid.SampledFrom([]int{1, 3, 30, 100, 1000}).Draw(rt, "seconds")) * time.Second)
}

// quiet says that neither a machine nor the host has had an address for long.
func (w *world) quiet(addr netip.Addr) bool {
	for at := range w.came {
		if at.addr == addr {
			return false
		}
	}
	if _, has := w.took[addr]; has {
		return false
	}
	last, ever := w.troubled[addr]
	return !ever || w.tick().Sub(last) > seenFor+time.Second
}

func (n *dockerNetwork) reservedFor(name string) netip.Addr {
	a, _ := n.options.Reserved(name, n.subnet.Addr().Is6())
	return a
}

// sight is what could be known before a request.
type sight struct {
	at    time.Time
	aux   bool // an explicit address without a name is taken for one of a network being created
	blind bool

	strangers bool // in a replay, networks of the pool that were being created
	parents   []string
	rested    map[netip.Addr]time.Time
	inUse     map[netip.Addr]bool
	held      map[netip.Addr]Kind
}

func (w *world) observe(n *dockerNetwork) sight {
	p := w.IPAM.pool(n.subnet)
	s := sight{at: w.tick(), aux: w.IPAM.pending(p) > 0, parents: w.parents(p), rested: map[netip.Addr]time.Time{}, inUse: map[netip.Addr]bool{}, held: w.heldNow(), strangers: w.strangers(p)}
	for _, link := range s.parents {
		if last, ever := w.failed[link]; w.lan.failing[link] != nil || ever && s.at.Sub(last) < 2*time.Second {
			s.blind = true
		}
	}
	for addr, r := range p.alloc.resting {
		s.rested[addr] = r.since
	}
	for addr, o := range p.seen {
		s.inUse[addr] = s.at.Before(o.until) && !o.last.IsZero()
	}
	return s
}

// allowed wants a container's new address to be none that it must not have.
func (w *world) allowed(n *dockerNetwork, r AddressRequest, addr netip.Addr, before sight) {
	if _, held := before.held[addr]; held || before.aux && r.Addr.IsValid() && r.Name == "" {
		return // left behind by a creation, or taken for a part of one
	}
	if since, has := w.took[addr]; has && before.at.Sub(since) > takenFor {
		w.rt.Fatalf("%v is given, and is the host's own", addr)
	}
	for _, o := range w.all() {
		if o.subnet != n.subnet {
			continue
		}
		if o.options.Excluded(addr) {
			w.rt.Fatalf("%v is given, and excluded by %s", addr, o.id)
		}
		for name, addrs := range o.options.Reserve {
			if slices.Contains(addrs, addr) && !r.Addr.IsValid() && (r.Name != name || n.reservedFor(name) != addr) {
				w.rt.Fatalf("%v is given to %q of %s, and reserved for %s by %s", addr, r.Name, n.id, name, o.id)
			}
		}
	}
	for _, link := range before.parents {
		since, there := w.came[place{link, addr}]
		if !there {
			continue
		}
		if before.inUse[addr] && n.options.Conflict != options.Off {
			w.rt.Fatalf("%v is given, and known to be in use on %s", addr, link)
		}
		if rested := before.rested[addr]; since.Before(rested) {
			since = rested // it was ours until then
		}
		if before.at.Sub(since) > freshFor && n.options.Conflict == options.Probe && !before.blind {
			w.rt.Fatalf("%v is given, and in use on %s since %v", addr, link, since)
		}
	}
}

// heeded wants the pool to heed what its networks want of it.
func (w *world) heeded() {
	pools := map[netip.Prefix]PoolState{}
	for _, p := range w.Snapshot().Pools {
		pools[p.Subnet] = p
	}
	for _, n := range w.all() {
		p := pools[n.subnet]
		first, last := usable(n.subnet)
		for _, x := range n.options.Exclude {
			for a := x.First; x.Contains(a); a = a.Next() {
				if !a.Less(first) && !last.Less(a) && !slices.ContainsFunc(p.Excluded, func(r options.Range) bool { return r.Contains(a) }) {
					w.rt.Fatalf("%s excludes %v, but its pool only %v", n.id, a, p.Excluded)
				}
			}
		}
		if a := n.reservedFor("db"); a.IsValid() && p.Reserved[a] != "db" {
			w.rt.Fatalf("%s reserves %v, but its pool %v", n.id, a, p.Reserved)
		}
		if p.Conflict == options.Off && n.options.Conflict != options.Off || p.Conflict == options.Listen && n.options.Conflict == options.Probe {
			w.rt.Fatalf("%s wants %s, but its pool %s", n.id, n.options.Conflict, p.Conflict)
		}
	}
}

// check holds what must always hold.
func (w *world) check(*rapid.T) {
	w.scouts.Wait()
	w.heeded()
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
		for _, t := range p.terms {
			if t.waiting != 0 || len(t.asking) > 0 {
				w.rt.Fatalf("%s: %d wait, %d are asked about", t.id, t.waiting, len(t.asking))
			}
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
		if _, ok := held[a]; ok || n.within.IsValid() && !n.within.Contains(a) {
			continue
		}
		if p := w.IPAM.pool(n.subnet); w.quiet(a) && p.reserved[a] == "" && !p.alloc.excluded.has(a) {
			w.rt.Fatalf("%s is said to be exhausted, but %v is free: %+v", n.pool, a, w.Snapshot())
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
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	a, err := w.RequestAddress(ctx, r)
	if errors.Is(err, context.DeadlineExceeded) {
		w.rt.Fatal(err)
	}
	if err == nil {
		if subnet, _, _ := ParsePoolID(r.PoolID); a.Masked() != subnet && !(r.Gateway && a.Bits() == subnet.Bits()) {
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
	for a := range p.conflicts {
		if p.held[a] == nil {
			err = fmt.Errorf("%v is in conflict and not held", a)
		}
	}
	for id, t := range p.terms {
		if t.id != id || t.refs < 0 || t.before < 0 || t.before > 0 && !p.window {
			err = fmt.Errorf("terms %s as %s of %d networks, %d before", t.id, id, t.refs, t.before)
		}
		for _, s := range t.stock {
			if p.stocked[s.addr] != t {
				err = fmt.Errorf("%v is in stock of %s, and not stocked", s.addr, id)
			}
		}
	}
	for a, t := range p.stocked {
		if p.terms[t.id] != t || p.taken[a] != "" || p.reserved[a] != "" || p.alloc.excluded.has(a) {
			err = fmt.Errorf("%v is in stock of %s, known: %t; taken: %q, reserved: %q, excluded: %t", a, t.id, p.terms[t.id] == t,
				p.taken[a], p.reserved[a], p.alloc.excluded.has(a))
		}
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
		w := newWorld(t, rt)
		defer func() { w.Close(); w.store.Close(); os.Remove(w.path) }() // memory may be scarce
		w.create(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"":               w.check,
			"begin":          w.begin,
			"end":            w.end,
			"remove":         w.remove,
			"start":          w.startSome,
			"start more":     w.startSome,
			"create":         w.create,
			"stop":           w.stop,
			"dockerd":        w.replay,
			"reconnect":      w.reconnect,
			"enable":         w.enable,
			"plugin restart": w.restartPlugin,
			"wait":           w.wait,
			"happen":         w.happen,
			"happen more":    w.happen,
			"minutes":        w.minutes,
			"seconds":        w.seconds,
			"rest":           w.rest,
		})
		w.rest(rt)
	})
}
