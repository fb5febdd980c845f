package options

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
)

// DHCP is what a pool or a network says of leases from the LAN's own server.
type DHCP struct {
	V4      bool          `json:"v4,omitempty"`
	V6      bool          `json:"v6,omitempty"`
	Servers []netip.Addr  `json:"servers,omitempty"` // whose answers count, of each family; none of one: anybody's
	DUIDs   []string      `json:"duids,omitempty"`   // the same, of DHCPv6: in hexadecimal, without colons
	Timeout time.Duration `json:"timeout,omitempty"` // that a container's start waits for a lease
	Keep    bool          `json:"keep,omitempty"`    // a lease is not released at the container's end
	Class   string        `json:"class,omitempty"`   // the vendor class that is told; DHCPv4 only
	MTU     bool          `json:"mtu,omitempty"`     // that which the server tells is the interface's; DHCPv4 only
}

// On says whether any family is leased.
func (d *DHCP) On() bool { return d.V4 || d.V6 }

// Leased says whether a family is.
func (d *DHCP) Leased(v6 bool) bool {
	if v6 {
		return d.V6
	}
	return d.V4
}

const defaultLeaseTimeout = 10 * time.Second

// MaxLeaseTimeout is the most that a container's start waits for a lease.
const MaxLeaseTimeout = 60 * time.Second

// dhcpTable is part of the tables of networks and pools.
func dhcpTable[T any](of func(*T) *DHCP) []option[T] {
	return []option[T]{
		{Option{"dhcp", "v4, v6, both, or true, which is v4", "no",
			"addresses are leased from the LAN's own DHCP server"},
			func(t *T, v string) error {
				d := of(t)
				d.V4 = v == "true" || v == "v4" || v == "both"
				d.V6 = v == "v6" || v == "both"
				return among([]string{"true", "v4", "v6", "both", "false"}, v)
			}},
		{Option{"dhcp_server", "the servers' IPv4 addresses, and for DHCPv6 link-local ones or DUIDs, with a comma between", "any",
			"whose leases are taken; another server on the LAN is ignored"},
			func(t *T, v string) (err error) {
				of(t).Servers, of(t).DUIDs, err = servers(v)
				return err
			}},
		{Option{"lease_timeout", "a time from 1s to 60s", "10s",
			"how long a container's start waits for its lease"},
			func(t *T, v string) (err error) {
				of(t).Timeout, err = span(v, time.Second, MaxLeaseTimeout)
				return err
			}},
		{Option{"dhcp_release", "true or false", "true",
			"whether a lease is given back when its container stops"},
			func(t *T, v string) error {
				release, err := boolean(v)
				of(t).Keep = !release
				return err
			}},
		{Option{"dhcp_class", "a word of at most 255 bytes", "none",
			"the vendor class that the server is told (option 60)"},
			func(t *T, v string) error { of(t).Class = v; return printable(v) }},
		{Option{"dhcp_mtu", "true or false", "false",
			"whether the container has the MTU that the server tells (option 26)"},
			func(t *T, v string) (err error) { of(t).MTU, err = boolean(v); return err }},
	}
}

// check refuses what goes with leases alone, or with those of another family.
func (d *DHCP) check(flag string) error {
	v4 := slices.ContainsFunc(d.Servers, netip.Addr.Is4)
	v6 := len(d.DUIDs) > 0 || slices.ContainsFunc(d.Servers, netip.Addr.Is6)
	switch {
	case !d.On():
	case v4 && !d.V4:
		return fmt.Errorf("%s dhcp_server names an IPv4 address, which is no DHCPv6 server's; give its link-local address or DUID, or %s dhcp=both", flag, flag)
	case v6 && !d.V6:
		return fmt.Errorf("%s dhcp_server names a DHCPv6 server, and only IPv4 addresses are leased; leave it out, or give %s dhcp=both", flag, flag)
	case !d.V4 && d.Class != "":
		return fmt.Errorf("%s dhcp_class is for DHCPv4, and only IPv6 addresses are leased; leave it out, or give %s dhcp=both", flag, flag)
	case !d.V4 && d.MTU:
		return fmt.Errorf("%s dhcp_mtu is for DHCPv4, and only IPv6 addresses are leased, whose MTU router advertisements tell; leave it out, or give %s dhcp=both", flag, flag)
	}
	if d.On() {
		if d.Timeout == 0 {
			d.Timeout = defaultLeaseTimeout
		}
		return nil
	}
	for _, o := range []struct {
		given bool
		key   string
	}{{v4 || v6, "dhcp_server"}, {d.Timeout != 0, "lease_timeout"}, {d.Keep, "dhcp_release"}, {d.Class != "", "dhcp_class"}, {d.MTU, "dhcp_mtu"}} {
		if o.given {
			return fmt.Errorf("%s %s is for leases; add %s dhcp=true, or leave it out", flag, o.key, flag)
		}
	}
	return nil
}

// servers reads addresses and DUIDs.
func servers(v string) (addrs []netip.Addr, duids []string, err error) {
	list, err := entries(v)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range list {
		if duid, ok := duid(e); ok {
			duids = append(duids, duid)
			continue
		}
		a, err := address(e)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("%q is neither an address nor a DUID", clip(e))
		case a.Is6() && !a.IsLinkLocalUnicast():
			return nil, nil, fmt.Errorf("%s is no link-local address, which a DHCPv6 server answers from", a)
		}
		addrs = append(addrs, a)
	}
	return addrs, duids, nil
}

// duid reads that of a server: 3 to 130 bytes (RFC 8415 section 11.1) in hexadecimal,
// with colons between or not.
func duid(v string) (string, bool) {
	if a, err := netip.ParseAddr(v); err == nil && a.IsValid() {
		return "", false
	}
	b, err := hex.DecodeString(strings.ReplaceAll(v, ":", ""))
	return hex.EncodeToString(b), err == nil && len(b) >= 3 && len(b) <= 130
}

func printable(v string) error {
	if len(v) > 255 {
		return errors.New("it is too long")
	}
	for _, r := range v {
		if !unicode.IsPrint(r) {
			return errors.New("it has what cannot be printed")
		}
	}
	return nil
}
