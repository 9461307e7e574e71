// Package topology starts real redis-server processes for tests, alone, under
// Sentinels and as a Cluster, on free loopback ports and without persistence. They
// end with the test, each by its own process ID.
package topology

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/redisserver"
)

// A Node is one process.
type Node struct {
	*redisserver.Server

	t testing.TB
}

// Start starts a redis-server with these arguments, as redisserver.Start takes them.
func Start(t testing.TB, args ...string) *Node {
	t.Helper()
	return &Node{redisserver.StartFor(t, args...), t}
}

// Durable are the arguments of a node that keeps what it has acknowledged when it is
// killed and started again.
var Durable = []string{"--appendonly", "yes", "--appendfsync", "always"}

// Restart starts the process again after Kill: empty, unless it is Durable.
func (n *Node) Restart() {
	n.t.Helper()
	must(n.t, n.Server.Restart())
}

// Pause stops the process; Resume lets it go on.
func (n *Node) Pause()  { _ = redisserver.Pause(n.Process) }
func (n *Node) Resume() { _ = redisserver.Resume(n.Process) }

// Client returns a client of this very node.
func (n *Node) Client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: n.Addr, MaxRetries: -1})
	n.t.Cleanup(func() { c.Close() })
	return c
}

// Cluster starts a Cluster of that many primaries, and as many replicas for each, and
// returns its nodes: the primaries, then the replicas of the first, and so on.
func Cluster(t testing.TB, primaries, replicas int, args ...string) []*Node {
	t.Helper()
	ctx := context.Background()
	args = append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000"}, args...)
	var nodes []*Node
	for range primaries * (1 + replicas) {
		nodes = append(nodes, Start(t, args...))
	}
	host, port, _ := net.SplitHostPort(nodes[0].Addr)
	var ids []string
	for i, n := range nodes {
		c := n.Client()
		if i < primaries {
			must(t, c.ClusterAddSlotsRange(ctx, i*slots/primaries, (i+1)*slots/primaries-1).Err())
		}
		// So that no two start from the same epoch.
		must(t, c.Do(ctx, "cluster", "set-config-epoch", i+1).Err())
		must(t, c.ClusterMeet(ctx, host, port).Err())
		id, err := c.ClusterMyID(ctx).Result()
		must(t, err)
		ids = append(ids, id)
	}
	known := fmt.Sprintf("cluster_known_nodes:%d", len(nodes))
	for i, n := range nodes {
		c := n.Client()
		Wait(t, "the cluster knows its nodes", says(ctx, c.ClusterInfo, known))
		if i >= primaries {
			must(t, c.ClusterReplicate(ctx, ids[(i-primaries)/replicas]).Err())
		}
	}
	for i, n := range nodes {
		c := n.Client()
		Wait(t, "the cluster knows all of its slots", says(ctx, c.ClusterInfo, "cluster_state:ok"))
		if i >= primaries {
			Wait(t, "the replica is in sync", says(ctx, replication(c), "master_link_status:up"))
		}
	}
	return nodes
}

const slots = 16384 // of a Cluster

// says returns an error until the answer contains text.
func says(ctx context.Context, ask func(context.Context) *redis.StringCmd, text string) func() error {
	return func() error {
		answer, err := ask(ctx).Result()
		if err == nil && !strings.Contains(answer, text) {
			return fmt.Errorf("%s", answer)
		}
		return err
	}
}

func replication(c *redis.Client) func(context.Context) *redis.StringCmd {
	return func(ctx context.Context) *redis.StringCmd { return c.Info(ctx, "replication") }
}

// Addrs returns the addresses of nodes.
func Addrs(nodes []*Node) (addrs []string) {
	for _, n := range nodes {
		addrs = append(addrs, n.Addr)
	}
	return addrs
}

// MoveKeys moves a slot's keys to another node, as CLUSTER SETSLOT's documentation has it, and
// pauses after each step. What it returns tells nodes that the slot itself has moved: the new
// one first, then the old.
func MoveKeys(t testing.TB, slot int64, source, target *redis.Client, pause func()) (settle func(others ...*redis.Client)) {
	t.Helper()
	ctx := context.Background()
	sourceID, targetID := source.ClusterMyID(ctx).Val(), target.ClusterMyID(ctx).Val()
	must(t, target.Do(ctx, "cluster", "setslot", slot, "importing", sourceID).Err())
	must(t, source.Do(ctx, "cluster", "setslot", slot, "migrating", targetID).Err())
	pause()
	host, port, _ := net.SplitHostPort(target.Options().Addr)
	for {
		keys, err := source.ClusterGetKeysInSlot(ctx, int(slot), 1).Result()
		must(t, err)
		if len(keys) == 0 {
			break
		}
		must(t, source.Migrate(ctx, host, port, keys[0], 0, time.Second).Err())
		pause()
	}
	return func(others ...*redis.Client) {
		t.Helper()
		for _, c := range append([]*redis.Client{target, source}, others...) {
			must(t, c.Do(ctx, "cluster", "setslot", slot, "node", targetID).Err())
		}
	}
}

// MasterName is what the Sentinels call the primary.
const MasterName = "mymaster"

// Sentinels starts a primary with replicas under three Sentinels, which hold an
// election after half a second. The first of nodes is the primary.
func Sentinels(t testing.TB, replicas int, args ...string) (nodes, sentinels []*Node) {
	t.Helper()
	ctx := context.Background()
	nodes = []*Node{Start(t, args...)}
	host, port, _ := net.SplitHostPort(nodes[0].Addr)
	for range replicas {
		replica := Start(t, append([]string{"--replicaof", host + " " + port}, args...)...)
		Wait(t, "the replica is in sync", says(ctx, replication(replica.Client()), "master_link_status:up"))
		nodes = append(nodes, replica)
	}
	for i := range 3 {
		conf := filepath.Join(t.TempDir(), fmt.Sprintf("sentinel%d.conf", i))
		must(t, os.WriteFile(conf, fmt.Appendf(nil, `sentinel monitor %[1]s %s %s 2
sentinel down-after-milliseconds %[1]s 500
sentinel failover-timeout %[1]s 5000
`, MasterName, host, port), 0o600))
		s := Start(t, conf, "--sentinel")
		// Ten times as fast as by default to see what became of a server.
		must(t, s.Client().Do(ctx, "sentinel", "debug", "info-period", 1000, "publish-period", 200, "ask-period", 100).Err())
		sentinels = append(sentinels, s)
	}
	for _, s := range sentinels {
		c := s.Client()
		Wait(t, "the Sentinels know each other and the replicas", func() error {
			m, err := redis.NewSentinelClient(c.Options()).Master(ctx, MasterName).Result()
			if err == nil && (m["num-other-sentinels"] != "2" || m["num-slaves"] != fmt.Sprint(replicas)) {
				return fmt.Errorf("%v", m)
			}
			return err
		})
	}
	return nodes, sentinels
}

// Wait waits until ready returns no error, for 90 seconds.
func Wait(t testing.TB, what string, ready func() error) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not after 90 s: %s: %v", what, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
