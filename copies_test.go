package redistore

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/gorilla/sessions"
)

// TestUpdatesOfCopiesShareNoLock, also not that of the request's own Get: the
// copies were made before, and have a registry each.
func TestUpdatesOfCopiesShareNoLock(t *testing.T) {
	for _, get := range []bool{false, true} {
		srv := startMini(t)
		store, _ := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		copies := []*http.Request{r.WithContext(r.Context()), r.WithContext(r.Context())}
		if get {
			_, err := store.Get(r, "s")
			must(t, err)
		}
		var all sync.WaitGroup
		var first sync.Once
		for _, c := range copies {
			all.Go(func() {
				err := store.Update(c, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
					s.Values["n"] = count(s) + 1
					first.Do(func() { eventually(t, "the other has come", func() bool { return updates.most() == len(copies) }) })
					return nil
				})
				if err != nil {
					t.Errorf("the request has the lock: %t: got error %v", get, err)
				}
			})
		}
		all.Wait()
	}
}

// most is how many Updates the requester has that has the most of them.
func (ts *turns) most() (n int) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.all {
		n = max(n, t.users)
	}
	return n
}

// TestUpdateWithinUpdateKnowsCopies has fn call Update with a copy that was made before anything
// was loaded, and so has a registry of its own.
func TestUpdateWithinUpdateKnowsCopies(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		copied := r.WithContext(context.WithoutCancel(r.Context()))
		w := httptest.NewRecorder()
		must(t, store.Update(r, w, "s", func(outer *sessions.Session) error {
			return store.Update(copied, w, "s", func(s *sessions.Session) error {
				equal(t, "it is the same session", s == outer, true)
				return nil
			})
		}))
	})
}
