//go:build faults

package killtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"underlay/plugin"
)

// wanted is what there must be, by what dockerd knows, one fact a line.
func (d *dockerd) wanted() string {
	var facts []string
	fact := func(format string, args ...any) { facts = append(facts, fmt.Sprintf(format, args...)) }
	for _, n := range d.networks {
		fact("network %.12s", n.id)
		for _, p := range n.pools {
			fact("pool %s", p.subnet)
			fact("held %s", p.gateway)
		}
	}
	for name, c := range d.containers {
		for _, e := range c.endpoints {
			sum := sha256.Sum256([]byte(e.network.parent))
			fact("link ulh%s in the host", hex.EncodeToString(sum[:6]))
			fact("endpoint %.12s of network %.12s with %v and %s", e.id, e.network.id, e.addrs, e.mac)
			for _, a := range e.addrs {
				fact("held %v", a.Addr())
				fact("container %s has %v on %s", name, a, e.name)
			}
			if e.mac != "" {
				fact("container %s has %s on %s", name, e.mac, e.name)
			}
		}
	}
	slices.Sort(facts)
	return strings.Join(slices.Compact(facts), "\n")
}

// found is what there is.
func (d *dockerd) found() (string, error) {
	var facts []string
	fact := func(format string, args ...any) { facts = append(facts, fmt.Sprintf(format, args...)) }
	var state plugin.State
	if err := d.ask(plugin.StatePath, &state); err != nil {
		return "", err
	}
	for _, n := range state.Networks {
		fact("network %.12s", n.ID)
	}
	for _, e := range state.Endpoints {
		addrs := []netip.Prefix{e.IPv4}
		if e.IPv6.IsValid() {
			addrs = append(addrs, e.IPv6)
		}
		fact("endpoint %.12s of network %.12s with %v and %v", e.ID, e.NetworkID, addrs, e.MAC)
	}
	for _, p := range state.Pools {
		fact("pool %v", p.Subnet)
		for _, a := range p.Addresses {
			fact("held %v", a.Address)
		}
	}
	links, err := linksOf(d.host)
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if !slices.Contains([]string{"lo", "eth0", "eth1"}, l.Name) {
			fact("link %s in the host", l.Name)
		}
	}
	for name, c := range d.containers {
		links, err := linksOf(c.netns)
		if err != nil {
			return "", err
		}
		for _, l := range links {
			if l.Name == "lo" {
				continue
			}
			fact("container %s has %s on %s", name, l.MAC, l.Name)
			for _, a := range l.Addrs {
				if a.Scope == "global" {
					fact("container %s has %s/%d on %s", name, a.Local, a.Bits, l.Name)
				}
			}
		}
	}
	slices.Sort(facts)
	return strings.Join(facts, "\n"), nil // not compacted: what is there twice shows
}

type link struct {
	Name  string `json:"ifname"`
	MAC   string `json:"address"`
	Addrs []struct {
		Local string `json:"local"`
		Bits  int    `json:"prefixlen"`
		Scope string `json:"scope"`
	} `json:"addr_info"`
}

func linksOf(ns string) (all []link, err error) {
	text, err := show(ns, "addr show", "-j")
	if err == nil {
		err = json.Unmarshal([]byte(text), &all)
	}
	return all, err
}

func (d *dockerd) ask(path string, res any) error {
	answer, err := d.client.Post("http://plugin"+path, "", strings.NewReader("{}"))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if res == nil {
		return nil
	}
	return json.NewDecoder(answer.Body).Decode(res)
}

// settled waits until what there is, is what must be, and has the plugin look
// after itself as it does every minute.
func (d *dockerd) settled(within time.Duration) error {
	end := time.Now().Add(within)
	for {
		if d.isKilled() {
			if err := d.ask(plugin.ReconcilePath, nil); err != nil {
				return err
			}
		}
		is, err := d.found()
		want := d.wanted()
		if err == nil && is != want {
			err = errors.New(difference(want, is))
		}
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// reached wants each container to answer its LAN and the host.
func (d *dockerd) reached() error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var silent []error
	for name, c := range d.containers {
		for _, e := range c.endpoints {
			for _, a := range e.addrs {
				for _, from := range []string{d.lan, d.host} {
					wg.Add(1)
					go func() {
						defer wg.Done()
						for range 3 {
							if ping(from, a.Addr()) {
								return
							}
						}
						mu.Lock()
						silent = append(silent, fmt.Errorf("container %s does not answer %s by %v", name, from, a.Addr()))
						mu.Unlock()
					}()
				}
			}
		}
	}
	wg.Wait()
	return errors.Join(silent...)
}

// picture is all that the plugin could leave in the host.
func (d *dockerd) picture() (string, error) {
	var all []string
	for _, family := range []string{"-4", "-6"} {
		text, err := show(d.host, "addr show\nroute show table all\nrule show\nneigh show nud permanent\nnexthop show", family, "-d", "-o")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(text) {
			if !strings.Contains(line, " expires ") && !linkLocal.MatchString(line) {
				all = append(all, family+" "+strings.TrimSpace(changing.ReplaceAllString(line, "")))
			}
		}
	}
	links, err := show(d.host, "link show", "-d", "-o")
	return strings.Join(append(all, links), "\n"), err
}

// changing is what is another each time, and linkLocal what the kernel gives the
// NICs late.
var (
	changing  = regexp.MustCompile(`valid_lft \S+ preferred_lft \S+`)
	linkLocal = regexp.MustCompile(`eth[01] .*fe80:|fe80:.* eth[01] `)
)

// difference lists what is too much (+) and what lacks (-).
func difference(want, is string) string {
	wants, has := strings.Split(want, "\n"), strings.Split(is, "\n")
	var b strings.Builder
	for _, line := range has {
		if i := slices.Index(wants, line); i >= 0 {
			wants = slices.Delete(wants, i, i+1)
		} else {
			b.WriteString("\n+ " + line)
		}
	}
	for _, line := range wants {
		b.WriteString("\n- " + line)
	}
	return b.String()
}
