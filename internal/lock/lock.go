// Package lock puts those in order who want to change one key, in this process and in
// others, and lets a write through only if nobody else has written since the writer read.
// It knows keys and bytes, not what they mean.
//
// Beside a key K it keeps, in the same Cluster slot:
//
//	{K}:lock     the holder's token, for TTL; or a process that has the next turn, for 200 ms
//	{K}:version  the token of the last write, for TTL, Wait and a minute; then, with a "?", of who locked first
//	{K}:queue    the processes that wait, each by its channel; a little longer than they take to ask again
//	{K}:TOKEN    a large value that is about to be written
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

	// retryRelease is when a release that failed is tried again.
	retryRelease = 250 * time.Millisecond

	// reserve is how long the lock is kept for a process whose turn has come: longer than
	// maxPoll, so that one that is not woken finds it.
	reserve = 200 * time.Millisecond
)

// A Locker holds the locks of one process on one Redis. Its fields are set before its first
// use.
type Locker struct {
	Scripts *script.Runner
	large   int // see large

	process string // its name and its channel
	tokens  atomic.Uint64
	waker   waker
	stats   counters

	mu    sync.Mutex
	lines map[string]*line // by key; only those that somebody stands in
}

// New makes a Locker whose processes are woken on channels that start with prefix.
func New(scripts *script.Runner, prefix string) *Locker {
	l := &Locker{Scripts: scripts, large: large, process: prefix + rand.Text(), lines: map[string]*line{}}
	l.waker = waker{client: scripts.Client, channel: l.process, quiet: 10 * time.Second}
	return l
}

// Want says which lock is wanted, and how.
type Want struct {
	Key        string
	TTL        time.Duration // of the lock
	Wait       time.Duration // for the lock; 0: not at all; less: nor for Redis as long as timeout
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

// ended adds, to an error, that the request has ended.
func ended(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// unlock gives a lease's lock up, and the process' place in the queue too if it is to leave.
// If that fails, both expire. Through a client that is closed nothing can be told any more.
func (l *Locker) unlock(lease *Lease, leave bool) error {
	process := ""
	if leave {
		process = l.process
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := l.run(ctx, releaseScript, lease.keys, lease.token, process, millis(reserve))
	if errors.Is(err, redis.ErrClosed) {
		return nil
	}
	return err
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
