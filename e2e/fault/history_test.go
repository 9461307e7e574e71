package fault

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/gorilla/sessions"

	"github.com/redistore/redistore"
)

// An op is one call of a worker. Times are nanoseconds of a clock that all processes
// of this machine share.
type op struct {
	Worker, Caller int
	Op             int64
	Start, End     int64  // End is 0 if the process was killed first
	Killed         int64  `json:",omitempty"` // when that was
	Do             string // login, increment, set, read, touch, renew, "renew, locked", logout, revoke, limit, list
	ID, New        string // the session's, and what it was renewed to
	Owner          string
	Value          int            // of the counter, as it was loaded; unseen
	Blind          bool           `json:",omitempty"` // Value is not what was loaded, but what the same request saved before
	Wrote          int            `json:",omitempty"` // by set
	Again          int            `json:",omitempty"` // so often the handler repeated its Save, as it did not know what became of it
	Most           int            `json:",omitempty"` // sessions that limit leaves
	Keep           string         `json:",omitempty"` // an ID that limit may not end
	Listed         map[string]int `json:",omitempty"`
	Page           int64          `json:",omitempty"` // the same for all requests of one page
	Saving         int64          `json:",omitempty"` // when its Save began
	Sent           string         `json:",omitempty"` // the ID in the response's cookie
	Age            int            `json:",omitempty"` // seconds that the session then lives
	Conflict       bool           `json:",omitempty"` // it was refused because another request has changed the session
	Out            string
	Err            string `json:",omitempty"`
	Broken         string `json:",omitempty"` // what the caller saw at once

	by browser
}

const unseen = -1

// How a call ended.
const (
	done    = "done"
	gone    = "gone"    // the session has ended, which is an answer
	refused = "refused" // an error that promises that nothing was done
	unknown = "unknown" // an error that promises nothing
)

// The model of one session: a record that is created once, is alive until somebody
// ends it, and holds a number.

type state struct {
	alive bool
	n     int
	any   bool // n is not known, but at most max: after a failover that lost writes
	max   int
}

func (s state) String() string { return fmt.Sprint(s.alive, s.n, s.any, s.max) }

type step struct {
	do     string
	value  int
	maybe  bool // it may not have happened
	adrift bool // during a failover, in which two servers may answer, in turns
	evicts bool // Redis may have dropped the session by then
}

const (
	create    = "create"
	increment = "increment"         // from value
	set       = "set"               // to value
	read      = "read"              // value
	alive     = "is alive"          //
	dead      = "is dead"           //
	end       = "end"               //
	endIf     = "end, if it is"     // value
	rollback  = "lose some of late" // writes
)

// next returns the states that may follow.
func next(from state, s step) (to []state) {
	if s.adrift { // what it finds is whatever was there once
		s.adrift = false
		for _, f := range []state{from, {max: from.max}, {alive: true, any: true, max: from.max}} {
			to = append(to, next(f, s)...)
		}
		slices.SortFunc(to, func(a, b state) int { return cmp.Compare(a.String(), b.String()) })
		return slices.Compact(to)
	}
	holds := from.alive && (from.n == s.value || from.any && s.value <= from.max)
	with := func(n int) state { return state{alive: true, n: n, max: max(n, from.max)} }
	switch {
	case s.do == create && !from.alive, s.do == set && from.alive:
		to = append(to, with(s.value))
	case s.do == increment && holds:
		to = append(to, with(s.value+1))
	case s.do == read && holds:
		to = append(to, with(s.value))
	case s.do == alive && from.alive, s.do == dead && !from.alive:
		to = append(to, from)
	case s.do == dead && s.evicts:
		to = append(to, state{max: from.max})
	case s.do == end, s.do == endIf && holds:
		to = append(to, state{max: from.max})
	case s.do == rollback:
		to = append(to, state{max: from.max}, state{alive: true, any: true, max: from.max})
	}
	if s.maybe && !slices.Contains(to, from) {
		to = append(to, from)
	}
	return to
}

var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{}} },
	Step: func(from, input, _ any) (to []any) {
		for _, s := range next(from.(state), input.(step)) {
			to = append(to, s)
		}
		return to
	},
}).ToModel()

