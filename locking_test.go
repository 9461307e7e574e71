package redistore

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/lock"
)

var _ sessions.Store = (*LockingStore)(nil)

// locking returns a LockingStore and a record of the commands it sends.
func (s *server) locking(t *testing.T) (*LockingStore, *recorder) {
	store, rec := s.store(t)
	return NewLockingStore(store), rec
}

func count(s *sessions.Session) int {
	n, _ := s.Values["n"].(int)
	return n
}

func TestDropInWithTheLock(t *testing.T) {
	for name, behaviour := range dropIn {
		t.Run(name, func(t *testing.T) {
			onServers(t, func(t *testing.T, srv *server) {
				if srv.mini != nil {
					srv.mini.ClockTTL(true)
				}
				store := NewLockingStore(New(srv.client(t), hashKey, blockKey))
				store.TTL = 20 * time.Millisecond // the table's requests have no end that could unlock
				behaviour(t, store, store.MaxAge)
			})
		})
	}
}

// TestNoLostUpdate increments one session from many requests, over several stores
// with clients of their own.
func TestNoLostUpdate(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		first, _ := srv.locking(t)
		b := login(t, first)
		var saved atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			store := NewLockingStore(New(srv.client(t), hashKey))
			for i := range 8 {
				wg.Go(func() {
					for range 20 {
						r, end := b.lived(t)
						err := increment(store, r, i%2 == 0)
						end()
						if err != nil {
							t.Error(err)
							continue
						}
						saved.Add(1)
					}
				})
			}
		}
		wg.Wait()
		s, _, _ := b.get(t, first.Store)
		equal(t, "n", count(s), 4*8*20)
		equal(t, "saved", saved.Load(), 4*8*20)
	})
}

// increment adds one to n, by a whole request or by Update.
func increment(store *LockingStore, r *http.Request, update bool) error {
	w := httptest.NewRecorder()
	add := func(s *sessions.Session) error {
		if s.Values["user"] != "ann" {
			return fmt.Errorf("loaded %+v", s)
		}
		s.Values["n"] = count(s) + 1
		return nil
	}
	if update {
		return store.Update(r, w, "s", add)
	}
	s, err := store.Get(r, "s")
	if err != nil {
		return err
	}
	if err := add(s); err != nil {
		return err
	}
	return s.Save(r, w)
}

func TestLockRoundTrips(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		equal(t, "a new session", rec.take(), "set")

		for _, eval := range []string{"eval", "evalsha"} { // the first time Redis gets the whole script
			r, end := b.lived(t)
			s, err := store.Get(r, "s")
			must(t, err)
			equal(t, "Get", rec.take(), eval)
			must(t, s.Save(r, httptest.NewRecorder()))
			equal(t, "Save", rec.take(), eval)
			end()
			srv.free(t)
			equal(t, "the end of the request", rec.take(), "")
		}
		for _, eval := range []string{"eval", "evalsha"} {
			r, end := b.lived(t)
			_, err := store.Get(r, "s")
			must(t, err)
			end()
			srv.free(t)
			equal(t, "a request that does not save", rec.take(), "evalsha "+eval)
		}
		r, end := b.lived(t)
		must(t, store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { return nil }))
		end()
		equal(t, "Update", rec.take(), "evalsha evalsha")
		equal(t, "user without the lock", b.user(t, store.Store), "ann")
		equal(t, "reading without the lock", rec.take(), "get")
	})
}

