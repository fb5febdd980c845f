//go:build vm

package vmtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// routed is a network and the routes that a container gets of it: the default
// ones, which one network of a container alone provides, and the others.
type routed struct {
	name     string
	args     []string // of docker network create
	defaults string
	others   string
}

// The names matter: of two networks that could, Docker takes the default routes
// of the one whose name comes first (libnetwork, Endpoint.Less).
var routedNetworks = []routed{
	{"alpha", []string{"--subnet", "192.168.51.0/24", "--gateway", "192.168.51.1", "--ipv6", "--subnet", "fd00:51::/64", "--gateway", "fd00:51::1", "-o", "parent=eth0"},
		`
0.0.0.0/0 via 192.168.51.1 on alpha
::/0 via fd00:51::1 on alpha`, `
192.168.51.0/24 on alpha
fd00:51::/64 on alpha`},
	{"beta", lanArgs(),
		`
0.0.0.0/0 via 192.168.50.1 on beta
::/0 via fd00:50::1 on beta`, `
192.168.50.0/24 on beta
fd00:50::/64 on beta`},
	{"abstains", []string{"--subnet", "192.168.52.0/24", "--gateway", "192.168.52.1", "--ipv6", "--subnet", "fd00:52::/64", "--gateway", "fd00:52::1", "-o", "parent=eth0", "-o", "no_default_route=true", "-o", "routes=10.20.0.0/16,fd20::/48"},
		``, `
10.20.0.0/16 on abstains
192.168.52.0/24 on abstains
fd00:52::/64 on abstains
fd20::/48 on abstains`},
	{"an-inner", []string{"--internal", "--subnet", "192.168.53.0/24", "--ipv6", "--subnet", "fd00:53::/64", "-o", "parent=eth0"},
		``, `
192.168.53.0/24 on an-inner
fd00:53::/64 on an-inner`},
	{"a4", []string{"--subnet", "192.168.54.0/24", "--gateway", "192.168.54.1", "-o", "parent=eth0"},
		`
0.0.0.0/0 via 192.168.54.1 on a4`, `
192.168.54.0/24 on a4`},
	{"static", append([]string{"-o", "routes=10.20.0.0/16 via 192.168.50.3, 10.30.0.0/16,fd20::/48 via fd00:50::3,fd30::/48 , fd40::/48 via fe80::99"}, lanArgs()...),
		`
0.0.0.0/0 via 192.168.50.1 on static
::/0 via fd00:50::1 on static`, `
10.20.0.0/16 via 192.168.50.3 on static
10.30.0.0/16 on static
192.168.50.0/24 on static
fd00:50::/64 on static
fd20::/48 via fd00:50::3 on static
fd30::/48 on static
fd40::/48 via fe80::99 on static
fe80::99/128 on static`},
	{"a-route", []string{"--subnet", "192.168.60.0/24", "--ipv6", "--subnet", "fd00:60::/64", "-o", "parent=eth1", "-o", "ipvlan_mode=l3", "-o", "routes=10.20.0.0/16,fd20::/48"},
		`
0.0.0.0/0 on a-route
::/0 on a-route`, `
10.20.0.0/16 on a-route
192.168.60.0/24 on a-route
fd00:60::/64 on a-route
fd20::/48 on a-route`},
	{"c-route", []string{"--subnet", "192.168.61.0/24", "--ipv6", "--subnet", "fd00:61::/64", "-o", "parent=eth1", "-o", "ipvlan_mode=l3", "-o", "no_default_route=true"},
		``, `
192.168.61.0/24 on c-route
fd00:61::/64 on c-route`},
}

