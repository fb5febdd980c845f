package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// parts is what is linked into the binary, by its own word (go version -m).
type parts struct {
	goVersion string // 1.26.8
	modules   []*debug.Module
}

func readParts(binary string) (p parts, err error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return p, err
	}
	p.goVersion, _, _ = strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ")
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		p.modules = append(p.modules, m)
	}
	slices.SortFunc(p.modules, func(a, b *debug.Module) int { return strings.Compare(a.Path, b.Path) })
	return p, nil
}

// bom writes them as a CycloneDX bill of materials.
func (r *release) bom(to, binary string, p parts) error {
	content, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	const self = "pkg:generic/underlay"
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: r.when.Format(time.RFC3339),
		Component: &cdx.Component{
			BOMRef: self, Type: cdx.ComponentTypeApplication, Name: "underlay", Version: r.version,
			Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sha256.Sum256(content))}},
			Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
		},
	}
	components := []cdx.Component{library("std", p.goVersion, "")}
	for _, m := range p.modules {
		components = append(components, library(m.Path, m.Version, m.Sum))
	}
	refs := make([]string, len(components))
	for i, c := range components {
		refs[i] = c.BOMRef
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: self, Dependencies: &refs}}
	var text bytes.Buffer
	if err := cdx.NewBOMEncoder(&text, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return err
	}
	return os.WriteFile(to, text.Bytes(), 0o644)
}

// library is a module; its sum is that of go.sum.
func library(path, version, sum string) cdx.Component {
	url := "pkg:golang/" + path + "@" + version
	c := cdx.Component{BOMRef: url, PackageURL: url, Type: cdx.ComponentTypeLibrary, Name: path, Version: version}
	if sum != "" {
		c.Properties = &[]cdx.Property{{Name: "go:sum", Value: sum}}
	}
	return c
}

// licences are underlay's own and those of what is linked in, which want to go
// along with it.
func (r *release) licences(p parts) ([]byte, error) {
	own, err := os.ReadFile(filepath.Join(r.tree, "LICENSE"))
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	text.WriteString("underlay is under the Apache License 2.0. What is linked into its binary has the\nlicences below; the list is the binary's own (go version -m).\n\n")
	section := func(title string, content []byte) {
		fmt.Fprintf(&text, "==== %s ====\n\n%s\n\n", title, bytes.TrimSpace(content))
	}
	section("underlay", own)
	goroot, err := r.output("go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	std, err := os.ReadFile(filepath.Join(goroot, "LICENSE"))
	if err != nil {
		return nil, err
	}
	section("Go "+p.goVersion, std)
	args := []string{"go", "list", "-m", "-json"}
	for _, m := range p.modules {
		args = append(args, m.Path)
	}
	out, err := r.output(args...)
	if err != nil {
		return nil, err
	}
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var m struct{ Path, Version, Dir string }
		if err := dec.Decode(&m); err != nil {
			return nil, err
		}
		files, err := licenceFiles(m.Dir)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("%s has no licence file in %s", m.Path, m.Dir)
		}
		for _, file := range files {
			content, err := os.ReadFile(filepath.Join(m.Dir, file))
			if err != nil {
				return nil, err
			}
			section(m.Path+" "+m.Version+", "+file, content)
		}
	}
	return text.Bytes(), nil
}

func licenceFiles(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		word, _, _ := strings.Cut(strings.ToUpper(e.Name()), ".")
		if !e.IsDir() && slices.Contains([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE"}, word) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func (r *release) output(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = r.tree, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
