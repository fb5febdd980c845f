package dhcp6

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"underlay/internal/wall"
)

// TestTake: four messages, or two with rapid commit; nothing waits when all
// servers of the LAN are known.
func TestTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		begin := time.Now()
		l := w.must(ask(1))
		// RFC 8415 18.2.1: offers are collected for the first RT, of 1.0 to 1.1 s.
		if took := time.Since(begin); took < time.Second || took > 1200*time.Millisecond {
			t.Errorf("the first lease took %v", took)
		}
		want := []string{"SOLICIT", "REQUEST 2001:db8:1::1"}
		if got := s.seen(); !slices.Equal(got, want) {
			t.Errorf("the server saw %q", got)
		}
		if l.Addr != netip.MustParseAddr("2001:db8:1::1") || l.Server != s.name ||
			!slices.Equal(l.DNS, []netip.Addr{netip.MustParseAddr("2001:db8::53")}) || !slices.Equal(l.Search, []string{"lan.example"}) ||
			l.Rebind.Sub(l.Granted) != 48*time.Minute || l.Renew.Sub(l.Granted) != 30*time.Minute ||
			l.Expires.Sub(l.Granted) != time.Hour || l.Preferred != l.Expires {
			t.Errorf("lease %+v", l)
		}

		begin = time.Now()
		w.must(ask(2))
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("the second lease took %v, with the only server known", took)
		}

		s.set(func() { s.rapid = true })
		s.seen()
		begin = time.Now()
		w.must(ask(3))
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("a rapid commit took %v", took)
		}
		if got := s.seen(); len(got) != 1 {
			t.Errorf("with rapid commit, the server saw %q", got)
		}

		again, err := w.acquire(ask(3))
		if err != nil || again.Addr.String() != "2001:db8:1::3" || len(s.seen()) > 0 {
			t.Errorf("asked again: %v, %v", again.Addr, err)
		}
	})
}

// TestPreference: the highest preference wins (RFC 8415 18.2.9), 255 at once.
func TestPreference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.server(1)
		two := w.server(2)
		two.preference = 7
		if l := w.must(ask(1)); l.Server != two.name {
			t.Errorf("%v won", l.Server)
		}
		w2 := newWorld(t)
		w2.server(1).preference = 255
		begin := time.Now()
		w2.must(ask(1))
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("preference 255 took %v", took)
		}
	})
}

// TestLife: renewals at T1 for an hour of leases of 60 s, with nothing lost.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		s.t1, s.t2, s.preferred, s.valid = 30*time.Second, 48*time.Second, time.Minute, time.Minute
		first := w.must(ask(1))
		s.seen()
		time.Sleep(time.Hour)
		got := s.seen()
		if len(got) < 3600/33 || len(got) > 3600/30 {
			t.Errorf("%d messages in an hour", len(got))
		}
		for _, m := range got {
			if m != "RENEW 2001:db8:1::1" {
				t.Fatalf("the server saw %q", m)
			}
		}
		for _, e := range w.told() {
			if e.What != Renewed || e.Lease.Addr != first.Addr || !e.Lease.Expires.After(e.Was.Expires) {
				t.Fatalf("told %+v", e)
			}
		}
	})
}

// TestAway: the server goes away for longer than the lease, and comes back.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		l := w.must(ask(1))
		s.set(func() { s.silent = true })
		s.seen()

		time.Sleep(time.Until(l.Rebind.Add(-time.Second)))
		renews := s.seen()
		time.Sleep(time.Until(l.Expires.Add(time.Second)))
		rebinds := s.seen()
		for _, m := range renews {
			if !strings.HasPrefix(m, "RENEW ") {
				t.Errorf("before T2: %q", renews)
				break
			}
		}
		// RFC 8415 7.6: after 10, 20, 40, 80, 160, 320, 600 s.
		if n := len(renews); n < 5 || n > 8 {
			t.Errorf("%d renewals from T1 to T2", n)
		}
		if !strings.HasPrefix(rebinds[0], "REBIND ") || rebinds[len(rebinds)-1] != "SOLICIT "+l.Addr.String() {
			t.Errorf("after T2: %q", rebinds)
		}
		if got := w.whats(); got != "late lost " {
			t.Errorf("told %q", got)
		}
		if len(w.leases()) != 0 {
			t.Errorf("a lease that is over: %v", w.leases())
		}

		time.Sleep(24 * time.Hour)
		if n := len(s.seen()); n < 24*60/2-100 || n > 24*60/2+100 {
			t.Errorf("%d solicits in a day", n)
		}
		s.set(func() { s.silent = false })
		time.Sleep(3 * time.Minute)
		e := w.told()
		if len(e) != 1 || e[0].What != Changed || e[0].Lease.Addr != l.Addr {
			t.Errorf("told %+v", e)
		}
	})
}

