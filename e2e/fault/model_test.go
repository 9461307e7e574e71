package fault

import (
	"strings"
	"testing"
	"time"
)

// TestTheModel shows what the checks accept and what they do not, on histories of a few
// calls.
func TestTheModel(t *testing.T) {
	call := func(start, end int64, do string, value int, out string) *op {
		return &op{Start: start, End: end, Do: do, ID: "a", Owner: "ann", Value: value, Out: out}
	}
	login := &op{Start: 1, End: 2, Do: "login", New: "a", Owner: "ann", Out: done}
	first := call(3, 4, increment, 0, done)
	logout := call(5, 6, "logout", unseen, done)
	revoke := &op{Start: 5, End: 6, Do: "revoke", Owner: "ann", Out: done}
	failover := []window{{7, 8}}
	blind := func(start int64, value int, out string) *op {
		return &op{Start: start, End: start + 1, Do: increment, ID: "a", Owner: "ann", Value: value, Blind: true, Out: out}
	}
	again := func(do, out string) *op {
		return &op{Start: 3, End: 4, Do: do, ID: "a", Owner: "ann", Again: 1, Out: out}
	}
	limit := func(keep string) *op { return &op{Start: 5, End: 6, Do: "limit", Owner: "ann", Keep: keep, Out: done} }
	sets := func(ms int64, out string) *op { // and takes so long
		return &op{Start: 3, End: 3 + ms*1e6, Do: set, ID: "a", Owner: "ann", Value: 0, Wrote: 7, Out: out}
	}
	oneMore := func(by *op, value int, out string) []*op { // than it was, and seen; and then this
		return []*op{login, by, call(9, 10, increment, 0, done), call(11, 12, increment, 1, done), call(13, 14, read, 2, done), call(99, 100, read, value, out)}
	}
	list := &op{Start: 5, End: 6, Do: "list", Owner: "ann", Out: done}
	killed := &op{Start: 3, Killed: 4, Do: increment, ID: "a", Owner: "ann", Value: 0}
	at := func(sec string) string { return sec + "." + strings.Repeat("A", 52) } // an ID of that second
	limited := func(id string) []*op {                                           // of two, one is left, and then this one is gone
		return []*op{
			{Start: 1, End: 2, Do: "login", New: at("a"), Owner: "ann", Out: done}, {Start: 3, End: 4, Do: "login", New: at("b"), Owner: "ann", Out: done},
			{Start: 5, End: 6, Do: "limit", Owner: "ann", Most: 1, Out: done}, {Start: 7, End: 8, Do: read, ID: id, Owner: "ann", Value: unseen, Out: gone},
		}
	}
	// Others set something in between, again and again, and 7 comes back so often.
	back := func(times int64, o *op) (ops []*op) {
		ops = append(ops, login, o)
		for i := range times {
			at, wrote := 4+4*i, 100+int(i)
			ops = append(ops, call(at, at+1, read, 7, done), &op{Start: at + 2, End: at + 3, Do: set, ID: "a", Owner: "ann", Value: 7, Wrote: wrote, Out: done})
		}
		return ops
	}
	for _, c := range []struct {
		name    string
		history history
		legal   bool
	}{
		{"one after the other", history{ops: []*op{login, first, call(5, 6, increment, 1, done), call(7, 8, read, 2, done)}}, true},
		{"two at once, one lost", history{ops: []*op{login, first, call(3, 5, increment, 0, done)}}, false},
		{"a stale read", history{ops: []*op{login, first, call(5, 6, read, 0, done)}}, false},
		{"an old value comes back", history{ops: []*op{login, first, call(9, 10, read, 0, done)}}, false},
		{"an old value comes back in a failover", history{ops: []*op{login, first, call(9, 10, read, 0, done)}, windows: failover}, true},
		{"an old value comes back after the failover", history{ops: []*op{login, first, call(9, 10, read, 1, done), call(11, 12, read, 0, done)}, windows: failover}, false},
		{"who knows whether it was saved", history{ops: []*op{login, call(3, 4, increment, 0, unknown), call(5, 6, read, 0, done), call(7, 8, read, 1, done)}}, true},
		{"it cannot be saved twice", history{ops: []*op{login, call(3, 4, increment, 0, unknown), call(7, 8, read, 2, done)}}, false},
		{"killed before it loaded", history{ops: []*op{login, call(3, 0, increment, unseen, ""), call(7, 8, read, 1, done)}}, false},
		{"refused, and yet saved", history{ops: []*op{login, call(3, 4, increment, 0, refused), call(7, 8, read, 1, done)}}, false},
		{"set, and seen", history{ops: back(1, sets(1, done))}, true},
		{"set over others, and again by its first attempt", history{ops: []*op{login, sets(100, done),
			{Start: 4, End: 5, Do: set, ID: "a", Owner: "ann", Value: 0, Wrote: 8, Out: done},
			{Start: 100e6 + 4, End: 100e6 + 5, Do: set, ID: "a", Owner: "ann", Value: 8, Wrote: 9, Out: done},
			call(100e6+6, 100e6+7, read, 9, done), call(100e6+8, 100e6+9, read, 7, done)}}, true},
		{"set again, too early for a repeat", history{ops: back(2, sets(1, done))}, false},
		{"set again", history{ops: back(2, sets(10, done))}, true},
		{"set four times", history{ops: back(4, sets(100, done))}, true},
		{"set four times, by the repeats of what was given up", history{ops: back(4, sets(100, unknown))}, true},
		{"given up too early for a repeat", history{ops: back(2, sets(1, unknown))}, false},
		{"set five times", history{ops: back(5, sets(100, done))}, false},
		{"logged out", history{ops: []*op{login, logout, call(7, 8, read, unseen, gone)}}, true},
		{"logged out, and back", history{ops: []*op{login, logout, call(7, 8, read, 0, done)}}, false},
		{"saved after the logout", history{ops: []*op{login, logout, call(3, 8, increment, 0, done), call(9, 10, read, 1, done)}}, false},
		{"gone for no reason", history{ops: []*op{login, call(7, 8, read, unseen, gone)}}, false},
		{"evicted", history{ops: []*op{login, call(7, 8, read, unseen, gone)}, evicts: true}, true},
		{"evicted, and back", history{ops: []*op{login, call(7, 8, read, unseen, gone), call(9, 10, read, 0, done)}, evicts: true}, false},
		{"revoked", history{ops: []*op{login, revoke, call(7, 8, "touch", unseen, gone)}}, true},
		{"revoked, and touched", history{ops: []*op{login, revoke, call(7, 8, "touch", 0, done)}}, false},
		{"revoked, and listed", history{ops: []*op{login, revoke, {Start: 7, End: 8, Do: "list", Owner: "ann", Out: done, Listed: map[string]int{"a": 0}}}}, false},
		{"alive, and not listed", history{ops: []*op{login, {Start: 7, End: 8, Do: "list", Owner: "ann", Out: done}, call(9, 10, read, 0, done)}}, false},
		{"renewed, and used", history{ops: []*op{login, {Start: 3, End: 4, Do: "renew, locked", ID: "a", New: "b", Owner: "ann", Out: done}, call(7, 8, read, 0, done)}}, false},
		{"saved twice without another look", history{ops: []*op{login, first, blind(7, 1, done), call(9, 10, read, 2, done)}}, true},
		{"saved twice, the second over another's", history{ops: []*op{login, first, call(5, 6, increment, 1, done), blind(7, 1, done)}}, false},
		{"saved twice, the second refused", history{ops: []*op{login, first, call(5, 6, increment, 1, done), blind(7, 1, refused)}}, true},
		{"repeated, and refused at last", history{ops: []*op{login, again(increment, refused), call(5, 6, read, 1, done)}}, true},
		{"repeated, and saved once", history{ops: []*op{login, again(increment, done), call(5, 6, read, 1, done)}}, true},
		{"repeated, and saved twice", history{ops: []*op{login, again(increment, done), call(5, 6, read, 2, done)}}, false},
		{"a renewal was repeated, and finds the session gone", history{ops: []*op{login, again("renew", gone), call(5, 6, read, unseen, gone)}}, true},
		{"a renewal finds the session gone", history{ops: []*op{login, call(3, 4, "renew", 0, gone)}}, false},
		{"the same, where Redis drops the token of a repeat", history{ops: []*op{login, call(3, 7, "renew", 0, gone)}, shed: failover[:1:1]}, true},
		{"limited", history{ops: []*op{login, limit("b"), call(7, 8, read, unseen, gone)}}, true},
		{"limited, but kept", history{ops: []*op{login, limit("a"), call(7, 8, read, unseen, gone)}}, false},
		{"limited, the oldest", history{ops: limited(at("a"))}, true},
		{"limited, the newest", history{ops: limited(at("b"))}, false},
		{"limited, after a login that failed", history{ops: append(limited(at("b")), &op{Start: 4, End: 5, Do: "login", Owner: "ann", Out: unknown})}, true},
		{"limited to more than there are", history{ops: []*op{login, {Start: 5, End: 6, Do: "limit", Owner: "ann", Most: 3, Out: done}, call(7, 8, read, unseen, gone)}}, false},
		{"lost long after a failover, and what failed before that", history{ops: oneMore(call(3, 4, increment, 0, unknown), unseen, gone), windows: failover}, false},
		{"an old value comes back long after a failover, and what failed in it", history{ops: oneMore(call(7, 8, increment, 0, unknown), 1, done), windows: failover}, false},
		{"the same, and who was killed before it", history{ops: oneMore(killed, 0, done), windows: failover}, false},
		{"revoked before a failover, and touched before it", history{ops: []*op{login, revoke, call(7, 8, "touch", 0, done)}, windows: []window{{9, 10}}}, false},
		{"revoked after a failover, and touched", history{ops: []*op{login, revoke, call(7, 8, "touch", 0, done)}, windows: []window{{0, 0}}}, false},
		{"revoked in a failover, and touched", history{ops: []*op{login, revoke, call(7, 8, "touch", 0, done)}, windows: []window{{3, 4}}}, true},
		{"alive after a failover, and not listed", history{ops: []*op{login, list, call(9, 10, read, 0, done)}, windows: []window{{0, 0}}}, false},
	} {
		if v := c.history.check(); (len(v.illegal) == 0) != c.legal {
			t.Errorf("%s: legal should be %t: %+v", c.name, c.legal, v)
		}
	}
}

