package redistore

import (
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

var (
	// ErrConflict is returned by LockingStore's Save and Renew when another request
	// changed the session after this one loaded it, because this one held it for
	// longer than TTL, or when the session was not loaded through the LockingStore.
	// Nothing was written: load the session again, which Update does, and repeat.
	ErrConflict = errors.New("redistore: the session was changed by another request")

	// ErrLocked is returned by LockingStore's Get, New and Update when other requests
	// held the session for all of Wait, when MaxWaiters were waiting already, or when
	// the request ended first (errors.Is then finds its context's error too). The
	// session is empty and Save refuses it with ErrNotLoaded: answer 503.
	ErrLocked = errors.New("redistore: the session is locked")
)

const (
	// A process asks for a lock that another one holds after 1 to 4 ms, again and
	// again; in between, requests of one process pass it on among themselves. So that
	// the others get a turn, the process that has passed it on for longer than streak
	// stands back for longer than they pause.
	minPoll = time.Millisecond
	maxPoll = 4 * time.Millisecond
	streak  = 100 * time.Millisecond
	yield   = maxPoll + time.Millisecond
)

// LockingStore is a [Store] on which requests that change one session, on any
// number of servers, do so one after the other, so that no update is lost
// (boj/redistore#2). It costs no more round trips: Get locks and loads in one, Save
// writes and unlocks in one. A request that does not save unlocks when it ends.
//
// Get is where a request waits. Use one LockingStore for all handlers that save, and
// the embedded Store's Get where a handler only reads: that takes no lock and waits
// for none. What was loaded without the lock cannot be saved with it: see
// [ErrConflict].
//
// The lock is for order, a compare is for safety: Save writes only if what is
// stored is still what this request loaded. A request that is held up for longer
// than TTL therefore harms nobody; if somebody else changed the session meanwhile,
// its Save is refused. Long handlers and streams should not hold a session at all:
// they call [LockingStore.Update] for the moment of the change.
//
// What it does not promise: where Redis replicates asynchronously, a failover can
// lose the last acknowledged writes, and no lock protects against that. Two
// sessions of one request should be loaded in the same order everywhere, as with
// any locks. The application must not change the keys by other means; the plain
// Store's Save is such a means, its logout, Revoke and Touch are not.
//
// A session without a record in Redis takes no lock, so nobody can fill Redis with
// locks.
type LockingStore struct {
	*Store

	// TTL is how long one request may hold a session before others may take it; 10 s.
	// It is the longest delay that a crashed server can cause.
	TTL time.Duration

	// Wait is how long a request waits for a session; 15 s. Keep it longer than TTL,
	// so that a crashed holder delays others and does not fail them. Zero: not at all.
	Wait time.Duration

	// MaxWaiters is how many requests of this process may wait for one session; 64.
	// The next is refused at once, so that one client cannot tie up all of the
	// server's goroutines. Zero: no limit.
	MaxWaiters int

	mu    sync.Mutex
	lines map[string]*line // by key; only those that somebody stands in
	known [3]atomic.Bool   // scripts that Redis has seen
}

// NewLockingStore puts the lock around a store.
func NewLockingStore(store *Store) *LockingStore {
	return &LockingStore{Store: store, TTL: 10 * time.Second, Wait: 15 * time.Second, MaxWaiters: 64}
}

// Get locks and loads the session, once per request, and waits while other
// requests hold it. See [Store.Get].
func (l *LockingStore) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(l, name)
}

// New is Get without the request's cache. The lock is the request's, so this does
// not wait for an earlier Get of the same request. See [Store.New].
func (l *LockingStore) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(l, name)
	return session, l.open(l, r, session)
}

// Save writes the session, if it is still what this request loaded, and unlocks it.
// See [Store.Save].
//
// It can be called again: it then compares with what the first Save wrote.
func (l *LockingStore) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return l.save(l, r, w, session, false)
}

// Renew is Save under a new ID. See [Store.Renew].
func (l *LockingStore) Renew(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return l.save(l, r, w, session, true)
}

// Update locks the session, loads it afresh, calls fn to change it, saves it and
// unlocks it: the shortest time that a session can be held. An error from fn saves
// nothing and is returned as it is.
//
// If the request has loaded the session before, that very session is loaded again,
// and changes that were not saved are lost. Within fn, Update of the same session
// calls its fn on it and leaves saving to the outer one.
func (l *LockingStore) Update(r *http.Request, w http.ResponseWriter, name string, fn func(*sessions.Session) error) error {
	if err := l.check(); err != nil {
		return err
	}
	visits := visitsOf(r, l)
	if session := visits.updating[name]; session != nil {
		return fn(session)
	}
	session, undo, err := l.fresh(r, name)
	if session == nil {
		return err
	}
	visits.updating[name] = session
	saved := false
	defer func() { // fn may panic
		delete(visits.updating, name)
		if !saved {
			undo()
		}
	}()
	if err := fn(session); err != nil {
		return err
	}
	err = l.Save(r, w, session)
	saved = err == nil
	return err
}

