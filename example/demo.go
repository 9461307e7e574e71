package main

import (
	"context"
	"crypto/rand"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// clicks are the requests of a race.
const clicks = 60

// demo is what an application would not have: servers to stop, races to watch, and a
// look into Redis.
type demo struct {
	balancer
	Host   string // of the balancer, with its port
	client redis.UniversalClient

	mini      *miniredis.Miniredis // nil: the Redis is the user's own
	switching sync.Mutex
	RedisOff  atomic.Bool

	scratch  string     // where the races' requests go, a path that nobody can guess
	racing   sync.Mutex // one at a time, so that their times can be compared
	work     func()     // of a request, between Get and Save
	meetings sync.Map   // by name: *meeting
}

// newDemo returns a demonstration whose servers are not started yet.
func newDemo(client redis.UniversalClient, mini *miniredis.Miniredis, key []byte) *demo {
	d := &demo{client: client, mini: mini, scratch: "/" + rand.Text(),
		work: func() { time.Sleep(time.Millisecond) }}
	d.transport.MaxIdleConnsPerHost = clicks
	for n := 1; n <= 3; n++ {
		// Each server has a store, as each process would. Keys and Redis are the same.
		store := redistore.NewLockingStore(redistore.New(client, key))
		store.KeyPrefix = "redistore_example_"
		store.MaxAge(30 * 60)        // seconds
		store.Options.Secure = false // because this example speaks plain HTTP
		d.Servers = append(d.Servers, &server{Number: n, handler: (&app{store, n, d}).handler()})
	}
	return d
}

// OwnRedis tells whether it is the one in memory.
func (d *demo) OwnRedis() bool { return d.mini != nil }

// record is what Redis has to say about a session.
type record struct {
	Key   string
	Bytes int64
	TTL   time.Duration
	Lock  time.Duration // what is left of it; negative: nobody holds it
}

func (d *demo) record(ctx context.Context, key string) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pipe := d.client.Pipeline()
	size, ttl, lock := pipe.StrLen(ctx, key), pipe.TTL(ctx, key), pipe.PTTL(ctx, "{"+key+"}:lock")
	_, err := pipe.Exec(ctx)
	return record{key, size.Val(), ttl.Val(), lock.Val()}, err
}

// The races. Their requests are real ones: through the balancer to all servers, with
// a session of their own, so that the visitor's comes to no harm.

func init() {
	gob.Register(raceResult{}) // or they could not be kept in a session
	gob.Register(logoutResult{})
	gob.Register(loginResult{})
	gob.Register(scratch{})
}

type raceResult struct{ Without, With count }

type count struct {
	Kept, Lost, Refused int
	Took                time.Duration
}

// Cells is a word for each click.
func (c count) Cells() []string {
	return slices.Concat(slices.Repeat([]string{"kept"}, c.Kept), slices.Repeat([]string{"lost"}, c.Lost),
		slices.Repeat([]string{"refused"}, c.Refused))
}

type logoutResult struct{ Last, Ours leftover }

// leftover is what a slow request leaves of a session that was logged out meanwhile.
type leftover struct {
	Refused bool
	User    string // of the next page
}

type loginResult struct{ Last, Ours loggedIn }

// loggedIn is what a page's late requests leave of a login.
type loggedIn struct {
	Refused int
	User    string // of the next page
}

func (d *demo) routes(mux *http.ServeMux, a *app) {
	mux.HandleFunc("POST /race", func(w http.ResponseWriter, r *http.Request) {
		without, err := d.race(r.Context(), "plain")
		with, err2 := d.race(r.Context(), "lock")
		a.note(w, r, errors.Join(err, err2), "/#race", func(s *sessions.Session) {
			s.Values["race"] = raceResult{without, with}
		})
	})
	mux.HandleFunc("POST /logout-race", func(w http.ResponseWriter, r *http.Request) {
		last, err := d.logoutRace(r.Context(), "last write wins")
		ours, err2 := d.logoutRace(r.Context(), "lock")
		a.note(w, r, errors.Join(err, err2), "/#logout-race", func(s *sessions.Session) {
			s.Values["logout race"] = logoutResult{last, ours}
		})
	})
	mux.HandleFunc("POST /login-race", func(w http.ResponseWriter, r *http.Request) {
		last, err := d.loginRace(r.Context(), "last write wins")
		ours, err2 := d.loginRace(r.Context(), "plain")
		a.note(w, r, errors.Join(err, err2), "/#login-race", func(s *sessions.Session) {
			s.Values["login race"] = loginResult{last, ours}
		})
	})
	mux.HandleFunc("POST "+d.scratch+"/{do}", a.act)
}

// race clicks "add one" many times at once.
func (d *demo) race(ctx context.Context, store string) (c count, err error) {
	d.racing.Lock()
	defer d.racing.Unlock()
	v := d.newVisitor(store)
	if _, err = v.send(ctx, "login"); err != nil {
		return c, err
	}
	var refused atomic.Int32
	var all sync.WaitGroup
	start := time.Now()
	for range clicks {
		all.Go(func() {
			if _, err := v.send(ctx, "add"); err != nil {
				refused.Add(1)
			}
		})
	}
	all.Wait()
	c.Took = time.Since(start).Round(time.Millisecond)
	end, err := v.send(ctx, "logout")
	c.Kept, c.Refused = end.Count, int(refused.Load())
	c.Lost = max(0, clicks-c.Kept-c.Refused)
	return c, err
}

// A meeting makes a slow request save just after the logout, or the login, is over.
type meeting struct {
	loaded, over chan struct{}
	saved        chan error
}

