package probe

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/net/bpf"

	"underlay/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// space is a network namespace.
type space struct{ *nstest.Space }

func newSpace(t testing.TB) *space {
	t.Helper()
	return &space{nstest.NewSpace(t)}
}

func (s *space) kernel() kernel {
	h := host()
	return kernel{
		find: func(name string) (ifi *net.Interface, err error) {
			s.Run(func() { ifi, err = h.find(name) })
			return
		},
		open: func(ifi *net.Interface, protocol int, filter []bpf.RawInstruction) (c *packet.Conn, err error) {
			s.Run(func() { c, err = h.open(ifi, protocol, filter) })
			return
		},
		roll: func() (fd int, err error) {
			s.Run(func() { fd, err = h.roll() })
			return
		},
	}
}

func (s *space) mac(link string) net.HardwareAddr {
	s.T.Helper()
	ifi, err := s.kernel().find(link)
	if err != nil {
		s.T.Fatal(err)
	}
	return ifi.HardwareAddr
}

// prober is a Prober of this host, with what it heard and logged.
type prober struct {
	*Prober
	log *test.Hook

	mu    sync.Mutex
	heard []Sighting
}

func (s *space) prober() *prober {
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	p := &prober{log: hook}
	p.Prober = New(log, func(s Sighting) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.heard = append(p.heard, s)
	})
	p.kernel = s.kernel()
	s.T.Cleanup(p.Close)
	return p
}

// saw says whether such a sighting was told, and how often.
func (p *prober) saw(want Sighting) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.heard {
		if s.Link == want.Link && s.Addr == want.Addr && s.MAC.String() == want.MAC.String() && s.Claim == want.Claim {
			n++
		}
	}
	return n
}

// lan is a switch.
type lan struct {
	*space
	ports int
}

func newLAN(t testing.TB) *lan {
	t.Helper()
	l := &lan{space: newSpace(t)}
	if err := l.Try("link add br0 type bridge mcast_snooping 0", "link set br0 up"); err != nil {
		nstest.Lack(t, "bridges")
	}
	return l
}

// host plugs a new host in. Its eth0 is up, and has no IPv6 of its own unless
// it is given some.
func (l *lan) host(addrs ...string) *space {
	l.T.Helper()
	h := newSpace(l.T)
	l.plug(h, "eth0")
	for _, a := range addrs {
		suffix := ""
		if strings.Contains(a, ":") {
			suffix = " nodad"
		}
		h.IP("addr add " + a + " dev eth0" + suffix)
	}
	return h
}

func (l *lan) plug(h *space, name string) {
	l.T.Helper()
	l.ports++
	port := fmt.Sprintf("port%d", l.ports)
	l.IP(
		fmt.Sprintf("link add %s type veth peer name %s netns %d", port, name, h.TID),
		"link set "+port+" master br0 up",
	)
	h.IP("link set " + name + " up")
	h.running(name)
}

// running waits until a link has carrier: the kernel is told of that late.
func (s *space) running(link string) {
	s.T.Helper()
	eventually(s.T, link+" running", func() bool {
		ifi, err := s.kernel().find(link)
		return err == nil && ifi.Flags&net.FlagRunning != 0
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func addrs(s ...string) (all []netip.Addr) {
	for _, a := range s {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

// output is what "ip" says.
func (s *space) output(args ...string) string {
	var out []byte
	s.Run(func() { out, _ = exec.Command("ip", args...).CombinedOutput() })
	return string(out)
}

// bridge is what "bridge" says.
func (s *space) bridge(args ...string) string {
	var out []byte
	s.Run(func() { out, _ = exec.Command("bridge", args...).CombinedOutput() })
	return string(out)
}
