package redistore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

func TestRevoke(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			store := New(client, hashKey)
			here, there, lost := loginAs(t, store, "ann"), loginAs(t, store, "ann"), loginAs(t, store, "ann")
			bob := loginAs(t, store, "bob")
			running, r, w := there.get(t, store)
			key := store.key(idOf(t, store, lost))
			must(t, srv.admin.Set(t.Context(), key, "not a gob", time.Hour).Err())

			list, err := collect(t, store, "ann")
			wantErr(t, err, ErrNotLoaded)
			wantText(t, err, idOf(t, store, lost))
			equal(t, name+": listed beside the one that cannot be decoded", len(list), 2)

			n, err := store.Revoke(t.Context(), "ann", idOf(t, store, here))
			must(t, err)
			equal(t, name+": ended", n, 2)
			n, err = store.Revoke(t.Context(), "ann", idOf(t, store, here))
			must(t, err)
			equal(t, name+": ended by the second", n, 0)
			equal(t, name+": users", here.user(t, store)+there.user(t, store)+lost.user(t, store)+bob.user(t, store), "annann")
			running.Values["n"] = 1
			wantErr(t, running.Save(r, w), ErrGone)
			wantErr(t, store.Renew(r, w, running), ErrGone)
			wantErr(t, store.Touch(r, w, running), ErrGone)
			equal(t, name+": listed", fmt.Sprint(listed(t, store, "ann")), fmt.Sprint([]string{idOf(t, store, here)}))

			// One of the list can be ended by itself.
			list, err = collect(t, store, "ann")
			must(t, err)
			list[0].Options.MaxAge = -1
			w = httptest.NewRecorder()
			must(t, list[0].Save(r, w))
			equal(t, name+": cookies", len(w.Result().Cookies()), 0)
			equal(t, name+": user", here.user(t, store), "")

			_, err = store.Revoke(t.Context(), "bob")
			must(t, err)
			n, err = store.Revoke(t.Context(), "nobody")
			must(t, err)
			equal(t, name+": nobody's", n, 0)
			srv.forward(t, 31*24*time.Hour)
			equal(t, name+": keys", fmt.Sprint(srv.keys(t)), "[]")
		}
	})
}

// TestRevokeAgainstEverything runs Revoke beside another request on the session, in
// every order that the commands of the two can take, and looks for survivors.
func TestRevokeAgainstEverything(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for name, client := range srv.clients(t) {
			gate := &gate{}
			client.AddHook(gate)
			if name == "AutoPipeliner" {
				continue // it sends other goroutines' commands, where no order can be enforced
			}
			store := New(client, hashKey)
			locking := NewLockingStore(store)
			for op, do := range map[string]func(*http.Request) error{
				"save": func(r *http.Request) error {
					s, err := store.Get(r, "s")
					return errors.Join(err, s.Save(r, httptest.NewRecorder()))
				},
				"renew": func(r *http.Request) error {
					s, err := store.Get(r, "s")
					return errors.Join(err, store.Renew(r, httptest.NewRecorder(), s))
				},
				"touch": func(r *http.Request) error {
					s, err := store.Get(r, "s")
					return errors.Join(err, store.Touch(r, httptest.NewRecorder(), s))
				},
				"locked save": func(r *http.Request) error {
					s, err := locking.Get(r, "s")
					return errors.Join(err, s.Save(r, httptest.NewRecorder()))
				},
				"locked renew": func(r *http.Request) error {
					s, err := locking.Get(r, "s")
					return errors.Join(err, locking.Renew(r, httptest.NewRecorder(), s))
				},
				"login": func(r *http.Request) error {
					r.Header.Del("Cookie")
					s, err := store.Get(r, "s")
					SetOwner(s, "ann")
					return errors.Join(err, s.Save(r, httptest.NewRecorder()))
				},
			} {
				// The schedule: a bit for each command, whose turn it is while both want.
				orders := map[string]bool{}
				for schedule := range 1 << 7 {
					must(t, srv.admin.FlushDB(t.Context()).Err())
					b := loginAs(t, store, "ann")
					orders[gate.run(schedule,
						func(ctx context.Context) {
							if err := do(b.request(t).WithContext(ctx)); err != nil && !errors.Is(err, ErrGone) {
								t.Errorf("%s: %v", op, err)
							}
						},
						func(ctx context.Context) {
							_, err := store.Revoke(ctx, "ann")
							must(t, err)
						})] = true
					alive := slices.DeleteFunc(srv.keys(t), func(k string) bool { return strings.Contains(k, "owner:") || strings.HasSuffix(k, ":lock") })
					for _, key := range alive {
						id := strings.TrimPrefix(key, store.KeyPrefix)
						// What Renew has found to be revoked but not yet taken back would be here
						// too, but run has waited for it.
						if op == "login" && slices.Contains(listed(t, store, "ann"), id) {
							continue // it came after
						}
						// A session that started over because it was found logged out has no owner.
						s := sessions.NewSession(store, "s")
						must(t, store.decode([]byte(srv.admin.Get(t.Context(), key).Val()), s))
						if len(s.Values) > 0 {
							t.Fatalf("%s, %s, schedule %b: %s is alive: %v", name, op, schedule, key, s.Values)
						}
					}
				}
				if len(orders) < 4 {
					t.Errorf("%s, %s: only %d orders were run", name, op, len(orders))
				}
			}
		}
	})
}

