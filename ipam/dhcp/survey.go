package dhcp

import (
	"context"
	"time"
)

// Survey is Discover for all servers: what each offers that does so within more
// after the first, in the order of their answers. That nobody has by the end of ctx
// is no error.
func (c *Client) Survey(ctx context.Context, ask Ask, more time.Duration) ([]Terms, error) {
	if err := ask.valid(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	l, err := c.add(ask)
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	l.peek, l.offers = true, &offers{first: make(chan struct{})}
	waiter := l.wait()
	c.discover(l, time.Now())
	c.leave()

	select {
	case <-l.offers.first:
		late := time.NewTimer(more)
		defer late.Stop()
		select {
		case <-late.C:
		case <-ctx.Done():
		}
	case o := <-waiter: // it cannot be asked
		return nil, o.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.leave()
	c.drop(l)
	if len(l.offers.all) == 0 {
		return nil, l.trouble
	}
	return l.offers.all, nil
}

// offers are what a Survey gathers, guarded by Client.mu.
type offers struct {
	first chan struct{} // closed with the first
	all   []Terms
}

// add takes one of each server.
func (o *offers) add(t Terms) {
	for _, have := range o.all {
		if have.Server == t.Server {
			return
		}
	}
	if o.all = append(o.all, t); len(o.all) == 1 {
		close(o.first)
	}
}