// table is a container's routes, but for those of the base network and what
// each link has of itself: where to, by which router, on which network's link.
// IPv4 comes first.
func table(t *testing.T, c container) string {
	t.Helper()
	network := map[string]string{"lo": baseNetwork}
	for name, l := range links(t, c.at()) {
		for n, e := range c.NetworkSettings.Networks {
			if l.holds(fmt.Sprintf("%s/%d", e.IPAddress, e.IPPrefixLen)) {
				network[name] = n
			}
		}
	}
	var all []string
	for _, f := range []struct{ flag, zero, one string }{{"-4", "0.0.0.0/0", "/32"}, {"-6", "::/0", "/128"}} {
		for line := range strings.Lines(do(t, c.at(), "ip "+f.flag+" route")) {
			words := strings.Fields(line)
			to, via, dev := words[0], "", ""
			for i, w := range words[:len(words)-1] {
				switch w {
				case "via":
					via = " via " + words[i+1]
				case "dev":
					dev = words[i+1]
				}
			}
			switch {
			case to == "default":
				to = f.zero
			case !strings.Contains(to, "/"):
				to += f.one
			}
			switch {
			case network[dev] == baseNetwork, to == "fe80::/64":
				continue
			case network[dev] != "":
				dev = network[dev]
			}
			all = append(all, to+via+" on "+dev)
		}
	}
	return sorted(all)
}

// sorted puts IPv4 first.
func sorted(routes []string) string {
	slices.SortFunc(routes, func(a, b string) int {
		if six := strings.Contains(a, ":"); six != strings.Contains(b, ":") {
			return map[bool]int{false: -1, true: 1}[six]
		}
		return strings.Compare(a, b)
	})
	return strings.Join(routes, "\n")
}

// wantTable compares a container's routes with those of the networks that it is
// on, and the default ones that are given.
func wantTable(t *testing.T, what string, c container, defaults string, on ...routed) {
	t.Helper()
	for _, n := range on {
		defaults += "\n" + n.others
	}
	want := sorted(strings.FieldsFunc(defaults, func(r rune) bool { return r == '\n' }))
	if got := table(t, c); got != want {
		t.Errorf("%s: the container's routes are not what is wanted: %s\nall of them:\n%s", what, difference(want, got), got)
	}
}

// families are the default routes of IPv4 and of IPv6.
func (n routed) families() (four, six string) {
	for line := range strings.Lines(n.defaults) {
		switch {
		case strings.HasPrefix(line, "0.0.0.0/0"):
			four = line
		case strings.HasPrefix(line, "::/0"):
			six = line
		}
	}
	return four, six
}