// gate is a hook that lets the commands of two actors through one at a time, in a
// given order.
type gate struct{ events atomic.Pointer[chan event] }

// An event is that an actor wants to send a command, or, without go, has finished.
type event struct {
	actor int
	name  string
	go_   chan struct{}
}

type actorKey struct{}

// run returns the order in which the commands went through. A bit of schedule says
// whose turn it is, each time when both want.
func (g *gate) run(schedule int, actors ...func(context.Context)) string {
	events := make(chan event)
	g.events.Store(&events)
	defer g.events.Store(nil)
	for i, act := range actors {
		go func() {
			act(context.WithValue(context.Background(), actorKey{}, i))
			events <- event{actor: i}
		}()
	}
	var order []string
	waiting, running := map[int]event{}, len(actors)
	for {
		for ; running > 0; running-- {
			if e := <-events; e.go_ != nil {
				waiting[e.actor] = e
			}
		}
		if len(waiting) == 0 {
			return strings.Join(order, " ")
		}
		turn := schedule & 1
		if len(waiting) == 2 {
			schedule >>= 1
		} else if _, ok := waiting[turn]; !ok {
			turn = 1 - turn
		}
		e := waiting[turn]
		delete(waiting, turn)
		order = append(order, fmt.Sprint(turn, e.name))
		running = 1
		close(e.go_)
	}
}

func (g *gate) wait(ctx context.Context, name string) {
	events := g.events.Load()
	actor, ok := ctx.Value(actorKey{}).(int)
	if events == nil || !ok || name == "hello" || strings.HasPrefix(name, "client") {
		return
	}
	e := event{actor, name, make(chan struct{})}
	*events <- e
	<-e.go_
}

func (g *gate) DialHook(next redis.DialHook) redis.DialHook { return next }

func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		g.wait(ctx, cmd.Name())
		return next(ctx, cmd)
	}
}

func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		g.wait(ctx, cmds[0].Name())
		return next(ctx, cmds)
	}
}

// TestRevokeOfManySessions is to take less than a second, or, on a machine that is
// busy or with the race detector, not much longer than the bare commands there.
func TestRevokeOfManySessions(t *testing.T) {
	srv := startRedis(t)
	store, rec := srv.store(t)
	const many = 10_000
	s := sessions.NewSession(store, "s")
	s.Values["user"] = "ann"
	SetOwner(s, "ann")
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	_, err = srv.admin.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
		for range many {
			id := store.newID()
			pipe.Set(t.Context(), store.key(id), data, time.Hour)
			pipe.ZAdd(t.Context(), store.records().index("ann"), redis.Z{Score: float64(time.Now().Unix() + 3600), Member: id})
		}
		return nil
	})
	must(t, err)
	equal(t, "listed", len(listed(t, store, "ann")), many)
	rec.take()
	start := time.Now()
	n, err := store.Revoke(t.Context(), "ann")
	took := time.Since(start)
	must(t, err)
	equal(t, "ended", n, many)
	equal(t, "keys", len(srv.keys(t)), 0)
	for _, pipeline := range strings.Split(rec.take(), "]") {
		if n := len(strings.Fields(pipeline)); n > batch+3 {
			t.Errorf("a batch of %d commands", n)
		}
	}
	start = time.Now()
	for range many / batch {
		_, err := srv.admin.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
			for i := range batch {
				pipe.Set(t.Context(), store.key(itoa(i)), data, time.Hour)
				pipe.Del(t.Context(), store.key(itoa(i)))
			}
			return nil
		})
		must(t, err)
	}
	bare := time.Since(start)
	t.Logf("Revoke of %d sessions took %v, the bare commands %v", many, took, bare)
	if took > time.Second && took > 40*bare {
		t.Errorf("Revoke of %d sessions took %v, the bare commands %v", many, took, bare)
	}
}
