package driver

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"underlay/internal/mode"
	"underlay/internal/options"
	"underlay/netlinkutil"
)

// alias says whose a link is: this state file's, so that another underlay of
// the host does not take it for a leftover. A link without it is never deleted.
func (d *Driver) alias(what string) string { return "underlay " + d.instance + " " + what }

func (d *Driver) parentAlias() string { return d.alias("parent") }

// linkName is an endpoint's sub-interface while it is in the host: derived.
func linkName(endpointID string) string { return "ul" + endpointID[:min(len(endpointID), 13)] }

func (d *Driver) endpointAlias(networkID, endpointID string) string {
	return d.alias("endpoint " + Short(endpointID) + " of network " + Short(networkID))
}

// ensureParent returns the parent of a network, and makes it where it is one
// that the plugin makes: a VLAN link that is absent, or a dummy.
func (d *Driver) ensureParent(n *Network) (netlinkutil.Link, error) {
	name := n.parent()
	if n.dummy() {
		if _, err := d.kernel.EnsureDummy(name, d.parentAlias(), dummyMAC(n.ID)); err != nil {
			return netlinkutil.Link{}, err
		}
		return d.kernel.Link(name)
	}
	l, err := d.kernel.Link(name)
	if errors.Is(err, os.ErrNotExist) {
		return d.ensureVLAN(name)
	}
	if err != nil {
		return l, err
	}
	return l, usable(l)
}

func (d *Driver) ensureVLAN(name string) (netlinkutil.Link, error) {
	lower, id, ok, err := options.SplitVLAN(name)
	if err != nil {
		return netlinkutil.Link{}, err
	}
	if !ok {
		return netlinkutil.Link{}, fmt.Errorf("parent %s is not there; name a link of this host (see ip link), or one like eth0.10 to have VLAN 10 made on eth0", name)
	}
	l, err := d.kernel.Link(lower)
	if errors.Is(err, os.ErrNotExist) {
		return l, fmt.Errorf("parent %s is not there, nor is %s to make VLAN %d on; name a link of this host (see ip link)", name, lower, id)
	}
	if err != nil {
		return l, err
	}
	if err := usable(l); err != nil {
		return l, err
	}
	made, err := d.kernel.EnsureVLAN(name, lower, id, d.parentAlias())
	if err != nil {
		return l, err
	}
	if made {
		d.log.Infof("made VLAN link %s on %s", name, lower)
	}
	return d.kernel.Link(name)
}

// usable refuses the links that cannot carry sub-interfaces.
func usable(l netlinkutil.Link) error {
	switch {
	case l.Loopback:
		return fmt.Errorf("parent %s is the loopback link and reaches no LAN; name a NIC, or leave -o parent out for an isolated network", l.Name)
	case l.Master != "":
		return fmt.Errorf("parent %s is a port of %s %s, which takes all its traffic; use -o parent=%s", l.Name, l.MasterKind, l.Master, l.Master)
	}
	return nil
}

// shareable refuses a network whose mode does not go with what is on the
// parent already.
func (d *Driver) shareable(n *Network) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.networks {
		if o.ID == n.ID || o.parent() != n.parent() || n.mode().CanShare(o.mode()) {
			continue
		}
		why := "one parent carries only one kind of them"
		switch {
		case n.mode().Alone() || o.mode().Alone():
			why = "passthru needs its parent alone"
		case n.mode().Kind == mode.IPvlan && o.mode().Kind == mode.IPvlan:
			why = "all ipvlan sub-interfaces of a parent have one mode and flag"
		}
		return fmt.Errorf("parent %s already carries %v (network %s), which %v cannot share: %s; use the same mode, another parent, or a VLAN such as -o parent=%s",
			n.parent(), o.mode(), Short(o.ID), n.mode(), why, vlanOf(n.parent()))
	}
	return nil
}

// vlanOf is an example of a VLAN parent beside the given one.
func vlanOf(parent string) string {
	lower, id, ok, _ := options.SplitVLAN(parent)
	if !ok {
		return parent + ".10"
	}
	return fmt.Sprintf("%s.%d", lower, id%4094+1)
}

// try makes a sub-interface on the parent and deletes it again, so that what
// the kernel refuses is refused when the network is made and not when its
// first container starts: links of other programs that sit in containers are
// seen by nobody but the kernel.
func (d *Driver) try(n *Network) error {
	name := "ult" + Short(n.ID)
	_, err := d.kernel.AddSubInterface(netlinkutil.SubInterface{
		Name: name, Parent: n.parent(), Mode: n.mode(), MTU: n.Options.MTU,
		Alias: d.alias("trial of network " + Short(n.ID)),
	})
	if err != nil {
		return err
	}
	return d.kernel.DeleteLink(name)
}

// dropParent deletes a parent that the plugin made once no network names it.
// The caller holds d.parents.
func (d *Driver) dropParent(name string) error {
	d.mu.Lock()
	for _, n := range d.networks {
		if n.parent() == name {
			d.mu.Unlock()
			return nil
		}
	}
	d.mu.Unlock()
	l, err := d.kernel.Link(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.Alias != d.parentAlias() {
		return nil
	}
	return d.kernel.DeleteLink(name)
}

// Recover brings the kernel in line with the records after a start: it makes
// the parents that the plugin had made, and deletes the sub-interfaces in the
// host that no endpoint knows. What cannot be mended now is logged and tried
// again when an endpoint needs it.
func (d *Driver) Recover() {
	d.parents.Lock()
	defer d.parents.Unlock()
	d.mu.Lock()
	networks := slices.Collect(maps.Values(d.networks))
	d.mu.Unlock()
	for _, n := range networks {
		if _, err := d.ensureParent(n); err != nil {
			d.logOf(n.ID).Warnf("the network waits for its parent: %v", err)
		}
	}
	links, err := d.kernel.Links()
	if err != nil {
		d.log.Errorf("leftover links were not looked for: %v", err)
		return
	}
	for _, l := range links {
		if !strings.HasPrefix(l.Alias, d.alias("")) || !d.orphan(l) {
			continue
		}
		d.log.Infof("delete leftover link %s (%s)", l.Name, l.Alias)
		if err := d.kernel.DeleteLink(l.Name); err != nil {
			d.log.Errorf("leftover link %s: %v", l.Name, err)
		}
	}
}

// orphan tells whether no record stands behind a link of the plugin's.
func (d *Driver) orphan(l netlinkutil.Link) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.Alias == d.parentAlias() {
		for _, n := range d.networks {
			if n.parent() == l.Name {
				return false
			}
		}
		return true
	}
	for id, e := range d.endpoints {
		if d.endpointAlias(e.NetworkID, id) == l.Alias {
			return false
		}
	}
	return true
}
