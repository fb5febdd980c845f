package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"underlay/internal/store"
	"underlay/ipam/dhcp6"
)

// server6 is a dhcp6.Client and its server in one. It notes what it is told with what
// the one of IPv4 is told.
type server6 struct {
	*server
	mu       sync.Mutex
	asks     []dhcp6.Ask
	gives    []string
	next     int
	fails    error
	restored []dhcp6.Lease
}

func (s *server6) Acquire(_ context.Context, a dhcp6.Ask) (dhcp6.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks = append(s.asks, a)
	if s.fails != nil {
		return dhcp6.Lease{}, s.fails
	}
	l := dhcp6.Lease{Ask: a, Granted: time.Now()}
	l.Server = dhcp6.Server{Addr: netip.MustParseAddr("fe80::1"), DUID: "\x00\x04server"}
	switch {
	case len(s.gives) > 0:
		l.Addr, s.gives = netip.MustParseAddr(s.gives[0]), s.gives[1:]
	case a.Want.IsValid():
		l.Addr = a.Want
	default:
		s.next++
		l.Addr = netip.MustParseAddr(fmt.Sprintf("fd00:50::%d", 9+s.next))
	}
	l.Previous = nil
	return l, nil
}

func (s *server6) Restore(ls []dhcp6.Lease) error { s.restored = ls; return s.fails }
func (s *server6) Decline(key string, why error)  { s.note("decline " + key) }

func (s *server6) lastAsk() dhcp6.Ask {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asks[len(s.asks)-1]
}

// request6 is what IPAM asks for after request, on a network with both families.
func request6(changes ...func(*Request)) Request {
	r := request(func(r *Request) {
		r.V6, r.Subnet, r.On, r.DHCP.V6 = true, netip.MustParsePrefix("fd00:50::/64"), "pool6", true
	})
	for _, c := range changes {
		c(&r)
	}
	return r
}

func alone6(r *Request)   { r.DHCP.V4 = false }
func byDriver(r *Request) { r.Subnet = netip.Prefix{} }
func mate(key string) func(*Request) {
	return func(r *Request) { r.Mate = key }
}

// A container is one machine to the servers of both families.
func TestOneIdentity(t *testing.T) {
	for _, how := range [][]func(*Request){nil, {named("web")}, {shared}, {shared, named("web")}} {
		b := newBench(t)
		r4, r6 := request(how...), request6(how...)
		b.take(request(on("another#pool"))) // which is another network's
		e4 := b.take(r4)
		e6 := b.take(r6)
		a := b.six.lastAsk()
		if e6.Key != e4.Key+suffix6 || e6.Given.String() != "fd00:50::10/64" || !e6.V6() || e4.V6() || !bytes.Equal(a.MAC, e4.Lease.MAC) {
			t.Fatalf("%+v after %+v", e6, e4)
		}
		duid := dhcp6.LinkLayerDUID(e4.Lease.MAC)
		if r6.Shared {
			duid = dhcp6.DUID(e4.Lease.ClientID[5:]) // RFC 4361
		}
		if a.DUID != duid || a.IAID != 1 || a.Hostname != r6.Name {
			t.Errorf("%+v", a)
		}
		if m, sharing, ok := b.MAC(e6.Given.Addr()); !ok || sharing != r6.Shared || !bytes.Equal(m, e4.Lease.MAC) {
			t.Errorf("MAC %v, %t, %t", m, sharing, ok)
		}
		b.FreeAddress(e4.Given.Addr())
		b.FreeAddress(e6.Given.Addr())
		b.told("release "+e4.Key, "release "+e6.Key)
		if again4, again6 := b.take(r4), b.take(r6); again4.Key != e4.Key || again6.Key != e6.Key {
			t.Errorf("again, it is %s and %s, not %s and %s", again4.Key, again6.Key, e4.Key, e6.Key)
		}
		if p := b.six.lastAsk().Previous; p == nil || p.Addr != e6.Given.Addr() {
			t.Errorf("previous %+v", p)
		}
	}
}

