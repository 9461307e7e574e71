package redistore

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// TestARenewalForgetsOnlyWhatItHasEnded has the ID of a request with two sessions of one
// owner be cleared, and the other one not be ended.
func TestARenewalForgetsOnlyWhatItHasEnded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for _, locked := range []bool{false, true} {
			store, rec := srv.sharded(t)
			over := keeper(store)
			if locked {
				over = NewLockingStore(store)
			}
			b, other := loginAs(t, store, "ann"), loginAs(t, store, "ann")
			r, end := b.lived(t)
			r.Header.Add("Cookie", "s="+other["s"])
			s, err := over.Get(r, "s")
			must(t, err)
			s.ID = ""
			scripts := 0
			rec.failing(func(name string) error {
				if strings.HasPrefix(name, "eval") {
					if scripts++; scripts == 3 { // after the index, and the end of the loaded one
						return io.ErrClosedPipe
					}
				}
				return nil
			})
			must(t, s.Save(r, httptest.NewRecorder()))
			rec.failing(nil)
			end()
			equal(t, "user of the other", other.user(t, store), "ann")
			ended, err := store.Revoke(t.Context(), "ann")
			must(t, err)
			equal(t, "ended", ended, 2)
			equal(t, "user of the other after Revoke", other.user(t, store), "")
		}
	})
}

// TestAPendingEntryStaysPending has a server whose client needs one step for a write prolong a
// session and then shorten it, between the two steps of another one's.
func TestAPendingEntryStaysPending(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.sharded(t)
		single, _ := srv.store(t)
		b := loginAs(t, single, "ann")
		save := func(store *Store, days int) {
			s, r, w := b.get(t, store)
			s.Options.MaxAge = days * 24 * 3600
			must(t, s.Save(r, w))
		}
		rec.at(2, func() { // after Get and the index
			save(single, 60)
			save(single, 1)
		})
		save(store, 30)
		rec.failing(nil)
		srv.covered(t, "Save in two steps", store, "ann", 0)
	})
}

// TestALargeValueThatIsEvictedLeavesTheIndexAsItWas has Redis drop what a locked Save has put
// beside the session, before its script runs.
func TestALargeValueThatIsEvictedLeavesTheIndexAsItWas(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		locking := NewLockingStore(store)
		b := loginAs(t, locking, "ann")
		s, r := load(t, locking, b)
		s.Values["large"] = strings.Repeat("x", 20_000)
		s.Options.MaxAge = 60
		rec.failing(func(name string) error {
			if !strings.HasPrefix(name, "eval") {
				return nil
			}
			keys, err := srv.admin.Keys(t.Context(), "{*").Result()
			for _, key := range keys {
				if srv.admin.StrLen(t.Context(), key).Val() > 20_000 {
					err = errors.Join(err, srv.admin.Del(t.Context(), key).Err())
				}
			}
			return err
		})
		wantText(t, s.Save(r, httptest.NewRecorder()), "evicted")
		rec.failing(nil)
		srv.covered(t, "after the Save", store, "ann", 0)
		must(t, s.Save(r, httptest.NewRecorder()))
		srv.covered(t, "after another", store, "ann", 0)
	})
}

// TestClocksMayDifferByAMinute has a server whose clock is ahead by that read the index, a
// login's second step being on its way for as long as one call may take.
func TestClocksMayDifferByAMinute(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.sharded(t)
		ahead, _ := srv.sharded(t)
		ahead.now = func() time.Time { return time.Now().Add(time.Minute + timeout) }
		rec.at(1, func() { equal(t, "listed", len(listed(t, ahead, "ann")), 0) })
		b := loginAs(t, store, "ann")
		rec.failing(nil)
		ended, err := store.Revoke(t.Context(), "ann")
		must(t, err)
		equal(t, "ended", ended, 1)
		equal(t, "user", b.user(t, store), "")
	})
}

// TestWhatCannotBeEndedStaysInTheIndex has Redis refuse DEL, and no more.
func TestWhatCannotBeEndedStaysInTheIndex(t *testing.T) {
	srv := startRedis(t)
	store, _ := srv.store(t)
	user := cmp.Or(srv.user, "default")
	b := loginAs(t, store, "ann")
	must(t, srv.admin.Do(t.Context(), "ACL", "SETUSER", user, "-del").Err())
	_, err := store.Revoke(t.Context(), "ann")
	wantText(t, err, "NOPERM")
	s, r, w := b.get(t, store)
	s.Options.MaxAge = -1
	wantText(t, s.Save(r, w), "NOPERM")
	must(t, srv.admin.Do(t.Context(), "ACL", "SETUSER", user, "+del").Err())
	ended, err := store.Revoke(t.Context(), "ann")
	must(t, err)
	equal(t, "ended", ended, 1)
	equal(t, "user", b.user(t, store), "")
}

// TestATouchAfterARenewal has a request prolong a session to which another has given an owner
// meanwhile, with Renew, as docs/owners.md says.
func TestATouchAfterARenewal(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			store := New(client, hashKey)
			must(t, srv.admin.FlushDB(t.Context()).Err())
			b := login(t, store)
			before, r, w := b.get(t, store)
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
				SetOwner(s, "ann")
				SetMaxAge(s, 60)
				must(t, store.Renew(r, w, s))
			})
			wantErr(t, store.Touch(r, w, before), ErrGone)
			srv.covered(t, name, store, "ann", 0)
		}
	})
}
