package lock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redistore/redistore/internal/script"
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
			lease.end()
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

// A Lease is a lock that Redis has given, and before that the turn to ask for it. Several
// goroutines of its owner may use it.
type Lease struct {
	locker *Locker
	key    string
	keys   []any // of the scripts
	token  string
	owner  any
	ttl    time.Duration

	mu     sync.Mutex
	asking int         // how many of those who share it do not know yet whether they get it
	given  bool        // by Redis
	over   bool        // nobody may share it any more
	passed bool        // the next has the turn
	again  bool        // Redis may have given it after it was given up
	timer  *time.Timer // when Redis takes it back

	// The contexts of those who share it, each with what stops the release at its end.
	ends map[<-chan struct{}]func() bool
}

// arm has the lease end after ttl, or with ctx and those of whom else shares it. It returns
// false if it has ended already.
func (l *Lease) arm(ctx context.Context, ttl time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.asking--
	l.given = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(max(0, ttl), func() {
		l.locker.stats.lapsed.Add(1)
		l.end()
	})
	// net/http cancels the context when the handler has returned, whichever way.
	done := ctx.Done()
	if l.ends == nil {
		l.ends = map[<-chan struct{}]func() bool{}
	}
	if l.ends[done] == nil {
		l.ends[done] = context.AfterFunc(ctx, func() {
			if l.unused(done) {
				l.release()
			}
		})
	}
	return true
}

// unused tells whether the context that has ended was the last one.
func (l *Lease) unused(done <-chan struct{}) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, shared := l.ends[done]
	delete(l.ends, done)
	return shared && l.closeUnused()
}

// join has one more ask for the lease, if it can be shared.
func (l *Lease) join() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.asking++
	return true
}

// leave has one that asked share the lease no more. It tells whether that was the last, which
// closes the lease.
func (l *Lease) leave() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asking--
	return l.closeUnused()
}

// closeUnused closes the lease if nobody has it or asks for it: none is to share what is being
// given up.
func (l *Lease) closeUnused() bool {
	if l.over || len(l.ends) > 0 || l.asking > 0 {
		return false
	}
	l.over = true
	l.disarm()
	return true
}

// abandon leaves a lease after an error. Who shares it keeps it, and gives it up.
func (a *attempt) abandon(lease *Lease, err error) {
	if lease.leave() {
		a.giveUp(lease, err)
	} else {
		go lease.giveBack()
	}
}

// giveUp gives up a lease that was closed, after an error. Redis may have given it all the
// same, if the error is not that somebody else has it.
func (a *attempt) giveUp(lease *Lease, err error) {
	if errors.Is(err, ErrLocked) && a.Wait <= 0 { // it stands in no queue
		lease.end()
	} else {
		go lease.release()
	}
}

// disarm also forgets the contexts, which may lead to whoever keeps the lease.
func (l *Lease) disarm() {
	if l.timer != nil {
		l.timer.Stop()
	}
	for _, stop := range l.ends {
		stop()
	}
	l.timer, l.ends = nil, nil
}

// close says that the lease is about to end, which is the caller's to see to. It returns
// false if it has ended, or somebody else sees to it.
func (l *Lease) close() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	over := l.over
	l.over = true
	l.disarm()
	return !over
}

// end forgets the lease and gives the turn to the next, once.
func (l *Lease) end() {
	l.close()
	l.mu.Lock()
	passed, again := l.passed, l.again
	l.passed = true
	l.mu.Unlock()
	switch {
	case passed:
	case again:
		go func() {
			l.unlock(false)
			l.locker.pass(l.key)
		}()
	default:
		l.locker.pass(l.key)
	}
}

// giveBack gives up what Redis may have given to one who shares the lease no more. If others
// do, that is left to the lease's end: the lock is theirs, and so is a write that is under way.
func (l *Lease) giveBack() {
	l.mu.Lock()
	passed := l.passed
	l.again = true
	l.mu.Unlock()
	if passed {
		l.unlock(false)
	}
}

// Release gives the lock up. It may be called again, and on nil.
func (l *Lease) Release() {
	if l != nil && l.close() {
		l.release()
	}
}

// release gives up what may be locked, and the process' place in the queue if nobody of it
// waits, and then lets the next one ask.
func (l *Lease) release() {
	l.unlock(l.locker.last(l))
	l.end()
}

// unlock gives up what may be locked. A Redis that was stopped may yet get the request that
// locks, and one that refuses may soon not, so it is told again until the lock has run out.
func (l *Lease) unlock(leave bool) {
	err := l.locker.unlock(l, leave)
	l.mu.Lock()
	given := l.given
	l.mu.Unlock()
	if err != nil && (given || !script.IsReply(err)) {
		go l.releaseAgain()
	}
}

func (l *Lease) releaseAgain() {
	for until := time.Now().Add(l.ttl); time.Now().Before(until); {
		time.Sleep(min(l.ttl, retryRelease))
		if l.locker.unlock(l, false) == nil {
			return
		}
	}
}

const retryRelease = 250 * time.Millisecond
