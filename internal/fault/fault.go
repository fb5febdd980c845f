package fault

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// The environment of a process that is to be killed.
const (
	// At names the point, as List has it; "" for none.
	At = "UNDERLAY_FAULT"
	// List is the path of a file that gets the name of each point as it is
	// passed, one a line; "" for none.
	List = "UNDERLAY_FAULT_LIST"
)

// Points are what a process passes. A point's name is "CALL: WHAT": the call
// under way, with its number since the start ("17 NetworkDriver.Join"), or
// "start", and what is done in it; " #2" for the second of that name, and so on.
// Calls are to come one at a time, or names are no longer the same in each run.
type Points struct {
	at   string
	list *os.File

	mu     sync.Mutex
	call   string
	calls  int
	passed map[string]int
}

// New takes what the environment says. An error is about the list's file.
func New() (*Points, error) {
	p := &Points{at: os.Getenv(At), call: "start", passed: map[string]int{}}
	path := os.Getenv(List)
	if path == "" {
		return p, nil
	}
	var err error
	p.list, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return p, err
}

// Call says that a call begins, and returns what its end is to be told with.
func (p *Points) Call(name string) (answered func()) {
	p.mu.Lock()
	p.calls++
	call := fmt.Sprintf("%d %s", p.calls, name)
	p.call = call
	p.pass(call, "in")
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pass(call, "answered") // the next one may have begun
	}
}

// Pass passes a point, or does not return. It may be called in parallel.
func (p *Points) Pass(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pass(p.call, what)
}

func (p *Points) pass(call, what string) {
	name := call + ": " + what
	p.passed[name]++
	if n := p.passed[name]; n > 1 {
		name = fmt.Sprintf("%s #%d", name, n)
	}
	if p.list != nil {
		fmt.Fprintln(p.list, name)
	}
	if name == p.at {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // of itself: cannot fail
		select {}
	}
}

// Answered tells whether a name is that of the point after a call's answer.
func Answered(name string) bool { return strings.HasSuffix(name, ": answered") }
