//go:build faults

package plugin

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"underlay/driver"
	"underlay/internal/fault"
	"underlay/internal/store"
	"underlay/netlinkutil"
)

// faults lets tests end the plugin at each step of its work.
type faults struct{ Faults *fault.Points }

func (f faults) store(s *store.Store) {
	if f.Faults != nil {
		s.Fault = f.Faults.Pass
	}
}

// connKey is where a call finds what is known of its connection.
type connKey struct{}

// server has points before each of Docker's calls, before its answer, and once
// that has been sent.
func (f faults) server(s *server) {
	if f.Faults == nil {
		return
	}
	calls := s.http.Handler
	s.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	var answered sync.Map // from a connection to what its call's end is told with
	s.http.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateIdle || state == http.StateClosed {
			if tell, ok := answered.LoadAndDelete(c); ok {
				tell.(func())()
			}
		}
	}
	s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/Underlay.") {
			answered.Store(r.Context().Value(connKey{}), f.Faults.Call(r.URL.Path[1:]))
			w = &sending{ResponseWriter: w, before: func() { f.Faults.Pass("out") }}
		}
		calls.ServeHTTP(w, r)
	})
}

// sending is a call's answer, of which nothing has been sent yet.
type sending struct {
	http.ResponseWriter
	before func() // nil once it is being sent
}

func (a *sending) begin() {
	if a.before != nil {
		a.before()
		a.before = nil
	}
}

func (a *sending) WriteHeader(status int) {
	a.begin()
	a.ResponseWriter.WriteHeader(status)
}

func (a *sending) Write(b []byte) (int, error) {
	a.begin()
	return a.ResponseWriter.Write(b)
}

func (f faults) kernel(k driver.Kernel) driver.Kernel {
	if f.Faults == nil {
		return k
	}
	return kernel{k, f.Faults}
}

// kernel has points before and after each verb that changes something.
type kernel struct {
	driver.Kernel
	points *fault.Points
}

func (k kernel) around(verb string, do func() error) error {
	k.points.Pass("before " + verb)
	err := do()
	k.points.Pass("after " + verb)
	return err
}

func (k kernel) EnsureVLAN(name, lower string, id int, protocol netlinkutil.VLANProtocol, alias string) (made bool, err error) {
	err = k.around("EnsureVLAN", func() error {
		made, err = k.Kernel.EnsureVLAN(name, lower, id, protocol, alias)
		return err
	})
	return made, err
}

func (k kernel) EnsureDummy(name, alias string, mac net.HardwareAddr) (made bool, err error) {
	err = k.around("EnsureDummy", func() error {
		made, err = k.Kernel.EnsureDummy(name, alias, mac)
		return err
	})
	return made, err
}

func (k kernel) AddSubInterface(s netlinkutil.SubInterface) (l netlinkutil.Link, err error) {
	err = k.around("AddSubInterface", func() error {
		l, err = k.Kernel.AddSubInterface(s)
		return err
	})
	return l, err
}

func (k kernel) DeleteLink(name string) error {
	return k.around("DeleteLink", func() error { return k.Kernel.DeleteLink(name) })
}

func (k kernel) EnsureShim(s netlinkutil.Shim) error {
	return k.around("EnsureShim", func() error { return k.Kernel.EnsureShim(s) })
}

func (k kernel) DeleteShim(s netlinkutil.Shim) error {
	return k.around("DeleteShim", func() error { return k.Kernel.DeleteShim(s) })
}

func (k kernel) Reach(s netlinkutil.Shim, r netlinkutil.HostRoute) error {
	return k.around("Reach", func() error { return k.Kernel.Reach(s, r) })
}

func (k kernel) Unreach(s netlinkutil.Shim, addr netip.Addr) error {
	return k.around("Unreach", func() error { return k.Kernel.Unreach(s, addr) })
}

func (k kernel) SetMTU(name string, mtu int) error {
	return k.around("SetMTU", func() error { return k.Kernel.SetMTU(name, mtu) })
}

func (k kernel) Restore(sandbox string, s netlinkutil.SubInterface, as netlinkutil.Interface) error {
	return k.around("Restore", func() error { return k.Kernel.Restore(sandbox, s, as) })
}

func (k kernel) RaiseMTU(sandbox, alias string, mtu int) error {
	return k.around("RaiseMTU", func() error { return k.Kernel.RaiseMTU(sandbox, alias, mtu) })
}

func (k kernel) AddRoutes(sandbox, alias string, routes []netlinkutil.InterfaceRoute) error {
	return k.around("AddRoutes", func() error { return k.Kernel.AddRoutes(sandbox, alias, routes) })
}

func (k kernel) RemoveElsewhere(alias string) (found bool, err error) {
	err = k.around("RemoveElsewhere", func() error { found, err = k.Kernel.RemoveElsewhere(alias); return err })
	return found, err
}

func (k kernel) RemoveInside(sandbox, alias string) error {
	return k.around("RemoveInside", func() error { return k.Kernel.RemoveInside(sandbox, alias) })
}
