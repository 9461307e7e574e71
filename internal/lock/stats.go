package lock

import (
	"sync/atomic"
	"time"
)

// Stats are counted since the Locker was made, but for Held and Waiting, which are now.
type Stats struct {
	Held    int // keys that this process has locked, or asks for
	Waiting int // how many wait for a lock

	Waits    int64         // how many had to wait
	WaitTime time.Duration // for how long, in all

	Refused   int64 // gave up: Wait, MaxWaiters or the end of their context
	Conflicts int64 // writes that were refused because somebody else had written
	Lapsed    int64 // locks that were held for longer than TTL
	Unwoken   int64 // wake-ups that did not come
}

type counters struct {
	waiting, waited, time               atomic.Int64
	refused, conflicts, lapsed, unwoken atomic.Int64
}

// Stats says how it stands with the locks of this process.
func (l *Locker) Stats() Stats {
	l.mu.Lock()
	held := len(l.lines)
	l.mu.Unlock()
	c := &l.stats
	return Stats{held, int(c.waiting.Load()), c.waited.Load(), time.Duration(c.time.Load()),
		c.refused.Load(), c.conflicts.Load(), c.lapsed.Load(), c.unwoken.Load()}
}
