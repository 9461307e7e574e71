package redistore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/gob"
	"io"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
)

// What TestLikeCookieStore allows to differ, as docs/moving-in.md says it. What ends a
// sequence is that the two stores have different sessions from then on.
var movingIn = []string{
	"Two Saves in one response send one cookie, the later one.",
	"Redis has the newest values: an older copy of the cookie yields them, and so does a session that the same request loads after a Save.",
	"A logout ends the session for all copies of the cookie, and one that was loaded before cannot be saved: that is `ErrGone`.",
	"With the lock, of two copies of a session that Redis has only one can be saved in one request: the other is `ErrConflict`.",
	"With the lock, Get after Save loads the session again if another request, or another copy, has saved it.",
}

// TestLikeCookieStore does the same at random with CookieStore and with ours: what a
// handler sees and what a browser gets must be equal, but for movingIn.
func TestLikeCookieStore(t *testing.T) {
	readme, err := os.ReadFile("docs/moving-in.md")
	must(t, err)
	for _, sentence := range movingIn {
		if !strings.Contains(string(readme), sentence) {
			t.Errorf("docs/moving-in.md does not say: %s", sentence)
		}
	}
	onServers(t, func(t *testing.T, srv *server) {
		plain, _ := srv.store(t)
		for name, store := range map[string]sessions.Store{"Store": plain, "LockingStore": NewLockingStore(plain)} {
			rounds, whole, longest := 400, 0, 0
			if srv.mini == nil {
				rounds = 100
			}
			for i := range rounds {
				seed := uint64(i)
				if i%2 == 1 {
					seed = rand.Uint64()
				}
				d := newDifference(t, plain, store, seed)
				for range 4 {
					if d.request(); d.apart || t.Failed() {
						break
					}
				}
				if longest = max(longest, d.steps); !d.apart {
					whole++
				}
				if t.Failed() {
					t.Fatalf("%s, seed %d:\n%s", name, seed, strings.Join(d.did, "\n"))
				}
			}
			if whole < rounds/4 || longest < 20 {
				t.Errorf("%s: only %d of %d sequences ran to their end, the longest had %d steps", name, whole, rounds, longest)
			}
		}
	})
}

// A side is one of the two stores, and what its handler and its browser have.
type side struct {
	store sessions.Store
	r     *http.Request
	w     *httptest.ResponseRecorder
	all   []*sessions.Session // that the handler has, the same on both sides
	jar   map[string]string   // by name
}

// A difference runs one sequence on both sides.
type difference struct {
	*rand.Rand
	t           *testing.T
	codecs      []securecookie.Codec
	locked      bool
	options     sessions.Options
	theirs, our side

	latest map[string]string // theirs, by the ID of ours
	older  []string          // cookies of ours
	saved  map[int]int       // when, by the first index in all
	clock  int
	over   map[string]bool // IDs that were logged out
	id     string          // that the request's cookie proves
	wrote  bool            // and that it has saved
	apart  bool            // they have different sessions from here on, as movingIn says
	steps  int
	did    []string
}

func newDifference(t *testing.T, plain *Store, store sessions.Store, seed uint64) *difference {
	d := &difference{Rand: rand.New(rand.NewPCG(seed, 1)), t: t, codecs: plain.Codecs, latest: map[string]string{}, over: map[string]bool{}}
	_, d.locked = store.(*LockingStore)
	d.options = sessions.Options{
		Path: pick(d, "/", "/shop", ""), Domain: pick(d, "", "example.com"), MaxAge: pick(d, 0, 60, 3600),
		Secure: true, HttpOnly: pick(d, true, false), Partitioned: pick(d, true, false),
		SameSite: pick(d, http.SameSiteLaxMode, http.SameSiteStrictMode, http.SameSiteNoneMode, http.SameSiteDefaultMode),
	}
	cookies := sessions.NewCookieStore(hashKey)
	for _, options := range []**sessions.Options{&cookies.Options, &plain.Options} {
		o := d.options
		*options = &o
	}
	d.theirs = side{store: cookies, jar: map[string]string{}}
	d.our = side{store: store, jar: map[string]string{}}
	return d
}

func pick[T any](d *difference, from ...T) T { return from[d.IntN(len(from))] }

