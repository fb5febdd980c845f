package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"underlay/internal/mode"
	"underlay/ipam/dhcp"
	"underlay/ipam/probe"
	"underlay/netlinkutil"
	"underlay/plugin"
)

// made is a whole host that is made up.
type made struct {
	links    []netlinkutil.Detail
	refused  error
	subnets  map[string][]netlinkutil.Subnet
	defaults map[bool]string
	answers  map[string]string // of dockerd, by path
	process  Process
	asked    []probe.Question
}

func (m *made) Supports(kind string) (bool, error)             { return kind != "dummy", m.refused }
func (m *made) Details() ([]netlinkutil.Detail, error)         { return m.links, m.refused }
func (m *made) Subnets(l string) ([]netlinkutil.Subnet, error) { return m.subnets[l], nil }
func (m *made) DefaultLink(v6 bool) (string, error) {
	if m.defaults[v6] == "" {
		return "", netlinkutil.ErrNoRoute
	}
	return m.defaults[v6], nil
}

func (m *made) Get(_ context.Context, path string, into any) error {
	if m.answers[path] == "" {
		return errors.New("nobody listens")
	}
	return json.Unmarshal([]byte(m.answers[path]), into)
}

func (m *made) Find() (string, error) {
	if m.answers[plugin.StatusPath] == "" {
		return "", plugin.ErrNoSocket
	}
	return "/run/underlay.sock", nil
}
func (m *made) Ask(ctx context.Context, _, path string, into any) error {
	return m.Get(ctx, path, into)
}
func (m *made) Process(string) (Process, error) { return m.process, nil }

// Survey: everybody answers from their own MAC, the gateway from two, and nobody the
// stranger.
func (m *made) Survey(_ context.Context, _ string, qs []probe.Question, _ time.Duration) (a probe.Answers, err error) {
	m.asked = qs
	for _, q := range qs {
		var macs []net.HardwareAddr
		if q.From == nil && q.Addr == gw4 {
			macs = []net.HardwareAddr{{2, 0, 0, 0, 0, 0xbb}, {2, 0, 0, 0, 0, 0xaa}}
		}
		a.MACs = append(a.MACs, macs)
	}
	a.Routers = []netip.Addr{gw6}
	return a, nil
}

func (m *made) DHCP(_ context.Context, _ string, mac net.HardwareAddr) ([]dhcp.Terms, error) {
	if len(mac) != 6 {
		return nil, errors.New("no MAC")
	}
	return []dhcp.Terms{{Server: gw4, MTU: 1400}}, nil
}

func (m *made) DHCPv6(context.Context, string, net.HardwareAddr) error {
	return errors.New("nobody answers")
}

