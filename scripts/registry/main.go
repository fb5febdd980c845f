// Command registry serves one container image out of memory, at a port of this host's
// loopback address that is free, which it prints. It serves until it is ended.
//
// Docker upgrades a plugin from a registry alone: this is the one of scripts/plugin.
// Others on the host can write to it, too, so the first image is the only one.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err == nil {
		fmt.Println(l.Addr())
		s := &http.Server{Handler: newOnce(), ReadHeaderTimeout: 10 * time.Second}
		err = s.Serve(l)
	}
	fmt.Fprintln(os.Stderr, "registry:", err)
	os.Exit(1)
}

// once is a registry that can be read only as soon as it has a manifest. Who comes later
// with another is refused, and so what is pulled is what the first has pushed.
type once struct {
	registry http.Handler
	mu       sync.RWMutex
	full     bool
}

func newOnce() *once {
	return &once{registry: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
}

func (o *once) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		o.registry.ServeHTTP(w, r)
	case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
		o.mu.Lock()
		defer o.mu.Unlock()
		o.write(w, r)
	default:
		o.mu.RLock()
		defer o.mu.RUnlock()
		o.write(w, r)
	}
}

// write is called with mu held, for writing if it is a manifest that is written.
func (o *once) write(w http.ResponseWriter, r *http.Request) {
	if o.full {
		http.Error(w, "this registry has its image and takes no other", http.StatusForbidden)
		return
	}
	s := &status{ResponseWriter: w}
	o.registry.ServeHTTP(s, r)
	if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
		o.full = s.code < 300
	}
}

// status notes an answer's.
type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}
