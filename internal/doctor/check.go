package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// Check is one question about a host. The manual has its words as a table.
type Check struct {
	Name string
	Asks string
	How  string // how that is found
	Do   string // what to do about it, in general
	find func(*Facts, *report)
}

// Checks lists all of them in the order in which they are told: what makes others
// fail comes first.
func Checks() []Check {
	return []Check{
		{"kernel", "has the kernel macvlan, ipvlan, VLAN and dummy links?", "a link is asked for that no kernel makes; the refusal tells", "install the kernel's package of all modules", kernel},
		{"parent", "is the parent there, up, with a carrier, and nobody's port?", "its link", "set it up, plug it in, or name the bridge or bond that it is a port of", parent},
		{"bond", "does the bond's mode bear several MACs?", "the bond's mode", "active-backup or 802.3ad", bond},
		{"modes", "does a link of another program exclude a mode?", "the macvlan and ipvlan links on the parent, those in containers included", "use the same mode, or another parent", modes},
		{"macs", "may more than one MAC speak on the parent?", "the gateway is asked by ARP with the parent's MAC and with another", "allow it on the hypervisor's or the switch's port, or use ipvlan", macs},
		{"many", "do very many MACs speak there?", "the macvlan links on the NIC and its VLANs are counted", "watch for losses, or use ipvlan", many},
		{"gateway", "do the gateways answer?", "ARP and neighbour discovery", "see whether the router is up, and its address right", gateway},
		{"vlan", "does the switch pass the VLAN?", "the VLAN's gateways are asked", "let the VLAN through, tagged, at the switch's port", vlan},
		{"duplicate", "has the host's address, or a gateway's, another machine too?", "all answers to ARP and neighbour discovery, and the conflicts that the plugin has noted", "give one of them another address", duplicate},
		{"dhcp", "does one DHCP server answer, and one of DHCPv6 where a network needs it?", "a discover or solicit, of which no lease is taken", "start it, or name the one that counts with dhcp_server", dhcpServers},
		{"ra", "does the host heed the IPv6 routers that are there?", "a router solicitation, and the host's settings", "accept_ra=2 on a host that forwards", ra},
		{"arp", "do the host's ARP settings bear host_access and neighbours?", "arp_ignore, proxy_arp, and who answers for the host's addresses", "arp_ignore=1 on the NICs of one LAN, 0 for all", arp},
		{"rp_filter", "does reverse path filtering drop what ipvlan sends the host?", "rp_filter and the kernel's version", "rp_filter=2", rpFilter},
		{"mtu", "have the parent, its VLANs and the LAN one MTU?", "the links, and what the DHCP server tells", "set them alike", mtu},
		{"docker", "does Docker answer, and what does its version lack?", "GET /version on its socket", "start it, upgrade it, or do what the finding says", docker},
		{"networks", "do networks of Docker's own drivers get in the way?", "GET /networks on its socket", "remove them, or give each its own --ip-range", networks},
		{"plugin", "is the plugin enabled, does it answer, and is it as old as this command?", "GET /plugins on Docker's socket, and the plugin's own", "docker plugin enable, or upgrade", plugged},
		{"privileges", "has the plugin the privileges that it needs?", "its process", "docker plugin upgrade, or grant them", privileges},
		{"state", "does the plugin's state outlive a reboot, and is there room for it?", "the file system of its folder, by its process", "another folder, or make room", state},
		{"managers", "does another program configure underlay's links?", "the files of systemd-networkd and NetworkManager", "leave links named ul* alone there", managers},
	}
}

// Diagnose makes all checks.
func Diagnose(f *Facts) []Finding {
	var all []Finding
	for _, c := range Checks() {
		r := &report{check: c.Name}
		c.find(f, r)
		all = append(all, r.found...)
	}
	return all
}

// report takes what one check finds.
type report struct {
	check string
	found []Finding
}

