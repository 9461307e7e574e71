package redistore

import (
	"cmp"
	"context"
	"crypto/fips140"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/script"
)

var (
	// ErrConflict is returned by LockingStore's Save, Renew and Update when another request
	// changed the session after this one loaded it, because this one held it for
	// longer than TTL, or when the session was not loaded through the LockingStore.
	// Nothing was written: load the session again, which Update does, and repeat.
	ErrConflict = errors.New("redistore: the session was changed by another request")

	// ErrLocked is returned by LockingStore's Get, New and Update when other requests
	// held the session for all of Wait, when MaxWaiters were waiting already, or when
	// the request ended first (errors.Is then finds its context's error too). The
	// session is empty and Save refuses it with ErrNotLoaded: answer 503. Save returns
	// it if this request took longer than TTL and another one then held the session for
	// all of Wait; nothing was written.
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
// writes and unlocks in one; only Renew, and Save where there is an owner, take one
// more. A call takes Wait and 5 seconds at most. A request that does not save unlocks when it ends.
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
	// so that a crashed holder delays others and does not fail them. So long it also waits
	// for a Redis that answers but cannot serve yet, because it loads its data or fails
	// over. Zero: not at all.
	Wait time.Duration

	// MaxWaiters is how many requests of this process may wait for one session; 64.
	// The next is refused at once, so that one client cannot tie up all of the
	// server's goroutines. Zero: no limit.
	MaxWaiters int

	mu       sync.Mutex
	lines    map[string]*line // by session ID; only those that somebody stands in
	updating sync.Map         // updateKey: *sessions.Session
}

// NewLockingStore puts the lock around a store, with a TTL of 10 s, a Wait of 15 s and
// 64 MaxWaiters. Set its fields before the first request.
func NewLockingStore(store *Store) *LockingStore {
	return &LockingStore{Store: store, TTL: 10 * time.Second, Wait: 15 * time.Second, MaxWaiters: 64}
}

// Get locks and loads the session, once per request, and waits while other
// requests hold it, for as long as Wait: then, [ErrLocked]. See [Store.Get].
func (l *LockingStore) Get(r *http.Request, name string) (*sessions.Session, error) {
	session, err := sessions.GetRegistry(r).Get(l, name)
	if err != nil {
		return session, err
	}
	st := stateOf(session)
	if st.may(ending, l) != nil {
		return apart(l, r, session)
	}
	if st.status == stored && st.seen == nil {
		// It was loaded without the lock, by a middleware that only reads.
		session, _, err = l.fresh(r, name)
		if errors.Is(err, ErrGone) { // as if it had not been loaded
			fresh := sessions.NewSession(l, name)
			fresh.IsNew, fresh.Options = true, l.options()
			*session, err = *fresh, nil
			setState(session, state{})
		}
	}
	return session, err
}

// New is Get without the request's cache. The lock is the request's, so this does
// not wait for an earlier Get of the same request. See [Store.New].
func (l *LockingStore) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(l, name)
	return session, (&call{by: l, r: r, session: session}).open()
}

// Save writes the session, if it is still what this request loaded, and unlocks it.
// See [Store.Save].
//
// It can be called again: it then compares with what the first Save wrote.
func (l *LockingStore) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return l.call(r, w, session).save(false)
}

// Renew is Save under a new ID. See [Store.Renew].
func (l *LockingStore) Renew(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return l.call(r, w, session).save(true)
}

// Touch takes no lock and needs none. See [Store.Touch].
func (l *LockingStore) Touch(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return l.call(r, w, session).touch()
}

func (l *LockingStore) call(r *http.Request, w http.ResponseWriter, session *sessions.Session) *call {
	return &call{by: l, r: r, w: w, session: session, state: stateOf(session)}
}

