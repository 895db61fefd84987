package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/safeguard"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// session is one life: an id, an inbox, a lease, and the attempts that were given to it. It has a client of its own, so
// that what its client still holds when the lease is lost is thrown away with it.
type session struct {
	w      *Worker
	id     operation.SessionID
	inbox  int32
	client *kafkaclient.Client
	base   context.Context //nolint:containedctx // the values that handlers' contexts inherit; it never ends

	unsent  atomic.Int64  // reports that are not on the log yet
	changed chan struct{} // signal: something that leave waits for may have become true
	overC   chan struct{} // closed when over is set

	mu       sync.Mutex
	memory   *memory
	queue    []*attempt // wait for a slot, oldest first
	busy     int        // handlers that have not returned
	stuck    int        // of those, the ones whose attempts were reported without them
	starts   starts
	dues     dues
	stopping bool
	over     bool // no handler may start, and nothing may be reported any more

	timer *time.Timer
	armed time.Time // when it fires

	lease    since // when the last acknowledged heartbeat was sent
	beating  bool  // a heartbeat is on its way
	beatNext time.Time
	sequence int64
	farewell schemas.SessionState
}

// since is an instant that tells how long ago it was by the clock that says more: the monotonic one stands still while the
// machine is suspended, the other one can be set.
type since struct{ at, wall time.Time }

func (s since) elapsed(now, wall time.Time) time.Duration {
	return max(now.Sub(s.at), time.Duration(wall.UnixNano()-s.wall.UnixNano()))
}

// silent is how long ago the last acknowledged heartbeat was sent. The caller holds mu.
func (s *session) silent(now time.Time) time.Duration { return s.lease.elapsed(now, s.w.wall(now)) }

