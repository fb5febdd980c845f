package netlinkutil

import "fmt"

// SetMTU sets the MTU of a link, in bytes. Links on it may keep a lower one, and
// the kernel lowers those that have a higher one.
func (h *Host) SetMTU(name string, mtu int) error {
	if err := CheckName(name); err != nil {
		return err
	}
	k, err := h.get(name)
	if err != nil {
		return err
	}
	return Explain(tell(func() error { return h.nl.LinkSetMTU(k, mtu) }), "", fmt.Sprintf("setting the MTU of link %s to %d", name, mtu))
}