// A window is a time in which acknowledged writes may have been lost, because a
// replica took over that had not seen them yet.
type window struct{ start, end int64 }

// within tells whether a time touches any of the windows.
func within(windows []window, start, end int64) bool {
	return slices.ContainsFunc(windows, func(w window) bool { return start <= w.end && w.start <= end })
}

// A history is all that was seen in one run.
type history struct {
	ops     []*op
	evicts  bool     // Redis may drop any key
	windows []window // failovers
	shed    []window // in which Redis may have dropped what stands beside the sessions
	faults  []window // all of them
}

// repeated tells whether a call may have been sent to Redis again after it was done: its reply
// was lost in a fault, or did not come in time. Between two attempts there is a pause.
func (h *history) repeated(o *op) bool {
	took := time.Duration(o.over() - o.Start)
	return o.Again > 0 || took >= reply || took > backoff && within(h.faults, o.Start, o.over())
}

const forever = math.MaxInt64

// A session is what is known of one ID.
type session struct {
	id      string
	created *op // acknowledged
	windows []window
	evicts  bool
	shed    []window
	steps   []porcupine.Operation
	ends    []*op // acknowledged
	ops     []*op
}

// sessions sorts the calls by session, and turns them into the steps of its model.
func (h *history) sessions() []*session {
	all := map[string]*session{}
	owned, orphaning := map[string][]*session{}, map[string][]*op{}
	for _, o := range h.ops {
		if o.begins() && (o.Out != done || h.repeated(o)) {
			orphaning[o.Owner] = append(orphaning[o.Owner], o)
		}
		if o.New == "" || o.Out != done {
			continue
		}
		s := &session{id: o.New, created: o, windows: h.windows, evicts: h.evicts, shed: h.shed}
		s.add(o.Start, o.End, step{do: create, value: o.Value})
		all[o.New] = s
		owned[o.Owner] = append(owned[o.Owner], s)
	}
	for _, o := range h.ops {
		if s := all[o.ID]; s != nil {
			s.call(o)
		}
		for _, s := range owned[o.Owner] {
			switch {
			case o.Do == "revoke":
				h.revoke(s, o)
			case o.Do == "limit":
				h.limit(s, o, owned[o.Owner], orphaning[o.Owner])
			case o.Do == "list" && o.Out == done:
				h.list(s, o)
			}
		}
	}
	var list []*session
	for _, s := range all {
		for _, w := range h.windows {
			if w.end > s.created.Start {
				s.add(w.start, w.end, step{do: rollback, maybe: true})
			}
		}
		s.forgetUnseen()
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *session) int { return cmp.Compare(a.created.Start, b.created.Start) })
	return list
}

func (s *session) add(start, end int64, what step) {
	what.evicts = s.evicts
	what.adrift = within(s.windows, start, end)
	s.steps = append(s.steps, porcupine.Operation{Input: what, Call: start, Return: end})
}

// may adds what may have happened: before its call was over, or whenever it likes, as it may
// lie in a socket's buffer. Only until the failovers that its call has met are over may it
// find what another server has: it must not excuse what is lost later.
func (s *session) may(start, until int64, what step) {
	what.maybe = true
	for _, w := range s.windows {
		if start <= w.end && w.start <= until {
			s.add(start, max(until, w.end), what)
		}
	}
	what.evicts = s.evicts
	s.steps = append(s.steps, porcupine.Operation{Input: what, Call: start, Return: forever})
}

// begins tells a call that makes a session with a new ID.
func (o *op) begins() bool { return o.Do == "login" || strings.HasPrefix(o.Do, "renew") }

// ended tells a call that has ended the session that it came with.
func (o *op) ended() bool {
	return o.Out == done && (o.Do == "logout" || strings.HasPrefix(o.Do, "renew"))
}

// over is when a call was: a process that was killed made it no longer.
func (o *op) over() int64 { return cmp.Or(o.End, o.Killed, forever) }

