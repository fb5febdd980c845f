//go:build vm

package vmtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// test is one test's use of the machine. What it makes by run and network is
// removed at its end, and then nothing may be left.
type test struct {
	*testing.T
	mu         sync.Mutex
	containers []string
	networks   []string
}

// begin takes the picture that the machine must show again at t's end. The
// base containers run.
func begin(t *testing.T) *test {
	t.Helper()
	if !baseRuns {
		if err := startBase(); err != nil {
			t.Fatal(err)
		}
	}
	return beginBare(t)
}

// beginBare is begin for tests that need no base containers.
func beginBare(t *testing.T) *test {
	t.Helper()
	before := picture(t)
	b := &test{T: t}
	t.Cleanup(func() {
		b.tidy()
		var after string
		err := wait(8*time.Second, "left behind", func() error {
			if after = picture(t); after != before {
				return errors.New(difference(before, after))
			}
			return nil
		})
		if err != nil {
			t.Errorf("after the test: %v", err)
			for ns, who := range holders() {
				if line := "netns in use " + ns; !strings.Contains(before, line) {
					t.Logf("%s by %s", line, strings.Join(who, ", "))
				}
			}
		}
		if t.Failed() {
			t.Logf("dockerd's last words:\n%s", tail(daemonLog, 30))
		}
	})
	return b
}

// tidy removes the test's containers and networks.
func (b *test) tidy() {
	b.Helper()
	if len(b.containers) > 0 {
		// Not by name: what is no container's (any more), such as db, may be how another's
		// ID begins.
		var all []struct {
			ID    string
			Names []string
		}
		args := []string{"rm", "-f"}
		err := api("GET", "/containers/json?all=1", nil, &all)
		for _, c := range all {
			if slices.ContainsFunc(c.Names, func(n string) bool { return slices.Contains(b.containers, strings.TrimPrefix(n, "/")) }) {
				args = append(args, c.ID)
			}
		}
		if len(args) > 2 {
			var out string
			if out, err = tryDocker(args...); strings.Contains(out, "No such container") {
				err = nil
			}
		}
		if err != nil {
			b.Error(err)
		}
	}
	for _, n := range slices.Backward(b.networks) {
		var info struct {
			Containers map[string]struct{ Name string }
		}
		path := "/networks/" + n
		if api("GET", path, nil, &info) != nil {
			continue // the test removed it itself
		}
		for _, c := range info.Containers {
			api("POST", path+"/disconnect", map[string]any{"Container": c.Name, "Force": true}, nil)
		}
		if err := api("DELETE", path, nil, nil); err != nil {
			b.Error(err)
		}
	}
	b.containers, b.networks = nil, nil
}

// network makes a network with both drivers of the plugin. args are those of
// docker network create; the name comes last.
func (b *test) network(args ...string) string {
	b.Helper()
	if out, err := b.tryNetwork(args...); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return args[len(args)-1]
}

func (b *test) tryNetwork(args ...string) (string, error) {
	b.mu.Lock()
	b.networks = append(b.networks, args[len(args)-1])
	b.mu.Unlock()
	return tryDocker(append([]string{"network", "create", "-d", plugin, "--ipam-driver", plugin}, args...)...)
}

// run starts a container that sleeps; args are those of docker run, before the
// image.
func (b *test) run(name string, args ...string) container {
	b.Helper()
	if out, err := b.tryRun(name, args...); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return inspect(b.T, name)
}

func (b *test) tryRun(name string, args ...string) (string, error) {
	b.mu.Lock()
	b.containers = append(b.containers, name)
	b.mu.Unlock()
	args = append([]string{"run", "-d", "--name", name, "--stop-signal", "KILL"}, args...)
	return tryDocker(append(args, image, "sleep", "1000000")...)
}

// together runs functions at the same time.
func together(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Add(1)
		go func() { defer wg.Done(); f() }()
	}
	wg.Wait()
}

// connect joins a running container to a network, as docker network connect
// does with args.
func (b *test) connect(network, name string, args ...string) container {
	b.Helper()
	args = append([]string{"network", "connect"}, args...)
	if out, err := tryDocker(append(args, network, name)...); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return inspect(b.T, name)
}

