package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"underlay/driver"
	"underlay/internal/mode"
	"underlay/internal/options"
	"underlay/netlinkutil"
	"underlay/plugin"
)

// Socket is an API at a unix socket.
type Socket string

// patience is how long dockerd and the plugin may take. A dockerd that starts
// containers answers late.
const patience = 3 * time.Second

// Get asks dockerd.
func (s Socket) Get(ctx context.Context, path string, into any) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", string(s))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://socket"+path, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(req)
	if err != nil {
		if e := (*net.OpError)(nil); errors.As(err, &e) {
			return fmt.Errorf("%s: %w", s, e.Err)
		}
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, answer.Status)
	}
	return json.NewDecoder(io.LimitReader(answer.Body, 64<<20)).Decode(into)
}

func askDocker(ctx context.Context, api API) (d Docker) {
	var version struct{ Version string }
	var nets []apiNetwork
	var plugins []struct {
		Name    string
		Enabled bool
		Config  struct {
			Entrypoint []string
			Interface  struct{ Socket string }
		}
	}
	for _, q := range []struct {
		path string
		into any
	}{{"/version", &version}, {"/networks", &nets}, {"/plugins", &plugins}} {
		if err := api.Get(ctx, q.path, q.into); err != nil {
			d.Unknown = err.Error()
			return d
		}
	}
	d.Version = version.Version
	for _, p := range plugins {
		if p.Config.Interface.Socket == "underlay.sock" {
			d.Plugins = append(d.Plugins, Plugin{Name: p.Name, Enabled: p.Enabled})
		}
	}
	for _, n := range nets {
		known, ok := n.network(d.Plugins)
		if ok {
			d.Networks = append(d.Networks, known)
		}
	}
	slices.SortFunc(d.Networks, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// apiNetwork is what dockerd tells of a network.
type apiNetwork struct {
	Name, Driver string
	Internal     bool
	Options      map[string]string
	IPAM         struct {
		Options map[string]string
		Config  []struct{ Subnet, IPRange, Gateway string }
	}
}

// network is one that has a parent on the host's LANs.
func (a *apiNetwork) network(plugins []Plugin) (n Network, ok bool) {
	ours := a.Driver == "underlay" || slices.ContainsFunc(plugins, func(p Plugin) bool { return p.Name == a.Driver })
	o := a.Options
	if !ours && a.Driver != string(mode.Macvlan) && a.Driver != string(mode.IPvlan) || o["parent"] == "" {
		return n, false
	}
	n = Network{
		Name: a.Name, Ours: ours, Driver: a.Driver, Parent: o["parent"], Internal: a.Internal,
	}
	for _, from := range []map[string]string{o, a.IPAM.Options} {
		v := from["dhcp"]
		n.DHCPv4 = n.DHCPv4 || v == "true" || v == "v4" || v == "both"
		n.DHCPv6 = n.DHCPv6 || v == "v6" || v == "both"
		n.Servers = n.Servers || from["dhcp_server"] != ""
	}
	if id, err := strconv.Atoi(o["vlan"]); err == nil && ours {
		n.Parent = options.VLANName(n.Parent, id)
	}
	n.Mode = modeOf(a.Driver, ours, o)
	for _, c := range a.IPAM.Config {
		pool := c.Subnet
		if c.IPRange != "" {
			pool = c.IPRange
		}
		if p, err := netip.ParsePrefix(pool); err == nil {
			n.Pools = append(n.Pools, p.Masked())
		}
		if g, err := netip.ParseAddr(c.Gateway); err == nil {
			n.Gateways = append(n.Gateways, g)
		} else if p, err := netip.ParsePrefix(c.Gateway); err == nil {
			n.Gateways = append(n.Gateways, p.Addr())
		}
	}
	return n, true
}

// modeOf reads a mode as the drivers do: Docker's own default is macvlan bridge and
// ipvlan l2.
func modeOf(driver string, ours bool, o map[string]string) mode.Mode {
	m := mode.Default
	switch {
	case driver == string(mode.IPvlan), ours && (o["ipvlan_mode"] != "" || o["ipvlan_flag"] != ""):
		m = mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "bridge"}
		if o["ipvlan_mode"] != "" {
			m.Name = o["ipvlan_mode"]
		}
		if o["ipvlan_flag"] != "" {
			m.Flag = o["ipvlan_flag"]
		}
	case o["macvlan_mode"] != "":
		m.Name = o["macvlan_mode"]
	}
	if !slices.Contains(mode.All(), m) {
		return mode.Mode{}
	}
	return m
}

func askDaemon(ctx context.Context, p Plugged) (d Daemon) {
	var err error
	if d.Socket, err = p.Find(); err != nil {
		if !errors.Is(err, plugin.ErrNoSocket) {
			d.Unknown = err.Error()
		}
		return d
	}
	var s plugin.Status
	var c plugin.Conflicts
	if err = p.Ask(ctx, d.Socket, plugin.StatusPath, &s); err == nil {
		err = p.Ask(ctx, d.Socket, plugin.ConflictsPath, &c)
	}
	if err != nil {
		d.Unknown = err.Error()
		return d
	}
	d.Version = s.Version
	for _, l := range s.Parents {
		if l.Dummy {
			continue
		}
		d.Parents = append(d.Parents, l.Name)
		if l.State == driver.ParentWaiting {
			d.Waiting = append(d.Waiting, Waiting{l.Name, l.Reason})
		}
	}
	for _, c := range c.Conflicts {
		d.Conflicts = append(d.Conflicts, Conflict{Addr: c.Address, MAC: c.MAC, Last: c.Last})
	}
	proc, err := p.Process(d.Socket)
	if err != nil {
		d.ProcessWhy = err.Error()
		return d
	}
	d.Capabilities, d.Rebuild, d.State = proc.Capabilities, proc.Rebuild, proc.State
	return d
}

// Finder is the plugin behind a socket; an empty path is looked for.
type Finder string

// Find is plugin.Find.
func (p Finder) Find() (string, error) { return plugin.Find(string(p)) }

// Ask makes one of underlay's own calls.
func (Finder) Ask(ctx context.Context, socket, path string, into any) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	client := plugin.Client(socket)
	defer client.CloseIdleConnections()
	return plugin.Call(ctx, client, path, struct{}{}, into)
}

