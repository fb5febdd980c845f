//go:build vm

package vmtest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sandboxes is dockerd's folder of network namespaces as the managed plugin of
// that process sees it.
func sandboxes(pid string) string { return filepath.Join("/proc", pid, "root/sandboxes/netns") }

// The managed plugin keeps no capability but those that it needs; without
// REBUILD not those to enter a namespace either.
func TestPluginDropsCapabilities(t *testing.T) {
	begin(t)
	set := func(rebuild string) {
		t.Helper()
		docker(t, "plugin", "disable", "-f", plugin)
		docker(t, "plugin", "set", plugin, "REBUILD="+rebuild)
		docker(t, "plugin", "enable", plugin)
	}
	const netAdmin, netRaw, sysAdmin = 12, 13, 21 // linux/capability.h
	for rebuild, want := range map[string]int{"off": 1<<netAdmin | 1<<netRaw, "on": 1<<netAdmin | 1<<netRaw | 1<<sysAdmin} {
		set(rebuild)
		pid := strings.TrimSpace(do(t, "", "pidof underlay"))
		got := do(t, "", "sed -nE '/^(Cap|NoNewPrivs|Seccomp:)/p' /proc/"+pid+"/task/*/status | sort -u")
		for _, line := range []string{
			fmt.Sprintf("CapPrm:\t%016x\n", want), fmt.Sprintf("CapEff:\t%016x\n", want), fmt.Sprintf("CapBnd:\t%016x\n", want),
			"CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n",
		} {
			if !strings.Contains(got, line) {
				t.Errorf("REBUILD=%s: no %q", rebuild, line)
			}
		}
		if strings.Count(got, "Cap") != 5 {
			t.Errorf("REBUILD=%s: threads differ", rebuild)
		}
		t.Logf("REBUILD=%s\n%s", rebuild, got)
	}
	set("on")
	if _, err := tryDocker("plugin", "set", plugin, "REBUILD=maybe"); err == nil {
		t.Error("settings of an enabled plugin were changed")
	}
}

// nsfs is the kind of file system that a mounted namespace is, by stat -f.
const nsfs = "6e736673"

// The namespaces of containers, of those that started before the plugin and of
// those after it, show inside the managed plugin, and go again with their
// containers: a mount that stays would keep a dead one alive.
func TestSandboxesInPlugin(t *testing.T) {
	b := begin(t)
	docker(t, "plugin", "disable", "-f", plugin)
	docker(t, "plugin", "enable", plugin)
	dir := sandboxes(strings.TrimSpace(do(t, "", "pidof underlay")))
	seen := func(c container) string { return filepath.Join(dir, filepath.Base(c.NetworkSettings.SandboxKey)) }
	shows := func(c container) {
		t.Helper()
		if kind := do(t, "", "stat -f -c %t "+seen(c)); strings.TrimSpace(kind) != nsfs {
			t.Fatalf("%s: the plugin sees file system %s, want an nsfs", c.Name, kind)
		}
		if in := do(t, "", "nsenter --net="+seen(c)+" ip -o link"); !strings.Contains(in, "eth0") {
			t.Errorf("%s: behind what the plugin sees is another namespace: %s", c.Name, in)
		}
	}
	shows(inspect(t, "base1"))
	b.network(lanArgs("lan")...)
	c := b.run("late", "--network", "lan")
	shows(c)
	docker(t, "rm", "-f", "late")
	err := wait(5*time.Second, "its namespace", func() error {
		// dockerd leaves the file that it had mounted on for a minute (moby,
		// libnetwork/osl: garbage paths).
		if kind, err := sh("", "stat -f -c %t "+seen(c)); err == nil && strings.TrimSpace(kind) == nsfs {
			return errorf("%s is still mounted", seen(c))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if out, err := sh("", "touch "+sandboxes(strings.TrimSpace(do(t, "", "pidof underlay")))+"/x"); err == nil {
		t.Errorf("the plugin may write in dockerd's run folder: %s", out)
	}
}
