package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	boj "github.com/boj/redistore"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// The contenders.
const (
	theirs    = "boj/redistore"
	unpinged  = "boj/redistore, no PING"
	scsStore  = "scs + goredisstore"
	inCookie  = "sessions.CookieStore"
	plain     = "redistore"
	pipelined = "redistore, AutoPipeline"
	cached    = "redistore, client-side cache"
	locking   = "redistore, with the lock"
	limit     = "bare go-redis commands"
)

// The work of a request.
const (
	read   = "read"   // read an existing session
	save   = "save"   // read, change and save one
	locked = "locked" // the same under a lock
	create = "new"    // start one
	logout = "logout" // end one
	gone   = "gone"   // find that it has ended; not measured
)

// A size is what a session holds beside its five small fields.
type size struct {
	name string
	n    int // bytes
}

var sizes = []size{{"5 fields", 0}, {"1 KB", 1 << 10}, {"16 KB", 16 << 10}, {"256 KB", 256 << 10}}

var blob = strings.Repeat("0123456789abcdef", 1_000_000/16)

func (s size) blob() string { return blob[:s.n] }

// A contender does one request of each kind of work, or has no such kind.
type contender struct {
	name  string
	does  map[string]func(*visitor) error
	limit int // bytes that it can keep; 0: all that is measured
}

func (c contender) can(work string, s size) bool {
	return c.does[work] != nil && (c.limit == 0 || s.n <= c.limit)
}

// A visitor is a client with its cookie. It is the parent of its requests' contexts,
// so that handlers find it at no cost.
type visitor struct {
	context.Context
	cookie string
	size   size
	blob   string        // the large value, if any
	visits int           // what the session must say; 0: others change it too
	hold   time.Duration // how long the work on a session takes
	wait   time.Duration // until it was loaded
	dies   string        // how its process ends, from diesAt on; "": it does not
	diesAt time.Time
}

// doomed tells whether the visitor's process ends now, in this way.
func (v *visitor) doomed(how string) bool { return v.dies == how && time.Now().After(v.diesAt) }

type visitorKey struct{}

func newVisitor(s size) *visitor {
	return &visitor{Context: context.Background(), size: s, blob: s.blob()}
}

func (v *visitor) Value(key any) any {
	if key == (visitorKey{}) {
		return v
	}
	return v.Context.Value(key)
}

func visitorOf(r *http.Request) *visitor { return r.Context().Value(visitorKey{}).(*visitor) }

// fill sets the values of every session: five small fields, and a large one.
func (v *visitor) fill(set func(key string, value any)) {
	set("user", "ann@example.com")
	set("id", 42)
	set("admin", true)
	set("lang", "en-GB")
	set("visits", 1)
	if v.blob != "" {
		set("blob", v.blob)
	}
}

// check compares all of them.
func (v *visitor) check(get func(key string) any) error {
	if get("user") != "ann@example.com" || get("id") != 42 || get("admin") != true || get("lang") != "en-GB" {
		return errors.New("the session that was read is not the one that was saved")
	}
	if visits, _ := get("visits").(int); visits < 1 || v.visits > 0 && visits != v.visits {
		return fmt.Errorf("the session counts %d visits, the visitor %d", visits, v.visits)
	}
	if v.blob != "" && get("blob") != v.blob {
		return errors.New("the large value that was read is not the one that was saved")
	}
	return nil
}

var errRefused = errors.New("the lock was not to be had")

// blank is what requests are made of, at little cost: httptest.NewRequest takes longer
// than some of what is to be measured.
var blank = httptest.NewRequest("GET", "/", nil)

// serve runs a handler as net/http does: the request's context ends with it.
func (v *visitor) serve(work string, h http.HandlerFunc) error {
	ctx, end := context.WithCancel(v)
	defer end()
	r, w := blank.WithContext(ctx), httptest.NewRecorder()
	r.Header = http.Header{}
	if v.cookie != "" {
		r.Header.Set("Cookie", v.cookie)
	}
	h(w, r)
	switch w.Code {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		return errRefused
	default:
		return errors.New(w.Body.String())
	}
	set := w.Header().Get("Set-Cookie")
	switch work {
	case create:
		if set == "" {
			return errors.New("no cookie")
		}
		v.visits = 1
	case save, locked:
		if v.visits > 0 {
			v.visits++
		}
	case logout:
		if !strings.Contains(set, "Max-Age=0") {
			return errors.New("the cookie was not expired")
		}
		return nil // keeps the old one, to see that it is worth nothing
	}
	if set != "" && v.visits > 0 { // those who share a session share the cookie, which names the lock
		v.cookie, _, _ = strings.Cut(set, ";")
	}
	return nil
}

