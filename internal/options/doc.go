// Package options reads what users write behind -o and --ipam-opt. One table
// each names every key, what it takes and what it does; the README's tables
// are checked against them. An unknown key or a bad value is refused with the
// key, the value and what was wanted.
package options
