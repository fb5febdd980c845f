package doctor

import (
	"context"
	"crypto/rand"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
	"underlay/ipam/probe"
	"underlay/netlinkutil"
)

// Kernel is what is asked of the host's network stack. *netlinkutil.Host is the
// real one.
type Kernel interface {
	Supports(kind string) (bool, error)
	Details() ([]netlinkutil.Detail, error)
	DefaultLink(v6 bool) (string, error)
	Subnets(link string) ([]netlinkutil.Subnet, error)
}

// Wire asks a LAN. LANs is the real one.
type Wire interface {
	Survey(ctx context.Context, link string, questions []probe.Question, wait time.Duration) (probe.Answers, error)
	DHCP(ctx context.Context, link string, mac net.HardwareAddr) ([]dhcp.Terms, error)
	DHCPv6(ctx context.Context, link string, mac net.HardwareAddr) error // why nobody offers an address
}

// API asks dockerd, by GET, for what is at a path.
type API interface {
	Get(ctx context.Context, path string, into any) error
}

// Plugged finds the plugin's socket, and asks it and its process. Finder is the real
// one.
type Plugged interface {
	Find() (string, error)
	Ask(ctx context.Context, socket, path string, into any) error
	Process(socket string) (Process, error)
}

// Process is what a plugin's process shows of itself.
type Process struct {
	Capabilities []string // not nil
	Rebuild      bool
	State        Folder
}

// Sources are where Gather looks.
type Sources struct {
	Version string // of this program
	Kernel  Kernel
	Wire    Wire
	Docker  API
	Plugin  Plugged
	Files   fs.FS // the root folder
}

// heardFor is how long answers by ARP and neighbour discovery are waited for. A
// router may take half a second to advertise itself (RFC 4861 6.2.6).
const heardFor = 1500 * time.Millisecond

// Gather collects the facts about a host and its parents; none named is those
// of the default route and of the plugin's networks. It takes as long as the
// slowest LAN, and no longer than ctx.
func Gather(ctx context.Context, s Sources, parents ...string) *Facts {
	f := &Facts{Version: s.Version, Kinds: map[string]bool{}, Sysctls: map[string]string{}}
	f.Release = text(s.Files, "proc/sys/kernel/osrelease")
	f.Machine = strings.TrimSpace(text(s.Files, "sys/class/dmi/id/sys_vendor") + " " + text(s.Files, "sys/class/dmi/id/product_name"))
	for _, k := range kinds {
		has, err := s.Kernel.Supports(k.kind)
		if err != nil {
			f.KindsUnknown = err.Error()
			break
		}
		f.Kinds[k.kind] = has
	}
	var err error
	if f.Links, err = s.Kernel.Details(); err != nil {
		f.LinksUnknown = err.Error()
	}
	f.Docker = askDocker(ctx, s.Docker)
	f.Daemon = askDaemon(ctx, s.Plugin)
	f.Managers = managing(s.Files, f.Links)
	for _, name := range f.named(s.Kernel, parents) {
		f.Parents = append(f.Parents, f.about(s, name))
	}
	f.Sysctls = sysctls(s.Files, f.Parents)
	var wg sync.WaitGroup
	for i := range f.Parents {
		if p := &f.Parents[i]; f.works(p.Name) {
			wg.Go(func() { f.hear(ctx, s.Wire, p) })
		}
	}
	wg.Wait()
	return f
}

// named are the parents to look at. A tunnel that has the default route, such as
// WireGuard's or PPP's, is no NIC that anybody would name.
func (f *Facts) named(k Kernel, asked []string) (names []string) {
	if len(asked) > 0 {
		return asked
	}
	for _, v6 := range []bool{false, true} {
		name, err := k.DefaultLink(v6)
		if err != nil || name == "" {
			continue
		}
		if l, there := f.link(name); !there || len(l.MAC) == 6 {
			names = append(names, name)
		}
	}
	names = append(names, f.Daemon.Parents...)
	slices.Sort(names)
	return slices.Compact(names)
}

// about is what the host itself knows of a parent.
func (f *Facts) about(s Sources, name string) Parent {
	p := Parent{Name: name}
	p.Wireless = slices.ContainsFunc(f.down(name), func(link string) bool {
		return slices.Contains(strings.Fields(text(s.Files, "sys/class/net/"+link+"/uevent")), "DEVTYPE=wlan")
	})
	if subnets, err := s.Kernel.Subnets(name); err == nil {
		p.Subnets = subnets
	}
	for _, sub := range p.Subnets {
		if sub.Gateway.IsValid() {
			p.add(Gateway{Addr: sub.Gateway})
		}
	}
	for _, n := range f.Docker.Networks {
		if n.Parent == name && !n.Internal && !n.Mode.RoutesByLink() {
			for _, g := range n.Gateways {
				p.add(Gateway{Addr: g, Of: n.Name})
			}
		}
	}
	return p
}

