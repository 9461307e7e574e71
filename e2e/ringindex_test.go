package e2e

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
	"github.com/redistore/redistore/internal/clock"
)

// TestAShardThatIsDownKeepsItsOwners is another reason for a HeartbeatFn: by default, whoever
// lists an owner's sessions meanwhile takes those of the shard that is down out of the index,
// and Revoke misses them once it is back.
func TestAShardThatIsDownKeepsItsOwners(t *testing.T) {
	for name, keeps := range map[string]bool{"by default": false, "as docs/production.md has it": true} {
		t.Run(name, func(t *testing.T) {
			nodes, ring := ringOfTwo(t, keeps)
			store := redistore.New(ring, hashKey)
			at := make([]int, 2)
			for at[0] == 0 || at[1] == 0 {
				s, r, end := browser{}.get(t, store)
				defer end()
				redistore.SetOwner(s, "ann")
				must(t, s.Save(r, httptest.NewRecorder()))
				at[nodes[1].Client().Exists(t.Context(), "session_"+s.ID).Val()]++
			}
			down := 0 // the shard without the index
			if keys, _ := nodes[0].Client().Keys(t.Context(), "session_owner:*").Result(); len(keys) > 0 {
				down = 1
			}
			nodes[down].Kill()
			if !keeps {
				topology.Wait(t, "the Ring gives up the shard", shards(ring, 1))
			}
			clock.Set(store, func() time.Time { return time.Now().Add(3 * time.Minute) }) // the logins are no longer under way
			for range store.Sessions(t.Context(), "ann") {                                // shows her devices
			}
			nodes[down].Restart()
			topology.Wait(t, "the Ring has both shards", shards(ring, 2))
			ended, err := store.Revoke(t.Context(), "ann")
			must(t, err)
			left, _ := nodes[down].Client().DBSize(t.Context()).Result()
			t.Logf("ended %d of %v, %d keys are left", ended, at, left)
			if (left == 0) != keeps {
				t.Errorf("Revoke has left %d sessions", left)
			}
		})
	}
}
