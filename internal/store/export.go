package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// All calls f for each record of all buckets as they are at one moment, in the order
// of buckets and keys. f must neither keep the slices nor wait for anybody.
func (s *Store) All(f func(bucket string, key, value []byte) error) error {
	return guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
				bucket := string(name)
				if bucket == string(storeBucket) {
					return nil
				}
				return b.ForEach(func(key, value []byte) error {
					value, ok := unseal(bucket, key, value)
					if !ok {
						return damaged("record %s/%s does not have its checksum", bucket, key)
					}
					return f(bucket, key, value)
				})
			})
		})
	})
}

// Create makes a state file with records of a format that this program reads. It is
// there only when all of it is on disk, and never in the place of another.
func Create(path string, format int, records []Change) error {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(folder)
	if err == nil {
		err = trusted(folder, info)
	}
	if err != nil {
		return err
	}
	if format < 1 || format > Format {
		return fmt.Errorf("%w: format %d, and this one knows those up to %d", ErrNewer, format, Format)
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// An earlier format has the same records, but for checksums.
	err = compose(path, func(tx *bbolt.Tx) error {
		for _, r := range records {
			if err := apply(tx, r); err != nil {
				return fmt.Errorf("record %s/%s: %w", r.Bucket, r.Key, err)
			}
		}
		return stamp(tx, Format)
	})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already", path)
	}
	return err
}
