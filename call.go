package redistore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// A backend is what a [LockingStore] does in its own way. A call's state is what is known
// of its session; they add what they saw.
type backend interface {
	sessions.Store
	check() error
	parts() (*Store, *LockingStore) // the latter is nil for a plain Store
	// bound is how long one call may take, however many commands it sends.
	bound() time.Duration
	// read returns redis.Nil if there is no such record.
	read(c *call, id string, life time.Duration, until time.Time) ([]byte, error)
	create(ctx context.Context, c *call, rec record) error    // a writer
	overwrite(ctx context.Context, c *call, rec record) error // a writer
	replace(ctx context.Context, c *call, rec record, old []string) error
	delete(ctx context.Context, owner string, ids []string) error
}

// A writer stores a record, or refuses.
type writer func(ctx context.Context, c *call, rec record) error

// A call is one call of an application, on one session.
type call struct {
	by      backend
	r       *http.Request // nil: there is none
	w       http.ResponseWriter
	session *sessions.Session
	state   state
}

// call is one of Save, Renew and Touch. A session that was loaded through the lock is saved
// through it too: gorilla's registry binds session.Save to the store whose Get was called
// last, and that may be one that only reads.
func (s *Store) call(r *http.Request, w http.ResponseWriter, session *sessions.Session) *call {
	c := &call{by: s, r: r, w: w, session: session, state: stateOf(session)}
	if lock := c.state.lock; lock != nil && lock.Store == s {
		c.by = lock
	}
	return c
}

func (c *call) store() *Store {
	store, _ := c.by.parts()
	return store
}

func (c *call) context() context.Context {
	if c.r == nil {
		return context.Background()
	}
	return c.r.Context()
}

// detached outlives the request's client: see Store.
func (c *call) detached(limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.context()), limit)
}

// become notes where the session stands now, under the ID of its record.
func (c *call) become(now status, id string) {
	c.state.status, c.state.id = now, id
	c.state.store, c.state.lock = c.by.parts()
	setState(c.session, c.state)
}

// reload loads the record of a session that the request has loaded before. An ID that the
// handler has cleared stays so: the next Save is to make a new one.
func (c *call) reload(before *sessions.Session, id string) error {
	c.session.IsNew, c.session.Options = true, c.store().options()
	err := c.find([]string{id})
	if before.ID == "" {
		c.session.ID = ""
	}
	return err
}

// open fills a session from the first of the request's cookies that names one.
func (c *call) open() error {
	c.session.IsNew = true
	if err := c.by.check(); err != nil {
		return err
	}
	s := c.store()
	c.session.Options = s.options()
	ids, invalid := s.ids(c.r, c.session.Name())
	if err := c.find(ids); err != nil || c.state.status != fresh {
		return err
	}
	if s.now().Before(s.CookieStoreUntil) {
		if id := s.takeOver(c.r, c.session); id != "" {
			c.become(moving, id)
			return nil
		}
	}
	return invalid
}

// find loads the session of the first of these IDs that has a record. The state says what
// came of it: stored; ended, by a Renew; fresh, for there is none; or unread, with an error.
func (c *call) find(ids []string) error {
	until := time.Now().Add(c.by.bound())
	var unknown []string
	for _, id := range ids {
		life := c.store().lifetime(id, maxLifetime)
		if life <= 0 {
			continue // and Redis need not be asked
		}
		c.session.ID = id
		found, err := c.load(id, life, until)
		switch {
		case err != nil:
			c.become(unread, id)
			return &loadError{err}
		case found:
			c.session.IsNew = false
			c.become(stored, id)
			return nil
		}
		unknown = append(unknown, id)
	}
	if len(ids) == 0 {
		c.become(fresh, "")
		return nil
	}
	ctx, cancel := context.WithDeadline(c.context(), until)
	defer cancel()
	replaced, err := c.store().records().replaced(ctx, unknown)
	if err != nil {
		c.become(unread, c.session.ID)
		return &loadError{err}
	}
	c.session.ID = ""
	if replaced {
		c.become(ended, "")
	} else {
		c.become(fresh, ids[0])
	}
	return nil
}

// load reads the session of that ID. An error leaves it no values.
func (c *call) load(id string, life time.Duration, until time.Time) (found bool, err error) {
	s := c.store()
	data, err := c.by.read(c, id, life, until)
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err == nil {
		err = s.decode(data, c.session)
	}
	owner := Owner(c.session)
	if err != nil || s.IdleTimeout == 0 || owner == "" {
		return err == nil, err
	}
	// Reading it has made it live longer, even if the client has gone.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(c.context()), until)
	defer cancel()
	err = s.records().remember(ctx, record{id: id, owner: owner, ttl: life}, 0)
	if err != nil {
		s.records().confine(ctx, id, owner)
		c.session.Values = make(map[any]any)
	}
	return err == nil, err
}

