package redistore

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// A keeper is what both stores can do.
type keeper interface {
	sessions.Store
	Renew(*http.Request, http.ResponseWriter, *sessions.Session) error
	Touch(*http.Request, http.ResponseWriter, *sessions.Session) error
}

// A trial is one test on one server with one kind of store.
type trial struct {
	srv   *server
	plain *Store
	over  keeper // plain, or the lock around it
	rec   *recorder
}

// onStores runs a test on both servers and with both stores.
func onStores(t *testing.T, test func(*testing.T, trial)) {
	onServers(t, func(t *testing.T, srv *server) {
		for _, locked := range []bool{false, true} {
			must(t, srv.admin.FlushDB(t.Context()).Err())
			t.Run(fmt.Sprintf("locked=%t", locked), func(t *testing.T) { test(t, newTrial(t, srv, locked)) })
		}
	})
}

func newTrial(t *testing.T, srv *server, locked bool) trial {
	store, rec := srv.store(t)
	x := trial{srv, store, store, rec}
	if locked {
		x.over = NewLockingStore(store)
	}
	return x
}

// site is a web site whose visitors have a session before they log in.
func site(x trial) http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, change func(*sessions.Session), save writeFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s, err := x.over.Get(r, "s")
			if err == nil {
				change(s)
				err = save(r, w, s)
			}
			switch {
			case errors.Is(err, ErrGone), errors.Is(err, ErrConflict):
				http.Error(w, err.Error(), http.StatusConflict)
			case err != nil:
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	handle("/visit", func(s *sessions.Session) { s.Values["n"] = count(s) + 1 }, x.over.Save)
	handle("/login", func(s *sessions.Session) { s.Values["user"] = "ann" }, x.over.Renew)
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) {
		s, _ := x.over.Get(r, "s")
		fmt.Fprint(w, s.Values["user"])
	})
	return mux
}

// TestALoginSurvivesTheOtherRequestsOfItsPage is what a browser shows: a page logs in, and
// its other requests are under way with the cookie from before.
//
// What is not promised: a request may have saved the old session before the login and be
// answered after it. Its cookie then replaces the login's, for a browser keeps the last one.
// Those logins are only counted here.
func TestALoginSurvivesTheOtherRequestsOfItsPage(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	for _, locked := range []bool{false, true} {
		t.Run(fmt.Sprintf("locked=%t", locked), func(t *testing.T) {
			t.Parallel()
			x := newTrial(t, srv, locked)
			x.plain.Options.Secure = false
			web := httptest.NewServer(site(x))
			defer web.Close()
			const rounds = 150
			refused, overtaken := 0, 0
			for range rounds {
				p := page{t: t, site: web.URL, client: web.Client()}
				p.client.Jar, _ = cookiejar.New(nil) // fails with a bad Options only
				p.post("/visit")
				before := p.cookie()
				var login answer
				var late [5]answer
				var all sync.WaitGroup
				all.Go(func() { login = p.post("/login") })
				for i := range late {
					all.Go(func() { late[i] = p.post("/visit") })
				}
				all.Wait()
				for _, a := range late {
					if a.status != http.StatusOK {
						refused++
						equal(t, "status of a refusal", a.status, http.StatusConflict)
						equal(t, "cookies with a refusal", a.cookies, 0)
					}
				}
				switch who := p.post("/who").body; {
				case login.status != http.StatusOK || who == "ann":
				case idOf(t, x.plain, browser{"s": p.cookie()}) == idOf(t, x.plain, browser{"s": before}):
					overtaken++
				default:
					t.Fatal("a login was replaced by a session that another request of its page had begun")
				}
			}
			t.Logf("of %d logins, %d were overtaken; of %d other requests, %d were refused", rounds, overtaken, 5*rounds, refused)
		})
	}
}

// A page sends requests with its browser's cookies.
type page struct {
	t      *testing.T
	site   string
	client *http.Client
}

