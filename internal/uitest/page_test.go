//go:build browser

package uitest

import (
	"flag"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"underlay/driver"
	"underlay/internal/ui"
	"underlay/ipam"
	"underlay/plugin"
)

var screenshots = flag.String("screenshots", "", "a folder for the manual's pictures")

const home = `[data-subnet="192.168.50.0/24"]`

// live waits until a page shows what there is.
func (p *tab) live() {
	p.t.Helper()
	p.await(`document.querySelector('#link').dataset.state === 'live'`)
}

// cell is that of an address, in words.
func (p *tab) cell(address string) string {
	p.t.Helper()
	return ask[string](p, fmt.Sprintf(`document.querySelector('.c[aria-label^="%s,"]')?.ariaLabel ?? ''`, address))
}

// focused is the cell that has the keyboard.
func (p *tab) focused() string {
	p.t.Helper()
	return ask[string](p, `document.activeElement.ariaLabel ?? document.activeElement.id`)
}

func (p *tab) details() string {
	p.t.Helper()
	return ask[string](p, `document.querySelector('#detail').hidden ? '' : document.querySelector('#detail').innerText`)
}

// Browsers come up slowly beside other work, so one serves all tests.
func TestPage(t *testing.T) {
	c := browse(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *chromium)
	}{
		{"shows what the plugin has", testPlugin},
		{"has a cell for each kind", testKinds},
		{"tells what is outside of ranges", testRanges},
		{"tells of changes", testChanges},
		{"is walked by keyboard", testKeyboard},
		{"finds", testFinding},
		{"fits a phone", testPhone},
		{"can be read", testContrast},
		{"keeps still", testStill},
		{"is quick with many", testMany},
		{"says that nobody answers", testDown},
		{"says that too many look", testNinth},
		{"runs nothing that it shows", testHostile},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
	if *screenshots != "" {
		t.Run("has its picture taken", testPictures)
	}
}

