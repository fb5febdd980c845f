package driver

import (
	"crypto/sha256"
	"net"

	"underlay/netlinkutil"
)

// deriveMAC makes a locally administered unicast MAC (IEEE 802 clause 8.4) out
// of what identifies a container on its LAN. The parent's MAC is in it: it is
// unique on the LAN, so two hosts with the same container names differ in the
// input, and 46 bits of SHA-256 keep their MACs apart. attempt is counted up
// where another endpoint of the parent has the MAC already.
func deriveMAC(parent net.HardwareAddr, lan, who string, attempt byte) MAC {
	h := sha256.New()
	h.Write(parent)
	h.Write([]byte{0})
	h.Write([]byte(lan))
	h.Write([]byte{0})
	h.Write([]byte(who))
	h.Write([]byte{0, attempt})
	mac := MAC(h.Sum(nil)[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// baseMAC is that of a parent which the MACs on it are derived from: the one it
// was made with, where it tells that, as its present one may be set anew.
func baseMAC(parent netlinkutil.Link) net.HardwareAddr {
	if parent.PermMAC != nil {
		return parent.PermMAC
	}
	return parent.MAC
}

// dummyMAC keeps a dummy parent's MAC over a reboot, and with it those that
// are derived from it.
func dummyMAC(networkID string) net.HardwareAddr {
	return net.HardwareAddr(deriveMAC(nil, networkID, "parent", 0))
}
