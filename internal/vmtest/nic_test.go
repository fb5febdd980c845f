//go:build vm

package vmtest

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// ownPool is what no Docker before 27 takes unnamed: it overlaps a route of the
// host, and those ask for another one, for ever.
func ownPool() bool { return release >= 27 }

// named makes a network of the LAN of a NIC; args name no subnet. On an old
// Docker it does what the refusal says.
func (b *test) named(args ...string) {
	b.Helper()
	if ownPool() {
		b.network(args...)
		return
	}
	before := picture(b.T)
	_, err := b.tryNetwork(args...)
	refused(b.T, err, `--subnet`)
	if err == nil {
		return
	}
	unchanged(b.T, "a pool that Docker cannot take unnamed", before)
	flags := regexp.MustCompile(`add (--subnet \S+(?: --gateway [^\s,]+)?)(?:, and with --ipv6 (--subnet \S+(?: --gateway \S+)?))?`).FindStringSubmatch(err.Error())
	if flags == nil {
		b.Fatalf("the refusal names no flags to add: %v", err)
	}
	add := strings.Fields(strings.ReplaceAll(flags[1], ",", ""))
	if slices.Contains(args, "--ipv6") {
		add = append(add, strings.Fields(flags[2])...)
	}
	b.network(append(add, args...)...)
}

// pools are the subnets of a network and their gateways, as docker network
// inspect shows them.
func pools(t *testing.T, network string) map[string]string {
	t.Helper()
	var info struct {
		IPAM struct {
			Config []struct{ Subnet, Gateway string }
		}
	}
	if err := api("GET", "/networks/"+network, nil, &info); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, c := range info.IPAM.Config {
		gateway, _, _ := strings.Cut(c.Gateway, "/")
		found[c.Subnet] = gateway
	}
	return found
}

// No --subnet: the subnet and the gateway are those of the NIC.
func TestNoSubnet(t *testing.T) {
	b := begin(t)
	b.named("--ipv6", "-o", "parent=eth0", "lan")
	got := pools(t, "lan")
	if got["192.168.50.0/24"] != router4 || got["fd00:50::/64"] != router6 || len(got) != 2 {
		t.Errorf("the network has the pools %v, want those of eth0", got)
	}
	c1, c2 := b.pair("lan")
	for _, c := range []container{c1, c2} {
		given(t, "192.168.50.0/24", c.addrs("lan")[:1], router4, docker4, host4)
		given(t, "fd00:50::/64", c.addrs("lan")[1:], router6, docker6, host6)
		reaches(t, c.Name+" to a LAN host", c.at(), host4, host6)
		reaches(t, c.Name+" through the router", c.at(), internet4, internet6)
		reaches(t, "a LAN host to "+c.Name, "host1", c.addrs("lan")...)
	}
	b.disconnect("lan", "base1")
	b.disconnect("lan", "base2")
}

// The router may be known by its link-local address alone, as one that sends
// router advertisements is.
func TestLinkLocalRouter(t *testing.T) {
	b := begin(t)
	router := linkLocal(t, "router").String()
	do(t, "", "ip -6 route del default; ip -6 route add default via "+router+" dev eth0")
	defer do(t, "", "ip -6 route del default; ip -6 route add default via "+router6)
	b.named("--ipv6", "-o", "parent=eth0", "lan")
	// An older Docker shows what was typed, and no gateway was.
	if got := pools(t, "lan"); ownPool() && got["fd00:50::/64"] != router {
		t.Errorf("the network has the pools %v, want the router %s", got, router)
	}
	c := b.connect("lan", "base1")
	if e := c.NetworkSettings.Networks["lan"]; e.IPv6Gateway != router {
		t.Errorf("the container has %+v, want the router %s", e, router)
	}
	reaches(t, "the container through the router", c.at(), internet4, internet6)
	b.disconnect("lan", "base1")
}

