package dhcp

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"underlay/internal/wall"
)

// Ask is what a lease is asked for with.
type Ask struct {
	Key  string           `json:"key"`  // the caller's name for the lease, unique in a Client
	Link string           `json:"link"` // the parent link's name
	MAC  net.HardwareAddr `json:"mac"`  // chaddr: the container's, or with ipvlan the parent's

	// ClientID is the whole of option 61, its type first (RFC 2132 9.14, RFC 4361);
	// nil is type 1 and the MAC. Containers that share a MAC need one each.
	ClientID []byte `json:"client_id,omitempty"`

	Hostname    string  `json:"hostname,omitempty"`     // option 12
	VendorClass string  `json:"vendor_class,omitempty"` // option 60
	Params      []uint8 `json:"params,omitempty"`       // options to ask for besides those of Lease

	// Want is the one address that will do; another is refused with the server's
	// word. Once a container runs with it, another is better than none.
	Want netip.Addr `json:"want,omitzero"`

	// Servers are the only ones, by server identifier, that are listened to; none
	// means any.
	Servers []netip.Addr `json:"servers,omitempty"`

	// Previous is the lease of an earlier life: it is asked for first (INIT-REBOOT).
	Previous *Lease `json:"-"`
}

// Terms are what a server gives, made safe: every address in it is one that
// a machine may have, every name is made of a name's characters.
type Terms struct {
	Addr      netip.Prefix     `json:"addr"` // the address, with the length of the subnet's mask
	Server    netip.Addr       `json:"server"`
	ServerMAC net.HardwareAddr `json:"server_mac,omitempty"` // who passed the answer on: the server, a relay or a router
	Routers   []netip.Addr     `json:"routers,omitempty"`    // none where there are Routes (RFC 3442)
	Routes    []Route          `json:"routes,omitempty"`
	DNS       []netip.Addr     `json:"dns,omitempty"`
	Domain    string           `json:"domain,omitempty"`
	Search    []string         `json:"search,omitempty"`
	MTU       int              `json:"mtu,omitempty"` // 0: not told
}

// Route is one of option 121.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via,omitzero"` // invalid: on the link itself
}

// Lease is an address and until when it may be used. It is what a caller stores
// for Restore.
type Lease struct {
	Ask
	Terms
	Granted time.Time `json:"granted"`
	Renew   time.Time `json:"renew,omitzero"`   // T1
	Rebind  time.Time `json:"rebind,omitzero"`  // T2
	Expires time.Time `json:"expires,omitzero"` // zero, as the two above: never
}

// Expired says whether the address may not be used at now.
func (l *Lease) Expired(now time.Time) bool {
	return !l.Expires.IsZero() && !now.Before(l.Expires)
}

// shift moves the lease's times, and has them go by the host's clock alone: Go's own
// stands still while the host sleeps.
func (l *Lease) shift(d time.Duration) {
	wall.Shift(d, &l.Granted, &l.Renew, &l.Rebind, &l.Expires)
}

// shortest is the least time for an address that is worth having: a server that
// gives less would be asked all the time.
const shortest = 10 * time.Second

// params are the options that a server is asked for. 121 comes before 3, as RFC
// 3442 has it.
var params = dhcpv4.OptionCodeList{
	dhcpv4.OptionSubnetMask,
	dhcpv4.OptionClasslessStaticRoute,
	dhcpv4.OptionRouter,
	dhcpv4.OptionDomainNameServer,
	dhcpv4.OptionDomainName,
	dhcpv4.OptionDNSDomainSearchList,
	dhcpv4.OptionInterfaceMTU,
	dhcpv4.OptionIPAddressLeaseTime,
	dhcpv4.OptionRenewTimeValue,
	dhcpv4.OptionRebindingTimeValue,
}

// answer is a server's message, taken apart.
type answer struct {
	kind   dhcpv4.MessageType
	server netip.Addr
	client []byte // option 61, if the server repeats it (RFC 6842)
	word   string // option 56
	terms  Terms
	times
}

// times are how long an address is given for, and when to renew. All are zero
// for ever.
type times struct {
	renew, rebind, expire time.Duration
}

const (
	headLen   = 240 // of a message, up to its options
	snameAt   = 44
	fileAt    = 108
	cookieAt  = 236
	nakNoWord = "no reason given"
)

// decode takes a message from server to client apart. The error says what is wrong
// with what it gives; kind and server are told even then, where they can be.
func decode(b []byte) (a answer, err error) {
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		return a, fmt.Errorf("it is malformed: %w", err)
	}
	// RFC 2131 4.1, RFC 3396: where options go on in the file and sname fields.
	if over := m.Options.Get(dhcpv4.OptionOptionOverload); len(over) == 1 {
		if over[0]&1 != 0 {
			err = m.Options.FromBytes(b[fileAt:cookieAt])
		}
		if over[0]&2 != 0 {
			err = errors.Join(err, m.Options.FromBytes(b[snameAt:fileAt]))
		}
		if err != nil {
			return a, errors.New("it is malformed: its overloaded options are")
		}
	}
	a.kind = m.MessageType()
	a.server, _ = machine(m.Options.Get(dhcpv4.OptionServerIdentifier))
	a.client = m.Options.Get(dhcpv4.OptionClientIdentifier)
	a.word = printable(m.Message())
	if !a.server.IsValid() {
		return a, errors.New("it does not say which server it is from")
	}
	if a.kind != dhcpv4.MessageTypeOffer && a.kind != dhcpv4.MessageTypeAck {
		return a, nil
	}
	if a.terms, err = terms(m); err != nil {
		return a, err
	}
	a.terms.Server = a.server
	a.times, err = lifetimes(m.Options)
	return a, err
}

