package dhcp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"underlay/internal/wall"
)

const (
	discover = dhcpv4.MessageTypeDiscover
	request  = dhcpv4.MessageTypeRequest
	ack      = dhcpv4.MessageTypeAck
	nak      = dhcpv4.MessageTypeNak
)

// TestLife: a lease is renewed at T1, by unicast from its address, for as long as
// the server is there.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		began := time.Now()
		l, err := c.try(10*time.Second, Ask{Key: "1", Link: "eth0", MAC: hw(1), Hostname: "web", VendorClass: "underlay"})
		if err != nil || l.Addr.String() != "10.0.0.100/24" || l.Routers[0] != srv.addr {
			t.Fatal(l, err)
		}
		if d := time.Since(began); d != 4*n.delay {
			t.Errorf("two round trips took %s", d)
		}
		for _, q := range n.questions() {
			if !q.m.IsBroadcast() || q.to != everyAddr || !q.from.IsUnspecified() || q.ether.String() != hw(1).String() ||
				q.m.HostName() != "web" || q.m.ClassIdentifier() != "underlay" ||
				!bytes.Equal(q.m.Options.Get(dhcpv4.OptionClientIdentifier), append([]byte{1}, hw(1)...)) {
				t.Errorf("%+v: %s", q, q.m.Summary())
			}
		}
		synctest.Wait()
		for i := range 10 {
			n.clear()
			at := c.status("1").Granted
			time.Sleep(time.Until(at.Add(31 * time.Minute)))
			synctest.Wait()
			q := n.all(request)
			if len(n.questions()) != 1 || len(q) != 1 || q[0].to != srv.addr || q[0].from != l.Addr.Addr() ||
				!q[0].m.ClientIPAddr.Equal(l.Addr.Addr().AsSlice()) || q[0].m.ServerIdentifier() != nil || q[0].m.RequestedIPAddress() != nil {
				t.Fatalf("renewal %d: %+v", i, n.questions())
			}
			// A tenth earlier than T1 at most.
			if d := q[0].at.Sub(at); d < 27*time.Minute || d > 30*time.Minute {
				t.Errorf("renewal %d after %s", i, d)
			}
		}
		if c.told(Renewed) != 10 || len(c.all()) != 10 {
			t.Errorf("%+v", c.all())
		}
		if n.opened < 10 || n.plugged() != 0 {
			t.Errorf("a socket is open, %d were", n.opened) // nothing is asked now
		}
		c.Release("1")
		synctest.Wait()
		if q := n.all(dhcpv4.MessageTypeRelease); len(q) != 1 || q[0].to != srv.addr || q[0].from != l.Addr.Addr() || len(c.Status()) != 0 {
			t.Errorf("%+v", q)
		}
	})
}

// TestAway: nobody renews, then the lease expires, and however long the server is
// away, the client is there when it is back.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		l, err := c.try(10*time.Second, asker(1))
		if err != nil {
			t.Fatal(err)
		}
		srv.set(func() { srv.away = true })
		n.clear()
		time.Sleep(53 * time.Minute)
		synctest.Wait()
		if e := c.last(); e.What != Late || e.Err == nil || !c.status("1").Holds {
			t.Fatalf("%+v", e)
		}
		if q := n.questions(); len(q) < 4 || len(q) > 12 || q[len(q)-1].to != everyAddr {
			t.Errorf("%d questions until T2", len(q))
		}
		time.Sleep(8 * time.Minute)
		synctest.Wait()
		if e := c.last(); e.What != Lost || e.Lease.Addr != l.Addr || c.status("1").Holds {
			t.Fatalf("%+v", e)
		}
		n.clear()
		time.Sleep(10 * 24 * time.Hour)
		synctest.Wait()
		if q := len(n.questions()); q < 10*24*3600/75 || q > 10*24*3600/50 {
			t.Errorf("%d questions in ten days", q)
		}
		srv.set(func() { srv.away = false })
		time.Sleep(2 * longest)
		synctest.Wait()
		if e := c.last(); e.What != Changed || e.Lease.Addr != l.Addr {
			t.Errorf("%+v", e)
		}
		if len(c.all()) != 3 {
			t.Errorf("%+v", c.all())
		}
	})
}

// TestRefused: a NAK of the lease's own server ends it at once.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		if _, err := c.try(10*time.Second, asker(1)); err != nil {
			t.Fatal(err)
		}
		srv.set(func() { srv.given["\x01"+string(hw(1))] = netip.MustParseAddr("10.0.0.200") })
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if len(c.all()) != 2 || c.all()[0].What != Lost || !strings.Contains(c.all()[0].Err.Error(), "10.0.0.1 refuses 10.0.0.100: wrong address") ||
			c.all()[1].What != Changed || c.all()[1].Was.Addr.String() != "10.0.0.100/24" || c.all()[1].Lease.Addr.String() != "10.0.0.200/24" {
			t.Errorf("%+v", c.all())
		}
		// One that refuses everything is not asked all the time.
		srv.set(func() { srv.refuse = true })
		n.clear()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if q := len(n.questions()); q < 100 || q > 2*24*3600/50 {
			t.Errorf("%d questions in a day", q)
		}
	})
}

