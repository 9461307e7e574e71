package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
)

// pingSays shows that both stores' Ping finds out what is wrong, each time.
func pingSays(t *testing.T, client redis.UniversalClient, want string) {
	t.Helper()
	store := redistore.New(client, hashKey)
	for name, ping := range map[string]func(context.Context) error{"Store": store.Ping, "LockingStore": redistore.NewLockingStore(store).Ping} {
		for range 10 { // keys of its own: on a Cluster, other slots each time
			err := ping(t.Context())
			if err == nil || !strings.HasPrefix(err.Error(), "redistore: ping: ") || !strings.Contains(err.Error(), want) {
				t.Fatalf("%s: got %v, want %q", name, err, want)
			}
		}
	}
}

// TestPingFindsAPlainClientOnACluster, also on one of a single node, whatever slots it has.
func TestPingFindsAPlainClientOnACluster(t *testing.T) {
	for _, primaries := range []int{1, 3} {
		for _, node := range topology.Cluster(t, primaries, 0) {
			pingSays(t, node.Client(), "this is a Redis Cluster: make the client with redis.NewClusterClient")
		}
	}
}

func TestPingFindsAReplica(t *testing.T) {
	nodes := topology.Cluster(t, 3, 1)
	pingSays(t, nodes[3].Client(), "redis.NewClusterClient") // which answers MOVED

	primary, replica := topology.Start(t), topology.Start(t)
	host, port, _ := strings.Cut(primary.Addr, ":")
	must(t, replica.Client().ReplicaOf(t.Context(), host, port).Err())
	topology.Wait(t, "the replica is in sync", func() error {
		info, err := replica.Client().Info(t.Context(), "replication").Result()
		if err == nil && !strings.Contains(info, "master_link_status:up") {
			err = errors.New(info)
		}
		return err
	})
	pingSays(t, replica.Client(), "this is a replica")
	must(t, redistore.New(primary.Client(), hashKey).Ping(t.Context()))
}

// TestPingFindsWhatTheServerLacks, as a managed Redis or a proxy may.
func TestPingFindsWhatTheServerLacks(t *testing.T) {
	for _, name := range []string{"EVAL", "EVALSHA", "ZADD"} {
		server := topology.Start(t, "--rename-command", name, "")
		pingSays(t, server.Client(), "this Redis lacks a command")
	}
	server := topology.Start(t, "--rename-command", "GETEX", "")
	store := redistore.New(server.Client(), hashKey)
	must(t, store.Ping(t.Context())) // which does without, if there is no IdleTimeout
	store.IdleTimeout = time.Minute
	if err := store.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "this Redis lacks a command") {
		t.Errorf("without GETEX: %v", err)
	}
}

// TestPingIsCheap compares it with PING, side by side.
func TestPingIsCheap(t *testing.T) {
	server := topology.Start(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr, ContextTimeoutEnabled: true})
	defer client.Close()
	lock := redistore.NewLockingStore(redistore.New(client, hashKey))
	var bare, ours time.Duration
	for range 200 {
		start := time.Now()
		must(t, client.Ping(t.Context()).Err())
		middle := time.Now()
		must(t, lock.Ping(t.Context()))
		bare, ours = bare+middle.Sub(start), ours+time.Since(middle)
	}
	t.Logf("PING takes %v, Ping of a LockingStore %v, which is %.1f times as long", bare/200, ours/200, float64(ours)/float64(bare))
	if ours/200 > 20*time.Millisecond {
		t.Errorf("Ping takes %v", ours/200)
	}
}