// TestTheJar shows which logins count as lost.
func TestTheJar(t *testing.T) {
	visit := &op{Start: 1, End: 2, Do: "login", New: "a", Out: done}
	login := &op{Start: 10, End: 20, Do: "renew", ID: "a", New: "b", Owner: "ann", Out: done, Page: 1, Sent: "b"}
	other := func(saving, end int64, sent string) *op {
		return &op{Start: 5, Saving: saving, End: end, Do: increment, ID: "a", Value: unseen, Out: gone, Page: 1, Sent: sent}
	}
	for _, c := range []struct {
		name string
		ops  []*op
		lost int
	}{
		{"nothing else", nil, 0},
		{"no cookie after it", []*op{other(15, 30, "")}, 0},
		{"answered before it", []*op{other(15, 19, "c")}, 0},
		{"another session after it", []*op{other(15, 30, "c")}, 1},
		{"the old session, perhaps saved before it", []*op{other(15, 30, "a")}, 0},
		{"the old session, saved after it", []*op{other(21, 30, "a")}, 1},
		{"the login's is gone", []*op{{Start: 40, End: 41, Do: read, ID: "b", Owner: "ann", Value: unseen, Out: gone, Page: 1}}, 1},
	} {
		h := history{ops: append([]*op{visit, login}, c.ops...)}
		if v := h.check(); v.logins != 1 || v.lostLogins != c.lost {
			t.Errorf("%s: %d of %d logins are lost, want %d", c.name, v.lostLogins, v.logins, c.lost)
		}
	}
	first := *login // of a browser whose cookie names no session
	first.Do = "login"
	for o, lost := range map[*op]int{other(15, 30, "c"): 0, other(21, 30, "c"): 1} {
		h := history{ops: []*op{&first, o}}
		if v := h.check(); v.logins != 1 || v.lostLogins != lost {
			t.Errorf("a session is begun at %d: %d of %d logins are lost, want %d", o.Saving, v.lostLogins, v.logins, lost)
		}
	}
}

