package lock

import (
	"context"
	"io"
	"net"
	"strings"
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
	var hang atomic.Bool
	l, _ := s.process(t, func(o *redis.Options) {
		o.MinIdleConns = 0
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if hang.Load() {
				time.Sleep(5 * time.Second) // DialTimeout
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
	hang.Store(true)
	defer hang.Store(false)
	var all sync.WaitGroup
	all.Go(func() {
		lease, _, err := l.Acquire(t.Context(), want("k"))
		if err != nil {
			t.Error(err)
		}
		lease.Release()
	})
	time.Sleep(100 * time.Millisecond)
	begin := time.Now()
	free, _ := acquire(t, l, "free")
	free.Release()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("a lock that nobody holds took %v", took)
	}
	begin = time.Now()
	lease.Release()
	all.Wait()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("a lock that was released took %v", took)
	}
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

// TestAPlaceIsNotShortened has a process that asks seldom wait behind one that asks often.
func TestAPlaceIsNotShortened(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	many, _ := s.process(t)
	few, _ := s.process(t)
	for i := range 5000 {
		many.waker.add("other" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + time.Duration(i).String())
	}
	holder, _ := s.process(t)
	lease, _ := acquire(t, holder, "k")
	ctx, end := context.WithCancel(t.Context())
	defer end()
	for _, l := range []*Locker{many, few} {
		go l.Acquire(ctx, want("k"))
		eventually(t, "it has subscribed", func() bool { return subscribed(l) })
		time.Sleep(50 * time.Millisecond)
	}
	queue := Beside("k", ":queue")
	equal(t, "length", s.admin.LLen(t.Context(), queue).Val(), 2)
	if left := s.admin.PTTL(t.Context(), queue).Val(); left < 20*time.Second {
		t.Errorf("the queue lives for %v", left)
	}
	lease.Release()
}

// TestALargeValueWaitsForABusyRedis too.
func TestALargeValueWaitsForABusyRedis(t *testing.T) {
	s := realSite(t)
	s.large = 0
	l, client := s.process(t)
	s.set(t, "k", "0")
	var left atomic.Int32
	client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
		if left.Add(-1) >= 0 {
			return busyError("LOADING for a while")
		}
		return send()
	}))
	left.Store(10)
	lease, v, err := l.Acquire(t.Context(), want("k"))
	must(t, err)
	left.Store(10)
	_, err = write(l, "k", lease, v.Version, "1")
	must(t, err)
}

type busyError string

func (e busyError) Error() string { return string(e) }
func (busyError) RedisError()     {}

// TestWithoutTheRightToPublish order holds, and nobody waits for long.
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
	time.Sleep(2 * time.Second) // by then they ask seldom
	begin := time.Now()
	_, err := write(first, "k", lease, v.Version, "1")
	must(t, err)
	for i := range n {
		equal(t, "served", <-order, i)
	}
	all.Wait()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("%v for %d empty sections", took, n)
	}
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
	time.Sleep(100 * time.Millisecond)
	w2 := want("k")
	w2.Wait = 0
	_, _, err = other.Acquire(t.Context(), w2)
	wantErr(t, err, ErrLocked)
	lease.Release()
}
