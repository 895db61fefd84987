package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/safeguard"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

// actor runs one partition's engine from one recovery to the next loss of the journal's end.
type actor struct {
	s    *Scheduler
	p    int32
	log  *slog.Logger
	seen *status

	engine *partition.Engine
	outbox *partition.Outbox
	chain  schemas.Chain
	time   pace
	opened operation.Place // of this writer's partition.opened: its name in checkpoints

	flying []appended // appended and not yet acknowledged, by place
	points checkpoints
	mark   effectsMark

	flow flow

	keys    map[operation.Cause][]byte // of commands that were decided since the last append, see remember
	burials []chan error               // dead letters that are not known to be on the log
	unsent  []appended                 // forwarded requests whose signals recovery could not tell to be sent

	wake chan struct{} // holds one token when there is something to look at

	mu       sync.Mutex
	reports  inputs // and signals: they end work that is under way
	requests inputs // begin new work
	beats    []heard
	acks     []ack
	signaled []operation.Place // whose signals are on the log
	fetched  int64             // next offset of the reports to be fetched
	audit    audit             // waits for reports, if its time is not 0
	missed   operation.Time

	spare struct { // the other halves of double buffers
		beats []heard
		acks  []ack
	}
}

// appended is what an actor must know of an event until and when it is committed.
type appended struct {
	kind    operation.EventKind
	org     string
	id      operation.ID
	session operation.SessionID
	place   operation.Place
	cause   operation.Cause
	to      int32
	body    []byte
}

type ack struct {
	offset int64
	err    error
}

func newActor(s *Scheduler, p int32, seen *status, log *slog.Logger) *actor {
	return &actor{s: s, p: p, log: log, seen: seen, wake: make(chan struct{}, 1), keys: map[operation.Cause][]byte{}}
}

// errDisplaced ends an actor whose append did not land where it was decided for: another writer was faster.
var errDisplaced = errors.New("another writer has appended to the journal")

const (
	resendEvery = time.Second
	// closing bounds the hand-over of a partition: appends that are not acknowledged by then are read by the next owner.
	closing = 2 * time.Second
)

// run recovers and works until ctx ends (nil) or the journal's end is not known any more.
func (a *actor) run(ctx context.Context) error {
	if n := a.s.cfg.Engine.Partitions; int(a.p) >= n {
		return fmt.Errorf("expected %s to have %d partitions, as the journal has, but somebody has added more: nobody decides what stands on this one, the others go on; look into the runbook before you restart a scheduler, which would not start", a.s.cfg.Topics.Requests(), n)
	}
	began := time.Now()
	if err := a.recover(ctx); err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	took := time.Since(began)
	a.s.counters.Recoveries.Add(1)
	a.s.counters.Recovering.Add(int64(took))
	a.log.Info("partition recovered", "live", a.engine.Live(), "end", int64(a.engine.End()), "took", took.Round(time.Millisecond))

	a.time = pace{last: a.engine.Now(), at: a.s.ticks.now()}
	a.engine.Open(a.s.cfg.Owner, a.now())
	a.opened = a.engine.End() - 1
	a.append()
	for len(a.flying) > 0 { // a new owner learns here whether it knows the end
		if err := a.wait(ctx, nil); err != nil {
			return stopOr(ctx, err)
		}
		if err := a.acknowledge(); err != nil {
			return err
		}
	}
	a.resumeEffects()
	a.engine.Tick(a.s.ticks.now())
	a.engine.Grace(a.s.ticks.now())
	a.s.fetch.begin(a, a.engine.Positions())
	defer a.s.fetch.end(a)
	a.seen.active.Store(true)
	defer a.seen.active.Store(false)
	return a.work(ctx)
}

// pace is the clock of a partition, whose times never go back. It follows the wall clock. When that is behind, because the last owner's
// was ahead or somebody has set it, the partition's time goes on at half the speed until they meet: it must not stand still,
// or whatever is to happen in a second would happen in as many minutes as the clocks differ.
type pace struct{ last, at operation.Time }

func (p *pace) now(wall, tick operation.Time) operation.Time {
	p.last, p.at = max(wall, p.last+(tick-p.at)/2), tick
	return p.last
}

// now is the partition's time.
func (a *actor) now() operation.Time { return a.time.now(a.s.cfg.now(), a.s.ticks.now()) }

func stopOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // to be stopped is no failure
	}
	return err
}

