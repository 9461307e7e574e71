package redistore

import (
	"net/http"
	"net/http/httptest"
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
