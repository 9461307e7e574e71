package fault

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/anishathalye/porcupine"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/internal/redisserver"
)

var rounds = flag.Int("rounds", 30, "histories that TestRandomHistories makes for each server and seed")

// TestRandomHistories has several processes change one session through the lock, each in a
// random way, while requests and replies are lost and first attempts arrive late. In half of
// the histories the session holds a number from 0 to 2, so that what was there once comes
// back. In the others Redis loses what it keeps beside the session; only the value can then
// tell who has written, and the number grows. Each history must be that of one register.
func TestRandomHistories(t *testing.T) {
	redis.SetLogger(silent{})
	for name, start := range registers {
		t.Run(name, func(t *testing.T) {
			addr := start(t)
			for _, seed := range []uint64{1, rand.Uint64()} {
				var all sync.WaitGroup
				for first := range 4 { // at once: most of the time, all wait
					all.Go(func() {
						for round := first; round < *rounds && !t.Failed(); round += 4 {
							if h := randomHistory(t, addr, seed, uint64(round), nil); !h.legal() {
								t.Errorf("seed %d, round %d: no order explains\n%s", seed, round, h)
							}
						}
					})
				}
				all.Wait()
			}
		})
	}
}

// TestTheRandomHistoriesCatch: where the value's digest decides, and not the token, as it
// was once, equal values of two requests are taken for one.
func TestTheRandomHistoriesCatch(t *testing.T) {
	redis.SetLogger(silent{})
	addr := realRegister(t)
	for round := range 300 {
		if h := randomHistory(t, addr, 1, uint64(round), without(noToken)); !h.legal() {
			t.Logf("in round %d", round)
			return
		}
	}
	t.Error("updates are lost, and the checker has not noticed")
}

var registers = map[string]func(*testing.T) string{"miniredis": miniRegister, "redis-server": realRegister}

func realRegister(t *testing.T) string {
	t.Helper()
	redisserver.Need(t)
	return redisserver.StartFor(t).Addr
}

// miniRegister starts a Redis whose time passes as ours does.
func miniRegister(t *testing.T) string {
	mini := miniredis.RunT(t)
	done := make(chan struct{})
	var clock sync.WaitGroup
	clock.Go(func() {
		for tick := time.NewTicker(2 * time.Millisecond); ; {
			select {
			case <-tick.C:
				mini.FastForward(2 * time.Millisecond)
			case <-done:
				tick.Stop()
				return
			}
		}
	})
	t.Cleanup(func() { close(done); clock.Wait() })
	return mini.Addr()
}

// A swap changes the register from one number to another, or reads it, where both are the
// same.
type swap struct {
	from, to int
	maybe    bool // it may not have happened
}

var register = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{0} },
	Step: func(from, input, _ any) (to []any) {
		s := input.(swap)
		if from == s.from {
			to = append(to, s.to)
		}
		if s.maybe && (len(to) == 0 || to[0] != from) {
			to = append(to, from)
		}
		return to
	},
}).ToModel()

// A randomly made history of one session.
type randomly struct {
	t      *testing.T
	admin  *redis.Client
	id     string
	cookie *http.Cookie
	evicts bool

	mu    sync.Mutex
	rng   *rand.Rand
	late  [][]any // attempts that have yet to arrive
	steps []porcupine.Operation
}

func (h *randomly) legal() bool {
	return porcupine.CheckOperationsTimeout(register, h.steps, time.Minute) == porcupine.Ok
}

func (h *randomly) String() string {
	var b strings.Builder
	for _, s := range h.steps {
		end := "…"
		if s.Return != forever {
			end = fmt.Sprint(s.Return - h.steps[0].Call)
		}
		fmt.Fprintf(&b, "%12d – %-12s %+v\n", s.Call-h.steps[0].Call, end, s.Input)
	}
	return b.String()
}

// randomHistory lets three processes, of two callers each, do some requests.
func randomHistory(t *testing.T, addr string, seed, round uint64, change *strings.Replacer) *randomly {
	h := &randomly{t: t, admin: redis.NewClient(&redis.Options{Addr: addr}), rng: rand.New(rand.NewPCG(seed, round)), evicts: round%2 == 1}
	defer h.admin.Close()
	calm := redistore.New(h.admin, key)
	w := httptest.NewRecorder()
	s, _ := calm.Get(httptest.NewRequest("GET", "/", nil), "s")
	s.Values["n"] = 0
	if err := s.Save(nil, w); err != nil {
		t.Error(err)
		return h
	}
	h.id, h.cookie = s.ID, w.Result().Cookies()[0]
	var all sync.WaitGroup
	for range 3 {
		client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, ContextTimeoutEnabled: true})
		defer client.Close()
		client.AddHook(disturbed{rewriting{change: change}, h})
		store := redistore.NewLockingStore(redistore.New(client, key))
		store.TTL, store.Wait = 30*time.Millisecond, 2*time.Second
		for range 2 {
			all.Go(func() {
				for range 5 {
					h.request(store)
				}
			})
		}
	}
	all.Wait()
	for len(h.late) > 0 {
		h.deliver()
	}
	h.get(calm, h.newRequest())
	return h
}

