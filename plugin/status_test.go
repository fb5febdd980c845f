package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	wire "github.com/docker/go-plugins-helpers/ipam"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"underlay/driver"
	"underlay/ipam"
)

func heard(b *bench, addr string) {
	b.plugin.parts.ipam.Heard(ipam.Sighting{Link: "eth0", Addr: netip.MustParseAddr(addr), MAC: []byte{2, 0, 0, 0, 0, 9}})
}

// kinds are addresses and what is told of them.
func kinds(as []Address) map[string]string {
	of := map[string]string{}
	for _, a := range as {
		key := a.Address.String()
		if a.Last.IsValid() {
			key += "-" + a.Last.String()
		}
		of[key] = string(a.Kind)
		for _, more := range []string{a.Name, a.Conflict, a.Note} {
			if more != "" {
				of[key] += " " + more
			}
		}
		if a.Endpoint != "" {
			of[key] += " of " + driver.Short(a.Endpoint)
		}
	}
	return of
}

func TestAddresses(t *testing.T) {
	b := newBench(t)
	b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.2/24"))
	p := must[wire.RequestPoolResponse](b, "IpamDriver.RequestPool", object{"Pool": "192.168.50.0/24", "Options": object{"exclude": "192.168.50.9-192.168.50.11,192.168.50.30", "reserve": "db=192.168.50.20"}})
	must[object](b, "IpamDriver.RequestAddress", object{"PoolID": p.PoolID, "Address": "192.168.50.1", "Options": object{typeKey: gatewayValue}})
	must[object](b, "NetworkDriver.CreateNetwork", createNetwork(dockerID(1), p.Pool, "192.168.50.1", object{"parent": "eth0"}))
	b.run(dockerID(1), p.PoolID, 2)
	b.end(dockerID(1), p.PoolID, 3, b.run(dockerID(1), p.PoolID, 3))
	heard(b, "192.168.50.3") // the container's
	heard(b, "192.168.50.40")
	heard(b, "192.168.50.10") // in what is excluded
	want := map[string]string{
		"192.168.50.1": "gateway", "192.168.50.2": "host an address of this host (eth0)",
		"192.168.50.3": "dynamic 02:00:00:00:00:09 of 000000000002", "192.168.50.4": "resting", "192.168.50.20": "reserved db",
		"192.168.50.9-192.168.50.11": "excluded", "192.168.50.10": "squatter", "192.168.50.30": "excluded", "192.168.50.40": "squatter",
	}
	all := must[Addresses](b, "Underlay.Addresses", object{})
	if d := cmp.Diff(want, kinds(all.Addresses)); d != "" || all.Next.IsValid() {
		t.Errorf("addresses (-want +got): %s", d)
	}
	// The counts say the same.
	u := must[Status](b, "Underlay.Status", nil).Pools[0]
	if u.Containers != 1 || u.Gateways != 1 || u.Reserved != 2 || u.Excluded.Int64() != 4 || u.Others != 1 || u.Resting != 1 || u.Free.Int64() != 254-10 || u.Conflicts != 1 {
		t.Errorf("counts: %+v", u)
	}
	// Page by page, it is the same.
	for most := 1; most < 10; most++ {
		var paged []Address
		req := AddressesRequest{Most: most}
		for pages := 0; ; pages++ {
			page := must[Addresses](b, "Underlay.Addresses", req)
			paged = append(paged, page.Addresses...)
			if req.After = page.Next; !req.After.IsValid() {
				break
			}
			if pages > 20 {
				t.Fatalf("there is no end: %v", page)
			}
		}
		if len(paged) != len(all.Addresses) {
			t.Errorf("%d a page: %d addresses, want %d", most, len(paged), len(all.Addresses))
		}
	}
	part := must[Addresses](b, "Underlay.Addresses", object{"subnet": "192.168.50.16/28"})
	if d := cmp.Diff(map[string]string{"192.168.50.20": "reserved db", "192.168.50.30": "excluded"}, kinds(part.Addresses)); d != "" {
		t.Errorf("a part (-want +got): %s", d)
	}
	// Of a range that is excluded, that is told of which is asked about.
	for part, want := range map[string]map[string]string{
		"192.168.50.8/30":   {"192.168.50.9-192.168.50.11": "excluded", "192.168.50.10": "squatter"},
		"192.168.50.10/31":  {"192.168.50.10": "squatter", "192.168.50.10-192.168.50.11": "excluded"},
		"192.168.50.8/31":   {"192.168.50.9": "excluded"},
		"192.168.50.9/32":   {"192.168.50.9": "excluded"},
		"192.168.50.11/32":  {"192.168.50.11": "excluded"},
		"192.168.50.12/32":  {},
		"192.168.50.128/25": {},
		"192.168.0.0/16":    want,
	} {
		got := []Address{}
		for req := (AddressesRequest{Subnet: netip.MustParsePrefix(part), Most: 1}); len(got) <= len(want); {
			page := must[Addresses](b, "Underlay.Addresses", req)
			got = append(got, page.Addresses...)
			if req.After = page.Next; !req.After.IsValid() {
				break
			}
		}
		if d := cmp.Diff(want, kinds(got)); d != "" {
			t.Errorf("%s (-want +got): %s", part, d)
		}
	}
	if _, err := b.call("Underlay.Addresses", object{"subnet": "192.168.51.0/24"}); err == nil || !strings.Contains(err.Error(), "no pool on") {
		t.Errorf("another subnet: %v", err)
	}
	c := must[Conflicts](b, "Underlay.Conflicts", nil).Conflicts
	if len(c) != 1 || c[0].Address.String() != "192.168.50.3" || c[0].MAC != "02:00:00:00:00:09" || c[0].Endpoint != dockerID(2) || c[0].Parent != "eth0" || c[0].Own == "" {
		t.Errorf("conflicts: %+v", c)
	}
}