// A container's routes on one network and on two, joined in either order while
// it runs and before it starts.
func TestRouteTables(t *testing.T) {
	needs(t, "ipvlan")
	b := begin(t)
	byName := map[string]routed{}
	for _, n := range routedNetworks {
		byName[n.name] = n
		b.network(append(n.args, n.name)...)
	}
	join := func(n string, priority int) {
		t.Helper()
		in := map[string]any{"Container": "base1"}
		if priority != 0 {
			in["EndpointConfig"] = map[string]any{"GwPriority": priority}
		}
		if err := api("POST", "/networks/"+n+"/connect", in, nil); err != nil {
			t.Error(err)
		}
	}
	part := func(n string) {
		t.Helper()
		if err := api("POST", "/networks/"+n+"/disconnect", map[string]any{"Container": "base1"}, nil); err != nil {
			t.Error(err)
		}
	}
	for _, n := range routedNetworks {
		join(n.name, 0)
		wantTable(t, n.name, inspect(t, "base1"), n.defaults, n)
		part(n.name)
	}
	if t.Failed() {
		return
	}

	for _, row := range []struct {
		a, b      string
		four, six string // whose default routes there are
		priority  string // the network that is given gw_priority=1
		atStart   bool   // also as a container with both that is started
		young     bool   // Docker 28 and later
	}{
		{a: "alpha", b: "beta", four: "alpha", six: "alpha", atStart: true},
		// Docker before 28 knows no priority, and the name decides.
		{a: "alpha", b: "beta", four: "beta", six: "beta", priority: "beta", young: true},
		{a: "abstains", b: "beta", four: "beta", six: "beta"},
		{a: "an-inner", b: "beta", four: "beta", six: "beta", atStart: true},
		// A network with gateways of both families comes before one with one.
		{a: "a4", b: "beta", four: "beta", six: "beta"},
		{a: "alpha", b: "static", four: "alpha", six: "alpha"},
		{a: "a-route", b: "beta", four: "a-route", six: "a-route", atStart: true, young: true},
		// Docker before 28 fails over two default routes, its own ipvlan's
		// too, so an l3 network beside another must have none.
		{a: "c-route", b: "beta", four: "beta", six: "beta", atStart: true},
	} {
		if row.young && release < 28 {
			continue
		}
		one, two := byName[row.a], byName[row.b]
		four, _ := byName[row.four].families()
		_, six := byName[row.six].families()
		priority := map[string]int{row.priority: 1, "": 0}
		for _, order := range [][]routed{{one, two}, {two, one}} {
			what := order[0].name + " then " + order[1].name
			join(order[0].name, priority[order[0].name])
			join(order[1].name, priority[order[1].name])
			wantTable(t, what, inspect(t, "base1"), four+"\n"+six, one, two)
			part(order[0].name)
			wantTable(t, what+", without the first", inspect(t, "base1"), order[1].defaults, order[1])
			part(order[1].name)
		}
		if row.atStart {
			what := row.a + " and " + row.b + " at start"
			b.containers = append(b.containers, "both")
			docker(t, "create", "--name", "both", "--network", two.name, image, "sleep", "1000000")
			docker(t, "network", "connect", one.name, "both")
			docker(t, "start", "both")
			wantTable(t, what, inspect(t, "both"), four+"\n"+six, one, two)
			docker(t, "rm", "-f", "both")
		}
	}

	// Two networks with routes to the same: those of the one joined first.
	static, abstains := byName["static"], byName["abstains"]
	without := func(n routed) routed {
		var kept []string
		for line := range strings.Lines(n.others) {
			if !strings.HasPrefix(line, "10.20.0.0/16") && !strings.HasPrefix(line, "fd20::/48") {
				kept = append(kept, line)
			}
		}
		n.others = strings.Join(kept, "")
		return n
	}
	join("static", 0)
	join("abstains", 0)
	wantTable(t, "static then abstains", inspect(t, "base1"), static.defaults, static, without(abstains))
	part("static")
	join("static", 0)
	wantTable(t, "static again", inspect(t, "base1"), static.defaults, static, without(abstains))
	part("static")
	part("abstains")
	join("abstains", 0)
	join("static", 0)
	wantTable(t, "abstains then static", inspect(t, "base1"), static.defaults, without(static), abstains)
	part("abstains")
	part("static")
}

// What -o routes leads to is reached: by a router of the LAN, named by its
// address or by its link-local one, and on the link.
func TestStaticRoutes(t *testing.T) {
	b := begin(t)
	do(t, "host1", "ip addr add 10.20.0.1/32 dev lo; ip -6 addr add fd20::1/128 dev lo; ip -6 addr add fd40::1/128 dev lo; ip addr add 10.30.0.1/32 dev lo; ip -6 addr add fd30::1/128 dev eth0 nodad")
	defer do(t, "host1", "ip addr del 10.20.0.1/32 dev lo; ip -6 addr del fd20::1/128 dev lo; ip -6 addr del fd40::1/128 dev lo; ip addr del 10.30.0.1/32 dev lo; ip -6 addr del fd30::1/128 dev eth0")
	all := []string{"10.20.0.1", "10.30.0.1", "fd20::1", "fd30::1", "fd40::1"}
	b.network(lanArgs("-o", "routes=10.20.0.0/16 via "+host4+", 10.30.0.0/16, fd20::/48 via "+host6+", fd30::/48, fd40::/48 via "+linkLocal(t, "host1").String(), "static")...)
	c := b.run("far", "--network", "static")
	reaches(t, "the container by its routes", c.at(), all...)
	reaches(t, "the container by its default route", c.at(), internet4, internet6)
	docker(t, "restart", "-t", "0", "far")
	reaches(t, "the restarted container by its routes", inspect(t, "far").at(), all...)
}

