package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A file with some bytes changed is set aside, or can be read and written, and
// is whole afterwards. Each edit is three bytes of an offset and one of content.
func FuzzDamage(f *testing.F) {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		f.Setenv("TMPDIR", "/dev/shm") // where a sync costs nothing
	}
	path := filepath.Join(f.TempDir(), "state.db")
	s, err := Open(path)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 300 {
		key := fmt.Append(nil, i)
		if err := s.Apply(Change{"endpoints", key, bytes.Repeat(key, 20)}, Change{"pools", key[:1], key}); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	page := os.Getpagesize()
	for at := 0; at < len(file); at += page {
		for _, in := range []int{0, 8, 10, 12, 16, 20, 24, 28} { // id, flags, count, overflow, an element
			f.Add([]byte{byte((at + in) >> 16), byte((at + in) >> 8), byte(at + in), 0x7f})
		}
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		content := bytes.Clone(file)
		for ; len(edits) >= 4; edits = edits[4:] {
			content[(int(edits[0])<<16|int(edits[1])<<8|int(edits[2]))%len(content)] = edits[3]
		}
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			s, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if round == 1 && s.Aside() != nil && s.Aside().Cause != nil {
				t.Errorf("damaged by a write: %v", s.Aside().Cause)
			}
			for _, bucket := range []string{"endpoints", "pools"} {
				if err := s.Each(bucket, func(_, _ []byte) error { return nil }); err != nil {
					t.Error(err)
				}
			}
			for i := range 20 {
				key := fmt.Append(nil, 15*i)
				if err := s.Apply(Change{"endpoints", key, bytes.Repeat(key, 100)}, Change{Bucket: "endpoints", Key: fmt.Append(nil, 7*i)}); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
