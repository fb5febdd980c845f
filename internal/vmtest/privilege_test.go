//go:build vm

package vmtest

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sandboxes is dockerd's folder of network namespaces as the managed plugin of
// that process sees it.
func sandboxes(pid string) string { return filepath.Join("/proc", pid, "root/sandboxes/netns") }

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
