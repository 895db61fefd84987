package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/embedded"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/cockroach"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/schemas"
)

type benchFlags struct {
	mode       string
	n          int
	rate, keys int
	payload    int
	warmup     int
	orgs       int
	waiting    int
	partitions int32
	slots      int
	brokers    []string
	database   string
	sync       bool
	verify     bool
	profile    string
	pids       []int
	timeout    time.Duration
	security   []kgo.Opt // for brokers
}

// benchResult is one line of JSON. Its fields are those of the peers' benchmark, so that both stand in one table; times are
// milliseconds.
type benchResult struct {
	Peer    string `json:"peer"`
	Mode    string `json:"mode"`
	N       int    `json:"n"`
	Payload int    `json:"payload"`
	Workers int    `json:"workers"`
	Rate    int    `json:"rate,omitempty"`
	Keys    int    `json:"keys,omitempty"`
	Length  int    `json:"length,omitempty"`

	Partitions int32 `json:"partitions"`
	Orgs       int   `json:"organizations"`
	Waiting    int   `json:"waiting,omitempty"`       // operations that wait meanwhile
	BytesEach  int64 `json:"waiting_bytes,omitempty"` // of live heap for each of them

	OpsPerS        float64     `json:"ops_per_s"`
	EnqueueOpsPerS float64     `json:"enqueue_ops_per_s"`
	WallS          float64     `json:"wall_s"`
	Latency        percentiles `json:"latency_ms"`
	ToHandler      percentiles `json:"to_handler_ms"`
	ToAccepted     percentiles `json:"to_accepted_ms"`
	ToVisible      percentiles `json:"to_visible_ms"`  // request to the end being in the tables
	TablesLevelS   float64     `json:"tables_level_s"` // from the last durable end until the tables have it
	RowsPerOp      float64     `json:"rows_per_op"`    // how often an operation was written to the tables
	CPUPer1000     float64     `json:"cpu_s_per_1000_ops"`
	CPUSelf        float64     `json:"cpu_self_s"`
	CPUServer      float64     `json:"cpu_server_s"`
	CPUOthersPct   float64     `json:"cpu_others_pct"`
	PeakMiB        float64     `json:"peak_mib"` // resident memory of this process at its highest

	Completed int    `json:"completed"`
	Expected  int    `json:"expected"`
	Repeats   int64  `json:"repeats"`
	Disorder  int    `json:"disorder,omitempty"`
	ChainHow  string `json:"chain_how,omitempty"`
	Verified  *bool  `json:"verified,omitempty"`
	Settings  string `json:"settings"`
	Error     string `json:"error,omitempty"`
}

