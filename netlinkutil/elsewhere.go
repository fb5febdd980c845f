package netlinkutil

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linux/net_namespace.h
const (
	netnsaNSID = 1
	netnsaFD   = 3
)

// RemoveElsewhere deletes the link of that alias in whichever netns it has been
// moved to, and tells whether there was one. No path leads there and none is
// needed: the kernel has numbered the netns when the link was moved (Linux 4.17;
// net/core/dev.c, dev_change_net_namespace). Of a netns that is not to be looked
// into, nothing is told.
func (h *Host) RemoveElsewhere(alias string) (found bool, err error) {
	if alias == "" {
		return false, refuse(ErrInvalid, "a link elsewhere is known by its alias, and none is given")
	}
	answers, err := h.ask(unix.RTM_GETNSID, unix.NLM_F_DUMP, unix.RTM_NEWNSID, &nl.RtGenMsg{})
	if err != nil {
		return false, Explain(err, "", "listing the network namespaces that links have been moved to")
	}
	here, err := h.ownNSID()
	if err != nil {
		return false, err
	}
	for _, b := range answers {
		id := nsidOf(b)
		if id == nil || bytes.Equal(id, here) {
			continue
		}
		there := nl.NewRtAttr(iflaTargetNetnsID, id)
		links, err := h.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), there, nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		if err != nil {
			continue // it has just ended, or is not to be looked into
		}
		for _, l := range links {
			if len(l) < unix.SizeofIfInfomsg || strings.TrimRight(string(raws(l, unix.SizeofIfInfomsg)[unix.IFLA_IFALIAS]), "\x00") != alias {
				continue
			}
			info := nl.NewIfInfomsg(unix.AF_UNSPEC)
			info.Index = int32(binary.NativeEndian.Uint32(l[4:]))
			err := h.change(unix.RTM_DELLINK, 0, info, nl.NewRtAttr(iflaTargetNetnsID, id))
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return true, Explain(err, "", fmt.Sprintf("deleting link %q in the network namespace %d", alias, binary.NativeEndian.Uint32(id)))
			}
			found = true
		}
	}
	return found, nil
}

// ownNSID is the number that this netns has for itself, nil if it has none.
func (h *Host) ownNSID() ([]byte, error) {
	fd, err := unix.IoctlRetInt(h.strict[unix.NETLINK_ROUTE].Socket.GetFd(), unix.SIOCGSKNS)
	if err != nil {
		return nil, Explain(err, "", "looking up the host's own network namespace")
	}
	defer unix.Close(fd)
	answers, err := h.ask(unix.RTM_GETNSID, 0, unix.RTM_NEWNSID, &nl.RtGenMsg{}, nl.NewRtAttr(netnsaFD, nl.Uint32Attr(uint32(fd))))
	if err != nil || len(answers) != 1 {
		return nil, Explain(err, "", "looking up the host's own network namespace")
	}
	return nsidOf(answers[0]), nil
}

// nsidOf is the number in a message about a netns, nil if it has none. It is behind
// struct rtgenmsg and its padding.
func nsidOf(b []byte) []byte {
	id := raws(b, 4)[netnsaNSID]
	if len(id) != 4 || int32(binary.NativeEndian.Uint32(id)) < 0 { // NETNSA_NSID_NOT_ASSIGNED
		return nil
	}
	return id
}
