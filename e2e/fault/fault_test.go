// Package fault proves what redistore promises while Redis, the network and the
// application's own servers fail: several processes change a few hundred sessions, all
// that they see is recorded, and each session's history is checked.
//
//	go test ./fault                                 # four minutes: a fixed seed and a random one
//	go test ./fault -v -run UnderFault -seed 42     # as it was
//	go test ./fault -v -run UnderFault -for 1h -timeout 2h
package fault

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
	"github.com/redistore/redistore/internal/redisserver"
)

var (
	each = flag.Duration("each", 5*time.Second, "how long one topology is put under fault in one round")
	all  = flag.Duration("for", 0, "go on with rounds of random seeds for so long; 0: one with a fixed seed and one with a random one")
	seed = flag.Uint64("seed", 0, "one round with this seed")
	only = flag.String("only", "", "faults whose name contains this")
)

const workers = 3

// TestUnderFault is the proof.
func TestUnderFault(t *testing.T) {
	seeds := []uint64{1, rand.Uint64N(1e9)}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	redis.SetLogger(silent{})
	rows := map[string]*row{}
	start := time.Now()
	for round := 0; round < len(seeds); round++ {
		for _, kind := range sites {
			t.Run(fmt.Sprintf("%s, seed %d", kind.name, seeds[round]), func(t *testing.T) {
				s := kind.build(t)
				x := run(t, s, ours, seeds[round], s.length, s.faults)
				x.verify(t)
				if rows[kind.name] == nil {
					rows[kind.name] = &row{}
				}
				rows[kind.name].add(x)
			})
		}
		if round == len(seeds)-1 && time.Since(start) < *all {
			seeds = append(seeds, rand.Uint64N(1e9))
		}
	}
	publish(t, rows)
}

// TestTheCheckerCatches shows that the checks can fail: stores that lose updates are
// caught.
func TestTheCheckerCatches(t *testing.T) {
	t.Run(rival, func(t *testing.T) {
		r := run(t, single(t), rival, 1, time.Second, nil)
		if r.verdict.lost == 0 || len(r.verdict.illegal) == 0 {
			t.Errorf("boj/redistore loses updates, and the checker found %d and %d histories that no order explains", r.verdict.lost, len(r.verdict.illegal))
		}
		t.Logf("%d calls, %d of %d increments lost", r.verdict.calls, r.verdict.lost, r.verdict.increments)
	})
	t.Run(noCompare, func(t *testing.T) {
		s := single(t)
		for attempt := range uint64(10) {
			r := run(t, s, noCompare, attempt, 3*time.Second, []fault{pauseClient})
			if r.verdict.lost > 0 && len(r.verdict.illegal) > 0 {
				t.Logf("%d calls, %d of %d increments lost", r.verdict.calls, r.verdict.lost, r.verdict.increments)
				return
			}
		}
		t.Error("a store that does not compare overwrites what others saved, and the checker has not noticed")
	})
	t.Run(noMarker, func(t *testing.T) {
		s := single(t)
		for attempt := range uint64(10) {
			r := run(t, s, noMarker, attempt, 2*time.Second, nil)
			if r.verdict.forNoReason > 0 {
				t.Logf("%d calls, %d of %d logins lost", r.verdict.calls, r.verdict.forNoReason, r.verdict.logins)
				return
			}
		}
		t.Error("a page's other requests throw its login away, and the checker has not noticed")
	})
	t.Run(noPending, func(t *testing.T) {
		s := ring(t) // where index and session are on two servers
		for attempt := range uint64(10) {
			r := run(t, s, noPending, attempt, 2*time.Second, []fault{delay})
			if len(r.verdict.strays) > 0 || len(r.verdict.illegal) > 0 {
				t.Logf("%d calls, %d sessions outlive their index, %d histories are wrong", r.verdict.calls, len(r.verdict.strays), len(r.verdict.illegal))
				return
			}
		}
		t.Error("sessions are outside their owner's index, and the checker has not noticed")
	})
}

