package ipam

import (
	"net/netip"

	"github.com/sirupsen/logrus"
)

// audit is the beginning of a log line about an address that is given or freed.
// Those of containers are the driver's to tell, which knows the MAC; these are a
// network's, and those that are left behind.
func (i *IPAM) audit(p *pool, addr netip.Addr, h *holding, action string) *logrus.Entry {
	fields := logrus.Fields{"action": action, "address": addr, "pool": p.subnet, "for": string(h.kind)}
	if h.name != "" {
		fields["name"] = h.name
	}
	return i.log.WithFields(fields)
}
