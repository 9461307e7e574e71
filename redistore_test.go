package redistore

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

var _ sessions.Store = (*Store)(nil)

// dropIn is what handlers written for CookieStore rely on.
var dropIn = map[string]func(t *testing.T, store sessions.Store, maxAge func(int)){
	"values come back with their types": func(t *testing.T, store sessions.Store, _ func(int)) {
		b := browser{}
		want := map[any]any{"s": "text", "n": 42, 7: "int key", "f": 1.5, "b": []byte{0, 255}, "t": true}
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			if !s.IsNew {
				t.Error("the first visit is not new")
			}
			maps.Copy(s.Values, want)
			must(t, s.Save(r, w))
			if !s.IsNew {
				t.Error("Save changed IsNew")
			}
		})
		b.visit(t, store, func(_ *http.Request, _ http.ResponseWriter, s *sessions.Session) {
			equal(t, "IsNew", s.IsNew, false)
			equal(t, "Values", fmt.Sprint(s.Values), fmt.Sprint(want))
		})
	},
	"flashes are read once": func(t *testing.T, store sessions.Store, _ func(int)) {
		b := browser{}
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.AddFlash("one")
			s.AddFlash(2)
			s.AddFlash("other", "key")
			must(t, s.Save(r, w))
		})
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			equal(t, "flashes", fmt.Sprint(s.Flashes()), "[one 2]")
			equal(t, "flashes of key", fmt.Sprint(s.Flashes("key")), "[other]")
			must(t, s.Save(r, w))
		})
		b.visit(t, store, func(_ *http.Request, _ http.ResponseWriter, s *sessions.Session) {
			equal(t, "flashes left", len(s.Flashes())+len(s.Flashes("key")), 0)
		})
	},
	"sessions.Save saves several sessions": func(t *testing.T, store sessions.Store, _ func(int)) {
		b := browser{}
		r, w := b.request(t), httptest.NewRecorder()
		for _, name := range []string{"a", "b"} {
			s, err := store.Get(r, name)
			must(t, err)
			s.Values["name"] = name
		}
		must(t, sessions.Save(r, w))
		b.keep(w)
		r = b.request(t)
		for _, name := range []string{"a", "b"} {
			s, err := store.Get(r, name)
			must(t, err)
			equal(t, "value", s.Values["name"], any(name))
		}
	},
	"Get caches, New loads afresh": func(t *testing.T, store sessions.Store, _ func(int)) {
		b := browser{}
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Values["n"] = 1
			must(t, s.Save(r, w))
		})
		b.visit(t, store, func(r *http.Request, _ http.ResponseWriter, s *sessions.Session) {
			s.Values["n"] = 2
			again, err := store.Get(r, "s")
			must(t, err)
			if again != s {
				t.Error("the second Get returned another session")
			}
			fresh, err := store.New(r, "s")
			must(t, err)
			if fresh == s || fresh.Values["n"] != 1 || fresh.IsNew {
				t.Errorf("New returned %+v", fresh)
			}
		})
	},
	"Name and Store": func(t *testing.T, store sessions.Store, _ func(int)) {
		browser{}.visit(t, store, func(r *http.Request, _ http.ResponseWriter, s *sessions.Session) {
			equal(t, "Name", s.Name(), "s")
			equal(t, "Store", s.Store(), store)
			s, err := store.New(r, "other")
			must(t, err)
			equal(t, "Name", s.Name(), "other")
			equal(t, "Store", s.Store(), store)
		})
	},
	"session.Options are the session's own": func(t *testing.T, store sessions.Store, _ func(int)) {
		w := browser{}.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Options.Path, s.Options.MaxAge = "/sub", 60
			must(t, s.Save(r, w))
		})
		c := w.Result().Cookies()[0]
		equal(t, "Path and MaxAge", c.Path+" "+itoa(c.MaxAge), "/sub 60")
		browser{}.visit(t, store, func(_ *http.Request, _ http.ResponseWriter, s *sessions.Session) {
			equal(t, "Path and MaxAge", s.Options.Path+" "+itoa(s.Options.MaxAge), "/ "+itoa(30*24*3600))
		})
	},
	"store.MaxAge": func(t *testing.T, store sessions.Store, maxAge func(int)) {
		maxAge(600)
		w := browser{}.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			must(t, s.Save(r, w))
		})
		c := w.Result().Cookies()[0]
		equal(t, "MaxAge", c.MaxAge, 600)
		if left := time.Until(c.Expires); left < 590*time.Second || left > 600*time.Second {
			t.Errorf("Expires in %v", left)
		}
	},
	"MaxAge 0 makes a browser-session cookie": func(t *testing.T, store sessions.Store, maxAge func(int)) {
		maxAge(0)
		b := browser{}
		w := b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Values["user"] = "ann"
			must(t, s.Save(r, w))
		})
		c := w.Result().Cookies()[0]
		if c.MaxAge != 0 || !c.Expires.IsZero() {
			t.Errorf("the cookie is %v", c)
		}
		equal(t, "user", b.user(t, store), "ann")
	},
	"MaxAge -1 deletes": func(t *testing.T, store sessions.Store, _ func(int)) {
		b := login(t, store)
		w := b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
		})
		c := w.Result().Cookies()[0]
		if c.MaxAge >= 0 || c.Expires.After(time.Unix(1, 0)) {
			t.Errorf("the cookie is %v", c)
		}
		equal(t, "user", b.user(t, store), "")
	},
	"deleting a session that never was": func(t *testing.T, store sessions.Store, _ func(int)) {
		browser{}.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
		})
	},
	"a cookie that proves nothing is an error and a usable new session": func(t *testing.T, store sessions.Store, _ func(int)) {
		b := browser{"s": "nonsense"}
		r, w := b.request(t), httptest.NewRecorder()
		s, err := store.Get(r, "s")
		var decode securecookie.Error
		if !errors.As(err, &decode) || !decode.IsDecode() {
			t.Errorf("got error %v", err)
		}
		if !s.IsNew || len(s.Values) != 0 {
			t.Errorf("the session is %+v", s)
		}
		s.Values["user"] = "ann"
		must(t, s.Save(r, w))
		b.keep(w)
		equal(t, "user", b.user(t, store), "ann")
	},
	"an invalid cookie name is an error of Get": func(t *testing.T, store sessions.Store, _ func(int)) {
		if _, err := store.Get(browser{}.request(t), "not a name"); err == nil {
			t.Error("no error")
		}
	},
	"a session can be saved twice": func(t *testing.T, store sessions.Store, _ func(int)) {
		b := login(t, store)
		for range 2 { // the first time new, then loaded
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
				for range 3 {
					n, _ := s.Values["n"].(int)
					s.Values["n"] = n + 1
					must(t, s.Save(r, w))
				}
			})
		}
		s, _, _ := b.get(t, store)
		equal(t, "n", s.Values["n"], any(6))
	},
}

func TestDropIn(t *testing.T) {
	for name, behaviour := range dropIn {
		t.Run(name, func(t *testing.T) {
			t.Run("CookieStore", func(t *testing.T) {
				store := sessions.NewCookieStore(hashKey, blockKey)
				behaviour(t, store, store.MaxAge)
			})
			onServers(t, func(t *testing.T, srv *server) {
				store := New(srv.client(t), hashKey, blockKey)
				behaviour(t, store, store.MaxAge)
			})
		})
	}
}

func TestOneCommandPerCall(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		b := login(t, store)
		equal(t, "first visit and Save", rec.take(), "set")

		s, r, w := b.get(t, store)
		equal(t, "Get", rec.take(), "get")
		_, _ = store.Get(r, "s")
		equal(t, "the second Get", rec.take(), "")
		must(t, s.Save(r, w))
		equal(t, "Save", rec.take(), "set")
		must(t, store.Touch(r, w, s))
		equal(t, "Touch", rec.take(), "expire")
		must(t, store.Renew(r, w, s))
		equal(t, "Renew", rec.take(), "eval")
		b.keep(w)

		s, r, w = b.get(t, store)
		rec.take()
		s.ID = ""
		must(t, s.Save(r, w))
		equal(t, `Save after ID = ""`, rec.take(), "evalsha")
		s.Options.MaxAge = -1
		must(t, s.Save(r, w))
		equal(t, "logout", rec.take(), "del")

		must(t, store.Renew(b.request(t), httptest.NewRecorder(), newSession(t, store)))
		equal(t, "Renew of a new session", rec.take(), "set")

		for name, c := range map[string]browser{"no cookie": {}, "a bad cookie": {"s": "nonsense"}} {
			s, _ := store.Get(c.request(t), "s")
			s.Options.MaxAge = -1
			must(t, s.Save(c.request(t), httptest.NewRecorder()))
			equal(t, "Get and logout with "+name, rec.take(), "")
		}

		store.IdleTimeout = time.Minute
		b = login(t, store)
		rec.take()
		b.get(t, store)
		equal(t, "Get with IdleTimeout", rec.take(), "getex")
		must(t, store.Ping(t.Context()))
		if got := rec.take(); strings.LastIndex(got, "[") != 0 {
			t.Errorf("Ping takes more than one round trip: %s", got)
		}
	})
}

