package netlinkutil

import (
	"errors"
	"net/netip"
)

var (
	ErrNoSandbox = errors.New("no such network namespace")
	ErrNoEntry   = errors.New("no entry")
)

// Interface is a link in a container.
type Interface struct {
	Name   string         `json:"name"`
	MTU    int            `json:"mtu"`
	Up     bool           `json:"-"`
	Addrs  []netip.Prefix `json:"addrs,omitempty"`
}

func (h *Host) Inside(sandbox, alias string) (Interface, error)                   { return Interface{}, ErrNoEntry }
func (h *Host) Restore(sandbox string, s SubInterface, want Interface) error      { return ErrNoEntry }
func (h *Host) RaiseMTU(sandbox, alias string, mtu int) error                     { return ErrNoEntry }
func (h *Host) RemoveInside(sandbox, alias string) error                          { return ErrNoEntry }
