package wall

import (
	"testing"
	"testing/synctest"
	"time"
)

// Whoever naps wakes up with all others, within a minute.
func TestNap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		for range 3 {
			for _, into := range []time.Duration{0, 1, 20 * time.Second, time.Minute - 1} {
				time.Sleep(time.Until(start.Add(into)))
				if nap := Nap(); nap != time.Minute-into {
					t.Errorf("%v into a minute, a nap of %v", into, nap)
				}
			}
			start = start.Add(time.Minute)
		}
	})
}

// So do those of a program that has begun between two minutes.
func TestBegin(t *testing.T) {
	defer func(was time.Time) { began = was }(began)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(42 * time.Second)
		Begin()
		for _, into := range []time.Duration{0, 30 * time.Second, time.Minute - 1} {
			time.Sleep(time.Until(began.Add(into)))
			if nap := Nap(); nap != time.Minute-into {
				t.Errorf("%v into a minute, a nap of %v", into, nap)
			}
		}
	})
}
