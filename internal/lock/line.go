package lock

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// A line is made of those of this process who want one key: first come, first served, and
// only the first talks to Redis.
type line struct {
	holder  *Lease
	waiting []turn
}

type turn struct {
	*attempt
	lease *Lease
	came  chan *Lease // gets the lease whose turn comes: its own, or one of the same owner
}

// shares tells whether the attempt's owner is the lease's: nobody waits for himself.
func (a *attempt) shares(lease *Lease) bool {
	return a.Same != nil && a.Same(lease.owner, a.Owner)
}

// enter returns the owner's own lease, or a new one when its turn has come, or ErrLocked.
func (a *attempt) enter(ctx context.Context) (*Lease, error) {
	l := a.locker
	lease := &Lease{locker: l, key: a.Key, keys: keysOf(a.Key), token: cmp.Or(a.token, l.newToken()), owner: a.Owner, ttl: a.TTL, asking: 1}
	l.mu.Lock()
	q := l.lines[a.Key]
	if q == nil {
		l.lines[a.Key] = &line{holder: lease}
		l.mu.Unlock()
		return lease, nil
	}
	if holder := q.holder; a.shares(holder) && holder.join() {
		l.mu.Unlock()
		return holder, nil
	}
	if n := len(q.waiting); a.MaxWaiters > 0 && n >= a.MaxWaiters {
		l.mu.Unlock()
		l.stats.refused.Add(1)
		return nil, fmt.Errorf("%w: %d requests of this process wait for it already, which is MaxWaiters", ErrLocked, n)
	}
	t := turn{a, lease, make(chan *Lease, 1)}
	q.waiting = append(q.waiting, t)
	l.mu.Unlock()

	a.countWait()
	timer := time.NewTimer(time.Until(a.deadline))
	defer timer.Stop()
	select {
	case lease := <-t.came:
		return lease, nil
	case <-ctx.Done():
	case <-timer.C:
	}
	l.stats.refused.Add(1)
	if !l.leave(a.Key, t) { // the turn has come at this very moment
		if lease := <-t.came; lease.leave() {
			go lease.release() // who shared it may have locked, and ended since
		}
	}
	return nil, ended(ctx, ErrLocked)
}

// leave takes a turn out of its line; false: it has come.
func (l *Locker) leave(key string, t turn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.lines[key]
	if q == nil {
		return false
	}
	i := slices.IndexFunc(q.waiting, func(other turn) bool { return other == t })
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	return true
}

// pass gives the turn to the next in line, and to those who share it.
func (l *Locker) pass(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.lines[key]
	if len(q.waiting) == 0 {
		delete(l.lines, key)
		return
	}
	q.holder = q.waiting[0].lease
	q.waiting = slices.DeleteFunc(q.waiting, func(t turn) bool {
		comes := t.lease == q.holder || t.shares(q.holder) && q.holder.join()
		if comes {
			t.came <- q.holder
		}
		return comes
	})
}

// last tells whether it is the lease's turn, and nobody waits behind it.
func (l *Locker) last(lease *Lease) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.lines[lease.key]
	return q != nil && q.holder == lease && len(q.waiting) == 0
}

// holder returns the lease of whoever has the turn, or nil.
func (l *Locker) holder(key string) *Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.lines[key]; q != nil {
		return q.holder
	}
	return nil
}

// Forget ends this process' leases of keys that were deleted, so that those who wait see it.
func (l *Locker) Forget(keys ...string) {
	for _, key := range keys {
		if holder := l.holder(key); holder != nil {
			holder.end()
		}
	}
}
