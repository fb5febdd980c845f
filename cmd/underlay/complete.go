package main

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"underlay/driver"
	"underlay/plugin"
)

// patience is how long a person who has pressed Tab waits.
const patience = 2 * time.Second

// complete completes the first so many arguments by what the plugin knows.
func complete(socket *string, most int, known func(context.Context, *http.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		all, err := known(ctx, plugin.Client(*socket))
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		for _, a := range all {
			if strings.HasPrefix(a, begun) {
				found = append(found, a)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNetworks completes the IDs of networks for which match holds.
func completeNetworks(socket *string, match func(*driver.NetworkState) bool) cobra.CompletionFunc {
	return complete(socket, 1, func(ctx context.Context, client *http.Client) (found []string, err error) {
		all, err := fetchNetworks(ctx, client)
		for _, n := range all.Networks {
			if match(&n) {
				found = append(found, driver.Short(n.ID))
			}
		}
		return found, err
	})
}
