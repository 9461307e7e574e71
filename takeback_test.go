package redistore

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// A stuck hook has the scripts on one key wait until their time is over, as a server does that
// was stopped.
type stuck struct {
	hook
	key atomic.Value
}

func (h *stuck) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); len(args) > 3 && args[3] == h.key.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		return next(ctx, cmd)
	}
}

// TestARenewThatFailsLeavesNoSession in the owner's index, where the old session's server takes
// all of the call's time: a session that nobody uses would be one of Limit's.
func TestARenewThatFailsLeavesNoSession(t *testing.T) {
	for _, locked := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "locked"}[locked], func(t *testing.T) {
			t.Parallel()
			stuck := &stuck{}
			stuck.key.Store("")
			ring := startRedis(t).ring(t)
			ring.AddHook(stuck)
			plain := New(ring, hashKey)
			lock := NewLockingStore(plain)
			lock.Wait = 0
			store, renew := sessions.Store(plain), plain.Renew
			if locked {
				store, renew = lock, lock.Renew
			}
			s, r, w := browser{}.get(t, store)
			SetOwner(s, "ann")
			must(t, s.Save(r, w))
			stuck.key.Store("session_" + s.ID)
			wantErr(t, renew(r, w, s), context.DeadlineExceeded)
			eventually(t, "the owner has the old session only", func() bool {
				var ids []string
				for s, err := range plain.Sessions(t.Context(), "ann") {
					must(t, err)
					ids = append(ids, s.ID)
				}
				return len(ids) == 1 && ids[0] == s.ID
			})
		})
	}
}
