//go:build vm

package vmtest

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What goes by a container's name, which Docker tells from version 29 on.
func TestContainerNames(t *testing.T) {
	b := begin(t)
	s := dnsmasq(t, "router", "--dhcp-range=192.168.50.150,192.168.50.199,255.255.255.0,120", "--dhcp-option=option:router,"+router4)
	// The reserved ones are those that would be given out first.
	b.network(lanArgs("--ipam-opt", "reserve=db=192.168.50.64,db=fd00:50::1:1", "lan")...)
	b.network(dhcpArgs("leased")...)

	var web, db container
	together(
		func() { web = b.run("web", "--network", "lan") },
		func() { db = b.run("db", "--network", "lan") },
	)
	if t.Failed() {
		return
	}
	if got := db.addrs("lan"); !slices.Equal(got, []string{"192.168.50.64", "fd00:50::1:1"}) {
		t.Errorf("db has %v, want what is reserved for it", got)
	}
	t.Run("who", func(t *testing.T) {
		var all struct{ Addresses []cliAddress }
		say(t, &all, "addresses", "192.168.50.0/24")
		for addr, name := range map[string]string{web.addrs("lan")[0]: "web", "192.168.50.64": "db"} {
			k := slices.IndexFunc(all.Addresses, func(a cliAddress) bool { return a.Address == addr })
			if k < 0 || all.Addresses[k].Container != name {
				t.Errorf("%s is not said to be %s's: %+v", addr, name, all)
			}
		}
	})
	t.Run("made anew", func(t *testing.T) {
		was, mac := web.addrs("lan"), web.NetworkSettings.Networks["lan"].MacAddress
		docker(t, "rm", "-f", "web", "db")
		var others [3]container
		together(
			func() { others[0] = b.run("other0", "--network", "lan") },
			func() { others[1] = b.run("other1", "--network", "lan") },
			func() { others[2] = b.run("other2", "--network", "lan") },
		)
		for _, c := range others {
			for _, a := range c.addrs("lan") {
				if slices.Contains(append(was, db.addrs("lan")...), a) {
					t.Errorf("%s has %s, another's of a moment ago", c.Name, a)
				}
			}
		}
		now := b.run("web", "--network", "lan")
		if got, is := now.addrs("lan"), now.NetworkSettings.Networks["lan"].MacAddress; !slices.Equal(got, was) || is != mac {
			t.Errorf("web made anew has %v by %s, had %v by %s", got, is, was, mac)
		}
		reaches(t, "a LAN host to web", "host1", was...)
	})
	t.Run("renamed", func(t *testing.T) {
		was := inspect(t, "web").addrs("lan")
		docker(t, "rename", "web", "www")
		docker(t, "restart", "-t", "0", "www")
		got := inspect(t, "www").addrs("lan")
		if len(got) != 2 || slices.Contains(was, got[0]) || slices.Contains(was, got[1]) {
			t.Errorf("restarted by another name it has %v, and %v are web's", got, was)
		}
		docker(t, "rename", "www", "web")
		docker(t, "restart", "-t", "0", "web")
		if got := inspect(t, "web").addrs("lan"); !slices.Equal(got, was) {
			t.Errorf("by its old name it has %v, had %v", got, was)
		}
	})
	t.Run("DHCP", func(t *testing.T) {
		c := b.run("radio", "--network", "leased")
		addr, mac := c.addrs("leased")[0], c.NetworkSettings.Networks["leased"].MacAddress
		if line := s.leased(addr); !strings.Contains(line, mac) || !strings.Contains(line, " radio ") {
			t.Errorf("the server has %q of %s, want the name and %s\n%s", line, addr, mac, s.log())
		}
		docker(t, "rm", "-f", "radio")
		s.until(t, 10*time.Second, "the release of "+addr, func() bool { return s.leased(addr) == "" })
		b.run("clock", "--network", "leased")
		again := b.run("radio", "--network", "leased")
		if got := again.addrs("leased")[0]; got != addr || again.NetworkSettings.Networks["leased"].MacAddress != mac {
			t.Errorf("radio made anew has %s, had %s\n%s", got, addr, s.log())
		}
	})
	b.tidy()
	quiet(t)
}
