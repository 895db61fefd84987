package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/schemas"
)

// daemon is an opstream process that dies and is started again, with the same arguments and so at the same addresses.
type daemon struct {
	t    testing.TB
	name string
	args []string
	log  *watched // of all its lives
	path string   // of another program than the one of this tree; mostly empty

	cmd   *exec.Cmd
	ready chan struct{} // closed when this life says that it runs, or has ended
	done  chan struct{} // closed when it has ended
	err   error         // how it ended; after done
	lives int
}

// daemonOf describes a process; launch starts it.
func daemonOf(t testing.TB, name string, args ...string) *daemon {
	d := &daemon{t: t, name: name, args: args, log: &watched{news: make(chan struct{}, 1)}}
	t.Cleanup(d.kill)
	return d
}

// launch starts a life and does not wait for it.
func (d *daemon) launch() {
	d.t.Helper()
	path, err := program()
	if err != nil {
		d.t.Fatal(err)
	}
	d.launchCommand(exec.Command(cmp.Or(d.path, path), d.args...)) // it is ended by signals, which is what is tested
}

func (d *daemon) launchCommand(cmd *exec.Cmd) {
	d.t.Helper()
	cmd.Stderr = d.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd, d.err, d.ready, d.done = cmd, nil, make(chan struct{}), make(chan struct{})
	d.lives++
	go func(ready, done chan struct{}) {
		defer close(done)
		runs := sync.OnceFunc(func() { close(ready) })
		defer runs()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "opstream runs") {
				runs()
			}
		}
		d.err = cmd.Wait()
	}(d.ready, d.done)
}

// up waits until the process says that it runs.
func (d *daemon) up() *daemon {
	d.t.Helper()
	select {
	case <-d.ready:
	case <-time.After(60 * time.Second):
		d.t.Fatalf("expected %s to say that it runs, but it did not within a minute\n%s", d.name, d.log)
	}
	if d.ended() {
		d.t.Fatalf("expected %s to run, but it ended: %v\n%s", d.name, d.err, d.log)
	}
	return d
}

func (d *daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

func (d *daemon) kill() {
	if d.cmd != nil {
		_ = d.cmd.Process.Kill() // fails when it has ended, which is as good
		<-d.done
	}
}

func (d *daemon) signal(s os.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatalf("signal %s: %v", d.name, err)
	}
}

// exits waits for the end of the process, and returns its exit code and how long it took.
func (d *daemon) exits(within time.Duration) (code int, took time.Duration) {
	d.t.Helper()
	began := time.Now()
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode(), time.Since(began)
	case <-time.After(within):
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // for the stacks
		<-d.done
		d.t.Fatalf("expected %s to exit within %s, but it did not\n%s", d.name, within, d.log)
		return 0, 0
	}
}

// installation is a service that runs somewhere, and what the test has asked of it and seen of it.
type installation struct {
	t       testing.TB
	broker  string // host:port, or several with commas
	topics  schemas.Topics
	url     string
	tables  string
	secured string    // where to read how to connect to brokers that do not let everybody in; "" for others
	opts    []kgo.Opt // the same for a client of the test
	parts   []*daemon
	crm     *producers.Client
	api     *api.Client
	watcher *watcher
	rate    int    // requests per second under load; 0 for 300
	besides func() // what a test judges besides, when all has ended and everything still runs; nil for nothing

	requests sync.WaitGroup // that are under way

	mu       sync.Mutex
	accepted map[string]*producers.Request // acknowledged by the log
	refused  []error                       // requests whose fate was not told, or that were refused
	recent   []*producers.Request
	paused   map[string]*producers.Request // at one time
	answers  []answered
}

// answered is what the API has said of a command: the event that it points at must count for ever.
type answered struct {
	id       string
	position api.Position
}

// devInstallation is everything in one process.
func devInstallation(t testing.TB, more ...string) *installation {
	return devOn(t, t.TempDir(), more...)
}

