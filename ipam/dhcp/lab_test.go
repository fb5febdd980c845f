package dhcp

import (
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

// process is a program that runs in a namespace.
type process struct {
	*exec.Cmd
	t    testing.TB
	done chan struct{}
	said nstest.Words
}

func (s *space) start(name string, args ...string) *process {
	s.T.Helper()
	return s.startIn(nil, name, args...)
}

// startIn starts a program with more in its environment.
func (s *space) startIn(env []string, name string, args ...string) *process {
	s.T.Helper()
	p := &process{Cmd: exec.Command(name, args...), t: s.T, done: make(chan struct{})}
	p.Env = append(os.Environ(), env...)
	p.Stdout, p.Stderr = &p.said, &p.said
	var err error
	s.Run(func() { err = p.Cmd.Start() })
	if err != nil {
		s.T.Fatal(err)
	}
	go func() { _ = p.Wait(); close(p.done) }()
	s.T.Cleanup(p.stop)
	return p
}

func (p *process) stop() {
	_ = p.Process.Kill()
	<-p.done
}

// count is how often the program has said something.
func (p *process) count(what string) int { return strings.Count(p.said.String(), what) }

func eventually(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

const serverAddr = "10.77.0.1"

// dnsmasq starts a server with 10.77.0.1/24 and the range of 100 to 250.
func (s *space) dnsmasq(dir string, args ...string) *process {
	s.T.Helper()
	path, err := exec.LookPath("dnsmasq")
	if err != nil {
		if _, err = os.Stat("/usr/sbin/dnsmasq"); err != nil {
			nstest.Lack(s.T, "dnsmasq (Debian: dnsmasq-base)")
		}
		path = "/usr/sbin/dnsmasq"
	}
	p := s.start(path, append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--group=",
		"--log-facility=-", "--log-dhcp", "--interface=eth0", "--bind-interfaces", "--no-ping",
		"--dhcp-leasefile=" + filepath.Join(dir, "leases"), "--pid-file=", "--dhcp-authoritative",
	}, args...)...)
	eventually(s.T, "dnsmasq starts", 10*time.Second, func() bool {
		select {
		case <-p.done:
			s.T.Fatalf("dnsmasq: %s", p.said.String())
		default:
		}
		return p.count("started, version") > 0
	})
	return p
}

// host is a Docker host whose eth0 goes to another namespace's eth0.
func pair(t testing.TB) (host, server *space) {
	t.Helper()
	host, server = newSpace(t), newSpace(t)
	host.IP(fmt.Sprintf("link add eth0 type veth peer name eth0 netns %d", server.TID), "link set eth0 up")
	server.IP("link set eth0 up", "addr add "+serverAddr+"/24 dev eth0")
	return host, server
}

// here is a wire whose link is another namespace's.
type here struct {
	wire
	s *space
}

// Alive is the wire's.
func (h here) Alive() (ok bool) {
	h.s.Run(func() { ok = h.wire.Alive() })
	return
}

// client is a Client of a namespace, and what it told.
type client struct {
	*Client
	then func(Event)

	mu     sync.Mutex
	events []Event
}

func (s *space) client(cfg Config) *client {
	c := &client{}
	cfg.Log = logrus.New()
	cfg.Told = c.take
	c.Client = start(cfg, func(link string) (w wire, err error) {
		s.Run(func() { w, err = openSocket(link) })
		if err != nil {
			return nil, err
		}
		return here{w, s}, nil
	})
	s.T.Cleanup(c.Close)
	return c
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

func hw(n int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x77, 0, 0, byte(n >> 8), byte(n)}
}

func (c *client) acquire(t testing.TB, ask Ask) Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l, err := c.Acquire(ctx, ask)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestDnsmasq: a lease's way with a server of that make.
func TestDnsmasq(t *testing.T) {
	host, srv := pair(t)
	d := srv.dnsmasq(t.TempDir(), "--dhcp-range=10.77.0.100,10.77.0.250,120", "--dhcp-option=option:mtu,1400",
		"--dhcp-option=option:classless-static-route,10.99.0.0/16,10.77.0.9,0.0.0.0/0,10.77.0.1",
		"--dhcp-option=option:domain-search,a.example,b.example", "--domain=example.org", "--dhcp-option=option:dns-server,10.77.0.53")
	c := host.client(Config{})
	began := time.Now()
	l := c.acquire(t, Ask{Key: "a", Link: "eth0", MAC: hw(1), Hostname: "web"})
	t.Logf("%s after %s: %+v", l.Addr, time.Since(began), l)
	if !netip.MustParsePrefix("10.77.0.0/24").Contains(l.Addr.Addr()) || l.Addr.Bits() != 24 || l.MTU != 1400 ||
		len(l.Routes) != 2 || len(l.Routers) != 0 || len(l.Search) != 2 || l.Domain != "example.org" || l.Server.String() != serverAddr {
		t.Errorf("%+v", l)
	}

	// A container on it; the answers to its renewals are the macvlan link's.
	host.IP("link add link eth0 name c1 address "+hw(1).String()+" type macvlan mode bridge", "link set c1 up", "addr add "+l.Addr.String()+" dev c1")
	acks := d.count("DHCPACK")
	force(c, "a", renewing)
	eventually(t, "a renewal by unicast", 5*time.Second, func() bool { return c.told(Renewed) == 1 })
	if n := d.count("DHCPACK"); n != acks+1 {
		t.Errorf("%d ACKs for a renewal:\n%s", n-acks, d.said.String())
	}
	force(c, "a", rebinding)
	eventually(t, "a rebinding", 10*time.Second, func() bool { return c.told(Renewed) == 2 })

	// No container: what is answered by unicast reaches nobody.
	host.IP("link del c1")
	srv.IP("neigh flush dev eth0")
	force(c, "a", rebinding)
	eventually(t, "a rebinding with nobody up", 20*time.Second, func() bool { return c.told(Renewed) == 3 })

	c.Forget("a")
	again := c.acquire(t, Ask{Key: "a", Link: "eth0", MAC: hw(1), Hostname: "web", Previous: &l})
	if again.Addr != l.Addr {
		t.Errorf("%s after %s", again.Addr, l.Addr)
	}
	c.Release("a")
	eventually(t, "a release", 5*time.Second, func() bool { return d.count("DHCPRELEASE(eth0) "+l.Addr.Addr().String()) == 1 })
	if t.Failed() {
		t.Log(d.said.String())
	}
}

// force lets a lease be in a state that it would reach later.
func force(c *client, key string, s state) {
	c.Client.mu.Lock()
	defer c.leave()
	now := time.Now()
	l := c.leases[key]
	l.Renew = now.Add(-time.Second)
	if s == rebinding {
		l.Rebind, l.Expires = now, now.Add(12*time.Second)
	}
	c.due(l, now)
}