// open begins a session: it knows where its inbox ends before anybody can send to it.
func (w *Worker) open(ctx context.Context) (*session, error) {
	s := &session{
		w: w, id: operation.SessionID(uuid.NewString()), memory: newMemory(),
		base:    context.WithoutCancel(ctx),
		changed: make(chan struct{}, 1), overC: make(chan struct{}),
	}
	end, err := s.findInbox(ctx)
	if err != nil {
		return nil, err
	}
	inboxes := w.cfg.Topics.Inboxes()
	s.client, err = kafkaclient.New(w.clientOpts(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{inboxes: {s.inbox: kgo.NewOffset().At(end)}}),
		// Only a log that was cut behind our back leads here. What stood there is offered again; what is read twice is known.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)...)
	if err != nil {
		return nil, fmt.Errorf("expected a client for the session, but its options do not fit: %w", err)
	}
	return s, nil
}

// findInbox chooses the partition of the inboxes and returns its end.
func (s *session) findInbox(ctx context.Context) (int64, error) {
	client, err := kafkaclient.Within(ctx, s.w.clientOpts()...)
	if err != nil {
		return 0, fmt.Errorf("expected a client, but its options do not fit: %w", err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	admin, topic := kadm.NewClient(client.Client), s.w.cfg.Topics.Inboxes()
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("expected the ends of topic %s, but: %w", topic, err)
	}
	if missing, ok := ends[topic][-1]; ok {
		return 0, fmt.Errorf("expected the topics of the installation, but somebody has to create %s: %w", topic, missing.Err)
	}
	n := int32(len(ends[topic]))
	if n == 0 {
		return 0, fmt.Errorf("expected topic %s to have partitions, but it has none: create the topics of the installation", topic)
	}
	s.inbox = schemas.PartitionFor([]byte(s.id), n)
	end, ok := ends.Lookup(topic, s.inbox)
	if !ok {
		return 0, fmt.Errorf("expected the end of topic %s, partition %d, but it is not among the %d that were found", topic, s.inbox, n)
	}
	if end.Err != nil {
		return 0, fmt.Errorf("expected the end of topic %s, partition %d, but: %w", topic, s.inbox, end.Err)
	}
	return end.Offset, nil
}

// run lives until ctx ends, which it answers with a clean stop, or until the lease is lost.
func (s *session) run(ctx context.Context) {
	now := time.Now()
	s.mu.Lock()
	s.lease = since{now, s.w.wall(now)} // nobody can have read the first heartbeat before it was sent
	s.armed = now
	s.timer = time.AfterFunc(0, s.tick)
	s.mu.Unlock()

	polling, stop := context.WithCancel(s.base)
	var polled sync.WaitGroup
	polled.Go(func() { s.poll(polling) })

	select {
	case <-ctx.Done():
		s.leave()
	case <-s.overC:
	}
	s.end(false)
	stop()
	s.client.Close()
	polled.Wait()
	if ctx.Err() != nil {
		return // leave has waited for the handlers
	}
	s.detach()
}

// linger is how long a session that drains stays at least, for the items that are under way to it.
const linger = 300 * time.Millisecond

// leave is the clean stop: give back what has not begun, let the rest finish, say goodbye. It ends within StopGrace,
// ReturnGrace and twice FlushLimit.
func (s *session) leave() {
	now := time.Now()
	var out []*answer
	s.mu.Lock()
	s.stopping = true
	for _, a := range s.queue {
		out = append(out, s.conclude(a, a.command(operation.Return)))
	}
	s.clearQueue()
	s.farewell = schemas.SessionDraining
	s.beatNext = now
	s.arm(now)
	if s.mayReport(nil, now) != nil {
		out = nil
	}
	s.mu.Unlock()
	s.w.counters.Returned.Add(uint64(len(out)))
	for _, r := range out {
		s.send(r, now)
	}

	idle := func() bool { return s.busy-s.stuck == 0 }
	if !s.await(s.w.cfg.StopGrace, idle) {
		s.interrupt(ErrStopping)
		if !s.await(s.w.cfg.ReturnGrace, idle) && !s.isOver() {
			s.mu.Lock()
			n := s.busy - s.stuck
			s.mu.Unlock()
			s.w.log.Warn("handlers did not return when the worker stopped; their attempts count as lost when the session has ended", "session", s.id, "handlers", n)
		}
	}
	// What schedulers had sent before they heard of the draining is still to come, and is given back: after the goodbye it
	// could only be lost.
	s.await(linger-time.Since(now), func() bool { return false })
	if !s.await(s.w.cfg.FlushLimit, func() bool { return s.unsent.Load() == 0 }) {
		s.w.log.Warn("the worker stops before the brokers have taken all reports; nothing is lost: attempts whose reports are missing count as lost when the lease has run out, and run again", "session", s.id, "reports", s.unsent.Load())
		return
	}
	s.mu.Lock()
	s.farewell = schemas.SessionEnded
	s.beatNext = now
	s.arm(now)
	s.mu.Unlock()
	if !s.await(s.w.cfg.FlushLimit, func() bool { return s.farewell == goneState }) {
		s.w.log.Warn("the worker could not say that its session has ended; nothing is lost: all its attempts are reported, and its lease runs out", "session", s.id)
	}
}

// goneState is the farewell of a session whose last heartbeat is on the log.
const goneState = schemas.SessionEnded + 1

// await waits until the condition, which is asked under the lock, holds. It is false when the time is up or the session over.
func (s *session) await(limit time.Duration, condition func() bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		s.mu.Lock()
		ok := condition()
		s.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-s.changed:
		case <-s.overC:
			return false
		case <-timer.C:
			return false
		}
	}
}

func (s *session) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// detach waits for the handlers of a session that is over, but not for ever: those that ignore their context go on
// holding a slot of the worker.
func (s *session) detach() {
	timer := time.NewTimer(s.w.cfg.ReturnGrace)
	defer timer.Stop()
	for {
		s.mu.Lock()
		busy := s.busy
		s.mu.Unlock()
		if busy == 0 {
			return
		}
		select {
		case <-s.changed:
			continue
		case <-timer.C:
		}
		break
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// From here on finished handlers count down w.detached instead of busy.
	s.w.detached.Add(int64(s.busy))
	s.w.counters.Stuck.Add(int64(s.busy - s.stuck))
	s.busy = -1
}

// end makes the session over: contexts end, and nothing is started or reported any more. lost says that the lease is why.
func (s *session) end(lost bool) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over = true
	close(s.overC)
	if s.timer != nil {
		s.timer.Stop()
	}
	s.clearQueue()
	var cancels []context.CancelCauseFunc
	for _, a := range s.memory.running {
		if a.state == running {
			cancels = append(cancels, a.cancel)
			a.cause = ErrLeaseLost
		}
		a.state = ended
	}
	s.starts, s.dues = starts{}, nil
	s.mu.Unlock()
	if lost {
		s.w.counters.LeasesLost.Add(1)
		s.w.log.Error("the lease of the session is lost: its handlers are canceled, and a new session begins", "session", s.id, "lease", s.w.cfg.Lease, "handlers", len(cancels))
	}
	for _, cancel := range cancels {
		cancel(ErrLeaseLost)
	}
}

