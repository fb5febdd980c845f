package plugin

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"underlay/internal/ui"
)

// onTCP restarts the plugin with METRICS_ADDR set, and returns what serves there.
func (b *bench) onTCP() string {
	b.t.Helper()
	b.config.Metrics = netip.MustParseAddrPort("127.0.0.1:0")
	b.restart()
	return "http://" + b.plugin.metrics.addr.String()
}

// The page has what the socket answers, from within the plugin and over the socket.
func TestPageSeesWhatTheSocketTells(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	for n := range 3 {
		b.run(id, pool, 2+n)
	}
	over := View(b.config.Socket)
	for name, source := range map[string]ui.Source{"inside": view{b.plugin}, "over the socket": over} {
		for path, ask := range map[string]func(context.Context) (json.RawMessage, error){
			StatusPath: source.Status, NetworksPath: source.Networks,
			AddressesPath: func(ctx context.Context) (json.RawMessage, error) { return source.Addresses(ctx, netip.Addr{}) },
		} {
			got, err := ask(t.Context())
			want, wantErr := b.call(path[1:], object{})
			if err != nil || wantErr != nil || string(got) != string(want) {
				t.Errorf("%s, %s:\n%s %v\nwant\n%s %v", name, path, got, err, want, wantErr)
			}
		}
	}
	// A look that is over asks nothing more.
	ended, end := context.WithCancel(t.Context())
	end()
	for range 20 {
		if text, err := (view{b.plugin}).Status(ended); err == nil {
			t.Fatalf("after its end: %s", text)
		}
	}
	var page Addresses
	text, err := over.Addresses(t.Context(), netip.MustParseAddr("192.168.50.2"))
	if err == nil {
		err = json.Unmarshal(text, &page)
	}
	if err != nil || len(page.Addresses) != 2 || page.Addresses[0].Address.String() != "192.168.50.3" {
		t.Errorf("after .2: %s %v", text, err)
	}
	b.stop()
	if _, err := over.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "nobody serves") {
		t.Errorf("without a plugin: %v", err)
	}
	b.start()
	if _, err := over.Status(t.Context()); err != nil {
		t.Errorf("after it has come back: %v", err)
	}
}

func TestPageOnMetricsAddr(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	at := b.onTCP()
	for path, want := range map[string]string{"/": "<!doctype html>", "/ui.js": "EventSource", MetricsPath: "underlay_build_info"} {
		res, err := http.Get(at + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
			t.Errorf("%s: %s %.200s %v", path, res.Status, text, err)
		}
	}
	res, err := http.Post(at+ReleasePath, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("a call on TCP: %s", res.Status)
	}

	events, err := http.Get(at + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	lines := bufio.NewScanner(events.Body)
	lines.Buffer(nil, 1<<20)
	next := func(what string) {
		t.Helper()
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "data: ") && strings.Contains(lines.Text(), what) {
				return
			}
		}
		t.Fatalf("the stream has ended before %s: %v", what, lines.Err())
	}
	next(`"192.168.50.1"`)
	b.run(id, pool, 2)
	next(`{"address":"192.168.50.2","subnet":"192.168.50.0/24","kind":"dynamic"`)
	// While a browser looks, the plugin can be stopped; the stream ends with it.
	b.restart()
	for lines.Scan() {
	}
}
