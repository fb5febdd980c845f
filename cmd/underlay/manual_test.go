package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"underlay/internal/manual"
)

// page8 is the manual page, whose commands, flags and environment are the program's.
const page8 = `.\" Made by go test ./cmd/underlay -update
.TH UNDERLAY 8 2026-12-01 underlay "System Manager's Manual"
.ad l
.SH NAME
underlay \- Docker networks on the physical LAN
.SH SYNOPSIS
.B underlay
.I COMMAND
.RI [ FLAGS ]
.SH DESCRIPTION
.B underlay serve
is a Docker network and IPAM plugin. It puts containers on the LAN of a NIC of the
host, as macvlan or ipvlan links with addresses of that LAN.
systemd starts it where it is installed from the Debian package; as a managed plugin,
Docker does.
.PP
All other commands ask the plugin over its socket, which is root's, or look at the
host. They find the socket by themselves.
.PP
The drivers' name is
.B underlay
here, and
.B underlay:latest
where it is a managed plugin:
.PP
.EX
docker network create \-d underlay \-\-ipam\-driver underlay \-o parent=eth0 lan
docker run \-d \-\-network lan \-\-name web nginx
.EE
.SH COMMANDS
%COMMANDS%.SH OPTIONS
.TP
.BR \-h ", " \-\-help
help for the command before it
.TP
.BR \-v ", " \-\-version
the version
.SH ENVIRONMENT
.B underlay serve
heeds these; the service has them from
.IR /etc/default/underlay .
The managed plugin's are set by
.B docker plugin set
while it is disabled.
%ENVIRONMENT%.TP
.B NOTIFY_SOCKET
set by systemd, which is told by it when the plugin's socket is there
.SH EXIT STATUS
.TP
.B 0
done
.TP
.B 1
not done: one line on the standard error says why, and what to do; of
.BR doctor ,
that it has found an error
.TP
.B 2
of
.B doctor
alone: it could not be run
.SH FILES
.TP
.I /run/docker/plugins/underlay.sock
the socket of
.B underlay serve
.TP
.I /run/docker/plugins/ID/underlay.sock
that of a managed plugin
.TP
.I /var/lib/underlay/underlay.db
the state file; a managed plugin's is
.I /var/lib/docker/plugins/ID/propagated\-mount/underlay.db
.TP
.I /etc/default/underlay
the service's environment
.TP
.I /usr/share/doc/underlay
the whole manual, in
.IR docs/README.md ,
and what is trusted, in
.I SECURITY.md
.SH SEE ALSO
.BR docker\-network\-create (1),
.BR docker\-plugin (1),
.BR dockerd (8),
.BR ip\-link (8),
.BR systemctl (1)
`

// roff has text be text.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `~`, `\(ti`, `^`, `\(ha`, "`", `\(ga`).Replace(text)
	return regexp.MustCompile(`(?m)^[.']`).ReplaceAllString(text, `\&$0`)
}

// entry is a line of an indented table: a word, and what it is.
var entry = regexp.MustCompile(`^  (\S+)  +(.*)`)

// prose writes a help text, whose indented lines are a table.
func prose(b *strings.Builder, text string) {
	table := false
	for line := range strings.Lines(strings.Trim(text, "\n")) {
		line = strings.TrimSuffix(line, "\n")
		switch m := entry.FindStringSubmatch(line); {
		case line == "":
			b.WriteString(".PP\n")
		case m != nil:
			fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(m[1]), roff(m[2]))
			table = true
		case strings.HasPrefix(line, "  ") && table:
			fmt.Fprintln(b, roff(strings.TrimSpace(line)))
		default:
			if table {
				b.WriteString(".PP\n")
			}
			fmt.Fprintln(b, roff(line))
			table = false
		}
	}
}

// variants are the commands that a person can call by cmd: itself, or those under it.
func variants(cmd *cobra.Command) (all []*cobra.Command) {
	for _, c := range cmd.Commands() {
		if !c.Hidden && c.Name() != "help" {
			all = append(all, c)
		}
	}
	return all
}

func flagsOf(cmd *cobra.Command) (all []*pflag.Flag) {
	cmd.InitDefaultHelpFlag()
	for _, c := range append(variants(cmd), cmd) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !f.Hidden && !slices.ContainsFunc(all, func(o *pflag.Flag) bool { return o.Name == f.Name }) {
				all = append(all, f)
			}
		})
	}
	return all
}

