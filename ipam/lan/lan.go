// Package lan tells the IPAM what the host knows of the LANs that it is on. It
// stands between ipam and netlinkutil, so that neither knows the other.
package lan

import (
	"bufio"
	"errors"
	"net/netip"
	"os"
	"strings"

	"underlay/ipam"
	"underlay/netlinkutil"
)

// Kernel is what is asked of the host's network stack. *netlinkutil.Host is the
// real one.
type Kernel interface {
	Link(name string) (netlinkutil.Link, error)
	DefaultLink(v6 bool) (string, error)
	Subnets(link string) ([]netlinkutil.Subnet, error)
	Own() (map[netip.Addr]string, error)
}

// Host is an ipam.Host.
type Host struct {
	kernel   Kernel
	resolver string
}

// ResolvConf is the file in which the host's DNS servers stand (resolv.conf(5)).
// dockerd mounts the host's into a managed plugin.
const ResolvConf = "/etc/resolv.conf"

// New makes a Host of a kernel and a file like ResolvConf.
func New(kernel Kernel, resolver string) *Host { return &Host{kernel, resolver} }

// DefaultLink is the name of the link with the default route.
func (h *Host) DefaultLink(v6 bool) (string, error) { return h.kernel.DefaultLink(v6) }

// Subnets lists the subnets that a link is on. The link may be given by an
// altname.
func (h *Host) Subnets(link string) (string, []ipam.HostSubnet, error) {
	l, err := h.kernel.Link(link)
	if err != nil {
		return "", nil, err
	}
	all, err := h.kernel.Subnets(l.Name)
	if err != nil {
		return "", nil, err
	}
	subnets := make([]ipam.HostSubnet, len(all))
	for i, s := range all {
		subnets[i] = ipam.HostSubnet{Prefix: s.Prefix, Gateway: s.Gateway}
	}
	return l.Name, subnets, nil
}

// Taken lists the host's own addresses, its gateways and its DNS servers. Where
// a local resolver such as systemd-resolved hides the latter, they are not known.
func (h *Host) Taken() (map[netip.Addr]string, error) {
	taken, err := h.kernel.Own()
	if err != nil {
		return nil, err
	}
	servers, err := nameservers(h.resolver)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, addr := range servers {
		if taken[addr] == "" {
			taken[addr] = "a DNS server of this host"
		}
	}
	return taken, nil
}

func nameservers(file string) (addrs []netip.Addr, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(words[1]); err == nil {
			addrs = append(addrs, addr.WithZone("").Unmap())
		}
	}
	return addrs, lines.Err()
}
