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

// held are the requests that have yet to arrive.
var held struct {
	sync.Mutex
	repeated map[string]chan struct{} // closed when it was sent again
}

// What became of those that arrived late.
var arrivedLate, arrivedAfterTheirRepeat atomic.Int64

const (
	answered = 30 * time.Millisecond  // after which a repeat was answered, for sure enough
	forgone  = 700 * time.Millisecond // after which nobody repeats it any more: go-redis pauses for up to 512 ms
)

// Pipe holds a write, and all that comes after it.
func (l *late) Pipe(stub *toxics.ToxicStub) {
	disturbed := rand.Float32() < l.Share
	var chunks []*stream.StreamChunk
	var name string
	var repeated chan struct{}
	deliver := func() {
		held.Lock()
		delete(held.repeated, name)
		held.Unlock()
		for _, c := range chunks {
			_ = stub.WriteOutput(c, time.Second) // the server may have closed it
		}
	}
	for {
		select {
		case <-stub.Interrupt: // the fault is over
			deliver()
			return
		case c := <-stub.Input:
			switch {
			case c == nil && chunks == nil:
				stub.Close()
				return
			case c == nil:
				interrupted := waitForRepeat(stub, repeated)
				deliver()
				if interrupted {
					return
				}
				stub.Close()
				return
			case chunks == nil && (!isWrite(c.Data) || again(c.Data) || !disturbed):
				stub.Output <- c
			default:
				if chunks == nil {
					name, repeated = nameOf(c.Data), make(chan struct{})
					held.Lock()
					if held.repeated == nil {
						held.repeated = map[string]chan struct{}{}
					}
					held.repeated[name] = repeated
					held.Unlock()
				}
				chunks = append(chunks, c)
			}
		}
	}
}

// waitForRepeat returns when what is held may arrive.
func waitForRepeat(stub *toxics.ToxicStub, repeated chan struct{}) (interrupted bool) {
	arrivedLate.Add(1)
	select {
	case <-repeated:
		arrivedAfterTheirRepeat.Add(1)
		time.Sleep(answered)
	case <-time.After(forgone):
	case <-stub.Interrupt:
		return true
	}
	return false
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
