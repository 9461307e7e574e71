package redistore

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

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
