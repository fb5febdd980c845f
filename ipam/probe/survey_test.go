package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// All who answer are heard, each for what was asked, and nothing of it stays.
func TestSurvey(t *testing.T) {
	l := newLAN(t)
	me := l.host("10.9.0.2/24")
	one := l.host("10.9.0.1/24", "10.9.0.7/24", "fd00:9::1/64")
	two := l.host("10.9.0.1/24", "fd00:9::1/64")
	asker := net.HardwareAddr{2, 9, 9, 9, 9, 9}
	questions := []Question{
		{Addr: netip.MustParseAddr("10.9.0.1")},
		{Addr: netip.MustParseAddr("10.9.0.7"), From: asker},
		{Addr: netip.MustParseAddr("10.9.0.9")},
		{Addr: netip.MustParseAddr("fd00:9::1")},
		{Addr: netip.MustParseAddr("10.9.0.2")}, // its own, that nobody else has
	}
	a, err := me.kernel().survey(context.Background(), "eth0", questions, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	both := []string{one.mac("eth0").String(), two.mac("eth0").String()}
	slices.Sort(both)
	for i, want := range [][]string{both, {one.mac("eth0").String()}, nil, both, nil} {
		var got []string
		for _, m := range a.MACs[i] {
			got = append(got, m.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s by %s: %v, want %v", questions[i].Addr, questions[i].From, got, want)
		}
	}
	if len(a.Routers) != 0 {
		t.Errorf("routers %v", a.Routers)
	}
	if got := one.output("-4", "neigh"); got != "" {
		t.Errorf("a neighbour remembers: %s", got)
	}
}

// A filter of MACs at the switch's port shows by what is asked with another MAC.
func TestSurveyFiltered(t *testing.T) {
	l := newLAN(t)
	me := l.host("10.9.0.2/24")
	l.host("10.9.0.1/24")
	l.bridge("link", "set", "dev", "port1", "learning", "off", "locked", "on")
	l.bridge("fdb", "replace", me.mac("eth0").String(), "dev", "port1", "master", "static")
	addr := netip.MustParseAddr("10.9.0.1")
	a, err := me.kernel().survey(context.Background(), "eth0", []Question{{Addr: addr}, {Addr: addr, From: net.HardwareAddr{2, 9, 9, 9, 9, 9}}}, time.Second)
	if err != nil || len(a.MACs[0]) != 1 || len(a.MACs[1]) != 0 {
		t.Errorf("%v, %v; want one answer to its own MAC alone", a.MACs, err)
	}
}

func TestSurveyBlind(t *testing.T) {
	l := newLAN(t)
	me := l.host("10.9.0.2/24")
	ask := func(link string, q ...Question) error {
		_, err := me.kernel().survey(context.Background(), link, q, time.Millisecond)
		return err
	}
	for link, want := range map[string]string{"eth7": "eth7 is not there: ", "lo": "lo has no MAC address: "} {
		if err := ask(link); !errors.Is(err, ErrBlind) || err.Error() != want+ErrBlind.Error() {
			t.Errorf("%s: %v", link, err)
		}
	}
	me.IP("link set eth0 down")
	if err := ask("eth0"); !errors.Is(err, ErrBlind) {
		t.Error(err)
	}
	me.IP("link set eth0 up")
	me.running("eth0")
	if err := ask("eth0", Question{Addr: netip.MustParseAddr("fd00::1"), From: net.HardwareAddr{2, 0, 0, 0, 0, 1}}); err == nil || errors.Is(err, ErrBlind) {
		t.Errorf("IPv6 with another MAC: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if _, err := me.kernel().survey(ctx, "eth0", nil, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRouterAdvertisement(t *testing.T) {
	b := make([]byte, etherLen+ip6Len+16)
	b[12], b[13] = 0x86, 0xdd
	ip := b[etherLen:]
	ip[6], ip[7], ip[ip6Len], ip[ip6Len+7] = icmp6, 255, 134, 30
	copy(ip[8:24], netip.MustParseAddr("fe80::7").AsSlice())
	if from, ok := routerAdvertisement(b); !ok || from.String() != "fe80::7" {
		t.Errorf("%v, %v", from, ok)
	}
	for at, v := range map[int]byte{12: 8, etherLen + 6: 6, etherLen + 7: 64, etherLen + ip6Len: 133, etherLen + ip6Len + 7: 0} {
		c := slices.Clone(b)
		c[at] = v
		if _, ok := routerAdvertisement(c); ok {
			t.Errorf("byte %d as %d is taken", at, v)
		}
	}
	for n := range b {
		routerAdvertisement(b[:n]) // short ones are no harm
	}
}
