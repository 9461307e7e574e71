package redistore

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// A session's ID is the store's to make, and the request's cookies are the visitor's: what
// is done to either may end in an error, but not in another's session.

// TestAChangedIDIsRefused has a handler put another session's ID, or one that nobody has,
// into a session that was loaded.
func TestAChangedIDIsRefused(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		bob := login(t, x.plain)
		for what, id := range map[string]string{"another's": idOf(t, x.plain, bob), "nobody's": "made up"} {
			for name, write := range x.writes() {
				ann := login(t, x.plain)
				s, r := load(t, x.over, ann)
				s.ID, s.Values["user"] = id, "eve"
				w := httptest.NewRecorder()
				wantText(t, write(r, w, s), "the session's ID was changed")
				equal(t, name+", "+what+": cookies", len(w.Result().Cookies()), 0)
				equal(t, name+", "+what+": ann", ann.user(t, x.plain), "ann")
				equal(t, name+", "+what+": bob", bob.user(t, x.plain), "ann")
			}
		}
	})
}

// TestACookieStoreSessionTakesNoID has a handler give one to a session that comes from a
// cookie of CookieStore.
func TestACookieStoreSessionTakesNoID(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		x.plain.CookieStoreUntil = time.Now().Add(time.Hour)
		ann := login(t, sessions.NewCookieStore(hashKey))
		s, r := load(t, x.over, ann)
		s.ID = "mine"
		w := httptest.NewRecorder()
		must(t, s.Save(r, w))
		ann.keep(w)
		equal(t, "the ID was not taken", s.ID != "mine", true)
		equal(t, "user", ann.user(t, x.plain), "ann")
	})
}

// TestAClearedIDIsRenewed also where another Get or an Update comes before the Save.
func TestAClearedIDIsRenewed(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		for name, between := range map[string]func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error{
			"Save": func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error {
				return s.Save(r, w)
			},
			"Get and Save": func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error {
				same, err := store.Get(r, "s")
				must(t, err)
				equal(t, "the request's session is one", same == s, true)
				return same.Save(r, w)
			},
			"Update": func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error {
				return store.Update(r, w, "s", func(s *sessions.Session) error { s.Values["n"] = 1; return nil })
			},
		} {
			b := login(t, store)
			before := browser{"s": b["s"]}
			s, r := load(t, store, b)
			w := httptest.NewRecorder()
			must(t, s.Save(r, w)) // without it, Get would have nothing to do
			s.ID = ""
			must(t, between(s, r, w))
			b.keep(w)
			equal(t, name+": user", b.user(t, store.Store), "ann")
			equal(t, name+": user of the old ID", before.user(t, store.Store), "")
		}
	})
}

// TestAnEndedSessionThatWasNotReadIsFree to be saved as a new one: nothing is left that could
// be lost.
func TestAnEndedSessionThatWasNotReadIsFree(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		b := login(t, x.plain)
		must(t, x.srv.admin.Set(t.Context(), x.srv.keys(t)[0], "nonsense", time.Hour).Err())
		r := b.request(t)
		s, err := x.over.Get(r, "s")
		wantErr(t, err, ErrNotLoaded)
		s.Options.MaxAge = -1
		must(t, s.Save(r, httptest.NewRecorder()))
		s.Options.MaxAge = 3600
		s.Values["user"] = "ann"
		w := httptest.NewRecorder()
		must(t, s.Save(r, w))
		b.keep(w)
		equal(t, "user", b.user(t, x.plain), "ann")
	})
}

// TestAnOldCookieBeforeTheGoodOne does not keep a request from its own lock.
func TestAnOldCookieBeforeTheGoodOne(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.Wait = 0
		old := login(t, store)
		old.logout(t, store.Store)
		stale := login(t, store)
		must(t, srv.admin.FlushDB(t.Context()).Err())
		good := login(t, store)
		r, end := browser{}.lived(t)
		defer end()
		r.AddCookie(&http.Cookie{Name: "s", Value: stale["s"]})
		r.AddCookie(&http.Cookie{Name: "s", Value: good["s"]})
		_, err := store.Get(r, "s")
		must(t, err)
		_, err = store.New(r, "s")
		must(t, err)
		must(t, store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { return nil }))
	})
}

