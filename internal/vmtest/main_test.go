//go:build vm

package vmtest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dockerd is the daemon of the whole run.
var dockerd daemon

// here is whether this is no VM (see scripts/vm): of kinds of links there may be
// none but veth, bridge and macvlan.
var here = flag.Bool("here", false, "this is no VM, but namespaces on a kernel that may lack dummy, VLAN and ipvlan links")

// needs has a test skipped that needs links of a kind that this kernel may lack.
func needs(t *testing.T, kind string) {
	t.Helper()
	if *here {
		t.Skipf("this kernel lacks or may lack %s links", kind)
	}
}

// release is Docker's version: major.minor.
var release float64

// The payload's parts, in the working directory.
const (
	pluginDir = "plugin"     // config.json and rootfs/
	binary    = "./underlay" // the same program, to run by hand
)

func TestMain(m *testing.M) {
	if trimmed("/etc/hostname") != "underlay-vm" {
		fmt.Fprintln(os.Stderr, "vmtest takes over the machine: run it with scripts/vm test SUITE, or here SUITE")
		os.Exit(2)
	}
	flag.Parse()
	if lastBoot.load() {
		setUp([]step{{"LAN", buildLAN}, {"containerd", startContainerd}})
		os.Exit(lastBoot.goOn(m))
	}
	setUp([]step{
		{"LAN", buildLAN},
		{"containerd", startContainerd},
		{"dockerd", func() error { return dockerd.start() }},
		{"version", readVersion},
		{"image", makeImage},
		{"plugin", installPlugin},
	})
	os.Exit(lastBoot.begin(m))
}

type step struct {
	name string
	do   func() error
}

func setUp(steps []step) {
	start := time.Now()
	for _, step := range steps {
		if err := step.do(); err != nil {
			fmt.Printf("%s: %v\n%s\n--- FAIL: Setup (%.2fs)\n", step.name, err, tail(daemonLog, 40), time.Since(start).Seconds())
			os.Exit(1)
		}
		fmt.Printf("setup: %-10s %5.1f s\n", step.name, time.Since(start).Seconds())
	}
}

func makeImage() error {
	_, err := sh("", `
mkdir -p /tmp/image/bin /tmp/image/etc
cp /bin/busybox /tmp/image/bin/
for a in sh sleep ping ip nslookup; do ln -sf busybox /tmp/image/bin/$a; done
tar -C /tmp/image -c . | docker import - `+image)
	return err
}

func installPlugin() error {
	for _, args := range [][]string{
		{"plugin", "create", plugin, pluginDir},
		{"plugin", "enable", plugin},
	} {
		if _, err := tryDocker(args...); err != nil {
			return err
		}
	}
	return nil
}

func readVersion() error {
	var v struct{ Version string }
	if err := api("GET", "/version", nil, &v); err != nil {
		return err
	}
	kernel, _ := exec.Command("uname", "-r").Output()
	fmt.Printf("setup: Docker %s, Linux %s", v.Version, kernel)
	parts := strings.SplitN(v.Version, ".", 3)
	var err error
	release, err = strconv.ParseFloat(strings.Join(parts[:2], "."), 64)
	return err
}

// base1 and base2 run all the time on an isolated network. Most tests connect
// them to the network under test: that is ten times as quick as a new
// container.
const (
	baseNetwork = "base"
	baseParent  = "base0" // where the kernel has no dummy links
)

var baseRuns bool

func startBase() error {
	args := []string{"network", "create", "-d", plugin, "--ipam-driver", plugin, "--internal", "--subnet", "10.99.0.0/24"}
	if *here {
		args = append(args, "-o", "parent="+baseParent, "--ipam-opt", "conflict=off")
	}
	if _, err := tryDocker(append(args, baseNetwork)...); err != nil {
		return err
	}
	errs := make(chan error)
	for _, name := range []string{"base1", "base2"} {
		go func() {
			_, err := tryDocker("run", "-d", "--name", name, "--network", baseNetwork, "--restart", "always", "--stop-signal", "KILL", image, "sleep", "1000000")
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			return err
		}
	}
	baseRuns = true
	return nil
}

func tail(path string, n int) string {
	lines := strings.Split(trimmed(path), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
