package e2e

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/redistore/redistore"
)

// docs/production.md quotes this.
func Example_telemetry() {
	client := redis.NewClient(&redis.Options{Addr: "localhost:6379", ContextTimeoutEnabled: true})
	if err := redisotel.InstrumentTracing(client, redisotel.WithDBStatement(false)); err != nil {
		panic(err)
	}
	store := redistore.New(client, hashKey)
	_ = store
}

// TestTracesDoNotHaveTheSession shows why docs/production.md asks for WithDBStatement(false), and
// that it is enough: neither values nor IDs leave with a span, whatever the store does.
func TestTracesDoNotHaveTheSession(t *testing.T) {
	for name, c := range map[string]struct {
		options []redisotel.TracingOption
		leaks   bool
	}{
		"by default":                 {nil, true},
		"as docs/production.md says": {[]redisotel.TracingOption{redisotel.WithDBStatement(false)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			spans := tracetest.NewInMemoryExporter()
			to := redisotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)))
			client := redis.NewClient(&redis.Options{Addr: startRedis(t)})
			defer client.Close()
			must(t, redisotel.InstrumentTracing(client, append(c.options, to)...))
			ids := liveTraced(t, client)

			var text string
			for _, span := range spans.GetSpans() {
				text += fmt.Sprintln(span.Name, span.Attributes, span.Events, span.Status)
			}
			for _, step := range []string{"get", "set", "expire", "eval", "del"} {
				if !strings.Contains(text, step) {
					t.Errorf("no span is about %s:\n%s", step, text)
				}
			}
			for _, secret := range append(ids, "12 Elm Street") { // binary statements are in hexadecimal
				leaks := strings.Contains(text, secret) || strings.Contains(text, hex.EncodeToString([]byte(secret)))
				if leaks != c.leaks {
					t.Errorf("that the spans have %q in them is %t:\n%s", secret, leaks, text)
				}
			}
		})
	}
}

// liveTraced takes a session from login to logout, and returns the IDs that it had.
func liveTraced(t *testing.T, client *redis.Client) (ids []string) {
	plain := redistore.New(client, hashKey)
	lock := redistore.NewLockingStore(plain)
	b := browser{}
	for i, store := range []sessions.Store{plain, plain, lock, plain, plain} {
		b.visit(t, func(w http.ResponseWriter, r *http.Request) {
			s, err := store.Get(r, "s")
			must(t, err)
			s.Values["home"], s.Values["visit"] = "12 Elm Street", i
			switch i {
			case 3:
				must(t, plain.Touch(r, w, s))
				redistore.SetOwner(s, "ann")
				must(t, plain.Renew(r, w, s))
			case 4:
				s.Options.MaxAge = -1
				fallthrough
			default:
				must(t, s.Save(r, w))
			}
			ids = append(ids, s.ID)
		})
	}
	return ids
}
