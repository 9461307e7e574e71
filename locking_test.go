package redistore

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/lock"
	"github.com/redistore/redistore/internal/redisserver"
	"github.com/redistore/redistore/internal/script"
)

var _ sessions.Store = (*LockingStore)(nil)

// locking returns a LockingStore and a record of the commands it sends.
func (s *server) locking(t *testing.T) (*LockingStore, *recorder) {
	store, rec := s.store(t)
	return NewLockingStore(store), rec
}

func count(s *sessions.Session) int {
	n, _ := s.Values["n"].(int)
	return n
}

func TestDropInWithTheLock(t *testing.T) {
	for name, behaviour := range dropIn {
		t.Run(name, func(t *testing.T) {
			onServers(t, func(t *testing.T, srv *server) {
				if srv.mini != nil {
					srv.mini.ClockTTL(true)
				}
				store := NewLockingStore(New(srv.client(t), hashKey, blockKey))
				store.TTL = 20 * time.Millisecond // the table's requests have no end that could unlock
				behaviour(t, store, store.MaxAge)
			})
		})
	}
}

// TestNoLostUpdate increments one session from many requests, over several stores
// with clients of their own.
func TestNoLostUpdate(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		first, _ := srv.locking(t)
		b := login(t, first)
		var saved atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			store := NewLockingStore(New(srv.client(t), hashKey))
			for i := range 8 {
				wg.Go(func() {
					for range 20 {
						r, end := b.lived(t)
						err := increment(store, r, i%2 == 0)
						end()
						if err != nil {
							t.Error(err)
							continue
						}
						saved.Add(1)
					}
				})
			}
		}
		wg.Wait()
		s, _, _ := b.get(t, first.Store)
		equal(t, "n", count(s), 4*8*20)
		equal(t, "saved", saved.Load(), 4*8*20)
	})
}

// increment adds one to n, by a whole request or by Update.
func increment(store *LockingStore, r *http.Request, update bool) error {
	w := httptest.NewRecorder()
	add := func(s *sessions.Session) error {
		if s.Values["user"] != "ann" {
			return fmt.Errorf("loaded %+v", s)
		}
		s.Values["n"] = count(s) + 1
		return nil
	}
	if update {
		return store.Update(r, w, "s", add)
	}
	s, err := store.Get(r, "s")
	if err != nil {
		return err
	}
	if err := add(s); err != nil {
		return err
	}
	return s.Save(r, w)
}

// TestMain also serves as the processes that the tests start.
func TestMain(m *testing.M) {
	if addr := os.Getenv("REDISTORE_TEST_ADDR"); addr != "" {
		os.Exit(child(addr))
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("8") // most of them wait for Redis, or for a time-out
	}
	os.Exit(m.Run())
}

// child is another process with a LockingStore. It does what the lines on its
// standard input say, and answers each with one line.
func child(addr string) int {
	srv := &server{addr: addr}
	if srv.user = os.Getenv("REDISTORE_TEST_USER"); srv.user != "" {
		srv.tls = &tls.Config{InsecureSkipVerify: true} // the parent has looked at the certificate
	}
	store := NewLockingStore(New(redis.NewClient(srv.options()), hashKey))
	if ttl, err := time.ParseDuration(os.Getenv("REDISTORE_TEST_TTL")); err == nil {
		store.TTL = ttl
	}
	b := browser{"s": os.Getenv("REDISTORE_TEST_COOKIE")}
	newRequest := func() *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
		return r
	}
	var s *sessions.Session
	var r *http.Request
	for {
		var command string
		var n int
		if _, err := fmt.Scanln(&command, &n); err != nil {
			return 0
		}
		var err error
		switch command {
		case "add": // n increments, by 4 goroutines
			var failed atomic.Pointer[error]
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for i := range n / 4 {
						ctx, end := context.WithCancel(context.Background())
						if err := increment(store, newRequest().WithContext(ctx), i%2 == 0); err != nil {
							failed.Store(&err)
						}
						end()
					}
				})
			}
			wg.Wait()
			if e := failed.Load(); e != nil {
				err = *e
			}
		case "load":
			r = newRequest()
			s, err = store.Get(r, "s")
		case "save":
			s.Values["n"] = n
			err = s.Save(r, httptest.NewRecorder())
		}
		fmt.Printf("%v\n", err)
	}
}

// process is a child.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
}

func startChild(t *testing.T, srv *server, b browser, ttl time.Duration) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REDISTORE_TEST_ADDR="+srv.addr, "REDISTORE_TEST_USER="+srv.user, "REDISTORE_TEST_COOKIE="+b["s"], "REDISTORE_TEST_TTL="+ttl.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = redisserver.Resume(cmd.Process)
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &process{t, cmd, in, out}
}

func (p *process) send(command string, n int) { fmt.Fprintln(p.in, command, n) }

// answer returns the child's next line: the error of what it did.
func (p *process) answer() string {
	p.t.Helper()
	var line []byte
	for one := make([]byte, 1); ; {
		if _, err := p.out.Read(one); err != nil {
			p.t.Fatalf("the child process ended: %v", err)
		}
		if one[0] == '\n' {
			return string(line)
		}
		line = append(line, one[0])
	}
}

func (p *process) signal(send func(*os.Process) error) { must(p.t, send(p.cmd.Process)) }

func TestNoLostUpdateAcrossProcesses(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	b := login(t, store)
	each := 2500
	if testing.Short() {
		each = 100
	}
	var children []*process
	for range 4 {
		c := startChild(t, srv, b, 10*time.Second)
		c.send("add", each)
		children = append(children, c)
	}
	for _, c := range children {
		equal(t, "error of a process", c.answer(), "<nil>")
	}
	s, _, _ := b.get(t, store.Store)
	equal(t, "n", count(s), 4*each)
}

func TestLockRoundTrips(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		equal(t, "a new session", rec.take(), "set")

		for _, eval := range []string{"eval", "evalsha"} { // the first time Redis gets the whole script
			r, end := b.lived(t)
			s, err := store.Get(r, "s")
			must(t, err)
			equal(t, "Get", rec.take(), eval)
			must(t, s.Save(r, httptest.NewRecorder()))
			equal(t, "Save", rec.take(), eval)
			end()
			srv.free(t)
			equal(t, "the end of the request", rec.take(), "")
		}
		for _, eval := range []string{"eval", "evalsha"} {
			r, end := b.lived(t)
			_, err := store.Get(r, "s")
			must(t, err)
			end()
			srv.free(t)
			equal(t, "a request that does not save", rec.take(), "evalsha "+eval)
		}
		r, end := b.lived(t)
		must(t, store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { return nil }))
		end()
		equal(t, "Update", rec.take(), "evalsha evalsha")
		equal(t, "user without the lock", b.user(t, store.Store), "ann")
		equal(t, "reading without the lock", rec.take(), "get")
	})
}

