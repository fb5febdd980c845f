// Command test-summary counts what the steps of `make test` printed.
//
// Each argument is STEP,EXIT,SECONDS,STDOUT,STDERR: a step's name, its exit
// status, how long it took, and the files with its output. The output may be
// that of `go test -json` or of `go test -v`. A table of the steps comes first,
// then what failed and what was skipped; the very last line is
//
//	N passed, N failed[, N skipped]
//
// A skipped test counts as skipped where the same test passed in another step
// (in a VM, whose kernel lacks nothing), or, when no VM was run, where it says
// what this kernel lacks; else it counts as failed. A test that failed counts as
// flaky, and is listed as such, if it passed in the step of that name and " again",
// which has run it once more. The exit status is 1 when a test
// or a step failed.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "-json-file" {
		if err := checkJSON(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var steps []step
	for _, arg := range os.Args[1:] {
		s, err := readStep(arg)
		if err != nil {
			fmt.Fprintln(os.Stderr, "test-summary:", err)
			os.Exit(2)
		}
		steps = append(steps, s)
	}
	if !report(os.Stdout, steps) {
		os.Exit(1)
	}
}

// checkJSON tells whether the file is well-formed JSON.
func checkJSON(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
