package ui

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fixed is a plugin that answers what a test says.
type fixed struct {
	mu        sync.Mutex
	status    string
	networks  string
	addresses []string // pages
	err       error
	takes     time.Duration
	asked     int // for the status
	asking    int
	together  int // the most that have asked at a time
}

func (f *fixed) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fixed) looks() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fixed) Status(context.Context) (json.RawMessage, error) {
	f.set(func() { f.asking++; f.together = max(f.together, f.asking) })
	time.Sleep(f.takes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asking--
	f.asked++
	return json.RawMessage(f.status), f.err
}

func (f *fixed) Networks(context.Context) (json.RawMessage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return json.RawMessage(f.networks), f.err
}

func (f *fixed) Addresses(_ context.Context, after netip.Addr) (json.RawMessage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := 0
	if after.IsValid() {
		page = int(after.As4()[3])
	}
	return json.RawMessage(f.addresses[page]), f.err
}

func lan() *fixed {
	return &fixed{
		status:   `{"version": "test", "pools": []}`,
		networks: `{"networks": [{"id": "n1", "parent": "eth0"}]}`,
		addresses: []string{
			`{"addresses": [{"address": "10.0.0.1", "kind": "gateway"}, {"address": "10.0.0.2", "kind": "dynamic", "container": "web"}], "next": "0.0.0.1"}`,
			`{"addresses": [{"address": "10.0.0.8", "kind": "static"}, {"address": "10.0.0.8", "last": "10.0.0.15", "kind": "excluded"}]}`,
		},
	}
}

func TestAnswers(t *testing.T) {
	u := New(lan(), "docker.lan")
	defer u.Close()
	tests := []struct {
		name, method, host, path string
		headers                  map[string]string
		status                   int
		want                     string
	}{
		{"the page", "GET", "127.0.0.1:9324", "/", nil, 200, "<!doctype html>"},
		{"its style", "GET", "localhost:9324", "/ui.css", nil, 200, "prefers-color-scheme"},
		{"its script", "GET", "[::1]:9324", "/ui.js", nil, 200, "EventSource"},
		{"its icon", "GET", "192.168.50.2", "/icon.svg", nil, 200, "<svg"},
		{"by the name that is listened on", "GET", "Docker.LAN:9324", "/", nil, 200, "<!doctype html>"},
		{"by a name of somebody's", "GET", "evil.example:9324", "/", nil, 403, "no name of this page"},
		{"by a name that begins like an address", "GET", "127.0.0.1.evil.example", "/ui.js", nil, 403, "no name of this page"},
		{"events by a name of somebody's", "GET", "evil.example", "/events", nil, 403, "no name of this page"},
		{"by no name", "GET", "", "/", nil, 403, "no name of this page"},
		{"another page", "GET", "127.0.0.1", "/etc/passwd", nil, 404, "no such page"},
		{"a way out", "GET", "127.0.0.1", "/../ui.go", nil, 404, "no such page"},
		{"the folder", "GET", "127.0.0.1", "/page", nil, 404, "no such page"},
		{"a call of the plugin", "POST", "127.0.0.1", "/Underlay.Release", nil, 404, "no such page"},
		{"a POST", "POST", "127.0.0.1", "/", nil, 405, "only shows"},
		{"a HEAD", "HEAD", "127.0.0.1", "/", nil, 405, "only shows"},
		{"a DELETE", "DELETE", "127.0.0.1", "/events", nil, 405, "only shows"},
		{"OPTIONS", "OPTIONS", "127.0.0.1", "/events", map[string]string{"Origin": "http://evil.example"}, 405, "only shows"},
		{"events for another page", "GET", "127.0.0.1", "/events", map[string]string{"Origin": "http://evil.example"}, 403, "another page"},
		{"events for another port's page", "GET", "127.0.0.1:9324", "/events", map[string]string{"Origin": "http://127.0.0.1:80"}, 403, "another page"},
		{"events for an image of another page", "GET", "127.0.0.1", "/events", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403, "another page"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "http://127.0.0.1/", nil)
			r.URL.Path, r.Host = tt.path, tt.host
			for k, v := range tt.headers {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			u.ServeHTTP(w, r)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("%d %.200s; want %d with %q", w.Code, w.Body, tt.status, tt.want)
			}
			for key, value := range headers {
				if got := w.Header().Get(key); got != value {
					t.Errorf("%s: %q", key, got)
				}
			}
			for key := range w.Header() {
				if strings.HasPrefix(key, "Access-Control-") {
					t.Errorf("%s lets others' pages read", key)
				}
			}
			if allow := w.Header().Get("Allow"); (w.Code == http.StatusMethodNotAllowed) != (allow == "GET") {
				t.Errorf("Allow: %q", allow)
			}
		})
	}
	if csp := headers["Content-Security-Policy"]; !strings.HasPrefix(csp, "default-src 'none';") || strings.Contains(csp, "unsafe") {
		t.Errorf("%s", csp)
	}
}

