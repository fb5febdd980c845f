//go:build faults

package store

import (
	"maps"
	"slices"
	"strings"
)

// faults lets tests end the program before and after each commit.
type faults struct {
	// Fault, to be set before the first submission, is told of each point.
	Fault func(point string)
}

// take is one submission at a time, so that the points are the same in each run.
func (s *Store) take() []submission {
	if len(s.pending) == 0 {
		return nil
	}
	first := s.pending[:1]
	s.pending = s.pending[1:]
	return first
}

func (f faults) pass(when string, batch []submission) {
	if f.Fault == nil {
		return
	}
	buckets := map[string]bool{}
	for _, sub := range batch {
		for _, c := range sub.changes {
			if c.Value == nil {
				buckets["-"+c.Bucket] = true
			} else {
				buckets["+"+c.Bucket] = true
			}
		}
	}
	f.Fault(when + " commit of " + strings.Join(slices.Sorted(maps.Keys(buckets)), " "))
}