func TestGather(t *testing.T) {
	w := well()
	m := &made{
		links: w.Links, defaults: map[bool]string{false: "eth0"}, subnets: map[string][]netlinkutil.Subnet{"eth0": w.Parents[0].Subnets[:1]},
		answers: map[string]string{
			"/version":  `{"Version":"28.5.2"}`,
			"/plugins":  `[{"Name":"company/lan:1","Enabled":true,"Config":{"Interface":{"Socket":"underlay.sock"}}},{"Name":"other:1","Config":{"Interface":{"Socket":"other.sock"}}}]`,
			"/networks": `[{"Name":"bridge","Driver":"bridge"},{"Name":"tagged","Driver":"company/lan:1","Options":{"parent":"eth0","vlan":"10","ipvlan_mode":"l3"},"IPAM":{"Config":[{"Subnet":"10.1.0.0/16"}]}},{"Name":"six","Driver":"company/lan:1","Options":{"parent":"eth0","dhcp":"v6"},"IPAM":{"Options":{"dhcp":"both","dhcp_server":"192.168.50.1"}}},{"Name":"old","Driver":"macvlan","Options":{"parent":"eth0"},"IPAM":{"Config":[{"Subnet":"192.168.50.0/24","IPRange":"192.168.50.7/26","Gateway":"192.168.50.254"}]}}]`,

			plugin.StatusPath:    `{"version":"v1","parents":[{"name":"eth0.10","state":"up"},{"name":"eth7","state":"down","reason":"it is down"},{"name":"enx1","state":"waiting","reason":"it is gone"},{"name":"dm1","state":"up","dummy":true}]}`,
			plugin.ConflictsPath: `{"conflicts":[{"address":"192.168.50.70","mac":"02:00:00:00:00:bb"}]}`,
		},
		process: Process{Capabilities: []string{"CAP_NET_ADMIN"}, Rebuild: true, State: Folder{Path: "/var/lib/underlay", Free: 7}},
	}
	files := fstest.MapFS{}
	for path, text := range map[string]string{
		"proc/sys/kernel/osrelease": "6.12.1\n", "sys/class/dmi/id/sys_vendor": "QEMU\n", "sys/class/dmi/id/product_name": "Standard PC\n",
		"sys/class/net/eth0/uevent": "DEVTYPE=wlan\nINTERFACE=eth0\n", "proc/sys/net/ipv4/conf/all/arp_ignore": "1\n", "proc/sys/net/ipv6/conf/eth0/accept_ra": "2\n",
	} {
		files[path] = &fstest.MapFile{Data: []byte(text)}
	}
	got := Gather(context.Background(), Sources{Version: "v1", Kernel: m, Wire: m, Docker: m, Plugin: m, Files: files})
	gw254 := netip.MustParseAddr("192.168.50.254")
	want := &Facts{
		Version: "v1", Kinds: map[string]bool{"macvlan": true, "ipvlan": true, "vlan": true, "dummy": false}, Release: "6.12.1", Machine: "QEMU Standard PC",
		Links: w.Links,
		Parents: []Parent{
			{Name: "enx1"},
			{Name: "eth0", Wireless: true, Subnets: w.Parents[0].Subnets[:1], Gateways: []Gateway{{Addr: gw4}, {Addr: gw254, Of: "old"}}, LAN: LAN{
				Heard: map[netip.Addr][]string{gw4: {"02:00:00:00:00:aa", "02:00:00:00:00:bb"}}, Asked: gw4, Routers: []netip.Addr{gw6}, DHCP: []Server{{gw4, 1400}}, NoDHCPv6: "nobody answers",
			}},
			{Name: "eth0.10"}, {Name: "eth7"},
		},
		Sysctls: map[string]string{"ipv4/conf/all/arp_ignore": "1", "ipv6/conf/eth0/accept_ra": "2"},
		Docker: Docker{Version: "28.5.2", Plugins: []Plugin{{"company/lan:1", true}}, Networks: []Network{
			{Name: "old", Driver: "macvlan", Parent: "eth0", Mode: bridgeMode, Pools: []netip.Prefix{netip.MustParsePrefix("192.168.50.0/26")}, Gateways: []netip.Addr{gw254}},
			{Name: "six", Ours: true, Driver: "company/lan:1", Parent: "eth0", Mode: bridgeMode, DHCPv4: true, DHCPv6: true, Servers: true},
			{Name: "tagged", Ours: true, Driver: "company/lan:1", Parent: "eth0.10", Mode: mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "bridge"}, Pools: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		}},
		Daemon: Daemon{
			Socket: "/run/underlay.sock", Version: "v1", Waiting: []Waiting{{"enx1", "it is gone"}}, Parents: []string{"eth0.10", "eth7", "enx1"}, Rebuild: true,
			Conflicts: []Conflict{{Addr: netip.MustParseAddr("192.168.50.70"), MAC: "02:00:00:00:00:bb"}}, Capabilities: []string{"CAP_NET_ADMIN"}, State: Folder{Path: "/var/lib/underlay", Free: 7},
		},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Error(d)
	}
	last := m.asked[len(m.asked)-1]
	if len(m.asked) != 4 || last.Addr != gw4 || len(last.From) != 6 || last.From[0] != 2 {
		t.Errorf("asked: %v", m.asked)
	}
}

