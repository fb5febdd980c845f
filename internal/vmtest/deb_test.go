//go:build vm

package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"underlay/internal/manual"
)

const (
	debUnit   = "/usr/lib/systemd/system/underlay.service"
	debSocket = "/run/docker/plugins/underlay.sock"
)

// The Debian package on a machine without systemd, then on one with it: its unit,
// with all that it forbids, serves a real Docker. Removed and purged it leaves
// nothing.
func TestDeb(t *testing.T) {
	uninstalled(t)
	b := beginBare(t)
	t.Cleanup(func() { sh("", "dpkg -P --force-all underlay") })
	before := traces(t)
	deb, err := filepath.Abs("deb/underlay_amd64.deb")
	if err != nil {
		t.Fatal(err)
	}

	said := do(t, "", "dpkg -i "+deb+" 2>&1")
	if !strings.Contains(said, "systemd does not run here") {
		t.Errorf("dpkg -i without systemd says\n%s", said)
	}
	if _, err := os.Stat(debSocket); err == nil {
		t.Error("without systemd it was started")
	}
	do(t, "", "systemd-analyze verify --man=no "+debUnit)
	// dockerd's folder, where systemd makes it at boot.
	root := t.TempDir()
	do(t, "", "systemd-tmpfiles --create --root="+root+" - </usr/lib/tmpfiles.d/underlay.conf")
	if mode := strings.TrimSpace(do(t, "", "stat -c %a "+root+"/run/docker")); mode != "700" {
		t.Errorf("at boot /run/docker has mode %s", mode)
	}
	mode := do(t, "", "stat -c %a /run/docker")

	systemd := startSystemd(t)
	// As the manual has it. (apt asks a terminal before it removes something.)
	const yes = "/etc/apt/apt.conf.d/yes"
	do(t, "", "dpkg -P underlay; echo 'APT::Get::Assume-Yes \"true\";' >"+yes)
	t.Cleanup(func() { os.Remove(yes) })
	home := t.TempDir()
	do(t, "", "mkdir "+home+"/dist && cp "+deb+" "+home+"/dist/underlay_1_amd64.deb")
	if said := do(t, "", systemd.in(b.script(home, "install.md", "As a service: Debian and Ubuntu"))); strings.Contains(said, "systemd does not run") || !strings.Contains(said, "Active: active") {
		t.Errorf("apt install with systemd says\n%s", said)
	}
	do(t, "", systemd.in(b.script(home, "install.md", "Settings of the service")))
	active := func() error { _, err := sh("", systemd.in("systemctl is-active underlay")); return err }
	if err := wait(20*time.Second, "the unit", active); err != nil {
		t.Fatal(err)
	}
	if now := do(t, "", "stat -c %a /run/docker"); now != mode {
		t.Errorf("the unit makes /run/docker's mode %s of %s", now, mode)
	}
	pid := strings.TrimSpace(do(t, "", systemd.in("systemctl show -P MainPID underlay")))
	if env := do(t, "", systemd.in(`tr '\0' '\n' </proc/`+pid+"/environ")); !strings.Contains(env, "LOG_LEVEL=debug\n") {
		t.Errorf("/etc/default/underlay is not in its environment: %s", env)
	}

	// What needs the host's links, its settings, and containers' namespaces.
	docker(t, append([]string{"network", "create", "-d", "underlay", "--ipam-driver", "underlay"}, lanArgs("-o", "host_access=true", "packed")...)...)
	b.networks = append(b.networks, "packed")
	c := b.run("boxed", "--network", "packed")
	reaches(t, "the container to a LAN host", c.at(), host4, host6)
	reaches(t, "the host to the container", "", c.addrs("packed")...)
	time.Sleep(6 * time.Second) // until the plugin has seen what dockerd has set last
	was := inside(t, c)
	do(t, "", unplug)
	if err := plug(); err != nil {
		t.Fatal(err)
	}
	err = wait(20*time.Second, "its interface", func() error {
		is, err := insideNow(c)
		if err == nil && is != was {
			err = errorf("has changed: %s", difference(was, is))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	reaches(t, "the container made whole to a LAN host", c.at(), host4, host6)

	do(t, "", systemd.in("kill -KILL "+pid))
	err = wait(20*time.Second, "the unit after a kill", func() error {
		now, err := sh("", systemd.in("systemctl show -P MainPID underlay"))
		if err == nil && (strings.TrimSpace(now) == pid || strings.TrimSpace(now) == "0") {
			err = errorf("is not back: %s", now)
		}
		if err == nil {
			err = active()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if text := do(t, "", "underlay state"); !strings.Contains(text, "192.168.50.0/24") {
		t.Errorf("after a kill its state is %s", text)
	}
	docker(t, "rm", "-f", "boxed")
	docker(t, "network", "rm", "packed")

	off := manual.Commands(b.script(home, "install.md", "The service off again"))
	remove, purge := off[len(off)-2], off[len(off)-1]
	do(t, "", systemd.in(remove))
	if _, err := os.Stat(debSocket); err == nil || strings.TrimSpace(do(t, "", "pidof underlay || true")) != "" {
		t.Error("it serves although it was removed")
	}
	if _, err := os.Stat("/var/lib/underlay/underlay.db"); err != nil {
		t.Errorf("a removal alone deletes the state: %v", err)
	}
	if said := do(t, "", systemd.in(purge)); !strings.Contains(said, "deleting /var/lib/underlay") {
		t.Errorf("%s says\n%s", purge, said)
	}
	systemd.end()
	if after := traces(t); after != before {
		t.Errorf("it leaves: %s", difference(before, after))
	}
}

// traces are the files of the machine that are named after underlay.
func traces(t *testing.T) string {
	t.Helper()
	return do(t, "", "find / -xdev -name '*underlay*' | sort; find /run -name '*underlay*' | sort")
}

// manager is systemd as process 1 of a container that has the VM's files, mounts
// and network: it runs the units that it is given and no others.
type manager struct {
	cmd *exec.Cmd
	pid string // in the VM
}

const managerGroup = "/sys/fs/cgroup/manager"

func startSystemd(t *testing.T) *manager {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "systemd"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	units := t.TempDir()
	for _, name := range []string{"basic.target", "sysinit.target", "shutdown.target", "multi-user.target", "underlay.service"} {
		if err := os.Symlink("/usr/lib/systemd/system/"+name, units+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	do(t, "", "mkdir -p /run/systemd "+managerGroup)
	// The control groups and the folder by which others know that systemd runs are
	// its own; what dockerd mounts later gets in.
	m := &manager{cmd: exec.Command("sh", "-c", "echo $$ >"+managerGroup+`/cgroup.procs
exec unshare --cgroup --pid --fork --kill-child --mount --propagation slave --mount-proc sh -ec '
	mount -t tmpfs tmpfs /run/systemd
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	exec /usr/lib/systemd/systemd --system --unit=basic.target --show-status=0 --log-target=console'`)}
	m.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "container=underlay", "SYSTEMD_UNIT_PATH=/etc/systemd/system:" + units}
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.end()
		if t.Failed() {
			t.Logf("systemd's log:\n%s", tail(log.Name(), 30))
		}
	})
	err = wait(30*time.Second, "systemd", func() error {
		// The process that sh became, and its only child.
		out, err := sh("", "ps -o pid= --ppid "+strconv.Itoa(m.cmd.Process.Pid))
		if err != nil {
			return err
		}
		m.pid = strings.TrimSpace(out)
		_, err = sh("", m.in("systemctl is-active basic.target"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// in is a line of shell that runs script where systemd is process 1.
func (m *manager) in(script string) string {
	return "nsenter -t " + m.pid + " --mount --pid --cgroup sh -ec '" + strings.ReplaceAll(script, "'", `'\''`) + "'"
}

func (m *manager) end() {
	if m.cmd.ProcessState == nil {
		m.cmd.Process.Signal(syscall.SIGKILL) // unshare, and with it all processes of the container
		m.cmd.Wait()
		var groups []string
		filepath.WalkDir(managerGroup, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for _, group := range slices.Backward(groups) {
			wait(5*time.Second, group, func() error { return os.Remove(group) })
		}
	}
}
