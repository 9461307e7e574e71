// Bench measures redistore beside other session stores, on a redis-server that it
// starts itself:
//
//	cd bench && go run .
//
// All do the same work on the same values, in turns (A B C A B C …), so that a machine
// that drifts is unfair to none. Every iteration is a whole request, with its recorder,
// and checks what it read. The table shows medians, and ratios to boj/redistore.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	boj "github.com/boj/redistore"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

var (
	rounds  = flag.Int("rounds", 5, "how often each is measured; the median counts")
	slice   = flag.Duration("time", 300*time.Millisecond, "how long each measurement takes")
	clients = flag.String("concurrency", "1,8,64", "concurrent requests, separated by commas")
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	if err := run(os.Stdout); err != nil {
		log.Fatal("bench: ", err)
	}
}

func run(out io.Writer) error {
	addr, stop, err := startRedis()
	if err != nil {
		return err
	}
	defer stop()
	all, err := contenders(addr)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer table.Flush()
	fmt.Fprintln(table, "work\tconcurrent\tstore\tµs/request\tto boj\trequests/s\tallocs\tbytes\t")
	for _, work := range []string{"read", "read+save", "new"} {
		for _, field := range strings.Split(*clients, ",") {
			var concurrent int
			if _, err := fmt.Sscan(field, &concurrent); err != nil || concurrent < 1 {
				return fmt.Errorf("-concurrency %q: use numbers above 0", *clients)
			}
			if err := compare(table, all, work, concurrent); err != nil {
				return err
			}
		}
	}
	return nil
}

// A contender does one request of each kind of work, or has no such kind.
type contender struct {
	name string
	// request runs one request of the client with that cookie, on its own session, and
	// returns the cookie that the client then has.
	request map[string]func(cookie string) (string, error)
}

// compare measures all contenders in turns.
func compare(table io.Writer, all []contender, work string, concurrent int) error {
	type result struct {
		each          []time.Duration
		allocs, bytes uint64
	}
	results := make([]result, len(all))
	for range *rounds {
		for i, c := range all {
			if c.request[work] == nil {
				continue
			}
			each, allocs, bytes, err := measure(c, work, concurrent)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, work, err)
			}
			results[i] = result{append(results[i].each, each), allocs, bytes}
		}
	}
	median := func(r result) time.Duration {
		slices.Sort(r.each)
		return r.each[len(r.each)/2]
	}
	base := time.Duration(0)
	for i, c := range all {
		if c.name == "boj/redistore" {
			base = median(results[i])
		}
	}
	for i, c := range all {
		if r := results[i]; r.each != nil {
			m := median(r)
			fmt.Fprintf(table, "%s\t%d\t%s\t%.1f\t%.2f\t%.0f\t%d\t%d\t\n", work, concurrent, c.name,
				float64(m)/float64(time.Microsecond), float64(m)/float64(base), float64(time.Second)/float64(m), r.allocs, r.bytes)
		}
	}
	return nil
}

