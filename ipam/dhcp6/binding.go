package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// state is what a binding does.
type state int

const (
	idle state = iota
	soliciting
	requesting
	checking // whether another machine has the address
	declining
	bound
	confirming
	renewing
	rebinding
	releasing
	gone
)

func (s state) String() string {
	return [...]string{"idle", "soliciting", "requesting", "checking", "declining", "bound",
		"confirming", "renewing", "rebinding", "releasing", "gone"}[s]
}

// paces are RFC 8415 7.6's, but for the longest pause between Solicits: an hour
// there, so that hosts on a LAN without a server keep quiet. Who has a binding
// has been told to use DHCPv6; two minutes, as in RFC 3315 5.5, let a container
// have an address soon after its server is back.
var paces = [...]pace{
	soliciting: {first: time.Second, most: 2 * time.Minute},
	requesting: {first: time.Second, most: 30 * time.Second, times: 10},
	declining:  {first: time.Second, times: 4},
	confirming: {first: time.Second, most: 4 * time.Second},
	renewing:   {first: 10 * time.Second, most: 10 * time.Minute},
	rebinding:  {first: 10 * time.Second, most: 10 * time.Minute},
	releasing:  {first: time.Second, times: 4},
}

const (
	confirmFor = 10 * time.Second // CNF_MAX_RD
	surveyFor  = 10 * time.Minute // how long the servers of a LAN are taken to be the same
	checkFor   = 8 * time.Second  // a check of an address ends by then
)

// binding is the life of one lease. Everything is guarded by Client.mu.
type binding struct {
	client  *Client
	link    *link
	ask     Ask
	look    bool       // only to see what is offered
	hint    netip.Addr // the address to ask for before there is a lease
	lease   *Lease     // nil: none yet
	lost    bool       // lease is a former one
	late    bool       // that it is late has been told
	state   state
	waiters []waiter

	due   time.Time // in the schedule if index >= 0
	index int

	// The exchange under way; without a question there is none, and the state
	// begins one when it is due.
	question *question
	began    time.Time
	sent     int
	rt       time.Duration

	best     *answer // the best offer yet
	heard    []DUID  // who has offered or refused
	refusal  error   // why there is no lease
	fails    int     // how often in a row
	pending  *Lease  // granted, and being checked
	declined []netip.Addr
}

func (b *binding) identity() identity { return identity{b.ask.Link, b.ask.DUID, b.ask.IAID} }

// plan sets when the binding is due; its lease's end is not slept through.
func (b *binding) plan(t time.Time) {
	if b.lease != nil && !b.lost && !b.lease.Expires.IsZero() && (t.IsZero() || t.After(b.lease.Expires)) {
		t = b.lease.Expires
	}
	b.client.schedule.set(b, t)
}

// turn goes to a state, whose exchange begins at t.
func (b *binding) turn(s state, t time.Time) {
	b.quiet()
	b.state = s
	b.plan(t)
}

// quiet ends the exchange under way.
func (b *binding) quiet() {
	if b.question != nil {
		delete(b.client.asked, b.question.xid)
		b.question = nil
	}
	b.best, b.heard = nil, nil
}

// exchange begins one.
func (b *binding) exchange(s state, now time.Time, q question) {
	b.quiet()
	for {
		xid, err := dhcpv6.GenerateTransactionID()
		if err != nil { // no source of random numbers
			b.retry(err, now)
			return
		}
		if b.client.asked[xid] == nil {
			q.xid = xid
			break
		}
	}
	q.ask = &b.ask
	b.client.asked[q.xid] = b
	b.state, b.question, b.began, b.sent, b.rt = s, &q, now, 0, 0
	b.transmit(now)
}

// transmit sends the message, and plans when it is repeated.
func (b *binding) transmit(now time.Time) {
	if b.link.wire == nil {
		b.link.failed = true // whoever could not ask is roused once there is one
	}
	if b.link.wire == nil || b.sent > 1 { // perhaps the link is not what it was
		b.client.mend(b.link)
	}
	if w := b.link.wire; w != nil {
		if err := w.send(b.question.bytes(now.Sub(b.began))); err != nil && b.client.cfg.Log != nil {
			b.client.cfg.Log.WithField("link", b.link.name).Debugf("sending a DHCPv6 %s: %v", b.question.kind, err)
		}
	}
	p := paces[b.state]
	if b.state == soliciting && b.link.solMaxRT > 0 {
		p.most = b.link.solMaxRT
	}
	b.rt = p.next(b.rt)
	if b.state == soliciting && b.sent == 0 {
		b.rt = p.first + upTo(p.first/10) + time.Millisecond // RFC 8415 18.2.1: longer than IRT
	}
	b.sent++
	t := now.Add(b.rt)
	switch b.state {
	case confirming:
		t = earlier(t, b.began.Add(confirmFor))
	case renewing:
		t = earlier(t, b.lease.Rebind)
	}
	b.plan(t)
}

