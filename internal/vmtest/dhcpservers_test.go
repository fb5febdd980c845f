//go:build vm

package vmtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// segment is a VLAN of the LAN, with a machine of its own, .1, for its DHCP servers.
// What goes on in one is not heard in another.
type segment struct {
	*test
	id  int
	nic string // on every machine: eth0.61
	at  place
}

func newSegment(t *testing.T, id int) *segment {
	t.Helper()
	g := &segment{test: &test{T: t}, id: id, nic: fmt.Sprintf("eth0.%d", id)}
	if *here { // a switch of its own
		g.nic = fmt.Sprintf("seg%d", id)
		do(t, "", g.wired("ip -n switch link add br%[2]d up type bridge", "0", "sysctl -qw net.ipv6.conf.%[1]s.accept_dad=0"))
		t.Cleanup(func() { do(t, "", fmt.Sprintf("ip link del %s; ip -n switch link del br%d", g.nic, id)) })
	}
	g.at = g.machine("seg"+strconv.Itoa(id), 1)
	t.Cleanup(g.tidy) // before its machines go
	return g
}

// machine is one more in the segment.
func (g *segment) machine(name string, last int) place {
	g.Helper()
	p := g.neighbour(name)
	if *here {
		do(g.T, p, g.wired("", strconv.Itoa(last), fmt.Sprintf("ip addr add %s/24 dev %s", g.ip(last), g.nic)))
		return p
	}
	do(g.T, p, fmt.Sprintf("ip link add link eth0 name %s type vlan id %d; ip addr add %s/24 dev %[1]s; ip link set %[1]s up", g.nic, g.id, g.ip(last)))
	return p
}

// wired gives a machine a NIC in the segment's own switch, at a port of a number, and
// does something before and after.
func (g *segment) wired(before, port, after string) string {
	return fmt.Sprintf(before+`
ip link add %[1]s type veth peer name p%[2]d-`+port+` netns switch
ip -n switch link set p%[2]d-`+port+` master br%[2]d up
`+after+`
ip link set %[1]s up`, g.nic, g.id)
}

func (g *segment) ip(last int) string { return fmt.Sprintf("192.168.%d.%d", g.id, last) }

// span is a range of the segment, as dnsmasq and as kea write it.
func (g *segment) span(first, last int, between string) string {
	return g.ip(first) + between + g.ip(last)
}

func (g *segment) subnet() string { return g.ip(0) + "/24" }

// byIPAM and byDriver are the arguments of the two kinds of networks.
func (g *segment) byIPAM(args ...string) []string {
	return append([]string{"--subnet", g.subnet(), "--gateway", g.ip(1), "-o", "parent=" + g.nic, "--ipam-opt", "dhcp=true"}, args...)
}

func (g *segment) byDriver(args ...string) []string {
	return append([]string{"--ipam-driver", "null", "-o", "parent=" + g.nic, "-o", "dhcp=true"}, args...)
}

// start runs a container and returns its address and MAC on a network.
func (g *segment) start(name, network string, args ...string) (addr, mac string, c container) {
	g.Helper()
	c = g.run(name, append([]string{"--network", network}, args...)...)
	network, _, _ = strings.Cut(strings.TrimPrefix(network, "name="), ",")
	e := c.NetworkSettings.Networks[network]
	return e.IPAddress, e.MacAddress, c
}

func (g *segment) dnsmasq(at place, args ...string) *server {
	g.Helper()
	return dnsmasqOn(g.T, at, g.nic, append([]string{"--dhcp-option=option:router," + g.ip(1)}, args...)...)
}

