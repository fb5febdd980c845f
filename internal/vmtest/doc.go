// Package vmtest tests the whole plugin: a real dockerd with underlay installed
// as a managed plugin, real containers, and a LAN made of network namespaces.
// It takes over the machine it runs on, so it runs only in a VM that scripts/vm boots, or
// in namespaces that it makes; its files have the build tag vm.
//
// Every test leaves the machine as it found it: no link, route, address,
// network namespace or record more. begin takes a picture before the test and
// compares after it.
package vmtest
