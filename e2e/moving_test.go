package e2e

import (
	"net"
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
		settle := move(t, nodes, "session_"+s.ID)
		settled := make(chan struct{})
		time.AfterFunc(time.Second, func() {
			defer close(settled)
			settle()
		})
		r = httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
		if s, err := store.Get(r, "s"); err != nil || s.IsNew {
			t.Errorf("with MaxRedirects %d: %v", redirects, err)
		}
		<-settled
	}
}

// move moves the keys of a slot to the next node, and returns what moves the slot itself.
func move(t *testing.T, nodes []*topology.Node, key string) (settle func()) {
	t.Helper()
	ctx := t.Context()
	slot := nodes[0].Client().ClusterKeySlot(ctx, key).Val()
	at := int(slot) * len(nodes) / 16384
	source, target, third := nodes[at].Client(), nodes[(at+1)%3].Client(), nodes[(at+2)%3].Client()
	sourceID, targetID := source.ClusterMyID(ctx).Val(), target.ClusterMyID(ctx).Val()
	must(t, target.Do(ctx, "cluster", "setslot", slot, "importing", sourceID).Err())
	must(t, source.Do(ctx, "cluster", "setslot", slot, "migrating", targetID).Err())
	host, port, _ := net.SplitHostPort(target.Options().Addr)
	for _, key := range source.ClusterGetKeysInSlot(ctx, int(slot), 100).Val() {
		must(t, source.Migrate(ctx, host, port, key, 0, time.Second).Err())
	}
	return func() {
		for _, c := range []*redis.Client{target, source, third} {
			if err := c.Do(ctx, "cluster", "setslot", slot, "node", targetID).Err(); err != nil {
				t.Error(err)
			}
		}
	}
}