// work is the actor's loop: acknowledgements and their effects first, then inputs, then what follows from the state.
func (a *actor) work(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	resend := a.s.ticks.now().Add(resendEvery)
	cause := operation.Cause{Topic: "clock"}
	for {
		if err := a.acknowledge(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return a.leave(ctx)
		}
		t, tick := a.now(), a.s.ticks.now()
		a.engine.Tick(tick)
		quiet := a.points.due(a, t)
		if quiet && len(a.flying) == 0 {
			a.points.write(a, t)
			quiet = false
		}
		if !quiet && len(a.flying) < a.s.cfg.InFlightMax {
			a.takeBeats(tick, &cause)
			if err := a.takeInputs(ctx, t, &cause); err != nil {
				return stopOr(ctx, err)
			}
			a.engine.Settle(cause, t)
			cause = operation.Cause{Topic: "clock"}
			a.append()
		}
		if tick >= resend {
			a.offerAgain(tick)
			resend = tick.Add(resendEvery)
		}
		a.seen.show(a)

		if a.engine.Silent(tick) {
			a.s.fetch.askSilence(ctx)
		}
		next := resend
		if a.idle() { // nothing is open: wake only for what the engine or the checkpoints know
			next = 0
		}
		next = earliest(next, a.engine.NextLapse())
		rest := time.Minute
		if next != 0 {
			rest = next.Sub(tick)
		}
		if due := earliest(a.engine.NextDue(), a.points.next(a)); due != 0 {
			rest = min(rest, due.Sub(t))
		}
		// A lease that has run out is confirmed by the fetcher, which wakes the actor: no need to spin meanwhile.
		if rest <= 0 {
			rest = 20 * time.Millisecond
		}
		if a.flow.since != 0 { // nobody may have anything to report any more, and requests wait
			rest = min(rest, holdLook)
		}
		timer.Reset(max(rest, time.Millisecond))
		if err := a.wait(ctx, timer.C); err != nil {
			return a.leave(ctx)
		}
	}
}

