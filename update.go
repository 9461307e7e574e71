package redistore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/sessions"
)

// Update locks the session, loads it, calls fn to change it, saves it and unlocks it: the
// shortest time that a session can be held. An error from fn saves nothing and is returned
// as it is.
//
// It unlocks the session in any case, also if the request's Get has locked it: where another
// request then changes it, this one's Save is [ErrConflict].
//
// fn works on a session of its own. When that is saved, the request's session, if it has
// one, becomes the same; changes to it that were not saved are lost. If the request's
// session has ended meanwhile, Update is [ErrGone] and does not call fn. Where there is no
// session, fn gets a new one: IsNew tells.
//
// Goroutines of one request that call Update, of one session or of several, follow one
// another. Within fn, Update of the same session calls its fn on the same session and leaves
// saving to the outer one. Only fn's own goroutine may do that: all others wait for the outer
// Update to end. The request's first Get or Update writes to *r, where gorilla keeps its
// registry: call one of them before the goroutines that use r start.
//
// When a handler has returned, net/http cancels its request's context, and Update is
// [ErrNotLoaded]. A handler that hijacks the connection and returns calls Update with
// r.WithContext(context.WithoutCancel(r.Context())).
func (l *LockingStore) Update(r *http.Request, w http.ResponseWriter, name string, fn func(*sessions.Session) error) error {
	if err := l.check(); err != nil {
		return err
	}
	u, err := updates.enter(l, r, name)
	if err != nil {
		return err
	}
	if u.outer != nil {
		return fn(u.outer)
	}
	defer u.leave() // fn may panic, and so may a Serializer
	if err := u.load(l); err != nil {
		return err
	}
	if err := fn(u.session); err != nil {
		return err
	}
	if err := l.Save(u.r, w, u.session); err != nil {
		return err
	}
	u.adopt()
	return nil
}

// An update is one call of Update.
type update struct {
	call                         // on a session of its own
	registered *sessions.Session // the request's; nil: it has none
	of         target
	turn       *turn
	within     bool              // it is called by another one's fn
	outer      *sessions.Session // that one's, if it is the same session
}

// target is a session of a request, as a store has it.
type target struct {
	store *LockingStore
	name  string
}

// load locks and loads the session: the one that the request has loaded or saved before, if
// there is one.
func (u *update) load(l *LockingStore) error {
	var err error
	if u.registered, err = registered(l, u.r, u.of.name); u.registered == nil && err != nil {
		return err // not a cookie name
	}
	u.session = sessions.NewSession(l, u.of.name)
	u.by = l
	before := state{}
	if u.registered != nil {
		before = stateOf(u.registered)
	}
	switch {
	case before.elsewhere(l):
		_, err := apart(l, u.r, u.registered)
		return err
	case before.status == ended:
		return ErrGone
	case before.status == stored:
		if err = u.reload(u.registered, before.id); err == nil && u.state.status != stored {
			return ErrGone
		}
	default:
		err = u.open()
	}
	u.turn.sessions[u.of] = u.session
	switch {
	case errors.Is(err, ErrNotLoaded):
		return err
	case u.state.status == ended:
		return ErrGone
	}
	return nil // a cookie that proves nothing is replaced
}

// leave unlocks what was not saved, and lets the next Update of the request in.
func (u *update) leave() {
	if u.session != nil {
		if stateOf(u.session).status == ended { // fn has logged out by itself, which stands
			u.session.Options = u.store().options()
			u.adopt()
		}
		u.state.held.Release()
	}
	delete(u.turn.sessions, u.of)
	if !u.within {
		updates.pass(u.turn)
	}
}

// adopt makes the request's session what Update has saved.
func (u *update) adopt() {
	if u.registered == nil {
		u.registered, _ = sessions.GetRegistry(u.r).Get(preloaded{u.by.(*LockingStore), u.session}, u.session.Name())
	}
	if u.registered != u.session {
		adopt(u.registered, u.session)
	}
}

// preloaded hands a session that is already loaded to gorilla's registry.
type preloaded struct {
	*LockingStore
	session *sessions.Session
}

func (p preloaded) New(*http.Request, string) (*sessions.Session, error) { return p.session, nil }

// registered returns the request's session of that name, or nil. gorilla's registry can
// only be asked to load what it lacks.
func registered(l *LockingStore, r *http.Request, name string) (session *sessions.Session, err error) {
	defer func() {
		if p := recover(); p != nil && p != any(absent{}) {
			panic(p)
		}
	}()
	return sessions.GetRegistry(r).Get(peeking{l}, name)
}

type peeking struct{ *LockingStore }

func (peeking) New(*http.Request, string) (*sessions.Session, error) { panic(absent{}) }

// absent says that the request has no such session.
type absent struct{}

// updates are those that run now. Those of one request and its copies have turns: of several
// sessions and stores too, for they share a lock, gorilla's registry and the response's header.
var updates turns

type turns struct {
	mu  sync.Mutex
	all []*turn
}

// A turn is held by one goroutine at a time.
type turn struct {
	who       any                          // see requester
	users     int                          // who hold it or wait for it
	free      chan struct{}                // has one element while nobody holds it
	goroutine string                       // who holds it
	sessions  map[target]*sessions.Session // that goroutine's
}

// come makes an update. It has a copy of the request, as another goroutine may put gorilla's
// registry into r.
func (ts *turns) come(l *LockingStore, r *http.Request, name, me string) *update {
	ts.mu.Lock()
	defer ts.mu.Unlock()    // also if r is nil, which panics
	sessions.GetRegistry(r) // so that r has what Update loads
	u := &update{call: call{r: r.WithContext(r.Context())}, of: target{l, name}}
	u.turn = ts.find(newRequester(&u.call))
	if u.within = u.turn.goroutine == me; u.within {
		u.outer = u.turn.sessions[u.of]
	} else {
		u.turn.users++
	}
	return u
}

// enter waits until no other goroutine's Update works for the request.
func (ts *turns) enter(l *LockingStore, r *http.Request, name string) (*update, error) {
	me := goroutine()
	u := ts.come(l, r, name, me)
	if u.within {
		return u, nil
	}
	t := u.turn
	err := t.wait(u.context(), l.Wait)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if err != nil {
		ts.quit(t)
		return nil, err
	}
	t.goroutine = me
	return u, nil
}

// find returns the turn of a request, or makes one.
func (ts *turns) find(who any) *turn {
	for _, t := range ts.all {
		if sameRequester(t.who, who) {
			return t
		}
	}
	t := &turn{who: who, free: make(chan struct{}, 1), sessions: map[target]*sessions.Session{}}
	t.free <- struct{}{}
	ts.all = append(ts.all, t)
	return t
}

func (t *turn) wait(ctx context.Context, patience time.Duration) error {
	select {
	case <-t.free:
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-t.free:
		return nil
	case <-timer.C:
		return fmt.Errorf("%w: another Update of this request holds it", ErrLocked)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrLocked, ctx.Err())
	}
}

// pass lets the next one in.
func (ts *turns) pass(t *turn) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.goroutine = ""
	t.free <- struct{}{}
	ts.quit(t)
}

func (ts *turns) quit(t *turn) {
	if t.users--; t.users == 0 {
		i := slices.Index(ts.all, t)
		ts.all = slices.Delete(ts.all, i, i+1)
	}
}

// goroutine names the one that calls it, as a stack trace does.
func goroutine() string {
	var trace [64]byte
	name, _, _ := bytes.Cut(trace[:runtime.Stack(trace[:], false)], []byte(" ["))
	return string(name)
}
