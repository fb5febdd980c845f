package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"

	"underlay/ipam"
	"underlay/netlinkutil/fake"
)

// bench is a plugin behind its real socket, with a fake kernel that has the
// NIC eth0, and a client. The state outlives a restart.
type bench struct {
	t      testing.TB
	kernel *fake.Kernel
	config Config
	plugin *Plugin
	client *http.Client
	served chan error
}

func newBench(t testing.TB) *bench {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	dir := t.TempDir()
	b := &bench{t: t, kernel: fake.New()}
	b.kernel.AddNIC("eth0")
	pools, err := ipam.ParseDefaultPools("base=10.210.0.0/16,size=24;base=fd00:210::/48,size=64")
	if err != nil {
		t.Fatal(err)
	}
	b.config = Config{
		Socket: filepath.Join(dir, "underlay.sock"), State: filepath.Join(dir, "state"),
		DefaultPools: pools, Version: "test", Log: log, Kernel: b.kernel,
	}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *bench) start() {
	b.t.Helper()
	var err error
	if b.plugin, err = Listen(b.config); err != nil {
		b.t.Fatal(err)
	}
	b.served = make(chan error, 1)
	go func(p *Plugin, served chan<- error) { served <- p.Serve() }(b.plugin, b.served)
	b.client = Client(b.config.Socket)
}

func (b *bench) stop() {
	b.t.Helper()
	if err := b.plugin.Close(); err != nil {
		b.t.Error(err)
	}
	if err := <-b.served; err != nil {
		b.t.Error(err)
	}
	b.client.CloseIdleConnections()
}

func (b *bench) restart() {
	b.t.Helper()
	b.stop()
	b.start()
}

// call makes a call as dockerd does and returns the answer's body, or the
// error in it.
func (b *bench) call(name string, request any) (json.RawMessage, error) {
	var answer json.RawMessage
	err := Call(b.t.Context(), b.client, "/"+name, request, &answer)
	return answer, err
}

// post sends a body as it is, and returns status and body of the answer.
func (b *bench) post(name, body string) (int, string) {
	b.t.Helper()
	res, err := b.client.Post("http://underlay/"+name, "application/json", bytes.NewReader([]byte(body)))
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

type object = map[string]any

// must makes a call that must succeed.
func must[Res any](b *bench, name string, request any) (res Res) {
	b.t.Helper()
	answer, err := b.call(name, request)
	if err == nil {
		err = json.Unmarshal(answer, &res)
	}
	if err != nil {
		b.t.Fatalf("%s %v: %v", name, request, err)
	}
	return res
}

// dockerID is an ID of 64 hex digits that differs in those that are shown.
func dockerID(n int) string { return fmt.Sprintf("%012x%052x", n, n) }
