package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// A crowdRow is what it costs that many sessions are waited for at once, because the process
// that held them is dead.
type crowdRow struct {
	sessions, processes int
	scripts             float64   // of those who wait, in a second
	bystander           []float64 // time of another session's locked request, to that without the crowd
	alone               time.Duration
	served              int
	last                time.Duration // after the locks had run out
}

var (
	crowdSessions  = []int{500, 5000}
	crowdProcesses = []int{1, 4}
	crowdLocks     = lockTTL // how long the dead process' locks last
)

// waitingCrowd lets a process die that holds many sessions, while others wait for each of them.
func (b *bench) waitingCrowd() error {
	for _, n := range crowdSessions {
		for _, processes := range crowdProcesses {
			r := crowdRow{sessions: n, processes: processes}
			if err := b.crowdedBy(&r); err != nil {
				return err
			}
			b.crowds = append(b.crowds, r)
		}
	}
	head := []string{"sessions", "processes that wait", "scripts/s", "a bystander's request, µs without", "with, to that", "p99, to that", "served", "all of them after the locks' end, ms"}
	return b.table(fmt.Sprintf("A crowd waits for sessions whose holder is dead; its locks last for %v; a bystander saves another session with the lock", crowdLocks), head, func(add func(...any)) {
		for _, r := range b.crowds {
			add(r.sessions, r.processes, fmt.Sprintf("%.0f", r.scripts), fmt.Sprintf("%.0f", us(r.alone)),
				fmt.Sprintf("%.2f", median(r.bystander)), fmt.Sprintf("%.2f", quantile(r.bystander, 0.99)), r.served, fmt.Sprintf("%.0f", ms(r.last)))
		}
	})
}

func (b *bench) crowdedBy(r *crowdRow) error {
	visitors, err := b.server.store(r.sessions)
	if err != nil {
		return err
	}
	defer b.server.flush()
	t := task{Addr: b.server.addr, Do: keep, For: crowdLocks}
	for _, v := range visitors {
		t.Cookies = append(t.Cookies, v.cookie)
	}
	by, err := find(b.contenders, locking).crowd(sizes[0], 1)
	if err != nil {
		return err
	}
	quiet, err := b.bystander(by[0], crowdLocks/8)
	if err != nil {
		return err
	}
	r.alone = time.Duration(median(quiet))

	workers, stop, err := startProcesses(1 + r.processes)
	if err != nil {
		return err
	}
	defer stop()
	if _, _, err := tell(workers[:1], t); err != nil {
		return err
	}
	held := time.Now()
	if err := workers[0].cmd.Process.Kill(); err != nil {
		return err
	}
	t.Do = waitFor
	if _, err := tellEach(workers[1:], func(int) task { return t }); err != nil {
		return err
	}
	time.Sleep(crowdLocks / 4) // until all of them wait
	before, errBefore := b.server.calls()
	start := time.Now()
	crowded, errBy := b.bystander(by[0], crowdLocks/4)
	took := time.Since(start)
	after, errAfter := b.server.calls()
	if err := errors.Join(errBefore, errBy, errAfter); err != nil {
		return err
	}
	if time.Since(held) > crowdLocks {
		return errors.New("the machine is too slow: the locks had run out before the bystander was measured")
	}
	r.scripts = float64(after.scripts-before.scripts-2*len(crowded)) / took.Seconds()
	for _, d := range crowded {
		r.bystander = append(r.bystander, d/float64(r.alone))
	}
	answers, err := hear(workers[1:], t)
	sum := sumOf(answers)
	r.served, r.last = sum.Requests, sum.Done.Sub(held.Add(crowdLocks))
	return err
}

// bystander says how long each of its requests took.
func (b *bench) bystander(v *visitor, limit time.Duration) (took []float64, err error) {
	c := find(b.contenders, locking)
	for start := time.Now(); time.Since(start) < limit; {
		began := time.Now()
		if err := c.do(locked, v); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(began)))
	}
	return took, nil
}

// keep and waitFor are a worker's tasks: to lock all sessions and hold them until the
// process ends; and to wait for each of them, read it, and let it go.
func (w *worker) queue(t task) (a answer, err error) {
	store := redistore.NewLockingStore(redistore.New(redis.NewClient(settings(t.Addr, nil)), key))
	store.TTL, store.Wait = t.For, 3*t.For
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, some := range slices.Collect(slices.Chunk(t.Cookies, chunkOf(t))) {
		all.Go(func() {
			for _, cookie := range some {
				ctx, end := context.WithCancel(context.Background())
				r := blank.WithContext(ctx)
				r.Header = map[string][]string{"Cookie": {cookie}}
				_, failed := store.Get(r, "session")
				mu.Lock()
				err = errors.Join(err, failed)
				a.Requests++
				a.Done = time.Now()
				if t.Do == keep {
					w.kept = append(w.kept, end) // nobody calls them
				} else {
					end()
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return a, err
}

// chunkOf: those who wait do so all at once.
func chunkOf(t task) int {
	if t.Do == waitFor {
		return 1
	}
	return max(1, len(t.Cookies)/16)
}
