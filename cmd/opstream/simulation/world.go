package simulation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/opstream/opstream/consumers/scheduler"
	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/producers/answers"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

// world is one simulated installation.
type world struct {
	plan    *Plan
	topics  schemas.Topics
	history *history
	net     *network
	kafka   *kfake.Cluster
	parts   map[string]*part
	names   []string // of parts, in order
	stores  []*sqlite.Store
	dir     string // of the tables that have two writers

	twinStore *sqlite.Store
	quiet     atomic.Bool

	inspected atomic.Int64   // live operations that were recovered twice and compared
	running   sync.WaitGroup // lives
	calling   sync.WaitGroup // calls of clients
	bad       []string
	badMu     sync.Mutex
	hosts     []*host
	hostsMu   sync.Mutex
}

// part is one process and its successors.
type part struct {
	w     *world
	name  string
	clock *clock
	begin func(ctx context.Context, l *life) error // runs until ctx ends
	alone bool                                     // a successor begins when the one before has really ended

	mu     sync.Mutex
	life   *life
	number int
	wanted bool
	ready  any // what clients need of the running life
}

// life is one life of one process.
type life struct {
	part   *part
	host   *host
	cancel context.CancelFunc
	done   chan struct{}
}

// clock is the wall clock of a part's machine.
type clock struct{ skew atomic.Int64 }

// now has no monotonic reading: that is what a wall clock which was set leaves no trace in.
func (c *clock) now() time.Time {
	return time.Now().Round(0).Add(time.Duration(c.skew.Load()))
}

func (w *world) violation(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.history.note("VIOLATION", "%s", text)
	w.badMu.Lock()
	w.bad = append(w.bad, text)
	w.badMu.Unlock()
}

const address = "localhost:9092"

func newWorld(ctx context.Context, p *Plan) (*world, error) {
	w := &world{
		plan: p, history: &history{began: time.Now()}, parts: map[string]*part{},
		net: &network{virtual: &kfake.VirtualNetwork{}, down: make(chan struct{})},
	}
	var err error
	w.kafka, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(w.net.virtual.Listen))
	if err != nil {
		return nil, fmt.Errorf("start a broker in memory: %w", err)
	}
	for _, spec := range w.topics.Specs(p.Partitions, p.Inboxes) {
		if err := w.kafka.CreateTopic(spec.Name, spec.Partitions, spec.Config()); err != nil {
			w.kafka.Close()
			return nil, fmt.Errorf("create topic %s: %w", spec.Name, err)
		}
	}
	if err := w.openTables(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	for i := range p.Schedulers {
		w.add(fmt.Sprintf("scheduler%d", i), w.scheduler(""))
	}
	for i := range p.Workers {
		w.add(fmt.Sprintf("worker%d", i), w.worker(i))
	}
	for i := range p.Projectors {
		w.add(fmt.Sprintf("projector%d", i), w.node(i)).alone = true
	}
	if p.Twin {
		w.add("twin", w.twin).alone = true
	}
	for i := range p.Clients {
		w.add(fmt.Sprintf("client%d", i), w.client)
	}
	for _, f := range p.Faults {
		if f.kind == rival {
			w.add(f.part, w.scheduler(f.part))
		}
	}
	return w, nil
}

