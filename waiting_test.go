package redistore

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/lock"
)

// TestWaitingInLine shows that the requests of one process come first come first
// served.
func TestWaitingInLine(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store, b)
		rec.take()
		const n = 20
		order := make(chan int, n)
		for i := range n {
			go func() {
				r, end := b.lived(t)
				defer end()
				s, err := store.Get(r, "s")
				must(t, err)
				order <- i
				must(t, s.Save(r, httptest.NewRecorder()))
			}()
			eventually(t, "the request stands in line", func() bool { return store.waiting() == i+1 })
		}
		must(t, s.Save(r, httptest.NewRecorder()))
		for i := range n {
			equal(t, "served", <-order, i)
		}
		eventually(t, "all are done", func() bool { return store.waiting() == -1 })
		equal(t, "commands", len(strings.Fields(rec.take())), 1+2*n) // nobody asked in vain
	})
}

// waiting is how many requests of this process wait for a session; -1 if none even
// holds one.
func (l *LockingStore) waiting() int {
	stats := l.Stats()
	if stats.Held == 0 {
		return -1
	}
	return stats.Waiting
}

func TestWaitingIsBounded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		here, rec := srv.locking(t)
		there, _ := srv.locking(t)
		b := login(t, here)
		load(t, here, b)
		refused := func(name string, store *LockingStore, r *http.Request, because error) {
			t.Helper()
			rec.take()
			s, err := store.Get(r, "s")
			wantErr(t, err, ErrLocked)
			wantErr(t, err, ErrNotLoaded)
			if because != nil {
				wantErr(t, err, because)
			}
			equal(t, name+": Values", len(s.Values), 0)
			s.Values["user"] = "eve"
			wantErr(t, s.Save(r, httptest.NewRecorder()), ErrNotLoaded)
			called := false
			err = store.Update(b.request(t), httptest.NewRecorder(), "s", func(*sessions.Session) error { called = true; return nil })
			if because == nil {
				wantErr(t, err, ErrLocked)
				equal(t, name+": fn was called", called, false)
			}
		}
		here.Wait, there.Wait = 0, 0
		refused("Wait 0, in this process", here, b.request(t), nil)
		equal(t, "commands", rec.take(), "")
		refused("Wait 0, in another", there, b.request(t), nil)
		here.Wait, there.Wait = 20*time.Millisecond, 20*time.Millisecond
		refused("Wait, in this process", here, b.request(t), nil)
		refused("Wait, in another", there, b.request(t), nil)

		here.Wait, there.Wait = time.Minute, time.Minute
		for _, store := range []*LockingStore{here, there} {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // time for a first answer, also on a busy machine
			defer cancel()
			s, err := store.Get(b.request(t).WithContext(ctx), "s")
			wantErr(t, err, ErrLocked)
			wantErr(t, err, context.DeadlineExceeded)
			equal(t, "Values", len(s.Values), 0)
		}

		here.MaxWaiters = 3
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			wg.Go(func() {
				_, err := here.Get(b.request(t).WithContext(ctx), "s")
				wantErr(t, err, ErrLocked)
				wantErr(t, err, context.Canceled)
			})
		}
		eventually(t, "three wait", func() bool { return here.waiting() == 3 })
		refused("MaxWaiters", here, b.request(t), nil)
		cancel()
		wg.Wait()
		equal(t, "waiting", here.waiting(), 0)
		equal(t, "user", b.user(t, here.Store), "ann")
	})
}

// TestABurstIsFairAndCheap has 64 requests in 2 processes' stores want one session
// at once, when both have come.
func TestABurstIsFairAndCheap(t *testing.T) {
	srv := startRedis(t)
	one, rec1 := srv.locking(t)
	two, rec2 := srv.locking(t)
	b := login(t, one)
	holder, _ := srv.locking(t)
	r, end := b.lived(t)
	_, err := holder.Get(r, "s")
	must(t, err)
	const n = 64
	var mu sync.Mutex
	var served []int // by which process, one after the other
	var wg sync.WaitGroup
	for i := range n {
		store := []*LockingStore{one, two}[i%2]
		wg.Go(func() {
			r, end := b.lived(t)
			defer end()
			s, err := store.Get(r, "s")
			must(t, err)
			mu.Lock()
			served = append(served, i%2)
			mu.Unlock()
			time.Sleep(time.Millisecond) // the handler's work
			s.Values["n"] = count(s) + 1
			must(t, s.Save(r, httptest.NewRecorder()))
		})
	}
	queue := lock.Beside(one.key(idOf(t, one.Store, b)), ":queue")
	eventually(t, "both processes wait", func() bool { return srv.admin.LLen(t.Context(), queue).Val() == 2 })
	rec1.take()
	rec2.take()
	end()
	wg.Wait()
	s, _, _ := b.get(t, one.Store)
	equal(t, "n", count(s), n)
	ofTwo := 0
	for _, process := range served[:n/2] { // while both wait
		ofTwo += process
	}
	if ofTwo < n/8 || ofTwo > n/2-n/8 {
		t.Errorf("of the first %d, %d are the second process'", n/2, ofTwo)
	}
	gets := strings.Count(rec1.take()+" "+rec2.take(), "eval") - n // without the Saves
	if gets > 3*n {
		t.Errorf("%d commands for %d acquisitions", gets, n)
	}
}

func TestUnknownIDsTakeNoLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		store.Wait = 0
		b := login(t, store)
		must(t, srv.admin.FlushDB(t.Context()).Err())
		for range 2 {
			s, _ := load(t, store, b)
			equal(t, "IsNew", s.IsNew, true)
			equal(t, "keys", len(srv.keys(t)), 0)
		}
		s, r := load(t, store, browser{})
		must(t, s.Save(r, httptest.NewRecorder()))
		equal(t, "keys", len(srv.keys(t)), 1)
		equal(t, "in line", store.waiting(), -1)
		rec.take()
	})
}

func TestARedisThatIsBusyIsWaitedFor(t *testing.T) {
	for _, busy := range []string{"TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN",
		"ERR Error running script (call to f_1): @user_script:4: @user_script: 4: -READONLY You can't write against a read only replica."} {
		store, rec := startMini(t).locking(t)
		b := login(t, store)
		fail := func() {
			left := 10
			rec.failing(func(string) error {
				if left--; left >= 0 {
					return redisError(busy + " for a while")
				}
				return nil
			})
		}
		fail()
		s, r := load(t, store, b)
		fail()
		must(t, s.Save(r, httptest.NewRecorder()))

		store.Wait = 10 * time.Millisecond
		rec.failing(func(string) error { return redisError(busy + " for ever") })
		_, err := store.Get(b.request(t), "s")
		wantText(t, err, busy)
		wantErr(t, err, ErrNotLoaded)
		wantText(t, s.Save(r, httptest.NewRecorder()), "redistore: save: "+busy)
	}
}

// TestTheLapsedHolderWaitsForTheNext has another request hold the session when the
// first comes back late, and leave it as it is.
func TestTheLapsedHolderWaitsForTheNext(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		client := srv.client(t)
		store := NewLockingStore(New(client, hashKey))
		other, _ := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store, b)
		srv.forward(t, store.TTL+time.Second)
		or, end := b.lived(t)
		_, err := other.Get(or, "s")
		must(t, err)
		var asked atomic.Int32
		client.AddHook(hook{after: func(cmd redis.Cmder) {
			if strings.HasPrefix(cmd.Name(), "eval") && asked.Add(1) == 3 {
				end()
			}
		}})
		s.Values["n"] = 1
		must(t, s.Save(r, httptest.NewRecorder()))
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 1)

		// And one that is held for all of Wait.
		s, r = load(t, store, b)
		srv.forward(t, store.TTL+time.Second)
		load(t, other, b)
		store.Wait = 10 * time.Millisecond
		s.Values["n"] = 2
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrLocked)
		now, _, _ = b.get(t, store.Store)
		equal(t, "n", count(now), 1)
	})
}

// TestALeaseHandsTheLineOn has a request of this process hold a session for ever.
func TestALeaseHandsTheLineOn(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	store.TTL = 20 * time.Millisecond
	b := login(t, store)
	load(t, store, b)
	for range 3 {
		_, _ = load(t, store, b)
	}
}

// TestLogoutEndsTheWait has requests of one process wait for a session that is logged
// out.
func TestLogoutEndsTheWait(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.TTL, store.Wait = time.Hour, time.Hour
		b := login(t, store)
		s, r := load(t, store, b)
		const n = 3
		served := make(chan bool, n)
		for i := range n {
			go func() {
				s, _ := load(t, store, b)
				served <- s.IsNew
			}()
			eventually(t, "the request stands in line", func() bool { return store.waiting() == i+1 })
		}
		out, logout, w := b.get(t, store.Store)
		out.Options.MaxAge = -1
		must(t, store.Save(logout, w, out))
		for range n {
			equal(t, "IsNew", <-served, true)
		}
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrGone)
		equal(t, "keys", len(srv.keys(t)), 0)
		equal(t, "waiting", store.waiting(), -1)
	})
}

// TestTheLineMovesTwice has the next come before the one in front has asked for the lock,
// as a logout does. The race detector watches.
func TestTheLineMovesTwice(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		s, _ := load(t, store, b)
		var all sync.WaitGroup
		for i := range 2 {
			all.Go(func() {
				r, end := b.lived(t)
				defer end()
				_, err := store.Get(r, "s")
				must(t, err)
			})
			eventually(t, "the request stands in line", func() bool { return store.waiting() == i+1 })
		}
		store.locker().Forget(store.key(s.ID))
		store.locker().Forget(store.key(s.ID))
		must(t, srv.admin.Del(t.Context(), lock.Key(store.key(s.ID))).Err())
		all.Wait()
	})
}
