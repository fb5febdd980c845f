package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

const (
	// rounds is how often an address is asked for: RFC 5227 1.1, PROBE_NUM.
	rounds = 3

	// burst is how many frames leave back to back, and maxGap the longest
	// pause until the next ones.
	burst  = 8
	maxGap = 5 * time.Millisecond

	// patience is how long answers that have arrived may go unread, on a busy
	// host or in a storm, before a probe gives up.
	patience = 4 * time.Second
)

// Probe asks on a link who has addrs, IPv4 and IPv6 alike, and returns the MACs
// of those that are in use after wait, or earlier if every one is. Who only
// claims an address meanwhile counts as having it, if nobody else has (RFC
// 5227 2.1.1). Each address is asked for three times, spread over wait, until
// it is answered for.
//
// An error wraps ErrBlind where the link is absent, down, without carrier or
// without a MAC, or its socket fails: nothing is known then. If ctx ends first,
// its error comes with what was found so far; the other addresses may be in
// use. The link need not be watched.
func (p *Prober) Probe(ctx context.Context, link string, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]net.HardwareAddr, error) {
	start, wait := time.Now(), max(wait, 0)
	l, t, err := p.use(link)
	if err != nil {
		return nil, err
	}
	defer p.release(l)
	q, err := t.ask(addrs)
	if err != nil {
		return nil, err
	}
	err = p.run(ctx, l, t, q, start, wait)
	t.forget(q)
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	return q.used(), err
}

// run sends a question's frames and waits.
func (p *Prober) run(ctx context.Context, l *link, t *tap, q *question, start time.Time, wait time.Duration) error {
	if len(q.addrs) == 0 {
		return nil
	}
	lost := t.lost()
	timer := time.NewTimer(0)
	defer timer.Stop()
	// until waits, and says whether there is something left to wait for.
	until := func(at time.Time) bool {
		timer.Reset(time.Until(at))
		select {
		case <-timer.C:
			return true
		case <-q.done:
		case <-ctx.Done():
		case <-t.over:
		}
		return false
	}
	asked, err := t.rounds(q, start, wait, until)
	if err == nil {
		// A host too busy to ask in time gives answers their time all the same.
		end := start.Add(wait)
		if least := asked.Add(wait / 2); least.After(end) {
			end = least
		}
		until(end)
		for end = time.Now().Add(patience); err == nil && !t.caughtUp(); {
			if !until(time.Now().Add(time.Millisecond)) {
				break
			}
			if time.Now().After(end) {
				err = fmt.Errorf("more is heard than can be read: %w", ErrBusy)
			}
		}
	}
	if n := t.lost() - lost; err == nil && n > 0 {
		err = fmt.Errorf("%d frames came faster than they could be read: %w", n, ErrBusy)
	}
	select {
	case <-q.done:
		return nil
	case <-t.over:
		return fmt.Errorf("%w: %w", t.reason(), ErrBlind)
	default:
	}
	if errors.Is(err, ErrBusy) {
		return fmt.Errorf("asking on %s: %w", l.name, err)
	}
	if err != nil {
		return fmt.Errorf("asking on %s: %w: %w", l.name, err, ErrBlind)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("asking on %s: %w", l.name, err)
	}
	for _, c := range t.unanswered(q) {
		if c.sent == 0 {
			return fmt.Errorf("%s sends no frames, its queue is full: %w", l.name, ErrBusy)
		}
	}
	// A link that lost its carrier meanwhile has answered nothing, and no
	// socket says so.
	now, err := p.tap(l, true)
	if err == nil && now != t {
		err = t.reason()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", err, ErrBlind)
	}
	return nil
}

// rounds sends each frame three times: at once, and after each third of wait.
// A round takes half of its third at most, so that even the last frame leaves
// time for an answer. It returns when the first round was done.
func (t *tap) rounds(q *question, start time.Time, wait time.Duration, until func(time.Time) bool) (asked time.Time, err error) {
	for round := range rounds {
		at := start.Add(wait * time.Duration(round) / rounds)
		if round > 0 {
			at = at.Add(time.Duration(rand.Int64N(int64(wait/50) + 1))) // two hosts need not go in step
			if !until(at) {
				return asked, nil
			}
		}
		left := t.unanswered(q)
		gap := min(maxGap, wait*burst/time.Duration(2*rounds*(len(left)+burst)))
		for i, c := range left {
			if i > 0 && i%burst == 0 && !until(at.Add(gap*time.Duration(i/burst))) {
				return asked, nil
			}
			switch err := t.send(c.addr, c.frame); {
			case err == nil:
				c.sent++
			case !full(err):
				return asked, err
			}
		}
		if round == 0 {
			asked = time.Now()
		}
		if time.Since(start) > wait {
			return asked, nil
		}
	}
	return asked, nil
}

// Announce tells the LAN of a link that addr is at mac, or at the link's own
// MAC if that is nil: an ARP announcement (RFC 5227 2.3) or an unsolicited
// neighbour advertisement with override (RFC 4861 7.2.6), one frame, with mac
// as its Ethernet source so that switches learn the port too.
func (p *Prober) Announce(link string, addr netip.Addr, hw net.HardwareAddr) error {
	addr = addr.Unmap().WithZone("")
	if !unicast(addr) {
		return fmt.Errorf("%s is no address that a machine may have", addr)
	}
	l, t, err := p.use(link)
	if err != nil {
		return err
	}
	defer p.release(l)
	from := t.mac
	if hw != nil {
		if len(hw) != len(from) || !mac(hw).one() {
			return fmt.Errorf("%s is no MAC address that a machine may have", hw)
		}
		from = mac(hw)
	}
	var frame []byte
	if addr.Is4() {
		frame = arpRequest(from, addr, addr)
	} else if frame, err = advertisement(from, addr); err != nil {
		return fmt.Errorf("announcing %s: %w", addr, err)
	}
	if err := t.send(addr, frame); err != nil {
		return fmt.Errorf("announcing %s on %s: %w", addr, link, err)
	}
	return nil
}
