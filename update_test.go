package redistore

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

func TestUpdate(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		s, err := store.Get(r, "s")
		must(t, err)
		_, before := srv.admin.Get(t.Context(), "session_"+s.ID).Val(), rec.take()

		for name, fn := range map[string]func(*sessions.Session) error{
			"an error":             func(s *sessions.Session) error { s.Values["user"] = "eve"; return io.ErrUnexpectedEOF },
			"an error, and logout": func(s *sessions.Session) error { s.Options.MaxAge, s.ID = -1, ""; return io.ErrUnexpectedEOF },
			"a panic":              func(s *sessions.Session) error { s.Values["user"] = "eve"; panic(io.ErrUnexpectedEOF) },
			"too large":            func(s *sessions.Session) error { s.Values["user"] = strings.Repeat("x", 2<<20); return nil },
		} {
			err := func() (err error) {
				defer func() {
					if p := recover(); p != nil {
						err = p.(error)
					}
				}()
				return store.Update(r, httptest.NewRecorder(), "s", fn)
			}()
			if name == "too large" {
				wantErr(t, err, ErrTooLarge)
			} else if err != io.ErrUnexpectedEOF {
				t.Errorf("%s: got %v", name, err)
			}
			srv.free(t)
			equal(t, name+": user", s.Values["user"], any("ann"))
			equal(t, name+": MaxAge", s.Options.MaxAge, 30*24*3600)
			equal(t, name+": user in Redis", b.user(t, store.Store), "ann")
		}
		_ = before
		s.AddFlash("that did not work") // what was loaded can still be saved
		must(t, s.Save(r, httptest.NewRecorder()))

		// A new session, a bad cookie, a logout, a bad name.
		fresh := browser{"s": "nonsense"}
		for range 2 {
			w := httptest.NewRecorder()
			must(t, store.Update(fresh.request(t), w, "s", func(s *sessions.Session) error {
				s.Values["n"] = count(s) + 1
				return nil
			}))
			fresh.keep(w)
		}
		s, _, _ = fresh.get(t, store.Store)
		equal(t, "n", count(s), 2)
		w := httptest.NewRecorder()
		must(t, store.Update(fresh.request(t), w, "s", func(s *sessions.Session) error { s.Options.MaxAge = -1; return nil }))
		equal(t, "MaxAge", w.Result().Cookies()[0].MaxAge, -1)
		equal(t, "keys", len(srv.keys(t)), 1)
		if err := store.Update(fresh.request(t), w, "not a name", func(*sessions.Session) error { return nil }); err == nil {
			t.Error("no error for an invalid name")
		}
		rec.failing(func(string) error { return io.EOF })
		wantErr(t, store.Update(b.request(t), w, "s", func(*sessions.Session) error { t.Error("fn was called"); return nil }), ErrNotLoaded)
	})
}

func TestUpdateAfterAFailure(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		w := httptest.NewRecorder()
		s, err := store.Get(r, "s")
		must(t, err)
		must(t, s.Save(r, w))
		rec.failing(func(string) error { return io.EOF })
		wantErr(t, store.Update(r, w, "s", nil), ErrNotLoaded)
		rec.failing(nil)
		equal(t, "user, as it was loaded before", s.Values["user"], any("ann"))
		srv.free(t)
		must(t, increment(store, r, true))

		// What fn has saved itself is saved, and is not undone by a later Save.
		wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
			s.Values["n"] = 10
			must(t, s.Save(r, w))
			return io.ErrUnexpectedEOF
		}), io.ErrUnexpectedEOF)
		wantErr(t, s.Save(r, w), ErrConflict)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 10)
	})
}

// TestUpdateKeepsItsOwn has other copies of the session in the same request, which
// must not overwrite what Update has acknowledged, nor Update them.
func TestUpdateKeepsItsOwn(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		w := httptest.NewRecorder()
		stale, err := store.New(r, "s")
		must(t, err)
		must(t, increment(store, r, true))
		must(t, increment(store, r, true))
		stale.Values["n"] = 666
		wantErr(t, stale.Save(r, w), ErrConflict)

		wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
			s.Values["n"] = 667
			x, err := store.New(r, "s")
			must(t, err)
			x.Values["n"] = count(x) + 1
			return x.Save(r, w)
		}), ErrConflict)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 3)
	})
}

