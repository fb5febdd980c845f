package plugin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/docker/go-plugins-helpers/ipam"
	"github.com/sirupsen/logrus"
)

// ports is what dockerd sends for a container that publishes n ports.
func ports(n int) string {
	var b strings.Builder
	b.WriteString(`"com.docker.network.portmap":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"Proto":6,"IP":"","Port":%d,"HostIP":"0.0.0.0","HostPort":%d,"HostPortEnd":%d}`, i, i, i)
	}
	b.WriteString(`]`)
	return b.String()
}

func TestBodies(t *testing.T) {
	long := strings.Repeat("x", maxBody)
	deep := func(n int) string {
		return `{"New":` + strings.Repeat(`{"a":`, n) + `1` + strings.Repeat(`}`, n) + `}`
	}
	tests := []struct {
		name, body string
		status     int // 0: understood
		want       string
	}{
		{"plain", `{"PoolID":"p","Address":"10.0.0.1","Options":{"a":"b"}}`, 0, ""},
		{"white space", " \n{ \"PoolID\" :\t\"p\" }\r\n ", 0, ""},
		{"no value", `{"PoolID":null,"Options":null}`, 0, ""},
		{"unknown keys", `{"PoolID":"p","New":{"in":["Docker",30,true,null]}}`, 0, ""},
		{"escapes", `{"PoolID":"\u00e9\ud83d\ude00<&>\u2028"}`, 0, ""},
		{"as deep as may be", deep(maxDepth - 2), 0, ""},

		{"empty", "", 400, "without a body"},
		{"white space alone", " \n", 400, "without a body"},
		{"cut off", `{"PoolID":"p"`, 400, "unexpected EOF"},
		{"cut off in a string", `{"PoolID":"p`, 400, "unexpected EOF"},
		{"cut off before a value", `{"PoolID":`, 400, "unexpected EOF"},
		{"null", "null", 400, "no JSON object"},
		{"a list", "[]", 400, "no JSON object"},
		{"a number", "7", 400, "no JSON object"},
		{"a text", `"PoolID"`, 400, "no JSON object"},
		{"no JSON", "PoolID=p", 400, "invalid character"},
		{"a wrong type", `{"PoolID":7}`, 400, "number"},
		{"an object for a text", `{"PoolID":{}}`, 400, "object"},
		{"a number in a map of texts", `{"Options":{"a":1}}`, 400, "number"},
		{"a huge number", `{"PoolID":1e999999999}`, 400, "number"},
		{"a long number", `{"PoolID":` + strings.Repeat("9", 100000) + `}`, 400, "number"},
		{"a comma too many", `{"PoolID":"p",}`, 400, "invalid character"},
		{"no comma", `{"PoolID":"p" "Address":"a"}`, 400, "invalid character"},
		{"a bare key", `{PoolID:"p"}`, 400, "invalid character"},
		{"crossed brackets", `{"Options":{"a":"b"]}`, 400, "invalid character"},
		{"a key twice", `{"PoolID":"p","PoolID":"q"}`, 400, `"PoolID" is there twice`},
		{"a key twice, escaped", `{"PoolID":"p","Pool\u0049D":"q"}`, 400, `"PoolID" is there twice`},
		{"an option twice", `{"Options":{"a":"b","a":"c"}}`, 400, `"a" is there twice`},
		{"a second value", `{"PoolID":"p"}{"PoolID":"q"}`, 400, "more follows"},
		{"garbage after it", `{"PoolID":"p"}]`, 400, "more follows"},
		{"no UTF-8", "{\"PoolID\":\"\xff\xfe\"}", 400, "no text"},
		{"no UTF-8 in a key", "{\"Options\":{\"a\xc0\":\"b\"}}", 400, "no text"},
		{"half a surrogate", `{"PoolID":"\ud800"}`, 400, "no text"},
		{"a raw NUL", "{\"PoolID\":\"a\x00b\"}", 400, "invalid character"},
		{"an escaped NUL", `{"PoolID":"a\u0000b"}`, 400, "no text"},
		{"a NUL after it", "{\"PoolID\":\"a\"}\x00", 400, "more follows"},
		{"a newline in a text", "{\"PoolID\":\"a\nb\"}", 400, "invalid character"},
		{"too deep", deep(maxDepth), 400, "more than 16 deep"},
		{"far too deep", `{"Options":` + strings.Repeat("[", maxBody/2), 400, "more than 16 deep"},
		{"a long text", `{"PoolID":"` + long + `"}`, 413, "over 1048576 bytes"},
		{"a long key", `{"` + long + `":1}`, 413, "over 1048576 bytes"},
		{"long white space", `{"PoolID":"p"}` + strings.Repeat(" ", maxBody), 413, "over 1048576 bytes"},
		{"many values", `{"Options":{"a":[` + strings.Repeat("1,", maxBody/2) + `1]}}`, 413, "over 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var req wire.RequestAddressRequest
			err := decode(strings.NewReader(tt.body), &req)
			switch {
			case tt.status == 0 && err != nil:
				t.Error(err)
			case tt.status == 0:
			case err == nil || status(err) != tt.status || !strings.Contains(err.Error(), tt.want):
				t.Errorf("status %d, %v; want %d with %q", status(err), err, tt.status, tt.want)
			case len(err.Error()) > 200 || strings.Contains(err.Error(), "\n"):
				t.Errorf("the error is not a line: %v", err)
			}
		})
	}
}

