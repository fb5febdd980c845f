package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// again ends the name of a step in which the tests that failed in another were run
// once more.
const again = " again"

// report prints the summary and tells whether all went well.
func report(w io.Writer, steps []step) bool {
	passedIn := map[string]string{} // the step, by the test's key
	vm := false
	for _, s := range steps {
		vm = vm || strings.Contains(s.name, "vm:")
		for _, t := range s.tests {
			if t.outcome == passed {
				passedIn[t.key()] = s.name
			}
		}
		for _, t := range s.whole { // elsewhere it may have been skipped before its first subtest
			passedIn[t.key()] = s.name
		}
	}
	excused := func(t *test) bool {
		lacks := strings.Contains(strings.Join(t.output, " "), "kernel lacks")
		return passedIn[t.key()] != "" || (lacks && !vm)
	}

	var nPassed, nFailed, nSkipped int
	var failures, skips, flakes strings.Builder
	fmt.Fprintf(w, "%-14s %8s %8s %8s %8s\n", "step", "passed", "failed", "skipped", "seconds")
	for _, s := range steps {
		var p, f, k int
		covered := map[string]int{} // of its skips, by the step in which they passed
		for _, t := range s.tests {
			switch {
			case t.outcome == passed:
				p++
			case t.outcome == skipped && excused(t):
				k++
				if in := passedIn[t.key()]; in != "" {
					covered[in]++
				} else {
					fmt.Fprintf(&skips, "  %s %s: %s\n", s.name, t.name, reason(t))
				}
			case t.outcome == skipped:
				f++
				fmt.Fprintf(&failures, "  %s %s %s: skipped, and nothing else covers it: %s\n", s.name, t.pkg, t.name, reason(t))
			default:
				to := &failures
				if i := slices.IndexFunc(steps, func(o step) bool { return o.name == s.name+again }); i >= 0 && steps[i].passes(t.name) {
					to = &flakes
				} else {
					f++
				}
				fmt.Fprintf(to, "  %s %s %s\n", s.name, t.pkg, t.name)
				for _, line := range t.output {
					fmt.Fprintf(to, "      %s\n", cut(line))
				}
			}
		}
		for _, in := range slices.Sorted(maps.Keys(covered)) {
			fmt.Fprintf(&skips, "  %s: %d passed in %s\n", s.name, covered[in], in)
		}
		for _, b := range s.broken {
			f++
			fmt.Fprintf(&failures, "  %s %s\n%s", s.name, b, tail(s.stderr, 30))
		}
		fmt.Fprintf(w, "%-14s %8d %8d %8d %8d\n", s.name, p, f, k, s.seconds)
		nPassed, nFailed, nSkipped = nPassed+p, nFailed+f, nSkipped+k
	}
	if skips.Len() > 0 {
		fmt.Fprintf(w, "\nskipped:\n%s", skips.String())
	}
	if flakes.Len() > 0 {
		fmt.Fprintf(w, "\nflaky: failed, and passed when run again, which is a fault to be found:\n%s", flakes.String())
	}
	if failures.Len() > 0 {
		fmt.Fprintf(w, "\nfailed:\n%s", failures.String())
	}
	fmt.Fprintf(w, "\n%d passed, %d failed", nPassed, nFailed)
	if nSkipped > 0 {
		fmt.Fprintf(w, ", %d skipped", nSkipped)
	}
	fmt.Fprintln(w)
	return nFailed == 0
}

// passes tells whether a test, or else what there is below it, passed in a step.
func (s step) passes(name string) bool {
	any := false
	for _, t := range s.tests {
		if t.name != name && !strings.HasPrefix(t.name, name+"/") {
			continue
		}
		if t.outcome != passed {
			return false
		}
		any = true
	}
	return any && len(s.broken) == 0
}

// reason is what a skipped test said last.
func reason(t *test) string {
	if len(t.output) == 0 {
		return "no reason given"
	}
	return strings.TrimSpace(t.output[len(t.output)-1])
}

// cut shortens a line that no terminal shows well; all of it is in build/test.
func cut(line string) string {
	const most = 400
	if len(line) <= most {
		return line
	}
	return line[:most] + " ..."
}

// tail is the end of a file, indented; nothing if there is none.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "      " + strings.Join(all, "\n      ") + "\n"
}
