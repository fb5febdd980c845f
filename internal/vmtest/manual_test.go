//go:build vm

package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"underlay/internal/manual"
)

// script is what a page of the manual has a person type under a heading, in the
// folder home. What it makes is the test's.
func (b *test) script(home, page, heading string) string {
	b.Helper()
	for _, doc := range sections(b.T, page) {
		text := doc.Text("sh")
		if doc.Heading != heading || text == "" {
			continue
		}
		for _, c := range manual.Commands(text) {
			words := strings.Fields(c)
			if strings.HasPrefix(c, "docker network create ") {
				b.networks = append(b.networks, words[len(words)-1])
			}
			if i := slices.Index(words, "--name"); i > 0 && strings.HasPrefix(c, "docker run ") {
				b.containers = append(b.containers, words[i+1])
			}
		}
		return "export HOME=" + home + " PATH=" + home + "/build:$PATH; cd ~\n" + text
	}
	b.Fatalf("%s has no commands under %q", page, heading)
	return ""
}

// typed runs a script, which must succeed, and returns what it prints.
func (b *test) typed(home, page, heading string) string {
	b.Helper()
	start := time.Now()
	said := do(b.T, "", b.script(home, page, heading))
	b.Logf("%4.1f s: %s, %s", time.Since(start).Seconds(), page, heading)
	return said
}

