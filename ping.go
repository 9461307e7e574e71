package redistore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// minKey is the length of an authentication key, in bytes, below which somebody who has a
// cookie may find the key by trying.
const minKey = 16

// Ping reports whether the store can do its work. First it looks at the configuration, and
// refuses authentication keys of fewer than 16 bytes, with which Get and Save still work, as
// CookieStore does. Then it has Redis do what the store may ask for: all commands and scripts,
// on keys of its own that start with KeyPrefix and expire after 10 seconds. So it finds a
// plain client on a Cluster, a replica, a user who lacks a right, a Redis that is too old or
// has no scripts, and one whose memory is full. It refuses a client that reads from replicas.
//
// The error says what to change. It takes one round trip, and 5 seconds at most. Where there
// are several servers, it asks the few that its keys fall on, which are others each time. Call
// it when the program starts, and where an orchestrator asks whether the server is ready.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	return s.try(ctx, s.records().trial(ctx, trialID()))
}

// Ping is [Store.Ping] with the lock's configuration, and all that the lock needs. It does not
// test the wake-ups: without them servers poll.
func (l *LockingStore) Ping(ctx context.Context) error {
	if err := l.check(); err != nil {
		return err
	}
	id := trialID()
	db := l.records()
	return l.try(ctx, db.trial(ctx, id, l.locker().Trial(ctx, db.key(id), trialLife)...))
}

var errReplicas = errors.New("redistore: ping: the client reads from replicas, which may not have a login yet: leave ReadOnly, RouteByLatency and RouteRandomly off")

func trialID() string { return "ping." + rand.Text() }

const trialLife = 10 * time.Second

// try sends the commands of a trial, and says what is wrong.
func (s *Store) try(ctx context.Context, cmds []redis.Cmder) error {
	for _, short := range s.short {
		if slices.Contains(s.Codecs, short.codec) { // which may have been set to others
			return short.err
		}
	}
	if cluster, ok := s.client.(*redis.ClusterClient); ok && cluster.Options().ReadOnly {
		return errReplicas
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := s.records().send(ctx, cmds...)
	for _, cmd := range cmds { // the pipeline's error is the first, be it redis.Nil
		if err == nil || errors.Is(err, redis.Nil) {
			err = cmd.Err()
		}
	}
	if err == nil || errors.Is(err, redis.Nil) {
		return nil
	}
	if advice := adviceOn(err.Error()); advice != "" {
		err = fmt.Errorf("%s: %w", advice, err)
	}
	return failed("ping", err)
}

// trial returns what a store may ask of Redis, for a record of its own. more is for that
// record while it is there.
func (db records) trial(ctx context.Context, id string, more ...redis.Cmder) []redis.Cmder {
	next := record{id: id + ".next", owner: id, ttl: trialLife}
	key, life := db.key(id), seconds(trialLife)
	index := []any{db.index(id)}
	cmds := []redis.Cmder{
		redis.NewStatusCmd(ctx, "set", key, "", "ex", life),
		rememberScript.Eval(ctx, index, id, life, 0),
		rememberScript.EvalSHA(ctx, index, id, life, 0),
		redis.NewStringCmd(ctx, "get", key),
		redis.NewIntCmd(ctx, "exists", db.mark(id)),
		redis.NewBoolCmd(ctx, "expire", key, life),
		redis.NewZSliceCmd(ctx, "zrange", index[0], 0, -1, "withscores"),
	}
	if db.idle > 0 {
		cmds = append(cmds, redis.NewStringCmd(ctx, "getex", key, "ex", life))
	}
	cmds = append(cmds, more...)
	if db.single() {
		keys, args := db.move(next, []string{id}, id)
		args[5] = life // of the marker
		cmds = append(cmds, confineScript.Eval(ctx, []any{key, index[0]}, id), renewScript.Eval(ctx, keys, args...))
	} else {
		cmds = append(cmds, endScript.Eval(ctx, db.ending(id), id, life))
	}
	cmds = append(cmds, db.each(ctx, "del", []string{key, db.key(next.id), db.mark(id)})...)
	return append(cmds, db.removing(ctx, id, []string{id, next.id}))
}

// adviceOn says what to change; "" if that is not known. Redis gives errors from within a
// script with other words around them, and 6.2 with others than 7.
func adviceOn(err string) string {
	for _, known := range []struct{ in, advice string }{
		{"MOVED ", "this is a Redis Cluster: make the client with redis.NewClusterClient"},
		{"CROSSSLOT ", "this is a Redis Cluster: make the client with redis.NewClusterClient"},
		{"READONLY ", "this is a replica: let the client connect to the primary, for which there are redis.NewFailoverClient and redis.NewClusterClient"},
		{"NOREPLICAS ", "too few replicas are connected for min-replicas-to-write: connect them, or lower it"},
		{"OOM ", "the memory of Redis is full: raise maxmemory, or keep less"},
		{"MISCONF ", "Redis cannot save to its disk: make room, or see its log"},
		{"NOAUTH ", "Redis wants a password: set Username and Password in the client's Options"},
		{"WRONGPASS ", "Redis does not know this user and password: look at Username and Password in the client's Options"},
		{"NOPERM ", lacksRights},
		{"ACL failure in script", lacksRights},
		{"The user executing the script", lacksRights},
		{"unknown command", tooOld},
		{"Unknown Redis command called from script", tooOld},
		{"Unknown command called from script", tooOld}, // Valkey's
		{"syntax error", tooOld},
	} {
		if strings.Contains(err, known.in) {
			return known.advice
		}
	}
	return ""
}

const (
	lacksRights = "the Redis user lacks a right: give it what the ACL rule in docs/production.md has"
	tooOld      = "this Redis lacks a command: it takes Redis 6.2 or later, or any Valkey, with scripts"
)