// TestForeignRefusal: a NAK of another server counts only if nobody says
// otherwise.
func TestForeignRefusal(t *testing.T) {
	for _, there := range []bool{true, false} {
		t.Run(fmt.Sprintf("server there %v", there), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, rogue := newFake("10.0.0.1", time.Hour), newFake("10.0.0.66", time.Hour)
				srv.slow = 300 * time.Millisecond
				rogue.away = true
				n := newLAN(srv, rogue)
				c := n.client(t, Config{})
				l, err := c.try(10*time.Second, asker(1))
				if err != nil {
					t.Fatal(err)
				}
				srv.set(func() { srv.away = true })
				time.Sleep(40 * time.Minute)
				srv.set(func() { srv.away = !there })
				rogue.set(func() { rogue.away, rogue.refuse = false, true })
				c.Forget("1")
				ask := asker(1)
				ask.Previous = &l
				began := time.Now()
				l2, err := c.try(10*time.Second, ask)
				if there && (err != nil || l2.Addr != l.Addr || time.Since(began) > time.Second) {
					t.Error(l2, err)
				}
				if !there && (err == nil || !strings.Contains(err.Error(), "10.0.0.66 refuses 10.0.0.100: go away")) {
					t.Error(l2, err)
				}
			})
		})
	}
}

// TestInUse: addresses that another has are declined.
func TestInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		taken := map[string]bool{"10.0.0.100": true, "10.0.0.101": true}
		thief := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		c := n.client(t, Config{Check: func(ctx context.Context, link string, a netip.Addr, mac net.HardwareAddr) (net.HardwareAddr, error) {
			time.Sleep(200 * time.Millisecond)
			if taken[a.String()] {
				return thief, nil
			}
			return nil, nil
		}})
		l, err := c.try(10*time.Second, asker(1))
		if err != nil || l.Addr.String() != "10.0.0.102/24" {
			t.Fatal(l, err)
		}
		d := n.all(dhcpv4.MessageTypeDecline)
		if len(d) != 2 || d[0].m.RequestedIPAddress().String() != "10.0.0.100" || d[0].m.ServerIdentifier().String() != "10.0.0.1" ||
			!d[0].m.ClientIPAddr.IsUnspecified() || d[0].m.Options.Has(dhcpv4.OptionParameterRequestList) {
			t.Errorf("%+v", d)
		}
		// With a third there is the pause of RFC 2131 3.1.5.
		taken = map[string]bool{"10.0.0.103": true, "10.0.0.104": true, "10.0.0.105": true}
		began := time.Now()
		l, err = c.try(20*time.Second, asker(2))
		if err != nil || l.Addr.String() != "10.0.0.106/24" || time.Since(began) < 8*time.Second {
			t.Error(l, err, time.Since(began))
		}
		// The one that must be had.
		taken["10.0.0.150"] = true
		ask := asker(3)
		ask.Want = netip.MustParseAddr("10.0.0.150")
		if _, err = c.try(10*time.Second, ask); err == nil || !strings.Contains(err.Error(), "gives 10.0.0.150, which 02:00:00:00:00:09 has") {
			t.Error(err)
		}
	})
}

// TestTwice: a server that goes by the MAC gives all of a parent's ipvlan containers
// one address. The first keeps it, whatever becomes of the others.
func TestTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		srv.byMAC = true
		n := newLAN(srv)
		c := n.client(t, Config{})
		shared := func(key string) Ask {
			return Ask{Key: key, Link: "eth0", MAC: hw(1), ClientID: append([]byte{0}, key...)}
		}
		one, err := c.try(10*time.Second, shared("one"))
		if err != nil {
			t.Fatal(err)
		}
		quiet := func(what string) {
			t.Helper()
			synctest.Wait()
			if d, r := n.count(dhcpv4.MessageTypeDecline), n.count(dhcpv4.MessageTypeRelease); d+r > 0 {
				t.Errorf("%s: %d declined, %d released", what, d, r)
			}
		}
		began := time.Now()
		const word = "dhcp server 10.0.0.1 has given 10.0.0.100 twice: it goes by the MAC, which these containers share; tell it to go by the client identifier, or use macvlan"
		if _, err := c.try(10*time.Second, shared("two")); err == nil || err.Error() != word || time.Since(began) > time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		quiet("the second")
		if len(c.Status()) != 1 {
			t.Errorf("%+v", c.Status())
		}

		// One that gives up before the answer is not told of it.
		srv.set(func() {
			srv.twist = func(_, a *dhcpv4.DHCPv4) {
				if a.MessageType() == ack {
					a.OpCode = dhcpv4.OpcodeBootRequest
				}
			}
		})
		if _, err := c.try(time.Second, shared("three")); err == nil {
			t.Error("there is no answer")
		}
		srv.set(func() { srv.twist = nil })
		quiet("the third")

		// A container that runs, and has lost its lease: it asks again, ever less often.
		lost := Lease{Ask: shared("four"), Terms: one.Terms, Expires: time.Now().Add(-time.Hour)}
		lost.Addr = netip.MustParsePrefix("10.0.0.77/24")
		if err := c.Restore([]Lease{lost}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		n.clear()
		time.Sleep(10 * time.Minute)
		if d := n.count(discover); d < 8 || d > 12 {
			t.Errorf("%d DISCOVERs in ten minutes", d)
		}
		if s := c.status("four"); s.Holds || s.Trouble == nil || s.Trouble.Error() != word {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Hour)
		quiet("in the end")
		if s := c.status("one"); !s.Holds || s.Addr != one.Addr || c.told(Changed) != 0 {
			t.Errorf("%+v, %+v", s, c.all())
		}
	})
}

