package ipam

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"underlay/internal/store"
)

// bench is an IPAM on a state file, with a clock and endpoints to play with.
type bench struct {
	*IPAM
	t       testing.TB
	path    string
	store   *store.Store
	ticking sync.Mutex // guards clock
	clock   time.Time
	real    bool       // the bench's clock is the machine's, or that of a synctest bubble
	using   sync.Mutex // guards ends and macs, where more than one goroutine has them
	ends    map[netip.Addr]string
	macs    map[netip.Addr]net.HardwareAddr // of these
	config  Config
}

func (b *bench) Holder(addr netip.Addr) (string, bool) {
	b.using.Lock()
	defer b.using.Unlock()
	what, ok := b.ends[addr]
	return what, ok
}

func (b *bench) MAC(addr netip.Addr) (net.HardwareAddr, bool) {
	b.using.Lock()
	defer b.using.Unlock()
	mac, ok := b.macs[addr]
	return mac, ok
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "state.db"), clock: time.Now(), ends: map[netip.Addr]string{}}
	b.open()
	return b
}

// open starts the plugin, on what an earlier one has left.
func (b *bench) open() {
	b.t.Helper()
	st, err := store.Open(b.path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { st.Close() })
	i, err := New(st, b, b.config)
	if err != nil {
		b.t.Fatal(err)
	}
	if !b.real {
		i.now = b.tick
		i.nap = func() time.Duration { return time.Hour } // the machine's minutes are none of the bench's
	}
	b.IPAM, b.store = i, st
	b.Know(nil)
}

// reopen starts it with what the driver has.
func (b *bench) reopen(networks map[string]NetworkPools) {
	b.t.Helper()
	b.open()
	b.Know(networks)
}

// tick is the time; no two moments are the same.
func (b *bench) tick() time.Time {
	b.ticking.Lock()
	defer b.ticking.Unlock()
	b.clock = b.clock.Add(time.Microsecond)
	return b.clock
}

// pass lets time go by.
func (b *bench) pass(d time.Duration) {
	if b.real {
		time.Sleep(d)
		return
	}
	b.ticking.Lock()
	defer b.ticking.Unlock()
	b.clock = b.clock.Add(d)
}

// restart is a plugin's restart. Networks are told again by the driver.
func (b *bench) restart() {
	b.t.Helper()
	networks := b.networks
	b.Close()
	if err := b.store.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.reopen(networks)
}

// later clears leftovers after the grace period.
func (b *bench) later() {
	b.pass(b.grace + time.Second)
	b.clear()
}

func (b *bench) pool(subnet, within string) string {
	b.t.Helper()
	p, err := b.RequestPool(b.t.Context(), poolRequest(subnet, within))
	if err != nil {
		b.t.Fatal(err)
	}
	return p.ID
}

func (b *bench) release(pool string) {
	b.t.Helper()
	if err := b.ReleasePool(b.t.Context(), pool); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) delete(network string) {
	b.t.Helper()
	if err := b.NetworkDeleted(b.t.Context(), network); err != nil {
		b.t.Fatal(err)
	}
}

// get asks for an address: "" for any, "gw" and "gw ADDRESS" for a gateway.
func (b *bench) get(pool, what string) (string, error) {
	r := AddressRequest{PoolID: pool}
	what, r.Gateway = strings.CutPrefix(what, "gw")
	if what = strings.TrimSpace(what); what != "" {
		r.Addr = netip.MustParseAddr(what)
	}
	a, err := b.RequestAddress(b.t.Context(), r)
	if err != nil {
		return "", err
	}
	return a.String(), nil
}

// gets wants addresses in this order.
func (b *bench) gets(pool, what string, want ...string) {
	b.t.Helper()
	for _, w := range want {
		if got, err := b.get(pool, what); err != nil || got != w {
			b.t.Fatalf("%s of %s is %s, %v; want %s", what, pool, got, err, w)
		}
	}
}

