// Package projector reads the journal and keeps a store of projections level with it.
//
// One goroutine polls, checks the chain, decodes, folds and writes; while it writes, the client fetches what comes next, so that
// batches grow with the load by themselves: a record that comes when nothing is under way is written at once, what comes
// meanwhile is the next batch. After a small batch it waits a moment (Config.Pause), because at low load it is the wake-ups that
// cost.
//
// The journal does not wait for it, and a store that is away does no harm: the projector keeps what it has, tries again, and
// catches up. What cannot be mended by waiting stops one partition, loudly, and no other: a broken chain, a record that
// this version cannot read, an event that contradicts the tables. Such a partition stays where it is until the process is
// started again.
//
// # Several projectors
//
// Any number of processes may project into the same tables, where the store is a database for many. All read the whole journal, and
// the store lets each batch in once: the projector that comes second is told so, stands by for BackoffMin, then twice as long and
// so on up to StandbyMax, and begins again where the tables stand then. So one works and the others stand by, and take over
// within StandbyMax when it ends. That they share the work must be said, by Config.Partitions; the counts, in which all
// partitions meet, are right either way.
package projector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/schemas"
)

// Config says what to project, and how.
type Config struct {
	Store projections.Store
	// Client are the options of the client that reads the journal: seeds, dialer, credentials.
	Client []kgo.Opt
	// Topics names the journal. Default: opstream.journal.
	Topics schemas.Topics
	// Partitions are the ones to project. Default: all.
	Partitions []int32
	// MaxBatch is the greatest number of records in one write. Default: 20000.
	MaxBatch int
	// MaxLive is how many operations are remembered between batches. Default: projections.DefaultMaxLive.
	MaxLive int
	// Pause is the wait after a small batch; a negative one means none. Default: 5ms.
	Pause time.Duration
	// BusyPause is the wait after a larger one, so that under load batches are large, which makes them cheap; a negative one
	// means none. Default: 50ms.
	BusyPause time.Duration
	// FloodPause is the wait while more than 20000 records come in a second: then most operations begin and end within a batch, and
	// are written once instead of twice or three times. A negative one means none. Default: 600ms.
	FloodPause time.Duration
	// BackoffMin and BackoffMax bound the wait after a failure: what it costs to try is little beside tables that stay behind when
	// nothing fails any more. Defaults: 100ms and 2s.
	BackoffMin, BackoffMax time.Duration
	// StandbyMax bounds the wait of one that stands by, which reads what the other has written already, at least BackoffMax. Default: 10s.
	StandbyMax time.Duration
	// OnCommitted is called after each batch by the goroutine that projects; the batch is valid during the call only. Default: none.
	OnCommitted func(*projections.Batch)
	// OnMissed is called when the tables have moved by something that OnCommitted was not told of: another writer, or a commit
	// whose answer was lost. It comes from the same goroutine. Default: none.
	OnMissed func()
	// Log. Default: slog.Default().
	Log *slog.Logger
}

const (
	// small is the size of a batch, in records, up to which the projector waits for Config.Pause and not for BusyPause.
	small = 256
	// flood is the number of records a second from which on it waits for Config.FloodPause.
	flood = 20_000
	// gather is how long a busy projector waits for what was written during its pause: the client holds what it fetched
	// before, and fetches the rest only when that is taken.
	gather = 10 * time.Millisecond
)

