package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"underlay/internal/oneline"
	"underlay/plugin"
)

// formats are what -o takes.
var formats = []string{"table", "wide", "json", "yaml"}

// every is how often --watch looks again.
const every = time.Second

// asking is a command that shows what the plugin answers: how, and which plugin.
type asking struct {
	socket, format string
	watch          bool
}

func (a *asking) flags(cmd *cobra.Command) {
	socketFlag(cmd, &a.socket)
	a.formatFlag(cmd)
	cmd.Flags().BoolVarP(&a.watch, "watch", "w", false, "look again each second, until Ctrl-C; json and yaml are printed when they have changed")
}

func (a *asking) formatFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.format, "output", "o", "table", "table, wide, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// check takes text for table: it was doctor's word for it.
func (a *asking) check() error {
	if a.format == "text" {
		a.format = "table"
	}
	if !slices.Contains(formats, a.format) {
		return fmt.Errorf("-o %s is not known; it takes table, wide, json or yaml", a.format)
	}
	return nil
}

// show prints an answer, with --watch again and again. fetch asks for it, and draw
// writes it for a person.
func show[T any](cmd *cobra.Command, a *asking, fetch func(context.Context, *http.Client) (T, error), draw func(*table, T)) error {
	if err := a.check(); err != nil {
		return err
	}
	client := plugin.Client(a.socket)
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := cmd.OutOrStdout()
	text := func() (string, error) {
		v, err := fetch(ctx, client)
		if err != nil {
			return "", err
		}
		return a.text(v, func(t *table) { draw(t, v) })
	}
	first, err := text()
	if err != nil {
		return err
	}
	if !a.watch {
		_, err = io.WriteString(out, first)
		return err
	}
	return a.follow(ctx, out, first, text)
}

// follow prints a text whenever it has changed, until ctx ends.
func (a *asking) follow(ctx context.Context, out io.Writer, now string, text func() (string, error)) error {
	screen := a.drawn() && isTerminal(out)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := ""
	for {
		if now != last {
			if screen {
				now = "\x1b[H\x1b[2J" + now // home, and clear all
			}
			if _, err := io.WriteString(out, now); err != nil {
				return err
			}
			if last = now; screen {
				last = strings.TrimPrefix(now, "\x1b[H\x1b[2J")
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var err error
		if now, err = text(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			now = last // JSON goes on when the plugin is back
			if a.drawn() {
				now = "underlay: " + err.Error() + "\n"
			}
		}
	}
}

func (a *asking) drawn() bool { return a.format == "table" || a.format == "wide" }

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// text is an answer as it was asked for. With --watch, JSON is one line, and YAML
// begins a document.
func (a *asking) text(v any, draw func(*table)) (string, error) {
	var b bytes.Buffer
	switch a.format {
	case "json":
		enc := json.NewEncoder(&b)
		if !a.watch {
			enc.SetIndent("", "  ")
		}
		err := enc.Encode(v)
		return b.String(), err
	case "yaml":
		if a.watch {
			b.WriteString("---\n")
		}
		err := writeYAML(&b, v)
		return b.String(), err
	}
	t := &table{tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0), a.format == "wide"}
	draw(t)
	t.Flush()
	var lines strings.Builder
	for line := range strings.Lines(b.String()) {
		lines.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return lines.String(), nil
}

// writeYAML writes what JSON has, in its order.
func writeYAML(to io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var doc yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	unfold(&doc)
	enc := yaml.NewEncoder(to)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

// unfold has a document written over lines, and with no more quotes than it needs.
func unfold(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		unfold(c)
	}
}

// table is for a person to read.
type table struct {
	*tabwriter.Writer
	wide bool
}

// row writes the cells of a line; an empty one is a dash, and an empty last one
// nothing.
func (t *table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = oneline.Of(strings.NewReplacer("\t", " ", "\n", " ").Replace(fmt.Sprint(c)))
		if texts[i] == "" && i < len(cells)-1 {
			texts[i] = "-"
		}
	}
	fmt.Fprintln(t, strings.Join(texts, "\t"))
}

// say ends a table with a line of text, or begins another.
func (t *table) say(format string, args ...any) {
	t.Flush()
	fmt.Fprintln(t, oneline.Of(fmt.Sprintf(format, args...)))
	t.Flush()
}

// id is as docker's commands print it, or all of it in a wide table.
func (t *table) id(id string) string {
	if t.wide || len(id) <= 12 {
		return id
	}
	return id[:12]
}

// when is a time of the past or the future, "" for none.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// known is a value's text, "" for what is zero.
func known[T interface {
	comparable
	fmt.Stringer
}](v T) string {
	if none := *new(T); v == none {
		return ""
	}
	return v.String()
}

// count is a number that may be that of an IPv6 subnet's addresses. The page rounds
// as this does: see count in ui.js.
func count(n *big.Int) string {
	if n.BitLen() <= 40 {
		return n.String()
	}
	f, _ := new(big.Float).SetInt(n).Float64()
	return fmt.Sprintf("~2^%.0f", math.Round(math.Log2(f)))
}

func list[T fmt.Stringer](all []T) string {
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}

// one wants an argument, and says which.
func one(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d arguments were given, and it takes one: %s", len(args), cmd.UseLine())
	}
	return nil
}