func (b *bench) refused(pool, what string, want ...string) {
	b.t.Helper()
	got, err := b.get(pool, what)
	if err == nil {
		b.t.Fatalf("%s of %s is %s, want a refusal", what, pool, got)
	}
	wantError(b.t, err, want...)
}

func (b *bench) free(pool, addr string) {
	b.t.Helper()
	if err := b.ReleaseAddress(b.t.Context(), pool, netip.MustParseAddr(addr)); err != nil {
		b.t.Fatal(err)
	}
}

// held wants this to be all that is held.
func (b *bench) held(want ...string) {
	b.t.Helper()
	var got []string
	for _, p := range b.Snapshot().Pools {
		got = append(got, p.Subnet.String())
		for _, a := range p.Addresses {
			got = append(got, string(a.Kind)+" "+a.Address.String())
		}
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		b.t.Fatalf("held: %q, want %q", got, want)
	}
}

func poolRequest(subnet, within string) PoolRequest {
	r := PoolRequest{Subnet: netip.MustParsePrefix(subnet)}
	r.V6 = r.Subnet.Addr().Is6()
	if within != "" {
		r.Range = netip.MustParsePrefix(within)
	}
	return r
}

func network(subnet string, reserved ...string) NetworkPools {
	n := NetworkPools{Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}}
	for _, a := range reserved {
		n.Reserved = append(n.Reserved, netip.MustParseAddr(a))
	}
	return n
}

// wantError wants one line that has all these parts.
func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %v", err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
}

func TestANetworksLife(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "192.168.50.64/26")
	if id != "192.168.50.0/24,192.168.50.64/26" {
		t.Fatalf("pool ID %s", id)
	}
	b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
	b.gets(id, "192.168.50.2", "192.168.50.2/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.1", "192.168.50.2"))
	b.gets(id, "192.168.50.70", "192.168.50.70/24")
	b.gets(id, "", "192.168.50.64/24", "192.168.50.65/24")
	b.free(id, "192.168.50.64")
	b.free(id, "192.168.50.64")
	b.restart()
	b.gets(id, "", "192.168.50.66/24")
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "reserved 192.168.50.2",
		"endpoint 192.168.50.65", "endpoint 192.168.50.66", "endpoint 192.168.50.70")
	for _, a := range []string{"192.168.50.65", "192.168.50.66", "192.168.50.70", "192.168.50.1", "192.168.50.2"} {
		b.free(id, a)
	}
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "reserved 192.168.50.2")
	b.release(id)
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "reserved 192.168.50.2")
	b.delete("n1")
	b.held()
	b.delete("n1")
	b.release(id)
	b.free(id, "192.168.50.1")
	for _, bucket := range []string{poolBucket, addressBucket} {
		b.store.Each(bucket, func(k, v []byte) error { t.Errorf("%s/%s is left: %s", bucket, k, v); return nil })
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "192.168.50.64/30")
	b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
	b.gets(id, "192.168.50.2", "192.168.50.2/24")
	b.NetworkCreated("0123456789abcdef", network("192.168.50.0/24", "192.168.50.1", "192.168.50.2"))
	b.gets(id, "", "192.168.50.64/24", "192.168.50.65/24", "192.168.50.66/24", "192.168.50.67/24")
	b.ends[netip.MustParseAddr("192.168.50.64")] = "endpoint e of network n"
	b.refused(id, "", "192.168.50.64/30 is exhausted", "of 4 addresses, 4 are held", "widen --ip-range")
	b.refused(id, "192.168.51.1", "192.168.51.1 is outside subnet 192.168.50.0/24")
	b.refused(id, "fd00::1", "fd00::1 is outside")
	b.refused(id, "192.168.50.0", "network address")
	b.refused(id, "gw 192.168.50.255", "broadcast address")
	b.refused(id, "192.168.50.1", "the gateway of network 0123456789ab;")
	b.refused(id, "192.168.50.2", "reserved by network 0123456789ab;")
	b.refused(id, "192.168.50.64", "taken", "held by endpoint e of network n")
	b.refused(id, "gw 192.168.50.65", "taken", "held for a container")
	b.refused("192.168.1.0/24", "", `unknown pool "192.168.1.0/24"`, "create it again")
	b.refused("nonsense", "", `unknown pool "nonsense"`)
	v6 := b.pool("fd00:1::/64", "")
	b.refused(v6, "fd00:1::", "anycast")
	before := b.Snapshot()
	for _, c := range []struct {
		r    PoolRequest
		want string
	}{
		{PoolRequest{Subnet: netip.MustParsePrefix("10.1.2.3/24")}, "give 10.1.2.0/24"},
		{PoolRequest{Subnet: netip.MustParsePrefix("10.1.2.0/24"), V6: true}, "family"},
		{PoolRequest{Range: netip.MustParsePrefix("10.1.2.0/24")}, "needs a --subnet"},
		{PoolRequest{Options: map[string]string{"foo": "bar"}}, "--ipam-opt foo"},
		{poolRequest("10.1.2.0/24", "10.1.3.0/26"), "range 10.1.3.0/26 is outside subnet 10.1.2.0/24"},
		{poolRequest("10.1.2.0/24", "10.0.0.0/8"), "outside"},
		{poolRequest("10.1.2.0/24", "fd00::/64"), "outside"},
		{poolRequest("10.1.2.0/24", "10.1.2.255/32"), "no address"},
		{poolRequest("192.168.0.0/16", ""), "overlaps 192.168.50.0/24"},
		{poolRequest("192.168.50.128/25", ""), "use --subnet 192.168.50.0/24"},
		{poolRequest("0.0.0.0/0", ""), "no subnet of hosts"},
		{poolRequest("::ffff:10.0.0.0/112", ""), "IPv4 subnet"},
	} {
		_, err := b.RequestPool(t.Context(), c.r)
		wantError(t, err, c.want)
	}
	if after := b.Snapshot(); len(after.Pools) != len(before.Pools) || after.Pools[0].Held != before.Pools[0].Held {
		t.Errorf("a refusal changed something: %v, before %v", after, before)
	}
	_, err := b.get(id, "192.168.50.64")
	if !errors.Is(err, ErrTaken) {
		t.Errorf("%v is not ErrTaken", err)
	}
}

