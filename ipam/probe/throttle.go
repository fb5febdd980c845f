package probe

import "time"

const (
	// quiet is how long the same word from the same machine is not repeated.
	quiet = 5 * time.Second

	// remembered is how many words a link remembers for that, at most.
	remembered = 8192
)

// throttle keeps an ARP storm from everyone behind the listener. Two
// generations bound what it remembers and need no clock of their own: under a
// flood of ever different words the oldest are forgotten early, and may then
// be told again.
type throttle struct {
	young, old map[word]time.Duration
	since      time.Duration // when young began
}

// word is a sight without pointers, so that the collector passes it by.
type word struct {
	addr  [16]byte
	mac   mac
	claim bool
}

// fresh says whether s is worth telling at now, which only grows.
func (t *throttle) fresh(s *sight, now time.Duration) bool {
	w := word{s.addr.As16(), s.mac, s.claim}
	if at, ok := t.young[w]; ok && now-at < quiet {
		return false
	}
	if at, ok := t.old[w]; ok && now-at < quiet {
		return false
	}
	if t.young == nil || len(t.young) >= remembered/2 || now-t.since >= quiet {
		t.young, t.old = t.old, t.young
		clear(t.young)
		if t.young == nil {
			t.young = make(map[word]time.Duration)
		}
		t.since = now
	}
	t.young[w] = now
	return true
}