// The grids are what `underlay addresses -o json` prints, and follow it, before both
// servers of the page.
func testPlugin(t *testing.T, c *chromium) {
	for _, of := range []string{"the command's", "the daemon's"} {
		t.Run(of, func(t *testing.T) {
			d := newDockerd(t)
			url := "http://" + d.config.Metrics.String() + "/"
			if of == "the command's" {
				url = serve(t, plugin.View(d.config.Socket))
			}
			d.network(1, "192.168.50.0/24", "192.168.50.1", object{"exclude": "192.168.50.100-192.168.50.119,192.168.50.7", "reserve": "db=192.168.50.20"})
			d.network(2, "10.20.0.0/16", "10.20.0.1", object{"exclude": "10.20.4.0/22,10.20.9.7"})
			d.network(3, "fd00:210::/64", "fd00:210::1", nil)
			for n := range 5 {
				d.run(1, 10+n, "")
				d.run(2, 20+n, "")
				d.run(3, 30+n, "")
			}
			d.run(1, 40, "192.168.50.200")
			d.run(2, 41, "10.20.200.3")
			d.run(3, 42, "fd00:210::beef:1")
			d.end(1, 12)

			p := c.open(t, url, 1280, 4000)
			p.live()
			p.compare(d)

			// A container starts while the page is open.
			start := time.Now()
			address := d.run(1, 50, "")
			p.await(fmt.Sprintf(`document.querySelector('.c[aria-label^="%s, dynamic"]')`, address))
			t.Logf("a container was on the page %v after it was begun", time.Since(start))
			p.await(fmt.Sprintf(`document.querySelector('#lately').innerText.includes('%s: dynamic')`, address))
			p.await(fmt.Sprintf(`document.querySelector('#said').innerText.includes('%s: dynamic')`, address))
			d.end(1, 50)
			p.await(fmt.Sprintf(`document.querySelector('.c[aria-label^="%s, resting"]')`, address))
			p.compare(d)

			// One far from the others makes a row; a network makes a grid.
			d.run(2, 51, "10.20.77.77")
			d.network(4, "192.168.60.0/28", "192.168.60.1", nil)
			p.await(`document.querySelector('.c[aria-label^="10.20.77.77, static"]')`)
			p.await(`document.querySelector('[data-subnet="192.168.60.0/28"] .c')`)
			p.compare(d)

			// The plugin restarts.
			d.stop()
			p.await(`['down'].includes(document.querySelector('#link').dataset.state)`)
			d.start()
			p.live()
			p.compare(d)
			if of == "the daemon's" {
				p.forgive("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
			}
		})
	}
}

// compare compares the cells with the plugin's own words.
func (p *tab) compare(d *dockerd) {
	p.t.Helper()
	want := map[string]string{}
	for _, a := range d.addresses() {
		if a.Kind != ipam.Excluded {
			want[a.Address.String()] = string(a.Kind)
		}
	}
	for _, a := range d.addresses() {
		for addr := a.Address; a.Kind == ipam.Excluded; addr = addr.Next() {
			if want[addr.String()] == "" {
				want[addr.String()] = string(a.Kind)
			}
			if !a.Last.IsValid() || addr == a.Last {
				break
			}
		}
	}
	got := map[string]string{}
	p.await(`[...document.querySelectorAll('.grid')].every(g => g.querySelectorAll('[role=row]').length == g.ariaRowCount)`)
	for _, cell := range ask[[][2]string](p, `[...document.querySelectorAll('.grid .c:not(.key)')].filter(c => !['free', 'edge'].includes(c.dataset.k)).map(c => [c.ariaLabel.split(',')[0], c.dataset.k])`) {
		got[cell[0]] = cell[1]
	}
	for _, rows := range ask[[][2]string](p, `[...document.querySelectorAll('.between:has(.key)')].map(r => [r.dataset.from, r.dataset.to])`) {
		for addr := netip.MustParseAddr(rows[0]); ; addr = addr.Next() {
			got[addr.String()] = string(ipam.Excluded)
			if addr.String() == rows[1] {
				break
			}
		}
	}
	for addr, kind := range want {
		if got[addr] != kind {
			p.t.Errorf("%s is %q on the page, %q for the plugin", addr, got[addr], kind)
		}
		delete(got, addr)
	}
	for addr, kind := range got {
		p.t.Errorf("%s is %q on the page, and free for the plugin", addr, kind)
	}
	if len(want) < 20 {
		p.t.Errorf("only %d addresses were compared", len(want))
	}
}

// Each kind has a colour and a letter or a pattern of its own.
func testKinds(t *testing.T, c *chromium) {
	p := c.open(t, serve(t, office()), 1280, 2000)
	p.live()
	looks := map[string]string{}
	for _, kind := range []string{"dynamic", "static", "leased", "gateway", "reserved", "host", "excluded", "squatter", "conflict", "resting", "free"} {
		look := ask[[]string](p, fmt.Sprintf(`(() => { const e = document.querySelector('.row .c[data-k=%s]'), s = getComputedStyle(e); return [e.textContent, s.backgroundImage, s.borderStyle, s.backgroundColor] })()`, kind))
		letter := strings.Join(look[:3], " ")
		if other := looks[letter]; other != "" {
			t.Errorf("%s and %s differ by their colours alone", kind, other)
		}
		looks[letter] = kind
		if n := ask[int](p, fmt.Sprintf(`document.querySelectorAll('#legend [data-kind=%s]').length`, kind)); n != 1 {
			t.Errorf("%s is %d times in the legend", kind, n)
		}
	}
	if got := ask[string](p, `document.querySelector('#legend').innerText.replace(/\s+/g, ' ')`); !strings.Contains(got, "leased 6 ") || !strings.Contains(got, "excluded 4,127") || !strings.Contains(got, "free ~2^64") {
		t.Errorf("the legend counts %s", got)
	}
	for _, want := range []string{"Conflict 192.168.50.14 (mail) is in use by 9c:8e:cd:31:77:04, too", "Drift Docker shows 192.168.50.61"} {
		if got := ask[string](p, `document.querySelector('#matters').innerText`); !strings.Contains(got, want) {
			t.Errorf("%q is not what is the matter: %s", want, got)
		}
	}
	p.click(`#matters button`)
	if got := p.details(); !strings.Contains(got, "192.168.50.14") || !strings.Contains(got, "9c:8e:cd:31:77:04") || !strings.Contains(got, "macvlan bridge") || !strings.Contains(got, "eth0") {
		t.Errorf("the details of a conflict are %s", got)
	}
	p.click(`#legend [data-kind=squatter]`)
	if faint := ask[[]string](p, `[...new Set([...document.querySelectorAll('.row .c')].filter(c => getComputedStyle(c).opacity === '1' && c !== document.activeElement).map(c => c.dataset.k))]`); !slices.Equal(faint, []string{"squatter"}) {
		t.Errorf("of other machines alone, one sees %v", faint)
	}
}

// An address outside of all ranges is not the next one, and a range that is exhausted is
// full, whatever else is free.
func testRanges(t *testing.T, c *chromium) {
	l := office()
	full := ipam.RangeUse{Range: netip.MustParsePrefix("192.168.50.128/30"), Size: big.NewInt(4), Free: new(big.Int)}
	large := ipam.RangeUse{Range: netip.MustParsePrefix("10.20.64.0/20"), Size: big.NewInt(4096), Free: big.NewInt(4096)}
	l.status.Pools[1].Ranges = []ipam.RangeUse{full}
	p := c.open(t, serve(t, l), 1280, 2000)
	p.live()
	text := func(selector string) string {
		return ask[string](p, `document.querySelector('`+selector+`').innerText.replace(/\s+/g, ' ')`)
	}
	for addr, want := range map[string]string{
		"192.168.50.127": "192.168.50.127, outside the range", "192.168.50.128": "192.168.50.128, free", "192.168.50.132": "192.168.50.132, outside the range",
		"192.168.50.131": "192.168.50.131, other machine", "192.168.50.230": "192.168.50.230, excluded", "192.168.50.0": "192.168.50.0, names the subnet",
		"10.20.0.30": "10.20.0.30, free",
	} {
		if got := p.cell(addr); got != want {
			t.Errorf("%s is %q, want %q", addr, got, want)
		}
	}
	if got := text("#matters"); !strings.Contains(got, "Full 192.168.50.128/30 has no free address") {
		t.Errorf("what is the matter: %s", got)
	}
	if got := text(`[data-subnet="192.168.50.0/24"] .totals`); !strings.Contains(got, "0 free of 4 in 192.168.50.128/30") || strings.Contains(got, "free of 254") {
		t.Errorf("the totals are %s", got)
	}
	if got := ask[string](p, `getComputedStyle(document.querySelector('[aria-label="192.168.50.127, outside the range"]')).borderStyle`); got != "dotted" {
		t.Errorf("its edge is %s", got) // no other kind's is
	}
	p.click(`[aria-label="192.168.50.127, outside the range"]`)
	if got := p.details(); !strings.Contains(got, "by --ip alone") || strings.Contains(got, "next container") {
		t.Errorf("the details are %s", got)
	}
	l.change(func() {
		l.status.Pools = slices.Clone(l.status.Pools)
		l.status.Pools[0].Ranges = []ipam.RangeUse{large}
		l.status.Pools[1].Ranges = nil
	})
	p.await(`document.querySelector('.c[aria-label^="192.168.50.127,"]').dataset.k === 'free'`)
	between := text(`[data-subnet="10.20.0.0/16"]`)
	for _, want := range []string{"4,032 free", "outside the range", "4,096 free of 4,096 in 10.20.64.0/20"} {
		if !strings.Contains(between, want) {
			t.Errorf("no %q in %s", want, between)
		}
	}
}

func testChanges(t *testing.T, c *chromium) {
	l := office()
	p := c.open(t, serve(t, l)+"#192.168.50.10", 1280, 2000)
	p.live()
	if got := p.details(); !strings.Contains(got, "web") {
		t.Errorf("the details of a link are %q", got)
	}
	l.change(func() {
		i := slices.IndexFunc(l.addresses, func(a plugin.Address) bool { return a.Name == "web" })
		l.addresses = slices.Clone(l.addresses)
		l.addresses[i].State = driver.EndpointLost
		l.addresses[i].Conflict = "9c:8e:cd:00:00:01"
		l.status.Parents = slices.Clone(l.status.Parents)
		l.status.Parents[1].State, l.status.Parents[1].Reason = driver.ParentDown, "it has no carrier"
	})
	p.await(`document.querySelector('#matters').innerText.includes('eth0 is down: it has no carrier')`)
	p.await(`document.querySelector('#matters').innerText.includes('(web) has lost its interface')`)
	p.await(`document.querySelector('#detail').innerText.includes('9c:8e:cd:00:00:01')`)
	p.await(`document.querySelector('.c[aria-label^="192.168.50.10,"]').dataset.k === 'conflict'`)
	p.await(`document.title.startsWith('(5) ')`)
	l.change(func() {
		l.networks = append(slices.Clone(l.networks), driver.NetworkState{ID: id(3), Parent: "eth0", ForeignIPAM: true, Endpoints: 3})
	})
	p.await(`document.querySelector('#foreign').innerText.startsWith('3 containers have addresses of another')`)
	l.change(func() {
		l.status.Pools = slices.Clone(l.status.Pools[:2])
		l.addresses = slices.DeleteFunc(slices.Clone(l.addresses), func(a plugin.Address) bool { return a.Address.Is6() })
	})
	p.await(`document.querySelectorAll('.pool').length === 2`)
	l.change(func() {
		l.status.Pools, l.addresses, l.status.Parents, l.status.Drift = nil, nil, nil, nil
	})
	p.await(`document.querySelector('#pools').innerText.includes('no pool yet')`)
	p.await(`document.querySelector('#matters').innerText.includes('Nothing is the matter')`)
}

func testKeyboard(t *testing.T, c *chromium) {
	p := c.open(t, serve(t, office()), 1280, 900)
	p.live()
	for tabs := 0; p.focused() != "10.20.0.1, host"; tabs++ {
		if tabs > 30 {
			t.Fatalf("Tab comes to %s, and not to the grid", p.focused())
		}
		p.keys("Tab")
	}
	if n := ask[int](p, `document.querySelectorAll('.grid [tabindex="0"]').length`); n != 3 {
		t.Errorf("Tab would come to %d cells in 3 grids", n)
	}
	if width := ask[string](p, `getComputedStyle(document.activeElement).outlineWidth`); width != "3px" {
		t.Errorf("the outline of the cell with the keyboard is %s wide", width)
	}
	for _, step := range []struct{ keys, want string }{
		{"ArrowRight ArrowRight", "10.20.0.3, dynamic, worker-1"},
		{"ArrowLeft", "10.20.0.2, host"},
		{"Home", "10.20.0.0, names the subnet"},
		{"ArrowLeft", "10.20.0.0, names the subnet"},
		{"End", "10.20.0.31, free"},
		{"ArrowRight", "10.20.128.0, free"}, // over what is not shown
		{"ArrowLeft", "10.20.0.31, free"},
		{"ArrowDown", "10.20.128.31, free"},
		{"ArrowDown", "10.20.128.31, free"},
		{"ArrowUp", "10.20.0.31, free"},
		{"n", "10.20.128.10, static, registry"},
		{"n", "10.20.128.11, static, minio"},
		{"Shift+N", "10.20.128.10, static, registry"},
		{"Ctrl+Home", "10.20.0.0, names the subnet"},
		{"Ctrl+End", "10.20.128.31, free"},
		{"Tab", "192.168.50.1, host"},
		{"PageDown", "192.168.50.225, excluded"},
		{"ArrowUp ArrowUp", "192.168.50.161, free"},
		{"PageUp", "192.168.50.1, host"},
		{"Tab", "fd00:210::1, host"},
		{"ArrowRight ArrowRight n", "fd00:210::a, dynamic, web"},
		{"ArrowDown", "fd00:210::ba27:ebff:fe4a:c0a, free"},
		{"Shift+Tab", "192.168.50.1, host"},
		{"n n", "192.168.50.3, gateway"},
	} {
		p.keys(strings.Fields(step.keys)...)
		if got := p.focused(); got != step.want {
			t.Fatalf("%s comes to %q, want %q", step.keys, got, step.want)
		}
	}
	p.keys("n", "Enter")
	if got := p.focused(); got != "detail-title" {
		t.Errorf("Enter leaves the keyboard at %s", got)
	}
	if got := p.details(); !strings.Contains(got, "192.168.50.10") || !strings.Contains(got, "web") {
		t.Errorf("details: %s", got)
	}
	p.keys("Escape")
	if got := p.focused(); got != "192.168.50.10, dynamic, web" || p.details() != "" {
		t.Errorf("Escape leaves the keyboard at %s, and %q", got, p.details())
	}
	// The window is where the keyboard is.
	p.keys("Ctrl+End")
	if !ask[bool](p, `(() => { const r = document.activeElement.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight })()`) {
		t.Error("the cell with the keyboard is out of the window")
	}
	if names := ask[[]string](p, `[...document.querySelectorAll('button, input, [role=grid], [role=gridcell]')].filter(e => !(e.ariaLabel || e.innerText.trim() || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML)`); len(names) > 0 {
		t.Errorf("without a name: %v", names)
	}
	if twice := ask[[]string](p, `[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) !== i)`); len(twice) > 0 {
		t.Errorf("two elements have the ID %v", twice)
	}
}

func testFinding(t *testing.T, c *chromium) {
	p := c.open(t, serve(t, office()), 1280, 900)
	p.live()
	for _, find := range []struct{ text, want string }{
		{"ldap", "192.168.50.43, static, ldap"},
		{"192.168.50.222", "192.168.50.222, free"},
		{"10.20.99.9", "10.20.99.9, free"}, // in a row that was not shown
		{"10.20.50.1", "10.20.50.1, excluded"},
		{"9c:8e:cd:31", "192.168.50.14, conflict, mail"},
		{"fd00:210::c", "fd00:210::c, dynamic, queue"},
	} {
		p.keys("/")
		if got := p.focused(); !strings.HasPrefix(got, "Find") {
			t.Fatalf("/ leaves the keyboard at %s", got)
		}
		p.do("Input.insertText", object{"text": find.text})
		p.keys("Enter")
		if got := p.focused(); got != find.want {
			t.Errorf("%s is found at %q, want %q", find.text, got, find.want)
		}
	}
	p.keys("/")
	p.do("Input.insertText", object{"text": "nobody"})
	if got := ask[string](p, `document.querySelector('#found').innerText`); got != "Nobody has it" {
		t.Errorf("nobody: %q", got)
	}
}

// Nothing is wider than a phone, whatever is open.
func testPhone(t *testing.T, c *chromium) {
	for _, width := range []int{360, 320} {
		p := c.open(t, serve(t, office()), width, 740)
		p.live()
		check := func(what string) {
			t.Helper()
			if got := ask[int](p, `document.documentElement.scrollWidth`); got > width {
				t.Errorf("%s, a page %d wide is %d wide", what, width, got)
			}
			if wide := ask[[]string](p, `[...document.querySelectorAll('body *')].filter(e => e.offsetParent && e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest('.skip')).map(e => e.outerHTML.slice(0, 100)).slice(0, 3)`); len(wide) > 0 {
				t.Errorf("%s, %v goes over the edge of %d", what, wide, width)
			}
		}
		check("at first")
		p.click(home + ` .c[aria-label*="mail"]`)
		check("with details")
		if !ask[bool](p, `(() => { const c = document.querySelector('[aria-selected=true]').getBoundingClientRect(), d = document.querySelector('#detail').getBoundingClientRect(); return c.top >= 0 && c.bottom <= d.top && d.bottom <= innerHeight + 1 })()`) {
			t.Error("the details hide what they are about")
		}
		p.click(`#detail .close`)
		ask[any](p, `scrollTo(0, document.body.scrollHeight)`)
		check("at its end")
		if got := ask[float64](p, `Math.min(...[...document.querySelectorAll('.row .c')].map(c => c.getBoundingClientRect().height))`); got < 20 {
			t.Errorf("cells are %v high", got)
		}
	}
}

// Texts are as dark on light as WCAG 2.2 wants them (4.5 to 1), in both schemes.
func testContrast(t *testing.T, c *chromium) {
	p := c.open(t, serve(t, office()), 1280, 2000)
	grounds := map[string]bool{}
	for _, scheme := range []string{"light", "dark"} {
		p.prefer("prefers-color-scheme", scheme)
		p.live()
		p.click(home + ` .c[aria-label*="mail"]`)
		grounds[ask[string](p, `getComputedStyle(document.body).backgroundColor`)] = true
		for _, low := range ask[[]string](p, `(() => {
			const rgb = s => s.match(/[\d.]+/g).map(Number)
			const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }
			const low = []
			for (const e of document.querySelectorAll('body *')) {
				const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join('')
				if (!text || !e.offsetParent || ['edge', 'excluded'].includes(e.dataset.k) || e.closest('[aria-selected=true]')) continue
				let under = e
				while (under && rgb(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement
				const a = light(rgb(getComputedStyle(e).color).slice(0, 3)), b = light(rgb(getComputedStyle(under ?? document.body).backgroundColor).slice(0, 3))
				const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
				if (contrast < 4.5) low.push(e.className + ' ' + (e.dataset.k ?? '') + ' ' + text.slice(0, 30) + ': ' + contrast.toFixed(2))
			}
			return low
		})()`) {
			t.Errorf("%s: %s", scheme, low)
		}
	}
	if len(grounds) != 2 {
		t.Errorf("dark and light have the same ground: %v", grounds)
	}
}

func testStill(t *testing.T, c *chromium) {
	for _, tt := range []struct{ wish, class string }{{"reduce", ""}, {"no-preference", "new"}} {
		l := office()
		p := c.open(t, serve(t, l), 1280, 2000)
		p.prefer("prefers-reduced-motion", tt.wish)
		p.live()
		l.change(func() {
			l.addresses = slices.Clone(l.addresses)
			l.add(&l.status.Pools[1], ipam.Dynamic, "192.168.50.99", "late", nil)
		})
		p.await(`document.querySelector('.c[aria-label^="192.168.50.99, dynamic"]')`)
		if got := ask[bool](p, `document.querySelector('.c[aria-label^="192.168.50.99,"]').classList.contains('new')`); got != (tt.class != "") {
			t.Errorf("motion %s: a new address moves: %v", tt.wish, got)
		}
	}
}

// A page of 10,000 containers has few of their cells, and all can be walked to.
func testMany(t *testing.T, c *chromium) {
	for _, tt := range []struct {
		name             string
		containers, rows int
		apart            int
		last             string
	}{
		{"beside each other", 10_000, 314, 1, "10.0.39.17"},
		{"in all rows", 10_000, 1876, 6, "10.0.234.92"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := crowd(tt.containers, tt.apart)
			start := time.Now()
			p := c.open(t, serve(t, l), 1280, 900)
			p.live()
			t.Logf("%d addresses were on the page after %v", tt.containers, time.Since(start))
			if got := ask[int](p, `document.querySelectorAll('*').length`); got > 8000 {
				t.Errorf("the page has %d elements", got)
			}
			if got := ask[int](p, `Number(document.querySelector('.grid').ariaRowCount)`); got < tt.rows || got > tt.rows+1 {
				t.Errorf("the grid has %d rows, want %d", got, tt.rows)
			}
			ask[any](p, `document.querySelector('.grid [tabindex="0"]').focus()`)
			p.keys("Ctrl+End", "ArrowUp", "ArrowDown")
			ask[any](p, `document.querySelector('.c[aria-label^="`+tt.last+`,"]').click()`)
			p.keys("n")
			if got := p.focused(); !strings.HasPrefix(got, tt.last+", dynamic") {
				t.Errorf("the last one in use is %s", got)
			}
			height := ask[int](p, `document.querySelector('.grid').offsetHeight`)
			// A change is painted where it is, and moves nothing.
			l.change(func() {
				l.addresses = slices.Clone(l.addresses)
				l.addresses[len(l.addresses)-1].State = driver.EndpointLost
			})
			p.await(`document.activeElement.ariaLabel.endsWith(', lost')`)
			ask[any](p, `scrollTo(0, document.body.scrollHeight / 2)`)
			p.await(`[...document.querySelectorAll('.row')].some(r => { const b = r.getBoundingClientRect(); return b.top > 100 && b.bottom < 500 })`)
			if got := ask[int](p, `document.querySelector('.grid').offsetHeight`); got != height {
				t.Errorf("the grid was %d high, and is %d", height, got)
			}
			if got := ask[int](p, `document.querySelectorAll('*').length`); got > 8000 {
				t.Errorf("at its middle, the page has %d elements", got)
			}
			if got := ask[int](p, `document.querySelectorAll('.grid [tabindex="0"]').length`); got != 1 {
				t.Errorf("at its middle, Tab comes to %d cells", got)
			}
			rows := ask[[]float64](p, `[...document.querySelectorAll('.row')].slice(0, 2).map(r => r.getBoundingClientRect().height)`)
			box := ask[[]float64](p, `(() => { const b = [...document.querySelectorAll('[role=rowgroup]')].find(b => b.children.length); return [b.offsetHeight, [...b.children].reduce((n, c) => n + c.getBoundingClientRect().height, 0)] })()`)
			if rows[0] < 20 || box[0]-box[1] > 1 || box[1]-box[0] > 1 {
				t.Errorf("rows %v high make %v of the %v that was kept for them", rows, box[1], box[0])
			}
		})
	}
}

