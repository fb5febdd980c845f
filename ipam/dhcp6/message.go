package dhcp6

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

const (
	infinite = math.MaxUint32 * time.Second // RFC 8415 7.7

	// shortest is the shortest lifetime that is taken: shorter ones cannot be
	// kept up with retransmissions of a second and more.
	shortest = 5 * time.Second

	maxServers = 16 // that are told or remembered: of DNS, search domains and DHCPv6
)

// question is one message to be sent, less what changes with each transmission.
type question struct {
	kind   dhcpv6.MessageType
	xid    dhcpv6.TransactionID
	ask    *Ask
	server DUID         // where the message is to one server
	addrs  []netip.Addr // in the IA_NA
	rapid  bool
}

// bytes are the message as sent that long after the first.
func (q *question) bytes(elapsed time.Duration) []byte {
	m := dhcpv6.Message{MessageType: q.kind, TransactionID: q.xid}
	m.AddOption(raw(dhcpv6.OptionClientID, q.ask.DUID))
	if q.server != "" {
		m.AddOption(raw(dhcpv6.OptionServerID, q.server))
	}
	// RFC 8415 21.9: in hundredths of a second, and not more than there is room for.
	m.AddOption(dhcpv6.OptElapsedTime(min(elapsed, math.MaxUint16*10*time.Millisecond)))
	ia := &dhcpv6.OptIANA{}
	binary.BigEndian.PutUint32(ia.IaId[:], q.ask.IAID)
	for _, a := range q.addrs {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice()})
	}
	m.AddOption(ia)
	if q.rapid {
		m.AddOption(raw(dhcpv6.OptionRapidCommit, ""))
	}
	switch q.kind {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		want := dhcpv6.OptionCodes{dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionSolMaxRT}
		if q.ask.Hostname != "" {
			want.Add(dhcpv6.OptionFQDN)
			m.AddOption(raw(dhcpv6.OptionFQDN, fqdn(q.ask.Hostname)))
		}
		m.AddOption(dhcpv6.OptRequestedOption(want...))
	}
	return m.ToBytes()
}

func raw[T ~string | ~[]byte](code dhcpv6.OptionCode, data T) dhcpv6.Option {
	return &dhcpv6.OptionGeneric{OptionCode: code, OptionData: []byte(data)}
}

// fqdn asks the server to enter the name (S, RFC 4704 4.1). A name without a
// domain lacks the end mark (4.2), and the server adds its domain.
func fqdn(name string) []byte {
	b := (&rfc1035label.Labels{Labels: []string{name}}).ToBytes()
	if !strings.Contains(name, ".") {
		b = b[:len(b)-1]
	}
	return append([]byte{1}, b...)
}

// answer is what a server sent.
type answer struct {
	kind       dhcpv6.MessageType
	xid        dhcpv6.TransactionID
	client     DUID
	server     Server
	preference uint8
	rapid      bool
	status     status
	ias        []*dhcpv6.OptIANA
	dns        []netip.Addr
	search     []string
	solMaxRT   time.Duration // 0: none told
}

// status is a status code option (RFC 8415 21.13); none is success.
type status struct {
	code iana.StatusCode
	word string
}

func (s status) ok() bool { return s.code == iana.StatusSuccess }

func (s status) Error() string {
	if s.word == "" {
		return s.code.String()
	}
	return fmt.Sprintf("%s (%s)", s.word, s.code)
}

func statusOf(o *dhcpv6.OptStatusCode) (s status) {
	if o != nil {
		s.code, s.word = o.StatusCode, printable(o.StatusMessage)
	}
	return s
}

// printable is a stranger's text for an error or a log.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return strings.TrimSpace(s)
}

var errMalformed = errors.New("malformed DHCPv6 message")