func TestWant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		ask := asker(1)
		ask.Want = netip.MustParseAddr("10.0.0.177")
		l, err := c.try(10*time.Second, ask)
		if err != nil || l.Addr.Addr() != ask.Want {
			t.Fatal(l, err)
		}
		if l, err := c.try(10*time.Second, ask); err != nil || l.Addr.Addr() != ask.Want {
			t.Error(l, err) // once more
		}
		other := ask
		other.Want = netip.MustParseAddr("10.0.0.178")
		if l, err := c.try(10*time.Second, other); err == nil {
			t.Error(l)
		}
		ask2 := asker(2)
		ask2.Want = ask.Want
		began := time.Now()
		if _, err = c.try(10*time.Second, ask2); err == nil || !strings.Contains(err.Error(), "dhcp server 10.0.0.1 offers 10.0.0.100, not 10.0.0.177") {
			t.Error(err)
		}
		if d := time.Since(began); d > 1100*time.Millisecond {
			t.Error(d)
		}
		if n := len(c.Status()); n != 1 {
			t.Errorf("%d leases are kept", n)
		}
		ask3 := asker(3)
		ask3.ClientID = append([]byte{1}, hw(1)...)
		if _, err = c.try(10*time.Second, ask3); err == nil || !strings.Contains(err.Error(), "client id 010277") {
			t.Error(err)
		}
	})
}

// TestPrevious: INIT-REBOOT.
func TestPrevious(t *testing.T) {
	for _, test := range []struct {
		name  string
		prep  func(s *fake)
		want  string
		kinds string
	}{
		{"given again", func(s *fake) {}, "10.0.0.100/24", "REQUEST"},
		{"given to another", func(s *fake) { s.given["\x01"+string(hw(1))] = netip.MustParseAddr("10.0.0.123") }, "10.0.0.123/24", "REQUEST DISCOVER REQUEST"},
		{"not known", func(s *fake) { clear(s.given); s.next = netip.MustParseAddr("10.0.0.140") }, "10.0.0.100/24", "REQUEST REQUEST DISCOVER REQUEST"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newFake("10.0.0.1", time.Hour)
				n := newLAN(srv)
				c := n.client(t, Config{})
				l, err := c.try(10*time.Second, asker(1))
				if err != nil {
					t.Fatal(err)
				}
				c.Forget("1")
				n.clear()
				srv.set(func() { test.prep(srv) })
				ask := asker(1)
				ask.Previous = &l
				l, err = c.try(10*time.Second, ask)
				var kinds []string
				for _, q := range n.questions() {
					kinds = append(kinds, q.kind().String())
				}
				if err != nil || l.Addr.String() != test.want || strings.Join(kinds, " ") != test.kinds {
					t.Error(l.Addr, err, kinds)
				}
				if q := n.questions()[0]; q.m.ServerIdentifier() != nil || !q.m.ClientIPAddr.IsUnspecified() || q.m.RequestedIPAddress().String() != "10.0.0.100" || !q.m.IsBroadcast() {
					t.Error(q.m.Summary())
				}
			})
		})
	}
}

// TestSilence: a container restarts while the server is away.
func TestSilence(t *testing.T) {
	for _, used := range []net.HardwareAddr{nil, hw(9)} {
		t.Run(fmt.Sprintf("used by %s", used), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newFake("10.0.0.1", time.Hour)
				n := newLAN(srv)
				var who net.HardwareAddr
				c := n.client(t, Config{Check: func(context.Context, string, netip.Addr, net.HardwareAddr) (net.HardwareAddr, error) {
					return who, nil
				}})
				l, err := c.try(10*time.Second, asker(1))
				if err != nil {
					t.Fatal(err)
				}
				c.Forget("1")
				who = used
				srv.set(func() { srv.away = true })
				ask := asker(1)
				ask.Previous = &l
				again, err := c.try(10*time.Second, ask)
				if used != nil {
					if err == nil || len(c.Status()) != 0 {
						t.Errorf("%+v", again)
					}
					return
				}
				if err != nil || again.Addr != l.Addr || !again.Expires.Equal(l.Expires) || c.status("1").Trouble == nil {
					t.Fatal(again, err)
				}
				time.Sleep(50 * time.Minute)
				srv.set(func() { srv.away = false })
				time.Sleep(8 * time.Minute)
				synctest.Wait()
				if s := c.status("1"); s.Trouble != nil || s.Addr != l.Addr || c.told(Lost) != 0 || c.told(Renewed) == 0 {
					t.Errorf("%+v, %+v", s, c.all())
				}
			})
		})
	}
}

