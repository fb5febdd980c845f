package ipam

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func FuzzParsePoolID(f *testing.F) {
	for _, seed := range []string{
		"", "192.168.50.0/24", "192.168.50.0/24,192.168.50.64/26", "192.168.50.0/24,192.168.50.64/26#6590306d", "fd00:50::/64#6590306d",
		"192.168.50.7/24", "192.168.50.0/24,", "0.0.0.0/0", "::ffff:192.168.50.0/120", "fe80::%eth0/64", "10.0.0.0/31,10.0.0.0/32",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		subnet, within, err := ParsePoolID(id)
		if err != nil {
			if subnet.IsValid() || within.IsValid() || !errors.Is(err, ErrUnknownPool) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, %v beside %v", subnet, within, err)
			}
			return
		}
		if subnet != subnet.Masked() || within.IsValid() && (within != within.Masked() || within.Bits() < subnet.Bits() || !subnet.Contains(within.Addr())) {
			t.Errorf("%q is %v, %v", id, subnet, within)
		}
		again := subnet.String()
		if within.IsValid() {
			again += "," + within.String()
		}
		if s, w, err := ParsePoolID(again); s != subnet || w != within || err != nil {
			t.Errorf("%q is %v, %v; %q is %v, %v, %v", id, subnet, within, again, s, w, err)
		}
	})
}

func FuzzParseDefaultPools(f *testing.F) {
	for _, seed := range []string{
		"", ";", "base=10.210.0.0/16,size=24;base=fd00:1::/48,size=64", " base = 10.0.0.0/8 , size=8 ", "base=10.0.0.0/8", "size=24",
		"base=10.0.0.1/8,size=24", "base=10.0.0.0/8,size=33", "base=10.0.0.0/8,size=-1", "base=0.0.0.0/0,size=24", "mask=24\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pools, err := ParseDefaultPools(text)
		if err != nil {
			if pools != nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v beside %q", pools, err)
			}
			return
		}
		var again []string
		for _, p := range pools {
			if p.Base != p.Base.Masked() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
				t.Errorf("%q has %v", text, p)
			}
			again = append(again, fmt.Sprintf("base=%s,size=%d", p.Base, p.Size))
		}
		if back, err := ParseDefaultPools(strings.Join(again, ";")); err != nil || fmt.Sprint(back) != fmt.Sprint(pools) {
			t.Errorf("%q is %v, and again %v, %v", text, pools, back, err)
		}
	})
}
