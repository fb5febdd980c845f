//go:build vm

package vmtest

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// withoutBase removes the base containers for a test: a daemon's restart
// gives them other namespaces and endpoints.
func withoutBase(t *testing.T) {
	t.Helper()
	docker(t, "rm", "-f", "base1", "base2")
	docker(t, "network", "rm", baseNetwork)
	t.Cleanup(func() {
		if err := startBase(); err != nil {
			t.Fatal(err)
		}
	})
}

// running waits for a container that a restart policy brings back.
func running(t *testing.T, name string) container {
	t.Helper()
	var c container
	err := wait(time.Minute, name, func() error {
		if c = inspect(t, name); !c.State.Running || c.State.Pid == 0 {
			return errorf("does not run")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The daemon's ends: SIGTERM, SIGKILL, and both with live-restore.
func TestDaemonRestart(t *testing.T) {
	withoutBase(t)
	live := "--live-restore"
	for _, row := range []struct {
		name string
		sig  syscall.Signal
		args []string
	}{
		{"graceful", syscall.SIGTERM, nil},
		{"killed", syscall.SIGKILL, nil},
		{"live-restore", syscall.SIGTERM, []string{live}},
		{"live-restore killed", syscall.SIGKILL, []string{live}},
	} {
		t.Run(row.name, func(t *testing.T) {
			restart := func(sig syscall.Signal) {
				t.Helper()
				if err := dockerd.stop(sig); err != nil {
					t.Fatal(err)
				}
				if err := dockerd.start(row.args...); err != nil {
					t.Fatalf("%v\n%s", err, tail(daemonLog, 40))
				}
			}
			if len(row.args) > 0 && row.name == "live-restore" {
				restart(syscall.SIGTERM)
			}
			b := begin(t)
			b.network(lanArgs("lan")...)
			b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "tagged")
			var keep, plain container
			together(
				func() {
					keep = b.run("keep", "--network", "lan", "--ip", "192.168.50.70", "--restart", "always")
				},
				func() { plain = b.run("plain", "--network", "tagged") },
			)
			if t.Failed() {
				return
			}
			reaches(t, "before", "host1", "192.168.50.70")
			if err := dockerd.stop(row.sig); err != nil {
				t.Fatal(err)
			}
			if len(row.args) > 0 {
				reaches(t, "while dockerd is away", "host1", "192.168.50.70")
				reaches(t, "while dockerd is away", plain.at(), "192.168.10.1")
			}
			if err := dockerd.start(row.args...); err != nil {
				t.Fatalf("%v\n%s", err, tail(daemonLog, 40))
			}
			c := running(t, "keep")
			if same := c.State.Pid == keep.State.Pid; same != (len(row.args) > 0) {
				t.Errorf("the container has the same process: %t", same)
			}
			reaches(t, "after", "host1", "192.168.50.70")
			if len(row.args) > 0 {
				reaches(t, "after", plain.at(), "192.168.10.1")
			}
			// The networks are usable: a new container, and one stopped.
			_, err := tryDocker("network", "connect", "--ip", "192.168.50.70", "lan", "plain")
			if inspect(t, "plain").State.Running {
				refused(t, err, `192\.168\.50\.70`)
			}
			n := b.run("new", "--network", "lan")
			reaches(t, "a new container to the old one", n.at(), "192.168.50.70")
			docker(t, "stop", "keep")
			n = b.connect("tagged", "new")
			reaches(t, "a new container on the other network", n.at(), "192.168.10.1")
		})
	}
	if err := dockerd.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := dockerd.start(); err != nil {
		t.Fatal(err)
	}
}
