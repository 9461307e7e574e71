//go:build !race

package redistore

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/sessions"
)

// TestARequestAllocatesLittle counts what a request costs this process with a session of
// five fields, its recorder and its copy of a request included, as bench does. The
// race detector allocates too: CI runs this without.
func TestARequestAllocatesLittle(t *testing.T) {
	store := New(startRedis(t).client(t), hashKey)
	locking := NewLockingStore(store)
	blank := httptest.NewRequest("GET", "/", nil)
	cookie := ""
	serve := func(over sessions.Store, handle func(*http.Request, http.ResponseWriter, *sessions.Session)) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r, w := blank.WithContext(ctx), httptest.NewRecorder()
		r.Header = http.Header{}
		r.Header.Set("Cookie", cookie)
		s, _ := over.Get(r, "session")
		handle(r, w, s)
		if set := w.Header().Get("Set-Cookie"); set != "" {
			cookie, _, _ = strings.Cut(set, ";")
		}
	}
	save := func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
		s.Values["visits"] = s.Values["visits"].(int) + 1
		must(t, s.Save(r, w))
	}
	serve(store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
		s.Values["user"], s.Values["id"], s.Values["admin"], s.Values["lang"], s.Values["visits"] = "ann@example.com", 42, true, "en-GB", 1
		must(t, s.Save(r, w))
	})
	for name, c := range map[string]struct {
		most float64
		do   func()
	}{
		"a read": {75, func() {
			serve(store, func(_ *http.Request, _ http.ResponseWriter, s *sessions.Session) { equal(t, "IsNew", s.IsNew, false) })
		}},
		"a read and a Save":                {120, func() { serve(store, save) }},
		"a read and a Save, with the lock": {180, func() { serve(locking, save) }},
	} {
		allocs := math.Inf(1)
		for range 3 { // the runtime's own goroutines allocate now and then
			allocs = min(allocs, testing.AllocsPerRun(1000, c.do))
		}
		if t.Logf("%s: %.0f allocations", name, allocs); allocs > c.most {
			t.Errorf("%s: %.0f allocations, want %.0f at most", name, allocs, c.most)
		}
	}
}
