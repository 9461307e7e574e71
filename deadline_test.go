package redistore

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// slow answers each command after a while, unless its context ends before.
type slow struct {
	hook
	while time.Duration
}

func (s slow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !sleep(ctx, s.while) {
			cmd.SetErr(ctx.Err())
			return ctx.Err()
		}
		return next(ctx, cmd)
	}
}

// TestSeveralCookiesHaveOneDeadline has each name a session of its own that is gone.
func TestSeveralCookiesHaveOneDeadline(t *testing.T) {
	t.Parallel()
	srv := startMini(t)
	client := srv.client(t)
	plain := New(client, hashKey)
	locking := NewLockingStore(plain)
	locking.Wait = 0
	r := browser{}.request(t)
	for range 4 {
		r.AddCookie(&http.Cookie{Name: "s", Value: login(t, plain)["s"]})
	}
	must(t, srv.admin.FlushDB(t.Context()).Err())
	client.AddHook(slow{while: 2 * time.Second})
	for name, store := range map[string]sessions.Store{"plain": plain, "locking": locking} {
		start := time.Now()
		_, err := store.New(r, "s")
		wantErr(t, err, ErrNotLoaded)
		if took := time.Since(start); took > timeout+2*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}
