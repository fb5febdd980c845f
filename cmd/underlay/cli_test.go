package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"go.yaml.in/yaml/v3"

	"underlay/driver"
	"underlay/internal/doctor"
	"underlay/ipam"
	"underlay/netlinkutil"
	"underlay/netlinkutil/fake"
	"underlay/plugin"
)

var update = flag.Bool("update", false, "write what is printed as what is to be printed")

// epoch is when everything happens.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// host is a plugin on a pretend kernel, of which dockerd has asked for some things.
type host struct {
	t      *testing.T
	kernel *fake.Kernel
	folder string
	config plugin.Config
	client *http.Client
	end    func()
}

func newHost(t *testing.T) *host {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	h := &host{t: t, kernel: fake.New(), folder: t.TempDir()}
	// The names are no link's of a machine that tests run on.
	h.kernel.AddNIC("lan0")
	h.kernel.AddNIC("lan1")
	h.kernel.AddAddress("lan0", netip.MustParsePrefix("192.168.50.2/24"))
	h.kernel.AddAddress("lan1", netip.MustParsePrefix("192.168.60.2/24"))
	h.config = plugin.Config{
		Socket: filepath.Join(h.folder, "u.sock"), State: filepath.Join(h.folder, "state"), Version: "1.2.3", Log: quiet, Kernel: h.kernel,
		Now: func() time.Time { return epoch },
	}
	return h
}

func (h *host) serve() {
	h.t.Helper()
	p, err := plugin.Listen(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve() }()
	h.client = plugin.Client(h.config.Socket)
	ended := false
	h.end = func() {
		if ended {
			return
		}
		ended = true
		h.client.CloseIdleConnections()
		if err := p.Close(); err != nil {
			h.t.Error(err)
		}
		if err := <-served; err != nil {
			h.t.Error(err)
		}
	}
	h.t.Cleanup(h.end)
}

type object = map[string]any

// call is one of dockerd's, which must succeed.
func (h *host) call(name string, req object) (res struct{ PoolID, Address string }) {
	h.t.Helper()
	if err := plugin.Call(h.t.Context(), h.client, "/"+name, req, &res); err != nil {
		h.t.Fatalf("%s: %v", name, err)
	}
	return res
}

func dockerID(n int) string { return strings.Repeat(fmt.Sprintf("%04x", n), 16) }

// network makes one and returns its pool.
func (h *host) network(n int, subnet, gateway string, ipamOptions, options object, aux ...string) (pool string) {
	h.t.Helper()
	pool = h.call("IpamDriver.RequestPool", object{"Pool": subnet, "Options": ipamOptions}).PoolID
	bits := subnet[strings.IndexByte(subnet, '/'):]
	data := object{"AddressSpace": "underlay", "Pool": subnet}
	if gateway != "" {
		h.call("IpamDriver.RequestAddress", object{"PoolID": pool, "Address": gateway, "Options": object{"RequestAddressType": "com.docker.network.gateway"}})
		data["Gateway"] = gateway + bits
	}
	given := object{}
	for i, a := range aux {
		h.call("IpamDriver.RequestAddress", object{"PoolID": pool, "Address": a})
		given[fmt.Sprint("aux", i)] = a + bits
	}
	data["AuxAddresses"] = given
	h.call("NetworkDriver.CreateNetwork", object{
		"NetworkID": dockerID(n), "Options": object{"com.docker.network.generic": options}, "IPv4Data": []object{data}, "IPv6Data": []object{},
	})
	return pool
}