// TestAllowed: a rogue server is faster, and not listened to.
func TestAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, rogue := newFake("10.0.0.1", time.Hour), newFake("10.0.0.66", time.Hour)
		srv.slow = 500 * time.Millisecond
		n := newLAN(srv, rogue)
		c := n.client(t, Config{})
		ask := asker(1)
		ask.Servers = []netip.Addr{srv.addr}
		l, err := c.try(10*time.Second, ask)
		if err != nil || l.Server != srv.addr {
			t.Fatal(l, err)
		}
		ask = asker(2)
		ask.Servers = []netip.Addr{netip.MustParseAddr("10.0.0.9")}
		if _, err := c.try(10*time.Second, ask); err == nil || !strings.Contains(err.Error(), "dhcp server 10.0.0.66 answers on eth0, which is none of those allowed") {
			t.Error(err)
		}
	})
}

// TestDeadline: whatever does not answer, Acquire returns in time and leaves
// nothing.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		checking := make(chan struct{})
		c := n.client(t, Config{Check: func(ctx context.Context, _ string, _ netip.Addr, _ net.HardwareAddr) (net.HardwareAddr, error) {
			select {
			case checking <- struct{}{}:
			default:
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		try := func(what, word string, within time.Duration, releases int) {
			t.Helper()
			time.Sleep(time.Second)
			n.clear()
			began := time.Now()
			_, err := c.try(within, asker(1))
			if err == nil || !strings.Contains(err.Error(), word) || time.Since(began) > within {
				t.Errorf("%s: %v after %s", what, err, time.Since(began))
			}
			synctest.Wait()
			if got := n.count(dhcpv4.MessageTypeRelease); got != releases || len(c.Status()) != 0 || len(c.asked) != 0 || len(c.queue) != 0 || len(c.ids) != 0 {
				t.Errorf("%s: %d released, %+v left", what, got, c.Status())
			}
		}
		srv.away = true
		try("silence", "no dhcp server answers on eth0", 10*time.Second, 0)
		if d := n.count(discover); d < 3 || d > 4 {
			t.Errorf("%d DISCOVERs in 10 s", d)
		}
		srv.away = false
		try("a check without end", "no dhcp server", 5*time.Second, 1)
		srv.twist = func(_, a *dhcpv4.DHCPv4) {
			if a.MessageType() == ack {
				a.OpCode = dhcpv4.OpcodeBootRequest // which nobody takes
			}
		}
		try("no ACK", "no dhcp server", 5*time.Second, 1)
		n.cut(errDown)
		try("no link", "eth0 is down", 5*time.Second, 0)
		n.cut(fmt.Errorf("eth0 %w", errNoLink))
		began := time.Now()
		try("no such link", "eth0 is not there", 5*time.Second, 0)
		if d := time.Since(began); d > time.Second {
			t.Errorf("that took %s", d)
		}
	})
}

// TestLinkGone: what was due while the link was away is done when it is back.
func TestLinkGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		if _, err := c.try(10*time.Second, asker(1)); err != nil {
			t.Fatal(err)
		}
		n.cut(errDown)
		time.Sleep(3 * time.Hour)
		if s := c.status("1"); s.Holds || s.Trouble == nil || s.Trouble.Error() != "eth0 is down" {
			t.Errorf("%+v", s)
		}
		n.mend()
		c.Rouse()
		time.Sleep(time.Second)
		synctest.Wait()
		if s := c.status("1"); !s.Holds || s.Trouble != nil || c.last().What != Changed {
			t.Errorf("%+v", s)
		}
	})
}

