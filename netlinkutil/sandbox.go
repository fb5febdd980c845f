package netlinkutil

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// sandboxes is the folder of containers' netns. nil: none may be entered.
type sandboxes struct {
	dir, at  string // as dockerd names it, and as this process sees it
	settings []settingGroup

	mu   sync.Mutex
	seen map[string]bool // names that were netns here
	most int             // of them, before those that are no more are looked for
}

// fewSeen are not worth looking for.
const fewSeen = 1024

// EnterSandboxes lets h into the netns of containers. dir is the folder of these
// as dockerd names it in its SandboxKeys (/var/run/docker/netns), at is where
// this process sees it. ErrPermission where it may not enter any. It comes
// before all other verbs, or not at all: those of sandboxes are then ErrNoEntry.
func (h *Host) EnterSandboxes(dir, at string) error {
	if !path.IsAbs(dir) || !path.IsAbs(at) {
		return refuse(ErrInvalid, "the folders of containers' network namespaces are absolute paths, and %q or %q is none", dir, at)
	}
	// To enter one's own takes what another takes.
	own, err := unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", ownNetns, err)
	}
	defer unix.Close(own)
	if err := away(own, func() error { return nil }); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = refuse(ErrPermission, "entering containers' network namespaces takes CAP_SYS_ADMIN, which underlay lacks; grant it, or have no interfaces made again")
		}
		return err
	}
	h.sandboxes = &sandboxes{dir: path.Clean(dir), at: path.Clean(at), settings: settingGroups(), seen: map[string]bool{}, most: fewSeen}
	return nil
}

// ownNetns is the netns of the thread that opens it.
const ownNetns = "/proc/thread-self/ns/net"

// away runs do on a thread that has entered the netns of that descriptor.
func away(ns int, do func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// By the first thread others know the process: /proc/PID/net.
		defer runtime.UnlockOSThread()
		done := make(chan error)
		go func() { done <- away(ns, do) }()
		return <-done
	}
	home, err := unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		// A thread that cannot return stays locked, and ends with its goroutine.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return safely(do)
}

// open opens the netns that dockerd names key.
func (h *Host) open(key string) (fd int, err error) {
	s := h.sandboxes
	if s == nil {
		return -1, refuse(ErrNoEntry, "containers' network namespaces are not entered")
	}
	if err := CheckSandbox(s.dir, key); err != nil {
		return -1, err
	}
	name := path.Base(key)
	fd, err = unix.Open(path.Join(s.at, name), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := s.there(); err != nil {
			return -1, err
		}
		s.forget(name)
		return -1, refuse(ErrNoSandbox, "network namespace %s is gone", key)
	case errors.Is(err, unix.ELOOP):
		return -1, refuse(ErrBadSandbox, "network namespace %s is a symbolic link", key)
	case err != nil:
		return -1, refuse(ErrNoEntry, "network namespace %s: %v", key, err)
	}
	if err := h.check(fd, key); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// there tells why nothing can be said of what is not in the folder. One that has
// been deleted, and made anew where a bind mount does not show it, looks empty.
func (s *sandboxes) there() error {
	var st unix.Stat_t
	if err := unix.Stat(s.at, &st); err != nil {
		return refuse(ErrNoEntry, "the folder of containers' network namespaces is not to be seen: %v", err)
	}
	if st.Nlink == 0 {
		return refuse(ErrNoEntry, "the folder of containers' network namespaces has been deleted since underlay was started; restart underlay once it is there again")
	}
	return nil
}

// check tells why what has been opened as key is no netns of a container.
func (h *Host) check(fd int, key string) error {
	s, name := h.sandboxes, path.Base(key)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return refuse(ErrNoEntry, "network namespace %s: %v", key, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		// For a minute after a container's end dockerd keeps the file where the
		// netns was mounted. But so looks one whose mount does not come through
		// to this process.
		if s.known(name) {
			return refuse(ErrNoSandbox, "network namespace %s is gone", key)
		}
		return refuse(ErrNoEntry, "%s is not mounted, or its mount does not come through to underlay; mount %s with slave propagation (rslave)", key, s.dir)
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return refuse(ErrBadSandbox, "%s is no network namespace", key)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || netnsID(st) == h.netns {
		return refuse(ErrBadSandbox, "%s is the host's own network namespace", key)
	}
	s.know(name)
	return nil
}

// nsID tells one netns from another.
type nsID struct{ dev, ino uint64 }

func netnsID(s unix.Stat_t) nsID { return nsID{uint64(s.Dev), s.Ino} }

// know notes a netns. Who asks for one while it is there does not for the most
// part ask again when it is gone, so the notes would only grow.
func (s *sandboxes) know(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[name] = true
	if len(s.seen) <= s.most {
		return
	}
	maps.DeleteFunc(s.seen, func(name string, _ bool) bool {
		return errors.Is(unix.Access(path.Join(s.at, name), unix.F_OK), unix.ENOENT)
	})
	s.most = max(fewSeen, 2*len(s.seen))
}

func (s *sandboxes) known(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[name]
}

func (s *sandboxes) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, name)
}

