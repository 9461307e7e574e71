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
