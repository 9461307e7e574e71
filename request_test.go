package redistore

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// TestARequestDoesNotWaitForItself loads a session through copies of one request, made
// before anything was loaded, one after the other and at once.
func TestARequestDoesNotWaitForItself(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.Wait = 0 // it would be refused instead
		free := func() { eventually(t, "it is free", func() bool { return store.waiting() == -1 }) }
		b := login(t, store)
		type key struct{}
		for name, clone := range map[string]func(*http.Request) *http.Request{
			"WithContext":               func(r *http.Request) *http.Request { return r.WithContext(r.Context()) },
			"WithContext, with a value": func(r *http.Request) *http.Request { return r.WithContext(context.WithValue(r.Context(), key{}, 1)) },
			"Clone":                     func(r *http.Request) *http.Request { return r.Clone(r.Context()) },
			"Clone, with a value":       func(r *http.Request) *http.Request { return r.Clone(context.WithValue(r.Context(), key{}, 1)) },
			"a copy of the struct":      func(r *http.Request) *http.Request { c := *r; return &c },
		} {
			r, end := b.lived(t)
			for _, copied := range []*http.Request{clone(r), clone(r), r} {
				s, err := store.Get(copied, "s")
				if err != nil || s.Values["user"] != "ann" {
					t.Errorf("%s: %v, %v", name, s.Values, err)
				}
			}
			end()
			free()

			r, end = b.lived(t)
			var all sync.WaitGroup
			for range 4 {
				copied := clone(r)
				all.Go(func() {
					if _, err := store.Get(copied, "s"); err != nil {
						t.Errorf("%s, at once: %v", name, err)
					}
				})
			}
			all.Wait()
			end()
			free()
		}

		// Two requests are not one, though their contexts and headers are equal.
		r, other := b.request(t), b.request(t)
		_, err := store.Get(r, "s")
		must(t, err)
		_, err = store.Get(other, "s")
		wantErr(t, err, ErrLocked)
	})
}

// TestEverySaveOfARequestCounts has a middleware load and save, and then the handler, in
// many requests at once.
func TestEverySaveOfARequestCounts(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		const requests = 40
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range requests / 4 {
					r, end := b.lived(t)
					must(t, increment(store, r, false))
					must(t, increment(store, r, false))
					end()
				}
			})
		}
		all.Wait()
		s, _, _ := b.get(t, store.Store)
		equal(t, "n", count(s), 2*requests)
	})
}

// TestGetAfterSaveKeepsWhatWasNotSaved, unless another request has saved.
func TestGetAfterSaveKeepsWhatWasNotSaved(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store, b)
		must(t, s.Save(r, httptest.NewRecorder()))
		s.Values["draft"] = "mine"
		again, err := store.Get(r, "s")
		must(t, err)
		equal(t, "the same session", again == s, true)
		equal(t, "draft", again.Values["draft"], any("mine"))
		must(t, s.Save(r, httptest.NewRecorder()))

		other, end := b.lived(t)
		must(t, increment(store, other, false))
		end()
		_, err = store.Get(r, "s")
		must(t, err)
		equal(t, "n", count(s), 1)
		must(t, s.Save(r, httptest.NewRecorder()))
	})
}

// TestACopyThatIsStaleIsRefused loads one session through two copies of a request, and
// saves both.
func TestACopyThatIsStaleIsRefused(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		inner := r.WithContext(r.Context())
		outer, err := store.Get(r, "s")
		must(t, err)
		must(t, increment(store, inner, false))
		outer.Values["n"] = 666
		wantErr(t, outer.Save(r, httptest.NewRecorder()), ErrConflict)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 1)
	})
}

// TestReadingDoesNotUnbindTheLock has a helper read the session without the lock, on a
// request that holds it.
func TestReadingDoesNotUnbindTheLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store, b)
		_, err := store.Store.Get(r, "s")
		must(t, err)
		srv.forward(t, store.TTL+time.Second)
		other := NewLockingStore(store.Store)
		or, end := b.lived(t)
		must(t, increment(other, or, false))
		end()
		s.Values["n"] = 666
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 1)
	})
}

