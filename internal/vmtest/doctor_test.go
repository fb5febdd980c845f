//go:build vm

package vmtest

import (
	"encoding/json"
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// examined is what underlay doctor finds: "level check subject: fact", in its
// order, and its exit status.
func examined(program string, args ...string) (found []string, status int, err error) {
	out, err := exec.Command(program, append([]string{"doctor", "-o", "json"}, args...)...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status, err = exit.ExitCode(), nil
	}
	var said struct {
		Findings []struct{ Level, Check, Subject, Fact, Remedy, See string }
	}
	if err == nil {
		err = json.Unmarshal(out, &said)
	}
	for _, f := range said.Findings {
		if f.Remedy == "" || !strings.HasPrefix(f.See, "docs/doctor.md#") {
			err = errorf("%+v is not whole", f)
		}
		found = append(found, f.Level+" "+f.Check+" "+f.Subject+": "+f.Fact)
	}
	return found, status, err
}

// On a healthy host the doctor finds nothing, and each fault that is made there is
// found, by one finding, and nothing else is. What has nothing to do with each other
// is made together.
func TestDoctor(t *testing.T) {
	needs(t, "VLAN")
	b := beginBare(t)
	healthy := []string{}
	if release < 28 {
		healthy = append(healthy, `note docker host: Docker 2`)
	}
	// finds wants these findings, as expressions. Emulated processors may be late.
	finds := func(t *testing.T, program string, args []string, want ...string) {
		t.Helper()
		start := time.Now()
		want = append(want, healthy...)
		status := 0
		for _, w := range want {
			if strings.HasPrefix(w, "error") {
				status = 1
			}
		}
		err := wait(40*time.Second, "doctor "+strings.Join(args, " "), func() error {
			found, is, err := examined(program, args...)
			if err != nil {
				return err
			}
			if len(found) != len(want) || is != status {
				return errorf("it ends with %d and finds\n%s\nand should with %d\n%s", is, strings.Join(found, "\n"), status, strings.Join(want, "\n"))
			}
			for _, w := range want {
				n := 0
				for _, f := range found {
					if regexp.MustCompile("^" + w).MatchString(f) {
						n++
					}
				}
				if n != 1 {
					return errorf("%d of these match %s:\n%s", n, w, strings.Join(found, "\n"))
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		t.Logf("%.1f s", time.Since(start).Seconds())
	}
	parent := func(names ...string) (args []string) {
		for _, n := range names {
			args = append(args, "--parent", n)
		}
		return args
	}
	lease := []string{"--dhcp-range=192.168.50.100,192.168.50.119,255.255.255.0,120"}
	server := dnsmasq(t, "host1", lease...)

	if release < 28 {
		finds(t, binary, nil)
	} else if err := wait(40*time.Second, "a healthy host", func() error {
		if out, err := exec.Command(binary, "doctor").CombinedOutput(); err != nil || string(out) != "all well\n" {
			return errorf("%v: %s", err, out)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{{"-o", "xml"}, {"eth0"}, {"--nonsense"}} {
		exit := (*exec.ExitError)(nil)
		out, err := exec.Command(binary, append([]string{"doctor"}, args...)...).CombinedOutput()
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("doctor %v: %v, want status 2: %s", args, err, out)
		}
	}

	for _, round := range []struct {
		name     string
		do, undo string // in the Docker host
		program  string
		args     []string
		want     []string
	}{
		{"of the host itself", `
echo 'install ipvlan /bin/false' >/etc/modprobe.d/doctor.conf
modprobe -r ipvlan
sysctl -qw net.ipv4.conf.all.arp_ignore=2
mkdir -p /run/systemd/netif /etc/systemd/network
printf '[Match]\nName=*\n[Network]\nDHCP=yes\n' >/etc/systemd/network/99-doctor.network
fallocate -l $(($(df --output=avail -k /var/lib/docker | tail -1) - 30720))K /var/lib/docker/doctor.full`, `
rm -f /var/lib/docker/doctor.full /etc/modprobe.d/doctor.conf /etc/systemd/network/99-doctor.network
rmdir /run/systemd/netif
sysctl -qw net.ipv4.conf.all.arp_ignore=0`,
			"./underlay-faults", nil, []string{
				`warning kernel host: the kernel has no module ipvlan`,
				`warning arp host: net.ipv4.conf.all.arp_ignore=2`,
				`warning plugin host: the plugin is underlay .*, and this command is faults`,
				`warning state host: .* in /var/lib/underlay has \d+ MiB left`,
				`note managers host: systemd-networkd takes links .* /etc/systemd/network/99-doctor.network`,
			}},
		{"of parents", `
ip link set eth1 down
ip link add br9 type bridge
ip link set eth2 master br9`, `
ip link set eth1 up
ip link del br9`,
			binary, append(parent("eth1", "eth2", "eth9"), "--socket", "/nowhere"), []string{
				`error plugin host: the plugin does not answer: nobody serves on /nowhere`,
				`error parent eth1: it is down`,
				`error parent eth2: it is a port of bridge br9`,
				`error parent eth9: there is no such link`,
			}},
		{"of what is on parents", `
ip -n switch link set nic1 down
ip link add p9 link eth2 type macvlan mode passthru
ip link set p9 netns host1
ip -n host1 link set p9 up
ip link add link eth0 name i9 type ipvlan mode l3`, `
ip -n switch link set nic1 up
ip -n host1 link del p9
ip link del i9`,
			binary, parent("eth0", "eth1", "eth2"), []string{
				`warning modes eth0: another program's link i9, ipvlan l3, `,
				`error parent eth1: it has no carrier`,
				`error modes eth2: a container's link p9, macvlan passthru`,
			}},
		{"of a bond", `
modprobe bonding max_bonds=0
ip link add bond9 type bond mode balance-xor miimon 100
ip link set eth1 down
ip link set eth1 master bond9
ip link set bond9 up
ip addr add 192.168.50.9/24 dev bond9
ip route add default via 192.168.50.1 dev bond9 metric 900`, `
ip link del bond9
ip link set eth1 up
modprobe -r bonding`,
			binary, parent("bond9"), []string{
				`warning bond bond9: bond bond9 is in mode balance-xor`,
			}},
		{"of addresses", `
ip -n host1 addr add 192.168.50.2/32 dev eth0
ip -n host1 addr add fd00:50::1/128 dev eth0 nodad
sysctl -qw net.ipv4.conf.eth1.arp_ignore=0`, `
ip -n host1 addr del 192.168.50.2/32 dev eth0
ip -n host1 addr del fd00:50::1/128 dev eth0
sysctl -qw net.ipv4.conf.eth1.arp_ignore=1`,
			binary, nil, []string{
				`error duplicate eth0: the host's address 192.168.50.2 is that of `,
				`error duplicate eth0: gateway fd00:50::1 is answered for by .* and `,
				`warning arp eth0: link eth1 of this host answers for 192.168.50.2 too`,
			}},
		{"of the switch", `
ip netns exec switch bridge link set dev nic0 learning off locked on
ip netns exec switch bridge fdb replace ` + nicMAC + ` dev nic0 master static
ip link add link eth0 name eth0.11 type vlan id 11
ip link set eth0.11 up
ip addr add 192.168.11.2/24 dev eth0.11
ip route add default via 192.168.11.1 dev eth0.11 metric 900`, `
ip netns exec switch bridge link set dev nic0 learning on locked off
ip netns exec switch bridge fdb del ` + nicMAC + ` dev nic0 master
ip link del eth0.11`,
			binary, parent("eth0", "eth0.11"), []string{
				`error macs eth0: gateway 192.168.50.1 answers eth0's own MAC and no other: .* a virtual machine of QEMU`,
				`error vlan eth0.11: nobody answers in VLAN 11 on eth0, where 192.168.11.1 should`,
			}},
		{"of the plugin", `
pkill -STOP -f '^/underlay serve'`, `
pkill -CONT -f '^/underlay serve'`,
			binary, nil, []string{
				`error plugin host: the plugin does not answer: .* in time`,
			}},
	} {
		t.Run(round.name, func(t *testing.T) {
			defer func() { do(t, "", round.undo) }()
			do(t, "", round.do)
			finds(t, round.program, round.args, round.want...)
		})
	}

	t.Run("of the router and DHCP", func(t *testing.T) {
		server.stop()
		const silence = "ip netns exec router sysctl -qw net.ipv4.conf.eth0.arp_ignore="
		do(t, "", silence+"8")
		finds(t, binary, nil, `error gateway eth0: gateway 192.168.50.1 does not answer`, `note dhcp eth0: no DHCP server answers`)
		do(t, "", silence+"0")
		router := dnsmasq(t, "router", lease...)
		defer router.stop()
		other := dnsmasq(t, "host1", append(lease, "--dhcp-option=option:mtu,1400")...)
		defer other.stop()
		finds(t, binary, nil,
			`warning dhcp eth0: 2 DHCP servers answer: 192.168.50.1 and 192.168.50.3`,
			`warning mtu eth0: it has an MTU of 1500, and DHCP server 192.168.50.3 tells the LAN one of 1400`)
	})

	t.Run("of Docker's networks", func(t *testing.T) {
		s := dnsmasq(t, "router", lease...)
		defer s.stop()
		b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "--ip-range", "192.168.50.64/26", "-o", "parent=eth0", "lan")
		for _, n := range []map[string]any{
			{"Name": "old", "Driver": "macvlan", "IPAM": subnet("192.168.50.0/24", router4), "Options": map[string]string{"parent": "eth0"}},
			{"Name": "other", "Driver": "ipvlan", "IPAM": subnet("192.168.55.0/24", ""), "Options": map[string]string{"parent": "eth0", "ipvlan_mode": "l3"}},
		} {
			if err := api("POST", "/networks/create", n, nil); err != nil {
				t.Fatal(err)
			}
			defer api("DELETE", "/networks/"+n["Name"].(string), nil, nil)
		}
		finds(t, binary, nil,
			`warning networks eth0: Docker's network old \(macvlan\) gives out the same addresses as underlay's lan`,
			`warning networks eth0: Docker's network other is ipvlan l3 there, and underlay's lan is macvlan bridge`)
	})
}

// subnet is what dockerd's API takes for one.
func subnet(prefix, gateway string) map[string]any {
	c := map[string]string{"Subnet": prefix}
	if gateway != "" {
		c["Gateway"] = gateway
	}
	return map[string]any{"Config": []map[string]string{c}}
}
