// Command release makes what a release consists of: for each architecture the
// binary, the managed plugin's rootfs, a Debian package with the socket plugin and
// a list of what is in the binary; and SHA256SUMS. The same commit gives the same
// bytes anywhere. It is a module of its own, so that what makes packages is no
// dependency of the daemon.
package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	var r release
	archs := flag.String("archs", "amd64,arm64", "architectures, as Go names them, with a comma between")
	flag.StringVar(&r.tree, "tree", "../..", "the source")
	flag.StringVar(&r.out, "out", "dist", "the folder to make, from the source's; what it holds is deleted")
	flag.StringVar(&r.version, "version", "", "as git describe --tags --always --dirty says, which is asked if it is left out")
	flag.BoolVar(&r.debOnly, "deb", false, "the Debian packages alone, as underlay_ARCH.deb")
	flag.Parse()
	if err := r.make(strings.Split(*archs, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// release is one that is being made.
type release struct {
	tree, out  string
	version    string
	maintainer string
	when       time.Time // of every file in it
	tmp        string
	debOnly    bool
}

func (r *release) make(archs []string) (err error) {
	if r.tree, err = filepath.Abs(r.tree); err != nil {
		return err
	}
	if !filepath.IsAbs(r.out) {
		r.out = filepath.Join(r.tree, r.out)
	}
	if err := r.identify(); err != nil {
		return err
	}
	if r.tmp, err = os.MkdirTemp("", "underlay-release"); err != nil {
		return err
	}
	defer os.RemoveAll(r.tmp)
	if err := os.RemoveAll(r.out); err != nil {
		return err
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	if err := r.complete(); err != nil {
		return err
	}
	for _, arch := range archs {
		if err := r.of(arch); err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
	}
	if r.debOnly {
		return nil
	}
	return sums(r.out)
}

// of makes one architecture's files.
func (r *release) of(arch string) error {
	name := "underlay-" + r.version + "-linux-" + arch
	binary := filepath.Join(r.tmp, name)
	err := r.run([]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS="},
		"go", "build", "-trimpath", "-buildvcs=false", "-ldflags", r.ldflags(), "-o", binary, "./cmd/underlay")
	if err != nil {
		return err
	}
	parts, err := readParts(binary)
	if err != nil {
		return err
	}
	licences, err := r.licences(parts)
	if err != nil {
		return err
	}
	if r.debOnly {
		return r.deb(filepath.Join(r.out, "underlay_"+arch+".deb"), arch, binary, licences)
	}
	rootfs := filepath.Join(r.tmp, "plugin-"+arch)
	if err := r.run(nil, filepath.Join(r.tree, "scripts/rootfs"), binary, rootfs); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(rootfs, "LICENCES"), licences, 0o644); err != nil {
		return err
	}
	if err := tarball(filepath.Join(r.out, "underlay-"+r.version+"-plugin-"+arch+".tar.gz"), rootfs, "underlay-plugin", r.when); err != nil {
		return err
	}
	if err := r.bom(filepath.Join(r.out, name+".cdx.json"), binary, parts); err != nil {
		return err
	}
	deb := filepath.Join(r.out, "underlay_"+debVersion(r.version, r.when)+"_"+arch+".deb")
	if err := r.deb(deb, arch, binary, licences); err != nil {
		return err
	}
	return copyFile(filepath.Join(r.out, name), binary, 0o755)
}

// complete writes the completions for each shell, which the program makes itself.
func (r *release) complete() error {
	program := filepath.Join(r.tmp, "underlay")
	if err := r.run([]string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-o", program, "./cmd/underlay"); err != nil {
		return err
	}
	for _, shell := range shells {
		text, err := exec.Command(program, "completion", shell).Output()
		if err == nil {
			err = os.WriteFile(r.completion(shell), text, 0o644)
		}
		if err != nil {
			return fmt.Errorf("completion for %s: %w", shell, err)
		}
	}
	return nil
}

// shells are those whose completions are in the package.
var shells = []string{"bash", "zsh", "fish"}

func (r *release) completion(shell string) string { return filepath.Join(r.tmp, "completion."+shell) }

func (r *release) ldflags() string { return "-s -w -X main.version=" + r.version }

// identify takes the version and the time from the commit, or from the environment
// where there is none.
func (r *release) identify() (err error) {
	git := func(args ...string) (string, error) {
		cmd := exec.Command("git", append([]string{"-C", r.tree}, args...)...)
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	if r.version == "" {
		if r.version, err = git("describe", "--tags", "--always", "--dirty"); err != nil {
			return fmt.Errorf("git says no version; give -version (make release VERSION=): %w", err)
		}
	}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		if epoch, err = git("log", "-1", "--format=%ct"); err != nil {
			return fmt.Errorf("git says no time; set SOURCE_DATE_EPOCH: %w", err)
		}
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	r.when = time.Unix(seconds, 0).UTC()
	// SECURITY.md: reports go to the author of the last commit.
	r.maintainer = os.Getenv("MAINTAINER")
	if r.maintainer == "" {
		if r.maintainer, err = git("log", "-1", "--format=%an <%ae>"); err != nil {
			return fmt.Errorf("git says no author; set MAINTAINER: %w", err)
		}
	}
	return nil
}

// run runs a command in the source, with more environment.
func (r *release) run(env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = r.tree
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return nil
}

// sums writes SHA256SUMS, as sha256sum -c reads it.
func sums(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", h.Sum(nil), e.Name())
	}
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(text.String()), 0o644)
}

func copyFile(to, from string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}
