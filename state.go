package redistore

import (
	"errors"
	"runtime"
	"sync"
	"weak"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore/internal/lock"
)

// status says where a session stands.
type status int

const (
	fresh  status = iota // it has no record: it is new, or the application made it
	stored               // it had a record when it was last loaded or saved
	unread               // Get could not read it
	moving               // its values come from a cookie of CookieStore; it has no record yet
	ended                // it was logged out, or another ID has replaced its own
)

// A state is what this package knows of a session and gorilla's type has no room for. It
// is never changed, only replaced, so that copies of a request may share a session.
type state struct {
	status status
	id     string        // of its record; fresh: what its cookie proves and Redis does not know, or ""; moving: its cookie's hash
	store  *Store        // that loaded or saved it; nil: none did
	lock   *LockingStore // that loaded or saved it, if one did
	seen   *lock.Version // what the lock saw
	held   *lock.Lease   // the lock itself; nil: saved since, or never taken
}

// states are found by the session, whatever request Save is given. They end with it, so
// that nothing in a state may lead to the session, as its request does.
var states sync.Map // weak.Pointer[sessions.Session]: state

// stateOf says what is known of a session. Of one that the application made, or gave an ID,
// its own fields tell: an ID and IsNew, that it could not be read; an ID alone, that it has a
// record.
func stateOf(session *sessions.Session) state {
	if session == nil {
		return state{}
	}
	known, _ := states.Load(weak.Make(session))
	st, _ := known.(state)
	if st.status != fresh || session.ID == "" {
		return st
	}
	st.status, st.id = stored, session.ID
	if session.IsNew { // as a copy of one that could not be read
		st.status = unread
	}
	return st
}

// setState replaces what is known of a session.
func setState(session *sessions.Session, st state) {
	key := weak.Make(session)
	if old, known := states.Load(key); known && old.(state) == st {
		return // most Saves change nothing of it
	}
	if _, known := states.Swap(key, st); !known {
		runtime.AddCleanup(session, func(key weak.Pointer[sessions.Session]) { states.Delete(key) }, key)
	}
}

// act is what may be done to a session.
type act int

const (
	saving act = iota
	renewing
	touching
	ending
)

// elsewhere tells whether the session is another store's.
func (st state) elsewhere(by backend) bool {
	store, _ := by.parts()
	return st.store != nil && st.store != store
}

// still returns the error of the request's first Get, which gorilla's registry keeps, unless
// it is over: the session was logged out since, or an Update has loaded it.
func (st state) still(err error) error {
	if st.status != unread && errors.Is(err, ErrNotLoaded) {
		return nil
	}
	return err
}

// may answers whether a store may do this to a session that now has this ID: the whole table
// is here.
func (st state) may(do act, by backend, id string) error {
	_, lock := by.parts()
	switch {
	case st.elsewhere(by):
		return errOtherStore
	case do == ending:
		return nil // whoever logs out has said all that matters
	case st.status == unread:
		return ErrNotLoaded
	case st.status == ended:
		return ErrGone
	case do == touching && st.status != stored:
		return ErrGone // Redis has nothing to extend
	case do != touching && lock != nil && st.status == stored && st.seen == nil:
		return ErrConflict // not loaded through the lock: nothing shows that it is current
	case st.status == stored && id != st.id && id != "":
		return errChangedID
	}
	return nil
}

var (
	errOtherStore = errors.New("redistore: the session was loaded by another store: save it with that one, or give the stores' sessions different names")
	errChangedID  = errors.New(`redistore: the session's ID was changed: leave it as it is, or set it to "" to have a new one made`)
)
