package redistore

import (
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
)

// covered shows that the owner's index lists all sessions, each for as long as it lives.
// ahead is how much of their lives has been taken from the index by forward, which moves
// expiries and not Redis' time.
func (s *server) covered(t *testing.T, what string, store *Store, owner string, ahead time.Duration) {
	t.Helper()
	index := store.records().index(owner)
	now, err := s.admin.Time(t.Context()).Result()
	must(t, err)
	for _, key := range s.keys(t) {
		if strings.Contains(key, "owner:") || strings.HasSuffix(key, ":lock") {
			continue
		}
		life := s.admin.PTTL(t.Context(), key).Val() // TTL rounds up
		score := s.admin.ZScore(t.Context(), index, strings.TrimPrefix(key, store.KeyPrefix)).Val()
		if until := now.Add(ahead + life); time.Unix(int64(score), 0).Before(until.Truncate(time.Second)) {
			t.Errorf("%s: a session lives until %v, and the index lists it until %v", what, until.Unix(), score)
		}
		if listed := s.admin.PTTL(t.Context(), index).Val(); listed < life-time.Second {
			t.Errorf("%s: a session lives for %v, and the index for %v", what, life, listed)
		}
	}
}

// steps runs a write once for each command that it sends, and lets between do something
// before that command.
func steps(t *testing.T, rec *recorder, run func(n int, between func())) {
	t.Helper()
	for n, reached := 0, true; reached; n++ {
		reached = false
		run(n, func() { reached = true })
		rec.failing(nil)
		if n == 20 {
			t.Fatal("it does not end")
		}
	}
}

// at calls do before the n-th command from now.
func (h *recorder) at(n int, do func()) {
	h.failing(func(string) error {
		if n--; n == -1 {
			do()
		}
		return nil
	})
}

// TestAnEntryOfTheIndexIsNotLoweredWhileItsSessionIsWritten has another request shorten
// the session's life before each command of a Save that lengthens it.
func TestAnEntryOfTheIndexIsNotLoweredWhileItsSessionIsWritten(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			rec := &recorder{}
			client.AddHook(rec)
			store := New(client, hashKey)
			other := New(srv.client(t), hashKey)
			for _, over := range []keeper{store, NewLockingStore(store)} {
				for how, shorten := range map[string]writeFunc{"Touch": other.Touch, "Save": other.Save} {
					for op, write := range map[string]writeFunc{"Save": over.Save, "Touch": over.Touch, "Renew": over.Renew} {
						steps(t, rec, func(n int, reached func()) {
							what := fmt.Sprintf("%s, %T, %s before command %d of %s", name, over, how, n, op)
							must(t, srv.admin.FlushDB(t.Context()).Err())
							b := loginAs(t, other, "ann")
							s, r := load(t, over, b)
							s.Options.MaxAge = 30 * 24 * 3600
							rec.at(n, func() {
								reached()
								short, r, w := b.get(t, other)
								short.Options.MaxAge = 0 // 20 minutes
								if !short.IsNew {
									must(t, shorten(r, w, short))
								}
							})
							err := write(r, httptest.NewRecorder(), s)
							if err != nil && !errors.Is(err, ErrConflict) {
								t.Errorf("%s: %v", what, err)
							}
							rec.failing(nil)
							srv.covered(t, what, other, "ann", 0)
							srv.forward(t, 25*time.Minute)
							_, err = other.Revoke(t.Context(), "ann")
							must(t, err)
							for _, key := range srv.keys(t) {
								if !strings.Contains(key, "owner:") && !strings.HasSuffix(key, ":lock") {
									t.Errorf("%s: %s has escaped from Revoke", what, key)
								}
							}
						})
					}
				}
			}
		}
	})
}