// newSession is a session as Get returns it to somebody without a cookie.
func newSession(t *testing.T, store sessions.Store) *sessions.Session {
	t.Helper()
	s, err := store.New(browser{}.request(t), "s")
	must(t, err)
	return s
}

type writeFunc func(*http.Request, http.ResponseWriter, *sessions.Session) error

func TestMaxAgeDrivesTheExpiry(t *testing.T) {
	cases := map[string]struct {
		set  func(*Store, *sessions.Session)
		want time.Duration
	}{
		"the default":          {func(*Store, *sessions.Session) {}, 30 * 24 * time.Hour},
		"store.Options":        {func(s *Store, _ *sessions.Session) { s.Options.MaxAge = 90 }, 30 * 24 * time.Hour}, // too late for this session
		"session.Options":      {func(_ *Store, s *sessions.Session) { s.Options.MaxAge = 90 }, 90 * time.Second},
		"0":                    {func(_ *Store, s *sessions.Session) { s.Options.MaxAge = 0 }, 20 * time.Minute},
		"0 with DefaultMaxAge": {func(st *Store, s *sessions.Session) { s.Options.MaxAge, st.DefaultMaxAge = 0, 77 }, 77 * time.Second},
		"absurd":               {func(_ *Store, s *sessions.Session) { s.Options.MaxAge = math.MaxInt }, maxLifetime},
		"overflowing to zero":  {func(_ *Store, s *sessions.Session) { s.Options.MaxAge = math.MaxInt/256 + 1 }, maxLifetime},
		"absurd DefaultMaxAge": {func(st *Store, s *sessions.Session) {
			s.Options.MaxAge, st.DefaultMaxAge = 0, math.MaxInt
		}, maxLifetime},
		"no Options at all":      {func(_ *Store, s *sessions.Session) { s.Options = nil }, 30 * 24 * time.Hour},
		"IdleTimeout is shorter": {func(st *Store, _ *sessions.Session) { st.IdleTimeout = 5 * time.Minute }, 5 * time.Minute},
		"IdleTimeout is longer": {func(st *Store, s *sessions.Session) {
			s.Options.MaxAge, st.IdleTimeout = 60, 5*time.Minute
		}, time.Minute},
		"IdleTimeout under a second": {func(st *Store, _ *sessions.Session) { st.IdleTimeout = time.Nanosecond }, time.Second},
		"AbsoluteTimeout is shorter": {func(st *Store, _ *sessions.Session) { st.AbsoluteTimeout = time.Hour }, time.Hour},
		"AbsoluteTimeout is longer": {func(st *Store, s *sessions.Session) {
			s.Options.MaxAge, st.AbsoluteTimeout = 60, time.Hour
		}, time.Minute},
	}
	onServers(t, func(t *testing.T, srv *server) {
		for name, c := range cases {
			must(t, srv.admin.FlushDB(t.Context()).Err())
			store, _ := srv.store(t)
			s := newSession(t, store)
			c.set(store, s)
			for _, step := range []string{"new", "loaded", "touched", "renewed"} {
				r, w := browser{}.request(t), httptest.NewRecorder()
				switch step {
				case "new":
					must(t, store.Save(r, w, s))
					s.IsNew = false
				case "loaded", "touched": // whatever it was before
					key, _ := srv.only(t)
					must(t, srv.admin.Expire(t.Context(), key, time.Hour*24*365).Err())
					must(t, map[string]writeFunc{"loaded": store.Save, "touched": store.Touch}[step](r, w, s))
				case "renewed":
					must(t, store.Renew(r, w, s))
				}
				key, _ := srv.only(t)
				if got := srv.ttl(t, key); got > c.want || got < c.want-2*time.Second {
					t.Errorf("MaxAge %s, %s: Redis keeps it for %v, want %v", name, step, got, c.want)
				}
				if got := w.Result().Cookies()[0]; got.MaxAge > math.MaxInt32 || got.MaxAge > 0 && got.Expires.Before(time.Now()) {
					t.Errorf("MaxAge %s, %s: the cookie is %v", name, step, got)
				}
			}
		}
	})
}

func TestStoreMaxAgeIsTheDefaultOfNewSessions(t *testing.T) {
	store := New(startMini(t).client(t), hashKey)
	store.Options = nil
	equal(t, "nil Options", newSession(t, store).Options.MaxAge, 30*24*3600)
	store.MaxAge(60)
	equal(t, "MaxAge(60)", newSession(t, store).Options.MaxAge, 60)
	store.Options.MaxAge = 61
	equal(t, "Options.MaxAge = 61", newSession(t, store).Options.MaxAge, 61)
}

func TestDeletion(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		for _, maxAge := range []int{-1, math.MinInt} {
			b := login(t, store)
			s, r, w := b.get(t, store)
			s.Options.MaxAge = maxAge
			must(t, s.Save(r, w))
			equal(t, "keys", len(srv.keys(t)), 0)
		}
		for _, call := range []writeFunc{store.Renew, store.Touch} {
			b := login(t, store)
			s, r, w := b.get(t, store)
			s.Options.MaxAge = -1
			must(t, call(r, w, s))
			equal(t, "keys", len(srv.keys(t)), 0)
			b.keep(w)
			equal(t, "cookies", len(b), 0)
		}
		b := login(t, store)
		s, r, w := b.get(t, store)
		s.ID, s.Options.MaxAge = "", -1 // an old idiom, which must not leave the session behind
		must(t, s.Save(r, w))
		equal(t, "keys", len(srv.keys(t)), 0)
		rec.take()
	})
}

// TestLogoutSticks runs two requests on one session in every order that their
// steps can take, next to a model that says what each step must return.
func TestLogoutSticks(t *testing.T) {
	ops := []string{"save", "touch", "logout", "renew", "clear"} // clear: ID = "" and Save
	var programs [][]string
	for _, first := range ops {
		programs = append(programs, []string{"load", first})
		for _, second := range ops {
			programs = append(programs, []string{"load", first, second})
		}
	}
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		runs := 0
		for _, a := range programs {
			for _, b := range programs {
				if len(b) == 3 {
					continue
				}
				for _, order := range merges(len(a), len(b)) {
					runInterleaved(t, srv, store, [2][]string{a, b}, order)
					runs++
				}
			}
		}
		equal(t, "runs", runs, 5*5*6+25*5*10)
	})
}

// merges lists every order of n steps of request 0 and m steps of request 1.
func merges(n, m int) [][]int {
	if n == 0 && m == 0 {
		return [][]int{nil}
	}
	var all [][]int
	if n > 0 {
		for _, rest := range merges(n-1, m) {
			all = append(all, append([]int{0}, rest...))
		}
	}
	if m > 0 {
		for _, rest := range merges(n, m-1) {
			all = append(all, append([]int{1}, rest...))
		}
	}
	return all
}

// runInterleaved keeps, as its model, the set of IDs that are logged in.
func runInterleaved(t *testing.T, srv *server, store *Store, programs [2][]string, order []int) {
	t.Helper()
	must(t, srv.admin.FlushDB(t.Context()).Err())
	fatal := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%v in order %v: %s", programs, order, fmt.Sprintf(format, args...))
	}
	b := login(t, store)
	ids, _ := store.ids(b.request(t), "s")
	original := ids[0]
	cookies := map[string]string{original: b["s"]}
	live := map[string]bool{original: true}
	renewed := false // the original has been replaced: its cookie starts nothing

	var reqs [2]struct {
		r    *http.Request
		s    *sessions.Session
		late bool // it was loaded by the cookie of an ID that had been replaced
		next int
	}
	for _, i := range order {
		q := &reqs[i]
		op := programs[i][q.next]
		q.next++
		if op == "load" {
			q.s, q.r, _ = b.get(t, store)
			if q.s.IsNew == live[original] || (q.s.Values["user"] == "ann") != live[original] {
				fatal("loaded %+v while the session's life is %t", q.s, live[original])
			}
			q.late = q.s.IsNew && renewed
			continue
		}

		q.s.Options.MaxAge = 60
		was, call := q.s.ID, store.Save
		subject := was // the ID that this step works on
		switch op {
		case "touch":
			call = store.Touch
		case "renew":
			call = store.Renew
		case "logout":
			q.s.Options.MaxAge = -1
		case "clear":
			q.s.ID, was = "", ""
		}
		if subject == "" && !q.s.IsNew { // where the handler has cleared it before, the cookie's
			subject = original
		}
		starts := subject == "" && op != "touch" && !q.late
		w := httptest.NewRecorder()
		err := call(q.r, w, q.s)
		switch {
		case op == "logout" || starts || live[subject] && (was != "" || op != "touch"):
			if err != nil {
				fatal("%s: %v", op, err)
			}
		case !errors.Is(err, ErrGone):
			fatal("%s of a dead session: %v", op, err)
		}
		set := w.Result().Cookies()
		if (len(set) == 1) != (err == nil) {
			fatal("%s returned %v and set %v", op, err, set)
		}
		switch {
		case op == "logout":
			delete(live, subject)
		case err == nil && q.s.ID != was:
			renewed = renewed || subject == original || starts && op == "renew"
			delete(live, subject)
			live[q.s.ID], cookies[q.s.ID] = true, set[0].Value
		}
	}
	for id, cookie := range cookies {
		if s, _, _ := (browser{"s": cookie}).get(t, store); s.IsNew == live[id] {
			fatal("at the end, %s is logged in: %t; it should be: %t", id, !s.IsNew, live[id])
		}
	}
	equal(t, "keys", len(srv.keys(t)), len(live))
}

