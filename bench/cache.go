package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// A staleRow is how late a client with client-side caching saw what another process
// did to a session.
type staleRow struct {
	do    string
	busy  bool
	late  []float64 // ns; 0: the first read after the acknowledgement saw it
	stale int       // reads after that which did not
}

// staleness has a reader read one session without pause while another process ends or
// changes it, and asks until when an old value was seen. What counts is reads that began
// after the other process had its acknowledgement.
func (b *bench) staleness() error {
	workers, stop, err := startProcesses(1)
	if err != nil {
		return err
	}
	defer stop()
	client := caching(b.server.addr, nil)
	defer client.Close()
	for _, busy := range []bool{false, true} {
		end, err := b.bustle(client, busy)
		if err != nil {
			return err
		}
		for _, do := range []string{signOff, revoking, change} {
			r := staleRow{do: do, busy: busy}
			for i := range *trials {
				late, stale, err := b.trial(workers, client, do, fmt.Sprintf("user:%s:%t:%d", do, busy, i))
				if err != nil {
					return errors.Join(err, end())
				}
				r.late = append(r.late, float64(late))
				r.stale += stale
			}
			b.stale = append(b.stale, r)
		}
		if err := end(); err != nil {
			return err
		}
	}
	head := []string{"another process", "reader's client", "trials", "seen at once", "late p50 ms", "p99 ms", "longest ms", "stale reads each"}
	err = b.table("Client-side caching: how late a reader sees it", head, func(add func(...any)) {
		for _, r := range b.stale {
			at := func(q float64) string { return fmt.Sprintf("%.2f", quantile(r.late, q)/float64(time.Millisecond)) }
			atOnce := 0
			for _, late := range r.late {
				if late == 0 {
					atOnce++
				}
			}
			add(r.do, map[bool]string{true: "8 requests more", false: "idle otherwise"}[r.busy], len(r.late),
				fmt.Sprintf("%d %%", 100*atOnce/len(r.late)), at(0.5), at(0.99), at(1), r.stale/len(r.late))
		}
	})
	if err != nil {
		return err
	}
	return b.server.flush()
}

// bustle has 8 more requests read sessions through the client, if it is to be busy.
func (b *bench) bustle(client *redis.Client, busy bool) (end func() error, err error) {
	if !busy {
		return func() error { return nil }, nil
	}
	c := gorilla(cached, redistore.New(client, key), nil, read)
	crowd, err := c.crowd(sizes[0], 8)
	if err != nil {
		return nil, err
	}
	var over atomic.Bool
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		_, failed = drive(crowd, len(crowd), 0, func(_ int, v *visitor) (bool, error) { return !over.Load(), c.do(read, v) })
	})
	return func() error {
		over.Store(true)
		wg.Wait()
		return failed
	}, nil
}

func (b *bench) trial(workers []*process, client *redis.Client, do, owner string) (late time.Duration, stale int, err error) {
	v, err := ownedSession(redistore.New(b.server.admin, key), owner)
	if err != nil {
		return 0, 0, err
	}
	reader := redistore.New(client, key)
	look := func() (old bool, err error) {
		err = v.look(reader, func(s *sessions.Session) { old = s.Values["visits"] == 1 })
		return old, err
	}
	if err := fillCache(client, look); err != nil {
		return 0, 0, err
	}
	type told struct {
		at  time.Time
		err error
	}
	done := make(chan told, 1)
	go func() {
		a, _, err := tell(workers, task{Addr: b.server.addr, Do: do, Work: owner, Cookie: v.cookie})
		done <- told{a.Done, err}
	}()
	var olds []time.Time // when reads began that saw the old value
	for deadline := time.Now().Add(30 * time.Second); ; {
		began := time.Now()
		old, err := look()
		if err != nil {
			return 0, 0, err
		}
		if !old {
			break
		}
		if olds = append(olds, began); began.After(deadline) {
			return 0, 0, fmt.Errorf("%s is not seen after 30 s", do)
		}
	}
	ack := <-done
	for _, began := range olds {
		if began.After(ack.at) {
			late = began.Sub(ack.at)
			stale++
		}
	}
	return late, stale, ack.err
}

// fillCache looks twice: what the first fetches, the second has from the cache.
func fillCache(client *redis.Client, look func() (old bool, err error)) error {
	hits := client.CSCStats().Hits
	for range 2 {
		if old, err := look(); err != nil || !old {
			return errors.Join(err, errors.New("the session is not what was stored"))
		}
	}
	if client.CSCStats().Hits == hits {
		return errors.New("the client does not cache")
	}
	return nil
}

// ownedSession returns a visitor with a session that has an owner.
func ownedSession(store *redistore.Store, owner string) (*visitor, error) {
	v := newVisitor(sizes[0])
	if err := gorilla(plain, store, nil).do(create, v); err != nil {
		return nil, err
	}
	v.visits = 0 // so that the cookie stays
	return v, v.visit(store, func(s *sessions.Session) { redistore.SetOwner(s, owner) })
}

// readCached counts how often a read just after another client's acknowledged write still
// saw the old value, through a client that has the session in its cache: reads of the
// plain store, and reads with the lock, each of which has to ask Redis.
func readCached(addr string, trials int) (plainly, withLock int, err error) {
	var m meter
	client, writer := caching(addr, m.dial), redis.NewClient(settings(addr, nil))
	defer client.Close()
	defer writer.Close()
	other := redistore.New(writer, key)
	old := map[sessions.Store]int{}
	plain, lock := redistore.New(client, key), redistore.NewLockingStore(redistore.New(client, key))
	for range trials {
		for _, store := range []sessions.Store{plain, lock} {
			v, err := ownedSession(other, "")
			if err != nil {
				return 0, 0, err
			}
			saw := 0
			see := func(s *sessions.Session) { saw, _ = s.Values["visits"].(int) }
			err = fillCache(client, func() (bool, error) { err := v.look(plain, see); return saw == 1, err })
			if err == nil {
				err = v.visit(other, func(s *sessions.Session) { s.Values["visits"] = 2 })
			}
			m.reset()
			if err == nil {
				err = v.look(store, see)
			}
			if err == nil && store == lock && m.commands.Load() == 0 {
				err = errors.New("the lock was taken without a command")
			}
			if err != nil {
				return 0, 0, err
			}
			if saw != 2 {
				old[store]++
			}
		}
	}
	return old[plain], old[lock], nil
}
