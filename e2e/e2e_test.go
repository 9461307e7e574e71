// Package e2e runs redistore under the libraries and beside the stores that it meets
// in the wild, on a real redis-server. It is a module of its own, so that none of them
// becomes a dependency of redistore.
package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

var (
	hashKey  = []byte("0123456789abcdef0123456789abcdef")
	blockKey = []byte("fedcba9876543210fedcba9876543210")
)

// startRedis starts a redis-server on a free loopback port and ends it with the test.
func startRedis(t *testing.T) (addr string) {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("redis-server is not on PATH: CI tests the real thing")
		}
		t.Skip("redis-server is not on PATH; to run this test: apt-get install redis-server, or brew install redis")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not answer after 10 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

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