func TestTheLeaseIsHarmless(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		other, _ := srv.locking(t)
		for name, work := range map[string]func(*LockingStore, *http.Request, *sessions.Session) error{
			"Save": func(l *LockingStore, r *http.Request, s *sessions.Session) error {
				return l.Save(r, httptest.NewRecorder(), s)
			},
			"Renew": func(l *LockingStore, r *http.Request, s *sessions.Session) error {
				return l.Renew(r, httptest.NewRecorder(), s)
			},
		} {
			// The holder pauses for longer than TTL, and another saves: the very same bytes
			// that the holder wants to save.
			b := login(t, store)
			s, r := load(t, store, b)
			srv.forward(t, store.TTL+time.Second)
			o, or := load(t, other, b)
			s.Values, o.Values = map[any]any{"n": 1}, map[any]any{"n": 1}
			must(t, o.Save(or, httptest.NewRecorder()))
			wantErr(t, work(store, r, s), ErrConflict)
			now, _, _ := b.get(t, store.Store)
			equal(t, name+": Values", fmt.Sprint(now.Values), "map[n:1]")

			// The same, but the other has it locked when the holder comes back.
			s, r = load(t, store, b)
			srv.forward(t, store.TTL+time.Second)
			o, or = load(t, other, b)
			saved := make(chan error)
			go func() { saved <- work(store, r, s) }()
			o.Values["n"] = 2
			must(t, o.Save(or, httptest.NewRecorder()))
			wantErr(t, <-saved, ErrConflict)

			// The lease ran out, and nobody changed the session.
			s, r = load(t, store, b)
			srv.forward(t, store.TTL+time.Second)
			s.Values["n"] = 3
			must(t, work(store, r, s))
			srv.free(t)
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

func TestAStoppedProcessOverwritesNothing(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	b := login(t, store)
	const ttl = 100 * time.Millisecond

	holder := startChild(t, srv, b, ttl)
	holder.send("load", 0)
	equal(t, "load", holder.answer(), "<nil>")
	holder.signal(redisserver.Pause)
	s, r := load(t, store, b) // gets it when the lease has run out
	s.Values["n"] = 1
	must(t, s.Save(r, httptest.NewRecorder()))
	holder.signal(redisserver.Resume)
	holder.send("save", 666)
	equal(t, "the stopped holder's Save", holder.answer(), ErrConflict.Error())
	s, _, _ = b.get(t, store.Store)
	equal(t, "n", count(s), 1)

	holder.send("load", 0)
	equal(t, "load", holder.answer(), "<nil>")
	holder.signal(redisserver.Pause)
	srv.free(t) // the lease has run out
	holder.signal(redisserver.Resume)
	holder.send("save", 2)
	equal(t, "Save, nobody having changed it", holder.answer(), "<nil>")
	s, _, _ = b.get(t, store.Store)
	equal(t, "n", count(s), 2)
}

// TestACrashDelaysAndFailsNobody runs with the default settings: the lock of a
// process that was killed is had after TTL, which is less than Wait.
func TestACrashDelaysAndFailsNobody(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	b := login(t, store)
	holder := startChild(t, srv, b, store.TTL)
	holder.send("load", 0)
	equal(t, "load", holder.answer(), "<nil>")
	holder.signal((*os.Process).Kill)
	start := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, end := b.lived(t)
			defer end()
			must(t, increment(store, r, false))
		})
	}
	wg.Wait()
	if took := time.Since(start); took > store.TTL+3*time.Second {
		t.Errorf("the last of 8 requests came through after %v", took)
	}
	s, _, _ := b.get(t, store.Store)
	equal(t, "n", count(s), 8)
}

func TestALostReplyIsNoLostLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		lost := &lossy{}
		store := NewLockingStore(New(srv.client(t, lost.options), hashKey))
		b := login(t, store)
		n := 0
		add := func(s *sessions.Session) { n++; s.Values["n"] = n }

		lost.replies.Store(1)
		s, r := load(t, store, b)
		add(s)
		lost.replies.Store(1)
		must(t, s.Save(r, httptest.NewRecorder()))
		srv.free(t)

		r, end := b.lived(t)
		_, err := store.Get(r, "s")
		must(t, err)
		lost.replies.Store(1)
		end() // unlock
		srv.free(t)

		lost.replies.Store(2) // of both scripts, the first reply
		r, end = b.lived(t)
		must(t, store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
			add(s)
			lost.replies.Store(1)
			return nil
		}))
		end()
		srv.free(t)
		s, _, _ = b.get(t, store.Store)
		equal(t, "n", count(s), n)
	})
}

// TestALostReplyIsNotMistakenForSomebodyElse has another request come between a
// save whose reply was lost and its repeat. ErrGone and ErrConflict would say that
// nothing was written, which nobody knows.
func TestALostReplyIsNotMistakenForSomebodyElse(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		between := func(step string, what func(b browser)) {
			client := srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 })
			store := NewLockingStore(New(client, hashKey))
			b := login(t, store)
			s, r := load(t, store, b)
			first := true
			client.AddHook(hook{after: func(cmd redis.Cmder) {
				if first && strings.HasPrefix(cmd.Name(), "eval") {
					first = false
					what(b)
					cmd.SetErr(io.EOF)
				}
			}})
			s.Values["n"] = 1
			err := store.Save(r, httptest.NewRecorder(), s)
			if step == "logout" { // before which it was saved: Redis still knows
				must(t, err)
			} else {
				wantErr(t, err, io.EOF)
				wantText(t, err, "redistore: save: ")
			}
			if errors.Is(err, ErrGone) || errors.Is(err, ErrConflict) {
				t.Errorf("%s: got %v", step, err)
			}
			srv.free(t)
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
		other, _ := srv.locking(t)
		between("logout", func(b browser) {
			s, r := load(t, other.Store, b)
			s.Options.MaxAge = -1
			must(t, s.Save(r, httptest.NewRecorder()))
		})
		between("another save", func(b browser) {
			s, r := load(t, other, b)
			s.Values["n"] = 2
			must(t, s.Save(r, httptest.NewRecorder()))
		})
		// The request never reached Redis, the lease ran out, and another wrote the very
		// bytes: they are not the repeat's own.
		t.Run("equal bytes", func(t *testing.T) {
			client := srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 })
			store := NewLockingStore(New(client, hashKey))
			store.TTL = time.Millisecond
			b := login(t, store)
			s, r := load(t, store, b)
			srv.forward(t, time.Second)
			client.AddHook(&recorder{fail: failFirst("evalsha", "eval", func() {
				o, or := load(t, other, b)
				o.Values = map[any]any{"n": 1}
				must(t, o.Save(or, httptest.NewRecorder()))
			})})
			s.Values = map[any]any{"n": 1}
			wantErr(t, s.Save(r, httptest.NewRecorder()), io.EOF)
		})
	})
}

// failFirst fails the first command of either name, before it is sent, and lets
// something happen meanwhile.
func failFirst(name, alias string, meanwhile func()) func(string) error {
	first := true
	return func(n string) error {
		if !first || n != name && n != alias {
			return nil
		}
		first = false
		meanwhile()
		return io.EOF
	}
}

// TestTheEndOfTheRequestUnlocks runs in a real http.Server.
func TestTheEndOfTheRequestUnlocks(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		var handler http.HandlerFunc
		web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler(w, r) }))
		web.Config.ErrorLog = nil
		web.Start()
		defer web.Close()
		get := func(ctx context.Context) {
			r, _ := http.NewRequestWithContext(ctx, "GET", web.URL, nil)
			r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
			if res, err := http.DefaultClient.Do(r); err == nil {
				res.Body.Close()
			}
		}
		locked := func(r *http.Request) {
			_, err := store.Get(r, "s")
			must(t, err)
			equal(t, "keys", len(srv.keys(t)), 2)
		}

		handler = func(w http.ResponseWriter, r *http.Request) { locked(r) }
		get(t.Context())
		srv.free(t)
		handler = func(w http.ResponseWriter, r *http.Request) { locked(r); panic(http.ErrAbortHandler) }
		get(t.Context())
		srv.free(t)
		// The client hangs up, and the handler goes on: the session is free, and the
		// handler can still save.
		ctx, hangUp := context.WithCancel(t.Context())
		saved := make(chan error, 1)
		handler = func(w http.ResponseWriter, r *http.Request) {
			locked(r)
			hangUp()
			<-r.Context().Done()
			srv.free(t)
			s, _ := store.Get(r, "s")
			s.Values["n"] = 1
			saved <- s.Save(r, w)
		}
		get(ctx)
		must(t, <-saved)
		s, _, _ := b.get(t, store.Store)
		equal(t, "n", count(s), 1)
	})
}

func TestOnlyOurOwnLockIsReleased(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		key, _ := srv.only(t)
		for _, save := range []bool{false, true} {
			r, end := b.lived(t)
			s, err := store.Get(r, "s")
			must(t, err)
			must(t, srv.admin.Set(t.Context(), lock.Key(key), "another's", time.Minute).Err())
			if save {
				must(t, srv.admin.Set(t.Context(), key, "another's", time.Minute).Err())
				wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
			}
			end()
			eventually(t, "the request has ended", func() bool { return store.waiting() == -1 })
			equal(t, "lock", srv.admin.Get(t.Context(), lock.Key(key)).Val(), "another's")
			must(t, srv.admin.Del(t.Context(), lock.Key(key)).Err())
		}
	})
}

