package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/internal/wall"
)

// Config is what a Client needs from others.
type Config struct {
	Log logrus.FieldLogger

	// Check asks the LAN of a link who else than mac has addr, nil if nobody (RFC
	// 2131 2.2). It is called before an address that the server has given is used,
	// in a goroutine of its own. After an error, which is logged, the address is
	// used all the same. A nil Check asks nobody.
	Check func(ctx context.Context, link string, addr netip.Addr, mac net.HardwareAddr) (usedBy net.HardwareAddr, err error)

	// Told is called with what becomes of leases, one call after the other, in
	// order. It may take its time and call the Client, but for Close.
	Told func(Event)
}

// What is what has become of a lease.
type What string

// What may become of a lease.
const (
	Renewed What = "renewed" // the same for longer
	Changed What = "changed" // another address or other options: put them into the container
	Late    What = "late"    // nobody renews it, from T2 on; the address is still good
	Lost    What = "lost"    // it has expired or was taken back, Err says so; another is being asked for
)

// Event is what has become of a lease after Acquire or Restore.
type Event struct {
	What  What
	Lease Lease // as it is now; what was lost is still in it
	Was   Lease // before
	Err   error // why it is late or lost
}

// Status is how it stands with a lease.
type Status struct {
	Lease
	State   string // "bound", "renewing", …
	Holds   bool   // the address may be used
	Trouble error  // what the server last said, or why none can be asked; nil: all is well
}

var errClosed = errors.New("underlay is shutting down")

// Client keeps the leases of all containers. Its methods may be called in
// parallel.
type Client struct {
	cfg  Config
	open func(link string) (wire, error)
	look func(link string) int // its index; 0: nothing can be sent there
	wg   sync.WaitGroup
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wake chan struct{} // something is due earlier than it was
	news chan struct{} // there are events

	mu     sync.Mutex
	leases map[string]*lease  // by Ask.Key
	ids    map[string]*lease  // by link and client id
	asked  map[[4]byte]*lease // by the transaction id that is under way
	queue  queue
	clock  wall.Clock
	gates  map[string]*gate // by link, of those where anyone asks
	out    []letter         // to be sent when mu is released
	events []Event          // to be told
	taps   map[string]*tap
	seen   map[string]int       // by link: what look last told
	silent map[string]time.Time // by link: when it was last waited in vain for any answer there
	closed bool
}

// letter is a frame to be sent.
type letter struct {
	l     *lease
	tap   *tap
	frame []byte
	join  net.HardwareAddr
	first bool // on this link
}

// New makes a Client without leases.
func New(cfg Config) *Client { return start(cfg, openSocket) }

