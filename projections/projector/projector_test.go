package projector_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projectiontest"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

const partitions = 3

// bench is a journal on a broker, and a writer of it.
type bench struct {
	t      *testing.T
	seeds  []string
	client *kgo.Client
	chains [partitions]schemas.Chain
	now    operation.Time
	topics schemas.Topics
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, now: 1_800_000_000_000_000, topics: schemas.Topics{Prefix: "test."}}
	b.seeds = kafkatest.Cluster(t, kafkatest.Topic{Name: b.topics.Journal(), Partitions: partitions})
	b.client = kafkatest.Client(t, b.seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	return b
}

// produce appends records as they are and returns the offset of the last one.
func (b *bench) produce(records ...*kgo.Record) operation.Place {
	b.t.Helper()
	for _, rec := range records {
		rec.Topic = b.topics.Journal()
	}
	if err := b.client.ProduceSync(b.t.Context(), records...).FirstErr(); err != nil {
		b.t.Fatalf("append: %v", err)
	}
	return operation.Place(records[len(records)-1].Offset)
}

// events appends valid events.
func (b *bench) events(partition int32, events ...operation.Event) operation.Place {
	b.t.Helper()
	var records []*kgo.Record
	for i := range events {
		if events[i].At == 0 {
			b.now++
			events[i].At = b.now
		}
		rec := schemas.EncodeEvent(&events[i], []byte("key"), partition)
		rec.Partition = partition
		b.chains[partition].Seal(rec)
		records = append(records, rec)
	}
	return b.produce(records...)
}

// void appends a record that nobody applies.
func (b *bench) void(partition int32, id operation.ID) operation.Place {
	b.t.Helper()
	e := b.request(id)
	e.At = b.now
	rec := schemas.EncodeEvent(&e, []byte("key"), partition)
	rec.Partition = partition
	stale := schemas.Chain{Next: 1000}
	stale.Seal(rec)
	place := b.produce(rec)
	b.chains[partition].Next++
	return place
}

func (b *bench) request(id operation.ID) operation.Event {
	q := &operation.Request{ID: id, Organization: "contoso", Type: "workflow", Priority: 4}
	q.Raw = schemas.AppendRequest(nil, q)
	return operation.Event{Kind: operation.Requested, Org: "contoso", ID: id, Request: q, Cause: operation.Cause{Topic: "requests", Offset: 1}}
}

func (b *bench) config(store projections.Store) projector.Config {
	return projector.Config{
		Store: store, Topics: b.topics, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond, StandbyMax: 5 * time.Millisecond, Pause: -1, BusyPause: -1,
		Client: []kgo.Opt{kgo.SeedBrokers(b.seeds...), kgo.FetchMaxWait(500 * time.Millisecond), kgo.MetadataMinAge(50 * time.Millisecond)},
		Log:    slog.New(slog.NewTextHandler(logOf{b.t}, nil)),
	}
}

type logOf struct{ t *testing.T }

func (l logOf) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// run starts a projector and stops it with the test, or when stop is called.
func (b *bench) run(c projector.Config) (p *projector.Projector, stop func()) {
	b.t.Helper()
	p, err := projector.New(c)
	if err != nil {
		b.t.Fatal(err)
	}
	return p, run(b.t, p)
}

// run lets a projector run until the test ends, or stop is called.
func run(t *testing.T, p *projector.Projector) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("expected the projector to end without an error, but got %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func (b *bench) wait(p *projector.Projector, partition int32, place operation.Place) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if err := p.WaitFor(ctx, partition, place); err != nil {
		b.t.Fatalf("wait: %v", err)
	}
}

