package plugin

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"
)

// The manual's table has all calls, with their deadlines.
func TestCallsInTheManual(t *testing.T) {
	text, err := os.ReadFile("../docs/calls.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([\\w.]+)` \\| ([^|]+) \\|").FindAllSubmatch(text, -1) {
		listed = append(listed, "/"+string(m[1]))
		if d, err := time.ParseDuration(string(regexp.MustCompile(" ").ReplaceAll(m[2], nil))); err != nil || d != deadline {
			t.Errorf("%s: %s, want %v", m[1], m[2], deadline)
		}
	}
	slices.Sort(listed)
	if have := slices.Sorted(maps.Keys(newBench(t).plugin.server.calls)); !slices.Equal(have, listed) {
		t.Errorf("the manual has\n%v\nunderlay\n%v", listed, have)
	}
}
