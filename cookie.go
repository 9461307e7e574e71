package redistore

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/redistore/redistore/internal/gobvalues"
)

const (
	// maxCookies of one name are decoded for one request, and maxIDs are looked up. The
	// browser sends those of the most specific path first (RFC 6265, section 5.4).
	maxCookies = 64
	maxIDs     = 8

	// maxCookie is the length of name and value, in bytes, up to which browsers must keep
	// a cookie (RFC 6265, section 6.1), and beyond which they drop it.
	maxCookie = 4096

	idBytes = 32 // 256 random bits
)

var idEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Created returns when the session's ID was made, to the second: the time of the login,
// if that called Renew. It is the zero time for a session without an ID, for an ID that
// another store made, and for nil.
func Created(session *sessions.Session) time.Time {
	if session == nil {
		return time.Time{}
	}
	return created(session.ID)
}

// PublicID names a session in a page, a form or a log: 22 letters, digits, "-" and "_".
// It stays the same until the ID changes. It proves nothing, and the ID cannot be found
// from it. A session without an ID has none: "".
func PublicID(session *sessions.Session) string {
	if session == nil || session.ID == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("public " + session.ID))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// newID returns the time, for AbsoluteTimeout, and 256 random bits.
func (s *Store) newID() string {
	b := make([]byte, idBytes)
	rand.Read(b) // never fails
	return strconv.FormatInt(s.now().Unix(), 36) + "." + idEncoding.EncodeToString(b)
}

// created is when newID made the ID; the zero time if it did not.
func created(id string) time.Time {
	stamp, random, _ := strings.Cut(id, ".")
	sec, err := strconv.ParseInt(stamp, 36, 64)
	if err != nil || len(random) != idEncoding.EncodedLen(idBytes) {
		return time.Time{}
	}
	return time.Unix(sec, 0)
}

// ids returns the session IDs that the request's cookies of that name prove, in
// the browser's order, and what is wrong with the first that proves none. All
// count: a stale cookie from another path must not log the user out (RFC 6265,
// section 5.4).
func (s *Store) ids(r *http.Request, name string) (ids []string, invalid error) {
	for _, value := range cookies(r, name) {
		var id string
		err := securecookie.DecodeMulti(name, value, &id, s.Codecs...)
		if err != nil && invalid == nil {
			invalid = undecoded(err)
		}
		if err == nil && id != "" && len(ids) < maxIDs && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, invalid
}

// undecoded marks as the visitor's what codecs do not: securecookie itself has no type for
// a cookie that is too long.
func undecoded(err error) error {
	all, _ := err.(securecookie.MultiError)
	for i, one := range all {
		if _, typed := one.(securecookie.Error); !typed {
			all[i] = invalidCookie{one}
		}
	}
	return err
}

// An invalidCookie is a securecookie.Error.
type invalidCookie struct{ error }

func (invalidCookie) IsUsage() bool    { return false }
func (invalidCookie) IsDecode() bool   { return true }
func (invalidCookie) IsInternal() bool { return false }
func (e invalidCookie) Cause() error   { return e.error }
func (e invalidCookie) Unwrap() error  { return e.error }

// cookies returns the different values of the request's cookies of that name.
func cookies(r *http.Request, name string) (values []string) {
	if r == nil {
		return nil
	}
	for _, c := range r.CookiesNamed(name) {
		if len(values) < maxCookies && !slices.Contains(values, c.Value) {
			values = append(values, c.Value)
		}
	}
	return values
}

// takeOver loads a session from the cookie that CookieStore wrote, and returns what stands
// for that, as it has no ID, or "" if there is none.
func (s *Store) takeOver(r *http.Request, session *sessions.Session) string {
	for _, cookie := range cookies(r, session.Name()) {
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
			if codec.Decode(session.Name(), cookie, &values) == nil {
				session.Values, session.IsNew = values, false
				restoreMaxAge(session)
				sum := sha256.Sum256([]byte(cookie))
				return base64.RawURLEncoding.EncodeToString(sum[:])
			}
		}
	}
	return ""
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
	err := cookie.Valid() // or net/http would leave it out, or the offending part, without a word
	if err == nil {
		err = dropped(cookie)
	}
	if err != nil {
		return nil, fmt.Errorf("redistore: cookie %q: %w", session.Name(), err)
	}
	return cookie, nil
}

// dropped says why browsers would drop a cookie, if they would: RFC 6265bis, sections 4.1.3
// (prefixes) and 5.7 (SameSite=None), and RFC 6265, section 6.1 (size).
func dropped(c *http.Cookie) error {
	prefix := func(p string) bool { return len(c.Name) >= len(p) && strings.EqualFold(c.Name[:len(p)], p) }
	host := prefix("__Host-")
	switch {
	case (host || prefix("__Secure-")) && !c.Secure:
		return errors.New("browsers drop a cookie whose name has this prefix and that is not Secure: set Options.Secure")
	case host && (c.Domain != "" || c.Path != "/"):
		return errors.New(`browsers drop a cookie whose name starts with "__Host-" unless its Path is "/" and it has no Domain: change Options`)
	case c.SameSite == http.SameSiteNoneMode && !c.Secure:
		return errors.New("browsers drop a cookie with SameSite=None that is not Secure: set Options.Secure, or use SameSite=Lax")
	case len(c.Name)+len(c.Value) > maxCookie:
		return fmt.Errorf("browsers drop a cookie whose name and value have more than %d bytes, and these have %d", maxCookie, len(c.Name)+len(c.Value))
	}
	return nil
}

// setCookie replaces an earlier cookie that is the same to a browser (RFC 6265, section
// 4.1.1: one each), and keeps shared caches from handing it to somebody else.
func setCookie(w http.ResponseWriter, cookie *http.Cookie) {
	h := w.Header()
	if earlier := h["Set-Cookie"]; len(earlier) > 0 {
		line := cookie.String()
		h["Set-Cookie"] = slices.DeleteFunc(earlier, func(e string) bool { return sameCookie(e, line) })
	}
	http.SetCookie(w, cookie)
	addOnce(h, "Vary", "Cookie")
	addOnce(h, "Cache-Control", `no-cache="Set-Cookie"`)
}

// sameCookie compares what tells cookies apart: name, Domain and Path (RFC 6265, section
// 5.3, step 11), and whether they are partitioned (CHIPS).
func sameCookie(a, b string) bool {
	x, errX := http.ParseSetCookie(a)
	y, errY := http.ParseSetCookie(b)
	domain := func(c *http.Cookie) string { return strings.ToLower(strings.TrimPrefix(c.Domain, ".")) }
	return errX == nil && errY == nil && x.Name == y.Name && domain(x) == domain(y) &&
		x.Path == y.Path && x.Partitioned == y.Partitioned
}

func addOnce(h http.Header, name, value string) {
	if !slices.Contains(h[name], value) {
		h.Add(name, value)
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

// A shortKey can be guessed.
type shortKey struct {
	codec securecookie.Codec
	err   error
}

func shortKeys(codecs []securecookie.Codec, keyPairs [][]byte) (short []shortKey) {
	for i, codec := range codecs {
		if _, bad := codec.(badKeys); bad {
			continue
		}
		if n := len(keyPairs[2*i]); n < minKey {
			short = append(short, shortKey{codec, fmt.Errorf("redistore: key %d (authentication) has %d bytes: use 32 or 64 random bytes", 2*i+1, n)})
		}
	}
	return short
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
