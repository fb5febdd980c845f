package options

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unicode"
)

// DHCP is what a pool or a network says of leases from the LAN's own server.
type DHCP struct {
	V4      bool          `json:"v4,omitempty"`
	V6      bool          `json:"v6,omitempty"`
	Servers []netip.Addr  `json:"servers,omitempty"` // whose answers count; none: anybody's
	Timeout time.Duration `json:"timeout,omitempty"` // that a container's start waits for a lease
	Keep    bool          `json:"keep,omitempty"`    // a lease is not released at the container's end
	Class   string        `json:"class,omitempty"`   // the vendor class that is told
	MTU     bool          `json:"mtu,omitempty"`     // that which the server tells is the interface's
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
		{Option{"dhcp", "true or v4", "no",
			"addresses are leased from the LAN's own DHCP server"},
			func(t *T, v string) error {
				d := of(t)
				d.V4 = v == "true" || v == "v4"
				return among([]string{"true", "v4", "false"}, v)
			}},
		{Option{"dhcp_server", "the servers' IPv4 addresses with a comma between", "any",
			"whose leases are taken; another server on the LAN is ignored"},
			func(t *T, v string) (err error) { of(t).Servers, err = addresses(v); return err }},
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

// check refuses what goes with leases alone.
func (d *DHCP) check(flag string) error {
	if d.On() {
		if d.Timeout == 0 {
			d.Timeout = defaultLeaseTimeout
		}
		return nil
	}
	for _, o := range []struct {
		given bool
		key   string
	}{{d.Servers != nil, "dhcp_server"}, {d.Timeout != 0, "lease_timeout"}, {d.Keep, "dhcp_release"}, {d.Class != "", "dhcp_class"}, {d.MTU, "dhcp_mtu"}} {
		if o.given {
			return fmt.Errorf("%s %s is for leases; add %s dhcp=true, or leave it out", flag, o.key, flag)
		}
	}
	return nil
}

func addresses(v string) (found []netip.Addr, err error) {
	list, err := entries(v)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		a, err := address(e)
		if err != nil {
			return nil, err
		}
		if !a.Is4() {
			return nil, fmt.Errorf("%s is no IPv4 address", a)
		}
		found = append(found, a)
	}
	return found, nil
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