// A router outside the network's subnet. dockerd and its command take none by
// --gateway, so it can only be the NIC's.
func TestRouterBesideSubnet(t *testing.T) {
	b := begin(t)
	for _, gateway := range []string{"10.9.9.1", "fe80::1"} {
		v4, v6 := "", gateway
		if gateway == "10.9.9.1" {
			v4, v6 = gateway, "fd00:57::1"
		}
		args := []string{"--subnet", "192.168.57.0/24", "--ipv6", "--subnet", "fd00:57::/64", "--gateway", v6, "-o", "parent=eth2"}
		if v4 != "" {
			args = append(args, "--gateway", v4)
		}
		networkRefused(t, args, `no matching subnet for gateway `+gateway)
	}

	do(t, "router", "ip addr add 10.9.9.1/32 dev eth0; ip -6 addr add fd99::1/128 dev eth0 nodad; ip route add 192.168.57.0/24 dev eth0; ip -6 route add fd00:57::/64 dev eth0")
	defer do(t, "router", "ip addr del 10.9.9.1/32 dev eth0; ip -6 addr del fd99::1/128 dev eth0; ip route del 192.168.57.0/24; ip -6 route del fd00:57::/64")
	do(t, "", `
ip addr add 192.168.57.2/24 dev eth2
ip addr add fd00:57::2/64 dev eth2 nodad
ip route add default via 10.9.9.1 dev eth2 onlink metric 900
ip route add fd99::1 dev eth2
ip -6 route add default via fd99::1 dev eth2 metric 900`)
	defer do(t, "", `
ip route del default via 10.9.9.1 dev eth2
ip -6 route del default via fd99::1 dev eth2
ip route del fd99::1 dev eth2
ip addr del 192.168.57.2/24 dev eth2
ip addr del fd00:57::2/64 dev eth2`)
	b.named("--ipv6", "-o", "parent=eth2", "--ipam-opt", "parent=eth2", "beside")
	beside := routed{name: "beside", others: `
10.9.9.1/32 on beside
192.168.57.0/24 on beside
fd00:57::/64 on beside
fd99::1/128 on beside`}
	const defaults = `
0.0.0.0/0 via 10.9.9.1 on beside
::/0 via fd99::1 on beside`
	c := b.connect("beside", "base1")
	wantTable(t, "the router beside the subnet", c, defaults, beside)
	reaches(t, "the container through the router beside its subnet", c.at(), internet4, internet6)
	b.disconnect("beside", "base1")
	c = b.run("started", "--network", "beside")
	wantTable(t, "the router beside the subnet, at start", c, defaults, beside)
}

// The host itself as the containers' router, by its link for host access.
func TestRouterIsHost(t *testing.T) {
	b := begin(t)
	b.network("--subnet", "192.168.50.0/24", "--gateway", docker4, "--ip-range", "192.168.50.64/26",
		"--ipv6", "--subnet", "fd00:50::/64", "--gateway", docker6, "--ip-range", "fd00:50::1:0/112",
		"-o", "parent=eth0", "-o", "host_access=true", "-o", "routes=10.20.0.0/16 via "+docker4, "byhost")
	c := b.connect("byhost", "base1")
	shim := ""
	for name, l := range links(t, "") {
		for _, a := range l.Addrs {
			if strings.HasPrefix(name, "ulh") && strings.HasPrefix(a.Local, "fe80:") {
				shim = a.Local
			}
		}
	}
	want := routed{others: strings.ReplaceAll(`
0.0.0.0/0 via 169.254.50.2 on byhost
10.20.0.0/16 via 169.254.50.2 on byhost
169.254.50.2/32 on byhost
192.168.50.0/24 on byhost
192.168.50.2/32 via 169.254.50.2 on byhost
::/0 via fe80::1 on byhost
fd00:50::/64 on byhost
fd00:50::2/128 via fe80::1 on byhost
fe80::1/128 on byhost`, "fe80::1", shim)}
	wantTable(t, "the host as router", c, "", want)
	reaches(t, "the container to and through the Docker host", c.at(), docker4, docker6, internet4, internet6)
	b.disconnect("byhost", "base1")
}

