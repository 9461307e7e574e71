package lock

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestACopyThatFailsLeavesTheOthersTheirPlace has one of those who share a turn end while
// another of them waits for another process.
func TestACopyThatFailsLeavesTheOthersTheirPlace(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		holder, _ := s.process(t)
		held, _ := acquire(t, holder, "k")
		l, _ := s.process(t)
		var mu sync.Mutex
		var order []string
		var all sync.WaitGroup
		come := func(l *Locker, owner string) {
			all.Go(func() {
				lease, _, err := l.Acquire(t.Context(), by(owner))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, owner)
				mu.Unlock()
				lease.Release()
			})
		}
		come(l, "ann")
		s.queued(t, 1)
		other, _ := s.process(t)
		come(other, "bob")
		s.queued(t, 2)
		come(l, "cid")
		eventually(t, "cid waits", func() bool { return l.Stats().Waiting == 2 })

		ctx, end := context.WithCancel(t.Context())
		end()
		_, _, err := l.Acquire(ctx, by("ann"))
		wantErr(t, err, context.Canceled)
		time.Sleep(50 * time.Millisecond) // what it would do, it does in the background
		equal(t, "it is ann's turn", l.holder("k").owner, any("ann"))
		held.Release()
		all.Wait()
		equal(t, "the first", order[0], "ann")
	})
}

// TestWhoGivesUpAsItsTurnComesLeavesItToTheOthers has the turns of two of one owner come as the
// context of the first one ends.
func TestWhoGivesUpAsItsTurnComesLeavesItToTheOthers(t *testing.T) {
	l := newLine()
	bob := enter(t, l)
	ctx, end := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := l.attempt(by("ann")).enter(ctx)
		gone <- err
	}()
	eventually(t, "it waits", func() bool { return l.Stats().Waiting == 1 })
	ann := queued(t, l, "ann")

	l.mu.Lock()
	go bob.end()
	time.Sleep(50 * time.Millisecond)
	end()
	time.Sleep(50 * time.Millisecond)
	l.mu.Unlock()
	wantErr(t, <-gone, ErrLocked)
	equal(t, "the other has it", (<-ann).open(), true)
}

// TestACopyThatComesTooLateLeavesTheWriterTheLock has a copy learn that it has the lock, or
// fail, while another is about to write, and another process wait.
func TestACopyThatComesTooLateLeavesTheWriterTheLock(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) { tooLate(t, s, nil) })
	onServers(t, func(t *testing.T, s *site) { tooLate(t, s, context.Canceled) })
}

func tooLate(t *testing.T, s *site, fails error) {
	s.set(t, "k", "0")
	l, client := s.process(t)
	lease, v, err := l.Acquire(t.Context(), by("ann"))
	must(t, err)
	type copied struct{}
	answered, writing := make(chan bool), make(chan bool)
	client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, send func() error) error {
		switch {
		case isWrite(cmd):
			close(writing)
			time.Sleep(200 * time.Millisecond)
		case ctx.Value(copied{}) != nil && !isRelease(cmd):
			err := send()
			select {
			case <-answered:
				return err
			default:
			}
			close(answered)
			<-writing
			if fails != nil {
				cmd.SetErr(fails)
			}
			return cmd.Err()
		}
		return send()
	}))
	got := make(chan error)
	go func() {
		lease, _, err := l.Acquire(context.WithValue(t.Context(), copied{}, true), by("ann"))
		lease.Release()
		got <- err
	}()
	<-answered
	other, _ := s.process(t)
	var last sync.WaitGroup
	last.Go(func() { change(t, other, "k", "bob") })
	s.queued(t, 1)
	_, err = l.Write(t.Context(), Write{Want: by("ann"), Lease: lease, Seen: v.Version, Data: []byte("ann"), Expiry: time.Hour})
	must(t, err)
	wantErr(t, <-got, fails)
	last.Wait()
}
