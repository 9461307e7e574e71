package lock

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/redisserver"
	"github.com/redistore/redistore/internal/script"
)

// site is a Redis, with a client that nobody disturbs.
type site struct {
	addr  string
	admin *redis.Client
	mini  *miniredis.Miniredis // nil: a real server
	large int                  // from which length on processes take a value for large
}

// onServers runs a test on both servers, with values that are small and large to the lock.
func onServers(t *testing.T, test func(*testing.T, *site)) {
	for name, from := range map[string]int{"small": large, "large": 0} {
		t.Run("miniredis, "+name, func(t *testing.T) {
			mini := miniredis.RunT(t)
			s := newSite(t, mini.Addr(), mini)
			s.large = from
			test(t, s)
		})
		t.Run("redis-server, "+name, func(t *testing.T) {
			s := realSite(t)
			s.large = from
			test(t, s)
		})
	}
}

func realSite(t *testing.T) *site { return newSite(t, redisserver.StartFor(t).Addr, nil) }

func newSite(t *testing.T, addr string, mini *miniredis.Miniredis) *site {
	s := &site{addr, redis.NewClient(&redis.Options{Addr: addr}), mini, large}
	t.Cleanup(func() { s.admin.Close() })
	return s
}

// process is a Locker with a client of its own, as another process has.
func (s *site) process(t *testing.T, change ...func(*redis.Options)) (*Locker, *redis.Client) {
	options := &redis.Options{Addr: s.addr, MaxRetries: -1}
	for _, c := range change {
		c(options)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { client.Close() })
	l := New(&script.Runner{Client: client}, "wake:")
	l.large = s.large
	return l, client
}

func (s *site) set(t *testing.T, key, value string) {
	must(t, s.admin.Set(t.Context(), key, value, time.Hour).Err())
}

func (s *site) value(t *testing.T, key string) string { return s.admin.Get(t.Context(), key).Val() }

func want(key string) Want { return Want{Key: key, TTL: 10 * time.Second, Wait: 15 * time.Second} }

// queued waits until so many processes are in k's queue.
func (s *site) queued(t *testing.T, n int) {
	t.Helper()
	eventually(t, "it is in the queue", func() bool { return s.admin.LLen(t.Context(), Beside("k", ":queue")).Val() == int64(n) })
}

func acquire(t *testing.T, l *Locker, key string) (*Lease, Value) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	t.Cleanup(end)
	lease, v, err := l.Acquire(ctx, want(key))
	must(t, err)
	return lease, v
}

func write(l *Locker, key string, lease *Lease, seen *Version, data string) (*Version, error) {
	return l.Write(context.Background(), Write{Want: want(key), Lease: lease, Seen: seen, Data: []byte(data), Expiry: time.Hour})
}

// change is a whole section of another process.
func change(t *testing.T, l *Locker, key, data string) {
	t.Helper()
	lease, v := acquire(t, l, key)
	_, err := write(l, key, lease, v.Version, data)
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("not after 10 s: " + what)
		}
	}
}

// hook has its function decide about each command: nil sends it.
type hook func(ctx context.Context, cmd redis.Cmder, send func() error) error

func (hook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := h(ctx, cmd, func() error { return next(ctx, cmd) })
		cmd.SetErr(err)
		return err
	}
}

func (hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// isWrite tells a Write's script by its keys: five or more.
func isWrite(cmd redis.Cmder) bool {
	args := cmd.Args()
	n, _ := args[min(2, len(args)-1)].(int)
	return strings.HasPrefix(cmd.Name(), "eval") && n >= 5
}

// TestALateAttemptIsNotApplied has the first attempt at a write reach Redis after its repeat
// was acknowledged and others have written.
func TestALateAttemptIsNotApplied(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "flash")
		l, client := s.process(t)
		other, _ := s.process(t)
		var late []any
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if isWrite(cmd) && late == nil {
				late = cmd.Args()
				return io.EOF
			}
			return send()
		}))
		lease, v := acquire(t, l, "k")
		_, err := write(l, "k", lease, v.Version, "flash, and more")
		must(t, err)
		change(t, other, "k", "")
		change(t, other, "k", "flash") // what the first has seen
		late[0], late[1] = "eval", handoverLua+"\nlocal prelude\n"+writeLua
		equal(t, "the late attempt", must2(s.admin.Do(t.Context(), late...).Text())(t), "conflict")
		equal(t, "value", s.value(t, "k"), "flash")
	})
}