func TestReplay(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.1", "192.168.50.9"))
	b.gets(id, "", "192.168.50.2/24", "192.168.50.3/24")
	b.refused(id, "192.168.50.2", "taken") // not restarted

	b.Daemon()
	b.refused(id, "192.168.50.2", "taken") // not asked for the pool yet
	b.pool("192.168.50.0/24", "")
	b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
	b.gets(id, "192.168.50.2", "192.168.50.2/24")
	b.refused(id, "192.168.50.2", "taken") // once only
	b.refused(id, "192.168.50.9", "taken")
	if refs := b.Snapshot().Pools[0].Refs; refs != 1 {
		t.Errorf("%d references after the replay", refs)
	}
	// .3 was not asked for again, and no endpoint has it.
	b.ends[netip.MustParseAddr("192.168.50.2")] = "endpoint e"
	b.later()
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "endpoint 192.168.50.2", "reserved 192.168.50.9")
	clear(b.ends)
	b.free(id, "192.168.50.2")
	b.release(id)
	b.delete("n1")
	b.held()
}

// One network's gateway may be another's aux address. A replay asks for it twice,
// in any order, and no container gets it after that.
func TestReplayOfAGatewayReserved(t *testing.T) {
	for _, order := range [][]string{{"192.168.50.9", "gw 192.168.50.9"}, {"gw 192.168.50.9", "192.168.50.9"}} {
		b := newBench(t)
		id := b.pool("192.168.50.0/24", "")
		b.gets(id, "192.168.50.9", "192.168.50.9/24")
		b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.9"))
		b.pool("192.168.50.0/24", "")
		b.gets(id, "gw 192.168.50.9", "192.168.50.9/24")
		b.NetworkCreated("n2", network("192.168.50.0/24", "192.168.50.9"))
		b.Daemon()
		for _, what := range order {
			b.pool("192.168.50.0/24", "")
			b.gets(id, what, "192.168.50.9/24")
		}
		b.refused(id, "192.168.50.9", "reserved by network n1")
	}
}

