// Package mode names the ways a sub-interface can sit on its parent. It is a
// leaf that the option parser, the driver and netlinkutil share, so that a
// mode is a typed value everywhere and what follows from it is asked of the
// value, not worked out again.
package mode
