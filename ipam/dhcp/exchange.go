package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// state is a client's, as in RFC 2131 figure 5. Each begins with a question and
// ends with an answer or when its time is over.
type state int

const (
	resting    state = iota // until it is time to begin anew
	selecting               // a DISCOVER is out
	requesting              // a REQUEST for what was offered is out
	rebooting               // a REQUEST for what a lease of an earlier life gave is out
	checking                // the server has given an address; others on the LAN are asked for it
	bound
	renewing
	rebinding
)

func (s state) String() string {
	return [...]string{"resting", "selecting", "requesting", "rebooting", "checking", "bound", "renewing", "rebinding"}[s]
}

const (
	// first and longest are the pauses between questions that nobody answers: they
	// double. RFC 2131 4.1 has 4 s at first for a 10 Mbit/s Ethernet; a container
	// that is to start within 10 s has no time for that.
	first   = 2 * time.Second
	longest = 64 * time.Second

	// requests is how often an offered address is asked for, and a previous one,
	// before all begins anew.
	requests = 3
	reboots  = 2

	// wordy is how long an answer that will not do waits for a better one, of
	// another server.
	wordy = time.Second

	// declines is how many addresses in use may be declined before there is the
	// pause of RFC 2131 3.1.5. That is meant to keep loops from the LAN; the first
	// addresses found in use are none, and a container waits.
	declines = 2
	penalty  = 10 * time.Second

	// patience is how long a check may take.
	patience = 10 * time.Second
)

// lease is one that is kept or asked for. Client.mu guards it.
type lease struct {
	Lease    // its Terms are zero until there are any
	id       string
	state    state
	goal     state      // in resting: what comes then, selecting or rebooting
	lost     bool       // Lost was told, or is true of what was restored
	peek     bool       // an offer is all that is wanted
	offers   *offers    // all offers are, for Survey; else nil
	previous *Lease     // in rebooting: what to go on with if nobody answers
	spare    bool       // nobody answered, and nobody else has that address
	hint     netip.Addr // the address to ask for if there is a choice

	xid    [4]byte
	asked  time.Time // the first question of all
	began  time.Time // the first question of this exchange
	tries  int       // questions of this state
	offer  answer    // in requesting, checking: what is asked for
	nak    error     // in the states that end with NAK: another server's
	refuse error     // in selecting: a word that will be the last if none is better
	round  int       // how often all began anew without success

	at    time.Time // when something is due
	place int       // in Client.queue; -1: nothing is

	trouble  error
	unsent   bool         // the last question could not be sent
	waiter   chan outcome // nil if nobody waits
	cancel   context.CancelFunc
	declined int
}

type outcome struct {
	lease Lease
	err   error
}

// wait is for one who waits.
func (l *lease) wait() <-chan outcome {
	ch := make(chan outcome, 1)
	l.waiter = ch
	return ch
}

// fail tells whoever waits.
func (l *lease) fail(err error) {
	if l.waiter != nil {
		l.waiter <- outcome{err: err}
		l.waiter = nil
	}
}

// holds says whether the address may be used.
func (l *lease) holds() bool { return l.state >= bound }

// asks says whether an answer, or the time to ask again, is waited for.
func (l *lease) asks() bool { return l.state != bound && l.state != checking }

// waits says whether an answer is waited for, of which none has come.
func (l *lease) waits() bool {
	return l.asks() && l.state != resting && l.nak == nil && l.refuse == nil
}

// All of the following is with mu held.

// quiet ends what is under way.
func (c *Client) quiet(l *lease) {
	if c.asked[l.xid] == l {
		delete(c.asked, l.xid)
	}
	if l.cancel != nil {
		l.cancel()
		l.cancel = nil
	}
}

