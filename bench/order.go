package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore"
)

// What becomes of a process, or of its wake-ups, while others want the same session.
const (
	waiting   = "a waiter is killed"
	holding   = "the holder is killed"
	deaf      = "subscriptions are killed"
	forbidden = "PUBLISH is forbidden"
)

// An orderRow is how one lock served several processes that want one session.
type orderRow struct {
	processes, callers int
	hold               time.Duration
	store              string
	fault              string // "": none

	took              time.Duration
	sections, refused int
	longest           time.Duration // wait
	poorest, richest  int           // turns of a process
	scripts, commands float64       // per section; commands with those within scripts
}

// toLimit is the throughput, to that of sections which follow one another without a pause.
func (r orderRow) toLimit(roundTrip time.Duration) float64 {
	return float64(r.sections) * float64(r.hold+2*roundTrip) / float64(r.took)
}

// toPerfect is the longest wait, to that of a line which everybody joins again at its end.
func (r orderRow) toPerfect(roundTrip time.Duration) float64 {
	perfect := time.Duration(r.processes*r.callers-1) * (r.hold + 2*roundTrip)
	return float64(r.longest) / float64(perfect)
}

func (r orderRow) fair() float64 { return float64(r.poorest) / float64(max(1, r.richest)) }

// The cases of order.
var (
	orderProcesses = []int{2, 8, 16}
	orderHolds     = []time.Duration{time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond}
	orderLocks     = []string{locking, redsyncDefaults, redsyncLong, redislockLong}
	orderFaults    = []string{waiting, holding, deaf, forbidden}
	orderTurns     = 10 // that each caller has, at least, if all are served alike
)

// order has several processes want one session again and again, for as long as each lock
// needs to give them ten turns.
func (b *bench) order() error {
	workers, stop, err := startProcesses(slices.Max(orderProcesses))
	if err != nil {
		return err
	}
	defer func() { stop() }()
	b.roundTrip = map[time.Duration]time.Duration{}
	for _, hold := range orderHolds {
		if b.roundTrip[hold], err = b.ping(min(hold, time.Millisecond)); err != nil {
			return err
		}
	}
	for _, hold := range orderHolds {
		for _, n := range orderProcesses {
			for _, callers := range []int{1, 2} {
				for _, name := range orderLocks {
					r := orderRow{processes: n, callers: callers, hold: hold, store: name}
					if err := b.ordered(workers[:n], &r); err != nil {
						return err
					}
					b.orders = append(b.orders, r)
				}
			}
		}
	}
	for _, fault := range orderFaults {
		stop() // one of them may be dead
		if workers, stop, err = startProcesses(8); err != nil {
			return err
		}
		r := orderRow{processes: 8, callers: 1, hold: 20 * time.Millisecond, store: locking, fault: fault}
		if err := b.ordered(workers, &r); err != nil {
			return err
		}
		b.orders = append(b.orders, r)
	}
	head := []string{"processes", "callers each", "work", "lock", "sections", "refused", "to the limit", "longest wait ms", "to perfect order",
		"poorest turns", "richest", "scripts/section", "all commands/section"}
	return b.table("Many processes want one session; the limit is work + 2 round trips; a killed holder's lock lasts for "+lockTTL.String(), head, func(add func(...any)) {
		for _, r := range b.orders {
			name := r.store
			if r.fault != "" {
				name += ": " + r.fault
			}
			add(r.processes, r.callers, r.hold, name, r.sections, r.refused, fmt.Sprintf("%.2f", r.toLimit(b.roundTrip[r.hold])),
				fmt.Sprintf("%.0f", ms(r.longest)), fmt.Sprintf("%.2f", r.toPerfect(b.roundTrip[r.hold])), r.poorest, r.richest,
				fmt.Sprintf("%.1f", r.scripts), fmt.Sprintf("%.1f", r.commands))
		}
	})
}

// ordered measures one row, and checks that no update was lost.
func (b *bench) ordered(workers []*process, r *orderRow) error {
	store := redistore.New(b.server.admin, key)
	v := newVisitor(sizes[0])
	if err := gorilla(plain, store, nil).do(create, v); err != nil {
		return err
	}
	callers := r.processes * r.callers
	t := task{Addr: b.server.addr, Do: loop, Store: r.store, Work: locked, Cookie: v.cookie, Concurrent: r.callers, Hold: r.hold,
		For: max(5*(*lockSlice), time.Duration(orderTurns*callers)*r.hold)}
	if r.fault == holding {
		t.For += lockTTL
	}
	before, err := b.server.calls()
	if err != nil {
		return err
	}
	all, start, err := b.withFault(workers, t, r.fault)
	if err != nil {
		return err
	}
	after, err := b.server.calls()
	if err != nil {
		return err
	}
	visits := 0
	if err := v.visit(store, func(s *sessions.Session) { visits, _ = s.Values["visits"].(int) }); err != nil {
		return err
	}
	sum, dead := sumOf(all), len(workers)-len(all)
	if lost := 1 + sum.Requests - visits; lost > 0 || dead == 0 && lost != 0 {
		return fmt.Errorf("%s: %d sections were acknowledged, %d were counted", r.store, sum.Requests, visits-1)
	}
	r.sections, r.refused, r.took, r.longest, r.poorest = sum.Requests, sum.Refused, sum.Done.Sub(start), slices.Max(sum.Waits), sum.Requests
	for _, a := range all {
		r.poorest, r.richest = min(r.poorest, a.Requests), max(r.richest, a.Requests)
	}
	r.scripts = float64(after.scripts-before.scripts) / float64(r.sections)
	r.commands = float64(after.all-before.all) / float64(r.sections)
	return nil
}

// withFault has workers do a task while something happens, and returns the answers of those
// who are alive.
func (b *bench) withFault(workers []*process, t task, fault string) ([]answer, time.Time, error) {
	ctx := context.Background()
	switch fault {
	case waiting, holding:
		doomed := t
		doomed.Dies = fault
		start, err := tellEach(workers, func(i int) task {
			if i == 0 {
				return doomed
			}
			return t
		})
		if err != nil {
			return nil, start, err
		}
		if _, err := hear(workers[:1], t); !errors.Is(err, io.EOF) {
			return nil, start, fmt.Errorf("%s, but lives: %v", fault, err)
		}
		all, err := hear(workers[1:], t)
		return all, start, err
	case deaf:
		stop := time.AfterFunc(t.For/2, func() { b.server.admin.ClientKillByFilter(ctx, "TYPE", "pubsub") })
		defer stop.Stop()
	case forbidden:
		if err := b.server.admin.Do(ctx, "ACL", "SETUSER", "default", "resetchannels").Err(); err != nil {
			return nil, time.Time{}, err
		}
		defer b.server.admin.Do(ctx, "ACL", "SETUSER", "default", "allchannels")
	}
	start, err := tellEach(workers, func(int) task { return t })
	if err != nil {
		return nil, start, err
	}
	all, err := hear(workers, t)
	return all, start, err
}

// calls are how many commands a Redis has run so far.
type calls struct{ all, scripts int }

func (s *server) calls() (c calls, err error) {
	text, err := s.admin.Info(context.Background(), "commandstats").Result()
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		number, _, _ := strings.Cut(rest, ",")
		n, err := strconv.Atoi(number)
		if err != nil || name == "info" {
			continue
		}
		c.all += n
		if name == "eval" || name == "evalsha" {
			c.scripts += n
		}
	}
	return c, err
}

// die ends this process as kill -9 does.
func die() {
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Kill()
	}
	select {}
}