func newBench() *cobra.Command {
	var f benchFlags
	var security kafkaSecurity
	var opts *options
	c := &cobra.Command{
		Use:   "bench --mode drain|steady|chain",
		Short: "Measure the service: throughput, latency, CPU and memory, as one line of JSON",
		Long: `bench runs the whole service in this process with a handler that does nothing, gives it
work, and prints one line of JSON. Without --brokers it uses the embedded broker on a
temporary folder. The full history is kept and projected in every mode.

  drain   N operations as fast as they are taken
  steady  one operation every 1/RATE seconds, whatever the service does
  chain   KEYS chains of N/KEYS operations, each strictly after the one before

An operation is done when its last event is in the journal and acknowledged. Operations
count from when they were due, so a late start counts against the service.`,
		Example: `  opstream bench --mode drain -n 100000
  opstream bench --mode steady -n 10000 --rate 500
  opstream bench --mode chain -n 20000 --keys 100`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.resolve(cmd); err != nil {
				return err
			}
			if len(f.brokers) > 0 {
				var err error
				if f.security, err = security.options(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))); err != nil {
					return usageOf(err)
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			if err := f.check(); err != nil {
				return &exitError{exitUsage, err}
			}
			if err := databaseFromEnvironment(cmd, &f.database); err != nil {
				return err
			}
			r, err := bench(ctx, f)
			if err != nil {
				r.Error = err.Error()
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(r); err != nil {
				return err
			}
			return err
		},
	}
	opts = addOptions(c, nil, security.targets())
	fl := c.Flags()
	fl.StringVar(&f.mode, "mode", "drain", "drain, steady or chain")
	fl.IntVarP(&f.n, "operations", "n", 20_000, "operations")
	fl.IntVar(&f.rate, "rate", 500, "steady: operations a second")
	fl.IntVar(&f.keys, "keys", 100, "chain: number of chains")
	fl.IntVar(&f.payload, "payload", 256, "bytes of payload of an operation")
	fl.IntVar(&f.warmup, "warmup", 200, "operations before the measurement (not in chain)")
	fl.IntVar(&f.orgs, "organizations", 1, "organizations among which the operations are spread")
	fl.IntVar(&f.waiting, "waiting", 0, "operations that wait in the service during the measurement, postponed")
	fl.Int32Var(&f.partitions, "partitions", 4, "partitions of the topics")
	fl.IntVar(&f.slots, "slots", 1024, "handlers that run at once")
	fl.StringSliceVar(&f.brokers, "brokers", nil, "a Kafka to measure on; its topics get a prefix of their own (default: the embedded broker)")
	databaseFlag(c, &f.database, "SQLite file or URL (postgres://…, cockroach://…) of the tables, which must be empty (default: a temporary file)")
	fl.BoolVar(&f.sync, "sync", false, "write every append through to the disk (embedded)")
	fl.BoolVar(&f.verify, "verify", false, "compare the tables with the journal afterwards")
	fl.StringVar(&f.profile, "cpuprofile", "", "write a CPU profile of the measurement to this file")
	fl.IntSliceVar(&f.pids, "server-pids", nil, "processes whose CPU counts too, with their children: brokers, databases")
	fl.DurationVar(&f.timeout, "timeout", 3*time.Minute, "give up after this long")
	return c
}

func (f *benchFlags) check() error {
	var faults []error
	if f.mode != "drain" && f.mode != "steady" && f.mode != "chain" {
		faults = append(faults, fmt.Errorf("expected --mode drain, steady or chain, but got %q", f.mode))
	}
	if f.n < 1 || f.rate < 1 || f.keys < 1 || f.payload < 0 || f.warmup < 0 || f.partitions < 1 || f.slots < 1 || f.orgs < 1 || f.waiting < 0 {
		faults = append(faults, errors.New("expected -n, --rate, --keys, --partitions, --slots and --organizations to be at least 1, and --payload, --warmup and --waiting at least 0"))
	}
	if f.mode == "chain" && f.keys > f.n {
		faults = append(faults, fmt.Errorf("expected at least as many operations as chains, but got %d and %d", f.n, f.keys))
	}
	return errors.Join(faults...)
}

const benchOrg = "bench"

