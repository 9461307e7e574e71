package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
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
		{"-redis: the URL cannot be parsed", []string{"-redis", "redis://:secret@localhost:port"}},
		{"-redis: the URL cannot be parsed", []string{"-redis", "redis://user:secret/1@localhost:6379"}},
		{"it should look like redis://", []string{"-redis", "localhost:6379"}},
		{"-cluster needs -redis", []string{"-cluster"}},
		{"flag provided but not defined: -nonsense (-h", []string{"-nonsense"}},
		{`"nonsense" is not a flag (-h`, []string{"nonsense"}},
	} {
		err := run(t.Context(), append([]string{"-addr", "127.0.0.1:0"}, c.args...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got error %v, want %q in it", c.args, err, c.want)
		}
	}
	help := &strings.Builder{}
	if err := run(t.Context(), []string{"-h"}, help); err != nil || !strings.Contains(help.String(), "-cluster") {
		t.Errorf("-h: %v, %q", err, help)
	}
}

func TestRunServesUntilItIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-addr", "127.0.0.1:0"}, out)
		out.Close()
		ended <- err
	}()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(<-ended)
	}
	r, err := http.Get(regexp.MustCompile(`http://\S+`).FindString(line))
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
