package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

const wait = 240 * time.Millisecond

// all is every address of 10.9.0.0/24 that a machine may have.
func all() (as []netip.Addr) {
	for i := 1; i < 255; i++ {
		as = append(as, netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}))
	}
	return as
}

// squatters are hosts with 100 addresses of 10.9.0.0/24, ten each.
func squatters(l *lan) map[netip.Addr]string {
	who := map[netip.Addr]string{}
	for h := range 10 {
		var mine []string
		for i := range 10 {
			mine = append(mine, fmt.Sprintf("10.9.0.%d/24", 2+h*25+i))
		}
		s := l.host(mine...)
		for _, a := range mine {
			who[netip.MustParsePrefix(a).Addr()] = s.mac("eth0").String()
		}
	}
	return who
}

func (p *prober) probe(t testing.TB, as ...netip.Addr) map[netip.Addr]net.HardwareAddr {
	t.Helper()
	start := time.Now()
	used, err := p.Probe(context.Background(), "eth0", as, wait)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 2*time.Second { // the machine may be busy
		t.Errorf("took %s", took)
	}
	return used
}

func TestSquatters(t *testing.T) {
	l := newLAN(t)
	who := squatters(l)
	me := l.host() // no address on the link
	me.Set("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")
	p := me.prober()
	p.Watch([]string{"eth0"})
	for round := range 20 {
		used := p.probe(t, all()...)
		for a, mac := range who {
			if used[a].String() != mac {
				t.Fatalf("round %d: %s is at %q, not %q", round, a, used[a], mac)
			}
		}
		if len(used) != len(who) {
			t.Fatalf("round %d: %d in use, want %d", round, len(used), len(who))
		}
	}
	for a := range who {
		if n := p.saw(Sighting{Link: "eth0", Addr: a, MAC: hw(t, who[a])}); n == 0 {
			t.Errorf("no word of %s", a)
		}
	}
	if bad := p.log.AllEntries(); len(bad) > 0 {
		t.Error(bad[0].Message)
	}
}

func hw(t testing.TB, mac string) net.HardwareAddr {
	t.Helper()
	m, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNeighbours(t *testing.T) {
	l := newLAN(t)
	who := l.host("fd00:9::5/64", "2001:db8::5/64", "10.9.0.5/24")
	me := l.host()
	me.Set("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")
	p := me.prober()
	used := p.probe(t, addrs("fd00:9::5", "fd00:9::6", "2001:db8::5", "10.9.0.5", "10.9.0.6", "10.9.0.5")...)
	if len(used) != 3 {
		t.Errorf("in use: %v", used)
	}
	for _, a := range addrs("fd00:9::5", "2001:db8::5", "10.9.0.5") {
		if used[a].String() != who.mac("eth0").String() {
			t.Errorf("%s is at %q", a, used[a])
		}
	}
}

func TestEarly(t *testing.T) {
	l := newLAN(t)
	l.host("10.9.0.5/24")
	p := l.host().prober()
	start := time.Now()
	if used, err := p.Probe(context.Background(), "eth0", addrs("10.9.0.5"), time.Minute); err != nil || len(used) != 1 {
		t.Error(used, err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Error("all have answered, and yet it took", took)
	}
	if used, err := p.Probe(context.Background(), "eth0", nil, time.Minute); err != nil || len(used) != 0 {
		t.Error(used, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // the machine may be busy
	defer cancel()
	used, err := p.Probe(ctx, "eth0", addrs("10.9.0.5", "10.9.0.6"), time.Minute)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrBlind) || len(used) != 1 {
		t.Error(used, err)
	}
}
