package redistore

import (
	"encoding/gob"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
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

type profile struct{ Name string }

func init() { gob.Register(profile{}) }