func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// step does what is due.
func (b *binding) step(now time.Time) {
	if b.lease != nil && !b.lost && b.state != releasing && over(b.lease.Expires, now) {
		b.lose(fmt.Errorf("no DHCPv6 server on %s has renewed it", b.link.name))
		if b.state != soliciting && b.state != requesting && b.state != checking && b.state != declining {
			b.solicit(now)
			return
		}
	}
	fresh := b.question == nil
	spent := !fresh && paces[b.state].times > 0 && b.sent >= paces[b.state].times
	switch b.state {
	case soliciting:
		switch {
		case fresh:
			b.solicit(now)
		case b.survey(now):
		default:
			b.heard = nil // they may have another answer by now
			b.transmit(now)
		}
	case requesting:
		if fresh || spent {
			b.retry(fmt.Errorf("DHCPv6 server %s on %s offers a lease, and is silent then", b.server(), b.link.name), now)
		} else {
			b.transmit(now)
		}
	case declining:
		if fresh || spent {
			b.again(now)
		} else {
			b.transmit(now)
		}
	case bound:
		b.renew(now)
	case confirming:
		switch {
		case fresh:
			b.exchange(confirming, now, question{kind: dhcpv6.MessageTypeConfirm, addrs: []netip.Addr{b.lease.Addr}})
		case !now.Before(b.began.Add(confirmFor)):
			b.rest() // RFC 8415 18.2.3: silence is consent
		default:
			b.transmit(now)
		}
	case renewing, rebinding:
		if fresh || b.state == renewing && over(b.lease.Rebind, now) {
			b.renew(now)
		} else {
			b.transmit(now)
		}
	case releasing:
		if fresh || spent {
			b.drop()
		} else {
			b.transmit(now)
		}
	}
}

func (b *binding) server() Server {
	if b.question == nil {
		return Server{}
	}
	return Server{DUID: b.question.server}
}

// solicit asks all servers for an offer, or for a lease at once unless it must
// be a certain one.
func (b *binding) solicit(now time.Time) {
	q := question{kind: dhcpv6.MessageTypeSolicit, rapid: !b.ask.Want.IsValid() && !b.look}
	if liked := b.liked(); liked.IsValid() {
		q.addrs = []netip.Addr{liked}
	}
	b.exchange(soliciting, now, q)
}

// liked is the address to ask for, if any.
func (b *binding) liked() netip.Addr {
	all := []netip.Addr{b.ask.Want, {}, b.hint}
	if b.lease != nil {
		all[1] = b.lease.Addr
	}
	for _, a := range all {
		if a.IsValid() && !contains(b.declined, a) {
			return a
		}
	}
	return netip.Addr{}
}

// survey ends a collection of offers that has lasted long enough, and says
// whether something came of it.
func (b *binding) survey(now time.Time) bool {
	if b.sent == 1 {
		b.link.surveyed = now
		for d := range b.link.servers {
			if slices.Contains(b.heard, d) {
				b.link.servers[d] = 0
			} else if b.link.servers[d]++; b.link.servers[d] > 1 {
				delete(b.link.servers, d)
			}
		}
	}
	return b.decide(now)
}

// decide takes the best offer, or fails where all refuse.
func (b *binding) decide(now time.Time) bool {
	switch {
	case b.best != nil:
		o, _ := b.best.choose(&b.ask, b.liked(), b.declined)
		if b.look {
			b.hand(*b.best.lease(&b.ask, o, now))
			b.drop()
			break
		}
		b.exchange(requesting, now, question{
			kind: dhcpv6.MessageTypeRequest, server: b.best.server.DUID, addrs: []netip.Addr{o.addr},
		})
	case len(b.heard) > 0 && b.lease == nil && len(b.waiters) > 0:
		b.retry(b.refusal, now)
	default:
		if b.sent > 2 {
			// A server that did not hear of a decline offers the same for ever: it must
			// be checked, and declined, again.
			b.declined = nil
		}
		return false
	}
	return true
}

