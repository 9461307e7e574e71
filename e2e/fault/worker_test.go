package fault

import (
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
	Padding int    // bytes in each session, so that replies are cut in their midst
	Clients clients
}

const (
	ours      = "redistore"
	rival     = "boj/redistore"
	noCompare = "redistore without the compare" // taken out of the save script
)

// All of it is small, so that requests meet.
const (
	callers  = 6   // of each worker
	browsers = 160 // half of them are a plain Store's, half a LockingStore's
	owners   = 40
	lease    = 400 * time.Millisecond // the lock's TTL
	patience = 2 * time.Second        // the lock's Wait
)

var key = []byte("0123456789abcdef0123456789abcdef")

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
	const reply = 300 * time.Millisecond
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
	padding string
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
	w.log, w.padding = log, strings.Repeat("x", w.Padding)
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
	return nil
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
	if w.Store == noCompare {
		client.AddHook(uncompared{})
	}
	w.store = redistore.New(client, key)
	w.plain = w.store
	w.locking = redistore.NewLockingStore(w.store)
	w.locking.TTL, w.locking.Wait = lease, patience
	return nil
}

// uncompared takes the compare out of the write script on its way to Redis: that of the
// version, and that of the digest.
type uncompared struct{ redis.Hook }

var withoutCompare = strings.NewReplacer(
	"if version and not seen(version, first) then", "if false then",
	"if not version or holder ~= ARGV[1] then", "if false then",
)

func (uncompared) DialHook(next redis.DialHook) redis.DialHook { return next }

func (uncompared) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (uncompared) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" { // so that the text is sent each time
			cmd.SetErr(noScript{})
			return cmd.Err()
		}
		if text, ok := cmd.Args()[1].(string); ok && cmd.Name() == "eval" {
			cmd.Args()[1] = withoutCompare.Replace(text)
		}
		return next(ctx, cmd)
	}
}

type noScript struct{}

func (noScript) Error() string { return "NOSCRIPT taken out" }
func (noScript) RedisError()   {}

// A caller sends one request after the other.
type caller struct {
	*worker
	n   int
	rng *rand.Rand
}

// A browser is whose call it is.
type browser struct {
	n         int
	id, owner string
	locked    bool // what saves its session takes the lock
}

// call makes one call, of a kind drawn at random, for a browser drawn at random.
func (c *caller) call() {
	n := c.rng.IntN(browsers)
	if c.rng.IntN(2) == 0 {
		n /= 10 // some are busier than others
	}
	b := browser{n: n, id: c.cookie(n), owner: fmt.Sprint("owner", n%owners), locked: n%2 == 0 && c.locking != nil}
	switch n := c.rng.IntN(1000); {
	case b.id == "":
		c.login(b)
	case c.store == nil:
		c.rivalCall(b, n)
	case n < 5:
		c.revoke(b.owner)
	case n < 10:
		c.list(b.owner)
	case n < 40:
		c.logout(b)
	case n < 80:
		c.touch(b)
	case n < 120:
		c.renew(b)
	case n < 350:
		c.read(b)
	case !b.locked:
		c.set(b)
	case n < 700:
		c.update(b)
	default:
		c.increment(b)
	}
}

func (c *caller) rivalCall(b browser, n int) {
	switch {
	case n < 30:
		c.logout(b)
	case n < 300:
		c.read(b)
	default:
		c.increment(b)
	}
}

// saving is the store that a browser's session is saved by.
func (c *caller) saving(b browser) sessions.Store {
	if b.locked {
		return c.locking
	}
	return c.plain
}

// begin notes that a call starts.
func (c *caller) begin(do, id, owner string) *op {
	o := &op{Worker: c.Worker, Caller: c.n, Op: c.ops.Add(1), Start: now(), Do: do, ID: id, Owner: owner, Value: unseen}
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
	if s.Values["padding"] != c.padding || c.store != nil && redistore.Owner(s) != o.Owner {
		o.Broken = fmt.Sprintf("the values of %s are not those of %s: %d of them", o.ID, o.Owner, len(s.Values))
	}
	c.note(o)
}

