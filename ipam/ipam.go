package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/btree"

	"underlay/internal/store"
	"underlay/internal/wall"
)

// What a refusal is about; the text around it names the case and the remedy.
var (
	ErrUnknownPool = errors.New("unknown pool")
	ErrOverlap     = errors.New("subnet is not free")
	ErrTaken       = errors.New("address is taken")
	ErrUnusable    = errors.New("address cannot be given out")
	ErrExhausted   = errors.New("exhausted")
)

// grace is for how long something that nobody is known to need stays held. It
// must outlast what dockerd may do between two calls that belong together: it
// repeats a failing call for 15 s.
const grace = time.Minute

// replayWithin is how long dockerd may take from connecting to the replay of
// its networks, and from one network to the next, while it loads containers and
// waits for other plugins. If nothing comes, it has only connected anew: after
// docker plugin enable, or docker swarm init.
const replayWithin = 5 * time.Minute

// Config is what a plugin's settings say about addresses.
type Config struct {
	// DefaultPools are where a network with --ipam-opt pool=private gets a subnet. Nil stands
	// for 10.210.0.0/16 in /24s and a unique local /48 of this host in /64s.
	DefaultPools []DefaultPool
	Host         Host          // nil: no pool can be read from a NIC
	Detector     Detector      // nil: no LAN is asked about anything
	Leases       Leases        // nil: no server is asked for addresses
	Log          *logrus.Entry // nil: no log
	// Grace is for how long something that nobody is known to need stays held;
	// 0 stands for a minute.
	Grace time.Duration
	Now   func() time.Time // nil: time.Now
}

// Users knows which addresses are in use by endpoints, whatever dockerd says.
// Its methods are called with and without IPAM's lock: they must not call back.
type Users interface {
	// Holder tells who has an address, in words such as
	// "endpoint 1a2b3c4d5e6f of network 9f8e7d6c5b4a".
	Holder(addr netip.Addr) (what string, ok bool)
	// MAC returns the MAC of the endpoint that has an address.
	MAC(addr netip.Addr) (mac net.HardwareAddr, ok bool)
}

// IPAM holds all pools. Its methods may be called in parallel.
type IPAM struct {
	store      *store.Store
	users      Users
	host       Host
	detector   Detector
	leases     Leases
	defaults   []DefaultPool
	log        *logrus.Entry
	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	scouts     sync.WaitGroup
	watching   sync.Mutex  // held while the detector is told where to listen
	rewatching atomic.Bool // a telling is due
	hosting    sync.Mutex  // held while the host is asked for its addresses
	now        func() time.Time
	nap        func() time.Duration // to the next look at all that is looked at each minute
	grace      time.Duration

	mu        sync.Mutex
	pools     *btree.BTreeG[*pool] // by subnet; no two overlap
	networks  map[string]NetworkPools
	naming    map[netip.Prefix]map[string]struct{} // subnet to the networks that name it
	daemon    uint64                               // dockerd's generation: how often it has connected
	heard     time.Time                            // when it connected, or went on with its replay
	replayed  uint64                               // the latest generation known to have replayed its networks
	flawed    uint64                               // the latest generation that was refused a pool, which may have been a replay's
	knows     bool                                 // the networks: see Know
	timed     bool                                 // a clearing of leftovers is due
	taken     map[netip.Addr]string                // by the host itself; see Host
	takenAt   time.Time
	takenTook time.Duration // to look them up
	lifted    bool          // dockerd is 28 or later: it accepts pools that overlap the host's routes
	looking   bool          // lookAround is due
	looker    *time.Timer
	clearer   *time.Timer
}