// fresh loads a session again, into the request's registered one if there is one.
// undo makes it what was loaded, and unlocks it.
func (l *LockingStore) fresh(r *http.Request, name string) (session *sessions.Session, undo func(), err error) {
	loaded := sessions.NewSession(l, name)
	kept := &keepingData{LockingStore: l}
	if err = l.open(kept, r, loaded); errors.Is(err, ErrNotLoaded) {
		return nil, nil, err // what was loaded before stays
	}
	before := *loaded
	session, registryErr := sessions.GetRegistry(r).Get(preloaded{l, loaded, err}, name)
	if session == nil {
		return nil, nil, registryErr // not a cookie name
	}
	*session = before
	v := l.visit(r, before.ID)
	if loaded != session {
		v.seen[session] = v.seen[loaded]
		notes(r)[session] = notes(r)[loaded]
	}
	return session, func() {
		*session = before
		session.Options = l.options()
		session.Values = make(map[any]any)
		if kept.data != nil {
			_ = l.Serializer.Deserialize(kept.data, session) // as it could be before
		}
		if v.held.Load() {
			l.unlock(r, before.ID, v.token)
			v.free()
		}
	}, err
}

// keepingData keeps what was read.
type keepingData struct {
	*LockingStore
	data []byte
}

func (k *keepingData) read(ctx context.Context, r *http.Request, session *sessions.Session, life time.Duration) (data []byte, err error) {
	k.data, err = k.LockingStore.read(ctx, r, session, life)
	return k.data, err
}

// preloaded hands a session that is already loaded to gorilla's registry.
type preloaded struct {
	*LockingStore
	session *sessions.Session
	err     error
}

func (p preloaded) New(*http.Request, string) (*sessions.Session, error) { return p.session, p.err }

// read locks and loads a session. It has a time of its own, which is Wait.
func (l *LockingStore) read(_ context.Context, r *http.Request, session *sessions.Session, life time.Duration) ([]byte, error) {
	data, err := l.lockAndLoad(r, session, life)
	if ended := r.Context().Err(); ended != nil && errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("%w: %w", err, ended)
	}
	return data, err
}

func (l *LockingStore) lockAndLoad(r *http.Request, session *sessions.Session, life time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(r.Context(), l.Wait)
	defer cancel()
	id := session.ID
	v := l.visit(r, id)
	again := v.held.Load() // by this very request
	if !again {
		pass, err := l.enter(ctx, id, v)
		if err != nil {
			return nil, err
		}
		v.free = pass
	}
	var until time.Time
	var idle int64 // seconds that the session is to live from now; 0: as before
	if l.IdleTimeout > 0 {
		idle = seconds(life)
	}
	reply, err := await(ctx, func() (any, error) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		until = time.Now().Add(l.TTL)
		return l.run(ctx, loadScript, id, v.token, milliseconds(l.TTL), idle)
	})
	switch {
	case err != nil && again:
		return nil, err // the request's end unlocks it
	case err == ErrLocked || err != nil && isReply(err):
		v.free()
		return nil, err
	case err != nil: // the reply was lost; the lock may have been taken
		go l.release(r, id, v.token, v.free)
		return nil, err
	}
	if !again {
		v.hold(r, until, l.TTL, func() { l.unlock(r, id, v.token) })
	}
	data := []byte(reply.(string))
	v.saw(session, data)
	return data, nil
}

func milliseconds(d time.Duration) int64 { return max(1, d.Milliseconds()) }

// create takes no lock, for nobody knows the ID yet. It notes what the request's
// next Save has to find.
func (l *LockingStore) create(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	if err := l.Store.create(ctx, r, session, data, ttl); err != nil {
		return err
	}
	l.visit(r, session.ID).saw(session, data)
	return nil
}

// overwrite compares, writes and unlocks.
func (l *LockingStore) overwrite(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	v := l.visit(r, session.ID)
	seen := v.seen[session]
	if seen == nil {
		return ErrConflict // not loaded through the lock: nothing shows that it is current
	}
	before, _ := accompany(ctx, l.Store, session, ttl)
	if err := l.do(ctx, before); err != nil {
		return failed("save", err)
	}
	if err := l.settle(r, "save", session.ID, v, *seen, data, seconds(ttl)); err != nil {
		return err
	}
	*seen = digest(data)
	return nil
}

