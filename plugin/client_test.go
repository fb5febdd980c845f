package plugin

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// leave makes a socket that nobody serves on.
func leave(t *testing.T, path string) {
	t.Helper()
	l := listenAt(t, path)
	l.SetUnlinkOnClose(false)
	l.Close()
}

func listenAt(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// The plugin is where somebody serves, if anybody does.
func TestFind(t *testing.T) {
	for _, c := range []struct{ dead, live, want, err string }{
		{err: "are you root"},
		{dead: "a", want: "a"},
		{dead: "a b", want: "a"},
		{live: "a", want: "a"},
		{dead: "a", live: "b", want: "b"},
		{dead: "a c", live: "b", want: "b"},
		{live: "a b", err: "several plugins serve here: give --socket, one of ["},
	} {
		dir := t.TempDir()
		at := func(name string) string { return filepath.Join(dir, name, "u.sock") }
		for _, name := range strings.Fields(c.dead) {
			leave(t, at(name))
		}
		for _, name := range strings.Fields(c.live) {
			listenAt(t, at(name))
		}
		got, err := find(at("*"), filepath.Join(dir, "u.sock"))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || errors.Is(err, ErrNoSocket) != (c.live == "") {
				t.Errorf("%+v: %q, %v", c, got, err)
			}
		} else if err != nil || got != at(c.want) {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// A plugin that is installed anew has another socket, and is found by who has spoken
// to the one before.
func TestClientFindsAnew(t *testing.T) {
	dir := t.TempDir()
	serve := func(name string) (end func()) {
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"version":"` + name + `"}`))
		})}
		l := listenAt(t, filepath.Join(dir, name, "u.sock"))
		l.SetUnlinkOnClose(false)
		go func() { _ = s.Serve(l) }()
		return func() { s.Close() }
	}
	c := client(func() (string, error) { return find(filepath.Join(dir, "*", "u.sock")) })
	asks := func() (string, error) {
		var s Status
		err := Call(t.Context(), c, StatusPath, none{}, &s)
		return s.Version, err
	}
	if _, err := asks(); !errors.Is(err, ErrNoSocket) {
		t.Errorf("before: %v", err)
	}
	end := serve("a")
	if got, err := asks(); got != "a" || err != nil {
		t.Errorf("the first: %q, %v", got, err)
	}
	end()
	if got, err := asks(); err == nil || !strings.Contains(err.Error(), "nobody serves on") || !strings.Contains(err.Error(), "systemctl status underlay") {
		t.Errorf("away: %q, %v", got, err)
	}
	defer serve("b")()
	if got, err := asks(); got != "b" || err != nil {
		t.Errorf("installed anew: %q, %v", got, err)
	}
}