// TestRebind: another server that knows the lease takes it over after T2.
func TestRebind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.server(1)
		l := w.must(ask(1))
		two := w.server(2)
		w.set(func() {
			one.silent = true
			two.leases = one.leases
		})
		time.Sleep(time.Until(l.Rebind.Add(time.Second)))
		e := w.told()
		if len(e) != 2 || e[0].What != Late || e[1].What != Renewed || e[1].Lease.Server != two.name {
			t.Errorf("told %+v", e)
		}
	})
}

// TestForgotten: the server has lost its leases: NoBinding, then a Request
// (RFC 8415 18.2.10.1), and the same address again if it is free.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		l := w.must(ask(1))
		s.set(func() { clear(s.leases) })
		s.seen()
		time.Sleep(time.Until(l.Rebind))
		if got := s.seen(); !slices.Equal(got, []string{"RENEW 2001:db8:1::1", "REQUEST 2001:db8:1::1"}) {
			t.Errorf("the server saw %q", got)
		}
		if got := w.whats(); got != "renewed " {
			t.Errorf("told %q", got)
		}
		l = w.leases()[0]
		s.set(func() {
			clear(s.leases)
			s.leases["other/1"] = leased{addr: l.Addr}
		})
		time.Sleep(time.Until(l.Rebind))
		e := w.told()
		if len(e) != 1 || e[0].What != Changed || e[0].Was.Addr != l.Addr || e[0].Lease.Addr == l.Addr {
			t.Errorf("told %+v", e)
		}
	})
}

// TestRenewed: what a Reply to a Renew may say.
func TestRenewed(t *testing.T) {
	other := netip.MustParseAddr("2001:db8:1::77")
	ia := func(a *dhcpv6.Message, f func(ia *dhcpv6.OptIANA)) *dhcpv6.Message {
		f(a.Options.OneIANA())
		return a
	}
	tests := []struct {
		name   string
		change func(a *dhcpv6.Message) *dhcpv6.Message
		told   string // by T2
		addr   string
	}{
		{"valid 0 takes it back", func(a *dhcpv6.Message) *dhcpv6.Message {
			return ia(a, func(ia *dhcpv6.OptIANA) {
				o := ia.Options.OneAddress()
				o.PreferredLifetime, o.ValidLifetime = 0, 0
			})
		}, "lost changed ", "2001:db8:1::1"},
		{"valid 0, with another", func(a *dhcpv6.Message) *dhcpv6.Message {
			return ia(a, func(ia *dhcpv6.OptIANA) {
				o := ia.Options.OneAddress()
				o.PreferredLifetime, o.ValidLifetime = 0, 0
				ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: other.AsSlice(), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
			})
		}, "changed ", other.String()},
		{"other DNS", func(a *dhcpv6.Message) *dhcpv6.Message {
			a.UpdateOption(dhcpv6.OptDNS(net.ParseIP("2001:db8::54")))
			return a
		}, "changed ", "2001:db8:1::1"},
		{"no IA", func(a *dhcpv6.Message) *dhcpv6.Message {
			a.Options.Del(dhcpv6.OptionIANA)
			return a
		}, "", "2001:db8:1::1"},
		{"IA of another", func(a *dhcpv6.Message) *dhcpv6.Message {
			return ia(a, func(ia *dhcpv6.OptIANA) { ia.IaId[0]++ })
		}, "", "2001:db8:1::1"},
		{"T1 after T2", func(a *dhcpv6.Message) *dhcpv6.Message {
			return ia(a, func(ia *dhcpv6.OptIANA) { ia.T1 = ia.T2 + time.Second })
		}, "", "2001:db8:1::1"},
		{"preferred for longer than valid", func(a *dhcpv6.Message) *dhcpv6.Message {
			return ia(a, func(ia *dhcpv6.OptIANA) { ia.Options.OneAddress().PreferredLifetime = 2 * time.Hour })
		}, "", "2001:db8:1::1"},
		{"unspecified failure", func(a *dhcpv6.Message) *dhcpv6.Message {
			a.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusUnspecFail})
			return a
		}, "", "2001:db8:1::1"},
		{"no addresses", func(a *dhcpv6.Message) *dhcpv6.Message {
			return ia(a, func(ia *dhcpv6.OptIANA) {
				ia.Options.Options = dhcpv6.Options{&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail}}
			})
		}, "", "2001:db8:1::1"},
		{"another client", func(a *dhcpv6.Message) *dhcpv6.Message {
			a.UpdateOption(raw(dhcpv6.OptionClientID, NameDUID("x")))
			return a
		}, "", "2001:db8:1::1"},
		{"another server", func(a *dhcpv6.Message) *dhcpv6.Message {
			a.UpdateOption(raw(dhcpv6.OptionServerID, NameDUID("x")))
			return a
		}, "", "2001:db8:1::1"},
		{"another transaction", func(a *dhcpv6.Message) *dhcpv6.Message {
			a.TransactionID[0]++
			return a
		}, "", "2001:db8:1::1"},
		{"an Advertise", func(a *dhcpv6.Message) *dhcpv6.Message {
			a.MessageType = dhcpv6.MessageTypeAdvertise
			return a
		}, "", "2001:db8:1::1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.server(1)
				l := w.must(ask(1))
				s.set(func() {
					s.reply = func(a, m *dhcpv6.Message) *dhcpv6.Message {
						if m.MessageType != dhcpv6.MessageTypeRenew {
							return a
						}
						return test.change(a)
					}
				})
				time.Sleep(time.Until(l.Rebind.Add(-time.Second)))
				if got := w.whats(); got != test.told {
					t.Errorf("told %q, not %q", got, test.told)
				}
				if all := w.leases(); len(all) != 1 || all[0].Addr.String() != test.addr {
					t.Errorf("leases %+v", all)
				}
			})
		})
	}
}

