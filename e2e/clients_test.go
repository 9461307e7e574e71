package e2e

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	ginsessions "github.com/gin-contrib/sessions"
	"github.com/gin-contrib/sessions/tester"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/gorilla/sessions"
	"github.com/labstack/echo-contrib/session"
	"github.com/labstack/echo/v4"
	"github.com/markbates/goth"
	"github.com/markbates/goth/gothic"
	"github.com/markbates/goth/providers/faux"

	"github.com/redistore/redistore"
)

// TestGothic logs in through markbates/goth, over the requests that a browser makes.
func TestGothic(t *testing.T) {
	goth.UseProviders(&faux.Provider{})
	stores(t, func(t *testing.T, store sessions.Store, plain *redistore.Store) {
		gothic.Store = store
		mux := http.NewServeMux()
		mux.HandleFunc("/login", gothic.BeginAuthHandler)
		mux.HandleFunc("/callback", func(w http.ResponseWriter, r *http.Request) {
			user, err := gothic.CompleteUserAuth(w, r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			s, err := store.Get(r, "app")
			must(t, err)
			s.Values["user"] = user.UserID
			must(t, s.Save(r, w))
		})
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			s, err := store.Get(r, "app")
			must(t, err)
			user, _ := s.Values["user"].(string)
			io.WriteString(w, user)
		})
		srv := httptest.NewTLSServer(mux)
		defer srv.Close()
		jar, err := cookiejar.New(nil)
		must(t, err)
		client := srv.Client()
		client.Jar = jar
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		get := func(path string) (*http.Response, string) {
			t.Helper()
			r, err := client.Get(srv.URL + path)
			must(t, err)
			defer r.Body.Close()
			body, err := io.ReadAll(r.Body)
			must(t, err)
			return r, string(body)
		}
		for range 2 { // the second time with cookies from the first
			get("/login?provider=faux")
			r, body := get("/callback?provider=faux&state=forged")
			equal(t, "with a forged state", r.StatusCode, http.StatusForbidden)
			equal(t, "why", strings.TrimSpace(body), "state token mismatch")
			r, _ = get("/login?provider=faux")
			to, err := r.Location()
			must(t, err)
			state := url.QueryEscape(to.Query().Get("state"))
			r, body = get("/callback?provider=faux&state=" + state)
			equal(t, "login", r.StatusCode, http.StatusOK)
			equal(t, "why", body, "")
			_, body = get("/")
			equal(t, "user", body, "id")
			r, _ = get("/callback?provider=faux&state=" + state)
			equal(t, "the state used again", r.StatusCode, http.StatusForbidden)
		}
	})
}

// TestEcho is what echo-contrib's own test asks of a store, and a second request.
func TestEcho(t *testing.T) {
	stores(t, func(t *testing.T, store sessions.Store, _ *redistore.Store) {
		e := echo.New()
		e.Use(session.Middleware(store))
		e.GET("/", func(c echo.Context) error {
			s, err := session.Get("test", c)
			if err != nil {
				return err
			}
			was, _ := s.Values["foo"].(string)
			s.Options.Domain = "labstack.com"
			s.Values["foo"] = "bar"
			if err := s.Save(c.Request(), c.Response()); err != nil {
				return err
			}
			return c.String(http.StatusOK, was)
		})
		b := browser{}
		equal(t, "foo", b.visit(t, e.ServeHTTP).Body, "")
		w := b.visit(t, e.ServeHTTP)
		equal(t, "foo", w.Body, "bar")
		equal(t, "Domain", w.Result().Cookies()[0].Domain, "labstack.com")
	})
}

// ginStore is what gin-contrib/sessions asks for beyond gorilla's interface.
type ginStore struct {
	sessions.Store
	plain *redistore.Store
}

func (g ginStore) Options(o ginsessions.Options) { g.plain.Options = o.ToGorillaOptions() }

