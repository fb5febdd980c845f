//go:build vm

package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// withoutBase removes the base containers: a daemon's restart gives them other
// namespaces and endpoints. The next begin starts them again.
func withoutBase(t *testing.T) {
	t.Helper()
	if baseRuns {
		docker(t, "rm", "-f", "base1", "base2")
		docker(t, "network", "rm", baseNetwork)
		baseRuns = false
	}
}

// uninstalled removes the managed plugin until the test's end.
func uninstalled(t *testing.T) {
	t.Helper()
	withoutBase(t)
	docker(t, "plugin", "disable", plugin)
	docker(t, "plugin", "rm", plugin)
	t.Cleanup(func() {
		if err := installPlugin(); err != nil {
			t.Fatal(err)
		}
	})
}

// The binary run by hand, as a socket plugin: its drivers are called plain
// underlay. dockerd prefers a managed plugin of that name, so there is none.
func TestSocketPlugin(t *testing.T) {
	uninstalled(t)
	b := beginBare(t)
	dir := t.TempDir()
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	const socket = "/run/docker/plugins/underlay.sock"
	cmd := exec.Command(binary, "serve", "--socket", socket, "--state", dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "LOG_LEVEL=debug", "DEFAULT_POOLS=base=10.211.0.0/16,size=28")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve ended with %v", err)
		}
		if t.Failed() {
			t.Logf("its log:\n%s", tail(dir+"/log", 30))
		}
		os.Remove(socket)
	}()
	if err := wait(10*time.Second, "the socket", func() error { _, err := os.Stat(socket); return err }); err != nil {
		t.Fatal(err)
	}

	docker(t, append([]string{"network", "create", "-d", "underlay", "--ipam-driver", "underlay"}, lanArgs("byhand")...)...)
	docker(t, "network", "create", "-d", "underlay", "--ipam-driver", "underlay", "-o", "parent=eth1", "--ipam-opt", "pool=private", "byhand2")
	c := b.run("hand", "--network", "byhand")
	reaches(t, "the container to a LAN host", c.at(), host4, host6)
	reaches(t, "a LAN host to the container", "host1", c.addrs("byhand")...)
	c = b.connect("byhand2", "hand")
	if a := c.NetworkSettings.Networks["byhand2"]; !strings.HasPrefix(a.IPAddress, "10.211.0.") || a.IPPrefixLen != 28 {
		t.Errorf("DEFAULT_POOLS gave %s/%d", a.IPAddress, a.IPPrefixLen)
	}
	out := do(t, "", binary+" state")
	if !strings.Contains(out, "10.211.0.0/28") {
		t.Errorf("underlay state finds another instance: %s", out)
	}
	docker(t, "rm", "-f", "hand")
	docker(t, "network", "rm", "byhand", "byhand2")
	if out := do(t, "", binary+" state"); strings.Contains(out, "192.168.50") || strings.Contains(out, "10.211.") {
		t.Errorf("its state is not empty: %s", out)
	}
	if text := trimmed(dir + "/log"); !strings.Contains(text, "level=debug") && !strings.Contains(text, "level=info") {
		t.Errorf("its log is\n%s", text)
	}
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

// The daemon's ends: SIGTERM, then SIGKILL, without and with live-restore.
func TestDaemonRestart(t *testing.T) {
	needs(t, "VLAN")
	withoutBase(t)
	for _, live := range []bool{false, true} {
		name, args := "plain", []string(nil)
		if live {
			name, args = "live-restore", []string{"--live-restore"}
		}
		t.Run(name, func(t *testing.T) {
			if live {
				restart(t, syscall.SIGTERM, args...)
			}
			b := beginBare(t)
			b.network(lanArgs("-o", "host_access=true", "lan")...)
			b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "tagged")
			together(
				func() { b.run("keep", "--network", "lan", "--ip", "192.168.50.70", "--restart", "always") },
				func() { b.run("once", "--network", "tagged", "--ip", "192.168.10.70") },
			)
			if t.Failed() {
				return
			}
			for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
				t.Run(sig.String(), func(t *testing.T) {
					daemonRestart(t, b, sig, live, args)
				})
			}
		})
	}
	restart(t, syscall.SIGTERM)
}