// openTables opens the tables of every node: in memory, unless another process has to open them, too.
func (w *world) openTables(ctx context.Context) (err error) {
	options := sqlite.Options{Readers: 1, CacheKiB: 1024}
	for i := range w.plan.Projectors {
		path := ""
		if i == 0 && w.plan.Twin {
			if w.dir, err = os.MkdirTemp("", "opstream-simulation-"); err != nil {
				return err
			}
			path = filepath.Join(w.dir, "tables.db")
		}
		store, err := sqlite.Open(ctx, path, options)
		if err != nil {
			return err
		}
		w.stores = append(w.stores, store)
		if path == "" {
			continue
		}
		if w.twinStore, err = sqlite.Open(ctx, path, options); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) close() error {
	close(w.net.down)
	w.hostsMu.Lock()
	hosts := w.hosts
	w.hostsMu.Unlock()
	for _, h := range hosts {
		h.drop()
	}
	var errs []error
	for _, s := range w.stores {
		errs = append(errs, s.Close())
	}
	if w.twinStore != nil {
		errs = append(errs, w.twinStore.Close())
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	w.kafka.Close()
	return errors.Join(errs...)
}

func (w *world) add(name string, begin func(context.Context, *life) error) *part {
	p := &part{w: w, name: name, begin: begin, clock: &clock{}}
	p.clock.skew.Store(int64(w.plan.Skews[name]))
	w.parts[name] = p
	w.names = append(w.names, name)
	return p
}

// newHost makes the host of a new life.
func (w *world) newHost(name string) *host {
	r := chance(w.plan.Seed, "network of "+name)
	var mu sync.Mutex
	h := w.net.host(name, func() time.Duration { mu.Lock(); defer mu.Unlock(); return latency(r) })
	w.hostsMu.Lock()
	w.hosts = append(w.hosts, h)
	w.hostsMu.Unlock()
	return h
}

func latency(r *rand.Rand) time.Duration {
	if r.IntN(200) == 0 {
		return between(r, 5*time.Millisecond, 400*time.Millisecond)
	}
	return between(r, 100*time.Microsecond, 1500*time.Microsecond)
}

// up starts the process if it does not run.
func (p *part) up(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = true
	if p.life != nil {
		return
	}
	p.number++
	l := &life{part: p, host: p.w.newHost(fmt.Sprintf("%s.%d", p.name, p.number)), done: make(chan struct{})}
	p.life = l
	lifeCtx, cancel := context.WithCancel(ctx)
	l.cancel = cancel
	p.w.history.note(l.host.name, "starts")
	p.w.running.Go(func() {
		err := p.begin(lifeCtx, l)
		p.w.fallen(l.host)
		cancel()
		p.mu.Lock()
		alive := p.life == l
		again := alive && p.wanted
		if alive {
			p.life, p.ready = nil, nil
		}
		p.mu.Unlock()
		if alive {
			p.w.history.note(l.host.name, "ends: %v", err)
		}
		l.host.drop()
		close(l.done)
		if again && ctx.Err() == nil { // what a supervisor does
			select {
			case <-time.After(500 * time.Millisecond):
				p.mu.Lock()
				wanted := p.wanted
				p.mu.Unlock()
				if wanted {
					p.up(ctx)
				}
			case <-ctx.Done():
			}
		}
	})
}

// crash ends the process without letting it do anything more that is heard. It returns a function that lets what is late arrive.
func (p *part) crash(late bool) (arrive func(), done <-chan struct{}) {
	l, _ := p.current()
	if l == nil {
		return func() {}, nil
	}
	return p.crashOf(l, late)
}

// crashOf ends one life.
func (p *part) crashOf(l *life, late bool) (arrive func(), done <-chan struct{}) {
	p.mu.Lock()
	if p.life == l {
		p.life, p.ready, p.wanted = nil, nil, false
	}
	p.mu.Unlock()
	l.host.die(late)
	p.w.fallen(l.host)
	l.cancel()
	return l.host.release, l.done
}

// down ends the process cleanly.
func (p *part) down() <-chan struct{} {
	p.mu.Lock()
	l := p.life
	p.wanted = false
	p.mu.Unlock()
	if l == nil {
		return nil
	}
	l.cancel()
	return l.done
}

func (p *part) current() (*life, any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life, p.ready
}

func (p *part) offer(l *life, ready any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life == l {
		p.ready = ready
	}
}

func (w *world) log(l *life) *slog.Logger { return slog.New(logOf{h: w.history, who: l.host.name}) }

// versions are the requests' versions that clients use without asking for them when they connect: the client may wait for that
// answer with a mutex held, which stops the bubble's clock.
func versions() *kversion.Versions {
	v := kversion.V3_7_0()
	v.SetMaxKeyVersion(kmsg.ApiVersions.Int16(), -1)
	return v
}

// options are what every Kafka client of a host needs.
func (w *world) options(h *host) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(address),
		kgo.Dialer(h.dial),
		kgo.DisableClientMetrics(),
		kgo.MaxVersions(versions()),
		kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.RequestTimeoutOverhead(3 * time.Second),
		kgo.ProduceRequestTimeout(3 * time.Second),
	}
}

// schedulerConfig is the configuration of a scheduler on this host.
func (w *world) schedulerConfig(h *host, group string) scheduler.Config {
	p := w.plan
	if group != "" {
		group = "opstream." + group
	}
	return scheduler.Config{
		Client: w.options(h), Topics: w.topics, Group: group, Owner: h.name,
		Engine:          partition.Config{Lease: p.Lease, ResendAfter: time.Second, FailedMax: p.FailedMax},
		CheckpointEvery: p.CheckpointEvery, CheckpointEvents: p.CheckpointEvents, InFlightMax: p.InFlightMax, QueueMax: p.QueueMax,
	}
}

func (w *world) scheduler(group string) func(context.Context, *life) error {
	return func(ctx context.Context, l *life) error {
		cfg := w.schedulerConfig(l.host, group)
		cfg.Logger, cfg.Now = w.log(l), l.part.clock.now
		s, err := scheduler.New(cfg)
		if err != nil {
			return err
		}
		l.part.offer(l, s)
		return s.Run(ctx)
	}
}

