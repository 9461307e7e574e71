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
// Get returns a usable session (nil only for a name that no cookie can have), and an error
// beside it when something was wrong. If errors.Is(err, ErrNotLoaded), Redis or the
// stored value could not be read: the session is empty although the user may well have
// one, so answer 503 rather than showing a logged-out page. Any other error is about a
// cookie that proves nothing (tampered with, signed with a key that is no longer
// configured), and the new session can be used as it is, or about the store's
// configuration, which [Store.Ping] reports too: call it when the program starts.
//
// Save refuses rather than harms: see [ErrGone], [ErrNotLoaded] and
// [ErrTooLarge]. [Status] says what to answer to any of these errors.
package redistore

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/clock"
	"github.com/redistore/redistore/internal/script"
)

var (
	// ErrGone is returned by Save, Renew, Touch and Update when Redis has no record of the
	// session any more (logout, Revoke, expiry, or a Renew by another request), or when the
	// request came with a cookie whose session was renewed within the last minute; by Touch
	// also for a session that was never saved. Nothing was stored and no cookie was sent:
	// treat the user as logged out.
	ErrGone = errors.New("redistore: the session has ended")

	// ErrNotLoaded is returned by Get, New and Update when Redis or the stored value could
	// not be read, and by Save, Renew and Touch of such a session, which would overwrite
	// values that nobody has seen. Nothing was written: ask the user to try again. Logging
	// out (MaxAge -1) works all the same.
	ErrNotLoaded = errors.New("redistore: the session could not be loaded")

	// ErrNotDecoded comes with ErrNotLoaded when Redis was read, and it is the Serializer
	// that refuses the value: a gob type was renamed, the Serializer changed, or the key of
	// [Encrypt] is missing. Trying again does not help; only logging out does.
	ErrNotDecoded = errors.New("redistore: the value could not be decoded")

	// ErrTooLarge is returned by Save, Renew and Update when the serialized session exceeds
	// Store.MaxLength. What was stored before stays: keep less in the session, or
	// raise MaxLength.
	ErrTooLarge = errors.New("redistore: the session is too large")
)

const (
	// timeout bounds what one call may spend on Redis. Only a client with
	// ContextTimeoutEnabled interrupts a command that is under way; any other
	// client adds its own read timeout.
	timeout = 5 * time.Second

	// maxAttempts is how often a new record is tried, each time under a new ID, for go-redis
	// must not repeat that by itself. It would try as often.
	maxAttempts = 4
)

// Store is a [sessions.Store] on Redis. Make it with [New], set its fields before
// the first request, and use it from any number of goroutines after that. It
// never closes the client.
//
// Get, Save, Renew and Touch are one Redis command each, and take 5 seconds at most if the
// client was made with ContextTimeoutEnabled. With a cookie whose ID Redis does not know, Get,
// Save and Renew are two each, and with one of CookieStore's the first Save or Renew. Where the
// keys may be on several servers, Renew is two or more. What an owner adds, see [SetOwner].
// Reads end with the request's context; writes do not, because a client that hangs up must not
// be able to half-cancel a logout.
type Store struct {
	// Codecs sign the session ID, and encrypt it where an encryption key was given.
	// The first encodes, all decode. New makes them from keyPairs, without an age
	// limit of their own: Redis' expiry and AbsoluteTimeout end the session.
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

	// IdleTimeout ends a session that is not read for so long, rounded up to whole seconds
	// (OWASP ASVS 5.0, 7.3.1). Save and Touch let it live for the shorter of MaxAge and this,
	// every Get for this, even where MaxAge is shorter: a session that is used all the time is
	// ended by AbsoluteTimeout. Zero: off.
	IdleTimeout time.Duration

	// AbsoluteTimeout ends a session so long after its ID was made, however active
	// it is (OWASP ASVS 5.0, 7.3.2); Renew starts the clock anew. The ID carries its
	// creation time. One without it, as other stores make them, counts as too old.
	// It counts by the servers' own clocks: where they differ by as much, who logs in on one
	// is not logged in on another. Zero: off.
	AbsoluteTimeout time.Duration

	// CookieStoreUntil is when cookies that [sessions.CookieStore] wrote, with the same
	// name and keys, cease to be taken over. Until then their values are those of a
	// session that is not new and has no ID, and the first Save moves them to Redis.
	// They stay bound by MaxAge, as they were. A leaked signing key forges them, as it
	// did before. Zero: they never are.
	CookieStoreUntil time.Time

	client  redis.UniversalClient
	short   []shortKey // which Ping refuses
	scripts *script.Runner
	now     func() time.Time
}