// TestRefused: Acquire ends with the server's word, long before its deadline.
func TestRefused(t *testing.T) {
	tests := []struct {
		name  string
		set   func(w *world, s *server)
		ask   func(a *Ask)
		want  string
		limit time.Duration
	}{
		{"exhausted", func(_ *world, s *server) {
			s.size = 1
			s.leases["x/1"] = leased{addr: netip.MustParseAddr("2001:db8:1::1")}
		},
			nil, "DHCPv6 server fe80::9:1 (00:03:00:01:02:00:00:00:09:01) on eth0 gives no lease: pool is empty (NoAddrsAvail)", 1200 * time.Millisecond},
		{"exhausted at the Request", func(_ *world, s *server) {
			s.reply = func(a, m *dhcpv6.Message) *dhcpv6.Message {
				if m.MessageType == dhcpv6.MessageTypeRequest {
					a.Options.Del(dhcpv6.OptionIANA)
					a.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "just\x1b[2J\ngone"})
				}
				return a
			}
		}, nil, "just[2Jgone (NoAddrsAvail)", 1200 * time.Millisecond},
		{"--ip that is taken", func(_ *world, s *server) { s.leases["x/1"] = leased{addr: netip.MustParseAddr("2001:db8:1::9")} },
			func(a *Ask) { a.Want = netip.MustParseAddr("2001:db8:1::9") }, "gives no lease: it offers 2001:db8:1::1 instead of 2001:db8:1::9", 1200 * time.Millisecond},
		{"too short", func(_ *world, s *server) { s.preferred, s.valid, s.t1, s.t2 = time.Second, time.Second, 0, 0 },
			nil, "it offers 2001:db8:1::1 for 1s only", 1200 * time.Millisecond},
		{"nobody", func(w *world, s *server) { s.silent = true },
			nil, "no DHCPv6 server answers on eth0: is there one that gives addresses (managed, stateful), and in this VLAN?", 10 * time.Second},
		{"silent after its offer", func(w *world, s *server) {
			s.reply = func(a, m *dhcpv6.Message) *dhcpv6.Message {
				if m.MessageType == dhcpv6.MessageTypeRequest {
					return nil
				}
				return a
			}
		}, nil, "no DHCPv6 server answers on eth0", 10 * time.Second},
		{"nobody who may", func(w *world, s *server) {},
			func(a *Ask) { a.Servers = []Server{{Addr: netip.MustParseAddr("fe80::1")}} },
			"no DHCPv6 server answers on eth0 of those allowed", 10 * time.Second},
		{"link", func(w *world, s *server) { w.down = errors.New("parent eth0 is down: ip link set eth0 up") },
			nil, "parent eth0 is down: ip link set eth0 up", 0},
		{"no IPv6", func(w *world, s *server) {}, func(a *Ask) { a.Want = netip.MustParseAddr("192.0.2.1") },
			"192.0.2.1 is no address that DHCPv6 leases", 0},
		{"name", func(w *world, s *server) {}, func(a *Ask) { a.Hostname = "a..b" }, "cannot be told to a DHCPv6 server as a name", 0},
		{"neither MAC nor DUID", func(w *world, s *server) {}, func(a *Ask) { a.MAC = nil }, "needs a MAC or a DUID", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.server(1)
				w.set(func() { test.set(w, s) })
				a := ask(1)
				if test.ask != nil {
					test.ask(&a)
				}
				begin := time.Now()
				l, err := w.acquire(a)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, %v", l.Addr, err)
				}
				if took := time.Since(begin); took > test.limit {
					t.Errorf("after %v", took)
				}
				// Nothing stays of it.
				time.Sleep(time.Minute)
				s.seen()
				time.Sleep(time.Hour)
				if got := s.seen(); len(got) > 0 {
					t.Errorf("an hour later: %q", got)
				}
				if left := w.left(); left != "" {
					t.Errorf("left: %s", left)
				}
			})
		})
	}
}

