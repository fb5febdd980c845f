package fake

import "underlay/netlinkutil"

// InsideAll is a stub.
func (k *Kernel) InsideAll(prefix string) (map[string]netlinkutil.Found, error) {
	return nil, netlinkutil.ErrNoEntry
}
