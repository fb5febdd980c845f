package dhcp

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// All servers that offer are told, and none gives a lease.
func TestSurvey(t *testing.T) {
	sw := newSpace(t)
	sw.IP("link add br0 type bridge mcast_snooping 0", "link set br0 up")
	plug := func(n int) *space {
		s := newSpace(t)
		sw.IP(fmt.Sprintf("link add p%d type veth peer name eth0 netns %d", n, s.TID), fmt.Sprintf("link set p%d master br0 up", n))
		s.IP("link set eth0 up", fmt.Sprintf("addr add 10.77.0.%d/24 dev eth0", n))
		return s
	}
	host, one, two := plug(2), plug(1), plug(3)
	c := host.client(Config{})
	survey := func(within, more time.Duration) ([]Terms, error) {
		ctx, stop := context.WithTimeout(context.Background(), within)
		defer stop()
		return c.Survey(ctx, Ask{Key: "look", Link: "eth0", MAC: hw(1), ClientID: []byte("\x00look")}, more)
	}
	if all, err := survey(300*time.Millisecond, time.Second); err != nil || len(all) != 0 {
		t.Errorf("without a server: %v, %v", all, err)
	}
	d := one.dnsmasq(t.TempDir(), "--dhcp-range=10.77.0.100,10.77.0.120,120")
	e := two.dnsmasq(t.TempDir(), "--dhcp-range=10.77.0.130,10.77.0.150,120")
	eventually(t, "two servers", 20*time.Second, func() bool {
		all, err := survey(10*time.Second, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var from []string
		for _, a := range all {
			from = append(from, a.Server.String())
		}
		return len(all) == 2 && strings.Contains(strings.Join(from, " "), "10.77.0.1") && strings.Contains(strings.Join(from, " "), "10.77.0.3")
	})
	if n := d.count("DHCPREQUEST") + e.count("DHCPREQUEST"); n != 0 {
		t.Errorf("%d leases were asked for", n)
	}
	if got := c.Status(); len(got) != 0 {
		t.Errorf("left behind: %+v", got)
	}
	host.IP("link set eth0 down")
	if all, err := survey(5*time.Second, time.Second); err == nil {
		t.Errorf("with the link down: %v", all)
	}
	if _, err := c.Survey(context.Background(), Ask{}, time.Second); err == nil {
		t.Error("an ask of nothing is taken")
	}
}
