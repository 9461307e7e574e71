// Example shows redistore in a browser: three servers behind one address, whose
// sessions are in one Redis.
//
//	go run ./example                                                        # a Redis of its own, in memory
//	go run ./example -redis redis://localhost:6379                          # yours
//	go run ./example -redis 'redis://localhost:26379?master_name=mymaster'  # behind Sentinel
//	go run ./example -redis redis://localhost:7000 -cluster                 # a Cluster
//
// What an application would do stands in app.go. Around it: servers.go, the servers and
// the balancer; demo.go, the races and the look into Redis; main.go, flags, start and end.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

func main() {
	redis.SetLogger(quiet{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// quiet keeps lost connections, which the example reports itself, out of the log.
type quiet struct{}

func (quiet) Printf(_ context.Context, format string, args ...any) {
	slog.Debug(fmt.Sprintf(format, args...))
}

// run serves until ctx ends, and says on out where.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("example", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is one line
	addr := flags.String("addr", "localhost:8080", "`address` to open in the browser")
	redisURL := flags.String("redis", "", "`URL` of a Redis, as redis://user:password@localhost:6379/0, rediss:// for TLS or unix://;\nwith ?master_name=…, of Sentinel; without it, a Redis in memory is started")
	cluster := flags.Bool("cluster", false, "the Redis is a Cluster; more of its nodes: ?addr=host:port&addr=…")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(out, "redistore in a browser: three servers, one session.\n\nFlags:")
		flags.SetOutput(out)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return fmt.Errorf("%w (-h tells which there are)", err)
	case flags.NArg() > 0:
		return fmt.Errorf("%q is not a flag (-h tells which there are)", flags.Arg(0))
	case *cluster && *redisURL == "":
		return errors.New("-cluster needs -redis, with the address of one of its nodes")
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return fmt.Errorf("%w (choose another address with -addr, as -addr localhost:8081)", err)
	}
	defer l.Close()
	var mini *miniredis.Miniredis
	if *redisURL == "" {
		if mini, err = miniredis.Run(); err != nil {
			return err
		}
		defer mini.Close()
		mini.ClockTTL(true) // its expiries stand still otherwise
		*redisURL = "redis://" + mini.Addr()
	}
	client, err := connect(*redisURL, *cluster)
	if err != nil {
		return fmt.Errorf("-redis: %w; it should look like redis://user:password@localhost:6379/0", err)
	}
	defer client.Close()
	host, _, _ := net.SplitHostPort(*addr)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return serve(ctx, l, net.JoinHostPort(cmp.Or(host, "localhost"), port), client, mini, out)
}

// connect makes a client, which connects when it is used.
func connect(redisURL string, cluster bool) (redis.UniversalClient, error) {
	u, err := url.Parse(redisURL)
	if err != nil {
		return nil, errors.New("the URL cannot be parsed") // nor be quoted: it may hold a password
	}
	// ContextTimeoutEnabled: no call takes longer than its bound.
	switch {
	case cluster:
		o, err := redis.ParseClusterURL(redisURL)
		if err != nil {
			return nil, err
		}
		o.ContextTimeoutEnabled = true
		return redis.NewClusterClient(o), nil
	case u.Query().Has("master_name"):
		o, err := redis.ParseFailoverURL(redisURL)
		if err != nil {
			return nil, err
		}
		o.ContextTimeoutEnabled = true
		return redis.NewFailoverClient(o), nil
	}
	o, err := redis.ParseURL(redisURL)
	if err != nil {
		return nil, err
	}
	o.ContextTimeoutEnabled = true
	return redis.NewClient(o), nil
}

// serve starts everything and, when ctx ends, stops it in the other order.
func serve(ctx context.Context, l net.Listener, host string, client redis.UniversalClient, mini *miniredis.Miniredis, out io.Writer) error {
	key := make([]byte, 32)
	rand.Read(key) // a real application keeps its key as a secret: cookies are signed with it
	d := newDemo(client, mini, key)
	if err := redistore.New(client, key).Ping(ctx); err != nil {
		return fmt.Errorf("%w (is Redis running there? Without -redis, the example brings its own)", err)
	}
	for _, s := range d.Servers {
		if err := s.start(); err != nil {
			return err
		}
		defer s.stop()
	}
	d.Host = host
	front := newHTTPServer(d.balance())
	ended := make(chan error, 1)
	go func() { ended <- front.Serve(l) }()
	fmt.Fprintf(out, "Open http://%s/ in a browser. Ctrl-C stops.\n", host)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		slog.Info("stopping")
		shutdown(front)
		return nil
	}
}
