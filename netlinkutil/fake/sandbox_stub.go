package fake

import "underlay/netlinkutil"

func (k *Kernel) Inside(sandbox, alias string) (netlinkutil.Interface, error) { return netlinkutil.Interface{}, netlinkutil.ErrNoEntry }
func (k *Kernel) Restore(sandbox string, s netlinkutil.SubInterface, want netlinkutil.Interface) error { return netlinkutil.ErrNoEntry }
func (k *Kernel) RaiseMTU(sandbox, alias string, mtu int) error { return netlinkutil.ErrNoEntry }
func (k *Kernel) RemoveInside(sandbox, alias string) error { return netlinkutil.ErrNoEntry }
