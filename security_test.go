package redistore

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestHostPrefix shows that the default Options are what a browser asks of a cookie whose
// name starts with __Host-: Secure, Path "/" and no Domain (RFC 6265bis, section 4.1.3).
func TestHostPrefix(t *testing.T) {
	t.Parallel()
	store := New(startMini(t).client(t), hashKey)
	const name = "__Host-session"
	cookie := saveNamed(t, store, name, nil)
	if !cookie.Secure || cookie.Path != "/" || cookie.Domain != "" {
		t.Errorf("a browser refuses %v", cookie)
	}
	s, err := store.Get(browser{name: cookie.Value}.request(t), name)
	must(t, err)
	equal(t, "IsNew", s.IsNew, false)
}

// TestTheCookieHoldsOnlyTheID shows that nothing of what is in the session is in the
// cookie, however much it is, encrypted or not (OWASP ASVS 5.0, 3.3.5: 4096 bytes).
func TestTheCookieHoldsOnlyTheID(t *testing.T) {
	t.Parallel()
	client := startMini(t).client(t)
	for name, store := range map[string]*Store{"signed": New(client, hashKey), "encrypted": New(client, hashKey, blockKey)} {
		small := saveNamed(t, store, "s", "ann")
		large := saveNamed(t, store, "s", strings.Repeat("ann", 100_000))
		equal(t, name+": bytes", len(large.Value), len(small.Value))
		if n := len(large.Name) + len(large.Value); n > 400 {
			t.Errorf("%s: the cookie has %d bytes", name, n)
		}
	}
}

// saveNamed saves a new session of that name and returns its cookie.
func saveNamed(t *testing.T, store *Store, name string, value any) *http.Cookie {
	t.Helper()
	r := browser{}.request(t)
	s, err := store.Get(r, name)
	must(t, err)
	s.Values["value"] = value
	w := httptest.NewRecorder()
	must(t, s.Save(r, w))
	return w.Result().Cookies()[0]
}
