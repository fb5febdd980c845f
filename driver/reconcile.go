package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/internal/options"
	"underlay/netlinkutil"
)

// Reconcile compares what should be, the records, with what is, the kernel's
// links, and what dockerd has said. What can be mended is: parents are made,
// interfaces that went with their parent are made again inside their containers,
// links that nobody needs are deleted. What has ended for certain is forgotten.
// The rest is reported, not guessed at.
//
// An endpoint's link is in one of these places:
//
//	made      in the host, until dockerd moves it
//	arrived   in its container: it is pictured there
//	returned  in the host again; dockerd then says that the endpoint is deleted
//	gone      with its parent, or with its container
//
// dockerd may have been killed at any point and never come back to an endpoint.
// One that has no link in a container, and of which nothing is heard for the
// grace period, has ended.

// grace must outlast what dockerd may do between two calls that belong together:
// it repeats a failing call for 15 s.
const grace = time.Minute

// startingGraces is for how many of them a container may be on its way: up to
// Docker 27, dockerd calls Join before it has the container made, which takes a
// busy host minutes.
const startingGraces = 10

// Report is what a reconcile did, and what it found and could not mend, a line
// each.
type Report struct {
	Done []string `json:"done"`
	Left []string `json:"left"`
}

func (r *Report) did(format string, args ...any) {
	r.Done = append(r.Done, fmt.Sprintf(format, args...))
}

func (r *Report) left(format string, args ...any) {
	r.Left = append(r.Left, fmt.Sprintf(format, args...))
}

// failed is left, and said in the log, too.
func (r *Report) failed(log logrus.FieldLogger, format string, args ...any) {
	r.left(format, args...)
	log.Errorf(format, args...)
}

// scope is how much a reconcile looks at.
type scope int

const (
	// changed: only the endpoints of parents that have come or changed.
	changed scope = iota
	// all: each endpoint.
	all
	// started: the plugin has just been started, and no call is answered yet.
	started
)

// Recover reconciles after a start, before any call is answered. dockerd may
// have moved links back, or never got them, while the plugin was away, and does
// not say so again. What cannot be mended now is tried again later.
func (d *Driver) Recover() { d.reconcile(started) }

// Reconcile looks at everything now.
func (d *Driver) Reconcile() Report { return d.reconcile(all) }

func (d *Driver) reconcile(s scope) Report {
	d.reconciling.Lock()
	defer d.reconciling.Unlock()
	r := &Report{Done: []string{}, Left: []string{}}
	d.reconcileInto(r, s)
	d.tally.note(s, r)
	return *r
}

// reconcileInto is reconcile. The caller holds d.reconciling.
func (d *Driver) reconcileInto(r *Report, s scope) {
	if d.ctx.Err() != nil {
		r.left("underlay is being ended")
		return
	}
	links, err := d.keepHost(r, s)
	if err != nil {
		r.failed(d.log, "links were not looked at: %v", err)
		return
	}
	// At a start the containers can wait, but dockerd's calls cannot.
	if s != started {
		d.keepEndpoints(r, links, s)
	}
	for _, l := range links {
		if parent, ok := d.shimOf(l); ok {
			_, there := links[parent]
			d.recoverShim(r, l, parent, there)
		}
	}
	d.keepAllAccess(r)
	if s != changed { // else end has said what has changed
		d.answer(&Network{Options: options.Network{Proxy: true}})
	}
}

// keepHost makes the parents that networks need, deletes the plugin's links in
// the host that nobody does, and returns those that there are.
func (d *Driver) keepHost(r *Report, s scope) (map[string]netlinkutil.Link, error) {
	d.parents.Lock()
	defer d.parents.Unlock()
	listed, err := d.kernel.Links()
	if err != nil {
		return nil, err
	}
	if d.keepParents(r, listed) {
		if listed, err = d.kernel.Links(); err != nil {
			return nil, err
		}
	}
	links := make(map[string]netlinkutil.Link, len(listed))
	for _, l := range listed {
		links[l.Name] = l
	}
	// Few links are the plugin's, and for the most part none: these are asked for
	// at each change of a parent.
	stood, owners := sync.OnceValue(d.stoodOn), sync.OnceValue(d.owners)
	for _, l := range listed {
		if d.ctx.Err() != nil {
			break
		}
		ours := strings.HasPrefix(l.Alias, d.alias("")) || unsigned(l)
		if _, shim := d.shimOf(l); !ours || shim || stood()[l.Name] {
			continue
		}
		if e := owners()[l.Name]; e != nil {
			switch {
			case s == started && e.Arrived:
				d.doubtful(e)
				d.end(r, e, "its container stopped while the plugin was away")
			default:
				d.doubt(r, e, "dockerd has not moved its link to a container, or has moved it back")
			}
			continue
		}
		if unsigned(l) && s != started {
			continue // one that is being made
		}
		deletion := d.kernel.DeleteLink
		if l.Alias == d.parentAlias() {
			deletion = d.deleteParent
		}
		if err := deletion(l.Name); err != nil {
			r.failed(d.log, "leftover link %s: %v", l.Name, err)
			continue
		}
		delete(links, l.Name)
		r.did("deleted leftover link %s", l.Name)
		d.log.Infof("deleted leftover link %s (%s)", l.Name, l.Alias)
	}
	return links, nil
}