// replace writes the new record, whose ID nobody knows yet, and then ends the old
// ones, comparing the one that was loaded. If that is refused, it takes the new
// record back.
func (l *LockingStore) replace(old []string) writer {
	return func(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
		v := l.visit(r, old[0])
		seen := v.seen[session]
		if seen == nil {
			return ErrConflict
		}
		if err := l.create(ctx, r, session, data, ttl); err != nil {
			return err
		}
		var err error
		for _, planted := range old[1:] {
			err = errors.Join(err, l.Store.remove(r, session, planted))
		}
		if err == nil {
			err = l.settle(r, "renew", old[0], v, *seen, "", 0)
		}
		if err != nil {
			_ = l.Store.remove(r, session, session.ID) // if this fails, it expires
			return err
		}
		_, after := accompany(ctx, l.Store, session, ttl, old...)
		_ = l.do(ctx, after) // if this fails, the index finds out by itself
		return nil
	}
}

// remove ends a session, whoever holds it, together with the lock.
func (l *LockingStore) remove(r *http.Request, session *sessions.Session, id string) error {
	ctx, cancel := detached(r)
	defer cancel()
	_, after := accompany(ctx, l.Store, session, 0, id)
	err := l.do(ctx, []redis.Cmder{redis.NewIntCmd(ctx, "del", l.key(id), lockKey(l.key(id)))}, after)
	if err == nil {
		l.visit(r, id).free()
	}
	return failed("delete", err)
}

// settle runs the settle script until its outcome is known, and is done with the
// lock. It is not left to the client to repeat a script whose reply was lost: only
// here is it known that the answer to a repeat may be about its own work.
func (l *LockingStore) settle(r *http.Request, step, id string, v *visit, seen string, data any, ttl int64) error {
	certain := v.keep() // that we hold the lock, so that only we can release it
	var lost error
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), l.Wait)
	defer cancel()
	reply, err := await(ctx, func() (any, error) {
		ctx, cancel := detached(r)
		defer cancel()
		for attempt := 1; ; attempt++ {
			reply, err := l.run(ctx, settleScript, id, v.token, seen, data, ttl, lost != nil)
			if err == nil || isReply(err) {
				return reply, err
			}
			if lost = err; attempt == maxAttempts || !pause(ctx, attempt) {
				return nil, err
			}
		}
	})
	if err != nil && err != ErrLocked {
		go l.release(r, id, v.token, v.free)
		return failed(step, err)
	}
	v.free()
	if reply == "same" && certain && time.Now().Before(v.until) {
		return nil // our lock was released, and nobody but our lost attempt can have done that
	}
	switch {
	case err != nil:
		return err
	case reply == "done":
		return nil
	case lost != nil: // whose doing this is cannot be told
		return failed(step, lost)
	case reply == "gone":
		return ErrGone
	}
	return ErrConflict
}

// A visit is what one request knows of one session.
type visit struct {
	header http.Header                   // the request's: its copies share it
	token  string                        // proves that a lock is this request's; 128 random bits
	seen   map[*sessions.Session]*string // digest of what is stored, as far as each has seen

	held  atomic.Bool
	until time.Time     // before this, a lock that is held cannot have run out
	keep  func() bool   // leaves the unlocking to settle; false if that is too late
	free  func()        // forgets the lock and passes the turn on
	turn  chan struct{} // closed when the turn comes
}

// hold notes that Redis has given the lock. It ends with free, or with the request,
// or after ttl, when Redis takes the lock back and the next of this process may ask.
func (v *visit) hold(r *http.Request, until time.Time, ttl time.Duration, unlock func()) {
	pass := v.free
	freed := sync.OnceFunc(func() {
		v.held.Store(false)
		pass()
	})
	lease := time.AfterFunc(ttl, freed)
	// net/http cancels the context when the handler has returned, whichever way.
	stop := context.AfterFunc(r.Context(), func() {
		unlock()
		lease.Stop()
		freed()
	})
	v.held.Store(true)
	v.until = until
	v.keep = func() bool { return stop() && v.held.Load() }
	v.free = func() {
		stop()
		lease.Stop()
		freed()
	}
}

// saw notes that a session object stands for what is stored. Objects that stand for
// the same bytes go on doing so when the request writes one of them: that is no
// conflict.
func (v *visit) saw(session *sessions.Session, data []byte) {
	d := digest(data)
	for _, other := range v.seen {
		if *other == d {
			v.seen[session] = other
			return
		}
	}
	v.seen[session] = &d
}

