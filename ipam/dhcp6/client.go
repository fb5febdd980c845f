package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/sirupsen/logrus"

	"underlay/internal/wall"
)

// Config is what a Client needs of its surroundings.
type Config struct {
	Log logrus.FieldLogger

	// Check asks the LAN who has addr, before a container gets it; mac is the
	// container's. With an error nothing is known, and the address is used.
	// Nil: no address is checked.
	Check func(ctx context.Context, link string, addr netip.Addr, mac net.HardwareAddr) (usedBy net.HardwareAddr, err error)

	// Told is called with one event after the other, in order for each lease,
	// with no lock held. Nil: nobody is told.
	Told func(Event)
}

// ErrNoServer is wrapped by errors of Acquire that no server has answered.
var ErrNoServer = errors.New("no DHCPv6 server answers")

var errClosed = errors.New("underlay is shutting down")

// Client holds leases. Its methods may be called in parallel.
type Client struct {
	cfg  Config
	open func(link string, all bool, hear func(payload []byte, from netip.Addr), over func(wire, error)) (wire, error)
	wg   sync.WaitGroup
	ctx  context.Context // ends with the client
	end  context.CancelFunc

	mu       sync.Mutex
	closed   bool
	keys     map[string]*binding
	owners   map[identity]*binding // also those that are being released
	asked    map[dhcpv6.TransactionID]*binding
	links    map[string]*link
	silent   map[string]time.Time // by link: when it was last waited in vain for any answer there
	clock    wall.Clock
	schedule schedule
	events   []Event
	telling  bool
}

// identity is what no two leases may have in common.
type identity struct {
	link string
	duid DUID
	iaid uint32
}

// New makes a client without leases. It opens a socket on a link once it has a
// lease there.
func New(cfg Config) *Client {
	c := &Client{
		cfg: cfg, open: openTap,
		keys: map[string]*binding{}, owners: map[identity]*binding{},
		asked: map[dhcpv6.TransactionID]*binding{}, links: map[string]*link{}, silent: map[string]time.Time{},
	}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.schedule.ring = c.work
	return c
}

// Acquire takes a lease and keeps it until Release or Forget. It fails with the
// servers' word where they refuse, without waiting for the end of ctx; with
// ErrNoServer if ctx ends first. The lease is not wanted any longer then. A key
// that has a lease gets that one.
func (c *Client) Acquire(ctx context.Context, ask Ask) (Lease, error) {
	return c.acquire(ctx, ask, false)
}

// Discover is what the best server would give. Nothing is taken.
func (c *Client) Discover(ctx context.Context, ask Ask) (Terms, error) {
	l, err := c.acquire(ctx, ask, true)
	return l.Terms, err
}

func (c *Client) acquire(ctx context.Context, ask Ask, look bool) (Lease, error) {
	if err := ask.complete(); err != nil {
		return Lease{}, err
	}
	c.mu.Lock()
	b, err := c.binding(ask)
	if err != nil {
		c.mu.Unlock()
		return Lease{}, err
	}
	if b.state == idle {
		b.look = look
	} else if b.look != look {
		c.mu.Unlock()
		return Lease{}, fmt.Errorf("%s is being asked for, or has a lease, already", ask.Key)
	}
	if b.lease != nil && !b.lost && b.state != soliciting && b.state != requesting {
		defer c.mu.Unlock()
		if ask.Want.IsValid() && ask.Want != b.lease.Addr {
			return Lease{}, fmt.Errorf("%s has a lease of %s already: release it to ask for %s", ask.Key, b.lease.Addr, ask.Want)
		}
		return *b.lease, nil
	}
	l := b.link
	fresh := b.state == idle
	w := make(waiter, 1)
	b.waiters = append(b.waiters, w)
	c.mu.Unlock()

	if err := c.settle(l, false); err != nil {
		_, _ = c.leave(b, w)
		return Lease{}, err
	}
	if fresh {
		c.mu.Lock()
		if b.state == idle && !c.closed {
			b.solicit(time.Now())
		}
		c.mu.Unlock()
	}
	var soon <-chan time.Time
	c.mu.Lock()
	if c.mute(b, time.Now()) {
		timer := time.NewTimer(brief)
		defer timer.Stop()
		soon = timer.C
	}
	c.mu.Unlock()
	for {
		select {
		case o := <-w:
			return o.lease, o.err
		case <-ctx.Done():
			return c.leave(b, w)
		case <-soon:
			c.mu.Lock()
			ended := c.mute(b, time.Now())
			c.mu.Unlock()
			if ended {
				return c.leave(b, w)
			}
		}
	}
}

// dockerd starts the containers of a network one after the other, and at its boot
// answers nobody meanwhile: where one has waited in vain for any answer on a link, the
// others of the next minute wait for as long as three questions take. An answer to
// anyone there ends that.
const (
	lull  = time.Minute
	brief = 3500 * time.Millisecond
)

// mute says whether nobody has answered b, and nobody else on its link of late. With
// mu held.
func (c *Client) mute(b *binding, now time.Time) bool {
	since, ok := c.silent[b.link.name]
	return ok && now.Sub(since) < lull && b.unanswered()
}

// waiter is one Acquire.
type waiter chan outcome

type outcome struct {
	lease Lease
	err   error
}

// leave ends an Acquire that waits no longer.
func (c *Client) leave(b *binding, w waiter) (Lease, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case o := <-w: // just in time
		return o.lease, o.err
	default:
	}
	b.waiters = slices.DeleteFunc(b.waiters, func(o waiter) bool { return o == w })
	err := b.why()
	// Who has asked for less has not heard that nobody answers.
	if now := time.Now(); b.unanswered() && b.link.err == nil && b.question != nil && now.Sub(b.began) >= brief {
		c.silent[b.link.name] = now
	}
	if len(b.waiters) == 0 && b.lease == nil {
		b.part()
	}
	return Lease{}, err
}

