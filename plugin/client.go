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
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// DefaultSocket is where dockerd looks for a socket plugin of this name.
const DefaultSocket = "/run/docker/plugins/underlay.sock"

// managedSockets is where dockerd puts the sockets of managed plugins.
const managedSockets = "/run/docker/plugins/*/underlay.sock"

// Call posts a call to a plugin's socket and reads its answer into res, nil for
// an answer that does not matter.
func Call(ctx context.Context, client *http.Client, path string, req, res any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://underlay"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return plain(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return plain(err)
	}
	if answer.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(text, &f) == nil && f.Err != "" {
			if answer.StatusCode == http.StatusNotFound {
				return fmt.Errorf("%s: the plugin that runs is of another version than this command", f.Err)
			}
			return fmt.Errorf("%s", f.Err)
		}
		return fmt.Errorf("%s answered %s: %s", path[1:], answer.Status, bytes.TrimSpace(text))
	}
	if res == nil {
		return nil
	}
	return json.Unmarshal(text, res)
}

// plain is an error of HTTP for a person who has typed no URL.
func plain(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	if u.Timeout() {
		return fmt.Errorf("the plugin has not answered in time; see its log (journalctl -u docker, or of a service -u underlay)")
	}
	return u.Err
}

// where says how a person sees whether the plugin runs, be it a managed one or a service.
const where = "is the plugin enabled (docker plugin ls), or its service up (systemctl status underlay)?"

// unserved says why a socket cannot be spoken to.
func unserved(socket string, err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("nobody serves on %s: %s", socket, where)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s is root's alone: run the command as root", socket)
	}
	return err
}

// ErrNoSocket is that there is no socket of a plugin.
var ErrNoSocket = fmt.Errorf("no socket %s or %s: are you root, and %s", DefaultSocket, managedSockets, where)

// Find is the socket of the plugin: the one that is named, or else the one that
// somebody serves on where dockerd keeps them.
func Find(socket string) (string, error) {
	if socket != "" {
		return socket, nil
	}
	return find(managedSockets, DefaultSocket)
}

// find passes over sockets that nobody serves on, as a plugin that is disabled may
// leave its own, unless there is nothing else.
func find(patterns ...string) (string, error) {
	var found, served []string
	for _, p := range patterns {
		some, err := filepath.Glob(p)
		if err != nil {
			return "", err
		}
		found = append(found, some...)
	}
	for _, path := range found {
		if len(found) == 1 {
			break // whoever speaks to it will see
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			served = append(served, path)
		}
	}
	switch {
	case len(found) == 0:
		return "", ErrNoSocket
	case len(served) > 1:
		return "", fmt.Errorf("several plugins serve here: give --socket, one of %v", served)
	case len(served) == 1:
		return served[0], nil
	}
	return found[0], nil
}

// Client speaks HTTP over a plugin's socket; an empty path is looked for as Find
// does, anew for each connection: a plugin that is installed anew has another one.
func Client(socket string) *http.Client {
	return client(func() (string, error) { return Find(socket) })
}

func client(find func() (string, error)) *http.Client {
	return &http.Client{
		Timeout: deadline,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				socket, err := find()
				if err != nil {
					return nil, err
				}
				c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
				if err != nil {
					return nil, unserved(socket, err)
				}
				return c, nil
			},
			MaxIdleConnsPerHost: 64,
		},
	}
}

// Fetch is a running plugin's answer to a call that takes nothing, as indented JSON.
func Fetch(socket, path string) (string, error) {
	var raw json.RawMessage
	if err := ask(socket, path, none{}, &raw); err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return "", err
	}
	return b.String(), nil
}

// Forget has a running plugin forget a network that Docker no longer has.
func Forget(socket, network string) error {
	return ask(socket, ForgetPath, ForgetRequest{network}, nil)
}

func ask(socket, path string, req, res any) error {
	return Call(context.Background(), Client(socket), path, req, res)
}
