package redistore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/lock"
)

// loginAs saves a new session of that owner.
func loginAs(t *testing.T, store sessions.Store, owner string) browser {
	t.Helper()
	b := browser{}
	b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
		s.Values["user"] = "ann"
		SetOwner(s, owner)
		must(t, s.Save(r, w))
	})
	return b
}

// collect returns those of the owner's sessions that could be read, and all errors.
func collect(t *testing.T, store *Store, owner string) (list []*sessions.Session, all error) {
	for s, err := range store.Sessions(t.Context(), owner) {
		if err == nil {
			list = append(list, s)
		}
		all = errors.Join(all, err)
	}
	return list, all
}

func listed(t *testing.T, store *Store, owner string) []string {
	t.Helper()
	list, err := collect(t, store, owner)
	must(t, err)
	var ids []string
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	slices.Sort(ids)
	return ids
}

func TestOwner(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			for _, z := range []Serializer{GobSerializer{}, JSONSerializer{}} {
				store := New(client, hashKey)
				store.Serializer = z
				for kind, s := range map[string]sessions.Store{"Store": store, "LockingStore": NewLockingStore(store)} {
					t.Run(fmt.Sprintf("%s/%T/%s", name, z, kind), func(t *testing.T) { testOwner(t, srv, store, s) })
				}
			}
		}
	})
}

// testOwner follows one session from login to logout. over is the store, or the lock
// around it.
func testOwner(t *testing.T, srv *server, store *Store, over sessions.Store) {
	must(t, srv.admin.FlushDB(t.Context()).Err())
	change := func(b browser, do func(*http.Request, http.ResponseWriter, *sessions.Session) error) {
		t.Helper()
		r, end := b.lived(t)
		w := httptest.NewRecorder()
		s, err := over.Get(r, "s")
		must(t, err)
		must(t, do(r, w, s))
		end()
		b.keep(w)
	}
	save := func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error { return s.Save(r, w) }

	b, other := loginAs(t, over, "ann"), loginAs(t, over, "ann")
	loginAs(t, over, "bob")
	first := idOf(t, store, b)
	all := []string{first, idOf(t, store, other)}
	slices.Sort(all)
	equal(t, "listed", fmt.Sprint(listed(t, store, "ann")), fmt.Sprint(all))
	change(b, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		equal(t, "owner after a reload", Owner(s), "ann")
		s.Values["n"] = 1
		return s.Save(r, w)
	})
	renew := store.Renew
	if l, ok := over.(*LockingStore); ok {
		renew = l.Renew
	}
	change(b, renew)
	renewed := idOf(t, store, b)
	equal(t, "listed after Renew", slices.Contains(listed(t, store, "ann"), renewed), true)
	equal(t, "the old ID is listed", slices.Contains(listed(t, store, "ann"), first), false)
	change(b, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		return store.Touch(r, w, s)
	})

	list, err := collect(t, store, "ann")
	must(t, err)
	for _, s := range list {
		if s.IsNew || s.Values["user"] != "ann" || s.Options.MaxAge != 30*24*3600 || Owner(s) != "ann" {
			t.Errorf("listed %+v", s)
		}
	}

	change(b, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		SetOwner(s, "bob")
		return s.Save(r, w)
	})
	equal(t, "ann's after one went to bob", len(listed(t, store, "ann")), 1)
	equal(t, "bob's", len(listed(t, store, "bob")), 2)
	n, err := store.Revoke(t.Context(), "ann")
	must(t, err)
	equal(t, "ended", n, 1)
	equal(t, "user of the session that is bob's now", b.user(t, store), "ann")
	equal(t, "user of the one that was ann's", other.user(t, store), "")
	change(b, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		SetOwner(s, "")
		return s.Save(r, w)
	})
	equal(t, "bob's after one has no owner", len(listed(t, store, "bob")), 1)
	change(b, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		equal(t, "owner", Owner(s), "")
		SetOwner(s, "ann")
		return s.Save(r, w)
	})

	change(b, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		s.Options.MaxAge = -1
		return save(r, w, s)
	})
	equal(t, "ann's after logout", len(listed(t, store, "ann")), 0)
	srv.forward(t, 31*24*time.Hour)
	equal(t, "bob's after 31 days", len(listed(t, store, "bob")), 0)
	srv.free(t)
	equal(t, "keys", fmt.Sprint(srv.keys(t)), "[]")
}