// A container with all its ports published is no attack, and leaves less in
// memory than it sends.
func TestAllPorts(t *testing.T) {
	of := func(n int) string {
		return `{"NetworkID":"n","Options":{"before":"1",` + ports(n) + `,"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":1}],"after":"2"},"EndpointID":"e"}`
	}
	body := of(65535)
	if len(body) < 5<<20 {
		t.Fatalf("it has only %d bytes", len(body))
	}
	var req struct {
		NetworkID, EndpointID string
		Options               map[string]any
	}
	if err := decode(strings.NewReader(body), &req); err != nil {
		t.Fatal(err)
	}
	if req.NetworkID != "n" || req.EndpointID != "e" || req.Options["before"] != "1" || req.Options["after"] != "2" || len(req.Options) != 4 {
		t.Errorf("%+v", req)
	}
	body = of(100)
	if err := decode(strings.NewReader(body), new(none)); err != nil {
		t.Errorf("a call that wants nothing: %v", err)
	}
	for name, bad := range map[string]string{
		"malformed":        strings.Replace(body, `{"Proto":6,"IP":"","Port":9,`, `{"Proto":6,,"IP":"","Port":9,`, 1),
		"too deep":         strings.Replace(body, `"HostIP":"0.0.0.0"`, `"HostIP":`+strings.Repeat("[", 20)+strings.Repeat("]", 20), 1),
		"long beside them": strings.Replace(body, `"after":"2"`, `"after":"`+strings.Repeat("2", maxBody)+`"`, 1),
		"far too many":     `{"Options":{"com.docker.network.portmap":[` + strings.Repeat(`"`+strings.Repeat("x", 1000)+`",`, 10000) + `1]}}`,
	} {
		if err := decode(strings.NewReader(bad), &req); err == nil || status(err)/100 != 4 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMethodsAndPaths(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/NetworkDriver.Join", 405},
		{"PUT", "/IpamDriver.RequestPool", 405},
		{"HEAD", "/Plugin.Activate", 405},
		{"OPTIONS", "/IpamDriver.GetCapabilities", 405},
		{"J\u00d6IN", "/NetworkDriver.Join", 405},
		{"POST", "/", 404},
		{"POST", "/NetworkDriver.Nonsense", 404},
		{"POST", "/NetworkDriver.join", 404},
		{"POST", "/NetworkDriver.Join/", 404},
		{"POST", "//NetworkDriver.Join", 404},
		{"POST", "/x/../NetworkDriver.Join", 404},
		{"POST", "/NetworkDriver%2eJoin\x00", 404},
		{"POST", "/" + strings.Repeat("x", 9000), 404},
		{"POST", "/Plugin.Activate", 200},
		{"POST", "/NetworkDriver.Join?x=y", 400}, // has no body
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		path, query, _ := strings.Cut(tt.path, "?")
		r.Method, r.URL.Path, r.URL.RawQuery = tt.method, path, query
		b.plugin.server.ServeHTTP(w, r)
		body := w.Body.String()
		if w.Code != tt.status || w.Code != 200 && (!strings.HasPrefix(body, `{"Err":"`) || len(body) > 200) {
			t.Errorf("%s %.40s: %d %s; want %d", tt.method, tt.path, w.Code, body, tt.status)
		}
	}
}

// counts are those of goroutines and descriptors that are there once what ends
// has ended.
func counts(t *testing.T, most [2]int) (n [2]int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n = [2]int{runtime.NumGoroutine(), len(fds)}
		if most == [2]int{} || n[0] <= most[0] && n[1] <= most[1] || time.Now().After(end) {
			return n
		}
	}
}

