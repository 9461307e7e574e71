package redistore

import (
	"encoding/json"
	"math"

	"github.com/gorilla/sessions"
)

const maxAgeKey = "_max_age" // in Values, beside ownerKey

// SetMaxAge sets the session's own Options.MaxAge, in seconds, and keeps it with the
// session: every Get, New, Update and [Store.Sessions] sets Options.MaxAge from it.
// "Remember me" is one call at login, and no handler can forget it. Zero makes a cookie
// that ends with the browser's session. It counts from the next Save or Renew.
//
// A handler that sets Options.MaxAge itself wins for that Save, a logout with -1 included.
// A negative number here removes what was kept, and Options.MaxAge stays as it is: the
// store's Options count again from the next Get.
//
// The number is kept in Values, under "_max_age", and so survives Renew and a reload. A
// handler that replaces all of Values has to call SetMaxAge again. A Serializer of your own
// has to give it back as int, float64 or [json.Number]: another type counts for nothing.
func SetMaxAge(session *sessions.Session, seconds int) {
	if seconds < 0 {
		delete(session.Values, maxAgeKey)
		return
	}
	if session.Values == nil {
		session.Values = make(map[any]any)
	}
	seconds = min(seconds, math.MaxInt32) // 68 years, as Options.MaxAge is cut
	session.Values[maxAgeKey] = seconds
	if session.Options != nil {
		session.Options.MaxAge = seconds
	}
}

// restoreMaxAge sets Options.MaxAge from Values. A number that SetMaxAge did not write
// counts for nothing: a planted one must not end the session at its next Save.
func restoreMaxAge(session *sessions.Session) {
	var seconds float64
	switch n := session.Values[maxAgeKey].(type) {
	case int:
		seconds = float64(n)
	case float64: // JSON's only number
		seconds = n
	case json.Number:
		f, err := n.Float64()
		if err != nil {
			return
		}
		seconds = f
	default:
		return
	}
	if session.Options != nil && seconds >= 0 && seconds <= math.MaxInt32 && seconds == math.Trunc(seconds) {
		session.Options.MaxAge = int(seconds)
	}
}
