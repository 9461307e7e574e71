package redistore

import (
	"context"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// TestNewHeedsTheContextOfItsOwnRequest, also where a request that it is a copy of has loaded
// another session before, as a middleware does: that one's is what Get heeds.
func TestNewHeedsTheContextOfItsOwnRequest(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		plain, _ := srv.store(t)
		locking, _ := srv.locking(t)
		b := login(t, locking)
		for _, store := range []sessions.Store{plain, locking} {
			r, end := b.lived(t)
			_, err := store.Get(r, "other")
			must(t, err)
			end() // the handler has returned, and a job goes on
			s, err := store.New(r.WithContext(context.WithoutCancel(r.Context())), "s")
			if err != nil || s.IsNew || s.Store() != store {
				t.Errorf("got %v, new: %v, of %T", err, s.IsNew, s.Store())
			}
		}
		r, end := b.lived(t) // waits for that job
		defer end()
		_, err := locking.Get(r, "other")
		must(t, err)
		ctx, cancel := context.WithTimeout(r.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err = locking.New(r.WithContext(ctx), "s")
		wantErr(t, err, ErrLocked)
		if d := time.Since(start); d > time.Second {
			t.Errorf("it waited %v", d)
		}
	})
}
