package main

import (
	"context"
	"fmt"
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
		Long: `Compare what the plugin knows with the host's links now, mend what can be, and print the rest.

Exit status: 0 nothing is left to be mended; 1 something is, or the plugin could not
be asked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, done := plugin.ReconcilePath, "done:"
			if dry {
				path, done = plugin.DryRunPath, "would have done:"
			}
			var r driver.Report
			fetch := func(ctx context.Context, client *http.Client) (driver.Report, error) {
				err := plugin.Call(ctx, client, path, struct{}{}, &r)
				return r, err
			}
			err := show(cmd, &a, fetch, func(t *table, r driver.Report) { drawReport(t, r, done) })
			if n := len(r.Left); err == nil && n > 0 {
				err = fmt.Errorf("%d left that could not be mended", n)
			}
			return err
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