// TestRouse: a link that changes has nobody ask sooner but for those whom that link
// has kept waiting.
func TestRouse(t *testing.T) {
	setup := func(t *testing.T) (*fake, *lan, *client) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		return srv, n, n.client(t, Config{})
	}
	flicker := func(c *client, seconds int) {
		for range seconds * 10 {
			time.Sleep(100 * time.Millisecond)
			c.Rouse()
		}
	}
	flap := func(n *lan, c *client) {
		n.shade(true)
		c.Rouse()
		n.shade(false)
		c.Rouse()
		time.Sleep(20 * time.Millisecond)
	}
	// few is for as many questions, give or take some, with links that change as
	// without.
	few := func(t *testing.T, n *lan, c *client, seconds int) {
		t.Helper()
		n.clear()
		time.Sleep(time.Duration(seconds) * time.Second)
		calm := len(n.questions())
		n.clear()
		flicker(c, seconds)
		if got := len(n.questions()); got > calm+calm/4+1 {
			t.Errorf("%d questions with links that change, %d without", got, calm)
		}
	}
	lease := func(t *testing.T, c *client) Lease {
		t.Helper()
		l, err := c.try(10*time.Second, asker(1))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	test := func(name string, f func(t *testing.T, srv *fake, n *lan, c *client)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, n, c := setup(t)
				f(t, srv, n, c)
			})
		})
	}
	test("turns", func(t *testing.T, _ *fake, n *lan, c *client) {
		n.delay = 100 * time.Millisecond
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				_, _ = c.try(10*time.Second, Ask{Key: fmt.Sprint(i), Link: "eth0", MAC: hw(1), ClientID: []byte{0, byte(i)}})
			})
		}
		synctest.Wait()
		c.Rouse()
		time.Sleep(50 * time.Millisecond)
		c.Rouse()
		synctest.Wait()
		if d := n.count(discover); d != 1 {
			t.Errorf("%d questions", d)
		}
		flap(n, c)
		synctest.Wait()
		asks := map[string]bool{}
		for _, q := range n.all(discover) {
			asks[string(q.m.Options.Get(dhcpv4.OptionClientIdentifier))] = true
		}
		// Who asks again has had its turn, and the next has one.
		if len(asks) != 2 || n.count(discover) != 3 {
			t.Errorf("%d of one MAC ask, %d times", len(asks), n.count(discover))
		}
		wg.Wait()
	})
	test("back-off", func(t *testing.T, srv *fake, n *lan, c *client) {
		l := lease(t, c)
		srv.set(func() { srv.away = true })
		time.Sleep(time.Until(l.Expires.Add(5 * time.Minute)))
		few(t, n, c, 600)
	})
	test("refusals", func(t *testing.T, srv *fake, n *lan, c *client) {
		l := lease(t, c)
		srv.set(func() { srv.refuse = true })
		time.Sleep(time.Until(l.Expires.Add(5 * time.Minute)))
		few(t, n, c, 600)
	})
	test("declines", func(t *testing.T, _ *fake, n *lan, c *client) {
		c.cfg.Check = func(context.Context, string, netip.Addr, net.HardwareAddr) (net.HardwareAddr, error) {
			return hw(99), nil
		}
		go func() { _, _ = c.try(20*time.Second, asker(1)) }()
		time.Sleep(100 * time.Millisecond)
		for range 8 {
			flicker(c, 1)
			flap(n, c)
		}
		if d := n.count(dhcpv4.MessageTypeDecline); d != declines+1 {
			t.Errorf("%d declined", d)
		}
		time.Sleep(20 * time.Second)
	})
	test("no carrier", func(t *testing.T, _ *fake, n *lan, c *client) {
		l := lease(t, c)
		n.shade(true)
		c.Rouse()
		time.Sleep(time.Until(l.Expires.Add(5 * time.Minute)))
		few(t, n, c, 600)
		time.Sleep(70 * time.Second)
		n.shade(false)
		c.Rouse()
		time.Sleep(100 * time.Millisecond)
		if s := c.status("1"); !s.Holds {
			t.Errorf("%+v", s)
		}
	})
	test("no link", func(t *testing.T, _ *fake, n *lan, c *client) {
		l := lease(t, c)
		n.cut(errDown)
		time.Sleep(time.Until(l.Expires.Add(5 * time.Minute)))
		n.mend()
		c.Rouse()
		time.Sleep(100 * time.Millisecond)
		if s := c.status("1"); !s.Holds {
			t.Errorf("%+v", s)
		}
	})
}

func TestDiscover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newLAN(newFake("10.0.0.1", time.Hour))
		c := n.client(t, Config{})
		got, err := c.Discover(context.Background(), asker(1))
		if err != nil || got.Addr.Masked().String() != "10.0.0.0/24" || got.Routers[0].String() != "10.0.0.1" || len(n.questions()) != 1 || len(c.Status()) != 0 {
			t.Errorf("%+v, %v, %d questions", got, err, len(n.questions()))
		}
	})
}

func TestDecline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newLAN(newFake("10.0.0.1", time.Hour))
		c := n.client(t, Config{})
		a, _ := c.try(time.Second, asker(1))
		c.Decline("1", "the host has it")
		time.Sleep(time.Second)
		b, err := c.try(time.Second, asker(1))
		if err != nil || a.Addr == b.Addr || n.count(dhcpv4.MessageTypeDecline) != 1 {
			t.Error(a.Addr, b.Addr, err)
		}
	})
}

// TestRestore: a thousand leases after a restart.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		var old []Lease
		for i := range 140 {
			l, err := c.try(10*time.Second, asker(i))
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(l)
			if err != nil {
				t.Fatal(err)
			}
			var read Lease
			if err := json.Unmarshal(b, &read); err != nil {
				t.Fatal(err)
			}
			old = append(old, read)
		}
		if got := c.Leases(); len(got) != len(old) || !reflect.DeepEqual(got[0].Terms, old[0].Terms) || !reflect.DeepEqual(got[0].Ask, old[0].Ask) {
			t.Errorf("%+v\n%+v", got[0], old[0])
		}
		for _, test := range []struct {
			name string
			away time.Duration
			want What
		}{
			{"before T1", time.Minute, ""},
			{"after T1", 35 * time.Minute, Renewed},
			{"after T2", 55 * time.Minute, Renewed},
			{"expired", 2 * time.Hour, Changed},
		} {
			c.Close()
			began := time.Now()
			restart := old[0].Granted.Add(test.away)
			time.Sleep(time.Until(restart))
			n.clear()
			c = n.client(t, Config{})
			if err := c.Restore(old); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if test.want == "" {
				if len(n.questions()) != 0 || len(c.Leases()) != 140 {
					t.Errorf("%s: %d questions", test.name, len(n.questions()))
				}
				continue
			}
			if got := c.told(test.want); got != 140 {
				t.Errorf("%s: %d are %s", test.name, got, test.want)
			}
			most, at := 0, map[int64]int{}
			for _, q := range n.questions() {
				s := int64(q.at.Sub(began) / (100 * time.Millisecond))
				if at[s]++; at[s] > most {
					most = at[s]
				}
			}
			if most > 40 {
				t.Errorf("%s: %d questions within 0.1 s", test.name, most)
			}
			old = c.Leases()
		}
	})
}