// TestRogue: only servers that are allowed are heard, by DUID or by address.
func TestRogue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		rogue := w.server(1)
		rogue.rapid, rogue.preference = true, 255
		real := w.server(2)
		for i, name := range []Server{{DUID: real.name.DUID}, {Addr: real.name.Addr}} {
			a := ask(i)
			a.Servers = []Server{name}
			if l := w.must(a); l.Server != real.name {
				t.Errorf("%v gave the lease", l.Server)
			}
		}
	})
}

// TestDecline: an address that another machine has is declined, and another is
// taken.
func TestDecline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		thief := net.HardwareAddr{2, 0, 0, 0, 0, 5}
		w.set(func() {
			w.used[netip.MustParseAddr("2001:db8:1::1")] = thief
			w.used[netip.MustParseAddr("2001:db8:1::2")] = thief
			w.used[netip.MustParseAddr("2001:db8:1::3")] = ask(1).MAC // the container's own, as is
		})
		if l := w.must(ask(1)); l.Addr.String() != "2001:db8:1::3" {
			t.Errorf("took %v", l.Addr)
		}
		want := []string{
			"SOLICIT", "REQUEST 2001:db8:1::1", "DECLINE 2001:db8:1::1",
			"SOLICIT", "REQUEST 2001:db8:1::2", "DECLINE 2001:db8:1::2",
			"SOLICIT", "REQUEST 2001:db8:1::3",
		}
		if diff := cmp.Diff(want, s.seen()); diff != "" {
			t.Error(diff)
		}
		a := ask(2)
		a.Want = netip.MustParseAddr("2001:db8:1::8")
		w.set(func() { w.used[a.Want] = thief })
		if _, err := w.acquire(a); err == nil || !strings.Contains(err.Error(), "gives 2001:db8:1::8, which 02:00:00:00:00:05 has") {
			t.Error(err)
		}
		// A server that does not take it to heart is not asked without end.
		a = ask(3)
		s.set(func() {
			s.size = 1
			s.leases = map[string]leased{}
			s.declined = nil
			s.reply = func(a, m *dhcpv6.Message) *dhcpv6.Message { clear(s.declined); return a }
			s.declined = map[netip.Addr]bool{}
		})
		s.seen()
		if _, err := w.acquire(a); err == nil || !strings.Contains(err.Error(), "gives 2001:db8:1::1, which 02:00:00:00:00:05 has") &&
			!strings.Contains(err.Error(), "it offers 2001:db8:1::1, which another machine has") {
			t.Error(err)
		}
		if got := s.seen(); len(got) > 12 {
			t.Errorf("%d messages: %q", len(got), got)
		}
	})
}

// TestRelease: it is told, and repeated if it is not answered; the key and the
// identity are free at once, and no repetition ends the next lease.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		w.must(ask(1))
		w.must(ask(2))
		s.seen()
		w.Release("c1")
		time.Sleep(time.Minute)
		if got := s.seen(); !slices.Equal(got, []string{"RELEASE 2001:db8:1::1"}) {
			t.Errorf("the server saw %q", got)
		}
		s.set(func() { s.silent = true })
		w.Release("c2")
		time.Sleep(time.Hour)
		if got := s.seen(); !slices.Equal(got, slices.Repeat([]string{"RELEASE 2001:db8:1::2"}, 4)) {
			t.Errorf("the server saw %q", got)
		}
		if left := w.left(); left != "" {
			t.Errorf("left: %s", left)
		}

		s.set(func() { s.silent = false })
		w.must(ask(2))
		s.set(func() { s.silent = true })
		w.Release("c2")
		s.set(func() { s.silent = false })
		w.must(ask(2))
		s.seen()
		time.Sleep(10 * time.Minute)
		if got := s.seen(); len(got) > 0 {
			t.Errorf("after the release and a new lease, the server saw %q", got)
		}

		w.Forget("c2")
		time.Sleep(time.Hour)
		if got := s.seen(); len(got) > 0 {
			t.Errorf("forgetting, the server saw %q", got)
		}
		w.Release("c2") // unknown
	})
}

