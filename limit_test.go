package redistore

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// logins makes n sessions of the owner, an hour apart. The later a session was made, the
// sooner it ends.
func (x trial) logins(t *testing.T, owner string, n int) (all []browser) {
	t.Helper()
	begin := x.srv.now()
	defer func() { x.plain.now = x.srv.now }()
	for i := range n {
		x.plain.now = func() time.Time { return begin.Add(time.Duration(i-n) * time.Hour) }
		b := browser{}
		b.visit(t, x.plain, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Values["user"] = "ann"
			s.Options.MaxAge = (n - i) * 24 * 3600
			SetOwner(s, owner)
			must(t, s.Save(r, w))
		})
		all = append(all, b)
	}
	return all
}

// limiter is what both stores can do with an owner.
type limiter interface {
	Limit(ctx context.Context, owner string, n int, keep ...string) (int, error)
}

func TestLimitEndsTheOldestLogins(t *testing.T) {
	id := func(t *testing.T, x trial, b browser) string { return idOf(t, x.plain, b) }
	type env struct {
		t        *testing.T
		x        trial
		ann, bob []browser
	}
	for name, c := range map[string]struct {
		n     int
		keep  func(env) []string
		lives string // which of ann's five are left, the oldest first
	}{
		"three":               {3, nil, "..+++"},
		"none":                {0, nil, "....."},
		"as many as are":      {5, nil, "+++++"},
		"more than are":       {6, nil, "+++++"},
		"any number":          {math.MaxInt, nil, "+++++"},
		"and keep the newest": {1, func(e env) []string { return []string{id(e.t, e.x, e.ann[4])} }, "....+"},
		"and keep the oldest": {2, func(e env) []string { return []string{id(e.t, e.x, e.ann[0])} }, "+...+"},
		"none, but keep one":  {0, func(e env) []string { return []string{id(e.t, e.x, e.ann[1])} }, ".+..."},
		"and keep more than that": {1, func(e env) []string {
			return []string{id(e.t, e.x, e.ann[1]), id(e.t, e.x, e.ann[0]), id(e.t, e.x, e.ann[3])}
		}, "++.+."},
		"and keep one twice":             {2, func(e env) []string { i := id(e.t, e.x, e.ann[0]); return []string{i, i} }, "+...+"},
		"and keep somebody else's":       {2, func(e env) []string { return []string{id(e.t, e.x, e.bob[0]), id(e.t, e.x, e.bob[1])} }, "...++"},
		"and keep what does not exist":   {2, func(e env) []string { return []string{"", "nonsense", e.x.plain.newID()} }, "...++"},
		"none, and keep nothing of hers": {0, func(e env) []string { return []string{id(e.t, e.x, e.bob[0])} }, "....."},
	} {
		t.Run(name, func(t *testing.T) {
			onStores(t, func(t *testing.T, x trial) {
				e := env{t, x, x.logins(t, "ann", 5), x.logins(t, "bob", 2)}
				var keep []string
				if c.keep != nil {
					keep = c.keep(e)
				}
				running, r := load(t, x.over, e.ann[2])
				ended, err := x.over.(limiter).Limit(t.Context(), "ann", c.n, keep...)
				must(t, err)
				equal(t, "ended", ended, strings.Count(c.lives, "."))
				lives := ""
				for _, b := range e.ann {
					lives += map[bool]string{true: "+", false: "."}[b.user(t, x.plain) == "ann"]
				}
				equal(t, "left", lives, c.lives)
				equal(t, "listed", len(listed(t, x.plain, "ann")), strings.Count(c.lives, "+"))
				equal(t, "bob's", len(listed(t, x.plain, "bob")), 2)
				w := httptest.NewRecorder()
				if err := running.Save(r, w); c.lives[2] == '.' {
					wantErr(t, err, ErrGone)
					equal(t, "Set-Cookie of one that was ended", w.Header().Get("Set-Cookie"), "")
				} else {
					must(t, err)
				}
				again, err := x.over.(limiter).Limit(t.Context(), "ann", c.n, keep...)
				must(t, err)
				equal(t, "ended by a second call", again, 0)
			})
		})
	}
}

