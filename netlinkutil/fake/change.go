package fake

import (
	"context"
	"reflect"

	"underlay/netlinkutil"
)

// Changes calls each with every change of a link, as Host's does.
func (k *Kernel) Changes(ctx context.Context, each func(netlinkutil.Change)) error {
	k.mu.Lock()
	err := k.injected("Changes")
	if k.told == nil {
		k.told = k.seen()
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	return k.feed.Listen(ctx, each)
}

// Lose tells the listeners of Changes that they have missed some, as after an
// overrun.
func (k *Kernel) Lose() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.feed.Tell(netlinkutil.Change{Lost: true})
}

// unlock ends whatever may have changed a link, and tells of it.
func (k *Kernel) unlock() {
	defer k.mu.Unlock()
	close(k.changed)
	k.changed = make(chan struct{})
	if k.told == nil {
		return // nobody has ever listened
	}
	seen := k.seen()
	for _, l := range k.told {
		if _, here := seen[l.Index]; !here {
			k.feed.Tell(netlinkutil.Change{Link: l, Gone: true})
		}
	}
	for _, l := range k.links {
		now, here := seen[l.Index]
		if before, known := k.told[l.Index]; here && (!known || !reflect.DeepEqual(before, now)) {
			k.feed.Tell(netlinkutil.Change{Link: now})
		}
	}
	k.told = seen
}

// seen is the links of the host's netns by index, as the kernel's messages tell them.
func (k *Kernel) seen() map[int]netlinkutil.Link {
	seen := map[int]netlinkutil.Link{}
	for _, l := range k.links {
		if !l.moved {
			n := l.read()
			n.Lower, n.Master, n.MasterKind = "", "", ""
			seen[l.Index] = n
		}
	}
	return seen
}

// Follow returns a function that waits until the link is up in a container, as
// Host's does, but for as long as it takes.
func (k *Kernel) Follow(name string) (arrived func(ctx context.Context) error, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.injected("Follow"); err != nil {
		return nil, err
	}
	if err := netlinkutil.CheckName(name); err != nil {
		return nil, err
	}
	l := k.find(name)
	if l == nil {
		return nil, netlinkutil.NotFound("link", name)
	}
	moves := l.moves
	return func(ctx context.Context) error {
		for {
			k.mu.Lock()
			exists, moved, here, up, changed := k.exists(l), l.moves > moves, !l.moved, l.Up, k.changed
			k.mu.Unlock()
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case !exists:
				return netlinkutil.Deleted(name)
			case moved && here:
				return netlinkutil.Returned(name)
			case moved && up:
				return nil
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	}, nil
}

func (k *Kernel) exists(l *link) bool {
	for _, m := range k.links {
		if m == l {
			return true
		}
	}
	return false
}
