package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"underlay/internal/doctor"
	"underlay/internal/nstest"
	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
	"underlay/netlinkutil"
)

// inside has the test binary look at the network namespace that it is started in,
// with all of its threads, and print what it finds.
const (
	inside = "UNDERLAY_DOCTOR"
	docked = "UNDERLAY_DOCTOR_NETWORKS" // what Docker has
)

func TestMain(m *testing.M) {
	if parent := os.Getenv(inside); parent != "" {
		if err := look(parent); err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		os.Exit(0)
	}
	flag.Parse()
	flag.Set("test.parallel", "16") // the tests wait more than they work
	nstest.Main(m)
}

func look(parent string) error {
	host, err := netlinkutil.Open()
	if err != nil {
		return err
	}
	defer host.Close()
	client := dhcp.New(dhcp.Config{Log: logrus.New()})
	defer client.Close()
	client6 := dhcp6.New(dhcp6.Config{Log: logrus.New()})
	defer client6.Close()
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	found := doctor.Diagnose(doctor.Gather(ctx, doctor.Sources{
		Version: "v1", Kernel: whole{host}, Wire: doctor.LANs{Client: client, Client6: client6}, Docker: quiet{}, Plugin: quiet{}, Files: only{os.DirFS("/")},
	}, strings.Fields(parent)...))
	return doctor.Write(os.Stdout, found)
}

// whole is a kernel that has all types of links.
type whole struct{ *netlinkutil.Host }

func (whole) Supports(string) (bool, error) { return true, nil }

// only is the files that are about this network namespace.
type only struct{ fs.FS }

func (o only) Open(path string) (fs.File, error) {
	if !strings.HasPrefix(path, "proc/sys/net/") {
		return nil, fs.ErrNotExist
	}
	return o.FS.Open(path)
}

// quiet is a Docker and a plugin with nothing to say.
type quiet struct{}

func (quiet) Get(_ context.Context, path string, into any) error {
	return json.Unmarshal([]byte(map[string]string{
		"/version":  `{"Version":"29.1.0"}`,
		"/networks": cmp.Or(os.Getenv(docked), "[]"),
		"/plugins":  `[{"Name":"underlay:latest","Enabled":true,"Config":{"Interface":{"Socket":"underlay.sock"}}}]`,
	}[path]), into)
}
func (quiet) Find() (string, error) { return "/run/underlay.sock", nil }
func (quiet) Ask(_ context.Context, _, _ string, into any) error {
	return json.Unmarshal([]byte(`{"version":"v1"}`), into)
}
func (quiet) Process(string) (doctor.Process, error) {
	return doctor.Process{Capabilities: []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}}, nil
}

// lab is a LAN: a switch, a Docker host, a router, and a DHCP server.
type lab struct {
	t                              *testing.T
	sw, host, router, server, more *nstest.Space
	dnsmasq                        *exec.Cmd
	networks                       string // that Docker has
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, sw: nstest.NewSpace(t), host: nstest.NewSpace(t), router: nstest.NewSpace(t), server: nstest.NewSpace(t), more: nstest.NewSpace(t)}
	if err := l.sw.Try("link add br0 type bridge mcast_snooping 0", "link set br0 up"); err != nil {
		nstest.Lack(t, "bridges")
	}
	l.plug(l.host, "eth0", "host")
	l.plug(l.router, "eth0", "router")
	l.plug(l.server, "eth0", "server")
	l.plug(l.more, "eth0", "more")
	l.router.IP("addr add 10.77.0.1/24 dev eth0", "addr add fd00:77::1/64 dev eth0 nodad")
	l.server.IP("addr add 10.77.0.3/24 dev eth0")
	l.host.IP("addr add 10.77.0.2/24 dev eth0", "addr add fd00:77::2/64 dev eth0 nodad", "route add default via 10.77.0.1", "route add ::/0 via fd00:77::1 dev eth0")
	l.serve(l.server)
	return l
}

func (l *lab) plug(s *nstest.Space, name, port string) {
	l.t.Helper()
	l.sw.IP(fmt.Sprintf("link add %s type veth peer name %s netns %d", port, name, s.TID), "link set "+port+" master br0 up")
	s.IP("link set " + name + " up")
}

