// Command underlay is the plugin's daemon and the tool that looks into it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"underlay/driver"
	"underlay/internal/privilege"
	"underlay/internal/wall"
	"underlay/ipam"
	"underlay/plugin"
)

// version is set by the linker: see the Makefile.
var version = "devel"

func main() {
	if err := command().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "underlay:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "underlay",
		Short:         "Containers on the physical network",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		serve(), status(), networks(), endpoints(), addresses(), conflicts(), leases(), page(), examine(), reconcile(), release(), state(), forget(), export(), importState(),
	)
	return root
}

func serve() *cobra.Command {
	var socket, stateDir, sandboxes string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve Docker's network and IPAM driver calls on a plugin socket",
		Long: `Serve Docker's network and IPAM driver calls on a plugin socket.

Environment:
  LOG_LEVEL      error, warn, info (default) or debug
  LOG_FORMAT     text (default) or json
  DEFAULT_POOLS  subnets for networks with --ipam-opt pool=private, such as
                 base=10.210.0.0/16,size=24;base=fd00:210::/48,size=64
  REBUILD        on (default): interfaces of running containers that went with
                 their parent are made again when it is back; off: they are not
  SANDBOX_DIR    the containers' network namespaces as dockerd names them, the
                 folder netns in its --exec-root (default /var/run/docker/netns)
  METRICS_ADDR   where metrics are served besides the socket, and underlay ui's page
                 at /: 9323 for this host alone, or an address such as
                 192.168.50.2:9323 (default: nowhere)`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return run(socket, stateDir, sandboxes) },
	}
	cmd.Flags().StringVar(&socket, "socket", plugin.DefaultSocket, "unix socket to listen on")
	cmd.Flags().StringVar(&stateDir, "state", "/var/lib/underlay", "folder of the state file")
	cmd.Flags().StringVar(&sandboxes, "sandboxes", "", "where the folder SANDBOX_DIR is seen, if it is mounted elsewhere")
	return cmd
}

func run(socket, stateDir, sandboxes string) error {
	log, err := logger(os.Getenv("LOG_LEVEL"), os.Getenv("LOG_FORMAT"))
	if err != nil {
		return err
	}
	pools, err := ipam.ParseDefaultPools(os.Getenv("DEFAULT_POOLS"))
	if err != nil {
		return fmt.Errorf("DEFAULT_POOLS: %w", err)
	}
	s, err := sandboxesOf(os.Getenv("REBUILD"), os.Getenv("SANDBOX_DIR"), sandboxes)
	if err != nil {
		return err
	}
	metrics, err := plugin.ParseMetricsAddr(os.Getenv("METRICS_ADDR"))
	if err != nil {
		return fmt.Errorf("METRICS_ADDR: %w", err)
	}
	give(log, s.Enter)
	wall.Begin()
	config := plugin.Config{Socket: socket, State: stateDir, DefaultPools: pools, Sandboxes: s, Version: version, Log: log, Metrics: metrics}
	if err := withFaults(&config); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	p, err := plugin.Listen(config)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve() }()
	if err := ready(); err != nil {
		log.Warn(err)
	}
	select {
	case sig := <-stop:
		log.Infof("%v: closing", sig)
		return p.Close()
	case err := <-served:
		return err
	}
}

// give gives up all privileges but those that are needed, before a byte of
// anybody's is read.
func give(log *logrus.Logger, enter bool) {
	keep := []privilege.Capability{privilege.NetAdmin, privilege.NetRaw}
	if enter {
		keep = append(keep, privilege.SysAdmin)
	}
	lacking, err := privilege.Drop(keep...)
	if err != nil {
		log.Warn(err)
	}
	if len(lacking) > 0 {
		log.Warnf("without %s, what needs it will fail: run underlay as root, or grant it (docker plugin install asks to)", privilege.Names(lacking))
	}
}

// sandboxesOf reads what says where containers' namespaces are. An upgrade of the
// plugin keeps the settings of before, so that what is not set has its default
// here too.
func sandboxesOf(rebuild, dir, at string) (s plugin.Sandboxes, err error) {
	switch rebuild {
	case "", "on":
		s.Enter = true
	case "off":
	default:
		return s, fmt.Errorf("REBUILD=%s is not known; it takes on or off", rebuild)
	}
	if dir == "" {
		dir = plugin.SandboxDir
	}
	if !filepath.IsAbs(dir) {
		return s, fmt.Errorf("SANDBOX_DIR=%s is no whole path; write it as %s", dir, plugin.SandboxDir)
	}
	if s.Dir, s.At = filepath.Clean(dir), at; at == "" {
		s.At = s.Dir
	}
	return s, nil
}

func logger(level, format string) (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(os.Stdout) // dockerd logs what a plugin says on stderr as an error
	if level != "" {
		l, err := logrus.ParseLevel(level)
		if err != nil {
			return nil, fmt.Errorf("LOG_LEVEL=%s is not known; it takes error, warn, info or debug", level)
		}
		log.SetLevel(l)
	}
	switch format {
	case "", "text":
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, DisableColors: true})
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{})
	default:
		return nil, fmt.Errorf("LOG_FORMAT=%s is not known; it takes text or json", format)
	}
	return log, nil
}

func state() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "state",
		Short: "Print the networks, endpoints, pools and addresses that the plugin holds, as JSON",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := plugin.Fetch(socket, plugin.StatePath)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	socketFlag(cmd, &socket)
	return cmd
}

func forget() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "forget NETWORK",
		Short: "Forget a network that was removed while the plugin was away, given by its ID",
		Args:  one,
		RunE:  func(_ *cobra.Command, args []string) error { return plugin.Forget(socket, args[0]) },
	}
	cmd.ValidArgsFunction = completeNetworks(&socket, func(n *driver.NetworkState) bool { return n.Endpoints == 0 })
	socketFlag(cmd, &socket)
	return cmd
}

func socketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", "", "the plugin's socket (default: found in /run/docker/plugins)")
}
