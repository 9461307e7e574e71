// Package redistore keeps gorilla sessions in Redis. The browser holds a cookie
// with a signed session ID and nothing else; Redis holds the values, under
// KeyPrefix + ID, with an expiry driven by MaxAge.
//
// It drops in where [sessions.NewCookieStore] stood:
//
//	store := redistore.New(client, key)
//
// Most applications need four calls, all of them gorilla's: [Store.Get],
// changing Values, Save before the response is written, and Options.MaxAge = -1
// with Save to log out. Call [Store.Renew] instead of Save when somebody logs
// in, so that an ID planted before the login is worth nothing after it (session
// fixation; OWASP ASVS 5.0, 7.2.4).
//
// Where requests of one user change a session at the same time, and each change
// counts, use a [LockingStore]. To list and end a user's sessions, call [SetOwner] at
// login. To hide values from whoever reads Redis, see [Encrypt].
//
// # What an error means
//
// Get always returns a usable session, and an error beside it when something
// was wrong. If errors.Is(err, ErrNotLoaded), Redis or the stored value could
// not be read: the session is empty although the user may well have one, so
// answer 503 rather than showing a logged-out page. Any other error is about a
// cookie that proves nothing (tampered with, signed with a key that is no longer
// configured), and the new session can be used as it is, or about the store's
// configuration, which [Store.Ping] reports too: call it when the program starts.
//
// Save refuses rather than harms: see [ErrGone], [ErrNotLoaded] and
// [ErrTooLarge].
package redistore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/gobvalues"
)

var (
	// ErrGone is returned by Save, Renew, Touch and Update when the session was ended
	// (logout, Revoke, expiry, or a Renew by another request) while this request was
	// running. Nothing of what it changed is stored and no cookie was sent: treat the
	// user as logged out.
	ErrGone = errors.New("redistore: the session has ended")

	// ErrNotLoaded is returned by Get when Redis or the stored value could not be
	// read, and by Save, Renew and Touch of such a session, which would overwrite values
	// that nobody has seen. Nothing was written: ask the user to try again. Logging
	// out (MaxAge -1) works all the same.
	ErrNotLoaded = errors.New("redistore: the session could not be loaded")

	// ErrNotDecoded comes with ErrNotLoaded when Redis was read, and it is the Serializer
	// that refuses the value: a gob type was renamed, the Serializer changed, or the key of
	// [Encrypt] is missing. Trying again does not help; only logging out does.
	ErrNotDecoded = errors.New("redistore: the value could not be decoded")

	// ErrTooLarge is returned by Save and Renew when the serialized session exceeds
	// Store.MaxLength. What was stored before stays: keep less in the session, or
	// raise MaxLength.
	ErrTooLarge = errors.New("redistore: the session is too large")
)

const (
	// timeout bounds what one call may spend on Redis. Only a client with
	// ContextTimeoutEnabled interrupts a command that is under way; any other
	// client adds its own read timeout.
	timeout = 5 * time.Second

	// maxLifetime is what a longer MaxAge is cut to, 68 years: beyond 292 years a
	// time.Duration overflows, and go-redis takes what is left of it for "no expiry".
	maxLifetime = math.MaxInt32 * time.Second

	// maxIDs are looked up for one request, however many cookies it has.
	maxIDs = 8

	// maxAttempts of what go-redis must not repeat by itself, as many as it would make.
	maxAttempts = 4
)