type answer struct {
	status, cookies int
	body            string
}

func (p page) post(path string) answer {
	resp, err := p.client.Post(p.site+path, "", nil)
	if err != nil {
		p.t.Error(err)
		return answer{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Error(err)
	}
	return answer{resp.StatusCode, len(resp.Cookies()), string(body)}
}

func (p page) cookie() string {
	u, _ := url.Parse(p.site)
	return p.client.Jar.Cookies(u)[0].Value
}

// write is one way to write a session: Save, Renew or Touch.
func (x trial) writes() map[string]writeFunc {
	return map[string]writeFunc{"Save": x.over.Save, "Renew": x.over.Renew, "Touch": x.over.Touch}
}

// refuses shows that a session is not written, and that no cookie is sent.
func (x trial) refuses(t *testing.T, r *http.Request, s *sessions.Session, want error) {
	t.Helper()
	before := x.srv.dump(t)
	s.Values["user"] = "eve"
	for name, write := range x.writes() {
		w := httptest.NewRecorder()
		if err := write(r, w, s); !errors.Is(err, want) {
			t.Errorf("%s: got error %v, want %v", name, err, want)
		}
		equal(t, name+": Set-Cookie", w.Header().Get("Set-Cookie"), "")
	}
	equal(t, "what Redis holds", x.srv.dump(t), before)
}

// dump is all that Redis holds but for locks and renewal markers.
func (s *server) dump(t *testing.T) string {
	t.Helper()
	all := ""
	for _, key := range s.keys(t) {
		if !strings.HasSuffix(key, ":lock") {
			all += fmt.Sprintf("%q: %q\n", key, s.admin.Dump(t.Context(), key).Val())
		}
	}
	return all
}

// marks are the renewal markers.
func (s *server) marks(t *testing.T) []string {
	t.Helper()
	keys, err := s.admin.Keys(t.Context(), "*:replaced").Result()
	must(t, err)
	return keys
}

// renew renews the browser's session, in a request of its own.
func (x trial) renew(t *testing.T, b browser) {
	t.Helper()
	r, end := b.lived(t)
	defer end()
	w := httptest.NewRecorder()
	s, err := x.over.Get(r, "s")
	must(t, err)
	s.Values["user"] = "ann"
	must(t, x.over.Renew(r, w, s))
	b.keep(w)
}

// old is a browser with the cookies from now.
func (b browser) old() browser { return maps.Clone(b) }

// beginnings are what a browser may come to a login with.
func (x trial) beginnings() map[string]func(*testing.T) browser {
	return map[string]func(*testing.T) browser{
		"a session": func(t *testing.T) browser { return login(t, x.plain) },
		"a session that was logged out": func(t *testing.T) browser {
			b := login(t, x.plain)
			b.old().logout(t, x.plain)
			return b
		},
		"a session that has expired": func(t *testing.T) browser {
			b := login(t, x.plain)
			x.srv.forward(t, 31*24*time.Hour)
			return b
		},
	}
}

func TestALateRequestCannotThrowALoginAway(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		for name, begin := range x.beginnings() {
			t.Run(name, func(t *testing.T) {
				b := begin(t)
				old := b.old()
				r, end := old.lived(t)
				defer end()
				loaded, err := x.plain.New(r, "s") // before the login, which no lock delays here
				must(t, err)
				x.renew(t, b)
				plainly := x
				plainly.over = x.plain
				plainly.refuses(t, r, loaded, ErrGone)

				s, r := load(t, x.over, old) // after it
				equal(t, "IsNew", s.IsNew, true)
				equal(t, "ID", s.ID, "")
				equal(t, "Values", len(s.Values), 0)
				x.refuses(t, r, s, ErrGone)
				s.ID = x.plain.newID()
				x.refuses(t, r, s, ErrGone)
				s.ID, s.IsNew = "", false
				x.refuses(t, r, s, ErrGone)

				s.Options.MaxAge = -1 // whoever logs out is logged out, but nobody else
				w := httptest.NewRecorder()
				must(t, s.Save(r, w))
				equal(t, "MaxAge of the cookie", w.Result().Cookies()[0].MaxAge, -1)
				equal(t, "user", b.user(t, x.plain), "ann")
			})
		}
	})
}

