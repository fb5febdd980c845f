//go:build vm

package vmtest

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests of one boot each, in their order; after each but the last the VM is
// reset. They come after all others.
var boots = []string{"TestRebootPrepared", "TestRebootPowerCut", "TestRebootWithoutNIC"}

// resetVM is the exit status that has the VM reset (see scripts/vm).
const resetVM = 86

// boot is what one boot leaves to the next, on the VM's disk.
type boot struct {
	Number     int // of the boots that were, and so the index of the next one's test
	Code       int // exit status up to now
	Containers map[string]rebooted
}

// rebooted is a container as it was before.
type rebooted struct {
	Network string
	Fixed   bool // --ip was given
	MAC     string
	Addrs   []string
}

var lastBoot boot

const bootFile = "/root/boot.json"

// load reads what the boot before has left; there may have been none.
func (b *boot) load() bool {
	text, err := os.ReadFile(bootFile)
	return err == nil && json.Unmarshal(text, b) == nil
}

// Which tests a run has, unless it is told by -test.run. (Expressions of -test.skip.)
const (
	// everywhere needs neither a kernel that lacks nothing nor a machine to reset: it is
	// run here, on each Docker, and by name in a VM.
	everywhere = `^Test(Addresses|Blind|Burst|Commands|Connect|ContainerNames|DHCP|DHCP6|DHCPAnotherAddress|DHCPByMAC|DHCPDaemonKilled` +
		`|DHCPKea|DHCPServers|Deb|DefaultPool|HairpinProbes|HostAccessTwice|KillDaemon|KillPlugin|Leftovers|LinkLocalRouter|LinkOptions|Names|NoSubnet` +
		`|PluginDropsCapabilities|PluginKilled|PoolPersists|Pools|Restart|RouteRefusals|RouterBesideSubnet|RouterIsHost|SandboxesInPlugin` +
		`|SocketPlugin|Squatters|StaticRoutes|UpgradeByMake)$`
	// What does not depend on Docker's version is run in one VM alone.
	notYoung = `^TestReinstalled$|^TestUpgrade$/previous|^TestParents$|^TestComposeFiles$|^TestRefusals$|^TestReachRefusals$` +
		`|^TestVLAN(s|Order|Names)$|^TestDHCP6ByMAC$|^TestSquattersElsewhere$|^TestMoving$|^TestStaleCaches$|^TestForeignVLAN$`
	notOld = `^TestReboot|^TestUpgrade$/format|^TestHostAccess(Busy)?$|^TestModes$|^TestProxy$|^TestSoak$|^TestDHCPOfOneMAC$|^TestSLAAC$|^TestDoctor$` +
		`|^TestDaemonRestart$|^TestRouteTables$|^TestCapture$|^TestSubnets$|^TestRegistry$|^TestDummyParent$|^TestManual$`
	// partly is the part of other tests that is run everywhere. It comes last: of
	// expressions that fit, the first decides, and one of a part keeps the whole.
	partly = `^TestManual$/^(dhcp|plugin)$|^TestModes$/^macvlan|^TestHostAccess$/^macvlan$|^TestComposeFiles$/^(A-service|IPv4|The-Docker-host|A-network)`
	// notHere needs a machine to reset, or a run of its own.
	notHere = `^TestReboot|^TestSoak$`
)

// skipped is what a run leaves out that was not told what to run.
func skipped() []string {
	var skips []string
	switch {
	case *here:
		skips = append(skips, notHere)
	case release >= 28:
		skips = append(skips, everywhere, notYoung, partly)
	default:
		skips = append(skips, everywhere, notOld, partly)
	}
	if release < 29 {
		skips = append(skips, `^TestContainerNames$`) // Docker tells none
	}
	if release < 27 {
		skips = append(skips, `^TestManual$`) // which does without --subnet
	}
	if release < 26 {
		skips = append(skips, `^TestDeb$`) // bookworm's image has no systemd
	}
	return skips
}

