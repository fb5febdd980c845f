// Package oneline makes text that others chose, such as a link's or a container's name,
// fit to be shown on a terminal.
package oneline

import (
	"strconv"
	"strings"
	"unicode"
)

// Of is a text as one line in which nothing is a terminal's to obey: what controls
// it, or turns the direction of writing, is shown as Go's escapes, such as \x1b.
func Of(text string) string {
	if !strings.ContainsFunc(text, controls) && strings.ToValidUTF8(text, "") == text {
		return text
	}
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(text, "\uFFFD") {
		if controls(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func controls(r rune) bool {
	return unicode.IsControl(r) || r >= '\u202A' && r <= '\u202E' || r >= '\u2066' && r <= '\u2069'
}