// decode leaves Values empty rather than half full.
func (s *Store) decode(data []byte, session *sessions.Session) error {
	err := s.deserialize(data, session)
	if err != nil || session.Values == nil {
		session.Values = make(map[any]any)
	}
	if err != nil {
		return &decodeError{err}
	}
	restoreMaxAge(session)
	return nil
}

// prepare gives a session without Options the store's, and says why this may not be done to
// it.
func (c *call) prepare(do act) error {
	if err := c.by.check(); err != nil {
		return err
	}
	switch {
	case c.session == nil:
		return errors.New("redistore: there is no session: it is nil")
	case c.w == nil && c.session.Name() != "":
		return errors.New("redistore: there is no ResponseWriter to send the cookie with: it is nil")
	}
	if c.session.Options == nil {
		c.session.Options = c.store().options()
		restoreMaxAge(c.session)
	}
	if c.session.Options.MaxAge < 0 {
		do = ending
	}
	return c.state.may(do, c.by, c.session.ID)
}

// save writes the session, under a new ID if it is to be renewed or has none.
func (c *call) save(renew bool) error {
	do := saving
	if renew {
		do = renewing
	}
	if err := c.prepare(do); err != nil {
		return err
	}
	if c.session.Options.MaxAge < 0 {
		return c.end()
	}
	limit := timeout
	if c.state.status == stored { // it may have to wait for the lock
		limit = c.by.bound()
	}
	ctx, cancel := c.detached(limit)
	defer cancel()
	if c.state.status == stored && c.session.ID != "" && !renew {
		return c.write(ctx, c.session.ID, c.by.overwrite)
	}
	put := c.renewal(renew)
	for attempt := 1; ; attempt++ {
		err := c.write(ctx, c.store().newID(), put)
		if again := (unsettled{}); !errors.As(err, &again) || attempt == maxAttempts || !pause(ctx, attempt) {
			return err
		}
	}
}

// renewal returns what writes the session under a new ID and ends what it replaces.
func (c *call) renewal(renew bool) writer {
	switch {
	case c.state.status == stored:
		old := []string{c.session.ID}
		if c.session.ID == "" { // the handler has cleared it: a planted one must not ride along
			old = c.proven()
		}
		return func(ctx context.Context, c *call, rec record) error { return c.by.replace(ctx, c, rec, old) }
	case c.state.id != "":
		return func(ctx context.Context, c *call, rec record) error { return c.succeed(ctx, rec, renew) }
	}
	return c.by.create
}

// succeed creates a session for a request that came with an ID which has no record, or with
// a cookie of CookieStore. Other requests may come with it too, and one of them may have a
// login. That claims the ID, and the others look, once the record is there, whether one has:
// so of those that meet, none but the login sends a cookie.
func (c *call) succeed(ctx context.Context, rec record, renew bool) error {
	if err := c.by.create(ctx, c, rec); err != nil {
		return err
	}
	db := c.store().records()
	claim := db.unclaimed
	if renew {
		claim = db.claim
	}
	err := claim(ctx, c.state.id)
	if err != nil {
		db.takeBack(ctx, rec)
	}
	return err
}

// proven returns the ID of the session's record, and those that the request's cookies
// prove.
func (c *call) proven() []string {
	ids, _ := c.store().ids(c.r, c.session.Name())
	if c.state.status == moving {
		return ids // its own is its cookie's, and no record's
	}
	for _, id := range []string{c.state.id, c.session.ID} {
		if id != "" {
			ids = append([]string{id}, slices.DeleteFunc(ids, func(other string) bool { return other == id })...)
		}
	}
	return ids
}

// write stores the session under id and then, only then, sets the cookie.
func (c *call) write(ctx context.Context, id string, put writer) error {
	s, old := c.store(), c.session.ID
	if id != old { // two goroutines may save one session
		defer func() {
			if c.state.id != id { // an error, or a Serializer's panic
				c.session.ID = old
			}
		}()
		c.session.ID = id // serializers may depend on it
	}
	data, err := s.serialize(c.session)
	if err != nil {
		return fmt.Errorf("redistore: save: %w", err)
	}
	if s.MaxLength > 0 && len(data) > s.MaxLength {
		return fmt.Errorf("%w: %d bytes, MaxLength is %d", ErrTooLarge, len(data), s.MaxLength)
	}
	cookie, err := s.cookie(c.session)
	if err != nil {
		return err
	}
	ttl := s.lifetime(id, s.maxAge(c.session))
	if ttl <= 0 {
		return ErrGone
	}
	if err := put(ctx, c, record{id, Owner(c.session), data, ttl}); err != nil {
		return err
	}
	c.become(stored, id)
	setCookie(c.w, cookie)
	return nil
}