// serve starts a DHCP server.
func (l *lab) serve(s *nstest.Space, ranges ...string) (stop func()) {
	l.t.Helper()
	path := "/usr/sbin/dnsmasq"
	if found, err := exec.LookPath("dnsmasq"); err == nil {
		path = found
	} else if _, err := os.Stat(path); err != nil {
		nstest.Lack(l.t, "dnsmasq (Debian: dnsmasq-base)")
	}
	said := &nstest.Words{}
	c := exec.Command(path, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--group=", "--log-facility=-",
		"--interface=eth0", "--bind-interfaces", "--no-ping",
		"--dhcp-leasefile="+filepath.Join(l.t.TempDir(), "leases"), "--pid-file=")
	c.Args = append(c.Args, cmp.Or(strings.Join(ranges, " "), "--dhcp-range=10.77.0.100,10.77.0.200,120"))
	c.Stdout, c.Stderr = said, said
	var err error
	s.Run(func() { err = c.Start() })
	if err != nil {
		l.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = c.Process.Kill(); _ = c.Wait() })
	l.t.Cleanup(stop)
	for end := time.Now().Add(20 * time.Second); !strings.Contains(said.String(), "started, version"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("dnsmasq: %s", said)
		}
	}
	if l.dnsmasq == nil {
		l.dnsmasq = c
	}
	return stop
}

// run runs a program in a namespace.
func run(t *testing.T, s *nstest.Space, name string, args ...string) string {
	t.Helper()
	var out []byte
	var err error
	s.Run(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// mac is that of a link.
func mac(t *testing.T, s *nstest.Space, name string) (m string) {
	t.Helper()
	s.Run(func() {
		if ifi, err := net.InterfaceByName(name); err == nil {
			m = ifi.HardwareAddr.String()
		}
	})
	return m
}

// finds is what is found in the Docker host's namespace, without remedies.
func (l *lab) finds(parents string) string {
	l.t.Helper()
	var out []byte
	var err error
	l.host.Run(func() {
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), inside+"="+parents, docked+"="+l.networks)
		out, err = c.CombinedOutput()
	})
	if err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
	var facts []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "  ") {
			facts = append(facts, strings.TrimSpace(line))
		}
	}
	return strings.Join(facts, "\n")
}

const leasing = `[{"Name":"six","Driver":"underlay:latest","Options":{"parent":"eth0","dhcp":"v6"}}]`