// Of several that are started at once, each has its own, in the order of their leases
// of IPv4; whatever the order, none has another's, also over a restart.
func TestMates(t *testing.T) {
	b := newBench(t)
	old := b.take(request()) // from before the network had IPv6, say
	b.Book.mu.Lock()
	b.entries[old.Key].taken = time.Now().Add(-time.Hour)
	b.Book.mu.Unlock()
	var four, six []Entry
	for range 3 {
		four = append(four, b.take(request()))
	}
	for k := range 3 {
		six = append(six, b.take(request6()))
		if six[k].Key != four[k].Key+suffix6 {
			t.Errorf("%d: %s, want that of %s", k, six[k].Key, four[k].Key)
		}
	}
	// One is left; and then there is none any more.
	if e := b.take(request6()); e.Key != old.Key+suffix6 {
		t.Errorf("%s, want that of %s", e.Key, old.Key)
	}
	if e := b.take(request6()); slices.ContainsFunc(six, func(o Entry) bool { return o.Key == e.Key }) || !strings.HasSuffix(e.Key, suffix6) || !e.Drawn {
		t.Errorf("%+v", e)
	}
	// One whose start has failed at its lease of IPv6 is no other's.
	b = newBench(t)
	b.take(request())
	b.six.fails = dhcp6.ErrNoServer
	if _, err := b.Take(t.Context(), request6()); !errors.Is(err, dhcp6.ErrNoServer) {
		t.Fatal(err)
	}
	b.six.fails = nil
	second := b.take(request())
	if e := b.take(request6()); e.Key != second.Key+suffix6 {
		t.Errorf("%s, want that of %s", e.Key, second.Key)
	}
	// One that has another's, of a start in which the calls overtook each other, has
	// the same again.
	b = newBench(t)
	one, two := b.take(request()), b.take(request())
	sixOfTwo := b.take(request6())
	sixOfOne := b.take(request6())
	b.Free(one.Key)
	b.Free(sixOfOne.Key)
	if e, e6 := b.take(request()), b.take(request6()); e.Key != one.Key || e6.Key != sixOfOne.Key {
		t.Errorf("%s and %s, want %s and %s; the other has %s and %s", e.Key, e6.Key, one.Key, sixOfOne.Key, two.Key, sixOfTwo.Key)
	}
	// After the plugin's restart between the two calls: the latest.
	b = newBench(t)
	b.take(request())
	time.Sleep(time.Millisecond)
	late := b.take(request())
	b.open()
	if e := b.take(request6()); e.Key != late.Key+suffix6 {
		t.Errorf("%s, want that of %s", e.Key, late.Key)
	}
}

// A container that gets no lease of IPv6 does not start. Where its name tells which one
// of IPv4 it has, that is to be freed, so that its next start is that of the same
// machine.
func TestSpent(t *testing.T) {
	for _, tt := range []struct {
		what string
		how  []func(*Request)
		prep func(b *bench, four Entry)
		want bool
	}{
		{"a name", []func(*Request){named("web")}, nil, true},
		{"a name, ipvlan", []func(*Request){named("web"), shared}, nil, true},
		{"no name", nil, nil, false},
		{"another's name", []func(*Request){named("db")}, nil, false},
		{"IPv6 alone", []func(*Request){named("web"), alone6}, nil, false},
		{"by the driver, which frees it", []func(*Request){named("web"), byDriver}, func(b *bench, four Entry) { b.entries[four.Key].IPAM = false }, false},
		{"long ago", []func(*Request){named("web")}, func(b *bench, four Entry) { b.entries[four.Key].taken = time.Now().Add(-mateWithin) }, false},
		{"by an earlier process", []func(*Request){named("web")}, func(b *bench, _ Entry) { b.open() }, false},
		{"dockerd asks twice", []func(*Request){named("web")}, func(b *bench, _ Entry) { b.asking["0123"+suffix6] = "web" }, false},
		{"and has been answered", []func(*Request){named("web")}, func(b *bench, _ Entry) {
			b.entries["0123"+suffix6] = &Entry{Key: "0123" + suffix6, Name: "web", On: "pool6", Given: netip.MustParsePrefix("fd00:50::99/64")}
		}, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			r := request(tt.how...)
			if r.Name == "db" {
				r.Name = "web"
			}
			r.Subnet, r.DHCP.V4 = netip.MustParsePrefix("192.168.50.0/24"), true
			four := b.take(r)
			if tt.prep != nil {
				tt.prep(b, four)
			}
			b.six.fails = dhcp6.ErrNoServer
			_, err := b.Take(t.Context(), request6(tt.how...))
			spent := Spent{}
			if !errors.Is(err, dhcp6.ErrNoServer) || errors.As(err, &spent) != tt.want || tt.want && spent.Addr != four.Given.Addr() {
				t.Fatalf("%v, spent %v", err, spent.Addr)
			}
			b.told() // the IPAM does it, if no container has it
			if !tt.want {
				return
			}
			b.FreeAddress(spent.Addr)
			b.told("release " + four.Key)
			b.six.fails = nil
			again4, again6 := b.take(r), b.take(request6(tt.how...))
			if again4.Key != four.Key || !bytes.Equal(again4.Lease.MAC, four.Lease.MAC) || again6.Key != four.Key+suffix6 {
				t.Errorf("its next start is another machine's: %+v, %+v", again4, again6)
			}
		})
	}
}

