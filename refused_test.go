package redistore

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestARefusedReleaseIsRepeated has requests end while Redis refuses to unlock: another
// script keeps it busy, or too few replicas are connected.
func TestARefusedReleaseIsRepeated(t *testing.T) {
	srv := startRedis(t, "--busy-reply-threshold", "50")
	answer := func() string {
		if err := srv.admin.Set(t.Context(), "any", "", time.Minute).Err(); err != nil {
			return err.Error()
		}
		return "OK"
	}
	for _, refusal := range []struct {
		text         string
		begin, cease func(*testing.T)
	}{
		{"BUSY ", func(t *testing.T) {
			go srv.admin.Eval(context.Background(), "while true do end", nil)
		}, func(t *testing.T) { must(t, srv.admin.ScriptKill(t.Context()).Err()) }},
		{"NOREPLICAS ", func(t *testing.T) { must(t, srv.admin.ConfigSet(t.Context(), "min-replicas-to-write", "1").Err()) },
			func(t *testing.T) { must(t, srv.admin.ConfigSet(t.Context(), "min-replicas-to-write", "0").Err()) }},
	} {
		t.Run(refusal.text, func(t *testing.T) {
			client := srv.client(t, func(o *redis.Options) { o.MaxRetries = -1 })
			refused := make(chan bool, 1)
			client.AddHook(hook{after: func(cmd redis.Cmder) {
				if redis.HasErrorPrefix(cmd.Err(), refusal.text) {
					select {
					case refused <- true:
					default:
					}
				}
			}})
			store := NewLockingStore(New(client, hashKey))
			b := login(t, store)
			r, end := b.lived(t)
			_, err := store.Get(r, "s")
			must(t, err)
			refusal.begin(t)
			eventually(t, refusal.text, func() bool { return strings.HasPrefix(answer(), refusal.text) })
			end()
			<-refused
			refusal.cease(t)
			eventually(t, "it serves", func() bool { return answer() == "OK" })
			start := time.Now()
			load(t, store, b)
			if took := time.Since(start); took > store.TTL/2 {
				t.Errorf("the session was locked for %v after its request", took)
			}
		})
	}
}

// TestAFullMemoryStillLocks has a session be free, and then held, while Redis has no memory
// left.
func TestAFullMemoryStillLocks(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	other, _ := srv.locking(t)
	b := login(t, store)
	must(t, srv.admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
	load(t, store, b)
	_, err := other.Get(b.request(t), "s") // a place in the queue takes memory
	wantText(t, err, "OOM")
	wantErr(t, err, ErrNotLoaded)
}
