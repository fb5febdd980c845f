package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// tarball packs dir as the folder top: root's, of one time, in one order, whatever
// the umask was.
func tarball(to, dir, top string, when time.Time) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return err
	}
	w := tar.NewWriter(z)
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: path.Join(top, filepath.ToSlash(rel)), ModTime: when, Format: tar.FormatUSTAR}
		if d.IsDir() {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
			h.Name += "/"
			if info.Mode()&fs.ModeSticky != 0 {
				h.Mode = 0o1777
			}
			return w.WriteHeader(h)
		}
		h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, info.Size()
		if info.Mode()&0o100 != 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		content, err := os.Open(p)
		if err != nil {
			return err
		}
		defer content.Close()
		_, err = io.Copy(w, content)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(w.Close(), z.Close())
}