// start makes the calls of a container's start, and has its link moved.
func (h *host) start(network, n int, pool, name, address string) (given string) {
	h.t.Helper()
	req := object{"PoolID": pool, "Address": address}
	if name != "" {
		req["Options"] = object{"com.docker.network.endpoint.name": name}
	}
	given = h.call("IpamDriver.RequestAddress", req).Address
	ids := object{"NetworkID": dockerID(network), "EndpointID": dockerID(n), "SandboxKey": fmt.Sprintf("%s/%012x", fake.SandboxDir, n)}
	h.call("NetworkDriver.CreateEndpoint", object{"NetworkID": dockerID(network), "EndpointID": dockerID(n), "Interface": object{"Address": given}})
	h.call("NetworkDriver.Join", ids)
	link := "ul" + dockerID(n)[:13]
	as := netlinkutil.Interface{Name: "eth0", MTU: 1500, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix(given)}}
	if err := h.kernel.MoveTo(link, ids["SandboxKey"].(string), as); err != nil {
		h.t.Fatal(err)
	}
	if err := h.kernel.Arrive(link); err != nil {
		h.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		all, err := fetchEndpoints(h.t.Context(), h.client, "")
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range all.Endpoints {
			if e.ID == dockerID(n) && e.State == driver.EndpointRunning && e.Interface != "" {
				return given
			}
		}
		if time.Now().After(end) {
			h.t.Fatalf("endpoint %d is not there: %+v", n, all)
		}
	}
}

func (h *host) stop(network, n int, pool, address string) {
	h.t.Helper()
	ids := object{"NetworkID": dockerID(network), "EndpointID": dockerID(n)}
	h.call("NetworkDriver.Leave", ids)
	h.call("NetworkDriver.DeleteEndpoint", ids)
	bare, _, _ := strings.Cut(address, "/")
	h.call("IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": bare})
}

// furnish makes networks and containers of many kinds.
func (h *host) furnish() {
	h.t.Helper()
	lan := h.network(1, "192.168.50.0/24", "192.168.50.1", object{"exclude": "192.168.50.200-192.168.50.209,192.168.50.220", "reserve": "db=192.168.50.20"},
		object{"parent": "lan0", "host_access": "true"}, "192.168.50.5")
	l3 := h.network(2, "10.1.0.0/24", "", nil, object{"parent": "lan1", "ipvlan_mode": "l3"})
	h.network(3, "192.168.10.0/24", "192.168.10.1", nil, object{"parent": "lan0.10"})
	h.start(1, 0x11, lan, "web", "")
	h.start(1, 0x12, lan, "cam", "192.168.50.70")
	h.stop(1, 0x13, lan, h.start(1, 0x13, lan, "job", ""))
	h.start(2, 0x21, l3, "", "")
	h.call("IpamDriver.RequestAddress", object{"PoolID": lan, "Address": "192.168.50.99", "Options": object{"com.docker.network.endpoint.name": "ghost"}})
}

// run is the command of a person.
func run1(args ...string) (string, error) {
	var out bytes.Buffer
	root := command()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(context.Background())
	return out.String(), err
}

// same are what differs from run to run.
var same = []struct {
	what *regexp.Regexp
	as   string
}{
	{regexp.MustCompile(`"?20[^0]\d-\d\d-\d\dT[\d:.]+Z"?`), "TIME"},
	{regexp.MustCompile(`20[^0]\d-(0[^1]|1\d)-\d\d \d\d:\d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`(up +)\S+,`), "${1}LONG,"},
	{regexp.MustCompile(`("bytes": |bytes: )\d+`), "${1}N"},
	{regexp.MustCompile(`\d+ KiB`), "N KiB"},
	{regexp.MustCompile(`"(boot|instance|ula)": "[^\n]*"`), `"$1": "DRAWN"`},
	{regexp.MustCompile(`("runs": |runs: )\d+`), "${1}N"},
}

func (h *host) golden(name string, args ...string) {
	h.t.Helper()
	if args[0] == "status" {
		args = append(args, "--docker", h.docker())
	}
	text, err := run1(append(args, "--socket", h.config.Socket)...)
	if err != nil {
		text += "underlay: " + err.Error() + "\n"
	}
	golden(h.t, name, strings.ReplaceAll(text, h.folder, "FOLDER"))
}

// docker is the socket of a dockerd that knows its version.
func (h *host) docker() string {
	h.t.Helper()
	socket := filepath.Join(h.t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		h.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"Version":"28.5.2"}`) })
	go func() { _ = http.Serve(l, mux) }()
	h.t.Cleanup(func() { l.Close() })
	return socket
}

