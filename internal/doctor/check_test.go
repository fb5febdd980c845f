package doctor

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

var update = flag.Bool("update", false, "write the golden file anew")

const golden = "testdata/findings.txt"

var (
	gw4  = netip.MustParseAddr("192.168.50.1")
	own4 = netip.MustParseAddr("192.168.50.2")
	gw6  = netip.MustParseAddr("fe80::1")
	own6 = netip.MustParseAddr("fd00:50::2")

	bridgeMode = mode.Default
	passthru   = mode.Mode{Kind: mode.Macvlan, Name: "passthru"}
	l2         = mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}
	l3vepa     = mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "vepa"}
)

// well are the facts about a host where nothing is wrong.
func well() *Facts {
	link := func(index int, name, kind string) netlinkutil.Detail {
		return netlinkutil.Detail{Link: netlinkutil.Link{
			Index: index, Name: name, Kind: kind, MTU: 1500, Up: true, Carrier: true, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(index)},
		}}
	}
	child := link(7, "eth9", "macvlan")
	child.Lower, child.Mode, child.Alias, child.Elsewhere = "eth0", bridgeMode, "underlay 1 endpoint", true
	return &Facts{
		Version: "v1", Release: "6.12.0", Machine: "Dell Inc. PowerEdge",
		Kinds: map[string]bool{"macvlan": true, "ipvlan": true, "vlan": true, "dummy": true},
		Links: []netlinkutil.Detail{link(2, "eth0", "device"), link(3, "eth1", "device"), child},
		Parents: []Parent{{
			Name:     "eth0",
			Subnets:  []netlinkutil.Subnet{{Prefix: netip.MustParsePrefix("192.168.50.0/24"), Addr: own4, Gateway: gw4}, {Prefix: netip.MustParsePrefix("fd00:50::/64"), Addr: own6, Gateway: gw6}},
			Gateways: []Gateway{{Addr: gw4}, {Addr: gw6}},
			LAN: LAN{
				Heard: map[netip.Addr][]string{gw4: {"02:00:00:00:00:aa"}, gw6: {"02:00:00:00:00:aa"}},
				Asked: gw4, Reached: true, Routers: []netip.Addr{gw6}, DHCP: []Server{{Addr: gw4, MTU: 1500}},
			},
		}},
		Sysctls: map[string]string{
			"ipv4/conf/all/arp_ignore": "0", "ipv4/conf/all/rp_filter": "1", "ipv4/conf/eth0/rp_filter": "0",
			"ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth0/forwarding": "1",
		},
		Docker: Docker{Version: "28.5.2", Plugins: []Plugin{{Name: "underlay:latest", Enabled: true}}, Networks: []Network{
			{Name: "lan", Ours: true, Driver: "underlay:latest", Parent: "eth0", Mode: bridgeMode, Pools: []netip.Prefix{netip.MustParsePrefix("192.168.50.64/26")}, Gateways: []netip.Addr{gw4}},
		}},
		Daemon: Daemon{
			Socket: "/run/docker/plugins/underlay.sock", Version: "v1", Parents: []string{"eth0"}, Rebuild: true,
			Capabilities: []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"}, State: Folder{Path: "/var/lib/underlay", Free: 1 << 30},
		},
	}
}

func (f *Facts) edit(name string, by func(*netlinkutil.Detail)) {
	for i := range f.Links {
		if f.Links[i].Name == name {
			by(&f.Links[i])
		}
	}
}

// vlan makes eth0.10, and that the parent.
func (f *Facts) vlan() *Parent {
	l := f.Links[0]
	l.Index, l.Name, l.Kind, l.Lower, l.VLAN = 8, "eth0.10", "vlan", "eth0", 10
	f.Links = append(f.Links, l)
	f.Docker.Networks = nil
	gw := netip.MustParseAddr("192.168.10.1")
	f.Parents = []Parent{{Name: "eth0.10", Gateways: []Gateway{{Addr: gw, Of: "tagged"}}, LAN: LAN{
		Heard: map[netip.Addr][]string{gw: {"02:00:00:00:00:ab"}}, Asked: gw, Reached: true, DHCP: []Server{{Addr: gw}},
	}}}
	return &f.Parents[0]
}

