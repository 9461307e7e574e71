// Package redistoretest is for tests of handlers that use redistore: a Redis in memory for
// each test, requests that end as net/http ends them, time that passes when the test says so,
// and a Redis that fails when it says so.
//
//	func TestHome(t *testing.T) {
//		redis := redistoretest.New(t)
//		app := newApp(redis.Store())
//		ann := redis.Cookie(app.store, "session", func(s *sessions.Session) { s.Values["user"] = "ann" })
//		w := redis.Serve(app, redis.Request("GET", "/", nil, ann))
//		...
//	}
//
// The Redis is [miniredis], which knows what redistore asks for, and nothing of persistence,
// replicas, memory limits and users. Have a test or two on a real one as well.
//
// [miniredis]: https://github.com/alicebob/miniredis
package redistoretest

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/internal/clock"
)

// Redis is an embedded one, for one test.
type Redis struct {
	// Client is connected to it, for stores that the application makes itself.
	Client *redis.Client

	// Mini is the server, for what this package has no words for.
	Mini *miniredis.Miniredis

	t   testing.TB
	ctx context.Context // the test's, which a fuzz target may not ask its F for

	mu    sync.Mutex
	ahead time.Duration
	err   error
}

// New starts an empty Redis. It ends with the test.
func New(t testing.TB) *Redis {
	t.Helper()
	r := &Redis{t: t, ctx: t.Context(), Mini: miniredis.NewMiniRedis()}
	if err := r.Mini.Start(); err != nil {
		t.Fatalf("redistoretest: %v", err)
	}
	r.Client = redis.NewClient(&redis.Options{Addr: r.Mini.Addr(), ContextTimeoutEnabled: true})
	r.Client.AddHook(failing{r})
	t.Cleanup(func() {
		r.Client.Close()
		r.Fail(nil) // what is still told to Redis hears that the client is closed, and gives up
		r.Mini.Close()
	})
	return r
}

var key = []byte("a key that is good for tests only")

// Store returns a store on this Redis, in the test's time, with a key that is always the
// same. Put [redistore.NewLockingStore] around it, or change its fields, as the application
// does.
func (r *Redis) Store() *redistore.Store {
	store := redistore.New(r.Client, key)
	r.Follow(store)
	return store
}

// Follow lets a store that the application has made itself have the test's time, on which
// AbsoluteTimeout and [redistore.Created] depend. Call it before the first request.
func (r *Redis) Follow(store *redistore.Store) {
	clock.Set(store, func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return time.Now().Add(r.ahead)
	})
}

// Forward lets time pass: what expires by then is gone. Otherwise nothing expires in this
// Redis, be the test as slow as it may. Two things go by the real time: how long requests of
// one LockingStore wait for each other, and the age of cookies that CookieStore made.
func (r *Redis) Forward(d time.Duration) {
	r.mu.Lock()
	r.ahead += d
	r.mu.Unlock()
	r.Mini.FastForward(d)
}

// Fail has each command fail with this error from now on, as if Redis could not be reached;
// nil: it works again, and has what it had.
func (r *Redis) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *Redis) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Cookie starts a session of that name in a store, lets fill change it, saves it, and returns
// its cookie, for requests of somebody who is logged in.
func (r *Redis) Cookie(store sessions.Store, name string, fill func(*sessions.Session)) *http.Cookie {
	request, w := r.Request("GET", "/", nil), httptest.NewRecorder()
	session, err := store.Get(request, name)
	if err == nil {
		fill(session)
		err = store.Save(request, w, session)
	}
	if err != nil {
		r.t.Helper()
		r.t.Fatalf("redistoretest: the session of the cookie %q: %v", name, err)
	}
	for _, cookie := range w.Result().Cookies() {
		if cookie.Name == name {
			return cookie
		}
	}
	r.t.Helper()
	r.t.Fatalf("redistoretest: no cookie %q was set", name)
	return nil
}

// Request returns a request with these cookies. Its context ends with the test; with Serve,
// it ends with the handler.
func (r *Redis) Request(method, target string, body io.Reader, cookies ...*http.Cookie) *http.Request {
	request := httptest.NewRequestWithContext(r.ctx, method, target, body)
	for _, cookie := range cookies {
		request.AddCookie(cookie)
	}
	return request
}

// Serve runs a handler as net/http does: when it has returned, the request's context ends,
// which is what unlocks a session that was loaded through a [redistore.LockingStore] and not
// saved. A request that is served again, also at the same time, is another one. What the
// test itself has loaded in it, the handler does not see: give it a [Redis.Cookie]. What the
// test has loaded through a LockingStore and not saved is locked until the test ends: the
// handler waits for it, and gets [redistore.ErrLocked].
func (r *Redis) Serve(handler http.Handler, request *http.Request) *httptest.ResponseRecorder {
	ctx, end := context.WithCancel(unread{request.Context()})
	defer end()
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, request.Clone(ctx)) // the lock takes those with one header for one request
	return w
}

// unread hides gorilla's registry: what the test itself, or who was served before, has loaded.
type unread struct{ context.Context }

func (u unread) Value(key any) any {
	value := u.Context.Value(key)
	if _, is := value.(*sessions.Registry); is {
		return nil
	}
	return value
}

// failing is a hook that has commands fail.
type failing struct{ redis *Redis }

func (f failing) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if err := f.redis.failure(); err != nil {
			return nil, err
		}
		return next(ctx, network, addr)
	}
}

func (f failing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if err := f.redis.failure(); err != nil {
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

func (f failing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if err := f.redis.failure(); err != nil {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
			return err
		}
		return next(ctx, cmds)
	}
}
