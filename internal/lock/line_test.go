package lock

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/script"
)

// These tests have no Redis: only those who have the turn would talk to it, through a client
// that is closed.

func newLine() *Locker {
	client := redis.NewClient(&redis.Options{})
	client.Close()
	return New(&script.Runner{Client: client}, "wake:")
}

// noLine waits until nobody stands in a line: who gave up as his turn came ends in the background.
func noLine(t *testing.T, l *Locker) {
	t.Helper()
	eventually(t, "no line is left", func() bool { return l.Stats().Held == 0 })
}

// queued lets somebody wait for "k", and returns when it stands in line. Its turn comes on
// the channel.
func queued(t *testing.T, l *Locker, owner any) chan *Lease {
	t.Helper()
	before := l.Stats().Waiting
	turn := make(chan *Lease, 1)
	go func() {
		w := want("k")
		w.Owner = owner
		a := l.attempt(w)
		defer a.end()
		lease, err := a.enter(context.Background())
		if err == nil {
			turn <- lease
		}
	}()
	eventually(t, "it waits", func() bool { return l.Stats().Waiting > before })
	return turn
}

func enter(t *testing.T, l *Locker) *Lease {
	t.Helper()
	lease, err := l.attempt(want("k")).enter(t.Context())
	must(t, err)
	return lease
}

func TestFirstComeFirstServed(t *testing.T) {
	l := newLine()
	now := enter(t, l)
	var turns []chan *Lease
	for range 20 {
		turns = append(turns, queued(t, l, nil))
	}
	for i, turn := range turns {
		for _, later := range turns[i:] {
			equal(t, "turns that came too early", len(later), 0)
		}
		now.end()
		now.end() // once
		now = <-turn
	}
	now.end()
	noLine(t, l)
}

func TestMaxWaitersCountsThoseWhoWait(t *testing.T) {
	l := newLine()
	holder := enter(t, l)
	first := queued(t, l, nil)
	w := want("k")
	w.MaxWaiters = 1
	_, err := l.attempt(w).enter(t.Context())
	wantErr(t, err, ErrLocked)
	holder.end()
	(<-first).end()
	lease, err := l.attempt(w).enter(t.Context())
	must(t, err)
	lease.end()
	equal(t, "refused", l.Stats().Refused, 1)
}

func TestTheSameOwnerDoesNotWaitForItself(t *testing.T) {
	l := newLine()
	w := want("k")
	w.Owner, w.Same = "ann", func(holder, owner any) bool { return holder == owner }
	mine, err := l.attempt(w).enter(t.Context())
	must(t, err)
	again, err := l.attempt(w).enter(t.Context())
	must(t, err)
	equal(t, "the same lease", again, mine)
	w.Owner, w.Wait = "bob", 0
	_, err = l.attempt(w).enter(t.Context())
	wantErr(t, err, ErrLocked)
	mine.end()
	other, err := l.attempt(w).enter(t.Context())
	must(t, err)
	other.end()
}

// TestWhoGivesUpIsPassedOver, wherever it stands, also in the moment in which its turn comes.
func TestWhoGivesUpIsPassedOver(t *testing.T) {
	l := newLine()
	holder := enter(t, l)
	ctx, end := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := l.attempt(want("k")).enter(ctx)
		gaveUp <- err
	}()
	eventually(t, "it waits", func() bool { return l.Stats().Waits == 1 })
	second := queued(t, l, nil)
	end()
	err := <-gaveUp
	wantErr(t, err, ErrLocked)
	wantErr(t, err, context.Canceled)
	holder.end()
	(<-second).end()
	noLine(t, l)
}

// TestNoTurnIsLostOrDoubled has many come, leave and give up at random.
func TestNoTurnIsLostOrDoubled(t *testing.T) {
	l := newLine()
	keys := []string{"a", "b", "c", "forgotten"}
	var inside [3]int // guarded by the turn
	var all sync.WaitGroup
	for range 4 { // of a session that is deleted again and again, nobody is sure to have the turn
		all.Go(func() {
			for range 1000 {
				a := l.attempt(want(keys[3]))
				if lease, err := a.enter(context.Background()); err == nil {
					lease.end()
				}
				a.end()
			}
		})
	}
	for range 32 {
		all.Go(func() {
			for range 300 {
				i := rand.IntN(3)
				ctx, end := context.WithCancel(context.Background())
				w := want(keys[i])
				if rand.IntN(3) == 0 {
					w.Wait = rand.N(100 * time.Microsecond)
				}
				if rand.IntN(10) == 0 {
					end()
				}
				a := l.attempt(w)
				lease, err := a.enter(ctx)
				a.end()
				if err == nil {
					if inside[i]++; inside[i] != 1 {
						t.Error("two have the turn")
					}
					inside[i]--
					lease.end()
					l.Forget("none", keys[3]) // while others come and go
				} else if !errors.Is(err, ErrLocked) {
					t.Error(err)
				}
				end()
			}
		})
	}
	all.Wait()
	noLine(t, l)
	equal(t, "waiting", l.Stats().Waiting, 0)
	if !slices.Equal(inside[:], []int{0, 0, 0}) {
		t.Errorf("inside are %v", inside)
	}
}

// TestAPlaceIsNotShortened has a process that asks seldom wait behind one that asks often.
func TestAPlaceIsNotShortened(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	many, _ := s.process(t)
	few, _ := s.process(t)
	for i := range 5000 {
		many.waker.add(strconv.Itoa(i))
	}
	holder, _ := s.process(t)
	lease, _ := acquire(t, holder, "k")
	ctx, end := context.WithCancel(t.Context())
	defer end()
	for i, l := range []*Locker{many, few} {
		go l.Acquire(ctx, want("k"))
		s.queued(t, i+1)
	}
	if left := s.admin.PTTL(t.Context(), Beside("k", ":queue")).Val(); left < 20*time.Second {
		t.Errorf("the queue lives for %v", left)
	}
	lease.Release()
}

// TestACopyThatEndsLeavesTheOthersTheirLock, which they share.
func TestACopyThatEndsLeavesTheOthersTheirLock(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	l, _ := s.process(t)
	other, _ := s.process(t)
	w := want("k")
	w.Owner, w.Same = "ann", func(holder, owner any) bool { return holder == owner }
	lease, _, err := l.Acquire(t.Context(), w)
	must(t, err)
	ctx, end := context.WithCancel(t.Context())
	_, _, err = l.Acquire(ctx, w)
	must(t, err)
	end()
	eventually(t, "the lease has seen it", func() bool {
		lease.mu.Lock()
		defer lease.mu.Unlock()
		return len(lease.ends) == 1
	})
	w2 := want("k")
	w2.Wait = 0
	_, _, err = other.Acquire(t.Context(), w2)
	wantErr(t, err, ErrLocked)
	lease.Release()
}

// TestAReaderIsNoWriter has the version run out, and then somebody lock the key and leave
// it as it is.
func TestAReaderIsNoWriter(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		l, _ := s.process(t)
		other, _ := s.process(t)
		s.set(t, "k", "0")
		for _, seen := range []*Version{nil, Created([]byte("0"))} {
			if seen == nil {
				lease, v := acquire(t, l, "k")
				lease.Release()
				seen = v.Version
				must(t, s.admin.Del(t.Context(), Keys("k")...).Err())
			}
			lease, _ := acquire(t, other, "k")
			lease.Release()
			_, err := write(l, "k", nil, seen, "0")
			must(t, err)
			must(t, s.admin.Del(t.Context(), Keys("k")...).Err())
		}
	})
}