// Update locks the session, loads it afresh, calls fn to change it, saves it and
// unlocks it: the shortest time that a session can be held. An error from fn saves
// nothing and is returned as it is.
//
// If the request has loaded or saved the session before, that very session is loaded
// again, and changes that were not saved are lost; if it has ended meanwhile, Update is
// [ErrGone] and does not call fn. Otherwise fn gets a new session, as Get gives one, where
// there is none: IsNew tells. Within fn, Update of the same session calls its fn on it
// and leaves saving, or not, to the outer one.
func (l *LockingStore) Update(r *http.Request, w http.ResponseWriter, name string, fn func(*sessions.Session) error) error {
	if err := l.check(); err != nil {
		return err
	}
	key := updateKey{sessions.GetRegistry(r), name}
	if outer, nested := l.updating.Load(key); nested {
		return fn(outer.(*sessions.Session))
	}
	session, undo, err := l.fresh(r, name)
	if undo == nil {
		return err
	}
	l.updating.Store(key, session)
	saved := false
	defer func() { // fn may panic
		l.updating.Delete(key)
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

// updateKey is a request's session while Update's fn works on it.
type updateKey struct {
	registry *sessions.Registry
	name     string
}

// fresh loads a session again, into the request's registered one if there is one.
// undo makes it what was loaded, and unlocks it; nil: there is nothing to save.
func (l *LockingStore) fresh(r *http.Request, name string) (session *sessions.Session, undo func(), err error) {
	loaded := sessions.NewSession(l, name)
	kept := &keepingData{LockingStore: l}
	c := &call{by: kept, r: r, session: loaded}
	if err = c.open(); errors.Is(err, ErrNotLoaded) {
		l.leave(r, c.state.held)
		return loaded, nil, err // and the registered one stays as it is
	}
	session, registryErr := sessions.GetRegistry(r).Get(preloaded{l, loaded, err}, name)
	if session == nil {
		return loaded, nil, registryErr // not a cookie name
	}
	st := stateOf(session)
	if err := st.may(ending, l); err != nil {
		l.leave(r, c.state.held)
		return session, nil, err
	}
	if session.ID != "" && session.ID != loaded.ID && st.status != unread {
		// This request has saved it under that ID, which its cookies do not have, or has
		// loaded what has ended since.
		l.leave(r, c.state.held)
		c.state = state{}
		found, err := c.find([]string{session.ID})
		switch {
		case err != nil:
			l.leave(r, c.state.held)
			return loaded, nil, err
		case !found || c.state.status == ended:
			return session, nil, ErrGone
		}
		err = nil // a cookie that proves nothing has been replaced
	}
	if st.status == ended || c.state.status == ended {
		return session, nil, ErrGone
	}
	before, stateBefore := *loaded, c.state
	stateBefore.seen = nil
	if kept.data != nil {
		stateBefore.seen = newVersion(kept.data) // its own: see version
	}
	*session = before
	setState(session, stateBefore)
	return session, func() {
		*session = before
		session.Options = l.options()
		session.Values = make(map[any]any)
		switch { // as it could be before
		case kept.data != nil:
			_ = l.decode(kept.data, session)
		case !before.IsNew:
			l.takeOver(r, session)
		}
		if stateOf(session).status != ended {
			if v := stateBefore.seen; v != nil && v.Load().digest != digest(kept.data) {
				stateBefore.seen = nil // fn saved it: what was loaded is no longer what is stored
			}
			setState(session, stateBefore)
		}
		l.leave(r, stateBefore.held)
	}, err
}

// keepingData keeps what was read.
type keepingData struct {
	*LockingStore
	data []byte
}

func (k *keepingData) read(ctx context.Context, c *call, id string, life time.Duration) (data []byte, err error) {
	k.data, err = k.LockingStore.read(ctx, c, id, life)
	return k.data, err
}

// preloaded hands a session that is already loaded to gorilla's registry.
type preloaded struct {
	*LockingStore
	session *sessions.Session
	err     error
}

func (p preloaded) New(*http.Request, string) (*sessions.Session, error) { return p.session, p.err }

// bound is Wait and, for the last attempt, the time that a command may take.
func (l *LockingStore) bound() time.Duration { return max(l.Wait, l.Wait+timeout) } // which may overflow

func (l *LockingStore) parts() (*Store, *LockingStore) { return l.Store, l }

// records are the store's, each with a lock. A write may wait for the lock once the index
// knows of it.
func (l *LockingStore) records() records {
	db := l.Store.records()
	db.wait, db.locked = max(db.wait, db.wait+l.Wait), true // which may overflow
	return db
}

// read locks and loads a session.
func (l *LockingStore) read(all context.Context, c *call, id string, life time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(all, l.Wait)
	defer cancel()
	h, err := l.enter(ctx, c.r, id)
	if err != nil {
		return nil, c.ended(err)
	}
	var idle int64 // seconds that the session is to live from now; 0: as before
	if l.IdleTimeout > 0 {
		idle = seconds(life)
	}
	var until time.Time
	waited := false
	reply, err := await(ctx, func() (any, error) {
		ctx, cancel := context.WithTimeout(all, timeout)
		defer cancel()
		until = time.Now().Add(l.TTL)
		reply, err := l.run(ctx, loadScript, id, h.token, max(1, l.TTL.Milliseconds()), idle)
		_, locked := reply.(int64)
		waited = waited || locked
		return reply, err
	})
	switch {
	case err == ErrLocked:
		h.free()
		return nil, c.ended(err)
	case errors.Is(err, redis.Nil):
		h.free()
		return nil, err
	case err != nil: // a reply may have been lost, and the lock been taken
		go l.release(c.context(), id, h)
		if waited && c.context().Err() != nil {
			err = c.ended(ErrLocked)
		}
		return nil, err
	}
	h.arm(c.context(), l.TTL, until, func(ctx context.Context) { l.unlock(ctx, id, h.token) })
	data := []byte(reply.(string))
	c.state.held, c.state.seen = h, h.saw(data)
	return data, nil
}

// ended adds, to an error, that the request has ended.
func (c *call) ended(err error) error {
	if cause := c.context().Err(); cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// create takes no lock, for nobody knows the ID yet. It notes what the session's next Save
// has to find.
func (l *LockingStore) create(ctx context.Context, c *call, rec record) error {
	if err := l.records().create(ctx, rec); err != nil {
		return err
	}
	c.state.held, c.state.seen = nil, newVersion(rec.data)
	return nil
}

// overwrite compares, writes and unlocks.
func (l *LockingStore) overwrite(ctx context.Context, c *call, rec record) error {
	db := l.records()
	if rec.owner != "" {
		if err := db.remember(ctx, rec, db.wait); err != nil {
			return failed("save", err)
		}
	}
	err := l.settle(c, "save", rec)
	switch {
	case err == nil:
		c.state.seen.Store(&sight{digest: digest(rec.data)})
	case errors.Is(err, ErrGone):
		db.remove(ctx, rec.owner, rec.id)
	}
	return err
}

// replace writes the new record, whose ID nobody knows yet, and then ends the one
// that was loaded, comparing it. If that is refused, it takes the new one back.
func (l *LockingStore) replace(ctx context.Context, c *call, rec record, old []string) error {
	loaded := c.state
	if err := l.create(ctx, c, rec); err != nil {
		c.state = loaded
		return err
	}
	created := c.state
	c.state = loaded
	err := l.settle(c, "renew", record{id: old[0]})
	ctx, cancel := c.detached() // settle may have used up the other
	defer cancel()
	db := l.records()
	if err != nil {
		_, _ = db.delete(ctx, rec.owner, rec.id) // if this fails, it expires
		return err
	}
	c.state = created
	db.remove(ctx, rec.owner, old...)
	for _, planted := range old[1:] {
		_, _ = db.end(ctx, planted, rand.Text()) // if this fails, it is nobody's login still
	}
	return nil
}

// delete ends sessions, whoever holds them, together with their locks.
func (l *LockingStore) delete(ctx context.Context, owner string, ids []string) error {
	_, err := l.records().delete(ctx, owner, ids...)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if h := l.holder(id); h != nil {
			h.free()
		}
	}
	return nil
}

// settle writes a record, or ends it where its ttl is 0, if what is stored is what was seen.
// It runs the script until its outcome is known, and is done with the lock. It is not
// left to the client to repeat a script whose reply was lost: only here is it known
// that the answer to a repeat may be about its own work.
func (l *LockingStore) settle(c *call, step string, rec record) error {
	h, seen := c.state.held, c.state.seen
	if h == nil {
		h = &hold{pass: func() {}} // the session is new, and nobody's yet
	}
	certain := h.keep() // that we hold the lock, so that only we can release it
	before := seen.Load()
	var lost error
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.context()), l.Wait)
	defer cancel()
	reply, err := await(ctx, func() (any, error) {
		ctx, cancel := c.detached()
		defer cancel()
		for attempt := 1; ; attempt++ {
			reply, err := l.run(ctx, settleScript, rec.id, h.token, before.digest, rec.data, seconds(rec.ttl), lost != nil, seconds(renewed))
			if err == nil || isReply(err) {
				return reply, err
			}
			if lost = err; attempt == maxAttempts || !pause(ctx, attempt) {
				return nil, err
			}
		}
	})
	whole := lost == nil // every reply came
	lost = cmp.Or(lost, before.lost)
	seen.CompareAndSwap(before, &sight{before.digest, lost}) // a copy may have saved
	switch {
	case err == ErrLocked:
		h.free()
		if lost != nil {
			return failed(step, lost)
		}
		return err
	case err != nil:
		go l.release(c.context(), rec.id, h)
		return failed(step, err)
	}
	h.free()
	switch {
	case reply == "done":
		return nil
	case reply == "same" && (certain && time.Now().Before(h.until) || digest(rec.data) == before.digest):
		// What stands there already is our own work if the lock was ours until then: nobody
		// but our lost attempt can have released it. And where nothing was to be changed, it
		// does not matter whose work it is.
		return nil
	case reply == "gone" && whole && rec.ttl > 0: // which is no Save's work, not even of a lost one
		return ErrGone
	case lost != nil: // whose doing this is cannot be told
		return failed(step, lost)
	case reply == "gone":
		return ErrGone
	}
	return ErrConflict
}

