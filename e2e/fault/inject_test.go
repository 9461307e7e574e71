package fault

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/redistore/redistore/e2e/topology"
	"github.com/redistore/redistore/internal/redisserver"
)

// A fault is something that goes wrong, and is over when do returns.
type fault struct {
	name      string
	do        func(x *trial)
	handsOver bool // a replica takes over, and has all writes
}

var (
	cutConnections = fault{name: "connections cut", do: func(x *trial) {
		p := x.proxy()
		p.Stop()
		x.calm(0, 200*time.Millisecond)
		must(x.t, p.Start())
	}}

	delay = fault{name: "slow network", do: func(x *trial) {
		ms := x.rng.IntN(300)
		x.toxic(fmt.Sprintf(`{"name":"a","type":"latency","stream":"downstream","attributes":{"latency":%d,"jitter":%d}}`, ms, ms/2),
			fmt.Sprintf(`{"name":"b","type":"latency","stream":"upstream","attributes":{"latency":%d,"jitter":%d}}`, ms, ms/2))
	}}

	dropReplies = fault{name: "replies dropped", do: func(x *trial) {
		x.toxic(`{"type":"timeout","stream":"downstream","toxicity":0.5,"attributes":{"timeout":0}}`)
	}}

	halfReplies = fault{name: "replies cut in half", do: func(x *trial) {
		x.toxic(fmt.Sprintf(`{"type":"limit_data","stream":"downstream","attributes":{"bytes":%d}}`, 1+x.rng.IntN(2*x.site.padding)))
	}}

	lateAttempts = fault{name: "first attempts late", do: func(x *trial) {
		x.toxicFor(600*time.Millisecond, time.Second, `{"type":"`+lateName+`","stream":"upstream","attributes":{"share":0.3}}`)
	}}

	flushScripts = fault{name: "SCRIPT FLUSH", do: func(x *trial) {
		x.onPrimaries(func(ctx context.Context, c *redis.Client) error { return c.ScriptFlush(ctx).Err() })
	}}

	killConnections = fault{name: "CLIENT KILL", do: func(x *trial) {
		x.onPrimaries(func(ctx context.Context, c *redis.Client) error {
			return c.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err()
		})
	}}

	fillMemory = fault{name: "memory full", do: func(x *trial) {
		x.onPrimaries(func(ctx context.Context, c *redis.Client) error { return c.ConfigSet(ctx, "maxmemory", "1").Err() })
		x.calm(50*time.Millisecond, 200*time.Millisecond)
		x.putBack(func(ctx context.Context, c *redis.Client) error { return c.ConfigSet(ctx, "maxmemory", "0").Err() })
	}}

	pauseClient = fault{name: "client stopped", do: func(x *trial) {
		m := x.member()
		_ = redisserver.Pause(m.cmd.Process)
		w := window{start: now()}
		x.calm(lease, 2*lease)
		_ = redisserver.Resume(m.cmd.Process)
		w.end = now()
		m.paused = append(m.paused, w)
	}}

	// Who waits for a lock is woken by a message. Those are lost with the connections on which
	// they come. Sentinels, which name theirs, keep them: without, they take the server for dead.
	loseWakeUps = fault{name: "wake-ups lost", do: func(x *trial) {
		for range 20 {
			x.onPrimaries(func(ctx context.Context, c *redis.Client) error {
				list, err := c.Do(ctx, "client", "list", "type", "pubsub").Text()
				for _, subscriber := range unnamed.FindAllStringSubmatch(list, -1) {
					err = cmp.Or(err, c.ClientKillByFilter(ctx, "ID", subscriber[1]).Err())
				}
				return err
			})
			x.calm(5*time.Millisecond, 25*time.Millisecond)
		}
	}}

	// Sentinels have a channel of their own.
	denyWakeUps = fault{name: "PUBLISH denied", do: func(x *trial) {
		x.deny("-publish", "resetchannels", "&__sentinel__:*")
	}}

	// Reading the index is allowed, and so is all that stands elsewhere.
	denyIndex = fault{name: "index denied", do: func(x *trial) {
		x.deny("resetkeys", "~session_[^o]*", "~{session_*", "%R~session_owner:*")
	}}

	// What stands where an owner's index was is no index for a while.
	plantIndex = fault{name: "index of a wrong type", do: func(x *trial) {
		var planted []string
		for range owners / 4 {
			sum := sha256.Sum256([]byte(fmt.Sprint("owner", x.rng.IntN(owners))))
			planted = append(planted, "session_owner:"+hex.EncodeToString(sum[:]))
		}
		each := func(script string) func(context.Context, *redis.Client) error {
			return func(ctx context.Context, c *redis.Client) error {
				for _, index := range planted {
					err := c.Eval(ctx, script, []string{index, "{" + index + "}:aside"}).Err()
					if err != nil && !redis.HasErrorPrefix(err, "MOVED ") { // it is another server's
						return err
					}
				}
				return nil
			}
		}
		x.onPrimaries(each(`if redis.call("TYPE", KEYS[1]).ok == "zset" then
	redis.call("RENAME", KEYS[1], KEYS[2])
	redis.call("SET", KEYS[1], "planted")
end
return 1`))
		x.calm(100*time.Millisecond, 300*time.Millisecond)
		x.putBack(each(`if redis.call("EXISTS", KEYS[2]) == 1 then redis.call("RENAME", KEYS[2], KEYS[1]) end
return 1`))
	}}

	// What expires soonest is evicted: first what stands beside the sessions, then ballast,
	// and the sessions if that is not enough.
	evictLocks = fault{name: "locks evicted", do: func(x *trial) {
		shed := window{start: now()}
		const pieces, size = 64, 128 << 10 // 8 MiB
		x.onPrimaries(func(ctx context.Context, c *redis.Client) error {
			pipe := c.Pipeline()
			for i := range pieces { // it lives longer than a version, and shorter than a session
				pipe.Set(ctx, fmt.Sprint("ballast", i), strings.Repeat("x", size), 10*time.Minute)
			}
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
			memory, err := c.InfoMap(ctx, "memory").Result()
			if err != nil {
				return err
			}
			var used int
			fmt.Sscan(memory["Memory"]["used_memory"], &used)
			for _, set := range [][2]string{{"maxmemory-samples", "64"}, {"maxmemory-policy", "volatile-ttl"}, {"maxmemory", fmt.Sprint(used - 2<<20)}} {
				if err := c.ConfigSet(ctx, set[0], set[1]).Err(); err != nil {
					return err
				}
			}
			return nil
		})
		x.calm(200*time.Millisecond, 500*time.Millisecond)
		x.onPrimaries(func(ctx context.Context, c *redis.Client) error {
			for _, set := range [][2]string{{"maxmemory", "0"}, {"maxmemory-policy", "noeviction"}} {
				if err := c.ConfigSet(ctx, set[0], set[1]).Err(); err != nil {
					return err
				}
			}
			left, err := c.Keys(ctx, "ballast*").Result()
			if err == nil && len(left) == 0 {
				err = errors.New("all ballast was evicted, so that sessions may be gone too")
			}
			if err != nil {
				return err
			}
			return c.Unlink(ctx, left...).Err()
		})
		shed.end = now()
		x.history.shed = append(x.history.shed, shed)
	}}

	// Somebody who is dead holds a session, and the process that waits for it is stopped, so
	// that the lock is reserved for one that does not come.
	stopWaiter = fault{name: "client stopped in the queue", do: func(x *trial) {
		name := "client stopped in the queue"
		for range 10 {
			m, began := x.stopWaiter()
			if m == nil {
				continue
			}
			x.calm(lease, 2*lease)
			_ = redisserver.Resume(m.cmd.Process)
			m.paused = append(m.paused, window{began, now()})
			return
		}
		x.faults[name]-- // nobody has waited
	}}

	killClient = fault{name: "client killed", do: func(x *trial) {
		m := x.member()
		m.cmd.Process.Kill()
		m.cmd.Wait()
		m.killed = now()
		x.crew = deleteMember(x.crew, m)
		x.hire()
	}}

	pauseServer = fault{name: "server stopped", do: func(x *trial) {
		n := x.node(x.site.nodes)
		n.Pause()
		x.calm(lease, 2*lease)
		n.Resume()
	}}

	killServer = fault{name: "server killed", do: func(x *trial) {
		n := x.node(x.site.nodes)
		n.Kill()
		x.calm(0, 200*time.Millisecond)
		n.Restart()
	}}

	killPrimary = fault{name: "primary killed", do: func(x *trial) {
		n := x.node(x.site.primaries())
		n.Kill()
		x.takenOver(n)
		n.Restart()
	}}

	pausePrimary = fault{name: "primary stopped", do: func(x *trial) {
		n := x.node(x.site.primaries())
		n.Pause()
		x.takenOver(n)
		n.Resume()
	}}

	// Killing their connections again and again keeps the replicas behind, as stopping
	// them would not: a socket's buffer goes on filling.
	cutReplicas = fault{name: "replicas cut off, primary killed", do: func(x *trial) {
		n := x.node(x.site.primaries())
		for range 20 {
			direct(n).ClientKillByFilter(context.Background(), "TYPE", "replica")
			x.calm(25*time.Millisecond, 50*time.Millisecond)
		}
		n.Kill()
		x.takenOver(n)
		n.Restart()
	}}

	askSentinel = fault{name: "SENTINEL FAILOVER", do: func(x *trial) {
		c := redis.NewSentinelClient(&redis.Options{Addr: x.site.sentinels[0].Addr})
		defer c.Close()
		var old *topology.Node
		// On a machine that is busy it may be at one of its own: INPROG.
		topology.Wait(x.t, "the Sentinel begins a failover", func() (err error) {
			if old, err = x.site.primary(); err != nil {
				return err
			}
			return c.Failover(context.Background(), topology.MasterName).Err()
		})
		x.takenOver(old)
	}}

	askReplica = fault{name: "CLUSTER FAILOVER", do: func(x *trial) {
		var replicas []*topology.Node
		for _, n := range x.site.nodes {
			if role(n) != "master" {
				replicas = append(replicas, n)
			}
		}
		n := x.node(replicas)
		asked := time.Time{}
		topology.Wait(x.t, "the replica has taken over", func() error {
			if role(n) == "master" {
				return nil
			}
			if time.Since(asked) > 6*time.Second { // Redis gives it up after 5, and has to be asked again
				asked = time.Now()
				must(x.t, direct(n).ClusterFailover(context.Background()).Err())
			}
			return fmt.Errorf("%s is a replica still", n.Addr)
		})
	}, handsOver: true}

	moveSlots = fault{name: "slots moved", do: func(x *trial) {
		primaries := x.site.primaries()
		i := x.rng.IntN(len(primaries))
		from, to := primaries[i], primaries[(i+1)%len(primaries)]
		key, err := direct(from).RandomKey(context.Background()).Result()
		if err != nil {
			return // it has none
		}
		slot := direct(from).ClusterKeySlot(context.Background(), key).Val()
		for range 10 {
			x.moveSlot(slot, from, to)
			if key, err = direct(from).RandomKey(context.Background()).Result(); err != nil {
				return
			}
			slot = direct(from).ClusterKeySlot(context.Background(), key).Val()
		}
	}}
)

