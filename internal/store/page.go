package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// bbolt maps its file and trusts what it finds there: a damaged one makes it
// read where nothing is mapped, also in goroutines of its own, where nobody can
// catch that. So the file is walked before, by plain reads and with every bound
// checked. Layout: go.etcd.io/bbolt v1.5, internal/common/{page,meta,inode}.go.
const (
	pageHeader    = 16 // id uint64, flags uint16, count uint16, overflow uint32
	elementHeader = 16 // of a leaf: flags, pos, key size, value size uint32; of a branch: pos, key size uint32, page uint64
	bucketHeader  = 16 // root uint64, sequence uint64; of one within its parent's page, that page follows
	metaSize      = 64

	branchFlag   = 0x01
	leafFlag     = 0x02
	freelistFlag = 0x10

	bucketFlag = 0x01 // of a leaf's element

	magic      = 0xED0CDAED
	version    = 2
	noFreelist = math.MaxUint64

	minPage = 1 << 10
	maxPage = 1 << 24
)

var order = binary.NativeEndian

// errDamaged is what a file gets whose content cannot be what was written.
var errDamaged = errors.New("it is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errDamaged, fmt.Errorf(format, args...))
}

// meta is what a commit points to.
type meta struct {
	pageSize                  int
	root, freelist, end, txid uint64
}

// parseMeta reads a meta page; ok is false where it is none.
func parseMeta(page []byte) (m meta, ok bool) {
	if len(page) < pageHeader+metaSize {
		return m, false
	}
	b := page[pageHeader:]
	if order.Uint32(b) != magic || order.Uint32(b[4:]) != version {
		return m, false
	}
	if metaSum(b) != order.Uint64(b[metaSize-8:]) {
		return m, false
	}
	m = meta{
		pageSize: int(order.Uint32(b[8:])),
		root:     order.Uint64(b[16:]), freelist: order.Uint64(b[32:]), end: order.Uint64(b[40:]), txid: order.Uint64(b[48:]),
	}
	return m, m.pageSize >= minPage && m.pageSize <= maxPage && m.pageSize&(m.pageSize-1) == 0
}

func metaSum(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b[:metaSize-8]) // never fails
	return h.Sum64()
}

// walker goes over all pages that a commit reaches.
type walker struct {
	file io.ReaderAt
	meta meta
	used []uint64 // bit by page: reached, or free
	// spare are buffers of a page each, not in use.
	spare [][]byte
	// record is called with every record of every bucket, in their order. The
	// slices are valid only during the call.
	record func(bucket string, key, value []byte) error
}

// walk finds the latest commit of a file and goes over it. An error is
// errDamaged or one of reading.
func walk(file io.ReaderAt, size int64, record func(bucket string, key, value []byte) error) error {
	w := walker{file: file, record: record}
	if err := w.findMeta(size); err != nil {
		return err
	}
	m := &w.meta
	if m.end < 3 || m.end > uint64(size)/uint64(m.pageSize) {
		return damaged("it ends after %d bytes, and has pages beyond", size)
	}
	w.used = make([]uint64, m.end/64+1)
	if err := w.freelist(); err != nil {
		return err
	}
	return w.tree(m.root, nil, nil, "", true)
}

// findMeta finds the page size as bbolt does, then the later of the two
// commits. That one of them is no commit is no damage: it was cut off by a
// crash, and nobody had its word yet.
func (w *walker) findMeta(size int64) error {
	head := make([]byte, pageHeader+metaSize)
	at := int64(0)
	for found := false; !found; {
		if at+int64(len(head)) > size || at > maxPage {
			return damaged("it has no beginning of a state file")
		}
		if err := w.read(head, at); err != nil {
			return err
		}
		if w.meta, found = parseMeta(head); found {
			break
		}
		at = max(minPage, 2*at)
	}
	other := int64(w.meta.pageSize) // the second, or where that was found
	if at != 0 {
		if at != other {
			return damaged("its pages have another size than it says")
		}
		other = 0
	}
	if other+int64(len(head)) > size {
		return damaged("it ends after %d bytes", size)
	}
	if err := w.read(head, other); err != nil {
		return err
	}
	if m, ok := parseMeta(head); ok && m.pageSize == w.meta.pageSize && m.txid > w.meta.txid {
		w.meta = m
	}
	return nil
}

func (w *walker) read(b []byte, at int64) error {
	_, err := w.file.ReadAt(b, at)
	if errors.Is(err, io.EOF) {
		return damaged("it ends before byte %d", at+int64(len(b)))
	}
	return err
}

