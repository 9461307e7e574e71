package redistore

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// pings are the Ping of both stores, with all that they may ask Redis for.
func pings(t *testing.T, client redis.UniversalClient) map[string]error {
	store := New(client, hashKey)
	store.IdleTimeout = time.Minute
	return map[string]error{"Store": store.Ping(t.Context()), "LockingStore": NewLockingStore(store).Ping(t.Context())}
}

func TestPingLeavesNothing(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, err := range pings(t, srv.client(t)) {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		srv.forward(t, trialLife)
		srv.forward(t, time.Second)
		left, err := srv.admin.Keys(t.Context(), "*").Result()
		must(t, err)
		if len(left) > 0 {
			t.Errorf("after 11 seconds there is %q", left)
		}
	})
}

// TestPingSaysWhatToChange where Redis answers, and could not do the store's work.
func TestPingSaysWhatToChange(t *testing.T) {
	srv := startRedis(t)
	do := func(args ...any) {
		t.Helper()
		must(t, srv.admin.Do(t.Context(), args...).Err())
	}
	says := func(name, want string, client redis.UniversalClient) {
		t.Helper()
		for store, err := range pings(t, client) {
			if err == nil {
				t.Errorf("%s, %s: no error", name, store)
				continue
			}
			wantText(t, err, "redistore: ping: "+want)
		}
	}
	client := srv.client(t)

	do("config", "set", "maxmemory", "1", "maxmemory-policy", "noeviction")
	says("full memory", "the memory of Redis is full", client)
	do("config", "set", "maxmemory", "0")

	do("config", "set", "min-replicas-to-write", "1")
	says("too few replicas", "too few replicas", client)
	do("config", "set", "min-replicas-to-write", "0")

	do("replicaof", "127.0.0.1", "1")
	says("a replica", "this is a replica", client)
	do("replicaof", "no", "one")

	as := func(rule ...any) redis.UniversalClient {
		do(append([]any{"acl", "setuser", "app", "reset", "on", ">password"}, rule...)...)
		options := srv.options()
		options.Username, options.Password, options.MaxRetries = "app", "password", -1
		user := redis.NewClient(options)
		t.Cleanup(func() { user.Close() })
		return user
	}
	for _, name := range []string{"get", "set", "getex", "del", "exists", "expire", "eval", "evalsha", "zadd", "zrange", "zrem"} {
		says("without "+name, "the Redis user lacks a right", as("~*", "&*", "+@all", "-"+name))
	}
	says("another prefix", "the Redis user lacks a right", as("~app_*", "~{app_*", "+@all"))
	says("session keys only", "the Redis user lacks a right", as("~session_*", "+@all"))
	wrong := srv.options()
	wrong.Username, wrong.Password = "app", "another"
	stranger := redis.NewClient(wrong)
	defer stranger.Close()
	says("a wrong password", "Redis does not know this user and password", stranger)

	// What a user of the plain store alone need not have.
	for _, name := range []string{"lpos", "lpop", "rpush", "lrem", "pexpire", "strlen", "rename"} {
		store := New(as("~*", "&*", "+@all", "-"+name), hashKey)
		must(t, store.Ping(t.Context()))
		wantText(t, NewLockingStore(store).Ping(t.Context()), "the Redis user lacks a right")
	}
	// Servers that cannot wake one another poll.
	must(t, NewLockingStore(New(as("~*", "resetchannels", "+@all", "-publish", "-subscribe"), hashKey)).Ping(t.Context()))
}

// TestPingRefusesReplicas has clients that read from replicas, which may be behind.
func TestPingRefusesReplicas(t *testing.T) {
	for _, o := range []*redis.ClusterOptions{{ReadOnly: true}, {RouteByLatency: true}, {RouteRandomly: true}} {
		client := redis.NewClusterClient(o)
		defer client.Close()
		store := NewLockingStore(New(client, hashKey))
		wantErr(t, store.Ping(t.Context()), errReplicas)
		wantErr(t, store.Store.Ping(t.Context()), errReplicas)
	}
}
