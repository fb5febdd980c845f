//go:build vm

package vmtest

import (
	"slices"
	"strings"
	"testing"
)

// Containers are moved from Docker's own drivers to this one by the commands of the
// manual as they are there, and back, and go on running.
func TestMoving(t *testing.T) {
	nginx(t)
	pages := map[string]struct{ network, name, addr string }{
		"macvlan": {"lan", "web", "192.168.50.70"},
		"ipvlan":  {"flat", "api", "192.168.50.71"},
	}
	for _, doc := range sections(t, "moving.md") {
		is, ok := pages[doc.Heading]
		if !ok {
			if doc.Text("sh") != "" {
				t.Errorf("moving.md has commands under %q, and nothing tests them", doc.Heading)
			}
			continue
		}
		delete(pages, doc.Heading)
		t.Run(doc.Heading, func(t *testing.T) {
			if doc.Heading == "ipvlan" {
				needs(t, "ipvlan")
			}
			b := begin(t)
			b.containers = append(b.containers, is.name)
			b.networks = append(b.networks, is.network)
			before, moves, ok := strings.Cut(doc.Text("sh"), "docker network disconnect")
			if !ok {
				t.Fatal("nothing is disconnected")
			}
			do(t, "", before)
			was := inspect(t, is.name)
			do(t, "host1", "ip neigh flush dev eth0") // Docker before 28 does not announce
			serves(t, "the container on Docker's own network, from the LAN", "host1", is.addr)
			do(t, "", "docker network disconnect"+moves)
			c := inspect(t, is.name)
			if a := c.addrs(is.network); len(a) == 0 || a[0] != is.addr || c.State.Pid != was.State.Pid {
				t.Errorf("it has %v as process %d, and had %s as process %d", a, c.State.Pid, is.addr, was.State.Pid)
			}
			if !slices.Contains(state(t), "state.endpoints.ipv4 "+is.addr+"/24") {
				t.Error("underlay does not have it")
			}
			serves(t, "the container on underlay's network, from the LAN", "host1", is.addr)
			reaches(t, "the container through the router", c.at(), internet4)

			// And back.
			docker(t, "network", "disconnect", is.network, is.name)
			docker(t, "network", "rm", is.network)
			create, _, _ := strings.Cut(before, "docker run")
			do(t, "", create)
			docker(t, "network", "connect", "--ip", is.addr, is.network, is.name)
			do(t, "host1", "ip neigh flush dev eth0")
			serves(t, "the container on Docker's own network again, from the LAN", "host1", is.addr)
		})
	}
	for heading := range pages {
		t.Errorf("moving.md has no commands under %q", heading)
	}
}
