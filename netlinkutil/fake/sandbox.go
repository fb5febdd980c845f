package fake

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// SandboxDir is where the fake kernel's sandboxes are.
const SandboxDir = "/var/run/docker/netns"

// AddSandbox makes a container's netns. key is SandboxDir, and a name as dockerd
// gives them.
func (k *Kernel) AddSandbox(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sandboxes[path.Base(key)] = true
}

// EndSandbox ends a container's netns, and the links that are in it.
func (k *Kernel) EndSandbox(key string) {
	k.mu.Lock()
	defer k.unlock()
	delete(k.sandboxes, path.Base(key))
	for _, l := range slices.Clone(k.links) {
		if l.moved && l.sandbox == path.Base(key) {
			k.remove(l)
		}
	}
}

// ForbidEntry takes the way into sandboxes away, or gives it back.
func (k *Kernel) ForbidEntry(forbidden bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.noEntry = forbidden
}

// MoveTo is Move into a sandbox, where the link gets the name, the addresses, the
// routes and the settings of as. The sandbox is made if it is not there.
func (k *Kernel) MoveTo(name, sandbox string, as netlinkutil.Interface) error {
	k.mu.Lock()
	defer k.unlock()
	l, err := k.move(name)
	if err != nil {
		return err
	}
	l.sandbox, l.inside = path.Base(sandbox), clone(as)
	k.sandboxes[l.sandbox] = true
	return nil
}

// Alter changes the link of that alias in a sandbox, as the container would.
func (k *Kernel) Alter(sandbox, alias string, change func(*netlinkutil.Interface)) {
	k.mu.Lock()
	defer k.unlock()
	if l := k.in(sandbox, alias); l != nil {
		i := l.picture()
		change(&i)
		l.inside, l.MTU, l.Up = clone(i), i.MTU, i.Up
	}
}

// Yank takes a network card out of the host, and all links that stand on it,
// wherever they are.
func (k *Kernel) Yank(name string) {
	k.mu.Lock()
	defer k.unlock()
	k.remove(k.must(name))
}

func clone(i netlinkutil.Interface) netlinkutil.Interface {
	i.Addrs, i.Routes, i.Settings = slices.Clone(i.Addrs), slices.Clone(i.Routes), maps.Clone(i.Settings)
	return i
}

// in is the link of that alias in a sandbox, nil where there is none.
func (k *Kernel) in(sandbox, alias string) *link {
	for _, l := range k.links {
		if l.moved && l.sandbox == path.Base(sandbox) && l.Alias == alias && alias != "" {
			return l
		}
	}
	return nil
}

// picture is what Inside tells of a link in a sandbox.
func (l *link) picture() netlinkutil.Interface {
	i := clone(l.inside)
	i.MTU, i.Up = l.MTU, l.Up
	return i
}

// admitted tells why a verb may enter no sandbox.
func (k *Kernel) admitted(op string) error {
	if err := k.injected(op); err != nil {
		return err
	}
	if k.noEntry {
		return fmt.Errorf("%w: containers' network namespaces are not entered", netlinkutil.ErrNoEntry)
	}
	return nil
}

// enter tells why a sandbox cannot be entered by a verb.
func (k *Kernel) enter(op, sandbox string) error {
	if err := k.admitted(op); err != nil {
		return err
	}
	if err := netlinkutil.CheckSandbox(SandboxDir, sandbox); err != nil {
		return err
	}
	if !k.sandboxes[path.Base(sandbox)] {
		return fmt.Errorf("%w: network namespace %s is gone", netlinkutil.ErrNoSandbox, sandbox)
	}
	return nil
}

// Inside pictures a link in a sandbox, as Host's does.
func (k *Kernel) Inside(sandbox, alias string) (netlinkutil.Interface, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.enter("Inside", sandbox); err != nil {
		return netlinkutil.Interface{}, err
	}
	l := k.in(sandbox, alias)
	if l == nil {
		return netlinkutil.Interface{}, fmt.Errorf("%w: the container has no link %q any more", netlinkutil.ErrNotFound, alias)
	}
	return l.picture(), nil
}

