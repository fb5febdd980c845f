package driver

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"underlay/internal/mode"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
)

// hooked is a kernel in which something happens in the middle of a call.
type hooked struct {
	*fake.Kernel
	deleting, adding, listing func()
}

func (h *hooked) Links() ([]netlinkutil.Link, error) {
	if h.listing != nil {
		h.listing()
	}
	return h.Kernel.Links()
}

func (h *hooked) DeleteLink(name string) error {
	if h.deleting != nil {
		h.deleting()
	}
	return h.Kernel.DeleteLink(name)
}

func (h *hooked) AddSubInterface(s netlinkutil.SubInterface) (netlinkutil.Link, error) {
	if h.adding != nil {
		h.adding()
	}
	return h.Kernel.AddSubInterface(s)
}

// A record that is being deleted is not put back by who has just looked at the
// container: after the next start it would hold an address that is another's.
func TestDeletedRecordStaysDeleted(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		synctest.Wait()
		b.Driver.kernel = &hooked{Kernel: b.kernel, deleting: func() {
			b.update(e.ID, func(e *Endpoint) { e.Arrived = true })
		}}
		if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
			t.Fatal(err)
		}
		b.Close()
		b.restart()
		if s := b.Snapshot(); len(s.Endpoints) != 0 {
			t.Errorf("after the next start: %+v", s.Endpoints)
		}
	})
}

// A page of endpoints that are gone before they are described is not the last one.
func TestPageOfGone(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.create(lan("net", "eth0", mode.Default))
		one, two := on("net", "one", 10), on("net", "two", 11)
		b.run(one)
		b.run(two)
		first, last := min(one.ID, two.ID), max(one.ID, two.ID)
		synctest.Wait()
		b.Driver.kernel = &hooked{Kernel: b.kernel, listing: func() {
			b.mu.Lock()
			delete(b.endpoints, first)
			b.mu.Unlock()
		}}
		page, next, err := b.EndpointStates(EndpointQuery{Most: 1})
		if err != nil || len(page) != 0 || next != first {
			t.Fatalf("%v, then %q, %v", page, next, err)
		}
		if page, next, err = b.EndpointStates(EndpointQuery{Most: 1, After: next}); err != nil || len(page) != 1 || page[0].ID != last || next != "" {
			t.Errorf("%v, then %q, %v", page, next, err)
		}
	})
}

// dockerd gives an endpoint up that is still being made.
func TestGivenUpMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		n := lan("net", "eth0", mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"})
		n.Options.HostAccess = true
		b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.2/24"))
		b.create(n)
		was := b.kernel.String()
		e := on("net", "one", 10)
		synctest.Wait()
		b.Driver.kernel = &hooked{Kernel: b.kernel, adding: func() {
			if err := b.Released(ctx, e.IPv4.Addr()); err != nil {
				t.Error(err)
			}
		}}
		_, err := b.CreateEndpoint(ctx, e)
		refused(t, err, "is unknown to underlay")
		if got := b.kernel.String(); got != was {
			t.Errorf("the kernel had\n%s\nand has\n%s", was, got)
		}
		b.Close()
		b.restart()
		if s := b.Snapshot(); len(s.Endpoints) != 0 {
			t.Errorf("after the next start: %+v", s.Endpoints)
		}
	})
}

// What dockerd has taken out of a running container while the plugin was away is
// not put in again.
func TestDisconnectedWhileAway(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		b.Close()
		if err := errors.Join(b.kernel.Return(linkName(e.ID)), b.kernel.DeleteLink(linkName(e.ID))); err != nil {
			t.Fatal(err)
		}
		b.restart()
		for range 3 {
			b.Reconcile()
			time.Sleep(time.Minute)
		}
		if _, err := b.inside(e); err == nil {
			t.Fatal("a container that was disconnected has an interface again")
		}
		if r := b.Reconcile(); len(r.Left) != 1 || !strings.Contains(r.Left[0], "it has not gone with its parent") {
			t.Errorf("%q", r.Left)
		}
		if err := b.Released(ctx, e.IPv4.Addr()); err != nil {
			t.Fatal(err)
		}
		if s := b.Snapshot(); len(s.Endpoints) != 0 {
			t.Errorf("dockerd has released its address, and there is %+v", s.Endpoints)
		}
	})
}

