// Package driver knows the networks and endpoints: what exists, what should
// exist, and how to get from one to the other.
//
// A network is a parent link and a mode; an endpoint is a sub-interface on
// that parent for one container. Both are kept in the store. Names of links
// are derived from Docker's IDs, so that nothing has to be remembered to find
// a link again.
//
// The driver speaks the language of its domain and never the wire's: package
// plugin translates.
package driver