// begin runs all tests that need no reboot and then, if any of them is asked
// for, the first of the others.
func (b *boot) begin(m *testing.M) int {
	run, skip := flag.Lookup("test.run").Value.String(), flag.Lookup("test.skip").Value.String()
	var skips []string
	if skip != "" {
		skips = append(skips, skip)
	}
	if run == "" {
		skips = append(skips, skipped()...)
	}
	asked := slices.ContainsFunc(boots, func(name string) bool {
		matches := func(by string) bool { return regexp.MustCompile(strings.Split(by, "/")[0]).MatchString(name) }
		return matches(run) && !slices.ContainsFunc(skips, matches)
	})
	if run != "^TestReboot" {
		flag.Set("test.skip", strings.Join(append(skips, "^TestReboot"), "|"))
		b.Code = m.Run()
	}
	if !asked {
		return b.Code
	}
	return b.goOn(m)
}

// goOn runs this boot's test and leaves the rest to the next.
func (b *boot) goOn(m *testing.M) int {
	flag.Set("test.skip", "")
	flag.Set("test.run", "^"+boots[b.Number]+"$")
	if code := m.Run(); code != 0 {
		return code
	}
	if b.Number++; b.Number == len(boots) {
		return b.Code
	}
	text, err := json.Marshal(b)
	if err == nil {
		err = os.WriteFile(bootFile, text, 0o600)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return resetVM
}

// Twenty containers that always restart, on networks of all kinds of parents.
// The VM is reset under them, as when the power fails.
func TestRebootPrepared(t *testing.T) {
	withoutBase(t)
	b := &test{T: t} // no look for what is left: all is to stay
	b.network(lanArgs("-o", "host_access=true", "lan")...)
	b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "-o", "ipvlan_mode=l2", "tagged")
	b.network("--subnet", "10.77.0.0/24", "island")
	lastBoot.Containers = map[string]rebooted{}
	var starts []func()
	for k := range 20 {
		name, network, args := fmt.Sprintf("c%02d", k), "lan", []string{"--restart", "always"}
		fixed := k%2 == 0
		switch {
		case k >= 17:
			network = "island"
		case k >= 12:
			network = "tagged"
		}
		if fixed {
			subnet := map[string]string{"lan": "192.168.50.", "tagged": "192.168.10.", "island": "10.77.0."}[network]
			args = append(args, "--ip", fmt.Sprint(subnet, 70+k))
		}
		lastBoot.Containers[name] = rebooted{Network: network, Fixed: fixed}
		starts = append(starts, func() { b.run(name, append(args, "--network", network)...) })
	}
	for k := 0; k < len(starts); k += 4 {
		together(starts[k : k+4]...)
	}
	for name, was := range lastBoot.Containers {
		c := inspect(t, name)
		was.Addrs, was.MAC = c.addrs(was.Network), c.NetworkSettings.Networks[was.Network].MacAddress
		lastBoot.Containers[name] = was
	}
	allBack(t)
}

