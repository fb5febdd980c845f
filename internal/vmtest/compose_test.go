//go:build vm

package vmtest

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"underlay/internal/manual"
)

// sections reads a page of the manual.
func sections(t *testing.T, page string) []manual.Section {
	t.Helper()
	all, err := manual.Read(filepath.Join("docs", page))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// nginx is an image of that name, which serves something at port 80, until the test's
// end.
func nginx(t *testing.T) {
	t.Helper()
	importImage(t, "nginx", `["busybox","httpd","-f","-p","80"]`)
}

func importImage(t *testing.T, name, cmd string) {
	t.Helper()
	do(t, "", `tar -C /tmp/image -c . | docker import -c 'CMD `+cmd+`' - `+name)
	t.Cleanup(func() { docker(t, "rmi", name) })
}

// stack is a Compose file under test, in a folder of its own.
type stack struct {
	*test
	dir string
	old bool // Compose 1
}

func (b *test) stack(yaml string) stack {
	b.Helper()
	s := stack{b, b.TempDir(), exec.Command("docker", "compose", "version").Run() != nil}
	if s.old {
		// Compose 1, written in Python: it wants a version, and enable_ipv6
		// is of the file formats 2.1 to 2.4.
		yaml = "version: '2.4'\n" + yaml
	}
	if err := os.WriteFile(filepath.Join(s.dir, "compose.yaml"), []byte(yaml), 0o600); err != nil {
		b.Fatal(err)
	}
	return s
}

// sh runs commands in the stack's folder as they are in the manual.
func (s stack) sh(commands string) {
	s.Helper()
	if s.old {
		commands = strings.ReplaceAll(commands, "docker compose", "docker-compose -f compose.yaml")
	}
	if _, err := sh("", "cd "+s.dir+"\n"+commands); err != nil {
		s.Fatal(err)
	}
}

// up starts a project, which is taken down at the test's end.
func (s stack) up(project, env string) {
	s.Helper()
	s.Cleanup(func() { s.sh(env + " docker compose -p " + project + " down -t 0") })
	s.sh(env + " docker compose -p " + project + " up -d")
}

// service is the one container of a service.
func (s stack) service(project, name string) container {
	s.Helper()
	filter := fmt.Sprintf(`{"label":["com.docker.compose.project=%s","com.docker.compose.service=%s"]}`, project, name)
	var list []struct {
		ID string `json:"Id"`
	}
	if err := api("GET", "/containers/json?filters="+url.QueryEscape(filter), nil, &list); err != nil || len(list) != 1 {
		s.Fatalf("service %s of %s: %v %v", name, project, list, err)
	}
	return inspect(s.T, list[0].ID)
}

// serves wants a web server's answer, whatever it is.
func serves(t *testing.T, what string, p place, addr string) {
	t.Helper()
	var out []byte
	err := wait(15*time.Second, what, func() (err error) {
		out, err = p.command("curl", "-s", "-o", "/dev/null", "-m", "3", "-g", "-w", "%{http_code}", "http://"+addr+"/").CombinedOutput()
		return err
	})
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// Every Compose file of the manual is run as it is there, and what the page
// says of it is so. The images alone are not the true ones.
func TestComposeFiles(t *testing.T) {
	nginx(t)
	importImage(t, "postgres", `["busybox","sleep","1000000"]`)
	const web4, web6 = "192.168.50.70", "fd00:50::70"
	checks := map[string]func(*testing.T, stack, manual.Section){
		"A service with an address of its own": func(t *testing.T, s stack, _ manual.Section) {
			s.up("shop", "")
			serves(t, "the service, from the LAN", "host1", web4)
			reaches(t, "the service through the router", s.service("shop", "web").at(), internet4)
			isolated(t, "the Docker host to the service", "", web4)
		},
		"One network on the LAN, one inside": func(t *testing.T, s stack, _ manual.Section) {
			s.up("shop", "")
			web, db := s.service("shop", "web"), s.service("shop", "db")
			serves(t, "the service, from the LAN", "host1", web4)
			reaches(t, "web through the router", web.at(), internet4)
			inside := db.addrs("shop_back")
			if answer, err := web.resolve("db"); err != nil || len(inside) != 1 || !strings.Contains(answer, inside[0]) {
				t.Fatalf("web resolves db to %q, %v; db has %v", answer, err, inside)
			}
			reaches(t, "web to db", web.at(), inside...)
			isolated(t, "the LAN to db", "host1", inside...)
			isolated(t, "the Docker host to db", "", inside...)
			isolated(t, "db to the LAN and beyond", db.at(), host4, router4, internet4)
		},
		"IPv4 and IPv6": func(t *testing.T, s stack, _ manual.Section) {
			s.up("shop", "")
			serves(t, "the service, from the LAN", "host1", web4)
			serves(t, "the service, from the LAN", "host1", "["+web6+"]")
			reaches(t, "the service through the router", s.service("shop", "web").at(), internet4, internet6)
		},
		"A VLAN for each stack": func(t *testing.T, s stack, doc manual.Section) {
			do(t, "router", "ip link add link eth0 name eth0.11 type vlan id 11; ip addr add 192.168.11.1/24 dev eth0.11; ip link set eth0.11 up")
			s.Cleanup(func() { do(t, "router", "ip link del eth0.11") })
			s.Cleanup(func() {
				s.sh("VLAN=10 docker compose -p shop down -t 0")
				wantVLANs(t, "with one stack left", "eth0.11 802.1Q 11 on eth0")
				s.sh("VLAN=11 docker compose -p blog down -t 0")
				wantVLANs(t, "with no stack left")
			})
			s.sh(doc.Text("sh"))
			wantVLANs(t, "with two stacks", "eth0.10 802.1Q 10 on eth0", "eth0.11 802.1Q 11 on eth0")
			shop, blog := s.service("shop", "web"), s.service("blog", "web")
			reaches(t, "shop to its router", shop.at(), "192.168.10.1")
			reaches(t, "blog to its router", blog.at(), "192.168.11.1")
			serves(t, "shop, from its VLAN", "router", shop.addrs("shop_lan")[0])
			serves(t, "blog, from its VLAN", "router", blog.addrs("blog_lan")[0])
			reaches(t, "shop to blog by the router", shop.at(), blog.addrs("blog_lan")...)
			do(t, "router", "sysctl -qw net.ipv4.ip_forward=0")
			isolated(t, "shop to blog, the router does not forward", shop.at(), blog.addrs("blog_lan")...)
			do(t, "router", "sysctl -qw net.ipv4.ip_forward=1")
		},
		"The Docker host reaches the containers": func(t *testing.T, s stack, _ manual.Section) {
			s.up("shop", "")
			serves(t, "the service, from the LAN", "host1", web4)
			serves(t, "the service, from the Docker host", "", web4)
			reaches(t, "the service to the Docker host and the LAN", s.service("shop", "web").at(), docker4, host4, internet4)
		},
		"A network that is there before the stack": func(t *testing.T, s stack, doc manual.Section) {
			s.networks = append(s.networks, "lan")
			s.sh(doc.Text("sh"))
			s.up("shop", "")
			serves(t, "the service, from the LAN", "host1", web4)
			s.sh("docker compose -p shop down -t 0")
			if err := api("GET", "/networks/lan", nil, nil); err != nil {
				t.Errorf("the network that was there before the stack: %v", err)
			}
		},
	}
	for _, doc := range sections(t, "compose.md") {
		yaml := doc.Text("yaml")
		if yaml == "" {
			continue
		}
		check := checks[doc.Heading]
		if check == nil {
			t.Errorf("compose.md has a file under %q, and nothing tests it", doc.Heading)
			continue
		}
		delete(checks, doc.Heading)
		t.Run(strings.ReplaceAll(doc.Heading, " ", "-"), func(t *testing.T) {
			if strings.Contains(yaml, "internal: true") || strings.Contains(yaml, "VLAN") {
				needs(t, "dummy and VLAN")
			}
			b := begin(t)
			check(t, b.stack(yaml), doc)
		})
	}
	for heading := range checks {
		t.Errorf("compose.md has no file under %q", heading)
	}
}
