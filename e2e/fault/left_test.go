package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// What is left in Redis: that it expires, and when.

// keys returns those that match, of all primaries, each with the time that it has left.
func (x *trial) keys(pattern string) map[string]time.Duration {
	x.t.Helper()
	ctx := context.Background()
	left := map[string]time.Duration{}
	for _, n := range x.site.primaries() {
		keys, err := direct(n).Keys(ctx, pattern).Result()
		must(x.t, err)
		pipe := direct(n).Pipeline()
		var ttls []*redis.DurationCmd
		for _, k := range keys {
			ttls = append(ttls, pipe.PTTL(ctx, k))
		}
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
			must(x.t, err)
		}
		for i, k := range keys {
			if ttl := ttls[i].Val(); ttl != -2 { // it has ended since
				left[k] = ttl
			}
		}
	}
	return left
}

// locks finds those that would outlive their TTL.
func (x *trial) locks() {
	x.t.Helper()
	for k, left := range x.keys("*:lock") {
		if left < 0 || left > lease {
			x.t.Errorf("%s lasts for %v more, TTL is %v", k, left, lease)
		}
	}
}

// lives finds keys that never expire, and sessions that do not live as long as the last call
// that set it has said.
func (x *trial) lives(sessions []*session) {
	x.t.Helper()
	at := now()
	keys := x.keys("*")
	for k, left := range keys {
		if left < 0 {
			x.t.Errorf("%s never expires", k)
		}
	}
	for _, s := range sessions {
		left, alive := keys["session_"+s.id]
		if alive && !s.evicts && !within(s.windows, s.created.Start, at) && !s.mayHave(left, at) {
			x.t.Errorf("%s lives for %v, which nobody has said: %s", s.id, left, s)
		}
	}
}

// mayHave tells whether so much of the session's life may be left.
func (s *session) mayHave(left time.Duration, at int64) bool {
	const slack = 2 * time.Second
	sets := []*op{s.created}
	for _, o := range s.ops {
		if (o.Do == increment || o.Do == set || o.Do == "touch") && o.Age != 0 && (o.Again > 0 || o.Out != gone && o.Out != refused) {
			sets = append(sets, o)
		}
	}
	return slices.ContainsFunc(sets, func(o *op) bool {
		late := o.over() // it was repeated, perhaps, and arrives when it likes
		if o.Out != done || o.Do != increment && o != s.created && late-o.Start > int64(backoff) {
			late = at
		}
		for _, after := range sets {
			if after.Out == done && after.Start > late {
				return false
			}
		}
		age := time.Duration(o.Age) * time.Second
		return left >= age-time.Duration(at-o.Start)-slack && left <= age-time.Duration(at-late)+slack
	})
}

// conflicts finds calls that were told of another's write to a session that they had locked
// themselves.
func (v *verdict) conflicts(h *history) {
	for _, o := range h.ops {
		if o.Conflict && !o.Blind && !h.repeated(o) && !h.evicts && !within(slices.Concat(h.windows, h.shed), o.Start, o.End) {
			v.broken = append(v.broken, fmt.Sprintf("somebody else has changed %s while it was locked", o.ID))
		}
	}
}

// forgotten finds sessions that their end has left in an index, where one server does both.
func (x *trial) forgotten() {
	x.t.Helper()
	if x.site.clients.Kind != "single" || x.site.evicts {
		return
	}
	listed := map[string]bool{}
	for index := range x.keys("session_owner:*") {
		for _, id := range direct(x.site.nodes[0]).ZRange(context.Background(), index, 0, -1).Val() {
			listed[id] = true
		}
	}
	for _, o := range x.history.ops {
		if o.ended() && o.Value != unseen && listed[o.ID] {
			x.t.Errorf("the index lists %s still, after its %s", o.ID, o.Do)
		}
	}
}
