package plugin

import (
	"context"
	"os"
	"runtime"
)

// ProcessPath answers what the plugin's process takes of the machine, a Process.
const ProcessPath = "/Underlay.Process"

// Process is what should not grow.
type Process struct {
	PID         int `json:"pid"` // in the plugin's own namespace
	Goroutines  int `json:"goroutines"`
	Descriptors int `json:"descriptors"` // open files and sockets, this call's included
	HeapBytes   int `json:"heapBytes"`   // in use after the last collection, and since
}

func process(context.Context, none) (Process, error) {
	p := Process{PID: os.Getpid(), Goroutines: runtime.NumGoroutine()}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return p, err
	}
	p.Descriptors = len(open) - 1 // the folder's own
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	p.HeapBytes = int(m.HeapAlloc)
	return p, nil
}