func TestScriptFlushIsSurvived(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		for n := range 3 {
			must(t, srv.admin.ScriptFlush(t.Context()).Err())
			r, end := b.lived(t)
			s, err := store.Get(r, "s")
			must(t, err)
			equal(t, "n", count(s), n)
			s.Values["n"] = n + 1
			must(t, srv.admin.ScriptFlush(t.Context()).Err())
			must(t, s.Save(r, httptest.NewRecorder()))
			_, err = store.New(r, "s")
			must(t, err)
			must(t, srv.admin.ScriptFlush(t.Context()).Err())
			end()
			srv.free(t)
		}
	})
}

// TestOneRequestManyCalls shows that a request does not wait for itself, nor
// conflict with itself. A deadlock would show as ErrLocked.
func TestOneRequestManyCalls(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.Wait = 0
		add := func(s *sessions.Session, r *http.Request) {
			t.Helper()
			s.Values["n"] = count(s) + 1
			must(t, s.Save(r, httptest.NewRecorder()))
		}
		refused := func(s *sessions.Session, r *http.Request) {
			t.Helper()
			wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
		}
		must2 := func(s *sessions.Session, err error) *sessions.Session { t.Helper(); must(t, err); return s }
		for name, c := range map[string]struct {
			handle func(r *http.Request)
			want   int
		}{
			"Get, New, save both": {func(r *http.Request) {
				a, b := must2(store.Get(r, "s")), must2(store.New(r, "s"))
				add(a, r)
				refused(b, r) // it has not seen the other's
			}, 1},
			"New, save, Get, save": {func(r *http.Request) {
				add(must2(store.New(r, "s")), r)
				add(must2(store.Get(r, "s")), r)
			}, 2},
			"two Saves": {func(r *http.Request) { s := must2(store.Get(r, "s")); add(s, r); add(s, r) }, 2},
			"Renew and Saves": {func(r *http.Request) {
				s := must2(store.Get(r, "s"))
				add(s, r)
				must(t, store.Renew(r, httptest.NewRecorder(), s))
				add(s, r)
				add(s, r)
			}, 3},
			"sessions.Save of two names": {func(r *http.Request) {
				a, b := must2(store.Get(r, "s")), must2(store.Get(r, "other"))
				a.Values["n"], b.Values["n"] = 1, 2
				must(t, sessions.Save(r, httptest.NewRecorder()))
				add(a, r)
			}, 2},
			"a copy of the request, made after Get": {func(r *http.Request) {
				must2(store.Get(r, "s"))
				type key struct{}
				again := r.WithContext(context.WithValue(r.Context(), key{}, 1))
				add(must2(store.Get(again, "s")), again)
				add(must2(store.New(again, "s")), r)
			}, 2},
			"a clone of the request, made after Get": {func(r *http.Request) {
				must2(store.Get(r, "s"))
				again := r.Clone(r.Context())
				add(must2(store.New(again, "s")), again)
			}, 1},
			"copies of the request, made before Get": {func(r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
				defer cancel()
				again := r.WithContext(ctx)
				b := must2(store.Get(again, "s"))
				a := must2(store.Get(r, "s"))
				add(b, again)
				refused(a, r)
				add(must2(store.Get(r, "s")), r)
			}, 2},
			"Update after Get": {func(r *http.Request) {
				s := must2(store.Get(r, "s"))
				s.Values["n"] = 666 // not saved
				must(t, increment(store, r, true))
				equal(t, "n of the session that was loaded before", count(s), 1)
				must(t, increment(store, r, true))
				add(s, r)
			}, 3},
			"Update before Get": {func(r *http.Request) {
				must(t, increment(store, r, true))
				add(must2(store.Get(r, "s")), r)
			}, 2},
			"Update in Update": {func(r *http.Request) {
				must(t, store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
					s.Values["n"] = count(s) + 1
					return increment(store, r, true)
				}))
			}, 2},
		} {
			b := login(t, store)
			r, end := b.lived(t)
			c.handle(r)
			end()
			srv.free(t)
			if key := "session_" + must2(store.Store.New(b.request(t), "s")).ID; name != "Renew and Saves" {
				s, _, _ := b.get(t, store.Store)
				equal(t, name+": n in "+key, count(s), c.want)
			} else {
				key, data := srv.only(t)
				s := sessions.NewSession(store, "s")
				must(t, GobSerializer{}.Deserialize([]byte(data), s))
				equal(t, name+": n in "+key, count(s), c.want)
			}
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestAStaleSessionOfTheSameRequestIsRefused loads a session, has another request
// change it, and loads it again: only the second may be saved.
func TestAStaleSessionOfTheSameRequestIsRefused(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		stale, r := load(t, store, b)
		srv.forward(t, store.TTL+time.Second)
		must(t, store.Save(r, httptest.NewRecorder(), stale)) // unlocks in this process too
		r2, end := b.lived(t)
		must(t, increment(store, r2, false))
		end()
		fresh, err := store.New(r, "s")
		must(t, err)
		stale.Values["n"] = 666
		wantErr(t, stale.Save(r, httptest.NewRecorder()), ErrConflict)
		fresh.Values["n"] = count(fresh) + 1
		must(t, fresh.Save(r, httptest.NewRecorder()))
		s, _, _ := b.get(t, store.Store)
		equal(t, "n", count(s), 2)
	})
}

func TestWhatWasLoadedWithoutTheLockCannotBeSavedWithIt(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store.Store, b)
		_, before := srv.only(t)
		s.Values["n"] = 1
		wantErr(t, store.Save(r, httptest.NewRecorder(), s), ErrConflict)
		wantErr(t, store.Renew(r, httptest.NewRecorder(), s), ErrConflict)
		s.ID = ""
		wantErr(t, store.Save(r, httptest.NewRecorder(), s), ErrConflict)
		_, after := srv.only(t)
		equal(t, "what is stored", after, before)
	})
}

// TestWaitingInLine shows that the requests of one process come first come first
// served.
func TestWaitingInLine(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store, b)
		rec.take()
		const n = 20
		order := make(chan int, n)
		for i := range n {
			go func() {
				r, end := b.lived(t)
				defer end()
				s, err := store.Get(r, "s")
				must(t, err)
				order <- i
				must(t, s.Save(r, httptest.NewRecorder()))
			}()
			eventually(t, "the request stands in line", func() bool { return store.waiting() == i+1 })
		}
		must(t, s.Save(r, httptest.NewRecorder()))
		for i := range n {
			equal(t, "served", <-order, i)
		}
		eventually(t, "all are done", func() bool { return store.waiting() == -1 })
		equal(t, "commands", len(strings.Fields(rec.take())), 1+2*n) // nobody asked in vain
	})
}

// waiting is how many requests of this process wait for a session; -1 if none even
// holds one.
func (l *LockingStore) waiting() int {
	stats := l.Stats()
	if stats.Held == 0 {
		return -1
	}
	return stats.Waiting
}

func TestWaitingIsBounded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		here, rec := srv.locking(t)
		there, _ := srv.locking(t)
		b := login(t, here)
		load(t, here, b)
		refused := func(name string, store *LockingStore, r *http.Request, because error) {
			t.Helper()
			rec.take()
			s, err := store.Get(r, "s")
			wantErr(t, err, ErrLocked)
			wantErr(t, err, ErrNotLoaded)
			if because != nil {
				wantErr(t, err, because)
			}
			equal(t, name+": Values", len(s.Values), 0)
			s.Values["user"] = "eve"
			wantErr(t, s.Save(r, httptest.NewRecorder()), ErrNotLoaded)
			called := false
			err = store.Update(b.request(t), httptest.NewRecorder(), "s", func(*sessions.Session) error { called = true; return nil })
			if because == nil {
				wantErr(t, err, ErrLocked)
				equal(t, name+": fn was called", called, false)
			}
		}
		here.Wait, there.Wait = 0, 0
		refused("Wait 0, in this process", here, b.request(t), nil)
		equal(t, "commands", rec.take(), "")
		refused("Wait 0, in another", there, b.request(t), nil)
		here.Wait, there.Wait = 20*time.Millisecond, 20*time.Millisecond
		refused("Wait, in this process", here, b.request(t), nil)
		refused("Wait, in another", there, b.request(t), nil)

		here.Wait, there.Wait = time.Minute, time.Minute
		for _, store := range []*LockingStore{here, there} {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // time for a first answer, also on a busy machine
			defer cancel()
			s, err := store.Get(b.request(t).WithContext(ctx), "s")
			wantErr(t, err, ErrLocked)
			wantErr(t, err, context.DeadlineExceeded)
			equal(t, "Values", len(s.Values), 0)
		}

		here.MaxWaiters = 3
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			wg.Go(func() {
				_, err := here.Get(b.request(t).WithContext(ctx), "s")
				wantErr(t, err, ErrLocked)
				wantErr(t, err, context.Canceled)
			})
		}
		eventually(t, "three wait", func() bool { return here.waiting() == 3 })
		refused("MaxWaiters", here, b.request(t), nil)
		cancel()
		wg.Wait()
		equal(t, "waiting", here.waiting(), 0)
		equal(t, "user", b.user(t, here.Store), "ann")
	})
}

