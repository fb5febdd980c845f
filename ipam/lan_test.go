package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"underlay/internal/store"
)

// lan is the LANs of a host, and the host itself as far as IPAM asks it.
type lan struct {
	mu      sync.Mutex
	others  map[string]map[netip.Addr]net.HardwareAddr // machines, by link
	failing map[string]error                           // links that lead nowhere
	instant bool                                       // no answer is waited for
	asked   map[netip.Addr]int                         // how often, over all links
	probes  map[string]int                             // questions, by link
	last    time.Time                                  // of the last one
	most    int                                        // addresses in one question
	watched []string

	links    map[string][]HostSubnet
	byFamily map[bool]string // link of the default route
	taken    map[netip.Addr]string
	looks    int // calls of Taken
	looking  time.Duration
}

func newLAN() *lan {
	return &lan{
		others: map[string]map[netip.Addr]net.HardwareAddr{}, failing: map[string]error{},
		asked: map[netip.Addr]int{}, probes: map[string]int{},
		links: map[string][]HostSubnet{}, byFamily: map[bool]string{}, taken: map[netip.Addr]string{},
	}
}

func (l *lan) Watch(links []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched = slices.Clone(links)
}

// Probe waits as the real one does, and believes what it sees at the end: who
// answers late is found, too.
func (l *lan) Probe(ctx context.Context, link string, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]net.HardwareAddr, error) {
	l.mu.Lock()
	l.probes[link]++
	l.last = time.Now()
	l.most = max(l.most, len(addrs))
	for _, a := range addrs {
		l.asked[a]++
	}
	err := l.failing[link]
	l.mu.Unlock()
	if errors.Is(err, context.DeadlineExceeded) { // a host too busy to ask
		<-ctx.Done()
	}
	if err != nil {
		return nil, err
	}
	if !l.instant {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	found := map[netip.Addr]net.HardwareAddr{}
	for _, a := range addrs {
		if m := l.others[link][a]; m != nil {
			found[a] = m
		}
	}
	return found, nil
}

func (l *lan) DefaultLink(v6 bool) (string, error) {
	if l.byFamily[v6] == "" {
		return "", errors.New("there is no default route")
	}
	return l.byFamily[v6], nil
}

func (l *lan) Subnets(link string) (string, []HostSubnet, error) {
	link = strings.TrimPrefix(link, "alt-")
	s, ok := l.links[link]
	if !ok {
		return "", nil, fmt.Errorf("there is no link %s", link)
	}
	return link, s, nil
}

func (l *lan) Taken() (map[netip.Addr]string, error) {
	time.Sleep(l.looking)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looks++
	return maps.Clone(l.taken), nil
}

// comes puts machines on a link's LAN.
func (l *lan) comes(link string, addrs ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.others[link] == nil {
		l.others[link] = map[netip.Addr]net.HardwareAddr{}
	}
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		l.others[link][addr] = macOf(addr)
	}
}

func (l *lan) goes(link, addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.others[link], netip.MustParseAddr(addr))
}

func (l *lan) fails(link string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failing[link] = err
}

// count returns how often an address was asked about.
func (l *lan) count(addr string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[netip.MustParseAddr(addr)]
}

func (l *lan) questions() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.probes {
		n += k
	}
	return n
}

// macOf is the MAC of the machine that has an address on the LAN.
func macOf(addr netip.Addr) net.HardwareAddr {
	b := addr.As16()
	return net.HardwareAddr{0x02, b[11], b[12], b[13], b[14], b[15]}
}

var errDown = errors.New("eth0 is down")

// lanBench is an IPAM on a LAN, in a bubble of its own where time is virtual.
type lanBench struct {
	*bench
	lan *lan
	log *test.Hook
}

// onLAN runs a test in such a bubble.
func onLAN(t *testing.T, f func(t *testing.T, b *lanBench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		logger, hook := test.NewNullLogger()
		l := newLAN()
		b := &lanBench{lan: l, log: hook, bench: &bench{
			t: t, path: t.TempDir() + "/state.db", real: true,
			ends: map[netip.Addr]string{}, macs: map[netip.Addr]net.HardwareAddr{},
			config: Config{Detector: l, Host: l, Log: logrus.NewEntry(logger)},
		}}
		b.open()
		t.Cleanup(func() { b.Close() })
		f(t, b)
		b.idle()
		b.sound()
	})
}

// idle waits until nothing works in the background.
func (b *lanBench) idle() {
	b.t.Helper()
	synctest.Wait()
	b.scouts.Wait()
	synctest.Wait()
}

func (b *lanBench) sound() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pools.Scan(func(p *pool) bool {
		if err := p.sound(); err != nil {
			b.t.Errorf("%v: %v", p.subnet, err)
		}
		return true
	})
}

// opt writes options as "key=value key=value".
func opt(text string) map[string]string {
	o := map[string]string{}
	for _, f := range strings.Fields(text) {
		k, v, _ := strings.Cut(f, "=")
		o[k] = v
	}
	return o
}

