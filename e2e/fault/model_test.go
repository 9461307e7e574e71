package fault

import "testing"

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
	sets := func(ms int64, out string) *op { // and takes so long
		return &op{Start: 3, End: 3 + ms*1e6, Do: set, ID: "a", Owner: "ann", Value: 0, Wrote: 7, Out: out}
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
	} {
		if v := c.history.check(); (len(v.illegal) == 0) != c.legal {
			t.Errorf("%s: legal should be %t: %+v", c.name, c.legal, v)
		}
	}
}
