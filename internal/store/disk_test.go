package store

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"go.etcd.io/bbolt"
)

// disk mounts a small file system that only the test's own thread sees, and
// that goes with it.
func disk(t *testing.T, size string) (folder string) {
	t.Helper()
	folder = t.TempDir()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Skipf("needs root: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skip(err)
	}
	if err := unix.Mount("disk", folder, "tmpfs", 0, "size="+size); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(folder, unix.MNT_DETACH) }) // t.TempDir deletes it then
	return folder
}

func fill(t *testing.T, folder string) {
	t.Helper()
	f, err := os.Create(filepath.Join(folder, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 512)
	for {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func empty(t *testing.T, folder string) {
	t.Helper()
	if err := os.Remove(filepath.Join(folder, "ballast")); err != nil {
		t.Fatal(err)
	}
}

// On a full disk each call fails with the cause, and what it would have changed
// is as it was, also for who reads the file later. With room again, all goes on.
func TestFullDisk(t *testing.T) {
	folder := disk(t, "4m")
	path := filepath.Join(folder, "state.db")
	s := opened(t, path)
	want := map[string]string{}
	for round := range 3 {
		for i := range 50 {
			key, value := fmt.Sprint(round, " ", i), strings.Repeat("v", 200)
			if err := s.Apply(Change{"a", []byte(key), []byte(value)}); err != nil {
				t.Fatal(err)
			}
			want[key] = value
		}
		fill(t, folder)
		// The file has some free pages; then it must grow, in the middle of a
		// transaction of many pages.
		failed := 0
		for i := range 200 {
			var changes []Change
			for k := range 20 {
				changes = append(changes, Change{"a", fmt.Appendf(nil, "big %d %d", i, k), make([]byte, 3000)})
			}
			changes = append(changes, Change{Bucket: "a", Key: fmt.Append(nil, round, " 7")})
			err := s.Apply(changes...)
			if err == nil {
				for _, c := range changes {
					want[string(c.Key)] = string(c.Value)
				}
				delete(want, fmt.Sprint(round, " 7"))
				continue
			}
			failed++
			if !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "make room") {
				t.Fatalf("error %v", err)
			}
			if failed == 10 {
				break
			}
		}
		if failed < 10 {
			t.Fatal("the disk was not full")
		}
		if got := records(t, s, "a"); !maps.Equal(got, want) {
			t.Fatalf("round %d: %d records, want %d", round, len(got), len(want))
		}
		if round == 1 { // and for who reads the file later, still without room
			s.Close()
			s = opened(t, path)
			if got := records(t, s, "a"); s.Aside() != nil || !maps.Equal(got, want) {
				t.Fatalf("after a new start: %d records, want %d, aside %v", len(got), len(want), s.Aside())
			}
		}
		empty(t, folder)
	}
	s.Close()
	s = opened(t, path)
	if got := records(t, s, "a"); !maps.Equal(got, want) {
		t.Fatalf("at the end: %d records, want %d", len(got), len(want))
	}
}

// A start without room, with and without a file, fails with the cause and
// leaves nothing behind.
func TestFullAtStart(t *testing.T) {
	folder := disk(t, "1m")
	path := filepath.Join(folder, "state.db")
	fill(t, folder)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("no file, no room: %v", err)
	}
	if err := os.Truncate(filepath.Join(folder, "ballast"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	fill(t, folder)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "make room") || !strings.Contains(err.Error(), path+".damaged-") {
		t.Errorf("a damaged file, no room: %v", err)
	}
	if err := os.Remove(lastAside(path).Path); err != nil {
		t.Fatal(err)
	}
	empty(t, folder)
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	earlier(t, path, 2, map[string]string{"a": strings.Repeat("v", 20000)})
	fill(t, folder)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("no room to migrate: %v", err)
	}
	if format, err := formatOf(path); err != nil || format != 2 {
		t.Errorf("half migrated: format %d, %v", format, err)
	}
	empty(t, folder)
	s := opened(t, path)
	if got := records(t, s, "a")["k"]; len(got) != 20000 {
		t.Errorf("%d bytes after the migration", len(got))
	}
}

func formatOf(path string) (format int, err error) {
	file, format, _, err := claim(path)
	if err == nil {
		release(file)
	}
	return format, err
}

func TestReadOnlyDisk(t *testing.T) {
	for _, content := range []string{"", "damaged"} {
		folder := disk(t, "1m")
		path := filepath.Join(folder, "state.db")
		if content != "" {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		} else {
			opened(t, path).Close()
		}
		if err := unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Skip(err)
		}
		if _, err := Open(path); !errors.Is(err, syscall.EROFS) {
			t.Errorf("content %q: %v", content, err)
		} else {
			t.Log(err)
		}
		if _, err := Open(filepath.Join(folder, "other.db")); !errors.Is(err, syscall.EROFS) {
			t.Errorf("no file: %v", err)
		}
		if left, err := os.ReadDir(folder); err != nil || len(left) != 1 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if err := unix.Mount("", folder, "", unix.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
		s := opened(t, path)
		if a := s.Aside(); (a != nil) != (content != "") {
			t.Errorf("aside %v", a)
		}
		if err := s.Apply(Change{"a", []byte("k"), []byte("v")}); err != nil {
			t.Error(err)
		}
	}
}

// A commit may be in the file and yet have failed, at its last sync. Then the
// next takes it back.
func TestCommittedAndFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := opened(t, path)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Apply(Change{"a", []byte("kept"), []byte("1")}, Change{"a", []byte("deleted"), []byte("1")}))
	var mode atomic.Value
	mode.Store("well")
	s.update = func(f func(*bbolt.Tx) error) error {
		if mode.Load() == "not at all" {
			return syscall.EIO
		}
		err := s.db.Update(f)
		if mode.Load() == "but for the sync" {
			return syscall.EIO
		}
		return err
	}
	mode.Store("but for the sync")
	err := s.Apply(
		Change{"a", []byte("kept"), []byte("2")}, Change{"a", []byte("kept"), []byte("3")},
		Change{Bucket: "a", Key: []byte("deleted")}, Change{"b", []byte("new"), []byte("1")})
	if !errors.Is(err, syscall.EIO) {
		t.Fatalf("error %v", err)
	}
	mode.Store("not at all")
	if err := s.Apply(Change{"c", []byte("k"), []byte("v")}); !errors.Is(err, syscall.EIO) {
		t.Fatalf("error %v", err)
	}
	mode.Store("well")
	must(s.Apply(Change{"b", []byte("last"), []byte("1")}))
	s.Close()
	s = opened(t, path)
	if a := records(t, s, "a"); len(a) != 2 || a["kept"] != "1" || a["deleted"] != "1" {
		t.Errorf("records %v", a)
	}
	if b := records(t, s, "b"); len(b) != 1 || b["last"] != "1" {
		t.Errorf("records %v", b)
	}
}

