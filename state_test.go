package redistore

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

func TestSaveNeedsNoRequest(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		b := browser{}
		w := httptest.NewRecorder()
		s, r := load(t, x.over, b)
		s.Values["user"] = "ann"
		must(t, s.Save(nil, w))
		b.keep(w)
		equal(t, "user", b.user(t, x.plain), "ann")
		s.Values["n"] = 1
		must(t, x.over.Save(nil, w, s))
		must(t, x.over.Touch(nil, w, s))
		w = httptest.NewRecorder()
		must(t, x.over.Renew(nil, w, s))
		must(t, s.Save(r, w)) // and one goes on with it
		b.keep(w)

		r, end := b.lived(t)
		s, err := x.over.Get(r, "s")
		must(t, err)
		equal(t, "n", count(s), 1)
		s.Values["n"] = 2
		must(t, s.Save(nil, w))
		end()
		x.srv.free(t)
		s, _ = load(t, x.over, b)
		equal(t, "n", count(s), 2)
		w = httptest.NewRecorder()
		s.Options.MaxAge = -1
		must(t, s.Save(nil, w))
		equal(t, "keys after logout", len(x.srv.keys(t)), 0)
		b.keep(w)
		equal(t, "cookies after logout", len(b), 0)
	})
}

// TestAnyRequestMaySave has Save be given another request than Get, of which the store
// knows nothing.
func TestAnyRequestMaySave(t *testing.T) {
	type key struct{}
	onStores(t, func(t *testing.T, x trial) {
		for name, other := range map[string]func(r, before *http.Request) *http.Request{
			"a copy made before Get":     func(_, before *http.Request) *http.Request { return before },
			"a copy made after Get":      func(r, _ *http.Request) *http.Request { return r.WithContext(context.WithValue(r.Context(), key{}, 2)) },
			"a clone":                    func(r, _ *http.Request) *http.Request { return r.Clone(r.Context()) },
			"an empty request":           func(r, _ *http.Request) *http.Request { return &http.Request{} },
			"a request of no client":     func(r, _ *http.Request) *http.Request { return browser{}.request(t) },
			"another user's request":     func(r, _ *http.Request) *http.Request { return login(t, x.plain).request(t) },
			"a request that has ended":   func(r, _ *http.Request) *http.Request { return hungUp(r) },
			"a copy without its cookies": func(r, _ *http.Request) *http.Request { c := r.Clone(r.Context()); c.Header.Del("Cookie"); return c },
			"none":                       func(r, _ *http.Request) *http.Request { return nil },
		} {
			t.Run(name, func(t *testing.T) {
				b := login(t, x.plain)
				r, end := b.lived(t)
				before := r.WithContext(context.WithValue(r.Context(), key{}, 1))
				s, err := x.over.Get(r, "s")
				must(t, err)
				w := httptest.NewRecorder()
				for n := range 2 {
					s.Values["n"] = n + 1
					must(t, s.Save(other(r, before), w))
				}
				must(t, x.over.Touch(other(r, before), w, s))
				must(t, x.over.Renew(other(r, before), w, s))
				end()
				b.keep(w)
				x.srv.free(t) // and no lock is left
				s, _ = load(t, x.over, b)
				equal(t, "n", count(s), 2)
			})
		}
	})
}

// hungUp is a copy of a request whose client has gone.
func hungUp(r *http.Request) *http.Request {
	ctx, cancel := context.WithCancel(r.Context())
	cancel()
	return r.WithContext(ctx)
}

// TestWhatWasNotReadIsNotOverwritten has a handler pass over the error of Get, and try
// everything to save the empty session.
func TestWhatWasNotReadIsNotOverwritten(t *testing.T) {
	for how, fail := range map[string]func(*testing.T, trial) (mend func()){
		"Redis fails": func(_ *testing.T, x trial) func() {
			x.rec.failing(func(string) error { return redisError("ERR failing") })
			return func() { x.rec.failing(nil) }
		},
		"the value is nonsense": func(t *testing.T, x trial) func() {
			key, value := x.srv.only(t)
			must(t, x.srv.admin.Set(t.Context(), key, "nonsense", time.Hour).Err())
			return func() { must(t, x.srv.admin.Set(t.Context(), key, value, time.Hour).Err()) }
		},
	} {
		t.Run(how, func(t *testing.T) {
			onStores(t, func(t *testing.T, x trial) {
				for name, c := range map[string]struct {
					r      func(*http.Request) *http.Request
					change func(*sessions.Session) *sessions.Session
				}{
					"as it is":         {},
					"an empty request": {r: func(*http.Request) *http.Request { return &http.Request{} }},
					"no request":       {r: func(*http.Request) *http.Request { return nil }},
					"a clone":          {r: func(r *http.Request) *http.Request { return r.Clone(r.Context()) }},
					"no cookies":       {r: func(*http.Request) *http.Request { return browser{}.request(t) }},
					"IsNew = false":    {change: func(s *sessions.Session) *sessions.Session { s.IsNew = false; return s }},
					`ID = ""`:          {change: func(s *sessions.Session) *sessions.Session { s.ID = ""; return s }},
					"both":             {change: func(s *sessions.Session) *sessions.Session { s.ID, s.IsNew = "", false; return s }},
					"Options = nil":    {change: func(s *sessions.Session) *sessions.Session { s.Options = nil; return s }},
					"a copy":           {change: func(s *sessions.Session) *sessions.Session { c := *s; return &c }},
				} {
					t.Run(name, func(t *testing.T) {
						must(t, x.srv.admin.FlushDB(t.Context()).Err())
						b := login(t, x.plain)
						mend := fail(t, x)
						r, end := b.lived(t)
						s, err := x.over.Get(r, "s")
						wantErr(t, err, ErrNotLoaded)
						x.rec.failing(nil)
						if c.change != nil {
							s = c.change(s)
						}
						if c.r != nil {
							r = c.r(r)
						}
						x.refuses(t, r, s, ErrNotLoaded)
						end()
						mend()
						x.srv.free(t)
						equal(t, "user", b.user(t, x.plain), "ann")
					})
				}
			})
		})
	}
}

