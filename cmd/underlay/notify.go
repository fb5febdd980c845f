package main

import (
	"fmt"
	"net"
	"os"
)

// ready tells the init system, where it waits for that (systemd, Type=notify), that
// dockerd may come: the socket is there.
func ready() error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	c, err := net.Dial("unixgram", name) // an @ in front is an abstract one here, too
	if err == nil {
		defer c.Close()
		_, err = c.Write([]byte("READY=1"))
	}
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return nil
}
