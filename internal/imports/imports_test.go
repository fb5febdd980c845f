// Package imports holds the test of who may import whom.
package imports

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// may lists, for each package, which of ours it may import.
var may = map[string][]string{
	"underlay/internal/mode":       {},
	"underlay/internal/store":      {},
	"underlay/internal/privilege":  {},
	"underlay/internal/options":    {"underlay/internal/mode"},
	"underlay/internal/oneline":    {},
	"underlay/internal/ui":         {},
	"underlay/netlinkutil":         {"underlay/internal/mode", "underlay/internal/pause"},
	"underlay/netlinkutil/fake":    {"underlay/internal/mode", "underlay/netlinkutil"},
	"underlay/ipam":                {"underlay/internal/options", "underlay/internal/store", "underlay/internal/wall"},
	"underlay/ipam/lan":            {"underlay/ipam", "underlay/netlinkutil"},
	"underlay/ipam/probe":          {"underlay/internal/nic", "underlay/internal/wall"},
	"underlay/ipam/dhcp":           {"underlay/internal/nic", "underlay/internal/wall"},
	"underlay/ipam/dhcp6":          {"underlay/internal/nic", "underlay/internal/wall"},
	"underlay/driver":              {"underlay/internal/mode", "underlay/internal/options", "underlay/internal/pause", "underlay/internal/store", "underlay/internal/wall", "underlay/netlinkutil"},
	"underlay/ipam/lease":          {"underlay/internal/options", "underlay/internal/store", "underlay/ipam/dhcp", "underlay/ipam/dhcp6"},
	"underlay/plugin":              {"underlay/driver", "underlay/internal/options", "underlay/internal/oneline", "underlay/internal/pause", "underlay/internal/store", "underlay/internal/ui", "underlay/internal/wall", "underlay/ipam", "underlay/ipam/dhcp", "underlay/ipam/dhcp6", "underlay/ipam/lan", "underlay/ipam/lease", "underlay/ipam/probe", "underlay/netlinkutil"},
	"underlay/internal/doctor":     {"underlay/driver", "underlay/internal/mode", "underlay/internal/options", "underlay/internal/oneline", "underlay/ipam/dhcp", "underlay/ipam/dhcp6", "underlay/ipam/probe", "underlay/netlinkutil", "underlay/plugin"},
	"underlay/cmd/underlay":        {"underlay/driver", "underlay/internal/doctor", "underlay/internal/oneline", "underlay/internal/privilege", "underlay/internal/ui", "underlay/internal/wall", "underlay/ipam", "underlay/ipam/dhcp", "underlay/ipam/dhcp6", "underlay/netlinkutil", "underlay/plugin"},
	"underlay/internal/vmtest":     {},
	"underlay/internal/doctor/lab": {},
	"underlay/internal/imports":    {},
	"underlay/internal/nstest":     {},
	"underlay/internal/fault":      {},
	"underlay/internal/manual":     {},
	"underlay/internal/nic":        {},
	"underlay/internal/pause":      {},
	"underlay/internal/wall":       {},
	"underlay/internal/killtest":   {},
	"underlay/internal/uitest":     {},

	"underlay/scripts/roundtrip":    {},
	"underlay/scripts/test-summary": {},
}

// only lists who alone may import a module.
var only = map[string][]string{
	"github.com/vishvananda/":              {"underlay/netlinkutil"},
	"github.com/docker/go-plugins-helpers": {"underlay/plugin"},
	"go.etcd.io/bbolt":                     {"underlay/internal/store"},
	"github.com/spf13/cobra":               {"underlay/cmd/underlay"},
	"go.yaml.in/":                          {"underlay/cmd/underlay"},
	"github.com/prometheus/":               {"underlay/plugin"},
	"github.com/mdlayher/":                 {"underlay/ipam/probe", "underlay/ipam/dhcp", "underlay/ipam/dhcp6"},
	"golang.org/x/net/":                    {"underlay/ipam/probe", "underlay/ipam/dhcp", "underlay/ipam/dhcp6"},
	"github.com/insomniacslk/":             {"underlay/ipam/dhcp", "underlay/ipam/dhcp6"},
	"os/exec":                              {"underlay/cmd/underlay", "underlay/internal/vmtest", "underlay/internal/imports", "underlay/internal/nstest"},
}

func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "underlay/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); seen++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		allowed, known := may[p.ImportPath]
		if !known {
			t.Errorf("%s is not in the picture: say here what it may import", p.ImportPath)
		}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "underlay/") && !slices.Contains(allowed, i) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
			for prefix, who := range only {
				if strings.HasPrefix(i, prefix) && !slices.Contains(who, p.ImportPath) {
					t.Errorf("%s imports %s, which only %v may", p.ImportPath, i, who)
				}
			}
		}
	}
	if seen < 8 {
		t.Errorf("only %d packages were looked at", seen)
	}
}
