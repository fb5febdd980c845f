package dhcp

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	pack "github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"underlay/internal/nic"
	"underlay/internal/nstest"
)

// kea starts that server, with the same range as dnsmasq.
func (s *space) kea(dir string, seconds int) *process {
	s.T.Helper()
	const path = "/usr/sbin/kea-dhcp4"
	if _, err := os.Stat(path); err != nil {
		nstest.Lack(s.T, "kea-dhcp4 (Debian: kea-dhcp4-server)")
	}
	config := map[string]any{"Dhcp4": map[string]any{
		"interfaces-config": map[string]any{"interfaces": []string{"eth0"}},
		"lease-database":    map[string]any{"type": "memfile", "persist": false},
		"valid-lifetime":    seconds,
		"authoritative":     true,
		"subnet4": []any{map[string]any{
			"id": 1, "subnet": "10.77.0.0/24", "pools": []any{map[string]any{"pool": "10.77.0.100 - 10.77.0.250"}},
			"option-data": []any{
				map[string]any{"name": "routers", "data": serverAddr},
				map[string]any{"name": "domain-name-servers", "data": "10.77.0.53"},
				map[string]any{"name": "domain-search", "data": "a.example, b.example"},
			},
		}},
		"loggers": []any{map[string]any{"name": "kea-dhcp4", "severity": "INFO",
			"output_options": []any{map[string]any{"output": "stdout"}}}},
	}}
	b, err := json.Marshal(config)
	if err != nil {
		s.T.Fatal(err)
	}
	file := filepath.Join(dir, "kea.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		s.T.Fatal(err)
	}
	p := s.startIn([]string{"KEA_LOCKFILE_DIR=none", "KEA_PIDFILE_DIR=" + dir}, path, "-c", file)
	eventually(s.T, "kea starts", 20*time.Second, func() bool {
		select {
		case <-p.done:
			s.T.Fatalf("kea: %s", p.said.String())
		default:
		}
		return p.count("DHCP4_STARTED") > 0
	})
	return p
}

// makes are the servers of which each test is run with.
var makes = []struct {
	name    string
	start   func(s *space, dir string) *process
	release string // what that is called in its log
}{
	{"dnsmasq", func(s *space, dir string) *process {
		return s.dnsmasq(dir, "--dhcp-range=10.77.0.100,10.77.0.250,120", "--dhcp-option=option:dns-server,10.77.0.53",
			"--dhcp-option=option:domain-search,a.example,b.example")
	}, "DHCPRELEASE"},
	{"kea", func(s *space, dir string) *process { return s.kea(dir, 60) }, "DHCP4_RELEASE "},
}