// complete says whether no more offers are to be expected: the servers of this
// LAN were counted lately, and have answered.
func (b *binding) complete(now time.Time) bool {
	if b.link.surveyed.IsZero() || now.Sub(b.link.surveyed) > surveyFor {
		return false
	}
	for d := range b.link.servers {
		if !slices.Contains(b.heard, d) {
			return false
		}
	}
	return true
}

// hear takes an answer to the question under way, from a server that may give
// one.
func (b *binding) hear(a *answer, now time.Time) {
	if a.solMaxRT > 0 {
		b.link.solMaxRT = a.solMaxRT
	}
	if a.kind == dhcpv6.MessageTypeAdvertise {
		if b.state == soliciting {
			b.offer(a, now)
		}
		return
	}
	if b.question.server != "" && b.question.server != a.server.DUID {
		return
	}
	switch b.state {
	case soliciting:
		if a.rapid && b.question.rapid {
			b.accept(a, now)
		}
	case requesting:
		b.accept(a, now)
	case confirming:
		switch a.status.code {
		case iana.StatusSuccess:
			b.rest()
		case iana.StatusNotOnLink:
			b.refuse(a, a.status)
			b.solicit(now)
		}
	case renewing, rebinding:
		b.renewed(a, now)
	case declining:
		b.again(now)
	case releasing:
		b.drop()
	}
}

// offer takes an Advertise (RFC 8415 18.2.9).
func (b *binding) offer(a *answer, now time.Time) {
	if len(b.heard) >= maxServers || slices.Contains(b.heard, a.server.DUID) {
		return
	}
	b.heard = append(b.heard, a.server.DUID)
	if _, known := b.link.servers[a.server.DUID]; known || len(b.link.servers) < maxServers {
		b.link.servers[a.server.DUID] = 0
	}
	o, err := a.choose(&b.ask, b.liked(), b.declined)
	switch {
	case err != nil:
		b.refuse(a, err)
	case b.best == nil || a.preference > b.best.preference ||
		a.preference == b.best.preference && o.addr == b.liked():
		b.best = a
	}
	// After the first RT the first good offer is taken; a preference of 255 ends the
	// waiting.
	if b.complete(now) || b.best != nil && (b.best.preference == 255 || b.sent > 1) {
		b.decide(now)
	}
}

// refuse notes a server's word.
func (b *binding) refuse(a *answer, err error) {
	b.refusal = fmt.Errorf("DHCPv6 server %s on %s gives no lease: %w", a.server, b.link.name, err)
}

// accept takes the Reply to a Request, or to a Solicit (RFC 8415 18.2.10.1).
func (b *binding) accept(a *answer, now time.Time) {
	o, err := a.choose(&b.ask, b.liked(), b.declined)
	if err == nil {
		b.check(a.lease(&b.ask, o, now), now)
		return
	}
	b.refuse(a, err)
	var s status
	switch {
	case errors.As(err, &s) && (s.code == iana.StatusUnspecFail || s.code == iana.StatusUseMulticast):
		// The question is repeated, and no faster than it would be. All are sent to
		// the multicast address anyway.
	case b.state == soliciting: // others may do better
		if !slices.Contains(b.heard, a.server.DUID) && len(b.heard) < maxServers {
			b.heard = append(b.heard, a.server.DUID)
		}
	default:
		b.retry(b.refusal, now)
	}
}

// check asks the LAN whether an address is free, if it is another than before.
func (b *binding) check(l *Lease, now time.Time) {
	if b.client.cfg.Check == nil || b.lease != nil && !b.lost && b.lease.Addr == l.Addr {
		b.bind(l, now)
		return
	}
	b.turn(checking, time.Time{})
	b.pending = l
	c := b.client
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, checkFor)
		defer cancel()
		used, err := c.cfg.Check(ctx, l.Ask.Link, l.Addr, l.Ask.MAC)
		c.mu.Lock()
		defer c.mu.Unlock()
		if b.pending != l {
			return
		}
		c.follow()
		b.pending = nil
		if err != nil && c.cfg.Log != nil {
			c.cfg.Log.WithField("link", b.link.name).Warnf("whether %s is free could not be asked: %v", l.Addr, err)
		}
		if err == nil && used != nil && used.String() != b.ask.MAC.String() {
			b.refusal = fmt.Errorf("DHCPv6 server %s on %s gives %s, which %s has: take it out of the server's range, or that machine off it",
				l.Server, b.link.name, l.Addr, used)
			b.decline(l, time.Now())
		} else {
			b.bind(l, time.Now())
		}
	})
}