// create makes a network: "id parent subnet[,range] gateway", any of the last
// two "-" for none, and options. It returns the pool's ID.
func (b *lanBench) create(network, options string) string {
	b.t.Helper()
	f := strings.Fields(network)
	r := PoolRequest{Options: opt(options)}
	if subnet, within, _ := strings.Cut(f[2], ","); subnet != "-" {
		r = poolRequest(subnet, within)
		r.Options = opt(options)
	}
	p, err := b.RequestPool(b.t.Context(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	n := NetworkPools{Subnets: []netip.Prefix{p.Subnet}, Parent: strings.TrimPrefix(f[1], "-")}
	if f[3] != "-" {
		what := "gw"
		if f[3] != "any" {
			what = "gw " + f[3]
		}
		got, err := b.get(p.ID, what)
		if err != nil {
			b.t.Fatal(err)
		}
		n.Reserved = append(n.Reserved, netip.MustParsePrefix(got).Addr())
	}
	if err := b.Agree(n, n.Parent == ""); err != nil {
		b.t.Fatal(err)
	}
	b.NetworkCreated(f[0], n)
	return p.ID
}

// start asks for a container's address: any, unless what says which, by name
// if it has one ("name", "name 192.168.50.7").
func (b *lanBench) start(pool, what string) (string, error) {
	name, addr, _ := strings.Cut(what, " ")
	r := AddressRequest{PoolID: pool, Name: name}
	if addr != "" {
		r.Addr = netip.MustParseAddr(addr)
	}
	a, err := b.RequestAddress(b.t.Context(), r)
	if err != nil {
		return "", err
	}
	b.using.Lock()
	defer b.using.Unlock()
	b.ends[a.Addr()] = "the endpoint of " + a.Addr().String()
	return a.Addr().String(), nil
}

// stop is a container's end.
func (b *lanBench) stop(pool, addr string) {
	b.t.Helper()
	b.using.Lock()
	delete(b.ends, netip.MustParseAddr(addr))
	delete(b.macs, netip.MustParseAddr(addr))
	b.using.Unlock()
	b.free(pool, addr)
}

// starts wants a container to get an address.
func (b *lanBench) starts(pool, what, want string) {
	b.t.Helper()
	if got, err := b.start(pool, what); err != nil || got != want {
		b.t.Fatalf("%q of %s gets %s, %v; want %s", what, pool, got, err, want)
	}
}

func (b *lanBench) fails(pool, what string, want ...string) {
	b.t.Helper()
	got, err := b.start(pool, what)
	if err == nil {
		b.t.Fatalf("%q of %s gets %s, want a refusal", what, pool, got)
	}
	wantError(b.t, err, want...)
}

func (b *lanBench) hear(link, addr, mac string, claim bool) {
	b.t.Helper()
	m, err := net.ParseMAC(mac)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Heard(Sighting{Link: link, Addr: netip.MustParseAddr(addr), MAC: m, Claim: claim})
}

// runs says which MAC the container with an address has.
func (b *lanBench) runs(addr, mac string) {
	b.t.Helper()
	m, err := net.ParseMAC(mac)
	if err != nil {
		b.t.Fatal(err)
	}
	b.using.Lock()
	defer b.using.Unlock()
	b.macs[netip.MustParseAddr(addr)] = m
}

func (b *lanBench) state() PoolState {
	b.t.Helper()
	s := b.Snapshot()
	if len(s.Pools) != 1 {
		b.t.Fatalf("%d pools: %+v", len(s.Pools), s)
	}
	return s.Pools[0]
}

func addrs(first string, n int) (list []string) {
	a := netip.MustParseAddr(first)
	for range n {
		list = append(list, a.String())
		a = a.Next()
	}
	return list
}

const (
	other = "02:aa:aa:aa:aa:aa" // MACs of other machines
	third = "02:bb:bb:bb:bb:bb"
	mine  = "02:cc:cc:cc:cc:cc" // of a container
)

func TestAHundredSquatters(t *testing.T) {
	for _, ahead := range []int{0, 1, 8, 64} {
		t.Run(fmt.Sprint("ahead ", ahead), func(t *testing.T) {
			onLAN(t, func(t *testing.T, b *lanBench) {
				squatters := map[string]bool{}
				for len(squatters) < 100 {
					squatters[fmt.Sprintf("192.168.50.%d", 3+rand.IntN(230))] = true
				}
				b.lan.comes("eth0", slices.Collect(maps.Keys(squatters))...)
				b.lan.taken[netip.MustParseAddr("192.168.50.2")] = "this host's own address"
				id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", fmt.Sprintf("exclude=192.168.50.254 reserve=db=192.168.50.240 probe_ahead=%d", ahead))
				got := map[string]bool{"192.168.50.1": true, "192.168.50.2": true, "192.168.50.254": true, "192.168.50.240": true}
				for range 150 {
					a, err := b.start(id, "")
					if err != nil {
						t.Fatalf("after %d: %v", len(got)-4, err)
					}
					if got[a] || squatters[a] {
						t.Fatalf("%s is given: before %t, to a squatter %t", a, got[a], squatters[a])
					}
					got[a] = true
				}
				b.fails(id, "", "192.168.50.0/24 is exhausted: of 254 addresses, 151 are held, 1 excluded, 2 reserved or the host's own, 100 in use by other machines; free some, or use a larger --subnet")
				b.fails(id, "web", "exhausted")
				b.starts(id, "db", "192.168.50.240")
				b.fails(id, "", "152 are held, 1 excluded, 1 reserved")
				b.idle()
				if n := b.state().LAN; len(n.InUse) != 100 || n.Blind != "" || len(n.Ready) != 0 {
					t.Errorf("%d in use, blind %q, ready %v", len(n.InUse), n.Blind, n.Ready)
				}
				// One of them goes, and is asked about again.
				for a := range squatters {
					b.lan.goes("eth0", a)
					time.Sleep(retryAfter + time.Second)
					b.starts(id, "", a)
					break
				}
				if b.lan.count("192.168.50.1")+b.lan.count("192.168.50.2")+b.lan.count("192.168.50.254") > 0 {
					t.Errorf("asked about what is never given out: %v", b.lan.asked)
				}
			})
		})
	}
}

// Each address counts once, whatever is true of it besides.
func TestExhaustionCounts(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.taken = map[netip.Addr]string{
			netip.MustParseAddr("192.168.50.1"): "a gateway of this host",
			netip.MustParseAddr("192.168.50.2"): "this host's own address",
			netip.MustParseAddr("192.168.50.9"): "this host's own address",
		}
		b.lan.comes("eth0", "192.168.50.5", "192.168.50.6")
		id := b.create("n1 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.1-192.168.50.4 reserve=db=192.168.50.7,web=192.168.50.9")
		b.hear("eth0", "192.168.50.3", other, false) // excluded, too
		b.hear("eth0", "192.168.50.7", other, false) // reserved, too
		for range 5 {
			if _, err := b.start(id, ""); err != nil {
				t.Fatal(err)
			}
		}
		// .1 held; .2 to .4 excluded; .5, .6, .7 in use; .9 reserved and own; .8, .10 to .13 given; .14 not yet.
		if _, err := b.start(id, ""); err != nil {
			t.Fatal(err)
		}
		b.fails(id, "", "of 14 addresses, 7 are held, 3 excluded, 1 reserved or the host's own, 3 in use by other machines")
		within := b.create("n2 eth0 192.168.50.0/28,192.168.50.4/30 192.168.50.1", "")
		b.fails(within, "", "192.168.50.0/28 range 192.168.50.4/30 is exhausted: of 4 addresses, 0 are held, 1 excluded, 0 reserved or the host's own, 3 in use by other machines; free some, or widen --ip-range")
	})
}

func TestManyAtOnceOnALAN(t *testing.T) {
	for _, ahead := range []int{0, 8} {
		t.Run(fmt.Sprint("ahead ", ahead), func(t *testing.T) {
			onLAN(t, func(t *testing.T, b *lanBench) {
				squatters := map[string]bool{}
				for len(squatters) < 300 {
					squatters[fmt.Sprintf("10.0.%d.%d", 4+rand.IntN(4), rand.IntN(256))] = true
				}
				b.lan.comes("eth0", slices.Collect(maps.Keys(squatters))...)
				id := b.create("n1 eth0 10.0.0.0/20,10.0.4.0/22 10.0.0.1", fmt.Sprintf("probe_wait=20ms probe_ahead=%d", ahead))
				var mu sync.Mutex
				got := map[string]int{}
				var wg sync.WaitGroup
				for i := range 500 {
					wg.Go(func() {
						what, explicit := "", false
						switch i % 5 {
						case 1:
							what = fmt.Sprint("c", i)
						case 2: // two want the same
							what, explicit = fmt.Sprintf("c%d 10.0.5.%d", i, i/10), true
						}
						a, err := b.start(id, what)
						switch {
						case explicit && errors.Is(err, ErrTaken):
							return
						case err != nil:
							t.Error(err)
							return
						case squatters[a]:
							t.Errorf("%s is a squatter's", a)
						case !netip.MustParsePrefix("10.0.4.0/22").Contains(netip.MustParseAddr(a)):
							t.Errorf("%s is out of range", a)
						}
						if i%5 == 3 { // free it again
							b.stop(id, a)
							return
						}
						mu.Lock()
						defer mu.Unlock()
						if got[a]++; got[a] > 1 {
							t.Errorf("%s is given twice", a)
						}
					})
				}
				wg.Wait()
				b.idle()
				if held := b.state().Held; held != len(got)+1 {
					t.Errorf("%d are held, %d were given", held, len(got))
				}
				if b.lan.most > maxAsk {
					t.Errorf("%d addresses in one question", b.lan.most)
				}
				before := b.Snapshot()
				b.restart()
				if after := b.Snapshot(); after.Pools[0].Held != before.Pools[0].Held {
					t.Errorf("%d are held after a restart, before %d", after.Pools[0].Held, before.Pools[0].Held)
				}
			})
		})
	}
}

func TestExplicitAddresses(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.comes("eth0", "192.168.50.20")
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		b.idle()
		mac := macOf(netip.MustParseAddr("192.168.50.20")).String()
		for _, what := range []string{" 192.168.50.20", "web 192.168.50.20"} {
			b.fails(id, what, "taken", "192.168.50.20 is in use on the LAN by "+mac)
		}
		if s := b.state().LAN.InUse; len(s) != 1 || s[0].MAC != mac || s[0].Last.IsZero() {
			t.Errorf("in use: %+v", s)
		}
		b.lan.goes("eth0", "192.168.50.20")
		b.starts(id, "web 192.168.50.20", "192.168.50.20")
		if s := b.state().LAN.InUse; len(s) != 0 {
			t.Errorf("still in use: %+v", s)
		}

		// What is in stock, or was ours until just now, is not asked about again.
		ready := b.state().LAN.Ready
		if len(ready) != 8 {
			t.Fatalf("ready: %v", ready)
		}
		n := b.lan.questions()
		b.starts(id, " "+ready[3].String(), ready[3].String())
		b.stop(id, "192.168.50.20")
		time.Sleep(freshFor - time.Second)
		n += b.lan.questions() - n // the stock is kept fresh meanwhile
		b.starts(id, " 192.168.50.20", "192.168.50.20")
		if b.lan.questions() != n {
			t.Error("asked although it was known")
		}
		if b.stop(id, "192.168.50.20"); b.lan.count("192.168.50.20") != 3 {
			t.Errorf(".20 was asked about %d times", b.lan.count("192.168.50.20"))
		}
		// But if it was heard of meanwhile, it is.
		b.hear("eth0", "192.168.50.20", other, false)
		b.starts(id, " 192.168.50.20", "192.168.50.20")
		b.stop(id, "192.168.50.20")
		time.Sleep(freshFor + time.Second)
		b.starts(id, " 192.168.50.20", "192.168.50.20")
		if b.lan.count("192.168.50.20") != 5 {
			t.Errorf(".20 was asked about %d times", b.lan.count("192.168.50.20"))
		}
		// One that is held is its holder's, and not asked about.
		b.fails(id, "x 192.168.50.20", "taken", "held by the endpoint of 192.168.50.20")
		if b.lan.count("192.168.50.20") != 5 {
			t.Error("asked about a held one")
		}
		// It may lie anywhere in the subnet.
		within := b.create("n2 eth0 192.168.50.0/24,192.168.50.64/26 192.168.50.1", "")
		b.starts(within, " 192.168.50.30", "192.168.50.30")
		b.fails(within, " 192.168.51.1", "outside subnet")
	})
}