func (d *difference) note(format string, args ...any) {
	d.steps++
	d.did = append(d.did, fmt.Sprintf(format, args...))
}

// both does the same on both sides and compares what is seen.
func (d *difference) both(do func(*side) any) {
	theirs, ours := fmt.Sprint(do(&d.theirs)), fmt.Sprint(do(&d.our))
	d.did[len(d.did)-1] += " -> " + ours
	if theirs != ours {
		d.t.Errorf("CookieStore: %s\nours:        %s", theirs, ours)
	}
}

// request is one request of the browser, and all that its handler does.
func (d *difference) request() {
	ctx, end := context.WithCancel(d.t.Context())
	defer end()
	d.note("request")
	d.saved, d.clock, d.wrote = map[int]int{}, 0, false
	ours := d.our.jar["s"]
	switch n := d.IntN(10); {
	case n == 0:
		d.note("a cookie that proves nothing")
		d.begin(ctx, "nonsense", "nonsense")
	case n == 1 && len(d.older) > 0:
		ours = pick(d, d.older...)
		d.note("an older cookie")
		d.begin(ctx, d.latest[d.proven(ours)], ours)
	default:
		d.begin(ctx, d.theirs.jar["s"], ours)
	}
	for range 1 + d.IntN(9) {
		if d.step(); d.apart || d.t.Failed() {
			return
		}
	}
	d.answer()
}

func (d *difference) begin(ctx context.Context, theirs, ours string) {
	d.id = d.proven(ours)
	for s, cookie := range map[*side]string{&d.theirs: theirs, &d.our: ours} {
		s.r = httptest.NewRequestWithContext(ctx, "GET", "https://example.com/shop", nil)
		s.w, s.all = httptest.NewRecorder(), nil
		if cookie != "" {
			s.r.AddCookie(&http.Cookie{Name: "s", Value: cookie})
		}
	}
}

// proven is the ID that a cookie of ours proves.
func (d *difference) proven(cookie string) (id string) {
	_ = securecookie.DecodeMulti("s", cookie, &id, d.codecs...)
	return id
}

func seen(s *sessions.Session, err error) string {
	var values []string
	for k, v := range s.Values {
		values = append(values, fmt.Sprintf("%v=%v", k, v))
	}
	slices.Sort(values)
	return fmt.Sprintf("new %t, %v, %v, failed %t", s.IsNew, values, *s.Options, err != nil)
}

func (d *difference) step() {
	if len(d.our.all) == 0 || d.IntN(4) == 0 {
		d.load()
		return
	}
	i := d.IntN(len(d.our.all))
	switch n := d.IntN(10); {
	case n < 3:
		key, value := pick(d, "a", "b"), pick[any](d, 1, "two", true, nil)
		d.note("%d: %s = %v", i, key, value)
		d.both(func(s *side) any {
			if s.all[i].Values[key] = value; value == nil {
				delete(s.all[i].Values, key)
			}
			return ""
		})
	case n == 3:
		d.note("%d: add a flash", i)
		d.both(func(s *side) any { s.all[i].AddFlash("flash"); return "" })
	case n == 4:
		d.note("%d: flashes", i)
		d.both(func(s *side) any { return s.all[i].Flashes() })
	case n == 5:
		age := pick(d, 0, 60, 7200, -1)
		d.note("%d: MaxAge %d", i, age)
		d.both(func(s *side) any { s.all[i].Options.MaxAge = age; return "" })
	case n == 6:
		d.note("a copy of the request")
		clone := pick(d, true, false)
		d.both(func(s *side) any {
			if s.r = s.r.WithContext(s.r.Context()); clone {
				s.r = s.r.Clone(s.r.Context())
			}
			return ""
		})
	default:
		d.save(i)
	}
}

func (d *difference) load() {
	get := d.IntN(3) > 0
	d.note("load, Get %t", get)
	newer := d.wrote || d.over[d.id]
	d.both(func(s *side) any {
		load := s.store.New
		if get {
			load = s.store.Get
		}
		session, err := load(s.r, "s")
		i := slices.Index(s.all, session)
		s.all = append(s.all, session)
		if d.apart = i < 0 && newer || i >= 0 && d.locked && d.stale(i); d.apart {
			return ""
		}
		return seen(session, err)
	})
}