// call adds what one call shows of the session and what it may have done to it.
func (s *session) call(o *op) {
	s.ops = append(s.ops, o)
	until := o.over()
	does := func(what string, value int) {
		if o.Out == done {
			s.add(o.Start, until, step{do: what, value: value})
		} else {
			s.may(o.Start, until, step{do: what, value: value})
		}
	}
	nothing := (o.Out == gone || o.Out == refused) && o.Again == 0
	if o.Value != unseen && !o.Blind && (o.Do != "increment" || o.Out != done) && (o.Do != "renew, locked" || o.Out != done) {
		s.add(o.Start, until, step{do: read, value: o.Value})
	}
	if o.Out == gone {
		s.add(o.Start, until, step{do: dead})
	}
	switch {
	case o.Do == "logout":
		does(end, 0)
	case o.Do == "set" && o.Out == gone && o.Wrote != 0:
		// It may have been stored for a moment, before the session ended.
		s.repeats(o, false)
	case o.Do == "renew" && o.Out == gone && within(s.shed, o.Start, until):
		does(end, 0) // go-redis may have repeated it, and the token by which it is known was dropped
	case nothing:
	case o.Do == "increment" && o.Value != unseen:
		does(increment, o.Value)
	case o.Do == "renew":
		does(end, 0)
	case o.Do == "renew, locked" && o.Value != unseen:
		does(endIf, o.Value)
	case o.Do == "touch" && o.Out == done:
		does(alive, 0)
	case o.Do == "set" && o.Wrote != 0:
		does(set, o.Wrote)
		s.repeats(o, o.Out != done)
	}
	if o.ended() {
		s.ends = append(s.ends, o)
	}
}

// repeats adds that the client may have sent a set again, because a reply was lost: up to
// three times, after 8 ms or more; and the handler all of that. What took long may yet
// arrive.
func (s *session) repeats(o *op, late bool) {
	took := time.Duration(o.over() - o.Start)
	late = late || took > 50*time.Millisecond || o.Again > 0
	handlers := time.Duration(o.Again)
	for range min(3*(1+handlers), took/backoff) + handlers {
		if late {
			s.may(o.Start, o.over(), step{do: set, value: o.Wrote})
		} else {
			s.add(o.Start, o.over(), step{do: set, value: o.Wrote, maybe: true})
		}
	}
}

// forgetUnseen leaves out what may have been set, but was not seen, once for each time:
// it would only cost time to find out when it was. What was set for sure is what was seen,
// unless it may have arrived once more after the call.
func (s *session) forgetUnseen() {
	late := map[int]bool{}
	for _, o := range s.steps {
		if in := o.Input.(step); in.do == set && in.maybe && o.Return == forever {
			late[in.value] = true
		}
	}
	seen, ever := map[int]int{}, map[int]bool{}
	for _, o := range s.steps {
		switch in := o.Input.(step); {
		case in.do == read:
			seen[in.value]++
			ever[in.value] = true
		case in.do == set && !in.maybe && !late[in.value]:
			seen[in.value]--
		}
	}
	s.steps = slices.DeleteFunc(s.steps, func(o porcupine.Operation) bool {
		in := o.Input.(step)
		if in.do != set || !in.maybe {
			return false
		}
		if in.adrift { // it is there once more, without
			return !ever[in.value]
		}
		seen[in.value]--
		return seen[in.value] < 0
	})
}

// revoke ends whatever the owner had before.
func (h *history) revoke(s *session, o *op) {
	switch {
	case o.Out != done:
		s.may(o.Start, o.over(), step{do: end})
	case o.End < s.created.Start:
	case s.created.End < o.Start && !h.forgetsTheIndex(s, o.End):
		s.add(o.Start, o.End, step{do: end})
		s.ends = append(s.ends, o)
	default:
		s.add(o.Start, o.End, step{do: end, maybe: true})
		if s.created.End < o.Start {
			s.ends = append(s.ends, o)
		}
	}
}

