package netlinkutil

// Found is a link in a container.
type Found struct {
	Sandbox   string
	Interface Interface
}

// InsideAll pictures the links in containers whose alias begins with prefix.
func (h *Host) InsideAll(prefix string) (map[string]Found, error) { return nil, ErrNoEntry }
