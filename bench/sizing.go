package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

const owned = "redistore, with an owner"

// A memoryRow is what Redis needs for one session.
type memoryRow struct {
	store string
	size  size
	bytes float64 // of all its memory, with the tables that grow with the sessions
	usage float64 // what MEMORY USAGE says of the key
}

// memory fills a Redis with sessions and asks how much more it needs.
func (b *bench) memory() error {
	for _, s := range sizes {
		for _, name := range []string{theirs, scsStore, plain, owned} {
			r, err := fillWith(name, s)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			b.stored = append(b.stored, r)
		}
	}
	return b.table("Memory: what Redis needs for one session", []string{"session", "store", "bytes", "MEMORY USAGE"}, func(add func(...any)) {
		for _, r := range b.stored {
			add(r.size.name, r.store, fmt.Sprintf("%.0f", r.bytes), fmt.Sprintf("%.0f", r.usage))
		}
	})
}

// fillWith fills a Redis of its own.
func fillWith(name string, s size) (r memoryRow, err error) {
	server, err := startRedis()
	if err != nil {
		return r, err
	}
	defer server.stop()
	all, err := contenders(server.addr, nil)
	if err != nil {
		return r, err
	}
	n := *filling
	if s.n > 1<<10 {
		n = min(n, max(200, n<<10/s.n)) // 10 MB or more do
	}
	ctx := context.Background()
	used := func() (float64, error) {
		err := server.admin.ClientKillByFilter(ctx, "TYPE", "normal").Err() // with what connections need
		return server.info("memory", "used_memory"), err
	}
	before, errBefore := used()
	_, errFill := find(append(all, withOwner(server.addr)), name).crowd(s, n)
	after, errAfter := used()
	r = memoryRow{store: name, size: s, bytes: (after - before) / float64(n)}

	some, err := server.admin.RandomKey(ctx).Result()
	for err == nil && server.admin.Type(ctx, some).Val() != "string" { // an owner's index
		some, err = server.admin.RandomKey(ctx).Result()
	}
	r.usage = float64(server.admin.MemoryUsage(ctx, some).Val())
	return r, errors.Join(errBefore, errFill, errAfter, err)
}

// withOwner starts sessions that have an owner each, the most that this can cost.
func withOwner(addr string) contender {
	store := redistore.New(redis.NewClient(settings(addr, nil)), key)
	start := func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "session")
		if err == nil {
			visitorOf(r).fill(func(k string, v any) { s.Values[k] = v })
			redistore.SetOwner(s, fmt.Sprintf("user:%p", s)) // alive, so another one for each
			err = s.Save(r, w)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
	return contender{name: owned, does: map[string]func(*visitor) error{
		create: func(v *visitor) error { return v.serve(create, start) },
	}}
}

// What the table of sizes takes for granted, and says so.
const (
	everySoOften = 10 * time.Minute // each session has one request, which saves
	load         = 0.5              // of a core, so that there is room for peaks and for failures
	serverMemory = 16e9             // bytes of sessions in one Redis, so that a copy of it takes little time
	poolOfCore   = 10               // connections, go-redis' default for each core of a process
)

// sizing computes, from this run's figures, what many sessions need.
func (b *bench) sizing() error {
	if len(b.stored) == 0 {
		if err := b.memory(); err != nil {
			return err
		}
	}
	for _, work := range []string{read, save} {
		if b.find(work, sizes[0], many, plain).samples == nil {
			if err := b.compare(work, sizes[0], many); err != nil {
				return err
			}
		}
	}
	cost := func(work string, of func(sample) time.Duration) float64 { // seconds of CPU
		return b.find(work, sizes[0], many, plain).median(func(s sample) float64 { return of(s).Seconds() })
	}
	inRedis := func(s sample) time.Duration { return s.redis }
	inGo := func(s sample) time.Duration { return s.own }

	err := b.table(fmt.Sprintf("Sizing: requests per second and core, computed from the CPU time of %d concurrent requests, 5 fields", many),
		[]string{"work", "a core of Redis", "a core of Go, the handler's own work aside"}, func(add func(...any)) {
			for _, work := range []string{read, save} {
				add(work, fmt.Sprintf("%.0f", 1/cost(work, inRedis)), fmt.Sprintf("%.0f", 1/cost(work, inGo)))
			}
		})
	if err != nil {
		return err
	}
	title := fmt.Sprintf("Sizing: computed, not measured; each session has one read+save every %v; cores are loaded to %.0f %%, a Redis holds %.0f GB, a Go core has %d connections",
		everySoOften, 100*load, serverMemory/1e9, poolOfCore)
	head := []string{"sessions", "GB, 5 fields", "with an owner", "GB, 1 KB", "with an owner", "requests/s", "Redis cores", "Redis servers, 1 KB", "Go cores", "connections"}
	return b.table(title, head, func(add func(...any)) {
		for n := 1e4; n <= 1e8; n *= 10 {
			perSecond := n / everySoOften.Seconds()
			redisCores, goCores := perSecond*cost(save, inRedis)/load, math.Ceil(perSecond*cost(save, inGo)/load)
			gb := func(store string, s size) string { return fmt.Sprintf("%.3g", n*b.bytesOf(store, s)/1e9) }
			servers := math.Ceil(max(redisCores, n*b.bytesOf(plain, sizes[1])/serverMemory))
			add(fmt.Sprintf("%.0f", n), gb(plain, sizes[0]), gb(owned, sizes[0]), gb(plain, sizes[1]), gb(owned, sizes[1]),
				fmt.Sprintf("%.0f", perSecond), fmt.Sprintf("%.2g", redisCores), servers, goCores, poolOfCore*goCores)
		}
	})
}

func (b *bench) bytesOf(store string, s size) float64 {
	for _, r := range b.stored {
		if r.store == store && r.size == s {
			return r.bytes
		}
	}
	return 0
}
