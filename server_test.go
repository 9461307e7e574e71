package redistore

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/redisserver"
)

var (
	hashKey  = []byte("0123456789abcdef0123456789abcdef")
	blockKey = []byte("fedcba9876543210fedcba9876543210")
)

// onServers runs a test on miniredis and on a real redis-server.
func onServers(t *testing.T, test func(*testing.T, *server)) {
	t.Parallel()
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		test(t, startMini(t))
	})
	t.Run("redis-server", func(t *testing.T) {
		t.Parallel()
		test(t, startRedis(t))
	})
}

// server is a Redis that nobody else uses.
type server struct {
	addr    string
	process *redisserver.Server  // the real thing, or nil
	mini    *miniredis.Miniredis // or nil
	admin   *redis.Client        // to look at Redis behind the store's back
	ahead   atomic.Int64         // nanoseconds that forward has gone
	user    string               // "": the default one, who may do anything
	tls     *tls.Config          // nil: none
}

func startMini(t testing.TB) *server {
	s := &server{}
	// Its SHA-1 of scripts protects nothing either, but it does not say so.
	fips140.WithoutEnforcement(func() { s.mini = miniredis.RunT(t) })
	s.addr = s.mini.Addr()
	return s.ready(t)
}

// startRedis starts a redis-server that ends with the test.
func startRedis(t *testing.T, config ...string) *server {
	t.Helper()
	s := &server{}
	if os.Getenv("REDISTORE_REDIS_SECURED") != "" {
		config = append(config, s.secure(t)...)
	}
	s.process = redisserver.StartFor(t, config...)
	s.addr = s.process.Addr
	return s.ready(t)
}

// secure returns what lets the server speak TLS, and the stores be a user who may send
// no other commands than docs/production.md says.
func (s *server) secure(t *testing.T) (config []string) {
	t.Helper()
	readme, err := os.ReadFile("docs/production.md")
	must(t, err)
	rule := regexp.MustCompile(`(?m)^ACL SETUSER (\S+) (on >password .*)$`).FindStringSubmatch(string(readme))
	s.user = rule[1]
	web := httptest.NewTLSServer(nil) // which has a certificate for the loopback address
	defer web.Close()
	s.tls = web.Client().Transport.(*http.Transport).TLSClientConfig
	key, err := x509.MarshalPKCS8PrivateKey(web.TLS.Certificates[0].PrivateKey)
	must(t, err)
	files := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert": {Type: "CERTIFICATE", Bytes: web.Certificate().Raw}, "key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		must(t, os.WriteFile(filepath.Join(files, name), pem.EncodeToMemory(block), 0o600))
	}
	config = []string{"--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no", "--tls-cert-file", filepath.Join(files, "cert"),
		"--tls-key-file", filepath.Join(files, "key"), "--tls-ca-cert-file", filepath.Join(files, "cert"),
		"--user", rule[1]}
	return append(append(config, strings.Fields(rule[2])...), "+ping") // for the heartbeats of a Ring
}

func (s *server) ready(t testing.TB) *server {
	s.admin = redis.NewClient(&redis.Options{Addr: s.addr, MaxRetries: -1, TLSConfig: s.tls})
	t.Cleanup(func() { s.admin.Close() })
	return s
}

// options are those of a client of the server, set up as docs/production.md says.
func (s *server) options() *redis.Options {
	o := &redis.Options{Addr: s.addr, ContextTimeoutEnabled: true, TLSConfig: s.tls}
	if s.user != "" {
		o.Username, o.Password = s.user, "password"
	}
	return o
}

// ring returns a Ring that is twice the same server.
func (s *server) ring(t testing.TB) *redis.Ring {
	o := s.options()
	c := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.addr, "b": s.addr},
		Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig, ContextTimeoutEnabled: true})
	t.Cleanup(func() { c.Close() })
	return c
}