func must2[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T { t.Helper(); must(t, err); return v }
}

// TestARepeatKnowsItsOwnWork loses replies.
func TestARepeatKnowsItsOwnWork(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		l, client := s.process(t)
		other, _ := s.process(t)
		var lose atomic.Int32
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			err := send()
			if isWrite(cmd) && lose.Add(-1) >= 0 {
				return io.EOF
			}
			return err
		}))
		s.set(t, "k", "0")
		lease, v := acquire(t, l, "k")
		lose.Store(attempts - 1)
		_, err := write(l, "k", lease, v.Version, "1")
		must(t, err)
		equal(t, "value", s.value(t, "k"), "1")

		// No attempt is answered: the outcome is unknown, and the next write is done if it was
		// the last one.
		lease, v = acquire(t, l, "k")
		lose.Store(attempts)
		seen, err := write(l, "k", lease, v.Version, "2")
		wantErr(t, err, io.EOF)
		seen, err = write(l, "k", nil, seen, "3")
		must(t, err)
		equal(t, "value", s.value(t, "k"), "3")

		// And is refused if others have written, be it the same bytes.
		lose.Store(attempts)
		seen, err = write(l, "k", nil, seen, "4")
		wantErr(t, err, io.EOF)
		change(t, other, "k", "5")
		change(t, other, "k", "4")
		_, err = write(l, "k", nil, seen, "6")
		wantErr(t, err, ErrConflict)
		equal(t, "value", s.value(t, "k"), "4")
	})
}

// TestWhatNobodyCanTellIsNotClaimed has another write what an attempt of unknown outcome
// would have written, and Redis forget who it was.
func TestWhatNobodyCanTellIsNotClaimed(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		l, client := s.process(t)
		other, _ := s.process(t)
		var lose atomic.Bool
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if isWrite(cmd) && lose.Load() {
				return io.EOF
			}
			return send()
		}))
		s.set(t, "k", "0")
		lease, v := acquire(t, l, "k")
		lose.Store(true)
		seen, err := write(l, "k", lease, v.Version, "1")
		wantErr(t, err, io.EOF)
		lose.Store(false)
		change(t, other, "k", "1")
		must(t, s.admin.Del(t.Context(), Keys("k")...).Err())
		seen, err = write(l, "k", nil, seen, "1")
		wantErr(t, err, io.EOF)
		equal(t, "value", s.value(t, "k"), "1")

		must(t, s.admin.Del(t.Context(), Keys("k")...).Err())
		s.set(t, "k", "0") // as it was read: then nobody has written
		_, err = write(l, "k", nil, seen, "1")
		must(t, err)
	})
}

// TestWithoutATokenTheDigestDecides has Redis lose what it keeps beside the key.
func TestWithoutATokenTheDigestDecides(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		l, _ := s.process(t)
		other, _ := s.process(t)
		evict := func() { must(t, s.admin.Del(t.Context(), Keys("k")...).Err()) }
		s.set(t, "k", "0")
		lease, v := acquire(t, l, "k")
		evict()
		seen, err := write(l, "k", lease, v.Version, "1")
		must(t, err)
		evict()
		s.set(t, "k", "somebody else's")
		_, err = write(l, "k", nil, seen, "2")
		wantErr(t, err, ErrConflict)

		// The lock is evicted, and another writes what this one wants to write.
		s.set(t, "k", "0")
		lease, v = acquire(t, l, "k")
		evict()
		change(t, other, "k", "1")
		_, err = write(l, "k", lease, v.Version, "1")
		wantErr(t, err, ErrConflict)

		must(t, s.admin.Del(t.Context(), "k").Err())
		_, err = write(l, "k", nil, v.Version, "2")
		wantErr(t, err, ErrGone)
		equal(t, "exists", s.admin.Exists(t.Context(), "k").Val(), 0)
	})
}