func open(t *testing.T) *sqlite.Store {
	t.Helper()
	store, err := sqlite.Open(t.Context(), "", sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return store
}

// verify compares the store with the journal on the broker.
func (b *bench) verify(store projections.Store) projections.Report {
	b.t.Helper()
	c := b.config(store)
	report, err := projections.Verify(b.t.Context(), store, projector.Journal{Client: c.Client, Topics: c.Topics})
	if err != nil || !report.OK() {
		b.t.Fatalf("expected the tables to be what the journal says, but got %+v, %v", report, err)
	}
	return report
}

func TestProjectsAndGoesOn(t *testing.T) {
	b := newBench(t)
	store := open(t)
	b.events(0, operation.Event{Kind: operation.Opened, Owner: "a scheduler"}, b.request("one"))
	var commits atomic.Int32
	c := b.config(store)
	c.OnCommitted = func(batch *projections.Batch) {
		for i := range batch.Changes {
			if batch.Changes[i].Row.Org != "contoso" {
				t.Errorf("expected a row of contoso, but got %+v", batch.Changes[i].Row)
			}
		}
		commits.Add(1)
	}
	p, stop := b.run(c)
	b.wait(p, 0, 1)
	b.void(0, "stale")
	last := b.events(0, operation.Event{Kind: operation.Dispatched, Org: "contoso", ID: "one", Attempt: 1, Session: "s"})
	other := b.events(2, b.request("two"))
	b.wait(p, 0, last)
	b.wait(p, 2, other)
	if row, err := store.Get(t.Context(), "contoso", "one"); err != nil || row.Status != operation.StatusDispatched || row.LastPlace != 3 {
		t.Errorf("expected the operation to be dispatched at place 3, behind the void one, but got %+v, %v", row, err)
	}
	if _, err := store.Get(t.Context(), "contoso", "stale"); !errors.Is(err, projections.ErrNotFound) {
		t.Errorf("expected nothing of a void record, but got %v", err)
	}
	s := p.Status()
	if len(s.Partitions) != partitions || s.Lag != 0 || s.Age != 0 || s.Failing != nil || s.Partitions[0].Next != 4 || s.Partitions[0].End != 4 {
		t.Errorf("expected all partitions to be level, but got %+v", s)
	}
	if commits.Load() == 0 {
		t.Error("expected OnCommitted to be called")
	}
	stop()
	b.verify(store)

	// What comes while nobody projects is projected by the next one.
	last = b.events(0, operation.Event{Kind: operation.Succeeded, Org: "contoso", ID: "one", Attempt: 1, Session: "s"})
	p, stop = b.run(b.config(store))
	b.wait(p, 0, last)
	stop()
	if report := b.verify(store); report.Operations != 2 {
		t.Errorf("expected two operations, but got %+v", report)
	}
}

func TestRandomHistories(t *testing.T) {
	b := newBench(t)
	store := open(t)
	j := projectiontest.Random(5, partitions, 3000)
	c := b.config(store)
	c.MaxBatch, c.MaxLive = 200, 20
	p, stop := b.run(c)
	var last [partitions]operation.Place
	for n, entries := range j.Entries {
		var events []operation.Event
		for _, e := range entries {
			// The wire takes only what is valid there: hostile bytes and contexts are the codec's tests.
			if !wire(&e.Event) {
				continue
			}
			events = append(events, e.Event)
		}
		last[n] = b.events(int32(n), events...)
	}
	for n, place := range last {
		b.wait(p, int32(n), place)
	}
	stop()
	if report := b.verify(store); report.Operations == 0 || report.Rejections == 0 {
		t.Errorf("expected operations and rejections, but got %+v", report)
	}
}

// wire says whether an event of the generator can be on the wire, and makes its request as the wire has it.
func wire(e *operation.Event) bool {
	if strings.ContainsAny(string(e.ID)+e.Org, "\x00\uFFFD\n\"") || !strings.HasPrefix(string(e.ID), "op") || strings.Contains(e.Org, "DROP") {
		return e.Kind == operation.Opened
	}
	e.CommandID, e.By = "", operation.By{}
	e.Cause = operation.Cause{Topic: "requests", Offset: 1}
	if e.Failure != nil {
		f := *e.Failure
		f.Message, f.FriendlyMessage = "broken", ""
		e.Failure = &f
	}
	if e.Request != nil {
		q := &operation.Request{ID: e.ID, Organization: e.Org, Type: e.Request.Type, Priority: e.Request.Priority}
		q.Raw = schemas.AppendRequest(nil, q)
		e.Request = q
	}
	return true
}

func TestBrokenChainStopsOnePartition(t *testing.T) {
	b := newBench(t)
	store := open(t)
	p, _ := b.run(b.config(store))
	good := b.events(1, b.request("before"))
	e := b.request("forged")
	e.At = b.now + 1
	rec := schemas.EncodeEvent(&e, []byte("key"), 1)
	rec.Partition = 1
	b.chains[1].Seal(rec)
	rec.Key = []byte("another key")
	forged := b.produce(rec)
	other := b.events(0, b.request("elsewhere"))
	b.wait(p, 1, good)
	b.wait(p, 0, other)
	err := p.WaitFor(t.Context(), 1, forged)
	var broken *schemas.ErrBroken
	if !errors.As(err, &broken) || broken.Offset != int64(forged) {
		t.Errorf("expected the wait to end with the break of the chain, but got %v", err)
	}
	if s := p.Status(); s.Partitions[1].Stopped == nil || s.Partitions[0].Stopped != nil || s.Partitions[1].Next != 1 {
		t.Errorf("expected partition 1 alone to be stopped, but got %+v", s)
	}
	b.wait(p, 0, b.events(0, b.request("and on it goes")))
	if _, err := store.Get(t.Context(), "contoso", "before"); err != nil {
		t.Errorf("expected what stood before the break to be there, but got %v", err)
	}
}

func TestUnreadableEventStopsOnePartition(t *testing.T) {
	b := newBench(t)
	store := open(t)
	p, stop := b.run(b.config(store))
	good := b.events(1, b.request("before"))
	e := b.request("of a newer version")
	e.At = b.now + 1
	rec := schemas.EncodeEvent(&e, []byte("key"), 1)
	rec.Partition, rec.Value = 1, []byte(`{"a member that is not known yet":1}`)
	b.chains[1].Seal(rec)
	newer := b.produce(rec)
	other := b.events(0, b.request("elsewhere"))
	b.wait(p, 1, good)
	b.wait(p, 0, other)
	var unreadable *schemas.DecodeError
	if err := p.WaitFor(t.Context(), 1, newer); !errors.As(err, &unreadable) {
		t.Errorf("expected the wait to end with what is wrong with the event, but got %v", err)
	}
	stop()
	positions, err := store.Positions(t.Context())
	if err != nil || len(positions) != 2 || positions[1].Next != int64(newer) {
		t.Errorf("expected the position to stand before the event, for the version that can read it, but got %+v, %v", positions, err)
	}
}

func TestContradictionStopsOnePartition(t *testing.T) {
	b := newBench(t)
	store := open(t)
	p, _ := b.run(b.config(store))
	bad := b.events(2, operation.Event{Kind: operation.Succeeded, Org: "contoso", ID: "never requested", Attempt: 1, Session: "s"})
	b.wait(p, 0, b.events(0, b.request("elsewhere")))
	var unknown *projections.UnknownOperationError
	if err := p.WaitFor(t.Context(), 2, bad); !errors.As(err, &unknown) {
		t.Errorf("expected the wait to end with the contradiction, but got %v", err)
	}
}

// failingStore fails until it is mended.
type failingStore struct {
	projections.Store
	broken atomic.Bool
	failed chan struct{} // told of each failure, if somebody listens
}

func (f *failingStore) Apply(ctx context.Context, b *projections.Batch) error {
	if f.broken.Load() {
		select {
		case f.failed <- struct{}{}:
		default:
		}
		return errors.New("the database is away")
	}
	return f.Store.Apply(ctx, b)
}

func TestStoreThatIsAway(t *testing.T) {
	b := newBench(t)
	store := &failingStore{Store: open(t), failed: make(chan struct{})}
	store.broken.Store(true)
	p, stop := b.run(b.config(store))
	b.events(0, b.request("one"), operation.Event{Kind: operation.Dispatched, Org: "contoso", ID: "one", Attempt: 1, Session: "s"})
	for range 3 {
		<-store.failed
	}
	// The third failure began after the second had been noted.
	if s := p.Status(); s.Failing == nil || s.Since.IsZero() || s.Lag == 0 {
		t.Errorf("expected the status to tell of the failure and the lag, but got %+v", s)
	}
	// What comes meanwhile, in another partition too, is not read, and counts all the same.
	other := b.events(1, b.request("two"), b.request("three"))
	last := b.events(0, b.request("four"))
	for limit := time.After(20 * time.Second); p.Status().Lag < 5; {
		select {
		case <-store.failed:
		case <-limit:
			t.Fatalf("expected a lag of 5 offsets, but got %+v", p.Status())
		}
	}
	gone, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no patience")
	cancel(why)
	if err := p.WaitFor(gone, 0, last); !errors.Is(err, why) {
		t.Errorf("expected the wait to end with its context, but got %v", err)
	}
	store.broken.Store(false)
	b.wait(p, 0, last)
	b.wait(p, 1, other)
	stop()
	if s := p.Status(); s.Failing != nil || s.Lag != 0 {
		t.Errorf("expected nothing to fail any more, but got %+v", s)
	}
	b.verify(store)
}

// replacedStore is another store from a batch on, whose answer it does not hear: a database that was restored, or whose replica took
// over without the latest transactions.
type replacedStore struct {
	projections.Store
	other projections.Store
	now   atomic.Bool // with the next batch it becomes the other
	quiet bool        // nothing fails on the way
	was   atomic.Bool
}

func (r *replacedStore) in() projections.Store {
	if r.was.Load() {
		return r.other
	}
	return r.Store
}

func (r *replacedStore) Positions(ctx context.Context) ([]projections.Position, error) {
	return r.in().Positions(ctx)
}

func (r *replacedStore) States(ctx context.Context, refs []projections.Ref) ([]projections.Row, error) {
	if r.quiet && r.now.Load() {
		r.was.Store(true)
	}
	return r.in().States(ctx, refs)
}

func (r *replacedStore) Apply(ctx context.Context, b *projections.Batch) error {
	if r.now.Load() && !r.was.Swap(true) {
		return errors.New("the connection broke")
	}
	return r.in().Apply(ctx, b)
}

// TestOlderTablesTakeTheirPlace: what the projector has written already is missing from them, and is written again.
func TestOlderTablesTakeTheirPlace(t *testing.T) {
	attempt := func(id operation.ID, n operation.Attempt, end operation.EventKind) []operation.Event {
		return []operation.Event{
			{Kind: operation.Dispatched, Org: "contoso", ID: id, Attempt: n, Session: "s"},
			{Kind: end, Org: "contoso", ID: id, Attempt: n, Session: "s"},
		}
	}
	for name, quiet := range map[string]bool{"a batch fails": false, "nothing fails": true} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, first batch %v", name, first), func(t *testing.T) {
				b := newBench(t)
				store := &replacedStore{Store: open(t), other: open(t), quiet: quiet}
				p, stop := b.run(b.config(store))
				b.wait(p, 0, b.events(0, append([]operation.Event{b.request("one")}, attempt("one", 1, operation.Failed)...)...))
				if first { // it has written nothing, and knows where the tables stood all the same
					stop()
					p, _ = b.run(b.config(store))
					if err := p.Begun(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				store.now.Store(true)
				next := append([]operation.Event{b.request("two")}, attempt("two", 1, operation.Succeeded)...)
				if quiet { // about an operation that is read from the tables, and that the older ones do not have
					again := b.request("one")
					again.Kind = operation.Retried
					next = append([]operation.Event{again}, attempt("one", 2, operation.Succeeded)...)
				}
				b.wait(p, 0, b.events(0, next...))
				if report := b.verify(store.other); len(report.Lag) > 0 {
					t.Errorf("expected everything in the tables that are there now, but got %+v", report)
				}
			})
		}
	}
}