func TestALateUpdateIsNotBegun(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		x := newTrial(t, srv, true)
		for name, begin := range x.beginnings() {
			b := begin(t)
			old := b.old()
			x.renew(t, b)
			r, end := old.lived(t)
			w := httptest.NewRecorder()
			wantErr(t, x.over.(*LockingStore).Update(r, w, "s", func(*sessions.Session) error {
				t.Errorf("%s: fn was called", name)
				return nil
			}), ErrGone)
			equal(t, name+": Set-Cookie", w.Header().Get("Set-Cookie"), "")
			end()
			equal(t, name+": user", b.user(t, x.plain), "ann")
		}
	})
}

// TestALoginThatIsSentManyTimesIsOneLogin sends it eight times at once.
func TestALoginThatIsSentManyTimesIsOneLogin(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		for name, begin := range x.beginnings() {
			t.Run(name, func(t *testing.T) {
				must(t, x.srv.admin.FlushDB(t.Context()).Err())
				b := begin(t)
				const n = 8
				var errs [n]error
				var cookies [n]browser
				var all sync.WaitGroup
				for i := range n {
					all.Go(func() {
						r, end := b.lived(t)
						defer end()
						w := httptest.NewRecorder()
						s, err := x.over.Get(r, "s")
						if err != nil {
							errs[i] = err
							return
						}
						s.Values["user"] = "ann"
						SetOwner(s, "ann")
						errs[i] = x.over.Renew(r, w, s)
						cookies[i] = browser{}
						cookies[i].keep(w)
					})
				}
				all.Wait()
				logins := 0
				for i, err := range errs {
					if err == nil {
						logins++
						equal(t, "user", cookies[i].user(t, x.plain), "ann")
						continue
					}
					wantErr(t, err, ErrGone)
					equal(t, "cookies with a refusal", len(cookies[i]), 0)
				}
				equal(t, "logins that were acknowledged", logins, 1)
				equal(t, "sessions that live", len(listed(t, x.plain, "ann")), 1)
			})
		}
	})
}

// TestTheRenewalMarkerEndsAfterAMinute shows that it delays nobody for longer.
func TestTheRenewalMarkerEndsAfterAMinute(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		for name, begin := range x.beginnings() {
			must(t, x.srv.admin.FlushDB(t.Context()).Err())
			b := begin(t)
			old := b.old()
			x.renew(t, b)
			marks := x.srv.marks(t)
			if len(marks) != 1 {
				t.Fatalf("%s: the markers are %q", name, marks)
			}
			if ttl := x.srv.ttl(t, marks[0]); ttl > time.Minute || ttl < 50*time.Second {
				t.Errorf("%s: the marker lives for %v", name, ttl)
			}
			if value := x.srv.admin.Get(t.Context(), marks[0]).Val(); strings.Contains(value, idOf(t, x.plain, b)) {
				t.Errorf("%s: the marker leads to the new session", name)
			}
			x.srv.forward(t, time.Minute+time.Second)
			equal(t, name+": markers after a minute", len(x.srv.marks(t)), 0)
			old.begins(t, x)
			equal(t, name+": user", b.user(t, x.plain), "ann")
		}
	})
}

// begins shows that the browser's cookie, which is merely old, starts a new session.
func (b browser) begins(t *testing.T, x trial) {
	t.Helper()
	r, end := b.lived(t)
	defer end()
	w := httptest.NewRecorder()
	s, err := x.over.Get(r, "s")
	must(t, err)
	equal(t, "IsNew", s.IsNew, true)
	s.Values["user"] = "bob"
	must(t, s.Save(r, w))
	again := browser{}
	again.keep(w)
	equal(t, "user of the new session", again.user(t, x.plain), "bob")
}

