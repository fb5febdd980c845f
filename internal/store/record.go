package store

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
	"strconv"

	"go.etcd.io/bbolt"
)

// Format is the version of the records' form that this program writes. It reads
// all earlier ones. It is counted up when a record comes to mean what an earlier
// program would misread.
//
//	1  has no number in the file
//	2  counts a pool's networks by their terms
//	3  ends each value with its checksum
//	4  may have leases, which an earlier program would let run out
const Format = 4

// The bucket of the store's own records. The format is plain text in all
// formats, for earlier programs to say what they cannot read; the seal has the
// checksum that it lacks.
var (
	storeBucket = []byte("store")
	formatKey   = []byte("format")
	sealKey     = []byte("seal")
)

// firstBuckets are those that a file without a number may have, if it is not
// another program's.
var firstBuckets = []string{"addresses", "driver", "endpoints", "ipam", "networks", "pools"}

// sealed is the first format whose values end with a checksum.
const sealed = 3

const sumSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns a value with its checksum, which is over the key, too: a record
// under another's key is no less damaged.
func seal(bucket string, key, value []byte) []byte {
	b := make([]byte, len(value), len(value)+sumSize)
	copy(b, value)
	return binary.LittleEndian.AppendUint32(b, sum(bucket, key, value))
}

// unseal returns the value in a sealed one, and whether its checksum is right.
func unseal(bucket string, key, b []byte) (value []byte, ok bool) {
	n := len(b) - sumSize
	if n < 0 {
		return nil, false
	}
	return b[:n:n], binary.LittleEndian.Uint32(b[n:]) == sum(bucket, key, b[:n])
}

func sum(bucket string, key, value []byte) uint32 {
	c := crc32.Update(0, castagnoli, []byte(bucket))
	c = crc32.Update(c, castagnoli, []byte{0, byte(len(key))})
	c = crc32.Update(c, castagnoli, key)
	return crc32.Update(c, castagnoli, value)
}

// check reads a whole file and returns its format: 0 for one that has none, as
// the first had. An error is errDamaged or one of reading.
func check(file io.ReaderAt, size int64) (format int, err error) {
	var text, mark, bad, foreign string
	err = walk(file, size, func(bucket string, key, value []byte) error {
		switch {
		case bucket != string(storeBucket):
			if _, ok := unseal(bucket, key, value); !ok && bad == "" {
				bad = bucket + "/" + string(key)
			}
			if !slices.Contains(firstBuckets, bucket) {
				foreign = bucket
			}
		case string(key) == string(formatKey):
			text = string(value)
		case string(key) == string(sealKey):
			v, ok := unseal(bucket, key, value)
			if !ok {
				return damaged("its seal is broken")
			}
			mark = string(v)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if text != "" {
		if format, err = strconv.Atoi(text); err != nil {
			return 0, damaged("its format is %q", text)
		}
	}
	switch {
	case format > Format: // whose records are not ours to judge
	case format < sealed && mark != "", format >= sealed && mark != text:
		return 0, damaged("it says format %q outside and %q inside", text, mark)
	case format >= sealed && bad != "":
		return 0, damaged("record %s does not have its checksum", bad)
	case format == 0 && foreign != "":
		return 0, damaged("its records %q are another program's", foreign)
	}
	return format, nil
}

// migrate brings the records of an earlier format into ours.
func migrate(tx *bbolt.Tx, format int) error {
	if format < sealed {
		var all []Change
		err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			if string(name) == string(storeBucket) {
				return nil
			}
			return b.ForEach(func(key, value []byte) error {
				all = append(all, Change{string(name), slices.Clone(key), slices.Clone(value)})
				return nil
			})
		})
		if err != nil {
			return err
		}
		for _, c := range all {
			if err := apply(tx, c); err != nil {
				return err
			}
		}
	}
	return stamp(tx, Format)
}

// stamp writes the format.
func stamp(tx *bbolt.Tx, format int) error {
	text := []byte(strconv.Itoa(format))
	b, err := tx.CreateBucketIfNotExists(storeBucket)
	if err != nil {
		return err
	}
	if err := b.Put(formatKey, text); err != nil {
		return err
	}
	return b.Put(sealKey, seal(string(storeBucket), sealKey, text))
}
