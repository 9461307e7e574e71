package redistore_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

var (
	client   redis.UniversalClient
	key      = []byte("32 random bytes, kept as a secret")
	oldKey   = []byte("32 random bytes of the year before")
	blockKey = []byte("32 bytes to encrypt the ID with.")
	store    = redistore.New(client, key)

	encryptionKey = []byte("32 random bytes to encrypt with.")
)

// startRedis stands for a Redis that is already there.
func startRedis() (redis.UniversalClient, func()) {
	mini, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	return redis.NewClient(&redis.Options{Addr: mini.Addr()}), mini.Close
}

// A handler that was written for sessions.CookieStore works as it is.
func Example() {
	client, stop := startRedis()
	defer stop()
	store := redistore.New(client, []byte("32 random bytes, kept as a secret"))

	handler := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please try again", status)
			return
		}
		visits, _ := session.Values["visits"].(int)
		session.Values["visits"] = visits + 1
		if err := session.Save(r, w); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
			return
		}
		fmt.Fprintln(w, "visits:", visits+1)
	}

	var cookie string
	for range 3 {
		r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
		r.Header.Set("Cookie", cookie)
		handler(w, r)
		cookie = w.Result().Cookies()[0].Name + "=" + w.Result().Cookies()[0].Value
		fmt.Print(w.Body)
	}
	// Output:
	// visits: 1
	// visits: 2
	// visits: 3
}

func ExampleNew() {
	client := redis.NewClient(&redis.Options{
		Addr:                  "localhost:6379",
		ContextTimeoutEnabled: true,
		ReadTimeout:           time.Second,     // leaves room for retries within 5 seconds
		ConnMaxIdleTime:       3 * time.Minute, // less than what lies between allows
	})
	store := redistore.New(client, key)
	_ = store
}

// A client that caches is for handlers that never save.
func ExampleNew_clientSideCache() {
	client := redis.NewClient(&redis.Options{
		Addr:                  "localhost:6379",
		ContextTimeoutEnabled: true,
		Protocol:              3,
		ClientSideCacheConfig: &redis.ClientSideCacheConfig{MaxEntries: 10_000, MaxStaleness: time.Second},
	})
	store := redistore.New(client, key)
	_ = store
}

// A shard that does not answer keeps its sessions, instead of lending them to others.
func ExampleNew_ring() {
	client := redis.NewRing(&redis.RingOptions{
		Addrs:                 map[string]string{"one": "10.0.0.1:6379", "two": "10.0.0.2:6379"},
		HeartbeatFn:           func(context.Context, *redis.Client) bool { return true },
		ContextTimeoutEnabled: true,
	})
	store := redistore.New(client, key)
	_ = store
}

// Keys come from the environment, where they are text.
func ExampleNew_keyFromTheEnvironment() {
	key, err := hex.DecodeString(os.Getenv("SESSION_KEY")) // of openssl rand -hex 32
	if err != nil || len(key) != 32 {
		log.Fatal("SESSION_KEY: make it with openssl rand -hex 32")
	}
	store := redistore.New(client, key)
	_ = store
}

// The first pair signs new cookies, all pairs verify old ones.
func ExampleNew_keyRotation() {
	store := redistore.New(client, key, blockKey, oldKey, nil)
	_ = store
}