// flat says that what was done in between left nothing.
func flat(t *testing.T, before [2]int) {
	t.Helper()
	if after := counts(t, before); after[0] > before[0] || after[1] > before[1] {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d descriptors, before %d and %d\n%.8000s", after[0], after[1], before[0], before[1], stacks[:runtime.Stack(stacks, true)])
	}
}

// quick is a server with one call and time-outs that a test can wait for.
type quick struct {
	socket string
	server *server
	door   *door
	client *http.Client
	begun  chan struct{} // one call has begun
	end    chan struct{} // a call that says hold ends
}

func newQuick(t *testing.T, most int, patience time.Duration) *quick {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	q := &quick{socket: filepath.Join(t.TempDir(), "s"), begun: make(chan struct{}, 10000), end: make(chan struct{})}
	q.server = newServer(log, func(context.Context) error { return nil })
	at(q.server, "/Say", func(_ context.Context, req struct{ Word string }) (res struct{ Word string }, _ error) {
		q.begun <- struct{}{}
		if res.Word = req.Word; req.Word == "hold" {
			<-q.end
		}
		return res, nil
	})
	h := &q.server.http
	h.ReadHeaderTimeout, h.ReadTimeout, h.WriteTimeout = patience, patience, 2*patience
	l, err := listen(q.socket)
	if err != nil {
		t.Fatal(err)
	}
	q.door, l.most = l, most
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	q.client = Client(q.socket)
	t.Cleanup(func() {
		q.client.CloseIdleConnections()
		h.Close()
		<-served
	})
	return q
}

