package driver

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// world is a host on which anything may happen at any time: containers come and
// go, dockerd and the plugin die between two steps, parents are taken out. It
// knows which containers run.
type world struct {
	*bench
	rt      *rapid.T
	next    int
	running map[string]Endpoint
	ghosts  map[string]Endpoint // of which dockerd has lost track
	away    map[string]bool     // parents that are not there
}

var worldNetworks = map[string]string{"a": "eth0", "b": "eth1.10", "c": "eth1.20"}

func (w *world) network(parent string, m mode.Mode, name string, n int) Network {
	l := lan(name, parent, m)
	l.Subnets = []Subnet{{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", n)), Gateway: netip.MustParseAddr(fmt.Sprintf("10.0.%d.1", n))}}
	return l
}

// crash has the plugin die and start again, now and then.
func (w *world) crash(where string) {
	if rapid.IntRange(0, 5).Draw(w.rt, "crash "+where) == 0 {
		w.Close()
		w.restart()
	}
}

func (w *world) lower(network string) string {
	if network == "a" {
		return "eth0"
	}
	return "eth1"
}

func (w *world) start() {
	network := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(w.rt, "network")
	w.next++
	name := fmt.Sprintf("x%c%c", 'a'+w.next/20, 'a'+w.next%20)
	octet := map[string]int{"a": 0, "b": 1, "c": 2}[network]
	e := Endpoint{ID: id(name), NetworkID: id(network), IPv4: netip.MustParsePrefix(fmt.Sprintf("10.0.%d.%d/24", octet, 2+w.next))}
	_, err := w.CreateEndpoint(ctx, e)
	if w.away[w.lower(network)] {
		if err == nil {
			w.rt.Fatalf("%s: its parent is away, and it is accepted", name)
		}
		return
	}
	if err != nil {
		w.rt.Fatalf("%s: %v", name, err)
	}
	w.crash("after CreateEndpoint")
	if rapid.IntRange(0, 9).Draw(w.rt, "dockerd dies before Join") == 0 {
		w.ghosts[name] = e
		return
	}
	p, err := w.Join(ctx, e.NetworkID, e.ID, sandbox(e.ID))
	if err != nil {
		w.rt.Fatalf("%s: %v", name, err)
	}
	w.crash("after Join")
	i := netlinkutil.Interface{Name: "eth0", MTU: 1500, Up: true, Addrs: []netip.Prefix{e.IPv4}}
	if err := w.kernel.MoveTo(p.LinkName, sandbox(e.ID), i); err != nil {
		w.rt.Fatalf("%s: %v", name, err)
	}
	// A picture is taken half a second later, or by the next reconcile.
	time.Sleep(time.Second)
	w.crash("after the move")
	w.Reconcile()
	w.running[name] = e
}

func (w *world) pick() (string, bool) {
	names := []string{}
	for name := range w.running {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "", false
	}
	slices.Sort(names)
	return rapid.SampledFrom(names).Draw(w.rt, "container"), true
}

func (w *world) stop() {
	name, ok := w.pick()
	if !ok {
		return
	}
	e := w.running[name]
	delete(w.running, name)
	if err := w.Leave(ctx, e.NetworkID, e.ID); err != nil {
		w.rt.Fatal(err)
	}
	if rapid.Bool().Draw(w.rt, "looked at meanwhile") {
		w.Reconcile()
	}
	_ = w.kernel.Return(linkName(e.ID)) // it may have gone with its parent
	w.crash("after Leave")
	w.kernel.EndSandbox(sandbox(e.ID))
	if rapid.IntRange(0, 4).Draw(w.rt, "dockerd dies before DeleteEndpoint") == 0 {
		w.ghosts[name] = e
		return
	}
	if err := w.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
		w.rt.Fatal(err)
	}
	w.crash("after DeleteEndpoint")
}

// vanish ends a container and dockerd with it.
func (w *world) vanish() {
	if name, ok := w.pick(); ok {
		e := w.running[name]
		delete(w.running, name)
		w.ghosts[name] = e
		w.kernel.EndSandbox(sandbox(e.ID))
	}
}

func (w *world) yank() {
	nic := rapid.SampledFrom([]string{"eth0", "eth1", "eth1.10"}).Draw(w.rt, "link")
	if w.away[nic] || nic == "eth1.10" && w.away["eth1"] {
		return
	}
	w.kernel.Yank(nic)
	if nic != "eth1.10" { // which is made again at once
		w.away[nic] = true
	}
}

func (w *world) plug() {
	for i, nic := range []string{"eth0", "eth1"} {
		if w.away[nic] && rapid.Bool().Draw(w.rt, nic+" comes back") {
			w.put(i, nic)
		}
	}
}

func (w *world) put(i int, nic string) {
	mac := []byte{0, 0x16, 0x3e, 0, 0, byte(2 + i)}
	w.kernel.Add(netlinkutil.Link{Name: nic, Kind: "device", MAC: mac, PermMAC: mac, MTU: 1500, Up: true})
	delete(w.away, nic)
}

// check wants each running container to have its interface, and nobody else one.
func (w *world) check() {
	kernel, records := w.kernel.String(), w.Snapshot()
	would := w.DryRun()
	if now := w.kernel.String(); now != kernel {
		w.rt.Fatalf("a dry run has changed the kernel from\n%s\nto\n%s", kernel, now)
	}
	if now := w.Snapshot(); !reflect.DeepEqual(now, records) {
		w.rt.Fatalf("a dry run has changed the records from\n%+v\nto\n%+v", records, now)
	}
	does := w.Reconcile()
	slices.Sort(would.Done)
	slices.Sort(does.Done)
	// In which order endpoints are looked at is open, and so when one first seems to
	// have ended.
	if !slices.Equal(would.Done, does.Done) || len(would.Left) != len(does.Left) {
		w.rt.Fatalf("a dry run says\n%q\nand a reconcile\n%q", would, does)
	}
	for name, e := range w.running {
		_, record, err := w.endpoint(e.NetworkID, e.ID)
		if err != nil {
			w.rt.Fatalf("%s runs, and %v", name, err)
		}
		i, err := w.kernel.Inside(sandbox(e.ID), w.endpointAlias(e.NetworkID, e.ID))
		lost := w.away[w.lower(e.NetworkID[:1])]
		if (err != nil) != lost {
			w.rt.Fatalf("%s (parent away: %v): %v\n%v", name, lost, err, w.kernel)
		}
		if err == nil && !slices.Contains(i.Addrs, e.IPv4) {
			w.rt.Fatalf("%s has %v, want %v", name, i.Addrs, e.IPv4)
		}
		if record.Sandbox != sandbox(e.ID) {
			w.rt.Fatalf("%s is in %q on record", name, record.Sandbox)
		}
	}
	for _, e := range w.Snapshot().Endpoints {
		if !slices.ContainsFunc(w.known(), func(k Endpoint) bool { return k.ID == e.ID }) {
			w.rt.Fatalf("endpoint %s of nobody", Short(e.ID))
		}
	}
}

func (w *world) known() (all []Endpoint) {
	for _, es := range []map[string]Endpoint{w.running, w.ghosts} {
		for _, e := range es {
			all = append(all, e)
		}
	}
	return all
}

// Whatever happens, each container that runs has its interface once its parent is
// there, and what nobody has any more is gone some minutes later.
func TestWorld(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var failed any // rapid's panic, which is for its own goroutine
		synctest.Test(t, func(t *testing.T) {
			defer func() { failed = recover() }()
			w := &world{bench: newBench(t), rt: rt, running: map[string]Endpoint{}, ghosts: map[string]Endpoint{}, away: map[string]bool{}}
			defer func() { w.Close(); w.store.Close() }()
			w.create(w.network("eth0", mode.Default, "a", 0))
			w.create(w.network("eth1.10", mode.Default, "b", 1))
			w.create(w.network("eth1.20", mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}, "c", 2))
			for range rapid.IntRange(1, 30).Draw(rt, "steps") {
				switch rapid.IntRange(0, 9).Draw(rt, "what") {
				case 0, 1, 2, 3:
					w.start()
				case 4, 5:
					w.stop()
				case 6:
					w.vanish()
				case 7:
					w.yank()
				case 8:
					w.plug()
				case 9:
					w.Close()
					w.restart()
				}
				time.Sleep(time.Duration(rapid.IntRange(0, 50).Draw(rt, "seconds")) * time.Second)
				w.check()
			}
			for i, nic := range []string{"eth0", "eth1"} {
				if w.away[nic] {
					w.put(i, nic)
				}
			}
			w.check()
			w.away = map[string]bool{}
			for before := len(w.running); len(w.running) == before; {
				w.start() // so that it is seen where containers are
			}
			for len(w.running) > 0 {
				w.vanish()
			}
			for range 12 {
				w.Reconcile()
				time.Sleep(time.Minute)
			}
			if left := w.Snapshot().Endpoints; len(left) > 0 {
				rt.Fatalf("left: %+v\n%v", left, w.kernel)
			}
			for n := range worldNetworks {
				if err := w.DeleteNetwork(ctx, id(n)); err != nil {
					rt.Fatal(err)
				}
			}
			if links, err := w.kernel.Links(); err != nil || len(links) != 3 {
				rt.Fatalf("left in the kernel, %v:\n%v", err, w.kernel)
			}
		})
		switch { // rapid tells failures apart by the line
		case fmt.Sprintf("%T", failed) == "rapid.invalidData":
			panic(failed)
		case failed != nil:
			panic(failed)
		}
	})
}
