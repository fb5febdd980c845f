package netlinkutil

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"underlay/internal/pause"
)

// Attributes of linux/if_link.h that x/sys does not name in full.
const (
	iflaNewNetnsID    = 45     // IFLA_NEW_NETNSID: where a link has been moved to, in the RTM_DELLINK of the netns that it left (Linux 4.17)
	iflaTargetNetnsID = 46     // IFLA_TARGET_NETNSID: where to look (4.15)
	iflaNewIfindex    = 49     // IFLA_NEW_IFINDEX: as which link
	skipStats         = 1 << 3 // RTEXT_FILTER_SKIP_STATS
)

const (
	// upWithin is how long a moved link may take to come up. dockerd needs some
	// 10 ms, or seconds with hundreds of containers at a time.
	upWithin = 30 * time.Second
	// blind is what dockerd is given where the kernel does not let us look.
	blind = 500 * time.Millisecond
)

// errClosed is the fate of what is followed by a Host that is closed.
var errClosed = errors.New("no longer listening for changes of links")

// follow waits for the news that a link has left this netns.
type follow struct {
	told chan struct{} // closed once the news is there
	news news
}

// news is how a link left: moved to netns, or deleted; or that it may have.
type news struct {
	moved        bool
	netns, index int32 // netns is -1 if the kernel could not tell
	missed       bool
	err          error
}

// Follow returns a function that waits until the link has been moved to another
// netns and is up there. It must be called while the link is in this netns; a
// move is not missed from then on, whenever arrived is called. arrived must be
// called once, with an ended ctx if nobody cares any more. It fails when ctx
// ends first, if the link is deleted (ErrNotFound), comes back (ErrExists), or
// is not up within 30 s of its move (ErrTimeout).
//
// It needs CAP_NET_ADMIN and no way into that netns: when a link moves, the
// kernel tells by which ID the netns it left knows the one it is in, and
// answers questions there about that ID (net/core/dev.c,
// __dev_change_net_namespace; net/core/rtnetlink.c, rtnl_getlink; Linux 4.17).
// Where it does not, half a second after the move counts as up.
func (h *Host) Follow(name string) (arrived func(ctx context.Context) error, err error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := h.watch.start(unix.RTNLGRP_LINK); err != nil {
		return nil, err
	}
	k, err := h.get(name)
	if err != nil {
		return nil, err
	}
	f := h.watch.follow(k.Attrs().Index)
	// It may have left just before.
	if h.at(k.Attrs().Index) == nil {
		h.watch.drop(k.Attrs().Index, f)
		return nil, NotFound("link", name)
	}
	return func(ctx context.Context) error { return h.arrived(ctx, k, f) }, nil
}

func (h *Host) arrived(ctx context.Context, k netlink.Link, f *follow) error {
	a := k.Attrs()
	defer func() { h.watch.drop(a.Index, f) }()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.told:
		}
		switch n := f.news; {
		case n.err != nil:
			return n.err
		case n.moved:
			return h.up(ctx, k, n)
		case !n.missed:
			return Deleted(a.Name)
		}
		// News was lost, perhaps that of this link.
		f = h.watch.follow(a.Index)
		if same(h.at(a.Index), k) {
			continue
		}
		return pause.For(ctx, blind)
	}
}

// up waits until the moved link is up.
func (h *Host) up(ctx context.Context, k netlink.Link, n news) error {
	name := k.Attrs().Name
	for start, wait := time.Now(), 5*time.Millisecond; ; wait = min(3*wait/2+time.Millisecond, time.Second/10) {
		there, err := h.look(n)
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			return pause.For(ctx, blind)
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), err == nil && !same(there, k):
			// Not there, or the netns is gone and its ID perhaps another's. Or on
			// its way between two netns, and in neither for the moment.
			h.settle()
			if same(h.at(k.Attrs().Index), k) {
				return Returned(name)
			}
			if there, err = h.look(n); err != nil || !same(there, k) {
				return Deleted(name)
			}
			wait = 0
		case err == nil && there.Attrs().RawFlags&unix.IFF_UP != 0:
			return nil
		case time.Since(start) > upWithin:
			if err != nil {
				return Explain(err, "", "looking for link "+name+" in its container")
			}
			return refuse(ErrTimeout, "link %s has been moved to a container and is not up there after %s", name, upWithin)
		}
		if err := pause.For(ctx, wait); err != nil {
			return err
		}
	}
}

