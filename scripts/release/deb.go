package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
)

var described = regexp.MustCompile(`^v?([0-9][0-9A-Za-z.]*)(?:-([a-z][0-9A-Za-z.]*))?(?:-([0-9]+)-g([0-9a-f]+))?$`)

// debVersion is what git describe says as a Debian version, such that later ones
// sort later: v1.2.3-rc1 is 1.2.3~rc1, v1.2.3-5-gabcdef0 is 1.2.3+5.gabcdef0, and a
// commit of a history without tags comes by its time and before all releases.
func debVersion(describe string, when time.Time) string {
	tag, dirty := strings.CutSuffix(describe, "-dirty") // which reads like a pre-release
	m := described.FindStringSubmatch(tag)
	if m == nil || !strings.Contains(m[1], ".") {
		return "0~" + when.UTC().Format("20060102.150405") + "." + regexp.MustCompile(`[^0-9A-Za-z.+~]+`).ReplaceAllString(describe, "+")
	}
	v := m[1]
	if m[2] != "" {
		v += "~" + m[2]
	}
	if m[3] != "" {
		v += "+" + m[3] + ".g" + m[4]
	}
	if dirty {
		v += "+dirty"
	}
	return v
}

// deb writes the Debian package: the socket plugin as a service of systemd.
func (r *release) deb(to, arch, binary string, licences []byte) (err error) {
	parts := filepath.Join(r.tree, "scripts/release/deb")
	var contents files.Contents
	add := func(dst, src string, mode os.FileMode) {
		contents = append(contents, &files.Content{
			Source: src, Destination: dst,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: r.when},
		})
	}
	add("/usr/bin/underlay", binary, 0o755)
	add("/usr/lib/systemd/system/underlay.service", filepath.Join(parts, "underlay.service"), 0o644)
	add("/usr/lib/tmpfiles.d/underlay.conf", filepath.Join(parts, "underlay.conf"), 0o644)
	add("/etc/default/underlay", filepath.Join(parts, "underlay.default"), 0o644)
	contents[len(contents)-1].Type = files.TypeConfigNoReplace
	add("/usr/share/bash-completion/completions/underlay", r.completion("bash"), 0o644)
	add("/usr/share/zsh/vendor-completions/_underlay", r.completion("zsh"), 0o644)
	add("/usr/share/fish/vendor_completions.d/underlay.fish", r.completion("fish"), 0o644)

	page, err := os.ReadFile(filepath.Join(r.tree, "docs/underlay.8"))
	if err == nil {
		page, err = zipped(page)
	}
	if err != nil {
		return err
	}
	packed := filepath.Join(r.tmp, "underlay.8.gz")
	if err := os.WriteFile(packed, page, 0o644); err != nil {
		return err
	}
	add("/usr/share/man/man8/underlay.8.gz", packed, 0o644)

	const doc = "/usr/share/doc/underlay"
	copyright := filepath.Join(r.tmp, "copyright-"+arch)
	if err := os.WriteFile(copyright, licences, 0o644); err != nil {
		return err
	}
	add(doc+"/copyright", copyright, 0o644)
	pages, err := documents(r.tree)
	if err != nil {
		return err
	}
	for _, page := range pages {
		add(path.Join(doc, page), filepath.Join(r.tree, page), 0o644)
	}

	info := nfpm.WithDefaults(&nfpm.Info{
		Name: "underlay", Arch: arch, Platform: "linux",
		Version: debVersion(r.version, r.when), VersionSchema: "none",
		Section: "net", Priority: "optional", Maintainer: r.maintainer, License: "Apache-2.0",
		Description: "Docker networks on the physical LAN\n" +
			"underlay is a Docker network and IPAM plugin that gives containers an interface\n" +
			"of their own on the LAN of a parent NIC (macvlan, ipvlan), and addresses that the\n" +
			"LAN was asked about. This package runs it as a service beside dockerd.",
		MTime: r.when, DisableGlobbing: true,
		Overridables: nfpm.Overridables{
			Recommends: []string{"docker.io | docker-ce"},
			Contents:   contents,
			Umask:      0o022,
			Scripts: nfpm.Scripts{
				PostInstall: filepath.Join(parts, "postinst"),
				PreRemove:   filepath.Join(parts, "prerm"),
				PostRemove:  filepath.Join(parts, "postrm"),
			},
		},
	})
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return deb.Default.Package(info, f)
}

var linked = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)

// documents are README.md and the files that it links to, by way of other pages, too.
// What merely lies beside them, which git may not know, would change a release's bytes.
func documents(tree string) ([]string, error) {
	pages := []string{"README.md"}
	for k := 0; k < len(pages); k++ {
		text, err := os.ReadFile(filepath.Join(tree, pages[k]))
		if err != nil {
			return nil, err
		}
		if path.Ext(pages[k]) != ".md" {
			continue
		}
		for _, link := range linked.FindAllSubmatch(text, -1) {
			to := path.Join(path.Dir(pages[k]), string(link[1]))
			if link[1][len(link[1])-1] != '/' && !slices.Contains(pages, to) {
				pages = append(pages, to)
			}
		}
	}
	return pages, nil
}

// zipped is gzip without a name or a time.
func zipped(text []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = z.Write(text)
	err = errors.Join(err, z.Close())
	return b.Bytes(), err
}