func terms(m *dhcpv4.DHCPv4) (t Terms, err error) {
	addr, ok := machine(m.YourIPAddr)
	if !ok {
		return t, fmt.Errorf("%s is no address that a machine may have", m.YourIPAddr)
	}
	mask := m.Options.Get(dhcpv4.OptionSubnetMask)
	if len(mask) != net.IPv4len {
		return t, fmt.Errorf("%s comes without a subnet mask", addr)
	}
	bits, size := net.IPMask(mask).Size()
	if size == 0 || bits == 0 {
		return t, fmt.Errorf("%s comes with %s, which is no subnet mask", addr, net.IP(mask))
	}
	t.Addr = netip.PrefixFrom(addr, bits)
	if bits < 31 && (addr == t.Addr.Masked().Addr() || addr == last(t.Addr)) {
		return t, fmt.Errorf("%s is no machine's, but its subnet's own address", t.Addr)
	}
	t.Routes = routes(m.Options.Get(dhcpv4.OptionClasslessStaticRoute))
	if t.Routes == nil {
		t.Routers = machines(m.Options.Get(dhcpv4.OptionRouter), addr)
	}
	t.DNS = machines(m.Options.Get(dhcpv4.OptionDomainNameServer), netip.Addr{})
	t.Domain = domain(strings.TrimRight(m.DomainName(), "\x00"))
	if s := m.DomainSearch(); s != nil {
		for _, name := range s.Labels {
			if name = domain(name); name != "" && len(t.Search) < 32 {
				t.Search = append(t.Search, name)
			}
		}
	}
	// Less than 576 no IPv4 machine need bear (RFC 791), and below 68 no kernel.
	if b := m.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if mtu := int(b[0])<<8 | int(b[1]); mtu >= 576 {
			t.MTU = mtu
		}
	}
	return t, nil
}

// lifetimes reads options 51, 58 and 59. T1 and T2 that are absent or absurd
// become those of RFC 2131 4.4.5.
func lifetimes(o dhcpv4.Options) (t times, err error) {
	expire, ok := seconds(o.Get(dhcpv4.OptionIPAddressLeaseTime))
	switch {
	case !ok:
		return t, errors.New("it does not say for how long")
	case expire == math.MaxUint32*time.Second:
		return t, nil
	case expire < shortest:
		return t, fmt.Errorf("it is for %s only, less than the %s that make sense", expire, shortest)
	}
	renew, ok1 := seconds(o.Get(dhcpv4.OptionRenewTimeValue))
	rebind, ok2 := seconds(o.Get(dhcpv4.OptionRebindingTimeValue))
	if !ok2 || rebind >= expire || rebind < shortest/4 {
		rebind = expire / 8 * 7
	}
	if !ok1 || renew >= rebind || renew < shortest/4 {
		if renew = expire / 2; renew >= rebind {
			renew = rebind / 2
		}
	}
	return times{renew, rebind, expire}, nil
}

func seconds(b []byte) (time.Duration, bool) {
	if len(b) != 4 {
		return 0, false
	}
	return time.Duration(uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3])) * time.Second, true
}

// routes reads option 121. One route that is none makes it be passed over as
// a whole: half of a routing table is worse than the router option.
func routes(b []byte) (all []Route) {
	var rs dhcpv4.Routes
	if rs.FromBytes(b) != nil {
		return nil
	}
	for _, r := range rs {
		to, _ := netip.AddrFromSlice(r.Dest.IP)
		bits, _ := r.Dest.Mask.Size()
		route := Route{To: netip.PrefixFrom(to, bits).Masked()}
		if !r.Router.IsUnspecified() {
			via, ok := machine(r.Router)
			if !ok {
				return nil
			}
			route.Via = via
		}
		if to.IsMulticast() || to.IsLoopback() {
			return nil
		}
		all = append(all, route)
	}
	return all
}

// machine reads an address that a machine on a LAN may have.
func machine(b []byte) (netip.Addr, bool) {
	if len(b) != net.IPv4len {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte(b))
	if b[0] == 0 || b[0] >= 240 || a.IsMulticast() || a.IsLoopback() {
		return netip.Addr{}, false
	}
	return a, true
}

// machines reads a list of them, without one.
func machines(b []byte, without netip.Addr) (all []netip.Addr) {
	for ; len(b) >= net.IPv4len; b = b[net.IPv4len:] {
		if a, ok := machine(b[:net.IPv4len]); ok && a != without {
			all = append(all, a)
		}
	}
	return all
}

// last is a prefix's last address: its broadcast address.
func last(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	for i := range a {
		if n := p.Bits() - i*8; n < 8 {
			a[i] |= byte(0xff >> max(n, 0))
		}
	}
	return netip.AddrFrom4(a)
}

// domain is a name of letters, digits, hyphens, underscores and dots, or "".
func domain(s string) string {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 || strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}) {
		return ""
	}
	return s
}

// printable is a server's word, fit for a log line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return strings.TrimSpace(s[:min(len(s), 200)])
}

// same says whether the server gives the same as before.
func (t *Terms) same(o *Terms) bool {
	a, b := *t, *o
	a.Server, a.ServerMAC, b.Server, b.ServerMAC = netip.Addr{}, nil, netip.Addr{}, nil
	return reflect.DeepEqual(a, b)
}