func (s *session) isOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// interrupt ends the contexts of all handlers.
func (s *session) interrupt(cause error) {
	var cancels []context.CancelCauseFunc
	s.mu.Lock()
	for _, a := range s.memory.running {
		if a.state == running && a.cause == nil {
			a.cause = cause
			cancels = append(cancels, a.cancel)
		}
	}
	s.mu.Unlock()
	for _, cancel := range cancels {
		cancel(cause)
	}
}

// mayReport says whether a may be reported now; nil stands for any attempt. The caller holds mu. A session whose lease has
// run out unnoticed ends here.
func (s *session) mayReport(a *attempt, now time.Time) error {
	switch {
	case s.over:
		return ErrLeaseLost
	case s.silent(now) >= s.w.cfg.Lease && !safeguard.NoFence:
		s.arm(now) // tick ends the session
		return ErrLeaseLost
	case a != nil && a.state == ended:
		return errEnded
	}
	return nil
}

// mayBegin says whether the handler of a may still be called. It got its slot on another goroutine, and between that and the handler's first
// line the process may have stood still until somebody else had the attempt.
func (s *session) mayBegin(a *attempt) bool {
	s.mu.Lock()
	err := s.mayReport(a, time.Now())
	s.mu.Unlock()
	if errors.Is(err, ErrLeaseLost) {
		s.end(true) // at once: nothing may be said of what was not begun
	}
	return err == nil
}

func (s *session) stillMayReport() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mayReport(nil, time.Now())
}

// poll reads the inbox.
func (s *session) poll(ctx context.Context) {
	for {
		fetches := s.client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			// The client goes on by itself; should it fail for longer, the heartbeats will, too.
			s.w.inboxFails.Warn(topic, slog.Int("partition", int(partition)), slog.Any("err", kafkaclient.Explain(err)))
		})
		fetches.EachRecord(s.take)
		kafkaclient.Pace(ctx, fetches)
	}
}

// take handles one record of the inbox.
func (s *session) take(rec *kgo.Record) {
	if string(rec.Key) != string(s.id) {
		return
	}
	item, stop, err := schemas.DecodeInbox(rec)
	switch {
	case err != nil:
		// Whoever wrote it offers the work again, and gives it to another session when this one never answers.
		s.w.log.Error("inbox record cannot be read and is passed over", "topic", rec.Topic, "partition", rec.Partition, "offset", rec.Offset, "err", err)
	case stop != nil:
		s.halt(stop)
	default:
		s.offer(item)
	}
}

// offer takes a work item: the one place where attempts begin.
func (s *session) offer(item *schemas.Item) {
	at := spot{item.Partition, item.Place}
	now := time.Now()
	s.mu.Lock()
	if s.mayReport(nil, now) != nil {
		s.mu.Unlock()
		return
	}
	verdict, a := s.memory.judge(at)
	switch verdict {
	case isRefused:
		s.mu.Unlock()
		s.w.counters.Refused.Add(1)
		s.w.itemsRefused.Warn(s.w.cfg.Topics.Inboxes(), slog.Int("of", int(item.Partition)), slog.Int64("place", int64(item.Place)), slog.String("operation_id", string(item.ID)))
		return
	case isRunning:
		r := s.repeatStart(a)
		s.mu.Unlock()
		s.w.counters.Repeated.Add(1)
		if r != nil {
			s.send(r, now)
		}
		return
	case isEnded:
		r := s.memory.answer(at)
		s.mu.Unlock()
		s.w.counters.Repeated.Add(1)
		if r == nil {
			s.forgotten(at, item, now)
			return
		}
		s.repeat(r, now)
		return
	}
	s.memory.raise(item.Partition, item.Low)
	a = s.newAttempt(at, item)
	s.memory.begin(at, a)
	var returned *answer
	switch {
	case s.stopping || s.w.routes[a.op.Type] == nil:
		returned = s.conclude(a, a.command(operation.Return))
	case s.free() > 0 && len(s.queue) == 0:
		ctx := s.grant(a, now)
		s.mu.Unlock()
		s.w.routes.emit(ctx, a)
		return
	case len(s.queue) < s.w.queueBound():
		a.queuedAt = now
		s.queue = append(s.queue, a)
		s.w.counters.Queued.Add(1)
		if len(s.queue) == 1 {
			s.arm(now.Add(s.w.cfg.Patience))
		}
	default:
		returned = s.conclude(a, a.command(operation.Return))
	}
	s.mu.Unlock()
	if returned != nil {
		s.w.counters.Returned.Add(1)
		s.send(returned, now)
	}
}