// Restore makes a sub-interface in a sandbox, as Host's does.
func (k *Kernel) Restore(sandbox string, s netlinkutil.SubInterface, want netlinkutil.Interface) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("Restore"); err != nil {
		return err
	}
	if err := netlinkutil.CheckName(s.Parent); err != nil {
		return err
	}
	parent := k.find(s.Parent)
	if parent == nil {
		return netlinkutil.NotFound("parent", s.Parent)
	}
	s, err := s.As(want, parent.read())
	if err != nil {
		return err
	}
	if err := k.enter("", sandbox); err != nil {
		return err
	}
	l := k.in(sandbox, s.Alias)
	taken := slices.ContainsFunc(k.links, func(o *link) bool {
		return o != l && o.moved && o.sandbox == path.Base(sandbox) && o.inside.Name == want.Name
	})
	if taken {
		return netlinkutil.Taken(want.Name)
	}
	if l == nil {
		if here := k.find(s.Name); here == nil || here.Alias != s.Alias {
			if _, err := k.addSubInterface(s); err != nil {
				return err
			}
		}
		if l, err = k.take(s.Name); err != nil {
			return err
		}
		l.sandbox, l.inside = path.Base(sandbox), netlinkutil.Interface{}
	}
	l.inside.Name = want.Name
	if s.MAC != nil {
		l.MAC = bytes.Clone(s.MAC)
	}
	l.MTU = max(l.MTU, s.MTU)
	for name, value := range want.Settings {
		if l.inside.Settings == nil {
			l.inside.Settings = map[string]string{}
		}
		l.inside.Settings[name] = value
	}
	v6 := l.inside.Settings["ipv6/conf/disable_ipv6"] != "1"
	for _, p := range want.Addrs {
		if !slices.Contains(l.inside.Addrs, p) && (v6 || p.Addr().Is4()) {
			l.inside.Addrs = append(l.inside.Addrs, p)
		}
	}
	// IPv4 comes first.
	slices.SortStableFunc(l.inside.Addrs, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	if !l.Up && k.macTaken(l) {
		return netlinkutil.Explain(unix.EADDRINUSE, "", "setting the container's link "+want.Name+" up")
	}
	l.Up = true
	for _, n := range want.Routes {
		if (v6 || n.To.Addr().Is4()) && !k.routed(sandbox, n) {
			l.inside.Routes = append(l.inside.Routes, n)
		}
	}
	return nil
}

// routed tells whether a container has a route to the same destination already,
// by whichever link.
func (k *Kernel) routed(sandbox string, n netlinkutil.InterfaceRoute) bool {
	same := func(o netlinkutil.InterfaceRoute) bool {
		return o.To == n.To && o.Metric == n.Metric && o.Table == n.Table && o.TOS == n.TOS
	}
	return slices.ContainsFunc(k.links, func(l *link) bool {
		return l.moved && l.sandbox == path.Base(sandbox) && slices.ContainsFunc(l.inside.Routes, same)
	})
}

// RaiseMTU raises the MTU of a link in a sandbox, as Host's does.
func (k *Kernel) RaiseMTU(sandbox, alias string, mtu int) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.enter("RaiseMTU", sandbox); err != nil {
		return err
	}
	l := k.in(sandbox, alias)
	switch {
	case l == nil:
		return fmt.Errorf("%w: the container has no link %q any more", netlinkutil.ErrNotFound, alias)
	case mtu > l.lower.MTU && l.Kind == string(mode.Macvlan):
		return netlinkutil.Explain(unix.EINVAL, "", fmt.Sprintf("setting the MTU of the container's link %s to %d", l.inside.Name, mtu))
	}
	l.MTU = max(l.MTU, mtu)
	return nil
}

