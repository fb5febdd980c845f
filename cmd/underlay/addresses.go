package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"underlay/driver"
	"underlay/ipam"
	"underlay/plugin"
)

func addresses() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:   "addresses [SUBNET]",
		Short: "Show who has which address of a subnet, or of all: a map of what is not simply free",
		Long: `Show who has which address of a subnet, or of all: a map of what is not simply free.

SUBNET is that of a pool, a part of one, or one address. The kinds:
  dynamic   a container's, drawn
  static    a container's, asked for by value
  leased    a container's, from the LAN's own DHCP server
  gateway   of a network
  reserved  by --aux-address, or --ipam-opt reserve for a container's name
  host      the host's own, its router's or its DNS server's
  excluded  by --ipam-opt exclude
  squatter  in use by another machine
  resting   freed a while ago; free, and given to others last`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			subnet, err := subnetOf(args)
			if err != nil {
				return err
			}
			return show(cmd, &a, func(ctx context.Context, client *http.Client) (plugin.Addresses, error) {
				return fetchAddresses(ctx, client, subnet)
			}, drawAddresses)
		},
	}
	cmd.ValidArgsFunction = complete(&a.socket, 1, func(ctx context.Context, client *http.Client) (found []string, err error) {
		s, err := fetchStatus(ctx, client)
		for _, p := range s.Pools {
			found = append(found, p.Subnet.String())
		}
		return found, err
	})
	a.flags(cmd)
	return cmd
}

func subnetOf(args []string) (netip.Prefix, error) {
	if len(args) == 0 {
		return netip.Prefix{}, nil
	}
	if addr, err := netip.ParseAddr(args[0]); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(args[0])
	if err != nil {
		return p, fmt.Errorf("%q is no subnet and no address; write it as 192.168.50.0/24 or 192.168.50.10", args[0])
	}
	return p.Masked(), nil
}

// fetchAddresses asks for all pages.
func fetchAddresses(ctx context.Context, client *http.Client, subnet netip.Prefix) (plugin.Addresses, error) {
	all := plugin.Addresses{Addresses: []plugin.Address{}}
	for req := (plugin.AddressesRequest{Subnet: subnet}); ; {
		var page plugin.Addresses
		if err := plugin.Call(ctx, client, plugin.AddressesPath, req, &page); err != nil {
			return all, err
		}
		all.Addresses = append(all.Addresses, page.Addresses...)
		if req.After = page.Next; !req.After.IsValid() {
			return all, nil
		}
	}
}

func drawAddresses(t *table, all plugin.Addresses) {
	t.row("ADDRESS", "KIND", "CONTAINER", "MAC", "SINCE", "ENDPOINT", "NETWORK", "NOTE")
	for _, a := range all.Addresses {
		address := a.Address.String()
		if a.Last.IsValid() {
			address += "-" + a.Last.String()
		}
		var notes []string
		if a.Conflict != "" {
			notes = append(notes, "in use by "+a.Conflict+", too")
		}
		if !a.Heard.IsZero() {
			notes = append(notes, "heard "+when(a.Heard))
		}
		if a.State != "" && a.State != driver.EndpointRunning {
			notes = append(notes, a.State)
		}
		if a.Note != "" {
			notes = append(notes, a.Note)
		}
		t.row(address, a.Kind, a.Name, a.MAC, when(a.Since), t.id(a.Endpoint), t.id(a.Network), strings.Join(notes, ", "))
	}
}

func conflicts() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:   "conflicts",
		Short: "List the addresses of containers that another machine has, too",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &a, func(ctx context.Context, client *http.Client) (c plugin.Conflicts, err error) {
				return c, plugin.Call(ctx, client, plugin.ConflictsPath, struct{}{}, &c)
			}, drawConflicts)
		},
	}
	a.flags(cmd)
	return cmd
}

func drawConflicts(t *table, all plugin.Conflicts) {
	if len(all.Conflicts) == 0 {
		t.say("no other machine is heard to have a container's address")
		return
	}
	t.row("ADDRESS", "CONTAINER", "MAC", "OTHER MAC", "SINCE", "HEARD", "PARENT", "ENDPOINT", "NETWORK")
	for _, c := range all.Conflicts {
		t.row(c.Address, c.Name, c.Own, c.MAC, when(c.Since), when(c.Last), c.Parent, t.id(c.Endpoint), t.id(c.Network))
	}
}

func leases() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:   "leases",
		Short: "List the containers' leases from the LAN's own DHCP servers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &a, func(ctx context.Context, client *http.Client) (l plugin.Leases, err error) {
				return l, plugin.Call(ctx, client, plugin.LeasesPath, struct{}{}, &l)
			}, drawLeases)
		},
	}
	a.flags(cmd)
	return cmd
}

func drawLeases(t *table, all plugin.Leases) {
	t.row("ADDRESS", "LINK", "CONTAINER", "MAC", "SERVER", "STATE", "RENEW", "EXPIRES", "NOTE")
	for _, l := range all.Leases {
		var notes []string
		if l.Shown.IsValid() {
			notes = append(notes, "Docker shows "+l.Shown.String())
		}
		if l.Why != "" {
			notes = append(notes, l.Why)
		}
		expires := when(l.Expires)
		if expires == "" {
			expires = "never"
		}
		t.row(l.Address, l.Link, l.Name, l.MAC, l.Server, l.State, when(l.Renew), expires, strings.Join(notes, ", "))
	}
}

func release() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "release ADDRESS",
		Short: "Free an address that no container has any more; refused as long as one may",
		Args:  one,
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddr(args[0])
			if err != nil || addr.Zone() != "" {
				return fmt.Errorf("%q is no address; write it as 192.168.50.10", args[0])
			}
			if err := plugin.Call(cmd.Context(), plugin.Client(socket), plugin.ReleasePath, plugin.ReleaseRequest{Address: addr}, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), addr.Unmap(), "is free")
			return nil
		},
	}
	cmd.ValidArgsFunction = complete(&socket, 1, func(ctx context.Context, client *http.Client) (found []string, err error) {
		var page plugin.Addresses // the first one is enough
		err = plugin.Call(ctx, client, plugin.AddressesPath, plugin.AddressesRequest{}, &page)
		for _, a := range page.Addresses {
			switch a.Kind {
			case ipam.Dynamic, ipam.Static, ipam.Leased:
				if a.Endpoint == "" {
					found = append(found, a.Address.String())
				}
			}
		}
		return found, err
	})
	socketFlag(cmd, &socket)
	return cmd
}