// Sandboxes lists the netns of containers that there are, as dockerd names them.
func (h *Host) Sandboxes() ([]string, error) {
	keys, err := h.keys()
	return slices.DeleteFunc(keys, func(key string) bool {
		fs, err := bounded(func() (fs unix.Statfs_t, err error) {
			err = unix.Statfs(path.Join(h.sandboxes.at, path.Base(key)), &fs)
			return fs, err
		})
		return err != nil || fs.Type != unix.NSFS_MAGIC
	}), err
}

// keys lists what may be netns of containers.
func (h *Host) keys() ([]string, error) {
	s := h.sandboxes
	if s == nil {
		return nil, refuse(ErrNoEntry, "containers' network namespaces are not entered")
	}
	return bounded(func() (keys []string, err error) {
		if err := s.there(); err != nil {
			return nil, err
		}
		es, err := os.ReadDir(s.at)
		if err != nil {
			return nil, refuse(ErrNoEntry, "the folder of containers' network namespaces is not to be seen: %v", err)
		}
		for _, e := range es {
			if sandboxKey.MatchString(e.Name()) {
				keys = append(keys, path.Join(s.dir, e.Name()))
			}
		}
		return keys, nil
	})
}

// InsideAll pictures the links in all sandboxes whose alias begins with prefix,
// by alias. An error says that there may be more than those: ErrNoEntry, or that
// of a sandbox that could not be looked into.
func (h *Host) InsideAll(prefix string) (map[string]Found, error) {
	keys, err := h.keys()
	if err != nil {
		return nil, err
	}
	all := map[string]Found{}
	var errs []error
	for _, key := range keys {
		found, err := enter(h, key, func(r *room) (map[string]Interface, error) { return r.pictures(prefix) })
		if err != nil && !errors.Is(err, ErrNoSandbox) && !errors.Is(err, ErrBadSandbox) {
			errs = append(errs, err)
		}
		for alias, i := range found {
			all[alias] = Found{Sandbox: key, Interface: i}
		}
	}
	if len(errs) > 1 {
		return all, fmt.Errorf("%w; and %d more", errs[0], len(errs)-1)
	}
	return all, cmpErr(errs...)
}

// pictures is the links whose alias begins with prefix.
func (r *room) pictures(prefix string) (map[string]Interface, error) {
	ks, err := r.links()
	if err != nil {
		return nil, err
	}
	found := map[string]Interface{}
	for _, k := range ks {
		alias := k.Attrs().Alias
		if alias == "" || !strings.HasPrefix(alias, prefix) {
			continue
		}
		i, err := r.picture(k)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[alias] = i
	}
	return found, nil
}

// room is the netns of a container, on a thread that is there. Its calls are not
// bounded one by one, but all together by enter: to wait for another thread
// costs much where processors are scarce.
type room struct {
	fd     int                      // of the netns
	nl     *netlink.Handle          // there
	strict map[int]*nl.SocketHandle // there
	told   map[int]*nl.SocketHandle // there, once it is needed; see Host
	groups []settingGroup
}

