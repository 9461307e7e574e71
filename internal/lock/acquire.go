package lock

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/script"
)

// Acquire takes the lock and reads the key, as soon as nobody else holds it. The lock is
// released by a Write, by Release, or when ctx ends; it expires after TTL. Where there is
// no key there is no lock: the error is redis.Nil.
func (l *Locker) Acquire(ctx context.Context, w Want) (*Lease, Value, error) {
	a := l.attempt(w)
	defer a.end()
	for {
		lease, err := a.enter(ctx)
		if err != nil {
			return nil, Value{}, err
		}
		value, taken, err := a.take(ctx, lease)
		if err != nil {
			return nil, Value{}, err
		}
		if taken {
			return lease, value, nil
		}
	}
}

// An attempt is one call that wants a lock.
type attempt struct {
	Want
	locker   *Locker
	token    string // of its lease; "": a new one
	deadline time.Time
	waits    time.Time // since when; zero: it does not have to
}

func (l *Locker) attempt(w Want) *attempt {
	const most = 365 * 24 * time.Hour // beyond 292 years a time.Duration overflows
	w.Wait, w.TTL = min(w.Wait, most), min(w.TTL, most)
	return &attempt{Want: w, locker: l, deadline: time.Now().Add(w.Wait)}
}

// bounded bounds what is sent to Redis: by timeout, and all of an attempt by its Wait and
// timeout.
func (a *attempt) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, min(timeout, time.Until(a.deadline)+timeout))
}

// take asks Redis for the lock. It is not taken if another goroutine has ended the lease
// meanwhile.
func (a *attempt) take(ctx context.Context, lease *Lease) (v Value, taken bool, err error) {
	l := a.locker
	var asked time.Time
	reply, err := a.ask(ctx, func(queue int64) (any, error) {
		ctx, cancel := a.bounded(ctx)
		defer cancel()
		asked = time.Now()
		return l.run(ctx, acquireScript, lease.keys, lease.token, l.process, queue, millis(reserve),
			max(1, millis(a.TTL)), seconds(a.life()), seconds(a.Expire), l.large)
	})
	switch {
	case errors.Is(err, redis.Nil):
		lease.end()
		return v, false, err
	case err != nil:
		a.abandon(lease, err)
		if !errors.Is(err, ErrLocked) && ctx.Err() != nil && !a.waits.IsZero() { // it has waited until its end
			l.stats.refused.Add(1)
			err = ended(ctx, ErrLocked)
		}
		return v, false, err
	}
	parts, _ := reply.([]any)
	version, _ := parts[1].(string)
	text, ok := parts[0].(string)
	if !ok {
		if text, err = a.get(ctx); err != nil {
			a.abandon(lease, err)
			return v, false, err
		}
	}
	if !lease.arm(ctx, a.TTL-time.Since(asked)) {
		lease.giveBack()
		return v, false, nil
	}
	data := []byte(text)
	return Value{data, saw(version, data)}, true, nil
}

// ask repeats a question for as long as the answer is that somebody else has the lock, or
// that Redis is busy with itself. queue is the expiry of the process' place in the queue,
// in milliseconds; 0: it does not wait.
func (a *attempt) ask(ctx context.Context, question func(queue int64) (any, error)) (any, error) {
	n := notice{waker: &a.locker.waker, key: a.Key}
	defer n.close()
	for {
		var longest time.Duration
		var queue int64
		if a.Wait > 0 {
			longest = n.waker.idleTime()
			queue = millis(4 * longest) // longer than it takes to ask again
		}
		reply, err := question(queue)
		left, locked := reply.(int64)
		parts, _ := reply.([]any)
		if n.missed && (len(parts) == 3 || left < 0) { // it is reserved for us, or was: our place in the queue is gone
			a.locker.stats.unwoken.Add(1)
			n.waker.distrust()
		}
		left = max(left, -left)
		if err == nil && !locked || err != nil && !script.IsPassing(err) {
			return reply, err
		}
		if locked {
			err = ErrLocked
		}
		rest := time.Until(a.deadline)
		if rest > 0 {
			a.countWait()
			if n.wait(ctx, rest, time.Duration(left)*time.Millisecond, longest) {
				continue
			}
		}
		if locked {
			a.locker.stats.refused.Add(1)
		}
		return nil, ended(ctx, err)
	}
}

// countWait counts that this attempt has to wait, once.
func (a *attempt) countWait() {
	if a.waits.IsZero() {
		a.waits = time.Now()
		a.locker.stats.waiting.Add(1)
		a.locker.stats.waited.Add(1)
	}
}

func (a *attempt) end() {
	if !a.waits.IsZero() {
		a.locker.stats.waiting.Add(-1)
		a.locker.stats.time.Add(int64(time.Since(a.waits)))
	}
}

// life is how long a version is kept: longer than what was sent may take to arrive.
func (a *attempt) life() time.Duration { return time.Minute + a.TTL + min(a.Wait, time.Hour) }