func TestRenewRunsOnceThoughTheReplyIsLost(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		lost := &lossy{}
		store := New(srv.client(t, lost.options), hashKey)

		b := login(t, store)
		s, r, w := b.get(t, store)
		must(t, store.Renew(r, w, s)) // opens the connection
		b.keep(w)
		s, r, w = b.get(t, store)
		was := b["s"]
		lost.replies.Store(1)
		must(t, store.Renew(r, w, s))
		b.keep(w)
		equal(t, "keys", len(srv.keys(t)), 1)
		equal(t, "user", b.user(t, store), "ann")
		equal(t, "user of the old ID", browser{"s": was}.user(t, store), "")
		must(t, srv.admin.FlushDB(t.Context()).Err())

		// A lost reply to anything else is repeated by the client, to the same effect.
		b = login(t, store)
		lost.replies.Store(1)
		equal(t, "user after a lost GET", b.user(t, store), "ann")
		s, r, w = b.get(t, store)
		lost.replies.Store(1)
		must(t, store.Save(r, w, s))
		lost.replies.Store(1)
		must(t, store.Touch(r, w, s))
		s.Options.MaxAge = -1
		lost.replies.Store(1)
		must(t, store.Save(r, w, s))
		equal(t, "keys", len(srv.keys(t)), 0)
		lost.replies.Store(1)
		b = login(t, store)
		equal(t, "user after a lost SET", b.user(t, store), "ann")
	})
}

func TestRenewRepeatsWhatRedisDidNotDo(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		busy := &refusing{}
		store := New(srv.client(t, busy.options), hashKey)
		b := login(t, store)
		s, r, w := b.get(t, store)
		busy.refuse("LOADING Redis is loading the dataset in memory", 1)
		must(t, store.Renew(r, w, s))
		equal(t, "left to refuse", busy.left.Load(), 0)
		b.keep(w)
		equal(t, "user", b.user(t, store), "ann")
		srv.only(t)

		s, r, w = b.get(t, store)
		was := s.ID
		busy.refuse("READONLY You can't write against a read only replica.", 1000)
		err := store.Renew(r, w, s)
		wantText(t, err, "redistore: renew: READONLY")
		equal(t, "attempts", 1000-busy.left.Load(), maxAttempts)
		equal(t, "ID", s.ID, was)
		busy.left.Store(0)
		equal(t, "user", b.user(t, store), "ann")
	})
}

// refusing makes connections on which Redis can refuse the scripts that it is sent.
type refusing struct {
	left   atomic.Int64
	answer atomic.Value
}

func (f *refusing) refuse(answer string, times int64) {
	f.answer.Store("-" + answer + "\r\n")
	f.left.Store(times)
}

func (f *refusing) options(o *redis.Options) {
	o.MinRetryBackoff, o.MaxRetryBackoff = time.Microsecond, time.Millisecond
	dial := redis.NewDialer(o)
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return &refusingConn{c, f, ""}, err
	}
}

type refusingConn struct {
	net.Conn
	f       *refusing
	answers string
}

func (c *refusingConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("eval")) && c.f.left.Load() > 0 && c.f.left.Add(-1) >= 0 {
		c.answers += c.f.answer.Load().(string)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *refusingConn) Read(b []byte) (int, error) {
	if c.answers != "" {
		n := copy(b, c.answers)
		c.answers = c.answers[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// redisError is an error as Redis itself replies it.
type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

func wantText(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %q in it", err, want)
	}
}

func TestFailedReadDestroysNothing(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		// Each spoils the next Get, and returns what repairs it.
		spoil := map[string]func(key, value string){}
		for _, err := range []error{os.ErrDeadlineExceeded, syscall.ECONNRESET, redisError("LOADING Redis is loading the dataset in memory")} {
			spoil[err.Error()] = func(string, string) { rec.failOnce("get", err) }
		}
		stored := func(data string) func(string, string) {
			return func(key, _ string) { must(t, srv.admin.Set(t.Context(), key, data, time.Hour).Err()) }
		}
		spoil["empty"] = stored("")
		spoil["truncated"] = func(key, value string) { stored(value[:len(value)-3])(key, "") }
		spoil["with a tail"] = func(key, value string) { stored(value+value)(key, "") }
		spoil["of another serializer"] = stored(`{"user":"ann"}`)
		spoil["with an unknown gob type"] = stored(foreignGob(t))
		spoil["another Redis type"] = func(key, _ string) {
			must(t, srv.admin.Del(t.Context(), key).Err())
			must(t, srv.admin.RPush(t.Context(), key, "x").Err())
		}

		for name, spoil := range spoil {
			t.Run(name, func(t *testing.T) {
				must(t, srv.admin.FlushDB(t.Context()).Err())
				b := login(t, store)
				key, value := srv.only(t)
				spoil(key, value)
				before := srv.admin.Dump(t.Context(), key).Val()

				r, w := b.request(t), httptest.NewRecorder()
				s, err := store.Get(r, "s")
				wantErr(t, err, ErrNotLoaded)
				wantText(t, err, "redistore: load: ")
				if len(s.Values) != 0 || !s.IsNew || store.key(s.ID) != key {
					t.Errorf("the session is %+v", s)
				}
				rec.take()
				s.Values["user"] = "eve" // a handler that ignores the error
				wantErr(t, s.Save(r, w), ErrNotLoaded)
				wantErr(t, store.Renew(r, w, s), ErrNotLoaded)
				wantErr(t, store.Touch(r, w, s), ErrNotLoaded)
				stripped := r.Clone(r.Context()) // by a middleware
				stripped.Header.Del("Cookie")
				wantErr(t, s.Save(stripped, w), ErrNotLoaded)
				wantErr(t, s.Save(b.request(t), w), ErrNotLoaded)
				id := s.ID
				s.ID = ""
				wantErr(t, s.Save(r, w), ErrNotLoaded)
				s.ID = id
				equal(t, "commands", rec.take(), "")
				equal(t, "cookies", len(w.Result().Cookies()), 0)
				equal(t, "what is stored", srv.admin.Dump(t.Context(), key).Val(), before)

				s.Options.MaxAge = -1
				if strings.Contains(name, "gob") {
					s.ID = "" // and with the old idiom
				}
				must(t, s.Save(r, w))
				equal(t, "keys after logout", len(srv.keys(t)), 0)
				s.ID, s.Options.MaxAge = "", 60 // nothing is left that could be lost
				must(t, s.Save(r, w))
				equal(t, "keys", len(srv.keys(t)), 1)
			})
		}
	})
}

// foreignGob is a session of another program: two good values, and one of a type
// that this program has not registered.
func foreignGob(t *testing.T) string {
	t.Helper()
	type known struct{ A int }
	gob.RegisterName("redistore.known", known{})
	s := sessions.NewSession(nil, "s")
	s.Values["a"], s.Values["b"], s.Values["c"] = 1, known{1}, 2
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	return strings.ReplaceAll(string(data), "redistore.known", "redistore.alien")
}

func TestSerializersLeaveNothingHalfDone(t *testing.T) {
	good := sessions.NewSession(nil, "s")
	good.Values["user"] = "ann"
	for _, z := range []Serializer{GobSerializer{}, JSONSerializer{}} {
		data, err := z.Serialize(good)
		must(t, err)
		for n := range data {
			s := sessions.NewSession(nil, "s")
			if err := z.Deserialize(data[:n], s); err == nil || len(s.Values) != 0 {
				t.Errorf("%T, %d of %d bytes: error %v, Values %v", z, n, len(data), err, s.Values)
			}
		}
	}
}

func TestIDs(t *testing.T) {
	store := New(startMini(t).client(t), hashKey)
	store.now = func() time.Time { return time.Unix(1_800_000_000, 0) }
	shape := regexp.MustCompile(`^tro8w0\.[A-Z2-7]{52}$`)
	seen := map[string]bool{}
	for range 1000 {
		id := store.newID()
		if !shape.MatchString(id) || seen[id] {
			t.Fatalf("ID %q", id)
		}
		seen[id] = true
		equal(t, "created", created(id), store.now())
	}
	for _, id := range []string{"", "ABC", ".ABC", "!.ABC", "99999999999999999999.ABC"} {
		if !created(id).IsZero() {
			t.Errorf("%q was created at %v", id, created(id))
		}
	}
}