// New returns a store on any go-redis client: single, Sentinel, Cluster, Ring or
// an AutoPipeliner. It does no I/O and never fails. All but a [redis.Client], which Sentinel's
// is too, count as several servers, where some calls take more commands.
//
// The keys are those of [sessions.NewCookieStore]: pairs of an authentication
// key, 32 or 64 random bytes, and an encryption key, 16, 24 or 32 bytes or nil.
// The last pair may lack the second. The first pair signs, all pairs verify. To rotate
// keys, add the new pair as the last one on all servers, then move it to the front, then
// drop the old one after MaxAge (where that is 0, after DefaultMaxAge, or with IdleTimeout
// after AbsoluteTimeout): at each step every server verifies what the others sign.
// Keys that cannot be used are reported by every Get, Save and Ping.
func New(client redis.UniversalClient, keyPairs ...[]byte) *Store {
	if v := reflect.ValueOf(client); v.Kind() == reflect.Pointer && v.IsNil() {
		client = nil // a *redis.Client that was declared and never made
	}
	codecs := newCodecs(keyPairs)
	return &Store{
		Codecs:        codecs,
		short:         shortKeys(codecs, keyPairs),
		Options:       newOptions(),
		KeyPrefix:     "session_",
		Serializer:    GobSerializer{},
		MaxLength:     1 << 20, // 1 MiB
		DefaultMaxAge: 20 * 60, // 20 minutes
		client:        client,
		scripts:       &script.Runner{Client: client},
		now:           time.Now,
	}
}

func init() {
	clock.Set = func(store any, now func() time.Time) { store.(*Store).now = now }
}

// MaxAge sets Options.MaxAge, in seconds, like [sessions.CookieStore.MaxAge]. Call it
// before the first request. Individual sessions override it with their own Options.
func (s *Store) MaxAge(age int) {
	if s == nil {
		return // every other call says what is wrong
	}
	if s.Options == nil {
		s.Options = newOptions()
	}
	s.Options.MaxAge = age
}

// Get returns the session of that name, loading it once per request. It is never
// nil unless the name is not a valid cookie name. IsNew tells whether there was
// one.
//
// An ID that Redis does not know (expired, logged out) is never adopted: the
// session is new and Save will make a new ID. That is no error. For those that are,
// see the package's documentation.
//
// All sessions of a request are loaded with the context of its first Get, which is how
// gorilla's registry works. A copy of the request that has a later or an earlier end, as a
// job's that goes on, calls New.
func (s *Store) Get(r *http.Request, name string) (*sessions.Session, error) {
	session, err := sessions.GetRegistry(r).Get(s, name)
	st := stateOf(session)
	if st.elsewhere(s) {
		return apart(s, r, session)
	}
	return session, st.still(err)
}

// New is Get without the request's cache: it loads the session each time. Most
// callers want Get.
func (s *Store) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(s, name)
	return session, (&call{by: s, r: r, session: session}).open()
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
// With ID set to "", Save does what [Store.Renew] does, and also ends the sessions of the
// request's other cookies of that name. IDs are otherwise the store's own to make: Save of a
// loaded session whose ID was changed is an error.
//
// A session that was made with [sessions.NewSession] has gorilla's own Options, whose cookie
// is not Secure, not HttpOnly and has no Path. Set Options to nil for the store's.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.call(r, w, session).save(false)
}

// Renew saves the session under a new ID and ends the old one, without a grace
// period: whoever planted or stole the old ID must not ride along. Call it instead
// of Save at login and whenever privileges change (OWASP ASVS 5.0, 7.2.4).
//
// For a minute, a request that comes with the old cookie gets an empty session whose Save,
// Renew and Update are ErrGone and send no cookie, which would replace the new one. A response
// that saved the old session before this call, and reaches the browser after it, still does
// that. If it is the response of this call that gets lost, its user can log in again after
// that minute, or in the next request if the handler ends the session, with MaxAge -1.
//
// Its errors are those of Save. If the connection fails during Renew, the old session
// may be over too: the user has to log in again.
func (s *Store) Renew(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.call(r, w, session).save(true)
}

// Touch lets the session live for its MaxAge from now, in the browser, and in Redis for that
// or for IdleTimeout, if that is shorter. It does not send the values: for handlers that only
// read. A session that Redis does not have, or that was never saved, is ErrGone; one that Get
// could not load is ErrNotLoaded. With MaxAge < 0 it ends the session, as Save does.
func (s *Store) Touch(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.call(r, w, session).touch()
}

// check refuses a configuration that would lose sessions or sign with the wrong
// key.
func (s *Store) check() error {
	switch {
	case s == nil || s.client == nil:
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

// loadError is what Get returns for ErrNotLoaded, with the reason.
type loadError struct{ reason error }

func (e *loadError) Error() string   { return "redistore: load: " + e.reason.Error() }
func (e *loadError) Unwrap() []error { return []error{ErrNotLoaded, e.reason} }

// decodeError is the reason where it is the Serializer's.
type decodeError struct{ reason error }

func (e *decodeError) Error() string   { return e.reason.Error() }
func (e *decodeError) Unwrap() []error { return []error{ErrNotDecoded, e.reason} }