func TestEndpointPages(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	other, second := b.lan(2, "192.168.60.0/24", "192.168.60.1", object{"parent": "eth0"})
	for n := 10; n < 17; n++ {
		b.run(id, pool, n)
	}
	b.run(other, second, 17)
	for most := 1; most < 9; most++ {
		var got []string
		req := EndpointsRequest{Most: most}
		for {
			page := must[Endpoints](b, "Underlay.Endpoints", req)
			for _, e := range page.Endpoints {
				got = append(got, e.ID)
			}
			if req.After = page.Next; req.After == "" {
				break
			}
		}
		if len(got) != 8 || got[0] != dockerID(10) || got[7] != dockerID(17) {
			t.Errorf("%d a page: %v", most, got)
		}
	}
	if e := must[Endpoints](b, "Underlay.Endpoints", object{"network": other[:12]}).Endpoints; len(e) != 1 || e[0].ID != dockerID(17) {
		t.Errorf("of a network: %+v", e)
	}
	if _, err := b.call("Underlay.Endpoints", object{"network": "beef"}); err == nil || !strings.Contains(err.Error(), "underlay networks lists them") {
		t.Errorf("of none: %v", err)
	}
}

// Each address that is given or taken is told in the log, once.
func TestAudit(t *testing.T) {
	b := newBench(t)
	b.stop()
	var log bytes.Buffer
	b.config.Log = logrus.New()
	b.config.Log.SetOutput(&log)
	b.config.Log.SetFormatter(&logrus.JSONFormatter{})
	b.start()
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	a := must[wire.RequestAddressResponse](b, "IpamDriver.RequestAddress", object{"PoolID": pool, "Options": object{nameKey: "web"}})
	must[object](b, "NetworkDriver.CreateEndpoint", object{"NetworkID": id, "EndpointID": dockerID(2), "Interface": object{"Address": a.Address}})
	b.end(id, pool, 2, a.Address)
	must[object](b, "IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": "192.168.50.1"})
	must[object](b, "IpamDriver.ReleasePool", object{"PoolID": pool})
	must[object](b, "NetworkDriver.DeleteNetwork", object{"NetworkID": id})
	b.stop()
	var got []string
	mac := ""
	for line := range strings.Lines(log.String()) {
		var e struct{ Action, Address, Name, MAC, Pool, Network, Endpoint, For, Level string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Action == "" {
			continue
		}
		if mac == "" {
			mac = e.MAC
		}
		if e.MAC != mac && e.MAC != "" {
			t.Errorf("another MAC: %s", line)
		}
		got = append(got, fmt.Sprint(e.Level, " ", e.Action, " ", e.Address, " ", e.For, e.Name, " ", e.Pool, e.Network, " ", e.Endpoint))
	}
	b.start()
	want := []string{
		"info given 192.168.50.1 gateway 192.168.50.0/24 ",
		"info given 192.168.50.2 web 000000000001 000000000002",
		"info freed 192.168.50.2 web 000000000001 000000000002",
		"info freed 192.168.50.1 gateway 192.168.50.0/24 ",
	}
	if d := cmp.Diff(want, got); d != "" || mac == "" {
		t.Errorf("MAC %q (-want +got): %s\n%s", mac, d, log.String())
	}
}

// At the level debug each call is logged, with what dockerd is answered, and no page
// or export of the state.
func TestDebugLog(t *testing.T) {
	b := newBench(t)
	b.stop()
	var log bytes.Buffer
	b.config.Log = logrus.New()
	b.config.Log.SetOutput(&log)
	b.config.Log.SetFormatter(&logrus.JSONFormatter{})
	b.config.Log.SetLevel(logrus.DebugLevel)
	b.start()
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.run(id, pool, 2)
	for _, call := range []string{"Status", "State", "Networks", "Endpoints", "Addresses", "Conflicts", "Leases", "Export"} {
		must[object](b, "Underlay."+call, object{})
	}
	must[object](b, "Underlay.Addresses", object{"subnet": "192.168.50.0/26"})
	b.stop()
	said := map[string]string{}
	for line := range strings.Lines(log.String()) {
		var e struct{ Call, Msg string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		said[e.Call] = e.Msg
		if strings.HasPrefix(e.Call, "Underlay.") && (strings.Contains(e.Msg, " -> ") || len(e.Msg) > 100) {
			t.Errorf("%s: %s", e.Call, e.Msg)
		}
	}
	b.start()
	if !strings.Contains(said["IpamDriver.RequestAddress"], `-> {"Address":"192.168.50.`) || !strings.Contains(said["Underlay.Addresses"], `"192.168.50.0/26"`) || said["Underlay.Export"] != "{}" {
		t.Errorf("it logs %q", said)
	}
	long := strings.Repeat("a", 3*maxLine)
	if got := exchange("/NetworkDriver.Join", long, long); len(got) > 2*maxLine+20 || !strings.Contains(got, "… -> ") || !strings.HasSuffix(got, "…") {
		t.Errorf("of a long call %d bytes are logged: %.20s", len(got), got)
	}
}
