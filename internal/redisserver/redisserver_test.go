package redisserver

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestTakenPorts has two ports taken that come next, the second for the bus of a
// Cluster node only.
func TestTakenPorts(t *testing.T) {
	for !take(t, 10000+int(ports.Load()+1)%10000) || !take(t, 20000+int(ports.Load()+2)%10000) {
		ports.Add(1)
	}
	before := ports.Load()
	s := StartFor(t, "--cluster-enabled", "yes")
	if tried := ports.Load() - before; tried < 3 {
		t.Errorf("Start returned the port %d that it tried", tried)
	}
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer c.Close()
	if info := c.Info(t.Context(), "server").Val(); !strings.Contains(info, "process_id:"+strconv.Itoa(s.Process.Pid)+"\r\n") {
		t.Errorf("another server answers on %s: %s", s.Addr, info)
	}
}

func TestRestart(t *testing.T) {
	s := StartFor(t)
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DialerRetries: 1})
	defer c.Close()
	pid := s.Process.Pid
	s.Kill()
	s.Kill() // again does no harm
	if err := c.Ping(t.Context()).Err(); err == nil {
		t.Error("somebody answers for a server that was killed")
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()).Err(); err != nil || s.Process.Pid == pid {
		t.Errorf("after Restart: %v", err)
	}
	other := *s
	if err := other.Restart(); err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("Restart on a port that is taken: %v", err)
	}
}

// TestArguments has a file first, and says the port once more.
func TestArguments(t *testing.T) {
	file := filepath.Join(t.TempDir(), "redis.conf")
	if err := os.WriteFile(file, []byte("maxmemory 12345678\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := StartFor(t, file, "--cluster-announce-port", "{port}")
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer c.Close()
	_, port, _ := net.SplitHostPort(s.Addr)
	for name, want := range map[string]string{"maxmemory": "12345678", "cluster-announce-port": port, "port": port} {
		if got := c.ConfigGet(t.Context(), name).Val()[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if _, err := Start("--nonsense", "yes"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("an unknown argument: %v", err)
	}
}

func TestNoProgram(t *testing.T) {
	t.Setenv("REDISTORE_REDIS_SERVER", "no-such-server")
	if _, err := Start(); err == nil || !strings.Contains(err.Error(), "no-such-server") || !strings.Contains(err.Error(), "install") {
		t.Errorf("got %v", err)
	}
}

// take reports whether the port was free; now it is not.
func take(t *testing.T, port int) bool {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	t.Cleanup(func() { l.Close() })
	return true
}
