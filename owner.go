package redistore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/url"
	"slices"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// The index of an owner is a sorted set: session IDs, scored by the second after which the
// session is certainly over (lua/index.lua). It is written before the session, so that no
// session is ever outside it. It may list sessions that do not exist: readers must check.

const (
	ownerKey = "_owner" // in Values, beside gorilla's "_flash"

	// pending marks, as a fraction of the score, an entry whose session may be yet to be
	// written. Without a session it is dead only when its ID is older than settled: a minute
	// by which the servers' clocks may differ, and one that the write may take.
	pending = 0.5
	settled = 2 * time.Minute

	batch     = 32 // sessions in one pipeline, which may be large ones
	maxRounds = 32 // of one Revoke
)

// SetOwner says whose session this is, for [Store.Sessions], [Store.Revoke] and
// [Store.Limit] to find it: a user's ID, in any bytes and of any length. It counts from
// the next Save or Renew; do not Touch the session before that. The empty owner is nobody.
//
// Renew is better: after a Save, another request that has loaded the session before it may
// Touch it, for longer than this owner's index lists it.
//
// The name is kept in Values, under "_owner", and so survives Renew and a reload. A
// handler that replaces all of Values has to call SetOwner again.
//
// Saving a session that has an owner writes the owner's index too, and before it. On a
// single server both are one script: if the index cannot be written, nothing is. On
// Cluster, Ring and an AutoPipeliner they are two steps: the index may list a session that
// was never written, for a while, but not lack one that was.
// With IdleTimeout, Get tells the index that the session lives on, in one more command. If
// it cannot, Get is [ErrNotLoaded].
func SetOwner(session *sessions.Session, owner string) {
	if owner == "" {
		delete(session.Values, ownerKey)
		return
	}
	if session.Values == nil {
		session.Values = make(map[any]any)
	}
	session.Values[ownerKey] = url.PathEscape(owner) // which JSON can carry, whatever the bytes
}

// Owner returns the name given to SetOwner; "" if there is none.
func Owner(session *sessions.Session) string {
	if session == nil {
		return ""
	}
	escaped, _ := session.Values[ownerKey].(string)
	owner, err := url.PathUnescape(escaped)
	if err != nil {
		return ""
	}
	return owner
}

