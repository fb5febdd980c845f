package ipam

import (
	"net/netip"
	"strings"
	"testing"
)

// Addresses that are freed while a page is made are passed over; it is not the last
// page for that.
func TestPageOfFreed(t *testing.T) {
	b := newBench(t)
	id := b.pool("192.168.50.0/24", "")
	b.gets(id, "192.168.50.9", "192.168.50.9/24")
	freed := map[netip.Addr]string{} // marked, and nothing to be told of
	for _, addr := range []string{"192.168.50.2", "192.168.50.3", "192.168.50.20"} {
		freed[netip.MustParseAddr(addr)] = ""
	}
	b.mu.Lock()
	b.around(netip.MustParseAddr("192.168.50.9")).taken = freed
	b.mu.Unlock()
	for most, want := range map[int]string{1: "-192.168.50.2 -192.168.50.3 192.168.50.9-192.168.50.9 -", 2: "-192.168.50.3 192.168.50.9-", 3: "192.168.50.9-192.168.50.9 -", 4: "192.168.50.9-"} {
		var got []string
		for q := (AddressQuery{Most: most}); len(got) < 9; {
			page, next, err := b.Addresses(q)
			if err != nil {
				t.Fatal(err)
			}
			said := "-"
			for _, u := range page {
				said = u.Address.String() + said
			}
			if q.After = next; !next.IsValid() {
				got = append(got, said)
				break
			}
			got = append(got, said+next.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%d a page: %q, want %s", most, got, want)
		}
	}
}