// TestTheIndexOutlivesAWriteThatWaits has a write take as long as it may.
func TestTheIndexOutlivesAWriteThatWaits(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			rec := &recorder{}
			client.AddHook(rec)
			store := New(client, hashKey)
			for _, over := range []keeper{store, NewLockingStore(store)} {
				wait := timeout
				if l, ok := over.(*LockingStore); ok {
					wait += l.Wait
				}
				for op, write := range map[string]writeFunc{"Save": over.Save, "Touch": over.Touch, "Renew": over.Renew, "login": nil} {
					steps(t, rec, func(n int, reached func()) {
						what := fmt.Sprintf("%s, %T, %v before command %d of %s", name, over, wait, n, op)
						must(t, srv.admin.FlushDB(t.Context()).Err())
						b := loginAs(t, store, "ann")
						s, r := load(t, over, b)
						if write == nil {
							must(t, srv.admin.FlushDB(t.Context()).Err())
							s, write = newSession(t, over), over.Save
							SetOwner(s, "ann")
							defer func() { write = nil }()
						}
						entries := func() (all []redis.Z) {
							return srv.admin.ZRangeWithScores(t.Context(), store.records().index("ann"), 0, -1).Val()
						}
						var then []redis.Z
						rec.at(n, func() {
							if reached(); n == 0 {
								return // nothing is written yet
							}
							srv.forward(t, wait)
							then = entries()
						})
						must(t, write(r, httptest.NewRecorder(), s))
						rec.failing(nil)
						ahead := time.Duration(0)
						if slices.ContainsFunc(entries(), func(e redis.Z) bool { return e.Member == s.ID && slices.Contains(then, e) }) {
							ahead = wait // the index had been written before
						}
						srv.covered(t, what, store, "ann", ahead)
					})
				}
			}
		}
	})
}

// TestWhereTheIndexCannotBeWrittenNothingIs on a single server.
func TestWhereTheIndexCannotBeWrittenNothingIs(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		refusals := map[string]func(*testing.T, *Store) (client *redis.Client, want string){
			"another type": func(t *testing.T, store *Store) (*redis.Client, string) {
				must(t, srv.admin.Set(t.Context(), store.records().index("ann"), "not an index", 0).Err())
				return srv.client(t), "WRONGTYPE"
			},
		}
		if srv.process != nil {
			refusals["an ACL"] = func(t *testing.T, store *Store) (*redis.Client, string) {
				must(t, srv.admin.Do(t.Context(), "ACL", "SETUSER", "web", "on", ">password", "+@all", "~session_t*", "~{session_t*").Err())
				return srv.client(t, func(o *redis.Options) { o.Username, o.Password = "web", "password" }), "NOPERM"
			}
		}
		for why, refuse := range refusals {
			for _, locked := range []bool{false, true} {
				for op, do := range map[string]func(keeper, browser, *http.Request) error{
					"Save":  func(over keeper, _ browser, r *http.Request) error { return write(over, r, over.Save) },
					"Renew": func(over keeper, _ browser, r *http.Request) error { return write(over, r, over.Renew) },
					"Touch": func(over keeper, _ browser, r *http.Request) error { return write(over, r, over.Touch) },
					"a new session": func(over keeper, _ browser, r *http.Request) error {
						return write(over, browser{}.request(t), over.Save)
					},
					"Renew of a new session": func(over keeper, _ browser, r *http.Request) error {
						return write(over, browser{}.request(t), over.Renew)
					},
				} {
					t.Run(fmt.Sprintf("%s, locked=%t, %s", why, locked, op), func(t *testing.T) {
						must(t, srv.admin.FlushDB(t.Context()).Err())
						healthy := New(srv.client(t), hashKey)
						b := login(t, healthy)
						key, _ := srv.only(t)
						must(t, srv.admin.Expire(t.Context(), key, 10*time.Minute).Err())
						client, want := refuse(t, healthy)
						store := New(client, hashKey)
						over := keeper(store)
						if locked {
							over = NewLockingStore(store)
						}
						before := srv.dump(t)
						r, end := b.lived(t)
						wantText(t, do(over, b, r), want)
						end()
						srv.free(t)
						equal(t, "what Redis holds", srv.dump(t), before)
						if ttl := srv.ttl(t, key); ttl > 10*time.Minute {
							t.Errorf("the session lives for %v", ttl)
						}
					})
				}
			}
		}
	})
}

// write loads the session "s", gives it to ann, and writes it.
func write(over keeper, r *http.Request, do writeFunc) error {
	s, err := over.Get(r, "s")
	if err != nil {
		return err
	}
	s.Values["n"] = 1
	SetOwner(s, "ann")
	w := httptest.NewRecorder()
	err = do(r, w, s)
	if w.Header().Get("Set-Cookie") != "" {
		err = fmt.Errorf("a cookie was sent with: %v", err)
	}
	return err
}

