//go:build browser

package uitest

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long the browser may take for anything.
const patience = 20 * time.Second

type object = map[string]any

// chromium is a browser, told what to do by the DevTools protocol over a pair of
// pipes: messages of JSON, each with a NUL behind it.
type chromium struct {
	cmd *exec.Cmd
	to  *os.File

	mu      sync.Mutex
	last    int
	answers map[int]chan answer
	pages   map[string]*tab // by session
	gone    error
}

type answer struct {
	result json.RawMessage
	err    error
}

// browse starts a browser with nothing in it, which ends with the test.
func browse(t *testing.T) *chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("these tests need Chromium: scripts/install-deps browser")
	}
	theirsIn, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, theirsOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &chromium{to: to, answers: map[int]chan answer{}, pages: map[string]*tab{}}
	c.cmd = exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage", "--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	c.cmd.ExtraFiles = []*os.File{theirsIn, theirsOut}
	var said bytes.Buffer
	c.cmd.Stderr = &said
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirsIn.Close()
	theirsOut.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		c.read(from)
	}()
	t.Cleanup(func() {
		_, _ = c.call("", "Browser.close", object{})
		to.Close()
		late := time.AfterFunc(patience, func() { _ = c.cmd.Process.Kill() })
		_ = c.cmd.Wait()
		late.Stop()
		from.Close()
		<-read
		if t.Failed() {
			t.Logf("chromium: %s", said.String())
		}
	})
	return c
}

// read takes messages until the browser ends.
func (c *chromium) read(from *os.File) {
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			c.mu.Lock()
			c.gone = fmt.Errorf("chromium has ended: %w", err)
			for _, a := range c.answers {
				a <- answer{err: c.gone}
			}
			clear(c.answers)
			c.mu.Unlock()
			return
		}
		var m struct {
			ID        int
			Result    json.RawMessage
			Error     *struct{ Message string }
			Method    string
			Params    json.RawMessage
			SessionID string
		}
		if json.Unmarshal(bytes.TrimRight(text, "\x00"), &m) != nil {
			continue
		}
		c.mu.Lock()
		if a := c.answers[m.ID]; a != nil {
			delete(c.answers, m.ID)
			var err error
			if m.Error != nil {
				err = errors.New(m.Error.Message)
			}
			a <- answer{m.Result, err}
		} else if p := c.pages[m.SessionID]; p != nil {
			switch m.Method {
			case "Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled":
				p.complaints = append(p.complaints, string(m.Params))
			}
		}
		c.mu.Unlock()
	}
}

func (c *chromium) call(session, method string, params object) (json.RawMessage, error) {
	c.mu.Lock()
	if c.gone != nil {
		defer c.mu.Unlock()
		return nil, c.gone
	}
	c.last++
	id, done := c.last, make(chan answer, 1)
	c.answers[id] = done
	m := object{"id": id, "method": method, "params": params}
	if session != "" {
		m["sessionId"] = session
	}
	text, err := json.Marshal(m)
	if err == nil {
		_, err = c.to.Write(append(text, 0))
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case a := <-done:
		return a.result, a.err
	case <-time.After(patience):
		return nil, fmt.Errorf("%s has not been answered within %v", method, patience)
	}
}

// tab is a page that is looked at.
type tab struct {
	t       *testing.T
	browser *chromium
	session string

	complaints []string // of the browser about the page; guarded by browser.mu
}

// open goes to a page. It is an error if the browser complains about it by the end of
// the test, as it does about anything that the page may not load.
func (c *chromium) open(t *testing.T, url string, width, height int) *tab {
	t.Helper()
	p := &tab{t: t, browser: c}
	get := func(method string, params object, into any) {
		t.Helper()
		text, err := c.call("", method, params)
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
	}
	var target struct{ TargetID string }
	get("Target.createTarget", object{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	get("Target.attachToTarget", object{"targetId": target.TargetID, "flatten": true}, &attached)
	p.session = attached.SessionID
	c.mu.Lock()
	c.pages[p.session] = p
	c.mu.Unlock()
	t.Cleanup(func() {
		_, _ = c.call("", "Target.closeTarget", object{"targetId": target.TargetID})
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pages, p.session)
		for _, words := range p.complaints {
			t.Errorf("the browser complains: %s", words)
		}
	})
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		p.do(domain+".enable", object{})
	}
	p.size(width, height)
	p.do("Page.navigate", object{"url": url})
	return p
}

func (p *tab) do(method string, params object) json.RawMessage {
	p.t.Helper()
	text, err := p.browser.call(p.session, method, params)
	if err != nil {
		p.t.Fatalf("%s %v: %v", method, params, err)
	}
	return text
}

func (p *tab) size(width, height int) {
	p.t.Helper()
	p.do("Emulation.setDeviceMetricsOverride", object{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false})
}

// prefer sets what a user has told the browser to prefer, such as
// prefers-color-scheme.
func (p *tab) prefer(features ...string) {
	p.t.Helper()
	all := []object{}
	for i := 0; i < len(features); i += 2 {
		all = append(all, object{"name": features[i], "value": features[i+1]})
	}
	p.do("Emulation.setEmulatedMedia", object{"features": all})
}

