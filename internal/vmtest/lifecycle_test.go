//go:build vm

package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// docker stop, start, restart and kill.
func TestRestart(t *testing.T) {
	b := begin(t)
	b.network(lanArgs("lan")...)
	var fixed, loose container
	together(
		func() { fixed = b.run("fixed", "--network", "lan", "--ip", "192.168.50.70", "--ip6", "fd00:50::70") },
		func() { loose = b.run("loose", "--network", "lan") },
	)
	if t.Failed() {
		return
	}
	reaches(t, "a LAN host to the container", "host1", "192.168.50.70", "fd00:50::70")
	was := fixed.NetworkSettings.Networks["lan"]

	docker(t, "stop", "fixed")
	isolated(t, "a LAN host to the stopped container", "host1", "192.168.50.70")
	together(
		func() { docker(t, "start", "fixed") },
		func() { docker(t, "restart", "-t", "0", "loose") },
	)
	fixed, loose = inspect(t, "fixed"), inspect(t, "loose")
	is := fixed.NetworkSettings.Networks["lan"]
	if is.MacAddress != was.MacAddress || is.IPAddress != was.IPAddress || is.EndpointID == was.EndpointID {
		t.Errorf("after stop and start the endpoint is %+v, was %+v; want the same addresses and a new ID", is, was)
	}
	reaches(t, "a LAN host to the started container", "host1", "192.168.50.70", "fd00:50::70")
	reaches(t, "a LAN host to the restarted container", "host1", loose.addrs("lan")...)
	reaches(t, "container to container", loose.at(), "192.168.50.70")

	// Its process dies under it.
	docker(t, "kill", "loose")
	if c := inspect(t, "loose"); c.State.Running {
		t.Error("the killed container runs")
	}
}

// docker network connect and disconnect on a running container, many times.
func TestConnect(t *testing.T) {
	b := begin(t)
	b.network(lanArgs("lan")...)
	before := picture(t)
	for range 3 {
		c := b.connect("lan", "base1", "--ip", "192.168.50.80", "--ip6", "fd00:50::80", "--alias", "guest")
		reaches(t, "a LAN host to the container", "host1", "192.168.50.80", "fd00:50::80")
		if n := links(t, c.at()); len(n) != 2 {
			t.Errorf("the container has the links %v, want 2", n)
		}
		b.disconnect("lan", "base1")
		if n := links(t, c.at()); len(n) != 1 {
			t.Errorf("the disconnected container has the links %v, want 1", n)
		}
	}
	unchanged(t, "connect and disconnect", before)
	// A connected container is destroyed with its network still on it.
	c := b.run("goner", "--network", "lan")
	docker(t, "network", "connect", "--ip", "192.168.50.81", "lan", "base2")
	reaches(t, "container to container", c.at(), "192.168.50.81")
	docker(t, "rm", "-f", "goner")
	_, err := tryDocker("network", "rm", "lan")
	refused(t, err, `active endpoints`)
	b.disconnect("lan", "base2")
}

const composeFile = `
services:
  web:
    image: bb
    command: sleep 1000000
    stop_signal: KILL
    mac_address: 02:11:22:33:44:71
    networks:
      lan:
        ipv4_address: 192.168.50.70
        ipv6_address: fd00:50::70
        aliases: [www]
  db:
    image: bb
    command: sleep 1000000
    stop_signal: KILL
    networks: [lan, back]
networks:
  lan:
    driver: PLUGIN
    enable_ipv6: true
    driver_opts:
      parent: eth0
      macvlan_mode: bridge
    ipam:
      driver: PLUGIN
      config:
        - subnet: 192.168.50.0/24
          gateway: 192.168.50.1
          ip_range: 192.168.50.64/26
        - subnet: fd00:50::/64
          gateway: fd00:50::1
          ip_range: fd00:50::1:0/112
  back:
    driver: PLUGIN
    internal: true
    driver_opts:
      parent: eth0.10
    ipam:
      driver: PLUGIN
      config:
        - subnet: 192.168.10.0/24
          ip_range: 192.168.10.64/26
`

// docker compose up and down.
func TestCompose(t *testing.T) {
	needs(t, "dummy")
	b := begin(t)
	dir := t.TempDir()
	text := strings.ReplaceAll(composeFile, "PLUGIN", plugin)
	compose := []string{"docker", "compose"}
	if exec.Command("docker", "compose", "version").Run() != nil {
		// Compose 1, written in Python: it wants a version, and enable_ipv6
		// is of the file formats 2.1 to 2.4.
		compose = []string{"docker-compose"}
		text = "version: '2.4'\n" + text
	}
	file := filepath.Join(dir, "compose.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		args = append(append(compose[1:len(compose):len(compose)], "-p", "shop", "-f", file), args...)
		if out, err := exec.Command(compose[0], args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	defer run("down", "-t", "0")
	run("up", "-d")
	var web, db container
	for name, c := range map[string]*container{"web": &web, "db": &db} {
		var list []struct {
			ID string `json:"Id"`
		}
		if err := api("GET", `/containers/json?filters={"label":["com.docker.compose.project=shop","com.docker.compose.service=`+name+`"]}`, nil, &list); err != nil || len(list) != 1 {
			t.Fatalf("service %s: %v %v", name, list, err)
		}
		*c = inspect(t, list[0].ID)
	}
	reaches(t, "a LAN host to web", "host1", "192.168.50.70", "fd00:50::70")
	reaches(t, "web through the router", web.at(), internet4, internet6)
	if mac := links(t, web.at())["eth0"].MAC; mac != "02:11:22:33:44:71" {
		t.Errorf("web has MAC %s", mac)
	}
	reaches(t, "db to web", db.at(), "192.168.50.70")
	reaches(t, "db to its other network's router", db.at(), "192.168.10.1")
	for _, name := range []string{"web", "www"} {
		if answer, err := db.resolve(name); err != nil || !strings.Contains(answer, "192.168.50.70") {
			t.Errorf("db resolves %s to %q, %v", name, answer, err)
		}
	}
	_ = b
}