// The network of another driver, which is not known here, may have that gateway:
// its replay must not stand for the one of ours.
func TestReplayOfAForeignGatewayReserved(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.9"))
	b.pool("192.168.50.0/24", "")
	b.gets(id, "gw 192.168.50.9", "192.168.50.9/24")
	b.Daemon()
	b.pool("192.168.50.0/24", "")
	b.gets(id, "gw 192.168.50.9", "192.168.50.9/24")
	b.pool("192.168.50.0/24", "")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
}

func TestFailedCreation(t *testing.T) {
	b := newBench(t)
	// Alone on its subnet: ReleasePool frees all at once.
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
	b.release(id)
	b.held()

	// Beside another network: the next try works, and then time clears.
	b.pool("192.168.50.0/24", "")
	b.gets(id, "gw 192.168.50.1", "192.168.50.1/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.1"))
	for range 2 {
		b.pool("192.168.50.0/24", "")
		b.gets(id, "gw 192.168.50.254", "192.168.50.254/24")
		b.gets(id, "192.168.50.9", "192.168.50.9/24")
		b.release(id)
	}
	b.later()
	b.held("192.168.50.0/24", "gateway 192.168.50.1")
}

func TestSharedSubnet(t *testing.T) {
	b := newBench(t)
	one := b.pool("192.168.50.0/24", "192.168.50.16/29")
	b.gets(one, "gw", "192.168.50.1/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.1"))
	two := b.pool("192.168.50.0/24", "")
	b.gets(two, "gw", "192.168.50.1/24")
	b.NetworkCreated("n2", network("192.168.50.0/24", "192.168.50.1"))
	b.gets(two, "", "192.168.50.2/24")
	b.gets(one, "", "192.168.50.16/24")
	b.free(one, "192.168.50.16")
	b.free(one, "192.168.50.1")
	b.release(one)
	b.delete("n1")
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "endpoint 192.168.50.2")
	b.free(two, "192.168.50.2")
	b.free(two, "192.168.50.1")
	b.release(two)
	b.delete("n2")
	b.held()
}

var private = map[string]string{"pool": "private"}

