//go:build vm

package vmtest

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"underlay/internal/options"
)

// neighbour puts one more machine on the LAN until the test's end: a network
// namespace whose eth0 is plugged into the switch.
func (b *test) neighbour(name string) place {
	b.Helper()
	do(b.T, "", `
ip netns add `+name+`
ip -n `+name+` link set lo up
ip -n `+name+` link add eth0 type veth peer name `+name+` netns switch
ip -n switch link set `+name+` master br0 up
ip -n `+name+` link set eth0 up`)
	b.Cleanup(func() { do(b.T, "", "ip -n switch link del "+name+"; ip netns del "+name) })
	return place(name)
}

// has gives a machine addresses, such as 192.168.50.100/24, on a link.
func (p place) has(t *testing.T, nic string, addrs ...string) {
	t.Helper()
	var batch strings.Builder
	for _, a := range addrs {
		batch.WriteString("addr add " + a + " dev " + nic)
		if strings.Contains(a, ":") {
			batch.WriteString(" nodad")
		}
		batch.WriteByte('\n')
	}
	cmd := p.command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("addresses of %s: %v: %s", p, err, out)
	}
}

// run lists n addresses from first on, with the given number of mask bits.
func run(first string, n, bits int) []string {
	addr := netip.MustParseAddr(first)
	list := make([]string, n)
	for k := range list {
		list[k] = netip.PrefixFrom(addr, bits).String()
		addr = addr.Next()
	}
	return list
}

// pool asks the plugin for addresses, as dockerd does for its containers.
type pool struct {
	t      *testing.T
	client *http.Client
	id     string
}

// pool is that of a network with --subnet, --ip-range ("" for none) and
// --ipam-opt as given.
func (b *test) pool(subnet, within string, opts map[string]string) *pool {
	b.Helper()
	socket, err := pluginSocket(plugin)
	if err != nil {
		b.Fatal(err)
	}
	id := subnet
	if within != "" {
		id += "," + within
	}
	if key := options.Key(opts); key != "" {
		id += "#" + key
	}
	return &pool{b.T, unixClient(socket), id}
}

// request asks for an address, a given one or any; Docker tells the container's
// name from version 29 on.
func (p *pool) request(addr, name string) (string, error) {
	in := map[string]any{"PoolID": p.id, "Address": addr}
	if name != "" {
		in["Options"] = map[string]string{"com.docker.network.endpoint.name": name}
	}
	var out struct{ Address string }
	err := call(p.client, "POST", "/IpamDriver.RequestAddress", in, &out)
	got, _, _ := strings.Cut(out.Address, "/")
	return got, err
}

// must is a request that is granted.
func (p *pool) must(addr, name string) string {
	p.t.Helper()
	got, err := p.request(addr, name)
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

// burst is n requests for any address at the same time: what was granted, and
// what was not. One that is told to try again does: a busy machine may take the
// plugin too long.
func (p *pool) burst(n int) (addrs []string, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			addr, e := p.request("", "")
			for k := 0; e != nil && strings.Contains(e.Error(), "try again") && k < 3; k++ {
				addr, e = p.request("", "")
			}
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				err = errors.Join(err, e)
			} else {
				addrs = append(addrs, addr)
			}
		})
	}
	wg.Wait()
	return addrs, err
}

func (p *pool) release(addrs ...string) {
	p.t.Helper()
	for _, a := range addrs {
		if err := call(p.client, "POST", "/IpamDriver.ReleaseAddress", map[string]string{"PoolID": p.id, "Address": a}, nil); err != nil {
			p.t.Error(err)
		}
	}
}

// lanState is what `underlay state` tells of the LANs.
type lanState struct {
	Pools []poolState
	LANs  []struct{ Link, Blind string }
}

type poolState struct {
	Subnet string
	LAN    struct {
		Blind     string
		InUse     []sighting `json:"in_use"`
		Conflicts []sighting
		Ready     []string
	}
}

type sighting struct{ Address, MAC string }

func lans(t *testing.T) lanState {
	t.Helper()
	var s lanState
	ask(t, "/Underlay.State", struct{}{}, &s)
	return s
}

// eventually waits for something that the state must show.
func eventually(t *testing.T, what string, shows func(lanState) bool) {
	t.Helper()
	err := wait(8*time.Second, what, func() error {
		if !shows(lans(t)) {
			return errors.New("underlay state does not show it")
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v:\n%s", err, do(t, "", binary+" state"))
	}
}

// logged wants a line of dockerd's log, where the plugin's goes, with all these
// words.
func logged(t *testing.T, words ...string) {
	t.Helper()
	err := wait(3*time.Second, "the log", func() error {
	lines:
		for line := range strings.Lines(trimmed(daemonLog)) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return nil
		}
		return errorf("has no line with %q", words)
	})
	if err != nil {
		t.Error(err)
	}
}
