//go:build vm

package vmtest

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// underlay runs the command as a person on the host does.
func underlay(args ...string) (string, error) {
	out, err := exec.Command(binary, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, errorf("underlay %s: %v: %s", strings.Join(args, " "), err, text)
	}
	return text, nil
}

// say is underlay that must succeed, with its JSON read into res unless that is nil.
func say(t *testing.T, res any, args ...string) string {
	t.Helper()
	if res != nil {
		args = append(args, "-o", "json")
	}
	out, err := underlay(args...)
	if err == nil && res != nil {
		if err = json.Unmarshal([]byte(out), res); err != nil {
			err = errorf("underlay %v: %v: %s", args, err, out)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cliEndpoint and cliAddress are what the command tells of them.
type cliEndpoint struct{ ID, Network, Parent, State, IPv4, IPv6, MAC string }

type cliAddress struct{ Address, Last, Kind, MAC, Container, Endpoint, Network, Conflict string }

// Each verb says what docker says.
func TestCommands(t *testing.T) {
	b := begin(t)
	s := dnsmasq(t, "router", "--dhcp-range=192.168.50.120,192.168.50.124,255.255.255.0,120", "--dhcp-option=option:router,"+router4)
	b.network(lanArgs("--ipam-opt", "exclude=192.168.50.100-192.168.50.103", "--ipam-opt", "reserve=db=192.168.50.90", "lan")...)
	b.network(dhcpArgs("leased")...)
	c1 := b.connect("lan", "base1", "--ip", "192.168.50.70")
	c2 := b.connect("leased", "base2")
	fixed, leased := c1.NetworkSettings.Networks["lan"], c2.NetworkSettings.Networks["leased"]

	t.Run("endpoints", func(t *testing.T) {
		start, first := time.Now(), error(nil)
		err := wait(time.Minute, "endpoints", func() (err error) {
			defer func() {
				if first == nil && err != nil {
					first = err
				}
			}()
			var all struct{ Endpoints []cliEndpoint }
			say(t, &all, "endpoints")
			for _, c := range []container{inspect(t, "base1"), inspect(t, "base2")} {
				for name, e := range c.NetworkSettings.Networks {
					if e.EndpointID == "" { // where it was refused: Docker 26 goes on to show that
						continue
					}
					i := slices.IndexFunc(all.Endpoints, func(o cliEndpoint) bool { return o.ID == e.EndpointID })
					if i < 0 {
						return errorf("%s of %s is not listed: %+v", name, c.Name, all.Endpoints)
					}
					if o := all.Endpoints[i]; o.Network != e.NetworkID || o.IPv4 != e.IPAddress || o.IPv6 != e.GlobalIPv6Address || o.MAC != e.MacAddress || o.State != "running" {
						return errorf("%s of %s is %+v, and docker says %+v", name, c.Name, o, e)
					}
				}
			}
			if len(all.Endpoints) != 4 {
				return errorf("%d endpoints: %+v", len(all.Endpoints), all.Endpoints)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		} else if first != nil {
			t.Logf("after %v; at first %v", time.Since(start), first)
		}
		if out := say(t, nil, "endpoints", "--network", fixed.NetworkID[:10]); !strings.Contains(out, "192.168.50.70") || strings.Contains(out, leased.IPAddress) {
			t.Errorf("endpoints of a network:\n%s", out)
		}
	})
	t.Run("networks", func(t *testing.T) {
		var all struct {
			Networks []struct {
				ID, Parent, State, Mode string
				Endpoints               int
				Subnets                 []struct{ Prefix, Gateway string }
			}
		}
		say(t, &all, "networks")
		var have []string
		for _, n := range all.Networks {
			have = append(have, n.ID)
			if n.ID == fixed.NetworkID && (n.Parent != "eth0" || n.State != "up" || n.Endpoints != 1 || n.Subnets[0].Gateway != router4) {
				t.Errorf("lan is %+v", n)
			}
		}
		want := strings.Fields(docker(t, "network", "ls", "--no-trunc", "-q", "--filter", "driver="+plugin))
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("the networks are %v, and docker says %v", have, want)
		}
	})
	t.Run("status", func(t *testing.T) {
		var is struct {
			Version, Docker     string
			Networks, Endpoints int
			Parents             []struct{ Name, State string }
			Pools               []struct {
				Subnet                                                 string
				Size, Containers, Gateways, Excluded, Reserved, Leased int
			}
			LANs      []struct{ Link, Blind string }
			DHCP      []struct{ Link, Leases, Lost any }
			Reconcile struct{ Left []string }
		}
		// IPv6 sizes are past an int: only the IPv4 pools are looked at.
		var raw map[string]json.RawMessage
		say(t, &raw, "status")
		var pools []map[string]json.RawMessage
		json.Unmarshal(raw["pools"], &pools)
		v4 := slices.DeleteFunc(pools, func(p map[string]json.RawMessage) bool { return strings.Contains(string(p["subnet"]), ":") })
		raw["pools"], _ = json.Marshal(v4)
		text, _ := json.Marshal(raw)
		if err := json.Unmarshal(text, &is); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		var daemon struct{ Version string }
		if err := api("GET", "/version", nil, &daemon); err != nil {
			t.Fatal(err)
		}
		if is.Version != version(t) || is.Docker != daemon.Version || is.Networks != 3 || is.Endpoints != 4 || len(is.Reconcile.Left) > 0 {
			t.Errorf("it is %s", text)
		}
		for _, p := range is.Parents {
			if p.State != "up" {
				t.Errorf("parent %+v", p)
			}
		}
		for _, p := range is.Pools {
			if p.Subnet == "192.168.50.0/24" && (p.Size != 254 || p.Containers != 2 || p.Leased != 1 || p.Gateways != 1 || p.Excluded != 4 || p.Reserved < 2) {
				t.Errorf("the pool is %+v", p)
			}
		}
		if len(is.LANs) != 1 || is.LANs[0].Link != "eth0" || is.LANs[0].Blind != "" || len(is.DHCP) != 1 {
			t.Errorf("LANs %+v, DHCP %+v", is.LANs, is.DHCP)
		}
		if out := say(t, nil, "status"); !strings.Contains(out, "192.168.50.0/24") || !strings.Contains(out, "not mended: nothing") {
			t.Errorf("status:\n%s", out)
		}
	})
	t.Run("addresses", func(t *testing.T) {
		var all struct{ Addresses []cliAddress }
		say(t, &all, "addresses", "192.168.50.0/24")
		named := func(name string) string {
			if release < 29 {
				return "" // Docker tells none
			}
			return name
		}
		for _, want := range []cliAddress{
			{Address: router4, Kind: "gateway"}, {Address: docker4, Kind: "host"}, {Address: "192.168.50.90", Kind: "reserved", Container: "db"},
			{Address: "192.168.50.100", Last: "192.168.50.103", Kind: "excluded"},
			{Address: "192.168.50.70", Kind: "static", Container: named("base1"), MAC: fixed.MacAddress, Endpoint: fixed.EndpointID, Network: fixed.NetworkID},
			{Address: leased.IPAddress, Kind: "leased", Container: named("base2"), MAC: leased.MacAddress, Endpoint: leased.EndpointID, Network: leased.NetworkID},
		} {
			if !slices.Contains(all.Addresses, want) {
				t.Errorf("%+v is not there: %+v", want, all.Addresses)
			}
		}
		if out := say(t, nil, "addresses", "192.168.50.70"); strings.Count(out, "\n") != 1 || !strings.Contains(out, fixed.MacAddress) {
			t.Errorf("one address:\n%s", out)
		}
	})
	t.Run("leases", func(t *testing.T) {
		var all struct {
			Leases []struct{ Address, MAC, Link, Server, State string }
		}
		say(t, &all, "leases")
		if len(all.Leases) != 1 || all.Leases[0].Address != leased.IPAddress || all.Leases[0].MAC != leased.MacAddress || all.Leases[0].Server != router4 ||
			all.Leases[0].State != "bound" || !strings.Contains(s.leased(leased.IPAddress), leased.MacAddress) {
			t.Errorf("leases are %+v, and the server says %s", all, s.leased(leased.IPAddress))
		}
	})
	t.Run("conflicts", func(t *testing.T) {
		late := b.neighbour("late")
		mac := links(t, late)["eth0"].MAC
		late.has(t, "eth0", "192.168.50.70/24", "192.168.50.110/24")
		do(t, late, "arping -q -U -c 1 -I eth0 192.168.50.70 || :; arping -q -U -c 1 -I eth0 192.168.50.110 || :")
		err := wait(8*time.Second, "the conflict", func() error {
			var all struct {
				Conflicts []struct{ Address, MAC, Own, Endpoint string }
			}
			say(t, &all, "conflicts")
			if len(all.Conflicts) != 1 || all.Conflicts[0].Address != "192.168.50.70" || all.Conflicts[0].MAC != mac || all.Conflicts[0].Own != fixed.MacAddress || all.Conflicts[0].Endpoint != fixed.EndpointID {
				return errorf("it is not listed: %+v", all)
			}
			out := say(t, nil, "addresses", "192.168.50.110")
			if !strings.Contains(out, "squatter") || !strings.Contains(out, mac) {
				return errorf("the other one is not: %s", out)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if out := say(t, nil, "addresses", "192.168.50.70"); !strings.Contains(out, "in use by "+mac) {
			t.Errorf("the address in conflict:\n%s", out)
		}
	})
	t.Run("reconcile", func(t *testing.T) {
		was := picture(t)
		var r struct{ Done, Left []string }
		say(t, &r, "reconcile", "--dry-run")
		if out := say(t, nil, "reconcile"); len(r.Done)+len(r.Left) > 0 || out != "all is as it should be" {
			t.Errorf("%+v, %s", r, out)
		}
		if is := picture(t); is != was {
			t.Errorf("it has changed: %s", difference(was, is))
		}
	})
	t.Run("release", func(t *testing.T) {
		for addr, want := range map[string]string{"192.168.50.70": `is live: endpoint ` + fixed.EndpointID[:12], router4: `is the gateway of network`, "192.168.50.80": `is not held`, "10.9.9.9": `in no pool`} {
			_, err := underlay("release", addr)
			refused(t, err, want)
		}
		p := b.pool("192.168.50.0/24", "192.168.50.64/26", map[string]string{"exclude": "192.168.50.100-192.168.50.103", "reserve": "db=192.168.50.90"})
		orphan := p.must("", "")
		_, err := underlay("release", orphan)
		refused(t, err, `may be on its way; try again in`)
		p.release(orphan)
		_, err = underlay("release", orphan)
		refused(t, err, `is free already`)
	})
	t.Run("export", func(t *testing.T) {
		out := say(t, nil, "export")
		var e struct {
			Format  int
			Records map[string]map[string]json.RawMessage
		}
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.Format == 0 || len(e.Records["networks"]) != 3 || len(e.Records["endpoints"]) != 4 || len(e.Records["leases"]) < 1 {
			t.Errorf("%v: %s", err, out)
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "export.json")
		if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := underlay("import", "--state", filepath.Dir(stateFile(t)), file)
		refused(t, err, `is there already`)
		state := filepath.Join(dir, "state")
		_, err = underlay("import", "--state", state, file)
		refused(t, err, `there is no folder`)
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		if out := say(t, nil, "import", "--state", state, file); !strings.Contains(out, "records are in") || !strings.Contains(out, "stop containers that were started since") {
			t.Error(out)
		}
		_, err = underlay("import", "--state", state, file)
		refused(t, err, `is there already`)
	})
	t.Run("watch", func(t *testing.T) {
		cmd := exec.Command(binary, "networks", "--watch", "-o", "json")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || !json.Valid([]byte(line)) {
			t.Errorf("%v: %s", err, line)
		}
		cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			t.Errorf("Ctrl-C: %v", err)
		}
	})
	t.Run("completion", func(t *testing.T) {
		if out := say(t, nil, "__complete", "addresses", "192"); !strings.Contains(out, "192.168.50.0/24") {
			t.Error(out)
		}
	})
	t.Run("metrics", func(t *testing.T) {
		socket, err := pluginSocket(plugin)
		if err != nil {
			t.Fatal(err)
		}
		res, err := unixClient(socket).Get("http://underlay/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", res.Status, text)
		}
		for _, line := range []string{"underlay_endpoints 4", `underlay_parent_up{parent="eth0"} 1`, `underlay_conflicts{subnet="192.168.50.0/24"} 1`, `underlay_leases{link="eth0",state="bound"} 1`, `underlay_probe_up{link="eth0"} 1`} {
			if !strings.Contains(string(text), line+"\n") {
				t.Errorf("%s is not there:\n%s", line, text)
			}
		}
		var info struct {
			Settings struct{ Env []string }
		}
		if err := api("GET", "/plugins/"+plugin+"/json", nil, &info); err != nil || !slices.Contains(info.Settings.Env, "METRICS_ADDR=") {
			t.Errorf("%v: the settings are %v", err, info.Settings.Env)
		}
	})
	t.Run("audit", func(t *testing.T) {
		logged(t, "action=given", "address=192.168.50.70", "mac=", fixed.MacAddress, fixed.EndpointID[:12])
		logged(t, "action=given", "address="+router4, "for=gateway")
	})
	b.disconnect("lan", "base1")
	b.disconnect("leased", "base2")
	logged(t, "action=freed", "address=192.168.50.70", fixed.EndpointID[:12])
	_, err := underlay("status", "--socket", "/run/nothing.sock")
	refused(t, err, `nobody serves on /run/nothing\.sock`)
}
