// Package netlinkutil speaks to the kernel about links: parents, VLAN and
// dummy parents, and the macvlan and ipvlan sub-interfaces on them; which
// subnets the host is on by them; what becomes of them, here and in a
// container; and how the host reaches containers, by a sub-interface of its own
// with a route to each. It also goes into a container's netns, where that is
// allowed, to picture an interface, and to make it again as it was when its
// parent has gone and come back. It is the only package that imports netlink,
// so that everyone else asks in the words of the domain and gets errors that a
// person who typed a docker command can act on, not an errno.
//
// Every verb is idempotent and none hangs: the kernel's silence for Timeout is
// an error. Those that wait for news take a context.
package netlinkutil
