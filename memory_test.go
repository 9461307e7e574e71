package redistore

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"errors"
	"sync"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// These tests look at what the whole process holds, so that no other may run at the same
// time: none of them is parallel.

// eachServer runs a test on miniredis and on a real redis-server, one after the other.
func eachServer(t *testing.T, test func(*testing.T, *server)) {
	t.Run("miniredis", func(t *testing.T) { test(t, startMini(t)) })
	t.Run("redis-server", func(t *testing.T) { test(t, startRedis(t)) })
}

// known is how many sessions this package knows something of.
func known() (n int) {
	states.Range(func(any, any) bool { n++; return true })
	return n
}

// TestStateEndsWithItsSession makes 10,000 sessions of every kind and drops them.
func TestStateEndsWithItsSession(t *testing.T) {
	eachServer(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		store.CookieStoreUntil = srv.now().Add(24 * time.Hour)
		lock := NewLockingStore(store)
		lock.TTL, lock.Wait = time.Minute, time.Second
		user, moving := loginAs(t, store, "ann"), login(t, sessions.NewCookieStore(hashKey))
		unknown := login(t, store)
		unknown.old().logout(t, store)
		replaced := login(t, store)
		newTrial(t, srv, false).renew(t, replaced.old())
		w := httptest.NewRecorder()
		from := func(s sessions.Store, b browser) *sessions.Session {
			r, end := b.lived(t)
			defer end()
			session, _ := s.Get(r, "s")
			return session
		}
		kinds := map[string]func(){
			"fresh":               func() { from(store, browser{}) },
			"fresh, with a lock":  func() { from(lock, browser{}) },
			"of a bad cookie":     func() { from(store, browser{"s": "nonsense"}) },
			"of an unknown ID":    func() { from(store, unknown) },
			"of a replaced ID":    func() { from(store, replaced) },
			"stored":              func() { must(t, from(store, user).Save(nil, w)) },
			"loaded, with a lock": func() { equal(t, "IsNew", from(lock, user).IsNew, false) },
			"stored, with a lock": func() {
				r, end := user.lived(t)
				s, err := lock.Get(r, "s")
				must(t, err)
				must(t, s.Save(r, w))
				end()
			},
			"unread": func() {
				rec.failOnce("get", io.EOF)
				from(store, user)
			},
			"moving": func() { equal(t, "user", from(store, moving).Values["user"], any("ann")) },
			"ended": func() {
				s := from(store, browser{})
				must(t, s.Save(nil, w))
				s.Options.MaxAge = -1
				must(t, s.Save(nil, w))
			},
			"renewed": func() {
				s := from(store, browser{})
				must(t, s.Save(nil, w))
				must(t, store.Renew(nil, w, s))
				s.Options.MaxAge = -1
				must(t, s.Save(nil, w))
			},
			"listed": func() {
				for s, err := range store.Sessions(t.Context(), "ann") {
					must(t, err)
					equal(t, "owner", Owner(s), "ann")
				}
			},
			"made by the application": func() {
				s := sessions.NewSession(store, "s")
				must(t, s.Save(nil, w))
				s.Options.MaxAge = -1
				must(t, s.Save(nil, w))
			},
			"a copy": func() {
				s := *from(store, user)
				must(t, store.Save(nil, w, &s))
			},
			"updated": func() {
				r, end := user.lived(t)
				must(t, lock.Update(r, w, "s", func(*sessions.Session) error { return nil }))
				end()
			},
			"of an Update that failed": func() {
				r, end := user.lived(t)
				wantErr(t, lock.Update(r, w, "s", func(*sessions.Session) error { return io.EOF }), io.EOF)
				end()
			},
		}
		runtime.GC()
		runtime.GC()
		others := known() // that other tests still hold
		for range 10_000 / len(kinds) {
			for _, make := range kinds {
				make()
			}
		}
		// Go may keep a timer that was stopped, and with it the context and the request, until
		// it would have run out: that of a call with the lock, after Wait and 5 s.
		within(t, lock.Wait+10*time.Second, "nothing is known of any session", func() bool {
			runtime.GC()
			return known() <= others
		})
	})
}

