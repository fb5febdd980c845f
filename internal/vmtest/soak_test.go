//go:build vm

package vmtest

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The soak: things happen to Docker, the plugin and the NICs in an order that a
// seed draws, against a model that knows which containers run, on which networks
// and with which addresses. After each step docker inspect, the plugin's state
// and the kernel must say the same, and it must be what the model says.
var (
	soakSeed  = flag.Uint64("soak.seed", 1, "draws what the soak does")
	soakFor   = flag.Duration("soak.for", 0, "how long the soak goes on (default: 5m, in a VM 1m; before Docker 28 20s)")
	soakSteps = flag.Int("soak.steps", 1<<30, "how many steps the soak takes at most")
)

func TestSoak(t *testing.T) {
	if *here {
		soakNets = soakNetsHere
	}
	lasts := *soakFor
	if lasts == 0 {
		switch lasts = 5 * time.Minute; {
		case release < 28 || testing.Short():
			lasts = 20 * time.Second
		case !*here: // a step takes ten times as long
			lasts = time.Minute
		}
	}
	withoutBase(t)
	s := &soak{
		test: beginBare(t), guests: map[string]*guest{}, extras: map[string]time.Time{},
		known: map[string]string{}, networks: map[string]bool{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := sh("", "grep -E 'level=error|panic' "+daemonLog+" | tail -40")
			t.Logf("dockerd's complaints:\n%s", out)
		}
		if s.live {
			restart(t, syscall.SIGTERM)
		}
	})
	start := time.Now()
	fmt.Printf("soak: seed %d, %v\n", *soakSeed, lasts)
	for _, n := range soakNets {
		s.network(append(n.args, n.name)...)
		s.networks[n.name] = true
	}
	for s.n = 1; s.n <= *soakSteps && time.Since(start) < lasts; s.n++ {
		s.rng = rand.New(rand.NewPCG(*soakSeed, uint64(s.n)))
		began := time.Now()
		s.draw()
		err := s.check(15 * time.Second)
		if err == nil && s.aging != nil {
			err = s.grown(*s.aging, 12, 6)
		}
		if err == nil && s.longLeft() {
			s.what += ", and a rest"
			err = s.rest()
		}
		s.aging = nil
		fmt.Printf("soak: %s step %d: %s (%.1f s)\n", time.Now().Format("15:04:05"), s.n, s.what, time.Since(began).Seconds())
		if err != nil {
			t.Fatalf("seed %d, step %d, %s: %v\nthe model:\n%s", *soakSeed, s.n, s.what, err, s)
		}
	}
	s.n--
	if err := s.end(); err != nil {
		t.Errorf("seed %d, after %d steps: %v", *soakSeed, s.n, err)
	}
	t.Logf("seed %d: %d steps in %v; %v", *soakSeed, s.n, time.Since(start).Round(time.Second), s.counts)
}

// soakNet is a network of the soak. Its guest k may have the address 20+k.
type soakNet struct {
	name, parent string
	args         []string
	fixed        string // the address of guest 0
	fixed6       string
	mac          bool  // a container has its own, and may be given it
	from         place // who can reach its containers; "-" nobody
}