// one is true once in so many times.
func (h *randomly) one(in int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rng.IntN(in) == 0
}

func (h *randomly) note(start int64, s swap) {
	end := now()
	if s.maybe {
		end = forever
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.steps = append(h.steps, porcupine.Operation{Input: s, Call: start, Return: end})
}

func (h *randomly) newRequest() *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.AddCookie(h.cookie)
	return r
}

// request does what a handler may do.
func (h *randomly) request(store *redistore.LockingStore) {
	ctx, end := context.WithCancel(context.Background())
	defer end()
	r := h.newRequest().WithContext(ctx)
	switch {
	case h.one(6):
		h.get(store.Store, r)
	case h.one(3):
		var both sync.WaitGroup // two goroutines of a stream
		for range 2 {
			both.Go(func() { h.update(store, r) })
		}
		both.Wait()
	default:
		for saves := 1; saves > 0; saves-- {
			s := h.get(store, r)
			if s == nil {
				return
			}
			h.pause()
			if h.one(10) {
				end() // the client hangs up
			}
			if !h.save(r, s) || h.one(4) && !h.save(r, s) { // once more, without another Get
				return // the session has what was not saved
			}
			if h.one(5) {
				saves++ // or with one
			}
		}
	}
}

// pause is at times longer than a lease lasts.
func (h *randomly) pause() {
	switch {
	case h.one(12):
		time.Sleep(40 * time.Millisecond)
	case h.one(3):
		time.Sleep(time.Millisecond)
	}
}

func (h *randomly) get(store sessions.Store, r *http.Request) *sessions.Session {
	start := now()
	s, err := store.Get(r, "s")
	if err != nil {
		return nil
	}
	n, ok := s.Values["n"].(int)
	if !ok {
		h.t.Errorf("the session was lost: %+v", s)
		return nil
	}
	h.note(start, swap{from: n, to: n})
	return s
}

// save goes on to the next number. A handler repeats what failed for reasons that nobody
// knows. It reports whether it succeeded.
func (h *randomly) save(r *http.Request, s *sessions.Session) bool {
	from := s.Values["n"].(int)
	step := h.next(from)
	s.Values["n"] = step.to
	start := now()
	var err error
	for range 1 + h.tries() {
		err = s.Save(r, httptest.NewRecorder())
		if err == nil || isRefusal(err) {
			break
		}
		step.maybe = true
	}
	if err == nil {
		step.maybe = false
	}
	if err == nil || step.maybe {
		h.note(start, step)
	}
	return err == nil
}

func (h *randomly) next(from int) swap {
	if h.evicts {
		return swap{from: from, to: from + 1}
	}
	return swap{from: from, to: (from + 1) % 3}
}

func (h *randomly) tries() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rng.IntN(4)
}

func isRefusal(err error) bool {
	return errors.Is(err, redistore.ErrConflict) || errors.Is(err, redistore.ErrLocked) || errors.Is(err, redistore.ErrNotLoaded) || errors.Is(err, redistore.ErrGone)
}

func (h *randomly) update(store *redistore.LockingStore, r *http.Request) {
	start := now()
	var step *swap
	err := store.Update(r, httptest.NewRecorder(), "s", func(s *sessions.Session) error {
		from := s.Values["n"].(int)
		next := h.next(from)
		step, s.Values["n"] = &next, next.to
		h.pause()
		return nil
	})
	if step == nil || isRefusal(err) {
		return
	}
	step.maybe = err != nil
	h.note(start, *step)
}

// disturbed is what comes between a process and Redis.
type disturbed struct {
	rewriting
	h *randomly
}

func (d disturbed) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	h := d.h
	return func(ctx context.Context, cmd redis.Cmder) error {
		if d.rewrite(cmd); cmd.Err() != nil {
			return cmd.Err()
		}
		fails := func() error {
			cmd.SetErr(io.EOF)
			return io.EOF
		}
		switch {
		case h.one(40): // the request is lost, or comes late
			if writes(cmd) && h.one(2) {
				h.mu.Lock()
				h.late = append(h.late, cmd.Args())
				h.mu.Unlock()
			}
			return fails()
		case h.one(30): // the reply is lost
			_ = next(ctx, cmd)
			return fails()
		case h.evicts && h.one(60):
			h.evict()
		case h.one(8):
			h.deliver()
		}
		return next(ctx, cmd)
	}
}

// writes tells the script of a Save by its keys: five or more.
func writes(cmd redis.Cmder) bool {
	if !strings.HasPrefix(cmd.Name(), "eval") {
		return false
	}
	n, _ := cmd.Args()[2].(int)
	return n >= 5
}

// evict drops what stands beside the session.
func (h *randomly) evict() {
	for _, key := range h.admin.Keys(context.Background(), "{session_"+h.id+"}*").Val() {
		if h.one(2) {
			h.admin.Del(context.Background(), key)
		}
	}
}

// deliver has a late attempt arrive.
func (h *randomly) deliver() {
	h.mu.Lock()
	var args []any
	if len(h.late) > 0 {
		args, h.late = h.late[0], h.late[1:]
	}
	h.mu.Unlock()
	if args != nil {
		h.admin.Do(context.Background(), args...)
	}
}