// Store is a [sessions.Store] on Redis. Make it with [New], set its fields before
// the first request, and use it from any number of goroutines after that. It
// never closes the client.
//
// Every call is one Redis command (Renew: one transaction, or two steps where the keys
// may be on several servers; what an owner adds, see [SetOwner]) and takes 5 seconds at
// most, if the client was made with ContextTimeoutEnabled. Reads end with the request's context; writes do not, because
// a client that hangs up must not be able to half-cancel a logout.
type Store struct {
	// Codecs sign the session ID, and encrypt it where an encryption key was given.
	// The first encodes, all decode. New makes them from keyPairs, without an age
	// limit of their own: the session's expiry in Redis is the only clock.
	Codecs []securecookie.Codec

	// Options are copied into every session. New sets Path "/", MaxAge 30 days,
	// Secure, HttpOnly and SameSite=Lax; nil means the same. MaxAge is in seconds
	// and drives both the cookie and the expiry in Redis; zero makes a cookie that
	// ends with the browser's session, negative deletes, and what exceeds 68 years
	// is cut to that.
	Options *sessions.Options

	// KeyPrefix keeps applications that share a Redis apart; "session_". Under another
	// prefix no session is found: that logs everybody out.
	KeyPrefix string

	// Serializer turns Values into bytes; GobSerializer{}. What another one stored may be
	// [ErrNotLoaded]: change KeyPrefix with it.
	Serializer Serializer

	// MaxLength of the serialized session in bytes; 1 MiB. Zero: no limit.
	MaxLength int

	// DefaultMaxAge is how many seconds Redis keeps a session whose MaxAge is zero;
	// 1200, which is 20 minutes.
	DefaultMaxAge int

	// IdleTimeout ends a session that is not read for so long (OWASP ASVS 5.0,
	// 7.3.1), in seconds, rounded up. Save sets the expiry in Redis to the shorter of
	// MaxAge and this, every Get to this, also beyond MaxAge: a session that is used all
	// the time is ended by AbsoluteTimeout. Zero: off.
	IdleTimeout time.Duration

	// AbsoluteTimeout ends a session so long after its ID was made, however active
	// it is (OWASP ASVS 5.0, 7.3.2); Renew starts the clock anew. The ID carries its
	// creation time. One without it, as other stores make them, counts as too old.
	// Zero: off.
	AbsoluteTimeout time.Duration

	// CookieStoreUntil is when cookies that [sessions.CookieStore] wrote, with the same
	// name and keys, cease to be taken over. Until then their values are those of a
	// session that is not new and has no ID, and the first Save moves them to Redis.
	// They stay bound by MaxAge, as they were. A leaked signing key forges them, as it
	// did before. Zero: they never are.
	CookieStoreUntil time.Time

	client redis.UniversalClient
	now    func() time.Time
}

// New returns a store on any go-redis client: single, Sentinel, Cluster, Ring or
// an AutoPipeliner. It does no I/O and never fails.
//
// The keys are those of [sessions.NewCookieStore]: pairs of an authentication
// key, 32 or 64 random bytes, and an encryption key, 16, 24 or 32 bytes or nil.
// The last pair may lack the second. The first pair signs, all pairs verify: to
// rotate keys, put a new pair in front and drop the old one after MaxAge. Keys
// that cannot be used are reported by every Get, Save and Ping.
func New(client redis.UniversalClient, keyPairs ...[]byte) *Store {
	if v := reflect.ValueOf(client); v.Kind() == reflect.Pointer && v.IsNil() {
		client = nil // a *redis.Client that was declared and never made
	}
	return &Store{
		Codecs:        newCodecs(keyPairs),
		Options:       newOptions(),
		KeyPrefix:     "session_",
		Serializer:    GobSerializer{},
		MaxLength:     1 << 20, // 1 MiB
		DefaultMaxAge: 20 * 60, // 20 minutes
		client:        client,
		now:           time.Now,
	}
}

// MaxAge sets Options.MaxAge, in seconds, like [sessions.CookieStore.MaxAge]. Call it
// before the first request. Individual sessions override it with their own Options.
func (s *Store) MaxAge(age int) {
	if s.Options == nil {
		s.Options = newOptions()
	}
	s.Options.MaxAge = age
}

// Ping reports whether the store is usable: its configuration first, then whether
// Redis answers, within 5 seconds. Call it when the program starts, and where an
// orchestrator asks whether the server is ready.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return failed("ping", s.client.Ping(ctx).Err())
}

// Get returns the session of that name, loading it once per request. It is never
// nil unless the name is not a valid cookie name. IsNew tells whether there was
// one.
//
// An ID that Redis does not know (expired, logged out) is never adopted: the
// session is new and Save will make a new ID. That is no error. For those that are,
// see the package's documentation.
func (s *Store) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(s, name)
}

// New is Get without the request's cache: it loads the session each time. Most
// callers want Get.
func (s *Store) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(s, name)
	return session, s.open(s, r, session)
}

