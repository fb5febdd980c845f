package driver

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"underlay/internal/mode"
	"underlay/netlinkutil"
)

// alias says whose a link is: this state file's, so that another underlay of
// the host does not take it for a leftover. Only links that have it are deleted,
// and those that a kill left unsigned.
func (d *Driver) alias(what string) string { return "underlay " + d.instance + " " + what }

func (d *Driver) parentAlias() string { return d.alias("parent") }

// linkName is an endpoint's sub-interface while it is in the host: derived.
func linkName(endpointID string) string { return "ul" + endpointID[:min(len(endpointID), 13)] }

func (d *Driver) endpointAlias(networkID, endpointID string) string {
	return d.alias(endpointWords(networkID, endpointID))
}

func endpointWords(networkID, endpointID string) string {
	return "endpoint " + Short(endpointID) + " of network " + Short(networkID)
}

// Canonical names the parent of a network to be as the kernel does, not by an
// altname, nor a VLAN link of a name of its own by its ID, so that networks of
// one link are known to be.
func (d *Driver) Canonical(n *Network) error {
	if n.dummy() {
		return nil
	}
	l, err := d.kernel.Link(n.Options.Parent)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case l.Lower != "" && l.Kind != "vlan":
		return fmt.Errorf("parent %s is itself a %s link on %s; use -o parent=%s", l.Name, l.Kind, l.Lower, l.Lower)
	}
	n.Options.Parent = l.Name
	return d.named(n)
}

// readyParent is the parent of a network that has an endpoint to carry. One
// that the plugin had made and that has gone is made again.
func (d *Driver) readyParent(n *Network) (netlinkutil.Link, error) {
	l, err := d.kernel.Link(n.parent())
	if err == nil {
		if vlans, bad := n.vlans(); bad == nil && len(vlans) > 0 {
			err = d.is(l, vlans[0])
		}
		return l, err
	}
	if !errors.Is(err, os.ErrNotExist) {
		return l, err
	}
	d.parents.Lock()
	defer d.parents.Unlock()
	if _, err := d.network(n.ID); err != nil {
		return l, err
	}
	l, err = d.ensureParent(n)
	if a := (absent{}); errors.As(err, &a) {
		since, _ := d.await(n.parent(), err)
		on := ""
		if a.link != n.parent() {
			on = ", for " + n.parent()
		}
		return l, fmt.Errorf("parent %s is not there%s (waiting since %s); the network works again as soon as it is, see ip link", a.link, on, since.Format(time.DateTime))
	}
	return l, err
}

// absent is the error of a link that is not there.
type absent struct{ link, text string }

func (a absent) Error() string { return a.text }
func (a absent) Unwrap() error { return os.ErrNotExist }

// ensureParent returns the parent of a network, and makes it where it is one
// that the plugin makes: a VLAN link that is absent, or a dummy. The caller
// holds d.parents.
func (d *Driver) ensureParent(n *Network) (netlinkutil.Link, error) {
	name := n.parent()
	if n.dummy() {
		if _, err := d.kernel.EnsureDummy(name, d.parentAlias(), dummyMAC(n.ID)); err != nil {
			return netlinkutil.Link{}, err
		}
		return d.kernel.Link(name)
	}
	vlans, err := n.vlans()
	if err != nil {
		// It is a link's name all the same, if there is such a link.
		if l, absent := d.kernel.Link(name); absent == nil {
			return l, usable(l)
		}
		return netlinkutil.Link{}, err
	}
	if len(vlans) == 0 {
		l, err := d.kernel.Link(name)
		if errors.Is(err, os.ErrNotExist) {
			return l, absent{name, fmt.Sprintf("parent %s is not there; name a link of this host (see ip link), or one like eth0.10 to have VLAN 10 made on eth0", name)}
		}
		if err != nil {
			return l, err
		}
		return l, usable(l)
	}
	l, err := d.ensureVLAN(vlans)
	if err != nil {
		return l, err
	}
	return l, usable(l)
}

// usable refuses the links that cannot carry sub-interfaces. A port of what is
// not named here, such as a VRF, can.
func usable(l netlinkutil.Link) error {
	if l.Loopback {
		return fmt.Errorf("parent %s is the loopback link and reaches no LAN; name a NIC, or leave -o parent out for an isolated network", l.Name)
	}
	switch l.MasterKind {
	case "bridge", "bond", "team":
		return fmt.Errorf("parent %s is a port of %s %s, which takes all its traffic; use -o parent=%s", l.Name, l.MasterKind, l.Master, l.Master)
	case "openvswitch":
		return fmt.Errorf("parent %s is a port of Open vSwitch, which takes all its traffic; use another parent, or take it out of the switch", l.Name)
	}
	return nil
}

