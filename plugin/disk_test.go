package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	wire "github.com/docker/go-plugins-helpers/ipam"
	"golang.org/x/sys/unix"

	"underlay/driver"
)

// A damaged state stops no daemon from booting. It is set aside, said in the log
// and with each network that was in it, and new networks work.
func TestDamagedState(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	a := b.run(id, pool, 3)
	b.stop()
	path := filepath.Join(b.config.State, StateFile)
	garbage := strings.Repeat("garbage ", 4096)
	if err := os.WriteFile(path, []byte(garbage), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	b.config.Log.SetOutput(&log)
	for range 2 {
		b.start()
		must[object](b, "NetworkDriver.GetCapabilities", nil)
		must[object](b, "IpamDriver.GetCapabilities", nil)
		_, err := b.call("NetworkDriver.CreateEndpoint", object{
			"NetworkID": id, "EndpointID": dockerID(4), "Interface": object{"Address": a}, "Options": object{},
		})
		if err == nil || !strings.Contains(err.Error(), path+".damaged-") || !strings.Contains(err.Error(), "docker network rm") {
			t.Errorf("a lost network: %v", err)
		}
		_, err = b.call("IpamDriver.RequestAddress", object{"PoolID": pool})
		if err == nil || !strings.Contains(err.Error(), path+".damaged-") {
			t.Errorf("a lost pool: %v", err)
		}
		_, err = b.call("IpamDriver.RequestAddress", object{"PoolID": pool, "Address": "192.168.50.7"})
		if err == nil || !strings.Contains(err.Error(), path+".damaged-") {
			t.Errorf("a lost pool, --ip: %v", err)
		}
		b.stop()
	}
	if !strings.Contains(log.String(), "level=error") || !strings.Contains(log.String(), path+".damaged-") {
		t.Errorf("log: %s", &log)
	}
	b.start()
	found, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(found) != 1 {
		t.Fatalf("set aside: %q, %v", found, err)
	}
	if got, err := os.ReadFile(found[0]); err != nil || string(got) != garbage {
		t.Errorf("the damaged file was written to, %v", err)
	}
	// As docker network rm and create, and a new container.
	must[object](b, "IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": "192.168.50.1"})
	must[object](b, "IpamDriver.ReleasePool", object{"PoolID": pool})
	must[object](b, "NetworkDriver.DeleteNetwork", object{"NetworkID": id})
	id, pool = b.lan(2, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.end(id, pool, 5, b.run(id, pool, 5))
}

// What keeps the state from being loaded may be mended while the plugin runs.
func TestStateIsLoadedLater(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.stop()
	if err := os.Chmod(b.config.State, 0o777); err != nil {
		t.Fatal(err)
	}
	b.start()
	must[object](b, "IpamDriver.GetCapabilities", nil)
	for range 3 {
		begun := time.Now()
		_, err := b.call("IpamDriver.RequestAddress", object{"PoolID": pool})
		if err == nil || !strings.Contains(err.Error(), "chmod go-w") || !strings.Contains(err.Error(), "tries again") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("the error took %v", took)
		}
	}
	b.restart() // and can be stopped meanwhile
	if _, err := b.call("IpamDriver.RequestAddress", object{"PoolID": pool}); err == nil {
		t.Error("loaded all the same")
	}
	if err := os.Chmod(b.config.State, 0o700); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(2*loadAgain + 5*time.Second); ; {
		_, err := b.call("IpamDriver.RequestAddress", object{"PoolID": pool})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.end(id, pool, 5, b.run(id, pool, 5))
}

// apart runs a test in a process of its own, with mounts of its own.
func apart(t *testing.T) (here bool) {
	t.Helper()
	if os.Getenv("UNDERLAY_TEST_APART") != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "UNDERLAY_TEST_APART=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) {
		t.Skip("needs root")
	}
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// With its state on a disk that has run full, calls fail with the cause, and who
// has which address stays what the file says. With room again, they succeed,
// without a restart.
func TestFullDisk(t *testing.T) {
	if !apart(t) {
		return
	}
	b := newBench(t)
	b.stop()
	if err := unix.Mount("disk", b.config.State, "tmpfs", 0, "size=1m"); err != nil {
		b.start()
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(b.config.State, unix.MNT_DETACH) })
	b.start()
	id, pool := b.lan(1, "10.1.0.0/16", "10.1.0.1", object{"parent": "eth0"})
	held := b.run(id, pool, 3)
	ballast := filepath.Join(b.config.State, "ballast")
	file, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for err == nil {
		_, err = file.Write(make([]byte, 512))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	// The file has free pages; some of them already have their room on the disk.
	made, failed := 0, 0
	for n := 100; failed < 50; n++ {
		if n > 2000 {
			t.Fatal("the disk was not full")
		}
		var a wire.RequestAddressResponse
		answer, err := b.call("IpamDriver.RequestAddress", object{"PoolID": pool})
		if err == nil {
			if err := json.Unmarshal(answer, &a); err != nil {
				t.Fatal(err)
			}
			_, err = b.call("NetworkDriver.CreateEndpoint", object{
				"NetworkID": id, "EndpointID": dockerID(n), "Interface": object{"Address": a.Address}, "Options": object{},
			})
		}
		if err == nil {
			made++
			continue
		}
		failed++
		if !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "make room") {
			t.Errorf("error %v", err)
		}
	}
	t.Logf("%d containers made, %d not", made, failed)
	before := ends(t, b)
	b.restart()
	if after := ends(t, b); after != before {
		t.Errorf("before the restart %s\nafter %s", before, after)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	file.Close()
	b.end(id, pool, 3, held)
	for n := range 50 {
		b.run(id, pool, 10+n)
	}
}

// While nothing can be written, each call fails with the cause, at once, and
// leaves nothing in the kernel or the state. When it can again, the same call
// succeeds.
func TestNoWrite(t *testing.T) {
	if !apart(t) {
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(bytes uint64) {
		t.Helper()
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}); err != nil {
			t.Fatal(err)
		}
	}
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	held := b.run(id, pool, 3)
	b.lan(2, "192.168.80.0/24", "192.168.80.1", object{"parent": "eth0"})
	p := must[wire.RequestPoolResponse](b, "IpamDriver.RequestPool", object{"AddressSpace": "underlay", "Pool": "192.168.70.0/24"})
	must[object](b, "IpamDriver.RequestAddress", object{"PoolID": p.PoolID, "Address": "192.168.70.1", "Options": object{typeKey: gatewayValue}})
	a := must[wire.RequestAddressResponse](b, "IpamDriver.RequestAddress", object{"PoolID": pool})
	known := func() string {
		s := must[State](b, "Underlay.State", nil)
		text, err := json.MarshalIndent(object{"networks": s.Networks, "endpoints": s.Endpoints, "pools": s.Pools}, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	bare, _, _ := strings.Cut(held, "/")
	for _, c := range []struct {
		name    string
		request object
		unmakes bool // whose links go, come what may
	}{
		{"IpamDriver.RequestPool", object{"AddressSpace": "underlay", "Pool": "192.168.60.0/24"}, false},
		{"IpamDriver.RequestAddress", object{"PoolID": pool, "Options": nil}, false},
		{"IpamDriver.RequestAddress", object{"PoolID": pool, "Address": "192.168.50.250", "Options": nil}, false},
		{"NetworkDriver.CreateEndpoint", object{
			"NetworkID": id, "EndpointID": dockerID(9), "Interface": object{"Address": a.Address}, "Options": object{}}, false},
		{"NetworkDriver.CreateNetwork", createNetwork(dockerID(8), "192.168.70.0/24", "192.168.70.1", object{"parent": "eth0.70"}), false},
		{"NetworkDriver.DeleteEndpoint", object{"NetworkID": id, "EndpointID": dockerID(3)}, true},
		{"IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": bare}, false},
		{"NetworkDriver.DeleteNetwork", object{"NetworkID": dockerID(2)}, false},
		{"IpamDriver.ReleasePool", object{"PoolID": p.PoolID}, false},
	} {
		before, kernel := known(), b.kernel.String()
		limit(0)
		begun := time.Now()
		_, err := b.call(c.name, c.request)
		took := time.Since(begun)
		limit(unix.RLIM_INFINITY)
		if err == nil || !strings.Contains(err.Error(), "file too large") {
			t.Errorf("%s %v: %v", c.name, c.request, err)
		}
		if took > time.Second {
			t.Errorf("%s: the error took %v", c.name, took)
		}
		if after := known(); after != before {
			t.Errorf("%s %v: before %s\nafter %s", c.name, c.request, before, after)
		}
		if after := b.kernel.String(); after != kernel && !c.unmakes {
			t.Errorf("%s %v: kernel before\n%s\nafter\n%s", c.name, c.request, kernel, after)
		}
		if _, err := b.call(c.name, c.request); err != nil {
			t.Errorf("%s %v, with the disk well again: %v", c.name, c.request, err)
		}
	}
	before := ends(t, b)
	b.restart()
	if after := ends(t, b); after != before {
		t.Errorf("before the restart %s\nafter %s", before, after)
	}
}

// ends is who has which address.
func ends(t *testing.T, b *bench) string {
	s := must[State](b, "Underlay.State", nil)
	who := object{}
	for _, p := range s.Pools {
		for _, a := range p.Addresses {
			who[a.Address.String()] = a.Kind
		}
	}
	for _, e := range s.Endpoints {
		who[driver.Short(e.ID)] = e.IPv4
	}
	text, err := json.Marshal(who)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
