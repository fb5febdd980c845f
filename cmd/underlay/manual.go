//go:build manual

package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// withManual adds the command that writes, for a package, all commands' manual
// pages and their completions for shells. Its libraries are no daemon's.
func withManual(root *cobra.Command) {
	root.AddCommand(&cobra.Command{
		Use:    "manual DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return manual(root, args[0]) },
	})
}

func manual(root *cobra.Command, dir string) error {
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	verbatim(root)
	header := &doc.GenManHeader{Section: "1", Source: "underlay " + version, Manual: "underlay"}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return err
	}
	// Those of each shell are one page's matter.
	shells, err := filepath.Glob(filepath.Join(dir, "underlay-completion-*.1"))
	if err != nil {
		return err
	}
	for _, path := range shells {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for name, write := range map[string]func(string) error{
		"underlay":      func(path string) error { return root.GenBashCompletionFileV2(path, true) },
		"_underlay":     root.GenZshCompletionFile,
		"underlay.fish": func(path string) error { return root.GenFishCompletionFile(path, true) },
	} {
		if err := write(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// verbatim has the tables of the help texts, which are indented, stay tables.
func verbatim(cmd *cobra.Command) {
	var b strings.Builder
	table := false
	for line := range strings.Lines(cmd.Long) {
		if is := strings.HasPrefix(line, "  "); is {
			if !table {
				b.WriteByte('\n')
			}
			line = "    " + line
			table = true
		} else {
			table = false
		}
		b.WriteString(line)
	}
	cmd.Long = b.String()
	for _, c := range cmd.Commands() {
		verbatim(c)
	}
}
