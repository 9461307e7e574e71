package main

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/redisserver"
)

// A server is a redis-server of our own, with a client to look at it.
type server struct {
	addr  string
	admin *redis.Client
	stop  func()
}

func startRedis() (*server, error) {
	process, err := redisserver.Start()
	if err != nil {
		return nil, err
	}
	s := &server{addr: process.Addr, admin: redis.NewClient(&redis.Options{Addr: process.Addr})}
	s.stop = func() {
		s.admin.Close()
		process.Kill()
	}
	return s, nil
}

// info returns a number from INFO.
func (s *server) info(section, field string) float64 {
	n, _ := strconv.ParseFloat(s.text(section, field), 64)
	return n
}

// text returns a field of INFO; "" if there is none.
func (s *server) text(section, field string) string {
	all, _ := s.admin.Info(context.Background(), section).Result()
	for line := range strings.Lines(all) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), field+":"); found {
			return value
		}
	}
	return ""
}

// cpu is the time that Redis has computed so far.
func (s *server) cpu() time.Duration {
	return time.Duration((s.info("cpu", "used_cpu_user") + s.info("cpu", "used_cpu_sys")) * float64(time.Second))
}

// flush drops what a case has left behind.
func (s *server) flush() error { return s.admin.FlushAll(context.Background()).Err() }

// A meter counts what clients send to Redis and get back. Redis' own counters would
// do for bytes, but count what a script does as further commands.
type meter struct{ commands, bytes atomic.Int64 }

func (m *meter) reset() {
	m.commands.Store(0)
	m.bytes.Store(0)
}

func (m *meter) dial(_ context.Context, network, addr string) (net.Conn, error) {
	c, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	return &meteredConn{TCPConn: c.(*net.TCPConn), meter: m}, nil
}

// meteredConn stays a TCPConn, so that go-redis tests its health as it does others'.
type meteredConn struct {
	*net.TCPConn
	meter *meter
	line  []byte // of the protocol, so far
	skip  int    // bytes of an argument that are still to come
}

func (c *meteredConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.meter.bytes.Add(int64(n))
	return n, err
}

// Write counts the arrays in what it sends: each is a command.
func (c *meteredConn) Write(b []byte) (int, error) {
	c.meter.bytes.Add(int64(len(b)))
	for i := 0; i < len(b); i++ {
		if c.skip > 0 {
			n := min(c.skip, len(b)-i)
			c.skip -= n
			i += n - 1
			continue
		}
		if b[i] != '\n' {
			c.line = append(c.line, b[i])
			continue
		}
		switch c.line[0] {
		case '*':
			c.meter.commands.Add(1)
		case '$':
			n, _ := strconv.Atoi(strings.TrimSpace(string(c.line[1:])))
			c.skip = n + len("\r\n")
		}
		c.line = c.line[:0]
	}
	return c.TCPConn.Write(b)
}
