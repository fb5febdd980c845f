package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"underlay/plugin"
)

func export() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print all records of the plugin's state as one JSON document, for underlay import",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer json.RawMessage
			if err := plugin.Call(cmd.Context(), plugin.Client(socket), plugin.ExportPath, struct{}{}, &answer); err != nil {
				return err
			}
			var text bytes.Buffer
			if err := json.Indent(&text, answer, "", "  "); err != nil {
				return err
			}
			text.WriteByte('\n')
			_, err := text.WriteTo(cmd.OutOrStdout())
			return err
		},
	}
	socketFlag(cmd, &socket)
	return cmd
}

func importState() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "import --state FOLDER FILE",
		Short: "Make a state file of what underlay export has printed, in a folder that has none",
		Long: `Make a state file of what underlay export has printed, in a folder that has none.

The plugin must be disabled: it makes a state file when it starts. Containers that
were started after the export must be stopped before it is enabled: their addresses
are not in the file, and would be given to others. FOLDER is that of
the state file: for the managed plugin on Docker's default data folder
/var/lib/docker/plugins/ID/propagated-mount, with the ID that docker plugin inspect
tells. FILE may be - for the standard input.`,
		Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			from := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				from = f
			}
			done, err := plugin.Import(state, from)
			if err != nil {
				return fmt.Errorf("nothing was imported: %w", err)
			}
			of := cmp.Or(when(done.Exported), "a time that it does not tell")
			fmt.Fprintf(cmd.OutOrStdout(), "%d records are in %s\nas of %s: stop containers that were started since, before you enable the plugin\n",
				done.Records, filepath.Join(state, plugin.StateFile), of)
			return nil
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "folder to make the state file in")
	_ = cmd.MarkFlagRequired("state")
	_ = cmd.MarkFlagDirname("state")
	return cmd
}
