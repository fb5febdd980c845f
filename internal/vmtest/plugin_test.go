//go:build vm

package vmtest

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// docker plugin disable and enable under running containers.
func TestDisableEnable(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	b.network(lanArgs("lan")...)
	b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "tagged")
	c := b.connect("lan", "base1", "--ip", "192.168.50.70")
	docker(t, "network", "connect", "tagged", "base1")
	reaches(t, "a LAN host to the container", "host1", "192.168.50.70")
	reconcile(t) // it pictures the interfaces, which a test's quick hand would come before
	was := strings.Join(state(t), "\n")

	docker(t, "plugin", "disable", "-f", plugin)
	reaches(t, "a LAN host to the container, plugin disabled", "host1", "192.168.50.70")
	reaches(t, "the container to its VLAN's router, plugin disabled", c.at(), "192.168.10.1")
	docker(t, "plugin", "enable", plugin)

	reconcile(t)
	if is := strings.Join(state(t), "\n"); is != was {
		t.Errorf("the plugin's state changed: %s", difference(was, is))
	}
	reaches(t, "a LAN host to the container, plugin enabled again", "host1", "192.168.50.70")
	c2 := b.connect("lan", "base2")
	reaches(t, "a new container to the old one", c2.at(), "192.168.50.70")
	_, err := tryDocker("network", "connect", "--ip", "192.168.50.1", "lan", "base2")
	if err == nil {
		t.Error("the gateway's address was given out after the restart")
	}
	b.disconnect("lan", "base2")
	b.disconnect("lan", "base1")
	b.disconnect("tagged", "base1")
}

