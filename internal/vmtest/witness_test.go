//go:build vm

package vmtest

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// witness watches that host access is nobody else's business: whatever comes
// and goes, the LAN finds the Docker host's addresses at the NIC's MAC and gets
// its answers, and the host keeps its default routes.
type witness struct {
	b    *test
	nic  string // MAC
	wire *capture
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	routes  string
	wrong   []string
	rounds  int
	changes int
}

// witness watches until the test's end, or end.
func (b *test) witness() *witness {
	b.Helper()
	w := &witness{b: b, nic: links(b.T, "")["eth0"].MAC, stop: make(chan struct{})}
	w.routes = defaults()
	if w.routes == "" {
		b.Fatal("the Docker host has no default routes: nothing would be shown")
	}
	mine := []netip.Addr{netip.MustParseAddr(docker4), netip.MustParseAddr(docker6)}
	// All that the Docker host says to the LAN comes by here, whoever it is for.
	w.wire = listenAt(b.T, "switch", "nic0", func(_ *capture, f frame) {
		for _, a := range mine {
			if f.claims(a) && (f.ether != w.nic || f.mac != "" && f.mac != w.nic) {
				w.wrongly("on the wire: %v", f)
			}
		}
	})
	monitor := place("host1").command("ip", "-o", "monitor", "neigh")
	out, err := monitor.StdoutPipe()
	if err == nil {
		err = monitor.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	w.wg.Go(func() {
		mac := regexp.MustCompile(`lladdr ((..:){5}..)`)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			f := strings.Fields(lines.Text())
			if m := mac.FindStringSubmatch(lines.Text()); m != nil && (slices.Contains(f, docker4) || slices.Contains(f, docker6)) {
				w.mu.Lock()
				w.changes++
				w.mu.Unlock()
				if m[1] != w.nic {
					w.wrongly("host1 learned: %s", lines.Text())
				}
			}
		}
	})
	w.wg.Go(func() {
		for {
			select {
			case <-w.stop:
				monitor.Process.Kill()
				monitor.Wait()
				return
			case <-time.After(time.Second):
			}
			w.look()
		}
	})
	b.Cleanup(w.end)
	return w
}

// look asks once, as a machine that has just come to the LAN, as one that
// checks that nobody has its address, and as one that knows.
func (w *witness) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rounds++
	sh("host1", "ip neigh flush to "+docker4+"; ip neigh flush to "+docker6)
	for _, a := range []string{docker4, docker6} {
		if !ping("host1", a, 3*time.Second) && !ping("host1", a, 3*time.Second) {
			w.wrong = append(w.wrong, "host1 gets no answer from "+a)
		}
	}
	// RFC 5227: no sender, and so no arp_filter (net/ipv4/arp.c, arp_process).
	if out, err := place("host1").command("arping", "-D", "-c1", "-w2", "-I", "eth0", docker4).CombinedOutput(); err == nil {
		w.wrong = append(w.wrong, "nobody defends "+docker4+": "+string(out))
	}
	if is := defaults(); is != w.routes {
		w.wrong = append(w.wrong, fmt.Sprintf("the default routes were\n%sand are\n%s", w.routes, is))
	}
	for _, line := range shims() {
		if f := strings.Fields(line); len(f) > 3 && !strings.HasPrefix(f[3], "fe80:") && !strings.HasPrefix(f[3], "169.254.") {
			w.wrong = append(w.wrong, "an address too many: "+line)
		}
	}
}