// What no LAN can be read for, and what does not go together.
func TestNoSubnetRefusals(t *testing.T) {
	b := begin(t)
	do(t, "", "ip addr add 192.168.51.2/24 dev eth2; ip addr add 192.168.52.2/24 dev eth2")
	defer do(t, "", "ip addr del 192.168.51.2/24 dev eth2; ip addr del 192.168.52.2/24 dev eth2")
	for _, row := range []struct {
		name  string
		young bool // an older Docker is told to name the subnet first
		args  []string
		says  []string
	}{
		{"no address", false, []string{"-o", "parent=eth1", "--ipam-opt", "parent=eth1"}, []string{`eth1 has no IPv4 subnet`, `--subnet and --gateway`}},
		{"another NIC", true, []string{"-o", "parent=eth1"}, []string{`192\.168\.50\.0/24 is the LAN of eth0`, `parent is eth1`, `--ipam-opt parent`}},
		{"another NIC, named", false, []string{"--subnet", "192.168.50.0/24", "--gateway", router4, "-o", "parent=eth1", "--ipam-opt", "parent=eth0"},
			[]string{`192\.168\.50\.0/24 is the LAN of eth0`, `parent is eth1`}},
		{"several subnets", false, []string{"-o", "parent=eth2", "--ipam-opt", "parent=eth2"}, []string{`192\.168\.51\.0/24, 192\.168\.52\.0/24`, `--ipam-opt subnet=`}},
		{"a subnet of no one", false, []string{"-o", "parent=eth2", "--ipam-opt", "parent=eth2", "--ipam-opt", "subnet=192.168.53.0/24"}, []string{`192\.168\.53\.0/24`, `192\.168\.51\.0/24, 192\.168\.52\.0/24`}},
		{"internal", true, []string{"--internal", "-o", "parent=eth0"}, []string{`the LAN of eth0`, `--ipam-opt pool=private`}},
		{"no parent", true, nil, []string{`the LAN of eth0`, `--ipam-opt pool=private`}},
		{"unknown NIC", false, []string{"-o", "parent=eth0", "--ipam-opt", "parent=eth7"}, []string{`eth7`, `--subnet and --gateway`}},
		{"private and a NIC", false, []string{"-o", "parent=eth0", "--ipam-opt", "pool=private", "--ipam-opt", "parent=eth0"}, []string{`pool=private`, `parent`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			says := row.says
			if row.young && !ownPool() {
				says = []string{`--subnet 192\.168\.50\.0/24 --gateway 192\.168\.50\.1`, `--subnet fd00:50::/64 --gateway fd00:50::1`}
			}
			networkRefused(t, row.args, says...)
		})
	}

	t.Run("one of several", func(t *testing.T) {
		time.Sleep(2 * time.Second) // the host's own addresses are not looked up more often
		b := begin(t)
		b.named("-o", "parent=eth2", "--ipam-opt", "parent=eth2", "--ipam-opt", "subnet=192.168.51.0/24", "chosen")
		c := b.connect("chosen", "base1")
		given(t, "192.168.51.0/24", c.addrs("chosen"), "192.168.51.1", "192.168.51.2")
		reaches(t, "the container to that LAN's router", c.at(), "192.168.51.1")
		b.disconnect("chosen", "base1")
	})
	t.Run("private", func(t *testing.T) {
		needs(t, "dummy")
		b := begin(t)
		b.network("--internal", "-o", "parent=eth0", "--ipam-opt", "pool=private", "inner")
		b.network("--ipam-opt", "pool=private", "island")
		c1, c2 := b.pair("inner")
		reaches(t, "container to container", c1.at(), c2.addrs("inner")...)
		b.disconnect("inner", "base1")
		b.disconnect("inner", "base2")
		c1, c2 = b.pair("island")
		reaches(t, "container to container", c1.at(), c2.addrs("island")...)
		b.disconnect("island", "base1")
		b.disconnect("island", "base2")
	})
	_ = b
}

// Who a container is: what is excluded and reserved, and the address that a name
// had. Docker tells names from version 29 on, so this asks as that does.
func TestNames(t *testing.T) {
	b := begin(t)
	opts := map[string]string{"exclude": "192.168.50.96-192.168.50.97,192.168.50.103", "reserve": "db=192.168.50.98,db=fd00:50::98,web=192.168.50.99"}
	b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ip-range", "192.168.50.96/29",
		"--ipam-opt", "exclude="+opts["exclude"], "--ipam-opt", "reserve="+opts["reserve"], "-o", "parent=eth0", "lan")
	p := b.pool("192.168.50.0/24", "192.168.50.96/29", opts)
	free := []string{"192.168.50.100", "192.168.50.101", "192.168.50.102"}

	first := p.must("", "cache")
	p.release(first)
	if next := p.must("", "queue"); next == first || !slices.Contains(free, next) {
		t.Errorf("%s, which rests, was %s's next; got %s", first, "cache", next)
	}
	if again := p.must("", "cache"); again != first {
		t.Errorf("cache had %s, and got %s", first, again)
	}
	if got := p.must("", "db"); got != "192.168.50.98" {
		t.Errorf("db got %s, want what is reserved for it", got)
	}
	p.must("", "")
	_, err := p.request("", "other")
	refused(t, err, `4 are held`, `3 excluded`, `1 reserved`)
	// By value everybody may have it.
	c := b.connect("lan", "base1", "--ip", "192.168.50.99")
	given(t, "192.168.50.99/32", c.addrs("lan"))
	before := picture(t)
	_, err = tryDocker("network", "connect", "--ip", "192.168.50.103", "lan", "base2")
	refused(t, err, `192\.168\.50\.103 is excluded`, `exclude`)
	unchanged(t, "an excluded address", before)
	b.disconnect("lan", "base1")
}
