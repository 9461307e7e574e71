package redistore

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestARenewalForgetsOnlyWhatItHasEnded has the ID of a request with two sessions of one
// owner be cleared, and the other one not be ended.
func TestARenewalForgetsOnlyWhatItHasEnded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for _, locked := range []bool{false, true} {
			store, rec := srv.sharded(t)
			over := keeper(store)
			if locked {
				over = NewLockingStore(store)
			}
			b, other := loginAs(t, store, "ann"), loginAs(t, store, "ann")
			r, end := b.lived(t)
			r.Header.Add("Cookie", "s="+other["s"])
			s, err := over.Get(r, "s")
			must(t, err)
			s.ID = ""
			scripts := 0
			rec.failing(func(name string) error {
				if strings.HasPrefix(name, "eval") {
					if scripts++; scripts == 3 { // after the index, and the end of the loaded one
						return io.ErrClosedPipe
					}
				}
				return nil
			})
			must(t, s.Save(r, httptest.NewRecorder()))
			rec.failing(nil)
			end()
			equal(t, "user of the other", other.user(t, store), "ann")
			ended, err := store.Revoke(t.Context(), "ann")
			must(t, err)
			equal(t, "ended", ended, 2)
			equal(t, "user of the other after Revoke", other.user(t, store), "")
		}
	})
}
