package manual

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// tree is where the source is.
const tree = "../.."

// pages are all of them, by their names without a folder.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			name, err := filepath.Rel(filepath.Join(tree, "docs"), path)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = path
		}
	}
	return all
}

// Each command of each page is run by somebody: a test in a virtual machine takes the
// blocks under its heading from the page, or it is one for whoever changes underlay,
// and names what there is. All else is an example, and says so by its language.
func TestCommandsAreRun(t *testing.T) {
	takes := takers(t)
	all := pages(t)
	if len(all) < 20 || len(takes) < 3 {
		t.Fatalf("%d pages, %d tests that read them", len(all), len(takes))
	}
	read, run := map[string][]Section{}, map[string]bool{}
	for page, path := range all {
		sections, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		read[page] = sections
		for _, s := range sections {
			if taken(takes, page, s.Heading) {
				for _, c := range Commands(s.Text("sh")) {
					run[c] = true
				}
			}
		}
	}
	for page, sections := range read {
		for _, s := range sections {
			for _, b := range s.Blocks {
				if what := wrong(page, s.Heading, b, takes, run); what != "" {
					t.Errorf("%s:%d: %s", page, b.Line, what)
				}
			}
		}
		// Those in the text, too: `make test` and the like.
		text, err := os.ReadFile(all[page])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`((?:make|go test|scripts/)[^`\n]*)`").FindAllStringSubmatch(string(text), -1) {
			if _, why := developer(tree, m[1]); why != "" {
				t.Errorf("%s: `%s`: %s", page, m[1], why)
			}
		}
	}
}

// wrong says what is wrong with a block, "" if nothing is. A command that is run as
// another page has it needs no other test.
func wrong(page, heading string, b Block, takes []taker, run map[string]bool) string {
	switch b.Language {
	case "yaml":
	case "console":
		if !regexp.MustCompile(`(?m)^[#$] `).MatchString(b.Text) {
			return "an example without a prompt"
		}
	case "":
		if m := regexp.MustCompile(`(?m)^(docker|make|go|scripts/\w+|systemctl|apt) .*`).FindString(b.Text); m != "" {
			return "a command in a block of what is printed: " + m
		}
	case "sh":
		for _, c := range Commands(b.Text) {
			is, why := developer(tree, c)
			if why != "" {
				return c + ": " + why
			}
			if !is && !run[c] && !taken(takes, page, heading) {
				return "no test of internal/vmtest reads this page under " + strconv.Quote(heading) + ", so nobody runs " + c
			}
		}
	default:
		return "a block of the language " + b.Language + "; the manual has sh (run by a test), console (an example), yaml and none"
	}
	return ""
}

// taker is a test in a virtual machine that reads pages: the strings in it, among
// which are the pages' names and the headings.
type taker map[string]bool

func taken(takes []taker, page, heading string) bool {
	return slices.ContainsFunc(takes, func(is taker) bool { return is[page] && is[heading] })
}

func takers(t *testing.T) (all []taker) {
	t.Helper()
	files, err := filepath.Glob("../vmtest/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			words, reads := taker{}, false
			ast.Inspect(f.Body, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BasicLit:
					if text, err := strconv.Unquote(n.Value); err == nil {
						words[text] = true
					}
				case *ast.Ident:
					reads = reads || n.Name == "sections" || n.Name == "typed" || n.Name == "script"
				}
				return true
			})
			if reads {
				all = append(all, words)
			}
		}
	}
	return all
}

// developer tells whether a command is one for whoever has the source, and what of it
// is not there.
func developer(tree, command string) (is bool, lacking string) {
	words := regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`).FindAllString(command, -1)
	for i := range words {
		words[i] = strings.Trim(words[i], `'"`)
	}
	for len(words) > 0 && regexp.MustCompile(`^([A-Z_]+=.*|nice|-n|-?\d+)$`).MatchString(words[0]) {
		words = words[1:]
	}
	switch {
	case len(words) == 0:
		return false, ""
	case words[0] == "make":
		text, err := os.ReadFile(filepath.Join(tree, "Makefile"))
		if err != nil {
			return true, err.Error()
		}
		for _, w := range words[1:] {
			want := "(?m)^" + regexp.QuoteMeta(w) + ":"
			if name, _, ok := strings.Cut(w, "="); ok {
				want = `\b` + name + `\b`
			}
			if !regexp.MustCompile(want).Match(text) {
				return true, "the Makefile has no " + w
			}
		}
		return true, ""
	case strings.HasPrefix(words[0], "scripts/"):
		info, err := os.Stat(filepath.Join(tree, words[0]))
		if err != nil || info.IsDir() {
			return true, lack(err)
		}
		text, err := os.ReadFile(filepath.Join(tree, words[0]))
		if err != nil || info.Mode()&0o111 == 0 {
			return true, words[0] + " cannot be run"
		}
		// What it is to do is an arm of a case, or a function's name.
		if len(words) > 1 && regexp.MustCompile(`^[a-z-]+$`).MatchString(words[1]) {
			name := strings.ReplaceAll(words[1], "-", "[-_]")
			if !regexp.MustCompile(`(?m)([(| ]` + name + `( \||\))|_` + name + `\(\))`).Match(text) {
				return true, words[0] + " knows no " + words[1]
			}
		}
		return true, goTest(tree, append(words, "./internal/vmtest"))
	case words[0] == "go" && len(words) > 1 && words[1] == "test":
		return true, goTest(tree, words[2:])
	}
	return false, ""
}

