package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// server is one of the three: a port, an app and a store, as if it were a process of
// its own.
type server struct {
	Number  int
	handler http.Handler

	mu   sync.Mutex
	http *http.Server // nil: stopped
	addr string
}

func (s *server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != nil {
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // only the balancer needs to reach it
	if err != nil {
		return err
	}
	srv := newHTTPServer(s.handler)
	s.http, s.addr = srv, l.Addr().String()
	slog.Info("started", "server", s.Number, "addr", s.addr)
	go srv.Serve(l)
	return nil
}

func (s *server) stop() error {
	s.mu.Lock()
	srv := s.http
	s.http, s.addr = nil, ""
	s.mu.Unlock()
	if srv != nil {
		shutdown(srv)
		slog.Info("stopped", "server", s.Number)
	}
	return nil
}

// Addr is "" while the server is stopped.
func (s *server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second, // longer than a request may wait for a session
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
}

// shutdown lets running requests end, for 5 seconds.
func shutdown(srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		srv.Close()
	}
}

// balancer is the one address. It sends each request to the next server that runs.
type balancer struct {
	Servers   []*server
	next      atomic.Uint32
	transport http.Transport
}

var errNoServer = errors.New("all servers are stopped")

func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	err := errNoServer
	for range b.Servers {
		s := b.Servers[b.next.Add(1)%uint32(len(b.Servers))]
		addr := s.Addr()
		if addr == "" {
			continue
		}
		out := r.Clone(r.Context())
		out.URL.Host = addr
		var response *http.Response
		if response, err = b.transport.RoundTrip(out); err == nil || r.Method != http.MethodGet {
			return response, err // what may have changed something is not sent twice
		}
	}
	return nil, err
}

func (d *demo) balance() http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.Host = r.In.Host // which the protection against forged requests compares
			r.SetXForwarded()
		},
		Transport: &d.balancer,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			slog.Warn("balancer", "method", r.Method, "path", r.URL.Path, "err", err)
			text := "The server stopped while it was answering. Please try again: another one will."
			if errors.Is(err, errNoServer) {
				text = "All three servers are stopped. Start one, and go on where you were: your session is in Redis."
			}
			protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				render(w, http.StatusServiceUnavailable, view{Demo: d, Problem: text})
			})).ServeHTTP(w, r)
		},
	}
	mux := http.NewServeMux()
	mux.Handle("/", proxy)
	mux.Handle("GET /style.css", protect(http.FileServerFS(files)))
	mux.Handle("GET /icon.svg", protect(http.FileServerFS(files)))
	mux.Handle("POST /servers/{number}", protect(http.HandlerFunc(d.switchServer)))
	mux.Handle("POST /redis", protect(http.HandlerFunc(d.switchRedis)))
	return mux
}

// switchServer works when no server does.
func (d *demo) switchServer(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.PathValue("number"))
	if n < 1 || n > len(d.Servers) {
		http.NotFound(w, r)
		return
	}
	turn := d.Servers[n-1].start
	if r.FormValue("do") == "stop" {
		turn = d.Servers[n-1].stop
	}
	turned(w, r, turn())
}

// switchRedis stops and starts the Redis in memory. What it holds stays.
func (d *demo) switchRedis(w http.ResponseWriter, r *http.Request) {
	d.switching.Lock()
	defer d.switching.Unlock()
	stop := r.FormValue("do") == "stop"
	switch {
	case d.mini == nil:
		http.NotFound(w, r)
	case stop == d.RedisOff.Load():
		turned(w, r, nil)
	case stop:
		d.mini.Close()
		d.RedisOff.Store(true)
		turned(w, r, nil)
	default:
		err := d.mini.Restart()
		d.RedisOff.Store(err != nil)
		// After many failures, go-redis asks only once a second.
		ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
		defer cancel()
		for err == nil && d.client.Ping(ctx).Err() != nil && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		turned(w, r, err)
	}
}

func turned(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil {
		slog.Error("start", "err", err)
		http.Error(w, "It could not be started: see the log.", http.StatusInternalServerError)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