// keepParents makes the parents that are not there, as far as the plugin makes
// them, and tells whether it made any. The caller holds d.parents.
func (d *Driver) keepParents(r *Report, listed []netlinkutil.Link) (made bool) {
	there := map[string]bool{}
	for _, l := range listed {
		there[l.Name] = true
	}
	made = d.keepMTUs(r, listed)
	var missing []*Network
	d.mu.Lock()
	for _, n := range d.networks {
		if !there[n.parent()] {
			missing = append(missing, n)
		}
	}
	awaited := slices.Sorted(maps.Keys(d.waiting))
	d.mu.Unlock()
	for _, parent := range awaited {
		if there[parent] {
			d.isBack(r, parent)
		}
	}
	// A VLAN of its own comes before others in it, whose outer one it may be.
	slices.SortFunc(missing, func(a, b *Network) int {
		return cmp.Or(len(a.links())-len(b.links()), strings.Compare(a.ID, b.ID))
	})
	tried := map[string]bool{}
	for _, n := range missing {
		parent := n.parent()
		if tried[parent] {
			continue
		}
		tried[parent] = true
		if _, err := d.ensureParent(n); err != nil {
			if since, first := d.await(parent, err); first {
				d.logOf(n.ID).Warnf("the network waits for its parent: %v", err)
			} else {
				r.left("network %s waits for its parent %s since %s: %v", Short(n.ID), parent, since.Format(time.DateTime), err)
			}
			continue
		}
		made = true
		r.did("made parent %s", parent)
		d.isBack(r, parent)
	}
	return made
}

// keepMTUs gives the VLAN links that the plugin has made the MTU of what they are
// on, which the kernel lets them inherit, lowers along, and does not raise.
func (d *Driver) keepMTUs(r *Report, listed []netlinkutil.Link) (raised bool) {
	mtus := map[string]int{}
	for _, l := range listed {
		mtus[l.Name] = l.MTU
	}
	for range 2 { // the inner one of two follows the outer one
		for _, l := range listed {
			if l.Kind != "vlan" || l.Alias != d.parentAlias() || mtus[l.Name] >= mtus[l.Lower] {
				continue
			}
			if err := d.kernel.SetMTU(l.Name, mtus[l.Lower]); err != nil {
				r.left("MTU of %s stays %d: %v", l.Name, mtus[l.Name], err)
				continue
			}
			r.did("raised the MTU of %s from %d to %d", l.Name, mtus[l.Name], mtus[l.Lower])
			mtus[l.Name], raised = mtus[l.Lower], true
		}
	}
	return raised
}

// await notes that a parent is not there, and returns since when.
func (d *Driver) await(parent string, err error) (since time.Time, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, known := d.waiting[parent]
	if !known {
		w = Absence{Parent: parent, Since: time.Now().Round(time.Second)}
	}
	w.Reason = err.Error()
	d.waiting[parent] = w
	return w.Since, !known
}

// isBack notes that a parent is there, which may have been waited for.
func (d *Driver) isBack(r *Report, parent string) {
	d.mu.Lock()
	w, waited := d.waiting[parent]
	delete(d.waiting, parent)
	d.mu.Unlock()
	if waited {
		r.did("parent %s is there", parent)
		d.log.Infof("parent %s is there, after %v", parent, time.Since(w.Since).Round(time.Second))
	}
}

// owners are the endpoints by the name that their links have in the host.
func (d *Driver) owners() map[string]*Endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	owners := make(map[string]*Endpoint, len(d.endpoints))
	for _, e := range d.endpoints {
		owners[linkName(e.ID)] = e
	}
	return owners
}

