package dhcp6

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// space is a network namespace.
type space struct{ *nstest.Space }

func newSpace(t testing.TB) *space {
	t.Helper()
	return &space{nstest.NewSpace(t)}
}

// command runs a program to its end.
func (s *space) command(name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	var err error
	s.Run(func() { err = c.Start() })
	if err == nil {
		err = c.Wait()
	}
	return b.String(), err
}

// mac is eth0's.
func (s *space) mac() net.HardwareAddr {
	s.T.Helper()
	out, err := s.command("ip", "-o", "link", "show", "dev", "eth0")
	_, m, ok := strings.Cut(out, "link/ether ")
	if err != nil || !ok {
		s.T.Fatalf("eth0 without a MAC: %v: %s", err, out)
	}
	return mustMAC(strings.Fields(m)[0])
}

// process is a program that runs in a namespace.
type process struct {
	*exec.Cmd
	done chan struct{}
	said nstest.Words
}

// count is how often the program has said something.
func (p *process) count(what string) int { return strings.Count(p.said.String(), what) }

// start starts a program, and waits until it says that it is ready.
func (s *space) start(ready string, env []string, name string, args ...string) *process {
	s.T.Helper()
	p := &process{Cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.Stdout, p.Stderr = &p.said, &p.said
	p.Env = append(os.Environ(), env...)
	var err error
	s.Run(func() { err = p.Start() })
	if err != nil {
		s.T.Fatal(err)
	}
	go func() { _ = p.Wait(); close(p.done) }()
	s.T.Cleanup(func() {
		p.stop()
		if s.T.Failed() {
			s.T.Logf("%s: %s", name, p.said.String())
		}
	})
	s.eventually(filepath.Base(name)+" starts", 10*time.Second, func() bool {
		select {
		case <-p.done:
			s.T.Fatalf("%s: %s", name, p.said.String())
		default:
		}
		return p.count(ready) > 0
	})
	return p
}

func (p *process) stop() {
	_ = p.Process.Kill()
	<-p.done
}

func (s *space) eventually(what string, within time.Duration, ok func() bool) {
	s.T.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.T.Fatalf("not within %s: %s", within, what)
		}
	}
}

// lan is a switch.
type lan struct {
	*space
	ports int
}

func newLAN(t testing.TB) *lan {
	t.Helper()
	l := &lan{space: newSpace(t)}
	l.IP("link add br0 type bridge mcast_snooping 0", "link set br0 up")
	return l
}

// host plugs a new host in. Its eth0 is up.
func (l *lan) host(addrs ...string) *space {
	l.T.Helper()
	h := newSpace(l.T)
	l.ports++
	port := fmt.Sprintf("port%d", l.ports)
	l.IP(fmt.Sprintf("link add %s type veth peer name eth0 netns %d", port, h.TID), "link set "+port+" master br0 up")
	h.Set("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
	h.IP("link set eth0 up")
	for _, a := range addrs {
		h.IP("addr add " + a + " dev eth0 nodad")
	}
	h.running()
	return h
}

// running waits until eth0 carries frames, and its link-local address may be used.
func (s *space) running() {
	s.T.Helper()
	s.eventually("eth0 running", 10*time.Second, func() bool {
		out, _ := s.command("ip", "addr", "show", "dev", "eth0")
		return strings.Contains(out, "state UP") && strings.Contains(out, "inet6 fe80") && !strings.Contains(out, "tentative")
	})
}

// client is a Client on the host, with what it was told.
type client struct {
	*Client
	mu     sync.Mutex
	events []Event
}

func (c *client) told(what What) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.What == what {
			n++
		}
	}
	return n
}

func (s *space) client() *client {
	c := &client{}
	log := logrus.New()
	log.SetOutput(s.T.Output())
	log.SetLevel(logrus.DebugLevel)
	c.Client = New(Config{Log: log, Told: func(e Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.events = append(c.events, e)
	}})
	c.open = func(link string, all bool, hear func([]byte, netip.Addr), over func(wire, error)) (wire, error) {
		inner := inside{space: s}
		var err error
		var w wire
		s.Run(func() {
			w, err = openTap(link, all, hear, func(_ wire, err error) { over(inner.self, err) })
		})
		if err != nil {
			return nil, err
		}
		inner.wire = w
		inner.self = &inner
		return &inner, nil
	}
	s.T.Cleanup(c.Close)
	return c
}

