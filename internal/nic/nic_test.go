package nic

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFind(t *testing.T) {
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range all {
		got, err := Find(want.Name)
		if err != nil {
			t.Errorf("%s: %v", want.Name, err)
			continue
		}
		const told = net.FlagUp | net.FlagRunning
		if got.Index != want.Index || got.Flags != want.Flags&told || len(got.HardwareAddr) == 6 && got.HardwareAddr.String() != want.HardwareAddr.String() {
			t.Errorf("%+v, not %+v", got, want)
		}
	}
	for _, name := range []string{"", "nowhere", "much-too-long-a-name"} {
		if _, err := Find(name); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
