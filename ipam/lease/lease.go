package lease

import (
	"context"
	"net/netip"
	"slices"

	"underlay/internal/options"
	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
)

// Lease is one of either family.
type Lease struct {
	dhcp.Lease              // of IPv6: what the two have in common
	V6         *dhcp6.Lease `json:"v6,omitempty"` // as its client knows it; nil: IPv4
}

// lease6 is one of IPv6. The prefix that its address is in is not the server's to
// tell: it is alone on the link unless one of those that are known there holds it.
func lease6(l dhcp6.Lease, known ...netip.Prefix) Lease {
	bits := 128
	for _, p := range known {
		if p.IsValid() && p.Masked().Contains(l.Addr) {
			bits = p.Bits()
		}
	}
	return Lease{V6: &l, Lease: dhcp.Lease{
		Ask:     dhcp.Ask{Key: l.Key, Link: l.Link, MAC: l.MAC, Hostname: l.Hostname, Want: l.Want},
		Terms:   dhcp.Terms{Addr: netip.PrefixFrom(l.Addr, bits), Server: l.Server.Addr, DNS: l.DNS, Search: l.Search},
		Granted: l.Granted, Renew: l.Renew, Rebind: l.Rebind, Expires: l.Expires,
	}}
}

// server is the one that has given it, for a person.
func (l *Lease) server() string {
	if l.V6 != nil {
		return l.V6.Server.String()
	}
	return l.Server.String()
}

// Client6 speaks with the servers of IPv6. See package dhcp6.
type Client6 interface {
	Acquire(context.Context, dhcp6.Ask) (dhcp6.Lease, error)
	Restore([]dhcp6.Lease) error
	Release(key string)
	Forget(key string)
	Decline(key string, why error)
}

// speaker ends leases of a family.
type speaker interface {
	Release(key string)
	Forget(key string)
}

func (b *Book) speaker(v6 bool) speaker {
	if v6 {
		return b.client6
	}
	return b.client
}

// acquire takes a lease of the family that the request is of.
func (b *Book) acquire(ctx context.Context, r Request, a ask) (Lease, error) {
	if !r.V6 {
		l, err := b.client.Acquire(ctx, a.v4)
		return Lease{Lease: l}, err
	}
	l, err := b.client6.Acquire(ctx, a.v6)
	return lease6(l, append(r.OnLink, r.Subnet)...), err
}

// restore goes on with leases; the error says which are not gone on with.
func (b *Book) restore(all []Lease) (err, err6 error) {
	var v4 []dhcp.Lease
	var v6 []dhcp6.Lease
	for _, l := range all {
		if l.V6 != nil {
			v6 = append(v6, *l.V6)
		} else {
			v4 = append(v4, l.Lease)
		}
	}
	if len(v6) > 0 {
		err6 = b.client6.Restore(v6)
	}
	return b.client.Restore(v4), err6
}

// decline tells the server that an address cannot be used, and ends the lease.
func (b *Book) decline(key string, v6 bool, why error) {
	if !v6 {
		b.client.Decline(key, why.Error())
		return
	}
	b.client6.Decline(key, why)
	b.client6.Forget(key) // or it would ask for another
}

// ask is what a lease is asked for with, in the words of its family.
type ask struct {
	v4 dhcp.Ask
	v6 dhcp6.Ask
}

// sixth is an ask of IPv6 that says of the container what one of IPv4 says.
func sixth(a dhcp.Ask, r Request, id [32]byte) dhcp6.Ask {
	s := dhcp6.Ask{Key: a.Key, Link: a.Link, MAC: a.MAC, IAID: 1, Hostname: a.Hostname, Want: a.Want, Passthru: r.Alone, Servers: servers6(r.DHCP)}
	switch c := r.ClientID; {
	case len(c) >= 1+4+3 && len(c) <= 1+4+130 && c[0] == 255: // RFC 4361 section 6.1
		s.IAID, s.DUID = uint32(c[1])<<24|uint32(c[2])<<16|uint32(c[3])<<8|uint32(c[4]), dhcp6.DUID(c[5:])
	case c != nil || r.Shared:
		s.DUID = dhcp6.DUID(uuid(id))
	default:
		s.DUID = dhcp6.LinkLayerDUID(a.MAC)
	}
	return s
}

// servers4 and servers6 are those of a family that may be listened to.
func servers4(o options.DHCP) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(o.Servers), netip.Addr.Is6)
}

func servers6(o options.DHCP) (all []dhcp6.Server) {
	for _, a := range o.Servers {
		if a.Is6() {
			all = append(all, dhcp6.Server{Addr: a})
		}
	}
	for _, text := range o.DUIDs {
		if d, err := dhcp6.ParseDUID(text); err == nil { // it was looked at when the option was read
			all = append(all, dhcp6.Server{DUID: d})
		}
	}
	return all
}
