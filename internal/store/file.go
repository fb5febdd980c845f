package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"go.etcd.io/bbolt"
)

// errHeld is what a file gets that another process has locked.
var errHeld = errors.New("another underlay process holds it; stop that one or give another --state")

// lockTimeout is how long Open waits for another process to let go of the
// file: an upgraded plugin may start while the old one is still leaving.
const lockTimeout = 5 * time.Second

// Aside is a state file that could not be used and was renamed.
type Aside struct {
	Path  string
	Cause error // nil if an earlier Open has renamed it
}

// String says what has happened, and what to do about it.
func (a *Aside) String() string {
	return fmt.Sprintf("the state file was damaged and is now %s; docker network rm and create the network again, or disable the plugin and put a good copy back", a.Path)
}

// asideName is what a file set aside has after its name, before the time.
const asideName = ".damaged-"

// claim opens a state file, locks it, and checks all of it. It makes one that is
// absent, and sets one aside that cannot be what a store has written.
func claim(path string) (file *os.File, format int, aside *Aside, err error) {
	for range 5 { // another process may do the same
		file, err = lock(path)
		if err == nil {
			var info fs.FileInfo
			if info, err = file.Stat(); err == nil {
				err = guard(func() (err error) { format, err = check(file, info.Size()); return err })
			}
			if err == nil {
				return file, format, aside, nil
			}
		}
		switch {
		case errors.Is(err, errMoved):
			continue
		case errors.Is(err, errDamaged):
			aside, err = setAside(path, err)
		case errors.Is(err, fs.ErrNotExist) && file == nil:
			err = create(path)
			if errors.Is(err, fs.ErrExist) {
				err = errMoved
			}
		}
		if file != nil {
			file.Close() // and with it the lock, not before the file has another name
		}
		if err != nil && !errors.Is(err, errMoved) {
			if aside != nil {
				err = fmt.Errorf("%w; the one before, now %s, could not be used either: %w", err, aside.Path, aside.Cause)
			}
			return nil, 0, nil, err
		}
	}
	return nil, 0, nil, errMoved
}

// errMoved: the path has come to stand for another file.
var errMoved = errors.New("it is being replaced by another process; try again")

// lock opens a file that is there and waits until no other process has it.
func lock(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if target, linkErr := os.Readlink(path); linkErr == nil {
			return nil, fmt.Errorf("it is a symbolic link to %s, which is not there", target)
		}
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, damaged("it is no regular file (%v)", info.Mode())
	}
	if err := trusted(path, info); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockTimeout); ; {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errHeld
			if time.Now().Before(deadline) {
				time.Sleep(20 * time.Millisecond)
				continue
			}
		}
		file.Close()
		return nil, err
	}
	now, err := os.Stat(path)
	if err == nil {
		info, err = file.Stat()
	}
	if err != nil || !os.SameFile(now, info) {
		file.Close()
		return nil, errMoved
	}
	return file, nil
}

// release lets go of a file that bbolt has mapped and cannot close any more: the
// mapping would keep the lock.
func release(file *os.File) {
	_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
	_ = file.Close()
}

// trusted refuses what others than root and this process's user may write:
// whoever writes the state says what is done to the host's network.
func trusted(path string, info fs.FileInfo) error {
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d; chown it to root", path, s.Uid)
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%s can be written by others than its owner (%v); chmod go-w it", path, info.Mode())
	}
	return nil
}

// create makes a state file without records. It has its name only when all of
// it is on disk: an empty or a short file is never one that a crash has left.
func create(path string) error {
	return compose(path, func(tx *bbolt.Tx) error { return migrate(tx, 0) })
}

// compose is create for a file with records.
func compose(path string, records func(*bbolt.Tx) error) error {
	making := path + ".new"
	if err := os.Remove(making); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := guard(func() error {
		db, err := bbolt.Open(making, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType})
		if err != nil {
			return err
		}
		return errors.Join(db.Update(records), db.Close())
	})
	if err == nil {
		err = move(making, path)
	}
	if err != nil {
		_ = os.Remove(making)
	}
	return err
}

// setAside gives a file another name, under which nothing was before.
func setAside(path string, cause error) (*Aside, error) {
	name := path + asideName + time.Now().UTC().Format("20060102T150405Z")
	to := name
	for n := 2; ; n++ {
		err := move(path, to)
		if err == nil {
			return &Aside{to, cause}, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("%w; nor can it be set aside: %w", cause, err)
		}
		to = fmt.Sprintf("%s-%d", name, n)
	}
}

// lastAside finds the file set aside last, if it is still there.
func lastAside(path string) *Aside {
	found, _ := filepath.Glob(path + asideName + "*") // in order; the pattern is a good one
	if len(found) == 0 {
		return nil
	}
	return &Aside{Path: found[len(found)-1]}
}

// move renames a file, never over another, and has that on disk.
func move(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not every file system can
		if _, err = os.Lstat(to); err == nil {
			err = fs.ErrExist
		} else if errors.Is(err, fs.ErrNotExist) {
			err = os.Rename(from, to)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	folder, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}
