// Command report writes docs/performance.md and its plots of what scripts/bench has
// left in docs/performance: no figure of that page is written by hand.
//
//	report [-check] -docs DIR
//
// With -check nothing is written, and what would change is an error.
package main

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed page.md.tmpl
var page string

func main() {
	docs := flag.String("docs", "", "the folder `DIR` of performance.md and performance/")
	check := flag.Bool("check", false, "only compare what is there")
	flag.Parse()
	if err := report(*docs, *check); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func report(docs string, check bool) error {
	folder := filepath.Join(docs, "performance")
	r, err := read(folder)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	if files[filepath.Join(docs, "performance.md")], err = r.page(page); err != nil {
		return err
	}
	for name, draw := range plots {
		if files[filepath.Join(folder, name+".svg")], err = draw(r); err != nil {
			return fmt.Errorf("%s.svg: %w", name, err)
		}
	}
	for path, content := range files {
		if !check {
			if err := os.WriteFile(path, content, 0o644); err != nil {
				return err
			}
			continue
		}
		if is, err := os.ReadFile(path); err != nil || !bytes.Equal(is, content) {
			return fmt.Errorf("%s is not what the results in %s give: run scripts/bench page", path, folder)
		}
	}
	return nil
}

// page fills a template in; a figure that it asks for and no part has left is an
// error.
func (r results) page(text string) ([]byte, error) {
	t, err := template.New("page.md").Funcs(template.FuncMap{
		"median": r.median, "quartiles": r.quartiles, "count": r.count, "ratio": r.ratio,
		"scale": r.scale, "config": r.config, "list": func(s ...string) []string { return s },
	}).Parse(text)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("<!-- Written by scripts/bench page, of docs/performance/*.txt. -->\n")
	if err := t.Execute(&b, nil); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}
