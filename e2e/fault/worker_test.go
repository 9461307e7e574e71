package fault

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	boj "github.com/boj/redistore"
	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
)

// A worker is one server of the application: this test binary, executed again. Its
// callers send requests until standard input ends, or it is killed.

const jobVariable = "REDISTORE_FAULT_JOB"

func TestMain(m *testing.M) {
	if text := os.Getenv(jobVariable); text != "" {
		if err := work(text); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A job is what a worker is told.
type job struct {
	Worker  int    // its number
	Log     string // file for its calls
	Shared  string // folder in which all workers keep their browsers' cookies
	Seed    uint64
	Store   string // what is tested: ours, or one that must be caught
	Padding int    // bytes in most sessions, so that replies are cut in their midst
	Clients clients
}

const (
	ours      = "redistore"
	rival     = "boj/redistore"
	noCompare = "redistore without the compare"
	noMarker  = "redistore without the renewal marker"
	noPending = "redistore without pending entries"
	noToken   = "redistore without the write's token"
)

// takenOut is what is taken out of a store's scripts, on their way to Redis, so that it must
// be caught: by twos, a piece and what takes its place.
var takenOut = map[string][]string{
	noCompare: { // of the version, and of the digest
		"if version and not seen(version, first) then", "if false then",
		"if not version or holder ~= ARGV[1] then", "if false then",
	},
	noToken: {
		"local version = redis.call(\"GET\", KEYS[3])\nif version ==", "local version = false\nif version ==",
	},
	noMarker: { // of Renew, of what it does on several servers, of the lock's, and of a login without a session
		`redis.call("SET", KEYS[i + 1], ARGV[a + 4], "EX", ARGV[a + 5])`, "",
		`if KEYS[2] then redis.call("SET", KEYS[2], ARGV[1], "EX", ARGV[2]) end`, "",
		`redis.call("SET", KEYS[5], ARGV[5], "EX", ARGV[9])`, "",
		`redis.call("SET", KEYS[1], ARGV[1], "EX", ARGV[2])`, "",
	},
	noPending: { // an entry whose session is yet to be written says so, and is not lowered
		"score = math.max(score + (wait or 0), math.floor(noted)) + 0.5", "score = score + (wait or 0)",
	},
}

// without returns what takes it out.
func without(store string) *strings.Replacer { return strings.NewReplacer(takenOut[store]...) }

// All of it is small, so that requests meet.
const (
	callers  = 6   // of each worker
	browsers = 160 // half of them are a plain Store's, half a LockingStore's
	owners   = 40
	lease    = 400 * time.Millisecond // the lock's TTL
	patience = 2 * time.Second        // the lock's Wait
	reply    = 300 * time.Millisecond // how long the clients wait for one
	backoff  = 8 * time.Millisecond   // and at least, before they repeat a command
)

var (
	key   = []byte("0123456789abcdef0123456789abcdef")
	codec = securecookie.New(key, nil).MaxAge(0)
)

// clients says how Redis is reached.
type clients struct {
	Kind  string // single, sentinel, cluster or ring
	Addrs []string
	Via   map[string]string // the proxy in front of each server
}

// open makes a client that gives up on a reply far earlier than one would in
// production, so that calls of unknown outcome are many.
func (c clients) open() redis.UniversalClient {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if via, ok := c.Via[addr]; ok {
			addr = via
		}
		return (&net.Dialer{Timeout: 300 * time.Millisecond}).DialContext(ctx, network, addr)
	}
	switch c.Kind {
	case "cluster":
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs, Dialer: dial, ReadTimeout: reply, ContextTimeoutEnabled: true})
	case "sentinel":
		return redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: topology.MasterName, SentinelAddrs: c.Addrs, Dialer: dial, ReadTimeout: reply, ContextTimeoutEnabled: true,
		})
	case "ring":
		shards := map[string]string{}
		for i, addr := range c.Addrs {
			shards[fmt.Sprint("shard", i)] = addr
		}
		return redis.NewRing(&redis.RingOptions{
			Addrs: shards, Dialer: dial, ReadTimeout: reply, ContextTimeoutEnabled: true,
			// A shard that does not answer keeps its sessions: see docs/production.md.
			HeartbeatFn: func(context.Context, *redis.Client) bool { return true },
		})
	}
	return redis.NewClient(&redis.Options{Addr: c.Addrs[0], Dialer: dial, ReadTimeout: reply, ContextTimeoutEnabled: true})
}