// inside is a wire of another namespace.
type inside struct {
	wire
	space *space
	self  *inside
}

func (i *inside) sound() (err error) {
	i.space.Run(func() { err = i.wire.sound() })
	return err
}

func (c *client) must(t testing.TB, a Ask) Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l, err := c.Acquire(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const serverAddr = "2001:db8:77::1"

func find(t testing.TB, name, debian string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin/", "/usr/local/sbin/"} {
		if _, err := os.Stat(dir + name); err == nil {
			return dir + name
		}
	}
	nstest.Lack(t, name+" (Debian: "+debian+")")
	return ""
}

// dnsmasq starts a server with a range of 256, or that of args.
func (s *space) dnsmasq(args ...string) *process {
	s.T.Helper()
	path := find(s.T, "dnsmasq", "dnsmasq-base")
	return s.start("sockets bound exclusively", nil, path, append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--group=",
		"--log-facility=-", "--log-dhcp", "--interface=eth0", "--bind-interfaces",
		"--dhcp-leasefile=" + filepath.Join(s.T.TempDir(), "leases"), "--pid-file=",
		"--dhcp-range=2001:db8:77::100,2001:db8:77::1ff,64,2m",
		"--dhcp-option=option6:dns-server,[2001:db8:77::53]", "--dhcp-option=option6:domain-search,lan.example",
	}, args...)...)
}

// kea starts a server with a range of 256 and lifetimes of 30 s, renewed after
// 3 s, rebound after 6 s; more goes into the subnet.
func (s *space) kea(more string) *process { return s.keaSaying("DEBUG", more) }

// keaSaying starts one that logs what is of a severity at least: to say each packet
// costs it more than to answer.
func (s *space) keaSaying(severity, more string) *process {
	s.T.Helper()
	path := find(s.T, "kea-dhcp6", "kea-dhcp6-server")
	dir := s.T.TempDir()
	config := filepath.Join(dir, "kea.conf")
	if err := os.WriteFile(config, []byte(`{"Dhcp6": {
		"interfaces-config": {"interfaces": ["eth0"]}, "data-directory": "`+dir+`",
		"lease-database": {"type": "memfile", "persist": false},
		"preferred-lifetime": 30, "valid-lifetime": 30, "renew-timer": 3, "rebind-timer": 6,
		"option-data": [{"name": "dns-servers", "data": "2001:db8:77::53"}, {"name": "domain-search", "data": "lan.example"}],
		"subnet6": [{"id": 1, "subnet": "2001:db8:77::/64", "interface": "eth0",
			"pools": [{"pool": "2001:db8:77::100-2001:db8:77::1ff"}]`+more+`}],
		"loggers": [{"name": "kea-dhcp6", "severity": "`+severity+`", "debuglevel": 55, "output_options": [{"output": "stdout"}]}]
	}}`), 0o600); err != nil {
		s.T.Fatal(err)
	}
	return s.start("DHCP6_STARTED", []string{"KEA_DHCP_DATA_DIR=" + dir, "KEA_PIDFILE_DIR=" + dir, "KEA_LOCKFILE_DIR=none", "KEA_LOGGER_DESTINATION=stdout"},
		path, "-c", config)
}

// container makes a running container: a macvlan link of the host's eth0.
func (s *space) container(a Ask, addr netip.Addr) *space {
	s.T.Helper()
	c := newSpace(s.T)
	s.IP(fmt.Sprintf("link add link eth0 name child%d address %s type macvlan mode bridge", c.TID, a.MAC),
		fmt.Sprintf("link set child%d netns %d name eth0", c.TID, c.TID))
	c.Set("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
	c.IP("link set eth0 up", fmt.Sprintf("addr add %s/64 dev eth0 nodad", addr))
	return c
}

func mustMAC(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}