func start(cfg Config, open func(string) (wire, error)) *Client {
	c := &Client{
		cfg: cfg, open: open, look: sight,
		wake: make(chan struct{}, 1), news: make(chan struct{}, 1),
		leases: map[string]*lease{}, ids: map[string]*lease{}, asked: map[[4]byte]*lease{}, taps: map[string]*tap{}, seen: map[string]int{}, silent: map[string]time.Time{}, gates: map[string]*gate{},
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.wg.Go(c.run)
	c.wg.Go(c.tell)
	return c
}

// Close ends everything. No lease is given back.
func (c *Client) Close() {
	c.mu.Lock()
	c.leave() // with what has just been given back
	c.mu.Lock()
	c.closed = true
	for _, l := range c.leases {
		l.fail(errClosed)
	}
	clear(c.asked) // no answer is waited for
	taps := c.taps
	c.taps = map[string]*tap{}
	c.mu.Unlock()
	c.stop()
	for _, t := range taps {
		t.close()
	}
	c.wg.Wait()
}

// Acquire takes a lease: the previous one if there is one and its server still
// gives it, else a new one. From then on it is kept until Release or Forget, and
// Told tells of it. A key that holds a lease already is given that.
//
// When ctx ends, the error is what a server said last, or that none answered, and
// nothing is left behind; it is not waited for where another has just waited in
// vain. But where none answered, and the previous lease is good for some time yet,
// and nobody else has its address, that is gone on with (RFC 2131 3.2).
func (c *Client) Acquire(ctx context.Context, ask Ask) (Lease, error) {
	if err := ask.valid(); err != nil {
		return Lease{}, err
	}
	c.mu.Lock()
	if l := c.leases[ask.Key]; l != nil && l.waiter == nil && l.holds() {
		defer c.mu.Unlock()
		if has := l.Addr.Addr(); ask.Want.IsValid() && ask.Want != has {
			return Lease{}, fmt.Errorf("%s has the dhcp lease of %s, not of %s: release it first", ask.Key, has, ask.Want)
		}
		return l.Lease, nil
	}
	l, err := c.add(ask)
	if err != nil {
		c.mu.Unlock()
		return Lease{}, err
	}
	now := time.Now()
	waiter := l.wait()
	switch p := ask.Previous; {
	case p == nil || !p.Addr.IsValid() || ask.Want.IsValid() && ask.Want != p.Addr.Addr():
		c.discover(l, now)
	default:
		l.hint, l.Server = p.Addr.Addr(), p.Server
		if p.Expired(now) {
			c.discover(l, now)
		} else {
			l.previous = p
			c.reboot(l, now)
		}
	}
	c.leave()
	return c.await(ctx, l, waiter)
}

// Discover asks what a server would give, and takes nothing: a network's subnet,
// router and options. The address is one that was free then. Nothing is left
// behind at its end.
func (c *Client) Discover(ctx context.Context, ask Ask) (Terms, error) {
	if err := ask.valid(); err != nil {
		return Terms{}, err
	}
	c.mu.Lock()
	l, err := c.add(ask)
	if err != nil {
		c.mu.Unlock()
		return Terms{}, err
	}
	l.peek = true
	waiter := l.wait()
	c.discover(l, time.Now())
	c.leave()
	found, err := c.await(ctx, l, waiter)
	return found.Terms, err
}

// dockerd starts the containers of a network one after the other, and at its boot
// answers nobody meanwhile: where one has waited in vain for any answer on a link, the
// others of the next minute wait for as long as two questions take, or with a lease to
// go on with, the two before these. An answer to anyone there ends that.
const (
	lull   = time.Minute
	brief  = first + first/2
	brief2 = first*reboots + first/2
)

// await waits for what becomes of l, but not longer than ctx.
func (c *Client) await(ctx context.Context, l *lease, waiter <-chan outcome) (Lease, error) {
	began := time.Now()
	var soon <-chan time.Time
	c.mu.Lock()
	if c.mute(l, began) {
		wait := brief
		if l.previous != nil {
			wait = brief2
		}
		timer := time.NewTimer(wait)
		defer timer.Stop()
		soon = timer.C
	}
	c.mu.Unlock()
	for ended := false; !ended; {
		select {
		case o := <-waiter:
			return o.lease, o.err
		case <-soon:
			c.mu.Lock()
			ended = c.mute(l, time.Now())
			c.mu.Unlock()
		case <-ctx.Done():
			ended = true
		}
	}
	c.mu.Lock()
	defer c.leave()
	select {
	case o := <-waiter: // just now
		return o.lease, o.err
	default:
	}
	// Who has asked for less, or has had no turn, has not heard that nobody answers.
	if now := time.Now(); l.trouble == nil && !l.offer.server.IsValid() && !l.asked.IsZero() && now.Sub(l.asked) >= brief {
		c.silent[l.Link] = now
	}
	if l.spare && l.state == selecting && l.trouble == nil && !l.previous.Expired(time.Now()) {
		c.resume(l)
		return l.Lease, nil
	}
	c.abandon(l)
	err := l.trouble
	if err == nil {
		err = fmt.Errorf("no dhcp server answers on %s: is there one on this LAN, and has it an address left?", l.Link)
	}
	return Lease{}, fmt.Errorf("%w (after %s)", err, time.Since(began).Round(100*time.Millisecond))
}

// mute says whether nobody has answered l, and nobody else on its link of late. With
// mu held.
func (c *Client) mute(l *lease, now time.Time) bool {
	since, ok := c.silent[l.Link]
	return ok && now.Sub(since) < lull && l.trouble == nil && !l.offer.server.IsValid()
}

// Restore goes on with leases that containers are using, as a client would that
// has never been away. What is overdue is spread over some time, lest a thousand
// ask at once. Those that are kept already are passed over; the error says which
// could not be taken.
func (c *Client) Restore(leases []Lease) error {
	var errs []error
	c.mu.Lock()
	defer c.leave()
	c.follow()
	now := time.Now()
	// As many a second as a small server bears.
	spread := time.Duration(len(leases)) * time.Second / 50
	for _, old := range leases {
		if c.leases[old.Key] != nil {
			continue
		}
		err := old.valid()
		var l *lease
		if err == nil {
			l, err = c.add(old.Ask)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("lease %s: %w", old.Key, err))
			continue
		}
		l.Terms, l.Granted, l.Renew, l.Rebind, l.Expires = old.Terms, old.Granted, old.Renew, old.Rebind, old.Expires
		early := max(l.Granted.Sub(now), 0)
		l.shift(-early)
		if !l.Addr.IsValid() || l.Expired(now) {
			if l.Addr.IsValid() {
				l.trouble = fmt.Errorf("dhcp lease of %s ran out while underlay was not running", l.Addr.Addr())
				c.event(Event{What: Lost, Lease: l.Lease, Was: l.Lease, Err: l.trouble})
			}
			l.lost = true
			l.hint = l.Addr.Addr()
			l.state, l.goal = resting, selecting
			c.due(l, now.Add(upTo(spread)))
			continue
		}
		l.state = bound
		switch {
		case l.Expires.IsZero():
		case now.Before(l.Renew) && early == 0: // else the clock was set back since
			c.due(l, l.Renew)
		case now.Before(l.Rebind):
			c.due(l, now.Add(upTo(min(spread, l.Rebind.Sub(now)/2))))
		default:
			c.due(l, now.Add(upTo(min(spread, l.Expires.Sub(now)/2))))
		}
	}
	return errors.Join(errs...)
}

