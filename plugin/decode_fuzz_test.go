package plugin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	wire "github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"

	"underlay/internal/store"
	"underlay/netlinkutil"
)

// recordings are the calls of all recordings of dockerd.
func recordings(t testing.TB) (lines []recorded) {
	t.Helper()
	files, err := filepath.Glob("testdata/docker-*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scan := bufio.NewScanner(bytes.NewReader(text))
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			var line recorded
			if err := json.Unmarshal(scan.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// What is understood of a body is what the standard library understands of it.
func FuzzDecode(f *testing.F) {
	seen := map[string]bool{}
	for _, line := range recordings(f) {
		if !seen[string(line.Request)] {
			seen[string(line.Request)] = true
			f.Add([]byte(line.Request))
		}
	}
	for _, seed := range []string{
		"", " ", "{}", "null", `{"Options":{` + ports(2) + `,"a":"b"},"NetworkID":"n"}`, `{"Interface":{"Address":"a"}}x`,
		`{"Options":{"com.docker.network.portmap":[[[[1,2],{"a":null}]],{}]}}`, `{"Options":{"com.docker.network.portmap":{"a":[1]}}}`,
		`{"a":1,"a":2}`, `{"a":"\u0000"}`, `{"PoolID":1e99}`, "{\"PoolID\":\"\xff\"}", strings.Repeat("[", 40), `{"V6":true,"Options":{"a":"<&>"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		check(t, body, new(network.CreateNetworkRequest))
		check(t, body, new(network.CreateEndpointRequest))
		check(t, body, new(network.JoinRequest))
		check(t, body, new(network.InfoRequest))
		check(t, body, new(gwAllocCheckRequest))
		check(t, body, new(wire.RequestPoolRequest))
		check(t, body, new(wire.RequestAddressRequest))
		check(t, body, new(wire.ReleaseAddressRequest))
		check(t, body, new(ForgetRequest))
		check(t, body, new(none))
	})
}

func check[Req any](t *testing.T, body []byte, req *Req) {
	t.Helper()
	err := decode(bytes.NewReader(body), req)
	if err != nil {
		if status(err)/100 != 4 || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
			t.Errorf("%q: status %d, %v", body, status(err), err)
		}
		return
	}
	if len(bytes.TrimSpace(body)) == 0 && reflect.TypeFor[Req]() == reflect.TypeFor[none]() {
		return
	}
	for key := range unread {
		if bytes.Contains(body, []byte(key)) {
			return
		}
	}
	var want Req
	if err := json.Unmarshal(body, &want); err != nil {
		t.Errorf("%q is understood as %+v; encoding/json: %v", body, *req, err)
	} else if !bytes.ContainsRune(body, '\\') && !reflect.DeepEqual(*req, want) { // a key may be escaped
		t.Errorf("%q is understood as %+v; encoding/json: %+v", body, *req, want)
	}
}

// Whatever a text on the wire, it is what it says, or refused.
func FuzzTexts(f *testing.F) {
	for _, seed := range []string{
		"", "192.168.50.0/24", "192.168.50.7", "fd00:50::1/64", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1/33", "0.0.0.0/0",
		"/var/run/docker/netns/0123456789ab", "/run/docker/netns/../x", "/var/run/docker/netns/ingress_sbox", "/proc/1/ns/net", "\x00", "x\ny",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := prefix(text); err == nil && text != "" {
			if again, err := netip.ParsePrefix(p.String()); again != p || err != nil {
				t.Errorf("%q is %v, and again %v, %v", text, p, again, err)
			}
		}
		if p, err := poolPrefix("--subnet", text); err == nil && text != "" && !p.IsValid() {
			t.Errorf("%q is no prefix", text)
		}
		if a, err := address(text); err == nil && (!a.IsValid() || a.Zone() != "" || a.Is4In6()) {
			t.Errorf("%q is %v", text, a)
		}
		if err := checkID("network", text); err == nil && strings.ContainsAny(text, "/. \x00\n") {
			t.Errorf("%q is an ID", text)
		}
		if err := netlinkutil.CheckSandbox(SandboxDir, text); err == nil {
			name := filepath.Base(text)
			if text != SandboxDir+"/"+name && text != "/run/docker/netns/"+name || name == ".." || strings.ContainsAny(name, "\x00\n /") {
				t.Errorf("%q is a sandbox", text)
			}
		}
	})
}

// Whatever a record of the state file says, underlay loads it or says why not,
// answers all the same, and writes nothing that it cannot load again.
func FuzzRecords(f *testing.F) {
	buckets := []string{"networks", "endpoints", "pools", "addresses", "driver", "ipam"} // the store's own are not for all to write
	// The records of a busy plugin are the seeds.
	b := newBench(f)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0.10", "host_access": "true", "routes": "10.0.0.0/8 via 192.168.50.2"})
	b.lan(2, "192.168.60.0/24", "192.168.60.1", object{"ipvlan_mode": "l2"})
	b.end(id, pool, 3, b.run(id, pool, 3))
	b.run(id, pool, 4)
	b.stop()
	file := b.config.State + "/" + StateFile
	s, err := store.Open(file)
	if err != nil {
		f.Fatal(err)
	}
	for i, bucket := range buckets {
		err := s.Each(bucket, func(key, value []byte) error { f.Add(uint8(i), bytes.Clone(key), bytes.Clone(value)); return nil })
		if err != nil {
			f.Fatal(err)
		}
	}
	s.Close()
	whole, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	for i := range buckets {
		for _, value := range []string{"", "null", "{}", "[]", `"x"`, `{"id":""}`, `{"refs":-1}`, `{"kind":99,"turn":18446744073709551615}`} {
			f.Add(uint8(i), []byte("192.168.50.0/24 192.168.50.9"), []byte(value))
		}
	}
	b.start()

	dir := f.TempDir()
	n := 0
	f.Fuzz(func(t *testing.T, at uint8, key, value []byte) {
		if len(key) == 0 || len(key) > 1000 {
			t.Skip()
		}
		bucket := buckets[int(at)%len(buckets)]
		n++
		c := *b
		c.t = t
		c.config.State = fmt.Sprintf("%s/%d", dir, n)
		c.config.Socket = fmt.Sprintf("%s/%d.sock", dir, n)
		defer os.RemoveAll(c.config.State)
		if err := os.MkdirAll(c.config.State, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.config.State+"/"+StateFile, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := store.Open(c.config.State + "/" + StateFile)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Apply(store.Change{Bucket: bucket, Key: key, Value: value})
		s.Close()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // what it writes, it reads
			c.start()
			for _, call := range []struct{ name, body string }{
				{"Underlay.State", ""},
				{"IpamDriver.RequestPool", `{"Pool":"192.168.50.0/24"}`},
				{"IpamDriver.RequestAddress", `{"PoolID":"192.168.50.0/24"}`},
				{"NetworkDriver.EndpointOperInfo", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, id, dockerID(4))},
				{"NetworkDriver.Join", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, id, dockerID(4))},
				{"NetworkDriver.DeleteEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, id, dockerID(4))},
				{"IpamDriver.ReleasePool", `{"PoolID":"192.168.60.0/24"}`},
			} {
				status, answer := c.post(call.name, call.body)
				var refused failure
				err := json.Unmarshal([]byte(answer), &refused)
				if status != 200 && status != 500 || err != nil || strings.Contains(refused.Err, "a bug to report") || strings.Contains(refused.Err, "\n") {
					t.Errorf("%s with %s %q = %q: %d %s", call.name, bucket, key, value, status, answer)
				}
			}
			c.stop()
		}
	})
}
