package redistoretest_test

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/redistoretest"
)

// app greets whoever is logged in.
type app struct{ store sessions.Store }

func (a app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	session, err := a.store.Get(r, "session")
	if status := redistore.Status(err); status != http.StatusOK {
		http.Error(w, "please try again", status)
		return
	}
	if session.Values["user"] == nil {
		http.Error(w, "please log in", http.StatusForbidden)
		return
	}
	fmt.Fprint(w, "hello, ", session.Values["user"])
}

func ann(s *sessions.Session) { s.Values["user"] = "ann" }

// get is a request of somebody with that cookie.
func get(t *testing.T, redis *redistoretest.Redis, a app, cookie *http.Cookie) (int, string) {
	t.Helper()
	w := redis.Serve(a, redis.Request("GET", "/", nil, cookie))
	return w.Code, w.Body.String()
}

func wantCode(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %d, want %d", what, got, want)
	}
}

func TestSomebodyWhoIsLoggedIn(t *testing.T) {
	redis := redistoretest.New(t)
	a := app{redis.Store()}
	ann := redis.Cookie(a.store, "session", func(s *sessions.Session) { s.Values["user"] = "ann" })
	w := redis.Serve(a, redis.Request("GET", "/", nil, ann))
	if w.Code != http.StatusOK || w.Body.String() != "hello, ann" {
		t.Errorf("got %d, %q", w.Code, w.Body)
	}

	redis.Fail(errors.New("redis is down"))
	w = redis.Serve(a, redis.Request("GET", "/", nil, ann))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("got %d, %q", w.Code, w.Body)
	}
	redis.Fail(nil)
	redis.Forward(31 * 24 * time.Hour)
	code, _ := get(t, redis, a, ann)
	wantCode(t, "after MaxAge", code, http.StatusForbidden)
	code, _ = get(t, redis, a, &http.Cookie{Name: "session", Value: "nonsense"})
	wantCode(t, "somebody else", code, http.StatusForbidden)
}

func TestTimePassesOnDemand(t *testing.T) {
	for name, set := range map[string]func(*redistore.Store){
		"MaxAge":          func(s *redistore.Store) { s.MaxAge(60) },
		"IdleTimeout":     func(s *redistore.Store) { s.IdleTimeout = time.Minute },
		"AbsoluteTimeout": func(s *redistore.Store) { s.AbsoluteTimeout = time.Minute },
	} {
		redis := redistoretest.New(t)
		store := redistore.New(redis.Client, []byte("the application's own key, of 32"))
		redis.Follow(store)
		set(store)
		a := app{store}
		cookie := redis.Cookie(store, "session", ann)
		redis.Forward(50 * time.Second)
		code, _ := get(t, redis, a, cookie)
		wantCode(t, name+": after 50 seconds", code, http.StatusOK)
		redis.Forward(70 * time.Second)
		code, _ = get(t, redis, a, cookie)
		wantCode(t, name+": after two minutes", code, http.StatusForbidden)
	}
}

func TestRedisFailsOnDemand(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	down := errors.New("redis is down")
	for name, a := range map[string]app{"Store": {store}, "LockingStore": {redistore.NewLockingStore(store)}} {
		cookie := redis.Cookie(a.store, "session", ann)
		redis.Fail(down)
		code, _ := get(t, redis, a, cookie)
		wantCode(t, name+": while Redis is down", code, http.StatusServiceUnavailable)
		if err := store.Ping(t.Context()); !errors.Is(err, down) {
			t.Errorf("%s: Ping: %v", name, err)
		}
		redis.Fail(nil)
		code, _ = get(t, redis, a, cookie)
		wantCode(t, name+": when it is back", code, http.StatusOK)
	}
}

// TestALockEndsWithTheHandler: a handler that does not save does not hold up the next.
func TestALockEndsWithTheHandler(t *testing.T) {
	redis := redistoretest.New(t)
	store := redistore.NewLockingStore(redis.Store())
	a := app{store}
	cookie := redis.Cookie(store, "session", ann)
	start := time.Now()
	for range 3 {
		code, _ := get(t, redis, a, cookie)
		wantCode(t, "a request", code, http.StatusOK)
	}
	if took := time.Since(start); took > store.TTL/2 {
		t.Errorf("they took %v", took)
	}
}

// TestARequestServedAgainIsAnother: it finds the session locked while the first is running.
func TestARequestServedAgainIsAnother(t *testing.T) {
	redis := redistoretest.New(t)
	store := redistore.NewLockingStore(redis.Store())
	store.Wait = 0
	request := redis.Request("POST", "/", nil, redis.Cookie(store, "session", ann))
	redis.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := store.Get(r, "session"); err != nil {
			t.Fatal(err)
		}
		again := redis.Serve(app{store}, request)
		wantCode(t, "the same request again", again.Code, http.StatusServiceUnavailable)
	}), request)
}

// TestNothingRunsOnAfterTheTest: the lock of the last request, which did not save, is given
// up, or nobody can be told any more.
func TestNothingRunsOnAfterTheTest(t *testing.T) {
	for range 5 {
		for _, err := range []error{nil, errors.New("redis is down")} {
			t.Run("inner", func(t *testing.T) {
				redis := redistoretest.New(t)
				store := redistore.NewLockingStore(redis.Store())
				cookie := redis.Cookie(store, "session", ann)
				code, _ := get(t, redis, app{store}, cookie)
				wantCode(t, "a request", code, http.StatusOK)
				redis.Fail(err)
			})
		}
	}
	stacks := make([]byte, 1<<20)
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		all := string(stacks[:runtime.Stack(stacks, true)])
		if !strings.Contains(all, "internal/lock.") {
			return
		}
		if time.Since(start) > 2*time.Second {
			t.Fatal(all)
		}
	}
}

// fatal is a test that fails.
type fatal struct {
	testing.TB
	said string
}

func (f *fatal) Helper() {}
func (f *fatal) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	panic(f)
}

func TestACookieThatCannotBeMadeFailsTheTest(t *testing.T) {
	f := &fatal{TB: t}
	redis := redistoretest.New(f)
	redis.Fail(errors.New("redis is down"))
	defer func() {
		if recover() != any(f) || f.said != `redistoretest: the session of the cookie "session": redistore: save: redis is down` {
			t.Errorf("got %q", f.said)
		}
	}()
	redis.Cookie(redis.Store(), "session", ann)
}

// FuzzOnOneRedis starts one Redis for all inputs.
func FuzzOnOneRedis(f *testing.F) {
	redis := redistoretest.New(f)
	a := app{redis.Store()}
	f.Add("ann")
	f.Fuzz(func(t *testing.T, user string) {
		cookie := redis.Cookie(a.store, "session", func(s *sessions.Session) { s.Values["user"] = user })
		if _, body := get(t, redis, a, cookie); body != "hello, "+user {
			t.Errorf("got %q", body)
		}
	})
}