// enter runs do in a sandbox, for as long as Timeout.
func enter[T any](h *Host, sandbox string, do func(*room) (T, error)) (T, error) {
	v, err := bounded(func() (v T, err error) {
		fd, err := h.open(sandbox)
		if err != nil {
			return v, err
		}
		defer unix.Close(fd)
		err = away(fd, func() error {
			r, err := newRoom(fd, h.sandboxes.settings)
			if err == nil {
				defer r.leave()
				v, err = do(r)
			}
			return err
		})
		return v, err
	})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EPERM) && !errors.Is(err, ErrPermission) {
		err = Explain(err, "", "entering the network namespace "+sandbox)
	}
	return v, err
}

func newRoom(fd int, groups []settingGroup) (r *room, err error) {
	r = &room{fd: fd, groups: groups}
	if r.nl, err = handle(); err != nil {
		return nil, err
	}
	if r.strict, err = strict(); err != nil {
		r.leave()
		return nil, err
	}
	return r, nil
}

func (r *room) leave() {
	r.nl.Close()
	for _, s := range []map[int]*nl.SocketHandle{r.strict, r.told} {
		if s != nil {
			s[unix.NETLINK_ROUTE].Close()
		}
	}
}

func (r *room) links() ([]netlink.Link, error) {
	ks, err := patient(r.nl.LinkList)
	return ks, Explain(err, "", "listing the links of the container")
}

// link is the link of that alias.
func (r *room) link(alias string) (netlink.Link, error) {
	ks, err := r.links()
	if err != nil {
		return nil, err
	}
	for _, k := range ks {
		if alias != "" && k.Attrs().Alias == alias {
			return k, nil
		}
	}
	return nil, refuse(ErrNotFound, "the container has no link %q any more", alias)
}

// Inside pictures the link of that alias in a sandbox. ErrNotFound: the sandbox
// has none; ErrNoSandbox: there is no such sandbox any more; ErrNoEntry: it
// cannot be entered, and who knows; ErrBadSandbox: it is none.
func (h *Host) Inside(sandbox, alias string) (Interface, error) {
	return enter(h, sandbox, func(r *room) (Interface, error) {
		k, err := r.link(alias)
		if err != nil {
			return Interface{}, err
		}
		return r.picture(k)
	})
}

// RaiseMTU raises the MTU of the link of that alias in a sandbox, if it is less:
// the kernel lowers it with the parent's, and raises no macvlan link's.
func (h *Host) RaiseMTU(sandbox, alias string, mtu int) error {
	_, err := enter(h, sandbox, func(r *room) (struct{}, error) {
		k, err := r.link(alias)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, r.raiseMTU(k, mtu)
	})
	return err
}

func (r *room) raiseMTU(k netlink.Link, mtu int) error {
	a := k.Attrs()
	if a.MTU >= mtu {
		return nil
	}
	return Explain(r.nl.LinkSetMTU(k, mtu), "", fmt.Sprintf("setting the MTU of the container's link %s to %d", a.Name, mtu))
}

// AddRoutes makes routes by the link of that alias in a sandbox; where the container
// has one to the same destination, that one stays.
func (h *Host) AddRoutes(sandbox, alias string, routes []InterfaceRoute) error {
	_, err := enter(h, sandbox, func(r *room) (struct{}, error) {
		k, err := r.link(alias)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, r.complete(routes, k.Attrs().Index, true)
	})
	return err
}

// Readdress gives the link of that alias in a sandbox an address in the place of
// another of its family, and its routes the new one for a source and router for a next hop. Where
// the address stays, only the default route is touched. What has been done already is success.
func (h *Host) Readdress(sandbox, alias string, c Readdressing) error {
	_, err := enter(h, sandbox, func(r *room) (struct{}, error) {
		k, err := r.link(alias)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, r.readdress(k, c)
	})
	return err
}