// What the server gives and cannot be is as good as nothing.
func TestSpentByRefusal(t *testing.T) {
	for _, gives := range []string{"fd00:51::5", "fd00:50::2"} {
		b := newBench(t)
		b.own[netip.MustParseAddr("fd00:50::2")] = "an address of this host (eth0)"
		four := b.take(request(named("web")))
		b.six.gives = []string{gives}
		_, err := b.Take(t.Context(), request6(named("web")))
		if spent := (Spent{}); !errors.As(err, &spent) || spent.Addr != four.Given.Addr() {
			t.Errorf("%s: %v", gives, err)
		}
	}
}

// Without leases of IPv4 the identity is found as theirs is.
func TestIdentity6(t *testing.T) {
	const aa = "02:00:00:00:00:aa"
	for _, tt := range []struct {
		what          string
		first, second Request
		same          bool
		duid          string // how it begins
	}{
		{"a name", request6(alone6, named("web")), request6(alone6, named("web")), true, "00:03:00:01:"},
		{"two names", request6(alone6, named("web")), request6(alone6, named("db")), false, "00:03:00:01:"},
		{"nothing", request6(alone6), request6(alone6), true, "00:03:00:01:"},
		{"an address", request6(alone6, at("fd00:50::99")), request6(alone6, at("fd00:50::99")), true, "00:03:00:01:"},
		{"a MAC", request6(alone6, withMAC(aa)), request6(alone6, withMAC(aa)), true, "00:03:00:01:02:00:00:00:00:aa"},
		{"ipvlan", request6(alone6, shared), request6(alone6, shared), true, "00:04:"},
		{"a client id", request6(alone6, client("one")), request6(alone6, client("one")), true, "00:04:"},
		{"a client id with a DUID", request6(alone6, client("\xff\x00\x00\x00\x07\x00\x02duid")), request6(alone6, client("\xff\x00\x00\x00\x07\x00\x02duid")), true, "00:02:64:75:69:64"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			first := b.take(tt.first)
			a := b.six.lastAsk()
			if !strings.HasPrefix(a.DUID.String(), tt.duid) || (a.IAID == 7) != strings.Contains(tt.what, "with a DUID") {
				t.Errorf("DUID %s, IAID %d", a.DUID, a.IAID)
			}
			b.Free(first.Key)
			if second := b.take(tt.second); (second.Key == first.Key) != tt.same || (b.six.lastAsk().DUID == a.DUID) != tt.same {
				t.Errorf("%s and %s, DUIDs %s and %s", first.Key, second.Key, a.DUID, b.six.lastAsk().DUID)
			}
		})
	}
}

// The driver names the mate, with a MAC of the user's.
func TestMateOfDriver(t *testing.T) {
	b := newBench(t)
	e4 := b.take(request(withMAC("02:00:00:00:00:aa"), on("net")))
	r := request6(byDriver, on("net"), mate(e4.Key))
	r.MAC = mac("02:00:00:00:00:aa")
	e6 := b.take(r)
	if e6.Key != e4.Key+suffix6 || e6.IPAM || e6.Given.String() != "fd00:50::10/128" || b.six.lastAsk().DUID.String() != "00:03:00:01:02:00:00:00:00:aa" {
		t.Errorf("%+v, %+v", e6, b.six.lastAsk())
	}
	r.OnLink = []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24"), netip.MustParsePrefix("fd00:51::/64"), netip.MustParsePrefix("fd00:50::/60")}
	b.Free(e6.Key)
	if e := b.take(r); e.Given.String() != "fd00:50::11/60" {
		t.Errorf("%+v", e)
	}
}

// Who is listened to.
func TestServers6(t *testing.T) {
	b := newBench(t)
	o := func(r *Request) {
		r.DHCP.Servers = []netip.Addr{netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("fe80::1")}
		r.DHCP.DUIDs = []string{"00030001aabbccddeeff"}
	}
	b.take(request(o))
	if s := b.lastAsk().Servers; len(s) != 1 || s[0].String() != "192.168.50.1" {
		t.Errorf("%v", s)
	}
	b.take(request6(o, func(r *Request) { r.Alone = true }))
	a := b.six.lastAsk()
	if fmt.Sprint(a.Servers) != "[fe80::1 00:03:00:01:aa:bb:cc:dd:ee:ff]" || !a.Passthru {
		t.Errorf("%v, %+v", a.Servers, a)
	}
}

func TestServer6Refused(t *testing.T) {
	for _, tt := range []struct {
		what  string
		gives string
		fails error
		words []string
		did   []string
	}{
		{"no answer", "", dhcp6.ErrNoServer, []string{"no DHCPv6 server answers"}, nil},
		{"another subnet", "fd00:51::5", nil, []string{"fe80::1", "fd00:51::5", "outside", "--subnet fd00:51::/64"}, []string{"release"}},
		{"given twice", "fd00:50::10", nil, []string{"fd00:50::10 twice", "DUID"}, []string{"decline", "forget"}},
		{"the host's", "fd00:50::2", nil, []string{"fd00:50::2, which is an address of this host (eth0): take it out of the server's range"}, []string{"decline", "forget"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			b.own[netip.MustParseAddr("fd00:50::2")] = "an address of this host (eth0)"
			b.take(request6(alone6))
			if b.six.fails = tt.fails; tt.gives != "" {
				b.six.gives = []string{tt.gives}
			}
			_, err := b.Take(t.Context(), request6(alone6))
			refused(t, err, tt.words...)
			for k := range tt.did {
				tt.did[k] += " " + b.six.lastAsk().Key
			}
			b.told(tt.did...)
			if len(b.Entries()) != 1 || len(b.asking) != 0 {
				t.Errorf("%+v, %v", b.Entries(), b.asking)
			}
		})
	}
}

// Leases of both families go on after a restart, each with its client; those that no
// container has any more are given back.
func TestResume6(t *testing.T) {
	b := newBench(t)
	e4, e6 := b.take(request(named("web"))), b.take(request6(named("web")))
	gone := b.take(request6(alone6, named("gone")))
	before := *e6.Lease.V6
	b.open()
	b.Resume(func(e *Entry) bool { return e.Name == "web" })
	if len(b.restored) != 1 || b.restored[0].Key != e4.Key {
		t.Errorf("IPv4: %+v", b.restored)
	}
	k := slices.IndexFunc(b.six.restored, func(l dhcp6.Lease) bool { return l.Key == e6.Key })
	if len(b.six.restored) != 2 || k < 0 {
		t.Fatalf("IPv6: %+v", b.six.restored)
	}
	if l := b.six.restored[k]; l.DUID != before.DUID || l.IAID != before.IAID || l.Server != before.Server || l.Addr != before.Addr || !l.Granted.Equal(before.Granted) {
		t.Errorf("%+v, want %+v", l, before)
	}
	b.told("release " + gone.Key)
	b.six.fails = errors.New("no such link")
	b.open()
	b.Resume(func(*Entry) bool { return true })
	if e := b.log.LastEntry(); e == nil || !strings.Contains(e.Message, "no such link") {
		t.Errorf("log %v", e)
	}
}

