package driver

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"underlay/internal/mode"
	"underlay/internal/store"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

// sandbox is the netns of a test's container.
func sandbox(name string) string {
	return fmt.Sprintf("%s/%x", fake.SandboxDir, sha256.Sum256([]byte(name)))[:len(fake.SandboxDir)+13]
}

// run starts a container: it has the endpoint's link as eth0, with what dockerd
// sets there.
func (b *bench) run(e Endpoint) {
	b.t.Helper()
	if _, err := b.CreateEndpoint(ctx, e); err != nil {
		b.t.Fatal(err)
	}
	b.into(e)
}

func (b *bench) into(e Endpoint) {
	b.t.Helper()
	p, err := b.Join(ctx, e.NetworkID, e.ID, sandbox(e.ID))
	if err != nil {
		b.t.Fatal(err)
	}
	i := netlinkutil.Interface{Name: "eth0", MTU: 1500, Up: true, Addrs: []netip.Prefix{e.IPv4, e.IPv6}}
	for _, gw := range p.Gateways {
		i.Routes = append(i.Routes, netlinkutil.InterfaceRoute{To: defaultRoute(gw), Via: gw})
	}
	if err := b.kernel.MoveTo(p.LinkName, sandbox(e.ID), i); err != nil {
		b.t.Fatal(err)
	}
	b.arrived(e)
	time.Sleep(pictureAgain + time.Second)
}

// plug puts eth0 in again.
func (b *bench) plug() {
	b.kernel.Add(netlinkutil.Link{Name: "eth0", Kind: "device", MAC: net.HardwareAddr{0, 0x16, 0x3e, 0, 0, 2}, PermMAC: net.HardwareAddr{0, 0x16, 0x3e, 0, 0, 2}, MTU: 1500, Up: true})
}

// one is a container of a macvlan network on a parent, and runs.
func (b *bench) one(parent string) Endpoint {
	b.t.Helper()
	b.create(lan("net", parent, mode.Default))
	e := on("net", "one", 10)
	b.run(e)
	return e
}

// inside is the interface of an endpoint in its container.
func (b *bench) inside(e Endpoint) (netlinkutil.Interface, error) {
	return b.kernel.Inside(sandbox(e.ID), b.endpointAlias(e.NetworkID, e.ID))
}

// ended notes the addresses that the driver says are no endpoint's any more.
type ended struct {
	containerNames
	mu    sync.Mutex
	addrs []netip.Addr
}

func (e *ended) Ended(a netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addrs = append(e.addrs, a)
}

// bubble runs a test in which a minute is nothing.
func bubble(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		defer func() { b.Close() }()
		f(t, b)
	})
}

func TestParentComesBack(t *testing.T) {
	for _, m := range mode.All() {
		if m.Alone() {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bench) {
				say := &loudspeaker{}
				b.announcer = say
				b.restart()
				b.create(lan("net", "eth0", m))
				one, two := on("net", "one", 10), on("net", "two", 11)
				b.run(one)
				b.run(two)
				was := b.kernel.String()
				synctest.Wait()
				say.said = nil

				b.kernel.Yank("eth0")
				b.Reconcile()
				if _, err := b.inside(one); !errors.Is(err, netlinkutil.ErrNotFound) {
					t.Fatalf("the parent is gone and the container's interface is there: %v", err)
				}
				_, err := b.CreateEndpoint(ctx, on("net", "three", 12))
				refused(t, err, "parent eth0 is not there (waiting since ", "works again as soon as it is")
				if w := b.Snapshot().Waiting; len(w) != 1 || w[0].Parent != "eth0" {
					t.Errorf("waiting for %+v", w)
				}
				time.Sleep(time.Hour)
				b.Reconcile()
				b.plug()
				b.Reconcile()
				// But for the numbers of the links, all is as it was.
				if got := b.kernel.String(); noIndex(got) != noIndex(was) {
					t.Errorf("the kernel had\n%s\nand has\n%s", was, got)
				}
				if w := b.Snapshot().Waiting; len(w) != 0 {
					t.Errorf("waiting for %+v", w)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if known := m.RoutesByLink(); known != (len(say.said) == 0) {
					t.Errorf("announced %q", say.said)
				}
				// What is there is left alone.
				if r := b.Reconcile(); len(r.Done)+len(r.Left) > 0 {
					t.Errorf("again: %+v", r)
				}
			})
		})
	}
}

