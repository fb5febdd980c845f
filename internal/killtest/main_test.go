//go:build faults

package killtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"underlay/internal/fault"
	"underlay/plugin"
)

// What this program is started as: the tests, the tests in namespaces of their
// own, or with the folder of a machine, the plugin.
const (
	inside = "UNDERLAY_INSIDE"
	serves = "UNDERLAY_SERVES"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(serves) != "":
		if err := serve(os.Getenv(serves)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case os.Getenv(inside) != "":
		if err := furnish(); err != nil {
			fmt.Println("the tests' mount namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	default:
		os.Exit(enter())
	}
}

// enter runs the tests in mount and network namespaces of their own, and where
// an ordinary user does, in a user namespace.
func enter() int {
	runtime.LockOSThread() // Pdeathsig is about the thread, not the process
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), inside+"=1")
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if os.Geteuid() != 0 {
		self.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		self.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		self.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	err := self.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Println("no namespaces for the tests:", err)
	return 1
}

// furnish gives the tests a /run of their own.
func furnish() error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("run", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return errors.Join(os.Mkdir("/run/netns", 0o755), os.MkdirAll(sandboxes, 0o755))
}

// Of a machine's folder.
const (
	socketName = "underlay.sock"
	stateName  = "state"
)

// sandboxes is where dockerd has containers' network namespaces.
const sandboxes = "/var/run/docker/netns"

// grace is the plugin's once it has been killed. It outlasts what dockerd may do
// between two calls that belong together. Before, it is so long that nothing is
// freed at another point each time.
const (
	grace  = 2 * time.Second
	killed = "UNDERLAY_KILLED" // set once it has been
)

// serve is the plugin.
func serve(dir string) error {
	points, err := fault.New()
	if err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(os.Stdout)
	log.SetLevel(logrus.DebugLevel)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, TimestampFormat: "05.000", FullTimestamp: true})
	config := plugin.Config{
		Socket: filepath.Join(dir, socketName), State: filepath.Join(dir, stateName),
		Log: log, Version: "killtest", Sandboxes: plugin.Sandboxes{Dir: sandboxes, At: sandboxes, Enter: true},
	}
	config.Faults = points
	if os.Getenv(killed) != "" {
		config.Grace = grace
	}
	p, err := plugin.Listen(config)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	served := make(chan error, 1)
	go func() { served <- p.Serve() }()
	select {
	case <-stop:
		return p.Close()
	case err := <-served:
		return err
	}
}
