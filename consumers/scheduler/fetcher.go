package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/oftenlog"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// heard is a heartbeat with the time at which it was read, by the leases' clock.
type heard struct {
	beat   partition.Heartbeat
	at     operation.Time
	offset int64
}

// fetcher reads the input topics for all actors of a process with one client. Everything that changes what is fetched, and
// for whom, runs on the goroutine that polls: a record that was fetched for an actor's predecessor is gone when the actor's
// own positions are set. Heartbeats have a client of their own: a partition that begins is not fetched before the fetch that is
// under way is answered, and that of a process without partitions would wait for a heartbeat.
type fetcher struct {
	cfg    Config
	log    *slog.Logger
	faults *oftenlog.Warner
	client *kafkaclient.Client // inputs
	pulse  *kafkaclient.Client // heartbeats
	admin  *kadm.Client
	ticks  ticker
	hear   func(heard)

	unread, tooLong *oftenlog.Warner // heartbeats that are passed over

	mu    sync.Mutex
	tasks []func()
	kick  context.CancelFunc // ends the poll that is waiting

	// Of the polling goroutine.
	actors   map[int32]*actor
	last     map[operation.SessionID]heard
	sessions int64          // next offset of the heartbeats
	recent   int64          // heartbeats before this offset had been sent long before this process began
	missed   operation.Time // the log had lost heartbeats before they were read, the last of them no later than this
	asked    audit          // waits for heartbeats, if its time is not 0
	asking   bool
	next     operation.Time // not before this it is asked again
}

// audit is the question whether everything was read up to an offset, the log's end at a time.
type audit struct {
	end     int64
	at      operation.Time
	reports map[int32]int64 // of heartbeats: the ends of the reports at the same time, as far as they are known
}

func newFetcher(ctx context.Context, cfg Config, admin *kadm.Client, ticks ticker, hear func(heard)) (*fetcher, error) {
	topic := cfg.Topics.Sessions()
	since := cfg.Now().Add(-max(cfg.Engine.Lease, 15*time.Second))
	offsets, err := admin.ListOffsetsAfterMilli(ctx, since.UnixMilli(), topic)
	if err != nil {
		return nil, fmt.Errorf("offsets of %s: %w", topic, err)
	}
	recent, ok := offsets.Lookup(topic, 0)
	if recent.Err != nil || !ok {
		return nil, fmt.Errorf("offsets of %s: %w", topic, errors.Join(recent.Err, errNoOffsets))
	}
	start, end, err := bounds(ctx, admin, topic, 0)
	if err != nil {
		return nil, err
	}
	from := min(recent.Offset, max(start, end-lookBack))
	limits := append(cfg.Client[:len(cfg.Client):len(cfg.Client)], kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(4<<20), kgo.KeepControlRecords())
	// A caller may request within a transaction of Kafka's, and what it takes back was never asked for. The records that end
	// transactions are kept for their offsets alone: behind the last request they would count as one that is not decided yet, and
	// among the heartbeats as one that was lost.
	client, err := kafkaclient.New(append(limits[:len(limits):len(limits)], kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	if err != nil {
		return nil, err
	}
	pulse, err := kafkaclient.New(append(limits[:len(limits):len(limits)], kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(from)}}))...)
	if err != nil {
		client.Close()
		return nil, err
	}
	return &fetcher{
		cfg: cfg, log: cfg.Logger, faults: oftenlog.New(cfg.Logger, "inputs cannot be fetched", "topic"), client: client, pulse: pulse, admin: admin, ticks: ticks, hear: hear, sessions: from, recent: recent.Offset,
		actors: make(map[int32]*actor), last: make(map[operation.SessionID]heard), kick: func() {},
		// Such a session goes on to send them.
		unread:  oftenlog.New(cfg.Logger, "heartbeat cannot be read; its session will be taken for lost if the next ones cannot either", "topic"),
		tooLong: oftenlog.New(cfg.Logger, "heartbeat is passed over: a session that may be silent for so long would keep its operations from running elsewhere; give its worker a shorter lease", "topic"),
	}, nil
}

// do runs task on the polling goroutine, soon.
func (f *fetcher) do(task func()) {
	f.mu.Lock()
	f.tasks = append(f.tasks, task)
	f.kick()
	f.mu.Unlock()
}

