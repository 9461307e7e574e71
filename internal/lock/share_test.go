package lock

import (
	"testing"
	"time"
)

// by is a Want of somebody who shares the lock with himself.
func by(owner string) Want {
	w := want("k")
	w.Owner, w.Same = owner, func(holder, owner any) bool { return holder == owner }
	return w
}

// TestWhoWaitsTwiceDoesNotWaitForItself has two of one owner come while another has the lock.
func TestWhoWaitsTwiceDoesNotWaitForItself(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		l, _ := s.process(t)
		lease, _, err := l.Acquire(t.Context(), by("bob"))
		must(t, err)
		got := make(chan error, 3)
		for i := range 3 {
			go func() {
				_, _, err := l.Acquire(t.Context(), by("ann"))
				got <- err
			}()
			eventually(t, "it waits", func() bool { return l.Stats().Waiting == i+1 })
		}
		start := time.Now()
		lease.Release()
		for range 3 {
			must(t, <-got)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("they waited for each other: %v", took)
		}
	})
}