// TestGivenUp: what the server gave to one that did not wait is given back.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		s.reply = func(a, m *dhcpv6.Message) *dhcpv6.Message {
			if m.MessageType == dhcpv6.MessageTypeRequest {
				return nil
			}
			return a
		}
		if _, err := w.acquire(ask(1)); !errors.Is(err, ErrNoServer) {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if got := s.seen(); got[len(got)-1] != "RELEASE 2001:db8:1::1" || s.held() > 0 {
			t.Errorf("the server saw %q", got)
		}
	})
}

// TestRestore: leases of an earlier run, through JSON, at every point of their
// life.
func TestRestore(t *testing.T) {
	tests := []struct {
		name string
		away time.Duration
		seen string
		told string
	}{
		{"before T1", time.Minute, "CONFIRM 2001:db8:1::1", ""},
		{"after T1", 40 * time.Minute, "RENEW 2001:db8:1::1", "renewed "},
		{"after T2", 50 * time.Minute, "REBIND 2001:db8:1::1", "late renewed "},
		{"after the end", 2 * time.Hour, "SOLICIT 2001:db8:1::1 REQUEST 2001:db8:1::1", "lost changed "},
		{"before it was granted", -time.Minute, "REBIND 2001:db8:1::1", "late renewed "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.server(1)
				w.must(ask(1))
				b, err := json.Marshal(w.leases())
				if err != nil {
					t.Fatal(err)
				}
				w.Close()
				s.seen()
				var leases []Lease
				if err := json.Unmarshal(b, &leases); err != nil {
					t.Fatal(err)
				}
				if test.away > 0 {
					time.Sleep(test.away)
				} else {
					leases[0].Granted = time.Now().Add(-test.away)
				}
				again := newWorld(t)
				again.servers = append(again.servers, s)
				again.slow = time.Second // what is due is so before there is a socket
				s.w = again
				if err := again.Restore(leases); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
				if got := strings.Join(s.seen(), " "); got != test.seen {
					t.Errorf("the server saw %q", got)
				}
				if got := again.whats(); got != test.told {
					t.Errorf("told %q", got)
				}
				if all := again.leases(); len(all) != 1 || !reflect.DeepEqual(all[0].Ask, leases[0].Ask) {
					t.Errorf("leases %+v", all)
				}
				if err := again.Restore(leases); err == nil {
					t.Error("restored twice")
				}
			})
		})
	}
}

// TestMoved: the host is on another LAN after its link was away; a Confirm tells
// (RFC 8415 18.2.12), and the old address is kept until there is a new one.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.server(1)
		l := w.must(ask(1))
		w.unplug()
		w.plug()
		time.Sleep(20 * time.Second)
		if got := one.seen(); got[len(got)-1] != "CONFIRM 2001:db8:1::1" || w.whats() != "" {
			t.Errorf("the server saw %q", got)
		}
		w.unplug()
		two := w.server(2)
		w.set(func() { w.servers = []*server{two} })
		if len(w.leases()) != 1 {
			t.Error("the lease went with the carrier")
		}
		w.plug()
		time.Sleep(5 * time.Second)
		e := w.told()
		if len(e) != 1 || e[0].What != Changed || e[0].Was.Addr != l.Addr || e[0].Lease.Server != two.name {
			t.Errorf("told %+v", e)
		}
	})
}

// TestReplaced: the link is another of the same name, with no time between: leases
// are confirmed on it, and a question that went to the old one is asked again.
func TestReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		w.must(ask(1))
		s.seen()
		w.set(func() { w.wires[0].stale = true })
		begin := time.Now()
		go func() {
			time.Sleep(100 * time.Millisecond)
			w.Rouse()
		}()
		w.must(ask(2))
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("the question was asked again after %v", took)
		}
		time.Sleep(time.Second)
		if got := s.seen(); len(w.wires) != 2 || !slices.Contains(got, "CONFIRM 2001:db8:1::1") {
			t.Errorf("the server saw %q", got)
		}
	})
}