// worker is the state of one process.
type worker struct {
	job
	log     *os.File
	ops     atomic.Int64
	padding map[int]string // by length
	plain   sessions.Store
	store   *redistore.Store        // nil for a rival
	locking *redistore.LockingStore // nil for a rival
}

func work(text string) error {
	w := &worker{}
	if err := json.Unmarshal([]byte(text), &w.job); err != nil {
		return err
	}
	redis.SetLogger(silent{})
	log, err := os.OpenFile(w.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w.log, w.padding = log, map[int]string{}
	for n := range browsers {
		w.padding[w.size(n)] = strings.Repeat("x", w.size(n))
	}
	if err := w.open(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var over atomic.Bool
	for n := range callers {
		c := &caller{worker: w, n: n, rng: rand.New(rand.NewPCG(w.Seed, uint64(w.Worker*callers+n)))}
		wg.Go(func() {
			for !over.Load() {
				c.call()
			}
		})
	}
	io.Copy(io.Discard, os.Stdin)
	over.Store(true)
	wg.Wait()
	if w.locking == nil {
		return nil
	}
	stats, err := json.Marshal(w.locking.Stats())
	if err != nil {
		return err
	}
	return os.WriteFile(w.Log+".stats", stats, 0o600)
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func (w *worker) open() error {
	if w.Store == rival {
		theirs, err := boj.NewRediStore(callers, "tcp", w.Clients.Addrs[0], "", "", key)
		w.plain = theirs
		return err
	}
	client := w.Clients.open()
	client.AddHook(&named{file: w.Log + ".name"})
	if takenOut[w.Store] != nil {
		client.AddHook(rewriting{change: without(w.Store)})
	}
	w.store = redistore.New(client, key)
	w.plain = w.store
	w.locking = redistore.NewLockingStore(w.store)
	w.locking.TTL, w.locking.Wait = lease, patience
	return nil
}

// named notes by which name this process waits for locks.
type named struct {
	rewriting
	file string
	once sync.Once
}

func (h *named) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); len(args) > 8 && args[2] == 4 { // what takes a lock: see acquire.lua
			if name, _ := args[8].(string); strings.HasPrefix(name, "session_wake:") {
				h.once.Do(func() { os.WriteFile(h.file, []byte(name), 0o600) })
			}
		}
		return next(ctx, cmd)
	}
}

// rewriting changes scripts on their way to Redis.
type rewriting struct {
	redis.Hook
	change *strings.Replacer // nil: nothing
}

func (rewriting) DialHook(next redis.DialHook) redis.DialHook { return next }

func (rewriting) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (h rewriting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.rewrite(cmd); cmd.Err() != nil {
			return cmd.Err()
		}
		return next(ctx, cmd)
	}
}

func (h rewriting) rewrite(cmd redis.Cmder) {
	switch {
	case h.change == nil:
	case cmd.Name() == "evalsha": // so that the text is sent each time
		cmd.SetErr(noScript{})
	case cmd.Name() == "eval":
		cmd.Args()[1] = h.change.Replace(cmd.Args()[1].(string))
	}
}

type noScript struct{}

func (noScript) Error() string { return "NOSCRIPT taken out" }

func (noScript) RedisError() {}

// A caller sends one request after the other.
type caller struct {
	*worker
	n   int
	rng *rand.Rand
}

// another is one that does something at the same time.
func (c *caller) another() *caller {
	return &caller{worker: c.worker, n: c.n, rng: rand.New(rand.NewPCG(c.rng.Uint64(), c.rng.Uint64()))}
}

