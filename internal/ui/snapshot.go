package ui

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// snapshot is what was seen at a time. It is not changed once it is made.
type snapshot struct {
	down string // why nothing was seen; the rest is of before then

	raw              [][]byte // the answers
	status, networks json.RawMessage
	lines            []line // of addresses, in the plugin's order
	byKey            map[string]json.RawMessage
}

// line is what is told of an address.
type line struct {
	key  string
	text json.RawMessage
}

// look asks the plugin. It returns last itself if nothing has changed since.
func look(ctx context.Context, source Source, last *snapshot) *snapshot {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	raw, err := ask(ctx, source)
	if err == nil {
		if last != nil && last.down == "" && slices.EqualFunc(raw, last.raw, bytes.Equal) {
			return last
		}
		var s *snapshot
		if s, err = read(raw); err == nil {
			return s
		}
	}
	s := &snapshot{}
	if last != nil {
		if last.down == err.Error() {
			return last
		}
		*s = *last
	}
	s.down = err.Error()
	return s
}

// ask returns the plugin's answers: its status, its networks, and the pages of its
// addresses.
func ask(ctx context.Context, source Source) (raw [][]byte, err error) {
	status, err := source.Status(ctx)
	if err != nil {
		return nil, err
	}
	networks, err := source.Networks(ctx)
	if err != nil {
		return nil, err
	}
	raw = append(raw, status, networks)
	for after := (netip.Addr{}); ; {
		page, err := source.Addresses(ctx, after)
		if err != nil {
			return nil, err
		}
		raw = append(raw, page)
		var more struct {
			Next netip.Addr `json:"next"`
		}
		if err := json.Unmarshal(page, &more); err != nil {
			return nil, fmt.Errorf("the plugin's addresses are not understood: %w", err)
		}
		if !more.Next.IsValid() {
			return raw, nil
		}
		if !after.Less(more.Next) {
			return nil, fmt.Errorf("the plugin's pages of addresses do not end: %v comes after %v", more.Next, after)
		}
		after = more.Next
	}
}

func read(raw [][]byte) (*snapshot, error) {
	s := &snapshot{raw: raw, status: raw[0], byKey: map[string]json.RawMessage{}}
	var n struct {
		Networks json.RawMessage `json:"networks"`
	}
	if err := json.Unmarshal(raw[1], &n); err != nil {
		return nil, fmt.Errorf("the plugin's networks are not understood: %w", err)
	}
	s.networks = n.Networks
	for _, page := range raw[2:] {
		var p struct {
			Addresses []json.RawMessage `json:"addresses"`
		}
		if err := json.Unmarshal(page, &p); err != nil {
			return nil, fmt.Errorf("the plugin's addresses are not understood: %w", err)
		}
		for _, text := range p.Addresses {
			key, err := keyOf(text)
			if err != nil {
				return nil, err
			}
			s.lines = append(s.lines, line{key, text})
			s.byKey[key] = text
		}
	}
	return s, nil
}

// keyOf names a line: by its address, or as the beginning of a range that is
// excluded, since somebody may have that address all the same.
func keyOf(text json.RawMessage) (string, error) {
	var a struct {
		Address string `json:"address"`
		Kind    string `json:"kind"`
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return "", fmt.Errorf("an address of the plugin's is not understood: %w", err)
	}
	if a.Kind == "excluded" {
		return "x" + a.Address, nil
	}
	return a.Address, nil
}

// news is an event's data. What has not changed is left out.
type news struct {
	Status    json.RawMessage   `json:"status,omitempty"`
	Networks  json.RawMessage   `json:"networks,omitempty"`
	Addresses []json.RawMessage `json:"addresses,omitempty"` // new ones, and those that have changed
	Gone      []string          `json:"gone,omitempty"`      // keys
}

// since is the event that tells whoever has had a snapshot of this one; nil if there
// is nothing to tell.
//
//	all     everything
//	change  what has changed
//	down    why the plugin does not answer
func (s *snapshot) since(had *snapshot) []byte {
	switch {
	case s == nil || s == had:
		return nil
	case s.down != "":
		return event("down", struct {
			Error string `json:"error"`
		}{s.down})
	case had == nil || had.status == nil:
		all := news{Status: s.status, Networks: s.networks}
		for _, l := range s.lines {
			all.Addresses = append(all.Addresses, l.text)
		}
		return event("all", all)
	}
	var n news
	if !bytes.Equal(s.status, had.status) {
		n.Status = s.status
	}
	if !bytes.Equal(s.networks, had.networks) {
		n.Networks = s.networks
	}
	for _, l := range s.lines {
		if !bytes.Equal(l.text, had.byKey[l.key]) {
			n.Addresses = append(n.Addresses, l.text)
		}
	}
	for _, l := range had.lines {
		if s.byKey[l.key] == nil {
			n.Gone = append(n.Gone, l.key)
		}
	}
	return event("change", n)
}

func event(name string, data any) []byte {
	text, err := json.Marshal(data) // in one line: raw messages are made compact
	if err != nil {
		name, text = "down", []byte(`{"error":"what the plugin answers is no JSON"}`)
	}
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, text)
}