// devOn is the same on a folder that is there.
func devOn(t testing.TB, dir string, more ...string) *installation {
	in := newInstallation(t, dir)
	in.parts = []*daemon{
		daemonOf(t, "dev", append([]string{"dev", "--data", dir, "--kafka", in.broker, "--listen", strings.TrimPrefix(in.url, "http://"), "--lease", "3s"}, more...)...),
	}
	return in.start()
}

// splitInstallation is a process for each role, and two schedulers.
func splitInstallation(t testing.TB, more ...string) *installation {
	dir := t.TempDir()
	in := newInstallation(t, dir)
	role := func(name, roles string, args ...string) *daemon {
		return daemonOf(t, name, append(append([]string{"serve", "--roles", roles, "--log", "warn"}, args...), more...)...)
	}
	in.parts = []*daemon{
		role("broker", "broker", "--data", dir, "--kafka", in.broker),
		role("scheduler-1", "scheduler", "--brokers", in.broker, "--lease", "3s"),
		role("scheduler-2", "scheduler", "--brokers", in.broker, "--lease", "3s"),
		role("worker", "worker", "--brokers", in.broker, "--lease", "3s"),
		role("api", "projector,api", "--brokers", in.broker, "--database", in.tables, "--listen", strings.TrimPrefix(in.url, "http://")),
	}
	return in.start()
}

func newInstallation(t testing.TB, dir string) *installation {
	return &installation{
		t: t, broker: freePort(t), url: "http://" + freePort(t), tables: filepath.Join(dir, databaseFile),
		accepted: map[string]*producers.Request{}, paused: map[string]*producers.Request{},
	}
}

// start starts all parts, the broker first: the others may then begin in any order.
func (in *installation) start() *installation {
	in.t.Helper()
	for i, d := range in.parts {
		d.launch()
		if i == 0 {
			d.up()
		}
	}
	for _, d := range in.parts {
		d.up()
	}
	var err error
	in.crm, err = producers.New(producers.Config{
		Brokers: in.brokers(), Topics: in.topics, Source: "/test", Options: in.client(), DeliveryTimeout: 2 * time.Minute,
	})
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() {
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = in.crm.Close(closing) // a test that passes has nothing under way any more
	})
	in.api = &api.Client{Base: in.url}
	in.t.Cleanup(func() {
		for _, d := range in.parts {
			if in.t.Failed() {
				said := d.log.String()
				in.t.Logf("%s said:\n%s", d.name, said[max(0, len(said)-8000):])
			}
		}
	})
	return in
}

func (in *installation) brokers() []string { return strings.Split(in.broker, ",") }

func (in *installation) client() []kgo.Opt {
	return append((&serviceConfig{brokers: in.brokers()}).clientOptions(), in.opts...)
}

func (in *installation) journal() projector.Journal {
	return projector.Journal{Client: in.client(), Topics: in.topics}
}

func (in *installation) part(name string) *daemon {
	for _, d := range in.parts {
		if d.name == name {
			return d
		}
	}
	in.t.Fatalf("no part is called %s", name)
	return nil
}

// request asks for an operation, and remembers it once the log has acknowledged it.
func (in *installation) request(q *producers.Request) {
	in.ask(q, func() {
		if in.recent = append(in.recent, q); len(in.recent) > 200 {
			in.recent = slices.Delete(in.recent, 0, 100)
		}
	})
}

// ask is request for an operation to which the load gives no commands. What is to be done when the log has acknowledged it is done under
// the lock.
func (in *installation) ask(q *producers.Request, accepted func()) {
	in.requests.Add(1)
	in.crm.RequestAsync(in.t.Context(), q, func(err error) {
		defer in.requests.Done()
		in.mu.Lock()
		defer in.mu.Unlock()
		if err != nil {
			in.refused = append(in.refused, fmt.Errorf("%s: %w", q.ID, err))
			return
		}
		in.accepted[q.ID] = q
		accepted()
	})
}

