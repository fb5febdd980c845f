// Package doctor finds out what on a host will not work with underlay, and says
// in words what to do.
//
// A check is a row of a table and a small function over Facts, which Gather
// collects. So a check is tested with facts that are made up, and another way to
// find one out touches no check. What could not be found out is a note: no check
// guesses.
//
// Nothing is changed on the host. The LAN is asked as a container would ask it,
// by ARP, neighbour and router discovery and a DHCP discover, of which nothing
// stays but for some minutes in the memory of switches.
package doctor
