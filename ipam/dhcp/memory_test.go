package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/sirupsen/logrus"
)

// lan is a LAN in memory, with DHCP servers on it.
type lan struct {
	loss  float64 // of frames, either way
	delay time.Duration
	rogue float64 // how often someone answers what may do harm

	mu      sync.Mutex
	rand    *rand.Rand
	down    error
	dark    bool // it is up without a carrier: what is sent is lost
	servers []*fake
	wires   map[*plug]bool
	opened  int
	asked   []question
}

// question is what a client has put on the LAN.
type question struct {
	at       time.Time
	to       netip.Addr // IP destination
	from     netip.Addr
	m        *dhcpv4.DHCPv4
	ether    net.HardwareAddr // source
	etherDst net.HardwareAddr
}

func (q question) kind() dhcpv4.MessageType { return q.m.MessageType() }

func newLAN(servers ...*fake) *lan {
	n := &lan{delay: time.Millisecond, servers: servers, wires: map[*plug]bool{}, rand: rand.New(rand.NewPCG(1, 2))}
	for _, s := range servers {
		s.lan = n
	}
	return n
}

// plug is a wire.
type plug struct {
	lan  *lan
	in   chan []byte
	gone chan struct{}
	once sync.Once
}

func (n *lan) open(string) (wire, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down != nil {
		return nil, n.down
	}
	p := &plug{lan: n, in: make(chan []byte, 1000), gone: make(chan struct{})}
	n.wires[p] = true
	n.opened++
	return p, nil
}

// Send is wire's.
func (p *plug) Send(b []byte) error {
	p.lan.mu.Lock()
	defer p.lan.mu.Unlock()
	if p.lan.down != nil {
		return p.lan.down
	}
	ip := b[etherLen:]
	if ip[0] != 0x45 || sum(0, ip[:ipLen]) != 0xffff || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
		panic("not an IPv4 packet")
	}
	u := ip[ipLen:]
	if sum(uint32(sum(uint32(udp+len(u)), ip[12:ipLen])), u) != 0xffff {
		panic("wrong UDP checksum")
	}
	m, err := dhcpv4.FromBytes(u[udpLen:])
	if err != nil {
		panic(err)
	}
	q := question{time.Now(), netip.AddrFrom4([4]byte(ip[16:])), netip.AddrFrom4([4]byte(ip[12:])), m, b[6:12], b[:6]}
	p.lan.asked = append(p.lan.asked, q)
	if p.lan.dark || p.lan.rand.Float64() < p.lan.loss {
		return nil
	}
	if p.lan.rand.Float64() < p.lan.rogue {
		p.lan.lie(q)
	}
	for _, s := range p.lan.servers {
		if q.to == everyAddr || q.to == s.addr {
			time.AfterFunc(p.lan.delay+s.slow, func() { s.handle(q) })
		}
	}
	return nil
}

// Receive is wire's.
func (p *plug) Receive(b []byte) (int, error) {
	select {
	case f := <-p.in:
		return copy(b, f), nil
	case <-p.gone:
		return 0, io.EOF
	}
}

// Join is wire's.
func (p *plug) Join(net.HardwareAddr) {}

// Alive is wire's.
func (p *plug) Alive() bool {
	p.lan.mu.Lock()
	defer p.lan.mu.Unlock()
	return p.lan.wires[p]
}

// Close is wire's.
func (p *plug) Close() error {
	p.once.Do(func() {
		p.lan.mu.Lock()
		defer p.lan.mu.Unlock()
		delete(p.lan.wires, p)
		close(p.gone)
	})
	return nil
}

// look is Client.look.
func (n *lan) look(string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dark || n.down != nil {
		return 0
	}
	return 1
}

// shade takes the carrier away, or brings it back.
func (n *lan) shade(dark bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dark = dark
}

