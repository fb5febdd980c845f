package ipam

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestReleaseByHand(t *testing.T) {
	b := newBench(t)
	pool := b.pool("192.168.50.0/24", "")
	b.gets(pool, "gw 192.168.50.1", "192.168.50.1/24")
	subnet := netip.MustParsePrefix("192.168.50.0/24")
	b.NetworkCreated("net", NetworkPools{Subnets: []netip.Prefix{subnet}, Reserved: []netip.Addr{netip.MustParseAddr("192.168.50.1")}, Parent: "eth0"})
	a := netip.MustParseAddr("192.168.50.2")
	b.gets(pool, "", "192.168.50.2/24")
	b.gets(pool, "192.168.50.9", "192.168.50.9/24")
	refused := func(addr, want string) {
		t.Helper()
		before := b.Snapshot()
		err := b.Release(t.Context(), netip.MustParseAddr(addr))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
		if after := b.Snapshot(); len(after.Pools) != 1 || after.Pools[0].Held != before.Pools[0].Held {
			t.Errorf("%s: refused, and held are %+v", addr, after)
		}
	}
	refused("10.0.0.1", "in no pool")
	refused("192.168.50.77", "is not held")
	refused("192.168.50.1", "is the gateway of network net; docker network rm")
	refused("192.168.50.2", "may be on its way; try again in 1m0s")
	b.ends[a] = "endpoint one of network net"
	b.pass(time.Hour)
	refused("192.168.50.2", "is live: endpoint one of network net has it; stop that container")
	// dockerd asks again for what it holds.
	b.Daemon()
	b.pool("192.168.50.0/24", "")
	refused("192.168.50.9", "may be live")
	b.pass(time.Minute + time.Second)
	delete(b.ends, a)
	if err := b.Release(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	refused("192.168.50.2", "is free already")
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "endpoint 192.168.50.9")
	b.restart()
	b.held("192.168.50.0/24", "gateway 192.168.50.1", "endpoint 192.168.50.9")
	b.Heard(Sighting{Link: "eth0", Addr: a, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}})
	refused("192.168.50.2", "is no container's: 02:00:00:00:00:09 has it on the LAN")
	// One more network of dockerd's, of which the driver has not heard.
	b.pass(time.Hour)
	b.pool("192.168.50.0/24", "")
	refused("192.168.50.9", "a network on 192.168.50.0/24 that underlay does not know")
}

// A range that is excluded, IPv6 and all: the counts are right where they are large.
func TestPoolUse(t *testing.T) {
	b := newBench(t)
	subnet := netip.MustParsePrefix("fd00::/64")
	p, err := b.RequestPool(t.Context(), PoolRequest{Subnet: subnet, V6: true, Options: map[string]string{"exclude": "fd00::1:0/112,fd00::5", "reserve": "db=fd00::20"}})
	if err != nil {
		t.Fatal(err)
	}
	b.NetworkCreated("net", NetworkPools{Subnets: []netip.Prefix{subnet}, Parent: "eth0"})
	for _, addr := range []string{"fd00::5", "fd00::20", "fd00::2"} {
		if _, err := b.RequestAddress(t.Context(), AddressRequest{PoolID: p.ID, Addr: netip.MustParseAddr(addr), Gateway: addr == "fd00::5", Name: "db"}); err != nil {
			t.Fatal(err)
		}
	}
	b.free(p.ID, "fd00::2")
	u := b.Pools()[0]
	// 2^64 less the subnet-router anycast address.
	if u.Size.String() != "18446744073709551615" || u.Excluded.String() != "65536" || u.Gateways != 1 || u.Containers != 1 || u.Reserved != 0 || u.Resting != 1 ||
		u.Free.String() != "18446744073709486076" {
		t.Errorf("%+v", u)
	}
}

// What is left of a range is told, beside what is left of the pool.
func TestPoolUseOfRanges(t *testing.T) {
	b := newBench(t)
	ranges := func() string {
		var words []string
		for _, r := range b.Pools()[0].Ranges {
			words = append(words, fmt.Sprintf("%v: %v of %v, %d rest", r.Range, r.Free, r.Size, r.Resting))
		}
		return strings.Join(words, "; ")
	}
	request := func(within string, options map[string]string) string {
		p, err := b.RequestPool(t.Context(), PoolRequest{Subnet: netip.MustParsePrefix("192.168.50.0/24"), Range: netip.MustParsePrefix(within), Options: options})
		if err != nil {
			t.Fatal(err)
		}
		return p.ID
	}
	small := request("192.168.50.64/30", nil)
	for range 4 {
		if _, err := b.RequestAddress(t.Context(), AddressRequest{PoolID: small}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.RequestAddress(t.Context(), AddressRequest{PoolID: small}); err == nil {
		t.Fatal("there is a fifth of four")
	}
	if got, u := ranges(), b.Pools()[0]; got != "192.168.50.64/30: 0 of 4, 0 rest" || u.Free.String() != "250" || u.Containers != 4 {
		t.Errorf("%s of %+v", got, u)
	}
	b.free(small, "192.168.50.66")
	request("192.168.50.0/25", map[string]string{"exclude": "192.168.50.1-192.168.50.9,192.168.50.200"})
	if got, want := ranges(), "192.168.50.0/25: 114 of 127, 1 rest; 192.168.50.64/30: 0 of 4, 1 rest"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := b.RequestPool(t.Context(), PoolRequest{Subnet: netip.MustParsePrefix("192.168.50.0/24")}); err != nil {
		t.Fatal(err)
	}
	if got, want := ranges(), "192.168.50.0/24: 240 of 254, 1 rest; 192.168.50.0/25: 114 of 127, 1 rest; 192.168.50.64/30: 0 of 4, 1 rest"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