// TestABurstIsFairAndCheap has 64 requests in 2 processes' stores want one session
// at once.
func TestABurstIsFairAndCheap(t *testing.T) {
	srv := startRedis(t)
	one, rec1 := srv.locking(t)
	two, rec2 := srv.locking(t)
	b := login(t, one)
	start := make(chan struct{})
	waits := make([]time.Duration, 64)
	var wg sync.WaitGroup
	for i := range waits {
		store := []*LockingStore{one, two}[i%2]
		wg.Go(func() {
			<-start
			began := time.Now()
			r, end := b.lived(t)
			defer end()
			s, err := store.Get(r, "s")
			must(t, err)
			waits[i] = time.Since(began)
			time.Sleep(time.Millisecond) // the handler's work
			s.Values["n"] = count(s) + 1
			must(t, s.Save(r, httptest.NewRecorder()))
		})
	}
	rec1.take()
	close(start)
	wg.Wait()
	s, _, _ := b.get(t, one.Store)
	equal(t, "n", count(s), len(waits))
	slices.Sort(waits)
	if median, longest := waits[len(waits)/2], waits[len(waits)-1]; longest > 3*median {
		t.Errorf("the longest wait is %v, the median %v", longest, median)
	}
	gets := strings.Count(rec1.take()+" "+rec2.take(), "eval") - len(waits) // without the Saves
	if gets > 3*len(waits) {
		t.Errorf("%d commands for %d acquisitions", gets, len(waits))
	}
}

// TestAProcessStandsBack shows that the requests of one process do not pass the lock
// on among themselves for long while another process waits. The sections are so long
// that the other would not come through by chance.
func TestAProcessStandsBack(t *testing.T) {
	srv := startRedis(t)
	const section = 50 * time.Millisecond
	busy, _ := srv.locking(t)
	other, _ := srv.locking(t)
	b := login(t, busy)
	var stop atomic.Bool
	var turns atomic.Int64 // of the busy one
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				r, end := b.lived(t)
				s, err := busy.Get(r, "s")
				must(t, err)
				turns.Add(1)
				time.Sleep(section)
				must(t, s.Save(r, httptest.NewRecorder()))
				end()
			}
		})
	}
	for range 8 {
		r, end := b.lived(t)
		before := turns.Load()
		must(t, increment(other, r, false))
		end()
		if passed := turns.Load() - before; passed > 4 {
			t.Errorf("the other process had to let %d pass", passed)
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestUnknownIDsTakeNoLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		store.Wait = 0
		b := login(t, store)
		must(t, srv.admin.FlushDB(t.Context()).Err())
		for range 2 {
			s, _ := load(t, store, b)
			equal(t, "IsNew", s.IsNew, true)
			equal(t, "keys", len(srv.keys(t)), 0)
		}
		s, r := load(t, store, browser{})
		must(t, s.Save(r, httptest.NewRecorder()))
		equal(t, "keys", len(srv.keys(t)), 1)
		equal(t, "in line", store.waiting(), -1)
		rec.take()
	})
}

func TestLogoutWins(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		for name, by := range map[string]sessions.Store{"the wrapper": store, "the plain store": store.Store} {
			for _, other := range []string{"save", "renew", "nothing"} {
				b := login(t, store)
				r, end := b.lived(t)
				s, err := store.Get(r, "s")
				must(t, err)

				out := sessions.NewSession(by, "s") // as a logout finds it that does not wait
				out.ID, out.Options = s.ID, &sessions.Options{MaxAge: -1}
				must(t, out.Save(b.request(t), httptest.NewRecorder()))
				if by == store {
					equal(t, "keys after logout by "+name, len(srv.keys(t)), 0)
				}
				nobody := NewLockingStore(store.Store) // in another process: it waits for nothing
				nobody.Wait = 0
				again, _ := load(t, nobody, b)
				equal(t, "IsNew", again.IsNew, true)
				switch other {
				case "save":
					wantErr(t, s.Save(r, httptest.NewRecorder()), ErrGone)
				case "renew":
					wantErr(t, store.Renew(r, httptest.NewRecorder(), s), ErrGone)
				}
				end()
				srv.free(t)
				equal(t, "keys after "+other, len(srv.keys(t)), 0)
			}
		}
	})
}

func TestUpdate(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		s, err := store.Get(r, "s")
		must(t, err)
		_, before := srv.admin.Get(t.Context(), "session_"+s.ID).Val(), rec.take()

		for name, fn := range map[string]func(*sessions.Session) error{
			"an error":             func(s *sessions.Session) error { s.Values["user"] = "eve"; return io.ErrUnexpectedEOF },
			"an error, and logout": func(s *sessions.Session) error { s.Options.MaxAge, s.ID = -1, ""; return io.ErrUnexpectedEOF },
			"a panic":              func(s *sessions.Session) error { s.Values["user"] = "eve"; panic(io.ErrUnexpectedEOF) },
			"too large":            func(s *sessions.Session) error { s.Values["user"] = strings.Repeat("x", 2<<20); return nil },
		} {
			err := func() (err error) {
				defer func() {
					if p := recover(); p != nil {
						err = p.(error)
					}
				}()
				return store.Update(r, httptest.NewRecorder(), "s", fn)
			}()
			if name == "too large" {
				wantErr(t, err, ErrTooLarge)
			} else if err != io.ErrUnexpectedEOF {
				t.Errorf("%s: got %v", name, err)
			}
			srv.free(t)
			equal(t, name+": user", s.Values["user"], any("ann"))
			equal(t, name+": MaxAge", s.Options.MaxAge, 30*24*3600)
			equal(t, name+": user in Redis", b.user(t, store.Store), "ann")
		}
		_ = before
		s.AddFlash("that did not work") // what was loaded can still be saved
		must(t, s.Save(r, httptest.NewRecorder()))

		// A new session, a bad cookie, a logout, a bad name.
		fresh := browser{"s": "nonsense"}
		for range 2 {
			w := httptest.NewRecorder()
			must(t, store.Update(fresh.request(t), w, "s", func(s *sessions.Session) error {
				s.Values["n"] = count(s) + 1
				return nil
			}))
			fresh.keep(w)
		}
		s, _, _ = fresh.get(t, store.Store)
		equal(t, "n", count(s), 2)
		w := httptest.NewRecorder()
		must(t, store.Update(fresh.request(t), w, "s", func(s *sessions.Session) error { s.Options.MaxAge = -1; return nil }))
		equal(t, "MaxAge", w.Result().Cookies()[0].MaxAge, -1)
		equal(t, "keys", len(srv.keys(t)), 1)
		if err := store.Update(fresh.request(t), w, "not a name", func(*sessions.Session) error { return nil }); err == nil {
			t.Error("no error for an invalid name")
		}
		rec.failing(func(string) error { return io.EOF })
		wantErr(t, store.Update(b.request(t), w, "s", func(*sessions.Session) error { t.Error("fn was called"); return nil }), ErrNotLoaded)
	})
}

