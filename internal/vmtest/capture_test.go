//go:build vm

package vmtest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// frame is an ARP or neighbour discovery message.
type frame struct {
	at     time.Time
	kind   string // "ARP request", "ARP reply", "NS" or "NA"
	ether  string // source
	to     string // destination
	mac    string // ARP's sender, or NA's target link-layer address
	sender netip.Addr
	target netip.Addr
	over   bool // NA: override
	asked  bool // NA: solicited
}

func (f frame) String() string {
	return fmt.Sprintf("%s from %s %v asks or tells of %v at %q (override %t)", f.kind, f.ether, f.sender, f.target, f.mac, f.over)
}

// claims says whether a frame claims an address: whoever hears it may write the
// frame's source into a cache.
func (f frame) claims(addr netip.Addr) bool {
	return f.sender == addr || f.kind == "NA" && f.target == addr
}

// capture is all that a NIC, mostly a machine's eth0, hears and sends of ARP
// and NDP.
type capture struct {
	conn *packet.Conn
	nic  *net.Interface
	done chan struct{}
	hook func(frame) // called for each

	frames []frame
}

// listen captures at the eth0 of a place until stop, or the test's end.
func listen(t *testing.T, p place, hook func(*capture, frame)) *capture {
	t.Helper()
	return listenAt(t, p, "eth0", hook)
}

func listenAt(t *testing.T, p place, nic string, hook func(*capture, frame)) *capture {
	t.Helper()
	c := &capture{done: make(chan struct{})}
	if hook != nil {
		c.hook = func(f frame) { hook(c, f) }
	}
	err := within(p, func() (err error) {
		if c.nic, err = net.InterfaceByName(nic); err == nil {
			c.conn, err = packet.Listen(c.nic, packet.Raw, unix.ETH_P_ALL, nil)
		}
		return err
	})
	if err != nil {
		t.Fatalf("capture in %s: %v", p, err)
	}
	go func() {
		defer close(c.done)
		b := make([]byte, 2048)
		for {
			n, _, err := c.conn.ReadFrom(b)
			if err != nil {
				return
			}
			if f, ok := dissect(b[:n]); ok {
				c.frames = append(c.frames, f)
				if c.hook != nil {
					c.hook(f)
				}
			}
		}
	}()
	t.Cleanup(func() { c.stop() })
	return c
}

// within does f in the network namespace of a place.
func within(p place, f func() error) error {
	home, err := os.Open(place("").netns())
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open(p.netns())
	if err != nil {
		return err
	}
	defer there.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return back // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// stop ends the capture and returns it.
func (c *capture) stop() []frame {
	c.conn.Close()
	<-c.done
	return c.frames
}

// whoHas asks for an address, as the machine's kernel would.
func (c *capture) whoHas(addr netip.Addr, from netip.Addr) {
	b := slices.Concat(net.HardwareAddr{255, 255, 255, 255, 255, 255}, c.nic.HardwareAddr, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1},
		c.nic.HardwareAddr, from.AsSlice(), make([]byte, 6), addr.AsSlice())
	c.conn.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}})
}

// dissect reads a frame; RFC 826, RFC 4861 sections 4.3 and 4.4.
func dissect(b []byte) (f frame, ok bool) {
	f.at = time.Now()
	if len(b) < 14+28 {
		return f, false
	}
	f.to, f.ether = net.HardwareAddr(b[:6]).String(), net.HardwareAddr(b[6:12]).String()
	kind, b := uint16(b[12])<<8|uint16(b[13]), b[14:]
	switch {
	case kind == unix.ETH_P_ARP:
		f.kind = map[byte]string{1: "ARP request", 2: "ARP reply"}[b[7]]
		f.mac = net.HardwareAddr(b[8:14]).String()
		f.sender, f.target = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
		return f, f.kind != ""
	case kind == unix.ETH_P_IPV6 && b[6] == unix.IPPROTO_ICMPV6 && len(b) >= 40+24 && (b[40] == 135 || b[40] == 136):
		f.sender = netip.AddrFrom16([16]byte(b[8:24]))
		f.target = netip.AddrFrom16([16]byte(b[48:64]))
		f.kind = map[byte]string{135: "NS", 136: "NA"}[b[40]]
		f.over, f.asked = b[44]&0x20 != 0, b[44]&0x40 != 0
		if option := b[64:]; len(option) >= 8 && (option[0] == 1 || option[0] == 2) {
			f.mac = net.HardwareAddr(option[2:8]).String()
		}
		return f, true
	}
	return f, false
}

// told is what a LAN's machine must have heard of a container's addresses: a
// probe that poisons no cache, and after it, once the container's link was up,
// an announcement. Of no address was anything claimed before.
func told(t *testing.T, frames []frame, what, nic, mac string, addrs ...string) {
	t.Helper()
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		var probes, announcements int
		var wrong []string
		for _, f := range frames {
			switch {
			case f.target == addr && f.sender.IsUnspecified() && (f.kind == "ARP request" || f.kind == "NS") && f.ether == nic:
				probes++
				if announcements > 0 && nic != mac {
					wrong = append(wrong, f.String())
				}
			case f.claims(addr) && (probes == 0 || f.ether != mac || f.mac != mac && f.kind != "NS"):
				wrong = append(wrong, f.String())
			case f.kind == "ARP request" && f.sender == addr && f.target == addr,
				f.kind == "NA" && f.target == addr && f.over && !f.asked:
				announcements++
			}
		}
		if probes == 0 || announcements == 0 || len(wrong) > 0 {
			t.Errorf("%s: of %s at %s there were %d probes and %d announcements, and out of place:\n%s", what, addr, mac, probes, announcements, strings.Join(wrong, "\n"))
		}
	}
}

