package dhcp6

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"underlay/internal/wall"
)

// DUID identifies a client or a server: the bytes of RFC 8415 11, 3 to 130 of
// them. As text it is hexadecimal with colons, as dnsmasq and kea write it.
type DUID string

// LinkLayerDUID is the DUID-LL of a machine with that Ethernet address (RFC 8415
// 11.4).
func LinkLayerDUID(mac net.HardwareAddr) DUID {
	return DUID("\x00\x03\x00\x01" + string(mac))
}

// NameDUID is a DUID-UUID (RFC 6355) that is always the same for a name, for
// containers that share a MAC. The UUID is of version 8 (RFC 9562 5.8).
func NameDUID(name string) DUID {
	u := sha256.Sum256([]byte("underlay DUID " + name))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return DUID("\x00\x04" + string(u[:16]))
}

// ParseDUID reads hexadecimal digits, in pairs, with or without colons.
func ParseDUID(s string) (DUID, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || !DUID(b).sound() {
		return "", fmt.Errorf("%q is no DUID: 3 to 130 bytes in hexadecimal, such as 00:03:00:01:02:42:ac:11:00:02", s)
	}
	return DUID(b), nil
}

// sound: RFC 8415 11.1 has a type of 2 bytes and 1 to 128 more.
func (d DUID) sound() bool { return len(d) >= 3 && len(d) <= 130 }

func (d DUID) String() string {
	var s strings.Builder
	for i := range len(d) {
		if i > 0 {
			s.WriteByte(':')
		}
		fmt.Fprintf(&s, "%02x", d[i])
	}
	return s.String()
}

// MarshalText writes what ParseDUID reads.
func (d DUID) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a DUID; the empty text is none.
func (d *DUID) UnmarshalText(b []byte) (err error) {
	*d = ""
	if len(b) > 0 {
		*d, err = ParseDUID(string(b))
	}
	return err
}

// Server names a server: by its DUID, or by the link-local address that its
// answers come from, which is the relay agent's where there is one.
type Server struct {
	DUID DUID       `json:"duid,omitzero"`
	Addr netip.Addr `json:"addr,omitzero"`
}

// ParseServer reads a link-local address or a DUID.
func ParseServer(s string) (Server, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a = a.WithZone(""); a.Is6() && a.IsLinkLocalUnicast() {
			return Server{Addr: a}, nil
		}
		return Server{}, fmt.Errorf("%s is no link-local IPv6 address: a DHCPv6 server answers from one, such as fe80::1", s)
	}
	d, err := ParseDUID(s)
	if err != nil {
		return Server{}, fmt.Errorf("%q is neither a link-local address nor a DUID", s)
	}
	return Server{DUID: d}, nil
}

func (s Server) String() string {
	switch {
	case !s.Addr.IsValid():
		return s.DUID.String()
	case s.DUID == "":
		return s.Addr.String()
	}
	return fmt.Sprintf("%s (%s)", s.Addr, s.DUID)
}

// Ask says whose lease is wanted, and which.
type Ask struct {
	Key  string           `json:"key"`  // the caller's name for the lease; one lease a key
	Link string           `json:"link"` // the parent
	MAC  net.HardwareAddr `json:"mac"`  // the container's

	// DUID and IAID are what a server knows the lease by. Without a DUID it is
	// made from the MAC; who shares a MAC, as ipvlan does, must give one.
	DUID DUID   `json:"duid"`
	IAID uint32 `json:"iaid"`

	Hostname string `json:"hostname,omitempty"` // option 39, RFC 4704

	Want    netip.Addr `json:"want,omitzero"`     // this address or none
	Servers []Server   `json:"servers,omitempty"` // only these are heard; none: all

	// Passthru: the container takes all that reaches the parent. So the answers to
	// renewals are taken before it, at the cost of a look at every frame.
	Passthru bool `json:"passthru,omitempty"`

	// Previous is the lease of an earlier life: its address is taken if it may be.
	Previous *Lease `json:"-"`
}

// known says whether a server may be listened to.
func (a *Ask) known(s Server) bool {
	for _, k := range a.Servers {
		if k.DUID != "" && k.DUID == s.DUID || k.Addr.IsValid() && k.Addr == s.Addr {
			return true
		}
	}
	return len(a.Servers) == 0
}

// complete fills in what may be left out.
func (a *Ask) complete() error {
	if a.DUID == "" {
		if len(a.MAC) != 6 {
			return errors.New("a DHCPv6 lease needs a MAC or a DUID")
		}
		a.DUID = LinkLayerDUID(a.MAC)
	}
	if !a.DUID.sound() {
		return fmt.Errorf("%s is no DUID: it has 3 to 130 bytes", a.DUID)
	}
	if a.Want.IsValid() && !usable(a.Want) {
		return fmt.Errorf("%s is no address that DHCPv6 leases", a.Want)
	}
	return hostname(a.Hostname)
}

// hostname: RFC 4704 4.2 has labels as in RFC 1035 3.1.
func hostname(s string) error {
	if s == "" {
		return nil
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || len(s) > 253 {
			return fmt.Errorf("%q cannot be told to a DHCPv6 server as a name: labels have 1 to 63 characters, a name 253", s)
		}
	}
	return nil
}

// usable says whether a container may have a leased address.
func usable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast()
}

// Terms are what a server gives, made safe.
type Terms struct {
	Addr   netip.Addr   `json:"addr"`
	Server Server       `json:"server"`
	DNS    []netip.Addr `json:"dns,omitempty"`
	Search []string     `json:"search,omitempty"`
}

// Lease is an address, from whom, and for how long. It is what a caller stores
// for Restore. Its times are of the host's clock; zero is never.
type Lease struct {
	Ask
	Terms

	Granted   time.Time `json:"granted"`            // or renewed
	Renew     time.Time `json:"renew,omitzero"`     // T1
	Rebind    time.Time `json:"rebind,omitzero"`    // T2
	Preferred time.Time `json:"preferred,omitzero"` // no new connections from then on
	Expires   time.Time `json:"expires,omitzero"`
}

// shift moves the lease's times, and has them go by the host's clock alone: Go's own
// stands still while the host sleeps.
func (l *Lease) shift(d time.Duration) {
	wall.Shift(d, &l.Granted, &l.Renew, &l.Rebind, &l.Preferred, &l.Expires)
}

// over says whether the time t, zero being never, has come.
func over(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

// What is what has become of a lease.
type What string

// After Late, the client goes on to Renewed, Changed or Lost; after Lost, to
// Changed, even where it is the same address again.
const (
	Renewed What = "renewed" // the same for longer
	Changed What = "changed" // another address, or other DNS servers or search domains
	Late    What = "late"    // no server has renewed it by T2; the address is still good
	Lost    What = "lost"    // it has expired or was taken back; another is being asked for
)

// Event is what has become of a lease after Acquire or Restore.
type Event struct {
	What  What
	Lease Lease // as it is now; what was lost is still in it
	Was   Lease // before
	Err   error // why it is late or lost
}

// Status is how it stands with a lease.
type Status struct {
	Lease
	State   string // "bound", "renewing", …
	Trouble error  // what a server last said, or why none can be asked; nil: all is well
}
