package plugin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"

	"underlay/internal/ui"
)

// view is the plugin as its own page sees it.
type view struct{ plugin *Plugin }

// viewed is an answer as the socket would give it.
func viewed[Res any](ctx context.Context, p *Plugin, f func() (Res, error)) (json.RawMessage, error) {
	if err := p.ready(ctx); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // the look has taken too long, or the page is no more
		return nil, err
	}
	res, err := caught(f, p.panicked)
	if err != nil {
		return nil, err
	}
	return json.Marshal(res)
}

func (v view) Status(ctx context.Context) (json.RawMessage, error) {
	return viewed(ctx, v.plugin, func() (Status, error) { return v.plugin.status(), nil })
}

func (v view) Networks(ctx context.Context) (json.RawMessage, error) {
	return viewed(ctx, v.plugin, func() (Networks, error) { return Networks{v.plugin.parts.driver.NetworkStates()}, nil })
}

func (v view) Addresses(ctx context.Context, after netip.Addr) (json.RawMessage, error) {
	return viewed(ctx, v.plugin, func() (Addresses, error) { return v.plugin.addresses(ctx, AddressesRequest{After: after}) })
}

// remote is a plugin as the page of the underlay command sees it.
type remote struct{ client *http.Client }

// View is the plugin behind a socket, for a page. The plugin, and its socket with it,
// may come and go: see Client.
func View(socket string) ui.Source { return remote{Client(socket)} }

func (r remote) call(ctx context.Context, path string, req any) (answer json.RawMessage, err error) {
	err = Call(ctx, r.client, path, req, &answer)
	return answer, err
}

func (r remote) Status(ctx context.Context) (json.RawMessage, error) {
	return r.call(ctx, StatusPath, none{})
}

func (r remote) Networks(ctx context.Context) (json.RawMessage, error) {
	return r.call(ctx, NetworksPath, none{})
}

func (r remote) Addresses(ctx context.Context, after netip.Addr) (json.RawMessage, error) {
	return r.call(ctx, AddressesPath, AddressesRequest{After: after})
}