// What a network is created with, or has had since long, is nobody's business
// on the LAN.
func TestNotAsked(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.comes("eth0", "192.168.50.1", "192.168.50.7", "192.168.50.8")
		b.lan.taken[netip.MustParseAddr("192.168.50.7")] = "this host's own address"
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "exclude=192.168.50.8 probe_ahead=0")
		// A second one on the subnet; the LAN is known by now.
		r := PoolRequest{Subnet: netip.MustParsePrefix("192.168.50.0/24"), Options: opt("exclude=192.168.50.8 probe_ahead=0")}
		again := func() {
			t.Helper()
			if p, err := b.RequestPool(t.Context(), r); err != nil || p.ID != id {
				t.Fatal(p, err)
			}
		}
		again()
		b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
		b.gets(id, "192.168.50.7", "192.168.50.7/24")
		b.gets(id, "192.168.50.8", "192.168.50.8/24")
		n := network("192.168.50.0/24", "192.168.50.1", "192.168.50.7", "192.168.50.8")
		n.Parent = "eth0"
		b.NetworkCreated("n2", n)
		if b.lan.questions() != 0 {
			t.Errorf("asked: %v", b.lan.asked)
		}
		b.starts(id, "web 192.168.50.30", "192.168.50.30")
		b.starts(id, "", "192.168.50.2")
		before := maps.Clone(b.lan.asked)
		b.runs("192.168.50.30", mine)
		b.runs("192.168.50.2", mine)
		b.lan.comes("eth0", "192.168.50.30", "192.168.50.2") // live-restore: they run, and answer
		b.Daemon()
		again()
		b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
		again()
		for _, a := range []string{"gw 192.168.50.1", "192.168.50.7", "192.168.50.8", "192.168.50.30", "192.168.50.2"} {
			b.gets(id, a, strings.TrimPrefix(a, "gw ")+"/24")
		}
		if !maps.Equal(before, b.lan.asked) {
			t.Errorf("a replay asked: %v, before %v", b.lan.asked, before)
		}
	})
}

func TestConflictModes(t *testing.T) {
	for _, tt := range []struct {
		mode, parent string
		asks, hears  bool
	}{
		{"probe", "eth0", true, true},
		{"listen", "eth0", false, true},
		{"off", "eth0", false, false},
		{"probe", "-", false, false},
		{"listen", "-", false, false},
	} {
		t.Run(tt.mode+" "+tt.parent, func(t *testing.T) {
			onLAN(t, func(t *testing.T, b *lanBench) {
				b.lan.comes("eth0", "192.168.50.2", "192.168.50.4")
				id := b.create("n1 "+tt.parent+" 192.168.50.0/24 192.168.50.1", "conflict="+tt.mode)
				b.hear("eth0", "192.168.50.3", other, false)
				b.hear("eth1", "192.168.50.5", other, false) // not ours
				b.idle()
				var want []string
				if tt.hears {
					want = []string{"eth0"}
				}
				if !slices.Equal(b.lan.watched, want) {
					t.Errorf("watched are %v, want %v", b.lan.watched, want)
				}
				got, free := []string{}, 0
				for range 4 {
					a, err := b.start(id, "")
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, a[len("192.168.50."):])
				}
				switch {
				case tt.asks:
					want = []string{"5", "6", "7", "8"}
				case tt.hears:
					want, free = []string{"2", "4", "5", "6"}, 1
				default:
					want = []string{"2", "3", "4", "5"}
				}
				if !slices.Equal(got, want) {
					t.Errorf("given are %v, want %v", got, want)
				}
				if (b.lan.questions() > 0) != tt.asks {
					t.Errorf("%d questions", b.lan.questions())
				}
				if free > 0 { // what was only heard is believed for a while
					b.fails(id, "web 192.168.50.3", "in use on the LAN by "+other)
					time.Sleep(seenFor + time.Second)
					b.starts(id, "web 192.168.50.3", "192.168.50.3")
				}
				b.delete("n1")
				b.release(id)
				b.idle()
				if len(b.lan.watched) > 0 {
					t.Errorf("still watched: %v", b.lan.watched)
				}
			})
		})
	}
}

// Without a question, one that was heard of is not given out in need either,
// before it counts as gone.
func TestListeningIsPatient(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/29 192.168.50.1", "conflict=listen")
		b.hear("eth0", "192.168.50.3", other, false)
		for range 4 {
			if _, err := b.start(id, ""); err != nil {
				t.Fatal(err)
			}
		}
		b.fails(id, "", "exhausted")
		time.Sleep(retryAfter + time.Second)
		b.fails(id, "", "5 are held, 0 excluded, 0 reserved or the host's own, 1 in use")
		time.Sleep(seenFor)
		b.starts(id, "", "192.168.50.3")
	})
}

// A host that is too busy to ask is not blind: nothing is given out unasked.
func TestBusyHost(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.comes("eth0", addrs("192.168.50.2", 20)...)
		b.lan.fails("eth0", fmt.Errorf("asking on eth0: %w", context.DeadlineExceeded))
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		time.AfterFunc(deadline/2, func() { b.lan.fails("eth0", nil) })
		b.starts(id, "", "192.168.50.22")
		if s := b.state().LAN.Blind; s != "" {
			t.Errorf("blind: %q", s)
		}
	})
}

func TestBlind(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.fails("eth0", errDown)
		b.lan.comes("eth0", "192.168.50.2", "192.168.50.20")
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		b.idle()
		if s := b.state().LAN.Blind; s != errDown.Error() {
			t.Errorf("blind: %q", s)
		}
		given := map[string]bool{}
		next := func() {
			t.Helper()
			a, err := b.start(id, "")
			if err != nil || given[a] {
				t.Fatalf("%s, %v; given before are %v", a, err, given)
			}
			given[a] = true
		}
		next()
		b.starts(id, "web 192.168.50.20", "192.168.50.20")
		if e := b.log.LastEntry(); e == nil || e.Level != logrus.WarnLevel || !strings.Contains(e.Message, "without asking") {
			t.Errorf("log: %+v", e)
		}
		next()
		b.lan.fails("eth0", nil)
		time.Sleep(blindFor + time.Second)
		b.lan.comes("eth0", addrs("192.168.50.2", 100)...)
		for range 5 {
			next()
		}
		for a := range b.lan.others["eth0"] {
			if n := len(given); given[a.String()] {
				t.Logf("%v of %d was given blindly", a, n)
				delete(given, a.String())
			}
		}
		if len(given) != 5 {
			t.Errorf("of those given with eyes open, machines have all but %v", given)
		}
		if s := b.state().LAN.Blind; s != "" {
			t.Errorf("still blind: %q", s)
		}
		// And without a request.
		b.lan.fails("eth0", errDown)
		for range 12 {
			next()
		}
		b.idle()
		if s := b.state().LAN; s.Blind == "" || len(s.Ready) > 0 {
			t.Errorf("not blind: %+v", s)
		}
		b.lan.fails("eth0", nil)
		time.Sleep(2*scoutEvery + time.Second)
		b.idle()
		if s := b.state().LAN; s.Blind != "" || len(s.Ready) != 8 {
			t.Errorf("healed: %+v", s)
		}
	})
}

// The last free ones may be those in stock when the LAN is lost.
func TestBlindWithAStock(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/28 192.168.50.1", "probe_ahead=4")
		var last string
		for range 8 {
			last, _ = b.start(id, "")
		}
		b.idle()
		b.lan.fails("eth0", errDown)
		for n := range 5 {
			if _, err := b.start(id, ""); err != nil {
				t.Errorf("%d after %s: %v; %+v", n+1, last, err, b.state().LAN)
			}
		}
		b.fails(id, "", "14 are held")
	})
}

// A machine that was seen stays seen when it is asked about again and no
// question could be sent.
func TestBlindForgetsNobody(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.comes("eth0", "192.168.50.2")
		id := b.create("n1 eth0 192.168.50.0/29 192.168.50.1", "")
		for range 4 {
			if _, err := b.start(id, ""); err != nil {
				t.Fatal(err)
			}
		}
		b.fails(id, "", "1 in use")
		b.lan.fails("eth0", errDown)
		time.Sleep(retryAfter + time.Second)
		b.fails(id, "", "1 in use by other machines")
		if s := b.state().LAN.InUse; len(s) != 1 {
			t.Errorf("in use: %+v", s)
		}
	})
}