// An earlier version, which does not know leases of IPv6, does not come upon them.
func TestBucket6(t *testing.T) {
	b := newBench(t)
	e4, e6 := b.take(request()), b.take(request6())
	has := func(want4, want6 string) {
		t.Helper()
		for in, want := range map[string]string{bucket: want4, bucket6: want6} {
			var keys []string
			if err := b.store.Each(in, func(k, _ []byte) error { keys = append(keys, string(k)); return nil }); err != nil || strings.Join(keys, " ") != want {
				t.Errorf("%s has %q, %v; want %q", in, keys, err, want)
			}
		}
	}
	has(e4.Key, e6.Key)
	b.Refuse(e6.Given.Addr(), errors.New("it is the host's"))
	b.told("decline "+e6.Key, "forget "+e6.Key)
	b.open()
	has(e4.Key, "")
	if err := b.store.Apply(store.Change{Bucket: bucket6, Key: []byte("k"), Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Client: b.server, Client6: b.six, Store: b.store})
	refused(t, err, "leases6/k")
}

// What the client tells of a lease of IPv6.
func TestTold6(t *testing.T) {
	b := newBench(t)
	e := b.take(request6(named("web")))
	later, other, far := *e.Lease.V6, *e.Lease.V6, *e.Lease.V6
	later.Expires = time.Now().Add(time.Hour).Round(0)
	other.Addr, far.Addr = netip.MustParseAddr("fd00:50::99"), netip.MustParseAddr("fd00:51::99")
	lost := errors.New("no DHCPv6 server on eth0 has renewed it")
	for _, step := range []struct {
		ev    dhcp6.Event
		moved string
		lost  string
	}{
		{dhcp6.Event{What: dhcp6.Renewed, Lease: later}, "", ""},
		{dhcp6.Event{What: dhcp6.Lost, Lease: later, Err: lost}, "", lost.Error()},
		{dhcp6.Event{What: dhcp6.Changed, Lease: other}, "fd00:50::10/64: fd00:50::99/64", ""},
		{dhcp6.Event{What: dhcp6.Changed, Lease: far}, "fd00:50::10/64: fd00:51::99/128", ""},
		{dhcp6.Event{What: dhcp6.Changed, Lease: later}, "fd00:50::10/64: fd00:50::10/64", ""},
		{dhcp6.Event{What: dhcp6.Changed, Lease: dhcp6.Lease{Ask: dhcp6.Ask{Key: "nobody's"}, Terms: dhcp6.Terms{Addr: other.Addr}}}, "", ""},
	} {
		b.moved = nil
		b.Told6(step.ev)
		if got := strings.Join(b.moved, ", "); got != step.moved {
			t.Errorf("%s: moved %q, want %q", step.ev.What, got, step.moved)
		}
		if es := b.Entries(); len(es) != 1 || es[0].Lost != step.lost || es[0].Given != e.Given {
			t.Errorf("%s: %+v", step.ev.What, es)
		}
	}
	b.Told6(dhcp6.Event{What: dhcp6.Changed, Lease: other})
	b.open()
	if es := b.Entries(); len(es) != 1 || es[0].Drift().String() != "fd00:50::99/64" || es[0].Lease.V6.Addr != other.Addr {
		t.Errorf("after a restart: %+v", es)
	}
}

// Leases of IPv4 are on disk as they were before there were others.
func TestRecord4(t *testing.T) {
	const text = `{"key":"k","on":"pool","given":"192.168.50.10/24","ipam":true,"lease":{"key":"k","link":"eth0","mac":"AgAAAAAB","addr":"192.168.50.10/24","server":"192.168.50.1","granted":"2026-11-30T12:00:00Z","expires":"2026-11-30T13:00:00Z"}}`
	b := newBench(t)
	if err := b.store.Apply(store.Change{Bucket: bucket, Key: []byte("k"), Value: []byte(text)}); err != nil {
		t.Fatal(err)
	}
	b.open()
	es := b.Entries()
	if len(es) != 1 || es[0].Lease.Addr != es[0].Given || es[0].Lease.Link != "eth0" || es[0].Lease.V6 != nil || es[0].V6() {
		t.Fatalf("%+v", es)
	}
	if got := string(record(&es[0]).Value); got != text {
		t.Errorf("%s, not\n%s", got, text)
	}
}