// decline tells the server that another machine has the address (RFC 8415 18.2.8).
func (b *binding) decline(l *Lease, now time.Time) {
	if len(b.declined) < maxServers {
		b.declined = append(b.declined, l.Addr)
	}
	b.exchange(declining, now, question{
		kind: dhcpv6.MessageTypeDecline, server: l.Server.DUID, addrs: []netip.Addr{l.Addr},
	})
}

// again asks anew after an address was declined: at once for some times.
func (b *binding) again(now time.Time) {
	if b.fails < 3 && !contains(b.declined, b.ask.Want) {
		b.fails++
		b.solicit(now)
		return
	}
	b.retry(b.refusal, now)
}

// retry gives up where somebody waits for a first lease, else asks again later.
func (b *binding) retry(err error, now time.Time) {
	b.quiet()
	b.refusal = err
	if b.lease == nil {
		b.fail(err)
		b.part()
		return
	}
	b.fails = min(b.fails+1, 8)
	b.declined = nil // long ago by then
	b.turn(soliciting, now.Add(tenth(min(time.Second<<b.fails, 2*time.Minute))))
}

// bind takes a lease into use.
func (b *binding) bind(l *Lease, now time.Time) {
	was, lost := b.lease, b.lost
	b.lease, b.lost, b.late, b.fails, b.refusal, b.declined = l, false, false, 0, nil, nil
	b.rest()
	b.hand(*l)
	if was == nil {
		return
	}
	e := Event{What: Renewed, Lease: *l, Was: *was}
	if lost || was.Addr != l.Addr || !slices.Equal(was.DNS, l.DNS) || !slices.Equal(was.Search, l.Search) {
		e.What = Changed
	}
	b.client.tell(e)
}

// hand gives a lease to those who wait.
func (b *binding) hand(l Lease) {
	for _, w := range b.waiters {
		w <- outcome{lease: l}
	}
	b.waiters = nil
}

// rest is until T1, and a little longer: those who began together need not renew
// together.
func (b *binding) rest() {
	t := b.lease.Renew
	if !t.IsZero() && !b.lease.Rebind.IsZero() {
		t = t.Add(upTo(b.lease.Rebind.Sub(t) / 10))
	}
	b.turn(bound, t)
}

// renew asks the server for longer, and from T2 on any (RFC 8415 18.2.4, 18.2.5).
func (b *binding) renew(now time.Time) {
	q := question{kind: dhcpv6.MessageTypeRenew, server: b.lease.Server.DUID, addrs: []netip.Addr{b.lease.Addr}}
	if !over(b.lease.Rebind, now) {
		b.exchange(renewing, now, q)
		return
	}
	if !b.late {
		b.late = true
		b.client.tell(Event{What: Late, Lease: *b.lease, Was: *b.lease,
			Err: fmt.Errorf("DHCPv6 server %s on %s does not renew it", b.lease.Server, b.link.name)})
	}
	q.kind, q.server = dhcpv6.MessageTypeRebind, ""
	b.exchange(rebinding, now, q)
}

// renewed takes the Reply to a Renew or Rebind (RFC 8415 18.2.10.1). One that is of
// no use leaves the question open, to be repeated.
func (b *binding) renewed(a *answer, now time.Time) {
	g := a.grant(b.ask.IAID)
	s := a.status
	if s.ok() {
		s = g.status
	}
	if s.code == iana.StatusNoBinding {
		b.refuse(a, s)
		b.exchange(requesting, now, question{
			kind: dhcpv6.MessageTypeRequest, server: a.server.DUID, addrs: []netip.Addr{b.lease.Addr},
		})
		return
	}
	if !s.ok() {
		b.refuse(a, s)
		return
	}
	ours, there := g.find(b.lease.Addr)
	if there && ours.valid >= shortest {
		b.check(a.lease(&b.ask, ours, now), now)
		return
	}
	if there && ours.valid > 0 {
		return
	}
	// It is not for longer: is there another?
	o, err := a.choose(&b.ask, netip.Addr{}, nil)
	switch {
	case err == nil:
		b.check(a.lease(&b.ask, o, now), now)
	case there:
		b.lose(fmt.Errorf("DHCPv6 server %s on %s has taken it back", a.server, b.link.name))
		b.solicit(now)
	}
}