func (c Config) withDefaults() Config {
	if c.MaxBatch <= 0 {
		c.MaxBatch = 20_000
	}
	if c.Pause == 0 {
		c.Pause = 5 * time.Millisecond
	}
	if c.BusyPause == 0 {
		c.BusyPause = 50 * time.Millisecond
	}
	if c.FloodPause == 0 {
		c.FloodPause = 600 * time.Millisecond
	}
	if c.BackoffMin <= 0 {
		c.BackoffMin = 100 * time.Millisecond
	}
	if c.BackoffMax <= 0 {
		c.BackoffMax = 2 * time.Second
	}
	if c.StandbyMax <= 0 {
		c.StandbyMax = 10 * time.Second
	}
	c.StandbyMax = max(c.StandbyMax, c.BackoffMax)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// Projector keeps a store level with the journal.
type Projector struct {
	config Config
	fold   *projections.Projector

	mu         sync.Mutex
	partitions map[int32]*partition
	known      chan struct{} // closed when partitions is filled
	failing    error         // what the projector is waiting to be over
	since      time.Time     // when failing began
	failures   uint64
}

// partition is what the projector knows of one; the mutex of Projector guards all but chain and at.
type partition struct {
	chain   schemas.Chain // read so far
	at      operation.Time
	next    int64          // written
	nextAt  operation.Time // of the last event written
	end     int64          // of the journal, as far as it is known
	came    operation.Time // the first record after the tables were last level came to the journal
	stopped error
	strange *time.Timer // set when its end is another history: when that is told
	odd     error       // told that its end is another history
	begin   int64       // of the journal: records before it were deleted, which was logged
	waiters map[*waiter]struct{}
}

type waiter struct {
	place operation.Place
	done  chan struct{}
}

// New makes a projector, which does nothing before Run.
func New(config Config) (*Projector, error) {
	if config.Store == nil {
		return nil, errors.New("expected a store to project into, but there is none; set Config.Store")
	}
	for _, p := range config.Partitions {
		if p < 0 || p > projections.MaxPartition {
			return nil, fmt.Errorf("expected partitions of 0 to %d, but got %d", projections.MaxPartition, p)
		}
	}
	p := &Projector{config: config.withDefaults(), known: make(chan struct{})}
	p.fold = projections.NewProjector(config.Store, config.MaxLive)
	p.fold.OnCommitted = func(b *projections.Batch) {
		// First, so that nobody who hears of a change finds positions that are older.
		p.written(func(yield func(projections.Position) bool) {
			for i := range b.Steps {
				if !yield(b.Steps[i].To) {
					return
				}
			}
		})
		if config.OnCommitted != nil {
			config.OnCommitted(b)
		}
	}
	return p, nil
}

// errAgain ends a session whose successor begins at the store's positions.
var errAgain = errors.New("something else has changed the tables; begin again from their positions")

// Run projects until ctx ends, and then returns nil. It is for one call. Failures of the store or the broker it logs and waits
// out.
func (p *Projector) Run(ctx context.Context) error {
	defer func() {
		for _, part := range p.partitions {
			if part.strange != nil {
				part.strange.Stop()
			}
		}
	}()
	for wait := p.config.BackoffMin; ctx.Err() == nil; wait *= 2 {
		started := time.Now()
		err := p.session(ctx)
		if ctx.Err() != nil {
			return nil // to be stopped is no failure
		}
		if time.Since(started) > p.config.StandbyMax {
			wait = p.config.BackoffMin
		}
		if errors.Is(err, errAgain) {
			// The other one does what this one would. Should it end, this one finds nobody in its way when it looks again.
			wait = min(wait, p.config.StandbyMax)
			var moved *projections.PositionError
			if errors.As(err, &moved) && moved.Have < moved.Want {
				p.config.Log.LogAttrs(ctx, slog.LevelWarn, "the tables stand before what was written to them: an older copy has taken their place, and is made level with the journal", slog.Any("err", err), slog.Duration("wait", wait))
			} else {
				p.config.Log.LogAttrs(ctx, slog.LevelInfo, "another projector writes these tables; this one stands by and looks again", slog.Any("err", err), slog.Duration("wait", wait))
			}
			p.fails(nil)
			if !sleep(ctx, wait) {
				return nil
			}
			continue
		}
		wait = min(wait, p.config.BackoffMax)
		p.config.Log.LogAttrs(ctx, slog.LevelError, "projection is interrupted and begins again", slog.Any("err", err), slog.Duration("wait", wait))
		p.fails(err)
		if !sleep(ctx, wait) {
			return nil
		}
	}
	return nil
}

// sleep waits, and returns false when ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// fails notes what keeps the projector from its work, nil if nothing does.
func (p *Projector) fails(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failing == nil && err != nil {
		p.since = time.Now()
	}
	if err != nil {
		p.failures++
	}
	p.failing = err
}

// session projects from the store's positions on.
func (p *Projector) session(ctx context.Context) error {
	topic := p.config.Topics.Journal()
	// In this order: the tables may move on meanwhile, and must not seem to be ahead of the journal.
	have, err := p.config.Store.Positions(ctx)
	if err != nil {
		return fmt.Errorf("read the positions of the tables: %w", err)
	}
	ends, err := p.ends(ctx)
	if err != nil {
		return err
	}
	from, missed, err := p.begin(ends, have)
	if err != nil {
		return err
	}
	if missed {
		p.missed()
	}
	at := make(map[int32]int64, len(from))
	for n, offset := range from {
		at[n] = offset.EpochOffset().Offset
	}
	p.fold.Begin(at)
	opts := append([]kgo.Opt{
		// Room for what a partition has in Config.FloodPause: the client fetches once while nothing is taken.
		kgo.FetchMaxBytes(32 << 20), kgo.FetchMaxPartitionBytes(8 << 20), kgo.FetchMaxWait(10 * time.Second), kgo.FetchMinBytes(1),
	}, p.config.Client...)
	opts = append(opts,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(),
	)
	client, err := kafkaclient.Within(ctx, opts...)
	if err != nil {
		return fmt.Errorf("make a client to read %s: %w", topic, err)
	}
	defer client.Close()
	p.fails(nil)
	return p.loop(ctx, client.Client, topic)
}

// ends asks for the end of every partition that is to be projected.
func (p *Projector) ends(ctx context.Context) (map[int32]int64, error) {
	j := Journal{Client: p.config.Client, Topics: p.config.Topics}
	all, err := j.Ends(ctx)
	if err != nil || p.config.Partitions == nil {
		return all, err
	}
	ends := make(map[int32]int64, len(p.config.Partitions))
	for _, n := range p.config.Partitions {
		end, ok := all[n]
		if !ok {
			return nil, fmt.Errorf("expected partition %d in the journal, but it has only %d; check the projector's configuration", n, len(all))
		}
		ends[n] = end
	}
	return ends, nil
}

// missed passes on that the tables have moved unheard.
func (p *Projector) missed() {
	if p.config.OnMissed != nil {
		p.config.OnMissed()
	}
}

// begin takes the store's positions and returns where to read, and whether the tables have moved since this projector wrote to them.
func (p *Projector) begin(ends map[int32]int64, have []projections.Position) (from map[int32]kgo.Offset, missed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := make(map[int32]projections.Position, len(have))
	for _, h := range have {
		at[h.Partition] = h
	}
	first := p.partitions == nil
	if first {
		p.partitions = make(map[int32]*partition, len(ends))
	}
	from = make(map[int32]kgo.Offset, len(ends))
	for n, end := range ends {
		part := p.partitions[n]
		if part == nil {
			part = &partition{waiters: map[*waiter]struct{}{}}
			p.partitions[n] = part
		}
		part.chain = schemas.Chain{}
		h := at[n]
		if h.Next > 0 {
			if err := part.chain.UnmarshalText(h.Chain); err != nil {
				return nil, false, fmt.Errorf("read the position of partition %d: %w; rebuild the tables: remove their database and start again", n, err)
			}
			if part.chain.Next != h.Next {
				return nil, false, fmt.Errorf("expected the chain of partition %d to continue at offset %d, where the tables stand, but it does at %d; rebuild the tables: remove their database and start again", n, h.Next, part.chain.Next)
			}
		}
		missed = missed || !first && h.Next > part.next
		part.at = h.At
		part.next, part.nextAt, part.end = h.Next, h.At, max(end, part.end)
		part.wake()
		if h.Next > end {
			p.stop(n, part, fmt.Errorf("the tables stand at offset %d, but the journal ends at %d: it has lost records, or is another one; keep both, and restore the journal from a copy; only if it is meant to be another one remove the tables' database and start again", h.Next, end))
		}
		if part.stopped == nil {
			from[n] = kgo.NewOffset().At(h.Next)
		}
	}
	if first {
		close(p.known)
	}
	return from, missed, nil
}

// stop ends the projection of one partition; the lock is held.
func (p *Projector) stop(n int32, part *partition, err error) {
	if part.stopped != nil {
		return
	}
	part.stopped = err
	for w := range part.waiters {
		close(w.done)
	}
	clear(part.waiters)
	p.config.Log.Error("projection of a partition has STOPPED; the others go on", slog.Int("partition", int(n)), slog.Int64("offset", part.chain.Next), slog.Any("err", err))
}

// wake tells those who wait for what is written; the lock is held.
func (part *partition) wake() {
	for w := range part.waiters {
		if int64(w.place) < part.next {
			close(w.done)
			delete(part.waiters, w)
		}
	}
}

// batch is what was read and is not written yet.
type batch struct {
	entries   []projections.Entry
	positions []projections.Position
}

// pause is the wait after a batch of so many records, which came in so much time.
func (c *Config) pause(records int, passed time.Duration) time.Duration {
	switch {
	case records >= c.MaxBatch/2: // it is behind
		return 0
	case records <= small:
		return c.Pause
	case float64(records) < flood*passed.Seconds():
		return c.BusyPause
	default:
		return c.FloodPause
	}
}

func (p *Projector) loop(ctx context.Context, client *kgo.Client, topic string) error {
	var b batch
	busy := false
	last := time.Now()
	for {
		b.entries, b.positions = b.entries[:0], b.positions[:0]
		records, failed := p.poll(ctx, client, topic, p.config.MaxBatch, &b)
		if busy && failed == nil && records < p.config.MaxBatch {
			more, cancel := context.WithTimeout(ctx, gather)
			var n int
			n, failed = p.poll(more, client, topic, p.config.MaxBatch-records, &b)
			records += n
			cancel()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if len(b.positions) > 0 {
			if err := p.write(ctx, client, topic, &b); err != nil {
				return err
			}
		}
		if failed != nil {
			return failed
		}
		clear(b.entries) // requests must not be kept by a buffer
		busy = records > small
		now := time.Now()
		pause := p.config.pause(records, now.Sub(last))
		last = now
		if pause > 0 && !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// poll adds to the batch what the client has, up to limit records, and returns their number.
func (p *Projector) poll(ctx context.Context, client *kgo.Client, topic string, limit int, b *batch) (records int, failed error) {
	fetches := client.PollRecords(ctx, limit)
	if ctx.Err() != nil && fetches.NumRecords() == 0 {
		return 0, nil
	}
	if fetches.IsClientClosed() {
		return 0, errors.New("the client that reads the journal was closed")
	}
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		if f.Err != nil {
			failed = errors.Join(failed, p.faulty(client, topic, f.Partition, f.Err))
		}
		records += len(f.Records)
		p.read(client, topic, f, b)
	})
	return records, failed
}

// faulty deals with an error that the client does not deal with itself, and returns it if the session must end.
func (p *Projector) faulty(client *kgo.Client, topic string, n int32, err error) error {
	if errors.Is(err, kerr.OffsetOutOfRange) {
		p.halt(client, topic, n, fmt.Errorf("the journal does not have the offset where the tables stand: it has lost records, or is another one; keep the tables, and restore the journal from a copy; if it is complete, remove their database and start again: %w", err))
		return nil
	}
	return fmt.Errorf("read partition %d of %s: %w", n, topic, err)
}

// halt stops a partition and its fetching.
func (p *Projector) halt(client *kgo.Client, topic string, n int32, err error) {
	client.PauseFetchPartitions(map[string][]int32{topic: {n}})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop(n, p.partitions[n], err)
}

// read checks and decodes the records of one partition.
func (p *Projector) read(client *kgo.Client, topic string, f kgo.FetchTopicPartition, b *batch) {
	if len(f.Records) == 0 {
		return
	}
	p.mu.Lock()
	part := p.partitions[f.Partition]
	stopped := part.stopped != nil
	if part.end <= part.next {
		part.came = operation.TimeOf(f.Records[0].Timestamp)
	}
	part.end = max(part.end, f.HighWatermark)
	lost := f.LogStartOffset > part.begin
	part.begin = max(part.begin, f.LogStartOffset)
	p.mu.Unlock()
	if lost { // brokers delete a segment now and then, not more
		p.config.Log.Error("the journal is losing its beginning, without which tables cannot be made again nor histories be proved: opstream topics plan says how long it is to be kept", slog.Int("partition", int(f.Partition)), slog.Int64("first", f.LogStartOffset))
	}
	if stopped {
		return
	}
	before := part.chain.Next
	for _, rec := range f.Records {
		entry, ok, err := judge(&part.chain, rec)
		if err != nil {
			p.halt(client, topic, f.Partition, err)
			break
		}
		if ok {
			part.at = entry.Event.At
			b.entries = append(b.entries, entry)
		}
	}
	p.judgeEnd(f.Partition, part, f.HighWatermark)
	if part.chain.Next > before {
		b.moveTo(position(f.Partition, &part.chain, part.at))
	}
}

// strangeFor is how long the end of the journal may read like a history of its own: what a stale writer has left is followed by a record
// of whoever took the partition over, at once.
const strangeFor = 10 * time.Second

// judgeEnd tells when the last records of a partition stay void, though they continue one another: it was changed, or the tables are
// another installation's.
func (p *Projector) judgeEnd(n int32, part *partition, end int64) {
	if part.chain.Next < end {
		return // there is more
	}
	err := part.chain.AtEnd()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil && part.strange != nil:
		part.strange.Stop()
		part.strange, part.odd = nil, nil
	case err != nil && part.strange == nil:
		var timer *time.Timer
		timer = time.AfterFunc(strangeFor, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if part.strange != timer {
				return // it was well in this very moment
			}
			part.odd = err
			p.config.Log.Error("the end of the journal is void and reads like a history of its own; records are missing from the tables: see opstream verify", slog.Int("partition", int(n)), slog.Any("err", err))
		})
		part.strange = timer
	}
}

