package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
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

// Format is the version of the records' form that this program writes. It reads
// all earlier ones; 1, which has no number in the file, is the first. It is
// counted up when a record comes to mean what an earlier program would misread.
const Format = 2

// ErrNewer is what a file gets that a later program has written.
var ErrNewer = errors.New("a later underlay has written it")

// The bucket and key of the format.
var (
	storeBucket = []byte("store")
	formatKey   = []byte("format")
)

// lockTimeout is how long Open waits for another process to let go of the
// file: an upgraded plugin may start while the old one is still leaving.
const lockTimeout = 5 * time.Second

// Store is one open state file. Its methods may be called in parallel.
type Store struct {
	db *bbolt.DB

	mu      sync.Mutex
	pending []submission
	closed  bool
	wake    chan struct{}
	done    chan struct{}
}

type submission struct {
	changes []Change
	err     chan<- error
}

// Open opens the state file, and makes it and its folder where absent.
func Open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	var db *bbolt.DB
	err := guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:      lockTimeout,
			FreelistType: bbolt.FreelistMapType,
			// The freelist stays on disk: without it, bbolt walks the whole
			// file at open, in a goroutine whose panics nobody can catch.
		})
		return err
	})
	if err == nil {
		if err = guard(func() error { return sign(db) }); err != nil {
			db.Close()
		}
	}
	if errors.Is(err, ErrNewer) {
		return nil, fmt.Errorf("state file %s: %w; install that version again, or move the file away to start with nothing", path, err)
	}
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("state file %s is held by another underlay process; stop that one or give another --state", path)
	}
	if err != nil {
		return nil, fmt.Errorf("state file %s cannot be read: %w; put a copy of it back, or move it away to start with nothing", path, err)
	}
	s := &Store{db: db, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go s.write()
	return s, nil
}

// sign checks the format of a file, and writes ours into one of an earlier.
func sign(db *bbolt.DB) error {
	format := 0
	err := db.View(func(tx *bbolt.Tx) (err error) {
		if b := tx.Bucket(storeBucket); b != nil && b.Get(formatKey) != nil {
			format, err = strconv.Atoi(string(b.Get(formatKey)))
		}
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("its format is no number: %w", err)
	case format > Format:
		return fmt.Errorf("%w, in format %d, and this one knows those up to %d", ErrNewer, format, Format)
	case format == Format:
		return nil
	}
	return db.Update(func(tx *bbolt.Tx) error {
		return apply(tx, Change{string(storeBucket), formatKey, []byte(strconv.Itoa(Format))})
	})
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
			return b.ForEach(f)
		})
	})
}

// guard turns what bbolt does at a damaged file, which is to panic or to run
// into memory that is not mapped, into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it is damaged: %v", p)
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
	return s.db.Close()
}

func (s *Store) write() {
	defer close(s.done)
	for range s.wake {
		s.commit()
	}
	s.commit()
}

func (s *Store) commit() {
	s.mu.Lock()
	batch := s.pending
	s.pending = nil
	s.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	err := guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			for _, sub := range batch {
				for _, c := range sub.changes {
					if err := apply(tx, c); err != nil {
						return fmt.Errorf("state record %s/%s: %w", c.Bucket, c.Key, err)
					}
				}
			}
			return nil
		})
	})
	if err != nil {
		err = fmt.Errorf("state not written: %w", err)
	}
	for _, sub := range batch {
		sub.err <- err
	}
}

func apply(tx *bbolt.Tx, c Change) error {
	b, err := tx.CreateBucketIfNotExists([]byte(c.Bucket))
	if err != nil {
		return err
	}
	if c.Value == nil {
		return b.Delete(c.Key)
	}
	return b.Put(c.Key, c.Value)
}