// kea serves a range with leases of so many seconds.
func (g *segment) kea(at place, first, last int, times [3]int, more ...object) *server {
	g.Helper()
	s := &server{t: g.T, at: at, dir: g.TempDir(), ready: "DHCP4_STARTED", comma: true}
	s.leases = filepath.Join(s.dir, "leases.csv")
	subnet := object{
		"id": g.id, "subnet": g.subnet(), "pools": []object{{"pool": g.span(first, last, " - ")}},
		"option-data": []object{{"name": "routers", "data": g.ip(1)}},
	}
	for _, m := range more {
		for key, v := range m {
			subnet[key] = v
		}
	}
	b, err := json.Marshal(object{"Dhcp4": object{
		"interfaces-config": object{"interfaces": []string{g.nic}},
		"lease-database":    object{"type": "memfile", "name": s.leases, "lfc-interval": 0},
		"renew-timer":       times[0], "rebind-timer": times[1], "valid-lifetime": times[2],
		"authoritative": true,
		"subnet4":       []object{subnet},
		"loggers":       []object{{"name": "kea-dhcp4", "severity": "INFO", "output_options": []object{{"output": "stdout"}}}},
	}})
	file := filepath.Join(s.dir, "kea.json")
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		g.Fatal(err)
	}
	s.env = append(os.Environ(), "KEA_DHCP_DATA_DIR="+s.dir, "KEA_PIDFILE_DIR="+s.dir, "KEA_LOCKFILE_DIR=none", "KEA_LOGGER_DESTINATION=stdout")
	s.args = []string{"/usr/sbin/kea-dhcp4", "-c", file}
	s.start()
	return s
}

