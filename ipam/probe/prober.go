package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"underlay/internal/wall"
)

// Sighting is what a frame told.
type Sighting struct {
	Link string
	Addr netip.Addr
	MAC  net.HardwareAddr

	// Claim: the sender only asks whether it may have Addr, by an ARP probe
	// (RFC 5227 2.1.1) or a solicitation of duplicate address detection (RFC
	// 4862 5.4.3).
	Claim bool
}

// Health is how it stands with a link that is watched or answered on.
type Health struct {
	Link  string    `json:"link"`
	Blind string    `json:"blind,omitempty"` // why nothing is heard there, "eth0 is down"; "" is well
	Since time.Time `json:"since"`           // since when it is so
}

// ErrBlind is wrapped by errors that say why a LAN could not be asked.
var ErrBlind = errors.New("nobody can be asked who has an address there")

// ErrBusy is wrapped by errors that say that a LAN was asked, but that its answers
// were lost: on a host that is too busy, or in a storm. It is a time-out: ask
// again.
var ErrBusy = fmt.Errorf("this host is too busy to hear the answers: %w", context.DeadlineExceeded)

var errClosed = errors.New("underlay is shutting down")

const (
	// retry is when a link that has just gone blind is looked at again, lest an
	// event was missed. From there it takes twice as long each time, up to a minute.
	retry = 3 * time.Second

	// hasty is the age up to which a tap that failed with its link up is left
	// to the retry, else a socket that always fails would be reopened without
	// end.
	hasty = time.Second
)

// Prober asks and hears LANs. Its methods may be called in parallel.
type Prober struct {
	log    logrus.FieldLogger
	heard  func(Sighting)
	kernel kernel
	wg     sync.WaitGroup

	// macs are those of open taps, and of how many: of two NICs on one LAN, each
	// hears the other's questions. Changed, as a whole, under mu.
	macs atomic.Pointer[map[mac]int]

	mu     sync.Mutex
	links  map[string]*link // that are watched or in use
	timer  *time.Timer      // set while one is blind
	wait   time.Duration    // until it rings next
	closed bool
}

// link is a name that is watched or in use. One taken off Prober.links never
// comes back.
type link struct {
	name    string
	watched atomic.Bool             // changed under Prober.mu
	answers atomic.Pointer[answers] // likewise; nil: none

	// guarded by Prober.mu
	users int
	blind error
	since time.Time

	turn sync.Mutex // taken before Prober.mu
	tap  *tap       // guarded by turn
}

// New makes a prober that watches nothing yet. heard is called from listening
// goroutines, in parallel for different links, and must be quick. The same
// word of the same machine is told once in five seconds.
func New(log logrus.FieldLogger, heard func(Sighting)) *Prober {
	p := &Prober{log: log, heard: heard, kernel: host(), links: map[string]*link{}}
	p.macs.Store(&map[mac]int{})
	return p
}

// Watch listens on exactly these links from now on. A link that is absent or
// down is blind until it comes.
func (p *Prober) Watch(links []string) {
	var changed []*link
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	for _, name := range links {
		if l := p.get(name); !l.watched.Load() {
			if !l.kept() {
				l.blind, l.since = nil, time.Now()
			}
			l.watched.Store(true)
			changed = append(changed, l)
		}
	}
	for _, l := range p.links {
		if l.watched.Load() && !slices.Contains(links, l.name) {
			l.watched.Store(false)
			p.drop(l)
			changed = append(changed, l)
		}
	}
	p.mu.Unlock()
	for _, l := range changed {
		p.settle(l, true)
	}
}

// Rouse says that links have come, gone or changed.
func (p *Prober) Rouse() {
	for _, l := range p.kept() {
		p.settle(l, true)
	}
}

// Health tells of every link that is watched or answered on, by name, as it is
// now.
func (p *Prober) Health() []Health {
	p.Rouse()
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Health
	for _, l := range p.links {
		if !l.kept() {
			continue
		}
		h := Health{Link: l.name, Since: l.since}
		if l.blind != nil {
			h.Blind = l.blind.Error()
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b Health) int { return strings.Compare(a.Link, b.Link) })
	return all
}

// Close ends all listening and every probe, and waits for what it had begun.
// It must not be called from heard.
func (p *Prober) Close() {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil && p.timer.Stop() {
		p.wg.Done()
	}
	p.timer = nil
	links := slices.Collect(maps.Values(p.links))
	p.mu.Unlock()
	for _, l := range links {
		p.settle(l, false)
	}
	p.wg.Wait()
}

// kept says whether the link is to be heard until further notice.
func (l *link) kept() bool { return l.watched.Load() || l.answers.Load() != nil }

func (p *Prober) kept() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*link
	for _, l := range p.links {
		if l.kept() {
			all = append(all, l)
		}
	}
	return all
}

// get is with mu held.
func (p *Prober) get(name string) *link {
	l := p.links[name]
	if l == nil {
		l = &link{name: name}
		p.links[name] = l
	}
	return l
}

// drop is with mu held; whoever calls it settles l afterwards.
func (p *Prober) drop(l *link) bool {
	if l.kept() || l.users > 0 || p.links[l.name] != l {
		return false
	}
	delete(p.links, l.name)
	return true
}

// wanted says whether l needs a tap.
func (p *Prober) wanted(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed && (l.kept() || l.users > 0)
}

