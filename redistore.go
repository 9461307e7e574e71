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
)

var (
	// ErrGone is returned by Save, Renew and Touch when the session was ended
	// (logout, expiry) while this request was running. Nothing was written and no
	// cookie was sent: treat the user as logged out.
	ErrGone = errors.New("redistore: the session has ended")

	// ErrNotLoaded is returned by Get when Redis or the stored value could not be
	// read, and by Save and Renew of such a session, which would overwrite values
	// that nobody has seen. Nothing was written: ask the user to try again. Logging
	// out (MaxAge -1) works all the same.
	ErrNotLoaded = errors.New("redistore: the session could not be loaded")

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

	// maxCookies of one name are looked at, so that no request can cause more
	// lookups than this.
	maxCookies = 8

	// maxAttempts of one Renew, as many as go-redis makes of other commands.
	maxAttempts = 4
)

// Store is a [sessions.Store] on Redis. Make it with [New], set its fields before
// the first request, and use it from any number of goroutines after that. It
// never closes the client.
//
// Every call is one Redis command (Renew: one transaction) and takes 5 seconds at
// most, if the client was made with ContextTimeoutEnabled. Reads end with the request's context; writes do
// not, because a client that hangs up must not be able to half-cancel a logout.
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

	// KeyPrefix keeps applications that share a Redis apart; "session_".
	KeyPrefix string

	// Serializer turns Values into bytes; GobSerializer{}.
	Serializer Serializer

	// MaxLength of the serialized session in bytes; 1 MiB. Zero: no limit.
	MaxLength int

	// DefaultMaxAge is how many seconds Redis keeps a session whose MaxAge is zero;
	// 1200, which is 20 minutes.
	DefaultMaxAge int

	// IdleTimeout ends a session that is not read for so long (OWASP ASVS 5.0,
	// 7.3.1), in seconds, rounded up. It bounds the expiry in Redis, and every Get
	// renews it, also beyond MaxAge: a session that is used all the time is ended by
	// AbsoluteTimeout. Zero: off.
	IdleTimeout time.Duration

	// AbsoluteTimeout ends a session so long after its ID was made, however active
	// it is (OWASP ASVS 5.0, 7.3.2); Renew starts the clock anew. The ID carries its
	// creation time. One without it, as other stores make them, counts as too old.
	// Zero: off.
	AbsoluteTimeout time.Duration

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

// MaxAge sets Options.MaxAge, in seconds, like [sessions.CookieStore.MaxAge].
// Individual sessions override it with their own Options.
func (s *Store) MaxAge(age int) {
	if s.Options == nil {
		s.Options = newOptions()
	}
	s.Options.MaxAge = age
}

// Ping reports whether the store is usable: its configuration first, then whether
// Redis answers.
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
// session is new and Save will make a new ID.
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
// happens even when Redis cannot be reached; the error tells.
//
// Setting the ID of a loaded session to "" before Save is the same as [Store.Renew].
// Where the session could not be loaded, it starts afresh: the stored value stays,
// out of reach, until it expires. IDs are otherwise the store's own to make.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.save(s, r, w, session, false)
}

// Renew saves the session under a new ID and ends the old one, without a grace
// period: whoever planted or stole the old ID must not ride along. Call it instead
// of Save at login and whenever privileges change (OWASP ASVS 5.0, 7.2.4). A
// request that is already under way with the old cookie gets ErrGone from its Save.
//
// If the connection fails during Renew, the old session may be over too: the user has
// to log in again.
func (s *Store) Renew(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return s.save(s, r, w, session, true)
}

// Touch extends the session by its MaxAge, in Redis and in the browser, without
// sending the values. A session that Redis does not have, or that was never saved,
// is ErrGone.
func (s *Store) Touch(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	if err := s.prepare(s, session); err != nil {
		return err
	}
	if session.Options.MaxAge < 0 {
		return s.end(s, r, w, session)
	}
	cookie, err := s.cookie(session)
	if err != nil {
		return err
	}
	ttl := s.lifetime(session.ID, s.maxAge(session))
	if session.ID == "" || ttl <= 0 {
		return ErrGone
	}
	ctx, cancel := detached(r)
	defer cancel()
	alive, err := s.client.Expire(ctx, s.key(session.ID), ttl).Result()
	if err != nil {
		return failed("touch", err)
	}
	if !alive {
		return ErrGone
	}
	setCookie(w, cookie)
	return nil
}