// TestServers: what every make of server must do alike.
func TestServers(t *testing.T) {
	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) {
			host, srv := pair(t)
			dir := t.TempDir()
			d := m.start(srv, dir)
			defer func() {
				if t.Failed() {
					t.Log(d.said.String())
				}
			}()
			thief := netip.Addr{}
			c := host.client(Config{Check: func(_ context.Context, _ string, a netip.Addr, _ net.HardwareAddr) (net.HardwareAddr, error) {
				if !thief.IsValid() {
					thief = a
				}
				if a == thief {
					return hw(99), nil
				}
				return nil, nil
			}})

			terms, err := c.Discover(t.Context(), Ask{Key: "net", Link: "eth0", MAC: hw(50)})
			if err != nil || terms.Addr.Masked().String() != "10.77.0.0/24" {
				t.Fatal(terms, err)
			}
			// The first address is in use, so that another is taken.
			began := time.Now()
			l := c.acquire(t, Ask{Key: "1", Link: "eth0", MAC: hw(1)})
			t.Logf("%s in %s, %s declined", l.Addr, time.Since(began).Round(time.Microsecond), thief)
			if l.Addr.Addr() == thief || l.Routers[0].String() != serverAddr || l.DNS[0].String() != "10.77.0.53" || len(l.Search) != 2 {
				t.Errorf("%+v", l)
			}

			// The address that is asked for; one that another has.
			ask := Ask{Key: "2", Link: "eth0", MAC: hw(2), Want: netip.MustParseAddr("10.77.0.200")}
			if l := c.acquire(t, ask); l.Addr.Addr() != ask.Want {
				t.Errorf("%s for %s", l.Addr, ask.Want)
			}
			ask = Ask{Key: "3", Link: "eth0", MAC: hw(3), Want: ask.Want}
			if _, err := c.try(10*time.Second, ask); err == nil || !strings.Contains(err.Error(), "dhcp server 10.77.0.1 offers 10.77.0.") {
				t.Error(err)
			}

			// Renewed by unicast while a macvlan link has MAC and address.
			host.IP("link add link eth0 name c1 address "+hw(1).String()+" type macvlan mode bridge", "link set c1 up", "addr add "+l.Addr.String()+" dev c1")
			force(c, "1", renewing)
			eventually(t, "a renewal by unicast", 5*time.Second, func() bool { return c.told(Renewed) == 1 })
			force(c, "1", rebinding)
			eventually(t, "a rebinding", 15*time.Second, func() bool { return c.told(Renewed) == 2 })
			host.IP("link del c1")

			// Restored after a restart of the plugin, and overdue.
			leases := c.Leases()
			for i := range leases {
				leases[i].Renew = time.Now().Add(-time.Second)
			}
			c.Close()
			c = host.client(Config{})
			if err := c.Restore(leases); err != nil {
				t.Fatal(err)
			}

			// Released, the address is another's if that asks for it.
			c.Release("2")
			eventually(t, "a release", 5*time.Second, func() bool { return d.count(m.release) > 0 })
			if l := c.acquire(t, ask); l.Addr.Addr() != ask.Want {
				t.Errorf("%s for %s", l.Addr, ask.Want)
			}

			// INIT-REBOOT with what another has by now is refused, and another is given.
			prev := leases[1]
			began = time.Now()
			if again := c.acquire(t, Ask{Key: "2", Link: "eth0", MAC: hw(2), Previous: &prev}); again.Addr == prev.Addr {
				t.Errorf("%s again", again.Addr)
			}
			if d := time.Since(began); d > reboots*first/4 {
				t.Errorf("after %s: it was not refused, but not answered", d)
			}
			// With what is its own.
			c.Forget("1")
			if again := c.acquire(t, Ask{Key: "1", Link: "eth0", MAC: hw(1), Previous: &l}); again.Addr != l.Addr {
				t.Errorf("%s, not %s again", again.Addr, l.Addr)
			}
		})
	}
}

