// Package redisserver starts redis-server processes on free loopback ports, for tests
// and benchmarks.
package redisserver

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Path is where the program is that Start starts: redis-server on PATH, or what
// REDISTORE_REDIS_SERVER names.
func Path() (string, error) {
	path, err := exec.LookPath(cmp.Or(os.Getenv("REDISTORE_REDIS_SERVER"), "redis-server"))
	if err != nil {
		return "", fmt.Errorf("%w (apt-get install redis-server, or brew install redis)", err)
	}
	return path, nil
}

// Need skips the test if there is no redis-server, or fails it where CI is set.
func Need(t testing.TB) {
	t.Helper()
	_, err := Path()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%v: CI tests the real thing", err)
	default:
		t.Skipf("this test needs the real thing: %v", err)
	}
}

// StartFor starts a redis-server that ends with the test, which needs one.
func StartFor(t testing.TB, args ...string) *Server {
	t.Helper()
	Need(t)
	s, err := Start(append(args[:len(args):len(args)], "--dir", t.TempDir())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// A Server is one process.
type Server struct {
	Addr    string
	Process *os.Process // to send signals to

	args  []string
	ended chan struct{}
}

// Start starts a redis-server, without persistence unless args say otherwise, and
// returns when it serves. {port} in args stands for its port.
func Start(args ...string) (*Server, error) {
	ours := []string{"--port", "{port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") { // a file has to come first
		ours, args = append(args[:1:1], ours...), args[1:]
	}
	args = append(ours, args...) // the last word counts
	var err error
	for range 100 {
		s := newServer(nextPort(), args)
		if err = s.Restart(); err == nil {
			return s, nil
		}
		if !strings.Contains(err.Error(), "Address already in use") {
			break
		}
	}
	return nil, err
}

func newServer(port string, args []string) *Server {
	s := &Server{Addr: "127.0.0.1:" + port}
	for _, a := range args {
		s.args = append(s.args, strings.ReplaceAll(a, "{port}", port))
	}
	return s
}

var ports atomic.Uint32 // that were handed out, from a random one on

func init() { ports.Store(rand.Uint32N(10000)) }

// nextPort returns a port that no other Server of this process has, even one that is
// down. It is below those that systems lend to clients and to listeners on port 0, which
// could be lent before Redis has it. So is the bus of a Cluster node, 10000 above.
func nextPort() string { return strconv.Itoa(int(10000 + ports.Add(1)%10000)) }

// Restart starts the process again after Kill.
func (s *Server) Restart() error {
	path, err := Path()
	if err != nil {
		return err
	}
	cmd, out := exec.Command(path, s.args...), &output{serves: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended, its output says better
		close(ended)
	}()
	s.Process, s.ended = cmd.Process, ended
	select {
	case <-out.serves:
		return nil
	case <-ended:
		return fmt.Errorf("redis-server ended:\n%s", &out.said)
	case <-time.After(time.Minute):
		s.Kill()
		return fmt.Errorf("redis-server does not serve after a minute:\n%s", &out.said)
	}
}

// Kill ends the process at once, as kill -9 does.
func (s *Server) Kill() {
	_ = s.Process.Kill() // fails if it has ended
	<-s.ended
}

// output keeps what a process says, and notices when it serves. To ask for its port
// would not do: another process may have it.
type output struct {
	said   bytes.Buffer
	serves chan struct{}
	served bool
}

var serves = regexp.MustCompile(`Ready to accept connections|Sentinel ID is`)

func (o *output) Write(p []byte) (int, error) {
	if o.served {
		return len(p), nil
	}
	o.said.Write(p)
	if o.served = serves.Match(o.said.Bytes()); o.served {
		close(o.serves)
	}
	return len(p), nil
}