// parse reads an Advertise or a Reply. Options that are not needed are not
// looked into, and those that are of no weight may be malformed.
func parse(b []byte, from netip.Addr) (*answer, error) {
	if len(b) < dhcpv6.MessageHeaderSize {
		return nil, errMalformed
	}
	a := &answer{kind: dhcpv6.MessageType(b[0]), xid: dhcpv6.TransactionID(b[1:4]), server: Server{Addr: from}}
	if a.kind != dhcpv6.MessageTypeAdvertise && a.kind != dhcpv6.MessageTypeReply {
		return nil, errMalformed
	}
	var options dhcpv6.Options
	err := options.FromBytesWithParser(b[dhcpv6.MessageHeaderSize:], func(code dhcpv6.OptionCode, data []byte) (dhcpv6.Option, error) {
		return raw(code, data), a.take(code, data)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	// RFC 8415 16.3 and 16.10: both identifiers must be there.
	if !a.client.sound() || !a.server.DUID.sound() {
		return nil, errMalformed
	}
	return a, nil
}

func (a *answer) take(code dhcpv6.OptionCode, data []byte) error {
	switch code {
	case dhcpv6.OptionClientID:
		a.client = DUID(data)
		return nil
	case dhcpv6.OptionServerID:
		a.server.DUID = DUID(data)
		return nil
	case dhcpv6.OptionPreference:
		if len(data) == 1 {
			a.preference = data[0]
		}
		return nil
	case dhcpv6.OptionRapidCommit:
		a.rapid = true
		return nil
	case dhcpv6.OptionSolMaxRT:
		// RFC 8415 21.24: others are to be ignored.
		if len(data) == 4 {
			if n := binary.BigEndian.Uint32(data); n >= 60 && n <= 86400 {
				a.solMaxRT = time.Duration(n) * time.Second
			}
		}
		return nil
	case dhcpv6.OptionIANA, dhcpv6.OptionStatusCode, dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList:
	default:
		return nil
	}
	o, err := dhcpv6.ParseOption(code, data)
	switch o := o.(type) {
	case *dhcpv6.OptIANA:
		if err == nil {
			a.ias = append(a.ias, o)
		}
		return err
	case *dhcpv6.OptStatusCode:
		if err == nil {
			a.status = statusOf(o)
		}
		return err
	}
	if err != nil {
		return nil
	}
	m := dhcpv6.MessageOptions{Options: dhcpv6.Options{o}}
	for _, ip := range m.DNS() {
		if ip, ok := netip.AddrFromSlice(ip); ok && !ip.IsUnspecified() && !ip.IsMulticast() && len(a.dns) < maxServers {
			a.dns = append(a.dns, ip)
		}
	}
	if l := m.DomainSearchList(); l != nil {
		for _, s := range l.Labels {
			if s = strings.TrimSuffix(s, "."); s == printable(s) && hostname(s) == nil && s != "" && len(a.search) < maxServers {
				a.search = append(a.search, s)
			}
		}
	}
	return nil
}

// grant is what an answer says of one IA_NA.
type grant struct {
	there  bool
	status status
	t1, t2 time.Duration
	addrs  []granted
}

// granted is an address with its lifetimes; valid 0 takes it back.
type granted struct {
	addr             netip.Addr
	preferred, valid time.Duration
}

// grant leaves out what RFC 8415 21.4 and 21.6 tell to: an IA with T1 after T2,
// an address that is preferred for longer than it is valid.
func (a *answer) grant(iaid uint32) (g grant) {
	for _, ia := range a.ias {
		if binary.BigEndian.Uint32(ia.IaId[:]) != iaid || ia.T1 > ia.T2 && ia.T2 > 0 {
			continue
		}
		g = grant{there: true, status: statusOf(ia.Options.Status()), t1: ia.T1, t2: ia.T2}
		for _, o := range ia.Options.Addresses() {
			addr, _ := netip.AddrFromSlice(o.IPv6Addr)
			s := statusOf(o.Options.Status())
			if g.status.ok() && !s.ok() {
				g.status = s
			}
			if usable(addr) && o.PreferredLifetime <= o.ValidLifetime && s.ok() {
				g.addrs = append(g.addrs, granted{addr, o.PreferredLifetime, o.ValidLifetime})
			}
		}
		break
	}
	return g
}

// find is addr's grant.
func (g *grant) find(addr netip.Addr) (granted, bool) {
	for _, a := range g.addrs {
		if a.addr == addr {
			return a, true
		}
	}
	return granted{}, false
}

// choose is the grant to take: that of the address that must be, else that
// which would be liked, else the first. Its error is the server's word.
func (a *answer) choose(ask *Ask, liked netip.Addr, not []netip.Addr) (granted, error) {
	if !a.status.ok() {
		return granted{}, a.status
	}
	g := a.grant(ask.IAID)
	if !g.status.ok() {
		return granted{}, g.status
	}
	var best granted
	var other string
	for _, o := range g.addrs {
		switch {
		case o.valid < shortest:
			other = fmt.Sprintf("%s for %v only", o.addr, o.valid)
		case contains(not, o.addr):
			other = fmt.Sprintf("%s, which another machine has", o.addr)
		case ask.Want.IsValid() && o.addr != ask.Want:
			other = fmt.Sprintf("%s instead of %s", o.addr, ask.Want)
		case !best.addr.IsValid() || o.addr == liked:
			best = o
		}
	}
	switch {
	case best.addr.IsValid():
		return best, nil
	case other != "":
		return granted{}, fmt.Errorf("it offers %s", other)
	}
	return granted{}, errors.New("it offers no address")
}

func contains(all []netip.Addr, a netip.Addr) bool {
	for _, b := range all {
		if a == b {
			return true
		}
	}
	return false
}

// lease is the lease of an address that is granted.
func (a *answer) lease(ask *Ask, o granted, now time.Time) *Lease {
	g := a.grant(ask.IAID)
	t1, t2 := g.t1, g.t2
	// RFC 8415 21.4 leaves 0 to the client, and recommends these shares. An address
	// that is not preferred any longer may be kept all the same.
	span := o.preferred
	if span < shortest {
		span = o.valid
	}
	if t2 == 0 {
		t2 = max(share(span, 80), t1)
	}
	if t1 == 0 {
		t1 = min(share(span, 50), t2)
	}
	// No server may make a client ask more often than it would by itself, nor only
	// after the lease is over.
	if o.valid != infinite {
		t2 = min(t2, share(o.valid, 80))
	}
	t2 = max(t2, shortest/2)
	t1 = max(min(t1, t2), shortest/2)
	l := &Lease{
		Ask: *ask, Terms: Terms{o.addr, a.server, a.dns, a.search}, Granted: now,
		Renew: after(now, t1), Rebind: after(now, t2),
		Preferred: after(now, o.preferred), Expires: after(now, o.valid),
	}
	l.shift(0)
	return l
}

// share is so many hundredths.
func share(d time.Duration, percent time.Duration) time.Duration {
	if d == infinite {
		return d
	}
	return d / 100 * percent
}

func after(now time.Time, d time.Duration) time.Time {
	if d == infinite {
		return time.Time{}
	}
	return now.Add(d)
}