// mixture makes the i-th request of a load: chains, retries, panics, postponements, failures, work for the processes'
// own workers and for the one in the test.
func mixture(i int, chance *rand.Rand) *producers.Request {
	q := &producers.Request{ID: fmt.Sprintf("op-%d", i), Organization: fmt.Sprintf("org-%d", i%5), Type: "noop"}
	if chance.IntN(5) < 2 {
		q.Type = recordedType
	}
	if chance.IntN(2) == 0 {
		q.DependencyToken = fmt.Sprintf("%s-chain-%d", q.Organization, chance.IntN(8))
	}
	data := map[string]any{}
	switch chance.IntN(20) {
	case 0, 1:
		data["failTimes"] = 1
		q.Retry = &producers.RetryPolicy{MaxAttempts: 20, Initial: 50 * time.Millisecond, Max: time.Second, Multiplier: 2, Jitter: 0.2}
	case 2:
		data["fail"], data["class"] = "as asked", "fail"
	case 3:
		q.PostponeUntil = time.Now().Add(time.Duration(chance.IntN(1500)) * time.Millisecond)
	case 4:
		if q.DependencyToken == "" { // it waits for somebody to look at it, and nothing waits for it
			data["fail"], data["class"] = "as asked", "suspend"
		}
	case 5:
		q.Priority = new(int8(chance.IntN(10)))
	}
	if chance.IntN(3) == 0 {
		data["sleepMs"] = chance.IntN(20)
	}
	// Work that is lost with its worker counts as a failure, and must not use up what the operation has.
	if q.Retry == nil {
		q.Retry = &producers.RetryPolicy{MaxAttempts: 1000, Initial: 50 * time.Millisecond, Max: time.Second, Multiplier: 2}
	}
	if len(data) > 0 {
		q.Data = data
	}
	return q
}

// load asks for operations, steadily, and cancels, pauses and resumes some, until stop is closed. It ends when all requests are
// settled.
func (in *installation) load(seed uint64, perSecond int, stop <-chan struct{}) (requested int) {
	var commands sync.WaitGroup
	for i := range 8 { // several, since one waits while the API or a partition is away
		commands.Go(func() {
			chance := rand.New(rand.NewPCG(seed, uint64(i+2)))
			for !isClosed(stop) {
				in.command(chance)
				<-after(time.Duration(20+chance.IntN(200)) * time.Millisecond) // commands come when chance will have it
			}
		})
	}
	chance := rand.New(rand.NewPCG(seed, 1))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !isClosed(stop) {
		for range perSecond / 50 {
			in.request(mixture(requested, chance))
			requested++
		}
		select {
		case <-tick.C:
		case <-stop:
		}
	}
	commands.Wait()
	in.requests.Wait()
	return requested
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// command cancels, pauses or resumes an operation that was requested not long ago.
func (in *installation) command(chance *rand.Rand) {
	in.mu.Lock()
	if len(in.recent) == 0 {
		in.mu.Unlock()
		return
	}
	q := in.recent[len(in.recent)-1-chance.IntN(min(len(in.recent), 20))]
	name := "cancel"
	switch kind := chance.IntN(3); {
	case kind == 0:
		name = "pause"
		in.paused[q.ID] = q // also when no answer comes: it may be so
	case kind == 1 && len(in.paused) > 0:
		for _, q = range in.paused {
			break
		}
		name = "resume"
	}
	in.mu.Unlock()
	_ = in.give(name, q) // where the API is away, nothing is known, which is fine
}

// give gives one command, and keeps the answer. The error says why there was none.
func (in *installation) give(name string, q *producers.Request) error {
	ctx, cancel := context.WithTimeout(in.t.Context(), 3*time.Second)
	defer cancel()
	target := url.Values{}
	if q.DependencyToken != "" {
		target.Set("dependencyToken", q.DependencyToken)
	} else {
		target.Set("partitionKey", q.ID)
	}
	out, err := in.api.Command(ctx, name, q.Organization, q.ID, api.CommandBody{By: "test"}, target, api.Call{})
	var problem *api.Problem
	switch {
	case errors.As(err, &problem):
		if problem.Status < 500 && problem.Status != 429 {
			return nil
		}
		return err
	case err != nil:
		return err
	}
	at, err := api.ParsePosition(out.Position)
	if err != nil {
		in.t.Errorf("%s %s: expected a position in the answer, but: %v", name, q.ID, err)
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.answers = append(in.answers, answered{q.ID, at})
	return nil
}

// resumeAll resumes what the load has paused.
func (in *installation) resumeAll() {
	in.t.Helper()
	in.mu.Lock()
	left := slices.Collect(maps.Values(in.paused))
	in.mu.Unlock()
	const callers = 8
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for ; i < len(left); i += callers {
				deadline := time.Now().Add(30 * time.Second)
				for err := in.give("resume", left[i]); err != nil; err = in.give("resume", left[i]) {
					if time.Now().After(deadline) {
						in.t.Errorf("expected an answer to resume %s within 30 s, but: %v", left[i].ID, err)
						return
					}
					<-after(50 * time.Millisecond) // it said to come again
				}
			}
		})
	}
	all.Wait()
}

