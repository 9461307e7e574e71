package lock

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/script"
)

// Trial returns commands that do to a key, which has a value, all that a Locker may: two
// processes want it, a large value is written, and all is given back. What they leave is
// gone after life.
func (l *Locker) Trial(ctx context.Context, key string, life time.Duration) []redis.Cmder {
	keys, ms, s := keysOf(key), millis(life), seconds(life)
	mine, theirs, other := l.newToken(), l.newToken(), l.process+":trial"
	staged := Beside(key, ":"+mine)
	acquire := func(token, process string, queue int64) redis.Cmder {
		return acquireScript.Eval(ctx, keys, token, process, queue, ms, ms, s, s, 0)
	}
	return []redis.Cmder{
		acquire(mine, l.process, 0),
		acquire(theirs, other, ms), // it has to wait
		redis.NewStatusCmd(ctx, "set", staged, "", "ex", s),
		writeScript.Eval(ctx, append(keys, staged), mine, l.process, 0, ms, theirs, s, "", s, 0, 1, mine, script.Digest("")),
		releaseScript.Eval(ctx, keys, theirs, other, ms),
		redis.NewStringCmd(ctx, "getex", key),
	}
}