func (r *report) add(l Level, subject, fact, remedy string) {
	r.found = append(r.found, Finding{Level: l, Check: r.check, Subject: subject, Fact: fact, Remedy: remedy, See: Manual + "#" + r.check})
}

// host is the subject of what is no parent's.
const host = "host"

// kinds are the types of links that underlay makes, and what for.
var kinds = []struct {
	kind, module, lack string
	level              Level
}{
	{"macvlan", "macvlan", "only ipvlan networks can be made", Error},
	{"ipvlan", "ipvlan", "no ipvlan network can be made", Warning},
	{"vlan", "8021q", "no VLAN parent such as eth0.10 can be made", Warning},
	{"dummy", "dummy", "no network without -o parent can be made", Warning},
}

func kernel(f *Facts, r *report) {
	if f.KindsUnknown != "" {
		r.add(Note, host, "which links the kernel has could not be asked: "+f.KindsUnknown, "run this as root")
		return
	}
	for _, k := range kinds {
		if has, asked := f.Kinds[k.kind]; asked && !has {
			r.add(k.level, host, fmt.Sprintf("the kernel has no module %s: %s", k.module, k.lack),
				"install the kernel's package of all modules, and see that /etc/modprobe.d lets "+k.module+" load")
		}
	}
}

func parent(f *Facts, r *report) {
	if f.LinksUnknown != "" {
		r.add(Note, host, "the links could not be listed: "+f.LinksUnknown, "run this as root")
		return
	}
	if len(f.Parents) == 0 {
		r.add(Note, host, "no parent was looked at: the host has no default route by a NIC, and no network names one", "name one: underlay doctor --parent eth0")
	}
	for _, p := range f.Parents {
		l, there := f.link(p.Name)
		switch {
		case !there:
			missing(f, r, p.Name)
		case l.Loopback:
			r.add(Error, p.Name, "it is the loopback link, on which nothing can stand", "name a NIC")
		case l.Master != "" && l.MasterKind == "bridge":
			r.add(Error, p.Name, fmt.Sprintf("it is a port of bridge %s, which takes all of its traffic", l.Master), "use -o parent="+l.Master)
		case l.Master != "" && l.MasterKind != "vrf":
			r.add(Error, p.Name, fmt.Sprintf("it is a port of %s %s, which takes all of its traffic", l.MasterKind, l.Master), "use -o parent="+l.Master)
		case l.Kind == "macvlan" || l.Kind == "ipvlan" || l.Kind == "macvtap" || l.Kind == "ipvtap":
			r.add(Error, p.Name, fmt.Sprintf("it is itself a link of type %s on %s", l.Kind, l.Lower), "use -o parent="+l.Lower)
		case len(l.MAC) != 6:
			r.add(Error, p.Name, "it has no MAC address, so it is no Ethernet", "name a NIC")
		case !l.Up:
			r.add(Error, p.Name, "it is down", "ip link set "+p.Name+" up, and have that done at boot")
		case !l.Carrier:
			r.add(Error, p.Name, "it has no carrier", "plug the cable in, or look at the switch's port")
		}
	}
	for _, w := range f.Daemon.Waiting {
		if !slices.ContainsFunc(f.Parents, func(p Parent) bool { return p.Name == w.Parent }) {
			r.add(Error, w.Parent, "networks wait for it: "+w.Reason, "bring the link back, or remove the networks")
		}
	}
}

func missing(f *Facts, r *report, name string) {
	if dot := strings.LastIndexByte(name, '.'); dot > 0 {
		id, err := strconv.Atoi(name[dot+1:])
		if _, there := f.link(name[:dot]); there && err == nil && id > 0 && id < 4095 {
			r.add(Note, name, "it is not there yet, so nobody could be asked on that VLAN", "nothing: underlay makes it with the first network; then ask again")
			return
		}
	}
	r.add(Error, name, "there is no such link", "see ip link; a VLAN is named eth0.10")
}