// TestGin runs the suite that gin-contrib/sessions has for its stores.
func TestGin(t *testing.T) {
	gin.SetMode(gin.ReleaseMode)
	gin.DefaultWriter = io.Discard
	stores(t, func(t *testing.T, store sessions.Store, plain *redistore.Store) {
		factory := func(*testing.T) ginsessions.Store { return ginStore{store, plain} }
		t.Run("GetSet", func(t *testing.T) { tester.GetSet(t, factory) })
		t.Run("DeleteKey", func(t *testing.T) { tester.DeleteKey(t, factory) })
		t.Run("Flashes", func(t *testing.T) { tester.Flashes(t, factory) })
		t.Run("Clear", func(t *testing.T) { tester.Clear(t, factory) })
		t.Run("Options", func(t *testing.T) { tester.Options(t, factory) })
		t.Run("Many", func(t *testing.T) { tester.Many(t, factory) })
	})
}

// TestRouters has a middleware and a handler share a session, though the router gives
// them different requests.
func TestRouters(t *testing.T) {
	stores(t, func(t *testing.T, store sessions.Store, _ *redistore.Store) {
		visits := func(r *http.Request, add int) int {
			s, err := store.Get(r, "s")
			must(t, err)
			n, _ := s.Values["n"].(int)
			s.Values["n"] = n + add
			return n + add
		}
		count := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				visits(r, 1)
				type key struct{}
				next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, 1)))
			})
		}
		show := func(w http.ResponseWriter, r *http.Request) {
			visits(r, 10)
			must(t, sessions.Save(r, w))
		}
		c := chi.NewRouter()
		c.Use(count)
		c.Get("/", show)
		m := mux.NewRouter()
		m.Use(count)
		m.HandleFunc("/", show)
		for name, router := range map[string]http.Handler{"chi": c, "mux": m} {
			b := browser{}
			for range 3 {
				b.visit(t, router.ServeHTTP)
			}
			b.visit(t, func(_ http.ResponseWriter, r *http.Request) {
				equal(t, name, visits(r, 0), 33)
			})
		}
	})
}

// TestTwoServersBehindOneAddress is a browser, TLS, a load balancer, and two servers
// that share nothing but Redis and the key.
func TestTwoServersBehindOneAddress(t *testing.T) {
	addr := startRedis(t)
	var answered [2]atomic.Int64
	var servers []*url.URL
	for i := range answered {
		store := redistore.NewLockingStore(newStore(t, addr, hashKey))
		h := http.NewServeMux()
		h.HandleFunc("/add", func(w http.ResponseWriter, r *http.Request) {
			answered[i].Add(1)
			s, err := store.Get(r, "s")
			must(t, err)
			n, _ := s.Values["n"].(int)
			s.Values["n"] = n + 1
			must(t, s.Save(r, w))
		})
		h.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
			s, err := store.Get(r, "s")
			must(t, err)
			must(t, store.Renew(r, w, s))
		})
		h.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
			s, err := store.Get(r, "s")
			must(t, err)
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
		})
		h.HandleFunc("/show", func(w http.ResponseWriter, r *http.Request) {
			s, err := store.Store.Get(r, "s")
			must(t, err)
			n, _ := s.Values["n"].(int)
			w.Write([]byte(strings.Repeat("x", n)))
		})
		srv := httptest.NewServer(h)
		defer srv.Close()
		u, _ := url.Parse(srv.URL)
		servers = append(servers, u)
	}
	var turn atomic.Int64
	front := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(servers[turn.Add(1)%2])
	}})
	defer front.Close()
	jar, err := cookiejar.New(nil)
	must(t, err)
	browser := &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: front.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}}
	defer browser.CloseIdleConnections()
	get := func(path string) int {
		r, err := browser.Get(front.URL + path)
		if err != nil {
			t.Error(err)
			return -1
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		equal(t, path, r.StatusCode, http.StatusOK)
		return len(body)
	}
	get("/add")
	get("/login")
	done := make(chan int)
	for range 20 {
		go func() { done <- get("/add") }()
	}
	for range 20 {
		<-done
	}
	equal(t, "visits", get("/show"), 21)
	if answered[0].Load() < 5 || answered[1].Load() < 5 {
		t.Errorf("the servers answered %d and %d", answered[0].Load(), answered[1].Load())
	}
	u, _ := url.Parse(front.URL)
	copied := jar.Cookies(u)
	get("/logout")
	equal(t, "cookies", len(jar.Cookies(u)), 0)
	jar.SetCookies(u, copied)
	equal(t, "visits by a copied cookie after logout", get("/show"), 0)
}