// What nobody releases is freed after a while: the address of a container that
// ended while the plugin was away, and the IPv4 address that dockerd forgets
// when the IPv6 one is refused (libnetwork, createEndpoint: the way back is
// laid after both families).
func TestLeftovers(t *testing.T) {
	b := begin(t)
	b.network(lanArgs("lan")...)
	// One family: dockerd waits 15 s for each call to an absent plugin.
	b.network("--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "-o", "parent=eth1", "other")
	before := picture(t)
	_, err := tryDocker("network", "connect", "--ip", "192.168.50.71", "--ip6", "fd00:50::", "lan", "base1")
	refused(t, err, `fd00:50::`)
	c := b.connect("other", "base2", "--ip", "192.168.51.70")
	reaches(t, "the container to its router", c.at(), "192.168.51.1")
	docker(t, "plugin", "disable", "-f", plugin)
	// dockerd tells of the plugin's absence, and does it all the same.
	tryDocker("network", "disconnect", "-f", "other", "base2")
	docker(t, "plugin", "enable", plugin)
	err = wait(100*time.Second, "left behind", func() error {
		if after := picture(t); after != before {
			return errors.New(difference(before, after))
		}
		return nil
	})
	if err != nil {
		t.Errorf("with the networks still there: %v", err)
	}
	if n := len(links(t, c.at())); n != 1 {
		t.Errorf("the disconnected container has %d links, want 1", n)
	}
	c = b.connect("other", "base1", "--ip", "192.168.51.70")
	reaches(t, "the address's next container to the router", c.at(), "192.168.51.1")
	b.disconnect("other", "base1")
}

// After a reboot of the host the links that the plugin had made are gone, and
// dockerd makes no network anew: the plugin makes them again.
func TestParentsAfterReboot(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	base := slices.Collect(maps.Keys(links(t, "")))
	b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "tagged")
	b.network("--subnet", "10.77.0.0/24", "island")
	before := links(t, "")
	docker(t, "plugin", "disable", "-f", plugin)
	do(t, "", "ip link del eth0.10")
	for name, l := range before {
		if l.Info.Kind == "dummy" && !slices.Contains(base, name) {
			do(t, "", "ip link del "+name)
		}
	}
	docker(t, "plugin", "enable", plugin)
	err := wait(10*time.Second, "links", func() error {
		now := links(t, "")
		for name := range before {
			if _, ok := now[name]; !ok {
				return errorf("%s is not back", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	c := b.connect("tagged", "base1")
	reaches(t, "the container to its VLAN's router", c.at(), "192.168.10.1")
	b.disconnect("tagged", "base1")
	c1, c2 := b.pair("island")
	reaches(t, "container to container on a dummy", c1.at(), c2.addrs("island")...)
	b.disconnect("island", "base1")
	b.disconnect("island", "base2")
}

// A plugin that dies is started again by dockerd, and knows what it knew.
func TestPluginKilled(t *testing.T) {
	b := begin(t)
	b.network(lanArgs("lan")...)
	c := b.connect("lan", "base1")
	reconcile(t) // what is in the container is known
	was := strings.Join(state(t), "\n")
	pid := strings.TrimSpace(do(t, "", "pidof underlay"))
	do(t, "", "kill -KILL "+pid)
	err := wait(20*time.Second, "the plugin", func() error {
		if is := strings.Join(state(t), "\n"); is != was {
			return errorf("its state is not what it was: %s", difference(was, is))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	reaches(t, "a LAN host to the container", "host1", c.addrs("lan")...)
	d := b.connectAnew("lan", "base2")
	reaches(t, "container to container", c.at(), d.addrs("lan")...)
	b.disconnect("lan", "base1")
	b.disconnect("lan", "base2")
}

// Push to a registry on loopback, install from it under another name, set.
func TestRegistry(t *testing.T) {
	needs(t, "dummy")
	b := begin(t)
	dir := registry(t)

	// Another content: dockerd makes no second plugin of the same.
	const pushed = "127.0.0.1:5000/net/underlay:v1"
	do(t, "", "cp -a "+pluginDir+" "+dir+"/plugin && echo pushed >"+dir+"/plugin/rootfs/etc/motd")
	docker(t, "plugin", "create", pushed, dir+"/plugin")
	docker(t, "plugin", "push", pushed)
	docker(t, "plugin", "rm", pushed)

	docker(t, "plugin", "install", "--grant-all-permissions", "--disable", "--alias", "lan:v1", pushed)
	defer func() {
		if out, err := tryDocker("plugin", "rm", "-f", "lan:v1"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}()
	docker(t, "plugin", "set", "lan:v1", "LOG_LEVEL=debug", "DEFAULT_POOLS=base=10.212.0.0/16,size=25")
	_, err := tryDocker("plugin", "set", "lan:v1", "COLOUR=red")
	refused(t, err, `COLOUR`)
	// The plugin installed first has a link in the host and keeps it.
	b.network("--subnet", "10.78.0.0/24", "island")
	before := picture(t)
	docker(t, "plugin", "enable", "lan:v1")
	unchanged(t, "a second instance's start", before)
	docker(t, "network", "create", "-d", "lan:v1", "--ipam-driver", "lan:v1", "-o", "parent=eth1", "--ipam-opt", "pool=private", "installed")
	c := b.connect("installed", "base1")
	if a := c.NetworkSettings.Networks["installed"]; !strings.HasPrefix(a.IPAddress, "10.212.0.") || a.IPPrefixLen != 25 {
		t.Errorf("DEFAULT_POOLS gave %s/%d", a.IPAddress, a.IPPrefixLen)
	}
	b.disconnect("installed", "base1")
	docker(t, "network", "rm", "installed")
	if log := trimmed(daemonLog); !strings.Contains(log, "level=debug") {
		t.Error("LOG_LEVEL=debug shows nothing in dockerd's log")
	}
	docker(t, "plugin", "disable", "lan:v1")
}

// registry serves images at 127.0.0.1:5000 until the test's end, from a folder
// that may hold other things too.
func registry(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	config := dir + "/config.yml"
	if err := os.WriteFile(config, []byte(`version: 0.1
storage: {filesystem: {rootdirectory: `+dir+`/data}}
http: {addr: "127.0.0.1:5000"}
log: {level: error}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	err := wait(20*time.Second, "the registry", func() error {
		return exec.Command("curl", "-fs", "http://127.0.0.1:5000/v2/").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