// What the manual has a person type is typed here as it is there, and does what it
// says.
func TestManual(t *testing.T) {
	nginx(t)
	withoutBase(t)
	home := t.TempDir()
	program, err := filepath.Abs(binary)
	if err != nil {
		t.Fatal(err)
	}
	do(t, "", "mkdir "+home+"/build && ln -s "+program+" "+home+"/build/underlay")

	t.Run("quickstart", func(t *testing.T) {
		needs(t, "dummy and VLAN") // doctor says so
		b := beginBare(t)
		server := dnsmasq(t, "router", "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120")
		examine := b.script(home, "doctor.md", "underlay doctor")
		err := wait(40*time.Second, "doctor.md", func() error { // emulated processors may be late
			out, err := sh("", examine)
			if err == nil && !strings.HasPrefix(out, "all well\n") {
				err = errorf("it says %s", out)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		server.stop()
		b.typed(home, "quickstart.md", "3. A network")
		said := b.typed(home, "quickstart.md", "4. A container")
		web := inspect(t, "web").addrs("lan")[0]
		if !strings.Contains(said, web+" ") {
			t.Errorf("web has %s, and underlay addresses says\n%s", web, said)
		}
		serves(t, "the container, from the LAN", "host1", web)
		isolated(t, "the Docker host to the container", "", web)
		_, err = tryDocker("run", "--rm", "--network", "lan", "--ip", "192.168.50.70", image, "true")
		refused(t, err, `user configured subnets`)
		b.typed(home, "quickstart.md", "5. An address of your choice, and the Docker host")
		serves(t, "the container, from the LAN", "host1", "192.168.50.70")
		serves(t, "the container, from the Docker host", "", "192.168.50.70")
		t.Cleanup(func() {
			if api("GET", "/plugins/"+plugin+"/json", nil, nil) != nil {
				if err := installPlugin(); err != nil {
					t.Error(err)
				}
			}
		})
		b.typed(home, "quickstart.md", "6. All of it away")
		if api("GET", "/plugins/"+plugin+"/json", nil, nil) == nil {
			t.Error("the plugin is there still")
		}

		// While there is no managed plugin, one by hand.
		commands := manual.Commands(b.script(home, "install.md", "As a socket plugin by hand"))
		serve := strings.Fields(commands[len(commands)-1])
		by := exec.Command(binary, serve[1:]...)
		if err := by.Start(); err != nil {
			t.Fatal(err)
		}
		err = wait(10*time.Second, strings.Join(serve, " "), func() error {
			_, err := os.Stat("/run/docker/plugins/underlay.sock")
			return err
		})
		if err != nil {
			t.Error(err)
		} else if out := say(t, nil, "status"); !strings.Contains(out, "/var/lib/underlay/underlay.db") {
			t.Errorf("by hand, its status is\n%s", out)
		}
		by.Process.Signal(os.Interrupt)
		if err := by.Wait(); err != nil {
			t.Errorf("by hand, interrupted: %v", err)
		}
		do(t, "", "rm -r /run/docker/plugins/underlay.sock /var/lib/underlay || :")

		do(t, "", "cp -a "+pluginDir+" "+home+"/underlay-plugin && cd "+home+" && tar -I 'gzip -1' -cf underlay-v1-plugin-amd64.tar.gz underlay-plugin && rm -r underlay-plugin")
		b.typed(home, "install.md", "From a release, without Go")
	})

	t.Run("networks", func(t *testing.T) {
		needs(t, "dummy and VLAN")
		b := beginBare(t)
		b.typed(home, "options.md", "parent")
		if out := say(t, nil, "networks"); !strings.Contains(out, "192.168.50.0/24") || !strings.Contains(out, " "+router4+" ") {
			t.Errorf("options.md, parent: it is\n%s", out)
		}
		b.tidy()
		do(t, "", "ip link add bond0 type dummy && ip link set bond0 up")
		b.typed(home, "options.md", "vlan")
		wantVLANs(t, "options.md, vlan", "bond0.30 802.1Q 30 on bond0")
		b.tidy()
		do(t, "", "ip link del bond0")
		b.typed(home, "options.md", "Options of the pool")
		for addr, want := range map[string]string{"192.168.50.20": "excluded", "192.168.50.200": "excluded", "192.168.50.71": "reserved"} {
			if out := say(t, nil, "addresses", addr); !strings.Contains(out, want) {
				t.Errorf("options.md, pool: %s is not %s:\n%s", addr, want, out)
			}
		}
		b.tidy()

		for heading, vlans := range map[string][]string{
			"The Docker host and its containers":  nil,
			"VLANs":                               {"eth0.10 802.1Q 10 on eth0", "eth0.20 802.1Q 20 on eth0", "eth0.30 802.1ad 30 on eth0", "eth0.30.31 802.1Q 31 on eth0.30"},
			"Routes in the containers":            nil,
			"Which network has the default route": nil,
		} {
			b.typed(home, "reach.md", heading)
			wantVLANs(t, "reach.md, "+heading, vlans...)
			b.tidy()
		}
		said := b.typed(home, "reach.md", "ipvlan l3 on the LAN")
		if want := "\nip route add 192.168.60.0/24 via 192.168.50.2\n"; !strings.HasSuffix(said, want) {
			t.Errorf("reach.md, l3: it says\n%s", said)
		}
	})

	t.Run("dhcp", func(t *testing.T) {
		b := beginBare(t)
		const mac = "02:00:5e:00:50:44"
		s := dnsmasq(t, "router", "--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120", "--dhcp-option=option:router,"+router4,
			"--dhcp-range=fd00:50::100,fd00:50::1ff,64,120", "--dhcp-host="+mac+",192.168.50.44", "--dhcp-host=id:printer-7,192.168.50.45")
		leased := func(name string, n int) {
			t.Helper()
			addrs := inspect(t, name).addrs("lan")
			if len(addrs) != n {
				t.Errorf("%s has %v", name, addrs)
			}
			for _, a := range addrs {
				if s.leased(a) == "" {
					t.Errorf("%s has %s, of which the server knows nothing:\n%s", name, a, s.log())
				}
			}
		}
		b.typed(home, "dhcp.md", "At home: a router")
		leased("web", 1)
		b.tidy()
		b.typed(home, "dhcp.md", "IPv6")
		leased("web", 2)
		b.tidy()
		b.typed(home, "dhcp.md", "At work: reservations by MAC")
		leased("web", 1)
		serves(t, "by its reserved address", "host1", "192.168.50.44")
		b.typed(home, "dhcp.md", "What the server sees")
		leased("printer", 1)
		if l := s.leased("192.168.50.45"); !strings.Contains(l, " laser ") {
			t.Errorf("dhcp.md, what the server sees: %s", l)
		}
		b.tidy()
		s.stop()

		do(t, "router", "ip addr add fd00:50:b::1/64 dev eth0 nodad")
		t.Cleanup(func() { do(t, "router", "ip addr del fd00:50:b::1/64 dev eth0") })
		dnsmasq(t, "router", "--dhcp-range=fd00:50:b::,ra-only,64,120", "--enable-ra", "--ra-param=eth0,4")
		b.network(lanArgs("lan")...)
		b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "-o", "parent=eth0", "lan4")
		b.typed(home, "dhcp.md", "Without DHCPv6: router advertisements")
		for _, name := range []string{"vpn", "web"} {
			c := inspect(t, name)
			err := wait(20*time.Second, name, func() error {
				out, err := sh(c.at(), "ip -6 addr")
				if err == nil && !strings.Contains(out, "fd00:50:b:") {
					err = errorf("has no address by SLAAC:\n%s", out)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("plugin", func(t *testing.T) {
		b := beginBare(t)
		do(t, "", "mkdir -p /etc/bash_completion.d")
		t.Cleanup(func() { do(t, "", "rm -f /usr/local/bin/underlay /etc/bash_completion.d/underlay") })
		b.typed(home, "cli.md", "The command line")
		do(t, "", "/usr/local/bin/underlay status && bash -n /etc/bash_completion.d/underlay && test -s /etc/bash_completion.d/underlay")

		b.network(lanArgs("lan")...)
		c := b.run("web", "--network", "lan", "--ip", "192.168.50.70")
		reconcile(t) // the minute's look may have been while the last containers went
		if said := b.typed(home, "install.md", "What it holds"); strings.Count(said, "192.168.50.70 ") != 1 || !strings.Contains(said, "not mended: nothing") {
			t.Errorf("install.md, what it holds:\n%s", said)
		}
		if said := b.typed(home, "reliability.md", "Records, kernel, Docker"); said != "all is as it should be\n" {
			t.Errorf("reliability.md: it says %s", said)
		}

		id := strings.Repeat("1a2b3c4d5e6f7081", 4) // as the page has it, of a network that Docker does not know
		ask(t, "/NetworkDriver.CreateNetwork", map[string]any{
			"NetworkID": id, "Options": map[string]any{"com.docker.network.generic": map[string]string{"parent": "eth1"}},
			"IPv4Data": []map[string]string{{"AddressSpace": "underlay", "Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}},
		}, nil)
		if said := b.typed(home, "restarts.md", "Restarts"); strings.Count(said, id) != 1 {
			t.Errorf("restarts.md: it says\n%s", said)
		}
		if is := strings.Join(state(t), "\n"); strings.Contains(is, id) {
			t.Errorf("restarts.md: forgotten, and still there:\n%s", is)
		}

		reconcile(t) // it pictures the interfaces
		was := strings.Join(state(t), "\n")
		if said := b.typed(home, "cli.md", "export and import"); !strings.Contains(said, "records are in underlay.db\nas of ") {
			t.Errorf("cli.md, import: it says\n%s", said)
		}
		if is := strings.Join(state(t), "\n"); is != was {
			t.Errorf("cli.md, import: the state is not what it was: %s", difference(was, is))
		}
		said := b.typed(home, "metrics.md", "Where they are")
		if n := strings.Count(said, "\nunderlay_endpoints 1\n"); n != 2 {
			t.Errorf("metrics.md: %d answers\n%s", n, said)
		}
		b.typed(home, "install.md", "Settings")
		setting := func(want ...string) {
			t.Helper()
			var info struct {
				Settings struct{ Env []string }
			}
			if err := api("GET", "/plugins/"+plugin+"/json", nil, &info); err != nil {
				t.Error(err)
			}
			for _, w := range want {
				if !slices.Contains(info.Settings.Env, w) {
					t.Errorf("the settings are %v, without %s", info.Settings.Env, w)
				}
			}
		}
		setting("LOG_LEVEL=debug", "METRICS_ADDR=9323")
		docker(t, "plugin", "disable", "-f", plugin)
		b.typed(home, "install.md", "Another run folder of dockerd's")
		setting("SANDBOX_DIR=/run/docker-b/netns")
		docker(t, "plugin", "set", plugin, "sandboxes.source=/var/run/docker", "SANDBOX_DIR=/var/run/docker/netns", "LOG_LEVEL=info", "METRICS_ADDR=")
		docker(t, "plugin", "enable", plugin)
		reaches(t, "after all that, a LAN host to the container", "host1", c.addrs("lan")...)
	})
}
