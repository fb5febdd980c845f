package driver

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"underlay/internal/mode"
)

// loudspeaker notes what is announced.
type loudspeaker struct {
	start time.Time

	mu      sync.Mutex
	said    []string
	answers map[string][]netip.Addr
}

func (l *loudspeaker) Answer(addrs map[string][]netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = addrs
}

func (l *loudspeaker) Announce(link string, addr netip.Addr, mac net.HardwareAddr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, fmt.Sprintf("%v %s %v %v", time.Since(l.start), link, addr, mac))
	return nil
}

func (l *loudspeaker) heardAnswers() map[string][]netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers
}

// heard wants this to be all that was announced since it was asked last.
func (l *loudspeaker) heard(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.said, want) {
		t.Errorf("announced %q, want %q", l.said, want)
	}
	l.said = nil
}

func TestAnnouncements(t *testing.T) {
	const arrival = 300 * time.Millisecond
	l3 := mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "bridge"}
	l2 := mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}
	for _, tt := range []struct {
		name   string
		n      Network
		silent bool
		mac    string
	}{
		{name: "macvlan", n: lan("a", "eth0", mode.Default), mac: "02:11:22:33:44:55"},
		{name: "ipvlan l2", n: lan("a", "eth0", l2)},
		{name: "ipvlan l3: the LAN does not know it", n: lan("a", "eth0", l3), silent: true},
		{name: "no parent", n: lan("a", "", mode.Default), silent: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				say := &loudspeaker{}
				b.announcer = say
				b.restart()
				defer b.Close()
				b.create(tt.n)
				e := on("a", "e", 70)
				if tt.mac != "" {
					mac, _ := net.ParseMAC(tt.mac)
					e.MAC = MAC(mac)
				}
				if _, err := b.CreateEndpoint(ctx, e); err != nil {
					t.Fatal(err)
				}
				link := linkName(e.ID)
				join := func() {
					t.Helper()
					if _, err := b.Join(ctx, e.NetworkID, e.ID, "/var/run/docker/netns/"+e.ID[:12]); err != nil {
						t.Fatal(err)
					}
				}
				each := func(at time.Duration) []string {
					if tt.silent {
						return nil
					}
					return []string{
						fmt.Sprintf("%v eth0 192.168.50.70 %s", at, tt.mac), fmt.Sprintf("%v eth0 fd00:50::46 %s", at, tt.mac),
					}
				}
				say.start = time.Now()
				join()
				say.heard(t)
				if err := b.kernel.Take(link); err != nil {
					t.Fatal(err)
				}
				time.Sleep(arrival)
				say.heard(t) // not before it is up
				if err := b.kernel.Arrive(link); err != nil {
					t.Fatal(err)
				}
				say.heard(t, each(arrival)...)
				time.Sleep(time.Second)
				say.heard(t, each(arrival+time.Second)...)
				time.Sleep(time.Second)
				say.heard(t, each(arrival+2*time.Second)...)
				time.Sleep(time.Minute)
				say.heard(t)

				// One that leaves is announced no more.
				if err := b.kernel.Return(link); err != nil {
					t.Fatal(err)
				}
				join()
				say.start = time.Now()
				if err := b.kernel.Move(link); err != nil {
					t.Fatal(err)
				}
				say.heard(t, each(0)...)
				if err := b.Leave(ctx, e.NetworkID, e.ID); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				say.heard(t)

				// Nor is one that never arrives.
				if err := b.kernel.Return(link); err != nil {
					t.Fatal(err)
				}
				join()
				if err := b.DeleteEndpoint(ctx, e.NetworkID, e.ID); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				say.heard(t)
				if len(b.presences) != 0 {
					t.Errorf("left: %v", b.presences)
				}
			})
		})
	}
}
