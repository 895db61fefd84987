package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

// inputs are records that wait to be decided, in the order in which they were fetched; the actor's mutex guards it.
type inputs struct {
	waiting []*kgo.Record
	spare   []*kgo.Record // the other half of the double buffer
	bytes   int           // of keys and values that wait
	paused  bool          // too much waits: the topic's partition is not fetched
	beyond  int64         // records that were on the log behind the last one fetched, when that was fetched
}

// queueBytes bounds what the inputs of one partition and kind take of memory while they wait, beside one fetch.
const queueBytes = 32 << 20

// lag is how many records are to be decided, as far as is known.
func (q *inputs) lag() int64 { return int64(len(q.waiting)) + q.beyond }

// add takes fetched records, and how many were on the log behind them then. It returns true when no more are to be fetched for now.
func (q *inputs) add(records []*kgo.Record, beyond int64, queueMax int) (pause bool) {
	q.waiting = append(q.waiting, records...)
	q.beyond = beyond
	for _, rec := range records {
		q.bytes += len(rec.Key) + len(rec.Value)
	}
	if len(q.waiting) > queueMax || q.bytes > queueBytes {
		q.paused, pause = true, true
	}
	return pause
}

// take removes the first n at most. It returns resume when fetching may go on, and more when some are left.
func (q *inputs) take(n, queueMax int) (records []*kgo.Record, resume, more bool) {
	records = q.waiting
	if more = len(records) > n; more {
		records = records[:n:n]
		q.waiting = q.waiting[n:]
	} else {
		q.waiting, q.spare = q.spare[:0], nil
	}
	for _, rec := range records {
		q.bytes -= len(rec.Key) + len(rec.Value)
	}
	if resume = q.paused && len(q.waiting) <= queueMax/2 && q.bytes <= queueBytes/2; resume {
		q.paused = false
	}
	return records, resume, more
}

// requestsAtOnce is how many requests are decided before reports are looked at again: a flood of new work must not keep
// what is under way from ending.
const requestsAtOnce = 512

// flow says how many requests are taken in while ready operations are waiting already.
//
// What is taken in long before it can run is paid for twice: it is written to the tables as waiting and again as ended, by then
// it is out of every cache, and the collector walks it again and again. So once enough is ready to keep the workers busy,
// requests wait on the log, and for a moment it is measured how fast operations are handed out. As many as would be handed out
// within holdFor go on waiting; what is beyond that is taken in, up to Config.BacklogMax, so that priorities and fairness have
// something to choose from and people see what waits. When handlers are slow that is nearly everything. When they are fast,
// taking everything in would itself keep an urgent request waiting for a good part of that time.
type flow struct {
	since  operation.Time // when it was last seen how fast operations are handed out, by the leases' clock; 0: no requests wait
	handed int            // operations handed out since then
	excess int64          // requests that may be taken in though enough is ready
}

const (
	holdFor  = 2 * time.Second
	holdMin  = 500                    // operations that are ready, above which requests wait
	holdLook = 500 * time.Millisecond // how long it takes to see how fast operations are handed out
)

// allowed returns how many requests may be taken in while backlog operations are ready and lag requests are on the log.
func (f *flow) allowed(backlog int, lag int64, tick operation.Time) int64 {
	if lag == 0 {
		*f = flow{}
		return 0
	}
	switch passed := tick.Sub(f.since); {
	case f.since == 0:
		f.since, f.handed = tick, 0
	case passed >= holdLook:
		f.excess = max(lag-int64(float64(f.handed)*float64(holdFor)/float64(passed)), 0)
		f.since, f.handed = tick, 0
	}
	if backlog <= holdMin {
		return lag
	}
	return f.excess
}

// took says how many requests were taken in.
func (f *flow) took(n int) { f.excess = max(f.excess-int64(n), 0) }

// takeInputs decides inputs that wait, as far as the room for appends allows: reports and signals first. After an error the engine
// is ahead of what will ever be appended.
func (a *actor) takeInputs(ctx context.Context, t operation.Time, cause *operation.Cause) (err error) {
	room := a.s.cfg.InFlightMax - len(a.flying)
	backlog, bytes := a.engine.Backlog()
	// Only what there is room for: with more, none could follow until that was done, and commands would be answered by fits and starts,
	// which who sends them cannot foresee. Reports bring the backlog down, and wake the actor again.
	requestsMax := min(requestsAtOnce, max(a.s.cfg.BacklogMax-backlog, 0))
	if bytes > a.s.cfg.BacklogBytes {
		requestsMax = 0
	}
	a.mu.Lock()
	requestsMax = int(min(int64(requestsMax), a.flow.allowed(backlog, a.requests.lag(), a.s.ticks.now())))
	reports, resumeReports, moreReports := a.reports.take(room, a.s.cfg.QueueMax)
	requests, resumeRequests, moreRequests := a.requests.take(min(requestsMax, max(room-len(reports), 0)), a.s.cfg.QueueMax)
	a.mu.Unlock()
	a.flow.took(len(requests))
	if resumeReports || resumeRequests {
		a.s.fetch.resume(a.p, resumeReports, resumeRequests)
	}
	if moreReports || moreRequests && requestsMax > 0 {
		a.signal()
	}
	for _, records := range [][]*kgo.Record{reports, requests} {
		for i, rec := range records {
			if *cause, err = a.input(ctx, rec, t); err != nil {
				return err
			}
			records[i] = nil
		}
	}
	a.mu.Lock()
	if !moreReports {
		a.reports.spare = reports[:0]
	}
	if !moreRequests {
		a.requests.spare = requests[:0]
	}
	a.mu.Unlock()
	return a.settled(ctx)
}

