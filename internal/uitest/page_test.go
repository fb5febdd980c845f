//go:build browser

package uitest

import (
	"flag"
	"testing"
)

var screenshots = flag.String("screenshots", "", "a folder for the manual's pictures")

func TestPictures(t *testing.T) {
	c := browse(t)
	folder := *screenshots
	if folder == "" {
		folder = t.TempDir()
	}
	p := c.open(t, serve(t, office()), 1280, 1060)
	p.prefer("prefers-color-scheme", "light")
	p.await(`document.querySelector('#link').dataset.state === 'live'`)
	p.click(`[data-subnet="192.168.50.0/24"] .c[aria-label*="web"]`)
	ask[any](p, `scrollTo(0, 0)`)
	p.picture(folder + "/ui.png")
	p.prefer("prefers-color-scheme", "dark")
	p.picture(folder + "/ui-dark.png")
	p.size(360, 740)
	p.await(`document.querySelector('.grid').ariaColCount === '17'`)
	p.picture(folder + "/ui-phone.png")
}
