package redistore

import (
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"context"
	"errors"
	"io"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// TestTheApplicationsCookiesStay has the application expire cookies of the session's name
// that are others to a browser, as domain migrations do.
func TestTheApplicationsCookiesStay(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		for name, c := range map[string]struct {
			cookie http.Cookie
			stays  bool
		}{
			"another Path":            {http.Cookie{Path: "/old", Domain: "example.com"}, true},
			"no Path":                 {http.Cookie{Domain: "example.com"}, true},
			"another Domain":          {http.Cookie{Path: "/", Domain: "old.example.com"}, true},
			"no Domain":               {http.Cookie{Path: "/"}, true},
			"partitioned":             {http.Cookie{Path: "/", Domain: "example.com", Partitioned: true, Secure: true}, true},
			"another name":            {http.Cookie{Name: "S", Path: "/", Domain: "example.com"}, true},
			"the same":                {http.Cookie{Path: "/", Domain: "example.com"}, false},
			"the same, in other case": {http.Cookie{Path: "/", Domain: "Example.COM"}, false},
			"the same, with a dot":    {http.Cookie{Path: "/", Domain: ".example.com"}, false},
		} {
			b := login(t, x.plain)
			r, end := b.lived(t)
			w := httptest.NewRecorder()
			if c.cookie.Name == "" {
				c.cookie.Name = "s"
			}
			c.cookie.MaxAge = -1
			http.SetCookie(w, &c.cookie)
			line := w.Header().Get("Set-Cookie")
			s, err := x.over.Get(r, "s")
			must(t, err)
			s.Options.Domain = "example.com"
			for _, write := range []writeFunc{x.over.Save, x.over.Touch, x.over.Renew, x.over.Save} {
				must(t, write(r, w, s))
				lines := w.Header()["Set-Cookie"]
				equal(t, name+": it stays", slices.Contains(lines, line), c.stays)
				if own := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return l == line }); len(own) != 1 {
					t.Errorf("%s: the store's own cookies are %q", name, own)
				}
			}
			s.Options.MaxAge = -1
			must(t, s.Save(r, w))
			equal(t, name+": it stays at a logout", slices.Contains(w.Header()["Set-Cookie"], line), c.stays)
			end()
		}
	})
}

// TestLogoutEndsAllThatTheBrowserProves has a browser with a cookie at / and one at /app.
func TestLogoutEndsAllThatTheBrowserProves(t *testing.T) {
	for how, logout := range map[string]func(*trial, *http.Request, http.ResponseWriter, *sessions.Session) error{
		"Save": func(_ *trial, r *http.Request, w http.ResponseWriter, s *sessions.Session) error { return s.Save(r, w) },
		"Touch": func(x *trial, r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
			return x.over.Touch(r, w, s)
		},
		"Renew": func(x *trial, r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
			return x.over.Renew(r, w, s)
		},
		`ID = "" and Save`: func(_ *trial, r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
			s.ID = ""
			return s.Save(r, w)
		},
	} {
		t.Run(how, func(t *testing.T) {
			onStores(t, func(t *testing.T, x trial) {
				for _, first := range []string{"read", "unreadable"} {
					must(t, x.srv.admin.FlushDB(t.Context()).Err())
					a, b, other := loginAs(t, x.plain, "ann"), loginAs(t, x.plain, "ann"), login(t, x.plain)
					if first == "unreadable" {
						must(t, x.srv.admin.Set(t.Context(), x.plain.key(idOf(t, x.plain, a)), "nonsense", 0).Err())
					}
					both := func() (*http.Request, func()) {
						r, end := browser{}.lived(t)
						r.Header.Set("Cookie", "s="+a["s"]+"; s=nonsense; s="+b["s"])
						return r, end
					}
					r, end := both()
					s, err := x.over.Get(r, "s")
					equal(t, "it was read", err == nil, first == "read")
					s.Options.MaxAge = -1
					must(t, logout(&x, r, httptest.NewRecorder(), s))
					end()
					x.srv.free(t)
					r, end = both()
					s, _ = x.over.Get(r, "s")
					equal(t, first+": IsNew after logout", s.IsNew, true)
					end()
					equal(t, first+": listed after logout", len(listed(t, x.plain, "ann")), 0)
					equal(t, first+": somebody else", other.user(t, x.plain), "ann")
				}
			})
		})
	}
}

