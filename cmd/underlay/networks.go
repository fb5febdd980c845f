package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"underlay/driver"
	"underlay/plugin"
)

func networks() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:   "networks",
		Short: "List the networks, and how it stands with their parents",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &a, fetchNetworks, drawNetworks)
		},
	}
	a.flags(cmd)
	return cmd
}

func fetchNetworks(ctx context.Context, client *http.Client) (n plugin.Networks, err error) {
	return n, plugin.Call(ctx, client, plugin.NetworksPath, struct{}{}, &n)
}

func drawNetworks(t *table, all plugin.Networks) {
	t.row("NETWORK", "PARENT", "STATE", "MODE", "SUBNETS", "GATEWAYS", "ENDPOINTS", "NOTE")
	for _, n := range all.Networks {
		var subnets []netip.Prefix
		var gateways []netip.Addr
		for _, s := range n.Subnets {
			subnets = append(subnets, s.Prefix.Masked())
			if s.Gateway.IsValid() {
				gateways = append(gateways, s.Gateway)
			}
		}
		t.row(t.id(n.ID), n.Parent, n.State, n.Mode, list(subnets), list(gateways), n.Endpoints, strings.Join(networkNotes(&n), ", "))
	}
	for _, n := range all.Networks {
		for _, command := range n.RouterRoutes {
			t.say("the LAN's router reaches %s by: %s", t.id(n.ID), command)
		}
	}
}

func networkNotes(n *driver.NetworkState) (notes []string) {
	for _, o := range []struct {
		is   bool
		what string
	}{
		{n.Internal, "internal"}, {n.HostAccess, "host access"}, {n.DHCP, "dhcp"}, {n.ForeignIPAM, "other IPAM driver"},
		{n.MTU != 0, fmt.Sprintf("MTU %d", n.MTU)}, {len(n.Routes) > 0, fmt.Sprintf("%d routes", len(n.Routes))},
	} {
		if o.is {
			notes = append(notes, o.what)
		}
	}
	return notes
}

func endpoints() *cobra.Command {
	var a asking
	var network string
	cmd := &cobra.Command{
		Use:   "endpoints",
		Short: "List the endpoints: which container has which addresses and MAC",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &a, func(ctx context.Context, client *http.Client) (plugin.Endpoints, error) {
				return fetchEndpoints(ctx, client, network)
			}, drawEndpoints)
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&network, "network", "", "only those of a network, given by its ID or the beginning of that")
	_ = cmd.RegisterFlagCompletionFunc("network", completeNetworks(&a.socket, func(*driver.NetworkState) bool { return true }))
	return cmd
}

// fetchEndpoints asks for all pages, sorted for a person.
func fetchEndpoints(ctx context.Context, client *http.Client, network string) (plugin.Endpoints, error) {
	all := plugin.Endpoints{Endpoints: []driver.EndpointState{}}
	for req := (plugin.EndpointsRequest{Network: network}); ; {
		var page plugin.Endpoints
		if err := plugin.Call(ctx, client, plugin.EndpointsPath, req, &page); err != nil {
			return all, err
		}
		all.Endpoints = append(all.Endpoints, page.Endpoints...)
		if req.After = page.Next; req.After == "" {
			break
		}
	}
	slices.SortStableFunc(all.Endpoints, func(a, b driver.EndpointState) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), a.IPv4.Compare(b.IPv4), a.IPv6.Compare(b.IPv6))
	})
	return all, nil
}

func drawEndpoints(t *table, all plugin.Endpoints) {
	t.row("ENDPOINT", "NETWORK", "CONTAINER", "IPV4", "IPV6", "MAC", "PARENT", "STATE", "NOTE")
	for _, e := range all.Endpoints {
		var notes []string
		if e.SharedMAC {
			notes = append(notes, "parent's MAC")
		}
		for _, shown := range []netip.Addr{e.Shown, e.Shown6} {
			if shown.IsValid() {
				notes = append(notes, "Docker shows "+shown.String())
			}
		}
		if !e.Since.IsZero() {
			notes = append(notes, "since "+when(e.Since))
		}
		if t.wide && e.Sandbox != "" {
			notes = append(notes, strings.TrimSpace(e.Interface+" in "+e.Sandbox))
		}
		t.row(t.id(e.ID), t.id(e.Network), e.Name, known(e.IPv4), known(e.IPv6), e.MAC, e.Parent, e.State, strings.Join(notes, ", "))
	}
}