// noIndex is the state of a kernel, its links without their numbers and in order.
func noIndex(state string) string {
	lines := strings.Split(state, "\n")
	for i, l := range lines {
		if _, rest, ok := strings.Cut(l, " "); ok && strings.Trim(l[:len(l)-len(rest)-1], "0123456789") == "" {
			lines[i] = rest
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestPluginStartsWithoutTheParent(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0.10")
		b.kernel.Yank("eth0")
		b.Close()
		b.restart()
		_, err := b.CreateEndpoint(ctx, on("net", "two", 11))
		refused(t, err, "parent eth0 is not there, for eth0.10 (waiting since ")
		b.plug()
		r := b.Reconcile()
		for _, want := range []string{"made parent eth0.10", "parent eth0.10 is there", "made interface eth0 of endpoint " + Short(e.ID)} {
			if !slices.ContainsFunc(r.Done, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("%q does not say %q", r.Done, want)
			}
		}
		if _, err := b.inside(e); err != nil {
			t.Error(err)
		}
	})
}

func TestVLANDeletedBySomebody(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.one("eth0.10")
		was := noIndex(b.kernel.String())
		b.kernel.Yank("eth0.10")
		b.Reconcile()
		if got := noIndex(b.kernel.String()); got != was {
			t.Errorf("the kernel had\n%s\nand has\n%s", was, got)
		}
	})
}

// The name of a VLAN link may be a derived one, which does not show what it is on:
// that of a USB NIC is as long as a name can be.
func TestNICOfADerivedVLANNameComesBack(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		const nic = "enx00163e000004"
		b.kernel.AddNIC(nic)
		n := lan("net", nic, mode.Default)
		n.Options.VLAN = 10
		b.create(n)
		e := on("net", "one", 10)
		b.run(e)
		go b.Watch(b.kernel, func() {})
		time.Sleep(time.Second)
		b.kernel.Yank(nic)
		time.Sleep(time.Second)
		b.kernel.AddNIC(nic)
		time.Sleep(reconcileAfter + 10*time.Millisecond)
		synctest.Wait()
		if _, err := b.inside(e); err != nil {
			t.Error(err)
		}
	})
}

// The interface is as it was last seen, whatever dockerd and the container have
// done to it, but not as it was while its parent had no carrier.
func TestInterfaceIsAsLastSeen(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		alias := b.endpointAlias(e.NetworkID, e.ID)
		route := netlinkutil.InterfaceRoute{To: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("192.168.50.9")}
		b.kernel.Alter(sandbox(e.ID), alias, func(i *netlinkutil.Interface) { i.Routes = append(i.Routes, route) })
		b.Reconcile()
		b.kernel.Unplug("eth0")
		b.kernel.Alter(sandbox(e.ID), alias, func(i *netlinkutil.Interface) { i.Routes = nil })
		b.Reconcile()
		b.kernel.Yank("eth0")
		b.plug()
		b.Reconcile()
		i, err := b.inside(e)
		if err != nil || !slices.Contains(i.Routes, route) || len(i.Routes) != 3 {
			t.Errorf("%+v, %v", i, err)
		}
	})
}

// dockerd takes the default route from one interface of a container to another, when
// it puts that in and when it takes it out.
func TestRoommatesArePictured(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		one := b.one("eth0")
		b.create(lan("net2", "eth1", mode.Default))
		two := on("net2", "two", 11)
		gw := netip.MustParseAddr("192.168.50.1")
		gateway := func(there bool) {
			b.kernel.Alter(sandbox(one.ID), b.endpointAlias(one.NetworkID, one.ID), func(i *netlinkutil.Interface) {
				i.Routes = nil
				if there {
					i.Routes = []netlinkutil.InterfaceRoute{{To: defaultRoute(gw), Via: gw}}
				}
			})
		}
		pictured := func(routes int) {
			t.Helper()
			time.Sleep(pictureAgain + time.Second)
			if _, e, err := b.endpoint(one.NetworkID, one.ID); err != nil || e.Interface == nil || len(e.Interface.Routes) != routes {
				t.Errorf("the first interface is pictured as %+v, want %d routes", e.Interface, routes)
			}
		}
		if _, err := b.CreateEndpoint(ctx, two); err != nil {
			t.Fatal(err)
		}
		p, err := b.Join(ctx, two.NetworkID, two.ID, sandbox(one.ID))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.kernel.MoveTo(p.LinkName, sandbox(one.ID), netlinkutil.Interface{Name: "eth1", MTU: 1500, Up: true, Addrs: []netip.Prefix{two.IPv4}}); err != nil {
			t.Fatal(err)
		}
		b.arrived(two)
		gateway(false)
		pictured(0)
		if err := b.Leave(ctx, two.NetworkID, two.ID); err != nil {
			t.Fatal(err)
		}
		if err := b.DeleteEndpoint(ctx, two.NetworkID, two.ID); err != nil {
			t.Fatal(err)
		}
		gateway(true)
		pictured(1)
	})
}

