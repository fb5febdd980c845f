//go:build vm

package vmtest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is a DHCP server on the LAN, in its own place.
type server struct {
	t      *testing.T
	at     place
	dir    string
	args   []string
	stop   func()
	mu     sync.Mutex
	said   bytes.Buffer
	leases string // file
	ready  string // what it says once it serves
	comma  bool   // the file is kea's
	env    []string
}

func (s *server) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.Write(b)
}

func (s *server) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.String()
}

// count is how often the server has said what holds all the words.
func (s *server) count(words ...string) (n int) {
	for line := range strings.Lines(s.log()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			n++
		}
	}
	return n
}

// dnsmasq serves a range of the LAN from a place, with args besides.
func dnsmasq(t *testing.T, at place, args ...string) *server {
	t.Helper()
	return dnsmasqOn(t, at, "eth0", args...)
}

// dnsmasqOn is dnsmasq on another link.
func dnsmasqOn(t *testing.T, at place, nic string, args ...string) *server {
	t.Helper()
	s := &server{t: t, at: at, dir: t.TempDir(), ready: "started, version"}
	s.leases = filepath.Join(s.dir, "leases")
	s.args = append([]string{"dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--no-resolv", "--no-hosts", "--no-ping", "--user=root",
		"--log-dhcp", "--dhcp-leasefile=" + s.leases, "--pid-file=" + filepath.Join(s.dir, "pid"), "--dhcp-authoritative", "--interface=" + nic, "--bind-interfaces"}, args...)
	s.start()
	return s
}