// New never fails; Ping says what is wrong with the configuration, or with Redis.
func ExampleStore_Ping() {
	store := redistore.New(client, key)
	if err := store.Ping(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func ExampleStore() {
	store := redistore.New(client, key)
	store.KeyPrefix = "shop_session_"
	store.Options.Domain = "example.com"
	store.Options.MaxAge = 7 * 24 * 60 * 60 // 7 days
	store.IdleTimeout = 12 * time.Hour
	store.AbsoluteTimeout = 30 * 24 * time.Hour
	store.Serializer = redistore.JSONSerializer{}
}

// At login the session gets a new ID, and the old one is dead: whoever planted or
// stole it is left outside.
func ExampleStore_Renew() {
	login := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please try again", status)
			return
		}
		session.Values["user"] = "ann"
		if err := store.Renew(r, w, session); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
	_ = login
}

// To log out, save with MaxAge -1. This works even if Get could not load the
// session.
func ExampleStore_Save_logout() {
	logout := func(w http.ResponseWriter, r *http.Request) {
		session, _ := store.Get(r, "session")
		session.Options.MaxAge = -1
		if err := session.Save(r, w); err != nil {
			// The cookie is gone, but Redis could not be told.
			http.Error(w, "please try again", redistore.Status(err))
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
	_ = logout
}

// Remember me: a session that ends with the browser, unless the user has asked for more at
// the login. The store's Options.MaxAge is 0.
func ExampleSetMaxAge() {
	login := func(w http.ResponseWriter, r *http.Request) {
		session, _ := store.Get(r, "session")
		session.Values["user"] = "ann"
		age := 0 // ends with the browser
		if r.FormValue("remember") == "on" {
			age = 30 * 24 * 60 * 60 // 30 days
		}
		redistore.SetMaxAge(session, age)
		if err := store.Renew(r, w, session); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
		}
	}
	_ = login
}

// What a provider posts back comes without a SameSite=Lax cookie. The state has a session
// of its own, so that the login's cookie can stay as it is.
func ExampleStore_oauthState() {
	login := func(w http.ResponseWriter, r *http.Request) {
		state, err := store.Get(r, "oauth-state")
		state.Options.SameSite, state.Options.Secure, state.Options.MaxAge = http.SameSiteNoneMode, true, 10*60 // 10 minutes
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please try again", status)
			return
		}
		state.Values["state"] = rand.Text()
		if err := state.Save(r, w); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
		}
	}
	_ = login
}

// A login that is sent twice, by a double click, is one login: the second finds that the first
// has renewed the session.
func ExampleStore_Renew_twice() {
	login := func(w http.ResponseWriter, r *http.Request) {
		session, _ := store.Get(r, "session")
		session.Values["user"] = "ann"
		err := store.Renew(r, w, session)
		if err != nil && !errors.Is(err, redistore.ErrGone) { // ErrGone: the browser has the other one's cookie by now
			http.Error(w, "please try again", redistore.Status(err))
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
	_ = login
}

// A session that cannot be decoded any more must not keep its user from logging in.
func ExampleStore_Renew_overWhatCannotBeRead() {
	login := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if errors.Is(err, redistore.ErrNotDecoded) {
			maxAge := session.Options.MaxAge
			session.Options.MaxAge = -1
			if err := session.Save(r, w); err != nil { // Redis cannot be reached
				http.Error(w, "please try again", redistore.Status(err))
				return
			}
			session.ID, session.Options.MaxAge = "", maxAge
		}
		session.Values["user"] = "ann"
		if err := store.Renew(r, w, session); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
		}
	}
	_ = login
}

// Requests that change one session follow one another, on any number of servers.
func ExampleNewLockingStore() {
	store := redistore.NewLockingStore(redistore.New(client, key))
	handler := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session") // locks
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please try again", status)
			return
		}
		visits, _ := session.Values["visits"].(int)
		session.Values["visits"] = visits + 1
		if err := session.Save(r, w); err != nil { // unlocks
			http.Error(w, "please try again", redistore.Status(err))
		}
	}
	_ = handler
}

// A long handler locks the session only while it changes it.
func ExampleLockingStore_Update() {
	client, stop := startRedis()
	defer stop()
	store := redistore.NewLockingStore(redistore.New(client, key))
	handler := func(w http.ResponseWriter, r *http.Request) {
		err := store.Update(r, w, "session", func(session *sessions.Session) error {
			visits, _ := session.Values["visits"].(int)
			session.Values["visits"] = visits + 1
			return nil // an error saves nothing
		})
		if err != nil {
			http.Error(w, "please try again", redistore.Status(err))
		}
	}
	w := httptest.NewRecorder()
	handler(w, httptest.NewRequest("GET", "/", nil))
	fmt.Println(w.Code, len(w.Result().Cookies()))
	// Output: 200 1
}