// begin starts an exchange: answers to older questions are not for it.
func (c *Client) begin(l *lease, s state, now time.Time) {
	c.quiet(l)
	for {
		n := rand.Uint32()
		l.xid = [4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		if c.asked[l.xid] == nil {
			break
		}
	}
	c.asked[l.xid] = l
	l.state, l.tries, l.began, l.nak, l.refuse = s, 0, now, nil, nil
}

// discover asks who gives an address, reboot for the previous one.
func (c *Client) discover(l *lease, now time.Time) { c.start(l, selecting, now) }
func (c *Client) reboot(l *lease, now time.Time)   { c.start(l, rebooting, now) }

// rest begins anew after a pause that grows with each round.
func (c *Client) rest(l *lease, now time.Time, least time.Duration) {
	c.quiet(l)
	c.done(l, now)
	l.state, l.goal = resting, selecting
	pause := max(least, min(time.Second<<min(l.round, 6), longest))
	l.round++
	c.due(l, now.Add(about(pause)))
}

// ask sends the question of the state, and sets when to do so again.
func (c *Client) ask(l *lease, now time.Time) {
	m := l.message(dhcpv4.MessageTypeRequest, now)
	to, dst, src := everyMAC, everyAddr, netip.IPv4Unspecified()
	pause := about(min(first<<min(l.tries, 6), longest))
	switch l.state {
	case selecting:
		m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeDiscover))
		if want := l.wish(); want.IsValid() {
			m.UpdateOption(dhcpv4.OptRequestedIPAddress(want.AsSlice()))
		}
	case requesting:
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(l.offer.terms.Addr.Addr().AsSlice()))
		m.UpdateOption(dhcpv4.OptServerIdentifier(l.offer.server.AsSlice()))
	case rebooting:
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(l.hint.AsSlice()))
		pause /= 2
	case renewing:
		src = l.Addr.Addr()
		m.ClientIPAddr = src.AsSlice()
		if l.ServerMAC != nil {
			to, dst = l.ServerMAC, l.Server
		}
		pause = half(now, l.Renew, l.Rebind)
	case rebinding:
		// The answer goes to the address itself, and nowhere if no container is up
		// with it. So every other question is that of INIT-REBOOT, which is
		// answered by broadcast and lengthens a lease as well.
		if l.tries%2 == 0 {
			src = l.Addr.Addr()
			m.ClientIPAddr = src.AsSlice()
		} else {
			m.UpdateOption(dhcpv4.OptRequestedIPAddress(l.Addr.Addr().AsSlice()))
		}
		pause = half(now, l.Rebind, l.Expires)
	}
	l.tries++
	l.unsent = false
	c.send(l, to, dst, src, m)
	c.due(l, now.Add(pause))
}

// half is the pause of RFC 2131 4.4.5: half of what is left until end, but not
// less than a minute, or than a quarter of the phase where leases are short.
func half(now, start, end time.Time) time.Duration {
	least := max(min(time.Minute, end.Sub(start)/4), time.Second)
	return max(min(about(max(end.Sub(now)/2, least)), end.Sub(now)), 0)
}

// wish is the address to ask for.
func (l *lease) wish() netip.Addr {
	if l.Want.IsValid() {
		return l.Want
	}
	return l.hint
}

// message is what all questions have in common.
func (l *lease) message(kind dhcpv4.MessageType, now time.Time) *dhcpv4.DHCPv4 {
	m := l.notice(kind)
	m.Flags = 0x8000 // broadcast
	m.NumSeconds = uint16(min(now.Sub(l.began)/time.Second, 0xffff))
	m.Options.Update(dhcpv4.OptMaxMessageSize(maxMessage))
	list := params[:len(params):len(params)]
	for _, p := range l.Params {
		list = append(list, dhcpv4.GenericOptionCode(p))
	}
	m.Options.Update(dhcpv4.OptParameterRequestList(list...))
	if l.Hostname != "" {
		m.Options.Update(dhcpv4.OptHostName(l.Hostname))
	}
	if l.VendorClass != "" {
		m.Options.Update(dhcpv4.OptClassIdentifier(l.VendorClass))
	}
	return m
}

// notice is a message that is not answered: RFC 2131 table 5 lets it say little.
func (l *lease) notice(kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	return &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootRequest,
		HWType:        iana.HWTypeEthernet,
		TransactionID: l.xid,
		ClientHWAddr:  l.MAC,
		Options: dhcpv4.OptionsFromList(
			dhcpv4.OptMessageType(kind),
			dhcpv4.OptClientIdentifier(l.ClientID),
		),
	}
}

func (c *Client) send(l *lease, to net.HardwareAddr, dst, src netip.Addr, m *dhcpv4.DHCPv4) {
	o := letter{l: l, tap: c.tap(l.Link), frame: frame(to, l.MAC, dst, src, m.ToBytes())}
	// Some servers answer by unicast whatever the broadcast flag says. Not at first,
	// since the kernel takes the lock of all changes of links for it.
	if l.asks() && !l.holds() && l.tries > 1 {
		o.join = l.MAC
	}
	if _, known := c.seen[l.Link]; !known {
		o.first, c.seen[l.Link] = true, 0
	}
	c.out = append(c.out, o)
}