// look reads the visitor's session in a request of its own.
func (v *visitor) look(store sessions.Store, see func(*sessions.Session)) error {
	return v.serve(read, func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "session")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		see(s)
	})
}

// visit changes the visitor's session in a request of its own.
func (v *visitor) visit(store sessions.Store, change func(*sessions.Session)) error {
	return v.serve(save, func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "session")
		if err == nil && s.IsNew {
			err = errors.New("there is no session")
		}
		if err == nil {
			change(s)
			err = s.Save(r, w)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// A guard runs fn while it holds the lock of whoever has that cookie.
type guard func(ctx context.Context, cookie string, fn func() error) error

// gorilla is what handlers on gorilla/sessions do.
func gorilla(name string, store sessions.Store, lock guard, works ...string) contender {
	c := contender{name: name, does: map[string]func(*visitor) error{}}
	for _, work := range slices.Concat(works, []string{create, gone}) {
		lock := lock
		if work == create || work == gone {
			lock = nil // there is nothing that could be held
		}
		handler := func(w http.ResponseWriter, r *http.Request) {
			err := handle(store, lock, work, w, r)
			switch {
			case err == nil:
			case isRefusal(err):
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			default:
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}
		c.does[work] = func(v *visitor) error { return v.serve(work, handler) }
	}
	return c
}

func handle(store sessions.Store, lock guard, work string, w http.ResponseWriter, r *http.Request) error {
	v, began := visitorOf(r), time.Now()
	if lock == nil {
		return handleLocked(store, work, began, w, r)
	}
	return lock(r.Context(), v.cookie, func() error { return handleLocked(store, work, began, w, r) })
}

func handleLocked(store sessions.Store, work string, began time.Time, w http.ResponseWriter, r *http.Request) error {
	v := visitorOf(r)
	if v.doomed(waiting) {
		defer time.AfterFunc(5*time.Millisecond, die).Stop() // while others hold the session for longer
	}
	s, err := store.Get(r, "session")
	if err != nil {
		return err
	}
	if v.wait = time.Since(began); v.doomed(holding) {
		die()
	}
	if s.IsNew != (work == create || work == gone) {
		return fmt.Errorf("IsNew is %t", s.IsNew)
	}
	switch work {
	case gone:
		return nil
	case create:
		v.fill(func(k string, value any) { s.Values[k] = value })
		return s.Save(r, w)
	}
	if err := v.check(func(k string) any { return s.Values[k] }); err != nil {
		return err
	}
	switch work {
	case save, locked:
		if v.hold > 0 {
			time.Sleep(v.hold)
		}
		s.Values["visits"] = s.Values["visits"].(int) + 1
		return s.Save(r, w)
	case logout:
		s.Options.MaxAge = -1
		return s.Save(r, w)
	}
	return nil
}

// onSCS is the same on scs, whose cookie is an ID without a signature: it has less to
// compute, and asks Redis about every cookie that anybody makes up.
func onSCS(m *scs.SessionManager) contender {
	c := contender{name: scsStore, does: map[string]func(*visitor) error{}}
	for _, work := range []string{read, save, create, logout, gone} {
		handler := m.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, ctx := visitorOf(r), r.Context()
			switch work {
			case gone:
				if m.Exists(ctx, "user") {
					http.Error(w, "it has not ended", http.StatusInternalServerError)
				}
				return
			case create:
				v.fill(func(k string, value any) { m.Put(ctx, k, value) })
				return
			}
			err := v.check(func(k string) any { return m.Get(ctx, k) })
			switch {
			case err != nil:
			case work == save:
				m.Put(ctx, "visits", m.GetInt(ctx, "visits")+1)
			case work == logout:
				err = m.Destroy(ctx)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}))
		c.does[work] = func(v *visitor) error { return v.serve(work, handler.ServeHTTP) }
	}
	return c
}

// bare is the limit: the commands, and nothing else. The visitor's cookie is the key.
func bare(client *redis.Client) (contender, error) {
	values := map[int][]byte{}
	for _, s := range sizes {
		session := sessions.NewSession(nil, "")
		newVisitor(s).fill(func(k string, v any) { session.Values[k] = v })
		data, err := redistore.GobSerializer{}.Serialize(session)
		if err != nil {
			return contender{}, err
		}
		values[s.n] = data
	}
	ctx := context.Background()
	get := func(v *visitor) error {
		got, err := client.Get(ctx, v.cookie).Bytes()
		if err == nil && !bytes.Equal(got, values[len(v.blob)]) {
			err = errors.New("read another value")
		}
		return err
	}
	set := func(v *visitor) error {
		return client.Set(ctx, v.cookie, values[len(v.blob)], maxAge).Err()
	}
	getAndSet := func(v *visitor) error {
		if err := get(v); err != nil {
			return err
		}
		return set(v)
	}
	return contender{name: limit, does: map[string]func(*visitor) error{
		read: get, save: getAndSet, locked: getAndSet,
		create: func(v *visitor) error {
			v.cookie = "bare_" + rand.Text()
			return set(v)
		},
		logout: func(v *visitor) error {
			if err := get(v); err != nil {
				return err
			}
			return client.Del(ctx, v.cookie).Err()
		},
		gone: func(v *visitor) error {
			if err := client.Get(ctx, v.cookie).Err(); err != redis.Nil {
				return fmt.Errorf("it has not ended: %v", err)
			}
			return nil
		},
	}}, nil
}

var key = []byte("0123456789abcdef0123456789abcdef")

const maxAge = 30 * 24 * time.Hour // of every session

// A dialer connects to Redis; nil: as the client would.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// settings are those that docs/production.md recommends. The pool is go-redis' default, 10
// connections for each core: more do not help where cores are what is short.
func settings(addr string, dial dialer) *redis.Options {
	return &redis.Options{Addr: addr, ContextTimeoutEnabled: true, Dialer: dial, PoolSize: *pool}
}

// caching returns a client with go-redis' client-side cache, which is experimental.
func caching(addr string, dial dialer) *redis.Client {
	o := settings(addr, dial)
	o.Protocol = 3
	o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{MaxEntries: 10_000}
	return redis.NewClient(o)
}

// contenders makes all of them on one server. Their clients end with the program.
func contenders(addr string, dial dialer) ([]contender, error) {
	client := redis.NewClient(settings(addr, dial))
	auto, err := redis.NewClient(settings(addr, dial)).AutoPipeline()
	if err != nil {
		return nil, err
	}
	limit, err := bare(client)
	if err != nil {
		return nil, err
	}
	all := []contender{}
	for _, name := range []string{theirs, unpinged} {
		store, err := bojStore(addr, dial, name == theirs)
		if err != nil {
			return nil, err
		}
		works := []string{read, save}
		if name == theirs {
			works = append(works, locked, logout) // without a lock, for it has none
		}
		all = append(all, gorilla(name, store, nil, works...))
	}

	manager := scs.New()
	manager.Store = goredisstore.New(client)
	manager.Lifetime = maxAge
	manager.Cookie.Secure = true

	cookies := sessions.NewCookieStore(key)
	cookies.Options = cookieOptions()
	inBrowser := gorilla(inCookie, cookies, nil, read, save, logout)
	inBrowser.limit = 1 << 10    // browsers take 4096 bytes a cookie
	delete(inBrowser.does, gone) // a copy of the cookie is good for as long as before

	store := redistore.New(client, key)
	reader := gorilla(cached, redistore.New(caching(addr, dial), key), nil, read)
	first := gorilla(plain, store, nil, read, save, logout)
	reader.does[create] = first.does[create] // a client that caches is for reading only

	all = append(all, onSCS(manager), inBrowser, first,
		gorilla(pipelined, redistore.New(auto, key), nil, read, save, logout), reader,
		gorilla(locking, redistore.NewLockingStore(store), nil, locked))
	return append(append(all, guarded(client, store)...), limit), nil
}

// bojStore is what its constructor makes, which sends a PING whenever it takes a
// connection from its pool; ping false leaves that out. The pool keeps as many
// connections as there are requests: with fewer, it would dial all the time.
func bojStore(addr string, dial dialer, ping bool) (*boj.RediStore, error) {
	store, err := boj.NewRediStore(slices.Max(atOnce), "tcp", addr, "", "", key)
	if err != nil {
		return nil, err
	}
	store.SetMaxLength(1 << 20) // as ours; 4096 would not do for the large values
	store.Options = cookieOptions()
	made := store.Pool
	if ping && dial == nil {
		return store, nil
	}
	store.Pool = &redigo.Pool{MaxIdle: made.MaxIdle, IdleTimeout: made.IdleTimeout, Dial: made.Dial}
	if ping {
		store.Pool.TestOnBorrow = made.TestOnBorrow
	}
	if dial != nil {
		store.Pool.Dial = func() (redigo.Conn, error) {
			return redigo.Dial("tcp", addr, redigo.DialNetDial(func(network, addr string) (net.Conn, error) {
				return dial(context.Background(), network, addr)
			}))
		}
	}
	return store, made.Close()
}

// cookieOptions are redistore's defaults, so that all make the same cookie.
func cookieOptions() *sessions.Options {
	return &sessions.Options{Path: "/", MaxAge: int(maxAge / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
}