// forgotten answers for an attempt that has ended, when it is no longer known how. Its report was on the log before, so who has that refuses
// this one. For a scheduler that has it not, because the log has lost it, the attempt would be open for as long as the session lives.
func (s *session) forgotten(at spot, item *schemas.Item, now time.Time) {
	if s.unsent.Load() > 0 {
		return // its report may be among those; who needs an answer asks again
	}
	s.send(&answer{session: s, at: at, key: []byte(item.Request.Key()), command: operation.Command{
		Kind: operation.Return, Org: item.Org, ID: item.ID, Attempt: item.Attempt, Session: s.id,
	}}, now)
}

func (s *session) newAttempt(at spot, item *schemas.Item) *attempt {
	q := item.Request
	a := &attempt{session: s, at: at, key: []byte(q.Key()), limit: q.TimeLimit}
	if a.limit <= 0 {
		a.limit = s.w.cfg.limitOf(q.Type)
	}
	a.op = Operation{
		Organization: item.Org, ID: item.ID, Type: q.Type, Name: q.Name, Attempt: item.Attempt, Failures: item.Failures,
		Data: q.Data, Checkpoint: item.Carry, Request: q, reporter: a,
	}
	return a
}

// free is how many handlers may start. The caller holds mu.
func (s *session) free() int { return s.w.cfg.Slots - s.busy - int(s.w.detached.Load()) }

// grant gives a a slot. The caller holds mu and has checked the lease.
func (s *session) grant(a *attempt, now time.Time) context.Context {
	s.busy++
	s.w.counters.Running.Add(1)
	a.state, a.startedAt, a.began, a.deadline = running, now, operation.TimeOf(s.w.wall(now)), now.Add(a.limit)
	s.starts.push(a)
	due := now.Add(announceAfter)
	if a.deadline.Before(due) {
		s.dues.set(a, a.deadline)
		due = a.deadline
	}
	s.arm(due)
	inner, cancel := context.WithCancelCause(s.base)
	a.cancel = cancel
	return &handlerContext{Context: inner, attempt: a, deadline: a.deadline}
}

// conclude enters a as ended by the report c. The caller holds mu, and sends what it returns.
func (s *session) conclude(a *attempt, c operation.Command) *answer {
	a.state = ended
	s.starts.remove(a)
	s.dues.remove(a)
	r := &answer{session: s, at: a.at, key: a.key, command: c}
	s.memory.end(a.at, r)
	return r
}

// repeatStart tells a scheduler that asks again that the attempt is here. One that waits in the queue is not reported:
// it starts, or is given back, before long.
func (s *session) repeatStart(a *attempt) *answer {
	if a.state != running {
		return nil
	}
	return &answer{session: s, at: a.at, key: a.key, command: a.command(operation.Start)}
}

// finish hears that the handler of a has returned.
func (s *session) finish(a *attempt, err error) {
	s.w.counters.Running.Add(-1)
	now := time.Now()
	s.mu.Lock()
	if s.busy < 0 { // detached
		s.mu.Unlock()
		s.w.counters.Stuck.Add(-1)
		s.w.detached.Add(-1)
		s.w.fill()
		return
	}
	s.busy--
	if a.abandoned {
		s.stuck--
		s.w.counters.Stuck.Add(-1)
	}
	var progress, last *answer
	if s.mayReport(a, now) == nil {
		if a.progress != nil {
			progress = &answer{session: s, at: a.at, key: a.key, command: a.progressed(a.progress)}
		}
		last = s.conclude(a, a.end(err, a.cause))
	}
	next, ctx := s.next(now)
	if s.stopping || s.over {
		s.signal()
	}
	s.mu.Unlock()
	a.cancel(nil)
	if progress != nil {
		s.send(progress, now)
	}
	if last != nil {
		s.w.counters.count(&last.command)
		s.send(last, now)
	}
	if next != nil {
		s.w.routes.emit(ctx, next)
	}
}