// TestRealTime: leases of twelve seconds, each with a macvlan link of its own; the
// server goes away, and comes back without its memory.
func TestRealTime(t *testing.T) {
	t.Parallel() // it mostly waits
	const many = 20
	host, srv := pair(t)
	dir := t.TempDir()
	d := srv.kea(dir, 12)
	c := host.client(Config{})
	had := map[string]netip.Prefix{}
	for i := range many {
		l := c.acquire(t, Ask{Key: fmt.Sprint(i), Link: "eth0", MAC: hw(i)})
		had[l.Key] = l.Addr
		link := fmt.Sprintf("c%d", i)
		host.IP(
			fmt.Sprintf("link add link eth0 name %s address %s type macvlan mode bridge", link, hw(i)),
			"link set "+link+" up", "addr add "+l.Addr.Addr().String()+"/32 dev "+link,
		)
	}
	eventually(t, "two renewals each", 30*time.Second, func() bool { return c.told(Renewed) >= 2*many })
	if n := c.told(Late) + c.told(Lost) + c.told(Changed); n > 0 {
		t.Errorf("%d troubles", n)
	}
	began := time.Now()
	d.stop()
	eventually(t, "all lost", 30*time.Second, func() bool { return c.told(Lost) == many })
	lost := time.Since(began)
	began = time.Now()
	srv.kea(dir, 12)
	eventually(t, "all back", 30*time.Second, func() bool { return c.told(Changed) == many })
	t.Logf("server away: all lost after %s; back: all have a lease after %s", lost.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	for _, l := range c.Leases() {
		if l.Addr != had[l.Key] {
			t.Errorf("%s had %s, has %s", l.Key, had[l.Key], l.Addr)
		}
	}
	if n := c.told(Late); n != many {
		t.Errorf("%d were told to be late", n)
	}
}

// TestShared: containers on ipvlan links have one MAC, and an address each.
func TestShared(t *testing.T) {
	host, srv := pair(t)
	d := srv.dnsmasq(t.TempDir(), "--dhcp-range=10.77.0.100,10.77.0.250,120")
	defer func() {
		if t.Failed() {
			t.Log(d.said.String())
		}
	}()
	c := host.client(Config{})
	mac := host.mac("eth0")
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	for i := range 10 {
		wg.Go(func() {
			l, err := c.try(10*time.Second, Ask{Key: fmt.Sprint(i), Link: "eth0", MAC: mac, ClientID: append([]byte{0}, fmt.Sprintf("c%d", i)...)})
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[l.Addr.Addr()] {
				t.Errorf("%s, %v", l.Addr, err)
			}
			seen[l.Addr.Addr()] = true
		})
	}
	wg.Wait()
	// Nine without turns. On a busy machine a turn may be over before its answer is there.
	if n := d.count("DHCPNAK"); n > 3 {
		t.Errorf("%d NAKs: they do not take turns", n)
	}
	if host.Try("link add link eth0 name i0 type ipvlan mode l2") != nil {
		nstest.Lack(t, "ipvlan in the kernel")
	}
	l := c.Leases()[0]
	host.IP("link set i0 up", "addr add "+l.Addr.String()+" dev i0")
	force(c, "0", renewing)
	eventually(t, "a renewal by unicast", 5*time.Second, func() bool { return c.told(Renewed) == 1 })
}

// TestRelay: the server is in another subnet. Its answers come by the relay, and
// renewals go there by the router, which is the same machine here.
func TestRelay(t *testing.T) {
	host, relay := pair(t)
	srv := newSpace(t)
	relay.IP(fmt.Sprintf("link add eth1 type veth peer name eth0 netns %d", srv.TID), "link set eth1 up", "addr add 10.88.0.2/24 dev eth1")
	srv.IP("link set eth0 up", "addr add 10.88.0.1/24 dev eth0", "route add 10.77.0.0/24 via 10.88.0.2")
	relay.Run(func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			t.Error(err)
		}
	})
	d := srv.dnsmasq(t.TempDir(), "--dhcp-range=10.77.0.100,10.77.0.250,255.255.255.0,120", "--dhcp-option=option:router,"+serverAddr)
	relay.dnsmasq(t.TempDir(), "--dhcp-relay="+serverAddr+",10.88.0.1", "--interface=eth1")
	c := host.client(Config{})
	l := c.acquire(t, Ask{Key: "1", Link: "eth0", MAC: hw(1)})
	if l.Server.String() != "10.88.0.1" || l.Routers[0].String() != serverAddr {
		t.Errorf("%+v", l)
	}
	host.IP("link add link eth0 name c1 address "+hw(1).String()+" type macvlan mode bridge", "link set c1 up", "addr add "+l.Addr.String()+" dev c1")
	// As in the container: its own answers have to find the way.
	host.IP("route replace default via " + serverAddr + " dev c1")
	force(c, "1", renewing)
	eventually(t, "a renewal by unicast", 5*time.Second, func() bool { return c.told(Renewed) == 1 })
	force(c, "1", rebinding)
	eventually(t, "a rebinding", 15*time.Second, func() bool { return c.told(Renewed) == 2 })
	c.Release("1")
	eventually(t, "a release", 5*time.Second, func() bool { return d.count("DHCPRELEASE") == 1 })
}