// Neither does it when one of two cables is out: the other LAN cannot tell.
func TestHalfBlindForgetsNobody(t *testing.T) {
	for _, ahead := range []string{"probe_ahead=0", "probe_ahead=2"} {
		onLAN(t, func(t *testing.T, b *lanBench) {
			b.create("n1 eth0 192.168.50.0/29 192.168.50.1", ahead)
			id := b.create("n2 eth1 192.168.50.0/29 192.168.50.1", ahead)
			b.hear("eth0", "192.168.50.2", other, false)
			b.lan.fails("eth0", errDown)
			b.fails(id, "web 192.168.50.2", "in use on the LAN by "+other)
			for range 4 {
				if a, err := b.start(id, ""); err != nil || a == "192.168.50.2" {
					t.Fatalf("got %s, %v", a, err)
				}
			}
			for range 2 { // at once, and when it may be asked about again
				before := b.lan.questions()
				b.fails(id, "", "1 in use by other machines")
				if n := b.lan.questions() - before; n > 2 {
					t.Errorf("asked %d times", n)
				}
				time.Sleep(retryAfter + time.Second)
			}
			if s := b.state().LAN.InUse; len(s) != 1 || s[0].MAC != other {
				t.Errorf("in use: %+v", s)
			}
			time.Sleep(seenFor) // and nothing heard of it
			b.starts(id, "", "192.168.50.2")
		})
	}
}

func TestTwoParents(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.comes("eth0", "192.168.50.2")
		b.lan.comes("eth1", "192.168.50.3", "192.168.50.20")
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "probe_ahead=0")
		b.create("n2 eth1 192.168.50.0/24 192.168.50.1", "probe_ahead=0")
		b.idle()
		if !slices.Equal(b.lan.watched, []string{"eth0", "eth1"}) {
			t.Errorf("watched: %v", b.lan.watched)
		}
		b.starts(id, "", "192.168.50.4")
		b.fails(id, "web 192.168.50.20", "in use on the LAN")
		if b.lan.probes["eth0"] != b.lan.probes["eth1"] || b.lan.probes["eth0"] == 0 {
			t.Errorf("questions: %v", b.lan.probes)
		}
		b.hear("eth1", "192.168.50.5", other, false)
		b.starts(id, "", "192.168.50.6")
		b.lan.fails("eth1", errDown)
		b.starts(id, "", "192.168.50.7")
		if s := b.state(); s.LAN.Blind != "" || !slices.Equal(s.Parents, []string{"eth0", "eth1"}) {
			t.Errorf("%+v", s)
		}
		b.release(id)
		b.delete("n2")
		b.idle()
		if !slices.Equal(b.lan.watched, []string{"eth0"}) {
			t.Errorf("watched: %v", b.lan.watched)
		}
	})
}

// What was asked on one link is not known of another that joins it.
func TestAParentJoins(t *testing.T) {
	for _, age := range []time.Duration{0, 10 * time.Millisecond, time.Second} {
		onLAN(t, func(t *testing.T, b *lanBench) {
			b.lan.comes("eth1", addrs("192.168.50.2", 20)...)
			b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
			time.Sleep(age)
			id := b.create("n2 eth1 192.168.50.0/24 192.168.50.1", "")
			b.starts(id, "", "192.168.50.22")
			b.delete("n2") // and comes again
			b.release(id)
			time.Sleep(age)
			b.lan.comes("eth1", addrs("192.168.50.23", 20)...)
			time.Sleep(5 * time.Minute)
			b.starts(b.create("n3 eth1 192.168.50.0/24 192.168.50.1", ""), "", "192.168.50.43")
		})
	}
}

func TestClaims(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		b.idle()
		b.hear("eth0", "192.168.50.2", other, true)
		if s := b.state().LAN; slices.Contains(s.Ready, netip.MustParseAddr("192.168.50.2")) || len(s.InUse) != 1 || !s.InUse[0].Last.IsZero() {
			t.Errorf("after a claim: %+v", s)
		}
		b.starts(id, "", "192.168.50.3")
		b.hear("eth0", "192.168.50.40", other, true)
		b.starts(id, "web 192.168.50.40", "192.168.50.40") // it is asked about, and free
		b.hear("eth0", "192.168.50.3", other, true)        // ours: it will be told so
		if s := b.state().LAN.Conflicts; len(s) > 0 {
			t.Errorf("a claim is no conflict: %+v", s)
		}
		time.Sleep(2*scoutEvery + time.Second)
		b.idle()
		if s := b.state().LAN; len(s.InUse) > 0 {
			t.Errorf("a claim that nobody followed up: %+v", s)
		}
		b.starts(id, "", "192.168.50.4")
		b.hear("eth0", "192.168.50.5", other, true)
		b.hear("eth0", "192.168.50.5", other, false) // and takes it
		time.Sleep(2 * scoutEvery)
		b.starts(id, "", "192.168.50.6")
		if s := b.state().LAN.InUse; len(s) != 1 {
			t.Errorf("in use: %+v", s)
		}
	})
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "conflict=listen")
		b.hear("eth0", "192.168.50.2", other, true)
		b.fails(id, "web 192.168.50.2", other+" is just asking the LAN for 192.168.50.2")
		time.Sleep(claimFor + time.Second)
		b.starts(id, "web 192.168.50.2", "192.168.50.2")
	})
}

func TestConflicts(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		b.starts(id, "web", "192.168.50.2")
		conflicts := func() (n int) {
			for _, e := range b.log.AllEntries() {
				if strings.Contains(e.Message, "address conflict:") {
					n++
				}
			}
			return n
		}
		b.hear("eth0", "192.168.50.2", mine, false) // not running yet
		b.runs("192.168.50.2", mine)
		b.hear("eth0", "192.168.50.2", mine, false)
		b.hear("eth0", "192.168.50.1", other, false) // the gateway is not ours
		if s := b.state().LAN; len(s.Conflicts)+len(s.InUse)+conflicts() > 0 {
			t.Fatalf("%d conflicts: %+v", conflicts(), s)
		}
		for range 3 {
			b.hear("eth0", "192.168.50.2", other, false)
			time.Sleep(time.Minute)
		}
		if s := b.state().LAN.Conflicts; len(s) != 1 || s[0].MAC != other || conflicts() != 1 || s[0].Last.Sub(s[0].Since) != 2*time.Minute {
			t.Errorf("%d lines, %+v", conflicts(), s)
		}
		if e := b.log.AllEntries(); !slices.ContainsFunc(e, func(e *logrus.Entry) bool {
			return strings.Contains(e.Message, other) && strings.Contains(e.Message, "192.168.50.2") && strings.Contains(e.Message, "endpoint of")
		}) {
			t.Error("the log does not name both")
		}
		b.hear("eth0", "192.168.50.2", third, false)
		if conflicts() != 2 {
			t.Errorf("%d lines, want 2", conflicts())
		}
		for range 100 { // they alternate, for 100 s
			for _, mac := range []string{other, third} {
				b.hear("eth0", "192.168.50.2", mac, false)
				time.Sleep(time.Second / 2)
			}
		}
		if conflicts() != 3 {
			t.Errorf("%d lines, want one a minute", conflicts())
		}
		if s := b.state().LAN.Conflicts; len(s) != 1 || s[0].MAC != third {
			t.Errorf("%+v, want the one heard last", s)
		}
		b.hear("eth0", "192.168.50.2", mine, false)
		if len(b.state().LAN.Conflicts) != 1 {
			t.Error("the container itself has ended the conflict")
		}
		time.Sleep(seenFor - scoutEvery)
		if len(b.state().LAN.Conflicts) != 1 {
			t.Error("the conflict was over too soon")
		}
		time.Sleep(2*scoutEvery + time.Second)
		if len(b.state().LAN.Conflicts) != 0 {
			t.Error("the conflict is not over")
		}

		// Freed, the address is the other machine's.
		b.lan.comes("eth0", "192.168.50.2")
		b.hear("eth0", "192.168.50.2", third, false)
		b.stop(id, "192.168.50.2")
		if s := b.state().LAN; len(s.Conflicts) != 0 || len(s.InUse) != 1 || s.InUse[0].MAC != third {
			t.Errorf("after the container: %+v", s)
		}
		b.fails(id, "web 192.168.50.2", "in use on the LAN")
		b.starts(id, "web", "192.168.50.3")
	})
}

