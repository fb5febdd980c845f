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
	"testing"

	"golang.org/x/sys/unix"

	"go.etcd.io/bbolt"
)

// inMemory has the test's folders where a sync costs nothing, if it can.
func inMemory(t *testing.T) {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		t.Setenv("TMPDIR", "/dev/shm")
	}
}

// sample is the bytes of a file of many pages, some of them free, and what is in
// it. Its keys are shorter than a page, and one value is longer.
func sample(t *testing.T) (file []byte, want map[string]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s := opened(t, path)
	want = map[string]string{}
	put := func(key, value string) {
		if err := s.Apply(Change{"endpoints", []byte(key), []byte(value)}); err != nil {
			t.Fatal(err)
		}
		want[key] = value
	}
	for i := range 150 {
		put(fmt.Sprint("a ", i), strings.Repeat("x", 50+i))
	}
	put("long", strings.Repeat("y", 3*os.Getpagesize()))
	for i := range 100 {
		if err := s.Apply(Change{Bucket: "endpoints", Key: fmt.Append(nil, "a ", i)}); err != nil {
			t.Fatal(err)
		}
		delete(want, fmt.Sprint("a ", i))
	}
	if err := s.Apply(Change{"pools", []byte("k"), []byte("inline")}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return file, want
}

// tryOut opens a file with some content. It must be read as what was written, or
// be set aside unchanged, and what is opened must work.
func tryOut(t *testing.T, what string, content []byte, want ...map[string]string) (kept bool) {
	t.Helper()
	folder := t.TempDir()
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "state.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return false
	}
	defer s.Close()
	got := records(t, s, "endpoints")
	if s.Aside() == nil {
		if !func() bool {
			for _, w := range want {
				if maps.Equal(got, w) {
					return true
				}
			}
			return false
		}() {
			t.Errorf("%s: taken for whole, with %d records", what, len(got))
		}
	} else {
		after, err := os.ReadFile(s.Aside().Path)
		if err != nil || !bytes.Equal(after, content) {
			t.Errorf("%s: set aside, and changed: %v", what, err)
		}
		if s.Aside().Cause == nil || !errors.Is(s.Aside().Cause, errDamaged) {
			t.Errorf("%s: cause %v", what, s.Aside().Cause)
		}
		if len(got) > 0 {
			t.Errorf("%s: set aside, and yet %d records", what, len(got))
		}
	}
	if err := s.Apply(Change{"endpoints", []byte("k"), []byte("v")}); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return s.Aside() == nil
}

// A file cut at any length is set aside, but for one that lacks only room that
// was not in use.
func TestTruncated(t *testing.T) {
	inMemory(t)
	file, want := sample(t)
	w := walker{file: bytes.NewReader(file)}
	if err := w.findMeta(int64(len(file))); err != nil {
		t.Fatal(err)
	}
	end := int(w.meta.end) * w.meta.pageSize
	opens := 0
	// Each length is checked, and those that matter are opened.
	for n := range len(file) + 1 {
		_, err := check(bytes.NewReader(file[:n]), int64(n))
		if whole := n >= end; whole != (err == nil) || err != nil && !errors.Is(err, errDamaged) {
			t.Fatalf("cut to %d of %d bytes, %d in use: %v", n, len(file), end, err)
		}
		if page := n % os.Getpagesize(); page <= 1 || page == 16 || page == 80 || n == end-1 {
			opens++
			if kept := tryOut(t, fmt.Sprintf("cut to %d bytes", n), file[:n], want); kept != (n >= end) {
				t.Errorf("cut to %d of %d bytes, %d in use: kept %v", n, len(file), end, kept)
			}
		}
	}
	t.Logf("%d lengths, %d of them opened", len(file)+1, opens)
}

// A file with any byte changed is set aside, or has its records. The other
// records that it may have are those before the latest commit, where that
// commit itself is what was hit.
func TestFlipped(t *testing.T) {
	inMemory(t)
	file, want := sample(t)
	aside, seed := 0, rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	tries := 3000
	if testing.Short() {
		tries = 300
	}
	for range tries {
		at := rnd.IntN(len(file))
		bit := byte(1) << rnd.IntN(8)
		content := bytes.Clone(file)
		content[at] ^= bit
		if _, err := check(bytes.NewReader(content), int64(len(content))); err != nil {
			aside++
			if !errors.Is(err, errDamaged) {
				t.Fatalf("byte %d, bit %#x: %v", at, bit, err)
			}
			if aside%50 != 0 {
				continue
			}
		}
		tryOut(t, fmt.Sprintf("byte %d, bit %#x (seed %d)", at, bit, seed), content, want)
	}
	t.Logf("%d of %d set aside", aside, tries)
	if aside < tries/20 {
		t.Errorf("only %d of %d were noticed", aside, tries)
	}
}

