//go:build vm

package vmtest

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

// refused wants an error of one line with every one of the given patterns.
func refused(t *testing.T, err error, says ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("succeeded; want a refusal that says %q", says)
		return
	}
	for _, s := range says {
		if !regexp.MustCompile(s).MatchString(err.Error()) {
			t.Errorf("the refusal does not say %q: %v", s, err)
		}
	}
	if n := strings.Count(strings.TrimSpace(err.Error()), "\n"); n > 3 {
		t.Errorf("the refusal has %d lines: %v", n+1, err)
	}
}

// unchanged wants the picture from before.
func unchanged(t *testing.T, what, before string) {
	t.Helper()
	err := wait(5*time.Second, what, func() error {
		if after := picture(t); after != before {
			return errors.New("the refusal left a change: " + difference(before, after))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Refusals of docker network create name the cause and the remedy, and change
// nothing.
func TestRefusals(t *testing.T) {
	needs(t, "VLAN")
	b := begin(t)
	do(t, "", `
ip link add br9 type bridge
ip link add port9 type dummy
ip link set port9 master br9`)
	defer do(t, "", "ip link del port9; ip link del br9")
	b.network("--subnet", "192.168.50.0/24", "--gateway", router4, "-o", "parent=eth0", "lan")
	b.network("--subnet", "192.168.52.0/24", "-o", "parent=eth1", "-o", "ipvlan_mode=l2", "flat")
	b.network("--subnet", "192.168.53.0/24", "-o", "parent=eth2", "-o", "macvlan_mode=passthru", "alone")

	sub := func(args ...string) []string { return append([]string{"--subnet", "192.168.80.0/24"}, args...) }
	for _, row := range []struct {
		name string
		args []string
		says []string
	}{
		{"loopback", sub("-o", "parent=lo"), []string{`parent lo is the loopback`, `name a`}},
		{"unknown link", sub("-o", "parent=eth7"), []string{`parent eth7`, `not there|not exist`, `ip link`}},
		{"unknown lower link", sub("-o", "parent=eth7.10"), []string{`eth7`, `ip link`}},
		{"bad VLAN", sub("-o", "parent=eth0.5000"), []string{`5000`, `4094`}},
		{"enslaved", sub("-o", "parent=port9"), []string{`parent port9`, `bridge br9`, `parent=br9`}},
		{"ipvlan beside macvlan", sub("-o", "parent=eth0", "-o", "ipvlan_mode=l2"), []string{`parent eth0 already carries macvlan`, `another parent`}},
		{"macvlan beside ipvlan", sub("-o", "parent=eth1"), []string{`parent eth1 already carries ipvlan`, `another parent`}},
		{"another ipvlan mode", sub("-o", "parent=eth1", "-o", "ipvlan_mode=l3"), []string{`parent eth1 already carries ipvlan l2`, `same mode`}},
		{"another ipvlan flag", sub("-o", "parent=eth1", "-o", "ipvlan_mode=l2", "-o", "ipvlan_flag=private"), []string{`parent eth1 already carries ipvlan l2`, `same mode`}},
		{"passthru on a busy parent", sub("-o", "parent=eth0", "-o", "macvlan_mode=passthru"), []string{`parent eth0 already carries macvlan`, `passthru needs`}},
		{"beside passthru", sub("-o", "parent=eth2"), []string{`parent eth2 already carries macvlan passthru`, `alone`}},
		{"unknown option", sub("-o", "parent=eth0", "-o", "colour=red"), []string{`colour`, `parent`}},
		{"unknown mode", sub("-o", "parent=eth0", "-o", "macvlan_mode=bridged"), []string{`macvlan_mode=bridged`, `bridge, private, vepa`}},
		{"both kinds", sub("-o", "parent=eth0", "-o", "macvlan_mode=bridge", "-o", "ipvlan_mode=l2"), []string{`macvlan_mode`, `ipvlan_mode`}},
		{"MTU above the parent's", sub("-o", "parent=eth0", "-o", "com.docker.network.driver.mtu=9000"), []string{`9000`, `1500`}},
		{"MTU too small for v6", []string{"--subnet", "192.168.80.0/24", "--ipv6", "--subnet", "fd00:80::/64", "-o", "parent=eth0", "-o", "com.docker.network.driver.mtu=1000"}, []string{`1000`, `1280`}},
		{"unknown pool option", sub("-o", "parent=eth0", "--ipam-opt", "colour=red"), []string{`colour`}},
		{"range outside", sub("-o", "parent=eth0", "--ip-range", "192.168.81.0/28"), []string{`192\.168\.81\.0/28|192\.168\.81\.0`, `subnet`}},
		{"gateway outside", sub("-o", "parent=eth0", "--gateway", "192.168.81.1"), []string{`192\.168\.81\.1|gateway`, `subnet`}},
		{"overlap", []string{"--subnet", "192.168.50.0/25", "-o", "parent=eth0"}, []string{`192\.168\.50\.0/25`, `192\.168\.50\.0/24`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			networkRefused(t, row.args, row.says...)
		})
	}

	t.Run("MAC on ipvlan", func(t *testing.T) {
		before := picture(t)
		_, err := b.tryRun("mac", "--network", "flat", "--mac-address", "02:11:22:33:44:55")
		refused(t, err, `MAC`, `parent eth1`, `--mac-address`)
		tryDocker("rm", "-f", "mac")
		unchanged(t, "MAC on ipvlan", before)
	})
}

// networkRefused wants docker network create to refuse args in these words, and
// to change nothing.
func networkRefused(t *testing.T, args []string, says ...string) {
	t.Helper()
	networkRefusedFrom(t, picture(t), args, says...)
}

// networkRefusedFrom is networkRefused with the picture from before.
func networkRefusedFrom(t *testing.T, before string, args []string, says ...string) {
	t.Helper()
	out, err := tryDocker(append(append([]string{"network", "create", "-d", plugin, "--ipam-driver", plugin}, args...), "refused")...)
	if err == nil {
		tryDocker("network", "rm", "refused")
		t.Errorf("made network %s", out)
	}
	refused(t, err, says...)
	unchanged(t, strings.Join(args, " "), before)
}