// limit may end what the owner had before it, but for what it keeps, and only if there are
// as many as it leaves that are not older, or kept. A login that failed, or was repeated, may
// have left one that nobody knows.
func (h *history) limit(s *session, o *op, owned []*session, orphaning []*op) {
	others := 0
	for _, other := range owned {
		over := slices.ContainsFunc(other.ends, func(e *op) bool { return e.End < o.Start }) && !h.forgetsTheIndex(other, o.over())
		if other != s && !over && other.created.Start < o.over() && (other.id == o.Keep || !made(other.id).Before(made(s.id))) {
			others++
		}
	}
	switch {
	case s.id == o.Keep || s.created.Start > o.over():
	case others < o.Most && !slices.ContainsFunc(orphaning, func(l *op) bool {
		return l.Start < o.over() && l.over() > s.created.Start-int64(time.Second)
	}):
	case o.Out == done:
		s.add(o.Start, o.End, step{do: end, maybe: true})
	default:
		s.may(o.Start, o.over(), step{do: end})
	}
}

// made is when an ID was, to the second.
func made(id string) time.Time { return redistore.Created(&sessions.Session{ID: id}) }

// list shows all of the owner's sessions.
func (h *history) list(s *session, o *op) {
	value, listed := o.Listed[s.id]
	switch {
	case listed:
		s.add(o.Start, o.End, step{do: read, value: value})
		s.ops = append(s.ops, o)
	case s.created.End < o.Start && !h.forgetsTheIndex(s, o.End):
		s.add(o.Start, o.End, step{do: dead})
	}
}

// forgetsTheIndex tells whether the owner's index may by then have lost this session, while
// the session itself, on another server, was kept.
func (h *history) forgetsTheIndex(s *session, by int64) bool {
	return h.evicts || within(h.windows, s.created.Start, by)
}

// A verdict is what the checks found.
type verdict struct {
	calls, failed               int
	lost, doubled, resurrected  int
	logins, lostLogins          int // of pages
	forNoReason                 int // logins that were lost although Redis has kept all it had
	broken, strays              []string
	illegal                     []string // histories that no order explains
	undecided                   int
	oldestLost                  time.Duration // before its failover
	longestCall, longestOutage  time.Duration
	sessions, ended, increments int
}