// keepEndpoints looks for the endpoints' interfaces in their containers. links
// are the host's.
func (d *Driver) keepEndpoints(r *Report, links map[string]netlinkutil.Link, s scope) {
	complete := s == all && d.locate(r, links)
	named := make(map[int]string, len(links))
	for _, l := range links {
		named[l.Index] = l.Name
	}
	d.mu.Lock()
	parents := slices.Sorted(maps.Keys(d.lodgers))
	d.mu.Unlock()
	for _, parent := range parents {
		l, there := links[parent]
		moved := !d.stands(parent, footing{l.Index, l.MTU})
		if !moved && s == changed {
			continue
		}
		g := ground{parent: l, there: there, moved: moved, named: named}
		for _, e := range d.on(parent, func(*Network) bool { return true }) {
			if d.ctx.Err() != nil {
				return
			}
			if mine, in := links[linkName(e.ID)]; in && mine.Alias == d.endpointAlias(e.NetworkID, e.ID) {
				continue // keepHost has looked at it
			}
			if e.Sandbox == "" {
				if d.wasBorn(e) || complete && d.entered {
					d.doubt(r, e, "its link has gone and no container has it")
				} else {
					r.left("endpoint %s (%s) has no link in the host, and whether a container has it is not known; if none has, restart dockerd", Short(e.ID), e.addresses())
				}
				continue
			}
			if err := d.keepEndpoint(r, e, g); err != nil {
				d.stands(parent, footing{}) // another try, with the next change
			}
		}
	}
}

// locate finds the containers of endpoints of which it is not on record: those of
// an earlier version, and those that the plugin was killed at. It tells whether it
// has looked everywhere.
func (d *Driver) locate(r *Report, links map[string]netlinkutil.Link) (complete bool) {
	d.mu.Lock()
	var lost []*Endpoint
	for _, e := range d.endpoints {
		if _, in := links[linkName(e.ID)]; e.Sandbox == "" && !in && !d.presence(e.ID).born {
			lost = append(lost, e)
		}
	}
	d.mu.Unlock()
	if len(lost) == 0 {
		return true
	}
	found, err := d.kernel.InsideAll(d.alias("endpoint "))
	for _, e := range lost {
		f, ok := found[d.endpointAlias(e.NetworkID, e.ID)]
		if !ok {
			continue
		}
		d.entered = true
		d.update(e.ID, func(e *Endpoint) { e.Sandbox, e.Arrived, e.Interface = f.Sandbox, true, &f.Interface })
		r.did("found endpoint %s (%s) in %s", Short(e.ID), e.addresses(), f.Sandbox)
		d.logOfEndpoint(e.NetworkID, e.ID).Infof("found its interface %s in %s", f.Interface.Name, f.Sandbox)
	}
	return err == nil
}

// footing is what the interfaces of a parent depend on.
type footing struct{ index, mtu int }

// stands notes what the interfaces of a parent depend on, and tells whether that
// has not changed since it was noted last.
func (d *Driver) stands(parent string, now footing) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	same := d.footings[parent] == now && !d.shaken[parent]
	d.footings[parent] = now
	delete(d.shaken, parent)
	return same
}

// ground is what the interfaces of a parent stand on.
type ground struct {
	parent netlinkutil.Link
	there  bool           // the parent is
	moved  bool           // it has come or changed since it was looked at
	named  map[int]string // all links of the host
}

