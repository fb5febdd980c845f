//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// plugin is the managed plugin's name, and that of its two drivers: dockerd
// registers a managed plugin's drivers with the tag.
const plugin = "underlay:latest"

// image is a busybox.
const image = "bb"

// daemon is the dockerd under test. containerd runs apart from it, as under
// systemd, so that containers outlive a killed dockerd.
type daemon struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

const daemonLog = "/tmp/dockerd.log"

func startContainerd() error {
	log, err := os.Create("/tmp/containerd.log")
	if err != nil {
		return err
	}
	cmd := exec.Command("containerd")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	return wait(time.Minute, "containerd", func() error {
		_, err := os.Stat("/run/containerd/containerd.sock")
		return err
	})
}

// start runs dockerd and returns when its API answers.
func (d *daemon) start(args ...string) error {
	log, err := os.OpenFile(daemonLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command("dockerd", args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.exited = make(chan struct{})
	go func() { d.cmd.Wait(); close(d.exited) }()
	return wait(4*time.Minute, "dockerd", func() error {
		select {
		case <-d.exited:
			return permanent{fmt.Errorf("dockerd ended: %v", d.cmd.ProcessState)}
		default:
			return api("GET", "/_ping", nil, nil)
		}
	})
}

// stop sends a signal and waits for the end.
func (d *daemon) stop(sig syscall.Signal) error {
	d.cmd.Process.Signal(sig)
	select {
	case <-d.exited:
	case <-time.After(time.Minute):
		return fmt.Errorf("dockerd is there a minute after %v", sig)
	}
	// What a killed daemon leaves, and what systemd would clear.
	os.Remove("/run/docker.pid")
	return nil
}

// permanent is an error that waiting does not mend.
type permanent struct{ error }

// wait tries until f succeeds.
func wait(limit time.Duration, what string, f func() error) error {
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if errors.As(err, &permanent{}) || time.Now().After(end) {
			return fmt.Errorf("%s: %w", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// unixClient speaks HTTP over a unix socket.
func unixClient(socket string) *http.Client {
	return &http.Client{
		Timeout: 2 * time.Minute,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}
}

func call(c *http.Client, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://socket"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, bytes.TrimSpace(b))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

var dockerAPI = unixClient("/run/docker.sock")

// api asks dockerd without the CLI: an emulated processor takes half a second
// to start that.
func api(method, path string, in, out any) error { return call(dockerAPI, method, path, in, out) }

// pluginSocket is where an enabled plugin listens.
func pluginSocket(name string) (string, error) {
	var p struct{ ID string }
	if err := api("GET", "/plugins/"+name+"/json", nil, &p); err != nil {
		return "", err
	}
	return filepath.Join("/run/docker/plugins", p.ID, "underlay.sock"), nil
}

// ask calls the plugin as dockerd does.
func ask(t *testing.T, path string, in, out any) {
	t.Helper()
	socket, err := pluginSocket(plugin)
	if err == nil {
		err = call(unixClient(socket), "POST", path, in, out)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tryDocker runs the docker command as a user types it.
func tryDocker(args ...string) (string, error) {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	start := time.Now()
	defer func() {
		if took := time.Since(start); took > 15*time.Second {
			fmt.Printf("slow: %.1f s: docker %s\n", took.Seconds(), strings.Join(args, " "))
		}
	}()
	text, simple, err := quickly(args)
	if !simple {
		var out []byte
		out, err = exec.CommandContext(ctx, "docker", args...).CombinedOutput()
		text = strings.TrimSpace(string(out))
	}
	if err != nil {
		return text, fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, nil
}

// quickly does what a docker command of the simplest, which most of them are, asks of
// dockerd, without the CLI.
func quickly(args []string) (text string, simple bool, err error) {
	var verb string
	if len(args) > 0 && args[0] == "network" {
		args = args[1:]
		verb = "network "
	}
	if len(args) < 2 {
		return "", false, nil
	}
	verb, args = verb+args[0], args[1:]
	if verb == "rm" {
		if args[0] != "-f" {
			return "", false, nil
		}
		args = args[1:]
	}
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }) {
		return "", false, nil
	}
	var errs []error
	switch {
	case verb == "rm":
		for _, name := range args {
			errs = append(errs, api("DELETE", "/containers/"+name+"?force=1", nil, nil))
		}
	case verb == "network rm":
		for _, name := range args {
			errs = append(errs, api("DELETE", "/networks/"+name, nil, nil))
		}
	case (verb == "network connect" || verb == "network disconnect") && len(args) == 2:
		errs = append(errs, api("POST", "/networks/"+args[0]+"/"+strings.TrimPrefix(verb, "network "), map[string]any{"Container": args[1]}, nil))
	default:
		return "", false, nil
	}
	if err = errors.Join(errs...); err != nil {
		text = err.Error()
	}
	return text, true, err
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryDocker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// container is what dockerd tells of one.
type container struct {
	ID, Name string
	State    struct {
		Pid     int
		Running bool
	}
	HostConfig      struct{ NetworkMode string }
	NetworkSettings struct {
		SandboxKey string
		Networks   map[string]endpoint
	}
}

type endpoint struct {
	NetworkID, EndpointID                                          string
	Gateway, IPAddress, IPv6Gateway, GlobalIPv6Address, MacAddress string
	IPPrefixLen, GlobalIPv6PrefixLen                               int
}

func inspect(t *testing.T, name string) container {
	t.Helper()
	var c container
	if err := api("GET", "/containers/"+name+"/json", nil, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// at is the network namespace of a running container.
func (c container) at() place { return place(strconv.Itoa(c.State.Pid)) }

// addrs are the addresses that dockerd shows for a network.
func (c container) addrs(network string) []string {
	var addrs []string
	e := c.NetworkSettings.Networks[network]
	for _, a := range []string{e.IPAddress, e.GlobalIPv6Address} {
		if a != "" {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// resolve asks the container's resolver for a name, in its own namespaces.
func (c container) resolve(name string) (string, error) {
	pid := strconv.Itoa(c.State.Pid)
	out, err := exec.Command("nsenter", "-t", pid, "-n", "-m", "/bin/busybox", "nslookup", name, "127.0.0.11").CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("nslookup %s: %w: %s", name, err, out)
	}
	// After the server's own lines.
	_, answer, _ := strings.Cut(string(out), "\n\n")
	return answer, nil
}