// An interface of which only a part could be made is not taken for what the
// container had.
func TestUnfinishedInterfaceIsFinished(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		was, _ := b.inside(e)
		b.kernel.Yank("eth0")
		b.plug()
		half := &halfRestore{Kernel: b.kernel}
		synctest.Wait()
		b.Driver.kernel = half
		if r := b.Reconcile(); len(r.Left) != 1 || !strings.Contains(r.Left[0], "is not made again") {
			t.Errorf("%q", r.Left)
		}
		half.whole = true
		b.Reconcile()
		is, err := b.inside(e)
		if err != nil || !slices.Equal(is.Routes, was.Routes) || !slices.Equal(is.Addrs, was.Addrs) {
			t.Errorf("it was\n%+v\nand is\n%+v, %v", was, is, err)
		}
	})
}

// halfRestore fails at the routes.
type halfRestore struct {
	*fake.Kernel
	whole bool
}

func (h *halfRestore) Restore(sandbox string, s netlinkutil.SubInterface, want netlinkutil.Interface) error {
	if h.whole {
		return h.Kernel.Restore(sandbox, s, want)
	}
	want.Routes = nil
	return errors.Join(h.Kernel.Restore(sandbox, s, want), errors.New("adding the container's route: no buffer space"))
}

// A parent that is renamed takes its containers along, and the host's way to them.
func TestParentRenamed(t *testing.T) {
	for _, forbid := range []bool{false, true} {
		bubble(t, func(t *testing.T, b *bench) {
			n := lan("net", "eth0", mode.Default)
			n.Options.HostAccess = true
			b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.2/24"))
			b.create(n)
			b.kernel.ForbidEntry(forbid)
			e := on("net", "one", 10)
			b.run(e)
			was := b.kernel.String()
			_, before, _ := b.endpoint(e.NetworkID, e.ID)
			if err := b.kernel.Rename("eth0", "lan0"); err != nil {
				t.Fatal(err)
			}
			b.Reconcile()
			if got := strings.ReplaceAll(b.kernel.String(), "lan0", "eth0"); got != was {
				t.Errorf("the kernel had\n%s\nand has\n%s", was, got)
			}
			b.plug() // another NIC
			r := b.Reconcile()
			if _, after, _ := b.endpoint(e.NetworkID, e.ID); after.ParentIndex != before.ParentIndex {
				t.Errorf("it is said to be on link %d, not %d", after.ParentIndex, before.ParentIndex)
			}
			for _, l := range r.Left {
				if strings.Contains(l, "lost") {
					t.Errorf("an interface that is there is given up: %q", l)
				}
			}
			if !forbid && !slices.ContainsFunc(r.Left, func(s string) bool { return strings.Contains(s, "is on link lan0, which was eth0") }) {
				t.Errorf("%q", r.Left)
			}
			b.kernel.ForbidEntry(false)
			if _, err := b.inside(e); err != nil {
				t.Error(err)
			}
			two := on("net", "two", 11)
			if _, err := b.CreateEndpoint(ctx, two); err != nil {
				t.Errorf("on the new eth0: %v", err)
			}
		})
	}
}

// dockerd's word that an endpoint is deleted is enough for its link, whichever
// state file made that.
func TestLinkOfALostRecord(t *testing.T) {
	for _, tt := range []struct {
		alias string
		goes  bool
	}{
		{"underlay 0badcafe endpoint one000000000 of network net000000000", true},
		{"underlay 0badcafe endpoint two000000000 of network net000000000", false},
		{"underlay 0badcafe endpoint one000000000 of network other0000000", false},
		{"underlay endpoint one000000000 of network net000000000", false},
		{"", false},
	} {
		b := newBench(t)
		b.kernel.Add(netlinkutil.Link{Name: linkName(id("one")), Kind: "macvlan", Lower: "eth0", Alias: tt.alias, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
		if err := b.DeleteEndpoint(ctx, id("net"), id("one")); err != nil {
			t.Error(err)
		}
		if _, err := b.kernel.Link(linkName(id("one"))); (err != nil) != tt.goes {
			t.Errorf("%q: %v", tt.alias, err)
		}
	}
}

// An address is not given up over a question that the kernel did not answer.
func TestReleasedWithoutAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		b.kernel.Fail("Link", 1, errors.New("the kernel is busy"))
		if err := b.Released(ctx, e.IPv4.Addr()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.endpoint(e.NetworkID, e.ID); err != nil {
			t.Error(err)
		}
	})
}

