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
			// A shard that does not answer keeps its sessions: see the README.
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

// uncompared takes the compare out of the save script on its way to Redis.
type uncompared struct{ redis.Hook }

const compare = "redis.sha1hex(value) ~= ARGV[2]"

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
		if text, ok := cmd.Args()[1].(string); ok && cmd.Name() == "eval" && strings.Contains(text, compare) {
			cmd.Args()[1] = strings.Replace(text, compare, "false", 1)
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

// call makes one call, of a kind drawn at random, for a browser drawn at random.
func (c *caller) call() {
	b := c.rng.IntN(browsers)
	if c.rng.IntN(2) == 0 {
		b /= 10 // some are busier than others
	}
	owner := fmt.Sprint("owner", b%owners)
	id := c.cookie(b)
	if id == "" {
		c.login(b, owner)
		return
	}
	locked := b%2 == 0 && c.locking != nil
	switch n := c.rng.IntN(1000); {
	case c.store == nil: // a rival
		c.rivalCall(b, id, owner, n)
	case n < 5:
		c.revoke(owner)
	case n < 10:
		c.list(owner)
	case n < 40:
		c.logout(b, id, owner)
	case n < 80:
		c.touch(b, id, owner)
	case n < 120:
		c.renew(b, id, owner, locked)
	case n < 350:
		c.read(b, id, owner)
	case !locked:
		c.set(b, id, owner)
	case n < 700:
		c.update(b, id, owner)
	default:
		c.increment(b, id, owner, c.locking)
	}
}

func (c *caller) rivalCall(b int, id, owner string, n int) {
	switch {
	case n < 30:
		c.logout(b, id, owner)
	case n < 300:
		c.read(b, id, owner)
	default:
		c.increment(b, id, owner, c.plain)
	}
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

// load gets the session of a call.
func (c *caller) load(store sessions.Store, r *http.Request, o *op) (*sessions.Session, error) {
	s, err := store.Get(r, "s")
	if err == nil && s.IsNew {
		err = errNew
	}
	if err == nil {
		c.saw(o, s)
	}
	return s, err
}

func (c *caller) login(b int, owner string) {
	o := c.begin("login", "", owner)
	r, w, end := c.request("")
	defer end()
	var store sessions.Store = c.plain
	if b%2 == 0 && c.locking != nil {
		store = c.locking
	}
	s, _ := store.Get(r, "s")
	s.Values["n"], s.Values["padding"] = 0, c.padding
	if c.store != nil {
		redistore.SetOwner(s, owner)
	}
	err := s.Save(r, w)
	o.New, o.Value = s.ID, 0
	c.end(o, err)
	if err == nil {
		c.keep(b, s.ID)
	}
}

// increment adds one, with a load and a save, and sometimes with work between them.
func (c *caller) increment(b int, id, owner string, store sessions.Store) {
	o := c.begin("increment", id, owner)
	r, w, end := c.request(id)
	defer end()
	s, err := c.load(store, r, o)
	if err == nil {
		if c.rng.IntN(8) == 0 {
			time.Sleep(rand.N(2 * time.Millisecond))
		}
		s.Values["n"] = o.Value + 1
		err = s.Save(r, w)
	}
	c.end(o, err)
	c.left(b, o)
}

func (c *caller) update(b int, id, owner string) {
	o := c.begin("increment", id, owner)
	r, w, end := c.request(id)
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
	if !called && !errors.Is(err, redistore.ErrNotLoaded) {
		o.Broken = fmt.Sprint("Update did neither load the session nor say so: ", err)
	}
	c.end(o, err)
	c.left(b, o)
}

// set saves a value of its own with the plain store: the last write wins.
func (c *caller) set(b int, id, owner string) {
	o := c.begin("set", id, owner)
	r, w, end := c.request(id)
	defer end()
	s, err := c.load(c.plain, r, o)
	if err == nil {
		o.Wrote = (c.Worker+1)<<32 | int(o.Op)
		c.note(o)
		s.Values["n"] = o.Wrote
		err = s.Save(r, w)
	}
	c.end(o, err)
	c.left(b, o)
}

func (c *caller) read(b int, id, owner string) {
	o := c.begin("read", id, owner)
	r, _, end := c.request(id)
	defer end()
	_, err := c.load(c.plain, r, o)
	c.end(o, err)
	c.left(b, o)
}

func (c *caller) touch(b int, id, owner string) {
	o := c.begin("touch", id, owner)
	r, w, end := c.request(id)
	defer end()
	s, err := c.load(c.plain, r, o)
	if err == nil {
		err = c.store.Touch(r, w, s)
	}
	c.end(o, err)
	c.left(b, o)
}

func (c *caller) renew(b int, id, owner string, locked bool) {
	o := c.begin("renew", id, owner)
	r, w, end := c.request(id)
	defer end()
	store, renew := c.plain, c.store.Renew
	if locked {
		o.Do, store, renew = "renew, locked", c.locking, c.locking.Renew
	}
	s, err := c.load(store, r, o)
	if err == nil {
		if err = renew(r, w, s); err == nil {
			o.New = s.ID
		}
	}
	c.end(o, err)
	if err == nil {
		c.keep(b, s.ID)
	}
	c.left(b, o)
}

func (c *caller) logout(b int, id, owner string) {
	o := c.begin("logout", id, owner)
	r, w, end := c.request(id)
	defer end()
	s, _ := c.plain.Get(r, "s")
	s.Options.MaxAge = -1
	var err error
	if c.locking != nil && b%2 == 0 {
		err = c.locking.Save(r, w, s)
	} else {
		err = c.plain.Save(r, w, s)
	}
	c.end(o, err)
	c.left(b, o)
}

func (c *caller) revoke(owner string) {
	o := c.begin("revoke", "", owner)
	_, err := c.store.Revoke(context.Background(), owner)
	c.end(o, err)
}

func (c *caller) list(owner string) {
	o := c.begin("list", "", owner)
	list, err := c.store.Sessions(context.Background(), owner)
	o.Listed = map[string]int{}
	for _, s := range list {
		o.Listed[s.ID], _ = s.Values["n"].(int)
	}
	c.end(o, err)
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