// settled waits until everything that was accepted has ended, or waits for a person.
func (in *installation) settled(within time.Duration) {
	in.t.Helper()
	resumed := time.Now()
	eventually(in.t, within, func() (bool, string) {
		counts, err := in.api.Counts(in.t.Context(), "", api.Call{})
		if err != nil {
			return false, err.Error()
		}
		total, busy := int64(0), int64(0)
		for _, c := range counts.ByStatus {
			total += c.Count
			if s, _ := operation.ParseStatus(c.Status); !s.Terminal() {
				busy += c.Count
			}
		}
		for _, c := range counts.ByWait {
			if c.Wait == operation.WaitPaused.String() {
				busy -= c.Count
			}
		}
		in.mu.Lock()
		accepted := int64(len(in.accepted))
		in.mu.Unlock()
		if busy > 0 && time.Since(resumed) > 10*time.Second {
			// A pause that nobody has answered may have been under way for longer than the resume after it.
			in.resumeAll()
			resumed = time.Now()
		}
		return busy == 0 && total >= accepted, fmt.Sprintf("%d accepted, %+v %+v", accepted, counts.ByStatus, counts.ByWait)
	})
}

// judge holds what was seen from outside against the journal, the journal against the laws, and the tables against the journal.
func (in *installation) judge() {
	t := in.t
	t.Helper()
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, err := range in.refused {
		t.Errorf("a request was not accepted: %v", err)
	}
	all := judge(t, in.journal())
	for id, q := range in.accepted {
		h := all[id]
		switch {
		case h == nil:
			t.Errorf("%s was acknowledged, and the journal knows nothing of it", id)
		case h.status == operation.StatusWaiting && q.DependencyToken == "":
		case h.ends != 1:
			t.Errorf("%s: expected one end, but it has %d and is %s", id, h.ends, h.status)
		}
	}

	valid := map[api.Position]projections.Entry{}
	dispatched := map[string]bool{}
	journal := in.journal()
	ends, err := journal.Ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	succeeded := map[string]bool{}
	events := int64(0)
	void := int64(0)
	for p, end := range ends {
		_, err := journal.Read(t.Context(), p, end, func(e projections.Entry) error {
			events++
			valid[api.Position{Partition: p, Place: e.Place}] = projections.Entry{Place: e.Place, Event: operation.Event{ID: e.Event.ID, Kind: e.Event.Kind}}
			run := fmt.Sprintf("%s/%d", e.Event.ID, e.Event.Attempt)
			switch e.Event.Kind {
			case operation.Dispatched:
				dispatched[run] = true
			case operation.Succeeded:
				succeeded[run] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		void += end
	}
	void -= events
	for _, a := range in.answers {
		if e, ok := valid[a.position]; !ok || string(e.Event.ID) != a.id {
			t.Errorf("%s: the API has answered with position %s, but the journal has there %q %v", a.id, a.position, e.Event.ID, e.Event.Kind)
		}
	}
	runs := 0
	if in.watcher != nil {
		runs = in.watcher.judge(t, in.accepted, dispatched, succeeded)
	}
	t.Logf("%d operations, %d answers of the API, %d attempts seen by the handler, %d events, %d void records",
		len(in.accepted), len(in.answers), runs, events, void)
	if in.besides != nil {
		in.besides()
	}
	verify := exec.CommandContext(t.Context(), must(program()), "verify", "--brokers", in.broker, "--database", in.tables)
	if in.topics.Prefix != "" {
		verify.Args = append(verify.Args, "--topic-prefix", in.topics.Prefix)
	}
	if in.secured != "" {
		verify.Args = append(verify.Args, "--config", in.secured)
	}
	if out, err := verify.CombinedOutput(); err != nil {
		t.Errorf("opstream verify: %v\n%s", err, out)
	}
}

// recordedType is served by the worker in the test process, which is never killed, and so sees every attempt.
const recordedType = "recorded"

// watcher records what its handler is called for.
type watcher struct {
	mu   sync.Mutex
	runs []*attempted
	*worker.Worker
}

// attempted is one call of the handler.
type attempted struct {
	id       string
	attempt  operation.Attempt
	from, to time.Time
	failed   bool
}

// watch starts a worker in the test process that records what it runs. It stops with the test, or when stop is called.
func (in *installation) watch(lease time.Duration) (stop func()) {
	in.t.Helper()
	w := &watcher{}
	var err error
	w.Worker, err = worker.New(worker.Config{
		Brokers: in.brokers(), Topics: in.topics, Opts: in.client(), Lease: lease, Slots: 32, Logger: slog.New(slog.DiscardHandler),
		Handlers: map[string]worker.Handler{recordedType: worker.HandlerFunc(w.handle)},
	})
	if err != nil {
		in.t.Fatal(err)
	}
	in.watcher = w
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			in.t.Errorf("the worker in the test: %v", err)
		}
	})
	in.t.Cleanup(stop)
	return stop
}

