//go:build vm

package vmtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Earlier builds of the plugin, of the payload: that of the commit before, and
// the last one whose state file has an earlier form, should there be one.
const (
	previousDir = "earlier/previous"
	formatDir   = "earlier/format"
)

// stateFile is the managed plugin's.
func stateFile(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/var/lib/docker/plugins/*/propagated-mount/underlay.db")
	if len(found) != 1 {
		t.Fatalf("the state files are %q, want one", found)
	}
	return found[0]
}

// version is that of the running plugin.
func version(t *testing.T) string {
	t.Helper()
	var s struct{ Version string }
	ask(t, "/Underlay.State", struct{}{}, &s)
	return s.Version
}

// leases are the endpoints that the plugin has, with their addresses and MACs.
func leases(t *testing.T) []string {
	t.Helper()
	var s struct {
		Endpoints []struct{ ID, Network, IPv4, IPv6, MAC string }
	}
	ask(t, "/Underlay.State", struct{}{}, &s)
	var all []string
	for _, e := range s.Endpoints {
		all = append(all, strings.Join([]string{e.ID, e.Network, e.IPv4, e.IPv6, e.MAC}, " "))
	}
	slices.Sort(all)
	return all
}

// inside is all that a container has of the network, a line each: its links with
// names, MACs, MTUs and addresses, and its routes.
func inside(t *testing.T, c container) string {
	t.Helper()
	out, err := insideNow(c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func insideNow(c container) (string, error) {
	out, err := sh(c.at(), `
ip -o link show | sed -E 's/^[0-9]+: ([^:@]+)(@[^:]*)?: <([^>]*)> mtu ([0-9]+) .* link\/([a-z]+ [0-9a-f:]+).*/link \1 mtu \4 \5/' | grep -v "^link lo"
ip -o addr show | sed -E 's/^[0-9]+: //; s/ (tentative|optimistic|dadfailed)//g; s/\\.*//; s/ +/ /g' | grep -v '^lo '
ip -o route show | sed -E 's/ linkdown//g; s/ +$//'
ip -o -6 route show | sed -E 's/ linkdown//g; s/ +$//'`)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n"), err
}

// make plugin on a host that has the plugin, with networks and containers: it is
// upgraded under them, without a registry of the user's, and keeps its settings.
func TestUpgradeByMake(t *testing.T) {
	b := begin(t)
	b.network(lanArgs("-o", "host_access=true", "lan")...)
	c := b.connect("lan", "base1")
	docker(t, "plugin", "disable", "-f", plugin)
	docker(t, "plugin", "set", plugin, "REBUILD=off")
	docker(t, "plugin", "enable", plugin)
	t.Cleanup(func() {
		if t.Failed() {
			do(t, "", "docker plugin disable -f "+plugin+" || true; docker plugin set "+plugin+" REBUILD=on; docker plugin enable "+plugin)
		}
	})
	serve(t, c.at())
	talk := last(t, "a LAN host to a container", "host1", c.addrs("lan")[0])
	had, was := leases(t), inside(t, c)
	same := func() {
		t.Helper()
		if has := leases(t); !slices.Equal(has, had) {
			t.Errorf("the plugin's endpoints were %q and are %q", had, has)
		}
		if is := inside(t, c); is != was {
			t.Errorf("the container has changed: %s", difference(was, is))
		}
	}
	setting := func() string {
		t.Helper()
		return docker(t, "plugin", "inspect", "-f", `{{json .Settings.Env}}`, plugin)
	}
	do(t, "", "UNDERLAY_REGISTRY=$PWD/registry scripts/plugin create "+pluginDir)
	same()
	if from := docker(t, "plugin", "inspect", "-f", "{{.PluginReference}}", plugin); !strings.HasPrefix(from, "127.0.0.1:") {
		t.Errorf("the plugin comes from %s, want the registry on loopback", from)
	}
	if s := setting(); !strings.Contains(s, "REBUILD=off") {
		t.Errorf("the plugin's settings are %s, want REBUILD=off kept", s)
	}
	if all := strings.Fields(docker(t, "plugin", "ls", "--format", "{{.Name}}")); !slices.Equal(all, []string{plugin}) {
		t.Errorf("there are the plugins %q, want %s alone", all, plugin)
	}
	d := b.connect("lan", "base2")
	reaches(t, "a container of after the upgrade to one of before it", d.at(), c.addrs("lan")...)
	b.disconnect("lan", "base2")

	// Again, with a setting, that of before; and without a registry nothing is done.
	do(t, "", "UNDERLAY_REGISTRY=$PWD/registry PLUGIN_SET=REBUILD=on scripts/plugin create "+pluginDir)
	same()
	if s := setting(); !strings.Contains(s, "REBUILD=on") {
		t.Errorf("the plugin's settings are %s, want REBUILD=on", s)
	}
	for _, row := range []struct{ vars, says string }{
		{"UNDERLAY_REGISTRY=/bin/true", "the registry that Docker upgrades from does not start"},
		{"UNDERLAY_REGISTRY=$PWD/registry PLUGIN_SET=COLOUR=red", "is upgraded, with the settings of before: .*COLOUR"},
	} {
		out, err := sh("", row.vars+" scripts/plugin create "+pluginDir)
		if err == nil {
			t.Errorf("%s: %s", row.vars, out)
		}
		refused(t, err, row.says)
		same() // and so it is enabled
	}
	talk.end()
	b.disconnect("lan", "base1")
}

// installFrom replaces the plugin, whose state is lost, by that of a folder.
func installFrom(t *testing.T, dir string) {
	t.Helper()
	docker(t, "plugin", "disable", "-f", plugin)
	docker(t, "plugin", "rm", "-f", plugin)
	docker(t, "plugin", "create", plugin, dir)
	docker(t, "plugin", "enable", plugin)
}

// An upgrade under running containers: what was talked about goes on, and who
// had an address and a MAC has them. A way back to a plugin that does not know
// the state's form is refused, and harms nothing.
func TestUpgrade(t *testing.T) {
	needs(t, "VLAN and ipvlan")
	withoutBase(t)
	b := beginBare(t)
	dir := registry(t)
	push := func(name, from string) (image string) {
		t.Helper()
		image = "127.0.0.1:5000/net/underlay:" + name
		// Another content: dockerd makes no second plugin of the same.
		do(t, "", "cp -a "+from+" "+dir+"/"+name+" && echo "+name+" >"+dir+"/"+name+"/rootfs/etc/motd")
		docker(t, "plugin", "create", image, dir+"/"+name)
		docker(t, "plugin", "push", image)
		docker(t, "plugin", "rm", image)
		return image
	}
	newer := push("newer", pluginDir)
	own := version(t)
	t.Cleanup(func() { installFrom(t, pluginDir) })
	change := func(t *testing.T, to string, away ...func()) {
		t.Helper()
		start := time.Now()
		docker(t, "plugin", "disable", "-f", plugin)
		for _, f := range away {
			f()
		}
		docker(t, "plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", plugin, to)
		if out, err := tryDocker("plugin", "enable", plugin); err != nil {
			t.Logf("enabled with %v: %s", err, out)
		}
		t.Logf("disabled, changed to %s and enabled in %.1f s", to, time.Since(start).Seconds())
	}

	var c1, c2, c3 container
	for _, from := range []string{previousDir, formatDir} {
		if _, err := os.Stat(from); err != nil && from == formatDir { // no history
			continue
		}
		t.Run(filepath.Base(from), func(t *testing.T) {
			b.T = t
			installFrom(t, from)
			if v := version(t); v != "earlier" {
				t.Fatalf("this plugin's version is %s", v)
			}
			b.network(lanArgs("-o", "host_access=true", "lan")...)
			b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "-o", "ipvlan_mode=l2", "tagged")
			together(
				func() { c1 = b.run("fixed", "--network", "lan", "--ip", "192.168.50.70", "--ip6", "fd00:50::70") },
				func() { c2 = b.run("flat", "--network", "tagged") },
				func() { c3 = b.run("any", "--network", "lan") },
			)
			if t.Failed() {
				return
			}
			serve(t, "host1")
			serve(t, "router")
			serve(t, c1.at())
			talks := []*lasting{
				last(t, "a LAN host to a container", "host1", "192.168.50.70"),
				last(t, "a container to a LAN host", c3.at(), host4),
				last(t, "a container to a VLAN's router", c2.at(), "192.168.10.1"),
				last(t, "the Docker host to a container", "", "fd00:50::70"),
			}
			had := leases(t)
			were := []string{inside(t, c1), inside(t, c2), inside(t, c3)}
			same := func(what string) {
				t.Helper()
				if has := leases(t); !slices.Equal(has, had) {
					t.Errorf("%s: the plugin's endpoints were\n%s\nand are\n%s", what, strings.Join(had, "\n"), strings.Join(has, "\n"))
				}
				for k, c := range []container{c1, c2, c3} {
					if is := inside(t, c); is != were[k] {
						t.Errorf("%s: %s has changed: %s", what, c.Name, difference(were[k], is))
					}
				}
			}

			change(t, newer)
			if v := version(t); v != own {
				t.Errorf("the upgraded plugin's version is %s, want %s", v, own)
			}
			same("upgraded")
			_, err := tryDocker("run", "--rm", "--network", "lan", "--ip", "192.168.50.70", image, "true")
			refused(t, err, `192\.168\.50\.70`)
			c := b.run("late", "--network", "lan")
			reaches(t, "a container of after the upgrade to one of before it", c.at(), "192.168.50.70", "fd00:50::70")
			docker(t, "rm", "-f", "late")

			if from == formatDir {
				file := stateFile(t)
				var sum string
				change(t, push("older", from), func() { sum = do(t, "", "sha256sum <"+file) })
				_, err := tryDocker("network", "create", "-d", plugin, "--ipam-driver", plugin, "--subnet", "10.5.0.0/24", "refused")
				refused(t, err, `a later underlay has written it`, `install that version again`)
				if is := do(t, "", "sha256sum <"+file); is != sum {
					t.Error("the earlier plugin has changed the state file, which it does not know")
				}
				change(t, newer)
				same("there and back")
			}

			for _, l := range talks {
				l.end()
			}
			// Who is there since before is cared for.
			docker(t, "restart", "-t", "0", "fixed", "any")
			c1, c3 = inspect(t, "fixed"), inspect(t, "any")
			if got := c1.addrs("lan"); !slices.Equal(got, []string{"192.168.50.70", "fd00:50::70"}) {
				t.Errorf("started again, the container has %q", got)
			}
			reaches(t, "a LAN host to a container started again", "host1", append(c1.addrs("lan"), c3.addrs("lan")...)...)
			b.tidy()
			for name := range links(t, "") {
				if strings.HasPrefix(name, "ul") || name == "eth0.10" {
					t.Errorf("link %s is left", name)
				}
			}
		})
	}
	b.T = t
}

// A plugin that is removed and installed again has forgotten everything, its
// containers go on. Docker repeats pools and addresses when it starts, so that
// nobody gets what is taken; networks it never repeats, and calls on them say
// what mends that.
func TestReinstalled(t *testing.T) {
	needs(t, "VLAN")
	withoutBase(t)
	restart(t, syscall.SIGTERM, "--live-restore")
	t.Cleanup(func() { restart(t, syscall.SIGTERM) })
	b := beginBare(t)
	make := func() {
		t.Helper()
		b.network(lanArgs("-o", "host_access=true", "lan")...)
		b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "-o", "ipvlan_mode=l2", "tagged")
	}
	make()
	var c1, c2 container
	together(
		func() { c1 = b.run("fixed", "--network", "lan", "--ip", "192.168.50.70") },
		func() { c2 = b.run("flat", "--network", "tagged", "--ip", "192.168.10.70") },
	)
	if t.Failed() {
		return
	}
	serve(t, c1.at())
	serve(t, "router")
	talks := []*lasting{
		last(t, "a LAN host to a container", "host1", "192.168.50.70"),
		last(t, "the Docker host to a container", "", "192.168.50.70"),
		last(t, "a container to a VLAN's router", c2.at(), "192.168.10.1"),
	}
	before := []string{inside(t, c1), inside(t, c2)}

	installFrom(t, pluginDir)
	late := func(what string) {
		t.Helper()
		_, err := tryDocker("run", "--name", "late", "--network", "lan", image, "true")
		tryDocker("rm", "late")
		refused(t, err, what, `create it again`)
		t.Logf("a container on a network of the plugin before: %v", err)
	}
	late(`underlay knows no network on 192.168.50.0/24`)
	restart(t, syscall.SIGTERM, "--live-restore")
	late(`underlay knows no network on 192.168.50.0/24`)
	held := strings.Join(state(t), "\n")
	t.Logf("after Docker's replay the plugin holds\n%s", held)
	for _, want := range []string{"192.168.50.0/24", "192.168.50.70", "192.168.10.0/24", "192.168.10.70"} {
		if !strings.Contains(held, want) {
			t.Errorf("%s is not held again", want)
		}
	}
	for k, c := range []container{c1, c2} {
		if is := inside(t, c); is != before[k] {
			t.Errorf("%s has changed: %s", c.Name, difference(before[k], is))
		}
	}
	for _, l := range talks {
		l.end()
	}

	// What mends it: the networks anew, and so the containers. The links that the
	// plugin before had made are another's for this one; a VLAN link it uses, and
	// the one for host access it names, to be removed.
	b.tidy()
	for name := range links(t, "") {
		if strings.HasPrefix(name, "ulh") {
			_, err := b.tryNetwork(lanArgs("-o", "host_access=true", "lan")...)
			refused(t, err, `link `+name+` exists already`, `remove it`)
			do(t, "", "ip link del "+name)
		}
	}
	make()
	together(
		func() { c1 = b.run("fixed", "--network", "lan", "--ip", "192.168.50.70") },
		func() { c2 = b.run("flat", "--network", "tagged", "--ip", "192.168.10.70") },
	)
	reaches(t, "a LAN host to a container", "host1", c1.addrs("lan")...)
	reaches(t, "the Docker host to a container", "", c1.addrs("lan")...)
	reaches(t, "a container to a VLAN's router", c2.at(), "192.168.10.1")
	b.tidy()
	if _, left := links(t, "")["eth0.10"]; left { // as one that a user has made
		do(t, "", "ip link del eth0.10")
	}
}