func earliest(a, b operation.Time) operation.Time {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// idle says whether no attempt is open, so that nothing has to be offered again.
func (a *actor) idle() bool { return a.outbox.Len() == 0 }

// wait returns when there is something to look at or it is time, or an error when ctx has ended.
func (a *actor) wait(ctx context.Context, timer <-chan time.Time) error {
	select {
	case <-a.wake:
		return nil
	case <-timer:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *actor) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// give takes fetched inputs, the offset after them, and how many records were on the log behind them then. It returns true when the
// topic's partition must not be fetched until fetcher.resume. The fetcher calls it.
func (a *actor) give(topic string, records []*kgo.Record, next, beyond int64) (pause bool) {
	a.mu.Lock()
	q := &a.reports
	switch topic {
	case a.s.cfg.Topics.Requests():
		q = &a.requests
	case a.s.cfg.Topics.Reports():
		a.fetched = next
	}
	pause = q.add(records, beyond, a.s.cfg.QueueMax)
	a.mu.Unlock()
	a.signal()
	return pause
}

func (a *actor) hear(h heard) {
	a.mu.Lock()
	a.beats = append(a.beats, h)
	a.mu.Unlock()
	a.signal()
}

// miss hears that heartbeats were lost before they were read, the last of them no later than t.
func (a *actor) miss(t operation.Time) {
	a.mu.Lock()
	a.missed = max(a.missed, t)
	a.mu.Unlock()
}

// heardThrough hears that all heartbeats were heard that were on the log at a time. What the sessions have reported until then is to be
// decided first. One at a time: those that come always with more to read would never be done. One with less to read takes the place of one
// that may never be done, because the log has lost reports.
func (a *actor) heardThrough(asked audit) {
	a.mu.Lock()
	if a.audit.at == 0 || asked.end <= a.audit.end {
		a.audit = asked
	}
	a.mu.Unlock()
	a.signal()
}

func (a *actor) acked(rec *kgo.Record, err error) {
	a.mu.Lock()
	a.acks = append(a.acks, ack{rec.Offset, err})
	first := len(a.acks) == 1
	a.mu.Unlock()
	if first {
		a.signal()
	}
}

func (a *actor) takeBeats(t operation.Time, cause *operation.Cause) {
	a.mu.Lock()
	beats := a.beats
	a.beats, a.spare.beats = a.spare.beats[:0], nil
	missed := a.missed
	a.missed = 0
	through := operation.Time(0)
	if drained := a.fetched >= a.audit.end && len(a.reports.waiting) == 0; drained || a.engine.Positions().Reports >= a.audit.end {
		through, a.audit = a.audit.at, audit{}
	}
	a.mu.Unlock()
	for i := range beats {
		a.engine.Hear(&beats[i].beat, beats[i].at)
		*cause = operation.Cause{Topic: schemas.TopicSessions, Offset: beats[i].offset}
	}
	if missed != 0 { // after those that were heard before it, which may have waited for long
		a.engine.Missed(missed)
	}
	if through != 0 { // only after the heartbeats themselves, which were queued before it
		a.engine.HeardThrough(min(through, t))
	}
	a.spare.beats = beats[:0]
}

// append seals and sends the events that were decided since the last call.
func (a *actor) append() {
	events := a.engine.Take()
	defer clear(a.keys)
	if len(events) == 0 {
		return
	}
	a.points.grew(len(events))
	a.s.counters.Appended.Add(uint64(len(events)))
	place := a.engine.End() - operation.Place(len(events))
	topic := a.s.cfg.Topics.Journal()
	for i := range events {
		ev := &events[i]
		rec := schemas.EncodeEvent(ev, a.key(ev, a.engine.Of(i)), a.p)
		rec.Topic, rec.Partition = topic, a.p
		a.chain.Seal(rec)
		if ev.Kind == operation.Dispatched {
			a.flow.handed++
		}
		a.flying = append(a.flying, appended{
			kind: ev.Kind, org: ev.Org, id: ev.ID, session: ev.Session, place: place + operation.Place(i),
			cause: ev.Cause, to: ev.To, body: ev.Body,
		})
		a.s.out.Produce(a.s.ctx, rec, a.acked)
		if safeguard.Early {
			a.commit(&a.flying[len(a.flying)-1])
		}
	}
}

// key is the partition key that the event's record carries: that of its operation's request. When the engine does not know the operation
// (any more), it is the one under which the command came.
func (a *actor) key(ev *operation.Event, of *operation.Request) []byte {
	if of != nil {
		return []byte(of.Key())
	}
	if ev.Org == "" {
		return nil
	}
	if key, ok := a.keys[ev.Cause]; ok {
		return key
	}
	return []byte(operation.Key(ev.Org, "", "", ev.ID))
}

// acknowledge takes the broker's answers. Each must be for the place that the event was decided for.
func (a *actor) acknowledge() error {
	a.mu.Lock()
	acks := a.acks
	a.acks, a.spare.acks = a.spare.acks[:0], nil
	signaled := a.signaled
	a.signaled = nil
	a.mu.Unlock()
	for _, place := range signaled {
		delete(a.mark.unsent, place)
	}
	defer func() { a.spare.acks = acks[:0] }()
	for i, got := range acks {
		ev := &a.flying[i]
		switch {
		case got.err != nil && !safeguard.NoReread:
			return fmt.Errorf("what became of the append to %s for place %d is not known: %w", a.s.cfg.Topics.Journal(), ev.place, kafkaclient.Explain(got.err))
		case got.err == nil && got.offset != int64(ev.place) && !safeguard.NoPlace:
			a.s.counters.Displaced.Add(1)
			return fmt.Errorf("%w: an event for place %d landed at %d", errDisplaced, ev.place, got.offset)
		}
		if !safeguard.Early {
			a.commit(ev)
		}
	}
	a.flying = a.flying[:copy(a.flying, a.flying[len(acks):])]
	return nil
}

// leave hands the partition over: what is in flight is waited for, within a bound, and a last checkpoint makes the next
// owner's start short. Nothing depends on either.
func (a *actor) leave(ctx context.Context) error {
	a.s.fetch.end(a)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
	defer cancel()
	for len(a.flying) > 0 {
		if a.wait(grace, nil) != nil {
			a.log.Warn("the partition was left while no broker had said what became of its last appends; nothing is lost: its next owner reads it", "appends", len(a.flying))
			return nil
		}
		if err := a.acknowledge(); err != nil {
			a.log.Warn("the partition was left before its last appends were known; nothing is lost: its next owner reads what became of them", "err", err)
			return nil
		}
	}
	if a.points.dirty() {
		a.points.write(a, a.now())
		a.points.flush(grace, a)
	}
	return nil
}
