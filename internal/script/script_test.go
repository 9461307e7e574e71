package script

import (
	"context"
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/redisserver"
)

// names is a hook that notes the names of commands.
type names []string

func (n *names) DialHook(next redis.DialHook) redis.DialHook { return next }

func (n *names) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (n *names) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		*n = append(*n, cmd.Name())
		return next(ctx, cmd)
	}
}

// TestAScriptIsSentInFullOnce, and again when Redis has lost it.
func TestAScriptIsSentInFullOnce(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: redisserver.StartFor(t).Addr})
	defer c.Close()
	must(t, c.Ping(t.Context()).Err())
	var seen names
	c.AddHook(&seen)
	r := &Runner{Client: c}
	s := New("local k = KEYS[1]", `if k == "none" then return false end return {k, ARGV[1]}`)
	run := func(key, want string, commands ...string) {
		t.Helper()
		seen = nil
		got, err := r.Run(t.Context(), s, []any{key}, "arg").StringSlice()
		if want == "" && err != redis.Nil || want != "" && !slices.Equal(got, []string{want, "arg"}) {
			t.Errorf("Run returned %q, %v", got, err)
		}
		if !slices.Equal(seen, commands) {
			t.Errorf("Run sent %q, want %q", seen, commands)
		}
	}
	run("none", "", "eval")
	run("key", "key", "evalsha")
	must(t, c.ScriptFlush(t.Context()).Err())
	run("key", "key", "evalsha", "eval")
	run("key", "key", "evalsha")
}

// TestWhatMustNotBeRepeatedIsNot: go-redis repeats what fails, but for such a script.
func TestWhatMustNotBeRepeatedIsNot(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: redisserver.StartFor(t).Addr})
	defer c.Close()
	const text = `redis.call("INCR", KEYS[1]) return redis.error_reply("LOADING not yet")`
	for want, s := range map[int]*Script{1: Once(text), 4: New(text)} {
		must(t, c.Del(t.Context(), "n").Err())
		r := &Runner{Client: c}
		if err := r.Run(t.Context(), s, []any{"n"}).Err(); !redis.HasErrorPrefix(err, "LOADING") {
			t.Errorf("Run returned %v", err)
		}
		if n, _ := c.Get(t.Context(), "n").Int(); n != want {
			t.Errorf("it ran %d times, want %d", n, want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