func TestMTUComesBack(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		for _, tt := range []struct{ parent, want int }{{1400, 1400}, {1300, 1300}, {1450, 1450}, {9000, 1500}, {1500, 1500}} {
			b.kernel.Set("eth0", func(l *netlinkutil.Link) { l.MTU = tt.parent })
			b.Reconcile()
			if i, err := b.inside(e); err != nil || i.MTU != tt.want {
				t.Errorf("parent %d: %d, want %d (%v)", tt.parent, i.MTU, tt.want, err)
			}
		}
	})
}

func TestMTUOfVLANComesBack(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0.10")
		go b.Watch(b.kernel, func() {})
		time.Sleep(time.Second)
		for range 2 {
			b.kernel.Set("eth0", func(l *netlinkutil.Link) { l.MTU = 1400 })
			time.Sleep(time.Millisecond) // and back before anybody has looked
			if i, err := b.inside(e); err != nil || i.MTU != 1400 {
				t.Fatal(i.MTU, err)
			}
			b.kernel.Set("eth0", func(l *netlinkutil.Link) { l.MTU = 1500 })
			time.Sleep(time.Second)
			if i, err := b.inside(e); err != nil || i.MTU != 1500 {
				t.Error(i.MTU, err)
			}
		}
	})
}

// Only what has ended for certain is forgotten.
func TestEndOfEndpoints(t *testing.T) {
	e := on("net", "one", 10)
	for _, tt := range []struct {
		name  string
		do    func(b *bench)
		ends  bool
		after time.Duration // that it takes
	}{
		{name: "runs", do: func(b *bench) { b.run(e) }},
		{name: "container gone", ends: true, after: time.Minute, do: func(b *bench) {
			b.run(e)
			b.kernel.EndSandbox(sandbox(e.ID))
		}},
		{name: "container gone, and no way to know", do: func(b *bench) {
			b.kernel.ForbidEntry(true)
			b.run(e)
			b.kernel.EndSandbox(sandbox(e.ID))
		}},
		{name: "never joined", ends: true, after: time.Minute, do: func(b *bench) { b.CreateEndpoint(ctx, e) }},
		{name: "joined and not moved", ends: true, after: 10 * time.Minute, do: func(b *bench) {
			b.CreateEndpoint(ctx, e)
			b.Join(ctx, e.NetworkID, e.ID, sandbox(e.ID))
		}},
		{name: "joined and not moved, dockerd restarted", ends: true, after: time.Minute, do: func(b *bench) {
			b.CreateEndpoint(ctx, e)
			b.Join(ctx, e.NetworkID, e.ID, sandbox(e.ID))
			b.DaemonConnected()
		}},
		{name: "dockerd restarted, containers live on", do: func(b *bench) {
			b.run(e)
			b.DaemonConnected()
		}},
		{name: "moved back, no word", ends: true, after: time.Minute, do: func(b *bench) {
			b.run(e)
			b.kernel.Return(linkName(e.ID))
		}},
		{name: "left, no word", ends: true, after: time.Minute, do: func(b *bench) {
			b.run(e)
			b.Leave(ctx, e.NetworkID, e.ID)
			b.kernel.Return(linkName(e.ID))
		}},
		{name: "left, moved back and the plugin restarted", ends: true, do: func(b *bench) {
			b.run(e)
			b.kernel.Return(linkName(e.ID))
			b.Close()
			b.restart()
		}},
		{name: "joined, the plugin restarted, moved", do: func(b *bench) {
			b.CreateEndpoint(ctx, e)
			p, _ := b.Join(ctx, e.NetworkID, e.ID, sandbox(e.ID))
			b.Close()
			b.restart()
			b.kernel.MoveTo(p.LinkName, sandbox(e.ID), netlinkutil.Interface{Name: "eth0", Up: true, MTU: 1500})
		}},
		{name: "created, the plugin restarted, joined", do: func(b *bench) {
			b.CreateEndpoint(ctx, e)
			b.Close()
			b.restart()
			b.into(e)
		}},
		{name: "dockerd says that it has released the address", ends: true, do: func(b *bench) {
			b.CreateEndpoint(ctx, e)
			if err := b.Released(ctx, e.IPv4.Addr()); err != nil {
				b.t.Error(err)
			}
		}},
		{name: "released, but a container has it", do: func(b *bench) {
			b.run(e)
			b.Released(ctx, e.IPv6.Addr())
		}},
		{name: "released, who knows", do: func(b *bench) {
			b.kernel.ForbidEntry(true)
			b.run(e)
			b.Released(ctx, e.IPv6.Addr())
		}},
		{name: "another's address released", do: func(b *bench) {
			b.run(e)
			b.Released(ctx, netip.MustParseAddr("192.168.50.11"))
		}},
		{name: "the host was booted", ends: true, do: func(b *bench) {
			b.run(e)
			b.Close()
			b.kernel.EndSandbox(sandbox(e.ID))
			b.boot = "another"
			b.restart()
		}},
		{name: "the same boot", do: func(b *bench) {
			b.run(e)
			b.Close()
			b.restart()
		}},
		{name: "parent away", do: func(b *bench) {
			b.run(e)
			b.kernel.Yank("eth0")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bench) {
				b.boot = "this"
				b.restart()
				b.create(lan("net", "eth0", mode.Default))
				tt.do(b)
				_, _, err := b.endpoint(e.NetworkID, e.ID)
				if early := err != nil; early != (tt.ends && tt.after == 0) {
					t.Fatalf("at once: %v", err)
				}
				b.Reconcile()
				time.Sleep(max(tt.after, time.Minute) - time.Second)
				b.Reconcile()
				if _, _, err = b.endpoint(e.NetworkID, e.ID); (err != nil) != (tt.ends && tt.after == 0) {
					t.Fatalf("before its time is over: %v", err)
				}
				for range 3 {
					time.Sleep(2 * time.Second)
					b.Reconcile()
				}
				if _, _, err = b.endpoint(e.NetworkID, e.ID); (err != nil) != tt.ends {
					t.Fatalf("after it: %v", err)
				}
				if _, err := b.kernel.Link(linkName(e.ID)); tt.ends && err == nil {
					t.Error("its link is there")
				}
			})
		})
	}
}