// Save writes the session and then sets the cookie. Call it before the response
// is written. A loaded session is written only where it still exists, so that a
// logout sticks: see [ErrGone].
//
// Options.MaxAge < 0 ends the session: it is deleted and the cookie expired, which
// happens even when Redis cannot be reached; the error tells. With any other error, no
// cookie is set: [ErrGone], [ErrNotLoaded], [ErrTooLarge], or one that says which step
// failed and why.
//
// Setting ID to "" before Save is [Store.Renew], which then also ends whatever else the
// request's cookies of that name hold. IDs are otherwise the store's own to make.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.save(s, r, w, session, false)
}

// Renew saves the session under a new ID and ends the old one, without a grace
// period: whoever planted or stole the old ID must not ride along. Call it instead
// of Save at login and whenever privileges change (OWASP ASVS 5.0, 7.2.4). A
// request that is already under way with the old cookie gets ErrGone from its Save.
//
// Its errors are those of Save. If the connection fails during Renew, the old session
// may be over too: the user has to log in again.
func (s *Store) Renew(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.save(s, r, w, session, true)
}

// Touch extends the session by its MaxAge, in Redis and in the browser, without
// sending the values: for handlers that only read. A session that Redis does not
// have, or that was never saved, is ErrGone; one that Get could not load is
// ErrNotLoaded. With MaxAge < 0 it ends the session, as Save does.
func (s *Store) Touch(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.touch(s, r, w, session)
}

func (s *Store) touch(b backend, r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	if err := s.prepare(b, session); err != nil {
		return err
	}
	if session.Options.MaxAge < 0 {
		return s.end(b, r, w, session)
	}
	if s.unread(r, session) {
		return ErrNotLoaded
	}
	cookie, err := s.cookie(session)
	if err != nil {
		return err
	}
	ttl := s.lifetime(session.ID, s.maxAge(session))
	if session.ID == "" || ttl <= 0 {
		return ErrGone
	}
	ctx, cancel := detached(r.Context())
	defer cancel()
	before, _ := accompany(ctx, s, session, ttl)
	expire := redis.NewBoolCmd(ctx, "expire", s.key(session.ID), seconds(ttl))
	if err := s.do(ctx, before, []redis.Cmder{expire}); err != nil {
		return failed("touch", err)
	}
	if !expire.Val() {
		s.forgo(ctx, session, session.ID)
		return ErrGone
	}
	setCookie(w, cookie)
	return nil
}