// end notes how a call ended.
func (c *caller) end(o *op, err error) {
	switch {
	case err == nil:
		o.Out = done
	case errors.Is(err, redistore.ErrGone) || errors.Is(err, errNew):
		o.Out = gone
	case errors.Is(err, redistore.ErrConflict), errors.Is(err, redistore.ErrLocked), errors.Is(err, redistore.ErrNotLoaded):
		o.Out = refused
	default:
		o.Out = unknown
	}
	if err != nil {
		o.Err = err.Error()
	}
	o.End = now()
	c.note(o)
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
	value, err := securecookie.EncodeMulti("s", id, securecookie.New(key, nil))
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

// visit loads a browser's session and works on it.
func (c *caller) visit(b browser, do string, store sessions.Store, work func(request) error) {
	o := c.begin(do, b.id, b.owner)
	r, w, end := c.request(b.id)
	defer end()
	s, err := store.Get(r, "s")
	if err == nil && s.IsNew {
		err = errNew
	}
	if err == nil {
		c.saw(o, s)
		err = work(request{o, r, w, s})
	}
	c.end(o, err)
	if err == nil && o.New != "" {
		c.keep(b.n, o.New)
	}
	c.left(b.n, o)
}

// increment adds one, with a load and a save, and sometimes with work between them.
func (c *caller) increment(b browser) {
	c.visit(b, "increment", c.saving(b), func(v request) error {
		if c.rng.IntN(8) == 0 {
			time.Sleep(rand.N(2 * time.Millisecond))
		}
		v.s.Values["n"] = v.Value + 1
		return v.s.Save(v.r, v.w)
	})
}

// set saves a value of its own with the plain store: the last write wins.
func (c *caller) set(b browser) {
	c.visit(b, "set", c.plain, func(v request) error {
		v.Wrote = (c.Worker+1)<<24 | int(v.Op) // of 16 million calls each
		c.note(v.op)
		v.s.Values["n"] = v.Wrote
		return v.s.Save(v.r, v.w)
	})
}

func (c *caller) read(b browser) {
	c.visit(b, "read", c.plain, func(request) error { return nil })
}

func (c *caller) touch(b browser) {
	c.visit(b, "touch", c.plain, func(v request) error { return c.store.Touch(v.r, v.w, v.s) })
}

func (c *caller) renew(b browser) {
	do, renew := "renew", c.store.Renew
	if b.locked {
		do, renew = "renew, locked", c.locking.Renew
	}
	c.visit(b, do, c.saving(b), func(v request) error {
		err := renew(v.r, v.w, v.s)
		if err == nil {
			v.New = v.s.ID
		}
		return err
	})
}

func (c *caller) login(b browser) {
	o := c.begin("login", "", b.owner)
	r, w, end := c.request("")
	defer end()
	s, _ := c.saving(b).Get(r, "s")
	s.Values["n"], s.Values["padding"] = 0, c.padding
	if c.store != nil {
		redistore.SetOwner(s, b.owner)
	}
	err := s.Save(r, w)
	o.New, o.Value = s.ID, 0
	c.end(o, err)
	if err == nil {
		c.keep(b.n, s.ID)
	}
}

func (c *caller) update(b browser) {
	o := c.begin("increment", b.id, b.owner)
	r, w, end := c.request(b.id)
	defer end()
	called := false
	err := c.locking.Update(r, w, "s", func(s *sessions.Session) error {
		if called = true; s.IsNew {
			return errNew
		}
		c.saw(o, s)
		s.Values["n"] = o.Value + 1
		return nil
	})
	replaced := errors.Is(err, redistore.ErrGone) // by a renewal of a moment ago
	if !called && !replaced && !errors.Is(err, redistore.ErrNotLoaded) {
		o.Broken = fmt.Sprint("Update did neither load the session nor say so: ", err)
	}
	c.end(o, err)
	c.left(b.n, o)
}

func (c *caller) logout(b browser) {
	o := c.begin("logout", b.id, b.owner)
	r, w, end := c.request(b.id)
	defer end()
	s, _ := c.plain.Get(r, "s")
	s.Options.MaxAge = -1
	err := c.saving(b).Save(r, w, s)
	c.end(o, err)
	c.left(b.n, o)
}

func (c *caller) revoke(owner string) {
	o := c.begin("revoke", "", owner)
	_, err := c.store.Revoke(context.Background(), owner)
	c.end(o, err)
}

func (c *caller) list(owner string) {
	o := c.begin("list", "", owner)
	o.Listed = map[string]int{}
	var failed error
	for s, err := range c.store.Sessions(context.Background(), owner) {
		if err != nil {
			failed = err
			continue
		}
		o.Listed[s.ID], _ = s.Values["n"].(int)
	}
	c.end(o, failed)
}

// A browser keeps its session's ID in a file that all workers share.

func (w *worker) file(b int) string { return filepath.Join(w.Shared, fmt.Sprint(b)) }

func (w *worker) cookie(b int) string {
	id, _ := os.ReadFile(w.file(b))
	return string(id)
}

func (c *caller) keep(b int, id string) {
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
	if over && c.cookie(b) == o.ID && c.rng.IntN(8) > 0 {
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