// Without its last address a link loses all routes of the family, so that the new
// one comes first; without its first of a subnet it may lose the others there
// (net/ipv4/devinet.c, __inet_del_ifa), so that they are set once more.
func (r *room) readdress(k netlink.Link, c Readdressing) error {
	name := k.Attrs().Name
	was, err := r.picture(k)
	if err != nil {
		return err
	}
	want := c.Of(was)
	give := func() error {
		for _, p := range want.Addrs {
			a := &netlink.Addr{IPNet: ipnet(p)}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD // as dockerd has it
			}
			err := r.nl.AddrAdd(k, a)
			if (p.Addr().Is4() || p == c.Is) && err != nil && !errors.Is(err, unix.EEXIST) {
				return Explain(err, "", fmt.Sprintf("giving the container's link %s the address %s", name, p))
			}
		}
		return nil
	}
	if err := give(); err != nil {
		return err
	}
	for i, n := range was.Routes {
		if n != want.Routes[i] {
			err := r.nl.RouteDel(&netlink.Route{LinkIndex: k.Attrs().Index, Dst: ipnet(n.To), Gw: n.Via.AsSlice(), Table: n.Table, Priority: n.Metric, Tos: n.TOS, Scope: netlink.Scope(n.Scope), Protocol: netlink.RouteProtocol(n.Protocol)})
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return Explain(err, "", "taking the container's route "+n.String())
			}
		}
	}
	if c.Was != c.Is { // or connections would break
		if err := r.nl.AddrDel(k, &netlink.Addr{IPNet: ipnet(c.Was)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return Explain(err, "", fmt.Sprintf("taking the address %s from the container's link %s", c.Was, name))
		}
	}
	if err := give(); err != nil {
		return err
	}
	return r.complete(want.Routes, k.Attrs().Index, true)
}

// RemoveInside deletes the link of that alias in a sandbox; an absent one is
// success, and so is an absent sandbox.
func (h *Host) RemoveInside(sandbox, alias string) error {
	_, err := enter(h, sandbox, func(r *room) (struct{}, error) {
		k, err := r.link(alias)
		if err == nil {
			err = r.nl.LinkDel(k)
		}
		if absent(err) || errors.Is(err, ErrNotFound) {
			err = nil
		}
		return struct{}{}, Explain(err, "", "deleting the container's link of "+alias)
	})
	if errors.Is(err, ErrNoSandbox) {
		return nil
	}
	return err
}

// get is the link of that name; ErrNotFound where there is none.
func (r *room) get(name string) (netlink.Link, error) {
	k, err := patient(func() (netlink.Link, error) { return r.nl.LinkByName(name) })
	if absent(err) {
		return nil, NotFound("link", name)
	}
	return k, Explain(err, "", "looking up the container's link "+name)
}

// most is how many addresses and how many routes of a family a container's link is
// pictured with: a router in a container may have a million.
const most = 1024

// dump asks for all of a kind, and has read take from each answer what it is and whether
// it is wanted, beside the number of those before.
func dump[T any](r *room, kind int, answer uint16, read func(b []byte, n int) (T, bool), data ...nl.NetlinkRequestData) ([]T, error) {
	return patient(func() (all []T, err error) {
		q := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
		q.Sockets, q.Data = r.strict, data
		err = q.ExecuteIter(unix.NETLINK_ROUTE, answer, func(b []byte) bool {
			if v, ok := read(b, len(all)); ok {
				all = append(all, v)
			}
			return true
		})
		if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			return nil, err
		}
		return all, err
	})
}

// raws parses the attributes of one answer to a question, which follow a header
// of that size; nil where it is no such answer.
func raws(b []byte, header int) map[uint16][]byte {
	if len(b) < header {
		return nil
	}
	as, err := nl.ParseRouteAttr(b[header:])
	if err != nil {
		return nil
	}
	m := make(map[uint16][]byte, len(as))
	for _, a := range as {
		m[a.Attr.Type&^uint16(unix.NLA_F_NESTED)] = a.Value
	}
	return m
}