// TestRestoreExpired: what ran out while nobody kept it is lost, once, and had again
// when there is a server.
func TestRestoreExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		l, err := c.try(10*time.Second, asker(1))
		if err != nil {
			t.Fatal(err)
		}
		c.Forget("1")
		srv.set(func() { srv.away = true })
		time.Sleep(2 * time.Hour)
		if err := c.Restore([]Lease{l}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		if e := c.last(); len(c.all()) != 1 || e.What != Lost || e.Lease.Addr != l.Addr || e.Err == nil || e.Err.Error() != "dhcp lease of 10.0.0.100 ran out while underlay was not running" {
			t.Errorf("%+v", c.all())
		}
		if s := c.status("1"); s.Holds || s.Trouble == nil {
			t.Errorf("%+v", s)
		}
		srv.set(func() { srv.away = false })
		time.Sleep(2 * longest)
		synctest.Wait()
		if e := c.last(); len(c.all()) != 2 || e.What != Changed || e.Lease.Addr != l.Addr {
			t.Errorf("%+v", c.all())
		}
	})
}

// TestForEver: a lease without end is not renewed.
func TestForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newLAN(newFake("10.0.0.1", dhcpv4.MaxLeaseTime))
		c := n.client(t, Config{})
		l, err := c.try(time.Second, asker(1))
		time.Sleep(20 * 365 * 24 * time.Hour)
		if err != nil || !l.Expires.IsZero() || len(n.questions()) != 2 || !c.status("1").Holds {
			t.Error(l, err, len(n.questions()))
		}
		c.Close()
		c = n.client(t, Config{})
		if err := c.Restore([]Lease{l}); err != nil || len(c.Leases()) != 1 {
			t.Error(err)
		}
	})
}

// TestStrangers: answers that are not for the client change nothing, and are no
// work.
func TestStrangers(t *testing.T) {
	for name, twist := range map[string]func(f []byte) []byte{
		"another's transaction": func(f []byte) []byte { f[etherLen+ipLen+udpLen+4]++; return f },
		"another's MAC":         func(f []byte) []byte { f[etherLen+ipLen+udpLen+28+5]++; return f },
		"a question":            func(f []byte) []byte { f[etherLen+ipLen+udpLen] = 1; return f },
		"another port":          func(f []byte) []byte { f[etherLen+ipLen+3]++; return f },
		"a wrong IP checksum":   func(f []byte) []byte { f[etherLen+10]++; return f },
		"no cookie":             func(f []byte) []byte { f[etherLen+ipLen+udpLen+236]++; return f },
		"cut off":               func(f []byte) []byte { return f[:len(f)-20] },
		"short":                 func(f []byte) []byte { return f[:60] },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newFake("10.0.0.1", time.Hour)
				srv.raw = func(f []byte) [][]byte {
					return [][]byte{twist(bytes.Clone(f)), nil, f[:etherLen]}
				}
				c := newLAN(srv).client(t, Config{})
				if l, err := c.try(10*time.Second, asker(1)); err == nil {
					t.Errorf("%+v", l)
				}
				srv.set(func() { srv.raw = func(f []byte) [][]byte { return [][]byte{twist(bytes.Clone(f)), f, f} } })
				if _, err := c.try(10*time.Second, asker(1)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestUnusable: what a server gives must be usable.
func TestUnusable(t *testing.T) {
	opt := func(code uint8, b ...byte) func(*dhcpv4.DHCPv4) {
		return func(m *dhcpv4.DHCPv4) {
			m.Options.Update(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), b))
		}
	}
	without := func(code uint8) func(*dhcpv4.DHCPv4) {
		return func(m *dhcpv4.DHCPv4) { m.Options.Del(dhcpv4.GenericOptionCode(code)) }
	}
	yours := func(b ...byte) func(*dhcpv4.DHCPv4) {
		return func(m *dhcpv4.DHCPv4) { m.YourIPAddr = b }
	}
	for name, test := range map[string]struct {
		twist func(*dhcpv4.DHCPv4)
		word  string // "": it is taken
	}{
		"as it is":           {func(*dhcpv4.DHCPv4) {}, ""},
		"no server":          {without(54), "does not say which server"},
		"server 0.0.0.0":     {opt(54, 0, 0, 0, 0), "does not say which server"},
		"no mask":            {without(1), "without a subnet mask"},
		"long mask":          {opt(1, 255, 255, 255, 0, 0), "without a subnet mask"},
		"mask with holes":    {opt(1, 255, 0, 255, 0), "255.0.255.0, which is no subnet mask"},
		"mask 0":             {opt(1, 0, 0, 0, 0), "no subnet mask"},
		"mask 32":            {opt(1, 255, 255, 255, 255), ""},
		"no time":            {without(51), "does not say for how long"},
		"time 0":             {opt(51, 0, 0, 0, 0), "it is for 0s only"},
		"time too short":     {opt(51, 0, 0, 0, 9), "it is for 9s only"},
		"long time":          {opt(51, 0xff, 0xff, 0xff, 0xfe), ""},
		"T1 after T2":        {func(m *dhcpv4.DHCPv4) { opt(58, 0, 0, 8, 0)(m); opt(59, 0, 0, 4, 0)(m) }, ""},
		"T1 0":               {opt(58, 0, 0, 0, 0), ""},
		"T1 without end":     {opt(58, 0xff, 0xff, 0xff, 0xff), ""},
		"T2 after the end":   {opt(59, 0, 1, 0, 0), ""},
		"0.0.0.0":            {yours(0, 0, 0, 0), "0.0.0.0 is no address"},
		"127.0.0.1":          {yours(127, 0, 0, 1), "is no address"},
		"multicast":          {yours(224, 0, 0, 5), "is no address"},
		"class E":            {yours(250, 0, 0, 5), "is no address"},
		"broadcast":          {yours(255, 255, 255, 255), "is no address"},
		"the subnet":         {yours(10, 0, 0, 0), "its subnet's own"},
		"subnet's broadcast": {yours(10, 0, 0, 255), "its subnet's own"},
		"another client id":  {opt(61, 1, 2, 3), "no dhcp server answers"},
		"its client id":      {func(m *dhcpv4.DHCPv4) { opt(61, append([]byte{1}, hw(1)...)...)(m) }, ""},
		"routes cut off":     {opt(121, 24, 10, 9, 8, 10, 0), ""},
		"routes of 33 bits":  {opt(121, 33, 10, 9, 8, 7, 0, 10, 0, 0, 1), ""},
		"a name with blanks": {opt(15, []byte("a b; rm -rf /")...), ""},
		"odd DNS":            {opt(6, 127, 0, 0, 1, 10, 0, 0), ""},
		"tiny MTU":           {opt(26, 0, 68), ""},
		"search in a circle": {opt(119, 1, 'a', 0xc0, 0), ""},
		"overload":           {opt(52, 3), ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newFake("10.0.0.1", time.Hour)
				srv.twist = func(_, m *dhcpv4.DHCPv4) { test.twist(m) }
				c := newLAN(srv).client(t, Config{})
				l, err := c.try(9*time.Second, asker(1))
				if (test.word == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.word) {
					t.Fatalf("%+v, %v", l, err)
				}
				if err != nil {
					return
				}
				if l.Renew.Before(l.Granted.Add(2*time.Second)) || !l.Renew.Before(l.Rebind) || !l.Rebind.Before(l.Expires) {
					t.Errorf("times %s, %s, %s", l.Renew.Sub(l.Granted), l.Rebind.Sub(l.Granted), l.Expires.Sub(l.Granted))
				}
				if len(l.Routes) != 0 || len(l.Routers) != 1 || l.Domain != "" || len(l.DNS) != 0 || l.MTU != 0 {
					t.Errorf("%+v", l.Terms)
				}
			})
		})
	}
}

