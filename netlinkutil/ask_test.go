package netlinkutil

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A dump that the kernel refuses is an error: here of a netns that has ended since its
// number was told.
func TestDumpRefused(t *testing.T) {
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	const none = 0x7ffffff0
	links, err := h.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.RTM_NEWLINK,
		nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(iflaTargetNetnsID, nl.Uint32Attr(none)))
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("%d links, %v, want EINVAL", len(links), err)
	}
	// A change that it refuses has its words.
	err = h.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Table: 255, Dst_len: 99}})
	if !errors.Is(err, unix.EINVAL) || err.Error() == unix.EINVAL.Error() {
		t.Errorf("%v, want EINVAL with words", err)
	}
}

// A panic under a question is its error, with the place.
func TestSafely(t *testing.T) {
	_, err := bounded(func() ([]byte, error) {
		b := make([]byte, 1)
		return b[len(b)+1:], nil
	})
	if err == nil || !strings.Contains(err.Error(), "slice bounds out of range") || !strings.Contains(err.Error(), "at ask_test.go:") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, want a line that says what and where", err)
	}
	if got, err := bounded(func() (int, error) { return 7, nil }); got != 7 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
}

// What is made after it has been given up is undone; what is made in time, or not at
// all, is not.
func TestTellOrUndo(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	for _, row := range []struct {
		name string
		late bool
		err  error
		undo bool
	}{{"in time", false, nil, false}, {"refused", false, refused, false}, {"late", true, nil, true}, {"refused late", true, refused, false}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			over, undone := make(chan struct{}), make(chan struct{})
			err := tellOrUndo(func() error {
				if row.late {
					<-over
				}
				return row.err
			}, func() { close(undone) })
			want := row.err
			if row.late {
				want = unix.EAGAIN
			}
			if !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			close(over)
			select {
			case <-undone:
				if !row.undo {
					t.Error("it was undone")
				}
			case <-time.After(100 * time.Millisecond):
				if row.undo {
					t.Error("it was not undone")
				}
			}
		})
	}
}

// A route of a container's to addresses that stand for IPv4 ones can be written down and
// read again.
func TestMappedRoute(t *testing.T) {
	to := netip.MustParseAddr("::ffff:10.0.0.0").As16()
	m := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET6, Dst_len: 104, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN}}
	as := map[uint16][]byte{unix.RTA_DST: to[:], unix.RTA_OIF: nl.Uint32Attr(7), unix.RTA_GATEWAY: to[:]}
	n, ok := interfaceRoute(m, as, 7, unix.AF_INET6)
	if !ok {
		t.Fatal("it is left out")
	}
	text, err := json.Marshal(n)
	var again InterfaceRoute
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil || again != n || !n.To.Addr().Is6() || !n.Via.Is6() {
		t.Errorf("%s, %v: %v became %v", text, err, n, again)
	}
	m.Dst_len = 129
	if n, ok := interfaceRoute(m, as, 7, unix.AF_INET6); ok {
		t.Errorf("%v is a route", n)
	}
	if p := prefix(&net.IPNet{IP: net.IP(to[:]), Mask: net.CIDRMask(96, 128)}); p.String() != "::ffff:0.0.0.0/96" {
		t.Errorf("the host's is %v", p)
	}
}