var soakNets = []soakNet{
	{"lan", "eth0", lanArgs("-o", "host_access=true"), "192.168.50.20", "fd00:50::20", true, "host1"},
	{"tagged", "eth0.10", []string{"--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "--ip-range", "192.168.10.64/26", "-o", "parent=eth0.10"}, "192.168.10.20", "", true, "router"},
	{"flat", "eth1", []string{"--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "--ip-range", "192.168.51.64/26",
		"--ipv6", "--subnet", "fd00:51::/64", "--gateway", "fd00:51::1", "-o", "parent=eth1", "-o", "ipvlan_mode=l2"}, "192.168.51.20", "fd00:51::20", false, "router"},
	{"inner", "", []string{"--internal", "--subnet", "10.98.0.0/24", "--ip-range", "10.98.0.64/26"}, "10.98.0.20", "", true, "-"},
}

// soakNetsHere are those of a kernel that has macvlan links alone.
var soakNetsHere = []soakNet{
	soakNets[0],
	{"flat", "eth1", []string{"--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "--ip-range", "192.168.51.64/26",
		"--ipv6", "--subnet", "fd00:51::/64", "--gateway", "fd00:51::1", "-o", "parent=eth1"}, "192.168.51.20", "fd00:51::20", true, "router"},
	{"inner", baseParent, []string{"--internal", "--subnet", "10.98.0.0/24", "--ip-range", "10.98.0.64/26", "-o", "parent=" + baseParent}, "10.98.0.20", "", true, "-"},
}

func soakNetOf(name string) *soakNet {
	for k := range soakNets {
		if soakNets[k].name == name {
			return &soakNets[k]
		}
	}
	panic(name)
}

// guests is how many containers there are at most.
const guests = 5

// guest is what the model knows of a container.
type guest struct {
	name   string
	k      int
	policy string
	mode   string          // the network that it was run on, without which it does not start
	on     map[string]wish // by network
	runs   bool
	halted bool // by hand
	// asked: in this step an action was cut short, and dockerd is asked what
	// became of the container. unsure: since then it is not known whether it
	// counts as stopped by hand.
	asked, unsure bool
	touched       bool // in this step
	pid           int
}

// wish is what a container asked for; empty is any.
type wish struct{ addr, addr6, mac string }

type soak struct {
	*test
	rng      *rand.Rand
	n        int
	what     string // the step
	live     bool   // dockerd has live-restore
	networks map[string]bool
	guests   map[string]*guest
	counts   counts
	// known are the addresses and MACs by endpoint ID: they stay.
	known map[string]string
	// extras are what the plugin or the kernel has and no container, and since when.
	extras map[string]time.Time
	killed time.Time // the plugin, last
	fault  time.Time // the last one, which may leave something
	// aging is what the plugin took before its end in this step.
	aging *process
	young *process // the least that it took after a start
}

// extraFor is the time that the plugin is given to be certain of something left
// behind, which begins anew with each fault.
const extraFor = 110 * time.Second

type counts struct{ docker, plugin, daemon, parent, cut int }

func (c counts) String() string {
	return fmt.Sprintf("%d docker commands, %d ends of the plugin, %d of dockerd, %d of parents, %d in the middle of a command", c.docker, c.plugin, c.daemon, c.parent, c.cut)
}

func (s *soak) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.guests)) {
		g := s.guests[name]
		fmt.Fprintf(&b, "  %s restart=%s runs=%t halted=%t on %v\n", g.name, g.policy, g.runs, g.halted, g.on)
	}
	return b.String()
}

// draw takes a step that the model allows.
func (s *soak) draw() {
	for _, g := range s.guests {
		g.touched, g.asked = false, false
	}
	type choice struct {
		weight int
		do     func() bool
	}
	choices := []choice{
		{10, s.command}, {1, s.collide}, {1, s.renet}, {2, s.crash},
		{2, s.aged(s.killPlugin)}, {1, s.aged(s.disablePlugin)}, {3, s.endDaemon},
		{2, s.flap}, {4, s.replug}, {8, s.cut},
	}
	if len(s.guests) < 2 {
		choices = choices[:1]
	}
	for {
		total := 0
		for _, c := range choices {
			total += c.weight
		}
		at := s.rng.IntN(total)
		for _, c := range choices {
			if at -= c.weight; at < 0 {
				if c.do() {
					return
				}
				break
			}
		}
	}
}

