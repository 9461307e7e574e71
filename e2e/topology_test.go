package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
)

// clients returns one of each kind, on a topology of its own.
func clients(t *testing.T) map[string]redis.UniversalClient {
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: topology.Addrs(topology.Cluster(t, 3, 1)), ContextTimeoutEnabled: true})
	auto, err := cluster.AutoPipeline()
	must(t, err)
	_, sentinels := topology.Sentinels(t, 1)
	all := map[string]redis.UniversalClient{
		"Cluster":               cluster,
		"Cluster, AutoPipeline": auto,
		"Sentinel": redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: topology.MasterName, SentinelAddrs: topology.Addrs(sentinels), ContextTimeoutEnabled: true,
		}),
		"Ring": redis.NewRing(&redis.RingOptions{Addrs: map[string]string{
			"one": topology.Start(t).Addr, "two": topology.Start(t).Addr,
		}, ContextTimeoutEnabled: true}),
	}
	t.Cleanup(func() {
		for _, client := range all {
			client.Close()
		}
	})
	return all
}

// get loads the session "s" in a request that ends with the function returned.
func (b browser) get(t *testing.T, store sessions.Store) (*sessions.Session, *http.Request, func()) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	for name, value := range b {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	s, err := store.Get(r, "s")
	must(t, err)
	return s, r, end
}

func (b browser) keep(w *httptest.ResponseRecorder) {
	for _, c := range w.Result().Cookies() {
		b[c.Name] = c.Value
	}
}

// TestTheLifeOfASession takes sessions from login to Revoke on every topology: enough
// of them for every slot range, every shard and every pair of them.
func TestTheLifeOfASession(t *testing.T) {
	for name, client := range clients(t) {
		t.Run(name, func(t *testing.T) { lifeOfASession(t, client) })
	}
}

func lifeOfASession(t *testing.T, client redis.UniversalClient) {
	plain := redistore.New(client, hashKey)
	lock := redistore.NewLockingStore(plain)
	must(t, lock.Ping(t.Context()))
	user := func(b browser) string {
		t.Helper()
		s, _, end := b.get(t, plain)
		defer end()
		user, _ := s.Values["user"].(string)
		return user
	}
	var all []browser
	for i := range 30 {
		var store sessions.Store = plain
		renew := plain.Renew
		if i%2 == 0 {
			store, renew = lock, lock.Renew
		}
		b := browser{}
		s, r, end := b.get(t, store)
		s.Values["user"] = "ann"
		s.Values["large"] = strings.Repeat("x", i%3*(16<<10)) // which the lock writes in a way of its own
		redistore.SetOwner(s, "ann")
		w := httptest.NewRecorder()
		must(t, s.Save(r, w))
		b.keep(w)
		end()

		s, r, end = b.get(t, store)
		must(t, s.Save(r, w))
		must(t, plain.Touch(r, w, s))
		old := browser{"s": b["s"]}
		w = httptest.NewRecorder()
		must(t, renew(r, w, s))
		b.keep(w)
		end()
		equal(t, "user", user(b), "ann")
		equal(t, "user of the old cookie", user(old), "")

		// Logout wins over a request that is running.
		s, _, end = old.get(t, store)
		equal(t, "IsNew", s.IsNew, true)
		end()
		if i%3 == 0 {
			s, r, end = b.get(t, store)
			out, or, outEnd := b.get(t, plain)
			out.Options.MaxAge = -1
			must(t, out.Save(or, httptest.NewRecorder()))
			outEnd()
			if err := s.Save(r, httptest.NewRecorder()); !errors.Is(err, redistore.ErrGone) {
				t.Errorf("Save after logout: %v", err)
			}
			end()
			continue
		}
		all = append(all, b)
	}

	listed := 0
	for _, err := range plain.Sessions(t.Context(), "ann") {
		must(t, err)
		listed++
	}
	equal(t, "listed", listed, len(all))
	s, _, end := all[0].get(t, plain)
	end()
	n, err := plain.Revoke(t.Context(), "ann", s.ID)
	must(t, err)
	equal(t, "ended", n, len(all)-1)
	for i, b := range all {
		equal(t, "is logged in", user(b) == "ann", i == 0)
	}
	n, err = plain.Revoke(t.Context(), "ann")
	must(t, err)
	equal(t, "ended", n, 1)
}

