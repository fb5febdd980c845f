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
	"slices"
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
		return fmt.Errorf("the plugin has not answered within %v; see dockerd's log", deadline)
	}
	return u.Err
}

// unserved says why a socket cannot be spoken to.
func unserved(socket string, err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("nobody serves on %s: is the plugin enabled (docker plugin ls)?", socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s is root's alone: run the command as root", socket)
	}
	return err
}

// serving are those of sockets that somebody serves on: a plugin that is disabled
// may leave its own.
func serving(sockets []string) (served []string) {
	for _, path := range sockets {
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			served = append(served, path)
		}
	}
	return served
}

// Client speaks HTTP over a plugin's socket; an empty path is looked for where
// dockerd keeps them.
func Client(socket string) (*http.Client, error) {
	if socket == "" {
		found, err := filepath.Glob(managedSockets)
		if err != nil {
			return nil, err
		}
		if one, _ := filepath.Glob(DefaultSocket); one != nil {
			found = slices.Concat(found, one)
		}
		if len(found) > 1 {
			if served := serving(found); len(served) > 0 {
				found = served
			}
		}
		switch len(found) {
		case 0:
			return nil, fmt.Errorf("no socket %s or %s: is the plugin enabled (docker plugin ls), and are you root?", DefaultSocket, managedSockets)
		case 1:
			socket = found[0]
		default:
			return nil, fmt.Errorf("several plugins serve here: give --socket, one of %v", found)
		}
	}
	return &http.Client{
		Timeout: deadline,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
				if err != nil {
					return nil, unserved(socket, err)
				}
				return c, nil
			},
			MaxIdleConnsPerHost: 64,
		},
	}, nil
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
	client, err := Client(socket)
	if err != nil {
		return err
	}
	return Call(context.Background(), client, path, req, res)
}