// moveTo sets the position that the batch leads to in one partition.
func (b *batch) moveTo(to projections.Position) {
	for i := range b.positions {
		if b.positions[i].Partition == to.Partition {
			b.positions[i] = to
			return
		}
	}
	b.positions = append(b.positions, to)
}

// judge returns the event of a record that is valid. On an error the chain stands before the record.
func judge(chain *schemas.Chain, rec *kgo.Record) (entry projections.Entry, valid bool, err error) {
	before := *chain
	if rec.Attrs.IsControl() {
		if rec.Offset >= chain.Next {
			chain.Next = rec.Offset + 1
		}
		return entry, false, nil
	}
	verdict, err := chain.Check(rec)
	if err != nil || verdict != schemas.Valid {
		return entry, false, err
	}
	event, err := schemas.DecodeEvent(rec)
	if err != nil {
		*chain = before
		return entry, false, fmt.Errorf("read the event at offset %d: %w; run the version of opstream that wrote it, or a newer one", rec.Offset, err)
	}
	return projections.Entry{Partition: rec.Partition, Place: operation.Place(rec.Offset), Event: event}, true, nil
}

func position(n int32, chain *schemas.Chain, at operation.Time) projections.Position {
	return projections.Position{Partition: n, Next: chain.Next, Chain: []byte(chain.String()), At: at}
}

