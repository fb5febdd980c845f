package netlinkutil

import "errors"

// EnterSandboxes lets h into the netns of containers. dir is the folder of these
// as dockerd names it in its SandboxKeys, at is where this process sees it.
func (h *Host) EnterSandboxes(dir, at string) error { return errors.ErrUnsupported }

// Inside pictures the link of that alias in a sandbox.
func (h *Host) Inside(sandbox, alias string) (Interface, error) { return Interface{}, ErrNoEntry }

// Restore makes the sub-interface s in the sandbox as want says.
func (h *Host) Restore(sandbox string, s SubInterface, want Interface) error { return ErrNoEntry }

// RaiseMTU raises the MTU of the link of that alias in a sandbox.
func (h *Host) RaiseMTU(sandbox, alias string, mtu int) error { return ErrNoEntry }

// RemoveInside deletes the link of that alias in a sandbox; an absent one is success.
func (h *Host) RemoveInside(sandbox, alias string) error { return ErrNoEntry }

// Sandboxes lists the netns of containers, as dockerd names them.
func (h *Host) Sandboxes() ([]string, error) { return nil, ErrNoEntry }