// manPage is the page of the program as it is.
func manPage(root *cobra.Command) string {
	root.InitDefaultCompletionCmd()
	var commands, environment strings.Builder
	for _, c := range variants(root) {
		b := &commands
		use := roff(c.UseLine())
		if under := variants(c); len(under) > 0 {
			var names []string
			for _, u := range under {
				names = append(names, u.Name())
			}
			use = roff(c.CommandPath() + " " + strings.Join(names, "|"))
		}
		fmt.Fprintf(b, ".SS %s\n", strings.TrimSuffix(use, " [flags]"))
		text, env, _ := strings.Cut(cmp.Or(c.Long, c.Short+"."), "\nEnvironment:\n")
		prose(b, text)
		prose(&environment, env)
		for _, f := range flagsOf(c) {
			name := `\fB\-\-` + roff(f.Name) + `\fR`
			if f.Shorthand != "" {
				name = `\fB\-` + f.Shorthand + `\fR, ` + name
			}
			kind, usage := pflag.UnquoteUsage(f)
			if kind != "" {
				name += ` \fI` + roff(kind) + `\fR`
			}
			fmt.Fprintf(b, ".TP\n%s\n%s", name, roff(usage))
			if d := f.DefValue; d != "" && d != "false" && d != "[]" {
				fmt.Fprintf(b, " (default: %s)", roff(d))
			}
			b.WriteByte('\n')
		}
	}
	return strings.NewReplacer("%COMMANDS%", commands.String(), "%ENVIRONMENT%", environment.String()).Replace(page8)
}

// The manual page is that of the program, and has all of it.
func TestManualPage(t *testing.T) {
	root := command()
	page := manPage(root)
	text := kept(t, "../../docs/underlay.8", page)
	if text != page {
		t.Errorf("docs/underlay.8 is not the program's; go test ./cmd/underlay -update writes it")
	}
	for _, c := range variants(root) {
		_, section, _ := strings.Cut(text, "\n.SS underlay "+c.Name())
		section, _, _ = strings.Cut(section, "\n.S")
		if section == "" {
			t.Errorf("docs/underlay.8 has no section on %s", c.CommandPath())
		}
		for _, f := range flagsOf(c) {
			if !strings.Contains(section, `\-\-`+roff(f.Name)) {
				t.Errorf("docs/underlay.8 does not have --%s of %s", f.Name, c.CommandPath())
			}
		}
	}
	for _, file := range []string{"main.go", "notify.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`os\.Getenv\("(\w+)"\)`).FindAllStringSubmatch(string(source), -1) {
			if !strings.Contains(text, ".TP\n.B "+m[1]+"\n") {
				t.Errorf("docs/underlay.8 does not have %s of the environment", m[1])
			}
		}
	}
}

// What the pages have a person type after underlay is a command, with its flags.
func TestPagesKnowTheCommands(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	verbs := regexp.MustCompile("(?m)(?:^[#$] |`)(?:build/)?underlay ([a-z]+(?: [^`\n#>|&]*)?)")
	found := 0
	for _, file := range append(files, "../../README.md", "../../SECURITY.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sections, err := manual.Read(file)
		if err != nil {
			t.Fatal(err)
		}
		var typed strings.Builder
		if filepath.Base(file) != "troubleshooting.md" { // what is quoted there are errors
			typed.Write(text)
		}
		for _, s := range sections {
			for _, c := range manual.Commands(s.Text("sh")) {
				typed.WriteString("\n# " + c)
			}
		}
		for _, m := range verbs.FindAllStringSubmatch(typed.String(), -1) {
			root := command()
			root.InitDefaultCompletionCmd()
			cmd, rest, err := root.Find(strings.Fields(m[1]))
			if err == nil && cmd == root {
				err = fmt.Errorf("no such command")
			}
			if err == nil && !slices.Contains(rest, "--help") {
				err = cmd.ParseFlags(rest)
			}
			if err != nil {
				t.Errorf("%s: underlay %s: %v", filepath.Base(file), m[1], err)
			}
			found++
		}
	}
	if found < 40 {
		t.Errorf("%d commands were found", found)
	}
}
