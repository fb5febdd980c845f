package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"go.yaml.in/yaml/v3"

	"underlay/internal/ui"
	"underlay/ipam"
)

func TestParseMetricsAddr(t *testing.T) {
	for text, want := range map[string]string{
		"": "invalid AddrPort", "9323": "127.0.0.1:9323", ":9323": "127.0.0.1:9323", "0.0.0.0:9323": "0.0.0.0:9323",
		"192.168.50.2:9323": "192.168.50.2:9323", "[::1]:9323": "[::1]:9323", "[fd00::2]:1": "[fd00::2]:1",
	} {
		if addr, err := ParseMetricsAddr(text); err != nil || addr.String() != want {
			t.Errorf("%q is %v, %v, want %s", text, addr, err, want)
		}
	}
	for _, text := range []string{"on", "0", ":0", ":", "70000", "-1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "localhost:9323", "::1:9323", "1.2.3.4:99999", " 9323", "9323\n"} {
		if addr, err := ParseMetricsAddr(text); err == nil || !strings.Contains(err.Error(), "write it as 9323") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q is %v, %v", text, addr, err)
		}
	}
}

// get asks for the metrics.
func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, res.Status, err, text)
	}
	return string(text)
}

// value is a series' value, "" if there is none.
func value(text, series string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func TestMetrics(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.config.Metrics = netip.MustParseAddrPort("127.0.0.1:0")
	b.start()
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.run(id, pool, 2)
	b.end(id, pool, 3, b.run(id, pool, 3))
	b.plugin.parts.ipam.Heard(ipam.Sighting{Link: "eth0", Addr: netip.MustParseAddr("192.168.50.2"), MAC: []byte{2, 0, 0, 0, 0, 9}})
	b.plugin.parts.ipam.Heard(ipam.Sighting{Link: "eth0", Addr: netip.MustParseAddr("192.168.50.9"), MAC: []byte{2, 0, 0, 0, 0, 9}})
	b.kernel.Unplug("eth0")
	if _, err := b.call("IpamDriver.RequestAddress", object{"PoolID": "nonsense"}); err == nil {
		t.Fatal("it is accepted")
	}
	b.post("IpamDriver.RequestAddress", "{")
	b.plugin.metrics.called("/NetworkDriver.Join", outcomeLate, deadline)
	text := get(t, b.client, "http://underlay/metrics")
	for series, want := range map[string]string{
		`underlay_calls_late_total{call="NetworkDriver.Join"}`: "1", `underlay_calls_late_total{call="NetworkDriver.Leave"}`: "0",
		`underlay_calls_late_total{call="IpamDriver.RequestAddress"}`: "0", `underlay_calls_late_total{call="Underlay.Status"}`: "0",
		`underlay_state_loaded`: "1", `underlay_networks`: "1", `underlay_endpoints`: "1",
		`underlay_parent_up{parent="eth0"}`: "0", `underlay_parent_waiting{parent="eth0"}`: "0",
		`underlay_pool_size{subnet="192.168.50.0/24"}`:                                             "254",
		`underlay_pool_addresses{subnet="192.168.50.0/24",use="containers"}`:                       "1",
		`underlay_pool_addresses{subnet="192.168.50.0/24",use="gateways"}`:                         "1",
		`underlay_pool_addresses{subnet="192.168.50.0/24",use="resting"}`:                          "1",
		`underlay_pool_addresses{subnet="192.168.50.0/24",use="others"}`:                           "1",
		`underlay_pool_addresses{subnet="192.168.50.0/24",use="free"}`:                             "250",
		`underlay_conflicts{subnet="192.168.50.0/24"}`:                                             "1",
		`underlay_reconciles_total`:                                                                "1",
		`underlay_link_events_total{kind="gone"}`:                                                  "0",
		`underlay_call_duration_seconds_count{call="NetworkDriver.Join",outcome="ok"}`:             "2",
		`underlay_call_duration_seconds_count{call="IpamDriver.RequestAddress",outcome="failed"}`:  "1",
		`underlay_call_duration_seconds_count{call="IpamDriver.RequestAddress",outcome="refused"}`: "1",
		`underlay_build_info{goversion="` + runtime.Version() + `",version="test"}`:                "1",
	} {
		if got := value(text, series); got != want {
			t.Errorf("%s is %q, want %s", series, got, want)
		}
	}
	tcp := get(t, http.DefaultClient, fmt.Sprintf("http://%v/metrics", b.plugin.metrics.addr))
	http.DefaultClient.CloseIdleConnections()
	if value(tcp, "underlay_networks") != "1" {
		t.Errorf("on TCP there is\n%s", tcp)
	}
	res, err := http.Post(fmt.Sprintf("http://%v/Underlay.State", b.plugin.metrics.addr), "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(res.Body); res.StatusCode/100 != 4 || strings.Contains(string(answer), "192.168.50") {
		t.Errorf("a call on TCP: %s: %s", res.Status, answer)
	}
	res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	promtool(t, text, "check", "metrics")
}

// A port that another program has is no reason not to serve Docker.
func TestMetricsPortTaken(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.config.Metrics = netip.MustParseAddrPort("127.0.0.1:0")
	b.start()
	other := newBench(t)
	other.stop()
	var log bytes.Buffer
	other.config.Log = logrus.New()
	other.config.Log.SetOutput(&log)
	other.config.Metrics = netip.MustParseAddrPort(b.plugin.metrics.addr.String())
	other.start()
	must[object](other, "NetworkDriver.GetCapabilities", object{})
	other.stop() // so that nobody writes
	defer other.start()
	if !strings.Contains(log.String(), "metrics are not served on METRICS_ADDR=") {
		t.Errorf("the log says %s", log.String())
	}
}

// A range that is exhausted is seen to be, however much else of its pool is free.
func TestMetricsOfRanges(t *testing.T) {
	b := newBench(t)
	pool := must[struct{ PoolID string }](b, "IpamDriver.RequestPool", object{"Pool": "192.168.50.0/24", "SubPool": "192.168.50.64/30"}).PoolID
	must[object](b, "NetworkDriver.CreateNetwork", createNetwork(dockerID(1), "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"}))
	for range 4 {
		must[object](b, "IpamDriver.RequestAddress", object{"PoolID": pool})
	}
	b.lan(2, "192.168.60.0/24", "192.168.60.1", object{"parent": "eth0"})
	text := get(t, b.client, "http://underlay/metrics")
	for series, want := range map[string]string{
		`underlay_pool_addresses{subnet="192.168.50.0/24",use="free"}`:                              "250",
		`underlay_range_size{range="192.168.50.64/30",subnet="192.168.50.0/24"}`:                    "4",
		`underlay_range_addresses{range="192.168.50.64/30",subnet="192.168.50.0/24",use="free"}`:    "0",
		`underlay_range_addresses{range="192.168.50.64/30",subnet="192.168.50.0/24",use="resting"}`: "0",
	} {
		if got := value(text, series); got != want {
			t.Errorf("%s is %q, want %s", series, got, want)
		}
	}
	if n := strings.Count(text, "\nunderlay_range_size{"); n != 1 {
		t.Errorf("%d ranges:\n%s", n, text)
	}
}