// TestWhatIsTakenOutWasThere keeps takenOut up to date with the scripts: a piece that is no
// longer in any of them is not taken out.
func TestWhatIsTakenOutWasThere(t *testing.T) {
	var scripts strings.Builder
	for _, dir := range []string{"../../lua", "../../internal/lock/lua"} {
		must(t, fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(filepath.Join(dir, path))
			scripts.Write(text)
			return err
		}))
	}
	for store, pieces := range takenOut {
		for i := 0; i < len(pieces); i += 2 {
			if !strings.Contains(scripts.String(), pieces[i]) {
				t.Errorf("%s: no script has %q", store, pieces[i])
			}
		}
	}
}

// A trial is one run of the workload on a site.
type trial struct {
	t      *testing.T
	site   *site
	rng    *rand.Rand
	store  string
	seed   uint64
	shared string
	logs   string
	crew   []*member // that are at work
	all    []*member
	faults map[string]int
	told   []string // what was done when

	undo []func(context.Context, *redis.Client) error // what ends the last fault

	primaries string // as they were watched last
	watched   int64
	begun     int64 // the last second, after all faults

	history history
	strays  []string // sessions that outlive their owner's index
	stats   redistore.LockStats
	verdict *verdict
}

// A member of the crew is a worker's process.
type member struct {
	number int
	cmd    *exec.Cmd
	stdin  io.Closer
	said   *strings.Builder
	log    string
	paused []window
	killed int64 // when; 0: it was not
}

// run puts a store under load and faults, and returns what came of it.
func run(t *testing.T, s *site, store string, seed uint64, length time.Duration, faults []fault) *trial {
	t.Helper()
	x := &trial{t: t, site: s, store: store, seed: seed, rng: rand.New(rand.NewPCG(seed, uint64(len(s.nodes)))),
		shared: t.TempDir(), logs: t.TempDir(), faults: map[string]int{}}
	x.history.evicts = s.evicts
	for range workers {
		x.hire()
	}
	defer x.fireAll()
	x.watch()
	start := time.Now()
	faults = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !strings.Contains(f.name, *only) })
	bag := []fault(nil)
	for time.Since(start) < length {
		x.calm(100*time.Millisecond, 400*time.Millisecond)
		if len(faults) == 0 {
			continue
		}
		if len(bag) == 0 { // each once, in any order
			bag = slices.Clone(faults)
			x.rng.Shuffle(len(bag), func(i, j int) { bag[i], bag[j] = bag[j], bag[i] })
		}
		f := bag[0]
		bag = bag[1:]
		x.faults[f.name]++
		x.watch() // a machine that is busy may fail over by itself
		began := now()
		f.do(x)
		x.settle(f.name)
		x.history.faults = append(x.history.faults, window{began, now()})
		x.told = append(x.told, fmt.Sprintf("%s, until %d; then the primaries are %s", f.name, now(), s.roles()))
		if f.handsOver {
			x.watched, x.primaries = now(), s.roles()
		}
		x.watch()
		x.locks()
	}
	x.lastSecond()
	x.dismiss()
	x.settle("the last call") // a server may have failed over since
	x.watch()
	x.collect()
	x.cleanUp()
	x.verdict = x.history.check()
	x.verdict.strays = x.strays
	x.times()
	return x
}

// lastSecond is one in which all servers are well: on a machine that is busy, they may fail over
// by themselves.
func (x *trial) lastSecond() {
	topology.Wait(x.t, "a second passes without a failover", func() error {
		x.settle("the last fault")
		x.watch()
		x.begun = now()
		x.calm(time.Second, time.Second)
		if roles := x.site.roles(); roles != x.primaries {
			return fmt.Errorf("the primaries were %s, and are %s", x.primaries, roles)
		}
		return x.site.healthy()
	})
}

// watch notes a failover since it last looked.
func (x *trial) watch() {
	primaries := x.site.roles()
	if x.primaries != primaries && x.primaries != "" {
		x.history.windows = append(x.history.windows, window{x.watched, now()})
	}
	x.primaries, x.watched = primaries, now()
}

