package options

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseEndpoint(t *testing.T) {
	for _, tt := range []struct {
		given   opts
		want    Endpoint
		refusal []string
	}{
		{nil, Endpoint{}, nil},
		{opts{"dhcp_hostname": "Web-1"}, Endpoint{Hostname: "Web-1"}, nil},
		{opts{"dhcp_client_id": "ff:00:50:01"}, Endpoint{ClientID: []byte{0xff, 0, 0x50, 1}}, nil},
		{opts{"dhcp_client_id": "web"}, Endpoint{ClientID: []byte("\x00web")}, nil},
		{opts{"dhcp_client_id": "beef"}, Endpoint{ClientID: []byte("\x00beef")}, nil}, // a word, without a colon
		{opts{"dhcp_hostname": "web.lan"}, Endpoint{}, []string{"dhcp_hostname=web.lan", "no host's name"}},
		{opts{"dhcp_hostname": "-web"}, Endpoint{}, []string{"no host's name"}},
		{opts{"dhcp_hostname": strings.Repeat("w", 64)}, Endpoint{}, []string{"too long", "at most 63"}},
		{opts{"dhcp_client_id": "ff:"}, Endpoint{}, []string{"2 to 255 bytes"}},
		{opts{"dhcp_client_id": strings.Repeat("w", 256)}, Endpoint{}, []string{"too long"}},
		{opts{"dhcp_client_id": "a\nb"}, Endpoint{}, []string{`"a\nb"`, "printed"}},
		{opts{"hostname": "web"}, Endpoint{}, []string{"driver-opt hostname", "knows dhcp_hostname, dhcp_client_id"}},
	} {
		got, err := ParseEndpoint(tt.given)
		if tt.refusal == nil {
			if d := cmp.Diff(tt.want, got); err != nil || d != "" {
				t.Errorf("%v: %v %s", tt.given, err, d)
			}
			continue
		}
		for _, w := range tt.refusal {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%v: %v; want %q", tt.given, err, w)
			}
		}
	}
}