// The page comes whole from its files, and no text is read as HTML.
func TestPageIsItsOwn(t *testing.T) {
	for path, f := range files {
		text, err := page.ReadFile("page/" + f.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, alien := range regexp.MustCompile(`(https?:)?//[a-z0-9-]+\.[a-z]+|@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\bstyle="|\bon[a-z]+="`).FindAllString(string(text), -1) {
			if alien != "http://www.w" || f.name != "icon.svg" {
				t.Errorf("%s has %s", path, alien)
			}
		}
	}
}

// stream is a browser's side of the events.
type stream struct {
	t    *testing.T
	body io.Closer
	r    *bufio.Reader
}

func listen(t *testing.T, u *UI) *stream {
	t.Helper()
	server := httptest.NewServer(u)
	t.Cleanup(server.Close)
	res, err := http.Get(server.URL + EventsPath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close(); u.Close() })
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, %s", res.Status, res.Header.Get("Content-Type"))
	}
	return &stream{t, res.Body, bufio.NewReader(res.Body)}
}

// next is the next event, as its name and data.
func (s *stream) next() string {
	s.t.Helper()
	var lines []string
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		switch line = strings.TrimSuffix(line, "\n"); {
		case line != "":
			lines = append(lines, strings.TrimPrefix(strings.TrimPrefix(line, "event: "), "data: "))
		case len(lines) == 2:
			return strings.Join(lines, " ")
		default:
			lines = nil // a comment, or how to come back
		}
	}
}

func TestEvents(t *testing.T) {
	f := lan()
	s := listen(t, New(f))
	expect := func(want string) {
		t.Helper()
		if got := s.next(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	expect(`all {"status":{"version":"test","pools":[]},"networks":[{"id":"n1","parent":"eth0"}],"addresses":[` +
		`{"address":"10.0.0.1","kind":"gateway"},{"address":"10.0.0.2","kind":"dynamic","container":"web"},` +
		`{"address":"10.0.0.8","kind":"static"},{"address":"10.0.0.8","last":"10.0.0.15","kind":"excluded"}]}`)

	// One comes, one changes, one goes; the excluded range stays where that was.
	f.set(func() {
		f.addresses = []string{`{"addresses": [{"address": "10.0.0.1", "kind": "gateway"}, {"address": "10.0.0.2", "kind": "dynamic", "container": "api"}, ` +
			`{"address": "10.0.0.3", "kind": "dynamic"}, {"address": "10.0.0.8", "last": "10.0.0.15", "kind": "excluded"}]}`}
	})
	expect(`change {"addresses":[{"address":"10.0.0.2","kind":"dynamic","container":"api"},{"address":"10.0.0.3","kind":"dynamic"}],"gone":["10.0.0.8"]}`)
	f.set(func() { f.status = `{"version": "test", "pools": [], "drift": ["x"]}` })
	expect(`change {"status":{"version":"test","pools":[],"drift":["x"]}}`)
	f.set(func() { f.networks = `{"networks": []}` })
	expect(`change {"networks":[]}`)

	f.set(func() { f.err = errors.New("nobody serves on \"x\"") })
	expect(`down {"error":"nobody serves on \"x\""}`)
	f.set(func() { f.err = errors.New("the plugin is slow") })
	expect(`down {"error":"the plugin is slow"}`)
	f.set(func() { f.err, f.addresses = nil, []string{`{"addresses": []}`} })
	expect(`change {"gone":["10.0.0.1","10.0.0.2","10.0.0.3","x10.0.0.8"]}`)
	f.set(func() { f.addresses = []string{`{"addresses": [}`} })
	if got := s.next(); !strings.HasPrefix(got, `down {"error":"the plugin's addresses are not understood`) {
		t.Error(got)
	}
	f.set(func() {
		f.addresses = []string{`{"addresses": [], "next": "0.0.0.1"}`, `{"addresses": [], "next": "0.0.0.1"}`}
	})
	expect(`down {"error":"the plugin's pages of addresses do not end: 0.0.0.1 comes after 0.0.0.1"}`)
	f.set(func() { f.addresses = []string{`{"addresses": []}`} })
	expect(`change {}`)
}

// A plugin that comes after the page is told of as a whole.
func TestPluginComesLate(t *testing.T) {
	f := lan()
	f.err = errors.New("no socket")
	s := listen(t, New(f))
	if got := s.next(); got != `down {"error":"no socket"}` {
		t.Error(got)
	}
	f.set(func() { f.err = nil })
	if got := s.next(); !strings.HasPrefix(got, `all {"status":`) {
		t.Error(got)
	}
}

// written is what a browser is sent, in the bubble of a test.
type written struct {
	http.ResponseWriter
	mu   sync.Mutex
	text strings.Builder
}

func (w *written) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *written) Flush() {}

func (w *written) count(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Count(w.text.String(), what)
}

// watch opens a stream and returns what ends it.
func watch(u *UI) (w *written, end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w = &written{ResponseWriter: httptest.NewRecorder()}
	r := httptest.NewRequest("GET", "http://127.0.0.1"+EventsPath, nil).WithContext(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		u.ServeHTTP(w, r)
	}()
	return w, func() { cancel(); <-done }
}

// The plugin is asked while somebody looks, once for all, and is left alone otherwise.
func TestNobodyLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := lan()
		u := New(f)
		defer u.Close()
		time.Sleep(time.Hour)
		if n := f.looks(); n != 0 {
			t.Fatalf("asked %d times for nobody", n)
		}
		one, endOne := watch(u)
		two, endTwo := watch(u)
		time.Sleep(time.Minute)
		if n, most := f.looks(), int(time.Minute/every)+1; n < most-1 || n > most {
			t.Errorf("asked %d times in a minute, want %d", n, most)
		}
		for _, w := range []*written{one, two} {
			if w.count("event: all") != 1 || w.count("event: ") != 1 {
				t.Errorf("without a change, one is told %s", w.text.String())
			}
			if n := w.count(":\n\n"); n < 3 || n > 4 {
				t.Errorf("%d signs of life in a minute", n)
			}
		}
		f.set(func() { f.status = `{"version": "new"}` })
		time.Sleep(every + time.Millisecond)
		if one.count("event: change") != 1 || two.count("event: change") != 1 {
			t.Error("a change is not told at the next look")
		}
		endOne()
		endTwo()
		before := f.looks()
		time.Sleep(time.Hour)
		if n := f.looks(); n > before {
			t.Errorf("asked %d times after all have gone", n-before)
		}
		f.set(func() { f.status = `{"version": "newer"}` })
		again, endAgain := watch(u)
		time.Sleep(time.Millisecond)
		if again.count(`"newer"`) != 1 || again.count(`"new"`) != 0 {
			t.Errorf("who comes back is told %s", again.text.String())
		}
		endAgain()
	})
}