// A logout need not wait for whoever holds the session.
func ExampleLockingStore_logout() {
	store := redistore.NewLockingStore(redistore.New(client, key))
	logout := func(w http.ResponseWriter, r *http.Request) {
		session, _ := store.Store.Get(r, "session") // takes no lock
		session.Options.MaxAge = -1
		if err := store.Save(r, w, session); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
	_ = logout
}

// A handler that only reads need not wait for those that write.
func ExampleLockingStore_withoutTheLock() {
	store := redistore.NewLockingStore(redistore.New(client, key))
	reader := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Store.Get(r, "session")
		if err == nil {
			fmt.Fprintln(w, session.Values["user"])
		}
	}
	_ = reader
}

// Two logins of one user, seen and ended by the user's name.
func ExampleSetOwner() {
	client, stop := startRedis()
	defer stop()
	store := redistore.New(client, key)
	for _, device := range []string{"phone", "laptop"} {
		r, w := httptest.NewRequest("POST", "/login", nil), httptest.NewRecorder()
		session, _ := store.Get(r, "session")
		session.Values["device"] = device
		redistore.SetOwner(session, "user:42") // before the login's Renew
		if err := store.Renew(r, w, session); err != nil {
			fmt.Println(err)
		}
	}

	for session, err := range store.Sessions(context.Background(), "user:42") {
		fmt.Println(session.Values["device"], err)
	}
	ended, err := store.Revoke(context.Background(), "user:42")
	fmt.Println(ended, err)
	for session := range store.Sessions(context.Background(), "user:42") {
		fmt.Println("still there:", session.Values["device"])
	}
	// Unordered output:
	// phone <nil>
	// laptop <nil>
	// 2 <nil>
}

// Log out everywhere but here.
func ExampleStore_Revoke() {
	login := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please try again", status)
			return
		}
		redistore.SetOwner(session, "user:42")
		if err := store.Renew(r, w, session); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
	logoutElsewhere := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please try again", status)
			return
		}
		owner := redistore.Owner(session)
		if owner == "" {
			http.Error(w, "please log in", http.StatusForbidden)
			return
		}
		ended, err := store.Revoke(r.Context(), owner, session.ID)
		if err != nil { // some of them may be alive
			http.Error(w, "please try again", redistore.Status(err))
			return
		}
		fmt.Fprintln(w, "sessions ended elsewhere:", ended)
	}
	_, _ = login, logoutElsewhere
}

// Show a user their sessions, and end one of them.
func ExampleStore_Sessions() {
	logoutThere := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please try again", status)
			return
		}
		owner := redistore.Owner(session) // nobody has no sessions
		for s, err := range store.Sessions(r.Context(), owner) {
			if s != nil && redistore.PublicID(s) == r.FormValue("session") {
				s.Options.MaxAge = -1
				err = s.Save(r, w) // this browser's cookie stays
			}
			if err != nil && !errors.Is(err, redistore.ErrNotDecoded) {
				http.Error(w, "please try again", redistore.Status(err))
				return
			}
		}
	}
	_ = logoutThere
}

func ExampleEncrypt() {
	store := redistore.New(client, key)
	store.Serializer = redistore.Encrypt(redistore.GobSerializer{}, encryptionKey)
}

// Sessions from before Encrypt was switched on are let in until they have expired.
// Meanwhile, values planted in Redis are let in too.
type plainToo struct{ redistore.Serializer }