// client returns a client of the server.
func (s *server) client(t testing.TB, change ...func(*redis.Options)) *redis.Client {
	o := s.options()
	for _, c := range change {
		c(o)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

// store returns a store that lives in the server's time, and a record of the
// commands it sends.
func (s *server) store(t *testing.T) (*Store, *recorder) {
	c := s.client(t)
	rec := &recorder{}
	c.AddHook(rec)
	store := New(c, hashKey)
	store.now = s.now
	return store, rec
}

// sharded is store with a client that may have its keys on several servers.
func (s *server) sharded(t *testing.T) (*Store, *recorder) {
	rec, client := &recorder{}, s.ring(t)
	client.AddHook(rec)
	store := New(client, hashKey)
	store.now = s.now
	return store, rec
}

func (s *server) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

// forward lets time pass: what would have expired is gone, all else has that much
// less time left.
func (s *server) forward(t *testing.T, d time.Duration) {
	t.Helper()
	s.ahead.Add(int64(d))
	if s.mini != nil {
		s.mini.FastForward(d)
		return
	}
	must(t, s.admin.Eval(t.Context(), `
		for _, k in ipairs(redis.call("KEYS", "*")) do
			local left = redis.call("PTTL", k)
			if left >= 0 then redis.call("PEXPIRE", k, left - ARGV[1]) end
		end
		return 1`, nil, d.Milliseconds()).Err())
}

// keys returns what Redis holds but for what it keeps for a minute or two: renewal markers,
// and the versions of what was written with the lock.
func (s *server) keys(t *testing.T) []string {
	t.Helper()
	keys, err := s.admin.Keys(t.Context(), "*").Result()
	must(t, err)
	slices.Sort(keys)
	return slices.DeleteFunc(keys, func(k string) bool { return strings.HasSuffix(k, ":replaced") || strings.HasSuffix(k, ":version") })
}

// only returns the value of the single key that Redis holds.
func (s *server) only(t *testing.T) (key, value string) {
	t.Helper()
	keys := s.keys(t)
	if len(keys) != 1 {
		t.Fatalf("Redis holds %q, want one key", keys)
	}
	value, err := s.admin.Get(t.Context(), keys[0]).Result()
	must(t, err)
	return keys[0], value
}

func (s *server) ttl(t *testing.T, key string) time.Duration {
	t.Helper()
	ttl, err := s.admin.TTL(t.Context(), key).Result()
	must(t, err)
	return ttl
}

// recorder is a hook that writes down each command by its name, and a pipeline as
// one entry: "[set del]". Where fail is set, a command may fail instead.
type recorder struct {
	mu   sync.Mutex
	seen []string
	fail func(name string) error
}

func (h *recorder) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *recorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if err := h.record(cmd.Name()); err != nil {
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

func (h *recorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		var names []string
		for _, c := range cmds {
			names = append(names, c.Name())
		}
		if err := h.record("[" + strings.Join(names, " ") + "]"); err != nil {
			for _, c := range cmds {
				c.SetErr(err)
			}
			return err
		}
		return next(ctx, cmds)
	}
}

func (h *recorder) record(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "hello" || strings.HasPrefix(strings.TrimPrefix(name, "["), "client") {
		return nil // the handshake of a new connection is not the store's
	}
	h.seen = append(h.seen, name)
	if h.fail != nil {
		return h.fail(name)
	}
	return nil
}

// take returns what was seen since the last take.
func (h *recorder) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := strings.Join(h.seen, " ")
	h.seen = nil
	return seen
}

// failing sets fail.
func (h *recorder) failing(fail func(name string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail = fail
}

// failOnce makes the next command of that name fail.
func (h *recorder) failOnce(name string, err error) {
	h.failing(func(n string) error {
		if n != name {
			return nil
		}
		h.fail = nil // record has the mutex
		return err
	})
}

// lossy makes connections whose replies can be lost after Redis has done its work.
type lossy struct{ replies atomic.Int64 } // how many to lose

func (l *lossy) options(o *redis.Options) {
	o.MinRetryBackoff, o.MaxRetryBackoff = time.Microsecond, time.Millisecond
	wrapConnections(o, func(c net.Conn) net.Conn { return &lossyConn{c, l} })
}

// wrapConnections has a client use connections that behave in another way.
func wrapConnections(o *redis.Options, wrap func(net.Conn) net.Conn) {
	dial := redis.NewDialer(o)
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return wrap(c), err
	}
}

type lossyConn struct {
	net.Conn
	l *lossy
}

func (c *lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.l.replies.Add(-1) >= 0 {
		// When the server has closed its end too, it has done all that it was sent.
		_ = c.Conn.(interface{ CloseWrite() error }).CloseWrite()
		_, _ = io.Copy(io.Discard, c.Conn)
		c.Close()
		return 0, io.EOF
	}
	return n, err
}

// browser keeps the cookies it is given, by name, whatever their attributes.
type browser map[string]string

// request returns a request with the browser's cookies.
func (b browser) request(t *testing.T) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), "GET", "https://example.com/", nil)
	for name, value := range b {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	return r
}

