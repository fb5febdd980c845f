package dhcp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// FuzzDecode: whatever a server says, what comes of it is usable.
func FuzzDecode(f *testing.F) {
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeOffer, ack, nak} {
		m, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IP{10, 0, 0, 9}),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 0, 0, 1})),
			dhcpv4.WithOption(dhcpv4.OptSubnetMask(net.CIDRMask(24, 32))),
			dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(time.Hour)),
			dhcpv4.WithOption(dhcpv4.OptRenewTimeValue(time.Minute)),
			dhcpv4.WithOption(dhcpv4.OptRouter(net.IP{10, 0, 0, 1})),
			dhcpv4.WithOption(dhcpv4.OptDNS(net.IP{10, 0, 0, 1}, net.IP{10, 0, 0, 2})),
			dhcpv4.WithOption(dhcpv4.OptDomainName("example.org")),
			dhcpv4.WithDomainSearchList("a.example", "b.a.example"),
			dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{
				Dest: &net.IPNet{IP: net.IP{10, 9, 0, 0}, Mask: net.CIDRMask(16, 32)}, Router: net.IP{10, 0, 0, 2},
			})),
			dhcpv4.WithOption(dhcpv4.OptMessage("no")),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 0xdc}))
		if err != nil {
			f.Fatal(err)
		}
		m.OpCode, m.ClientHWAddr = dhcpv4.OpcodeBootReply, hw(1)
		if p, ok := parse(reply(netip.MustParseAddr("10.0.0.1"), m.ToBytes())); !ok {
			f.Fatal("not even parsed")
		} else if a, err := decode(p.message); err != nil || a.kind != kind {
			f.Fatal(a, err)
		}
		f.Add(m.ToBytes())
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionOptionOverload, []byte{3}))
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(reply(netip.MustParseAddr("10.0.0.1"), b))
		if !ok {
			return
		}
		a, err := decode(p.message)
		if err != nil || a.kind != ack {
			if !ascii(a.word) {
				t.Errorf("%q", a.word)
			}
			return
		}
		addrs := append([]netip.Addr{a.server, a.terms.Addr.Addr()}, a.terms.Routers...)
		addrs = append(addrs, a.terms.DNS...)
		for _, r := range a.terms.Routes {
			if r.Via.IsValid() {
				addrs = append(addrs, r.Via)
			}
			if r.To != r.To.Masked() || !r.To.IsValid() {
				t.Errorf("route to %s", r.To)
			}
		}
		for _, a := range addrs {
			if !a.Is4() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a == everyAddr {
				t.Errorf("address %s", a)
			}
		}
		if n := a.terms.Addr.Bits(); n < 1 || n > 32 {
			t.Errorf("%d bits", n)
		}
		if x := a.times; x != (times{}) && (x.renew < shortest/4 || x.rebind <= x.renew || x.expire <= x.rebind) {
			t.Errorf("%+v", x)
		}
		for _, s := range append([]string{a.terms.Domain, a.word}, a.terms.Search...) {
			if !ascii(s) || len(s) > 253 {
				t.Errorf("%q", s)
			}
		}
		if len(a.terms.Routes) > 0 && len(a.terms.Routers) > 0 {
			t.Error("routers beside routes")
		}
		if m := a.terms.MTU; m != 0 && m < 576 {
			t.Errorf("MTU %d", m)
		}
	})
}

func ascii(s string) bool {
	for _, r := range s {
		if r < ' ' || r > '~' {
			return false
		}
	}
	return true
}
