package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"underlay/internal/options"
	"underlay/internal/store"
	"underlay/ipam/dhcp"
)

// server is a dhcp.Client and its server in one: it gives each client its own
// address, and notes what it is told.
type server struct {
	mu       sync.Mutex
	asks     []dhcp.Ask
	did      []string // "release KEY" and the like
	gives    []netip.Prefix
	next     int
	fails    error
	restored []dhcp.Lease
	terms    dhcp.Terms
	during   func(dhcp.Ask) // called in Acquire
}

func (s *server) Acquire(ctx context.Context, a dhcp.Ask) (dhcp.Lease, error) {
	if s.during != nil {
		s.during(a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks = append(s.asks, a)
	if s.fails != nil {
		return dhcp.Lease{}, s.fails
	}
	l := dhcp.Lease{Ask: a, Terms: s.terms, Granted: time.Now()}
	l.Server = netip.MustParseAddr("192.168.50.1")
	switch {
	case len(s.gives) > 0:
		l.Addr, s.gives = s.gives[0], s.gives[1:]
	case a.Want.IsValid():
		l.Addr = netip.PrefixFrom(a.Want, 24)
	default:
		s.next++
		l.Addr = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 50, byte(9 + s.next)}), 24)
	}
	l.Previous = nil
	return l, nil
}

func (s *server) Discover(_ context.Context, a dhcp.Ask) (dhcp.Terms, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks = append(s.asks, a)
	return s.terms, s.fails
}

func (s *server) Restore(ls []dhcp.Lease) error { s.restored = ls; return s.fails }
func (s *server) Release(key string)            { s.note("release " + key) }
func (s *server) Forget(key string)             { s.note("forget " + key) }
func (s *server) Decline(key, _ string)         { s.note("decline " + key) }

func (s *server) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did = append(s.did, what)
}

// bench is a Book on a state file.
type bench struct {
	*Book
	*server
	six   *server6
	t     *testing.T
	path  string
	log   *test.Hook
	moved []string                // what containers were given in the place of what Docker knows
	has   map[string]netip.Prefix // of containers, by key
	own   map[netip.Addr]string
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "state.db"), server: &server{}, has: map[string]netip.Prefix{}, own: map[netip.Addr]string{}}
	b.six = &server6{server: b.server}
	b.open()
	return b
}

// open starts the plugin, on what an earlier one has left.
func (b *bench) open() {
	b.t.Helper()
	if b.Book != nil {
		if err := b.store.Close(); err != nil {
			b.t.Fatal(err)
		}
	}
	st, err := store.Open(b.path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { st.Close() })
	var log *logrus.Logger
	log, b.log = test.NewNullLogger()
	b.Book, err = Open(Config{Client: b.server, Client6: b.six, Store: st, Log: logrus.NewEntry(log), Changed: func(e Entry) {
		to := e.Lease.Addr
		if has, ok := b.has[e.Key]; ok && has != to || !ok && to != e.Given { // as the driver knows what a container has
			b.has[e.Key] = to
			b.moved = append(b.moved, fmt.Sprintf("%v: %v", e.Given, to))
		}
	}, Own: func(_ string, a netip.Addr) string { return b.own[a] }})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) take(r Request) Entry {
	b.t.Helper()
	e, err := b.Take(b.t.Context(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

// did checks what the client was told since it was last asked.
func (b *bench) told(want ...string) {
	b.t.Helper()
	b.server.mu.Lock()
	defer b.server.mu.Unlock()
	if d := cmp.Diff(want, b.did); d != "" {
		b.t.Errorf("the client was told (-want +got):\n%s", d)
	}
	b.did = nil
}

func (b *bench) lastAsk() dhcp.Ask {
	b.server.mu.Lock()
	defer b.server.mu.Unlock()
	return b.asks[len(b.asks)-1]
}

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// request is one of IPAM's on eth0, changed.
func request(changes ...func(*Request)) Request {
	r := Request{
		Parent: mac("00:16:3e:00:00:02"), Link: "eth0", On: "pool", Subnet: netip.MustParsePrefix("192.168.50.0/24"),
		DHCP: options.DHCP{V4: true, Timeout: time.Second},
	}
	for _, c := range changes {
		c(&r)
	}
	return r
}

func named(name string) func(*Request) { return func(r *Request) { r.Name = name } }
func at(addr string) func(*Request) {
	return func(r *Request) { r.Addr = netip.MustParseAddr(addr) }
}
func withMAC(m string) func(*Request) {
	return func(r *Request) { r.MAC, r.Subnet = mac(m), netip.Prefix{} }
}
func on(network string) func(*Request)    { return func(r *Request) { r.On = network } }
func shared(r *Request)                   { r.Shared = true }
func client(id string) func(*Request)     { return func(r *Request) { r.ClientID = []byte(id) } }
func kept(r *Request)                     { r.DHCP.Keep = true }
func onLink(link string) func(*Request)   { return func(r *Request) { r.Link = link } }
func ofHost(parent string) func(*Request) { return func(r *Request) { r.Parent = mac(parent) } }

func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q lacks %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is more than a line", err)
	}
}

// Who a container is to the server when it starts again.
func TestIdentity(t *testing.T) {
	const aa = "02:00:00:00:00:aa"
	for _, tt := range []struct {
		what          string
		first, second Request
		same          bool
	}{
		{"a name", request(named("web")), request(named("web")), true},
		{"two names", request(named("web")), request(named("db")), false},
		{"a name, with an address now", request(named("web")), request(named("web"), at("192.168.50.77")), true},
		{"a MAC", request(withMAC(aa)), request(withMAC(aa)), true},
		{"two MACs", request(withMAC(aa)), request(withMAC("02:00:00:00:00:ab")), false},
		{"a MAC before a name", request(withMAC(aa), named("web")), request(withMAC(aa), named("db")), true},
		{"an address", request(at("192.168.50.77")), request(at("192.168.50.77")), true},
		{"a client id", request(client("one"), named("web")), request(client("one"), named("db")), true},
		{"two client ids", request(client("one")), request(client("two")), false},
		{"a client id, ipvlan", request(client("one"), shared), request(client("one"), shared), true},
		{"nothing after a client id", request(client("one")), request(), false},
		{"two addresses", request(at("192.168.50.77")), request(at("192.168.50.78")), false},
		{"nothing", request(), request(), true},
		{"nothing after a name", request(named("web")), request(), false},
		{"nothing after a MAC", request(withMAC(aa)), request(func(r *Request) { r.Subnet = netip.Prefix{} }), false},
		{"nothing after an address", request(at("192.168.50.77")), request(), false},
		{"ipvlan", request(shared, named("web")), request(shared, named("web")), true},
		{"ipvlan after macvlan", request(named("web")), request(shared, named("web")), false},
		{"ipvlan after macvlan, of nothing", request(), request(shared), false},
		{"another network", request(named("web")), request(named("web"), on("another")), false},
		{"another network, of nothing", request(), request(on("another")), false},
		{"another parent", request(named("web")), request(named("web"), onLink("eth1")), false},
		{"another parent, of nothing", request(), request(onLink("eth1")), false},
		{"another host", request(named("web")), request(named("web"), ofHost("00:16:3e:00:00:03")), false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			first := b.take(tt.first)
			b.Free(first.Key)
			second := b.take(tt.second)
			if (first.Key == second.Key) != tt.same {
				t.Errorf("keys %s and %s", first.Key, second.Key)
			}
			one, two := b.asks[0], b.asks[1]
			if same := bytes.Equal(one.MAC, two.MAC) && bytes.Equal(one.ClientID, two.ClientID); same != tt.same {
				t.Errorf("the server sees %v %x and %v %x", one.MAC, one.ClientID, two.MAC, two.ClientID)
			}
		})
	}
}

// Two that run at the same time are two, whatever they have in common.
func TestTwoAtOnce(t *testing.T) {
	for _, r := range []Request{request(), request(named("web")), request(at("192.168.50.77")), request(shared), request(shared, named("web"))} {
		b := newBench(t)
		b.gives = []netip.Prefix{netip.MustParsePrefix("192.168.50.77/24"), netip.MustParsePrefix("192.168.50.78/24")}
		one := b.take(r)
		two := b.take(r)
		if one.Key == two.Key {
			t.Errorf("%+v: two with key %s", r, one.Key)
		}
		if !r.Shared && bytes.Equal(one.Lease.MAC, two.Lease.MAC) || bytes.Equal(one.Lease.ClientID, two.Lease.ClientID) && r.Shared {
			t.Errorf("%+v: the server sees one client", r)
		}
	}
	// While the first is still asked for.
	b := newBench(t)
	once := sync.OnceFunc(func() { b.take(request(named("web"))) })
	var entered bool
	b.during = func(dhcp.Ask) {
		if !entered {
			entered = true
			once()
		}
	}
	b.take(request(named("web")))
	if len(b.Entries()) != 2 || b.asks[0].Key == b.asks[1].Key {
		t.Errorf("%+v", b.Entries())
	}
}

// A MAC is one machine's. Freeing the second, as the driver does when it refuses the
// endpoint, must not take the first's lease away.
func TestMACInUse(t *testing.T) {
	b := newBench(t)
	r := request(withMAC("02:00:00:00:00:aa"))
	one := b.take(r)
	_, err := b.Take(t.Context(), r)
	refused(t, err, "02:00:00:00:00:aa", "--mac-address")
	b.told()
	if es := b.Entries(); len(es) != 1 || es[0].Key != one.Key {
		t.Errorf("%+v", es)
	}
	b.Free(one.Key)
	b.take(r)
}

// Of those without a name, the one that was freed last is started again first.
func TestLastFreedFirst(t *testing.T) {
	b := newBench(t)
	var keys []string
	for range 3 {
		keys = append(keys, b.take(request()).Key)
	}
	for _, k := range []int{1, 2, 0} {
		b.Free(keys[k])
		time.Sleep(time.Millisecond)
	}
	for _, k := range []int{0, 2, 1} {
		if e := b.take(request()); e.Key != keys[k] {
			t.Errorf("%s, want %s of %v", e.Key, keys[k], keys)
		}
	}
	if e := b.take(request()); slices.Contains(keys, e.Key) {
		t.Errorf("%s is in use", e.Key)
	}
}

func TestAsk(t *testing.T) {
	b := newBench(t)
	r := request(named("my_web.1"), at("192.168.50.77"))
	r.DHCP.Class, r.DHCP.Servers = "underlay", []netip.Addr{netip.MustParseAddr("192.168.50.1")}
	b.take(r)
	a := b.lastAsk()
	if a.Link != "eth0" || a.Hostname != "my-web-1" || a.VendorClass != "underlay" || a.Want != r.Addr || !slices.Equal(a.Servers, r.DHCP.Servers) || a.ClientID != nil || a.Previous != nil {
		t.Errorf("%+v", a)
	}
	if a.MAC[0]&3 != 2 || len(a.MAC) != 6 {
		t.Errorf("MAC %v is not a locally administered one of one machine", a.MAC)
	}
	b.take(request(withMAC("00:16:3e:00:00:aa")))
	if a := b.lastAsk(); a.MAC.String() != "00:16:3e:00:00:aa" || a.ClientID != nil {
		t.Errorf("%+v", a)
	}
	for _, r := range []Request{request(client("mine")), request(client("yours"), shared)} {
		b.take(r)
		if a := b.lastAsk(); !bytes.Equal(a.ClientID, r.ClientID) {
			t.Errorf("client id %x, not the own %x", a.ClientID, r.ClientID)
		}
		_, err := b.Take(t.Context(), r)
		refused(t, err, fmt.Sprintf("%x", r.ClientID), "in use")
	}
	e := b.take(request(shared))
	a = b.lastAsk()
	if a.MAC.String() != "00:16:3e:00:00:02" || len(a.ClientID) != 1+4+2+16 || a.ClientID[0] != 255 || !bytes.Equal(a.ClientID[5:7], []byte{0, 4}) {
		t.Errorf("ipvlan: %v, client id %x (RFC 4361)", a.MAC, a.ClientID)
	}
	if m, shares, ok := b.MAC(e.Given.Addr()); !ok || !shares || m.String() != "00:16:3e:00:00:02" {
		t.Errorf("%v, %t, %t", m, shares, ok)
	}
	if _, _, ok := b.MAC(netip.MustParseAddr("192.168.50.200")); ok {
		t.Error("an address that nobody has has a MAC")
	}
}

// The MTU is told only where it is wanted.
func TestMTU(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		b := newBench(t)
		b.terms.MTU = 1400
		e := b.take(request(func(r *Request) { r.DHCP.MTU = wanted }))
		if got := b.MTU(e.Given.Addr()); (got == 1400) != wanted || !wanted && got != 0 {
			t.Errorf("wanted %t: %d", wanted, got)
		}
		b.Free(e.Key)
		if got := b.MTU(e.Given.Addr()); got != 0 {
			t.Errorf("%d after the end", got)
		}
	}
}

func TestHostname(t *testing.T) {
	for container, want := range map[string]string{
		"": "", "web": "web", "a_b.c": "a-b-c", "_x_": "x", "web-": "web", "...": "",
		strings.Repeat("a", 62) + "_b": strings.Repeat("a", 62),
		strings.Repeat("a", 70):        strings.Repeat("a", 63),
	} {
		if got := hostname(container); got != want {
			t.Errorf("%q: %q, want %q", container, got, want)
		}
	}
}

// A lease that was given back is asked for by DISCOVER, with its address as a wish;
// one that was kept, by INIT-REBOOT.
func TestPrevious(t *testing.T) {
	for _, tt := range []struct {
		what          string
		first, second Request
		did           string
		previous      bool
		expired       bool
	}{
		{"released", request(named("web")), request(named("web")), "release", true, true},
		{"kept", request(named("web"), kept), request(named("web")), "forget", true, false},
		{"kept, and another address wanted", request(named("web"), kept), request(named("web"), at("192.168.50.99")), "forget", false, false},
		{"kept, and that address wanted", request(named("web"), kept), request(named("web"), at("192.168.50.10")), "forget", true, false},
	} {
		for _, reopened := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reopened %t", tt.what, reopened), func(t *testing.T) {
				b := newBench(t)
				e := b.take(tt.first)
				b.FreeAddress(e.Given.Addr())
				b.told(tt.did + " " + e.Key)
				b.Free(e.Key) // is no news
				b.FreeAddress(e.Given.Addr())
				b.told()
				if len(b.Entries()) != 0 {
					t.Errorf("%+v", b.Entries())
				}
				if reopened {
					b.open()
					b.Resume(func(*Entry) bool { t.Error("asked for one that rests"); return true })
					if len(b.restored) != 0 {
						t.Errorf("restored %+v", b.restored)
					}
				}
				b.take(tt.second)
				p := b.lastAsk().Previous
				if (p != nil) != tt.previous {
					t.Fatalf("previous %+v", p)
				}
				if p != nil && (p.Expired(time.Now()) != tt.expired || p.Addr != e.Given) {
					t.Errorf("previous %+v", p)
				}
			})
		}
	}
}

// After a restart the leases of containers go on, and those without one are freed.
func TestResume(t *testing.T) {
	b := newBench(t)
	stays := b.take(request(named("stays")))
	ends := b.take(request(named("ends")))
	kept := b.take(request(named("kept"), kept))
	gone := b.take(request(named("gone")))
	b.Free(gone.Key)
	b.told("release " + gone.Key)
	before := b.Entries()
	b.open()
	if d := cmp.Diff(before, b.Entries(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.IgnoreUnexported(Entry{})); d != "" {
		t.Errorf("after the restart (-want +got):\n%s", d)
	}
	if m, _, ok := b.MAC(stays.Given.Addr()); !ok || !bytes.Equal(m, stays.Lease.MAC) {
		t.Errorf("MAC %v, %t", m, ok)
	}
	b.Resume(func(e *Entry) bool {
		b.MAC(e.Given.Addr()) // IPAM and driver call with their locks held: held must not be under ours
		return e.Name == "stays"
	})
	// Of those that nobody has any more, too: or their server would not be told.
	var restored []string
	for _, l := range b.restored {
		restored = append(restored, l.Key)
	}
	slices.Sort(restored)
	if want := slices.Sorted(slices.Values([]string{stays.Key, ends.Key, kept.Key})); !slices.Equal(restored, want) {
		t.Errorf("restored %q, want %q", restored, want)
	}
	slices.Sort(b.did)
	b.told("forget "+kept.Key, "release "+ends.Key)
	if es := b.Entries(); len(es) != 1 || es[0].Name != "stays" {
		t.Errorf("%+v", es)
	}
	b.fails = errors.New("no such link")
	b.open()
	b.Resume(func(*Entry) bool { return true })
	if e := b.log.LastEntry(); e == nil || !strings.Contains(e.Message, "no such link") {
		t.Errorf("log %v", e)
	}
}

func TestRefuse(t *testing.T) {
	b := newBench(t)
	e := b.take(request(named("web")))
	b.Refuse(netip.MustParseAddr("192.168.50.200"), errors.New("nobody has it"))
	b.told()
	b.Refuse(e.Given.Addr(), errors.New("it is the host's"))
	b.told("decline " + e.Key)
	b.FreeAddress(e.Given.Addr())
	b.told()
	b.open()
	if len(b.Entries()) != 0 || len(b.entries) != 0 {
		t.Errorf("%+v", b.entries)
	}
	if again := b.take(request(named("web"))); again.Key != e.Key || b.lastAsk().Previous != nil {
		t.Errorf("%+v, previous %+v", again, b.lastAsk().Previous)
	}
}

func TestServerRefused(t *testing.T) {
	for _, tt := range []struct {
		what  string
		gives string
		fails error
		words []string
		did   string
	}{
		{"no answer", "", errors.New("no dhcp server answers on eth0"), []string{"no dhcp server answers on eth0"}, ""},
		{"another subnet", "10.0.0.5/8", nil, []string{"192.168.50.1", "10.0.0.5", "outside", "192.168.50.0/24", "--subnet 10.0.0.0/8"}, "release"},
		{"an address given twice", "192.168.50.10/24", nil, []string{"192.168.50.10", "twice", "client identifier"}, "decline"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			first := b.take(request(named("first")))
			if b.fails = tt.fails; tt.gives != "" {
				b.gives = []netip.Prefix{netip.MustParsePrefix(tt.gives)}
			}
			_, err := b.Take(t.Context(), request(named("second")))
			refused(t, err, tt.words...)
			if tt.did == "" {
				b.told()
			} else {
				b.told(tt.did + " " + b.lastAsk().Key)
			}
			if es := b.Entries(); len(es) != 1 || es[0].Key != first.Key {
				t.Errorf("%+v", es)
			}
			if m, _, ok := b.MAC(first.Given.Addr()); !ok || !bytes.Equal(m, first.Lease.MAC) {
				t.Errorf("the first's MAC is %v, %t", m, ok)
			}
			b.fails = nil
			if e := b.take(request(named("second"))); e.Key != b.asks[1].Key {
				t.Error("the second try is another machine's")
			}
		})
	}
}

// The network's timeout ends what the server does not answer.
func TestTimeout(t *testing.T) {
	b := newBench(t)
	r := request()
	r.DHCP.Timeout = 20 * time.Millisecond
	silent := &silence{server: b.server}
	b.client = silent
	began := time.Now()
	_, err := b.Take(t.Context(), r)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if len(b.asking) != 0 {
		t.Errorf("%v is being asked for for ever", b.asking)
	}
}

type silence struct{ *server }

func (silence) Acquire(ctx context.Context, _ dhcp.Ask) (dhcp.Lease, error) {
	<-ctx.Done()
	return dhcp.Lease{}, ctx.Err()
}

// What is not on disk would be forgotten by a restart: the container must not have it.
func TestStoreFails(t *testing.T) {
	b := newBench(t)
	running := b.take(request(named("running")))
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := b.Take(t.Context(), request(named("web")))
	if !errors.Is(err, store.ErrClosed) {
		t.Errorf("%v", err)
	}
	b.told("release " + b.lastAsk().Key)
	if es := b.Entries(); len(es) != 1 || es[0].Key != running.Key {
		t.Errorf("%+v", es)
	}
	b.Free(running.Key)
	b.told("release " + running.Key)
}

func TestSurplus(t *testing.T) {
	b := newBench(t)
	b.take(request(named("runs")))
	old := time.Now().Add(-time.Hour)
	b.Book.mu.Lock()
	for n := range maxResting {
		e := &Entry{Key: fmt.Sprintf("key%04d", n), Rests: old.Add(time.Duration(n) * time.Second)}
		b.put(e)
		b.store.Submit(record(e))
	}
	b.Book.mu.Unlock()
	e := b.take(request(named("one more")))
	b.Free(e.Key)
	b.open()
	if n := len(b.entries); n != maxResting+1 {
		t.Errorf("%d entries", n)
	}
	for key, want := range map[string]bool{"key0000": false, "key0001": true, e.Key: true} {
		if (b.entries[key] != nil) != want {
			t.Errorf("%s is there: %t", key, !want)
		}
	}
	if len(b.Entries()) != 1 {
		t.Errorf("%+v", b.Entries())
	}
}

// What the client tells of a lease: each thing is said once, and kept.
func TestTold(t *testing.T) {
	b := newBench(t)
	e := b.take(request(named("web")))
	later, other := e.Lease.Lease, e.Lease.Lease
	later.Expires = time.Now().Add(time.Hour).Round(0)
	other.Addr = netip.MustParsePrefix("192.168.50.99/24")
	lost := errors.New("no dhcp server renews it")
	for _, step := range []struct {
		ev    dhcp.Event
		logs  []string // in a new line
		moved []string
		lost  string
		drift netip.Prefix
	}{
		{ev: dhcp.Event{What: dhcp.Renewed, Lease: later}},
		{ev: dhcp.Event{What: dhcp.Late, Lease: later, Err: lost}, logs: []string{"no dhcp server renews it"}, lost: lost.Error()},
		{ev: dhcp.Event{What: dhcp.Lost, Lease: later, Err: lost}, lost: lost.Error()},
		{ev: dhcp.Event{What: dhcp.Renewed, Lease: later}, logs: []string{"answers again"}},
		{ev: dhcp.Event{What: dhcp.Changed, Lease: other, Was: later}, logs: []string{"192.168.50.99", "in the place of 192.168.50.10"},
			moved: []string{"192.168.50.10/24: 192.168.50.99/24"}, drift: other.Addr},
		{ev: dhcp.Event{What: dhcp.Renewed, Lease: other}, drift: other.Addr},
		{ev: dhcp.Event{What: dhcp.Changed, Lease: later, Was: other}, logs: []string{"192.168.50.10"},
			moved: []string{"192.168.50.10/24: 192.168.50.10/24"}},
		{ev: dhcp.Event{What: dhcp.Renewed, Lease: dhcp.Lease{Ask: dhcp.Ask{Key: "nobody's"}}}},
	} {
		b.log.Reset()
		b.moved = nil
		b.Told(step.ev)
		if (len(b.log.AllEntries()) > 0) != (step.logs != nil) || len(b.log.AllEntries()) > 1 {
			t.Errorf("%s: %d lines", step.ev.What, len(b.log.AllEntries()))
		}
		for _, w := range step.logs {
			if l := b.log.LastEntry(); l == nil || !strings.Contains(l.Message, w) || l.Data["container"] != "web" {
				t.Errorf("%s: %+v lacks %q", step.ev.What, l, w)
			}
		}
		if d := cmp.Diff(step.moved, b.moved); d != "" {
			t.Errorf("%s: moved (-want +got):\n%s", step.ev.What, d)
		}
		es := b.Entries()
		if len(es) != 1 || es[0].Lost != step.lost || es[0].Drift() != step.drift || es[0].Given != e.Given {
			t.Errorf("%s: %+v", step.ev.What, es)
		}
	}
	// Its clock has been a day ahead for a while.
	ahead := later
	ahead.Granted = time.Now().Add(24 * time.Hour)
	b.Told(dhcp.Event{What: dhcp.Renewed, Lease: ahead})
	b.Told(dhcp.Event{What: dhcp.Changed, Lease: other})
	if b.given[e.Given.Addr()] != b.entries[e.Key] {
		t.Error("by the address that Docker knows, there is an older lease")
	}
	b.open()
	if es := b.Entries(); len(es) != 1 || es[0].Drift() != other.Addr {
		t.Errorf("after a restart: %+v", es)
	}
	if _, _, ok := b.MAC(e.Given.Addr()); !ok {
		t.Error("it is not known by the address that Docker knows")
	}
	b.FreeAddress(e.Given.Addr())
	b.told("release " + e.Key)
	b.moved = nil
	b.Told(dhcp.Event{What: dhcp.Changed, Lease: later})
	if len(b.Entries()) != 0 || b.moved != nil {
		t.Error("news of a lease that was given back")
	}
}

