package lock

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestWhoGivesUpAsItsTurnComesReleasesWhatItShares has two copies of a request get their turn
// at once: one locks and ends, the other has given up at the very moment in which it came.
func TestWhoGivesUpAsItsTurnComesReleasesWhatItShares(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	l, _ := s.process(t)
	first, _ := acquire(t, l, "k")
	ann, end := context.WithCancel(t.Context())
	left, leave := context.WithCancel(t.Context())
	got, gaveUp := make(chan *Lease, 1), make(chan error, 1)
	wait := func(ctx context.Context, w Want, done func(*Lease, error)) {
		before := l.Stats().Waiting
		go func() { lease, _, err := l.Acquire(ctx, w); done(lease, err) }()
		eventually(t, "it waits", func() bool { return l.Stats().Waiting > before })
	}
	wait(ann, by("ann"), func(lease *Lease, _ error) { got <- lease })
	w := by("ann")
	w.Same = func(holder, _ any) bool {
		if holder == "ann" {
			leave()
			time.Sleep(50 * time.Millisecond) // it has seen that
		}
		return holder == "ann"
	}
	wait(left, w, func(_ *Lease, err error) { gaveUp <- err })
	w = by("bob")
	w.Wait = 5 * time.Second
	w.Same = func(holder, _ any) bool {
		if holder == "ann" { // the first copy is fast, or the second slow
			<-got
			end()
			time.Sleep(50 * time.Millisecond)
		}
		return false
	}
	bob := make(chan error, 1)
	wait(t.Context(), w, func(_ *Lease, err error) { bob <- err })
	first.Release()
	wantErr(t, <-gaveUp, ErrLocked)
	must(t, <-bob)
}

// TestALockWithoutExpiryIsAskedForSeldom, and is no missed wake-up.
func TestALockWithoutExpiryIsAskedForSeldom(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	must(t, s.admin.Set(t.Context(), Key("k"), "nobody", 0).Err())
	l, client := s.process(t)
	var asked atomic.Int32
	client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
		if cmd.Name() == "evalsha" {
			asked.Add(1)
		}
		return send()
	}))
	w := want("k")
	w.Wait = 2 * time.Second
	_, _, err := l.Acquire(t.Context(), w)
	wantErr(t, err, ErrLocked)
	equal(t, "unwoken", l.Stats().Unwoken, 0)
	if n := asked.Load(); n > 100 {
		t.Errorf("asked %d times in 2 s", n)
	}
}

// TestAConflictLeavesTheQueue has a process write that waits behind another.
func TestAConflictLeavesTheQueue(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		holder, _ := s.process(t)
		second, _ := s.process(t)
		l, _ := s.process(t)
		held, v := acquire(t, holder, "k")
		got := make(chan *Lease, 1)
		go func() {
			lease, _, _ := second.Acquire(t.Context(), want("k"))
			got <- lease
		}()
		s.queued(t, 1)
		conflict := make(chan error, 1)
		go func() {
			_, err := write(l, "k", nil, v.Version, "mine")
			conflict <- err
		}()
		s.queued(t, 2)
		_, err := write(holder, "k", held, v.Version, "1")
		must(t, err)
		lease := <-got
		wantErr(t, <-conflict, ErrConflict)
		noLine(t, l)
		equal(t, "in the queue", s.admin.LLen(t.Context(), Beside("k", ":queue")).Val(), 0)
		lease.Release()
	})
}

// TestAWriteOfAFreeLockTakesItsTurn has the first in the queue find that the lock has run out.
func TestAWriteOfAFreeLockTakesItsTurn(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	holder, _ := s.process(t)
	l, _ := s.process(t)
	other, client := s.process(t)
	later := make(chan struct{})
	client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
		if cmd.Name() == "evalsha" {
			<-later
		}
		return send()
	}))
	_, v := acquire(t, holder, "k")
	must(t, s.admin.PExpire(t.Context(), Key("k"), 500*time.Millisecond).Err())
	written := make(chan error, 1)
	go func() {
		_, err := write(l, "k", nil, v.Version, "mine")
		written <- err
	}()
	s.queued(t, 1)
	got := make(chan error, 1)
	go func() {
		_, _, err := other.Acquire(t.Context(), want("k"))
		got <- err
	}()
	s.queued(t, 2)
	must(t, <-written)
	noLine(t, l)
	start := time.Now()
	close(later)
	must(t, <-got)
	if took := time.Since(start); took > 100*time.Millisecond {
		t.Errorf("the next waited for %v", took)
	}
}

// TestWhoLeavesWhileAnotherGivesUpLeavesNoPlace has all requests of a process end at once.
func TestWhoLeavesWhileAnotherGivesUpLeavesNoPlace(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		holder, _ := s.process(t)
		held, _ := acquire(t, holder, "k")
		l, client := s.process(t)
		releasing, proceed := make(chan bool), make(chan bool)
		var once atomic.Bool
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if isRelease(cmd) && once.CompareAndSwap(false, true) {
				close(releasing)
				<-proceed
			}
			return send()
		}))
		one, endOne := context.WithCancel(t.Context())
		two, endTwo := context.WithCancel(t.Context())
		gone := make(chan error, 2)
		go func() { _, _, err := l.Acquire(one, want("k")); gone <- err }()
		s.queued(t, 1)
		go func() { _, _, err := l.Acquire(two, want("k")); gone <- err }()
		eventually(t, "both wait", func() bool { return l.Stats().Waiting == 2 })
		endOne()
		<-releasing
		endTwo()
		<-gone
		<-gone
		close(proceed)
		noLine(t, l)
		equal(t, "in the queue", s.admin.LLen(t.Context(), Beside("k", ":queue")).Val(), 0)
		held.Release()
	})
}

// TestAPlaceOutlivesThePause has many more keys be waited for while a process is told to wait.
func TestAPlaceOutlivesThePause(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	holder, _ := s.process(t)
	lease, _ := acquire(t, holder, "k")
	l, client := s.process(t)
	var many atomic.Bool
	client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
		err := send()
		if strings.HasPrefix(cmd.Name(), "eval") && many.CompareAndSwap(false, true) {
			for i := range 20000 {
				l.waker.add(strconv.Itoa(i))
			}
			eventually(t, "it has subscribed", func() bool { return l.waker.hears() })
		}
		return err
	}))
	ctx, end := context.WithCancel(t.Context())
	defer end()
	go l.Acquire(ctx, want("k"))
	s.queued(t, 1)
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		if s.admin.LLen(t.Context(), Beside("k", ":queue")).Val() != 1 {
			t.Fatal("its place in the queue is gone")
		}
	}
	lease.Release()
}