// A hold is the lock that Redis has given to a request, and before that the turn to
// ask for it. Several goroutines may use it, as copies of a request do.
type hold struct {
	id    string
	token string        // proves that the lock is ours; 128 random bits
	r     *http.Request // whose it is
	pass  func()        // gives the turn to the next of this process; once

	mu      sync.Mutex
	version *version
	until   time.Time   // before this, the lock cannot have run out
	end     func() bool // stops the unlocking at the end of the request; nil: somebody sees to it
	lease   *time.Timer
}

// arm has the lock released at the end of the request. After ttl, when Redis takes it
// back, the next of this process may ask.
func (h *hold) arm(ctx context.Context, ttl time.Duration, until time.Time, unlock func(context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lease != nil {
		h.lease.Stop()
	}
	h.until = until
	h.lease = time.AfterFunc(ttl, h.free)
	// net/http cancels the context when the handler has returned, whichever way.
	h.end = context.AfterFunc(ctx, func() {
		unlock(ctx)
		h.free()
	})
}

// keep leaves the unlocking to the caller. It returns false if that is too late, or
// somebody else sees to it.
func (h *hold) keep() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.end != nil && h.end()
	h.end = nil
	return kept
}

// free forgets the lock, which is no longer held, and passes the turn on.
func (h *hold) free() {
	h.mu.Lock()
	if h.end != nil {
		h.end()
		h.end = nil
	}
	if h.lease != nil {
		h.lease.Stop()
	}
	h.mu.Unlock()
	h.pass()
}

