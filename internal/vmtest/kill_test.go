//go:build vm

package vmtest

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var kills = flag.String("kills", "", "which kills of TestKillDaemon and TestKillPlugin: all of them, or those whose names hold this (default: a few)")

// The plugin that is killed is a socket plugin, beside the managed one. dockerd
// talks to it through a proxy, which knows its calls.
const (
	victim       = "victim" // its drivers' name
	victimProxy  = "/run/docker/plugins/victim.sock"
	victimDir    = "/run/victim"
	victimSocket = victimDir + "/victim.sock"
	victimBinary = "./underlay-faults"
	victimGrace  = 8 * time.Second // it outlasts dockerd's start, on emulated processors
)

// prey is the plugin and the proxy before it.
type prey struct {
	t     *testing.T
	proxy http.Server
	real  *http.Client

	mu     sync.Mutex
	cmd    *exec.Cmd
	died   chan struct{}
	wanted bool
	deaths int
	env    []string // for its next life

	calls []string // since the last listen
	at    int      // how many of them before dockerd is killed; 0: it is not
	after bool     // once the call has been carried out, or before it has
	hit   chan struct{}
}

func newPrey(t *testing.T) *prey {
	p := &prey{t: t, real: unixClient(victimSocket)}
	for _, err := range []error{os.RemoveAll(victimDir), os.MkdirAll(victimDir, 0o700), os.MkdirAll("/run/docker/plugins", 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	os.Remove(victimProxy)
	l, err := net.Listen("unix", victimProxy)
	if err != nil {
		t.Fatal(err)
	}
	p.proxy.Handler = http.HandlerFunc(p.pass)
	go p.proxy.Serve(l)
	p.start()
	t.Cleanup(func() {
		p.stop(syscall.SIGTERM)
		p.proxy.Close()
		os.Remove(victimProxy)
		if t.Failed() {
			t.Logf("the victim's log:\n%s", tail(victimDir+"/log", 60))
		}
	})
	return p
}

// pass hands a call on, and kills dockerd where it is to be killed. A plugin that
// dies breaks dockerd's connection, too.
func (p *prey) pass(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	p.calls = append(p.calls, strings.TrimPrefix(r.URL.Path, "/"))
	now := len(p.calls) == p.at
	after, hit := p.after, p.hit
	p.mu.Unlock()
	if now && !after {
		dockerd.cmd.Process.Kill()
		close(hit)
		return
	}
	answer, err := p.real.Post("http://plugin"+r.URL.Path, "application/json", bytes.NewReader(body))
	if now {
		dockerd.cmd.Process.Kill()
		close(hit)
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", answer.Header.Get("Content-Type"))
	w.WriteHeader(answer.StatusCode)
	w.Write(text)
}

// listen counts dockerd's calls from now on. At the call of a number, dockerd is
// killed: before it is carried out, or after.
func (p *prey) listen(at int, after bool) (hit chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls, p.at, p.after, p.hit = nil, at, after, make(chan struct{})
	return p.hit
}

func (p *prey) heard() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

// start starts the plugin, and again whenever it dies.
func (p *prey) start(env ...string) {
	p.mu.Lock()
	p.wanted, p.env = true, env
	p.mu.Unlock()
	p.run()
	err := wait(20*time.Second, "the victim", func() error { return call(p.real, "POST", "/Underlay.State", struct{}{}, nil) })
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *prey) run() {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(victimDir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(victimBinary, "serve", "--socket", victimSocket, "--state", victimDir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(append(os.Environ(), "UNDERLAY_GRACE="+victimGrace.String()), p.env...)
	p.env = nil
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	died := make(chan struct{})
	p.cmd, p.died = cmd, died
	go func() {
		cmd.Wait()
		p.mu.Lock()
		again := p.wanted
		if again {
			p.deaths++
		}
		p.mu.Unlock()
		if again {
			p.run()
		}
		close(died)
	}()
}

func (p *prey) stop(sig syscall.Signal) {
	p.mu.Lock()
	p.wanted = false
	cmd, died := p.cmd, p.died
	p.mu.Unlock()
	cmd.Process.Signal(sig)
	<-died
}

// verb is a docker command that dockerd calls the plugin for.
type verb struct {
	name    string
	prepare [][]string // commands before it
	do      []string
	tidy    [][]string // what takes it back, as far as it was done
}

const victimSubnet4, victimSubnet6 = "192.168.51.0/24", "fd00:51::/64"

var (
	createVictim = []string{
		"network", "create", "-d", victim, "--ipam-driver", victim, "--subnet", victimSubnet4, "--gateway", "192.168.51.1",
		"--ipv6", "--subnet", victimSubnet6, "--gateway", "fd00:51::1", "--ipam-opt", "probe_wait=50ms", "-o", "parent=eth1", "prey",
	}
	runVictim = []string{
		"run", "-d", "--name", "caught", "--network", "prey", "--ip", "192.168.51.70", "--stop-signal", "KILL", image, "sleep", "1000000",
	}
	removeVictim = []string{"rm", "-f", "caught"}
	forgetPrey   = []string{"network", "rm", "prey"}
)

var verbs = []verb{
	{name: "network create", do: createVictim, tidy: [][]string{forgetPrey}},
	{name: "run", prepare: [][]string{createVictim}, do: runVictim, tidy: [][]string{removeVictim, forgetPrey}},
	{name: "stop", prepare: [][]string{createVictim, runVictim}, do: []string{"stop", "caught"}, tidy: [][]string{removeVictim, forgetPrey}},
	{name: "network rm", prepare: [][]string{createVictim}, do: forgetPrey, tidy: [][]string{forgetPrey}},
}

// few are the kills of a short run: dockerd is killed in the middle of what takes
// several calls, and where the plugin and dockerd know different things then.
var few = []string{
	"network create/NetworkDriver.CreateNetwork after",
	"run/IpamDriver.RequestAddress after",
	"run/NetworkDriver.CreateEndpoint after, live-restore",
	"run/NetworkDriver.Join after, live-restore",
	"stop/NetworkDriver.Leave after, live-restore",
	"stop/NetworkDriver.DeleteEndpoint after",
	"network rm/IpamDriver.ReleasePool after",
	"network rm/NetworkDriver.DeleteNetwork before",
}

func chosen(name string) bool {
	switch *kills {
	case "all":
		return true
	case "":
		return slices.ContainsFunc(few, func(f string) bool { return name == f })
	}
	return strings.Contains(name, *kills)
}

// truth is what there must be, by what Docker says, and found what the plugin and
// the kernel have.
func (p *prey) truth() (want, found []string, err error) {
	var networks []struct {
		ID     string `json:"Id"`
		Driver string
		IPAM   struct {
			Config []struct{ Subnet, Gateway string }
		}
	}
	if err := api("GET", "/networks", nil, &networks); err != nil {
		return nil, nil, err
	}
	for _, n := range networks {
		if n.Driver != victim {
			continue
		}
		want = append(want, "network "+n.ID)
		for _, c := range n.IPAM.Config {
			want = append(want, "pool "+c.Subnet, "held "+c.Gateway)
		}
	}
	var all []struct {
		ID string `json:"Id"`
	}
	if err := api("GET", "/containers/json", nil, &all); err != nil {
		return nil, nil, err
	}
	for _, a := range all {
		var c container
		if err := api("GET", "/containers/"+a.ID+"/json", nil, &c); err != nil {
			return nil, nil, err
		}
		for _, e := range c.NetworkSettings.Networks {
			if slices.Contains(want, "network "+e.NetworkID) && e.EndpointID != "" {
				want = append(want, "endpoint "+e.EndpointID, "held "+e.IPAddress, "held "+e.GlobalIPv6Address)
			}
		}
	}
	var state struct {
		Networks  []struct{ ID string }
		Endpoints []struct{ ID string }
		Pools     []struct {
			Subnet    string
			Addresses []struct{ Address string }
		}
	}
	call(p.real, "POST", "/Underlay.Reconcile", struct{}{}, nil)
	if err := call(p.real, "POST", "/Underlay.State", struct{}{}, &state); err != nil {
		return nil, nil, err
	}
	for _, n := range state.Networks {
		found = append(found, "network "+n.ID)
	}
	for _, e := range state.Endpoints {
		found = append(found, "endpoint "+e.ID)
	}
	for _, pool := range state.Pools {
		found = append(found, "pool "+pool.Subnet)
		for _, a := range pool.Addresses {
			found = append(found, "held "+a.Address)
		}
	}
	here, err := linksNow("")
	for name, l := range here {
		if l.Lower == "eth1" {
			found = append(found, "link "+name)
		}
	}
	want = slices.DeleteFunc(want, func(fact string) bool { return fact == "held " }) // of a family that it lacks
	slices.Sort(want)
	slices.Sort(found) // not compacted: what is there twice shows
	return slices.Compact(want), found, err
}

// agrees waits until Docker, the plugin and the kernel say the same.
func (p *prey) agrees(when string) {
	p.t.Helper()
	err := wait(victimGrace*2+20*time.Second, when, func() error {
		want, found, err := p.truth()
		if err != nil {
			return err
		}
		if !slices.Equal(want, found) {
			return errorf("not as Docker has it:%s", difference(strings.Join(want, "\n"), strings.Join(found, "\n")))
		}
		return nil
	})
	if err != nil {
		p.t.Error(err)
	}
}

func (p *prey) docker(args ...string) {
	p.t.Helper()
	if out, err := tryDocker(args...); err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
}

// kill -9 of dockerd between each pair of its calls. A container of another
// network of the plugin's runs all the time.
func TestKillDaemon(t *testing.T) {
	withoutBase(t)
	beginBare(t)
	p := newPrey(t)
	points := map[string][]string{} // the calls of each verb
	for _, v := range verbs {
		for _, args := range v.prepare {
			p.docker(args...)
		}
		p.listen(0, false)
		p.docker(v.do...)
		points[v.name] = slices.DeleteFunc(p.heard(), func(c string) bool {
			return strings.HasSuffix(c, ".Activate") || strings.HasSuffix(c, "GetCapabilities")
		})
		for _, args := range v.tidy {
			tryDocker(args...)
		}
		t.Logf("docker %s makes the calls %v", v.name, points[v.name])
	}
	tried := 0
	for _, live := range []bool{false, true} {
		var args []string
		if live {
			args = []string{"--live-restore"}
		}
		started := false
		for _, v := range verbs {
			seen := map[string]int{}
			for i, c := range points[v.name] {
				for _, after := range []bool{false, true} {
					name := v.name + "/" + c
					if n := seen[c]; n > 0 {
						name += fmt.Sprintf(" #%d", n+1)
					}
					name += map[bool]string{false: " before", true: " after"}[after] + map[bool]string{true: ", live-restore"}[live]
					if !chosen(name) {
						continue
					}
					if !started {
						started = true
						restart(t, syscall.SIGTERM, args...)
						p.docker("network", "create", "-d", victim, "--ipam-driver", victim, "--subnet", "10.98.0.0/24", "-o", "parent=eth1", "--ipam-opt", "pool=private", "other")
						p.docker("run", "-d", "--name", "bystander", "--network", "other", "--ip", "10.98.0.70", "--restart", "always", "--stop-signal", "KILL", image, "sleep", "1000000")
					}
					tried++
					t.Run(name, func(t *testing.T) {
						p.t = t
						defer func(was *testing.T) { p.t = was }(t)
						p.killDaemon(v, i+1, after, live, args)
					})
				}
				seen[c]++
			}
		}
		p.t = t
		if started {
			p.docker("rm", "-f", "bystander")
			p.docker("network", "rm", "other")
			p.agrees("with all removed")
		}
	}
	restart(t, syscall.SIGTERM)
	t.Logf("dockerd was killed at %d points of %d", tried, 4*len(slices.Concat(slices.Collect(maps.Values(points))...)))
}

func (p *prey) killDaemon(v verb, at int, after, live bool, args []string) {
	for _, args := range v.prepare {
		p.docker(args...)
	}
	was := inspect(p.t, "bystander")
	hit := p.listen(at, after)
	go tryDocker(v.do...)
	select {
	case <-hit:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("the call did not come; those that did: %v", p.heard())
	}
	<-dockerd.exited
	os.Remove("/run/docker.pid")
	p.listen(0, false)
	if live {
		reaches(p.t, "the bystander, while dockerd is away", was.at(), "10.98.0.70")
	}
	if err := dockerd.start(args...); err != nil {
		p.t.Fatalf("%v\n%s", err, tail(daemonLog, 40))
	}
	is := running(p.t, "bystander")
	if (is.State.Pid == was.State.Pid) != live {
		p.t.Errorf("the bystander had process %d, has %d", was.State.Pid, is.State.Pid)
	}
	if a := is.NetworkSettings.Networks["other"]; a.IPAddress != "10.98.0.70" {
		p.t.Errorf("the bystander has %s", a.IPAddress)
	}
	p.agrees("after dockerd's restart")
	for _, args := range v.tidy {
		tryDocker(args...) // what had not come to be
	}
	// The same again must work, with the same address, and be undone.
	for _, args := range append(slices.Clone(v.prepare), v.do) {
		p.docker(args...)
	}
	p.agrees("when it has been done again")
	for _, args := range v.tidy {
		tryDocker(args...)
	}
	p.agrees("when it has been undone")
}

// kill -9 of the plugin at its own points, with the Docker there is. All of them
// are passed in network namespaces in internal/killtest.
func TestKillPlugin(t *testing.T) {
	withoutBase(t)
	beginBare(t)
	p := newPrey(t)
	story := [][]string{createVictim, runVictim, {"stop", "caught"}, {"start", "caught"}, removeVictim, forgetPrey}
	for range 2 { // the first time, dockerd asks who the plugin is
		p.stop(syscall.SIGTERM)
		os.Remove(victimDir + "/points")
		p.start("UNDERLAY_FAULT_LIST=" + victimDir + "/points")
		for _, args := range story {
			p.docker(args...)
		}
	}
	points := strings.Split(trimmed(victimDir+"/points"), "\n")
	points = slices.DeleteFunc(points, func(s string) bool { return strings.HasPrefix(s, "start:") })
	t.Logf("%d points", len(points))
	every := max(1, len(points)/5)
	for i, point := range points {
		if *kills == "" && i%every != every/2 || *kills != "" && *kills != "all" && !strings.Contains(point, *kills) {
			continue
		}
		t.Run(strings.ReplaceAll(point, "/", " "), func(t *testing.T) {
			p.t = t
			p.killPlugin(point, story)
		})
		p.t = t
	}
}

func (p *prey) killPlugin(point string, story [][]string) {
	p.stop(syscall.SIGTERM)
	p.mu.Lock()
	p.deaths = 0
	p.mu.Unlock()
	p.start("UNDERLAY_FAULT=" + point)
	killed := func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.deaths > 0 }
	for _, args := range story {
		out, err := tryDocker(args...)
		if err == nil && !killed() {
			continue
		}
		if !killed() {
			p.t.Fatalf("%v: %s", err, out)
		}
		p.t.Logf("killed in docker %s: %v", args[0], err)
		if err != nil {
			p.agrees("after the kill")
			if out, err := tryDocker(args...); err != nil && args[0] != "rm" && args[0] != "stop" && args[1] != "rm" {
				if _, again := tryDocker("start", "caught"); args[0] != "run" || again != nil {
					p.t.Errorf("done again: %v: %s", err, out)
				}
			}
		}
		p.agrees("when it has been done")
		if c := inspectMaybe("caught"); c.State.Running {
			reaches(p.t, "the container to its router", c.at(), "192.168.51.1", "fd00:51::1")
		}
		break
	}
	if !killed() {
		p.t.Log("not passed in this run")
	}
	tryDocker(removeVictim...)
	tryDocker(forgetPrey...)
	p.agrees("with all removed")
}

func inspectMaybe(name string) (c container) {
	api("GET", "/containers/"+name+"/json", nil, &c)
	return c
}