// TestTheLimit shows what counts as a Limit that left too many.
func TestTheLimit(t *testing.T) {
	var ops []*op
	for i, id := range []string{"a", "b", "c"} {
		ops = append(ops, &op{Start: int64(i), End: int64(i) + 1, Do: "login", New: id, Owner: "ann", Out: done})
	}
	ops = append(ops, &op{Start: 10, End: 11, Do: "limit", Owner: "ann", Most: 1, Keep: "a", Out: done})
	seen := func(id string) *op {
		return &op{Start: 12, End: 13, Do: read, ID: id, Owner: "ann", Value: 0, Out: done}
	}
	for alive, want := range []int{0, 0, 1} {
		h := history{ops: ops}
		for _, id := range []string{"a", "b", "c"}[:alive] {
			h.ops = append(h.ops, seen(id))
		}
		if v := h.check(); len(v.broken) != want {
			t.Errorf("%d sessions are left: %q", alive, v.broken)
		}
	}
}

// TestWhatIsBroken shows what is found in single calls.
func TestWhatIsBroken(t *testing.T) {
	login := &op{Start: 1, End: 2, Do: "login", New: "a", Owner: "ann", Out: done}
	conflict := func(took time.Duration) *op {
		return &op{Start: 3, End: 3 + int64(took), Do: increment, ID: "a", Owner: "ann", Value: 0, Out: refused, Conflict: true}
	}
	for _, c := range []struct {
		name   string
		o      *op
		broken int
	}{
		{"listed for its owner", &op{Start: 3, End: 4, Do: "list", Owner: "ann", Out: done, Listed: map[string]int{"a": 0}}, 0},
		{"listed for another", &op{Start: 3, End: 4, Do: "list", Owner: "bob", Out: done, Listed: map[string]int{"a": 0}}, 1},
		{"a conflict of who may have repeated it", conflict(10 * time.Millisecond), 0},
		{"a conflict of who has the lock", conflict(time.Millisecond), 1},
	} {
		h := history{ops: []*op{login, c.o}, faults: []window{{2, 3}}}
		if v := h.check(); len(v.broken) != c.broken {
			t.Errorf("%s: %q", c.name, v.broken)
		}
	}
}