func TestUnknownIDsAreNeverAdopted(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		for name, lose := range map[string]func(browser){
			"expired": func(browser) { srv.forward(t, 31*24*time.Hour) },
			"logged out": func(b browser) {
				s, r, w := b.get(t, store)
				s.Options.MaxAge = -1
				must(t, s.Save(r, w))
			},
			"never saved": func(b browser) {
				value, err := securecookie.EncodeMulti("s", store.newID(), store.Codecs...)
				must(t, err)
				b["s"] = value
				must(t, srv.admin.FlushDB(t.Context()).Err())
			},
			"empty": func(b browser) {
				value, err := securecookie.EncodeMulti("s", "", store.Codecs...)
				must(t, err)
				b["s"] = value
				must(t, srv.admin.FlushDB(t.Context()).Err())
			},
		} {
			b := login(t, store)
			lose(b)
			old := b["s"]
			s, r, w := b.get(t, store)
			if !s.IsNew || s.ID != "" || len(s.Values) != 0 {
				t.Errorf("%s: the session is %+v", name, s)
			}
			s.Values["user"] = "bob"
			must(t, s.Save(r, w))
			b.keep(w)
			equal(t, name+": user", b.user(t, store), "bob")
			equal(t, name+": user of the old cookie", browser{"s": old}.user(t, store), "")
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

func TestRenewKillsTheOldID(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		for name, renew := range map[string]writeFunc{
			"Renew": store.Renew,
			`ID = ""`: func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
				s.ID = ""
				return s.Save(r, w)
			},
		} {
			must(t, srv.admin.FlushDB(t.Context()).Err())
			b := login(t, store)
			old, was := b["s"], ""
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
				was = s.ID
				s.Values["role"] = "admin"
				must(t, renew(r, w, s))
				if s.ID == was || s.ID == "" {
					t.Errorf("%s: the ID is %q", name, s.ID)
				}
				s.Values["n"] = 1 // and the session goes on
				must(t, s.Save(r, w))
			})
			equal(t, name+": user of the old cookie", browser{"s": old}.user(t, store), "")
			s, _, _ := b.get(t, store)
			equal(t, name+": Values", fmt.Sprint(s.Values), "map[n:1 role:admin user:ann]")
			key, _ := srv.only(t)
			equal(t, name+": key", key, "session_"+s.ID)
		}

		// A planted second cookie does not ride along.
		a, b := login(t, store), login(t, store)
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", "s="+a["s"]+"; s="+b["s"])
		s, err := store.Get(r, "s")
		must(t, err)
		s.ID = ""
		must(t, s.Save(r, httptest.NewRecorder()))
		equal(t, "users of the old cookies", a.user(t, store)+b.user(t, store), "")

		// Nor does its life stand for that of the session that was loaded.
		stale := a["s"]
		for _, before := range []string{"", "s=" + stale + "; "} {
			a, b := login(t, store), login(t, store)
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Cookie", before+"s="+a["s"]+"; s="+b["s"])
			s, err := store.Get(r, "s")
			must(t, err)
			equal(t, "user", s.Values["user"], any("ann"))
			out, or, ow := a.get(t, store)
			out.Options.MaxAge = -1
			must(t, out.Save(or, ow))
			s.ID = ""
			w := httptest.NewRecorder()
			wantErr(t, s.Save(r, w), ErrGone)
			equal(t, "cookies", len(w.Result().Cookies()), 0)
		}
	})
}

func TestCookiesThatProveNothing(t *testing.T) {
	store, rec := startMini(t).store(t)
	good := login(t, store)["s"]
	foreign, err := securecookie.EncodeMulti("s", "ID", securecookie.CodecsFromPairs([]byte("another key, as long as it should be"))...)
	must(t, err)
	otherName, err := securecookie.EncodeMulti("other", "ID", store.Codecs...)
	must(t, err)
	notAnID, err := securecookie.EncodeMulti("s", map[any]any{"user": "eve"}, store.Codecs...)
	must(t, err)
	for name, value := range map[string]string{
		"tampered with":                       "A" + good[1:],
		"truncated":                           good[:len(good)-1],
		"100 KB":                              strings.Repeat("A", 100_000),
		"of an unknown key":                   foreign,
		"of another session name":             otherName,
		"of something that is not an ID":      notAnID,
		"the raw ID":                          "tro8w0.AAAA",
		"base64 of nothing":                   "====",
		"with characters that are not base64": "%%",
	} {
		rec.take()
		b := browser{"s": value}
		r, w := b.request(t), httptest.NewRecorder()
		s, err := store.Get(r, "s")
		var decode securecookie.Error
		if !errors.As(err, &decode) || errors.Is(err, ErrNotLoaded) {
			t.Errorf("%s: error %v", name, err)
		}
		if _, want := sessions.NewCookieStore(hashKey).Get(b.request(t), "s"); want != nil {
			equal(t, name+": error beside CookieStore's", err.Error(), want.Error())
		}
		s.Values["user"] = "bob"
		must(t, s.Save(r, w))
		b.keep(w)
		equal(t, name+": user", b.user(t, store), "bob")
		equal(t, name+": commands", rec.take(), "set get")
	}
}

func TestKeyRotation(t *testing.T) {
	srv := startMini(t)
	client := srv.client(t)
	old := New(client, []byte("the old key, as long as it should be"), blockKey)
	b := login(t, old)

	rotated := New(client, hashKey, nil, []byte("the old key, as long as it should be"), blockKey)
	s, r, w := b.get(t, rotated)
	equal(t, "user", s.Values["user"], any("ann"))
	must(t, s.Save(r, w))
	b.keep(w)

	equal(t, "user, old key dropped", b.user(t, New(client, hashKey)), "ann")
	if _, err := old.Get(b.request(t), "s"); err == nil {
		t.Error("the new cookie still carries the old key's signature")
	}
}

// TestRedisIsTheOnlyClock has a cookie that was made long ago, for a session that
// is still used.
func TestRedisIsTheOnlyClock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		id := idOf(t, store, login(t, store))
		cookie := oldCookie(t, 10*365*24*time.Hour, id)
		equal(t, "user", browser{"s": cookie}.user(t, store), "ann")
		// Nor does taking over CookieStore's cookies, which have an age, change that.
		store.CookieStoreUntil = srv.now().Add(time.Hour)
		equal(t, "user", login(t, sessions.NewCookieStore(hashKey)).user(t, store), "ann")
		equal(t, "user", browser{"s": cookie}.user(t, store), "ann")
	})
}

func TestAllCookiesOfTheNameAreTried(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		ann, dead := login(t, store)["s"], login(t, store)
		dead.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
		})
		logout := login(t, store)
		s, r, w := logout.get(t, store)
		s.Options.MaxAge = -1
		must(t, s.Save(r, w))
		stale := logout["s"]

		get := func(cookies ...string) (*sessions.Session, error) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Cookie", "s="+strings.Join(cookies, "; s="))
			rec.take()
			return store.Get(r, "s")
		}
		for _, cookies := range [][]string{{ann, stale}, {stale, ann}, {"nonsense", stale, ann}, {"nonsense", ann}, append(slices.Repeat([]string{"nonsense"}, 50), ann)} {
			s, err := get(cookies...)
			if err != nil || s.Values["user"] != "ann" {
				t.Errorf("%d cookies: error %v, session %+v", len(cookies), err, s)
			}
		}
		if s, err := get(stale, "nonsense"); err == nil || !s.IsNew {
			t.Errorf("no living session: error %v, session %+v", err, s)
		}
		_, err := get(slices.Repeat([]string{stale}, 3000)...)
		must(t, err)
		equal(t, "commands for one ID 3000 times", rec.take(), "get exists")

		many := make([]string, 100)
		for i := range many {
			many[i], err = securecookie.EncodeMulti("s", store.newID(), store.Codecs...)
			must(t, err)
		}
		_, err = get(many...)
		must(t, err)
		equal(t, "commands for 100 IDs", rec.take(), strings.Repeat("get ", maxIDs)+"exists")

		// When the first that exists cannot be read, it must not be passed over: the
		// next could be somebody else's.
		rec.failOnce("get", io.ErrUnexpectedEOF)
		s, err = get(ann, login(t, store)["s"])
		wantErr(t, err, ErrNotLoaded)
		equal(t, "Values", len(s.Values), 0)
	})
}

