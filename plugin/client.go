package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"

	"underlay/driver"
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
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(text, &f) == nil && f.Err != "" {
			return fmt.Errorf("%s", f.Err)
		}
		return fmt.Errorf("%s answered %s: %s", path[1:], answer.Status, bytes.TrimSpace(text))
	}
	if res == nil {
		return nil
	}
	return json.Unmarshal(text, res)
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
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
			MaxIdleConnsPerHost: 64,
		},
	}, nil
}

// FetchState asks a running plugin for its state, as indented JSON.
func FetchState(socket string) (string, error) {
	var raw json.RawMessage
	if err := ask(socket, StatePath, none{}, &raw); err != nil {
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

// Reconcile has a running plugin compare its records with the kernel now.
func Reconcile(socket string) (r driver.Report, err error) {
	err = ask(socket, ReconcilePath, none{}, &r)
	return r, err
}

func ask(socket, path string, req, res any) error {
	client, err := Client(socket)
	if err != nil {
		return err
	}
	return Call(context.Background(), client, path, req, res)
}