// onAny are the faults of every topology.
var onAny = []fault{cutConnections, delay, dropReplies, halfReplies, flushScripts, killConnections, fillMemory, pauseClient, killClient,
	lateAttempts, loseWakeUps, denyWakeUps, denyIndex, plantIndex, stopWaiter}

// unnamed finds, in CLIENT LIST, the IDs of clients without a name.
var unnamed = regexp.MustCompile(`(?m)^id=(\d+) .* name= `)

func (x *trial) proxy() *proxy { return x.site.proxies[x.rng.IntN(len(x.site.proxies))] }

func (x *trial) member() *member { return x.crew[x.rng.IntN(len(x.crew))] }

func (x *trial) node(of []*topology.Node) *topology.Node { return of[x.rng.IntN(len(of))] }

func deleteMember(crew []*member, m *member) (rest []*member) {
	for _, other := range crew {
		if other != m {
			rest = append(rest, other)
		}
	}
	return rest
}

// toxic lets all proxies misbehave for a while.
func (x *trial) toxic(kinds ...string) {
	x.toxicFor(200*time.Millisecond, 500*time.Millisecond, kinds...)
}

func (x *trial) toxicFor(from, to time.Duration, kinds ...string) {
	for _, p := range x.site.proxies {
		for _, kind := range kinds {
			_, err := p.Toxics.AddToxicJson(strings.NewReader(kind))
			must(x.t, err)
		}
	}
	x.calm(from, to)
	for _, p := range x.site.proxies {
		p.Toxics.ResetToxics(context.Background())
	}
}

