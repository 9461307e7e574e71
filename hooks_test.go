package redistore

import (
	"context"
	"errors"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
)

// A breaker is a hook that, once open, lets nothing through, as a circuit breaker does.
type breaker struct {
	hook
	open atomic.Bool
}

var errOpen = errors.New("circuit breaker is open")

func (b *breaker) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if b.open.Load() {
			return errOpen
		}
		return next(ctx, cmds)
	}
}

// TestAHookThatLetsNothingThrough is not taken for values that cannot be decoded: a pipeline's
// hook that does not call the next one leaves its commands without an error.
func TestAHookThatLetsNothingThrough(t *testing.T) {
	srv := startRedis(t)
	for name, client := range srv.clients(t) {
		t.Run(name, func(t *testing.T) {
			breaker := &breaker{}
			if ring, ok := client.(*redis.Ring); ok {
				_ = ring.ForEachShard(t.Context(), func(_ context.Context, shard *redis.Client) error {
					shard.AddHook(breaker)
					return nil
				})
			} else if c, ok := client.(interface{ AddHook(redis.Hook) }); ok {
				c.AddHook(breaker)
			}
			store := New(client, hashKey)
			owner := "user:" + name
			for range 3 {
				s, err := store.New(httptest.NewRequest("GET", "/", nil), "s")
				must(t, err)
				SetOwner(s, owner)
				must(t, store.Renew(nil, httptest.NewRecorder(), s))
			}
			breaker.open.Store(true)
			n := 0
			for s, err := range store.Sessions(t.Context(), owner) {
				n++
				if s != nil || !errors.Is(err, errOpen) || errors.Is(err, ErrNotDecoded) {
					t.Errorf("got %v, %v", s, err)
				}
			}
			equal(t, "what Sessions gave", n, 1)
		})
	}
}
