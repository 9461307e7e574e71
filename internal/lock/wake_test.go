package lock

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestSubscribingHoldsNobodyUp has new connections hang, of which the subscription is one.
func TestSubscribingHoldsNobodyUp(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	s.set(t, "free", "0")
	hang := make(chan struct{})
	var hanging atomic.Bool
	l, _ := s.process(t, func(o *redis.Options) {
		o.MinIdleConns = 0
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if hanging.Load() {
				<-hang
				return nil, io.ErrUnexpectedEOF
			}
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}
	})
	for range 3 { // warm
		change(t, l, "free", "0")
	}
	holder, _ := s.process(t)
	lease, _ := acquire(t, holder, "k")
	var warm sync.WaitGroup
	for range 4 {
		warm.Go(func() { l.Scripts.Client.Do(t.Context(), "blpop", "nothing", "0.2") })
	}
	warm.Wait()
	hanging.Store(true)
	answer := sync.OnceFunc(func() { close(hang) })
	defer answer()
	defer time.AfterFunc(5*time.Second, func() {
		t.Error("somebody waits for the connection")
		answer()
	}).Stop()
	var all sync.WaitGroup
	all.Go(func() {
		lease, _, err := l.Acquire(t.Context(), want("k"))
		if err != nil {
			t.Error(err)
		}
		lease.Release()
	})
	s.queued(t, 1)
	free, _ := acquire(t, l, "free")
	free.Release()
	lease.Release()
	all.Wait()
}

// TestALockThatRanOutIsNoMissedWakeUp has the first in the queue find it by itself.
func TestALockThatRanOutIsNoMissedWakeUp(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	l, _ := s.process(t)
	holder, _ := s.process(t)
	lease, _ := acquire(t, holder, "k")
	done := make(chan struct{})
	go func() { defer close(done); change(t, l, "k", "1") }()
	eventually(t, "it has subscribed", func() bool { return l.waker.hears() })
	lease.Release()
	<-done
	equal(t, "unwoken", l.Stats().Unwoken, 0)
	w := want("k")
	w.TTL = 300 * time.Millisecond
	_, _, err := holder.Acquire(t.Context(), w)
	must(t, err)
	change(t, l, "k", "2")
	equal(t, "unwoken", l.Stats().Unwoken, 0)
	equal(t, "subscribed", l.waker.hears(), true)
}

// TestWhatIsSentInTheBackgroundEnds as a client's ReadTimeout may be off: Redis does not answer
// the message with which a process tries its channel.
func TestWhatIsSentInTheBackgroundEnds(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	l, client := s.process(t)
	bounded := make(chan bool, 1)
	client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, send func() error) error {
		if cmd.Name() == "publish" {
			_, ok := ctx.Deadline()
			bounded <- ok
		}
		return send()
	}))
	holder, _ := s.process(t)
	held, _ := acquire(t, holder, "k")
	defer time.AfterFunc(200*time.Millisecond, held.Release).Stop()
	acquire(t, l, "k")
	equal(t, "it has a deadline", <-bounded, true)
}
