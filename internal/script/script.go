// Package script runs Lua in Redis: in full until Redis is known to have a script, by its
// digest from then on.
package script

import (
	"context"
	"crypto/fips140"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A Script is the text of one, and how Redis names it.
type Script struct {
	text   string
	digest any // a string
	once   bool
}

// New returns the script that is these pieces of Lua, one after the other. It is one
// that may be repeated: go-redis sends it again when a reply is lost.
func New(pieces ...string) *Script {
	text := strings.Join(pieces, "\n")
	return &Script{text: text, digest: Digest(text)}
}

// Once returns New's script as one that go-redis must not send again.
func Once(pieces ...string) *Script {
	s := New(pieces...)
	s.once = true
	return s
}

// Digest is SHA-1, by which Redis names scripts and compares values. It protects nothing, so that it may be
// used where only what FIPS 140 approves may protect.
func Digest[T string | []byte](text T) (name string) {
	fips140.WithoutEnforcement(func() {
		sum := sha1.Sum([]byte(text))
		var hexed [2 * sha1.Size]byte
		hex.Encode(hexed[:], sum[:])
		name = string(hexed[:])
	})
	return name
}

// A Runner runs scripts on one client, and remembers which ones Redis has. It may be
// used by many goroutines.
type Runner struct {
	Client redis.UniversalClient
	known  sync.Map // digests
}

// Run runs a script on these keys, the first of which tells a Cluster or a Ring where.
func (r *Runner) Run(ctx context.Context, s *Script, keys []any, args ...any) *redis.Cmd {
	if _, known := r.known.Load(s.digest); known {
		cmd := r.send(ctx, s, command("evalsha", s.digest, keys, args))
		if !redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
			return cmd
		}
	}
	cmd := r.send(ctx, s, command("eval", s.text, keys, args))
	if cmd.Err() == nil || cmd.Err() == redis.Nil {
		r.known.Store(s.digest, true)
	}
	return cmd
}

// Eval makes a command that runs the script, for a pipeline; EvalSHA one for after that.
func (s *Script) Eval(ctx context.Context, keys []any, args ...any) redis.Cmder {
	return keyed(redis.NewCmd(ctx, command("eval", s.text, keys, args)...))
}

func (s *Script) EvalSHA(ctx context.Context, keys []any, args ...any) redis.Cmder {
	return keyed(redis.NewCmd(ctx, command("evalsha", s.digest, keys, args)...))
}

func keyed(cmd *redis.Cmd) *redis.Cmd {
	cmd.SetFirstKeyPos(3)
	return cmd
}

func (r *Runner) send(ctx context.Context, s *Script, args []any) *redis.Cmd {
	cmd := keyed(redis.NewCmd(ctx, args...))
	if s.once {
		_ = r.Client.Process(ctx, Unrepeated(cmd))
	} else {
		_ = r.Client.Process(ctx, cmd)
	}
	return cmd
}

func command(name string, text any, keys, args []any) []any {
	all := append(make([]any, 0, 3+len(keys)+len(args)), name, text, len(keys))
	return append(append(all, keys...), args...)
}

// IsReply tells an error that Redis answered, having done nothing, from one of the
// connection, which leaves open what was done.
func IsReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// IsPassing tells the errors of a Redis that restarts, fails over or moves a slot: ASK is what
// is left where go-redis was sent to and fro. Redis 6.2 puts words of its own before the one that
// a script meets.
func IsPassing(err error) bool {
	return IsReply(err) && strings.Contains(err.Error(), ": -READONLY ") || slices.ContainsFunc([]string{"ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN"}, func(prefix string) bool {
		return redis.HasErrorPrefix(err, prefix)
	})
}

// Unrepeated returns a command that go-redis must not send again.
func Unrepeated(cmd redis.Cmder) redis.Cmder { return unrepeated{cmd} }

type unrepeated struct{ redis.Cmder }

func (unrepeated) NoRetry() bool { return true }