func testDown(t *testing.T, c *chromium) {
	l := office()
	l.down = "nobody serves on /run/docker/plugins/underlay.sock: is the plugin enabled (docker plugin ls), or its service up (systemctl status underlay)?"
	p := c.open(t, serve(t, l), 1280, 900)
	p.await(`document.querySelector('#matters').innerText.includes('No answer ` + l.down + `')`)
	p.await(`document.querySelector('#pools').innerText.includes('There is no answer yet')`)
	l.change(func() { l.down = "" })
	p.live()
	if got := p.cell("192.168.50.10"); got != "192.168.50.10, dynamic, web" {
		t.Errorf("after it has come: %q", got)
	}
	again := `document.querySelector('#said').innerText.includes('The plugin answers again.')`
	p.await(again)
	l.change(func() { l.down = "the plugin has not answered in time; see its log" })
	p.await(`document.querySelector('#matters').innerText.includes('not answered in time')`)
	if got := p.cell("192.168.50.10"); got != "192.168.50.10, dynamic, web" {
		t.Errorf("what was known before is %q now", got)
	}
	p.await(`document.querySelector('#said').innerText.startsWith('No answer: the plugin has not answered in time')`)
	l.change(func() { l.down = "" })
	p.await(again)
}

func testNinth(t *testing.T, c *chromium) {
	url := serve(t, office())
	var others []*http.Response
	for range ui.Most {
		res, err := http.Get(url + "events")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		others = append(others, res)
	}
	p := c.open(t, url, 1280, 900)
	p.await(`document.querySelector('#matters').innerText.includes('8 others are looking; close one of their pages')`)
	others[0].Body.Close()
	p.live()
}

