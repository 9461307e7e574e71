package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// A target is what redistore set itself, and what came of it in this run.
type target struct {
	name   string
	want   string
	figure float64
	met    bool
}

func atLeast(name string, want, figure float64) target {
	return target{name, fmt.Sprintf("at least %.2f", want), figure, figure >= want}
}

func atMost(name string, want, figure float64) target {
	return target{name, fmt.Sprintf("at most %.2f", want), figure, figure <= want}
}

// targets are those that this run has figures for.
func (b *bench) targets() []target {
	all := slices.Concat(b.requestTargets(), b.lockTargets(), b.orderTargets())
	for _, r := range b.grew {
		if r.store == plain && r.stored > 1000 && r.stored*10 > *most {
			name := fmt.Sprintf("6. %s: time at %d sessions, to that at 1000 (boj's: %.2f)", r.work, r.stored, b.growthOfStore(theirs, r))
			all = append(all, atMost(name, 1.15, b.growthOf(r)))
		}
	}
	slices.SortStableFunc(all, func(x, y target) int { return cmp.Compare(x.name[0], y.name[0]) })
	return all
}

func (b *bench) growthOfStore(store string, like growthRow) float64 {
	for _, r := range b.grew {
		if r.store == store && r.work == like.work && r.stored == like.stored {
			return b.growthOf(r)
		}
	}
	return 0
}

func (b *bench) requestTargets() []target {
	var all []target
	small := sizes[0]
	// ratio adds a target on how one row's time is to another's, if both were measured.
	ratio := func(of, to row, make func(float64) target) {
		if len(of.samples) > 0 && len(to.samples) > 0 {
			all = append(all, make(of.to(to)))
		}
	}
	for _, c := range []struct {
		store string
		want  float64
	}{{plain, 2}, {pipelined, 5}, {cached, 8}} {
		ratio(b.find(read, small, many, theirs), b.find(read, small, many, c.store), func(f float64) target {
			return atLeast(fmt.Sprintf("1. read, %d concurrent: throughput of %s, to boj's", many, c.store), c.want, f)
		})
	}
	for _, work := range []string{read, save, create, logout} {
		if name, worst := b.worstTo(work, scsStore); name != "" {
			all = append(all, atMost("1. "+work+": time to that of scs, at its worst ("+name+")", 1, worst))
		}
	}
	ratio(b.find(read, small, 1, plain), b.find(read, small, 1, limit), func(f float64) target {
		return atMost("2. read, one at a time: time to that of a bare GET", 1.15, f)
	})
	ratio(b.find(save, small, 1, plain), b.find(save, small, 1, theirs), func(f float64) target {
		return atMost("3. read, change, save, one at a time: time to boj's", 0.55, f)
	})
	ratio(b.find(locked, small, 1, locking), b.find(locked, small, 1, theirs), func(f float64) target {
		return atMost("3. the same with the lock, to boj's without", 0.65, f)
	})
	allocations := func(work string, want float64) {
		if r := b.find(work, small, 1, plain); len(r.samples) > 0 {
			all = append(all, atMost("4. "+work+": allocations", want, r.median(func(s sample) float64 { return s.allocs })))
		}
	}
	allocations(read, 76)
	allocations(save, 120)
	ratio(b.find(read, sizes[3], 1, plain), b.find(read, sizes[2], 1, plain), func(f float64) target {
		return atMost("6. read: time of 256 KB, to 16 times that of 16 KB", 0.5, f/16)
	})
	return all
}

// worstTo is the case in which redistore is slowest beside another store.
func (b *bench) worstTo(work, store string) (name string, worst float64) {
	for _, r := range b.rows {
		other := b.find(work, r.size, r.concurrent, store)
		if r.work != work || r.store != plain || len(other.samples) == 0 {
			continue
		}
		if ratio := r.to(other); ratio > worst {
			name, worst = fmt.Sprintf("%s, %d concurrent", r.size.name, r.concurrent), ratio
		}
	}
	return name, worst
}

// lockTargets are those of many waiters with 1 ms of work.
func (b *bench) lockTargets() []target {
	var ours lockRow
	best := 0.0
	for _, r := range b.locked {
		switch {
		case r.waiters != many || r.hold == 0:
		case r.store == locking:
			ours = r
		case strings.Contains(r.store, tuned):
			best = max(best, medianOf(r.loops, lockSample.perSecond))
		}
	}
	if best == 0 || len(ours.loops) == 0 {
		return nil
	}
	commands := func(s lockSample) float64 { return s.commands }
	return []target{
		atLeast("5. lock: sections per second, to the best tuned rival's", 1.25, medianOf(ours.loops, lockSample.perSecond)/best),
		atMost("5. lock: commands per section", 3, math.Max(medianOf(ours.loops, commands), medianOf(ours.bursts, commands))),
		atLeast("5. lock: of a burst, served", float64(many), medianOf(ours.bursts, func(s lockSample) float64 { return float64(s.sections) })),
		atMost("5. lock: time of a burst, to the limit", 1.3, medianOf(ours.bursts, func(s lockSample) float64 { return b.toLimit(ours, s) })),
		atMost("5. lock: p99 wait of a burst, to its median", 2.2, medianOf(ours.bursts, func(s lockSample) float64 { return float64(s.p99) / float64(s.p50) })),
	}
}

// orderTargets are those of many processes, of many sessions and of large ones.
func (b *bench) orderTargets() []target {
	var all []target
	for _, r := range b.orders {
		if r.store != locking || r.fault != "" || r.processes != 8 || r.callers != 1 {
			continue
		}
		switch r.hold {
		case 20 * time.Millisecond:
			all = append(all,
				atMost("7. 8 processes, 20 ms: scripts per section", 4, r.scripts),
				atMost("7. 8 processes, 20 ms: longest wait, to perfect order", 1.5, r.toPerfect(b.roundTrip[r.hold])),
				atLeast("7. 8 processes, 20 ms: turns of the poorest, to the richest", 0.8, r.fair()),
				atLeast("7. 8 processes, 20 ms: throughput, to the limit", 0.9, r.toLimit(b.roundTrip[r.hold])))
		case 100 * time.Millisecond:
			all = append(all, atMost("7. 8 processes, 100 ms: scripts per section", 5.5, r.scripts))
		}
	}
	for _, r := range b.crowds {
		if r.sessions == 500 {
			name := fmt.Sprintf("8. 500 sessions waited for by %d processes: a bystander's request, to that without them", r.processes)
			all = append(all, atMost(name, 1.25, median(r.bystander)))
		}
	}
	for _, r := range b.larger {
		switch r.size.name {
		case "5 fields":
			all = append(all, atMost("9. Redis' CPU time with the lock, to the plain commands, 5 fields", 1.5, median(r.toPlain)))
		case "256 KB":
			all = append(all, atMost("9. Redis' CPU time with the lock, to the plain commands, 256 KB", 2, median(r.toPlain)))
		}
	}
	return all
}