// TestAPreludeIsAllOrNothing has one fail, and one run where nothing may be written.
func TestAPreludeIsAllOrNothing(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		l, _ := s.process(t)
		push := NewPrelude(`redis.call("RPUSH", KEYS[6], ARGV[11])`)
		do := func(lease *Lease, seen *Version) error {
			_, err := l.Write(t.Context(), Write{Want: want("k"), Lease: lease, Seen: seen, Data: []byte("1"), Expiry: time.Hour,
				Prelude: push, Keys: []any{"list"}, Args: []any{"entry"}})
			return err
		}
		s.set(t, "k", "0")
		s.set(t, "list", "no list")
		lease, v := acquire(t, l, "k")
		if err := do(lease, v.Version); err == nil || !strings.Contains(err.Error(), "WRONGTYPE") {
			t.Errorf("got error %v", err)
		}
		equal(t, "value", s.value(t, "k"), "0")
		must(t, s.admin.Del(t.Context(), "list").Err())

		lease, v = acquire(t, l, "k")
		stale := v.Version
		must(t, do(lease, v.Version))
		wantErr(t, do(nil, stale), ErrConflict)
		must(t, s.admin.Del(t.Context(), "k").Err())
		wantErr(t, do(nil, stale), ErrGone)
		equal(t, "entries", s.admin.LLen(t.Context(), "list").Val(), 1)
	})
}

// TestADeletionLeavesAMark, once.
func TestADeletionLeavesAMark(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		l, _ := s.process(t)
		s.set(t, "k", "0")
		lease, v := acquire(t, l, "k")
		w := Write{Want: want("k"), Lease: lease, Seen: v.Version, Mark: "{k}:mark", Marked: time.Minute}
		_, err := l.Write(t.Context(), w)
		must(t, err)
		equal(t, "value, mark", s.value(t, "k")+s.value(t, "{k}:mark") != "", true)
		equal(t, "exists", s.admin.Exists(t.Context(), "k").Val(), 0)
		_, err = l.Write(t.Context(), w)
		wantErr(t, err, ErrGone)
	})
}

// TestProcessesAreServedInOrder queues them one by one.
func TestProcessesAreServedInOrder(t *testing.T) {
	for name, rights := range map[string][]any{
		"with wake-ups":             {"&*"},
		"without":                   {"resetchannels"},
		"without the right to wake": {"&*", "-publish"},
	} {
		t.Run(name, func(t *testing.T) {
			s := realSite(t)
			user := []any{"ACL", "SETUSER", "app", "on", "nopass", "~*", "+@all"}
			must(t, s.admin.Do(t.Context(), append(user, rights...)...).Err())
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
					_, err := write(l, "k", lease, v.Version, strconv.Itoa(i))
					must(t, err)
				})
				s.queued(t, i+1)
			}
			_, err := write(first, "k", lease, v.Version, "1")
			must(t, err)
			for i := range n {
				equal(t, "served", <-order, i)
			}
			all.Wait()
		})
	}
}

