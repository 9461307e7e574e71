package redistore

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gorilla/sessions"
)

// TestRememberMeIsOneLineAtLogin: whatever the handlers after it do, the cookie lives as long
// as SetMaxAge said.
func TestRememberMeIsOneLineAtLogin(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, z := range map[string]Serializer{
			"gob": GobSerializer{}, "JSON": JSONSerializer{}, "Encrypt": Encrypt(JSONSerializer{}, secret),
		} {
			for _, seconds := range []int{0, 90 * 24 * 60 * 60} {
				store, _ := srv.store(t)
				store.Serializer = z
				lock := NewLockingStore(store)
				b := loginAs(t, store, "ann")
				b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
					SetMaxAge(s, seconds)
					equal(t, name+": at once", s.Options.MaxAge, seconds)
					must(t, store.Renew(r, w, s))
				})
				b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
					equal(t, name+": after Renew", s.Options.MaxAge, seconds)
					again, err := store.New(r, "s")
					must(t, err)
					equal(t, name+": New", again.Options.MaxAge, seconds)
					must(t, store.Renew(r, w, s))
					equal(t, name+": cookie", cookieOf(t, w).MaxAge, seconds)
				})
				b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
					s.Options.MaxAge = 60 // for this Save
					must(t, s.Save(r, w))
					equal(t, name+": the handler's", cookieOf(t, w).MaxAge, 60)
				})
				r, end := b.lived(t)
				must(t, lock.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
					equal(t, name+": Update", s.Options.MaxAge, seconds)
					return nil
				}))
				end()
				for s, err := range store.Sessions(t.Context(), "ann") {
					must(t, err)
					equal(t, name+": Sessions", s.Options.MaxAge, seconds)
				}
				_, err := store.Revoke(t.Context(), "ann")
				must(t, err)
			}
		}
	})
}

func TestAMaxAgeThatNobodySetCountsForNothing(t *testing.T) {
	for _, planted := range []any{-1, -1.0, 1e300, 0.5, "1", nil, int64(5), []any{}} {
		s := sessions.NewSession(nil, "s")
		s.Options = &sessions.Options{MaxAge: 7}
		s.Values[maxAgeKey] = planted
		restoreMaxAge(s)
		equal(t, "MaxAge", s.Options.MaxAge, 7)
	}
	s := &sessions.Session{}
	SetMaxAge(s, 5)
	equal(t, "kept", s.Values[maxAgeKey], any(5))
	s.Options = &sessions.Options{MaxAge: 7}
	SetMaxAge(s, -1)
	equal(t, "kept", len(s.Values), 0)
	equal(t, "MaxAge", s.Options.MaxAge, 7)
}

func cookieOf(t *testing.T, w http.ResponseWriter) *http.Cookie {
	t.Helper()
	cookies := w.(*httptest.ResponseRecorder).Result().Cookies()
	if len(cookies) != 1 {
		t.Fatalf("%d cookies", len(cookies))
	}
	return cookies[0]
}

// TestSetMaxAgeCountsWithoutOptions has the store give the session its Options at Save.
func TestSetMaxAgeCountsWithoutOptions(t *testing.T) {
	store, _ := startMini(t).store(t)
	s := sessions.NewSession(store, "s")
	s.Options = nil
	SetMaxAge(s, 60)
	w := httptest.NewRecorder()
	must(t, store.Save(nil, w, s))
	equal(t, "MaxAge", cookieOf(t, w).MaxAge, 60)
}