// TestALoginBetweenTwoStepsOfASave has a login renew the ID that a request came with, and
// that has no record, at the worst moment of that request's Save.
func TestALoginBetweenTwoStepsOfASave(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for _, moment := range []string{"exists", "set"} {
			store, rec := srv.store(t)
			other, _ := srv.store(t)
			b := login(t, store)
			must(t, srv.admin.FlushDB(t.Context()).Err())
			s, r, w := b.get(t, store)
			s.Values["color"] = "red"
			s2, r2, w2 := b.get(t, other)
			s2.Values["user"] = "ann"
			rec.failing(func(name string) error {
				if name == moment {
					rec.fail = nil
					must(t, other.Renew(r2, w2, s2))
				}
				return nil
			})
			wantErr(t, store.Save(r, w, s), ErrGone)
			equal(t, moment+": cookies", len(w.Result().Cookies()), 0)
			b.keep(w2)
			b.keep(w)
			equal(t, moment+": user", b.user(t, store), "ann")
			records := slices.DeleteFunc(srv.keys(t), func(key string) bool { return !strings.HasPrefix(key, "session_") })
			equal(t, moment+": sessions", len(records), 1)
		}
	})
}

// TestNoSessionIsAnError where there is a store, and one that says so.
func TestNoSessionIsAnError(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		for name, write := range x.writes() {
			err := write(browser{}.request(t), httptest.NewRecorder(), nil)
			wantText(t, err, "there is no session: it is nil")
			equal(t, name, Status(err), http.StatusInternalServerError)
		}
	})
}

// TestPingSeesPastWhatIsMissing: a key that is evicted in the middle of a trial hides no
// later error.
func TestPingSeesPastWhatIsMissing(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		client := srv.client(t)
		client.AddHook(answers{change: func(cmds []redis.Cmder) error {
			cmds[3].SetErr(redis.Nil)
			cmds[5].SetErr(errors.New("NOPERM this user has no permissions"))
			return redis.Nil
		}})
		wantText(t, New(client, hashKey).Ping(t.Context()), "lacks a right")
	})
}

// answers changes what pipelines are answered.
type answers struct {
	hook
	change func(cmds []redis.Cmder) error
}

func (a answers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if err := next(ctx, cmds); len(cmds) < 6 {
			return err
		}
		return a.change(cmds)
	}
}

// TestTwoGoroutinesSaveOneSession finds a race if Save writes to a session that is loaded.
func TestTwoGoroutinesSaveOneSession(t *testing.T) {
	store, _ := startMini(t).store(t)
	b := login(t, store)
	r := b.request(t)
	s, err := store.Get(r, "s")
	must(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { must(t, store.Save(r, httptest.NewRecorder(), s)) })
	}
	wg.Wait()
}

// panicsOnce is a Serializer whose first Serialize panics.
type panicsOnce struct {
	Serializer
	once *sync.Once
}

func (p panicsOnce) Serialize(s *sessions.Session) ([]byte, error) {
	p.once.Do(func() { panic("oh") })
	return p.Serializer.Serialize(s)
}

// TestASerializersPanicLeavesTheID of a new session empty, and so it can be saved.
func TestASerializersPanicLeavesTheID(t *testing.T) {
	store, _ := startMini(t).store(t)
	store.Serializer = panicsOnce{GobSerializer{}, new(sync.Once)}
	r, w := browser{}.request(t), httptest.NewRecorder()
	s, err := store.Get(r, "s")
	must(t, err)
	func() {
		defer func() { recover() }()
		s.Save(r, w)
	}()
	must(t, s.Save(r, w))
}