// page reads a page and what overflows from it, and marks it as used.
func (w *walker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= w.meta.end {
		return nil, damaged("page %d of %d", id, w.meta.end)
	}
	var b []byte
	if n := len(w.spare); n > 0 {
		b, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		b = make([]byte, w.meta.pageSize)
	}
	if err := w.read(b, int64(id)*int64(len(b))); err != nil {
		return nil, err
	}
	if order.Uint64(b) != id {
		return nil, damaged("page %d says that it is %d", id, order.Uint64(b))
	}
	more := uint64(order.Uint32(b[12:]))
	if more >= w.meta.end-id {
		return nil, damaged("page %d is longer than the file", id)
	}
	for i := id; i <= id+more; i++ {
		if w.used[i/64]&(1<<(i%64)) != 0 {
			return nil, damaged("page %d has two uses", i)
		}
		w.used[i/64] |= 1 << (i % 64)
	}
	if more > 0 {
		b = append(b, make([]byte, more*uint64(w.meta.pageSize))...)
		if err := w.read(b[w.meta.pageSize:], int64(id+1)*int64(w.meta.pageSize)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (w *walker) freelist() error {
	if w.meta.freelist == noFreelist {
		return nil
	}
	b, err := w.page(w.meta.freelist)
	if err != nil {
		return err
	}
	if order.Uint16(b[8:]) != freelistFlag {
		return damaged("page %d is no freelist", w.meta.freelist)
	}
	count := uint64(order.Uint16(b[10:]))
	ids := b[pageHeader:]
	if count == math.MaxUint16 { // the first is the count
		count = order.Uint64(ids)
		ids = ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return damaged("page %d, the freelist, has %d entries", w.meta.freelist, count)
	}
	for i := range count {
		id := order.Uint64(ids[8*i:])
		if id < 2 || id >= w.meta.end {
			return damaged("free page %d of %d", id, w.meta.end)
		}
		if w.used[id/64]&(1<<(id%64)) != 0 {
			return damaged("page %d has two uses", id)
		}
		w.used[id/64] |= 1 << (id % 64)
	}
	return nil
}

// tree goes over the pages under one, whose keys begin with low and are below
// high, where those are not nil. root is whether it is the tree of the buckets.
func (w *walker) tree(id uint64, low, high []byte, bucket string, root bool) error {
	b, err := w.page(id)
	if err != nil {
		return err
	}
	if err := w.elements(id, b, low, high, bucket, root); err != nil {
		return err
	}
	w.spare = append(w.spare, b[:w.meta.pageSize:w.meta.pageSize])
	return nil
}

func (w *walker) elements(id uint64, b, low, high []byte, bucket string, root bool) error {
	flags, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	leaf := flags == leafFlag
	switch {
	case !leaf && flags != branchFlag:
		return damaged("page %d is of no kind", id)
	case count == 0 && (!leaf || low != nil), pageHeader+count*elementHeader > len(b):
		return damaged("page %d has %d entries", id, count)
	}
	type element struct {
		flags      uint32
		page       uint64
		key, value []byte
	}
	parse := func(i int) (e element, err error) {
		at := uint64(pageHeader + i*elementHeader)
		h := b[at:]
		var pos, ksize, vsize uint64
		if leaf {
			e.flags = order.Uint32(h)
			pos, ksize, vsize = uint64(order.Uint32(h[4:])), uint64(order.Uint32(h[8:])), uint64(order.Uint32(h[12:]))
		} else {
			pos, ksize, e.page = uint64(order.Uint32(h)), uint64(order.Uint32(h[4:])), order.Uint64(h[8:])
		}
		if at+pos+ksize+vsize > uint64(len(b)) {
			return e, damaged("page %d has an entry that is longer than it", id)
		}
		e.key = b[at+pos : at+pos+ksize]
		e.value = b[at+pos+ksize : at+pos+ksize+vsize]
		return e, nil
	}
	var last []byte
	for i := range count {
		e, err := parse(i)
		if err != nil {
			return err
		}
		// bbolt finds a page again by its first key, which the page above has, too.
		if i == 0 && low != nil && !bytes.Equal(e.key, low) ||
			i > 0 && bytes.Compare(e.key, last) <= 0 || high != nil && bytes.Compare(e.key, high) >= 0 {
			return damaged("page %d has keys out of order", id)
		}
		last = e.key
		switch {
		case !leaf:
			next := high
			if i+1 < count {
				n, err := parse(i + 1)
				if err != nil {
					return err
				}
				next = n.key
			}
			if err := w.tree(e.page, e.key, next, bucket, root); err != nil {
				return err
			}
		case e.flags&bucketFlag != 0 != root:
			return damaged("page %d has a record where a bucket belongs, or the reverse", id)
		case !root:
			if err := w.record(bucket, e.key, e.value); err != nil {
				return err
			}
		default:
			if err := w.bucket(id, string(e.key), e.value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walker) bucket(id uint64, name string, value []byte) error {
	if len(value) < bucketHeader {
		return damaged("page %d has half a bucket", id)
	}
	if page := order.Uint64(value); page != 0 {
		return w.tree(page, nil, nil, name, false)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != leafFlag {
		return damaged("page %d has half a bucket", id)
	}
	return w.elements(id, inline, nil, nil, name, false)
}
