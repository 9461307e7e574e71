package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

func TestLoginVisitsAndLogout(t *testing.T) {
	mini, err := startMini(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	store := redistore.New(redis.NewClient(&redis.Options{Addr: mini.Addr()}), make([]byte, 32))
	store.Options.Secure = false
	srv := httptest.NewServer((&app{store}).handler())
	defer srv.Close()
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar}
	read := func(r *http.Response, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.Status + string(body)
	}
	want := func(body string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%q is not on the page:\n%s", w, body)
			}
		}
	}
	want(read(browser.Get(srv.URL)), "200", "here 1 time.", "Your name")
	want(read(browser.PostForm(srv.URL+"/login", url.Values{"name": {""}})), "400")
	want(read(browser.PostForm(srv.URL+"/login", url.Values{"name": {"<Ann>"}})), "Welcome, &lt;Ann&gt;", "here 2 times", "Log out")
	if body := read(browser.Get(srv.URL)); strings.Contains(body, "Welcome") {
		t.Error("the flash was shown twice")
	}
	want(read(browser.PostForm(srv.URL+"/logout", nil)), "here 1 time.", "Your name")

	mini.SetError("LOADING Redis is loading the dataset in memory")
	want(read(browser.Get(srv.URL)), "503")
	want(read(browser.PostForm(srv.URL+"/login", url.Values{"name": {"Ann"}})), "503")
	mini.SetError("")
	want(read(browser.Get(srv.URL)), "200", "here 2 times")

	r, _ := http.NewRequest("POST", srv.URL+"/logout", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	want(read(browser.Do(r)), "403")
}

func TestRunSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for want, args := range map[string][]string{
		"address already in use (choose another with -addr)": {"-addr", taken.Addr().String()},
		"connection refused":                {"-redis", "redis://127.0.0.1:1"},
		"-redis: redis: invalid URL scheme": {"-redis", "http://localhost"},
		"flag provided but not defined":     {"-nonsense"},
	} {
		err := run(t.Context(), args)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got error %v, want %q in it", args, err, want)
		}
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