// TestRefusedFlicker: a link that comes and goes does not have a server that refuses
// asked all the time.
func TestRefusedFlicker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		l := w.must(ask(1))
		s.set(func() {
			s.reply = func(a, m *dhcpv6.Message) *dhcpv6.Message {
				if m.MessageType == dhcpv6.MessageTypeRequest {
					a.Options.Del(dhcpv6.OptionIANA)
					a.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
				}
				return a
			}
			s.declined[l.Addr] = true
		})
		w.Decline("c1", errors.New("the container says so"))
		time.Sleep(time.Hour)
		s.seen()
		time.Sleep(10 * time.Minute)
		calm := len(s.seen())
		for range 120 {
			w.unplug()
			w.plug()
			time.Sleep(5 * time.Second)
		}
		if got := len(s.seen()); calm == 0 || got > calm+calm/4+2 {
			t.Errorf("%d questions while the link flickers, %d while it does not", got, calm)
		}
	})
}

// TestUnplugged: without a link for a day; back soon after it.
func TestUnplugged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.server(1)
		l := w.must(ask(1))
		w.unplug()
		time.Sleep(24 * time.Hour)
		if got := w.whats(); got != "late lost " {
			t.Errorf("told %q", got)
		}
		w.plug()
		time.Sleep(4 * time.Second)
		e := w.told()
		if len(e) != 1 || e[0].What != Changed || e[0].Lease.Addr != l.Addr {
			t.Errorf("told %+v", e)
		}
	})
}

// TestStorm: 500 at once, each with an address of its own; their renewals, and
// their confirmations after a restart, are spread.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 500
		w := newWorld(t)
		s := w.server(1)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if _, err := w.acquire(ask(i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		seen := map[netip.Addr]bool{}
		for _, l := range w.leases() {
			seen[l.Addr] = true
		}
		if len(seen) != n || len(w.wires) != 1 {
			t.Errorf("%d addresses by %d sockets", len(seen), len(w.wires))
		}
		most := func() (most int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for i, at := range s.times {
				k := i
				for k < len(s.times) && s.times[k].Before(at.Add(time.Second)) {
					k++
				}
				most = max(most, k-i)
			}
			return most
		}
		s.seen()
		time.Sleep(33 * time.Minute)
		if k, all := most(), len(s.seen()); all != n || k > n/25 {
			t.Errorf("%d renewals, %d of them in a second", all, k)
		}
		leases := w.leases()
		w.Close()
		again := newWorld(t)
		again.servers = append(again.servers, s)
		s.w = again
		if err := again.Restore(leases); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w = again
		if k, all := most(), len(s.seen()); all != n || k > 300 {
			t.Errorf("%d confirmations, %d of them in a second", all, k)
		}
	})
}

// TestInfinite: nothing is asked again, for ever (RFC 8415 7.7).
func TestInfinite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		s.t1, s.t2, s.preferred, s.valid = 0, 0, infinite, infinite
		l := w.must(ask(1))
		if !l.Expires.IsZero() || !l.Renew.IsZero() || !l.Rebind.IsZero() || !l.Preferred.IsZero() {
			t.Errorf("lease %+v", l)
		}
		s.seen()
		time.Sleep(1000 * time.Hour)
		if got := s.seen(); len(got) > 0 {
			t.Errorf("the server saw %q", got)
		}
	})
}

// TestSame: two leases cannot have one identity, a key not two leases.
func TestSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.server(1)
		w.must(ask(1))
		a := ask(1)
		a.Key = "other"
		if _, err := w.acquire(a); err == nil || !strings.Contains(err.Error(), "has a lease on eth0 already, for c1") {
			t.Error(err)
		}
		a = ask(2)
		a.Key = "c1"
		if _, err := w.acquire(a); err == nil || !strings.Contains(err.Error(), "release it first") {
			t.Error(err)
		}
		a = ask(1)
		a.DUID, a.Key = NameDUID("web"), "web"
		if l := w.must(a); l.Addr.String() != "2001:db8:1::2" {
			t.Errorf("ipvlan: %v", l.Addr)
		}
		a = ask(1)
		a.Want = netip.MustParseAddr("2001:db8:1::9")
		if _, err := w.acquire(a); err == nil {
			t.Error("another address for a key that has a lease")
		}
	})
}