// Process looks at who listens at a socket.
func (Finder) Process(socket string) (p Process, err error) {
	pid, err := listener(socket)
	if err != nil {
		return p, err
	}
	proc := fmt.Sprintf("/proc/%d", pid)
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return p, err
	}
	if p.Capabilities, err = capabilities(string(status)); err != nil {
		return p, err
	}
	environ, err := os.ReadFile(proc + "/environ")
	if err != nil {
		return p, err
	}
	p.Rebuild = !slices.Contains(strings.Split(string(environ), "\x00"), "REBUILD=off")
	line, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		return p, err
	}
	p.State.Path = stateFolder(strings.Split(string(line), "\x00"))
	var at unix.Statfs_t
	if err := unix.Statfs(proc+"/root"+p.State.Path, &at); err != nil {
		p.State = Folder{} // what cannot be seen is not told of
		return p, nil
	}
	p.State.InMemory = at.Type == unix.TMPFS_MAGIC || at.Type == unix.RAMFS_MAGIC
	p.State.Free = int64(at.Bavail) * at.Bsize
	return p, nil
}

// listener is the process that listens at a socket.
func listener(socket string) (pid int32, err error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	if who.Pid <= 0 {
		return 0, errors.New("it is in a process namespace that is not seen from here")
	}
	return who.Pid, nil
}

// capabilities reads the effective ones that underlay may need out of
// /proc/PID/status.
func capabilities(status string) ([]string, error) {
	for line := range strings.Lines(status) {
		word, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(word), 16, 64)
		if err != nil {
			return nil, err
		}
		has := []string{}
		for name, bit := range map[string]int{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN} {
			if bits>>bit&1 != 0 {
				has = append(has, name)
			}
		}
		slices.Sort(has)
		return has, nil
	}
	return nil, errors.New("its status has no line CapEff")
}

// stateFolder is the one that a command line names, or the default.
func stateFolder(args []string) string {
	folder := "/var/lib/underlay"
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--state="); ok {
			folder = v
		} else if a == "--state" && i+1 < len(args) {
			folder = args[i+1]
		}
	}
	return path.Clean("/" + folder)
}

// example is a name as underlay's links have.
const example = "ulh0a1b2c3d4e"

// managing lists the programs that take underlay's links: by what they say of one
// that is there, and, for networkd, by the file that would be the first to match
// one.
func managing(files fs.FS, links []netlinkutil.Detail) (ms []Manager) {
	for _, l := range links {
		if !ours(l) || l.Elsewhere || !strings.HasPrefix(l.Name, "ul") {
			continue
		}
		index := strconv.Itoa(l.Index)
		for _, line := range strings.Split(text(files, "run/NetworkManager/devices/"+index), "\n") {
			if line == "managed=true" || line == "managed=full" {
				ms = append(ms, Manager{Name: "NetworkManager", Link: l.Name, Why: "/run/NetworkManager/devices/" + index + " says so"})
			}
		}
		if len(ms) > 0 {
			break
		}
	}
	if _, err := fs.Stat(files, "run/systemd/netif"); err != nil {
		return ms // networkd does not run
	}
	by := map[string]string{} // a file's name to its path; the first folder's hides the others'
	for _, dir := range []string{"etc/systemd/network", "run/systemd/network", "usr/local/lib/systemd/network", "usr/lib/systemd/network"} {
		found, _ := fs.Glob(files, dir+"/*.network")
		for _, p := range found {
			if by[path.Base(p)] == "" {
				by[path.Base(p)] = p
			}
		}
	}
	names := make([]string, 0, len(by))
	for n := range by {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		takes, unmanaged := matches(text(files, by[n]))
		if takes && !unmanaged {
			return append(ms, Manager{Name: "systemd-networkd", Link: example, Why: "/" + by[n] + " matches it"})
		}
		if takes {
			break
		}
	}
	return ms
}

// matches tells whether a .network file (systemd.network(5)) is for a macvlan link of
// underlay's. One with a condition on something else of a link is not: it is
// meant for certain hardware.
func matches(file string) (takes, unmanaged bool) {
	section := ""
	for line := range strings.Lines(file) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, ";") {
			continue
		}
		words := strings.Fields(value)
		switch {
		case section == "[Link]" && key == "Unmanaged":
			v := strings.ToLower(strings.TrimSpace(value))
			unmanaged = v == "yes" || v == "true" || v == "1" || v == "on"
		case section != "[Match]":
		case key == "Name" && anyOf(words, example), key == "Kind" && anyOf(words, "macvlan"), key == "Type" && anyOf(words, "ether"):
			takes = true
		default:
			return false, false
		}
	}
	return takes, unmanaged
}

func anyOf(patterns []string, name string) bool {
	not := len(patterns) > 0 && strings.HasPrefix(patterns[0], "!")
	for i, p := range patterns {
		if i == 0 {
			p = strings.TrimPrefix(p, "!")
		}
		if ok, _ := path.Match(p, name); ok {
			return !not
		}
	}
	return not
}
