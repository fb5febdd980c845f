package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"underlay/plugin"
)

func reconcile() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Compare what the plugin knows with the host's links now, mend what can be, and print the rest",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := plugin.Reconcile(socket)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			for _, line := range report.Done {
				fmt.Fprintln(out, "done:", line)
			}
			for _, line := range report.Left {
				fmt.Fprintln(out, "left:", line)
			}
			if len(report.Done)+len(report.Left) == 0 {
				fmt.Fprintln(out, "all is as it should be")
			}
			return nil
		},
	}
	socketFlag(cmd, &socket)
	return cmd
}
