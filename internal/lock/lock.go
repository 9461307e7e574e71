// Package lock puts those in order who want to change one key, in this process and in
// others, and lets a write through only if nobody else has written since the writer read.
// It knows keys and bytes, not what they mean.
//
// Beside a key K it keeps three, in the same Cluster slot: {K}:lock is the holder's token,
// or a reservation for a process, and expires with it; {K}:version is the token of the last
// write; {K}:queue lists the processes that wait.
package lock

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/script"
)

var (
	// ErrLocked: the lock was not free within Wait, or too many wait for it already.
	ErrLocked = errors.New("redistore: the session is locked")

	// ErrConflict: somebody else has written since. Nothing was written.
	ErrConflict = errors.New("redistore: the session was changed by another request")

	// ErrGone: the key is not there any more. Nothing was written.
	ErrGone = errors.New("lock: the key is gone")
)

const (
	// timeout bounds one attempt to talk to Redis.
	timeout = 5 * time.Second

	// attempts at a write whose reply is lost, as many as go-redis would make.
	attempts = 4

	// reserve is how long the lock is kept for a process whose turn has come: longer than
	// maxPoll, so that one that is not woken finds it.
	reserve = 200 * time.Millisecond
)

// A Locker holds the locks of one process on one Redis. Its fields are set before its first
// use.
type Locker struct {
	Scripts *script.Runner

	process string // its name and its channel
	tokens  atomic.Uint64
	waker   waker
	stats   counters

	mu    sync.Mutex
	lines map[string]*line // by key; only those that somebody stands in
}

// New makes a Locker whose processes are woken on channels that start with prefix.
func New(scripts *script.Runner, prefix string) *Locker {
	l := &Locker{Scripts: scripts, process: prefix + rand.Text(), lines: map[string]*line{}}
	l.waker = waker{client: scripts.Client, channel: l.process, quiet: 10 * time.Second}
	return l
}

// Want says which lock is wanted, and how.
type Want struct {
	Key        string
	TTL        time.Duration // of the lock
	Wait       time.Duration // for the lock; 0: not at all
	MaxWaiters int           // of this process; 0: no limit
	Expire     time.Duration // the key's expiry from now; 0: as it is

	// Owner is who wants it. Those who are the Same share a lock.
	Owner any
	Same  func(holder, owner any) bool
}

// A Value is what stood under a key.
type Value struct {
	Data    []byte
	Version *Version
}

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
		if err != nil || taken {
			return lease, value, err
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

// take asks Redis for the lock. It is not taken if another goroutine has ended the lease
// meanwhile.
func (a *attempt) take(ctx context.Context, lease *Lease) (v Value, taken bool, err error) {
	l := a.locker
	var asked time.Time
	reply, err := a.ask(ctx, func(queue int64) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		asked = time.Now()
		return l.run(ctx, acquireScript, lease.keys, lease.token, l.process, queue, millis(reserve),
			max(1, millis(a.TTL)), seconds(a.life()), seconds(a.Expire))
	})
	switch {
	case errors.Is(err, ErrLocked), errors.Is(err, redis.Nil):
		lease.end()
		return v, false, err
	case err != nil: // a reply may have been lost, and the lock been taken
		go lease.release()
		return v, false, err
	}
	if !lease.arm(ctx, a.TTL-time.Since(asked)) {
		l.unlock(ctx, lease.keys, lease.token, false)
		return v, false, nil
	}
	parts, _ := reply.([]any)
	text, _ := parts[0].(string)
	version, _ := parts[1].(string)
	data := []byte(text)
	return Value{data, saw(version, data)}, true, nil
}

// ask repeats a question for as long as the answer is that somebody else has the lock, or
// that Redis is busy with itself. queue is the expiry of the process' place in the queue,
// in milliseconds; 0: it does not wait.
func (a *attempt) ask(ctx context.Context, question func(queue int64) (any, error)) (any, error) {
	var queue int64
	if a.Wait > 0 {
		queue = millis(queueLife)
	}
	n := notice{waker: &a.locker.waker, key: a.Key}
	defer n.close()
	for {
		reply, err := question(queue)
		left, locked := reply.(int64)
		if err == nil && !locked || err != nil && !script.IsPassing(err) {
			if parts, _ := reply.([]any); n.missed && len(parts) == 3 { // it was reserved for us
				a.locker.stats.unwoken.Add(1)
				n.waker.distrust()
			}
			return reply, err
		}
		if locked {
			err = ErrLocked
		}
		a.wait()
		rest := time.Until(a.deadline)
		if rest <= 0 || !n.wait(ctx, rest, time.Duration(left)*time.Millisecond) {
			a.locker.stats.refused.Add(1)
			if locked && a.locker.last(a.Key) {
				go a.locker.unlock(ctx, keysOf(a.Key), "", true)
			}
			return nil, ended(ctx, err)
		}
	}
}

// wait counts that this attempt has to, once.
func (a *attempt) wait() {
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

// ended adds, to an error, that the request has ended.
func ended(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// unlock gives the lock up, and the process' place in the queue too if nobody of it waits.
// If that fails, both expire.
func (l *Locker) unlock(ctx context.Context, keys []any, token string, leave bool) {
	process := ""
	if leave {
		process = l.process
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	_, _ = l.run(ctx, releaseScript, keys, token, process, millis(reserve))
}

func (l *Locker) run(ctx context.Context, s *script.Script, keys []any, args ...any) (any, error) {
	return l.Scripts.Run(ctx, s, keys, args...).Result()
}

// newToken names a lease or a write: nobody else's is the same.
func (l *Locker) newToken() string {
	var b [64]byte
	token := append(append(b[:0], l.process...), ':')
	return string(strconv.AppendUint(token, l.tokens.Add(1), 36))
}

// Key is the lock's key; "" if it cannot be in the same Cluster slot.
func Key(key string) string { return Beside(key, ":lock") }

// Beside returns a key in the same Cluster slot: the given one is its hash tag, or has
// one. "" if there is no such key.
func Beside(key, suffix string) string {
	if _, tag, found := strings.Cut(key, "{"); found && strings.Index(tag, "}") > 0 {
		return key + suffix
	}
	if strings.Contains(key, "}") {
		return ""
	}
	return "{" + key + "}" + suffix
}

// Keys are all that is kept beside a key.
func Keys(key string) []string {
	return []string{Key(key), Beside(key, ":version"), Beside(key, ":queue")}
}

// keysOf are the key and those, as scripts take them.
func keysOf(key string) []any {
	return []any{key, Key(key), Beside(key, ":version"), Beside(key, ":queue")}
}

func millis(d time.Duration) int64  { return d.Milliseconds() }
func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func jitter(d time.Duration) time.Duration { return d/2 + mathrand.N(d/2+1) }