// tick is called when l's time has come.
func (c *Client) tick(l *lease, now time.Time) {
	if l.state == resting {
		if g := c.gates[l.Link]; g != nil && slices.Contains(g.waiting, l) {
			c.enter(g, l, now) // it has waited for long enough
		} else {
			c.start(l, l.goal, now)
		}
		return
	}
	c.done(l, now)
	switch l.state {
	case selecting:
		if l.refuse != nil && l.waiter != nil {
			l.fail(l.refuse)
			c.drop(l)
			return
		}
	case requesting:
		if l.tries >= requests {
			c.discover(l, now)
			return
		}
	case rebooting:
		if l.nak != nil {
			c.refused(l, now, l.nak)
			return
		}
		if l.tries >= reboots {
			c.discover(l, now)
			c.keep(l)
			return
		}
	case bound:
		c.begin(l, renewing, now)
	}
	if l.state == renewing || l.state == rebinding {
		switch {
		case l.nak != nil:
			c.refused(l, now, l.nak)
			return
		case l.Expired(now):
			c.lose(l, now, fmt.Errorf("dhcp lease of %s has expired: no server has renewed it", l.Addr.Addr()))
			return
		case l.state == renewing && !now.Before(l.Rebind):
			c.begin(l, rebinding, now)
			l.trouble = fmt.Errorf("dhcp server %s does not renew %s; any other is asked from now on", l.Server, l.Addr.Addr())
			c.event(Event{What: Late, Lease: l.Lease, Was: l.Lease, Err: l.trouble})
		}
	}
	c.ask(l, now)
}

// lose tells that the address may not be used any more, and asks for another.
func (c *Client) lose(l *lease, now time.Time, why error) {
	l.trouble = why
	if !l.lost {
		l.lost = true
		c.event(Event{What: Lost, Lease: l.Lease, Was: l.Lease, Err: why})
	}
	c.discover(l, now)
}

// refused is for a NAK.
func (c *Client) refused(l *lease, now time.Time, why error) {
	held := l.holds()
	c.done(l, now)
	l.trouble = why
	l.hint = netip.Addr{}
	switch {
	case held:
		c.lose(l, now, why)
	case l.round == 0:
		l.round++
		c.discover(l, now)
	default:
		c.rest(l, now, 0)
	}
}

// hear takes a frame from a link.
func (c *Client) hear(link string, b []byte) {
	p, ok := parse(b)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.leave()
	l := c.asked[p.xid]
	if l == nil || l.Link != link || p.chaddr != [6]byte(l.MAC) {
		return
	}
	a, err := decode(p.message)
	switch {
	case len(a.client) > 0 && !bytes.Equal(a.client, l.ClientID):
		return // RFC 6842 3
	case a.server.IsValid() && len(l.Servers) > 0 && !slices.Contains(l.Servers, a.server):
		if l.trouble == nil {
			l.trouble = fmt.Errorf("dhcp server %s answers on %s, which is none of those allowed", a.server, link)
		}
		return
	case err != nil:
		l.trouble = fmt.Errorf("dhcp server %s gives what cannot be used: %w", a.server, err)
		return
	}
	delete(c.silent, link)
	a.terms.ServerMAC = bytes.Clone(p.ether)
	now := time.Now()
	switch a.kind {
	case dhcpv4.MessageTypeOffer:
		if l.state == selecting {
			c.offered(l, now, a)
		}
	case dhcpv4.MessageTypeAck:
		c.granted(l, now, a)
	case dhcpv4.MessageTypeNak:
		c.denied(l, now, a)
	}
}

// offered takes the first offer that will do.
func (c *Client) offered(l *lease, now time.Time, a answer) {
	if got := a.terms.Addr.Addr(); l.waiter != nil && l.Want.IsValid() && got != l.Want {
		if l.refuse == nil {
			l.refuse = fmt.Errorf("dhcp server %s offers %s, not %s: that one may be taken, or not be the server's to give; choose another, or reserve it there", a.server, got, l.Want)
			l.trouble = l.refuse
			if at := now.Add(wordy); at.Before(l.at) {
				c.due(l, at)
			}
		}
		return
	}
	if l.offers != nil {
		l.offers.add(a.terms)
		return
	}
	if l.peek {
		l.Terms = a.terms
		l.waiter <- outcome{lease: l.Lease}
		l.waiter = nil
		c.drop(l)
		return
	}
	// In the same transaction, as RFC 2131 table 5 has it.
	l.state, l.tries, l.offer = requesting, 0, a
	c.ask(l, now)
}