// TestRetransmission: RFC 8415 15: one transaction ID an exchange, each pause
// about twice the last, and the first Solicit's more than a second.
func TestRetransmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			w := newWorld(t)
			s := w.server(1)
			s.silent = true
			if _, err := w.acquire(ask(1)); !errors.Is(err, ErrNoServer) {
				t.Fatal(err)
			}
			if len(s.times) != 4 || len(s.xids) != 1 {
				t.Fatalf("%d solicits, %d transactions in 10 s", len(s.times), len(s.xids))
			}
			last := time.Duration(0)
			for i := 1; i < len(s.times); i++ {
				d := s.times[i].Sub(s.times[i-1])
				if i == 1 && (d <= time.Second || d > 1101*time.Millisecond) ||
					i > 1 && (d < last*19/10 || d > last*21/10) {
					t.Errorf("pause %d is %v after %v", i, d, last)
				}
				last = d
			}
			w.Close()
		}
	})
}

// TestPace: MRT is a limit, give or take a tenth.
func TestPace(t *testing.T) {
	p := pace{first: time.Second, most: 10 * time.Second}
	for range 100 {
		var d time.Duration
		for range 10 {
			d = p.next(d)
		}
		if d < 9*time.Second || d > 11*time.Second {
			t.Errorf("%v", d)
		}
	}
}

// TestLossy: with a tenth of all messages lost, no two
// containers have one address, and all keep theirs.
func TestLossy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.loss = 0.1
		s := w.server(1)
		s.t1, s.t2, s.preferred, s.valid = 150*time.Second, 240*time.Second, 300*time.Second, 300*time.Second
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				for {
					if _, err := w.acquire(ask(i)); err == nil {
						return
					}
				}
			})
		}
		wg.Wait()
		for range 200 {
			time.Sleep(17 * time.Second)
			seen := map[netip.Addr]string{}
			for _, l := range w.leases() {
				if other, taken := seen[l.Addr]; taken {
					t.Fatalf("%s and %s have %s", other, l.Ask.Key, l.Addr)
				}
				seen[l.Addr] = l.Ask.Key
			}
		}
		for _, e := range w.told() {
			if e.What == Lost || e.What == Changed && e.Was.Addr != e.Lease.Addr {
				t.Errorf("%s: %s %v", e.Lease.Ask.Key, e.What, e.Err)
			}
		}
	})
}

// TestDiscover: what would be given is told, and nothing is taken.
func TestDiscover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		s.rapid = true
		terms, err := w.Discover(t.Context(), ask(1))
		if err != nil || terms.Addr.String() != "2001:db8:1::1" || terms.Server != s.name {
			t.Errorf("%+v, %v", terms, err)
		}
		if got := s.seen(); !slices.Equal(got, []string{"SOLICIT"}) || s.held() > 0 || w.left() != "" {
			t.Errorf("the server saw %q, and %d leases; left: %s", got, s.held(), w.left())
		}
		w.must(ask(1))
	})
}

// TestDeclineLater: the caller finds the address in use after all.
func TestDeclineLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		w.must(ask(1))
		s.seen()
		w.Decline("c1", errors.New("the container says so"))
		time.Sleep(5 * time.Second)
		want := []string{"DECLINE 2001:db8:1::1", "SOLICIT", "REQUEST 2001:db8:1::2"}
		if diff := cmp.Diff(want, s.seen()); diff != "" {
			t.Error(diff)
		}
		e := w.told()
		if len(e) != 2 || e[0].What != Lost || e[1].What != Changed || e[1].Lease.Addr.String() != "2001:db8:1::2" {
			t.Errorf("told %+v", e)
		}
	})
}

// TestStatus: how it stands is told, with the server's last word.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		l := w.must(ask(1))
		s.set(func() {
			s.reply = func(a, m *dhcpv6.Message) *dhcpv6.Message {
				a.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusUnspecFail, StatusMessage: "not today"})
				return a
			}
		})
		time.Sleep(time.Until(l.Rebind))
		all := w.Leases()
		if len(all) != 1 || all[0].State != "rebinding" && all[0].State != "renewing" || all[0].Trouble == nil ||
			!strings.Contains(all[0].Trouble.Error(), "not today (UnspecFail)") || all[0].Addr != l.Addr {
			t.Errorf("%+v", all)
		}
		w.unplug()
		if all = w.Leases(); all[0].Trouble == nil || !strings.Contains(all[0].Trouble.Error(), "no carrier") {
			t.Errorf("%+v", all)
		}
	})
}