func (x *trial) calm(from, to time.Duration) {
	time.Sleep(from + time.Duration(x.rng.Int64N(int64(to-from)+1)))
}

// hire starts a worker.
func (x *trial) hire() {
	x.t.Helper()
	m := &member{number: len(x.all), said: &strings.Builder{}}
	m.log = filepath.Join(x.logs, fmt.Sprint(m.number))
	text, err := json.Marshal(job{Worker: m.number, Log: m.log, Shared: x.shared, Seed: x.seed, Store: x.store, Padding: x.site.padding, Clients: x.site.clients})
	must(x.t, err)
	exe, err := os.Executable()
	must(x.t, err)
	m.cmd = exec.Command(exe)
	m.cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	m.cmd.Stderr = m.said
	m.stdin, err = m.cmd.StdinPipe()
	must(x.t, err)
	must(x.t, m.cmd.Start())
	x.crew, x.all = append(x.crew, m), append(x.all, m)
}

// fireAll ends the workers that are left after a failure.
func (x *trial) fireAll() {
	for _, m := range x.crew {
		m.cmd.Process.Kill()
		m.cmd.Wait()
	}
	x.crew = nil
}

// dismiss lets the workers finish what they are at.
func (x *trial) dismiss() {
	x.t.Helper()
	for _, m := range x.crew {
		m.stdin.Close()
	}
	for _, m := range x.crew {
		late := time.AfterFunc(longest+5*time.Second, func() { m.cmd.Process.Signal(syscall.SIGQUIT) })
		if err := m.cmd.Wait(); err != nil {
			x.t.Errorf("worker %d: %v\n%.3000s", m.number, err, m.said)
		}
		late.Stop()
	}
	x.crew = nil
}

// collect reads what the workers saw, and then every session.
func (x *trial) collect() {
	x.t.Helper()
	var files []string
	for _, m := range x.all {
		files = append(files, m.log)
	}
	ops, err := readLogs(files)
	must(x.t, err)
	client := clients{Kind: x.site.clients.Kind, Addrs: x.site.clients.Addrs}.open()
	defer client.Close()
	store := redistore.New(client, key)
	for _, o := range slices.Clone(ops) {
		if o.End == 0 {
			o.Killed = x.all[o.Worker].killed
		}
		if o.New == "" || o.Out != done {
			continue
		}
		last := &op{Worker: coordinator, Start: now(), Do: read, ID: o.New, Owner: o.Owner, Value: unseen, Out: gone}
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(cookie(o.New))
		s, err := store.Get(r, "s")
		must(x.t, err)
		if !s.IsNew {
			last.Out, last.Value = done, s.Values["n"].(int)
		}
		last.End = now()
		ops = append(ops, last)
	}
	x.history.ops = ops
	for _, m := range x.all {
		var s redistore.LockStats
		if text, err := os.ReadFile(m.log + ".stats"); err == nil { // it was not killed
			must(x.t, json.Unmarshal(text, &s))
		}
		addStats(&x.stats, s)
	}
}

