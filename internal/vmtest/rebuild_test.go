//go:build vm

package vmtest

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// crowd is twenty containers on the NIC eth0: macvlan ones, which the host
// reaches, and ipvlan ones on a VLAN link that the plugin makes.
type crowd struct {
	*test
	all    []container
	addrs  []netip.Addr // IPv4, of each
	inside []string     // what each has of the network
}

const crowdSize = 20

func newCrowd(b *test) *crowd {
	b.Helper()
	b.network(lanArgs("-o", "host_access=true", "lan")...)
	b.network("--subnet", "192.168.10.0/24", "--gateway", "192.168.10.1", "-o", "parent=eth0.10", "-o", "ipvlan_mode=l2", "tagged")
	c := &crowd{test: b, all: make([]container, crowdSize)}
	for from := 0; from < crowdSize; from += 4 {
		var starts []func()
		for k := from; k < from+4; k++ {
			starts = append(starts, func() {
				network := "lan"
				if k >= 14 {
					network = "tagged"
				}
				c.all[k] = b.run(fmt.Sprintf("n%02d", k), "--network", network)
			})
		}
		together(starts...)
	}
	if b.Failed() {
		b.FailNow()
	}
	for _, one := range c.all {
		network := one.HostConfig.NetworkMode
		c.addrs = append(c.addrs, netip.MustParseAddr(one.addrs(network)[0]))
		reaches(b.T, "before", "router", one.addrs(network)...)
	}
	time.Sleep(6 * time.Second) // until the plugin has seen what dockerd has set last
	for _, one := range c.all {
		c.inside = append(c.inside, inside(b.T, one))
	}
	return c
}