func (q *quick) dial(t *testing.T, send string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", q.socket)
	if err == nil {
		_, err = io.WriteString(c, send)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (q *quick) says(t *testing.T) {
	t.Helper()
	start := time.Now()
	var res struct{ Word string }
	if err := Call(t.Context(), q.client, "/Say", object{"Word": "hello"}, &res); err != nil || res.Word != "hello" {
		t.Errorf("%v, %+v", err, res)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a call took %v", took)
	}
}

const head = "POST /Say HTTP/1.1\r\nHost: underlay\r\nContent-Type: application/json\r\n"

// Whoever sends slowly, or nothing, is heard for the deadline and no longer.
func TestSlowClients(t *testing.T) {
	q := newQuick(t, maxVisits, 500*time.Millisecond)
	q.says(t)
	before := counts(t, [2]int{})
	for name, tt := range map[string]struct{ send, want string }{
		"nothing":             {"", ""},
		"half a header":       {"POST /Say HT", "400 "},
		"headers for ever":    {head + "X-A: b\r\n", ""},
		"a body that stops":   {head + "Content-Length: 100\r\n\r\n{\"Word\":", "408 Request Timeout"},
		"a body in no hurry":  {head + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "408 Request Timeout"},
		"a header too long":   {head + "X-A: " + strings.Repeat("b", 2*maxHeader), "431 "},
		"a bad length":        {head + "Content-Length: -1\r\n\r\n", "400 "},
		"two lengths":         {head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "400 "},
		"both ways of length": {head + "Content-Length: 2\r\nTransfer-Encoding: gzip\r\n\r\n{}", "501 "},
		"another protocol":    {"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", "400 "},
	} {
		t.Run(name, func(t *testing.T) {
			c := q.dial(t, tt.send)
			defer c.Close()
			start := time.Now()
			c.SetReadDeadline(start.Add(5 * time.Second))
			answer, err := io.ReadAll(c)
			if err != nil {

				t.Fatalf("after %v: %v", time.Since(start), err)
			}
			first, _, _ := strings.Cut(string(answer), "\r\n")
			if !strings.Contains(first, tt.want) || tt.want == "" && first != "" {
				t.Errorf("answer %q, want %q", first, tt.want)
			}
			if tt.want[:min(3, len(tt.want))] == "408" && !strings.Contains(string(answer), `{"Err":"the call's body did not come`) {
				t.Errorf("answer %q", answer)
			}
		})
	}
	q.says(t)
	q.client.CloseIdleConnections()
	flat(t, before)
}

// A client that shuts its half of the connection after the call gets its answer.
func TestHalfOpenClient(t *testing.T) {
	q := newQuick(t, maxVisits, time.Minute)
	c := q.dial(t, head+"Content-Length: 16\r\n\r\n"+`{"Word":"hello"}`)
	defer c.Close()
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if answer, err := io.ReadAll(c); err != nil || !strings.HasSuffix(strings.TrimSpace(string(answer)), `{"Word":"hello"}`) {
		t.Errorf("%v, %q", err, answer)
	}
}

// A client that reads no answer holds nothing for long.
func TestAnswerNobodyReads(t *testing.T) {
	q := newQuick(t, maxVisits, 200*time.Millisecond)
	q.says(t)
	before := counts(t, [2]int{})
	word := strings.Repeat("w", maxBody-100)
	c := q.dial(t, head+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(word)+11)+`{"Word":"`+word+`"}`)
	defer c.Close()
	<-q.begun
	time.Sleep(600 * time.Millisecond)
	q.says(t)
	q.client.CloseIdleConnections()
	before[1]++ // c itself
	flat(t, before)
}

// Thousands of connections that carry no call make room for those that do;
// descriptors and memory are bounded.
func TestIdleConnections(t *testing.T) {
	q := newQuick(t, 100, time.Minute)
	q.says(t)
	before := counts(t, [2]int{})
	held := make(chan error)
	go func() {
		held <- Call(t.Context(), q.client, "/Say", object{"Word": "hold"}, nil)
	}()
	<-q.begun // the first
	<-q.begun
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 2000 {
		switch i % 4 {
		case 0:
			conns = append(conns, q.dial(t, ""))
		case 1:
			conns = append(conns, q.dial(t, head))
		case 2:
			conns = append(conns, q.dial(t, head+"Content-Length: 9\r\n\r\n{"))
		case 3:
			q.says(t)
			<-q.begun
		}
	}
	q.door.mu.Lock()
	open := len(q.door.open)
	q.door.mu.Unlock()
	if open > 100 {
		t.Errorf("%d connections are open", open)
	}
	close(q.end)
	if err := <-held; err != nil {
		t.Errorf("the call under way was cut off: %v", err)
	}
	for _, c := range conns {
		c.Close()
	}
	conns = nil
	q.client.CloseIdleConnections()
	flat(t, before)
}

// While every connection carries a call, the next one waits.
func TestFullHouse(t *testing.T) {
	q := newQuick(t, 4, time.Minute)
	held := make(chan error, 5)
	for range 5 {
		go func() { held <- Call(t.Context(), q.client, "/Say", object{"Word": "hold"}, nil) }()
	}
	for range 4 {
		<-q.begun
	}
	select {
	case <-q.begun:
		t.Error("a fifth call began")
	case <-time.After(200 * time.Millisecond):
	}
	close(q.end)
	for range 5 {
		if err := <-held; err != nil {
			t.Error(err)
		}
	}
}

// A client that leaves changes nothing: what it asked for is done, and the
// repeat finds it done.
func TestClientsLeave(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.end(id, pool, 2, b.run(id, pool, 2))
	b.client.CloseIdleConnections()
	before := counts(t, [2]int{})
	for n := range 50 {
		body := fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":"192.168.50.%d/24"}}`, id, dockerID(n+10), n+10)
		c, err := net.Dial("unix", b.config.Socket)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /NetworkDriver.CreateEndpoint HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		c.Close()
	}
	for n := range 50 {
		ids := object{"NetworkID": id, "EndpointID": dockerID(n + 10)}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := b.call("NetworkDriver.Join", ids); err == nil {
				break
			} else if time.Now().After(end) {
				t.Fatalf("endpoint %d: %v", n, err)
			}
		}
		must[object](b, "NetworkDriver.Leave", ids)
		must[object](b, "NetworkDriver.DeleteEndpoint", ids)
	}
	b.client.CloseIdleConnections()
	flat(t, before)
}