// keep takes what the response sets.
func (b browser) keep(w *httptest.ResponseRecorder) {
	for _, c := range w.Result().Cookies() {
		if b[c.Name] = c.Value; c.MaxAge < 0 {
			delete(b, c.Name)
		}
	}
}

// visit makes one request, lets the handler work on the session "s", and keeps the
// cookies.
func (b browser) visit(t *testing.T, store sessions.Store, handler func(*http.Request, http.ResponseWriter, *sessions.Session)) *httptest.ResponseRecorder {
	t.Helper()
	r, w := b.request(t), httptest.NewRecorder()
	session, err := store.Get(r, "s")
	must(t, err)
	handler(r, w, session)
	b.keep(w)
	return w
}

// login saves user=ann in a new session.
func login(t *testing.T, store sessions.Store) browser {
	t.Helper()
	b := browser{}
	b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
		s.Values["user"] = "ann"
		must(t, s.Save(r, w))
	})
	return b
}

// get loads the session "s" as the browser's next request would.
func (b browser) get(t *testing.T, store sessions.Store) (*sessions.Session, *http.Request, *httptest.ResponseRecorder) {
	t.Helper()
	r := b.request(t)
	session, err := store.Get(r, "s")
	must(t, err)
	return session, r, httptest.NewRecorder()
}

// logout ends the session "s", in a request of its own.
func (b browser) logout(t *testing.T, store sessions.Store) {
	t.Helper()
	s, r, w := b.get(t, store)
	s.Options.MaxAge = -1
	must(t, s.Save(r, w))
}

// user says who is logged in: "" for nobody.
func (b browser) user(t *testing.T, store sessions.Store) string {
	t.Helper()
	session, _, _ := b.get(t, store)
	user, _ := session.Values["user"].(string)
	if session.IsNew != (user == "") {
		t.Errorf("IsNew is %t for user %q", session.IsNew, user)
	}
	return user
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func idOf(t *testing.T, store *Store, b browser) string {
	t.Helper()
	ids, err := store.ids(b.request(t), "s")
	must(t, err)
	return ids[0]
}

// clients are of kinds that write an owned session in one transaction, or in steps.
func (s *server) clients(t *testing.T) map[string]redis.UniversalClient {
	auto, err := s.client(t).AutoPipeline()
	must(t, err)
	return map[string]redis.UniversalClient{"Client": s.client(t), "AutoPipeliner": auto, "Ring": s.ring(t)}
}

// lived returns a request that ends with the function it returns, as net/http's do
// when the handler has returned.
func (b browser) lived(t *testing.T) (*http.Request, context.CancelFunc) {
	ctx, end := context.WithCancel(t.Context())
	r := b.request(t)
	return r.WithContext(ctx), end
}

// load loads the session "s" in a request of its own, that lasts as long as the
// test.
func load(t *testing.T, store sessions.Store, b browser) (*sessions.Session, *http.Request) {
	t.Helper()
	r, end := b.lived(t)
	t.Cleanup(end)
	s, err := store.Get(r, "s")
	must(t, err)
	return s, r
}

// free waits until no lock is left.
func (s *server) free(t *testing.T) {
	t.Helper()
	eventually(t, "the lock is free", func() bool {
		return !slices.ContainsFunc(s.keys(t), func(k string) bool { return strings.HasSuffix(k, ":lock") })
	})
}

// eventually waits for what other goroutines are about to do.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	within(t, 5*time.Second, what, done)
}

// within is eventually with another limit.
func within(t *testing.T, limit time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", limit, what)
		}
	}
}

func wantText(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %q in it", err, want)
	}
}
