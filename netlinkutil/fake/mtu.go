package fake

import "underlay/netlinkutil"

// SetMTU sets the MTU of a link, as Host's does.
func (k *Kernel) SetMTU(name string, mtu int) error {
	k.mu.Lock()
	defer k.unlock()
	if err := k.injected("SetMTU"); err != nil {
		return err
	}
	l := k.find(name)
	if l == nil {
		return netlinkutil.NotFound("link", name)
	}
	l.MTU = mtu
	k.lowered(l)
	return nil
}
