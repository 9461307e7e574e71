package redistore

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed" // the scripts
	"errors"
	"math"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/lock"
	"github.com/redistore/redistore/internal/script"
)

// A record is a session as Redis holds it.
type record struct {
	id    string
	owner string // "": nobody
	data  []byte
	ttl   time.Duration
}

// records are those of one store. Every command that Redis gets for them is here, but for the
// lock's (internal/lock), an owner's index (owner.go) and Ping's (ping.go). P is KeyPrefix:
//
//	P + ID                  what the Serializer made; min(MaxAge, IdleTimeout, what is left of AbsoluteTimeout)
//	{P + ID}:replaced       the renewal marker: a token; a minute. Of a cookie of CookieStore: its SHA-256
//	{P + ID}:lock, :version, :queue, :TOKEN    the lock's, see there
//	P + owner:SHA-256       an owner's index: a sorted set of IDs; until its last session ends
//
// On a single server what has to be done together is one script. Where the keys may be on
// several servers, it is done step by step: what a failure between two steps leaves behind
// is an index that lists too much, or two records of which nobody knows one.
type records struct {
	client  redis.UniversalClient
	scripts *script.Runner
	prefix  string
	idle    time.Duration // IdleTimeout
	wait    time.Duration // how long a write may take once the index knows of it
	locked  bool          // each record has a lock beside it
}

const (
	// renewed is how long a renewal marker lives: longer than requests that were sent with
	// the old cookie are still on their way.
	renewed = time.Minute

	// maxLifetime is what a longer MaxAge is cut to, 68 years: beyond 292 years a
	// time.Duration overflows, and go-redis takes what is left of it for "no expiry".
	maxLifetime = math.MaxInt32 * time.Second
)

var (
	//go:embed lua/index.lua
	indexLua string
	//go:embed lua/remember.lua
	rememberLua string
	//go:embed lua/save.lua
	saveLua string
	//go:embed lua/move.lua
	moveLua string
	//go:embed lua/renew.lua
	renewLua string
	//go:embed lua/end.lua
	endLua string
	//go:embed lua/claim.lua
	claimLua string
	//go:embed lua/confine.lua
	confineLua string

	rememberScript = script.New(indexLua, rememberLua)
	createScript   = script.Once(indexLua, saveLua)
	saveScript     = script.New(indexLua, saveLua)
	renewScript    = script.New(indexLua, moveLua, renewLua)
	endScript      = script.New(endLua)
	claimScript    = script.New(claimLua)
	confineScript  = script.New(confineLua)

	// What a locked write does beside its own.
	listPrelude = lock.NewPrelude("remember(KEYS[6], ARGV[11], tonumber(ARGV[12]))", indexLua)
	movePrelude = lock.NewPrelude(`move(6, 12); forget(KEYS[7], ARGV[12] ~= "", ARGV[11])`, indexLua, moveLua) // the one that the write deletes
)

func (db records) key(id string) string { return db.prefix + id }

// mark is the key of the renewal marker: it says that another ID has replaced this one,
// so that a request which still comes with the old cookie does not start a session whose
// cookie would throw the new one away. It is no way in.
func (db records) mark(id string) string {
	const suffix = ":replaced"
	return cmp.Or(lock.Beside(db.key(id), suffix), db.key(id)+suffix)
}

// single tells whether all keys are on one server.
func (db records) single() bool {
	_, single := db.client.(*redis.Client)
	return single
}

// read returns redis.Nil if there is no such record. With an IdleTimeout it lives on for
// life.
func (db records) read(ctx context.Context, id string, life time.Duration) ([]byte, error) {
	if db.idle > 0 {
		return db.client.GetEx(ctx, db.key(id), life).Bytes()
	}
	return db.client.Get(ctx, db.key(id)).Bytes()
}

// replaced tells whether any of these IDs, which have no record, was renewed a moment ago.
func (db records) replaced(ctx context.Context, ids []string) (bool, error) {
	marks := make([]string, len(ids))
	for i, id := range ids {
		marks[i] = db.mark(id)
	}
	exists := db.each(ctx, "exists", marks)
	err := db.send(ctx, exists...)
	return sum(exists) > 0, err
}