// undecided is how many requests wait, as far as is known, and when the first of them was sent, in Unix milliseconds; 0 when none
// waits.
func (a *actor) undecided() (n, oldest int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests.waiting) > 0 {
		oldest = a.requests.waiting[0].Timestamp.UnixMilli()
	}
	return a.requests.lag(), oldest
}

// input decides one record and returns it as the cause of what follows.
func (a *actor) input(ctx context.Context, rec *kgo.Record, t operation.Time) (operation.Cause, error) {
	cause := operation.Cause{Topic: a.s.cfg.Topics.Short(rec.Topic), Offset: rec.Offset}
	if a.engine.Read(cause) {
		return cause, nil
	}
	original := rec
	var c operation.Command
	var err error
	switch cause.Topic {
	case schemas.TopicReports:
		c, err = schemas.DecodeReport(rec)
	case schemas.TopicSignals:
		if rec, err = schemas.DecodeForwarded(rec); err != nil {
			break
		}
		fallthrough
	default:
		c, err = schemas.DecodeCommand(rec)
		if err == nil && cause.Topic == schemas.TopicRequests {
			if to := schemas.ExpectedPartition(rec, &c, int32(a.s.cfg.Engine.Partitions)); to != a.p {
				a.engine.Forward(to, schemas.WrapRequest(rec), cause, t)
				return cause, nil
			}
		}
	}
	c.Cause = cause
	var refusal *schemas.Refusal
	switch {
	case errors.As(err, &refusal):
		a.remember(rec, &c)
		rejection := refusal.Rejection()
		a.engine.Refuse(&c, rejection.Code, rejection.Reason, t)
		return cause, nil
	case err != nil:
		a.bury(original, err)
		return cause, nil
	}
	a.remember(rec, &c)
	if need, wants := a.engine.Do(&c, t); wants {
		return cause, a.retry(ctx, &c, need, t)
	}
	return cause, nil
}

// remember keeps the key under which a command came until the events that follow from it are appended: the engine may not know its
// operation. A request says its key by itself, and of an operation with an attempt the engine knows the request.
func (a *actor) remember(rec *kgo.Record, c *operation.Command) {
	if c.Request == nil && c.Org != "" && c.Kind.Request() {
		a.keys[c.Cause] = schemas.KeyToKeep(rec, c)
	}
}

// retry reads the request of an operation that has ended from the journal, and decides its retry by hand. The partition
// waits for that: later inputs must not overtake this one.
func (a *actor) retry(ctx context.Context, c *operation.Command, place operation.Place, t operation.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := a.requestAt(ctx, place)
	if err == nil && c.Data != nil {
		req = schemas.WithData(req, c.Data)
	}
	if err != nil && !errors.Is(err, errNoRequest) {
		return fmt.Errorf("reading the request of operation %s, which is to be tried again: %w", c.ID, err) // that says nothing of the operation
	}
	if err != nil {
		a.log.Error("the request of a failed operation cannot be read from the journal", "operation_id", string(c.ID), "place", int64(place), "err", err)
		a.engine.Refuse(c, operation.Forgotten, "the operation's request could not be read: "+err.Error(), t)
		return nil
	}
	c.Request = req
	a.engine.Do(c, t)
	return nil
}

// bury puts a record that cannot be read where people look, with the reason. Until it is there nothing may be appended that
// shows the record as read, see settled.
func (a *actor) bury(rec *kgo.Record, why error) {
	code := schemas.MalformedJSON
	if bad, ok := schemas.IsDecodeError(why); ok {
		code = bad.Code
	}
	a.s.counters.Buried.Add(1)
	a.log.Warn("input cannot be read; it goes to the dead letters", "topic", rec.Topic, "offset", rec.Offset, "err", why)
	dead := schemas.DeadLetter(a.s.cfg.Topics, rec, code, why.Error(), a.s.cfg.Owner, a.now())
	buried := make(chan error, 1)
	a.burials = append(a.burials, buried)
	a.s.out.Produce(a.s.ctx, dead, func(_ *kgo.Record, err error) { buried <- err })
}

// settled waits until all dead letters are on the log. When one is not, the actor ends, and its record is read again.
func (a *actor) settled(ctx context.Context) error {
	for _, buried := range a.burials {
		select {
		case err := <-buried:
			if err != nil {
				return fmt.Errorf("a dead letter was not written to %s: %w", a.s.cfg.Topics.DeadLetter(), err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	a.burials = a.burials[:0]
	return nil
}
