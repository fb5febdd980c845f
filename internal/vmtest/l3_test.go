//go:build vm

package vmtest

import (
	"strings"
	"testing"
	"time"
)

// An l3 container within the LAN's own subnet: the LAN finds it if the host
// answers for it, and else does not.
func TestProxy(t *testing.T) {
	needs(t, "ipvlan")
	for _, mode := range []string{"l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			b := begin(t)
			nic := links(t, "")["eth0"].MAC
			near := func(more ...string) []string {
				return append([]string{
					"--subnet", "192.168.50.0/24", "--ip-range", "192.168.50.192/28",
					"--ipv6", "--subnet", "fd00:50::/64", "--ip-range", "fd00:50::2:0/112",
					"-o", "parent=eth0", "-o", "ipvlan_mode=" + mode}, more...)
			}
			b.network(near("mute")...)
			c := b.connect("mute", "base1")
			reaches(t, "a LAN host to the Docker host", "host1", docker4, docker6)
			isolated(t, "a LAN host to a container that nobody answers for", "host1", c.addrs("mute")...)
			b.disconnect("mute", "base1")
			docker(t, "network", "rm", "mute")

			args := near("-o", "announce=proxy", "net")
			if mode == "l3s" {
				args = near("-o", "announce=proxy", "-o", "host_access=true", "net")
			}
			b.network(args...)
			c = b.connect("net", "base1")
			d := b.connect("net", "base2")
			addrs := c.addrs("net")
			known := func(what string) {
				t.Helper()
				for _, a := range addrs {
					if seen := do(t, "host1", "ip neigh show to "+a); !strings.Contains(seen, nic) {
						t.Errorf("%s: host1 sees %s as %q, want the NIC's MAC %s", what, a, seen, nic)
					}
				}
			}
			reaches(t, "a LAN host to the container", "host1", addrs...)
			known("at first")
			reaches(t, "the router to the container", "router", addrs...)
			reaches(t, "the container to a LAN host", c.at(), host4, host6)
			reaches(t, "container to container", c.at(), d.addrs("net")...)
			if mode == "l3s" {
				reaches(t, "the host to the container", "", addrs...)
				reaches(t, "the container to the host", c.at(), docker4, docker6)
			} else {
				isolated(t, "the Docker host to its container", "", addrs...)
			}
			// Who wants the address for itself learns that it is taken.
			if out, err := place("host1").command("arping", "-D", "-c2", "-w3", "-I", "eth0", addrs[0]).CombinedOutput(); err == nil {
				t.Errorf("nobody defends %s: %s", addrs[0], out)
			}

			do(t, "", "kill -KILL "+strings.TrimSpace(do(t, "", "pidof underlay")))
			answersAgain(t)
			do(t, "host1", "ip neigh flush dev eth0")
			reaches(t, "a LAN host to the container, after the plugin's restart", "host1", addrs...)
			known("after the plugin's restart")

			if mode == "l3s" {
				do(t, "", "ip link set eth0 down; sleep 1; ip link set eth0 up"+eth0Addresses)
				do(t, "host1", "ip neigh flush dev eth0")
				reaches(t, "a LAN host to the container, after its NIC was down", "host1", addrs...)
			}

			b.disconnect("net", "base1")
			do(t, "host1", "ip neigh flush dev eth0")
			reaches(t, "a LAN host to the other container", "host1", d.addrs("net")...)
			isolated(t, "a LAN host to the container that has left", "host1", addrs...)
			time.Sleep(time.Second)
			for _, a := range addrs {
				if seen := do(t, "host1", "ip neigh show to "+a); strings.Contains(seen, "lladdr") {
					t.Errorf("host1 sees the address of a container that has left: %s", seen)
				}
			}
			b.disconnect("net", "base2")
		})
	}
}