// Release gives a lease back to its server and forgets it. Nobody answers that, so
// nothing is waited for.
func (c *Client) Release(key string) {
	c.mu.Lock()
	defer c.leaveLater()
	if l := c.leases[key]; l != nil {
		c.abandon(l)
	}
}

// Decline tells the server of a lease that another has its address, and forgets
// the lease: the next Acquire is given another address.
func (c *Client) Decline(key, why string) {
	c.mu.Lock()
	defer c.leaveLater()
	if l := c.leases[key]; l != nil {
		if l.holds() {
			c.decline(l, l.Terms, why)
		}
		c.drop(l)
	}
}

// Forget lets a lease be, for a later Acquire with it as Previous.
func (c *Client) Forget(key string) {
	c.mu.Lock()
	defer c.leaveLater()
	if l := c.leases[key]; l != nil {
		c.drop(l)
	}
}

// Rouse says that links have come, gone or changed: whoever asked in vain on one that
// was away asks again soon. Pauses of which a server is the reason, and turns, are
// not cut short: links change all the time.
func (c *Client) Rouse() {
	c.mu.Lock()
	links := slices.Collect(maps.Keys(c.taps))
	c.mu.Unlock()
	here, came := map[string]bool{}, map[string]bool{}
	for _, link := range links {
		index := c.look(link)
		c.mu.Lock()
		here[link], came[link] = index != 0, index != 0 && index != c.seen[link]
		c.seen[link] = index
		c.mu.Unlock()
	}
	now := time.Now()
	c.mu.Lock()
	defer c.leave()
	var all []*lease
	for _, l := range c.leases {
		if l.waits() && here[l.Link] && (l.unsent || came[l.Link]) {
			all = append(all, l)
		}
	}
	for _, l := range all {
		if at := now.Add(upTo(time.Duration(len(all)) * time.Second / 50)); l.at.After(at) {
			if l.state == selecting {
				l.tries = 0
			}
			c.due(l, at)
		}
	}
}

// Leases are those with an address that may be used, by key.
func (c *Client) Leases() (all []Lease) {
	for _, s := range c.Status() {
		if s.Holds {
			all = append(all, s.Lease)
		}
	}
	return all
}

// Status is how it stands with every lease that is kept or asked for, by key.
func (c *Client) Status() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Status, 0, len(c.leases))
	for _, l := range c.leases {
		all = append(all, Status{Lease: l.Lease, State: l.state.String(), Holds: l.holds(), Trouble: l.trouble})
	}
	slices.SortFunc(all, func(a, b Status) int { return bytes.Compare([]byte(a.Key), []byte(b.Key)) })
	return all
}

