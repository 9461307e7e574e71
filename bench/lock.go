package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// The locks of others, each around the load, change and save of redistore's plain store.
// Tuned are the pauses between their attempts: the short ones serve a burst best, the
// long ones more sections in a second, because whoever had the lock gets it again while
// the others sleep. Of 1 to 16 ms, and for redsync up to four times that, these were the
// best.
const (
	redsyncDefaults  = "redsync, defaults"
	redsyncShort     = "redsync, tuned: 1 to 4 ms"
	redsyncLong      = "redsync, tuned: 8 to 32 ms"
	redislockDefault = "redislock, defaults"
	redislockShort   = "redislock, tuned: 2 ms"
	redislockLong    = "redislock, tuned: 4 ms"
	tuned            = "tuned"
)

var lockers = []string{locking, redsyncDefaults, redsyncShort, redsyncLong, redislockDefault, redislockShort, redislockLong}

// lockTTL is how long each may hold a session: redistore's default.
const lockTTL = 10 * time.Second

// guarded makes them.
func guarded(client *redis.Client, store *redistore.Store) []contender {
	rs, locker := redsync.New(goredis.NewPool(client)), redislock.New(client)
	patient := func(least time.Duration) guard {
		return onRedsync(rs, redsync.WithTries(10_000), redsync.WithExpiry(lockTTL),
			redsync.WithRetryDelayFunc(func(int) time.Duration { return least + rand.N(3*least) }))
	}
	guards := map[string]guard{
		redsyncDefaults:  onRedsync(rs),
		redsyncShort:     patient(time.Millisecond),
		redsyncLong:      patient(8 * time.Millisecond),
		redislockDefault: onRedislock(locker, nil), // which does not wait at all
		redislockShort:   onRedislock(locker, redislock.LinearBackoff(2*time.Millisecond)),
		redislockLong:    onRedislock(locker, redislock.LinearBackoff(4*time.Millisecond)),
	}
	var all []contender
	for _, name := range lockers[1:] {
		all = append(all, gorilla(name, store, guards[name], locked))
	}
	return all
}

func onRedsync(rs *redsync.Redsync, options ...redsync.Option) guard {
	return func(ctx context.Context, cookie string, fn func() error) error {
		m := rs.NewMutex("lock_"+cookie, options...)
		if err := m.LockContext(ctx); err != nil {
			return err
		}
		err := fn()
		_, unlock := m.UnlockContext(ctx)
		return errors.Join(err, unlock)
	}
}

func onRedislock(client *redislock.Client, retry redislock.RetryStrategy) guard {
	return func(ctx context.Context, cookie string, fn func() error) error {
		lock, err := client.Obtain(ctx, "lock_"+cookie, lockTTL, &redislock.Options{RetryStrategy: retry})
		if errors.Is(err, context.DeadlineExceeded) { // it waits for as long as a lock lasts
			err = redislock.ErrNotObtained
		}
		if err != nil {
			return err
		}
		return errors.Join(fn(), lock.Release(ctx))
	}
}

// isRefusal tells that the lock was not to be had, for which a handler answers 503.
func isRefusal(err error) bool {
	var taken *redsync.ErrTaken
	return errors.As(err, &taken) || errors.Is(err, redsync.ErrFailed) || errors.Is(err, redislock.ErrNotObtained) ||
		errors.Is(err, redistore.ErrLocked)
}

// A lockRow is what one lock did for so many waiters.
type lockRow struct {
	store   string
	waiters int
	hold    time.Duration
	bursts  []lockSample
	loops   []lockSample
}

type lockSample struct {
	took     time.Duration // until the last was served
	sections int
	refused  int
	p50, p99 time.Duration // of the wait
	commands float64       // per section
}

func (s lockSample) perSecond() float64 { return float64(s.sections) / s.took.Seconds() }

func medianOf[T any](all []T, of func(T) float64) float64 {
	var numbers []float64
	for _, one := range all {
		numbers = append(numbers, of(one))
	}
	return median(numbers)
}

