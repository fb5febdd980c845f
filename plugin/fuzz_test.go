package plugin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/netlinkutil/fake"
)

// routes are the calls that the mux has, which cannot be asked: those that the
// package's files name.
func routes(t testing.TB) []string {
	t.Helper()
	name := regexp.MustCompile(`"(/(?:Plugin|NetworkDriver|IpamDriver|Underlay)\.\w+)"`)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllSubmatch(text, -1) {
			found = append(found, string(m[1]))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// Whatever the body of a call, its handler answers it, in time and with JSON.
// The calls of many inputs go to one plugin, so that they build upon each other
// as in life; a plugin is replaced before its state makes it slow.
func FuzzHandlers(f *testing.F) {
	all := routes(f)
	if len(all) < 20 {
		f.Fatalf("only %d routes were found", len(all))
	}
	seed := func(call string, body []byte) {
		if i := slices.Index(all, "/"+call); i >= 0 {
			f.Add(uint8(i), body)
		}
	}
	files, err := filepath.Glob("testdata/docker-*.jsonl")
	if err != nil || len(files) == 0 {
		f.Fatalf("%d recordings, %v", len(files), err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		text, err := os.Open(file)
		if err != nil {
			f.Fatal(err)
		}
		defer text.Close()
		lines := bufio.NewScanner(text)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var line recorded
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				f.Fatal(err)
			}
			if key := line.Call + string(line.Request); !seen[key] {
				seen[key] = true
				seed(line.Call, line.Request)
			}
		}
	}
	for _, body := range []string{
		`{"Options":{"exclude":"192.168.50.1-192.168.50.63,fd00:50::/120","reserve":"db=192.168.50.70,db=fd00:50::1:70"}}`,
		`{"V6":true,"Options":{"parent":"eth0","rest":"0","conflict":"listen"}}`,
		`{"Pool":"192.168.50.0/24","SubPool":"192.168.50.64/26","Options":{"subnet":"192.168.50.0/24"}}`,
		`{"Options":{"pool":"private","probe_wait":"1s","probe_ahead":"0"}}`,
	} {
		seed("IpamDriver.RequestPool", []byte(body))
	}
	seed("Underlay.Forget", []byte(`{"Network":"0"}`))
	for i := range all {
		f.Add(uint8(i), []byte(nil))
	}

	b := newBench(f)
	b.kernel.AddAddress("eth0", netip.MustParsePrefix("192.168.50.254/24"))
	b.kernel.AddAddress("eth0", netip.MustParsePrefix("fd00:50::fe/64"))
	b.kernel.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), 0, fake.Hop{Link: "eth0", Gateway: netip.MustParseAddr("192.168.50.1")})
	b.kernel.AddRoute(netip.MustParsePrefix("::/0"), 0, fake.Hop{Link: "eth0", Gateway: netip.MustParseAddr("fe80::1")})
	b.config.Log.SetLevel(logrus.DebugLevel) // what is logged is formatted
	dir := f.TempDir()
	var history []string
	f.Cleanup(func() { b.t = f })
	f.Fuzz(func(t *testing.T, route uint8, body []byte) {
		b.t = t
		call := all[int(route)%len(all)]
		if len(history) == 1000 {
			history = nil
			b.stop()
			b.config.State = fmt.Sprintf("%s/%d", dir, time.Now().UnixNano())
			b.start()
		}
		history = append(history, call+" "+string(body))
		start := time.Now()
		w := httptest.NewRecorder()
		b.plugin.server.ServeHTTP(w, httptest.NewRequest(http.MethodPost, call, bytes.NewReader(body)))
		took, answer := time.Since(start), w.Body.String()
		var failed failure
		switch status := w.Code; {
		case took > deadline:
			t.Errorf("it took %v", took)
		case status != http.StatusOK && status != http.StatusBadRequest && status != http.StatusInternalServerError:
			t.Errorf("status %d", status)
		case !json.Valid(w.Body.Bytes()):
			t.Error("the answer is no JSON")
		case status == http.StatusOK:
		case json.Unmarshal(w.Body.Bytes(), &failed) != nil || failed.Err == "" || strings.Contains(failed.Err, "\n"):
			t.Error("the refusal is not one line in Err")
		case strings.Contains(failed.Err, "a bug to report"):
			t.Error("the handler panicked")
		}
		if t.Failed() {
			t.Fatalf("%s %q\nanswered %d %s\nafter\n%s", call, body, w.Code, answer, strings.Join(history[max(0, len(history)-30):], "\n"))
		}
	})
}
