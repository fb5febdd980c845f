package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"underlay/internal/doctor"
	"underlay/ipam/dhcp"
	"underlay/ipam/dhcp6"
	"underlay/netlinkutil"
)

// doctorWithin is how long it all may take.
const doctorWithin = 10 * time.Second

func examine() *cobra.Command {
	var a asking
	var parents []string
	var docker string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what on this host will not work, and say what to do",
		Long: `Find out what on this host will not work, and say what to do.

It changes nothing, needs no running plugin, and takes ten seconds at most. Run
it as root. It asks the LAN of each parent as a container would.

Exit status: 0 all well, or warnings and notes alone; 1 an error was found;
2 it could not be run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.check(); err != nil {
				return err
			}
			found, err := diagnose(parents, a.socket, docker)
			if err == nil {
				err = a.tell(cmd.OutOrStdout(), found)
			}
			if err == nil && doctor.Failed(found) {
				os.Exit(1)
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&parents, "parent", nil, "the links to look at (default: that of the default route, and those of the plugin's networks)")
	dockerFlag(cmd, &docker)
	socketFlag(cmd, &a.socket)
	a.formatFlag(cmd)
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return orTwo(run(cmd, args)) }
	cmd.Args = func(cmd *cobra.Command, args []string) error { return orTwo(cobra.NoArgs(cmd, args)) }
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return orTwo(err) })
	return cmd
}

func dockerFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "docker", "/var/run/docker.sock", "Docker's socket")
}

// orTwo ends with the status 2, which scripts tell from a finding.
func orTwo(err error) error {
	if err != nil {
		fmt.Fprintln(os.Stderr, "underlay:", err)
		os.Exit(2)
	}
	return nil
}

func diagnose(parents []string, socket, docker string) ([]doctor.Finding, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("doctor asks the kernel and the LAN what root alone may: run it as root")
	}
	kernel, err := netlinkutil.Open()
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	log := logrus.New()
	log.SetOutput(io.Discard) // what is wrong is a finding
	client := dhcp.New(dhcp.Config{Log: log})
	defer client.Close()
	client6 := dhcp6.New(dhcp6.Config{Log: log})
	defer client6.Close()
	ctx, stop := context.WithTimeout(context.Background(), doctorWithin)
	defer stop()
	return doctor.Diagnose(doctor.Gather(ctx, doctor.Sources{
		Version: version, Kernel: kernel, Wire: doctor.LANs{Client: client, Client6: client6},
		Docker: doctor.Socket(docker), Plugin: doctor.Finder(socket), Files: os.DirFS("/"),
	}, parents...)), nil
}

// tell prints what was found. It is no table for a person: a line would be too long.
func (a *asking) tell(w io.Writer, found []doctor.Finding) error {
	all := struct {
		Findings []doctor.Finding `json:"findings"`
	}{append([]doctor.Finding{}, found...)}
	text, err := a.text(all, func(t *table) { _ = doctor.Write(t, found) })
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	return err
}