// granted takes an ACK.
func (c *Client) granted(l *lease, now time.Time, a answer) {
	got := a.terms.Addr.Addr()
	var want netip.Addr
	fresh := true
	switch l.state {
	case requesting:
		if a.server != l.offer.server {
			return
		}
		want = l.offer.terms.Addr.Addr()
	case rebooting:
		want = l.hint
	case renewing, rebinding:
		want, fresh = l.Addr.Addr(), false
	default:
		return
	}
	if got != want {
		l.trouble = fmt.Errorf("dhcp server %s gives %s when asked for %s", a.server, got, want)
		return
	}
	l.offer = a
	c.done(l, now)
	if !fresh {
		c.bind(l, now)
		return
	}
	// The LAN cannot be asked for this host's own macvlan links: the kernel passes
	// nothing between them and the parent.
	switch o := c.holder(l.Link, got); {
	case o == nil || o == l:
	case bytes.Equal(o.MAC, l.MAC):
		c.twice(l, now, got)
		return
	default:
		c.checked(l, o.MAC.String(), nil)
		return
	}
	if c.cfg.Check == nil {
		c.bind(l, now)
		return
	}
	c.quiet(l)
	l.state = checking
	c.idle(l)
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	l.cancel = cancel
	xid := l.xid
	c.wg.Go(func() {
		defer cancel()
		used, err := c.cfg.Check(ctx, l.Link, got, l.MAC)
		c.mu.Lock()
		defer c.leave()
		if c.leases[l.Key] == l && l.state == checking && l.xid == xid {
			var who string
			if used != nil && !bytes.Equal(used, l.MAC) {
				who = used.String()
			}
			c.checked(l, who, err)
		}
	})
}

// twice is for a server that goes by the MAC, and has given l what another with that
// MAC has. To such a server a DECLINE or a RELEASE is of the other's lease: it is not
// told.
func (c *Client) twice(l *lease, now time.Time, got netip.Addr) {
	l.trouble = fmt.Errorf("dhcp server %s has given %s twice: it goes by the MAC, which these containers share; tell it to go by the client identifier, or use macvlan", l.offer.server, got)
	if l.waiter != nil {
		l.fail(l.trouble)
		c.drop(l)
		return
	}
	l.hint = netip.Addr{}
	c.rest(l, now, 0)
}

// keep asks whether the previous lease is one to go on with.
func (c *Client) keep(l *lease) {
	a := l.previous.Addr.Addr()
	if c.cfg.Check == nil {
		l.spare = true
		return
	}
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, patience)
		defer cancel()
		used, err := c.cfg.Check(ctx, l.Link, a, l.MAC)
		c.mu.Lock()
		defer c.mu.Unlock()
		l.spare = err == nil && (used == nil || bytes.Equal(used, l.MAC))
	})
}

// resume goes on with the previous lease, whose server may be back soon.
func (c *Client) resume(l *lease) {
	p := l.previous
	c.quiet(l)
	c.done(l, time.Now())
	l.Terms, l.Granted, l.Renew, l.Rebind, l.Expires = p.Terms, p.Granted, p.Renew, p.Rebind, p.Expires
	l.shift(0)
	l.state, l.waiter, l.previous = bound, nil, nil
	l.trouble = fmt.Errorf("no dhcp server answers on %s: %s is gone on with", l.Link, l.Addr.Addr())
	if c.cfg.Log != nil {
		c.cfg.Log.WithField("link", l.Link).Warn(l.trouble)
	}
	c.idle(l)
	if !l.Expires.IsZero() {
		c.due(l, time.Now().Add(upTo(longest)))
	}
}

// holder is the lease that has an address, or is about to.
func (c *Client) holder(link string, a netip.Addr) *lease {
	for _, l := range c.leases {
		if l.Link == link && (l.holds() && l.Addr.Addr() == a || l.state == checking && l.offer.terms.Addr.Addr() == a) {
			return l
		}
	}
	return nil
}

