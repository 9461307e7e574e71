package redistore

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
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