func TestNeverGiven(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		at := netip.MustParseAddr
		b.lan.taken = map[netip.Addr]string{
			at("192.168.50.1"): "a gateway of this host", at("192.168.50.2"): "an address of this host",
			at("192.168.50.3"): "a DNS server of this host", at("192.168.50.12"): "an address of this host",
		}
		id := b.create("n1 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.4-192.168.50.5,192.168.50.13 reserve=db=192.168.50.6,mail=192.168.50.12,cache=192.168.50.7")
		b.fails(id, "x 192.168.50.2", "192.168.50.2 is an address of this host", "choose another")
		b.fails(id, " 192.168.50.3", "192.168.50.3 is a DNS server of this host")
		b.fails(id, "x 192.168.50.5", "192.168.50.5 is excluded by --ipam-opt exclude")
		b.fails(id, "x 192.168.50.1", "the gateway of network n1")
		b.fails(id, "mail", "192.168.50.12 is an address of this host")
		b.starts(id, "db", "192.168.50.6")
		b.starts(id, "other 192.168.50.7", "192.168.50.7") // by --ip, whoever it is
		b.starts(id, "cache", "192.168.50.8")              // its own is taken
		b.starts(id, "db", "192.168.50.9")                 // another one of that name
		b.starts(id, "", "192.168.50.10")
		b.starts(id, "", "192.168.50.11")
		b.starts(id, "", "192.168.50.14")
		b.fails(id, "", "exhausted", "8 are held, 3 excluded, 3 reserved or the host's own, 0 in use")

		// The reserved one is kept free for its name, and for none else.
		b.stop(id, "192.168.50.6")
		time.Sleep(10 * time.Minute)
		b.fails(id, "", "exhausted")
		b.starts(id, "db", "192.168.50.6")

		// The host gets one more address, which was in stock.
		b.stop(id, "192.168.50.14")
		b.stop(id, "192.168.50.11")
		time.Sleep(10 * time.Minute)
		b.idle()
		if ready := b.state().LAN.Ready; len(ready) != 2 {
			t.Errorf("ready: %v", ready)
		}
		b.lan.mu.Lock()
		b.lan.taken[at("192.168.50.14")] = "an address of this host"
		delete(b.lan.taken, at("192.168.50.2"))
		b.lan.mu.Unlock()
		time.Sleep(takenFor)
		for _, want := range []string{"192.168.50.11", "192.168.50.2"} { // the one in stock first
			b.starts(id, "", want)
		}
		b.fails(id, "", "exhausted")
	})
}

// The reserved address of a name that is in use is not another one.
func TestReservedInUse(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.comes("eth0", "192.168.50.20")
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "reserve=db=192.168.50.20")
		b.fails(id, "db", "192.168.50.20 is in use on the LAN")
		b.lan.goes("eth0", "192.168.50.20")
		b.starts(id, "db", "192.168.50.20")
	})
}

// The first requests after a start come at once: none may go ahead before the
// host's own addresses are known.
func TestHostIsKnownFirst(t *testing.T) {
	l := newLAN() // no bubble: who waits for a mutex keeps its time from passing
	l.taken[netip.MustParseAddr("192.168.50.2")] = "an address of this host"
	b := newBench(t)
	b.config = Config{Host: l}
	id := b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n1", network("192.168.50.0/24"))
	b.restart()
	l.looking = 50 * time.Millisecond
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if a, err := b.get(id, ""); err != nil || a == "192.168.50.2/24" {
				t.Errorf("got %s, %v", a, err)
			}
		})
	}
	wg.Wait()
	if l.looks != 1 {
		t.Errorf("looked %d times", l.looks)
	}
}

func TestNames(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/28 192.168.50.1", "")
		b.starts(id, "web", "192.168.50.2")
		b.starts(id, "db", "192.168.50.3")
		b.stop(id, "192.168.50.2")
		b.stop(id, "192.168.50.3")
		b.starts(id, "other", "192.168.50.4")
		b.starts(id, "db", "192.168.50.3")
		n := b.lan.questions()
		b.starts(id, "web", "192.168.50.2")
		if b.lan.questions() != n {
			t.Error("asked about what was ours until just now")
		}
		b.stop(id, "192.168.50.2")
		time.Sleep(time.Hour)
		b.restart()
		b.idle()
		b.starts(id, "web", "192.168.50.2")
		if b.lan.count("192.168.50.2") < 2 {
			t.Error("not asked about after an hour")
		}
		// Somebody has taken it meanwhile.
		b.stop(id, "192.168.50.2")
		b.lan.comes("eth0", "192.168.50.2")
		time.Sleep(time.Hour)
		b.starts(id, "web", "192.168.50.5")
		b.stop(id, "192.168.50.5")
		// Another one has it by --ip.
		b.starts(id, "x 192.168.50.5", "192.168.50.5")
		b.starts(id, "web", "192.168.50.6")
	})
}

// Of several that a name has had, it gets the one that it had first and was freed
// first, also after a restart of the plugin: two networks' containers of one
// name start in the order in which they stopped.
func TestNamesakes(t *testing.T) {
	for _, restart := range []bool{false, true} {
		onLAN(t, func(t *testing.T, b *lanBench) {
			one := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
			two := b.create("n2 eth0 192.168.50.0/24 192.168.50.1", "")
			ranged := b.create("n3 eth0 192.168.50.0/24,192.168.50.64/26 192.168.50.1", "")
			for k, a := range []string{"192.168.50.2", "192.168.50.3", "192.168.50.64"} {
				b.starts([]string{one, two, ranged}[k], "web", a)
			}
			b.stop(ranged, "192.168.50.64")
			b.stop(two, "192.168.50.3")
			b.stop(one, "192.168.50.2")
			if restart {
				b.restart()
				b.idle()
			}
			b.starts(ranged, "web", "192.168.50.64")
			b.starts(two, "web", "192.168.50.3")
			b.starts(one, "web", "192.168.50.2")
		})
	}
}

func TestRest(t *testing.T) {
	for _, tt := range []struct {
		rest string
		wait time.Duration
		want string
	}{
		{"5m", time.Minute, ".5 .6 .3 .2 .4"}, // fresh ones, and then in need
		{"5m", 10 * time.Minute, ".5 .6 .3 .2 .4"},
		{"0", 0, ".5 .6 .3 .2 .4"},
	} {
		onLAN(t, func(t *testing.T, b *lanBench) {
			id := b.create("n1 eth0 192.168.50.0/29 192.168.50.1", "probe_ahead=0 rest="+tt.rest)
			b.starts(id, "", "192.168.50.2")
			b.starts(id, "", "192.168.50.3")
			b.starts(id, "x 192.168.50.4", "192.168.50.4") // static: last, though freed first
			b.stop(id, "192.168.50.4")
			b.stop(id, "192.168.50.3")
			b.stop(id, "192.168.50.2")
			b.restart()
			time.Sleep(tt.wait)
			var got []string
			for range 5 {
				a, err := b.start(id, "")
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, strings.TrimPrefix(a, "192.168.50"))
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("%+v: given %s", tt, s)
			}
			// Once asked for by value, last for ever.
			for _, a := range []string{"192.168.50.4", "192.168.50.5", "192.168.50.6"} {
				b.stop(id, a)
			}
			b.starts(id, "", "192.168.50.5")
			b.starts(id, "", "192.168.50.6")
			b.starts(id, "", "192.168.50.4")
		})
	}
}

// A rest is kept by the stock, too: nothing that rests is probed ahead.
func TestRestingIsNotStocked(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/29 192.168.50.1", "")
		for range 5 {
			if _, err := b.start(id, ""); err != nil {
				t.Fatal(err)
			}
		}
		b.stop(id, "192.168.50.3")
		time.Sleep(4 * time.Minute)
		b.idle()
		if s := b.state().LAN; len(s.Ready) != 0 || s.Resting != 1 {
			t.Errorf("%+v", s)
		}
		time.Sleep(3 * time.Minute)
		b.idle()
		if s := b.state().LAN; len(s.Ready) != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestStock(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		b.idle()
		b.scouts.Wait()
		if ready := b.state().LAN.Ready; len(ready) != 8 {
			t.Fatalf("ready: %v", ready)
		}
		// A warm one takes no time, and asks nobody.
		for range 3 {
			n, at := b.lan.questions(), time.Now()
			if _, err := b.start(id, ""); err != nil || time.Since(at) > 0 || b.lan.questions() != n {
				t.Errorf("%v, took %v and %d questions", err, time.Since(at), b.lan.questions()-n)
			}
		}
		// One beyond the stock waits once, for one question.
		for range 5 {
			b.start(id, "")
		}
		at := time.Now()
		if _, err := b.start(id, ""); err != nil || time.Since(at) > 300*time.Millisecond {
			t.Errorf("%v, took %v", err, time.Since(at))
		}
		// It is kept fresh.
		b.idle()
		before := b.state().LAN.Ready
		n := b.lan.count(before[0].String())
		time.Sleep(10 * time.Minute)
		b.idle()
		if after := b.state().LAN.Ready; !slices.Equal(before, after) {
			t.Errorf("ready: %v, before %v", after, before)
		}
		if k := b.lan.count(before[0].String()) - n; k < 9 || k > 11 {
			t.Errorf("asked %d times in 10 minutes", k)
		}
		// Who comes is noticed.
		b.lan.comes("eth0", before[0].String(), before[1].String())
		time.Sleep(scoutEvery + time.Second)
		b.idle()
		if s := b.state().LAN; slices.Contains(s.Ready, before[0]) || len(s.InUse) != 2 {
			t.Errorf("%+v", s)
		}
		// It may be heard, too.
		next := b.state().LAN.Ready[0]
		b.hear("eth0", next.String(), other, false)
		if a, err := b.start(id, ""); err != nil || a == next.String() {
			t.Errorf("given %s, %v", a, err)
		}
	})
}