func TestACookieThatIsMerelyOldStartsANewSession(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		for name, begin := range x.beginnings() {
			if name == "a session" {
				continue
			}
			b := begin(t)
			b.begins(t, x)
			b.begins(t, x) // Save leaves no marker
			equal(t, name+": markers", len(x.srv.marks(t)), 0)
		}
	})
}

// TestTheRenewalMarkerCostsNothing where the ID has a record, nor where there is no ID.
func TestTheRenewalMarkerCostsNothing(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		commands := func(do func()) int {
			x.rec.take()
			do()
			return len(strings.Fields(x.rec.take()))
		}
		b := login(t, x.over)
		get := func(b browser) *sessions.Session { s, _ := load(t, x.over, b); return s }
		equal(t, "Get of a session", commands(func() { get(b) }), 1)
		equal(t, "Get without a cookie", commands(func() { get(browser{}) }), 0)
		fresh := get(browser{})
		equal(t, "Save of its session", commands(func() { must(t, fresh.Save(b.request(t), httptest.NewRecorder())) }), 1)
		fresh = get(browser{})
		equal(t, "Renew of such a one", commands(func() { must(t, x.over.Renew(b.request(t), httptest.NewRecorder(), fresh)) }), 1)
		gone := login(t, x.over)
		gone.old().logout(t, x.plain)
		equal(t, "Get of an ID without a record", commands(func() { get(gone) }), 2)
	})
}

// TestALoginThatFailedCanBeRepeated has Redis refuse to write, which must leave no marker.
func TestALoginThatFailedCanBeRepeated(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		for name, begin := range x.beginnings() {
			b := begin(t)
			for n, refused := 0, true; refused; n++ { // the command that is refused
				r, end := b.lived(t)
				w := httptest.NewRecorder()
				s, err := x.over.Get(r, "s")
				must(t, err)
				s.Values["user"] = "ann"
				left := n
				refused = false
				x.rec.failing(func(string) error {
					if left--; left == -1 {
						refused = true
						return redisError("OOM command not allowed when used memory > 'maxmemory'.")
					}
					return nil
				})
				err = x.over.Renew(r, w, s)
				x.rec.failing(nil)
				end()
				x.srv.free(t)
				if b.keep(w); err == nil {
					break
				}
				wantText(t, err, "OOM")
				equal(t, fmt.Sprintf("%s, at command %d: markers", name, n), len(x.srv.marks(t)), 0)
			}
			equal(t, name+": user", b.user(t, x.plain), "ann")
			must(t, x.srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestALoginAfterAbsoluteTimeoutSurvivesItsPage, whose requests come with an ID that is too old.
func TestALoginAfterAbsoluteTimeoutSurvivesItsPage(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		x.plain.AbsoluteTimeout = time.Hour
		b := login(t, x.over)
		x.srv.forward(t, 61*time.Minute)
		r := b.request(t) // of the login's page, on its way
		s, err := x.over.Get(r, "s")
		must(t, err)
		page := browser{"s": b["s"]}
		page.visit(t, x.over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			s.Values["user"] = "bob"
			must(t, x.over.Renew(r, w, s))
		})
		w := httptest.NewRecorder()
		s.Values["seen"] = 1
		wantErr(t, x.over.Save(r, w, s), ErrGone)
		equal(t, "cookies", len(w.Result().Cookies()), 0)
		// and one that comes after
		late := browser{"s": b["s"]}
		late.visit(t, x.over, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
			wantErr(t, x.over.Save(r, w, s), ErrGone)
		})
		equal(t, "cookie stays", late["s"], b["s"])
		equal(t, "user", page.user(t, x.over), "bob")
	})
}
