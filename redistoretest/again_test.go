package redistoretest_test

import (
	"net/http"
	"strconv"
	"sync"
	"testing"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore/redistoretest"
)

// TestWhatATestHasLoadedIsNotServed: a request that is served again is another one.
func TestWhatATestHasLoadedIsNotServed(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	r := redis.Request("GET", "/", nil, redis.Cookie(store, "session", func(*sessions.Session) {}))
	if _, err := store.Get(r, "session"); err != nil {
		t.Fatal(err)
	}
	logout := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, _ := store.Get(r, "session")
		session.Options.MaxAge = -1
		if err := session.Save(r, w); err != nil || w.Header().Get("Set-Cookie") == "" {
			t.Error(err)
		}
	})
	redis.Serve(logout, r)
	redis.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if session, err := store.Get(r, "session"); err != nil || !session.IsNew {
			t.Errorf("after the logout: new: %v, %v", session.IsNew, err)
		}
	}), r)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			redis.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for i := range 100 {
					store.Get(r, "s"+strconv.Itoa(i))
				}
			}), r)
		})
	}
	wg.Wait()
}