// Whole pages and parts of them overwritten.
func TestOverwritten(t *testing.T) {
	inMemory(t)
	file, want := sample(t)
	page := os.Getpagesize()
	for at := 0; at < len(file); at += page {
		for name, fill := range map[string]func([]byte){
			"zeroes":  func(b []byte) { clear(b) },
			"garbage": func(b []byte) { _, _ = rand.NewChaCha8([32]byte{1}).Read(b) },
			"ones": func(b []byte) {
				for i := range b {
					b[i] = 0xff
				}
			},
			"another page": func(b []byte) { copy(b, file[2*page:3*page]) },
			"half a page":  func(b []byte) { clear(b[page/2:]) },
		} {
			content := bytes.Clone(file)
			fill(content[at : at+page])
			tryOut(t, fmt.Sprintf("page %d of %s", at/page, name), content, want)
		}
	}
}

func TestForeign(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other.db")
	db, err := bbolt.Open(other, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("networks of another program"))
		if err != nil {
			return err
		}
		return b.Put([]byte("k"), []byte("v"))
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	bolt, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty":              {},
		"another's bbolt":    bolt,
		"text":               []byte(strings.Repeat("no state\n", 3000)),
		"a SQLite file":      append([]byte("SQLite format 3\x00"), make([]byte, 1<<16)...),
		"zeroes":             make([]byte, 1<<20),
		"one byte":           {0},
		"an odd page size":   oddPage(bolt, 24),
		"a page size of all": oddPage(bolt, 0xffffffff),
	} {
		t.Run(name, func(t *testing.T) {
			if tryOut(t, name, content) {
				t.Error("taken for a state file")
			}
		})
	}
	t.Run("a folder", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if s := opened(t, path); s.Aside() == nil {
			t.Error("not set aside")
		}
	})
	t.Run("a fifo", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Skip(err)
		}
		if s := opened(t, path); s.Aside() == nil {
			t.Error("not set aside")
		}
	})
	t.Run("sparse", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 1<<40); err != nil {
			t.Skip(err)
		}
		if s := opened(t, path); s.Aside() == nil {
			t.Error("not set aside")
		}
	})
}

// Each damaged file keeps a name of its own, and is spoken of as long as it is
// there.
func TestAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	for n := range 4 {
		if err := os.WriteFile(path, fmt.Append(nil, n), 0o600); err != nil {
			t.Fatal(err)
		}
		s := opened(t, path)
		a := s.Aside()
		if a == nil || a.Cause == nil {
			t.Fatalf("aside %v", a)
		}
		s.Close()
		if content, err := os.ReadFile(a.Path); err != nil || string(content) != fmt.Sprint(n) {
			t.Errorf("%s has %q, %v", a.Path, content, err)
		}
		s = opened(t, path)
		if again := s.Aside(); again == nil || again.Path != a.Path || again.Cause != nil {
			t.Errorf("later: %v, not %v", again, a)
		}
		if n == 3 {
			found, _ := filepath.Glob(path + ".damaged-*")
			if len(found) != 4 {
				t.Errorf("set aside: %q", found)
			}
			for _, f := range found {
				if err := os.Remove(f); err != nil {
					t.Fatal(err)
				}
			}
			if again := s.Aside(); again != nil {
				t.Errorf("spoken of after it is gone: %v", again)
			}
		}
		s.Close()
	}
}

// What is damaged while in use makes calls fail, and neither hangs nor crashes.
func TestDamagedInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := opened(t, path)
	for i := range 500 {
		if err := s.Apply(Change{"a", fmt.Append(nil, i), make([]byte, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Apply(Change{"a", []byte("k"), []byte("v")}); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("error %v", err)
		}
	}
	if err := s.Each("a", func(_, _ []byte) error { return nil }); err == nil {
		t.Error("read all the same")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if s := opened(t, path); s.Aside() == nil {
		t.Error("not set aside")
	}
}

// oddPage is a bbolt file whose commits say another page size, with checksums
// that are right.
func oddPage(file []byte, size uint32) []byte {
	content := bytes.Clone(file)
	for _, at := range []int{0, os.Getpagesize()} {
		b := content[at+pageHeader:]
		order.PutUint32(b[8:], size)
		order.PutUint64(b[metaSize-8:], metaSum(b))
	}
	return content
}
