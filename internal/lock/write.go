package lock

import (
	"cmp"
	"context"
	_ "embed" // the scripts
	"errors"
	"slices"
	"time"

	"github.com/redistore/redistore/internal/script"
)

var (
	//go:embed lua/handover.lua
	handoverLua string
	//go:embed lua/acquire.lua
	acquireLua string
	//go:embed lua/write.lua
	writeLua string
	//go:embed lua/release.lua
	releaseLua string

	acquireScript = script.New(handoverLua, acquireLua)
	writeScript   = script.Once(handoverLua, "local prelude", writeLua)
	releaseScript = script.New(handoverLua, releaseLua)
)

// A Version is what a writer has seen: the token of the last write, and the digest of what
// it wrote, for where Redis has lost the token. A write of its own whose outcome is unknown
// may be the last one too. Versions do not change.
type Version struct {
	last  sight
	maybe []attempted
}

type sight struct{ token, digest string }

type attempted struct {
	sight
	err error // why it is not known what became of it
}

func saw(token string, data []byte) *Version {
	return &Version{last: sight{token, script.Digest(data)}}
}

// Created is the version of a key that was written without a lock: nobody knew it yet.
func Created(data []byte) *Version { return saw("", data) }

// Same tells whether both have seen the same value.
func (v *Version) Same(other *Version) bool {
	return v != nil && other != nil && len(v.maybe) == 0 && len(other.maybe) == 0 && v.last.digest == other.last.digest
}

// A Prelude is Lua that a Write runs in its script, once it is certain that it may write
// and before it does so: all of both is done, or nothing. It finds its keys from KEYS[6]
// and its arguments from ARGV[11]. It is for a single server, as its keys may be in any
// slot.
type Prelude struct{ script *script.Script }

// NewPrelude makes a prelude of the body of a Lua function, and of what stands before it.
func NewPrelude(body string, before ...string) *Prelude {
	pieces := append(slices.Clone(before), handoverLua, "local function prelude()", body, "end", writeLua)
	return &Prelude{script.Once(pieces...)}
}

// A Write says what to write, under a Want's conditions.
type Write struct {
	Want
	Lease *Lease // nil, or ended: the lock is taken for the write
	Seen  *Version

	Data   []byte
	Expiry time.Duration // 0: delete the key
	Mark   string        // a key that is written where one is deleted, in the same slot
	Marked time.Duration // its expiry

	Prelude *Prelude // nil: none
	Keys    []any    // the prelude's
	Args    []any
}

// Write writes the key if it is still what Seen says, and releases the lock. It returns the
// Version for the writer's next Write, also with an error. After an error of the connection
// that Version includes this attempt: the next Write is done if nobody but this writer has
// written. If Redis has lost :version by then, and the value is what this attempt would have
// written, nobody can tell whose it is, and the next Write returns the same error.
//
// Other errors are ErrGone, ErrConflict and ErrLocked, after which nothing was written,
// and Redis' own.
func (l *Locker) Write(ctx context.Context, w Write) (*Version, error) {
	a := l.attempt(w.Want)
	defer a.end()
	lease := w.Lease
	if lease != nil { // what it had may still be locked, by another clock than ours
		a.Owner, a.token = lease.owner, lease.token
	}
	for lease == nil || !lease.close() { // it waits like anybody else
		var err error
		if lease, err = a.enter(ctx); err != nil {
			return w.Seen, err
		}
	}
	token := l.newToken()
	reply, lost, err := a.send(ctx, w, lease, token)
	if lost != nil || err != nil && !script.IsReply(err) && !errors.Is(err, ErrLocked) {
		why := attempted{sight{token, script.Digest(w.Data)}, cmp.Or(lost, err)}
		w.Seen = &Version{w.Seen.last, append(slices.Clone(w.Seen.maybe), why)}
	}
	if err != nil {
		a.giveUp(lease, err)
		if errors.Is(err, ErrLocked) {
			err = cmp.Or(lost, err)
		}
		return w.Seen, err
	}
	if a.waits.IsZero() {
		lease.end()
	} else { // its place in the queue may be left, if its turn had not come
		go lease.release()
	}
	switch {
	case reply == "done":
		return saw(token, w.Data), nil
	case lost != nil: // a lost attempt may have been done before others came
		return w.Seen, lost
	case reply == "gone":
		return w.Seen, ErrGone
	case reply == "unknown":
		return w.Seen, w.Seen.maybe[len(w.Seen.maybe)-1].err
	}
	l.stats.conflicts.Add(1)
	return w.Seen, ErrConflict
}

// send runs the script until its outcome is known. It is not left to go-redis to repeat it:
// lost, the error of an attempt that may have been done, is known only here.
func (a *attempt) send(ctx context.Context, w Write, holder *Lease, token string) (reply any, lost, err error) {
	s := writeScript
	if w.Prelude != nil {
		s = w.Prelude.script
	}
	fifth, data := cmp.Or(w.Mark, w.Key), w.Data
	if len(data) > a.locker.large {
		fifth, data = Beside(w.Key, ":"+token), nil
		if err := a.stage(ctx, fifth, w.Data, a.life()); err != nil {
			return nil, nil, err
		}
		defer func() {
			if err != nil {
				go a.locker.unstage(ctx, fifth)
			}
		}()
	}
	keys := append(append(make([]any, 0, 5+len(w.Keys)), holder.keys...), fifth)
	keys = append(keys, w.Keys...)
	args := append(make([]any, 0, 10+len(w.Args)+2+2*len(w.Seen.maybe)), holder.token, a.locker.process, int64(0),
		millis(reserve), token, seconds(a.life()), data, seconds(w.Expiry), seconds(w.Marked), 1+len(w.Seen.maybe))
	args = append(append(args, w.Args...), w.Seen.last.token, w.Seen.last.digest)
	for _, s := range w.Seen.maybe {
		args = append(args, s.token, s.digest)
	}
	reply, err = a.ask(ctx, func(queue int64) (any, error) {
		ctx, cancel := a.bounded(ctx)
		defer cancel()
		args[2] = queue
		for attempt := 1; ; attempt++ {
			reply, err := a.locker.Scripts.Run(ctx, s, keys, args...).Result()
			if err == nil || script.IsReply(err) {
				return reply, err
			}
			if lost = err; attempt == attempts || !sleep(ctx, time.Duration(attempt)*10*time.Millisecond) {
				return nil, err
			}
		}
	})
	return reply, lost, err
}

// sleep reports whether there was time for it.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