// unansweredStore writes the first batch and says that it did not.
type unansweredStore struct {
	projections.Store
	once sync.Once
}

func (u *unansweredStore) Apply(ctx context.Context, b *projections.Batch) error {
	err := u.Store.Apply(ctx, b)
	u.once.Do(func() {
		if err == nil {
			err = errors.New("the connection broke before the answer")
		}
	})
	return err
}

// TestJournalWithoutItsBeginning: what somebody deletes while the projector works is told of.
func TestJournalWithoutItsBeginning(t *testing.T) {
	b := newBench(t)
	p, _ := b.run(b.config(open(t)))
	b.wait(p, 0, b.events(0, b.request("one"), b.request("two")))
	if s := p.Status(); s.Partitions[0].Begin != 0 {
		t.Errorf("expected nothing to be missed, but got %+v", s)
	}
	offsets := kadm.Offsets{}
	offsets.AddOffset(b.topics.Journal(), 0, 1, -1)
	if deleted, err := kadm.NewClient(b.client).DeleteRecords(t.Context(), offsets); err != nil || deleted.Error() != nil {
		t.Fatal(err, deleted.Error())
	}
	b.wait(p, 0, b.events(0, b.request("three")))
	if s := p.Status(); s.Partitions[0].Begin != 1 {
		t.Errorf("expected the journal to begin at 1, but got %+v", s)
	}
}

