package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/sirupsen/logrus"

	"underlay/driver"
	"underlay/internal/oneline"
)

const (
	// deadline ends every call: dockerd itself waits for ever for a plugin
	// that was there at its boot.
	deadline = 10 * time.Second
	// words is how long before that a call's own waiting ends, so that it can say
	// what it has waited for.
	words = 500 * time.Millisecond

	// answering is how long a client may take for its call and for reading the
	// answer, together.
	answering = 30 * time.Second
	// idle is how long a connection may carry nothing. dockerd keeps its
	// connections, and one that it just uses should not be shut.
	idle = 5 * time.Minute
	// maxHeader is in bytes; dockerd's are under 200.
	maxHeader = 16 << 10
	// maxLine is the longest error, in bytes.
	maxLine = 4 << 10
)

// server answers calls on one socket. It is http.Server and not sdk.Handler's,
// which cannot be shut down.
type server struct {
	http  http.Server
	calls map[string]http.HandlerFunc // by path
	log   *logrus.Logger
	ready func(context.Context) error // nil once the state is loaded
	// panicked is told of what a call has panicked with, before it is answered.
	panicked func(what any)

	metrics *metrics
}

func newServer(log *logrus.Logger, ready func(context.Context) error) *server {
	s := &server{calls: map[string]http.HandlerFunc{}, log: log, ready: ready, panicked: func(any) {}}
	s.http = http.Server{
		Handler:           s,
		ConnContext:       withVisit,
		ConnState:         answered,
		ReadHeaderTimeout: deadline,
		ReadTimeout:       deadline,
		WriteTimeout:      answering,
		IdleTimeout:       idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          stdlog.New(log.WriterLevel(logrus.DebugLevel), "", 0),
	}
	fixed(s, "/Plugin.Activate", manifest{Implements: []string{"NetworkDriver", "IpamDriver"}})
	return s
}

// ServeHTTP answers a call.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call, known := s.calls[r.URL.Path]
	switch {
	case r.URL.Path == MetricsPath && r.Method == http.MethodGet && s.metrics != nil:
		busy(r.Context())
		s.metrics.ServeHTTP(w, r)
	case !known:
		refuse(w, http.StatusNotFound, fmt.Errorf("underlay has no call %s", clip(r.URL.Path)))
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, fmt.Errorf("%s takes a POST, not a %s", r.URL.Path[1:], clip(r.Method)))
	default:
		call(w, r)
	}
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(failure{line(err.Error())}) // a client that has gone is past telling
}

// line is a text as one line of at most maxLine bytes: an error may quote what
// somebody has sent.
func line(text string) string {
	if len(text) > maxLine {
		text = strings.ToValidUTF8(text[:maxLine], "") + "…"
	}
	return oneline.Of(text)
}

// manifest is Plugin.Activate's answer. Docker asks only socket plugins; a
// managed one has it in config.json.
type manifest struct{ Implements []string }

// failure is an error as both of Docker's protocols read it from an answer
// with a status of 400 or more.
type failure struct{ Err string }

// none is the body of a call or of an answer that carries nothing.
type none = struct{}

// at registers a call that needs the plugin's state.
func at[Req, Res any](s *server, path string, f func(context.Context, Req) (Res, error)) {
	route(s, path, func(ctx context.Context, req Req) (Res, error) {
		if err := s.ready(ctx); err != nil {
			var none Res
			return none, err
		}
		return f(ctx, req)
	})
}

// fixed registers a call whose answer is always the same, state or no state.
func fixed[Res any](s *server, path string, res Res) {
	route(s, path, func(context.Context, none) (Res, error) { return res, nil })
}

func route[Req, Res any](s *server, path string, f func(context.Context, Req) (Res, error)) {
	s.calls[path] = func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		// A client that goes away changes nothing: what was begun is done.
		ctx, cancel := newTerm(context.WithoutCancel(r.Context()), w)
		defer cancel()
		var req Req
		err := decode(r.Body, &req)
		var res Res
		if err == nil {
			busy(ctx)
			res, err = answer(ctx, req, f, s.panicked)
		}
		if s.metrics != nil {
			s.metrics.called(path, outcomeOf(ctx, err), time.Since(start))
		}
		entry := func() *logrus.Entry {
			return s.log.WithFields(about(req)).WithFields(logrus.Fields{"call": path[1:], "ms": milliseconds(start)})
		}
		if err == nil {
			if s.log.IsLevelEnabled(logrus.DebugLevel) {
				entry().Debug(exchange(path, req, res))
			}
			sdk.EncodeResponse(w, res, false)
			return
		}
		entry().Warn(err)
		refuse(w, status(err), err)
	}
}

// answer makes a call, and ends it at its deadline even if what it waits for,
// such as the kernel's lock over all links, knows of none. The call then goes
// on alone, finds its ctx ended, and takes back what it did.
func answer[Req, Res any](ctx *term, req Req, f func(context.Context, Req) (Res, error), panicked func(any)) (res Res, err error) {
	type outcome struct {
		res Res
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		own, cancel := ctx.own()
		defer cancel()
		var o outcome
		o.res, o.err = caught(func() (Res, error) { return f(own, req) }, panicked)
		done <- o
	}()
	select {
	case o := <-done:
		return o.res, o.err
	case <-ctx.Done():
		return res, fmt.Errorf("underlay gave up after %v: the host's kernel or disk is too slow; try again, and see its log", deadline)
	}
}

// caught has a panic of f end what was asked, and not the daemon.
func caught[Res any](f func() (Res, error), panicked func(any)) (res Res, err error) {
	defer func() {
		if p := recover(); p != nil {
			panicked(p)
			err = fmt.Errorf("underlay failed at this call, which is a bug to report: %v", p)
		}
	}()
	return f()
}

// about names the network and the endpoint, or the pool, that a call is about.
func about(req any) logrus.Fields {
	fields := logrus.Fields{}
	v := reflect.ValueOf(req)
	if v.Kind() != reflect.Struct {
		return fields
	}
	for field, key := range map[string]string{"NetworkID": "network", "EndpointID": "endpoint", "PoolID": "pool"} {
		f := v.FieldByName(field)
		if !f.IsValid() || f.String() == "" {
			continue
		}
		if fields[key] = f.String(); key != "pool" {
			fields[key] = driver.Short(f.String())
		}
	}
	return fields
}

// exchange is a call and its answer as JSON, for the log. What the underlay command
// is answered is left out: it is the state, or pages of it.
func exchange(path string, req, res any) string {
	text, _ := json.Marshal(req)
	said := line(string(text))
	if strings.HasPrefix(path, "/NetworkDriver.") || strings.HasPrefix(path, "/IpamDriver.") {
		text, _ = json.Marshal(res)
		said += " -> " + line(string(text))
	}
	return said
}

func milliseconds(since time.Time) string {
	return fmt.Sprintf("%.1f", float64(time.Since(since).Microseconds())/1000)
}

// listen opens the socket, for root alone. A socket left by a plugin that died
// is replaced; one that somebody answers on, or another file, is not. Folders that it
// lacks are as dockerd, which may start later, would make them.
func listen(path string) (*door, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket folder: %w", err)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s is there and is no socket; move it away, or give another --socket", path)
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return nil, fmt.Errorf("another process serves on %s; stop it, or give another --socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("old socket: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	// The folder of a socket plugin may be everybody's to read: the mask makes the
	// socket root's from its first moment.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return newDoor(l, maxVisits), nil
}