// lose tells that the address is not to be used any longer.
func (b *binding) lose(err error) {
	if b.refusal != nil {
		err = fmt.Errorf("%w: %w", err, b.refusal)
	}
	b.lost = true
	b.client.tell(Event{What: Lost, Lease: *b.lease, Was: *b.lease, Err: err})
}

// resume goes on where an earlier run was.
func (b *binding) resume(now time.Time, window time.Duration) {
	l := b.lease
	if !l.Expires.IsZero() {
		window = min(window, max(l.Expires.Sub(now)/2, time.Second))
	}
	at := now.Add(upTo(window))
	switch {
	case over(l.Expires, now):
		b.lose(errors.New("it ran out while underlay was not running"))
		b.turn(soliciting, at)
	case over(l.Rebind, now) || l.Granted.After(now): // or the clock was set back
		l.Rebind = earlier(now, l.Rebind)
		b.turn(rebinding, at)
	case over(l.Renew, now):
		b.turn(renewing, at)
	default:
		b.turn(confirming, earlier(at, l.Renew))
	}
}

// rouse is for a link that is there again. The pause after a refusal or a decline is
// not cut short: links may come and go all the time.
func (b *binding) rouse(now time.Time, window time.Duration) {
	at := now.Add(upTo(window))
	switch b.state {
	case bound, confirming:
		b.turn(confirming, at)
	case soliciting, requesting:
		if b.question == nil {
			return // it is due
		}
		if len(b.waiters) > 0 {
			at = now
		}
		b.turn(soliciting, at)
	case renewing, rebinding:
		b.turn(b.state, at)
	}
}

// why is why an Acquire that ends has no lease.
func (b *binding) why() error {
	switch {
	case b.refusal != nil:
		return b.refusal
	case b.link.err != nil:
		return b.link.err
	case len(b.ask.Servers) > 0:
		return fmt.Errorf("%w on %s of those allowed", ErrNoServer, b.link.name)
	}
	return fmt.Errorf("%w on %s: is there one that gives addresses (managed, stateful), and in this VLAN?", ErrNoServer, b.link.name)
}

// unanswered says whether no server has said a word to the question for a lease.
func (b *binding) unanswered() bool {
	return b.state == soliciting && b.best == nil && len(b.heard) == 0 && b.refusal == nil
}

// fail tells those who wait.
func (b *binding) fail(err error) {
	for _, w := range b.waiters {
		w <- outcome{err: err}
	}
	b.waiters = nil
}

// part gives back what the server may have given, without waiting, and leaves.
func (b *binding) part() {
	q := question{kind: dhcpv6.MessageTypeRelease}
	switch {
	case b.state == releasing || b.state == gone:
		return
	case b.pending != nil:
		q.server, q.addrs = b.pending.Server.DUID, []netip.Addr{b.pending.Addr}
	case b.lease != nil && !b.lost:
		q.server, q.addrs = b.lease.Server.DUID, []netip.Addr{b.lease.Addr}
	case b.state == requesting && b.question != nil:
		q.server, q.addrs = b.question.server, b.question.addrs
	}
	b.fail(fmt.Errorf("%s is not wanted any longer", b.ask.Key))
	if q.server == "" || b.link.wire == nil {
		b.drop()
		return
	}
	b.pending = nil
	delete(b.client.keys, b.ask.Key)
	b.lost = true
	b.exchange(releasing, time.Now(), q)
}

// drop forgets the binding.
func (b *binding) drop() {
	if b.state == gone {
		return
	}
	b.fail(fmt.Errorf("%s is not wanted any longer", b.ask.Key))
	b.pending = nil
	b.quiet()
	b.state = gone
	c := b.client
	c.schedule.set(b, time.Time{})
	if c.keys[b.ask.Key] == b {
		delete(c.keys, b.ask.Key)
	}
	if c.owners[b.identity()] == b {
		delete(c.owners, b.identity())
	}
	c.forsake(b.link)
}