// binding is the one of ask's key, or a new one. With mu held.
func (c *Client) binding(ask Ask) (*binding, error) {
	if c.closed {
		return nil, errClosed
	}
	id := identity{ask.Link, ask.DUID, ask.IAID}
	if b := c.keys[ask.Key]; b != nil {
		if b.identity() != id {
			return nil, fmt.Errorf("%s has a lease on %s for DUID %s already: release it first", ask.Key, b.ask.Link, b.ask.DUID)
		}
		return b, nil
	}
	if b := c.owners[id]; b != nil {
		if b.state != releasing {
			return nil, fmt.Errorf("DUID %s with IAID %d has a lease on %s already, for %s: give this one another", id.duid, id.iaid, id.link, b.ask.Key)
		}
		b.drop() // lest its release be repeated, and end the new lease
	}
	l := c.links[ask.Link]
	if l == nil {
		l = &link{name: ask.Link, all: ask.Passthru, servers: map[DUID]int{}, turn: make(chan struct{}, 1)}
		c.links[ask.Link] = l
	}
	l.users++
	b := &binding{client: c, link: l, ask: ask, index: -1}
	if ask.Previous != nil {
		b.hint = ask.Previous.Addr
		b.ask.Previous = nil
	}
	c.keys[ask.Key] = b
	c.owners[id] = b
	return b, nil
}

// Restore takes up leases of an earlier run, wherever in their life they are.
// Those that need no renewal yet are confirmed (RFC 8415 18.2.3): the host may
// be on another LAN by now. All that is spread over some time, so that many do
// not storm a server. A lease that cannot be taken up is reported, and the
// others are.
func (c *Client) Restore(leases []Lease) error {
	var errs []error
	c.mu.Lock()
	c.follow()
	now := time.Now()
	seen := map[*link]bool{}
	for i := range leases {
		l := leases[i]
		err := l.Ask.complete()
		if err == nil && !usable(l.Addr) {
			err = fmt.Errorf("the lease of %s is of no address", l.Key)
		}
		var b *binding
		if err == nil {
			b, err = c.binding(l.Ask)
		}
		if err == nil && b.lease != nil {
			err = fmt.Errorf("%s has a lease already", l.Key)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		seen[b.link] = true
		l.shift(0)
		b.lease = &l
		b.resume(now, spread(len(leases)))
	}
	c.mu.Unlock()
	for l := range seen {
		_ = c.settle(l, false) // noted; it is tried again
	}
	return errors.Join(errs...)
}

// spread is the time over which so many clients ask a server: 200 a second, and
// a second at least (SOL_MAX_DELAY, CNF_MAX_DELAY).
func spread(n int) time.Duration {
	return max(time.Second, time.Duration(n)*5*time.Millisecond)
}

// Release tells the server that a lease is not wanted any longer, and forgets
// it. It does not wait for the server.
func (c *Client) Release(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.keys[key]; b != nil {
		b.part()
	}
}

// Forget ends a lease without a word to the server, which keeps it for the
// next time until it expires.
func (c *Client) Forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.keys[key]; b != nil {
		b.drop()
	}
}

// Decline tells the server that another machine has the address of a lease, if
// the caller finds that only when it is in use. The lease is lost; another is
// asked for.
func (c *Client) Decline(key string, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.keys[key]; b != nil && b.lease != nil && !b.lost {
		b.lose(why)
		b.decline(b.lease, time.Now())
	}
}

// Leases is how it stands with every lease, by key. One that is not asked for
// successfully yet has no address.
func (c *Client) Leases() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Status, 0, len(c.keys))
	for _, b := range c.keys {
		s := Status{Lease: Lease{Ask: b.ask}, State: b.state.String(), Trouble: b.refusal}
		if b.lease != nil {
			s.Lease = *b.lease
		}
		if b.link.err != nil {
			s.Trouble = b.link.err
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// Close ends the client without a word to any server, and waits for what it had
// begun. It must not be called from Told.
func (c *Client) Close() {
	c.end()
	c.mu.Lock()
	c.closed = true
	for _, b := range c.owners {
		b.fail(errClosed)
		b.drop()
	}
	c.mu.Unlock()
	c.wg.Wait()
}

// work does what is due.
func (c *Client) work() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.follow()
	now := time.Now()
	for {
		b := c.schedule.next(now)
		if b == nil {
			break
		}
		b.step(now)
	}
	c.schedule.wind()
}

// hear takes what a link's socket received.
func (c *Client) hear(l *link, payload []byte, from netip.Addr) {
	a, err := parse(payload, from)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.asked[a.xid]
	if b == nil || b.link != l || b.ask.DUID != a.client || !b.ask.known(a.server) {
		return
	}
	delete(c.silent, l.name)
	c.follow()
	b.hear(a, time.Now())
}

// tell queues an event. With mu held.
func (c *Client) tell(e Event) {
	if c.cfg.Told == nil {
		return
	}
	c.events = append(c.events, e)
	if c.telling || c.closed {
		return
	}
	c.telling = true
	c.wg.Go(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for len(c.events) > 0 && !c.closed {
			e := c.events[0]
			c.events = c.events[1:]
			c.mu.Unlock()
			c.cfg.Told(e)
			c.mu.Lock()
		}
		c.telling = false
	})
}