// TestNoUpdateIsLostOnAnyTopology increments one session from several goroutines.
func TestNoUpdateIsLostOnAnyTopology(t *testing.T) {
	for name, client := range clients(t) {
		t.Run(name, func(t *testing.T) {
			b, first := browser{}, redistore.NewLockingStore(redistore.New(client, hashKey))
			s, r, end := b.get(t, first)
			w := httptest.NewRecorder()
			must(t, s.Save(r, w))
			b.keep(w)
			end()
			var wg sync.WaitGroup
			for i := range 4 {
				store := first
				if i%2 == 1 {
					store = redistore.NewLockingStore(redistore.New(client, hashKey))
				}
				wg.Go(func() {
					for range 25 {
						ctx, end := context.WithCancel(t.Context())
						r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
						r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
						err := store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
							n, _ := s.Values["n"].(int)
							s.Values["n"] = n + 1
							return nil
						})
						end()
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			s, _, end = b.get(t, first.Store)
			end()
			equal(t, "n", s.Values["n"], 100)
		})
	}
}

// TestAFailoverNeedsNoRestart kills the primary: the same store goes on with the
// replica that the Sentinels promote, and the session that was replicated is there.
func TestAFailoverNeedsNoRestart(t *testing.T) {
	nodes, sentinels := topology.Sentinels(t, 1)
	client := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: topology.MasterName, SentinelAddrs: topology.Addrs(sentinels), ContextTimeoutEnabled: true,
	})
	defer client.Close()
	store := redistore.NewLockingStore(redistore.New(client, hashKey))
	b := browser{}
	s, r, end := b.get(t, store)
	s.Values["user"] = "ann"
	w := httptest.NewRecorder()
	must(t, s.Save(r, w))
	b.keep(w)
	end()
	c := nodes[1].Client()
	topology.Wait(t, "the session is replicated", func() error { return c.Get(t.Context(), "session_"+s.ID).Err() })

	nodes[0].Kill()
	start := time.Now()
	topology.Wait(t, "the session can be changed again", func() error {
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
		return store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
			if s.Values["user"] != "ann" {
				t.Errorf("after the failover the session is %+v", s)
			}
			s.Values["n"] = 1
			return nil
		})
	})
	t.Logf("the outage took %v", time.Since(start).Round(time.Millisecond))
	s, _, end = b.get(t, store.Store)
	end()
	equal(t, "values", []any{s.Values["user"], s.Values["n"]}, []any{"ann", 1})
}

// TestAShardThatIsDownKeepsItsSessions is why docs/production.md asks for a HeartbeatFn: by
// default a Ring moves the keys of a shard that is down to the others, where a logout
// finds nothing to delete, and moves them back later.
func TestAShardThatIsDownKeepsItsSessions(t *testing.T) {
	for name, keeps := range map[string]bool{"by default": false, "as docs/production.md has it": true} {
		t.Run(name, func(t *testing.T) {
			nodes, ring := ringOfTwo(t, keeps)
			store := redistore.New(ring, hashKey)
			b := browser{}
			s, r, end := b.get(t, store)
			defer end()
			w := httptest.NewRecorder()
			must(t, s.Save(r, w))
			b.keep(w)
			shard := nodes[0]
			if nodes[1].Client().Exists(t.Context(), "session_"+s.ID).Val() == 1 {
				shard = nodes[1]
			}

			shard.Kill()
			if !keeps {
				topology.Wait(t, "the Ring gives up the shard", shards(ring, 1))
			}
			r, w = httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
			r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
			s, _ = store.Get(r, "s")
			s.Options.MaxAge = -1
			told := s.Save(r, w)
			shard.Restart()
			topology.Wait(t, "the Ring has both shards", shards(ring, 2))
			s, _, end = b.get(t, store)
			defer end()
			if s.IsNew {
				t.Error("the session is gone, although its server was down at the logout")
			}
			if (told != nil) != keeps {
				t.Errorf("the logout, which did not reach the session: %v", told)
			}
		})
	}
}

// ringOfTwo has a HeartbeatFn if it is to keep the keys of a shard that is down.
func ringOfTwo(t *testing.T, keeps bool) ([]*topology.Node, *redis.Ring) {
	t.Helper()
	nodes := []*topology.Node{topology.Start(t, topology.Durable...), topology.Start(t, topology.Durable...)}
	options := &redis.RingOptions{
		Addrs:                 map[string]string{"one": nodes[0].Addr, "two": nodes[1].Addr},
		HeartbeatFrequency:    10 * time.Millisecond,
		ContextTimeoutEnabled: true,
	}
	if keeps {
		options.HeartbeatFn = func(context.Context, *redis.Client) bool { return true }
	}
	ring := redis.NewRing(options)
	t.Cleanup(func() { ring.Close() })
	return nodes, ring
}

func shards(ring *redis.Ring, want int) func() error {
	return func() error {
		if n := ring.Len(); n != want {
			return fmt.Errorf("%d shards", n)
		}
		return nil
	}
}