func (f *fetcher) run(ctx context.Context) {
	var listening sync.WaitGroup
	listening.Go(func() { f.listen(ctx) })
	defer listening.Wait()
	defer f.client.Close()
	for ctx.Err() == nil {
		f.mu.Lock()
		tasks := f.tasks
		f.tasks = nil
		poll, cancel := context.WithCancel(ctx)
		f.kick = cancel
		f.mu.Unlock()
		for _, task := range tasks {
			task()
		}
		f.settleAudit()
		fetches := f.client.PollRecords(poll, 20_000)
		f.complain(fetches)
		kafkaclient.Pace(poll, fetches)
		cancel()
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if len(p.Records) == 0 {
				return
			}
			if a := f.actors[p.Partition]; a != nil {
				next := p.Records[len(p.Records)-1].Offset + 1
				records := slices.DeleteFunc(p.Records, func(rec *kgo.Record) bool { return rec.Attrs.IsControl() })
				if a.give(p.Topic, records, next, max(p.HighWatermark-next, 0)) {
					f.client.PauseFetchPartitions(map[string][]int32{p.Topic: {p.Partition}})
				}
			}
		})
	}
}

// listen reads heartbeats, for the polling goroutine.
func (f *fetcher) listen(ctx context.Context) {
	defer f.pulse.Close()
	for ctx.Err() == nil {
		fetches := f.pulse.PollFetches(ctx)
		f.complain(fetches)
		kafkaclient.Pace(ctx, fetches)
		records, now := fetches.Records(), f.ticks.now()
		if len(records) > 0 {
			f.do(func() { f.beats(records, now) })
		}
	}
}

func (f *fetcher) complain(fetches kgo.Fetches) {
	for _, err := range fetches.Errors() {
		if !errors.Is(err.Err, context.Canceled) && !errors.Is(err.Err, kgo.ErrClientClosed) {
			f.faults.Warn(err.Topic, slog.Int("partition", int(err.Partition)), slog.Any("err", kafkaclient.Explain(err.Err)))
		}
	}
}

// lookBack is how many heartbeats a scheduler reads that were sent before it began. Those of the last seconds tell who lives. Older ones
// tell the leases of sessions that hold attempts and have not been heard since, which may be longer than Config.Engine.Lease:
// whoever sent them may come back within his own, and gets nothing new before he does.
const lookBack = 10_000

// beats reads heartbeats. One that cannot be read is reported and passed over.
func (f *fetcher) beats(records []*kgo.Record, now operation.Time) {
	for _, rec := range records {
		if rec.Offset != f.sessions {
			f.miss(rec.Offset, now)
		}
		f.sessions = rec.Offset + 1
		if rec.Attrs.IsControl() {
			continue
		}
		hb, err := schemas.DecodeHeartbeat(rec)
		if err != nil {
			f.unread.Warn(rec.Topic, slog.Int64("offset", rec.Offset), slog.Any("err", err))
			continue
		}
		if hb.Lease > schemas.MaxLease {
			f.tooLong.Warn(rec.Topic, slog.String("session", string(hb.Session)), slog.Duration("lease", hb.Lease), slog.Duration("max", schemas.MaxLease))
			continue
		}
		h := heard{at: now, offset: rec.Offset, beat: partition.Heartbeat{
			Session: hb.Session, Pool: hb.Pool, Types: hb.Types, Room: int(hb.Slots) + int(hb.Queue), Inbox: hb.Inbox,
			Lease: hb.Lease, Draining: hb.State == schemas.SessionDraining || rec.Offset < f.recent, Ended: hb.State == schemas.SessionEnded,
		}}
		// A farewell is kept, too: an actor that begins later must not wait for the session's lease.
		f.last[hb.Session] = h
		f.hear(h)
	}
	for id, h := range f.last {
		if h.at.Add(h.beat.Lease) < now {
			delete(f.last, id)
		}
	}
}

// miss hears that the log of heartbeats goes on at an offset where it was not expected to: it was trimmed, cut short or made anew
// before it was read. What is lost may have come from any session until now, and must not be taken for its silence.
func (f *fetcher) miss(offset int64, now operation.Time) {
	f.log.Warn("heartbeats were gone before they were read: every session counts as heard of now; check the retention of the topic if nobody has trimmed it",
		"topic", f.cfg.Topics.Sessions(), "expected", f.sessions, "found", offset)
	if offset < f.sessions {
		f.recent, f.asked = 0, audit{} // it was made anew, and may never come to where it was
	}
	f.sessions, f.missed = offset, now
	for id, h := range f.last {
		h.at = now
		f.last[id] = h
	}
	for _, a := range f.actors {
		a.miss(now)
	}
}