func TestNobodyWaits(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.create(lan("net", "eth0", mode.Default))
		b.kernel.Yank("eth0")
		b.Reconcile()
		if err := b.DeleteNetwork(ctx, id("net")); err != nil {
			t.Fatal(err)
		}
		if w := b.Snapshot().Waiting; len(w) != 0 {
			t.Errorf("waiting for %+v", w)
		}
	})
}

// The container's own MTU is its own, until its parent's changes.
func TestMTUOfTheContainer(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		b.Reconcile()
		b.kernel.Alter(sandbox(e.ID), b.endpointAlias(e.NetworkID, e.ID), func(i *netlinkutil.Interface) { i.MTU = 1400 })
		b.Reconcile()
		if i, err := b.inside(e); err != nil || i.MTU != 1400 {
			t.Errorf("MTU %d, %v", i.MTU, err)
		}
	})
}

// An endpoint of another IPAM driver says nothing of the addresses of underlay's.
func TestEndOfAForeignEndpoint(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		says := &ended{containerNames: b.names}
		b.holdings = says
		n := lan("net", "eth0", mode.Default)
		n.ForeignIPAM = true
		b.create(n)
		e := on("net", "one", 10)
		b.run(e)
		b.kernel.EndSandbox(sandbox(e.ID))
		b.Reconcile()
		time.Sleep(time.Minute)
		b.Reconcile()
		if len(b.Snapshot().Endpoints) != 0 || len(says.addrs) != 0 {
			t.Errorf("%+v, %v", b.Snapshot().Endpoints, says.addrs)
		}
	})
}

// What is known of an endpoint in one container is not true of the next.
func TestJoinsAnother(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		if err := errors.Join(b.Leave(ctx, e.NetworkID, e.ID), b.kernel.Return(linkName(e.ID))); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Join(ctx, e.NetworkID, e.ID, sandbox("another")); err != nil {
			t.Fatal(err)
		}
		b.Close()
		b.restart()
		if _, _, err := b.endpoint(e.NetworkID, e.ID); err != nil {
			t.Error(err)
		}
	})
}

// What could not be deleted from the disk is there at the next start, and must be
// so until then.
func TestEndOnAFullDisk(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		e := b.one("eth0")
		b.kernel.EndSandbox(sandbox(e.ID))
		b.Reconcile()
		time.Sleep(time.Minute)
		b.store.Close()
		b.Reconcile()
		synctest.Wait()
		if _, ok := b.Holder(e.IPv4.Addr()); !ok {
			t.Error("its record is on disk, and its address is free")
		}
	})
}

// A driver that is ended begins nothing.
func TestReconcileAfterTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.create(lan("net", "eth0", mode.Default))
		b.run(on("net", "one", 10))
		b.kernel.Yank("eth0")
		b.plug()
		was := b.kernel.String()
		b.Close()
		b.Reconcile()
		if got := b.kernel.String(); got != was {
			t.Errorf("the kernel had\n%s\nand has\n%s", was, got)
		}
	})
}

// dockerd comes back to an endpoint in the moment in which it is given up: it is
// told that it is too late, or keeps all of it.
func TestJoinsAtTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.create(lan("net", "eth0", mode.Default))
		e := on("net", "one", 10)
		if _, err := b.CreateEndpoint(ctx, e); err != nil {
			t.Fatal(err)
		}
		b.Reconcile()
		time.Sleep(time.Minute)
		var err error
		b.Driver.kernel = &hooked{Kernel: b.kernel, deleting: func() {
			_, err = b.Join(ctx, e.NetworkID, e.ID, sandbox(e.ID))
		}}
		b.Reconcile()
		refused(t, err, "is unknown to underlay; restart the container")
		if len(b.Snapshot().Endpoints) != 0 {
			t.Error("it has no link, and is there")
		}
	})
}