// backend is what [LockingStore] does in its own way. The session's ID is that of
// the record.
type backend interface {
	check() error
	// bound is how long all reads of a session may take, however many IDs there are.
	bound() time.Duration
	// read returns redis.Nil if there is no such record.
	read(ctx context.Context, r *http.Request, session *sessions.Session, life time.Duration) ([]byte, error)
	create(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error
	overwrite(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error
	replace(old []string) writer // the first of which was loaded
	remove(ctx context.Context, session *sessions.Session, id string) error
}

// writer stores data for ttl, or refuses.
type writer func(ctx context.Context, r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error

// open fills a session from the first of the request's cookies that names one.
func (s *Store) open(b backend, r *http.Request, session *sessions.Session) error {
	session.IsNew = true
	if err := b.check(); err != nil {
		return err
	}
	session.Options = s.options()
	ids, invalid := s.ids(r, session.Name())
	found, err := s.find(b, r, session, ids...)
	if found && len(ids) > 1 {
		notes(r)[session] = note{id: session.ID}
	}
	if found || err != nil {
		return err
	}
	session.ID = ""
	if s.now().Before(s.CookieStoreUntil) && s.takeOver(r, session) {
		return nil
	}
	return invalid
}

// find loads the session of the first of these IDs that has a record.
func (s *Store) find(b backend, r *http.Request, session *sessions.Session, ids ...string) (found bool, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), b.bound())
	defer cancel()
	for _, id := range ids {
		session.ID = id
		found, err := s.load(ctx, b, r, session)
		if err != nil {
			notes(r)[session] = note{unread: true}
			return false, &loadError{err}
		}
		if found {
			session.IsNew = false
			return true, nil
		}
	}
	return false, nil
}

// takeOver loads a session from the cookie that CookieStore wrote.
func (s *Store) takeOver(r *http.Request, session *sessions.Session) bool {
	for _, c := range r.CookiesNamed(session.Name()) {
		for _, codec := range s.Codecs {
			if sc, ok := codec.(*securecookie.SecureCookie); ok {
				bound := *sc
				age := session.Options.MaxAge
				if age <= 0 {
					age = newOptions().MaxAge // which is also what securecookie takes
				}
				codec = bound.MaxAge(age)
			}
			var values map[any]any
			if codec.Decode(session.Name(), c.Value, &values) == nil {
				session.Values, session.IsNew = values, false
				notes(r)[session] = note{elsewhere: true}
				return true
			}
		}
	}
	return false
}

// load reads the session of that ID. An error leaves it the ID, and no values.
func (s *Store) load(ctx context.Context, b backend, r *http.Request, session *sessions.Session) (found bool, err error) {
	life := s.lifetime(session.ID, maxLifetime)
	if life <= 0 {
		return false, nil
	}
	data, err := b.read(ctx, r, session, life)
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err == nil {
		err = s.decode(data, session)
	}
	if err == nil && s.IdleTimeout > 0 { // reading it has made it live longer, even if the client has gone
		if before, _ := accompany(ctx, s, session, life); len(before) > 0 {
			deadline, _ := ctx.Deadline()
			ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
			defer cancel()
			_ = s.do(ctx, before) // there is a margin for one that is lost
		}
	}
	return err == nil, err
}

// decode leaves Values empty rather than half full.
func (s *Store) decode(data []byte, session *sessions.Session) error {
	err := s.Serializer.Deserialize(data, session)
	if err != nil || session.Values == nil {
		session.Values = make(map[any]any)
	}
	if err != nil {
		return &decodeError{err}
	}
	return nil
}

func (s *Store) bound() time.Duration { return timeout }

// read returns what Redis holds.
func (s *Store) read(ctx context.Context, _ *http.Request, session *sessions.Session, life time.Duration) ([]byte, error) {
	if s.IdleTimeout > 0 {
		return s.client.GetEx(ctx, s.key(session.ID), life).Bytes()
	}
	return s.client.Get(ctx, s.key(session.ID)).Bytes()
}

// A note is what Save must know of a session and cannot see.
type note struct {
	unread    bool   // Get could not load it
	id        string // which of several cookies it was loaded by, or what it was saved under
	elsewhere bool   // it has no record yet
	ended     bool   // what it was elsewhere
}

// notes are a request's, by session. They live where gorilla keeps the request's
// sessions, so that they are found by whoever has the request, and gone with it.
func notes(r *http.Request) map[any]any {
	book, _ := sessions.GetRegistry(r).Get(notebook{}, notesName)
	return book.Values
}

func noted(r *http.Request, session *sessions.Session) note {
	n, _ := notes(r)[session].(note)
	return n
}

// notesName is a valid name, never sent, and nobody else's.
var notesName = "redistore-" + rand.Text()

// notebook is the store of a session that is never stored.
type notebook struct{}

func (n notebook) Get(r *http.Request, name string) (*sessions.Session, error) { return n.New(r, name) }

func (n notebook) New(_ *http.Request, name string) (*sessions.Session, error) {
	return sessions.NewSession(n, name), nil
}

func (notebook) Save(*http.Request, http.ResponseWriter, *sessions.Session) error { return nil }

// save decides what becomes of a session; renew: that its ID changes.
func (s *Store) save(b backend, r *http.Request, w http.ResponseWriter, session *sessions.Session, renew bool) error {
	if err := s.prepare(b, session); err != nil {
		return err
	}
	if session.Options.MaxAge < 0 {
		return s.end(b, r, w, session)
	}
	if s.unread(r, session) {
		return ErrNotLoaded
	}
	ctx, cancel := detached(r.Context())
	defer cancel()
	if session.ID != "" && !renew {
		return s.write(ctx, r, w, session, session.ID, b.overwrite)
	}
	put := b.create
	n := noted(r, session)
	if n.ended {
		return ErrGone
	}
	if session.ID != "" || n.id != "" || !session.IsNew {
		if old := s.previous(r, session); len(old) > 0 {
			put = b.replace(old)
		}
	}
	for attempt := 1; ; attempt++ {
		err := s.write(ctx, r, w, session, s.newID(), put)
		// The next attempt is under another ID, because what was sent may yet arrive, and
		// must not bring back a session that was logged out by then.
		if again := (unsettled{}); !errors.As(err, &again) || attempt == maxAttempts || !pause(ctx, attempt) {
			return err
		}
	}
}

// unread tells whether the session is one that Get could not load. Without a note,
// because Save was given another request, it is one that is new, yet carries the
// very ID that the cookie carries.
func (s *Store) unread(r *http.Request, session *sessions.Session) bool {
	if !session.IsNew {
		return false
	}
	if n, ok := notes(r)[session].(note); ok || session.ID == "" {
		return n.unread
	}
	ids, _ := s.ids(r, session.Name())
	return slices.Contains(ids, session.ID)
}

// previous returns the IDs that a new one replaces, the loaded one first. Where the
// handler has cleared it, the request's cookies have it, and all of them end, so that
// a planted one does not ride along. Where it could not be loaded, any of them may be it.
func (s *Store) previous(r *http.Request, session *sessions.Session) []string {
	if session.ID != "" && !s.unread(r, session) {
		return []string{session.ID}
	}
	n := noted(r, session)
	if n.elsewhere {
		return nil
	}
	ids, _ := s.ids(r, session.Name())
	if first := cmp.Or(session.ID, n.id); first != "" {
		ids = append([]string{first}, slices.DeleteFunc(ids, func(id string) bool { return id == first })...)
	}
	if n.unread {
		slices.Reverse(ids) // the one that failed may fail again, and take all the time
	}
	return ids
}

// write stores the session under id and then, only then, sets the cookie.
func (s *Store) write(ctx context.Context, r *http.Request, w http.ResponseWriter, session *sessions.Session, id string, put writer) (err error) {
	old := session.ID
	defer func() {
		if err != nil {
			session.ID = old
		}
	}()
	session.ID = id // serializers may depend on it
	data, err := s.Serializer.Serialize(session)
	if err != nil {
		return failed("save", err)
	}
	if s.MaxLength > 0 && len(data) > s.MaxLength {
		return fmt.Errorf("%w: %d bytes, MaxLength is %d", ErrTooLarge, len(data), s.MaxLength)
	}
	cookie, err := s.cookie(session)
	if err != nil {
		return err
	}
	ttl := s.lifetime(id, s.maxAge(session))
	if ttl <= 0 {
		return ErrGone
	}
	if err := put(ctx, r, session, data, ttl); err != nil {
		if errors.Is(err, ErrGone) {
			s.forgo(ctx, session, session.ID)
		}
		return err
	}
	if id != old {
		notes(r)[session] = note{id: id}
	}
	setCookie(w, cookie)
	return nil
}

// create needs no NX: nobody else can draw the same 256 bits.
func (s *Store) create(ctx context.Context, _ *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	before, _ := accompany(ctx, s, session, ttl)
	err := s.do(ctx, before, []redis.Cmder{once{s.set(ctx, session.ID, data, ttl)}})
	if err != nil && len(before) > 0 {
		_ = s.erase(ctx, session, session.ID) // a transaction goes on after an error in the index
	}
	return unsettle(failed("save", err))
}

// forgo drops what goes with sessions that are gone. If this fails, it expires.
func (s *Store) forgo(ctx context.Context, session *sessions.Session, ids ...string) {
	_, after := accompany(ctx, s, session, 0, ids...)
	_ = s.do(ctx, after)
}

// overwrite needs XX: a key that is gone was logged out or has expired, and must
// not come back.
func (s *Store) overwrite(ctx context.Context, _ *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	before, _ := accompany(ctx, s, session, ttl)
	err := s.do(ctx, before, []redis.Cmder{s.set(ctx, session.ID, data, ttl, "xx")})
	if errors.Is(err, redis.Nil) {
		return ErrGone
	}
	return failed("save", err)
}

func (s *Store) set(ctx context.Context, id string, data []byte, ttl time.Duration, mode ...any) redis.Cmder {
	args := append(make([]any, 0, 6), "set", s.key(id), data, "ex", seconds(ttl))
	return redis.NewStatusCmd(ctx, append(args, mode...)...)
}

func (s *Store) del(ctx context.Context, id string) *redis.IntCmd {
	return redis.NewIntCmd(ctx, "del", s.key(id))
}

// replace writes the new record and ends the old ones. The answer to DEL tells
// whether the loaded one was still alive.
func (s *Store) replace(old []string) writer {
	var lost error // an earlier attempt's reply that never came: DEL may be its work
	return func(ctx context.Context, _ *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
		before, after := accompany(ctx, s, session, ttl, old...)
		loaded := s.del(ctx, old[0])
		dels := []redis.Cmder{once{loaded}}
		for _, planted := range old[1:] {
			dels = append(dels, s.del(ctx, planted))
		}
		err := s.do(ctx, before, []redis.Cmder{once{s.set(ctx, session.ID, data, ttl)}}, dels, after)
		indexed := !slices.ContainsFunc(before, func(c redis.Cmder) bool { return c.Err() != nil })
		if loaded.Val() > 0 && indexed {
			return nil
		}
		_ = s.erase(ctx, session, session.ID) // nobody knows this ID; if this fails, it expires
		switch {
		case err != nil:
			if !isReply(err) {
				lost = err
			}
			return unsettle(failed("renew", err))
		case lost != nil:
			return failed("renew", lost)
		}
		return ErrGone // nothing to end: somebody else was first
	}
}

// unsettled is an error after which the same may be tried again under another ID.
type unsettled struct{ error }

func (u unsettled) Unwrap() error { return u.error }

// unsettle marks the errors of a connection, and those that Redis gives in passing.
func unsettle(err error) error {
	if err == nil || isReply(err) && !passing(err) {
		return err
	}
	return unsettled{err}
}

// remove ends a session.
func (s *Store) remove(ctx context.Context, session *sessions.Session, id string) error {
	return failed("delete", s.erase(ctx, session, id))
}

// erase deletes a record and what goes with it.
func (s *Store) erase(ctx context.Context, session *sessions.Session, id string) error {
	_, after := accompany(ctx, s, session, 0, id)
	return s.drop(ctx, []redis.Cmder{s.del(ctx, id)}, after)
}

// accompany returns what has to be sent before a session is written for ttl, and
// after others have ended: owner.go's index.
var accompany = func(ctx context.Context, s *Store, session *sessions.Session, ttl time.Duration, ended ...string) (before, after []redis.Cmder) {
	return nil, nil
}

// do sends groups of commands, none of which is done unless those before it were
// accepted: to a single server as one transaction, in one round trip; where the keys
// may be on several, each group waits for the one before. It returns the first error.
func (s *Store) do(ctx context.Context, groups ...[]redis.Cmder) error {
	return s.send(ctx, s.client.TxPipelined, groups...)
}

// drop is do for what only deletes. It is no transaction: a Redis whose memory is full
// refuses those, even to delete.
func (s *Store) drop(ctx context.Context, groups ...[]redis.Cmder) error {
	return s.send(ctx, s.client.Pipelined, groups...)
}

type pipeline func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error)