// works tells whether a parent is of use at all: what else is wrong with one that
// is not follows from it.
func (f *Facts) works(name string) bool {
	l, there := f.link(name)
	r := &report{}
	parent(&Facts{Links: f.Links, Parents: []Parent{{Name: name}}}, r)
	return there && l.Up && len(r.found) == 0
}

// bonds says of each mode that is no good what it does.
var bonds = map[string]struct {
	level Level
	does  string
}{
	"balance-rr":  {Warning, "sends one MAC's frames by all ports in turn; a switch without a static channel group sees each MAC move from port to port"},
	"balance-xor": {Warning, "sends one MAC's frames by several ports; a switch without a static channel group sees the MAC move from port to port"},
	"balance-tlb": {Error, "puts its ports' own MACs into frames that it sends, so that the LAN does not learn where the containers' are"},
	"balance-alb": {Error, "puts its ports' own MACs into frames and ARP answers, so that the LAN does not learn where the containers' are"},
}

func bond(f *Facts, r *report) {
	for _, p := range f.Parents {
		for _, name := range f.down(p.Name) {
			l, _ := f.link(name)
			if b, bad := bonds[l.BondMode]; bad && !f.sharesMAC(p.Name) {
				r.add(b.level, p.Name, fmt.Sprintf("bond %s is in mode %s, which %s", l.Name, l.BondMode, b.does), "use the mode active-backup or 802.3ad, or ipvlan")
			}
		}
	}
}

func modes(f *Facts, r *report) {
	for _, p := range f.Parents {
		said := map[string]bool{}
		for _, l := range f.on(p.Name) {
			if ours(l) || said[l.Mode.String()] {
				continue
			}
			said[l.Mode.String()] = true
			what := fmt.Sprintf("another program's link %s, %s, is on it", l.Name, describe(l))
			if l.Elsewhere {
				what = fmt.Sprintf("a container's link %s, %s, which is not underlay's, is on it", l.Name, describe(l))
			}
			switch {
			case l.Mode.Alone():
				r.add(Error, p.Name, what+": no other link can be made", "remove it, or take another parent")
			case l.Mode.Kind == mode.IPvlan:
				r.add(Warning, p.Name, what+": only networks of that mode can be made", "-o ipvlan_mode="+l.Mode.Name+flagOf(l.Mode)+", another parent, or a VLAN")
			default:
				r.add(Note, p.Name, what+": no ipvlan or passthru network can be made", "use macvlan, or another parent for those")
			}
		}
	}
}

func flagOf(m mode.Mode) string {
	if m.Flag == "" || m.Flag == "bridge" {
		return ""
	}
	return " -o ipvlan_flag=" + m.Flag
}

func describe(l netlinkutil.Detail) string {
	if l.Mode == (mode.Mode{}) {
		return l.Kind
	}
	return l.Mode.String()
}

// hypervisors tells what to do about the filters of each, by what its firmware
// says.
var hypervisors = []struct{ word, name, remedy string }{
	{"VMware", "VMware", "allow promiscuous mode and forged transmits on its port group, or use ipvlan"},
	{"Microsoft", "Hyper-V", "turn on MAC address spoofing at its network adapter, or use ipvlan"},
	{"VirtualBox", "VirtualBox", "set its adapter's promiscuous mode to \"Allow All\", or use ipvlan"},
	{"innotek", "VirtualBox", "set its adapter's promiscuous mode to \"Allow All\", or use ipvlan"},
	{"Amazon", "Amazon EC2", "use ipvlan, with the containers' addresses given to this NIC as secondary ones"},
	{"Google", "Google Cloud", "use ipvlan, with an alias range of addresses for this NIC"},
	{"DigitalOcean", "DigitalOcean", "use ipvlan"},
	{"Hetzner", "Hetzner", "use ipvlan"},
	{"OpenStack", "OpenStack", "allow address pairs on its port, or turn port security off, or use ipvlan"},
	{"Xen", "Xen", "turn the locking mode of its network off, or use ipvlan"},
	{"QEMU", "QEMU", "take the filter off its NIC (libvirt: filterref and trustGuestRxFilters; Proxmox: MAC filter of the firewall), or use ipvlan"},
	{"Parallels", "Parallels", "use a bridged network that allows several MACs, or ipvlan"},
}

