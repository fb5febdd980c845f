package ipam

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
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
	Refs  int           `json:"refs"`
	Terms []termsRecord `json:"terms,omitempty"`

	Released []string `json:"released,omitempty"` // the IDs of networks; see pool.released
	Removal  *int     `json:"removal,omitempty"`  // see pool.removal
	Unsure   bool     `json:"unsure,omitempty"`   // see pool.unsure

	Ranges map[netip.Prefix]int `json:"ranges,omitempty"` // of format 1, instead of Terms
}

type termsRecord struct {
	Range   netip.Prefix      `json:"range,omitzero"`
	Options map[string]string `json:"options,omitempty"`
	Refs    int               `json:"refs"`
}

type addressRecord struct {
	Kind   Kind       `json:"kind"`
	Name   string     `json:"name,omitempty"`
	Since  *time.Time `json:"since,omitempty"`  // held or resting since
	Static bool       `json:"static,omitempty"` // asked for by value
	Turn   uint64     `json:"turn,omitempty"`   // resting: order of being freed
}

func (p *pool) key() []byte { return []byte(p.subnet.String()) }

func (p *pool) addressKey(addr netip.Addr) []byte {
	key := make([]byte, 0, 64)
	key = p.subnet.AppendTo(key)
	key = append(key, ' ')
	return addr.AppendTo(key)
}

func (p *pool) putSelf() store.Change {
	r := poolRecord{Refs: p.refs, Released: slices.Sorted(maps.Keys(p.released)), Unsure: p.window || p.unsure}
	if p.removal >= 0 {
		r.Removal = &p.removal
	}
	for _, id := range slices.Sorted(maps.Keys(p.terms)) {
		if t := p.terms[id]; t.refs+t.before > 0 {
			r.Terms = append(r.Terms, termsRecord{t.within, t.given, max(t.refs, t.before)})
		}
	}
	return store.Change{Bucket: poolBucket, Key: p.key(), Value: encode(r)}
}

func (p *pool) deleteSelf() store.Change { return store.Change{Bucket: poolBucket, Key: p.key()} }

func (p *pool) putHeld(addr netip.Addr, h *holding) store.Change {
	return store.Change{Bucket: addressBucket, Key: p.addressKey(addr),
		Value: encode(addressRecord{Kind: h.kind, Name: h.name, Since: &h.since, Static: h.static})}
}

func (p *pool) putResting(addr netip.Addr, r *rest) store.Change {
	return store.Change{Bucket: addressBucket, Key: p.addressKey(addr),
		Value: encode(addressRecord{Kind: kindResting, Name: r.name, Since: &r.since, Static: r.static, Turn: r.turn})}
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
		if r.Terms == nil { // of format 1, which counts no networks without a range
			whole := r.Refs
			for within, refs := range r.Ranges {
				r.Terms = append(r.Terms, termsRecord{Range: within, Refs: refs})
				whole -= refs
			}
			if whole > 0 {
				r.Terms = append(r.Terms, termsRecord{Refs: whole})
			}
		}
		for _, tr := range r.Terms {
			t, err := newTerms(subnet, tr.Range, tr.Options)
			if err != nil {
				return fmt.Errorf("state record %s/%s: %w", poolBucket, key, err)
			}
			t.refs = tr.Refs
			p.terms[t.id] = t
		}
		p.refs, p.unsure = r.Refs, r.Unsure
		for _, id := range r.Released {
			p.released[id] = true
		}
		if r.Removal != nil {
			p.removal = *r.Removal
		}
		p.restrict()
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
	var since time.Time
	if r.Since != nil {
		since = *r.Since
	}
	if r.Kind == kindResting {
		p.rest(addr, &rest{turn: r.Turn, since: since, name: r.Name, static: r.Static})
		return nil
	}
	// Claimed: dockerd has not been restarted because the plugin was.
	h := &holding{kind: r.Kind, name: r.Name, since: since, static: r.Static, claims: 1, loaded: true}
	p.keep(addr, h)
	return nil
}
