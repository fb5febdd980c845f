package options

import (
	"encoding/hex"
	"errors"
	"strings"
)

// Endpoint is what the driver-opt options of one container on a network say.
type Endpoint struct {
	Hostname string // the name that the DHCP server is told
	ClientID []byte // the whole of option 61, its type first; nil: one of underlay's
}

// Given is the key of an option that was given, "" if none was.
func (e *Endpoint) Given() string {
	switch {
	case e.Hostname != "":
		return "dhcp_hostname"
	case e.ClientID != nil:
		return "dhcp_client_id"
	}
	return ""
}

var endpointTable = []option[Endpoint]{
	{Option{"dhcp_hostname", "a host's name: letters, digits and hyphens, at most 63", "none",
		"the name that the DHCP server is told (option 12, DHCPv6 39), by which it knows the container again"},
		func(e *Endpoint, v string) error { e.Hostname = v; return hostname(v) }},
	{Option{"dhcp_client_id", "bytes in hexadecimal with colons between, such as ff:00:50:01, or a word", "one that underlay makes",
		"what the DHCP server knows the container by (option 61; of one as in RFC 4361, the DUID is DHCPv6's)"},
		func(e *Endpoint, v string) (err error) { e.ClientID, err = clientID(v); return err }},
}

// Endpoints lists the driver-opt options.
func Endpoints() []Option { return rows(endpointTable) }

// ParseEndpoint reads the driver-opt options of a container on a network.
func ParseEndpoint(given map[string]string) (e Endpoint, err error) {
	err = parse("driver-opt", endpointTable, given, &e)
	return e, err
}

// hostname is a label, RFC 1123 section 2.1.
func hostname(v string) error {
	if len(v) > 63 {
		return errors.New("it is too long")
	}
	if strings.Trim(v, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" || strings.Trim(v, "-") != v {
		return errors.New("it is no host's name")
	}
	return nil
}

// clientID: a word has the type 0 of what is no hardware address (RFC 2132 section
// 9.14).
func clientID(v string) ([]byte, error) {
	id, err := hex.DecodeString(strings.ReplaceAll(v, ":", ""))
	if err != nil || !strings.Contains(v, ":") {
		id = append([]byte{0}, v...)
		err = printable(v)
	}
	if err == nil && (len(id) < 2 || len(id) > 255) {
		err = errors.New("it is not 2 to 255 bytes long")
	}
	return id, err
}
