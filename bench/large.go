package main

import (
	"fmt"
	"time"
)

// A largeRow is what Redis computes for one locked request, beside the plain commands.
type largeRow struct {
	size    size
	plain   []float64 // of CPU time, for each round
	locked  []float64
	toPlain []float64
}

// The sizes of large sessions.
var largeSizes = []size{{"5 fields", 0}, {"16 KB", 16 << 10}, {"256 KB", 256 << 10}, {"1 MB", 1_000_000}}

// large compares Redis' CPU time of a read and a save, without and with the lock.
func (b *bench) large() error {
	for _, s := range largeSizes {
		r := largeRow{size: s}
		without, with := find(b.contenders, plain), find(b.contenders, locking)
		for round := -1; round < *rounds; round++ { // the first does not count
			var cpu [2]float64
			for i, c := range []contender{without, with} {
				crowd, err := c.crowd(s, 1)
				if err != nil {
					return err
				}
				got, err := b.measure(c, []string{save, locked}[i], crowd, 1, 2*(*slice))
				if err != nil {
					return fmt.Errorf("%s of %s: %w", c.name, s.name, err)
				}
				cpu[i] = float64(got.redis)
			}
			if round >= 0 {
				r.plain, r.locked = append(r.plain, cpu[0]), append(r.locked, cpu[1])
				r.toPlain = append(r.toPlain, cpu[1]/cpu[0])
			}
		}
		b.larger = append(b.larger, r)
	}
	head := []string{"session", "GET + SET XX, µs", "with the lock, µs", "to that"}
	return b.table("Large sessions: CPU time of Redis for a read and a save", head, func(add func(...any)) {
		for _, r := range b.larger {
			add(r.size.name, fmt.Sprintf("%.1f", us(time.Duration(median(r.plain)))), fmt.Sprintf("%.1f", us(time.Duration(median(r.locked)))),
				fmt.Sprintf("%.2f", median(r.toPlain)))
		}
	})
}
