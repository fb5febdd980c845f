package driver

import (
	"net/netip"

	"github.com/sirupsen/logrus"
)

// audit is the beginning of a log line about addresses that a container is given,
// or that are freed: these, or else all that it has.
func (d *Driver) audit(e *Endpoint, action string, addresses ...netip.Prefix) *logrus.Entry {
	fields := logrus.Fields{"action": action}
	if addresses == nil {
		addresses = e.prefixes()
	}
	for _, p := range addresses {
		key := "address"
		if p.Addr().Is6() {
			key = "address6"
		}
		fields[key] = p.Addr().String()
		if name, ok := d.holdings.Name(p.Addr()); ok {
			fields["name"] = name
		}
	}
	if e.MAC != nil {
		fields["mac"] = e.MAC.String()
	}
	return d.logOfEndpoint(e.NetworkID, e.ID).WithFields(fields)
}
