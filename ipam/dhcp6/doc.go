// Package dhcp6 leases IPv6 addresses from the LAN's DHCPv6 servers (RFC 8415,
// stateful, IA_NA) for many containers at once, and keeps them: it renews,
// rebinds, confirms, declines, releases, and goes on asking for as long as a
// lease is wanted. It exists so that no container needs a client of its own.
//
// A container has no interface yet when its address is asked for. So the client
// speaks for all of them from the parent: with the parent's MAC and link-local
// address, and with a DUID for each container, which is what a server tells its
// clients apart by. Where the host's IPv6 is off on the parent, or it has no
// link-local address, the client has one of its own, and answers the neighbour
// solicitations for it. It hears by a packet socket: the host's firewall is not
// asked, and a DHCPv6 client of the host's own keeps its port 546.
//
// What a server cannot see this way is a container's MAC, except in its DUID (DUID-LL,
// RFC 8415 11.4): kea reads it there, dnsmasq does not, and wants a
// reservation by DUID. What the client cannot hear is a server on this host.
//
// The prefix length and the router are not DHCPv6's to tell: they come from the
// network's subnet or from router advertisements.
package dhcp6