// TestAgeAfterARest: tables that were level are behind since something came, not since the event before that.
func TestAgeAfterARest(t *testing.T) {
	b := newBench(t)
	store := &failingStore{Store: open(t), failed: make(chan struct{})}
	p, _ := b.run(b.config(store))
	long := b.request("one")
	long.At = operation.TimeOf(time.Now().Add(-time.Hour))
	b.wait(p, 0, b.events(0, long))
	store.broken.Store(true)
	b.events(0, b.request("two"))
	for range 3 {
		<-store.failed
	}
	if s := p.Status(); s.Lag != 1 || s.Age <= 0 || s.Age > 30*time.Minute {
		t.Errorf("expected the tables to be behind with one event for moments, but got %d, %s", s.Lag, s.Age)
	}
}

// Who hears of changes is told when the tables have moved by something that nobody heard of.
func TestWhatMovedUnheardIsTold(t *testing.T) {
	b := newBench(t)
	store := open(t)
	c := b.config(&unansweredStore{Store: store})
	var p *projector.Projector
	told, missed := make(chan int64, 10), make(chan int64, 10)
	c.OnCommitted = func(batch *projections.Batch) {
		for _, step := range batch.Steps {
			if at := p.Status().Partitions[step.To.Partition].Next; at < step.To.Next {
				t.Errorf("expected the status to know of offset %d when it is told of, but it knows of %d", step.To.Next, at)
			}
			told <- step.To.Next
		}
	}
	c.OnMissed = func() { missed <- p.Status().Partitions[0].Next }
	first := b.events(0, b.request("one"))
	p, err := projector.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if p.Status().Begun {
		t.Error("expected a projector that does not run not to have begun")
	}
	stop := run(t, p)
	if next := <-missed; next != int64(first)+1 {
		t.Errorf("expected to be told when the tables have offset %d, but they have %d", first, next-1)
	}
	second := b.events(0, b.request("two"))
	if next := <-told; next != int64(second)+1 {
		t.Errorf("expected to hear of offset %d, but heard of %d", second, next-1)
	}
	stop()
	b.verify(store)
}

