// Package manual reads the pages of the manual, for the tests that hold them against
// what they speak of.
package manual

import (
	"os"
	"strings"
)

// Section is a heading of a page, with the fenced blocks up to the next one.
type Section struct {
	Heading string
	Blocks  []Block
}

// Block is one of a page: sh is what a person types, console an example with a prompt
// and what is printed, yaml a file, and a block without a language what is printed.
type Block struct {
	Language, Text string
	Line           int
}

// Read reads a page.
func Read(path string) ([]Section, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := []Section{{}}
	var block *Block
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		s := &all[len(all)-1]
		language, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case block != nil && fence:
			block = nil
		case block != nil:
			block.Text += line
		case fence:
			s.Blocks = append(s.Blocks, Block{Language: language, Line: n})
			block = &s.Blocks[len(s.Blocks)-1]
		case strings.HasPrefix(line, "#"):
			all = append(all, Section{Heading: strings.TrimSpace(strings.TrimLeft(line, "#"))})
		}
	}
	return all, nil
}

// Text is that of all of a section's blocks of a language.
func (s Section) Text(language string) string {
	var all strings.Builder
	for _, b := range s.Blocks {
		if b.Language == language {
			all.WriteString(b.Text)
		}
	}
	return all.String()
}

// Commands are the commands of a block, each in one line, without comments.
func Commands(text string) (all []string) {
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line, _, _ = strings.Cut(" "+line, " #")
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			all = append(all, line)
		}
	}
	return all
}