func TestOwnersCost(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		b := loginAs(t, store, "ann")
		equal(t, "a new session", rec.take(), "eval")
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			equal(t, "Get", rec.take(), "get")
			must(t, s.Save(r, w))
			equal(t, "Save", rec.take(), "evalsha")
			must(t, store.Touch(r, w, s))
			equal(t, "Touch", rec.take(), "evalsha")
			must(t, store.Renew(r, w, s))
			equal(t, "Renew", rec.take(), "eval")
			SetOwner(s, "")
			must(t, s.Save(r, w))
			equal(t, "Save without an owner", rec.take(), "set")
			SetOwner(s, "ann")
			must(t, s.Save(r, w))
		})
		rec.take()
		loginAs(t, store, "ann")
		rec.take()
		listed(t, store, "ann")
		equal(t, "Sessions", rec.take(), "zrange [get get]")

		locking := NewLockingStore(store)
		for range 2 {
			s, r := load(t, locking, b)
			rec.take()
			must(t, s.Save(r, httptest.NewRecorder()))
		}
		equal(t, "Save with the lock", rec.take(), "evalsha")
		s, r := load(t, locking, b)
		old, w := s.ID, httptest.NewRecorder()
		rec.take()
		must(t, locking.Renew(r, w, s))
		b.keep(w)
		equal(t, "Renew with the lock", rec.take(), "eval")
		wantErr(t, srv.admin.ZScore(t.Context(), store.records().index("ann"), old).Err(), redis.Nil)

		store.IdleTimeout = time.Minute
		for range 2 { // Redis gets to know the script
			rec.take()
			b.get(t, store)
		}
		equal(t, "Get with IdleTimeout", rec.take(), "getex evalsha")
	})
}

// TestNoSessionIsOutsideTheIndex stops a client dead before the nth of its commands,
// for every n: what exists then can still be revoked.
func TestNoSessionIsOutsideTheIndex(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			rec := &recorder{}
			client.AddHook(rec)
			store := New(client, hashKey)
			locking := NewLockingStore(store)
			healthy := New(srv.client(t), hashKey)
			for _, over := range []sessions.Store{store, locking} {
				for op, do := range map[string]func(*http.Request, *sessions.Session) error{
					"login": func(r *http.Request, _ *sessions.Session) error {
						s := newSession(t, over)
						SetOwner(s, "ann")
						return s.Save(r, httptest.NewRecorder())
					},
					"save":  func(r *http.Request, s *sessions.Session) error { return s.Save(r, httptest.NewRecorder()) },
					"renew": func(r *http.Request, s *sessions.Session) error { s.ID = ""; return s.Save(r, httptest.NewRecorder()) },
					"touch": func(r *http.Request, s *sessions.Session) error { return store.Touch(r, httptest.NewRecorder(), s) },
					"moving": func(r *http.Request, s *sessions.Session) error {
						SetOwner(s, "bob")
						return s.Save(r, httptest.NewRecorder())
					},
				} {
					for n := 0; ; n++ {
						b := loginAs(t, over, "ann")
						s, r := load(t, over, b)
						left, died := n, false
						rec.failing(func(string) error {
							if left--; left < 0 {
								died = true
								return io.ErrClosedPipe
							}
							return nil
						})
						err := do(r, s)
						rec.failing(nil)
						survived := !died
						if err == nil && !survived && op != "renew" && over == store { // the lock's releases come later
							t.Errorf("%s, %s, %T: no error though command %d failed", name, op, over, n)
						}
						for _, owner := range []string{"ann", "bob"} {
							_, err := healthy.Revoke(t.Context(), owner)
							must(t, err)
						}
						for _, key := range srv.keys(t) {
							if !strings.Contains(key, "owner:") && !strings.HasSuffix(key, ":lock") {
								t.Errorf("%s, %s, %T, dead at command %d: %s has escaped", name, op, over, n, key)
							}
						}
						must(t, srv.admin.FlushDB(t.Context()).Err())
						if survived {
							break
						}
					}
				}
			}
		}
	})
}

