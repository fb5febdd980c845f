package netlinkutil

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// What is noted of netns does not grow with all that have ever been, and none that
// is there is lost from it.
func TestSeenSandboxes(t *testing.T) {
	s := &sandboxes{at: t.TempDir(), seen: map[string]bool{}, most: fewSeen}
	const stays = "000000000000"
	if err := os.WriteFile(filepath.Join(s.at, stays), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.know(stays)
	for i := range 5 * fewSeen {
		s.know(fmt.Sprintf("%012x", i+1))
		if len(s.seen) > fewSeen+1 {
			t.Fatalf("%d are noted, of which one is there", len(s.seen))
		}
		if !s.known(stays) {
			t.Fatal("the one that is there is not known any more")
		}
	}
}
