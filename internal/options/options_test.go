package options

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"underlay/internal/mode"
)

type opts = map[string]string

func TestParseNetwork(t *testing.T) {
	tests := []struct {
		name  string
		given opts
		want  Network
	}{
		{"nothing", nil, Network{Mode: mode.Default}},
		{"empty values", opts{"parent": "", "macvlan_mode": ""}, Network{Mode: mode.Default}},
		{"parent", opts{"parent": "eth0.10"}, Network{Parent: "eth0.10", Mode: mode.Default}},
		{"macvlan", opts{"macvlan_mode": "vepa", MTUKey: "1400", "bcqueuelen": "5"},
			Network{Mode: mode.Mode{Kind: mode.Macvlan, Name: "vepa"}, MTU: 1400, BCQueueLen: 5}},
		{"ipvlan", opts{"ipvlan_mode": "l3s", "ipvlan_flag": "private"},
			Network{Mode: mode.Mode{Kind: mode.IPvlan, Name: "l3s", Flag: "private"}}},
		{"ipvlan mode alone", opts{"ipvlan_mode": "l3"}, Network{Mode: mode.Mode{Kind: mode.IPvlan, Name: "l3", Flag: "bridge"}}},
		{"ipvlan flag alone", opts{"ipvlan_flag": "vepa"}, Network{Mode: mode.Mode{Kind: mode.IPvlan, Name: "l2", Flag: "vepa"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseNetwork(tt.given)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseNetworkRefuses(t *testing.T) {
	tests := []struct {
		given opts
		want  []string // words of the refusal
	}{
		{opts{"parnet": "eth0"}, []string{"-o parnet", "knows parent, macvlan_mode"}},
		{opts{"parent": "eth0:1"}, []string{"-o parent=eth0:1", "no link name", "name of a link"}},
		{opts{"parent": "eth0\x00x"}, []string{`-o parent="eth0\x00x"`, "no link name"}},
		{opts{"parent": "a-name-of-16-byt"}, []string{"at most 15 bytes"}},
		{opts{"macvlan_mode": "l2"}, []string{"-o macvlan_mode=l2", "bridge, private, vepa or passthru"}},
		{opts{"ipvlan_mode": "bridge"}, []string{"l2, l3 or l3s"}},
		{opts{"ipvlan_flag": "l2"}, []string{"bridge, private or vepa"}},
		{opts{MTUKey: "big"}, []string{MTUKey + "=big", "no number", "at least 68"}},
		{opts{MTUKey: "67"}, []string{"out of range"}},
		{opts{"bcqueuelen": "-1"}, []string{"out of range", "1 to 65535"}},
		{opts{"macvlan_mode": "bridge", "ipvlan_mode": "l2"}, []string{"macvlan_mode and -o ipvlan_mode exclude"}},
		{opts{"macvlan_mode": "bridge", "ipvlan_flag": "vepa"}, []string{"macvlan_mode and -o ipvlan_flag exclude"}},
		{opts{"bcqueuelen": "9", "ipvlan_mode": "l2"}, []string{"for macvlan alone"}},
	}
	for _, tt := range tests {
		_, err := ParseNetwork(tt.given)
		if err == nil {
			t.Errorf("%v was accepted", tt.given)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v: %q lacks %q", tt.given, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %q is more than a line", tt.given, err)
		}
	}
}

func TestSplitVLAN(t *testing.T) {
	tests := []struct {
		name, lower string
		id          int
		ok, bad     bool
	}{
		{"eth0.10", "eth0", 10, true, false},
		{"eth0.10.20", "eth0.10", 20, true, false},
		{"eth0", "", 0, false, false},
		{"eth0.lan", "", 0, false, false},
		{".5", "", 0, false, false},
		{"eth0.010", "", 0, false, false},
		{"eth0.+10", "", 0, false, false},
		{"eth0.0", "", 0, false, true},
		{"eth0.4095", "", 0, false, true},
	}
	for _, tt := range tests {
		lower, id, ok, err := SplitVLAN(tt.name)
		if lower != tt.lower || id != tt.id && !tt.bad || ok != tt.ok || (err != nil) != tt.bad {
			t.Errorf("SplitVLAN(%q) = %q, %d, %v, %v", tt.name, lower, id, ok, err)
		}
	}
}

// The README's table has a row per option, word for word, and no other.
func TestREADMEListsTheOptions(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `-o ") || strings.HasPrefix(line, "| `--ipam-opt ") {
			rows++
		}
	}
	if want := len(Networks()) + len(Pools()); rows != want {
		t.Errorf("%d option rows in README.md, want %d", rows, want)
	}
	for flag, table := range map[string][]Option{"-o": Networks(), "--ipam-opt": Pools()} {
		at := 0 // the README's order is the table's
		for _, o := range table {
			row := "| `" + flag + " " + o.Key + "` | " + o.Wants + " | " + o.Default + " | " + o.Use + " |\n"
			i := strings.Index(string(text)[at:], row)
			if i < 0 {
				t.Errorf("README.md lacks, here or at all, the row\n%s", row)
				continue
			}
			at += i
		}
	}
}