// saw returns the version of what was loaded under the lock.
func (h *hold) saw(data []byte) *version {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.version == nil || h.version.Load().digest != digest(data) {
		h.version = newVersion(data)
	}
	return h.version
}

// A version is the digest of what is stored, as far as a session has seen. Sessions
// that a request loads under one lock, by Get and New, share it: when one of them is
// saved, the others have not become stale by somebody else's doing. Update's has its
// own, for whoever wants its change kept does not save another copy.
type version struct{ atomic.Pointer[sight] }

type sight struct {
	digest string
	lost   error // why it is not known what became of a Save since
}

func newVersion(data []byte) *version {
	v := &version{}
	v.Store(&sight{digest: digest(data)})
	return v
}

// digest is SHA-1, which Redis' scripts can compute too. It protects nothing, so that it
// may be used where only what FIPS 140 approves may protect.
func digest(data []byte) (text string) {
	fips140.WithoutEnforcement(func() {
		sum := sha1.Sum(data)
		text = hex.EncodeToString(sum[:])
	})
	return text
}

// A line is made of the requests of this process that want one session: first come,
// first served, and only the first talks to Redis.
type line struct {
	holder  *hold
	waiting []waiter
	since   time.Time // since when they have passed the lock on among themselves
}

type waiter struct {
	hold *hold
	turn chan struct{} // closed when it comes
}