// lie answers a question with anything, in anyone's name. It is with mu held.
func (n *lan) lie(q question) {
	kind := []dhcpv4.MessageType{dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak}[n.rand.IntN(3)]
	m, err := dhcpv4.New(dhcpv4.WithReply(q.m), dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 0, 0, []byte{1, 2, 66}[n.rand.IntN(3)]})),
		dhcpv4.WithYourIP(net.IP{10, 0, 0, byte(95 + n.rand.IntN(15))}),
		dhcpv4.WithLeaseTime(uint32(n.rand.IntN(2000))), dhcpv4.WithNetmask(net.CIDRMask(24, 32)))
	if err != nil {
		panic(err)
	}
	if want := q.m.RequestedIPAddress(); want != nil && n.rand.IntN(2) == 0 {
		m.YourIPAddr = want
	}
	f := reply(netip.MustParseAddr("10.0.0.66"), m.ToBytes())
	time.AfterFunc(time.Duration(n.rand.IntN(int(3*time.Millisecond))), func() { n.answer(f) })
}

// cut takes the link away.
func (n *lan) cut(err error) {
	n.mu.Lock()
	n.down = err
	var all []*plug
	for p := range n.wires {
		all = append(all, p)
	}
	n.mu.Unlock()
	for _, p := range all {
		p.Close()
	}
}

// set sets how many frames are lost, and to how many there is a rogue's answer.
func (n *lan) set(loss, rogue float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss, n.rogue = loss, rogue
}

func (n *lan) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = nil
}

// answer puts a server's frame on the LAN.
func (n *lan) answer(b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.wires {
		if n.rand.Float64() < n.loss {
			continue
		}
		select {
		case p.in <- b:
		default:
		}
	}
}

// count counts questions.
func (n *lan) count(kind dhcpv4.MessageType) int {
	return len(n.all(kind))
}

func (n *lan) all(kind dhcpv4.MessageType) (all []question) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, q := range n.asked {
		if q.kind() == kind {
			all = append(all, q)
		}
	}
	return all
}

func (n *lan) questions() []question {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

func (n *lan) plugged() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.wires)
}

func (n *lan) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = nil
}

// fake is a server that gives each client id an address.
type fake struct {
	addr  netip.Addr
	slow  time.Duration
	lan   *lan
	lease time.Duration

	mu     sync.Mutex
	away   bool
	next   netip.Addr
	from   byte // the range's last bytes
	to     byte
	given  map[string]netip.Addr // by client id
	until  map[string]time.Time
	bad    map[netip.Addr]bool // declined
	refuse bool                // NAK every REQUEST
	byMAC  bool                // chaddr is who a client is, whatever its id
	twist  func(q, a *dhcpv4.DHCPv4)
	raw    func(frame []byte) [][]byte
}

func newFake(addr string, lease time.Duration) *fake {
	a := netip.MustParseAddr(addr)
	b := a.As4()
	b[3] = 100
	return &fake{from: 100, to: 250, addr: a, lease: lease, next: netip.AddrFrom4(b), given: map[string]netip.Addr{}, until: map[string]time.Time{}, bad: map[netip.Addr]bool{}}
}

func (s *fake) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// owner is who holds an address now.
func (s *fake) owner(a netip.Addr) string {
	for id, b := range s.given {
		if a == b && time.Now().Before(s.until[id]) {
			return id
		}
	}
	return ""
}

// pick is the address for a client: its own, the one it asks for, a new one.
func (s *fake) pick(id string, want netip.Addr) netip.Addr {
	if a := s.given[id]; a.IsValid() && !s.bad[a] && (s.owner(a) == id || s.owner(a) == "") {
		return a
	}
	if want.IsValid() && want.Is4() && !s.bad[want] && s.owner(want) == "" && netip.PrefixFrom(s.addr, 24).Masked().Contains(want) && want.As4()[3] >= s.from && want.As4()[3] <= s.to {
		return want
	}
	for {
		a := s.next
		s.next = a.Next()
		if b := s.next.As4(); b[3] > s.to {
			b[3] = s.from
			s.next = netip.AddrFrom4(b)
		}
		if !s.bad[a] && s.owner(a) == "" {
			return a
		}
	}
}