func TestTheIndexExpiresWithItsLastSession(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		longest := func() (index, session time.Duration) {
			t.Helper()
			for _, key := range srv.keys(t) {
				if ttl := srv.ttl(t, key); strings.Contains(key, "owner:") {
					index = ttl
				} else {
					session = max(session, ttl)
				}
			}
			if index < session || session <= 0 {
				t.Errorf("the index lives for %v, its longest session for %v", index, session)
			}
			return index, session
		}
		save := func(b browser, maxAge int) {
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
				s.Options.MaxAge = maxAge
				SetOwner(s, "ann")
				must(t, s.Save(r, w))
			})
		}
		a, b := browser{}, browser{}
		for _, step := range []func(){
			func() { save(a, 100) }, func() { save(b, 1000) }, func() { save(b, 500) }, func() { save(a, 2000) }, func() { save(b, 100) },
		} {
			step()
			if index, session := longest(); index > session+5*time.Second {
				t.Errorf("the index lives for %v, its longest session for %v", index, session)
			}
		}
		save(a, -1)
		save(b, 200)
		longest()
		srv.forward(t, 205*time.Second)
		equal(t, "keys", fmt.Sprint(srv.keys(t)), "[]")

		// With an idle timeout, sessions live on by being read.
		store.IdleTimeout = time.Minute
		a = loginAs(t, store, "ann")
		for range 5 {
			srv.forward(t, 45*time.Second)
			equal(t, "user", a.user(t, store), "ann")
			longest()
			equal(t, "listed", len(listed(t, store, "ann")), 1)
		}
		srv.forward(t, 45*time.Second)
		rec.failOnce("eval", io.EOF) // the index is not told, this once
		equal(t, "user", a.user(t, store), "ann")
		longest()
		srv.forward(t, 3*time.Minute)
		equal(t, "keys", fmt.Sprint(srv.keys(t)), "[]")
		store.AbsoluteTimeout = 5 * time.Minute
		a = loginAs(t, store, "ann")
		for range 5 {
			srv.forward(t, 45*time.Second)
			equal(t, "user", a.user(t, store), "ann")
			longest()
		}
		srv.forward(t, 3*time.Minute)
		equal(t, "keys", fmt.Sprint(srv.keys(t)), "[]")
	})
}

func TestDeadEntriesArePruned(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			store := New(client, hashKey)
			b := loginAs(t, store, "ann")
			loginAs(t, store, "ann")
			must(t, srv.admin.Del(t.Context(), store.key(idOf(t, store, b))).Err()) // evicted, say
			equal(t, name+": listed", len(listed(t, store, "ann")), 1)
			want := int64(1)
			if name != "Client" {
				want = 2 // it may yet be written
			}
			equal(t, name+": in the index", srv.admin.ZCard(t.Context(), store.records().index("ann")).Val(), want)
			store.now = func() time.Time { return time.Now().Add(2 * settled) }
			equal(t, name+": listed", len(listed(t, store, "ann")), 1)
			equal(t, name+": in the index", srv.admin.ZCard(t.Context(), store.records().index("ann")).Val(), 1)
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
		// Redis' own time prunes too, where nobody asks for the list.
		store, _ := srv.store(t)
		key := store.records().index("ann")
		must(t, srv.admin.ZAdd(t.Context(), key, redis.Z{Score: float64(time.Now().Unix() - 10), Member: "old"}).Err())
		loginAs(t, store, "ann")
		equal(t, "in the index", srv.admin.ZCard(t.Context(), key).Val(), 1)
	})
}