// A tunnel with the default route is looked at only if somebody names it.
func TestNamed(t *testing.T) {
	tunnels := []netlinkutil.Detail{
		{Link: netlinkutil.Link{Name: "he-ipv6", Kind: "sit", Up: true, Carrier: true, MAC: net.HardwareAddr{192, 168, 50, 2}}},
		{Link: netlinkutil.Link{Name: "wg0", Kind: "wireguard", Up: true, Carrier: true}},
	}
	for _, c := range []struct {
		v4, v6 string
		asked  []string
		daemon []string
		want   string
	}{
		{v4: "eth0", v6: "he-ipv6", want: "eth0"},
		{v4: "wg0", v6: "eth1", want: "eth1"},
		{v4: "wg0", v6: "wg0", want: ""},
		{v4: "wg0", daemon: []string{"wg0", "eth0"}, want: "eth0 wg0"},
		{v4: "eth0", asked: []string{"wg0"}, want: "wg0"},
		{v4: "gone0", want: "gone0"},
	} {
		f := &Facts{Links: append(well().Links, tunnels...), Daemon: Daemon{Parents: c.daemon}}
		m := &made{defaults: map[bool]string{false: c.v4, true: c.v6}}
		if got := strings.Join(f.named(m, c.asked), " "); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// A host that answers nothing at all is a host of notes.
func TestGatherNothing(t *testing.T) {
	m := &made{refused: errors.New("operation not permitted")}
	found := Diagnose(Gather(context.Background(), Sources{Kernel: m, Wire: m, Docker: m, Plugin: m, Files: fstest.MapFS{}}, "eth0"))
	var checks []string
	for _, f := range found {
		checks = append(checks, string(f.Level)+" "+f.Check)
	}
	if got, want := strings.Join(checks, ", "), "note kernel, note parent, note docker, note plugin"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestModeOf(t *testing.T) {
	for _, c := range []struct {
		driver string
		ours   bool
		o      map[string]string
		want   string
	}{
		{"macvlan", false, nil, "macvlan bridge"},
		{"macvlan", false, map[string]string{"macvlan_mode": "vepa"}, "macvlan vepa"},
		{"ipvlan", false, nil, "ipvlan l2"},
		{"ipvlan", false, map[string]string{"ipvlan_mode": "l3s", "ipvlan_flag": "private"}, "ipvlan l3s private"},
		{"underlay:latest", true, nil, "macvlan bridge"},
		{"underlay:latest", true, map[string]string{"ipvlan_flag": "vepa"}, "ipvlan l2 vepa"},
		{"macvlan", false, map[string]string{"macvlan_mode": "odd"}, " "},
	} {
		if got := modeOf(c.driver, c.ours, c.o).String(); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.driver, c.o, got, c.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for status, want := range map[string]string{
		"Name:\tunderlay\nCapPrm:\t0\nCapEff:\t0000000000203000\n": "CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN",
		"CapEff:\t0000000000001000\n":                              "CAP_NET_ADMIN",
		"CapEff:\t0000000000000000\n":                              "",
	} {
		got, err := capabilities(status)
		if err != nil || got == nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %q, %v; want %q", status, got, err, want)
		}
	}
	for _, status := range []string{"", "CapEff:\tzz\n"} {
		if got, err := capabilities(status); err == nil {
			t.Errorf("%q: %q", status, got)
		}
	}
}

func TestStateFolder(t *testing.T) {
	for line, want := range map[string]string{
		"underlay serve":                         "/var/lib/underlay",
		"underlay serve --state /srv/u --socket": "/srv/u",
		"underlay serve --state=/srv/../u":       "/u",
		"underlay serve --state":                 "/var/lib/underlay",
	} {
		if got := stateFolder(strings.Fields(line)); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}

func TestManaging(t *testing.T) {
	netif := map[string]string{"run/systemd/netif/state": ""}
	shim := []netlinkutil.Detail{{Link: netlinkutil.Link{Index: 9, Name: "ulh1", Alias: "underlay 1 host access to eth0"}}}
	for _, c := range []struct {
		name  string
		files map[string]string
		links []netlinkutil.Detail
		want  string
	}{
		{"nobody", nil, shim, ""},
		{"networkd does not run", map[string]string{"etc/systemd/network/a.network": "[Match]\nName=*\n", "run/systemd/netif/state": "-"}, nil, ""},
		{"all links", map[string]string{"etc/systemd/network/a.network": "[Match]\nName=*\n[Network]\nDHCP=yes\n"}, nil, "systemd-networkd /etc/systemd/network/a.network matches it"},
		{"all Ethernet", map[string]string{"usr/lib/systemd/network/80.network": "# it\n[Match]\nType = ether\n"}, nil, "systemd-networkd /usr/lib/systemd/network/80.network matches it"},
		{"hardware", map[string]string{"etc/systemd/network/a.network": "[Match]\nName=*\nDriver=virtio\n"}, nil, ""},
		{"another's name", map[string]string{"etc/systemd/network/a.network": "[Match]\nName=en* eth*\n"}, nil, ""},
		{"all but one", map[string]string{"etc/systemd/network/a.network": "[Match]\nName=!lo\n"}, nil, "systemd-networkd /etc/systemd/network/a.network matches it"},
		{"left alone first", map[string]string{"etc/systemd/network/00.network": "[Match]\nName=ul*\n[Link]\nUnmanaged=yes\n", "etc/systemd/network/a.network": "[Match]\nName=*\n"}, nil, ""},
		{"hidden", map[string]string{"etc/systemd/network/a.network": "[Match]\nName=eth0\n", "usr/lib/systemd/network/a.network": "[Match]\nName=*\n"}, nil, ""},
		{"NetworkManager", map[string]string{"run/NetworkManager/devices/9": "[device]\nmanaged=true\n"}, shim, "NetworkManager /run/NetworkManager/devices/9 says so"},
		{"NetworkManager leaves it", map[string]string{"run/NetworkManager/devices/9": "[device]\nmanaged=false\n"}, shim, ""},
	} {
		files := fstest.MapFS{}
		for path, text := range netif {
			files[path] = &fstest.MapFile{Data: []byte(text)}
		}
		for path, text := range c.files {
			if text == "-" {
				delete(files, path)
				continue
			}
			files[path] = &fstest.MapFile{Data: []byte(text)}
		}
		var got []string
		for _, m := range managing(files, c.links) {
			got = append(got, m.Name+" "+m.Why)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// A real socket, of this test itself.
func TestFinder(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "underlay.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method+r.URL.Path != "POST"+plugin.StatusPath && r.Method+r.URL.Path != "GET/version" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"version":"v7"}`))
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	p := Finder(socket)
	if got, err := p.Find(); got != socket || err != nil {
		t.Fatalf("found %q, %v", got, err)
	}
	var s plugin.Status
	if err := p.Ask(context.Background(), socket, plugin.StatusPath, &s); err != nil || s.Version != "v7" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := p.Ask(context.Background(), socket, plugin.ConflictsPath, &s); err == nil {
		t.Error("a call that there is not")
	}
	if err := Socket(socket).Get(context.Background(), "/version", &s); err != nil {
		t.Error(err)
	}
	if err := Socket(socket).Get(context.Background(), "/networks", &s); err == nil || err.Error() != "/networks: 404 Not Found" {
		t.Error(err)
	}
	proc, err := p.Process(socket)
	if err != nil || proc.Capabilities == nil || !proc.Rebuild {
		t.Errorf("%+v, %v", proc, err)
	}
	if err := Socket(filepath.Join(dir, "none")).Get(context.Background(), "/version", &s); err == nil || !strings.HasSuffix(err.Error(), "none: connect: no such file or directory") {
		t.Error(err)
	}
}

// A VLAN on Wi-Fi is Wi-Fi, and so is one in it.
func TestWireless(t *testing.T) {
	f := well()
	f.vlan()
	f.inner()
	files := fstest.MapFS{"sys/class/net/eth0/uevent": &fstest.MapFile{Data: []byte("DEVTYPE=wlan\n")}}
	for name, want := range map[string]bool{"eth0": true, "eth0.10": true, "eth0.10.20": true, "eth1": false, "gone0": false} {
		if got := f.about(Sources{Kernel: &made{}, Files: files}, name).Wireless; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