// TestLockKeys shows that a session and its lock are in one Cluster slot, as Redis
// itself computes it, or that the prefix is refused.
func TestLockKeys(t *testing.T) {
	t.Parallel()
	srv := startRedis(t, "--cluster-enabled", "yes")
	slot := func(key string) int64 {
		n, err := srv.admin.ClusterKeySlot(t.Context(), key).Result()
		must(t, err)
		return n
	}
	for prefix, ok := range map[string]bool{
		"session_": true, "": true, "a:b:": true, "{app}:": true, "x{app}": true, "x{app}y{z}": true, "{a{b}": true,
		"{": true, "a{": true, "a{b{": true,
		"}": false, "a}": false, "{}": false, "a{}b": false, "}{": false, "{}{a}": false, "a}b{c}": true, "}{a}": true,
	} {
		store := NewLockingStore(New(srv.client(t), hashKey))
		store.KeyPrefix = prefix
		err := store.check()
		if (err == nil) != ok {
			t.Errorf("prefix %q: %v", prefix, err)
		}
		if err == nil {
			key := store.key(store.newID())
			equal(t, "slot of the lock of "+key, slot(lock.Key(key)), slot(key))
			if lock.Key(key) == key {
				t.Errorf("%q is its own lock", key)
			}
		}
	}
}

func TestLockConfiguration(t *testing.T) {
	client := startMini(t).client(t)
	for want, change := range map[string]func(*LockingStore){
		"TTL is 0s":          func(l *LockingStore) { l.TTL = 0 },
		"TTL is -1s":         func(l *LockingStore) { l.TTL = -time.Second },
		"Wait is -1s":        func(l *LockingStore) { l.Wait = -time.Second },
		"MaxWaiters is -1":   func(l *LockingStore) { l.MaxWaiters = -1 },
		"no Store":           func(l *LockingStore) { l.Store = nil },
		`KeyPrefix "a}"`:     func(l *LockingStore) { l.KeyPrefix = "a}" },
		"key 1 (authenticat": func(l *LockingStore) { l.Store = New(client, nil) },
	} {
		store := NewLockingStore(New(client, hashKey))
		change(store)
		r, w := browser{"s": "x"}.request(t), httptest.NewRecorder()
		s, err := store.Get(r, "s")
		wantText(t, err, want)
		wantText(t, store.Save(r, w, s), want)
		wantText(t, store.Renew(r, w, s), want)
		wantText(t, store.Update(r, w, "s", nil), want)
		wantText(t, store.Ping(t.Context()), want)
	}
	store := NewLockingStore(New(client, hashKey))
	store.TTL, store.Wait, store.MaxWaiters = time.Nanosecond, 0, 0
	must(t, store.Ping(t.Context()))
	b := login(t, store)
	s, r := load(t, store, b)
	must(t, s.Save(r, httptest.NewRecorder()))
}

func TestARedisThatIsBusyIsWaitedFor(t *testing.T) {
	for _, busy := range []string{"TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN"} {
		store, rec := startMini(t).locking(t)
		b := login(t, store)
		fail := func() {
			left := 10
			rec.failing(func(string) error {
				if left--; left >= 0 {
					return redisError(busy + " for a while")
				}
				return nil
			})
		}
		fail()
		s, r := load(t, store, b)
		fail()
		must(t, s.Save(r, httptest.NewRecorder()))

		store.Wait = 10 * time.Millisecond
		rec.failing(func(string) error { return redisError(busy + " for ever") })
		_, err := store.Get(b.request(t), "s")
		wantText(t, err, busy)
		wantErr(t, err, ErrNotLoaded)
		wantText(t, s.Save(r, httptest.NewRecorder()), "redistore: save: "+busy)
	}
}

func TestTheLockKeepsTheTimeouts(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.IdleTimeout = 10 * time.Minute
		b := login(t, store)
		for range 3 {
			srv.forward(t, 6*time.Minute)
			s, r := load(t, store, b)
			equal(t, "user", s.Values["user"], any("ann"))
			equal(t, "TTL", srv.ttl(t, "session_"+s.ID), 10*time.Minute)
			if s.Values["n"] == nil {
				s.Values["n"] = 1
				must(t, s.Save(r, httptest.NewRecorder()))
			}
			equal(t, "TTL", srv.ttl(t, "session_"+s.ID), 10*time.Minute)
			must(t, srv.admin.Del(t.Context(), lock.Key("session_"+s.ID)).Err())
			store = NewLockingStore(store.Store)
		}
		srv.forward(t, 11*time.Minute)
		s, _ := load(t, store, b)
		equal(t, "IsNew", s.IsNew, true)
	})
}

// TestNothingIsLeftBehind runs requests of every kind, and looks for goroutines,
// lines and memory that stay.
func TestNothingIsLeftBehind(t *testing.T) {
	srv := startRedis(t)
	store, rec := srv.locking(t)
	store.TTL = 20 * time.Millisecond // for where it is unlocking that fails
	plain := store.Store
	b := login(t, store)
	idle := func() {
		t.Helper()
		eventually(t, "nobody stands in line", func() bool { return store.waiting() == -1 })
	}
	kinds := []func(*http.Request){
		func(r *http.Request) { store.Get(r, "s") },
		func(r *http.Request) { increment(store, r, false) },
		func(r *http.Request) { increment(store, r, true) },
		func(r *http.Request) { store.New(r, "s"); store.Get(r, "s"); sessions.Save(r, httptest.NewRecorder()) },
		func(r *http.Request) {
			store.Update(r, httptest.NewRecorder(), "s", func(*sessions.Session) error { return io.EOF })
		},
		func(r *http.Request) {
			s, _ := store.New(browser{}.request(t), "s")
			store.Save(r, httptest.NewRecorder(), s)
			store.Renew(r, httptest.NewRecorder(), s)
			s.Options.MaxAge = -1
			store.Save(r, httptest.NewRecorder(), s)
		},
		func(r *http.Request) { s, _ := plain.New(r, "s"); store.Save(r, httptest.NewRecorder(), s) },
		func(r *http.Request) {
			idle() // or what fails is the unlocking of the request before
			rec.failOnce("evalsha", io.EOF)
			store.Get(r, "s")
		},
	}
	round := func(n int) {
		var wg sync.WaitGroup
		for i := range n {
			r, end := b.lived(t)
			kinds[i%len(kinds)](r)
			end()
			if i%100 == 0 {
				for range 5 { // some that wait, and some that give up
					wg.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
						defer cancel()
						store.Get(b.request(t).WithContext(ctx), "s")
					})
				}
			}
		}
		wg.Wait()
		idle()
	}
	heap := func() (uint64, int) {
		srv.free(t)
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		rec.take()
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	round(1000)
	bytes, goroutines := heap()
	round(10_000)
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	after, _ := heap()
	if after > bytes+1<<20 {
		t.Errorf("the heap went from %d to %d bytes", bytes, after)
	}
	srv.forward(t, 2*time.Minute) // a version lives for a minute, TTL and Wait
	beside, err := srv.admin.Keys(t.Context(), "{*").Result()
	must(t, err)
	equal(t, "keys beside the sessions", len(beside), 0)
}

// hook is a hook that may do something before a command is sent, and after.
type hook struct{ before, after func(redis.Cmder) }

func (hook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.before != nil {
			h.before(cmd)
		}
		if cmd.Err() == nil {
			cmd.SetErr(next(ctx, cmd))
		}
		if h.after != nil {
			h.after(cmd)
		}
		return cmd.Err()
	}
}

func (hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// TestARepeatDoesNotWriteAgain loses the reply to a save, and has others change the
// session and change it back before the repeat.
func TestARepeatDoesNotWriteAgain(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		client := srv.client(t)
		store := NewLockingStore(New(client, hashKey))
		other, _ := srv.locking(t)
		b := login(t, store)
		set := func(s *sessions.Session, n int) { s.Values = map[any]any{"n": n} }
		first, r := load(t, store, b)
		set(first, 1)
		must(t, store.Save(r, httptest.NewRecorder(), first))

		s, r := load(t, store, b)
		lost := false
		client.AddHook(hook{after: func(cmd redis.Cmder) {
			if lost {
				return
			}
			lost = true
			for _, n := range []int{3, 1} { // 1 is what s was loaded as
				o, or := load(t, other, b)
				set(o, n)
				must(t, o.Save(or, httptest.NewRecorder()))
			}
			cmd.SetErr(io.EOF)
		}})
		set(s, 2)
		wantErr(t, store.Save(r, httptest.NewRecorder(), s), io.EOF)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 1)
	})
}