func TestKeys(t *testing.T) {
	client := startMini(t).client(t)
	for want, keys := range map[string][][]byte{
		"no keys":                           {},
		"key 1 (authentication) is empty":   {nil},
		"key 1 (authentication) is empty: ": {{}, blockKey},
		"key 2 (encryption) has 15 bytes":   {hashKey, blockKey[:15]},
		"key 2 (encryption) has 0 bytes":    {hashKey, {}},
		"key 3 (authentication) is empty":   {hashKey, blockKey, nil},
		"key 4 (encryption) has 33 bytes":   {hashKey, nil, hashKey, make([]byte, 33)},
	} {
		wantConfigError(t, New(client, keys...), want)
	}
	for _, keys := range [][][]byte{
		{hashKey}, {hashKey, nil}, {hashKey, blockKey[:16]}, {hashKey, blockKey[:24]}, {hashKey, nil, hashKey[:16]}, {hashKey, blockKey, hashKey, nil},
	} {
		store := New(client, keys...)
		must(t, store.Ping(t.Context()))
		equal(t, "user", login(t, store).user(t, store), "ann")
	}
	for want, keys := range map[string][][]byte{ // they work, as they do in CookieStore
		"key 1 (authentication) has 15 bytes": {hashKey[:15]},
		"key 3 (authentication) has 5 bytes":  {hashKey, nil, []byte("short")},
	} {
		store := New(client, keys...)
		wantText(t, store.Ping(t.Context()), want)
		wantText(t, NewLockingStore(store).Ping(t.Context()), want)
		equal(t, "user", login(t, store).user(t, store), "ann")
		store.Codecs = securecookie.CodecsFromPairs(hashKey)
		must(t, store.Ping(t.Context()))
	}
	store := New(client)
	store.Codecs = securecookie.CodecsFromPairs(hashKey)
	equal(t, "user with Codecs of one's own", login(t, store).user(t, store), "ann")
}

// wantConfigError shows that every call reports what is wrong, and that none
// panics.
func wantConfigError(t *testing.T, store *Store, want string) {
	t.Helper()
	r, w := browser{"s": "x"}.request(t), httptest.NewRecorder()
	s, err := store.Get(r, "s")
	wantText(t, err, "redistore: ")
	wantText(t, err, want)
	wantText(t, store.Ping(t.Context()), want)
	for _, call := range []writeFunc{store.Save, store.Renew, store.Touch} {
		wantText(t, call(r, w, s), want)
	}
	_, err = store.Get(browser{}.request(t), "s")
	wantText(t, err, want)
	equal(t, "cookies", len(w.Result().Cookies()), 0)
}

func TestConfiguration(t *testing.T) {
	client := startMini(t).client(t)
	for want, change := range map[string]func(*Store){
		"a Codec is nil":               func(s *Store) { s.Codecs = []securecookie.Codec{nil} },
		"no Redis client":              func(s *Store) { *s = *New(nil, hashKey) },
		"no Redis client: ":            func(s *Store) { *s = *New((*redis.Client)(nil), hashKey) },
		"make the store with New":      func(s *Store) { *s = Store{} },
		"Serializer is nil":            func(s *Store) { s.Serializer = nil },
		"MaxLength is -1":              func(s *Store) { s.MaxLength = -1 },
		"DefaultMaxAge is 0":           func(s *Store) { s.DefaultMaxAge = 0 },
		"IdleTimeout or":               func(s *Store) { s.IdleTimeout = -1 },
		"AbsoluteTimeout is negative:": func(s *Store) { s.AbsoluteTimeout = -1 },
	} {
		store := New(client, hashKey)
		change(store)
		wantConfigError(t, store, want)
	}
}

func TestCookieAttributes(t *testing.T) {
	store := New(startMini(t).client(t), hashKey)
	set := func(o sessions.Options) (*http.Cookie, http.Header, error) {
		s, r, w := browser{}.get(t, store)
		s.Options = &o
		err := s.Save(r, w)
		if err != nil {
			return nil, w.Header(), err
		}
		return w.Result().Cookies()[0], w.Header(), nil
	}
	c, h, err := set(*newSession(t, store).Options)
	must(t, err)
	if c.Path != "/" || c.MaxAge != 30*24*3600 || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Partitioned || c.Domain != "" {
		t.Errorf("by default the cookie is %v", c)
	}
	equal(t, "Vary", fmt.Sprint(h["Vary"]), "[Cookie]")
	equal(t, "Cache-Control", fmt.Sprint(h["Cache-Control"]), `[no-cache="Set-Cookie"]`)
	c, _, err = set(sessions.Options{Path: "/app", Domain: "example.com", MaxAge: 5, Secure: true, Partitioned: true, SameSite: http.SameSiteNoneMode})
	must(t, err)
	if c.Path != "/app" || c.MaxAge != 5 || !c.Secure || c.HttpOnly || c.SameSite != http.SameSiteNoneMode || !c.Partitioned || c.Domain != "example.com" {
		t.Errorf("with Options the cookie is %v", c)
	}
	for want, o := range map[string]sessions.Options{
		"Domain":      {Domain: "not a domain"},
		"Path":        {Path: "/;"},
		"partitioned": {Partitioned: true},
	} {
		_, h, err := set(o)
		wantText(t, err, `redistore: cookie "s": http: `)
		wantText(t, err, want)
		equal(t, "Set-Cookie", h.Get("Set-Cookie"), "")
	}
}

func TestInvalidCookieNameIsAnError(t *testing.T) {
	srv := startMini(t)
	store, _ := srv.store(t)
	for _, name := range []string{"", "not a name", "a=b", "ü"} {
		s, err := store.New(browser{}.request(t), name)
		must(t, err) // as CookieStore
		w := httptest.NewRecorder()
		wantText(t, store.Save(browser{}.request(t), w, s), "redistore: cookie")
		if s.Options.MaxAge = -1; name != "" { // without a name there is no cookie to expire
			wantText(t, store.Save(browser{}.request(t), w, s), "redistore: cookie")
		}
		equal(t, "Set-Cookie", w.Header().Get("Set-Cookie"), "")
	}
	equal(t, "keys", len(srv.keys(t)), 0)
}

func TestOneSetCookiePerSession(t *testing.T) {
	store := New(startMini(t).client(t), hashKey)
	r, w := browser{}.request(t), httptest.NewRecorder()
	http.SetCookie(w, &http.Cookie{Name: "mine", Value: "1"})
	http.SetCookie(w, &http.Cookie{Name: "ss", Value: "1"})
	w.Header().Set("Vary", "Accept")
	w.Header().Set("Cache-Control", "max-age=60")
	for range 3 {
		for _, name := range []string{"s", "t"} {
			s, err := store.Get(r, name)
			must(t, err)
			must(t, s.Save(r, w))
		}
	}
	s, _ := store.Get(r, "s")
	must(t, store.Renew(r, w, s))
	s.Options.MaxAge = -1
	must(t, s.Save(r, w))
	var got []string
	for _, c := range w.Result().Cookies() {
		got = append(got, c.Name)
	}
	equal(t, "cookies", fmt.Sprint(got), "[mine ss t s]")
	equal(t, "the last one deletes", w.Result().Cookies()[3].MaxAge, -1)
	equal(t, "Vary", fmt.Sprint(w.Header()["Vary"]), "[Accept Cookie]")
	equal(t, "Cache-Control", fmt.Sprint(w.Header()["Cache-Control"]), `[max-age=60 no-cache="Set-Cookie"]`)
}

func TestSetCookieOnlyAfterTheWrite(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		b := login(t, store)
		for name, call := range map[string]writeFunc{
			"set": store.Save, "expire": store.Touch, "eval": store.Renew,
		} {
			s, r, w := b.get(t, store)
			rec.failing(func(n string) error {
				equal(t, "Set-Cookie before "+n, w.Header().Get("Set-Cookie"), "")
				if n == name {
					return redisError("OOM command not allowed when used memory > 'maxmemory'.")
				}
				return nil
			})
			wantText(t, call(r, w, s), "OOM")
			equal(t, "Set-Cookie after "+name+" failed", w.Header().Get("Set-Cookie"), "")
			rec.failing(nil)
		}
		// A new session whose Save failed can be saved again.
		s := newSession(t, store)
		rec.failOnce("set", redisError("OOM command not allowed when used memory > 'maxmemory'."))
		r, w := browser{}.request(t), httptest.NewRecorder()
		wantText(t, store.Save(r, w, s), "OOM")
		equal(t, "ID", s.ID, "")
		must(t, store.Save(r, w, s))
	})
}

func TestAReadEndsWithTheRequest(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		b := login(t, store)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := store.Get(b.request(t).WithContext(ctx), "s")
		wantErr(t, err, context.Canceled)
		wantErr(t, err, ErrNotLoaded)
	})
}

func TestAWriteOutlivesTheClient(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		b := login(t, store)
		ctx, cancel := context.WithCancel(t.Context())
		r, w := b.request(t).WithContext(ctx), httptest.NewRecorder()
		s, err := store.Get(r, "s")
		must(t, err)
		cancel() // the client hangs up
		s.Values["user"] = "bob"
		must(t, s.Save(r, w))
		equal(t, "user", b.user(t, store), "bob")
		must(t, store.Touch(r, w, s))
		must(t, store.Renew(r, w, s))
		b.keep(w)
		equal(t, "user", b.user(t, store), "bob")
		s.Options.MaxAge = -1
		must(t, s.Save(r, w))
		equal(t, "user", b.user(t, store), "")
	})
}

