package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/driver"
	"underlay/internal/pause"
	"underlay/internal/store"
	"underlay/ipam"
	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
	"underlay/ipam/lan"
	"underlay/ipam/lease"
	"underlay/ipam/probe"
	"underlay/netlinkutil"
)

// StateFile is the name of the state file in the state folder.
const StateFile = "underlay.db"

// bootID is a file with a UUID that the kernel draws at each boot
// (drivers/char/random.c).
const bootID = "/proc/sys/kernel/random/boot_id"

// Config is what a user sets.
type Config struct {
	Socket       string // path of the unix socket
	State        string // folder of the state file
	DefaultPools []ipam.DefaultPool
	Sandboxes    Sandboxes
	Version      string
	Log          *logrus.Logger
	Kernel       Kernel // nil: the netns that the plugin runs in, and its LANs
	// Grace is how long what nobody is known to need is kept, should dockerd come
	// back to it; 0 stands for the default.
	Grace time.Duration
	// Metrics is where they are served besides the socket; zero: nowhere.
	Metrics netip.AddrPort
	Now     func() time.Time // nil: time.Now

	faults
}

func (c *Config) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// SandboxDir is where dockerd keeps containers' network namespaces, unless it has
// another --exec-root.
const SandboxDir = "/var/run/docker/netns"

// Sandboxes is the folder of containers' network namespaces.
type Sandboxes struct {
	Dir   string // as dockerd names it in SandboxKeys; "" stands for SandboxDir
	At    string // where it is seen here
	Enter bool   // whether interfaces may be made again in them
}

// enter lets the driver into containers' namespaces, if it may go there.
func (s Sandboxes) enter(host *netlinkutil.Host, log *logrus.Logger) {
	const without = "interfaces that are lost with their parent come back when their containers are restarted"
	if !s.Enter {
		log.Infof("REBUILD is off: %s", without)
		return
	}
	if err := host.EnterSandboxes(s.Dir, s.At); err != nil {
		log.Warnf("%s: %v", without, err)
	}
}

// check refuses the path of a namespace that is none of dockerd's; "" is none.
func (s Sandboxes) check(key string) error {
	if key == "" {
		return nil
	}
	if err := netlinkutil.CheckSandbox(cmp.Or(s.Dir, SandboxDir), key); err != nil {
		return badRequest{err}
	}
	return nil
}

// Kernel is the host's network stack. *netlinkutil.Host is the real one.
type Kernel interface {
	driver.Kernel
	lan.Kernel
}

// Plugin is the running daemon.
type Plugin struct {
	config   Config
	started  time.Time
	listener net.Listener
	server   *server
	metrics  *metrics
	tried    chan struct{} // closed once the state is loaded, or could not be the first time
	loaded   chan struct{} // closed once the state is loaded, or never will be

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	workers sync.WaitGroup
	stirred chan struct{} // networks may have been abandoned: see forgetAbandoned

	parts  parts
	failed atomic.Pointer[error] // why the state is not loaded
}

// parts are what needs the state.
type parts struct {
	kernel Kernel
	host   *netlinkutil.Host // nil with a kernel that is not the real one
	prober *probe.Prober     // nil with a kernel that is not the real one
	store  *store.Store
	driver *driver.Driver
	ipam   *ipam.IPAM
	dhcp   *dhcp.Client
	dhcp6  *dhcp6.Client
	book   *lease.Book

	sightings <-chan probe.Sighting // of prober
}