// until waits for what the server's log, or else, is to show.
func (s *server) until(t *testing.T, limit time.Duration, what string, shows func() bool) {
	t.Helper()
	err := wait(limit, what, func() error {
		if !shows() {
			return errorf("it is not so; the server says\n%s", s.log())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// held is what `underlay state` tells of the lease of an address that Docker shows.
type heldLease struct {
	Given string
	Lease struct {
		Addr, Server string
	}
	Lost string
}

func leaseOf(t *testing.T, addr string) (l heldLease) {
	t.Helper()
	var state struct{ Leases []heldLease }
	ask(t, "/Underlay.State", struct{}{}, &state)
	for _, l := range state.Leases {
		if bare(l.Given) == addr {
			return l
		}
	}
	return l
}

// has says whether a container's interface has an address.
func (c container) has(t *testing.T, addr string) bool {
	t.Helper()
	for _, l := range links(t, c.at()) {
		if l.holds(addr + "/24") {
			return true
		}
	}
	return false
}

// Leases of a kea from the first to the last, for containers of both kinds of
// networks, and what it is that the server knows them by.
func TestDHCPKea(t *testing.T) {
	beginBare(t)
	testKea(t)
}

func testKea(t *testing.T) {
	const mac = "02:00:5e:00:61:44"
	g := newSegment(t, 61)
	s := g.kea(g.at, 100, 119, [3]int{4, 40, 60}, object{"reservations": []object{{"hw-address": mac, "ip-address": g.ip(44)}}})
	together(func() { g.network(g.byIPAM("kea")...) }, func() { g.network(g.byDriver("bymac")...) })
	granted := func(addr string) int { return s.count("DHCP4_LEASE_ALLOC", "lease "+addr+" ") }

	var addr, is string
	var web container
	reserved, laser, named := "", "", ""
	together(
		func() { addr, is, web = g.start("web", "kea") },
		func() { reserved, _, _ = g.start("reserved", "bymac", "--mac-address", mac) },
		func() { laser, _, _ = g.start("one", "name=bymac,driver-opt=dhcp_hostname=laser") },
		func() { named, _, _ = g.start("two", "name=bymac,driver-opt=dhcp_client_id=printer-7") },
	)
	if t.Failed() {
		t.Fatal(s.log())
	}
	if !strings.Contains(s.leased(addr), is) || granted(addr) < 1 {
		t.Errorf("run: %s by %s, and the server has %q\n%s", addr, is, s.leased(addr), s.log())
	}
	reaches(t, "the server to the containers", g.at, addr, reserved, laser, named)
	if reserved != g.ip(44) || s.leased(reserved) == "" && s.count("DHCP4_LEASE_ALLOC", reserved) == 0 {
		t.Errorf("with the MAC of a reservation it has %s\n%s", reserved, s.log())
	}
	before := granted(addr)
	s.until(t, 40*time.Second, "three renewals", func() bool { return granted(addr) >= before+3 })
	reaches(t, "the server to the container, renewed", g.at, addr)
	if !web.has(t, addr) {
		t.Errorf("renewed, it has not %s", addr)
	}

	released := func(addr string) int { return s.count("DHCP4_RELEASE ", addr+" ") }
	docker(t, "restart", "-t", "0", "web")
	if now := inspect(t, "web").addrs("kea"); !slices.Equal(now, []string{addr}) || released(addr) != 1 {
		t.Errorf("docker restart: it has %v, had %s; released %d times\n%s", now, addr, released(addr), s.log())
	}
	docker(t, "rm", "-f", "web", "one", "two")
	for _, a := range []string{addr, laser, named} {
		s.until(t, 10*time.Second, "the release of "+a, func() bool { return released(a) > 0 && s.leased(a) == "" })
	}
	// Each says what it says, and not who was freed last.
	var again, laserAgain, namedAgain string
	together(
		func() { again, _, _ = g.start("web", "kea") },
		func() { namedAgain, _, _ = g.start("drei", "name=bymac,driver-opt=dhcp_client_id=printer-7") },
		func() { laserAgain, _, _ = g.start("vier", "name=bymac,driver-opt=dhcp_hostname=laser") },
	)
	if again != addr || laserAgain != laser || namedAgain != named {
		t.Errorf("made anew they have %s, %s, %s; had %s, %s, %s\n%s", again, laserAgain, namedAgain, addr, laser, named, s.log())
	}
	// As Docker 29 asks: with the container's name.
	p := g.pool(g.subnet(), "", map[string]string{"dhcp": "true"})
	db, cache := p.must("", "db"), p.must("", "cache")
	p.release(db, cache)
	if c, d := p.must("", "cache"), p.must("", "db"); c != cache || d != db {
		t.Errorf("by name: %s and %s, were %s and %s\n%s", c, d, cache, db, s.log())
	}
	p.release(db, cache)
	s.until(t, 10*time.Second, "two releases", func() bool { return s.leased(db) == "" && s.leased(cache) == "" })
}

// Whatever servers do.
func TestDHCPServers(t *testing.T) {
	beginBare(t)
	// They mostly wait, each in a segment of its own. But containers are started by one
	// after the other: an emulated processor takes its time, and what is about promptness
	// comes when all are there.
	var turn sync.Mutex
	var up sync.WaitGroup
	all := []func(){func() {
		t.Run("black hole", func(t *testing.T) { testBlackHole(t, up.Wait) })
	}}
	for _, r := range []struct {
		name string
		run  func(t *testing.T, up func())
	}{
		{"many", testMany}, {"changes", testChanges}, {"rogue", testRogue},
		{"relay", testRelay}, {"options", testOptions}, {"short of addresses", testShort},
	} {
		up.Add(1)
		all = append(all, func() {
			turn.Lock()
			is := sync.OnceFunc(func() { turn.Unlock(); up.Done() })
			t.Run(r.name, func(t *testing.T) { defer is(); r.run(t, is) })
		})
	}
	together(all...)
}

// The server goes away and comes back, comes back too late, refuses, and gives way to
// another make with another range.
func testChanges(t *testing.T, up func()) {
	g := newSegment(t, 62)
	other := g.machine("seg62b", 5)
	s := g.kea(g.at, 100, 119, [3]int{4, 8, 16})
	g.network(g.byIPAM("changes")...)
	given, _, c := g.start("mover", "changes")
	up()
	granted := func(s *server) func() bool {
		n := s.count("DHCP4_LEASE_ALLOC")
		return func() bool { return s.count("DHCP4_LEASE_ALLOC") > n }
	}
	if given == "" {
		t.Fatal(s.log())
	}

	s.stop()
	s.until(t, 30*time.Second, "late", func() bool { return strings.Contains(leaseOf(t, given).Lost, "does not renew") })
	reaches(t, "server away: it keeps its address", g.at, given)
	more := granted(s)
	s.start()
	s.until(t, 30*time.Second, "renewed", func() bool { return more() && leaseOf(t, given).Lost == "" })

	s.stop()
	s.until(t, 40*time.Second, "expiry", func() bool { return strings.Contains(leaseOf(t, given).Lost, "has expired") })
	reaches(t, "expired: it keeps its address while no server gives another", g.at, given)
	os.Remove(s.leases)
	more = granted(s)
	s.start()
	s.until(t, 40*time.Second, "a lease again", func() bool { return more() && leaseOf(t, given).Lost == "" })
	if l := leaseOf(t, given); bare(l.Lease.Addr) != given || s.leased(given) == "" {
		t.Errorf("back: it has %+v, had %s\n%s", l, given, s.log())
	}

	moved := func(what string, s *server) (is string) {
		t.Helper()
		was := bare(leaseOf(t, given).Lease.Addr)
		s.until(t, 60*time.Second, what, func() bool { is = bare(leaseOf(t, given).Lease.Addr); return is != was })
		s.until(t, 10*time.Second, what+": in the container", func() bool { return c.has(t, is) && !c.has(t, was) })
		reaches(t, what, g.at, is)
		if e := inspect(t, "mover").addrs("changes"); !slices.Equal(e, []string{given}) || s.leased(is) == "" {
			t.Errorf("%s: docker shows %v, was given %s; the server has %q for %s\n%s", what, e, given, s.leased(is), is, s.log())
		}
		logged(t, "has given "+is, "in the place of "+was)
		return is
	}
	// Kea refuses what another has, and is silent about what it does not know.
	s.stop()
	text, _ := os.ReadFile(s.leases)
	head, _, _ := strings.Cut(string(text), "\n")
	const thief = "02:00:5e:00:62:99"
	row := fmt.Sprintf("%s,%s,01:%s,3600,%d,%d,0,0,,0,%s", given, thief, thief, time.Now().Unix()+3600, g.id, strings.Repeat(",0", strings.Count(head, ",")-10))
	if err := os.WriteFile(s.leases, []byte(head+"\n"+row+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	moved("kea refuses", s)
	logged(t, "dhcp server "+g.ip(1)+" refuses "+given)
	s.stop()
	d := g.dnsmasq(other, "--dhcp-range="+g.span(150, 159, ",")+",255.255.255.0,120", "--dhcp-option=option:T1,4", "--dhcp-option=option:T2,60")
	is := moved("another make of server", d)
	if d.count("DHCPNAK") == 0 {
		t.Errorf("no NAK\n%s", d.log())
	}
	docker(t, "restart", "-t", "0", "mover")
	if a := inspect(t, "mover").addrs("changes"); !slices.Equal(a, []string{is}) {
		t.Errorf("restarted, it has %v, not %s", a, is)
	}
}

// Two addresses, of which a machine of the LAN has one.
func testShort(t *testing.T, up func()) {
	g := newSegment(t, 63)
	squatter := g.machine("seg63b", 100)
	s := g.kea(g.at, 100, 101, [3]int{4, 40, 60})
	g.network(g.byIPAM("--ipam-opt", "lease_timeout=5s", "short")...)
	addr, _, c := g.start("first", "short")
	up()
	if addr != g.ip(101) || s.count("DHCP4_DECLINE_LEASE", g.ip(100)) == 0 {
		t.Fatalf("it has %s\n%s", addr, s.log())
	}
	reaches(t, "the machine that has the other", squatter, addr)
	reaches(t, "the container", c.at(), g.ip(100))
	start := time.Now()
	out, err := g.tryRun("second", "--network", "short")
	if took := time.Since(start); err == nil || took > 30*time.Second || !strings.Contains(out, "no dhcp server answers on "+g.nic) || !strings.Contains(out, "has it an address left") {
		t.Errorf("after %v: %v, %s\n%s", took, err, out, s.log())
	}
	if strings.Count(out, "\n") > 3 {
		t.Errorf("that is no clear line: %s", out)
	}
	docker(t, "rm", "-f", "first")
	docker(t, "start", "second")
	if a := inspect(t, "second").addrs("short"); !slices.Equal(a, []string{addr}) || s.leased(addr) == "" {
		t.Errorf("once one is free, it has %v\n%s", a, s.log())
	}
}

// A rogue answers faster than the server that is allowed.
func testRogue(t *testing.T, up func()) {
	g := newSegment(t, 64)
	s := g.dnsmasq(g.at, "--dhcp-range="+g.span(100, 119, ",")+",255.255.255.0,120", "--dhcp-reply-delay=1", "--dhcp-option=option:T1,5", "--dhcp-option=option:T2,10")
	rogue := g.dnsmasq(g.machine("seg64b", 66), "--dhcp-range="+g.span(200, 219, ",")+",255.255.255.0,120")
	g.network(g.byIPAM("--ipam-opt", "dhcp_server="+g.ip(1), "choosy")...)
	addr, mac, c := g.start("choosy", "choosy")
	up()
	if !strings.Contains(s.leased(addr), mac) {
		t.Fatalf("it has %s\n%s\nthe rogue:\n%s", addr, s.log(), rogue.log())
	}
	before := s.count("DHCPACK", addr)
	s.until(t, 40*time.Second, "renewals", func() bool { return s.count("DHCPACK", addr) >= before+2 })
	s.stop()
	// From T2 on the rogue hears of it, and refuses.
	s.until(t, 40*time.Second, "the rogue's refusal", func() bool { return rogue.count("DHCPNAK") > 0 })
	s.until(t, 20*time.Second, "late", func() bool { return leaseOf(t, addr).Lost != "" })
	time.Sleep(3 * time.Second) // for a refusal that counted to have its effect
	if l := leaseOf(t, addr); bare(l.Lease.Addr) != addr || l.Lease.Server != g.ip(1) || !c.has(t, addr) {
		t.Errorf("the lease is %+v", l)
	}
	if rogue.count("DHCPOFFER") == 0 || rogue.count("DHCPACK") > 0 {
		t.Errorf("the rogue said\n%s", rogue.log())
	}
}

// The server is behind a relay, and renewals go by the router.
func testRelay(t *testing.T, up func()) {
	g := newSegment(t, 66)
	do(t, "", "ip netns add far66; ip -n far66 link set lo up; ip -n far66 link add eth0 type veth peer name far netns seg66")
	t.Cleanup(func() { do(t, "", "ip netns del far66") })
	do(t, "far66", "ip addr add 10.88.0.1/24 dev eth0; ip link set eth0 up; ip route add default via 10.88.0.2")
	do(t, g.at, "sysctl -qw net.ipv4.ip_forward=1; ip addr add 10.88.0.2/24 dev far; ip link set far up")
	s := dnsmasqOn(t, "far66", "eth0", "--dhcp-range="+g.span(100, 119, ",")+",255.255.255.0,120", "--dhcp-option=option:router,"+g.ip(1),
		"--dhcp-option=option:T1,5", "--dhcp-option=option:T2,60")
	relay := dnsmasqOn(t, g.at, g.nic, "--interface=far", "--dhcp-relay="+g.ip(1)+",10.88.0.1")
	g.network(g.byIPAM("behind")...)
	addr, mac, c := g.start("behind", "behind")
	up()
	if !strings.Contains(s.leased(addr), mac) {
		t.Fatalf("it has %s\n%s\nthe relay:\n%s", addr, s.log(), relay.log())
	}
	reaches(t, "the container beyond the router", c.at(), "10.88.0.1")
	relay.stop()
	before := s.count("DHCPACK", addr)
	s.until(t, 40*time.Second, "renewals without the relay", func() bool { return s.count("DHCPACK", addr) >= before+2 })
	docker(t, "rm", "-f", "behind")
	s.until(t, 10*time.Second, "the release", func() bool { return s.count("DHCPRELEASE", addr) == 1 })
}

// What the server is told, and what it tells, with --ipam-opt dhcp.
func testOptions(t *testing.T, up func()) {
	g := newSegment(t, 69)
	s := g.dnsmasq(g.at, "--dhcp-range="+g.span(100, 119, ",")+",255.255.255.0,120", "--dhcp-vendorclass=set:known,underlay-vm",
		"--dhcp-option-force=tag:known,option:mtu,1400", "--dhcp-option=option:classless-static-route,0.0.0.0/0,"+g.ip(1)+",10.20.0.0/16,"+g.ip(3)+",10.30.0.0/16,0.0.0.0")
	g.network(g.byIPAM("--ipam-opt", "dhcp_class=underlay-vm", "--ipam-opt", "dhcp_mtu=true", "told")...)
	addr, mac, c := g.start("told", "told")
	up()
	if !strings.Contains(s.leased(addr), mac) || s.count("vendor class: underlay-vm") == 0 {
		t.Fatalf("it has %s\n%s", addr, s.log())
	}
	if id := "01:" + mac; !strings.Contains(s.leased(addr), id) {
		t.Errorf("the client id is not %s: %s", id, s.leased(addr))
	}
	for _, l := range links(t, c.at()) {
		if l.MTU != 1400 {
			t.Errorf("%s has an MTU of %d", l.Name, l.MTU)
		}
	}
	out := do(t, c.at(), "ip route")
	for _, route := range []string{"default via " + g.ip(1), "10.20.0.0/16 via " + g.ip(3), "10.30.0.0/16 dev eth0"} {
		if !strings.Contains(out, route) {
			t.Errorf("no route %s in\n%s", route, out)
		}
	}
	p := g.pool(g.subnet(), "", map[string]string{"dhcp": "true", "dhcp_class": "underlay-vm", "dhcp_mtu": "true"})
	db := p.must("", "my_db.1")
	if s.count("client provides name: my-db-1") == 0 || !strings.Contains(s.leased(db), " my-db-1 ") {
		t.Errorf("its name is not told: %s\n%s", s.leased(db), s.log())
	}
	p.release(db)
	_, err := g.tryRun("odd", "--network", "name=told,driver-opt=dhcp_hostname=laser")
	refused(t, err, "dhcp_hostname", "--ipam-driver null")
}

// A server that hears everything and answers nothing.
func testBlackHole(t *testing.T, wait func()) {
	wait()
	g := newSegment(t, 68)
	s := g.dnsmasq(g.at, "--dhcp-range="+g.span(100, 119, ",")+",255.255.255.0,120", "--dhcp-ignore=tag:!known")
	g.network(g.byIPAM("--ipam-opt", "lease_timeout=20s", "hole")...)
	g.network(g.byIPAM("--ipam-opt", "lease_timeout=60s", "abyss")...)
	g.network("--subnet", "10.68.0.0/24", "-o", "parent=eth1", "--ipam-opt", "conflict=off", "island")
	var mu sync.Mutex
	var order []string
	note := func(name string, f func() error) func() {
		return func() {
			start := time.Now()
			err := f()
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
			if silent := name == "hole" || name == "abyss"; silent && (err == nil || !strings.Contains(err.Error(), "no dhcp server answers on "+g.nic)) || !silent && err != nil {
				t.Errorf("%s after %v: %v", name, time.Since(start), err)
			}
		}
	}
	tried := func(args ...string) func() error { return func() error { _, err := tryDocker(args...); return err } }
	run := func(name, network string) func() error {
		return func() error { _, err := g.tryRun(name, "--network", network); return err }
	}
	// As dockerd asks at its boot: it would wait for ever.
	p := g.pool(g.subnet(), "", map[string]string{"dhcp": "true", "lease_timeout": "60s"})
	p.client.Timeout = 0
	abyss := make(chan struct{})
	go func() {
		defer close(abyss)
		note("abyss", func() error { _, err := p.request("", ""); return err })()
	}()
	s.until(t, 30*time.Second, "a question", func() bool { return s.count("DHCPDISCOVER") > 0 })
	together(note("ps", tried("ps")), note("inspect", tried("network", "inspect", "hole")),
		note("none", run("none", "none")), note("island", run("castaway", "island")), note("hole", run("swallowed", "hole")))
	<-abyss
	if order[len(order)-1] != "abyss" {
		t.Errorf("these waited for the silent server: %v", order)
	}
	start := time.Now()
	if release >= 27 {
		// The VLAN's link is there: the network above has it.
		_, err := g.tryNetwork("-o", "parent="+g.nic, "--ipam-opt", "parent="+g.nic, "--ipam-opt", "dhcp=true", "--ipam-opt", "lease_timeout=4s", "unseen")
		refused(t, err, "the DHCP server of "+g.nic+" has not told the subnet", "--subnet")
	} else {
		_, err := g.tryRun("again", "--network", "hole")
		refused(t, err, "no dhcp server answers on "+g.nic)
	}
	if took := time.Since(start); took > 60*time.Second {
		t.Errorf("refused after %v", took)
	}
}

// A plugin with 200 leases of a minute is killed, and the next one keeps them. It is
// one run by hand on a machine of its own, without Docker: that many containers would
// take an emulated processor too long.
func testMany(t *testing.T, up func()) {
	const many = 200
	g := newSegment(t, 70)
	s := g.kea(g.at, 20, 249, [3]int{30, 50, 60})
	host := g.neighbour("host70")
	if *here {
		do(t, host, g.wired("", "host", ""))
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "underlay.sock")
	client := unixClient(socket)
	var cmd *exec.Cmd
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	begin := func() {
		cmd = host.command(victimBinary, "serve", "--socket", socket, "--state", dir)
		cmd.Env = append(os.Environ(), "UNDERLAY_GRACE=20m") // no endpoints come for the addresses
		cmd.Stdout, cmd.Stderr = log, log
		err := cmd.Start()
		if err == nil {
			err = wait(20*time.Second, "the plugin", func() error { return call(client, "POST", "/Underlay.State", struct{}{}, nil) })
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, tail(log.Name(), 20))
		}
	}
	begin()
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("its log:\n%s", tail(log.Name(), 40))
		}
	}()
	post := func(path string, in, out any) error { return call(client, "POST", path, in, out) }
	must := func(path string, in, out any) {
		t.Helper()
		if err := post(path, in, out); err != nil {
			t.Fatal(err)
		}
	}
	var pool struct{ PoolID string }
	must("/IpamDriver.RequestPool", object{"AddressSpace": "underlay", "Pool": g.subnet(), "Options": object{"dhcp": "true", "lease_timeout": "20s"}}, &pool)
	id := strings.Repeat("70", 32)
	must("/NetworkDriver.CreateNetwork", object{"NetworkID": id, "Options": object{"com.docker.network.generic": object{"parent": g.nic}},
		"IPv4Data": []object{{"AddressSpace": "underlay", "Pool": g.subnet(), "Gateway": g.ip(1) + "/24"}}}, nil)
	start := time.Now()
	addrs := make([]string, many)
	turns := make(chan struct{}, 20)
	var starts []func()
	for k := range many {
		starts = append(starts, func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			var a struct{ Address string }
			if err := post("/IpamDriver.RequestAddress", object{"PoolID": pool.PoolID}, &a); err != nil {
				t.Error(err)
			}
			addrs[k] = bare(a.Address)
		})
	}
	together(starts...)
	took := time.Since(start)
	up()
	if t.Failed() {
		t.FailNow()
	}
	given(t, g.subnet(), addrs, g.ip(1))
	before := grants(s)
	var was, is process
	s.until(t, 60*time.Second, "renewals", func() bool { return len(grants(s)) > 0 && renewedAll(s, addrs, before) })
	must("/Underlay.Process", struct{}{}, &was)

	// In the middle of the renewals.
	before = grants(s)
	s.until(t, 60*time.Second, "more renewals", func() bool { return total(grants(s)) >= total(before)+many/4 })
	cmd.Process.Kill()
	cmd.Wait()
	begin()
	before = grants(s)
	s.until(t, 60*time.Second, "renewals by the next one", func() bool { return renewedAll(s, addrs, before) })
	var state struct{ Leases []heldLease }
	must("/Underlay.State", struct{}{}, &state)
	for _, l := range state.Leases {
		if bare(l.Lease.Addr) != bare(l.Given) || l.Lost != "" {
			t.Errorf("%+v", l)
		}
	}
	if all := grants(s); len(state.Leases) != many || len(all) != many {
		t.Errorf("%d leases, and the server has given %d addresses", len(state.Leases), len(all))
	}
	if n := s.count("DHCP4_RELEASE") + s.count("NAK") + s.count("EXPIR"); n > 0 {
		t.Errorf("%d releases, refusals and expiries", n)
	}
	must("/Underlay.Process", struct{}{}, &is)
	fmt.Printf("%d leases in %.1f s; %+v, and after a kill and renewals %+v\n", many, took.Seconds(), was, is)
	if is.Descriptors > was.Descriptors+2 || is.Goroutines > was.Goroutines+5 || is.HeapBytes > was.HeapBytes+8<<20 {
		t.Errorf("it took %+v, and takes %+v", was, is)
	}
}

// grants are how often kea has given each address.
func grants(s *server) map[string]int {
	n := map[string]int{}
	for line := range strings.Lines(s.log()) {
		if _, rest, ok := strings.Cut(line, ": lease "); ok && strings.Contains(line, "DHCP4_LEASE_ALLOC") {
			addr, _, _ := strings.Cut(rest, " ")
			n[addr]++
		}
	}
	return n
}

func total(n map[string]int) (sum int) {
	for _, k := range n {
		sum += k
	}
	return sum
}

// renewedAll says whether each address has been given again.
func renewedAll(s *server, addrs []string, before map[string]int) bool {
	now := grants(s)
	return !slices.ContainsFunc(addrs, func(a string) bool { return now[a] <= before[a] })
}

// dockerd is killed under six containers with leases, with live-restore and without;
// then with a server that is silent when dockerd starts.
func TestDHCPDaemonKilled(t *testing.T) {
	withoutBase(t)
	beginBare(t)
	restart(t, syscall.SIGTERM, "--live-restore")
	t.Cleanup(func() {
		if t.Failed() { // somewhere on the way
			restart(t, syscall.SIGTERM)
		}
	})
	g := newSegment(t, 71)
	s := g.kea(g.at, 100, 119, [3]int{5, 40, 60})
	g.network(g.byIPAM("six")...)
	names, addrs := make([]string, 6), make([]string, 6)
	var runs []func()
	for k := range names {
		names[k] = fmt.Sprintf("six%d", k)
		runs = append(runs, func() { addrs[k], _, _ = g.start(names[k], "six", "--restart", "always") })
	}
	together(runs...)
	if t.Failed() {
		t.Fatal(s.log())
	}
	given(t, g.subnet(), addrs, g.ip(1))
	renewed := func(what string, addrs []string) {
		t.Helper()
		before := grants(s)
		s.until(t, 60*time.Second, what+": renewals", func() bool { return renewedAll(s, addrs, before) })
	}
	same := func(what string) {
		t.Helper()
		now := make([]string, len(names))
		for k, name := range names {
			now[k] = running(t, name).addrs("six")[0]
		}
		renewed(what, now)
		reaches(t, what, g.at, now...)
		held := 0
		for k := 100; k < 120; k++ {
			if s.leased(g.ip(k)) != "" {
				held++
			}
		}
		if slices.Sort(now); held != len(names) || !slices.Equal(now, slices.Sorted(slices.Values(addrs))) {
			t.Errorf("%s: they have %v, had %v; the server has %d leases\n%s", what, now, addrs, held, s.log())
		}
	}

	before := inspect(t, names[0]).State.Pid
	if err := dockerd.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	renewed("without dockerd", addrs)
	if err := dockerd.start("--live-restore"); err != nil {
		t.Fatal(err)
	}
	same("dockerd killed, live-restore")
	if is := inspect(t, names[0]).State.Pid; is != before {
		t.Errorf("the process was %d, is %d", before, is)
	}
	restart(t, syscall.SIGKILL)
	same("dockerd killed")

	if err := dockerd.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.stop()
	start := time.Now()
	if err := dockerd.start(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	fmt.Printf("dockerd's API is there after %.1f s, with six containers whose DHCP server is silent\n", took.Seconds())
	if took > 2*time.Minute {
		t.Errorf("dockerd's API is there after %v", took)
	}
	for _, name := range names {
		if inspect(t, name).State.Running {
			t.Errorf("%s runs without a lease", name)
		}
	}
	s.start()
	docker(t, append([]string{"start"}, names[:2]...)...)
	var now []string
	for _, name := range names[:2] {
		now = append(now, running(t, name).addrs("six")...)
	}
	given(t, g.subnet(), now, g.ip(1))
	renewed("server back", now)
	reaches(t, "server back", g.at, now...)
}
