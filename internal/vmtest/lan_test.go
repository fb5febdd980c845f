//go:build vm

package vmtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The LAN, 192.168.50.0/24 and fd00:50::/64:
//
//	netns switch   bridge br0; a port for every NIC below
//	netns router   .1, also 203.0.113.1 and 2001:db8:ffff::1 ("the internet"),
//	               VLAN 10 with 192.168.10.1 and fd00:10::1, 192.168.51.1
//	netns host1    .3, a plain machine
//	the VM itself  the Docker host: eth0 with .2, eth1 and eth2 without address
//
// A container's ipvlan l3 subnet is 192.168.60.0/24, fd00:60::/64; router and
// host1 know that it is behind .2.
const (
	router4, router6     = "192.168.50.1", "fd00:50::1"
	docker4, docker6     = "192.168.50.2", "fd00:50::2"
	host4, host6         = "192.168.50.3", "fd00:50::3"
	internet4, internet6 = "203.0.113.1", "2001:db8:ffff::1"
)

// place is a network namespace to run commands in: "" is the VM's own,
// "router" or "host1" a named one, a number that of a process.
type place string

func (p place) command(args ...string) *exec.Cmd {
	if p != "" {
		args = append([]string{"nsenter", "--net=" + p.netns()}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// sh runs lines of shell in a place; any failing line is an error.
func sh(p place, script string) (string, error) {
	out, err := p.command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return string(out), nil
}

// do is sh that must succeed.
func do(t *testing.T, p place, script string) string {
	t.Helper()
	out, err := sh(p, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eth0Addresses are lines that give the Docker host's eth0 back what it loses
// when it or its addresses go.
const eth0Addresses = `
ip addr replace 192.168.50.2/24 dev eth0
ip addr replace fd00:50::2/64 dev eth0 nodad
ip route replace default via 192.168.50.1
ip -6 route show default | grep -q "via fd00:50::1 " || ip -6 route append default via fd00:50::1 dev eth0`

// nicMAC is eth0's, at each boot.
const nicMAC = "02:00:5e:00:50:02"

// unplug takes the NIC eth0 out, with all that is on it; plug puts it in again:
// the same NIC, in the same port of the switch, with another index.
const unplug = `ip link del eth0`

func plug() error {
	_, err := sh("", wire("0", nicMAC)+eth0Addresses)
	return err
}

// wire makes the NIC of that number, with that MAC, in its port of the switch.
func wire(number, mac string) string {
	return strings.ReplaceAll(`
ip link add eth# address `+mac+` type veth peer name nic# netns switch
ip -n switch link set nic# master br0 up
sysctl -qw net.ipv6.conf.eth#.accept_dad=0 net.ipv4.conf.eth#.arp_ignore=1
ip link set eth# up`, "#", number)
}

func buildLAN() error {
	type line struct {
		in     place
		script string
	}
	steps := []line{
		{"", `
for ns in switch router host1; do ip netns add $ns; ip -n $ns link set lo up; done
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link add eth0 address ` + nicMAC + ` type veth peer name nic0 netns switch
ip link add eth1 type veth peer name nic1 netns switch
ip link add eth2 type veth peer name nic2 netns switch
ip -n router link add eth0 type veth peer name router netns switch
ip -n host1 link add eth0 type veth peer name host1 netns switch`},
		{"switch", `
sysctl -qw net.ipv6.conf.all.disable_ipv6=1
ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
ip link set br0 up
for p in nic0 nic1 nic2 router host1; do ip link set $p master br0 up; done`},
		{"router", `
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
ip addr add 203.0.113.1/32 dev lo
ip addr add 2001:db8:ffff::1/128 dev lo nodad
ip addr add 192.168.50.1/24 dev eth0
ip addr add 192.168.51.1/24 dev eth0
ip addr add fd00:50::1/64 dev eth0 nodad
ip addr add fd00:51::1/64 dev eth0 nodad
ip link set eth0 up
ip route add 192.168.60.0/24 via 192.168.50.2
ip route add fd00:60::/64 via fd00:50::2`},
		{"host1", `
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.accept_ra=0
ip addr add 192.168.50.3/24 dev eth0
ip addr add fd00:50::3/64 dev eth0 nodad
ip link set eth0 up
ip route add default via 192.168.50.1
ip route add default via fd00:50::1
ip route add 192.168.60.0/24 via 192.168.50.2
ip route add fd00:60::/64 via fd00:50::2`},
		{"", `
# Three NICs on one LAN: each answers for its own addresses only.
for l in eth0 eth1 eth2; do sysctl -qw net.ipv6.conf.$l.accept_dad=0 net.ipv4.conf.$l.arp_ignore=1; ip link set $l up; done
ip addr add 192.168.50.2/24 dev eth0
ip addr add fd00:50::2/64 dev eth0 nodad
ip route add default via 192.168.50.1
ip route add default via fd00:50::1`},
	}
	if *here {
		steps = append(steps, line{"", "ip link add " + baseParent + " up type veth peer name basis; ip link set basis up"})
	} else {
		steps = append(steps, line{"router", `
ip link add link eth0 name eth0.10 type vlan id 10
ip addr add 192.168.10.1/24 dev eth0.10
ip addr add fd00:10::1/64 dev eth0.10 nodad
ip link set eth0.10 up`})
	}
	for _, s := range steps {
		if _, err := sh(s.in, s.script); err != nil {
			return err
		}
	}
	return nil
}

// hairpin sets whether the switch sends frames back out of the Docker host's
// port, as vepa wants (IEEE 802.1Qbg: reflective relay).
func hairpin(t *testing.T, on bool) {
	t.Helper()
	word := map[bool]string{true: "on", false: "off"}[on]
	do(t, "switch", "bridge link set dev nic0 hairpin "+word)
}

// netns is the file of a place's network namespace.
func (p place) netns() string {
	switch {
	case p == "":
		return "/proc/1/ns/net" // not self: a thread may be elsewhere
	case p[0] >= '0' && p[0] <= '9':
		return "/proc/" + string(p) + "/ns/net"
	}
	return "/run/netns/" + string(p)
}

// ping sends one packet; wait is how long the answer may take.
func ping(p place, to string, wait time.Duration) bool {
	return p.command("ping", "-n", "-q", "-c1", "-W", fmt.Sprintf("%.1f", wait.Seconds()), to).Run() == nil
}

// reaches wants an answer, for a while: neighbours must be found and emulated
// processors take their time.
func reaches(t *testing.T, what string, p place, to ...string) {
	t.Helper()
	for _, addr := range to {
		ok, first := false, ""
		for end := time.Now().Add(10 * time.Second); !ok && time.Now().Before(end); {
			if ok = ping(p, addr, time.Second); !ok {
				if first == "" {
					first, _ = sh(p, "ip neigh")
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		if !ok {
			out, _ := sh(p, "ip -br addr; ip route; ip -6 route; ip neigh")
			t.Errorf("%s: %s gives no answer\nneighbours after the first try:\n%s\nat the end:\n%s\n%s", what, addr, first, out, holder(addr))
		}
	}
}

// holder is how the container that has an address hears the LAN.
func holder(addr string) string {
	var all []struct {
		ID string `json:"Id"`
	}
	api("GET", "/containers/json", nil, &all)
	for _, a := range all {
		var c container
		if api("GET", "/containers/"+a.ID+"/json", nil, &c) != nil || !c.State.Running {
			continue
		}
		if out, _ := sh(c.at(), "ip -d addr; ip maddr; ip neigh"); strings.Contains(out, " "+addr+"/") {
			return "container " + c.Name + ":\n" + out
		}
	}
	return "no running container has it"
}

// isolated wants no answer. It follows a reaches from the same place in each
// test, so that silence is not just a link that is not up yet.
func isolated(t *testing.T, what string, p place, to ...string) {
	t.Helper()
	for _, addr := range to {
		for range 2 {
			if ping(p, addr, 400*time.Millisecond) {
				t.Errorf("%s: %s answers; it must not", what, addr)
				break
			}
		}
	}
}

// link is what `ip -d -j link` tells of one link.
type link struct {
	Name        string   `json:"ifname"`
	Lower       string   `json:"link"`
	Master      string   `json:"master"`
	MTU         int      `json:"mtu"`
	MAC         string   `json:"address"`
	Promiscuity int      `json:"promiscuity"`
	Flags       []string `json:"flags"`
	Info        struct {
		Kind string         `json:"info_kind"`
		Data map[string]any `json:"info_data"`
	} `json:"linkinfo"`
	Addrs []struct {
		Local  string `json:"local"`
		Prefix int    `json:"prefixlen"`
		Scope  string `json:"scope"`
	} `json:"addr_info"`
}

// links lists the links of a place, lo left out, by name.
func links(t *testing.T, p place) map[string]link {
	t.Helper()
	m, err := linksNow(p)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func linksNow(p place) (map[string]link, error) {
	out, err := p.command("ip", "-d", "-j", "addr").Output()
	var all []link
	if err == nil {
		err = json.Unmarshal(out, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("links in %q: %w", p, err)
	}
	m := map[string]link{}
	for _, l := range all {
		if l.Name != "lo" {
			m[l.Name] = l
		}
	}
	return m, nil
}

// holds tells whether a link has an address, given as 192.168.50.70/24.
func (l link) holds(addr string) bool {
	for _, a := range l.Addrs {
		if fmt.Sprintf("%s/%d", a.Local, a.Prefix) == addr {
			return true
		}
	}
	return false
}

func trimmed(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}
