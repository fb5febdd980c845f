package driver

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/sirupsen/logrus"

	"underlay/internal/store"
	"underlay/netlinkutil"
)

// DryRun tells what Reconcile would do now, and does nothing. It is a reconcile of a
// copy of the driver, with a kernel that only remembers what it is told to do: what
// that would lead to beyond the links of the host, it does not know.
func (d *Driver) DryRun() Report {
	d.reconciling.Lock()
	defer d.reconciling.Unlock()
	kernel := &rehearsal{Kernel: d.kernel, made: map[string]netlinkutil.Link{}, gone: map[string]bool{}, mtus: map[string]int{}}
	r := &Report{Done: []string{}, Left: []string{}}
	c := d.copyOn(kernel)
	c.reconcileInto(r, all)
	c.companions.Wait()
	r.Done = append(r.Done, kernel.routed...)
	return *r
}

// copyOn copies a driver, but for what it has to do with anybody else. The records
// themselves are shared: they are not changed, but others put in their place.
func (d *Driver) copyOn(kernel Kernel) *Driver {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	c := &Driver{
		kernel: kernel, store: readOnly{d.store}, holdings: onlooker{d.holdings}, log: quiet, grace: d.grace, ctx: d.ctx, instance: d.instance, entered: d.entered,
		accesses: map[string]*access{}, presences: map[string]*presence{},
	}
	d.mu.Lock()
	c.networks, c.endpoints, c.addresses, c.macs = maps.Clone(d.networks), maps.Clone(d.endpoints), maps.Clone(d.addresses), maps.Clone(d.macs)
	c.leasedOn, c.hosts4 = maps.Clone(d.leasedOn), maps.Clone(d.hosts4)
	c.footings, c.shaken, c.waiting = maps.Clone(d.footings), maps.Clone(d.shaken), maps.Clone(d.waiting)
	c.lodgers, c.roommates = cloneIndex(d.lodgers), cloneIndex(d.roommates)
	for id, p := range d.presences {
		now := *p
		now.cancel = nil
		c.presences[id] = &now
	}
	accesses := maps.Clone(d.accesses)
	d.mu.Unlock()
	for parent, a := range accesses {
		a.mu.Lock()
		c.accesses[parent] = &access{ready: a.ready, wrong: a.wrong}
		a.mu.Unlock()
	}
	return c
}

func cloneIndex(index map[string]map[string]*Endpoint) map[string]map[string]*Endpoint {
	c := make(map[string]map[string]*Endpoint, len(index))
	for key, all := range index {
		c[key] = maps.Clone(all)
	}
	return c
}

// readOnly is a store that takes no change.
type readOnly struct{ Store }

func (readOnly) Apply(...store.Change) error { return nil }

func (readOnly) Submit(...store.Change) <-chan error {
	done := make(chan error)
	close(done)
	return done
}

// onlooker tells nobody that an endpoint has ended.
type onlooker struct{ Holdings }

func (onlooker) Ended(netip.Addr) {}

// rehearsal is a kernel in which nothing is done. Of the host's links, it knows what
// would be there if it were.
type rehearsal struct {
	Kernel

	mu     sync.Mutex
	made   map[string]netlinkutil.Link
	gone   map[string]bool
	mtus   map[string]int
	routed []string // what a reconcile does not report
}

func (k *rehearsal) Link(name string) (netlinkutil.Link, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l, ok := k.made[name]; ok {
		return l, nil
	}
	if k.gone[name] {
		return netlinkutil.Link{}, fmt.Errorf("link %s: %w", name, os.ErrNotExist)
	}
	l, err := k.Kernel.Link(name)
	if mtu := k.mtus[name]; err == nil && mtu != 0 {
		l.MTU = mtu
	}
	return l, err
}

func (k *rehearsal) Links() ([]netlinkutil.Link, error) {
	listed, err := k.Kernel.Links()
	k.mu.Lock()
	defer k.mu.Unlock()
	var links []netlinkutil.Link
	for _, l := range listed {
		if _, again := k.made[l.Name]; again || k.gone[l.Name] {
			continue
		}
		if mtu := k.mtus[l.Name]; mtu != 0 {
			l.MTU = mtu
		}
		links = append(links, l)
	}
	for _, l := range k.made {
		links = append(links, l)
	}
	return links, err
}

// ensure has a link be there, unless it is.
func (k *rehearsal) ensure(l netlinkutil.Link) (made bool, err error) {
	if _, err := k.Link(l.Name); err == nil {
		return false, nil
	}
	if l.Lower != "" {
		lower, err := k.Link(l.Lower)
		if err != nil {
			return false, err
		}
		l.MTU, l.Carrier = lower.MTU, lower.Carrier
		if l.MAC == nil {
			l.MAC = lower.MAC
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	l.Up = true
	k.made[l.Name] = l
	return true, nil
}

func (k *rehearsal) EnsureVLAN(name, lower string, id int, protocol netlinkutil.VLANProtocol, alias string) (bool, error) {
	return k.ensure(netlinkutil.Link{Name: name, Kind: "vlan", Lower: lower, VLAN: id, VLANProtocol: protocol, Alias: alias})
}

func (k *rehearsal) EnsureDummy(name, alias string, mac net.HardwareAddr) (bool, error) {
	return k.ensure(netlinkutil.Link{Name: name, Kind: "dummy", MAC: mac, MTU: 1500, Carrier: true, Alias: alias})
}

func (k *rehearsal) AddSubInterface(s netlinkutil.SubInterface) (netlinkutil.Link, error) {
	l := netlinkutil.Link{Name: s.Name, Kind: string(s.Mode.Kind), Lower: s.Parent, MAC: s.MAC, Alias: s.Alias}
	if _, err := k.ensure(l); err != nil {
		return l, err
	}
	return k.Link(s.Name)
}

func (k *rehearsal) SetMTU(name string, mtu int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mtus[name] = mtu
	return nil
}

func (k *rehearsal) DeleteLink(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.made, name)
	k.gone[name] = true
	return nil
}

func (k *rehearsal) Follow(string) (func(context.Context) error, error) {
	return func(context.Context) error { return os.ErrNotExist }, nil
}

func (k *rehearsal) EnsureShim(netlinkutil.Shim) error   { return nil }
func (k *rehearsal) DeleteShim(s netlinkutil.Shim) error { return k.DeleteLink(s.Name) }

func (k *rehearsal) Reach(_ netlinkutil.Shim, r netlinkutil.HostRoute) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.routed = append(k.routed, fmt.Sprintf("gave the host its route to %v", r.Addr))
	return nil
}

func (k *rehearsal) Unreach(_ netlinkutil.Shim, addr netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.routed = append(k.routed, fmt.Sprintf("took the host's route to %v", addr))
	return nil
}

func (k *rehearsal) Restore(string, netlinkutil.SubInterface, netlinkutil.Interface) error {
	return nil
}
func (k *rehearsal) RaiseMTU(string, string, int) error                           { return nil }
func (k *rehearsal) Readdress(string, string, netlinkutil.Readdressing) error     { return nil }
func (k *rehearsal) AddRoutes(string, string, []netlinkutil.InterfaceRoute) error { return nil }
func (k *rehearsal) RemoveInside(string, string) error                            { return nil }
func (k *rehearsal) RemoveElsewhere(string) (bool, error)                         { return false, nil }
