//go:build browser

package uitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"underlay/driver"
	"underlay/internal/ui"
	"underlay/ipam"
	"underlay/ipam/probe"
	"underlay/plugin"
)

// lan is a plugin that is made up, with an address of each kind.
type lan struct {
	mu        sync.Mutex
	status    plugin.Status
	networks  []driver.NetworkState
	addresses []plugin.Address
	down      string

	known map[string]json.RawMessage // what has been answered since the last change
}

func (l *lan) answer(what string, v any) (json.RawMessage, error) {
	if l.down != "" {
		return nil, errors.New(l.down)
	}
	if text := l.known[what]; text != nil {
		return text, nil
	}
	text, err := json.Marshal(v)
	if l.known == nil {
		l.known = map[string]json.RawMessage{}
	}
	l.known[what] = text
	return text, err
}

func (l *lan) Status(context.Context) (json.RawMessage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answer("status", l.status)
}

func (l *lan) Networks(context.Context) (json.RawMessage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answer("networks", plugin.Networks{Networks: l.networks})
}

func (l *lan) Addresses(context.Context, netip.Addr) (json.RawMessage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answer("addresses", plugin.Addresses{Addresses: l.addresses})
}

// change changes it, with the lock held.
func (l *lan) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = nil
	f()
}

// serve serves the page of a source and returns its address.
func serve(t *testing.T, s ui.Source) string {
	t.Helper()
	page := ui.New(s)
	server := httptest.NewServer(page)
	t.Cleanup(func() {
		page.Close()
		server.Close()
	})
	return server.URL + "/"
}

func id(n int) string { return fmt.Sprintf("%012x%052x", n*0x9e3779b97f4a%0xffffffffffff, n) }

func (l *lan) pool(subnet, parent, router string, size int64) *ipam.PoolUse {
	l.status.Pools = append(l.status.Pools, ipam.PoolUse{
		Subnet: netip.MustParsePrefix(subnet), Parents: []string{parent}, Networks: 1, Conflict: "probe",
		Size: big.NewInt(size), Excluded: new(big.Int), Free: big.NewInt(size),
	})
	u := &l.status.Pools[len(l.status.Pools)-1]
	if router != "" {
		u.Router = netip.MustParseAddr(router)
	}
	return u
}

// add adds an address and counts it.
func (l *lan) add(u *ipam.PoolUse, kind ipam.AddressKind, address, name string, change func(*plugin.Address)) {
	a := plugin.Address{AddressUse: ipam.AddressUse{Address: netip.MustParseAddr(address), Subnet: u.Subnet, Kind: kind, Name: name}}
	n := len(l.addresses)
	switch kind {
	case ipam.Dynamic, ipam.Static, ipam.Leased:
		u.Containers++
		a.Endpoint, a.Network, a.State = id(1000+n), l.networks[0].ID, driver.EndpointRunning
		a.MAC = fmt.Sprintf("02:42:c0:a8:32:%02x", n%256)
		a.Since = time.Now().Add(-time.Duration(n*37+5) * time.Minute)
		if kind == ipam.Leased {
			u.Leased++
		}
	case ipam.Squatter:
		u.Others++
		a.MAC = fmt.Sprintf("b8:27:eb:4a:0c:%02x", n%256)
		a.Since, a.Heard = time.Now().Add(-26*time.Hour), time.Now().Add(-9*time.Second)
	case ipam.Gateway:
		u.Gateways++
	case ipam.Reserved, ipam.OwnHost:
		u.Reserved++
	case ipam.Resting:
		u.Resting++
		a.Since = time.Now().Add(-3 * time.Minute)
	}
	if change != nil {
		change(&a)
	}
	if kind == ipam.Excluded {
		u.Excluded.Add(u.Excluded, big.NewInt(1))
		if a.Last.IsValid() {
			first, last := new(big.Int).SetBytes(a.Address.AsSlice()), new(big.Int).SetBytes(a.Last.AsSlice())
			u.Excluded.Add(u.Excluded, last.Sub(last, first))
		}
	}
	if a.Conflict != "" {
		u.Conflicts++
	}
	u.Free.Sub(u.Size, u.Excluded)
	u.Free.Sub(u.Free, big.NewInt(int64(u.Containers+u.Gateways+u.Others+u.Reserved+u.Resting)))
	l.addresses = append(l.addresses, a)
}

