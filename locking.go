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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
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

	mu    sync.Mutex
	lines map[string]*line // by session ID; only those that somebody stands in
	known [3]atomic.Bool   // scripts that Redis has seen
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
	if err == nil && !session.IsNew && session.ID != "" && visitOf(r, l).seen[session] == nil {
		// It was loaded without the lock, by a middleware that only reads.
		session, _, err = l.fresh(r, name)
		if errors.Is(err, ErrGone) { // as if it had not been loaded
			fresh := sessions.NewSession(l, name)
			fresh.IsNew, fresh.Options = true, l.options()
			*session, err = *fresh, nil
			delete(notes(r), session)
		}
	}
	return session, err
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

// Touch takes no lock and needs none. See [Store.Touch].
func (l *LockingStore) Touch(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return l.touch(l, r, w, session)
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
	visit := visitOf(r, l)
	if session := visit.updating[name]; session != nil {
		return fn(session)
	}
	session, undo, err := l.fresh(r, name)
	if undo == nil {
		return err
	}
	visit.updating[name] = session
	saved := false
	defer func() { // fn may panic
		delete(visit.updating, name)
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
// undo makes it what was loaded, and unlocks it; nil: there is nothing to save.
func (l *LockingStore) fresh(r *http.Request, name string) (session *sessions.Session, undo func(), err error) {
	visit := visitOf(r, l)
	loaded := sessions.NewSession(l, name)
	kept := &keepingData{LockingStore: l}
	if err = l.open(kept, r, loaded); errors.Is(err, ErrNotLoaded) {
		l.leave(r, loaded.ID)
		return loaded, nil, err // and the registered one stays as it is
	}
	session, registryErr := sessions.GetRegistry(r).Get(preloaded{l, loaded, err}, name)
	if session == nil {
		return loaded, nil, registryErr // not a cookie name
	}
	if session.ID != "" && session.ID != loaded.ID && !noted(r, session).unread {
		// This request has saved it under that ID, which its cookies do not have, or has
		// loaded what has ended since.
		l.leave(r, loaded.ID)
		found, err := l.find(kept, r, loaded, session.ID)
		switch {
		case err != nil:
			l.leave(r, loaded.ID)
			return loaded, nil, err
		case !found:
			return session, nil, ErrGone
		}
		notes(r)[loaded] = note{id: session.ID}
		err = nil // a cookie that proves nothing has been replaced
	}
	if noted(r, session).ended {
		return session, nil, ErrGone
	}
	before, noteBefore := *loaded, noted(r, loaded)
	*session = before
	notes(r)[session] = noteBefore
	delete(visit.seen, loaded)
	delete(visit.seen, session)
	if kept.data != nil {
		visit.seen[session] = newVersion(kept.data) // its own: see version
	}
	return session, func() {
		noteBefore.ended = noted(r, session).ended
		*session = before
		session.Options = l.options()
		session.Values = make(map[any]any)
		switch { // as it could be before
		case kept.data != nil:
			_ = l.Serializer.Deserialize(kept.data, session)
		case !before.IsNew:
			l.takeOver(r, session)
		}
		notes(r)[session] = noteBefore
		if v := visit.seen[session]; v != nil && v.Load().digest != digest(kept.data) {
			delete(visit.seen, session) // fn saved it: what was loaded is no longer what is stored
		}
		l.leave(r, before.ID)
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

// bound is Wait and, for the last attempt, the time that a command may take.
func (l *LockingStore) bound() time.Duration { return max(l.Wait, l.Wait+timeout) } // which may overflow

// read locks and loads a session.
func (l *LockingStore) read(all context.Context, r *http.Request, session *sessions.Session, life time.Duration) ([]byte, error) {
	id, visit := session.ID, visitOf(r, l)
	ctx, cancel := context.WithTimeout(all, l.Wait)
	defer cancel()
	h, err := l.enter(ctx, r, id)
	if err != nil {
		return nil, ended(r, err)
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
		return nil, ended(r, err)
	case errors.Is(err, redis.Nil):
		h.free()
		return nil, err
	case err != nil: // a reply may have been lost, and the lock been taken
		go l.release(r.Context(), id, h)
		if waited && r.Context().Err() != nil {
			err = ended(r, ErrLocked)
		}
		return nil, err
	}
	h.arm(r.Context(), l.TTL, until, func(ctx context.Context) { l.unlock(ctx, id, h.token) })
	data := []byte(reply.(string))
	visit.holds[id] = h
	visit.seen[session] = h.saw(data)
	return data, nil
}

// ended adds, to an error, that the request has ended.
func ended(r *http.Request, err error) error {
	if cause := r.Context().Err(); cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// create takes no lock, for nobody knows the ID yet. It notes what the request's
// next Save has to find.
func (l *LockingStore) create(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	if err := l.Store.create(ctx, r, session, data, ttl); err != nil {
		return err
	}
	visitOf(r, l).seen[session] = newVersion(data)
	return nil
}

// overwrite compares, writes and unlocks.
func (l *LockingStore) overwrite(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	seen := visitOf(r, l).seen[session]
	if seen == nil {
		return ErrConflict // not loaded through the lock: nothing shows that it is current
	}
	before, _ := accompany(ctx, l.Store, session, ttl)
	if err := l.do(ctx, before); err != nil {
		return failed("save", err)
	}
	if err := l.settle(r, "save", session.ID, seen, data, ttl); err != nil {
		return err
	}
	seen.Store(&sight{digest: digest(data)})
	return nil
}

// replace writes the new record, whose ID nobody knows yet, and then ends the one
// that was loaded, comparing it. If that is refused, it takes the new one back.
func (l *LockingStore) replace(old []string) writer {
	return func(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
		visit := visitOf(r, l)
		seen := visit.seen[session]
		if seen == nil {
			return ErrConflict
		}
		if err := l.create(ctx, r, session, data, ttl); err != nil {
			return err
		}
		err := l.settle(r, "renew", old[0], seen, nil, 0)
		ctx, cancel := detached(r.Context()) // settle may have used up the other
		defer cancel()
		if err != nil {
			visit.seen[session] = seen
			_ = l.Store.remove(ctx, session, session.ID) // if this fails, it expires
			return err
		}
		l.forgo(ctx, session, old...)
		for _, planted := range old[1:] {
			_ = l.Store.remove(ctx, session, planted) // if this fails, it is nobody's login still
		}
		return nil
	}
}

// remove ends a session, whoever holds it, together with the lock.
func (l *LockingStore) remove(ctx context.Context, session *sessions.Session, id string) error {
	_, after := accompany(ctx, l.Store, session, 0, id)
	err := l.drop(ctx, []redis.Cmder{redis.NewIntCmd(ctx, "del", l.key(id), lockKey(l.key(id)))}, after)
	if h := l.holder(id); h != nil && err == nil {
		h.free()
	}
	return failed("delete", err)
}

// settle writes data, or deletes where ttl is 0, if what is stored is what was seen.
// It runs the script until its outcome is known, and is done with the lock. It is not
// left to the client to repeat a script whose reply was lost: only here is it known
// that the answer to a repeat may be about its own work.
func (l *LockingStore) settle(r *http.Request, step, id string, seen *version, data []byte, ttl time.Duration) error {
	h := visitOf(r, l).holds[id]
	if h == nil {
		h = &hold{pass: func() {}} // the session is new, and nobody's yet
	}
	certain := h.keep() // that we hold the lock, so that only we can release it
	before := seen.Load()
	var lost error
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), l.Wait)
	defer cancel()
	reply, err := await(ctx, func() (any, error) {
		ctx, cancel := detached(r.Context())
		defer cancel()
		for attempt := 1; ; attempt++ {
			reply, err := l.run(ctx, settleScript, id, h.token, before.digest, data, seconds(ttl), lost != nil)
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
		go l.release(r.Context(), id, h)
		return failed(step, err)
	}
	h.free()
	switch {
	case reply == "done":
		return nil
	case reply == "same" && (certain && time.Now().Before(h.until) || digest(data) == before.digest):
		// What stands there already is our own work if the lock was ours until then: nobody
		// but our lost attempt can have released it. And where nothing was to be changed, it
		// does not matter whose work it is.
		return nil
	case reply == "gone" && whole && ttl > 0: // which is no Save's work, not even of a lost one
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
	token  string      // proves that the lock is ours; 128 random bits
	header http.Header // the request's: its copies share it
	pass   func()      // gives the turn to the next of this process; once

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

// A visit is what one request has to do with one LockingStore.
type visit struct {
	holds    map[string]*hold // by ID
	seen     map[*sessions.Session]*version
	updating map[string]*sessions.Session // by name: within Update's fn
}

func visitOf(r *http.Request, l *LockingStore) *visit {
	book := notes(r)
	v, ok := book[l].(*visit)
	if !ok {
		v = &visit{map[string]*hold{}, map[*sessions.Session]*version{}, map[string]*sessions.Session{}}
		book[l] = v
	}
	return v
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
	if h := visitOf(r, l).holds[id]; h != nil && h.keep() {
		return h, nil
	}
	token := make([]byte, 16)
	rand.Read(token) // never fails
	h := &hold{token: hex.EncodeToString(token), header: r.Header}
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
	// A copy of the request that was made before gorilla's registry was put into it
	// has another registry. It must not wait for the lock that this request holds.
	if other := q.holder; sameMap(other.header, r.Header) && other.keep() {
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

func sameMap(a, b http.Header) bool {
	return a != nil && reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
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
func (l *LockingStore) leave(r *http.Request, id string) {
	if h := visitOf(r, l).holds[id]; h != nil && h.keep() {
		l.release(r.Context(), id, h)
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

func newScript(n int, src string) script { return script{n, src, digest([]byte(src))} }

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
elseif holder then
	redis.call("DEL", KEYS[2])
end
return value
`)
	// ARGV: token, digest of what was seen, new value, its expiry in s or 0 to delete,
	// whether this is a repeat whose first reply was lost.
	// Returns what became of it, or the holder's remaining ms.
	//
	// A repeat that finds the lock gone may have been done at the first attempt, and
	// others may have come since. It must not write again, not even where the old value
	// stands there once more. At a first attempt, that the new value stands there already
	// is somebody else's equal write: of two requests that both add one to the same
	// number, one is refused.
	settleScript = newScript(1, `
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

// unlock releases the request's own lock. If that fails, the lock runs out.
func (l *LockingStore) unlock(ctx context.Context, id, token string) {
	ctx, cancel := detached(ctx)
	defer cancel()
	_, _ = l.run(ctx, unlockScript, id, token)
}