// ask evaluates a JavaScript expression.
func ask[T any](p *tab, expression string) (v T) {
	p.t.Helper()
	var res struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	text := p.do("Runtime.evaluate", object{"expression": expression, "awaitPromise": true, "returnByValue": true})
	if err := json.Unmarshal(text, &res); err != nil {
		p.t.Fatal(err)
	}
	if res.ExceptionDetails != nil {
		p.t.Fatalf("%s: %s", expression, res.ExceptionDetails)
	}
	if res.Result.Value != nil {
		if err := json.Unmarshal(res.Result.Value, &v); err != nil {
			p.t.Fatalf("%s: %s: %v", expression, res.Result.Value, err)
		}
	}
	return v
}

// await waits until an expression is true.
func (p *tab) await(expression string) {
	p.t.Helper()
	ok := ask[bool](p, fmt.Sprintf(`new Promise(done => {
		const end = Date.now() + %d
		const look = () => {
			let is = false
			try { is = Boolean(%s) } catch {}
			if (is || Date.now() > end) done(is)
			else setTimeout(look, 10)
		}
		look()
	})`, patience.Milliseconds()-1000, expression))
	if !ok {
		p.t.Fatalf("it has not come to %s: %s", expression, ask[string](p, "document.body?.innerText.slice(0, 2000) ?? location.href"))
	}
}

// forgive forgets the browser's complaints that have one of these words.
func (p *tab) forgive(words ...string) {
	p.browser.mu.Lock()
	defer p.browser.mu.Unlock()
	p.complaints = slices.DeleteFunc(p.complaints, func(c string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(c, w) })
	})
}

// keys presses keys, by their names.
func (p *tab) keys(names ...string) {
	p.t.Helper()
	for _, name := range names {
		modifiers := 0
		if rest, ok := strings.CutPrefix(name, "Ctrl+"); ok {
			name, modifiers = rest, 2
		}
		if rest, ok := strings.CutPrefix(name, "Shift+"); ok {
			name, modifiers = rest, 8
		}
		down := object{"type": "rawKeyDown", "key": name, "code": name, "modifiers": modifiers}
		codes := map[string]int{"Tab": 9, "Enter": 13, "Escape": 27, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
		if code, ok := codes[name]; ok {
			down["windowsVirtualKeyCode"] = code
			if name == "Enter" {
				down["type"], down["text"] = "keyDown", "\r"
			}
		} else {
			down["type"], down["text"] = "keyDown", name
		}
		p.do("Input.dispatchKeyEvent", down)
		p.do("Input.dispatchKeyEvent", object{"type": "keyUp", "key": name, "code": name, "modifiers": modifiers})
	}
}

// click clicks on the middle of the first element of a selector.
func (p *tab) click(selector string) {
	p.t.Helper()
	at := ask[[]float64](p, fmt.Sprintf(`(() => { const e = document.querySelector(%q); e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()`, selector))
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		p.do("Input.dispatchMouseEvent", object{"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1})
	}
}

// picture writes what the window shows as a PNG file.
func (p *tab) picture(file string) {
	p.t.Helper()
	p.do("Input.dispatchMouseEvent", object{"type": "mouseMoved", "x": 0, "y": 0})
	var res struct{ Data string }
	if err := json.Unmarshal(p.do("Page.captureScreenshot", object{"format": "png"}), &res); err != nil {
		p.t.Fatal(err)
	}
	drawn, err := png.Decode(base64.NewDecoder(base64.StdEncoding, strings.NewReader(res.Data)))
	if err != nil {
		p.t.Fatal(err)
	}
	var small bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, fewColours(drawn)); err != nil {
		p.t.Fatal(err)
	}
	if small.Len() > 150_000 {
		p.t.Errorf("%s has %d bytes", file, small.Len())
	}
	if err := os.WriteFile(file, small.Bytes(), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// fewColours is a picture in its 256 most frequent colours, in which a byte is enough
// for a pixel.
func fewColours(of image.Image) image.Image {
	counts := map[color.RGBA]int{}
	b := of.Bounds()
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(of.At(x, y)).(color.RGBA) }
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			counts[at(x, y)]++
		}
	}
	all := slices.SortedFunc(maps.Keys(counts), func(a, b color.RGBA) int {
		return cmp.Or(counts[b]-counts[a], cmp.Compare(a.R, b.R), cmp.Compare(a.G, b.G), cmp.Compare(a.B, b.B))
	})
	var palette color.Palette
	for _, c := range all[:min(len(all), 256)] {
		palette = append(palette, c)
	}
	nearest := map[color.RGBA]uint8{}
	few := image.NewPaletted(b, palette)
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			c := at(x, y)
			if _, known := nearest[c]; !known {
				nearest[c] = uint8(palette.Index(c))
			}
			few.SetColorIndex(x, y, nearest[c])
		}
	}
	return few
}
