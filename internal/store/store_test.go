package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func records(t *testing.T, s *Store, bucket string) map[string]string {
	t.Helper()
	got := map[string]string{}
	if err := s.Each(bucket, func(k, v []byte) error { got[string(k)] = string(v); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRecordsSurviveReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "state.db")
	s := open(t, path)
	if n := len(records(t, s, "a")); n != 0 {
		t.Fatalf("a new file has %d records", n)
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			key := fmt.Append(nil, i)
			if err := s.Apply(Change{"a", key, key}, Change{"b", key, key}); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := s.Apply(Change{Bucket: "a", Key: key}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if a, b := len(records(t, s, "a")), len(records(t, s, "b")); a != 32 || b != 64 {
		t.Errorf("%d and %d records after reopen, want 32 and 64", a, b)
	}
}

func TestSubmissionsKeepTheirOrder(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	var last <-chan error
	for i := range 1000 {
		last = s.Submit(Change{"a", []byte("k"), fmt.Append(nil, i)})
	}
	if err := <-last; err != nil {
		t.Fatal(err)
	}
	if got := records(t, s, "a")["k"]; got != "999" {
		t.Errorf("last value %s, want 999", got)
	}
}

func TestABadChangeLeavesNothing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	err := s.Apply(Change{"a", []byte("k"), []byte("v")}, Change{"a", nil, []byte("v")})
	if err == nil || !strings.Contains(err.Error(), "state not written") {
		t.Fatalf("error %v", err)
	}
	if n := len(records(t, s, "a")); n != 0 {
		t.Errorf("%d records of a refused submission", n)
	}
}

func TestClosedAndHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "another underlay process") {
		t.Errorf("second open: %v", err)
	}
	s.Close()
	if err := s.Apply(Change{"a", []byte("k"), []byte("v")}); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// However a file is damaged, whoever opens it gets an error or its records, and
// never a crash: dockerd would start the plugin again at once, for ever.
func TestDamagedFile(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "state.db")
	s := open(t, whole)
	for i := range 500 {
		if err := s.Apply(Change{"a", fmt.Append(nil, i), make([]byte, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	text, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	bad := 0
	for name, damage := range map[string]func([]byte) []byte{
		"truncated in the first page": func(b []byte) []byte { return b[:100] },
		"truncated after the metas":   func(b []byte) []byte { return b[:2*page] },
		"truncated in the middle":     func(b []byte) []byte { return b[:5*page] },
		"zeroed after the metas":      func(b []byte) []byte { clear(b[2*page:]); return b },
		"zeroed metas":                func(b []byte) []byte { clear(b[:2*page]); return b },
		"garbage after the metas": func(b []byte) []byte {
			for i := range b[2*page:] {
				b[2*page+i] = byte(i * 7)
			}
			return b
		},
		"another file": func([]byte) []byte { return []byte(strings.Repeat("no bolt file\n", 3000)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			damaged := damage(bytes.Clone(text))
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(path)
			if err == nil {
				err = errors.Join(
					s.Each("a", func(_, _ []byte) error { return nil }),
					s.Apply(Change{"a", []byte("k"), []byte("v")}))
			}
			if err == nil {
				t.Fatal("nobody noticed")
			}
			t.Log(err)
			bad++
		})
	}
	if bad != 7 {
		t.Errorf("%d of 7 were noticed", bad)
	}
}

// A file of an earlier format is taken over, one of a later is left alone.
func TestFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	if got := records(t, s, "store")["format"]; got != fmt.Sprint(Format) {
		t.Errorf("a new file has format %q", got)
	}
	if err := s.Apply(Change{"a", []byte("k"), []byte("v")}, Change{Bucket: "store", Key: []byte("format")}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path)
	if got := records(t, s, "store")["format"]; got != fmt.Sprint(Format) || records(t, s, "a")["k"] != "v" {
		t.Errorf("a file of the first format has %q afterwards", got)
	}
	if err := s.Apply(Change{"store", []byte("format"), fmt.Append(nil, Format+1)}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(path)
	if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "install that version again") {
		t.Errorf("a later format: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed, %v", err)
	}
}