func TestRebootPowerCut(t *testing.T) {
	ps := bootDocker(t)
	start := time.Now()
	for name := range lastBoot.Containers {
		running(t, name)
	}
	t.Logf("all 20 run %.1f s after dockerd answered", time.Since(start).Seconds())
	allBack(t)
	ps()
	// The next boot comes after an orderly end, and with fewer of them.
	for name := range lastBoot.Containers {
		if !slices.Contains([]string{"c00", "c01", "c12", "c13", "c17", "c18"}, name) {
			delete(lastBoot.Containers, name)
			docker(t, "rm", "-f", name)
		}
	}
	if err := dockerd.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// The NIC comes long after Docker. Docker itself does not start a container
// again whose start has failed while it booted.
func TestRebootWithoutNIC(t *testing.T) {
	b := &test{T: t, networks: []string{"lan", "tagged", "island"}}
	do(t, "", unplug)
	ps := bootDocker(t)
	var out string
	err := wait(10*time.Second, "the plugin", func() (err error) {
		out, err = tryDocker("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}")
		if err == nil && out != plugin+" true" {
			err = errorf("plugins: %s", out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if out := docker(t, "network", "ls", "--format", "{{.Name}}"); !strings.Contains(out, "lan") || !strings.Contains(out, "tagged") {
		t.Errorf("docker network ls says\n%s", out)
	}
	var dead []string
	for name, was := range lastBoot.Containers {
		if was.Network == "island" {
			running(t, name)
		} else {
			dead = append(dead, name)
		}
	}
	slices.Sort(dead)
	for _, name := range []string{"c00", "c12"} {
		start := time.Now()
		_, err := tryDocker("start", name)
		refused(t, err, `parent eth0 is not there.* \(waiting since`)
		if took := time.Since(start); took > 25*time.Second {
			t.Errorf("the refusal took %v", took)
		}
	}
	time.Sleep(10 * time.Second)
	if err := plug(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = wait(10*time.Second, "the VLAN link", func() error { _, err := sh("", "ip link show eth0.10 up"); return err })
	if err != nil {
		t.Error(err)
	}
	t.Logf("eth0.10 was made %.1f s after eth0 came", time.Since(start).Seconds())
	time.Sleep(5 * time.Second)
	var alone int
	for _, name := range dead {
		if inspect(t, name).State.Running {
			alone++
		}
	}
	t.Logf("Docker %.1f has started %d of %d containers itself, 5 s after the NIC came", release, alone, len(dead))
	docker(t, append([]string{"start"}, dead...)...)
	allBack(t)
	ps()

	for name := range lastBoot.Containers {
		b.containers = append(b.containers, name)
	}
	b.tidy()
	for name := range links(t, "") {
		if strings.HasPrefix(name, "ul") || name == "eth0.10" {
			t.Errorf("link %s is left", name)
		}
	}
	if is := state(t); slices.ContainsFunc(is, func(line string) bool { return strings.Contains(line, "subnet") || strings.Contains(line, ".id ") }) {
		t.Errorf("the plugin's state is\n%s", strings.Join(is, "\n"))
	}
}

// bootDocker starts dockerd and asks it for its containers, from when it listens
// until the returned function is called. It must answer each time, and soon.
func bootDocker(t *testing.T) (end func()) {
	t.Helper()
	start := time.Now()
	if err := dockerd.start(); err != nil {
		t.Fatalf("%v\n%s", err, tail(daemonLog, 40))
	}
	// It does so when it has tried to start all of its containers.
	t.Logf("dockerd answers %.1f s after its start", time.Since(start).Seconds())
	if err := readVersion(); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	var asked int
	var slowest time.Duration
	var failed error
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
			start := time.Now()
			if err := api("GET", "/containers/json", nil, nil); err != nil && failed == nil {
				failed = err
			}
			asked++
			slowest = max(slowest, time.Since(start))
		}
	}()
	return func() {
		t.Helper()
		close(stop)
		<-done
		t.Logf("docker ps was asked %d times; the slowest answer took %.2f s", asked, slowest.Seconds())
		if failed != nil || slowest > 5*time.Second {
			t.Errorf("docker ps: the slowest answer took %v, the first failure is %v", slowest, failed)
		}
	}
}

// allBack wants all containers to have an address each that nobody else has,
// the one they had if it was fixed, and to be reached by it; and the plugin to
// know of these endpoints and no others.
func allBack(t *testing.T) {
	t.Helper()
	taken := map[string]string{}
	var others container // one of the island
	for name, was := range lastBoot.Containers {
		c := running(t, name)
		addrs := c.addrs(was.Network)
		if len(addrs) == 0 {
			t.Errorf("%s has no address", name)
		}
		for _, a := range addrs {
			if o := taken[a]; o != "" {
				t.Errorf("%s and %s both have %s", name, o, a)
			}
			taken[a] = name
		}
		if mac := c.NetworkSettings.Networks[was.Network].MacAddress; was.Fixed && (mac != was.MAC || addrs[0] != was.Addrs[0]) {
			t.Errorf("%s has %s %s, and had %s %s", name, addrs[0], mac, was.Addrs[0], was.MAC)
		}
		switch was.Network {
		case "lan":
			reaches(t, "a LAN host to "+name, "host1", addrs...)
			reaches(t, "the Docker host to "+name, "", addrs...)
		case "tagged":
			reaches(t, "the VLAN's router to "+name, "router", addrs...)
		case "island":
			if others.Name != "" {
				reaches(t, name+" to another", c.at(), others.addrs("island")...)
			}
			others = c
		}
	}
	for _, line := range state(t) {
		addr, ok := strings.CutPrefix(line, "state.endpoints.ipv4 ")
		if addr, _, _ = strings.Cut(addr, "/"); ok && taken[addr] == "" {
			t.Errorf("the plugin has an endpoint with %s, and no container has it", addr)
		}
	}
	for name := range links(t, "") {
		if strings.HasPrefix(name, "ul") && !strings.HasPrefix(name, "ulh") && !strings.HasPrefix(name, "uld") {
			t.Errorf("link %s is in the host", name)
		}
	}
}