// TestUpdatesOfOneRequestFollowOneAnother is a stream whose goroutines all change the
// session, on a real server. The race detector watches.
func TestUpdatesOfOneRequestFollowOneAnother(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		for name, b := range map[string]browser{"logged in": login(t, store), "first visit": {}} {
			const goroutines, each = 4, 10
			var cookie string
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var all sync.WaitGroup
				for range goroutines {
					all.Go(func() {
						for range each {
							must(t, store.Update(r, w, "s", func(s *sessions.Session) error {
								s.Values["n"] = count(s) + 1
								return nil
							}))
						}
					})
				}
				all.Wait()
				cookie = w.Header().Get("Set-Cookie")
			}))
			r, _ := http.NewRequest("GET", web.URL, nil)
			for name, value := range b {
				r.AddCookie(&http.Cookie{Name: name, Value: value})
			}
			res, err := http.DefaultClient.Do(r)
			must(t, err)
			res.Body.Close()
			web.Close()
			set, err := http.ParseSetCookie(cookie)
			must(t, err)
			s, _, _ := browser{"s": set.Value}.get(t, store.Store)
			equal(t, name+": n", count(s), goroutines*each)
		}
	})
}

// TestUpdateOfAHijackedRequest goes on after the handler has returned, if it is told to.
func TestUpdateOfAHijackedRequest(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		end()
		add := func(s *sessions.Session) error { s.Values["n"] = count(s) + 1; return nil }
		err := store.Update(r, httptest.NewRecorder(), "s", add)
		wantErr(t, err, ErrNotLoaded)
		wantErr(t, err, context.Canceled)
		must(t, store.Update(r.WithContext(context.WithoutCancel(r.Context())), httptest.NewRecorder(), "s", add))
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 1)
	})
}

// TestAPanicInUpdateUnlocks, whoever panics.
func TestAPanicInUpdateUnlocks(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		panics := func(do func()) {
			t.Helper()
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			do()
		}
		panics(func() {
			_ = store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { panic("fn") })
		})
		srv.free(t)
		serializer := &panicking{Serializer: store.Serializer}
		store.Serializer = serializer
		for range 2 { // while it loads, and while it saves
			panics(func() { _ = store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { return nil }) })
			srv.free(t)
			serializer.loads.Store(1)
		}
		equal(t, "held", store.Stats().Held, 0)
	})
}

// panicking is a Serializer that panics, but for the first loads.
type panicking struct {
	Serializer
	loads atomic.Int32
}

func (p *panicking) Serialize(*sessions.Session) ([]byte, error) { panic("serialize") }

func (p *panicking) Deserialize(data []byte, s *sessions.Session) error {
	if p.loads.Add(-1) < 0 {
		panic("deserialize")
	}
	return p.Serializer.Deserialize(data, s)
}

// TestASaveHasOneDeadline has Redis be slow where a Save takes several commands.
func TestASaveHasOneDeadline(t *testing.T) {
	srv := startMini(t)
	ring := srv.ring(t)
	store := NewLockingStore(New(ring, hashKey))
	store.Wait = 0
	b := loginAs(t, store, "ann")
	s, r := load(t, store, b)
	var deadlines []time.Time
	ring.AddHook(deadlineHook(func(ctx context.Context) {
		deadline, _ := ctx.Deadline()
		deadlines = append(deadlines, deadline)
	}))
	before := time.Now()
	must(t, s.Save(r, httptest.NewRecorder()))
	if len(deadlines) < 2 {
		t.Fatalf("%d commands, which shows nothing", len(deadlines))
	}
	for _, d := range deadlines {
		if d.IsZero() || d.After(before.Add(timeout+time.Second)) {
			t.Errorf("a command of the Save may take until %v after it began", d.Sub(before))
		}
	}
}

type deadlineHook func(context.Context)

func (deadlineHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h deadlineHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h(ctx)
		return next(ctx, cmd)
	}
}

func (deadlineHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// TestSavesOfRequestsThatAreGoneWaitInLine has many clients hang up, whose handlers save
// while another request holds the session.
func TestSavesOfRequestsThatAreGoneWaitInLine(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		store.MaxWaiters = 10
		b := login(t, store)
		const gone = 40
		late := make([]*sessions.Session, gone)
		requests := make([]*http.Request, gone)
		for i := range late {
			r, hangUp := b.lived(t)
			var err error
			late[i], err = store.Get(r, "s")
			must(t, err)
			hangUp()
			eventually(t, "it is free", func() bool { return store.Stats().Held == 0 })
			requests[i] = r
		}
		holder, hr := load(t, store, b)
		rec.take()
		results := make(chan error, gone)
		for i, s := range late {
			go func() { results <- s.Save(requests[i], httptest.NewRecorder()) }()
		}
		for range gone - store.MaxWaiters {
			wantErr(t, <-results, ErrLocked)
		}
		equal(t, "commands of those who wait", rec.take(), "")
		must(t, holder.Save(hr, httptest.NewRecorder()))
		for range store.MaxWaiters {
			wantErr(t, <-results, ErrConflict)
		}
	})
}