// unclaimed returns ErrGone if there is a marker for an ID that has no record.
func (db records) unclaimed(ctx context.Context, id string) error {
	replaced, err := db.replaced(ctx, []string{id})
	if err == nil && replaced {
		return ErrGone
	}
	return failed("save", err)
}

// each makes commands of keys that return how many there were: one for all of them, or
// one for each where they may be on several servers.
func (db records) each(ctx context.Context, name string, keys []string) (cmds []redis.Cmder) {
	size := 1
	if db.single() {
		size = max(1, len(keys))
	}
	for some := range slices.Chunk(keys, size) {
		args := []any{name}
		for _, key := range some {
			args = append(args, key)
		}
		cmds = append(cmds, redis.NewIntCmd(ctx, args...))
	}
	return cmds
}

func sum(cmds []redis.Cmder) (n int) {
	for _, cmd := range cmds {
		n += int(cmd.(*redis.IntCmd).Val())
	}
	return n
}

// create writes a new record. It needs no NX: nobody else can draw the same 256 bits. It
// is never repeated under the same ID, because what was sent may arrive late, and must not
// bring back a session that was logged out by then: see unsettled.
func (db records) create(ctx context.Context, rec record) error {
	set := script.Unrepeated(redis.NewStatusCmd(ctx, "set", db.key(rec.id), rec.data, "ex", seconds(rec.ttl)))
	var err error
	switch {
	case rec.owner == "":
		err = db.send(ctx, set)
	case db.single():
		err = db.runSave(ctx, createScript, rec, "create")
	default:
		if err = db.remember(ctx, rec, db.wait); err == nil {
			err = db.send(ctx, set)
		}
	}
	if err != nil && rec.owner != "" {
		db.takeBack(ctx, rec) // or the owner may have a session that nobody uses
	}
	return unsettle(failed("save", err))
}

// takeBack ends a record whose ID nobody knows yet. If this fails, it expires. A call whose
// time is over does not wait for it.
func (db records) takeBack(ctx context.Context, rec record) {
	if ctx.Err() == nil {
		_, _ = db.delete(ctx, rec.owner, rec.id)
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		_, _ = db.delete(ctx, rec.owner, rec.id)
	}()
}

// overwrite needs XX: a key that is gone was logged out or has expired, and must
// not come back.
func (db records) overwrite(ctx context.Context, rec record) error {
	set := redis.NewStatusCmd(ctx, "set", db.key(rec.id), rec.data, "ex", seconds(rec.ttl), "xx")
	return failed("save", db.change(ctx, rec, "overwrite", set))
}

// expire lets a record live for its ttl from now.
func (db records) expire(ctx context.Context, rec record) error {
	expire := redis.NewBoolCmd(ctx, "expire", db.key(rec.id), seconds(rec.ttl))
	return failed("touch", db.change(ctx, rec, "expire", expire))
}

// change does to a record that exists what cmd does, and tells its owner's index before.
func (db records) change(ctx context.Context, rec record, what string, cmd redis.Cmder) error {
	if rec.owner != "" && db.single() {
		return db.runSave(ctx, saveScript, rec, what)
	}
	if rec.owner != "" {
		if err := db.remember(ctx, rec, db.wait); err != nil {
			return err
		}
	}
	err := db.send(ctx, cmd)
	if expire, ok := cmd.(*redis.BoolCmd); errors.Is(err, redis.Nil) || ok && err == nil && !expire.Val() {
		db.remove(ctx, rec.owner, rec.id)
		return ErrGone
	}
	return err
}

func (db records) runSave(ctx context.Context, s *script.Script, rec record, what string) error {
	keys := []any{db.key(rec.id), db.index(rec.owner)}
	found, err := db.scripts.Run(ctx, s, keys, rec.id, db.listedFor(rec.ttl), what, seconds(rec.ttl), rec.data).Bool()
	if err == nil && !found {
		return ErrGone
	}
	return err
}

