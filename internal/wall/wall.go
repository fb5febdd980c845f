// Package wall goes by the host's clock, for those who keep leases: Go's own clock, by
// which its times are compared and its timers run, stands still while the host sleeps,
// and a lease does not. It also has the minute, for all who look at something so often.
package wall

import "time"

// began is what all minutes are counted from. Tests go by the clock's own.
var began = time.Unix(0, 0)

// Begin counts minutes from now. The program calls it once, before all else: of
// plugins that went by the clock's minutes, a LAN would be asked by all at once.
func Begin() { began = time.Now() }

// Nap is the time to the next minute: whoever looks now and then whether anything is
// due looks then, so that a program at rest is woken once a minute, for all of them.
// It is never longer: a timer does not count the time that the host sleeps.
func Nap() time.Duration { return time.Minute - time.Since(began)%time.Minute }

// Clock is the host's clock when it was last looked at. Its zero has not been.
type Clock struct {
	wall time.Time
	run  time.Time // by Go's own, that nobody sets
}

// Back is by how much the clock has been set back since the last call, 0 for less than
// a second. One that is set forward is taken for one that has slept: 0.
func (k *Clock) Back() time.Duration {
	now := time.Now()
	d := now.Sub(k.run) - now.Round(0).Sub(k.wall)
	first := k.run.IsZero()
	k.wall, k.run = now.Round(0), now
	if first || d < time.Second {
		return 0
	}
	return d
}

// Set has the clock look as if it had been set by -d since: a test cannot set the host's.
func (k *Clock) Set(d time.Duration) { k.wall = k.wall.Add(d) }

// Shift moves times that are there by d, and has them go by the host's clock alone.
func Shift(d time.Duration, times ...*time.Time) {
	for _, t := range times {
		if !t.IsZero() {
			*t = t.Round(0).Add(d)
		}
	}
}
