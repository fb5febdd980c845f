// Package lab tests what doctor finds on a LAN of network namespaces. It is apart
// from doctor so that it runs where there is no source: on the kernel of a VM.
package lab