func bench(ctx context.Context, f benchFlags) (r benchResult, err error) {
	if f.mode == "chain" {
		f.n -= f.n % f.keys
		f.warmup = 0
	}
	total := f.n + f.warmup
	r = benchResult{
		Peer: "opstream-embedded", Mode: f.mode, N: f.n, Payload: f.payload, Workers: f.slots, Expected: total,
		Partitions: f.partitions, Orgs: f.orgs, Waiting: f.waiting,
		Settings: fmt.Sprintf("%d partitions, %d slots, full history in %s", f.partitions, f.slots, map[bool]string{false: "SQLite", true: "a database at a URL"}[cockroach.IsURL(f.database)]),
	}
	rec := newRecorder(total)
	dir, err := os.MkdirTemp("", "opstream-bench-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it is in the system's folder for what is temporary

	var written atomic.Int64 // rows of operations
	var cfg serviceConfig
	created := false
	defer func() {
		if created { // when the service has stopped
			err = errors.Join(err, deleteTopics(context.WithoutCancel(ctx), &cfg))
		}
	}()
	g := newGroup()
	defer func() { err = errors.Join(err, g.stop()) }()
	cfg = serviceConfig{
		roles: []string{roleScheduler, roleWorker, roleProjector}, lease: defaultLease, slots: f.slots, sync: f.sync,
		database: cmp.Or(f.database, filepath.Join(dir, databaseFile)),
		log:      slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		handlers: map[string]worker.Handler{"bench": worker.HandlerFunc(func(_ context.Context, op *worker.Operation) (any, error) {
			rec.ranAt(benchIndex(string(op.ID)))
			return nil, nil
		})},
		onCommitted: func(b *projections.Batch) {
			for i := range b.Changes {
				if s := &b.Changes[i].Row.State; s.Status.Terminal() {
					rec.visibleAt(benchIndex(string(s.ID)))
				}
			}
			written.Add(int64(len(b.Changes)))
		},
	}
	if len(f.brokers) == 0 {
		var broker *embedded.Broker
		broker, err = openBroker(ctx, devFlags{data: dir, partitions: f.partitions, sync: f.sync}, cfg.topics, cfg.log)
		if err != nil {
			return r, err
		}
		g.start("broker", func(ctx context.Context) error {
			<-ctx.Done()
			return broker.Close()
		})
		cfg.brokers, cfg.dial = broker.Addrs(), broker.Dial
	} else {
		r.Peer = "opstream"
		cfg.brokers, cfg.security = f.brokers, f.security
		cfg.topics = schemas.Topics{Prefix: fmt.Sprintf("bench-%d-%d.", os.Getpid(), time.Now().UnixNano())}
		created = true
		if err := createTopics(ctx, &cfg, f.partitions); err != nil {
			return r, err
		}
	}
	s, err := startService(ctx, g, cfg)
	if err != nil {
		return r, err
	}
	observer, err := kgo.NewClient(append(cfg.clientOptions(), kgo.ConsumeTopics(cfg.topics.Journal()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return r, err
	}
	g.start("observer", func(ctx context.Context) error {
		defer observer.Close()
		observe(ctx, observer, rec)
		return nil
	})
	client, err := producers.New(producers.Config{Brokers: cfg.brokers, Topics: cfg.topics, Source: "/bench", Options: cfg.clientOptions()})
	if err != nil {
		return r, err
	}
	defer client.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it only says that requests were given up, and then the run has failed already

	if f.waiting > 0 {
		if r.BytesEach, err = fillWaiting(ctx, s, client, f.waiting, f.payload); err != nil {
			return r, fmt.Errorf("operations that wait: %w", err)
		}
	}
	requests := benchRequests(f, total)
	if warm := requests[f.n:]; len(warm) > 0 {
		reached := rec.expect(len(warm))
		if err := drainAll(ctx, client, rec, warm, f.n); err != nil {
			return r, fmt.Errorf("warm-up: %w", err)
		}
		if err := waitFor(ctx, reached); err != nil {
			return r, fmt.Errorf("warm-up: %w", err)
		}
		if err := waitFor(ctx, after(500*time.Millisecond)); err != nil { // idle again, as the peers' runs begin
			return r, err
		}
	}
	requests = requests[:f.n]
	reached := rec.expect(f.n)
	if f.profile != "" {
		var file *os.File
		if file, err = os.Create(f.profile); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		if err := pprof.StartCPUProfile(file); err != nil {
			return r, err
		}
		defer pprof.StopCPUProfile()
	}
	before, from, rows := readCPU(f.pids), rec.now(), written.Load()
	switch f.mode {
	case "steady":
		r.Rate = f.rate
		err = steady(ctx, client, rec, requests, f.rate)
	case "chain":
		r.Keys, r.Length = f.keys, f.n/f.keys
		r.ChainHow = "a dependency token per key; all operations are requested up front, and the scheduler holds each back until the one before has ended in the journal"
		err = drainAll(ctx, client, rec, requests, 0)
	default:
		err = drainAll(ctx, client, rec, requests, 0)
	}
	if err == nil {
		err = waitFor(ctx, reached)
	}
	until := lastOf(rec.done[:f.n])
	if err == nil {
		err = s.reachTables(ctx)
		r.TablesLevelS = round(float64(rec.now()-until)/1e9, 3)
		r.RowsPerOp = round(float64(written.Load()-rows)/float64(f.n), 2)
	}
	used := readCPU(f.pids).minus(before) // the tables' share too, when they lag behind
	if f.profile != "" {
		pprof.StopCPUProfile()
	}

	wall := float64(until-from) / 1e9
	done := len(between(rec.due, rec.done, f.n))
	if until == 0 || wall <= 0 || done == 0 {
		return r, cmp.Or(err, errors.New("nothing was completed"))
	}
	r.WallS, r.OpsPerS = round(wall, 3), round(float64(done)/wall, 1)
	if last := lastOf(rec.accepted[:f.n]); last > from && f.mode != "chain" {
		r.EnqueueOpsPerS = round(float64(f.n)/(float64(last-from)/1e9), 1)
	}
	if f.mode == "chain" {
		var steps []int64
		steps, r.Disorder = rec.chainSteps(f.keys, f.n/f.keys)
		r.Latency = percentilesOf(steps)
	} else {
		r.Latency = percentilesOf(between(rec.due, rec.done, f.n))
		r.ToHandler = percentilesOf(between(rec.due, rec.ran, f.n))
		r.ToAccepted = percentilesOf(between(rec.due, rec.accepted, f.n))
		r.ToVisible = percentilesOf(between(rec.due, rec.visible, f.n))
	}
	r.CPUSelf, r.CPUServer = round(used.self, 2), round(used.servers, 2)
	r.CPUPer1000 = round((used.self+used.servers)/float64(done)*1000, 4)
	r.CPUOthersPct = round(max(used.machine-used.self-used.servers, 0)/(wall+r.TablesLevelS)*100, 0)
	r.PeakMiB = peakMiB()
	r.Repeats = rec.repeats.Load()
	if err != nil {
		return r, fmt.Errorf("%d of %d done: %w", done, f.n, err)
	}
	counts, err := s.store.Counts(ctx, projections.CountFilter{})
	if err != nil {
		return r, err
	}
	for _, c := range counts {
		if c.Status == operation.StatusSucceeded {
			r.Completed += int(c.N)
		}
	}
	if r.Completed != total {
		return r, fmt.Errorf("expected %d succeeded operations in the tables, but they have %d", total, r.Completed)
	}
	if f.verify {
		report, err := projections.Verify(ctx, s.store, projector.Journal{Client: cfg.clientOptions(), Topics: cfg.topics})
		if err != nil {
			return r, err
		}
		same := report.OK()
		r.Verified = &same
	}
	return r, nil
}

// benchRequests makes requests whose payloads all differ and hardly compress.
func benchRequests(f benchFlags, total int) []*producers.Request {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
	rng := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 1<<20+f.payload)
	for i := range text {
		text[i] = letters[rng.IntN(len(letters))]
	}
	requests := make([]*producers.Request, total)
	for i := range requests {
		at := rng.IntN(1 << 20)
		q := &producers.Request{ID: "op-" + strconv.Itoa(i), Organization: benchOrg, Type: "bench"}
		if f.orgs > 1 {
			q.Organization += "-" + strconv.Itoa(i%f.orgs)
		}
		if f.payload > 2 {
			q.Data = json.RawMessage(`"` + string(text[at:at+f.payload-2]) + `"`)
		}
		if f.mode == "chain" {
			q.DependencyToken = "key-" + strconv.Itoa(i/(f.n/f.keys))
		}
		requests[i] = q
	}
	return requests
}

// deleteTopics leaves somebody's Kafka as it was.
func deleteTopics(ctx context.Context, cfg *serviceConfig) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client, err := kgo.NewClient(cfg.clientOptions()...)
	if err != nil {
		return err
	}
	defer client.Close()
	var names []string
	for _, spec := range cfg.topics.Specs(1, 1) {
		names = append(names, spec.Name)
	}
	if _, err := kadm.NewClient(client).DeleteTopics(ctx, names...); err != nil {
		return fmt.Errorf("delete the benchmark's topics, %s*: %w", cfg.topics.Prefix, err)
	}
	return nil
}

// fillWaiting requests n operations that are postponed for a year, waits until the tables have them, and returns by how many
// bytes of live heap each made the process grow.
func fillWaiting(ctx context.Context, s *service, client *producers.Client, n, payload int) (int64, error) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	until := time.Now().AddDate(1, 0, 0)
	text := json.RawMessage(`"` + strings.Repeat("x", max(payload-2, 0)) + `"`)
	for done := 0; done < n; {
		part := make([]*producers.Request, min(1000, n-done))
		for i := range part {
			part[i] = &producers.Request{
				ID: "waiting-" + strconv.Itoa(done+i), Organization: benchOrg, Type: "bench", PostponeUntil: until, Data: text,
			}
		}
		if err := client.RequestAll(ctx, part); err != nil {
			return 0, err
		}
		done += len(part)
	}
	for { // what was requested is accepted soon, but nobody says when
		counts, err := s.store.Counts(ctx, projections.CountFilter{})
		if err != nil {
			return 0, err
		}
		accepted := int64(0)
		for _, c := range counts {
			accepted += c.N
		}
		if accepted >= int64(n) {
			return (heap() - before) / int64(n), nil
		}
		if err := waitFor(ctx, after(50*time.Millisecond)); err != nil {
			return 0, err
		}
	}
}