// TestTheIndexKnowsOfEveryRead has clients hang up when Redis has prolonged their
// session, before the index knows.
func TestTheIndexKnowsOfEveryRead(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		plain, rec := srv.store(t)
		plain.IdleTimeout = time.Minute
		for name, store := range map[string]sessions.Store{"Store": plain, "LockingStore": NewLockingStore(plain)} {
			b := loginAs(t, store, "ann")
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { must(t, s.Save(r, w)) })
			for range 4 {
				srv.forward(t, 45*time.Second)
				r, hangUp := b.lived(t)
				rec.failing(func(command string) error {
					if command == "eval" {
						hangUp()
					}
					return nil
				})
				_, _ = store.Get(r, "s")
				hangUp()
				rec.failing(nil)
				srv.free(t)
			}
			ended, err := plain.Revoke(t.Context(), "ann")
			must(t, err)
			equal(t, name+": ended", ended, 1)
		}
	})
}

func TestOwnerNames(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		for _, z := range []Serializer{GobSerializer{}, JSONSerializer{}} {
			store.Serializer = z
			anonymous := login(t, store)
			id := idOf(t, store, anonymous)
			names := []string{"a", " ", "a b", "a/b", "%", "%41", "ü", "\xff\x00", "{a}", "}", "owner:a", id, store.key(id), store.records().index("a"), strings.Repeat("x", 100_000), strings.Repeat("x", 100_001)}
			for _, name := range names {
				b := loginAs(t, store, name)
				s, _, _ := b.get(t, store)
				equal(t, "owner", Owner(s), name)
			}
			for i, name := range names {
				equal(t, "listed", len(listed(t, store, name)), 1)
				n, err := store.Revoke(t.Context(), name)
				must(t, err)
				equal(t, "ended", n, 1)
				equal(t, "left", len(srv.keys(t)), 1+2*(len(names)-i-1))
			}
			equal(t, "user of a session without an owner", anonymous.user(t, store), "ann")
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
		s := sessions.NewSession(store, "s")
		equal(t, "nobody", Owner(s), "")
		s.Values[ownerKey] = "%zz"
		equal(t, "nonsense", Owner(s), "")
		s.Values = nil
		SetOwner(s, "ann")
		equal(t, "owner", Owner(s), "ann")
	})
}

func TestOwnersErrors(t *testing.T) {
	store, rec := startMini(t).store(t)
	b := loginAs(t, store, "ann")
	bad := New(store.client)
	_, err := collect(t, bad, "ann")
	wantText(t, err, "no keys")
	_, err = bad.Revoke(t.Context(), "ann")
	wantText(t, err, "no keys")
	for _, at := range []string{"zrange", "get", "del"} {
		rec.failing(func(name string) error {
			if strings.HasPrefix(strings.Trim(name, "[]"), at) {
				return io.ErrClosedPipe
			}
			return nil
		})
		if at != "del" {
			_, err = collect(t, store, "ann")
			wantErr(t, err, io.ErrClosedPipe)
			wantText(t, err, "redistore: sessions: ")
		}
		_, err = store.Revoke(t.Context(), "ann")
		wantErr(t, err, io.ErrClosedPipe)
		wantText(t, err, "redistore: revoke: ")
		rec.failing(nil)
		equal(t, "user", b.user(t, store), "ann")
	}
	// Who disables an account and hangs up has disabled it.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, err := store.Revoke(ctx, "ann")
	must(t, err)
	equal(t, "ended", n, 1)
}