// check looks at every session.
func (h *history) check() *verdict {
	v := &verdict{}
	for _, o := range h.ops {
		v.calls++
		if o.Out != done && o.Out != gone {
			v.failed++
		}
		if o.Do == "increment" && o.Out == done {
			v.increments++
		}
		if o.Broken != "" {
			v.broken = append(v.broken, o.Broken)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	free := make(chan struct{}, 2)
	list := h.sessions()
	for _, s := range list {
		v.count(h, s)
		free <- struct{}{}
		wg.Go(func() {
			result := porcupine.CheckOperationsTimeout(model, s.steps, time.Minute)
			mu.Lock()
			defer mu.Unlock()
			switch result {
			case porcupine.Illegal:
				v.illegal = append(v.illegal, s.String())
			case porcupine.Unknown:
				v.undecided++
			}
			<-free
		})
	}
	wg.Wait()
	for _, o := range h.ops {
		for _, s := range list {
			if _, listed := o.Listed[s.id]; listed && s.created.Owner != o.Owner {
				v.broken = append(v.broken, fmt.Sprintf("%s, of %s, is listed for %s", s.id, s.created.Owner, o.Owner))
			}
		}
	}
	v.sessions = len(list)
	v.pages(h)
	v.limits(h, list)
	v.conflicts(h)
	return v
}

// jar is the ID in a browser's cookie after all requests of a page that has logged in.
//
// The last response counts, in the order in which they were made. One that has saved the old
// session may have done so before the login, and be made after it: no server can tell that in
// time, and so it counts as made when its Save began. The same goes for one that has begun a
// session where there was none before the login. A response with any other cookie has found
// the old session gone, and counts as made when its handler ended.
func jar(login *op, page []*op) string {
	id, last := login.New, login.End
	for _, o := range page {
		made := o.End
		if o.Sent == login.ID || login.Do == "login" {
			made = o.Saving
		}
		if o != login && o.End != 0 && o.Sent != "" && made > last {
			id, last = o.Sent, made
		}
	}
	return id
}

// pages counts the logins that were answered, and those whose browser was left without a
// session in which somebody is logged in. The session that a login made is known to nobody
// else until its page is read.
func (v *verdict) pages(h *history) {
	pages := map[[2]int64][]*op{}
	for _, o := range h.ops {
		if o.Page != 0 {
			pages[[2]int64{int64(o.Worker), o.Page}] = append(pages[[2]int64{int64(o.Worker), o.Page}], o)
		}
	}
	for _, page := range pages {
		i := slices.IndexFunc(page, func(o *op) bool { return o.begins() && o.Out == done })
		if i < 0 {
			continue
		}
		login := page[i]
		v.logins++
		dead := slices.ContainsFunc(page, func(o *op) bool { return o.ID == login.New && o.Do == read && o.Out == gone })
		if dead || jar(login, page) != login.New {
			v.lostLogins++
			last := slices.MaxFunc(page, func(a, b *op) int { return cmp.Compare(a.End, b.End) }).End
			if !h.evicts && !within(slices.Concat(h.windows, h.shed), page[0].Start, last) {
				v.forNoReason++
			}
		}
	}
}

// limits finds owners who had more sessions after a Limit than it leaves, all of them older.
func (v *verdict) limits(h *history, all []*session) {
	for _, o := range h.ops {
		if o.Do != "limit" || o.Out != done {
			continue
		}
		alive := 0
		for _, s := range all {
			if s.created.Owner == o.Owner && s.created.End < o.Start && !h.forgetsTheIndex(s, forever) && s.seenAfter(o) {
				alive++
			}
		}
		if alive > max(o.Most, 1) || alive > o.Most && o.Keep == "" {
			v.broken = append(v.broken, fmt.Sprintf("Limit left %d sessions of %s instead of %d", alive, o.Owner, o.Most))
		}
	}
}

// seenAfter tells whether the session was found alive by a call that began after this one.
func (s *session) seenAfter(before *op) bool {
	return slices.ContainsFunc(s.ops, func(o *op) bool {
		return o.Start > before.End && o.Do != "logout" && (o.Out == done || o.Value != unseen && !o.Blind)
	})
}

// count finds what was lost, done twice or brought back, with plain arithmetic: it
// also counts what a failover may explain.
func (v *verdict) count(h *history, s *session) {
	if len(s.ends) > 0 {
		v.ended++
		first := slices.MinFunc(s.ends, func(a, b *op) int { return cmp.Compare(a.End, b.End) })
		if s.seenAfter(first) {
			v.resurrected++
		}
	}
	saw, may := map[int][]*op{}, map[int]bool{}
	final := unseen
	for _, o := range s.ops {
		switch {
		case o.Do == "increment" && o.Out == done:
			saw[o.Value] = append(saw[o.Value], o)
		case o.Do == "increment" && (o.Out != refused || o.Again > 0):
			may[o.Value] = true
		}
		if o.Worker == coordinator && o.Out == done {
			final = o.Value
		}
	}
	for value, incs := range saw {
		kept := 1
		if final != unseen && value >= final {
			kept = 0
		}
		if v.lost += len(incs) - kept; len(incs) > kept {
			first := slices.MinFunc(incs, func(a, b *op) int { return cmp.Compare(a.End, b.End) })
			v.oldestLost = max(v.oldestLost, h.beforeItsFailover(first))
		}
	}
	if len(saw) > 0 {
		for value := s.created.Value; value < final; value++ {
			if saw[value] == nil && !may[value] {
				v.doubled++
			}
		}
	}
}

// coordinator is who reads every session when all is over.
const coordinator = -1

// beforeItsFailover is how long before the next failover a call had ended.
func (h *history) beforeItsFailover(o *op) time.Duration {
	for _, w := range h.windows {
		if o.End <= w.end {
			return max(0, time.Duration(w.start-o.End))
		}
	}
	return 0
}

// String shows a session's steps, for somebody who has to find out what went wrong.
func (s *session) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "session %s\n", s.id)
	slices.SortStableFunc(s.steps, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	zero := s.created.Start
	ms := func(t int64) string {
		if t == forever {
			return "…"
		}
		return fmt.Sprintf("%.3f", float64(t-zero)/1e6)
	}
	for _, o := range s.steps {
		in := o.Input.(step)
		fmt.Fprintf(&b, "%12s – %-12s %s %d", ms(o.Call), ms(o.Return), in.do, in.value)
		if in.maybe {
			b.WriteString(", or not")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
