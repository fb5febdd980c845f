package options

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxRoutes is the most that routes may list. dockerd sets them one by one when
// a container starts.
const maxRoutes = 256

// Route is a route for containers: by a router, or on the link where Via is zero.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via,omitzero"`
}

func (r Route) String() string {
	if r.Via.IsValid() {
		return r.To.String() + " via " + r.Via.String()
	}
	return r.To.String()
}

// parseRoutes reads "10.20.0.0/16 via 192.168.50.254, 10.30.0.0/16".
func parseRoutes(v string) ([]Route, error) {
	var routes []Route
	for entry := range strings.SplitSeq(v, ",") {
		r, err := parseRoute(strings.Fields(entry))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(routes, func(o Route) bool { return o.To == r.To }) {
			return nil, fmt.Errorf("%v is there twice", r.To)
		}
		if routes = append(routes, r); len(routes) > maxRoutes {
			return nil, fmt.Errorf("there are more than %d", maxRoutes)
		}
	}
	return routes, nil
}

func parseRoute(words []string) (r Route, err error) {
	switch {
	case len(words) == 0:
		return r, errors.New("one is empty")
	case len(words) != 1 && (len(words) != 3 || words[1] != "via"):
		return r, fmt.Errorf("%q is no route", clip(strings.Join(words, " ")))
	}
	if r.To, err = netip.ParsePrefix(words[0]); err != nil {
		return r, fmt.Errorf("%q is no destination with a length", clip(words[0]))
	}
	switch a := r.To.Addr(); {
	case r.To.Bits() == 0:
		return r, fmt.Errorf("%v is the default route, which --gateway is for", r.To)
	case r.To != r.To.Masked():
		return r, fmt.Errorf("%v has host bits set, give %v", r.To, r.To.Masked())
	case a.Is4In6(), a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast() && a.Is6():
		return r, fmt.Errorf("%v is no destination behind a LAN", r.To)
	}
	if len(words) == 1 {
		return r, nil
	}
	if r.Via, err = netip.ParseAddr(words[2]); err != nil || r.Via.Zone() != "" {
		return r, fmt.Errorf("%q is no address of a router", clip(words[2]))
	}
	switch {
	case r.Via.Is4() != r.To.Addr().Is4():
		return r, fmt.Errorf("%v leads to %v, which is of the other family", r.Via, r.To)
	case r.Via.IsUnspecified(), r.Via.IsMulticast(), r.Via.IsLoopback(), r.Via.Is4In6():
		return r, fmt.Errorf("%v is no address of a router", r.Via)
	}
	return r, nil
}