func TestDefaultPools(t *testing.T) {
	b := newBench(t)
	first, err := b.RequestPool(t.Context(), PoolRequest{Options: private})
	if err != nil || first.Subnet.String() != "10.210.0.0/24" {
		t.Fatal(first, err)
	}
	b.pool("10.210.1.0/26", "")
	second, err := b.RequestPool(t.Context(), PoolRequest{Options: private})
	if err != nil || second.Subnet.String() != "10.210.2.0/24" {
		t.Fatal(second, err)
	}
	v6, err := b.RequestPool(t.Context(), PoolRequest{V6: true, Options: private})
	if err != nil || v6.Subnet.Bits() != 64 || !netip.MustParsePrefix("fd00::/8").Contains(v6.Subnet.Addr()) {
		t.Fatal(v6, err)
	}
	ula := b.defaults[1]
	b.restart()
	if b.defaults[1] != ula {
		t.Errorf("the unique local prefix %v was %v before the restart", b.defaults[1], ula)
	}
	if b.defaults, err = ParseDefaultPools("base=10.9.0.0/30,size=31"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.RequestPool(t.Context(), PoolRequest{Options: private}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = b.RequestPool(t.Context(), PoolRequest{Options: private})
	wantError(t, err, "10.9.0.0/30 in /31s, all 2", "--subnet and --gateway")
	_, err = b.RequestPool(t.Context(), PoolRequest{V6: true, Options: private})
	wantError(t, err, "no IPv6 default pool", "--subnet and --gateway")
}

func TestParseDefaultPools(t *testing.T) {
	got, err := ParseDefaultPools("base=10.210.0.0/16,size=24; size=64,base=fd00:1::/48;")
	want := []DefaultPool{{netip.MustParsePrefix("10.210.0.0/16"), 24}, {netip.MustParsePrefix("fd00:1::/48"), 64}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := ParseDefaultPools(""); got != nil || err != nil {
		t.Errorf("no text gives %v, %v", got, err)
	}
	for text, want := range map[string]string{
		"base=10.0.0.0/8":               "size 0 is not between 8 and 32",
		"base=10.0.0.0/8,size=4":        "size 4",
		"base=10.0.0.0/8,size=33":       "size 33",
		"base=10.0.0.1/8,size=24":       "give 10.0.0.0/8",
		"base=10.0.0.0/8,size=x":        "x",
		"base=ten,size=24":              "ten",
		"size=24":                       "no base",
		"base=10.0.0.0/8,size=24,foo=1": `unknown word "foo"`,
		"10.0.0.0/8":                    "base=10.210.0.0/16,size=24",
	} {
		_, err := ParseDefaultPools(text)
		wantError(t, err, want, text)
	}
}

func TestPoolID(t *testing.T) {
	for _, id := range []string{"192.168.50.0/24", "192.168.50.0/24,192.168.50.64/26", "fd00::/64,fd00::100/120", "fd00::/64#0123abcd"} {
		subnet, within, err := ParsePoolID(id)
		_, key, _ := strings.Cut(id, "#")
		if err != nil || poolID(subnet, within, key) != id {
			t.Errorf("%s is read as %v and %v, %v", id, subnet, within, err)
		}
	}
	for _, id := range []string{"", ",", "192.168.50.0", "192.168.50.7/24", "192.168.50.0/24,", "192.168.50.0/24,10.0.0.0/26", "pool-1"} {
		if _, _, err := ParsePoolID(id); !errors.Is(err, ErrUnknownPool) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// dockerd releases an address although the driver could not delete the
// endpoint: it stays held as long as the endpoint lives.
func TestReleaseBeforeTheEndpointIsGone(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n1", network("192.168.50.0/24"))
	b.gets(id, "", "192.168.50.1/24", "192.168.50.2/24")
	for a := range map[string]int{"192.168.50.1": 0, "192.168.50.2": 0} {
		b.ends[netip.MustParseAddr(a)] = "endpoint e"
		b.free(id, a)
	}
	b.later()
	b.refused(id, "192.168.50.1", "held by endpoint e")
	b.held("192.168.50.0/24", "endpoint 192.168.50.1", "endpoint 192.168.50.2")
	clear(b.ends)
	b.gets(id, "192.168.50.1", "192.168.50.1/24")
	b.ends[netip.MustParseAddr("192.168.50.1")] = "endpoint f"
	b.later()
	b.held("192.168.50.0/24", "endpoint 192.168.50.1")
}

// dockerd never releases the IPv4 address of a container whose IPv6 one is
// refused, nor what it could not release while the plugin was away.
func TestWhatNobodyReleases(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n1", network("192.168.50.0/24"))
	b.gets(id, "", "192.168.50.1/24", "192.168.50.2/24", "192.168.50.3/24")
	b.ends[netip.MustParseAddr("192.168.50.1")] = "endpoint e"
	b.ends[netip.MustParseAddr("192.168.50.2")] = "endpoint f"
	b.clear()
	b.held("192.168.50.0/24", "endpoint 192.168.50.1", "endpoint 192.168.50.2", "endpoint 192.168.50.3")
	b.later()
	b.held("192.168.50.0/24", "endpoint 192.168.50.1", "endpoint 192.168.50.2")
	delete(b.ends, netip.MustParseAddr("192.168.50.2"))
	b.later() // dockerd is there, and will release it
	b.held("192.168.50.0/24", "endpoint 192.168.50.1", "endpoint 192.168.50.2")
	b.restart()
	b.later()
	b.held("192.168.50.0/24", "endpoint 192.168.50.1")
}

// The plugin is killed before dockerd has its answer: dockerd takes the start for
// failed, and the user starts the container again.
func TestAnswerCutOff(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n1", network("192.168.50.0/24"))
	b.gets(id, "192.168.50.7", "192.168.50.7/24")
	b.gets(id, "192.168.50.8", "192.168.50.8/24")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
	b.ends[netip.MustParseAddr("192.168.50.8")] = "endpoint e"
	b.refused(id, "192.168.50.7", "held for a container") // not cut off
	b.restart()
	b.gets(id, "192.168.50.7", "192.168.50.7/24")
	b.refused(id, "192.168.50.7", "held for a container") // a second time
	b.refused(id, "192.168.50.8", "held by endpoint e")
	other := b.pool("192.168.50.0/24", "") // of a driver whose endpoints are not known
	b.refused(id, "192.168.50.9", "held for a container")
	b.release(other)
	b.pass(2 * grace)
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
}

// Nothing is known of another driver's endpoints.
func TestAddressesOfOtherDriversStay(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "", "192.168.50.1/24")
	b.later()
	b.restart()
	b.later()
	b.held("192.168.50.0/24", "endpoint 192.168.50.1")
}

// A container may have an address that this IPAM has not given: its network has
// another one, on the same subnet.
func TestAddressHeldElsewhere(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.ends[netip.MustParseAddr("192.168.50.1")] = "endpoint e"
	b.ends[netip.MustParseAddr("192.168.50.3")] = "endpoint f"
	b.gets(id, "gw", "192.168.50.2/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.2"))
	b.gets(id, "", "192.168.50.4/24")
	b.refused(id, "192.168.50.1", "held by endpoint e")
	b.refused(id, "192.168.50.3", "held by endpoint f")
	clear(b.ends)
	b.ends[netip.MustParseAddr("192.168.50.4")] = "endpoint g"
	b.restart()
	b.later()
	b.held("192.168.50.0/24", "gateway 192.168.50.2", "endpoint 192.168.50.4")
}

// While a network is created beside another one, the two cannot be told apart:
// what belongs to the one must survive what happens to the other.
func TestCreationBesideRemoval(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "gw", "192.168.50.1/24")
	b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.1"))
	b.pool("192.168.50.0/24", "") // of n2
	b.gets(id, "gw", "192.168.50.1/24")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
	b.free(id, "192.168.50.1")
	b.release(id)
	b.delete("n1")
	b.later()
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "reserved 192.168.50.9")
	b.NetworkCreated("n2", network("192.168.50.0/24", "192.168.50.1", "192.168.50.9"))
	b.later()
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "reserved 192.168.50.9")
}

