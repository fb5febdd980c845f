package driver

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"underlay/internal/options"
	"underlay/netlinkutil"
)

// vlan is a VLAN link that a network stands on, and that is made where it is
// absent.
type vlan struct {
	name, lower string
	id          int
	protocol    netlinkutil.VLANProtocol
	asked       bool // by -o vlan, so that it must be that VLAN; a name alone may be anything's
}

func (v vlan) String() string { return fmt.Sprintf("VLAN %d on %s", v.id, v.lower) }

// vlans are the VLAN links that a network stands on if its parent is one, the
// parent first: eth0.10.20 is VLAN 20 (802.1q) on eth0.10, and that VLAN 10
// (802.1ad) on eth0, as IEEE 802.1Q clause 3.168 has provider bridges do it.
// Any of them may turn out to be a link of another kind with such a name.
func (n *Network) vlans() ([]vlan, error) {
	var all []vlan
	lower := n.Options.Parent
	if n.Options.VLAN != 0 {
		all = append(all, vlan{n.parent(), lower, n.Options.VLAN, netlinkutil.Dot1Q, true})
	}
	for {
		name := lower
		below, id, ok, err := options.SplitVLAN(name)
		if err != nil || !ok {
			return all, err
		}
		protocol := netlinkutil.Dot1Q
		if len(all) > 0 {
			protocol = netlinkutil.Dot1AD
		}
		all = append(all, vlan{name, below, id, protocol, false})
		lower = below
	}
}

// ensureVLAN returns the first of some VLAN links, each on the next, and makes
// it, and those below it, where they are not there.
func (d *Driver) ensureVLAN(vs []vlan) (netlinkutil.Link, error) {
	v := vs[0]
	l, err := d.kernel.Link(v.name)
	if err == nil {
		return l, d.is(l, v)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return l, err
	}
	if v.protocol == netlinkutil.Dot1AD && len(vs) > 1 {
		if _, err := d.kernel.Link(v.lower); errors.Is(err, os.ErrNotExist) {
			return l, fmt.Errorf("%s is not there, nor is %s; underlay makes two VLANs on a NIC at most, one in the other", v.name, v.lower)
		}
	}
	var low netlinkutil.Link
	if len(vs) > 1 {
		low, err = d.ensureVLAN(vs[1:])
	} else if low, err = d.kernel.Link(v.lower); errors.Is(err, os.ErrNotExist) {
		err = absent{v.lower, fmt.Sprintf("parent %s is not there, nor is %s to make VLAN %d on; name a link of this host (see ip link)", v.name, v.lower, v.id)}
	}
	if err == nil {
		err = usable(low)
	}
	if err != nil {
		return low, err
	}
	made, err := d.kernel.EnsureVLAN(v.name, v.lower, v.id, v.protocol, d.parentAlias())
	if err != nil {
		return low, err
	}
	if made {
		d.log.Infof("made VLAN link %s on %s (%v)", v.name, v.lower, v.protocol)
	}
	return d.kernel.Link(v.name)
}

// is refuses a link that has a VLAN's name and is another VLAN. A link of
// another kind may have the name, and one that somebody else made, any protocol.
func (d *Driver) is(l netlinkutil.Link, v vlan) error {
	if l.Kind != "vlan" {
		if v.asked {
			return fmt.Errorf("link %s is there and is no VLAN (%s), but -o vlan=%d wants it to be %v; rename it, or name it as -o parent and leave vlan out", l.Name, l.Kind, v.id, v)
		}
		return nil
	}
	if (l.VLAN != v.id || l.Lower != v.lower && l.Lower != "") && !d.freelyNamed(l, v) { // "": in another netns
		return fmt.Errorf("parent %s is there as VLAN %d on %s, and not %v as its name has it; rename or delete it, or use another parent", l.Name, l.VLAN, l.Lower, v)
	}
	if l.Alias == d.parentAlias() && l.VLANProtocol != v.protocol {
		return fmt.Errorf("parent %s is there as %v for another network, and this one needs it as %v; a VLAN ID of %s is the one or the other", l.Name, l.VLANProtocol, v.protocol, v.lower)
	}
	return nil
}

// freelyNamed tells whether a VLAN link that looks like another by its name does
// not mean that: there is no link that the name would have it on, or that is the
// right one by an altname.
func (d *Driver) freelyNamed(l netlinkutil.Link, v vlan) bool {
	low, err := d.kernel.Link(v.lower)
	return !v.asked && errors.Is(err, os.ErrNotExist) || err == nil && l.VLAN == v.id && l.Lower == low.Name
}

// named finds the VLAN link that -o vlan asks for if it is there under a name
// of its own, and takes it for the parent.
func (d *Driver) named(n *Network) error {
	if n.Options.VLAN == 0 {
		return nil
	}
	links, err := d.kernel.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Kind == "vlan" && l.Lower == n.Options.Parent && l.VLAN == n.Options.VLAN && l.VLANProtocol == netlinkutil.Dot1Q && l.Name != n.parent() {
			n.Options.Parent, n.Options.VLAN = l.Name, 0
			return nil
		}
	}
	return nil
}

// links are the names of the links that a network stands on and that the
// plugin may have made, the parent first.
func (n *Network) links() []string {
	names := []string{n.parent()}
	vs, _ := n.vlans() // an ID out of range is no VLAN's
	for _, v := range vs {
		if v.name != n.parent() {
			names = append(names, v.name)
		}
	}
	return names
}

// standsOn tells whether a link is the network's parent, or below that. Of a
// parent that -o vlan asks for, the name may be derived and not show that.
func (n *Network) standsOn(link string) bool {
	return link == n.parent() || link == n.Options.Parent || strings.HasPrefix(n.Options.Parent, link+".")
}

// vlanOf is an example of a VLAN parent beside the given one.
func vlanOf(parent string) string {
	lower, id, ok, _ := options.SplitVLAN(parent)
	if !ok || strings.Contains(lower, ".") {
		return options.VLANName(parent, 10)
	}
	return options.VLANName(lower, id%4094+1)
}