func TestTwoProjectors(t *testing.T) {
	b := newBench(t)
	store := open(t)
	one, _ := b.run(b.config(&locked{Store: store}))
	two, _ := b.run(b.config(&locked{Store: store}))
	for i := range 60 {
		id := operation.ID(fmt.Sprint("op-", i))
		n := int32(i % partitions)
		place := b.events(n, b.request(id), operation.Event{Kind: operation.Dispatched, Org: "contoso", ID: id, Attempt: 1, Session: "s"})
		if i%10 == 0 {
			b.wait(one, n, place)
		}
	}
	for n, chain := range b.chains {
		b.wait(one, int32(n), operation.Place(chain.Next-1))
		b.wait(two, int32(n), operation.Place(chain.Next-1))
	}
	if report := b.verify(store); report.Operations != 60 {
		t.Errorf("expected each operation once, but got %+v", report)
	}
}

// locked makes one store of this process look like two of two processes.
type locked struct{ projections.Store }

var oneWriter sync.Mutex

func (l *locked) Apply(ctx context.Context, b *projections.Batch) error {
	oneWriter.Lock()
	defer oneWriter.Unlock()
	return l.Store.Apply(ctx, b)
}

func TestSomePartitionsOnly(t *testing.T) {
	b := newBench(t)
	store := open(t)
	c := b.config(store)
	c.Partitions = []int32{1}
	c.Pause = 0 // the default
	p, _ := b.run(c)
	b.events(0, b.request("not ours"))
	b.wait(p, 1, b.events(1, b.request("ours")))
	if err := p.WaitFor(t.Context(), 0, 0); err == nil {
		t.Error("expected an error for a partition that is not projected here, but got none")
	}
	if _, err := store.Get(t.Context(), "contoso", "not ours"); !errors.Is(err, projections.ErrNotFound) {
		t.Errorf("expected nothing of another partition, but got %v", err)
	}
}

func TestJournalThatLostRecords(t *testing.T) {
	b := newBench(t)
	store := open(t)
	p, stop := b.run(b.config(store))
	b.wait(p, 0, b.events(0, b.request("one"), b.request("two")))
	stop()
	empty := newBench(t)
	p, _ = empty.run(empty.config(store))
	empty.wait(p, 1, empty.events(1, empty.request("three")))
	if s := p.Status(); s.Partitions[0].Stopped == nil || s.Partitions[1].Stopped != nil {
		t.Errorf("expected the partition whose journal is shorter than the tables to be stopped, but got %+v", s)
	}
}

func TestConfig(t *testing.T) {
	if _, err := projector.New(projector.Config{}); err == nil {
		t.Error("expected an error without a store, but got none")
	}
	if _, err := projector.New(projector.Config{Store: open(t), Partitions: []int32{-1}}); err == nil {
		t.Error("expected an error for partition -1, but got none")
	}
}
