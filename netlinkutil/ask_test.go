package netlinkutil

import (
	"errors"
	"testing"

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