// Records of an earlier version, or of a plugin killed at Join, do not say which
// container has the link.
func TestContainersAreFound(t *testing.T) {
	for _, tt := range []struct {
		name   string
		forbid bool
		gone   bool // with another of ours seen in its container
		ends   bool
	}{
		{name: "there"},
		{name: "no entry", forbid: true},
		{name: "gone", gone: true, ends: true},
		{name: "gone, no entry", gone: true, forbid: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bench) {
				b.create(lan("net", "eth0", mode.Default))
				one, two := on("net", "one", 10), on("net", "two", 11)
				b.run(one)
				b.run(two)
				_, e, _ := b.endpoint(one.NetworkID, one.ID)
				old := Endpoint{ID: e.ID, NetworkID: e.NetworkID, IPv4: e.IPv4, IPv6: e.IPv6, MAC: e.MAC}
				if err := b.store.Apply(put(endpointBucket, e.ID, old)); err != nil {
					t.Fatal(err)
				}
				b.Close()
				if tt.gone {
					b.kernel.EndSandbox(sandbox(one.ID))
				}
				b.kernel.ForbidEntry(tt.forbid)
				b.restart()
				for range 5 {
					b.Reconcile()
					time.Sleep(time.Minute)
				}
				_, e, err := b.endpoint(one.NetworkID, one.ID)
				if (err != nil) != tt.ends {
					t.Fatal(err)
				}
				if !tt.gone && !tt.forbid && (e.Sandbox != sandbox(one.ID) || e.Interface == nil) {
					t.Errorf("not found: %+v", e)
				}
			})
		})
	}
}

// A plugin that looks for containers in the wrong place sees none, and must not
// believe that all have ended.
func TestWrongPlace(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.create(lan("net", "eth0", mode.Default))
		b.kernel.ForbidEntry(true) // no picture is ever taken
		e := on("net", "one", 10)
		b.run(e)
		b.kernel.ForbidEntry(false)
		b.kernel.EndSandbox(sandbox(e.ID)) // is no more, as far as can be seen
		for range 5 {
			b.Reconcile()
			time.Sleep(time.Minute)
		}
		if _, _, err := b.endpoint(e.NetworkID, e.ID); err != nil {
			t.Error(err)
		}
	})
}

func TestLostInterfaceIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.create(lan("net", "eth0", mode.Default))
		b.kernel.ForbidEntry(true)
		e := on("net", "one", 10)
		b.run(e)
		b.kernel.Yank("eth0")
		b.Reconcile()
		b.plug()
		r := b.Reconcile()
		if len(r.Left) != 1 || !strings.Contains(r.Left[0], "192.168.50.10, fd00:50::a) has lost its interface; restart its container") {
			t.Errorf("%q", r.Left)
		}
	})
}

func TestForgottenAddressesAreSaid(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		says := &ended{containerNames: b.names}
		b.holdings = says
		e := b.one("eth0")
		b.kernel.EndSandbox(sandbox(e.ID))
		b.Reconcile()
		time.Sleep(time.Minute)
		b.Reconcile()
		if want := []netip.Addr{e.IPv4.Addr(), e.IPv6.Addr()}; !slices.Equal(says.addrs, want) {
			t.Errorf("%v, want %v", says.addrs, want)
		}
	})
}

// A container that leaves while its interface is made again has none afterwards.
func TestLeavesMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		b.kernel.Yank("eth0")
		b.plug()
		slow := &slowRestore{Kernel: b.kernel, before: func() {
			if err := errors.Join(b.Leave(ctx, e.NetworkID, e.ID), b.DeleteEndpoint(ctx, e.NetworkID, e.ID)); err != nil {
				t.Error(err)
			}
		}}
		b.Driver.kernel = slow
		b.Reconcile()
		if _, err := b.inside(e); !errors.Is(err, netlinkutil.ErrNotFound) {
			t.Errorf("the container has an interface that nobody knows: %v", err)
		}
	})
}

type slowRestore struct {
	*fake.Kernel
	before func()
}

func (s *slowRestore) Restore(sandbox string, sub netlinkutil.SubInterface, as netlinkutil.Interface) error {
	s.before()
	return s.Kernel.Restore(sandbox, sub, as)
}

// What is told to the LAN of an interface made again does not make a container
// that leaves one that stays.
func TestLeavesWhileAnnounced(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.announcer = &loudspeaker{}
		b.restart()
		e := b.one("eth0")
		n, record, err := b.endpoint(e.NetworkID, e.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Leave(ctx, e.NetworkID, e.ID); err != nil {
			t.Fatal(err)
		}
		b.announceAgain(n, record)
		if !b.isLeaving(record) {
			t.Error("it is not leaving any more")
		}
	})
}

// A start that finds nothing to change writes nothing.
func TestStartWritesNothing(t *testing.T) {
	b := newBench(t)
	b.boot = "this"
	b.restart()
	b.create(lan("net", "eth0", mode.Default))
	b.start(on("net", "one", 10))
	b.Close()
	b.store.Close()
	was, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	if b.store, err = store.Open(b.path); err != nil {
		t.Fatal(err)
	}
	if b.Driver, err = New(b.kernel, b.store, Config{Holdings: b.names, Log: b.log, Boot: b.boot}); err != nil {
		t.Fatal(err)
	}
	b.Recover()
	b.Close()
	b.store.Close()
	if is, err := os.ReadFile(b.path); err != nil || !bytes.Equal(is, was) {
		t.Errorf("the state file has changed (%v)", err)
	}
}

// Watch mends within a moment, and says so.
func TestWatchMends(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.create(lan("net", "eth0", mode.Default))
		var all []Endpoint
		for i := range 20 {
			e := on("net", fmt.Sprintf("c%c", 'a'+i), 10+i)
			b.run(e)
			all = append(all, e)
		}
		go b.Watch(b.kernel, func() {})
		time.Sleep(time.Second)
		b.kernel.Yank("eth0")
		time.Sleep(time.Minute + time.Second/2)
		b.plug()
		time.Sleep(reconcileAfter + 10*time.Millisecond)
		synctest.Wait()
		for _, e := range all {
			if _, err := b.inside(e); err != nil {
				t.Error(err)
			}
		}
	})
}

