package plugin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The program at rest, with none and with 1,000 endpoints on the real kernel: its
// memory, and per minute its processor time and how often it is woken, over
// UNDERLAY_BENCH_REST (default 2m); and its memory once somebody has looked at it all.
func BenchmarkRest(bm *testing.B) {
	rest, err := time.ParseDuration(cmp.Or(os.Getenv("UNDERLAY_BENCH_REST"), "2m"))
	if err != nil {
		bm.Fatal(err)
	}
	for _, endpoints := range []int{0, 1000} {
		bm.Run(fmt.Sprintf("endpoints=%d", endpoints), func(bm *testing.B) {
			b, parent := newRealBench(bm)
			release := b.crowd(endpoints, parent, nil)
			b.stop()
			serve := b.program(buildProgram(bm))
			defer func() { // for its end
				if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
					bm.Error(err)
				}
				if err := serve.Wait(); err != nil {
					bm.Error(err)
				}
				b.start()
				release()
			}()
			b.listens()
			b.caller().call("Plugin.Activate", "{}")
			for bm.Loop() {
				// What a start brings with it is over by then, and the last look for abandoned networks.
				time.Sleep(abandonedLooks*abandonedAfter/4 + 30*time.Second)
				before := usage(bm, serve.Process.Pid)
				time.Sleep(rest)
				after := usage(bm, serve.Process.Pid)
				bm.ReportMetric(float64(after.cpu-before.cpu)*10/rest.Minutes(), "cpu-ms/minute")
				bm.ReportMetric(float64(after.switches-before.switches)/rest.Minutes(), "switches/minute")
				bm.ReportMetric(float64(after.resident)/1000, "resident-MB")
				b.look()
				bm.ReportMetric(float64(usage(bm, serve.Process.Pid).resident)/1000, "looked-MB")
			}
			bm.ReportMetric(0, "ns/op")
		})
	}
}

// look asks for all that a person and Prometheus ask for.
func (b *bench) look() {
	for _, path := range []string{StatusPath, NetworksPath, AddressesPath, EndpointsPath} {
		must[json.RawMessage](b, path[1:], object{})
	}
	res, err := b.client.Get("http://underlay" + MetricsPath)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		b.t.Fatal(err)
	}
}

// buildProgram builds the program as it is released.
func buildProgram(bm *testing.B) (path string) {
	path = filepath.Join(bm.TempDir(), "underlay")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "underlay/cmd/underlay").CombinedOutput(); err != nil {
		bm.Fatalf("%v: %s", err, out)
	}
	return path
}

// program starts the program in the stead of the bench's plugin.
func (b *bench) program(path string) *exec.Cmd {
	serve := exec.Command(path, "serve", "--socket", b.config.Socket, "--state", b.config.State)
	serve.Env = append(os.Environ(), "LOG_LEVEL=error")
	serve.Stderr = os.Stderr
	serve.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := serve.Start(); err != nil {
		b.t.Fatal(err)
	}
	return serve
}

// used is what a process has used: processor time in hundredths of a second, the
// voluntary and other context switches of its threads, and memory in kB.
type used struct{ cpu, switches, resident int }

func usage(bm *testing.B, pid int) (u used) {
	number := func(text string) int {
		n, err := strconv.Atoi(text)
		if err != nil {
			bm.Fatal(err)
		}
		return n
	}
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			bm.Fatal(err)
		}
		return string(text)
	}
	stat := strings.Fields(read(fmt.Sprintf("/proc/%d/stat", pid))) // its name has no space
	u.cpu = number(stat[13]) + number(stat[14])
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		bm.Fatal(err)
	}
	for _, file := range threads {
		for line := range strings.Lines(read(file)) {
			if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "ctxt_switches") {
				u.switches += number(strings.TrimSpace(value))
			}
		}
	}
	for line := range strings.Lines(read(fmt.Sprintf("/proc/%d/status", pid))) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			u.resident = number(strings.Fields(value)[0])
		}
	}
	return u
}