// next takes the oldest attempt from the queue when a slot is free. The caller holds mu.
func (s *session) next(now time.Time) (*attempt, context.Context) {
	if len(s.queue) == 0 || s.free() <= 0 || s.mayReport(nil, now) != nil {
		return nil, nil
	}
	a := s.queue[0]
	s.unqueue(0)
	return a, s.grant(a, now)
}

// unqueue removes the i-th of the queue. The caller holds mu.
func (s *session) unqueue(i int) {
	if i == 0 {
		s.queue[0] = nil
		s.queue = s.queue[1:]
	} else {
		s.queue = append(s.queue[:i], s.queue[i+1:]...)
	}
	s.w.counters.Queued.Add(-1)
}

func (s *session) clearQueue() {
	s.w.counters.Queued.Add(-int64(len(s.queue)))
	s.queue = nil
}

// halt is a cancel or a pause.
func (s *session) halt(stop *schemas.Stop) {
	at := spot{stop.Partition, stop.Place}
	// A pause of what has not begun gives it back, and what is given back while it is pausing is paused.
	kind, cause := operation.Stop, ErrCancelRequested
	if stop.Pause {
		kind, cause = operation.Return, ErrPauseRequested
	}
	now := time.Now()
	s.mu.Lock()
	if s.mayReport(nil, now) != nil {
		s.mu.Unlock()
		return
	}
	var r, again *answer
	var cancel context.CancelCauseFunc
	verdict, a := s.memory.judge(at)
	switch {
	case verdict == isRefused:
		s.w.counters.Refused.Add(1)
	case verdict == isEnded:
		s.w.counters.Repeated.Add(1)
		again = s.memory.answer(at)
	case verdict == isNew:
		// The item is late, or was given up on its way. It must not begin when it arrives.
		r = &answer{session: s, at: at, key: []byte(operation.Key(stop.Org, "", "", stop.ID)), command: operation.Command{
			Kind: kind, Org: stop.Org, ID: stop.ID, Attempt: stop.Attempt, Session: s.id,
		}}
		s.memory.end(at, r)
	case a.state == queued:
		for i := range s.queue {
			if s.queue[i] == a {
				s.unqueue(i)
				break
			}
		}
		r = s.conclude(a, a.command(kind))
	case a.cause == nil:
		a.cause, cancel = cause, a.cancel
	}
	s.mu.Unlock()
	if r != nil {
		s.send(r, now)
	}
	if again != nil {
		s.repeat(again, now)
	}
	if cancel != nil {
		cancel(cause)
	}
}

// arm makes tick run at due or before. The caller holds mu.
func (s *session) arm(due time.Time) {
	if !due.Before(s.armed) || s.over {
		return
	}
	s.armed = due
	s.timer.Reset(time.Until(due))
}

// tick does what is due. It never waits: everything that it sends goes to the client's buffer.
func (s *session) tick() {
	now := time.Now()
	var send []*answer
	var cancels []context.CancelCauseFunc
	var given []*attempt
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	if s.silent(now) >= s.w.cfg.Lease && !safeguard.NoFence {
		s.mu.Unlock()
		s.end(true)
		return
	}
	for a := s.starts.first; a != nil && !a.startedAt.Add(announceAfter).After(now); a = s.starts.first {
		s.starts.remove(a)
		s.dues.set(a, a.nextDue())
		send = append(send, &answer{session: s, at: a.at, key: a.key, command: a.command(operation.Start)})
	}
	for len(s.dues) > 0 && !s.dues[0].due.After(now) {
		a := s.dues[0]
		if a.progress != nil && !a.progressedAt.Add(progressEvery).After(now) {
			c := a.progressed(a.progress)
			a.progress, a.progressedAt = nil, now
			send = append(send, &answer{session: s, at: a.at, key: a.key, command: c})
		}
		switch {
		case !a.abandonAt.IsZero() && !a.abandonAt.After(now):
			send = append(send, s.abandon(a))
			given = append(given, a)
			continue
		case a.abandonAt.IsZero() && !a.deadline.After(now):
			a.abandonAt = now.Add(s.w.cfg.ReturnGrace)
			if a.cause == nil {
				a.cause = ErrTimeLimit
				cancels = append(cancels, a.cancel)
			}
		}
		s.dues.set(a, a.nextDue())
	}
	for len(s.queue) > 0 && !s.queue[0].queuedAt.Add(s.w.cfg.Patience).After(now) {
		a := s.queue[0]
		s.unqueue(0)
		send = append(send, s.conclude(a, a.command(operation.Return)))
		s.w.counters.Returned.Add(1)
	}
	beat := !s.beating && !s.beatNext.After(now) && s.farewell != goneState
	var hb *schemas.Heartbeat
	state := s.farewell
	if beat {
		hb = s.heartbeat(now)
	}
	s.rearm(now)
	s.mu.Unlock()
	if beat {
		s.beat(hb, state, now)
	}
	for _, cancel := range cancels {
		cancel(ErrTimeLimit)
	}
	for _, r := range send {
		s.send(r, now)
	}
	for _, a := range given {
		s.w.log.Warn("handler ignores the end of its context: its attempt is reported without it, and its slot stays taken until it returns",
			"operation_id", a.op.ID, "attempt", a.op.Attempt, "type", a.op.Type, "limit", a.limit)
	}
}

