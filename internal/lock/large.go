package lock

import (
	"context"
	"time"
)

// large is the length of a value, in bytes, beyond which it is read and written by a command
// of its own. A script would make a Lua string of it, and Redis' Lua hashes each byte: for
// 256 KB that takes longer than to read and write them.
const large = 16 << 10

// get reads a large value, by a command that no client answers from its cache. If it was
// changed since it was locked, Version is older, and a Write finds a conflict.
func (a *attempt) get(ctx context.Context) (string, error) {
	value, err := a.do(ctx, "getex", a.Key)
	text, _ := value.(string)
	return text, err
}

// stage puts a large value where the script finds it.
func (a *attempt) stage(ctx context.Context, key string, data []byte, life time.Duration) error {
	_, err := a.do(ctx, "set", key, data, "ex", seconds(life))
	return err
}

// do sends one command, and waits like any attempt for a Redis that is busy with itself.
func (a *attempt) do(ctx context.Context, args ...any) (any, error) {
	return a.ask(ctx, func(int64) (any, error) {
		ctx, cancel := a.bounded(ctx)
		defer cancel()
		return a.locker.Scripts.Client.Do(ctx, args...).Result()
	})
}

// unstage drops what was not written. If that fails, it expires.
func (l *Locker) unstage(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	_ = l.Scripts.Client.Del(ctx, key).Err()
}