func lack(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// goTest says what of a go test command is not there.
func goTest(tree string, words []string) string {
	kinds := map[string]string{"-run": "Test", "-test.run": "Test", "-bench": "Benchmark"}
	patterns := map[string]string{}
	var folders []string
	for i, w := range words {
		if kinds[w] != "" && i+1 < len(words) {
			patterns[w] = words[i+1]
		}
		if strings.HasPrefix(w, "./") {
			folders = append(folders, w)
		}
	}
	for _, folder := range folders {
		if strings.HasSuffix(folder, "...") {
			continue
		}
		files, err := filepath.Glob(filepath.Join(tree, folder, "*_test.go"))
		if err != nil || len(files) == 0 {
			return folder + " has no tests"
		}
		for flag, pattern := range patterns {
			by, err := regexp.Compile(strings.Split(pattern, "/")[0])
			if err != nil {
				return err.Error()
			}
			if pattern != "^$" && !slices.ContainsFunc(functions(files, kinds[flag]), by.MatchString) {
				return folder + " has nothing for " + flag + " " + pattern
			}
		}
	}
	return ""
}

// functions are the tests or benchmarks in files.
func functions(files []string, kind string) (all []string) {
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, m := range regexp.MustCompile(`(?m)^func (`+kind+`\w*)\(`).FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
	}
	return all
}

// What the test would say of pages that are not as they should be.
func TestWrong(t *testing.T) {
	takes := []taker{{"a.md": true, "One": true}, {"b.md": true}}
	for _, row := range []struct{ page, heading, language, text, want string }{
		{"a.md", "One", "sh", "docker ps\n", ""},
		{"a.md", "Two", "sh", "docker ps # all\n", "nobody runs docker ps"},
		{"b.md", "One", "sh", "docker ps\n", "nobody runs docker ps"}, // another test has that heading
		{"a.md", "Two", "sh", "docker version\n", ""},
		{"a.md", "Two", "sh", "# nothing\n", ""},
		{"a.md", "Two", "sh", "make build # it\nscripts/test check\n", ""},
		{"a.md", "Two", "sh", "make release ARCHS=amd64\n", ""},
		{"a.md", "Two", "sh", "make release NOTHING=amd64\n", "no NOTHING=amd64"},
		{"a.md", "Two", "sh", "make nothing\n", "no nothing"},
		{"a.md", "Two", "sh", "make build && docker ps\n", "no &&"},
		{"a.md", "One", "sh", "docker ps\nscripts/nothing\n", "scripts/nothing"},
		{"a.md", "Two", "sh", "RUNS=4 nice -n -20 scripts/bench docker\n", ""},
		{"a.md", "Two", "sh", "scripts/bench nothing\n", "knows no nothing"},
		{"a.md", "Two", "sh", "go test -run '^$' -bench 'Life|Wife' \\\n  ./netlinkutil\n", ""},
		{"a.md", "Two", "sh", "go test -run '^$' -bench Nothing ./netlinkutil\n", "nothing for -bench Nothing"},
		{"a.md", "Two", "sh", "scripts/vm test sid -test.run '^TestNothing'\n", "nothing for -test.run ^TestNothing"},
		{"a.md", "Two", "sh", "go test ./nothing\n", "has no tests"},
		{"a.md", "One", "console", "# docker ps\nNAMES\n", ""},
		{"a.md", "One", "console", "docker ps\n", "without a prompt"},
		{"a.md", "One", "", "all well\n", ""},
		{"a.md", "One", "", "docker ps\n", "a command in a block of what is printed"},
		{"a.md", "One", "bash", "docker ps\n", "language bash"},
	} {
		is := wrong(row.page, row.heading, Block{Language: row.language, Text: row.text}, takes, map[string]bool{"docker version": true})
		if is != row.want && (row.want == "" || !strings.Contains(is, row.want)) {
			t.Errorf("%s, %s, %s: %q, want %q", row.page, row.heading, row.text, is, row.want)
		}
	}
}

func TestCommands(t *testing.T) {
	is := Commands("a  b \\\n  c   # why\n\n# no\nd '#e'\n")
	if want := []string{"a b c", "d '#e'"}; !slices.Equal(is, want) {
		t.Errorf("%q, want %q", is, want)
	}
}