func macs(f *Facts, r *report) {
	for _, p := range f.Parents {
		if !f.works(p.Name) || f.taken(p.Name) {
			continue
		}
		lan := p.LAN
		alive := lan.Asked.IsValid() && len(lan.Heard[lan.Asked]) > 0
		switch {
		case lan.Unknown != "":
			r.add(Note, p.Name, "the LAN could not be asked: "+lan.Unknown, "run this as root, with the link up")
		case alive && lan.Reached:
		case f.sharesMAC(p.Name): // nobody needs several
		case p.Wireless && !lan.Reached:
			r.add(Error, p.Name, "it is Wi-Fi, where an access point takes frames from the one MAC alone that is associated", "use ipvlan, or a wired parent")
		case !lan.Asked.IsValid():
			r.add(Note, p.Name, "no IPv4 gateway is known there, so nobody could be asked whether other MACs get through", "see whether another machine reaches a container there, or ask again once a network names a gateway")
		case alive:
			fact := fmt.Sprintf("gateway %s answers %s's own MAC and no other: a filter lets no containers' MACs through", lan.Asked, p.Name)
			remedy := "let the switch's port take several MACs (port security), or use ipvlan"
			for _, h := range hypervisors {
				if strings.Contains(f.Machine, h.word) {
					fact += fmt.Sprintf("; this is a virtual machine of %s (%s)", h.name, f.Machine)
					remedy = h.remedy
					break
				}
			}
			r.add(Error, p.Name, fact, remedy)
		}
	}
}

// taken tells whether a passthru link has all that reaches a parent.
func (f *Facts) taken(parent string) bool {
	return slices.ContainsFunc(f.on(parent), func(l netlinkutil.Detail) bool { return l.Mode.Alone() })
}

// most is how many MACs the filters of common NICs take, the fewest of them: the
// Intel ones of the drivers e1000 and e1000e have 15 entries, one of which is for
// their own MAC. The kernel does not tell that of a NIC.
const most = 14

func many(f *Facts, r *report) {
	lowest := func(name string) string { all := f.down(name); return all[len(all)-1] }
	on := map[string]int{} // a NIC's filter takes the MACs on its VLANs, too
	for _, l := range f.Links {
		if l.Mode.Kind == mode.Macvlan {
			on[lowest(l.Lower)]++
		}
	}
	for _, p := range f.Parents {
		nic := lowest(p.Name)
		if n := on[nic]; n > most {
			r.add(Note, nic, fmt.Sprintf("%d macvlan links are on it and its VLANs; a NIC hears all frames of the LAN past the size of its filter, which is not to be found out and may be %d", n, most),
				"see that the switch's port takes that many MACs; ipvlan needs one")
			on[nic] = 0 // once
		}
	}
}

// isVLAN tells whether a parent is a VLAN, and which on what.
func (f *Facts) isVLAN(name string) (l netlinkutil.Detail, ok bool) {
	l, ok = f.link(name)
	return l, ok && l.Kind == "vlan"
}

// silent lists the gateways of a parent that do not answer.
func (f *Facts) silent(p Parent) (gs []Gateway) {
	if p.LAN.Unknown != "" || !f.works(p.Name) {
		return nil
	}
	for _, g := range p.Gateways {
		if len(p.LAN.Heard[g.Addr]) == 0 {
			gs = append(gs, g)
		}
	}
	return gs
}

