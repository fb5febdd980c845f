// Package privilege gives up what root may do and underlay does not need, so
// that a fault in what it reads off the LAN is worth less to who finds it.
package privilege