// TestOneRequestManyCalls shows that a request does not wait for itself, nor
// conflict with itself. A deadlock would show as ErrLocked.
func TestOneRequestManyCalls(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.Wait = 0
		add := func(s *sessions.Session, r *http.Request) {
			t.Helper()
			s.Values["n"] = count(s) + 1
			must(t, s.Save(r, httptest.NewRecorder()))
		}
		refused := func(s *sessions.Session, r *http.Request) {
			t.Helper()
			wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
		}
		must2 := func(s *sessions.Session, err error) *sessions.Session { t.Helper(); must(t, err); return s }
		for name, c := range map[string]struct {
			handle func(r *http.Request)
			want   int
		}{
			"Get, New, save both": {func(r *http.Request) {
				a, b := must2(store.Get(r, "s")), must2(store.New(r, "s"))
				add(a, r)
				refused(b, r) // it has not seen the other's
			}, 1},
			"New, save, Get, save": {func(r *http.Request) {
				add(must2(store.New(r, "s")), r)
				add(must2(store.Get(r, "s")), r)
			}, 2},
			"two Saves": {func(r *http.Request) { s := must2(store.Get(r, "s")); add(s, r); add(s, r) }, 2},
			"Renew and Saves": {func(r *http.Request) {
				s := must2(store.Get(r, "s"))
				add(s, r)
				must(t, store.Renew(r, httptest.NewRecorder(), s))
				add(s, r)
				add(s, r)
			}, 3},
			"sessions.Save of two names": {func(r *http.Request) {
				a, b := must2(store.Get(r, "s")), must2(store.Get(r, "other"))
				a.Values["n"], b.Values["n"] = 1, 2
				must(t, sessions.Save(r, httptest.NewRecorder()))
				add(a, r)
			}, 2},
			"a copy of the request, made after Get": {func(r *http.Request) {
				must2(store.Get(r, "s"))
				type key struct{}
				again := r.WithContext(context.WithValue(r.Context(), key{}, 1))
				add(must2(store.Get(again, "s")), again)
				add(must2(store.New(again, "s")), r)
			}, 2},
			"a clone of the request, made after Get": {func(r *http.Request) {
				must2(store.Get(r, "s"))
				again := r.Clone(r.Context())
				add(must2(store.New(again, "s")), again)
			}, 1},
			"copies of the request, made before Get": {func(r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
				defer cancel()
				again := r.WithContext(ctx)
				b := must2(store.Get(again, "s"))
				a := must2(store.Get(r, "s"))
				add(b, again)
				refused(a, r)
				add(must2(store.Get(r, "s")), r)
			}, 2},
			"Update after Get": {func(r *http.Request) {
				s := must2(store.Get(r, "s"))
				s.Values["n"] = 666 // not saved
				must(t, increment(store, r, true))
				equal(t, "n of the session that was loaded before", count(s), 1)
				must(t, increment(store, r, true))
				add(s, r)
			}, 3},
			"Update before Get": {func(r *http.Request) {
				must(t, increment(store, r, true))
				add(must2(store.Get(r, "s")), r)
			}, 2},
			"Update in Update": {func(r *http.Request) {
				must(t, store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
					s.Values["n"] = count(s) + 1
					return increment(store, r, true)
				}))
			}, 2},
		} {
			b := login(t, store)
			r, end := b.lived(t)
			c.handle(r)
			end()
			srv.free(t)
			if key := "session_" + must2(store.Store.New(b.request(t), "s")).ID; name != "Renew and Saves" {
				s, _, _ := b.get(t, store.Store)
				equal(t, name+": n in "+key, count(s), c.want)
			} else {
				key, data := srv.only(t)
				s := sessions.NewSession(store, "s")
				must(t, GobSerializer{}.Deserialize([]byte(data), s))
				equal(t, name+": n in "+key, count(s), c.want)
			}
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestAStaleSessionOfTheSameRequestIsRefused loads a session, has another request
// change it, and loads it again: only the second may be saved.
func TestAStaleSessionOfTheSameRequestIsRefused(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		stale, r := load(t, store, b)
		srv.forward(t, store.TTL+time.Second)
		must(t, store.Save(r, httptest.NewRecorder(), stale)) // unlocks in this process too
		r2, end := b.lived(t)
		must(t, increment(store, r2, false))
		end()
		fresh, err := store.New(r, "s")
		must(t, err)
		stale.Values["n"] = 666
		wantErr(t, stale.Save(r, httptest.NewRecorder()), ErrConflict)
		fresh.Values["n"] = count(fresh) + 1
		must(t, fresh.Save(r, httptest.NewRecorder()))
		s, _, _ := b.get(t, store.Store)
		equal(t, "n", count(s), 2)
	})
}

