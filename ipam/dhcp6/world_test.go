package dhcp6

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// world is a LAN in memory, with a client on it.
type world struct {
	*Client
	t *testing.T

	slow time.Duration // to open a wire

	mu      sync.Mutex
	down    error // why the link has no wire
	loss    float64
	random  *rand.Rand
	servers []*server
	wires   []*cable
	events  []Event
	used    map[netip.Addr]net.HardwareAddr // what Check finds
}

// server is a DHCPv6 server whose ways can be set, guarded by world.mu.
type server struct {
	w          *world
	name       Server
	preference uint8
	silent     bool
	rapid      bool
	t1, t2     time.Duration
	preferred  time.Duration
	valid      time.Duration
	prefix     string                                     // addresses are prefix and a number
	size       int                                        // of the pool; 0: without end
	leases     map[string]leased                          // by DUID and IAID
	declined   map[netip.Addr]bool                        //
	log        []string                                   // "solicit", "request 2001:db8::1", …
	times      []time.Time                                // of the log
	reply      func(a, m *dhcpv6.Message) *dhcpv6.Message // changes an answer, nil drops it
	xids       map[dhcpv6.TransactionID]int
}

type leased struct {
	addr    netip.Addr
	expires time.Time
}

// cable is a wire of the world.
type cable struct {
	w      *world
	hear   func([]byte, netip.Addr)
	closed bool
	stale  bool // the link is another by now, and this wire dead
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(1, 2)), used: map[netip.Addr]net.HardwareAddr{}}
	w.Client = New(Config{
		Told: func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		},
		Check: func(_ context.Context, _ string, a netip.Addr, _ net.HardwareAddr) (net.HardwareAddr, error) {
			time.Sleep(50 * time.Millisecond)
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.used[a], nil
		},
	})
	w.open = func(_ string, _ bool, hear func([]byte, netip.Addr), _ func(wire, error)) (wire, error) {
		time.Sleep(w.slow)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.down != nil {
			return nil, w.down
		}
		c := &cable{w: w, hear: hear}
		w.wires = append(w.wires, c)
		return c, nil
	}
	t.Cleanup(w.Close)
	return w
}

// server plugs one in, with leases of an hour.
func (w *world) server(n byte) *server {
	s := &server{
		w:    w,
		name: Server{DUID: LinkLayerDUID(net.HardwareAddr{2, 0, 0, 0, 9, n}), Addr: netip.MustParseAddr(fmt.Sprintf("fe80::9:%x", n))},
		t1:   30 * time.Minute, t2: 48 * time.Minute, preferred: time.Hour, valid: time.Hour,
		prefix: fmt.Sprintf("2001:db8:%x::", n),
		leases: map[string]leased{}, declined: map[netip.Addr]bool{}, xids: map[dhcpv6.TransactionID]int{},
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers = append(w.servers, s)
	return s
}

// set changes the world or its servers.
func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// unplug takes the link's carrier away; plug brings it back.
func (w *world) unplug() {
	w.set(func() { w.down = errors.New("parent eth0 has no carrier: is its cable in?") })
	w.Rouse()
}

func (w *world) plug() {
	w.set(func() { w.down = nil })
	w.Rouse()
}

// told are the events since the last call.
func (w *world) told() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.events
	w.events = nil
	return e
}

// whats is told in short.
func (w *world) whats() string {
	s := ""
	for _, e := range w.told() {
		s += string(e.What) + " "
	}
	return s
}

func (c *cable) send(payload []byte) error {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if w.down != nil || c.stale {
		return nil
	}
	for _, s := range w.servers {
		if w.random.Float64() < w.loss {
			continue
		}
		m, err := dhcpv6.MessageFromBytes(payload)
		if err != nil {
			w.t.Errorf("the client sends what cannot be read: %v", err)
			return nil
		}
		answer := s.take(m)
		if answer == nil || w.random.Float64() < w.loss {
			continue
		}
		b, from := answer.ToBytes(), s.name.Addr
		time.AfterFunc(2*time.Millisecond, func() {
			w.mu.Lock()
			lost := c.closed || w.down != nil
			w.mu.Unlock()
			if !lost {
				c.hear(b, from)
			}
		})
	}
	return nil
}

func (c *cable) sound() error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if c.stale {
		return errors.New("the link is another")
	}
	return c.w.down
}

func (c *cable) close() {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.closed = true
}