// touch extends the session, and does not send its values.
func (c *call) touch() error {
	if err := c.prepare(touching); err != nil {
		return err
	}
	if c.session.Options.MaxAge < 0 {
		return c.end()
	}
	s := c.store()
	cookie, err := s.cookie(c.session)
	if err != nil {
		return err
	}
	ttl := s.lifetime(c.session.ID, s.maxAge(c.session))
	if c.session.ID == "" || ttl <= 0 {
		return ErrGone
	}
	ctx, cancel := c.detached(timeout)
	defer cancel()
	if err := s.records().expire(ctx, record{id: c.session.ID, owner: Owner(c.session), ttl: ttl}); err != nil {
		return err
	}
	setCookie(c.w, cookie)
	return nil
}

// end deletes the session, whoever is using it, and expires the cookie, which goes out even
// when Redis cannot be reached: who logs out must not leave with a working cookie. All
// sessions that the request's cookies prove end, or another of them would be found next.
func (c *call) end() error {
	var err error
	if c.session.Name() != "" { // one from Sessions has no name, and no cookie
		var cookie *http.Cookie
		if cookie, err = c.store().cookie(c.session); err == nil {
			setCookie(c.w, cookie)
		}
	}
	ctx, cancel := c.detached(timeout)
	defer cancel()
	deleted := c.by.delete(ctx, Owner(c.session), c.proven())
	switch {
	case c.state.status == moving || c.state.status == stored && deleted == nil:
		c.become(ended, "")
	case c.state.status == unread && deleted == nil: // nothing is left that could be lost
		c.session.ID = ""
		c.become(fresh, "")
	}
	return errors.Join(err, deleted)
}

// apart answers a Get whose name another store of this request has taken. That one's
// session goes on as it was.
func apart(by backend, r *http.Request, session *sessions.Session) (*sessions.Session, error) {
	st := stateOf(session)
	var owner sessions.Store = st.store
	if st.lock != nil {
		owner = st.lock
	}
	name := session.Name()
	_, _ = sessions.GetRegistry(r).Get(owner, name) // binds session.Save to it again
	other := sessions.NewSession(by, name)
	other.IsNew = true
	if err := by.check(); err != nil {
		return other, err
	}
	store, _ := by.parts()
	other.Options = store.options()
	return other, fmt.Errorf("redistore: get %q: %w", name, errOtherStore)
}

func (s *Store) parts() (*Store, *LockingStore) { return s, nil }

func (s *Store) bound() time.Duration { return timeout }

// records are the store's. A write that the index knows of is done when its context ends;
// a client without ContextTimeoutEnabled adds its own timeouts.
func (s *Store) records() records {
	return records{client: s.client, scripts: s.scripts, prefix: s.KeyPrefix, idle: s.IdleTimeout, wait: 4 * timeout}
}

func (s *Store) key(id string) string { return s.records().key(id) }

func (s *Store) read(c *call, id string, life time.Duration, until time.Time) ([]byte, error) {
	ctx, cancel := context.WithDeadline(c.context(), until)
	defer cancel()
	return s.records().read(ctx, id, life)
}

func (s *Store) create(ctx context.Context, _ *call, rec record) error {
	return s.records().create(ctx, rec)
}

func (s *Store) overwrite(ctx context.Context, _ *call, rec record) error {
	return s.records().overwrite(ctx, rec)
}

func (s *Store) replace(ctx context.Context, _ *call, rec record, old []string) error {
	return s.records().replace(ctx, rec, old)
}

func (s *Store) delete(ctx context.Context, owner string, ids []string) error {
	_, err := s.records().delete(ctx, owner, ids...)
	return err
}

// maxAge is the lifetime that the session's Options ask for.
func (s *Store) maxAge(session *sessions.Session) time.Duration {
	age := session.Options.MaxAge
	if age == 0 {
		age = s.DefaultMaxAge
	}
	return time.Duration(min(age, math.MaxInt32)) * time.Second
}

// lifetime bounds age by the timeouts, in whole seconds, rounded up: what is left
// of a session is never nothing. Zero or less: it is over.
func (s *Store) lifetime(id string, age time.Duration) time.Duration {
	if s.IdleTimeout > 0 {
		age = min(age, s.IdleTimeout)
	}
	if s.AbsoluteTimeout > 0 {
		age = min(age, created(id).Add(s.AbsoluteTimeout).Sub(s.now()))
	}
	if rest := age % time.Second; rest > 0 {
		age += time.Second - rest
	}
	return age
}

// pause waits before the next attempt, and reports whether there is time for one.
func pause(ctx context.Context, attempt int) bool {
	return sleep(ctx, time.Duration(attempt)*10*time.Millisecond)
}

// sleep reports whether there was time for it.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
