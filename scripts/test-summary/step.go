package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

type outcome int

const (
	running outcome = iota // started, its end never seen
	passed
	failed
	skipped
)

// test is one test of one step.
type test struct {
	pkg, name string
	outcome   outcome
	output    []string // what it printed, newest last, bounded
}

// key names a test across steps. That of a virtual machine's suite has no package.
func (t *test) key() string { return t.pkg + " " + t.name }

// step is one step's results.
type step struct {
	name    string
	exit    int
	seconds int
	stderr  string
	tests   []*test
	broken  []string // packages that failed without a failing test: a build error, a panic, a time-out
	byName  map[string]*test
	whole   []*test // those that passed and had subtests, which stand for them in tests
}

func readStep(arg string) (step, error) {
	f := strings.Split(arg, ",")
	if len(f) != 5 {
		return step{}, fmt.Errorf("%q: want STEP,EXIT,SECONDS,STDOUT,STDERR", arg)
	}
	s := step{name: f[0], stderr: f[4]}
	var err error
	if s.exit, err = strconv.Atoi(f[1]); err != nil {
		return s, fmt.Errorf("%q: exit status: %w", arg, err)
	}
	if s.seconds, err = strconv.Atoi(f[2]); err != nil {
		return s, fmt.Errorf("%q: seconds: %w", arg, err)
	}
	file, err := os.Open(f[3])
	if err != nil {
		return s, err
	}
	defer file.Close()
	return s, s.read(file)
}

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output string
}

var resultLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)

func (s *step) read(r io.Reader) error {
	s.byName = map[string]*test{}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), 16<<20)
	var pkg string // of plain output, where it is said
	var last *test // of plain output: what follows a result line belongs to it
	for in.Scan() {
		line := in.Bytes()
		if bytes.HasPrefix(line, []byte("{")) {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				s.event(e)
				continue
			}
		}
		text := strings.TrimRight(in.Text(), "\r")
		if m := resultLine.FindStringSubmatch(text); m != nil {
			last = s.test(pkg, m[2])
			last.outcome = map[string]outcome{"PASS": passed, "FAIL": failed, "SKIP": skipped}[m[1]]
			continue
		}
		if f := strings.Fields(text); len(f) == 3 && f[0] == "===" {
			switch f[1] {
			case "PACKAGE": // scripts/test says it between the outputs of several test binaries
				pkg, last = f[2], nil
				continue
			case "RUN":
				last = s.test(pkg, f[2])
				continue
			}
		}
		if last != nil {
			last.say(text)
		}
	}
	s.settle()
	return in.Err()
}

func (s *step) event(e event) {
	if e.Test == "" {
		if e.Action == "fail" {
			s.broken = append(s.broken, e.Package)
		}
		return
	}
	t := s.test(e.Package, e.Test)
	switch e.Action {
	case "pass":
		t.outcome = passed
	case "fail":
		t.outcome = failed
	case "skip":
		t.outcome = skipped
	case "output":
		t.say(strings.TrimRight(e.Output, "\n"))
	}
}

func (s *step) test(pkg, name string) *test {
	k := pkg + " " + name
	t := s.byName[k]
	if t == nil {
		t = &test{pkg: pkg, name: name}
		s.byName[k] = t
		s.tests = append(s.tests, t)
	}
	return t
}

func (t *test) say(line string) {
	const most = 40
	if f := strings.TrimSpace(line); f == "" || strings.HasPrefix(f, "=== ") || strings.HasPrefix(f, "--- ") {
		return
	}
	t.output = append(t.output, line)
	if len(t.output) > most {
		t.output = t.output[len(t.output)-most:]
	}
}

// settle turns what was read into what counts: a test that never ended has
// failed, a test with subtests stands for them and is not counted itself
// (unless it failed and none of them did), and a package or step that failed
// without a failing test counts as one failure.
func (s *step) settle() {
	parents := map[*test][]*test{}
	for _, t := range s.tests {
		if t.outcome == running {
			t.outcome = failed
			t.say("it never ended")
		}
		if i := strings.LastIndex(t.name, "/"); i >= 0 {
			if p := s.byName[t.pkg+" "+t.name[:i]]; p != nil {
				parents[p] = append(parents[p], t)
			}
		}
	}
	failedBelow := func(kids []*test) bool {
		return slices.ContainsFunc(kids, func(k *test) bool { return k.outcome == failed })
	}
	passedBelow := func(kids []*test) bool {
		return slices.ContainsFunc(kids, func(k *test) bool { return k.outcome == passed })
	}
	for t, kids := range parents {
		if t.outcome == passed && passedBelow(kids) {
			s.whole = append(s.whole, t)
		}
	}
	s.tests = slices.DeleteFunc(s.tests, func(t *test) bool {
		kids := parents[t]
		return len(kids) > 0 && (t.outcome != failed || failedBelow(kids))
	})
	s.broken = slices.DeleteFunc(s.broken, func(pkg string) bool {
		return slices.ContainsFunc(s.tests, func(t *test) bool { return t.pkg == pkg && t.outcome == failed })
	})
	any := slices.ContainsFunc(s.tests, func(t *test) bool { return t.outcome == failed })
	switch {
	case s.exit != 0 && !any && len(s.broken) == 0:
		s.broken = append(s.broken, fmt.Sprintf("%s ended with status %d", s.name, s.exit))
	case s.exit == 0 && len(s.tests) == 0:
		s.broken = append(s.broken, s.name+" ran no test")
	}
}