// backend is what [LockingStore] does in its own way. The session's ID is that of
// the record.
type backend interface {
	check() error
	read(r *http.Request, session *sessions.Session) ([]byte, error) // redis.Nil: no such record
	create(r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error
	overwrite(r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error
	replace(old []string) writer
	remove(r *http.Request, id string) error
}

// writer stores data for ttl, or refuses.
type writer func(r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error

// open fills a session from the first of the request's cookies that names one.
func (s *Store) open(b backend, r *http.Request, session *sessions.Session) error {
	session.IsNew = true
	if err := b.check(); err != nil {
		return err
	}
	session.Options = s.options()
	ids, invalid := s.ids(r, session.Name())
	for _, id := range ids {
		session.ID = id
		err := s.load(b, r, session)
		if errors.Is(err, redis.Nil) {
			session.ID = ""
			continue
		}
		if err != nil {
			return &loadError{err}
		}
		session.IsNew = false
		return nil
	}
	return invalid
}

// load reads the session of that ID. An error other than redis.Nil leaves it the
// ID, and no values: that is how save tells that it was never read.
func (s *Store) load(b backend, r *http.Request, session *sessions.Session) error {
	if s.lifetime(session.ID, maxLifetime) <= 0 {
		return redis.Nil
	}
	data, err := b.read(r, session)
	if err == nil {
		err = s.Serializer.Deserialize(data, session)
	}
	if err != nil || session.Values == nil {
		session.Values = make(map[any]any) // never half of them
	}
	return err
}

// read returns what Redis holds.
func (s *Store) read(r *http.Request, session *sessions.Session) ([]byte, error) {
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	key := s.key(session.ID)
	if s.IdleTimeout > 0 {
		return s.client.GetEx(ctx, key, s.lifetime(session.ID, maxLifetime)).Bytes()
	}
	return s.client.Get(ctx, key).Bytes()
}

// save decides what becomes of a session; renew: that its ID changes.
func (s *Store) save(b backend, r *http.Request, w http.ResponseWriter, session *sessions.Session, renew bool) error {
	if err := s.prepare(b, session); err != nil {
		return err
	}
	switch {
	case session.Options.MaxAge < 0:
		return s.end(b, r, w, session)
	case s.unread(r, session):
		return ErrNotLoaded
	case session.ID == "" && session.IsNew:
		return s.write(r, w, session, s.newID(), b.create)
	case session.ID == "" || renew:
		old := []string{session.ID}
		if session.ID == "" {
			// The handler cleared it: the request's cookies have it. All of them end, so
			// that a planted one does not ride along.
			old, _ = s.ids(r, session.Name())
		}
		return s.write(r, w, session, s.newID(), b.replace(old))
	}
	return s.write(r, w, session, session.ID, b.overwrite)
}

// unread tells whether the session is one that Get could not load: it is new, yet
// carries the very ID that the request's own cookie carries.
func (s *Store) unread(r *http.Request, session *sessions.Session) bool {
	if !session.IsNew || session.ID == "" {
		return false
	}
	ids, _ := s.ids(r, session.Name())
	return slices.Contains(ids, session.ID)
}

// write stores the session under id and then, only then, sets the cookie.
func (s *Store) write(r *http.Request, w http.ResponseWriter, session *sessions.Session, id string, put writer) (err error) {
	defer func(old string) {
		if err != nil {
			session.ID = old
		}
	}(session.ID)
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
	if err := put(r, session, data, ttl); err != nil {
		return err
	}
	setCookie(w, cookie)
	return nil
}

// create needs no NX: nobody else can draw the same 256 bits, and a repeated NX
// whose first reply was lost would deny its own success.
func (s *Store) create(r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	ctx, cancel := detached(r)
	defer cancel()
	return failed("save", s.client.Set(ctx, s.key(session.ID), data, ttl).Err())
}

// overwrite needs XX: a key that is gone was logged out or has expired, and must
// not come back.
func (s *Store) overwrite(r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
	ctx, cancel := detached(r)
	defer cancel()
	err := s.client.SetArgs(ctx, s.key(session.ID), data, redis.SetArgs{Mode: "XX", TTL: ttl}).Err()
	if errors.Is(err, redis.Nil) {
		return ErrGone
	}
	return failed("save", err)
}

// replace writes the new record and ends the old ones. The answer to DEL tells
// whether the session was still alive.
func (s *Store) replace(old []string) writer {
	if len(old) == 0 {
		return s.create
	}
	return func(r *http.Request, session *sessions.Session, data []byte, ttl time.Duration) error {
		ctx, cancel := detached(r)
		defer cancel()
		var lost error // a reply that never came: what the repeat finds may be its own work
		for attempt := 1; ; attempt++ {
			ended, err := s.swap(ctx, s.key(session.ID), data, ttl, old)
			switch {
			case err == nil && ended > 0:
				return nil
			case err == nil && lost == nil: // nothing to end: somebody else was first
				err = ErrGone
			case err == nil:
				err = failed("renew", lost)
			case attempt < maxAttempts && pause(ctx, attempt):
				if !isReply(err) {
					lost = err
				}
				continue
			default:
				err = failed("renew", err)
			}
			s.client.Del(ctx, s.key(session.ID)) // nobody knows this ID; if this fails, it expires
			return err
		}
	}
}

// swap sets the new key and deletes the old ones, and counts those. Nothing is
// deleted where the new key was refused: a single server does both or neither, in
// one round trip; where the keys may be on several, the second waits for the first.
// The client must not repeat DEL by itself, see replace.
func (s *Store) swap(ctx context.Context, key string, data []byte, ttl time.Duration, old []string) (ended int64, err error) {
	dels := make([]*redis.IntCmd, len(old))
	del := func(pipe redis.Pipeliner) error {
		for i, id := range old {
			dels[i] = redis.NewIntCmd(ctx, "del", s.key(id))
			_ = pipe.Process(ctx, once{dels[i]})
		}
		return nil
	}
	if single, ok := s.client.(*redis.Client); ok {
		var set *redis.StatusCmd
		_, err = single.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			set = pipe.Set(ctx, key, data, ttl)
			return del(pipe)
		})
		if why := set.Err(); why != nil {
			err = why // err itself may only say that the transaction was given up
		}
	} else if err = s.client.Set(ctx, key, data, ttl).Err(); err == nil {
		_, err = s.client.Pipelined(ctx, del)
	}
	for _, d := range dels {
		if d != nil {
			ended += d.Val()
		}
	}
	return ended, err
}

// remove ends a session.
func (s *Store) remove(r *http.Request, id string) error {
	ctx, cancel := detached(r)
	defer cancel()
	return failed("delete", s.client.Del(ctx, s.key(id)).Err())
}

// end deletes the session and expires the cookie, which goes out even when Redis
// cannot be reached: who logs out must not leave with a working cookie.
func (s *Store) end(b backend, r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	var ids []string
	switch {
	case session.ID != "":
		ids = []string{session.ID}
	case !session.IsNew:
		ids, _ = s.ids(r, session.Name()) // the handler cleared it
	}
	cookie, err := s.cookie(session)
	if err == nil {
		setCookie(w, cookie)
	}
	for _, id := range ids {
		err = errors.Join(err, b.remove(r, id))
	}
	return err
}

// ids returns the session IDs that the request's cookies of that name prove, in
// the browser's order, and what is wrong with the first that proves none. All
// count: a stale cookie from another path must not log the user out (RFC 6265,
// section 5.4).
func (s *Store) ids(r *http.Request, name string) (ids []string, invalid error) {
	cookies := r.CookiesNamed(name)
	for _, c := range cookies[:min(len(cookies), maxCookies)] {
		var id string
		err := securecookie.DecodeMulti(name, c.Value, &id, s.Codecs...)
		if err != nil && invalid == nil {
			invalid = err
		}
		if err == nil && id != "" && !slices.Contains(ids, id) {
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
		if bad, ok := c.(badKeys); ok {
			return bad.error
		}
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
		c.(*securecookie.SecureCookie).MaxAge(0)
	}
	return codecs
}

// badKeys stands for keys that cannot be used, until Codecs is set to others.
type badKeys struct{ error }

func (b badKeys) Encode(string, any) (string, error) { return "", b.error }
func (b badKeys) Decode(string, string, any) error   { return b.error }

// loadError is what Get returns for ErrNotLoaded, with the reason.
type loadError struct{ reason error }

func (e *loadError) Error() string   { return "redistore: load: " + e.reason.Error() }
func (e *loadError) Unwrap() []error { return []error{ErrNotLoaded, e.reason} }

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
func detached(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), timeout)
}