// The host gets an address while containers run, which then know it.
func TestHostIsShown(t *testing.T) {
	for _, tt := range []struct {
		name   string
		forbid bool
		want   string // routes to the new address
		left   int
	}{
		{name: "entry", want: "192.168.50.3/32 via 169.254.50.2"},
		{name: "no entry", forbid: true, left: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bench) {
				b.hostIsOnLAN()
				b.create(accessible("net", "eth0", mode.Default))
				e := on("net", "one", 10)
				b.run(e)
				b.kernel.ForbidEntry(tt.forbid)
				b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.3/24"))
				if r := b.Reconcile(); len(r.Left) != tt.left {
					t.Errorf("left %q", r.Left)
				}
				b.kernel.ForbidEntry(false)
				in, err := b.inside(e)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, r := range in.Routes {
					if r.To == netip.MustParsePrefix("192.168.50.3/32") {
						got = append(got, r.String())
					}
				}
				if strings.Join(got, ";") != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
				if !tt.forbid {
					_, now, _ := b.endpoint(e.NetworkID, e.ID)
					if !reflect.DeepEqual(*now.Interface, in) {
						t.Errorf("pictured as %+v, and is %+v", *now.Interface, in)
					}
					if r := b.Reconcile(); len(r.Done) > 0 {
						t.Errorf("again: %q", r.Done)
					}
				}
			})
		})
	}
}

// A container on two networks of a parent has its routes to the host from the one,
// and from the other when it leaves that.
func TestHostIsShownByTheOtherNetwork(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.hostIsOnLAN()
		b.create(accessible("a", "eth0", mode.Default), accessible("b", "eth0", mode.Default))
		one, two := on("a", "one", 10), on("b", "two", 11)
		b.run(one)
		if _, err := b.CreateEndpoint(ctx, two); err != nil {
			t.Fatal(err)
		}
		if p, err := b.Join(ctx, two.NetworkID, two.ID, sandbox(one.ID)); err != nil || len(p.Routes) > 0 {
			t.Fatalf("%+v, %v", p.Routes, err)
		}
		if err := b.kernel.MoveTo(linkName(two.ID), sandbox(one.ID), netlinkutil.Interface{Name: "eth1", MTU: 1500, Up: true, Addrs: two.prefixes()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.Leave(ctx, one.NetworkID, one.ID)
		b.kernel.RemoveInside(sandbox(one.ID), b.endpointAlias(one.NetworkID, one.ID))
		if err := b.DeleteEndpoint(ctx, one.NetworkID, one.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		in, err := b.kernel.Inside(sandbox(one.ID), b.endpointAlias(two.NetworkID, two.ID))
		if err != nil || !strings.Contains(fmt.Sprint(in.Routes), "192.168.50.2/32 via 169.254.50.2") {
			t.Errorf("%v, %v", in.Routes, err)
		}
	})
}

// dockerd, killed in the middle of a container's start, deletes the endpoint without
// having moved its link back, and does not know the container any more.
func TestEndpointLeftInALostContainer(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		other := on("net", "two", 11)
		b.run(other)
		b.kernel.ForbidEntry(true) // its path leads elsewhere by now
		if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
			t.Fatal(err)
		}
		b.kernel.ForbidEntry(false)
		if _, err := b.inside(e); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its interface is there: %v", err)
		}
		if _, err := b.inside(other); err != nil {
			t.Errorf("another one's is not: %v", err)
		}
	})
}

// The status has the first lines of what is left, and how many there are.
func TestReconciledLeft(t *testing.T) {
	for lines, want := range map[int]string{0: "", 1: "line 0", mostLeft: "line 19", mostLeft + 1: "… and 1 more: ", 1000: "… and 980 more: "} {
		var d Driver
		r := &Report{}
		for n := range lines {
			r.left("line %d", n)
		}
		d.tally.note(all, r)
		s := d.Reconciled()
		if s.Unmended != lines || len(s.Left) != min(lines, mostLeft+1) {
			t.Errorf("of %d lines, %d: %q", lines, s.Unmended, s.Left)
		} else if lines > 0 && !strings.HasPrefix(s.Left[len(s.Left)-1], want) {
			t.Errorf("of %d lines, the last is %q", lines, s.Left[len(s.Left)-1])
		}
		if len(r.Left) != lines {
			t.Errorf("the report has %d lines of %d", len(r.Left), lines)
		}
	}
}

// The reconcile of each minute is at the minute, with whatever else looks then.
func TestWatchEachMinute(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		time.Sleep(20 * time.Second)
		var looks atomic.Int32
		go b.Watch(b.kernel, func() { looks.Add(1) })
		time.Sleep(time.Second)
		synctest.Wait()
		looks.Store(0) // that of its start
		var last time.Time
		for n := range 3 {
			time.Sleep(time.Minute)
			synctest.Wait()
			at := b.Reconciled().At
			if at.Second() != 0 || at == last || int(looks.Load()) != n+1 {
				t.Errorf("look %d, reconciled at %v, and before that at %v", looks.Load(), at, last)
			}
			last = at
		}
	})
}