// TestTheDeadDelayTheOthersLittle has a process die in the queue, and a holder.
func TestTheDeadDelayTheOthersLittle(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	l, _ := s.process(t)
	other, _ := s.process(t)
	lease, v := acquire(t, l, "k")
	must(t, s.admin.RPush(t.Context(), Beside("k", ":queue"), "wake:dead").Err())
	got := make(chan time.Time)
	go func() {
		lease, _ := acquire(t, other, "k")
		got <- time.Now()
		lease.Release()
	}()
	s.queued(t, 2)
	released := time.Now()
	_, err := write(l, "k", lease, v.Version, "1")
	must(t, err)
	if took := (<-got).Sub(released); took < reserve/2 || took > 2*time.Second {
		t.Errorf("a dead process in the queue cost %v", took)
	}

	const ttl = 300 * time.Millisecond
	must(t, s.admin.Set(t.Context(), Key("k"), "wake:dead:1", ttl).Err())
	died := time.Now()
	_, _ = acquire(t, l, "k")
	if took := time.Since(died); took < ttl/2 || took > ttl+2*time.Second {
		t.Errorf("a dead holder cost %v", took)
	}
}

// TestNobodyJumpsTheQueue has a process come when the lock has just run out, for which
// another waits.
func TestNobodyJumpsTheQueue(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		newcomer, _ := s.process(t)
		queue := Beside("k", ":queue")
		must(t, s.admin.RPush(t.Context(), queue, "wake:first").Err())
		w := want("k")
		w.Wait = 0
		_, _, err := newcomer.Acquire(t.Context(), w)
		wantErr(t, err, ErrLocked)
		equal(t, "reserved for", s.value(t, Key("k")), "wake:first")
	})
}

// TestWhoGivesUpLeavesTheQueue long before its place expires.
func TestWhoGivesUpLeavesTheQueue(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		holder, _ := s.process(t)
		l, _ := s.process(t)
		_, _ = acquire(t, holder, "k")
		w := want("k")
		w.Wait = 20 * time.Millisecond
		start := time.Now()
		_, _, err := l.Acquire(t.Context(), w)
		wantErr(t, err, ErrLocked)
		eventually(t, "it has left", func() bool { return s.admin.LLen(t.Context(), Beside("k", ":queue")).Val() == 0 })
		if took := time.Since(start); took > 2*maxIdle {
			t.Errorf("it left after %v", took)
		}
	})
}

// TestAnEarlyWakeUpCounts has the wake-up come before the answer that there is something to
// wait for.
func TestAnEarlyWakeUpCounts(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	holder, _ := s.process(t)
	l, client := s.process(t)
	warm, _ := acquire(t, holder, "k") // so that l has subscribed
	go func() {
		eventually(t, "it has subscribed", func() bool { return l.waker.hears() })
		warm.Release()
	}()
	first, _ := acquire(t, l, "k")
	first.Release()

	lease, _ := acquire(t, holder, "k")
	once := sync.OnceFunc(lease.Release)
	client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
		err := send()
		if strings.HasPrefix(cmd.Name(), "eval") {
			once()
			eventually(t, "it is woken", func() bool {
				l.waker.mu.Lock()
				defer l.waker.mu.Unlock()
				return len(l.waker.early) > 0 || s.value(t, Key("k")) != l.process
			})
		}
		return err
	}))
	start := time.Now()
	_, _ = acquire(t, l, "k")
	if took := time.Since(start); took > maxIdle/8 {
		t.Errorf("it was told after %v", took)
	}
	equal(t, "unwoken", l.Stats().Unwoken, 0)
}

