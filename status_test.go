package redistore

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// TestStatus has each call fail in each way that it can.
func TestStatus(t *testing.T) {
	onStores(t, func(t *testing.T, x trial) {
		check := func(what string, err error, want int) {
			t.Helper()
			if got := Status(err); got != want {
				t.Errorf("%s: got %d for %v, want %d", what, got, err, want)
			}
		}
		get := func(b browser) (*sessions.Session, *http.Request, error) {
			r, end := b.lived(t)
			t.Cleanup(end)
			s, err := x.over.Get(r, "s")
			return s, r, err
		}
		w := httptest.NewRecorder()
		saves := func(what string, want int, prepare func(*sessions.Session)) {
			t.Helper()
			for name, write := range x.writes() {
				s, r, err := get(login(t, x.plain))
				check("Get", err, http.StatusOK)
				prepare(s)
				if name == "Touch" && want == http.StatusInternalServerError {
					continue // it sends no values
				}
				check(what+", "+name, write(r, w, s), want)
				x.rec.failing(nil)
			}
		}

		saves("all is well", http.StatusOK, func(s *sessions.Session) {})
		saves("Redis is down", http.StatusServiceUnavailable, func(*sessions.Session) {
			x.rec.failing(func(string) error { return io.EOF })
		})
		saves("Redis refuses", http.StatusServiceUnavailable, func(*sessions.Session) {
			x.rec.failing(func(string) error { return redisError("OOM command not allowed") })
		})
		saves("logged out", http.StatusUnauthorized, func(s *sessions.Session) {
			must(t, x.srv.admin.Del(t.Context(), "session_"+s.ID).Err())
		})
		saves("a value that cannot be encoded", http.StatusInternalServerError, func(s *sessions.Session) { s.Values["f"] = func() {} })
		saves("too large", http.StatusInternalServerError, func(s *sessions.Session) { s.Values["x"] = strings.Repeat("x", 2<<20) })

		for _, value := range []string{"nonsense", strings.Repeat("x", 5000), "", "x|y"} {
			_, _, err := get(browser{"s": value})
			check(fmt.Sprintf("a cookie that proves nothing: %.10q", value), err, http.StatusOK)
		}
		_, _, err := get(browser{})
		check("no cookie", err, http.StatusOK)
		b := login(t, x.plain)
		x.rec.failing(func(string) error { return io.EOF })
		s, r, err := get(b)
		check("Get while Redis is down", err, http.StatusServiceUnavailable)
		x.rec.failing(nil)
		check("Save of what was not loaded", s.Save(r, w), http.StatusServiceUnavailable)
		must(t, x.srv.admin.Set(t.Context(), x.srv.keys(t)[0], "nonsense", time.Hour).Err())
		check("a name that is no cookie's", func() error { _, err := x.over.Get(r, "a b"); return err }(), http.StatusInternalServerError)

		x.plain.DefaultMaxAge = 0
		s, r, err = get(b)
		check("a configuration that cannot be used", err, http.StatusInternalServerError)
		check("Save of that", x.over.Save(r, w, s), http.StatusInternalServerError)
		x.plain.DefaultMaxAge = math.MaxInt32
	})
	for err, want := range map[error]int{
		nil: http.StatusOK, ErrConflict: http.StatusConflict, ErrLocked: http.StatusServiceUnavailable, ErrTooLarge: http.StatusInternalServerError,
		errors.Join(io.EOF, ErrGone): http.StatusUnauthorized, io.EOF: http.StatusInternalServerError,
	} {
		equal(t, "status", Status(err), want)
	}
	equal(t, "keys that cannot be used", Status(New(nil).Ping(t.Context())), http.StatusInternalServerError)
}