func TestLearn(t *testing.T) {
	b := newBench(t)
	router := netip.MustParseAddr("192.168.50.1")
	for _, tt := range []struct {
		terms  dhcp.Terms
		router netip.Addr
	}{
		{dhcp.Terms{}, netip.Addr{}},
		{dhcp.Terms{Routers: []netip.Addr{router, router.Next()}}, router},
		{dhcp.Terms{Routes: []dhcp.Route{{To: netip.MustParsePrefix("10.0.0.0/8"), Via: router.Next()}}}, netip.Addr{}},
		{dhcp.Terms{Routes: []dhcp.Route{{To: netip.MustParsePrefix("10.0.0.0/8"), Via: router.Next()}, {To: netip.MustParsePrefix("0.0.0.0/0"), Via: router}}}, router},
	} {
		tt.terms.Addr = netip.MustParsePrefix("192.168.50.66/24")
		b.terms = tt.terms
		subnet, got, err := b.Learn(t.Context(), "eth0", mac("00:16:3e:00:00:02"), options.DHCP{V4: true})
		if err != nil || got != tt.router || subnet != netip.MustParsePrefix("192.168.50.0/24") {
			t.Errorf("%+v: %v, %v, %v", tt.terms, subnet, got, err)
		}
	}
	b.fails = errors.New("no dhcp server answers on eth0")
	_, _, err := b.Learn(t.Context(), "eth0", mac("00:16:3e:00:00:02"), options.DHCP{V4: true})
	refused(t, err, "no dhcp server answers")
	if len(b.entries) != 0 || len(b.asking) != 0 {
		t.Errorf("left: %v, %v", b.entries, b.asking)
	}
}

// Damage in the book is told, not passed over.
func TestOpenDamaged(t *testing.T) {
	b := newBench(t)
	if err := b.store.Apply(store.Change{Bucket: bucket, Key: []byte("k"), Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Client: b.server, Store: b.store})
	refused(t, err, "leases/k")
}

func TestParallel(t *testing.T) {
	b := newBench(t)
	b.next = 0
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for round := range 10 {
				r := request()
				switch n % 4 {
				case 1:
					r = request(named("web"))
				case 2:
					r = request(named("web"), kept, shared)
				case 3:
					r = request(withMAC(fmt.Sprintf("02:00:00:00:00:%02x", n)))
				}
				e, err := b.Take(t.Context(), r)
				if err != nil {
					t.Error(err)
					return
				}
				changed := e.Lease.Lease
				changed.Expires = time.Now().Add(time.Hour)
				b.Told(dhcp.Event{What: dhcp.Renewed, Lease: changed})
				b.Entries()
				switch round % 3 {
				case 0:
					b.Free(e.Key)
				case 1:
					b.Refuse(e.Given.Addr(), errors.New("it is another's"))
					b.Free(e.Key)
				default:
					b.FreeAddress(e.Given.Addr())
					b.Free(e.Key)
				}
			}
		})
	}
	wg.Wait()
	if len(b.Entries()) != 0 || len(b.given) != 0 || len(b.asking) != 0 {
		t.Errorf("left: %+v, %v, %v", b.Entries(), b.given, b.asking)
	}
}

// A container that has not got what the server gives it gets it at the next start
// of the plugin; news of an earlier life of its identity are none of it.
func TestDriftIsSeenTo(t *testing.T) {
	b := newBench(t)
	e := b.take(request(named("web")))
	other := e.Lease.Lease
	other.Addr = netip.MustParsePrefix("192.168.50.99/24")
	b.Told(dhcp.Event{What: dhcp.Changed, Lease: other})
	clear(b.has) // the driver could not
	b.open()
	b.moved = nil
	b.Resume(func(*Entry) bool { return true })
	if d := cmp.Diff([]string{"192.168.50.10/24: 192.168.50.99/24"}, b.moved); d != "" {
		t.Error(d)
	}
	b.Free(e.Key)
	again := b.take(request(named("web")))
	if again.Key != e.Key {
		t.Fatalf("another identity, %s", again.Key)
	}
	b.moved = nil
	other.Granted = again.Lease.Granted.Add(-time.Second)
	b.Told(dhcp.Event{What: dhcp.Changed, Lease: other})
	if es := b.Entries(); b.moved != nil || len(es) != 1 || es[0].Drift().IsValid() {
		t.Errorf("moved %q, %+v", b.moved, es)
	}
}

