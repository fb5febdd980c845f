package main

import (
	"context"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"underlay/driver"
	"underlay/internal/doctor"
	"underlay/plugin"
)

func status() *cobra.Command {
	var a asking
	var docker string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the plugin has, and what is the matter with it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &a, fetchOverview(docker), drawStatus)
		},
	}
	a.flags(cmd)
	dockerFlag(cmd, &docker)
	return cmd
}

// overview is the plugin's status, and the version of the Docker beside it: dockerd
// tells a plugin none.
type overview struct {
	plugin.Status
	Docker string `json:"docker"`
}

func fetchStatus(ctx context.Context, client *http.Client) (s plugin.Status, err error) {
	return s, plugin.Call(ctx, client, plugin.StatusPath, struct{}{}, &s)
}

func fetchOverview(docker string) func(context.Context, *http.Client) (overview, error) {
	return func(ctx context.Context, client *http.Client) (o overview, err error) {
		version := make(chan string, 1)
		go func() { version <- dockerVersion(ctx, docker) }()
		if o.Status, err = fetchStatus(ctx, client); err == nil {
			o.Docker = <-version
		}
		return o, err
	}
}

func dockerVersion(ctx context.Context, socket string) string {
	var v struct{ Version string }
	if err := doctor.Socket(socket).Get(ctx, "/version", &v); err != nil {
		return "does not answer: " + err.Error()
	}
	return v.Version
}

func drawStatus(t *table, s overview) {
	t.row("underlay", s.Version)
	t.row("Docker", s.Docker)
	t.row("up", fmt.Sprintf("%v, since %s", time.Since(s.Started).Round(time.Second), when(s.Started)))
	t.row("state", fmt.Sprintf("%s, %d KiB", s.State.Path, (s.State.Bytes+1023)/1024))
	t.row("networks", s.Networks)
	t.row("endpoints", s.Endpoints)
	t.say("")
	drawParents(t, s.Parents)
	drawPools(t, s.Status)
	if len(s.LANs) > 0 {
		t.row("LISTENS ON", "SINCE", "NOTE")
		for _, l := range s.LANs {
			t.row(l.Link, when(l.Since), deaf(l.Blind))
		}
		t.say("")
	}
	if len(s.DHCP) > 0 {
		t.row("DHCP ON", "LEASES", "BOUND", "DRIFTED", "LOST", "NOTE")
		for _, l := range s.DHCP {
			t.row(l.Link, l.Leases, l.Bound, l.Drifted, l.Lost, l.Why)
		}
		t.say("")
	}
	drawLines(t, "drift", s.Drift)
	left := s.Reconcile.Left
	if s.State.SetAside != "" {
		left = append(left, "a damaged state file of before is "+s.State.SetAside+"; delete it once all networks work")
	}
	drawLines(t, "not mended", left)
}

func deaf(why string) string {
	if why == "" {
		return ""
	}
	return "nothing is heard: " + why
}

func drawParents(t *table, parents []driver.ParentState) {
	if len(parents) == 0 {
		return
	}
	t.row("PARENT", "STATE", "NETWORKS", "ENDPOINTS", "MTU", "MAC", "NOTE")
	for _, p := range parents {
		mtu, note := "", p.Reason
		if p.MTU != 0 {
			mtu = fmt.Sprint(p.MTU)
		}
		if !p.Since.IsZero() {
			note = "since " + when(p.Since) + ": " + note
		}
		if p.Dummy && note == "" {
			note = "isolated"
		}
		t.row(p.Name, p.State, p.Networks, p.Endpoints, mtu, p.MAC, note)
	}
	t.say("")
}

func drawPools(t *table, s plugin.Status) {
	if len(s.Pools) == 0 {
		return
	}
	t.row("POOL", "SIZE", "CONTAINERS", "GATEWAYS", "RESERVED", "EXCLUDED", "OTHERS", "RESTING", "FREE", "NOTE")
	for _, p := range s.Pools {
		var notes []string
		for _, r := range p.Ranges {
			notes = append(notes, fmt.Sprintf("%s of %s left in %v", count(new(big.Int).Add(r.Free, big.NewInt(int64(r.Resting)))), count(r.Size), r.Range))
		}
		if p.Conflicts > 0 {
			notes = append(notes, fmt.Sprintf("%d in conflict", p.Conflicts))
		}
		if p.Blind != "" {
			notes = append(notes, "not asked: "+p.Blind)
		}
		t.row(p.Subnet, count(p.Size), p.Containers, p.Gateways, p.Reserved, count(p.Excluded), p.Others, p.Resting, count(p.Free), strings.Join(notes, ", "))
	}
	t.say("")
}

// maxLines is how many lines of a kind a person is shown.
const maxLines = 20

func drawLines(t *table, what string, lines []string) {
	if len(lines) == 0 {
		t.say("%s: nothing", what)
		return
	}
	t.say("%s:", what)
	for _, l := range lines[:min(len(lines), maxLines)] {
		t.say("  %s", l)
	}
	if more := len(lines) - maxLines; more > 0 {
		t.say("  and %d more, which -o json has", more)
	}
}
