// Package dhcp6 leases IPv6 addresses from the LAN's DHCPv6 servers (RFC 8415,
// stateful, IA_NA) for many containers at once, and keeps them: it renews,
// rebinds, confirms, declines, releases, and goes on asking for as long as a
// lease is wanted. It exists so that no container needs a client of its own.
//
// A container has no interface yet when its address is asked for. So the client
// speaks for all of them from the parent: with the parent's MAC, from a
// link-local address that is the client's own, and with a DUID for each
// container, which is what a server tells its clients apart by. It answers the
// neighbour solicitations for that address itself. Nothing in it needs the
// host's IPv6, which may be disabled on the parent; the host's firewall does not
// see it; and a DHCPv6 client of the host's own keeps its port 546.
//
// What a server cannot see this way is a container's MAC, except in its DUID (DUID-LL,
// RFC 8415 11.4): kea reads it there, dnsmasq does not, and wants a
// reservation by DUID. What the client cannot hear is a server on this host.
//
// The prefix length and the router are not DHCPv6's to tell: they come from the
// network's subnet or from router advertisements.
package dhcp6