// same wants each container to have all that it had, soon.
func (c *crowd) same(t *testing.T, what string) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for k, one := range c.all {
		err := wait(time.Until(end), one.Name, func() error {
			is, err := insideNow(one)
			if err == nil && is != c.inside[k] {
				err = errorf("has changed: %s", difference(c.inside[k], is))
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// back measures how long it takes until each container answers the router again,
// from start on, and wants all of them to within a limit.
func (c *crowd) back(t *testing.T, what string, start time.Time, limit time.Duration) {
	t.Helper()
	took, err := answers("router", c.addrs, start, limit)
	if err != nil {
		t.Fatal(err)
	}
	times := slices.Sorted(maps.Values(took))
	if len(times) > 0 {
		t.Logf("%s: %d of %d containers answered, the first after %.2f s, half of them after %.2f s, the last after %.2f s",
			what, len(times), len(c.addrs), times[0].Seconds(), times[len(times)/2].Seconds(), times[len(times)-1].Seconds())
	}
	for k, a := range c.addrs {
		if _, ok := took[a]; !ok {
			out, _ := sh(c.all[k].at(), "ip -d addr; ip route")
			t.Errorf("%s: %s (%v) does not answer within %v\n%s", what, c.all[k].Name, a, limit, out)
		}
	}
}

// answers asks addresses from a place by ICMP, all of them every 50 ms, until
// each has answered, and says when each first did.
func answers(p place, addrs []netip.Addr, start time.Time, limit time.Duration) (map[netip.Addr]time.Duration, error) {
	var conn net.PacketConn
	err := within(p, func() (err error) {
		conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	const id = 0x7576
	const sum = 0xffff - (8<<8 + id + 1) // RFC 1071; nothing to carry
	request := []byte{8, 0, sum >> 8, sum & 0xff, id >> 8, id & 0xff, 0, 1}
	took := map[netip.Addr]time.Duration{}
	buffer := make([]byte, 256)
	var asked time.Time
	for len(took) < len(addrs) && time.Since(start) < limit {
		if time.Since(asked) > 50*time.Millisecond {
			asked = time.Now()
			for _, a := range addrs {
				if _, ok := took[a]; !ok {
					conn.WriteTo(request, &net.IPAddr{IP: a.AsSlice()}) // no route yet is as good as no answer
				}
			}
		}
		conn.SetReadDeadline(asked.Add(51 * time.Millisecond))
		n, from, err := conn.ReadFrom(buffer)
		if err != nil || n < 8 || buffer[0] != 0 || buffer[4] != id>>8 || buffer[5] != id&0xff {
			continue
		}
		addr, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP.To4())
		if _, known := took[addr]; !known {
			took[addr] = time.Since(start)
		}
	}
	return took, nil
}

// talks are connections both ways that are to last.
func (c *crowd) talks(t *testing.T) (end func()) {
	t.Helper()
	serve(t, "host1")
	serve(t, "router")
	serve(t, c.all[1].at())
	all := []*lasting{
		last(t, "a container to a LAN host", c.all[0].at(), host4),
		last(t, "a LAN host to a container", "host1", c.addrs[1].String()),
		last(t, "a container to a LAN host, IPv6", c.all[2].at(), host6),
		last(t, "a container to its VLAN's router", c.all[14].at(), "192.168.10.1"),
		last(t, "the Docker host to a container", "", c.addrs[1].String()),
	}
	return func() {
		t.Helper()
		time.Sleep(time.Second)
		for _, l := range all {
			l.end()
		}
	}
}

// soon is what an interface may take to come back. The aim is 2 s on a machine of
// its own; here the processors are emulated, and the figures are in the log.
const soon = 8 * time.Second

// What may happen to a NIC under twenty running containers.
func TestParents(t *testing.T) {
	needs(t, "VLAN")
	withoutBase(t)
	b := beginBare(t)
	c := newCrowd(b)
	t.Run("flapped 100 times", func(t *testing.T) {
		end := c.talks(t)
		was := strings.Join(shims(), "\n")
		for n := range 10 {
			do(t, "", "for i in 1 2 3 4 5 6 7 8 9 10; do ip link set eth0 down; ip link set eth0 up; done"+eth0Addresses)
			if n%5 == 4 {
				c.back(t, fmt.Sprintf("after %d flaps", 10*n+10), time.Now(), soon)
			}
		}
		c.same(t, "flapped")
		if is := strings.Join(shims(), "\n"); is != was {
			t.Errorf("the links for host access were\n%s\nand are\n%s", was, is)
		}
		end()
	})
	t.Run("deleted and made again", func(t *testing.T) {
		end := c.talks(t)
		do(t, "", unplug)
		for _, one := range []container{c.all[0], c.all[19]} {
			if has := links(t, one.at()); len(has) != 0 {
				t.Fatalf("%s has kept %v: nothing is shown", one.Name, has)
			}
		}
		time.Sleep(time.Second)
		start := time.Now()
		if err := plug(); err != nil {
			t.Fatal(err)
		}
		t.Logf("the NIC was put in within %.2f s", time.Since(start).Seconds())
		c.back(t, "NIC deleted and made again", start, soon)
		c.same(t, "NIC deleted and made again")
		reaches(t, "the Docker host to a container", "", c.addrs[3].String())
		end()
	})
	t.Run("VLAN link deleted by hand", func(t *testing.T) {
		end := c.talks(t)
		start := time.Now()
		do(t, "", "ip link del eth0.10")
		c.back(t, "VLAN link deleted", start, soon)
		c.same(t, "VLAN link deleted")
		end()
	})
	t.Run("MTU lowered and raised", func(t *testing.T) {
		do(t, "", "ip link set eth0 mtu 1400")
		if mtu := links(t, c.all[0].at())["eth0"].MTU; mtu != 1400 {
			t.Errorf("the kernel left the container's MTU at %d: nothing is shown", mtu)
		}
		do(t, "", "ip link set eth0 mtu 1500")
		c.same(t, "MTU lowered and raised")
	})
	t.Run("renamed and back", func(t *testing.T) {
		end := c.talks(t)
		do(t, "", "ip link set eth0 down; ip link set eth0 name lan0; ip link set lan0 up"+strings.ReplaceAll(eth0Addresses, "eth0", "lan0"))
		c.back(t, "NIC renamed", time.Now(), soon)
		_, err := tryDocker("run", "--name", "refused", "--network", "lan", image, "true")
		refused(t, err, `parent eth0 is not there`)
		tryDocker("rm", "-f", "refused")
		do(t, "", "ip link set lan0 down; ip link set lan0 name eth0; ip link set eth0 up"+eth0Addresses)
		c.back(t, "NIC renamed back", time.Now(), soon)
		c.same(t, "NIC renamed and back")
		one := b.run("renamed", "--network", "lan")
		reaches(t, "a new container to a LAN host", one.at(), host4, host6)
		docker(t, "rm", "-f", "renamed")
		end()
	})
	t.Run("plugin away meanwhile", func(t *testing.T) {
		end := c.talks(t)
		docker(t, "plugin", "disable", "-f", plugin)
		do(t, "", unplug)
		if err := plug(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		docker(t, "plugin", "enable", plugin)
		c.back(t, "NIC deleted and made again, from the plugin's start on", start, 2*soon)
		c.same(t, "NIC deleted and made again while the plugin was away")
		end()
	})
	// Not allowed into the containers: what is lost is named.
	t.Run("REBUILD=off", func(t *testing.T) {
		docker(t, "plugin", "disable", "-f", plugin)
		docker(t, "plugin", "set", plugin, "REBUILD=off")
		docker(t, "plugin", "enable", plugin)
		from := len(trimmed(daemonLog))
		do(t, "", unplug)
		if err := plug(); err != nil {
			t.Fatal(err)
		}
		err := wait(20*time.Second, "the log", func() error {
			log := trimmed(daemonLog)[from:]
			for _, a := range c.addrs {
				if !strings.Contains(log, a.String()) {
					return errorf("it does not name %v", a)
				}
			}
			if !strings.Contains(log, "restart") {
				return errorf("it does not say what to do")
			}
			return nil
		})
		if err != nil {
			t.Errorf("%v:\n%s", err, trimmed(daemonLog)[from:])
		}
		for line := range strings.Lines(trimmed(daemonLog)[from:]) {
			if strings.Contains(line, c.addrs[0].String()) {
				t.Logf("its words: %s", line)
			}
		}
		docker(t, "restart", "-t", "0", c.all[0].Name, c.all[19].Name)
		for _, k := range []int{0, 19} {
			one := inspect(t, c.all[k].Name)
			reaches(t, "a container started again", "router", one.addrs(one.HostConfig.NetworkMode)...)
		}
		docker(t, "plugin", "disable", "-f", plugin)
		docker(t, "plugin", "set", plugin, "REBUILD=on")
		docker(t, "plugin", "enable", plugin)
		start := time.Now()
		c.addrs, c.all = c.addrs[1:19], c.all[1:19] // the other two may have others
		c.back(t, "REBUILD on again", start, 2*soon)
	})
}