func (s *server) start() {
	s.t.Helper()
	c := s.at.command(s.args...)
	c.Stdout, c.Stderr, c.Env = s, s, s.env
	seen := strings.Count(s.log(), s.ready)
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	s.stop = sync.OnceFunc(func() { c.Process.Signal(syscall.SIGKILL); <-ended })
	s.t.Cleanup(s.stop)
	err := wait(20*time.Second, "the DHCP server", func() error {
		select {
		case <-ended:
			return permanent{errorf("it has ended: %s", s.log())}
		default:
		}
		if strings.Count(s.log(), s.ready) == seen {
			return errorf("not ready: %s", s.log())
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// leased is the server's line about an address, "" if it has none.
func (s *server) leased(addr string) string {
	text, _ := os.ReadFile(s.leases)
	last := ""
	for line := range strings.Lines(string(text)) {
		switch f := strings.Split(line, ","); {
		case s.comma && f[0] == addr: // the file is written on and on
			if last = line; f[3] == "0" || f[9] != "0" { // given back, or not good
				last = ""
			}
		case !s.comma && strings.Contains(line, " "+addr+" "):
			return line
		}
	}
	return last
}

// dhcpArgs are those of a network whose addresses are the LAN's server's. Docker
// before 27 must be told the subnet.
func dhcpArgs(args ...string) []string {
	base := []string{"-o", "parent=eth0", "--ipam-opt", "parent=eth0", "--ipam-opt", "dhcp=true"}
	if release < 27 && !slices.Contains(args, "--subnet") {
		base = append(base, "--subnet", "192.168.50.0/24", "--gateway", router4)
	}
	return append(base, args...)
}

// Containers have their addresses from the LAN's own server.
func TestDHCP(t *testing.T) {
	b := begin(t)
	s := dnsmasq(t, "router", "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120", "--dhcp-option=option:router,"+router4,
		"--dhcp-option=option:T1,6", "--dhcp-option=option:T2,60")
	b.network(dhcpArgs("net")...)
	var n struct {
		IPAM struct {
			Config []struct{ Subnet, Gateway string }
		}
	}
	if err := api("GET", "/networks/net", nil, &n); err != nil || len(n.IPAM.Config) != 1 || n.IPAM.Config[0].Subnet != "192.168.50.0/24" || n.IPAM.Config[0].Gateway != router4 {
		t.Fatalf("the network is %+v, %v", n, err)
	}
	var addr string
	check := func(what string) {
		t.Helper()
		c := inspect(t, "web")
		e := c.NetworkSettings.Networks["net"]
		if addr == "" {
			addr = e.IPAddress
		}
		line := s.leased(e.IPAddress)
		if e.IPAddress != addr || !strings.Contains(line, e.MacAddress) {
			t.Errorf("%s: it has %s by %s, had %s, and the server says %q\n%s", what, e.IPAddress, e.MacAddress, addr, line, s.log())
		}
		reaches(t, what+": a LAN host to the container", "host1", addr)
		reaches(t, what+": the container to the router", c.at(), router4)
	}
	b.run("web", "--network", "net")
	check("run")

	t.Run("renewed", func(t *testing.T) {
		before := s.count("DHCPACK", addr)
		err := wait(30*time.Second, "renewals", func() error {
			if s.count("DHCPACK", addr) < before+2 {
				return errorf("%s", s.log())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		check("renewed")
	})
	t.Run("restarted", func(t *testing.T) {
		docker(t, "restart", "-t", "0", "web")
		check("restart")
		if s.count("DHCPRELEASE", addr) != 1 {
			t.Errorf("released %d times\n%s", s.count("DHCPRELEASE", addr), s.log())
		}
	})
	t.Run("plugin killed", func(t *testing.T) {
		do(t, "", "kill -KILL $(pidof underlay)")
		before := s.count("DHCPACK", addr)
		err := wait(40*time.Second, "renewals by the next one", func() error {
			if s.count("DHCPACK", addr) < before+2 {
				return errorf("%s", s.log())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		check("plugin killed")
	})
	t.Run("wanted", func(t *testing.T) {
		wanted := "192.168.50.115"
		if wanted == addr {
			wanted = "192.168.50.114"
		}
		b.network(dhcpArgs("--subnet", "192.168.50.0/24", "--gateway", router4, "named")...) // Docker takes no --ip else
		c := b.run("fixed", "--network", "named", "--ip", wanted)
		if a := c.addrs("named"); a[0] != wanted || s.leased(a[0]) == "" {
			t.Errorf("it has %v\n%s", a, s.log())
		}
		out, err := b.tryRun("thief", "--network", "named", "--ip", wanted)
		if err == nil || !strings.Contains(out, wanted) {
			t.Errorf("a second one: %v, %s", err, out)
		}
		out, err = b.tryRun("odd", "--network", "named", "--ip", "192.168.50.7")
		if err == nil || !strings.Contains(out, "192.168.50.7") {
			t.Errorf("outside the server's range: %v, %s", err, out)
		}
	})
	t.Run("removed", func(t *testing.T) {
		docker(t, "rm", "-f", "web")
		err := wait(10*time.Second, "release", func() error {
			if l := s.leased(addr); l != "" {
				return errorf("the server has %q", l)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("no server", func(t *testing.T) {
		s.stop()
		start := time.Now()
		out, err := b.tryRun("lonely", "--network", "net")
		if took := time.Since(start); err == nil || took > 20*time.Second || !strings.Contains(out, "dhcp server") {
			t.Errorf("after %v: %v, %s", took, err, out)
		}
	})
	b.tidy()
	quiet(t)
}

// quiet waits until the plugin does not listen for answers any more.
func quiet(t *testing.T) {
	err := wait(20*time.Second, "eth0", func() error {
		if out := do(t, "", "ip -d link show eth0"); !strings.Contains(out, "promiscuity 0") {
			return errorf("%s", out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// The lease is the driver's, with a MAC that the server knows.
func TestDHCPByMAC(t *testing.T) {
	b := begin(t)
	const mac, reserved = "02:00:5e:00:50:44", "192.168.50.44"
	s := dnsmasq(t, "router", "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120", "--dhcp-option=option:router,"+router4,
		"--dhcp-host="+mac+","+reserved, "--dhcp-host=id:printer-7,192.168.50.45", "--dhcp-option-force=option:mtu,1400", "--dhcp-option=option:classless-static-route,0.0.0.0/0,"+router4+",10.20.0.0/16,192.168.50.3")
	b.network("--ipam-driver", "null", "-o", "parent=eth0", "-o", "dhcp=true", "-o", "dhcp_mtu=true", "net")
	c := b.run("web", "--network", "net", "--mac-address", mac)
	for _, l := range links(t, c.at()) {
		if l.MTU != 1400 {
			t.Errorf("%s has an MTU of %d, not the server's 1400", l.Name, l.MTU)
		}
	}
	p := b.run("printer", "--network", "name=net,driver-opt=dhcp_hostname=laser,driver-opt=dhcp_client_id=printer-7")
	if a := p.addrs("net"); len(a) != 1 || a[0] != "192.168.50.45" || !strings.Contains(s.leased(a[0]), " laser ") {
		t.Errorf("by its own client id, as laser, it has %v\n%s", a, s.log())
	}
	docker(t, "rm", "-f", "printer")
	if a := c.addrs("net"); len(a) != 1 || a[0] != reserved || c.NetworkSettings.Networks["net"].MacAddress != mac {
		t.Errorf("docker inspect shows %+v\n%s", c.NetworkSettings.Networks["net"], s.log())
	}
	reaches(t, "a LAN host to the container", "host1", reserved)
	reaches(t, "the container beyond the router", c.at(), "203.0.113.1")
	if out := do(t, c.at(), "ip route"); !strings.Contains(out, "10.20.0.0/16 via 192.168.50.3") {
		t.Errorf("its routes are\n%s", out)
	}
	other := b.run("other", "--network", "net")
	addr, is := other.addrs("net"), other.NetworkSettings.Networks["net"].MacAddress
	if len(addr) != 1 || !strings.Contains(s.leased(addr[0]), is) {
		t.Errorf("one without a MAC of its own has %v by %s\n%s", addr, is, s.log())
	}
	docker(t, "restart", "-t", "0", "web", "other")
	if a := inspect(t, "web").addrs("net"); a[0] != reserved {
		t.Errorf("restarted, it has %v", a)
	}
	if a := inspect(t, "other").addrs("net"); a[0] != addr[0] {
		t.Errorf("restarted, the other has %v, not %v", a, addr)
	}
	reaches(t, "a LAN host to the container, restarted", "host1", reserved, addr[0])
	docker(t, "rm", "-f", "web", "other")
	defer quiet(t)
	s.until(t, 10*time.Second, "five releases", func() bool { return s.count("DHCPRELEASE") >= 5 })
	if n := s.count("DHCPRELEASE"); n != 5 {
		t.Errorf("%d releases\n%s", n, s.log())
	}
	b.tidy()
}

// Ten containers have one MAC, and are ten machines to the server all the same.
func TestDHCPOfOneMAC(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	s := dnsmasq(t, "router", "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120", "--dhcp-option=option:router,"+router4,
		"--dhcp-option=option:T1,6", "--dhcp-option=option:T2,60")
	b.network(dhcpArgs("-o", "ipvlan_mode=l2", "net")...)
	var runs []func()
	for k := range 10 {
		runs = append(runs, func() { b.tryRun("c"+string(rune('0'+k)), "--network", "net") })
	}
	together(runs...)
	var addrs []string
	for k := range 10 {
		c := inspect(t, "c"+string(rune('0'+k)))
		a := c.addrs("net")
		if len(a) != 1 || s.leased(a[0]) == "" {
			t.Fatalf("container %d has %v\n%s", k, a, s.log())
		}
		addrs = append(addrs, a[0])
	}
	given(t, "192.168.50.0/24", addrs)
	reaches(t, "a LAN host to the containers", "host1", addrs...)
	before := s.count("DHCPACK")
	err := wait(40*time.Second, "renewals", func() error {
		if n := s.count("DHCPACK") - before; n < 20 {
			return errorf("%d\n%s", n, s.log())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	b.tidy()
	quiet(t)
}

// The server takes an address back, and gives another: the container that runs has
// that, and the old one until then.
func TestDHCPAnotherAddress(t *testing.T) {
	b := begin(t)
	args := []string{"--dhcp-option=option:router," + router4, "--dhcp-option=option:T1,6", "--dhcp-option=option:T2,60"}
	s := dnsmasq(t, "router", append(args, "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120")...)
	b.network(dhcpArgs("-o", "host_access=true", "net")...)
	c := b.run("web", "--network", "net")
	was := c.addrs("net")[0]
	s.stop()
	s = dnsmasq(t, "router", append(args, "--dhcp-range=192.168.50.120,192.168.50.139,255.255.255.0,120")...)
	var is string
	err := wait(60*time.Second, "another address", func() error {
		for _, l := range links(t, c.at()) {
			for _, a := range l.Addrs {
				if strings.HasPrefix(a.Local, "192.168.50.") && a.Local != was {
					is = a.Local
					return nil
				}
			}
		}
		return errorf("none\n%s", s.log())
	})
	if err != nil {
		t.Fatal(err)
	}
	reaches(t, "a LAN host to the container", "host1", is)
	reaches(t, "the Docker host to the container", "", is)
	reaches(t, "the container beyond the router", c.at(), "203.0.113.1")
	isolated(t, "a LAN host to the address taken back", "host1", was)
	var state struct {
		Leases []struct {
			Given string
			Lease struct{ Addr string }
		}
	}
	socket, err := pluginSocket(plugin)
	if err != nil {
		t.Fatal(err)
	}
	err = call(unixClient(socket), "POST", "/Underlay.State", struct{}{}, &state)
	if err != nil || len(state.Leases) != 1 || bare(state.Leases[0].Given) != was || bare(state.Leases[0].Lease.Addr) != is {
		t.Errorf("underlay state shows the leases %+v, %v; Docker shows %s, and it has %s", state.Leases, err, was, is)
	}
	if !strings.Contains(s.leased(is), c.NetworkSettings.Networks["net"].MacAddress) {
		t.Errorf("the server has %q\n%s", s.leased(is), s.log())
	}
	docker(t, "restart", "-t", "0", "web")
	if a := inspect(t, "web").addrs("net"); a[0] != is {
		t.Errorf("restarted, it has %v, not %s", a, is)
	}
	b.tidy()
	quiet(t)
}