// TestFootprint: a lease is a little memory, and nothing else.
func TestFootprint(t *testing.T) {
	const many = 5000
	var all []Lease
	for i := range many {
		mac := net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}
		now := time.Now()
		all = append(all, Lease{
			Ask: Ask{Key: fmt.Sprint(i), Link: "eth0", MAC: mac, Hostname: "web"},
			Terms: Terms{
				Addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 16), Server: netip.MustParseAddr("10.1.0.1"),
				Routers: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, DNS: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Domain: "example.org",
			},
			Granted: now, Renew: now.Add(time.Hour), Rebind: now.Add(90 * time.Minute), Expires: now.Add(2 * time.Hour),
		})
	}
	c := newLAN().client(t, Config{})
	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before, routines := heap(), runtime.NumGoroutine()
	if err := c.Restore(all); err != nil {
		t.Fatal(err)
	}
	each := (heap() - before) / many
	t.Logf("%d bytes a lease", each)
	if now := runtime.NumGoroutine(); each > 2000 || now > routines {
		t.Errorf("%d bytes a lease, %d goroutines more", each, now-routines)
	}
	runtime.KeepAlive(all)
}

// BenchmarkStrangers is what an answer for another costs.
func BenchmarkStrangers(b *testing.B) {
	c := newLAN().client(b, Config{})
	m, err := dhcpv4.New(dhcpv4.WithMessageType(ack), dhcpv4.WithHwAddr(hw(1)))
	if err != nil {
		b.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootReply
	f := reply(netip.MustParseAddr("10.0.0.1"), m.ToBytes())
	b.ReportAllocs()
	for b.Loop() {
		c.hear("eth0", f)
	}
}

// TestSilentLink: where one has waited in vain, the next ones wait briefly, until a
// server answers.
func TestSilentLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		n := newLAN(srv)
		c := n.client(t, Config{})
		ask := asker(9)
		previous, err := c.try(10*time.Second, ask)
		if err != nil {
			t.Fatal(err)
		}
		c.Forget("9")
		wait := func(what string, ask Ask, ok bool, least, most time.Duration) {
			t.Helper()
			began := time.Now()
			_, err := c.try(10*time.Second, ask)
			if took := time.Since(began); (err == nil) != ok || took < least || took > most {
				t.Errorf("%s: %v after %s", what, err, took)
			}
		}
		srv.set(func() { srv.away = true })
		if _, err := c.try(brief-time.Millisecond, asker(8)); err == nil {
			t.Error("nobody is there")
		}
		// One that has no turn, since others with its MAC wait for an answer.
		shared := func(n int) Ask {
			return Ask{Key: fmt.Sprint("shared", n), Link: "eth0", MAC: hw(7), ClientID: []byte{0, byte(n)}}
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for n := range 9 {
			wg.Go(func() { _, _ = c.Acquire(ctx, shared(n)) })
			synctest.Wait()
		}
		if _, err := c.try(brief, shared(9)); err == nil {
			t.Error("nobody is there")
		}
		c.Client.mu.Lock()
		if len(c.silent) != 0 {
			t.Error("who has not asked says that nobody answers")
		}
		c.Client.mu.Unlock()
		cancel()
		wg.Wait()
		c.Client.mu.Lock()
		clear(c.silent) // of those that have asked for long enough
		c.Client.mu.Unlock()
		wait("the first", asker(1), false, 10*time.Second, 10*time.Second)
		n.clear()
		wait("the second", asker(2), false, brief, brief)
		if d := n.count(discover); d != 2 {
			t.Errorf("%d DISCOVERs", d)
		}
		ask.Previous = &previous
		wait("one with a lease to go on with", ask, true, brief2, brief2)
		c.Forget("9")
		other := asker(3)
		other.Link = "eth1"
		wait("on another link", other, false, 10*time.Second, 10*time.Second)
		wait("the third", asker(3), false, brief, brief)
		time.Sleep(lull)
		wait("a minute later", asker(4), false, 10*time.Second, 10*time.Second)

		go func() {
			time.Sleep(time.Second)
			srv.set(func() { srv.away = false })
		}()
		wait("the server comes back", asker(5), true, 0, brief)
		srv.set(func() { srv.away = true })
		wait("once one had an answer", asker(6), false, 10*time.Second, 10*time.Second)
	})
}