// stale tells whether another copy of the session was saved after this one.
func (d *difference) stale(i int) bool {
	mine := d.saved[i]
	for _, at := range d.saved {
		if at > mine {
			return true
		}
	}
	return false
}

func (d *difference) save(i int) {
	how := d.IntN(3)
	session := d.our.all[i]
	i = slices.Index(d.our.all, session)
	id := session.ID
	d.note("%d: save %d", i, how)
	save := func(s *side) error {
		session := s.all[i]
		switch how {
		case 0:
			return session.Save(s.r, s.w)
		case 1:
			return s.store.Save(s.r, s.w, session)
		}
		return session.Save(nil, s.w)
	}
	theirs, ours := save(&d.theirs), save(&d.our)
	d.did[len(d.did)-1] += fmt.Sprint(" -> ", ours)
	gone := session.Options.MaxAge >= 0 && (d.over[id] || id == "" && d.over["in "+fmt.Sprintf("%p", session)])
	switch {
	case errors.Is(ours, ErrGone) && gone, errors.Is(ours, ErrConflict) && d.locked && d.stale(i):
		d.apart = true
	case (theirs == nil) != (ours == nil):
		d.t.Errorf("CookieStore: %v\nours:        %v", theirs, ours)
	case ours == nil:
		d.clock++
		d.saved[i] = d.clock
		d.wrote = d.wrote || id != "" && id == d.id
		if session.Options.MaxAge < 0 {
			d.over[id], d.over["in "+fmt.Sprintf("%p", session)] = true, true
		}
	}
}

// answer has both browsers take the response, and compares the cookies but for their values.
func (d *difference) answer() {
	d.note("response")
	d.both(func(s *side) any {
		last := map[string]string{} // browsers take the later of two
		for _, c := range s.w.Result().Cookies() {
			value := c.Value
			if c.Value = ""; c.MaxAge < 0 {
				delete(s.jar, c.Name)
			} else {
				s.jar[c.Name] = value
			}
			c.Expires, c.RawExpires, c.Raw = c.Expires.Truncate(time.Hour), "", "" // they follow MaxAge
			last[c.Name] = fmt.Sprintf("%+v", *c)
		}
		return last
	})
	if ours := d.our.jar["s"]; ours != "" {
		d.latest[d.proven(ours)] = d.theirs.jar["s"]
		d.older = append(d.older, ours)
	}
	for id := range d.over {
		delete(d.latest, id)
	}
}

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

// TestAGoodbyeFlashDoesNotUndoALogout, if it is made as docs/moving-in.md says.
func TestAGoodbyeFlashDoesNotUndoALogout(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		x.plain.CookieStoreUntil = x.plain.now().Add(time.Hour)
		b := login(t, sessions.NewCookieStore(hashKey))
		b.visit(t, x.over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			equal(t, "user", s.Values["user"], any("ann"))
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
			bye, _ := x.over.New(r, "s")
			clear(bye.Values)
			bye.AddFlash("goodbye")
			must(t, bye.Save(r, w))
		})
		s, _, _ := b.get(t, x.over)
		equal(t, "user", s.Values["user"], nil)
		equal(t, "flashes", len(s.Flashes()), 1)
	})
}

// TestALoginWhileMovingInSurvivesItsPage, whose requests all come with CookieStore's cookie.
func TestALoginWhileMovingInSurvivesItsPage(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		x.plain.CookieStoreUntil = x.plain.now().Add(time.Hour)
		b := login(t, sessions.NewCookieStore(hashKey))
		s, r, w := b.get(t, x.over)
		other, rOther, wOther := b.get(t, x.over)
		page := browser{"s": b["s"]}
		must(t, other.Save(rOther, wOther)) // no login: both go on
		page.visit(t, x.over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Values["user"] = "bob"
			must(t, x.over.Renew(r, w, s))
		})
		wantErr(t, x.over.Save(r, w, s), ErrGone)
		equal(t, "cookies", len(w.Result().Cookies()), 0)
		equal(t, "user", page.user(t, x.over), "bob")
	})
}