func TestTheLeaseIsHarmless(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		other, _ := srv.locking(t)
		for name, work := range map[string]func(*LockingStore, *http.Request, *sessions.Session) error{
			"Save": func(l *LockingStore, r *http.Request, s *sessions.Session) error {
				return l.Save(r, httptest.NewRecorder(), s)
			},
			"Renew": func(l *LockingStore, r *http.Request, s *sessions.Session) error {
				return l.Renew(r, httptest.NewRecorder(), s)
			},
		} {
			// The holder pauses for longer than TTL, and another saves: the very same bytes
			// that the holder wants to save.
			b := login(t, store)
			s, r := load(t, store, b)
			srv.forward(t, store.TTL+time.Second)
			o, or := load(t, other, b)
			s.Values, o.Values = map[any]any{"n": 1}, map[any]any{"n": 1}
			must(t, o.Save(or, httptest.NewRecorder()))
			wantErr(t, work(store, r, s), ErrConflict)
			now, _, _ := b.get(t, store.Store)
			equal(t, name+": Values", fmt.Sprint(now.Values), "map[n:1]")

			// The same, but the other has it locked when the holder comes back.
			s, r = load(t, store, b)
			srv.forward(t, store.TTL+time.Second)
			o, or = load(t, other, b)
			saved := make(chan error)
			go func() { saved <- work(store, r, s) }()
			o.Values["n"] = 2
			must(t, o.Save(or, httptest.NewRecorder()))
			wantErr(t, <-saved, ErrConflict)

			// The lease ran out, and nobody changed the session.
			s, r = load(t, store, b)
			srv.forward(t, store.TTL+time.Second)
			s.Values["n"] = 3
			must(t, work(store, r, s))
			srv.free(t)
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestTheEndOfTheRequestUnlocks runs in a real http.Server.
func TestTheEndOfTheRequestUnlocks(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		var handler http.HandlerFunc
		web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler(w, r) }))
		web.Config.ErrorLog = nil
		web.Start()
		defer web.Close()
		get := func(ctx context.Context) {
			r, _ := http.NewRequestWithContext(ctx, "GET", web.URL, nil)
			r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
			if res, err := http.DefaultClient.Do(r); err == nil {
				res.Body.Close()
			}
		}
		locked := func(r *http.Request) {
			_, err := store.Get(r, "s")
			must(t, err)
			equal(t, "keys", len(srv.keys(t)), 2)
		}

		handler = func(w http.ResponseWriter, r *http.Request) { locked(r) }
		get(t.Context())
		srv.free(t)
		handler = func(w http.ResponseWriter, r *http.Request) { locked(r); panic(http.ErrAbortHandler) }
		get(t.Context())
		srv.free(t)
		// The client hangs up, and the handler goes on: the session is free, and the
		// handler can still save.
		ctx, hangUp := context.WithCancel(t.Context())
		saved := make(chan error, 1)
		handler = func(w http.ResponseWriter, r *http.Request) {
			locked(r)
			hangUp()
			<-r.Context().Done()
			srv.free(t)
			s, _ := store.Get(r, "s")
			s.Values["n"] = 1
			saved <- s.Save(r, w)
		}
		get(ctx)
		must(t, <-saved)
		s, _, _ := b.get(t, store.Store)
		equal(t, "n", count(s), 1)
	})
}

func TestOnlyOurOwnLockIsReleased(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		key, _ := srv.only(t)
		for _, save := range []bool{false, true} {
			r, end := b.lived(t)
			s, err := store.Get(r, "s")
			must(t, err)
			must(t, srv.admin.Set(t.Context(), lock.Key(key), "another's", time.Minute).Err())
			if save {
				must(t, srv.admin.Set(t.Context(), key, "another's", time.Minute).Err())
				wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
			}
			end()
			eventually(t, "the request has ended", func() bool { return store.waiting() == -1 })
			equal(t, "lock", srv.admin.Get(t.Context(), lock.Key(key)).Val(), "another's")
			must(t, srv.admin.Del(t.Context(), lock.Key(key)).Err())
		}
	})
}

func TestWhatWasLoadedWithoutTheLockCannotBeSavedWithIt(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store.Store, b)
		_, before := srv.only(t)
		s.Values["n"] = 1
		wantErr(t, store.Save(r, httptest.NewRecorder(), s), ErrConflict)
		wantErr(t, store.Renew(r, httptest.NewRecorder(), s), ErrConflict)
		s.ID = ""
		wantErr(t, store.Save(r, httptest.NewRecorder(), s), ErrConflict)
		_, after := srv.only(t)
		equal(t, "what is stored", after, before)
	})
}

func TestLogoutWins(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		for name, by := range map[string]sessions.Store{"the wrapper": store, "the plain store": store.Store} {
			for _, other := range []string{"save", "renew", "nothing"} {
				b := login(t, store)
				r, end := b.lived(t)
				s, err := store.Get(r, "s")
				must(t, err)

				out := sessions.NewSession(by, "s") // as a logout finds it that does not wait
				out.ID, out.Options = s.ID, &sessions.Options{MaxAge: -1}
				must(t, out.Save(b.request(t), httptest.NewRecorder()))
				if by == store {
					equal(t, "keys after logout by "+name, len(srv.keys(t)), 0)
				}
				nobody := NewLockingStore(store.Store) // in another process: it waits for nothing
				nobody.Wait = 0
				again, _ := load(t, nobody, b)
				equal(t, "IsNew", again.IsNew, true)
				switch other {
				case "save":
					wantErr(t, s.Save(r, httptest.NewRecorder()), ErrGone)
				case "renew":
					wantErr(t, store.Renew(r, httptest.NewRecorder(), s), ErrGone)
				}
				end()
				srv.free(t)
				equal(t, "keys after "+other, len(srv.keys(t)), 0)
			}
		}
	})
}

