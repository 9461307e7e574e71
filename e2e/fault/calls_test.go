package fault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore"
)

// call makes one call, of a kind drawn at random, for a browser drawn at random.
func (c *caller) call() {
	n := c.rng.IntN(browsers)
	if c.rng.IntN(2) == 0 {
		n /= 10 // some are busier than others
	}
	if c.Store == noPending {
		n %= 8 // of few owners
	}
	b := c.browser(n)
	switch n := c.rng.IntN(1000); {
	case b.id == "":
		c.login(b, own)
	case c.store == nil:
		c.rivalCall(b, n)
	case c.Store == noPending && n >= 300: // it fails where logins and lists meet
		c.list(b.owner)
	case n < 5:
		c.revoke(b.owner)
	case n < 10:
		c.list(b.owner)
	case n < 15:
		c.limit(b)
	case n < 40, c.Store == noPending && n < 140:
		c.logout(b)
	case n < 80:
		c.touch(b)
	case n < 120:
		c.renew(b)
	case n < 140:
		c.page(b)
	case n < 350:
		c.read(b)
	case !b.locked:
		c.set(b)
	case n < 650:
		c.update(b)
	case n < 690:
		c.stream(b)
	case n < 750:
		c.twice(b)
	default:
		c.increment(b)
	}
}

func (c *caller) rivalCall(b browser, n int) {
	switch {
	case n < 30:
		c.logout(b)
	case n < 300:
		c.read(b)
	default:
		c.increment(b)
	}
}

// work is what a handler does between two calls.
func (c *caller) work(most time.Duration) { time.Sleep(time.Duration(c.rng.Int64N(int64(most)))) }

// save is a handler's. Some repeat what has failed for reasons that they do not know, and
// some have another request at hand, or none.
func (c *caller) save(v request, save saveFunc) error {
	r := v.r
	if c.store != nil {
		switch c.rng.IntN(12) {
		case 0:
			r = nil
		case 1:
			r = r.WithContext(r.Context())
		case 2:
			r = r.Clone(r.Context())
		}
	}
	v.Saving = now()
	for tries := c.rng.IntN(3); ; tries-- {
		err := save(r, v.w, v.s)
		if outcome(err) != unknown || tries == 0 {
			return err
		}
		v.Again++
		c.note(v.op)
	}
}

// increment adds one, with a load and a save, and sometimes with work between them.
func (c *caller) increment(b browser) *op {
	return c.visit(b, "increment", c.saving(b), c.addOne)
}

func (c *caller) addOne(v request) error {
	if c.rng.IntN(8) == 0 {
		c.work(2 * time.Millisecond)
	}
	v.s.Values["n"] = v.Value + 1
	return c.save(v, own)
}

// twice saves two times in one request: it loads the session again between them, or goes on
// with what it has.
func (c *caller) twice(b browser) {
	r, w, end := c.request(b.id)
	defer end()
	var s *sessions.Session
	first := c.during(b, request{c.begin("increment", b), r, w, nil}, c.locking, func(v request) error {
		s = v.s
		return c.addOne(v)
	})
	switch {
	case first.Out != done:
	case c.rng.IntN(2) == 0:
		c.during(b, request{c.begin("increment", b), r, w, nil}, c.locking, c.addOne)
	default:
		o := c.begin("increment", b)
		o.Value, o.Blind, o.Age = first.Value+1, true, first.Age
		c.note(o)
		c.end(o, c.addOne(request{o, r, w, s}))
		c.left(b.n, o)
	}
}

// set saves a value of its own with the plain store: the last write wins.
func (c *caller) set(b browser) *op {
	return c.visit(b, "set", c.plain, func(v request) error {
		v.Wrote = (c.Worker+1)<<24 | int(v.Op) // of 16 million calls each
		c.note(v.op)
		v.s.Values["n"] = v.Wrote
		return c.save(v, own)
	})
}

func (c *caller) read(b browser) *op {
	return c.visit(b, "read", c.plain, func(request) error { return nil })
}

// touch takes no lock, and gives the session another life than its Saves do.
func (c *caller) touch(b browser) *op {
	return c.visit(b, "touch", c.plain, func(v request) error {
		v.s.Options.MaxAge = []int{0, 3600, 86400, 30 * 86400}[c.rng.IntN(4)]
		v.Age = life(v.s.Options.MaxAge)
		c.note(v.op)
		return c.save(v, c.store.Touch)
	})
}

func (c *caller) renew(b browser) *op { return c.renewed(b, b.owner) }

// renewed gives the session a new ID, and an owner.
func (c *caller) renewed(b browser, owner string) *op {
	do := "renew"
	if b.locked {
		do = "renew, locked"
	}
	return c.visit(b, do, c.saving(b), func(v request) error {
		v.Owner = owner
		c.note(v.op)
		redistore.SetOwner(v.s, owner)
		err := c.save(v, c.renewing(b))
		if err == nil {
			v.New = v.s.ID
		}
		return err
	})
}

func (c *caller) renewing(b browser) saveFunc {
	if b.locked {
		return c.locking.Renew
	}
	return c.store.Renew
}

// login starts a session. The browser's cookie, if it has one, names none.
func (c *caller) login(b browser, save saveFunc) *op {
	o := c.begin("login", b)
	r, w, end := c.request(b.id)
	defer end()
	s, err := c.saving(b).Get(r, "s")
	if err == nil {
		s.Values["n"], s.Values["padding"] = 0, c.padding[b.size]
		if c.store != nil {
			redistore.SetOwner(s, b.owner)
			redistore.SetMaxAge(s, b.age)
		}
		o.Age = life(s.Options.MaxAge)
		err = c.save(request{o, r, w, s}, save)
		o.New, o.Value, o.Sent = s.ID, 0, sent(w)
	}
	c.end(o, err)
	if err == nil {
		c.keep(b.n, s.ID)
	}
	return o
}

