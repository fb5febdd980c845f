//go:build vm

package vmtest

import (
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"
)

// Docker takes two seconds for each in a VM, most of them the runtime's.
var restarts = flag.Int("restarts", 0, "how often TestRestarts starts each container (default: 50, in a VM 3)")

// A container with a fixed address, on macvlan also a fixed MAC, that ends at
// once and is started again, as often as it takes for what the last one left to
// be in the way of the next. Each looks for itself whether it has what it must.
func TestRestarts(t *testing.T) {
	times := *restarts
	switch {
	case times > 0:
	case *here:
		times = 50
	default:
		times = 3
	}
	b := beginBare(t)
	before := picture(t)
	rows := []struct{ name, parent, mode, subnet, addr, addr6, mac string }{
		{"macvlan", "eth0", "macvlan_mode=bridge", "50", "192.168.50.70", "fd00:50::70", "02:11:22:33:44:70"},
		{"ipvlan", "eth1", "ipvlan_mode=l2", "51", "192.168.51.70", "fd00:51::70", ""},
	}
	if *here {
		rows[1].name, rows[1].mode = "private", "macvlan_mode=private"
	}
	for _, r := range rows {
		b.network("--subnet", "192.168."+r.subnet+".0/24", "--gateway", "192.168."+r.subnet+".1",
			"--ipv6", "--subnet", "fd00:"+r.subnet+"::/64", "--gateway", "fd00:"+r.subnet+"::1",
			"-o", "parent="+r.parent, "-o", r.mode, r.name)
		has := "a=$(ip addr show eth0)"
		for _, want := range []string{"inet " + r.addr + "/24", "inet6 " + r.addr6 + "/64", "link/ether " + r.mac} {
			has += fmt.Sprintf(` && case $a in *"%s"*) ;; *) echo "$a"; exit 1;; esac`, want)
		}
		args := []string{"create", "--name", r.name, "--network", r.name, "--ip", r.addr, "--ip6", r.addr6}
		if r.mac != "" {
			args = append(args, "--mac-address", r.mac)
		}
		docker(t, append(args, image, "sh", "-c", has)...)
		b.containers = append(b.containers, r.name)
	}
	networks := picture(t)
	start := time.Now()
	var rounds sync.WaitGroup
	for _, r := range rows {
		rounds.Go(func() {
			var slowest time.Duration
			for n := 1; n <= times; n++ {
				began := time.Now()
				if err := once(r.name); err != nil {
					out, _ := tryDocker("logs", "--tail", "20", r.name)
					t.Errorf("%s: start %d of %d: %v\n%s", r.name, n, times, err, out)
					return
				}
				slowest = max(slowest, time.Since(began))
				if n%25 == 0 {
					fmt.Printf("restarts: %s: %d of %d after %.0f s\n", r.name, n, times, time.Since(start).Seconds())
				}
			}
			t.Logf("%s: %d starts and ends in %.1f s, the slowest %.1f s", r.name, times, time.Since(start).Seconds(), slowest.Seconds())
		})
	}
	rounds.Wait()
	unchanged(t, fmt.Sprint(times, " starts and ends"), networks)
	docker(t, "rm", rows[0].name, rows[1].name)
	docker(t, "network", "rm", rows[0].name, rows[1].name)
	unchanged(t, "the networks' removal", before)
}

// once starts a container that ends by itself, and waits for its end.
func once(name string) error {
	if err := api("POST", "/containers/"+name+"/start", nil, nil); err != nil {
		return err
	}
	var end struct{ StatusCode int }
	if err := api("POST", "/containers/"+name+"/wait", nil, &end); err != nil {
		return err
	}
	if end.StatusCode != 0 {
		return errorf("it ended with status %d", end.StatusCode)
	}
	return nil
}
