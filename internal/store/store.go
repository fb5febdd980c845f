package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"

	"go.etcd.io/bbolt"
)

// Change puts a value under a key of a bucket, or deletes the key where Value
// is nil. Buckets exist once a change has named them.
type Change struct {
	Bucket string
	Key    []byte
	Value  []byte
}

// ErrClosed is what a change submitted after Close gets.
var ErrClosed = errors.New("the state file is closed")

// ErrNewer is what a file gets that a later program has written.
var ErrNewer = errors.New("a later underlay has written it")

// Store is one open state file. Its methods may be called in parallel.
type Store struct {
	db    *bbolt.DB
	file  *os.File // of db
	path  string
	aside *Aside
	// update is db.Update, or what a test has in its place.
	update func(func(*bbolt.Tx) error) error

	mu      sync.Mutex
	pending []submission
	closed  bool
	wake    chan struct{}
	done    chan struct{}

	faults

	// Of the writer alone:
	owed   []Change // take back what an error was answered for, and is in the file all the same
	broken error    // the file was found damaged while in use
}

type submission struct {
	changes []Change
	err     chan<- error
}

// Open opens the state file, and makes it and its folder where absent. All of
// the file is checked. One that is damaged, or that is not a state file, is
// renamed, and another begun: see Aside. One that cannot be opened, locked or
// read, and one of a later format, is left as it is, and the error says why.
func Open(path string) (*Store, error) {
	s, err := open(path)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, ErrNewer):
		return nil, fmt.Errorf("state file %s: %w; install that version again, or move the file away to start with nothing", path, err)
	case errors.Is(err, errHeld), errors.Is(err, errMoved):
		return nil, fmt.Errorf("state file %s: %w", path, err)
	case full(err):
		return nil, fmt.Errorf("state file %s: %w; make room on its file system", path, err)
	}
	return nil, fmt.Errorf("state file %s cannot be used: %w", path, err)
}

func open(path string) (*Store, error) {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(folder)
	if err == nil {
		err = trusted(folder, info)
	}
	if err != nil {
		return nil, err
	}
	file, format, aside, err := claim(path)
	if err != nil {
		return nil, err
	}
	if format > Format {
		file.Close()
		return nil, fmt.Errorf("%w, in format %d, and this one knows those up to %d", ErrNewer, format, Format)
	}
	if aside == nil {
		aside = lastAside(path)
	}
	s := &Store{file: file, path: path, aside: aside, wake: make(chan struct{}, 1), done: make(chan struct{})}
	err = guard(func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			FreelistType: bbolt.FreelistMapType,
			OpenFile:     func(string, int, os.FileMode) (*os.File, error) { return file, nil },
			// The freelist stays on disk: without it, bbolt walks the whole
			// file at open, in a goroutine whose panics nobody can catch.
		})
		return err
	})
	if err == nil && format < Format {
		if err = guard(func() error { return s.db.Update(func(tx *bbolt.Tx) error { return migrate(tx, format) }) }); err != nil && !errors.Is(err, errDamaged) {
			s.db.Close()
		}
	}
	if err != nil {
		release(file)
		return nil, err
	}
	s.update = s.db.Update
	go s.write()
	return s, nil
}

// Aside is the file that was set aside last, as long as it has not been moved
// away or deleted since the Open, and nil if none was.
func (s *Store) Aside() *Aside {
	if s.aside != nil {
		if _, err := os.Lstat(s.aside.Path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return s.aside
}

// Submit queues changes and returns at once. The channel gets exactly one
// value: nil once they are on disk, or why they are not, and then none of
// them is. Submissions are committed in the order in which they were made, so
// a caller that submits while it holds the lock of its own state keeps file
// and state in step without waiting for the disk under that lock.
func (s *Store) Submit(changes ...Change) <-chan error {
	answer := make(chan error, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		answer <- ErrClosed
		return answer
	}
	s.pending = append(s.pending, submission{changes, answer})
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return answer
}

// Apply submits changes and waits until they are on disk.
func (s *Store) Apply(changes ...Change) error { return <-s.Submit(changes...) }

// Each calls f with every record of a bucket, in the order of the keys. The
// slices are valid only during the call. A bucket that is not there is empty.
func (s *Store) Each(bucket string, f func(key, value []byte) error) error {
	return guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte(bucket))
			if b == nil {
				return nil
			}
			return b.ForEach(func(key, value []byte) error {
				value, ok := unseal(bucket, key, value)
				if !ok {
					return damaged("record %s/%s does not have its checksum", bucket, key)
				}
				return f(key, value)
			})
		})
	})
}