// A browser is whose call it is.
type browser struct {
	n         int // nobody's: only one page knows of it
	id, owner string
	locked    bool // what saves its session takes the lock
	size      int  // bytes in its session
	age       int  // what SetMaxAge sets, in seconds; unset
	page      int64
}

const (
	nobodys = -1
	unset   = -1
)

// browser returns one as it is now.
func (c *caller) browser(n int) browser {
	return browser{n: n, id: c.cookie(n), owner: fmt.Sprint("owner", n%owners), locked: n%2 == 0 && c.locking != nil,
		size: c.size(n), age: []int{unset, unset, 0, 3600, 7 * 86400}[n%5]}
}

// size is how many bytes a browser's session has. Those of more than 16 KB take the lock's
// other path.
func (w *worker) size(n int) int {
	switch {
	case n == 14 || n%40 == 30 || n%40 == 31: // locked or not, one of them busy
		return 100_000
	case n%8 == 3 || n%8 == 4:
		return 100
	}
	return w.Padding
}

// saving is the store that a browser's session is saved by.
func (c *caller) saving(b browser) sessions.Store {
	if b.locked {
		return c.locking
	}
	return c.plain
}

// begin notes that a call starts.
func (c *caller) begin(do string, b browser) *op {
	o := &op{Worker: c.Worker, Caller: c.n, Op: c.ops.Add(1), Start: now(), Do: do, ID: b.id, Owner: b.owner, Value: unseen, Page: b.page, by: b}
	c.note(o)
	return o
}

func (c *caller) note(o *op) {
	line, _ := json.Marshal(o)
	c.log.Write(append(line, '\n')) // one write: it stays, even if this process is killed
}

// saw notes what a call is about to change.
func (c *caller) saw(o *op, s *sessions.Session) {
	o.Value, _ = s.Values["n"].(int)
	age := o.by.age
	if age == unset {
		age = 30 * 86400 // the store's
	}
	switch {
	case s.Values["padding"] != c.padding[o.by.size] || c.store != nil && redistore.Owner(s) != o.Owner:
		o.Broken = fmt.Sprintf("the values of %s are not those of %s: %d of them", o.ID, o.Owner, len(s.Values))
	case c.store != nil && s.Options.MaxAge != age:
		o.Broken = fmt.Sprintf("Options.MaxAge of %s is %d, it was set to %d", o.ID, s.Options.MaxAge, age)
	}
	o.Age = life(age)
	c.note(o)
}

// life is for how many seconds a session with that MaxAge lives.
func life(maxAge int) int { return cmp.Or(maxAge, 20*60) }

// end notes how a call ended.
func (c *caller) end(o *op, err error) {
	o.Out = outcome(err)
	if err != nil {
		o.Err = err.Error()
	}
	o.Conflict = errors.Is(err, redistore.ErrConflict)
	o.End = now()
	if o.Out == unknown && o.indexRefused(err) {
		o.Out = refused
	}
	c.note(o)
}

// indexRefused tells whether Redis has refused to write the owner's index: then nothing was
// written. An attempt before that, whose reply was lost, would have taken longer.
func (o *op) indexRefused(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) || o.Again > 0 || o.End-o.Start > int64(backoff) {
		return false
	}
	switch o.Do {
	case increment, set, "touch", "renew", "renew, locked":
		return redis.HasErrorPrefix(reply, "NOPERM") || redis.HasErrorPrefix(reply, "WRONGTYPE")
	}
	return false
}

func outcome(err error) string {
	switch {
	case err == nil:
		return done
	case errors.Is(err, redistore.ErrGone) || errors.Is(err, errNew):
		return gone
	case errors.Is(err, redistore.ErrConflict), errors.Is(err, redistore.ErrLocked), errors.Is(err, redistore.ErrNotLoaded):
		return refused
	}
	return unknown
}

var errNew = errors.New("there is no such session")

// request makes a request that ends with the function returned.
func (c *caller) request(id string) (*http.Request, *httptest.ResponseRecorder, func()) {
	ctx, end := context.WithCancel(context.Background())
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	if id != "" {
		r.AddCookie(cookie(id))
	}
	return r, httptest.NewRecorder(), end
}

