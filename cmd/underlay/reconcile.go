package main

import (
	"context"
	"net/http"

	"github.com/spf13/cobra"

	"underlay/driver"
	"underlay/plugin"
)

func reconcile() *cobra.Command {
	var a asking
	var dry bool
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Compare what the plugin knows with the host's links now, mend what can be, and print the rest",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, done := plugin.ReconcilePath, "done:"
			if dry {
				path, done = plugin.DryRunPath, "would have done:"
			}
			fetch := func(ctx context.Context, client *http.Client) (r driver.Report, err error) {
				return r, plugin.Call(ctx, client, path, struct{}{}, &r)
			}
			return show(cmd, &a, fetch, func(t *table, r driver.Report) { drawReport(t, r, done) })
		},
	}
	socketFlag(cmd, &a.socket)
	a.formatFlag(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done")
	return cmd
}

func drawReport(t *table, r driver.Report, done string) {
	for _, line := range r.Done {
		t.say("%s %s", done, line)
	}
	for _, line := range r.Left {
		t.say("left: %s", line)
	}
	if len(r.Done)+len(r.Left) == 0 {
		t.say("all is as it should be")
	}
}
