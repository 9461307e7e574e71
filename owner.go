package redistore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// The index of an owner is a sorted set: session IDs, scored by the second after
// which the session is certainly over. It is written before the session, so that no
// session is ever outside it; what it lists too much is found out by looking.

const (
	ownerKey = "_owner" // in Values, beside gorilla's "_flash"

	// pending marks, as a fraction of the score, an entry whose new session was still
	// to be written. Where that is not one transaction, an entry without a session is
	// dead only after as long as the writing may take.
	pending = 0.5
	settled = time.Minute

	revokeBatch = 100 // sessions in one pipeline, which may be large ones
	maxRounds   = 32  // of one Revoke
)

// SetOwner says whose session this is, for [Store.Sessions] and [Store.Revoke] to
// find it: a user's ID, in any bytes and of any length. It counts from the next Save
// or Renew; do not Touch the session before that. The empty owner is nobody.
//
// The name is kept in Values, under "_owner", and so survives Renew and a reload. A
// handler that replaces all of Values has to call SetOwner again.
//
// Saving a session that has an owner writes the owner's index too. On a single server
// both are one transaction, in one round trip. With a LockingStore, and on Cluster,
// Ring and an AutoPipeliner, the index is written first and the session after it, so
// that the index may list a session that was never written, for a while, but not lack
// one that was. With IdleTimeout, Get tells the index that the session lives on: one
// more command. If that fails for as long as twice IdleTimeout, while the session, on
// another server, is read all the time, Revoke misses it.
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
	escaped, _ := session.Values[ownerKey].(string)
	owner, err := url.PathUnescape(escaped)
	if err != nil {
		return ""
	}
	return owner
}

// Sessions returns the owner's living sessions, in the order in which they will end
// if nobody uses them: to show a user their devices (OWASP ASVS 5.0, 7.5.2). Reading
// them here does not count against IdleTimeout.
//
// They have no name and so no cookie. To end one of them, set its Options.MaxAge to
// -1 and Save it; do not save them otherwise. An owner without sessions has an empty
// list, and no error.
//
// Those that cannot be decoded are left out and joined to the error, beside the
// others: see [ErrNotLoaded].
func (s *Store) Sessions(ctx context.Context, owner string) ([]*sessions.Session, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	entries, err := s.index(ctx, owner)
	if err != nil {
		return nil, failed("sessions", err)
	}
	found, err := s.look(ctx, owner, entries)
	if err != nil {
		return nil, failed("sessions", err)
	}
	var list []*sessions.Session
	for _, f := range found.alive {
		if f.over {
			continue
		}
		if f.err != nil {
			err = errors.Join(err, &loadError{fmt.Errorf("%s: %w", f.session.ID, f.err)})
			continue
		}
		list = append(list, f.session)
	}
	_ = s.forget(ctx, owner, found.dead) // if this fails, the next use does it
	return list, err
}

// Revoke ends all of the owner's sessions but those whose IDs are in keep, and says
// how many were alive: to log out everywhere, after a change of password, or where
// an account was disabled (OWASP ASVS 5.0, 7.4.2, 7.4.3, 7.4.5). A request that is
// running on one of them gets ErrGone from its Save. Sessions that cannot be decoded
// are ended too.
//
// It can be repeated, and has to be after an error: then some may be left. Each of
// its steps takes 5 seconds at most: to read the index, and to end 100 sessions. A login that happens meanwhile may come
// before or after it.
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
	for round, again := 0, true; again; round++ {
		if round == maxRounds {
			return ended, errors.New("redistore: revoke: the owner logs in faster than sessions can be ended: repeat it")
		}
		entries, err := s.index(ctx, owner)
		if err != nil {
			return ended, failed("revoke", err)
		}
		entries = slices.DeleteFunc(entries, func(e redis.Z) bool { return slices.Contains(keep, e.Member.(string)) })
		again = false
		for _, e := range entries {
			again = again || !seen[e.Member.(string)]
			seen[e.Member.(string)] = true
		}
		for batch := range slices.Chunk(entries, revokeBatch) {
			alive, n, err := s.revoke(ctx, owner, batch)
			ended += n
			if err != nil {
				return ended, failed("revoke", err)
			}
			again = again || alive
		}
	}
	return ended, nil
}

// revoke ends those of the entries that are the owner's. It says whether any was
// found alive, and how many of them it ended itself.
func (s *Store) revoke(ctx context.Context, owner string, entries []redis.Z) (alive bool, ended int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found, err := s.look(ctx, owner, entries)
	if err != nil {
		return false, 0, err
	}
	dels := make([]*redis.IntCmd, len(found.alive))
	_, err = s.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, f := range found.alive {
			dels[i] = pipe.Del(ctx, s.key(f.session.ID))
			found.dead = append(found.dead, f.session.ID)
		}
		return nil
	})
	for _, del := range dels {
		ended += int(del.Val())
	}
	if err == nil {
		err = s.forget(ctx, owner, found.dead)
	}
	return len(dels) > 0, ended, err
}