// take is a server's part, with world.mu held.
func (s *server) take(m *dhcpv6.Message) *dhcpv6.Message {
	now := time.Now()
	ia := m.Options.OneIANA()
	client := DUID(m.Options.ClientID().ToBytes())
	id := m.Options.GetOne(dhcpv6.OptionServerID)
	if id != nil && DUID(id.ToBytes()) != s.name.DUID {
		return nil
	}
	var asked netip.Addr
	if o := ia.Options.OneAddress(); o != nil {
		asked, _ = netip.AddrFromSlice(o.IPv6Addr)
	}
	line := m.MessageType.String()
	if asked.IsValid() {
		line += " " + asked.String()
	}
	s.log, s.times = append(s.log, line), append(s.times, now)
	s.xids[m.TransactionID]++
	if s.silent {
		return nil
	}
	key := fmt.Sprintf("%s/%d", client, binary.BigEndian.Uint32(ia.IaId[:]))
	held, has := s.leases[key]
	if has && !held.expires.IsZero() && now.After(held.expires) {
		delete(s.leases, key)
		has = false
	}

	a := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	a.AddOption(m.GetOneOption(dhcpv6.OptionClientID))
	a.AddOption(raw(dhcpv6.OptionServerID, s.name.DUID))
	out := &dhcpv6.OptIANA{IaId: ia.IaId, T1: s.t1, T2: s.t2}
	status := func(code iana.StatusCode, word string) *dhcpv6.OptStatusCode {
		return &dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: word}
	}
	give := func(addr netip.Addr, commit bool) {
		out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: addr.AsSlice(), PreferredLifetime: s.preferred, ValidLifetime: s.valid})
		if commit {
			s.leases[key] = leased{addr, after(now, s.valid)}
		}
	}
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest:
		rapid := s.rapid && m.GetOneOption(dhcpv6.OptionRapidCommit) != nil
		commit := m.MessageType == dhcpv6.MessageTypeRequest || rapid
		if m.MessageType == dhcpv6.MessageTypeSolicit && !rapid {
			a.MessageType = dhcpv6.MessageTypeAdvertise
			a.AddOption(dhcpv6.OptPreference(s.preference))
		} else if rapid {
			a.AddOption(raw(dhcpv6.OptionRapidCommit, ""))
		}
		addr := held.addr
		if !has {
			addr = s.free(asked)
		}
		if addr.IsValid() {
			give(addr, commit)
		} else {
			out.Options.Add(status(iana.StatusNoAddrsAvail, "pool is empty"))
		}
		a.AddOption(out)
		a.AddOption(dhcpv6.OptDNS(net.ParseIP("2001:db8::53")))
		a.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{"lan.example"}}))
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		switch {
		case !has && m.MessageType == dhcpv6.MessageTypeRebind:
			return nil
		case !has:
			out.Options.Add(status(iana.StatusNoBinding, "who are you?"))
		default:
			give(held.addr, true)
		}
		a.AddOption(out)
		a.AddOption(dhcpv6.OptDNS(net.ParseIP("2001:db8::53")))
		a.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{"lan.example"}}))
	case dhcpv6.MessageTypeConfirm:
		prefix, _ := netip.MustParseAddr(s.prefix).Prefix(64)
		if prefix.Contains(asked) {
			a.AddOption(status(iana.StatusSuccess, ""))
		} else {
			a.AddOption(status(iana.StatusNotOnLink, "elsewhere"))
		}
	case dhcpv6.MessageTypeRelease:
		delete(s.leases, key)
		a.AddOption(status(iana.StatusSuccess, ""))
	case dhcpv6.MessageTypeDecline:
		s.declined[asked] = true
		delete(s.leases, key)
		a.AddOption(status(iana.StatusSuccess, ""))
	}
	if s.reply != nil {
		return s.reply(a, m)
	}
	return a
}

// free is an address nobody has, the one asked for if it may be.
func (s *server) free(asked netip.Addr) netip.Addr {
	taken := map[netip.Addr]bool{}
	for _, l := range s.leases {
		taken[l.addr] = true
	}
	prefix, _ := netip.MustParseAddr(s.prefix).Prefix(64)
	if asked.IsValid() && prefix.Contains(asked) && !taken[asked] && !s.declined[asked] {
		return asked
	}
	a := netip.MustParseAddr(s.prefix)
	for i := 0; s.size == 0 || i < s.size; i++ {
		if a = a.Next(); !taken[a] && !s.declined[a] {
			return a
		}
	}
	return netip.Addr{}
}

// seen is the log since the last call.
func (s *server) seen() []string {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	l := s.log
	s.log, s.times = nil, nil
	return l
}

func (s *server) set(f func()) { s.w.set(f) }

// leases are those that hold.
func (w *world) leases() (all []Lease) {
	for _, s := range w.Leases() {
		if s.Addr.IsValid() && !over(s.Expires, time.Now()) {
			all = append(all, s.Lease)
		}
	}
	return all
}

// left is what the client remembers of leases that are over.
func (w *world) left() string {
	w.Client.mu.Lock()
	defer w.Client.mu.Unlock()
	if len(w.keys)+len(w.owners)+len(w.asked)+len(w.links)+len(w.schedule.due) == 0 {
		return ""
	}
	return fmt.Sprintf("%v %v %v %v %v", w.keys, w.owners, w.asked, w.links, w.schedule.due)
}

// held is how many leases the server has given.
func (s *server) held() int {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return len(s.leases)
}

// ask is what container n asks.
func ask(n int) Ask {
	return Ask{Key: fmt.Sprint("c", n), Link: "eth0", MAC: net.HardwareAddr{2, 0x42, 0, 0, byte(n >> 8), byte(n)}, IAID: 1}
}

// acquire is with dockerd's patience.
func (w *world) acquire(a Ask) (Lease, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return w.Acquire(ctx, a)
}

func (w *world) must(a Ask) Lease {
	w.t.Helper()
	l, err := w.acquire(a)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}