// cookie is what a browser has whose session has that ID.
func cookie(id string) *http.Cookie {
	value, err := securecookie.EncodeMulti("s", id, codec)
	if err != nil {
		panic(err)
	}
	return &http.Cookie{Name: "s", Value: value}
}

// A request is what a call sends, and the session that it has loaded.
type request struct {
	*op
	r *http.Request
	w *httptest.ResponseRecorder
	s *sessions.Session
}

// visit loads a browser's session and works on it, in a request of its own.
func (c *caller) visit(b browser, do string, store sessions.Store, work func(request) error) *op {
	r, w, end := c.request(b.id)
	defer end()
	return c.during(b, request{c.begin(do, b), r, w, nil}, store, work)
}

// during is visit's work in a request that may have done other work before.
func (c *caller) during(b browser, v request, store sessions.Store, work func(request) error) *op {
	before := sent(v.w)
	var err error
	v.s, err = store.Get(v.r, "s")
	switch {
	case err != nil:
	case !v.s.IsNew:
		c.saw(v.op, v.s)
		err = work(v)
	case b.page != 0 && (v.Do == increment || v.Do == set): // as handlers do that do not look
		err = cmp.Or(c.save(v, own), errNew)
	default:
		err = errNew
	}
	switch v.Sent = sent(v.w); {
	case err == nil && v.Do != read && v.Sent != v.s.ID && c.store != nil:
		v.Broken = fmt.Sprintf("the cookie has %q, the session is %s", v.Sent, v.s.ID)
	case err != nil && !errors.Is(err, errNew) && v.Sent != before:
		v.Broken = fmt.Sprintf("a cookie was sent with %v", err)
	}
	c.end(v.op, err)
	if err == nil && v.New != "" {
		c.keep(b.n, v.New)
	}
	c.left(b.n, v.op)
	return v.op
}

// sent is the session's ID in the cookie that a response carries.
func sent(w *httptest.ResponseRecorder) (id string) {
	for _, cookie := range (&http.Response{Header: w.Header()}).Cookies() {
		if cookie.Value == "" || cookie.MaxAge < 0 {
			return ""
		}
		if err := securecookie.DecodeMulti("s", cookie.Value, &id, codec); err != nil {
			return err.Error()
		}
	}
	return id
}

type saveFunc func(*http.Request, http.ResponseWriter, *sessions.Session) error

// own saves a session by whatever store has loaded it.
func own(r *http.Request, w http.ResponseWriter, s *sessions.Session) error { return s.Save(r, w) }

// A browser keeps its session's ID in a file that all workers share.

func (w *worker) file(b int) string { return filepath.Join(w.Shared, fmt.Sprint(b)) }

func (w *worker) cookie(b int) string {
	id, _ := os.ReadFile(w.file(b))
	return string(id)
}

func (c *caller) keep(b int, id string) {
	if b == nobodys {
		return
	}
	temporary := c.file(b) + fmt.Sprintf(".%d.%d", c.Worker, c.n)
	if err := os.WriteFile(temporary, []byte(id), 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(temporary, c.file(b)); err != nil {
		panic(err)
	}
}

// left forgets an ID that was ended, most of the time: a stale cookie is a case, too.
func (c *caller) left(b int, o *op) {
	over := o.Out == gone || o.Do == "logout"
	if over && b != nobodys && c.cookie(b) == o.ID && c.rng.IntN(8) > 0 {
		os.Remove(c.file(b))
	}
}

// readLogs decodes what the workers noted: of each call the last line.
func readLogs(files []string) ([]*op, error) {
	var ops []*op
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		of := map[int64]*op{}
		for line := range strings.Lines(string(data)) {
			o := &op{}
			if err := json.Unmarshal([]byte(line), o); err != nil {
				if !strings.HasSuffix(line, "\n") {
					continue // killed in the midst of it
				}
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			of[o.Op] = o
		}
		for _, o := range of {
			ops = append(ops, o)
		}
	}
	slices.SortFunc(ops, func(a, b *op) int { return int(a.Start - b.Start) })
	return ops, nil
}
