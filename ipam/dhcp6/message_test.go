package dhcp6

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

var here = netip.MustParseAddr("fe80::1")

// TestLifetimes: RFC 8415 21.4 and 21.6, 14.2.
func TestLifetimes(t *testing.T) {
	const none = infinite
	tests := []struct {
		name                 string
		t1, t2, pref, valid  time.Duration
		renew, rebind, until time.Duration // infinite: never
	}{
		{"as told", 1000, 2000, 3000, 4000, 1000, 2000, 4000},
		{"T1 and T2 are the client's matter", 0, 0, 3000, 4000, 1500, 2400, 4000},
		{"T1 is", 0, 1000, 3000, 4000, 1000, 1000, 4000},
		{"T2 is", 2700, 0, 3000, 4000, 2700, 2700, 4000},
		{"deprecated at once", 0, 0, 0, 1000, 500, 800, 1000},
		{"for ever", 0, 0, none / time.Second, none / time.Second, none, none, none},
		{"for ever, with T1 and T2", 1000, 2000, none / time.Second, none / time.Second, 1000, 2000, none},
		{"T1 and T2 never, the address not", none / time.Second, none / time.Second, 100, 100, 80, 80, 100},
		{"T2 after the end", 50, 1000, 100, 100, 50, 80, 100},
		{"all the time", 1, 1, 100, 100, 2500 * time.Millisecond, 2500 * time.Millisecond, 100},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ia := &dhcpv6.OptIANA{T1: test.t1 * time.Second, T2: test.t2 * time.Second}
			ia.Options.Add(&dhcpv6.OptIAAddress{
				IPv6Addr:          net.ParseIP("2001:db8::1"),
				PreferredLifetime: test.pref * time.Second, ValidLifetime: test.valid * time.Second,
			})
			a := &answer{ias: []*dhcpv6.OptIANA{ia}}
			o, err := a.choose(&Ask{}, netip.Addr{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			l := a.lease(&Ask{}, o, now)
			for _, c := range []struct {
				what string
				got  time.Time
				want time.Duration
			}{{"T1", l.Renew, test.renew}, {"T2", l.Rebind, test.rebind}, {"end", l.Expires, test.until}} {
				want := c.want
				if want < time.Hour*10 && want%time.Second == 0 || want < time.Millisecond {
					want *= time.Second
				}
				if want == none {
					if !c.got.IsZero() {
						t.Errorf("%s after %v, not never", c.what, c.got.Sub(now))
					}
				} else if c.got.Sub(now) != want {
					t.Errorf("%s after %v, not %v", c.what, c.got.Sub(now), want)
				}
			}
		})
	}
}

