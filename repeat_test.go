package redistore

import (
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/script"
)

func TestALostReplyIsNoLostLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		lost := &lossy{}
		store := NewLockingStore(New(srv.client(t, lost.options), hashKey))
		b := login(t, store)
		n := 0
		add := func(s *sessions.Session) { n++; s.Values["n"] = n }

		lost.replies.Store(1)
		s, r := load(t, store, b)
		add(s)
		lost.replies.Store(1)
		must(t, s.Save(r, httptest.NewRecorder()))
		srv.free(t)

		r, end := b.lived(t)
		_, err := store.Get(r, "s")
		must(t, err)
		lost.replies.Store(1)
		end() // unlock
		srv.free(t)

		lost.replies.Store(2) // of both scripts, the first reply
		r, end = b.lived(t)
		must(t, store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
			add(s)
			lost.replies.Store(1)
			return nil
		}))
		end()
		srv.free(t)
		s, _, _ = b.get(t, store.Store)
		equal(t, "n", count(s), n)
	})
}

// TestALostReplyIsNotMistakenForSomebodyElse has another request come between a
// save whose reply was lost and its repeat. ErrGone and ErrConflict would say that
// nothing was written, which nobody knows.
func TestALostReplyIsNotMistakenForSomebodyElse(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		between := func(step string, what func(b browser)) {
			client := srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 })
			store := NewLockingStore(New(client, hashKey))
			b := login(t, store)
			s, r := load(t, store, b)
			first := true
			client.AddHook(hook{after: func(cmd redis.Cmder) {
				if first && strings.HasPrefix(cmd.Name(), "eval") {
					first = false
					what(b)
					cmd.SetErr(io.EOF)
				}
			}})
			s.Values["n"] = 1
			err := store.Save(r, httptest.NewRecorder(), s)
			if step == "logout" { // before which it was saved: Redis still knows
				must(t, err)
			} else {
				wantErr(t, err, io.EOF)
				wantText(t, err, "redistore: save: ")
			}
			if errors.Is(err, ErrGone) || errors.Is(err, ErrConflict) {
				t.Errorf("%s: got %v", step, err)
			}
			srv.free(t)
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
		other, _ := srv.locking(t)
		between("logout", func(b browser) {
			s, r := load(t, other.Store, b)
			s.Options.MaxAge = -1
			must(t, s.Save(r, httptest.NewRecorder()))
		})
		between("another save", func(b browser) {
			s, r := load(t, other, b)
			s.Values["n"] = 2
			must(t, s.Save(r, httptest.NewRecorder()))
		})
		// The request never reached Redis, the lease ran out, and another wrote the very
		// bytes: they are not the repeat's own.
		t.Run("equal bytes", func(t *testing.T) {
			client := srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 })
			store := NewLockingStore(New(client, hashKey))
			store.TTL = time.Millisecond
			b := login(t, store)
			s, r := load(t, store, b)
			srv.forward(t, time.Second)
			client.AddHook(&recorder{fail: failFirst("evalsha", "eval", func() {
				o, or := load(t, other, b)
				o.Values = map[any]any{"n": 1}
				must(t, o.Save(or, httptest.NewRecorder()))
			})})
			s.Values = map[any]any{"n": 1}
			wantErr(t, s.Save(r, httptest.NewRecorder()), io.EOF)
		})
	})
}

// failFirst fails the first command of either name, before it is sent, and lets
// something happen meanwhile.
func failFirst(name, alias string, meanwhile func()) func(string) error {
	first := true
	return func(n string) error {
		if !first || n != name && n != alias {
			return nil
		}
		first = false
		meanwhile()
		return io.EOF
	}
}

func TestScriptFlushIsSurvived(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		for n := range 3 {
			must(t, srv.admin.ScriptFlush(t.Context()).Err())
			r, end := b.lived(t)
			s, err := store.Get(r, "s")
			must(t, err)
			equal(t, "n", count(s), n)
			s.Values["n"] = n + 1
			must(t, srv.admin.ScriptFlush(t.Context()).Err())
			must(t, s.Save(r, httptest.NewRecorder()))
			_, err = store.New(r, "s")
			must(t, err)
			must(t, srv.admin.ScriptFlush(t.Context()).Err())
			end()
			srv.free(t)
		}
	})
}

// TestARepeatDoesNotWriteAgain loses the reply to a save, and has others change the
// session and change it back before the repeat.
func TestARepeatDoesNotWriteAgain(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		client := srv.client(t)
		store := NewLockingStore(New(client, hashKey))
		other, _ := srv.locking(t)
		b := login(t, store)
		set := func(s *sessions.Session, n int) { s.Values = map[any]any{"n": n} }
		first, r := load(t, store, b)
		set(first, 1)
		must(t, store.Save(r, httptest.NewRecorder(), first))

		s, r := load(t, store, b)
		lost := false
		client.AddHook(hook{after: func(cmd redis.Cmder) {
			if lost {
				return
			}
			lost = true
			for _, n := range []int{3, 1} { // 1 is what s was loaded as
				o, or := load(t, other, b)
				set(o, n)
				must(t, o.Save(or, httptest.NewRecorder()))
			}
			cmd.SetErr(io.EOF)
		}})
		set(s, 2)
		wantErr(t, store.Save(r, httptest.NewRecorder(), s), io.EOF)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 1)
	})
}

// TestASaveWhoseOutcomeIsUnknown saves again, over what is its own work.
func TestASaveWhoseOutcomeIsUnknown(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		lost := &lossy{}
		store := NewLockingStore(New(srv.client(t, lost.options), hashKey))
		b := login(t, store)
		s, r := load(t, store, b)
		s.Values["n"] = 1
		lost.replies.Store(maxAttempts)
		if err := s.Save(r, httptest.NewRecorder()); err == nil || script.IsReply(err) {
			t.Fatalf("got error %v, want the network's", err)
		}
		s.Values["n"] = 2
		must(t, s.Save(r, httptest.NewRecorder()))
		now, fresh := load(t, store, b)
		equal(t, "n", count(now), 2)
		must(t, now.Save(fresh, httptest.NewRecorder()))

		// And where others have written in between, it is refused, whatever they wrote.
		s, r = load(t, store, b)
		s.Values["n"] = 3
		lost.replies.Store(maxAttempts)
		if err := s.Save(r, httptest.NewRecorder()); err == nil || script.IsReply(err) {
			t.Fatalf("got error %v, want the network's", err)
		}
		for _, n := range []int{4, 2} {
			o, or := load(t, store, b)
			o.Values["n"] = n
			must(t, o.Save(or, httptest.NewRecorder()))
		}
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
		must(t, srv.admin.FlushDB(t.Context()).Err())
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrGone)
	})
}
