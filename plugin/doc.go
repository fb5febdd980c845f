// Package plugin is the wire: one HTTP mux on one unix socket for Docker's
// network driver protocol, its IPAM driver protocol, and underlay's own calls.
// It translates strings into the types of driver and ipam and back, gives
// every call a deadline, and puts the parts together.
//
// One Docker plugin socket may serve both protocols, but the two handlers of
// go-plugins-helpers cannot be joined and lack calls that Docker 28 makes, so
// its sdk.Handler serves routes that are registered here.
package plugin
