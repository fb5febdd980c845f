package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/sirupsen/logrus"
)

const (
	// manifest is Plugin.Activate's answer. Docker asks only socket plugins;
	// a managed one has it in config.json.
	manifest = `{"Implements": ["NetworkDriver", "IpamDriver"]}`

	// deadline ends every call. dockerd itself waits for ever for a plugin
	// that was there at its boot.
	deadline = 10 * time.Second

	// maxBody is far above what dockerd sends: a call is some kilobytes.
	maxBody = 1 << 20
)

// server answers calls on one socket.
type server struct {
	handler sdk.Handler
	log     logrus.FieldLogger
	ready   func(context.Context) error // nil once the state is loaded
	calls   sync.WaitGroup
}

func newServer(log logrus.FieldLogger, ready func(context.Context) error) *server {
	return &server{handler: sdk.NewHandler(manifest), log: log, ready: ready}
}

// failure is an error as both of Docker's protocols read it from an answer
// with status 400 or 500.
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
	s.handler.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		defer s.calls.Done()
		start := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), deadline)
		defer cancel()
		var req Req
		res, err := answer(ctx, w, r, &req, f)
		log := s.log.WithField("call", path[1:])
		if err == nil {
			log.WithField("ms", milliseconds(start)).Debug(exchange{req, res})
			sdk.EncodeResponse(w, res, false)
			return
		}
		log.WithField("ms", milliseconds(start)).Warn(err)
		status := http.StatusInternalServerError
		if errors.As(err, new(badRequest)) {
			status = http.StatusBadRequest
		}
		w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(failure{err.Error()}) // a client that has gone is past telling
	})
}

func answer[Req, Res any](ctx context.Context, w http.ResponseWriter, r *http.Request, req *Req, f func(context.Context, Req) (Res, error)) (res Res, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("underlay failed at this call, which is a bug to report: %v", p)
		}
	}()
	if err := decode(w, r, req); err != nil {
		return res, err
	}
	return f(ctx, *req)
}

// badRequest is an error of the caller's.
type badRequest struct{ error }

func (b badRequest) Unwrap() error { return b.error }

// errEmpty is what dockerd's retry gets: it repeats a call whose connection
// broke, but without the body, which it has read to its end.
var errEmpty = badRequest{errors.New("the call came without a body; it may be a repeat of one whose connection broke: try the docker command again")}

func decode[Req any](w http.ResponseWriter, r *http.Request, req *Req) error {
	if _, nothing := any(req).(*none); nothing {
		return nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return badRequest{fmt.Errorf("the call's body is over %d bytes", tooLarge.Limit)}
	}
	if err != nil {
		return badRequest{fmt.Errorf("the call's body broke off: %w", err)}
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return errEmpty
	}
	if err := json.Unmarshal(body, req); err != nil {
		return badRequest{fmt.Errorf("the call's body is not understood: %w", err)}
	}
	return nil
}

// exchange is a call and its answer as JSON, made only if the line is logged.
type exchange struct{ req, res any }

func (e exchange) String() string {
	req, _ := json.Marshal(e.req)
	res, _ := json.Marshal(e.res)
	return string(req) + " -> " + string(res)
}

func milliseconds(since time.Time) string {
	return fmt.Sprintf("%.1f", float64(time.Since(since).Microseconds())/1000)
}

// listen opens the socket, for root alone. A file left by a plugin that died
// is replaced; a socket that somebody answers on is not.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket folder: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process serves on %s; stop it, or give another --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}
