package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A sample is what one request took, as measured once.
type sample struct {
	wall, redis, own time.Duration // own: this process' CPU time
	allocs, bytes    float64
}

// A row is what one store took for one kind of work: a sample of each round.
type row struct {
	work       string
	size       size
	concurrent int
	store      string
	samples    []sample
	commands   float64 // sent to Redis
	net        float64 // bytes, both ways
}

// median of what a row's samples say.
func (r row) median(of func(sample) float64) float64 {
	var all []float64
	for _, s := range r.samples {
		all = append(all, of(s))
	}
	return median(all)
}

func (r row) wall() time.Duration {
	return time.Duration(r.median(func(s sample) float64 { return float64(s.wall) }))
}

// perSecond is how many of these requests there are in a second.
func (r row) perSecond() float64 { return float64(time.Second) / float64(r.wall()) }

// to is the median of what the time was to another's, in the same round.
func (r row) to(other row) float64 {
	var all []float64
	for i := range min(len(r.samples), len(other.samples)) {
		all = append(all, float64(r.samples[i].wall)/float64(other.samples[i].wall))
	}
	return median(all)
}

// median of no numbers is 0.
func median(all []float64) float64 { return quantile(all, 0.5) }

func quantile(all []float64, q float64) float64 {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// atOnce is how many requests are under way at the same time; the lock has no use for
// the last of them. Many is what most is said of.
var (
	atOnce = []int{1, 8, 64, 256}
	many   = atOnce[2]
)

// requests measures one kind of work: at all concurrencies with the smallest session,
// and where that says more, with all sizes at two of them.
func (b *bench) requests(work string) error {
	for _, s := range sizes {
		for _, n := range atOnce {
			if s.n > 0 && (n != 1 && n != many || work != read && work != save) {
				continue
			}
			if err := b.compare(work, s, n); err != nil {
				return err
			}
		}
	}
	head := []string{"work", "session", "concurrent", "store", "µs", "to boj", "requests/s", "allocs", "bytes", "commands", "net bytes", "Redis µs", "own µs"}
	return b.table("Each request: "+work, head, func(add func(...any)) {
		for _, r := range b.rows {
			if r.work != work {
				continue
			}
			us := func(of func(sample) time.Duration) string {
				return fmt.Sprintf("%.1f", r.median(func(s sample) float64 { return float64(of(s)) / float64(time.Microsecond) }))
			}
			add(r.work, r.size.name, r.concurrent, r.store,
				us(func(s sample) time.Duration { return s.wall }),
				fmt.Sprintf("%.2f", r.to(b.find(r.work, r.size, r.concurrent, theirs))),
				fmt.Sprintf("%.0f", r.perSecond()),
				fmt.Sprintf("%.0f", r.median(func(s sample) float64 { return s.allocs })),
				fmt.Sprintf("%.0f", r.median(func(s sample) float64 { return s.bytes })),
				fmt.Sprintf("%.1f", r.commands), fmt.Sprintf("%.0f", r.net),
				us(func(s sample) time.Duration { return s.redis }),
				us(func(s sample) time.Duration { return s.own }))
		}
	})
}

// find returns a row; one without samples if it was not measured.
func (b *bench) find(work string, s size, concurrent int, store string) row {
	for _, r := range b.rows {
		if r.work == work && r.size == s && r.concurrent == concurrent && r.store == store {
			return r
		}
	}
	return row{}
}

// compare measures all contenders in turns, A B C A B C, so that a machine that drifts
// is unfair to none.
func (b *bench) compare(work string, s size, concurrent int) error {
	var rows []row
	var crowds [][]*visitor
	var able []contender
	for i, c := range b.contenders {
		if !c.can(work, s) || strings.Contains(c.name, tuned) || c.name == unpinged && work == create {
			continue // tuned: there is nothing to wait for here
		}
		r := row{work: work, size: s, concurrent: concurrent, store: c.name}
		var err error
		if r.commands, r.net, err = b.traffic(b.metered[i], work, s); err != nil {
			return fmt.Errorf("%s, %s: %w", c.name, work, err)
		}
		crowd, err := c.crowd(s, concurrent)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", c.name, create, err)
		}
		rows, crowds, able = append(rows, r), append(crowds, crowd), append(able, c)
	}
	for round := -1; round < *rounds; round++ { // the first dials, and does not count
		took := *slice
		if round < 0 {
			took /= 10
		}
		for i, c := range able {
			got, err := b.measure(c, work, crowds[i], concurrent, took)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, work, err)
			}
			if round >= 0 {
				rows[i].samples = append(rows[i].samples, got)
			}
		}
	}
	b.rows = append(b.rows, rows...)
	return b.server.flush()
}

