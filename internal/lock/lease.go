package lock

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redistore/redistore/internal/script"
)

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
	stage  stage
	asking int         // how many of those who share it do not know yet whether they get it
	given  bool        // by Redis
	again  bool        // Redis may have given it after it was given up
	timer  *time.Timer // when Redis takes it back

	// The contexts of those who share it, each with what stops the release at its end.
	ends map[<-chan struct{}]func() bool
}

// A stage of a lease. It only goes forward.
type stage int

const (
	open    stage = iota // its owner may share it
	closing              // nobody may; who closed it sees to its end
	passed               // the next has the turn
)

// arm has the lease end after ttl, or with ctx and those of whom else shares it. It returns
// false if it has ended already.
func (l *Lease) arm(ctx context.Context, ttl time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stage != open {
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
	if l.stage != open {
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
	return len(l.ends) == 0 && l.asking == 0 && l.shut()
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

// close says that the lease is about to end, which is the caller's to see to. It returns
// false if it has ended, or somebody else sees to it.
func (l *Lease) close() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shut()
}

// shut closes the lease. It also forgets the contexts, which may lead to whoever keeps the
// lease.
func (l *Lease) shut() bool {
	if l.stage != open {
		return false
	}
	l.stage = closing
	if l.timer != nil {
		l.timer.Stop()
	}
	for _, stop := range l.ends {
		stop()
	}
	l.timer, l.ends = nil, nil
	return true
}

// end forgets the lease and gives the turn to the next, once.
func (l *Lease) end() {
	l.mu.Lock()
	l.shut()
	first, again := l.stage == closing, l.again
	l.stage = passed
	l.mu.Unlock()
	switch {
	case !first:
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
	late := l.stage == passed
	l.again = true
	l.mu.Unlock()
	if late {
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
	leave := l.locker.last(l)
	l.unlock(leave)
	if !leave && l.locker.last(l) { // who waited has left meanwhile
		l.unlock(true)
	}
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