// TestVLAN: a server in a VLAN does not answer for the LAN, whether the VLAN has
// a link on this host or not; and its own are served.
func TestVLAN(t *testing.T) {
	host, srv := pair(t)
	if srv.Try("link add link eth0 name eth0.10 type vlan id 10") != nil {
		nstest.Lack(t, "802.1q in the kernel")
	}
	srv.IP("link set eth0.10 up", "addr del "+serverAddr+"/24 dev eth0", "addr add "+serverAddr+"/24 dev eth0.10")
	srv.dnsmasq(t.TempDir(), "--dhcp-range=10.77.0.100,10.77.0.250,120", "--interface=eth0.10")
	c := host.client(Config{})
	host.IP("link add link eth0 name eth0.10 type vlan id 10", "link set eth0.10 up")
	if l := c.acquire(t, Ask{Key: "1", Link: "eth0.10", MAC: hw(1)}); !l.Addr.IsValid() {
		t.Error(l)
	}
	if l, err := c.try(time.Second, Ask{Key: "2", Link: "eth0", MAC: hw(2)}); err == nil {
		t.Error(l)
	}
}

// TestFilter: only what could be an answer wakes the client.
func TestFilter(t *testing.T) {
	host, srv := pair(t)
	var w wire
	var err error
	host.Run(func() { w, err = openSocket("eth0") })
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var other wire
	srv.Run(func() { other, err = openSocket("eth0") })
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	good := reply(netip.MustParseAddr(serverAddr), make([]byte, headLen+60))
	tagged := func(vid byte) []byte {
		b := append([]byte{}, good[:12]...)
		return append(append(b, 0x81, 0, 0, vid), good[12:]...)
	}
	change := func(at int, to byte) []byte {
		b := append([]byte{}, good...)
		b[at] = to
		return b
	}
	for _, f := range [][]byte{
		tagged(10),
		change(12, 0x86),             // another protocol
		change(etherLen+9, 6),        // TCP
		change(etherLen+7, 1),        // a fragment
		change(etherLen+ipLen+3, 67), // to a server
		change(etherLen+ipLen+1, 68), // from a client
		frame(everyMAC, hw(1), everyAddr, netip.IPv4Unspecified(), make([]byte, 300)),
		change(5, 0xfe), // not for this host: taken, the MAC may be a container's
		tagged(0),       // a mere priority
		good,
	} {
		if err := other.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing of its own comes back.
	if err := w.Send(good); err != nil {
		t.Fatal(err)
	}
	heard := make(chan []byte)
	go func() {
		defer close(heard)
		for {
			b := make([]byte, maxFrame)
			n, err := w.Receive(b)
			if err != nil {
				return
			}
			heard <- b[:n]
		}
	}()
	for i := range 3 {
		select {
		case <-heard:
		case <-time.After(5 * time.Second):
			t.Fatalf("%d frames", i)
		}
	}
	select {
	case f := <-heard:
		t.Errorf("%x", f)
	case <-time.After(200 * time.Millisecond):
	}
	w.Close()
	<-heard
}

// TestUnicast: a server that answers by unicast, to a MAC that no link has yet.
func TestUnicast(t *testing.T) {
	host, srv := pair(t)
	var w wire
	var err error
	srv.Run(func() {
		var c *pack.Conn
		ifi, _ := nic.Find("eth0")
		if c, err = pack.Listen(ifi, pack.Raw, unix.ETH_P_IP, nil); err == nil {
			s := &socket{Conn: c}
			s.raw, err = c.SyscallConn()
			w = s
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(serverAddr, time.Hour)
	f.lan = newLAN(f)
	questions := 0
	f.raw = func(b []byte) [][]byte {
		// It hears nothing at first, so that it is asked again.
		if questions++; questions > 1 {
			copy(b, hw(1))
			_ = w.Send(b)
		}
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, maxFrame)
		for {
			n, err := w.Receive(b)
			if err != nil {
				return
			}
			if u := etherLen + ipLen + udpLen; n > u+headLen && b[etherLen+9] == udp && b[etherLen+ipLen+3] == serverPort {
				if m, err := dhcpv4.FromBytes(b[u:n]); err == nil {
					f.handle(question{to: everyAddr, m: m})
				}
			}
		}
	}()
	defer func() { w.Close(); <-done }()
	c := host.client(Config{})
	c.acquire(t, Ask{Key: "1", Link: "eth0", MAC: hw(1)})
	var out []byte
	host.Run(func() { out, _ = exec.Command("bridge", "fdb", "show", "dev", "eth0").CombinedOutput() })
	if !strings.Contains(string(out), hw(1).String()+" self") {
		t.Errorf("the NIC does not let %s in: %s", hw(1), out)
	}
}

// TestLinkComesBack: by its name, as another.
func TestLinkComesBack(t *testing.T) {
	host, srv := pair(t)
	srv.dnsmasq(t.TempDir(), "--dhcp-range=10.77.0.100,10.77.0.250,120")
	c := host.client(Config{})
	c.acquire(t, Ask{Key: "1", Link: "eth0", MAC: hw(1)})
	host.IP("link set eth0 name old", "link add eth0 type veth peer name other")
	host.IP("link del eth0", "link set old down")
	if _, err := c.try(time.Second, Ask{Key: "2", Link: "eth0", MAC: hw(2)}); err == nil || !strings.Contains(err.Error(), "eth0 is not there") {
		t.Error(err)
	}
	host.IP("link set old name eth0")
	if _, err := c.try(time.Second, Ask{Key: "2", Link: "eth0", MAC: hw(2)}); err == nil || !strings.Contains(err.Error(), "eth0 is down") {
		t.Error(err)
	}
	host.IP("link set eth0 up")
	c.acquire(t, Ask{Key: "2", Link: "eth0", MAC: hw(2)})
}

// mac is that of a namespace's link.
func (s *space) mac(link string) (mac net.HardwareAddr) {
	s.T.Helper()
	s.Run(func() {
		if ifi, err := nic.Find(link); err == nil {
			mac = ifi.HardwareAddr
		}
	})
	return mac
}

// cpu is the processor time that a program has used.
func (p *process) cpu() time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ
}

// BenchmarkParallel takes 200 leases at once: by the Client, and by a udhcpc for
// each on a macvlan link of its own, as a container would have. The server's own
// time is told beside it.
func BenchmarkParallel(b *testing.B) {
	const many = 200
	setup := func(b *testing.B) (host *space, d *process) {
		host, srv := pair(b)
		srv.IP("addr add 10.77.0.2/16 dev eth0")
		return host, srv.dnsmasq(b.TempDir(), "--dhcp-range=10.77.1.1,10.77.9.250,255.255.0.0,120", "--dhcp-lease-max=5000", "--quiet-dhcp")
	}
	b.Run("client", func(b *testing.B) {
		host, d := setup(b)
		c := host.client(Config{})
		defer d.stop()
		busy := d.cpu()
		for b.Loop() {
			var wg sync.WaitGroup
			for i := range many {
				wg.Go(func() {
					if _, err := c.try(time.Minute, Ask{Key: fmt.Sprint(i), Link: "eth0", MAC: hw(i)}); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			for i := range many {
				c.Release(fmt.Sprint(i))
			}
			time.Sleep(200 * time.Millisecond)
			b.StartTimer()
		}
		b.ReportMetric(float64((d.cpu()-busy).Microseconds())/float64(b.N*many), "server-µs/lease")
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*many), "µs/lease")
	})
	b.Run("udhcpc", func(b *testing.B) {
		busybox, err := exec.LookPath("busybox")
		if err != nil {
			b.Skip("no busybox")
		}
		host, d := setup(b)
		defer d.stop()
		var lines []string
		for i := range many {
			lines = append(lines, fmt.Sprintf("link add link eth0 name c%d address %s type macvlan mode bridge", i, hw(i)), fmt.Sprintf("link set c%d up", i))
		}
		host.IP(lines...)
		busy := d.cpu()
		for b.Loop() {
			var wg sync.WaitGroup
			for i := range many {
				p := host.start(busybox, "udhcpc", "-f", "-q", "-n", "-i", fmt.Sprintf("c%d", i), "-s", "/bin/true", "-t", "10", "-T", "2")
				wg.Go(func() {
					<-p.done
					if p.count("lease of") == 0 {
						b.Error(p.said.String())
					}
				})
			}
			wg.Wait()
		}
		b.ReportMetric(float64((d.cpu()-busy).Microseconds())/float64(b.N*many), "server-µs/lease")
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*many), "µs/lease")
	})
}
