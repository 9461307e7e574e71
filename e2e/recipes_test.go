package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// The recipes of docs/recipes.md that need other libraries, each with a test.

// sessionMetrics are the lock's counters and the connections'.
func sessionMetrics(store *redistore.LockingStore, client *redis.Client) []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	counter := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value)
	}
	return []prometheus.Collector{
		gauge("session_lock_waiting", "Requests that wait for their session.", func() float64 { return float64(store.Stats().Waiting) }),
		counter("session_lock_waits_total", "Requests that had to wait.", func() float64 { return float64(store.Stats().Waits) }),
		counter("session_lock_wait_seconds_total", "How long they waited, in all.", func() float64 { return store.Stats().WaitTime.Seconds() }),
		counter("session_lock_refused_total", "Requests that waited in vain.", func() float64 { return float64(store.Stats().Refused) }),
		counter("session_lock_conflicts_total", "Saves refused because another had saved.", func() float64 { return float64(store.Stats().Conflicts) }),
		counter("session_lock_lapsed_total", "Sessions held for longer than TTL.", func() float64 { return float64(store.Stats().Lapsed) }),
		counter("session_lock_unwoken_total", "Wake-ups that did not come.", func() float64 { return float64(store.Stats().Unwoken) }),
		gauge("session_redis_connections", "Connections to Redis.", func() float64 { return float64(client.PoolStats().TotalConns) }),
		counter("session_redis_timeouts_total", "Waits for a connection that took too long.", func() float64 { return float64(client.PoolStats().Timeouts) }),
	}
}

func TestRecipePrometheus(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: startRedis(t), ContextTimeoutEnabled: true})
	defer client.Close()
	store := redistore.NewLockingStore(redistore.New(client, hashKey))
	store.Wait = 0
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(sessionMetrics(store, client)...)
	b := browser{}
	b.visit(t, func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "s")
		must(t, err)
		must(t, s.Save(r, w))
	})
	b.visit(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := store.Get(r, "s") // which holds it
		must(t, err)
		b.visit(t, func(w http.ResponseWriter, r *http.Request) {
			_, err := store.Get(r, "s")
			equal(t, "status", redistore.Status(err), http.StatusServiceUnavailable)
		})
	})
	must(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP session_lock_refused_total Requests that waited in vain.
# TYPE session_lock_refused_total counter
session_lock_refused_total 1
`), "session_lock_refused_total"))
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(w.Body.String(), "session_redis_connections 1") {
		t.Errorf("the page is\n%s", w.Body)
	}
}

// ending ends the request's context when its handler has returned, as net/http does and
// fasthttp's, which ends with the server, does not. That frees the session.
func ending(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, end := context.WithCancel(context.WithoutCancel(r.Context()))
		defer end()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// TestRecipeFiber has Fiber's adaptor call handlers that read and do not save.
func TestRecipeFiber(t *testing.T) {
	store := redistore.NewLockingStore(newStore(t, startRedis(t), hashKey))
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Post("/login", adaptor.HTTPHandler(ending(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "s")
		must(t, err)
		s.Values["user"] = "ann"
		must(t, store.Renew(r, w, s))
	}))))
	app.Get("/", adaptor.HTTPHandler(ending(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "s")
		user, _ := s.Values["user"].(string)
		w.WriteHeader(redistore.Status(err))
		io.WriteString(w, user)
	}))))
	l, err := net.Listen("tcp", "localhost:0")
	must(t, err)
	go app.Listener(l)
	defer app.Shutdown()
	send := func(method, path string, cookies []*http.Cookie) (string, []*http.Cookie) {
		r, err := http.NewRequest(method, "http://"+l.Addr().String()+path, nil)
		must(t, err)
		for _, c := range cookies {
			r.AddCookie(c)
		}
		response, err := http.DefaultClient.Do(r)
		must(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		must(t, err)
		return string(body), response.Cookies()
	}
	_, cookies := send("POST", "/login", nil)
	equal(t, "cookies", len(cookies), 1)
	for range 20 {
		user, _ := send("GET", "/", cookies)
		equal(t, "user", user, "ann")
	}
	equal(t, "requests that had to wait for TTL", store.Stats().Refused+store.Stats().Lapsed, 0)
}
