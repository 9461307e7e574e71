package lock

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore/internal/script"
)

const (
	// A process that is woken asks by itself only in case it was not, or the lock has run
	// out: at last after maxIdle, or if it waits for many keys after as many idleShares, and
	// at first after a quarter of that. So it asks for some 300 keys in a second at most.
	maxIdle   = time.Second
	idleShare = 4 * time.Millisecond

	// One that is not woken asks after minPoll at first, later after maxPoll.
	minPoll = 2 * time.Millisecond
	maxPoll = 64 * time.Millisecond

	// retry is when a subscription that was refused is tried again.
	retry = 10 * time.Second
)

// A waker waits for wake-ups, on one channel for the whole process. It subscribes when
// somebody has to wait, and unsubscribes when nobody has waited for a while.
type waker struct {
	client  redis.UniversalClient
	channel string
	quiet   time.Duration

	mu      sync.Mutex
	waiting map[string][]chan struct{} // by key
	early   map[string]time.Time       // wake-ups that came before the answer that one has to wait
	sub     *redis.PubSub              // nil: none
	heard   bool                       // a message has come on it
	refused time.Time
	idle    *time.Timer // ends sub; nil: somebody waits, or there is none
}

// add registers somebody who waits.
func (w *waker) add(key string) chan struct{} {
	woken := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting, w.early = map[string][]chan struct{}{}, map[string]time.Time{}
	}
	w.waiting[key] = append(w.waiting[key], woken)
	if came, ok := w.early[key]; ok && time.Since(came) < reserve {
		woken <- struct{}{}
	}
	delete(w.early, key)
	if w.idle != nil {
		w.idle.Stop()
		w.idle = nil
	}
	if w.sub == nil && w.canSubscribe() && time.Since(w.refused) > retry {
		w.sub = w.client.Subscribe(context.Background()) // no channel: it does not connect yet
		go w.listen(w.sub)
	}
	return woken
}

// canSubscribe: a Ring would subscribe on one shard, and be woken on others.
func (w *waker) canSubscribe() bool {
	switch w.client.(type) {
	case *redis.Client, *redis.ClusterClient:
		return true
	}
	return false
}

// remove forgets somebody who no longer waits.
func (w *waker) remove(key string, woken chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.waiting[key]
	for i := range all {
		if all[i] == woken {
			all[i] = all[len(all)-1]
			all = all[:len(all)-1]
			break
		}
	}
	if w.waiting[key] = all; len(all) == 0 {
		delete(w.waiting, key)
	}
	if len(w.waiting) == 0 && w.sub != nil && w.idle == nil {
		w.idle = time.AfterFunc(w.quiet, w.rest)
	}
}

// rest unsubscribes if nobody waits.
func (w *waker) rest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) == 0 {
		w.drop(w.sub)
	}
}

// drop closes a subscription, if it is still the one.
func (w *waker) drop(sub *redis.PubSub) {
	if sub != nil && w.sub == sub {
		go sub.Close() // which waits while it connects
		w.sub, w.heard, w.idle = nil, false, nil
	}
}

// distrust ends a subscription on which a wake-up did not come. The next who waits
// subscribes again.
func (w *waker) distrust() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drop(w.sub)
}

// listen wakes whom the channel names, until the subscription ends.
func (w *waker) listen(sub *redis.PubSub) {
	err := sub.Subscribe(context.Background(), w.channel) // connects, for which nobody else is to wait
	for {
		var message any
		if err == nil {
			message, err = sub.Receive(context.Background())
		}
		w.mu.Lock()
		if w.sub != sub {
			w.mu.Unlock()
			return
		}
		switch m := message.(type) {
		case *redis.Subscription:
			w.mu.Unlock()
			err = w.greet()
			w.mu.Lock()
		case *redis.Message:
			w.heard = true
			if m.Payload != "" {
				w.wake(m.Payload)
			}
		}
		if err != nil {
			w.drop(sub)
		}
		if script.IsReply(err) { // an ACL forbids it
			w.refused = time.Now()
		}
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// greet sends the process a message, to hear whether one comes: an ACL may forbid that alone.
func (w *waker) greet() error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout) // or it may keep a connection of the pool for ever
	defer cancel()
	return w.client.Publish(ctx, w.channel, "").Err()
}

// wake wakes those who wait for a key, or the next one who is about to.
func (w *waker) wake(key string) {
	for _, woken := range w.waiting[key] {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	if len(w.waiting[key]) > 0 {
		return
	}
	maps.DeleteFunc(w.early, func(_ string, came time.Time) bool { return time.Since(came) > reserve })
	w.early[key] = time.Now()
}

// idleTime is the longest pause of one who is woken.
func (w *waker) idleTime() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(maxIdle, time.Duration(len(w.waiting))*idleShare)
}

// hears tells whether wake-ups come.
func (w *waker) hears() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard
}

// A notice is what one who waits for a lock hears.
type notice struct {
	waker  *waker
	key    string
	woken  chan struct{} // nil: has not waited yet
	asked  int           // times since the last wake-up
	missed bool          // it asks by itself although it was to be woken
}

// wait waits until it makes sense to ask again, for rest at most. left is how long the lock
// is still taken; 0: that is not known. longest is idleTime's from before it was asked, as the
// place in the queue lives by that. It returns false if ctx ends first.
func (n *notice) wait(ctx context.Context, rest, left, longest time.Duration) bool {
	if n.woken == nil {
		n.woken = n.waker.add(n.key)
	}
	first, last := minPoll, maxPoll
	subscribed := left > 0 && n.waker.hears()
	if subscribed {
		first, last = longest/4, longest
	}
	pause := jitter(min(last, first<<min(n.asked, 10)))
	if left > 0 && left < pause { // until the lock runs out, in case its holder is dead
		pause = left + jitter(minPoll)
	}
	timer := time.NewTimer(min(rest, pause))
	defer timer.Stop()
	n.asked++
	select {
	case <-ctx.Done():
		return false
	case <-n.woken:
		n.asked, n.missed = 0, false
	case <-timer.C:
		n.missed = subscribed
	}
	return true
}

func (n *notice) close() {
	if n.woken != nil {
		n.waker.remove(n.key, n.woken)
	}
}
