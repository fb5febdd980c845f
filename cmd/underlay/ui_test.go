package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"underlay/plugin"
)

func TestSplitListen(t *testing.T) {
	for on, want := range map[string]string{
		"127.0.0.1:9324": "127.0.0.1 9324", "9324": "127.0.0.1 9324", ":9324": "127.0.0.1 9324", "0.0.0.0:80": "0.0.0.0 80",
		"[::1]:9324": "::1 9324", "docker.lan:9324": "docker.lan 9324",
		"": "", "eth0": "", "127.0.0.1": "", "127.0.0.1:http": "", "127.0.0.1:70000": "", "::1:9324": "",
	} {
		host, port, err := splitListen(on)
		switch {
		case want == "" && (err == nil || !strings.Contains(err.Error(), "write it as 127.0.0.1:9324")):
			t.Errorf("%q: %s %s, %v", on, host, port, err)
		case want != "" && (err != nil || host+" "+port != want):
			t.Errorf("%q: %s %s, %v; want %s", on, host, port, err, want)
		}
	}
}

// words are what a command prints, while it runs.
type words struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
	return w.text.Write(b)
}

func (w *words) await(t *testing.T, pattern string) string {
	t.Helper()
	for late := time.After(20 * time.Second); ; {
		w.mu.Lock()
		m := regexp.MustCompile(pattern).FindStringSubmatch(w.text.String())
		w.mu.Unlock()
		if m != nil {
			return m[len(m)-1]
		}
		select {
		case <-w.news:
		case <-late:
			t.Fatalf("it has not said %s: %s", pattern, w.text.String())
		}
	}
}

// The page is served before there is a plugin, opens in a browser, and ends.
func TestPageWithoutPlugin(t *testing.T) {
	bin := t.TempDir()
	asked := filepath.Join(bin, "asked")
	if err := os.WriteFile(filepath.Join(bin, "xdg-open"), []byte("#!/bin/sh\necho \"$1\" >"+asked+".new && /bin/mv "+asked+".new "+asked+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv("SUDO_UID", "")
	ctx, end := context.WithCancel(t.Context())
	out := &words{news: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() { done <- servePage(ctx, out, plugin.View(filepath.Join(bin, "no.sock")), "127.0.0.1:0", true) }()
	at := out.await(t, `(http://127\.0\.0\.1:\d+/) shows`)
	out.await(t, `waits for the plugin: nobody serves on .*no\.sock`)
	res, err := http.Get(at)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !strings.Contains(string(text), "<title>underlay") {
		t.Errorf("%s, %v", text, err)
	}
	for late := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(asked); err == nil {
			if string(text) != at+"\n" {
				t.Errorf("the browser was asked for %s", text)
			}
			break
		}
		if time.Now().After(late) {
			t.Fatal("no browser was opened")
		}
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPageIsRefused(t *testing.T) {
	out := &words{news: make(chan struct{}, 1)}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	done := make(chan error, 1)
	source := plugin.View(filepath.Join(t.TempDir(), "no.sock"))
	go func() { done <- servePage(ctx, out, source, "127.0.0.1:0", false) }()
	at := out.await(t, `http://(127\.0\.0\.1:\d+)/`)
	if err := servePage(ctx, io.Discard, source, at, false); err == nil || !strings.Contains(err.Error(), "--listen "+at+": ") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken: %v", err)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := browse("http://127.0.0.1/"); err == nil {
		t.Error("a browser that is not there was opened")
	}
}