// The driver of a network may be another one: its endpoints are unknown here.
func TestForeignNetworks(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "gw", "192.168.50.1/24")
	b.pool("192.168.50.0/24", "")
	b.gets(id, "gw", "192.168.50.1/24")
	b.gets(id, "192.168.50.7", "192.168.50.7/24")
	b.gets(id, "", "192.168.50.2/24")
	b.restart()
	b.later()
	b.Daemon() // swarm init
	b.later()
	b.free(id, "192.168.50.1")
	b.release(id) // of one
	b.later()
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "endpoint 192.168.50.2", "reserved 192.168.50.7")
	b.free(id, "192.168.50.7")
	b.free(id, "192.168.50.2")
	b.free(id, "192.168.50.1")
	b.release(id)
	b.held()
}

// dockerd was killed between the request for a pool and the network's creation.
func TestStillbornNetwork(t *testing.T) {
	for _, restart := range []bool{false, true} {
		b := newBench(t)
		id := b.pool("192.168.50.0/24", "")
		b.gets(id, "gw", "192.168.50.1/24")
		_, err := b.RequestPool(t.Context(), poolRequest("192.168.0.0/16", ""))
		wantError(t, err, "overlaps 192.168.50.0/24")
		if b.clear(); restart {
			b.restart()
		} else {
			b.held("192.168.50.0/24", "gateway 192.168.50.1")
		}
		b.later()
		b.held()
	}
}