func (s *Store) send(ctx context.Context, single pipeline, groups ...[]redis.Cmder) error {
	send := pipeline(s.client.Pipelined)
	if _, ok := s.client.(*redis.Client); ok {
		groups = [][]redis.Cmder{slices.Concat(groups...)}
		send = single
	}
	for _, group := range groups {
		var err error
		switch len(group) {
		case 0:
		case 1:
			_ = s.client.Process(ctx, group[0])
			err = group[0].Err() // an AutoPipeliner may only have it later
		default:
			_, err = send(ctx, func(pipe redis.Pipeliner) error {
				for _, cmd := range group {
					_ = pipe.Process(ctx, cmd)
				}
				return nil
			})
		}
		if err == nil {
			continue
		}
		for _, cmd := range group { // most of them may only say that the transaction was given up
			if reason := cmd.Err(); reason != nil && !redis.HasErrorPrefix(reason, "EXECABORT") {
				return reason
			}
		}
		return err
	}
	return nil
}

// end deletes the session and expires the cookie, which goes out even when Redis
// cannot be reached: who logs out must not leave with a working cookie.
func (s *Store) end(b backend, r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	var err error
	if session.Name() != "" { // one from Sessions has no name, and no cookie
		var cookie *http.Cookie
		if cookie, err = s.cookie(session); err == nil {
			setCookie(w, cookie)
		}
	}
	ctx, cancel := detached(r.Context())
	defer cancel()
	for _, id := range s.previous(r, session) {
		err = errors.Join(err, b.remove(ctx, session, id))
	}
	switch {
	case session.IsNew && err == nil:
		delete(notes(r), session) // nothing is left that could be lost
	case session.ID == "" && noted(r, session).elsewhere:
		notes(r)[session] = note{elsewhere: true, ended: true}
	}
	return err
}

