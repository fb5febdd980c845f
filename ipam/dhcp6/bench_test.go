package dhcp6

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// reflex is a wire on which a server without any cost of its own answers.
type reflex struct {
	hear func([]byte, netip.Addr)
	next *atomic.Uint32
	asks chan []byte
}

func (r reflex) send(b []byte) error { r.asks <- b; return nil }
func (r reflex) sound() error        { return nil }
func (r reflex) close()              { close(r.asks) }

func (r reflex) serve() {
	for b := range r.asks {
		m, err := dhcpv6.MessageFromBytes(b)
		if err != nil {
			continue
		}
		n := r.next.Add(1)
		ia := &dhcpv6.OptIANA{IaId: m.Options.OneIANA().IaId, T1: 30 * time.Minute, T2: 48 * time.Minute}
		ia.Options.Add(&dhcpv6.OptIAAddress{
			IPv6Addr:          []byte{0x20, 1, 0xd, 0xb8, 11: 0, 12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)},
			PreferredLifetime: time.Hour, ValidLifetime: time.Hour,
		})
		a := dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
		a.AddOption(m.GetOneOption(dhcpv6.OptionClientID))
		a.AddOption(raw(dhcpv6.OptionServerID, "\x00\x09server"))
		a.AddOption(raw(dhcpv6.OptionRapidCommit, ""))
		a.AddOption(ia)
		r.hear(a.ToBytes(), here)
	}
}

// BenchmarkLease is the client's own time for a lease, its server's included, and
// the memory that a kept one takes.
func BenchmarkLease(b *testing.B) {
	c := New(Config{})
	defer c.Close()
	var next atomic.Uint32
	c.open = func(_ string, _ bool, hear func([]byte, netip.Addr), _ func(wire, error)) (wire, error) {
		r := reflex{hear, &next, make(chan []byte, 16)}
		go r.serve()
		return r, nil
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, n, goroutines := heap(), 0, runtime.NumGoroutine()
	for b.Loop() {
		n++
		if _, err := c.Acquire(b.Context(), Ask{
			Key: fmt.Sprint(n), Link: "eth0", MAC: []byte{2, 0x42, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)},
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(heap()-before)/float64(n), "B/lease")
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/float64(n), "goroutines/lease")
}
