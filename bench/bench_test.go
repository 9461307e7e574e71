package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redistore/redistore/internal/redisserver"
)

// TestMain lets this program be the worker that the benchmarks start.
func TestMain(m *testing.M) {
	if os.Getenv(asWorker) != "" {
		if err := work(os.Stdin, os.Stdout); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// TestEveryPartWorks runs all that is measured, for a moment each. All of it checks what
// it reads, and that no update under a lock is lost.
func TestEveryPartWorks(t *testing.T) {
	redisserver.Need(t)
	defer func(n []int, m int, s, l []size) { atOnce, many, sizes, largeSizes = n, m, s, l }(atOnce, many, sizes, largeSizes)
	defer func(n []int, h []time.Duration, t int) { orderProcesses, orderHolds, orderTurns = n, h, t }(orderProcesses, orderHolds, orderTurns)
	defer func(n []int, d time.Duration) { crowdSessions, crowdLocks = n, d }(crowdSessions, crowdLocks)
	atOnce, many = []int{1, 2, 4, 8}, 4
	sizes = []size{{"nothing", 0}, {"little", 16}, {"some", 256}, {"more", 4 << 10}}
	largeSizes = []size{{"little", 0}, {"large", 64 << 10}}
	orderProcesses, orderHolds, orderTurns = []int{2, 4}, []time.Duration{time.Millisecond, 2 * time.Millisecond}, 4
	crowdSessions, crowdLocks = []int{20}, 2*time.Second
	*rounds, *slice, *lockSlice, *most, *filling, *trials = 1, 2*time.Millisecond, 10*time.Millisecond, 10_000, 200, 3
	*charts = t.TempDir()
	var out bytes.Buffer
	b, err := run(&out)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, name := range []string{"concurrency.svg", "size.svg", "processes.svg", "sections.svg", "cpu.svg"} {
		if svg, err := os.ReadFile(filepath.Join(*charts, name)); err != nil || !bytes.Contains(svg, []byte("</svg>")) {
			t.Errorf("%s: %v, %d bytes", name, err, len(svg))
		}
	}
	// What does not depend on how fast the machine is.
	for _, c := range []struct {
		work, store string
		commands    float64
	}{
		{read, theirs, 2}, {read, unpinged, 1}, {read, scsStore, 1}, {read, inCookie, 0}, {read, plain, 1},
		{read, pipelined, 1}, {read, cached, 0}, {read, limit, 1},
		{save, theirs, 4}, {save, plain, 2}, {create, plain, 1}, {logout, plain, 2}, {locked, locking, 2},
	} {
		if r := b.find(c.work, sizes[0], 1, c.store); r.commands != c.commands || len(r.samples) != 1 {
			t.Errorf("%s, %s: %v commands, want %v; %d samples", c.work, c.store, r.commands, c.commands, len(r.samples))
		}
	}
	if figures := b.targets(); len(figures) != 20 {
		t.Errorf("%d targets:\n%s", len(figures), &out)
	} else if strings.Contains(out.String(), "NaN") || strings.Contains(out.String(), "Inf") {
		t.Errorf("not a number:\n%s", &out)
	}
}

func TestWhatIsNoPartIsRefused(t *testing.T) {
	defer func(was string) { *parts, *charts = was, "" }(*parts)
	*parts, *charts = "lock", "."
	if _, err := run(&bytes.Buffer{}); err == nil {
		t.Error("charts are drawn of nothing")
	}
	*parts = "read,nothing"
	if _, err := run(&bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "sizing") {
		t.Errorf("the error does not name the parts: %v", err)
	}
}

// TestTheLockNeverReadsTheCache: through a client that has the session in its cache, a
// read with the lock sees what another client has just had acknowledged, always.
func TestTheLockNeverReadsTheCache(t *testing.T) {
	redisserver.Need(t)
	s, err := startRedis()
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	const trials = 300
	plainly, locked, err := readCached(s.addr, trials)
	if err != nil {
		t.Fatal(err)
	}
	if locked > 0 {
		t.Errorf("the lock read an old value in %d of %d", locked, trials)
	}
	t.Logf("the plain store read an old value in %d of %d", plainly, trials)
}

// BenchmarkStores runs each contender with as many requests at once as there are cores.
func BenchmarkStores(b *testing.B) {
	redisserver.Need(b)
	s, err := startRedis()
	if err != nil {
		b.Fatal(err)
	}
	defer s.stop()
	all, err := contenders(s.addr, nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, work := range []string{read, save, locked, create} {
		for _, size := range sizes {
			for _, c := range all {
				if c.can(work, size) && (work == read || size.n == 0) {
					b.Run(strings.Join([]string{work, size.name, c.name}, "/"), func(b *testing.B) { c.benchmark(b, work, size) })
				}
			}
		}
	}
}

func (c contender) benchmark(b *testing.B, work string, s size) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		crowd, err := c.crowd(s, 1)
		for err == nil && pb.Next() {
			err = c.do(work, crowd[0])
		}
		if err != nil {
			b.Error(err)
		}
	})
}