// ids returns the session IDs that the request's cookies of that name prove, in
// the browser's order, and what is wrong with the first that proves none. All
// count: a stale cookie from another path must not log the user out (RFC 6265,
// section 5.4).
func (s *Store) ids(r *http.Request, name string) (ids []string, invalid error) {
	for _, c := range r.CookiesNamed(name) {
		var id string
		err := securecookie.DecodeMulti(name, c.Value, &id, s.Codecs...)
		if err != nil && invalid == nil {
			invalid = err
		}
		if err == nil && id != "" && len(ids) < maxIDs && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, invalid
}

// newID returns the time, for AbsoluteTimeout, and 256 random bits.
func (s *Store) newID() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return strconv.FormatInt(s.now().Unix(), 36) + "." + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)
}

// created is when newID made the ID; the zero time if it did not.
func created(id string) time.Time {
	stamp, _, found := strings.Cut(id, ".")
	sec, err := strconv.ParseInt(stamp, 36, 64)
	if !found || err != nil {
		return time.Time{}
	}
	return time.Unix(sec, 0)
}

func (s *Store) key(id string) string { return s.KeyPrefix + id }

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

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

// cookie makes the session's cookie: the signed ID, or nothing where MaxAge says
// delete. It is made before Redis is asked, so that what cannot be sent is not
// stored.
func (s *Store) cookie(session *sessions.Session) (*http.Cookie, error) {
	if session.Name() == "" {
		return nil, errors.New(`redistore: cookie "": the session has no name; one that Sessions returned can only be ended, with MaxAge -1`)
	}
	options := *session.Options
	options.MaxAge = min(options.MaxAge, math.MaxInt32)
	var value string
	if options.MaxAge >= 0 {
		var err error
		if value, err = securecookie.EncodeMulti(session.Name(), session.ID, s.Codecs...); err != nil {
			return nil, fmt.Errorf("redistore: cookie: %w", err)
		}
	}
	cookie := sessions.NewCookie(session.Name(), value, &options)
	if err := cookie.Valid(); err != nil {
		// net/http would leave it out, or the offending part, without a word.
		return nil, fmt.Errorf("redistore: cookie %q: %w", session.Name(), err)
	}
	return cookie, nil
}

