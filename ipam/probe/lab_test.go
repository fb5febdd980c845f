package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"underlay/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("UNDERLAY_NO_SKIP") != "" {
		t.Fatalf("kernel lacks %s, and UNDERLAY_NO_SKIP is set", what)
	}
	t.Skipf("kernel lacks %s", what)
}

// space is a network namespace: a thread that never leaves it.
type space struct {
	t   testing.TB
	tid int
	do  chan func()
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t, do: make(chan func())}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		s.tid = unix.Gettid()
		failed <- nil
		for f := range s.do {
			f()
		}
	}()
	if err := <-failed; errors.Is(err, unix.EPERM) {
		lack(t, "leave to make a netns")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(s.do) })
	s.ip("link set lo up")
	return s
}

// run runs f in the namespace.
func (s *space) run(f func()) {
	done := make(chan struct{})
	s.do <- func() { defer close(done); f() }
	<-done
}

// try runs lines of "ip", all or up to the first that fails.
func (s *space) try(lines ...string) error {
	var err error
	s.run(func() {
		c := exec.Command("ip", "-batch", "-")
		c.Stdin = strings.NewReader(strings.Join(lines, "\n"))
		var out []byte
		if out, err = c.CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	})
	return err
}

func (s *space) ip(lines ...string) {
	s.t.Helper()
	if err := s.try(lines...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) write(path, value string) {
	s.t.Helper()
	var err error
	// /proc/sys/net shows the netns of the thread that opens it.
	s.run(func() { err = os.WriteFile(path, []byte(value), 0) })
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) kernel() kernel {
	h := host()
	return kernel{
		find: func(name string) (ifi *net.Interface, err error) {
			s.run(func() { ifi, err = h.find(name) })
			return
		},
		open: func(ifi *net.Interface, protocol int, filter []bpf.RawInstruction) (c *packet.Conn, err error) {
			s.run(func() { c, err = h.open(ifi, protocol, filter) })
			return
		},
		roll: func() (fd int, err error) {
			s.run(func() { fd, err = h.roll() })
			return
		},
	}
}

func (s *space) mac(link string) net.HardwareAddr {
	s.t.Helper()
	ifi, err := s.kernel().find(link)
	if err != nil {
		s.t.Fatal(err)
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
	s.t.Cleanup(p.Close)
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
	if err := l.try("link add br0 type bridge mcast_snooping 0", "link set br0 up"); err != nil {
		lack(t, "bridges")
	}
	return l
}

// host plugs a new host in. Its eth0 is up, and has no IPv6 of its own unless
// it is given some.
func (l *lan) host(addrs ...string) *space {
	l.t.Helper()
	h := newSpace(l.t)
	l.plug(h, "eth0")
	for _, a := range addrs {
		suffix := ""
		if strings.Contains(a, ":") {
			suffix = " nodad"
		}
		h.ip("addr add " + a + " dev eth0" + suffix)
	}
	return h
}

func (l *lan) plug(h *space, name string) {
	l.t.Helper()
	l.ports++
	port := fmt.Sprintf("port%d", l.ports)
	l.ip(
		fmt.Sprintf("link add %s type veth peer name %s netns %d", port, name, h.tid),
		"link set "+port+" master br0 up",
	)
	h.ip("link set " + name + " up")
	h.running(name)
}

// running waits until a link has carrier: the kernel is told of that late.
func (s *space) running(link string) {
	s.t.Helper()
	eventually(s.t, link+" running", func() bool {
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
	s.run(func() { out, _ = exec.Command("ip", args...).CombinedOutput() })
	return string(out)
}

// bridge is what "bridge" says.
func (s *space) bridge(args ...string) string {
	var out []byte
	s.run(func() { out, _ = exec.Command("bridge", args...).CombinedOutput() })
	return string(out)
}