// enter returns the request's own hold, or a new one when its turn has come, or
// ErrLocked.
func (l *LockingStore) enter(ctx context.Context, r *http.Request, id string) (*hold, error) {
	token := make([]byte, 16)
	rand.Read(token) // never fails
	h := &hold{id: id, token: hex.EncodeToString(token), r: r}
	h.pass = sync.OnceFunc(func() { l.pass(id) })

	l.mu.Lock()
	q := l.lines[id]
	if q == nil {
		if l.lines == nil {
			l.lines = map[string]*line{}
		}
		l.lines[id] = &line{holder: h, since: time.Now()}
		l.mu.Unlock()
		return h, nil
	}
	// A request must not wait for the lock that it holds.
	if other := q.holder; sameRequest(other.r, r) && other.keep() {
		l.mu.Unlock()
		return other, nil
	}
	if n := len(q.waiting); l.MaxWaiters > 0 && n >= l.MaxWaiters {
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: %d requests of this process wait for it already, which is MaxWaiters", ErrLocked, n)
	}
	turn := make(chan struct{})
	q.waiting = append(q.waiting, waiter{h, turn})
	l.mu.Unlock()

	select {
	case <-turn:
	case <-ctx.Done():
		l.mu.Lock()
		i := slices.IndexFunc(q.waiting, func(w waiter) bool { return w.turn == turn })
		if i >= 0 {
			q.waiting = slices.Delete(q.waiting, i, i+1)
		}
		l.mu.Unlock()
		if i < 0 { // the turn has come at this very moment
			h.pass()
		}
		return nil, ErrLocked
	}
	if l.standsBack(q) {
		sleep(ctx, yield)
	}
	return h, nil
}

// standsBack tells whether it is the other processes' turn.
func (l *LockingStore) standsBack(q *line) bool {
	l.mu.Lock() // the next may have come already, if the session was logged out
	defer l.mu.Unlock()
	over := time.Since(q.since) > streak
	if over {
		q.since = time.Now()
	}
	return over
}

// holder is who of this process holds the session, if anybody does.
func (l *LockingStore) holder(id string) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.lines[id]; q != nil {
		return q.holder
	}
	return nil
}

// sameRequest tells whether one is a copy of the other: copies share the header, and those
// that were made once gorilla's registry was put into the request share that too.
func sameRequest(a, b *http.Request) bool {
	header := func(r *http.Request) unsafe.Pointer { return reflect.ValueOf(r.Header).UnsafePointer() }
	return a.Header != nil && header(a) == header(b) || registry(a) == registry(b)
}

