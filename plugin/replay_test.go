package plugin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"underlay/netlinkutil/fake"
)

// A recording is what a real dockerd sent to a throw-away plugin: a JSON object
// a line, either the docker command that follows or one call.
type recorded struct {
	Mark     string          `json:"mark"`
	Call     string          `json:"call"`
	Request  json.RawMessage `json:"request"`
	Response json.RawMessage `json:"response"`
}

// Each recording is played against the plugin. Its answers differ from the
// recorded ones, so what dockerd would repeat of an answer, pool IDs and
// addresses, is put into the later requests.
func TestReplay(t *testing.T) {
	files, err := filepath.Glob("testdata/docker-*.jsonl")
	if err != nil || len(files) != 4 {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) {
			r := &replay{bench: newBench(t), t: t, held: map[string]bool{}, internal: map[string]bool{}}
			r.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.254/24"))
			r.kernel.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), 0, fake.Hop{Link: "eth0", Gateway: netip.MustParseAddr("192.168.50.1")})
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			lines := bufio.NewScanner(f)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				var line recorded
				if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
					t.Fatal(err)
				}
				r.play(line)
			}
			if r.calls < 150 {
				t.Errorf("only %d calls were played", r.calls)
			}
			r.empty()
		})
	}
}

type replay struct {
	*bench
	t        *testing.T
	mark     string
	ours     []string        // recorded text and ours, for a strings.Replacer
	held     map[string]bool // addresses that dockerd holds, as pool and address
	internal map[string]bool // networks
	calls    int
}

func (r *replay) play(line recorded) {
	r.t.Helper()
	if line.Mark != "" {
		r.mark = line.Mark
		if strings.HasPrefix(line.Mark, "plugin killed") {
			r.restart()
		}
		return
	}
	r.calls++
	request := strings.NewReplacer(r.ours...).Replace(string(line.Request))
	answer, err := r.call(line.Call, json.RawMessage(request))
	if err != nil {
		r.t.Fatalf("%s\n%s %s: %v", r.mark, line.Call, request, err)
	}
	r.check(line, request, answer)
}

// check holds an answer against what dockerd demands of it.
func (r *replay) check(line recorded, request string, answer []byte) {
	r.t.Helper()
	bad := func(format string, a ...any) {
		r.t.Helper()
		r.t.Errorf("%s\n%s %s\nanswered %s: %s", r.mark, line.Call, request, answer, fmt.Sprintf(format, a...))
	}
	var req, res, was object
	for to, text := range map[*object]string{&req: request, &res: string(answer), &was: string(line.Response)} {
		if text != "" && json.Unmarshal([]byte(text), to) != nil {
			bad("it is no JSON object")
		}
	}
	text := func(m object, key string) string { s, _ := m[key].(string); return s }
	switch line.Call {
	case "Plugin.Activate":
		if fmt.Sprint(res["Implements"]) != "[NetworkDriver IpamDriver]" {
			bad("it must name both drivers")
		}
	case "NetworkDriver.GetCapabilities":
		if res["Scope"] != "local" || res["GwAllocChecker"] != true {
			bad("scope must be local, GwAllocChecker true")
		}
	case "IpamDriver.GetCapabilities":
		if res["RequiresRequestReplay"] != true || res["RequiresMACAddress"] != false {
			bad("replay, and no MAC, must be asked for")
		}
	case "IpamDriver.GetDefaultAddressSpaces":
		if res["LocalDefaultAddressSpace"] != res["GlobalDefaultAddressSpace"] || res["LocalDefaultAddressSpace"] == "" {
			bad("both spaces must have one name")
		}
	case "IpamDriver.RequestPool":
		if _, err := netip.ParsePrefix(text(res, "Pool")); err != nil || text(req, "Pool") != "" && text(req, "Pool") != text(res, "Pool") {
			bad("it must be the pool that was asked for")
		}
		r.ours = append(r.ours, `"`+text(was, "PoolID")+`"`, `"`+text(res, "PoolID")+`"`)
	case "IpamDriver.RequestAddress":
		p, err := netip.ParsePrefix(text(res, "Address"))
		if asked := text(req, "Address"); err != nil || asked != "" && asked != p.Addr().String() {
			bad("it must be the address that was asked for, with a mask")
		}
		key := p.Addr().String()
		if r.held[key] && text(req, "Address") == "" && !strings.Contains(request, "gateway") {
			bad("the address is held already")
		}
		r.held[key] = true
		theirs := text(was, "Address")
		bare, _, _ := strings.Cut(theirs, "/")
		r.ours = append([]string{`"` + theirs + `"`, `"` + p.String() + `"`, `"` + bare + `"`, `"` + key + `"`}, r.ours...)
	case "IpamDriver.ReleaseAddress":
		delete(r.held, text(req, "Address"))
	case "NetworkDriver.CreateNetwork":
		r.internal[text(req, "NetworkID")] = strings.Contains(request, `"com.docker.network.internal":true`)
	case "NetworkDriver.CreateEndpoint":
		given, _ := req["Interface"].(map[string]any)
		got, _ := res["Interface"].(map[string]any)
		for key := range got {
			if text(given, key) != "" && text(got, key) != "" {
				bad("%s was given and must not come back", key)
			}
		}
	case "NetworkDriver.Join":
		var j network.JoinResponse
		if err := json.Unmarshal(answer, &j); err != nil {
			bad("%v", err)
		}
		link, err := r.kernel.Link(j.InterfaceName.SrcName)
		if err != nil || link.Up || j.InterfaceName.DstPrefix != "eth" {
			bad("the sub-interface must be there, and down: %v", err)
		}
		if !j.DisableGatewayService {
			bad("docker_gwbridge would appear")
		}
		if r.internal[text(req, "NetworkID")] == (j.Gateway != "") {
			bad("a gateway belongs to all networks but the internal")
		}
	case "NetworkDriver.EndpointOperInfo":
		if v, _ := res["Value"].(map[string]any); len(v) != 4 {
			bad("it must tell four things")
		}
	}
}

// empty checks that nothing is left once dockerd has removed everything.
func (r *replay) empty() {
	r.t.Helper()
	answer, err := r.call("Underlay.State", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if s := string(answer); bytes.Contains(answer, []byte("192.168.50.")) || bytes.Contains(answer, []byte("10.9.0.")) || strings.Contains(s, "EndpointID") {
		r.t.Errorf("left after everything was removed: %s", s)
	}
}