// locks compares the locks, in turns, with all waiters wanting one session: all at once,
// and again and again.
func (b *bench) locks() error {
	workers, stop, err := startProcesses(2)
	if err != nil {
		return err
	}
	defer stop()
	holds := []time.Duration{0, time.Millisecond}
	b.roundTrip = map[time.Duration]time.Duration{}
	for _, hold := range holds {
		if b.roundTrip[hold], err = b.ping(hold); err != nil {
			return err
		}
	}
	for _, waiters := range atOnce[:3] {
		for _, hold := range holds {
			if err := b.compareLocks(workers, waiters, hold); err != nil {
				return err
			}
		}
	}
	head := []string{"waiters", "work", "lock", "burst ms", "to the limit", "served", "burst wait p50 ms", "p99 ms", "commands/section",
		"sections/s", "refused", "wait p50 ms", "p99 ms", "commands/section"}
	title := fmt.Sprintf("The lock: one session, waiters in 2 processes; the limit is waiters x (work + 2 round trips, of %.0f µs, and of %.0f µs after 1 ms)",
		us(b.roundTrip[0]), us(b.roundTrip[time.Millisecond]))
	return b.table(title, head, func(add func(...any)) {
		for _, r := range b.locked {
			burst := func(of func(lockSample) float64) float64 { return medianOf(r.bursts, of) }
			loop := func(of func(lockSample) float64) float64 { return medianOf(r.loops, of) }
			add(r.waiters, r.hold, r.store,
				fmt.Sprintf("%.1f", burst(func(s lockSample) float64 { return ms(s.took) })),
				fmt.Sprintf("%.2f", burst(func(s lockSample) float64 { return b.toLimit(r, s) })),
				fmt.Sprintf("%.0f", burst(func(s lockSample) float64 { return float64(s.sections) })),
				fmt.Sprintf("%.2f", burst(func(s lockSample) float64 { return ms(s.p50) })),
				fmt.Sprintf("%.2f", burst(func(s lockSample) float64 { return ms(s.p99) })),
				fmt.Sprintf("%.1f", burst(func(s lockSample) float64 { return s.commands })),
				fmt.Sprintf("%.0f", loop(lockSample.perSecond)),
				fmt.Sprintf("%.0f", loop(func(s lockSample) float64 { return float64(s.refused) })),
				fmt.Sprintf("%.2f", loop(func(s lockSample) float64 { return ms(s.p50) })),
				fmt.Sprintf("%.2f", loop(func(s lockSample) float64 { return ms(s.p99) })),
				fmt.Sprintf("%.1f", loop(func(s lockSample) float64 { return s.commands })))
		}
	})
}

// toLimit is how much longer a burst took than it must.
func (b *bench) toLimit(r lockRow, s lockSample) float64 {
	return float64(s.took) / float64(time.Duration(r.waiters)*(r.hold+2*b.roundTrip[r.hold]))
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// ping is what one bare command takes while nobody else sends any, after a pause: it
// takes longer to wake than to answer.
func (b *bench) ping(pause time.Duration) (time.Duration, error) {
	var all []float64
	for range 500 {
		time.Sleep(pause)
		start := time.Now()
		if err := b.server.admin.Ping(context.Background()).Err(); err != nil {
			return 0, err
		}
		all = append(all, float64(time.Since(start)))
	}
	return time.Duration(median(all)), nil
}

func (b *bench) compareLocks(workers []*process, waiters int, hold time.Duration) error {
	workers = workers[:min(waiters, len(workers))]
	rows := make([]lockRow, len(lockers))
	for i, name := range lockers {
		rows[i] = lockRow{store: name, waiters: waiters, hold: hold}
	}
	for round := -1; round < *rounds; round++ { // the first dials, and does not count
		for i, name := range lockers {
			t := task{Addr: b.server.addr, Store: name, Work: locked, Concurrent: waiters / len(workers), Hold: hold, For: *lockSlice}
			if round < 0 {
				t.For /= 10
			}
			for _, do := range []string{burst, loop} {
				t.Do = do
				s, err := b.contend(workers, t)
				switch {
				case err != nil:
					return err
				case round < 0:
				case do == burst:
					rows[i].bursts = append(rows[i].bursts, s)
				default:
					rows[i].loops = append(rows[i].loops, s)
				}
			}
		}
	}
	b.locked = append(b.locked, rows...)
	return b.server.flush()
}

// contend has workers do it to one new session, and checks that no update was lost.
func (b *bench) contend(workers []*process, t task) (lockSample, error) {
	store := redistore.New(b.server.admin, key)
	v := newVisitor(sizes[0])
	if err := gorilla(plain, store, nil).do(create, v); err != nil {
		return lockSample{}, err
	}
	t.Cookie = v.cookie
	got, start, err := tell(workers, t)
	if err != nil {
		return lockSample{}, err
	}
	visits := 0
	if err := v.visit(store, func(s *sessions.Session) { visits, _ = s.Values["visits"].(int) }); err != nil {
		return lockSample{}, err
	}
	if visits != 1+got.Requests {
		return lockSample{}, fmt.Errorf("%s: %d sections were acknowledged, %d were counted", t.Store, got.Requests, visits-1)
	}
	var waits []float64
	for _, wait := range got.Waits {
		waits = append(waits, float64(wait))
	}
	n := max(1, got.Requests)
	return lockSample{
		took: got.Done.Sub(start), sections: got.Requests, refused: got.Refused,
		p50: time.Duration(quantile(waits, 0.5)), p99: time.Duration(quantile(waits, 0.99)),
		commands: float64(got.Commands) / float64(n),
	}, nil
}
