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
	eventually(t, "it is in the queue", func() bool { return s.admin.LLen(t.Context(), Beside("k", ":queue")).Val() == 1 })
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
	eventually(t, "it has subscribed", func() bool { return subscribed(l) })
	lease.Release()
	<-done
	equal(t, "unwoken", l.Stats().Unwoken, 0)
	w := want("k")
	w.TTL = 300 * time.Millisecond
	_, _, err := holder.Acquire(t.Context(), w)
	must(t, err)
	change(t, l, "k", "2")
	equal(t, "unwoken", l.Stats().Unwoken, 0)
	equal(t, "subscribed", subscribed(l), true)
}

// TestWithoutTheRightToPublish alone, the order holds.
func TestWithoutTheRightToPublish(t *testing.T) {
	s := realSite(t)
	must(t, s.admin.Do(t.Context(), "ACL", "SETUSER", "app", "on", "nopass", "~*", "&*", "+@all", "-publish").Err())
	as := func(o *redis.Options) { o.Username, o.Password = "app", "any" }
	s.set(t, "k", "0")
	first, _ := s.process(t, as)
	lease, v := acquire(t, first, "k")
	const n = 6
	order := make(chan int, n)
	var all sync.WaitGroup
	for i := range n {
		l, _ := s.process(t, as)
		all.Go(func() {
			lease, v := acquire(t, l, "k")
			order <- i
			_, err := write(l, "k", lease, v.Version, "x")
			must(t, err)
		})
		eventually(t, "it is in the queue", func() bool { return s.admin.LLen(t.Context(), Beside("k", ":queue")).Val() == int64(i+1) })
	}
	_, err := write(first, "k", lease, v.Version, "1")
	must(t, err)
	for i := range n {
		equal(t, "served", <-order, i)
	}
	all.Wait()
}