func (p *Parent) add(g Gateway) {
	if !slices.ContainsFunc(p.Gateways, func(o Gateway) bool { return o.Addr == g.Addr }) {
		p.Gateways = append(p.Gateways, g)
	}
}

// hear asks the LAN of a parent, all at once.
func (f *Facts) hear(ctx context.Context, w Wire, p *Parent) {
	l, _ := f.link(p.Name)
	lan := LAN{Heard: map[netip.Addr][]string{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		offers, err := w.DHCP(ctx, p.Name, l.MAC)
		if err != nil {
			lan.DHCPUnknown = err.Error()
		}
		for _, o := range offers {
			lan.DHCP = append(lan.DHCP, Server{Addr: o.Server, MTU: o.MTU})
		}
	})
	if slices.ContainsFunc(f.networks(p.Name, true), func(n Network) bool { return n.DHCPv6 }) {
		wg.Go(func() {
			if err := w.DHCPv6(ctx, p.Name, l.MAC); err != nil {
				lan.NoDHCPv6 = err.Error()
			}
		})
	}
	var questions []probe.Question
	for _, g := range p.Gateways {
		questions = append(questions, probe.Question{Addr: g.Addr})
		if g.Addr.Is4() && !lan.Asked.IsValid() {
			lan.Asked = g.Addr
		}
	}
	for _, s := range p.Subnets {
		questions = append(questions, probe.Question{Addr: s.Addr})
	}
	other := -1
	if lan.Asked.IsValid() {
		other = len(questions)
		questions = append(questions, probe.Question{Addr: lan.Asked, From: stranger()})
	}
	answers, err := w.Survey(ctx, p.Name, questions, heardFor)
	if err != nil {
		lan.Unknown = err.Error()
	}
	for i, q := range questions {
		if i == other {
			lan.Reached = len(answers.MACs[i]) > 0
			continue
		}
		for _, m := range answers.MACs[i] {
			if !slices.Contains(lan.Heard[q.Addr], m.String()) {
				lan.Heard[q.Addr] = append(lan.Heard[q.Addr], m.String())
			}
		}
		slices.Sort(lan.Heard[q.Addr])
	}
	lan.Routers = answers.Routers
	wg.Wait()
	p.LAN = lan
}

// stranger is a MAC of nobody's, as a container's is.
func stranger() net.HardwareAddr {
	m := net.HardwareAddr{0x02, 0, 0, 0, 0, 0}
	_, _ = rand.Read(m[1:])
	return m
}

// settings are those of links that matter to a check.
var settings = []string{"ipv4/arp_ignore", "ipv4/proxy_arp", "ipv4/rp_filter", "ipv6/accept_ra", "ipv6/forwarding"}

func sysctls(files fs.FS, parents []Parent) map[string]string {
	all := map[string]string{}
	for _, link := range append([]Parent{{Name: "all"}}, parents...) {
		for _, s := range settings {
			family, name, _ := strings.Cut(s, "/")
			path := family + "/conf/" + link.Name + "/" + name
			if v := text(files, "proc/sys/net/"+path); v != "" {
				all[path] = v
			}
		}
	}
	return all
}

// text is what is in a file, "" if there is none.
func text(files fs.FS, path string) string {
	if !fs.ValidPath(path) {
		return ""
	}
	b, err := fs.ReadFile(files, path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// LANs is the Wire of the host's netns.
type LANs struct {
	Client  *dhcp.Client
	Client6 *dhcp6.Client
}

// Survey is probe.Survey.
func (LANs) Survey(ctx context.Context, link string, questions []probe.Question, wait time.Duration) (probe.Answers, error) {
	return probe.Survey(ctx, link, questions, wait)
}

const (
	// dhcpWait is how long the first server may take: many ping an address for some
	// seconds before they offer it. dhcpMore is for the others.
	dhcpWait = 5 * time.Second
	dhcpMore = 1500 * time.Millisecond
)

// DHCP is who offers what, to the parent's own MAC, so that a filter of MACs is
// not in the way, but by a client id of its own, so that the host's own lease is
// not what is offered.
func (w LANs) DHCP(ctx context.Context, link string, mac net.HardwareAddr) ([]dhcp.Terms, error) {
	ctx, stop := context.WithTimeout(ctx, dhcpWait)
	defer stop()
	return w.Client.Survey(ctx, dhcp.Ask{Key: "doctor " + link, Link: link, MAC: mac, ClientID: []byte("\x00underlay doctor")}, dhcpMore)
}

// DHCPv6 is by a DUID of its own, too. Of the servers, one is enough.
func (w LANs) DHCPv6(ctx context.Context, link string, mac net.HardwareAddr) error {
	ctx, stop := context.WithTimeout(ctx, dhcpWait)
	defer stop()
	_, err := w.Client6.Discover(ctx, dhcp6.Ask{Key: "doctor " + link, Link: link, MAC: mac, DUID: dhcp6.NameDUID("underlay doctor")})
	return err
}