// TestASaveThatChangesNothingSucceeds though its reply was lost and it held no lock.
func TestASaveThatChangesNothingSucceeds(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		lost := &lossy{}
		store := NewLockingStore(New(srv.client(t, lost.options), hashKey))
		b := browser{}
		s, r := load(t, store, b)
		s.Values["n"] = 1
		must(t, s.Save(r, httptest.NewRecorder()))
		lost.replies.Store(1)
		must(t, s.Save(r, httptest.NewRecorder()))
		s.Values["n"] = 2
		must(t, s.Save(r, httptest.NewRecorder()))
	})
}

// TestTheLapsedHolderWaitsForTheNext has another request hold the session when the
// first comes back late, and leave it as it is.
func TestTheLapsedHolderWaitsForTheNext(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		client := srv.client(t)
		store := NewLockingStore(New(client, hashKey))
		other, _ := srv.locking(t)
		b := login(t, store)
		s, r := load(t, store, b)
		srv.forward(t, store.TTL+time.Second)
		or, end := b.lived(t)
		_, err := other.Get(or, "s")
		must(t, err)
		var asked atomic.Int32
		client.AddHook(hook{after: func(cmd redis.Cmder) {
			if strings.HasPrefix(cmd.Name(), "eval") && asked.Add(1) == 3 {
				end()
			}
		}})
		s.Values["n"] = 1
		must(t, s.Save(r, httptest.NewRecorder()))
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 1)

		// And one that is held for all of Wait.
		s, r = load(t, store, b)
		srv.forward(t, store.TTL+time.Second)
		load(t, other, b)
		store.Wait = 10 * time.Millisecond
		s.Values["n"] = 2
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrLocked)
		now, _, _ = b.get(t, store.Store)
		equal(t, "n", count(now), 1)
	})
}

// TestNoLockIsLeftByARequestThatFails looks at every way out of a request that may
// have the lock: it must be free before TTL.
func TestNoLockIsLeftByARequestThatFails(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, c := range map[string]struct {
			fault  func(cmd redis.Cmder, b browser, hangUp func()) // after a script has been run
			handle func(store *LockingStore, r *http.Request)
		}{
			"the reply to the load is lost": {
				func(cmd redis.Cmder, _ browser, _ func()) { cmd.SetErr(io.EOF) },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s") },
			},
			"the client hangs up during the load": {
				func(cmd redis.Cmder, _ browser, hangUp func()) { hangUp(); cmd.SetErr(context.Canceled) },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s") },
			},
			"the client hangs up during the second load": {
				func(_ redis.Cmder, _ browser, hangUp func()) { hangUp() },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s"); _, _ = store.New(r, "s") },
			},
			"a redis error after a lost reply": {
				func(cmd redis.Cmder, _ browser, _ func()) { cmd.SetErr(redisError("OOM command not allowed")) },
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s") },
			},
			"logout between the load and its repeat": {
				func(cmd redis.Cmder, b browser, _ func()) {
					must(t, srv.admin.Del(t.Context(), "session_"+idOf(t, New(srv.admin, hashKey), b)).Err())
				},
				func(store *LockingStore, r *http.Request) { _, _ = store.Get(r, "s"); _, _ = store.New(r, "s") },
			},
			"the save fails": {
				func(cmd redis.Cmder, _ browser, _ func()) {},
				func(store *LockingStore, r *http.Request) {
					s, _ := store.Get(r, "s")
					store.client.AddHook(&recorder{fail: failFirst("evalsha", "eval", func() {})})
					s.Values["n"] = 1
					_ = s.Save(r, httptest.NewRecorder())
					_, _ = store.New(r, "s")
				},
			},
			"Redis refuses the save": {
				func(cmd redis.Cmder, _ browser, _ func()) {},
				func(store *LockingStore, r *http.Request) {
					s, _ := store.Get(r, "s")
					store.client.AddHook(&recorder{fail: func(n string) error {
						if strings.HasPrefix(n, "eval") && count(s) == 1 {
							s.Values["n"] = 2
							return redisError("OOM command not allowed")
						}
						return nil
					}})
					s.Values["n"] = 1
					_ = s.Save(r, httptest.NewRecorder())
				},
			},
			"Update of what cannot be decoded": {
				func(cmd redis.Cmder, b browser, _ func()) {},
				func(store *LockingStore, r *http.Request) {
					store.Serializer = JSONSerializer{}
					wantErr(t, store.Update(r, httptest.NewRecorder(), "s", nil), ErrNotLoaded)
				},
			},
		} {
			client := srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 })
			store := NewLockingStore(New(client, hashKey))
			b := login(t, store)
			r, end := b.lived(t)
			first := true
			client.AddHook(hook{after: func(cmd redis.Cmder) {
				if first && strings.HasPrefix(cmd.Name(), "eval") {
					first = false
					c.fault(cmd, b, end)
				}
			}})
			c.handle(store, r)
			if strings.HasPrefix(name, "Update") {
				srv.free(t)
			}
			end()
			srv.free(t)
			eventually(t, name+": nobody stands in line", func() bool { return store.waiting() == -1 })
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestALeaseHandsTheLineOn has a request of this process hold a session for ever.
func TestALeaseHandsTheLineOn(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	store.TTL = 20 * time.Millisecond
	b := login(t, store)
	load(t, store, b)
	for range 3 {
		_, _ = load(t, store, b)
	}
}

func TestUpdateAfterAFailure(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		w := httptest.NewRecorder()
		s, err := store.Get(r, "s")
		must(t, err)
		must(t, s.Save(r, w))
		rec.failing(func(string) error { return io.EOF })
		wantErr(t, store.Update(r, w, "s", nil), ErrNotLoaded)
		rec.failing(nil)
		equal(t, "user, as it was loaded before", s.Values["user"], any("ann"))
		srv.free(t)
		must(t, increment(store, r, true))

		// What fn has saved itself is saved, and is not undone by a later Save.
		wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
			s.Values["n"] = 10
			must(t, s.Save(r, w))
			return io.ErrUnexpectedEOF
		}), io.ErrUnexpectedEOF)
		wantErr(t, s.Save(r, w), ErrConflict)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 10)
	})
}

// TestUpdateKeepsItsOwn has other copies of the session in the same request, which
// must not overwrite what Update has acknowledged, nor Update them.
func TestUpdateKeepsItsOwn(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		w := httptest.NewRecorder()
		stale, err := store.New(r, "s")
		must(t, err)
		must(t, increment(store, r, true))
		must(t, increment(store, r, true))
		stale.Values["n"] = 666
		wantErr(t, stale.Save(r, w), ErrConflict)

		wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
			s.Values["n"] = 667
			x, err := store.New(r, "s")
			must(t, err)
			x.Values["n"] = count(x) + 1
			return x.Save(r, w)
		}), ErrConflict)
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 3)
	})
}

func TestGetAfterReadingWithoutTheLock(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.locking(t)
		b := login(t, store)
		r, end := b.lived(t)
		defer end()
		w := httptest.NewRecorder()
		read, err := store.Store.Get(r, "s") // a middleware
		must(t, err)
		r2, end2 := b.lived(t)
		must(t, increment(store, r2, false)) // another request
		end2()
		rec.take()
		s, err := store.Get(r, "s")
		must(t, err)
		equal(t, "commands", rec.take(), "evalsha")
		if s != read || count(s) != 1 {
			t.Errorf("Get returned %+v, the session that was read is %+v", s, read)
		}
		s.Values["n"] = 2
		must(t, s.Save(r, w))
		now, _, _ := b.get(t, store.Store)
		equal(t, "n", count(now), 2)
		srv.free(t)

		// Where the lock cannot be had, what was read stays what it is, and cannot be saved.
		r3, end3 := b.lived(t)
		defer end3()
		read, err = store.Store.Get(r3, "s")
		must(t, err)
		load(t, store, b)
		store.Wait = 0
		s, err = store.Get(r3, "s")
		wantErr(t, err, ErrLocked)
		equal(t, "Values", len(s.Values), 0)
		wantErr(t, s.Save(r3, w), ErrNotLoaded)
		wantErr(t, store.Save(r3, w, read), ErrConflict)
	})
}