// What nobody has kept fresh is not given out.
func TestStaleStock(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		b.idle()
		b.mu.Lock()
		b.looker.Stop()
		b.mu.Unlock()
		b.lan.comes("eth0", addrs("192.168.50.2", 8)...)
		time.Sleep(freshFor)
		b.starts(id, "", "192.168.50.10")
	})
}

// What one network has in stock is not lost to the others of its pool.
func TestSharedStock(t *testing.T) {
	for _, mode := range []string{"probe", "listen", "off"} {
		for _, age := range []time.Duration{0, time.Millisecond, time.Second} {
			t.Run(fmt.Sprint(mode, " ", age), func(t *testing.T) {
				onLAN(t, func(t *testing.T, b *lanBench) {
					b.create("n1 eth0 192.168.50.0/29 192.168.50.1", "probe_ahead=64")
					two := b.create("n2 eth0 192.168.50.0/29 192.168.50.1", "conflict="+mode)
					time.Sleep(age)
					for n := range 5 {
						if _, err := b.start(two, ""); err != nil {
							t.Fatalf("after %d: %v, %+v", n, err, b.state().LAN)
						}
					}
					b.fails(two, "", "6 are held")
				})
			})
		}
	}
}

// Nor is it given out when nobody has kept it fresh, or while it is asked about.
func TestSharedStockIsProven(t *testing.T) {
	for _, age := range []time.Duration{0, freshFor} {
		onLAN(t, func(t *testing.T, b *lanBench) {
			b.create("n1 eth0 192.168.50.0/29 192.168.50.1", "probe_ahead=64")
			two := b.create("n2 eth0 192.168.50.0/29 192.168.50.1", "probe_ahead=0")
			if age > 0 {
				b.idle()
				b.mu.Lock()
				b.looker.Stop()
				b.mu.Unlock()
			}
			b.lan.comes("eth0", "192.168.50.2", "192.168.50.4", "192.168.50.6")
			time.Sleep(age)
			for range 2 {
				if a, err := b.start(two, ""); err != nil || b.lan.others["eth0"][netip.MustParseAddr(a)] != nil {
					t.Errorf("given %s, %v", a, err)
				}
			}
			b.fails(two, "", "3 are held, 0 excluded, 0 reserved or the host's own, 3 in use")
		})
	}
}

func TestDisagreeingNetworks(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		one := b.create("n1 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.2-192.168.50.4 reserve=a=192.168.50.10")
		two := b.create("n2 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.4-192.168.50.6 reserve=b=192.168.50.11")
		if one == two {
			t.Fatal("one ID for two")
		}
		excluded := func() string { return fmt.Sprint(b.state().Excluded, b.state().Reserved) }
		all := "[192.168.50.2-192.168.50.6] map[192.168.50.10:a 192.168.50.11:b]"
		if got := excluded(); got != all {
			t.Errorf("excluded: %s", got)
		}
		b.starts(one, "", "192.168.50.7")
		b.fails(one, "x 192.168.50.6", "excluded")
		b.restart()
		if got := excluded(); got != all {
			t.Errorf("excluded after a restart: %s", got)
		}
		b.starts(one, "a", "192.168.50.10")
		if a, err := b.start(one, "b"); err != nil || a == "192.168.50.11" { // the other network's b
			t.Errorf("got %s, %v", a, err)
		}
		// The scout is at work while the network goes.
		for range 2 {
			if _, err := b.start(two, ""); err != nil {
				t.Fatal(err)
			}
		}
		b.release(two)
		b.delete("n2")
		b.idle()
		time.Sleep(time.Second)
		want := "[192.168.50.2-192.168.50.4] map[192.168.50.10:a]"
		if got := excluded(); got != want {
			t.Errorf("excluded: %s", got)
		}
		b.restart()
		if got := excluded(); got != want {
			t.Errorf("excluded after a restart: %s", got)
		}
		b.starts(one, "x 192.168.50.6", "192.168.50.6")
		b.create("n3 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.14 probe_ahead=64")
		b.release(b.create("n4 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.13 probe_ahead=64"))
		b.delete("n4")
		b.idle()
		if got := excluded(); got != "[192.168.50.2-192.168.50.4 192.168.50.14] map[192.168.50.10:a]" {
			t.Errorf("excluded: %s", got)
		}
	})
}

// docker plugin enable looks like a restart of dockerd, and the first network
// that is then created like a replay. The others' options must outlast it.
func TestOptionsOutlastAFalseReplay(t *testing.T) {
	for _, fails := range []bool{false, true} {
		for _, same := range []bool{false, true} {
			t.Run(fmt.Sprintf("fails %t, same %t", fails, same), func(t *testing.T) {
				onLAN(t, func(t *testing.T, b *lanBench) {
					options := "exclude=192.168.50.2-192.168.50.4"
					one := b.create("n1 eth0 192.168.50.0/28 192.168.50.1", options)
					b.restart()
					b.Daemon()
					second := "exclude=192.168.50.14"
					if same {
						second = options
					}
					if fails {
						r := poolRequest("192.168.50.0/28", "")
						r.Options = opt(second)
						p, err := b.RequestPool(t.Context(), r)
						if err != nil {
							t.Fatal(err)
						}
						b.release(p.ID)
					} else {
						two := b.create("n2 eth0 192.168.50.0/28 192.168.50.1", second)
						b.later()
						b.release(two)
						b.delete("n2")
					}
					b.later()
					for _, when := range []string{"", " after a restart"} {
						if s := b.state(); len(s.Excluded) == 0 || s.Excluded[0].String() != "192.168.50.2-192.168.50.4" || s.Refs != 1 {
							t.Errorf("excluded%s: %v, for %d networks", when, s.Excluded, s.Refs)
						}
						if a, err := b.start(one, ""); err != nil || a < "192.168.50.5" && len(a) == len("192.168.50.5") {
							t.Errorf("given%s: %s, %v", when, a, err)
						}
						b.restart()
					}
					b.release(one)
					b.delete("n1")
					b.held()
				})
			})
		}
	}
}

// A real replay keeps the options of all networks that come again, and drops
// those of one that was removed while the plugin was away.
func TestOptionsInAReplay(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.create("n1 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.2")
		b.create("n2 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.3")
		b.create("n3 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.4")
		b.restart()
		b.Daemon()
		for _, o := range []string{"exclude=192.168.50.2", "exclude=192.168.50.3"} {
			r := poolRequest("192.168.50.0/28", "")
			r.Options = opt(o)
			if _, err := b.RequestPool(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if s := b.state().Excluded; len(s) != 1 || s[0].String() != "192.168.50.2-192.168.50.4" {
				t.Errorf("excluded within the replay: %v", s)
			}
		}
		b.delete("n3") // the driver sweeps it
		if refs := b.state().Refs; refs != 2 {
			t.Errorf("%d references", refs)
		}
		b.later()
		b.later()
		if s := b.state().Excluded; len(s) != 1 || s[0].String() != "192.168.50.2-192.168.50.3" {
			t.Errorf("excluded after it: %v", s)
		}
	})
}

// The creation that looks like a replay is cut off.
func TestOptionsOutlastACrash(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.create("n1 eth0 192.168.50.0/28 192.168.50.1", "exclude=192.168.50.2")
		b.Daemon()
		b.pool("192.168.50.0/28", "")
		b.later()
		b.later()
		for range 2 {
			if s := b.state().Excluded; len(s) != 1 {
				t.Errorf("excluded: %v", s)
			}
			b.restart()
		}
	})
}