// cleanUp waits for what must not outlive its use: locks, and index entries without a
// session.
func (x *trial) cleanUp() {
	x.t.Helper()
	ctx := context.Background()
	start := time.Now()
	topology.Wait(x.t, "every lock is released or has run out", func() error {
		for _, n := range x.site.primaries() {
			keys, err := direct(n).Keys(ctx, "*:lock").Result()
			if err != nil || len(keys) > 0 {
				return fmt.Errorf("%d locks are left: %v %w", len(keys), keys, err)
			}
		}
		return nil
	})
	if took := time.Since(start); took > lease+2*time.Second {
		x.t.Errorf("locks were left for %v, TTL is %v", took, lease)
	}
	if x.store == rival {
		return
	}
	client := clients{Kind: x.site.clients.Kind, Addrs: x.site.clients.Addrs}.open()
	defer client.Close()
	store := redistore.New(client, key)
	x.forgotten()
	named := map[string]bool{}
	for _, o := range x.history.ops {
		named[o.Owner] = true
	}
	for owner := range named {
		for _, err := range store.Sessions(ctx, owner) { // which prunes the index
			must(x.t, err)
		}
	}
	index := map[string]float64{} // until when each session is listed
	for _, n := range x.site.primaries() {
		keys, err := direct(n).Keys(ctx, "session_owner:*").Result()
		must(x.t, err)
		for _, k := range keys {
			if ttl := direct(n).TTL(ctx, k).Val(); ttl <= 0 || ttl > 31*24*time.Hour {
				x.t.Errorf("the index %s expires in %v", k, ttl)
			}
			for _, entry := range direct(n).ZRangeWithScores(ctx, k, 0, -1).Val() {
				id := entry.Member.(string)
				index[id] = max(index[id], entry.Score)
				alive, err := client.Exists(ctx, "session_"+id).Result()
				must(x.t, err)
				if pending := entry.Score != float64(int64(entry.Score)); alive == 0 && !pending {
					x.t.Errorf("the index lists %s, which is no session", id)
				}
			}
		}
	}
	x.lives(x.history.sessions())
	made := map[string]int64{} // when each session was
	for _, o := range x.history.ops {
		if o.New != "" {
			made[o.New] = o.Start
		}
		if o.Worker != coordinator || o.Owner == "" || o.Out != done || x.site.evicts || within(x.history.windows, made[o.ID], now()) {
			continue
		}
		ttl, err := client.TTL(ctx, "session_"+o.ID).Result()
		must(x.t, err)
		if left := index[o.ID] - float64(time.Now().Unix()); ttl.Seconds() > left+1 {
			x.strays = append(x.strays, fmt.Sprintf("%s lives for %v, and the index lists it for %.0f s", o.ID, ttl, left))
		}
	}
}

// times finds the longest call and the longest outage, without the pauses of the
// caller's own process.
func (x *trial) times() {
	last := map[[2]int]int64{}
	for _, o := range x.history.ops {
		if o.Worker == coordinator {
			continue
		}
		m := x.all[o.Worker]
		if o.End == 0 {
			if m.killed == 0 {
				x.t.Errorf("a call never ended: %+v", o)
			}
			continue
		}
		x.verdict.longestCall = max(x.verdict.longestCall, m.awake(o.Start, o.End))
		if o.Out == done || o.Out == gone {
			who := [2]int{o.Worker, o.Caller}
			if before, ok := last[who]; ok {
				x.verdict.longestOutage = max(x.verdict.longestOutage, m.awake(before, o.End))
			}
			last[who] = o.End
		}
	}
	for _, m := range x.all {
		for n := range callers {
			if m.killed == 0 && last[[2]int{m.number, n}] < x.begun {
				x.t.Errorf("caller %d of worker %d had no success after the last fault: it would need a restart", n, m.number)
			}
		}
	}
}

// awake is how much of a time the process was not stopped.
func (m *member) awake(from, to int64) time.Duration {
	length := to - from
	for _, p := range m.paused {
		length -= max(0, min(to, p.end)-max(from, p.start))
	}
	return time.Duration(length)
}

// longest is the bound of a call: to wait for a session, and then twice the store's
// own 5 seconds.
const longest = patience + 10*time.Second

// verify fails the test where a promise was broken.
func (x *trial) verify(t *testing.T) {
	t.Helper()
	v := x.verdict
	for _, b := range slices.Concat(v.broken, v.strays) {
		t.Error(b)
	}
	for i, h := range v.illegal {
		if i == 3 {
			t.Errorf("… and %d more", len(v.illegal)-i)
			break
		}
		t.Errorf("no order explains this history:\n%.6000s", h)
	}
	if v.undecided > 0 {
		t.Errorf("%d histories could not be decided in time", v.undecided)
	}
	if v.longestCall > longest {
		t.Errorf("a call took %v, its bound is %v", v.longestCall, longest)
	}
	if v.oldestLost > time.Second { // which is how far a replica may lag
		t.Errorf("an update was lost that was acknowledged %v before the failover", v.oldestLost)
	}
	if v.doubled > 0 {
		t.Errorf("%d increments were done twice", v.doubled)
	}
	if len(x.history.windows) == 0 && (v.lost > 0 || !x.site.evicts && v.resurrected > 0) {
		t.Errorf("%d acknowledged increments were lost, %d ended sessions are back", v.lost, v.resurrected)
	}
	if v.forNoReason > 0 {
		t.Errorf("%d of %d logins were lost", v.forNoReason, v.logins)
	}
	if v.calls-v.failed < 100 {
		t.Errorf("only %d of %d calls succeeded: this shows nothing", v.calls-v.failed, v.calls)
	}
	if t.Failed() {
		t.Log(strings.Join(x.told, "\n"))
	}
	t.Logf("%+v", v)
}