func benchIndex(id string) int {
	i, err := strconv.Atoi(strings.TrimPrefix(id, "op-"))
	if err != nil {
		return -1
	}
	return i
}

// observe reads what is durable: the ends of operations, back from the journal.
func observe(ctx context.Context, client *kgo.Client, rec *recorder) {
	for ctx.Err() == nil {
		client.PollRecords(ctx, 20_000).EachRecord(func(r *kgo.Record) {
			succeeded, subject, place := false, "", ""
			for i := range r.Headers {
				switch h := &r.Headers[i]; h.Key {
				case schemas.HeaderType:
					succeeded = string(h.Value) == "opstream.operation.succeeded.v1"
				case schemas.HeaderSubject:
					subject = string(h.Value)
				case schemas.HeaderPlace:
					place = string(h.Value)
				}
			}
			if succeeded && place == strconv.FormatInt(r.Offset, 10) {
				rec.doneAt(benchIndex(subject))
			}
		})
	}
}

// drainAll requests everything as fast as it is taken; first is the index of the first request.
func drainAll(ctx context.Context, client *producers.Client, rec *recorder, requests []*producers.Request, first int) error {
	const callers, batch = 2, 1000
	var wg sync.WaitGroup
	errs := make(chan error, callers)
	per := (len(requests) + callers - 1) / callers
	for c := range callers {
		from, to := min(c*per, len(requests)), min((c+1)*per, len(requests))
		wg.Go(func() {
			for ; from < to; from += batch {
				part := requests[from:min(from+batch, to)]
				for i := range part {
					rec.dueAt(first+from+i, rec.now())
				}
				if err := client.RequestAll(ctx, part); err != nil {
					errs <- err
					return
				}
				for i := range part {
					rec.acceptedAt(first + from + i)
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// steady requests one operation every 1/rate seconds, an open loop: it counts from its slot in that plan.
func steady(ctx context.Context, client *producers.Client, rec *recorder, requests []*producers.Request, rate int) error {
	var wg sync.WaitGroup
	errs := make(chan error, 1)
	start := rec.now()
	for i, q := range requests {
		due := start + int64(i)*int64(time.Second)/int64(rate)
		if wait := time.Duration(due - rec.now()); wait > 0 {
			if err := waitFor(ctx, after(wait)); err != nil {
				return err
			}
		}
		rec.dueAt(i, due)
		wg.Add(1)
		client.RequestAsync(ctx, q, func(err error) {
			defer wg.Done()
			if err != nil {
				select {
				case errs <- err:
				default:
				}
				return
			}
			rec.acceptedAt(i)
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func after(d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	return done
}

func waitFor(ctx context.Context, reached <-chan struct{}) error {
	select {
	case <-reached:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