// add makes a lease that holds nothing, with mu held.
func (c *Client) add(ask Ask) (*lease, error) {
	if c.closed {
		return nil, errClosed
	}
	if c.leases[ask.Key] != nil {
		return nil, fmt.Errorf("a dhcp lease for %s is being asked for already", ask.Key)
	}
	if ask.ClientID == nil {
		ask.ClientID = append([]byte{1}, ask.MAC...) // RFC 2132 9.14
	}
	ask.Previous = nil
	l := &lease{Lease: Lease{Ask: ask}, place: -1}
	l.id = ask.Link + "\x00" + string(ask.ClientID)
	if o := c.ids[l.id]; o != nil {
		return nil, fmt.Errorf("%s has the dhcp client id %x on %s already: a server would give both the same address", o.Key, ask.ClientID, ask.Link)
	}
	c.leases[ask.Key], c.ids[l.id] = l, l
	return l, nil
}

// drop takes a lease away, with mu held.
func (c *Client) drop(l *lease) {
	c.quiet(l)
	c.idle(l)
	c.done(l, time.Now())
	l.fail(fmt.Errorf("the dhcp lease for %s is not wanted any more", l.Key))
	delete(c.leases, l.Key)
	delete(c.ids, l.id)
}

// leave releases mu and sends what there is to send: no lock is held then that
// anyone else needs.
func (c *Client) leave() {
	out := c.out
	c.out = nil
	c.mu.Unlock()
	for _, o := range out {
		err := o.tap.send(o.frame, o.join)
		if err == nil && !o.first {
			continue
		}
		index := 0
		if err == nil {
			index = c.look(o.l.Link)
		}
		c.mu.Lock()
		if o.first {
			c.seen[o.l.Link] = index
		}
		if err != nil && c.leases[o.l.Key] == o.l {
			o.l.trouble, o.l.unsent = err, true
			if o.l.waiter != nil && errors.Is(err, errNoLink) {
				o.l.fail(err) // no need to wait for it
				c.drop(o.l)
			}
		}
		c.mu.Unlock()
	}
}

// leaveLater is leave for who holds locks of his own: run sends.
func (c *Client) leaveLater() {
	c.mu.Unlock()
	poke(c.wake)
}

func (c *Client) tap(link string) *tap {
	t := c.taps[link]
	if t == nil {
		t = &tap{name: link, open: c.open, hear: c.hear, wg: &c.wg, closed: c.closed}
		c.taps[link] = t
	}
	return t
}

// run does what is due.
func (c *Client) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		c.mu.Lock()
		c.follow()
		now := time.Now()
		for n := 0; len(c.queue) > 0 && !c.queue[0].at.After(now) && n < 64; n++ {
			l := c.queue[0]
			c.idle(l)
			c.tick(l, now)
		}
		timer.Stop()
		if len(c.queue) > 0 {
			timer.Reset(min(time.Until(c.queue[0].at), wall.Nap()))
		}
		c.leave()
	}
}

// tell calls Told.
func (c *Client) tell() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.news:
		}
		c.mu.Lock()
		events := c.events
		c.events = nil
		c.mu.Unlock()
		for _, e := range events {
			if c.cfg.Told != nil && c.ctx.Err() == nil {
				c.cfg.Told(e)
			}
		}
	}
}

// event is with mu held.
func (c *Client) event(e Event) {
	c.events = append(c.events, e)
	poke(c.news)
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (a *Ask) valid() error {
	switch {
	case a.Key == "" || a.Link == "":
		return errors.New("a dhcp lease needs a key and a link")
	case len(a.MAC) != 6 || a.MAC[0]&1 != 0 || bytes.Equal(a.MAC, make([]byte, 6)):
		return fmt.Errorf("%s is no MAC address that a machine may have", a.MAC)
	case a.ClientID != nil && len(a.ClientID) < 2 || len(a.ClientID) > 255:
		return fmt.Errorf("a dhcp client id has 2 to 255 bytes, not %d", len(a.ClientID))
	case len(a.Hostname) > 255 || len(a.VendorClass) > 255:
		return errors.New("a hostname or vendor class for dhcp has 255 bytes at most")
	case a.Want.IsValid() && !a.Want.Is4():
		return fmt.Errorf("%s is no IPv4 address", a.Want)
	}
	return nil
}
