//go:build faults

package killtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"underlay/internal/fault"
)

// machine is a Docker host and a machine on each of its two LANs, and the plugin
// in it:
//
//	netns NAMEh  eth0 192.168.50.2, fd00:50::2; eth1 10.9.0.2
//	netns NAMEl  p0 192.168.50.1 and .3, fd00:50::1 and ::3; p1 10.9.0.1
type machine struct {
	dir       string // for the plugin
	host, lan string // netns, by name
	fault     string // where the plugin is to be killed: "2/17 NetworkDriver.Join: in", in its second life

	spawn chan func() // run in the host's netns

	mu     sync.Mutex
	life   int // how often the plugin has been started
	cmd    *exec.Cmd
	died   chan struct{} // closed when cmd has ended
	killed bool          // at the fault
	wanted bool          // the plugin is to run: it is started again when it dies
	calls  int           // in this life
	log    *os.File
	failed error // to start it again
	client *http.Client
}

func newMachine(name, fault string) (*machine, error) {
	m := &machine{dir: "/run/" + name, host: name + "h", lan: name + "l", fault: fault, spawn: make(chan func())}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	for _, ns := range []string{m.host, m.lan} {
		if err := newNetns(ns); err != nil {
			return nil, err
		}
	}
	err := ip(m.lan, `
link add p0 type veth peer name eth0 netns `+m.host+`
link add p1 type veth peer name eth1 netns `+m.host+`
link set lo up
addr add 192.168.50.1/24 dev p0
addr add 192.168.50.3/24 dev p0
addr add fd00:50::1/64 dev p0 nodad
addr add fd00:50::3/64 dev p0 nodad
addr add 10.9.0.1/24 dev p1
link set p0 up
link set p1 up`)
	if err == nil {
		err = ip(m.host, `
link set lo up
addr add 192.168.50.2/24 dev eth0
addr add fd00:50::2/64 dev eth0 nodad
addr add 10.9.0.2/24 dev eth1
link set eth0 up
link set eth1 up
route add default via 192.168.50.1
route add default via fd00:50::1`)
	}
	if err != nil {
		return nil, err
	}
	for range 100 { // until the wires are there
		text, err := show(m.host, "route show table local\nlink show", "-6")
		if err != nil {
			return nil, err
		}
		if strings.Contains(text, "local fd00:50::2 ") && strings.Count(text, "ff00::/8 ") == 2 && !strings.Contains(text, "NO-CARRIER") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if m.log, err = os.Create(m.dir + "/log"); err != nil {
		return nil, err
	}
	m.client = &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(m.dir, socketName))
		},
	}}
	ready := make(chan error)
	go func() {
		err := within(m.host, func() error {
			ready <- nil
			for f := range m.spawn {
				f()
			}
			return nil
		})
		if err != nil {
			ready <- err
		}
	}()
	return m, <-ready
}

// within calls f on a thread that is in a netns.
func within(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// close ends all that belongs to the machine.
func (m *machine) close() {
	m.stop(syscall.SIGKILL)
	close(m.spawn)
	m.log.Close()
	dropNetns(m.host)
	dropNetns(m.lan)
	os.RemoveAll(m.dir)
}

// newNetns makes a network namespace of a name, at further paths if given,
// without duplicate address detection, which takes a second.
func newNetns(name string, also ...string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("network namespace: %w", err)
			}
			for _, of := range []string{"all", "default"} {
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+of+"/accept_dad", []byte("0"), 0); err != nil {
					return err
				}
			}
			for _, path := range append(also, "/run/netns/"+name) {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					return err
				}
				if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return <-done
}

func dropNetns(name string, also ...string) {
	for _, path := range append(also, "/run/netns/"+name) {
		unix.Unmount(path, unix.MNT_DETACH)
		os.Remove(path)
	}
}

// ip runs lines of ip commands in a netns.
func ip(ns, lines string) error {
	cmd := exec.Command("ip", "-n", ns, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.TrimSpace(lines) + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip in %s: %w: %s\n%s", ns, err, bytes.TrimSpace(out), lines)
	}
	return nil
}

// show is what ip prints at some commands, a line each.
func show(ns, lines string, flags ...string) (string, error) {
	cmd := exec.Command("ip", append(flags, "-n", ns, "-batch", "-")...)
	cmd.Stdin = strings.NewReader(lines + "\n")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ip in %s: %w: %s", ns, err, lines)
	}
	return string(out), nil
}

// start starts the plugin, and has it started again whenever it dies, until stop.
func (m *machine) start() error {
	m.mu.Lock()
	m.wanted = true
	m.mu.Unlock()
	return m.run()
}

func (m *machine) run() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	m.calls = 0
	list := filepath.Join(m.dir, "points."+strconv.Itoa(m.life))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serves+"="+m.dir, fault.List+"="+list)
	if life, at, _ := strings.Cut(m.fault, "/"); life == strconv.Itoa(m.life) && !m.killed {
		cmd.Env = append(cmd.Env, fault.At+"="+at)
	}
	if m.killed {
		cmd.Env = append(cmd.Env, killed+"=1")
	}
	cmd.Stdout, cmd.Stderr = m.log, m.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	fmt.Fprintf(m.log, "-- life %d of the plugin\n", m.life)
	started := make(chan error)
	m.spawn <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	died := make(chan struct{})
	m.cmd, m.died = cmd, died
	go func() {
		cmd.Wait()
		m.mu.Lock()
		if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && m.wanted && s.Signal() == syscall.SIGKILL {
			m.killed = true
		}
		again := m.wanted
		m.mu.Unlock()
		if again {
			if err := m.run(); err != nil {
				m.mu.Lock()
				m.failed = err
				m.mu.Unlock()
			}
		}
		close(died)
	}()
	return nil
}

// listening waits until the plugin listens, as systemd has dockerd do. Of a life that
// ends before, the next one may.
func (m *machine) listening() {
	for end := time.Now().Add(20 * time.Second); !m.isAway() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", filepath.Join(m.dir, socketName))
		if err == nil {
			c.Close()
			return
		}
	}
}

// stop ends the plugin for a while.
func (m *machine) stop(sig syscall.Signal) {
	m.mu.Lock()
	m.wanted = false
	cmd, died := m.cmd, m.died
	m.mu.Unlock()
	if cmd != nil {
		cmd.Process.Signal(sig)
		<-died
	}
}

// at tells whether the plugin is to be killed after the answer to the call that
// is under way.
func (m *machine) at() (died chan struct{}, now bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.died, !m.killed && fault.Answered(m.fault) && strings.HasPrefix(m.fault, fmt.Sprintf("%d/%d ", m.life, m.calls))
}

// isAway tells whether the plugin is not to run.
func (m *machine) isAway() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.wanted
}

func (m *machine) isKilled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.killed
}

// points are what the plugin has passed, in all its lives.
func (m *machine) points() (all []string) {
	m.mu.Lock()
	lives := m.life
	m.mu.Unlock()
	for life := 1; life <= lives; life++ {
		text, _ := os.ReadFile(filepath.Join(m.dir, "points."+strconv.Itoa(life)))
		for line := range strings.Lines(string(text)) {
			all = append(all, strconv.Itoa(life)+"/"+strings.TrimSpace(line))
		}
	}
	return all
}

// logs are the plugin's words.
func (m *machine) logs() string {
	text, _ := os.ReadFile(m.dir + "/log")
	return string(text)
}
