package plugin

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// term is the time that a call has: deadline from its start, and more while the
// LAN's server is waited for, which only that part of the call may spend.
type term struct {
	context.Context
	w     http.ResponseWriter
	cause context.CancelCauseFunc
	end   *time.Timer
}

type termKey struct{}

func newTerm(ctx context.Context, w http.ResponseWriter) (*term, context.CancelFunc) {
	return termOf(ctx, w, deadline)
}

func termOf(ctx context.Context, w http.ResponseWriter, d time.Duration) (*term, context.CancelFunc) {
	t := &term{w: w}
	t.Context, t.cause = context.WithCancelCause(ctx)
	t.end = time.AfterFunc(d, func() { t.cause(context.DeadlineExceeded) })
	return t, func() { t.end.Stop(); t.cause(nil) }
}

// Err is context.DeadlineExceeded at the end of the time.
func (t *term) Err() error {
	err := t.Context.Err()
	if err != nil && errors.Is(context.Cause(t.Context), context.DeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return err
}

// AfterFunc is how a context made of this one hears of its end, with its Err.
func (t *term) AfterFunc(f func()) (stop func() bool) { return context.AfterFunc(t.Context, f) }

// Value makes the term known to extend.
func (t *term) Value(key any) any {
	switch key.(type) {
	case termKey:
		return t
	case *int: // context's own key, by which a new context would go past Err
		return nil
	}
	return t.Context.Value(key)
}

// own is the part of the time in which the call can still say what it has waited
// for.
func (t *term) own() (context.Context, context.CancelFunc) {
	return termOf(t, nil, deadline-words)
}

// extend gives the call of a context more time than it has now, for as long as
// until the returned function is called. Then it has its whole deadline again.
func extend(ctx context.Context, by time.Duration) (back func()) {
	inner, ok := ctx.Value(termKey{}).(*term)
	if !ok {
		return func() {}
	}
	outer, ok := inner.Context.Value(termKey{}).(*term)
	if !ok {
		return func() {}
	}
	set := func(by time.Duration) {
		inner.end.Reset(by + deadline - words)
		outer.end.Reset(by + deadline)
	}
	set(by)
	if outer.w != nil {
		_ = http.NewResponseController(outer.w).SetWriteDeadline(time.Now().Add(by + answering)) // an error: it has none
	}
	return func() {
		if inner.Context.Err() == nil {
			set(0)
		}
	}
}