// TestWhatBrowsersDropIsAnError shows that Save does not store what could never be found
// again.
func TestWhatBrowsersDropIsAnError(t *testing.T) {
	options := func(change func(*sessions.Options)) func(*sessions.Options) { return change }
	insecure := options(func(o *sessions.Options) { o.Secure = false })
	none := options(func(o *sessions.Options) { o.SameSite = http.SameSiteNoneMode })
	onStores(t, func(t *testing.T, x trial) {
		value := len(mustEncode(t, x.plain, x.plain.newID()))
		for _, c := range []struct {
			name   string
			change func(*sessions.Options)
			want   string // "": browsers keep it
		}{
			{"__Host-s", insecure, "Secure"},
			{"__host-s", insecure, "Secure"},
			{"__Host-s", options(func(o *sessions.Options) { o.Domain = "example.com" }), "Domain"},
			{"__HOST-s", options(func(o *sessions.Options) { o.Path = "/app" }), "Path"},
			{"__Host-s", options(func(o *sessions.Options) { o.Path = "" }), "Path"},
			{"__Secure-s", insecure, "Secure"},
			{"__SECURE-s", insecure, "Secure"},
			{"s", options(func(o *sessions.Options) { none(o); insecure(o) }), "SameSite"},
			{"s", options(func(o *sessions.Options) { o.Partitioned = true; insecure(o) }), "artitioned"},
			{strings.Repeat("n", maxCookie-value+1), nil, "4096"},

			{"__Host-s", nil, ""},
			{"__Host-s", none, ""},
			{"__Secure-s", nil, ""},
			{"__Secure-s", options(func(o *sessions.Options) { o.Domain, o.Path = "example.com", "/app" }), ""},
			{"s", insecure, ""},
			{"s", none, ""},
			{"s", options(func(o *sessions.Options) { o.Partitioned = true }), ""},
			{"s", options(func(o *sessions.Options) { o.SameSite = http.SameSiteStrictMode; insecure(o) }), ""},
			{"__Hosts", insecure, ""},
			{"x__Host-s", insecure, ""},
			{"_Secure-s", insecure, ""},
			{strings.Repeat("n", maxCookie-value), nil, ""},
		} {
			name := c.name[:min(len(c.name), 20)]
			must(t, x.srv.admin.FlushDB(t.Context()).Err())
			if c.change == nil {
				c.change = func(*sessions.Options) {}
			}
			r, end := browser{}.lived(t)
			fresh, err := x.over.Get(r, c.name)
			must(t, err)
			c.change(fresh.Options)
			stored, err := x.over.New(r, c.name)
			must(t, err)
			if c.want != "" && len(c.name) < 100 {
				must(t, x.over.Save(r, httptest.NewRecorder(), stored))
				c.change(stored.Options)
			} else {
				stored = fresh
			}
			before := x.srv.dump(t)
			x.rec.take()
			w := httptest.NewRecorder()
			for what, write := range map[string]func() error{
				"Save of a new one": func() error { return fresh.Save(r, w) },
				"Save":              func() error { return x.over.Save(r, w, stored) },
				"Renew":             func() error { return x.over.Renew(r, w, stored) },
			} {
				err := write()
				if c.want == "" {
					if err != nil {
						t.Errorf("%s %s: %v", what, name, err)
					}
					continue
				}
				wantText(t, err, c.want)
				wantText(t, err, "redistore: cookie")
			}
			if c.want == "" {
				end()
				continue
			}
			if stored != fresh {
				wantText(t, x.over.Touch(r, w, stored), c.want)
			}
			equal(t, name+": commands", x.rec.take(), "")
			equal(t, name+": what Redis holds", x.srv.dump(t), before)
			equal(t, name+": Set-Cookie", w.Header().Get("Set-Cookie"), "")
			equal(t, name+": ID", fresh.ID == "" || fresh == stored, true)
			end()
		}
	})
}

// countingCodec counts what it is asked to decode.
type countingCodec struct {
	securecookie.Codec
	decodes *atomic.Int64
}

func (c countingCodec) Decode(name, value string, dst any) error {
	c.decodes.Add(1)
	return c.Codec.Decode(name, value, dst)
}