// begin routes a partition's inputs to a from its engine's positions on.
func (f *fetcher) begin(a *actor, pos partition.Positions) {
	f.do(func() {
		f.forget(a.p)
		f.actors[a.p] = a
		a.mu.Lock()
		a.fetched = pos.Reports
		a.mu.Unlock()
		for _, h := range f.last {
			a.hear(h)
		}
		a.miss(f.missed)
		at := func(offset int64) map[int32]kgo.Offset {
			return map[int32]kgo.Offset{a.p: kgo.NewOffset().At(offset)}
		}
		f.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{
			f.cfg.Topics.Requests(): at(pos.Requests),
			f.cfg.Topics.Reports():  at(pos.Reports),
			f.cfg.Topics.Signals():  at(pos.Signals),
		})
	})
}

// end stops the routing to a.
func (f *fetcher) end(a *actor) {
	f.do(func() {
		if f.actors[a.p] == a {
			f.forget(a.p)
		}
	})
}

func (f *fetcher) inputs(p int32) map[string][]int32 {
	return map[string][]int32{f.cfg.Topics.Requests(): {p}, f.cfg.Topics.Reports(): {p}, f.cfg.Topics.Signals(): {p}}
}

func (f *fetcher) forget(p int32) {
	if f.actors[p] != nil {
		delete(f.actors, p)
		f.client.RemoveConsumePartitions(f.inputs(p))
		f.client.ResumeFetchPartitions(f.inputs(p))
	}
}

// resume lets a partition's inputs be fetched again.
func (f *fetcher) resume(p int32, reports, requests bool) {
	again := map[string][]int32{}
	if reports {
		again[f.cfg.Topics.Reports()], again[f.cfg.Topics.Signals()] = []int32{p}, []int32{p}
	}
	if requests {
		again[f.cfg.Topics.Requests()] = []int32{p}
	}
	f.do(func() { f.client.ResumeFetchPartitions(again) })
}

// askEvery is the least time between two questions: actors ask for as long as they have no answer.
const askEvery = 100 * time.Millisecond

// askLimit is how long the leaders of the reports may take to say where these end. One that is away must not keep the silence of
// sessions from the partitions of the others.
const askLimit = 2 * time.Second

// askSilence finds out, off the polling goroutine, where the heartbeats' log ends now. When it is read to there, the actors
// learn that they have heard everything up to now.
func (f *fetcher) askSilence(ctx context.Context) {
	f.do(func() {
		at, known := f.ticks.now(), f.sessions
		if f.asking || at < f.next {
			return
		}
		f.asking, f.next = true, at.Add(askEvery)
		go func() {
			start, end, err := bounds(ctx, f.admin, f.cfg.Topics.Sessions(), 0)
			reports := f.reportsEnd(ctx)
			f.do(func() {
				f.asking = false
				if err != nil {
					return // whoever needs to know asks again
				}
				// When no worker is left nothing may come that would show it.
				if start > f.sessions || end < known && known <= f.sessions {
					f.miss(start, f.ticks.now())
				}
				if f.asked.at == 0 {
					f.asked = audit{end, at, reports}
				}
			})
		}()
	})
}

// reportsEnd finds out where the reports end that can be read, as far as brokers say so: of a partition that none answers for it is not
// known what was reported.
func (f *fetcher) reportsEnd(ctx context.Context) map[int32]int64 {
	topic, ends := f.cfg.Topics.Reports(), map[int32]int64{}
	list := func(ask func(context.Context, ...string) (kadm.ListedOffsets, error)) kadm.ListedOffsets {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		offsets, _ := ask(ctx, topic) // what a partition lacks shows at that partition
		return offsets
	}
	starts, committed := list(f.admin.ListStartOffsets), list(f.admin.ListCommittedOffsets)
	for p, end := range committed[topic] {
		switch start, ok := starts.Lookup(topic, p); {
		case !ok || start.Err != nil || end.Err != nil:
		case start.Offset == end.Offset:
			ends[p] = 0 // all that may be lacking is gone
		default:
			ends[p] = end.Offset
		}
	}
	return ends
}

// settleAudit tells the actors when the heartbeats that were asked about are heard.
func (f *fetcher) settleAudit() {
	if f.asked.at == 0 || f.asked.end > f.sessions {
		return
	}
	for p, a := range f.actors {
		if end, ok := f.asked.reports[p]; ok {
			a.heardThrough(audit{end: end, at: f.asked.at})
		}
	}
	f.asked = audit{}
}
