// Bench measures redistore beside other session stores and locks, on a redis-server that
// it starts itself:
//
//	cd bench && go run .
//
// It takes about ten minutes. -part read,lock runs parts alone; -charts . draws what the
// README shows. All contenders do the same work on the same values, in turns
// (A B C A B C …), so that a machine that drifts is unfair to none. Every iteration is a
// whole request, with its recorder, and checks what it read. The tables show medians;
// ratios are medians of the ratios of each round.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

var (
	rounds    = flag.Int("rounds", 5, "how often each is measured; the median counts")
	slice     = flag.Duration("time", 200*time.Millisecond, "how long each measurement takes")
	lockSlice = flag.Duration("locktime", 400*time.Millisecond, "how long waiters go on in the closed loop")
	most      = flag.Int("sessions", 1_000_000, "up to how many sessions growth stores; each needs about 400 bytes of memory")
	filling   = flag.Int("fill", 10_000, "how many sessions memory stores; fewer of the large ones")
	trials    = flag.Int("trials", 100, "how often the reader with a cache waits for a change")
	pool      = flag.Int("pool", 0, "connections of a go-redis client; 0: its default, 10 for each core")
	parts     = flag.String("part", "all", "which of these, separated by commas: "+strings.Join(partNames(), ", "))
	charts    = flag.String("charts", "", "the directory to draw what was measured in, as .svg files")
)

// A part of the whole can be run alone.
type part struct {
	name string
	run  func(*bench) error
}

func allParts() []part {
	var all []part
	for _, work := range []string{read, save, locked, create, logout} {
		all = append(all, part{work, func(b *bench) error { return b.requests(work) }})
	}
	return append(all,
		part{"lock", (*bench).locks},
		part{"order", (*bench).order},
		part{"crowd", (*bench).waitingCrowd},
		part{"large", (*bench).large},
		part{"memory", (*bench).memory},
		part{"growth", (*bench).growth},
		part{"processes", (*bench).processes},
		part{"cache", (*bench).staleness},
		part{"sizing", (*bench).sizing})
}