// use is a tap for a question or an announcement; release gives it back.
func (p *Prober) use(name string) (*link, *tap, error) {
	p.mu.Lock()
	l := p.get(name)
	l.users++
	p.mu.Unlock()
	t, err := p.tap(l, true)
	if err != nil {
		p.release(l)
		return nil, nil, fmt.Errorf("%w: %w", err, ErrBlind)
	}
	return l, t, nil
}

func (p *Prober) release(l *link) {
	p.mu.Lock()
	l.users--
	dropped := p.drop(l)
	p.mu.Unlock()
	if dropped {
		p.settle(l, false)
	}
}

// settle is tap for those who need none.
func (p *Prober) settle(l *link, reopen bool) {
	_, _ = p.tap(l, reopen) // noted
}

// tap gives l the tap that its state allows, and notes if there is none.
// Without reopen, a tap that failed while the link stayed as it is is not
// replaced.
func (p *Prober) tap(l *link, reopen bool) (*tap, error) {
	l.turn.Lock()
	defer l.turn.Unlock()
	if !p.wanted(l) {
		p.shut(l, errClosed)
		return nil, errClosed
	}
	ifi, err := p.look(l.name)
	t := l.tap
	same := t != nil && err == nil && t.index == ifi.Index && t.mac == mac(ifi.HardwareAddr)
	switch {
	case err != nil:
		p.shut(l, err)
	case same && !t.isOver():
	case same && !reopen:
		err = t.reason()
		p.shut(l, err)
	default:
		p.shut(l, fmt.Errorf("%s has changed", l.name))
		err = p.open(l, ifi)
	}
	p.note(l, err)
	if err != nil {
		return nil, err
	}
	return l.tap, nil
}

// look finds what there is to bind to, or why there is nothing.
func (p *Prober) look(name string) (*net.Interface, error) {
	ifi, err := p.kernel.find(name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%s is not there", name)
	case err != nil:
		return nil, fmt.Errorf("looking at %s: %w", name, err)
	case ifi.Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%s is down", name)
	case ifi.Flags&net.FlagRunning == 0:
		return nil, fmt.Errorf("%s has no carrier", name)
	case len(ifi.HardwareAddr) != len(mac{}) || mac(ifi.HardwareAddr) == mac{}:
		return nil, fmt.Errorf("%s has no Ethernet address", name)
	}
	return ifi, nil
}

// open, shut are with turn held.
func (p *Prober) open(l *link, ifi *net.Interface) error {
	t, err := p.kernel.openTap(ifi, p.ours, func(s sight) {
		if l.watched.Load() {
			p.heard(Sighting{Link: l.name, Addr: s.addr, MAC: s.mac.addr(), Claim: s.claim})
		}
	})
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w; underlay needs CAP_NET_RAW", err)
		}
		return fmt.Errorf("packet socket on %s: %w", l.name, err)
	}
	l.tap = t
	p.count(t.mac, 1)
	for _, socket := range []line{t.arp, t.ndp} {
		p.wg.Go(func() {
			err := t.listen(socket, t.hear)
			if t.end(fmt.Errorf("packet socket on %s: %w", l.name, err)) {
				p.settle(l, time.Since(t.opened) > hasty)
			}
		})
	}
	if l.answers.Load() != nil {
		p.wg.Go(func() { p.serve(l, t) })
	}
	return nil
}

// ours says whether a MAC is that of a link in use.
func (p *Prober) ours(m mac) bool {
	return (*p.macs.Load())[m] > 0
}

// count counts the taps with that MAC.
func (p *Prober) count(m mac, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	macs := maps.Clone(*p.macs.Load())
	if macs[m] += n; macs[m] == 0 {
		delete(macs, m)
	}
	p.macs.Store(&macs)
}

func (p *Prober) shut(l *link, why error) {
	t := l.tap
	if t == nil {
		return
	}
	l.tap = nil
	p.count(t.mac, -1)
	p.wg.Add(1) // before its listeners can be done
	t.end(why)
	go func() { // the kernel may take milliseconds to let go
		defer p.wg.Done()
		t.close()
	}()
}

// note records whether a link that is kept is blind, and says so when that changes.
func (p *Prober) note(l *link, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !l.kept() || p.closed {
		return
	}
	was, since := l.blind, l.since
	l.blind = err
	changed := (was == nil) != (err == nil)
	if err != nil {
		p.arm(changed)
	}
	if !changed {
		return
	}
	l.since = time.Now()
	log := p.log.WithField("link", l.name)
	if err != nil {
		what := "addresses in use there are not noticed"
		if !l.watched.Load() {
			what = "nobody is answered there"
		}
		log.Warnf("%v: %s until it is back", err, what)
	} else {
		log.Infof("%s is heard again, after %s", l.name, l.since.Sub(since).Round(time.Millisecond))
	}
}

// arm is with mu held. Afresh is for a link that has just gone blind.
func (p *Prober) arm(afresh bool) {
	if afresh {
		p.wait = retry
	}
	if p.timer != nil {
		if !afresh || !p.timer.Stop() {
			return // or it rings just now
		}
		p.wg.Done()
	}
	p.wg.Add(1)
	p.timer = time.AfterFunc(min(p.wait, wall.Nap()), func() {
		defer p.wg.Done()
		p.mu.Lock()
		p.timer = nil
		p.mu.Unlock()
		p.Rouse()
	})
	p.wait = min(2*p.wait, time.Minute)
}