// page is one in a browser of its own: somebody logs in while the page's other requests are
// under way with the cookie from before, which in most cases is that of an earlier visit, and
// in others names no session. Its last request is sent with whatever cookie the browser then
// has.
func (c *caller) page(like browser) {
	b := like
	b.n, b.owner, b.page = nobodys, "", c.ops.Add(1)
	user := fmt.Sprintf("user%d.%d", c.Worker, b.page)
	visited := c.rng.IntN(4) > 0
	if b.id = "none of " + user; visited {
		visit := c.login(browser{n: nobodys, locked: b.locked, size: b.size, age: b.age}, own)
		if visit.Out != done {
			return
		}
		b.id = visit.New
	}
	var mu sync.Mutex
	var ops []*op
	add := func(o *op) {
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, o)
	}
	var all sync.WaitGroup
	loggedIn := make(chan struct{})
	for i := range 5 {
		c := c.another()
		requests := []func(browser) *op{c.set, c.set, c.touch, c.read}
		if b.locked {
			requests = []func(browser) *op{c.increment, c.increment, c.add, c.touch, c.read}
		}
		request := requests[c.rng.IntN(len(requests))]
		all.Go(func() {
			if i == 0 { // it was sent before the login was answered, and comes after it
				<-loggedIn
			} else {
				c.work(3 * time.Millisecond)
			}
			add(request(b))
		})
	}
	c.work(2 * time.Millisecond)
	var login *op
	if visited {
		login = c.renewed(b, user)
	} else {
		b := b
		b.owner = user
		login = c.login(b, c.renewing(b))
	}
	close(loggedIn)
	all.Wait()
	if login.Out != done {
		return
	}
	if b.id, b.owner = jar(login, ops), user; b.id != login.New {
		return // it is lost, for the checks to tell why
	}
	if c.read(b); c.rng.IntN(4) > 0 {
		c.logout(b)
	}
}

// add is one Update.
func (c *caller) add(b browser) *op {
	r, w, end := c.request(b.id)
	defer end()
	return c.addTo(b, r, w)
}

// update is a handler's, that repeats one whose outcome it does not know: that is another
// increment.
func (c *caller) update(b browser) {
	r, w, end := c.request(b.id)
	defer end()
	for tries := c.rng.IntN(3); c.addTo(b, r, w).Out == unknown && tries > 0; tries-- {
	}
}

func (c *caller) addTo(b browser, r *http.Request, w *httptest.ResponseRecorder) *op {
	o := c.begin("increment", b)
	called, begun := false, false
	err := c.locking.Update(r, w, "s", func(s *sessions.Session) error {
		if called {
			o.Broken = "Update has called its function twice"
		}
		called, o.Saving = true, now()
		if s.IsNew {
			if begun = b.page != 0; begun { // as handlers do that do not look
				return nil
			}
			return errNew
		}
		c.saw(o, s)
		s.Values["n"] = o.Value + 1
		return nil
	})
	if begun {
		err = cmp.Or(err, errNew)
	}
	replaced := errors.Is(err, redistore.ErrGone) // by a renewal of a moment ago
	if !called && !replaced && !errors.Is(err, redistore.ErrNotLoaded) && !errors.Is(err, redistore.ErrLocked) {
		o.Broken = fmt.Sprint("Update did neither load the session nor say so: ", err)
	}
	o.Sent = sent(w)
	c.end(o, err)
	c.left(b.n, o)
	return o
}

// stream loads the session without the lock, and two goroutines of it call Update.
func (c *caller) stream(b browser) {
	r, w, end := c.request(b.id)
	defer end()
	if c.during(b, request{c.begin("read", b), r, w, nil}, c.plain, func(request) error { return nil }).Out != done {
		return
	}
	var both sync.WaitGroup
	for range 2 {
		c := c.another()
		both.Go(func() {
			for range 1 + c.rng.IntN(2) {
				c.addTo(b, r, httptest.NewRecorder())
			}
		})
	}
	both.Wait()
}

func (c *caller) logout(b browser) *op {
	o := c.begin("logout", b)
	r, w, end := c.request(b.id)
	defer end()
	s, err := c.plain.Get(r, "s")
	if err == nil && !s.IsNew {
		c.saw(o, s)
	}
	s.Options.MaxAge = -1
	err = c.save(request{o, r, w, s}, c.saving(b).Save)
	if c.store != nil && !strings.Contains(fmt.Sprint(w.Result().Header["Set-Cookie"]), "Max-Age=0") {
		o.Broken = fmt.Sprintf("a logout has left the cookie: %v", err)
	}
	c.end(o, err)
	c.left(b.n, o)
	return o
}

func (c *caller) revoke(owner string) {
	o := c.begin("revoke", browser{owner: owner})
	_, err := c.store.Revoke(context.Background(), owner)
	c.end(o, err)
}

// limit ends the owner's oldest sessions but for a few, and but for this browser's own.
func (c *caller) limit(b browser) {
	o := c.begin("limit", browser{owner: b.owner})
	o.Most, o.Keep = c.rng.IntN(4), b.id
	c.note(o)
	_, err := c.store.Limit(context.Background(), b.owner, o.Most, b.id)
	c.end(o, err)
}

func (c *caller) list(owner string) {
	o := c.begin("list", browser{owner: owner})
	o.Listed = map[string]int{}
	var failed error
	for s, err := range c.store.Sessions(context.Background(), owner) {
		if err != nil {
			failed = err
			continue
		}
		o.Listed[s.ID], _ = s.Values["n"].(int)
	}
	c.end(o, failed)
}