func (s *fake) handle(q question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return
	}
	id := string(q.m.Options.Get(dhcpv4.OptionClientIdentifier))
	if s.byMAC {
		id = string(q.m.ClientHWAddr)
	}
	want, _ := netip.AddrFromSlice(q.m.RequestedIPAddress().To4())
	ci, _ := netip.AddrFromSlice(q.m.ClientIPAddr.To4())
	to, toSet := netip.AddrFromSlice(q.m.ServerIdentifier().To4())
	switch q.kind() {
	case dhcpv4.MessageTypeDiscover:
		a := s.pick(id, want)
		s.given[id] = a
		s.until[id] = time.Now().Add(10 * time.Second)
		s.reply(q, dhcpv4.MessageTypeOffer, a, "")
	case dhcpv4.MessageTypeRequest:
		if toSet && to != s.addr {
			if s.owner(s.given[id]) == id {
				delete(s.given, id)
			}
			return
		}
		if !want.IsValid() || ci.IsValid() && !ci.IsUnspecified() {
			want = ci
		}
		own := s.given[id]
		switch {
		case s.refuse:
			s.reply(q, dhcpv4.MessageTypeNak, netip.IPv4Unspecified(), "go away")
		case !own.IsValid() && !toSet && netip.PrefixFrom(s.addr, 24).Masked().Contains(want):
			// RFC 2131 4.3.2: one who does not know the client is silent.
		case own != want || s.owner(own) != id && s.owner(own) != "":
			s.reply(q, dhcpv4.MessageTypeNak, netip.IPv4Unspecified(), "wrong address")
		default:
			s.until[id] = time.Now().Add(s.lease)
			s.reply(q, dhcpv4.MessageTypeAck, own, "")
		}
	case dhcpv4.MessageTypeDecline:
		if to == s.addr {
			s.bad[want] = true
			delete(s.given, id)
		}
	case dhcpv4.MessageTypeRelease:
		if to == s.addr && s.given[id] == ci {
			delete(s.given, id)
		}
	}
}

func (s *fake) reply(q question, kind dhcpv4.MessageType, a netip.Addr, word string) {
	m, err := dhcpv4.New(dhcpv4.WithReply(q.m), dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.addr.AsSlice())))
	if err != nil {
		panic(err)
	}
	m.ClientIPAddr = q.m.ClientIPAddr
	if kind != dhcpv4.MessageTypeNak {
		m.YourIPAddr = a.AsSlice()
		m.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(24, 32)))
		m.UpdateOption(dhcpv4.OptRouter(s.addr.AsSlice()))
		m.UpdateOption(dhcpv4.OptIPAddressLeaseTime(s.lease))
	} else if word != "" {
		m.UpdateOption(dhcpv4.OptMessage(word))
	}
	if s.twist != nil {
		s.twist(q.m, m)
	}
	f := reply(s.addr, m.ToBytes())
	all := [][]byte{f}
	if s.raw != nil {
		all = s.raw(f)
	}
	for _, f := range all {
		time.AfterFunc(s.lan.delay, func() { s.lan.answer(f) })
	}
}

// reply is the frame of a server.
func reply(server netip.Addr, message []byte) []byte {
	f := frame(everyMAC, net.HardwareAddr{0x02, 0x99, 0, 0, 0, server.As4()[3]}, everyAddr, server, message)
	u := f[etherLen+ipLen:]
	binary.BigEndian.PutUint16(u, serverPort)
	binary.BigEndian.PutUint16(u[2:], clientPort)
	u[6], u[7] = 0, 0
	return f
}

// client is a Client of this LAN.
func (n *lan) client(t testing.TB, cfg Config) *client {
	c := &client{}
	log := logrus.New()
	log.SetOutput(io.Discard)
	cfg.Log = log
	cfg.Told = c.take
	c.Client = start(cfg, n.open)
	c.look = n.look
	t.Cleanup(c.Close)
	return c
}

func (c *client) take(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
	if c.then != nil {
		c.then(e)
	}
}

// all is everything told.
func (c *client) all() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// last is the latest event.
func (c *client) last() Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.events) == 0 {
		return Event{}
	}
	return c.events[len(c.events)-1]
}

func (c *client) try(within time.Duration, ask Ask) (Lease, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return c.Acquire(ctx, ask)
}

func (c *client) status(key string) Status {
	for _, s := range c.Status() {
		if s.Key == key {
			return s
		}
	}
	return Status{}
}

func asker(n int) Ask {
	return Ask{Key: fmt.Sprint(n), Link: "eth0", MAC: hw(n)}
}

var errDown = errors.New("eth0 is down")
