package lock

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// by is a Want of somebody who shares the lock with himself.
func by(owner string) Want {
	w := want("k")
	w.Owner, w.Same = owner, func(holder, owner any) bool { return holder == owner }
	return w
}

// open tells whether a lease can be shared.
func (l *Lease) open() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stage == open
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
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("they waited for each other: %v", took)
		}
	})
}

// TestACopyThatFailsLeavesTheOthersTheirLock has one of those who share it ask with a context
// that has ended.
func TestACopyThatFailsLeavesTheOthersTheirLock(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		l, _ := s.process(t)
		other, _ := s.process(t)
		lease, _, err := l.Acquire(t.Context(), by("ann"))
		must(t, err)
		ctx, end := context.WithCancel(t.Context())
		end()
		_, _, err = l.Acquire(ctx, by("ann"))
		wantErr(t, err, context.Canceled)
		time.Sleep(100 * time.Millisecond) // what it would do, it does in the background
		w := want("k")
		w.Wait = 0
		_, _, err = other.Acquire(t.Context(), w)
		wantErr(t, err, ErrLocked)
		equal(t, "it is held", lease.open(), true)
	})
}

// TestACopyThatGivesUpLeavesTheOthersTheirLock has two of one owner ask at the same time, and
// the one that is told to wait end when the other has the lock.
func TestACopyThatGivesUpLeavesTheOthersTheirLock(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		l, client := s.process(t)
		type copied struct{}
		ctx, end := context.WithCancel(context.WithValue(t.Context(), copied{}, true))
		asks, held := make(chan bool), make(chan bool)
		client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, send func() error) error {
			if ctx.Value(copied{}) == nil {
				return send()
			}
			close(asks)
			<-held
			end()
			cmd.(*redis.Cmd).SetVal(int64(1000))
			return nil
		}))
		gone := make(chan error)
		go func() {
			_, _, err := l.Acquire(ctx, by("ann"))
			gone <- err
		}()
		<-asks
		lease, _, err := l.Acquire(t.Context(), by("ann"))
		must(t, err)
		close(held)
		wantErr(t, <-gone, ErrLocked)
		time.Sleep(100 * time.Millisecond) // what it would do, it does in the background
		equal(t, "it is held", lease.open(), true)
	})
}

// TestALockThatIsBeingReleasedIsNotShared has a copy come while the end of another gives the
// lock up.
func TestALockThatIsBeingReleasedIsNotShared(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		l, client := s.process(t)
		other, _ := s.process(t)
		ctx, end := context.WithCancel(t.Context())
		_, _, err := l.Acquire(ctx, by("ann"))
		must(t, err)
		releasing, proceed := make(chan bool), make(chan bool)
		var once sync.Once
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if isRelease(cmd) {
				once.Do(func() { close(releasing); <-proceed })
			}
			return send()
		}))
		end()
		<-releasing
		time.AfterFunc(50*time.Millisecond, func() { close(proceed) })
		lease, _, err := l.Acquire(t.Context(), by("ann"))
		must(t, err)
		<-proceed
		time.Sleep(100 * time.Millisecond)
		equal(t, "it is held", lease.open(), true)
		w := want("k")
		w.Wait = 0
		_, _, err = other.Acquire(t.Context(), w)
		wantErr(t, err, ErrLocked)
	})
}

// isRelease tells a release by its script or its number of arguments.
func isRelease(cmd redis.Cmder) bool {
	return strings.HasPrefix(cmd.Name(), "eval") && len(cmd.Args()) == 3+4+3
}

// TestWhoGivesUpLeavesNobodyElsesPlace has another of the process come as one leaves.
func TestWhoGivesUpLeavesNobodyElsesPlace(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		holder, _ := s.process(t)
		held, _ := acquire(t, holder, "k")
		l, client := s.process(t)
		proceed := make(chan bool)
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if isRelease(cmd) {
				<-proceed
			}
			return send()
		}))
		w := want("k")
		w.Wait = 10 * time.Millisecond
		_, _, err := l.Acquire(t.Context(), w)
		wantErr(t, err, ErrLocked)
		got := make(chan error)
		asked := l.Stats().Waits
		go func() {
			_, _, err := l.Acquire(t.Context(), want("k"))
			got <- err
		}()
		eventually(t, "the other waits", func() bool { return l.Stats().Waits > asked })
		time.Sleep(50 * time.Millisecond)
		close(proceed)
		eventually(t, "it has a place in the queue", func() bool { return s.admin.LLen(t.Context(), Beside("k", ":queue")).Val() == 1 })
		held.Release()
		must(t, <-got)
	})
}
