// Command registry serves one container image out of memory, at a port of this host's
// loopback address, which it prints; it prints the image's digest when it has it. It
// serves until it is ended.
//
// Docker upgrades a plugin from a registry alone: this is the one of scripts/plugin.
// Others on the host can write to it, too. So the first image is the only one, and whoever
// has pushed one learns by the digest's line that it has come here.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

const (
	// maxImage and maxManifest are in bytes; the plugin's are some 10 MB and 2 KB.
	maxImage    = 256 << 20
	maxManifest = 1 << 20
)

func main() {
	l, err := listen()
	if err == nil {
		fmt.Println(l.Addr())
		s := &http.Server{Handler: newOnce(os.Stdout), ReadTimeout: time.Minute}
		err = s.Serve(l)
	}
	fmt.Fprintln(os.Stderr, "registry:", err)
	os.Exit(1)
}

// listen takes a port of those that root alone may listen on, if it can: Docker remembers
// where a plugin has come from, and nobody else is to answer there.
func listen() (net.Listener, error) {
	for port := 1023; port >= 600; port-- {
		if l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp4", "127.0.0.1:0")
}

// once is a registry that can be read only as soon as it has a manifest.
type once struct {
	registry http.Handler
	told     io.Writer
	room     atomic.Int64 // how many bytes more it takes

	mu   sync.Mutex // held while a manifest is written
	full bool
}

func newOnce(told io.Writer) *once {
	o := &once{registry: registry.New(registry.Logger(log.New(io.Discard, "", 0))), told: told}
	o.room.Store(maxImage)
	return o
}

func (o *once) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	manifest := strings.Contains(r.URL.Path, "/manifests/")
	switch {
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		o.registry.ServeHTTP(w, r)
	case r.Method == http.MethodDelete:
		http.Error(w, "this registry deletes nothing", http.StatusForbidden)
	case r.Method == http.MethodPut && manifest:
		// All of it before the lock, which must not wait for a client.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.full {
			http.Error(w, errFull, http.StatusForbidden)
			return
		}
		s := &status{ResponseWriter: w}
		o.registry.ServeHTTP(s, r)
		if o.full = s.code == http.StatusCreated; o.full {
			fmt.Fprintln(o.told, w.Header().Get("Docker-Content-Digest"))
		}
	case o.isFull():
		http.Error(w, errFull, http.StatusForbidden)
	default:
		r.Body = struct {
			io.Reader
			io.Closer
		}{&bounded{r.Body, &o.room}, r.Body}
		o.registry.ServeHTTP(w, r)
	}
}

func (o *once) isFull() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.full
}

const errFull = "this registry has its image and takes no other"

// bounded takes what it reads from a room that all share.
type bounded struct {
	io.Reader
	room *atomic.Int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.room.Add(-int64(n)) < 0 {
		return 0, fmt.Errorf("this registry takes %d bytes and no more", maxImage)
	}
	return n, err
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