// TestCookiesCostBoundedWork sends almost as many cookies as net/http takes, which is 3000,
// and almost as large ones as it takes by default, 1 MB.
func TestCookiesCostBoundedWork(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		keys := [][]byte{hashKey, nil, []byte("another key, as long as it should be"), nil, []byte("a third key, as long as it should be"), nil}
		x.plain.Codecs = newCodecs(keys)
		var decodes atomic.Int64
		for i, codec := range x.plain.Codecs {
			x.plain.Codecs[i] = countingCodec{codec, &decodes}
		}
		user := login(t, x.plain)
		var many, long, valid strings.Builder
		for i := range 2900 {
			fmt.Fprintf(&many, "s=%x; ", i)
		}
		for i := range 300 {
			fmt.Fprintf(&long, "s=%s%d; ", strings.Repeat("A", 3000), i)
		}
		for range 300 {
			fmt.Fprintf(&valid, "s=%s; ", mustEncode(t, x.plain, x.plain.newID()))
		}
		most := int64(64 * len(x.plain.Codecs))
		for name, c := range map[string]struct {
			cookies string
			most    int64
		}{
			"many":           {many.String(), most},
			"long":           {long.String(), most},
			"valid":          {valid.String(), most},
			"one 2900 times": {strings.Repeat("s=AAAA; ", 2900), int64(len(x.plain.Codecs))},
		} {
			for _, until := range []time.Time{{}, x.srv.now().Add(time.Hour)} {
				x.plain.CookieStoreUntil = until
				want := c.most
				if !until.IsZero() {
					want *= 2 // an ID, or the values that CookieStore wrote
				}
				r, end := browser{}.lived(t)
				r.Header.Set("Cookie", c.cookies)
				decodes.Store(0)
				s, _ := x.over.Get(r, "s")
				if n := decodes.Swap(0); n == 0 || n > want {
					t.Errorf("%s: Get decoded %d times, want %d at most", name, n, want)
				}
				s.Options.MaxAge = -1
				x.rec.take()
				must(t, s.Save(r, httptest.NewRecorder()))
				if n := decodes.Swap(0); n > c.most {
					t.Errorf("%s: logout decoded %d times, want %d at most", name, n, c.most)
				}
				if n := len(strings.Fields(x.rec.take())); n > 1 {
					t.Errorf("%s: logout took %d commands", name, n)
				}
				end()
			}
		}
		x.plain.CookieStoreUntil = time.Time{}
		r, end := browser{}.lived(t)
		defer end()
		r.Header.Set("Cookie", "s=nonsense; s="+user["s"]+"; "+many.String())
		s, err := x.over.Get(r, "s")
		must(t, err)
		equal(t, "user", s.Values["user"], any("ann"))
	})
}

// TestKeysRotateServerByServer goes through the steps that New's documentation names. At
// each of them one server has taken the step and the other has not.
func TestKeysRotateServerByServer(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		client := srv.client(t)
		old, next := []byte("the old key, as long as it should be"), []byte("the new key, as long as it should be")
		steps := [][][]byte{{old}, {old, nil, next}, {next, nil, old}, {next}}
		b := login(t, New(client, old))
		for i := 1; i < len(steps); i++ {
			before, after := New(client, steps[i-1]...), New(client, steps[i]...)
			for _, server := range []*Store{before, after, before, after, after} {
				b.visit(t, server, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
					equal(t, fmt.Sprintf("step %d: user", i), s.Values["user"], any("ann"))
					must(t, s.Save(r, w))
				})
			}
		}
	})
}