// Names and reasons are others' texts.
func testHostile(t *testing.T, c *chromium) {
	const evil = `"><img src=x onerror="document.title='evil'"><script>document.title='evil'</script>`
	l := office()
	for i := range l.addresses {
		if l.addresses[i].Name == "web" {
			l.addresses[i].Name, l.addresses[i].Note = evil, evil
		}
	}
	l.status.Drift = []string{evil}
	l.status.Parents[0].Name = evil
	p := c.open(t, serve(t, l)+"#192.168.50.10", 1280, 900)
	p.live()
	if got := p.details(); !strings.Contains(got, evil) {
		t.Errorf("details: %s", got)
	}
	if n := ask[int](p, `document.querySelectorAll('script, img').length`); n != 2 {
		t.Errorf("the page has %d scripts and images", n)
	}
	if got := ask[string](p, `document.title`); strings.Contains(got, "evil") {
		t.Error("a name was run")
	}
	if got := ask[string](p, `fetch('http://127.0.0.1:1/').then(() => 'fetched', e => 'refused')`); got != "refused" {
		t.Errorf("another server: %s", got)
	}
	p.forgive("Content Security Policy", "connect-src")
}

func testPictures(t *testing.T) {
	c := browse(t)
	p := c.open(t, serve(t, office()), 1280, 1080)
	p.prefer("prefers-color-scheme", "light")
	p.live()
	p.click(home + ` .c[aria-label*="web"]`)
	ask[any](p, `scrollTo(0, 0)`)
	p.picture(*screenshots + "/ui.png")
	p.prefer("prefers-color-scheme", "dark")
	p.size(360, 740)
	p.await(`document.querySelector('.grid').ariaColCount === '17'`)
	p.click(home + ` .c[aria-label*="mail"]`)
	ask[any](p, `scrollTo(0, document.querySelector('`+home+`').offsetTop - 8)`)
	p.picture(*screenshots + "/ui-phone.png")
}

var _ ui.Source = (*lan)(nil)