// jump has all that the client remembers be as after a change of the host's clock.
func (c *client) jump(d time.Duration) {
	c.Client.mu.Lock()
	defer c.Client.mu.Unlock()
	for _, l := range c.leases {
		l.shift(-d)
		l.at = l.at.Add(-d)
	}
	c.clock.Set(-d)
}

// TestClock: time that the host has slept counts, and a clock that is set back keeps
// no lease from its renewal.
func TestClock(t *testing.T) {
	for _, test := range []struct {
		name string
		jump time.Duration
		asks int // at the next minute
		told []What
	}{
		{"as it was", 0, 0, nil},
		{"asleep for a while", 2 * time.Minute, 0, nil},
		{"asleep past T1", 35 * time.Minute, 1, []What{Renewed}},
		{"asleep past T2", 45 * time.Minute, 1, []What{Late, Renewed}},
		{"asleep for too long", 8 * time.Hour, 2, []What{Lost, Changed}},
		{"set back a little", -time.Minute, 0, nil},
		{"set back by a day", -24 * time.Hour, 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(20 * time.Second)
				n := newLAN(newFake("10.0.0.1", time.Hour))
				c := n.client(t, Config{})
				l, err := c.try(10*time.Second, asker(1))
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(10*time.Minute + 10*time.Second)
				n.clear()
				c.jump(test.jump)
				time.Sleep(wall.Nap() + 100*time.Millisecond)
				synctest.Wait()
				var told []What
				for _, e := range c.all() {
					told = append(told, e.What)
				}
				if !slices.Equal(told, test.told) || len(n.questions()) != test.asks {
					t.Errorf("%d questions, told %v", len(n.questions()), told)
				}
				time.Sleep(21 * time.Minute)
				if s := c.status("1"); !s.Holds || s.Addr != l.Addr || test.told == nil && c.told(Renewed) != 1 {
					t.Errorf("%+v, told %+v", s, c.all())
				}
			})
		})
	}
}

// TestWall: what is kept goes by the host's clock. It is not in a bubble, whose times
// have no other.
func TestWall(t *testing.T) {
	c := newLAN(newFake("10.0.0.1", time.Hour)).client(t, Config{})
	l, err := c.try(10*time.Second, asker(1))
	if err != nil {
		t.Fatal(err)
	}
	other := l
	other.Ask = asker(2)
	other.Expires = time.Now().Add(time.Hour)
	over := l
	over.Ask = asker(3)
	over.Expires = time.Now()
	if err := c.Restore([]Lease{other, over}); err != nil {
		t.Fatal(err)
	}
	c.Client.mu.Lock()
	defer c.Client.mu.Unlock()
	for _, l := range c.leases {
		for _, at := range []time.Time{l.Granted, l.Renew, l.Rebind, l.Expires, l.at} {
			if at != at.Round(0) {
				t.Errorf("%s goes by the clock that sleeps", at)
			}
		}
	}
}

// TestRestoreEarly: leases that seem to have been granted in the future, since the
// clock was set back, are asked for soon.
func TestRestoreEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFake("10.0.0.1", time.Hour)
		c := newLAN(srv).client(t, Config{})
		l, err := c.try(10*time.Second, asker(1))
		if err != nil {
			t.Fatal(err)
		}
		c.Forget("1")
		l.shift(24 * time.Hour)
		if err := c.Restore([]Lease{l}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if s := c.status("1"); c.told(Renewed) != 1 || !s.Holds || time.Until(s.Expires) > time.Hour {
			t.Errorf("%+v, told %+v", s, c.all())
		}
		// Nor are they kept for longer than they were granted for.
		c.Forget("1")
		srv.set(func() { srv.away = true })
		if err := c.Restore([]Lease{l}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if c.status("1").Holds || c.last().What != Lost {
			t.Errorf("told %+v", c.all())
		}
	})
}
