package redistore

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"sync"
	"time"
	"unsafe"
	"weak"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore/internal/lock"
)

var (
	// ErrConflict is returned by LockingStore's Save, Renew and Update when another request
	// has changed the session since this one loaded it. That can happen when this one held
	// it for longer than TTL, when its client hung up, or after an Update of its own. A
	// session that was not loaded through the LockingStore is ErrConflict too. Nothing was
	// written. Load the session again and repeat, which is what Update is for.
	ErrConflict = lock.ErrConflict

	// ErrLocked is returned by LockingStore's Get, New and Update when the lock was not
	// free within Wait, when MaxWaiters requests were already waiting, or when the request
	// ended first (errors.Is then finds its context's error too). The session is empty and
	// Save refuses it with ErrNotLoaded: answer 503. Save returns it if this request took
	// longer than TTL and another one then held the session for all of Wait; nothing was
	// written.
	ErrLocked = lock.ErrLocked
)

// LockingStore is a [Store] on which requests that change one session, on any number of
// servers, do so one after the other, in the order in which they came. So no update is lost
// (boj/redistore#2). Get locks and loads in one round trip, Save writes and unlocks in one;
// a session of more than 16 KB takes two each.
// A request that does not save unlocks when it ends. A call takes Wait and 5 seconds at
// most; Update, which waits for its turn, loads and saves, three times Wait and 10 seconds.
//
// Use one LockingStore for all handlers that save. Where a handler only reads, use the
// embedded Store's Get: it takes no lock and waits for none. What it returns cannot be
// saved with the lock: see [ErrConflict].
//
// The lock keeps the order; a compare keeps the data safe. Save writes only if nobody else
// has written since this request loaded the session, so a request that is held up for
// longer than TTL overwrites nothing. Long handlers and streams should not hold a session
// at all: they call [LockingStore.Update] for the moment of the change.
//
// A request does not wait for itself: its copies, made with WithContext or Clone, share its
// lock, in any number of goroutines. One copy is not recognised, and waits like another
// request: one made by Clone, before the first Get, with a context that can be canceled by
// itself, or, over HTTP/2, with one that cannot be canceled at all.
// Goroutines that call Get at the same time need copies that were made before the first Get:
// later ones share gorilla's registry, which is a map.
//
// What it does not promise: where Redis replicates asynchronously, a failover can lose the
// last acknowledged writes, and no lock protects against that. Two sessions of one request
// should be loaded in the same order everywhere, as with any locks. The application must
// not change the keys by other means. The plain Store's Save is such a means; its logout,
// Revoke and Touch are not.
//
// A session without a record in Redis takes no lock, so nobody can fill Redis with locks.
type LockingStore struct {
	*Store

	// TTL is how long one request may hold a session before others may take it; 10 s. Each New
	// of that request starts it anew, and so does the first Get of a copy.
	// It is the longest delay that a crashed server can cause.
	TTL time.Duration

	// Wait is how long a request waits for a session; 15 s. Keep it longer than TTL,
	// so that a crashed holder delays others and does not fail them. The same limit applies
	// while Redis is loading or failing over. Zero: not at all.
	Wait time.Duration

	// MaxWaiters is how many requests of this process may wait for one session, behind the
	// one whose turn is next; 64. More are refused at once, so that one client cannot tie up
	// all of the server's goroutines. Zero: no limit.
	MaxWaiters int

	once  sync.Once
	locks *lock.Locker // see locker
}

// NewLockingStore puts the lock around a store, with a TTL of 10 s, a Wait of 15 s and
// 64 MaxWaiters. Set its fields before the first request.
func NewLockingStore(store *Store) *LockingStore {
	return &LockingStore{Store: store, TTL: 10 * time.Second, Wait: 15 * time.Second, MaxWaiters: 64}
}

// Get locks and loads the session, and waits while other requests hold it, for as long as
// Wait: then, [ErrLocked]. Later calls of the same request return the same session. The
// first one after a Save locks it again, and loads it again if another request has changed
// it: changes that were not saved are lost then. See [Store.Get].
func (l *LockingStore) Get(r *http.Request, name string) (*sessions.Session, error) {
	session, err := sessions.GetRegistry(r).Get(l, name)
	if session == nil {
		return nil, err
	}
	st := stateOf(session)
	switch {
	case st.elsewhere(l):
		return apart(l, r, session)
	case st.status == stored && st.held == nil: // loaded without the lock, or saved
		session, failed := l.again(r, session, st)
		return session, cmp.Or(failed, st.still(err))
	}
	return session, st.still(err)
}