// A row is what all rounds of a site add up to.
type row struct {
	v      verdict
	faults map[string]int
	stats  redistore.LockStats
}

func (r *row) add(x *trial) {
	v := x.verdict
	r.v.calls += v.calls
	r.v.failed += v.failed
	r.v.increments += v.increments
	r.v.lost += v.lost
	r.v.doubled += v.doubled
	r.v.resurrected += v.resurrected
	r.v.logins += v.logins
	r.v.lostLogins += v.lostLogins
	r.v.sessions += v.sessions
	r.v.ended += v.ended
	r.v.oldestLost = max(r.v.oldestLost, v.oldestLost)
	r.v.longestCall = max(r.v.longestCall, v.longestCall)
	r.v.longestOutage = max(r.v.longestOutage, v.longestOutage)
	addStats(&r.stats, x.stats)
	if r.faults == nil {
		r.faults = map[string]int{}
	}
	for name, n := range x.faults {
		r.faults[name] += n
	}
}

// addStats adds up what is published of the lock's counters.
func addStats(sum *redistore.LockStats, s redistore.LockStats) {
	sum.Waits += s.Waits
	sum.Conflicts += s.Conflicts
	sum.Lapsed += s.Lapsed
	sum.Unwoken += s.Unwoken
}

// publish prints the table, and writes it where .ci/run looks for it.
func publish(t *testing.T, rows map[string]*row) {
	var b strings.Builder
	fmt.Fprintf(&b, "redistore under fault, %s, %s\n\n", version(t), time.Now().Format(time.DateOnly))
	fmt.Fprintln(&b, "| topology | calls | failed | sessions | ended | increments | lost | doubled | back | logins | lost logins | longest outage |")
	fmt.Fprintln(&b, "|---|---|---|---|---|---|---|---|---|---|---|---|")
	faults := map[string]int{}
	var stats redistore.LockStats
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		addStats(&stats, r.stats)
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %.1f s |\n", name, r.v.calls, r.v.failed, r.v.sessions, r.v.ended,
			r.v.increments, r.v.lost, r.v.doubled, r.v.resurrected, r.v.logins, r.v.lostLogins, r.v.longestOutage.Seconds())
		for name, n := range r.faults {
			faults[name] += n
		}
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		list = append(list, fmt.Sprintf("%s %d", name, faults[name]))
	}
	fmt.Fprintf(&b, "\nFaults: %s.\n", strings.Join(list, ", "))
	fmt.Fprintf(&b, "Of the writes, %d arrived late, %d of them after their repeat was answered.\n", arrivedLate.Load(), arrivedAfterTheirRepeat.Load())
	fmt.Fprintf(&b, "Of the requests, %d waited for the lock, %d held it for too long, %d found a conflict; %d wake-ups did not come.\n", stats.Waits, stats.Lapsed, stats.Conflicts, stats.Unwoken)
	t.Log("\n" + b.String())
	if dir := os.Getenv("REDISTORE_TABLES"); dir != "" {
		must(t, os.WriteFile(filepath.Join(dir, "fault.txt"), []byte(b.String()), 0o600))
	}
}

// version is what the servers call themselves.
func version(t *testing.T) string {
	path, err := redisserver.Path()
	must(t, err)
	out, err := exec.Command(path, "--version").Output()
	must(t, err)
	name, rest, _ := strings.Cut(string(out), " v=")
	version, _, _ := strings.Cut(rest, " ")
	return name + " " + version
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
