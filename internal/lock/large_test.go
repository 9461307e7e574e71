package lock

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// onLarge runs a test on both servers, with a key whose value is large to all processes.
func onLarge(t *testing.T, test func(*testing.T, *site)) {
	onServers(t, func(t *testing.T, s *site) {
		if s.large == 0 {
			s.set(t, "k", "old")
			test(t, s)
		}
	})
}

// staged are the keys where a large value waits to be written.
func (s *site) staged(t *testing.T) (keys []string) {
	t.Helper()
	all, err := s.admin.Keys(t.Context(), "*").Result()
	must(t, err)
	for _, key := range all {
		if key != "k" && key != Key("k") && key != Beside("k", ":version") {
			keys = append(keys, key)
		}
	}
	return keys
}

// TestALargeValueDoesNotPassThroughAScript, in neither direction, nor stays anywhere else.
func TestALargeValueDoesNotPassThroughAScript(t *testing.T) {
	onLarge(t, func(t *testing.T, s *site) {
		l, client := s.process(t)
		const word = "0123456789"
		s.set(t, "k", word)
		must(t, client.Ping(t.Context()).Err()) // so that it is connected
		var names []string
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			err := send()
			names = append(names, cmd.Name())
			if strings.HasPrefix(cmd.Name(), "eval") && strings.Contains(cmd.String(), word) {
				t.Errorf("a script has it: %v", cmd)
			}
			return err
		}))
		lease, v := acquire(t, l, "k")
		equal(t, "the value", string(v.Data), word)
		seen, err := write(l, "k", lease, v.Version, word+", changed")
		must(t, err)
		equal(t, "the commands", strings.Join(names, " "), "eval getex set eval")
		equal(t, "what Redis has", s.value(t, "k"), word+", changed")
		if ttl := s.admin.TTL(t.Context(), "k").Val(); ttl != time.Hour {
			t.Errorf("it expires after %v", ttl)
		}
		_, err = write(l, "k", nil, seen, word)
		must(t, err)
		equal(t, "keys beside it", len(s.staged(t)), 0)
	})
}

func TestALargeValueThatIsRefusedIsDropped(t *testing.T) {
	onLarge(t, func(t *testing.T, s *site) {
		l, _ := s.process(t)
		other, _ := s.process(t)
		lease, v := acquire(t, l, "k")
		lease.Release()
		change(t, other, "k", "new")
		_, err := write(l, "k", lease, v.Version, "a conflict")
		wantErr(t, err, ErrConflict)
		equal(t, "keys beside it after a conflict", len(s.staged(t)), 0)

		lease, v = acquire(t, l, "k")
		lease.Release()
		held, _ := acquire(t, other, "k")
		impatient := Write{Want: want("k"), Seen: v.Version, Data: []byte("refused"), Expiry: time.Hour}
		impatient.Wait = 0
		_, err = l.Write(t.Context(), impatient)
		wantErr(t, err, ErrLocked)
		held.Release()
		eventually(t, "the value that was refused is dropped", func() bool { return len(s.staged(t)) == 0 })

		lease, v = acquire(t, l, "k")
		must(t, s.admin.Del(t.Context(), "k").Err())
		_, err = write(l, "k", lease, v.Version, "gone")
		wantErr(t, err, ErrGone)
		equal(t, "keys beside it after a deletion", len(s.staged(t)), 0)
	})
}

// TestALargeValueThatRedisEvictsIsAnError, and the old one stays.
func TestALargeValueThatRedisEvictsIsAnError(t *testing.T) {
	onLarge(t, func(t *testing.T, s *site) {
		l, client := s.process(t)
		lease, v := acquire(t, l, "k")
		evict := true
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			err := send()
			if cmd.Name() == "set" && evict {
				s.admin.Del(context.Background(), cmd.Args()[1].(string))
			}
			return err
		}))
		seen, err := write(l, "k", lease, v.Version, "new")
		if err == nil || errors.Is(err, ErrConflict) || errors.Is(err, ErrGone) {
			t.Errorf("got error %v", err)
		}
		equal(t, "the value", s.value(t, "k"), "old")
		evict = false
		_, err = write(l, "k", nil, seen, "new")
		must(t, err)
		equal(t, "the value after a repeat", s.value(t, "k"), "new")
	})
}

// TestALargeValueThatChangesAsItIsReadIsAConflict: it was locked, but somebody has written
// without asking.
func TestALargeValueThatChangesAsItIsReadIsAConflict(t *testing.T) {
	onLarge(t, func(t *testing.T, s *site) {
		l, client := s.process(t)
		other, _ := s.process(t)
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if cmd.Name() == "getex" {
				must(t, s.admin.Del(context.Background(), Key("k")).Err()) // evicted
				change(t, other, "k", "new")
			}
			return send()
		}))
		lease, v := acquire(t, l, "k")
		equal(t, "what is read", string(v.Data), "new")
		_, err := write(l, "k", lease, v.Version, "newer")
		wantErr(t, err, ErrConflict)
	})
}

// TestALargeValueThatIsDeletedAsItIsReadIsNone.
func TestALargeValueThatIsDeletedAsItIsReadIsNone(t *testing.T) {
	onLarge(t, func(t *testing.T, s *site) {
		l, client := s.process(t)
		client.AddHook(hook(func(_ context.Context, cmd redis.Cmder, send func() error) error {
			if cmd.Name() == "getex" {
				s.admin.Del(context.Background(), "k")
			}
			return send()
		}))
		_, _, err := l.Acquire(t.Context(), want("k"))
		wantErr(t, err, redis.Nil)
		eventually(t, "the lock is free", func() bool {
			return s.admin.Exists(t.Context(), Key("k")).Val() == 0 && l.Stats().Held == 0
		})
	})
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

// TestALargeValueHasOneDeadline has Redis answer each command after 4 s.
func TestALargeValueHasOneDeadline(t *testing.T) {
	s := realSite(t)
	s.large = 0
	s.set(t, "k", "0")
	l, client := s.process(t, func(o *redis.Options) { o.ContextTimeoutEnabled = true })
	must(t, client.Ping(t.Context()).Err()) // so that it is connected
	client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, send func() error) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(4 * time.Second):
			return send()
		}
	}))
	w := want("k")
	w.Wait = 0
	start := time.Now()
	_, _, err := l.Acquire(t.Context(), w)
	if took := time.Since(start); took > timeout+2*time.Second {
		t.Errorf("it took %v: %v", took, err)
	}
}

type busyError string

func (e busyError) Error() string { return string(e) }
func (busyError) RedisError()     {}
