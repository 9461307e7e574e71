package redistore

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestAReplyCutShortIsAnError cuts the connection after each byte of what Redis replies to
// a call: the call returns an error, or the whole of what was asked for.
func TestAReplyCutShortIsAnError(t *testing.T) {
	calls := map[string]func(t *testing.T, store *Store, r *http.Request) error{
		"Get": func(t *testing.T, store *Store, r *http.Request) error {
			s, err := store.Get(r, "s")
			if err == nil {
				equal(t, "user", s.Values["user"], any("ann"))
			}
			return err
		},
		"Save": func(t *testing.T, store *Store, r *http.Request) error {
			s, err := store.Get(r, "s")
			if err != nil {
				return err
			}
			w := httptest.NewRecorder()
			err = s.Save(r, w)
			equal(t, "a cookie is set", len(w.Result().Cookies()) == 1, err == nil)
			return err
		},
		"Sessions": func(t *testing.T, store *Store, r *http.Request) error {
			list, err := collect(t, store, "ann")
			if err == nil {
				equal(t, "sessions", len(list), 3)
			}
			return err
		},
		"Limit": func(t *testing.T, store *Store, r *http.Request) error {
			_, err := store.Limit(r.Context(), "ann", 3)
			return err
		},
		"Revoke": func(t *testing.T, store *Store, r *http.Request) error {
			_, err := store.Revoke(r.Context(), "nobody")
			return err
		},
		"Ping": func(t *testing.T, store *Store, r *http.Request) error { return store.Ping(r.Context()) },
	}
	onServers(t, func(t *testing.T, srv *server) {
		c := &cutter{}
		c.left.Store(uncut)
		store := New(srv.client(t, c.options), hashKey)
		loginAs(t, store, "ann")
		loginAs(t, store, "ann")
		b := loginAs(t, store, "ann")
		for name, call := range calls {
			t.Run(name, func(t *testing.T) {
				bytes := int64(0)
				for cut := true; cut; bytes++ {
					c.left.Store(uncut)
					must(t, store.client.Ping(t.Context()).Err()) // on a connection that is kept
					c.left.Store(bytes)
					err := call(t, store, b.request(t))
					cut = c.left.Load() > uncut/2
					if !cut {
						must(t, err)
					}
				}
				if bytes < 5 {
					t.Errorf("the reply had %d bytes: this shows nothing", bytes-1)
				}
			})
		}
	})
}

// cutter makes connections that can be cut in the middle of a reply, and are not replaced.
type cutter struct{ left atomic.Int64 } // how many bytes still arrive before the cut

const uncut = 1 << 40

func (c *cutter) options(o *redis.Options) {
	o.MaxRetries = -1
	dial := redis.NewDialer(o)
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &cutConn{conn, c}, err
	}
}

type cutConn struct {
	net.Conn
	c *cutter
}

// Read cuts one connection only: those that are made after it work.
func (c *cutConn) Read(b []byte) (int, error) {
	left := c.c.left.Load()
	if left == 0 {
		c.c.left.Store(uncut)
		c.Close()
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), left)])
	c.c.left.Add(-int64(n))
	return n, err
}