func (p plainToo) Deserialize(data []byte, session *sessions.Session) error {
	encrypted := p.Serializer.Deserialize(data, session)
	if encrypted == nil {
		return nil
	}
	plain := redistore.GobSerializer{}.Deserialize(data, session) // as they were stored before
	if plain == nil {
		return nil
	}
	return errors.Join(encrypted, plain)
}

func ExampleEncrypt_switchingOn() {
	store := redistore.New(client, key)
	store.Serializer = plainToo{redistore.Encrypt(redistore.GobSerializer{}, encryptionKey)}
}

// A Serializer of one's own can wrap another, here to store less.
type compressed struct{ redistore.Serializer }

const maxPlain = 1 << 20 // 1 MiB, whatever a planted value claims to be

func (c compressed) Serialize(session *sessions.Session) ([]byte, error) {
	plain, err := c.Serializer.Serialize(session)
	if err != nil {
		return nil, err
	}
	if len(plain) > maxPlain {
		return nil, redistore.ErrTooLarge // or Get could not read it
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err = w.Write(plain)
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}

func (c compressed) Deserialize(data []byte, session *sessions.Session) error {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPlain))
	if err != nil {
		return err
	}
	return c.Serializer.Deserialize(plain, session)
}

// TestCompressedRefusesWhatItCouldNotRead: MaxLength counts what is stored, which is short.
func TestCompressedRefusesWhatItCouldNotRead(t *testing.T) {
	for size, want := range map[int]error{maxPlain / 2: nil, maxPlain + 1: redistore.ErrTooLarge} {
		session := sessions.NewSession(nil, "session")
		session.Values["terms"] = strings.Repeat("x", size)
		data, err := compressed{redistore.GobSerializer{}}.Serialize(session)
		if err == nil {
			err = compressed{redistore.GobSerializer{}}.Deserialize(data, sessions.NewSession(nil, "session"))
		}
		if !errors.Is(err, want) {
			t.Errorf("%d bytes: got %v, want %v", size, err, want)
		}
	}
}

func ExampleSerializer() {
	client, stop := startRedis()
	defer stop()
	store := redistore.New(client, key)
	store.Serializer = compressed{redistore.GobSerializer{}}

	r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
	session, _ := store.Get(r, "session")
	session.Values["terms"] = strings.Repeat("and so on, ", 1000)
	if err := session.Save(r, w); err != nil {
		fmt.Println(err)
	}
	size := client.StrLen(r.Context(), "session_"+session.ID).Val()
	fmt.Println(size < 1000)

	r = httptest.NewRequest("GET", "/", nil)
	r.AddCookie(w.Result().Cookies()[0])
	session, err := store.Get(r, "session")
	fmt.Println(len(session.Values["terms"].(string)), err)
	// Output:
	// true
	// 11000 <nil>
}

// Users who are logged in under sessions.CookieStore stay so.
func ExampleStore_cookieStoreUntil() {
	store := redistore.New(client, key) // the same keys
	store.CookieStoreUntil = time.Date(2027, time.January, 31, 0, 0, 0, 0, time.UTC)
}

// From boj/redistore: the same keys, and all sessions are read as they are.
func ExampleNew_fromBoj() {
	// store, err := redistore.NewRediStore(10, "tcp", ":6379", "", "", key)
	client := redis.NewClient(&redis.Options{Addr: ":6379", ContextTimeoutEnabled: true})
	store := redistore.New(client, key)
	store.Options.Secure = false // only if users come over plain HTTP
	_ = store
}

func ExampleJSONSerializer() {
	session := sessions.NewSession(nil, "session")
	session.Values["user"] = "ann"
	session.Values["visits"] = 3
	data, _ := redistore.JSONSerializer{}.Serialize(session)
	fmt.Println(string(data))

	session.Values["raw"] = []byte{1, 2, 3}
	_, err := redistore.JSONSerializer{}.Serialize(session)
	fmt.Println(err)
	// Output:
	// {"user":"ann","visits":3}
	// JSONSerializer: Values["raw"]: []byte would come back as base64 text
}
