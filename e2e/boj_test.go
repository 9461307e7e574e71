package e2e

import (
	"net/http"
	"testing"

	boj "github.com/boj/redistore"
	"github.com/gorilla/sessions"

	"github.com/redistore/redistore"
)

// TestFromBojAndBack has boj/redistore write sessions, redistore read and save them,
// and boj/redistore read them again: a move, and a roll-back.
func TestFromBojAndBack(t *testing.T) {
	for name, z := range map[string]struct {
		theirs boj.SessionSerializer
		ours   redistore.Serializer
		n      any // as the serializer gives an int back
	}{
		"gob":                          {boj.GobSerializer{}, redistore.GobSerializer{}, 42},
		"JSON":                         {boj.JSONSerializer{}, redistore.JSONSerializer{}, 42.0},
		"boj's own serializer in ours": {boj.GobSerializer{}, boj.GobSerializer{}, 42},
	} {
		for _, keys := range [][][]byte{{hashKey}, {hashKey, blockKey}} {
			t.Run(name, func(t *testing.T) {
				addr := startRedis(t)
				theirs, err := boj.NewRediStore(10, "tcp", addr, "", "", keys...)
				must(t, err)
				defer theirs.Close()
				theirs.SetSerializer(z.theirs)
				store := newStore(t, addr, keys...)
				store.Serializer = z.ours

				b := browser{}
				save := func(store sessions.Store, seen int) {
					t.Helper()
					b.visit(t, func(w http.ResponseWriter, r *http.Request) {
						s, err := store.Get(r, "s")
						must(t, err)
						equal(t, "IsNew", s.IsNew, seen == 0)
						if seen > 0 {
							equal(t, "values", []any{s.Values["user"], s.Values["n"], s.Values["visits"]}, []any{"ann", z.n, seen})
							equal(t, "flash", s.Flashes(), "[welcome]")
						}
						s.Values["user"], s.Values["n"], s.Values["visits"] = "ann", 42, seen+1
						s.AddFlash("welcome")
						must(t, s.Save(r, w))
					})
				}
				save(theirs, 0)
				save(store, 1)
				save(theirs, 2)
				save(redistore.NewLockingStore(store), 3)
				save(theirs, 4)

				// And the other way round: a session that began here.
				b = browser{}
				save(store, 0)
				save(theirs, 1)
				save(store, 2)
				b.visit(t, func(w http.ResponseWriter, r *http.Request) {
					s, err := store.Get(r, "s")
					must(t, err)
					s.Options.MaxAge = -1
					must(t, s.Save(r, w))
				})
				save(theirs, 0)
			})
		}
	}
}