// registry is gorilla's, if the request has one; else, one that nobody else has. It leaves
// the request as it is.
func registry(r *http.Request) *sessions.Registry {
	return sessions.GetRegistry(r.WithContext(r.Context()))
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
	next := q.waiting[0]
	q.holder, q.waiting = next.hold, slices.Delete(q.waiting, 0, 1)
	close(next.turn)
}

// leave releases the session if the request holds it.
func (l *LockingStore) leave(r *http.Request, h *hold) {
	if h != nil && h.keep() {
		l.release(r.Context(), h.id, h)
	}
}

// release unlocks what may be locked, and then lets the next of this process ask.
func (l *LockingStore) release(ctx context.Context, id string, h *hold) {
	l.unlock(ctx, id, h.token)
	h.free()
}

// await asks again for as long as the answer is that somebody else has the lock, or
// that Redis is busy with itself.
func await(ctx context.Context, ask func() (any, error)) (any, error) {
	for {
		reply, err := ask()
		left, locked := reply.(int64)
		if err == nil && !locked || err != nil && !passing(err) {
			return reply, err
		}
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

// lockKey is in the same Cluster slot as the key. "" if there is no such name.
func lockKey(key string) string { return beside(key, ":lock") }

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

// The scripts run on a session's key, its lock's and its renewal marker's.
var (
	// ARGV: token, TTL in ms, idle timeout in s or 0.
	// Returns the value, or the holder's remaining ms, or nil: no such session.
	loadScript = script.New(`
local holder = redis.call("GET", KEYS[2])
if holder and holder ~= ARGV[1] then
	if redis.call("EXISTS", KEYS[1]) == 0 then return false end
	return redis.call("PTTL", KEYS[2])
end
local value = redis.call("GET", KEYS[1])
if value then
	redis.call("SET", KEYS[2], ARGV[1], "PX", ARGV[2])
	if ARGV[3] ~= "0" then redis.call("EXPIRE", KEYS[1], ARGV[3]) end
elseif holder then
	redis.call("DEL", KEYS[2])
end
return value
`)
	// ARGV: token, digest of what was seen, new value, its expiry in s or 0 to delete,
	// whether this is a repeat whose first reply was lost, the renewal marker's expiry in s.
	// Returns what became of it, or the holder's remaining ms.
	//
	// A repeat that finds the lock gone may have been done at the first attempt, and
	// others may have come since. It must not write again, not even where the old value
	// stands there once more. At a first attempt, that the new value stands there already
	// is somebody else's equal write: of two requests that both add one to the same
	// number, one is refused.
	settleScript = script.Once(`
local value, holder = redis.call("GET", KEYS[1]), redis.call("GET", KEYS[2])
local result
if not value then
	result = "gone"
elseif ARGV[5] == "1" and holder ~= ARGV[1] then
	return value == ARGV[3] and "same" or "unknown"
elseif redis.sha1hex(value) ~= ARGV[2] then
	result = "conflict"
elseif holder and holder ~= ARGV[1] then
	return redis.call("PTTL", KEYS[2])
else
	if ARGV[4] == "0" then
		redis.call("DEL", KEYS[1])
		redis.call("SET", KEYS[3], ARGV[1], "EX", ARGV[6])
	else
		redis.call("SET", KEYS[1], ARGV[3], "EX", ARGV[4])
	end
	result = "done"
end
if holder == ARGV[1] then redis.call("DEL", KEYS[2]) end
return result
`)
	// ARGV: token.
	unlockScript = script.New(`
if redis.call("GET", KEYS[2]) == ARGV[1] then return redis.call("DEL", KEYS[2]) end
return 0
`)
)

func (l *LockingStore) run(ctx context.Context, s *script.Script, id string, args ...any) (any, error) {
	db := l.records()
	return l.scripts.Run(ctx, s, []string{db.key(id), lockKey(db.key(id)), db.mark(id)}, args...).Result()
}

// unlock releases the request's own lock. If that fails, the lock runs out.
func (l *LockingStore) unlock(ctx context.Context, id, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	_, _ = l.run(ctx, unlockScript, id, token)
}
