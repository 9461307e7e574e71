package e2e

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"

	"github.com/gorilla/sessions"
	abclientstate "github.com/volatiletech/authboss-clientstate"
	"github.com/volatiletech/authboss/v3"

	"github.com/redistore/redistore"
)

// TestAuthboss logs in, reads and logs out as authboss does: it saves without a request,
// once the response is written.
func TestAuthboss(t *testing.T) {
	stores(t, func(t *testing.T, store sessions.Store, plain *redistore.Store) {
		ab := authboss.New()
		ab.Config.Storage.SessionState = abclientstate.NewSessionStorerFromExisting("authboss", store)
		mux := http.NewServeMux()
		mux.HandleFunc("/login", func(w http.ResponseWriter, _ *http.Request) {
			authboss.PutSession(w, authboss.SessionKey, "ann")
			io.WriteString(w, "welcome")
		})
		mux.HandleFunc("/logout", func(w http.ResponseWriter, _ *http.Request) {
			authboss.DelAllSession(w, nil)
			io.WriteString(w, "goodbye")
		})
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			user, _ := authboss.GetSession(r, authboss.SessionKey)
			io.WriteString(w, user)
		})
		srv := httptest.NewTLSServer(ab.LoadClientStateMiddleware(mux))
		defer srv.Close()
		jar, err := cookiejar.New(nil)
		must(t, err)
		client := srv.Client()
		client.Jar = jar
		for _, step := range []struct{ path, want string }{
			{"/", ""}, {"/login", "welcome"}, {"/", "ann"}, {"/", "ann"}, {"/logout", "goodbye"}, {"/", ""}, {"/login", "welcome"}, {"/", "ann"},
		} {
			res, err := client.Get(srv.URL + step.path)
			must(t, err)
			body, err := io.ReadAll(res.Body)
			must(t, err)
			res.Body.Close()
			equal(t, step.path, string(body), step.want)
		}
	})
}