// TestTheLives shows how long a session may live.
func TestTheLives(t *testing.T) {
	const sec = int64(time.Second)
	hour := &op{Start: 10 * sec, End: 10*sec + 1, Do: set, ID: "a", Age: 3600, Out: done}
	day := &op{Start: 20 * sec, End: 20*sec + 1, Do: "touch", ID: "a", Age: 86400, Out: done}
	failed := &op{Start: 20 * sec, End: 20*sec + 1, Do: "touch", ID: "a", Age: 86400, Out: unknown}
	slow := &op{Start: 10 * sec, End: 11 * sec, Do: set, ID: "a", Age: 3600, Out: done}
	for _, c := range []struct {
		name string
		ops  []*op
		left time.Duration
		may  bool
	}{
		{"as it was made", nil, 60*time.Second - 30*time.Second, true},
		{"longer", nil, 2 * time.Minute, false},
		{"as it was saved", []*op{hour}, time.Hour - 20*time.Second, true},
		{"shorter", []*op{hour}, time.Hour - 25*time.Second, false},
		{"for ever", []*op{hour}, -1, false},
		{"as it was touched", []*op{hour, day}, 24*time.Hour - 10*time.Second, true},
		{"as it was before", []*op{hour, day}, time.Hour - 20*time.Second, false},
		{"perhaps it was touched", []*op{hour, failed}, 24*time.Hour - 10*time.Second, true},
		{"or not", []*op{hour, failed}, time.Hour - 20*time.Second, true},
		{"saved again by what was repeated", []*op{slow, day}, time.Hour, true},
	} {
		s := &session{id: "a", created: &op{Start: 0, End: 1, Age: 60, Out: done}, ops: c.ops}
		if may := s.mayHave(c.left, 30*sec); may != c.may {
			t.Errorf("%s: %t", c.name, may)
		}
	}
}
