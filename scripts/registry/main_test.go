package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The first manifest is the only one, and nothing is written or deleted after it.
func TestOnce(t *testing.T) {
	var told strings.Builder
	o := newOnce(&told)
	s := httptest.NewServer(o)
	defer s.Close()
	do := func(method, path, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, s.URL+"/v2/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		got, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		return a.StatusCode, string(got)
	}
	const mine, theirs = `{"schemaVersion":2,"mine":true}`, `{"schemaVersion":2}`
	for _, step := range []struct {
		method, path, body string
		code               int
	}{
		{http.MethodGet, "underlay/manifests/latest", "", http.StatusNotFound},
		{http.MethodPost, "underlay/blobs/uploads/", "", http.StatusAccepted},
		{http.MethodPatch, "underlay/blobs/uploads/7", "a blob", http.StatusAccepted},
		{http.MethodDelete, "underlay/blobs/sha256:" + strings.Repeat("0", 64), "", http.StatusForbidden},
		{http.MethodPut, "underlay/manifests/latest", strings.Repeat(" ", maxManifest+1), http.StatusBadRequest},
		{http.MethodPut, "underlay/manifests/latest", mine, http.StatusCreated},
		{http.MethodPut, "underlay/manifests/latest", theirs, http.StatusForbidden},
		{http.MethodPut, "underlay/manifests/v2", theirs, http.StatusForbidden},
		{http.MethodPut, "another/manifests/latest", theirs, http.StatusForbidden},
		{http.MethodPost, "underlay/blobs/uploads/", "", http.StatusForbidden},
		{http.MethodDelete, "underlay/manifests/latest", "", http.StatusForbidden},
	} {
		if code, body := do(step.method, step.path, step.body); code != step.code {
			t.Errorf("%s %s: %d %s, want %d", step.method, step.path, code, body, step.code)
		}
	}
	if code, body := do(http.MethodGet, "underlay/manifests/latest", ""); code != http.StatusOK || body != mine {
		t.Errorf("the image is %d %s, want %s", code, body, mine)
	}
	if digest := strings.TrimSpace(told.String()); !strings.HasPrefix(digest, "sha256:") || strings.Contains(digest, "\n") {
		t.Errorf("told %q, want one digest", digest)
	}
}

// All uploads together have a limit.
func TestRoom(t *testing.T) {
	o := newOnce(io.Discard)
	o.room.Store(10)
	for _, row := range []struct {
		n  int64
		ok bool
	}{{8, true}, {3, false}, {1, false}} {
		n, err := io.Copy(io.Discard, &bounded{strings.NewReader("12345678"[:row.n]), &o.room})
		if (err == nil) != row.ok || row.ok && n != row.n {
			t.Errorf("%d bytes: %d, %v", row.n, n, err)
		}
	}
}