// New loads the pools and addresses on disk. Networks are not stored here:
// Know must be called with them before the first request.
func New(st *store.Store, users Users, cfg Config) (*IPAM, error) {
	i := &IPAM{
		store:    st,
		users:    users,
		host:     cfg.Host,
		detector: cfg.Detector,
		leases:   cfg.Leases,
		defaults: cfg.DefaultPools,
		log:      cfg.Log,
		now:      cfg.Now,
		nap:      wall.Nap,
		grace:    cmp.Or(cfg.Grace, grace),
		pools:    btree.NewBTreeGOptions(func(a, b *pool) bool { return a.subnet.Addr().Less(b.subnet.Addr()) }, btree.Options{NoLocks: true}),
		networks: map[string]NetworkPools{},
		naming:   map[netip.Prefix]map[string]struct{}{},
	}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	if i.now == nil {
		i.now = time.Now
	}
	if i.log == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		i.log = logrus.NewEntry(quiet)
	}
	if err := i.load(); err != nil {
		return nil, err
	}
	if i.defaults == nil {
		var err error
		if i.defaults, err = builtinPools(st); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// Close ends what works in the background.
func (i *IPAM) Close() {
	i.cancel()
	i.mu.Lock()
	for _, t := range []*time.Timer{i.looker, i.clearer} {
		if t != nil {
			t.Stop()
		}
	}
	i.mu.Unlock()
	i.scouts.Wait()
}

// Daemon says that dockerd has connected. It may have been restarted, and may
// then ask again for all that it holds.
func (i *IPAM) Daemon() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.daemon++
	i.lifted = false
	i.heard = i.now()
}

// AcceptsOverlap says that this dockerd does not look whether a pool overlaps
// the host's routes: Docker 28 and later have an address space without overlap
// check, and a call that earlier ones lack.
func (i *IPAM) AcceptsOverlap() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lifted = true
}

// Name returns the name of the container that an address was given to, if
// dockerd has told it (Docker 29 and later).
func (i *IPAM) Name(addr netip.Addr) (name string, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.around(addr)
	if p == nil {
		return "", false
	}
	h := p.held[addr]
	if h == nil || h.name == "" {
		return "", false
	}
	return h.name, true
}

// Held tells whether an address is held.
func (i *IPAM) Held(addr netip.Addr) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.around(addr)
	return p != nil && p.held[addr] != nil
}

// holder asks the driver who has an address.
func (i *IPAM) holder(addr netip.Addr) (what string, ok bool) {
	if i.users == nil {
		return "", false
	}
	return i.users.Holder(addr)
}

// namers returns how often known networks reserve an address of a pool.
func (i *IPAM) namers(p *pool, addr netip.Addr) int {
	n := 0
	for id := range i.naming[p.subnet] {
		for _, reserved := range i.networks[id].Reserved {
			if reserved == addr {
				n++
			}
		}
	}
	return n
}

// batch is a set of changes that go to disk as one.
type batch struct {
	changes []store.Change
	settle  []func(err error) // run under the lock once the outcome is known
}

func (b *batch) add(c store.Change)         { b.changes = append(b.changes, c) }
func (b *batch) onSettle(f func(err error)) { b.settle = append(b.settle, f) }

func (b *batch) finish(err error) {
	for _, f := range b.settle {
		f(err)
	}
}

// commit puts a batch on disk. It is called with the lock held, so that
// batches reach the disk in the order in which they were decided on, and
// returns without the lock. Should ctx end first, the outcome is settled in the
// background, and a success that came too late is taken back by late, if given.
func (i *IPAM) commit(ctx context.Context, b *batch, late func() error) error {
	if len(b.changes) == 0 {
		b.finish(nil)
		i.mu.Unlock()
		return nil
	}
	answer := i.store.Submit(b.changes...)
	i.mu.Unlock()
	settle := func(err error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		b.finish(err)
	}
	select {
	case err := <-answer:
		settle(err)
		return err
	case <-ctx.Done():
		go func() {
			err := <-answer
			settle(err)
			if err == nil && late != nil {
				err = late()
			}
			if err != nil {
				i.log.WithError(err).Warn("a call given up has failed in the background")
			}
		}()
		return fmt.Errorf("state is not on disk yet; try again: %w", ctx.Err())
	}
}

// await waits for something unsettled.
func await(ctx context.Context, settled <-chan struct{}) error {
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("an earlier change is not on disk yet; try again: %w", ctx.Err())
	}
}