// held is what the process holds, in bytes.
func held() int64 {
	runtime.GC()
	runtime.GC() // what cleanups and pools held on to
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestALongRequestHoldsNothing has a request go on for long, as streams do.
func TestALongRequestHoldsNothing(t *testing.T) {
	eachServer(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		lock := NewLockingStore(store)
		lock.TTL = time.Minute
		large := strings.Repeat("x", 100_000)
		for name, c := range map[string]struct {
			times int
			do    func(*http.Request)
		}{
			"Updates of a large session": {100, func(r *http.Request) {
				must(t, lock.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
					s.Values["n"], s.Values["large"] = count(s)+1, large
					return nil
				}))
			}},
			"New of a large session": {300, func(r *http.Request) { _, err := store.New(r, "s"); must(t, err) }},
			"New of a small session": {3000, func(r *http.Request) { _, err := store.New(r, "small"); must(t, err) }},
			"New without a cookie":   {3000, func(r *http.Request) { _, err := store.New(r, "none"); must(t, err) }},
			"New with the lock":      {3000, func(r *http.Request) { _, err := lock.New(r, "small"); must(t, err) }},
			"Saves of new sessions": {300, func(r *http.Request) {
				s, err := store.New(r, "s")
				must(t, err)
				must(t, store.Save(r, httptest.NewRecorder(), s))
			}},
		} {
			t.Run(name, func(t *testing.T) {
				must(t, srv.admin.FlushDB(t.Context()).Err())
				b := login(t, store)
				r, end := b.lived(t)
				defer end()
				small, err := store.New(r, "small")
				must(t, err)
				w := httptest.NewRecorder()
				must(t, small.Save(r, w))
				r.AddCookie(w.Result().Cookies()[0])
				s, err := lock.Get(r, "s")
				must(t, err)
				s.Values["large"] = large
				must(t, lock.Renew(r, httptest.NewRecorder(), s))
				r.Header.Set("Cookie", r.Header.Get("Cookie")+"; s="+mustEncode(t, store, s.ID))
				c.do(r) // buffers and connections
				rec.take()
				before := held()
				for range c.times {
					c.do(r)
				}
				rec.take()
				// Cleanups run beside the collector, which does not wait for them.
				eventually(t, fmt.Sprintf("after %d times, the process holds less than 1 MiB more", c.times), func() bool {
					return held() <= before+1<<20
				})
				runtime.KeepAlive(r)
			})
		}
	})
}

func mustEncode(t *testing.T, store *Store, id string) string {
	t.Helper()
	value, err := securecookie.EncodeMulti("s", id, store.Codecs...)
	must(t, err)
	return value
}

// TestTheRequestIsLeftAsItWas shows that Get and New put nothing into it but gorilla's
// registry.
func TestTheRequestIsLeftAsItWas(t *testing.T) {
	eachServer(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		for _, over := range []sessions.Store{store, NewLockingStore(store)} {
			b := login(t, store)
			r, end := b.lived(t)
			ctx := r.Context()
			_, err := over.New(r, "s")
			must(t, err)
			if r.Context() != ctx {
				t.Errorf("%T: New changed the request's context", over)
			}
			end()
			r, end = b.lived(t)
			sessions.GetRegistry(r)
			ctx = r.Context()
			s, err := over.Get(r, "s")
			must(t, err)
			must(t, s.Save(r, httptest.NewRecorder()))
			if r.Context() != ctx {
				t.Errorf("%T: Get changed the request's context", over)
			}
			end()
		}
	})
}

// TestALargeSessionPassesThroughTheLock costs one command more for each call, and is what it
// was on the way out.
func TestALargeSessionPassesThroughTheLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		store.IdleTimeout = time.Hour
		b := login(t, store)
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { // so that Redis knows the scripts
			must(t, s.Save(r, w))
		})
		for i, size := range []int{100, 32 << 10, 64 << 10, 100} {
			r, end := b.lived(t)
			w := httptest.NewRecorder()
			s, err := store.Get(r, "s")
			must(t, err)
			s.Values["large"] = strings.Repeat("x", size)
			rec.take()
			must(t, s.Save(r, w))
			end()
			wantSave := "evalsha"
			if size > 16<<10 {
				wantSave = "set evalsha"
			}
			equal(t, fmt.Sprintf("%d: commands of Save", i), rec.take(), wantSave)
			r, end = b.lived(t)
			read, err := store.Get(r, "s")
			must(t, err)
			wantRead := "evalsha"
			if size > 16<<10 {
				wantRead = "evalsha getex"
			}
			equal(t, fmt.Sprintf("%d: commands of Get", i), rec.take(), wantRead)
			end()
			equal(t, fmt.Sprintf("%d: what was read", i), len(read.Values["large"].(string)), size)
			srv.free(t)
		}
		equal(t, "keys but for locks", len(srv.keys(t)), 1)
	})
}

