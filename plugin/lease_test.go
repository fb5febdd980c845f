package plugin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/driver"
	"underlay/internal/mode"
	"underlay/internal/options"
	"underlay/internal/store"
	"underlay/ipam"
	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
	"underlay/ipam/lease"
	"underlay/netlinkutil/fake"
)

// server4 gives one address, server6 none.
type server4 struct{}

func (server4) Acquire(_ context.Context, a dhcp.Ask) (dhcp.Lease, error) {
	return dhcp.Lease{Ask: a, Terms: dhcp.Terms{Addr: netip.MustParsePrefix("192.168.50.100/24")}, Granted: time.Now()}, nil
}
func (server4) Discover(context.Context, dhcp.Ask) (dhcp.Terms, error) { return dhcp.Terms{}, nil }
func (server4) Restore([]dhcp.Lease) error                             { return nil }
func (server4) Release(string)                                         {}
func (server4) Forget(string)                                          {}
func (server4) Decline(string, string)                                 {}

type server6 struct{}

func (server6) Acquire(context.Context, dhcp6.Ask) (dhcp6.Lease, error) {
	return dhcp6.Lease{}, dhcp6.ErrNoServer
}
func (server6) Restore([]dhcp6.Lease) error { return nil }
func (server6) Release(string)              {}
func (server6) Forget(string)               {}
func (server6) Decline(string, error)       {}

// leasing is a driver on eth0 and eth1 and a book of those servers.
func leasing(t *testing.T) *parts {
	t.Helper()
	k := fake.New()
	k.AddNIC("eth0")
	k.AddNIC("eth1")
	st, err := store.Open(t.TempDir() + "/state.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	log := logrus.New()
	log.SetOutput(io.Discard)
	o := &parts{kernel: k, store: st}
	o.book, err = lease.Open(lease.Config{
		Client: server4{}, Client6: server6{}, Store: st, Log: logrus.NewEntry(log),
		Changed: func(lease.Entry) {}, Own: func(string, netip.Addr) string { return "" },
	})
	if err != nil {
		t.Fatal(err)
	}
	o.ipam, err = ipam.New(st, nil, ipam.Config{Log: logrus.NewEntry(log)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.ipam.Close)
	o.driver, err = driver.New(k, st, driver.Config{Holdings: &holdings{o.ipam, o.book}, Log: log, Leaser: &leaser{o.book, k}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.driver.Close)
	return o
}

// The IPAM hears which address of IPv4 is spent by a failure of IPv6.
func TestLeaseSpent(t *testing.T) {
	o := leasing(t)
	four, six := netip.MustParsePrefix("192.168.50.0/24"), netip.MustParsePrefix("fd00:50::/64")
	n := driver.Network{
		ID: dockerID(1), Options: options.Network{Parent: "eth0", Mode: mode.Default},
		Subnets: []driver.Subnet{{Prefix: four}, {Prefix: six}},
	}
	if err := o.driver.CreateNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	l := leases{o.book, o.driver, o.kernel}
	both := options.DHCP{V4: true, V6: true, Timeout: time.Second}
	addr, err := l.Take(t.Context(), ipam.LeaseRequest{Subnet: four, Pool: "four", Name: "web", DHCP: both})
	if err != nil {
		t.Fatal(err)
	}
	if spent, err := l.Take(t.Context(), ipam.LeaseRequest{Subnet: six, Pool: "six", Name: "db", DHCP: both}); spent.IsValid() || !errors.Is(err, dhcp6.ErrNoServer) {
		t.Errorf("of another container: %v, %v", spent, err)
	}
	if spent, err := l.Take(t.Context(), ipam.LeaseRequest{Subnet: six, Pool: "six", Name: "web", DHCP: both}); spent != addr || !errors.Is(err, dhcp6.ErrNoServer) {
		t.Errorf("%v, %v; want %v", spent, err, addr)
	}
}

// A container of this host has an address on its own LAN, and not on another of the
// same subnet.
func TestInUseOnThisHost(t *testing.T) {
	o := leasing(t)
	for i, parent := range []string{"eth0", "eth1"} {
		n := driver.Network{ID: dockerID(i + 1), Options: options.Network{Parent: parent, Mode: mode.Default, DHCP: options.DHCP{V4: true, Timeout: time.Second}}}
		if err := o.driver.CreateNetwork(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	e, err := o.driver.TakeLease(t.Context(), driver.Endpoint{ID: dockerID(3), NetworkID: dockerID(1)}, options.Endpoint{})
	if err != nil {
		t.Fatal(err)
	}
	mac, err := o.driver.CreateEndpoint(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	another := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, tt := range []struct {
		link string
		mac  net.HardwareAddr
		used bool
	}{
		{"eth0", another, true},
		{"eth0", net.HardwareAddr(mac), false},
		{"eth1", another, false},
	} {
		has, err := o.inUse(t.Context(), tt.link, e.IPv4.Addr(), tt.mac)
		if err != nil || (has != nil) != tt.used || tt.used && has.String() != mac.String() {
			t.Errorf("asked by %v on %s: %v, %v", tt.mac, tt.link, has, err)
		}
	}
}