func gateway(f *Facts, r *report) {
	for _, p := range f.Parents {
		silent := f.silent(p)
		if _, is := f.isVLAN(p.Name); is && len(silent) == len(p.Gateways) {
			continue // that is what vlan tells
		}
		for _, g := range silent {
			if g.Of != "" {
				r.add(Warning, p.Name, fmt.Sprintf("gateway %s, which Docker's network %s names, does not answer", g.Addr, g.Of), "see whether the router is up, or make the network again with the LAN's gateway")
				continue
			}
			r.add(Error, p.Name, fmt.Sprintf("gateway %s does not answer: containers reach their own LAN alone", g.Addr), "see whether the router is up, and whether the host's default route is right")
		}
	}
}

// dead tells of a VLAN that nobody is heard there, and somebody should be.
func (f *Facts) dead(p Parent) bool {
	_, is := f.isVLAN(p.Name)
	return is && len(p.Gateways) > 0 && len(f.silent(p)) == len(p.Gateways) && len(p.LAN.Routers) == 0 && len(p.LAN.DHCP) == 0
}

func vlan(f *Facts, r *report) {
	for _, p := range f.Parents {
		l, is := f.isVLAN(p.Name)
		if !is || !f.works(p.Name) || p.LAN.Unknown != "" {
			continue
		}
		silent := f.silent(p)
		switch {
		case f.dead(p):
			r.add(Error, p.Name, fmt.Sprintf("nobody answers in VLAN %d on %s, where %s should", l.VLAN, l.Lower, list(silent)), fmt.Sprintf("let VLAN %d through, tagged, at the switch's port of %s", l.VLAN, l.Lower))
		case len(p.Gateways) > 0 && len(silent) == len(p.Gateways):
			r.add(Warning, p.Name, fmt.Sprintf("VLAN %d is alive, and gateway %s does not answer there", l.VLAN, list(silent)), "see whether the router is up, and its address right")
		}
	}
}

func list(gs []Gateway) string {
	var words []string
	for _, g := range gs {
		words = append(words, "gateway "+g.Addr.String())
	}
	return strings.TrimPrefix(strings.Join(words, " and "), "gateway ")
}

func duplicate(f *Facts, r *report) {
	for _, p := range f.Parents {
		for _, s := range p.Subnets {
			var others []string
			for _, m := range p.LAN.Heard[s.Addr] {
				if f.own(m) == "" {
					others = append(others, m)
				}
			}
			if len(others) > 0 {
				r.add(Error, p.Name, fmt.Sprintf("the host's address %s is that of %s too", s.Addr, strings.Join(others, " and ")), "give one of them another address")
			}
		}
		for _, g := range p.Gateways {
			if heard := p.LAN.Heard[g.Addr]; len(heard) > 1 {
				r.add(Error, p.Name, fmt.Sprintf("gateway %s is answered for by %s", g.Addr, strings.Join(heard, " and ")), "take the wrong one off the LAN, or give it another address")
			}
		}
	}
	for _, c := range f.Daemon.Conflicts {
		r.add(Error, host, fmt.Sprintf("address %s of a container is that of %s too", c.Addr, c.MAC), "give one of them another address")
	}
}

func dhcpServers(f *Facts, r *report) {
	for _, p := range f.Parents {
		if !f.works(p.Name) || f.dead(p) {
			continue
		}
		var wanted, open bool // a network leases, and from any server
		for _, n := range f.networks(p.Name, true) {
			wanted, open = wanted || n.DHCPv4, open || n.DHCPv4 && !n.Servers
		}
		if p.LAN.NoDHCPv6 != "" {
			r.add(Warning, p.Name, "a network there leases IPv6 addresses, and none is offered: "+p.LAN.NoDHCPv6, "start the server, or see whether it has an address left")
		}
		switch {
		case p.LAN.DHCPUnknown != "":
			r.add(Note, p.Name, "no DHCP server could be asked: "+p.LAN.DHCPUnknown, "run this as root, with the link up")
		case len(p.LAN.DHCP) == 0 && wanted:
			r.add(Warning, p.Name, "no DHCP server answers, and a network there leases its addresses", "start the server, or see whether it has an address left")
		case len(p.LAN.DHCP) == 0:
			r.add(Note, p.Name, "no DHCP server answers: -o dhcp=true does not work there", "nothing, if the LAN is to have none; the addresses are then underlay's to give")
		case len(p.LAN.DHCP) > 1 && (open || !wanted):
			var names []string
			for _, s := range p.LAN.DHCP {
				names = append(names, s.Addr.String())
			}
			slices.Sort(names)
			r.add(Warning, p.Name, fmt.Sprintf("%d DHCP servers answer: %s", len(names), strings.Join(names, " and ")), "turn the wrong one off, or name the right one with -o dhcp_server and --ipam-opt dhcp_server")
		}
	}
}