// measure returns the wall time per request, and what a request allocates.
func measure(c contender, work string, concurrent int) (each time.Duration, allocs, bytes uint64, err error) {
	cookies := make([]string, concurrent)
	for i := range cookies {
		if cookies[i], err = c.request["new"](""); err != nil {
			return 0, 0, 0, err
		}
	}
	if work == "new" {
		clear(cookies)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var mu sync.Mutex
	var wg sync.WaitGroup
	total := 0
	start := time.Now()
	for _, cookie := range cookies {
		wg.Go(func() {
			n := 0
			var failed error
			for ; time.Since(start) < *slice && failed == nil; n++ {
				next, e := c.request[work](cookie)
				if failed = e; work != "new" {
					cookie = next
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total += n
			err = cmp.Or(err, failed)
		})
	}
	wg.Wait()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return took / time.Duration(total), (after.Mallocs - before.Mallocs) / uint64(total), (after.TotalAlloc - before.TotalAlloc) / uint64(total), err
}

var key = []byte("0123456789abcdef0123456789abcdef")

// fill and check are the values of every session: five small fields.
func fill(set func(key string, value any)) {
	set("user", "ann@example.com")
	set("id", 42)
	set("admin", true)
	set("lang", "en-GB")
	set("visits", 1)
}

func check(get func(key string) any) error {
	if get("user") != "ann@example.com" || get("id") != 42 || get("admin") != true || get("lang") != "en-GB" {
		return errors.New("the session that was read is not the one that was saved")
	}
	return nil
}

func contenders(addr string) ([]contender, error) {
	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	auto, err := client.AutoPipeline()
	if err != nil {
		return nil, err
	}
	theirs, err := boj.NewRediStore(100, "tcp", addr, "", "", key)
	if err != nil {
		return nil, err
	}
	plain := redistore.New(client, key)
	manager := scs.New()
	manager.Store = goredisstore.New(client)
	return []contender{
		gorilla("boj/redistore", theirs),
		gorilla("redistore", plain),
		gorilla("redistore, AutoPipeline", redistore.New(auto, key)),
		gorilla("redistore, with the lock", redistore.NewLockingStore(plain)),
		gorilla("sessions.CookieStore", sessions.NewCookieStore(key)),
		scsContender(manager),
		bare(client),
	}, nil
}

// serve runs a handler as net/http does: the request's context ends with it.
func serve(h http.HandlerFunc, cookie string) (string, error) {
	ctx, end := context.WithCancel(context.Background())
	defer end()
	r, w := httptest.NewRequestWithContext(ctx, "GET", "/", nil), httptest.NewRecorder()
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	h(w, r)
	if w.Code != http.StatusOK {
		return "", errors.New(w.Body.String())
	}
	if set := w.Header().Get("Set-Cookie"); set != "" {
		cookie, _, _ = strings.Cut(set, ";")
	}
	return cookie, nil
}

// gorilla is what a handler on gorilla/sessions does.
func gorilla(name string, store sessions.Store) contender {
	request := func(save, isNew bool) func(string) (string, error) {
		handler := func(w http.ResponseWriter, r *http.Request) {
			s, err := store.Get(r, "session")
			if err == nil && s.IsNew != isNew {
				err = fmt.Errorf("IsNew is %t", s.IsNew)
			}
			if isNew {
				fill(func(k string, v any) { s.Values[k] = v })
			}
			if err == nil {
				err = check(func(k string) any { return s.Values[k] })
			}
			if err == nil && save {
				s.Values["visits"] = s.Values["visits"].(int) + 1
				err = s.Save(r, w)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}
		return func(cookie string) (string, error) { return serve(handler, cookie) }
	}
	return contender{name, map[string]func(string) (string, error){
		"read": request(false, false), "read+save": request(true, false), "new": request(true, true),
	}}
}

func scsContender(m *scs.SessionManager) contender {
	request := func(save, isNew bool) func(string) (string, error) {
		handler := m.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isNew {
				fill(func(k string, v any) { m.Put(r.Context(), k, v) })
			}
			if err := check(func(k string) any { return m.Get(r.Context(), k) }); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			if save {
				m.Put(r.Context(), "visits", m.GetInt(r.Context(), "visits")+1)
			}
		}))
		return func(cookie string) (string, error) { return serve(handler.ServeHTTP, cookie) }
	}
	return contender{"scs + goredisstore", map[string]func(string) (string, error){
		"read": request(false, false), "read+save": request(true, false), "new": request(true, true),
	}}
}

// bare is the limit: the commands, and nothing else.
func bare(client *redis.Client) contender {
	s := sessions.NewSession(nil, "")
	fill(func(k string, v any) { s.Values[k] = v })
	data, err := redistore.GobSerializer{}.Serialize(s)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	read := func(key string) (string, error) {
		got, err := client.Get(ctx, key).Bytes()
		if err == nil && len(got) != len(data) {
			err = errors.New("read another value")
		}
		return key, err
	}
	write := func(key string) (string, error) {
		if key == "" {
			key = fmt.Sprint("bare_", time.Now().UnixNano())
		}
		return key, client.Set(ctx, key, data, time.Hour).Err()
	}
	return contender{"bare go-redis commands", map[string]func(string) (string, error){
		"read": read,
		"read+save": func(key string) (string, error) {
			if _, err := read(key); err != nil {
				return "", err
			}
			return write(key)
		},
		"new": write,
	}}
}

// startRedis starts a redis-server on a free loopback port, without persistence.
func startRedis() (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("%w (apt-get install redis-server, or brew install redis)", err)
	}
	stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	for range 1000 {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr, stop, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	return "", nil, errors.New("redis-server does not answer after 5 s")
}
