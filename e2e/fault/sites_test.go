package fault

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/e2e/topology"
)

// A site is a topology with proxies in front of its servers.
type site struct {
	clients   clients
	nodes     []*topology.Node
	sentinels []*topology.Node
	proxies   []*proxy
	faults    []fault
	evicts    bool
	padding   int           // bytes in each session
	length    time.Duration // of a trial
	healthy   func() error  // that all of its servers are back in their roles
}

// sites are all of them.
var sites = []struct {
	name  string
	build func(t *testing.T) *site
}{
	{"one server", single},
	{"Sentinel", func(t *testing.T) *site { return sentinel(t) }},
	{"Sentinel, min-replicas-to-write 2", func(t *testing.T) *site {
		return sentinel(t, "--min-replicas-to-write", "2", "--min-replicas-max-lag", "1")
	}},
	{"Cluster of 3 and 3", cluster},
	{"Ring of 2", ring},
	{"one server, evicting", evicting},
	{"one server, evicting locks", evictingLocks},
}

func newSite(t *testing.T, kind string, nodes []*topology.Node, addrs []string, faults ...fault) *site {
	s := &site{nodes: nodes, padding: 400, length: *each, faults: slices.Concat(onAny, faults), healthy: func() error { return nil }}
	s.clients = clients{Kind: kind, Addrs: addrs, Via: map[string]string{}}
	for _, n := range nodes {
		p := newProxy(t, n.Addr)
		s.proxies = append(s.proxies, p)
		s.clients.Via[n.Addr] = p.Listen
	}
	return s
}

func single(t *testing.T) *site {
	n := topology.Start(t, topology.Durable...)
	return newSite(t, "single", []*topology.Node{n}, []string{n.Addr}, killServer, pauseServer)
}

// evicting is a server that drops sessions to make room.
func evicting(t *testing.T) *site {
	n := topology.Start(t, "--maxmemory-policy", "allkeys-lru")
	used, err := direct(n).InfoMap(context.Background(), "memory").Result()
	must(t, err)
	var bytes int
	_, err = fmt.Sscan(used["Memory"]["used_memory"], &bytes)
	must(t, err)
	must(t, direct(n).ConfigSet(context.Background(), "maxmemory", fmt.Sprint(bytes+6_000_000)).Err())
	s := newSite(t, "single", []*topology.Node{n}, []string{n.Addr})
	s.faults = []fault{flushScripts, pauseClient, killClient, pauseServer, lateAttempts, loseWakeUps}
	s.evicts, s.padding = true, 20_000
	return s
}

// evictingLocks is a server that keeps sessions, and drops what stands beside them.
func evictingLocks(t *testing.T) *site {
	s := single(t)
	s.faults = []fault{evictLocks, dropReplies, lateAttempts, pauseClient}
	return s
}

func ring(t *testing.T) *site {
	nodes := []*topology.Node{topology.Start(t, topology.Durable...), topology.Start(t, topology.Durable...)}
	return newSite(t, "ring", nodes, topology.Addrs(nodes), killServer, pauseServer)
}

func sentinel(t *testing.T, args ...string) *site {
	nodes, sentinels := topology.Sentinels(t, 2, append(args, topology.Durable...)...)
	s := newSite(t, "sentinel", nodes, topology.Addrs(sentinels), askSentinel, killPrimary, pausePrimary, cutReplicas)
	s.sentinels, s.length = sentinels, 2**each // a failover takes its time
	s.healthy = func() error {
		masters, err := s.masters()
		if err != nil {
			return err
		}
		for _, m := range masters { // s_down is what one of them thinks, and starts nothing
			if strings.Contains(m["flags"], "o_down") || strings.Contains(m["flags"], "failover_in_progress") {
				return fmt.Errorf("a Sentinel takes the primary for %s", m["flags"])
			}
		}
		primary, err := s.named(masters)
		if err != nil {
			return err
		}
		if err := inRoles(nodes, map[string]int{primary.Addr: 2}); err != nil {
			return fmt.Errorf("the primary should be %s: %w", primary.Addr, err)
		}
		return nil
	}
	return s
}