// TestARefusedRenewEndsNothing has two cookies with a living session each.
func TestARefusedRenewEndsNothing(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		a, b := login(t, store), login(t, store)
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.Header.Set("Cookie", "s="+a["s"]+"; s="+b["s"])
		s, err := store.Get(r, "s")
		must(t, err)
		srv.forward(t, store.TTL+time.Second)
		r2, end := a.lived(t)
		must(t, s.Save(r, httptest.NewRecorder())) // gives the line of this process free
		must(t, increment(store, r2, false))
		end()
		s.ID = ""
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
		equal(t, "users", a.user(t, store.Store)+b.user(t, store.Store), "annann")
		equal(t, "keys", len(srv.keys(t)), 2)

		r = httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.Header.Set("Cookie", "s="+a["s"]+"; s="+b["s"])
		s, err = store.Get(r, "s")
		must(t, err)
		s.ID = ""
		must(t, s.Save(r, httptest.NewRecorder()))
		equal(t, "users of the old cookies", a.user(t, store.Store)+b.user(t, store.Store), "")
	})
}

// TestCopiesOfARequestInParallel is what a middleware and http.TimeoutHandler may do.
// It is for the race detector, and for panics.
func TestCopiesOfARequestInParallel(t *testing.T) {
	srv := startMini(t)
	srv.mini.ClockTTL(true)
	store, _ := srv.locking(t)
	store.TTL, store.Wait = 5*time.Millisecond, 50*time.Millisecond
	b := login(t, store)
	for range 50 {
		r, end := b.lived(t)
		var wg sync.WaitGroup
		for i := range 4 {
			again := r.WithContext(context.WithValue(r.Context(), actorKey{}, i)) // with a registry of its own
			wg.Go(func() {
				for n := range 3 {
					if s, err := store.Get(again, "s"); err == nil && n == i%3 {
						_ = s.Save(again, httptest.NewRecorder())
					}
					_ = increment(store, again, true)
				}
			})
		}
		wg.Wait()
		end()
	}
	eventually(t, "nobody stands in line", func() bool { return store.waiting() == -1 })
}

// TestTheLockOnEveryClient counts on clients that run commands their own way.
func TestTheLockOnEveryClient(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	async, err := srv.client(t).AsyncAutoPipeline()
	must(t, err)
	clients := srv.clients(t)
	clients["AsyncAutoPipeliner"] = async
	for name, client := range clients {
		store := NewLockingStore(New(client, hashKey))
		b := loginAs(t, store, "ann")
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for range 10 {
					r, end := b.lived(t)
					if err := increment(store, r, i%2 == 0); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					end()
				}
			})
		}
		wg.Wait()
		s, r := load(t, store, b)
		equal(t, name+": n", count(s), 40)
		w := httptest.NewRecorder()
		must(t, store.Renew(r, w, s))
		b.keep(w)
		equal(t, name+": user", b.user(t, store.Store), "ann")
		n, err := store.Revoke(t.Context(), "ann")
		must(t, err)
		equal(t, name+": ended", n, 1)
	}
	srv.free(t)
}

// TestUpdateGoesOnWithWhatTheRequestSaved calls Update after the request has given its
// session another ID than its cookies have.
func TestUpdateGoesOnWithWhatTheRequestSaved(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		plain, _ := srv.store(t)
		plain.CookieStoreUntil = plain.now().Add(time.Hour)
		store := NewLockingStore(plain)
		set := func(key string) func(*sessions.Session) error {
			return func(s *sessions.Session) error {
				s.Values[key] = true
				return nil
			}
		}
		mover := login(t, sessions.NewCookieStore(hashKey))
		for name, b := range map[string]browser{"first visit": {}, "logged in": login(t, plain), "moving in": mover} {
			for renew, with := range map[string]func(*http.Request, http.ResponseWriter){
				"Update": func(r *http.Request, w http.ResponseWriter) { must(t, store.Update(r, w, "s", set("first"))) },
				"Renew": func(r *http.Request, w http.ResponseWriter) {
					s, err := store.Get(r, "s")
					must(t, err)
					must(t, set("first")(s))
					must(t, store.Renew(r, w, s))
				},
			} {
				b := maps.Clone(b)
				if name == "logged in" {
					b = login(t, plain)
				}
				r, end := b.lived(t)
				w := httptest.NewRecorder()
				with(r, w)
				must(t, store.Update(r, w, "s", set("second")))
				end()
				b.keep(w)
				s, _, _ := b.get(t, plain)
				equal(t, name+", "+renew+": values", fmt.Sprint(s.Values["first"], s.Values["second"]), "true true")
			}
		}
	})
}

// TestUpdateOfASessionThatHasEnded is for streams: they must not start a session with
// each change, after a logout that they do not see.
func TestUpdateOfASessionThatHasEnded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, load := range map[string]func(*LockingStore, *http.Request) (*sessions.Session, error){
			"with the lock":    func(l *LockingStore, r *http.Request) (*sessions.Session, error) { return l.Get(r, "s") },
			"without the lock": func(l *LockingStore, r *http.Request) (*sessions.Session, error) { return l.Store.Get(r, "s") },
		} {
			plain, _ := srv.store(t)
			store := NewLockingStore(plain)
			b := login(t, plain)
			r, end := b.lived(t)
			s, err := load(store, r)
			must(t, err)
			b.logout(t, plain)
			for range 3 {
				w := httptest.NewRecorder()
				wantErr(t, store.Update(r, w, "s", func(*sessions.Session) error {
					t.Errorf("%s: Update calls fn", name)
					return nil
				}), ErrGone)
				equal(t, "cookies", len(w.Result().Cookies()), 0)
			}
			if name == "with the lock" { // the other is ErrConflict, as always
				wantErr(t, store.Save(r, httptest.NewRecorder(), s), ErrGone)
			}
			equal(t, name+": keys", len(srv.keys(t)), 0)
			end()

			// A request that has not seen it begins anew, as with Get.
			r, end = b.lived(t)
			must(t, store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
				equal(t, name+": IsNew", s.IsNew, true)
				return nil
			}))
			end()
			must(t, srv.admin.FlushDB(t.Context()).Err())
		}
	})
}

// TestGetAfterASessionHasEnded loads with the lock what a middleware has loaded without
// it, and what has ended in between.
func TestGetAfterASessionHasEnded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		plain, _ := srv.store(t)
		store := NewLockingStore(plain)
		b := login(t, plain)
		r, end := b.lived(t)
		defer end()
		_, err := plain.Get(r, "s")
		must(t, err)
		b.logout(t, plain)
		s, err := store.Get(r, "s")
		must(t, err)
		equal(t, "IsNew, ID, values", fmt.Sprintf("%t %q %d", s.IsNew, s.ID, len(s.Values)), `true "" 0`)
	})
}

// TestASaveWhoseOutcomeIsUnknown saves again, over what is its own work.
func TestASaveWhoseOutcomeIsUnknown(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		lost := &lossy{}
		store := NewLockingStore(New(srv.client(t, lost.options), hashKey))
		b := login(t, store)
		s, r := load(t, store, b)
		s.Values["n"] = 1
		lost.replies.Store(maxAttempts)
		if err := s.Save(r, httptest.NewRecorder()); err == nil || script.IsReply(err) {
			t.Fatalf("got error %v, want the network's", err)
		}
		s.Values["n"] = 2
		must(t, s.Save(r, httptest.NewRecorder()))
		now, fresh := load(t, store, b)
		equal(t, "n", count(now), 2)
		must(t, now.Save(fresh, httptest.NewRecorder()))

		// And where others have written in between, it is refused, whatever they wrote.
		s, r = load(t, store, b)
		s.Values["n"] = 3
		lost.replies.Store(maxAttempts)
		if err := s.Save(r, httptest.NewRecorder()); err == nil || script.IsReply(err) {
			t.Fatalf("got error %v, want the network's", err)
		}
		for _, n := range []int{4, 2} {
			o, or := load(t, store, b)
			o.Values["n"] = n
			must(t, o.Save(or, httptest.NewRecorder()))
		}
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrConflict)
		must(t, srv.admin.FlushDB(t.Context()).Err())
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrGone)
	})
}

