package redistore

import (
	"net/http/httptest"
	"testing"

	"github.com/redistore/redistore/internal/lock"
)

// TestWhatIsNoQueueFailsNoWrite has a value stand where the lock keeps its queue. A Save that
// has written the session must say so, and a Renew send the cookie of what it has moved.
func TestWhatIsNoQueueFailsNoWrite(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		for n, write := range []writeFunc{store.Save, store.Renew} {
			s, r := load(t, store, b)
			queue := lock.Beside(store.key(s.ID), ":queue")
			must(t, srv.admin.Set(t.Context(), queue, "no queue", 0).Err())
			s.Values["n"] = n
			w := httptest.NewRecorder()
			must(t, write(r, w, s))
			b.keep(w)
			srv.free(t)
			s, _, _ = b.get(t, store.Store)
			equal(t, "n", count(s), n)
		}
	})
}
