package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Release frees an address by the hand of a person, who knows that no container has
// it. It is refused as long as anything says that one may.
func (i *IPAM) Release(ctx context.Context, addr netip.Addr) error {
	for {
		p, err := i.lockOverlapping(ctx, netip.PrefixFrom(addr, addr.BitLen()))
		if err != nil {
			return err
		}
		if p == nil {
			i.mu.Unlock()
			return fmt.Errorf("%s is in no pool of underlay's; underlay status lists them", addr)
		}
		h := p.held[addr]
		if h != nil && h.settled != nil {
			settled := h.settled
			i.mu.Unlock()
			if err := await(ctx, settled); err != nil {
				return err
			}
			continue
		}
		if err := i.unreleasable(p, addr, h); err != nil {
			i.mu.Unlock()
			return err
		}
		b := &batch{}
		i.free(b, p, addr, h)
		err = i.commit(ctx, b, nil)
		if err == nil && h.kind == KindEndpoint { // else free says so
			i.audit(p, addr, h, "freed").Info("address freed by hand")
		}
		return err
	}
}

// unreleasable says why an address is not to be freed by hand.
func (i *IPAM) unreleasable(p *pool, addr netip.Addr, h *holding) error {
	if h == nil {
		switch s := p.seen[addr]; {
		case s != nil:
			return fmt.Errorf("%s is no container's: %v has it on the LAN; take that machine off it", addr, s.mac)
		case p.alloc.resting[addr] != nil:
			return fmt.Errorf("%s is free already", addr)
		}
		return fmt.Errorf("%s is not held", addr)
	}
	if who, used := i.holder(addr); used {
		if h.name != "" {
			who += ", container " + h.name
		}
		return fmt.Errorf("%s is live: %s has it; stop that container (docker stop), or docker network disconnect -f it", addr, who)
	}
	if ids := i.namedBy(p, addr); len(ids) > 0 {
		return fmt.Errorf("%s is %s; docker network rm that network", addr, i.purpose(p, addr, h, ""))
	}
	if i.pending(p) > 0 {
		return fmt.Errorf("%s may be live: dockerd has a network on %s that underlay does not know; docker network rm and create that one first", addr, p.subnet)
	}
	age := i.now().Sub(h.since)
	if i.replaying(p) && i.now().Sub(p.replayed) < i.grace {
		age = i.now().Sub(p.replayed)
	}
	if age < i.grace {
		return fmt.Errorf("%s may be live: dockerd has asked for it %v ago, and its container may be on its way; try again in %v", addr, age.Round(time.Second), (i.grace - age).Round(time.Second))
	}
	return nil
}
