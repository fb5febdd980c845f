// Package pause waits for nothing but time.
package pause

import (
	"context"
	"time"
)

// For waits for d, or until ctx ends: then it returns why.
func For(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