// keepEndpoint looks after an endpoint whose link is not in the host.
func (d *Driver) keepEndpoint(r *Report, e *Endpoint, g ground) error {
	alias := d.endpointAlias(e.NetworkID, e.ID)
	inside, err := d.kernel.Inside(e.Sandbox, alias)
	another := g.there && e.ParentIndex != 0 && e.ParentIndex != g.parent.Index // parent, of the same name
	former := g.named[e.ParentIndex]                                            // the name that the endpoint's has now, "" if it has gone
	switch {
	case err == nil:
		d.entered = true
		d.trust(e)
		switch {
		case !g.there:
		case another && former != "":
			r.left("endpoint %s (%s) is on link %s, which was %s when its container was started; restart the container to have it on what is %s now", Short(e.ID), e.addresses(), former, g.parent.Name, g.parent.Name)
		case another && e.Interface != nil:
			return d.rebuild(r, e, g.parent) // has been begun
		default:
			d.picture(e.ID, inside, g.parent)
			if g.moved {
				return d.raiseMTU(r, e, inside, g.parent)
			}
		}
		return nil
	case errors.Is(err, netlinkutil.ErrNoSandbox):
		if e.Interface != nil || d.entered { // else we may be looking in the wrong place
			d.doubt(r, e, "its container's network namespace is gone")
		} else {
			r.left("endpoint %s (%s) has no container in %s, but none of underlay's has been seen there yet; if it has ended, restart dockerd", Short(e.ID), e.addresses(), e.Sandbox)
		}
		return nil
	case errors.Is(err, netlinkutil.ErrNoEntry):
		if another && former == "" {
			d.lost(r, e, err)
		}
		return nil
	case !errors.Is(err, os.ErrNotExist):
		r.left("endpoint %s: %v", Short(e.ID), err)
		return err
	}
	// The container runs, and has no such interface.
	if d.isLeaving(e) || !g.there {
		return nil
	}
	if e.Interface != nil && e.ParentIndex != g.parent.Index && former == "" {
		return d.rebuild(r, e, g.parent)
	}
	// It may be on its way. Or dockerd has taken it out, and the plugin was not
	// there to hear that: it must not be put in again.
	if d.doubtful(e) >= d.grace {
		why := "it has not gone with its parent"
		if e.Interface == nil {
			why = "underlay had not seen it there"
		}
		d.lost(r, e, errors.New(why))
	}
	return nil
}

// rebuild makes the interface of an endpoint again, inside its container.
func (d *Driver) rebuild(r *Report, e *Endpoint, parent netlinkutil.Link) error {
	n, err := d.network(e.NetworkID)
	if err != nil {
		return nil // it is being deleted
	}
	start := time.Now()
	want := *e.Interface
	err = d.kernel.Restore(e.Sandbox, d.subInterface(n, e), want)
	if errors.Is(err, netlinkutil.ErrNoSandbox) {
		return nil // stopped meanwhile
	}
	if err != nil {
		r.left("interface %s of endpoint %s (%s) is not made again: %v; if it stays so, restart the container", want.Name, Short(e.ID), e.addresses(), err)
		if d.firstLoss(e) {
			d.logOfEndpoint(e.NetworkID, e.ID).Errorf("interface %s (%s) is not made again: %v; if it stays so, restart the container", want.Name, e.addresses(), err)
		}
		return err
	}
	after, ok := d.update(e.ID, func(e *Endpoint) { e.ParentIndex = parent.Index })
	if !ok || d.isLeaving(e) {
		// dockerd has deleted it, and did not find what was not there yet.
		return d.kernel.RemoveInside(e.Sandbox, d.endpointAlias(e.NetworkID, e.ID))
	}
	d.trust(after)
	r.did("made interface %s of endpoint %s (%s) again", want.Name, Short(e.ID), e.addresses())
	d.logOfEndpoint(e.NetworkID, e.ID).Infof("made interface %s (%s) again in its container, on parent %s, in %v", want.Name, e.addresses(), n.parent(), time.Since(start).Round(time.Millisecond))
	d.announceAgain(n, after)
	return nil
}

// raiseMTU gives an interface back the MTU that it had before its parent's was
// lowered: the kernel lowers it along, and does not raise a macvlan link's.
func (d *Driver) raiseMTU(r *Report, e *Endpoint, inside netlinkutil.Interface, parent netlinkutil.Link) error {
	if e.Interface == nil {
		return nil
	}
	mtu := min(e.Interface.MTU, parent.MTU)
	if inside.MTU >= mtu {
		return nil
	}
	if err := d.kernel.RaiseMTU(e.Sandbox, d.endpointAlias(e.NetworkID, e.ID), mtu); err != nil {
		r.left("MTU of endpoint %s stays %d: %v", Short(e.ID), inside.MTU, err)
		return err
	}
	r.did("raised the MTU of endpoint %s from %d to %d", Short(e.ID), inside.MTU, mtu)
	d.logOfEndpoint(e.NetworkID, e.ID).Infof("raised the MTU of %s in its container from %d to %d", inside.Name, inside.MTU, mtu)
	return nil
}

