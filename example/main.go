// Example is a small web application whose sessions are in Redis: a login, a page
// that counts visits, and a logout.
//
//	go run ./example                                  # on a Redis of its own, in memory
//	go run ./example -redis redis://localhost:6379/0  # on yours
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// app is the application: its handlers, and the store they keep their sessions in.
type app struct{ store *redistore.Store }

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.home)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("POST /logout", a.logout)
	return http.NewCrossOriginProtection().Handler(mux) // CSRF
}

func (a *app) home(w http.ResponseWriter, r *http.Request) {
	session, err := a.store.Get(r, "session")
	if errors.Is(err, redistore.ErrNotLoaded) {
		a.unavailable(w, err)
		return
	}
	visits, _ := session.Values["visits"].(int)
	session.Values["visits"] = visits + 1
	flashes := session.Flashes()
	err = session.Save(r, w)
	if errors.Is(err, redistore.ErrGone) { // logged out in another tab just now
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	if err != nil {
		a.unavailable(w, err)
		return
	}
	page.Execute(w, map[string]any{"User": session.Values["user"], "Visits": visits + 1, "Flashes": flashes})
}

func (a *app) login(w http.ResponseWriter, r *http.Request) {
	session, err := a.store.Get(r, "session")
	if errors.Is(err, redistore.ErrNotLoaded) {
		a.unavailable(w, err)
		return
	}
	name := r.FormValue("name")
	if name == "" || len(name) > 100 {
		http.Error(w, "Please give a name of up to 100 bytes.", http.StatusBadRequest)
		return
	}
	session.Values["user"] = name
	session.AddFlash("Welcome, " + name + "! Your session has a new ID now.")
	// Renew, not Save: an ID from before the login is worth nothing after it.
	if err := a.store.Renew(r, w, session); err != nil {
		a.unavailable(w, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (a *app) logout(w http.ResponseWriter, r *http.Request) {
	session, _ := a.store.Get(r, "session") // logging out works on what cannot be read, too
	session.Options.MaxAge = -1
	if err := session.Save(r, w); err != nil {
		a.unavailable(w, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (a *app) unavailable(w http.ResponseWriter, err error) {
	slog.Error("session", "err", err)
	http.Error(w, "Sessions are not available just now. Please try again in a moment.", http.StatusServiceUnavailable)
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>redistore</title>
<style>
:root { color-scheme: light dark }
body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 3rem auto; padding: 0 1rem }
input, button { font: inherit; padding: .3rem .8rem }
</style>
<h1>redistore</h1>
{{range .Flashes}}<p role="status">{{.}}</p>{{end}}
<p>You were here {{.Visits}} {{if eq .Visits 1}}time{{else}}times{{end}}.</p>
{{with .User}}
<p>You are logged in as <strong>{{.}}</strong>.</p>
<form method="post" action="/logout"><button>Log out</button></form>
{{else}}
<form method="post" action="/login">
<label>Your name <input name="name" required maxlength="100" autocomplete="username"></label>
<button>Log in</button>
</form>
{{end}}
`))

// run serves the application until ctx ends.
func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("example", flag.ContinueOnError)
	addr := flags.String("addr", "localhost:8080", "address to listen on")
	url := flags.String("redis", "", "Redis to use, as redis://user:password@host:port/db; without it, one in memory")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	client, err := connect(ctx, *url)
	if err != nil {
		return err
	}
	defer client.Close()

	key := make([]byte, 32)
	rand.Read(key) // a real application keeps its key: cookies are signed with it
	store := redistore.New(client, key)
	store.Options.Secure = false // because this example speaks plain HTTP
	if err := store.Ping(ctx); err != nil {
		return err
	}

	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return fmt.Errorf("%w (choose another with -addr)", err)
	}
	srv := &http.Server{
		Handler:           (&app{store}).handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
	}
	context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		srv.Shutdown(ctx)
	})
	fmt.Printf("Open http://%s/ in a browser, log in, and reload. Ctrl-C stops.\n", l.Addr())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// connect returns a client of the Redis at url, or of one in this process.
func connect(ctx context.Context, url string) (*redis.Client, error) {
	options := &redis.Options{}
	if url == "" {
		mini, err := startMini(ctx)
		if err != nil {
			return nil, err
		}
		options.Addr = mini.Addr()
	} else {
		var err error
		if options, err = redis.ParseURL(url); err != nil {
			return nil, fmt.Errorf("-redis: %w", err)
		}
	}
	options.ContextTimeoutEnabled = true // no call takes longer than its bound
	return redis.NewClient(options), nil
}

// startMini starts an embedded Redis that ends with ctx.
func startMini(ctx context.Context) (*miniredis.Miniredis, error) {
	mini, err := miniredis.Run()
	if err != nil {
		return nil, err
	}
	mini.ClockTTL(true) // its expiries stand still otherwise
	context.AfterFunc(ctx, mini.Close)
	return mini, nil
}
