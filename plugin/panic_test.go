package plugin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// A call that panics is refused in words, and told of; the next one is answered.
func TestPanic(t *testing.T) {
	log := logrus.New()
	log.SetOutput(t.Output())
	s := newServer(log, func(context.Context) error { return nil })
	var told []any
	s.panicked = func(what any) { told = append(told, what) }
	route(s, "/Test.Fails", func(context.Context, none) (none, error) { panic("the sky falls") })
	fixed(s, "/Test.Works", none{})
	call := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader("{}")))
		return w
	}
	if w := call("/Test.Fails"); w.Code < 400 || !strings.Contains(w.Body.String(), "a bug to report: the sky falls") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if len(told) != 1 || told[0] != "the sky falls" {
		t.Errorf("told of %v", told)
	}
	if w := call("/Test.Works"); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestWithin(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	if within(10*time.Millisecond, func() { <-stuck }) {
		t.Error("what is stuck has ended")
	}
	for name, do := range map[string]func(){"ends": func() {}, "panics": func() { panic("again") }} {
		if !within(time.Minute, do) {
			t.Errorf("what %s is stuck", name)
		}
	}
}