func golden(t *testing.T, name, text string) {
	t.Helper()
	text = strings.ReplaceAll(text, epoch.Format(time.RFC3339), "EPOCH")
	for _, s := range same {
		text = s.what.ReplaceAllString(text, s.as)
	}
	if d := cmp.Diff(kept(t, filepath.Join("testdata", name), text), text); d != "" {
		t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

// kept is what a file has; with -update that is text from now on.
func kept(t *testing.T, path, text string) string {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	is, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(is)
}

// Each verb, on the same host, prints what it did before.
func TestVerbs(t *testing.T) {
	h := newHost(t)
	h.serve()
	h.furnish()
	if err := h.kernel.DeleteLink("lan0.10"); err != nil { // by somebody else
		t.Fatal(err)
	}
	for _, verb := range []string{"status", "networks", "endpoints", "addresses", "conflicts", "leases"} {
		t.Run(verb, func(t *testing.T) {
			h := *h
			h.t = t
			h.golden(verb+".txt", verb)
			h.golden(verb+".json", verb, "-o", "json")
		})
	}
	h.golden("endpoints-wide.txt", "endpoints", "-o", "wide")
	h.golden("endpoints-of.txt", "endpoints", "--network", dockerID(2)[:8])
	h.golden("networks.yaml", "networks", "-o", "yaml")
	h.golden("addresses-part.txt", "addresses", "192.168.50.64/26")
	h.golden("addresses-none.txt", "addresses", "192.168.99.0/24")
	before := h.export()
	kernel := h.kernel.String()
	h.golden("dry-run.txt", "reconcile", "--dry-run")
	h.golden("dry-run.json", "reconcile", "--dry-run", "-o", "json")
	if h.export() != before || h.kernel.String() != kernel {
		t.Errorf("the dry run has changed something:\n%s\n%s", h.kernel, h.export())
	}
	h.golden("reconcile.txt", "reconcile")
	h.golden("reconcile-again.txt", "reconcile")
	h.golden("release-live.txt", "release", "192.168.50.70")
	h.golden("release-gateway.txt", "release", "192.168.50.1")
	h.golden("release-early.txt", "release", "192.168.50.99")
	h.golden("release-free.txt", "release", "192.168.50.120")
	h.golden("export.json", "export")
}

func (h *host) export() string {
	h.t.Helper()
	text, err := run1("export", "--socket", h.config.Socket)
	if err != nil {
		h.t.Fatal(err)
	}
	return text
}

// What is exported makes a state file, of which a plugin makes the same again. With a
// minute gone, an address that nobody came back for may be released.
func TestExportImport(t *testing.T) {
	h := newHost(t)
	h.serve()
	h.furnish()
	exported := filepath.Join(h.folder, "export.json")
	before := h.export()
	if err := os.WriteFile(exported, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run1("import", "--state", h.config.State, exported); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("over a state file: %q, %v", out, err)
	}
	h.end()
	h.config.State = filepath.Join(h.folder, "other")
	if out, err := run1("import", "--state", h.config.State, exported); err == nil || !strings.Contains(err.Error(), "there is no folder "+h.config.State+":") || strings.Contains(err.Error(), "\n") {
		t.Errorf("into a folder that is not there: %q, %v", out, err)
	}
	if err := os.Mkdir(h.config.State, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := run1("import", "--state", h.config.State, exported)
	if err != nil {
		t.Fatal(err)
	}
	if want := "records are in " + filepath.Join(h.config.State, plugin.StateFile) + "\nas of " + when(epoch) + ": stop containers that were started since,"; !strings.Contains(out, want) {
		t.Errorf("import says %q, not %q", out, want)
	}
	h.config.Now = func() time.Time { return epoch.Add(2 * time.Minute) }
	h.serve()
	at := regexp.MustCompile(`"exported": ".*"`)
	if after := h.export(); at.ReplaceAllString(after, "") != at.ReplaceAllString(before, "") {
		t.Errorf("exported again (-was +is):\n%s", cmp.Diff(before, after))
	}
	// A replay may be on its way only once dockerd has connected.
	h.golden("release.txt", "release", "192.168.50.99")
	h.golden("release-again.txt", "release", "192.168.50.99")
}

// A lease goes on in the next life. None is asked for anything: it is good for years.
func TestLeases(t *testing.T) {
	h := newHost(t)
	h.serve()
	h.furnish()
	var e plugin.Export
	if err := json.Unmarshal([]byte(h.export()), &e); err != nil {
		t.Fatal(err)
	}
	h.end()
	lease := func(key, given, now, name, lost string) {
		e.Records["addresses"]["192.168.50.0/24 "+given] = json.RawMessage(`{"kind":"endpoint","name":"` + name + `","since":"2026-01-02T03:04:05Z"}`)
		e.Records["leases"][key] = json.RawMessage(fmt.Sprintf(`{"key":%q,"on":"192.168.50.0/24","name":%q,"given":"%s/24","ipam":true,"lost":%q,"lease":{"key":%q,"link":"lan0","mac":"AgAAAAA%s",
			"addr":"%s/24","server":"192.168.50.1","granted":"2026-01-02T03:04:05Z","renew":"2096-01-02T03:04:05Z","rebind":"2097-01-02T03:04:05Z","expires":"2098-01-02T03:04:05Z"}}`,
			key, name, given, lost, key, key[:1], now))
	}
	e.Records["leases"] = map[string]json.RawMessage{}
	lease("A1", "192.168.50.41", "192.168.50.41", "tv", "")
	lease("B2", "192.168.50.42", "192.168.50.142", "radio", "")
	lease("C3", "192.168.50.43", "192.168.50.43", "lamp", "no server answers")
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	h.config.State = filepath.Join(h.folder, "other")
	if err := os.Mkdir(h.config.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := plugin.Import(h.config.State, bytes.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	h.serve()
	h.golden("leased.txt", "leases")
	h.golden("leased.json", "leases", "-o", "json")
	h.golden("leased-status.txt", "status")
	h.golden("leased-addresses.txt", "addresses", "192.168.50.40/30")
}

// A thousand drifted leases do not push all else off the screen.
func TestStatusOfMany(t *testing.T) {
	var out strings.Builder
	tab := &table{Writer: tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)}
	drawLines(tab, "drift", slices.Repeat([]string{"a line"}, maxLines+3))
	tab.Flush()
	want := "drift:\n" + strings.Repeat("  a line\n", maxLines) + "  and 3 more, which -o json has\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestImportRefuses(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"nothing":          {"", "is no export"},
		"no JSON":          {"{", "is no export"},
		"more":             {`{"format":4,"records":{}} {}`, "more follows"},
		"no format":        {`{"records":{}}`, "no format number"},
		"no records":       {`{"format":4}`, "no records"},
		"a later format":   {`{"format":99,"records":{}}`, "a later underlay"},
		"a number":         {`{"format":4,"records":{"driver":{"instance":7}}}`, "neither an object nor a string"},
		"a broken network": {`{"format":4,"records":{"networks":{"a":{"id":7}}}}`, "network a"},
		"a broken address": {`{"format":4,"records":{"addresses":{"192.168.50.0/24 192.168.50.7":{"kind":"endpoint"}}}}`, "there is no such pool"},
		"a broken lease":   {`{"format":4,"records":{"leases":{"k":"x"}}}`, "leases/k"},
		"an empty key":     {`{"format":4,"records":{"driver":{"":"x"}}}`, "driver/"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			_, err := plugin.Import(folder, strings.NewReader(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if left, _ := os.ReadDir(folder); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// answering is a plugin that always says the same.
func answering(t *testing.T, answers map[string]any) (socket string) {
	socket = filepath.Join(t.TempDir(), "u.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"Err":"underlay has no call %s"}`, r.URL.Path)
			return
		}
		if f, is := a.(func() any); is {
			a = f()
		}
		json.NewEncoder(w).Encode(a)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return socket
}

// What needs another machine on the LAN is shown, too.
func TestConflictsAndSquatters(t *testing.T) {
	squatter := plugin.Address{AddressUse: ipam.AddressUse{
		Address: netip.MustParseAddr("192.168.50.9"), Subnet: netip.MustParsePrefix("192.168.50.0/24"), Kind: ipam.Squatter, MAC: "02:00:00:00:00:09", Since: epoch, Heard: epoch.Add(time.Minute),
	}}
	taken := plugin.Address{AddressUse: ipam.AddressUse{
		Address: netip.MustParseAddr("192.168.50.10"), Subnet: squatter.Subnet, Kind: ipam.Dynamic, Name: "web", MAC: "02:00:00:00:00:10", Since: epoch, Heard: epoch.Add(time.Minute), Conflict: "02:00:00:00:00:66",
	}, Endpoint: dockerID(0x11), Network: dockerID(1), State: driver.EndpointStarting}
	socket := answering(t, map[string]any{
		plugin.ConflictsPath: plugin.Conflicts{Conflicts: []plugin.Conflict{{
			ConflictState: ipam.ConflictState{Address: taken.Address, Subnet: taken.Subnet, Name: "web", MAC: taken.Conflict, Since: epoch, Last: epoch.Add(time.Minute)},
			Own:           taken.MAC, Endpoint: taken.Endpoint, Network: taken.Network, Parent: "lan0",
		}}},
		plugin.AddressesPath: plugin.Addresses{Addresses: []plugin.Address{squatter, taken}},
	})
	for name, args := range map[string][]string{
		"conflict.txt": {"conflicts"}, "conflict.json": {"conflicts", "-o", "json"}, "squatter.txt": {"addresses"}, "squatter.json": {"addresses", "-o", "json"},
	} {
		text, err := run1(append(args, "--socket", socket)...)
		if err != nil {
			t.Error(err)
		}
		golden(t, name, text)
	}
}

// What is left is an error's exit status, in each format, and after it is printed.
func TestReconcileLeft(t *testing.T) {
	left := driver.Report{Done: []string{"made parent lan0.10"}, Left: []string{"lan1 is down; set it up", "so is lan2"}}
	for name, c := range map[string]struct {
		report driver.Report
		left   string
	}{
		"all well": {driver.Report{}, ""}, "mended": {driver.Report{Done: left.Done}, ""}, "left": {left, "2 left that could not be mended"},
	} {
		socket := answering(t, map[string]any{plugin.ReconcilePath: c.report, plugin.DryRunPath: c.report})
		for _, args := range [][]string{nil, {"--dry-run"}, {"-o", "json"}} {
			text, err := run1(append([]string{"reconcile", "--socket", socket}, args...)...)
			if got := fmt.Sprint(err); !strings.Contains(got, c.left) || c.left == "" && err != nil {
				t.Errorf("%s, %v: %s", name, args, got)
			}
			for _, line := range c.report.Left {
				if !strings.Contains(text, line) {
					t.Errorf("%s, %v: no %q in\n%s", name, args, line, text)
				}
			}
		}
	}
}

// Every page is asked for, with one call each.
func TestPages(t *testing.T) {
	asked := 0
	socket := answering(t, map[string]any{plugin.AddressesPath: func() any {
		page := plugin.Addresses{Addresses: []plugin.Address{{AddressUse: ipam.AddressUse{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(asked)}), Kind: ipam.Resting}}}}
		if asked++; asked < 3 {
			page.Next = page.Addresses[0].Address
		}
		return page
	}})
	text, err := run1("addresses", "--socket", socket)
	if err != nil || asked != 3 || strings.Count(text, "resting") != 3 {
		t.Errorf("%d calls, %v:\n%s", asked, err, text)
	}
}

// A range that is exhausted is seen in a pool that is not.
func TestStatusOfRanges(t *testing.T) {
	h := newHost(t)
	h.serve()
	pool := h.call("IpamDriver.RequestPool", object{"Pool": "192.168.70.0/24", "SubPool": "192.168.70.64/30"}).PoolID
	h.call("NetworkDriver.CreateNetwork", object{
		"NetworkID": dockerID(1), "Options": object{"com.docker.network.generic": object{"parent": "lan0"}}, "IPv6Data": []object{},
		"IPv4Data": []object{{"AddressSpace": "underlay", "Pool": "192.168.70.0/24", "Gateway": "192.168.70.1/24"}},
	})
	for range 4 {
		h.call("IpamDriver.RequestAddress", object{"PoolID": pool})
	}
	text, err := run1("status", "--socket", h.config.Socket, "--docker", "/none.sock")
	if err != nil || !strings.Contains(text, "does not answer: /none.sock: ") || !regexp.MustCompile(`(?m)^192\.168\.70\.0/24 .* 250 +0 of 4 left in 192\.168\.70\.64/30$`).MatchString(text) {
		t.Errorf("%v\n%s", err, text)
	}
}

// JSON that is watched has a line for each change, and ends with its context.
func TestWatch(t *testing.T) {
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	socket := answering(t, map[string]any{plugin.LeasesPath: func() any {
		if n++; n == 4 {
			cancel()
		}
		return plugin.Leases{Leases: make([]plugin.LeaseStatus, min(n, 3)/2)} // none, then one, and no more
	}})
	var out bytes.Buffer
	root := command()
	root.SetArgs([]string{"leases", "--watch", "-o", "json", "--socket", socket})
	root.SetOut(&out)
	if err := root.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	for n := range 2 {
		if err := json.NewEncoder(&want).Encode(plugin.Leases{Leases: make([]plugin.LeaseStatus, n)}); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(want.String(), out.String()); d != "" {
		t.Errorf("printed (-want +got):\n%s", d)
	}
}

func TestClearErrors(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "u.sock")
	old := answering(t, nil)
	tests := []struct {
		want string
		args []string
	}{
		{"nobody serves on " + gone, []string{"status", "--socket", gone}},
		{"nobody serves on " + gone, []string{"addresses", "--watch", "--socket", gone}},
		{"is of another version than this command", []string{"status", "--socket", old}},
		{"-o xml is not known", []string{"networks", "-o", "xml", "--socket", old}},
		{"no subnet and no address", []string{"addresses", "192.168.50", "--socket", old}},
		{"is no address", []string{"release", "web", "--socket", old}},
		{`"state" not set`, []string{"import", "file"}},
		{"nothing was imported", []string{"import", "--state", t.TempDir(), os.DevNull}},
	}
	for _, test := range tests {
		if _, err := run1(test.args...); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want %q", test.args, err, test.want)
		}
	}
}

// What YAML says is what JSON says.
func TestYAML(t *testing.T) {
	v := object{"a": []any{"yes", "12", "", "1e3", "2026-01-02", "x: y", "- z"}, "n": json.Number("18446744073709551614"), "empty": []any{}, "none": object{}, "is": true}
	var b bytes.Buffer
	if err := writeYAML(&b, v); err != nil {
		t.Fatal(err)
	}
	var back object
	if err := yaml.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatalf("%v:\n%s", err, b.String())
	}
	for i, want := range v["a"].([]any) {
		if got := back["a"].([]any)[i]; got != want {
			t.Errorf("%#v comes back as %#v:\n%s", want, got, b.String())
		}
	}
	if strings.Contains(b.String(), "{\"") || !strings.Contains(b.String(), "n: 18446744073709551614") {
		t.Errorf("it is\n%s", b.String())
	}
}

// Arguments are completed by what the plugin has.
func TestCompletion(t *testing.T) {
	h := newHost(t)
	h.serve()
	h.furnish()
	all := []string{"10.1.0.0/24", "192.168.10.0/24", "192.168.50.0/24"}
	for _, c := range []struct{ args, want []string }{
		{[]string{"addresses", ""}, all},
		{[]string{"addresses", "192.168.1"}, all[1:2]},
		{[]string{"addresses", "7"}, nil},
		{[]string{"addresses", "192.168.50.0/24", ""}, nil},
		{[]string{"release", ""}, []string{"192.168.50.99"}}, // all others are live
		{[]string{"release", "10."}, nil},
		{[]string{"forget", ""}, []string{dockerID(3)[:12]}}, // all others have endpoints
		{[]string{"endpoints", "--network", ""}, []string{dockerID(1)[:12], dockerID(2)[:12], dockerID(3)[:12]}},
		{[]string{"endpoints", "--network", "0002"}, []string{dockerID(2)[:12]}},
		{[]string{"status", "-o", ""}, formats},
		{[]string{"reconcile", "-o", ""}, formats},
		{[]string{"doctor", "-o", ""}, formats},
	} {
		args := append([]string{"__completeNoDesc", c.args[0], "--socket", h.config.Socket}, c.args[1:]...)
		text, err := run1(args...)
		found, _, ok := strings.Cut("\n"+text, "\n:") // a directive for the shell follows
		got := strings.Fields(found)
		slices.Sort(got)
		want := slices.Sorted(slices.Values(c.want))
		if err != nil || !ok || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %q, want %q", c.args, err, text, want)
		}
	}
}

// Large numbers are powers of two, the nearest.
func TestCount(t *testing.T) {
	power := func(bit uint, plus int64) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bit)
		return n.Add(n, big.NewInt(plus))
	}
	for want, ns := range map[string][]*big.Int{
		"0": {big.NewInt(0)}, "254": {big.NewInt(254)}, "1099511627775": {power(40, -1)}, "~2^40": {power(40, 0)},
		"~2^63": {power(63, -1), power(63, 0), power(63, 1)}, "~2^64": {power(64, -2), power(64, 0)}, "~2^128": {power(128, 0)},
	} {
		for _, n := range ns {
			if got := count(n); got != want {
				t.Errorf("%v is %s, want %s", n, got, want)
			}
		}
	}
}

// What the doctor finds is told in the words that all commands take.
func TestTell(t *testing.T) {
	found := []doctor.Finding{{Level: doctor.Note, Check: "many", Subject: "eth0", Fact: "a & b", Remedy: "c", See: "d"}}
	for format, want := range map[string]string{
		"text":  "note: eth0: a & b\n  do: c\n  see: d\n",
		"table": "note: eth0: a & b\n  do: c\n  see: d\n",
		"wide":  "note: eth0: a & b\n  do: c\n  see: d\n",
		"yaml":  "findings:\n  - level: note\n    check: many\n    subject: eth0\n    fact: a & b\n    remedy: c\n    see: d\n",
		"json":  "{\n  \"findings\": [\n    {\n      \"level\": \"note\",\n      \"check\": \"many\",\n      \"subject\": \"eth0\",\n      \"fact\": \"a \\u0026 b\",\n      \"remedy\": \"c\",\n      \"see\": \"d\"\n    }\n  ]\n}\n",
	} {
		var b bytes.Buffer
		a := &asking{format: format}
		if err := errors.Join(a.check(), a.tell(&b, found)); err != nil || b.String() != want {
			t.Errorf("%s: %v\n%s", format, err, b.String())
		}
	}
	var b bytes.Buffer
	if err := (&asking{format: "json"}).tell(&b, nil); err != nil || b.String() != "{\n  \"findings\": []\n}\n" {
		t.Errorf("nothing: %v\n%s", err, b.String())
	}
}

// A container may name its interface as it likes.
func TestTableIsPlain(t *testing.T) {
	text, err := (&asking{format: "wide"}).text(nil, func(tb *table) {
		drawEndpoints(tb, plugin.Endpoints{Endpoints: []driver.EndpointState{{ID: "1", Interface: "\x1b[2J\u202Ex", Sandbox: "/run/a\tb"}}})
		tb.say("left: %s", "\x1b[31m\n\u009b")
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, `\x1b[2J\u202ex in /run/a b`) || !strings.HasSuffix(text, "left: \\x1b[31m\\n\\u009b\n") {
		t.Errorf("it is %q", text)
	}
}

func TestNotesOfPools(t *testing.T) {
	zero := new(big.Int)
	for want, p := range map[string]ipam.PoolUse{
		"": {}, "2 in conflict": {Conflicts: 2}, "not asked: it is down": {Blind: "it is down"},
		"2 in conflict, not asked: it is down": {Conflicts: 2, Blind: "it is down"},
	} {
		p.Size, p.Excluded, p.Free = zero, zero, zero
		text, err := (&asking{format: "wide"}).text(nil, func(tb *table) { drawPools(tb, plugin.Status{Pools: []ipam.PoolUse{p}}) })
		if err != nil {
			t.Fatal(err)
		}
		heads, row, _ := strings.Cut(text, "\n")
		at := strings.Index(heads, "NOTE")
		row, _, _ = strings.Cut(row, "\n")
		if got := row[min(at, len(row)):]; got != want {
			t.Errorf("the note is %q, want %q:\n%s", got, want, text)
		}
	}
}

func TestOneArgument(t *testing.T) {
	for _, args := range [][]string{{"release"}, {"forget"}, {"import", "--state", "/nowhere"}, {"release", "192.168.50.1", "192.168.50.2"}} {
		cmd := command()
		cmd.SetArgs(args)
		err := cmd.Execute()
		if err == nil || !strings.Contains(err.Error(), "it takes one: underlay "+args[0]+" ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", args, err)
		}
	}
}