// shareable refuses a network whose mode does not go with what is on the
// parent already.
func (d *Driver) shareable(n *Network) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.networks {
		if o.parent() != n.parent() || n.mode().CanShare(o.mode()) {
			continue
		}
		why := "one parent carries only one kind of them"
		switch {
		case n.mode().Alone() || o.mode().Alone():
			why = "passthru needs its parent alone"
		case n.mode().Kind == mode.IPvlan && o.mode().Kind == mode.IPvlan:
			why = "all ipvlan sub-interfaces of a parent have one mode and flag"
		}
		return fmt.Errorf("parent %s already carries %v (network %s), which %v cannot share: %s; use the same mode, another parent, or a VLAN such as -o parent=%s (if docker network ls does not show it: underlay forget)",
			n.parent(), o.mode(), Short(o.ID), n.mode(), why, vlanOf(n.parent()))
	}
	return nil
}

// try makes a sub-interface on the parent and deletes it again, so that what
// the kernel refuses is refused when the network is made and not when its
// first container starts: links of other programs that sit in containers are
// seen by nobody but the kernel.
//
// An ipvlan link sets the mode of all others on its parent. So the trial is
// left out where a network of ours has set it already, and where a macvlan
// link is refused the parent, which then carries somebody else's ipvlan.
func (d *Driver) try(n *Network) error {
	if n.mode().Kind != mode.IPvlan {
		return d.trial(n, n.mode())
	}
	if d.isParent(n.parent()) {
		return nil
	}
	if err := d.trial(n, mode.Default); errors.Is(err, netlinkutil.ErrBusy) {
		return fmt.Errorf("parent %s carries links of another program, ipvlan by the look of it, and a new network would change their mode; remove them, or use another parent or a VLAN such as -o parent=%s", n.parent(), vlanOf(n.parent()))
	}
	return d.trial(n, n.mode())
}

func (d *Driver) trial(n *Network, m mode.Mode) error {
	name := "ult" + Short(n.ID)
	_, err := d.kernel.AddSubInterface(netlinkutil.SubInterface{
		Name: name, Parent: n.parent(), Mode: m, MTU: n.Options.MTU,
		Alias: d.alias("trial of network " + Short(n.ID)),
	})
	if err != nil {
		return err
	}
	return d.kernel.DeleteLink(name)
}

// dropParent deletes the links that a network stood on which goes, where the
// plugin made them and no other network stands on them. What cannot be deleted
// now is at the next start. The caller holds d.parents.
func (d *Driver) dropParent(gone *Network) {
	stood := d.stoodOn()
	for _, name := range gone.links() {
		if stood[name] {
			return // and on those below it
		}
		l, err := d.kernel.Link(name)
		if err == nil && l.Alias == d.parentAlias() {
			err = d.deleteParent(name)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			d.logOf(gone.ID).Errorf("parent %s is left until the next start: %v", name, err)
			return
		}
	}
}

// deleteParent deletes a link that the plugin made, unless somebody else's are
// on it, which would go with it.
func (d *Driver) deleteParent(name string) error {
	links, err := d.kernel.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Lower == name && !strings.HasPrefix(l.Alias, d.alias("")) {
			return fmt.Errorf("link %s of somebody else is on it", l.Name)
		}
	}
	return d.kernel.DeleteLink(name)
}

// isParent tells whether a network has its sub-interfaces on a link.
func (d *Driver) isParent(link string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.networks {
		if n.parent() == link {
			return true
		}
	}
	return false
}

// stoodOn are the links that networks stand on: their parents, and those below.
func (d *Driver) stoodOn() map[string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	stood := map[string]bool{}
	for _, n := range d.networks {
		for _, name := range n.links() {
			stood[name] = true
		}
	}
	return stood
}

// unsigned tells whether a link was made and not yet signed when the plugin was
// killed: the kernel takes an alias only after it has made the link.
func unsigned(l netlinkutil.Link) bool {
	if l.Alias != "" {
		return false
	}
	return madeName.MatchString(l.Name) && !l.Up && (l.Kind == string(mode.Macvlan) || l.Kind == string(mode.IPvlan)) ||
		madeDummyName.MatchString(l.Name) && l.Kind == "dummy"
}

// The names that linkName, trial, shimName and Network.parent derive.
var (
	madeName      = regexp.MustCompile("^ul([0-9a-f]{13}|[th][0-9a-f]{12})$")
	madeDummyName = regexp.MustCompile("^uld[0-9a-f]{12}$")
)
