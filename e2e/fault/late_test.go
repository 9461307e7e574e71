package fault

import (
	"math/rand/v2"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
)

// A late toxic holds a write until the client has given it up, has sent it again on another
// connection, and that was answered. Then the first attempt arrives. What nobody sends again
// arrives a little later.
type late struct {
	Share float32 `json:"share"` // of the connections that are disturbed; the others show repeats
}

const lateName = "late"

func init() { toxics.Register(lateName, new(late)) }

// What became of those that arrived late.
var arrivedLate, arrivedAfterTheirRepeat atomic.Int64

const (
	answered = 30 * time.Millisecond  // after which a repeat was answered, for sure enough
	forgone  = 700 * time.Millisecond // after which nobody repeats it any more: go-redis pauses for up to 512 ms
)

// Pipe holds a write, and all that comes after it.
func (l *late) Pipe(stub *toxics.ToxicStub) {
	disturbed := rand.Float32() < l.Share
	h := holding{stub: stub}
	for {
		select {
		case <-stub.Interrupt: // the fault is over
			h.deliver()
			return
		case c := <-stub.Input:
			switch {
			case c == nil: // the client has given up
				if over := h.wait(); over {
					return
				}
				stub.Close()
				return
			case h.chunks == nil && (!isWrite(c.Data) || again(c.Data) || !disturbed):
				stub.Output <- c
			default:
				h.add(c)
			}
		}
	}
}

// A holding is what is held on one connection.
type holding struct {
	stub     *toxics.ToxicStub
	chunks   []*stream.StreamChunk
	name     string
	repeated chan struct{} // closed when it was sent again
}

// held are the writes that have yet to arrive.
var held struct {
	sync.Mutex
	repeated map[string]chan struct{} // by name
}

func (h *holding) add(c *stream.StreamChunk) {
	if h.chunks == nil {
		h.name, h.repeated = nameOf(c.Data), make(chan struct{})
		held.Lock()
		defer held.Unlock()
		if held.repeated == nil {
			held.repeated = map[string]chan struct{}{}
		}
		held.repeated[h.name] = h.repeated
	}
	h.chunks = append(h.chunks, c)
}

// wait delivers when it is time. It reports whether the fault was over before.
func (h *holding) wait() (over bool) {
	if h.chunks == nil {
		return false
	}
	arrivedLate.Add(1)
	select {
	case <-h.repeated:
		arrivedAfterTheirRepeat.Add(1)
		time.Sleep(answered)
	case <-time.After(forgone):
	case <-h.stub.Interrupt:
		over = true
	}
	h.deliver()
	return over
}

func (h *holding) deliver() {
	held.Lock()
	if held.repeated[h.name] == h.repeated {
		delete(held.repeated, h.name)
	}
	held.Unlock()
	for _, c := range h.chunks {
		_ = h.stub.WriteOutput(c, time.Second) // the server may have closed it
	}
}

// isWrite tells whether a request begins with a command that changes something.
func isWrite(data []byte) bool { return writing.Match(data) }

var writing = regexp.MustCompile(`^\*\d+\r\n\$\d+\r\n(set|del|expire|zrem|eval|evalsha)\r\n`)

// again tells whether this is held on another connection, and says there that it was sent
// again.
func again(data []byte) bool {
	held.Lock()
	defer held.Unlock()
	repeated, ok := held.repeated[nameOf(data)]
	if ok {
		delete(held.repeated, nameOf(data))
		close(repeated)
	}
	return ok
}

// nameOf is a request's beginning, in which its script's token stands.
func nameOf(data []byte) string { return string(data[:min(len(data), 4096)]) }
