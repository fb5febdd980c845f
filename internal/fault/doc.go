// Package fault kills the process at a point of its work that a test names. It
// is linked into builds with the tag faults alone.
package fault