// TestNothingIsLeftBehind runs requests of every kind, and looks for goroutines,
// lines and memory that stay.
func TestNothingIsLeftBehind(t *testing.T) {
	srv := startRedis(t)
	store, rec := srv.locking(t)
	store.TTL = 20 * time.Millisecond // for where it is unlocking that fails
	plain := store.Store
	b := login(t, store)
	idle := func() {
		t.Helper()
		eventually(t, "nobody stands in line", func() bool { return store.waiting() == -1 })
	}
	kinds := []func(*http.Request){
		func(r *http.Request) { store.Get(r, "s") },
		func(r *http.Request) { increment(store, r, false) },
		func(r *http.Request) { increment(store, r, true) },
		func(r *http.Request) { store.New(r, "s"); store.Get(r, "s"); sessions.Save(r, httptest.NewRecorder()) },
		func(r *http.Request) {
			store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { return io.EOF })
		},
		func(r *http.Request) {
			s, _ := store.New(browser{}.request(t), "s")
			store.Save(r, httptest.NewRecorder(), s)
			store.Renew(r, httptest.NewRecorder(), s)
			s.Options.MaxAge = -1
			store.Save(r, httptest.NewRecorder(), s)
		},
		func(r *http.Request) { s, _ := plain.New(r, "s"); store.Save(r, httptest.NewRecorder(), s) },
		func(r *http.Request) {
			idle() // or what fails is the unlocking of the request before
			rec.failOnce("evalsha", io.EOF)
			store.Get(r, "s")
		},
	}
	round := func(n int) {
		var wg sync.WaitGroup
		for i := range n {
			r, end := b.lived(t)
			kinds[i%len(kinds)](r)
			end()
			if i%100 == 0 {
				for range 5 { // some that wait, and some that give up
					wg.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
						defer cancel()
						store.Get(b.request(t).WithContext(ctx), "s")
					})
				}
			}
		}
		wg.Wait()
		idle()
	}
	heap := func() (uint64, int) {
		srv.free(t)
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		rec.take()
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	round(1000)
	bytes, goroutines := heap()
	round(10_000)
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	after, _ := heap()
	if after > bytes+1<<20 {
		t.Errorf("the heap went from %d to %d bytes", bytes, after)
	}
	srv.forward(t, 2*time.Minute) // a version lives for a minute, TTL and Wait
	beside, err := srv.admin.Keys(t.Context(), "{*").Result()
	must(t, err)
	equal(t, "keys beside the sessions", len(beside), 0)
}

