package plugin

import (
	"testing"
	"time"
)

// A network whose pools dockerd releases, and that it then says no more of, is
// forgotten, long after the last look for such, too.
func TestForgetAbandoned(t *testing.T) {
	b := newBench(t)
	b.stop()
	b.config.Grace = 20 * time.Millisecond
	b.start()
	_, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.lan(2, "192.168.60.0/24", "192.168.60.1", object{"parent": "eth0"})
	time.Sleep(b.config.Grace * abandonedLooks / 2) // no more looks
	must[object](b, "IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": "192.168.50.1"})
	must[object](b, "IpamDriver.ReleasePool", object{"PoolID": pool})
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		networks := must[State](b, "Underlay.State", nil).Networks
		if len(networks) == 1 && networks[0].ID == dockerID(2) {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("still there: %+v", networks)
		}
	}
}