// A plugin that is slow is asked less often.
func TestSlowPlugin(t *testing.T) {
	for takes, pause := range map[time.Duration]time.Duration{
		10 * time.Millisecond: every, 100 * time.Millisecond: 800 * time.Millisecond, time.Second: rarest,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := lan()
			f.takes = takes
			u := New(f)
			defer u.Close()
			_, end := watch(u)
			time.Sleep(time.Minute)
			if n, want := f.looks(), int((time.Minute-takes)/(takes+pause))+1; n != want {
				t.Errorf("asked %d times in a minute for %v each, want %d", n, takes, want)
			}
			end()
			time.Sleep(time.Minute) // the last look comes to its end
		})
	}
}

// Browsers that come and go, however fast, do not have the plugin asked more often than
// one that stays.
func TestComeAndGo(t *testing.T) {
	for takes, looks := range map[time.Duration]int{10 * time.Millisecond: 25, 2 * time.Second: 2} {
		synctest.Test(t, func(t *testing.T) {
			f := lan()
			f.takes = takes
			u := New(f)
			defer u.Close()
			for range 200 {
				_, end := watch(u)
				time.Sleep(50 * time.Millisecond)
				end()
			}
			f.set(func() {
				if f.together != 1 {
					t.Errorf("%d looks of %v at once", f.together, takes)
				}
			})
			if n := f.looks(); n < looks-1 || n > looks {
				t.Errorf("asked %d times in 10 s for %v each, want %d", n, takes, looks)
			}
			// Who comes while the plugin is left alone sees what was seen last.
			w, end := watch(u)
			synctest.Wait()
			if w.count("event: all") != 1 {
				t.Errorf("one is told %s", w.text.String())
			}
			end()
			time.Sleep(time.Minute) // the last look comes to its end
		})
	}
}

func TestTooManyLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := New(lan())
		defer u.Close()
		var ends []func()
		for range Most {
			_, end := watch(u)
			ends = append(ends, end)
		}
		synctest.Wait()
		w := httptest.NewRecorder()
		u.ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1"+EventsPath, nil))
		if want := "event: down\ndata: {\"error\":\"8 others are looking; close one of their pages\"}\n\n"; w.Code != http.StatusOK ||
			w.Header().Get("Content-Type") != "text/event-stream" || w.Body.String() != want {
			t.Errorf("%d %s %s", w.Code, w.Header(), w.Body)
		}
		ends[0]()
		_, ends[0] = watch(u)
		for _, end := range ends {
			end()
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.watchers != 0 {
			t.Errorf("%d look for ever", u.watchers)
		}
	})
}

// Close ends what is under way.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := New(lan())
		w, end := watch(u)
		time.Sleep(time.Second)
		u.Close()
		synctest.Wait()
		if w.count("event: all") != 1 {
			t.Error(w.text.String())
		}
		end()
	})
}