func (w *watcher) handle(ctx context.Context, op *worker.Operation) (any, error) {
	r := &attempted{id: string(op.ID), attempt: op.Attempt, from: time.Now()}
	w.mu.Lock()
	w.runs = append(w.runs, r)
	w.mu.Unlock()
	result, err := w.work(ctx, op)
	w.mu.Lock()
	r.to, r.failed = time.Now(), err != nil
	w.mu.Unlock()
	return result, err
}

// work understands some of what the data of noop operations asks for, and sometimes comes back later by itself.
func (w *watcher) work(ctx context.Context, op *worker.Operation) (any, error) {
	var data struct {
		SleepMs   int    `json:"sleepMs"`
		FailTimes *int   `json:"failTimes"`
		Fail      string `json:"fail"`
		Class     string `json:"class"`
	}
	if len(op.Data) > 0 {
		if err := op.Decode(&data); err != nil {
			return nil, err
		}
	}
	select {
	case <-after(time.Duration(data.SleepMs) * time.Millisecond): // the work
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	err := errors.New("as asked")
	switch {
	case data.Class == "fail":
		return nil, worker.Final(err)
	case data.Class == "suspend":
		return nil, worker.Suspend(err)
	case data.FailTimes != nil && op.Failures == 0:
		return nil, worker.Retry(err)
	case op.Attempt == 1 && data.SleepMs == 7:
		return nil, worker.YieldUntil(time.Now().Add(50*time.Millisecond), nil)
	}
	return nil, nil
}

// judge says whether attempts were run as the journal says, each once, and none beside another that excludes it.
func (w *watcher) judge(t testing.TB, accepted map[string]*producers.Request, dispatched, succeeded map[string]bool) int {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[string]*attempted{}
	alone := map[string][]*attempted{} // by what admits only one at a time
	for _, r := range w.runs {
		key := fmt.Sprintf("%s/%d", r.id, r.attempt)
		if seen[key] != nil {
			t.Errorf("attempt %s was run twice", key)
		}
		seen[key] = r
		if !dispatched[key] {
			t.Errorf("attempt %s was run, but no event of the journal dispatched it", key)
		}
		if r.to.IsZero() {
			t.Errorf("attempt %s has not returned", key)
		}
		alone[r.id] = append(alone[r.id], r)
		if q := accepted[r.id]; q != nil && q.DependencyToken != "" {
			alone["token "+q.DependencyToken] = append(alone["token "+q.DependencyToken], r)
		}
	}
	for key := range succeeded {
		id, _, _ := strings.Cut(key, "/")
		if q := accepted[id]; q == nil || q.Type != recordedType {
			continue
		}
		if r := seen[key]; r == nil || r.failed {
			t.Errorf("attempt %s succeeded in the journal, but its handler did not say so", key)
		}
	}
	for what, runs := range alone {
		slices.SortFunc(runs, func(a, b *attempted) int { return a.from.Compare(b.from) })
		for i := 1; i < len(runs); i++ {
			if before, r := runs[i-1], runs[i]; r.from.Before(before.to) {
				t.Errorf("%s: attempt %d of %s began %s before attempt %d of %s had ended", what, r.attempt, r.id, before.to.Sub(r.from), before.attempt, before.id)
			}
		}
	}
	return len(w.runs)
}

// killSeconds is for how long the processes are killed, all tests together.
func killSeconds(t testing.TB) time.Duration {
	const seconds = 12
	text := os.Getenv("OPSTREAM_KILL_SECONDS")
	n, err := strconv.Atoi(cmp.Or(text, strconv.Itoa(seconds)))
	if err != nil || n < 1 {
		t.Fatalf("expected OPSTREAM_KILL_SECONDS to be a number of seconds, but it is %q", text)
	}
	return time.Duration(n) * time.Second
}

// killSeed is a new one each time, or the one that failed.
func killSeed(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("OPSTREAM_KILL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("expected OPSTREAM_KILL_SEED to be a number, but it is %q", text)
		}
	}
	t.Logf("seed %d (OPSTREAM_KILL_SEED)", seed)
	return seed
}

