// Package lease keeps the book of the addresses that containers have from the
// LAN's own DHCP servers: who has which, under what identity, and what became of
// it. It exists so that a container which is started again is the same machine to
// the server, and so that leases outlive the plugin.
//
// The book is on disk, the clients (ipam/dhcp, ipam/dhcp6) know the protocols, and
// IPAM and driver only take leases and give them up. What Docker was told of a lease
// never changes; what the server has made of it since may differ, and is said as
// drift.
package lease
