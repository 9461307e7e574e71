package e2e

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
)

// TestTheLockWaitsForASlotThatMoves as docs/lock.md has it, however many redirections the
// client follows: between two servers of which neither has all keys yet, it is sent to and fro,
// and what it is told last may be ASK.
func TestTheLockWaitsForASlotThatMoves(t *testing.T) {
	nodes := topology.Cluster(t, 3, 0)
	for redirects := range 5 {
		cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: topology.Addrs(nodes), ContextTimeoutEnabled: true, MaxRedirects: redirects})
		defer cluster.Close()
		store := redistore.NewLockingStore(redistore.New(cluster, hashKey))
		b := browser{}
		s, r, end := b.get(t, store)
		w := httptest.NewRecorder()
		must(t, s.Save(r, w))
		b.keep(w)
		end()
		slot := cluster.ClusterKeySlot(t.Context(), "session_"+s.ID).Val()
		at := int(slot) * len(nodes) / 16384
		settle := topology.MoveKeys(t, slot, nodes[at].Client(), nodes[(at+1)%3].Client(), func() {})
		r = httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
		done := make(chan struct{})
		go func() {
			defer close(done)
			if s, err := store.Get(r, "s"); err != nil || s.IsNew {
				t.Errorf("with MaxRedirects %d: %v", redirects, err)
			}
		}()
		time.Sleep(time.Second) // the slot stays between two servers, which Get has to wait out
		settle(nodes[(at+2)%3].Client())
		<-done
	}
}