// Faults that are made on a LAN are each found, and nothing else is.
func TestLab(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(l *lab)
		want func(l *lab) string // nil: the one in words
		word string
	}{
		{"healthy", func(*lab) {}, nil, "all well"},
		{"gateway dead", func(l *lab) { l.router.IP("link set eth0 down") }, nil,
			"error: eth0: gateway 10.77.0.1 does not answer: containers reach their own LAN alone\nerror: eth0: gateway fd00:77::1 does not answer: containers reach their own LAN alone"},
		{"address of the host", func(l *lab) { l.more.IP("addr add 10.77.0.2/24 dev eth0") },
			func(l *lab) string {
				return "error: eth0: the host's address 10.77.0.2 is that of " + mac(l.t, l.more, "eth0") + " too"
			}, ""},
		{"IPv6 address of the host", func(l *lab) { l.more.IP("addr add fd00:77::2/64 dev eth0 nodad") },
			func(l *lab) string {
				return "error: eth0: the host's address fd00:77::2 is that of " + mac(l.t, l.more, "eth0") + " too"
			}, ""},
		{"address of the gateway", func(l *lab) {
			l.more.IP("link set eth0 down", "link set eth0 address 02:ff:ff:ff:ff:ff", "link set eth0 up", "addr add 10.77.0.1/24 dev eth0")
			l.router.IP("link set eth0 down", "link set eth0 address 02:00:00:00:00:01", "link set eth0 up", "addr replace fd00:77::1/64 dev eth0 nodad")
		}, nil, "error: eth0: gateway 10.77.0.1 is answered for by 02:00:00:00:00:01 and 02:ff:ff:ff:ff:ff"},
		{"MAC filter", func(l *lab) {
			run(l.t, l.sw, "bridge", "link", "set", "dev", "host", "learning", "off", "locked", "on")
			run(l.t, l.sw, "bridge", "fdb", "replace", mac(l.t, l.host, "eth0"), "dev", "host", "master", "static")
		}, nil, "error: eth0: gateway 10.77.0.1 answers eth0's own MAC and no other: a filter lets no containers' MACs through"},
		{"no DHCP", func(l *lab) { _ = l.dnsmasq.Process.Kill() }, nil, "note: eth0: no DHCP server answers: -o dhcp=true does not work there"},
		{"two DHCP servers", func(l *lab) {
			l.more.IP("addr add 10.77.0.4/24 dev eth0")
			l.serve(l.more)
		}, nil, "warning: eth0: 2 DHCP servers answer: 10.77.0.3 and 10.77.0.4"},
		{"IPv6 leases without a server", func(l *lab) { l.networks = leasing }, nil,
			"warning: eth0: a network there leases IPv6 addresses, and none is offered: no DHCPv6 server answers on eth0: is there one that gives addresses (managed, stateful), and in this VLAN?"},
		{"IPv6 leases", func(l *lab) {
			l.networks = leasing
			l.more.IP("addr add fd00:77::4/64 dev eth0 nodad", "addr add 10.77.0.4/24 dev eth0")
			l.serve(l.more, "--dhcp-range=fd00:77::100,fd00:77::200,64,120")
		}, nil, "all well"},
		{"two NICs on the LAN", func(l *lab) {
			l.plug(l.host, "eth1", "second")
			l.host.Set("/proc/sys/net/ipv4/conf/eth1/arp_ignore", "0")
		}, nil, "warning: eth0: link eth1 of this host answers for 10.77.0.2 too: the LAN finds it now here, now there"},
		{"arp_ignore of all", func(l *lab) { l.host.Set("/proc/sys/net/ipv4/conf/all/arp_ignore", "2") }, nil,
			"warning: host: net.ipv4.conf.all.arp_ignore=2: -o host_access=true is refused with that"},
		{"passthru in a container", func(l *lab) {
			l.host.IP("link add link eth0 name p0 type macvlan mode passthru", fmt.Sprintf("link set p0 netns %d", l.more.TID))
			l.more.IP("link set p0 up")
		}, nil, "error: eth0: a container's link p0, macvlan passthru, which is not underlay's, is on it: no other link can be made"},
		{"macvlan", func(l *lab) { l.host.IP("link add link eth0 name m0 type macvlan mode vepa") }, nil,
			"note: eth0: another program's link m0, macvlan vepa, is on it: no ipvlan or passthru network can be made"},
		{"macvlan of underlay", func(l *lab) {
			l.host.IP("link add link eth0 name m0 type macvlan mode vepa", `link set m0 alias "underlay 1 endpoint"`)
		}, nil, "all well"},
		{"no carrier", func(l *lab) { l.sw.IP("link set host down") }, nil, "error: eth0: it has no carrier"},
		{"port of a bridge", func(l *lab) { l.host.IP("link add br7 type bridge", "link set eth0 master br7") }, nil,
			"error: eth0: it is a port of bridge br7, which takes all of its traffic"},
		{"router advertisements", func(l *lab) {
			l.host.IP("route del ::/0 via fd00:77::1 dev eth0")
			l.host.Set("/proc/sys/net/ipv6/conf/eth0/forwarding", "1")
			l.host.Set("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1")
			l.advertise()
		}, func(l *lab) string {
			var ll string
			l.router.Run(func() {
				ifi, _ := net.InterfaceByName("eth0")
				as, _ := ifi.Addrs()
				for _, a := range as {
					if p, _, _ := net.ParseCIDR(a.String()); p.IsLinkLocalUnicast() {
						ll = p.String()
					}
				}
			})
			return "warning: eth0: router " + ll + " advertises itself, and the host does not heed it, as it forwards IPv6: networks do not find their IPv6 subnet by themselves"
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			c.do(l)
			want := c.word
			if c.want != nil {
				want = c.want(l)
			}
			var got string
			// A port of a switch, a link-local address and a carrier take their time to be
			// there.
			for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
				if got = l.finds("eth0"); got == want {
					break
				}
				t.Logf("not yet: %s", got)
			}
			if got != want {
				t.Errorf("found\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// advertise has the router do so.
func (l *lab) advertise() {
	l.t.Helper()
	path := "/usr/sbin/dnsmasq"
	if found, err := exec.LookPath("dnsmasq"); err == nil {
		path = found
	}
	c := exec.Command(path, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--group=", "--log-facility=-",
		"--interface=eth0", "--bind-interfaces", "--enable-ra", "--dhcp-range=::,constructor:eth0,ra-only", "--pid-file=", "--dhcp-leasefile="+filepath.Join(l.t.TempDir(), "leases6"))
	var err error
	l.router.Run(func() { err = c.Start() })
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
}

// Looking changes nothing on the host, and leaves no word with its neighbours.
func TestLabLeavesNothing(t *testing.T) {
	l := newLab(t)
	picture := func() string {
		return run(t, l.host, "ip", "-d", "link") + run(t, l.host, "ip", "addr") + run(t, l.host, "ip", "route") + run(t, l.host, "ip", "maddr") +
			run(t, l.router, "ip", "-4", "neigh")
	}
	before := picture()
	for end := time.Now().Add(20 * time.Second); strings.Contains(before, "tentative") && time.Now().Before(end); before = picture() {
		time.Sleep(20 * time.Millisecond)
	}
	if got := l.finds("eth0"); got != "all well" {
		t.Error(got)
	}
	if after := picture(); after != before {
		t.Error(gocmp.Diff(before, after))
	}
}