// TestReadsDoNotCarryASessionOutOfItsIndex has Redis be full, so that reads succeed and the
// index cannot be told of them. IdleTimeout lets each read prolong the session. miniredis is
// never full, and its sorted sets do not follow its time.
func TestReadsDoNotCarryASessionOutOfItsIndex(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	for _, locked := range []bool{false, true} {
		t.Run(fmt.Sprintf("locked=%t", locked), func(t *testing.T) {
			must(t, srv.admin.FlushDB(t.Context()).Err())
			x := newTrial(t, srv, locked)
			x.plain.IdleTimeout = time.Hour
			b := loginAs(t, x.plain, "ann")
			index := x.plain.records().index("ann")
			for n := range 5 {
				// Time passes, for the index' scores too.
				const step = 50 * time.Minute
				srv.forward(t, step)
				for _, e := range srv.admin.ZRangeWithScores(t.Context(), index, 0, -1).Val() {
					must(t, srv.admin.ZIncrBy(t.Context(), index, -step.Seconds(), e.Member.(string)).Err())
				}
				before := srv.dump(t)
				must(t, srv.admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
				r, end := b.lived(t)
				if s, err := x.over.Get(r, "s"); err != nil || !s.IsNew {
					wantErr(t, err, ErrNotLoaded)
					equal(t, "values", len(s.Values), 0)
					x.refuses(t, r, s, ErrNotLoaded)
				}
				end()
				srv.free(t)
				must(t, srv.admin.ConfigSet(t.Context(), "maxmemory", "0").Err())
				equal(t, "what Redis holds", srv.dump(t), before)
				srv.covered(t, fmt.Sprintf("after %d reads that failed", n+1), x.plain, "ann", 0)
			}
		})
	}
}

// TestAnOwnersSessionIsWrittenInOneStepOrTwo shows which clients need two, and that the
// entry is pending in between.
func TestAnOwnersSessionIsWrittenInOneStepOrTwo(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			store := New(client, hashKey)
			b := loginAs(t, store, "ann")
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { must(t, s.Save(r, w)) })
			rec := &recorder{}
			client.AddHook(rec)
			s, r, w := b.get(t, store)
			rec.take()
			wrote := ""
			rec.failing(func(command string) error {
				entry := srv.admin.ZScore(t.Context(), store.records().index("ann"), s.ID).Val()
				wrote += fmt.Sprintf("%s %t; ", command, entry != float64(int64(entry)))
				return nil
			})
			s.Options.MaxAge = 60 * 24 * 3600
			must(t, s.Save(r, w))
			rec.failing(nil)
			want := "evalsha true; set true; " // the login left it pending, which nobody lowers
			if name == "Client" {
				want = "evalsha false; "
			}
			equal(t, name, wrote, want)
			srv.covered(t, name, store, "ann", 0)
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestAReadDoesNotLowerAnEntryOfTheIndex that a Save has made meanwhile.
func TestAReadDoesNotLowerAnEntryOfTheIndex(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		old, _ := srv.store(t) // a server that has no IdleTimeout yet
		store, rec := srv.store(t)
		store.IdleTimeout = 10 * time.Minute
		b := loginAs(t, old, "ann")
		rec.at(1, func() {
			b.visit(t, old, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { must(t, s.Save(r, w)) })
		})
		equal(t, "user", b.user(t, store), "ann")
		rec.failing(nil)
		srv.covered(t, "Save between a Get's two commands", old, "ann", 0)
	})
}

// TestARaisedIdleTimeoutIsToldByTheNextGet: the first, which lets a session from before live
// for longer, may lose its connection before it has told the index.
func TestARaisedIdleTimeoutIsToldByTheNextGet(t *testing.T) {
	srv := startMini(t)
	before, _ := srv.store(t)
	before.IdleTimeout = 10 * time.Minute
	after, rec := srv.store(t)
	after.IdleTimeout = time.Hour
	b := browser{}
	s, r, w := b.get(t, before)
	s.Values["user"] = "ann"
	SetOwner(s, "ann")
	must(t, before.Renew(r, w, s))
	b.keep(w)
	rec.failing(func(name string) error {
		if name == "eval" {
			return io.EOF
		}
		return nil
	})
	_, err := after.Get(b.request(t), "s")
	wantErr(t, err, ErrNotLoaded)
	rec.failing(nil)
	equal(t, "user", b.user(t, after), "ann")
	srv.covered(t, "after the next Get", after, "ann", 0)
}