// office is a LAN with all that there may be on one: a /24, a part of a /16, and an
// IPv6 subnet.
func office() *lan {
	l := &lan{networks: []driver.NetworkState{
		{ID: id(1), Mode: "macvlan bridge", Parent: "eth0", State: driver.ParentUp},
		{ID: id(2), Mode: "ipvlan l2", Parent: "bond0.20", State: driver.ParentUp},
	}}
	l.status = plugin.Status{
		Version: "1.0.0", Started: time.Now().Add(-50 * time.Hour), Networks: 2, Endpoints: 58, LANs: []probe.Health{}, DHCP: []plugin.DHCPStatus{},
		Parents: []driver.ParentState{
			{Name: "bond0.20", State: driver.ParentUp, MAC: driver.MAC{0x3c, 0xec, 0xef, 0x12, 0x8a, 0x70}, MTU: 9000, Networks: 1, Endpoints: 20},
			{Name: "eth0", State: driver.ParentUp, MAC: driver.MAC{0x3c, 0xec, 0xef, 0x12, 0x8a, 0x71}, MTU: 1500, Networks: 1, Endpoints: 38},
		},
		Drift:     []string{"Docker shows 192.168.50.61 for a container (mqtt) that has 192.168.50.78 of the DHCP server on eth0; a restart of the container mends it"},
		Reconcile: driver.Reconciled{Left: []string{}},
	}
	l.status.Pools = make([]ipam.PoolUse, 0, 3)
	big16 := l.pool("10.20.0.0/16", "bond0.20", "10.20.0.1", 65534)
	home := l.pool("192.168.50.0/24", "eth0", "192.168.50.1", 254)
	six := l.pool("fd00:210::/64", "eth0", "", 1)
	six.Size.Sub(six.Size.Lsh(six.Size, 64), big.NewInt(1))

	onBond := func(a *plugin.Address) { a.Network = id(2) }
	l.add(big16, ipam.OwnHost, "10.20.0.1", "", func(a *plugin.Address) { a.Note = "the router of bond0.20" })
	l.add(big16, ipam.OwnHost, "10.20.0.2", "", func(a *plugin.Address) { a.Note = "an address of bond0.20" })
	for n := range 16 {
		l.add(big16, ipam.Dynamic, fmt.Sprintf("10.20.0.%d", 3+n), fmt.Sprintf("worker-%d", n+1), onBond)
	}
	l.add(big16, ipam.Squatter, "10.20.0.22", "", nil)
	l.add(big16, ipam.Excluded, "10.20.48.0", "", func(a *plugin.Address) { a.Last = netip.MustParseAddr("10.20.63.255") })
	for n, name := range []string{"registry", "minio", "loki", "grafana"} {
		l.add(big16, ipam.Static, fmt.Sprintf("10.20.128.%d", 10+n), name, onBond)
	}

	l.add(home, ipam.OwnHost, "192.168.50.1", "", func(a *plugin.Address) { a.Note = "the router of eth0" })
	l.add(home, ipam.OwnHost, "192.168.50.2", "", func(a *plugin.Address) { a.Note = "an address of eth0" })
	l.add(home, ipam.Gateway, "192.168.50.3", "", nil)
	for n, name := range []string{"web", "api", "queue", "cache", "mail", "search", "proxy", "auth", "cron", "thumbs", "ci-runner-1", "ci-runner-2", "ci-runner-3", "metrics"} {
		l.add(home, ipam.Dynamic, fmt.Sprintf("192.168.50.%d", 10+n), name, func(a *plugin.Address) {
			switch name {
			case "cache":
				a.State = driver.EndpointStarting
			case "mail":
				a.Conflict, a.Heard = "9c:8e:cd:31:77:04", time.Now().Add(-4*time.Second)
			}
		})
	}
	for _, n := range []int{24, 25, 28} {
		l.add(home, ipam.Resting, fmt.Sprintf("192.168.50.%d", n), fmt.Sprintf("job-%d", n), nil)
	}
	for n, name := range []string{"db", "db-replica", "dns", "ldap"} {
		l.add(home, ipam.Static, fmt.Sprintf("192.168.50.%d", 40+n), name, nil)
	}
	for _, n := range []int{45, 46} {
		l.add(home, ipam.Reserved, fmt.Sprintf("192.168.50.%d", n), fmt.Sprintf("backup-%d", n-44), nil)
	}
	for n, name := range []string{"pihole", "nvr", "mqtt", "home-assistant", "zigbee", "octoprint"} {
		l.add(home, ipam.Leased, fmt.Sprintf("192.168.50.%d", 72+n*3), name, nil)
	}
	for _, n := range []int{33, 100, 101, 107, 113, 120, 131, 134, 150, 172, 201} {
		l.add(home, ipam.Squatter, fmt.Sprintf("192.168.50.%d", n), "", nil)
	}
	l.add(home, ipam.Excluded, "192.168.50.224", "", func(a *plugin.Address) { a.Last = netip.MustParseAddr("192.168.50.254") })
	l.add(six, ipam.OwnHost, "fd00:210::1", "", nil)
	for n, name := range []string{"web", "api", "queue", "db"} {
		l.add(six, ipam.Dynamic, fmt.Sprintf("fd00:210::%x", 10+n), name, nil)
	}
	l.add(six, ipam.Squatter, "fd00:210::ba27:ebff:fe4a:c17", "", nil)
	return l
}

// crowd is a /16 with so many containers, in one row of it after the other.
func crowd(containers, apart int) *lan {
	l := &lan{networks: []driver.NetworkState{{ID: id(1), Mode: "macvlan bridge", Parent: "eth0", State: driver.ParentUp}}}
	l.status = plugin.Status{Version: "1.0.0", Networks: 1, Endpoints: containers, Reconcile: driver.Reconciled{Left: []string{}}}
	l.status.Pools = make([]ipam.PoolUse, 0, 1)
	u := l.pool("10.0.0.0/16", "eth0", "10.0.0.1", 65534)
	for n := range containers {
		at := 2 + n*apart
		l.add(u, ipam.Dynamic, fmt.Sprintf("10.0.%d.%d", at>>8, at&255), fmt.Sprintf("c%d", n), nil)
	}
	return l
}