// write tries until the batch is written or ctx ends. Only another writer ends it otherwise.
func (p *Projector) write(ctx context.Context, client *kgo.Client, topic string, b *batch) error {
	for wait := p.config.BackoffMin; ; wait = min(2*wait, p.config.BackoffMax) {
		err := p.fold.Project(ctx, b.entries, b.positions)
		if err == nil {
			// OnCommitted was not called for what the tables had already: this batch, if the answer to an earlier commit was lost.
			if p.written(slices.Values(b.positions)) {
				p.missed()
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var moved *projections.PositionError
		var unknown *projections.UnknownOperationError
		switch {
		case errors.As(err, &moved):
			return errors.Join(errAgain, err)
		case errors.As(err, &unknown):
			// The others of the batch are written, and nothing of this partition.
			p.halt(client, topic, unknown.Partition, err)
			b.drop(unknown.Partition)
			wait = p.config.BackoffMin
			continue
		}
		p.fails(err)
		p.config.Log.LogAttrs(ctx, slog.LevelError, "the tables cannot be written; the journal goes on, and so will this",
			slog.Int("events", len(b.entries)), slog.Any("err", err), slog.Duration("wait", wait))
		p.lookAhead(ctx, client, topic)
		if !sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}

// lookTime is how long the brokers may take to say where the journal ends; the batch is worth more than that.
const lookTime = time.Second

// lookAhead asks where the journal ends. While nothing can be written nothing is read either, and Status would go on telling how far the
// tables were behind when that began.
func (p *Projector) lookAhead(ctx context.Context, client *kgo.Client, topic string) {
	bounded, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	ends, err := kadm.NewClient(client).ListEndOffsets(bounded, topic)
	if err != nil {
		return // the next try asks again
	}
	now := operation.TimeOf(time.Now())
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, end := range ends[topic] {
		part := p.partitions[n]
		if part == nil || end.Err != nil || end.Offset <= part.end {
			continue
		}
		if part.end <= part.next {
			part.came = now // at the latest
		}
		part.end = end.Offset
	}
}

// drop takes everything of a partition out of the batch.
func (b *batch) drop(n int32) {
	entries, positions := b.entries[:0], b.positions[:0]
	for _, e := range b.entries {
		if e.Partition != n {
			entries = append(entries, e)
		}
	}
	for _, at := range b.positions {
		if at.Partition != n {
			positions = append(positions, at)
		}
	}
	b.entries, b.positions = entries, positions
}

// written notes that the tables have everything before these positions, and says whether that is news.
func (p *Projector) written(positions iter.Seq[projections.Position]) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failing = nil
	for at := range positions {
		part := p.partitions[at.Partition]
		if at.Next > part.next {
			news = true
			part.next, part.nextAt, part.end = at.Next, at.At, max(part.end, at.Next)
			part.wake()
		}
	}
	return news
}

// Begun returns when the projector knows where the tables stand: Status has nothing to tell before. It fails when ctx ends.
func (p *Projector) Begun(ctx context.Context) error {
	select {
	case <-p.known:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the projector has not begun: %w", context.Cause(ctx))
	}
}

// WaitFor returns when the tables have the event at this place, so that who has caused it reads what they wrote. It fails when ctx
// ends, or when the partition is not projected here or not any more.
func (p *Projector) WaitFor(ctx context.Context, n int32, place operation.Place) error {
	if err := p.Begun(ctx); err != nil {
		return fmt.Errorf("wait for offset %d of partition %d: %w", place, n, err)
	}
	p.mu.Lock()
	part := p.partitions[n]
	if part == nil {
		p.mu.Unlock()
		return fmt.Errorf("expected a partition that is projected here, but got %d", n)
	}
	if int64(place) < part.next {
		p.mu.Unlock()
		return nil
	}
	if err := part.stopped; err != nil {
		p.mu.Unlock()
		return fmt.Errorf("wait for offset %d of partition %d, whose projection has stopped: %w", place, n, err)
	}
	w := &waiter{place, make(chan struct{})}
	part.waiters[w] = struct{}{}
	p.mu.Unlock()
	var ended error
	select {
	case <-w.done:
	case <-ctx.Done():
		ended = context.Cause(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(part.waiters, w)
	switch {
	case int64(place) < part.next:
		return nil
	case part.stopped != nil:
		return fmt.Errorf("wait for offset %d of partition %d, whose projection has stopped: %w", place, n, part.stopped)
	default:
		return fmt.Errorf("wait for offset %d of partition %d, which stands at %d: %w", place, n, part.next, ended)
	}
}

// Status is how far the projector is.
type Status struct {
	Begun      bool // where the tables stand is known
	Partitions []PartitionStatus
	Lag        int64         // offsets, over all partitions
	Age        time.Duration // the greatest
	Failing    error         // what it waits to be over, nil if nothing
	Since      time.Time     // since when it fails
	Failures   uint64        // since it was made: batches that were not written, and reads that broke off
}

// PartitionStatus is how far the projector is in one partition.
type PartitionStatus struct {
	Partition int32
	Next      int64         // first offset that the tables do not have
	End       int64         // of the journal, as far as the projector has seen it
	Lag       int64         // End - Next
	Age       time.Duration // since what the tables lack came to the journal, at most; 0 when they are level
	Begin     int64         // of the journal: more than 0 if somebody has deleted records
	Stopped   error         // why this partition is not projected any more
}

// Status tells how far the projector is. It asks nobody.
func (p *Projector) Status() Status {
	now := operation.TimeOf(time.Now())
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Begun: p.partitions != nil, Failing: p.failing, Since: p.since, Failures: p.failures, Partitions: make([]PartitionStatus, 0, len(p.partitions))}
	if s.Failing == nil {
		s.Since = time.Time{}
	}
	for n, part := range p.partitions {
		ps := PartitionStatus{Partition: n, Next: part.next, End: part.end, Lag: max(part.end-part.next, 0), Begin: part.begin, Stopped: cmp.Or(part.stopped, part.odd)}
		if ps.Lag > 0 && part.nextAt != 0 {
			ps.Age = max(now.Sub(max(part.nextAt, part.came)), 0)
		}
		s.Lag += ps.Lag
		s.Age = max(s.Age, ps.Age)
		s.Partitions = append(s.Partitions, ps)
	}
	sortByPartition(s.Partitions)
	return s
}
