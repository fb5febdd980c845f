//go:build !faults

package main

import "underlay/plugin"

func withFaults(*plugin.Config) error { return nil }