// setCookie replaces an earlier cookie of the same name (RFC 6265, section 4.1.1:
// one each), and keeps shared caches from handing it to somebody else.
func setCookie(w http.ResponseWriter, cookie *http.Cookie) {
	h := w.Header()
	if earlier := h["Set-Cookie"]; len(earlier) > 0 {
		h["Set-Cookie"] = slices.DeleteFunc(earlier, func(c string) bool {
			return strings.HasPrefix(c, cookie.Name+"=")
		})
	}
	http.SetCookie(w, cookie)
	addOnce(h, "Vary", "Cookie")
	addOnce(h, "Cache-Control", `no-cache="Set-Cookie"`)
}

func addOnce(h http.Header, name, value string) {
	if !slices.Contains(h[name], value) {
		h.Add(name, value)
	}
}

// prepare makes a session that the application built itself as good as one of
// ours, or says why nothing can be saved.
func (s *Store) prepare(b backend, session *sessions.Session) error {
	if err := b.check(); err != nil {
		return err
	}
	if session.Options == nil {
		session.Options = s.options()
	}
	return nil
}

// check refuses a configuration that would lose sessions or sign with the wrong
// key.
func (s *Store) check() error {
	switch {
	case s.client == nil:
		return errors.New("redistore: no Redis client: make the store with New and a client that is not nil")
	case s.Serializer == nil:
		return errors.New("redistore: Serializer is nil: use GobSerializer{} or JSONSerializer{}")
	case s.MaxLength < 0:
		return fmt.Errorf("redistore: MaxLength is %d: use bytes, or 0 for no limit", s.MaxLength)
	case s.DefaultMaxAge <= 0:
		return fmt.Errorf("redistore: DefaultMaxAge is %d: use seconds, more than 0", s.DefaultMaxAge)
	case s.IdleTimeout < 0 || s.AbsoluteTimeout < 0:
		return errors.New("redistore: IdleTimeout or AbsoluteTimeout is negative: use 0 to switch it off")
	case len(s.Codecs) == 0:
		return errors.New("redistore: no keys: pass New at least one authentication key")
	}
	for _, c := range s.Codecs {
		if c == nil {
			return errors.New("redistore: a Codec is nil: let New make them from keys")
		}
		if bad, ok := c.(badKeys); ok {
			return bad.error
		}
	}
	if z, ok := s.Serializer.(interface{ check() error }); ok {
		return z.check()
	}
	return nil
}