// TestUpdateGoesOnWithWhatTheRequestSaved calls Update after the request has given its
// session another ID than its cookies have.
func TestUpdateGoesOnWithWhatTheRequestSaved(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		plain, _ := srv.store(t)
		plain.CookieStoreUntil = plain.now().Add(time.Hour)
		store := NewLockingStore(plain)
		set := func(key string) func(*sessions.Session) error {
			return func(s *sessions.Session) error {
				s.Values[key] = true
				return nil
			}
		}
		mover := login(t, sessions.NewCookieStore(hashKey))
		for name, b := range map[string]browser{"first visit": {}, "logged in": login(t, plain), "moving in": mover} {
			for renew, with := range map[string]func(*http.Request, http.ResponseWriter){
				"Update": func(r *http.Request, w http.ResponseWriter) { must(t, store.Update(r, w, "s", set("first"))) },
				"Renew": func(r *http.Request, w http.ResponseWriter) {
					s, err := store.Get(r, "s")
					must(t, err)
					must(t, set("first")(s))
					must(t, store.Renew(r, w, s))
				},
			} {
				b := maps.Clone(b)
				must(t, srv.admin.FlushDB(t.Context()).Err()) // or the cookie that moves in has a login already
				if name == "logged in" {
					b = login(t, plain)
				}
				r, end := b.lived(t)
				w := httptest.NewRecorder()
				with(r, w)
				must(t, store.Update(r, w, "s", set("second")))
				end()
				b.keep(w)
				s, _, _ := b.get(t, plain)
				equal(t, name+", "+renew+": values", fmt.Sprint(s.Values["first"], s.Values["second"]), "true true")
			}
		}
	})
}

// TestUpdateOfASessionThatHasEnded is for streams: they must not start a session with
// each change, after a logout that they do not see.
func TestUpdateOfASessionThatHasEnded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, load := range map[string]func(*LockingStore, *http.Request) (*sessions.Session, error){
			"with the lock":    func(l *LockingStore, r *http.Request) (*sessions.Session, error) { return l.Get(r, "s") },
			"without the lock": func(l *LockingStore, r *http.Request) (*sessions.Session, error) { return l.Store.Get(r, "s") },
		} {
			plain, _ := srv.store(t)
			store := NewLockingStore(plain)
			b := login(t, plain)
			r, end := b.lived(t)
			s, err := load(store, r)
			must(t, err)
			b.logout(t, plain)
			for range 3 {
				w := httptest.NewRecorder()
				wantErr(t, store.Update(r, w, "s", func(*sessions.Session) error {
					t.Errorf("%s: Update calls fn", name)
					return nil
				}), ErrGone)
				equal(t, "cookies", len(w.Result().Cookies()), 0)
			}
			if name == "with the lock" { // the other is ErrConflict, as always
				wantErr(t, store.Save(r, httptest.NewRecorder(), s), ErrGone)
			}
			equal(t, name+": keys", len(srv.keys(t)), 0)
			end()

			// A request that has not seen it begins anew, as with Get.
			r, end = b.lived(t)
			must(t, store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
				equal(t, name+": IsNew", s.IsNew, true)
				return nil
			}))
			end()
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

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
		equal(t, "turns that are left", len(updates.all), 0)
	}
}

// TestUpdateWithoutARequest panics, as Get does, and leaves other requests' Updates alone.
func TestUpdateWithoutARequest(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		update := func(r *http.Request) error {
			return store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { return nil })
		}
		func() {
			defer func() { _ = recover() }()
			t.Error("no panic: ", update(nil))
		}()
		done := make(chan error, 1)
		go func() { done <- update(login(t, store).request(t)) }()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(5 * time.Second):
			t.Fatal("every Update of the process waits for ever")
		}
	})
}

// TestUpdateBesideAReader is a websocket: one goroutine updates, its handler waits for the
// request's end.
func TestUpdateBesideAReader(t *testing.T) {
	mini, _ := startMini(t).store(t)
	store := NewLockingStore(mini)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := store.Store.Get(r, "s"); err != nil { // before the goroutine starts
			t.Error(err)
		}
		done := make(chan error)
		go func() {
			done <- store.Update(r, w, "s", func(s *sessions.Session) error { return nil })
		}()
		select {
		case <-r.Context().Done():
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		}
	}))
	defer srv.Close()
	for range 5 {
		response, err := http.Get(srv.URL)
		must(t, err)
		response.Body.Close()
	}
}