// again locks and loads a session that the request has loaded before.
func (l *LockingStore) again(r *http.Request, session *sessions.Session, st state) (*sessions.Session, error) {
	c := &call{by: l, r: r, session: sessions.NewSession(l, session.Name())}
	err := c.reload(session, st.id)
	switch {
	case err != nil:
		return c.session, err // and the other stays what it is
	case c.state.seen.Same(st.seen):
		setState(session, c.state)
	default: // also if it is gone: then it is new
		adopt(session, c.session)
	}
	return session, nil
}

// adopt makes one session what another is.
func adopt(session, other *sessions.Session) {
	*session = *other
	setState(session, stateOf(other))
}

// New is Get without the request's cache. The lock is the request's, so this does
// not wait for an earlier Get of the same request. See [Store.New].
func (l *LockingStore) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(l, name)
	return session, (&call{by: l, r: r, session: session}).open()
}

// Save writes the session, if nobody else has written it since this request loaded it,
// and unlocks it. It can be called again. See [Store.Save].
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

// LockStats are what [LockingStore.Stats] counts, as [database/sql.DBStats] does for
// connections. All but Held and Waiting count from the first request on.
type LockStats struct {
	Held    int // sessions of which a request of this process is the holder, or next, now
	Waiting int // requests that wait now

	Waits    int64         // requests that had to wait
	WaitTime time.Duration // how long they have waited, in all

	Refused   int64 // requests that were refused or waited in vain: see ErrLocked
	Conflicts int64 // ErrConflict of a Save that found another's write
	Lapsed    int64 // sessions that were held for longer than TTL
	Unwoken   int64 // wake-ups from other processes that did not come; a poll did instead
}

// Stats says how this process' requests get on with the lock. Many of Conflicts or Lapsed
// mean that handlers hold sessions for too long, many of Unwoken that the Redis user may
// not subscribe, or that connections die unnoticed.
func (l *LockingStore) Stats() LockStats {
	if l.check() != nil {
		return LockStats{}
	}
	return LockStats(l.locker().Stats())
}

// locker is made late, as fields are set after NewLockingStore.
func (l *LockingStore) locker() *lock.Locker {
	l.once.Do(func() { l.locks = lock.New(l.scripts, l.KeyPrefix+"wake:") })
	return l.locks
}

// bound is Wait and, for the last attempt, the time that a command may take.
func (l *LockingStore) bound() time.Duration { return max(l.Wait, l.Wait+timeout) } // which may overflow

func (l *LockingStore) parts() (*Store, *LockingStore) {
	if l == nil {
		return nil, nil // which check refuses
	}
	return l.Store, l
}

// records are the store's, each with a lock. A write may wait for the lock once the index
// knows of it.
func (l *LockingStore) records() records {
	db := l.Store.records()
	db.wait, db.locked = max(db.wait, db.wait+l.Wait), true // which may overflow
	return db
}

func (l *LockingStore) want(id string) lock.Want {
	return lock.Want{Key: l.key(id), TTL: l.TTL, Wait: l.Wait, MaxWaiters: l.MaxWaiters, Same: sameRequester}
}

// read locks and loads a session. The lock lasts as long as the request, unless the session
// is saved before.
func (l *LockingStore) read(c *call, id string, life time.Duration, until time.Time) ([]byte, error) {
	want := l.want(id)
	want.Owner = newRequester(c)
	want.Wait = time.Until(until) - timeout // less than Wait for a second cookie's
	if l.IdleTimeout > 0 {
		want.Expire = life
	}
	lease, value, err := l.locker().Acquire(c.context(), want)
	c.state.held, c.state.seen = lease, value.Version
	return value.Data, err
}

// create takes no lock, for nobody knows the ID yet. It notes what the session's next Save
// has to find.
func (l *LockingStore) create(ctx context.Context, c *call, rec record) error {
	if err := l.records().create(ctx, rec); err != nil {
		return err
	}
	c.state.held, c.state.seen = nil, lock.Created(rec.data)
	return nil
}

// overwrite compares, writes and unlocks.
func (l *LockingStore) overwrite(ctx context.Context, c *call, rec record) error {
	db := l.records()
	w := lock.Write{Want: l.want(rec.id), Data: rec.data, Expiry: rec.ttl}
	switch {
	case rec.owner == "":
	case db.single():
		w.Prelude, w.Keys, w.Args = listPrelude, []any{db.index(rec.owner)}, []any{rec.id, db.listedFor(rec.ttl)}
	default:
		if err := db.remember(ctx, rec, db.wait); err != nil {
			return failed("save", err)
		}
	}
	err := l.settle(ctx, c, w)
	if errors.Is(err, ErrGone) {
		db.remove(ctx, rec.owner, rec.id)
	}
	return failed("save", err)
}