func digest(data []byte) string {
	sum := sha1.Sum(data) // which Redis' scripts can compute too
	return hex.EncodeToString(sum[:])
}

// visits are those of one request to one LockingStore.
type visits struct {
	byID     map[string]*visit
	updating map[string]*sessions.Session // by name: within Update's fn
}

// visitsOf returns the request's.
func visitsOf(r *http.Request, l *LockingStore) *visits {
	book := notes(r)
	v, ok := book[l].(*visits)
	if !ok {
		v = &visits{map[string]*visit{}, map[string]*sessions.Session{}}
		book[l] = v
	}
	return v
}

// visit returns the request's visit to a session, a new one if need be.
func (l *LockingStore) visit(r *http.Request, id string) *visit {
	all := visitsOf(r, l)
	if v := all.byID[id]; v != nil {
		return v
	}
	// A copy of the request that was made before gorilla's registry was put into it
	// has another registry. It must not wait for the lock that this request holds.
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.lines[id]; q != nil && sameMap(q.holder.header, r.Header) {
		all.byID[id] = q.holder
		return q.holder
	}
	token := make([]byte, 16)
	rand.Read(token) // never fails
	v := &visit{
		header: r.Header,
		token:  hex.EncodeToString(token),
		seen:   map[*sessions.Session]*string{},
		keep:   func() bool { return false },
		free:   func() {},
	}
	all.byID[id] = v
	return v
}