// Listen opens the socket and answers on it; what needs the state waits until
// it is loaded. dockerd gives up on a plugin whose socket comes late.
func Listen(config Config) (*Plugin, error) {
	l, err := listen(config.Socket)
	if err != nil {
		return nil, err
	}
	p := &Plugin{config: config, started: config.now(), listener: l, tried: make(chan struct{}), loaded: make(chan struct{}), stirred: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.metrics = newMetrics(p)
	p.server = newServer(config.Log, p.ready)
	p.server.metrics, p.server.panicked = p.metrics, p.panicked
	p.server.http.RegisterOnShutdown(l.lastCalls)
	p.routeNetwork()
	p.routeIPAM()
	p.routeState()
	p.routeStatus()
	p.routeExport()
	for path := range p.server.calls {
		p.metrics.expect(path)
	}
	p.config.server(p.server)
	p.metrics.listen(config.Metrics)
	go p.load()
	return p, nil
}

// Serve answers calls until Close.
func (p *Plugin) Serve() error {
	p.config.Log.Infof("underlay %s listens on %s, state in %s", p.config.Version, p.config.Socket, p.config.State)
	err := p.server.http.Serve(p.listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close stops to listen, waits for the calls under way, and closes the state.
func (p *Plugin) Close() error {
	// docker plugin disable kills after 10 s; Shutdown waits 5 s for a
	// connection that has not carried a call yet.
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	err := p.server.http.Shutdown(ctx)
	if err != nil {
		err = fmt.Errorf("calls under way are left behind: %w", err)
	}
	p.metrics.close()
	p.cancel()
	<-p.loaded
	if p.failed.Load() != nil {
		return err
	}
	p.parts.driver.Close()
	p.parts.ipam.Close()
	p.parts.dhcp.Close()
	p.parts.dhcp6.Close()
	if p.parts.host != nil {
		p.parts.prober.Close()
	}
	p.workers.Wait()
	err = errors.Join(err, p.parts.store.Close())
	if p.parts.host != nil {
		p.parts.host.Close()
	}
	return err
}

// ready waits until the state is loaded, or says why it is not.
func (p *Plugin) ready(ctx context.Context) error {
	select {
	case <-p.tried:
	case <-ctx.Done():
		return fmt.Errorf("underlay is still loading its state from %s: %w", p.config.State, ctx.Err())
	}
	if err := p.failed.Load(); err != nil {
		return fmt.Errorf("%w; underlay tries again every %v", *err, loadAgain)
	}
	return nil
}

// panicked logs where a call has panicked, which is where it is called from. A lock that
// the call held is held for ever, and all that takes it waits: a plugin that is stuck so
// ends, and is started again. What is on the disk is whole at each moment.
func (p *Plugin) panicked(what any) {
	p.config.Log.Errorf("a bug of underlay's, please report it: %v\n%s", what, debug.Stack())
	if !p.isLoaded() {
		return
	}
	go func() {
		look := func() { p.status(); p.leases(); p.conflicts(); p.parts.dhcp.Status(); p.parts.dhcp6.Leases() }
		if !within(3*deadline, look) { // the kernel may take one to answer
			p.config.Log.Fatal("what has failed before holds a lock: underlay ends here, to be started again")
		}
	}()
}

// within tells whether do ends in that time, be it in a panic.
func within(d time.Duration, do func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = caught(func() (none, error) { do(); return none{}, nil }, func(any) {})
	}()
	late := time.NewTimer(d)
	defer late.Stop()
	select {
	case <-done:
		return true
	case <-late.C:
		return false
	}
}

// loadAgain is how long a state that could not be loaded is left alone: a disk
// may have room again, or another process let go of the file.
const loadAgain = 2 * time.Second

func (p *Plugin) load() {
	defer close(p.loaded)
	tried := sync.OnceFunc(func() { close(p.tried) })
	defer tried()
	start, said := time.Now(), ""
	for {
		parts, err := p.open()
		if err == nil {
			p.parts = parts
			break
		}
		p.failed.Store(&err)
		tried()
		if err.Error() != said {
			said = err.Error()
			p.config.Log.Errorf("every call fails until this is mended: %v", err)
		}
		if pause.For(p.ctx, loadAgain) != nil {
			return
		}
	}
	defer p.failed.Store(nil)
	networks, endpoints := p.parts.driver.Networks()
	p.config.Log.Infof("loaded %d networks and %d endpoints in %s ms", len(networks), endpoints, milliseconds(start))
	p.parts.driver.Recover() // makes the parents that the IPAM is to watch
	known := map[string]ipam.NetworkPools{}
	for i := range networks {
		known[networks[i].ID] = pools(&networks[i])
	}
	p.parts.ipam.Know(known)
	p.parts.book.Resume(p.held)
	p.workers.Go(p.forgetAbandoned)
	if p.parts.host != nil {
		// From here on most of what is taken is an answer, and garbage soon. A start
		// with many records is faster without.
		debug.SetGCPercent(50)
		p.workers.Go(p.follow)
		p.workers.Go(p.hear)
		// What a look, a person's too, has taken is the host's again. The runtime itself
		// would keep it, and wake up to count it, once in two minutes.
		p.workers.Go(func() { p.parts.driver.Watch(p.parts.host, debug.FreeOSMemory) })
	}
}

func (p *Plugin) open() (_ parts, err error) {
	o := parts{kernel: p.config.Kernel}
	if o.kernel == nil {
		host, openErr := netlinkutil.Open()
		if openErr != nil {
			return o, openErr
		}
		defer func() {
			if err != nil {
				host.Close()
			}
		}()
		o.kernel, o.host = host, host
	}
	if o.store, err = store.Open(filepath.Join(p.config.State, StateFile)); err != nil {
		return o, err
	}
	if aside := o.store.Aside(); aside != nil && aside.Cause != nil {
		p.config.Log.Errorf("the state file could not be used and is %s now: %v; underlay starts with nothing: docker network rm and create its networks again, or disable the plugin and put a good copy back", aside.Path, aside.Cause)
	} else if aside != nil {
		p.config.Log.Warnf("an earlier start has set the state file aside as %s; delete that once all networks work", aside.Path)
	}
	p.config.store(o.store)
	defer func() {
		if err != nil {
			o.store.Close()
		}
	}()
	if o.host != nil {
		p.config.Sandboxes.enter(o.host, p.config.Log)
	}
	holdings, leaser := &holdings{}, &leaser{}
	settings := ipam.Config{
		DefaultPools: p.config.DefaultPools, Host: lan.New(o.kernel, lan.ResolvConf), Log: p.config.Log.WithField("part", "ipam"),
		Grace: p.config.Grace, Now: p.config.Now,
	}
	var announcer driver.Announcer
	if p.config.Kernel == nil {
		// The prober hears nothing before the IPAM tells it where to listen.
		// Answers to probes must not wait in its socket for the IPAM's lock.
		sightings := make(chan probe.Sighting, 1024)
		o.sightings = sightings
		o.prober = probe.New(p.config.Log.WithField("part", "probe"), func(s probe.Sighting) {
			select {
			case sightings <- s:
			default: // it will be heard again
			}
		})
		settings.Detector, announcer = o.prober, o.prober
	}
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return o, fmt.Errorf("this boot of the host has no ID: %w", err)
	}
	o.driver, err = driver.New(p.config.kernel(o.kernel), o.store, driver.Config{
		Holdings: holdings, Leaser: leaser, Announcer: announcer, Log: p.config.Log, Grace: p.config.Grace, Boot: strings.TrimSpace(string(boot)),
	})
	if err != nil {
		return o, err
	}
	if err = p.openLeases(&o); err != nil {
		return o, err
	}
	defer func() {
		if err != nil {
			o.dhcp.Close()
			o.dhcp6.Close()
		}
	}()
	settings.Leases = leases{o.book, o.driver, o.kernel}
	o.ipam, err = ipam.New(o.store, o.driver, settings)
	holdings.IPAM, holdings.book, leaser.Book, leaser.kernel = o.ipam, o.book, o.book, o.kernel
	return o, err
}

// follow tells the prober and the IPAM of links that change. The start of a
// container changes several, so the prober looks at its links at most ten times
// a second.
func (p *Plugin) follow() {
	changed := make(chan struct{}, 1)
	p.workers.Go(func() {
		for {
			select {
			case <-changed:
				p.parts.prober.Rouse()
				p.parts.dhcp.Rouse()
				p.parts.dhcp6.Rouse()
			case <-p.ctx.Done():
				return
			}
			if pause.For(p.ctx, 100*time.Millisecond) != nil {
				return
			}
		}
	})
	err := p.parts.host.Changes(p.ctx, func(c netlinkutil.Change) {
		p.metrics.linkChanged(c)
		switch {
		case c.Lost:
			p.parts.ipam.Doubt("")
		case c.Gone || !c.Link.Carrier:
			p.parts.ipam.Doubt(c.Link.Name)
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil && p.ctx.Err() == nil {
		p.config.Log.Errorf("link changes are no longer heard of, and a parent that was down may count as down still: %v", err)
	}
}

// hear tells the IPAM what the prober hears.
func (p *Plugin) hear() {
	for {
		select {
		case s := <-p.parts.sightings:
			p.parts.ipam.Heard(ipam.Sighting(s))
		case <-p.ctx.Done():
			return
		}
	}
}

// holdings hands the IPAM to the driver, which is made before it.
type holdings struct {
	*ipam.IPAM
	book *lease.Book
}

// MTU is that which the server tells with an address.
func (h *holdings) MTU(addr netip.Addr) int {
	e, _ := h.book.Given(addr)
	return e.MTU
}

// Routes are those that the server tells with an address.
func (h *holdings) Routes(addr netip.Addr) []driver.Route {
	e, _ := h.book.Given(addr)
	return leasedRoutes(e)
}

// MAC is that by which a server knows the container that has an address, nil where
// it goes by a client identifier.
func (h *holdings) MAC(addr netip.Addr) (net.HardwareAddr, bool) {
	e, ok := h.book.Given(addr)
	if e.Shared {
		return nil, ok
	}
	return e.Lease.MAC, ok
}
