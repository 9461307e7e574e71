package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
)

// asWorker in the environment makes a process one that does tasks.
const asWorker = "REDISTORE_BENCH_WORKER"

// A task is what a worker is told to do, a line of JSON.
type task struct {
	Addr       string
	Do         string // one of the constants below
	Store      string
	Work       string
	Cookie     string // of the session that is to be shared; "": each has its own
	Cookies    []string
	Concurrent int
	Start      time.Time // when to begin, by the clock that all processes share
	For        time.Duration
	Hold       time.Duration // see visitor
	Dies       string        // see visitor; after a quarter of For
}

const (
	loop     = "loop"   // requests without pause, for a while
	burst    = "burst"  // as many requests as are concurrent, at once
	change   = "change" // what a reader in another process is to see
	signOff  = "log out"
	revoking = "revoke"
	keep     = "keep"     // lock all the sessions, until the process ends
	waitFor  = "wait for" // wait for each of them at once
)

// An answer is what came of it, a line of JSON.
type answer struct {
	Requests  int
	PerSecond float64
	Refused   int // because the lock was not to be had
	Waits     []time.Duration
	Commands  int64
	Done      time.Time // when the last one was
	Err       string
}

// A process is a worker, seen from the one that started it.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

// startProcesses starts workers, which are this program once more.
func startProcesses(n int) (all []*process, stop func(), err error) {
	stop = func() {
		for _, p := range all {
			p.in.Close() // it ends with its input
		}
		for _, p := range all { // together: with the race detector each takes a second to end
			p.cmd.Wait()
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	for range n {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), asWorker+"=1")
		cmd.Stderr = os.Stderr
		in, inErr := cmd.StdinPipe()
		out, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			stop()
			return nil, nil, err
		}
		all = append(all, &process{cmd, in, json.NewEncoder(in), json.NewDecoder(out)})
	}
	return all, stop, nil
}

// tell gives a task to processes, and returns their answers as one, and when they began.
func tell(all []*process, t task) (sum answer, start time.Time, err error) {
	start, err = tellEach(all, func(int) task { return t })
	if err != nil {
		return sum, start, err
	}
	answers, err := hear(all, t)
	return sumOf(answers), start, err
}

// tellEach gives each process a task, and returns when they will begin.
func tellEach(all []*process, of func(i int) task) (start time.Time, err error) {
	start = time.Now().Add(20 * time.Millisecond) // until when all know of it
	for i, p := range all {
		t := of(i)
		t.Start = start
		if err := p.enc.Encode(t); err != nil {
			return start, err
		}
	}
	return start, nil
}

// hear returns the processes' answers to a task.
func hear(all []*process, t task) (answers []answer, err error) {
	for _, p := range all {
		var a answer
		if err := p.dec.Decode(&a); err != nil {
			return answers, err
		}
		if a.Err != "" {
			return answers, fmt.Errorf("%s, %s: %s", t.Store, t.Do, a.Err)
		}
		answers = append(answers, a)
	}
	return answers, nil
}

func sumOf(answers []answer) (sum answer) {
	for _, a := range answers {
		sum.Requests += a.Requests
		sum.PerSecond += a.PerSecond
		sum.Refused += a.Refused
		sum.Commands += a.Commands
		sum.Waits = append(sum.Waits, a.Waits...)
		if a.Done.After(sum.Done) {
			sum.Done = a.Done
		}
	}
	return sum
}

// A worker does tasks, with stores that it keeps.
type worker struct {
	addr       string
	meter      meter
	contenders map[string]contender
	crowds     map[string][]*visitor
	client     *redis.Client
	store      *redistore.Store
	kept       []context.CancelFunc // of requests that never end
}

// work reads tasks and writes answers until there are no more.
func work(in io.Reader, out io.Writer) error {
	w := &worker{}
	enc, dec := json.NewEncoder(out), json.NewDecoder(in)
	for {
		var t task
		if err := dec.Decode(&t); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		a, err := w.do(t)
		if err != nil {
			a.Err = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

func (w *worker) do(t task) (answer, error) {
	if w.addr != t.Addr {
		all, err := contenders(t.Addr, w.meter.dial)
		if err != nil {
			return answer{}, err
		}
		w.addr, w.crowds, w.contenders = t.Addr, map[string][]*visitor{}, map[string]contender{}
		for _, c := range all {
			w.contenders[c.name] = c
		}
		w.client = redis.NewClient(settings(t.Addr, nil))
		w.store = redistore.New(w.client, key)
	}
	if t.Do == change || t.Do == signOff || t.Do == revoking {
		err := w.end(t)
		return answer{Done: time.Now()}, err
	}
	if t.Do == keep || t.Do == waitFor {
		return w.queue(t)
	}
	return w.serve(t)
}

// serve does requests.
func (w *worker) serve(t task) (a answer, err error) {
	c := w.contenders[t.Store]
	crowd := w.crowds[t.Store]
	if t.Cookie != "" {
		crowd = make([]*visitor, t.Concurrent)
		for i := range crowd {
			crowd[i] = newVisitor(sizes[0])
			crowd[i].cookie, crowd[i].hold, crowd[i].dies, crowd[i].diesAt = t.Cookie, t.Hold, t.Dies, t.Start.Add(t.For/4)
		}
	} else if len(crowd) != t.Concurrent {
		if crowd, err = c.crowd(sizes[0], t.Concurrent); err != nil {
			return a, err
		}
		w.crowds[t.Store] = crowd
	}
	var mu sync.Mutex
	time.Sleep(time.Until(t.Start))
	begun := time.Now()
	w.meter.reset()
	laps := 0
	if t.Do == burst {
		laps = once
	}
	_, err = drive(crowd, t.Concurrent, laps, func(i int, v *visitor) (bool, error) {
		if i > 0 && t.Do == loop && time.Since(begun) > t.For {
			return false, nil
		}
		err := c.do(t.Work, v)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == errRefused:
			a.Refused++
			return true, nil
		case err != nil:
			return false, err
		}
		a.Requests++
		a.Done = time.Now()
		if t.Cookie != "" {
			a.Waits = append(a.Waits, v.wait)
		}
		return true, nil
	})
	a.Commands = w.meter.commands.Load()
	a.PerSecond = float64(a.Requests) / time.Since(begun).Seconds()
	return a, err
}

// end changes or ends the session of that cookie, as a request elsewhere does. The
// work names its owner.
func (w *worker) end(t task) error {
	if t.Do == revoking {
		n, err := w.store.Revoke(context.Background(), t.Work)
		if err == nil && n != 1 {
			err = fmt.Errorf("revoked %d sessions", n)
		}
		return err
	}
	v := newVisitor(sizes[0])
	v.cookie = t.Cookie
	return v.visit(w.store, func(s *sessions.Session) {
		s.Values["visits"] = 2
		if t.Do == signOff {
			s.Options.MaxAge = -1
		}
	})
}