// TestParse: what is taken of an answer, and what is not.
func TestParse(t *testing.T) {
	message := func(kind dhcpv6.MessageType, options ...dhcpv6.Option) []byte {
		m := dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
		for _, o := range options {
			m.AddOption(o)
		}
		return m.ToBytes()
	}
	ids := []dhcpv6.Option{raw(dhcpv6.OptionClientID, "\x00\x03\x00\x01client"), raw(dhcpv6.OptionServerID, "\x00\x09odd")}
	good := func(options ...dhcpv6.Option) []byte {
		return message(dhcpv6.MessageTypeReply, append(append([]dhcpv6.Option{}, ids...), options...)...)
	}
	tests := []struct {
		name  string
		b     []byte
		want  string
		check func(a *answer) bool
	}{
		{"empty", nil, "malformed", nil},
		{"relayed", append([]byte{13}, make([]byte, 60)...), "malformed", nil},
		{"of a client", message(dhcpv6.MessageTypeSolicit, ids...), "malformed", nil},
		{"no server", message(dhcpv6.MessageTypeReply, ids[0]), "malformed", nil},
		{"no client", message(dhcpv6.MessageTypeReply, ids[1]), "malformed", nil},
		{"overlong DUID", message(dhcpv6.MessageTypeReply, ids[0], raw(dhcpv6.OptionServerID, strings.Repeat("x", 131))), "malformed", nil},
		{"cut", good(raw(99, "abcdef"))[:30], "malformed", nil},
		{"an odd server DUID is kept as it is", good(), "", func(a *answer) bool { return a.server.DUID == "\x00\x09odd" }},
		{"short IA", good(raw(dhcpv6.OptionIANA, "abc")), "malformed", nil},
		{"short address", good(raw(dhcpv6.OptionIANA, "abcd"+"\x00\x00\x00\x00\x00\x00\x00\x00"+"\x00\x05\x00\x02ab")), "malformed", nil},
		{"malformed DNS is passed over", good(raw(dhcpv6.OptionDNSRecursiveNameServer, "abc")), "", func(a *answer) bool { return a.dns == nil }},
		{"malformed search list is passed over", good(raw(dhcpv6.OptionDomainSearchList, "\x3fabc")), "", func(a *answer) bool { return a.search == nil }},
		{"a name with an escape", good(raw(dhcpv6.OptionDomainSearchList, "\x04a\x1b[m\x00")), "", func(a *answer) bool { return a.search == nil }},
		{"no DNS server", good(dhcpv6.OptDNS(net.IPv6zero, net.ParseIP("ff02::1"), net.ParseIP("fe80::53"))), "",
			func(a *answer) bool { return len(a.dns) == 1 && a.dns[0].String() == "fe80::53" }},
		{"SOL_MAX_RT", good(raw(dhcpv6.OptionSolMaxRT, "\x00\x00\x0e\x10")), "", func(a *answer) bool { return a.solMaxRT == time.Hour }},
		{"SOL_MAX_RT that is absurd", good(raw(dhcpv6.OptionSolMaxRT, "\x00\x00\x00\x01")), "", func(a *answer) bool { return a.solMaxRT == 0 }},
		{"many DNS servers", good(raw(dhcpv6.OptionDNSRecursiveNameServer, strings.Repeat("\x20\x01\x0d\xb8        \x00\x00\x00\x01", 80))), "",
			func(a *answer) bool { return len(a.dns) == maxServers }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, err := parse(test.b, here)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%+v, %v", a, err)
				}
				return
			}
			if err != nil || !test.check(a) {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
}

// TestAddresses: those that no container may have.
func TestAddresses(t *testing.T) {
	for _, s := range []string{"::", "::1", "fe80::5", "ff02::1", "::ffff:192.0.2.1"} {
		ia := &dhcpv6.OptIANA{}
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(s), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
		if o, err := (&answer{ias: []*dhcpv6.OptIANA{ia}}).choose(&Ask{}, netip.Addr{}, nil); err == nil {
			t.Errorf("took %s", o.addr)
		}
	}
}

// TestQuestion: what a server reads.
func TestQuestion(t *testing.T) {
	q := question{
		kind: dhcpv6.MessageTypeRequest, xid: dhcpv6.TransactionID{1, 2, 3}, server: "\x00\x09odd",
		ask:   &Ask{DUID: LinkLayerDUID(mustMAC("02:42:0a:00:00:01")), IAID: 7, Hostname: "web"},
		addrs: []netip.Addr{netip.MustParseAddr("2001:db8::1")},
	}
	m, err := dhcpv6.MessageFromBytes(q.bytes(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	ia := m.Options.OneIANA()
	if string(m.GetOneOption(dhcpv6.OptionServerID).ToBytes()) != "\x00\x09odd" || ia == nil || ia.IaId != [4]byte{0, 0, 0, 7} ||
		ia.T1 != 0 || ia.T2 != 0 || ia.Options.OneAddress().IPv6Addr.String() != "2001:db8::1" || ia.Options.OneAddress().ValidLifetime != 0 {
		t.Errorf("%s", m.LongString(0))
	}
	if e := m.Options.ElapsedTime(); e != 655350*time.Millisecond { // RFC 8415 21.9
		t.Errorf("elapsed %v", e)
	}
	// RFC 4704 4.2: a name without a domain has no end mark.
	if f := m.GetOneOption(dhcpv6.OptionFQDN).ToBytes(); string(f) != "\x01\x03web" {
		t.Errorf("name %q", f)
	}
	q.ask.Hostname = "web.example"
	m, _ = dhcpv6.MessageFromBytes(q.bytes(0))
	if f := m.GetOneOption(dhcpv6.OptionFQDN).ToBytes(); string(f) != "\x01\x03web\x07example\x00" {
		t.Errorf("name %q", f)
	}
	for _, want := range []dhcpv6.OptionCode{23, 24, 39, 82} {
		if !m.IsOptionRequested(want) {
			t.Errorf("%v is not asked for", want)
		}
	}
	q.kind = dhcpv6.MessageTypeRelease
	if m, _ = dhcpv6.MessageFromBytes(q.bytes(0)); m.GetOneOption(dhcpv6.OptionORO) != nil || m.GetOneOption(dhcpv6.OptionFQDN) != nil {
		t.Errorf("%s", m.LongString(0))
	}
}

func TestDUID(t *testing.T) {
	ll := LinkLayerDUID(mustMAC("02:42:0a:00:00:01"))
	if ll.String() != "00:03:00:01:02:42:0a:00:00:01" {
		t.Error(ll)
	}
	uuid := NameDUID("web")
	if d, err := dhcpv6.DUIDFromBytes([]byte(uuid)); err != nil || d.DUIDType() != dhcpv6.DUID_UUID || uuid == NameDUID("db") || uuid != NameDUID("web") {
		t.Error(uuid, err)
	}
	for s, ok := range map[string]bool{
		"00:03:00:01:02:42:0a:00:00:01": true, "0003000102420a000001": true,
		"": false, "00": false, "0g:00:00": false, strings.Repeat("00", 131): false,
	} {
		if _, err := ParseDUID(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
	for s, want := range map[string]string{
		"fe80::1": "fe80::1", "fe80::1%eth0": "fe80::1", "00:03:00:01:02:42:0a:00:00:01": "00:03:00:01:02:42:0a:00:00:01",
		"2001:db8::1": "", "192.0.2.1": "", "router": "",
	} {
		got, err := ParseServer(s)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
}

// TestJSON: a lease that is stored is the same.
func TestJSON(t *testing.T) {
	l := Lease{
		Ask: Ask{Key: "web", Link: "eth0", MAC: mustMAC("02:42:0a:00:00:01"), DUID: NameDUID("web"), IAID: 1, Hostname: "web",
			Want: netip.MustParseAddr("2001:db8::1"), Servers: []Server{{Addr: here}, {DUID: NameDUID("x")}}},
		Terms: Terms{Addr: netip.MustParseAddr("2001:db8::1"), Server: Server{DUID: "\x00\x09\xff\xfe", Addr: here},
			DNS: []netip.Addr{here}, Search: []string{"lan"}},
		Granted: time.Unix(1e9, 0).UTC(), Expires: time.Unix(2e9, 0).UTC(),
	}
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	var got Lease
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if diff := cmp.Diff(l, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}

// FuzzAnswer: no message makes a lease that breaks the promises of Lease.
func FuzzAnswer(f *testing.F) {
	ia := &dhcpv6.OptIANA{T1: time.Minute, T2: 2 * time.Minute}
	ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("2001:db8::1"), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
	for _, kind := range []dhcpv6.MessageType{dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply} {
		m := dhcpv6.Message{MessageType: kind}
		m.AddOption(raw(dhcpv6.OptionClientID, "\x00\x03\x00\x01client"))
		m.AddOption(raw(dhcpv6.OptionServerID, "\x00\x03\x00\x01server"))
		m.AddOption(ia)
		m.AddOption(&dhcpv6.OptStatusCode{StatusCode: 2, StatusMessage: "no"})
		m.AddOption(dhcpv6.OptDNS(net.ParseIP("2001:db8::53")))
		m.AddOption(raw(dhcpv6.OptionDomainSearchList, "\x03lan\x07example\x00\x04test\xc0\x04"))
		m.AddOption(raw(dhcpv6.OptionSolMaxRT, "\x00\x00\x0e\x10"))
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parse(b, here)
		if err != nil {
			return
		}
		now := time.Now()
		ask := Ask{}
		if len(a.ias) > 0 {
			ask.IAID = uint32(a.ias[0].IaId[3])
		}
		o, err := a.choose(&ask, netip.Addr{}, nil)
		if err != nil {
			if s := err.Error(); s != printable(s) {
				t.Errorf("error %q", s)
			}
			return
		}
		l := a.lease(&ask, o, now)
		never := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
		at := func(when time.Time) time.Time {
			if when.IsZero() {
				return never
			}
			return when
		}
		if !usable(l.Addr) || at(l.Renew).Sub(now) < shortest/2 || at(l.Renew).After(at(l.Rebind)) || at(l.Rebind).After(at(l.Expires)) {
			t.Errorf("%+v", l)
		}
		if len(l.DNS) > maxServers || len(l.Search) > maxServers {
			t.Errorf("%d, %d", len(l.DNS), len(l.Search))
		}
		if j, err := json.Marshal(l); err != nil {
			t.Errorf("%v: %s", err, j)
		} else if err := json.Unmarshal(j, &Lease{}); err != nil {
			t.Errorf("%v: %s", err, j)
		}
	})
}
