//go:build faults

package main

import (
	"fmt"
	"os"
	"time"

	"underlay/internal/fault"
	"underlay/plugin"
)

// withFaults has the plugin killed where the environment says, and what nobody is
// known to need freed after UNDERLAY_GRACE.
func withFaults(config *plugin.Config) (err error) {
	if config.Faults, err = fault.New(); err != nil {
		return err
	}
	if text := os.Getenv("UNDERLAY_GRACE"); text != "" {
		if config.Grace, err = time.ParseDuration(text); err != nil {
			return fmt.Errorf("UNDERLAY_GRACE: %w", err)
		}
	}
	return nil
}