// TestLimitCountsWhatItCannotRead counts a session that cannot be decoded, and takes one
// whose ID does not say when it was made for the oldest.
func TestLimitCountsWhatItCannotRead(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		all := x.logins(t, "ann", 4)
		must(t, x.srv.admin.Set(t.Context(), x.plain.key(idOf(t, x.plain, all[1])), "nonsense", time.Hour).Err())
		foreign := record{"OTHERSTORESID", "ann", []byte("nonsense"), time.Hour}
		must(t, x.plain.records().create(t.Context(), foreign))
		for left := 4; left >= 2; left-- {
			ended, err := x.over.(limiter).Limit(t.Context(), "ann", left)
			must(t, err)
			equal(t, "ended", ended, 1)
			equal(t, "the foreign one lives", x.srv.admin.Exists(t.Context(), x.plain.key(foreign.id)).Val(), 0)
		}
		equal(t, "the unreadable one lives", x.srv.admin.Exists(t.Context(), x.plain.key(idOf(t, x.plain, all[1]))).Val(), 0)
		equal(t, "users", all[2].user(t, x.plain)+all[3].user(t, x.plain), "annann")
	})
}

func TestLimitRefusesNonsense(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		all := x.logins(t, "ann", 3)
		x.rec.take()
		for _, n := range []int{-1, math.MinInt} {
			ended, err := x.over.(limiter).Limit(t.Context(), "ann", n)
			wantText(t, err, "redistore: limit: ")
			equal(t, "ended", ended, 0)
		}
		equal(t, "commands", x.rec.take(), "")
		for _, owner := range []string{"", "nobody"} {
			ended, err := x.over.(limiter).Limit(t.Context(), owner, 0)
			must(t, err)
			equal(t, "ended", ended, 0)
		}
		for _, at := range []string{"zrange", "get", "del"} {
			x.rec.failing(func(name string) error {
				if strings.HasPrefix(strings.Trim(name, "[]"), at) {
					return redisError("ERR failing")
				}
				return nil
			})
			ended, err := x.over.(limiter).Limit(t.Context(), "ann", 1)
			wantText(t, err, "redistore: limit: ")
			equal(t, "ended", ended, 0)
			x.rec.failing(nil)
		}
		for _, b := range all {
			equal(t, "user", b.user(t, x.plain), "ann")
		}
	})
}

// TestSessionsAreLoadedAsTheLoopGoesOn shows that memory does not grow with their number:
// not for Sessions, Limit or Revoke.
func TestSessionsAreLoadedAsTheLoopGoesOn(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		const n = 3*batch + 1
		x.logins(t, "ann", n)
		x.rec.take()
		seen := 0
		for _, err := range x.plain.Sessions(t.Context(), "ann") {
			must(t, err)
			seen++
			if got, want := strings.Count(x.rec.take(), "["), 0; seen%batch != 1 && got != want {
				t.Errorf("session %d: %d pipelines", seen, got)
			}
			if seen == 2*batch {
				break
			}
		}
		equal(t, "commands after the loop", x.rec.take(), "")
		equal(t, "seen", seen, 2*batch)
		ended, err := x.over.(limiter).Limit(t.Context(), "ann", 2)
		must(t, err)
		equal(t, "ended", ended, n-2)
		commands := x.rec.take()
		equal(t, "batches that were ended", strings.Count(commands, "del"), 3)
		for _, pipeline := range strings.Split(commands, "]") {
			if n := len(strings.Fields(pipeline)); n > batch+3 {
				t.Errorf("a batch of %d commands", n)
			}
		}
		equal(t, "listed", len(listed(t, x.plain, "ann")), 2)
	})
}

