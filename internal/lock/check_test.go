package lock

import (
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

var rounds = flag.Int("rounds", 100, "increments that each of the checker's callers tries")

// TestNoIncrementIsLostOrDoubled has several processes add one to a few numbers, at random
// with and without the lock, while requests and replies are lost, attempts arrive late, and
// Redis loses what it keeps beside the numbers.
func TestNoIncrementIsLostOrDoubled(t *testing.T) {
	s := realSite(t) // miniredis' time stands still, and a lock whose release is lost needs it
	for _, seed := range []uint64{1, rand.Uint64()} {
		c := &checker{t: t, site: s, acknowledged: map[string]int{}, unknown: map[string]int{}}
		var all sync.WaitGroup
		for i := range 6 {
			caller := &caller{checker: c, Rand: rand.New(rand.NewPCG(seed, uint64(i)))}
			client := (*redis.Client)(nil)
			caller.lock, client = s.process(t)
			caller.lock.large = []int{large, 0}[i%2]
			client.AddHook(hook(caller.fault))
			all.Go(func() {
				for range *rounds {
					caller.increment()
				}
			})
		}
		all.Wait()
		for _, key := range checked {
			n, _ := strconv.Atoi(s.value(t, key))
			if least, most := c.acknowledged[key], c.acknowledged[key]+c.unknown[key]; n < least || n > most {
				t.Errorf("seed %d, %s: %d, want %d to %d", seed, key, n, least, most)
			}
			if c.acknowledged[key] < *rounds/10 {
				t.Errorf("seed %d, %s: only %d increments were acknowledged", seed, key, c.acknowledged[key])
			}
		}
		must(t, s.admin.FlushDB(t.Context()).Err())
	}
}

var checked = []string{"a", "b", "c"}

type checker struct {
	t    *testing.T
	site *site

	mu                    sync.Mutex
	acknowledged, unknown map[string]int // increments by key
	late                  [][]any        // commands that have yet to arrive
}

// A caller is a process with one goroutine.
type caller struct {
	*checker
	*rand.Rand
	lock *Locker
	held sync.Mutex // guards Rand, as releases run in the background
}

func (c *caller) one(in int) bool {
	c.held.Lock()
	defer c.held.Unlock()
	return c.IntN(in) == 0
}

// fault loses a request or a reply, delivers a write later, and evicts.
func (c *caller) fault(_ context.Context, cmd redis.Cmder, send func() error) error {
	switch {
	case c.one(30): // the request is lost, or late
		if isWrite(cmd) && cmd.Name() == "eval" || isWrite(cmd) && c.one(2) {
			c.mu.Lock()
			c.late = append(c.late, cmd.Args())
			c.mu.Unlock()
		}
		return io.EOF
	case c.one(30):
		_ = send()
		return io.EOF
	case c.one(60):
		c.site.admin.Del(context.Background(), Keys(checked[0])[rand.IntN(3)])
	case c.one(10):
		c.deliver()
	}
	return send()
}

// deliver has a late command arrive.
func (c *caller) deliver() {
	c.mu.Lock()
	var args []any
	if len(c.late) > 0 {
		args, c.late = c.late[0], c.late[1:]
	}
	c.mu.Unlock()
	if args != nil {
		c.site.admin.Do(context.Background(), args...)
	}
}

func (c *caller) increment() {
	key := checked[rand.IntN(len(checked))]
	if c.one(2) {
		key = checked[0]
	}
	c.site.admin.SetNX(context.Background(), key, "0", time.Hour)
	ctx, end := context.WithCancel(context.Background())
	defer end()
	w := want(key)
	w.TTL = 50 * time.Millisecond // or each release that is lost would cost 10 s
	lease, v, err := c.lock.Acquire(ctx, w)
	if err != nil {
		return
	}
	if c.one(10) {
		end() // the client hangs up
	}
	if c.one(10) {
		lease.Release()
	}
	n, err := strconv.Atoi(string(v.Data))
	must(c.t, err)
	seen := v.Version
	for range 3 { // the handler repeats what failed
		seen, err = write(c.lock, key, lease, seen, strconv.Itoa(n+1))
		if err == nil || errors.Is(err, ErrConflict) || errors.Is(err, ErrLocked) {
			break
		}
		lease = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.acknowledged[key]++
	case errors.Is(err, ErrLocked):
	default: // also a conflict, if an earlier attempt may have been done
		c.unknown[key]++
	}
}