// TestTheIndexIsNeverShortened has writes fail after the index was told of them, which
// happens where the two may be on different servers.
func TestTheIndexIsNeverShortened(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.sharded(t)
		locking := NewLockingStore(store)
		b := loginAs(t, store, "ann")
		for range 2 { // Redis gets to know the scripts
			s, r := load(t, locking, b)
			must(t, s.Save(r, httptest.NewRecorder()))
		}
		ttl := func() time.Duration { return srv.ttl(t, store.records().index("ann")) }
		before := ttl()
		s, r := load(t, locking, b)
		s.Options.MaxAge = 1
		scripts := 0
		rec.failing(func(string) error {
			if scripts++; scripts == 2 { // the first is the index's
				return redisError("OOM command not allowed")
			}
			return nil
		})
		wantText(t, s.Save(r, httptest.NewRecorder()), "OOM")
		rec.failing(nil)
		if after := ttl(); after < before-5*time.Second {
			t.Errorf("the index lives for %v instead of %v", after, before)
		}
		srv.free(t)

		// And where the index cannot be written, nothing is.
		s, r = load(t, locking, b)
		SetOwner(s, "bob")
		rec.failOnce("evalsha", redisError("OOM command not allowed"))
		wantText(t, s.Save(r, httptest.NewRecorder()), "redistore: save: OOM")
		now, _, _ := b.get(t, store)
		equal(t, "owner", Owner(now), "ann")
		must(t, srv.admin.Set(t.Context(), store.records().index("bob"), "not an index", 0).Err())
		for _, call := range []func(*http.Request, http.ResponseWriter, *sessions.Session) error{store.Save, store.Renew} {
			fresh := newSession(t, store)
			SetOwner(fresh, "bob")
			wantText(t, call(browser{}.request(t), httptest.NewRecorder(), fresh), "WRONGTYPE")
		}
		s, r, _ = b.get(t, store)
		SetOwner(s, "bob")
		wantText(t, store.Renew(r, httptest.NewRecorder(), s), "WRONGTYPE")
		for _, key := range srv.keys(t) {
			if !strings.Contains(key, "owner:") && !strings.HasSuffix(key, ":lock") && key != store.key(idOf(t, store, b)) {
				t.Errorf("%s is a session of bob's outside his index", key)
			}
		}
		equal(t, "user, who is ann still", b.user(t, store), "ann")
		equal(t, "listed", fmt.Sprint(listed(t, store, "ann")), fmt.Sprint([]string{idOf(t, store, b)}))
	})
}

// TestSessionsDoesNotForgetWhatIsAboutToBe has the list be read between the writing of
// the index and that of the session.
func TestSessionsDoesNotForgetWhatIsAboutToBe(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.sharded(t)
		locking := NewLockingStore(store)
		other, _ := srv.store(t)
		b := login(t, store)
		s, r := load(t, locking, b)
		SetOwner(s, "ann")
		evals := 0
		rec.failing(func(name string) error {
			if strings.HasPrefix(name, "eval") {
				if evals++; evals == 2 { // the first was the index
					equal(t, "listed before the session is written", len(listed(t, other, "ann")), 0)
					_, err := other.Revoke(t.Context(), "ann")
					must(t, err)
				}
			}
			return nil
		})
		must(t, s.Save(r, httptest.NewRecorder()))
		equal(t, "commands before the session was", evals >= 2, true)
		equal(t, "listed", len(listed(t, other, "ann")), 1)
	})
}

func TestWhatIsOverHereMayLiveElsewhere(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		old, _ := srv.store(t)
		b := loginAs(t, old, "ann")
		strict, _ := srv.store(t) // after a redeployment
		strict.AbsoluteTimeout = time.Hour
		srv.forward(t, 2*time.Hour)
		equal(t, "listed", len(listed(t, strict, "ann")), 0)
		equal(t, "listed by the old one", len(listed(t, old, "ann")), 1)
		n, err := strict.Revoke(t.Context(), "ann")
		must(t, err)
		equal(t, "ended", n, 1)
		equal(t, "user", b.user(t, old), "")
	})
}

func TestAGoneSessionLeavesNoIndex(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			store := New(client, hashKey)
			locking := NewLockingStore(store)
			for op, do := range map[string]func(*http.Request, *sessions.Session) error{
				"save":  func(r *http.Request, s *sessions.Session) error { return s.Save(r, httptest.NewRecorder()) },
				"touch": func(r *http.Request, s *sessions.Session) error { return store.Touch(r, httptest.NewRecorder(), s) },
			} {
				for _, over := range []sessions.Store{store, locking} {
					b := loginAs(t, over, "ann")
					s, r := load(t, over, b)
					_, err := store.Revoke(t.Context(), "ann")
					must(t, err)
					wantErr(t, do(r, s), ErrGone)
					must(t, srv.admin.Del(t.Context(), lock.Key(store.key(s.ID))).Err())
					equal(t, name+", "+op+": keys", fmt.Sprint(srv.keys(t)), "[]")
				}
			}
		}
	})
}