func (w *witness) wrongly(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// aside does what the LAN cannot but notice, and undoes it.
func (w *witness) aside(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	err := wait(8*time.Second, "the default routes", func() error {
		if is := defaults(); is != w.routes {
			return errorf("they were\n%sand are\n%s", w.routes, is)
		}
		return nil
	})
	if err != nil {
		w.b.Error(err)
	}
}

func (w *witness) end() {
	if w.wire == nil {
		return
	}
	close(w.stop)
	w.wg.Wait()
	w.wire.stop()
	w.wire = nil
	slices.Sort(w.wrong)
	w.wrong = slices.Compact(w.wrong)
	if len(w.wrong) > 0 {
		w.b.Errorf("seen from the LAN (%s is the NIC's MAC):\n%s", w.nic, strings.Join(w.wrong[:min(len(w.wrong), 20)], "\n"))
	}
	if w.rounds > 3 && w.changes < w.rounds {
		w.b.Errorf("host1 found the Docker host %d times in %d rounds: nothing is shown", w.changes, w.rounds)
	}
}

// defaults are the host's default routes.
func defaults() string {
	out, _ := sh("", "ip -o route show default; ip -o -6 route show default")
	out = regexp.MustCompile(`(?m) *(expires \S+| linkdown| dead)| +$`).ReplaceAllString(out, "")
	lines := strings.SplitAfter(out, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// shims are the addresses of the links that give host access.
func shims() []string {
	out, _ := sh("", "ip -o addr")
	var found []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, " ulh") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// shimCount is how many links give host access.
func shimCount(t *testing.T) int {
	n := 0
	for name := range links(t, "") {
		if strings.HasPrefix(name, "ulh") {
			n++
		}
	}
	return n
}

const slaac = "fd00:50:a::/64"

// advertise has the router send router advertisements (RFC 4861 section 4.2)
// with a prefix for addresses until the test's end. The Docker host, although
// it forwards, is one that listens.
func (b *test) advertise() {
	b.Helper()
	b.sysctl("net.ipv6.conf.eth0.accept_ra=2", "net.ipv6.conf.default.accept_ra=2")
	var nic *net.Interface
	var conn *packet.Conn
	err := within("router", func() (err error) {
		if nic, err = net.InterfaceByName("eth0"); err == nil {
			conn, err = packet.Listen(nic, packet.Raw, unix.ETH_P_ALL, nil)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	prefix := netip.MustParsePrefix(slaac)
	all := netip.MustParseAddr("ff02::1").AsSlice()
	from := linkLocal(b.T, "router").AsSlice()
	icmp := slices.Concat([]byte{134, 0, 0, 0, 64, 0, 0, 120, 0, 0, 0, 0, 0, 0, 0, 0},
		[]byte{1, 1}, nic.HardwareAddr,
		[]byte{3, 4, 64, 0xc0, 0, 0, 0, 120, 0, 0, 0, 120, 0, 0, 0, 0}, prefix.Addr().AsSlice())
	sum := 0
	for k, v := range slices.Concat(from, all, []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6}, icmp) {
		sum += int(v) << (8 * (1 - k%2))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	icmp[2], icmp[3] = ^byte(sum>>8), ^byte(sum)
	ra := slices.Concat(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, nic.HardwareAddr, []byte{0x86, 0xdd},
		[]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}, from, all, icmp)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn.WriteTo(ra, &packet.Addr{HardwareAddr: net.HardwareAddr(ra[:6])})
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Second):
			}
		}
	}()
	b.Cleanup(func() {
		close(stop)
		<-done
		conn.Close()
		do(b.T, "", "ip -6 addr flush dev eth0 to "+slaac+"; ip -6 route flush dev eth0 proto ra; ip -6 route flush to "+slaac)
	})
	err = wait(10*time.Second, "router advertisements", func() error {
		if out := defaults(); !strings.Contains(out, "proto ra") {
			return errorf("the Docker host has the default routes\n%s", out)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// linkLocal is the IPv6 link-local address of a machine's eth0.
func linkLocal(t *testing.T, p place) netip.Addr {
	t.Helper()
	for _, a := range links(t, p)["eth0"].Addrs {
		if addr := netip.MustParseAddr(a.Local); addr.Is6() && addr.IsLinkLocalUnicast() {
			return addr
		}
	}
	t.Fatalf("%s has no link-local address", p)
	return netip.Addr{}
}

// sysctl makes settings until the test's end.
func (b *test) sysctl(settings ...string) {
	b.Helper()
	var before []string
	for _, s := range settings {
		key, _, _ := strings.Cut(s, "=")
		before = append(before, key+"="+trimmed("/proc/sys/"+strings.ReplaceAll(key, ".", "/")))
	}
	set(b.T, settings...)
	b.Cleanup(func() { set(b.T, before...) })
}

func set(t *testing.T, settings ...string) {
	t.Helper()
	if out, err := exec.Command("sysctl", append([]string{"-qw"}, settings...)...).CombinedOutput(); err != nil {
		t.Fatalf("sysctl %v: %v: %s", settings, err, out)
	}
}
