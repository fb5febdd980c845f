// Package dhcp takes IPv4 addresses for containers from the LAN's own DHCP
// server and keeps them: RFC 2131, with the options of RFC 2132, 3397 and 3442.
// It exists so that no container needs a DHCP client of its own, and none has to
// be up yet when its address is taken.
//
// One Client serves all containers. A lease costs some memory and a place in one
// queue of due times: no socket, no goroutine. Everything is sent from the parent
// link with the container's MAC as the sender, as the container itself would, so
// that a switch which compares the two (DHCP snooping) lets it through.
//
// Answers to a first question are broadcast, as asked for. Answers to a renewal
// are not: a server sends them to the address that is renewed (RFC 2131 4.1),
// and a macvlan or ipvlan link swallows them. So the client's packet socket is one
// for all protocols, which the kernel serves before such a link
// (net/core/dev.c, __netif_receive_skb_core). Such a socket costs every frame a
// look, hence it is open only while something is asked.
//
// The package knows nothing of Docker, of netlink, or of where leases are stored.
package dhcp
