// Package ipam gives out the addresses of physical subnets: it keeps one pool
// for each subnet, however many Docker networks name it, and promises two
// things. An address is never given twice, and nothing stays held that nobody
// needs any more.
//
// The first promise is kept by one mutex over the pools and by the disk: a
// hold is on disk before it is answered, and a release is on disk before the
// address may be given again. While the disk works, the lock is free, and the
// pool or address concerned is marked unsettled; who needs it waits for it.
//
// The second promise is hard, because Docker does not say who needs what. It
// asks for the reserved addresses of a network before the network exists, asks
// again for everything after a restart without saying that it repeats itself,
// and may die between any two calls. So three parties are heard: dockerd's
// requests and releases (references of a pool, held addresses), the networks
// that the driver knows (NetworkCreated, NetworkDeleted), and its endpoints
// (Users). What none of them has wanted for a while is a leftover, and goes;
// see leftover.go. In doubt an address stays held.
//
// A physical subnet has addresses of machines that Docker does not know, so
// others are heard, too: the Host, for the subnet of a NIC and what may never be
// given out (nic.go, lan.go), and through a Detector the LAN itself (scout.go).
// No lock is held while they are asked. Package ipam/lan is the Host, package
// ipam/probe the Detector.
package ipam