func cluster(t *testing.T) *site {
	nodes := topology.Cluster(t, 3, 1, topology.Durable...)
	s := newSite(t, "cluster", nodes, topology.Addrs(nodes), askReplica, killPrimary, pausePrimary, moveSlots)
	s.length = 2 * *each
	s.healthy = func() error {
		for _, n := range nodes {
			info, err := direct(n).ClusterInfo(context.Background()).Result()
			if err != nil {
				return err
			}
			for _, want := range []string{"cluster_state:ok", "cluster_slots_pfail:0", "cluster_slots_fail:0"} {
				if !strings.Contains(info, want) {
					return errors.New(info)
				}
			}
		}
		primaries := map[string]int{}
		for _, n := range nodes {
			if role(n) == "master" {
				primaries[n.Addr] = 1
			}
		}
		if len(primaries) != 3 {
			return fmt.Errorf("%d primaries", len(primaries))
		}
		return inRoles(nodes, primaries)
	}
	return s
}

// inRoles returns an error unless exactly these nodes are primaries, with so many
// replicas each, and all others follow.
func inRoles(nodes []*topology.Node, primaries map[string]int) error {
	for _, n := range nodes {
		info, err := direct(n).Info(context.Background(), "replication").Result()
		if err != nil {
			return err
		}
		want := []string{"role:slave", "master_link_status:up"}
		if replicas, ok := primaries[n.Addr]; ok {
			want = []string{"role:master", fmt.Sprintf("connected_slaves:%d", replicas)}
			for i := range replicas {
				want = append(want, fmt.Sprintf("slave%d:", i))
			}
			if strings.Count(info, "state=online") != replicas {
				return errors.New(info)
			}
		}
		for _, w := range want {
			if !strings.Contains(info, w) {
				return fmt.Errorf("%s: no %s in %s", n.Addr, w, info)
			}
		}
	}
	return nil
}

func role(n *topology.Node) string {
	info, _ := direct(n).Info(context.Background(), "replication").Result()
	if strings.Contains(info, "role:master") {
		return "master"
	}
	return "slave"
}

// masters is what each Sentinel says of the primary.
func (s *site) masters() (said []map[string]string, err error) {
	for _, n := range s.sentinels {
		c := redis.NewSentinelClient(&redis.Options{Addr: n.Addr})
		m, err := c.Master(context.Background(), topology.MasterName).Result()
		c.Close()
		if err != nil {
			return nil, err
		}
		said = append(said, m)
	}
	return said, nil
}

// primary is the server that all Sentinels name.
func (s *site) primary() (*topology.Node, error) {
	masters, err := s.masters()
	if err != nil {
		return nil, err
	}
	return s.named(masters)
}

func (s *site) named(masters []map[string]string) (*topology.Node, error) {
	named := map[string]bool{}
	for _, m := range masters {
		named[net.JoinHostPort(m["ip"], m["port"])] = true
	}
	if len(named) != 1 {
		return nil, fmt.Errorf("the Sentinels do not agree: %v", masters)
	}
	i := slices.IndexFunc(s.nodes, func(n *topology.Node) bool { return named[n.Addr] })
	return s.nodes[i], nil
}

// primaries are the servers that take writes.
func (s *site) primaries() (list []*topology.Node) {
	for _, n := range s.nodes {
		if role(n) == "master" {
			list = append(list, n)
		}
	}
	return list
}

// roles names the servers that take writes, and since which failover they do. A server
// without replicas has none.
func (s *site) roles() (roles string) {
	if len(s.nodes) < 3 {
		return ""
	}
	for _, n := range s.primaries() {
		info, _ := direct(n).InfoMap(context.Background(), "replication").Result()
		roles += n.Addr + " since " + info["Replication"]["master_replid"] + " "
	}
	return roles
}

// direct is a client that goes past the proxies, one for each node.
func direct(n *topology.Node) *redis.Client {
	c, ok := directs.Load(n)
	if !ok {
		c, _ = directs.LoadOrStore(n, redis.NewClient(&redis.Options{Addr: n.Addr, MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: time.Second}))
	}
	return c.(*redis.Client)
}

var directs sync.Map