func partNames() (names []string) {
	for _, p := range allParts() {
		names = append(names, p.name)
	}
	return names
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	if os.Getenv(asWorker) != "" {
		if err := work(os.Stdin, os.Stdout); err != nil {
			log.Fatal("worker: ", err)
		}
		return
	}
	flag.Parse()
	if _, err := run(os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// A bench is one run, with the figures that it has so far.
type bench struct {
	out        io.Writer
	server     *server
	contenders []contender
	metered    []contender // the same, on connections that count
	meter      meter

	rows      []row
	locked    []lockRow
	orders    []orderRow
	crowds    []crowdRow
	larger    []largeRow
	roundTrip map[time.Duration]time.Duration // after such a pause
	stored    []memoryRow
	grew      []growthRow
	spread    []processRow
	stale     []staleRow
}

func run(out io.Writer) (*bench, error) {
	chosen := strings.Split(*parts, ",")
	for _, name := range chosen {
		if name != "all" && !slices.Contains(partNames(), name) {
			return nil, fmt.Errorf("-part %q: use all or some of %s", name, strings.Join(partNames(), ","))
		}
	}
	all := slices.Contains(chosen, "all")
	drawn := func(part string) bool { return part == read || part == "order" || part == "large" }
	if *charts != "" && !all && !slices.ContainsFunc(chosen, drawn) {
		return nil, fmt.Errorf("-charts draws what read, order and large measure: add one of them to -part")
	}
	if *rounds < 1 || *slice <= 0 || *lockSlice <= 0 || *filling < 1 || *trials < 1 {
		return nil, fmt.Errorf("-rounds, -time, -locktime, -fill and -trials: use more than 0")
	}
	b := &bench{out: out}
	stop, err := b.start()
	if err != nil {
		return nil, err
	}
	defer stop()
	for _, p := range allParts() {
		if all || slices.Contains(chosen, p.name) {
			if err := p.run(b); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	if *charts != "" {
		if err := b.draw(*charts); err != nil {
			return nil, err
		}
	}
	if err := b.overview(); err != nil {
		return nil, err
	}
	return b, b.table("Targets", []string{"target", "wanted", "figure", "met"}, func(add func(...any)) {
		for _, t := range b.targets() {
			add(t.name, t.want, fmt.Sprintf("%.2f", t.figure), map[bool]string{true: "yes", false: "NO"}[t.met])
		}
	})
}

// start starts Redis, makes the contenders, and says on what this runs.
func (b *bench) start() (stop func(), err error) {
	if b.server, err = startRedis(); err != nil {
		return nil, err
	}
	var meteredErr error
	b.contenders, err = contenders(b.server.addr, nil)
	b.metered, meteredErr = contenders(b.server.addr, b.meter.dial)
	if err := cmp.Or(err, meteredErr); err != nil {
		b.server.stop()
		return nil, err
	}
	_, err = fmt.Fprintf(b.out, "# Results\n\n`%s`, %s: %s, redis-server %s, %d cores for all, median of %d\n",
		command(), time.Now().Format(time.DateOnly), runtime.Version(), b.server.text("server", "redis_version"), runtime.NumCPU(), *rounds)
	return b.server.stop, err
}

// command is how this was called.
func command() string {
	return strings.Join(append([]string{"cd bench && go run ."}, os.Args[1:]...), " ")
}

// overview is what most readers want to know.
func (b *bench) overview() error {
	shown := []string{theirs, scsStore, plain, limit}
	head := append([]string{"5 fields"}, shown...)
	return b.table("Overview", head, func(add func(...any)) {
		line := func(name, work string, concurrent int, all []string, of func(row) string) {
			cells, measured := []any{name}, false
			for _, store := range all {
				r := b.find(work, sizes[0], concurrent, store)
				if len(r.samples) == 0 {
					cells = append(cells, "")
					continue
				}
				cells, measured = append(cells, of(r)), true
			}
			if measured {
				add(cells...)
			}
		}
		instead := func(store string) []string { return []string{"", "", store, ""} }
		time := func(r row) string { return fmt.Sprintf("%.1f", us(r.wall())) }
		rate := func(r row) string { return fmt.Sprintf("%.0f", r.perSecond()) }
		allocations := func(r row) string {
			return fmt.Sprintf("%.0f", r.median(func(s sample) float64 { return s.allocs }))
		}
		line("read, µs, one at a time", read, 1, shown, time)
		line("read, change, save, µs, one at a time", save, 1, shown, time)
		line("the same with the lock", locked, 1, instead(locking), time)
		line("a new session, µs, one at a time", create, 1, shown, time)
		line("logout, µs, one at a time", logout, 1, shown, time)
		line(fmt.Sprintf("reads a second, %d at once", many), read, many, shown, rate)
		line("the same through an AutoPipeliner", read, many, instead(pipelined), rate)
		line("the same with client-side caching", read, many, instead(cached), rate)
		line("allocations of a read", read, 1, shown, allocations)
		line("allocations of a read, change, save", save, 1, shown, allocations)
	})
}

// find returns the contender of that name.
func find(all []contender, name string) contender {
	return all[slices.IndexFunc(all, func(c contender) bool { return c.name == name })]
}

// table prints Markdown that can be read as it is.
func (b *bench) table(title string, head []string, fill func(add func(...any))) error {
	lines := [][]string{head}
	fill(func(cells ...any) {
		var line []string
		for _, cell := range cells {
			line = append(line, fmt.Sprint(cell))
		}
		lines = append(lines, line)
	})
	widths := make([]int, len(head))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "\n**%s**\n\n", title)
	for i, line := range lines {
		for j, cell := range line {
			fmt.Fprintf(&text, "| %*s ", widths[j], cell)
		}
		text.WriteString("|\n")
		if i == 0 {
			for _, w := range widths {
				text.WriteString("|" + strings.Repeat("-", w+1) + ":")
			}
			text.WriteString("|\n")
		}
	}
	_, err := io.WriteString(b.out, text.String())
	return err
}
