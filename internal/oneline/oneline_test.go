package oneline

import "testing"

func TestOf(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "",
		"web, 192.168.50.2 (höher) '\\": "web, 192.168.50.2 (höher) '\\",
		"\x1b[2J\x1b[31mx":              `\x1b[2J\x1b[31mx`,
		"a\nb\tc\rd\x00e\x7f":           `a\nb\tc\rd\x00e\x7f`,
		"\u009b2J":                      `\u009b2J`, // an escape sequence's beginning in one character
		"a\u202Etxt.exe\u2066\u2069":    `a\u202etxt.exe\u2066\u2069`,
		"a\x9b2Jb\xff":                  "a\uFFFD2Jb\uFFFD", // no UTF-8; \x9b alone is obeyed by some
	} {
		if got := Of(text); got != want {
			t.Errorf("Of(%q) = %q, want %q", text, got, want)
		}
	}
}