// slow starts a slow request, and returns when it has the session in its hands.
func (d *demo) slow(ctx context.Context, v *visitor) (*meeting, error) {
	name, m := rand.Text(), &meeting{make(chan struct{}), make(chan struct{}), make(chan error, 1)}
	d.meetings.Store(name, m)
	go func() {
		_, err := v.send(ctx, "slow?meeting="+name)
		d.meetings.Delete(name)
		m.saved <- err
	}()
	select {
	case <-m.loaded:
		return m, nil
	case err := <-m.saved: // it never came so far
		return nil, err
	}
}

// end lets the slow request save, and returns what it was told.
func (m *meeting) end() error {
	close(m.over)
	return <-m.saved
}

// logoutRace logs out while a slow request has the session in its hands.
func (d *demo) logoutRace(ctx context.Context, store string) (leftover, error) {
	v := d.newVisitor(store)
	if _, err := v.send(ctx, "login"); err != nil {
		return leftover{}, err
	}
	m, err := d.slow(ctx, v)
	if err != nil {
		return leftover{}, err
	}
	_, err = v.send(ctx, "logout")
	saved := m.end()
	refused := errors.Is(saved, redistore.ErrGone)
	if refused {
		saved = nil
	}
	next, err2 := v.send(ctx, "show")
	return leftover{refused, next.User}, errors.Join(err, saved, err2)
}

// loginRace logs in while five requests have the session from before in their hands.
func (d *demo) loginRace(ctx context.Context, store string) (in loggedIn, err error) {
	v := d.newVisitor(store)
	if _, err := v.send(ctx, "visit"); err != nil {
		return in, err
	}
	const late = 5
	var all [late]*meeting
	for i := range all {
		if all[i], err = d.slow(ctx, v); err != nil {
			return in, err
		}
	}
	_, err = v.send(ctx, "renew")
	for _, m := range all {
		saved := m.end()
		if errors.Is(saved, redistore.ErrGone) {
			in.Refused++
			saved = nil
		}
		err = errors.Join(err, saved)
	}
	next, err2 := v.send(ctx, "show")
	in.User = next.User
	return in, errors.Join(err, err2)
}

// visitor is a browser.
type visitor struct {
	client http.Client
	url    string
	store  string
}

func (d *demo) newVisitor(store string) *visitor {
	jar, _ := cookiejar.New(nil)
	return &visitor{http.Client{Transport: &d.transport, Jar: jar, Timeout: 20 * time.Second}, "http://" + d.Host + d.scratch + "/", store}
}

// scratch is what the races' sessions hold.
type scratch struct {
	User  string
	Count int
}

func (v *visitor) send(ctx context.Context, do string) (s scratch, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url+do, nil)
	if err != nil {
		return s, err
	}
	r.Header.Set("Store", v.store)
	response, err := v.client.Do(r)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return s, json.NewDecoder(response.Body).Decode(&s)
	case http.StatusGone:
		return s, redistore.ErrGone
	}
	return s, fmt.Errorf("%w: %s", redistore.ErrNotLoaded, response.Status)
}

// act is the other end of send.
func (a *app) act(w http.ResponseWriter, r *http.Request) {
	do := r.PathValue("do")
	store := map[string]sessions.Store{
		"lock": a.store, "plain": a.store.Store, "last write wins": lastWriteWins{a.store.Store, a.demo.client},
	}[r.Header.Get("Store")]
	get := store.Get
	if do == "logout" || do == "show" {
		get = a.store.Store.Get // which does not wait for the lock
	}
	session, err := get(r, "scratch")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	s, _ := session.Values["scratch"].(scratch)
	session.Options.MaxAge = 60 // seconds
	switch do {
	case "login", "renew":
		s.User = "Ann"
	case "add":
		a.demo.work()
		s.Count++
	case "slow":
		a.demo.meet(r)
	case "logout":
		session.Options.MaxAge = -1
	}
	session.Values["scratch"] = s
	switch do {
	case "show":
	case "renew":
		err = a.store.Store.Renew(r, w, session)
	default:
		err = store.Save(r, w, session)
	}
	switch {
	case err == nil:
		json.NewEncoder(w).Encode(s)
	case errors.Is(err, redistore.ErrGone):
		w.WriteHeader(http.StatusGone)
	default:
		a.fail(w, r, err)
	}
}

// meet waits, with a session that is loaded, until what it meets is over.
func (d *demo) meet(r *http.Request) {
	if m, ok := d.meetings.Load(r.FormValue("meeting")); ok {
		close(m.(*meeting).loaded)
		select {
		case <-m.(*meeting).over:
		case <-r.Context().Done():
		}
	}
}

// lastWriteWins is a store as most are: Save writes the session, and sets its cookie,
// whatever has become of it since it was loaded.
type lastWriteWins struct {
	*redistore.Store
	client redis.UniversalClient
}

func (l lastWriteWins) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	if session.IsNew || session.Options.MaxAge < 0 {
		return l.Store.Save(r, w, session)
	}
	data, err := l.Serializer.Serialize(session)
	if err != nil {
		return err
	}
	cookie, err := securecookie.EncodeMulti(session.Name(), session.ID, l.Codecs...)
	if err != nil {
		return err
	}
	http.SetCookie(w, sessions.NewCookie(session.Name(), cookie, session.Options))
	age := time.Duration(session.Options.MaxAge) * time.Second
	return l.client.Set(r.Context(), l.KeyPrefix+session.ID, data, age).Err()
}
