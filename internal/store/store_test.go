package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"
)

func opened(t testing.TB, path string) *Store {
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
	s := opened(t, path)
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
	s = opened(t, path)
	if a, b := len(records(t, s, "a")), len(records(t, s, "b")); a != 32 || b != 64 {
		t.Errorf("%d and %d records after reopen, want 32 and 64", a, b)
	}
}

func TestSubmissionsKeepTheirOrder(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "state.db"))
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
	s := opened(t, filepath.Join(t.TempDir(), "state.db"))
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
	s := opened(t, path)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "another underlay process") {
		t.Errorf("second open: %v", err)
	}
	s.Close()
	if err := s.Apply(Change{"a", []byte("k"), []byte("v")}); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// A file of an earlier format is taken over, one of a later is left alone.
func TestFormat(t *testing.T) {
	for format := range Format {
		path := filepath.Join(t.TempDir(), "state.db")
		earlier(t, path, format, map[string]string{"endpoints": "v", "pools": ""})
		for range 2 {
			s := opened(t, path)
			if e, p := records(t, s, "endpoints"), records(t, s, "pools"); e["k"] != "v" || len(p) != 1 || p["k"] != "" {
				t.Errorf("format %d: records %q %q", format, e, p)
			}
			s.Close()
		}
		if got, err := formatOf(path); got != Format {
			t.Errorf("format %d has become %d, %v", format, got, err)
		}
	}

	path := filepath.Join(t.TempDir(), "state.db")
	earlier(t, path, Format+1, map[string]string{"unheard of": "v"})
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

// earlier writes a file as another version would: a record "k" in each bucket, with
// a checksum where that version has them.
func earlier(t *testing.T, path string, format int, values map[string]string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		put := func(bucket, key, value string) error {
			if format >= sealed && format <= Format && bucket != "store" {
				return apply(tx, Change{bucket, []byte(key), []byte(value)})
			}
			b, err := tx.CreateBucketIfNotExists([]byte(bucket))
			if err != nil {
				return err
			}
			return b.Put([]byte(key), []byte(value))
		}
		for bucket, value := range values {
			if err := put(bucket, "k", value); err != nil {
				return err
			}
		}
		if format < 2 { // the first had no number
			return nil
		}
		if format >= sealed && format <= Format {
			return stamp(tx, format)
		}
		return put("store", "format", fmt.Sprint(format))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is put and deleted, the file is found whole after each commit, and has
// what it should.
func TestWholeAfterEachCommit(t *testing.T) {
	inMemory(t)
	path := filepath.Join(t.TempDir(), "state.db")
	s := opened(t, path)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	want := map[string]string{}
	commits := 2000
	if testing.Short() {
		commits = 200
	}
	for n := range commits {
		var changes []Change
		deletes := rnd.IntN(10) // of ten; phases of growth and of decay
		for range 1 + rnd.IntN(60) {
			key := fmt.Sprint("key ", rnd.IntN(1500))
			if rnd.IntN(10) < deletes {
				changes = append(changes, Change{Bucket: "a", Key: []byte(key)})
				delete(want, key)
				continue
			}
			value := strings.Repeat("v", rnd.IntN(300))
			if rnd.IntN(100) == 0 {
				value = strings.Repeat("long", 3000)
			}
			changes = append(changes, Change{"a", []byte(key), []byte(value)})
			want[key] = value
		}
		if err := s.Apply(changes...); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := file.Stat()
		if err == nil {
			_, err = check(file, info.Size())
		}
		if err != nil {
			t.Fatalf("seed %d, commit %d: %v", seed, n, err)
		}
		file.Close()
	}
	s.Close()
	s = opened(t, path)
	if got := records(t, s, "a"); !maps.Equal(got, want) {
		t.Errorf("seed %d: %d records, want %d", seed, len(got), len(want))
	}
}