func TestOneRequestMayBeReadByManyGoroutines(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		if l, ok := x.over.(*LockingStore); ok {
			l.TTL = 20 * time.Millisecond // in case that the request waits for itself
			if x.srv.mini != nil {
				x.srv.mini.ClockTTL(true)
			}
		}
		a, b := login(t, x.plain), login(t, x.plain)
		b.old().logout(t, x.plain)
		r, end := a.lived(t)
		defer end()
		r.Header.Set("Cookie", "s="+b["s"]+"; s="+a["s"])
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 20 {
					s, err := x.over.New(r, "s")
					if err != nil || s.Values["user"] != "ann" {
						t.Errorf("error %v, session %+v", err, s)
						return
					}
				}
			})
		}
		all.Wait()
	})
}

// TestTwoStoresOfOneNameKeepApart has one request load the session "s" from each of two
// stores, in both orders.
func TestTwoStoresOfOneNameKeepApart(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		kinds := map[string]func(*Store) keeper{
			"Store":        func(s *Store) keeper { return s },
			"LockingStore": func(s *Store) keeper { return NewLockingStore(s) },
		}
		for first, one := range kinds {
			for second, two := range kinds {
				for _, cookie := range []string{"a cookie", "a bad cookie", "no cookie", "a Redis that fails"} {
					t.Run(first+", "+second+", "+cookie, func(t *testing.T) {
						must(t, srv.admin.FlushDB(t.Context()).Err())
						x := newTrial(t, srv, false)
						other, _ := srv.store(t)
						other.KeyPrefix = "session_other_"
						keepApart(t, x, one(x.plain), two(other), cookie)
					})
				}
			}
		}
	})
}

func keepApart(t *testing.T, x trial, a, b keeper, cookie string) {
	user := login(t, x.plain)
	visitor := user.old()
	switch cookie {
	case "a bad cookie":
		visitor = browser{"s": "nonsense"}
	case "no cookie":
		visitor = browser{}
	case "a Redis that fails":
		x.rec.failing(func(string) error { return redisError("ERR failing") })
	}
	r, end := visitor.lived(t)
	defer end()
	s, _ := a.Get(r, "s")
	loaded := len(s.Values)
	x.rec.failing(nil)
	apart, err := b.Get(r, "s")
	wantErr(t, err, errOtherStore)
	if apart == s {
		t.Error("both stores return the same session")
	}
	if l, ok := b.(*LockingStore); ok {
		wantErr(t, l.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error {
			t.Error("fn was called")
			return nil
		}), errOtherStore)
	}
	equal(t, "values of the first", len(s.Values), loaded)
	w := httptest.NewRecorder()
	wantErr(t, b.Save(r, w, s), errOtherStore)
	wantErr(t, b.Renew(r, w, s), errOtherStore)
	wantErr(t, b.Touch(r, w, s), errOtherStore)
	equal(t, "Set-Cookie", w.Header().Get("Set-Cookie"), "")

	s.Values["n"] = 1 // the first goes on as if there were no other
	err = s.Save(r, w)
	if cookie == "a Redis that fails" {
		wantErr(t, err, ErrNotLoaded)
		s.Options.MaxAge = -1
		must(t, s.Save(r, w))
		equal(t, "keys after logout", len(x.srv.keys(t)), 0)
		return
	}
	must(t, err)
	end()
	visitor.keep(w)
	saved, _, _ := visitor.get(t, x.plain)
	equal(t, "n", count(saved), 1)
	equal(t, "user", user.user(t, x.plain), "ann")
}

// TestNoSessionIsNobody: gorilla's registry returns nil for a name that is no cookie's.
func TestNoSessionIsNobody(t *testing.T) {
	equal(t, "Owner", Owner(nil), "")
	equal(t, "PublicID", PublicID(nil), "")
	equal(t, "Created", Created(nil), time.Time{})
}