// TestABlackHoleDoesNotHoldARequest runs on a Redis that accepts and never answers.
func TestABlackHoleDoesNotHoldARequest(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	client := (&server{addr: l.Addr().String()}).client(t)
	store := New(client, hashKey)
	cookie, err := securecookie.EncodeMulti("s", store.newID(), store.Codecs...)
	must(t, err)
	b := browser{"s": cookie}
	loaded := func() *sessions.Session {
		s := newSession(t, store)
		s.ID, s.IsNew = store.newID(), false
		return s
	}
	w := httptest.NewRecorder()
	var wg sync.WaitGroup
	for name, call := range map[string]func() error{
		"Get":    func() error { _, err := store.Get(b.request(t), "s"); return err },
		"Save":   func() error { return store.Save(b.request(t), httptest.NewRecorder(), loaded()) },
		"create": func() error { return store.Save(b.request(t), httptest.NewRecorder(), newSession(t, store)) },
		"Renew":  func() error { return store.Renew(b.request(t), httptest.NewRecorder(), loaded()) },
		"Touch":  func() error { return store.Touch(b.request(t), httptest.NewRecorder(), loaded()) },
		"Ping":   func() error { return store.Ping(t.Context()) },
		"logout": func() error { s := loaded(); s.Options.MaxAge = -1; return store.Save(b.request(t), w, s) },
		"logout of three cookies": func() error {
			r := b.request(t)
			for range 2 {
				cookie, err := securecookie.EncodeMulti("s", store.newID(), store.Codecs...)
				must(t, err)
				r.AddCookie(&http.Cookie{Name: "s", Value: cookie})
			}
			s := loaded()
			s.ID, s.Options.MaxAge = "", -1
			return store.Save(r, httptest.NewRecorder(), s)
		},
	} {
		wg.Go(func() {
			start := time.Now()
			var timedOut net.Error // the context's deadline, or that of the connection, which is the same
			if err := call(); !errors.As(err, &timedOut) || !timedOut.Timeout() {
				t.Errorf("%s returned %v", name, err)
			}
			if took := time.Since(start); took > timeout+3*time.Second {
				t.Errorf("%s took %v, the bound is %v", name, took, timeout)
			}
		})
	}
	wg.Wait()
	if c := w.Result().Cookies(); len(c) != 1 || c[0].MaxAge != -1 {
		t.Errorf("logout set %v", c)
	}
}

// TestManyCookiesHaveOneBound looks several IDs up, each of which takes its time.
func TestManyCookiesHaveOneBound(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	store.Wait = time.Hour
	for name, b := range map[string]backend{"Store": store.Store, "LockingStore": store} {
		slow := &slowBackend{backend: b}
		_, err := (&call{by: slow, r: browser{}.request(t), session: newSession(t, store.Store)}).find([]string{"1", "2", "3"})
		must(t, err)
		equal(t, name+": IDs", len(slow.until), 3)
		equal(t, name+": bounds", len(slices.Compact(slow.until)), 1)
		if left := time.Until(slow.until[0]); left > b.bound() || left < b.bound()-3*time.Second {
			t.Errorf("%s: the bound is in %v, want %v", name, left, b.bound())
		}
	}

	b := login(t, store)
	load(t, store, b) // and holds it
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := NewLockingStore(store.Store).New(b.request(t).WithContext(ctx), "s"); err == nil {
		t.Error("it waited for the lock for longer than it may")
	}
}

// slowBackend finds nothing, and notes until when it may look.
type slowBackend struct {
	backend
	until []time.Time
}

func (s *slowBackend) read(_ *call, _ string, _ time.Duration, until time.Time) ([]byte, error) {
	s.until = append(s.until, until)
	return nil, redis.Nil
}

// TestLogoutEndsWhatCouldNotBeLoaded has the look-up of a stale cookie's ID fail, so that
// the one behind it was not looked up.
func TestLogoutEndsWhatCouldNotBeLoaded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		stale, live := login(t, store), login(t, store)
		must(t, srv.admin.Del(t.Context(), store.key(idOf(t, store, stale))).Err())
		r := stale.request(t)
		r.AddCookie(&http.Cookie{Name: "s", Value: live["s"]})
		rec.failOnce("get", io.ErrUnexpectedEOF)
		s, err := store.Get(r, "s")
		wantErr(t, err, ErrNotLoaded)
		s.Options.MaxAge = -1
		rec.take()
		must(t, s.Save(r, httptest.NewRecorder()))
		equal(t, "user", live.user(t, store), "")

		// Where only the stale one's server is down, the other's does its work.
		live = login(t, store)
		r = stale.request(t)
		r.AddCookie(&http.Cookie{Name: "s", Value: live["s"]})
		ring := srv.ring(t)
		down := &down{key: store.key(idOf(t, store, stale))}
		ring.AddHook(down)
		onRing := New(ring, hashKey)
		s, err = onRing.Get(r, "s")
		wantErr(t, err, ErrNotLoaded)
		s.Options.MaxAge = -1
		wantErr(t, s.Save(r, httptest.NewRecorder()), io.ErrUnexpectedEOF)
		equal(t, "user", live.user(t, store), "")
	})
}

// down is a hook: the server of a key is unreachable.
type down struct{ key string }

func (d *down) hits(cmd redis.Cmder) bool { return slices.Contains(cmd.Args(), any(d.key)) }

func (d *down) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *down) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if d.hits(cmd) {
			cmd.SetErr(io.ErrUnexpectedEOF)
			return io.ErrUnexpectedEOF
		}
		return next(ctx, cmd)
	}
}

func (d *down) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) (err error) {
		up := slices.DeleteFunc(slices.Clone(cmds), d.hits)
		for _, cmd := range cmds {
			if d.hits(cmd) {
				err = io.ErrUnexpectedEOF
				cmd.SetErr(err)
			}
		}
		return errors.Join(err, next(ctx, up))
	}
}

func TestRedisDown(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store := New(srv.client(t, func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 }), hashKey)
	b := login(t, store)
	srv.process.Kill()

	s, err := store.Get(b.request(t), "s")
	wantErr(t, err, ErrNotLoaded)
	wantText(t, err, "redistore: load: ")
	equal(t, "IsNew", s.IsNew, true)
	wantText(t, store.Ping(t.Context()), "redistore: ping: ")
	wantText(t, store.Save(browser{}.request(t), httptest.NewRecorder(), newSession(t, store)), "redistore: save: ")
	w := httptest.NewRecorder()
	s.Options.MaxAge = -1
	wantText(t, store.Save(b.request(t), w, s), "redistore: delete: ")
	if c := w.Result().Cookies(); len(c) != 1 || c[0].MaxAge != -1 {
		t.Errorf("logout set %v", c)
	}

	must(t, srv.process.Restart())
	must(t, store.Ping(t.Context()))
	equal(t, "user, after the same store has recovered", login(t, store).user(t, store), "ann")
}

// TestNotDecoded tells a value that nobody can decode from one that could not be had.
func TestNotDecoded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		b := login(t, store)
		rec.failOnce("get", errors.New("no network"))
		_, err := store.Get(b.request(t), "s")
		wantErr(t, err, ErrNotLoaded)
		equal(t, "not decoded, no network", errors.Is(err, ErrNotDecoded), false)

		key, _ := srv.only(t)
		must(t, srv.admin.Set(t.Context(), key, "not a gob", time.Hour).Err())
		_, err = store.Get(b.request(t), "s")
		wantErr(t, err, ErrNotLoaded)
		wantErr(t, err, ErrNotDecoded)
	})
}

// TestGoneAfterALostReply loses the reply to a Save that was done, and ends the session
// before the client repeats it: nothing is stored, and Save says that it has ended.
func TestGoneAfterALostReply(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		l := &lossy{}
		again := func() {}
		store := New(srv.client(t, l.options, func(o *redis.Options) {
			dial := o.Dialer
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				again()
				return dial(ctx, network, addr)
			}
		}), hashKey)
		b := login(t, store)
		s, r, _ := b.get(t, store)
		key, before := srv.only(t)
		s.Values["n"] = 1
		again = func() {
			if _, value := srv.only(t); value == before {
				t.Error("the first attempt has stored nothing: this shows nothing")
			}
			must(t, srv.admin.Del(t.Context(), key).Err())
		}
		l.replies.Store(1)
		w := httptest.NewRecorder()
		wantErr(t, s.Save(r, w), ErrGone)
		equal(t, "cookies", len(w.Result().Cookies()), 0)
		equal(t, "keys", len(srv.keys(t)), 0)
	})
}

