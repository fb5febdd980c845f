// Command registry serves container images out of memory, at a port of this host's
// loopback address that is free, which it prints. It serves until it is ended.
//
// Docker upgrades a plugin from a registry alone: this is the one of scripts/plugin.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err == nil {
		fmt.Println(l.Addr())
		s := &http.Server{
			Handler:           registry.New(registry.Logger(log.New(io.Discard, "", 0))),
			ReadHeaderTimeout: 10 * time.Second,
		}
		err = s.Serve(l)
	}
	fmt.Fprintln(os.Stderr, "registry:", err)
	os.Exit(1)
}