// Soon after dockerd has started, a network that it has asked for again is
// removed: its pool goes at once.
func TestRemovalAfterAReplay(t *testing.T) {
	for n := 1; n <= 2; n++ {
		onLAN(t, func(t *testing.T, b *lanBench) {
			var ids []string
			for k := range n {
				ids = append(ids, b.create(fmt.Sprintf("n%d eth0 192.168.50.0/28 192.168.50.1", k), fmt.Sprintf("exclude=192.168.50.%d", 10+k)))
			}
			b.Daemon()
			for k := range n {
				r := poolRequest("192.168.50.0/28", "")
				r.Options = opt(fmt.Sprintf("exclude=192.168.50.%d", 10+k))
				if _, err := b.RequestPool(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				b.gets(ids[k], "gw 192.168.50.1", "192.168.50.1/28")
			}
			for k, id := range ids {
				b.free(id, "192.168.50.1")
				b.release(id)
				b.delete(fmt.Sprint("n", k))
			}
			b.held()
		})
	}
}

func TestEarlierRecords(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		put := func(bucket, key, value string) {
			if err := b.store.Apply(store.Change{Bucket: bucket, Key: []byte(key), Value: []byte(value)}); err != nil {
				t.Fatal(err)
			}
		}
		put(poolBucket, "192.168.50.0/24", `{"refs":2,"ranges":{"192.168.50.64/26":1}}`)
		put(addressBucket, "192.168.50.0/24 192.168.50.1", `{"kind":"gateway","since":"2026-08-01T12:00:00Z"}`)
		put(addressBucket, "192.168.50.0/24 192.168.50.2", `{"kind":"resting","turn":5}`)
		put(addressBucket, "192.168.50.0/24 192.168.50.65", `{"kind":"resting","turn":6}`)
		put(addressBucket, "192.168.50.0/24 192.168.50.64", `{"kind":"endpoint","name":"web","since":"2026-08-01T12:00:00Z"}`)
		b.restart()
		n := network("192.168.50.0/24", "192.168.50.1")
		n.Parent = "eth0"
		b.NetworkCreated("n1", n)
		b.NetworkCreated("n2", n)
		b.starts("192.168.50.0/24", "", "192.168.50.3")
		b.starts("192.168.50.0/24,192.168.50.64/26", "", "192.168.50.66")
		s := b.state()
		if s.Refs != 2 || s.LAN.Resting != 2 || s.Held != 4 || len(s.Ranges) != 1 || s.Conflict != "probe" {
			t.Errorf("%+v", s)
		}
		b.restart()
		b.starts("192.168.50.0/24", "", "192.168.50.4")
		for _, id := range []string{"192.168.50.0/24", "192.168.50.0/24,192.168.50.64/26"} {
			b.release(id)
		}
		b.delete("n1")
		b.delete("n2")
		if s := b.Snapshot(); len(s.Pools) > 0 {
			t.Errorf("left: %+v", s)
		}
	})
}

// IPv6 is the same, but for its routers: they are link-local, and in no pool.
func TestIPv6(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		b.lan.comes("eth0", "fd00:50::1", "fd00:50::3")
		b.lan.links["eth0"] = []HostSubnet{{Prefix: netip.MustParsePrefix("fd00:50::/64"), Gateway: netip.MustParseAddr("fe80::1")}}
		b.lan.byFamily[true] = "eth0"
		p, err := b.RequestPool(t.Context(), PoolRequest{V6: true})
		if err != nil {
			t.Fatal(err)
		}
		b.gets(p.ID, "gw", "fe80::1/64")
		b.gets(p.ID, "gw fe80::1", "fe80::1/64")
		n := network("fd00:50::/64", "fe80::1")
		n.Parent = "eth0"
		b.NetworkCreated("n1", n)
		b.starts(p.ID, "", "fd00:50::2")
		b.starts(p.ID, "", "fd00:50::4")
		b.fails(p.ID, "x fd00:50::1", "in use on the LAN")
		b.free(p.ID, "fe80::1")
		b.release(p.ID)
		b.delete("n1")
		if s := b.Snapshot(); len(s.Pools) > 0 {
			t.Errorf("left: %+v", s)
		}
	})
	onLAN(t, func(t *testing.T, b *lanBench) { // a pool of link-local addresses has its gateway inside
		id := b.create("n1 eth0 fe80::/64 fe80::1", "")
		b.starts(id, "", "fe80::2")
		b.starts(id, "", "fe80::3")
		b.fails(id, "x fe80::1", "the gateway")
		if b.state().Held != 3 {
			t.Errorf("%+v", b.state())
		}
	})
}

// Hosts of a LAN change their IPv6 addresses daily. What is remembered of them
// is bounded, but what a probe has found is never forgotten at once.
func TestMoreMachinesThanRemembered(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 fd00:50::/64 fd00:50::1", "")
		b.idle()
		a := netip.MustParseAddr("fd00:50:0:0:1::")
		m, _ := net.ParseMAC(other)
		for range maxSeen + 10 {
			b.Heard(Sighting{Link: "eth0", Addr: a, MAC: m})
			a = a.Next()
		}
		if n := len(b.state().LAN.InUse); n != maxSeen {
			t.Errorf("%d are remembered", n)
		}
		b.lan.comes("eth0", addrs("fd00:50::a", 20)...)
		for n := 2; n < 10; n++ {
			b.starts(id, "", fmt.Sprintf("fd00:50::%x", n))
		}
		b.starts(id, "", "fd00:50::1e")
		b.fails(id, "x fd00:50::b", "in use on the LAN")
	})
}

func TestPoolsOfNICs(t *testing.T) {
	prefix, at := netip.MustParsePrefix, netip.MustParseAddr
	links := map[string][]HostSubnet{
		"eth0":    {{prefix("192.168.50.0/24"), at("192.168.50.254")}, {prefix("fd00:50::/64"), at("fe80::1")}},
		"eth1":    {{prefix("10.1.0.0/24"), netip.Addr{}}, {prefix("10.2.0.0/24"), at("10.2.0.1")}, {prefix("fd00:1::/64"), netip.Addr{}}},
		"eth2":    {{prefix("fd00:2::/64"), netip.Addr{}}},
		"eth3":    {{prefix("10.4.0.0/24"), at("10.9.9.1")}}, // a router beside its subnet
		"bare":    nil,
		"eth0.10": {{prefix("192.168.10.0/24"), netip.Addr{}}},
	}
	for _, tt := range []struct {
		name, options string
		request       PoolRequest
		bare          bool // no default route
		want, gateway string
		refused       []string
	}{
		{name: "default route", want: "192.168.50.0/24", gateway: "192.168.50.254"},
		{name: "default route, v6", request: PoolRequest{V6: true}, want: "fd00:50::/64", gateway: "fe80::1"},
		{name: "parent", options: "parent=eth0.10", want: "192.168.10.0/24", gateway: "192.168.10.1"},
		{name: "altname", options: "parent=alt-eth0", want: "192.168.50.0/24", gateway: "192.168.50.254"},
		{name: "several", options: "parent=eth1", refused: []string{"eth1 has several IPv4 subnets, 10.1.0.0/24, 10.2.0.0/24; choose one with --subnet or --ipam-opt subnet="}},
		{name: "several, one of v6", options: "parent=eth1", request: PoolRequest{V6: true}, want: "fd00:1::/64", gateway: "fd00:1::1"},
		{name: "several, chosen", options: "parent=eth1 subnet=10.2.0.0/24", want: "10.2.0.0/24", gateway: "10.2.0.1"},
		{name: "not its subnet", options: "parent=eth1 subnet=10.3.0.0/24", refused: []string{"10.3.0.0/24 is no subnet of eth1", "10.1.0.0/24, 10.2.0.0/24"}},
		{name: "named in both", options: "parent=eth1 subnet=10.2.0.0/24", request: poolRequest("10.2.0.0/24", ""), want: "10.2.0.0/24", gateway: "10.2.0.1"},
		{name: "named otherwise", options: "subnet=10.2.0.0/24", request: poolRequest("10.1.0.0/24", ""), refused: []string{"--subnet 10.1.0.0/24", "subnet=10.2.0.0/24"}},
		{name: "of the other family", options: "parent=eth2", refused: []string{"eth2 has no IPv4 subnet", "--subnet and --gateway"}},
		{name: "no subnet", options: "parent=bare", refused: []string{"bare has no IPv4 subnet"}},
		{name: "no such link", options: "parent=eth9", refused: []string{"there is no link eth9"}},
		{name: "no default route", bare: true, refused: []string{"there is no default route", "--ipam-opt parent=", "--subnet and --gateway", "pool=private"}},
		{name: "private", options: "pool=private", bare: true, want: "10.210.0.0/24", gateway: "10.210.0.1"},
		{name: "a subnet without a link", request: poolRequest("10.9.0.0/24", ""), want: "10.9.0.0/24", gateway: "10.9.0.1", bare: true},
		{name: "a link's subnet, named", request: poolRequest("192.168.50.0/24", ""), want: "192.168.50.0/24", gateway: "192.168.50.254"},
		{name: "another link's, named", request: poolRequest("10.2.0.0/24", ""), options: "parent=eth1", want: "10.2.0.0/24", gateway: "10.2.0.1"},
		{name: "part of a link's, named", request: poolRequest("192.168.50.0/25", ""), want: "192.168.50.0/25", gateway: "192.168.50.1"},
		{name: "router beside the subnet", options: "parent=eth3", want: "10.4.0.0/24", gateway: "10.9.9.1"},
		{name: "range without subnet", request: PoolRequest{Range: prefix("192.168.50.64/26")}, refused: []string{"needs a --subnet"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onLAN(t, func(t *testing.T, b *lanBench) {
				b.lan.links = links
				if !tt.bare {
					b.lan.byFamily = map[bool]string{false: "eth0", true: "eth0"}
				}
				tt.request.Options = opt(tt.options)
				p, err := b.RequestPool(t.Context(), tt.request)
				if tt.refused != nil {
					wantError(t, err, tt.refused...)
					b.held()
					return
				}
				if err != nil || p.Subnet.String() != tt.want {
					t.Fatalf("%v, %v; want %s", p, err, tt.want)
				}
				gw, err := b.get(p.ID, "gw")
				if gw = gw[:strings.IndexByte(gw+"/", '/')]; err != nil || gw != tt.gateway {
					t.Errorf("gateway %s, %v; want %s", gw, err, tt.gateway)
				}
				b.free(p.ID, tt.gateway)
				b.release(p.ID)
				b.held()
			})
		})
	}
}

