// Package e2e runs redistore under the libraries and beside the stores that it meets
// in the wild, on a real redis-server. It is a module of its own, so that none of them
// becomes a dependency of redistore.
package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
)

var (
	hashKey  = []byte("0123456789abcdef0123456789abcdef")
	blockKey = []byte("fedcba9876543210fedcba9876543210")
)

// startRedis starts a redis-server that ends with the test.
func startRedis(t *testing.T) (addr string) { return topology.Start(t).Addr }

func newStore(t *testing.T, addr string, keys ...[]byte) *redistore.Store {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	t.Cleanup(func() { client.Close() })
	return redistore.New(client, keys...)
}

// stores are the plain store and the one with the lock, each on a server of its own.
func stores(t *testing.T, test func(t *testing.T, store sessions.Store, plain *redistore.Store)) {
	t.Run("Store", func(t *testing.T) {
		s := newStore(t, startRedis(t), hashKey, blockKey)
		test(t, s, s)
	})
	t.Run("LockingStore", func(t *testing.T) {
		s := newStore(t, startRedis(t), hashKey, blockKey)
		l := redistore.NewLockingStore(s)
		l.TTL = 50 * time.Millisecond // not all of these libraries' tests end their requests
		test(t, l, s)
	})
}

// browser keeps cookies by name.
type browser map[string]string

func (b browser) visit(t *testing.T, h http.HandlerFunc) *httptest.ResponseRecorder {
	t.Helper()
	r, w := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil), httptest.NewRecorder()
	for name, value := range b {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	h(w, r)
	for _, c := range w.Result().Cookies() {
		if b[c.Name] = c.Value; c.MaxAge < 0 {
			delete(b, c.Name)
		}
	}
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
