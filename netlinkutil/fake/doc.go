// Package fake is a kernel in memory with the verbs of netlinkutil.Host. It
// keeps the kernel's rules about who may stand on which parent, refuses in the
// same words, and prints its whole state as text, so that a test compares
// with a golden picture. Package netlinkutil's contract suite runs on both.
package fake
