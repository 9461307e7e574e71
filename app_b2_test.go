package redistore

import (
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/gorilla/sessions"
)

// TestUpdateBesideAReader is a websocket: one goroutine updates, its handler waits for the
// request's end.
func TestUpdateBesideAReader(t *testing.T) {
	mini, _ := startMini(t).store(t)
	store := NewLockingStore(mini)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := store.Store.Get(r, "s") // before the goroutine starts
		must(t, err)
		done := make(chan error)
		go func() {
			done <- store.Update(r, w, "s", func(s *sessions.Session) error { return nil })
		}()
		select {
		case <-r.Context().Done():
		case err := <-done:
			must(t, err)
		}
	}))
	defer srv.Close()
	for range 5 {
		response, err := http.Get(srv.URL)
		must(t, err)
		response.Body.Close()
	}
}

// TestASharedLoginExpiresTheHostsOwnCookie switches Domain on while somebody has a cookie
// without one.
func TestASharedLoginExpiresTheHostsOwnCookie(t *testing.T) {
	store, _ := startMini(t).store(t)
	jar, err := cookiejar.New(nil)
	must(t, err)
	at, err := url.Parse("https://www.example.com/")
	must(t, err)
	visit := func(handler func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error) error {
		r, w := httptest.NewRequest("GET", at.String(), nil), httptest.NewRecorder()
		for _, c := range jar.Cookies(at) {
			r.AddCookie(c)
		}
		s, err := store.Get(r, "s")
		must(t, err)
		err = handler(r, w, s)
		jar.SetCookies(at, w.Result().Cookies())
		return err
	}
	login := func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		if store.Options.Domain != "" {
			http.SetCookie(w, &http.Cookie{Name: "s", Path: "/", MaxAge: -1})
		}
		return store.Renew(r, w, s)
	}
	logout := func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		s.Options.MaxAge = -1
		return s.Save(r, w)
	}
	must(t, visit(login))
	store.Options.Domain = "example.com"
	for range 3 {
		must(t, visit(login))
		must(t, visit(logout))
	}
}
