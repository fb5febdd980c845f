package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const jsonRun = `{"Action":"start","Package":"underlay/ipam"}
{"Action":"run","Package":"underlay/ipam","Test":"TestPool"}
{"Action":"run","Package":"underlay/ipam","Test":"TestPool/v4"}
{"Action":"pass","Package":"underlay/ipam","Test":"TestPool/v4"}
{"Action":"pass","Package":"underlay/ipam","Test":"TestPool/v6"}
{"Action":"pass","Package":"underlay/ipam","Test":"TestPool"}
{"Action":"output","Package":"underlay/ipam","Test":"TestIPVLAN","Output":"    x_test.go:3: this kernel lacks ipvlan\n"}
{"Action":"skip","Package":"underlay/ipam","Test":"TestIPVLAN"}
{"Action":"pass","Package":"underlay/ipam"}
`
	const text = "=== RUN   TestModes\n=== RUN   TestModes/l2\n--- PASS: TestModes (0.10s)\n    --- PASS: TestModes/l2 (0.10s)\r\nPASS\n"
	tests := []struct {
		name  string
		steps []step
		out   []string
		last  string
		ok    bool
	}{
		{"subtests stand for their parent; what the kernel lacks is excused where no VM was asked",
			[]step{{name: "unit"}}, []string{jsonRun}, "2 passed, 0 failed, 1 skipped", true},
		{"what the kernel lacks passes in the VM",
			[]step{{name: "unit"}, {name: "netns-vm:sid"}}, []string{jsonRun, "=== PACKAGE underlay/ipam\n--- PASS: TestIPVLAN (0.00s)\n"}, "3 passed, 0 failed, 1 skipped", true},
		{"another package's test of that name", []step{{name: "unit"}, {name: "netns-vm:sid"}},
			[]string{jsonRun, "=== PACKAGE underlay/ipam\n--- PASS: TestIPVLAN (0.00s)\n=== PACKAGE underlay/driver\n--- PASS: TestIPVLAN (0.00s)\n    --- PASS: TestIPVLAN/l2 (0.00s)\n"}, "4 passed, 0 failed, 1 skipped", true},
		{"only another package's test of that name", []step{{name: "unit"}, {name: "netns-vm:sid"}},
			[]string{jsonRun, "=== PACKAGE underlay/driver\n--- PASS: TestIPVLAN (0.00s)\n"}, "3 passed, 1 failed", false},
		{"the VM left it out", []step{{name: "unit"}, {name: "vm:sid"}}, []string{jsonRun, text}, "3 passed, 1 failed", false},
		{"a skip without a word", []step{{name: "a"}, {name: "vm:sid"}},
			[]string{"--- SKIP: TestA (0.00s)\n", text}, "1 passed, 1 failed", false},
		{"a skip that passed elsewhere", []step{{name: "vm:trixie"}, {name: "vm:sid"}},
			[]string{"--- SKIP: TestModes/l2 (0.00s)\n    needs Docker 28\n", text}, "1 passed, 0 failed, 1 skipped", true},
		{"a skip of what has subtests where it passed", []step{{name: "here:sid"}, {name: "vm:sid"}},
			[]string{"--- SKIP: TestModes (0.00s)\n    this kernel lacks ipvlan\n", text}, "1 passed, 0 failed, 1 skipped", true},
		{"a skip of what has subtests, all of them skipped elsewhere", []step{{name: "here:sid"}, {name: "vm:sid"}},
			[]string{"--- SKIP: TestModes (0.00s)\n    this kernel lacks ipvlan\n", "--- PASS: TestModes (0.10s)\n    --- SKIP: TestModes/l2 (0.10s)\n"}, "0 passed, 2 failed", false},
		{"a skip of what has subtests, flaky elsewhere", []step{{name: "here:sid"}, {name: "vm:sid", exit: 1}, {name: "vm:sid again"}},
			[]string{"--- SKIP: TestModes (0.00s)\n    this kernel lacks ipvlan\n", "--- FAIL: TestModes (0.10s)\n    --- FAIL: TestModes/l2 (0.10s)\n", text}, "1 passed, 0 failed, 1 skipped", true},
		{"a failed subtest counts once", []step{{name: "a", exit: 1}},
			[]string{"--- FAIL: TestA (0.00s)\n    --- FAIL: TestA/b (0.00s)\n    --- PASS: TestA/c (0.00s)\n"}, "1 passed, 1 failed", false},
		{"a parent that failed by itself", []step{{name: "a", exit: 1}},
			[]string{"--- FAIL: TestA (0.00s)\n    --- PASS: TestA/c (0.00s)\n"}, "1 passed, 1 failed", false},
		{"a test that never ended", []step{{name: "a", exit: 2}}, []string{"=== RUN   TestA\n"}, "0 passed, 1 failed", false},
		{"a build error", []step{{name: "a", exit: 1}},
			[]string{`{"Action":"fail","Package":"underlay/driver"}` + "\n"}, "0 passed, 1 failed", false},
		{"a VM that never came up", []step{{name: "vm:sid", exit: 125}}, []string{""}, "0 passed, 1 failed", false},
		{"failed, and passed when run again", []step{{name: "vm:sid", exit: 1}, {name: "vm:sid again"}},
			[]string{"--- FAIL: TestA (0.00s)\n    --- FAIL: TestA/b (0.00s)\n    --- PASS: TestA/c (0.00s)\n--- FAIL: TestB (0.00s)\n",
				"--- PASS: TestA (0.00s)\n    --- PASS: TestA/b (0.00s)\n    --- PASS: TestA/c (0.00s)\n--- PASS: TestB (0.00s)\n"}, "4 passed, 0 failed", true},
		{"failed twice", []step{{name: "vm:sid", exit: 1}, {name: "vm:sid again", exit: 1}},
			[]string{"--- FAIL: TestA (0.00s)\n", "--- FAIL: TestA (0.00s)\n"}, "0 passed, 2 failed", false},
		{"failed, and passed elsewhere", []step{{name: "vm:sid", exit: 1}, {name: "vm:trixie"}},
			[]string{"--- FAIL: TestA (0.00s)\n", "--- PASS: TestA (0.00s)\n"}, "1 passed, 1 failed", false},
		{"nothing run", []step{{name: "unit"}}, []string{""}, "0 passed, 1 failed", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i := range tt.steps {
				if err := tt.steps[i].read(strings.NewReader(tt.out[i])); err != nil {
					t.Fatal(err)
				}
			}
			var b strings.Builder
			ok := report(&b, tt.steps)
			lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
			if last := lines[len(lines)-1]; last != tt.last || ok != tt.ok {
				t.Errorf("got %q, %v, want %q, %v; all of it:\n%s", last, ok, tt.last, tt.ok, b.String())
			}
		})
	}
}