// Another router or other routes at a renewal are said once, and noted beside what the
// container was started with.
func TestToldOfRouters(t *testing.T) {
	b := newBench(t)
	router, another := netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("192.168.50.2")
	far, near := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12")
	all := netip.MustParsePrefix("0.0.0.0/0")
	b.terms.Routers = []netip.Addr{router}
	e := b.take(request(named("web")))
	for _, step := range []struct {
		routers []netip.Addr
		routes  []dhcp.Route
		log     string // the only line
	}{
		{[]netip.Addr{router}, nil, ""},
		{[]netip.Addr{another, router}, nil, "the router 192.168.50.2 in the place of 192.168.50.1"},
		{[]netip.Addr{another}, nil, ""},
		{nil, []dhcp.Route{{To: all, Via: another}}, ""},
		{nil, []dhcp.Route{{To: far, Via: router}, {To: all, Via: another}}, "other routes than before; restart the container"},
		{nil, []dhcp.Route{{To: all, Via: another}, {To: far, Via: router}}, ""},
		{nil, []dhcp.Route{{To: far, Via: router}, {To: near}, {To: all, Via: another}}, "other routes"},
		{nil, []dhcp.Route{{To: near}, {To: far, Via: router}, {To: all, Via: another}}, ""},
		{nil, []dhcp.Route{{To: near}, {To: far, Via: router}, {To: all, Via: router}}, "the router 192.168.50.1 in the place of 192.168.50.2"},
		{nil, []dhcp.Route{{To: near}, {To: far, Via: router}}, "no router any more; the container has 192.168.50.1"},
		{[]netip.Addr{router}, []dhcp.Route{{To: near}, {To: far, Via: router}}, "a router now, 192.168.50.1; restart the container"},
	} {
		b.log.Reset()
		l := e.Lease.Lease
		l.Routers, l.Routes = step.routers, step.routes
		b.Told(dhcp.Event{What: dhcp.Renewed, Lease: l})
		lines := b.log.AllEntries()
		if (len(lines) == 1) != (step.log != "") || len(lines) > 1 || step.log != "" && !strings.Contains(lines[0].Message, step.log) {
			t.Errorf("routers %v, routes %v: %d lines, the last %+v; want %q", step.routers, step.routes, len(lines), b.log.LastEntry(), step.log)
		}
		if es := b.Entries(); len(es) != 1 || es[0].Router != router {
			t.Errorf("%+v", es)
		}
	}
}

// The server gives what the host itself has. On a shared MAC the lease may be the
// host's: the server hears nothing, or it would take that away. Else nobody has leased
// it, and it is not to be given again.
func TestOfTheHost(t *testing.T) {
	for _, tt := range []struct {
		what  string
		r     Request
		words []string
		did   string
	}{
		{"macvlan", request(named("web")), []string{"take it out of the server's range"}, "decline"},
		{"ipvlan", request(named("web"), shared), []string{"client identifier", "use macvlan"}, "forget"},
		{"ipvlan, kept", request(named("web"), shared, kept), []string{"use macvlan"}, "forget"},
		{"by the driver", request(withMAC("02:00:00:00:00:aa")), []string{"take it out of the server's range"}, "decline"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			b.own[netip.MustParseAddr("192.168.50.10")] = "an address of this host (eth0)"
			_, err := b.Take(t.Context(), tt.r)
			refused(t, err, append(tt.words, "192.168.50.1 has given 192.168.50.10, which is an address of this host (eth0)")...)
			b.told(tt.did + " " + b.lastAsk().Key)
			if len(b.Entries()) != 0 || len(b.asking) != 0 {
				t.Errorf("%+v, %v", b.Entries(), b.asking)
			}
		})
	}
}

// Two records have one address: one of an earlier life, whose end did not come to
// disk. The later one counts.
func TestTwoRecordsOfOneAddress(t *testing.T) {
	b := newBench(t)
	e := b.take(request(named("web")))
	stale := e
	stale.Key, stale.Name = "0123", "old"
	stale.Lease.Key, stale.Lease.Granted = "0123", e.Lease.Granted.Add(-time.Hour)
	if err := b.store.Apply(record(&stale)); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.Resume(func(*Entry) bool { return true })
	if es := b.Entries(); len(es) != 1 || es[0].Key != e.Key {
		t.Errorf("%+v", es)
	}
	if _, _, ok := b.MAC(e.Given.Addr()); !ok {
		t.Error("the address is nobody's")
	}
}

// MAC and MTU are of the container which was given an address.
func (b *bench) MAC(addr netip.Addr) (mac net.HardwareAddr, shared, ok bool) {
	e, ok := b.Given(addr)
	return e.Lease.MAC, e.Shared, ok
}

func (b *bench) MTU(addr netip.Addr) int {
	e, _ := b.Given(addr)
	return e.MTU
}