// killLoop kills parts at random moments, also while they start, and starts them again. A part that ends by itself is a fault:
// what the others do must not end it.
func (in *installation) killLoop(chance *rand.Rand, length time.Duration, victims []*daemon) {
	t := in.t
	kills := map[string]int{}
	for end := time.Now().Add(length); time.Now().Before(end); {
		<-after(time.Duration(20+chance.IntN(700)) * time.Millisecond) // the moment of death is what chance decides
		d := victims[chance.IntN(len(victims))]
		for _, p := range in.parts {
			if p.ended() {
				t.Errorf("expected %s to live on whatever became of the others, but it ended: %v\n%s", p.name, p.err, p.log)
				return
			}
		}
		d.kill()
		kills[d.name]++
		if chance.IntN(3) == 0 {
			<-after(time.Duration(chance.IntN(500)) * time.Millisecond) // it stays away for as long as chance decides
		}
		d.launch()
	}
	for _, d := range in.parts {
		d.up()
	}
	total := 0
	for _, n := range kills {
		total += n
	}
	t.Logf("%d kills in %s: %v", total, length.Round(time.Second), kills)
}

// underFire kills the parts while there is load, and judges what came of it.
func underFire(in *installation, length time.Duration) {
	in.underLoad(func(seed uint64) {
		in.killLoop(rand.New(rand.NewPCG(seed, 0)), length, in.parts)
	})
}

// underLoad does something to an installation that works, waits until everything that was accepted has ended, judges, and stops it.
func (in *installation) underLoad(do func(seed uint64)) {
	t := in.t
	seed := killSeed(t)
	stopWatching := in.watch(3 * time.Second)
	stop := make(chan struct{})
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		in.load(seed, cmp.Or(in.rate, 300), stop)
	}()
	stopLoading := sync.OnceFunc(func() {
		close(stop)
		<-loaded
	})
	defer stopLoading() // also when do gives up
	do(seed)
	stopLoading()
	in.resumeAll()
	in.settled(90 * time.Second)
	stopWatching()
	in.judge()
	for i := len(in.parts) - 1; i >= 0; i-- {
		d := in.parts[i]
		d.signal(syscall.SIGTERM)
		if code, _ := d.exits(30 * time.Second); code != exitOK {
			t.Errorf("expected %s to stop cleanly, but it exited with %d\n%s", d.name, code, d.log)
		}
	}
}

func TestDevUnderFire(t *testing.T) {
	underFire(devInstallation(t), killSeconds(t)*2/5)
}

func TestEveryRoleUnderFire(t *testing.T) {
	underFire(splitInstallation(t), killSeconds(t)*3/5)
}