// connectAnew is connect after a plugin that died has been started again. Docker 28 and
// later know by the plugin's registration which endpoints there are: one that is made
// while the plugin registers anew is unknown a moment later.
func (b *test) connectAnew(network, name string) container {
	b.Helper()
	err := wait(10*time.Second, "a connect", func() error {
		out, err := tryDocker("network", "connect", network, name)
		if err != nil && !strings.Contains(out+err.Error(), "remote network driver: endpoint") {
			return permanent{err}
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return inspect(b.T, name)
}

func (b *test) disconnect(network, name string) {
	b.Helper()
	docker(b.T, "network", "disconnect", network, name)
}

// pair connects base1 and base2 to a network.
func (b *test) pair(network string) (c1, c2 container) {
	b.Helper()
	var err1, err2 error
	together(
		func() { _, err1 = tryDocker("network", "connect", network, "base1") },
		func() { _, err2 = tryDocker("network", "connect", network, "base2") },
	)
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	return inspect(b.T, "base1"), inspect(b.T, "base2")
}

// lanArgs are a network on the LAN, with both families.
func lanArgs(more ...string) []string {
	return append([]string{
		"--subnet", "192.168.50.0/24", "--gateway", router4, "--ip-range", "192.168.50.64/26",
		"--ipv6", "--subnet", "fd00:50::/64", "--gateway", router6, "--ip-range", "fd00:50::1:0/112",
		"-o", "parent=eth0",
	}, more...)
}

// picture is everything that a test could leave behind, one fact a line.
func picture(t *testing.T) string {
	t.Helper()
	var facts []string
	for name, l := range links(t, "") {
		facts = append(facts, fmt.Sprintf("link %s %s on %q in %q mtu %d mac %s promiscuity %d up %t",
			name, l.Info.Kind, l.Lower, l.Master, l.MTU, l.MAC, l.Promiscuity, slices.Contains(l.Flags, "UP")))
		for _, a := range l.Addrs {
			facts = append(facts, fmt.Sprintf("address %s/%d on %s", a.Local, a.Prefix, name))
		}
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := sh("", "ip "+family+" -o route show table all")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			// What the kernel learns and forgets of itself.
			if !strings.Contains(line, " expires ") && !strings.Contains(line, "proto ra") {
				facts = append(facts, "route "+family+" "+strings.TrimSpace(line))
			}
		}
	}
	// Neighbours: the permanent ones alone were put there by somebody.
	for _, what := range []string{"-4 rule", "-6 rule", "nexthop", "neigh show nud permanent"} {
		out, err := sh("", "ip "+what)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			facts = append(facts, what+" "+strings.TrimSpace(line))
		}
	}
	facts = append(facts, namespaces()...)
	facts = append(facts, state(t)...)
	slices.Sort(facts)
	return strings.Join(slices.Compact(facts), "\n")
}

// namespaces are the network namespaces that a process or a mount keeps.
func namespaces() []string {
	var facts []string
	for line := range strings.Lines(trimmed("/proc/self/mountinfo")) {
		if f := strings.Fields(line); strings.Contains(line, " nsfs ") && strings.HasPrefix(f[3], "net:") {
			facts = append(facts, "netns mounted "+f[3])
		}
	}
	for ns := range holders() {
		facts = append(facts, "netns in use "+ns)
	}
	return facts
}

// holders are the processes in each network namespace.
func holders() map[string][]string {
	who := map[string][]string{}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		if ns, err := os.Readlink(proc + "/ns/net"); err == nil {
			command := strings.ReplaceAll(trimmed(proc+"/cmdline"), "\x00", " ")
			who[ns] = append(who[ns], fmt.Sprintf("%s (%s)", strings.TrimPrefix(proc, "/proc/"), strings.TrimSpace(command)))
		}
	}
	return who
}

// reconcile has the plugin do now what it does each minute.
func reconcile(t *testing.T) {
	t.Helper()
	socket, err := pluginSocket(plugin)
	if err == nil {
		err = call(unixClient(socket), "POST", "/Underlay.Reconcile", struct{}{}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// state is what the plugin holds, one leaf of its JSON a line; times, and what
// is known of the LAN, which changes by itself, are left out.
func state(t *testing.T) []string {
	t.Helper()
	socket, err := pluginSocket(plugin)
	if err != nil {
		return []string{"state: no plugin"}
	}
	var tree any
	if err := call(unixClient(socket), "POST", "/Underlay.State", struct{}{}, &tree); err != nil {
		return []string{"state: none"}
	}
	var facts []string
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				if !slices.Contains([]string{"since", "lan", "lans", "router"}, key) {
					walk(path+"."+key, value)
				}
			}
		case []any:
			for _, value := range v {
				line, _ := json.Marshal(value)
				if _, leaf := value.(string); leaf {
					facts = append(facts, "state"+path+" "+string(line))
				} else {
					walk(path, value)
				}
			}
		default:
			facts = append(facts, fmt.Sprintf("state%s %v", path, v))
		}
	}
	walk("", tree)
	slices.Sort(facts)
	return facts
}

// difference lists the lines that came (+) and went (-).
func difference(before, after string) string {
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, line := range is {
		if !slices.Contains(was, line) {
			b.WriteString("\n+ " + line)
		}
	}
	for _, line := range was {
		if !slices.Contains(is, line) {
			b.WriteString("\n- " + line)
		}
	}
	return b.String()
}