func TestCreatedIsTheTimeOfTheLogin(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		begin := time.Unix(1_800_000_000, 0)
		now := begin
		x.plain.now = func() time.Time { return now }
		s, _ := load(t, x.over, browser{})
		equal(t, "of a new session", Created(s), time.Time{})
		b := login(t, x.over)
		now = now.Add(time.Hour + 300*time.Millisecond)
		r, end := b.lived(t)
		s, err := x.over.Get(r, "s")
		must(t, err)
		equal(t, "after a reload", Created(s), begin)
		w := httptest.NewRecorder()
		must(t, s.Save(r, w))
		equal(t, "after Save", Created(s), begin)
		SetOwner(s, "ann")
		must(t, x.over.Renew(r, w, s))
		equal(t, "after Renew", Created(s), begin.Add(time.Hour))
		end()
		list, err := collect(t, x.plain, "ann")
		must(t, err)
		equal(t, "in the list", Created(list[0]), begin.Add(time.Hour))
	})
	for _, id := range []string{
		"", ".", "ABC", "user.123", "1.2", "tro8w0", "tro8w0.", ".AAAA", "-1.AAAA",
		"JBSWY3DPEBLW64TMMQQQJBSWY3DPEBLW64TMMQQQJBSWY3DPEBLW",                         // boj/redistore's
		"6ba7b810-9dad-11d1-80b4-00c04fd430c8",                                         // a UUID
		"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.dBjftJeZ4CVPmB92K27uhbUJU1p1r_wW1gFW", // a JWT
		"99999999999999999999." + strings.Repeat("A", 52),
	} {
		if got := Created(&sessions.Session{ID: id}); !got.IsZero() {
			t.Errorf("%q was created at %v", id, got)
		}
	}
}

func TestPublicIDNamesASessionAndProvesNothing(t *testing.T) {
	equal(t, "without an ID", PublicID(&sessions.Session{}), "")
	shape := regexp.MustCompile(`^[A-Za-z0-9_-]{22}$`)
	onStores(t, func(t *testing.T, x trial) {
		b := browser{}
		r, end := b.lived(t)
		s, err := x.over.Get(r, "s")
		must(t, err)
		equal(t, "of a new session", PublicID(s), "")
		w := httptest.NewRecorder()
		SetOwner(s, "ann")
		must(t, s.Save(r, w))
		end()
		b.keep(w)
		name, id := PublicID(s), s.ID
		if !shape.MatchString(name) || strings.Contains(id, name) || strings.Contains(name, id) {
			t.Errorf("the public ID of %q is %q", id, name)
		}
		r, end = b.lived(t)
		s, err = x.over.Get(r, "s")
		must(t, err)
		equal(t, "after a reload", PublicID(s), name)
		list, err := collect(t, x.plain, "ann")
		must(t, err)
		equal(t, "in the list", PublicID(list[0]), name)
		w = httptest.NewRecorder()
		must(t, x.over.Renew(r, w, s))
		equal(t, "it is the same after Renew", PublicID(s) == name, false)
		end()

		// Neither it nor the ID itself is a cookie.
		for _, forged := range []string{name, id, s.ID, PublicID(s)} {
			s, err := x.over.Get(browser{"s": forged}.request(t), "s")
			equal(t, "it opens a session", err == nil || !s.IsNew, false)
		}
		s.Values["id"] = PublicID(s)
		if PublicID(&sessions.Session{ID: s.ID}) != PublicID(s) {
			t.Error("the public ID depends on more than the ID")
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

// TestManyCookiesHaveOneBound looks several IDs up, each of which takes its time.
func TestManyCookiesHaveOneBound(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	store.Wait = time.Hour
	for name, b := range map[string]backend{"Store": store.Store, "LockingStore": store} {
		slow := &slowBackend{backend: b}
		must(t, (&call{by: slow, r: browser{}.request(t), session: newSession(t, store.Store)}).find([]string{"1", "2", "3"}))
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

// TestASharedLoginExpiresTheHostsOwnCookie switches Domain on while somebody has a cookie
// without one.
func TestASharedLoginExpiresTheHostsOwnCookie(t *testing.T) {
	store, _ := startMini(t).store(t)
	jar, err := cookiejar.New(nil)
	must(t, err)
	at, err := url.Parse("https://www.example.com/")
	must(t, err)
	visit := func(handler func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error) error {
		r, w := httptest.NewRequest("GET", at.String(), nil), httptest.NewRecorder()
		for _, c := range jar.Cookies(at) {
			r.AddCookie(c)
		}
		s, err := store.Get(r, "s")
		must(t, err)
		err = handler(r, w, s)
		jar.SetCookies(at, w.Result().Cookies())
		return err
	}
	login := func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		if store.Options.Domain != "" {
			http.SetCookie(w, &http.Cookie{Name: "s", Path: "/", MaxAge: -1})
		}
		return store.Renew(r, w, s)
	}
	logout := func(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
		s.Options.MaxAge = -1
		return s.Save(r, w)
	}
	must(t, visit(login))
	store.Options.Domain = "example.com"
	for range 3 {
		must(t, visit(login))
		must(t, visit(logout))
	}
}
