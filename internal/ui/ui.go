package ui

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

// EventsPath is where changes are told as they come, as server-sent events.
const EventsPath = "/events"

// Source is the plugin. It answers in JSON, in the shape of its calls of these
// names; the page reads that as it is.
type Source interface {
	Status(context.Context) (json.RawMessage, error)
	Networks(context.Context) (json.RawMessage, error)
	// Addresses is a page of them, those that follow an address.
	Addresses(ctx context.Context, after netip.Addr) (json.RawMessage, error)
}

const (
	// every is how long the plugin is left alone between two looks. What happens is
	// to be on the page within a second, if a look takes no more than a tenth of one.
	every = 400 * time.Millisecond
	// share is how many times as long as a look takes it is left alone at least.
	share = 8
	// rarest is how long it is left alone at most.
	rarest = 4 * time.Second
	// longest is the longest that a look may take.
	longest = 10 * time.Second
	// beat is how often a stream without news says that it is there.
	beat = 15 * time.Second
	// writing is how long a browser may take for an event.
	writing = 30 * time.Second
	// Most is the most streams at a time.
	Most = 8
)

//go:embed page
var page embed.FS

// files are the parts of the page, by path.
var files = map[string]struct{ name, kind string }{
	"/":         {"index.html", "text/html; charset=utf-8"},
	"/ui.css":   {"ui.css", "text/css; charset=utf-8"},
	"/ui.js":    {"ui.js", "text/javascript; charset=utf-8"},
	"/icon.svg": {"icon.svg", "image/svg+xml"},
}

// headers are those of all answers: the page takes nothing from elsewhere, and
// nobody else's page may show it or read from it.
var headers = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Cache-Control":                "no-store",
}

// UI serves the page.
type UI struct {
	source Source
	names  []string

	ctx   context.Context // ends with Close
	close context.CancelFunc

	mu       sync.Mutex
	watchers int
	looking  bool          // somebody looks at the plugin, or leaves it alone after that
	now      *snapshot     // nil: nothing has been seen yet
	next     chan struct{} // closed when now changes
}

// New makes the page of a source. It is served to whoever calls this host by an
// address, by localhost, or by one of names: a browser that was led here by another
// name was led by somebody else's page.
func New(source Source, names ...string) *UI {
	u := &UI{source: source, names: names, next: make(chan struct{})}
	u.ctx, u.close = context.WithCancel(context.Background())
	return u
}

// Close ends the streams.
func (u *UI) Close() { u.close() }

// ServeHTTP answers with a part of the page, or with events.
func (u *UI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for key, value := range headers {
		w.Header().Set(key, value)
	}
	file, known := files[r.URL.Path]
	switch {
	case !u.isNamed(r.Host):
		refuseName(w, r)
	case !known && r.URL.Path != EventsPath:
		refuse(w, http.StatusNotFound, "there is no such page; / is the one that is")
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "this page only shows: it takes a GET")
	case r.URL.Path == EventsPath && isForeign(r):
		refuseForeign(w)
	case r.URL.Path == EventsPath:
		u.events(w, r)
	default:
		text, err := page.ReadFile("page/" + file.name)
		if err != nil {
			refuse(w, http.StatusInternalServerError, err.Error())
			return
		}
		w.Header().Set("Content-Type", file.kind)
		_, _ = w.Write(text) // a browser that has gone is past telling
	}
}

// Guard keeps other pages from what is served to programs beside this one. They may
// call this host by any name if anyName is true: then a site whose name leads here can
// read it, too.
func (u *UI) Guard(h http.Handler, anyName bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for key, value := range headers {
			w.Header().Set(key, value)
		}
		switch {
		case !anyName && !u.isNamed(r.Host):
			refuseName(w, r)
		case isForeign(r) || r.Header.Get("Origin") != "": // no program has one
			refuseForeign(w)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

func refuseName(w http.ResponseWriter, r *http.Request) {
	refuse(w, http.StatusForbidden, fmt.Sprintf("%q is no name of this page; open it by an IP address of the host, or as localhost on it", r.Host))
}

func refuseForeign(w http.ResponseWriter) {
	refuse(w, http.StatusForbidden, "another page may not read these")
}

func refuse(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, why)
}

// isNamed says whether a Host header is one by which the page may be called.
func (u *UI) isNamed(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil || strings.EqualFold(name, "localhost") {
		return true
	}
	for _, n := range u.names {
		if n != "" && strings.EqualFold(name, n) {
			return true
		}
	}
	return false
}

// isForeign says whether a browser asks for somebody else's page.
func isForeign(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	o, err := url.Parse(origin)
	return err != nil || o.Host != r.Host
}

// events tells a browser what there is, and then what changes, until it goes.
func (u *UI) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	if !u.join() { // told as an event, since a script cannot read another answer
		full := &snapshot{down: fmt.Sprintf("%d others are looking; close one of their pages", Most)}
		_, _ = w.Write(full.since(nil))
		return
	}
	defer u.leave()
	stream := http.NewResponseController(w)
	_ = stream.SetReadDeadline(time.Time{}) // a test's recorder has none
	send := func(text []byte) error {
		_ = stream.SetWriteDeadline(time.Now().Add(writing))
		if _, err := w.Write(text); err != nil {
			return err
		}
		return stream.Flush()
	}
	if send([]byte("retry: 1000\n\n")) != nil {
		return
	}
	alive := time.NewTicker(beat)
	defer alive.Stop()
	for had := (*snapshot)(nil); ; {
		now, next := u.state()
		if text := now.since(had); text != nil && send(text) != nil {
			return
		}
		had = now
		select {
		case <-next:
		case <-alive.C:
			if send([]byte(":\n\n")) != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-u.ctx.Done():
			return
		}
	}
}

// join has the plugin looked at while at least one has joined.
func (u *UI) join() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.watchers == Most {
		return false
	}
	u.watchers++
	if !u.looking {
		u.looking = true
		u.now = nil // what was seen last may be of long ago
		go u.watch()
	}
	return true
}

func (u *UI) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.watchers--
}

// goesOn says whether there is anybody to look for, and ends the looking if not.
func (u *UI) goesOn() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.looking = u.watchers > 0
	return u.looking
}

// state is what was seen last, and what is closed when that is over.
func (u *UI) state() (*snapshot, <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.now, u.next
}

// watch looks at the plugin until nobody is there any more. However often browsers
// come and go, there is one look at a time, and the plugin is left alone after each.
func (u *UI) watch() {
	for last := (*snapshot)(nil); u.goesOn(); {
		start := time.Now()
		now := look(u.ctx, u.source, last)
		if now != last {
			u.publish(now)
			last = now
		}
		select {
		case <-time.After(min(max(every, share*time.Since(start)), rarest)):
		case <-u.ctx.Done():
			return
		}
	}
}

// publish hands a snapshot to all streams.
func (u *UI) publish(now *snapshot) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.now = now
	close(u.next)
	u.next = make(chan struct{})
}
