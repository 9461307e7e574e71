package redistore

import (
	"net/http"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
)

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

// TestAbsoluteTimeoutCountsByTheServersClocks: by as much as they differ, a session lives
// shorter on the one, and longer where it was made by a clock that is ahead.
func TestAbsoluteTimeoutCountsByTheServersClocks(t *testing.T) {
	srv := startMini(t)
	one, _ := srv.store(t)
	two, _ := srv.store(t)
	one.AbsoluteTimeout, two.AbsoluteTimeout = time.Hour, time.Hour
	for ahead, user := range map[time.Duration]string{50 * time.Minute: "ann", 70 * time.Minute: ""} {
		two.now = func() time.Time { return srv.now().Add(ahead) }
		equal(t, "user of a session that is made by the other's clock", login(t, one).user(t, two), user)
		equal(t, "user of a session that is made by a clock ahead", login(t, two).user(t, one), "ann")
	}
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
