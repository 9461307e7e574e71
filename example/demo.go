package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// demo is what an application would not have: servers to stop and a look into
// Redis.
type demo struct {
	balancer
	Host   string // of the balancer, with its port
	client redis.UniversalClient

	mini      *miniredis.Miniredis // nil: the Redis is the user's own
	switching sync.Mutex
	RedisOff  atomic.Bool
}

// newDemo returns a demonstration whose servers are not started yet.
func newDemo(client redis.UniversalClient, mini *miniredis.Miniredis, key []byte) *demo {
	d := &demo{client: client, mini: mini}
	for n := 1; n <= 3; n++ {
		// Each server has a store, as each process would. Keys and Redis are the same.
		store := redistore.NewLockingStore(redistore.New(client, key))
		store.KeyPrefix = "redistore_example_"
		store.MaxAge(30 * 60)        // seconds
		store.Options.Secure = false // because this example speaks plain HTTP
		d.Servers = append(d.Servers, &server{Number: n, handler: (&app{store, n, d}).handler()})
	}
	return d
}

// OwnRedis tells whether it is the one in memory.
func (d *demo) OwnRedis() bool { return d.mini != nil }

// record is what Redis has to say about a session.
type record struct {
	Key   string
	Bytes int64
	TTL   time.Duration
	Lock  time.Duration // what is left of it; negative: nobody holds it
}

func (d *demo) record(ctx context.Context, key string) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pipe := d.client.Pipeline()
	size, ttl, lock := pipe.StrLen(ctx, key), pipe.TTL(ctx, key), pipe.PTTL(ctx, "{"+key+"}:lock")
	_, err := pipe.Exec(ctx)
	return record{key, size.Val(), ttl.Val(), lock.Val()}, err
}
