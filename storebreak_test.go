package redistore

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

func TestSetMaxAgeCountsWithoutOptions(t *testing.T) {
	store, _ := startMini(t).store(t)
	s := sessions.NewSession(store, "s")
	s.Options = nil
	SetMaxAge(s, 60)
	w := httptest.NewRecorder()
	must(t, store.Save(nil, w, s))
	equal(t, "MaxAge", cookieOf(t, w).MaxAge, 60)
}

func TestALoginAfterAbsoluteTimeoutSurvivesItsPage(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		x.plain.AbsoluteTimeout = time.Hour
		b := login(t, x.over)
		x.srv.forward(t, 61*time.Minute)
		r := b.request(t) // of the login's page, on its way
		s, err := x.over.Get(r, "s")
		must(t, err)
		page := browser{"s": b["s"]}
		page.visit(t, x.over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Values["user"] = "bob"
			must(t, x.over.Renew(r, w, s))
		})
		w := httptest.NewRecorder()
		s.Values["seen"] = 1
		wantErr(t, x.over.Save(r, w, s), ErrGone)
		equal(t, "cookies", len(w.Result().Cookies()), 0)
		// and one that comes after
		late := browser{"s": b["s"]}
		late.visit(t, x.over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			wantErr(t, x.over.Save(r, w, s), ErrGone)
		})
		equal(t, "cookie stays", late["s"], b["s"])
		equal(t, "user", page.user(t, x.over), "bob")
	})
}

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

type breakPanicking struct {
	Serializer
	once *sync.Once
}

func (p breakPanicking) Serialize(s *sessions.Session) ([]byte, error) {
	p.once.Do(func() { panic("oh") })
	return p.Serializer.Serialize(s)
}

func TestASerializersPanicLeavesTheID(t *testing.T) {
	store, _ := startMini(t).store(t)
	store.Serializer = breakPanicking{GobSerializer{}, new(sync.Once)}
	r, w := browser{}.request(t), httptest.NewRecorder()
	s, err := store.Get(r, "s")
	must(t, err)
	func() {
		defer func() { recover() }()
		s.Save(r, w)
	}()
	must(t, s.Save(r, w))
}

func TestGetForgetsAnErrorThatIsOver(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		b := login(t, x.over)
		key, _ := x.srv.only(t)
		must(t, x.srv.admin.Set(t.Context(), key, "garbage", time.Hour).Err())
		r, w := b.request(t), httptest.NewRecorder()
		s, err := x.over.Get(r, "s")
		wantErr(t, err, ErrNotDecoded)
		maxAge := s.Options.MaxAge
		s.Options.MaxAge = -1
		must(t, s.Save(r, w))
		s.ID, s.Options.MaxAge = "", maxAge
		s.Values["user"] = "ann"
		must(t, x.over.Renew(r, w, s))
		s, err = x.over.Get(r, "s")
		equal(t, "user", s.Values["user"], any("ann"))
		must(t, err)
	})
}

func TestAReadDoesNotLowerAnEntryOfTheIndex(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		old, _ := srv.store(t) // a server that has no IdleTimeout yet
		store, rec := srv.store(t)
		store.IdleTimeout = 10 * time.Minute
		b := loginAs(t, old, "ann")
		rec.at(1, func() {
			b.visit(t, old, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { must(t, s.Save(r, w)) })
		})
		equal(t, "user", b.user(t, store), "ann")
		rec.failing(nil)
		srv.covered(t, "Save between a Get's two commands", old, "ann", 0)
	})
}

// What docs/moving-in.md advises.
func TestAGoodbyeFlashDoesNotUndoALogout(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		x.plain.CookieStoreUntil = x.plain.now().Add(time.Hour)
		b := login(t, sessions.NewCookieStore(hashKey))
		b.visit(t, x.over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			equal(t, "user", s.Values["user"], any("ann"))
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
			bye, _ := x.over.New(r, "s")
			clear(bye.Values)
			bye.AddFlash("goodbye")
			must(t, bye.Save(r, w))
		})
		s, _, _ := b.get(t, x.over)
		equal(t, "user", s.Values["user"], nil)
		equal(t, "flashes", len(s.Flashes()), 1)
	})
}
