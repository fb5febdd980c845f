package plugin

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// A call has its deadline, and while it waits for the LAN's server more.
func TestTerm(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(ctx context.Context) // a call
		ends time.Duration             // when its context ends
	}{
		{"a call", func(context.Context) {}, deadline - words},
		{"one that waits", func(ctx context.Context) { extend(ctx, 20*time.Second) }, 20*time.Second + deadline - words},
		{"one that has waited", func(ctx context.Context) {
			back := extend(ctx, 20*time.Second)
			time.Sleep(15 * time.Second)
			back()
		}, 15*time.Second + deadline - words},
		{"one that waits for both families", func(ctx context.Context) {
			back := extend(ctx, 20*time.Second)
			time.Sleep(20 * time.Second)
			back()
			extend(ctx, 20*time.Second)
		}, 2*20*time.Second + deadline - words},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all, cancel := newTerm(t.Context(), httptest.NewRecorder())
				defer cancel()
				own, stop := all.own()
				defer stop()
				child, done := context.WithTimeout(own, time.Hour)
				defer done()
				start := time.Now()
				tt.do(child)
				<-child.Done()
				if took := time.Since(start); took != tt.ends || !errors.Is(child.Err(), context.DeadlineExceeded) || !errors.Is(own.Err(), context.DeadlineExceeded) {
					t.Errorf("it ends after %v: %v, %v; want %v", took, child.Err(), own.Err(), tt.ends)
				}
				<-all.Done()
				if took := time.Since(start); took != tt.ends+words || !errors.Is(all.Err(), context.DeadlineExceeded) {
					t.Errorf("all ends after %v: %v", took, all.Err())
				}
			})
		})
	}
	all, cancel := newTerm(t.Context(), httptest.NewRecorder())
	cancel()
	if !errors.Is(all.Err(), context.Canceled) {
		t.Errorf("over, it has ended by %v", all.Err())
	}
	extend(context.Background(), time.Minute)()
}
