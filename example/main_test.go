package main

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRunSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		want string
		args []string
	}{
		{"address already in use (choose another address with -addr", []string{"-addr", taken.Addr().String()}},
		{"connection refused (is Redis running there?", []string{"-redis", "redis://127.0.0.1:1?max_retries=-1"}},
		{"connection refused (is Redis running there?", []string{"-redis", "redis://127.0.0.1:1?max_retries=-1&dialer_retries=1", "-cluster"}},
		{"(is Redis running there?", []string{"-redis", "redis://127.0.0.1:1?max_retries=-1&dialer_retries=1&master_name=mymaster"}},
		{"(is Redis running there?", []string{"-redis", "unix:///nowhere/redis.sock?max_retries=-1"}},
		{"-redis: redis: invalid URL scheme", []string{"-redis", "http://localhost"}},
		{"-redis: redis: invalid URL scheme", []string{"-redis", "http://localhost", "-cluster"}},
		{"-redis: redis: invalid URL scheme", []string{"-redis", "http://localhost?master_name=mymaster"}},
		{"-redis: invalid port", []string{"-redis", "redis://:secret@localhost:port"}},
		{"it should look like redis://", []string{"-redis", "localhost:6379"}},
		{"-cluster needs -redis", []string{"-cluster"}},
		{"flag provided but not defined: -nonsense (-h", []string{"-nonsense"}},
		{`"nonsense" is not a flag (-h`, []string{"nonsense"}},
	} {
		err := run(t.Context(), append([]string{"-addr", "127.0.0.1:0"}, c.args...))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got error %v, want %q in it", c.args, err, c.want)
		}
	}
	if err := run(t.Context(), []string{"-h"}); err != nil {
		t.Errorf("-h: %v", err)
	}
}

func TestRunServesUntilItIsStopped(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-addr", addr}) }()
	for {
		r, err := http.Get("http://" + addr)
		if err == nil {
			r.Body.Close()
			break
		}
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
