package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/oftenlog"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Config says what a Worker serves and how. Brokers (or Opts with seeds) and Handlers are needed.
type Config struct {
	// Brokers are the addresses of some brokers, as host:port. Default none.
	Brokers []string

	// Opts are added to the options of every client, for TLS, credentials, hooks. Default none.
	Opts []kgo.Opt

	// Topics names the topics of the installation. Default schemas.DefaultPrefix before every name.
	Topics schemas.Topics

	// Pool names the set of workers that this one belongs to, for people. Default "default".
	Pool string

	// Version of the program, for people. Default none.
	Version string

	// Handlers by the operation types that they serve.
	Handlers map[string]Handler

	// Middleware is wrapped around every handler, the first one outermost. A middleware that swallows a handler's error
	// makes the operation succeed; one that calls the handler again does so within the same attempt. Default none.
	Middleware []message.HandlerMiddleware

	// Slots is how many handlers run at once. Default 64.
	Slots int

	// Queue is how many items the worker asks for beyond its slots, so that a slot that comes free finds work. Default half
	// of Slots, at least 4.
	Queue int

	// Patience is how long an item waits for a slot before it is given back, for another worker may be idle. Default 250 ms.
	Patience time.Duration

	// Lease is for how long the worker may be silent before its attempts count as lost. Heartbeats are sent at a fifth of
	// it, at least every second. At most an hour; not below 3 s where a network and other processes may hold things up. Default 15 s.
	Lease time.Duration

	// TimeLimit of one attempt, unless its type or its request has another. Default 2 minutes.
	TimeLimit time.Duration

	// TimeLimits by operation type; a request's own limit comes before them. Default none.
	TimeLimits map[string]time.Duration

	// ReturnGrace is how long a handler may take to return once its context has ended, before it is given up: at the time
	// limit its attempt is reported without it; at a stop, and when the lease is lost, it is not waited for any longer.
	// Default 5 s.
	ReturnGrace time.Duration

	// StopGrace is how long handlers may go on when the worker is to stop, before their contexts end. Default 10 s.
	StopGrace time.Duration

	// FlushLimit is how long a stopping worker waits until its last reports, and then its last heartbeat, are on the log.
	// Default 5 s.
	FlushLimit time.Duration

	// Now is the wall clock: it stamps what others read, and beside the monotonic clock it tells how long the lease has been
	// silent. Default time.Now.
	Now func() time.Time

	// Logger gets what an operator should know. Default slog.Default().
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.Pool == "" {
		c.Pool = "default"
	}
	if c.Slots == 0 {
		c.Slots = 64
	}
	if c.Queue == 0 {
		c.Queue = max(4, c.Slots/2)
	}
	def(&c.Patience, 250*time.Millisecond)
	def(&c.Lease, 15*time.Second)
	def(&c.TimeLimit, 2*time.Minute)
	def(&c.ReturnGrace, 5*time.Second)
	def(&c.StopGrace, 10*time.Second)
	def(&c.FlushLimit, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (c Config) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if len(c.Brokers) == 0 && len(c.Opts) == 0 {
		fault("expected Brokers, or Opts with seed brokers, but both are empty: give the address of a broker")
	}
	if len(c.Handlers) == 0 {
		fault("expected a handler, but Handlers is empty: there is nothing to serve")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		if name == "" {
			fault("expected the name of an operation type for each handler, but one is empty")
		}
		if c.Handlers[name] == nil {
			fault("expected a handler for type %s, but it is nil", name)
		}
	}
	if c.Slots < 0 || c.Slots > 1<<20 {
		fault("expected 1 to %d Slots, but got %d", 1<<20, c.Slots)
	}
	if c.Queue < 0 || c.Queue > 1<<20 {
		fault("expected a Queue of 1 to %d, but got %d", 1<<20, c.Queue)
	}
	for name, d := range map[string]time.Duration{
		"Patience": c.Patience, "Lease": c.Lease, "TimeLimit": c.TimeLimit, "ReturnGrace": c.ReturnGrace, "StopGrace": c.StopGrace, "FlushLimit": c.FlushLimit,
	} {
		if d < 0 {
			fault("expected %s to be positive, but got %s", name, d)
		}
	}
	if c.Lease > schemas.MaxLease {
		fault("expected a Lease of at most %s, but got %s: schedulers give no work to a session that may be silent for longer", schemas.MaxLease, c.Lease)
	}
	for name, d := range c.TimeLimits {
		if d <= 0 {
			fault("expected the time limit of type %s to be positive, but got %s; leave it out to get the default", name, d)
		}
	}
	return errors.Join(faults...)
}

func (c *Config) limitOf(name string) time.Duration {
	if d, ok := c.TimeLimits[name]; ok {
		return d
	}
	return c.TimeLimit
}

// Counters tell what a Worker does. The first ones go up and down, the others only up.
type Counters struct {
	Running atomic.Int64 // handlers that have not returned
	Queued  atomic.Int64 // items that wait for a slot
	Stuck   atomic.Int64 // of Running: handlers that ignore their context; their attempts were given up, their slots are not free

	Succeeded  atomic.Uint64
	Failed     atomic.Uint64 // attempts, by themselves or by the time limit
	Yielded    atomic.Uint64 // for a time or an event, or because they were paused
	Canceled   atomic.Uint64
	Returned   atomic.Uint64 // given back without burning an attempt
	Refused    atomic.Uint64 // items from below the mark: latecomers
	Repeated   atomic.Uint64 // items that had been here already
	Resent     atomic.Uint64 // reports that could not be written at first
	Heartbeats atomic.Uint64
	Sessions   atomic.Uint64
	LeasesLost atomic.Uint64
}

// Done counts the attempts that ran and were reported.
func (c *Counters) Done() uint64 {
	return c.Succeeded.Load() + c.Failed.Load() + c.Yielded.Load() + c.Canceled.Load()
}

func (c *Counters) count(end *operation.Command) {
	switch end.Kind {
	case operation.Succeed:
		c.Succeeded.Add(1)
	case operation.Fail:
		c.Failed.Add(1)
	case operation.Yield:
		c.Yielded.Add(1)
	case operation.Stop:
		c.Canceled.Add(1)
	case operation.Return:
		c.Returned.Add(1)
	}
}

// Worker runs handlers for one pool. It is one session after another: a new one begins when the lease of the last is lost.
type Worker struct {
	cfg       Config
	log       *slog.Logger
	types     []string
	host      string
	beatEvery time.Duration
	routes    routes
	counters  Counters

	reportsFail, reportsTooLarge, heartbeatsFail, inboxFails, itemsRefused *oftenlog.Warner

	detached atomic.Int64 // handlers of sessions that are over, which still run
	current  atomic.Pointer[session]
	started  atomic.Bool
}

// New makes a Worker. It reports all faults of the configuration at once, and does not reach for the brokers: Run does.
func New(config Config) (*Worker, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	w := &Worker{cfg: config.withDefaults()}
	w.log = w.cfg.Logger
	w.reportsFail = oftenlog.New(w.log, "a report was not written and is sent again", "topic")
	// When somebody has made the topic's limit small, it is every report.
	w.reportsTooLarge = oftenlog.New(w.log, "report is larger than the topic takes; see max.message.bytes in opstream topics plan", "topic")
	w.heartbeatsFail = oftenlog.New(w.log, "the heartbeat was not written and is sent again", "topic")
	w.inboxFails = oftenlog.New(w.log, "the inbox cannot be read for now", "topic")
	w.itemsRefused = oftenlog.New(w.log, "an item was refused: this session was told that attempts from before that place have ended; a latecomer does no harm, but if this lasts, the journal was made anew or restored: start this process again", "topic")
	w.types = slices.Sorted(maps.Keys(w.cfg.Handlers))
	w.host, _ = os.Hostname() // for people; empty is fine
	w.beatEvery = min(time.Second, w.cfg.Lease/5)
	if _, err := schemas.DecodeHeartbeat(schemas.EncodeHeartbeat(w.cfg.Topics, w.heartbeat("any"))); err != nil {
		return nil, fmt.Errorf("worker: expected heartbeats that schedulers can read, but: %w", err)
	}
	return w, nil
}

// heartbeat is what is the same in all heartbeats of a session.
func (w *Worker) heartbeat(session operation.SessionID) *schemas.Heartbeat {
	return &schemas.Heartbeat{
		Session: session, Pool: w.cfg.Pool, Types: w.types, Lease: w.cfg.Lease, Slots: int32(w.cfg.Slots), Queue: int32(w.cfg.Queue),
		Host: w.host, Version: w.cfg.Version,
	}
}

// Slots is how many handlers run at once.
func (w *Worker) Slots() int { return w.cfg.Slots }

// Counters returns the worker's counters, for reading.
func (w *Worker) Counters() *Counters { return &w.counters }

// queueBound is how many items may wait. Schedulers share the room that is told without asking each other, so for a moment
// more may come than was asked for; where handlers are short, that is worked off before anybody could take it back.
func (w *Worker) queueBound() int { return 2*w.cfg.Queue + w.cfg.Slots }

// Run works until ctx ends, and then leaves cleanly, within StopGrace, ReturnGrace and FlushLimit; it returns nil. A broker
// that cannot be reached is waited for. Run may be called once.
func (w *Worker) Run(ctx context.Context) error {
	if w.started.Swap(true) {
		return errors.New("worker: expected Run to be called once, but it was called again; make another Worker")
	}
	router, routes, err := w.newRouter()
	if err != nil {
		return fmt.Errorf("worker: expected a router, but: %w", err)
	}
	w.routes = routes
	routed := make(chan error, 1)
	go func() {
		// The router outlives ctx: handlers may finish after it.
		routed <- router.Run(context.WithoutCancel(ctx))
	}()
	select {
	case <-router.Running():
	case err := <-routed:
		return fmt.Errorf("worker: expected the router to run, but: %w", err)
	}
	w.live(ctx)
	if err := router.Close(); err != nil {
		w.log.Warn("handlers still run while the worker ends; their attempts count as lost", "handlers", w.counters.Running.Load())
	}
	return <-routed
}

// live begins one session after another.
func (w *Worker) live(ctx context.Context) {
	const first, most = 100 * time.Millisecond, 5 * time.Second
	for wait := first; ctx.Err() == nil; {
		s, err := w.open(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			w.log.Warn("session cannot begin yet; it is tried again", "after", wait, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, most)
			continue
		}
		wait = first
		w.counters.Sessions.Add(1)
		w.log.Info("session begins", "session", s.id, "pool", w.cfg.Pool, "inbox", s.inbox)
		w.current.Store(s)
		s.run(ctx)
	}
}

// wall is the wall clock's time when the monotonic clock says now.
func (w *Worker) wall(now time.Time) time.Time {
	if w.cfg.Now == nil {
		return now // it has both
	}
	return w.cfg.Now()
}

// fill starts what waits in the present session, when a handler of an older one has given its slot free.
func (w *Worker) fill() {
	s := w.current.Load()
	now := time.Now()
	s.mu.Lock()
	a, ctx := s.next(now)
	s.mu.Unlock()
	if a != nil {
		w.routes.emit(ctx, a)
	}
}

// clientOpts are the options of every client of ours: first what may be changed, then the caller's, then what the promises need.
func (w *Worker) clientOpts(more ...kgo.Opt) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.ClientID("opstream-worker"),
		kgo.DisableClientMetrics(),
		// A topic that was created a moment ago should not cost the client's default of 5 s.
		kgo.MetadataMinAge(100 * time.Millisecond),
		// What is there goes out at once; what comes meanwhile shares the next request.
		kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(1 << 17),
	}
	if len(w.cfg.Brokers) > 0 {
		opts = append(opts, kgo.SeedBrokers(w.cfg.Brokers...))
	}
	opts = append(opts, w.cfg.Opts...)
	reports := w.cfg.Topics.Reports()
	opts = append(opts,
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(func(topic string) func(*kgo.Record, int) int {
			if topic == reports {
				return func(r *kgo.Record, _ int) int { return int(r.Partition) }
			}
			return func(r *kgo.Record, n int) int { return int(schemas.PartitionFor(r.Key, int32(n))) }
		})),
	)
	return append(opts, more...)
}
