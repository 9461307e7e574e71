package main

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/redistore/redistore"
)

// growers are measured while more and more sessions are stored. They read the same
// ones: redistore's keys and values are boj's.
var growers = []string{theirs, plain}

// A growthRow is what one request on any of so many sessions took.
type growthRow struct {
	stored int
	row
}

// A field is a Redis with so many sessions.
type field struct {
	stored   int
	all      []contender
	visitors []*visitor // of at most 100,000
}

// growth measures requests on random sessions, one at a time. Each number of sessions
// has a Redis of its own, so that all take turns.
func (b *bench) growth() error {
	var fields []field
	for n := 1000; n <= *most; n *= 10 {
		s, err := startRedis()
		if err != nil {
			return err
		}
		defer s.stop()
		f := field{stored: n}
		f.all, err = contenders(s.addr, nil)
		if err == nil {
			f.visitors, err = s.store(n)
		}
		if err != nil {
			return err
		}
		fields = append(fields, f)
	}
	for _, work := range []string{read, save} {
		if err := b.grown(fields, work); err != nil {
			return err
		}
	}
	head := []string{"stored", "work", "store", "µs", "to the fewest"}
	return b.table("Growth: a random one of so many sessions of 5 fields, one request at a time", head, func(add func(...any)) {
		for _, r := range b.grew {
			add(r.stored, r.work, r.store, fmt.Sprintf("%.1f", us(r.wall())), fmt.Sprintf("%.2f", b.growthOf(r)))
		}
	})
}

// grown measures one kind of work on all fields, in turns.
func (b *bench) grown(fields []field, work string) error {
	rows := make([]growthRow, len(fields)*len(growers))
	for round := -1; round < *rounds; round++ { // the first does not count
		for i := range rows {
			f, name := fields[i/len(growers)], growers[i%len(growers)]
			from := (max(round, 0)*len(rows) + i) * len(f.visitors) / (*rounds * len(rows)) // others each time
			got, err := b.measure(find(f.all, name), work, slices.Concat(f.visitors[from:], f.visitors[:from]), 1, *slice)
			if err != nil {
				return fmt.Errorf("%s, %s of %d sessions: %w", name, work, f.stored, err)
			}
			if rows[i].stored, rows[i].row.work, rows[i].row.store = f.stored, work, name; round >= 0 {
				rows[i].samples = append(rows[i].samples, got)
			}
		}
	}
	b.grew = append(b.grew, rows...)
	return nil
}

// growthOf is what a request takes, to what it took at the fewest sessions.
func (b *bench) growthOf(r growthRow) float64 {
	for _, first := range b.grew {
		if first.work == r.work && first.store == r.store {
			return r.to(first.row)
		}
	}
	return 0
}

// store puts n sessions into Redis as redistore would, and returns visitors of theirs,
// at most 100,000: as random as the IDs are.
func (s *server) store(n int) ([]*visitor, error) {
	session := sessions.NewSession(nil, "")
	newVisitor(sizes[0]).fill(func(k string, v any) { session.Values[k] = v })
	data, err := redistore.GobSerializer{}.Serialize(session)
	if err != nil {
		return nil, err
	}
	codecs := securecookie.CodecsFromPairs(key)
	stamp := strconv.FormatInt(time.Now().Unix(), 36)
	ctx := context.Background()
	var visitors []*visitor
	pipe := s.admin.Pipeline()
	for i := range n {
		random := make([]byte, 32)
		rand.Read(random) // never fails
		id := stamp + "." + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random)
		pipe.Set(ctx, "session_"+id, data, maxAge)
		if i%max(1, n/100_000) == 0 {
			cookie, err := securecookie.EncodeMulti("session", id, codecs...)
			if err != nil {
				return nil, err
			}
			v := newVisitor(sizes[0])
			v.cookie, v.visits = "session="+cookie, 1
			visitors = append(visitors, v)
		}
		if pipe.Len() == 1000 || i == n-1 {
			if _, err := pipe.Exec(ctx); err != nil {
				return nil, err
			}
		}
	}
	return visitors, nil
}

// A processRow is what so many client processes did together.
type processRow struct {
	processes int
	work      string
	store     string
	perSecond []float64
}

// processes spreads many concurrent requests over more and more client processes.
func (b *bench) processes() error {
	workers, stop, err := startProcesses(8)
	if err != nil {
		return err
	}
	defer stop()
	for n := 1; n <= len(workers); n *= 2 {
		for _, work := range []string{read, save} {
			stores := []string{theirs, plain, pipelined, limit}
			rows := make([]processRow, len(stores))
			for round := -1; round < *rounds; round++ { // the first dials, and does not count
				for i, name := range stores {
					t := task{Addr: b.server.addr, Do: loop, Store: name, Work: work, Concurrent: max(1, many/n), For: *slice}
					got, _, err := tell(workers[:n], t)
					if err != nil {
						return err
					}
					if rows[i].processes, rows[i].work, rows[i].store = n, work, name; round >= 0 {
						rows[i].perSecond = append(rows[i].perSecond, got.PerSecond)
					}
				}
			}
			b.spread = append(b.spread, rows...)
		}
	}
	err = b.table(fmt.Sprintf("Client processes: %d concurrent requests, 5 fields", many), []string{"processes", "work", "store", "requests/s"}, func(add func(...any)) {
		for _, r := range b.spread {
			add(r.processes, r.work, r.store, fmt.Sprintf("%.0f", median(r.perSecond)))
		}
	})
	if err != nil {
		return err
	}
	return b.server.flush()
}
