package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

var when = time.Date(2026, 11, 30, 21, 59, 44, 0, time.UTC)

func TestDebVersion(t *testing.T) {
	for describe, want := range map[string]string{
		"v1.2.3":                     "1.2.3",
		"1.2.3":                      "1.2.3",
		"v1.2.3-rc1":                 "1.2.3~rc1",
		"v1.2.3-5-gabcdef0":          "1.2.3+5.gabcdef0",
		"v1.2.3-rc.1-5-gabcdef0":     "1.2.3~rc.1+5.gabcdef0",
		"v1.2.3-5-gabcdef0-dirty":    "1.2.3+5.gabcdef0+dirty",
		"v0.1.0-dirty":               "0.1.0+dirty",
		"v1.2.3-rc1-dirty":           "1.2.3~rc1+dirty",
		"e3052ec":                    "0~20261130.215944.e3052ec",
		"1234567":                    "0~20261130.215944.1234567",
		"e3052ec-dirty":              "0~20261130.215944.e3052ec+dirty",
		"unknown":                    "0~20261130.215944.unknown",
		"release/one_2-1-gabcdef0-x": "0~20261130.215944.release+one+2+1+gabcdef0+x",
	} {
		if got := debVersion(describe, when); got != want {
			t.Errorf("debVersion(%q) = %q, want %q", describe, got, want)
		}
	}
}

// dpkg's own word on what sorts where.
func TestDebVersionsSort(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("this machine lacks dpkg")
	}
	order := []string{"fffffff", "v1.2.3-rc1", "v1.2.3-rc1-2-gabcdef0", "v1.2.3-rc2", "v1.2.3", "v1.2.3-5-gabcdef0", "v1.2.3-12-g0bcdef0", "v1.2.10"}
	for i := range order[1:] {
		a, b := debVersion(order[i], when), debVersion(order[i+1], when)
		if out, err := exec.Command("dpkg", "--compare-versions", a, "lt", b).CombinedOutput(); err != nil {
			t.Errorf("%s is not before %s: %v %s", a, b, err, out)
		}
	}
}

// The package has the pages that are linked, with their pictures, and nothing that
// merely lies there.
func TestDocuments(t *testing.T) {
	tree := t.TempDir()
	for name, text := range map[string]string{
		"README.md":                "[all](docs/all.md#what) [all](docs/all.md), [elsewhere](https://example.org/a.md), ![it](docs/it.svg)",
		"stray.md":                 "",
		"docs/all.md":              "[figures](figures/), ![plot](figures/plot.svg), [back](../README.md) and [here](#here)",
		"docs/it.svg":              "[no](link.md)",
		"docs/figures/plot.svg":    "",
		"docs/figures/results.txt": "",
		"docs/stray.txt":           "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755), os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	pages, err := documents(tree)
	if want := []string{"README.md", "docs/all.md", "docs/it.svg", "docs/figures/plot.svg"}; err != nil || !slices.Equal(pages, want) {
		t.Errorf("%q, %v; want %q", pages, err, want)
	}
	if err := os.Remove(filepath.Join(tree, "docs/it.svg")); err != nil {
		t.Fatal(err)
	}
	if pages, err := documents(tree); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link leads nowhere: %q, %v", pages, err)
	}
}

// Each page of the source is in the package: none is linked from nowhere.
func TestAllDocuments(t *testing.T) {
	pages, err := documents("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		found, err := filepath.Glob("../../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range found {
			if page := filepath.ToSlash(file[len("../../"):]); !slices.Contains(pages, page) {
				t.Errorf("no page links to %s", page)
			}
		}
	}
}

// The bytes depend on names, contents and kinds alone.
func TestTarball(t *testing.T) {
	var first []byte
	for _, private := range []os.FileMode{0o777, 0o700} {
		dir := t.TempDir()
		for _, err := range []error{
			os.Mkdir(dir+"/tmp", private|os.ModeSticky),
			os.Chmod(dir+"/tmp", private|os.ModeSticky),
			os.Mkdir(dir+"/etc", private&0o755),
			os.WriteFile(dir+"/program", []byte("x"), private&0o755),
			os.WriteFile(dir+"/etc/hosts", nil, private&0o644),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		to := filepath.Join(t.TempDir(), "a.tar.gz")
		if err := tarball(to, dir, "top", when); err != nil {
			t.Fatal(err)
		}
		is, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = is
		} else if !bytes.Equal(is, first) {
			t.Error("file modes of the machine show in the tarball")
		}
	}
	z, err := gzip.NewReader(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]int64{"top/": 0o755, "top/etc/": 0o755, "top/etc/hosts": 0o644, "top/program": 0o755, "top/tmp/": 0o1777}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := modes[h.Name]; !ok || h.Mode != want || h.Uid != 0 || !h.ModTime.Equal(when) {
			t.Errorf("%s has mode %o, owner %d, time %v", h.Name, h.Mode, h.Uid, h.ModTime)
		}
		delete(modes, h.Name)
	}
	if len(modes) > 0 {
		t.Errorf("not in it: %v", modes)
	}
}

// The bill of materials of this very test names what is linked into it.
func TestBOM(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := readParts(self)
	if err != nil {
		t.Fatal(err)
	}
	r := release{version: "v1.2.3", when: when}
	to := filepath.Join(t.TempDir(), "bom.json")
	if err := r.bom(to, self, p); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if bom.SerialNumber != "" || bom.Metadata.Timestamp != "2026-11-30T21:59:44Z" {
		t.Errorf("what differs each time: serial number %q, time %q", bom.SerialNumber, bom.Metadata.Timestamp)
	}
	has := map[string]bool{}
	for _, c := range *bom.Components {
		has[c.Name] = c.Version != ""
	}
	for _, name := range []string{"std", "github.com/CycloneDX/cyclonedx-go", "github.com/goreleaser/nfpm/v2"} {
		if !has[name] {
			t.Errorf("%s is not in it: %v", name, has)
		}
	}
}