func restart(t *testing.T, sig syscall.Signal, args ...string) {
	t.Helper()
	if err := dockerd.stop(sig); err != nil {
		t.Fatal(err)
	}
	if err := dockerd.start(args...); err != nil {
		t.Fatalf("%v\n%s", err, tail(daemonLog, 40))
	}
}

// daemonRestart ends and starts dockerd. Container keep has a restart policy,
// once has none; with live-restore both live on.
func daemonRestart(t *testing.T, b *test, sig syscall.Signal, live bool, args []string) {
	keep, once := inspect(t, "keep"), inspect(t, "once")
	reaches(t, "before", "host1", "192.168.50.70")
	if err := dockerd.stop(sig); err != nil {
		t.Fatal(err)
	}
	if live {
		reaches(t, "while dockerd is away", "host1", "192.168.50.70")
		reaches(t, "the Docker host, while dockerd is away", "", keep.addrs("lan")...)
		reaches(t, "the container to the Docker host, while dockerd is away", keep.at(), docker4, docker6)
		reaches(t, "while dockerd is away", once.at(), "192.168.10.1")
	}
	if err := dockerd.start(args...); err != nil {
		t.Fatalf("%v\n%s", err, tail(daemonLog, 40))
	}
	is := running(t, "keep")
	if (is.State.Pid == keep.State.Pid) != live {
		t.Errorf("container keep had process %d, has %d", keep.State.Pid, is.State.Pid)
	}
	reaches(t, "after", "host1", "192.168.50.70")
	reaches(t, "the Docker host, after", "", is.addrs("lan")...)
	reaches(t, "the container to the Docker host, after", is.at(), docker4, docker6)
	if is := inspect(t, "once"); is.State.Running != live {
		t.Errorf("container once runs: %t", is.State.Running)
	}
	if live {
		reaches(t, "after", once.at(), "192.168.10.1")
	}
	// The networks are usable, and know what is taken.
	n := b.run("new", "--network", "lan")
	reaches(t, "a new container to the old one", n.at(), "192.168.50.70")
	_, err := tryDocker("network", "connect", "--ip", "192.168.10.70", "tagged", "new")
	if live {
		refused(t, err, `192\.168\.10\.70`)
	} else if err != nil {
		t.Errorf("the address of the container that ended with the daemon: %v", err)
	} else {
		reaches(t, "a container on the other network", n.at(), "192.168.10.1")
	}
	docker(t, "rm", "-f", "new")
}

// What is excluded and reserved, and which address a stopped container has by
// --ip, is known after the plugin's and the daemon's restart.
func TestPoolPersists(t *testing.T) {
	withoutBase(t)
	b := beginBare(t)
	opts := map[string]string{"exclude": "192.168.50.97", "reserve": "db=192.168.50.98"}
	b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ip-range", "192.168.50.96/29",
		"--ipam-opt", "exclude="+opts["exclude"], "--ipam-opt", "reserve="+opts["reserve"], "-o", "parent=eth0", "lan")
	// The lowest of the range: whoever comes next would have it.
	b.run("fixed", "--network", "lan", "--ip", "192.168.50.96")
	docker(t, "stop", "fixed")
	was := strings.Join(state(t), "\n")
	docker(t, "plugin", "disable", "-f", plugin)
	docker(t, "plugin", "enable", plugin)
	if is := strings.Join(state(t), "\n"); is != was {
		t.Errorf("the plugin's state changed: %s", difference(was, is))
	}
	restart(t, syscall.SIGTERM)
	p := b.pool("192.168.50.0/24", "192.168.50.96/29", opts)
	addrs, err := p.burst(3)
	if err != nil {
		t.Error(err)
	}
	given(t, "192.168.50.96/29", addrs, "192.168.50.96", "192.168.50.97", "192.168.50.98")
	if got := p.must("", "db"); got != "192.168.50.98" {
		t.Errorf("db got %s, want what is reserved for it", got)
	}
	_, err = p.request("192.168.50.97", "")
	refused(t, err, `192\.168\.50\.97 is excluded`)
	docker(t, "start", "fixed")
	reaches(t, "a LAN host to the container", "host1", "192.168.50.96")
	p.release(append(addrs, "192.168.50.98")...)
}