// Hundreds of containers start and end at the same time.
func TestLoad(t *testing.T) {
	const containers = 500
	b := newBench(t)
	id, pool := b.lan(1, "10.50.0.0/16", "10.50.0.1", object{"parent": "eth0"})
	b.end(id, pool, 2, b.run(id, pool, 2))
	b.client.CloseIdleConnections()
	empty := must[State](b, "Underlay.State", nil)
	b.client.CloseIdleConnections()
	before := counts(t, [2]int{})

	var mu sync.Mutex
	holders := map[string]int{}
	var all sync.WaitGroup
	start := time.Now()
	for n := range containers {
		all.Go(func() {
			ids := object{"NetworkID": id, "EndpointID": dockerID(n + 10), "SandboxKey": fmt.Sprintf("/var/run/docker/netns/%012x", n)}
			for range 2 { // a restart
				var a wire.RequestAddressResponse
				if err := Call(t.Context(), b.client, "/IpamDriver.RequestAddress", object{"PoolID": pool}, &a); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other, ok := holders[a.Address]; ok {
					t.Errorf("containers %d and %d both have %s", other, n, a.Address)
				}
				holders[a.Address] = n
				mu.Unlock()
				bare, _, _ := strings.Cut(a.Address, "/")
				for _, step := range []struct {
					call string
					req  object
				}{
					{"/NetworkDriver.CreateEndpoint", object{"NetworkID": id, "EndpointID": ids["EndpointID"], "Interface": object{"Address": a.Address}}},
					{"/NetworkDriver.Join", ids},
					{"/NetworkDriver.EndpointOperInfo", ids},
					{"/NetworkDriver.Leave", ids},
					{"/NetworkDriver.DeleteEndpoint", ids},
					{"", nil},
					{"/IpamDriver.ReleaseAddress", object{"PoolID": pool, "Address": bare}},
				} {
					if step.call == "" { // from its release on it may be another's
						mu.Lock()
						delete(holders, a.Address)
						mu.Unlock()
						continue
					}
					if err := Call(t.Context(), b.client, step.call, step.req, nil); err != nil {
						t.Errorf("%s: %v", step.call, err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d containers started and ended twice in %v", containers, time.Since(start).Round(time.Millisecond))
	after := must[State](b, "Underlay.State", nil)
	if len(after.Endpoints) != 0 || len(after.Pools) != 1 || len(after.Pools[0].Addresses) != len(empty.Pools[0].Addresses) {
		t.Errorf("left: %d endpoints, pools %+v", len(after.Endpoints), after.Pools)
	}
	b.client.CloseIdleConnections()
	flat(t, before)
}

// What is malformed does nothing and leaves nothing, over the real socket.
func TestHostileBodiesOverTheSocket(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.run(id, pool, 2)
	state, picture := must[object](b, "Underlay.State", nil), b.kernel.String()
	b.client.CloseIdleConnections()
	before := counts(t, [2]int{})
	bodies := []string{
		"", "null", "[]", "{", "{}garbage", "\xff", "{\"NetworkID\":\"\x00\"}",
		`{"NetworkID":"a","NetworkID":"b"}`, `{"PoolID":"a","PoolID":"b"}`,
		strings.Repeat("[", 100000), strings.Repeat(`{"a":`, 1000), `{"Options":-}`,
		`{"NetworkID":"` + strings.Repeat("x", 2*maxBody) + `"}`,
	}
	var all sync.WaitGroup
	few := make(chan struct{}, 8) // a busy machine takes its time for the long ones
	for call := range b.plugin.server.calls {
		all.Go(func() {
			few <- struct{}{}
			defer func() { <-few }()
			for _, body := range bodies {
				res, err := b.client.Post("http://underlay"+call, "application/json", bytes.NewReader([]byte(body)))
				if err != nil {
					t.Errorf("%s %.40q: %v", call, body, err)
					continue
				}
				answer, _ := io.ReadAll(res.Body)
				res.Body.Close()
				takesNothing := body == "" || body == "null"
				if res.StatusCode/100 == 4 && bytes.HasPrefix(answer, []byte(`{"Err":"`)) {
					continue
				}
				if !takesNothing || res.StatusCode != 200 {
					t.Errorf("%s %.40q: %d %.200s", call, body, res.StatusCode, answer)
				}
			}
		})
	}
	all.Wait()
	b.client.CloseIdleConnections()
	flat(t, before)
	if now := must[object](b, "Underlay.State", nil); fmt.Sprint(now) != fmt.Sprint(state) {
		t.Errorf("the state changed from\n%v\nto\n%v", state, now)
	}
	if now := b.kernel.String(); now != picture {
		t.Errorf("the kernel changed from\n%s\nto\n%s", picture, now)
	}
}

// A client that is slow to say what it wants holds up no end of the plugin.
func TestEndWithSlowClient(t *testing.T) {
	b := newBench(t)
	must[object](b, "NetworkDriver.GetCapabilities", nil)
	c, err := net.Dial("unix", b.config.Socket)
	if err == nil {
		_, err = io.WriteString(c, head)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	b.stop()
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("the end took %v", took)
	}
	b.start()
}

// Paths of namespaces are dockerd's, or refused, before anything is done.
func TestSandboxKeys(t *testing.T) {
	b := newBench(t)
	id, pool := b.lan(1, "192.168.50.0/24", "192.168.50.1", object{"parent": "eth0"})
	b.run(id, pool, 2)
	picture := b.kernel.String()
	for key, ok := range map[string]bool{
		"":                                                   true,
		"/var/run/docker/netns/0123456789ab":                 true,
		"/run/docker/netns/0123456789ab":                     true,
		"/proc/1/ns/net":                                     false,
		"/var/run/docker/netns/../../../etc/sh":              false,
		"/var/run/docker/netns/":                             false,
		"/var/run/docker/netns":                              false,
		"/var/run/docker/netns/x/y":                          false,
		"/var/run/docker/netns/;reboot":                      false,
		"/var/run/netns/0123456789ab":                        false,
		"netns/0123456789ab":                                 false,
		"/var/run/docker/netns/0123456789ab/":                false,
		"/var/run/docker/netns/" + strings.Repeat("a", 5000): false,
	} {
		body := fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"SandboxKey":%q}`, id, dockerID(2), key)
		if status, answer := b.post("NetworkDriver.Join", body); ok != (status == 200) || !ok && status != 400 {
			t.Errorf("%.60q: %d %.200s", key, status, answer)
		}
	}
	if now := b.kernel.String(); now != picture {
		t.Errorf("the kernel changed from\n%s\nto\n%s", picture, now)
	}
}