func TestErrorsSayWhichStepFailed(t *testing.T) {
	t.Run("NOAUTH", func(t *testing.T) {
		t.Parallel()
		srv := startRedis(t, "--requirepass", "secret")
		store := New(srv.client(t, func(o *redis.Options) { o.Username, o.Password = "", "" }), hashKey)
		wantText(t, store.Save(browser{}.request(t), httptest.NewRecorder(), newSession(t, store)), "redistore: save: NOAUTH")
	})
	t.Run("READONLY", func(t *testing.T) {
		t.Parallel()
		srv := startRedis(t)
		store := New(srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 }), hashKey)
		b := login(t, store)
		s, r, w := b.get(t, store)
		must(t, srv.admin.Do(t.Context(), "REPLICAOF", "127.0.0.1", "1").Err())
		must(t, srv.admin.ConfigSet(t.Context(), "replica-read-only", "yes").Err())
		wantText(t, s.Save(r, w), "redistore: save: READONLY")
		wantText(t, store.Touch(r, w, s), "redistore: touch: READONLY")
		wantText(t, store.Renew(r, w, s), "redistore: renew: READONLY")
		s.Options.MaxAge = -1
		wantText(t, s.Save(r, w), "redistore: delete: READONLY")
	})
	t.Run("OOM", func(t *testing.T) {
		t.Parallel()
		srv := startRedis(t)
		store := New(srv.client(t), hashKey)
		b := login(t, store)
		s, r, w := b.get(t, store)
		must(t, srv.admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
		wantText(t, s.Save(r, w), "redistore: save: OOM")
		wantText(t, store.Renew(r, w, s), "redistore: renew: OOM")
		SetOwner(s, "ann")
		wantText(t, s.Save(r, w), "redistore: save: OOM") // not just EXECABORT
		equal(t, "user", b.user(t, store), "ann")
		s.Options.MaxAge = -1
		must(t, s.Save(r, w)) // DEL needs no memory, nor what goes with it
		must(t, srv.admin.ConfigSet(t.Context(), "maxmemory", "0").Err())
		locking := NewLockingStore(store)
		s, r, w = login(t, store).get(t, locking)
		SetOwner(s, "ann")
		must(t, s.Save(r, w))
		must(t, srv.admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
		s.Options.MaxAge = -1
		must(t, s.Save(r, w))
	})
	t.Run("LOADING", func(t *testing.T) {
		t.Parallel()
		store, rec := startMini(t).store(t)
		s, r, w := login(t, store).get(t, store)
		rec.failing(func(string) error { return redisError("LOADING Redis is loading the dataset in memory") })
		wantText(t, s.Save(r, w), "redistore: save: LOADING")
		wantText(t, store.Touch(r, w, s), "redistore: touch: LOADING")
		wantText(t, store.Renew(r, w, s), "redistore: renew: LOADING")
	})
}

func TestIdleTimeout(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		store.IdleTimeout = 10 * time.Minute
		read, unread := login(t, store), login(t, store)
		for range 3 {
			srv.forward(t, 6*time.Minute)
			equal(t, "user of the session that is read", read.user(t, store), "ann")
		}
		equal(t, "user of the one that is not", unread.user(t, store), "")
		srv.forward(t, 11*time.Minute)
		equal(t, "user, idle for longer", read.user(t, store), "")
	})
}

func TestAbsoluteTimeout(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		store.AbsoluteTimeout, store.IdleTimeout = time.Hour, 40*time.Minute
		b := login(t, store)
		for range 2 {
			srv.forward(t, 25*time.Minute)
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
				equal(t, "user", s.Values["user"], any("ann"))
				must(t, s.Save(r, w))
				must(t, store.Touch(r, w, s))
			})
			key, _ := srv.only(t)
			if ttl := srv.ttl(t, key); ttl > store.AbsoluteTimeout-time.Duration(srv.ahead.Load())+time.Second {
				t.Errorf("Redis keeps the session for %v", ttl)
			}
		}
		s, r, w := b.get(t, store) // a request that takes long
		renewed := login(t, store)
		srv.forward(t, 11*time.Minute)
		equal(t, "user, read all the time", b.user(t, store), "")
		wantErr(t, s.Save(r, w), ErrGone)
		wantErr(t, store.Touch(r, w, s), ErrGone)
		equal(t, "user of a younger session", renewed.user(t, store), "ann")

		// Renew starts the clock anew.
		renewed.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { must(t, store.Renew(r, w, s)) })
		srv.forward(t, 35*time.Minute)
		equal(t, "user after Renew", renewed.user(t, store), "ann")
		srv.forward(t, 24*time.Minute)
		equal(t, "user after Renew", renewed.user(t, store), "ann")
		srv.forward(t, 2*time.Minute)
		equal(t, "user an hour after Renew", renewed.user(t, store), "")

		// An ID without a creation time is as old as the hills.
		store.AbsoluteTimeout = 0
		must(t, srv.admin.Set(t.Context(), "session_ABC", mustGob(t, "user", "ann"), time.Hour).Err())
		value, err := securecookie.EncodeMulti("s", "ABC", store.Codecs...)
		must(t, err)
		b = browser{"s": value}
		equal(t, "user of another store's ID", b.user(t, store), "ann")
		store.AbsoluteTimeout = time.Hour
		rec.take()
		equal(t, "user of another store's ID, with AbsoluteTimeout", b.user(t, store), "")
		equal(t, "commands", rec.take(), "")
	})
}

func mustGob(t *testing.T, k, v any) []byte {
	t.Helper()
	s := sessions.NewSession(nil, "s")
	s.Values[k] = v
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	return data
}

func TestTouch(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		b := login(t, store)
		srv.forward(t, 29*24*time.Hour)
		s, r, w := b.get(t, store)
		s.Values["user"] = "not sent"
		rec.take()
		must(t, store.Touch(r, w, s))
		equal(t, "commands", rec.take(), "expire")
		equal(t, "MaxAge of the cookie", w.Result().Cookies()[0].MaxAge, 30*24*3600)
		srv.forward(t, 29*24*time.Hour)
		b.keep(w)
		equal(t, "user", b.user(t, store), "ann")

		srv.forward(t, 2*24*time.Hour)
		w = httptest.NewRecorder()
		wantErr(t, store.Touch(r, w, s), ErrGone)
		wantErr(t, store.Touch(r, w, newSession(t, store)), ErrGone)
		equal(t, "cookies", len(w.Result().Cookies()), 0)
		equal(t, "keys", len(srv.keys(t)), 0)
	})
}

func TestSize(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		b := login(t, store)
		_, before := srv.only(t)
		s, r, w := b.get(t, store)
		s.Values["big"] = strings.Repeat("x", 1<<20)
		for _, save := range []writeFunc{store.Save, store.Renew} {
			err := save(r, w, s)
			wantErr(t, err, ErrTooLarge)
			wantText(t, err, itoa(1<<20))
			wantText(t, err, "10486") // 1 MiB and what else is in it
		}
		_, after := srv.only(t)
		equal(t, "what is stored", after, before)
		equal(t, "cookies", len(w.Result().Cookies()), 0)

		store.MaxLength = 0
		s.Values["big"] = strings.Repeat("x", 5_000_000)
		must(t, s.Save(r, w))
		s, _, _ = b.get(t, store)
		equal(t, "bytes", len(s.Values["big"].(string)), 5_000_000)
	})
}

func TestKeyPrefixKeepsApplicationsApart(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		one, _ := srv.store(t)
		two, _ := srv.store(t)
		two.KeyPrefix += "two:"
		b := login(t, one)
		equal(t, "user in the other application", b.user(t, two), "")
		s, _, _ := b.get(t, one)
		key, _ := srv.only(t)
		equal(t, "key", key, "session_"+s.ID)
	})
}

func TestManyGoroutinesShareAStore(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		shared := login(t, store)
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				b := browser{}
				for n := range 10 {
					b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
						if n > 0 && s.Values["n"] != i*100+n-1 {
							t.Errorf("goroutine %d read %v", i, s.Values["n"])
						}
						s.Values["n"] = i*100 + n
						if n%3 == 2 {
							must(t, store.Renew(r, w, s))
							return
						}
						must(t, s.Save(r, w))
					})
					equal(t, "user", shared.user(t, store), "ann")
				}
				b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
					s.Options.MaxAge = -1
					must(t, s.Save(r, w))
				})
			})
		}
		wg.Wait()
		equal(t, "keys", len(srv.keys(t)), 1)
	})
}

func TestAnyClient(t *testing.T) {
	srv := startRedis(t)
	plain := srv.client(t)
	auto, err := plain.AutoPipeline()
	must(t, err)
	for name, client := range map[string]redis.UniversalClient{"AutoPipeliner": auto, "Ring": srv.ring(t)} {
		store := New(client, hashKey)
		store.KeyPrefix += name
		must(t, store.Ping(t.Context()))
		b := login(t, store)
		equal(t, name+": user", b.user(t, store), "ann")
		old := maps.Clone(b)
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			must(t, s.Save(r, w))
			must(t, store.Touch(r, w, s))
			must(t, store.Renew(r, w, s))
		})
		equal(t, name+": user", b.user(t, store), "ann")
		equal(t, name+": user of the old cookie", old.user(t, store), "")
		b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
		})
	}
	equal(t, "keys", len(srv.keys(t)), 0)
}

type profile struct{ Name string }

func init() { gob.Register(profile{}) }