func (s *soak) pick(ok func(*guest) bool) *guest {
	var fit []*guest
	for _, name := range slices.Sorted(maps.Keys(s.guests)) {
		if g := s.guests[name]; ok(g) {
			fit = append(fit, g)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	g := fit[s.rng.IntN(len(fit))]
	return g
}

// action is something done to one guest; then is what the model says of it
// after a success.
type action struct {
	what string
	g    *guest
	do   func() error
	then func()
}

// act draws one.
func (s *soak) act() *action {
	switch s.rng.IntN(8) {
	case 0, 1, 2:
		if len(s.guests) < guests {
			return s.runAction()
		}
		fallthrough
	case 3:
		if g := s.pick(func(g *guest) bool { return !g.runs }); g != nil {
			return &action{"start " + g.name, g, g.post("start"), func() { g.runs, g.halted, g.unsure = true, false, false }}
		}
		fallthrough
	case 4:
		if g := s.pick(func(g *guest) bool { return g.runs }); g != nil {
			verb := []string{"stop?t=0", "kill"}[s.rng.IntN(2)]
			return &action{verb + " " + g.name, g, g.post(verb), func() { g.runs, g.halted, g.unsure = false, true, false }}
		}
	case 5:
		if g := s.pick(func(g *guest) bool { return g.runs }); g != nil {
			return &action{"restart " + g.name, g, g.post("restart?t=0"), func() { g.halted, g.unsure = false, false }}
		}
	case 6:
		return s.connectAction()
	case 7:
		if g := s.pick(func(*guest) bool { return s.rng.IntN(3) == 0 }); g != nil {
			return &action{"rm -f " + g.name, g, func() error { return api("DELETE", "/containers/"+g.name+"?force=1", nil, nil) }, func() { delete(s.guests, g.name) }}
		}
	}
	return nil
}

func (g *guest) post(verb string) func() error {
	return func() error { return api("POST", "/containers/"+g.name+"/"+verb, nil, nil) }
}

func (s *soak) wish(n *soakNet, k int) (w wish) {
	if s.rng.IntN(2) == 0 {
		w.addr = plus(n.fixed, k)
		if n.fixed6 != "" && s.rng.IntN(2) == 0 {
			w.addr6 = plus(n.fixed6, k)
		}
	}
	return w
}

func plus(addr string, k int) string {
	a := netip.MustParseAddr(addr)
	for range k {
		a = a.Next()
	}
	return a.String()
}

func (s *soak) anyNet() *soakNet {
	there := slices.DeleteFunc(slices.Clone(soakNets), func(n soakNet) bool { return !s.networks[n.name] })
	return soakNetOf(there[s.rng.IntN(len(there))].name)
}

func (s *soak) runAction() *action {
	g := &guest{on: map[string]wish{}, touched: true}
	for k := range guests {
		if g.name = fmt.Sprint("guest", k); s.guests[g.name] == nil {
			g.k = k
			break
		}
	}
	g.policy = []string{"no", "always", "unless-stopped"}[s.rng.IntN(3)]
	n := s.anyNet()
	w := s.wish(n, g.k)
	if n.mac && s.rng.IntN(2) == 0 {
		w.mac = fmt.Sprintf("02:11:00:00:00:%02x", g.k)
	}
	g.on[n.name], g.mode = w, n.name
	args := []string{"--network", n.name, "--restart", g.policy}
	for option, value := range map[string]string{"--ip": w.addr, "--ip6": w.addr6, "--mac-address": w.mac} {
		if value != "" {
			args = append(args, option, value)
		}
	}
	s.guests[g.name] = g
	return &action{"run " + g.name + " " + strings.Join(args, " "), g, func() error {
		_, err := s.tryRun(g.name, args...)
		return err
	}, func() { g.runs = true }}
}

func (s *soak) connectAction() *action {
	g := s.pick(func(*guest) bool { return true })
	if g == nil {
		return nil
	}
	n := s.anyNet()
	if _, on := g.on[n.name]; on {
		if len(g.on) == 1 {
			return nil
		}
		return &action{"disconnect " + n.name + " " + g.name, g, func() error {
			return api("POST", "/networks/"+n.name+"/disconnect", map[string]any{"Container": g.name}, nil)
		}, func() { delete(g.on, n.name) }}
	}
	w := s.wish(n, g.k)
	return &action{fmt.Sprintf("connect %s %s %s %s", n.name, g.name, w.addr, w.addr6), g, func() error {
		return api("POST", "/networks/"+n.name+"/connect", map[string]any{
			"Container":      g.name,
			"EndpointConfig": map[string]any{"IPAMConfig": map[string]string{"IPv4Address": w.addr, "IPv6Address": w.addr6}},
		}, nil)
	}, func() { g.on[n.name] = w }}
}

// command is a docker command, which must succeed.
func (s *soak) command() bool {
	a := s.act()
	if a == nil {
		return false
	}
	s.what = a.what
	s.counts.docker++
	a.g.touched = true
	err := a.do()
	if err != nil && a.g.unsure && (strings.Contains(err.Error(), "container with given ID already exists") ||
		strings.Contains(err.Error(), "runtime.v2.task") && strings.Contains(err.Error(), "file exists")) {
		// dockerd was killed while runc made the container, and does not find it again.
		s.what += ", which runc has in part"
		endStranded(a.g.name)
		if err := api("DELETE", "/containers/"+a.g.name+"?force=1", nil, nil); err != nil {
			s.Fatal(err)
		}
		delete(s.guests, a.g.name)
		return true
	}
	if err != nil {
		s.Fatalf("seed %d, step %d, %s: %v\nthe model:\n%s", *soakSeed, s.n, s.what, err, s)
	}
	// A start may bring a network whose connect has failed.
	a.g.asked = a.g.unsure
	a.then()
	return true
}

// endStranded ends what runc had begun of a container, or of all of them, when dockerd
// was killed: what dockerd (28.5) does not know of stays for ever.
func endStranded(name string) {
	var c container
	if name != "" && api("GET", "/containers/"+name+"/json", nil, &c) != nil {
		return
	}
	for _, who := range holders() {
		for _, p := range who {
			if pid, is := strings.CutSuffix(p, " (runc init)"); is && strings.Contains(trimmed("/proc/"+pid+"/cgroup"), c.ID) {
				n, _ := strconv.Atoi(pid)
				syscall.Kill(n, syscall.SIGKILL)
			}
		}
	}
}

// cut is a command in the middle of which something happens. It may fail, and
// then dockerd is asked what became of the container; or it succeeds.
func (s *soak) cut() bool {
	a := s.act()
	if a == nil {
		return false
	}
	after := time.Duration(s.rng.IntN(1500)) * time.Millisecond
	s.what = fmt.Sprintf("%s, and %v later ", a.what, after)
	a.g.touched = true
	s.counts.docker++
	s.counts.cut++
	var err error
	done := make(chan struct{})
	go func() { defer close(done); err = a.do() }()
	time.Sleep(after)
	what, daemons := s.what, s.counts.daemon
	switch s.rng.IntN(5) {
	case 0:
		s.endDaemon()
	case 1:
		s.replug()
	default:
		s.killPlugin()
	}
	s.what = what + s.what
	<-done
	a.g.touched = true
	daemon := s.counts.daemon > daemons
	if err != nil {
		fmt.Printf("soak: %s: %v\n", a.what, err)
	} else {
		a.g.asked = a.g.asked || a.g.unsure // see command
		a.then()
	}
	if err != nil || daemon { // whether dockerd ended before or after it is not known
		a.g.asked, a.g.unsure = true, true
	}
	return true
}

// adopt asks dockerd; twice where it may be about to start the container again, as it
// does of itself a moment after it has heard of its end.
func (s *soak) adopt(g *guest) {
	var c container
	ask := func() error {
		c = container{}
		err := api("GET", "/containers/"+g.name+"/json", nil, &c)
		if err != nil && strings.Contains(err.Error(), "404") {
			return permanent{err}
		}
		return err
	}
	err := wait(30*time.Second, g.name, ask)
	if err == nil && !c.State.Running && g.policy != "no" {
		time.Sleep(3 * time.Second)
		err = wait(30*time.Second, g.name, ask)
	}
	if err != nil {
		delete(s.guests, g.name)
		return
	}
	g.runs, g.touched = c.State.Running, true
	was := g.on
	g.on = map[string]wish{}
	for name, e := range c.NetworkSettings.Networks {
		if g.runs && e.EndpointID == "" {
			continue
		}
		g.on[name] = was[name]
	}
}

// collide asks for an address that a running container has.
func (s *soak) collide() bool {
	var addr, network string
	g := s.pick(func(g *guest) bool {
		for n, w := range g.on {
			if g.runs && w.addr != "" {
				return n != ""
			}
		}
		return false
	})
	if g == nil {
		return false
	}
	for n, w := range g.on {
		if w.addr != "" && (network == "" || n < network) {
			addr, network = w.addr, n
		}
	}
	s.what = "another container asks for " + addr
	s.counts.docker++
	out, err := s.tryRun("thief", "--network", network, "--ip", addr)
	if err == nil {
		s.Fatalf("seed %d, step %d: two containers have %s", *soakSeed, s.n, addr)
	}
	if !strings.Contains(out, addr) {
		s.Errorf("the refusal of %s does not name it: %s", addr, out)
	}
	if err := api("DELETE", "/containers/thief?force=1", nil, nil); err != nil {
		s.Error(err)
	}
	return true
}

// renet removes a network that no container is on or was run on, or makes it again.
func (s *soak) renet() bool {
	n := soakNets[s.rng.IntN(len(soakNets))]
	if s.networks[n.name] {
		if s.pick(func(g *guest) bool { _, on := g.on[n.name]; return on || g.asked || g.mode == n.name }) != nil || len(s.networks) == 1 {
			return false
		}
		s.what = "network rm " + n.name
		if err := api("DELETE", "/networks/"+n.name, nil, nil); err != nil {
			s.Fatalf("seed %d, step %d: %v", *soakSeed, s.n, err)
		}
		delete(s.networks, n.name)
	} else {
		s.what = "network create " + n.name
		s.network(append(slices.Clone(n.args), n.name)...)
		s.networks[n.name] = true
	}
	s.counts.docker++
	return true
}

// crash ends a container's process.
func (s *soak) crash() bool {
	g := s.pick(func(g *guest) bool { return g.runs })
	if g == nil {
		return false
	}
	s.what = "the process of " + g.name + " dies"
	g.touched = true
	c := inspect(s.T, g.name)
	syscall.Kill(c.State.Pid, syscall.SIGKILL)
	g.runs, g.asked = g.policy != "no" && !g.halted, g.unsure
	// Not the one that dies is to be looked at.
	err := wait(20*time.Second, g.name, func() error {
		if is := inspect(s.T, g.name); is.State.Running && is.State.Pid == c.State.Pid {
			return errorf("still has process %d", c.State.Pid)
		}
		return nil
	})
	if err != nil {
		s.Error(err)
	}
	return true
}

// aged is a step that ends the plugin, which is asked before what it takes.
func (s *soak) aged(step func() bool) func() bool {
	return func() bool {
		// What follows a start for some seconds is no growth.
		for try := 0; ; try++ {
			s.aging = &process{}
			if err := s.ask("/Underlay.Process", s.aging); err != nil {
				s.Error(err)
			}
			if s.young == nil || try == 20 || s.aging.Goroutines <= s.young.Goroutines+4 && s.aging.Descriptors <= s.young.Descriptors+4 {
				return step()
			}
			time.Sleep(time.Second / 2)
		}
	}
}

func (s *soak) killPlugin() bool {
	s.what, s.fault = "kill -9 of the plugin", time.Now()
	s.counts.plugin++
	// dockerd dials a plugin that it has started three times in 1.5 s, and gives up one
	// that has ended by then (moby, plugin/manager_linux.go, pluginPostStart).
	time.Sleep(time.Until(s.killed.Add(5 * time.Second)))
	do(s.T, "", "kill -KILL $(pidof underlay) || true")
	s.killed = time.Now()
	return true
}

func (s *soak) disablePlugin() bool {
	s.what, s.fault = "plugin disable -f, enable", time.Now()
	s.counts.plugin++
	docker(s.T, "plugin", "disable", "-f", plugin)
	docker(s.T, "plugin", "enable", plugin)
	return true
}

// endDaemon ends dockerd and starts it, each time with or without live-restore.
func (s *soak) endDaemon() bool {
	sig := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[s.rng.IntN(2)]
	live := s.rng.IntN(2) == 0
	alive := sig == syscall.SIGKILL || s.live // containers, when dockerd starts
	survive := alive && live
	s.what = fmt.Sprintf("dockerd gets %v (live-restore %t), and starts with live-restore %t", sig, s.live, live)
	s.fault = time.Now()
	s.counts.daemon++
	var args []string
	if live {
		args = []string{"--live-restore"}
	}
	restart(s.T, sig, args...)
	s.live = live
	for _, name := range slices.Sorted(maps.Keys(s.guests)) {
		s.booted(s.guests[name], alive, survive)
	}
	return true
}

// booted says what becomes of a guest when dockerd boots.
func (s *soak) booted(g *guest, alive, survive bool) {
	if g.policy == "unless-stopped" && g.runs && alive && !survive {
		// dockerd ends what it finds alive as docker stop would, and then counts it
		// as stopped by a user (moby, daemon/kill.go, killWithSignal).
		g.unsure, g.touched = true, true
	}
	g.asked = g.unsure
	switch {
	case survive && g.runs:
	case g.policy == "always", g.policy == "unless-stopped" && !g.halted:
		g.runs, g.touched, g.halted = true, true, false
	default:
		g.runs, g.touched = false, true
	}
}

// flap takes a NIC or its cable down for a moment.
func (s *soak) flap() bool {
	nic := s.rng.IntN(2)
	s.counts.parent++
	pause := time.Duration(s.rng.IntN(1500)) * time.Millisecond
	p, link := place(""), fmt.Sprint("eth", nic)
	if s.rng.IntN(2) == 0 {
		p, link = "switch", fmt.Sprint("nic", nic)
	}
	s.what = fmt.Sprintf("%s down for %v", link, pause)
	do(s.T, p, "ip link set "+link+" down")
	time.Sleep(pause)
	do(s.T, p, "ip link set "+link+" up")
	do(s.T, "", eth0Addresses)
	return true
}

// replug deletes a link on which containers are, and makes it again if it is not
// the plugin's.
func (s *soak) replug() bool {
	s.counts.parent++
	s.fault = time.Now()
	switch s.rng.IntN(3) {
	case 0:
		if !s.networks["tagged"] {
			return s.flap()
		}
		s.what = "eth0.10 is deleted"
		sh("", "ip link del eth0.10")
	case 1:
		s.what = "eth1 is taken out and put in"
		mac := links(s.T, "")["eth1"].MAC
		do(s.T, "", "ip link del eth1"+wire("1", mac))
	case 2:
		s.what = "eth0 is taken out and put in"
		do(s.T, "", unplug)
		if err := plug(); err != nil {
			s.Fatal(err)
		}
	}
	return true
}

// check looks until all is as it must be.
func (s *soak) check(limit time.Duration) error {
	if err := s.settle(); err != nil {
		return err
	}
	return wait(limit, "amiss", s.look)
}

// settle waits for dockerd, the plugin, and the containers that are to run.
func (s *soak) settle() error {
	for _, name := range slices.Sorted(maps.Keys(s.guests)) {
		g := s.guests[name]
		if g.asked {
			continue
		}
		err := wait(60*time.Second, name, func() error {
			var c container
			if err := api("GET", "/containers/"+name+"/json", nil, &c); err != nil {
				return err
			}
			if c.State.Running != g.runs {
				return errorf("runs: %t, want %t", c.State.Running, g.runs)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pluginState is what is compared of `underlay state`.
type pluginState struct {
	Networks  []struct{ ID string }
	Endpoints []struct{ ID, Network, IPv4, IPv6, MAC string }
	Pools     []struct {
		Subnet    string
		Addresses []struct{ Address, Kind string }
	}
	Waiting []struct{ Parent string }
}

func (s *soak) ask(path string, out any) error {
	socket, err := pluginSocket(plugin)
	if err != nil {
		return err
	}
	return call(unixClient(socket), "POST", path, struct{}{}, out)
}

// sight is what one look at everything has shown.
type sight struct {
	wrong     []string
	left      map[string]bool     // what no container has any more
	endpoints map[string]endpoint // by ID, as docker inspect shows them
	known     map[string]string
	owner     map[string]string // of addresses and MACs
	knocks    []knock
}

func (v *sight) amiss(format string, args ...any) {
	v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
}

func (v *sight) err() error {
	if len(v.wrong) == 0 {
		return nil
	}
	return errors.New(strings.Join(v.wrong, "\n"))
}

// look compares once.
func (s *soak) look() error {
	var state pluginState
	if err := s.ask("/Underlay.State", &state); err != nil {
		return err
	}
	v := &sight{left: map[string]bool{}, endpoints: map[string]endpoint{}, known: map[string]string{}, owner: map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(s.guests)) {
		if err := s.lookAt(v, s.guests[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	s.records(v, &state)
	if err := s.host(v); err != nil {
		return err
	}
	if len(v.wrong) == 0 {
		v.wrong = unanswered(v.knocks)
	}
	if err := v.err(); err != nil {
		return err
	}
	s.known = v.known
	return s.spare(v.left)
}

// lookAt compares a container with the model: docker inspect, and the kernel.
func (s *soak) lookAt(v *sight, g *guest) error {
	if g.asked {
		if s.adopt(g); s.guests[g.name] == nil {
			return nil
		}
	}
	var c container
	if err := api("GET", "/containers/"+g.name+"/json", nil, &c); err != nil {
		return err
	}
	if c.State.Running != g.runs {
		v.amiss("%s runs: %t, want %t", g.name, c.State.Running, g.runs)
		return nil
	}
	if !g.runs {
		g.pid = 0
		return nil
	}
	if c.State.Pid == 0 {
		// Killed while it started the container, dockerd (28.5) knows that it runs and
		// not as which process: it cannot end it, and nobody can but by containerd.
		g.asked = true
		_, err := sh("", "ctr -n moby tasks kill -s KILL "+c.ID)
		return errors.Join(errorf("dockerd does not know its process"), err)
	}
	if g.pid != c.State.Pid && !g.touched && g.pid != 0 {
		v.amiss("%s had process %d, and has %d", g.name, g.pid, c.State.Pid)
	}
	g.pid = c.State.Pid
	on := c.NetworkSettings.Networks
	if g.unsure { // a connect that failed may be listed
		maps.DeleteFunc(on, func(_ string, e endpoint) bool { return e.EndpointID == "" })
	}
	if len(on) > 0 && !slices.ContainsFunc(slices.Collect(maps.Values(on)), func(e endpoint) bool { return e.EndpointID != "" }) {
		// After a start that a kill has cut short, dockerd (28.5, 29) may run the
		// container without its networks, and asks the plugin for nothing.
		g.asked = true
		return errors.Join(errorf("dockerd has started it without its networks"), api("POST", "/containers/"+g.name+"/restart?t=0", nil, nil))
	}
	if is, want := slices.Sorted(maps.Keys(on)), slices.Sorted(maps.Keys(g.on)); !slices.Equal(is, want) {
		v.amiss("%s is on %q, want %q", g.name, is, want)
		return nil
	}
	has, err := linksNow(c.at())
	if err != nil {
		return err
	}
	if len(has) != len(on) {
		v.amiss("%s has the links %q, want those of %d networks", g.name, slices.Sorted(maps.Keys(has)), len(on))
	}
	for network, e := range on {
		v.lookAtEndpoint(g, soakNetOf(network), e, has)
		if now, was := v.known[e.EndpointID], s.known[e.EndpointID]; was != "" && now != "" && was != now {
			v.amiss("endpoint %.12s was %s and is %s", e.EndpointID, was, now)
		}
	}
	return nil
}

// lookAtEndpoint compares what docker inspect says with what was asked for, what
// others have, and the container's links.
func (v *sight) lookAtEndpoint(g *guest, n *soakNet, e endpoint, has map[string]link) {
	v.endpoints[e.EndpointID] = e
	if w := g.on[n.name]; w.addr != "" && w.addr != e.IPAddress || w.addr6 != "" && w.addr6 != e.GlobalIPv6Address || w.mac != "" && w.mac != e.MacAddress {
		v.amiss("%s has %s %s %s on %s, want %+v", g.name, e.IPAddress, e.GlobalIPv6Address, e.MacAddress, n.name, w)
	}
	addrs := []string{e.IPAddress + "/" + fmt.Sprint(e.IPPrefixLen)}
	if n.fixed6 != "" {
		addrs = append(addrs, e.GlobalIPv6Address+"/"+fmt.Sprint(e.GlobalIPv6PrefixLen))
	}
	for _, l := range has {
		if !l.holds(addrs[0]) {
			continue
		}
		if n.mac && l.MAC != e.MacAddress {
			v.amiss("%s: %s has MAC %s, and docker inspect says %s", g.name, l.Name, l.MAC, e.MacAddress)
		}
		if !slices.Contains(l.Flags, "UP") {
			v.amiss("%s: %s is down", g.name, l.Name)
		}
		for _, a := range addrs {
			if !l.holds(a) {
				v.amiss("%s: %s lacks %s", g.name, l.Name, a)
			}
		}
		v.known[e.EndpointID] = fmt.Sprintf("%s %s %s %v", g.name, l.Name, l.MAC, addrs)
	}
	if v.known[e.EndpointID] == "" {
		v.amiss("%s has no link with %s: %+v", g.name, addrs[0], has)
	}
	if n.mac {
		v.own(g, n.parent+" "+e.MacAddress)
	}
	for _, a := range addrs {
		v.own(g, bare(a))
		if n.from != "-" {
			v.knocks = append(v.knocks, knock{n.from, bare(a), g.name})
		}
		if n.name == "lan" { // with host access
			v.knocks = append(v.knocks, knock{"", bare(a), g.name})
		}
	}
}

// own notes whose an address or a MAC is.
func (v *sight) own(g *guest, what string) {
	if o := v.owner[what]; o != "" {
		v.amiss("%s and %s both have %s", o, g.name, what)
	}
	v.owner[what] = g.name
}

// records compares what the plugin has with what docker inspect shows.
func (s *soak) records(v *sight, state *pluginState) {
	recorded, given := map[string]bool{}, map[string]bool{}
	for _, e := range state.Endpoints {
		recorded[e.ID] = true
		d, ok := v.endpoints[e.ID]
		if !ok {
			v.left["record of endpoint "+e.ID] = true
			continue
		}
		if bare(e.IPv4) != d.IPAddress || bare(e.IPv6) != d.GlobalIPv6Address || e.Network != d.NetworkID || e.MAC != "" && e.MAC != d.MacAddress {
			v.amiss("underlay has %+v, docker inspect %+v", e, d)
		}
	}
	for _, p := range state.Pools {
		for _, a := range p.Addresses {
			given[a.Address] = true
			if a.Kind != "gateway" && v.owner[a.Address] == "" {
				v.left["address "+a.Address] = true
			}
		}
	}
	for id, e := range v.endpoints {
		if !recorded[id] {
			v.amiss("underlay has no record of endpoint %.12s", id)
		}
		for _, a := range []string{e.IPAddress, e.GlobalIPv6Address} {
			if a != "" && !given[a] {
				v.amiss("address %s of endpoint %.12s is free for others", a, id)
			}
		}
	}
	switch is, want := len(state.Networks), len(s.networks); {
	case is > want:
		v.left["a network"] = true
	case is < want:
		v.amiss("underlay knows %d networks, want %d", is, want)
	}
	if len(state.Waiting) > 0 {
		v.amiss("parents are waited for: %v", state.Waiting)
	}
}

// host compares the links of the host with what the networks and containers need.
func (s *soak) host(v *sight) error {
	links, err := linksNow("")
	if err != nil {
		return err
	}
	shims, want := 0, 0
	for _, g := range s.guests {
		if _, on := g.on["lan"]; on && g.runs {
			want = 1
		}
	}
	for name := range links {
		switch {
		case strings.HasPrefix(name, "ulh"):
			shims++
		case strings.HasPrefix(name, "uld") && s.networks["inner"]:
		case strings.HasPrefix(name, "ul"):
			v.left["link "+name] = true
		}
	}
	switch {
	case shims > want:
		v.left["the link for host access"] = true
	case shims < want:
		v.amiss("the link for host access is not there")
	}
	if _, there := links["eth0.10"]; there != s.networks["tagged"] {
		v.amiss("eth0.10 is there: %t, its network: %t", there, s.networks["tagged"])
	}
	return nil
}

// bare is an address without its mask.
func bare(prefix string) string {
	addr, _, _ := strings.Cut(prefix, "/")
	return addr
}

// spare allows what is left after a fault for a while.
func (s *soak) spare(left map[string]bool) error {
	for what := range s.extras {
		if !left[what] {
			delete(s.extras, what)
		}
	}
	for what := range left {
		if _, old := s.extras[what]; !old {
			s.extras[what] = time.Now()
		}
	}
	if len(left) > 0 && time.Since(s.fault) > extraFor {
		return errorf("%s left %v after the last fault", slices.Sorted(maps.Keys(left)), time.Since(s.fault).Round(time.Second))
	}
	return nil
}

// longLeft says that something has been left for so long that the faults are to
// pause.
func (s *soak) longLeft() bool {
	for _, since := range s.extras {
		if time.Since(since) > extraFor {
			return true
		}
	}
	return false
}

// rest lets nothing happen until nothing is left.
func (s *soak) rest() error {
	return wait(extraFor, "left", func() error {
		if err := s.look(); err != nil {
			return err
		}
		if len(s.extras) > 0 {
			return errorf("%q", slices.Sorted(maps.Keys(s.extras)))
		}
		return nil
	})
}

// knock is a ping that must be answered.
type knock struct {
	from       place
	addr, name string
}

// unanswered pings all at the same time, for a while.
func unanswered(knocks []knock) []string {
	var mu sync.Mutex
	var wrong []string
	var pings []func()
	for _, k := range knocks {
		pings = append(pings, func() {
			for range 5 {
				if ping(k.from, k.addr, time.Second) {
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			wrong = append(wrong, fmt.Sprintf("%s gives %q no answer at %s", k.name, k.from, k.addr))
		})
	}
	together(pings...)
	slices.Sort(wrong)
	return wrong
}

// process is what the plugin's process takes.
type process struct{ Goroutines, Descriptors, HeapBytes int }

// grown wants a plugin that has lived for a while to take no more than one that
// has just been started under the same containers.
func (s *soak) grown(before process, goroutines, descriptors int) error {
	var after process
	if err := s.ask("/Underlay.Process", &after); err != nil {
		return err
	}
	if s.young == nil { // the least: a start may have met something to do
		s.young = &process{after.Goroutines, after.Descriptors, after.HeapBytes}
	}
	s.young.Goroutines, s.young.Descriptors = min(s.young.Goroutines, after.Goroutines), min(s.young.Descriptors, after.Descriptors)
	fmt.Printf("soak: the plugin had %d goroutines, %d descriptors, %d KiB, and has %d, %d, %d since its start\n",
		before.Goroutines, before.Descriptors, before.HeapBytes>>10, after.Goroutines, after.Descriptors, after.HeapBytes>>10)
	if before.Goroutines > after.Goroutines+goroutines || before.Descriptors > after.Descriptors+descriptors {
		return errorf("the plugin had %+v, and has %+v since its start", before, after)
	}
	return nil
}

// end removes all containers, and compares once more.
func (s *soak) end() error {
	s.what = "the end"
	for name := range s.guests {
		if err := api("DELETE", "/containers/"+name+"?force=1", nil, nil); err != nil {
			return err
		}
	}
	clear(s.guests)
	endStranded("")
	// What was left by kills is gone in time, and so is all that serves a container.
	if err := s.rest(); err != nil {
		return err
	}
	time.Sleep(8 * time.Second) // announcements
	var before process
	if err := s.ask("/Underlay.Process", &before); err != nil {
		return err
	}
	s.killPlugin()
	if err := s.check(20 * time.Second); err != nil {
		return err
	}
	return s.grown(before, 4, 4)
}