func (w *world) worker(i int) func(context.Context, *life) error {
	return func(ctx context.Context, l *life) error {
		handlers := map[string]worker.Handler{}
		context.AfterFunc(ctx, func() { close(l.host.stopping) })
		// A worker that loses its lease while it stops waits for no handler any more: the process ends.
		log := slog.New(logOf{h: w.history, who: l.host.name, hear: func(message string) {
			if !strings.HasPrefix(message, "the lease of the session is lost") {
				return
			}
			w.history.mu.Lock()
			l.host.lost = append(l.host.lost, w.history.now())
			w.history.mu.Unlock()
			if ctx.Err() != nil {
				l.host.exit()
			}
		}})
		for _, t := range types {
			if t != "rare" || i == 0 {
				handlers[t] = w.handler(l.host, l.part.clock)
			}
		}
		p := w.plan
		wk, err := worker.New(worker.Config{
			Brokers: []string{address}, Opts: w.options(l.host), Topics: w.topics, Handlers: handlers, Slots: p.Slots,
			Lease: p.WorkerLease, TimeLimit: p.TimeLimit, ReturnGrace: returnGrace, StopGrace: time.Second, FlushLimit: time.Second,
			Logger: log, Now: l.part.clock.now,
		})
		if err != nil {
			return err
		}
		return wk.Run(ctx)
	}
}

// twin makes a projector that writes to the tables of projector0 as well.
func (w *world) twin(ctx context.Context, l *life) error {
	p, err := projector.New(projector.Config{Store: w.twinStore, Client: w.options(l.host), Topics: w.topics, Log: w.log(l)})
	if err != nil {
		return err
	}
	l.part.offer(l, &node{p})
	return p.Run(ctx)
}

// voice is what a running client has.
type voice struct {
	answers *answers.Client
	plain   *producers.Client
	raw     *kgo.Client
	browser *browser
	ctx     context.Context //nolint:containedctx // ends with the life
}

func (w *world) client(ctx context.Context, l *life) error {
	begin, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	a, err := answers.New(begin, answers.Config{Brokers: []string{address}, Topics: w.topics, Options: w.options(l.host), Log: w.log(l)})
	if err != nil {
		return err
	}
	plain, err := producers.New(producers.Config{
		Brokers: []string{address}, Topics: w.topics, Source: "/" + l.part.name, Options: w.options(l.host), DeliveryTimeout: 10 * time.Second,
	})
	if err != nil {
		return errors.Join(err, a.Close(ctx))
	}
	raw, err := kgo.NewClient(append(w.options(l.host), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		return errors.Join(err, a.Close(ctx), plain.Close(ctx))
	}
	defer raw.Close()
	identify(ctx, raw)
	b := newBrowser(l.host.dial)
	l.part.offer(l, &voice{a, plain, raw, b, ctx})
	var listening sync.WaitGroup
	listening.Go(func() { w.listen(ctx, l.part.name, b, chance(w.plan.Seed, "ears of "+l.host.name)) })
	err = a.Run(ctx)
	if ctx.Err() == nil {
		l.cancel() // the process ends
	}
	listening.Wait()
	b.transport.CloseIdleConnections()
	closing, end := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer end()
	return errors.Join(err, a.Close(closing), plain.Close(closing))
}

// identify has a client that seldom produces get its producer id now. When it first needs one while its host has no network,
// franz-go asks for it again and again without a pause, and in a bubble no time passes while anybody is busy.
func identify(ctx context.Context, client *kgo.Client) {
	for ctx.Err() == nil {
		if _, _, err := client.ProducerID(ctx); err == nil {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// nurse helps the broker over a fault of its own: a member whose connection breaks while it waits in a JoinGroup never expires, and
// keeps the partitions that it gets; and every join sets the rebalance's deadline anew, so that two members whose requests time out in turn never come together. A
// real broker expires the one and keeps the other.
func (w *world) nurse(ctx context.Context) {
	const group, patience = "opstream.scheduler", 12 * time.Second
	_, client, err := w.reader()
	if err != nil {
		w.violation("no client for the group: %v", err)
		return
	}
	defer client.Close()
	since, generation := w.history.now(), int32(-1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		g := w.kafka.GroupInfo(group)
		alive := 0
		for i := range w.plan.Schedulers {
			if l, _ := w.parts[fmt.Sprintf("scheduler%d", i)].current(); l != nil {
				alive++
			}
		}
		if g == nil || len(g.Members) <= alive && (g.State != "PreparingRebalance" || g.Epoch != generation) {
			since = w.history.now()
			if g != nil {
				generation = g.Epoch
			}
			continue
		}
		if w.history.now()-since < patience {
			continue
		}
		since = w.history.now()
		w.history.note("world", "the group hangs: the broker is told to forget all %d members", len(g.Members))
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group = group
		for _, m := range g.Members {
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID = m.MemberID
			leave.Members = append(leave.Members, member)
		}
		if _, err := leave.RequestWith(ctx, client); err != nil && ctx.Err() == nil {
			w.history.note("world", "the group could not be helped: %v", err)
		}
	}
}

func isRival(name string) bool { return strings.HasPrefix(name, "rival") }