func sameMap(a, b http.Header) bool {
	return a != nil && reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// A line is made of the requests of this process that want one session: first come,
// first served, and only the first talks to Redis.
type line struct {
	holder  *visit
	waiting []*visit
	since   time.Time // since when they have passed the lock on among themselves
}

// enter returns when it is the visit's turn, with what passes it on, or ErrLocked.
func (l *LockingStore) enter(ctx context.Context, id string, v *visit) (pass func(), err error) {
	pass = sync.OnceFunc(func() { l.pass(id) })
	l.mu.Lock()
	q := l.lines[id]
	if q == nil {
		if l.lines == nil {
			l.lines = map[string]*line{}
		}
		l.lines[id] = &line{holder: v, since: time.Now()}
		l.mu.Unlock()
		return pass, nil
	}
	if n := len(q.waiting); l.MaxWaiters > 0 && n >= l.MaxWaiters {
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: %d requests of this process wait for it already, which is MaxWaiters", ErrLocked, n)
	}
	v.turn = make(chan struct{})
	q.waiting = append(q.waiting, v)
	l.mu.Unlock()

	select {
	case <-v.turn:
	case <-ctx.Done():
		l.mu.Lock()
		i := slices.Index(q.waiting, v)
		if i >= 0 {
			q.waiting = slices.Delete(q.waiting, i, i+1)
		}
		l.mu.Unlock()
		if i < 0 { // the turn has come at this very moment
			pass()
		}
		return nil, ErrLocked
	}
	if now := time.Now(); now.Sub(q.since) > streak { // the others' turn
		q.since = now
		sleep(ctx, yield)
	}
	return pass, nil
}

// pass gives the turn to the next in line.
func (l *LockingStore) pass(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.lines[id]
	if len(q.waiting) == 0 {
		delete(l.lines, id)
		return
	}
	q.holder = q.waiting[0]
	q.waiting = slices.Delete(q.waiting, 0, 1)
	close(q.holder.turn)
}

// await asks again for as long as the answer is that somebody else has the lock, or
// that Redis is busy with itself.
func await(ctx context.Context, ask func() (any, error)) (any, error) {
	for waited := false; ; {
		reply, err := ask()
		left, locked := reply.(int64)
		switch {
		case err == nil && !locked:
			return reply, nil
		case err != nil && waited && ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w", ErrLocked, err)
		case err != nil && !passing(err):
			return nil, err
		}
		waited = waited || locked
		wait := minPoll + mathrand.N(maxPoll-minPoll)
		if locked { // not past the moment when the lock runs out
			wait = min(wait, max(minPoll, time.Duration(left)*time.Millisecond))
			err = ErrLocked
		}
		if !sleep(ctx, wait) {
			return nil, err
		}
	}
}

// lockKey is in the same Cluster slot as the key: the key is its hash tag, or has
// one. "" if there is no such name.
func lockKey(key string) string {
	if _, tag, found := strings.Cut(key, "{"); found && strings.Index(tag, "}") > 0 {
		return key + ":lock"
	}
	if strings.Contains(key, "}") {
		return ""
	}
	return "{" + key + "}:lock"
}

// check adds what only the lock needs.
func (l *LockingStore) check() error {
	switch {
	case l.Store == nil:
		return errors.New("redistore: no Store: make the LockingStore with NewLockingStore")
	case l.TTL <= 0:
		return fmt.Errorf("redistore: TTL is %v: use more than 0", l.TTL)
	case l.Wait < 0:
		return fmt.Errorf("redistore: Wait is %v: use 0 to not wait", l.Wait)
	case l.MaxWaiters < 0:
		return fmt.Errorf("redistore: MaxWaiters is %d: use 0 for no limit", l.MaxWaiters)
	case lockKey(l.KeyPrefix+"ID") == "":
		return fmt.Errorf("redistore: KeyPrefix %q: Redis Cluster takes no hash tag from it, but finds a brace; leave the braces out or put some text between them", l.KeyPrefix)
	}
	return l.Store.check()
}

// Ping is [Store.Ping] with the lock's configuration.
func (l *LockingStore) Ping(ctx context.Context) error {
	if err := l.check(); err != nil {
		return err
	}
	return l.Store.Ping(ctx)
}

// A script runs on a session's key and on its lock's.
type script struct {
	n         int
	src, hash string
}

func newScript(n int, src string) script {
	sum := sha1.Sum([]byte(src))
	return script{n, src, hex.EncodeToString(sum[:])}
}

var (
	// ARGV: token, TTL in ms, idle timeout in s or 0.
	// Returns the value, or the holder's remaining ms, or nil: no such session.
	loadScript = newScript(0, `
local holder = redis.call("GET", KEYS[2])
if holder and holder ~= ARGV[1] then
	if redis.call("EXISTS", KEYS[1]) == 0 then return false end
	return redis.call("PTTL", KEYS[2])
end
local value = redis.call("GET", KEYS[1])
if value then
	redis.call("SET", KEYS[2], ARGV[1], "PX", ARGV[2])
	if ARGV[3] ~= "0" then redis.call("EXPIRE", KEYS[1], ARGV[3]) end
end
return value
`)
	// ARGV: token, digest of what was loaded, new value, its expiry in s or 0 to
	// delete, whether this is a repeat whose first reply was lost.
	// Returns what became of it, or the holder's remaining ms.
	//
	// That the new value stands there already is the repeat's own work if the lock is
	// gone, which that work released. At a first attempt it is somebody else's equal
	// write: of two requests that both add one to the same number, one is refused.
	settleScript = newScript(1, `
local value, holder = redis.call("GET", KEYS[1]), redis.call("GET", KEYS[2])
local result
if not value then
	result = "gone"
elseif ARGV[5] == "1" and value == ARGV[3] and not holder then
	result = "same"
elseif redis.sha1hex(value) ~= ARGV[2] then
	result = "conflict"
elseif holder and holder ~= ARGV[1] then
	return redis.call("PTTL", KEYS[2])
else
	if ARGV[4] == "0" then
		redis.call("DEL", KEYS[1])
	else
		redis.call("SET", KEYS[1], ARGV[3], "EX", ARGV[4])
	end
	result = "done"
end
if holder == ARGV[1] then redis.call("DEL", KEYS[2]) end
return result
`)
	// ARGV: token.
	unlockScript = newScript(2, `
if redis.call("GET", KEYS[2]) == ARGV[1] then return redis.call("DEL", KEYS[2]) end
return 0
`)
)

// run sends a script: in full until Redis is known to have it, and by its digest
// from then on.
func (l *LockingStore) run(ctx context.Context, s script, id string, args ...any) (any, error) {
	key := l.key(id)
	send := func(name, text string) (any, error) {
		cmd := redis.NewCmd(ctx, append([]any{name, text, 2, key, lockKey(key)}, args...)...)
		cmd.SetFirstKeyPos(3)
		if s.n == settleScript.n {
			_ = l.client.Process(ctx, once{cmd}) // see settle
		} else {
			_ = l.client.Process(ctx, cmd)
		}
		return cmd.Result()
	}
	if l.known[s.n].Load() {
		reply, err := send("evalsha", s.hash)
		if !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return reply, err
		}
	}
	reply, err := send("eval", s.src)
	if err == nil {
		l.known[s.n].Store(true)
	}
	return reply, err
}

// release unlocks what may be locked, and then lets the next of this process ask.
func (l *LockingStore) release(r *http.Request, id, token string, free func()) {
	l.unlock(r, id, token)
	free()
}

// unlock releases the request's own lock. If that fails, the lock runs out.
func (l *LockingStore) unlock(r *http.Request, id, token string) {
	ctx, cancel := detached(r)
	defer cancel()
	_, _ = l.run(ctx, unlockScript, id, token)
}