func ra(f *Facts, r *report) {
	for _, p := range f.Parents {
		known := slices.ContainsFunc(p.Subnets, func(s netlinkutil.Subnet) bool { return s.Gateway.Is6() })
		if known || len(p.LAN.Routers) == 0 {
			continue
		}
		accept, set := f.Sysctls["ipv6/conf/"+p.Name+"/accept_ra"]
		forwards := f.Sysctls["ipv6/conf/"+p.Name+"/forwarding"] == "1"
		router := p.LAN.Routers[0]
		switch {
		case !set: // IPv6 is off
		case accept == "0":
			r.add(Note, p.Name, fmt.Sprintf("router %s advertises itself, and the host does not heed it (accept_ra=0): networks do not find their IPv6 subnet by themselves", router),
				"sysctl net.ipv6.conf."+p.Name+".accept_ra=2, or name --subnet and --gateway")
		case accept == "1" && forwards:
			r.add(Warning, p.Name, fmt.Sprintf("router %s advertises itself, and the host does not heed it, as it forwards IPv6: networks do not find their IPv6 subnet by themselves", router),
				"sysctl net.ipv6.conf."+p.Name+".accept_ra=2, or name --subnet and --gateway")
		}
	}
}

func arp(f *Facts, r *report) {
	for name := range netlinkutil.ARPSettings {
		value := f.Sysctls["ipv4/conf/all/"+name]
		if netlinkutil.ARPRefusal(name, value) != nil {
			r.add(Warning, host, fmt.Sprintf("net.ipv4.conf.all.%s=%s: -o host_access=true is refused with that", name, value),
				fmt.Sprintf("sysctl net.ipv4.conf.all.%s=0, and set it on the NICs that need it", name))
		}
	}
	slices.SortFunc(r.found, func(a, b Finding) int { return strings.Compare(a.Fact, b.Fact) })
	for _, p := range f.Parents {
		if n := f.sysctl(p.Name, "ipv4/arp_ignore"); n == 8 && f.Sysctls["ipv4/conf/all/arp_ignore"] != "8" {
			r.add(Error, p.Name, fmt.Sprintf("net.ipv4.conf.%s.arp_ignore=8: the host answers nobody there", p.Name), fmt.Sprintf("sysctl net.ipv4.conf.%s.arp_ignore=1", p.Name))
		}
		for _, s := range p.Subnets {
			for _, m := range p.LAN.Heard[s.Addr] {
				if l := f.own(m); l != "" && s.Addr.Is4() {
					r.add(Warning, p.Name, fmt.Sprintf("link %s of this host answers for %s too: the LAN finds it now here, now there", l, s.Addr),
						fmt.Sprintf("sysctl net.ipv4.conf.%s.arp_ignore=1, and so on all NICs of one LAN", l))
				}
			}
		}
	}
}

func rpFilter(f *Facts, r *report) {
	if f.Release == "" || !older(f.Release, 5, 12) {
		return
	}
	for _, p := range f.Parents {
		if f.sysctl(p.Name, "ipv4/rp_filter") == 1 {
			r.add(Warning, p.Name, fmt.Sprintf("rp_filter is strict (1) and Linux %s is older than 5.12: -o host_access=true is refused with ipvlan l2", f.Release),
				"sysctl net.ipv4.conf.all.rp_filter=2, use macvlan, or upgrade the kernel")
		}
	}
}