// replace writes a record under a new ID and ends the old ones, the first of which was
// loaded: unless that is gone already, for then somebody else was first.
func (db records) replace(ctx context.Context, rec record, old []string) error {
	token := rand.Text()
	if db.single() {
		return failed("renew", db.runRenew(ctx, rec, old, token))
	}
	if err := db.create(ctx, rec); err != nil {
		return err
	}
	ended, err := db.end(ctx, old[0], token)
	if err != nil || !ended {
		db.takeBack(ctx, rec)
		if err == nil {
			err = ErrGone
		}
		return failed("renew", err)
	}
	db.remove(ctx, rec.owner, append(db.endPlanted(ctx, old[1:], token), old[0])...)
	return nil
}

func (db records) runRenew(ctx context.Context, rec record, old []string, token string) error {
	keys, args := db.move(rec, old, token)
	moved, err := db.scripts.Run(ctx, renewScript, keys, args...).Bool()
	if err == nil && !moved {
		return ErrGone
	}
	return err
}

// move returns what lua/move.lua takes.
func (db records) move(rec record, old []string, token string) (keys, args []any) {
	id, index := rec.id, db.index(rec.owner)
	if rec.owner == "" {
		id, index = "", db.key(rec.id)
	}
	keys = []any{db.key(rec.id), index}
	args = []any{id, db.listedFor(rec.ttl), seconds(rec.ttl), rec.data, token, seconds(renewed)}
	for _, id := range old {
		keys = append(keys, db.key(id), db.mark(id))
		args = append(args, id)
	}
	return keys, args
}

// endPlanted ends the other IDs that a renewed session's cookies prove, and returns those that
// are over. One that cannot be ended may be the owner's, and has to stay in the index.
func (db records) endPlanted(ctx context.Context, ids []string, token string) (over []string) {
	for _, id := range ids {
		if _, err := db.end(ctx, id, token); err == nil {
			over = append(over, id)
		}
	}
	return over
}

// end deletes a record that another has replaced, and says so in its marker.
func (db records) end(ctx context.Context, id, token string) (bool, error) {
	return db.scripts.Run(ctx, endScript, db.ending(id), token, seconds(renewed)).Bool()
}

// ending are the keys of lua/end.lua.
func (db records) ending(id string) []any {
	if lock.Beside(db.key(id), "") == "" {
		return []any{db.key(id)} // a Cluster could not run it with both; who uses braces like this does without
	}
	return []any{db.key(id), db.mark(id)}
}

// claim leaves a marker for an ID that has no record, or returns ErrGone if there is one.
func (db records) claim(ctx context.Context, id string) error {
	first, err := db.scripts.Run(ctx, claimScript, []any{db.mark(id)}, rand.Text(), seconds(renewed)).Bool()
	if err == nil && !first {
		return ErrGone
	}
	return failed("renew", err)
}

// delete ends records, takes them out of the owner's index after that, and says how many
// there were.
//
// It is no transaction: a Redis whose memory is full refuses those, even to delete.
func (db records) delete(ctx context.Context, owner string, ids ...string) (int, error) {
	var keys []string
	for _, id := range ids {
		keys = append(keys, db.key(id))
		if db.locked {
			keys = append(keys, lock.Keys(db.key(id))...)
		}
	}
	dels := db.each(ctx, "del", keys)
	err := db.send(ctx, dels...)
	if owner != "" && len(ids) > 0 && err == nil { // what lives on must stay in the index
		err = db.send(ctx, db.removing(ctx, owner, ids))
	}
	return sum(dels), failed("delete", err)
}

// send sends commands in one round trip, or one to each server, and returns the first
// error.
func (db records) send(ctx context.Context, cmds ...redis.Cmder) error {
	switch len(cmds) {
	case 0:
		return nil
	case 1:
		_ = db.client.Process(ctx, cmds[0])
		return cmds[0].Err() // an AutoPipeliner may only have it later
	}
	_, err := db.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, cmd := range cmds {
			_ = pipe.Process(ctx, cmd)
		}
		return nil
	})
	return err
}

// unsettled is an error after which the same may be tried again under another ID.
type unsettled struct{ error }

func (u unsettled) Unwrap() error { return u.error }

// unsettle marks the errors of a connection, and those that Redis gives in passing.
func unsettle(err error) error {
	if err == nil || script.IsReply(err) && !script.IsPassing(err) {
		return err
	}
	return unsettled{err}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }
