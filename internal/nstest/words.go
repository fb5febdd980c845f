package nstest

import (
	"strings"
	"sync"
)

// Words are what a program has said so far, while it goes on.
type Words struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *Words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *Words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}