// While the disk is slow, Submit does not wait for it. What gathers is committed
// together, in its order, and Close waits for it.
func TestSlowDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := opened(t, path)
	commits := 0
	disk := make(chan struct{})
	s.update = func(f func(*bbolt.Tx) error) error {
		commits++
		<-disk
		return s.db.Update(f)
	}
	var answers []<-chan error
	for i := range 500 {
		answers = append(answers, s.Submit(Change{"a", fmt.Append(nil, i%7), fmt.Append(nil, i)}))
	}
	for _, a := range answers {
		select {
		case err := <-a:
			t.Fatalf("answered before it was on disk: %v", err)
		default:
		}
	}
	time.AfterFunc(50*time.Millisecond, func() { close(disk) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		if err := <-a; err != nil {
			t.Fatal(err)
		}
	}
	if commits > 2 {
		t.Errorf("%d commits", commits)
	}
	if got := records(t, opened(t, path), "a"); got["2"] != "499" || len(got) != 7 {
		t.Errorf("records %v", got)
	}
}

// Who else may write the state is told so, and the state is left alone.
func TestTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	folder := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(folder, "state.db")
	opened(t, path).Close()
	for what, want := range map[string]os.FileMode{folder: 0o700, path: 0o600} {
		if info, err := os.Stat(what); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", what, info.Mode(), err)
		}
	}
	for _, c := range []struct {
		name, path, want string
		mode             os.FileMode
		owner            int
	}{
		{"a folder that its group may write", folder, "chmod go-w", 0o770, 0},
		{"a folder that all may write", folder, "chmod go-w", 0o777, 0},
		{"a file that its group may write", path, "chmod go-w", 0o660, 0},
		{"a folder of another user's", folder, "chown", 0o700, 1000},
		{"a file of another user's", path, "chown", 0o600, 1000},
		{"a file that others may read", path, "", 0o644, 0},
		{"a folder as /tmp", folder, "", 0o777 | os.ModeSticky, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, err := os.Stat(c.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Chown(c.path, c.owner, 0), os.Chmod(c.path, c.mode)); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = errors.Join(os.Chown(c.path, 0, 0), os.Chmod(c.path, before.Mode())) }()
			s, err := Open(path)
			if err == nil {
				if s.Aside() != nil {
					t.Error("set aside")
				}
				s.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("a link to a file that is there", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "state.db")
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		if s := opened(t, link); s.Aside() != nil {
			t.Error("set aside")
		}
	})
	t.Run("a link to one that is not", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "state.db")
		if err := os.Symlink(filepath.Join(t.TempDir(), "gone"), link); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(link); err == nil || !strings.Contains(err.Error(), "which is not there") {
			t.Errorf("error %v", err)
		}
	})
}