// TestRevokeSaysThatItHasToBeRepeated has the session be renewed each time that Revoke is
// about to end it.
func TestRevokeSaysThatItHasToBeRepeated(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		x := newTrial(t, srv, false)
		b := loginAs(t, store, "ann")
		renewals := 0
		rec.failing(func(name string) error {
			if strings.Contains(name, "del") {
				renewals++
				x.renew(t, b)
			}
			return nil
		})
		ended, err := store.Revoke(t.Context(), "ann")
		wantText(t, err, "redistore: revoke: ")
		wantText(t, err, "repeat")
		equal(t, "ended", ended, 0)
		equal(t, "renewals", renewals, maxRounds)
		equal(t, "user", b.user(t, x.plain), "ann")
		rec.failing(nil)
		ended, err = store.Revoke(t.Context(), "ann")
		must(t, err)
		equal(t, "ended", ended, 1)
		equal(t, "user", b.user(t, x.plain), "")
	})
}

// TestALockingStoreWithoutAStoreIsAnError and no panic, in every call.
func TestALockingStoreWithoutAStoreIsAnError(t *testing.T) {
	for name, store := range map[string]*LockingStore{
		"LockingStore{}":       {},
		"NewLockingStore(nil)": NewLockingStore(nil),
	} {
		r, w := browser{"s": "x"}.request(t), httptest.NewRecorder()
		session := sessions.NewSession(store, "s")
		listed := 0
		for what, call := range map[string]func() error{
			"Get":    func() error { _, err := store.Get(r, "s"); return err },
			"New":    func() error { _, err := store.New(r, "s"); return err },
			"Save":   func() error { return store.Save(r, w, session) },
			"Renew":  func() error { return store.Renew(r, w, session) },
			"Touch":  func() error { return store.Touch(r, w, session) },
			"Ping":   func() error { return store.Ping(t.Context()) },
			"Revoke": func() error { _, err := store.Revoke(t.Context(), "ann"); return err },
			"Limit":  func() error { _, err := store.Limit(t.Context(), "ann", 1); return err },
			"Update": func() error {
				return store.Update(r, w, "s", func(*sessions.Session) error { t.Error("fn was called"); return nil })
			},
			"Sessions": func() (all error) {
				for _, err := range store.Sessions(t.Context(), "ann") {
					listed++
					all = err
				}
				return all
			},
		} {
			if err := call(); err == nil || !strings.HasPrefix(err.Error(), "redistore: no ") {
				t.Errorf("%s.%s: error %v", name, what, err)
			}
		}
		store.MaxAge(60)
		equal(t, name+": errors of Sessions", listed, 1)
		equal(t, name+": Set-Cookie", w.Header().Get("Set-Cookie"), "")
	}
	var none *Store
	for _, call := range []func() error{
		func() error { _, err := none.Limit(t.Context(), "ann", 1); return err },
		func() error { _, err := (&Store{}).Limit(t.Context(), "ann", 1); return err },
	} {
		wantText(t, call(), "redistore: no Redis client")
	}
}

// TestALockingStoreThatIsNilIsAnError: it was declared and never made.
func TestALockingStoreThatIsNilIsAnError(t *testing.T) {
	var store *LockingStore
	r, w := browser{"s": "x"}.request(t), httptest.NewRecorder()
	session, err := store.Get(r, "s")
	wantText(t, err, "redistore: no Store")
	_, err = store.New(r, "s")
	wantText(t, err, "redistore: no Store")
	for _, write := range []writeFunc{store.Save, store.Renew, store.Touch} {
		wantText(t, write(r, w, session), "redistore: no Store")
	}
	wantText(t, store.Update(r, w, "s", nil), "redistore: no Store")
}

// TestLimitOutlivesTheClient: who hangs up after the login does not keep one device more.
func TestLimitOutlivesTheClient(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		x.logins(t, "ann", 3)
		ctx, hangUp := context.WithCancel(t.Context())
		hangUp()
		ended, err := x.over.(limiter).Limit(ctx, "ann", 1)
		must(t, err)
		equal(t, "ended", ended, 2)
	})
}