// replace ends the record that was loaded, comparing it, and writes the new one: in one
// script, or before it, for nobody knows the new ID yet. If that is refused, it takes the
// new one back.
func (l *LockingStore) replace(ctx context.Context, c *call, rec record, old []string) error {
	db := l.records()
	w := lock.Write{Want: l.want(old[0]), Mark: db.mark(old[0]), Marked: renewed}
	if db.single() {
		w.Prelude = movePrelude
		keys, args := db.move(rec, old[1:], rand.Text())
		w.Keys, w.Args = keys, append([]any{old[0]}, args...)
	} else if err := db.create(ctx, rec); err != nil {
		return err
	}
	if err := l.settle(ctx, c, w); err != nil {
		if !db.single() {
			db.takeBack(ctx, rec)
		}
		return failed("renew", err)
	}
	c.state.seen = lock.Created(rec.data)
	if !db.single() {
		over := db.endPlanted(ctx, old[1:], rand.Text())
		db.remove(ctx, rec.owner, append(over, old[0])...)
	}
	return nil
}

// settle writes, and notes what is known of the session then, also after an error.
func (l *LockingStore) settle(ctx context.Context, c *call, w lock.Write) error {
	var err error
	w.Lease, w.Seen = c.state.held, c.state.seen
	if w.Lease == nil { // which knows its owner
		w.Owner = newRequester(c)
	}
	c.state.seen, err = l.locker().Write(ctx, w)
	c.state.held = nil
	if err != nil {
		setState(c.session, c.state)
	}
	if errors.Is(err, lock.ErrGone) {
		return ErrGone
	}
	return err
}

// delete ends sessions, whoever holds them, together with their locks.
func (l *LockingStore) delete(ctx context.Context, owner string, ids []string) error {
	_, err := l.records().delete(ctx, owner, ids...)
	if err == nil {
		for _, id := range ids {
			l.locker().Forget(l.key(id))
		}
	}
	return err
}

// A requester is whose lock it is: what a request has in common with its copies. It must
// not lead to the request, which would keep its sessions alive.
type requester struct {
	header   unsafe.Pointer                  // copies made by WithContext share the header
	registry weak.Pointer[sessions.Registry] // those made after Get share gorilla's registry
	line     *byte                           // clones share the memory of the request line
	done     <-chan struct{}                 // and HTTP/2, which may reuse that, tells streams apart by this
}

func newRequester(c *call) any {
	if c.r == nil {
		return nil
	}
	q := &requester{
		header: reflect.ValueOf(c.r.Header).UnsafePointer(),
		// If the request has none, one that nobody else has. It leaves the request as it is.
		registry: weak.Make(sessions.GetRegistry(c.r.WithContext(c.context()))),
		done:     c.context().Done(),
	}
	if c.r.RequestURI != "" && (q.done != nil || c.r.ProtoMajor < 2) {
		q.line = unsafe.StringData(c.r.RequestURI)
	}
	return q
}

func sameRequester(holder, owner any) bool {
	a, _ := holder.(*requester)
	b, _ := owner.(*requester)
	return a != nil && b != nil &&
		(a.header != nil && a.header == b.header || a.registry == b.registry ||
			a.line != nil && a.line == b.line && a.done == b.done)
}

// check adds what only the lock needs.
func (l *LockingStore) check() error {
	switch {
	case l == nil || l.Store == nil:
		return errors.New("redistore: no Store: make the LockingStore with NewLockingStore")
	case l.TTL <= 0:
		return fmt.Errorf("redistore: TTL is %v: use more than 0", l.TTL)
	case l.Wait < 0:
		return fmt.Errorf("redistore: Wait is %v: use 0 to not wait", l.Wait)
	case l.MaxWaiters < 0:
		return fmt.Errorf("redistore: MaxWaiters is %d: use 0 for no limit", l.MaxWaiters)
	case lock.Key(l.KeyPrefix+"ID") == "":
		return fmt.Errorf("redistore: KeyPrefix %q: Redis Cluster takes no hash tag from it, but finds a brace; leave the braces out or put some text between them", l.KeyPrefix)
	}
	return l.Store.check()
}
