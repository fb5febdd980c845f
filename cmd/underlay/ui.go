package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"underlay/internal/ui"
	"underlay/plugin"
)

func page() *cobra.Command {
	var socket, on string
	var open bool
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Serve a page that shows who has which address, as it changes",
		Long: `Serve a page that shows who has which address, as it changes, until Ctrl-C.

It only shows, and asks for no password: whoever reaches --listen sees it. The plugin
is asked while a browser looks at the page, and is left alone otherwise.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return servePage(ctx, cmd.OutOrStdout(), plugin.View(socket), on, open)
		},
	}
	socketFlag(cmd, &socket)
	cmd.Flags().StringVar(&on, "listen", "127.0.0.1:9324", "address and port, or a port of this host alone")
	cmd.Flags().BoolVar(&open, "open", false, "open it in the browser of whoever sits here, by xdg-open")
	return cmd
}

// servePage serves until ctx ends.
func servePage(ctx context.Context, out io.Writer, source ui.Source, on string, open bool) error {
	host, port, err := splitListen(on)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return fmt.Errorf("--listen %s: %w", on, errors.Unwrap(err))
	}
	at := "http://" + l.Addr().String() + "/"
	fmt.Fprintf(out, "%s shows the addresses; Ctrl-C ends it\n", at)
	if a, err := netip.ParseAddrPort(l.Addr().String()); err == nil && !a.Addr().IsLoopback() {
		fmt.Fprintln(out, "whoever reaches this address sees the page: there is no password")
	}
	if _, err := source.Status(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintf(out, "the page waits for the plugin: %v\n", err)
	}
	page := ui.New(source, host)
	s := &http.Server{
		Handler: page, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: stdlog.New(io.Discard, "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	if open {
		if err := browse(at); err != nil {
			fmt.Fprintf(out, "no browser could be opened (%v): open the page in one yourself\n", err)
		}
	}
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	page.Close()
	return errors.Join(err, s.Close())
}

// splitListen reads an address and a port; a port alone is this host's own.
func splitListen(on string) (host, port string, err error) {
	if _, err := strconv.ParseUint(on, 10, 16); err == nil {
		on = ":" + on
	}
	if host, port, err = net.SplitHostPort(on); err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", "", fmt.Errorf("--listen %s is no address with a port, and no port; write it as 127.0.0.1:9324", on)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return host, port, nil
}

// browse opens a page in a browser, which is not to run as root: it is that of the
// user who has called sudo.
func browse(at string) error {
	c := exec.Command("xdg-open", at)
	if uid, gid := os.Getenv("SUDO_UID"), os.Getenv("SUDO_GID"); os.Geteuid() == 0 && uid != "" {
		u, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return fmt.Errorf("SUDO_UID: %w", err)
		}
		g, err := strconv.ParseUint(gid, 10, 32)
		if err != nil {
			return fmt.Errorf("SUDO_GID: %w", err)
		}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u), Gid: uint32(g)}}
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "HOME=") && !strings.HasPrefix(v, "XDG_RUNTIME_DIR=") {
				c.Env = append(c.Env, v)
			}
		}
		c.Env = append(c.Env, "XDG_RUNTIME_DIR=/run/user/"+uid)
		if whose, err := user.LookupId(uid); err == nil {
			c.Env = append(c.Env, "HOME="+whose.HomeDir)
		}
	}
	if err := c.Start(); err != nil {
		return err
	}
	go func() { _ = c.Wait() }()
	return nil
}