// abandon reports an attempt whose handler has ignored the end of its context for too long. It keeps its slot until it
// returns, for it still uses what a slot stands for. The caller holds mu.
func (s *session) abandon(a *attempt) *answer {
	s.stuck++
	s.w.counters.Stuck.Add(1)
	a.abandoned = true
	r := s.conclude(a, a.end(fmt.Errorf("the handler did not return within %s after its context had ended", s.w.cfg.ReturnGrace), a.cause))
	s.w.counters.count(&r.command)
	return r
}

// rearm sets the timer to the earliest of all due times. The caller holds mu.
func (s *session) rearm(now time.Time) {
	due := s.lease.at.Add(s.w.cfg.Lease)
	if safeguard.NoFence {
		due = now.Add(s.w.cfg.Lease)
	}
	earlier := func(t time.Time) {
		if t.Before(due) {
			due = t
		}
	}
	if !s.beating && s.farewell != goneState {
		earlier(s.beatNext)
	}
	if a := s.starts.first; a != nil {
		earlier(a.startedAt.Add(announceAfter))
	}
	if len(s.dues) > 0 {
		earlier(s.dues[0].due)
	}
	if len(s.queue) > 0 {
		earlier(s.queue[0].queuedAt.Add(s.w.cfg.Patience))
	}
	s.armed = due
	s.timer.Reset(max(due.Sub(now), 0))
}

// heartbeat makes the next heartbeat. The caller holds mu.
func (s *session) heartbeat(now time.Time) *schemas.Heartbeat {
	s.beating = true
	s.beatNext = now.Add(s.w.beatEvery)
	s.sequence++
	hb := s.w.heartbeat(s.id)
	hb.Inbox, hb.State, hb.Sequence = s.inbox, s.farewell, s.sequence
	hb.Slots = max(hb.Slots-int32(s.stuck)-int32(s.w.detached.Load()), 0)
	if hb.Slots == 0 && hb.State == schemas.SessionRunning {
		hb.State = schemas.SessionDraining // nothing could start here, so nothing should come
	}
	return hb
}

// beat sends a heartbeat that tells the farewell's state; now is from before. There is never more than one on its way, so that a log that is out of reach
// finds one at most when it is back.
func (s *session) beat(hb *schemas.Heartbeat, state schemas.SessionState, now time.Time) {
	rec := schemas.EncodeHeartbeat(s.w.cfg.Topics, hb)
	wall := s.w.wall(now)
	rec.Timestamp = wall
	// detached: the client ends with the session, and the heartbeat with it.
	s.client.TryProduce(context.Background(), rec, func(rec *kgo.Record, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.beating = false
		if s.over {
			return
		}
		if err != nil {
			s.beatNext = time.Now().Add(min(resendAfter, s.w.beatEvery))
			if !errors.Is(err, kgo.ErrClientClosed) {
				s.w.heartbeatsFail.Warn(rec.Topic, slog.String("session", string(s.id)), slog.Any("err", kafkaclient.Explain(err)))
			}
		} else {
			s.w.counters.Heartbeats.Add(1)
			s.lease = since{now, wall}
			if state == schemas.SessionEnded {
				s.farewell = goneState
				s.signal()
			} else if state != s.farewell {
				s.beatNext = time.Now() // it has changed meanwhile, and should be known at once
			}
		}
		s.arm(s.beatNext)
	})
}