// Sessions returns the owner's living sessions, roughly in the order in which they end: to show users their devices (OWASP ASVS 5.0, 7.5.2). Reading them here
// does not count against IdleTimeout. They are loaded in batches of 32, as the loop goes
// on; each batch takes 5 seconds at most.
//
// They have no name and so no cookie. To end one of them, set its Options.MaxAge to -1 and
// Save it; do not save them otherwise. An owner without sessions has none, and no error.
//
// A session that cannot be decoded comes with [ErrNotLoaded]: it has an ID and no values,
// and can be ended like the others. With any other error the session is nil and the loop
// ends: Redis could not be read.
func (s *Store) Sessions(ctx context.Context, owner string) iter.Seq2[*sessions.Session, error] {
	return func(yield func(*sessions.Session, error) bool) {
		err := s.check()
		if err == nil {
			err = failed("sessions", s.eachSession(ctx, owner, yield))
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// eachSession returns what ends the loop early, unless that is yield.
func (s *Store) eachSession(ctx context.Context, owner string, yield func(*sessions.Session, error) bool) error {
	entries, err := s.entries(ctx, owner)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(entries, batch) {
		found, err := s.look(ctx, owner, some)
		if err != nil {
			return err
		}
		for _, f := range found {
			if !f.over && !yield(f.session, f.err) {
				return nil
			}
		}
	}
	return nil
}

// Revoke ends all of the owner's sessions but those whose IDs are in keep, and says
// how many Redis still had: to log out everywhere, after a change of password, or where
// an account was disabled (OWASP ASVS 5.0, 7.4.2, 7.4.3, 7.4.5). A request that is
// running on one of them gets ErrGone from its Save. Sessions that cannot be decoded
// are ended too.
//
// It can be repeated, and has to be after an error: then some may be left. Each of its
// steps takes 5 seconds at most: to read the index, and to end 32 sessions. A login that
// happens meanwhile may come before or after it. Revoke gives up with an error when, after
// 32 rounds, there is still a session that was renewed meanwhile: that takes dozens of
// clients of one owner which do nothing but renew.
func (s *Store) Revoke(ctx context.Context, owner string, keep ...string) (int, error) {
	if err := s.check(); err != nil {
		return 0, err
	}
	ctx = context.WithoutCancel(ctx) // half a revocation is none
	ended := 0
	// A session that is renewed meanwhile is in the index under its new ID before the
	// old one ends. So look again, until nothing new is listed and nothing found alive:
	// then none has escaped.
	seen := map[string]bool{}
	for range maxRounds {
		entries, err := s.entries(ctx, owner)
		if err != nil {
			return ended, failed("revoke", err)
		}
		entries = slices.DeleteFunc(entries, func(e entry) bool { return slices.Contains(keep, e.id) })
		again := false
		for _, e := range entries {
			again = again || !seen[e.id]
			seen[e.id] = true
		}
		for some := range slices.Chunk(entries, batch) {
			n, more, err := s.revoke(ctx, owner, some)
			ended += n
			again = again || more
			if err != nil {
				return ended, failed("revoke", err)
			}
		}
		if !again {
			return ended, nil
		}
	}
	return ended, failed("revoke", errors.New("the owner's sessions are renewed faster than they can be ended: repeat it"))
}

// revoke ends those of the entries that are the owner's. It says how many it ended itself,
// and whether any was found alive.
func (s *Store) revoke(ctx context.Context, owner string, entries []entry) (ended int, more bool, err error) {
	found, err := s.look(ctx, owner, entries)
	if err != nil {
		return 0, false, err
	}
	var ids []string
	for _, f := range found {
		ids = append(ids, f.session.ID)
	}
	ended, err = s.finish(ctx, owner, ids)
	return ended, len(ids) > 0, err
}

// finish ends sessions, whoever is using them, and says how many there still were.
func (s *Store) finish(ctx context.Context, owner string, ids []string) (ended int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return s.records().delete(ctx, owner, ids...)
}

// Limit ends the owner's oldest sessions, by [Created], until n are left, and says how many
// it ended: "at most three devices". Call it after the login's Renew, with the new ID in
// keep. Sessions in keep count, and are never ended. An ID that another store made has no
// creation time and counts as the oldest.
//
// Its errors are those of [Store.Revoke], and it can be repeated. Logins at the same time
// may each end the other's oldest sessions, but none that keep names.
func (s *Store) Limit(ctx context.Context, owner string, n int, keep ...string) (int, error) {
	if err := s.check(); err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, fmt.Errorf("redistore: limit: %d sessions: use 0 or more", n)
	}
	ctx = context.WithoutCancel(ctx) // the login that it follows is done
	var ids []string
	err := s.eachSession(ctx, owner, func(session *sessions.Session, _ error) bool {
		ids = append(ids, session.ID)
		return true
	})
	if err != nil {
		return 0, failed("limit", err)
	}
	slices.SortStableFunc(ids, func(a, b string) int { return created(a).Compare(created(b)) })
	excess := len(ids) - n
	ids = slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(keep, id) })
	ended := 0
	for some := range slices.Chunk(ids[:max(0, min(excess, len(ids)))], batch) {
		done, err := s.finish(ctx, owner, some)
		ended += done
		if err != nil {
			return ended, failed("limit", err)
		}
	}
	return ended, nil
}

// An entry of an index.
type entry struct {
	id      string
	pending bool
}

// entries reads the owner's index.
func (s *Store) entries(ctx context.Context, owner string) ([]entry, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list, err := s.client.ZRangeWithScores(ctx, s.records().index(owner), 0, -1).Result()
	if err != nil {
		return nil, err // the list is what was read until then: its last members may be nil
	}
	entries := make([]entry, len(list))
	for i, z := range list {
		_, fraction := math.Modf(z.Score)
		entries[i] = entry{z.Member.(string), fraction == pending}
	}
	return entries, nil
}