// older tells whether a version is before major.minor; what is none is not.
func older(version string, major, minor int) bool {
	words := strings.FieldsFunc(version, func(c rune) bool { return c < '0' || c > '9' })
	if len(words) < 2 {
		return false
	}
	a, err := strconv.Atoi(words[0])
	b, berr := strconv.Atoi(words[1])
	return err == nil && berr == nil && (a < major || a == major && b < minor)
}

func mtu(f *Facts, r *report) {
	for _, p := range f.Parents {
		l, there := f.link(p.Name)
		if !there {
			continue
		}
		if low, ok := f.link(l.Lower); ok && l.Kind == "vlan" && l.MTU < low.MTU {
			r.add(Warning, p.Name, fmt.Sprintf("it has an MTU of %d, and %s below it one of %d: so do its containers", l.MTU, low.Name, low.MTU), fmt.Sprintf("ip link set %s mtu %d, if the VLAN's other machines have that", p.Name, low.MTU))
		}
		for _, s := range p.LAN.DHCP {
			if s.MTU != 0 && s.MTU != l.MTU {
				r.add(Warning, p.Name, fmt.Sprintf("it has an MTU of %d, and DHCP server %s tells the LAN one of %d", l.MTU, s.Addr, s.MTU), fmt.Sprintf("ip link set %s mtu %d, or -o com.docker.network.driver.mtu=%d", p.Name, s.MTU, s.MTU))
			}
		}
	}
}

func docker(f *Facts, r *report) {
	v := f.Docker.Version
	switch {
	case f.Docker.Unknown != "":
		r.add(Note, host, "Docker was not asked: "+f.Docker.Unknown, "start Docker, or run this as root; its networks and plugins are not looked at")
	case older(v, 20, 10):
		r.add(Error, host, fmt.Sprintf("Docker %s is older than all that underlay was tried with", v), "upgrade to 20.10 at least, better to 28")
	case older(v, 27, 0):
		r.add(Note, host, fmt.Sprintf("Docker %s takes no subnet of a NIC by itself, and has no --gw-priority", v), "name --subnet and --gateway when a network is made, or upgrade to 28")
	case older(v, 28, 0):
		r.add(Note, host, fmt.Sprintf("Docker %s has no --gw-priority", v), "name the networks in the order of their gateways, or upgrade to 28")
	}
}

func networks(f *Facts, r *report) {
	for _, p := range f.Parents {
		mine := f.networks(p.Name, true)
		for _, n := range f.networks(p.Name, false) {
			if n.Mode == (mode.Mode{}) {
				continue
			}
			at := slices.IndexFunc(mine, func(o Network) bool { return o.Mode != (mode.Mode{}) && !o.Mode.CanShare(n.Mode) })
			if at >= 0 {
				r.add(Warning, p.Name, fmt.Sprintf("Docker's network %s is %s there, and underlay's %s is %s: their containers do not run together", n.Name, n.Mode, mine[at].Name, mine[at].Mode),
					"remove one of them, or move it to another parent or a VLAN")
				continue
			}
			for _, o := range mine {
				if overlap(n, o) {
					r.add(Warning, p.Name, fmt.Sprintf("Docker's network %s (%s) gives out the same addresses as underlay's %s, and neither asks the other", n.Name, n.Driver, o.Name),
						"move its containers over and remove it, or give each an --ip-range of its own")
					break
				}
			}
		}
	}
}

func overlap(a, b Network) bool {
	for _, p := range a.Pools {
		for _, q := range b.Pools {
			if p.Overlaps(q) {
				return true
			}
		}
	}
	return false
}

