package redistore

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/redisserver"
)

// TestMain also serves as the processes that the tests start.
func TestMain(m *testing.M) {
	if addr := os.Getenv("REDISTORE_TEST_ADDR"); addr != "" {
		os.Exit(child(addr))
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("8") // most of them wait for Redis, or for a time-out
	}
	os.Exit(m.Run())
}

// child is another process with a LockingStore. It does what the lines on its
// standard input say, and answers each with one line.
func child(addr string) int {
	srv := &server{addr: addr}
	if srv.user = os.Getenv("REDISTORE_TEST_USER"); srv.user != "" {
		srv.tls = &tls.Config{InsecureSkipVerify: true} // the parent has looked at the certificate
	}
	store := NewLockingStore(New(redis.NewClient(srv.options()), hashKey))
	if ttl, err := time.ParseDuration(os.Getenv("REDISTORE_TEST_TTL")); err == nil {
		store.TTL = ttl
	}
	b := browser{"s": os.Getenv("REDISTORE_TEST_COOKIE")}
	newRequest := func() *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: "s", Value: b["s"]})
		return r
	}
	var s *sessions.Session
	var r *http.Request
	for {
		var command string
		var n int
		if _, err := fmt.Scanln(&command, &n); err != nil {
			return 0
		}
		var err error
		switch command {
		case "add": // n increments, by 4 goroutines
			var failed atomic.Pointer[error]
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for i := range n / 4 {
						ctx, end := context.WithCancel(context.Background())
						if err := increment(store, newRequest().WithContext(ctx), i%2 == 0); err != nil {
							failed.Store(&err)
						}
						end()
					}
				})
			}
			wg.Wait()
			if e := failed.Load(); e != nil {
				err = *e
			}
		case "load":
			r = newRequest()
			s, err = store.Get(r, "s")
		case "save":
			s.Values["n"] = n
			err = s.Save(r, httptest.NewRecorder())
		}
		fmt.Printf("%v\n", err)
	}
}

// process is a child.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
}

func startChild(t *testing.T, srv *server, b browser, ttl time.Duration) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REDISTORE_TEST_ADDR="+srv.addr, "REDISTORE_TEST_USER="+srv.user, "REDISTORE_TEST_COOKIE="+b["s"], "REDISTORE_TEST_TTL="+ttl.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = redisserver.Resume(cmd.Process)
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &process{t, cmd, in, out}
}

func (p *process) send(command string, n int) { fmt.Fprintln(p.in, command, n) }

// answer returns the child's next line: the error of what it did.
func (p *process) answer() string {
	p.t.Helper()
	var line []byte
	for one := make([]byte, 1); ; {
		if _, err := p.out.Read(one); err != nil {
			p.t.Fatalf("the child process ended: %v", err)
		}
		if one[0] == '\n' {
			return string(line)
		}
		line = append(line, one[0])
	}
}

func (p *process) signal(send func(*os.Process) error) { must(p.t, send(p.cmd.Process)) }

func TestNoLostUpdateAcrossProcesses(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	b := login(t, store)
	each := 2500
	if testing.Short() {
		each = 100
	}
	var children []*process
	for range 4 {
		c := startChild(t, srv, b, 10*time.Second)
		c.send("add", each)
		children = append(children, c)
	}
	for _, c := range children {
		equal(t, "error of a process", c.answer(), "<nil>")
	}
	s, _, _ := b.get(t, store.Store)
	equal(t, "n", count(s), 4*each)
}

func TestAStoppedProcessOverwritesNothing(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	b := login(t, store)
	const ttl = 100 * time.Millisecond

	holder := startChild(t, srv, b, ttl)
	holder.send("load", 0)
	equal(t, "load", holder.answer(), "<nil>")
	holder.signal(redisserver.Pause)
	s, r := load(t, store, b) // gets it when the lease has run out
	s.Values["n"] = 1
	must(t, s.Save(r, httptest.NewRecorder()))
	holder.signal(redisserver.Resume)
	holder.send("save", 666)
	equal(t, "the stopped holder's Save", holder.answer(), ErrConflict.Error())
	s, _, _ = b.get(t, store.Store)
	equal(t, "n", count(s), 1)

	holder.send("load", 0)
	equal(t, "load", holder.answer(), "<nil>")
	holder.signal(redisserver.Pause)
	srv.free(t) // the lease has run out
	holder.signal(redisserver.Resume)
	holder.send("save", 2)
	equal(t, "Save, nobody having changed it", holder.answer(), "<nil>")
	s, _, _ = b.get(t, store.Store)
	equal(t, "n", count(s), 2)
}

// TestACrashDelaysAndFailsNobody runs with the default settings: the lock of a
// process that was killed is had after TTL, which is less than Wait.
func TestACrashDelaysAndFailsNobody(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	store, _ := srv.locking(t)
	b := login(t, store)
	holder := startChild(t, srv, b, store.TTL)
	holder.send("load", 0)
	equal(t, "load", holder.answer(), "<nil>")
	holder.signal((*os.Process).Kill)
	start := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, end := b.lived(t)
			defer end()
			must(t, increment(store, r, false))
		})
	}
	wg.Wait()
	if took := time.Since(start); took > store.TTL+3*time.Second {
		t.Errorf("the last of 8 requests came through after %v", took)
	}
	s, _, _ := b.get(t, store.Store)
	equal(t, "n", count(s), 8)
}

// TestAProcessStandsBack shows that the requests of one process do not pass the lock
// on among themselves for long while another process waits. The sections are so long
// that the other would not come through by chance.
func TestAProcessStandsBack(t *testing.T) {
	srv := startRedis(t)
	const section = 50 * time.Millisecond
	busy, _ := srv.locking(t)
	other, _ := srv.locking(t)
	b := login(t, busy)
	var stop atomic.Bool
	var turns atomic.Int64 // of the busy one
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				r, end := b.lived(t)
				s, err := busy.Get(r, "s")
				must(t, err)
				turns.Add(1)
				time.Sleep(section)
				must(t, s.Save(r, httptest.NewRecorder()))
				end()
			}
		})
	}
	for range 8 {
		r, end := b.lived(t)
		before := turns.Load()
		must(t, increment(other, r, false))
		end()
		if passed := turns.Load() - before; passed > 4 {
			t.Errorf("the other process had to let %d pass", passed)
		}
	}
	stop.Store(true)
	wg.Wait()
}