// finding is what the sessions of an index turn out to be. What is neither may yet be
// written, or is another owner's by now, or about to be this one's.
type finding struct {
	alive []loaded
	dead  []string // IDs to be forgotten
}

type loaded struct {
	session *sessions.Session
	over    bool  // past AbsoluteTimeout, as this process has it
	err     error // it cannot be decoded
}

// look loads the sessions in one round trip.
func (s *Store) look(ctx context.Context, owner string, entries []redis.Z) (finding, error) {
	gets := make([]*redis.StringCmd, len(entries))
	_, _ = s.client.Pipelined(ctx, func(pipe redis.Pipeliner) error { // each has its own error
		for i, e := range entries {
			gets[i] = pipe.Get(ctx, s.key(e.Member.(string)))
		}
		return nil
	})
	var f finding
	for i, e := range entries {
		id := e.Member.(string)
		data, err := gets[i].Bytes()
		_, fraction := math.Modf(e.Score)
		switch {
		case errors.Is(err, redis.Nil) && fraction == pending && s.now().Sub(created(id)) < settled:
		case errors.Is(err, redis.Nil):
			f.dead = append(f.dead, id)
		case err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE"):
			return finding{}, err
		default:
			session := sessions.NewSession(s, "")
			session.ID, session.Options = id, s.options()
			if err == nil {
				err = s.decode(data, session)
			}
			if err != nil || Owner(session) == owner {
				f.alive = append(f.alive, loaded{session, s.lifetime(id, maxLifetime) <= 0, err})
			}
		}
	}
	return f, nil
}

// index reads the owner's index.
func (s *Store) index(ctx context.Context, owner string) ([]redis.Z, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.client.ZRangeWithScores(ctx, s.indexKey(owner), 0, -1).Result()
}

// forget takes IDs out of the index.
func (s *Store) forget(ctx context.Context, owner string, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	return s.client.Process(ctx, s.forgetting(ctx, owner, ids))
}

func (s *Store) forgetting(ctx context.Context, owner string, ids []string) redis.Cmder {
	args := []any{"zrem", s.indexKey(owner)}
	for _, id := range ids {
		args = append(args, id)
	}
	return redis.NewIntCmd(ctx, args...)
}

// indexKey is not a session's: no ID starts like this, nor is any name as long as
// its owner likes.
func (s *Store) indexKey(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return s.KeyPrefix + "owner:" + hex.EncodeToString(sum[:])
}

// remember notes a session for ARGV[2] seconds from now, Redis' now, and lets the
// index live as long as the last in it. What Redis itself has ended by now goes. Where
// the session is not written in the same transaction, which ARGV[3] tells, it may not
// be written at all: then a longer life that was noted before stays.
const remember = `
local now = tonumber(redis.call("TIME")[1])
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", "(" .. now)
local score = now + ARGV[2] + 1 + ARGV[3]
if ARGV[3] == "0" then
	redis.call("ZADD", KEYS[1], score, ARGV[1])
else
	redis.call("ZADD", KEYS[1], "GT", score, ARGV[1])
end
local last = redis.call("ZREVRANGE", KEYS[1], 0, 0, "WITHSCORES")
return redis.call("EXPIRE", KEYS[1], math.ceil(last[2] - now))
`

func init() {
	accompany = func(ctx context.Context, s *Store, session *sessions.Session, ttl time.Duration, ended ...string) (before, after []redis.Cmder) {
		owner := Owner(session)
		if owner == "" {
			return nil, nil
		}
		if ttl > 0 {
			before = []redis.Cmder{s.remembering(ctx, owner, session, ttl)}
		}
		if len(ended) > 0 {
			after = []redis.Cmder{s.forgetting(ctx, owner, ended)}
		}
		return before, after
	}
}

func (s *Store) remembering(ctx context.Context, owner string, session *sessions.Session, ttl time.Duration) redis.Cmder {
	if s.IdleTimeout > 0 {
		// Every Get lets it live longer, and tells the index so. That one may fail, and the
		// next will do it.
		ttl = max(ttl, 2*s.IdleTimeout)
	}
	mark := pending
	if _, single := s.client.(*redis.Client); single && session.Store() == sessions.Store(s) {
		mark = 0 // one transaction; a store around this one, such as the lock, has its own way
	}
	cmd := redis.NewCmd(ctx, "eval", remember, 1, s.indexKey(owner), session.ID,
		strconv.FormatInt(seconds(ttl+time.Second-1), 10), mark)
	cmd.SetFirstKeyPos(3)
	return cmd
}