// inner makes eth0.10.20, a VLAN in that of vlan.
func (f *Facts) inner() {
	l := f.Links[len(f.Links)-1]
	l.Index, l.Name, l.Lower, l.VLAN = 9, "eth0.10.20", l.Name, 20
	f.Links = append(f.Links, l)
}

func (f *Facts) foreign(m mode.Mode, elsewhere bool) {
	f.Links = append(f.Links, netlinkutil.Detail{Link: netlinkutil.Link{Index: 9, Name: "mv0", Kind: string(m.Kind), Lower: "eth0", Up: true}, Mode: m, Elsewhere: elsewhere})
}

// faults are a fault each. Each name begins with the check that is to find it, and
// it alone.
var faults = []struct {
	name string
	do   func(f *Facts, p *Parent)
}{
	{"kernel unknown", func(f *Facts, _ *Parent) { f.Kinds, f.KindsUnknown = nil, "operation not permitted" }},
	{"kernel without macvlan and dummy", func(f *Facts, _ *Parent) { f.Kinds["macvlan"], f.Kinds["dummy"] = false, false }},
	{"kernel without ipvlan and vlan", func(f *Facts, _ *Parent) { f.Kinds["ipvlan"], f.Kinds["vlan"] = false, false }},
	{"parent missing", func(_ *Facts, p *Parent) { *p = Parent{Name: "eth7"} }},
	{"parent VLAN to be made", func(_ *Facts, p *Parent) { *p = Parent{Name: "eth0.20"} }},
	{"parent none", func(f *Facts, _ *Parent) { f.Parents = nil }},
	{"parent loopback", func(f *Facts, p *Parent) {
		f.Links = append(f.Links, netlinkutil.Detail{Link: netlinkutil.Link{Name: "lo", Loopback: true, Up: true}})
		*p = Parent{Name: "lo"}
	}},
	{"parent bridge port", func(f *Facts, p *Parent) {
		f.edit("eth0", func(l *netlinkutil.Detail) { l.Master, l.MasterKind = "br0", "bridge" })
	}},
	{"parent bond port", func(f *Facts, p *Parent) {
		f.edit("eth0", func(l *netlinkutil.Detail) { l.Master, l.MasterKind = "bond0", "bond" })
	}},
	{"parent macvlan", func(f *Facts, p *Parent) {
		f.edit("eth0", func(l *netlinkutil.Detail) { l.Kind, l.Lower = "macvlan", "eth1" })
	}},
	{"parent tunnel", func(f *Facts, p *Parent) { f.edit("eth0", func(l *netlinkutil.Detail) { l.Kind, l.MAC = "tun", nil }) }},
	{"parent down", func(f *Facts, p *Parent) {
		f.edit("eth0", func(l *netlinkutil.Detail) { l.Up, l.Carrier = false, false })
	}},
	{"parent no carrier", func(f *Facts, p *Parent) { f.edit("eth0", func(l *netlinkutil.Detail) { l.Carrier = false }) }},
	{"parent waited for", func(f *Facts, _ *Parent) {
		f.Daemon.Waiting = []Waiting{{"enx1", "parent enx1 is not there"}, {"eth0", "it is down"}}
	}},
	{"parent links unknown", func(f *Facts, p *Parent) {
		f.Links, f.LinksUnknown = nil, "operation not permitted"
		*p = Parent{Name: "eth0"}
	}},
	{"bond balance-rr", func(f *Facts, _ *Parent) { f.edit("eth0", func(l *netlinkutil.Detail) { l.BondMode = "balance-rr" }) }},
	{"bond balance-alb below a VLAN", func(f *Facts, _ *Parent) {
		f.vlan()
		f.edit("eth0", func(l *netlinkutil.Detail) { l.BondMode = "balance-alb" })
	}},
	{"bond balance-alb below a VLAN in a VLAN", func(f *Facts, _ *Parent) {
		f.vlan().Name = "eth0.10.20"
		f.inner()
		f.edit("eth0", func(l *netlinkutil.Detail) { l.BondMode = "balance-alb" })
	}},
	{"modes passthru", func(f *Facts, _ *Parent) { f.foreign(passthru, false) }},
	{"modes ipvlan in a container", func(f *Facts, _ *Parent) { f.foreign(l3vepa, true) }},
	{"modes macvlan", func(f *Facts, _ *Parent) { f.foreign(bridgeMode, true); f.foreign(bridgeMode, true) }},
	{"macs filtered", func(_ *Facts, p *Parent) { p.LAN.Reached = false }},
	{"macs filtered by VMware", func(f *Facts, p *Parent) { p.LAN.Reached, f.Machine = false, "VMware, Inc. VMware7,1" }},
	{"macs filtered by KVM", func(f *Facts, p *Parent) { p.LAN.Reached, f.Machine = false, "QEMU Standard PC" }},
	{"macs Wi-Fi", func(_ *Facts, p *Parent) { p.LAN.Reached, p.Wireless = false, true }},
	{"macs nobody to ask", func(_ *Facts, p *Parent) {
		p.LAN.Asked, p.LAN.Reached, p.Gateways = netip.Addr{}, false, nil
	}},
	{"macs not asked", func(_ *Facts, p *Parent) {
		p.LAN.Unknown, p.LAN.Asked, p.LAN.Reached = "packet socket on eth0: operation not permitted", netip.Addr{}, false
	}},
	{"many macvlan links", func(f *Facts, _ *Parent) {
		for range most {
			f.Links = append(f.Links, f.Links[2])
		}
	}},
	{"many macvlan links on a NIC and its VLANs, all of which are parents", func(f *Facts, p *Parent) {
		nic := *p
		f.vlan()
		f.inner()
		f.Parents = append(f.Parents, nic)
		for n := range most {
			l := f.Links[2]
			l.Lower = []string{"eth0", "eth0.10", "eth0.10.20"}[n%3]
			f.Links = append(f.Links, l)
		}
	}},
	{"gateway dead", func(_ *Facts, p *Parent) { p.LAN.Heard, p.LAN.Reached, p.Gateways = nil, false, p.Gateways[:1] }},
	{"gateway of a network dead", func(_ *Facts, p *Parent) {
		p.Gateways = append(p.Gateways, Gateway{Addr: netip.MustParseAddr("192.168.50.254"), Of: "old"})
	}},
	{"vlan dead", func(f *Facts, _ *Parent) { p := f.vlan(); p.LAN = LAN{Asked: p.LAN.Asked, DHCP: nil, DHCPUnknown: ""} }},
	{"vlan alive with a dead router", func(f *Facts, _ *Parent) { p := f.vlan(); p.LAN.Heard, p.LAN.Reached = nil, false }},
	{"duplicate address of the host", func(_ *Facts, p *Parent) {
		p.LAN.Heard[own4] = []string{"02:00:00:00:00:bb"}
		p.LAN.Heard[own6] = []string{"02:00:00:00:00:bb"}
	}},
	{"duplicate gateway", func(_ *Facts, p *Parent) { p.LAN.Heard[gw4] = []string{"02:00:00:00:00:aa", "02:00:00:00:00:bb"} }},
	{"duplicate of a container", func(f *Facts, _ *Parent) {
		f.Daemon.Conflicts = []Conflict{{Addr: netip.MustParseAddr("192.168.50.70"), MAC: "02:00:00:00:00:bb", Last: time.Unix(1, 0)}}
	}},
	{"dhcp none", func(_ *Facts, p *Parent) { p.LAN.DHCP = nil }},
	{"dhcp none and one is needed", func(f *Facts, p *Parent) { p.LAN.DHCP, f.Docker.Networks[0].DHCPv4 = nil, true }},
	{"dhcp of IPv6 none", func(_ *Facts, p *Parent) { p.LAN.NoDHCPv6 = "no DHCPv6 server answers on eth0" }},
	{"dhcp two", func(_ *Facts, p *Parent) { p.LAN.DHCP = append([]Server{{Addr: own4}}, p.LAN.DHCP...) }},
	{"dhcp not asked", func(_ *Facts, p *Parent) { p.LAN.DHCP, p.LAN.DHCPUnknown = nil, "operation not permitted" }},
	{"ra not heeded", func(_ *Facts, p *Parent) { p.Subnets = p.Subnets[:1] }},
	{"ra off", func(f *Facts, p *Parent) { p.Subnets, f.Sysctls["ipv6/conf/eth0/accept_ra"] = p.Subnets[:1], "0" }},
	{"arp settings of all", func(f *Facts, _ *Parent) {
		f.Sysctls["ipv4/conf/all/arp_ignore"], f.Sysctls["ipv4/conf/all/proxy_arp"] = "2", "1"
	}},
	{"arp silent", func(f *Facts, _ *Parent) { f.Sysctls["ipv4/conf/eth0/arp_ignore"] = "8" }},
	{"arp by another NIC", func(_ *Facts, p *Parent) { p.LAN.Heard[own4] = []string{"02:00:00:00:00:03"} }},
	{"rp_filter strict on an old kernel", func(f *Facts, _ *Parent) { f.Release = "5.10.0-30-amd64" }},
	{"mtu of a VLAN", func(f *Facts, _ *Parent) {
		f.vlan()
		f.edit("eth0.10", func(l *netlinkutil.Detail) { l.MTU = 1400 })
	}},
	{"mtu told by DHCP", func(_ *Facts, p *Parent) { p.LAN.DHCP[0].MTU = 9000 }},
	{"docker silent", func(f *Facts, _ *Parent) {
		f.Docker = Docker{Unknown: "/var/run/docker.sock: connect: no such file or directory"}
	}},
	{"docker 20.9", func(f *Facts, _ *Parent) { f.Docker.Version = "20.9.1" }},
	{"docker 26", func(f *Facts, _ *Parent) { f.Docker.Version = "26.1.5+dfsg1" }},
	{"docker 27", func(f *Facts, _ *Parent) { f.Docker.Version = "27.5.1" }},
	{"networks of another mode", func(f *Facts, _ *Parent) {
		f.Docker.Networks = append(f.Docker.Networks, Network{Name: "old", Driver: "ipvlan", Parent: "eth0", Mode: l2})
	}},
	{"networks with the same addresses", func(f *Facts, _ *Parent) {
		f.Docker.Networks = append(f.Docker.Networks, Network{Name: "old", Driver: "macvlan", Parent: "eth0", Mode: bridgeMode, Pools: []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24")}})
	}},
	{"plugin disabled", func(f *Facts, _ *Parent) { f.Docker.Plugins[0].Enabled, f.Daemon = false, Daemon{} }},
	{"plugin disabled, with its socket", func(f *Facts, _ *Parent) {
		f.Docker.Plugins[0].Enabled, f.Daemon = false, Daemon{Socket: f.Daemon.Socket, Unknown: "connect: connection refused"}
	}},
	{"plugin without a socket", func(f *Facts, _ *Parent) { f.Daemon = Daemon{} }},
	{"plugin not installed", func(f *Facts, _ *Parent) { f.Docker.Plugins, f.Daemon = nil, Daemon{} }},
	{"plugin silent", func(f *Facts, _ *Parent) {
		f.Daemon = Daemon{Socket: f.Daemon.Socket, Unknown: "nobody serves on " + f.Daemon.Socket}
	}},
	{"plugin one of several", func(f *Facts, _ *Parent) {
		f.Daemon = Daemon{Unknown: "several plugins serve here: give --socket, one of [a b]"}
	}},
	{"plugin of another version", func(f *Facts, _ *Parent) { f.Daemon.Version = "v0" }},
	{"privileges unknown", func(f *Facts, _ *Parent) {
		f.Daemon.Capabilities, f.Daemon.ProcessWhy = nil, "open /proc/7/environ: permission denied"
	}},
	{"privileges none", func(f *Facts, _ *Parent) { f.Daemon.Capabilities = []string{} }},
	{"state in memory", func(f *Facts, _ *Parent) { f.Daemon.State.InMemory = true }},
	{"state nearly full", func(f *Facts, _ *Parent) { f.Daemon.State.Free = 5 << 20 }},
	{"state full", func(f *Facts, _ *Parent) { f.Daemon.State.Free = 4096 }},
	{"managers of links", func(f *Facts, _ *Parent) {
		f.Managers = []Manager{{"NetworkManager", "ulh1", "/run/NetworkManager/devices/9 says so"}, {"systemd-networkd", example, "/etc/systemd/network/all.network matches it"}}
	}},
}

func TestFindings(t *testing.T) {
	var all bytes.Buffer
	found := map[string]bool{}
	for _, fault := range faults {
		f := well()
		fault.do(f, &f.Parents[0])
		got := Diagnose(f)
		check, _, _ := strings.Cut(fault.name, " ")
		if len(got) == 0 {
			t.Errorf("%s: nothing is found", fault.name)
		}
		for _, g := range got {
			found[g.Check] = true
			if g.Check != check {
				t.Errorf("%s: %s finds: %s", fault.name, g.Check, g.Fact)
			}
			if g.Subject == "" || g.Fact == "" || g.Remedy == "" || g.See != Manual+"#"+g.Check || strings.Contains(g.Fact+g.Remedy, "\n") {
				t.Errorf("%s: %+v is not whole", fault.name, g)
			}
		}
		fmt.Fprintf(&all, "== %s\n", fault.name)
		if err := Write(&all, got); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range Checks() {
		if !found[c.Name] {
			t.Errorf("no fault here is found by check %s", c.Name)
		}
	}
	if *update {
		if err := os.WriteFile(golden, all.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), all.String()); d != "" {
		t.Errorf("%s is another (-update writes it):\n%s", golden, d)
	}
}

// What is well is not told of, nor what harms no network that is there.
func TestSilence(t *testing.T) {
	for name, do := range map[string]func(f *Facts, p *Parent){
		"all well": func(*Facts, *Parent) {},
		"a filter and ipvlan alone": func(f *Facts, p *Parent) {
			p.LAN.Reached, p.Wireless, f.Docker.Networks[0].Mode = false, true, l2
			f.Links = f.Links[:2]
		},
		"alb and ipvlan alone": func(f *Facts, _ *Parent) {
			f.Docker.Networks[0].Mode = l2
			f.edit("eth0", func(l *netlinkutil.Detail) { l.BondMode = "balance-alb" })
		},
		"Wi-Fi with four addresses": func(_ *Facts, p *Parent) { p.Wireless = true },
		"a bond in active-backup": func(f *Facts, _ *Parent) {
			f.edit("eth0", func(l *netlinkutil.Detail) { l.Kind, l.BondMode = "bond", "active-backup" })
		},
		"a port of a VRF": func(f *Facts, _ *Parent) {
			f.edit("eth0", func(l *netlinkutil.Detail) { l.Master, l.MasterKind = "red", "vrf" })
		},
		"two DHCP servers, and the networks name one": func(f *Facts, p *Parent) {
			p.LAN.DHCP = append(p.LAN.DHCP, Server{Addr: own4})
			f.Docker.Networks[0].DHCPv4, f.Docker.Networks[0].Servers = true, true
		},
		"a VLAN": func(f *Facts, _ *Parent) { f.vlan() },
		"REBUILD=off": func(f *Facts, _ *Parent) {
			f.Daemon.Rebuild, f.Daemon.Capabilities = false, []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}
		},
		"Docker's network with a range of its own": func(f *Facts, _ *Parent) {
			f.Docker.Networks = append(f.Docker.Networks, Network{Name: "old", Driver: "macvlan", Parent: "eth0", Mode: bridgeMode, Pools: []netip.Prefix{netip.MustParsePrefix("192.168.50.128/26")}})
		},
		"a strict rp_filter on a new kernel": func(f *Facts, _ *Parent) { f.Sysctls["ipv4/conf/eth0/rp_filter"] = "1" },
		"no state folder to be seen":         func(f *Facts, _ *Parent) { f.Daemon.State = Folder{} },
	} {
		f := well()
		do(f, &f.Parents[0])
		var b bytes.Buffer
		if err := Write(&b, Diagnose(f)); err != nil || b.String() != "all well\n" {
			t.Errorf("%s: %v\n%s", name, err, &b)
		}
	}
}

// Links and networks may have odd names.
func TestWriteIsPlain(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, []Finding{{Note, "modes", "\x1b[2Jeth0", "a\nb\u202e", "c\u009b", "d"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "note: \\x1b[2Jeth0: a\\nb\\u202e\n  do: c\\u009b\n  see: d\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestFailed(t *testing.T) {
	if Failed([]Finding{{Level: Warning}, {Level: Note}}) || !Failed([]Finding{{Level: Note}, {Level: Error}}) {
		t.Error("an error alone fails")
	}
}

// The manual has all checks, with these words.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../../" + Manual)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Checks() {
		row := fmt.Sprintf("| <a id=\"%s\"></a>`%s` | %s | %s | %s |\n", c.Name, c.Name, c.Asks, c.How, c.Do)
		if !strings.Contains(string(text), row) {
			t.Errorf("%s has no row\n%s", Manual, row)
		}
	}
}