func TestAgree(t *testing.T) {
	prefix, at := netip.MustParsePrefix, netip.MustParseAddr
	for _, tt := range []struct {
		name, options, parent string
		request               PoolRequest
		refused               []string
	}{
		{name: "the NIC itself", parent: "eth0"},
		{name: "another NIC", parent: "eth1", refused: []string{"192.168.50.0/24 is the LAN of eth0", "parent is eth1"}},
		{name: "a VLAN on it", parent: "eth0.10", refused: []string{"LAN of eth0,", "eth0.10"}},
		{name: "internal", refused: []string{"192.168.50.0/24 is the LAN of eth0", "internal", "pool=private", "--subnet"}},
		{name: "private", options: "pool=private"},
		{name: "private, with a parent", options: "pool=private", parent: "eth1"},
		{name: "named, internal", request: poolRequest("192.168.50.0/24", "")},
		{name: "named, any parent", request: poolRequest("192.168.50.0/24", ""), parent: "eth1"},
		{name: "named, with a NIC", request: poolRequest("192.168.50.0/24", ""), options: "parent=eth0", parent: "eth1", refused: []string{"eth0", "eth1"}},
		{name: "named, by altname", request: poolRequest("192.168.50.0/24", ""), options: "parent=alt-eth0", parent: "eth0"},
		{name: "named, a NIC without addresses", request: poolRequest("10.9.0.0/24", ""), options: "parent=eth1", parent: "eth1"},
		{name: "named, a NIC that is to be", request: poolRequest("10.9.0.0/24", ""), options: "parent=eth0.20", parent: "eth0.20"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onLAN(t, func(t *testing.T, b *lanBench) {
				b.lan.links = map[string][]HostSubnet{"eth0": {{prefix("192.168.50.0/24"), at("192.168.50.254")}}, "eth1": nil}
				b.lan.byFamily[false] = "eth0"
				tt.request.Options = opt(tt.options)
				p, err := b.RequestPool(t.Context(), tt.request)
				if err != nil {
					t.Fatal(err)
				}
				n := NetworkPools{Subnets: []netip.Prefix{p.Subnet}, Parent: tt.parent}
				err = b.Agree(n, tt.parent == "")
				if tt.refused == nil {
					if err != nil {
						t.Error(err)
					}
					b.NetworkCreated("n1", n)
					return
				}
				wantError(t, err, tt.refused...)
				b.release(p.ID)
				b.held()
			})
		})
	}
}

func TestAskedTwice(t *testing.T) {
	prefix, at := netip.MustParsePrefix, netip.MustParseAddr
	hosts := func(b *lanBench) {
		b.lan.links = map[string][]HostSubnet{"eth0": {{prefix("192.168.50.0/24"), at("192.168.50.254")}, {prefix("fd00:50::/64"), at("fe80::1")}}}
		b.lan.byFamily = map[bool]string{false: "eth0", true: "eth0"}
	}
	ask := func(b *lanBench, v6 bool) (Pool, error) {
		return b.RequestPool(b.t.Context(), PoolRequest{V6: v6})
	}
	onLAN(t, func(t *testing.T, b *lanBench) { // Docker 26 and older
		hosts(b)
		b.Daemon()
		p, err := ask(b, false)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err = ask(b, false)
			wantError(t, err, "; add --subnet 192.168.50.0/24 --gateway 192.168.50.254, and with --ipv6 --subnet fd00:50::/64")
			if strings.HasSuffix(err.Error(), "fe80::1") {
				t.Error(err)
			}
		}
		b.release(p.ID)
		b.held()
		six, err := ask(b, true)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ask(b, true)
		wantError(t, err, "; add --subnet fd00:50::/64")
		b.release(six.ID)
		b.held()
		// The next try may begin at once, and one with these flags goes through.
		if p, err = ask(b, false); err != nil {
			t.Fatal(err)
		}
		b.release(p.ID)
		b.create("n1 eth0 192.168.50.0/24 192.168.50.254", "")
		b.create("n2 eth0 192.168.50.0/24 192.168.50.254", "")
		// Whatever was held by a network before is none of this.
		if p, err = ask(b, false); err != nil {
			t.Fatal(err)
		}
		_, err = ask(b, false)
		wantError(t, err, "add --subnet")
		b.release(p.ID)
	})
	onLAN(t, func(t *testing.T, b *lanBench) { // Docker 28 and newer
		hosts(b)
		b.Daemon()
		b.AcceptsOverlap()
		for range 2 {
			if _, err := ask(b, false); err != nil {
				t.Error(err)
			}
		}
		b.Daemon() // downgraded
		p, err := ask(b, false)
		if err == nil {
			_, err = ask(b, false)
		}
		wantError(t, err, "add --subnet")
		for range 4 {
			b.release(p.ID)
		}
	})
	onLAN(t, func(t *testing.T, b *lanBench) { // two networks one after the other
		hosts(b)
		for k := range 3 {
			b.create(fmt.Sprintf("n%d eth0 - any", k), "")
		}
		if s := b.state(); s.Refs != 3 || s.Router != at("192.168.50.254") {
			t.Errorf("%+v", s)
		}
		// dockerd names the subnets in a replay.
		b.Daemon()
		for range 3 {
			b.pool("192.168.50.0/24", "")
		}
		if s := b.state(); s.Refs != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// A creation that fails, or a request that is given up, leaves nothing behind.
func TestGivingUp(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "probe_ahead=0 probe_wait=2s")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, r := range []AddressRequest{{PoolID: id}, {PoolID: id, Addr: netip.MustParseAddr("192.168.50.9")}} {
			if _, err := b.RequestAddress(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%+v: %v", r, err)
			}
		}
		time.Sleep(5 * time.Second)
		b.idle()
		if s := b.state(); s.Held != 1 || len(s.LAN.InUse) > 0 || s.LAN.Blind != "" {
			t.Errorf("%+v", s)
		}
		b.mu.Lock()
		for _, p := range b.pools.Items() {
			for _, tt := range p.terms {
				if tt.waiting != 0 || len(tt.asking) > 0 {
					t.Errorf("%d wait, %d are asked about", tt.waiting, len(tt.asking))
				}
			}
		}
		b.mu.Unlock()
		// The plugin ends while somebody waits.
		done := make(chan error)
		go func() { _, err := b.start(id, ""); done <- err }()
		synctest.Wait()
		b.Close()
		<-done
	})
}

// What the IPAM looks for now and then it does at the minute, with whatever else looks
// then: the LAN is asked about what is in stock, and an address that dockerd has
// released, and a container of another IPAM's has, is free once that has gone.
func TestEachMinute(t *testing.T) {
	onLAN(t, func(t *testing.T, b *lanBench) {
		time.Sleep(20 * time.Second)
		id := b.create("n1 eth0 192.168.50.0/24 192.168.50.1", "")
		b.starts(id, "one", "192.168.50.2")
		b.free(id, "192.168.50.2")
		time.Sleep(10 * time.Minute)
		b.idle()
		if last := b.lan.last; last.Second() != 0 {
			t.Errorf("the LAN was asked at %v", last)
		}
		b.using.Lock()
		delete(b.ends, netip.MustParseAddr("192.168.50.2"))
		b.using.Unlock()
		for range 2 * 60 {
			if b.idle(); b.state().Held == 1 {
				break
			}
			time.Sleep(time.Second)
		}
		if now := time.Now(); now.Second() != 0 {
			t.Errorf("freed at %v", now)
		}
	})
}