// TestCopiesOfARequestInParallel is what a middleware and http.TimeoutHandler may do.
// It is for the race detector, and for panics.
func TestCopiesOfARequestInParallel(t *testing.T) {
	srv := startMini(t)
	srv.mini.ClockTTL(true)
	store, _ := srv.locking(t)
	store.TTL, store.Wait = 5*time.Millisecond, 50*time.Millisecond
	b := login(t, store)
	for range 50 {
		r, end := b.lived(t)
		var wg sync.WaitGroup
		for i := range 4 {
			again := r.WithContext(context.WithValue(r.Context(), actorKey{}, i)) // with a registry of its own
			wg.Go(func() {
				for n := range 3 {
					if s, err := store.Get(again, "s"); err == nil && n == i%3 {
						_ = s.Save(again, httptest.NewRecorder())
					}
					_ = increment(store, again, true)
				}
			})
		}
		wg.Wait()
		end()
	}
	eventually(t, "nobody stands in line", func() bool { return store.waiting() == -1 })
}

// TestACopyOfTheRequestMaySaveToo has two copies save at once: one of them is refused,
// and the other can go on.
func TestACopyOfTheRequestMaySaveToo(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		for range 20 {
			b := login(t, store)
			r, end := b.lived(t)
			var all [2]*sessions.Session
			var requests [2]*http.Request
			for i := range all {
				var err error
				requests[i] = r.WithContext(r.Context())
				all[i], err = store.Get(requests[i], "s")
				must(t, err)
				all[i].Values["n"] = i
			}
			var errs [2]error
			var wg sync.WaitGroup
			for i, s := range all {
				wg.Go(func() { errs[i] = s.Save(requests[i], httptest.NewRecorder()) })
			}
			wg.Wait()
			for i, s := range all {
				if errs[i] == nil {
					must(t, s.Save(requests[i], httptest.NewRecorder()))
				}
			}
			end()
		}
	})
}

// TestTheRequestIsTheHandlersToChange has a handler put values into its request's
// context, as gorilla does, while the client hangs up. The race detector watches.
func TestTheRequestIsTheHandlersToChange(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, hangUp := b.lived(t)
		_, err := store.Get(r, "s")
		must(t, err)
		go hangUp()
		type key struct{}
		eventually(t, "the lock is free", func() bool {
			*r = *r.WithContext(context.WithValue(t.Context(), key{}, 1))
			return len(srv.keys(t)) == 1
		})
	})
}

// TestGetForgetsAnErrorThatIsOver: docs/errors.md has such a session ended and begun anew.
func TestGetForgetsAnErrorThatIsOver(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		b := login(t, x.over)
		key, _ := x.srv.only(t)
		must(t, x.srv.admin.Set(t.Context(), key, "garbage", time.Hour).Err())
		r, w := b.request(t), httptest.NewRecorder()
		s, err := x.over.Get(r, "s")
		wantErr(t, err, ErrNotDecoded)
		maxAge := s.Options.MaxAge
		s.Options.MaxAge = -1
		must(t, s.Save(r, w))
		s.ID, s.Options.MaxAge = "", maxAge
		s.Values["user"] = "ann"
		must(t, x.over.Renew(r, w, s))
		s, err = x.over.Get(r, "s")
		equal(t, "user", s.Values["user"], any("ann"))
		must(t, err)
	})
}