// Routes that no container could have are refused when the network is made.
func TestRouteRefusals(t *testing.T) {
	b := begin(t)
	// eth0 carries something else, so that a refusal that comes late shows.
	b.network(lanArgs("lan")...)
	net := []string{"--subnet", "192.168.80.0/24", "--gateway", "192.168.80.1"}
	dual := append([]string{"--ipv6", "--subnet", "fd00:80::/64"}, net...)
	macvlan := []string{"-o", "parent=eth0"}
	l3 := []string{"-o", "parent=eth1", "-o", "ipvlan_mode=l3"}
	for _, row := range []struct {
		name   string
		routes string
		args   [][]string
		says   []string
	}{
		{"no length", "10.20.0.0", [][]string{net, macvlan}, []string{`"10\.20\.0\.0" is no destination`}},
		{"no router", "10.20.0.0/16 via", [][]string{net, macvlan}, []string{`"10\.20\.0\.0/16 via" is no route`}},
		{"another word", "10.20.0.0/16 by 192.168.80.9", [][]string{net, macvlan}, []string{`is no route`, `via`}},
		{"a name for a router", "10.20.0.0/16 via router", [][]string{net, macvlan}, []string{`"router" is no address`}},
		{"an empty one", "10.20.0.0/16,,10.30.0.0/16", [][]string{net, macvlan}, []string{`empty`}},
		{"host bits", "10.20.0.1/16", [][]string{net, macvlan}, []string{`10\.20\.0\.1/16 has host bits`, `10\.20\.0\.0/16`}},
		{"the default route", "0.0.0.0/0 via 192.168.80.9", [][]string{net, macvlan}, []string{`default route`, `--gateway`}},
		{"the default route of IPv6", "::/0", [][]string{dual, macvlan}, []string{`default route`, `--gateway`}},
		{"twice", "10.20.0.0/16 via 192.168.80.9, 10.20.0.0/16", [][]string{net, macvlan}, []string{`10\.20\.0\.0/16 is there twice`}},
		{"multicast", "224.0.0.0/4", [][]string{net, macvlan}, []string{`224\.0\.0\.0/4`}},
		{"a router of the other family", "10.20.0.0/16 via fd00:80::9", [][]string{dual, macvlan}, []string{`10\.20\.0\.0/16`, `other family`}},
		{"a router outside", "10.20.0.0/16 via 192.168.81.9", [][]string{net, macvlan}, []string{`192\.168\.81\.9 is not in subnet 192\.168\.80\.0/24`, `name a router of the subnet`}},
		{"a router outside, IPv6", "fd20::/48 via fd00:81::9", [][]string{dual, macvlan}, []string{`fd00:81::9 is not in subnet fd00:80::/64`}},
		{"a family that the network has not", "fd20::/48", [][]string{net, macvlan}, []string{`fd20::/48`, `no subnet of that family`, `--subnet`}},
		{"the network's own subnet", "192.168.80.0/24", [][]string{net, macvlan}, []string{`192\.168\.80\.0/24 is the network's own subnet`}},
		{"an internal network", "10.20.0.0/16", [][]string{{"--internal", "--subnet", "192.168.80.0/24"}, macvlan}, []string{`--internal`}},
		{"no parent", "10.20.0.0/16", [][]string{net}, []string{`needs -o parent`}},
		{"a router in l3", "10.20.0.0/16 via 192.168.80.9", [][]string{net, l3}, []string{`l3`, `leave via out`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			networkRefused(t, append(slices.Concat(row.args...), "-o", "routes="+row.routes), row.says...)
		})
	}
}
