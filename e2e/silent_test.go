package e2e

import (
	"context"
	"net"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
)

// What docs/production.md says of the client's settings.
const (
	readTimeout     = time.Second
	connMaxIdleTime = 3 * time.Minute
)

// wires are the connections of one client, which may all die.
type wires struct {
	mu  sync.Mutex
	all []*wire
}

// A wire that is dead swallows what is sent, as a NAT or a firewall does that has forgotten a
// connection: nobody hears of it.
type wire struct {
	net.Conn
	dead atomic.Bool
}

func (w *wire) Write(b []byte) (int, error) {
	if w.dead.Load() {
		return len(b), nil
	}
	return w.Conn.Write(b)
}

func (all *wires) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: readTimeout}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn}
	all.mu.Lock()
	defer all.mu.Unlock()
	all.all = append(all.all, w)
	return w, nil
}

// die ends all connections that there are, in silence or with a reset.
func (all *wires) die(reset bool) (n int) {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, w := range all.all {
		if reset {
			_ = w.Conn.(*net.TCPConn).SetLinger(0)
			_ = w.Conn.Close()
		} else {
			w.dead.Store(true)
		}
	}
	n, all.all = len(all.all), nil
	return n
}

// TestConnectionsThatDiedAreReplaced within a call, on all kinds of client, with the settings
// of docs/production.md.
func TestConnectionsThatDiedAreReplaced(t *testing.T) {
	cluster := topology.Addrs(topology.Cluster(t, 3, 0))
	_, sentinels := topology.Sentinels(t, 1)
	one, two, three := topology.Start(t).Addr, topology.Start(t).Addr, topology.Start(t).Addr
	kinds := map[string]func(*wires) redis.UniversalClient{
		"single": func(w *wires) redis.UniversalClient {
			return redis.NewClient(&redis.Options{Addr: one, Dialer: w.dial, ContextTimeoutEnabled: true,
				ReadTimeout: readTimeout, ConnMaxIdleTime: connMaxIdleTime})
		},
		"Cluster": func(w *wires) redis.UniversalClient {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster, Dialer: w.dial, ContextTimeoutEnabled: true,
				ReadTimeout: readTimeout, ConnMaxIdleTime: connMaxIdleTime})
		},
		"Sentinel": func(w *wires) redis.UniversalClient {
			return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: topology.MasterName, SentinelAddrs: topology.Addrs(sentinels),
				Dialer: w.dial, ContextTimeoutEnabled: true, ReadTimeout: readTimeout, ConnMaxIdleTime: connMaxIdleTime})
		},
		"Ring": func(w *wires) redis.UniversalClient {
			return redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"two": two, "three": three}, Dialer: w.dial,
				HeartbeatFn:           func(context.Context, *redis.Client) bool { return true },
				ContextTimeoutEnabled: true, ReadTimeout: readTimeout, ConnMaxIdleTime: connMaxIdleTime})
		},
	}
	for name, open := range kinds {
		for _, reset := range []bool{false, true} {
			t.Run(map[bool]string{false: name + ", silent", true: name + ", reset"}[reset], func(t *testing.T) {
				t.Parallel()
				w := &wires{}
				client := open(w)
				defer client.Close()
				plain := redistore.New(client, hashKey)
				lock := redistore.NewLockingStore(plain)
				b := browser{}
				visit := func(store sessions.Store, change func(*sessions.Session)) {
					t.Helper()
					start := time.Now()
					s, r, end := b.get(t, store)
					defer end()
					change(s)
					rec := httptest.NewRecorder()
					must(t, s.Save(r, rec))
					b.keep(rec)
					if took := time.Since(start); took > 8*time.Second {
						t.Errorf("it took %v", took)
					}
				}
				visit(plain, func(s *sessions.Session) { s.Values["user"] = "ann" })
				for _, store := range []sessions.Store{plain, lock} {
					if w.die(reset) == 0 {
						t.Error("there was no connection")
					}
					visit(store, func(s *sessions.Session) {
						if s.IsNew || s.Values["user"] != "ann" {
							t.Errorf("the session is %+v", s)
						}
						w.die(reset) // and once more, between Get and Save
					})
				}
			})
		}
	}
}