// TestCookieStoresSessionsMoveIn logs in under a real sessions.CookieStore and goes
// on with this store.
func TestCookieStoresSessionsMoveIn(t *testing.T) {
	others := []byte("another key, as long as it should be")
	onServers(t, func(t *testing.T, srv *server) {
		for name, c := range map[string]struct{ before, after [][]byte }{
			"one key":           {[][]byte{hashKey}, [][]byte{hashKey}},
			"encrypted":         {[][]byte{hashKey, blockKey}, [][]byte{hashKey, blockKey}},
			"rotated":           {[][]byte{others, blockKey}, [][]byte{hashKey, nil, others, blockKey}},
			"rotated encrypted": {[][]byte{others}, [][]byte{hashKey, blockKey, others, nil}},
		} {
			cookies := sessions.NewCookieStore(c.before...)
			store := New(srv.client(t), c.after...)
			store.now = srv.now
			store.CookieStoreUntil = srv.now().Add(time.Hour)
			for _, over := range []sessions.Store{store, NewLockingStore(store)} {
				for _, first := range []string{"save", "renew", "update"} {
					must(t, srv.admin.FlushDB(t.Context()).Err())
					b := login(t, cookies)
					b.visit(t, cookies, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
						s.Values["profile"], s.Values[7] = profile{"Ann"}, []string{"a"}
						s.AddFlash("welcome")
						must(t, s.Save(r, w))
					})
					old := b["s"]
					for n := range 2 {
						r, end := b.lived(t)
						w := httptest.NewRecorder()
						s, err := over.Get(r, "s")
						must(t, err)
						equal(t, name+": Values", fmt.Sprint(s.Values), fmt.Sprint(map[any]any{"user": "ann", "profile": profile{"Ann"}, 7: []string{"a"}, "_flash": []any{"welcome"}}))
						equal(t, name+": IsNew", s.IsNew, false)
						equal(t, name+": no ID yet", s.ID == "", n == 0)
						lock, locked := over.(*LockingStore)
						switch {
						case first == "update" && locked:
							must(t, lock.Update(r, w, "s", func(*sessions.Session) error { return nil }))
						case first == "renew" && locked:
							must(t, lock.Renew(r, w, s))
						case first == "renew":
							must(t, store.Renew(r, w, s))
						default:
							must(t, s.Save(r, w))
						}
						must(t, s.Save(r, w)) // and once more
						end()
						b.keep(w)
						srv.free(t)
						equal(t, name+": keys", len(srv.keys(t)), 1)
					}
					b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
						s.Options.MaxAge = -1
						must(t, s.Save(r, w))
					})
					equal(t, name+": user after logout", b.user(t, store), "")
					b["s"] = old
					b.visit(t, over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
						s.Options.MaxAge = -1
						must(t, s.Save(r, w))
						s.Options.MaxAge = 3600
						wantErr(t, s.Save(r, w), ErrGone)
						equal(t, name+": keys after a logout without a move", len(srv.keys(t)), 0)
					})
					equal(t, name+": cookies after logout", len(b), 0)
					// A copy of a CookieStore cookie stays valid, as it was under CookieStore.
					equal(t, name+": user of a copy", browser{"s": old}.user(t, store), "ann")
				}
			}
		}
	})
}

func TestCookieStoresSessionsAreBound(t *testing.T) {
	srv := startMini(t)
	store, rec := srv.store(t)
	b := login(t, sessions.NewCookieStore(hashKey))

	_, err := store.Get(b.request(t), "s")
	var decode securecookie.Error
	if !errors.As(err, &decode) || !decode.IsDecode() {
		t.Errorf("without CookieStoreUntil: %v", err)
	}
	store.CookieStoreUntil = srv.now().Add(time.Hour)
	equal(t, "user", b.user(t, store), "ann")
	s, r, w := b.get(t, store)
	wantErr(t, store.Touch(r, w, s), ErrGone) // there is no record to extend
	s.Options.MaxAge = -1
	must(t, s.Save(r, w))
	equal(t, "MaxAge of the cookie", w.Result().Cookies()[0].MaxAge, -1)
	equal(t, "commands", rec.take(), "")

	srv.forward(t, time.Hour+time.Second)
	s, err = store.Get(b.request(t), "s")
	if err == nil || !s.IsNew || len(s.Values) > 0 {
		t.Errorf("after the date: error %v, session %+v", err, s)
	}
	store.CookieStoreUntil = srv.now().Add(time.Hour)
	store.Options.MaxAge = 1 // second, and the cookie is made to be older
	old := oldCookie(t, 2*time.Second, map[any]any{"user": "ann"})
	if _, err := store.Get(browser{"s": old}.request(t), "s"); err == nil {
		t.Error("a cookie older than MaxAge was taken over")
	}
	store.Options.MaxAge = 0
	tooOld := oldCookie(t, 31*24*time.Hour, map[any]any{"user": "ann"})
	if _, err := store.Get(browser{"s": tooOld}.request(t), "s"); err == nil {
		t.Error("with MaxAge 0, a cookie of 31 days was taken over")
	}
	store.Options.MaxAge = 3600
	equal(t, "user of a cookie younger than MaxAge", browser{"s": old}.user(t, store), "ann")
	// An Update that fails leaves it as it was.
	lock := NewLockingStore(store)
	r = browser{"s": old}.request(t)
	wantErr(t, lock.Update(r, w, "s", func(s *sessions.Session) error { clear(s.Values); return io.EOF }), io.EOF)
	s, err = lock.Get(r, "s")
	must(t, err)
	equal(t, "Values", fmt.Sprint(s.Values), "map[user:ann]")
	changed := []byte(old)
	changed[len(changed)/2] ^= 1
	if s, err := store.Get(browser{"s": string(changed)}.request(t), "s"); err == nil || !s.IsNew {
		t.Errorf("a cookie that was tampered with: error %v, session %+v", err, s)
	}

	// A living session counts before an old cookie, and a dead one does not stand in
	// its way.
	living := login(t, store)["s"]
	dead, err := securecookie.EncodeMulti("s", store.newID(), store.Codecs...)
	must(t, err)
	for _, cookies := range []string{"s=" + old + "; s=" + living, "s=" + living + "; s=" + old, "s=" + dead + "; s=" + old} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", cookies)
		s, err := store.Get(r, "s")
		must(t, err)
		equal(t, "from Redis", s.ID != "", strings.Contains(cookies, living))
		equal(t, "user", s.Values["user"], any("ann"))
		must(t, s.Save(r, httptest.NewRecorder()))
	}
}

// oldCookie is one as securecookie made it some time ago.
func oldCookie(t *testing.T, age time.Duration, value any) string {
	t.Helper()
	var b bytes.Buffer
	must(t, gob.NewEncoder(&b).Encode(value))
	signed := fmt.Sprintf("s|%d|%s|", time.Now().Add(-age).Unix(), base64.URLEncoding.EncodeToString(b.Bytes()))
	mac := hmac.New(sha256.New, hashKey)
	mac.Write([]byte(signed[:len(signed)-1]))
	return base64.URLEncoding.EncodeToString(append([]byte(signed[len("s|"):]), mac.Sum(nil)...))
}

func FuzzCookie(f *testing.F) {
	store := New(startMini(f).client(f), hashKey, blockKey)
	good, err := securecookie.EncodeMulti("s", store.newID(), store.Codecs...)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("s=" + good)
	f.Add("s=" + good + "; s=x")
	f.Add("s=")
	f.Add("")
	f.Fuzz(func(t *testing.T, cookie string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", cookie)
		s, err := store.Get(r, "s")
		if errors.Is(err, ErrNotLoaded) {
			t.Fatal(err)
		}
		if !s.IsNew || s.ID != "" || len(s.Values) != 0 {
			t.Errorf("%q gave %+v", cookie, s)
		}
	})
}

// TestCookiesAreSecurecookies shows that what reads and writes IDs without encoding/gob
// changes nothing in them.
func TestCookiesAreSecurecookies(t *testing.T) {
	ours, theirs := newCodecs([][]byte{hashKey}), securecookie.CodecsFromPairs(hashKey)
	for _, c := range [][2][]securecookie.Codec{{ours, theirs}, {theirs, ours}} {
		for _, id := range []string{"", "id", strings.Repeat("long", 100)} {
			value, err := securecookie.EncodeMulti("s", id, c[0]...)
			must(t, err)
			got := "before"
			must(t, securecookie.DecodeMulti("s", value, &got, c[1]...))
			equal(t, "ID", got, id)
		}
		value, err := securecookie.EncodeMulti("s", map[any]any{"user": "ann"}, c[0]...)
		must(t, err)
		var values map[any]any
		must(t, securecookie.DecodeMulti("s", value, &values, c[1]...))
		equal(t, "user", values["user"], any("ann"))
		id := "before"
		if err := securecookie.DecodeMulti("s", value, &id, c[1]...); err == nil || id != "before" {
			t.Errorf("values for an ID: %q, error %v", id, err)
		}
	}
}