// What a machine of the LAN hears when containers start.
func TestCapture(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	from := netip.MustParseAddr(host4)
	// The first announcement of each address is answered by a question, once:
	// a link that was not up by then would not answer.
	asked := map[netip.Addr]bool{}
	lan := listen(t, "host1", func(c *capture, f frame) {
		if f.kind == "ARP request" && f.sender == f.target && !asked[f.target] {
			asked[f.target] = true
			c.whoHas(f.target, from)
		}
	})
	b.network(lanArgs("lan")...)
	b.network("--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "--ipv6", "--subnet", "fd00:51::/64", "--gateway", "fd00:51::1",
		"-o", "parent=eth1", "-o", "ipvlan_mode=l2", "flat")
	var started, fixed, flat container
	together(
		func() { started = b.run("started", "--network", "lan") },
		func() { fixed = b.connect("lan", "base1", "--ip", "192.168.50.201", "--ip6", "fd00:50::201") },
		func() { flat = b.connect("flat", "base2") },
	)
	if t.Failed() {
		return
	}
	time.Sleep(2500 * time.Millisecond) // three announcements, a second apart
	frames := lan.stop()
	nics := links(t, "")
	told(t, frames, "a started container", nics["eth0"].MAC, started.NetworkSettings.Networks["lan"].MacAddress, started.addrs("lan")...)
	told(t, frames, "a connected container", nics["eth0"].MAC, fixed.NetworkSettings.Networks["lan"].MacAddress, fixed.addrs("lan")...)
	told(t, frames, "an ipvlan container", nics["eth1"].MAC, nics["eth1"].MAC, flat.addrs("flat")...)

	mine := map[string]bool{docker4: true, docker6: true}
	answered := map[string]bool{}
	for _, c := range []container{started, fixed, flat} {
		for network := range c.NetworkSettings.Networks {
			for _, a := range c.addrs(network) {
				mine[a] = true
			}
		}
	}
	for _, f := range frames {
		if f.kind == "ARP reply" {
			answered[f.sender.String()] = true
		}
		// Of the addresses that were asked about and not given to these three,
		// too, nobody was told anything.
		byHost := f.ether == nics["eth0"].MAC || f.ether == nics["eth1"].MAC
		if byHost && !f.sender.IsUnspecified() && !f.sender.IsLinkLocalUnicast() && !mine[f.sender.String()] {
			t.Errorf("a frame of the Docker host with a sender that is nobody's: %v", f)
		}
	}
	for _, a := range []string{started.addrs("lan")[0], "192.168.50.201", flat.addrs("flat")[0]} {
		if !answered[a] {
			t.Errorf("%s was announced before its link was up: who asked at once got no answer", a)
		}
	}
	b.disconnect("lan", "base1")
	b.disconnect("flat", "base2")
}

// An address that moves to another MAC is reached at once by those who knew the
// old one, without their asking.
func TestStaleCaches(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	// host1 believes for an hour what it knows, and goes on doing so unasked.
	patience := func(reachable, delay string) {
		for _, v := range []string{"ipv4", "ipv6"} {
			do(t, "host1", "sysctl -qw net."+v+".neigh.eth0.base_reachable_time_ms="+reachable+" net."+v+".neigh.eth0.delay_first_probe_time="+delay)
		}
	}
	patience("3600000", "3600")
	defer func() { patience("30000", "5"); do(t, "host1", "ip neigh flush dev eth0") }()
	addrs := []string{"192.168.50.99", "fd00:50::99"}
	nic := links(t, "")["eth0"].MAC
	var before, network string
	for k, mode := range []string{"macvlan_mode=bridge", "ipvlan_mode=l2", "macvlan_mode=private"} {
		last := network
		network = fmt.Sprintf("move%d", k)
		if last != "" {
			docker(t, "network", "rm", last)
		}
		b.network(lanArgs("-o", mode, network)...)
		heard := listen(t, "host1", nil)
		start := time.Now()
		c := b.connect(network, "base1", "--ip", addrs[0], "--ip6", addrs[1])
		mac := c.NetworkSettings.Networks[network].MacAddress
		if mac == "" {
			mac = nic
		}
		if mac == before {
			t.Fatalf("the container has MAC %s again: nothing is shown", mac)
		}
		before = mac
		end := time.Now().Add(time.Second)
		for _, a := range addrs {
			if k == 0 {
				reaches(t, "the first container", "host1", a)
				continue
			}
			ok := false
			for !ok && (time.Now().Before(end) || a == addrs[1] && time.Now().Before(end.Add(time.Second))) {
				ok = ping("host1", a, 300*time.Millisecond)
			}
			seen := do(t, "host1", "ip neigh show "+a)
			if !ok || !strings.Contains(seen, mac) {
				t.Errorf("%s: host1 reaches %s: %t, and sees it as %q, want MAC %s", mode, a, ok, seen, mac)
			}
		}
		for _, f := range heard.stop() {
			if k > 0 && f.ether == heard.nic.HardwareAddr.String() && f.to == "ff:ff:ff:ff:ff:ff" && f.target.String() == addrs[0] {
				t.Errorf("%s: host1 had to ask, %v after the start: %v", mode, f.at.Sub(start), f)
			}
		}
		b.disconnect(network, "base1")
	}
}
