package redistore

import (
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/gorilla/sessions"
)

// TestUpdatesOfTwoSessionsOfOneRequest are a stream's, whose goroutines change two sessions,
// each also within the other's Update.
func TestUpdatesOfTwoSessionsOfOneRequest(t *testing.T) {
	store, _ := startMini(t).locking(t)
	for range 20 {
		r, end := browser{}.lived(t)
		w := httptest.NewRecorder()
		add := func(s *sessions.Session) error { s.Values["n"] = count(s) + 1; return nil }
		var all sync.WaitGroup
		for name, other := range map[string]string{"a": "b", "b": "a"} {
			all.Go(func() {
				for range 5 {
					must(t, store.Update(r, w, name, func(s *sessions.Session) error {
						must(t, store.Update(r, w, name, add))
						return store.Update(r, w, other, add)
					}))
				}
			})
		}
		all.Wait()
		for _, name := range []string{"a", "b"} {
			must(t, store.Update(r, w, name, func(s *sessions.Session) error {
				equal(t, name, count(s), 10)
				return nil
			}))
		}
		end()
		equal(t, "turns that are left", len(store.updates.turns), 0)
	}
}