// guard turns what bbolt does at a damaged file, which is to panic or to run
// into memory that is not mapped, into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%v", p)
		}
	}()
	return f()
}

// Close commits what was submitted and lets go of the file.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.wake)
	}
	s.mu.Unlock()
	<-s.done
	if s.broken != nil {
		release(s.file) // bbolt's Close may wait for a lock of its own for ever
		return nil
	}
	return s.db.Close()
}

func (s *Store) write() {
	defer close(s.done)
	for range s.wake {
		for s.commit() {
		}
	}
	for s.commit() {
	}
}

// commit puts what is pending on disk, and says whether anything was.
func (s *Store) commit() bool {
	s.mu.Lock()
	batch := s.take()
	s.mu.Unlock()
	if len(batch) == 0 {
		return false
	}
	s.pass("before", batch)
	err := s.broken
	if err == nil {
		err = s.transact(batch)
	}
	switch {
	case err == nil:
	case full(err):
		err = fmt.Errorf("state not written: %w; make room on the file system of %s", err, s.path)
	case errors.Is(err, errDamaged):
		s.broken = err
		err = fmt.Errorf("state file %s: %w; docker plugin disable -f and enable the plugin, or systemctl restart underlay", s.path, err)
	default:
		err = fmt.Errorf("state not written: %w", err)
	}
	s.pass("after", batch)
	for _, sub := range batch {
		sub.err <- err
	}
	return true
}

// transact commits a batch as one transaction, after what is owed.
func (s *Store) transact(batch []submission) error {
	var id int
	var back []Change
	err := guard(func() error {
		return s.update(func(tx *bbolt.Tx) error {
			id = tx.ID()
			for _, c := range s.owed {
				if err := apply(tx, c); err != nil {
					return err
				}
			}
			for _, sub := range batch {
				for _, c := range sub.changes {
					back = append(back, before(tx, c))
					if err := apply(tx, c); err != nil {
						return fmt.Errorf("state record %s/%s: %w", c.Bucket, c.Key, err)
					}
				}
			}
			return nil
		})
	})
	if err == nil {
		s.owed = nil
		return nil
	}
	// A commit whose last sync fails is in the file, as far as this and the next
	// process can see, and its callers take it for undone.
	_ = guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			if id != 0 && tx.ID() >= id {
				slices.Reverse(back)
				s.owed = back
			}
			return nil
		})
	})
	return err
}

// before is the change that takes another back.
func before(tx *bbolt.Tx, c Change) Change {
	old := Change{Bucket: c.Bucket, Key: c.Key}
	if b := tx.Bucket([]byte(c.Bucket)); b != nil {
		if sealed := b.Get(c.Key); sealed != nil {
			value, _ := unseal(c.Bucket, c.Key, sealed)
			old.Value = append([]byte{}, value...)
		}
	}
	return old
}

func apply(tx *bbolt.Tx, c Change) error {
	b, err := tx.CreateBucketIfNotExists([]byte(c.Bucket))
	if err != nil {
		return err
	}
	if c.Value == nil {
		return b.Delete(c.Key)
	}
	return b.Put(c.Key, seal(c.Bucket, c.Key, c.Value))
}

// full tells whether an error is for want of room. bbolt gives some as text only.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		err != nil && strings.HasSuffix(err.Error(), syscall.ENOSPC.Error())
}