// picture notes an interface as it is in its container. Without a carrier it may
// lack routes, and those that it had are the ones to keep.
func (d *Driver) picture(id string, inside netlinkutil.Interface, parent netlinkutil.Link) {
	if !parent.Carrier || !inside.Up || inside.Check() != nil { // what nobody can have had could not be read again
		return
	}
	d.mu.Lock()
	e := d.endpoints[id]
	d.mu.Unlock()
	if e == nil {
		return
	}
	if e.Interface != nil {
		inside.MTU = e.Interface.MTU
	}
	if e.Interface == nil || !e.Arrived || e.ParentIndex != parent.Index || !reflect.DeepEqual(*e.Interface, inside) {
		d.update(id, func(e *Endpoint) { e.Arrived, e.Interface, e.ParentIndex = true, &inside, parent.Index })
	}
}

// lost says, once, that a container has lost its interface for good.
func (d *Driver) lost(r *Report, e *Endpoint, why error) {
	r.left("endpoint %s (%s) has lost its interface; restart its container: %v", Short(e.ID), e.addresses(), why)
	if d.firstLoss(e) {
		d.logOfEndpoint(e.NetworkID, e.ID).Errorf("%s has lost its interface; restart its container (docker restart): %v", e.addresses(), why)
	}
}

// doubt notes that an endpoint seems to have ended, and ends it once it has for
// the grace period.
func (d *Driver) doubt(r *Report, e *Endpoint, why string) {
	wait := d.grace
	if d.isStarting(e) {
		wait *= startingGraces
	}
	if doubted := d.doubtful(e); doubted < wait {
		r.left("endpoint %s (%s) seems to have ended: %s; in %v it is forgotten", Short(e.ID), e.addresses(), why, (wait - doubted).Round(time.Second))
		return
	}
	d.end(r, e, why)
}

// end forgets an endpoint that has ended without a word from dockerd, with its
// link and all it held.
func (d *Driver) end(r *Report, e *Endpoint, why string) {
	d.mu.Lock()
	if d.endpoints[e.ID] != e || d.presence(e.ID).doubted.IsZero() {
		d.mu.Unlock() // dockerd has come back to it just now
		return
	}
	n := d.networks[e.NetworkID]
	d.drop(e)
	submitted := d.store.Submit(remove(endpointBucket, e.ID))
	d.mu.Unlock()
	d.companions.Go(func() {
		if err := <-submitted; err != nil {
			d.endsLater(e, err)
		}
	})
	if err := d.kernel.DeleteLink(linkName(e.ID)); err != nil { // the next time it is nobody's
		r.failed(d.log, "link %s of an endpoint that has ended: %v", linkName(e.ID), err)
	}
	if n != nil {
		d.revoke(n, e)
		d.answer(n)
	}
	if n == nil || !n.ForeignIPAM {
		for _, p := range e.everyAddress() {
			d.holdings.Ended(p.Addr())
		}
	}
	r.did("forgot endpoint %s (%s): %s", Short(e.ID), e.addresses(), why)
	d.audit(e, "freed").Infof("endpoint forgotten: %s", why)
}

// endsLater takes the end of an endpoint back whose record is still on disk. The
// next start would find it there, when the address is another's.
func (d *Driver) endsLater(e *Endpoint, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.networks[e.NetworkID]
	if n == nil || d.endpoints[e.ID] != nil || d.untaken(n, *e) != nil {
		return
	}
	d.add(e)
	d.logOfEndpoint(e.NetworkID, e.ID).Errorf("endpoint has ended and is not forgotten yet (%s): %v", e.addresses(), why)
}

// Released says that dockerd has released an address: an endpoint that still has
// it has ended, for dockerd deletes one first, or was told that its creation had
// failed. Unless a container is seen to have its link.
func (d *Driver) Released(ctx context.Context, addr netip.Addr) error {
	d.mu.Lock()
	e := d.addresses[addr]
	d.mu.Unlock()
	if e == nil {
		return nil
	}
	if _, err := d.kernel.Link(linkName(e.ID)); err != nil && e.Sandbox != "" {
		_, err := d.kernel.Inside(e.Sandbox, d.endpointAlias(e.NetworkID, e.ID))
		if !errors.Is(err, netlinkutil.ErrNoSandbox) && !errors.Is(err, os.ErrNotExist) {
			return nil // it is there, or who knows
		}
	}
	d.logOfEndpoint(e.NetworkID, e.ID).Infof("endpoint has ended: dockerd has released %v", addr)
	return d.DeleteEndpoint(ctx, e.NetworkID, e.ID)
}
