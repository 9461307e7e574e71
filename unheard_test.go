package redistore

import (
	"bytes"
	"errors"
	"net"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// deaf is a client whose subscription can die without a word, as one does that a NAT has
// forgotten, or whose server was cut off when it failed over.
type deaf struct{ now atomic.Bool }

func (d *deaf) options(o *redis.Options) {
	wrapConnections(o, func(c net.Conn) net.Conn { return &deafConn{Conn: c, d: d} })
}

type deafConn struct {
	net.Conn
	d          *deaf
	subscribed atomic.Bool
}

func (c *deafConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("subscribe")) {
		c.subscribed.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *deafConn) Read(b []byte) (n int, err error) {
	for {
		n, err = c.Conn.Read(b)
		if err != nil || !c.subscribed.Load() || !c.d.now.Load() {
			return n, err
		}
	}
}

// TestADeafProcessIsServed has a process whose subscription has died unnoticed want a session
// that another process' requests want all the time. It asks by itself too late for its turn,
// and has to see that it had one.
func TestADeafProcessIsServed(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	busy, _ := srv.locking(t)
	var d deaf
	store := NewLockingStore(New(srv.client(t, d.options), hashKey))
	b := login(t, busy)

	r, end := b.lived(t)
	_, err := busy.Get(r, "s")
	must(t, err)
	time.AfterFunc(time.Second/2, end)
	r2, end2 := b.lived(t)
	_, err = store.Get(r2, "s") // it subscribes, and hears
	must(t, err)
	end2()
	d.now.Store(true)

	// One request holds it for a while, and then others of the same process want it all the time.
	r, end = b.lived(t)
	_, err = busy.Get(r, "s")
	must(t, err)
	time.AfterFunc(1200*time.Millisecond, end)
	var all sync.WaitGroup
	defer all.Wait()
	var stop atomic.Bool
	defer stop.Store(true)
	for range 2 {
		all.Go(func() {
			for !stop.Load() {
				r, end := b.lived(t)
				s, err := busy.Get(r, "s")
				time.Sleep(20 * time.Millisecond) // the handler's work
				if err := errors.Join(err, s.Save(r, httptest.NewRecorder())); err != nil {
					t.Error(err)
				}
				end()
			}
		})
	}
	r, end = b.lived(t)
	defer end()
	start := time.Now()
	_, err = store.Get(r, "s")
	if took := time.Since(start); err != nil || took > 4*time.Second {
		t.Errorf("the deaf process has waited for %v: %v", took, err)
	}
}