// onPrimaries does something, which may be done twice, to those who take writes. It waits where one
// lacks replicas, or has just been replaced.
func (x *trial) onPrimaries(do func(context.Context, *redis.Client) error) {
	for tries := 0; ; tries++ {
		var err error
		for _, n := range x.site.primaries() {
			err = cmp.Or(do(context.Background(), direct(n)), err)
		}
		if tries == 100 || !redis.HasErrorPrefix(err, "NOREPLICAS ") && !redis.HasErrorPrefix(err, "READONLY ") {
			must(x.t, err)
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// putBack ends a fault, see settle.
func (x *trial) putBack(undo func(context.Context, *redis.Client) error) {
	x.onPrimaries(undo)
	x.undo = append(x.undo, undo)
}

// settle waits until all servers are back in their roles, and then ends the fault once more, on
// each of them: one that has taken over meanwhile, or was replaced, may have it still.
func (x *trial) settle(fault string) {
	topology.Wait(x.t, "all servers are back in their roles after "+fault, x.site.healthy)
	for _, undo := range x.undo {
		for _, n := range x.site.nodes {
			if err := undo(context.Background(), direct(n)); !redis.HasErrorPrefix(err, "READONLY ") {
				must(x.t, err)
			}
		}
	}
	x.undo = nil
}

// deny takes rights away from the clients, for a while.
func (x *trial) deny(rules ...string) {
	x.onPrimaries(func(ctx context.Context, c *redis.Client) error { return c.ACLSetUser(ctx, "default", rules...).Err() })
	x.calm(100*time.Millisecond, 400*time.Millisecond)
	x.putBack(func(ctx context.Context, c *redis.Client) error {
		return c.ACLSetUser(ctx, "default", "allkeys", "allchannels", "allcommands").Err()
	})
}

// stopWaiter takes a session's lock and stops a process that waits for it. It returns nil if
// none does.
func (x *trial) stopWaiter() (m *member, began int64) {
	ctx := context.Background()
	id, _ := os.ReadFile(filepath.Join(x.shared, fmt.Sprint(2*x.rng.IntN(8)))) // a busy browser's, which takes the lock
	lock, queue := fmt.Sprintf("{session_%s}:lock", id), fmt.Sprintf("{session_%s}:queue", id)
	for _, n := range x.site.primaries() {
		c := direct(n)
		if c.Exists(ctx, "session_"+string(id)).Val() == 0 || !c.SetNX(ctx, lock, "nobody", lease).Val() {
			continue // it has ended, or it is another server's
		}
		for taken := time.Now(); time.Since(taken) < lease/2; time.Sleep(time.Millisecond) {
			first, err := c.LIndex(ctx, queue, 0).Result()
			if m = x.named(first); err != nil || m == nil {
				continue
			}
			began = now()
			_ = redisserver.Pause(m.cmd.Process)
			if c.LIndex(ctx, queue, 0).Val() == first {
				return m, began
			}
			_ = redisserver.Resume(m.cmd.Process)
		}
	}
	return nil, 0
}

// named returns the process that waits for locks by that name.
func (x *trial) named(name string) *member {
	for _, m := range x.crew {
		if is, err := os.ReadFile(m.log + ".name"); err == nil && string(is) == name {
			return m
		}
	}
	return nil
}

// takenOver waits until another server is the primary in place of this one.
func (x *trial) takenOver(old *topology.Node) {
	topology.Wait(x.t, "a replica has taken over", func() error {
		if x.site.sentinels != nil {
			n, err := x.site.primary()
			if err == nil && n == old {
				err = fmt.Errorf("%s is the primary still", n.Addr)
			}
			return err
		}
		primaries := 0
		for _, n := range x.site.nodes {
			if n != old && role(n) == "master" {
				primaries++
			}
		}
		if primaries != 3 {
			return fmt.Errorf("%d primaries", primaries)
		}
		return nil
	})
}

// moveSlot moves a slot with a pause in its midst.
func (x *trial) moveSlot(slot int64, from, to *topology.Node) {
	settle := topology.MoveKeys(x.t, slot, direct(from), direct(to), func() { x.calm(0, 20*time.Millisecond) })
	var all []*redis.Client
	for _, n := range x.site.primaries() {
		all = append(all, direct(n))
	}
	settle(all...)
}

// A proxy stands between the clients and one server.
type proxy struct{ *toxiproxy.Proxy }

var (
	toxic     *toxiproxy.ApiServer
	toxicOnce sync.Once
)

func newProxy(t *testing.T, addr string) *proxy {
	toxicOnce.Do(func() { toxic = toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()) })
	p := &proxy{toxiproxy.NewProxy(toxic, addr, "127.0.0.1:0", addr)}
	must(t, p.Start())
	t.Cleanup(p.Stop)
	return p
}
