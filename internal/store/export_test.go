package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// all are the records of a store, a line each.
func all(t *testing.T, s *Store) (lines []string) {
	t.Helper()
	err := s.All(func(bucket string, key, value []byte) error {
		lines = append(lines, bucket+"/"+string(key)+"="+string(value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "state.db")
	records := []Change{
		{Bucket: "pools", Key: []byte("b"), Value: []byte("2")}, {Bucket: "networks", Key: []byte("a"), Value: []byte("1")}, {Bucket: "pools", Key: []byte("a"), Value: []byte{}},
	}
	for format, want := range map[int]string{0: "a later underlay", Format + 1: "a later underlay"} {
		if err := Create(path, format, records); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("format %d: %v", format, err)
		}
	}
	if err := Create(path, 4, records); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, 4, nil); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("over a file: %v", err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if d := cmp.Diff([]string{"networks/a=1", "pools/a=", "pools/b=2"}, all(t, s)); d != "" || s.Aside() != nil {
		t.Errorf("aside %v (-want +got): %s", s.Aside(), d)
	}
	stop := errors.New("stop")
	if err := s.All(func(string, []byte, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// A record that cannot be written leaves no file.
func TestCreateRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	err := Create(path, 4, []Change{{Bucket: "pools", Key: []byte("a"), Value: []byte("1")}, {Bucket: "pools", Key: nil, Value: []byte("2")}})
	if err == nil || !strings.Contains(err.Error(), "record pools/") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