// TestSilentLink: where one has waited in vain, the next ones wait briefly, until a
// server answers.
func TestSilentLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.server(1)
		wait := func(what string, a Ask, ok bool, least, most time.Duration) {
			t.Helper()
			began := time.Now()
			_, err := w.acquire(a)
			if took := time.Since(began); (err == nil) != ok || took < least || took > most {
				t.Errorf("%s: %v after %v", what, err, took)
			}
		}
		w.set(func() { s.silent = true })
		short, cancel := context.WithTimeout(t.Context(), brief-time.Millisecond)
		defer cancel()
		if _, err := w.Acquire(short, ask(9)); !errors.Is(err, ErrNoServer) {
			t.Error(err)
		}
		wait("the first", ask(1), false, 10*time.Second, 10*time.Second)
		s.seen()
		wait("the second", ask(2), false, brief, brief)
		if n := len(s.seen()); n != 3 {
			t.Errorf("it asked %d times", n)
		}
		time.Sleep(lull)
		wait("a minute later", ask(3), false, 10*time.Second, 10*time.Second)
		go func() {
			time.Sleep(2 * time.Second)
			w.set(func() { s.silent = false })
		}()
		wait("the server comes back", ask(4), true, 2*time.Second, brief+time.Second)
		w.set(func() { s.silent = true })
		wait("once one had an answer", ask(5), false, 10*time.Second, 10*time.Second)
	})
}

// jump has all that the client remembers be as after a change of the host's clock.
func (w *world) jump(d time.Duration) {
	w.Client.mu.Lock()
	defer w.Client.mu.Unlock()
	for _, b := range w.owners {
		b.lease.shift(-d)
		b.due = b.due.Add(-d)
	}
	w.clock.Set(-d)
}

// TestClock: time that the host has slept counts, and a clock that is set back keeps
// no lease from its renewal.
func TestClock(t *testing.T) {
	hour := time.Hour
	tests := []struct {
		name string
		jump time.Duration
		seen string // at the next minute
		told string
	}{
		{"as it was", 0, "", ""},
		{"asleep for a while", 2 * time.Minute, "", ""},
		{"asleep past T1", 35 * time.Minute, "RENEW 2001:db8:1::1", "renewed "},
		{"asleep past T2", 45 * time.Minute, "REBIND 2001:db8:1::1", "late renewed "},
		{"asleep for too long", 8 * hour, "SOLICIT 2001:db8:1::1 REQUEST 2001:db8:1::1", "lost changed "},
		{"set back a little", -time.Minute, "", ""},
		{"set back by a day", -24 * hour, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(20 * time.Second)
				w := newWorld(t)
				s := w.server(1)
				l := w.must(ask(1))
				time.Sleep(10*time.Minute + 10*time.Second)
				s.seen()
				if test.jump > hour/2 { // the server has not slept
					s.set(func() { s.leases = map[string]leased{keyOf(l): {addr: l.Addr}} })
				}
				w.jump(test.jump)
				time.Sleep(wall.Nap() + 5*time.Second)
				if got := strings.Join(s.seen(), " "); got != test.seen {
					t.Errorf("the server saw %q", got)
				}
				if got := w.whats(); got != test.told {
					t.Errorf("told %q", got)
				}
				// T1 is 20 minutes from the jump, a tenth of the time until T2 later at most.
				time.Sleep(22 * time.Minute)
				if got := strings.Join(s.seen(), " "); test.told == "" && got != "RENEW 2001:db8:1::1" {
					t.Errorf("later the server saw %q", got)
				}
				if len(w.leases()) != 1 {
					t.Errorf("%+v", w.Leases())
				}
			})
		})
	}
}

// TestWall: what is kept goes by the host's clock. It is not in a bubble, whose times
// have no other.
func TestWall(t *testing.T) {
	w := newWorld(t)
	w.server(1).preference = 255
	l := w.must(ask(1))
	l.Ask = ask(2)
	l.Expires = time.Now().Add(time.Hour)
	if err := w.Restore([]Lease{l}); err != nil {
		t.Fatal(err)
	}
	w.Client.mu.Lock()
	defer w.Client.mu.Unlock()
	for _, b := range w.keys {
		for _, at := range []time.Time{b.lease.Granted, b.lease.Renew, b.lease.Rebind, b.lease.Preferred, b.lease.Expires, b.due} {
			if at != at.Round(0) {
				t.Errorf("%s goes by the clock that sleeps", at)
			}
		}
	}
}

// keyOf is what a server knows a lease by.
func keyOf(l Lease) string { return fmt.Sprintf("%s/%d", l.DUID, l.IAID) }