// settle waits until the kernel has done what it is doing to links. On Linux
// 6.18 a look-up does so by itself; on 7.2 it takes no RTNL lock any more, and
// sees links half moved or half deleted. A change takes the lock, also that of
// a link that is not there.
func (h *Host) settle() {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = math.MaxInt32
	ask := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	ask.Sockets = h.away
	ask.AddData(info)
	_ = tell(func() error { _, err := ask.Execute(unix.NETLINK_ROUTE, 0); return err }) // ENODEV
}

// look is the link where the news says that it is: EACCES if that is not told
// or may not be looked at, ENODEV if it is not there, EINVAL if there is no
// such netns.
func (h *Host) look(n news) (netlink.Link, error) {
	if n.netns < 0 {
		return nil, unix.EACCES
	}
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = n.index
	ask := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	ask.Sockets = h.away
	ask.AddData(info)
	ask.AddData(nl.NewRtAttr(iflaTargetNetnsID, nl.Uint32Attr(uint32(n.netns))))
	ask.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	answers, err := read(func() ([][]byte, error) { return ask.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK) })
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 || len(answers[0]) < unix.SizeofIfInfomsg {
		return nil, fmt.Errorf("%d answers", len(answers))
	}
	return netlink.LinkDeserialize(nil, answers[0])
}

// same tells whether a link that has been found is the one that was followed,
// as far as can be told: indices and IDs of netns are given anew.
func same(found, followed netlink.Link) bool {
	return found != nil && found.Type() == followed.Type() && found.Attrs().Alias == followed.Attrs().Alias
}

// Deleted is the error of a followed link that is no more. Exported for the
// fake kernel.
func Deleted(name string) error {
	return refuse(ErrNotFound, "link %s was deleted before it was up in a container", name)
}

// Returned is the error of a followed link that is here again. Exported for
// the fake kernel.
func Returned(name string) error {
	return refuse(ErrExists, "link %s came back out of a container before it was up there", name)
}

// follow waits for the news of the link of that index.
func (w *watch) follow(index int) *follow {
	f := &follow{told: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.follows[index] == nil {
		w.follows[index] = map[*follow]struct{}{}
	}
	w.follows[index][f] = struct{}{}
	return f
}

// drop ends a follow.
func (w *watch) drop(index int, f *follow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.follows[index], f)
	if len(w.follows[index]) == 0 {
		delete(w.follows, index)
	}
}

// left takes the attributes of the RTM_DELLINK of a link to who follows it.
func (w *watch) left(index int, attributes []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.follows[index]) == 0 {
		return
	}
	n := news{index: int32(index)}
	as, err := nl.ParseRouteAttr(attributes)
	if err != nil {
		n.moved, n.netns = true, -1
	}
	for _, a := range as {
		if len(a.Value) < 4 {
			continue
		}
		switch v := int32(nl.NativeEndian().Uint32(a.Value)); a.Attr.Type {
		case iflaNewNetnsID:
			n.moved, n.netns = true, v
		case iflaNewIfindex:
			n.index = v
		}
	}
	w.tell(index, n)
}

// miss tells everyone that news of their link may have been missed, or, with
// an error, that there will be none.
func (w *watch) miss(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for index := range w.follows {
		w.tell(index, news{missed: true, err: err})
	}
}

func (w *watch) tell(index int, n news) {
	for f := range w.follows[index] {
		f.news = n
		close(f.told)
	}
	delete(w.follows, index)
}