func plugged(f *Facts, r *report) {
	on := slices.ContainsFunc(f.Docker.Plugins, func(p Plugin) bool { return p.Enabled })
	for _, p := range f.Docker.Plugins {
		if !p.Enabled && !on {
			r.add(Error, host, fmt.Sprintf("plugin %s is disabled: no network of it works", p.Name), "docker plugin enable "+p.Name)
		}
	}
	switch {
	case f.Daemon.Socket == "" && f.Daemon.Unknown != "":
		r.add(Note, host, f.Daemon.Unknown, "name the one to look at with --socket")
	case f.Daemon.Socket == "" && on:
		r.add(Error, host, "the plugin is enabled and has no socket in /run/docker/plugins", "docker plugin disable -f and enable it; see Docker's log")
	case f.Daemon.Socket == "" && len(f.Docker.Plugins) == 0:
		r.add(Note, host, "underlay is not installed here: no plugin and no socket of it is there", "docs/install.md has the ways; nothing else is looked at of it")
	case f.Daemon.Socket == "":
	case f.Daemon.Unknown != "" && len(r.found) > 0: // a disabled one leaves its socket
	case f.Daemon.Unknown != "":
		r.add(Error, host, "the plugin does not answer: "+f.Daemon.Unknown, "see the plugin's log; docker plugin disable -f and enable it, or systemctl restart underlay")
	case f.Daemon.Version != f.Version:
		r.add(Warning, host, fmt.Sprintf("the plugin is underlay %s, and this command is %s", f.Daemon.Version, f.Version), "upgrade the older one")
	}
}

func privileges(f *Facts, r *report) {
	if f.Daemon.Socket == "" || f.Daemon.Unknown != "" {
		return
	}
	if f.Daemon.Capabilities == nil {
		r.add(Note, host, "the plugin's process could not be looked at: "+f.Daemon.ProcessWhy, "run this as root, on the plugin's host")
		return
	}
	need := []struct {
		name, lack string
		level      Level
	}{
		{"CAP_NET_ADMIN", "it can make no links", Error},
		{"CAP_NET_RAW", "it asks nobody on the LAN whether an address is free", Warning},
		{"CAP_SYS_ADMIN", "interfaces that go with their parent do not come back by themselves", Warning},
	}
	for _, n := range need {
		if n.name == "CAP_SYS_ADMIN" && !f.Daemon.Rebuild || slices.Contains(f.Daemon.Capabilities, n.name) {
			continue
		}
		do := "docker plugin upgrade asks to grant it; a socket plugin has it by AmbientCapabilities="
		if n.name == "CAP_SYS_ADMIN" {
			do = "set REBUILD=off if that is wanted; docker plugin upgrade asks to grant it; a socket plugin has it by AmbientCapabilities="
		}
		r.add(n.level, host, fmt.Sprintf("the plugin lacks %s: %s", n.name, n.lack), do+n.name)
	}
}

// The state file is copied when its form changes, and grows by pages.
const (
	little  = 64 << 20
	nothing = 1 << 20
)

func state(f *Facts, r *report) {
	s := f.Daemon.State
	if s.Path == "" {
		return
	}
	if s.InMemory {
		r.add(Error, host, fmt.Sprintf("the plugin's state in %s is in memory: a reboot loses its networks, which Docker keeps", s.Path), "give it a folder on a disk (--state)")
	}
	switch {
	case s.Free < nothing:
		r.add(Error, host, fmt.Sprintf("the file system of the plugin's state in %s is full: nothing can be changed", s.Path), "make room")
	case s.Free < little:
		r.add(Warning, host, fmt.Sprintf("the file system of the plugin's state in %s has %d MiB left", s.Path, s.Free>>20), "make room")
	}
}

func managers(f *Facts, r *report) {
	for _, m := range f.Managers {
		r.add(Note, host, fmt.Sprintf("%s takes links such as %s for its own: %s", m.Name, m.Link, m.Why), remedyOf[m.Name])
	}
}

var remedyOf = map[string]string{
	"systemd-networkd": "a file before it, /etc/systemd/network/00-underlay.network, with [Match] Name=ul* and [Link] Unmanaged=yes",
	"NetworkManager":   "[keyfile] unmanaged-devices=interface-name:ul* in /etc/NetworkManager/conf.d/underlay.conf",
}