// checked binds, or declines if someone has the address.
func (c *Client) checked(l *lease, who string, err error) {
	l.cancel = nil
	now := time.Now()
	got := l.offer.terms.Addr.Addr()
	if err != nil && c.cfg.Log != nil {
		c.cfg.Log.WithField("link", l.Link).Warnf("%s of dhcp server %s is used unchecked: %v", got, l.offer.server, err)
	}
	if who == "" {
		c.bind(l, now)
		return
	}
	l.trouble = fmt.Errorf("dhcp server %s gives %s, which %s has: it was told so", l.offer.server, got, who)
	c.decline(l, l.offer.terms, who+" has it")
	if l.hint == got {
		l.hint = netip.Addr{}
	}
	if l.waiter != nil && l.Want == got {
		l.fail(l.trouble)
		c.drop(l)
		return
	}
	if l.declined++; l.declined <= declines {
		c.discover(l, now)
	} else {
		c.rest(l, now, penalty)
	}
}

// decline tells a server that another has what it has given.
func (c *Client) decline(l *lease, t Terms, why string) {
	m := l.notice(dhcpv4.MessageTypeDecline)
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(t.Addr.Addr().AsSlice()))
	m.UpdateOption(dhcpv4.OptServerIdentifier(t.Server.AsSlice()))
	m.UpdateOption(dhcpv4.OptMessage(why[:min(len(why), 255)]))
	c.send(l, everyMAC, everyAddr, netip.IPv4Unspecified(), m)
}

// bind begins the life of what was given.
func (c *Client) bind(l *lease, now time.Time) {
	c.follow()
	now = now.Round(0)
	was := l.Lease
	c.quiet(l)
	l.Terms = l.offer.terms
	t := l.offer.times
	l.Granted, l.Renew, l.Rebind, l.Expires = now, time.Time{}, time.Time{}, time.Time{}
	l.state, l.trouble, l.round, l.declined = bound, nil, 0, 0
	l.hint = l.Addr.Addr()
	l.offer, l.previous = answer{}, nil
	c.idle(l)
	if t.expire > 0 {
		l.Renew, l.Rebind, l.Expires = now.Add(t.renew), now.Add(t.rebind), now.Add(t.expire)
		// RFC 2131 4.4.5 wants T1 fuzzy: of containers that start together, each
		// renews a little earlier than the server said.
		c.due(l, l.Renew.Add(-upTo(t.renew/10)))
	}
	if l.waiter != nil {
		l.waiter <- outcome{lease: l.Lease}
		l.waiter = nil
		return
	}
	what := Renewed
	if l.lost || !was.same(&l.Terms) {
		what = Changed
	}
	l.lost = false
	c.event(Event{What: what, Lease: l.Lease, Was: was})
}

// denied takes a NAK. That of the server in question counts at once. Another's may
// be a rogue's, or that of one which does not know of the first: it counts only
// if none says otherwise.
func (c *Client) denied(l *lease, now time.Time, a answer) {
	word := a.word
	if word == "" {
		word = nakNoWord
	}
	why := fmt.Errorf("dhcp server %s refuses %s: %s", a.server, l.asksFor(), word)
	switch l.state {
	case requesting:
		if a.server == l.offer.server {
			c.refused(l, now, why)
		}
	case renewing, rebinding, rebooting:
		if a.server == l.Server {
			c.refused(l, now, why)
		} else if l.nak == nil {
			l.nak = why
			if at := now.Add(wordy); at.Before(l.at) {
				c.due(l, at)
			}
		}
	}
}

func (l *lease) asksFor() netip.Addr {
	switch l.state {
	case requesting:
		return l.offer.terms.Addr.Addr()
	case rebooting:
		return l.hint
	}
	return l.Addr.Addr()
}

// abandon gives back what l holds, or may hold by now, and drops it.
func (c *Client) abandon(l *lease) {
	var t Terms
	switch l.state {
	case requesting, checking:
		t = l.offer.terms
	case bound, renewing, rebinding:
		t = l.Terms
	}
	a := t.Addr.Addr()
	if o := c.holder(l.Link, a); o != nil && o != l && bytes.Equal(o.MAC, l.MAC) {
		a = netip.Addr{} // as in twice
	}
	if a.IsValid() && t.Server.IsValid() {
		m := l.notice(dhcpv4.MessageTypeRelease)
		m.ClientIPAddr = a.AsSlice()
		m.UpdateOption(dhcpv4.OptServerIdentifier(t.Server.AsSlice()))
		to := t.ServerMAC
		if to == nil {
			to = everyMAC
		}
		c.send(l, to, t.Server, a, m)
	}
	c.drop(l)
}
