package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever is in the file, Open opens it, sets it aside, or says why not; it
// does not panic, and what it opens can be read and written.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed.db")
	s, err := Open(path)
	if err == nil {
		err = s.Apply(Change{"networks", []byte("n"), []byte(`{"id":"n"}`)}, Change{"pools", []byte("192.168.50.0/24"), []byte(`{"refs":1}`)})
	}
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint(0), []byte(nil), uint(len(whole)))
	for _, at := range []uint{0, 16, 80, 4096 + 16, 8192, 8192 + 16, 3 * 4096, 4*4096 + 10} {
		f.Add(at, []byte{0xff}, uint(len(whole)))
		f.Add(at, []byte("\x00\x00\x00\x00\xff\xff\xff\x7f"), uint(len(whole)))
		f.Add(at, []byte(nil), at)
	}
	dir := f.TempDir()
	// A part of a whole file is replaced, and the file cut.
	f.Fuzz(func(t *testing.T, at uint, part []byte, size uint) {
		text := append([]byte(nil), whole...)
		if at < uint(len(text)) {
			copy(text[at:], part)
		}
		text = text[:min(size, uint(len(text)))]
		path := filepath.Join(dir, "state", "underlay.db")
		defer os.RemoveAll(filepath.Dir(path))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not a line: %v", err)
			}
			return
		}
		for _, bucket := range []string{"networks", "pools", "none"} {
			if err := s.Each(bucket, func([]byte, []byte) error { return nil }); err != nil {
				t.Errorf("what was opened cannot be read: %v", err)
			}
		}
		err = s.Apply(Change{"networks", []byte("m"), []byte("{}")}, Change{"new", []byte("k"), []byte("v")}, Change{"networks", []byte("n"), nil})
		if err != nil {
			t.Errorf("what was opened cannot be written: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if s, err = Open(path); err != nil {
			t.Fatalf("what was written cannot be opened: %v", err)
		}
		s.Close()
	})
}
