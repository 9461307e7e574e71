package redistore

import (
	"net/http/httptest"
	"testing"

	"github.com/gorilla/sessions"
)

func TestSetMaxAgeCountsWithoutOptions(t *testing.T) {
	store, _ := startMini(t).store(t)
	s := sessions.NewSession(store, "s")
	s.Options = nil
	SetMaxAge(s, 60)
	w := httptest.NewRecorder()
	must(t, store.Save(nil, w, s))
	equal(t, "MaxAge", cookieOf(t, w).MaxAge, 60)
}
