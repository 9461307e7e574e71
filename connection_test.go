package redistore

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// TestAReplyCutShortIsAnError cuts the connection after so many bytes of what Redis replies
// to a call: the call returns an error, or the whole of what was asked for.
func TestAReplyCutShortIsAnError(t *testing.T) {
	calls := map[string]func(t *testing.T, store *Store, r *http.Request) error{
		"Get": func(t *testing.T, store *Store, r *http.Request) error {
			s, err := store.Get(r, "s")
			if err == nil {
				equal(t, "user", s.Values["user"], any("ann"))
			}
			return err
		},
		"Save": func(t *testing.T, store *Store, r *http.Request) error {
			s, err := store.Get(r, "s")
			if err != nil {
				return err
			}
			w := httptest.NewRecorder()
			err = s.Save(r, w)
			equal(t, "a cookie is set", len(w.Result().Cookies()) == 1, err == nil)
			return err
		},
		"Sessions": func(t *testing.T, store *Store, r *http.Request) error {
			list, err := collect(t, store, "ann")
			if err == nil {
				equal(t, "sessions", len(list), 3)
			}
			return err
		},
		"Limit": func(t *testing.T, store *Store, r *http.Request) error {
			_, err := store.Limit(r.Context(), "ann", 3)
			return err
		},
		"Revoke": func(t *testing.T, store *Store, r *http.Request) error {
			_, err := store.Revoke(r.Context(), "nobody")
			return err
		},
		"Ping": func(t *testing.T, store *Store, r *http.Request) error { return store.Ping(r.Context()) },
	}
	onServers(t, func(t *testing.T, srv *server) {
		calm, _ := srv.store(t)
		loginAs(t, calm, "ann")
		loginAs(t, calm, "ann")
		b := loginAs(t, calm, "ann")
		for name, call := range calls {
			t.Run(name, func(t *testing.T) {
				// The step is none of RESP's usual lengths, so that all places in it come up.
				bytes := int64(0)
				for cut := true; cut; bytes += 3 {
					c := &cutter{}
					client := srv.client(t, c.options)
					c.left.Store(uncut)
					must(t, client.Ping(t.Context()).Err()) // on a connection that is kept
					c.left.Store(bytes)
					err := call(t, New(client, hashKey), b.request(t))
					if cut = c.left.Load() > uncut/2; !cut {
						must(t, err)
					}
					client.Close()
				}
				if bytes < 9 {
					t.Errorf("the reply had %d bytes: this shows nothing", bytes-3)
				}
			})
		}
	})
}

// cutter makes connections that can be cut in the middle of a reply, and are not replaced.
type cutter struct{ left atomic.Int64 } // how many bytes still arrive before the cut

const uncut = 1 << 40

func (c *cutter) options(o *redis.Options) {
	o.MaxRetries = -1
	wrapConnections(o, func(conn net.Conn) net.Conn { return &cutConn{conn, c} })
}

type cutConn struct {
	net.Conn
	c *cutter
}

// Read cuts one connection only: those that are made after it work.
func (c *cutConn) Read(b []byte) (int, error) {
	left := c.c.left.Load()
	if left == 0 {
		c.c.left.Store(uncut)
		c.Close()
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), left)])
	c.c.left.Add(-int64(n))
	return n, err
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
	wrapConnections(o, func(c net.Conn) net.Conn { return &refusingConn{c, f, ""} })
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

func (redisError) RedisError() {}

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