// What is not loaded is not counted as nothing.
func TestMetricsWithoutState(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.config.State = filepath.Join(b.config.Socket, "no folder")
	b.config.Log.SetOutput(io.Discard)
	if err := os.WriteFile(filepath.Dir(b.config.State), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.config.Socket += "2"
	b.start()
	text := get(t, b.client, "http://underlay/metrics")
	if value(text, "underlay_state_loaded") != "0" || value(text, "underlay_networks") != "" {
		t.Errorf("it says\n%s", text)
	}
	// The help says so, and no more: what is counted from no state is there.
	if strings.Contains(text, "all but") || value(text, `underlay_link_events_total{kind="gone"}`) != "0" || value(text, "go_goroutines") == "" {
		t.Errorf("it says\n%s", text)
	}
}

// A fault in what is looked up ends the look and the scrape, not the daemon.
func TestFaultyLook(t *testing.T) {
	var log bytes.Buffer
	p := &Plugin{config: Config{Version: "test", Log: logrus.New()}, tried: make(chan struct{})}
	p.config.Log.SetOutput(&log)
	close(p.tried) // and there are no parts
	for name, ask := range map[string]func(context.Context) (json.RawMessage, error){
		"status": view{p}.Status, "networks": view{p}.Networks,
		"addresses": func(ctx context.Context) (json.RawMessage, error) { return view{p}.Addresses(ctx, netip.Addr{}) },
	} {
		if text, err := ask(t.Context()); err == nil || !strings.Contains(err.Error(), "a bug to report") {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	w := httptest.NewRecorder()
	newMetrics(p).ServeHTTP(w, httptest.NewRequest("GET", MetricsPath, nil))
	if w.Code != http.StatusOK || value(w.Body.String(), "underlay_state_loaded") != "1" || !strings.Contains(log.String(), "a bug to report") {
		t.Errorf("%d %s\n%s", w.Code, w.Body, log.String())
	}
}

var metricName = regexp.MustCompile(`\b(underlay|go|process)_[a-z0-9_]+`)

// registered are the names of all metrics that there may be.
func registered(t *testing.T) (names []string) {
	descs := make(chan *prometheus.Desc)
	go func() { newMetrics(newBench(t).plugin).registry.Describe(descs); close(descs) }()
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		names = append(names, name.FindStringSubmatch(d.String())[1])
	}
	return names
}

func known(names []string, metric string) bool {
	for _, suffix := range []string{"", "_bucket", "_count", "_sum"} {
		if base, ok := strings.CutSuffix(metric, suffix); ok && slices.Contains(names, base) {
			return true
		}
	}
	return false
}

// What the alert rules, the dashboard and the manual speak of is there; the manual
// speaks of all.
func TestMetricsInTheManual(t *testing.T) {
	names := registered(t)
	said := map[string]bool{}
	for _, file := range []string{"alerts.yml", "grafana.json", "metrics.md"} {
		text, err := os.ReadFile(filepath.Join("../docs", file))
		if err != nil {
			t.Fatal(err)
		}
		found := metricName.FindAllString(string(text), -1)
		if len(found) < 8 {
			t.Errorf("%s names but %v", file, found)
		}
		for _, metric := range found {
			if !known(names, metric) {
				t.Errorf("%s speaks of %s, which there is not", file, metric)
			}
			said[metric] = said[metric] || file == "metrics.md"
		}
	}
	for _, name := range names {
		if strings.HasPrefix(name, "underlay_") && !said[name] {
			t.Errorf("metrics.md says nothing of %s", name)
		}
	}
}

// promtool is Prometheus's own tool: it reads input, if there is any.
func promtool(t *testing.T, input string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("this machine lacks promtool (scripts/install-deps promtool)")
		return
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

// Each rule fires in a test.
func TestEachAlertFires(t *testing.T) {
	read := func(path string, to any) {
		text, err := os.ReadFile(path)
		if err == nil {
			err = yaml.Unmarshal(text, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var rules struct {
		Groups []struct{ Rules []struct{ Alert string } }
	}
	var tests struct {
		Tests []struct {
			Rules []struct {
				Name string `yaml:"alertname"`
				Want []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	read("../docs/alerts.yml", &rules)
	read("testdata/alerts.yml", &tests)
	fires := map[string]bool{}
	for _, test := range tests.Tests {
		for _, r := range test.Rules {
			fires[r.Name] = fires[r.Name] || len(r.Want) > 0
		}
	}
	n := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if n++; !fires[r.Alert] {
				t.Errorf("%s fires in no test", r.Alert)
			}
		}
	}
	if n < 18 {
		t.Errorf("there are but %d rules", n)
	}
}

func TestAlertRules(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("this machine lacks promtool (scripts/install-deps promtool)")
	}
	promtool(t, "", "check", "rules", "../docs/alerts.yml")
	promtool(t, "", "test", "rules", "testdata/alerts.yml")
}

// Each query of the dashboard is one that Prometheus understands.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	type rule struct{ Record, Expr string }
	var rules []rule
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q", p.ID, p.Title)
		}
		ids[p.ID] = true
		for i, q := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$job", "underlay", "$instance", ".*").Replace(q.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q asks with a variable that is not known: %s", p.Title, q.Expr)
			}
			rules = append(rules, rule{fmt.Sprintf("panel:%d:%d", p.ID, i), expr})
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	out, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "check", "rules", file)
}

// Nobody holds the metrics' port shut with bodies that do not come, or with the page's
// streams.
func TestMetricsHeldShut(t *testing.T) {
	streams, bodies := "GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", []string{
		"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n",
	}
	b := newBench(t)
	on := strings.TrimPrefix(b.onTCP(), "http://")
	dial := func(text string) net.Conn {
		c, err := net.Dial("tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		return c
	}
	answer := func(c net.Conn) string {
		line := make([]byte, len("HTTP/1.1 200"))
		if _, err := io.ReadFull(c, line); err != nil {
			return err.Error()
		}
		return string(line)
	}
	for range ui.Most {
		if got := answer(dial(streams)); got != "HTTP/1.1 200" {
			t.Fatalf("a stream: %s", got)
		}
	}
	for i := range maxScrapers {
		if got := answer(dial(bodies[i%2])); got != "HTTP/1.1 400" {
			t.Errorf("%q: %s", bodies[i%2], got)
		}
	}
	start := time.Now()
	get(t, http.DefaultClient, "http://"+on+MetricsPath)
	http.DefaultClient.CloseIdleConnections()
	if took := time.Since(start); took > deadline/2 {
		t.Errorf("a scrape took %v", took)
	}
}

// No web site reads the metrics through a browser, as far as its names tell it.
func TestMetricsForOthersPages(t *testing.T) {
	b := newBench(t)
	for listens, tests := range map[string][]struct {
		host, header, value string
		want                int
	}{
		"127.0.0.1:0": {
			{host: "127.0.0.1:9323", want: 200}, {host: "localhost", want: 200}, {host: "evil.example", want: 403},
			{host: "127.0.0.1", header: "Origin", value: "http://evil.example", want: 403}, {host: "127.0.0.1", header: "Origin", value: "http://127.0.0.1", want: 403},
			{host: "127.0.0.1", header: "Sec-Fetch-Site", value: "cross-site", want: 403}, {host: "127.0.0.1", header: "Sec-Fetch-Site", value: "none", want: 200},
		},
		"0.0.0.0:0": {
			{host: "127.0.0.1", want: 200}, {host: "docker.lan:9323", want: 200},
			{host: "docker.lan", header: "Origin", value: "http://docker.lan", want: 403}, {host: "docker.lan", header: "Sec-Fetch-Site", value: "same-site", want: 403},
		},
	} {
		b.config.Metrics = netip.MustParseAddrPort(listens)
		b.restart()
		for _, tt := range tests {
			r := httptest.NewRequest("GET", MetricsPath, nil)
			if r.Host = tt.host; tt.header != "" {
				r.Header.Set(tt.header, tt.value)
			}
			w := httptest.NewRecorder()
			b.plugin.metrics.server.Handler.ServeHTTP(w, r)
			if has := strings.Contains(w.Body.String(), "underlay_build_info"); w.Code != tt.want || has != (tt.want == 200) {
				t.Errorf("on %s, %+v: %d, with metrics: %v", listens, tt, w.Code, has)
			}
			if h := w.Header(); h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cross-Origin-Resource-Policy") != "same-origin" {
				t.Errorf("on %s, %+v: %v", listens, tt, h)
			}
		}
	}
}

// held is a collector that takes until it is let go.
type held struct{ begun, end chan struct{} }

func (h held) Describe(chan<- *prometheus.Desc) {}
func (h held) Collect(chan<- prometheus.Metric) { h.begun <- struct{}{}; <-h.end }

// Whoever waits for the metrics is not shut out for connections that ask for nothing.
func TestMetricsFullHouse(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.config.Metrics = netip.MustParseAddrPort("127.0.0.1:0")
	b.start()
	h := held{make(chan struct{}), make(chan struct{})}
	b.plugin.metrics.registry.MustRegister(h)
	got := make(chan error, 1)
	on := b.plugin.metrics.addr.String()
	go func() {
		res, err := http.Get("http://" + on + MetricsPath)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		got <- err
	}()
	<-h.begun
	shut := make(chan error, ui.Most+maxScrapers)
	for range cap(shut) {
		c, err := net.Dial("tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			_, err := c.Read(make([]byte, 1))
			shut <- err
		}()
	}
	select {
	case <-shut:
	case err := <-got:
		t.Errorf("the one that waits is shut out: %v", err)
		close(h.end)
		return
	}
	close(h.end)
	if err := <-got; err != nil {
		t.Errorf("metrics that took a while: %v", err)
	}
}