func (s *Store) options() *sessions.Options {
	if s.Options == nil {
		return newOptions()
	}
	options := *s.Options
	return &options
}

func newOptions() *sessions.Options {
	return &sessions.Options{
		Path:     "/",
		MaxAge:   30 * 24 * 60 * 60, // 30 days
		Secure:   true,
		HttpOnly: true,
		SameSite: http.SameSiteLaxMode,
	}
}

// newCodecs is securecookie.CodecsFromPairs without an age limit, and without its
// way of passing over a pair that cannot be used: that would sign with an older,
// perhaps leaked, key.
func newCodecs(keyPairs [][]byte) []securecookie.Codec {
	for i, key := range keyPairs {
		switch {
		case i%2 == 0 && len(key) == 0:
			return []securecookie.Codec{badKeys{fmt.Errorf("redistore: key %d (authentication) is empty: use 32 or 64 random bytes", i+1)}}
		case i%2 == 1 && key != nil && !slices.Contains([]int{16, 24, 32}, len(key)):
			return []securecookie.Codec{badKeys{fmt.Errorf("redistore: key %d (encryption) has %d bytes: use 16, 24 or 32, or nil", i+1, len(key))}}
		}
	}
	codecs := securecookie.CodecsFromPairs(keyPairs...)
	for _, c := range codecs {
		c.(*securecookie.SecureCookie).MaxAge(0).SetSerializer(idSerializer{})
	}
	return codecs
}

// idSerializer is securecookie's own, without encoding/gob's cost where it is an ID.
type idSerializer struct{ securecookie.GobEncoder }

func (z idSerializer) Serialize(src any) ([]byte, error) {
	if id, ok := src.(string); ok {
		return gobvalues.EncodeString(id), nil
	}
	return z.GobEncoder.Serialize(src)
}

func (z idSerializer) Deserialize(src []byte, dst any) error {
	if id, ok := dst.(*string); ok {
		if text, ok := gobvalues.DecodeString(src); ok {
			*id = text
			return nil
		}
	}
	return z.GobEncoder.Deserialize(src, dst)
}

// badKeys stands for keys that cannot be used, until Codecs is set to others.
type badKeys struct{ error }

func (b badKeys) Encode(string, any) (string, error) { return "", b.error }
func (b badKeys) Decode(string, string, any) error   { return b.error }

// loadError is what Get returns for ErrNotLoaded, with the reason.
type loadError struct{ reason error }

func (e *loadError) Error() string   { return "redistore: load: " + e.reason.Error() }
func (e *loadError) Unwrap() []error { return []error{ErrNotLoaded, e.reason} }

// decodeError is the reason where it is the Serializer's.
type decodeError struct{ reason error }

func (e *decodeError) Error() string   { return e.reason.Error() }
func (e *decodeError) Unwrap() []error { return []error{ErrNotDecoded, e.reason} }

// failed says which step an error belongs to.
func failed(step string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redistore: %s: %w", step, err)
}

// once is a command that the client does not repeat.
type once struct{ redis.Cmder }

func (once) NoRetry() bool { return true }

// isReply tells an error that Redis answered, having done nothing, from one of the
// connection, which leaves open what was done.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// passing tells the errors of a Redis that restarts, fails over or moves a slot.
func passing(err error) bool {
	return slices.ContainsFunc([]string{"TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN"}, func(prefix string) bool {
		return redis.HasErrorPrefix(err, prefix)
	})
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

// detached outlives the request's client: see Store.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}