// TestACopyOfTheRequestMaySaveToo has two copies save at once: one of them is refused,
// and the other can go on.
func TestACopyOfTheRequestMaySaveToo(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		for range 20 {
			b := login(t, store)
			r, end := b.lived(t)
			var all [2]*sessions.Session
			var requests [2]*http.Request
			for i := range all {
				var err error
				requests[i] = r.WithContext(r.Context())
				all[i], err = store.Get(requests[i], "s")
				must(t, err)
				all[i].Values["n"] = i
			}
			var errs [2]error
			var wg sync.WaitGroup
			for i, s := range all {
				wg.Go(func() { errs[i] = s.Save(requests[i], httptest.NewRecorder()) })
			}
			wg.Wait()
			for i, s := range all {
				if errs[i] == nil {
					must(t, s.Save(requests[i], httptest.NewRecorder()))
				}
			}
			end()
		}
	})
}

// TestLogoutEndsTheWait has requests of one process wait for a session that is logged
// out.
func TestLogoutEndsTheWait(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.TTL, store.Wait = time.Hour, time.Hour
		b := login(t, store)
		s, r := load(t, store, b)
		const n = 3
		served := make(chan bool, n)
		for i := range n {
			go func() {
				s, _ := load(t, store, b)
				served <- s.IsNew
			}()
			eventually(t, "the request stands in line", func() bool { return store.waiting() == i+1 })
		}
		out, logout, w := b.get(t, store.Store)
		out.Options.MaxAge = -1
		must(t, store.Save(logout, w, out))
		for range n {
			equal(t, "IsNew", <-served, true)
		}
		wantErr(t, s.Save(r, httptest.NewRecorder()), ErrGone)
		equal(t, "keys", len(srv.keys(t)), 0)
		equal(t, "waiting", store.waiting(), -1)
	})
}

// TestTouchEndsASession does so with MaxAge < 0, and leaves no lock.
func TestTouchEndsASession(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		s, r := load(t, store, login(t, store))
		s.Options.MaxAge = -1
		must(t, store.Touch(r, httptest.NewRecorder(), s))
		equal(t, "keys", len(srv.keys(t)), 0)
	})
}

// TestAnIDThatIsClearedTwice saves a new session under one ID and then, in the same
// request, under the next.
func TestAnIDThatIsClearedTwice(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := browser{}
		s, r := load(t, store, b)
		s.Values["user"] = "ann"
		w := httptest.NewRecorder()
		for range 3 {
			s.ID = ""
			must(t, s.Save(r, w))
			equal(t, "keys", len(srv.keys(t)), 1)
		}
		b.keep(w)
		equal(t, "user", b.user(t, store.Store), "ann")
		s.ID, s.Options.MaxAge = "", -1
		must(t, s.Save(r, w))
		equal(t, "keys", len(srv.keys(t)), 0)
	})
}

// TestTheRequestIsTheHandlersToChange has a handler put values into its request's
// context, as gorilla does, while the client hangs up. The race detector watches.
func TestTheRequestIsTheHandlersToChange(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		r, hangUp := b.lived(t)
		_, err := store.Get(r, "s")
		must(t, err)
		go hangUp()
		type key struct{}
		eventually(t, "the lock is free", func() bool {
			*r = *r.WithContext(context.WithValue(t.Context(), key{}, 1))
			return len(srv.keys(t)) == 1
		})
	})
}

// TestWhatWasNotedDoesNotOutliveItsSession has requests go on after their session has
// ended, or after an Update that failed, as if it had never been.
func TestWhatWasNotedDoesNotOutliveItsSession(t *testing.T) {
	failure := errors.New("fn failed")
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		store.CookieStoreUntil = time.Now().Add(time.Hour)
		ended := func(s *sessions.Session) error {
			return srv.admin.Del(t.Context(), store.key(s.ID)).Err()
		}
		renewed := func(r *http.Request, w http.ResponseWriter) *sessions.Session {
			s, err := store.Get(r, "s")
			must(t, err)
			must(t, store.Renew(r, w, s))
			must(t, store.Update(r, w, "s", func(*sessions.Session) error { return nil }))
			return s
		}
		visitor := func() browser { return browser{} }
		user := func() browser { return login(t, store) }
		mover := func() browser { return login(t, sessions.NewCookieStore(hashKey)) }
		for name, c := range map[string]struct {
			b    func() browser
			do   func(*http.Request, http.ResponseWriter) error
			err  error
			keys int
		}{
			"Get, after a middleware's renewed one has ended": {user, func(r *http.Request, w http.ResponseWriter) error {
				s, err := store.Store.Get(r, "s")
				must(t, err)
				must(t, store.Store.Renew(r, w, s))
				must(t, ended(s))
				s, err = store.Get(r, "s")
				must(t, err)
				return s.Save(r, w)
			}, nil, 1},
			"Save, after an Update whose fn saved and failed": {visitor, func(r *http.Request, w http.ResponseWriter) error {
				wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
					must(t, s.Save(r, w))
					must(t, ended(s))
					return failure
				}), failure)
				s, err := store.Get(r, "s")
				must(t, err)
				return s.Save(r, w)
			}, nil, 1},
			"a new ID in Update, after Save": {visitor, func(r *http.Request, w http.ResponseWriter) error {
				s, err := store.Get(r, "s")
				must(t, err)
				must(t, s.Save(r, w))
				return store.Update(r, w, "s", func(s *sessions.Session) error { s.ID = ""; return nil })
			}, nil, 1},
			"a new ID, after Renew and Update": {user, func(r *http.Request, w http.ResponseWriter) error {
				s := renewed(r, w)
				s.ID = ""
				return s.Save(r, w)
			}, nil, 1},
			"logout without an ID, after Renew and Update": {user, func(r *http.Request, w http.ResponseWriter) error {
				s := renewed(r, w)
				s.ID, s.Options.MaxAge = "", -1
				return s.Save(r, w)
			}, nil, 0},
			"Update, after CookieStore's session was logged out": {mover, func(r *http.Request, w http.ResponseWriter) error {
				s, err := store.Get(r, "s")
				must(t, err)
				s.Options.MaxAge = -1
				must(t, s.Save(r, w))
				return store.Update(r, w, "s", func(*sessions.Session) error {
					t.Error("fn was called")
					return nil
				})
			}, ErrGone, 0},
			"Save, after an Update that logged it out and failed": {mover, func(r *http.Request, w http.ResponseWriter) error {
				wantErr(t, store.Update(r, w, "s", func(s *sessions.Session) error {
					s.Options.MaxAge = -1
					must(t, s.Save(r, w))
					return failure
				}), failure)
				s, err := store.Get(r, "s")
				must(t, err)
				return s.Save(r, w)
			}, ErrGone, 0},
		} {
			t.Run(name, func(t *testing.T) {
				must(t, srv.admin.FlushDB(t.Context()).Err())
				r, end := c.b().lived(t)
				wantErr(t, c.do(r, httptest.NewRecorder()), c.err)
				end()
				srv.free(t)
				equal(t, "keys", len(srv.keys(t)), c.keys)
			})
		}
	})
}

// TestTheLineMovesTwice has the next come before the one in front has asked for the lock,
// as a logout does. The race detector watches.
func TestTheLineMovesTwice(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.locking(t)
		b := login(t, store)
		s, _ := load(t, store, b)
		var all sync.WaitGroup
		for i := range 2 {
			all.Go(func() {
				r, end := b.lived(t)
				defer end()
				_, err := store.Get(r, "s")
				must(t, err)
			})
			eventually(t, "the request stands in line", func() bool { return store.waiting() == i+1 })
		}
		store.locker().Forget(store.key(s.ID))
		store.locker().Forget(store.key(s.ID))
		must(t, srv.admin.Del(t.Context(), lock.Key(store.key(s.ID))).Err())
		all.Wait()
	})
}
