package redistore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// web is a real server, over HTTP/1.1 or HTTP/2, and a browser with its cookies.
func web(t *testing.T, http2 bool, handler http.HandlerFunc) (*httptest.Server, *http.Client) {
	srv := httptest.NewUnstartedServer(handler)
	srv.EnableHTTP2 = http2
	srv.StartTLS()
	t.Cleanup(srv.Close)
	client := srv.Client()
	client.Jar, _ = cookiejar.New(nil)
	return srv, client
}

func fetch(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

// TestStreamsOfOneConnectionAreNotOneRequest has handlers whose contexts do not end with
// the client, as a middleware may make them.
func TestStreamsOfOneConnectionAreNotOneRequest(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for _, http2 := range []bool{false, true} {
			store, _ := srv.locking(t)
			web, client := web(t, http2, func(w http.ResponseWriter, r *http.Request) {
				r = r.WithContext(context.WithoutCancel(r.Context()))
				s, err := store.Get(r, "s")
				if err == nil {
					time.Sleep(50 * time.Millisecond)
					s.Values["n"] = count(s) + 1
					err = s.Save(r, w)
				}
				if err != nil {
					http.Error(w, err.Error(), Status(err))
				}
			})
			fetch(t, client, web.URL)
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					if code, body := fetch(t, client, web.URL); code != http.StatusOK {
						t.Errorf("HTTP/2 %t: %d %s", http2, code, body)
					}
				})
			}
			all.Wait()
		}
	})
}

// TestUpdatesOfCopiesFollowOneAnother is an errgroup, whose goroutines have copies that were
// made before anything was loaded. The race detector watches.
func TestUpdatesOfCopiesFollowOneAnother(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		web, client := web(t, false, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			var all sync.WaitGroup
			for range 4 {
				copied := r.WithContext(ctx)
				all.Go(func() {
					for range 10 {
						if err := store.Update(copied, w, "s", func(s *sessions.Session) error {
							s.Values["n"] = count(s) + 1
							return nil
						}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
		})
		fetch(t, client, web.URL)
		fetch(t, client, web.URL)
	})
}

// TestUpdatesOfTwoStoresFollowOneAnother has one request's goroutines update the sessions of
// two stores, each also within the other's Update. The race detector watches.
func TestUpdatesOfTwoStoresFollowOneAnother(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		login, _ := srv.locking(t)
		cart, _ := srv.locking(t)
		cart.KeyPrefix = "session_cart_"
		add := func(s *sessions.Session) error { s.Values["n"] = count(s) + 1; return nil }
		web, client := web(t, false, func(w http.ResponseWriter, r *http.Request) {
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					must(t, login.Update(r, w, "login", func(s *sessions.Session) error {
						return errors.Join(add(s), cart.Update(r, w, "cart", add))
					}))
				})
				all.Go(func() { must(t, cart.Update(r, w, "cart", add)) })
			}
			all.Wait()
			for name, store := range map[string]*LockingStore{"login": login, "cart": cart} {
				s, err := store.Store.Get(r, name)
				must(t, err)
				fmt.Fprintln(w, name, count(s))
			}
		})
		for range 2 {
			fetch(t, client, web.URL)
		}
		_, body := fetch(t, client, web.URL)
		if !strings.Contains(body, "login 12\n") || !strings.Contains(body, "cart 24\n") {
			t.Errorf("got %q", body)
		}
	})
}