// A creation that was cut off is not taken for one that goes on, when the next
// one is over: a container may not share what networks reserve.
func TestCreationCutOff(t *testing.T) {
	for _, dockerd := range []bool{false, true} {
		b := newBench(t)
		id := b.pool("192.168.50.0/24", "")
		if dockerd {
			b.Daemon()
			b.pass(replayWithin)
		} else {
			b.pass(b.grace)
		}
		b.pool("192.168.50.0/24", "")
		b.gets(id, "gw", "192.168.50.1/24")
		b.NetworkCreated("n1", network("192.168.50.0/24", "192.168.50.1"))
		b.refused(id, "192.168.50.1", "the gateway of network n1")
	}
}

// Of two creations at a time the one begun later is over first: what the other one
// has asked for is not left behind.
func TestCreationOverTaken(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n1", network("192.168.50.0/24"))
	b.pool("192.168.50.0/24", "")
	b.gets(id, "gw", "192.168.50.1/24")
	b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n3", network("192.168.50.0/24"))
	b.refused(id, "192.168.50.1", "the gateway of a network being created")
	b.NetworkCreated("n2", network("192.168.50.0/24", "192.168.50.1"))
	b.refused(id, "192.168.50.1", "the gateway of network n2")
}

func TestReservationMeetsContainer(t *testing.T) {
	b := newBench(t)
	log, hook := test.NewNullLogger()
	b.log = logrus.NewEntry(log)
	id := b.pool("192.168.50.0/24", "")
	b.NetworkCreated("n1", network("192.168.50.0/24"))
	b.gets(id, "", "192.168.50.1/24")
	b.ends[netip.MustParseAddr("192.168.50.1")] = "endpoint e"
	b.Daemon() // plugin enable, and at once a creation that looks like a replay
	b.pool("192.168.50.0/24", "")
	b.gets(id, "192.168.50.1", "192.168.50.1/24")
	b.NetworkCreated("n2", network("192.168.50.0/24", "192.168.50.1"))
	if e := hook.LastEntry(); e == nil || !strings.Contains(e.Message, "held by endpoint e") {
		t.Errorf("log %+v", e)
	}
	b.free(id, "192.168.50.1")
	b.release(id)
	b.delete("n2")
	b.refused(id, "192.168.50.1", "held by endpoint e")
	if refs := b.Snapshot().Pools[0].Refs; refs != 1 {
		t.Errorf("%d references, want 1", refs)
	}
}

func TestUnreadableRecords(t *testing.T) {
	for name, c := range map[string]store.Change{
		"pools/ten":                     {Bucket: poolBucket, Key: []byte("ten"), Value: []byte("{}")},
		"pools/10.0.0.0/8":              {Bucket: poolBucket, Key: []byte("10.0.0.0/8"), Value: []byte("7")},
		"addresses/10.0.0.0/8 10.0.0.1": {Bucket: addressBucket, Key: []byte("10.0.0.0/8 10.0.0.1"), Value: []byte("{}")},
		"addresses/x":                   {Bucket: addressBucket, Key: []byte("x"), Value: []byte("{}")},
		"ipam/ula":                      {Bucket: ownBucket, Key: []byte("ula"), Value: []byte("1")},
	} {
		b := newBench(t)
		if err := b.store.Apply(c); err != nil {
			t.Fatal(err)
		}
		_, err := New(b.store, nil, Config{})
		wantError(t, err, "state record "+name)
	}
}
