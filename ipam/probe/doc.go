// Package probe asks the LAN behind a link who has which address, hears what
// the LAN says by itself, and announces addresses there: ARP as in RFC 5227
// for IPv4, neighbour discovery as in RFC 4861 and 4862 for IPv6. It exists so
// that no address of a machine that Docker does not know of is given out.
//
// Everything goes through packet sockets bound to the link. So the host needs
// no address there, IPv6 may be disabled, a VLAN is a link like any other, and
// no probe ever carries its candidate as the sender: no neighbour's cache is
// touched by a question. CAP_NET_RAW is all it takes.
//
// It also answers for addresses that the LAN is to find at the link although no
// kernel says so: those of ipvlan links in l3 and l3s mode (Answer). That takes a
// socket more, which sees a question before an ipvlan link swallows it, and for
// IPv6 the membership in the addresses' multicast groups, so that a switch lets
// the question through.
//
// What cannot be heard: a machine that is switched off; a macvlan link of this
// same host, since the kernel passes nothing between a parent and its macvlan
// links; where a macvlan link in passthru mode is on the parent, IPv4 answers,
// which go to that link alone; and who announces or claims the address of an
// ipvlan link in l3 mode, unless it is answered for.
package probe