// TestNoLockIsLeftByARequestThatFails looks at every way out of a request that may
// have the lock: it must be free before TTL.
func TestNoLockIsLeftByARequestThatFails(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, c := range map[string]struct {
			fault  func(cmd redis.Cmder, b browser, hangUp func()) // after a script has been run
			handle func(store *LockingStore, r *http.Request)
		}{
			"the reply to the load is lost": {
				func(cmd redis.Cmder, _ browser, _ func()) { cmd.SetErr(io.EOF) },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s") },
			},
			"the client hangs up during the load": {
				func(cmd redis.Cmder, _ browser, hangUp func()) { hangUp(); cmd.SetErr(context.Canceled) },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s") },
			},
			"the client hangs up during the second load": {
				func(_ redis.Cmder, _ browser, hangUp func()) { hangUp() },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s"); _, _ = store.New(r, "s") },
			},
			"a redis error after a lost reply": {
				func(cmd redis.Cmder, _ browser, _ func()) { cmd.SetErr(redisError("OOM command not allowed")) },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s") },
			},
			"logout between the load and its repeat": {
				func(cmd redis.Cmder, b browser, _ func()) {
					must(t, srv.admin.Del(t.Context(), "session_"+idOf(t, New(srv.admin, hashKey), b)).Err())
				},
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s"); _, _ = store.New(r, "s") },
			},
			"the save fails": {
				func(cmd redis.Cmder, _ browser, _ func()) {},
				func(store *LockingStore, r *http.Request) {
					s, _ := store.Get(r, "s")
					store.client.AddHook(&recorder{fail: failFirst("evalsha", "eval", func() {})})
					s.Values["n"] = 1
					_ = s.Save(r, httptest.NewRecorder())
					_, _ = store.New(r, "s")
				},
			},
			"Redis refuses the save": {
				func(cmd redis.Cmder, _ browser, _ func()) {},
				func(store *LockingStore, r *http.Request) {
					s, _ := store.Get(r, "s")
					store.client.AddHook(&recorder{fail: func(n string) error {
						if strings.HasPrefix(n, "eval") && count(s) == 1 {
							s.Values["n"] = 2
							return redisError("OOM command not allowed")
						}
						return nil
					}})
					s.Values["n"] = 1
					_ = s.Save(r, httptest.NewRecorder())
				},
			},
			"Update of what cannot be decoded": {
				func(cmd redis.Cmder, b browser, _ func()) {},
				func(store *LockingStore, r *http.Request) {
					store.Serializer = JSONSerializer{}
					wantErr(t, store.Update(r, httptest.NewRecorder(), "s", nil), ErrNotLoaded)
				},
			},
		} {
			client := srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 })
			store := NewLockingStore(New(client, hashKey))
			b := login(t, store)
			r, end := b.lived(t)
			first := true
			client.AddHook(hook{after: func(cmd redis.Cmder) {
				if first && strings.HasPrefix(cmd.Name(), "eval") {
					first = false
					c.fault(cmd, b, end)
				}
			}})
			c.handle(store, r)
			if strings.HasPrefix(name, "Update") {
				srv.free(t)
			}
			end()
			srv.free(t)
			eventually(t, name+": nobody stands in line", func() bool { return store.waiting() == -1 })
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestWhatWasNotedDoesNotOutliveItsSession has requests go on after their session has
// ended, or after an Update that failed, as if it had never been.
func TestWhatWasNotedDoesNotOutliveItsSession(t *testing.T) {
	failure := errors.New("fn failed")
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.CookieStoreUntil = time.Now().Add(time.Hour)
		ended := func(s *sessions.Session) error {
			return srv.admin.Del(t.Context(), store.key(s.ID)).Err()
		}
		renewed := func(r *http.Request, w http.ResponseWriter) *sessions.Session {
			s, err := store.Get(r, "s")
			must(t, err)
			must(t, store.Renew(r, w, s))
			must(t, store.Update(r, w, "s", func(*sessions.Session) error { return nil }))
			return s
		}
		visitor := func() browser { return browser{} }
		user := func() browser { return login(t, store) }
		mover := func() browser { return login(t, sessions.NewCookieStore(hashKey)) }
		for name, c := range map[string]struct {
			b    func() browser
			do   func(*http.Request, http.ResponseWriter) error
			err  error
			keys int
		}{
			"Get, after a middleware's renewed one has ended": {user, func(r *http.Request, w http.ResponseWriter) error {
				s, err := store.Store.Get(r, "s")
				must(t, err)
				must(t, store.Store.Renew(r, w, s))
				must(t, ended(s))
				s, err = store.Get(r, "s")
				must(t, err)
				return s.Save(r, w)
			}, nil, 1},
			"Save, after an Update whose fn saved and failed": {visitor, func(r *http.Request, w http.ResponseWriter) error {
				wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
					must(t, s.Save(r, w))
					must(t, ended(s))
					return failure
				}), failure)
				s, err := store.Get(r, "s")
				must(t, err)
				return s.Save(r, w)
			}, nil, 1},
			"a new ID in Update, after Save": {visitor, func(r *http.Request, w http.ResponseWriter) error {
				s, err := store.Get(r, "s")
				must(t, err)
				must(t, s.Save(r, w))
				return store.Update(r, w, "s", func(s *sessions.Session) error { s.ID = ""; return nil })
			}, nil, 1},
			"a new ID, after Renew and Update": {user, func(r *http.Request, w http.ResponseWriter) error {
				s := renewed(r, w)
				s.ID = ""
				return s.Save(r, w)
			}, nil, 1},
			"logout without an ID, after Renew and Update": {user, func(r *http.Request, w http.ResponseWriter) error {
				s := renewed(r, w)
				s.ID, s.Options.MaxAge = "", -1
				return s.Save(r, w)
			}, nil, 0},
			"Update, after CookieStore's session was logged out": {mover, func(r *http.Request, w http.ResponseWriter) error {
				s, err := store.Get(r, "s")
				must(t, err)
				s.Options.MaxAge = -1
				must(t, s.Save(r, w))
				return store.Update(r, w, "s", func(*sessions.Session) error {
					t.Error("fn was called")
					return nil
				})
			}, ErrGone, 0},
			"Save, after an Update that logged it out and failed": {mover, func(r *http.Request, w http.ResponseWriter) error {
				wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
					s.Options.MaxAge = -1
					must(t, s.Save(r, w))
					return failure
				}), failure)
				s, err := store.Get(r, "s")
				must(t, err)
				return s.Save(r, w)
			}, ErrGone, 0},
		} {
			t.Run(name, func(t *testing.T) {
				must(t, srv.admin.FlushDB(t.Context()).Err())
				r, end := c.b().lived(t)
				wantErr(t, c.do(r, httptest.NewRecorder()), c.err)
				end()
				srv.free(t)
				equal(t, "keys", len(srv.keys(t)), c.keys)
			})
		}
	})
}
