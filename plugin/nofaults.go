//go:build !faults

package plugin

import (
	"underlay/driver"
	"underlay/internal/store"
)

type faults struct{}

func (faults) server(*server)                       {}
func (faults) store(*store.Store)                   {}
func (faults) kernel(k driver.Kernel) driver.Kernel { return k }
