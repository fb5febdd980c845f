package driver

import (
	"reflect"
	"slices"
	"testing"

	"underlay/internal/mode"
)

// A verb of the kernel that only looks is passed on by a dry run; each of the others
// it must know, or it would be done.
func TestDryRunKnowsAllVerbs(t *testing.T) {
	looks := []string{"Reached", "HostAddresses", "Subnets", "Inside", "InsideAll"}
	knows := []string{
		"Link", "Links", "EnsureVLAN", "EnsureDummy", "AddSubInterface", "SetMTU", "DeleteLink", "Follow", "EnsureShim", "DeleteShim", "Reach", "Unreach",
		"Restore", "RaiseMTU", "Readdress", "AddRoutes", "RemoveInside", "RemoveElsewhere",
	}
	for m := range reflect.TypeFor[Kernel]().Methods() {
		if !slices.Contains(looks, m.Name) && !slices.Contains(knows, m.Name) {
			t.Errorf("%s is not known to the dry run", m.Name)
		}
	}
}

// The host's side of host access is part of it.
func TestDryRunOfHostAccess(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		n := lan("net", "eth0", mode.Default)
		n.Options.HostAccess = true
		b.create(n)
		b.run(on("net", "one", 10))
		if r := b.DryRun(); !slices.Equal(r.Done, []string{"gave the host its route to 192.168.50.10"}) { // by the address that the container has a route to
			t.Errorf("it says %q", r.Done)
		}
		b.Reconcile()
		shim, err := b.kernel.Link(shimName("eth0"))
		if err != nil {
			t.Fatal(err)
		}
		if r := b.DryRun(); len(r.Done)+len(r.Left) > 0 {
			t.Errorf("all is well, and it says %+v", r)
		}
		if err := b.kernel.DeleteLink(shim.Name); err != nil { // by somebody else
			t.Fatal(err)
		}
		was := b.kernel.String()
		b.DryRun()
		if is := b.kernel.String(); is != was {
			t.Errorf("the kernel had\n%s\nand has\n%s", was, is)
		}
		b.Reconcile()
		if _, err := b.kernel.Link(shim.Name); err != nil {
			t.Errorf("the shim is not made again: %v", err)
		}
	})
}