// AddRoutes makes routes by a link in a sandbox, as Host's does.
func (k *Kernel) AddRoutes(sandbox, alias string, routes []netlinkutil.InterfaceRoute) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.enter("AddRoutes", sandbox); err != nil {
		return err
	}
	l := k.in(sandbox, alias)
	if l == nil {
		return fmt.Errorf("%w: the container has no link %q any more", netlinkutil.ErrNotFound, alias)
	}
	for _, n := range routes {
		if !k.routed(sandbox, n) {
			l.inside.Routes = append(l.inside.Routes, n)
		}
	}
	return nil
}

// Readdress changes the address of a link in a sandbox, as Host's does.
func (k *Kernel) Readdress(sandbox, alias string, c netlinkutil.Readdressing) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.enter("Readdress", sandbox); err != nil {
		return err
	}
	l := k.in(sandbox, alias)
	if l == nil {
		return fmt.Errorf("%w: the container has no link %q any more", netlinkutil.ErrNotFound, alias)
	}
	l.inside = c.Of(l.inside)
	return nil
}

// RemoveInside deletes a link in a sandbox, as Host's does.
func (k *Kernel) RemoveInside(sandbox, alias string) error {
	k.mu.Lock()
	defer k.unlock()
	err := k.enter("RemoveInside", sandbox)
	if errors.Is(err, netlinkutil.ErrNoSandbox) {
		return nil
	}
	if l := k.in(sandbox, alias); err == nil && l != nil {
		k.remove(l)
	}
	return err
}

// RemoveElsewhere deletes a link in whichever sandbox, as Host's does.
func (k *Kernel) RemoveElsewhere(alias string) (found bool, err error) {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("RemoveElsewhere"); err != nil {
		return false, err
	}
	if alias == "" {
		return false, fmt.Errorf("%w: no alias", netlinkutil.ErrInvalid)
	}
	for _, l := range slices.Clone(k.links) {
		if l.moved && l.Alias == alias {
			k.remove(l)
			found = true
		}
	}
	return found, nil
}

// Sandboxes lists the containers' netns, as Host's does.
func (k *Kernel) Sandboxes() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.admitted("Sandboxes"); err != nil {
		return nil, err
	}
	var keys []string
	for _, name := range slices.Sorted(maps.Keys(k.sandboxes)) {
		keys = append(keys, path.Join(SandboxDir, name))
	}
	return keys, nil
}

// InsideAll pictures the links in all sandboxes, as Host's does.
func (k *Kernel) InsideAll(prefix string) (map[string]netlinkutil.Found, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.admitted("InsideAll"); err != nil {
		return nil, err
	}
	all := map[string]netlinkutil.Found{}
	for _, l := range k.links {
		if l.moved && l.sandbox != "" && l.Alias != "" && strings.HasPrefix(l.Alias, prefix) {
			all[l.Alias] = netlinkutil.Found{Sandbox: path.Join(SandboxDir, l.sandbox), Interface: l.picture()}
		}
	}
	return all, nil
}

// lowered is what an MTU of a link does to those on it: drivers/net/macvlan.c and
// 8021q lower theirs along, ipvlan has it follow both ways.
func (k *Kernel) lowered(l *link) {
	for _, c := range k.links {
		if c.lower != l || c.MTU <= l.MTU && c.Kind != string(mode.IPvlan) {
			continue
		}
		c.MTU = l.MTU
		k.lowered(c)
	}
}

// printInside is where a link is, and what it is there.
func (l *link) printInside(b *strings.Builder) {
	if l.sandbox == "" {
		return
	}
	fmt.Fprintf(b, " in %s as %s", l.sandbox, l.inside.Name)
	for _, p := range l.inside.Addrs {
		fmt.Fprintf(b, " %s", p)
	}
	for _, n := range l.inside.Routes {
		fmt.Fprintf(b, " to %s", n)
	}
	for _, name := range slices.Sorted(maps.Keys(l.inside.Settings)) {
		fmt.Fprintf(b, " %s=%s", name, l.inside.Settings[name])
	}
}