// TestLockKeys shows that a session and its lock are in one Cluster slot, as Redis
// itself computes it, or that the prefix is refused.
func TestLockKeys(t *testing.T) {
	t.Parallel()
	srv := startRedis(t, "--cluster-enabled", "yes")
	slot := func(key string) int64 {
		n, err := srv.admin.ClusterKeySlot(t.Context(), key).Result()
		must(t, err)
		return n
	}
	for prefix, ok := range map[string]bool{
		"session_": true, "": true, "a:b:": true, "{app}:": true, "x{app}": true, "x{app}y{z}": true, "{a{b}": true,
		"{": true, "a{": true, "a{b{": true,
		"}": false, "a}": false, "{}": false, "a{}b": false, "}{": false, "{}{a}": false, "a}b{c}": true, "}{a}": true,
	} {
		store := NewLockingStore(New(srv.client(t), hashKey))
		store.KeyPrefix = prefix
		err := store.check()
		if (err == nil) != ok {
			t.Errorf("prefix %q: %v", prefix, err)
		}
		if err == nil {
			key := store.key(store.newID())
			equal(t, "slot of the lock of "+key, slot(lock.Key(key)), slot(key))
			if lock.Key(key) == key {
				t.Errorf("%q is its own lock", key)
			}
		}
	}
}

func TestLockConfiguration(t *testing.T) {
	client := startMini(t).client(t)
	for want, change := range map[string]func(*LockingStore){
		"TTL is 0s":          func(l *LockingStore) { l.TTL = 0 },
		"TTL is -1s":         func(l *LockingStore) { l.TTL = -time.Second },
		"Wait is -1s":        func(l *LockingStore) { l.Wait = -time.Second },
		"MaxWaiters is -1":   func(l *LockingStore) { l.MaxWaiters = -1 },
		"no Store":           func(l *LockingStore) { l.Store = nil },
		`KeyPrefix "a}"`:     func(l *LockingStore) { l.KeyPrefix = "a}" },
		"key 1 (authenticat": func(l *LockingStore) { l.Store = New(client, nil) },
	} {
		store := NewLockingStore(New(client, hashKey))
		change(store)
		r, w := browser{"s": "x"}.request(t), httptest.NewRecorder()
		s, err := store.Get(r, "s")
		wantText(t, err, want)
		wantText(t, store.Save(r, w, s), want)
		wantText(t, store.Renew(r, w, s), want)
		wantText(t, store.Update(r, w, "s", nil), want)
		wantText(t, store.Ping(t.Context()), want)
	}
	store := NewLockingStore(New(client, hashKey))
	store.TTL, store.Wait, store.MaxWaiters = time.Nanosecond, 0, 0
	must(t, store.Ping(t.Context()))
	b := login(t, store)
	s, r := load(t, store, b)
	must(t, s.Save(r, httptest.NewRecorder()))
}

func TestTheLockKeepsTheTimeouts(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.IdleTimeout = 10 * time.Minute
		b := login(t, store)
		for range 3 {
			srv.forward(t, 6*time.Minute)
			s, r := load(t, store, b)
			equal(t, "user", s.Values["user"], any("ann"))
			equal(t, "TTL", srv.ttl(t, "session_"+s.ID), 10*time.Minute)
			if s.Values["n"] == nil {
				s.Values["n"] = 1
				must(t, s.Save(r, httptest.NewRecorder()))
			}
			equal(t, "TTL", srv.ttl(t, "session_"+s.ID), 10*time.Minute)
			must(t, srv.admin.Del(t.Context(), lock.Key("session_"+s.ID)).Err())
			store = NewLockingStore(store.Store)
		}
		srv.forward(t, 11*time.Minute)
		s, _ := load(t, store, b)
		equal(t, "IsNew", s.IsNew, true)
	})
}

// hook is a hook that may do something before a command is sent, and after.
type hook struct{ before, after func(redis.Cmder) }

func (hook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.before != nil {
			h.before(cmd)
		}
		if cmd.Err() == nil {
			cmd.SetErr(next(ctx, cmd))
		}
		if h.after != nil {
			h.after(cmd)
		}
		return cmd.Err()
	}
}

func (hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// TestASaveThatChangesNothingSucceeds though its reply was lost and it held no lock.
func TestASaveThatChangesNothingSucceeds(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		lost := &lossy{}
		store := NewLockingStore(New(srv.client(t, lost.options), hashKey))
		b := browser{}
		s, r := load(t, store, b)
		s.Values["n"] = 1
		must(t, s.Save(r, httptest.NewRecorder()))
		lost.replies.Store(1)
		must(t, s.Save(r, httptest.NewRecorder()))
		s.Values["n"] = 2
		must(t, s.Save(r, httptest.NewRecorder()))
	})
}

func TestGetAfterReadingWithoutTheLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		w := httptest.NewRecorder()
		read, err := store.Store.Get(r, "s") // a middleware
		must(t, err)
		r2, end2 := b.lived(t)
		must(t, increment(store, r2, false)) // another request
		end2()
		rec.take()
		s, err := store.Get(r, "s")
		must(t, err)
		equal(t, "commands", rec.take(), "evalsha")
		if s != read || count(s) != 1 {
			t.Errorf("Get returned %+v, the session that was read is %+v", s, read)
		}
		s.Values["n"] = 2
		must(t, s.Save(r, w))
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 2)
		srv.free(t)

		// Where the lock cannot be had, what was read stays what it is, and cannot be saved.
		r3, end3 := b.lived(t)
		defer end3()
		read, err = store.Store.Get(r3, "s")
		must(t, err)
		load(t, store, b)
		store.Wait = 0
		s, err = store.Get(r3, "s")
		wantErr(t, err, ErrLocked)
		equal(t, "Values", len(s.Values), 0)
		wantErr(t, s.Save(r3, w), ErrNotLoaded)
		wantErr(t, store.Save(r3, w, read), ErrConflict)
	})
}

// TestARefusedRenewEndsNothing has two cookies with a living session each.
func TestARefusedRenewEndsNothing(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		a, b := login(t, store), login(t, store)
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.Header.Set("Cookie", "s="+a["s"]+"; s="+b["s"])
		s, err := store.Get(r, "s")
		must(t, err)
		srv.forward(t, store.TTL+time.Second)
		r2, end := a.lived(t)
		must(t, s.Save(r, httptest.NewRecorder())) // gives the line of this process free
		must(t, increment(store, r2, false))
		end()
		s.ID = ""
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
		equal(t, "users", a.user(t, store.Store)+b.user(t, store.Store), "annann")
		equal(t, "keys", len(srv.keys(t)), 2)

		r = httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.Header.Set("Cookie", "s="+a["s"]+"; s="+b["s"])
		s, err = store.Get(r, "s")
		must(t, err)
		s.ID = ""
		must(t, s.Save(r, httptest.NewRecorder()))
		equal(t, "users of the old cookies", a.user(t, store.Store)+b.user(t, store.Store), "")
	})
}

// TestTheLockOnEveryClient counts on clients that run commands their own way.
func TestTheLockOnEveryClient(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	async, err := srv.client(t).AsyncAutoPipeline()
	must(t, err)
	clients := srv.clients(t)
	clients["AsyncAutoPipeliner"] = async
	for name, client := range clients {
		store := NewLockingStore(New(client, hashKey))
		b := loginAs(t, store, "ann")
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for range 10 {
					r, end := b.lived(t)
					if err := increment(store, r, i%2 == 0); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					end()
				}
			})
		}
		wg.Wait()
		s, r := load(t, store, b)
		equal(t, name+": n", count(s), 40)
		w := httptest.NewRecorder()
		must(t, store.Renew(r, w, s))
		b.keep(w)
		equal(t, name+": user", b.user(t, store.Store), "ann")
		n, err := store.Revoke(t.Context(), "ann")
		must(t, err)
		equal(t, name+": ended", n, 1)
	}
	srv.free(t)
}

// TestGetAfterASessionHasEnded loads with the lock what a middleware has loaded without
// it, and what has ended in between.
func TestGetAfterASessionHasEnded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		plain, _ := srv.store(t)
		store := NewLockingStore(plain)
		b := login(t, plain)
		r, end := b.lived(t)
		defer end()
		_, err := plain.Get(r, "s")
		must(t, err)
		b.logout(t, plain)
		s, err := store.Get(r, "s")
		must(t, err)
		equal(t, "IsNew, ID, values", fmt.Sprintf("%t %q %d", s.IsNew, s.ID, len(s.Values)), `true "" 0`)
	})
}

// TestTouchEndsASession does so with MaxAge < 0, and leaves no lock.
func TestTouchEndsASession(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		s, r := load(t, store, login(t, store))
		s.Options.MaxAge = -1
		must(t, store.Touch(r, httptest.NewRecorder(), s))
		equal(t, "keys", len(srv.keys(t)), 0)
	})
}

// TestAnIDThatIsClearedTwice saves a new session under one ID and then, in the same
// request, under the next.
func TestAnIDThatIsClearedTwice(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := browser{}
		s, r := load(t, store, b)
		s.Values["user"] = "ann"
		w := httptest.NewRecorder()
		for range 3 {
			s.ID = ""
			must(t, s.Save(r, w))
			equal(t, "keys", len(srv.keys(t)), 1)
		}
		b.keep(w)
		equal(t, "user", b.user(t, store.Store), "ann")
		s.ID, s.Options.MaxAge = "", -1
		must(t, s.Save(r, w))
		equal(t, "keys", len(srv.keys(t)), 0)
	})
}
