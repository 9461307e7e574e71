package lock

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

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
