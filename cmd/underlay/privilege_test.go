package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"underlay/internal/nstest"
)

// itself has the test's binary be underlay.
const itself = "UNDERLAY_ITSELF"

func TestMain(m *testing.M) {
	if os.Getenv(itself) != "" {
		main()
		return
	}
	time.Local = time.UTC // what is printed is the same everywhere
	nstest.Main(m)
}

// program is one without the C library, whose threads Go cannot change: the
// test itself, or with the race detector another.
func program(t *testing.T) string {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == 0 {
		return "/proc/self/exe"
	}
	path := filepath.Join(t.TempDir(), "underlay")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// A thread that was forgotten would have them all.
func TestEveryThreadDropsWhatItDoesNotNeed(t *testing.T) {
	var has [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &has[0]); err != nil {
		t.Fatal(err)
	}
	const needs = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SETPCAP
	if has[0].Effective&needs != needs {
		t.Skip("needs root's capabilities, or a user namespace")
	}
	binary := program(t)
	const network = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	for rebuild, want := range map[string]uint64{"off": network, "on": network | 1<<unix.CAP_SYS_ADMIN} {
		t.Run("REBUILD="+rebuild, func(t *testing.T) {
			state := t.TempDir()
			socket := filepath.Join(state, "underlay.sock")
			var log bytes.Buffer
			cmd := exec.Command(binary, "serve", "--socket", socket, "--state", state)
			cmd.Env = append(os.Environ(), "REBUILD="+rebuild, itself+"=1")
			cmd.Stdout, cmd.Stderr = &log, &log
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, AmbientCaps: []uintptr{unix.CAP_CHOWN}}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := false
			end := func() {
				if !ended {
					ended = true
					cmd.Process.Signal(syscall.SIGTERM)
					if err := cmd.Wait(); err != nil {
						t.Errorf("serve ended with %v", err)
					}
				}
			}
			defer func() {
				if end(); t.Failed() {
					t.Logf("its log:\n%s", log.String())
				}
			}()
			for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				_, err1 := os.Stat(socket)
				// It can make its state, having dropped what lets root write anywhere.
				_, err2 := os.Stat(filepath.Join(state, "underlay.db"))
				if err1 == nil && err2 == nil {
					break
				}
				if time.Since(start) > 20*time.Second {
					t.Fatalf("it does not serve: %v, %v", err1, err2)
				}
			}
			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
			if err != nil || len(threads) < 3 {
				t.Fatalf("%d threads, %v", len(threads), err)
			}
			for _, thread := range threads {
				status, err := os.ReadFile(thread)
				if err != nil {
					continue // it has ended
				}
				has := map[string]string{}
				for line := range strings.Lines(string(status)) {
					key, value, _ := strings.Cut(line, ":")
					has[key] = strings.TrimSpace(value)
				}
				set := fmt.Sprintf("%016x", want)
				wanted := map[string]string{
					"CapEff": set, "CapPrm": set, "CapBnd": set,
					"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
				}
				for key, w := range wanted {
					if has[key] != w {
						t.Errorf("%s of %s is %s, want %s", key, thread, has[key], w)
					}
				}
			}
		})
	}
}