// TestALostSubscriptionIsMadeUpFor kills the connections that wake-ups come on.
func TestALostSubscriptionIsMadeUpFor(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	l, _ := s.process(t)
	other, _ := s.process(t)
	for range 3 {
		lease, v := acquire(t, l, "k")
		got := make(chan bool)
		go func() {
			lease, _ := acquire(t, other, "k")
			lease.Release()
			got <- true
		}()
		eventually(t, "it has subscribed", func() bool { return other.waker.hears() })
		must(t, s.admin.Do(t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Err())
		_, err := write(l, "k", lease, v.Version, "1")
		must(t, err)
		<-got
	}
}

// TestNothingIsLeft looks for what those who waited may leave, after a quiet while.
func TestNothingIsLeft(t *testing.T) {
	s := realSite(t)
	s.set(t, "k", "0")
	before := runtime.NumGoroutine()
	one, clientOne := s.process(t)
	two, clientTwo := s.process(t)
	one.waker.quiet, two.waker.quiet = 10*time.Millisecond, 10*time.Millisecond
	var all sync.WaitGroup
	for i := range 8 {
		l := []*Locker{one, two}[i%2]
		all.Go(func() {
			for n := range 250 {
				ctx, end := context.WithCancel(context.Background())
				w := want("k")
				if n%10 == 0 {
					w.Wait = time.Duration(n%3) * time.Millisecond // some give up
				}
				lease, v, err := l.Acquire(ctx, w)
				switch {
				case err != nil:
					wantErr(t, err, ErrLocked)
				case n%3 == 0:
					_, err = write(l, "k", lease, v.Version, "1")
					must(t, err)
				case n%3 == 1:
					lease.Release()
				}
				end()
			}
		})
	}
	all.Wait()
	eventually(t, "the subscriptions end", func() bool {
		channels, err := s.admin.PubSubChannels(t.Context(), "*").Result()
		must(t, err)
		return len(channels) == 0
	})
	eventually(t, "nobody holds anything", func() bool { return one.Stats().Held+two.Stats().Held == 0 })
	eventually(t, "the lock and the queue are gone", func() bool {
		return s.admin.Exists(t.Context(), Key("k"), Beside("k", ":queue")).Val() == 0
	})
	for _, l := range []*Locker{one, two} {
		equal(t, "waiting", l.Stats().Waiting+len(l.waker.waiting)+len(l.lines), 0)
	}
	clientOne.Close()
	clientTwo.Close()
	eventually(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// TestALockThatIsTakenLateIsGivenBack: Redis stops, the request that locks is in its socket,
// and all that its process sends to give the lock back is lost.
func TestALockThatIsTakenLateIsGivenBack(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		l, client := s.process(t)
		other, _ := s.process(t)
		var late []any
		var lost atomic.Int32
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if strings.HasPrefix(cmd.Name(), "eval") && lost.Add(1) <= 3 {
				if late == nil {
					late = cmd.Args()
				}
				return io.EOF
			}
			return send()
		}))
		_, _, err := l.Acquire(t.Context(), want("k"))
		wantErr(t, err, io.EOF)
		eventually(t, "two attempts to give it back are lost", func() bool { return lost.Load() >= 3 })
		must(t, s.admin.Do(t.Context(), late...).Err())
		start := time.Now()
		change(t, other, "k", "1")
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("the next waited for %v", took)
		}
	})
}

// TestWhoWaitsUntilItsEndIsToldSo, also if that comes while Redis is being asked once more, and
// leaves the queue.
func TestWhoWaitsUntilItsEndIsToldSo(t *testing.T) {
	onServers(t, func(t *testing.T, s *site) {
		s.set(t, "k", "0")
		holder, _ := s.process(t)
		_, _ = acquire(t, holder, "k")
		l, client := s.process(t)
		ctx, end := context.WithCancel(t.Context())
		var asked atomic.Int32
		client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, send func() error) error {
			if strings.HasPrefix(cmd.Name(), "eval") && asked.Add(1) == 2 {
				end()
				return ctx.Err()
			}
			return send()
		}))
		start := time.Now()
		_, _, err := l.Acquire(ctx, want("k"))
		wantErr(t, err, ErrLocked)
		wantErr(t, err, context.Canceled)
		equal(t, "refused", l.Stats().Refused, 1)
		eventually(t, "it has left", func() bool { return s.admin.LLen(t.Context(), Beside("k", ":queue")).Val() == 0 })
		if took := time.Since(start); took > 2*maxIdle {
			t.Errorf("it left after %v", took)
		}
	})
}
