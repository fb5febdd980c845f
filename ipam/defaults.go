package ipam

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math/big"
	"net/netip"
	"strconv"
	"strings"

	"underlay/internal/store"
)

// DefaultPool is a stock of subnets of one size.
type DefaultPool struct {
	Base netip.Prefix
	Size int // prefix length of the subnets
}

func (d DefaultPool) String() string { return fmt.Sprintf("%s in /%ds", d.Base, d.Size) }

// ParseDefaultPools reads "base=10.210.0.0/16,size=24;base=fd00:1::/48,size=64",
// the words of dockerd's --default-address-pool. Empty text gives nil.
func ParseDefaultPools(s string) ([]DefaultPool, error) {
	var pools []DefaultPool
	for text := range strings.SplitSeq(s, ";") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		d, err := parseDefaultPool(text)
		if err != nil {
			return nil, fmt.Errorf("default pool %q: %w; give for example base=10.210.0.0/16,size=24", text, err)
		}
		pools = append(pools, d)
	}
	return pools, nil
}

func parseDefaultPool(text string) (d DefaultPool, err error) {
	for field := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch key {
		case "base":
			d.Base, err = netip.ParsePrefix(value)
		case "size":
			d.Size, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("unknown word %q", key)
		}
		if err != nil {
			return d, err
		}
	}
	if !d.Base.IsValid() {
		return d, fmt.Errorf("no base")
	}
	if err := checkSubnet(d.Base, netip.Prefix{}); err != nil {
		return d, err
	}
	if d.Size < d.Base.Bits() || d.Size > d.Base.Addr().BitLen() {
		return d, fmt.Errorf("size %d is not between %d and %d", d.Size, d.Base.Bits(), d.Base.Addr().BitLen())
	}
	return d, nil
}

// builtinPools are the default pools where none are configured. The IPv6 one is
// made at first use, with a random global ID as RFC 4193 section 3.2 wants it.
func builtinPools(st *store.Store) ([]DefaultPool, error) {
	var ula netip.Prefix
	err := st.Each(ownBucket, func(key, value []byte) error {
		if string(key) != "ula" {
			return nil
		}
		return json.Unmarshal(value, &ula)
	})
	if err != nil {
		return nil, fmt.Errorf("state record %s/ula: %w", ownBucket, err)
	}
	if !ula.IsValid() {
		b := [16]byte{0: 0xfd}
		rand.Read(b[1:6]) // never fails
		ula = netip.PrefixFrom(netip.AddrFrom16(b), 48)
		if err := st.Apply(store.Change{Bucket: ownBucket, Key: []byte("ula"), Value: encode(ula)}); err != nil {
			return nil, err
		}
	}
	return []DefaultPool{
		{Base: netip.MustParsePrefix("10.210.0.0/16"), Size: 24},
		{Base: ula, Size: 64},
	}, nil
}

// freeDefault returns the first default subnet of a family that overlaps no
// pool.
func (i *IPAM) freeDefault(v6 bool) (netip.Prefix, error) {
	var stocks []string
	for _, d := range i.defaults {
		if d.Base.Addr().Is6() != v6 {
			continue
		}
		if subnet, ok := i.freeOf(d); ok {
			return subnet, nil
		}
		n := new(big.Int).Lsh(big.NewInt(1), uint(d.Size-d.Base.Bits()))
		stocks = append(stocks, fmt.Sprintf("%s, all %d", d, n))
	}
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	if stocks == nil {
		return netip.Prefix{}, fmt.Errorf("there is no %s default pool; name the LAN's with --subnet and --gateway", family)
	}
	return netip.Prefix{}, fmt.Errorf("the %s default pools are %w: held of %s; name the LAN's subnet with --subnet and --gateway",
		family, ErrExhausted, strings.Join(stocks, "; of "))
}

func (i *IPAM) freeOf(d DefaultPool) (netip.Prefix, bool) {
	for at := d.Base.Addr(); at.IsValid() && d.Base.Contains(at); {
		subnet := netip.PrefixFrom(at, d.Size)
		other := i.overlapping(subnet)
		if other == nil {
			return subnet, true
		}
		last := lastOf(subnet)
		if beyond := lastOf(other.subnet); last.Less(beyond) {
			last = beyond
		}
		at = last.Next()
	}
	return netip.Prefix{}, false
}
