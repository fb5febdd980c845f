package ipam

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"underlay/internal/store"
)

// The buckets of the state file. All values are JSON.
//
//	pools      key "192.168.50.0/24"
//	addresses  key "192.168.50.0/24 192.168.50.7", held or resting
//	ipam       key "ula": the unique local /48 of this host
const (
	poolBucket    = "pools"
	addressBucket = "addresses"
	ownBucket     = "ipam"
)

type poolRecord struct {
	Refs   int                  `json:"refs"`
	Ranges map[netip.Prefix]int `json:"ranges,omitempty"`
}

type addressRecord struct {
	Kind  Kind       `json:"kind"`
	Name  string     `json:"name,omitempty"`
	Since *time.Time `json:"since,omitempty"` // held since
	Turn  uint64     `json:"turn,omitempty"`  // resting: order of being freed
}

func (p *pool) key() []byte { return []byte(p.subnet.String()) }

func (p *pool) addressKey(addr netip.Addr) []byte {
	key := make([]byte, 0, 64)
	key = p.subnet.AppendTo(key)
	key = append(key, ' ')
	return addr.AppendTo(key)
}

func (p *pool) putSelf() store.Change {
	return store.Change{Bucket: poolBucket, Key: p.key(), Value: encode(poolRecord{p.refs, p.ranges})}
}

func (p *pool) deleteSelf() store.Change { return store.Change{Bucket: poolBucket, Key: p.key()} }

func (p *pool) putHeld(addr netip.Addr, h *holding) store.Change {
	return store.Change{Bucket: addressBucket, Key: p.addressKey(addr),
		Value: encode(addressRecord{Kind: h.kind, Name: h.name, Since: &h.since})}
}

func (p *pool) putResting(addr netip.Addr, turn uint64) store.Change {
	return store.Change{Bucket: addressBucket, Key: p.addressKey(addr),
		Value: encode(addressRecord{Kind: resting, Turn: turn})}
}

func (p *pool) deleteAddress(addr netip.Addr) store.Change {
	return store.Change{Bucket: addressBucket, Key: p.addressKey(addr)}
}

// encode cannot fail: the records hold nothing that JSON lacks.
func encode(record any) []byte {
	b, _ := json.Marshal(record)
	return b
}

// load reads all records. A record that it cannot read stops it: an address
// overlooked could be given twice.
func (i *IPAM) load() error {
	err := i.store.Each(poolBucket, func(key, value []byte) error {
		subnet, err := netip.ParsePrefix(string(key))
		if err != nil {
			return fmt.Errorf("state record %s/%s: %w", poolBucket, key, err)
		}
		var r poolRecord
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("state record %s/%s: %w", poolBucket, key, err)
		}
		p := newPool(subnet)
		p.refs = r.Refs
		maps.Copy(p.ranges, r.Ranges)
		i.pools.Set(p)
		return nil
	})
	if err != nil {
		return err
	}
	var p *pool
	var prefix []byte // key of p, and a space
	return i.store.Each(addressBucket, func(key, value []byte) error {
		if p == nil || !bytes.HasPrefix(key, prefix) {
			text, _, _ := bytes.Cut(key, []byte(" "))
			subnet, err := netip.ParsePrefix(string(text))
			if err != nil {
				return fmt.Errorf("state record %s/%s: %w", addressBucket, key, err)
			}
			if p = i.pool(subnet); p == nil {
				return fmt.Errorf("state record %s/%s: there is no such pool", addressBucket, key)
			}
			prefix = append(p.key(), ' ')
		}
		if err := p.load(key[len(prefix):], value); err != nil {
			return fmt.Errorf("state record %s/%s: %w", addressBucket, key, err)
		}
		return nil
	})
}

func (p *pool) load(key, value []byte) error {
	addr, err := netip.ParseAddr(string(key))
	if err != nil {
		return err
	}
	var r addressRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return err
	}
	p.alloc.take(addr)
	if r.Kind == resting {
		p.alloc.rest(addr, r.Turn)
		return nil
	}
	// Claimed: dockerd has not been restarted because the plugin was.
	h := &holding{kind: r.Kind, name: r.Name, claims: 1}
	if r.Since != nil {
		h.since = *r.Since
	}
	p.keep(addr, h)
	return nil
}