// A finding is what an entry of an index turns out to be.
type finding struct {
	session *sessions.Session
	over    bool  // past AbsoluteTimeout, as this process has it
	err     error // ErrNotLoaded: it cannot be decoded
}

// look loads the sessions in one round trip, and takes out of the index what is dead. What
// may yet be written is left out, and so is what is another owner's by now.
func (s *Store) look(ctx context.Context, owner string, entries []entry) ([]finding, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	gets := make([]*redis.StringCmd, len(entries))
	_, unsent := s.client.Pipelined(ctx, func(pipe redis.Pipeliner) error { // each has its own error
		for i, e := range entries {
			gets[i] = pipe.Get(ctx, s.key(e.id))
		}
		return nil
	})
	var found []finding
	var gone []string
	for i, e := range entries {
		data, err := gets[i].Bytes()
		switch {
		case errors.Is(err, redis.Nil):
			if !e.pending || s.now().Sub(created(e.id)) >= settled {
				gone = append(gone, e.id)
			}
		case err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE"):
			return nil, err
		case err == nil && len(data) == 0 && unsent != nil && !errors.Is(unsent, redis.Nil):
			return nil, unsent // by a hook, which has left the commands without an error
		default:
			if f := s.finding(e.id, data, err); f.err != nil || Owner(f.session) == owner {
				found = append(found, f)
			}
		}
	}
	s.records().remove(ctx, owner, gone...)
	return found, nil
}

// finding makes a session of what an index led to.
func (s *Store) finding(id string, data []byte, err error) finding {
	session := sessions.NewSession(s, "")
	session.ID, session.Options = id, s.options()
	st := state{status: stored, id: id, store: s}
	if err == nil {
		err = s.decode(data, session)
	}
	if err != nil {
		st.status = unread
		err = &loadError{fmt.Errorf("%s: %w", id, err)}
	}
	setState(session, st)
	return finding{session, s.lifetime(id, maxLifetime) <= 0, err}
}

// index is the key of an owner's index. It is not a session's: no ID starts like this, nor
// is any name as long as its owner likes.
func (db records) index(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return db.prefix + "owner:" + hex.EncodeToString(sum[:])
}

// listedFor is for how many seconds the index lists a session that lives for ttl. With an
// IdleTimeout every Get lets it live longer, and tells the index so; one that fails has the
// next to do it.
func (db records) listedFor(ttl time.Duration) int64 {
	if db.idle > 0 {
		ttl = max(ttl, 2*db.idle)
	}
	return seconds(ttl + time.Second - 1)
}

// remember notes a session in its owner's index, ahead of a write that may take for wait.
func (db records) remember(ctx context.Context, rec record, wait time.Duration) error {
	return db.scripts.Run(ctx, rememberScript, []any{db.index(rec.owner)}, rec.id, db.listedFor(rec.ttl), seconds(wait)).Err()
}

// confine lets a session live no longer than its owner's index lists it. Otherwise reads of
// which the index cannot be told would carry it out of there, one by one.
func (db records) confine(ctx context.Context, id, owner string) {
	if db.single() { // elsewhere the index could not be told of it in the same step
		_ = db.scripts.Run(ctx, confineScript, []any{db.key(id), db.index(owner)}, id).Err()
	}
}

// remove takes sessions that are gone out of the index. If this fails, readers do it.
func (db records) remove(ctx context.Context, owner string, ids ...string) {
	if owner != "" && len(ids) > 0 {
		_ = db.send(ctx, db.removing(ctx, owner, ids))
	}
}

func (db records) removing(ctx context.Context, owner string, ids []string) redis.Cmder {
	args := []any{"zrem", db.index(owner)}
	for _, id := range ids {
		args = append(args, id)
	}
	return redis.NewIntCmd(ctx, args...)
}