// crowd makes visitors that have a session each.
func (c contender) crowd(s size, n int) ([]*visitor, error) {
	all := make([]*visitor, n)
	for i := range all {
		all[i] = newVisitor(s)
	}
	_, err := drive(all, min(n, 16), once, func(_ int, v *visitor) (bool, error) { return true, c.does[create](v) })
	return all, err
}

// measure runs one contender for a while.
func (b *bench) measure(c contender, work string, crowd []*visitor, concurrent int, took time.Duration) (sample, error) {
	if work == logout {
		n := max(concurrent, int(took/(100*time.Microsecond))) // about what it takes
		var err error
		if crowd, err = c.crowd(crowd[0].size, n); err != nil {
			return sample{}, err
		}
	}
	runtime.GC()
	var before, after runtime.MemStats
	redis, own := b.server.cpu(), ownCPU()
	runtime.ReadMemStats(&before)
	start := time.Now()
	laps := 0
	if work == logout {
		laps = once
	}
	n, err := drive(crowd, concurrent, laps, func(i int, v *visitor) (bool, error) {
		if i > 0 && laps == 0 && time.Since(start) > took {
			return false, nil
		}
		return true, c.do(work, v)
	})
	wall := time.Since(start)
	runtime.ReadMemStats(&after)
	own, redis = ownCPU()-own, b.server.cpu()-redis
	if err == nil && work == logout {
		err = c.ended(crowd)
	}
	if err != nil {
		return sample{}, err
	}
	each := func(d time.Duration) time.Duration { return d / time.Duration(n) }
	return sample{
		wall: each(wall), redis: each(redis), own: each(own),
		allocs: float64(after.Mallocs-before.Mallocs) / float64(n),
		bytes:  float64(after.TotalAlloc-before.TotalAlloc) / float64(n),
	}, nil
}

// do does one request.
func (c contender) do(work string, v *visitor) error {
	if work == create {
		v.cookie, v.visits = "", 0
	}
	return c.does[work](v)
}

// ended checks that the cookies of those who logged out are worth nothing. CookieStore
// has no way to see to that.
func (c contender) ended(crowd []*visitor) error {
	if c.does[gone] == nil {
		return nil
	}
	_, err := drive(crowd, 1, once, func(_ int, v *visitor) (bool, error) { return true, c.does[gone](v) })
	return err
}

// traffic counts what a request sends to Redis and gets back, and how many commands
// that are, with a contender whose connections count.
func (b *bench) traffic(c contender, work string, s size) (commands, net float64, err error) {
	const n, warm = 20, 2
	crowd, err := c.crowd(s, 1)
	if work == logout && err == nil {
		crowd, err = c.crowd(s, n+warm)
	}
	if err != nil {
		return 0, 0, err
	}
	for i := range n + warm {
		if i == warm {
			b.meter.reset()
		}
		if err := c.do(work, crowd[i%len(crowd)]); err != nil {
			return 0, 0, err
		}
	}
	return float64(b.meter.commands.Load()) / n, float64(b.meter.bytes.Load()) / n, nil
}

const once = 1

// drive lets so many goroutines go round their share of the visitors, for so many laps
// (0: no end), or until step says that it is over. i counts the goroutine's steps.
func drive(crowd []*visitor, concurrent, laps int, step func(i int, v *visitor) (more bool, err error)) (int, error) {
	var done atomic.Int64
	var failure sync.Once
	var failed error
	var wg sync.WaitGroup
	for first := range min(concurrent, len(crowd)) {
		wg.Go(func() {
			i := 0
			for lap := 0; laps == 0 || lap < laps; lap++ {
				for j := first; j < len(crowd); j += concurrent {
					more, err := step(i, crowd[j])
					i++
					if err != nil {
						failure.Do(func() { failed = err })
					}
					if err != nil || !more {
						return
					}
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return int(done.Load()), failed
}
